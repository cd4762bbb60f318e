//! The AVX2 row kernel of the codebook formats (IQ1, IQ2, IQ3).
//!
//! The kernel unpacks a few super-blocks ahead (grid indices, sign bytes, scales), then loops over
//! groups of 32 weights: it looks grid entries up one by one, moves the signs to the activations,
//! multiplies by `maddubs`, and by the scale with `madd`. All is exact in integers up to the end of
//! a super-block.
//!
//! Measured on one Zen 4 core, rows in cache: 20 billion weights a second for IQ2_XXS and IQ1_S, 17
//! for the others of 8 to an entry, 12 to 14 for IQ3.
//!
//! Rejected: super-blocks unpacked one at a time (1.1 to 1.3 times slower), and all groups in
//! one run of code (1.1 to 1.6 times; see `dot_rows` and `index`).

use std::arch::x86_64::*;

use super::super_block::{N as BLOCK, blocks_acts};
use crate::quant::activations::ActRow;
use crate::simd::x86::*;

/// A super-block unpacked for the loop over its 8 groups of 32 weights.
#[derive(Clone, Copy)]
pub(crate) struct Unpacked {
    /// The super-block's scale.
    pub(crate) d: f32,
    /// Grid indices, 4 or 8 per group, of formats whose blocks do not hold them as whole bytes.
    pub(crate) index: [u16; 64],
    /// Signs or offsets: a byte for each of a group's four runs of 8 weights.
    pub(crate) eights: [u32; 8],
    /// Scales: a 16-bit word for each of a group's two halves.
    pub(crate) scales: [u32; 8],
    /// The factors of the sums over 16 activations.
    pub(crate) offsets: [i16; 16],
}

/// Super-blocks that are unpacked before the loop over groups reads the first. A CPU looks about
/// one super-block ahead, so with fewer it would wait for the stores of each.
const AHEAD: usize = 4;

/// The row kernel. `unpack(bytes, unpacked)` prepares a super-block; `group(bytes, unpacked, g)`
/// returns what multiplies 32 weights with activations `q`. That and `start(unpacked, sums)` return
/// 8 integers each, whose sum over all groups is the super-block's dot product divided by `d`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_rows<const BYTES: usize, const T: usize, M: Fn(__m256i) -> __m256i>(
    w: &[u8],
    stride: usize,
    x: [ActRow<'_>; T],
    mut out: [&mut [f32]; T],
    unpack: impl Fn(&[u8; BYTES], &mut Unpacked),
    start: impl Fn(&Unpacked, &[i16; 16]) -> __m256i,
    group: impl Fn(&[u8; BYTES], &Unpacked, usize) -> M,
) {
    // 8 groups, as a number that the compiler cannot know. It still unrolls the loop, but with an
    // exit after every group, over which it moves no loads: without, it hoists the lookups of all
    // groups and spills them.
    let groups = std::hint::black_box(8);
    let mut stages = [Unpacked { d: 0.0, index: [0; 64], eights: [0; 8], scales: [0; 8], offsets: [0; 16] }; AHEAD];
    for r in 0..out[0].len() {
        let row = &w[r * stride..][..x[0].n / BLOCK * BYTES];
        let mut acc = [_mm256_setzero_ps(); T];
        for (i, blocks) in row.as_chunks::<BYTES>().0.chunks(AHEAD).enumerate() {
            blocks.iter().zip(&mut stages).for_each(|(b, s)| unpack(b, s));
            let x = blocks_acts(&x, AHEAD * i, blocks.len());
            for (j, (b, s)) in blocks.iter().zip(&stages).enumerate() {
                let mut dot = [_mm256_setzero_si256(); T];
                for t in 0..T {
                    dot[t] = start(s, &x[t].2[j]);
                }
                for g in (0..8).take(groups) {
                    let multiply = group(b, s, g);
                    for t in 0..T {
                        dot[t] = _mm256_add_epi32(dot[t], multiply(load_i8x32(&x[t].0[j].as_chunks().0[g])));
                    }
                }
                for t in 0..T {
                    let scale = _mm256_set1_ps(s.d * x[t].1[j]);
                    acc[t] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot[t]), acc[t]);
                }
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            out[r] = sum_f32x8(acc);
        }
    }
}

/// The `start` argument of [`dot_rows`] for formats with offsets.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn offsets(s: &Unpacked, sums: &[i16; 16]) -> __m256i {
    _mm256_madd_epi16(load_i16x16(sums), load_i16x16(&s.offsets))
}

