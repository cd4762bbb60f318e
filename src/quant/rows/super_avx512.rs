//! A row of super-blocks times a row of activations on AVX-512: the frame of the K formats.
//!
//! ```text
//! A block is four vectors of 64 codes. Each meets its activations in `vpdpbusd`, which leaves sums of four products:
//! they fit 16 bits, so two vectors are joined, (first, second) to a lane, and `vpdpwssd` multiplies with both scales:
//! dot[lane] = scale(first) * first[lane] + scale(second) * second[lane] + the same of the other two vectors
//! ```
//! A format says what order its codes come in, how a block becomes four vectors, and what its scales are. The second of
//! two vectors may hold its codes times 16, as they stand in the upper half of a byte: the shift that joins takes it off.
//! An offset of the codes is taken off as `offset * scale * sum of 16 activations`, in integers, before anything else.
//! Activations are put into that order once per call.
//!
//! Rejected: four rows side by side that share loads and the unpacking of scales. From cache no faster, from memory half
//! as fast: a Zen 4 core's prefetchers follow one stream well and four short ones badly.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::super_block::N;
use crate::quant::activations::ActRow;
use crate::simd::x86::*;

/// Bytes from what is computed to what is asked of memory, into the second-level cache. On two Zen 4 cores that share a
/// fast memory, decode gains 5% (Q3_K) to 32% (Q6_K) over asking for 1.5 or 2 KB ahead into the first level: there the
/// requests take the few places that a core has for lines under way. 3 KB are worse than none, from 6 KB on all is alike.
pub(crate) const AHEAD: usize = 6144;

/// A format, known when the frame is compiled.
pub(crate) trait SuperFormat {
    /// How its codes lie.
    const ORDER: CodeOrder;
}

/// How a format's codes lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodeOrder {
    /// The first weights of the two halves, of 32 weights each, of the four vectors.
    pub(crate) halves: [[usize; 2]; 4],
    /// Weights that share a scale: 16 or 32.
    pub(crate) group: usize,
    /// What is taken off the codes.
    pub(crate) offset: i8,
    /// Whether the second and the fourth vector are 16 times their codes.
    pub(crate) times_16: bool,
}

impl CodeOrder {
    /// Which scales (16 to a row, i16) the lanes of vectors `2 * p` and `2 * p + 1` want, of the first of two rows.
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

/// The vectors of Q4_K and Q5_K: two parts' low halves, then their high halves.
pub(crate) const ORDER_4: CodeOrder =
    CodeOrder { halves: [[0, 64], [32, 96], [128, 192], [160, 224]], group: 32, offset: 0, times_16: false };

/// The vectors of Q2_K and Q3_K, both halves' bytes: the lowest two bits, bits 4 and 5, and the two between them.
pub(crate) const ORDER_2: CodeOrder =
    CodeOrder { halves: [[0, 128], [64, 192], [32, 160], [96, 224]], group: 16, offset: 0, times_16: true };

/// The first 16 bytes of Q4_K and Q5_K: as [`super::super_block::scales_and_mins`], the 8 scales and after
/// them the 8 minimums.
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

/// A super-block of activations as the frame wants it.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct OrderedActs {
    /// In the order of the codes.
    q: [[i8; 64]; 4],
    /// What stands beside the scales: for an offset, so many times the sum of every 16 (half as many from 32 on, to fit).
    /// Without one, what minimums are multiplied with: the sum of every 16 or, where 32 share one, eight zeros and the sums
    /// of 32, since the minimums then stand after eight scales.
    sums: [i16; 16],
}

thread_local! {
    static ORDERED: RefCell<Vec<OrderedActs>> = const { RefCell::new(Vec::new()) };
}

