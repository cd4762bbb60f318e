//! Q2_0: 64 weights of 2 bits, -1 to 2 times one f16 scale.
//!
//! ```text
//! byte 0..2   d: f16
//! byte 2..18  q: 64 x u2           bits 2k, 2k+1 of byte j: weight 4j + k
//!                                  w[i] = d * (q[i] - 1)
//! ```
//! Layout: ggml-common.h `block_q2_0`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::types::{QuantType, kernels};

const BLOCK: usize = 64;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + BLOCK / 4);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 42,
    name: "Q2_0",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8,
    panel: Some(PanelSpec { group: 32, most: 2, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// The weights of a block, in units of its scale.
fn units(b: &[u8; BYTES]) -> [i32; BLOCK] {
    std::array::from_fn(|i| (b[2 + i / 4] >> (i % 4 * 2) & 3) as i32 - 1)
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
                sum += f16_at(b, 0) as f64 * x.d[i * 2 + g] as f64 * dot as f64;
            }
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, BLOCK, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    let d = b.f16(0);
    let offset = b.splat(0x0101_0101);
    for g in 0..2 {
        out.scale(g, d);
    }
    for (w, v) in b.words(2).into_iter().enumerate() {
        for j in 0..4 {
            // The four fields of byte j, one to a byte.
            let byte = v.byte(j);
            let spread = byte.or(byte.shl(6)).or(byte.shl(12)).or(byte.shl(18)).mask(0x0303_0303);
            out.codes(4 * w + j as usize, spread.sub8(offset));
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[2..]);
    put_f16(block, 0, (0.5 + rng.unit()) / 1.2); // the four values have an RMS of 1.2
}

/// Two bytes have eight weights: `vpermb` puts them into 64 bits, `vpmultishiftqb` draws a field
/// for each byte.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::small_avx512::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    const U: usize = 2 * BYTES;
    if !takes(x[0].n) {
        return dot_avx2(w, stride, x, out);
    }
    static WHERE: [[u8; 64]; 2] = {
        let mut index = [[0; 64]; 2];
        let mut i = 0;
        while i < 128 {
            let (group, byte) = (i % 64 / 16, i / 64 * 4 + i % 16 / 8 * 2 + i % 8 % 2);
            index[i / 64][i % 64] = (group * 8 + byte) as u8;
            i += 1;
        }
        index
    };
    let fields = _mm512_set1_epi64(0x0e0c_0a08_0604_0200);
    let three = _mm512_set1_epi8(3);
    let codes = |b: &[u8; U]| {
        let half = |i: usize| load_u8x16(b[i * BYTES + 2..].first_chunk().unwrap());
        let v = _mm512_castsi256_si512(_mm256_set_m128i(half(1), half(0)));
        let code = |at: &[u8; 64]| {
            let bytes = _mm512_permutexvar_epi8(load_u8x64(at), v);
            _mm512_and_si512(_mm512_multishift_epi64_epi8(fields, bytes), three)
        };
        [code(&WHERE[0]), code(&WHERE[1])]
    };
    let scales = |b: [&[u8; U]; UNITS]| {
        let two = |b: &[u8], i: usize| u16::from_le_bytes([b[i * BYTES], b[i * BYTES + 1]]) as u64 * 0x0001_0001;
        let four = |u: usize| two(b[u], 0) | two(b[u], 1) << 32;
        Scales::new(f16_fours([four(0), four(1), four(2), four(3)]))
    };
    dot_rows::<U, 1, T>(w, stride, x, out, codes, scales);
}

/// In `planes(q)[k]` byte j of half h is the activation 4j + 2h + k, whose weight is field 2h + k
/// of the block's byte j: a shift and a mask turn the block into the weights of plane k. Dwords 0
/// and 1 of a half then collect what the first activation scale multiplies, dwords 2 and 3 the
/// second.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use std::arch::x86_64::*;
    let three = _mm256_set1_epi8(3);
    let acts = |q: &[i8; BLOCK], d: &[f32]| {
        let (a, b) = (d[0], d[1]);
        (planes(q), _mm256_setr_ps(a, a, b, b, a, a, b, b))
    };
    crate::quant::rows::small_avx2::dot_planes::<BLOCK, 2, T>(w, stride, x, out, acts, |v| {
        [_mm256_and_si256(v, three), _mm256_and_si256(_mm256_srli_epi16::<2>(v), three)]
    });
}

/// Returns the activations of a block in planes, as [`dot_avx2`] describes them.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn planes(q: &[i8; BLOCK]) -> [std::arch::x86_64::__m256i; 2] {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    // A 4x4 transpose in each 16 bytes puts the field before the byte, then the dwords of a field
    // are joined.
    let transpose = load_u8x16_twice(&[0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]);
    let fields = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let parts: &[[i8; 32]; 2] = q.as_chunks().0.as_array().unwrap();
    let [a, b] = std::array::from_fn(|g| load_i8x32(&parts[g]))
        .map(|v| _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(v, transpose), fields));
    [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)]
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
