//! Q6_K: 256 weights of 6 bits, -32 to 31; sixteen sub-blocks of 16 with an 8-bit scale each.
//!
//! ```text
//! byte 0..128     low four bits, 2 halves of 64 bytes: byte l (0..64) of half h has weight 128h +
//!                 l in its low half, weight 128h + 64 + l in its high half
//! byte 128..192   high two bits, 2 halves of 32 bytes: bits 2j..2j+2 of byte l of half h belong to
//!                 weight 128h + 32j + l
//! byte 192..208   sc: 16 x i8
//! byte 208..210   d: f16
//!                 w[i] = d * sc[i / 16] * (q[i] - 32)
//! ```
//! Layout: ggml-common.h `block_q6_K`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256i;

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::panels::super_block::Factor;
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::super_avx2::lane_kernels;
use crate::quant::rows::super_block::{N, acts};
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 210;
const QH: usize = 128;
const SCALES: usize = 192;
const D: usize = 208;
const _: () = assert!(QH == N / 2 && SCALES == QH + N / 4 && D == SCALES + N / 16 && BYTES == D + 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 14,
    name: "Q6_K",
    block: N,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 16, most: 32, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, AvxVnni: dot_vnni, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// The weights of a block as integers.
#[inline(always)]
fn unpack(b: &[u8; BYTES]) -> [i8; N] {
    let mut codes = [0; N];
    for (g, c) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (h, j) = (g / 4, g % 4);
        for (l, c) in c.iter_mut().enumerate() {
            let low = b[64 * h + j % 2 * 32 + l] >> (j / 2 * 4) & 15;
            let high = b[QH + 32 * h + l] >> (2 * j) & 3;
            *c = (low | high << 4) as i8 - 32;
        }
    }
    codes
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        let d = f16_at(b, D);
        let codes = unpack(b);
        for (s, (o, c)) in o.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0).enumerate() {
            let scale = d * (b[SCALES + s] as i8) as f32;
            for (o, &c) in o.iter_mut().zip(c) {
                *o = scale * c as f32;
            }
        }
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / N * BYTES)) {
        let mut sum = 0f64;
        for (b, (q, d, _)) in row.as_chunks::<BYTES>().0.iter().zip(acts(x)) {
            let codes = unpack(b);
            let mut dot = 0;
            for s in 0..16 {
                let at = s * 16..s * 16 + 16;
                let part: i32 = codes[at.clone()].iter().zip(&q[at]).map(|(&c, &q)| c as i32 * q as i32).sum();
                dot += b[SCALES + s] as i8 as i32 * part;
            }
            sum += d as f64 * f16_at(b, D) as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, N, 16);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    // The last 16 bytes begin two after the scales.
    let [w0, w1, w2, w3] = b.words(BYTES - 16);
    let first = b.words(SCALES - 14)[3]; // two bytes before the scales, and the first two of them
    let d = Factor::new(w3.shr(16).f16_to_f32());
    let pairs = [[first, w0], [w0, w1], [w1, w2], [w2, w3]];
    for (w, [a, b]) in pairs.into_iter().enumerate() {
        for (j, scale) in d.times_signed(a.shr(16).or(b.shl(16))).into_iter().enumerate() {
            out.scale(4 * w + j, scale);
        }
    }
    let offset = b.splat(0x2020_2020);
    for h in 0..2 {
        for i in 0..2 {
            let high = b.words(QH + 32 * h + 16 * i);
            for odd in 0..2 {
                for (w, low) in b.words(64 * h + 32 * odd + 16 * i).into_iter().enumerate() {
                    for j in [odd, odd + 2] {
                        let low = low.shr(j as u32 / 2 * 4).mask(0x0f0f_0f0f);
                        let high = high[w].shr(2 * j as u32).mask(0x0303_0303).shl(4);
                        out.codes(32 * h + 8 * j + 4 * i + w, low.or(high).sub8(offset));
                    }
                }
            }
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[..D]);
    put_f16(block, D, (0.5 + rng.unit()) / 1366.0); // the RMS of sc * (q - 32) for uniform bits
}

#[cfg(target_arch = "x86_64")]
lane_kernels!(dot_lanes);

/// Codes stay unsigned, 0 to 63, and sums begin with -32 times the activations. Four pairs of
/// products are at most 4 * 2 * 32 * 127 = 32512 then, which just fits i16; what is on the way
/// there may wrap. An i32 lane stays below 2^26.
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
    let (low, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
    // Sub-block `j` of a half takes bits 2j and 2j + 1 of every byte, moved to 4 and 5; bits that
    // cross into a neighbour are masked off.
    let code = |l: __m256i, high: __m256i, j: usize| {
        let (l, high) = match j {
            0 => (l, _mm256_slli_epi16::<4>(high)),
            1 => (l, _mm256_slli_epi16::<2>(high)),
            2 => (_mm256_srli_epi16::<4>(l), high),
            _ => (_mm256_srli_epi16::<4>(l), _mm256_srli_epi16::<2>(high)),
        };
        _mm256_or_si256(_mm256_and_si256(l, low), _mm256_and_si256(high, two))
    };
    dot_rows::<BYTES, VNNI, T>(call, &LaneOrder { offset: 32, ..NATURAL }, |b, x| {
        let scales = turn_16(b, SCALES);
        let mut dot = [_mm256_setzero_si256(); T];
        unrolled!(h in [0, 1] {
            let high = turn_32(b, QH + 32 * h);
            unrolled!(i in [0, 1] {
                let v = turn_32(b, 64 * h + 32 * i);
                for g in [4 * h + i, 4 * h + i + 2] {
                    let j = g % 4;
                    let (a, b) = (code(v[0], high[0], j), code(v[1], high[1], j));
                    let codes = [a, b, code(v[2], high[2], j), code(v[3], high[3], j)];
                    let scales = spread_next_signed::<VNNI>(scales[g / 2], g % 2);
                    for t in 0..T {
                        let sums = add_four(load_u8x32(&x[t].start[g]), codes, &x[t].q[g], &add);
                        dot[t] = _mm256_add_epi32(dot[t], times::<VNNI>(sums, scales));
                    }
                }
            });
        });
        LaneSums { dot, scale: f16_of_four(b, D), min: None }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::super_avx512::{CodeOrder, SuperFormat, dot_rows};
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    struct Q6K;
    impl SuperFormat for Q6K {
        const ORDER: CodeOrder =
            CodeOrder { halves: [[0, 32], [64, 96], [128, 160], [192, 224]], group: 16, offset: 32, times_16: false };
    }
    let factors = |b: &[u8; BYTES]| u16::from_le_bytes([b[D], b[D + 1]]) as u32;
    let scales = |b: &[u8; BYTES]| (_mm256_cvtepi8_epi16(load_u8x16(b[SCALES..D].as_array().expect("16 bytes"))), None);
    let (low, two) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
    // How far the two bits are from bit 4, to the left for the first two groups and to the right
    // for the others.
    let first = _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2);
    let second = _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2);
    dot_rows::<Q6K, BYTES, T>((w, stride, x, out), factors, scales, |b: &[u8; BYTES]| {
        let mut codes = [low; 4];
        let lows = load_u8x128(b[..QH].as_array().expect("the low bits"));
        for h in 0..2 {
            let high = load_u8x32(b[QH + 32 * h..QH + 32 * h + 32].as_array().expect("32 bytes"));
            let high = _mm512_broadcast_i64x4(high);
            let highs = [_mm512_sllv_epi64(high, first), _mm512_srlv_epi64(high, second)];
            let lows = [lows[h], _mm512_srli_epi16::<4>(lows[h])];
            for j in 0..2 {
                let high = _mm512_and_si512(highs[j], two);
                codes[2 * h + j] = _mm512_or_si512(_mm512_and_si512(lows[j], low), high);
            }
        }
        codes
    });
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
        check::extremes(&TYPE, &[208]);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }
}