/// The kernel. `codes` unpacks a block into four vectors; `scales` its 16 scales (or fewer) and, where there are any, what
/// is multiplied with [`OrderedActs::sums`], all i16; `factors` gives the f16 factor of the scales and above it that of the
/// minimums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(crate) fn dot_rows<L: SuperFormat, const BYTES: usize>(
    (w, stride, x, out): (&[u8], usize, ActRow<'_>, &mut [f32]),
    factors: impl Fn(&[u8; BYTES]) -> u32,
    scales: impl Fn(&[u8; BYTES]) -> (__m256i, Option<__m256i>),
    codes: impl Fn(&[u8; BYTES]) -> [__m512i; 4],
) {
    let zero = _mm512_setzero_si512();
    let lower = _mm512_set1_epi32(0xffff);
    let wanted = [load_i16x32(const { &L::ORDER.scales(0) }), load_i16x32(const { &L::ORDER.scales(1) })];
    let dot = |block: &[u8; BYTES], columns: &OrderedActs| {
        let (scales, mins) = scales(block);
        let codes = codes(block);
        let sums = load_i16x16(&columns.sums);
        let mut dot = zero;
        if L::ORDER.offset != 0 {
            let offset = _mm256_madd_epi16(scales, sums);
            let offset = if L::ORDER.offset < 32 { offset } else { _mm256_add_epi32(offset, offset) };
            dot = _mm512_zextsi256_si512(offset);
        }
        for p in 0..2 {
            let first = _mm512_dpbusd_epi32(zero, codes[2 * p], load_i8x64(&columns.q[2 * p]));
            let second = _mm512_dpbusd_epi32(zero, codes[2 * p + 1], load_i8x64(&columns.q[2 * p + 1]));
            let second =
                if L::ORDER.times_16 { _mm512_slli_epi32::<12>(second) } else { _mm512_slli_epi32::<16>(second) };
            let both = _mm512_ternarylogic_epi32::<0xca>(lower, first, second);
            let scales = _mm512_permutexvar_epi16(wanted[p], _mm512_castsi256_si512(scales));
            dot = _mm512_dpwssd_epi32(dot, both, scales);
        }
        (dot, mins.map(|mins| _mm256_madd_epi16(mins, sums)))
    };
    ORDERED.with_borrow_mut(|columns| {
        set_ordered::<L>(x, columns);
        // Four rows at a time, because four sums over lanes cost little more than one.
        for (i, out) in out.chunks_mut(4).enumerate() {
            let mut sums = [_mm512_setzero_ps(); 4];
            let mut less = [_mm256_setzero_ps(); 4];
            for r in 0..out.len() {
                let row = &w[(4 * i + r) * stride..][..x.n / N * BYTES];
                let (mut sum, mut sum_less) = (_mm512_setzero_ps(), _mm256_setzero_ps());
                for ((block, columns), &d) in row.as_chunks::<BYTES>().0.iter().zip(&*columns).zip(x.d) {
                    for line in 0..BYTES.div_ceil(64) {
                        prefetch_l2(block, AHEAD + 64 * line);
                    }
                    let (dot, min) = dot(block, columns);
                    let f = _mm_cvtph_ps(_mm_cvtsi32_si128(factors(block) as i32));
                    let f = _mm_mul_ps(f, _mm_set1_ps(d));
                    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_broadcastss_ps(f), sum);
                    if let Some(min) = min {
                        let f = _mm256_broadcastss_ps(_mm_movehdup_ps(f));
                        sum_less = _mm256_fmadd_ps(_mm256_cvtepi32_ps(min), f, sum_less);
                    }
                }
                (sums[r], less[r]) = (sum, sum_less);
            }
            for (out, sum) in out.iter_mut().zip(sum_rows(sums, less)) {
                *out = sum;
            }
        }
    });
}

/// Lays the activations out.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn set_ordered<L: SuperFormat>(x: ActRow<'_>, to: &mut Vec<OrderedActs>) {
    to.resize(x.n / N, OrderedActs { q: [[0; 64]; 4], sums: [0; 16] });
    let offset = L::ORDER.offset;
    for ((to, q), sums) in to.iter_mut().zip(x.q.as_chunks::<N>().0).zip(x.sums.as_chunks::<16>().0) {
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

/// The two halves.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn halves(v: __m512) -> [__m256; 2] {
    [_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)]
}

/// The sums over the lanes of four vectors, each less those of another.
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
