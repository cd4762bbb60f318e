//! The layouts of activations: which numbers each kind of kernel reads, and in what order.

use crate::simd::Isa;

/// Columns of a panel.
pub const CHUNK: usize = 256;
/// Words of activations that lie together.
pub const WORDS: usize = 128;

/// A form of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// As they are, one token at a time.
    F32,
    /// As they are, for F16 weights.
    F16,
    /// As they are, for BF16 weights; for many tokens rounded to BF16 where the CPU multiplies that.
    Bf16,
    /// 8 bits, a scale per 32 values.
    Q8,
    /// 8 bits, a scale per 256 values.
    Q8K,
}

impl Act {
    /// Values that share one scale; rows must be a multiple of it. 1 for floats.
    pub fn block(self) -> usize {
        match self {
            Act::F32 | Act::F16 | Act::Bf16 => 1,
            Act::Q8 => 32,
            Act::Q8K => 256,
        }
    }

    /// What many tokens at once are made into.
    pub fn form(self, isa: Isa) -> PanelForm {
        match self {
            Act::Bf16 if isa >= Isa::Avx512Bf16 => PanelForm::Bf16,
            Act::F32 | Act::F16 | Act::Bf16 => PanelForm::F32,
            Act::Q8 | Act::Q8K => PanelForm::Codes,
        }
    }
}

/// What many tokens' activations are made into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelForm {
    /// 8-bit codes, for panels: tile.rs.
    Codes,
    /// f32, a column to a word.
    F32,
    /// BF16, two columns to a word.
    Bf16,
}

impl PanelForm {
    /// Tokens from which they are quicker together than one by one, measured from cache (Zen 4, products/ns): BF16 pairs
    /// 30 for two and 42 for three, the row kernel 29; F16 with f32 24 and 33, the row kernel 25; panels of codes 64 for
    /// four (Q4_K) and 60 (IQ2_XXS), their row kernels 54 and 34. On AVX2 filling a panel takes three times as long: with
    /// 32 tokens 82 (Q4_K), 44 (Q8_0) and 46 (MXFP4), their row kernels 46, 34 and 31.
    pub fn worth(self, isa: Isa) -> usize {
        match self {
            PanelForm::Bf16 | PanelForm::F32 => 3,
            PanelForm::Codes if isa == Isa::Avx2 => 16,
            PanelForm::Codes => 4,
        }
    }

    /// Columns that lie together.
    pub fn columns(self) -> usize {
        match self {
            PanelForm::Codes => CHUNK,
            PanelForm::F32 => WORDS,
            PanelForm::Bf16 => 2 * WORDS,
        }
    }
}

/// One row of activations, borrowed. For floats only `f` is filled, else only the others.
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
    /// All of that once more, where the CPU has AVX-512 (n / 512, rounded up).
    pub act_blocks: &'a [ActBlock],
}

/// 512 activations as the row kernels of AVX-512 take them, in whole cache lines. Where a row is not a whole number of
/// 128, zeros stand before its last part, so that it meets the last 128 weights, of which some were met before.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct ActBlock {
    /// Four times 128: the first 16 of every 32, then the second 16 of every 32.
    pub q: [[[i8; 64]; 2]; 4],
    /// The scale of every 32.
    pub d: [f32; 16],
    /// The sum of `q` over every 32.
    pub sums: [i32; 16],
    /// The sums over what meets in a lane of 32 bits when the two vectors of each 128 are multiplied: four of the first,
    /// four of the second.
    pub lanes: [[[i16; 2]; 16]; 4],
}

impl ActBlock {
    pub(crate) const ZERO: ActBlock =
        ActBlock { q: [[[0; 64]; 2]; 4], d: [0.0; 16], sums: [0; 16], lanes: [[[0; 2]; 16]; 4] };
    /// Activations in one.
    pub const LEN: usize = 512;

    /// The activations from column `from` on of the row of `n` that begins at `row` of `q`.
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

/// [`CHUNK`] activations of a row, and what goes with them.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct PanelColumns {
    /// `q + 128`.
    pub u: [u8; CHUNK],
    /// The scale of every 32; all the same where 256 share one.
    pub d: [f32; CHUNK / 32],
    /// The sum of `q` over every 16, times the scale where 32 share one.
    pub sums: [f32; CHUNK / 16],
}

impl PanelColumns {
    /// Nothing.
    pub const ZERO: PanelColumns = PanelColumns { u: [0; CHUNK], d: [0.0; CHUNK / 32], sums: [0.0; CHUNK / 16] };
}

/// Activations for many tokens at once.
#[derive(Clone, Copy, Debug)]
pub struct PanelActs<'a> {
    /// Values in a row.
    pub n: usize,
    /// Values that share a scale: 32 or 256.
    pub block: usize,
    /// Rows.
    pub rows: usize,
    /// What they were made into.
    pub form: PanelForm,
    /// The first [`CHUNK`] columns of every row, then the next: neighbours in a panel's columns would fall into the same
    /// few sets of the cache if they lay a power of two apart. The last may not be full.
    pub columns: &'a [PanelColumns],
    /// The same for floats, [`WORDS`] words at a time.
    pub words: &'a [PanelWords],
}

/// [`WORDS`] words of a row of activations; zeros where the row has ended.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct PanelWords(pub [u32; WORDS]);

impl PanelWords {
    /// Nothing.
    pub const ZERO: PanelWords = PanelWords([0; WORDS]);

    /// Takes as many columns of a row, or its last few.
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

/// The nearest BF16, ties to even; a NaN stays one.
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
