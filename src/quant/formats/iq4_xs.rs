//! IQ4_XS: 256 weights of 4 bits that index a table of 16 values; eight sub-blocks of 32 with a
//! 6-bit scale each.
//!
//! ```text
//! byte 0..2     d: f16
//! byte 2..4     high two bits of the scales: bits 2s..2s+2 of a little-endian u16 belong to scale
//!               s
//! byte 4..8     low four bits of the scales: byte t has scale 2t in its low half, scale 2t + 1 in
//!               its high half
//! byte 8..136   8 times 16 bytes: byte l of sub-block s has weight 32s + l in its low half, weight
//!               32s + 16 + l in its high half
//!               w[i] = d * (sc[i / 32] - 32) * VALUES[q[i]]
//! ```
//! Layout: ggml-common.h `block_iq4_xs`; the table is `kvalues_iq4nl` there.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256i;

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::super_avx2::lane_kernels;
use crate::quant::rows::super_block::{N, acts};
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 136;
const SCALES_LOW: usize = 4;
const QS: usize = 8;
const _: () = assert!(QS == SCALES_LOW + N / 64 && BYTES == QS + N / 2);

/// The value of each code: denser near zero, as weights are.
const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 23,
    name: "IQ4_XS",
    block: N,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 32, most: 127, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, AvxVnni: dot_vnni, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// Returns the low bits of the scales (nibble `s` is scale `s`'s) and the high bits (bits
/// `2s..2s+2`).
#[inline]
fn scale_bits(b: &[u8; BYTES]) -> (u32, u32) {
    let high = u16::from_le_bytes([b[2], b[3]]);
    (u32::from_le_bytes(*b[SCALES_LOW..QS].as_array().unwrap()), high as u32)
}

/// Sub-block scales and weights of a block, as integers.
fn unpack(b: &[u8; BYTES]) -> ([i8; 8], [i8; N]) {
    let (low, high) = scale_bits(b);
    let mut scales = [0; 8];
    for (s, scale) in scales.iter_mut().enumerate() {
        *scale = (low >> (4 * s) & 15 | (high >> (2 * s) & 3) << 4) as i8 - 32;
    }
    let mut weights = [0; N];
    for (part, w) in b[QS..].as_chunks::<16>().0.iter().zip(weights.as_chunks_mut::<32>().0) {
        for (l, byte) in part.iter().enumerate() {
            w[l] = VALUES[(byte & 15) as usize];
            w[l + 16] = VALUES[(byte >> 4) as usize];
        }
    }
    (scales, weights)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        let d = f16_at(b, 0);
        let (scales, weights) = unpack(b);
        for (s, (o, w)) in o.as_chunks_mut::<32>().0.iter_mut().zip(weights.as_chunks::<32>().0).enumerate() {
            let scale = d * scales[s] as f32;
            for (o, &w) in o.iter_mut().zip(w) {
                *o = scale * w as f32;
            }
        }
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / N * BYTES)) {
        let mut sum = 0f64;
        for (b, (q, d, _)) in row.as_chunks::<BYTES>().0.iter().zip(acts(x)) {
            let (scales, weights) = unpack(b);
            let mut dot = 0;
            for s in 0..8 {
                let at = s * 32..s * 32 + 32;
                let part: i32 = weights[at.clone()].iter().zip(&q[at]).map(|(&w, &q)| w as i32 * q as i32).sum();
                dot += scales[s] as i32 * part;
            }
            sum += d as f64 * f16_at(b, 0) as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, N, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    let [first, low, _, _] = b.words(0);
    let (d, high) = (first.f16_to_f32(), first.shr(16));
    let thirty_two = b.splat(32);
    for g in 0..8 {
        let scale = low.shr(4 * g).mask(15).or(high.shr(2 * g).mask(3).shl(4)).sub8(thirty_two);
        out.scale(g as usize, scale.signed_byte(0).to_f32().mul_f32(d));
        for (w, v) in b.words(QS + 16 * g as usize).into_iter().enumerate() {
            out.codes(8 * g as usize + w, v.mask(0x0f0f_0f0f).look_up8(&VALUES));
            out.codes(8 * g as usize + 4 + w, v.shr(4).mask(0x0f0f_0f0f).look_up8(&VALUES));
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[2..]);
    put_f16(block, 0, (0.5 + rng.unit()) / 1246.0); // the RMS of (sc - 32) * value for uniform bits
}

#[cfg(target_arch = "x86_64")]
lane_kernels!(dot_lanes);

/// Two sub-blocks are a vector of bytes, whose low halves are the first 16 weights of both, so that
/// activations are loaded to match. AVX-VNNI looks up the values plus 128, which the sums begin with
/// the opposite of. For AVX2 the signs of the activations move to the weights, because `maddubs`
/// wants unsigned times signed. A pair of products is at most 2 * 127 * 127 = 32258 and just fits
/// i16, so each is multiplied by its scale into i32 before anything is added.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_lanes<const VNNI: bool, const T: usize>(
    call: crate::quant::rows::super_avx2::RowArgs<'_, T>,
    add: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
) {
    use crate::quant::rows::super_avx2::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    static ORDER: LaneOrder = LaneOrder {
        halves: [[0, 32], [16, 48], [64, 96], [80, 112], [128, 160], [144, 176], [192, 224], [208, 240]],
        ..NATURAL
    };
    let order = LaneOrder { offset: if VNNI { 128 } else { 0 }, magnitudes: !VNNI, ..ORDER };
    let nibble = _mm256_set1_epi8(15);
    let values = load_u8x16_twice(&VALUES.map(|v| if VNNI { v as u8 ^ 0x80 } else { v as u8 }));
    let high_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15));
    let (first, second) = (_mm256_set1_epi16(0x0030), _mm256_set1_epi16(0x3000));
    dot_rows::<BYTES, VNNI, T>(call, &order, |b, x| {
        let [factors, low, ..] = turn_16(b, 0);
        // Even sub-blocks in the lower half, odd ones in the upper, two bits of each in turn at
        // the bottom and in the middle of a byte.
        let shift = |v, even: i32, odd: i32| {
            _mm256_srlv_epi32(v, _mm256_setr_epi32(even, even, even, even, odd, odd, odd, odd))
        };
        let high = _mm256_shuffle_epi8(factors, high_bytes);
        let high = _mm256_or_si256(
            _mm256_and_si256(shift(_mm256_slli_epi32::<4>(high), 0, 2), first),
            _mm256_and_si256(shift(high, 0, 2), second),
        );
        let scales = _mm256_or_si256(_mm256_and_si256(shift(low, 0, 4), nibble), high);
        let mut dot = [_mm256_setzero_si256(); T];
        unrolled!(p in [0, 1, 2, 3] {
            let scales = less_32::<VNNI>(spread::<VNNI>(scales, p));
            let v = turn_32(b, QS + 32 * p);
            for g in [2 * p, 2 * p + 1] {
                let w = each(v, |v| {
                    let v = if g % 2 == 0 { v } else { _mm256_srli_epi16::<4>(v) };
                    _mm256_shuffle_epi8(values, _mm256_and_si256(v, nibble))
                });
                if VNNI {
                    for t in 0..T {
                        let sums = add_four(load_u8x32(&x[t].start[g]), w, &x[t].q[g], &add);
                        dot[t] = _mm256_add_epi32(dot[t], times::<VNNI>(sums, scales));
                    }
                    continue;
                }
                for (dot, x) in dot.iter_mut().zip(x) {
                    for k in 0..4 {
                        let w = _mm256_sign_epi8(w[k], load_i8x32(&x.q[g][k]));
                        let pairs = _mm256_maddubs_epi16(load_u8x32(&x.magnitudes[g][k]), w);
                        *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, scales));
                    }
                }
            }
        });
        LaneSums { dot, scale: f16_pairs(factors)[0], min: None }
    });
}

