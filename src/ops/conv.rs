//! conv: a short causal convolution along the sequence, a few taps per channel, with a bias where
//! the file has one; then SiLU, or nothing.
//!
//! `out[t][c] = silu(sum_j w[c][j] * x[t - (taps - 1 - j) * step][c] + bias[c])`; before the sequence's start x is 0. The
//! state holds the rows before the batch: the batch's own are in the input, and a ring for all of them would be gigabytes in
//! a large model.

use anyhow::Result;

use super::glu::silu;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Batch, Builder, CpuIo, GpuIo, Op, Role, Slot, State, Table, WeightId};

#[derive(Debug)]
struct Conv {
    taps: usize,
    silu: bool,
    /// Tokens from one tap to the next.
    step: usize,
}

impl Op for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let x = io.ins[0];
        let n = x.len() / io.rows;
        let (past, w, bias) = (&io.states[0], io.weights[0].values, io.weights.get(1).map(|b| b.values));
        io.pool.pieces(io.outs[0], n, x.len() * self.taps * 8, |t, out| {
            out.fill(0.0);
            for j in 0..self.taps {
                let back = (self.taps - 1 - j) * self.step;
                let Some(from) = row_before(io.batch, x, past, t, back) else { continue };
                for (c, (o, v)) in out.iter_mut().zip(from.as_chunks::<4>().0).enumerate() {
                    *o += w[c * self.taps + j] * f32::from_ne_bytes(*v);
                }
            }
            if let Some(bias) = bias {
                out.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
            }
            if self.silu {
                out.iter_mut().for_each(|o| *o = silu(*o));
            }
        });
        keep_last(io.batch, x, &mut io.states[0], self.reach());
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, past) = (io.ins[0], &io.states[0]);
        let (c, alone) = (past.cache, x.rows == 1); // one row is stored at once, more only when all have been read
        launch::conv(
            io.gpu,
            Grid::new([x.width.div_ceil(128), x.rows, 1], 128),
            x.ptr,
            Ptr(c.rows),
            io.weights[0].ptr,
            io.weights.get(1).map(|b| b.ptr).unwrap_or_default(),
            io.lists.seqs,
            io.lists.positions,
            io.outs[0].ptr,
            i32::from(self.silu),
            i32::from(alone),
            int(x.width),
            int(self.taps),
            int(self.step),
            c.capacity,
            c.row_bytes,
            c.seq_bytes,
        )?;
        if alone { Ok(()) } else { io.store(past, x, io.tables[0]) }
    }

    fn tables(&self) -> Vec<Table> {
        vec![last_positions(self.reach())]
    }
}

impl Conv {
    /// Tokens from the first tap to the last, both included.
    fn reach(&self) -> usize {
        (self.taps - 1) * self.step + 1
    }
}

/// The f32 values of row `t - back` of `x`'s sequence: in the batch, or in the state of those before it. None before the
/// sequence's start.
pub(super) fn row_before<'a>(batch: &Batch, x: &'a [f32], past: &'a State, t: usize, back: usize) -> Option<&'a [u8]> {
    let (row, n) = (batch.rows[t], x.len() / batch.rows.len());
    let pos = (row.pos as usize).checked_sub(back)?;
    Some(match t.checked_sub(back).filter(|&from| batch.rows[from].seq == row.seq) {
        Some(from) => bytemuck::cast_slice(&x[from * n..(from + 1) * n]),
        None => past.row(row.seq, pos),
    })
}

/// Writes the last `n` rows of `x` of each sequence into the state that is to have them after this batch; all of them where
/// the sequence may go back to any.
pub(super) fn keep_last(batch: &Batch, x: &[f32], past: &mut State, n: usize) {
    let width = x.len() / batch.rows.len();
    for (t, row) in batch.rows.iter().enumerate().filter(|(t, _)| is_last(batch, *t, n)) {
        past.write(row.seq, row.pos as usize, &x[t * width..(t + 1) * width]);
    }
}

/// Positions of the rows that a state of the last `n` keeps, -1 for the others.
pub(super) fn last_positions(n: usize) -> Table {
    let fill = move |batch: &Batch, to: &mut [u8]| {
        for (t, (row, to)) in batch.rows.iter().zip(to.as_chunks_mut::<4>().0).enumerate() {
            *to = if is_last(batch, t, n) { row.pos as i32 } else { -1 }.to_ne_bytes();
        }
    };
    Table { key: format!("last {n}"), row_bytes: 4, fill: Box::new(fill) }
}

/// Whether a state of the last `n` rows keeps row `t`: it is among the last `n` of its sequence in the batch, or the batch
/// verifies drafts.
pub(super) fn is_last(batch: &Batch, t: usize, n: usize) -> bool {
    batch.verifies || batch.rows.get(t + n).is_none_or(|later| later.seq != batch.rows[t].seq)
}

impl Builder<'_> {
    /// Convolution of every column of `x` with `NAME.weight` (columns, taps), plus `NAME.bias` if
    /// there is one, then SiLU.
    ///
    /// # Errors
    /// If the weight is missing or has another shape.
    pub fn conv(&self, x: Slot, name: &str, taps: usize) -> Result<Slot> {
        self.convolution(x, name, Conv { taps, silu: true, step: 1 })
    }

    /// [`Builder::conv`] without SiLU.
    ///
    /// # Errors
    /// If the weight is missing or has another shape.
    pub fn linear_conv(&self, x: Slot, name: &str, taps: usize) -> Result<Slot> {
        self.convolution(x, name, Conv { taps, silu: false, step: 1 })
    }

    /// [`Builder::conv`] whose taps are `step` tokens apart.
    ///
    /// # Errors
    /// If the weight is missing or has another shape.
    pub fn wide_conv(&self, x: Slot, name: &str, taps: usize, step: usize) -> Result<Slot> {
        self.convolution(x, name, Conv { taps, silu: true, step })
    }

    fn convolution(&self, x: Slot, name: &str, op: Conv) -> Result<Slot> {
        let n = self.width(x);
        let w = self.vector(&format!("{name}.weight"), &[n, op.taps])?;
        let bias = self.opt_vector(&format!("{name}.bias"), &[n])?;
        let weights: Vec<WeightId> = [Some(w), bias].into_iter().flatten().collect();
        let state = self.last_rows(&format!("{name}.past"), n, op.reach());
        Ok(self.role(Role::Attention).push_named(name, op, &[x], &[n], &weights, &[state])[0])
    }
}
