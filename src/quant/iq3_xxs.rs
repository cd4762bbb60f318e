//! IQ3_XXS: 256 weights in 98 bytes, 3.06 bits each: 4 at a time from a codebook of 256, signs apart.
//!
//! ```text
//! byte 0..2     d: f16
//! byte 2..66    64 x u8, indices into IQ3XXS, 4 weights each
//! byte 66..98   8 x u32, one for 32 weights: 4 x 7 sign bits (the eighth makes the minuses even), scale s in bits 28..32
//! w[i] = d * (2s + 1) / 4 * +-grid
//! ```
//! Layout: ggml-common.h `block_iq3_xxs`.

use super::codebook::{self, Super};
use super::super_block::N as BLOCK;
use super::tables::IQ3XXS;
use super::{Act, ActRow, Kernel, QuantType, Rng, f16_at};
use crate::simd::Isa;

const BYTES: usize = 98;
const _: () = assert!(BYTES == 2 + BLOCK / 4 + BLOCK / 32 * 4);

/// The row of the format table.
pub static TYPE: QuantType = QuantType {
    id: 18,
    name: "IQ3_XXS",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8K,
    tile: None,
    dequant,
    kernels: &[
        #[cfg(target_arch = "x86_64")]
        Kernel { isa: Isa::Avx2, dot: dot_avx2 },
        Kernel { isa: Isa::Scalar, dot },
    ],
    random,
    kv: None,
};

fn unpack(b: &[u8; BYTES]) -> Super {
    let mut s = Super { d: f16_at(b, 0) / 4.0, scale: [0; 16], q: [0; BLOCK] };
    for (g, word) in b[66..].as_chunks::<4>().0.iter().enumerate() {
        let word = u32::from_le_bytes(*word);
        s.scale[2 * g..2 * g + 2].fill(2 * (word >> 28) as i32 + 1);
        for (l, q) in s.q[32 * g..32 * g + 32].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let (low, high) = (IQ3XXS[b[2 + 8 * g + 2 * l] as usize], IQ3XXS[b[3 + 8 * g + 2 * l] as usize]);
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

fn random(rng: &mut Rng, block: &mut [u8]) {
    codebook::random(rng, block, 0, 142.4); // RMS of the scales 18.5, of the grid 30.8, / 4
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    use super::codebook::x86::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let unpack = |b: &[u8; BYTES], s: &mut Stage| {
        let words = load_u8x32(b[66..].as_array().unwrap());
        store_u32x8(&mut s.eights, signs_of_28(words));
        store_u32x8(&mut s.scales, scales_of_top(words));
        s.d = f16_bits(u16::from_le_bytes([b[0], b[1]])) / 4.0;
    };
    let group = |b: &[u8; BYTES], s: &Stage, g: usize, q| {
        let grid = fours(&IQ3XXS, std::array::from_fn(|l| b[2 + 8 * g + l]));
        _mm256_madd_epi16(signed_pairs(grid, s.eights[g], q), _mm256_set1_epi32(s.scales[g] as i32))
    };
    dot_rows(w, stride, x, out, unpack, |_, _| _mm256_setzero_si256(), group);
}

#[cfg(test)]
mod tests {
    use super::TYPE;
    use crate::quant::check;

    #[test]
    fn every_kernel_equals_the_scalar_truth() {
        check::kernels(&TYPE);
    }

    #[test]
    fn the_largest_weights_and_activations_overflow_nothing() {
        check::extremes(&TYPE, &[0]);
    }

    #[test]
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }
}
