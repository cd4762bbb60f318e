//! hand: rows that a model hands on to its draft heads, by position, and a head to its next step.
//!
//! ```text
//! hand_on(x)     H[p] = x, the row of the token at position p
//! handed(back)   H[p - back] for the token at position p, 0 before the sequence's start
//! ```
//! H is one state for the model and all of its heads. The model stores the row of every token that it reads, and a head
//! reads with each token the row of the token before. While a head drafts, it stores a row of its own for its newest
//! token, which the model overwrites once it reads that token.
//!
//! A step that stores rows needs no other rows than those it is given. So the model's is two: one for the output rows,
//! which are computed as if there were no heads, and one for the others, of which all else is left out (`output_rows.rs`).

use std::sync::Arc;

use anyhow::Result;

use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Batch, Builder, CpuIo, GpuIo, Op, RowSet, Slot, Table};

#[derive(Debug)]
struct HandOn {
    /// The rows that it is given.
    rows: RowSet,
}

impl Op for HandOn {
    fn name(&self) -> &'static str {
        "hand_on"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let width = io.states[0].width();
        for (i, x) in io.batch.indices(self.rows).into_iter().zip(io.ins[0].chunks_exact(width)) {
            let row = io.batch.rows[i as usize];
            io.states[0].write(row.seq, row.pos as usize, x);
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, c) = (io.ins[0], io.states[0].cache);
        let [seqs, positions] = [io.tables[0], io.tables[1]];
        let grid = Grid::new([x.rows, 1, 1], 128);
        let (width, to) = (int(x.width), Ptr(c.rows));
        launch::store_rows(io.gpu, grid, x.ptr, to, seqs, positions, width, c.ty, c.capacity, c.row_bytes, c.seq_bytes)
    }

    fn tables(&self) -> Vec<Table> {
        let of = |what: &str, value: fn(&Batch, usize) -> i32| {
            let rows = self.rows;
            let fill = move |batch: &Batch, to: &mut [u8]| {
                for (i, to) in batch.indices(rows).into_iter().zip(to.as_chunks_mut::<4>().0) {
                    *to = value(batch, i as usize).to_ne_bytes();
                }
            };
            Table { key: format!("{what} of {rows:?} rows"), row_bytes: 4, fill: Box::new(fill) }
        };
        vec![of("sequences", |b, i| b.rows[i].seq as i32), of("positions", |b, i| b.rows[i].pos as i32)]
    }

    fn of_rows(&self, rows: RowSet) -> Option<Arc<dyn Op>> {
        Some(Arc::new(HandOn { rows }))
    }
}

#[derive(Debug)]
struct Handed {
    back: usize,
}

impl Op for Handed {
    fn name(&self) -> &'static str {
        "handed"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let width = io.states[0].width();
        for (row, out) in io.batch.rows.iter().zip(io.outs[0].chunks_exact_mut(width)) {
            match (row.pos as usize).checked_sub(self.back) {
                Some(pos) => bytemuck::cast_slice_mut(out).copy_from_slice(io.states[0].row(row.seq, pos)),
                None => out.fill(0.0),
            }
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (out, c, none) = (io.outs[0], io.states[0].cache, Ptr::default());
        launch::shift(
            io.gpu,
            Grid::new([out.width.div_ceil(128), out.rows, 1], 128),
            none,
            Ptr(c.rows),
            none,
            io.lists.seqs,
            io.lists.positions,
            out.ptr,
            int(out.width),
            int(self.back),
            c.capacity,
            c.row_bytes,
            c.seq_bytes,
        )
    }

    fn by_row(&self) -> bool {
        false
    }
}

impl Builder<'_> {
    /// Stores the rows of `x` by position, for [`Builder::handed`].
    ///
    /// # Errors
    /// If other rows were handed on that are of another width.
    pub fn hand_on(&self, x: Slot) -> Result<()> {
        let state = self.hidden_state(self.width(x))?;
        self.push_after(x, HandOn { rows: RowSet::All }, &[x], &[], &[], &[state]);
        Ok(())
    }

    /// The row, of `width` columns, that was handed on for the token `back` tokens before: (T, width).
    ///
    /// # Errors
    /// If other rows were handed on that are of another width.
    pub fn handed(&self, width: usize, back: usize) -> Result<Slot> {
        let state = self.hidden_state(width)?;
        Ok(self.push_named("nextn.handed", Handed { back }, &[], &[width], &[], &[state])[0])
    }
}
