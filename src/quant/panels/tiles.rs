//! Products with many tokens by matrix tiles (AMX), for every format but F16 and F32: weights as
//! BF16 times tokens as BF16. The instructions are in simd/tiles.rs.
//!
//! ```text
//! codes   RowBlock     32 rows x 256 columns of weights, 16 KB, decoded from a panel (codes.rs) with
//!                      their scales and minimums: in the first-level cache while all tokens are
//!                      multiplied with it
//!         TokenBlock   up to 16 tokens x 256 columns, 8 KB; two of them times two halves of the
//!                      rows, so that 4 loads feed 4 products
//! BF16    rows         as they are in memory; 2 x 16 of them
//!         TurnedWords  16 tokens x 32 columns, turned once for all rows; sums stay in tiles for the
//!                      whole length of a row
//! ```
//! Codes times scales are rounded to BF16 (8 bits of mantissa), and so are activations, which other
//! kernels quantize to 8 bits with a scale for 32 or 256 of them. Both errors together are a third
//! of that one's: a prompt's rows are closer to what the file says than by codes. They have other
//! bits, which is why row kernels never take this way.
//!
//! Measured on one core of a Sapphire Rapids that others shared, the shortest of many runs, tiles
//! against AVX-512 (panels and BF16 pairs), weights from the second-level cache:
//!
//! ```text
//! tokens   16    24    32    40    48    64    128   512
//! Q8_0     0.72  0.83  0.91  1.05  1.14  1.30  1.80  2.03
//! Q4_K     0.68  0.82  0.94  1.05  1.21  1.46  2.02  2.22
//! Q6_K     0.73  0.86  0.97  1.10  1.26  1.41  1.98  2.15
//! IQ4_XS   0.67  0.80  0.92  1.01  1.12  1.34  1.83  1.97
//! MXFP4    0.70  0.83  0.92  1.02  1.15  1.31  1.82  2.04
//! IQ2_XXS  0.68  0.82  0.94  1.01  1.09  1.34  1.82  1.98
//! BF16     5.06  5.96  7.44  6.48  7.13  7.66  10.4  8.94
//!
//! ns for 32 rows x 256 columns of Q4_K: filling the panel 210, decoding it to BF16 640, products
//! with 32 tokens 330 (186 if nothing but the tiles' products took time), 250 to 550 more because
//! one pushes the other's data out of the first-level cache; AVX-512 takes 53 for each token
//!
//! cycles for 16 tokens x 16 rows x 32 columns: a product 16; with two loads 16; with a store, too,
//! 28; with sums that AVX-512 scales afterwards (to f32, multiply-add) 41
//! ```
//! Rejected:
//! - **int8 tiles**, which were here first and gave the bits of codes.rs. A tile may then hold one
//!   group of 16 or 32 codes, whose sums are stored and scaled outside; loads, stores and
//!   scaling do not overlap with products. 0.9 to 1.35 times AVX-512 with 128 tokens (Q6_K 0.91, Q8_0
//!   1.14, Q4_K 1.27, IQ2_XXS 1.34). By four products at a time in place of two 39 cycles for 41.
//! - Blocks of 128 columns, which leave more of the first-level cache free: sums are loaded and
//!   stored twice as often (Q4_K with 128 tokens 3210 ns for 2774).
//! - Prefetching the next pair of tokens into the first-level cache: no gain, or a loss.
//! - BF16 weights by RowBlocks, turned instead of the tokens: half as fast with 16 tokens.
//!
//! Not tried: integer scales multiplied into the codes, in two bytes, with one scale for 256
//! columns: exact and as many products as here (two for 64 columns), but for super-blocks alone,
//! and minimums come on top.

use super::ahead::Ahead;
use super::codes::shares_min;
use super::panel::{Panel, PanelSpec, ROWS, WeightRows};
use crate::quant::activations::{CHUNK, PanelActs};
use crate::simd::tiles::{FloatTiles, PanelTiles, RowBlock, TILE, TokenBlock, TurnedWords};
use crate::simd::x86::*;
use std::arch::x86_64::*;

/// Tokens from which tiles multiply BF16: nothing is decoded.
pub(crate) const WORTH_FLOATS: usize = 4;

/// Bytes of activations that a thread multiplies all rows of a piece with, and keeps in its
/// second-level cache (2 MB on these CPUs) meanwhile.
const CACHED: usize = 1 << 20;

/// Returns how many tokens of `n` values a product should take at once at most: whole blocks.
pub(crate) fn most_tokens(n: usize) -> usize {
    let bytes = n.div_ceil(CHUNK) * size_of::<TokenBlock>();
    (CACHED / bytes.max(1)).max(4) * TILE
}

