//! shift: rows of some tokens before, for mixtures of neighbouring tokens.
//!
//! `out[t] = x[t - back]`; before the sequence's start a vector, or 0. The state holds the rows
//! before the batch, as that of `conv` does, and one row more than `back`: a window of rows counts
//! the token's own.

use anyhow::Result;

use super::conv::{keep_last, last_positions, row_before};
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot, Table, WeightId};

#[derive(Debug)]
struct Shift {
    back: usize,
}

impl Op for Shift {
    fn name(&self) -> &'static str {
        "shift"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let x = io.ins[0];
        let n = x.len() / io.rows;
        for (t, out) in io.outs[0].chunks_exact_mut(n).enumerate() {
            match row_before(io.batch, x, &io.states[0], t, self.back) {
                Some(row) => bytemuck::cast_slice_mut(out).copy_from_slice(row),
                None => match io.weights.first() {
                    Some(start) => out.copy_from_slice(start.values),
                    None => out.fill(0.0),
                },
            }
        }
        keep_last(io.batch, x, &mut io.states[0], self.back + 1);
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, past) = (io.ins[0], &io.states[0]);
        let c = past.cache;
        launch::shift(
            io.gpu,
            Grid::new([x.width.div_ceil(128), x.rows, 1], 128),
            x.ptr,
            Ptr(c.rows),
            io.weights.first().map_or(Ptr::default(), |w| w.ptr),
            io.lists.seqs,
            io.lists.positions,
            io.outs[0].ptr,
            int(x.width),
            int(self.back),
            c.capacity,
            c.row_bytes,
            c.seq_bytes,
        )?;
        io.store(past, x, io.tables[0])
    }

    fn tables(&self) -> Vec<Table> {
        vec![last_positions(self.back + 1)]
    }
}

impl Builder<'_> {
    /// The row of the token `back` tokens before, at least 1: the width of `x`. Before the
    /// sequence's start it is the vector `start`, or 0. `name` is the state's.
    pub fn shift(&self, x: Slot, name: &str, back: usize, start: Option<WeightId>) -> Slot {
        let n = self.width(x);
        let state = self.last_rows(&format!("{name}.before{back}"), n, back + 1);
        let start: Vec<WeightId> = start.into_iter().collect();
        self.role(Role::Attention).push_after(x, Shift { back }, &[x], &[n], &start, &[state])[0]
    }
}