/// Takes 128 weights at a time; their 64 bytes have the order of a unit (rows/small_avx512.rs). The
/// table holds the values plus 128, which the sums' start values take off again. A lane is at most
/// 8 * 32 * 127 * 127 a half, far from the end of an i32.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], mut out: [&mut [f32]; T]) {
    use crate::quant::rows::blocks::act_blocks;
    use crate::quant::rows::small_avx512::{look_up, values};
    use crate::quant::rows::super_avx512::AHEAD;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    static TABLE: [u8; 64] = values::<128>(&VALUES);
    let nibbles = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    let pairs_of_bits = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    let lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    let offset = _mm512_set1_epi16(-128);
    for r in 0..out[0].len() {
        let blocks = w[r * stride..][..x[0].n / N * BYTES].as_chunks::<BYTES>().0;
        let mut acc = [[_mm512_setzero_ps(); 2]; T];
        for (g, w) in blocks.chunks(2).enumerate() {
            let acts = act_blocks(&x, g);
            for (i, b) in w.iter().enumerate() {
                prefetch_lines_l2(b, AHEAD);
                let (low_bits, high_bits) = scale_bits(b);
                let low_bits = _mm256_srlv_epi32(_mm256_set1_epi32(low_bits as i32), nibbles);
                let high_bits = _mm256_srlv_epi32(_mm256_set1_epi32((high_bits << 4) as i32), pairs_of_bits);
                let scales = _mm256_or_si256(
                    _mm256_and_si256(low_bits, _mm256_set1_epi32(15)),
                    _mm256_and_si256(high_bits, _mm256_set1_epi32(0x30)),
                );
                let scales = _mm512_castsi256_si512(_mm256_sub_epi32(scales, _mm256_set1_epi32(32)));
                let mut dot = [[_mm512_setzero_si512(); 2]; T];
                for h in 0..2 {
                    let u = 2 * i + h;
                    let [a, b] = look_up(load_u8x64(&b[QS..].as_chunks().0[h]), &TABLE);
                    let which = _mm512_add_epi32(lanes, _mm512_set1_epi32(4 * h as i32));
                    let scales = _mm512_permutexvar_epi32(which, scales);
                    for t in 0..T {
                        let x = acts[t];
                        let start = _mm512_madd_epi16(load_i16x2x16(&x.lanes[u]), offset);
                        let part = _mm512_dpbusd_epi32(start, a, load_i8x64(&x.q[u][0]));
                        let part = _mm512_dpbusd_epi32(part, b, load_i8x64(&x.q[u][1]));
                        dot[t][h] = _mm512_mullo_epi32(part, scales);
                    }
                }
                for t in 0..T {
                    let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dot[t][0], dot[t][1]));
                    let scale = x[t].d[2 * g + i] * f16_bits(u16::from_le_bytes([b[0], b[1]]));
                    acc[t][i] = _mm512_fmadd_ps(_mm512_set1_ps(scale), dot, acc[t][i]);
                }
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            out[r] = _mm512_reduce_add_ps(_mm512_add_ps(acc[0], acc[1]));
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
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }

    #[test]
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }

    #[test]
    fn the_largest_weights_and_activations_overflow_nothing() {
        check::extremes(&TYPE, &[0]);
    }
}
