//! Many tokens at once for formats whose weights are floats themselves (see tile.rs for codes): nothing is decoded, and
//! a few rows meet a few tokens straight from memory.
//!
//! ```text
//! 4 rows x 6 tokens:   24 sums of 16 lanes stay in registers for the whole length of the rows; four loads of weights
//!                      and six of activations feed 24 multiplications; at the end each sum's lanes are added up
//! F32 form             activations as f32; weights are widened as they are loaded
//! Bf16 form            activations rounded to BF16; weights as they are
//! ```
//! `vdpbf16ps` multiplies 32 pairs where a fused multiply-add multiplies 16 floats, but wants both sides as BF16: a
//! prompt's activations are rounded (to nearest, ties to even), which is what other engines do with BF16 weights on such
//! CPUs. A single token's are not. The instruction takes subnormals for zero.
//!
//! Left: panels of floats, as of codes (32 rows' words turned to stand side by side). Turning costs a tenth to a fifth
//! of multiplying with 32 tokens, and there is nothing to decode that would pay for it.

use super::act::Act;
use super::tile::{Ahead, ROWS, Source};
use crate::simd::Isa;

/// Words of activations that lie together.
pub const WORDS: usize = 128;

/// What many tokens' activations are made into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// 8-bit codes, for panels: tile.rs.
    Codes,
    /// f32, a column to a word.
    F32,
    /// BF16, two columns to a word.
    Bf16,
}

impl Form {
    /// Tokens from which they are quicker together than one by one, measured from cache (Zen 4, products/ns): BF16 pairs
    /// 30 for two and 42 for three, the row kernel 29; F16 with f32 24 and 33, the row kernel 25; panels of codes 64 for
    /// four (Q4_K) and 60 (IQ2_XXS), their row kernels 54 and 34. On AVX2 filling a panel takes three times as long: with
    /// 32 tokens 82 (Q4_K), 44 (Q8_0) and 46 (MXFP4), their row kernels 46, 34 and 31.
    pub fn worth(self, isa: Isa) -> usize {
        match self {
            Form::Bf16 | Form::F32 => 3,
            Form::Codes if isa == Isa::Avx2 => 16,
            Form::Codes => 4,
        }
    }

    /// Columns that lie together.
    pub fn columns(self) -> usize {
        match self {
            Form::Codes => super::tile::CHUNK,
            Form::F32 => WORDS,
            Form::Bf16 => 2 * WORDS,
        }
    }
}

/// [`WORDS`] words of a row of activations; zeros where the row has ended.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Words(pub [u32; WORDS]);

impl Words {
    /// Nothing.
    pub const ZERO: Words = Words([0; WORDS]);

    /// Takes as many columns of a row, or its last few.
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

/// The rows of `w` times the tokens of `x`, added to `out`: the first words of all `rows` of them, then the next.
pub(super) struct Product<'a> {
    pub(super) w: Source<'a>,
    /// Columns.
    pub(super) n: usize,
    pub(super) x: &'a [Words],
    pub(super) rows: usize,
    pub(super) tokens: &'a [(u32, u32)],
}

