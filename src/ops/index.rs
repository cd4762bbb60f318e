//! index: selects the cached rows that a token attends to (the "lightning indexer" of DeepSeek sparse attention).
//!
//! ```text
//! score[r] = sum_h w[h] * max(0, q[h] . key[r])      the `k` best visible rows, in rising order, then -1
//! ```
//! Without weights all heads count alike. Where a key represents `every` tokens, `open` adds the block that the token's own
//! position has begun and not completed. A constant factor on the weights would not change the choice and is left out.
//! Ties go to the older row.
//!
//! In two levels (DeepSeek-V4.1) one layer's step gives each token its candidates as well, and those of later layers score the
//! rows of these alone:
//!
//! ```text
//! candidates = the best blocks of `size` rows by the best score of each, and the block of the newest visible row
//! ```

use std::ops::Range;

use anyhow::{Error, Result, bail};

use super::rotate::{LONGEST, run_of};
use super::route::top_k;
use crate::cpu::dot_rows;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::quant::{ActRow, Acts};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Row, Slot, State, StateId, StateUse};

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

/// The blocks of rows that a token's choice is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidates {
    /// Rows of a block.
    pub size: usize,
    /// Blocks that a token may have.
    pub n: usize,
}

/// What a step has to do with candidates.
#[derive(Clone, Copy, Debug)]
enum Level {
    /// Nothing.
    Only,
    /// It gives them.
    First(Candidates),
    /// Its rows are theirs: its last input.
    Second(Candidates),
}

#[derive(Debug)]
struct IndexOp {
    x: Index,
    level: Level,
}

impl IndexOp {
    /// Scores of the rows of some runs for token `t`.
    fn scores(&self, io: &Scored<'_>, t: usize, runs: &[Range<usize>]) -> Vec<f32> {
        let (x, n) = (&self.x, runs.iter().map(Range::len).sum());
        let (mut score, mut part) = (vec![0f32; n], vec![0f32; n]);
        for h in 0..x.heads {
            let w = io.weights.map_or(1.0, |w| w[t * x.heads + h]);
            let mut rest = &mut part[..];
            for run in runs {
                let (own, later) = rest.split_at_mut(run.len());
                key_scores(io.keys, io.rows[t].seq, io.acts.row(t * x.heads + h, io.q), run.start, own);
                rest = later;
            }
            score.iter_mut().zip(&part).for_each(|(s, p)| *s += w * p.max(0.0));
        }
        score
    }

    /// Chooses token `t`'s rows, and its candidates where the step gives them, which else is empty.
    fn choose(&self, io: &Scored<'_>, t: usize, top: &mut [f32], blocks: &mut [f32]) {
        let x = &self.x;
        let seen = io.rows[t].pos as usize + 1;
        let n = seen / x.every;
        let all = 0..n;
        let list = |to: &mut [f32], n: usize| {
            to.fill(-1.0);
            to.iter_mut().enumerate().take(n).for_each(|(i, o)| *o = i as f32);
        };
        match self.level {
            // Blocks have at least as many rows as are chosen.
            _ if n <= x.k => {
                list(top, n);
                if let Level::First(c) = self.level {
                    list(blocks, n.div_ceil(c.size));
                }
            }
            Level::Only => select(&self.scores(io, t, std::slice::from_ref(&all)), x.k, top),
            Level::First(c) => {
                let score = self.scores(io, t, std::slice::from_ref(&all));
                select(&score, x.k, top);
                let best = |rows: &[f32]| rows.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
                let mut of_blocks: Vec<f32> = score.chunks(c.size).map(best).collect();
                of_blocks.last_mut().into_iter().for_each(|newest| *newest = f32::INFINITY);
                select(&of_blocks, c.n, blocks);
            }
            Level::Second(c) => {
                let given = &io.blocks.expect("candidates of an earlier layer")[t * c.n..(t + 1) * c.n];
                let of = |b: usize| b * c.size..((b + 1) * c.size).min(n);
                let runs: Vec<_> = given.iter().take_while(|&&b| b >= 0.0).map(|&b| of(b as usize)).collect();
                select(&self.scores(io, t, &runs), x.k, top);
                let chosen = top.iter_mut().take_while(|r| **r >= 0.0);
                // All blocks but the newest, which is the last, are whole.
                chosen.for_each(|r| *r = (runs[*r as usize / c.size].start + *r as usize % c.size) as f32);
            }
        }
        if x.open && !seen.is_multiple_of(x.every) {
            top[n.min(x.k)] = n as f32;
        }
    }
}

