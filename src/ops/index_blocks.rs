//! index_blocks: every head selects blocks of adjacent cached rows of its own, by the best key of each (MiniMax M3).
//!
//! ```text
//! score[h][b] = max over the visible keys of block b of q[h] . key     the `k` best blocks, the newest `local` among them
//! ```
//! Ties go to the older block.

use anyhow::Result;

use super::index::{key_scores, select};
use super::rotate::{LONGEST, run_of};
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot, StateId};

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
        io.pool.pieces(io.outs[0], x.k, io.rows * depth * x.heads * x.dim, |i, out| {
            let row = io.batch.rows[i / x.heads];
            let seen = row.pos as usize + 1;
            let mut score = vec![0f32; if seen > x.k * x.size { seen } else { 0 }];
            // While all blocks can be selected no scores are needed.
            key_scores(keys, row.seq, acts.row(i, q), 0, &mut score);
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
        launch::index_top(
            io.gpu,
            grid,
            scores,
            positions,
            io.outs[0].ptr,
            int(x.k),
            size,
            most,
            int(x.heads),
            size,
            0,
            Ptr::default(),
            0,
            1,
        )
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
}
