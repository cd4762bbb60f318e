//! The AVX2 row kernel of the super-block formats. It takes four blocks at a time.
//!
//! ```text
//! lane        each half of a vector has four lanes of 32 bits, and lane l belongs to block l
//! turn        32 bytes of four blocks become four vectors: vector k has word k of the four blocks
//!             in its lower half, word 4 + k in its upper half
//! sub-block   so a lane meets one scale only, and four vectors add up in it before they are scaled
//! head        the scales of four blocks are turned too, and are unpacked by the same instructions
//!             that unpack those of one
//! ```
//! The four blocks are consecutive blocks of one row, or the same block of four rows if the blocks
//! of a row are no multiple of four. The activations are brought into the order of the vectors once
//! per call.
//!
//! With AVX-VNNI `vpdpbusd` takes the place of `vpmaddubsw` and an addition. A lane then has one
//! sum of 32 bits where AVX2 has two of 16.
//!
//! Instructions per 32 weights, before (one block at a time, its scales spread over vectors) and
//! now, are in benches/record/2026-11-29-avx2.md.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::super_avx512::AHEAD;
use super::super_block::N;
use crate::quant::activations::ActRow;
use crate::simd::x86::*;

/// What a format's kernel reads of the activations, and in which order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneOrder {
    /// The first activation of the lower and of the upper half of each four vectors. A half has 16.
    pub(crate) halves: [[usize; 2]; 8],
    /// By how much codes are larger than the values that they encode.
    pub(crate) offset: i16,
    /// Whether the magnitudes of the activations are needed too.
    pub(crate) magnitudes: bool,
    /// The activations that share a minimum: 16 or 32, or 0 in a format without minimums.
    pub(crate) min: usize,
}

/// The order of activations as they are: 32 of them in four vectors.
pub(crate) const NATURAL: LaneOrder = LaneOrder {
    halves: [[0, 16], [32, 48], [64, 80], [96, 112], [128, 144], [160, 176], [192, 208], [224, 240]],
    offset: 0,
    magnitudes: false,
    min: 0,
};

/// The activations that four blocks are multiplied with.
#[derive(Clone, Debug)]
#[repr(align(32))]
pub(crate) struct LaneActs {
    /// The activations.
    pub(crate) q: [[[i8; 32]; 4]; 8],
    /// Their magnitudes.
    pub(crate) magnitudes: [[[u8; 32]; 4]; 8],
    /// What the sum of four products begins with: the offset times the activations, negative. AVX2
    /// has two i16 in a lane, AVX-VNNI one i32.
    pub(crate) start: [[u8; 32]; 8],
    /// The sums that minimums are multiplied with, two to a lane. Of 32 activations: 0, 2 and 4, 6
    /// in the halves of the first vector, 1, 3 and 5, 7 in those of the second. Of 16: 0, 2 and 8,
    /// 10; 1, 3 and 9, 11; 4, 6 and 12, 14; 5, 7 and 13, 15.
    pub(crate) sums: [[i16; 16]; 4],
    /// The scales of the blocks, twice.
    d: [f32; 8],
}

impl LaneActs {
    const ZERO: LaneActs = LaneActs {
        q: [[[0; 32]; 4]; 8],
        magnitudes: [[[0; 32]; 4]; 8],
        start: [[0; 32]; 8],
        sums: [[0; 16]; 4],
        d: [0.0; 8],
    };
}

/// The products of four blocks with `T` rows of activations: factors times integers, of which each
/// block has two.
pub(crate) struct LaneSums<const T: usize> {
    /// The products of codes.
    pub(crate) dot: [__m256i; T],
    /// The scales of the four blocks, twice.
    pub(crate) scale: __m256,
    /// The products of minimums and their scales, which are taken off.
    pub(crate) min: Option<([__m256i; T], __m256)>,
}

/// The arguments of a row kernel.
pub(crate) type RowArgs<'a, const T: usize> = (&'a [u8], usize, [ActRow<'a>; T], [&'a mut [f32]; T]);

thread_local! {
    /// Four blocks of `T` rows of activations: the first four of every row, then the next four of
    /// every row.
    static LANES: RefCell<Vec<LaneActs>> = const { RefCell::new(Vec::new()) };
}

