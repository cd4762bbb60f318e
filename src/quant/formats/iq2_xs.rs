//! IQ2_XS: 256 weights in 74 bytes, 2.31 bits each: 8 at a time from a codebook of 512, signs
//! apart.
//!
//! ```text
//! byte 0..2     d: f16
//! byte 2..66    32 x u16, 8 weights each: bits 0..9 the index into IQ2XS, bits 9..16 the signs
//!               (the eighth makes the minuses even)
//! byte 66..74   16 x 4 bits: scale s of 16 weights, the low half of a byte first
//! w[i] = d * (2s + 1) / 8 * +-grid
//! ```
//! Layout: ggml-common.h `block_iq2_xs`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::codebooks::tables::IQ2XS;
use crate::quant::panels;
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::f16_at;
use crate::quant::rows::codebook::{self, SuperBlock};
use crate::quant::rows::super_block::N as BLOCK;
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 74;
const _: () = assert!(BYTES == 2 + BLOCK / 8 * 2 + BLOCK / 32);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 17,
    name: "IQ2_XS",
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
    let mut s = SuperBlock { d: f16_at(b, 0) / 8.0, scale: codebook::nibble_scales(&b[66..]), q: [0; BLOCK] };
    for (word, q) in b[2..66].as_chunks::<2>().0.iter().zip(s.q.as_chunks_mut::<8>().0) {
        let word = u16::from_le_bytes(*word);
        *q = codebook::signed(IQ2XS.entries[(word & 511) as usize], codebook::even_signs(word as u32 >> 9));
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
    for i in 0..4 {
        let words = b.words(2 + 16 * i);
        for h in 0..2 {
            let (first, second) = (words[2 * h], words[2 * h + 1]);
            let index = first.pick8(second, [0, 2, 4, 6]);
            let high = first.pick8(second, [1, 3, 5, 7]);
            let signs = panels::codebook::with_parity(high.shr(1).mask(0x7f7f_7f7f));
            panels::codebook::put_eights(out, 8 * (2 * i + h), index.eights(high, &IQ2XS), signs);
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    codebook::random(rng, block, 0, 55.9); // RMS of the scales 18.5, of the grid 24.2, / 8
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::codebook_avx2::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let unpack = |b: &[u8; BYTES], s: &mut Unpacked| {
        let (lo, hi) = (load_u8x32(b[2..34].as_array().unwrap()), load_u8x32(b[34..66].as_array().unwrap()));
        // Packing works within lanes: the quarters are put back in order.
        let signs = _mm256_packus_epi16(_mm256_srli_epi16::<9>(lo), _mm256_srli_epi16::<9>(hi));
        let signs = with_parity(_mm256_permute4x64_epi64::<0b11_01_10_00>(signs));
        let index = s.index.as_chunks_mut().0;
        store_u16x16(&mut index[0], lo);
        store_u16x16(&mut index[1], hi);
        store_u32x8(&mut s.eights, signs);
        store_u32x8(&mut s.scales, scales_of_nibbles(b[66..].as_array().unwrap()));
        s.d = f16_bits(u16::from_le_bytes([b[0], b[1]])) / 8.0;
    };
    let group = |_: &[u8; BYTES], s: &Unpacked, g: usize| {
        let grid = eights(&IQ2XS.entries, index(s, g));
        signed(grid, s.eights[g], spread_scales(s.scales[g]))
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
    static INDEX: [u8; 64] = paired(8, 2);
    static HIGH: [u8; 64] = {
        let mut t = INDEX;
        let mut i = 0;
        while i < 64 {
            t[i] += 1;
            i += 1;
        }
        t
    };
    let grids = |b: [&[u8; BYTES]; 2]| {
        let [a, b] = b.map(|b| load_u8x64(b[2..66].as_array().unwrap()));
        let index = _mm512_permutex2var_epi8(a, load_u8x64(&INDEX), b);
        let high = _mm512_permutex2var_epi8(a, load_u8x64(&HIGH), b);
        let ninth = _mm512_test_epi8_mask(high, _mm512_set1_epi8(1));
        eights(&IQ2XS, look_up(&IQ2XS.fields, index, [ninth, 0, 0]))
    };
    dot_rows_by_two(w, stride, x, out, &EIGHTS, grids, |b, grid| {
        let signs = even_signs(bits_at(load_u8x64(b[2..66].as_array().unwrap()), 0x3929_1909));
        let scales = scales_of_halves(bytes_to_qwords(b[66..].as_array().unwrap()));
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
