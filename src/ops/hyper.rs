//! hyper: hyper-connections, `n` parallel residual streams that every block reads from and writes to (DeepSeek-V4).
//!
//! ```text
//! mixes = fn . rmsnorm(all streams)                                        (2 n + n^2), or (n) at the head
//! pre   = sigmoid(scale[0] * mixes[0..n] + base[0..n]) + eps               input  = sum_i pre[i] * stream[i]
//! post  = magnitude * sigmoid(scale[1] * mixes[n..2n] + base[n..2n])
//! comb  = sinkhorn(scale[2] * mixes[2n..] + base[2n..])                    (from, to)
//! after the block:  stream[to] = post[to] * output + sum_from comb[from][to] * stream[from]
//! ```
//! Where the mix lags (DeepSeek-V4.1), `pre` serves the next block: a block reads by the one of the block before it, the first
//! one stream 0, and the head by that of the last block.
//!
//! Without the mixing matrix (Hy4) `comb` is the identity, and post = magnitude * sigmoid(..) + eps.
//! Sinkhorn: softmax over `to`, plus eps; columns divided by their sum + eps; then rows and columns in turn.

use anyhow::Result;

use super::glu::sigmoid;
use super::norm::{norm, rms};
use crate::cpu::{Group, grouped};
use crate::cuda::launch::{MOST_STREAMS, TILE_ROWS};
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, GpuValue, MatrixRows, Op, Slot, WeightId};

/// The settings of a model's hyper-connections.
#[derive(Clone, Copy, Debug)]
pub struct Hyper {
    /// Streams.
    pub n: usize,
    /// Columns of one stream.
    pub width: usize,
    /// Rounds of normalisation of the mixing matrix; None for streams that are not mixed.
    pub rounds: Option<usize>,
    /// Multiplies what is written back; 2 in DeepSeek-V4.
    pub magnitude: f32,
    /// Keeps sums from vanishing.
    pub eps: f32,
    /// Of the norm before `fn`.
    pub norm_eps: f32,
}

impl Hyper {
    /// Entries of the mixing matrix.
    fn n_comb(&self) -> usize {
        self.rounds.map_or(0, |_| self.n * self.n)
    }

    /// What is added to the weights of writing back.
    fn post_eps(&self) -> f32 {
        if self.rounds.is_some() { 0.0 } else { self.eps }
    }
}

/// What a step makes of `pre`, and of the streams with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// The block reads by it.
    Own,
    /// The block reads by that of the block before, which is the second input, or stream 0; its own is the third output.
    Before,
    /// The head of the model reads by it: nothing else exists.
    Head,
}

#[derive(Debug)]
struct HyperPre {
    h: Hyper,
    reads: Reads,
}

/// `out = sum_i pre[i] * stream[i]`, for a token.
fn collapse(pre: &[f32], streams: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (pre, stream) in pre.iter().zip(streams.chunks_exact(out.len())) {
        out.iter_mut().zip(stream).for_each(|(o, s)| *o += pre * s);
    }
}

/// Rows and columns of `m` (n x n) brought to sums of about 1.
fn sinkhorn(m: &mut [f32], n: usize, rounds: usize, eps: f32) {
    for row in m.chunks_exact_mut(n) {
        let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        row.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v = *v / sum + eps);
    }
    for round in 0..rounds.max(1) {
        if round > 0 {
            for row in m.chunks_exact_mut(n) {
                let sum = row.iter().sum::<f32>() + eps;
                row.iter_mut().for_each(|v| *v /= sum);
            }
        }
        for to in 0..n {
            let sum = (0..n).map(|from| m[from * n + to]).sum::<f32>() + eps;
            (0..n).for_each(|from| m[from * n + to] /= sum);
        }
    }
}

