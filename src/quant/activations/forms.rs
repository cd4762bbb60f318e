//! The layouts of activations: which numbers each kind of kernel reads, and in what order.

use crate::simd::Isa;

/// Columns of a panel, and activations in a [`PanelColumns`].
pub const CHUNK: usize = 256;
/// Words in a [`PanelWords`].
pub const WORDS: usize = 128;

/// What a format's kernels multiply with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// f32, always one token at a time.
    F32,
    /// f32, for F16 weights.
    F16,
    /// f32, for BF16 weights. For many tokens rounded to BF16 where the CPU multiplies BF16.
    Bf16,
    /// 8-bit codes with a scale per 32 values.
    Q8,
    /// 8-bit codes with a scale per 256 values.
    Q8K,
}

impl Act {
    /// Returns how many values share a scale: 1 for floats. A row must be a multiple of it.
    pub fn block(self) -> usize {
        match self {
            Act::F32 | Act::F16 | Act::Bf16 => 1,
            Act::Q8 => 32,
            Act::Q8K => 256,
        }
    }

    /// Returns the layout that kernels for so many tokens read on this instruction set.
    pub fn form(self, isa: Isa, tokens: usize) -> PanelForm {
        match self {
            Act::Bf16 if isa >= Isa::Avx512Bf16 => PanelForm::Bf16,
            Act::F32 | Act::F16 | Act::Bf16 => PanelForm::F32,
            Act::Q8 | Act::Q8K if isa >= Isa::Amx && tokens >= PanelForm::TILES_FROM => PanelForm::Bf16,
            Act::Q8 | Act::Q8K => PanelForm::Codes,
        }
    }
}

/// The layout of activations for many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelForm {
    /// 8-bit codes, for panels ([`PanelColumns`]).
    Codes,
    /// f32, one column per word ([`PanelWords`]).
    F32,
    /// BF16, two columns per word ([`PanelWords`]); for formats of codes, too, where matrix tiles
    /// multiply.
    Bf16,
}

impl PanelForm {
    /// All of them.
    pub const ALL: [PanelForm; 3] = [PanelForm::Codes, PanelForm::F32, PanelForm::Bf16];

    /// Tokens from which matrix tiles multiply formats of codes. Decoding rows to BF16 takes as long
    /// as AVX-512 takes for some 15 tokens, and what it evicts from the first-level cache another 15
    /// (Sapphire Rapids, the shortest of many runs, tiles against AVX-512): with 32 tokens 0.91 to
    /// 0.97 times as fast in every format, with 40 1.01 to 1.10, with 64 1.30 to 1.46.
    pub const TILES_FROM: usize = 40;

    /// Returns the number of tokens from which these kernels are faster than the row kernel.
    ///
    /// Measured from cache (Zen 4, products/ns): BF16 pairs reach 30 with two tokens and 42 with
    /// three, the row kernel 29; F16 times f32 24 and 33, the row kernel 25; panels of codes 64
    /// with four tokens (Q4_K) and 60 (IQ2_XXS), their row kernels 54 and 34. With four tokens on
    /// AVX2: Q4_K 55, IQ4_XS 44, Q6_K 40, MXFP4 44, IQ2_XXS 30, their row kernels 50, 37, 32, 31 and
    /// 20; Q2_K alone has 43 for 51, and 54 with eight. That was when row kernels took one token; with
    /// four in a pass they reach 75 (Q4_K) and 63 (IQ2_XXS) on AVX-512, but neither was compared with
    /// panels again.
    pub fn worth(self) -> usize {
        match self {
            PanelForm::Bf16 | PanelForm::F32 => 3,
            PanelForm::Codes => 4,
        }
    }

    /// Returns the columns of a row in one [`PanelColumns`] or [`PanelWords`].
    pub fn columns(self) -> usize {
        match self {
            PanelForm::Codes => CHUNK,
            PanelForm::F32 => WORDS,
            PanelForm::Bf16 => 2 * WORDS,
        }
    }
}

/// One row of activations, borrowed. Floats fill only `f`, quantized forms only the other fields.
#[derive(Clone, Copy, Debug)]
pub struct ActRow<'a> {
    /// Values in the row.
    pub n: usize,
    /// The values (floats).
    pub f: &'a [f32],
    /// The quantized values (n).
    pub q: &'a [i8],
    /// The scales (n / block).
    pub d: &'a [f32],
    /// The sum of `q` over every 16 values (n / 16).
    pub sums: &'a [i16],
    /// `q`, `d` and `sums` in the order of the AVX-512 kernels (n / 512, rounded up); empty on
    /// other CPUs.
    pub act_blocks: &'a [ActBlock],
}

/// A block of 512 activations in the order of the AVX-512 row kernels, in whole cache lines.
///
/// If a row is not a multiple of 128, its last part is preceded by zeros: the kernel then reads the
/// last 128 weights of the row again, and those that were already counted are multiplied by zero.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct ActBlock {
    /// Four times 128: the first 16 of every 32, then the second 16 of every 32.
    pub q: [[[i8; 64]; 2]; 4],
    /// The scale of every 32.
    pub d: [f32; 16],
    /// The sum of `q` over every 32.
    pub sums: [i32; 16],
    /// The sums over what meets in a lane of 32 bits when the two vectors of each 128 are
    /// multiplied: four of the first, four of the second.
    pub lanes: [[[i16; 2]; 16]; 4],
}

