//! The AVX-512 row kernel of the K formats. A format brings the order of its codes and how it
//! unpacks a block.
//!
//! A block is four vectors of 64 codes. `vpdpbusd` multiplies each with its activations and leaves
//! sums of four products. These fit 16 bits, so two vectors are joined, (first, second) per lane,
//! and `vpdpwssd` multiplies them with both scales:
//! ```text
//! dot[lane] =   scale(0) * sum(0)[lane] + scale(1) * sum(1)[lane]
//!             + scale(2) * sum(2)[lane] + scale(3) * sum(3)[lane]
//! ```
//! The second of two vectors may hold its codes times 16, as they are in the upper half of a byte:
//! the shift that joins the vectors divides by 16. An offset of the codes is subtracted first, in
//! integers, as `offset * scale * sum of 16 activations`. The activations are put into the order of
//! the codes once per call. A block is unpacked once for all tokens, of which each has two sums.
//!
//! Rejected: four rows side by side that share loads and the unpacking of scales. From cache no
//! faster, from memory half as fast: a Zen 4 core's prefetchers follow one stream well and four
//! short ones badly.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::super_block::{N, block_acts};
use crate::quant::activations::ActRow;
use crate::simd::x86::*;

/// Bytes from what is multiplied to what is prefetched into the second-level cache. On two Zen 4
/// cores that share a fast memory, decode gains 5% (Q3_K) to 32% (Q6_K) over prefetching 1.5 or 2
/// KB ahead into the first level: there the prefetches occupy the few line buffers of a core. 3 KB
/// are worse than none, from 6 KB on nothing changes.
pub(crate) const AHEAD: usize = 6144;

/// A format of super-blocks, as a type, so that its order is known when the kernel is compiled.
pub(crate) trait SuperFormat {
    /// The order of its codes.
    const ORDER: CodeOrder;
}

/// The order of a format's codes in the four vectors of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodeOrder {
    /// The first weight of each half vector: the four vectors have two halves of 32 weights.
    pub(crate) halves: [[usize; 2]; 4],
    /// Weights that share a scale: 16 or 32.
    pub(crate) group: usize,
    /// The offset that is subtracted from the codes.
    pub(crate) offset: i8,
    /// Whether the second and the fourth vector hold their codes times 16.
    pub(crate) times_16: bool,
}

impl CodeOrder {
    /// Returns the numbers of the scales that the lanes of vectors `2 * p` and `2 * p + 1` are
    /// multiplied with.
    const fn scales(&self, p: usize) -> [i16; 32] {
        let mut t = [0; 32];
        let mut i = 0;
        while i < 32 {
            let (lane, second) = (i / 2, i % 2);
            t[i] = ((self.halves[2 * p + second][lane / 8] + lane % 8 * 4) / self.group) as i16;
            i += 1;
        }
        t
    }
}

/// The order of Q4_K and Q5_K: the low halves of two parts' bytes, then their high halves.
pub(crate) const ORDER_4: CodeOrder =
    CodeOrder { halves: [[0, 64], [32, 96], [128, 192], [160, 224]], group: 32, offset: 0, times_16: false };

/// The order of Q2_K and Q3_K: of the bytes of both halves the lowest two bits, bits 4 and 5, and
/// the two pairs between.
pub(crate) const ORDER_2: CodeOrder =
    CodeOrder { halves: [[0, 128], [64, 192], [32, 160], [96, 224]], group: 16, offset: 0, times_16: true };

/// Unpacks the first 16 bytes of a block of Q4_K or Q5_K: the 8 scales, followed by the 8 minimums.
/// AVX-512 version of [`scales_and_mins`](super::super_block::scales_and_mins).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
pub(crate) fn scales_and_mins_16x16(b: &[u8; 16]) -> (__m256i, Option<__m256i>) {
    let b = load_u8x16(b);
    let low = _mm_srlv_epi32(_mm_shuffle_epi32::<0b11_10_11_01>(b), _mm_setr_epi32(0, 0, 0, 4)); // s, low, m, low
    let high = _mm_srli_epi32::<2>(_mm_shuffle_epi32::<0b10_10_01_01>(b)); // s, s, m, m
    let low = _mm_and_si128(low, _mm_set1_epi64x(0x0f0f_0f0f_3f3f_3f3f));
    let both = _mm_or_si128(low, _mm_and_si128(high, _mm_set1_epi64x(0x3030_3030_0000_0000)));
    let both = _mm256_cvtepu8_epi16(both);
    (both, Some(both))
}