impl Product<'_> {
    /// For weights of two bytes: BF16 where `act` says so, else F16.
    #[allow(unsafe_code)]
    pub(super) fn add(&self, act: Act, isa: Isa, out: &mut [[f32; ROWS]]) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller compared the instruction set with what the CPU has.
        unsafe {
            match (act, isa) {
                (Act::Bf16, Isa::Avx512Bf16) => return x86::bf16_pairs(self, out),
                (Act::Bf16, Isa::Avx512) => return x86::bf16_avx512(self, out),
                (Act::Bf16, Isa::Avx2) => return x86::bf16_avx2(self, out),
                (_, Isa::Avx512Bf16 | Isa::Avx512) => return x86::f16_avx512(self, out),
                (_, Isa::Avx2) => return x86::f16_avx2(self, out),
                (_, Isa::Scalar) => {}
            }
        }
        let bf16 = |b: &[u8; 2]| half::bf16::from_le_bytes(*b).to_f64();
        let f16 = |b: &[u8; 2]| half::f16::from_le_bytes(*b).to_f64();
        let value: &dyn Fn(&[u8; 2]) -> f64 = if act == Act::Bf16 { &bf16 } else { &f16 };
        for (&(t, _), out) in self.tokens.iter().zip(out) {
            for (r, out) in out[..self.w.rows].iter_mut().enumerate() {
                let row = self.w.row(r)[..2 * self.n].as_chunks().0;
                let x = (0..).map(|k| f32::from_bits(self.x[k / WORDS * self.rows + t as usize].0[k % WORDS]) as f64);
                *out += row.iter().zip(x).map(|(w, x)| value(w) * x).sum::<f64>() as f32;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::*;
    use crate::quant::{ActRow, rows};
    use crate::simd::x86::*;
    use std::arch::x86_64::*;

    /// Tokens that are multiplied together.
    const TOKENS: usize = 6;
    /// Bytes of activations that stay in the second-level cache while all rows go by.
    const BLOCK: usize = 256 * 1024;

    /// The sum of all lanes of eight vectors.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::quant) fn sum_of_eight(mut sums: [__m512; 8]) -> f32 {
        for half in [4, 2, 1] {
            for i in 0..half {
                sums[i] = _mm512_add_ps(sums[i], sums[i + half]);
            }
        }
        _mm512_reduce_add_ps(sums[0])
    }

    /// The row kernel of every float format: `load` makes 16 floats of `BYTES` bytes, `value` one float of its share.
    ///
    /// One row after the other, as one long stream of memory; eight sums hide the latency of the fused multiply-add.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
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
            let tail = row_tail.as_chunks::<ONE>().0.iter().zip(x_tail);
            *out = sum_of_eight(sums) + tail.map(|(w, x)| value(w) * x).sum::<f32>();
        }
    }

    /// Tokens in groups as even as can be: few sums in flight leave the multiplier waiting.
    fn groups(tokens: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let n = tokens.div_ceil(most.max(1));
        (0..n).map(move |i| tokens * i / n..tokens * (i + 1) / n)
    }

    /// `$name`: a product by `$one`, `$rows` rows and up to six tokens at a time. `$bytes` bytes of weights make a vector
    /// of `$lanes` words by `$load`; `$fold` adds up the lanes of the rows' sums.
    macro_rules! product {
        ($name:ident, $one:ident, $features:literal, $v:ty, $rows:literal, $bytes:literal, $lanes:literal, $load:expr,
         $x:expr, $zero:expr, $dot:expr, $fold:expr) => {
            #[target_feature(enable = $features)]
            pub(in crate::quant) fn $name(p: &Product<'_>, out: &mut [[f32; ROWS]]) {
                const PARTS: usize = WORDS / $lanes;
                let blocks = groups(p.tokens.len(), BLOCK / (size_of::<Words>() * p.x.len() / p.rows).max(1));
                let tasks =
                    blocks.flat_map(|block| (0..p.w.rows).step_by($rows).map(move |first| (block.clone(), first)));
                for (block, first) in tasks {
                    let (tokens, out) = (&p.tokens[block.clone()], &mut out[block.clone()]);
                    let rows: [&[u8]; $rows] = std::array::from_fn(|r| &p.w.row(first + r)[..2 * p.n]);
                    let whole: [&[[[u8; $bytes]; PARTS]]; $rows] =
                        rows.map(|row| row.as_chunks::<$bytes>().0.as_chunks::<PARTS>().0);
                    let done = whole[0].len() * $bytes * PARTS;
                    // The columns after the last full run of words, zeros after them.
                    let mut last = [[[0; $bytes]; PARTS]; $rows];
                    for (last, row) in last.iter_mut().zip(rows) {
                        last.as_flattened_mut()[..2 * p.n - done].copy_from_slice(&row[done..]);
                    }
                    let last = (done < 2 * p.n).then_some(&last);
                    let next = (first + $rows) * p.w.stride;
                    let ahead = Ahead::new(p.w.w, next, p.w.stride, $rows * p.w.stride, 1, tokens.len());
                    for some in groups(tokens.len(), TOKENS) {
                        if block.start == 0 {
                            ahead.ask(&some);
                        }
                        let (tokens, out) = (&tokens[some.clone()], &mut out[some]);
                        match tokens.len() {
                            1 => $one::<1>(p, whole, last, tokens, out, first),
                            2 => $one::<2>(p, whole, last, tokens, out, first),
                            3 => $one::<3>(p, whole, last, tokens, out, first),
                            4 => $one::<4>(p, whole, last, tokens, out, first),
                            5 => $one::<5>(p, whole, last, tokens, out, first),
                            _ => $one::<6>(p, whole, last, tokens, out, first),
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            fn $one<const T: usize>(
                p: &Product<'_>,
                whole: [&[[[u8; $bytes]; WORDS / $lanes]]; $rows],
                last: Option<&[[[u8; $bytes]; WORDS / $lanes]; $rows]>,
                tokens: &[(u32, u32)],
                out: &mut [[f32; ROWS]],
                first: usize,
            ) {
                const PARTS: usize = WORDS / $lanes;
                let at: [usize; T] = std::array::from_fn(|t| tokens[t].0 as usize);
                let mut sums = [[$zero; $rows]; T];
                let mut part = |w: [&[[u8; $bytes]; PARTS]; $rows], x: &[Words]| {
                    let x: [&[[u8; 4 * $lanes]; PARTS]; T] = at.map(|t| bytemuck::cast_ref(&x[t].0));
                    for j in 0..PARTS {
                        let w: [$v; $rows] = std::array::from_fn(|r| $load(&w[r][j]));
                        for t in 0..T {
                            let x = $x(&x[t][j]);
                            for r in 0..$rows {
                                sums[t][r] = $dot(sums[t][r], w[r], x);
                            }
                        }
                    }
                };
                let count = whole[0].len();
                let whole = whole.map(|row| &row[..count]);
                let mut x = p.x.chunks_exact(p.rows);
                for c in 0..count {
                    part(std::array::from_fn(|r| &whole[r][c]), x.next().expect("words for every column"));
                }
                if let Some(last) = last {
                    part(last.each_ref(), x.next().expect("words for every column"));
                }
                for (out, sums) in out.iter_mut().zip(sums) {
                    let out: &mut [f32; $rows] = &mut out.as_chunks_mut().0[first / $rows];
                    out.iter_mut().zip($fold(sums)).for_each(|(out, sum)| *out += sum);
                }
            }
        };
    }
    /// The product on activations as f32, of weights that `$load` widens.
    macro_rules! product_f32 {
        (512, $name:ident, $one:ident, $load:ident) => {
            product!(
                $name,
                $one,
                "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
                __m512,
                4,
                32,
                16,
                $load,
                load_f32x16_bytes,
                _mm512_setzero_ps(),
                |sum, w, x| _mm512_fmadd_ps(w, x, sum),
                |s| fold4(s)
            );
        };
        (256, $name:ident, $one:ident, $load:ident) => {
            product!(
                $name,
                $one,
                "avx2,fma,f16c",
                __m256,
                2,
                16,
                8,
                $load,
                load_f32x8_bytes,
                _mm256_setzero_ps(),
                |sum, w, x| _mm256_fmadd_ps(w, x, sum),
                |s: [__m256; 2]| s.map(|s| sum_f32x8(s))
            );
        };
    }
    product!(
        bf16_pairs,
        bf16_pairs_some,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c",
        __m512i,
        4,
        64,
        16,
        load_u8x64,
        load_u8x64,
        _mm512_setzero_ps(),
        |sum, w, x| dot_bf16(sum, w, x),
        |s| fold4(s)
    );
    product_f32!(512, bf16_avx512, bf16_avx512_some, load_bf16x16);
    product_f32!(512, f16_avx512, f16_avx512_some, load_f16x16);
    product_f32!(256, bf16_avx2, bf16_avx2_some, load_bf16x8);
    product_f32!(256, f16_avx2, f16_avx2_some, load_f16x8);
}

#[cfg(test)]
mod tests {
    use super::round;
    use crate::quant::act::Acts;
    use crate::quant::tile::{Source, Work};
    use crate::quant::{Rng, bf16, f16};
    use crate::simd::{self, Isa};

    #[test]
    fn a_token_gets_the_same_bits_alone_and_among_a_hundred() {
        let mut rng = Rng(8);
        let (n, rows, count) = (3001, 7, 100);
        let x: Vec<f32> = (0..n * count).map(|_| rng.normal()).collect();
        for ty in [&f16::TYPE, &bf16::TYPE] {
            let stride = ty.row_bytes(n);
            let mut w = vec![0; stride * rows];
            w.chunks_exact_mut(ty.bytes).for_each(|b| (ty.random)(&mut rng, b));
            let (mut acts, mut work) = (Acts::default(), Work::default());
            for isa in Isa::ALL.into_iter().filter(|i| *i <= simd::detected()) {
                acts.set_panels(ty.act, isa, n, &x);
                let mut run = |tokens: &[(u32, u32)]| {
                    let mut out = Vec::new();
                    let add = |_: u32, sums: &[f32]| out.extend(sums.iter().map(|v| v.to_bits()));
                    work.multiply(ty, Source { w: &w, stride, rows }, acts.tile(), tokens, isa, add);
                    out
                };
                let tokens: Vec<(u32, u32)> = (0..count as u32).map(|t| (t, t)).collect();
                let alone: Vec<u32> = tokens.iter().flat_map(|t| run(&[*t])).collect();
                assert!(run(&tokens) == alone, "{} {}", ty.name, isa.name());
            }
        }
    }

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
