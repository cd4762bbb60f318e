//! IQ1_S: 256 weights in 50 bytes, 1.56 bits each: 8 at a time out of -1, 0, 1, and an offset for
//! every 32.
//!
//! ```text
//! byte 0..2     d: f16
//! byte 2..34    32 x u8: index into IQ1S of 8 weights, low 8 bits
//! byte 34..50   8 x u16, one for 32 weights: 4 x 3 bits of the indices, scale s in bits 12..15,
//!               bit 15 = minus delta
//! w[i] = d * (2s + 1) * (grid +- 1/8)
//! ```
//! Layout: ggml-common.h `block_iq1_s`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::codebooks::tables::IQ1S;
use crate::quant::panels;
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::f16_at;
use crate::quant::rows::codebook::{self, SuperBlock};
use crate::quant::rows::super_block::N as BLOCK;
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 50;
const _: () = assert!(BYTES == 2 + BLOCK / 8 + BLOCK / 32 * 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 19,
    name: "IQ1_S",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 32, most: 9, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx2: dot_avx2; dot),
    random,
    kv: None,
};

fn unpack(b: &[u8; BYTES]) -> SuperBlock {
    let mut s = SuperBlock { d: f16_at(b, 0) / 8.0, scale: [0; 16], q: [0; BLOCK] };
    for (g, word) in b[34..].as_chunks::<2>().0.iter().enumerate() {
        let word = u16::from_le_bytes(*word);
        s.scale[2 * g..2 * g + 2].fill(2 * (word >> 12 & 7) as i32 + 1);
        for (l, q) in s.q[32 * g..32 * g + 32].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let i = b[2 + 4 * g + l] as usize | ((word >> (3 * l) & 7) as usize) << 8;
            *q = codebook::shifted(IQ1S.entries[i], word >> 15 != 0);
        }
    }
    s
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    codebook::dequant(unpack, blocks, out);
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    codebook::dot(unpack, w, stride, x, out);
}

fill_panels!(FILL, decode, BLOCK, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    let d = b.f16(0).mul_f32(b.splat(0.125f32.to_bits()));
    let words = b.words(34);
    for i in 0..2 {
        let index = b.words(2 + 16 * i);
        for (w, index) in index.into_iter().enumerate() {
            let g = 4 * i + w;
            let word = words[g / 2].shr(g as u32 % 2 * 16);
            out.scale(g, panels::codebook::odd_scale(word.shr(12).mask(7)).mul_f32(d));
            // 4 fields of 3 bits go to the bottom of a byte each.
            let threes = word.mask(0x3f).or(word.mask(0xfc0).shl(10));
            let grid = index.eights(threes.or(threes.shl(5)), &IQ1S);
            // 8 (grid +- 1/8) is the table's byte less 7 or 9.
            let less = b.splat(0x0707_0707).add(word.shr(14).mask(2).mul(b.splat(0x0101_0101)));
            for (l, grid) in grid.as_flattened().iter().enumerate() {
                out.codes(8 * g + l, grid.sub8(less));
            }
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    codebook::random(rng, block, 0, 7.2); // RMS of the scales 9.2, of the grid with its delta 0.78
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::codebook_avx2::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    // Shifts left that bring the 3 bits of each of 4 words to bits 11..14, as factors.
    let shift = _mm256_set1_epi64x(0x0004_0020_0100_0800);
    let unpack = |b: &[u8; BYTES], s: &mut Unpacked| {
        let words = _mm256_cvtepu16_epi32(load_u8x16(b[34..].as_array().unwrap()));
        let words = _mm256_or_si256(words, _mm256_slli_epi32::<16>(words)); // each twice
        for h in 0..2 {
            let four = _mm256_add_epi32(_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), _mm256_set1_epi32(4 * h as i32));
            let high = _mm256_mullo_epi16(_mm256_permutevar8x32_epi32(words, four), shift);
            let high = _mm256_and_si256(_mm256_srli_epi16::<3>(high), _mm256_set1_epi16(0x700));
            put_indices(s, h, &b[2 + 16 * h..], high);
        }
        let scales = odd(_mm256_and_si256(_mm256_srli_epi16::<12>(words), _mm256_set1_epi16(7)));
        store_u32x8(&mut s.scales, scales);
        // With the table's 8 (grid + 1): 8 (grid +- 1/8) = table - 7 or - 9, and this part
        // multiplies the sums.
        let minus = _mm256_srai_epi16::<15>(words);
        let rest = _mm256_sub_epi16(_mm256_add_epi16(minus, minus), _mm256_set1_epi16(7));
        store_i16x16(&mut s.offsets, _mm256_mullo_epi16(scales, rest));
        s.d = f16_bits(u16::from_le_bytes([b[0], b[1]])) / 8.0;
    };
    let group = |_: &[u8; BYTES], s: &Unpacked, g: usize| {
        let grid = eights(&IQ1S.entries, index(s, g));
        let scales = _mm256_set1_epi32(s.scales[g] as i32);
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
