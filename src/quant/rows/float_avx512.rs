//! The AVX-512 row kernel of the float formats.

use std::arch::x86_64::*;

use super::blocks::floats;
use super::super_avx512::AHEAD;
use crate::quant::activations::ActRow;
use crate::simd::x86::*;

/// The sum of all lanes of eight vectors.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn sum_of_eight(mut sums: [__m512; 8]) -> f32 {
    for half in [4, 2, 1] {
        for i in 0..half {
            sums[i] = _mm512_add_ps(sums[i], sums[i + half]);
        }
    }
    _mm512_reduce_add_ps(sums[0])
}

/// The row kernel of every float format: `load` makes 16 floats of `BYTES` bytes, `value` one float
/// of its share.
///
/// One row after the other, as one long stream of memory; eight sums hide the latency of the fused
/// multiply-add. With several tokens no CPU's own prefetching sees that stream among those of the
/// activations (F16: two tokens slower than twice one), so lines are prefetched.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
pub(crate) fn dot<const BYTES: usize, const ONE: usize, const T: usize>(
    w: &[u8],
    stride: usize,
    x: [ActRow<'_>; T],
    out: [&mut [f32]; T],
    load: impl Fn(&[u8; BYTES]) -> __m512,
    value: impl Fn(&[u8; ONE]) -> f32,
) {
    let is_wanted = ahead_where_wanted().is_some();
    for r in 0..out[0].len() {
        let (row16, row_tail) = w[r * stride..][..x[0].n * ONE].as_chunks::<BYTES>();
        let (row128, row_rest) = row16.as_chunks::<8>();
        let mut sums = [[_mm512_setzero_ps(); 8]; T];
        for (k, w) in row128.iter().enumerate() {
            let x = floats::<128, T>(&x, k);
            for i in 0..8 {
                if T > 1 || is_wanted {
                    prefetch_l2(&w[i], AHEAD);
                }
                let w = load(&w[i]);
                for t in 0..T {
                    sums[t][i] = _mm512_fmadd_ps(w, load_f32x16(&x[t].as_chunks().0[i]), sums[t][i]);
                }
            }
        }
        for t in 0..T {
            let (x16, x_tail) = x[t].f.as_chunks::<16>();
            let x_rest = x16.as_chunks::<8>().1;
            for ((w, x), sum) in row_rest.iter().zip(x_rest).zip(&mut sums[t]) {
                *sum = _mm512_fmadd_ps(load(w), load_f32x16(x), *sum);
            }
            let tail = row_tail.as_chunks::<ONE>().0.iter().zip(x_tail);
            out[t][r] = sum_of_eight(sums[t]) + tail.map(|(w, x)| value(w) * x).sum::<f32>();
        }
    }
}
