//! Q3_K: 256 weights of 3 bits, -4 to 3; sixteen sub-blocks of 16 with a 6-bit scale each, -32 to
//! 31.
//!
//! ```text
//! byte 0..32      high bits: bit g of byte l belongs to weight 32g + l; a set bit means that 4 is
//!                 NOT subtracted
//! byte 32..96     2 times 32 bytes: bits 2j..2j+2 of byte l of half h are the low bits of weight
//!                 128h + 32j + l
//! byte 96..104    low four bits of the scales: byte t has scale t in its low half, scale 8 + t in
//!                 its high half
//! byte 104..108   high two bits: bits 2g..2g+2 of byte t belong to scale 4g + t
//! byte 108..110   d: f16
//!                 w[i] = d * (sc[i / 16] - 32) * (q[i] - 4)
//! ```
//! Layout: ggml-common.h `block_q3_K`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256i;

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::panels::super_block::{Factor, bit};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::super_avx2::lane_kernels;
use crate::quant::rows::super_block::{N, acts};
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 110;
const QS: usize = 32;
const SCALES: usize = 96;
const D: usize = 108;
const _: () = assert!(QS == N / 8 && SCALES == QS + N / 4 && D == SCALES + 12 && BYTES == D + 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 11,
    name: "Q3_K",
    block: N,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 16, most: 4, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, AvxVnni: dot_vnni, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// Returns the scales of a block, 0 to 63, one per byte: the first eight, the last eight.
#[inline]
fn scales(b: &[u8; 12]) -> [u64; 2] {
    let low = u64::from_le_bytes(*b.first_chunk().unwrap());
    let high = u32::from_le_bytes(*b.last_chunk().unwrap());
    let [first, last] = [high, high >> 4].map(|h| (h as u64 | (h as u64) << 30) & 0x0303_0303_0303_0303);
    [low & 0x0f0f_0f0f_0f0f_0f0f | first << 4, low >> 4 & 0x0f0f_0f0f_0f0f_0f0f | last << 4]
}

/// Sub-block scales and weights of a block, as integers.
fn unpack(b: &[u8; BYTES]) -> ([i8; 16], [i8; N]) {
    let mut signed = [0; 16];
    let scales = scales(b[SCALES..D].as_array().unwrap()).map(u64::to_le_bytes);
    for (s, scale) in signed.iter_mut().zip(scales.as_flattened()) {
        *s = *scale as i8 - 32;
    }
    let mut codes = [0; N];
    for (g, c) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (l, c) in c.iter_mut().enumerate() {
            let low = b[QS + g / 4 * 32 + l] >> (g % 4 * 2) & 3;
            *c = (low | (b[l] >> g & 1) << 2) as i8 - 4;
        }
    }
    (signed, codes)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        let d = f16_at(b, D);
        let (scales, codes) = unpack(b);
        for (s, (o, c)) in o.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0).enumerate() {
            let scale = d * scales[s] as f32;
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
            let (scales, codes) = unpack(b);
            let mut dot = 0;
            for s in 0..16 {
                let at = s * 16..s * 16 + 16;
                let part: i32 = codes[at.clone()].iter().zip(&q[at]).map(|(&c, &q)| c as i32 * q as i32).sum();
                dot += scales[s] as i32 * part;
            }
            sum += d as f64 * f16_at(b, D) as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

// Rejected: scale times code as the panel's code (-(s - 32)(c - 4) fits a byte), as Q2_K does. The
// product of a byte needs two multiplications of four: 8% faster with 128 tokens, 15% slower with
// 32.
fill_panels!(FILL, decode, N, 16);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    // The last 16 bytes begin two before the scales.
    let [w0, w1, w2, w3] = b.words(BYTES - 16);
    let (low0, low1) = (w0.shr(16).or(w1.shl(16)), w1.shr(16).or(w2.shl(16)));
    let high = w2.shr(16).or(w3.shl(16));
    let d = Factor::new(w3.shr(16).f16_to_f32());
    for (g, low) in [low0, low1, low0.shr(4), low1.shr(4)].into_iter().enumerate() {
        let high = if g < 2 { high.shl(4 - 2 * g as u32) } else { high.shr(2 * g as u32 - 4) };
        let scales = low.mask(0x0f0f_0f0f).or(high.mask(0x3030_3030)).sub8(b.splat(0x2020_2020));
        for (j, scale) in d.times_signed(scales).into_iter().enumerate() {
            out.scale(4 * g + j, scale);
        }
    }
    let four = b.splat(0x0404_0404);
    for i in 0..2 {
        let high = b.words(16 * i);
        for h in 0..2 {
            for (w, low) in b.words(QS + 32 * h + 16 * i).into_iter().enumerate() {
                for j in 0..4 {
                    let g = 4 * h + j;
                    let codes = low.shr(2 * j as u32).mask(0x0303_0303).or(bit(high[w], g, 2));
                    out.codes(8 * g + 4 * i + w, codes.sub8(four));
                }
            }
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[..D]);
    put_f16(block, D, (0.5 + rng.unit()) / 43.3); // the RMS of (sc - 32) * (q - 4) for uniform bits
}

#[cfg(target_arch = "x86_64")]
lane_kernels!(dot_lanes);

/// Codes stay unsigned, 0 to 7, and sums begin with -4 times the activations. Four pairs of products
/// are at most 4 * 2 * 7 * 127 = 7112 and fit i16 well.
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
    let (two, bit) = (_mm256_set1_epi8(3), _mm256_set1_epi8(4));
    let (nibble, bits) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
    // Bit `g` of every byte moved to bit 2; bits that cross into a neighbour are masked off.
    let third = |v, g: usize| {
        let v = if g < 2 {
            _mm256_sll_epi16(v, _mm_cvtsi32_si128(2 - g as i32))
        } else {
            _mm256_srl_epi16(v, _mm_cvtsi32_si128(g as i32 - 2))
        };
        _mm256_and_si256(v, bit)
    };
    // The last 16 bytes begin two before the scales: the scales' words, then the f16.
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 14, 15));
    dot_rows::<BYTES, VNNI, T>(call, &LaneOrder { offset: 4, ..NATURAL }, |b, x| {
        let head = |b: &[u8; BYTES]| {
            _mm256_shuffle_epi8(load_u8x16_twice(b.last_chunk().expect("16 bytes")), order)
        };
        let [low0, low1, high, d] = turn([head(b[0]), head(b[1]), head(b[2]), head(b[3])]);
        let scales = |low, high| _mm256_or_si256(_mm256_and_si256(low, nibble), _mm256_and_si256(high, bits));
        let scales = [
            scales(low0, _mm256_slli_epi16::<4>(high)),
            scales(low1, _mm256_slli_epi16::<2>(high)),
            scales(_mm256_srli_epi16::<4>(low0), high),
            scales(_mm256_srli_epi16::<4>(low1), _mm256_srli_epi16::<2>(high)),
        ];
        let thirds = turn_32(b, 0);
        let mut dot = [_mm256_setzero_si256(); T];
        unrolled!(h in [0, 1] {
            let v = turn_32(b, QS + 32 * h);
            unrolled!(j in [0, 1, 2, 3] {
                let g = 4 * h + j;
                let code = |v, thirds| {
                    let low = _mm256_srl_epi16(v, _mm_cvtsi32_si128(2 * j as i32));
                    _mm256_or_si256(_mm256_and_si256(low, two), third(thirds, g))
                };
                let (a, b) = (code(v[0], thirds[0]), code(v[1], thirds[1]));
                let codes = [a, b, code(v[2], thirds[2]), code(v[3], thirds[3])];
                let scales = less_32::<VNNI>(spread_next::<VNNI>(scales[g / 2], g % 2));
                for t in 0..T {
                    let sums = add_four(load_u8x32(&x[t].start[g]), codes, &x[t].q[g], &add);
                    dot[t] = _mm256_add_epi32(dot[t], times::<VNNI>(sums, scales));
                }
            });
        });
        LaneSums { dot, scale: f16_pairs(d)[0], min: None }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::super_avx512::ORDER_2;
    use crate::quant::rows::super_avx512::{CodeOrder, SuperFormat, dot_rows};
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    struct Q3K;
    impl SuperFormat for Q3K {
        const ORDER: CodeOrder = CodeOrder { offset: 4, ..ORDER_2 };
    }
    let factors = |b: &[u8; BYTES]| u16::from_le_bytes([b[D], b[D + 1]]) as u32;
    let scales = |b: &[u8; BYTES]| {
        // The scales, after four bytes of codes; then a group of four to a word.
        let v = load_u8x16(b[D - 16..D].as_array().expect("16 bytes"));
        let low = _mm_srlv_epi32(_mm_shuffle_epi32::<0b10_01_10_01>(v), _mm_setr_epi32(0, 0, 4, 4));
        let high = _mm_shuffle_epi32::<0b11_11_11_11>(v);
        let high = _mm_or_si128(
            _mm_sllv_epi32(high, _mm_setr_epi32(4, 2, 32, 32)),
            _mm_srlv_epi32(high, _mm_setr_epi32(32, 32, 0, 2)),
        );
        let low = _mm_and_si128(low, _mm_set1_epi8(15));
        let scales = _mm_or_si128(low, _mm_and_si128(high, _mm_set1_epi8(0x30)));
        (_mm256_cvtepi8_epi16(_mm_sub_epi8(scales, _mm_set1_epi8(32))), None)
    };
    let (low, high, codes) = (_mm512_set1_epi8(7), _mm512_set1_epi8(0x70), _mm512_set1_epi8(0x33));
    let below = _mm512_set1_epi8(0x0f);
    // Groups 0 and 1 to bits 2 and 3, groups 2 and 3 to bits 6 and 7; in the upper half groups 4 to
    // 7.
    let (to_2, to_6) = (_mm512_setr_epi64(2, 2, 2, 2, 62, 62, 62, 62), _mm512_setr_epi64(4, 4, 4, 4, 0, 0, 0, 0));
    let select = |mask, a, b| _mm512_ternarylogic_epi64::<0xca>(mask, a, b);
    dot_rows::<Q3K, BYTES, T>((w, stride, x, out), factors, scales, |b: &[u8; BYTES]| {
        let bits = _mm512_broadcast_i64x4(load_u8x32(b[..QS].as_array().expect("32 bytes")));
        let bits = select(below, _mm512_rolv_epi64(bits, to_2), _mm512_rolv_epi64(bits, to_6));
        let v = load_u8x64(b[QS..SCALES].as_array().expect("the codes"));
        let even = select(codes, v, bits);
        let odd = select(codes, _mm512_srli_epi16::<2>(v), _mm512_srli_epi16::<1>(bits));
        [
            _mm512_and_si512(even, low),
            _mm512_and_si512(even, high),
            _mm512_and_si512(odd, low),
            _mm512_and_si512(odd, high),
        ]
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
        check::extremes(&TYPE, &[108]);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }
}
