//! compress: turns every `ratio` tokens into one cached row (DeepSeek-V4's compressed attention, pooled keys of indexers).
//!
//! ```text
//! score[p] += ape[p mod ratio]
//! block b, channel c:  row[c] = sum_p softmax_p(score[p][c]) * kv[p][c],  p over the block's tokens
//! overlapping (kv and score twice as wide): p over the previous block's tokens with the first halves and over this
//!   block's with the second halves; the first block has no predecessor
//! row = rope(norm(row) * weight, at the block's first position)
//! ```
//! Without scores a row is the mean of its block; the offsets, the norm and the rotation may be missing. The row appears with
//! the block's last token. What the open block has seen is kept as f32 rows by position, so the step can stop and go on at any
//! token.
//!
//! Where more is made of a row than what is cached (DeepSeek-V4.1), the row is a value of the token that completes its block,
//! and zeros for others; [`Builder::keep`] caches it.

use anyhow::Result;

use super::norm::rms;
use super::rope::{Pairs, Rope};
use super::rotate;
use crate::cpu::dense;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Batch, Builder, CpuIo, GpuIo, GpuValue, Op, Role, Slot, StateId, Table, WeightId};

/// A compressor.
#[derive(Clone, Debug)]
pub struct Compress {
    /// Tokens per row.
    pub ratio: usize,
    /// Columns of a row.
    pub dim: usize,
    /// Whether blocks overlap.
    pub overlap: bool,
    /// The weight of the norm, and what keeps it from dividing by zero; None for no norm.
    pub norm: Option<(WeightId, f32)>,
    /// How rows are rotated; None for not at all.
    pub rope: Option<Rope>,
}

#[derive(Debug)]
struct CompressOp {
    c: Compress,
    /// Columns of the runs in which finished rows are rotated for their cache; see `ops/rotate.rs`.
    run: Option<usize>,
    /// Whether rows are an output, not a state.
    is_value: bool,
}

impl CompressOp {
    /// Blocks of tokens that a row is made of.
    fn blocks(&self) -> usize {
        1 + self.c.overlap as usize
    }
}

