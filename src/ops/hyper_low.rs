//! hyper_low: hyper-connections whose streams are normed and gated on their own, the gate through a bottleneck (Qwen4).
//!
//! ```text
//! x[i]  = rmsnorm(stream[i]) * norm[i]                            for each of n streams
//! gate  = up . silu(down . (all x) / n)                           a gate for every value
//! input = mean_i sigmoid(gate[i]) * x[i]
//! back  = 2 sigmoid(inject . (all x) / n)                         (n); after the block: stream[i] += back[i] * output
//! ```
//! What a block gives is written back by [`Builder::hyper_post`].

use anyhow::Result;

use super::glu::{sigmoid, silu};
use super::norm::{norm, rms};
use crate::cpu::{Group, Pool, grouped};
use crate::cuda::{Grid, int, launch};
use crate::quant::Acts;
use crate::tape::{Builder, CpuIo, GpuIo, GpuValue, MatrixRows, Op, Slot, WeightView};

/// The settings of a model's hyper-connections.
#[derive(Clone, Copy, Debug)]
pub struct HyperLow {
    /// Streams.
    pub n: usize,
    /// Columns of the bottleneck.
    pub rank: usize,
    /// Of the norm.
    pub eps: f32,
}

#[derive(Debug)]
struct HyperLowOp(HyperLow);

/// Every row of `x` times a matrix.
fn product(pool: &Pool, w: &WeightView<'_>, rows: usize, acts: &mut Acts, x: &[f32], out: &mut [f32]) {
    let pairs: Vec<(u32, u32)> = (0..rows as u32).map(|t| (t, t)).collect();
    let group = Group { w: w.matrix(0), pairs: &pairs };
    grouped(pool, w.format(), (w.shape[1], w.shape[2]), &[group], acts, x, out);
}

impl Op for HyperLowOp {
    fn name(&self) -> &'static str {
        "hyper"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (n, x) = (self.0.n, io.ins[0]);
        let (rows, width) = (io.rows, x.len() / io.rows / n);
        let [normed, low, gate, _] = &mut io.work.buffers;
        let (gamma, acts) = (io.weights[0].values, &mut io.work.acts);
        normed.resize(x.len(), 0.0);
        io.pool.pieces(normed, width, x.len() * 8, |i, out| {
            let gamma = &gamma[i % n * width..][..width];
            rms(&x[i * width..(i + 1) * width], Some(gamma), self.0.eps, 1.0, out)
        });
        low.resize(rows * io.weights[1].shape[1], 0.0);
        product(io.pool, &io.weights[1], rows, acts, normed, low);
        low.iter_mut().for_each(|v| *v = silu(*v / n as f32));
        gate.resize(rows * io.weights[2].shape[1], 0.0);
        product(io.pool, &io.weights[2], rows, acts, low, gate);
        let (values, gates) = (&*normed, &*gate);
        io.pool.pieces(io.outs[0], width, x.len() * 16, |t, out| {
            out.fill(0.0);
            let own = t * n * width..(t + 1) * n * width;
            for (x, gate) in values[own.clone()].chunks_exact(width).zip(gates[own].chunks_exact(width)) {
                out.iter_mut().zip(x).zip(gate).for_each(|((o, x), g)| *o += x * sigmoid(*g));
            }
            out.iter_mut().for_each(|o| *o /= n as f32);
        });
        if let (Some(inject), Some(back)) = (io.weights.get(3), io.outs.get_mut(1)) {
            product(io.pool, inject, rows, acts, normed, back);
            back.iter_mut().for_each(|v| *v = 2.0 * sigmoid(*v / n as f32));
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (h, x) = (&self.0, io.ins[0]);
        let (width, total) = (x.width / h.n, x.rows * x.width);
        let value = |width: usize| GpuValue { ptr: io.scratch.take(x.rows * width * 4), rows: x.rows, width };
        let (bare, normed, sums, low, gate) =
            (value(x.width), value(x.width), value(h.rank), value(h.rank), value(x.width));
        norm(io, x, (None, 1), width, (h.eps, 1.0), bare.ptr)?;
        let gamma = io.weights[0].ptr;
        launch::scale_by(io.gpu, Grid::each(total), bare.ptr, gamma, normed.ptr, int(x.width), 1, total as u64)?;
        io.product(&io.weights[1], normed, MatrixRows::All, sums.ptr)?;
        let (by, n_low) = (1.0 / h.n as f32, x.rows * h.rank);
        launch::silu_of(io.gpu, Grid::each(n_low), sums.ptr, low.ptr, by, n_low as u64)?;
        io.product(&io.weights[2], low, MatrixRows::All, gate.ptr)?;
        let out = io.outs[0];
        let count = out.rows * out.width;
        let (grid, n, width) = (Grid::each(count), int(h.n), int(width));
        launch::gated_mean(io.gpu, grid, normed.ptr, gate.ptr, out.ptr, n, width, count as u64)?;
        if let Some(inject) = io.weights.get(3) {
            let back = io.outs[1];
            let (sums, count) = (value(h.n), back.rows * back.width);
            io.product(inject, normed, MatrixRows::All, sums.ptr)?;
            launch::twice_sigmoid(io.gpu, Grid::each(count), sums.ptr, back.ptr, by, count as u64)?;
        }
        Ok(())
    }
}

impl Builder<'_> {
    /// What a block reads from the streams, and the weights with which it writes back: (T, width) and (T, n), with
    /// `NAME_norm`, `NAME_down`, `NAME_up` and `NAME_inject`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn hyper_low(&self, name: &str, streams: Slot, h: HyperLow) -> Result<(Slot, Slot)> {
        let all = self.width(streams);
        let outs = self.low(name, streams, h, &[("inject", [h.n, all])], &[all / h.n, h.n])?;
        Ok((outs[0], outs[1]))
    }

    /// The streams joined for the output head: (T, width).
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn hyper_low_head(&self, name: &str, streams: Slot, h: HyperLow) -> Result<Slot> {
        Ok(self.low(name, streams, h, &[], &[self.width(streams) / h.n])?[0])
    }

    fn low(
        &self,
        name: &str,
        streams: Slot,
        h: HyperLow,
        more: &[(&str, [usize; 2])],
        outs: &[usize],
    ) -> Result<Vec<Slot>> {
        let all = self.width(streams);
        let mut weights = vec![self.vector(&format!("{name}_norm.weight"), &[h.n, all / h.n])?];
        for (part, shape) in [("down", [h.rank, all]), ("up", [all, h.rank])].iter().chain(more) {
            weights.push(self.matrix(&format!("{name}_{part}.weight"), shape)?);
        }
        Ok(self.push_named(&format!("{name}_pre"), HyperLowOp(h), &[streams], outs, &weights, &[]))
    }
}