/// The row kernel. `multiply` multiplies four blocks with their activations. `VNNI` says which
/// instruction it uses.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_rows<const BYTES: usize, const VNNI: bool, const T: usize>(
    (w, stride, x, mut out): RowArgs<'_, T>,
    order: &LaneOrder,
    multiply: impl Fn([&[u8; BYTES]; 4], &[LaneActs; T]) -> LaneSums<T>,
) {
    // Taken, not borrowed by a closure, which would be compiled for AVX2 alone.
    let mut columns = LANES.take();
    let blocks = x[0].n / N;
    let by_rows = !blocks.is_multiple_of(4);
    set_lanes::<VNNI, T>(&x, order, by_rows, &mut columns);
    let (rows, between, step) = if by_rows { (4, stride, BYTES) } else { (1, BYTES, 4 * BYTES) };
    let ahead = if by_rows { AHEAD.max(4 * stride) } else { AHEAD };
    // From a lane's first block of a row to the end of its last.
    let len = if by_rows { blocks } else { (blocks + 1).saturating_sub(4) } * BYTES;
    let all = out[0].len();
    for first in (0..all).step_by(rows) {
        let w = &w[first * stride..];
        let count = rows.min(all - first);
        // The last rows are fewer than four: their last one is then multiplied several times.
        let lane = |l: usize| &w[if by_rows { l.min(count - 1) } else { l } * between..][..len];
        let lanes = [lane(0), lane(1), lane(2), lane(3)];
        let mut acc = [_mm256_setzero_ps(); T];
        for (g, columns) in columns.as_chunks::<T>().0.iter().enumerate() {
            for line in 0..(4 * BYTES).div_ceil(64) {
                prefetch_l2(w, ahead + g * 4 * BYTES + 64 * line);
            }
            let block = |l: usize| lanes[l][g * step..].first_chunk().expect("a block of a row");
            let sums = multiply([block(0), block(1), block(2), block(3)], columns);
            for t in 0..T {
                let d = load_f32x8(&columns[t].d);
                acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(sums.scale, d), _mm256_cvtepi32_ps(sums.dot[t]), acc[t]);
                if let Some((min, scale)) = sums.min {
                    acc[t] = _mm256_fnmadd_ps(_mm256_mul_ps(scale, d), _mm256_cvtepi32_ps(min[t]), acc[t]);
                }
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            if by_rows {
                let mut four = [0.0; 8];
                store_f32x8(&mut four, _mm256_add_ps(acc, _mm256_permute2f128_ps::<1>(acc, acc)));
                out[first..first + count].copy_from_slice(&four[..count]);
            } else {
                out[first] = sum_f32x8(acc);
            }
        }
    }
    LANES.set(columns);
}

/// Brings rows of activations into the order of a format.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn set_lanes<const VNNI: bool, const T: usize>(
    x: &[ActRow<'_>; T],
    order: &LaneOrder,
    by_rows: bool,
    to: &mut Vec<LaneActs>,
) {
    let step = if by_rows { 1 } else { 4 };
    to.resize(x[0].n / N / step * T, LaneActs::ZERO);
    let ones = _mm256_set1_epi16(1);
    for (i, to) in to.iter_mut().enumerate() {
        let (i, x) = (i / T, x[i % T]);
        let (q, sums) = (x.q.as_chunks::<N>().0, x.sums.as_chunks::<16>().0);
        let from = |l: usize| if by_rows { i } else { 4 * i + l };
        to.d = std::array::from_fn(|l| x.d[from(l % 4)]);
        for (g, &[lower, upper]) in order.halves.iter().enumerate() {
            let half = |l: usize, at: usize| q[from(l)][at..].first_chunk().expect("16 activations");
            let words = |l: usize| load_i8x16_pair(half(l, lower), half(l, upper));
            let four = turn([words(0), words(1), words(2), words(3)]);
            for (k, &v) in four.iter().enumerate() {
                store_i8x32(&mut to.q[g][k], v);
                if order.magnitudes {
                    store_u8x32(&mut to.magnitudes[g][k], _mm256_abs_epi8(v));
                }
            }
            if order.offset != 0 {
                let mut sums = _mm256_setzero_si256();
                for v in four {
                    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(1), v));
                }
                let start = match VNNI {
                    true => _mm256_mullo_epi32(_mm256_madd_epi16(sums, ones), _mm256_set1_epi32(-order.offset as i32)),
                    false => _mm256_mullo_epi16(sums, _mm256_set1_epi16(-order.offset)),
                };
                store_u8x32(&mut to.start[g], start);
            }
        }
        if order.min != 0 {
            let sums = |l: usize| {
                let sums = load_i16x16(&sums[from(l)]);
                if order.min == 32 { _mm256_madd_epi16(sums, ones) } else { sums }
            };
            let v = turn([sums(0), sums(1), sums(2), sums(3)]);
            // Every other sum of two lanes, or of a lane and the one after the next.
            let pairs = if order.min == 32 { [[0, 2], [1, 3]] } else { [[0, 1], [2, 3]] };
            for (i, [a, b]) in pairs.into_iter().enumerate() {
                let first = _mm256_blend_epi16::<0xaa>(v[a], _mm256_slli_epi32::<16>(v[b]));
                let second = _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(v[a]), v[b]);
                if order.min == 32 {
                    store_i16x16(&mut to.sums[i], first);
                } else {
                    store_i16x16(&mut to.sums[2 * i], first);
                    store_i16x16(&mut to.sums[2 * i + 1], second);
                }
            }
        }
    }
}

