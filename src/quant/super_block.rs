//! What the formats of 256 weights to a super-block share: pairing blocks with activations, the 6-bit scales of Q4_K
//! and Q5_K, and spreading a sub-block's scale over the vector that it multiplies.

use super::ActRow;
use super::lanes::Lanes;
use super::tile::Half;

/// Weights in a super-block.
pub(super) const N: usize = 256;

/// Activations per super-block of a `Act::Q8K` row: 256 values, their scale, and their sum over every 16.
#[inline]
pub(super) fn acts(x: ActRow<'_>) -> impl Iterator<Item = (&[i8; N], f32, &[i16; N / 16])> {
    let blocks = x.q.as_chunks().0.iter().zip(x.d).zip(x.sums.as_chunks().0);
    blocks.map(|((q, &d), sums)| (q, d, sums))
}

/// The eight scales and the eight minimums of Q4_K and Q5_K, 6 bits each, one to a byte of the two results.
///
/// ```text
/// byte 0..4    scale j: bits 0..6              high bits of scale 4+j: bits 6..8     (j = byte)
/// byte 4..8    min j:   bits 0..6              high bits of min 4+j:   bits 6..8     (j = byte - 4)
/// byte 8..12   low bits of scale 4+j: 0..4     low bits of min 4+j: bits 4..8        (j = byte - 8)
/// ```
#[inline]
pub(super) fn scales_and_mins(b: &[u8; 12]) -> [u64; 2] {
    let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let (s, m, low) = (word(0), word(4), word(8));
    let scales = (low & 0x0f0f_0f0f) | (s >> 2 & 0x3030_3030);
    let mins = (low >> 4 & 0x0f0f_0f0f) | (m >> 2 & 0x3030_3030);
    [(s & 0x3f3f_3f3f) as u64 | (scales as u64) << 32, (m & 0x3f3f_3f3f) as u64 | (mins as u64) << 32]
}

/// The same for the panels of 16 rows, and times the factors d and dmin that stand before the 12 bytes.
#[inline(always)]
pub(super) fn scales_and_mins_16<V: Lanes>([d, s, m, low]: [V; 4], out: &mut Half<'_>) {
    let (d, dmin) = (Factor::new(d.f16_to_f32()), Factor::new(d.shr(16).f16_to_f32()));
    let scales = [d.times(s.mask(0x3f3f_3f3f)), d.times(low.mask(0x0f0f_0f0f).or(s.shr(2).mask(0x3030_3030)))];
    let mins =
        [dmin.times(m.mask(0x3f3f_3f3f)), dmin.times(low.shr(4).mask(0x0f0f_0f0f).or(m.shr(2).mask(0x3030_3030)))];
    for j in 0..8 {
        out.scale(j, scales[j / 4][j % 4]);
        out.min(j, mins[j / 4][j % 4]);
    }
}

/// A factor of 16 rows (f32), ready to be multiplied with four integers that stand in one word. Each stays where it
/// stands, so it is an integer 256 to the power of `j` too large, and the factor is as much smaller: both exactly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor<V>([V; 4]);

impl<V: Lanes> Factor<V> {
    /// From the factor, f32.
    #[inline(always)]
    pub(super) fn new(d: V) -> Factor<V> {
        let part = d.splat((1.0f32 / 256.0).to_bits());
        let (d1, d2) = (d.mul_f32(part), d.mul_f32(part).mul_f32(part));
        Factor([d, d1, d2, d2.mul_f32(part)])
    }

    /// The four bytes of a word, all below 128, times the factor.
    #[inline(always)]
    pub(super) fn times(&self, bytes: V) -> [V; 4] {
        [
            bytes.mask(0xff).to_f32().mul_f32(self.0[0]),
            bytes.mask(0xff00).to_f32().mul_f32(self.0[1]),
            bytes.mask(0xff_0000).to_f32().mul_f32(self.0[2]),
            bytes.mask(0xff00_0000).to_f32().mul_f32(self.0[3]),
        ]
    }

