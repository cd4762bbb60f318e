//! Products with many tokens by matrix tiles (AMX): panels of codes times int8 tiles, BF16 weights
//! times BF16 tiles. The instructions are in simd/tiles.rs.
//!
//! **Codes.** A panel's codes lie as a tile wants them, so every format's decoder is used as it is.
//! A tile sums what it multiplies in integers, so it may hold one group of codes at most: 16 or 32
//! columns of its 64, all of them where 256 share a scale. Its 16 tokens x 16 rows of sums are
//! stored, and AVX-512 scales them into 16 registers, one per token: the same operations in the
//! same order as in codes.rs, so that a product has the same bits as without tiles.
//!
//! ```text
//! cycles for 16 tokens x 16 rows x 32 columns on Sapphire Rapids, by unit (all work at one time):
//!   tile products      16   one tdpbssd, however few of its columns are used
//!   loads              20   16 rows of activations, 8 of codes, 16 of sums; 2 per cycle
//!   stores             16   16 rows of sums; 1 per cycle
//!   vector arithmetic  16   to f32 and a multiply-add for each row of sums, 2 per cycle;
//!                           8 more for scales per 32 activations, 8 more for minimums
//!   issue              17   6 instructions per cycle: 65 to 100 beside those of tiles (release build)
//! AVX-512 alone        80   8 vpdpbusd and 2 for the scale, for each token;
//!                           8 more for scales per 32 activations, 8 more for minimums
//! ```
//! So 20 to 32 cycles take the place of 80 to 96: 4.0 times less for IQ4_XS and IQ2_XXS, 3.7 for
//! Q4_K, Q8_0 and MXFP4, 3.0 for Q4_1. Of formats with 16 columns to a scale a group takes the same
//! cycles for half the products: 2.4 times less than AVX-512's 48. Of Q2_K, with 256, 4.5 times
//! less. These are figures of the instruction tables and of the measured peak (3.7 T products a
//! second), not of this code: it was written where no such CPU was. `cargo bench --bench kernels`
//! measures it.
//!
//! **BF16.** Scales are no question, and sums stay in tiles for the whole length of a row: two
//! tiles of 16 rows times two of 16 tokens, so that four loads (32 cycles, or 80 where all of them
//! come from the second-level cache) feed four products (64 cycles; AVX-512 takes 1024). Weights
//! are loaded from the model's memory as they are. The activations of each 16 tokens are turned
//! once for all rows that a thread multiplies them with.
//!
//! Considered, by the same counting, for 32 rows x 256 columns (a panel; 8 Ki products for each
//! token):
//! - Panels decoded to BF16, scales and minimums included: 256 cycles for 16 tokens where int8
//!   takes 320 to 384, but decoding costs about 1100 more (5 operations for 16 weights), as much as
//!   70 tokens save. An expert rarely sees 70. And codes rounded to 8 bits of mantissa would be one
//!   more error; here there is none.
//! - Integer scales of sub-blocks multiplied into the codes, in two bytes, high and low: two
//!   products for 64 columns instead of two for twice 32, scaled once per 256. 256 cycles for 16
//!   tokens, but 700 more to decode. For groups of 16 (Q6_K, Q3_K, IQ2_S) that is 256 cycles where
//!   640 are taken now, and worth it from some 30 tokens on: the next thing to try. Q3_K's codes
//!   times its scales fit one byte, negated.
//! - Minimums as a BF16 product of their own (three terms of each minimum, two of each sum, exact):
//!   32 cycles for 16 tokens and panel instead of 128 of vector arithmetic, which would then bind
//!   no longer. Q4_K's 384 would be some 330.
//! - F16 weights as two BF16 terms: possible (40 products where AVX-512 has 100), left out, since
//!   models in F16 are rare.
//!
//! Tokens are cut into blocks of nearly equal size, 16 at most (33 tokens: three blocks of 11), so
//! that one shape of tiles serves all and few rows are empty.

use std::ops::Range;

use super::ahead::Ahead;
use super::panel::{Panel, ROWS, WeightRows};
use crate::quant::activations::{CHUNK, PanelActs};
use crate::simd::tiles::{CodeTiles, FloatTiles, TILE, TurnedWords};
use crate::simd::x86::*;
use std::arch::x86_64::*;

