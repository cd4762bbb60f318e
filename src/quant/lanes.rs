//! Sixteen rows side by side: how a format's blocks are decoded for panels (see panel.rs).
//!
//! ```text
//! words(at)   bytes at..at + 16 of the block of each of 16 rows, turned: vector w has bytes at + 4w..at + 4w + 4 of
//!             row r in its lane r
//! ```
//! A lane is four bytes: four codes, an integer, or the bits of an f32. Decoding is then the same shifts and masks for
//! 16 rows at once, the result already stands as panels want it, and a decoder is written once, over [`Lanes`], for every
//! instruction set. Turning costs about a third of an instruction per four bytes, before they are unpacked to eight or
//! sixteen. Left: decoding a row at a time and turning the codes (2.5 times the cost for Q4_K).

#![allow(unsafe_code)] // the intrinsics; a value of a vector type is the proof that the CPU has them

use super::grid::Grid;

/// A vector of 16 lanes of 32 bits. Where a method's name ends in 8 it works on each byte alone.
pub(crate) trait Lanes: Copy {
    /// `x` in every lane. `self` only proves that the instruction set is there.
    fn splat(self, x: u32) -> Self;
    /// The words of memory.
    fn load(self, from: &[u32; 16]) -> Self;
    /// As 64 bytes of memory.
    fn store(self, to: &mut [u8; 64]);
    /// The 16 bytes of each row, turned.
    fn turn(self, rows: [&[u8; 16]; 16]) -> [Self; 4];
    /// `self & b`.
    fn and(self, b: Self) -> Self;
    /// `self | b`.
    fn or(self, b: Self) -> Self;
    /// `self ^ b`.
    fn xor(self, b: Self) -> Self;
    /// `self << n` for `n < 32`.
    fn shl(self, n: u32) -> Self;
    /// `self >> n` for `n < 32`, zeros shifted in.
    fn shr(self, n: u32) -> Self;
    /// `self >> n` for `n < 32`, the sign shifted in.
    fn sar(self, n: u32) -> Self;
    /// `self - b`, wrapping.
    fn sub8(self, b: Self) -> Self;
    /// `self + b`, wrapping.
    fn add(self, b: Self) -> Self;
    /// `self * b`, the low 32 bits.
    fn mul(self, b: Self) -> Self;
    /// `table[byte]` for bytes below 16.
    fn look_up8(self, table: &[i8; 16]) -> Self;
    /// A lane's four low bits (0..16) as bytes: 255 where bit b is set in byte b, else 0.
    fn spread4(self) -> Self;
    /// The signed integer as f32.
    fn to_f32(self) -> Self;
    /// The f16 in the low half, as f32.
    fn f16_to_f32(self) -> Self;
    /// The product of two f32.
    fn mul_f32(self, b: Self) -> Self;

    /// `self & mask`.
    #[inline(always)]
    fn mask(self, mask: u32) -> Self {
        self.and(self.splat(mask))
    }

    /// Byte `j` as an unsigned integer.
    #[inline(always)]
    fn byte(self, j: u32) -> Self {
        self.shr(8 * j).mask(255)
    }

    /// Byte `j` as a signed integer.
    #[inline(always)]
    fn signed_byte(self, j: u32) -> Self {
        self.shl(24 - 8 * j).sar(24)
    }

    /// `-self` in the bytes whose bit of the four in `signs` (0..16, bit b for byte b) is set.
    #[inline(always)]
    fn negate8(self, signs: Self) -> Self {
        let all = signs.spread4();
        self.xor(all).sub8(all)
    }

    /// The same with bits `at..at + 4` of `signs`.
    #[inline(always)]
    fn negate8_at(self, signs: Self, at: u32) -> Self {
        self.negate8(signs.shr(at).mask(15))
    }

    /// Four bytes of the lane's eight: 0..4 are its own, 4..8 those of `b`.
    fn pick8(self, b: Self, from: [u8; 4]) -> Self;
    /// The four entries that the bytes count, with `high` holding the bits above them, two steps each. The bits of
    /// `high` beyond the table's size are ignored.
    fn eights<const N: usize>(self, high: Self, grid: &Grid<u64, N>) -> [[Self; 2]; 4];
    /// The same for entries of 4 values, a step each.
    fn fours<const N: usize>(self, high: Self, grid: &Grid<u32, N>) -> [Self; 4];
}

