//! What the codebook formats (IQ1, IQ2, IQ3) share: a super-block as plain integers for the scalar truth, and the pieces
//! of the AVX2 kernels and the panels.
//!
//! ```text
//! w[i] = d * scale[i / 16] * q[i]     d holds the fraction of the format: f16 / 8, f16 / 4 or f16
//! q[i] = +-grid byte                  |q| <= 62, scale <= 31: every product is exact in f32, whatever its order
//! ```
//! The AVX2 kernels unpack a few super-blocks ahead (grid indices, sign bytes, scales), then loop over groups of 32
//! weights: grid entries looked up one by one, the signs moved to the activations, `maddubs`, `madd` with the scale; exact
//! integers up to the super-block's end.
//!
//! Measured on one Zen 4 core, rows in cache: 20 billion weights a second for IQ2_XXS and IQ1_S, 17 for the others of 8
//! to an entry, 12 to 14 for IQ3. Left: super-blocks unpacked one at a time (1.1 to 1.3 times slower), and all groups in
//! one run of code (1.1 to 1.6 times; see `dot_rows` and `index`).

use super::lanes::{Block, Lanes};
use super::super_block::{N as BLOCK, acts};
use super::tile::Half;
use super::{ActRow, Rng, put_f16, rows};

/// A super-block as integers.
pub(super) struct Super {
    pub(super) d: f32,
    pub(super) scale: [i32; 16],
    pub(super) q: [i8; BLOCK],
}

/// Decodes whole blocks of `BYTES` bytes.
pub(super) fn dequant<const BYTES: usize>(unpack: fn(&[u8; BYTES]) -> Super, blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let s = unpack(b);
        for (i, (o, &q)) in o.iter_mut().zip(&s.q).enumerate() {
            *o = s.d * s.scale[i / 16] as f32 * q as f32;
        }
    }
}

