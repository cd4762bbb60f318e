//! The AVX-512 row kernel of the codebook formats: it looks 64 grid indices up at a time, in
//! registers.
//!
//! ```text
//! look-up     a grid is two tables of bytes (fields of 2 or 4 bits, see codebooks/grid.rs).
//!             vpermi2b looks 64 indices up in 128 of them; masks of the bits above choose among
//!             the results.
//! values      vpmultishiftqb brings the fields to bytes, vpermb (64 values) turns them into grid
//!             bytes
//! signs       stay bits: vpshufbitqmb makes them the mask of a subtraction that turns the
//!             activations
//! order       qword i of every vector belongs to group i (32 weights), so four vpdpbusd add into
//!             the same 16 lanes and a scale is a multiply of the sum; the activations are laid out
//!             so once per call
//! tokens      a block is looked up once; its grid bytes, signs and scales multiply with each. The
//!             compiler makes the masks of signs once, too
//! ```
//! Two blocks of 32 indices are unpacked together. All is exact in integers up to the super-block's
//! end.
//!
//! Measured on one Zen 4 core, rows in cache, in weights a nanosecond, and the AVX2 kernels in
//! brackets: IQ2_XXS 34 (20), IQ2_XS 26 (17), IQ3_XXS 33 (14), IQ3_S 29 (12), IQ2_S 23 (17).
//!
//! Rejected for IQ2_XXS: activations in their own order with a scale spread for every 64 weights
//! (24); vpermi2w over one block's 32 indices (32); sign masks made by vptestmb of spread bytes
//! (29) or reloaded from memory (31); grid entries loaded one by one (24). Rejected for the 2048
//! entries of IQ1_S, where AVX2 loads entries one by one (20): the same look-ups (19), fields
//! loaded one by one into the same frame (16).

use std::arch::x86_64::*;

use super::blocks::of_each;
use super::super_block::{N as BLOCK, block_acts};
use crate::quant::activations::ActRow;
use crate::quant::codebooks::grid::CodebookGrid;
use crate::simd::x86::*;

/// A super-block's activations in the order of a [`GridOrder`].
pub(crate) type Turned = [[u8; 64]; 4];

/// An order of the 256 activations of a super-block, in which qword `i` of every vector belongs to
/// group `i`.
#[repr(align(64))]
pub(crate) struct GridOrder {
    /// The activation at each place.
    columns: Turned,
    /// Its number in its group, which is the bit of its sign among the group's 32.
    bits: Turned,
}

impl GridOrder {
    const fn new(columns: Turned) -> GridOrder {
        let mut bits = columns;
        let mut i = 0;
        while i < BLOCK {
            bits[i / 64][i % 64] %= 32;
            i += 1;
        }
        GridOrder { columns, bits }
    }
}

/// The order for entries of 8 values: vector `v` has run `v` of each group.
pub(crate) static EIGHTS: GridOrder = {
    let mut t = [[0; 64]; 4];
    let mut i = 0;
    while i < BLOCK {
        let (v, g, b) = (i / 64, i % 64 / 8, i % 8);
        t[v][i % 64] = (32 * g + 8 * v + b) as u8;
        i += 1;
    }
    GridOrder::new(t)
};

/// The order for entries of 4 values, whose fields come out of two tables: vectors 0 and 1 have the
/// first two values of entries 0..4 and 4..8 of each group, vectors 2 and 3 the other two.
pub(crate) static FOURS: GridOrder = {
    let mut t = [[0; 64]; 4];
    let mut i = 0;
    while i < BLOCK {
        let (v, g, b) = (i / 64, i % 64 / 8, i % 8);
        let entry = v % 2 * 4 + b / 2;
        t[v][i % 64] = (32 * g + 4 * entry + v / 2 * 2 + b % 2) as u8;
        i += 1;
    }
    GridOrder::new(t)
};

/// Super-blocks of activations that are reordered at a time. Even, so that pairs stay together.
const STRIP: usize = 32;

/// A strip of activations in order: the first super-block of each of `T` rows, then the second.
#[repr(align(64))]
struct Aligned<const T: usize>([[Turned; T]; STRIP]);