impl IndexOp {
    /// Each token's candidates, of the scores of up to `most` rows, of which it sees `rows` at most.
    fn gpu_blocks(&self, io: &GpuIo<'_>, c: Candidates, (scores, most): (Ptr, usize), rows: usize) -> Result<()> {
        let (every, size, n, positions) = (self.x.every, c.size, io.ins[0].rows, io.lists.positions);
        let most_blocks = most.div_ceil(size);
        let best = io.scratch.take(n * most_blocks * 4);
        let grid = Grid::new([rows.div_ceil(size).div_ceil(128).max(1), n, 1], 128);
        let (blocks, from, none) = (int(most_blocks), int((size - 1) * every + 1), Ptr::default());
        launch::best_of_blocks(io.gpu, grid, scores, positions, best, int(every), int(size), int(most), blocks)?;
        let (grid, of, to) = (Grid::new([n, 1, 1], 256), int(every * size), io.outs[1].ptr);
        launch::index_top(io.gpu, grid, best, positions, to, int(c.n), of, blocks, 1, from, 0, none, 0, 1)
    }
}

/// What the scores of a batch's tokens are made of.
struct Scored<'a> {
    rows: &'a [Row],
    q: &'a [f32],
    acts: &'a Acts,
    weights: Option<&'a [f32]>,
    keys: &'a State,
    /// The candidates of each token, -1 after the last.
    blocks: Option<&'a [f32]>,
}

/// Writes the `k` largest scores' places in rising order, then -1.
pub(super) fn select(score: &[f32], k: usize, out: &mut [f32]) {
    let mut best = Vec::new();
    top_k(score, k, &mut best);
    best.sort_unstable();
    out.fill(-1.0);
    out.iter_mut().zip(&best).for_each(|(o, &r)| *o = r as f32);
}

/// `q . key` for the keys of a sequence from `first` on, `score.len()` of them.
pub(super) fn key_scores(keys: &State, seq: u32, q: ActRow<'_>, first: usize, score: &mut [f32]) {
    let mut at = 0;
    for (_, bytes) in keys.runs(seq, first, first + score.len()) {
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
        let (x, q, keys) = (&self.x, io.ins[0], &io.states[0]);
        let mut acts = std::mem::take(&mut io.work.acts);
        acts.set(keys.ty().act, x.dim, q);
        let depth = io.batch.rows.iter().map(|r| (r.pos as usize + 1) / x.every).max().unwrap_or(0);
        let bytes = io.rows * depth * x.heads * x.dim;
        let second = matches!(self.level, Level::Second(_));
        let (blocks, weighed) = (io.ins.last().filter(|_| second).copied(), io.ins.len() > 1 + usize::from(second));
        let weights = weighed.then(|| io.ins[1]);
        let scored = Scored { rows: &io.batch.rows, q, acts: &acts, weights, keys, blocks };
        match &mut *io.outs {
            [top, blocks] => {
                let (k, n) = (top.len() / io.rows, blocks.len() / io.rows);
                io.pool.pieces2((top, k), (blocks, n), bytes, |t, top, to| self.choose(&scored, t, top, to));
            }
            outs => io.pool.pieces(outs[0], x.width(), bytes, |t, top| self.choose(&scored, t, top, &mut [])),
        }
        io.work.acts = acts;
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, q, keys, none) = (&self.x, io.ins[0], io.states[0].cache, Ptr::default());
        let second = matches!(self.level, Level::Second(_));
        let weights = io.ins.get(1).filter(|_| io.ins.len() > 1 + usize::from(second)).map_or(none, |w| w.ptr);
        let (blocks, n_blocks, size) = match self.level {
            Level::Second(c) => (io.ins[io.ins.len() - 1].ptr, c.n, c.size),
            _ => (none, 0, 1),
        };
        let (seqs, positions) = (io.lists.seqs, io.lists.positions);
        // Room for every row that there may be, so that a recorded step fits each token.
        let all = keys.capacity as usize;
        let most = if second { all.min(n_blocks * size) } else { all };
        let scores = io.scratch.take(q.rows * most * 4);
        // A recorded step must do for every later token; a batch is started as it is.
        let last = io.batch.rows.iter().map(|r| (r.pos as usize + 1) / x.every).max().unwrap_or(0);
        let rows = if q.rows == 1 || io.batch.verifies { most } else { last.min(most) };
        let (every, n_blocks, size) = (int(x.every), int(n_blocks), int(size));
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
            int(most),
            keys.capacity,
            keys.row_bytes,
            keys.seq_bytes,
            blocks,
            n_blocks,
            size,
        )?;
        let (grid, k, open, to) = (Grid::new([q.rows, 1, 1], 256), int(x.k), i32::from(x.open), io.outs[0].ptr);
        launch::index_top(
            io.gpu,
            grid,
            scores,
            positions,
            to,
            k,
            every,
            int(most),
            1,
            1,
            open,
            blocks,
            n_blocks,
            size,
        )?;
        match self.level {
            Level::First(c) => self.gpu_blocks(io, c, (scores, most), rows),
            _ => Ok(()),
        }
    }

    fn gpu_refuses(&self) -> Option<String> {
        let dim = self.x.dim;
        (dim > 128).then(|| format!("index keys of {dim} columns; the kernel takes 128"))
    }

    fn state_use(&self, _: usize) -> Option<StateUse> {
        Some(StateUse::Reads(None))
    }

    fn rows_seen(&self, seen: usize) -> usize {
        seen / self.x.every
    }
}

