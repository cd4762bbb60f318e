//! scan: recurrent layers whose state decays and takes in a product of each token, without the
//! delta rule's correction (Mamba-2, Mamba, lightning attention).
//!
//! ```text
//! S[p][i] := decay * S[p][i] + step * x[p] * b[i]           per head: S (dim, columns), x (dim), b and c (columns)
//! out[p]   = sum_i S[p][i] * c[i] + d * x[p]
//!
//! Mamba-2    step = softplus(dt + bias), decay = exp(step * a): per head; b and c per group of heads
//! Mamba      the same with a step for each channel p, without a bias, and an a for each value of the state; one group
//! Lightning  step = 1, decay = exp(-slope) with a slope for each head; b = k, c = q, x = v, d = 0
//! ```
//! The state is f32, with the column fastest.

use anyhow::Result;

use super::glu::softplus;
use super::recurrence::{self, each_head, runs};
use crate::cpu::dense;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot, Table};

/// A recurrent layer's shape.
#[derive(Clone, Copy, Debug)]
pub struct Scan {
    /// Heads, each with a state of its own.
    pub heads: usize,
    /// Rows of a head's state: columns of `x` and of the output.
    pub dim: usize,
    /// Groups of neighbouring heads that share `b` and `c`.
    pub groups: usize,
    /// Columns of a head's state: of `b` and `c`.
    pub columns: usize,
}

/// Channels of a Mamba layer that a thread works through together, as if they were a head.
const CHANNELS: usize = 64;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Mamba2,
    /// With the true number of channels: the last head may have fewer rows.
    Mamba,
    /// The slope of head `h` is `scale * base^(h + 1)`.
    Lightning {
        base: f32,
        scale: f32,
    },
}

#[derive(Debug)]
struct ScanOp {
    s: Scan,
    kind: Kind,
}

impl ScanOp {
    /// Head `h` over the tokens of a run.
    fn head(&self, io: Inputs<'_>, h: usize, tokens: std::ops::Range<usize>, state: &mut [f32], out: &mut [f32]) {
        let Scan { heads, dim, groups, columns } = self.s;
        let group = h / (heads / groups);
        let (mut decay, mut taken) = (vec![0f32; columns], vec![0f32; dim]);
        for (t, out) in tokens.zip(out.chunks_exact_mut(dim)) {
            let x = &io.x[(t * heads + h) * dim..][..dim];
            let at = (t * groups + group) * columns;
            let (b, c) = (&io.b[at..at + columns], &io.c[at..at + columns]);
            if let Kind::Mamba = self.kind {
                let rows = state.chunks_exact_mut(columns).zip(out.iter_mut().zip(x)).enumerate();
                for (p, (row, (out, x))) in rows {
                    let channel = h * dim + p;
                    let step = softplus(io.dt[t * heads * dim + channel]);
                    let a = &io.a[channel * columns..][..columns];
                    decay.iter_mut().zip(a).for_each(|(d, a)| *d = step * a);
                    dense::exponentials(&mut decay, 0.0);
                    dense::recur(row, &decay, &[step * x], b, c, std::slice::from_mut(out));
                    *out += io.d[channel] * x;
                }
                continue;
            }
            let (step, by) = match self.kind {
                Kind::Lightning { base, scale } => (1.0, (-scale * base.powi(h as i32 + 1)).exp()),
                _ => {
                    let step = softplus(io.dt[t * heads + h] + io.bias[h]);
                    (step, (step * io.a[h]).exp())
                }
            };
            decay.fill(by);
            taken.iter_mut().zip(x).for_each(|(to, x)| *to = step * x);
            dense::recur(state, &decay, &taken, b, c, out);
            if let Some(d) = io.d.get(h) {
                out.iter_mut().zip(x).for_each(|(o, x)| *o += d * x);
            }
        }
    }
}

/// What a head reads; what its kind does not have is empty.
#[derive(Clone, Copy, Debug)]
struct Inputs<'a> {
    x: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    dt: &'a [f32],
    bias: &'a [f32],
    a: &'a [f32],
    d: &'a [f32],
}

