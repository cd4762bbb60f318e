//! IQ2_S: 256 weights in 82 bytes, 2.56 bits each: 8 at a time from a codebook of 1024, all 8 signs
//! stored.
//!
//! ```text
//! byte 0..2     d: f16
//! byte 2..34    32 x u8: index into IQ2S of 8 weights, low 8 bits
//! byte 34..66   32 x u8: the signs of 8 weights
//! byte 66..74   32 x 2 bits: index, high 2 bits, the low bits of a byte first
//! byte 74..82   16 x 4 bits: scale s of 16 weights, the low half of a byte first
//! w[i] = d * (2s + 1) / 8 * +-grid
//! ```
//! Layout: ggml-common.h `block_iq2_s`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::codebooks::tables::IQ2S;
use crate::quant::panels;
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::f16_at;
use crate::quant::rows::codebook::{self, SuperBlock};
use crate::quant::rows::super_block::N as BLOCK;
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 82;
const _: () = assert!(BYTES == 2 + BLOCK / 8 * 2 + BLOCK / 32 * 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 22,
    name: "IQ2_S",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 16, most: 43, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

fn unpack(b: &[u8; BYTES]) -> SuperBlock {
    let mut s = SuperBlock { d: f16_at(b, 0) / 8.0, scale: codebook::nibble_scales(&b[74..]), q: [0; BLOCK] };
    for (i, q) in s.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = b[66 + i / 4] >> (2 * (i % 4)) & 3;
        *q = codebook::signed(IQ2S.entries[b[2 + i] as usize | (high as usize) << 8], b[34 + i]);
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
    let d = b.f16(0).mul_f32(b.splat(0.125f32.to_bits()));
    panels::codebook::put_nibble_scales(b, BYTES - 16, 2, d, out);
    let high = b.words(BYTES - 16); // words 0 and 1: bytes 66..74
    for i in 0..2 {
        let (index, signs) = (b.words(2 + 16 * i), b.words(34 + 16 * i));
        for w in 0..4 {
            // A byte's 4 pairs of bits go to the bottom of a byte each.
            let pairs = high[i].byte(w as u32);
            let pairs = pairs.or(pairs.shl(12)).mask(0x000f_000f);
            let grid = index[w].eights(pairs.or(pairs.shl(6)).mask(0x0303_0303), &IQ2S);
            panels::codebook::put_eights(out, 8 * (4 * i + w), grid, signs[w]);
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    codebook::random(rng, block, 0, 56.4); // RMS of the scales 18.5, of the grid 24.4, / 8
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::codebook_avx2::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    // Shifts left that bring the bit pair of each of 4 words to bits 8 and 9, as factors.
    let shift = _mm256_set1_epi64x(0x0004_0010_0040_0100);
    let unpack = |b: &[u8; BYTES], s: &mut Unpacked| {
        for h in 0..2 {
            let high = spread_eights(u32::from_le_bytes(*b[66 + 4 * h..][..4].as_array().unwrap()));
            let high = _mm256_and_si256(_mm256_mullo_epi16(high, shift), _mm256_set1_epi16(0x300));
            put_indices(s, h, &b[2 + 16 * h..], high);
        }
        store_u32x8(&mut s.scales, scales_of_nibbles(b[74..].as_array().unwrap()));
        s.d = f16_bits(u16::from_le_bytes([b[0], b[1]])) / 8.0;
    };
    let group = |b: &[u8; BYTES], s: &Unpacked, g: usize| {
        let grid = eights(&IQ2S.entries, index(s, g));
        let signs = u32::from_le_bytes(*b[34 + 4 * g..][..4].as_array().unwrap());
        signed(grid, signs, spread_scales(s.scales[g]))
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
    static INDEX: [u8; 64] = paired(4, 1);
    // The low bits of 8 pairs of bits.
    const PAIRS: u64 = 0x0e0c_0a08_0604_0200;
    let grids = |b: [&[u8; BYTES]; 2]| {
        let [i, j] = b.map(|b| load_u8x64(b[2..66].as_array().unwrap()));
        let index = _mm512_permutex2var_epi8(i, load_u8x64(&INDEX), j);
        // In the order of the index: 16 bits of the first block, 16 of the second, to a qword each.
        let [i, j] = b.map(|b| _mm_cvtsi64_si128(i64::from_le_bytes(*b[66..74].as_array().unwrap())));
        let high = _mm512_cvtepu16_epi64(_mm_unpacklo_epi16(i, j));
        let bit = |b| _mm512_bitshuffle_epi64_mask(high, _mm512_set1_epi64((PAIRS + b) as i64));
        eights(&IQ2S, look_up(&IQ2S.fields, index, [bit(0), bit(0x0101_0101_0101_0101), 0]))
    };
    dot_rows_by_two(w, stride, x, out, &EIGHTS, grids, |b, grid| {
        let signs = dwords_to_qwords(b[34..66].as_array().unwrap());
        let scales = scales_of_halves(bytes_to_qwords(b[74..].as_array().unwrap()));
        (f16_first(b) / 8.0, move |q: &Turned| scale_halves(signed_dots(&EIGHTS, grid, signs, q), scales))
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
}