impl Builder<'_> {
    /// `k`, or the number of rows for `every` tokens each that a sequence may have, if that is less.
    pub(super) fn fewer(&self, k: usize, every: usize) -> Result<usize> {
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
        Ok(self.push_index((x, Level::Only), [Some(q), weights, None], keys)?[0])
    }

    /// As [`Builder::index`], with the blocks that are each token's candidates for later layers: (T, k) and (T, blocks).
    ///
    /// # Errors
    /// If the values do not have these widths, or the context has more rows than can be numbered.
    pub fn index_first(
        &self,
        (x, c): (Index, Candidates),
        q: Slot,
        weights: Slot,
        keys: StateId,
    ) -> Result<(Slot, Slot)> {
        let outs = self.push_index((x, Level::First(c)), [Some(q), Some(weights), None], keys)?;
        Ok((outs[0], outs[1]))
    }

    /// As [`Builder::index`], of the rows of each token's candidates `blocks`, which [`Builder::index_first`] gave.
    ///
    /// # Errors
    /// If the values do not have these widths, or the context has more rows than can be numbered.
    pub fn index_second(
        &self,
        (x, c): (Index, Candidates),
        [q, weights, blocks]: [Slot; 3],
        keys: StateId,
    ) -> Result<Slot> {
        Ok(self.push_index((x, Level::Second(c)), [Some(q), Some(weights), Some(blocks)], keys)?[0])
    }

    fn push_index(&self, (x, level): (Index, Level), ins: [Option<Slot>; 3], keys: StateId) -> Result<Vec<Slot>> {
        let [q, weights, blocks] = ins;
        let q = q.expect("queries");
        self.expect_width("indexer", q, x.heads * x.dim)?;
        weights.map_or(Ok(()), |w| self.expect_width("indexer", w, x.heads))?;
        // There is no use for room for more rows than there will be.
        let x = Index { k: self.fewer(x.k, x.every)?, ..x };
        let fewer = |c: Candidates| Ok::<_, Error>(Candidates { n: self.fewer(c.n, x.every * c.size)?, ..c });
        let (level, outs) = match level {
            Level::Only => (level, vec![x.width()]),
            Level::First(c) => {
                let c = fewer(c)?;
                (Level::First(c), vec![x.width(), c.n])
            }
            Level::Second(c) => {
                let c = fewer(c)?;
                blocks.map_or(Ok(()), |b| self.expect_width("indexer", b, c.n))?;
                (Level::Second(c), vec![x.width()])
            }
        };
        let q = self.rotated(q, run_of(self.settings().type_k, &[x.dim], LONGEST)); // as the keys are
        let ins: Vec<Slot> = [Some(q), weights, blocks].into_iter().flatten().collect();
        let b = self.role(Role::Attention);
        Ok(b.push_named("indexer.top_k", IndexOp { x, level }, &ins, &outs, &[], &[keys]))
    }
}