/// Up to [`STRIP`] super-blocks of `T` rows of activations, and the scales of each row.
type Strip<'a, const T: usize> = (&'a [[Turned; T]], [&'a [f32]; T]);

/// Calls `sum` for every row and strip; `sum` multiplies the strip's part of the row with that of
/// every token.
///
/// The strip is on the stack: so the stack is aligned to whole vectors, which constants without a
/// register are read from (in a vector of the heap, IQ2_S was 1.3 times slower).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
fn dot_strips<const BYTES: usize, const T: usize>(
    w: &[u8],
    stride: usize,
    x: [ActRow<'_>; T],
    mut out: [&mut [f32]; T],
    order: &GridOrder,
    sum: impl Fn(&[[u8; BYTES]], Strip<'_, T>) -> [__m512; T],
) {
    let count = x[0].n / BLOCK;
    let rows = out[0].len();
    let mut turned = Aligned([[[[0; 64]; 4]; T]; STRIP]);
    out.iter_mut().for_each(|out| out.fill(0.0));
    for start in (0..count).step_by(STRIP) {
        let part = start..count.min(start + STRIP);
        for (to, i) in turned.0.iter_mut().zip(part.clone()) {
            for (to, (q, ..)) in to.iter_mut().zip(block_acts(&x, i)) {
                turn(order, q, to);
            }
        }
        let strip = (&turned.0[..part.len()], of_each(&x, |x| &x.d[part.clone()]));
        for r in 0..rows {
            let row = w[r * stride..][..count * BYTES].as_chunks().0;
            let sums = sum(&row[part.clone()], strip);
            for (out, sum) in out.iter_mut().zip(sums) {
                out[r] += _mm512_reduce_add_ps(sum);
            }
        }
    }
}

/// The row kernel that takes one block at a time. `unpack` returns a block's scale, and what
/// multiplies it with activations: to 16 integers whose sum is the dot product divided by the scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn dot_rows<const BYTES: usize, const T: usize, M: Fn(&Turned) -> __m512i>(
    w: &[u8],
    stride: usize,
    x: [ActRow<'_>; T],
    out: [&mut [f32]; T],
    order: &GridOrder,
    unpack: impl Fn(&[u8; BYTES]) -> (f32, M),
) {
    let ahead = ahead_where_wanted();
    dot_strips(w, stride, x, out, order, |row, strip| {
        let mut acc = [_mm512_setzero_ps(); T];
        for (i, b) in row.iter().enumerate() {
            ask_for(b, ahead);
            add(&mut acc, strip, i, unpack(b));
        }
        acc
    })
}

/// The row kernel that takes two blocks at a time. `grids` looks up the grid bytes of both, `unpack`
/// gets those of one. The last block of an odd number is paired with itself.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn dot_rows_by_two<const BYTES: usize, const T: usize, M: Fn(&Turned) -> __m512i>(
    w: &[u8],
    stride: usize,
    x: [ActRow<'_>; T],
    out: [&mut [f32]; T],
    order: &GridOrder,
    grids: impl Fn([&[u8; BYTES]; 2]) -> [[__m512i; 4]; 2],
    unpack: impl Fn(&[u8; BYTES], [__m512i; 4]) -> (f32, M),
) {
    let ahead = ahead_where_wanted();
    dot_strips(w, stride, x, out, order, |row, strip| {
        let mut acc = [_mm512_setzero_ps(); T];
        for i in (0..row.len()).step_by(2) {
            let two = [&row[i], row.get(i + 1).unwrap_or(&row[i])];
            let grids = grids(two);
            for j in 0..2 {
                if i + j < row.len() {
                    ask_for(two[j], ahead);
                    add(&mut acc, strip, i + j, unpack(two[j], grids[j]));
                }
            }
        }
        acc
    })
}

/// Multiplies a block of scale `d` with super-block `i` of every token, and adds the 16 sums of each,
/// scaled, to `acc`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
fn add<const T: usize>(
    acc: &mut [__m512; T],
    (turned, scales): Strip<'_, T>,
    i: usize,
    (d, multiply): (f32, impl Fn(&Turned) -> __m512i),
) {
    for t in 0..T {
        let dot = _mm512_cvtepi32_ps(multiply(&turned[i][t]));
        acc[t] = _mm512_fmadd_ps(_mm512_set1_ps(d * scales[t][i]), dot, acc[t]);
    }
}

/// Prefetches what is to be multiplied after a block.
#[inline]
#[target_feature(enable = "avx2")]
fn ask_for<const BYTES: usize>(block: &[u8; BYTES], ahead: Option<usize>) {
    match ahead {
        Some(ahead) => prefetch_lines_l2(block, ahead),
        None => prefetch(block, AHEAD),
    }
}

/// Bytes from a block to what is prefetched, into the first-level cache, while it is multiplied.
const AHEAD: usize = 768;

/// Puts the activations of a super-block into `order`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
fn turn(order: &GridOrder, q: &[i8; BLOCK], to: &mut Turned) {
    let q: [__m512i; 4] = std::array::from_fn(|v| load_i8x64(&q.as_chunks().0[v]));
    for (from, to) in order.columns.iter().zip(to) {
        let from = load_u8x64(from);
        let (low, high) = (_mm512_permutex2var_epi8(q[0], from, q[1]), _mm512_permutex2var_epi8(q[2], from, q[3]));
        store_u8x64(to, _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(from), high));
    }
}

/// Turns fields into the grid bytes of entries of 8 values. The fields are those of two blocks:
/// each lane of 128 bits 8 indices of the first (4 of a group, 4 of the next), then 8 of the
/// second.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn eights<const N: usize>(grid: &CodebookGrid<u64, N>, [low, high]: [__m512i; 2]) -> [[__m512i; 4]; 2] {
    let values = load_u8x64(&grid.values);
    [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)].map(|fields| {
        std::array::from_fn(|v| {
            let first = _mm512_set1_epi64(0x0e0c_0a08_0604_0200);
            let at = _mm512_add_epi8(first, _mm512_set1_epi8(16 * v as i8));
            _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(at, fields), values)
        })
    })
}

