//! index: selects the cached rows that a token attends to (the "lightning indexer" of DeepSeek sparse attention).
//!
//! ```text
//! score[r] = sum_h w[h] * max(0, q[h] . key[r])      the `k` best visible rows, in rising order, then -1
//! ```
//! A constant factor on the weights would not change the choice and is left out. Ties go to the older row.

use anyhow::{Result, bail};

use super::route::top_k;
use crate::cpu::dot_rows;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot, StateId};

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
}

#[derive(Debug)]
struct IndexOp(Index);

impl Op for IndexOp {
    fn name(&self) -> &'static str {
        "index"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let x = &self.0;
        let (q, weights) = (io.ins[0], io.ins[1]);
        let keys = &io.states[0];
        let mut acts = std::mem::take(&mut io.work.acts);
        acts.set(keys.ty().act, x.dim, q);
        let depth = io.batch.rows.iter().map(|r| (r.pos as usize + 1) / x.every).max().unwrap_or(0);
        io.pool.pieces(&mut io.outs[0], x.k, io.rows * depth * x.heads * x.dim, |t, out| {
            let row = io.batch.rows[t];
            let n = (row.pos as usize + 1) / x.every;
            out.fill(-1.0);
            if n <= x.k {
                out.iter_mut().enumerate().take(n).for_each(|(i, o)| *o = i as f32);
                return;
            }
            let (mut score, mut part) = (vec![0f32; n], vec![0f32; n]);
            for h in 0..x.heads {
                let w = weights[t * x.heads + h];
                let mut at = 0;
                for (_, bytes) in keys.runs(row.seq, 0, n) {
                    let rows = bytes.len() / keys.row_bytes();
                    let q = acts.row(t * x.heads + h, q);
                    dot_rows(keys.ty(), bytes, keys.row_bytes(), q, &mut part[at..at + rows]);
                    at += rows;
                }
                score.iter_mut().zip(&part).for_each(|(s, p)| *s += w * p.max(0.0));
            }
            let mut best = Vec::new();
            top_k(&score, x.k, &mut best);
            best.sort_unstable();
            out.iter_mut().zip(&best).for_each(|(o, &r)| *o = r as f32);
        });
        io.work.acts = acts;
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, q, weights, keys) = (&self.0, io.ins[0], io.ins[1], io.states[0].cache);
        let (seqs, positions) = (io.lists.seqs, io.lists.positions);
        // Room for every row that there may be, so that a recorded step fits each token.
        let most = keys.capacity as usize;
        let scores = io.scratch.take(q.rows * most * 4);
        // A recorded step must do for every later token; a batch is started as it is.
        let last = io.batch.rows.iter().map(|r| (r.pos as usize + 1) / x.every).max().unwrap_or(0);
        let rows = if q.rows == 1 { most } else { last.min(most) };
        let (every, most) = (int(x.every), keys.capacity);
        launch::index_scores(
            io.gpu,
            Grid::new([rows.div_ceil(4), q.rows, 1], 128),
            q.ptr,
            weights.ptr,
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
        launch::index_top(io.gpu, grid, scores, positions, io.outs[0].ptr, int(x.k), every, most)
    }
}

impl Builder<'_> {
    /// The rows of `keys` that each token selects: (T, k).
    ///
    /// # Errors
    /// If the values do not have these widths, or the context has more rows than can be numbered.
    pub fn index(&self, x: Index, q: Slot, weights: Slot, keys: StateId) -> Result<Slot> {
        self.expect_width("indexer", q, x.heads * x.dim)?;
        self.expect_width("indexer", weights, x.heads)?;
        let rows = self.settings().n_ctx.div_ceil(x.every);
        if rows > EXACT {
            let most = EXACT * x.every;
            let (file, n, l) = (self.file(), self.settings().n_ctx, self.layer());
            bail!(
                "{file}: a context of {n} tokens (-c) is more than the {most} that can be, because of blk.{l}.indexer"
            );
        }
        // There is no use for room for more rows than there will be.
        let x = Index { k: x.k.min(rows.max(1)), ..x };
        Ok(self.role(Role::Attention).push_named("indexer.top_k", IndexOp(x), &[q, weights], &[x.k], &[], &[keys])[0])
    }
}