/// What a thread keeps for tiles: decoded rows, and the tokens of the last product in blocks, so
/// that the next rows of the same matrix find them there.
#[derive(Debug)]
pub(crate) struct TileScratch {
    rows: Box<RowBlock>,
    /// Which activations `blocks` or `words` are: the stamp, which belongs to one format's activations, and the tokens.
    stamp: u64,
    tokens: Vec<(u32, u32)>,
    /// Tokens of a block; the last block may have fewer.
    each: usize,
    /// For panels: all blocks of the first 256 columns, an even number, then of the next.
    blocks: Vec<[TokenBlock; 2]>,
    /// For weights of BF16: a block's steps of 32 columns, then those of the next block.
    words: Vec<TurnedWords>,
}

impl Default for TileScratch {
    fn default() -> TileScratch {
        let rows = Box::new(RowBlock([[0; ROWS]; CHUNK / 2]));
        TileScratch { rows, stamp: 0, tokens: Vec::new(), each: 1, blocks: Vec::new(), words: Vec::new() }
    }
}

impl TileScratch {
    /// Whether other tokens are kept than these, which from now on are.
    fn changes(&mut self, x: PanelActs<'_>, tokens: &[(u32, u32)], each: usize) -> bool {
        if (self.stamp, self.tokens.as_slice()) == (x.stamp, tokens) {
            return false;
        }
        self.stamp = x.stamp;
        self.tokens.clear();
        self.tokens.extend_from_slice(tokens);
        self.each = each;
        true
    }

    /// Copies these tokens' activations into blocks of nearly equal size, two and two, unless they
    /// are there already. Returns the number of sums that products write: some more than tokens.
    pub(crate) fn gather(&mut self, x: PanelActs<'_>, tokens: &[(u32, u32)]) -> usize {
        let pairs = tokens.len().div_ceil(2 * TILE);
        if self.changes(x, tokens, tokens.len().div_ceil(2 * pairs)) {
            let empty = TokenBlock([[[0; TILE]; TILE]; CHUNK / 32]);
            self.blocks.resize(x.n.div_ceil(CHUNK) * pairs, [empty.clone(), empty]);
            for (i, to) in self.blocks.as_flattened_mut().iter_mut().enumerate() {
                let words = &x.words[i / (2 * pairs) * x.rows..][..x.rows];
                let tokens = tokens.chunks(self.each).nth(i % (2 * pairs)).unwrap_or_default();
                for (step, to) in to.0.iter_mut().enumerate() {
                    for (to, (token, _)) in to.iter_mut().zip(tokens) {
                        *to = words[*token as usize].0.as_chunks().0[step];
                    }
                    to[tokens.len()..self.each].fill([0; TILE]);
                }
            }
        }
        2 * pairs * self.each
    }

