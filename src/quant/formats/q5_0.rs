//! Q5_0: 32 weights of 5 bits with one f16 scale and a fixed offset of 16.
//!
//! ```text
//! byte 0..2   d: f16
//! byte 2..6   h: 32 x 1 bit        bit i: bit 4 of weight i
//! byte 6..22  l: 32 x u4           low nibble of byte j: weight j; high nibble: weight j + 16
//!                                  w[i] = d * (l[i] + 16 * h[i] - 16)
//! ```
//! Layout: ggml-common.h `block_q5_0`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::rows::small_cache::*;
use crate::quant::types::{QuantType, kernels};

const BLOCK: usize = 32;
const BYTES: usize = 22;
const _: () = assert!(BYTES == 2 + BLOCK / 8 + BLOCK / 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 6,
    name: "Q5_0",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8,
    panel: Some(PanelSpec { group: 32, most: 16, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: Some(CACHE),
};

/// The weights of a block, in units of its scale.
fn units(b: &[u8; BYTES]) -> [i32; BLOCK] {
    std::array::from_fn(|i| {
        let low = b[6 + i % 16] >> (i / 16 * 4) & 15;
        let high = b[2 + i / 8] >> (i % 8) & 1;
        (low | high << 4) as i32 - 16
    })
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let d = f16_at(b, 0);
        *o = units(b).map(|w| w as f32 * d);
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
        let mut sum = 0f64;
        for (i, (b, q)) in row.as_chunks::<BYTES>().0.iter().zip(x.q.as_chunks::<BLOCK>().0).enumerate() {
            let dot: i32 = units(b).iter().zip(q).map(|(&w, &q)| w * q as i32).sum();
            sum += f16_at(b, 0) as f64 * x.d[i] as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, BLOCK, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    out.scale(0, b.f16(0));
    let high = b.each(|b| u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
    let offset = b.splat(0x1010_1010);
    for (w, v) in b.words(6).into_iter().enumerate() {
        for h in 0..2 {
            let bits = high.shr(4 * w as u32 + 16 * h).mask(15).spread4().mask(0x1010_1010);
            out.codes(4 * h as usize + w, v.shr(4 * h).mask(0x0f0f_0f0f).or(bits).sub8(offset));
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[2..]);
    put_f16(block, 0, (0.5 + rng.unit()) / 9.2); // uniform 5-bit values less 16 have an RMS of 9.2
}

/// As ggml's `quantize_row_q5_0_ref`.
#[inline(always)] // so that `encode_avx2` compiles it for AVX2
fn encode(x: &[f32], out: &mut [u8]) {
    for (x, b) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let codes = signed_codes(x, 31, b);
        put_fifth_bits(&codes, &mut b[2..6]);
        put_nibbles(&codes, &mut b[6..]);
    }
}

cache_format!(CACHE, BYTES, |b| {
    let (codes, scale) = unpack(b);
    (codes, scale, None)
});

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::small_avx512::*;
    const U: usize = 4 * BYTES;
    if !takes(x[0].n) {
        return dot_avx2(w, stride, x, out);
    }
    static QS: [u8; 64] = sixteens::<U>(6);
    static HIGH: [[u8; 64]; 2] = bits_from::<U>(2);
    let codes = |b: &[u8; U]| fifth_bits(b, &HIGH, nibbles(pick(b, &QS)));
    let scales = |b: [&[u8; U]; UNITS]| Scales::new(f16_pairs(heads(b))[0]);
    dot_rows::<U, 16, T>(w, stride, x, out, codes, scales);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    crate::quant::rows::small_avx2::dot_signed::<BYTES, T>(w, stride, x, out, |b| unpack(b));
}

/// The signed codes of a block, and its scale. Where the high bit is clear the upper four bits are
/// set: that is the low nibble less 16, as a signed byte.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack(b: &[u8; BYTES]) -> (std::arch::x86_64::__m256i, std::arch::x86_64::__m256) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let high = bit_bytes(b[2..6].as_array().unwrap());
    let low = nibbles(b[6..].as_array().unwrap());
    let codes = _mm256_or_si256(low, _mm256_andnot_si256(high, _mm256_set1_epi8(-16)));
    (codes, splat_f16(u16::from_le_bytes([b[0], b[1]])))
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
    fn the_largest_weights_and_activations_overflow_nothing() {
        check::extremes(&TYPE, &[0]);
    }

    #[test]
    fn a_kv_row_keeps_its_values() {
        check::kv(&TYPE, 0.064);
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