/// Calls `f` for each of four vectors. `[T; 4]::map` is compiled without AVX2, and `f` with it would
/// not be inlined there.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn each(v: [__m256i; 4], f: impl Fn(__m256i) -> __m256i) -> [__m256i; 4] {
    [f(v[0]), f(v[1]), f(v[2]), f(v[3])]
}

/// Repeats a block with constants in the place of a loop's variable: the compiler does not unroll
/// loops as long as these.
macro_rules! unrolled {
    ($i:ident in [$($value:literal),*] $body:block) => {
        $({
            let $i: usize = $value;
            $body
        })*
    };
}
pub(crate) use unrolled;

/// Turns 32 bytes of four blocks: lane `l` of vector `k` is word `k` of block `l` in the lower half,
/// word `4 + k` in the upper half.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn turn([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Turns the 32 bytes of each block that begin at byte `at`.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn turn_32<const BYTES: usize>([a, b, c, d]: [&[u8; BYTES]; 4], at: usize) -> [__m256i; 4] {
    let words = |b: &[u8; BYTES]| load_u8x32(b[at..at + 32].as_array().expect("32 bytes"));
    turn([words(a), words(b), words(c), words(d)])
}

/// Turns the 16 bytes of each block that begin at byte `at`. Both halves of the vectors are equal.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn turn_16<const BYTES: usize>([a, b, c, d]: [&[u8; BYTES]; 4], at: usize) -> [__m256i; 4] {
    let words = |b: &[u8; BYTES]| load_u8x16_twice(b[at..at + 16].as_array().expect("16 bytes"));
    turn([words(a), words(b), words(c), words(d)])
}

/// Adds the products of four vectors of codes. `add` adds those of one.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn add_four(
    start: __m256i,
    codes: [__m256i; 4],
    q: &[[i8; 32]; 4],
    add: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
) -> __m256i {
    let mut sums = start;
    for k in 0..4 {
        sums = add(sums, codes[k], load_i8x32(&q[k]));
    }
    sums
}

/// Multiplies sums of [`add_four`] by scales of [`spread`].
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn times<const VNNI: bool>(sums: __m256i, scales: __m256i) -> __m256i {
    if VNNI { _mm256_mullo_epi32(sums, scales) } else { _mm256_madd_epi16(sums, scales) }
}

/// Makes the shuffle that moves byte `lower` of every lane of the lower half, and byte `upper` of
/// every lane of the upper half, to byte `to` of every `of` bytes.
const fn widening(lower: u8, upper: u8, of: usize, to: usize) -> [u8; 32] {
    let mut t = [0x80; 32];
    let mut i = to;
    while i < 32 {
        t[i] = if i < 16 { lower } else { upper } + (i % 16 / 4 * 4) as u8;
        i += of;
    }
    t
}

/// Byte `j` of a lane in both halves, for AVX2 and for AVX-VNNI. The shuffles are tables, one load
/// each, so that no kernel depends on its loops being unrolled.
static SAME: [[[u8; 32]; 4]; 2] = [
    [widening(0, 0, 2, 0), widening(1, 1, 2, 0), widening(2, 2, 2, 0), widening(3, 3, 2, 0)],
    [widening(0, 0, 4, 0), widening(1, 1, 4, 0), widening(2, 2, 4, 0), widening(3, 3, 4, 0)],
];

