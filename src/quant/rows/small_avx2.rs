//! The AVX2 row kernels that formats with small blocks share. A format brings how it unpacks a
//! block.
//!
//! Four rows share the work on the activations of one token, several tokens the decoded blocks of a
//! row (see [`by_four`]).

use std::arch::x86_64::*;

use super::blocks::{blocks, by_four, small_acts};
use crate::quant::activations::ActRow;
use crate::simd::x86::*;

/// The row kernel for blocks of 32 signed codes. `unpack` returns a block's codes, none of them
/// -128, and its scale.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_signed<const BYTES: usize, const T: usize>(
    w: &[u8],
    stride: usize,
    x: [ActRow<'_>; T],
    out: [&mut [f32]; T],
    unpack: impl Fn(&[u8; BYTES]) -> (__m256i, __m256),
) {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn group<const R: usize, const BYTES: usize, const T: usize>(
        w: &[u8],
        stride: usize,
        x: &[ActRow<'_>; T],
        unpack: &impl Fn(&[u8; BYTES]) -> (__m256i, __m256),
    ) -> [[f32; R]; T] {
        let n = x[0].n / 32;
        let rows = blocks::<R, BYTES>(w, stride, n);
        let acts = small_acts(x, n);
        let mut acc = [[_mm256_setzero_ps(); R]; T];
        for i in 0..n {
            let (mut q, mut abs, mut dx) = ([_mm256_setzero_si256(); T], [_mm256_setzero_si256(); T], [0.0; T]);
            for t in 0..T {
                q[t] = load_i8x32(&acts[t].0[i]);
                abs[t] = _mm256_abs_epi8(q[t]);
                dx[t] = acts[t].1[i];
            }
            for r in 0..R {
                let b = &rows[r][i];
                prefetch_l2(b, R * stride);
                let (codes, scale) = unpack(b);
                for t in 0..T {
                    let dot = _mm256_cvtepi32_ps(dot_i8_i8(codes, q[t], abs[t]));
                    acc[t][r] = _mm256_fmadd_ps(_mm256_mul_ps(scale, _mm256_set1_ps(dx[t])), dot, acc[t][r]);
                }
            }
        }
        sum_all(acc)
    }
    let (x, unpack) = (&x, &unpack);
    let one = |w: &[u8]| group(w, stride, x, unpack);
    by_four(w, stride, out, |w| group(w, stride, x, unpack), |w| group(w, stride, x, unpack), one);
}

/// Sums the lanes of each vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn sum_all<const R: usize, const T: usize>(acc: [[__m256; R]; T]) -> [[f32; R]; T] {
    let mut sums = [[0.0; R]; T];
    for t in 0..T {
        for r in 0..R {
            sums[t][r] = sum_f32x8(acc[t][r]);
        }
    }
    sums
}

