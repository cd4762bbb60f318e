//! The vector type that decoders are written over: it holds a part of the blocks of sixteen rows
//! (see panel.rs).
//!
//! ```text
//! words(at)   bytes at..at + 16 of the block of each of 16 rows, transposed: vector w has bytes
//!             at + 4w..at + 4w + 4 of row r in its lane r
//! ```
//! A lane is four bytes: four codes, an integer, or the bits of an f32. A decoder applies the same
//! shifts and masks to 16 rows at once, the result has the order of a panel, and the decoder is
//! written once, over [`Lanes`], for every instruction set. Transposing costs about a third of an
//! instruction per four bytes, before they are unpacked to eight or sixteen.
//!
//! Rejected: decoding a row at a time and transposing the codes (2.5 times the cost for Q4_K).

use crate::quant::codebooks::grid::CodebookGrid;

/// A vector of 16 lanes of 32 bits. Where a method's name ends in 8 it works on each byte alone.
pub(crate) trait Lanes: Copy {
    /// Returns `x` in every lane. `self` only proves that the CPU has the instruction set.
    fn splat(self, x: u32) -> Self;
    /// Loads 16 words from memory.
    fn load(self, from: &[u32; 16]) -> Self;
    /// Stores the vector as 64 bytes of memory.
    fn store(self, to: &mut [u8; 64]);
    /// Transposes the 16 bytes of each row: vector w gets word w of row r in its lane r.
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

    /// [`Lanes::negate8`] with bits `at..at + 4` of `signs`.
    #[inline(always)]
    fn negate8_at(self, signs: Self, at: u32) -> Self {
        self.negate8(signs.shr(at).mask(15))
    }

    /// Picks four of eight bytes in every lane: numbers 0..4 are those of `self`, 4..8 those of
    /// `b`.
    fn pick8(self, b: Self, from: [u8; 4]) -> Self;
    /// Looks up four entries of 8 values, which are two steps each. The bytes of `self` are the low
    /// bits of the indices, the bytes of `high` the bits above; bits beyond the table's size are
    /// ignored.
    fn eights<const N: usize>(self, high: Self, grid: &CodebookGrid<u64, N>) -> [[Self; 2]; 4];
    /// Looks up four entries of 4 values, which are one step each; indices as for
    /// [`Lanes::eights`].
    fn fours<const N: usize>(self, high: Self, grid: &CodebookGrid<u32, N>) -> [Self; 4];
}

/// Sixteen words in plain Rust: the scalar version. Compiled for AVX2, the compiler vectorises it.
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

/// Adds the bytes of two words, carries dropped: the low seven bits by one addition, the top bit by
/// exclusive or.
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
        // Bit b moves to the bottom of byte b: the product has it at 8b, and no two bits meet
        // there.
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
    fn eights<const N: usize>(self, high: Self, grid: &CodebookGrid<u64, N>) -> [[Self; 2]; 4] {
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
    fn fours<const N: usize>(self, high: Self, grid: &CodebookGrid<u32, N>) -> [Self; 4] {
        let mut out = [self; 4];
        for (l, out) in out.iter_mut().enumerate() {
            for r in 0..16 {
                out.0[r] = grid.entries[index::<N>(self.0[r], high.0[r], l)];
            }
        }
        out
    }
}

/// Joins byte `l` of `low` and, above it, byte `l` of `high` to an index below `N`.
#[inline(always)]
fn index<const N: usize>(low: u32, high: u32, l: usize) -> usize {
    const { assert!(N.is_power_of_two()) }
    (low.to_le_bytes()[l] as usize | (high.to_le_bytes()[l] as usize) << 8) & (N - 1)
}

/// A block of each of 16 rows.
#[derive(Debug)]
pub(crate) struct Blocks16<'a, V, const BYTES: usize> {
    rows: [&'a [u8; BYTES]; 16],
    zero: V,
}

impl<'a, V: Lanes, const BYTES: usize> Blocks16<'a, V, BYTES> {
    /// Wraps the blocks of 16 rows; `zero` proves that the CPU has the instruction set.
    #[inline(always)]
    pub(crate) fn new(rows: [&'a [u8; BYTES]; 16], zero: V) -> Self {
        Blocks16 { rows, zero }
    }

    /// Returns `x` in every lane.
    #[inline(always)]
    pub(crate) fn splat(&self, x: u32) -> V {
        self.zero.splat(x)
    }

    /// Returns bytes `at..at + 16` of each row's block, transposed.
    #[inline(always)]
    pub(crate) fn words(&self, at: usize) -> [V; 4] {
        self.zero.turn(std::array::from_fn(|r| self.rows[r][at..at + 16].as_array().expect("16 bytes")))
    }

    /// Returns the f16 at byte `at` of each row's block, as f32.
    #[inline(always)]
    pub(crate) fn f16(&self, at: usize) -> V {
        self.each(|b| u16::from_le_bytes([b[at], b[at + 1]]) as u32).f16_to_f32()
    }

    /// Computes a word of each row, one by one.
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
