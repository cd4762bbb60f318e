//! Kernels for many tokens and weights of two bytes (F16, BF16): nothing is decoded, the weights
//! are read in place. See codes.rs for the formats of codes.
//!
//! ```text
//! 4 rows x 6 tokens:   24 sums of 16 lanes stay in registers for the whole length of the rows;
//!                      four loads of weights and six of activations feed 24 multiplications; at
//!                      the end each sum's lanes are added up
//! F32 form             activations as f32; weights are widened as they are loaded
//! Bf16 form            activations rounded to BF16; weights as they are
//! ```
//! `vdpbf16ps` multiplies 32 pairs where a fused multiply-add multiplies 16 floats, but wants both
//! sides as BF16: a prompt's activations are rounded (to nearest, ties to even), which is what
//! other engines do with BF16 weights on such CPUs. A single token's are not. The instruction takes
//! subnormals for zero.
//!
//! Rejected: panels of floats, with the words of 32 rows transposed as codes are. Transposing costs
//! a tenth to a fifth of multiplying with 32 tokens, and saves no decoding that would pay for it.

#[cfg(target_arch = "x86_64")]
use super::ahead::Ahead;
use super::panel::{ROWS, WeightRows};
use crate::quant::activations::{Act, PanelWords, WORDS};
use crate::simd::Isa;

/// The rows of `w` times the tokens of `x`. `x` has the first words of all `rows` rows of
/// activations, then the next.
pub(crate) struct FloatProduct<'a> {
    pub(crate) w: WeightRows<'a>,
    /// Columns of a row.
    pub(crate) n: usize,
    pub(crate) x: &'a [PanelWords],
    pub(crate) rows: usize,
    pub(crate) tokens: &'a [(u32, u32)],
}

impl FloatProduct<'_> {
    /// Adds the products to `out`. The weights are BF16 if `act` is [`Act::Bf16`], else F16.
    #[allow(unsafe_code)]
    pub(crate) fn add(&self, act: Act, isa: Isa, out: &mut [[f32; ROWS]]) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller passes an instruction set that this CPU has.
        unsafe {
            match (act, isa) {
                (Act::Bf16, Isa::Avx512Bf16 | Isa::Amx) => return x86::bf16_pairs(self, out),
                (Act::Bf16, Isa::Avx512) => return x86::bf16_avx512(self, out),
                (Act::Bf16, Isa::Avx2 | Isa::AvxVnni) => return x86::bf16_avx2(self, out),
                (_, Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512) => return x86::f16_avx512(self, out),
                (_, Isa::Avx2 | Isa::AvxVnni) => return x86::f16_avx2(self, out),
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
mod x86 {
    use super::*;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;

    /// Tokens that are multiplied together.
    const TOKENS: usize = 6;
    /// Bytes of activations that stay in the second-level cache while all rows are read.
    const BLOCK: usize = 256 * 1024;

    /// Splits the tokens into groups of nearly equal size: a small group has too few sums to hide
    /// the latency.
    fn groups(tokens: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let n = tokens.div_ceil(most.max(1));
        (0..n).map(move |i| tokens * i / n..tokens * (i + 1) / n)
    }

    /// `$name`: a product by `$one`, `$rows` rows and up to six tokens at a time. `$bytes` bytes of
    /// weights make a vector of `$lanes` words by `$load`; `$fold` adds up the lanes of the rows'
    /// sums.
    macro_rules! product {
        ($name:ident, $one:ident, $features:literal, $v:ty, $rows:literal, $bytes:literal, $lanes:literal, $load:expr,
         $x:expr, $zero:expr, $dot:expr, $fold:expr) => {
            #[target_feature(enable = $features)]
            pub(crate) fn $name(p: &FloatProduct<'_>, out: &mut [[f32; ROWS]]) {
                const PARTS: usize = WORDS / $lanes;
                let blocks = groups(p.tokens.len(), BLOCK / (size_of::<PanelWords>() * p.x.len() / p.rows).max(1));
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
                p: &FloatProduct<'_>,
                whole: [&[[[u8; $bytes]; WORDS / $lanes]]; $rows],
                last: Option<&[[[u8; $bytes]; WORDS / $lanes]; $rows]>,
                tokens: &[(u32, u32)],
                out: &mut [[f32; ROWS]],
                first: usize,
            ) {
                const PARTS: usize = WORDS / $lanes;
                let at: [usize; T] = std::array::from_fn(|t| tokens[t].0 as usize);
                let mut sums = [[$zero; $rows]; T];
                let mut part = |w: [&[[u8; $bytes]; PARTS]; $rows], x: &[PanelWords]| {
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
