//! Quantization of activations to 8 bits: in plain Rust, for AVX2 and for AVX-512, with equal bits
//! from all three.

use super::forms::CHUNK;
use crate::simd::{self, Isa};

/// Quantizes whole blocks of `block` values into codes `q`, a scale per block, and the sum of every
/// 16 codes.
pub(crate) fn quantize(block: usize, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    #[cfg(target_arch = "x86_64")]
    if simd::isa() >= Isa::Avx2 {
        #[allow(unsafe_code)]
        // SAFETY: isa() names an instruction set that this CPU has.
        unsafe {
            if simd::isa() >= Isa::Avx512 {
                quantize_avx512(block, x, q, d, sums)
            } else {
                quantize_avx2(block, x, q, d, sums)
            }
        };
        return;
    }
    quantize_scalar(block, x, q, d, sums);
}

#[inline(always)] // so that `quantize_avx2` compiles it for AVX2
pub(crate) fn quantize_scalar(block: usize, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    for (b, x) in x.chunks_exact(block).enumerate() {
        let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let inv = if max > 0.0 { 127.0 / max } else { 0.0 };
        d[b] = max / 127.0;
        for (q, x) in q[b * block..].iter_mut().zip(x) {
            *q = (x * inv).round_ties_even().clamp(-127.0, 127.0) as i8; // 127 / a tiny max may overflow
        }
    }
    for (s, q) in sums.iter_mut().zip(q.chunks_exact(16)) {
        *s = q.iter().map(|&q| q as i16).sum();
    }
}

/// AVX2 version of [`quantize_scalar`]: the compiler vectorises the scalar code well, and its bits
/// stay as they are.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn quantize_avx2(block: usize, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    quantize_scalar(block, x, q, d, sums);
}

/// AVX-512 version of [`quantize_scalar`]; takes 256 values at a time, which are eight blocks or
/// one. A NaN is ignored by the maximum and becomes 0, as in the scalar version.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn quantize_avx512(block: usize, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let (x256, x_rest) = x.as_chunks::<CHUNK>();
    let (q256, q_rest) = q.as_chunks_mut::<CHUNK>();
    let (sums256, sums_rest) = sums.as_chunks_mut::<16>();
    let (d256, d_rest) = d.split_at_mut(x256.len() * CHUNK / block);
    let max_of = |x: &[f32; 16], m: __m512| _mm512_max_ps(_mm512_abs_ps(load_f32x16(x)), m); // m where x is NaN
    let zero = _mm512_setzero_ps();
    for (b, x) in x256.iter().enumerate() {
        let (x, q) = (x.as_chunks::<16>().0, q256[b].as_chunks_mut::<64>().0);
        let mut inv = [zero; 8];
        let scale = |max: f32, d: &mut f32| {
            *d = max / 127.0;
            _mm512_set1_ps(if max > 0.0 { 127.0 / max } else { 0.0 })
        };
        if block == CHUNK {
            let mut max = [zero; 4];
            for (i, x) in x.iter().enumerate() {
                max[i % 4] = max_of(x, max[i % 4]);
            }
            let max = _mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3]));
            inv = [scale(_mm512_reduce_max_ps(max), &mut d256[b]); 8];
        } else {
            for (i, d) in d256[b * 8..][..8].iter_mut().enumerate() {
                let max = _mm512_reduce_max_ps(max_of(&x[2 * i], max_of(&x[2 * i + 1], zero)));
                inv[i] = scale(max, d);
            }
        }
        let mut packed = [_mm512_setzero_si512(); 4];
        for (i, packed) in packed.iter_mut().enumerate() {
            let four: [__m512i; 4] = std::array::from_fn(|j| {
                let v = _mm512_mul_ps(load_f32x16(&x[4 * i + j]), inv[2 * i + j / 2]);
                let most = _mm512_set1_ps(127.0);
                let near = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-127.0)), most);
                _mm512_maskz_cvtps_epi32(_mm512_cmpord_ps_mask(v, v), near)
            });
            *packed = pack_i32x64(four);
            store_i8x64(&mut q[i], *packed);
        }
        sum_by_16(packed, &mut sums256[b]);
    }
    quantize_scalar(block, x_rest, q_rest, d_rest, sums_rest);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::quant::rng::Rng;

    /// Random values with what instruction sets could treat differently: ties, zeros, blocks of
    /// zeros, subnormals, infinities, NaN.
    pub(crate) fn values(rng: &mut Rng, n: usize) -> Vec<f32> {
        let kind = rng.below(6);
        let one = |i: usize| match (kind, rng.below(40)) {
            (0, _) => (rng.below(255) as f32 - 127.0) * 0.5,
            (1, _) => 0.0,
            (2, _) => rng.normal() * 1e-41,
            (3, 0) => f32::NAN,
            (3, 1) => -0.0,
            (4, 0) if i.is_multiple_of(3) => [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX][rng.below(4)],
            _ => rng.normal(),
        };
        (0..n).map(one).collect()
    }

    type Quantize = fn(usize, &[f32], &mut [i8], &mut [f32], &mut [i16]);

    #[test]
    fn every_instruction_set_quantizes_to_the_same_bits() {
        let mut rng = Rng(4);
        for round in 0..400 {
            let block = [32, 256][round % 2];
            let n = block * (1 + rng.below(20));
            let x = values(&mut rng, n);
            let run = |f: Quantize| {
                let (mut q, mut d, mut sums) = (vec![0; n], vec![0.0; n / block], vec![0; n / 16]);
                f(block, &x, &mut q, &mut d, &mut sums);
                (q, d.iter().map(|d: &f32| d.to_bits()).collect::<Vec<_>>(), sums)
            };
            assert!(run(quantize) == run(quantize_scalar), "block {block}, {n} values, round {round}");
        }
    }
}
