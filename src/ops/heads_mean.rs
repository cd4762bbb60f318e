//! heads_mean: queries and the keys that they share, averaged with each other (the residual path of
//! compressed convolutional attention, ZAYA1).
//!
//! ```text
//! to_q[j] = (q[j] + k[j / G]) / 2               head j, key head j / G, G query heads to a key head
//! to_k[g] = mean of to_q over the G heads of key head g
//! ```

use anyhow::Result;

use crate::cuda::{Grid, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot};

#[derive(Debug)]
struct HeadsMean {
    /// Columns of a head.
    dim: usize,
}

impl Op for HeadsMean {
    fn name(&self) -> &'static str {
        "heads_mean"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (q, k) = (io.ins[0], io.ins[1]);
        let group = q.len() / k.len() * self.dim; // columns of the query heads that share a key head
        let [to_q, to_k] = &mut io.outs[..] else { unreachable!("the builder gives two outputs") };
        let heads = k.chunks_exact(self.dim).zip(q.chunks_exact(group));
        let outs = to_k.chunks_exact_mut(self.dim).zip(to_q.chunks_exact_mut(group));
        for ((k, q), (to_k, to_q)) in heads.zip(outs) {
            to_k.fill(0.0);
            for (q, to_q) in q.chunks_exact(self.dim).zip(to_q.chunks_exact_mut(self.dim)) {
                to_q.iter_mut().zip(q).zip(k).for_each(|((o, q), k)| *o = (q + k) * 0.5);
                to_k.iter_mut().zip(&*to_q).for_each(|(o, q)| *o += q);
            }
            let by = self.dim as f32 / group as f32;
            to_k.iter_mut().for_each(|o| *o *= by);
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (q, k) = (io.ins[0], io.ins[1]);
        let total = k.rows * k.width;
        let (dim, group) = (int(self.dim), int(q.width / k.width));
        launch::heads_mean(
            io.gpu,
            Grid::each(total),
            q.ptr,
            k.ptr,
            io.outs[0].ptr,
            io.outs[1].ptr,
            dim,
            group,
            total as u64,
        )
    }
}

impl Builder<'_> {
    /// The means of queries (T, heads * dim) with the keys (T, kv_heads * dim) that they share, and
    /// of these over the heads of a key head: in the shapes of both.
    pub fn heads_mean(&self, q: Slot, k: Slot, dim: usize) -> (Slot, Slot) {
        debug_assert!(self.width(q).is_multiple_of(self.width(k)) && self.width(k).is_multiple_of(dim));
        let outs = [self.width(q), self.width(k)];
        let outs = self.role(Role::Attention).push_named("heads_mean", HeadsMean { dim }, &[q, k], &outs, &[], &[]);
        (outs[0], outs[1])
    }
}
