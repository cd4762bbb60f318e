//! Attention for many query rows by matrix tiles (AMX): what `dense.rs` has with other instructions.
//!
//! ```text
//! scores   S (keys x rows)      = K (keys x columns)  Q (columns x rows)     32 x 32 at a time
//! softmax  of each row, a lane of a vector: largest, exponentials and sums go down the keys
//! mix      out (rows x columns) += P (rows x keys)    V (keys x columns)     32 x 32 at a time
//! ```
//! Tiles multiply numbers of BF16, 8 bits of mantissa. Every number is therefore taken as two of them, which make up 16
//! bits (what a half-precision cache holds is exact), and of the four products of their parts the three large ones are
//! computed. The error is some 2^-16 of a term, less than what queries rounded to half precision would have, as llama.cpp
//! multiplies them.
//!
//! Which numbers share a word does not matter as long as both sides have them in the same order: here number i of 32 with
//! number i + 16, so that splitting takes no shuffles.
//!
//! A row's result does not depend on which other rows are computed with it, but it has other bits than `dense.rs` gives.
//!
//! Measured on one core of a Sapphire Rapids (2.1 GHz, its other hyperthread in use by others, the shortest of many runs):
//! microseconds for 64 keys and values of 128 columns in half precision.
//!
//! ```text
//! query rows                 16     24     32     64    128    256
//! dense.rs (AVX-512)        7.4   10.5   14.1   28.2     56    113
//! tiles                     6.7    7.1    7.3   11.6   19.0   32.7
//!   splitting keys, scores  2.4    2.5    2.6    3.8    5.7    8.2
//!   softmax                 1.3    1.3    1.4    3.0    5.6   11.6
//!   splitting values, mix   2.6    2.9    2.8    4.2    6.8   12.2
//! products alone            0.4    0.5    0.7    1.5    2.9    5.8
//! ```
//! A product of tiles takes 8.0 ns where all is in the first-level cache, 10 to 11 where operands come from the second, as
//! they do here. What did not help: asking for the next 32 rows or columns during the products (between nothing and 8%,
//! within the noise).

#![allow(unsafe_code)] // calls of functions compiled for an instruction set, after the system gave its state

use super::dense::{BLOCK, COLS, Rows, Soft};
use crate::simd::tiles::{SplitBlock, SplitTiles, TILE};
use crate::simd::x86::*;
use crate::simd::{self, Isa};
use std::arch::x86_64::*;

/// Query rows that are computed together: those that are missing are zeros.
const ROWS: usize = 2 * TILE;

/// A thread's tiles and what it multiplies with them. One exists on a thread at a time.
#[derive(Debug)]
pub struct TileAttention<'a> {
    tiles: SplitTiles,
    b: &'a mut TileBuffers,
}

/// Memory that a thread keeps for tiles.
#[derive(Debug, Default)]
pub struct TileBuffers {
    /// Query rows, a multiple of [`ROWS`].
    rows: usize,
    /// Steps of 32 columns of a key.
    steps: usize,
    /// 16 rows at a time, step by step.
    queries: Vec<SplitBlock>,
    /// 16 keys at a time, step by step of columns.
    keys: Vec<SplitBlock>,
    /// A key's scores of all rows, then the next key's.
    scores: Vec<f32>,
    /// The proportions of values: 16 rows at a time, step by step of 32 keys.
    shares: Vec<SplitBlock>,
    /// 16 columns at a time, step by step of 32 keys.
    values: Vec<SplitBlock>,
}

/// Whether attention goes this way: the instruction set in use has tiles.
pub(super) fn usable() -> bool {
    simd::isa() >= Isa::Amx
}