/// A super-block of activations in a format's order.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct OrderedActs {
    /// The activations in the order of the codes.
    q: [[i8; 64]; 4],
    /// The factors of scales or minimums. For a format with an offset: the sum of every 16
    /// activations times the offset (half the offset from 32 on, so that it fits). For one without:
    /// the sum of every 16, which minimums are multiplied with; where 32 share a minimum, eight
    /// zeros and the sums of 32, since the minimums then follow eight scales.
    sums: [i16; 16],
    /// Their scale.
    d: f32,
}

thread_local! {
    /// Super-blocks of `T` rows of activations: the first of every row, then the second of every row.
    static ORDERED: RefCell<Vec<OrderedActs>> = const { RefCell::new(Vec::new()) };
}

/// The row kernel. `codes` unpacks a block into four vectors. `scales` returns its 16 scales (or
/// fewer) and, if it has minimums, the vector that is multiplied with [`OrderedActs::sums`], all
/// i16. `factors` returns the f16 factor of the scales and, in the upper half, that of the
/// minimums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(crate) fn dot_rows<L: SuperFormat, const BYTES: usize, const T: usize>(
    (w, stride, x, mut out): (&[u8], usize, [ActRow<'_>; T], [&mut [f32]; T]),
    factors: impl Fn(&[u8; BYTES]) -> u32,
    scales: impl Fn(&[u8; BYTES]) -> (__m256i, Option<__m256i>),
    codes: impl Fn(&[u8; BYTES]) -> [__m512i; 4],
) {
    let wanted = [load_i16x32(const { &L::ORDER.scales(0) }), load_i16x32(const { &L::ORDER.scales(1) })];
    let (bytes, rows) = (x[0].n / N * BYTES, out[0].len());
    let mut columns = ORDERED.take();
    set_ordered::<L, T>(&x, &mut columns);
    // Four rows at a time, because four sums over lanes cost little more than one.
    for first in (0..rows).step_by(4) {
        let count = (rows - first).min(4);
        let mut sums = [[_mm512_setzero_ps(); 4]; T];
        let mut less = [[_mm256_setzero_ps(); 4]; T];
        for r in 0..count {
            let row = &w[(first + r) * stride..][..bytes];
            let (mut sum, mut sum_less) = ([_mm512_setzero_ps(); T], [_mm256_setzero_ps(); T]);
            for (block, columns) in row.as_chunks::<BYTES>().0.iter().zip(columns.as_chunks::<T>().0) {
                prefetch_lines_l2(block, AHEAD);
                let (scales, mins) = scales(block);
                let codes = codes(block);
                let wide = _mm512_castsi256_si512(scales);
                let by = [_mm512_permutexvar_epi16(wanted[0], wide), _mm512_permutexvar_epi16(wanted[1], wide)];
                let f = _mm_cvtph_ps(_mm_cvtsi32_si128(factors(block) as i32));
                for (t, x) in columns.iter().enumerate() {
                    let f = _mm_mul_ps(f, _mm_set1_ps(x.d));
                    let dot = _mm512_cvtepi32_ps(dot::<L>(x, scales, by, codes));
                    sum[t] = _mm512_fmadd_ps(dot, _mm512_broadcastss_ps(f), sum[t]);
                    if let Some(mins) = mins {
                        let min = _mm256_cvtepi32_ps(_mm256_madd_epi16(mins, load_i16x16(&x.sums)));
                        let f = _mm256_broadcastss_ps(_mm_movehdup_ps(f));
                        sum_less[t] = _mm256_fmadd_ps(min, f, sum_less[t]);
                    }
                }
            }
            for t in 0..T {
                (sums[t][r], less[t][r]) = (sum[t], sum_less[t]);
            }
        }
        for (t, out) in out.iter_mut().enumerate() {
            out[first..first + count].copy_from_slice(&sum_rows(sums[t], less[t])[..count]);
        }
    }
    ORDERED.set(columns);
}

/// The product of a block's codes and a super-block of activations, in 16 parts. `scales` are those
/// of the block, and `by` those that each lane of the codes is multiplied with.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot<L: SuperFormat>(x: &OrderedActs, scales: __m256i, by: [__m512i; 2], codes: [__m512i; 4]) -> __m512i {
    let zero = _mm512_setzero_si512();
    let lower = _mm512_set1_epi32(0xffff);
    let mut dot = zero;
    if L::ORDER.offset != 0 {
        let offset = _mm256_madd_epi16(scales, load_i16x16(&x.sums));
        let offset = if L::ORDER.offset < 32 { offset } else { _mm256_add_epi32(offset, offset) };
        dot = _mm512_zextsi256_si512(offset);
    }
    for p in 0..2 {
        let first = _mm512_dpbusd_epi32(zero, codes[2 * p], load_i8x64(&x.q[2 * p]));
        let second = _mm512_dpbusd_epi32(zero, codes[2 * p + 1], load_i8x64(&x.q[2 * p + 1]));
        let second = if L::ORDER.times_16 { _mm512_slli_epi32::<12>(second) } else { _mm512_slli_epi32::<16>(second) };
        let both = _mm512_ternarylogic_epi32::<0xca>(lower, first, second);
        dot = _mm512_dpwssd_epi32(dot, both, by[p]);
    }
    dot
}