/// Byte `2j` in the lower half, byte `2j + 1` in the upper.
static NEXT: [[[u8; 32]; 2]; 2] =
    [[widening(0, 1, 2, 0), widening(2, 3, 2, 0)], [widening(0, 1, 4, 0), widening(2, 3, 4, 0)]];

/// As [`NEXT`], but to the highest byte.
static NEXT_HIGH: [[[u8; 32]; 2]; 2] =
    [[widening(0, 1, 2, 1), widening(2, 3, 2, 1)], [widening(0, 1, 4, 3), widening(2, 3, 4, 3)]];

/// Widens unsigned byte `j` of every lane. AVX2 has the value twice, as i16, AVX-VNNI once, as i32.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn spread<const VNNI: bool>(v: __m256i, j: usize) -> __m256i {
    _mm256_shuffle_epi8(v, load_u8x32(&SAME[VNNI as usize][j]))
}

/// Widens unsigned byte `2j` of every lane of the lower half, `2j + 1` of the upper, as [`spread`]
/// does.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn spread_next<const VNNI: bool>(v: __m256i, j: usize) -> __m256i {
    _mm256_shuffle_epi8(v, load_u8x32(&NEXT[VNNI as usize][j]))
}

/// Signed version of [`spread_next`].
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn spread_next_signed<const VNNI: bool>(v: __m256i, j: usize) -> __m256i {
    let v = _mm256_shuffle_epi8(v, load_u8x32(&NEXT_HIGH[VNNI as usize][j]));
    if VNNI { _mm256_srai_epi32::<24>(v) } else { _mm256_srai_epi16::<8>(v) }
}

/// Subtracts 32 from scales of [`spread`].
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn less_32<const VNNI: bool>(scales: __m256i) -> __m256i {
    match VNNI {
        true => _mm256_sub_epi32(scales, _mm256_set1_epi32(32)),
        false => _mm256_sub_epi16(scales, _mm256_set1_epi16(32)),
    }
}

/// Widens the two f16 of every lane to the two factors of the four blocks, each twice. Both halves
/// of `v` are equal.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn f16_pairs(v: __m256i) -> [__m256; 2] {
    let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    let both = _mm256_cvtph_ps(_mm_shuffle_epi8(_mm256_castsi256_si128(v), order));
    [_mm256_permute2f128_ps::<0x00>(both, both), _mm256_permute2f128_ps::<0x11>(both, both)]
}

/// Widens the f16 at byte `at` of four blocks, each twice.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn f16_of_four<const BYTES: usize>([a, b, c, d]: [&[u8; BYTES]; 4], at: usize) -> __m256 {
    let f16 = |b: &[u8; BYTES]| u16::from_le_bytes([b[at], b[at + 1]]) as i32;
    let v = _mm_insert_epi16::<1>(_mm_cvtsi32_si128(f16(a)), f16(b));
    let v = _mm_insert_epi16::<3>(_mm_insert_epi16::<2>(v, f16(c)), f16(d));
    _mm256_cvtph_ps(_mm_unpacklo_epi64(v, v))
}

/// Returns the two f16 at byte `at` of four blocks as [`f16_pairs`] takes them.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn f16s_of_four<const BYTES: usize>([a, b, c, d]: [&[u8; BYTES]; 4], at: usize) -> __m256i {
    let f16s = |b: &[u8; BYTES]| i32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    _mm256_castsi128_si256(_mm_setr_epi32(f16s(a), f16s(b), f16s(c), f16s(d)))
}

/// Unpacks the turned scales and minimums of Q4_K and Q5_K: scales 0 to 3, scales 4 to 7, and
/// minimums 0 to 3 in the lower half, 4 to 7 in the upper. AVX2 version of
/// [`scales_and_mins`](super::super_block::scales_and_mins).
#[inline]
#[target_feature(enable = "avx2")]
fn scales_and_mins([s, m, low]: [__m256i; 3]) -> ([__m256i; 2], __m256i) {
    let mask = |v, lower: i32, upper: i32| {
        _mm256_and_si256(v, _mm256_setr_epi32(lower, lower, lower, lower, upper, upper, upper, upper))
    };
    let shift = |v, by| _mm256_srlv_epi32(v, _mm256_setr_epi32(0, 0, 0, 0, by, by, by, by));
    let first = mask(s, 0x3f3f_3f3f, 0x3f3f_3f3f);
    let last = mask(low, 0x0f0f_0f0f, 0x0f0f_0f0f);
    let last = _mm256_or_si256(last, mask(_mm256_srli_epi32::<2>(s), 0x3030_3030, 0x3030_3030));
    let mins = _mm256_or_si256(mask(shift(m, 2), 0x3f3f_3f3f, 0x3030_3030), mask(shift(low, 4), 0, 0x0f0f_0f0f));
    ([first, last], mins)
}

