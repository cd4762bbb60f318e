//! NVFP4: 64 weights in 4-bit floating point (E2M1), with an 8-bit floating-point scale (E4M3) per
//! 16.
//!
//! ```text
//! byte 0..4   s: 4 x e4m3          s[g] scales weights 16g..16g+16; the top bit is ignored
//! byte 4..36  q: 64 x e2m1         in group g, low nibble of byte 8g+j: weight 16g+j; high nibble:
//!             weight 16g+j+8
//!                                  w[i] = s[i / 16] / 2 * VALUES[q[i]]
//! ```
//! The E2M1 values are kept doubled, as integers (the table of MXFP4), and the scales halved. E4M3
//! is a sign, 4 bits of exponent (bias 7) and 3 bits of fraction; the code 0x7f, its NaN, counts as
//! 0. A tensor has one more scale, an f32 of its own in the file, which the caller multiplies with.
//! Layout: ggml-common.h `block_nvfp4`.

use super::mxfp4::VALUES;
use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::rows;
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::blocks::{blocks, by_four, small_acts};
use crate::quant::types::{QuantType, kernels};

const BLOCK: usize = 64;
const GROUP: usize = 16;
const GROUPS: usize = BLOCK / GROUP;
const BYTES: usize = 36;
const _: () = assert!(BYTES == GROUPS + BLOCK / 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 40,
    name: "NVFP4",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8,
    panel: Some(PanelSpec { group: 16, most: 12, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// Returns half the value of an E4M3 code.
fn scale(code: u8) -> f32 {
    let (exponent, fraction) = (u32::from(code >> 3 & 15), f32::from(code & 7));
    match (code, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => fraction / 1024.0,
        // 2^(exponent - 7) by its bits: the precision of powi is not specified.
        _ => (8.0 + fraction) / 16.0 * f32::from_bits((exponent + 120) << 23),
    }
}

/// The weights of a block, in units of their group's halved scale.
fn units(b: &[u8; BYTES]) -> [i32; BLOCK] {
    std::array::from_fn(|i| VALUES[(b[4 + i / 16 * 8 + i % 8] >> (i % 16 / 8 * 4) & 15) as usize] as i32)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let units = units(b);
        for g in 0..GROUPS {
            let d = scale(b[g]);
            for i in g * GROUP..(g + 1) * GROUP {
                o[i] = units[i] as f32 * d;
            }
        }
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
        let mut sum = 0f64;
        for (i, (b, q)) in row.as_chunks::<BYTES>().0.iter().zip(x.q.as_chunks::<BLOCK>().0).enumerate() {
            let units = units(b);
            for (g, (w, q)) in units.as_chunks::<GROUP>().0.iter().zip(q.as_chunks::<GROUP>().0).enumerate() {
                let dot: i32 = w.iter().zip(q).map(|(&w, &q)| w * q as i32).sum();
                sum += scale(b[g]) as f64 * x.d[i * 2 + g / 2] as f64 * dot as f64;
            }
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, BLOCK, 16);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    let codes = b.each(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (two_to_7, nan, ones) = (b.splat(128f32.to_bits()), b.splat(0x7f), b.splat(u32::MAX));
    for g in 0..GROUPS {
        // As in `group`. The code with the NaN's bits flipped, less one, is negative for the NaN
        // alone.
        let code = codes.byte(g as u32);
        let keep = code.xor(nan).add(ones).sar(31).xor(ones);
        out.scale(g, code.mask(0x7f).and(keep).shl(7).f16_to_f32().mul_f32(two_to_7));
    }
    for half in 0..2 {
        // Words 0 and 1 are the bytes of one group, 2 and 3 of the next.
        for (w, v) in b.words(4 + 16 * half).into_iter().enumerate() {
            let step = 8 * half + w / 2 * 4 + w % 2;
            out.codes(step, v.mask(0x0f0f_0f0f).look_up8(&VALUES));
            out.codes(step + 2, v.shr(4).mask(0x0f0f_0f0f).look_up8(&VALUES));
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(block);
    for s in &mut block[..GROUPS] {
        *s = 40 + rng.below(8) as u8; // 1/4 to 15/32: the 16 values have an RMS of 2.9
    }
}

/// A 64-bit lane holds the two halves of a group of 16, the other lane the next group: unpacking
/// them with their high nibbles leaves each in order. The scales are widened as in `group`; two
/// neighbours belong to the first and the second 16 of 32 weights.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::small_avx512::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    const U: usize = 2 * BYTES;
    if !takes(x[0].n) {
        return dot_avx2(w, stride, x, out);
    }
    static TABLE: [u8; 64] = values::<12>(&VALUES);
    let codes = |b: &[u8; U]| {
        let half = |i: usize| load_u8x32(b[i * BYTES + 4..].first_chunk().unwrap());
        let v = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(0)), half(1));
        let high = _mm512_srli_epi16::<4>(v);
        let table = load_u8x64(&TABLE);
        let [a, b] = [_mm512_unpacklo_epi64(v, high), _mm512_unpackhi_epi64(v, high)];
        [_mm512_permutexvar_epi8(a, table), _mm512_permutexvar_epi8(b, table)]
    };
    let scales = |b: [&[u8; U]; UNITS]| {
        let four = |u: usize, i: usize| i32::from_le_bytes(*b[u][i * BYTES..].first_chunk().unwrap());
        let two = |u: usize| (four(u, 0), four(u, 1));
        let ((a, b), (c, d), (e, f), (g, h)) = (two(0), two(1), two(2), two(3));
        let codes = _mm512_cvtepu8_epi16(_mm256_setr_epi32(a, b, c, d, e, f, g, h));
        let number = _mm512_cmpneq_epi16_mask(codes, _mm512_set1_epi16(0x7f));
        let by = _mm512_set1_ps(128.0);
        let codes = _mm512_and_si512(codes, _mm512_set1_epi16(0x7f));
        let [first, second] = f16_pairs(_mm512_maskz_slli_epi16::<7>(number, codes));
        Scales { scale: _mm512_mul_ps(first, by), second: Some(_mm512_mul_ps(second, by)), min: None }
    };
    dot_rows::<U, 12, T>(w, stride, x, out, codes, scales);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    by_four(w, stride, out, |w| group(w, stride, &x), |w| group(w, stride, &x), |w| group(w, stride, &x));
}

/// The two halves of a register hold groups 0, 2 and 1, 3, so that unpacking the low and high
/// nibbles leaves 16 weights of one group in each half and in order. The E4M3 codes shifted by 7
/// are f16 with a bias 8 too large, subnormal codes included: widened and multiplied by 2^8 (2^7,
/// as the scales are halved) they are the scales.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn group<const R: usize, const T: usize>(w: &[u8], stride: usize, x: &[ActRow<'_>; T]) -> [[f32; R]; T] {
    use crate::quant::rows::small_avx2::sum_all;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let n = x[0].n / BLOCK;
    let rows = blocks::<R, BYTES>(w, stride, n);
    let acts = small_acts(x, 2 * n);
    let values = load_u8x16_twice(&VALUES.map(|v| v as u8));
    let nibble = _mm256_set1_epi8(15);
    let (first, second) = (_mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1), _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3));
    let mut acc = [[_mm256_setzero_ps(); R]; T];
    for i in 0..n {
        let (mut q, mut dx) = ([[_mm256_setzero_si256(); 2]; T], [_mm_setzero_ps(); T]);
        for t in 0..T {
            let (halves, d, _) = acts[t];
            q[t] = [load_i8x32(&halves[2 * i]), load_i8x32(&halves[2 * i + 1])];
            let (a, b) = (d[2 * i], d[2 * i + 1]);
            dx[t] = _mm_mul_ps(_mm_setr_ps(a, a, b, b), _mm_set1_ps(128.0));
        }
        for r in 0..R {
            let b = &rows[r][i];
            prefetch_l2(b, R * stride);
            let codes = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(i32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            let half = _mm_and_si128(_mm_slli_epi16::<7>(codes), _mm_set1_epi16(0x7f << 7));
            let half = _mm_andnot_si128(_mm_cmpeq_epi16(codes, _mm_set1_epi16(0x7f)), half);
            let scales = _mm_cvtph_ps(half);
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(load_u8x32(b[4..].as_array().unwrap()));
            let low = _mm256_shuffle_epi8(values, _mm256_and_si256(packed, nibble));
            let high = _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16::<4>(packed), nibble));
            let codes = [_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high)];
            for t in 0..T {
                let scales = _mm256_castps128_ps256(_mm_mul_ps(scales, dx[t]));
                for (h, which) in [first, second].into_iter().enumerate() {
                    let dot = dot_i8_i8(codes[h], q[t][h], _mm256_abs_epi8(q[t][h]));
                    let scale = _mm256_permutevar8x32_ps(scales, which);
                    acc[t][r] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), acc[t][r]);
                }
            }
        }
    }
    sum_all(acc)
}

#[cfg(test)]
mod tests {
    use super::TYPE;
    use crate::quant::formats::check;
    use crate::quant::types::QuantType;

    #[test]
    fn every_kernel_equals_the_scalar_truth() {
        check::kernels(&TYPE);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }

    #[test]
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }

    #[test]
    fn every_scale_code_means_the_same_to_every_kernel() {
        let wide = QuantType { random: |rng, block| rng.fill(block), kv: None, ..TYPE };
        let wide = Box::leak(Box::new(wide));
        check::kernels(wide);
        check::panels(wide);
    }
}
