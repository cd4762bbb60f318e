//! index: selects the cached rows that a token attends to (the "lightning indexer" of DeepSeek sparse attention).
//!
//! ```text
//! score[r] = sum_h w[h] * max(0, q[h] . key[r])      the `k` best visible rows, in rising order, then -1
//! ```
//! Without weights all heads count alike. Where a key represents `every` tokens, `open` adds the block that the token's own
//! position has begun and not completed. A constant factor on the weights would not change the choice and is left out.
//! Ties go to the older row.
//!
//! Or every head selects blocks of its own, by the best key of each (MiniMax M3):
//!
//! ```text
//! score[h][b] = max over the visible keys of block b of q[h] . key     the `k` best blocks, the newest `local` among them
//! ```

use anyhow::{Result, bail};

use super::rotate::{LONGEST, run_of};
use super::route::top_k;
use crate::cpu::dot_rows;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::quant::ActRow;
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot, State, StateId};

/// Row numbers below this are exact as f32.
const EXACT: usize = 1 << 24;

/// An indexer.
#[derive(Clone, Copy, Debug)]
pub struct Index {
    /// Heads of the index queries.
    pub heads: usize,
    /// Columns of a head and of a key row.
    pub dim: usize,
    /// Rows to select.
    pub k: usize,
    /// Tokens per key row; a row is visible to the token that completes it.
    pub every: usize,
    /// Whether the row that is not complete yet is selected too, in addition to the `k`.
    pub open: bool,
}

impl Index {
    /// Entries of a token's selection.
    fn width(&self) -> usize {
        self.k + self.open as usize
    }
}

#[derive(Debug)]
struct IndexOp(Index);

/// Writes the `k` largest scores' places in rising order, then -1.
fn select(score: &[f32], k: usize, out: &mut [f32]) {
    let mut best = Vec::new();
    top_k(score, k, &mut best);
    best.sort_unstable();
    out.fill(-1.0);
    out.iter_mut().zip(&best).for_each(|(o, &r)| *o = r as f32);
}

/// `q . key` for the first `score.len()` keys of a sequence.
fn key_scores(keys: &State, seq: u32, q: ActRow<'_>, score: &mut [f32]) {
    let mut at = 0;
    for (_, bytes) in keys.runs(seq, 0, score.len()) {
        let rows = bytes.len() / keys.row_bytes();
        dot_rows(keys.ty(), bytes, keys.row_bytes(), q, &mut score[at..at + rows]);
        at += rows;
    }
}

impl Op for IndexOp {
    fn name(&self) -> &'static str {
        "index"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let x = &self.0;
        let (q, weights) = (io.ins[0], io.ins.get(1));
        let keys = &io.states[0];
        let mut acts = std::mem::take(&mut io.work.acts);
        acts.set(keys.ty().act, x.dim, q);
        let depth = io.batch.rows.iter().map(|r| (r.pos as usize + 1) / x.every).max().unwrap_or(0);
        io.pool.pieces(&mut io.outs[0], x.width(), io.rows * depth * x.heads * x.dim, |t, out| {
            let row = io.batch.rows[t];
            let seen = row.pos as usize + 1;
            let n = seen / x.every;
            if n <= x.k {
                out.fill(-1.0);
                out.iter_mut().enumerate().take(n).for_each(|(i, o)| *o = i as f32);
            } else {
                let (mut score, mut part) = (vec![0f32; n], vec![0f32; n]);
                for h in 0..x.heads {
                    let w = weights.map_or(1.0, |w| w[t * x.heads + h]);
                    key_scores(keys, row.seq, acts.row(t * x.heads + h, q), &mut part);
                    score.iter_mut().zip(&part).for_each(|(s, p)| *s += w * p.max(0.0));
                }
                select(&score, x.k, out);
            }
            if x.open && !seen.is_multiple_of(x.every) {
                out[n.min(x.k)] = n as f32;
            }
        });
        io.work.acts = acts;
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, q, keys) = (&self.0, io.ins[0], io.states[0].cache);
        let weights = io.ins.get(1).map_or(Ptr::default(), |w| w.ptr);
        let (seqs, positions) = (io.lists.seqs, io.lists.positions);
        // Room for every row that there may be, so that a recorded step fits each token.
        let most = keys.capacity as usize;
        let scores = io.scratch.take(q.rows * most * 4);
        // A recorded step must do for every later token; a batch is started as it is.
        let last = io.batch.rows.iter().map(|r| (r.pos as usize + 1) / x.every).max().unwrap_or(0);
        let rows = if q.rows == 1 || io.batch.verifies { most } else { last.min(most) };
        let (every, most) = (int(x.every), keys.capacity);
        launch::index_scores(
            io.gpu,
            Grid::new([rows.div_ceil(64), q.rows, 1], 128),
            q.ptr,
            weights,
            Ptr(keys.rows),
            seqs,
            positions,
            scores,
            int(x.heads),
            int(x.dim),
            every,
            keys.ty,
            most,
            keys.capacity,
            keys.row_bytes,
            keys.seq_bytes,
        )?;
        let grid = Grid::new([q.rows, 1, 1], 256);
        let open = i32::from(x.open);
        launch::index_top(io.gpu, grid, scores, positions, io.outs[0].ptr, int(x.k), every, most, 1, 0, open)
    }

    fn gpu_refuses(&self) -> Option<String> {
        let dim = self.0.dim;
        (dim > 128).then(|| format!("index keys of {dim} columns; the kernel takes 128"))
    }

    fn rows_seen(&self, seen: usize) -> usize {
        seen / self.0.every
    }
}

