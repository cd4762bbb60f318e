//! AVX2 helpers of the super-block formats: they spread a sub-block's scale over the vector that it
//! multiplies. The shuffles are tables, one load each, so that no kernel depends on its loops being
//! unrolled.

use std::arch::x86_64::*;

use crate::simd::x86::load_u8x32;

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

/// Row `k`: i16 number `2k` of the lower lane over the lower lane, `2k + 1` of the upper over the
/// upper.
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

/// Returns unsigned byte `j` of `v` as sixteen equal i16. `v` must hold the same eight bytes four
/// times.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn spread_byte(v: __m256i, j: usize) -> __m256i {
    _mm256_shuffle_epi8(v, load_u8x32(&BYTE[j]))
}

/// Copies i16 number `2k` of `v` over the lower lane, `2k + 1` over the upper. Both lanes of `v`
/// must be equal.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn spread_pair(v: __m256i, k: usize) -> __m256i {
    _mm256_shuffle_epi8(v, load_u8x32(&PAIR[k]))
}

/// Returns a vector with the lower lane of `v` in both lanes, and one with the upper lane in both.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn lanes(v: __m256i) -> [__m256i; 2] {
    [_mm256_permute4x64_epi64::<0x44>(v), _mm256_permute4x64_epi64::<0xee>(v)]
}
