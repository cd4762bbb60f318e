//! compress: turns every `ratio` tokens into one cached row (DeepSeek-V4's compressed attention).
//!
//! ```text
//! score[p] += ape[p mod ratio]
//! block b, channel c:  row[c] = sum_p softmax_p(score[p][c]) * kv[p][c],  p over the block's tokens
//! overlapping (kv and score twice as wide): p over the previous block's tokens with the first halves and over this
//!   block's with the second halves; the first block has no predecessor
//! row = rope(norm(row) * weight, at the block's first position)
//! ```
//! The row appears with the block's last token. What the open block has seen is kept as f32 rows by position, so the
//! step can stop and go on at any token.

use anyhow::Result;

use super::norm::rms;
use super::rope::Rope;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Batch, Builder, CpuIo, GpuIo, GpuValue, Op, Role, Slot, StateId, Table};

/// A compressor.
#[derive(Clone, Debug)]
pub struct Compress {
    /// Tokens per row.
    pub ratio: usize,
    /// Columns of a row.
    pub dim: usize,
    /// Whether blocks overlap.
    pub overlap: bool,
    /// Of the norm.
    pub eps: f32,
    /// How rows are rotated.
    pub rope: Rope,
}

#[derive(Debug)]
struct CompressOp(Compress);

impl Op for CompressOp {
    fn name(&self) -> &'static str {
        "compress"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let c = &self.0;
        let wide = io.ins[0].len() / io.rows;
        let (ape, norm) = (io.weights[0].values, io.weights[1].values);
        let [kvs, scores, rows] = io.states else { unreachable!("the builder gives three states") };
        let mut score = vec![0f32; wide];
        let n = c.ratio * (1 + c.overlap as usize);
        let (mut kv_rows, mut score_rows) = (vec![0f32; n * wide], vec![0f32; n * wide]);
        let (mut row, mut out) = (vec![0f32; c.dim], vec![0f32; c.dim]);
        for (t, at) in io.batch.rows.iter().enumerate() {
            let pos = at.pos as usize;
            score.copy_from_slice(&io.ins[1][t * wide..(t + 1) * wide]);
            score.iter_mut().zip(&ape[pos % c.ratio * wide..]).for_each(|(s, a)| *s += a);
            kvs.write(at.seq, pos, &io.ins[0][t * wide..(t + 1) * wide]);
            scores.write(at.seq, pos, &score);
            if !(pos + 1).is_multiple_of(c.ratio) {
                continue;
            }
            let block = pos / c.ratio;
            // Positions in order; before the first block there are none.
            let first = ((block + 1) * c.ratio).saturating_sub(n);
            let count = pos + 1 - first;
            for (i, p) in (first..=pos).enumerate() {
                (kvs.ty().dequant)(kvs.row(at.seq, p), &mut kv_rows[i * wide..(i + 1) * wide]);
                (scores.ty().dequant)(scores.row(at.seq, p), &mut score_rows[i * wide..(i + 1) * wide]);
            }
            for (ch, out) in row.iter_mut().enumerate() {
                let column = |i: usize| {
                    let own = first + i >= block * c.ratio;
                    i * wide + ch + if c.overlap && own { c.dim } else { 0 }
                };
                let max = (0..count).fold(f32::NEG_INFINITY, |m, i| m.max(score_rows[column(i)]));
                let (mut sum, mut total) = (0f32, 0f32);
                for i in 0..count {
                    let e = (score_rows[column(i)] - max).exp();
                    sum += e * kv_rows[column(i)];
                    total += e;
                }
                *out = sum / total;
            }
            rms(&row, Some(norm), c.eps, 1.0, &mut out);
            c.rope.rotate(&c.rope.angles_at((block * c.ratio) as u32), &mut out);
            rows.write(at.seq, block, &out);
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (c, kv, score) = (&self.0, io.ins[0], io.ins[1]);
        let [kvs, scores, rows] = io.states else { unreachable!("the builder gives three states") };
        let placed = GpuValue { ptr: io.scratch.take(score.rows * score.width * 4), ..score };
        let positions = io.lists.positions;
        let (ape, norm) = (io.weights[0].ptr, io.weights[1].ptr);
        let total = score.rows * score.width;
        let (width, ratio) = (int(score.width), int(c.ratio));
        let grid = Grid::each(total);
        launch::add_place(io.gpu, grid, score.ptr, ape, positions, placed.ptr, width, ratio, total as u64)?;
        io.store(kvs, kv, positions)?;
        io.store(scores, placed, positions)?;
        let made = GpuValue { ptr: io.scratch.take(kv.rows * c.dim * 4), rows: kv.rows, width: c.dim };
        let (open, rope) = (kvs.cache, &c.rope);
        launch::compress(
            io.gpu,
            Grid::new([kv.rows, 1, 1], 128).with_shared(c.dim * 4),
            Ptr(open.rows),
            Ptr(scores.cache.rows),
            norm,
            io.tables[0],
            io.lists.seqs,
            positions,
            made.ptr,
            int(c.dim),
            ratio,
            i32::from(c.overlap),
            c.eps,
            int(rope.n_rot),
            int(rope.offset),
            rope.pairs.code(),
            i32::from(rope.inverse),
            open.capacity,
            open.row_bytes,
            open.seq_bytes,
        )?;
        // Rows that no token completed are marked -1 and not stored.
        io.store(rows, made, io.tables[1])
    }

    fn tables(&self) -> Vec<Table> {
        let every = self.0.ratio;
        let fill = move |batch: &Batch, to: &mut [u8]| {
            for (row, to) in batch.rows.iter().zip(to.as_chunks_mut::<4>().0) {
                let n = row.pos as usize + 1;
                *to = if n.is_multiple_of(every) { (n / every - 1) as i32 } else { -1 }.to_ne_bytes();
            }
        };
        let completed = Table { key: format!("completed {every}"), row_bytes: 4, fill: Box::new(fill) };
        vec![self.0.rope.table(every), completed]
    }
}

impl Builder<'_> {
    /// Compresses `kv` and `score` into a new state of rows, which it returns. `NAME_ape.weight` (ratio, width) and
    /// `NAME_norm.weight` (dim) belong to it.
    ///
    /// # Errors
    /// If a weight is missing or has another shape, or the width does not suit the cache type.
    pub fn compress(&self, name: &str, c: Compress, kv: Slot, score: Slot) -> Result<StateId> {
        let wide = c.dim * (1 + c.overlap as usize);
        self.expect_width(name, kv, wide)?;
        self.expect_width(name, score, wide)?;
        let ape = self.vector(&format!("{name}_ape.weight"), &[c.ratio, wide])?;
        let norm = self.vector(&format!("{name}_norm.weight"), &[c.dim])?;
        let f32 = crate::quant::TYPES[0];
        let window = Some(c.ratio * (1 + c.overlap as usize));
        let kvs = self.rows_state(&format!("{name}.open_kv"), wide, f32, 1, window)?;
        let scores = self.rows_state(&format!("{name}.open_score"), wide, f32, 1, window)?;
        let rows = self.rows_state(&format!("{name}.rows"), c.dim, self.settings().type_k, c.ratio, None)?;
        let states = [kvs, scores, rows];
        self.role(Role::Attention).push_named(name, CompressOp(c), &[kv, score], &[], &[ape, norm], &states);
        Ok(rows)
    }
}