    /// Turns these tokens' activations for weights of BF16, in blocks of nearly equal size, unless
    /// they are there already.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    pub(crate) fn gather_words(&mut self, x: PanelActs<'_>, tokens: &[(u32, u32)]) {
        if !self.changes(x, tokens, tokens.len().div_ceil(tokens.len().div_ceil(TILE))) {
            return;
        }
        let steps = x.n.div_ceil(32);
        let zeros = [[0f32; TILE]; TILE];
        self.words.resize(self.tokens.len().div_ceil(self.each) * steps, [[0; TILE]; TILE]);
        for (tokens, to) in self.tokens.chunks(self.each).zip(self.words.chunks_mut(steps)) {
            for (step, to) in to.iter_mut().enumerate() {
                let words = &x.words[step / 8 * x.rows..][..x.rows];
                let mut rows = zeros;
                for (row, (token, _)) in rows.iter_mut().zip(tokens) {
                    let words = words[*token as usize].0.as_chunks::<TILE>().0[step % 8];
                    *row = bytemuck::cast(words);
                }
                *to = bytemuck::cast(turned_16(&rows));
            }
        }
    }

    /// Adds the products of a panel, columns `256 * chunk..256 * chunk + len`, with the gathered
    /// tokens to `sums`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) fn add_codes(
        &mut self,
        tiles: &PanelTiles,
        (panel, spec): (&Panel, &PanelSpec),
        (chunk, len): (usize, usize),
        sums: &mut [[f32; ROWS]],
        ahead: Ahead<'_>,
    ) {
        match spec.mins {
            true => decode::<true>(panel, spec.group, len, &mut self.rows),
            false => decode::<false>(panel, spec.group, len, &mut self.rows),
        }
        self.multiply(tiles, (chunk, len), sums, ahead);
    }

    /// Adds the products of rows of BF16 with the gathered tokens to `sums`, one entry per token.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    pub(crate) fn add_floats(&self, w: WeightRows<'_>, n: usize, sums: &mut [[f32; ROWS]]) {
        let tiles = FloatTiles::new(w.rows, self.each);
        let (whole, steps) = (n / 32, n.div_ceil(32));
        // The columns after the last 32, zeros after them.
        let mut rest = [0u8; 64 * ROWS];
        if whole < steps {
            for (r, to) in rest.as_chunks_mut::<64>().0[..w.rows].iter_mut().enumerate() {
                let row = &w.row(r)[64 * whole..2 * n];
                to[..row.len()].copy_from_slice(row);
            }
        }
        let ahead = Ahead::new(w.w, ROWS * w.stride, w.stride, ROWS * w.stride, 1, self.tokens.len());
        let words: Vec<&[TurnedWords]> = self.words.chunks(steps).collect();
        for (i, (pair, sums)) in words.chunks(2).zip(sums.chunks_mut(2 * self.each)).enumerate() {
            ahead.ask(&(2 * i * self.each..2 * i * self.each + sums.len()));
            let second = pair.get(1).copied().unwrap_or_default();
            let mut products = [[[0f32; TILE]; TILE]; 4];
            tiles.multiply(w.w, w.stride, [&pair[0][..whole], second.get(..whole).unwrap_or_default()], &mut products);
            tiles.multiply(&rest, 64, [&pair[0][whole..], second.get(whole..).unwrap_or_default()], &mut products);
            for (i, sums) in sums.chunks_mut(self.each).enumerate() {
                for half in 0..w.rows.div_ceil(TILE) {
                    let by_token = turned_16(&products[2 * half + i]);
                    for (sums, product) in sums.iter_mut().zip(&by_token) {
                        sums.as_chunks_mut::<TILE>().0[half].iter_mut().zip(product).for_each(|(to, v)| *to += v);
                    }
                }
            }
        }
    }

    /// Tiles for the gathered tokens.
    pub(crate) fn tiles(&self) -> PanelTiles {
        PanelTiles::new(self.each)
    }

    #[target_feature(enable = "avx2")]
    fn multiply(&self, tiles: &PanelTiles, (chunk, len): (usize, usize), sums: &mut [[f32; ROWS]], ahead: Ahead<'_>) {
        let pairs = sums.len() / (2 * self.each);
        let blocks = &self.blocks[chunk * pairs..][..pairs];
        for (i, (x, sums)) in blocks.iter().zip(sums.chunks_exact_mut(2 * self.each)).enumerate() {
            ahead.ask(&(2 * i * self.each..2 * (i + 1) * self.each));
            tiles.multiply(x, &self.rows, len.div_ceil(32), sums);
        }
    }
}

/// Decodes a panel's first `len` columns: code times scale, less the minimum (`MINS`).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn decode<const MINS: bool>(panel: &Panel, group: usize, len: usize, to: &mut RowBlock) {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    let each_four_times = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    // 32 numbers, one for each row, as 8 vectors that have each of 4 rows' four times.
    let spread = |numbers: &[f32; ROWS]| -> [__m512; 8] {
        let mut to = [_mm512_setzero_ps(); 8];
        for (half, numbers) in numbers.as_chunks().0.iter().enumerate() {
            let numbers = load_f32x16(numbers);
            for four in 0..4 {
                let rows = _mm512_add_epi32(each_four_times, _mm512_set1_epi32(4 * four as i32));
                to[4 * half + four] = _mm512_permutexvar_ps(rows, numbers);
            }
        }
        to
    };
    // Columns that share both.
    let columns = if MINS { shares_min(group) } else { group };
    let words = to.0.as_chunks_mut::<2>().0.chunks_mut(columns / 4);
    for (g, (codes, words)) in panel.codes[..len / 4].chunks(columns / 4).zip(words).enumerate() {
        let scale = spread(&panel.scale[g * columns / group]);
        let min = if MINS { spread(&panel.min[g]) } else { [_mm512_setzero_ps(); 8] };
        for (codes, [first, second]) in codes.iter().zip(words) {
            for half in 0..2 {
                // 4 rows x 4 columns in a vector.
                let mut rows = [_mm512_setzero_ps(); 4];
                for (four, to) in rows.iter_mut().enumerate() {
                    let i = 4 * half + four;
                    let code = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_u8x16(&codes.as_chunks().0[i])));
                    *to = match MINS {
                        true => _mm512_fmsub_ps(code, scale[i], min[i]),
                        false => _mm512_mul_ps(code, scale[i]),
                    };
                }
                // Words of two columns: the first and the second of each row in turn.
                let [a, b] = [0, 2].map(|i| -> __m512i { round_bf16x32(rows[i], rows[i + 1]) });
                store_u32x16(&mut first.as_chunks_mut().0[half], _mm512_permutex2var_epi32(a, even, b));
                store_u32x16(&mut second.as_chunks_mut().0[half], _mm512_permutex2var_epi32(a, odd, b));
            }
        }
    }
}