/// Tokens from which tiles multiply codes with 32 columns or more to a scale.
///
/// A panel costs AVX-512 80 to 96 cycles for each token (see the file's head). Tiles cost, for up
/// to 16 tokens, 16 products in turn of some 20 cycles if they overlap as they should, 320: then
/// they win from 4 tokens on. Of a product's latency (load 20, product 52, store and load again 30)
/// at least half is hidden, since the next one is started before a product's sums are read: 50
/// cycles each at worst, 800, which 10 tokens pay for. Tiles of fewer rows take no longer than full
/// ones. So 12 is right however well they overlap. Lower it to where `cargo bench --bench kernels`
/// shows tiles ahead.
const WORTH: usize = 12;
/// Tokens from which tiles multiply codes with 16 columns to a scale: 32 products in turn, of 50
/// cycles at worst, and AVX-512's 96 cycles for each token.
const WORTH_BY_16: usize = 18;
/// Tokens from which tiles multiply BF16. AVX-512 takes 256 cycles for each token, 32 rows and 256
/// columns; tiles take, where there is one block of tokens, two products of latency 52 in each of 8
/// steps, and the loads of their operands from the second-level cache: 500 cycles at worst,
/// whatever the tokens, and a tenth more to turn tokens and sums.
const WORTH_FLOATS: usize = 4;

/// Bytes of activations that a thread multiplies all rows of a piece with, and keeps in its
/// second-level cache (2 MB on these CPUs) meanwhile.
const CACHED: usize = 1 << 20;

/// Returns the number of tokens from which tiles multiply a format with `group` codes to a scale;
/// `None` for BF16.
pub(crate) fn worth(group: Option<usize>) -> usize {
    match group {
        Some(16) => WORTH_BY_16,
        Some(_) => WORTH,
        None => WORTH_FLOATS,
    }
}

/// Returns how many tokens of `n` values a product should take at once at most: whole blocks.
pub(crate) fn most_tokens(group: Option<usize>, n: usize) -> usize {
    let bytes = match group {
        Some(_) => n.div_ceil(CHUNK) * size_of::<TokenCodes>(),
        None => n.div_ceil(32) * size_of::<TurnedWords>(),
    };
    (CACHED / bytes.max(1)).max(4) * TILE
}

/// 256 columns of 16 tokens as codes.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct TokenCodes {
    q: [[i8; CHUNK]; TILE],
    /// The scale of every 32 columns, by token.
    d: [[f32; TILE]; CHUNK / 32],
    /// The sum of the columns that share a minimum, by token.
    sums: [[f32; TILE]; CHUNK / 16],
}

/// Sums of a tile, one row per token.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Sums([[i32; TILE]; TILE]);

/// What a thread keeps for tiles: the tokens of the last product in the order of tiles, so that the
/// next rows of the same matrix find them there.
#[derive(Debug, Default)]
pub(crate) struct TileScratch {
    /// Which activations `codes` or `words` are: the stamp, for which formats, and the tokens.
    stamp: u64,
    kind: Option<CodeKind>,
    tokens: Vec<(u32, u32)>,
    /// Tokens of a block.
    each: usize,
    /// All blocks of the first 256 columns, then of the next.
    codes: Vec<TokenCodes>,
    /// A block's steps of 32 columns, then those of the next block.
    words: Vec<TurnedWords>,
}

/// What a format of codes wants to know of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeKind {
    /// Codes that share a scale: 16, 32 or 256.
    pub(crate) group: usize,
    /// Whether groups have minimums; those of 16 have none.
    pub(crate) mins: bool,
}

/// A panel, and what it is multiplied as.
pub(crate) struct TilePanel<'a> {
    pub(crate) panel: &'a Panel,
    /// Number of the panel's columns among all, in runs of 256.
    pub(crate) chunk: usize,
    pub(crate) len: usize,
    pub(crate) group: usize,
    pub(crate) mins: bool,
    pub(crate) by_256: bool,
}

