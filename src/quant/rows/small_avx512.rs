//! The AVX-512 row kernel of the formats that have a scale per 16 or 32 weights: one frame, to
//! which a format brings how it unpacks 128 weights at once.
//!
//! ```text
//! unit            128 weights: 4 groups of 32, which meet one activation scale each
//! codes[0], [1]   the first and the second 16 weights of every group: group g in 128-bit lane g of
//!                 both, so that the products of a group add up in its own four lanes of 32 bits
//! four units      of one row, or of four short rows; unit u's group g has lane 4u + g of the
//!                 vectors of scales, so that sixteen scales are widened and multiplied with the
//!                 activations' at once
//! ```
//! Every token has a sum for each of four units and one for minimums. Those of four tokens, 16 or 20,
//! stay in registers in the loop over a row of 512 weights and more.
//!
//! Codes are unsigned, as `vpdpbusd` wants them; what was added to make them so is taken off again
//! in integers: the sums begin at minus that much of the activations.
//!
//! Rejected: four rows at a time, which share the loads of the activations. From cache that is a
//! third faster, but memory sees four short streams, which prefetchers follow badly (Q8_0 on a Zen
//! 4 core: 10 to 13 GB/s, one row at a time 23). Two rows at a time, far apart, so that each is a
//! long stream: no faster from cache, 10 to 40% slower from memory. Prefetching on Zen 4: the CPU does
//! it better by itself (Q8_0 24% slower with 1.5 KB ahead into the first level, 10 to 20% with 3 to 12
//! KB into the second). Over a long range of memory, 6 KB ahead makes Q4_0, IQ4_NL and MXFP4 15 to
//! 20% faster (`cargo bench --bench kernels`), but decoding with them 4% slower, pair by pair: an
//! expert is too short a range. Q4_0's 16 bytes of each block by 128-bit inserts instead of one
//! permutation: 30% slower; its offset of 8 as a minimum in floats instead of in integers: no
//! difference.

use std::arch::x86_64::*;

use super::blocks::act_blocks;
use crate::quant::activations::{ActBlock, ActRow};
use crate::simd::x86::*;

/// Weights in a unit.
const UNIT: usize = 128;
/// Units that are computed together.
pub(crate) const UNITS: usize = 4;

/// A sum for each unit, in 16 parts, and the minimums' part of all units.
type Sums = ([__m512; UNITS], __m512);

/// The scales of four units.
pub(crate) struct Scales {
    /// The factor of the codes: of all, or of the first 16 of a group if there is a `second`.
    pub(crate) scale: __m512,
    /// The factor of the second 16 of a group, for formats where they have a scale of their own.
    pub(crate) second: Option<__m512>,
    /// What is added to every weight.
    pub(crate) min: Option<__m512>,
}

impl Scales {
    /// Makes scales for formats with one scale per 32 weights and no minimum.
    #[inline]
    pub(crate) fn new(scale: __m512) -> Scales {
        Scales { scale, second: None, min: None }
    }
}

/// Returns whether [`dot_rows`] can multiply rows of `n` weights.
pub(crate) fn takes(n: usize) -> bool {
    n >= UNIT
}

/// The row kernel. `codes` unpacks the `U` bytes of a unit, `scales` those of four units. Codes are
/// `OFFSET` larger than the values that they encode.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(crate) fn dot_rows<const U: usize, const OFFSET: i16, const T: usize>(
    w: &[u8],
    stride: usize,
    x: [ActRow<'_>; T],
    mut out: [&mut [f32]; T],
    codes: impl Fn(&[u8; U]) -> [__m512i; 2],
    scales: impl Fn([&[u8; U]; UNITS]) -> Scales,
) {
    let (n, rows) = (x[0].n, out[0].len());
    let bytes = n * U / UNIT;
    let none = ([_mm512_setzero_ps(); UNITS], _mm512_setzero_ps());
    if n < ActBlock::LEN {
        let act_blocks = act_blocks(&x, 0);
        for first in (0..rows).step_by(UNITS) {
            let count = (rows - first).min(UNITS);
            let row = |r: usize| &w[(first + r.min(count - 1)) * stride..][..bytes];
            let rows = [row(0), row(1), row(2), row(3)];
            let mut to = [none; T];
            for u in 0..n.div_ceil(UNIT) {
                let at = (u * U).min(bytes - U);
                let unit = |r: usize| rows[r][at..].first_chunk().unwrap();
                let units = [unit(0), unit(1), unit(2), unit(3)];
                add::<U, OFFSET, T>(&mut to, UNITS, units, act_blocks, Some(u), &codes, &scales);
            }
            for (out, to) in out.iter_mut().zip(to) {
                let mut four = [0.0; UNITS];
                store_f32x4(&mut four, add_up(to));
                out[first..first + count].copy_from_slice(&four[..count]);
            }
        }
        return;
    }
    let (left, ahead) = (n.div_ceil(UNIT) % UNITS, ahead_where_wanted());
    for r in 0..rows {
        let row = &w[r * stride..][..bytes];
        let (fours, units) = row.as_chunks::<U>().0.as_chunks::<UNITS>();
        let mut to = [none; T];
        for (i, w) in fours.iter().enumerate() {
            let x = act_blocks(&x, i);
            if let Some(ahead) = ahead {
                prefetch_lines_l2(w.as_flattened(), ahead);
            }
            add::<U, OFFSET, T>(&mut to, UNITS, w.each_ref(), x, None, &codes, &scales);
        }
        if !n.is_multiple_of(ActBlock::LEN) {
            let x = act_blocks(&x, fours.len());
            let last = row.last_chunk().unwrap();
            let unit = |u: usize| units.get(u).unwrap_or(last); // what is missing meets zeros
            let four = [unit(0), unit(1), unit(2), unit(3)];
            // Known counts, so that the loop over units is unrolled and its sums stay in registers.
            match left {
                1..=2 => add::<U, OFFSET, T>(&mut to, 2, four, x, None, &codes, &scales),
                _ => add::<U, OFFSET, T>(&mut to, UNITS, four, x, None, &codes, &scales),
            }
        }
        for (out, ([a, b, c, d], mins)) in out.iter_mut().zip(to) {
            let all = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)), mins);
            out[r] = _mm512_reduce_add_ps(all);
        }
    }
}

