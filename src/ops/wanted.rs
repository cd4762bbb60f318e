//! wanted: keeps the rows whose logits are wanted; everything after it works on those alone.

use crate::tape::{Builder, CpuIo, Op, RowSet, Slot};

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
}

impl Builder<'_> {
    /// The wanted rows of `x`.
    pub fn wanted(&self, x: Slot) -> Slot {
        self.push_rows("wanted", Wanted, &[x], &[self.width(x)], RowSet::Wanted, &[], &[])[0]
    }
}
