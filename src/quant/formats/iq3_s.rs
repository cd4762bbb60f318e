//! IQ3_S: 256 weights in 110 bytes, 3.44 bits each: 4 at a time from a codebook of 512, all signs
//! stored.
//!
//! ```text
//! byte 0..2       d: f16
//! byte 2..66      64 x u8: index into IQ3S of 4 weights, low 8 bits
//! byte 66..74     64 x 1 bit: index, the ninth bit
//! byte 74..106    32 x u8: the signs of 8 weights
//! byte 106..110   8 x 4 bits: scale s of 32 weights, the low half of a byte first
//! w[i] = d * (2s + 1) * +-grid
//! ```
//! Layout: ggml-common.h `block_iq3_s`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::codebooks::tables::IQ3S;
use crate::quant::panels;
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::f16_at;
use crate::quant::rows::codebook::{self, SuperBlock};
use crate::quant::rows::super_block::N as BLOCK;
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 110;
const _: () = assert!(BYTES == 2 + BLOCK / 4 + BLOCK / 32 + BLOCK / 8 + BLOCK / 64);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 21,
    name: "IQ3_S",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 32, most: 15, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

fn unpack(b: &[u8; BYTES]) -> SuperBlock {
    let scale = |g: usize| 2 * (b[106 + g / 2] >> (4 * (g % 2)) & 15) as i32 + 1;
    let mut s = SuperBlock { d: f16_at(b, 0), scale: std::array::from_fn(|i| scale(i / 2)), q: [0; BLOCK] };
    let grid = |i: usize| IQ3S.entries[b[2 + i] as usize | (b[66 + i / 8] as usize >> (i % 8) & 1) << 8] as u64;
    for (i, q) in s.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *q = codebook::signed(grid(2 * i) | grid(2 * i + 1) << 32, b[74 + i]);
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
    let d = b.f16(0);
    let scales = b.words(BYTES - 16)[3];
    for i in 0..4 {
        let (index, signs) = (b.words(2 + 16 * i), b.words(74 + i / 2 * 16));
        // Bytes 66..74, a bit for each of a group's 8 entries.
        let high = b.words(66)[i / 2].shr(i as u32 % 2 * 16);
        for h in 0..2 {
            let g = 2 * i + h;
            out.scale(g, panels::codebook::odd_scale(scales.shr(4 * g as u32).mask(15)).mul_f32(d));
            for (half, index) in index[2 * h..2 * h + 2].iter().enumerate() {
                let grid = index.fours(high.shr(8 * h as u32 + 4 * half as u32).mask(15).spread4(), &IQ3S);
                panels::codebook::put_fours(out, 8 * g + 4 * half, grid, signs[g % 4].shr(16 * half as u32));
            }
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    codebook::random(rng, block, 0, 140.2); // RMS of the scales 18.5, of the grid 7.6
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::codebook_avx2::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    // Shifts left that bring bit k of word k to bit 8, as factors.
    let shift = _mm256_broadcastsi128_si256(_mm_setr_epi16(256, 128, 64, 32, 16, 8, 4, 2));
    let unpack = |b: &[u8; BYTES], s: &mut Unpacked| {
        for h in 0..4 {
            let high = _mm256_set_m128i(_mm_set1_epi8(b[67 + 2 * h] as i8), _mm_set1_epi8(b[66 + 2 * h] as i8));
            let high = _mm256_and_si256(_mm256_mullo_epi16(high, shift), _mm256_set1_epi16(0x100));
            put_indices(s, h, &b[2 + 16 * h..], high);
        }
        let scales = _mm256_set1_epi32(i32::from_le_bytes(*b[106..].as_array().unwrap()));
        let scales = _mm256_sllv_epi32(scales, _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0));
        store_u32x8(&mut s.scales, scales_of_top(scales));
        s.d = f16_bits(u16::from_le_bytes([b[0], b[1]]));
    };
    let group = |b: &[u8; BYTES], s: &Unpacked, g: usize| {
        let grid = fours(&IQ3S.entries, index(s, g));
        let signs = u32::from_le_bytes(*b[74 + 4 * g..][..4].as_array().unwrap());
        signed(grid, signs, _mm256_set1_epi32(s.scales[g] as i32))
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
    // A group's scale: bits 4g..4g + 4 of a dword that both halves of every qword hold; see
    // `scale_at`.
    static SCALES: [[u8; 8]; 8] = {
        let mut t = [[63; 8]; 8];
        let mut g = 1;
        while g < 8 {
            t[g] = [4 * g as u8 - 1; 8];
            g += 1;
        }
        t
    };
    dot_rows(w, stride, x, out, &FOURS, |b: &[u8; BYTES]| {
        let index = load_u8x64(b[2..66].as_array().unwrap());
        let ninth = u64::from_le_bytes(*b[66..74].as_array().unwrap());
        let grid = fours(&IQ3S, look_up(&IQ3S.fields, index, [ninth, 0, 0]));
        let signs = dwords_to_qwords(b[74..106].as_array().unwrap());
        let scales = _mm512_set1_epi32(i32::from_le_bytes(*b[106..].as_array().unwrap()));
        let at = load_u8x64(SCALES.as_flattened().as_array().unwrap());
        let scales = odd(_mm512_multishift_epi64_epi8(at, scales), 15);
        (f16_first(b), move |q: &Turned| _mm512_mullo_epi32(signed_dots::<1>(&FOURS, grid, signs, q)[0], scales))
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
