//! IQ3_XXS: 256 weights in 98 bytes, 3.06 bits each: 4 at a time from a codebook of 256, signs
//! apart.
//!
//! ```text
//! byte 0..2     d: f16
//! byte 2..66    64 x u8, indices into IQ3XXS, 4 weights each
//! byte 66..98   8 x u32, one for 32 weights: 4 x 7 sign bits (the eighth makes the minuses even),
//!               scale s in bits 28..32
//! w[i] = d * (2s + 1) / 4 * +-grid
//! ```
//! Layout: ggml-common.h `block_iq3_xxs`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::codebooks::tables::IQ3XXS;
use crate::quant::panels;
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::f16_at;
use crate::quant::rows::codebook::{self, SuperBlock};
use crate::quant::rows::super_block::N as BLOCK;
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 98;
const _: () = assert!(BYTES == 2 + BLOCK / 4 + BLOCK / 32 * 4);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 18,
    name: "IQ3_XXS",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 32, most: 62, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

fn unpack(b: &[u8; BYTES]) -> SuperBlock {
    let mut s = SuperBlock { d: f16_at(b, 0) / 4.0, scale: [0; 16], q: [0; BLOCK] };
    for (g, word) in b[66..].as_chunks::<4>().0.iter().enumerate() {
        let word = u32::from_le_bytes(*word);
        s.scale[2 * g..2 * g + 2].fill(2 * (word >> 28) as i32 + 1);
        for (l, q) in s.q[32 * g..32 * g + 32].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let (low, high) =
                (IQ3XXS.entries[b[2 + 8 * g + 2 * l] as usize], IQ3XXS.entries[b[3 + 8 * g + 2 * l] as usize]);
            *q = codebook::signed(low as u64 | (high as u64) << 32, codebook::even_signs(word >> (7 * l)));
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
    let d = b.f16(0).mul_f32(b.splat(0.25f32.to_bits()));
    for i in 0..4 {
        let index = b.words(2 + 16 * i);
        let words = b.words(66 + i / 2 * 16);
        for h in 0..2 {
            let (g, word) = (2 * i + h, words[i % 2 * 2 + h]);
            out.scale(g, panels::codebook::odd_scale(word.shr(28)).mul_f32(d));
            let signs = panels::codebook::signs_of_28(word);
            for (half, index) in index[2 * h..2 * h + 2].iter().enumerate() {
                panels::codebook::put_fours(
                    out,
                    8 * g + 4 * half,
                    index.fours(*index, &IQ3XXS),
                    signs.shr(16 * half as u32),
                );
            }
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    codebook::random(rng, block, 0, 142.4); // RMS of the scales 18.5, of the grid 30.8, / 4
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::codebook_avx2::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let unpack = |b: &[u8; BYTES], s: &mut Unpacked| {
        let words = load_u8x32(b[66..].as_array().unwrap());
        store_u32x8(&mut s.eights, signs_of_28(words));
        store_u32x8(&mut s.scales, scales_of_top(words));
        s.d = f16_bits(u16::from_le_bytes([b[0], b[1]])) / 4.0;
    };
    let group = |b: &[u8; BYTES], s: &Unpacked, g: usize| {
        let grid = fours(&IQ3XXS.entries, std::array::from_fn(|l| b[2 + 8 * g + l]));
        signed(grid, s.eights[g], _mm256_set1_epi32(s.scales[g] as i32))
    };
    dot_rows(w, stride, x, out, unpack, |_, _| _mm256_setzero_si256(), group);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::codebooks::grid::x86::look_up;
    use crate::quant::rows::codebook_avx512::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    dot_rows(w, stride, x, out, &FOURS, |b: &[u8; BYTES]| {
        let index = load_u8x64(b[2..66].as_array().unwrap());
        let words = dwords_to_qwords(b[66..].as_array().unwrap());
        let grid = fours(&IQ3XXS, look_up(&IQ3XXS.fields, index, [0; 3]));
        let signs = even_signs(bits_at(words, 0x150e_0700));
        let scale = scale_at(words, 28);
        (f16_first(b) / 4.0, move |q: &Turned| _mm512_mullo_epi32(signed_dots::<1>(&FOURS, grid, signs, q)[0], scale))
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

    #[test]
    fn rows_longer_than_a_strip_are_summed_over_all_strips() {
        check::strips(&TYPE);
    }
}