/// An indexer whose heads each select blocks of adjacent rows.
#[derive(Clone, Copy, Debug)]
pub struct BlockIndex {
    /// Heads of the index queries.
    pub heads: usize,
    /// Columns of a head and of a key row.
    pub dim: usize,
    /// Blocks to select.
    pub k: usize,
    /// Tokens, and so key rows, of a block.
    pub size: usize,
    /// The newest blocks that are always selected.
    pub local: usize,
}

#[derive(Debug)]
struct BlockIndexOp(BlockIndex);

impl Op for BlockIndexOp {
    fn name(&self) -> &'static str {
        "index"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let x = &self.0;
        let (q, keys) = (io.ins[0], &io.states[0]);
        let mut acts = std::mem::take(&mut io.work.acts);
        acts.set(keys.ty().act, x.dim, q);
        let depth = io.batch.rows.iter().map(|r| r.pos as usize + 1).max().unwrap_or(0);
        io.pool.pieces(&mut io.outs[0], x.k, io.rows * depth * x.heads * x.dim, |i, out| {
            let row = io.batch.rows[i / x.heads];
            let seen = row.pos as usize + 1;
            let mut score = vec![0f32; if seen > x.k * x.size { seen } else { 0 }];
            // While all blocks can be selected no scores are needed.
            key_scores(keys, row.seq, acts.row(i, q), &mut score);
            let best = |keys: &[f32]| keys.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
            let mut blocks: Vec<f32> = score.chunks(x.size).map(best).collect();
            blocks.resize(seen.div_ceil(x.size), 0.0);
            blocks.iter_mut().rev().take(x.local).for_each(|b| *b = f32::INFINITY);
            select(&blocks, x.k, out);
        });
        io.work.acts = acts;
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, q, keys) = (&self.0, io.ins[0], io.states[0].cache);
        // As for single rows: a recorded step must do for every later token.
        let most = (keys.capacity as usize).div_ceil(x.size);
        let last = io.batch.rows.iter().map(|r| r.pos as usize / x.size + 1).max().unwrap_or(0);
        let blocks = if q.rows == 1 || io.batch.verifies { most } else { last.min(most) };
        let scores = io.scratch.take(q.rows * x.heads * most * 4);
        let (positions, size, most) = (io.lists.positions, int(x.size), int(most));
        launch::block_scores(
            io.gpu,
            Grid::new([blocks.div_ceil(4), q.rows, x.heads], 128),
            q.ptr,
            Ptr(keys.rows),
            io.lists.seqs,
            positions,
            scores,
            int(x.dim),
            size,
            int(x.local),
            keys.ty,
            most,
            keys.capacity,
            keys.row_bytes,
            keys.seq_bytes,
        )?;
        let grid = Grid::new([q.rows * x.heads, 1, 1], 256);
        launch::index_top(io.gpu, grid, scores, positions, io.outs[0].ptr, int(x.k), size, most, int(x.heads), 1, 0)
    }

    fn rows_seen(&self, seen: usize) -> usize {
        seen
    }
}

impl Builder<'_> {
    /// The blocks that each head of each token selects by the rows `keys`: (T, heads * k).
    ///
    /// # Errors
    /// If `q` does not have that width, or the context has more blocks than can be numbered.
    pub fn index_blocks(&self, x: BlockIndex, q: Slot, keys: StateId) -> Result<Slot> {
        self.expect_width("indexer", q, x.heads * x.dim)?;
        let x = BlockIndex { k: self.fewer(x.k, x.size)?, ..x };
        let q = self.rotated(q, run_of(self.settings().type_k, &[x.dim], LONGEST));
        let op = BlockIndexOp(x);
        Ok(self.role(Role::Attention).push_named("indexer.top_k", op, &[q], &[x.heads * x.k], &[], &[keys])[0])
    }

    /// `k`, or the number of rows for `every` tokens each that a sequence may have, if that is less.
    fn fewer(&self, k: usize, every: usize) -> Result<usize> {
        let rows = self.settings().n_ctx.div_ceil(every);
        if rows > EXACT {
            let most = EXACT * every;
            let (file, n, l) = (self.file(), self.settings().n_ctx, self.layer());
            bail!(
                "{file}: a context of {n} tokens (-c) is more than the {most} that can be, because of blk.{l}.indexer"
            );
        }
        Ok(k.min(rows.max(1)))
    }

    /// The rows of `keys` that each token selects: (T, k), or (T, k + 1) with the open one.
    ///
    /// # Errors
    /// If the values do not have these widths, or the context has more rows than can be numbered.
    pub fn index(&self, x: Index, q: Slot, weights: Option<Slot>, keys: StateId) -> Result<Slot> {
        self.expect_width("indexer", q, x.heads * x.dim)?;
        weights.map_or(Ok(()), |w| self.expect_width("indexer", w, x.heads))?;
        // There is no use for room for more rows than there will be.
        let x = Index { k: self.fewer(x.k, x.every)?, ..x };
        let q = self.rotated(q, run_of(self.settings().type_k, &[x.dim], LONGEST)); // as the keys are
        let ins: Vec<Slot> = [Some(q), weights].into_iter().flatten().collect();
        let b = self.role(Role::Attention);
        Ok(b.push_named("indexer.top_k", IndexOp(x), &ins, &[x.width()], &[], &[keys])[0])
    }
}
