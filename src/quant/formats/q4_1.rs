//! Q4_1: 32 weights of 4 bits with an f16 scale and an f16 minimum.
//!
//! ```text
//! byte 0..2   d: f16
//! byte 2..4   m: f16
//! byte 4..20  q: 32 x u4           low nibble of byte j: weight j; high nibble: weight j + 16
//!                                  w[i] = d * q[i] + m
//! ```
//! Layout: ggml-common.h `block_q4_1`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::rows::small_cache::*;
use crate::quant::types::{QuantType, kernels};

const BLOCK: usize = 32;
const BYTES: usize = 20;
const _: () = assert!(BYTES == 2 + 2 + BLOCK / 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 3,
    name: "Q4_1",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8,
    panel: Some(PanelSpec { group: 32, most: 15, mins: true, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: Some(CACHE),
};

/// The weights of a block, in units of its scale and above its minimum.
fn units(b: &[u8; BYTES]) -> [i32; BLOCK] {
    std::array::from_fn(|i| (b[4 + i % 16] >> (i / 16 * 4) & 15) as i32)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let (d, m) = (f16_at(b, 0), f16_at(b, 2));
        *o = units(b).map(|w| w as f32 * d + m);
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
        let mut sum = 0f64;
        for (i, (b, q)) in row.as_chunks::<BYTES>().0.iter().zip(x.q.as_chunks::<BLOCK>().0).enumerate() {
            let dot: i32 = units(b).iter().zip(q).map(|(&w, &q)| w * q as i32).sum();
            let total: i32 = q.iter().map(|&q| q as i32).sum();
            let (d, m) = (f16_at(b, 0) as f64, f16_at(b, 2) as f64);
            sum += (d * dot as f64 + m * total as f64) * x.d[i] as f64;
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, BLOCK, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    let both = b.each(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    out.scale(0, both.f16_to_f32());
    out.min(0, both.shr(16).xor(b.splat(0x8000)).f16_to_f32()); // panels take minimums off
    for (w, v) in b.words(4).into_iter().enumerate() {
        out.codes(w, v.mask(0x0f0f_0f0f));
        out.codes(4 + w, v.shr(4).mask(0x0f0f_0f0f));
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[4..]);
    let d = (0.5 + rng.unit()) / 4.6; // uniform nibbles have a mean of 7.5 and a deviation of 4.6
    put_f16(block, 0, d);
    put_f16(block, 2, -d * (7.0 + rng.unit()));
}

/// As ggml's `quantize_row_q4_1_ref`.
#[inline(always)] // so that `encode_avx2` compiles it for AVX2
fn encode(x: &[f32], out: &mut [u8]) {
    for (x, b) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let codes = min_codes(x, 15, b);
        put_nibbles(&codes, &mut b[4..]);
    }
}

cache_format!(CACHE, BYTES, |b| {
    let (codes, scale, min) = unpack(b);
    (codes, scale, Some(min))
});

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::small_avx512::*;
    const U: usize = 4 * BYTES;
    if !takes(x[0].n) {
        return dot_avx2(w, stride, x, out);
    }
    static QS: [u8; 64] = sixteens::<U>(4);
    let codes = |b: &[u8; U]| nibbles(pick(b, &QS));
    let scales = |b: [&[u8; U]; UNITS]| {
        let [scale, min] = f16_pairs(heads(b));
        Scales { scale, second: None, min: Some(min) }
    };
    dot_rows::<U, 0, T>(w, stride, x, out, codes, scales);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    crate::quant::rows::small_avx2::dot_min::<BYTES, T>(w, stride, x, out, |b| unpack(b));
}

/// The codes of a block, its scale and its minimum.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack(b: &[u8; BYTES]) -> (std::arch::x86_64::__m256i, std::arch::x86_64::__m256, std::arch::x86_64::__m256) {
    use crate::simd::x86::*;
    let f16 = |at: usize| splat_f16(u16::from_le_bytes([b[at], b[at + 1]]));
    (nibbles(b[4..].as_array().unwrap()), f16(0), f16(2))
}

#[cfg(test)]
mod tests {
    use super::TYPE;
    use crate::quant::formats::check;

    #[test]
    fn every_kernel_equals_the_scalar_truth() {
        check::kernels(&TYPE);
    }

    #[test]
    fn a_kv_row_keeps_its_values() {
        check::kv(&TYPE, 0.069);
    }

    #[test]
    fn rows_are_encoded_as_the_reference_encodes_them() {
        check::encode(&TYPE);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }

    #[test]
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }
}
