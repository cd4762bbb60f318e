//! linear: `x W^T`, times an optional scale, plus an optional bias; and the same per head.
//!
//! `NAME.bias` and `NAME.scale` are used wherever the file has them: a checkpoint that carries them means them.

use anyhow::{Result, bail};

use super::Glu;
use crate::cpu::{Group, grouped};
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, GpuValue, Layer, Op, Pairs, Slot, WeightId};

#[derive(Debug)]
struct Linear {
    /// Matrices in the stack: 1, or one per head, each multiplying its own part of the row.
    heads: usize,
    bias: bool,
    scale: bool,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        if self.heads == 1 { "linear" } else { "heads" }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let w = io.weights[0];
        let n_out = w.shape[1];
        let pairs: Vec<Vec<(u32, u32)>> = (0..self.heads)
            .map(|h| (0..io.rows).map(|t| (t * self.heads + h) as u32).map(|r| (r, r)).collect())
            .collect();
        let groups: Vec<Group> = pairs.iter().enumerate().map(|(h, pairs)| Group { w: w.matrix(h), pairs }).collect();
        let out = &mut io.outs[0];
        grouped(io.pool, w.format(), (n_out, w.shape[2]), &groups, &mut io.work.acts, io.ins[0], out);
        let mut rest = io.weights[1..].iter();
        if self.scale {
            let s = rest.next().expect("a scale").values[0];
            out.iter_mut().for_each(|o| *o *= s);
        }
        if self.bias {
            let b = rest.next().expect("a bias").values;
            for row in out.chunks_exact_mut(b.len()) {
                row.iter_mut().zip(b).for_each(|(o, b)| *o += b);
            }
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (w, out) = (&io.weights[0], io.outs[0]);
        let pairs = if self.heads == 1 { Pairs::All } else { Pairs::Heads(self.heads) };
        io.product(w, io.ins[0], pairs, out.ptr)?;
        let mut rest = io.weights[1..].iter();
        let scale = self.scale.then(|| rest.next().expect("a scale").ptr);
        let bias = self.bias.then(|| rest.next().expect("a bias").ptr);
        scale_bias(io, out, scale, bias, None)
    }
}

/// Rows times a scale, plus a bias: of the whole, or of the matrix that `ids` gives for each row.
pub(super) fn scale_bias(
    io: &GpuIo<'_>,
    out: GpuValue,
    scale: Option<Ptr>,
    bias: Option<Ptr>,
    ids: Option<Ptr>,
) -> Result<()> {
    if scale.is_none() && bias.is_none() {
        return Ok(());
    }
    let total = out.rows * out.width;
    let [scale, bias, ids] = [scale, bias, ids].map(Option::unwrap_or_default);
    launch::scale_bias(io.gpu, Grid::each(total), out.ptr, scale, bias, ids, int(out.width), total as u64)
}

impl Builder<'_> {
    /// `x` times `NAME.weight` (n_out, width of x): (T, n_out).
    pub fn linear(&self, x: Slot, name: &str, n_out: usize) -> Result<Slot> {
        self.stack(x, name, 1, n_out)
    }

    /// `q`, `k` and `v` of these widths: from `attn_q`, `attn_k` and `attn_v`, or from `attn_qkv`, where a converter has
    /// put the three below each other.
    pub fn qkv(&self, l: &Layer, x: Slot, [n_q, n_k, n_v]: [usize; 3]) -> Result<[Slot; 3]> {
        if !self.has(&l.w("attn_qkv.weight")) {
            let one = |name, n| self.linear(x, &l.w(name), n);
            return Ok([one("attn_q", n_q)?, one("attn_k", n_k)?, one("attn_v", n_v)?]);
        }
        let all = self.linear(x, &l.w("attn_qkv"), n_q + n_k + n_v)?; // (T, q | k | v)
        let part = |name, at, n| self.columns(l.w(name), all, at, n);
        Ok([part("attn_q", 0, n_q)?, part("attn_k", n_q, n_k)?, part("attn_v", n_q + n_k, n_v)?])
    }

    /// The output head: `NAME.weight`, or the embedding where the file ties the two.
    pub fn head(&self, x: Slot, name: &str, tied: &str) -> Result<Slot> {
        let name = if self.has(&format!("{name}.weight")) { name } else { tied };
        let n_vocab = self.n_vocab()?;
        self.linear(x, name, n_vocab)
    }

    /// Head `h` of `x` times matrix `h` of `NAME.weight` (heads, n_out, width of a head): (T, heads * n_out).
    pub fn head_linear(&self, x: Slot, name: &str, heads: usize, n_out: usize) -> Result<Slot> {
        let width = self.width(x);
        if !width.is_multiple_of(heads) {
            bail!("{}: tensor {name}.weight: {width} columns cannot be shared by {heads} heads", self.file());
        }
        self.stack(x, name, heads, n_out)
    }

    /// A feed-forward layer: `down(glu(gate(x), up(x)))`, the three named within the layer.
    pub fn swiglu(&self, l: &Layer, x: Slot, names: [&str; 3], n_ff: usize, n_out: usize, kind: Glu) -> Result<Slot> {
        let gate = self.linear(x, &l.w(names[0]), n_ff)?; // (T, n_ff)
        let up = self.linear(x, &l.w(names[1]), n_ff)?; // (T, n_ff)
        let label = l.w(&names[2].replace("down", "glu"));
        self.linear(self.glu(label, kind, gate, up), &l.w(names[2]), n_out)
    }

    fn stack(&self, x: Slot, name: &str, heads: usize, n_out: usize) -> Result<Slot> {
        let w = self.matrix(&format!("{name}.weight"), &[heads, n_out, self.width(x) / heads])?;
        let scale = self.opt_vector(&format!("{name}.scale"), &[1])?;
        let bias = self.opt_vector(&format!("{name}.bias"), &[heads * n_out])?;
        let op = Linear { heads, bias: bias.is_some(), scale: scale.is_some() };
        let weights: Vec<WeightId> = [Some(w), scale, bias].into_iter().flatten().collect();
        Ok(self.push(name, op, &[x], &[heads * n_out], &weights, &[])[0])
    }
}
