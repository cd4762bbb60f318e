//! delta: the gated delta rule, a recurrent attention with a (dim x dim) state per head
//! (Qwen3-Next, Qwen3.5); and the same with a decay for each channel of the keys (Kimi Delta
//! Attention).
//!
//! ```text
//! decay = exp(a * softplus(alpha + dt))                    per head and token, or per key channel too
//!         exp(bound * sigmoid(sign * a * (alpha + dt)))    the bounded form
//! beta  = sigmoid(beta logit)                              per head and token
//! S    := decay * S
//! S    += beta * (v - S^T k) k^T
//! out   = S^T q / sqrt(dim)
//! ```
//! q and k come normalised. The state is f32: in bf16 it collapses within a few tokens. It is
//! stored with the key index fastest, so that both products run along memory.

use anyhow::Result;

use super::glu::{sigmoid, softplus};
use super::recurrence::{self, each_head, runs};
use crate::cpu::dense;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot, Table};

/// A gated delta net's shape.
#[derive(Clone, Copy, Debug)]
pub struct Delta {
    /// Heads of q and k.
    pub k_heads: usize,
    /// Heads of v, of the state and of the output.
    pub v_heads: usize,
    /// Columns of a head of q, k or v.
    pub dim: usize,
    /// Neighbouring value heads that share a key head: value head `h` uses key head `(h / run) mod
    /// k_heads`. 1 where the key heads follow each other.
    pub run: usize,
    /// What the state decays by.
    pub decay: Decay,
}

/// From `alpha` to the factor that the state is multiplied by.
#[derive(Clone, Copy, Debug)]
pub enum Decay {
    /// `exp(a * softplus(alpha + dt))`.
    Softplus,
    /// `exp(bound * sigmoid(sign * a * (alpha + dt)))`.
    Bounded {
        /// The least exponent, below 0.
        bound: f32,
        /// 1, or -1 where the file holds `a` negated, as [`Decay::Softplus`] reads it.
        sign: f32,
    },
}

impl Decay {
    fn of(self, alpha: f32, dt: f32, a: f32) -> f32 {
        match self {
            Decay::Softplus => (a * softplus(alpha + dt)).exp(),
            Decay::Bounded { bound, sign } => (bound * sigmoid(sign * a * (alpha + dt))).exp(),
        }
    }
}

#[derive(Debug)]
struct DeltaOp {
    d: Delta,
    /// Decays of a head: 1, or one for each key channel.
    channels: usize,
}

impl DeltaOp {
    /// The key head of value head `h`.
    fn key_head(&self, h: usize) -> usize {
        h / self.d.run % self.d.k_heads
    }
}

/// One token of one head, with a decay for each key channel. `work`: 2 n values.
fn step(s: &mut [f32], decay: &[f32], beta: f32, [q, k, v]: [&[f32]; 3], work: &mut [f32], out: &mut [f32]) {
    let (delta, seen) = work.split_at_mut(k.len());
    seen.iter_mut().zip(decay).zip(k).for_each(|((s, d), k)| *s = d * k);
    dense::row_dots(s, seen, delta);
    delta.iter_mut().zip(v).for_each(|(d, v)| *d = (v - *d) * beta);
    dense::recur(s, decay, delta, k, q, out);
}

impl Op for DeltaOp {
    fn name(&self) -> &'static str {
        "delta"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (d, channels) = (&self.d, self.channels);
        let [q, k, v, beta, alpha] = io.ins else { unreachable!("the builder gives five inputs") };
        let (dt, a) = (io.weights[0].values, io.weights[1].values);
        let (n, scale) = (d.dim, 1.0 / (d.dim as f32).sqrt());
        each_head(io, (d.v_heads, n, n * n), |h, tokens, s, out| {
            let (mut work, mut decay) = (vec![0f32; 2 * n], vec![0f32; n]);
            for (t, out) in tokens.zip(out.chunks_exact_mut(n)) {
                let (key, head) = (t * d.k_heads + self.key_head(h), t * d.v_heads + h);
                let qkv = [&q[key * n..][..n], &k[key * n..][..n], &v[head * n..][..n]];
                let inputs = alpha[head * channels..].iter().zip(&dt[h * channels..]);
                let factors = inputs.take(channels).map(|(alpha, dt)| d.decay.of(*alpha, *dt, a[h]));
                decay.iter_mut().zip(factors).for_each(|(to, factor)| *to = factor);
                if channels == 1 {
                    let all = decay[0];
                    decay.fill(all);
                }
                step(s, &decay, sigmoid(beta[head]), qkv, &mut work, out);
                out.iter_mut().for_each(|o| *o *= scale);
            }
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let d = &self.d;
        let n = runs(io.batch).len();
        let list = |i: usize| io.tables[0].at(i * io.batch.rows.len() * 4);
        let [q, k, v, beta, alpha] = io.ins else { unreachable!("the builder gives five inputs") };
        let threads = (4 * d.dim).min(128);
        let (bound, sign) = if let Decay::Bounded { bound, sign } = d.decay { (bound, sign) } else { (0.0, 0.0) };
        let start = if self.channels == 1 { launch::delta } else { launch::delta_channels };
        start(
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
            int(d.run),
            bound,
            sign,
            io.states[0].cache.capacity,
            i32::from(io.batch.verifies),
        )
    }

    fn gpu_refuses(&self) -> Option<String> {
        let n = self.d.dim;
        let fits = launch::DELTA.contains(&n);
        (!fits).then(|| format!("heads of {n} columns; the kernel takes {:?}", launch::DELTA))
    }

    fn tables(&self) -> Vec<Table> {
        vec![recurrence::table()]
    }
}

impl Builder<'_> {
    /// The gated delta rule over `q`, `k` (T, k_heads * dim), `v` (T, v_heads * dim), and the
    /// logits `beta` (T, v_heads) and `alpha`: (T, v_heads), or (T, v_heads * dim) for a decay of
    /// each key channel. `dt` and `a` are names of vectors, `dt` as wide as `alpha`, `a` (v_heads).
    /// (T, v_heads * dim).
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
        let channels = if self.width(alpha) == d.v_heads { 1 } else { d.dim };
        self.expect_width("delta", beta, d.v_heads)?;
        self.expect_width("delta", alpha, d.v_heads * channels)?;
        let weights = [self.vector(dt, &[d.v_heads * channels])?, self.vector(a, &[d.v_heads])?];
        let state = self.fixed_state("delta.state", d.v_heads * d.dim * d.dim);
        let ins = [q, k, v, beta, alpha];
        Ok(self.role(Role::Attention).push_named(
            "delta",
            DeltaOp { d, channels },
            &ins,
            &[d.v_heads * d.dim],
            &weights,
            &[state],
        )[0])
    }
}
