//! IQ1_M: 256 weights in 56 bytes, 1.75 bits each: 8 at a time out of -1, 0, 1, each 8 with its own
//! offset.
//!
//! ```text
//! byte 0..32    32 x u8: index into IQ1S of 8 weights, low 8 bits
//! byte 32..48   32 x 4 bits, the low half of a byte first: 3 bits of the index, then 1 = minus
//!               delta
//! byte 48..56   4 x u16: 4 scales s of 3 bits, one for 16 weights; in bits 12..16 a quarter of d,
//!               lowest first
//! d: f16 out of those quarters
//! w[i] = d * (2s + 1) * (grid +- 1/8)
//! ```
//! Layout: ggml-common.h `block_iq1_m`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::codebooks::tables::IQ1S;
use crate::quant::panels;
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::codebook::{self, SuperBlock};
use crate::quant::rows::super_block::N as BLOCK;
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 56;
const _: () = assert!(BYTES == BLOCK / 8 + BLOCK / 16 + BLOCK / 64 * 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 29,
    name: "IQ1_M",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 16, most: 9, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// The bits of `d`.
fn d_bits(b: &[u8; BYTES]) -> u16 {
    (0..4).map(|i| (b[49 + 2 * i] as u16 >> 4) << (4 * i)).sum()
}

fn unpack(b: &[u8; BYTES]) -> SuperBlock {
    let scale = |i: usize| {
        let word = u16::from_le_bytes([b[48 + i / 4 * 2], b[49 + i / 4 * 2]]);
        2 * (word >> (3 * (i % 4)) & 7) as i32 + 1
    };
    let d = half::f16::from_bits(d_bits(b)).to_f32();
    let mut s = SuperBlock { d: d / 8.0, scale: std::array::from_fn(scale), q: [0; BLOCK] };
    for (i, q) in s.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = b[32 + i / 2] >> (4 * (i % 2));
        *q = codebook::shifted(IQ1S.entries[b[i] as usize | ((high & 7) as usize) << 8], high & 8 != 0);
    }
    s
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    codebook::dequant(unpack, blocks, out);
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    codebook::dot(unpack, w, stride, x, out);
}

fill_panels!(FILL, decode, BLOCK, 16);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    let words = b.words(48 - 8); // words 2 and 3: bytes 48..56
    let d = b.each(|b| d_bits(b) as u32).f16_to_f32().mul_f32(b.splat(0.125f32.to_bits()));
    let nibbles = b.words(32);
    for i in 0..2 {
        for (w, index) in b.words(16 * i).into_iter().enumerate() {
            let g = 4 * i + w;
            let scales = words[2 + i].shr(w as u32 / 2 * 16 + w as u32 % 2 * 6);
            out.scale(2 * g, panels::codebook::odd_scale(scales.mask(7)).mul_f32(d));
            out.scale(2 * g + 1, panels::codebook::odd_scale(scales.shr(3).mask(7)).mul_f32(d));
            // 4 nibbles go to a byte each.
            let four = nibbles[g / 2].shr(g as u32 % 2 * 16).mask(0xffff);
            let four = four.or(four.shl(8)).mask(0x00ff_00ff);
            let four = four.or(four.shl(4)).mask(0x0f0f_0f0f);
            let grid = index.eights(four, &IQ1S);
            for (l, grid) in grid.iter().enumerate() {
                // 8 (grid +- 1/8) is the table's byte less 7 or 9.
                let minus = four.shr(8 * l as u32 + 2).mask(2);
                let less = b.splat(0x0707_0707).add(minus.mul(b.splat(0x0101_0101)));
                out.codes(8 * g + 2 * l, grid[0].sub8(less));
                out.codes(8 * g + 2 * l + 1, grid[1].sub8(less));
            }
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(block);
    put_d(block, (0.5 + rng.unit()) / 7.2); // RMS of the scales 9.2, of the grid with its delta 0.78
}

fn put_d(block: &mut [u8], d: f32) {
    let bits = half::f16::from_f32(d).to_bits();
    for i in 0..4 {
        block[49 + 2 * i] = block[49 + 2 * i] & 15 | (bits >> (4 * i) << 4) as u8;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::codebook_avx2::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let unpack = |b: &[u8; BYTES], s: &mut Unpacked| {
        let bytes = load_u8x16(b[32..48].as_array().unwrap());
        let (low, high) = (_mm_and_si128(bytes, _mm_set1_epi8(15)), _mm_srli_epi16::<4>(bytes));
        let high = _mm_and_si128(high, _mm_set1_epi8(15));
        let nibbles = [_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high)];
        for h in 0..2 {
            let three = _mm256_cvtepu8_epi16(_mm_and_si128(nibbles[h], _mm_set1_epi8(7)));
            put_indices(s, h, &b[16 * h..], _mm256_slli_epi16::<8>(three));
        }
        // With the table's 8 (grid + 1): 8 (grid +- 1/8) = table + plus - 9, where plus is 2 for
        // plus delta.
        let plus = _mm256_andnot_si256(_mm256_set_m128i(nibbles[1], nibbles[0]), _mm256_set1_epi8(8));
        store_u32x8(&mut s.eights, _mm256_srli_epi16::<2>(plus));
        let words = _mm_cvtsi64_si128(i64::from_le_bytes(*b[48..].as_array().unwrap()));
        let pairs = _mm256_cvtepu16_epi32(_mm_unpacklo_epi16(words, words));
        let pairs = _mm256_srlv_epi32(pairs, _mm256_setr_epi32(0, 6, 0, 6, 0, 6, 0, 6));
        let first = _mm256_and_si256(pairs, _mm256_set1_epi32(7));
        let second = _mm256_and_si256(_mm256_slli_epi32::<13>(pairs), _mm256_set1_epi32(7 << 16));
        let scales = odd(_mm256_or_si256(first, second));
        store_u32x8(&mut s.scales, scales);
        store_i16x16(&mut s.offsets, _mm256_mullo_epi16(scales, _mm256_set1_epi16(-9)));
        s.d = f16_bits(d_bits(b)) / 8.0;
    };
    let group = |_: &[u8; BYTES], s: &Unpacked, g: usize| {
        let grid = eights(&IQ1S.entries, index(s, g));
        let grid = _mm256_or_si256(grid, spread_eights(s.eights[g]));
        let scales = spread_scales(s.scales[g]);
        move |q| _mm256_madd_epi16(_mm256_maddubs_epi16(grid, q), scales)
    };
    dot_rows(w, stride, x, out, unpack, |s, sums| offsets(s, sums), group);
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
        check::extremes_by(&TYPE, super::put_d);
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