/// Turns the fields of a block into the grid bytes of entries of 4 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn fours<const N: usize>(grid: &CodebookGrid<u32, N>, fields: [__m512i; 2]) -> [__m512i; 4] {
    let values = load_u8x64(&grid.values);
    std::array::from_fn(|v| {
        let first = _mm512_set1_epi64(0x1c18_1410_0c08_0400);
        let at = _mm512_add_epi8(first, _mm512_set1_epi8(v as i8 % 2 * 32));
        _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(at, fields[v / 2]), values)
    })
}

/// Multiplies grid bytes with activations and adds up as many parts as have their own scale: 1, or
/// 2 (halves of groups). The signs of group `i` are the low 32 bits of qword `i`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn signed_dots<const PARTS: usize>(
    order: &GridOrder,
    grid: [__m512i; 4],
    signs: __m512i,
    q: &Turned,
) -> [__m512i; PARTS] {
    let zero = _mm512_setzero_si512();
    let mut dots = [zero; PARTS];
    for v in 0..4 {
        let minus = _mm512_bitshuffle_epi64_mask(signs, load_u8x64(&order.bits[v]));
        let q = load_u8x64(&q[v]);
        let q = _mm512_mask_sub_epi8(q, minus, zero, q);
        let dot = &mut dots[v * PARTS / 4];
        *dot = _mm512_dpbusd_epi32(*dot, grid[v], q);
    }
    dots
}

/// Replaces the eighth bit of every byte of signs, so that the number of minuses is even.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn even_signs(v: __m512i) -> __m512i {
    static EVEN: [[u8; 64]; 2] = {
        let mut t = [[0; 64]; 2];
        let mut i = 0u8;
        while i < 128 {
            t[i as usize / 64][i as usize % 64] = i | (i.count_ones() as u8 & 1) << 7;
            i += 1;
        }
        t
    };
    _mm512_permutex2var_epi8(load_u8x64(&EVEN[0]), v, load_u8x64(&EVEN[1]))
}

/// Extracts 8 bits of every qword into each of its bytes. Byte `i` of `at` is the first bit for
/// byte `i`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn bits_at(v: __m512i, at: u64) -> __m512i {
    _mm512_multishift_epi64_epi8(_mm512_set1_epi64(at as i64), v)
}

/// Returns bits `at..at + 4` of every qword (bit 64 is bit 0) as the odd scale `2s + 1`, in both
/// dwords of the qword.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn scale_at(v: __m512i, at: u8) -> __m512i {
    odd(_mm512_multishift_epi64_epi8(_mm512_set1_epi8(at.wrapping_sub(1) as i8), v), 15)
}

/// Returns the scales of the halves of groups: bits 0..4 and 4..8 of each qword.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn scales_of_halves(v: __m512i) -> [__m512i; 2] {
    [scale_at(v, 0), scale_at(v, 4)]
}

/// Multiplies the sums of the halves of groups with their scales.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn scale_halves([first, second]: [__m512i; 2], scales: [__m512i; 2]) -> __m512i {
    _mm512_add_epi32(_mm512_mullo_epi32(first, scales[0]), _mm512_mullo_epi32(second, scales[1]))
}

/// Returns `2s + 1` in every dword, where `s` is in the bits `mask << 1` of `v`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn odd(v: __m512i, mask: i32) -> __m512i {
    // (v & mask) | 1
    _mm512_ternarylogic_epi32::<0b1111_1000>(_mm512_set1_epi32(1), v, _mm512_set1_epi32(2 * mask))
}

/// Widens 8 bytes to qwords.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn bytes_to_qwords(p: &[u8; 8]) -> __m512i {
    _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*p)))
}

/// Widens 8 dwords to qwords.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn dwords_to_qwords(p: &[u8; 32]) -> __m512i {
    _mm512_cvtepu32_epi64(load_u8x32(p))
}

/// Returns the f16 at the start of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bitalg,avx2,fma,f16c")]
pub(crate) fn f16_first<const BYTES: usize>(b: &[u8; BYTES]) -> f32 {
    f16_bits(u16::from_le_bytes([b[0], b[1]]))
}

/// Returns which bytes of two vectors of 64 bytes are their blocks' indices in the order of
/// [`eights`]. The first indices of consecutive groups are `run` bytes apart, the four of a group
/// `step` bytes.
pub(crate) const fn paired(run: usize, step: usize) -> [u8; 64] {
    let mut t = [0; 64];
    let mut i = 0;
    while i < 64 {
        let (block, group, l) = (i / 8 % 2, i / 16 * 2 + i / 4 % 2, i % 4);
        t[i] = (64 * block + run * group + step * l) as u8;
        i += 1;
    }
    t
}
