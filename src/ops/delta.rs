//! delta: the gated delta rule, a recurrent attention with a (dim x dim) state per head (Qwen3-Next, Qwen3.5).
//!
//! ```text
//! decay = exp(a * softplus(alpha + dt)),  beta = sigmoid(beta logit)          per head and token
//! S    := decay * S
//! S    += beta * (v - S^T k) k^T
//! out   = S^T q / sqrt(dim)
//! ```
//! q and k come normalised; value head `h` uses key head `h mod key heads`. The state is f32: in bf16 it collapses
//! within a few tokens. It is stored with the key index fastest, so that both products run along memory.

use anyhow::Result;

use super::glu::sigmoid;
use super::route::softplus;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Batch, Builder, CpuIo, GpuIo, Op, Role, Slot, Table};

/// A gated delta net's shape.
#[derive(Clone, Copy, Debug)]
pub struct Delta {
    /// Heads of q and k.
    pub k_heads: usize,
    /// Heads of v, of the state and of the output.
    pub v_heads: usize,
    /// Columns of a head of q, k or v.
    pub dim: usize,
}

#[derive(Debug)]
struct DeltaOp(Delta);

impl Op for DeltaOp {
    fn name(&self) -> &'static str {
        "delta"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let d = &self.0;
        let [q, k, v, beta, alpha] = io.ins else { unreachable!("the builder gives five inputs") };
        let (dt, a) = (io.weights[0].values, io.weights[1].values);
        let (n, scale) = (d.dim, 1.0 / (d.dim as f32).sqrt());
        for (from, count, seq) in runs(io.batch) {
            let to = from + count;
            let [by_head, ..] = &mut io.work.buffers; // (heads, tokens, dim)
            by_head.resize(d.v_heads * count * n, 0.0);
            let state = io.states[0].fixed(seq, io.batch.rows[to - 1].pos as usize + 1);
            let bytes = count * state.len() * 12;
            io.pool.pieces2((state, n * n), (by_head, count * n), bytes, |h, s, out| {
                let mut delta = vec![0f32; n];
                for (t, out) in (from..to).zip(out.chunks_exact_mut(n)) {
                    let key = (t * d.k_heads + h % d.k_heads) * n;
                    let (q, k) = (&q[key..key + n], &k[key..key + n]);
                    let v = &v[(t * d.v_heads + h) * n..][..n];
                    let decay = (a[h] * softplus(alpha[t * d.v_heads + h] + dt[h])).exp();
                    let beta = sigmoid(beta[t * d.v_heads + h]);
                    for (j, s) in s.chunks_exact_mut(n).enumerate() {
                        let mut sum = 0f32;
                        for (s, k) in s.iter_mut().zip(k) {
                            *s *= decay;
                            sum += *s * k;
                        }
                        delta[j] = (v[j] - sum) * beta;
                    }
                    for ((s, &delta), out) in s.chunks_exact_mut(n).zip(&delta).zip(out) {
                        let mut sum = 0f32;
                        for ((s, k), q) in s.iter_mut().zip(k).zip(q) {
                            *s += k * delta;
                            sum += *s * q;
                        }
                        *out = sum * scale;
                    }
                }
            });
            for t in from..to {
                for h in 0..d.v_heads {
                    let at = (h * count + t - from) * n;
                    io.outs[0][(t * d.v_heads + h) * n..][..n].copy_from_slice(&by_head[at..at + n]);
                }
            }
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let d = &self.0;
        let n = runs(io.batch).len();
        let list = |i: usize| io.tables[0].at(i * io.batch.rows.len() * 4);
        let [q, k, v, beta, alpha] = io.ins else { unreachable!("the builder gives five inputs") };
        let threads = (4 * d.dim).min(128);
        launch::delta(
            io.gpu,
            d.dim,
            Grid::new([d.v_heads, n, 4 * d.dim / threads], threads),
            q.ptr,
            k.ptr,
            v.ptr,
            beta.ptr,
            alpha.ptr,
            io.weights[0].ptr,
            io.weights[1].ptr,
            Ptr(io.states[0].cache.rows),
            io.outs[0].ptr,
            list(0),
            list(1),
            list(2),
            int(d.k_heads),
            int(d.v_heads),
        )
    }

    fn gpu_refuses(&self) -> Option<String> {
        let n = self.0.dim;
        let fits = launch::DELTA.contains(&n);
        (!fits).then(|| format!("heads of {n} columns; the kernel takes {:?}", launch::DELTA))
    }

    fn tables(&self) -> Vec<Table> {
        // The first row, the number of rows and the sequence of every run: three lists, each as long as the batch.
        let fill = |batch: &Batch, to: &mut [u8]| {
            let n = batch.rows.len();
            let to: &mut [[u8; 4]] = to.as_chunks_mut().0;
            for (i, (first, count, seq)) in runs(batch).into_iter().enumerate() {
                to[i] = (first as i32).to_ne_bytes();
                to[n + i] = (count as i32).to_ne_bytes();
                to[2 * n + i] = (seq as i32).to_ne_bytes();
            }
        };
        vec![Table { key: "runs".into(), row_bytes: 12, fill: Box::new(fill) }]
    }
}

/// The batch's sequences: (first row, rows, sequence).
fn runs(batch: &Batch) -> Vec<(usize, usize, u32)> {
    let mut runs: Vec<(usize, usize, u32)> = Vec::new();
    for (i, row) in batch.rows.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.2 == row.seq => run.1 += 1,
            _ => runs.push((i, 1, row.seq)),
        }
    }
    runs
}

impl Builder<'_> {
    /// The gated delta rule over `q`, `k` (T, k_heads * dim), `v` (T, v_heads * dim), and the logits `beta` and `alpha`
    /// (T, v_heads); `dt` and `a` are names of vectors (v_heads). (T, v_heads * dim).
    ///
    /// # Errors
    /// If the values do not have these widths, or the file not these vectors.
    pub fn delta(&self, d: Delta, [q, k, v, beta, alpha]: [Slot; 5], dt: &str, a: &str) -> Result<Slot> {
        for (x, want) in [(q, d.k_heads * d.dim), (k, d.k_heads * d.dim), (v, d.v_heads * d.dim)] {
            self.expect_width("delta", x, want)?;
        }
        if !d.v_heads.is_multiple_of(d.k_heads) {
            let want = format!("a divisor of the {} value heads (ssm.time_step_rank)", d.v_heads);
            return Err(self.bad_key("ssm.group_count", d.k_heads, want));
        }
        let weights = [self.vector(dt, &[d.v_heads])?, self.vector(a, &[d.v_heads])?];
        let state = self.fixed_state("delta.state", d.v_heads * d.dim * d.dim);
        let ins = [q, k, v, beta, alpha];
        Ok(self.role(Role::Attention).push_named("delta", DeltaOp(d), &ins, &[d.v_heads * d.dim], &weights, &[state])
            [0])
    }
}
