//! wanted: keeps the rows whose logits are wanted; everything after it works on those alone.

use anyhow::Result;

use crate::cuda::{Grid, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Layer, Op, RowSet, Slot};

#[derive(Debug)]
struct Wanted;

impl Op for Wanted {
    fn name(&self) -> &'static str {
        "wanted"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        if io.batch.wanted.is_empty() {
            return;
        }
        let width = io.outs[0].len() / io.batch.wanted.len();
        for (&r, out) in io.batch.wanted.iter().zip(io.outs[0].chunks_exact_mut(width)) {
            out.copy_from_slice(&io.ins[0][r as usize * width..][..width]);
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, out) = (io.ins[0], io.outs[0]);
        let total = out.rows * out.width;
        launch::take_rows(io.gpu, Grid::each(total), x.ptr, io.lists.wanted, out.ptr, int(x.width), total as u64)
    }
}

impl Builder<'_> {
    /// In the last layer the wanted rows of `xs`, elsewhere `xs`: for what stands behind a layer's last look at other rows.
    /// No later layer will look at them, so in the last one nothing more need be computed of rows that are not wanted.
    pub fn wanted_in_last<const N: usize>(&self, l: &Layer, xs: [Slot; N]) -> [Slot; N] {
        if !l.last {
            return xs;
        }
        std::array::from_fn(|i| {
            let label = l.w(&format!("wanted.{i}"));
            self.push_rows(label, Wanted, &[xs[i]], &[self.width(xs[i])], RowSet::Wanted, &[], &[])[0]
        })
    }
}
