//! TQ2_0: 256 ternary weights, 2 bits each, with one f16 scale.
//!
//! ```text
//! byte 0..64    2 times 32 bytes: bits 2j..2j+2 of byte l of half h are weight 128h + 32j + l
//! byte 64..66   d: f16
//!               w[i] = d * (q[i] - 1)      files hold 0, 1 and 2; a 3 would decode to 2d, here as
//!                                          in ggml
//! ```
//! Layout: ggml-common.h `block_tq2_0`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::rows::super_block::{N, acts};
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 66;
const D: usize = 64;
const _: () = assert!(D == N / 4 && BYTES == D + 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 35,
    name: "TQ2_0",
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
    for (g, c) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (l, c) in c.iter_mut().enumerate() {
            *c = (b[g / 4 * 32 + l] >> (g % 4 * 2) & 3) as i8 - 1;
        }
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
    let d = b.words(BYTES - 16)[3].shr(16).f16_to_f32();
    let one = b.splat(0x0101_0101);
    for h in 0..2 {
        for j in 0..4 {
            out.scale(4 * h + j, d);
        }
        for i in 0..2 {
            for (w, v) in b.words(32 * h + 16 * i).into_iter().enumerate() {
                for j in 0..4 {
                    out.codes(32 * h + 8 * j + 4 * i + w, v.shr(2 * j as u32).mask(0x0303_0303).sub8(one));
                }
            }
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    for byte in &mut block[..D] {
        *byte = (0..4).fold(0, |byte, _| byte << 2 | rng.below(3) as u8);
    }
    put_f16(block, D, (0.5 + rng.unit()) / 0.8165); // the RMS of -1, 0 and 1
}

/// A pair of products is at most 2 * 3 * 127 = 762 and a lane adds eight of them: all of a
/// super-block stays in i16, also when the offset of 1 takes off a sum of activations (16 * 127).
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], mut out: [&mut [f32]; T]) {
    use crate::quant::rows::super_block::block_acts;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let two = _mm256_set1_epi8(3);
    let ones = _mm256_set1_epi16(1);
    for r in 0..out[0].len() {
        let row = &w[r * stride..][..x[0].n / N * BYTES];
        let mut acc = [_mm256_setzero_ps(); T];
        for (i, b) in row.as_chunks::<BYTES>().0.iter().enumerate() {
            let x = block_acts(&x, i);
            let mut dot = [_mm256_setzero_si256(); T];
            for (h, w) in b[..D].as_chunks::<32>().0.iter().enumerate() {
                let w = load_u8x32(w);
                let parts = [w, _mm256_srli_epi16::<2>(w), _mm256_srli_epi16::<4>(w), _mm256_srli_epi16::<6>(w)];
                for (k, part) in parts.into_iter().enumerate() {
                    let codes = _mm256_and_si256(part, two);
                    for t in 0..T {
                        let q = load_i8x32(&x[t].0.as_chunks().0[4 * h + k]);
                        dot[t] = _mm256_add_epi16(dot[t], _mm256_maddubs_epi16(codes, q));
                    }
                }
            }
            let d = f16_bits(u16::from_le_bytes([b[D], b[D + 1]]));
            for t in 0..T {
                let dot = _mm256_madd_epi16(_mm256_sub_epi16(dot[t], load_i16x16(x[t].2)), ones);
                acc[t] = _mm256_fmadd_ps(_mm256_set1_ps(x[t].1 * d), _mm256_cvtepi32_ps(dot), acc[t]);
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
        check::extremes(&TYPE, &[64]);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }
}
