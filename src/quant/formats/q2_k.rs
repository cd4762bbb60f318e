//! Q2_K: 256 weights of 2 bits; sixteen sub-blocks of 16 with a 4-bit scale and a 4-bit minimum
//! each.
//!
//! ```text
//! byte 0..16    sub-block s: sc in the low half of byte s, m in its high half
//! byte 16..80   2 times 32 bytes: bits 2j..2j+2 of byte l of half h are weight 128h + 32j + l
//! byte 80..82   d: f16
//! byte 82..84   dmin: f16
//!               w[i] = d * sc[i / 16] * q[i] - dmin * m[i / 16]
//! ```
//! Layout: ggml-common.h `block_q2_K`.

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

const BYTES: usize = 84;
const QS: usize = 16;
const D: usize = 80;
const DMIN: usize = 82;
const _: () = assert!(QS == N / 16 && D == QS + N / 4 && DMIN == D + 2 && BYTES == DMIN + 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 10,
    name: "Q2_K",
    block: N,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: N, most: 45, mins: true, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, AvxVnni: dot_vnni, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// The weights of a block as integers.
fn unpack(b: &[u8; BYTES]) -> [i8; N] {
    let mut codes = [0; N];
    for (g, c) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (l, c) in c.iter_mut().enumerate() {
            *c = (b[QS + g / 4 * 32 + l] >> (g % 4 * 2) & 3) as i8;
        }
    }
    codes
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        let (d, dmin) = (f16_at(b, D), f16_at(b, DMIN));
        let codes = unpack(b);
        for (s, (o, c)) in o.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0).enumerate() {
            let (scale, min) = (d * (b[s] & 15) as f32, dmin * (b[s] >> 4) as f32);
            for (o, &c) in o.iter_mut().zip(c) {
                *o = scale * c as f32 - min;
            }
        }
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / N * BYTES)) {
        let mut sum = 0f64;
        for (b, (q, d, sums)) in row.as_chunks::<BYTES>().0.iter().zip(acts(x)) {
            let codes = unpack(b);
            let (mut dot, mut min) = (0, 0);
            for s in 0..16 {
                let at = s * 16..s * 16 + 16;
                let part: i32 = codes[at.clone()].iter().zip(&q[at]).map(|(&c, &q)| c as i32 * q as i32).sum();
                dot += (b[s] & 15) as i32 * part;
                min += (b[s] >> 4) as i32 * sums[s] as i32;
            }
            sum += d as f64 * (f16_at(b, D) as f64 * dot as f64 - f16_at(b, DMIN) as f64 * min as f64);
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, N, N);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    let factors = b.words(BYTES - 16)[3];
    let dmin = Factor::new(factors.shr(16).f16_to_f32());
    out.scale(0, factors.f16_to_f32());
    let groups = b.words(0);
    for (w, both) in groups.into_iter().enumerate() {
        dmin.times(both.shr(4).mask(0x0f0f_0f0f)).into_iter().enumerate().for_each(|(j, min)| out.min(4 * w + j, min));
    }
    for h in 0..2 {
        for i in 0..2 {
            // A scale times a code is at most 45: four codes are multiplied at once.
            let mut scales = [groups[0]; 4];
            for (j, scale) in scales.iter_mut().enumerate() {
                *scale = groups[2 * h + j / 2].byte(2 * (j as u32 % 2) + i as u32).mask(15);
            }
            for (w, v) in b.words(QS + 32 * h + 16 * i).into_iter().enumerate() {
                for j in 0..4 {
                    out.codes(32 * h + 8 * j + 4 * i + w, v.shr(2 * j as u32).mask(0x0303_0303).mul(scales[j]));
                }
            }
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[..D]);
    let d = (0.5 + rng.unit()) / 13.9; // sc * q - 1.5 * m has an RMS of 13.9 for uniform bits
    put_f16(block, D, d);
    put_f16(block, DMIN, d * 1.5); // the mean of q, so that weights have a mean of zero
}

#[cfg(target_arch = "x86_64")]
lane_kernels!(dot_lanes);

/// A pair of products is at most 2 * 3 * 127 = 762: the sum of four fits i16 well.
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
    let (two, nibble) = (_mm256_set1_epi8(3), _mm256_set1_epi8(15));
    dot_rows::<BYTES, VNNI, T>(call, &LaneOrder { min: 16, ..NATURAL }, |b, x| {
        let head = turn_16(b, 0);
        let scales = each(head, |v| _mm256_and_si256(v, nibble));
        let mut min = [_mm256_setzero_si256(); T];
        for i in 0..2 {
            // Minimums 4i to 4i + 3 in the lower half, 4i + 8 to 4i + 11 in the upper.
            let mins = _mm256_blend_epi32::<0xf0>(head[i], head[i + 2]);
            let mins = _mm256_and_si256(_mm256_srli_epi16::<4>(mins), nibble);
            let even = _mm256_and_si256(mins, _mm256_set1_epi16(0xff));
            let odd = _mm256_srli_epi16::<8>(mins);
            for t in 0..T {
                min[t] = _mm256_add_epi32(min[t], _mm256_madd_epi16(even, load_i16x16(&x[t].sums[2 * i])));
                min[t] = _mm256_add_epi32(min[t], _mm256_madd_epi16(odd, load_i16x16(&x[t].sums[2 * i + 1])));
            }
        }
        let mut dot = [_mm256_setzero_si256(); T];
        unrolled!(h in [0, 1] {
            let v = turn_32(b, QS + 32 * h);
            unrolled!(j in [0, 1, 2, 3] {
                let g = 4 * h + j;
                let codes = each(v, |v| _mm256_and_si256(_mm256_srl_epi16(v, _mm_cvtsi32_si128(2 * j as i32)), two));
                let scales = spread_next::<VNNI>(scales[g / 2], g % 2);
                for t in 0..T {
                    let sums = add_four(_mm256_setzero_si256(), codes, &x[t].q[g], &add);
                    dot[t] = _mm256_add_epi32(dot[t], times::<VNNI>(sums, scales));
                }
            });
        });
        let [scale, scale_min] = f16_pairs(f16s_of_four(b, D));
        LaneSums { dot, scale, min: Some((min, scale_min)) }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::super_avx512::ORDER_2;
    use crate::quant::rows::super_avx512::{CodeOrder, SuperFormat, dot_rows};
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    struct Q2K;
    impl SuperFormat for Q2K {
        const ORDER: CodeOrder = ORDER_2;
    }
    let factors = |b: &[u8; BYTES]| u32::from_le_bytes([b[D], b[D + 1], b[DMIN], b[DMIN + 1]]);
    let scales = |b: &[u8; BYTES]| {
        let both = _mm256_cvtepu8_epi16(load_u8x16(b[..QS].as_array().expect("16 bytes")));
        (_mm256_and_si256(both, _mm256_set1_epi16(15)), Some(_mm256_srli_epi16::<4>(both)))
    };
    let (low, high) = (_mm512_set1_epi8(3), _mm512_set1_epi8(0x30));
    dot_rows::<Q2K, BYTES, T>((w, stride, x, out), factors, scales, |b: &[u8; BYTES]| {
        let a = load_u8x64(b[QS..D].as_array().expect("the codes"));
        let b = _mm512_srli_epi16::<2>(a);
        [_mm512_and_si512(a, low), _mm512_and_si512(a, high), _mm512_and_si512(b, low), _mm512_and_si512(b, high)]
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
        check::extremes(&TYPE, &[80, 82]);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }
}