/// Puts rows of activations into the order of a format.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn set_ordered<L: SuperFormat, const T: usize>(x: &[ActRow<'_>; T], to: &mut Vec<OrderedActs>) {
    to.resize(x[0].n / N * T, OrderedActs { q: [[0; 64]; 4], sums: [0; 16], d: 0.0 });
    let offset = L::ORDER.offset;
    for (i, to) in to.iter_mut().enumerate() {
        let [(q, d, sums)] = block_acts(&[x[i % T]], i / T);
        to.d = d;
        for v in 0..4 {
            for h in 0..2 {
                let at = L::ORDER.halves[v][h];
                to.q[v][32 * h..32 * h + 32].copy_from_slice(&q[at..at + 32]);
            }
        }
        let sums = load_i16x16(sums);
        if offset == 0 && L::ORDER.group == 32 {
            let pairs = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
            let zero = _mm_setzero_si128();
            store_i16x16(&mut to.sums, _mm256_set_m128i(_mm256_cvtepi32_epi16(pairs), zero));
            continue;
        }
        let times = if offset == 0 { 1 } else { -(offset as i16) / if offset < 32 { 1 } else { 2 } };
        store_i16x16(&mut to.sums, _mm256_mullo_epi16(sums, _mm256_set1_epi16(times)));
    }
}

/// Returns the two halves of a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn halves(v: __m512) -> [__m256; 2] {
    [_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)]
}

/// Sums the lanes of each of four vectors, less the lanes of its partner in `less`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2")]
fn sum_rows(v: [__m512; 4], less: [__m256; 4]) -> [f32; 4] {
    let mut t = less;
    for r in 0..4 {
        let [lo, hi] = halves(v[r]);
        t[r] = _mm256_add_ps(lo, _mm256_sub_ps(hi, less[r]));
    }
    let two = |a, b| _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (ab, cd) = (two(t[0], t[1]), two(t[2], t[3]));
    let all = _mm256_add_ps(_mm256_shuffle_ps::<0b01_00_01_00>(ab, cd), _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd));
    let all = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
    let mut out = [0.0; 4];
    store_f32x4(&mut out, all);
    out
}
