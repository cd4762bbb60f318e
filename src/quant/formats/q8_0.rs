//! Q8_0: 32 weights of 8 bits with one f16 scale.
//!
//! ```text
//! byte 0..2   d: f16
//! byte 2..34  q: 32 x i8           w[i] = d * q[i]
//! ```
//! Layout: ggml-common.h `block_q8_0`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::blocks::{blocks, by_four, small_acts};
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::types::{CacheFormat, QuantType, kernels};
use crate::simd::Isa;

const BLOCK: usize = 32;
const BYTES: usize = 34;
const _: () = assert!(BYTES == 2 + BLOCK);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 8,
    name: "Q8_0",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8,
    panel: Some(PanelSpec { group: 32, most: 128, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: Some(CacheFormat {
        encode: &[
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, encode_avx2),
            (Isa::Scalar, encode),
        ],
        decode: &[
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, decode_avx2),
            (Isa::Scalar, dequant),
        ],
        floats: None,
    }),
};

#[inline(always)] // so that `decode_avx2` compiles it for AVX2
fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let d = f16_at(b, 0);
        for (o, &q) in o.iter_mut().zip(&b[2..]) {
            *o = q as i8 as f32 * d;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn decode_avx2(blocks: &[u8], out: &mut [f32]) {
    dequant(blocks, out);
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
        let mut sum = 0f64;
        for (i, (b, q)) in row.as_chunks::<BYTES>().0.iter().zip(x.q.as_chunks::<BLOCK>().0).enumerate() {
            let dot: i32 = b[2..].iter().zip(q).map(|(&w, &q)| w as i8 as i32 * q as i32).sum();
            sum += f16_at(b, 0) as f64 * x.d[i] as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, BLOCK, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    out.scale(0, b.f16(0));
    for i in 0..2 {
        b.words(2 + 16 * i).into_iter().enumerate().for_each(|(w, v)| out.codes(4 * i + w, v));
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[2..]);
    put_f16(block, 0, (0.5 + rng.unit()) / 73.0); // uniform bytes have an RMS of 73
}

/// As ggml's `quantize_row_q8_0_ref`: the scale is rounded to f16 for storage, the division uses
/// the exact one.
#[inline(always)] // so that `encode_avx2` compiles it for AVX2
pub(super) fn encode(x: &[f32], out: &mut [u8]) {
    for (x, b) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let d = max / 127.0;
        let inv = if d > 0.0 { 1.0 / d } else { 0.0 };
        put_f16(b, 0, d);
        for (q, x) in b[2..].iter_mut().zip(x) {
            *q = (x * inv).round() as i8 as u8;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn encode_avx2(x: &[f32], out: &mut [u8]) {
    encode(x, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    by_four(w, stride, out, |w| group(w, stride, &x), |w| group(w, stride, &x), |w| group(w, stride, &x));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::small_avx512::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    const U: usize = 4 * BYTES;
    if !takes(x[0].n) {
        return dot_avx2(w, stride, x, out);
    }
    let codes = |b: &[u8; U]| {
        let block = |g: usize| load_u8x32(b[g * BYTES + 2..][..32].as_array().unwrap());
        let low = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(block(0)), block(1));
        let high = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(block(2)), block(3));
        let offset = _mm512_set1_epi8(-128);
        quarters(_mm512_xor_si512(low, offset), _mm512_xor_si512(high, offset))
    };
    let scales = |b: [&[u8; U]; 4]| {
        let start = |r: usize, g: usize| load_u8x16(b[r][g * BYTES..][..16].as_array().unwrap());
        let row = |r: usize| {
            let (low, high) =
                (_mm_unpacklo_epi16(start(r, 0), start(r, 1)), _mm_unpacklo_epi16(start(r, 2), start(r, 3)));
            _mm_unpacklo_epi32(low, high)
        };
        let (low, high) = (_mm_unpacklo_epi64(row(0), row(1)), _mm_unpacklo_epi64(row(2), row(3)));
        Scales::new(_mm512_cvtph_ps(_mm256_set_m128i(high, low)))
    };
    dot_rows::<U, 128, T>(w, stride, x, out, codes, scales);
}

/// `maddubs` wants unsigned times signed: the weight's sign moves to the activation. |w| * |q| <=
/// 128 * 127, and a pair of those sums still fits i16 because activations never reach -128.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn group<const R: usize, const T: usize>(w: &[u8], stride: usize, x: &[ActRow<'_>; T]) -> [[f32; R]; T] {
    use crate::quant::rows::small_avx2::sum_all;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let n = x[0].n / BLOCK;
    let rows = blocks::<R, BYTES>(w, stride, n);
    let acts = small_acts(x, n);
    let mut acc = [[_mm256_setzero_ps(); R]; T];
    for i in 0..n {
        let mut q = [_mm256_setzero_si256(); T];
        for t in 0..T {
            q[t] = load_i8x32(&acts[t].0[i]);
        }
        for r in 0..R {
            let b = &rows[r][i];
            prefetch_l2(b, R * stride);
            let wv = load_u8x32(b[2..].as_array().unwrap());
            let (abs, scale) = (_mm256_sign_epi8(wv, wv), splat_f16(u16::from_le_bytes([b[0], b[1]])));
            for t in 0..T {
                let dot = dot_u8_i8(abs, _mm256_sign_epi8(q[t], wv));
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(acts[t].1[i]));
                acc[t][r] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), acc[t][r]);
            }
        }
    }
    sum_all(acc)
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
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }

    #[test]
    fn a_kv_row_keeps_its_values() {
        check::kv(&TYPE, 0.005);
    }

    #[test]
    fn rows_are_encoded_as_the_reference_encodes_them() {
        check::encode(&TYPE);
    }

    #[test]
    fn the_largest_weights_and_activations_overflow_nothing() {
        check::extremes(&TYPE, &[0]);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }
}