    /// The four signed bytes of a word times the factor.
    #[inline(always)]
    pub(super) fn times_signed(&self, bytes: V) -> [V; 4] {
        [
            bytes.shl(24).to_f32().mul_f32(self.0[3]),
            bytes.shl(16).mask(0xff00_0000).to_f32().mul_f32(self.0[3]),
            bytes.shl(8).mask(0xff00_0000).to_f32().mul_f32(self.0[3]),
            bytes.mask(0xff00_0000).to_f32().mul_f32(self.0[3]),
        ]
    }
}

/// Bit `from` of every byte, moved to bit `to`.
#[inline(always)]
pub(super) fn bit<V: Lanes>(v: V, from: usize, to: usize) -> V {
    let moved = if from < to { v.shl((to - from) as u32) } else { v.shr((from - to) as u32) };
    moved.mask(0x0101_0101 << to)
}

/// Spreads a scale over a vector. The shuffles are tables, one load each, so that no kernel depends on its loops being
/// unrolled.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use crate::quant::super_rows::Order;
    use crate::simd::x86::{load_u8x16, load_u8x32};
    use std::arch::x86_64::*;

    /// Row `j`: byte `j` of each lane as an i16, sixteen times (an index of 0x80 gives zero).
    static BYTE: [[u8; 32]; 8] = {
        let mut t = [[0x80; 32]; 8];
        let mut i = 0;
        while i < 8 * 16 {
            t[i / 16][i % 16 * 2] = i as u8 / 16;
            i += 1;
        }
        t
    };

    /// Row `k`: i16 number `2k` of the lower lane over the lower lane, `2k + 1` of the upper over the upper.
    static PAIR: [[u8; 32]; 4] = {
        let mut t = [[0; 32]; 4];
        let mut i = 0;
        while i < 4 * 32 {
            let (k, lane, odd) = (i / 32, i % 32 / 16, i % 2);
            t[k][i % 32] = (2 * (2 * k + lane) + odd) as u8;
            i += 1;
        }
        t
    };

    /// Unsigned byte `j` of `v`, which holds the same eight bytes four times, as sixteen i16.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn spread_byte(v: __m256i, j: usize) -> __m256i {
        _mm256_shuffle_epi8(v, load_u8x32(&BYTE[j]))
    }

    /// Of `v`, which holds the same eight i16 in both lanes: number `2k` over the lower lane, `2k + 1` over the upper.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn spread_pair(v: __m256i, k: usize) -> __m256i {
        _mm256_shuffle_epi8(v, load_u8x32(&PAIR[k]))
    }

    /// The lower lane of `v` in both lanes, and the upper lane in both.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn lanes(v: __m256i) -> [__m256i; 2] {
        [_mm256_permute4x64_epi64::<0x44>(v), _mm256_permute4x64_epi64::<0xee>(v)]
    }

    /// The vectors of Q4_K and Q5_K: two parts' low halves, then their high halves.
    pub(in crate::quant) const ORDER_4: Order =
        Order { halves: [[0, 64], [32, 96], [128, 192], [160, 224]], group: 32, offset: 0, times_16: false };

    /// The vectors of Q2_K and Q3_K, both halves' bytes: the lowest two bits, bits 4 and 5, and the two between them.
    pub(in crate::quant) const ORDER_2: Order =
        Order { halves: [[0, 128], [64, 192], [32, 160], [96, 224]], group: 16, offset: 0, times_16: true };

    /// The first 16 bytes of Q4_K and Q5_K: as [`super::scales_and_mins`], the 8 scales and after
    /// them the 8 minimums.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    pub(in crate::quant) fn scales_and_mins_16x16(b: &[u8; 16]) -> (__m256i, Option<__m256i>) {
        let b = load_u8x16(b);
        let low = _mm_srlv_epi32(_mm_shuffle_epi32::<0b11_10_11_01>(b), _mm_setr_epi32(0, 0, 0, 4)); // s, low, m, low
        let high = _mm_srli_epi32::<2>(_mm_shuffle_epi32::<0b10_10_01_01>(b)); // s, s, m, m
        let low = _mm_and_si128(low, _mm_set1_epi64x(0x0f0f_0f0f_3f3f_3f3f));
        let both = _mm_or_si128(low, _mm_and_si128(high, _mm_set1_epi64x(0x3030_3030_0000_0000)));
        let both = _mm256_cvtepu8_epi16(both);
        (both, Some(both))
    }
}