impl Op for HyperPre {
    fn name(&self) -> &'static str {
        "hyper"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let h = &self.h;
        let (n, all) = (h.n, h.n * h.width);
        let x = io.ins[0];
        let [normed, mixes, ..] = &mut io.work.buffers;
        normed.resize(x.len(), 0.0);
        io.pool.pieces(normed, all, x.len() * 8, |t, out| rms(&x[t * all..(t + 1) * all], None, h.norm_eps, 1.0, out));
        let w = io.weights[0];
        let n_mix = w.shape[1];
        mixes.resize(io.rows * n_mix, 0.0);
        let pairs: Vec<(u32, u32)> = (0..io.rows as u32).map(|t| (t, t)).collect();
        let group = Group { w: w.matrix(0), pairs: &pairs };
        grouped(io.pool, w.format(), (n_mix, all), &[group], &mut io.work.acts, normed, mixes);
        let (scale, base) = (io.weights[1].values, io.weights[2].values);
        let mut pre = vec![0f32; n];
        for t in 0..io.rows {
            let mix = &mixes[t * n_mix..(t + 1) * n_mix];
            let streams = &x[t * all..(t + 1) * all];
            let own = mix.iter().zip(base).take(n).map(|(m, b)| sigmoid(m * scale[0] + b) + h.eps);
            if self.reads == Reads::Before {
                io.outs[2][t * n..(t + 1) * n].iter_mut().zip(own).for_each(|(o, v)| *o = v);
                pre.fill(0.0);
                pre[0] = 1.0;
                io.ins.get(1).into_iter().for_each(|before| pre.copy_from_slice(&before[t * n..(t + 1) * n]));
            } else {
                pre.iter_mut().zip(own).for_each(|(o, v)| *o = v);
            }
            collapse(&pre, streams, &mut io.outs[0][t * h.width..(t + 1) * h.width]);
            if self.reads == Reads::Head {
                continue;
            }
            let n_back = n + h.n_comb();
            let back = &mut io.outs[1][t * n_back..(t + 1) * n_back];
            for i in 0..n {
                back[i] = h.magnitude * sigmoid(mix[n + i] * scale[1] + base[n + i]) + h.post_eps();
            }
            if let Some(rounds) = h.rounds {
                for i in 0..n * n {
                    back[n + i] = mix[2 * n + i] * scale[2] + base[2 * n + i];
                }
                sinkhorn(&mut back[n..], n, rounds, h.eps);
            }
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (h, x, w) = (&self.h, io.ins[0], &io.weights[0]);
        let (n_mix, n_in) = (w.shape[1], w.shape[2]);
        let mixes = io.scratch.take(x.rows * n_mix * 4);
        if w.format().act.block() == 1 && n_mix <= TILE_ROWS / 2 {
            // The norm is made by the products that read it. A thread takes four columns at a time.
            let threads = (n_in / 4).next_multiple_of(32).clamp(32, 1024);
            let grid = |each: usize| Grid::new([n_mix, x.rows.div_ceil(each), 1], threads);
            let (gpu, name, eps, row_bytes) = (io.gpu, w.kernels(), h.norm_eps, w.row_bytes());
            let (n_in, n_out, rows) = (int(n_in), int(n_mix), int(x.rows));
            if x.rows == 1 {
                launch::normed1_floats(gpu, name, grid(1), w.ptr, x.ptr, mixes, n_in, n_out, rows, eps, row_bytes)?;
            } else {
                launch::normed4_floats(gpu, name, grid(4), w.ptr, x.ptr, mixes, n_in, n_out, rows, eps, row_bytes)?;
            }
        } else {
            let normed = GpuValue { ptr: io.scratch.take(x.rows * x.width * 4), ..x };
            norm(io, x, (None, 1), x.width, (h.norm_eps, 1.0), normed.ptr)?;
            io.product(w, normed, MatrixRows::All, mixes)?;
        }
        let (none, lags) = (Ptr::default(), self.reads == Reads::Before);
        let back = (self.reads != Reads::Head).then(|| io.outs[1].ptr);
        launch::hyper_pre(
            io.gpu,
            Grid::new([x.rows, 1, 1], h.width.next_multiple_of(32).min(1024)), // as `rms_norm`, which may join it
            x.ptr,
            mixes,
            io.weights[1].ptr,
            io.weights[2].ptr,
            io.outs[0].ptr,
            back.unwrap_or_default(),
            none,
            none,
            none,
            none,
            io.ins.get(1).map_or(none, |before| before.ptr),
            if lags { io.outs[2].ptr } else { none },
            int(h.n),
            int(h.width),
            i32::from(h.rounds.is_some()),
            int(h.rounds.unwrap_or(0)),
            h.magnitude,
            h.eps,
            h.post_eps(),
            0.0,
            0.0,
            0.0,
        )
    }

