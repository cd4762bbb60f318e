//! Q1_0: 128 weights of one bit, plus or minus one f16 scale.
//!
//! ```text
//! byte 0..2   d: f16
//! byte 2..18  q: 128 x 1 bit       bit i % 8 of byte i / 8: weight i
//!                                  w[i] = d where the bit is set, else -d
//! ```
//! Layout: ggml-common.h `block_q1_0`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::types::{QuantType, kernels};

const BLOCK: usize = 128;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + BLOCK / 8);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 41,
    name: "Q1_0",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8,
    panel: Some(PanelSpec { group: 32, most: 1, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// The weights of a block, in units of its scale.
fn units(b: &[u8; BYTES]) -> [i32; BLOCK] {
    std::array::from_fn(|i| (b[2 + i / 8] >> (i % 8) & 1) as i32 * 2 - 1)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let d = f16_at(b, 0);
        *o = units(b).map(|w| w as f32 * d);
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
        let mut sum = 0f64;
        for (i, (b, q)) in row.as_chunks::<BYTES>().0.iter().zip(x.q.as_chunks::<BLOCK>().0).enumerate() {
            let units = units(b);
            for (g, (w, q)) in units.as_chunks::<32>().0.iter().zip(q.as_chunks::<32>().0).enumerate() {
                let dot: i32 = w.iter().zip(q).map(|(&w, &q)| w * q as i32).sum();
                sum += f16_at(b, 0) as f64 * x.d[i * 4 + g] as f64 * dot as f64;
            }
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, BLOCK, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    let d = b.f16(0);
    let (one, fifteen) = (b.splat(0x0101_0101), b.splat(15));
    for (g, v) in b.words(2).into_iter().enumerate() {
        out.scale(g, d);
        for step in 0..8 {
            out.codes(8 * g + step, one.negate8(v.shr(4 * step as u32).mask(15).xor(fifteen)));
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[2..]);
    put_f16(block, 0, 0.5 + rng.unit());
}

/// Each byte gets the byte that its bit is in, and counts 2 if the bit is set; an offset of 1 makes
/// that plus or minus 1.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::small_avx512::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    const U: usize = BYTES;
    if !takes(x[0].n) {
        return dot_avx2(w, stride, x, out);
    }
    static WHERE: [[u8; 64]; 2] = {
        let mut index = [[0; 64]; 2];
        let mut i = 0;
        while i < 128 {
            index[i / 64][i % 64] = (i % 64 / 16 * 4 + i / 64 * 2 + i % 16 / 8) as u8;
            i += 1;
        }
        index
    };
    let bit = _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64);
    let codes = |b: &[u8; U]| {
        let v = _mm512_broadcast_i32x4(load_u8x16(b[2..].as_array().unwrap()));
        let code = |at: &[u8; 64]| {
            let set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(v, load_u8x64(at)), bit);
            _mm512_maskz_mov_epi8(set, _mm512_set1_epi8(2))
        };
        [code(&WHERE[0]), code(&WHERE[1])]
    };
    let scales = |b: [&[u8; U]; UNITS]| {
        let four = |u: usize| u16::from_le_bytes([b[u][0], b[u][1]]) as u64 * 0x0001_0001_0001_0001;
        Scales::new(f16_fours([four(0), four(1), four(2), four(3)]))
    };
    dot_rows::<U, 1, T>(w, stride, x, out, codes, scales);
}

/// In `planes(q)[k]` byte m of dword g in half h is the activation 32g + 8m + 4h + k, whose weight
/// is bit 4h + k of the block's byte 4g + m: a shift and a mask turn the block into the weights of
/// plane k. Dword g then collects what the g-th activation scale multiplies. The bit counts 2, less
/// 1.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let two = _mm256_set1_epi8(2);
    let acts = |q: &[i8; BLOCK], d: &[f32]| (planes(q), load_f32x4_twice(d.as_array().unwrap()));
    crate::quant::rows::small_avx2::dot_planes::<BLOCK, 4, T>(w, stride, x, out, acts, |v| {
        let bits = [_mm256_slli_epi16::<1>(v), v, _mm256_srli_epi16::<1>(v), _mm256_srli_epi16::<2>(v)];
        let [a, b, c, d] = bits;
        [_mm256_and_si256(a, two), _mm256_and_si256(b, two), _mm256_and_si256(c, two), _mm256_and_si256(d, two)]
    });
}

/// Returns the activations of a block in planes, as [`dot_avx2`] describes them.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn planes(q: &[i8; BLOCK]) -> [std::arch::x86_64::__m256i; 4] {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    // Of 32 activations 8m + 4h + k, the dwords h go to half h, then a 4x4 transpose puts k before
    // m.
    let halves = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let transpose = load_u8x16_twice(&[0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]);
    let parts: &[[i8; 32]; 4] = q.as_chunks().0.as_array().unwrap();
    let [a, b, c, d] = std::array::from_fn(|g| load_i8x32(&parts[g]))
        .map(|v| _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(v, halves), transpose));
    // Dword k of part g becomes dword g of plane k.
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
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
    fn the_largest_weights_and_activations_overflow_nothing() {
        check::extremes(&TYPE, &[0]);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }

    #[test]
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }
}
