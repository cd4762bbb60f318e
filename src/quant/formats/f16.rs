//! F16: IEEE half-precision weights. A block is one weight.
//!
//! ```text
//! byte 0..2   w: f16, little-endian
//! ```

use crate::quant::activations::{Act, ActRow};
use crate::quant::rng::Rng;
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::blocks::{floats, two_by_two};
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::types::{CacheFormat, Floats, QuantType, kernels};
use crate::simd::Isa;

const BYTES: usize = 2;
const _: () = assert!(BYTES == size_of::<half::f16>());

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 1,
    name: "F16",
    block: 1,
    bytes: BYTES,
    act: Act::F16,
    panel: None,
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: Some(CacheFormat {
        encode: &[(Isa::Scalar, encode)],
        decode: &[
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, decode_avx512),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, decode_avx2),
            (Isa::Scalar, dequant),
        ],
        floats: Some(Floats::Half),
    }),
};

fn value(b: &[u8; BYTES]) -> f32 {
    f16_at(b, 0)
}

fn values(blocks: &[u8]) -> impl Iterator<Item = f32> + '_ {
    blocks.as_chunks::<BYTES>().0.iter().map(value)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (o, v) in out.iter_mut().zip(values(blocks)) {
        *o = v;
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n * BYTES)) {
        *o = values(row).zip(x.f).map(|(w, &x)| w as f64 * x as f64).sum::<f64>() as f32;
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    put_f16(block, 0, rng.normal());
}

pub(super) fn encode(x: &[f32], out: &mut [u8]) {
    for (b, &x) in out.as_chunks_mut::<BYTES>().0.iter_mut().zip(x) {
        put_f16(b, 0, x);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn decode_avx512(blocks: &[u8], out: &mut [f32]) {
    use crate::simd::x86::*;
    let (w, w_tail) = blocks.as_chunks::<32>();
    let (out, tail) = out.as_chunks_mut::<16>();
    w.iter().zip(out).for_each(|(w, o)| store_f32x16(o, load_f16x16(w)));
    dequant(w_tail, tail);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    if T == 4 {
        return two_by_two(x, out, |x, out| dot_avx512::<2>(w, stride, x, out));
    }
    crate::quant::rows::float_avx512::dot::<32, BYTES, T>(w, stride, x, out, |b| crate::simd::x86::load_f16x16(b), value);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn decode_avx2(blocks: &[u8], out: &mut [f32]) {
    use crate::simd::x86::*;
    let (w, w_tail) = blocks.as_chunks::<16>();
    let (out, tail) = out.as_chunks_mut::<8>();
    w.iter().zip(out).for_each(|(w, o)| store_f32x8(o, load_f16x8(w)));
    dequant(w_tail, tail);
}

/// Four accumulators of 8 lanes hide the latency of the fused multiply-add.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
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
                let w = load_f16x8(&w.as_chunks().0[i]);
                for t in 0..T {
                    acc[t][i] = _mm256_fmadd_ps(w, load_f32x8(&x[t].as_chunks().0[i]), acc[t][i]);
                }
            }
        }
        for t in 0..T {
            let [a, b, c, d] = acc[t];
            let sum = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
            let tail = row_tail.as_chunks::<BYTES>().0.iter().zip(x[t].f.as_chunks::<32>().1);
            out[t][r] = sum_f32x8(sum) + tail.map(|(w, x)| f16_bits(u16::from_le_bytes(*w)) * x).sum::<f32>();
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
        check::kv(&TYPE, 0.0005);
    }

    #[test]
    fn a_token_gets_the_same_bits_alone_and_among_a_hundred() {
        check::alone(&TYPE);
    }
}