/// Sixteen words in plain Rust: the scalar truth, and, compiled for AVX2, what the compiler vectorises.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Plain(pub [u32; 16]);

impl Plain {
    #[inline(always)]
    fn map(self, f: impl Fn(u32) -> u32) -> Self {
        let mut out = self;
        out.0.iter_mut().for_each(|v| *v = f(*v));
        out
    }

    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(u32, u32) -> u32) -> Self {
        let mut out = self;
        out.0.iter_mut().zip(b.0).for_each(|(v, b)| *v = f(*v, b));
        out
    }
}

/// Adds the bytes of two words, carries dropped: the low seven bits by one addition, the top bit by exclusive or.
#[inline(always)]
fn add_bytes(a: u32, b: u32) -> u32 {
    ((a & 0x7f7f_7f7f) + (b & 0x7f7f_7f7f)) ^ ((a ^ b) & 0x8080_8080)
}

impl Lanes for Plain {
    #[inline(always)]
    fn splat(self, x: u32) -> Self {
        Plain([x; 16])
    }
    #[inline(always)]
    fn load(self, from: &[u32; 16]) -> Self {
        Plain(*from)
    }
    #[inline(always)]
    fn store(self, to: &mut [u8; 64]) {
        for (to, v) in to.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            *to = v.to_le_bytes();
        }
    }
    #[inline(always)]
    fn turn(self, rows: [&[u8; 16]; 16]) -> [Self; 4] {
        let mut out = [self; 4];
        for (r, row) in rows.iter().enumerate() {
            for (w, b) in row.as_chunks::<4>().0.iter().enumerate() {
                out[w].0[r] = u32::from_le_bytes(*b);
            }
        }
        out
    }
    #[inline(always)]
    fn and(self, b: Self) -> Self {
        self.zip(b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, b: Self) -> Self {
        self.zip(b, |a, b| a | b)
    }
    #[inline(always)]
    fn xor(self, b: Self) -> Self {
        self.zip(b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        self.map(|v| v << n)
    }
    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        self.map(|v| v >> n)
    }
    #[inline(always)]
    fn sar(self, n: u32) -> Self {
        self.map(|v| (v as i32 >> n) as u32)
    }
    #[inline(always)]
    fn sub8(self, b: Self) -> Self {
        // -b is !b + 1, byte by byte.
        self.zip(b, |a, b| add_bytes(a, add_bytes(!b, 0x0101_0101)))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, u32::wrapping_add)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, u32::wrapping_mul)
    }
    #[inline(always)]
    fn look_up8(self, table: &[i8; 16]) -> Self {
        self.map(|v| u32::from_le_bytes(v.to_le_bytes().map(|b| table[b as usize & 15] as u8)))
    }
    #[inline(always)]
    fn spread4(self) -> Self {
        // Bit b moves to the bottom of byte b: the product has it at 8b, and no two bits meet there.
        self.map(|v| ((v & 15).wrapping_mul(0x0020_4081) & 0x0101_0101) * 255)
    }
    #[inline(always)]
    fn to_f32(self) -> Self {
        self.map(|v| (v as i32 as f32).to_bits())
    }
    #[inline(always)]
    fn f16_to_f32(self) -> Self {
        self.map(|v| half::f16::from_bits(v as u16).to_f32().to_bits())
    }
    #[inline(always)]
    fn mul_f32(self, b: Self) -> Self {
        self.zip(b, |a, b| (f32::from_bits(a) * f32::from_bits(b)).to_bits())
    }
    #[inline(always)]
    fn pick8(self, b: Self, from: [u8; 4]) -> Self {
        self.zip(b, |a, b| {
            let byte = |f: u8| if f < 4 { a >> (8 * f) } else { b >> (8 * (f - 4)) } & 255;
            byte(from[0]) | byte(from[1]) << 8 | byte(from[2]) << 16 | byte(from[3]) << 24
        })
    }
    #[inline(always)]
    fn eights<const N: usize>(self, high: Self, grid: &Grid<u64, N>) -> [[Self; 2]; 4] {
        let mut out = [[self; 2]; 4];
        for (l, out) in out.iter_mut().enumerate() {
            for r in 0..16 {
                let entry = grid.entries[index::<N>(self.0[r], high.0[r], l)];
                (out[0].0[r], out[1].0[r]) = (entry as u32, (entry >> 32) as u32);
            }
        }
        out
    }
    #[inline(always)]
    fn fours<const N: usize>(self, high: Self, grid: &Grid<u32, N>) -> [Self; 4] {
        let mut out = [self; 4];
        for (l, out) in out.iter_mut().enumerate() {
            for r in 0..16 {
                out.0[r] = grid.entries[index::<N>(self.0[r], high.0[r], l)];
            }
        }
        out
    }
}