    fn gpu_refuses(&self) -> Option<String> {
        (self.h.n > MOST_STREAMS).then(|| format!("{} streams; the kernel takes {MOST_STREAMS}", self.h.n))
    }
}

#[derive(Debug)]
struct Post {
    n: usize,
    width: usize,
    /// Whether the streams are mixed too.
    mixed: bool,
}

impl Op for Post {
    fn name(&self) -> &'static str {
        "hyper"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (n, width, n_back) = (self.n, self.width, self.n + if self.mixed { self.n * self.n } else { 0 });
        let [x, streams, back] = io.ins else { unreachable!("the builder gives three inputs") };
        io.pool.pieces(io.outs[0], width, streams.len() * 16, |i, out| {
            let (t, to) = (i / n, i % n);
            let back = &back[t * n_back..(t + 1) * n_back];
            for (o, x) in out.iter_mut().zip(&x[t * width..]) {
                *o = x * back[to];
            }
            if !self.mixed {
                return out.iter_mut().zip(&streams[i * width..]).for_each(|(o, s)| *o += s);
            }
            for from in 0..n {
                let c = back[n + from * n + to];
                let stream = &streams[(t * n + from) * width..][..width];
                out.iter_mut().zip(stream).for_each(|(o, s)| *o += c * s);
            }
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let [x, streams, back] = io.ins else { unreachable!("the builder gives three inputs") };
        let (n, width, total) = (int(self.n), int(self.width), streams.rows * streams.width);
        let (grid, out) = (Grid::each(total), io.outs[0].ptr);
        let (mixed, none, all) = (i32::from(self.mixed), Ptr::default(), total as u64); // sums come in by joined launches
        launch::hyper_post(
            io.gpu,
            grid,
            x.ptr,
            none,
            none,
            none,
            none,
            streams.ptr,
            back.ptr,
            out,
            n,
            width,
            mixed,
            all,
        )
    }
}

/// The streams joined by weights that are the second input.
#[derive(Debug)]
struct Collapse;

impl Op for Collapse {
    fn name(&self) -> &'static str {
        "hyper"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let [streams, pre] = io.ins else { unreachable!("the builder gives two inputs") };
        let (n, all) = (pre.len() / io.rows, streams.len() / io.rows);
        io.pool.pieces(io.outs[0], all / n, streams.len() * 8, |t, out| {
            collapse(&pre[t * n..(t + 1) * n], &streams[t * all..(t + 1) * all], out);
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let ([streams, pre], none) = ([io.ins[0], io.ins[1]], Ptr::default());
        let width = streams.width / pre.width;
        launch::hyper_pre(
            io.gpu,
            Grid::new([streams.rows, 1, 1], width.next_multiple_of(32).min(1024)),
            streams.ptr,
            none,
            none,
            none,
            io.outs[0].ptr,
            none,
            none,
            none,
            none,
            none,
            pre.ptr,
            none,
            int(pre.width),
            int(width),
            0,
            0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
        )
    }
}

/// The mean of this many streams.
#[derive(Debug)]
struct Mean(usize);

impl Op for Mean {
    fn name(&self) -> &'static str {
        "hyper"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let width = io.outs[0].len() / io.rows;
        for (out, streams) in io.outs[0].chunks_exact_mut(width).zip(io.ins[0].chunks_exact(width * self.0)) {
            out.fill(0.0);
            for stream in streams.chunks_exact(width) {
                out.iter_mut().zip(stream).for_each(|(o, s)| *o += s);
            }
            out.iter_mut().for_each(|o| *o /= self.0 as f32);
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, out) = (io.ins[0], io.outs[0]);
        let (total, n, width) = (out.rows * out.width, int(self.0), int(out.width));
        launch::gated_mean(io.gpu, Grid::each(total), x.ptr, Ptr::default(), out.ptr, n, width, total as u64)
    }
}

impl Builder<'_> {
    /// What a block reads from the streams, and how it writes back: (T, width) and (T, n + n^2), or (T, n) where streams
    /// are not mixed; with `NAME_fn`, `NAME_scale` and `NAME_base`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn hyper_pre(&self, name: &str, streams: Slot, h: Hyper) -> Result<(Slot, Slot)> {
        let weights = self.hyper_weights(name, h)?;
        let (op, outs) = (HyperPre { h, reads: Reads::Own }, [h.width, h.n + h.n_comb()]);
        let outs = self.push_named(&format!("{name}_pre"), op, &[streams], &outs, &weights, &[]);
        Ok((outs[0], outs[1]))
    }

    /// As [`Builder::hyper_pre`] for a model whose mix lags: what a block reads by the weights `before`, which the block before
    /// it gave, or of stream 0; how it writes back; and the weights for the next block, (T, n).
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn hyper_lagged(&self, name: &str, streams: Slot, before: Option<Slot>, h: Hyper) -> Result<[Slot; 3]> {
        let weights = self.hyper_weights(name, h)?;
        let ins: Vec<Slot> = [Some(streams), before].into_iter().flatten().collect();
        let (op, outs) = (HyperPre { h, reads: Reads::Before }, [h.width, h.n + h.n_comb(), h.n]);
        let outs = self.push_named(&format!("{name}_pre"), op, &ins, &outs, &weights, &[]);
        Ok([outs[0], outs[1], outs[2]])
    }

    /// The streams joined by weights `pre` (T, n) that are known: (T, width).
    pub fn hyper_collapse(&self, streams: Slot, pre: Slot) -> Slot {
        let width = self.width(streams) / self.width(pre);
        self.push(Collapse, &[streams, pre], &[width], &[])[0]
    }

    fn hyper_weights(&self, name: &str, h: Hyper) -> Result<[WeightId; 3]> {
        let n_mix = 2 * h.n + h.n_comb();
        Ok([
            self.matrix(&format!("{name}_fn.weight"), &[n_mix, h.n * h.width])?,
            self.vector(&format!("{name}_scale.weight"), &[2 + h.rounds.is_some() as usize])?,
            self.vector(&format!("{name}_base.weight"), &[n_mix])?,
        ])
    }

    /// The streams after a block that read them with [`Builder::hyper_pre`] and gave `x`: (T, n * width). `back` has a
    /// weight for each stream, and then, where streams are mixed, the matrix.
    pub fn hyper_post(&self, x: Slot, streams: Slot, back: Slot) -> Slot {
        let (width, all, n_back) = (self.width(x), self.width(streams), self.width(back));
        let n = all / width;
        debug_assert!(n_back == n || n_back == n + n * n, "a weight for each stream, and a matrix");
        self.push(Post { n, width, mixed: n_back > n }, &[x, streams, back], &[all], &[])[0]
    }

    /// The mean of `n` streams: (T, width).
    pub fn hyper_mean(&self, streams: Slot, n: usize) -> Slot {
        self.push(Mean(n), &[streams], &[self.width(streams) / n], &[])[0]
    }

    /// The streams joined for the output head: (T, width).
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn hyper_head(&self, name: &str, streams: Slot, h: Hyper) -> Result<Slot> {
        let weights = [
            self.matrix(&format!("{name}_fn.weight"), &[h.n, h.n * h.width])?,
            self.vector(&format!("{name}_scale.weight"), &[1])?,
            self.vector(&format!("{name}_base.weight"), &[h.n])?,
        ];
        Ok(self.push_named(name, HyperPre { h, reads: Reads::Head }, &[streams], &[h.width], &weights, &[])[0])
    }
}
