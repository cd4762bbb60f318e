//! Blocks of 32 codes as rows of a KV cache: how values become codes, and codes values again.
//!
//! ```text
//! scale alone      d = (value of largest magnitude) / -half      code = min(x / d + half + 0.5, top)
//! scale, minimum   d = (max - min) / top                         code = min((x - min) / d + 0.5, top)
//! ```
//! `top` is 15 or 31, `half` 8 or 16; codes are cut to whole numbers. The scale is rounded to f16
//! for storage, the division uses the exact one. The operations and their order are those of ggml
//! (ggml-quants.c `quantize_row_q4_0_ref` and its siblings), none of them fused, so that blocks are
//! bit-equal to its own. The code is plain: it is compiled for AVX2 too, where the compiler
//! vectorises it.
//!
//! Decoding has a vector form for AVX2 and one for AVX-512; a format brings how it unpacks a block.

use super::blocks::put_f16;

/// Values in a block.
const BLOCK: usize = 32;

/// The value of largest magnitude, the first of equals; 0 where none is above 0. A NaN counts for
/// nothing.
#[inline(always)]
pub(crate) fn largest(x: &[f32; BLOCK]) -> f32 {
    let mut lanes = [0f32; 8];
    for part in x.as_chunks::<8>().0 {
        for (most, v) in lanes.iter_mut().zip(part) {
            *most = if v.abs() > *most { v.abs() } else { *most };
        }
    }
    let most = lanes.iter().fold(0f32, |m, &v| if v > m { v } else { m });
    if most == 0.0 {
        return 0.0;
    }
    x.iter().copied().find(|v| v.abs() == most).unwrap_or(0.0)
}

/// The least and the largest value, each the first of equals, which tells zeros of both signs
/// apart. A NaN counts for nothing.
#[inline(always)]
pub(crate) fn range(x: &[f32; BLOCK]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::MAX; 8], [f32::MIN; 8]);
    for part in x.as_chunks::<8>().0 {
        for ((low, high), &v) in low.iter_mut().zip(&mut high).zip(part) {
            *low = if v < *low { v } else { *low };
            *high = if v > *high { v } else { *high };
        }
    }
    let low = low.iter().fold(f32::MAX, |m, &v| if v < m { v } else { m });
    let high = high.iter().fold(f32::MIN, |m, &v| if v > m { v } else { m });
    let first = |of: f32| if of == 0.0 { x.iter().copied().find(|v| *v == 0.0).unwrap_or(of) } else { of };
    (first(low), first(high))
}

/// 1 / d, or 0 for a scale of 0.
#[inline(always)]
pub(crate) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The codes from 0 to `top` of a block with a scale alone, which it writes as f16 to the block's
/// first bytes.
#[inline(always)]
pub(crate) fn signed_codes(x: &[f32; BLOCK], top: i32, block: &mut [u8]) -> [u8; BLOCK] {
    let half = (top + 1) as f32 / 2.0;
    let d = largest(x) / -half;
    let by = inverse(d);
    put_f16(block, 0, d);
    let mut codes = [0; BLOCK];
    for (code, v) in codes.iter_mut().zip(x) {
        *code = ((v * by + (half + 0.5)) as i32).clamp(0, top) as u8;
    }
    codes
}

/// The codes from 0 to `top` of a block with a scale and a minimum, which it writes as f16 to the
/// block's first bytes.
#[inline(always)]
pub(crate) fn min_codes(x: &[f32; BLOCK], top: i32, block: &mut [u8]) -> [u8; BLOCK] {
    let (min, max) = range(x);
    let d = (max - min) / top as f32;
    let by = inverse(d);
    put_f16(block, 0, d);
    put_f16(block, 2, min);
    let mut codes = [0; BLOCK];
    for (code, v) in codes.iter_mut().zip(x) {
        *code = (((v - min) * by + 0.5) as i32).clamp(0, top) as u8;
    }
    codes
}

/// Writes the lower four bits of every code: code `j` to the low nibble of byte `j`, code `j + 16`
/// to the high one.
#[inline(always)]
pub(crate) fn put_nibbles(codes: &[u8; BLOCK], to: &mut [u8]) {
    let (low, high) = codes.split_at(16);
    for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
        *to = (low & 15) | high << 4;
    }
}