/// The scalar dot product: an exact integer per super-block, f64 across them.
pub(super) fn dot<const BYTES: usize>(
    unpack: fn(&[u8; BYTES]) -> Super,
    w: &[u8],
    stride: usize,
    x: ActRow<'_>,
    out: &mut [f32],
) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
        let mut sum = 0f64;
        for (b, (q, d, _)) in row.as_chunks::<BYTES>().0.iter().zip(acts(x)) {
            let s = unpack(b);
            let dots = s.q.as_chunks::<16>().0.iter().zip(q.as_chunks::<16>().0);
            let dots = dots.map(|(w, q)| w.iter().zip(q).map(|(&w, &q)| w as i32 * q as i32).sum::<i32>());
            let dot: i32 = dots.zip(&s.scale).map(|(dot, scale)| dot * scale).sum();
            sum += s.d as f64 * d as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

/// Random bytes (any are valid) with the f16 scale at `at` drawn around `1 / rms`.
pub(super) fn random(rng: &mut Rng, block: &mut [u8], at: usize, rms: f32) {
    rng.fill(block);
    put_f16(block, at, (0.5 + rng.unit()) / rms);
}

/// The 8 signs (a set bit is minus) of a field of 7: the eighth makes the number of minuses even.
pub(super) fn even_signs(field: u32) -> u8 {
    let seven = field & 127;
    (seven | (seven.count_ones() & 1) << 7) as u8
}

/// The 8 bytes of a grid entry with their signs.
pub(super) fn signed(grid: u64, signs: u8) -> [i8; 8] {
    let bytes = grid.to_le_bytes();
    std::array::from_fn(|i| if signs >> i & 1 == 0 { bytes[i] as i8 } else { -(bytes[i] as i8) })
}

/// The 8 weights of an entry of IQ1S with their offset, in eighths: `8 * (grid +- 1/8)`.
pub(super) fn shifted(grid: u64, minus: bool) -> [i8; 8] {
    grid.to_le_bytes().map(|b| b as i8 - if minus { 9 } else { 7 })
}

/// 16 scales of 4 bits, the low half of a byte first, as `2s + 1`.
pub(super) fn nibble_scales(bytes: &[u8]) -> [i32; 16] {
    std::array::from_fn(|i| 2 * (bytes[i / 2] >> (4 * (i % 2)) & 15) as i32 + 1)
}

/// `2s + 1` as f32.
#[inline(always)]
pub(super) fn odd_scale<V: Lanes>(s: V) -> V {
    s.add(s).or(s.splat(1)).to_f32()
}

/// The low 28 bits of a word, 4 fields of 7 signs, as bytes of 8 signs.
#[inline(always)]
pub(super) fn signs_of_28<V: Lanes>(v: V) -> V {
    let v = v.mask(0x3fff).or(v.mask(0x0fff_c000).shl(2));
    with_parity(v.mask(0x007f_007f).or(v.mask(0x3f80_3f80).shl(1)))
}

/// Gives every byte (7 sign bits) its eighth: the parity of the others.
#[inline(always)]
pub(super) fn with_parity<V: Lanes>(v: V) -> V {
    static PARITY: [i8; 16] = [0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0];
    v.or(v.xor(v.shr(4)).mask(0x0f0f_0f0f).look_up8(&PARITY))
}

/// Puts a group's 4 entries of 8 weights, byte `l` of `signs` for entry `l`.
#[inline(always)]
pub(super) fn put_eights<V: Lanes>(out: &mut Half<'_>, step: usize, grid: [[V; 2]; 4], signs: V) {
    put_fours(out, step, [grid[0][0], grid[0][1], grid[1][0], grid[1][1]], signs);
    put_fours(out, step + 4, [grid[2][0], grid[2][1], grid[3][0], grid[3][1]], signs.shr(16));
}

/// Puts 4 entries of 4 weights, bits `4l..4l + 4` of `signs` for entry `l`.
#[inline(always)]
pub(super) fn put_fours<V: Lanes>(out: &mut Half<'_>, step: usize, grid: [V; 4], signs: V) {
    for (l, grid) in grid.into_iter().enumerate() {
        out.codes(step + l, grid.negate8_at(signs, 4 * l as u32));
    }
}

/// Puts 16 scales of 4 bits as `2s + 1` times `d`: the 8 bytes that are words `from..from + 2` at `at`.
#[inline(always)]
pub(super) fn put_nibble_scales<V: Lanes, const BYTES: usize>(
    b: &Block<'_, V, BYTES>,
    at: usize,
    from: usize,
    d: V,
    out: &mut Half<'_>,
) {
    let words = b.words(at);
    for g in 0..16 {
        out.scale(g, odd_scale(words[from + g / 8].shr(4 * (g as u32 % 8)).mask(15)).mul_f32(d));
    }
}

/// The vector pieces. Every function is compiled for the same features as the kernels, so that it inlines into them.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::{ActRow, BLOCK, acts, rows};
    use crate::simd::x86::*;
    use std::arch::x86_64::*;

    /// A super-block unpacked for the loop over its 8 groups of 32 weights.
    #[derive(Clone, Copy)]
    pub(in crate::quant) struct Stage {
        /// The scale of all.
        pub(in crate::quant) d: f32,
        /// Grid indices, 4 or 8 to a group, where a block does not hold them as they are.
        pub(in crate::quant) index: [u16; 64],
        /// A byte for each of a group's four runs of 8 weights: their signs, or their offset.
        pub(in crate::quant) eights: [u32; 8],
        /// A word for each of a group's two halves: their scale.
        pub(in crate::quant) scales: [u32; 8],
        /// What the sums over 16 activations are multiplied with.
        pub(in crate::quant) offsets: [i16; 16],
    }

    /// Super-blocks unpacked before the loop over groups reads the first: a CPU does not look further ahead than about
    /// one of them, so it would wait for each one's stores.
    const AHEAD: usize = 4;

    /// The kernels' frame. `unpack(bytes, stage)` fills what the other two read. `start(stage, sums)` and
    /// `group(bytes, stage, g, q)` return 8 integers each; the sum of all is the dot product of a super-block over `d`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn dot_rows<const BYTES: usize>(
        w: &[u8],
        stride: usize,
        x: ActRow<'_>,
        out: &mut [f32],
        unpack: impl Fn(&[u8; BYTES], &mut Stage),
        start: impl Fn(&Stage, &[i16; 16]) -> __m256i,
        group: impl Fn(&[u8; BYTES], &Stage, usize, __m256i) -> __m256i,
    ) {
        // 8 groups, as a number that the compiler cannot know. It still unrolls the loop, but with an exit after every
        // group, over which it moves no loads: without, it hoists the lookups of all groups and spills them.
        let groups = std::hint::black_box(8);
        let mut stages = [Stage { d: 0.0, index: [0; 64], eights: [0; 8], scales: [0; 8], offsets: [0; 16] }; AHEAD];
        for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
            let mut acc = _mm256_setzero_ps();
            let mut acts = acts(x);
            for blocks in row.as_chunks::<BYTES>().0.chunks(AHEAD) {
                blocks.iter().zip(&mut stages).for_each(|(b, s)| unpack(b, s));
                for ((b, s), (q, d, sums)) in blocks.iter().zip(&stages).zip(&mut acts) {
                    let mut dot = start(s, sums);
                    for (g, q) in q.as_chunks::<32>().0.iter().enumerate().take(groups) {
                        dot = _mm256_add_epi32(dot, group(b, s, g, load_i8x32(q)));
                    }
                    acc = _mm256_fmadd_ps(_mm256_set1_ps(s.d * d), _mm256_cvtepi32_ps(dot), acc);
                }
            }
            *o = sum_f32x8(acc);
        }
    }

    /// The `start` of formats with offsets.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn offsets(s: &Stage, sums: &[i16; 16]) -> __m256i {
        _mm256_madd_epi16(load_i16x16(sums), load_i16x16(&s.offsets))
    }

    /// Byte `i / 8` of four at byte `i`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn spread_eights(v: u32) -> __m256i {
        let of = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        _mm256_shuffle_epi8(_mm256_set1_epi32(v as i32), of)
    }

    /// The first of two words over the lower lane, the second over the upper.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn spread_scales(v: u32) -> __m256i {
        let of = _mm256_set_m128i(_mm_set1_epi16(0x0302), _mm_set1_epi16(0x0100));
        _mm256_shuffle_epi8(_mm256_set1_epi32(v as i32), of)
    }

    /// Pairs of products of grid bytes with activations, of which a set bit in `signs` turns one of 32.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn signed_pairs(grid: __m256i, signs: u32, q: __m256i) -> __m256i {
        // Bit i % 8 of byte i, plus 127, is negative where it is set.
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let sign = _mm256_add_epi8(_mm256_and_si256(spread_eights(signs), bit), _mm256_set1_epi8(127));
        _mm256_maddubs_epi16(grid, _mm256_sign_epi8(q, sign))
    }

    /// Four entries of 8 bytes. Bits of an index beyond the table's size are ignored.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn eights<const N: usize, I: Into<usize>>(grid: &[u64; N], index: [I; 4]) -> __m256i {
        const { assert!(N.is_power_of_two()) }
        let [a, b, c, d] = index.map(|i| grid[i.into() & (N - 1)] as i64);
        _mm256_setr_epi64x(a, b, c, d)
    }

    /// Eight entries of 4 bytes. Bits of an index beyond the table's size are ignored.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn fours<const N: usize, I: Copy + Into<usize>>(grid: &[u32; N], index: [I; 8]) -> __m256i {
        const { assert!(N.is_power_of_two()) }
        let e = |l: usize| grid[index[l].into() & (N - 1)] as i32;
        _mm256_setr_epi32(e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7))
    }

    /// The indices of group `g`. Read one by one, or the compiler loads them all into a vector register to mask them
    /// there and takes each out again: 1.3 times slower and more.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn index<const L: usize>(s: &Stage, g: usize) -> [u16; L] {
        s.index.as_chunks().0[g].each_ref().map(read_once)
    }

    /// Grid indices `16 * part..` out of 16 low bytes and words that hold the high bits in place.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn put_indices(s: &mut Stage, part: usize, low: &[u8], high: __m256i) {
        let low = _mm256_cvtepu8_epi16(load_u8x16(low[..16].as_array().unwrap()));
        store_u16x16(&mut s.index.as_chunks_mut().0[part], _mm256_or_si256(low, high));
    }

    /// Gives every byte (7 sign bits) its eighth: the parity of the others.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn with_parity(v: __m256i) -> __m256i {
        let odd = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0,
        ));
        let nibble = _mm256_and_si256(_mm256_xor_si256(v, _mm256_srli_epi16::<4>(v)), _mm256_set1_epi8(15));
        _mm256_or_si256(v, _mm256_shuffle_epi8(odd, nibble))
    }

    /// Spreads the low 28 bits of every dword (4 fields of 7 signs) into bytes of 8 signs.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn signs_of_28(v: __m256i) -> __m256i {
        let low = |v, mask| _mm256_and_si256(v, _mm256_set1_epi32(mask));
        let v = _mm256_add_epi32(low(v, 0x3fff), _mm256_slli_epi32::<2>(low(v, 0x0fff_c000)));
        let v = _mm256_add_epi32(low(v, 0x007f_007f), _mm256_slli_epi32::<1>(low(v, 0x3f80_3f80)));
        with_parity(v)
    }

    /// The top 4 bits of every dword as the odd scale `2s + 1`, in both of its words.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn scales_of_top(v: __m256i) -> __m256i {
        let s = _mm256_srli_epi32::<28>(v);
        odd(_mm256_or_si256(s, _mm256_slli_epi32::<16>(s)))
    }

    /// 16 scales of 4 bits, the low half of a byte first, as odd words `2s + 1`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn scales_of_nibbles(bytes: &[u8; 8]) -> __m256i {
        let v = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
        let low = _mm256_and_si256(v, _mm256_set1_epi32(15));
        let high = _mm256_and_si256(_mm256_slli_epi32::<12>(v), _mm256_set1_epi32(15 << 16));
        odd(_mm256_or_si256(low, high))
    }

    /// `2s + 1` for every word.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::quant) fn odd(s: __m256i) -> __m256i {
        _mm256_add_epi16(_mm256_add_epi16(s, s), _mm256_set1_epi16(1))
    }
}