/// Adds the products of four units, or of the first `count`, with activations of every token: with
/// the four units of an [`ActBlock`], or all with the one unit `unit`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn add<const U: usize, const OFFSET: i16, const T: usize>(
    to: &mut [Sums; T],
    count: usize,
    w: [&[u8; U]; UNITS],
    x: [&ActBlock; T],
    unit: Option<usize>,
    codes: &impl Fn(&[u8; U]) -> [__m512i; 2],
    scales: &impl Fn([&[u8; U]; UNITS]) -> Scales,
) {
    let s = scales(w);
    let mut scale = [s.scale; T];
    let mut second = s.second.map(|s| [s; T]);
    for t in 0..T {
        let (d, sums) = match unit {
            None => (load_f32x16(&x[t].d), load_i32x16(&x[t].sums)),
            Some(u) => {
                let (d, sums) = (&x[t].d.as_chunks().0[u], &x[t].sums.as_chunks().0[u]);
                (load_f32x4_four_times(d), load_i32x4_four_times(sums))
            }
        };
        scale[t] = _mm512_mul_ps(s.scale, d);
        if let Some(second) = &mut second {
            second[t] = _mm512_mul_ps(second[t], d);
        }
        if let Some(min) = s.min {
            let sums = _mm512_cvtepi32_ps(sums);
            to[t].1 = _mm512_fmadd_ps(min, _mm512_mul_ps(sums, d), to[t].1);
        }
    }
    let group = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for u in 0..count {
        let [a, b] = codes(w[u]);
        let lanes = _mm512_add_epi32(group, _mm512_set1_epi32(4 * u as i32));
        for t in 0..T {
            let at = unit.unwrap_or(u);
            let (q, sums) = (&x[t].q[at], &x[t].lanes[at]);
            let offset = |by: i32| match OFFSET {
                0 => _mm512_setzero_si512(),
                _ => _mm512_madd_epi16(load_i16x2x16(sums), _mm512_set1_epi32(by)),
            };
            let by = -OFFSET as u16 as i32;
            let (xa, xb) = (load_i8x64(&q[0]), load_i8x64(&q[1]));
            let spread = _mm512_permutexvar_ps(lanes, scale[t]);
            let to = &mut to[t].0[u];
            match second {
                None => {
                    let dot = _mm512_dpbusd_epi32(offset(by | by << 16), a, xa);
                    let dot = _mm512_dpbusd_epi32(dot, b, xb);
                    *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), spread, *to);
                }
                Some(second) => {
                    let (a, b) = (_mm512_dpbusd_epi32(offset(by), a, xa), _mm512_dpbusd_epi32(offset(by << 16), b, xb));
                    *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), spread, *to);
                    let spread = _mm512_permutexvar_ps(lanes, second[t]);
                    *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(b), spread, *to);
                }
            }
        }
    }
}

/// Puts 128 codes from their natural order into that of a unit.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn quarters(lo: __m512i, hi: __m512i) -> [__m512i; 2] {
    [_mm512_shuffle_i32x4::<0b10_00_10_00>(lo, hi), _mm512_shuffle_i32x4::<0b11_01_11_01>(lo, hi)]
}

/// Sums the lanes of each of four vectors, and adds the sum of each four lanes of a fifth.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn add_up(([a, b, c, d], mins): Sums) -> __m128 {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
    let all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    let mins = _mm512_add_ps(mins, _mm512_permute_ps::<0b10_11_00_01>(mins));
    let mins = _mm512_add_ps(mins, _mm512_permute_ps::<0b01_00_11_10>(mins));
    let all = _mm512_mask_add_ps(all, 0x8421, all, mins); // those of unit u are in 128-bit lane u
    let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
    _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
}