impl TileScratch {
    /// Puts the activations of these tokens in the order of tiles, unless they are there already.
    /// For codes that costs a quarter (a scale per 256 activations) to two thirds (minimums, or a
    /// scale per 32) of multiplying with one panel, and a thread usually has many panels for the
    /// same tokens: all rows of an expert. Where many threads share one matrix it may have only
    /// one or two; there, tokens that are put in order once for all threads would be better.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    pub(crate) fn gather(&mut self, x: PanelActs<'_>, tokens: &[(u32, u32)], codes: Option<CodeKind>) {
        if (self.stamp, self.kind, self.tokens.as_slice()) == (x.stamp, codes, tokens) {
            return;
        }
        (self.stamp, self.kind) = (x.stamp, codes);
        self.tokens.clear();
        self.tokens.extend_from_slice(tokens);
        self.each = tokens.len().div_ceil(tokens.len().div_ceil(TILE));
        match codes {
            Some(kind) => self.gather_codes(x, kind),
            None => self.gather_words(x),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    fn gather_codes(&mut self, x: PanelActs<'_>, kind: CodeKind) {
        let (blocks, by_256) = (self.tokens.len().div_ceil(self.each), x.block == CHUNK);
        let empty = TokenCodes { q: [[0; CHUNK]; TILE], d: [[0.0; TILE]; 8], sums: [[0.0; TILE]; 16] };
        self.codes.resize(x.n.div_ceil(CHUNK) * blocks, empty);
        for (i, to) in self.codes.iter_mut().enumerate() {
            let columns = &x.columns[i / blocks * x.rows..][..x.rows];
            let tokens = self.tokens.chunks(self.each).nth(i % blocks).unwrap_or_default();
            let mut rows = [[0f32; TILE]; TILE];
            for (t, (token, _)) in tokens.iter().enumerate() {
                let from = &columns[*token as usize];
                to.q[t].iter_mut().zip(from.u).for_each(|(q, u)| *q = (u ^ 0x80) as i8);
                to.d[0][t] = from.d[0];
                let [scales, sums] = rows[t].as_chunks_mut::<8>().0 else { continue };
                match kind {
                    CodeKind { mins: true, group: 32 } => {
                        *scales = from.d;
                        let pairs = from.sums.as_chunks::<2>().0;
                        sums.iter_mut().zip(pairs).for_each(|(to, [a, b])| *to = a + b);
                    }
                    CodeKind { mins: true, .. } => rows[t] = from.sums,
                    _ => *scales = from.d,
                }
            }
            to.q[tokens.len()..self.each].fill([0; CHUNK]); // the last block may have fewer
            match kind {
                CodeKind { mins: true, group: 33.. } => to.sums = turned(&rows), // all share a scale
                _ if by_256 && !kind.mins => {}
                _ => {
                    let rows = turned(&rows);
                    to.d.copy_from_slice(&rows[..8]);
                    to.sums[..8].copy_from_slice(&rows[8..]);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    fn gather_words(&mut self, x: PanelActs<'_>) {
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
                *to = bytemuck::cast(turned(&rows));
            }
        }
    }

    /// Adds the products of a panel with the gathered tokens to `sums`, one entry per token.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    pub(crate) fn add_codes(&self, tiles: &CodeTiles, p: &TilePanel<'_>, sums: &mut [[f32; ROWS]], ahead: Ahead<'_>) {
        let blocks = self.tokens.len().div_ceil(self.each);
        let codes = &self.codes[p.chunk * blocks..][..blocks];
        let sums = &mut sums[..self.tokens.len()];
        macro_rules! tokens {
            ($t:literal, $pairs:literal) => {
                match (p.mins, p.by_256) {
                    (false, false) => p.add::<$t, $pairs, false, false>(tiles, codes, self.each, sums, ahead),
                    (false, true) => p.add::<$t, $pairs, false, true>(tiles, codes, self.each, sums, ahead),
                    (true, false) => p.add::<$t, $pairs, true, false>(tiles, codes, self.each, sums, ahead),
                    (true, true) => p.add::<$t, $pairs, true, true>(tiles, codes, self.each, sums, ahead),
                }
            };
        }
        match (self.each, p.len / p.group % 2) {
            (..=8, 0) => tokens!(2, true),
            (9..=12, 0) => tokens!(3, true),
            (_, 0) => tokens!(4, true),
            _ => tokens!(4, false),
        }
    }

    /// Tiles for products of codes with the gathered tokens.
    pub(crate) fn code_tiles(&self, group: usize) -> CodeTiles {
        CodeTiles::new(self.each, group)
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
                    let by_token = turned(&products[2 * half + i]);
                    for (sums, product) in sums.iter_mut().zip(&by_token) {
                        sums.as_chunks_mut::<TILE>().0[half].iter_mut().zip(product).for_each(|(to, v)| *to += v);
                    }
                }
            }
        }
    }
}

/// Numbers of 16 rows, turned: row `w` has number `w` of every row.
#[target_feature(enable = "avx512f")]
fn turned(rows: &[[f32; TILE]; TILE]) -> [[f32; TILE]; TILE] {
    let mut to = [[0.0; TILE]; TILE];
    for (quarter, to) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let bytes: [&[u8; 16]; TILE] =
            std::array::from_fn(|r| bytemuck::cast_ref::<[f32; 4], [u8; 16]>(&rows[r].as_chunks::<4>().0[quarter]));
        for (to, v) in to.iter_mut().zip(turn_words_16(bytes)) {
            store_f32x16(to, _mm512_castsi512_ps(v));
        }
    }
    to
}