/// Multiplies four blocks of Q4_K or Q5_K, whose heads are the same and whose codes begin at byte
/// `at`. `codes(v, p, k)` makes the codes of two sub-blocks out of the vector `k` of part `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn multiply_with_mins<const BYTES: usize, const VNNI: bool, const T: usize>(
    blocks: [&[u8; BYTES]; 4],
    at: usize,
    x: &[LaneActs; T],
    codes: impl Fn(__m256i, usize, usize) -> [__m256i; 2],
    add: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
) -> LaneSums<T> {
    let zero = _mm256_setzero_si256();
    let [factors, head @ ..] = turn_16(blocks, 0);
    let (scales, mins) = scales_and_mins(head);
    let (even, odd) = (_mm256_and_si256(mins, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(mins));
    let mut min = [zero; T];
    for t in 0..T {
        let first = _mm256_madd_epi16(even, load_i16x16(&x[t].sums[0]));
        min[t] = _mm256_add_epi32(first, _mm256_madd_epi16(odd, load_i16x16(&x[t].sums[1])));
    }
    let mut dot = [zero; T];
    unrolled!(p in [0, 1, 2, 3] {
        let v = turn_32(blocks, at + 32 * p);
        let mut sums = [[zero; 2]; T];
        for k in 0..4 {
            let [even, odd] = codes(v[k], p, k);
            for t in 0..T {
                sums[t][0] = add(sums[t][0], even, load_i8x32(&x[t].q[2 * p][k]));
                sums[t][1] = add(sums[t][1], odd, load_i8x32(&x[t].q[2 * p + 1][k]));
            }
        }
        for j in 0..2 {
            let scales = spread::<VNNI>(scales[p / 2], 2 * p % 4 + j);
            for t in 0..T {
                dot[t] = _mm256_add_epi32(dot[t], times::<VNNI>(sums[t][j], scales));
            }
        }
    });
    let [scale, scale_min] = f16_pairs(factors);
    LaneSums { dot, scale, min: Some((min, scale_min)) }
}

/// Declares `dot_avx2` and `dot_vnni` of a format: `$with::<VNNI, T>((w, stride, x, out), add)` is the
/// kernel but for the instruction, and `add` adds products of codes and activations in 16 or 32
/// bits.
///
/// AVX-VNNI and AVX512_VNNI have the same instruction in two encodings. A CPU that has only the
/// latter takes its encoding; so the tests run the kernel on either.
macro_rules! lane_kernels {
    ($with:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
            use std::arch::x86_64::*;
            // No sum is ever so large that the addition saturates. It is this addition because the
            // compiler cannot change the order of a chain of them: of plain ones it moves all to
            // the end, after all products, which it then has no registers for.
            $with::<false, T>((w, stride, x, out), |sum, codes, q| {
                _mm256_adds_epi16(sum, _mm256_maddubs_epi16(codes, q))
            });
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn dot_vnni<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
            use std::arch::x86_64::*;
            #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
            fn vex<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
                $with::<true, T>((w, stride, x, out), |sum, codes, q| _mm256_dpbusd_avx_epi32(sum, codes, q));
            }
            #[target_feature(enable = "avx2,fma,f16c,avx512vnni,avx512vl")]
            fn evex<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
                $with::<true, T>((w, stride, x, out), |sum, codes, q| _mm256_dpbusd_epi32(sum, codes, q));
            }
            #[allow(unsafe_code)]
            // SAFETY: `dot_vnni` is called where the CPU has one of the two encodings.
            unsafe {
                if crate::simd::vnni_is_vex() { vex(w, stride, x, out) } else { evex(w, stride, x, out) }
            }
        }
    };
}
pub(crate) use lane_kernels;