impl Op for CompressOp {
    fn name(&self) -> &'static str {
        "compress"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let c = &self.c;
        let wide = io.ins[0].len() / io.rows;
        let norm = c.norm.map(|(_, eps)| (io.weights[0].values, eps));
        let ape = io.weights.last().map(|w| w.values);
        let (kept, open) = io.states.split_at_mut(usize::from(!self.is_value));
        let [kvs, scores @ ..] = open else { unreachable!("the builder gives a state of the open block") };
        io.outs.iter_mut().for_each(|out| out.fill(0.0));
        let mut score = vec![0f32; wide];
        let n = c.ratio * self.blocks();
        let (mut kv_rows, mut score_rows) = (vec![0f32; n * wide], vec![0f32; n * wide]);
        let (mut row, mut out) = (vec![0f32; c.dim], vec![0f32; c.dim]);
        for (t, at) in io.batch.rows.iter().enumerate() {
            let pos = at.pos as usize;
            kvs.write(at.seq, pos, &io.ins[0][t * wide..(t + 1) * wide]);
            if let Some(scores) = scores.first_mut() {
                score.copy_from_slice(&io.ins[1][t * wide..(t + 1) * wide]);
                let ape = ape.map_or(&[][..], |ape| &ape[pos % c.ratio * wide..]);
                score.iter_mut().zip(ape).for_each(|(s, a)| *s += a);
                scores.write(at.seq, pos, &score);
            }
            if !(pos + 1).is_multiple_of(c.ratio) {
                continue;
            }
            let block = pos / c.ratio;
            // Positions in order; before the first block there are none.
            let first = ((block + 1) * c.ratio).saturating_sub(n);
            let count = pos + 1 - first;
            for (i, p) in (first..=pos).enumerate() {
                (kvs.ty().dequant)(kvs.row(at.seq, p), &mut kv_rows[i * wide..(i + 1) * wide]);
                if let Some(scores) = scores.first() {
                    (scores.ty().dequant)(scores.row(at.seq, p), &mut score_rows[i * wide..(i + 1) * wide]);
                }
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
            match norm {
                Some((norm, eps)) => rms(&row, Some(norm), eps, 1.0, &mut out),
                None => out.copy_from_slice(&row),
            }
            if let Some(rope) = &c.rope {
                rope.rotate(&rope.angles_at((block * c.ratio) as u32), &mut out);
            }
            if let Some(run) = self.run {
                dense::hadamard(&mut out, run);
            }
            match kept.first_mut() {
                Some(rows) => rows.write(at.seq, block, &out),
                None => io.outs[0][t * c.dim..(t + 1) * c.dim].copy_from_slice(&out),
            }
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (c, kv) = (&self.c, io.ins[0]);
        let (kept, open) = io.states.split_at(usize::from(!self.is_value));
        let [kvs, scores @ ..] = open else { unreachable!("the builder gives a state of the open block") };
        let (positions, ratio) = (io.lists.positions, int(c.ratio));
        let (score, none) = (io.ins.get(1), Ptr::default());
        let ape = io.weights.get(usize::from(c.norm.is_some())).map_or(none, |w| w.ptr);
        // One row is stored by the kernel that reads it.
        let alone = kv.rows == 1;
        if !alone {
            io.store(kvs, kv, positions)?;
        }
        if let (Some(scores), Some(score), false, true) = (scores.first(), score, alone, ape == none) {
            io.store(scores, *score, positions)?;
        } else if let (Some(scores), Some(score), false) = (scores.first(), score, alone) {
            let placed = GpuValue { ptr: io.scratch.take(score.rows * score.width * 4), ..*score };
            let total = score.rows * score.width;
            let (grid, width) = (Grid::each(total), int(score.width));
            launch::add_place(io.gpu, grid, score.ptr, ape, positions, placed.ptr, width, ratio, total as u64)?;
            io.store(scores, placed, positions)?;
        }
        let made = match io.outs {
            [out] => *out,
            _ => GpuValue { ptr: io.scratch.take(kv.rows * c.dim * 4), rows: kv.rows, width: c.dim },
        };
        let (open, rope) = (kvs.cache, c.rope.as_ref());
        let (norm, eps) = c.norm.map_or((none, 0.0), |(_, eps)| (io.weights[0].ptr, eps));
        let to = kept.first().map(|rows| rows.cache);
        let straight = alone && self.run.is_none() && to.is_some(); // into the cache
        let at = to.unwrap_or(open);
        launch::compress(
            io.gpu,
            Grid::new([kv.rows, 1, 1], c.dim.next_multiple_of(32).min(512)).with_shared(c.dim * 4),
            Ptr(open.rows),
            scores.first().map_or(none, |s| Ptr(s.cache.rows)),
            if alone { kv.ptr } else { none },
            score.map_or(none, |s| s.ptr),
            ape,
            norm,
            rope.map_or(none, |_| io.tables[1]),
            io.lists.seqs,
            positions,
            made.ptr,
            int(c.dim),
            ratio,
            i32::from(c.overlap),
            eps,
            int(rope.map_or(0, |r| r.n_rot)),
            int(rope.map_or(0, |r| r.offset)),
            rope.map_or(Pairs::Adjacent, |r| r.pairs).code(),
            i32::from(rope.is_some_and(|r| r.inverse)),
            open.capacity,
            open.row_bytes,
            open.seq_bytes,
            if straight { Ptr(at.rows) } else { none },
            at.ty,
            at.capacity,
            at.row_bytes,
            at.seq_bytes,
        )?;
        let Some(rows) = kept.first().filter(|_| !straight) else { return Ok(()) };
        if let Some(run) = self.run {
            rotate::rotate(io, made.ptr, made.rows * made.width, run, made.ptr)?;
        }
        // Rows that no token completed are marked -1 and not stored.
        io.store(rows, made, io.tables[0])
    }

    fn tables(&self) -> Vec<Table> {
        let every = self.c.ratio;
        let completed = (!self.is_value).then(|| completed(every));
        [completed, self.c.rope.as_ref().map(|r| r.table(every))].into_iter().flatten().collect()
    }
}

/// Numbers of the rows, one for `every` tokens, that tokens complete; -1 for the other tokens.
fn completed(every: usize) -> Table {
    let fill = move |batch: &Batch, to: &mut [u8]| {
        for (row, to) in batch.rows.iter().zip(to.as_chunks_mut::<4>().0) {
            let n = row.pos as usize + 1;
            *to = if n.is_multiple_of(every) { (n / every - 1) as i32 } else { -1 }.to_ne_bytes();
        }
    };
    Table { key: format!("completed {every}"), row_bytes: 4, fill: Box::new(fill) }
}

/// Caches rows that stand for `every` tokens each, rotated at the first of these.
#[derive(Debug)]
struct Keep {
    every: usize,
    rope: Rope,
    /// As in [`CompressOp`].
    run: Option<usize>,
}

impl Op for Keep {
    fn name(&self) -> &'static str {
        "keep"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (every, width) = (self.every, io.states[0].width());
        let mut row = vec![0f32; width];
        for (at, x) in io.batch.rows.iter().zip(io.ins[0].chunks_exact(width)) {
            let end = at.pos as usize + 1;
            if !end.is_multiple_of(every) {
                continue;
            }
            row.copy_from_slice(x);
            self.rope.rotate(&self.rope.angles_at((end - every) as u32), &mut row);
            if let Some(run) = self.run {
                dense::hadamard(&mut row, run);
            }
            io.states[0].write(at.seq, end / every - 1, &row);
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, rope, total) = (io.ins[0], &self.rope, io.ins[0].rows * io.ins[0].width);
        let turned = GpuValue { ptr: io.scratch.take(total * 4), ..x };
        launch::rope(
            io.gpu,
            Grid::each(total),
            x.ptr,
            io.tables[1],
            turned.ptr,
            int(x.width),
            int(x.width),
            int(rope.n_rot),
            int(rope.offset),
            rope.pairs.code(),
            i32::from(rope.inverse),
            total as u64,
        )?;
        if let Some(run) = self.run {
            rotate::rotate(io, turned.ptr, total, run, turned.ptr)?;
        }
        io.store(&io.states[0], turned, io.tables[0])
    }

