//! F32: weights as they are. A block is one little-endian f32.
//!
//! Prompts go token by token through the row kernel: models of F32 are references, whose logits are
//! bit-equal however a prompt is cut, and the kernels for many tokens add in an order of their own.

use crate::quant::activations::{Act, ActRow};
use crate::quant::rng::Rng;
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::blocks::{floats, two_by_two};
use crate::quant::rows::blocks::{rows};
use crate::quant::types::{CacheFormat, Floats, QuantType, kernels};
use crate::simd::Isa;

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 0,
    name: "F32",
    block: 1,
    bytes: 4,
    act: Act::F32,
    panel: None,
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: Some(CacheFormat {
        encode: &[(Isa::Scalar, encode)],
        decode: &[(Isa::Scalar, dequant)],
        floats: Some(Floats::Single),
    }),
};

fn value(b: &[u8; 4]) -> f32 {
    f32::from_le_bytes(*b)
}

fn values(blocks: &[u8]) -> impl Iterator<Item = f32> + '_ {
    blocks.as_chunks::<4>().0.iter().map(value)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (o, v) in out.iter_mut().zip(values(blocks)) {
        *o = v;
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n * 4)) {
        *o = values(row).zip(x.f).map(|(w, &x)| w as f64 * x as f64).sum::<f64>() as f32;
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    block.copy_from_slice(&rng.normal().to_le_bytes());
}

pub(super) fn encode(x: &[f32], out: &mut [u8]) {
    for (o, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
        *o = x.to_le_bytes();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    if T == 4 {
        return two_by_two(x, out, |x, out| dot_avx512::<2>(w, stride, x, out));
    }
    crate::quant::rows::float_avx512::dot::<64, 4, T>(
        w,
        stride,
        x,
        out,
        |b| crate::simd::x86::load_f32x16_bytes(b),
        value,
    );
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
        let (row8, row_tail) = w[r * stride..][..x[0].n * 4].as_chunks::<32>(); // 8 weights
        let (row32, row_rest) = row8.as_chunks::<4>();
        let mut acc = [[_mm256_setzero_ps(); 4]; T];
        for (k, w) in row32.iter().enumerate() {
            let x = floats::<32, T>(&x, k);
            for i in 0..4 {
                let w = load_f32x8_bytes(&w[i]);
                for t in 0..T {
                    acc[t][i] = _mm256_fmadd_ps(w, load_f32x8(&x[t].as_chunks().0[i]), acc[t][i]);
                }
            }
        }
        for t in 0..T {
            let (x8, x_tail) = x[t].f.as_chunks::<8>();
            let [mut a, b, c, d] = acc[t];
            for (w, x) in row_rest.iter().zip(x8.as_chunks::<4>().1) {
                a = _mm256_fmadd_ps(load_f32x8_bytes(w), load_f32x8(x), a);
            }
            let sum = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
            out[t][r] = sum_f32x8(sum) + values(row_tail).zip(x_tail).map(|(w, x)| w * x).sum::<f32>();
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
    fn a_kv_row_keeps_its_values() {
        check::kv(&TYPE, 0.0);
    }
}