impl TilePanel<'_> {
    /// Adds the products of the panel with blocks of `each` tokens, at most `4 * F`, to `sums`. The
    /// panel's groups are even in number (`PAIRS`) or any number. Minimums are subtracted (`MINS`);
    /// 256 columns share an activation scale (`K`), or 32.
    ///
    /// A product's sums are scaled while the next product is under way. Four tokens together, so
    /// that the compiler unrolls the loops and keeps what it sums in registers; two groups, so that
    /// their places are constants.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    fn add<const F: usize, const PAIRS: bool, const MINS: bool, const K: bool>(
        &self,
        tiles: &CodeTiles,
        codes: &[TokenCodes],
        each: usize,
        sums: &mut [[f32; ROWS]],
        ahead: Ahead<'_>,
    ) {
        let p = self.panel;
        let groups = self.len / self.group;
        let (mut even, mut odd) = (Sums([[0; TILE]; TILE]), Sums([[0; TILE]; TILE]));
        let (mut now, mut then) = (&mut even, &mut odd);
        self.start(tiles, &codes[0], (0, 0), false, now);
        for (b, (block, sums)) in codes.iter().zip(sums.chunks_mut(each)).enumerate() {
            ahead.ask(&(b * each..b * each + sums.len()));
            for half in 0..2 {
                let after = if half == 0 { Some(block) } else { codes.get(b + 1) };
                let mut all = [[_mm512_setzero_ps(); 4]; F];
                if !K {
                    for (to, from) in all.as_flattened_mut().iter_mut().zip(&*sums) {
                        *to = load_f32x16(&from.as_chunks().0[half]);
                    }
                }
                // Indices are masked to save bounds checks.
                macro_rules! scale {
                    ($g:expr, $dots:expr) => {
                        let (g, dots) = ($g, $dots.as_chunks::<4>().0);
                        let scale = load_f32x16(&p.scale[g & 15].as_chunks().0[half]);
                        let d = block.d[(g * self.group / 32) & 7].as_chunks::<4>().0;
                        for f in 0..F {
                            for t in 0..4 {
                                let scale = if K { scale } else { _mm512_mul_ps(scale, _mm512_set1_ps(d[f][t])) };
                                let dots = _mm512_cvtepi32_ps(load_i32x16(&dots[f][t]));
                                all[f][t] = _mm512_fmadd_ps(dots, scale, all[f][t]);
                            }
                        }
                        for m in if MINS { self.minimums(g) } else { 0..0 } {
                            let min = load_f32x16(&p.min[m & 15].as_chunks().0[half]);
                            let sums = block.sums[m & 15].as_chunks::<4>().0;
                            for f in 0..F {
                                for t in 0..4 {
                                    all[f][t] = _mm512_fnmadd_ps(min, _mm512_set1_ps(sums[f][t]), all[f][t]);
                                }
                            }
                        }
                    };
                }
                for g in (0..groups).step_by(1 + PAIRS as usize) {
                    let mut done = g;
                    if PAIRS {
                        self.start(tiles, block, (half, g + 1), true, then);
                        scale!(g, now.0);
                        done += 1;
                    }
                    let next = if done + 1 < groups { (Some(block), half, done + 1) } else { (after, 1 - half, 0) };
                    if let (Some(block), half, g) = next {
                        let odd = !PAIRS && (half + g) % 2 == 1;
                        self.start(tiles, block, (half, g), odd, if PAIRS { &mut *now } else { &mut *then });
                    }
                    if PAIRS {
                        scale!(done, then.0);
                    } else {
                        scale!(done, now.0);
                        std::mem::swap(&mut now, &mut then);
                    }
                }
                for (t, (sums, all)) in sums.iter_mut().zip(all.as_flattened()).enumerate() {
                    let to = &mut sums.as_chunks_mut().0[half];
                    let d = _mm512_set1_ps(block.d[0][t]);
                    let all = if K { _mm512_fmadd_ps(*all, d, load_f32x16(to)) } else { *all };
                    store_f32x16(to, all);
                }
            }
        }
    }

    /// Starts the product of a block of tokens with a group of half of the rows, `(half, group)`.
    /// An `odd` one uses other tiles than one that is not.
    #[inline(always)]
    fn start(&self, tiles: &CodeTiles, block: &TokenCodes, (half, g): (usize, usize), odd: bool, to: &mut Sums) {
        tiles.multiply(&block.q, &self.panel.codes, g * self.group / 4, half, odd, &mut to.0);
    }

    /// The numbers of group `g`'s minimums: one, or 16 where 256 columns are a group.
    #[inline(always)]
    fn minimums(&self, g: usize) -> Range<usize> {
        let each = if self.group > 32 { self.group / 16 } else { 1 };
        g * each..(g + 1) * each
    }
}
