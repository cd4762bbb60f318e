//! TQ1_0: 256 ternary weights, five to a byte, with one f16 scale.
//!
//! A byte is a fraction of 256 in base 3. Its digit n is the whole part of `3 * (byte * 3^n mod
//! 256) / 256`.
//!
//! ```text
//! byte 0..32    digit n of byte l is weight 32n + l              (n in 0..5)
//! byte 32..48   digit n of byte 32 + l is weight 160 + 16n + l   (n in 0..5)
//! byte 48..52   digit n of byte 48 + l is weight 240 + 4n + l    (n in 0..4)
//! byte 52..54   d: f16
//!               w[i] = d * (digit[i] - 1)
//! ```
//! Layout: ggml-common.h `block_tq1_0`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::rows::super_block::{N, acts};
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 54;
const B: usize = 32;
const C: usize = 48;
const D: usize = 52;
const _: () = assert!(5 * B + 5 * (C - B) + 4 * (D - C) == N && BYTES == D + 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 34,
    name: "TQ1_0",
    block: N,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 32, most: 1, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// The weights of a block as integers.
fn unpack(b: &[u8; BYTES]) -> [i8; N] {
    let mut codes = [0; N];
    let mut left = &mut codes[..];
    for (bytes, digits) in [(&b[..B], 5), (&b[B..C], 5), (&b[C..D], 4)] {
        let (part, rest) = left.split_at_mut(bytes.len() * digits);
        for (n, c) in part.chunks_exact_mut(bytes.len()).enumerate() {
            for (c, byte) in c.iter_mut().zip(bytes) {
                let fraction = byte.wrapping_mul([1, 3, 9, 27, 81][n]);
                *c = ((fraction as u16 * 3) >> 8) as i8 - 1;
            }
        }
        left = rest;
    }
    codes
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        let d = f16_at(b, D);
        for (o, c) in o.iter_mut().zip(unpack(b)) {
            *o = c as f32 * d;
        }
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / N * BYTES)) {
        let mut sum = 0f64;
        for (b, (q, d, _)) in row.as_chunks::<BYTES>().0.iter().zip(acts(x)) {
            let dot: i32 = unpack(b).iter().zip(q).map(|(&c, &q)| c as i32 * q as i32).sum();
            sum += d as f64 * f16_at(b, D) as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, N, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    // The last 16 bytes begin ten before C.
    let [_, _, a, last] = b.words(BYTES - 16);
    let d = last.shr(16).f16_to_f32();
    for g in 0..8 {
        out.scale(g, d);
    }
    for i in 0..2 {
        for (w, v) in b.words(16 * i).into_iter().enumerate() {
            digits(v, 5, 4 * i + w, 8, out);
        }
    }
    for (w, v) in b.words(B).into_iter().enumerate() {
        digits(v, 5, 40 + w, 4, out);
    }
    digits(a.shr(16).or(last.shl(16)), 4, 60, 1, out);
}

/// Sets the first `n` digits of the bytes of `v`, less one, as panel steps `step`, `step + apart`
/// and so on. Every other byte is held in 16 bits: three times the fraction has the digit in its
/// upper byte and the next fraction in its lower.
#[inline(always)]
fn digits<V: Lanes>(v: V, n: usize, step: usize, apart: usize, out: &mut PanelHalf<'_>) {
    let one = v.splat(0x0101_0101);
    let (mut even, mut odd) = (v.mask(0x00ff_00ff), v.shr(8).mask(0x00ff_00ff));
    for i in 0..n {
        (even, odd) = (even.add(even.shl(1)), odd.add(odd.shl(1)));
        let digit = even.shr(8).mask(0x0003_0003).or(odd.mask(0x0300_0300));
        out.codes(step + i * apart, digit.sub8(one));
        (even, odd) = (even.mask(0x00ff_00ff), odd.mask(0x00ff_00ff));
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[..D]);
    put_f16(block, D, (0.5 + rng.unit()) / 0.8165); // the RMS of -1, 0 and 1
}

/// Bytes are held as `t = byte - 128`, and the step to the next digit is still `3 * t`: modulo 256
/// that is the same as `3 * byte - 128`. The digit is 2 for t > 42 and 0 for t < -42, so two
/// comparisons give the weight as -1, 0 or 1 and `sign` does the product. A pair is at most 254 and
/// a lane adds eight of them: all of a super-block stays in i16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], mut out: [&mut [f32]; T]) {
    use crate::quant::rows::super_block::block_acts;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let middle = _mm256_set1_epi8(-128);
    let (above, below) = (_mm256_set1_epi8(42), _mm256_set1_epi8(-42));
    let (ones, ones16) = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
    let powers = _mm256_setr_epi16(1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27);
    let triple = |t| _mm256_add_epi8(t, _mm256_add_epi8(t, t));
    for r in 0..out[0].len() {
        let row = &w[r * stride..][..x[0].n / N * BYTES];
        let mut acc = [_mm256_setzero_ps(); T];
        for (i, b) in row.as_chunks::<BYTES>().0.iter().enumerate() {
            let x = block_acts(&x, i);
            let mut dot = [_mm256_setzero_si256(); T];
            // Adds the products with the 32 activations `g`.
            let mut add = |t, g: usize| {
                let w = _mm256_sub_epi8(_mm256_cmpgt_epi8(below, t), _mm256_cmpgt_epi8(t, above));
                for (dot, x) in dot.iter_mut().zip(&x) {
                    let signed = _mm256_sign_epi8(load_i8x32(&x.0.as_chunks().0[g]), w);
                    *dot = _mm256_add_epi16(*dot, _mm256_maddubs_epi16(ones, signed));
                }
            };
            let mut t = _mm256_xor_si256(load_u8x32(b[..B].as_array().unwrap()), middle);
            add(t, 0);
            for g in 1..5 {
                t = triple(t);
                add(t, g);
            }
            // Two digits of the next 16 bytes at a time, one to a lane; the fifth leaves a lane for
            // the last 4 bytes, whose four digits come from one multiplication.
            let t = _mm256_broadcastsi128_si256(load_u8x16(b[B..C].as_array().unwrap()));
            let t = _mm256_xor_si256(t, middle);
            let t = _mm256_blend_epi32::<0xf0>(t, triple(t));
            add(t, 5);
            let t = triple(triple(t));
            add(t, 6);
            let t = triple(triple(t));
            let last = _mm_set1_epi32(i32::from_le_bytes(*b[C..D].as_array().unwrap()));
            let last = _mm256_mullo_epi16(_mm256_cvtepu8_epi16(last), powers);
            let last = _mm256_and_si256(last, _mm256_set1_epi16(255));
            let last = _mm_packus_epi16(_mm256_castsi256_si128(last), _mm256_extracti128_si256::<1>(last));
            let last = _mm_xor_si128(last, _mm256_castsi256_si128(middle));
            add(_mm256_inserti128_si256::<1>(t, last), 7);
            let d = f16_bits(u16::from_le_bytes([b[D], b[D + 1]]));
            for (acc, (dot, x)) in acc.iter_mut().zip(dot.into_iter().zip(x)) {
                let dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(dot, ones16));
                *acc = _mm256_fmadd_ps(_mm256_set1_ps(x.1 * d), dot, *acc);
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            out[r] = sum_f32x8(acc);
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
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }

    #[test]
    fn the_largest_weights_and_activations_overflow_nothing() {
        check::extremes(&TYPE, &[52]);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }
}
