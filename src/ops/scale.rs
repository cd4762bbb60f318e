//! scale: a value times a number, or times a vector column by column; or squashed into a range by tanh.
//!
//! ```text
//! By(c)        out[t][i] = c * x[t][i]
//! Columns      out[t][i] = w[i] * x[t][i]
//! SoftCap(c)   out[t][i] = c * tanh(x[t][i] / c)
//! ```

use anyhow::Result;

use crate::cuda::{Grid, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Slot};

#[derive(Clone, Copy, Debug)]
enum Scale {
    By(f32),
    Columns,
    SoftCap(f32),
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        if matches!(self, Scale::SoftCap(_)) { "soft_cap" } else { "scale" }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        const PIECE: usize = 1 << 14;
        let x = io.ins[0];
        if let Scale::Columns = self {
            let w = io.weights[0].values;
            for (out, x) in io.outs[0].chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
                out.iter_mut().zip(x).zip(w).for_each(|((o, x), w)| *o = x * w);
            }
            return;
        }
        io.pool.pieces(&mut io.outs[0], PIECE, x.len() * 8, |i, out| {
            let x = &x[i * PIECE..][..out.len()];
            match *self {
                Scale::SoftCap(c) => out.iter_mut().zip(x).for_each(|(o, x)| *o = c * (x / c).tanh()),
                Scale::By(c) => out.iter_mut().zip(x).for_each(|(o, x)| *o = c * x),
                Scale::Columns => {}
            }
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, out) = (io.ins[0], io.outs[0].ptr);
        let total = x.rows * x.width;
        let (grid, n) = (Grid::each(total), total as u64);
        match *self {
            Scale::By(c) => launch::scale(io.gpu, grid, x.ptr, out, c, n),
            Scale::Columns => launch::scale_by(io.gpu, grid, x.ptr, io.weights[0].ptr, out, int(x.width), n),
            Scale::SoftCap(c) => launch::soft_cap(io.gpu, grid, x.ptr, out, c, n),
        }
    }
}

impl Builder<'_> {
    /// `c * x`; `x` itself where `c` is 1.
    pub fn scale(&self, x: Slot, c: f32) -> Slot {
        if c == 1.0 { x } else { self.push(Scale::By(c), &[x], &[self.width(x)], &[])[0] }
    }

    /// `x` times a vector of its width, column by column.
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn scale_by(&self, x: Slot, name: &str) -> Result<Slot> {
        let w = self.vector(name, &[self.width(x)])?;
        Ok(self.push(Scale::Columns, &[x], &[self.width(x)], &[w])[0])
    }

    /// `cap * tanh(x / cap)`; `x` itself where `cap` is 0.
    pub fn soft_cap(&self, x: Slot, cap: f32) -> Slot {
        if cap == 0.0 { x } else { self.push(Scale::SoftCap(cap), &[x], &[self.width(x)], &[])[0] }
    }
}