impl Op for ScanOp {
    fn name(&self) -> &'static str {
        "scan"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let vector = |i: usize| io.weights.get(i).map_or(&[][..], |w| w.values);
        let [x, b, c] = [0, 1, 2].map(|i| io.ins[i]);
        let dt = io.ins.get(3).copied().unwrap_or_default();
        let inputs = Inputs { x, b, c, dt, a: vector(0), d: vector(1), bias: vector(2) };
        let s = self.s;
        each_head(io, (s.heads, s.dim, s.dim * s.columns), |h, tokens, state, out| {
            self.head(inputs, h, tokens, state, out)
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let s = &self.s;
        let n_runs = runs(io.batch).len();
        let list = |i: usize| io.tables[0].at(i * io.batch.rows.len() * 4);
        let [x, b, c] = [0, 1, 2].map(|i| io.ins[i].ptr);
        let dt = io.ins.get(3).map(|dt| dt.ptr).unwrap_or_default();
        let [a, d, bias] = [0, 1, 2].map(|i| io.weights.get(i).map(|w| w.ptr).unwrap_or_default());
        let (state, out, [first, count, seq]) =
            (Ptr(io.states[0].cache.rows), io.outs[0].ptr, [list(0), list(1), list(2)]);
        let (blocks, keep) = (io.states[0].cache.capacity, i32::from(io.batch.verifies));
        if let Kind::Mamba = self.kind {
            let channels = s.heads * s.dim;
            let grid = Grid::new([channels.div_ceil(128), n_runs, 1], 128);
            return launch::channel_scan(
                io.gpu,
                s.columns,
                grid,
                x,
                b,
                c,
                dt,
                a,
                d,
                state,
                out,
                first,
                count,
                seq,
                int(channels),
                blocks,
                keep,
            );
        }
        let (base, scale) = if let Kind::Lightning { base, scale } = self.kind { (base, scale) } else { (0.0, 0.0) };
        let threads = (4 * s.dim).next_multiple_of(32).min(128);
        launch::scan(
            io.gpu,
            s.columns,
            Grid::new([s.heads, n_runs, (4 * s.dim).div_ceil(threads)], threads),
            x,
            b,
            c,
            dt,
            bias,
            a,
            d,
            state,
            out,
            first,
            count,
            seq,
            int(s.heads),
            int(s.dim),
            int(s.groups),
            base,
            scale,
            blocks,
            keep,
        )
    }

    fn gpu_refuses(&self) -> Option<String> {
        let known: &[usize] = if let Kind::Mamba = self.kind { &launch::CHANNEL_SCAN } else { &launch::SCAN };
        let n = self.s.columns;
        (!known.contains(&n)).then(|| format!("a state of {n} columns; the kernel takes {known:?}"))
    }

    fn tables(&self) -> Vec<Table> {
        vec![recurrence::table()]
    }
}

impl Builder<'_> {
    /// A Mamba-2 layer's recurrence over `x` (T, heads * dim), `b` and `c` (T, groups * columns)
    /// and the logits `dt` (T, heads), with the vectors `ssm_dt.bias`, `ssm_a` and `ssm_d` (heads).
    /// (T, heads * dim).
    ///
    /// # Errors
    /// If the values do not have these widths, or the file not these vectors.
    pub fn mamba2(&self, s: Scan, [x, b, c, dt]: [Slot; 4]) -> Result<Slot> {
        if !s.heads.is_multiple_of(s.groups) {
            let want = format!("a divisor of the {} heads (ssm.time_step_rank)", s.heads);
            return Err(self.bad_key("ssm.group_count", s.groups, want));
        }
        self.expect_width("scan", dt, s.heads)?;
        self.scan(s, Kind::Mamba2, &[x, b, c, dt], &["ssm_a", "ssm_d", "ssm_dt.bias"], s.heads)
    }

    /// A Mamba layer's recurrence over `x` and the logits `dt` (T, channels), `b` and `c` (T,
    /// columns), with the vectors `ssm_d` (channels) and `ssm_a` (channels, columns). (T,
    /// channels).
    ///
    /// # Errors
    /// If the values do not have these widths, or the file not these vectors.
    pub fn mamba(&self, [x, b, c, dt]: [Slot; 4]) -> Result<Slot> {
        let (channels, columns) = (self.width(x), self.width(b));
        self.expect_width("scan", dt, channels)?;
        // Any cut into heads computes the same.
        let dim = (1..=CHANNELS).rev().find(|n| channels.is_multiple_of(*n)).unwrap_or(1);
        let s = Scan { heads: channels / dim, dim, groups: 1, columns };
        self.scan(s, Kind::Mamba, &[x, b, c, dt], &["ssm_a", "ssm_d"], channels)
    }

    /// Lightning attention of `heads` heads over `q`, `k` and `v` (T, heads * dim) in layer `layer`
    /// of `n_layers`: a state that forgets at a rate of its own in each head, and slower in later
    /// layers. (T, heads * dim).
    ///
    /// # Errors
    /// If the values do not have these widths.
    pub fn lightning(&self, heads: usize, [q, k, v]: [Slot; 3], (layer, n_layers): (usize, usize)) -> Result<Slot> {
        let dim = self.width(v) / heads;
        // Slopes as in ALiBi; from the first layer to the last they are scaled from 1 down to 1e-5.
        let base = 2f32.powf(-2f32.powf(3.0 - (heads as f32).log2()));
        let scale = (1.0 - layer as f64 / (n_layers.max(2) - 1) as f64 + 1e-5) as f32;
        let s = Scan { heads, dim, groups: heads, columns: dim };
        self.scan(s, Kind::Lightning { base, scale }, &[v, k, q], &[], 0)
    }

    fn scan(&self, s: Scan, kind: Kind, ins: &[Slot], vectors: &[&str], width: usize) -> Result<Slot> {
        let n = s.heads * s.dim;
        for (&x, want) in ins.iter().zip([n, s.groups * s.columns, s.groups * s.columns]) {
            self.expect_width("scan", x, want)?;
        }
        let mut weights = Vec::new();
        for &name in vectors {
            let columns = if matches!(kind, Kind::Mamba) && name == "ssm_a" { s.columns } else { 1 };
            weights.push(self.vector(name, &[width, columns])?);
        }
        let state = self.fixed_state("scan.state", n * s.columns);
        Ok(self.role(Role::Attention).push_named("scan", ScanOp { s, kind }, ins, &[n], &weights, &[state])[0])
    }
}