impl ActBlock {
    /// A block of zeros.
    pub(crate) const ZERO: ActBlock =
        ActBlock { q: [[[0; 64]; 2]; 4], d: [0.0; 16], sums: [0; 16], lanes: [[[0; 2]; 16]; 4] };
    /// Activations in a block.
    pub const LEN: usize = 512;

    /// Takes the activations from column `from` on, of the row of `n` values that begins at index
    /// `row` of `q`.
    pub(crate) fn set(
        &mut self,
        n: usize,
        from: usize,
        row: usize,
        block: usize,
        (q, d, sums): (&[i8], &[f32], &[i16]),
    ) {
        let len = ActBlock::LEN.min(n - from);
        if len < ActBlock::LEN {
            self.clone_from(&ActBlock::ZERO);
        }
        for (g, q) in q[row + from..][..len].as_chunks::<32>().0.iter().enumerate() {
            let at = row + from + 32 * g;
            let g = g + if from + 32 * g >= n / 128 * 128 { 4 - n % 128 / 32 } else { 0 };
            let (unit, to) = (g / 4, g % 4 * 16);
            for (half, q) in q.as_chunks::<16>().0.iter().enumerate() {
                self.q[unit][half][to..to + 16].copy_from_slice(q);
            }
            self.d[g] = d[at / block];
            self.sums[g] = sums[at / 16] as i32 + sums[at / 16 + 1] as i32;
        }
        for (lanes, q) in self.lanes.iter_mut().zip(&self.q) {
            for (half, q) in q.iter().enumerate() {
                for (lane, q) in lanes.iter_mut().zip(q.as_chunks::<4>().0) {
                    lane[half] = q.iter().map(|&q| q as i16).sum();
                }
            }
        }
    }
}

/// [`CHUNK`] activations of a row as codes, with their scales and sums.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct PanelColumns {
    /// `q + 128`.
    pub u: [u8; CHUNK],
    /// The scale of every 32; eight equal ones where 256 share a scale.
    pub d: [f32; CHUNK / 32],
    /// The sum of `q` over every 16, multiplied by the scale where 32 share one.
    pub sums: [f32; CHUNK / 16],
}

impl PanelColumns {
    /// Columns of zeros.
    pub const ZERO: PanelColumns = PanelColumns { u: [0; CHUNK], d: [0.0; CHUNK / 32], sums: [0.0; CHUNK / 16] };
}

/// Activations for many tokens at once.
#[derive(Clone, Copy, Debug)]
pub struct PanelActs<'a> {
    /// Tells these words from all others that were laid out in this process.
    pub stamp: u64,
    /// Values in a row.
    pub n: usize,
    /// Values that share a scale: 32 or 256.
    pub block: usize,
    /// Rows.
    pub rows: usize,
    /// The layout that is filled: `columns` or `words`.
    pub form: PanelForm,
    /// The first [`CHUNK`] columns of every row, then the next of every row. (Row after row, tokens
    /// would be a power of two apart and share a few sets of the cache.) The last columns may be
    /// only partly used.
    pub columns: &'a [PanelColumns],
    /// Rows of floats in the same order, [`WORDS`] words at a time.
    pub words: &'a [PanelWords],
}

/// [`WORDS`] words of a row of activations, filled up with zeros after the row's end.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct PanelWords(pub [u32; WORDS]);

impl PanelWords {
    /// Words of zeros.
    pub const ZERO: PanelWords = PanelWords([0; WORDS]);

    /// Takes the columns `x` of a row: as many as fit, or fewer at the row's end.
    #[inline(always)]
    pub(crate) fn set(&mut self, form: PanelForm, x: &[f32]) {
        match form {
            PanelForm::Bf16 => {
                let to: &mut [u16; 2 * WORDS] = bytemuck::cast_mut(&mut self.0);
                to.iter_mut().zip(x).for_each(|(to, &x)| *to = round(x));
                to[x.len()..].fill(0);
            }
            _ => {
                self.0.iter_mut().zip(x).for_each(|(to, x)| *to = x.to_bits());
                self.0[x.len()..].fill(0);
            }
        }
    }
}

/// Rounds to the nearest BF16, ties to even. A NaN stays a NaN.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let up = 0x7fff + (bits >> 16 & 1);
    (if x.is_nan() { bits | 0x40_0000 } else { bits + up } >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::round;

    #[test]
    fn activations_are_rounded_to_the_nearest_and_ties_to_even() {
        for i in 0..1 << 22 {
            let x = f32::from_bits((i as u32) << 10 | (i as u32 * 7) & 0x3ff);
            assert_eq!(round(x), half::bf16::from_f32(x).to_bits(), "{x}");
        }
        for (x, want) in [(0x3f80_8000, 0x3f80), (0x3f81_8000, 0x3f82), (0x7f7f_ffff, 0x7f80), (0x7f80_0001, 0x7fc0)] {
            assert_eq!(round(f32::from_bits(x)), want);
        }
    }
}