impl<'a> TileAttention<'a> {
    /// Takes query rows of `dim` values, times `scale`.
    ///
    /// # Panics
    /// If the CPU has no tiles, or this process was not given them.
    pub fn new<'q>(
        b: &'a mut TileBuffers,
        dim: usize,
        scale: f32,
        rows: impl ExactSizeIterator<Item = &'q [f32]>,
    ) -> TileAttention<'a> {
        assert!(simd::detected() >= Isa::Avx512, "a CPU with tiles, or one that has all else");
        let tiles = SplitTiles::new();
        b.rows = rows.len().next_multiple_of(ROWS);
        b.steps = dim.div_ceil(COLS);
        // SAFETY: as was just asserted, the CPU has AVX-512.
        unsafe { b.set_queries(scale, rows) };
        TileAttention { tiles, b }
    }

    /// Query rows, a multiple of [`ROWS`]: as many as a [`Soft`] must have.
    pub fn rows(&self) -> usize {
        self.b.rows
    }

    /// Multiplies all rows with these keys.
    pub fn scores(&mut self, k: Rows<'_>) {
        // SAFETY: `new` asserted that the CPU has AVX-512.
        unsafe { self.multiply_keys(k) }
    }

    /// Makes shares of the scores of the first `n` keys: `limits` are the first key that each row sees and the one after the
    /// last. What the rows had before is scaled to the new largest scores.
    pub fn softmax(&mut self, n: usize, limits: &[[usize; 2]], cap: Option<f32>, soft: &mut Soft<'_>) {
        // SAFETY: as for `scores`.
        unsafe { self.share(n, limits, cap, soft) }
    }

    /// Adds these values in the shares of their keys to the rows' sums.
    pub fn mix(&mut self, v: Rows<'_>, out: &mut [f32]) {
        // SAFETY: as for `scores`.
        unsafe { self.multiply_values(v, out) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn multiply_keys(&mut self, k: Rows<'_>) {
        let (b, n) = (&mut *self.b, k.rows.len().next_multiple_of(2 * TILE));
        b.set_keys(k);
        b.scores.resize(n * b.rows, 0.0);
        for row in (0..b.rows).step_by(ROWS) {
            let queries = pair(&b.queries, row / TILE, b.steps);
            for key in (0..n).step_by(2 * TILE) {
                let sums = &mut b.scores[key * b.rows + row..];
                self.tiles.multiply::<false>(pair(&b.keys, key / TILE, b.steps), queries, sums, b.rows);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn share(&mut self, n: usize, limits: &[[usize; 2]], cap: Option<f32>, soft: &mut Soft<'_>) {
        let b = &mut *self.b;
        if let Some(cap) = cap {
            b.scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
        }
        let steps = n.div_ceil(2 * TILE);
        b.shares.resize(b.rows / TILE * steps, SplitBlock::ZERO);
        for (lot, shares) in b.shares.chunks_exact_mut(steps).enumerate() {
            let limits = Limits::of(limits.get(lot * TILE..).unwrap_or_default(), 2 * TILE * steps);
            let of_lot = lot * TILE..(lot + 1) * TILE;
            let [most, sum]: [&mut [f32; TILE]; 2] =
                [&mut *soft.most, &mut *soft.sum].map(|all| all[of_lot.clone()].first_chunk_mut().expect("16 rows"));
            let before = load_f32x16(most);
            let largest = largest(&b.scores[lot * TILE..], b.rows, &limits, before);
            let mut sums = _mm512_setzero_ps();
            for (step, to) in shares.iter_mut().enumerate() {
                let scores = &b.scores[2 * TILE * step * b.rows + lot * TILE..];
                *to = share_step(scores, b.rows, 2 * TILE * step, &limits, largest, &mut sums);
            }
            let mut less = [0.0; TILE];
            store_f32x16(&mut less, exp(_mm512_sub_ps(before, largest)));
            store_f32x16(sum, _mm512_fmadd_ps(load_f32x16(sum), load_f32x16(&less), sums));
            store_f32x16(most, largest);
            for (less, out) in less.iter().zip(soft.out[lot * TILE * soft.width..].chunks_exact_mut(soft.width)) {
                if *less != 1.0 {
                    out.iter_mut().for_each(|o| *o *= less);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn multiply_values(&mut self, v: Rows<'_>, out: &mut [f32]) {
        let (b, steps) = (&mut *self.b, v.rows.len().div_ceil(2 * TILE));
        let width = v.width();
        b.set_values(v);
        for row in (0..b.rows).step_by(ROWS) {
            let shares = pair(&b.shares, row / TILE, steps);
            for column in (0..width).step_by(COLS) {
                let values = pair(&b.values, column / TILE, steps);
                self.tiles.multiply::<true>(shares, values, &mut out[row * width + column..], width);
            }
        }
    }
}

/// Lots `lot` and `lot + 1`, of so many steps each.
fn pair(blocks: &[SplitBlock], lot: usize, steps: usize) -> [&[SplitBlock]; 2] {
    let (first, second) = blocks[lot * steps..][..2 * steps].split_at(steps);
    [first, second]
}

/// The keys that 16 rows see, a row to a lane.
struct Limits {
    low: __m512i,
    high: __m512i,
    /// Keys there are, with those that are zeros.
    n: usize,
    /// All of them are seen by every row.
    all: bool,
}

impl Limits {
    /// Rows that are missing see nothing.
    #[target_feature(enable = "avx512f")]
    fn of(rows: &[[usize; 2]], n: usize) -> Limits {
        let (mut low, mut high) = ([0; TILE], [0; TILE]);
        for (i, [from, to]) in rows.iter().take(TILE).enumerate() {
            (low[i], high[i]) = (*from as i32, *to as i32);
        }
        let all = low.iter().all(|&l| l == 0) && high.iter().all(|&h| h as usize >= n);
        Limits { low: load_i32x16(&low), high: load_i32x16(&high), n, all }
    }

    /// The rows that see a key.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn see(&self, key: usize) -> __mmask16 {
        if self.all {
            return !0;
        }
        let key = _mm512_set1_epi32(key as i32);
        _mm512_cmple_epi32_mask(self.low, key) & _mm512_cmplt_epi32_mask(key, self.high)
    }
}

/// The largest score of each of 16 rows, or what it was `before`.
#[inline]
#[target_feature(enable = "avx512f")]
fn largest(scores: &[f32], rows: usize, limits: &Limits, before: __m512) -> __m512 {
    let mut most = before;
    for (key, scores) in scores.chunks(rows).take(limits.n).enumerate() {
        let scores = load_f32x16(scores.first_chunk().expect("16 rows"));
        most = _mm512_mask_max_ps(most, limits.see(key), scores, most);
    }
    most
}

/// The shares of 32 keys, from key `from` on, for 16 rows; they are added to `sums`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn share_step(
    scores: &[f32],
    rows: usize,
    from: usize,
    limits: &Limits,
    most: __m512,
    sums: &mut __m512,
) -> SplitBlock {
    let mut words = [[[0f32; TILE]; TILE]; 2];
    for i in 0..TILE {
        let mut shares = [_mm512_setzero_ps(); 2];
        for (key, share) in [i, i + TILE].into_iter().zip(&mut shares) {
            let scores = load_f32x16(scores[key * rows..].first_chunk().expect("16 rows"));
            *share = _mm512_maskz_mov_ps(limits.see(from + key), exp(_mm512_sub_ps(scores, most)));
        }
        *sums = _mm512_add_ps(*sums, _mm512_add_ps(shares[0], shares[1]));
        for (to, words) in words.iter_mut().zip(split(shares[0], shares[1])) {
            store_f32x16(&mut to[i], _mm512_castsi512_ps(words));
        }
    }
    SplitBlock([bytemuck::cast(turned_16(&words[0])), bytemuck::cast(turned_16(&words[1]))])
}

/// e^x for `x` up to 88, to about two units in the last place: [`simd::exp`] with fused multiply-adds.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    let set = |v: f32| _mm512_set1_ps(v);
    let x = _mm512_max_ps(set(-104.0), x); // 0 there; NaN stays NaN
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT }>(_mm512_mul_ps(x, set(std::f32::consts::LOG2_E)));
    let r = _mm512_fmadd_ps(n, set(2.121_944_4e-4), _mm512_fnmadd_ps(n, set(0.693_359_4), x));
    let mut p = set(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = _mm512_fmadd_ps(p, r, set(c));
    }
    let p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), set(1.0));
    _mm512_scalef_ps(p, n)
}

impl TileBuffers {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn set_queries<'q>(&mut self, scale: f32, rows: impl ExactSizeIterator<Item = &'q [f32]>) {
        self.queries.clear();
        self.queries.resize(self.rows / TILE * self.steps, SplitBlock::ZERO);
        for (r, row) in rows.enumerate() {
            let to = &mut self.queries[r / TILE * self.steps..][..self.steps];
            for (row, to) in row.chunks(COLS).zip(to) {
                let mut values = [0.0; COLS];
                values.iter_mut().zip(row).for_each(|(to, v)| *to = v * scale);
                let [a, b] = values.as_chunks::<TILE>().0 else { unreachable!("32 values") };
                for (to, words) in to.0.iter_mut().zip(split(load_f32x16(a), load_f32x16(b))) {
                    store_u32x16(&mut to[r % TILE], words);
                }
            }
        }
        for half in self.queries.iter_mut().flat_map(|block| &mut block.0) {
            *half = bytemuck::cast(turned_16(bytemuck::cast_ref(half)));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn set_keys(&mut self, k: Rows<'_>) {
        assert!(k.width() == self.steps * COLS && k.rows.len() <= BLOCK);
        let lots = k.rows.len().next_multiple_of(2 * TILE) / TILE;
        self.keys.resize(lots * self.steps, SplitBlock::ZERO);
        for key in 0..lots * TILE {
            let to = &mut self.keys[key / TILE * self.steps..][..self.steps];
            if let Some(next) = k.next.get(key) {
                simd::prefetch(next);
            }
            for (step, to) in to.iter_mut().enumerate() {
                let words = match k.rows.get(key) {
                    Some(row) => split(k.load(row, 2 * step), k.load(row, 2 * step + 1)),
                    None => [_mm512_setzero_si512(); 2],
                };
                for (to, words) in to.0.iter_mut().zip(words) {
                    store_u32x16(&mut to[key % TILE], words);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn set_values(&mut self, v: Rows<'_>) {
        let (lots, steps) = (v.width() / TILE, v.rows.len().div_ceil(2 * TILE));
        self.values.resize(lots * steps, SplitBlock::ZERO);
        for step in 0..steps {
            for i in 0..TILE {
                let at = 2 * TILE * step + i;
                for next in [at, at + TILE].iter().filter_map(|at| v.next.get(*at)) {
                    simd::prefetch(next);
                }
                let load = |at: usize, lot: usize| match v.rows.get(at) {
                    Some(row) => v.load(row, lot),
                    None => _mm512_setzero_ps(),
                };
                for lot in 0..lots {
                    let words = split(load(at, lot), load(at + TILE, lot));
                    for (to, words) in self.values[lot * steps + step].0.iter_mut().zip(words) {
                        store_u32x16(&mut to[i], words);
                    }
                }
            }
        }
    }
}

/// Two times 16 numbers as words of their upper halves, and of the upper halves of what those leave: `a`'s below `b`'s.
#[inline]
#[target_feature(enable = "avx512f")]
fn split(a: __m512, b: __m512) -> [__m512i; 2] {
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    let cut = |v: __m512| _mm512_and_si512(_mm512_castps_si512(v), upper);
    let words = |a: __m512i, b: __m512i| _mm512_or_si512(_mm512_srli_epi32::<16>(a), b);
    let (a0, b0) = (cut(a), cut(b));
    let left = |v: __m512, cut: __m512i| _mm512_castps_si512(_mm512_sub_ps(v, _mm512_castsi512_ps(cut)));
    [words(a0, b0), words(left(a, a0), _mm512_and_si512(left(b, b0), upper))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Floats, Rng};
    use crate::simd::tiles;

    /// A block of keys and values as a cache has them, and what they are.
    struct Cached {
        bytes: Vec<Vec<u8>>,
        values: Vec<Vec<f64>>,
        floats: Floats,
    }

    impl Cached {
        fn random(rng: &mut Rng, n: usize, width: usize, floats: Floats) -> Cached {
            let (mut bytes, mut values) = (Vec::new(), Vec::new());
            for _ in 0..n {
                let row: Vec<f32> = (0..width).map(|_| rng.normal()).collect();
                let of = |v: f32| -> (Vec<u8>, f64) {
                    match floats {
                        Floats::Single => (v.to_le_bytes().to_vec(), v as f64),
                        Floats::Half => {
                            (half::f16::from_f32(v).to_le_bytes().to_vec(), half::f16::from_f32(v).to_f64())
                        }
                        Floats::Brain => {
                            (half::bf16::from_f32(v).to_le_bytes().to_vec(), half::bf16::from_f32(v).to_f64())
                        }
                    }
                };
                bytes.push(row.iter().flat_map(|&v| of(v).0).collect());
                values.push(row.iter().map(|&v| of(v).1).collect());
            }
            Cached { bytes, values, floats }
        }
    }

    /// Blocks of keys with their values, and what each row sees of each.
    struct Case {
        dim: usize,
        width: usize,
        q: Vec<f32>,
        blocks: Vec<(Cached, Cached, Vec<[usize; 2]>)>,
        cap: Option<f32>,
    }

    impl Case {
        fn random(rng: &mut Rng, rows: usize, floats: Floats) -> Case {
            let (dim, width) = (COLS * (1 + rng.below(5)), COLS * (1 + rng.below(4)));
            let blocks = (0..3).map(|_| {
                let n = 1 + rng.below(BLOCK);
                let seen = |rng: &mut Rng| match rng.below(3) {
                    0 => [0, n],
                    1 => [0, 0],
                    _ => {
                        let from = rng.below(n);
                        [from, from + rng.below(n - from + 1)]
                    }
                };
                let limits = (0..rows).map(|_| seen(rng)).collect();
                (Cached::random(rng, n, dim, floats), Cached::random(rng, n, width, floats), limits)
            });
            let blocks = blocks.collect();
            let q = (0..rows * dim).map(|_| rng.normal()).collect();
            Case { dim, width, q, blocks, cap: (rng.below(3) == 0).then_some(2.0) }
        }

        /// The softmax of these rows' keys by tiles: largest scores, sums and values.
        fn by_tiles(&self, b: &mut TileBuffers, rows: std::ops::Range<usize>) -> [Vec<f32>; 3] {
            let q = self.q[rows.start * self.dim..rows.end * self.dim].chunks(self.dim);
            let mut tiles = TileAttention::new(b, self.dim, 0.5, q);
            let mut buffer = vec![f32::NAN; tiles.rows() * (self.width + 2)];
            let mut soft = Soft::new(tiles.rows(), self.width, &mut buffer);
            soft.clear();
            for (k, v, limits) in &self.blocks {
                let (keys, values): (Vec<&[u8]>, Vec<&[u8]>) =
                    (k.bytes.iter().map(|b| &b[..]).collect(), v.bytes.iter().map(|b| &b[..]).collect());
                tiles.scores(Rows { rows: &keys, floats: k.floats, next: &values });
                tiles.softmax(keys.len(), &limits[rows.clone()], self.cap, &mut soft);
                tiles.mix(Rows { rows: &values, floats: v.floats, next: &[] }, soft.out);
            }
            let n = rows.len();
            [soft.most[..n].to_vec(), soft.sum[..n].to_vec(), soft.out[..n * self.width].to_vec()]
        }

        /// Row `r`'s values by definition, divided by the sum, and the magnitude of what was added up.
        fn by_definition(&self, r: usize) -> Option<(Vec<f64>, f64)> {
            let q = &self.q[r * self.dim..][..self.dim];
            let mut keys: Vec<(f64, &[f64])> = Vec::new();
            for (k, v, limits) in &self.blocks {
                for at in limits[r][0]..limits[r][1] {
                    let s: f64 = q.iter().zip(&k.values[at]).map(|(&q, k)| 0.5 * q as f64 * k).sum();
                    keys.push((self.cap.map_or(s, |cap| cap as f64 * (s / cap as f64).tanh()), &v.values[at]));
                }
            }
            let most = keys.iter().map(|k| k.0).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = keys.iter().map(|(s, _)| (s - most).exp()).sum();
            let mut out = vec![0.0; self.width];
            for (s, v) in &keys {
                out.iter_mut().zip(*v).for_each(|(o, v)| *o += (s - most).exp() / sum * v);
            }
            (!keys.is_empty()).then_some((out, most))
        }
    }

    fn there() -> bool {
        let which = tiles::for_tests();
        match which {
            Ok(which) => say!("matrix tiles, attention: {which}"),
            Err(why) => say!("skipped, matrix tiles, attention: {why}"),
        }
        which.is_ok()
    }

    #[test]
    fn attention_by_tiles_is_the_softmax_of_what_each_row_sees_in_caches_of_every_kind() {
        if !there() {
            return;
        }
        let (mut rng, mut b, mut worst) = (Rng(11), TileBuffers::default(), 0f64);
        for (floats, rows) in
            [Floats::Single, Floats::Half, Floats::Brain].into_iter().flat_map(|f| [(f, 1), (f, 31), (f, 70)])
        {
            let case = Case::random(&mut rng, rows, floats);
            let [most, sum, out] = case.by_tiles(&mut b, 0..rows);
            for r in 0..rows {
                let out = &out[r * case.width..][..case.width];
                let Some((want, largest)) = case.by_definition(r) else {
                    assert!(sum[r] == 0.0 && out.iter().all(|&v| v == 0.0), "row {r} sees nothing");
                    continue;
                };
                assert!((most[r] as f64 - largest).abs() < 1e-3, "{} for {largest}", most[r]);
                for (got, want) in out.iter().zip(&want) {
                    // Proportions of some values of about 1; scores of about 6 are off by 2^-16 of their terms.
                    let error = ((got / sum[r]) as f64 - want).abs();
                    assert!(error < 3e-4, "{floats:?}, row {r} of {rows}: {} for {want}", got / sum[r]);
                    worst = worst.max(error);
                }
            }
        }
        say!("attention by matrix tiles: worst error {worst:.1e} (limit 3e-4)");
    }

    #[test]
    fn a_row_of_tiles_has_the_same_bits_in_whatever_company() {
        if !there() {
            return;
        }
        let (mut rng, mut b) = (Rng(12), TileBuffers::default());
        let case = Case::random(&mut rng, 75, Floats::Half);
        let [most, sum, out] = case.by_tiles(&mut b, 0..75);
        for rows in [0..1, 3..40, 74..75, 33..75] {
            let values = rows.start * case.width..rows.end * case.width;
            let want = [most[rows.clone()].to_vec(), sum[rows.clone()].to_vec(), out[values].to_vec()];
            assert!(case.by_tiles(&mut b, rows.clone()) == want, "rows {rows:?}");
        }
    }
}