/// Returns the index for [`pick`] that takes 16 bytes, from byte `at` on, of each of a unit's four
/// blocks.
pub(crate) const fn sixteens<const U: usize>(at: usize) -> [u8; 64] {
    let mut index = [0; 64];
    let mut i = 0;
    while i < 64 {
        let from = i / 16 * (U / 4) + at + i % 16;
        // The second 64 are the last ones of the unit.
        index[i] = if from < 64 { from } else { from + 128 - U } as u8;
        i += 1;
    }
    index
}

/// Picks 64 bytes out of a unit of 64 to 128 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
pub(crate) fn pick<const U: usize>(b: &[u8; U], index: &[u8; 64]) -> __m512i {
    let (first, last) = (load_u8x64(b.first_chunk().unwrap()), load_u8x64(b.last_chunk().unwrap()));
    _mm512_permutex2var_epi8(first, load_u8x64(index), last)
}

/// Returns the low and the high half of each byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn nibbles(v: __m512i) -> [__m512i; 2] {
    let low = _mm512_set1_epi8(15);
    [_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16::<4>(v), low)]
}

/// Looks up the low and the high half of each byte in a table of 16 values. `vpermb` reads six bits
/// of an index; the table has the values four times, so that the upper two bits do not matter and
/// need no mask.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(crate) fn look_up(v: __m512i, values: &[u8; 64]) -> [__m512i; 2] {
    let values = load_u8x64(values);
    [_mm512_permutexvar_epi8(v, values), _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(v), values)]
}

/// Returns the table for [`look_up`]: the values plus `OFFSET`, four times.
pub(crate) const fn values<const OFFSET: i16>(from: &[i8; 16]) -> [u8; 64] {
    let mut to = [0; 64];
    let mut i = 0;
    while i < 64 {
        to[i] = (from[i % 16] as i16 + OFFSET) as u8;
        i += 1;
    }
    to
}

/// Returns the first four bytes of each block, of four units of four blocks.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
pub(crate) fn heads<const U: usize>(b: [&[u8; U]; UNITS]) -> __m512i {
    let block = |u: usize, g: usize| load_u8x16(b[u][g * (U / 4)..].first_chunk().unwrap());
    let unit = |u: usize| {
        let (low, high) = (_mm_unpacklo_epi32(block(u, 0), block(u, 1)), _mm_unpacklo_epi32(block(u, 2), block(u, 3)));
        _mm_unpacklo_epi64(low, high)
    };
    let (low, high) = (_mm256_set_m128i(unit(1), unit(0)), _mm256_set_m128i(unit(3), unit(2)));
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Widens the f16 in the low half of each lane, and the f16 in the high half.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn f16_pairs(v: __m512i) -> [__m512; 2] {
    [v, _mm512_srli_epi32::<16>(v)].map(|v| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)))
}

/// Widens 16 f16, four of each unit.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn f16_fours(f: [u64; UNITS]) -> __m512 {
    let [a, b, c, d] = f.map(|f| f as i64);
    _mm512_cvtph_ps(_mm256_setr_epi64x(a, b, c, d))
}

/// Adds 16 to the codes whose fifth bit is set. `at` (from [`bits_from`]) finds the 32 bits of each
/// block, of which the first 16 belong to `low`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(crate) fn fifth_bits<const U: usize>(b: &[u8; U], at: &[[u8; 64]; 2], [low, high]: [__m512i; 2]) -> [__m512i; 2] {
    let bit = _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64);
    let sixteen = _mm512_set1_epi8(16);
    let add = |v: __m512i, at: &[u8; 64]| _mm512_mask_add_epi8(v, _mm512_test_epi8_mask(pick(b, at), bit), v, sixteen);
    [add(low, &at[0]), add(high, &at[1])]
}

/// Returns the index for [`fifth_bits`] of formats whose bits begin at byte `at` of a block.
pub(crate) const fn bits_from<const U: usize>(at: usize) -> [[u8; 64]; 2] {
    let mut index = [[0; 64]; 2];
    let mut i = 0;
    while i < 128 {
        let from = i % 64 / 16 * (U / 4) + at + i / 64 * 2 + i % 16 / 8;
        index[i / 64][i % 64] = if from < 64 { from } else { from + 128 - U } as u8;
        i += 1;
    }
    index
}

/// Widens one f16 per group of four units, out of their first 64 bytes: lane 4u + g gets word
/// `words[g]` of unit u.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn f16_scales<const U: usize>(b: [&[u8; U]; UNITS], words: [u16; 4]) -> __m512 {
    let index: [u16; 32] = std::array::from_fn(|i| words[i % 4]);
    let index = load_u8x64(bytemuck::cast_ref(&index));
    let mut v = _mm512_setzero_si512();
    for (r, b) in b.into_iter().enumerate() {
        v = _mm512_mask_permutexvar_epi16(v, 15 << (4 * r), index, load_u8x64(b.first_chunk().unwrap()));
    }
    _mm512_cvtph_ps(_mm512_castsi512_si256(v))
}
