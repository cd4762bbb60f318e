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
use crate::quant::rows::blocks::rows;
use crate::quant::types::{CacheFormat, Floats, Kernel, QuantType};
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
    kernels: &[
        #[cfg(target_arch = "x86_64")]
        Kernel { isa: Isa::Avx512, dot: dot_avx512 },
        #[cfg(target_arch = "x86_64")]
        Kernel { isa: Isa::Avx2, dot: dot_avx2 },
        Kernel { isa: Isa::Scalar, dot },
    ],
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
fn dot_avx512(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    use crate::quant::rows::super_avx512::AHEAD;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let pairs: [u16; 32] = std::array::from_fn(|i| i as u16 / 2);
    let low = load_u8x64(bytemuck::cast_ref(&pairs));
    let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    let (x32, x_tail) = x.f.as_chunks::<32>();
    let (x128, x_rest) = x32.as_chunks::<4>();
    // Adds the products of 32 weights to two sums.
    let add = |sums: &mut [__m512], w: &[u8; 64], x: &[f32; 32]| {
        let w = load_u8x64(w);
        let x = x.as_chunks::<16>().0;
        for (h, which) in [low, high].into_iter().enumerate() {
            let w = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaa_aaaa, which, w));
            sums[h] = _mm512_fmadd_ps(w, load_f32x16(&x[h]), sums[h]);
        }
    };
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n * BYTES)) {
        let (row32, row_tail) = row.as_chunks::<64>();
        let (row128, row_rest) = row32.as_chunks::<4>();
        let mut sums = [_mm512_setzero_ps(); 8];
        for (w, x) in row128.iter().zip(x128) {
            for i in 0..4 {
                prefetch_l2(&w[i], AHEAD);
                add(&mut sums[2 * i..], &w[i], &x[i]);
            }
        }
        for (w, x) in row_rest.iter().zip(x_rest) {
            add(&mut sums, w, x);
        }
        *o = crate::quant::rows::float_avx512::sum_of_eight(sums)
            + values(row_tail).zip(x_tail).map(|(w, x)| w * x).sum::<f32>();
    }
}

/// Four accumulators of 8 lanes hide the latency of the fused multiply-add.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let (x32, x_tail) = x.f.as_chunks::<32>();
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n * BYTES)) {
        let (row32, row_tail) = row.as_chunks::<64>();
        let mut acc = [_mm256_setzero_ps(); 4];
        for (w, x) in row32.iter().zip(x32) {
            let (w, x) = (w.as_chunks::<16>().0, x.as_chunks::<8>().0);
            for i in 0..4 {
                let bits = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_u8x16(&w[i])));
                acc[i] = _mm256_fmadd_ps(_mm256_castsi256_ps(bits), load_f32x8(&x[i]), acc[i]);
            }
        }
        let sum = _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
        *o = sum_f32x8(sum) + values(row_tail).zip(x_tail).map(|(w, x)| w * x).sum::<f32>();
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
