//! Panels of floats, for formats whose weights are floats themselves (see tile.rs for panels of codes).
//!
//! ```text
//! panel of 32 rows:   for every word of the rows: 32 x 4 bytes, row after row          (a "step", 128 bytes; 128 steps)
//! F32                 a word is one column as f32: 128 columns
//! Bf16                a word is two columns as BF16: 256 columns
//! out[t][r] = sum over words of  panel[word][r] . x[t][word]
//! ```
//! There is nothing to decode: a row's words are turned so that 32 rows stand side by side, BF16 weights as they are.
//! `vdpbf16ps` multiplies 32 pairs where a fused multiply-add multiplies 16 floats, but wants both sides as BF16: a
//! prompt's activations are rounded (to nearest, ties to even), which is what other engines do with BF16 weights on such
//! CPUs. A single token's are not. The instruction takes subnormals for zero.

use super::tile::{Ahead, Panel, ROWS, Source};

/// Words of a panel's row, or of a token's.
pub const WORDS: usize = 128;

/// What a word of a panel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Four 8-bit codes: tile.rs.
    Codes,
    /// One f32.
    F32,
    /// Two columns as BF16.
    Bf16,
}

impl Form {
    /// Tokens from which a panel is quicker than the row kernel for each of them, measured from cache (Zen 4): BF16
    /// pairs 31 products/ns at two, 46 at three, the row kernel 30; f32 words 27 at four, the row kernel 26; codes 64
    /// (Q4_K) and 24 (IQ2_XXS) at three, and the row kernels 46 and 20, with faster ones to come.
    pub fn worth(self) -> usize {
        match self {
            Form::Bf16 => 3,
            Form::Codes | Form::F32 => 4,
        }
    }

    /// Columns of a panel.
    pub fn columns(self) -> usize {
        match self {
            Form::Codes => super::tile::CHUNK,
            Form::F32 => WORDS,
            Form::Bf16 => 2 * WORDS,
        }
    }
}

/// A panel's columns of one row of activations; zeros where the row has ended.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Words(pub [u32; WORDS]);

impl Words {
    /// Nothing.
    pub const ZERO: Words = Words([0; WORDS]);

