//! BF16: the upper half of an f32. A block is one weight.
//!
//! ```text
//! byte 0..2   w: bits 16..32 of an f32, little-endian; the lower bits are zero
//! ```
//! A prompt's activations are rounded to BF16 where the CPU multiplies BF16 (AVX512_BF16), as
//! llama.cpp and ik_llama.cpp do there; see panels/floats.rs. A single token's stay f32, which
//! costs nothing: weights come from memory more slowly than they are multiplied.

use crate::quant::activations::{Act, ActRow};
use crate::quant::rng::Rng;
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::blocks::{floats, two_by_two};
use crate::quant::rows::blocks::{rows};
use crate::quant::types::{CacheFormat, Floats, QuantType, kernels};
use crate::simd::Isa;

const BYTES: usize = 2;
const _: () = assert!(BYTES == size_of::<half::bf16>());

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 30,
    name: "BF16",
    block: 1,
    bytes: BYTES,
    act: Act::Bf16,
    panel: None,
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
        floats: Some(Floats::Brain),
    }),
};

#[inline]
fn value(b: &[u8; BYTES]) -> f32 {
    f32::from_bits((u16::from_le_bytes(*b) as u32) << 16)
}

fn values(blocks: &[u8]) -> impl Iterator<Item = f32> + '_ {
    blocks.as_chunks::<BYTES>().0.iter().map(value)
}

#[inline(always)] // so that `decode_avx2` compiles it for AVX2
fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (o, v) in out.iter_mut().zip(values(blocks)) {
        *o = v;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn decode_avx2(blocks: &[u8], out: &mut [f32]) {
    dequant(blocks, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2(x: &[f32], out: &mut [u8]) {
    encode(x, out);
}

/// Rounds to the nearest, of two equally near to the even one; a NaN stays one.
#[inline(always)] // so that `encode_avx2` compiles it for AVX2
pub(super) fn encode(x: &[f32], out: &mut [u8]) {
    for (b, &x) in out.as_chunks_mut::<BYTES>().0.iter_mut().zip(x) {
        *b = half::bf16::from_f32(x).to_le_bytes();
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n * BYTES)) {
        *o = values(row).zip(x.f).map(|(w, &x)| w as f64 * x as f64).sum::<f64>() as f32;
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    block.copy_from_slice(&half::bf16::from_f32(rng.normal()).to_le_bytes());
}

/// One permutation widens 16 weights: each word goes to the upper half of its lane, zeros to the
/// lower. Lines are prefetched as in rows/super_avx512.rs; without that, decoding is up to 30%
/// slower, most so while memory is slow.
///
/// Rejected: widening by a load and a shift, which reads 10% less per second from memory.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    if T == 4 {
        return two_by_two(x, out, |x, out| dot_avx512::<2>(w, stride, x, out));
    }
    use crate::quant::rows::super_avx512::AHEAD;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let pairs: [u16; 32] = std::array::from_fn(|i| i as u16 / 2);
    let low = load_u8x64(bytemuck::cast_ref(&pairs));
    let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    let widen = |w: &[u8; 64]| {
        let w = load_u8x64(w);
        let half = |which| _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaa_aaaa, which, w));
        [half(low), half(high)]
    };
    for r in 0..out[0].len() {
        let (row32, row_tail) = w[r * stride..][..x[0].n * BYTES].as_chunks::<64>();
        let (row128, row_rest) = row32.as_chunks::<4>();
        let mut sums = [[_mm512_setzero_ps(); 8]; T];
        for (k, w) in row128.iter().enumerate() {
            let x = floats::<128, T>(&x, k);
            for i in 0..4 {
                prefetch_l2(&w[i], AHEAD);
                for (h, w) in widen(&w[i]).into_iter().enumerate() {
                    for t in 0..T {
                        let x = load_f32x16(&x[t].as_chunks().0[2 * i + h]);
                        sums[t][2 * i + h] = _mm512_fmadd_ps(w, x, sums[t][2 * i + h]);
                    }
                }
            }
        }
        for t in 0..T {
            let (x32, x_tail) = x[t].f.as_chunks::<32>();
            for (w, x) in row_rest.iter().zip(x32.as_chunks::<4>().1) {
                for (h, w) in widen(w).into_iter().enumerate() {
                    sums[t][h] = _mm512_fmadd_ps(w, load_f32x16(&x.as_chunks().0[h]), sums[t][h]);
                }
            }
            out[t][r] = crate::quant::rows::float_avx512::sum_of_eight(sums[t])
                + values(row_tail).zip(x_tail).map(|(w, x)| w * x).sum::<f32>();
        }
    }
}

/// Four accumulators of 8 lanes hide the latency of the fused multiply-add.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    if T == 4 {
        return two_by_two(x, out, |x, out| dot_avx2::<2>(w, stride, x, out));
    }
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    for r in 0..out[0].len() {
        let (row32, row_tail) = w[r * stride..][..x[0].n * BYTES].as_chunks::<64>();
        let mut acc = [[_mm256_setzero_ps(); 4]; T];
        for (k, w) in row32.iter().enumerate() {
            let x = floats::<32, T>(&x, k);
            for i in 0..4 {
                let w = load_bf16x8(&w.as_chunks().0[i]);
                for t in 0..T {
                    acc[t][i] = _mm256_fmadd_ps(w, load_f32x8(&x[t].as_chunks().0[i]), acc[t][i]);
                }
            }
        }
        for t in 0..T {
            let [a, b, c, d] = acc[t];
            let sum = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
            let tail = values(row_tail).zip(x[t].f.as_chunks::<32>().1);
            out[t][r] = sum_f32x8(sum) + tail.map(|(w, x)| w * x).sum::<f32>();
        }
    }
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
    fn many_tokens_at_once_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }

    #[test]
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }

    #[test]
    fn a_kv_row_keeps_its_values() {
        check::kv(&TYPE, 0.004); // 8 bits of precision: half a unit in the last of them is 2^-9
    }

    #[test]
    fn rows_are_encoded_as_the_reference_encodes_them() {
        check::encode(&TYPE);
    }

    #[test]
    fn a_token_gets_the_same_bits_alone_and_among_a_hundred() {
        check::alone(&TYPE);
    }
}