/// Copies byte `i / 8` of the four bytes of `v` to byte `i`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn spread_eights(v: u32) -> __m256i {
    let of = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    _mm256_shuffle_epi8(_mm256_set1_epi32(v as i32), of)
}

/// Copies the first of the two words of `v` over the lower lane, the second over the upper.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn spread_scales(v: u32) -> __m256i {
    let of = _mm256_set_m128i(_mm_set1_epi16(0x0302), _mm_set1_epi16(0x0100));
    _mm256_shuffle_epi8(_mm256_set1_epi32(v as i32), of)
}

/// Returns what multiplies grid bytes with activations, and sums of pairs with scales. A set bit of
/// `signs` negates one of the 32 products.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn signed(grid: __m256i, signs: u32, scales: __m256i) -> impl Fn(__m256i) -> __m256i {
    // Bit i % 8 of byte i, plus 127, is negative where it is set.
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let sign = _mm256_add_epi8(_mm256_and_si256(spread_eights(signs), bit), _mm256_set1_epi8(127));
    move |q| _mm256_madd_epi16(_mm256_maddubs_epi16(grid, _mm256_sign_epi8(q, sign)), scales)
}

/// Looks up four entries of 8 bytes. Bits of an index beyond the table's size are ignored.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn eights<const N: usize, I: Into<usize>>(grid: &[u64; N], index: [I; 4]) -> __m256i {
    const { assert!(N.is_power_of_two()) }
    let [a, b, c, d] = index.map(|i| grid[i.into() & (N - 1)] as i64);
    _mm256_setr_epi64x(a, b, c, d)
}

/// Looks up eight entries of 4 bytes. Bits of an index beyond the table's size are ignored.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn fours<const N: usize, I: Copy + Into<usize>>(grid: &[u32; N], index: [I; 8]) -> __m256i {
    const { assert!(N.is_power_of_two()) }
    let e = |l: usize| grid[index[l].into() & (N - 1)] as i32;
    _mm256_setr_epi32(e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7))
}

/// Returns the indices of group `g`. They are read one by one: else the compiler loads all into a
/// vector register, masks them there and extracts each, which is 1.3 times slower and more.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn index<const L: usize>(s: &Unpacked, g: usize) -> [u16; L] {
    s.index.as_chunks().0[g].each_ref().map(read_once)
}

/// Stores 16 grid indices, from index `16 * part` on: `low` has their low bytes, the words of
/// `high` the bits above.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn put_indices(s: &mut Unpacked, part: usize, low: &[u8], high: __m256i) {
    let low = _mm256_cvtepu8_epi16(load_u8x16(low[..16].as_array().unwrap()));
    store_u16x16(&mut s.index.as_chunks_mut().0[part], _mm256_or_si256(low, high));
}

/// Sets the eighth sign bit of every byte to the parity of its other seven.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn with_parity(v: __m256i) -> __m256i {
    let odd = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0,
    ));
    let nibble = _mm256_and_si256(_mm256_xor_si256(v, _mm256_srli_epi16::<4>(v)), _mm256_set1_epi8(15));
    _mm256_or_si256(v, _mm256_shuffle_epi8(odd, nibble))
}

/// Spreads the low 28 bits of every dword, 4 fields of 7 signs, to bytes of 8 signs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn signs_of_28(v: __m256i) -> __m256i {
    let low = |v, mask| _mm256_and_si256(v, _mm256_set1_epi32(mask));
    let v = _mm256_add_epi32(low(v, 0x3fff), _mm256_slli_epi32::<2>(low(v, 0x0fff_c000)));
    let v = _mm256_add_epi32(low(v, 0x007f_007f), _mm256_slli_epi32::<1>(low(v, 0x3f80_3f80)));
    with_parity(v)
}

/// Returns the top 4 bits of every dword as the odd scale `2s + 1`, in both words of the dword.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn scales_of_top(v: __m256i) -> __m256i {
    let s = _mm256_srli_epi32::<28>(v);
    odd(_mm256_or_si256(s, _mm256_slli_epi32::<16>(s)))
}

/// Unpacks 16 scales of 4 bits, the low half of a byte first, as words `2s + 1`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn scales_of_nibbles(bytes: &[u8; 8]) -> __m256i {
    let v = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
    let low = _mm256_and_si256(v, _mm256_set1_epi32(15));
    let high = _mm256_and_si256(_mm256_slli_epi32::<12>(v), _mm256_set1_epi32(15 << 16));
    odd(_mm256_or_si256(low, high))
}

/// Returns `2s + 1` of every word `s`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn odd(s: __m256i) -> __m256i {
    _mm256_add_epi16(_mm256_add_epi16(s, s), _mm256_set1_epi16(1))
}