    /// Takes up to a panel's columns of a row.
    #[inline(always)]
    pub(super) fn set(&mut self, form: Form, x: &[f32]) {
        match form {
            Form::Bf16 => {
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

/// The words of the 32 rows one by one: `word(bytes)` of every `BYTES` bytes.
pub(super) fn fill<const BYTES: usize>(
    s: &Source<'_>,
    bytes: std::ops::Range<usize>,
    to: &mut Panel,
    word: impl Fn(&[u8; BYTES]) -> u32,
) {
    for r in 0..ROWS {
        for (step, b) in to.codes.iter_mut().zip(s.row(r)[bytes.clone()].as_chunks().0) {
            step.as_chunks_mut::<4>().0[r] = word(b).to_le_bytes();
        }
    }
}

/// Adds a token's products to `out`: the truth for words of f32.
pub(super) fn multiply(panel: &Panel, steps: usize, x: &Words, out: &mut [f32; ROWS]) {
    for (step, &x) in panel.codes[..steps].iter().zip(&x.0) {
        let x = f32::from_bits(x);
        for (out, w) in out.iter_mut().zip(step.as_chunks::<4>().0) {
            *out += f32::from_le_bytes(*w) * x;
        }
    }
}

/// Fills panels of f32 from weights of two bytes: `floats!(value, widen)` with the decoder of one weight and that
/// of eight (simd.rs).
macro_rules! floats {
    ($value:ident, $widen:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn fill_avx2(
            s: &crate::quant::tile::Source<'_>,
            bytes: std::ops::Range<usize>,
            to: &mut crate::quant::tile::Panel,
        ) {
            crate::quant::floats::x86::fill_halves(s, bytes, to, |v| crate::simd::x86::$widen(v));
        }
        fn fill_plain(
            s: &crate::quant::tile::Source<'_>,
            bytes: std::ops::Range<usize>,
            to: &mut crate::quant::tile::Panel,
        ) {
            crate::quant::floats::fill(s, bytes, to, |b| $value(b).to_bits());
        }
    };
}
pub(super) use floats;

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::*;
    use crate::quant::{ActRow, rows};
    use crate::simd::x86::*;
    use std::arch::x86_64::*;

    /// Tokens that are multiplied together.
    const TOKENS: usize = 6;

    /// `PARTS` runs of 8 rows' bytes, all of a panel's columns, to `turn`: arrays of that length need no checks of bounds.
    /// Rows that end before the panel does go through a copy, zeros after them.
    #[inline(always)]
    fn by_eight<const BYTES: usize, const PARTS: usize>(
        s: &Source<'_>,
        bytes: std::ops::Range<usize>,
        mut turn: impl FnMut(usize, [&[[u8; BYTES]; PARTS]; 8]),
    ) {
        for part in 0..ROWS / 8 {
            let row = |r: usize| &s.row(8 * part + r)[bytes.clone()];
            if bytes.len() == BYTES * PARTS {
                turn(part, std::array::from_fn(|r| row(r).as_chunks().0.as_array().expect("a panel's columns")));
                continue;
            }
            let mut copy = [[[0; BYTES]; PARTS]; 8];
            for (r, copy) in copy.iter_mut().enumerate() {
                copy.as_flattened_mut()[..bytes.len()].copy_from_slice(row(r));
            }
            turn(part, copy.each_ref());
        }
    }

    /// Turns words as they are.
    #[target_feature(enable = "avx2")]
    pub(in crate::quant) fn fill_words(s: &Source<'_>, bytes: std::ops::Range<usize>, to: &mut Panel) {
        #[target_feature(enable = "avx2")]
        fn turn(part: usize, rows: [&[[u8; 16]; WORDS / 4]; 8], to: &mut Panel) {
            for (b, to) in to.codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                for (to, v) in to.iter_mut().zip(turn_words(std::array::from_fn(|r| &rows[r][b]))) {
                    store_u8x32(&mut to.as_chunks_mut::<32>().0[part], v);
                }
            }
        }
        by_eight(s, bytes, |part, rows| turn(part, rows, to));
    }

    /// Turns weights of two bytes, which `widen` makes floats.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")] // as the callers', or `widen` becomes a call
    pub(in crate::quant) fn fill_halves(
        s: &Source<'_>,
        bytes: std::ops::Range<usize>,
        to: &mut Panel,
        widen: impl Fn(__m128i) -> __m256,
    ) {
        by_eight(s, bytes, |part, rows: [&[[u8; 32]; WORDS / 16]; 8]| {
            for (b, to) in to.codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let turned = turn_halves(std::array::from_fn(|r| &rows[r][b]));
                let mut put = |step: usize, v: __m128i| {
                    store_u8x32(&mut to[step].as_chunks_mut::<32>().0[part], _mm256_castps_si256(widen(v)))
                };
                for (i, v) in turned.into_iter().enumerate() {
                    put(i, _mm256_castsi256_si128(v));
                    put(8 + i, _mm256_extracti128_si256::<1>(v));
                }
            }
        });
    }

    /// The row kernel of every float format: `load` makes 16 floats of `BYTES` bytes, `value` one float of its share.
    ///
    /// One row after the other, as one long stream of memory; eight sums hide the latency of the fused multiply-add.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    pub(in crate::quant) fn dot<const BYTES: usize, const ONE: usize>(
        w: &[u8],
        stride: usize,
        x: ActRow<'_>,
        out: &mut [f32],
        load: impl Fn(&[u8; BYTES]) -> __m512,
        value: impl Fn(&[u8; ONE]) -> f32,
    ) {
        let (x16, x_tail) = x.f.as_chunks::<16>();
        let (x128, x_rest) = x16.as_chunks::<8>();
        for (out, row) in out.iter_mut().zip(rows(w, stride, x.n * ONE)) {
            let (row16, row_tail) = row.as_chunks::<BYTES>();
            let (row128, row_rest) = row16.as_chunks::<8>();
            let mut sums = [_mm512_setzero_ps(); 8];
            for (w, x) in row128.iter().zip(x128) {
                for i in 0..8 {
                    sums[i] = _mm512_fmadd_ps(load(&w[i]), load_f32x16(&x[i]), sums[i]);
                }
            }
            for ((w, x), sum) in row_rest.iter().zip(x_rest).zip(&mut sums) {
                *sum = _mm512_fmadd_ps(load(w), load_f32x16(x), *sum);
            }
            for half in [4, 2, 1] {
                for i in 0..half {
                    sums[i] = _mm512_add_ps(sums[i], sums[i + half]);
                }
            }
            let tail = row_tail.as_chunks::<ONE>().0.iter().zip(x_tail);
            *out = _mm512_reduce_add_ps(sums[0]) + tail.map(|(w, x)| value(w) * x).sum::<f32>();
        }
    }

    /// Tokens in groups as even as can be: few sums in flight leave the multiplier waiting.
    fn groups(tokens: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let n = tokens.div_ceil(most);
        (0..n).map(move |i| tokens * i / n..tokens * (i + 1) / n)
    }

