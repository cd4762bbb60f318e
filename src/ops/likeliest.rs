//! likeliest: the number of the largest value of each row and that value, where nothing else of a row is asked for: so
//! that a vocabulary's logits need not leave the GPU. Of equal values the first counts; a NaN counts before all, so that
//! it is noticed.

use anyhow::Result;

use crate::sample::argmax;
use crate::tape::{Builder, CpuIo, GpuIo, Op, Slot};

/// Parts of a row that blocks search beside each other; one warp joins them.
const PARTS: usize = 32;

#[derive(Debug)]
struct Likeliest;

impl Op for Likeliest {
    fn name(&self) -> &'static str {
        "likeliest"
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
        let parts = io.scratch.take(x.rows * PARTS * 8);
        let args = [x.ptr.into(), parts.into(), x.width.into()];
        io.launch(("basic", "likeliest_of_part"), [PARTS, x.rows, 1], 256, 0, &args)?;
        io.launch(("basic", "likeliest"), [x.rows, 1, 1], 32, 0, &[parts.into(), out.ptr.into()])
    }
}

impl Builder<'_> {
    /// The likeliest of each row of `logits`: (greedy rows, number and value).
    pub(crate) fn likeliest(&self, logits: Slot) -> Slot {
        self.push_named("likeliest", Likeliest, &[logits], &[2], &[], &[])[0]
    }
}