/// Writes the fifth bit of every code: that of code `i` to bit `i`.
#[inline(always)]
pub(crate) fn put_fifth_bits(codes: &[u8; BLOCK], to: &mut [u8]) {
    for (to, codes) in to.iter_mut().zip(codes.as_chunks::<8>().0) {
        *to = codes.iter().enumerate().fold(0, |bits, (i, code)| bits | (code >> 4 & 1) << i);
    }
}

/// What the vector forms of [`cache_format`] take of a block: 32 signed codes, the scale, and the
/// minimum where the format has one.
#[cfg(target_arch = "x86_64")]
pub(crate) type Unpacked = (std::arch::x86_64::__m256i, std::arch::x86_64::__m256, Option<std::arch::x86_64::__m256>);

/// Decodes blocks by AVX2: `scale * code`, and then `+ min`, each rounded as the scalar form does.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn decode_avx2<const BYTES: usize>(
    blocks: &[u8],
    out: &mut [f32],
    unpack: impl Fn(&[u8; BYTES]) -> Unpacked,
) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    for (b, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let (codes, scale, min) = unpack(b);
        let (low, high) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
        let eights = [low, _mm_srli_si128::<8>(low), high, _mm_srli_si128::<8>(high)];
        for (codes, out) in eights.into_iter().zip(out.as_chunks_mut::<8>().0) {
            let v = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale);
            store_f32x8(out, if let Some(min) = min { _mm256_add_ps(v, min) } else { v });
        }
    }
}

/// Decodes blocks by AVX-512: see [`decode_avx2`], but 16 values at a time.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) fn decode_avx512<const BYTES: usize>(
    blocks: &[u8],
    out: &mut [f32],
    unpack: impl Fn(&[u8; BYTES]) -> Unpacked,
) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    for (b, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let (codes, scale, min) = unpack(b);
        let scale = _mm512_broadcast_f32x8(scale);
        let min = min.map(|min| _mm512_broadcast_f32x8(min));
        let halves = [_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes)];
        for (codes, out) in halves.into_iter().zip(out.as_chunks_mut::<16>().0) {
            let v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale);
            store_f32x16(out, if let Some(min) = min { _mm512_add_ps(v, min) } else { v });
        }
    }
}

/// Declares `$name`, a [`CacheFormat`](crate::quant::types::CacheFormat) of blocks of 32 codes, from
/// the plain `encode` and `dequant` of the file and from `$unpack`, which unpacks a block of `$bytes`
/// bytes by AVX2 ([`Unpacked`]).
macro_rules! cache_format {
    ($name:ident, $bytes:ident, $unpack:expr) => {
        const $name: crate::quant::types::CacheFormat = crate::quant::types::CacheFormat {
            encode: &[
                #[cfg(target_arch = "x86_64")]
                (crate::simd::Isa::Avx2, encode_avx2),
                (crate::simd::Isa::Scalar, encode),
            ],
            decode: &[
                #[cfg(target_arch = "x86_64")]
                (crate::simd::Isa::Avx512, decode_avx512),
                #[cfg(target_arch = "x86_64")]
                (crate::simd::Isa::Avx2, decode_avx2),
                (crate::simd::Isa::Scalar, dequant),
            ],
            floats: None,
        };

        /// AVX2 version of [`encode`], with the same bits.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,f16c")]
        fn encode_avx2(x: &[f32], out: &mut [u8]) {
            encode(x, out);
        }

        /// AVX2 version of [`dequant`], with the same bits.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn decode_avx2(blocks: &[u8], out: &mut [f32]) {
            crate::quant::rows::small_cache::decode_avx2::<$bytes>(blocks, out, $unpack);
        }

        /// AVX-512 version of [`dequant`], with the same bits.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn decode_avx512(blocks: &[u8], out: &mut [f32]) {
            crate::quant::rows::small_cache::decode_avx512::<$bytes>(blocks, out, $unpack);
        }
    };
}
pub(crate) use cache_format;