    fn tables(&self) -> Vec<Table> {
        vec![completed(self.every), self.rope.table(self.every)]
    }
}

impl Builder<'_> {
    /// Compresses `kv` into a new state of rows, which it returns: by a softmax over `score`, to which
    /// `NAME_ape.weight` (ratio, width) belongs, or as means.
    ///
    /// # Errors
    /// If a weight is missing or has another shape, or the width does not suit the cache type.
    pub fn compress(&self, name: &str, c: Compress, kv: Slot, score: Option<Slot>) -> Result<StateId> {
        let (ratio, dim) = (c.ratio, c.dim);
        let run = rotate::run_of(self.settings().type_k, &[dim], rotate::LONGEST);
        let op = CompressOp { c, run, is_value: false };
        let (blocks, wide) = (op.blocks(), dim * op.blocks());
        self.expect_width(name, kv, wide)?;
        let f32 = crate::quant::TYPES[0];
        let open = |part: &str| self.rows_state(&format!("{name}.open_{part}"), wide, f32, 1, Some(ratio * blocks));
        let rows = self.rows_state(&format!("{name}.rows"), dim, self.settings().type_k, ratio, None)?;
        let (mut ins, mut states) = (vec![kv], vec![rows, open("kv")?]);
        let mut weights: Vec<WeightId> = op.c.norm.iter().map(|n| n.0).collect();
        if let Some(score) = score {
            self.expect_width(name, score, wide)?;
            weights.push(self.vector(&format!("{name}_ape.weight"), &[ratio, wide])?);
            ins.push(score);
            states.push(open("score")?);
        }
        self.role(Role::Attention).push_named(name, op, &ins, &[], &weights, &states);
        Ok(rows)
    }
    /// The row of the block of `ratio` tokens that a token completes, by a softmax over `score` in each column: (T, columns of
    /// `kv`), zeros for tokens that complete none.
    ///
    /// # Errors
    /// If `score` has another width than `kv`.
    pub fn pool(&self, name: &str, ratio: usize, kv: Slot, score: Slot) -> Result<Slot> {
        let dim = self.width(kv);
        self.expect_width(name, score, dim)?;
        let c = Compress { ratio, dim, overlap: false, norm: None, rope: None };
        let open =
            |part: &str| self.rows_state(&format!("{name}.open_{part}"), dim, crate::quant::TYPES[0], 1, Some(ratio));
        let states = [open("kv")?, open("score")?];
        let op = CompressOp { c, run: None, is_value: true };
        Ok(self.role(Role::Attention).push_named(name, op, &[kv, score], &[dim], &[], &states)[0])
    }

    /// Caches rows `x` (T, columns), of which there is one with each `every` tokens, as a new state, rotated by the position of
    /// the first of these tokens.
    ///
    /// # Errors
    /// If the width does not suit the cache type.
    pub fn keep(&self, name: &str, x: Slot, every: usize, rope: Rope) -> Result<StateId> {
        let (width, ty) = (self.width(x), self.settings().type_k);
        let state = self.rows_state(&format!("{name}.rows"), width, ty, every, None)?;
        let op = Keep { every, rope, run: rotate::run_of(ty, &[width], rotate::LONGEST) };
        self.role(Role::Attention).push_named(&format!("{name}_keep"), op, &[x], &[], &[], &[state]);
        Ok(state)
    }
}
