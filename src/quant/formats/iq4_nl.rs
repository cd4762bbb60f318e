//! IQ4_NL: 32 weights of 4 bits that choose from 16 unevenly spaced values, with one f16 scale.
//!
//! ```text
//! byte 0..2   d: f16
//! byte 2..18  q: 32 x u4           low nibble of byte j: weight j; high nibble: weight j + 16
//!                                  w[i] = d * VALUES[q[i]]
//! ```
//! Layout and values: ggml-common.h `block_iq4_nl`, `kvalues_iq4nl`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::rows::small_cache::*;
use crate::quant::types::{QuantType, kernels};

const BLOCK: usize = 32;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + BLOCK / 2);

/// The value of each code, in units of the block's scale.
pub(crate) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The code of the value 1.
const ONE: u8 = 8;

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 20,
    name: "IQ4_NL",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8,
    panel: Some(PanelSpec { group: 32, most: 127, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: Some(CACHE),
};

/// The weights of a block, in units of its scale.
fn units(b: &[u8; BYTES]) -> [i32; BLOCK] {
    std::array::from_fn(|i| VALUES[(b[2 + i % 16] >> (i / 16 * 4) & 15) as usize] as i32)
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
    for (w, v) in b.words(2).into_iter().enumerate() {
        out.codes(w, v.mask(0x0f0f_0f0f).look_up8(&VALUES));
        out.codes(4 + w, v.shr(4).mask(0x0f0f_0f0f).look_up8(&VALUES));
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[2..]);
    put_f16(block, 0, (0.5 + rng.unit()) / 67.0); // the 16 values have an RMS of 67
}

/// The code whose value is nearest to `x`, of two equally near ones the greater.
#[inline(always)]
fn nearest(x: f32) -> u8 {
    // `x` is past value `i` where it is no nearer to it than to the next.
    let past = |i: usize| x - VALUES[i] as f32 >= VALUES[i + 1] as f32 - x;
    (0..15).map(|i| past(i) as u8).sum()
}

/// As ggml's `quantize_row_iq4_nl_ref`: the value of largest magnitude chooses the codes; the scale
/// that is stored is then the one with the least error, squares weighing their own errors. A block
/// whose values are all below 1e-15 becomes zeros.
#[inline(always)] // so that `encode_avx2` compiles it for AVX2
fn encode(x: &[f32], out: &mut [u8]) {
    for (x, b) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let most = largest(x);
        if most.abs() < 1e-15 {
            put_f16(b, 0, 0.0);
            b[2..].fill(ONE << 4 | ONE);
            continue;
        }
        let by = 1.0 / (most / VALUES[0] as f32);
        let mut codes = [0; BLOCK];
        for (code, x) in codes.iter_mut().zip(x) {
            *code = nearest(by * x);
        }
        // In the order of the values, which decides the last bits.
        let (mut along, mut square) = (0f32, 0f32);
        for (&code, x) in codes.iter().zip(x) {
            let (q, weight) = (VALUES[code as usize] as f32, x * x);
            along += weight * q * x;
            square += weight * q * q;
        }
        put_f16(b, 0, if square > 0.0 { along / square } else { 0.0 });
        put_nibbles(&codes, &mut b[2..]);
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
    static QS: [u8; 64] = sixteens::<U>(2);
    static TABLE: [u8; 64] = values::<128>(&VALUES);
    let codes = |b: &[u8; U]| look_up(pick(b, &QS), &TABLE);
    let scales = |b: [&[u8; U]; 4]| Scales::new(f16_scales(b, [0, 9, 18, 27]));
    dot_rows::<U, 128, T>(w, stride, x, out, codes, scales);
}

/// The values come from a byte shuffle. A pair of products is at most 127 * 127 * 2, which fits an
/// i16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    crate::quant::rows::small_avx2::dot_signed::<BYTES, T>(w, stride, x, out, |b| unpack(b));
}

/// The values of a block's codes, and its scale.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack(b: &[u8; BYTES]) -> (std::arch::x86_64::__m256i, std::arch::x86_64::__m256) {
    use crate::simd::x86::*;
    let values = load_u8x16_twice(&VALUES.map(|v| v as u8));
    let codes = std::arch::x86_64::_mm256_shuffle_epi8(values, nibbles(b[2..].as_array().unwrap()));
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
        check::kv(&TYPE, 0.18);
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