/// Byte `l` of `low`, with byte `l` of `high` above it.
#[inline(always)]
fn index<const N: usize>(low: u32, high: u32, l: usize) -> usize {
    const { assert!(N.is_power_of_two()) }
    (low.to_le_bytes()[l] as usize | (high.to_le_bytes()[l] as usize) << 8) & (N - 1)
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Wide;

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(clippy::missing_safety_doc)] // clippy takes a safe `target_feature` function for an unsafe one
    use super::{Grid, Lanes};
    use crate::quant::grid::x86::look_up;
    use crate::simd::x86::{load_u8x64, turn_words_16};
    use std::arch::x86_64::*;

    /// Sixteen words in a register of AVX-512.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Wide(__m512i);

    impl Wide {
        /// Zeros, and with them the proof that the caller was compiled for what the methods use.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bitalg")]
        pub(crate) fn zero() -> Wide {
            Wide(_mm512_setzero_si512())
        }
    }

    /// Calls an intrinsic.
    macro_rules! op {
        ($e:expr) => {
            // SAFETY: a `Wide` exists only where the CPU has these instructions (see `zero`); loads and stores take
            // references to as many bytes as they move.
            Wide(unsafe { $e })
        };
    }

    impl Lanes for Wide {
        #[inline(always)]
        fn splat(self, x: u32) -> Self {
            op!(_mm512_set1_epi32(x as i32))
        }
        #[inline(always)]
        fn load(self, from: &[u32; 16]) -> Self {
            op!(_mm512_loadu_si512(from.as_ptr().cast()))
        }
        #[inline(always)]
        fn store(self, to: &mut [u8; 64]) {
            // SAFETY: as for `op`.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), self.0) }
        }
        #[inline(always)]
        fn turn(self, rows: [&[u8; 16]; 16]) -> [Self; 4] {
            // SAFETY: as for `op`.
            unsafe { turn_words_16(rows) }.map(Wide)
        }
        #[inline(always)]
        fn and(self, b: Self) -> Self {
            op!(_mm512_and_si512(self.0, b.0))
        }
        #[inline(always)]
        fn or(self, b: Self) -> Self {
            op!(_mm512_or_si512(self.0, b.0))
        }
        #[inline(always)]
        fn xor(self, b: Self) -> Self {
            op!(_mm512_xor_si512(self.0, b.0))
        }
        #[inline(always)]
        fn shl(self, n: u32) -> Self {
            op!(_mm512_sllv_epi32(self.0, _mm512_set1_epi32(n as i32)))
        }
        #[inline(always)]
        fn shr(self, n: u32) -> Self {
            op!(_mm512_srlv_epi32(self.0, _mm512_set1_epi32(n as i32)))
        }
        #[inline(always)]
        fn sar(self, n: u32) -> Self {
            op!(_mm512_srav_epi32(self.0, _mm512_set1_epi32(n as i32)))
        }
        #[inline(always)]
        fn sub8(self, b: Self) -> Self {
            op!(_mm512_sub_epi8(self.0, b.0))
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            op!(_mm512_add_epi32(self.0, b.0))
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            op!(_mm512_mullo_epi32(self.0, b.0))
        }
        #[inline(always)]
        fn look_up8(self, table: &[i8; 16]) -> Self {
            op!(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), self.0))
        }
        #[inline(always)]
        fn spread4(self) -> Self {
            static SPREAD: [u32; 16] = {
                let mut t = [0; 16];
                let mut i = 0;
                while i < 64 {
                    t[i / 4] |= if ((i / 4) >> (i % 4)) & 1 == 1 { 255 << (8 * (i % 4)) } else { 0 };
                    i += 1;
                }
                t
            };
            op!(_mm512_permutexvar_epi32(self.0, _mm512_loadu_si512(SPREAD.as_ptr().cast())))
        }
        #[inline(always)]
        fn to_f32(self) -> Self {
            op!(_mm512_castps_si512(_mm512_cvtepi32_ps(self.0)))
        }
        #[inline(always)]
        fn f16_to_f32(self) -> Self {
            op!(_mm512_castps_si512(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(self.0))))
        }
        #[inline(always)]
        fn mul_f32(self, b: Self) -> Self {
            op!(_mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(self.0), _mm512_castsi512_ps(b.0))))
        }
        #[inline(always)]
        fn negate8_at(self, signs: Self, at: u32) -> Self {
            // Bits 0..4 of the lower lane of a pair for its bytes, 32..36 for those of the upper.
            op!({
                let bit = _mm512_add_epi8(_mm512_set1_epi64(0x2322_2120_0302_0100), _mm512_set1_epi8(at as i8));
                let minus = _mm512_bitshuffle_epi64_mask(signs.0, bit);
                _mm512_mask_sub_epi8(self.0, minus, _mm512_setzero_si512(), self.0)
            })
        }
        #[inline(always)]
        fn pick8(self, b: Self, from: [u8; 4]) -> Self {
            static LANE: [[u8; 4]; 16] = {
                let mut t = [[0; 4]; 16];
                let mut i = 0;
                while i < 16 {
                    t[i] = [4 * i as u8; 4];
                    i += 1;
                }
                t
            };
            let from = u32::from_le_bytes(from.map(|f| (f & 3) | (f & 4) << 4));
            op!({
                let from = _mm512_or_si512(_mm512_loadu_si512(LANE.as_ptr().cast()), _mm512_set1_epi32(from as i32));
                _mm512_permutex2var_epi8(self.0, from, b.0)
            })
        }
        #[inline(always)]
        fn eights<const N: usize>(self, high: Self, grid: &Grid<u64, N>) -> [[Self; 2]; 4] {
            // SAFETY: as for `op`.
            unsafe {
                let bit = |b: u32| _mm512_test_epi8_mask(high.0, _mm512_set1_epi8(1 << b));
                let fields = look_up(&grid.fields, self.0, [bit(0), bit(1), bit(2)]);
                let values = load_u8x64(&grid.values);
                // Four fields of byte l of each lane of a pair.
                let first = _mm512_set1_epi64(0x2624_2220_0604_0200);
                std::array::from_fn(|l| {
                    let at = _mm512_add_epi8(first, _mm512_set1_epi8(8 * l as i8));
                    fields.map(|f| Wide(_mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(at, f), values)))
                })
            }
        }
        #[inline(always)]
        fn fours<const N: usize>(self, high: Self, grid: &Grid<u32, N>) -> [Self; 4] {
            // SAFETY: as for `op`.
            unsafe {
                let bit = |b: u32| _mm512_test_epi8_mask(high.0, _mm512_set1_epi8(1 << b));
                let [a, b] = look_up(&grid.fields, self.0, [bit(0), bit(1), bit(2)]).map(Wide);
                let values = load_u8x64(&grid.values);
                // Two entries to a lane, of four fields of 4 bits each.
                let entries = [a.pick8(b, [0, 4, 1, 5]), a.pick8(b, [2, 6, 3, 7])];
                let first = _mm512_set1_epi64(0x2c28_2420_0c08_0400);
                std::array::from_fn(|l| {
                    let at = _mm512_add_epi8(first, _mm512_set1_epi8(l as i8 % 2 * 16));
                    let fields = _mm512_multishift_epi64_epi8(at, entries[l / 2].0);
                    Wide(_mm512_permutexvar_epi8(fields, values))
                })
            }
        }
    }
}