/// The row kernel for blocks of 32 unsigned codes with a minimum. `unpack` returns a block's codes,
/// its scale, and what is added to every weight. The latter times the sum of the activations goes
/// to the same accumulator, an eighth per lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_min<const BYTES: usize, const T: usize>(
    w: &[u8],
    stride: usize,
    x: [ActRow<'_>; T],
    out: [&mut [f32]; T],
    unpack: impl Fn(&[u8; BYTES]) -> (__m256i, __m256, __m256),
) {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn group<const R: usize, const BYTES: usize, const T: usize>(
        w: &[u8],
        stride: usize,
        x: &[ActRow<'_>; T],
        unpack: &impl Fn(&[u8; BYTES]) -> (__m256i, __m256, __m256),
    ) -> [[f32; R]; T] {
        let n = x[0].n / 32;
        let rows = blocks::<R, BYTES>(w, stride, n);
        let acts = small_acts(x, n);
        let mut acc = [[_mm256_setzero_ps(); R]; T];
        for i in 0..n {
            let (mut q, mut dx, mut total) =
                ([_mm256_setzero_si256(); T], [_mm256_setzero_ps(); T], [_mm256_setzero_ps(); T]);
            for t in 0..T {
                q[t] = load_i8x32(&acts[t].0[i]);
                dx[t] = _mm256_set1_ps(acts[t].1[i]);
                let sums = _mm256_set1_epi32(bytemuck::cast(acts[t].2[i]));
                let sum = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
                total[t] = _mm256_mul_ps(_mm256_mul_ps(sum, _mm256_set1_ps(0.125)), dx[t]);
            }
            for r in 0..R {
                let b = &rows[r][i];
                prefetch_l2(b, R * stride);
                let (codes, scale, min) = unpack(b);
                for t in 0..T {
                    acc[t][r] = _mm256_fmadd_ps(min, total[t], acc[t][r]);
                    let dot = _mm256_cvtepi32_ps(dot_u8_i8(codes, q[t]));
                    acc[t][r] = _mm256_fmadd_ps(_mm256_mul_ps(scale, dx[t]), dot, acc[t][r]);
                }
            }
        }
        sum_all(acc)
    }
    let (x, unpack) = (&x, &unpack);
    let one = |w: &[u8]| group(w, stride, x, unpack);
    by_four(w, stride, out, |w| group(w, stride, x, unpack), |w| group(w, stride, x, unpack), one);
}

/// The row kernel for blocks of `BLOCK` weights in 16 bytes after an f16 scale. The codes are not
/// reordered; instead the activations are put into the order of the codes, once for all rows.
/// `acts` turns the activations of a block and their scales into `K` planes and a scale per lane.
/// `fields` turns the block's bytes, of which the upper half is shifted down by 4 bits, into the
/// codes for each plane, which are one larger than the values that they encode.
///
/// Tokens are multiplied one after the other: what is dear is the order of the activations, which
/// four rows share, and not to decode a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_planes<const BLOCK: usize, const K: usize, const T: usize>(
    w: &[u8],
    stride: usize,
    x: [ActRow<'_>; T],
    out: [&mut [f32]; T],
    acts: impl Fn(&[i8; BLOCK], &[f32]) -> ([__m256i; K], __m256),
    fields: impl Fn(__m256i) -> [__m256i; K],
) {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn group<const R: usize, const BLOCK: usize, const K: usize>(
        w: &[u8],
        stride: usize,
        x: ActRow<'_>,
        acts: &impl Fn(&[i8; BLOCK], &[f32]) -> ([__m256i; K], __m256),
        fields: &impl Fn(__m256i) -> [__m256i; K],
    ) -> [[f32; R]; 1] {
        let n = x.n / BLOCK;
        let rows = blocks::<R, 18>(w, stride, n);
        let q = &x.q.as_chunks::<BLOCK>().0[..n];
        let one = _mm256_set1_epi8(1);
        let halves = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
        let mut acc = [_mm256_setzero_ps(); R];
        for i in 0..n {
            let (planes, dx) = acts(&q[i], &x.d[i * (BLOCK / 32)..][..BLOCK / 32]);
            let mut offset = _mm256_setzero_si256();
            for plane in planes {
                offset = _mm256_add_epi16(offset, _mm256_maddubs_epi16(one, plane));
            }
            for r in 0..R {
                let b = &rows[r][i];
                prefetch_l2(b, R * stride);
                let codes = fields(_mm256_srlv_epi32(load_u8x16_twice(b[2..].as_array().unwrap()), halves));
                let mut pairs = _mm256_sub_epi16(_mm256_setzero_si256(), offset);
                for k in 0..K {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes[k], planes[k]));
                }
                let dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                let scale = _mm256_mul_ps(splat_f16(u16::from_le_bytes([b[0], b[1]])), dx);
                acc[r] = _mm256_fmadd_ps(scale, dot, acc[r]);
            }
        }
        sum_all([acc])
    }
    let (acts, fields) = (&acts, &fields);
    for (x, out) in x.into_iter().zip(out) {
        let one = |w: &[u8]| group(w, stride, x, acts, fields);
        let two = |w: &[u8]| group(w, stride, x, acts, fields);
        by_four(w, stride, [out], |w| group(w, stride, x, acts, fields), two, one);
    }
}