    /// The tokens times the panel with 512-bit vectors: twelve sums, two vectors of weights.
    macro_rules! wide {
        ($name:ident, $one:ident, $features:literal, $dot:expr) => {
            #[target_feature(enable = $features)]
            pub(in crate::quant) fn $name(
                panel: &Panel,
                steps: usize,
                x: &[Words],
                tokens: &[(u32, u32)],
                out: &mut [[f32; ROWS]],
                ahead: Ahead<'_>,
            ) {
                for some in groups(tokens.len(), TOKENS) {
                    ahead.ask(&some, tokens.len());
                    let (some, out) = (&tokens[some.clone()], &mut out[some]);
                    let x: [&Words; TOKENS] = std::array::from_fn(|i| &x[some[i.min(some.len() - 1)].0 as usize]);
                    match some.len() {
                        1 => $one::<1>(panel, steps, x, out),
                        2 => $one::<2>(panel, steps, x, out),
                        3 => $one::<3>(panel, steps, x, out),
                        4 => $one::<4>(panel, steps, x, out),
                        5 => $one::<5>(panel, steps, x, out),
                        _ => $one::<6>(panel, steps, x, out),
                    }
                }
            }

            #[target_feature(enable = $features)]
            fn $one<const T: usize>(panel: &Panel, steps: usize, x: [&Words; TOKENS], out: &mut [[f32; ROWS]]) {
                let out = &mut out[..T];
                let mut sums: [[__m512; 2]; T] = std::array::from_fn(|t| load_f32x32(&out[t]));
                for (i, step) in panel.codes[..steps].iter().enumerate() {
                    let w = load_u8x128(step);
                    for t in 0..T {
                        let x = _mm512_set1_epi32(x[t].0[i & (WORDS - 1)] as i32);
                        for h in 0..2 {
                            sums[t][h] = $dot(sums[t][h], w[h], x);
                        }
                    }
                }
                out.iter_mut().zip(sums).for_each(|(out, sums)| store_f32x32(out, sums));
            }
        };
    }
    wide!(multiply_bf16, bf16, "avx512f,avx512bw,avx512bf16", dot_bf16);
    wide!(multiply_avx512, f32s, "avx512f,avx512bw", |sum, w, x| {
        _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum)
    });

    /// Four tokens times 16 rows, then the other 16: eight sums, two vectors of weights.
    #[target_feature(enable = "avx2,fma")]
    pub(in crate::quant) fn multiply_avx2(
        panel: &Panel,
        steps: usize,
        x: &[Words],
        tokens: &[(u32, u32)],
        out: &mut [[f32; ROWS]],
        ahead: Ahead<'_>,
    ) {
        for some in groups(tokens.len(), 4) {
            ahead.ask(&some, tokens.len());
            let (some, out) = (&tokens[some.clone()], &mut out[some]);
            let x: [&Words; 4] = std::array::from_fn(|i| &x[some[i.min(some.len() - 1)].0 as usize]);
            for half in 0..2 {
                match some.len() {
                    1 => narrow::<1>(panel, steps, x, half, out),
                    2 => narrow::<2>(panel, steps, x, half, out),
                    3 => narrow::<3>(panel, steps, x, half, out),
                    _ => narrow::<4>(panel, steps, x, half, out),
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn narrow<const T: usize>(panel: &Panel, steps: usize, x: [&Words; 4], half: usize, out: &mut [[f32; ROWS]]) {
        let out = &mut out[..T];
        let at = |r: &[f32; ROWS], i: usize| load_f32x8(&r.as_chunks::<8>().0[2 * half + i]);
        let mut sums: [[__m256; 2]; T] = std::array::from_fn(|t| [at(&out[t], 0), at(&out[t], 1)]);
        for (i, step) in panel.codes[..steps].iter().enumerate() {
            let step = step.as_chunks::<32>().0;
            let w = [load_f32x8_bytes(&step[2 * half]), load_f32x8_bytes(&step[2 * half + 1])];
            for t in 0..T {
                let x = _mm256_set1_ps(f32::from_bits(x[t].0[i & (WORDS - 1)]));
                for h in 0..2 {
                    sums[t][h] = _mm256_fmadd_ps(w[h], x, sums[t][h]);
                }
            }
        }
        for t in 0..T {
            for h in 0..2 {
                store_f32x8(&mut out[t].as_chunks_mut::<8>().0[2 * half + h], sums[t][h]);
            }
        }
    }
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
