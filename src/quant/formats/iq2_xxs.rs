//! IQ2_XXS: 256 weights in 66 bytes, 2.06 bits each: 8 at a time from a codebook of 256, signs
//! apart.
//!
//! ```text
//! byte 0..2    d: f16
//! byte 2..66   8 groups of 32 weights, 8 bytes each:
//!              byte 0..4   4 x u8, indices into IQ2XXS, 8 weights each
//!              byte 4..8   u32: 4 x 7 sign bits (the eighth makes the minuses even), scale s in
//!                          bits 28..32
//! w[i] = d * (2s + 1) / 8 * +-grid
//! ```
//! Layout: ggml-common.h `block_iq2_xxs`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::codebooks::tables::IQ2XXS;
use crate::quant::panels;
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::f16_at;
use crate::quant::rows::codebook::{self, SuperBlock};
use crate::quant::rows::super_block::N as BLOCK;
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 66;
const _: () = assert!(BYTES == 2 + BLOCK / 32 * 8);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 16,
    name: "IQ2_XXS",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 32, most: 43, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

fn unpack(b: &[u8; BYTES]) -> SuperBlock {
    let mut s = SuperBlock { d: f16_at(b, 0) / 8.0, scale: [0; 16], q: [0; BLOCK] };
    for (g, b) in b[2..].as_chunks::<8>().0.iter().enumerate() {
        let word = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        s.scale[2 * g..2 * g + 2].fill(2 * (word >> 28) as i32 + 1);
        for (l, q) in s.q[32 * g..32 * g + 32].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *q = codebook::signed(IQ2XXS.entries[b[l] as usize], codebook::even_signs(word >> (7 * l)));
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
    for i in 0..4 {
        let [even, even_word, odd, odd_word] = b.words(2 + 16 * i);
        for (g, index, word) in [(2 * i, even, even_word), (2 * i + 1, odd, odd_word)] {
            out.scale(g, panels::codebook::odd_scale(word.shr(28)).mul_f32(d));
            let signs = panels::codebook::signs_of_28(word);
            panels::codebook::put_eights(out, 8 * g, index.eights(index, &IQ2XXS), signs);
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    codebook::random(rng, block, 0, 53.4); // RMS of the scales 18.5, of the grid 23.1, / 8
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::codebook_avx2::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let unpack = |b: &[u8; BYTES], s: &mut Unpacked| {
        let (lo, hi) = (load_u8x32(b[2..34].as_array().unwrap()), load_u8x32(b[34..66].as_array().unwrap()));
        // The second dword of every group, back in order: the shuffle works within lanes.
        let words = _mm256_shuffle_ps::<0b11_01_11_01>(_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi));
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_castps_si256(words));
        store_u32x8(&mut s.eights, signs_of_28(words));
        store_u32x8(&mut s.scales, scales_of_top(words));
        s.d = f16_bits(u16::from_le_bytes([b[0], b[1]])) / 8.0;
    };
    let group = |b: &[u8; BYTES], s: &Unpacked, g: usize| {
        let grid = eights(&IQ2XXS.entries, b[2..].as_chunks::<4>().0[2 * g].each_ref().map(read_once));
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
    static INDEX: [u8; 64] = paired(8, 1);
    let grids = |b: [&[u8; BYTES]; 2]| {
        let [a, b] = b.map(|b| load_u8x64(b[2..].as_array().unwrap()));
        let index = _mm512_permutex2var_epi8(a, load_u8x64(&INDEX), b);
        eights(&IQ2XXS, look_up(&IQ2XXS.fields, index, [0; 3]))
    };
    dot_rows_by_two(w, stride, x, out, &EIGHTS, grids, |b, grid| {
        let block = load_u8x64(b[2..].as_array().unwrap());
        let signs = even_signs(bits_at(block, 0x352e_2720));
        let scale = scale_at(block, 60);
        (f16_first(b) / 8.0, move |q: &Turned| _mm512_mullo_epi32(signed_dots::<1>(&EIGHTS, grid, signs, q)[0], scale))
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