/// A block of each of 16 rows.
#[derive(Debug)]
pub(crate) struct Block<'a, V, const BYTES: usize> {
    rows: [&'a [u8; BYTES]; 16],
    zero: V,
}

impl<'a, V: Lanes, const BYTES: usize> Block<'a, V, BYTES> {
    /// The blocks of 16 rows.
    #[inline(always)]
    pub(crate) fn new(rows: [&'a [u8; BYTES]; 16], zero: V) -> Self {
        Block { rows, zero }
    }

    /// `x` in every lane.
    #[inline(always)]
    pub(crate) fn splat(&self, x: u32) -> V {
        self.zero.splat(x)
    }

    /// Bytes `at..at + 16` of each row's block, turned.
    #[inline(always)]
    pub(crate) fn words(&self, at: usize) -> [V; 4] {
        self.zero.turn(std::array::from_fn(|r| self.rows[r][at..at + 16].as_array().expect("16 bytes")))
    }

    /// The two bytes at `at`, an f16, as f32.
    #[inline(always)]
    pub(crate) fn f16(&self, at: usize) -> V {
        self.each(|b| u16::from_le_bytes([b[at], b[at + 1]]) as u32).f16_to_f32()
    }

    /// A word of each row, worked out one by one.
    #[inline(always)]
    pub(crate) fn each(&self, f: impl Fn(&[u8; BYTES]) -> u32) -> V {
        let mut words = [0; 16];
        words.iter_mut().zip(&self.rows).for_each(|(w, row)| *w = f(row));
        self.zero.load(&words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::rng::Rng;
    use crate::quant::tables::{IQ1S, IQ2S, IQ2XXS, IQ3S, IQ3XXS};

    /// Everything that a vector type can do, on random words, as the words that come out.
    fn all(zero: impl Lanes, seed: u64) -> Vec<[u8; 64]> {
        let mut rng = Rng(seed);
        let mut words = || -> [u32; 16] { std::array::from_fn(|_| rng.bits() as u32) };
        let (a, b) = (zero.load(&words()), zero.load(&words()));
        let halves = a.mask(0x7bff); // finite f16
        let bytes: [[u8; 16]; 16] = std::array::from_fn(|r| std::array::from_fn(|i| (r * 16 + i) as u8));
        let low = a.mask(0x0f0f_0f0f);
        let table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
        let mut list = vec![
            a.splat(7),
            a.and(b),
            a.or(b),
            a.xor(b),
            a.shl(3),
            a.shr(5),
            a.sar(7),
            a.sub8(b),
            a.add(b),
            a.mul(b),
            low.look_up8(&table),
            a.to_f32(),
            halves.f16_to_f32(),
            halves.f16_to_f32().mul_f32(b.to_f32()),
            a.byte(2),
            a.signed_byte(1),
            a.negate8(b.mask(15)),
            a.negate8_at(b, 9),
            a.pick8(b, [6, 0, 3, 5]),
        ];
        list.extend(zero.turn(bytes.each_ref()));
        list.extend(a.eights(b, &IQ2XXS).as_flattened());
        list.extend(a.eights(b, &IQ2S).as_flattened());
        list.extend(a.eights(b, &IQ1S).as_flattened());
        list.extend(a.fours(b, &IQ3XXS));
        list.extend(a.fours(b, &IQ3S));
        let store = |v: &_| {
            let mut out = [0; 64];
            Lanes::store(*v, &mut out);
            out
        };
        list.iter().map(store).collect()
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn vectors_do_what_plain_words_do() {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bitalg")]
        fn wide(seed: u64) -> Vec<[u8; 64]> {
            all(Wide::zero(), seed)
        }
        if crate::simd::detected() < crate::simd::Isa::Avx512 {
            return;
        }
        for seed in 0..200 {
            // SAFETY: the CPU was just asked.
            let wide = unsafe { wide(seed) };
            assert_eq!(wide, all(Plain([0; 16]), seed), "seed {seed}");
        }
    }

    #[test]
    fn signs_turn_the_bytes_that_they_stand_for() {
        let codes = Plain([0; 16]).splat(u32::from_le_bytes([8, 25, 43, 1]));
        for signs in 0..16u32 {
            let got = codes.negate8(codes.splat(signs)).0[3].to_le_bytes().map(|b| b as i8);
            let want: [i8; 4] = std::array::from_fn(|b| [8, 25, 43, 1][b] * if signs >> b & 1 == 1 { -1 } else { 1 });
            assert_eq!(got, want, "signs {signs:04b}");
        }
    }
}
