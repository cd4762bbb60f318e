//! argmax: the number of the largest value of each row and that value, where nothing else of a row is asked for: so
//! that a vocabulary's logits need not leave the GPU. Of equal values the first counts; a NaN counts before all, so that
//! it is noticed.

use anyhow::Result;

use crate::cuda::launch::ARGMAX_PARTS;
use crate::cuda::{Grid, int, launch};
use crate::sample::argmax;
use crate::tape::{Builder, CpuIo, GpuIo, Op, Slot};

#[derive(Debug)]
struct Argmax;

impl Op for Argmax {
    fn name(&self) -> &'static str {
        "argmax"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let width = io.ins[0].len() / io.rows;
        // None of the outputs, unless they are asked for.
        for (row, out) in io.ins[0].chunks_exact(width).zip(io.outs[0].as_chunks_mut::<2>().0) {
            let best = row.iter().position(|v| v.is_nan()).unwrap_or_else(|| argmax(row) as usize);
            *out = [best as f32, row[best]];
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, out) = (io.ins[0], io.outs[0]);
        let parts = io.scratch.take(x.rows * ARGMAX_PARTS * 8);
        launch::argmax_of_part(io.gpu, Grid::new([ARGMAX_PARTS, x.rows, 1], 256), x.ptr, parts, int(x.width))?;
        launch::argmax(io.gpu, Grid::new([x.rows, 1, 1], ARGMAX_PARTS), parts, out.ptr)
    }
}

impl Builder<'_> {
    /// The argmax of each row of `logits`: (argmax rows, 2), the number and the value.
    pub(crate) fn argmax(&self, logits: Slot) -> Slot {
        self.push_named("argmax", Argmax, &[logits], &[2], &[], &[])[0]
    }
}
