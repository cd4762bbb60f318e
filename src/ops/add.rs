//! add: `x + y`.

use anyhow::Result;

use crate::cuda::{Grid, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Slot};

/// Values that a thread adds at a time.
const PIECE: usize = 4096;

/// The op; also what joins the halves of a step.
#[derive(Debug)]
pub(crate) struct Add;

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (x, y) = (io.ins[0], io.ins[1]);
        io.pool.pieces(io.outs[0], PIECE, 12 * x.len(), |i, out| {
            for ((o, x), y) in out.iter_mut().zip(&x[i * PIECE..]).zip(&y[i * PIECE..]) {
                *o = x + y;
            }
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, y, out) = (io.ins[0], io.ins[1], io.outs[0]);
        let total = x.rows * x.width;
        launch::add(io.gpu, Grid::each(total), x.ptr, y.ptr, out.ptr, total as u64)
    }
}

impl Builder<'_> {
    /// The sum of two values of one shape.
    pub fn add(&self, x: Slot, y: Slot) -> Slot {
        debug_assert_eq!(self.width(x), self.width(y));
        self.push_after(y, Add, &[x, y], &[self.width(x)], &[], &[])[0]
    }
}
