//! linear: `x W^T`, times an optional scale, plus an optional bias; and the same per head, also as
//! a causal convolution along the sequence, whose taps are a matrix per head each.
//!
//! `NAME.bias` and `NAME.scale` are used wherever the file has them: a checkpoint that has them means them. A scale as wide as the input multiplies the input (Gemma 4's router), a single number the output.

use anyhow::{Result, bail};

use crate::cpu::{Group, grouped};
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, GpuValue, GpuWeight, Likely, MatrixRows, Op, Role, Slot, Weight, WeightId};

#[derive(Debug)]
struct Linear {
    /// Matrices: 1, or one per head, each multiplying its own part of the row.
    heads: usize,
    /// The first of them in the stack.
    first: usize,
    bias: bool,
    scale: bool,
    /// Whether it gives the logits, of which the batch may want only the first.
    logits: bool,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        if self.heads == 1 { "linear" } else { "heads" }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        if let Some(likely) = io.batch.likely.filter(|_| self.logits) {
            logits_of(io, likely);
        } else {
            let w = io.weights[0];
            let pairs: Vec<Vec<(u32, u32)>> = (0..self.heads)
                .map(|h| (0..io.rows).map(|t| (t * self.heads + h) as u32).map(|r| (r, r)).collect())
                .collect();
            let groups: Vec<Group> =
                pairs.iter().enumerate().map(|(h, pairs)| Group { w: w.matrix(self.first + h), pairs }).collect();
            let sizes = (w.shape[1], w.shape[2]);
            grouped(io.pool, w.format(), sizes, &groups, &mut io.work.acts, io.ins[0], io.outs[0]);
        }
        let (out, mut rest) = (&mut io.outs[0], io.weights[1..].iter());
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
        let before = (self.first * w.shape[1]) as u64 * w.row_bytes();
        let w = &GpuWeight { ptr: w.ptr.at(before as usize), shape: [self.heads, w.shape[1], w.shape[2]], ..*w };
        let pairs = if self.heads == 1 { MatrixRows::All } else { MatrixRows::Heads(self.heads) };
        io.product(w, io.ins[0], pairs, out.ptr)?;
        let mut rest = io.weights[1..].iter();
        let scale = self.scale.then(|| rest.next().expect("a scale").ptr);
        let bias = self.bias.then(|| rest.next().expect("a bias").ptr);
        scale_bias(io, out, scale, bias, None)
    }

    fn code_inputs(&self, weights: &[&Weight]) -> &'static [usize] {
        if weights[0].is_coded() { &[0] } else { &[] }
    }

    fn bytes_per_token(&self, weights: &[&Weight]) -> usize {
        let matrices = weights[0].bytes / weights[0].shape[0] * self.heads;
        matrices + weights[1..].iter().map(|w| w.bytes).sum::<usize>()
    }
}

/// The logits of some tokens; the others are minus infinity.
fn logits_of(io: &mut CpuIo<'_>, likely: Likely) {
    let w = io.weights[0];
    let pairs: Vec<(u32, u32)> = (0..io.rows as u32).map(|r| (r, r)).collect();
    io.outs[0].fill(f32::NEG_INFINITY);
    let mut part = std::mem::take(&mut io.work.buffers[0]);
    for ids in likely.ranges() {
        part.resize(io.rows * ids.len(), 0.0);
        let group = Group { w: &w.matrix(0)[ids.start * w.row_bytes()..], pairs: &pairs };
        if !ids.is_empty() {
            let sizes = (ids.len(), w.shape[2]);
            grouped(io.pool, w.format(), sizes, &[group], &mut io.work.acts, io.ins[0], &mut part);
        }
        for (from, to) in part.chunks(ids.len().max(1)).zip(io.outs[0].chunks_exact_mut(w.shape[1])) {
            to[ids.clone()].copy_from_slice(from);
        }
    }
    io.work.buffers[0] = part;
}

/// One matrix times each of several parts of every row.
#[derive(Debug)]
struct OfParts {
    parts: usize,
}

impl Op for OfParts {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let w = io.weights[0];
        let pairs: Vec<(u32, u32)> = (0..(io.rows * self.parts) as u32).map(|r| (r, r)).collect();
        let group = Group { w: w.matrix(0), pairs: &pairs };
        let out = &mut io.outs[0];
        grouped(io.pool, w.format(), (w.shape[1], w.shape[2]), &[group], &mut io.work.acts, io.ins[0], out);
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let x = io.ins[0];
        let parts = GpuValue { rows: x.rows * self.parts, width: x.width / self.parts, ..x };
        io.product(&io.weights[0], parts, MatrixRows::All, io.outs[0].ptr)
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
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn linear(&self, x: Slot, name: &str, n_out: usize) -> Result<Slot> {
        self.stack(x, (name, name), 1, n_out, false)
    }

    /// `q`, `k` and `v` of these widths: from `attn_q`, `attn_k` and `attn_v`, or from `attn_qkv`, where a converter has
    /// put the three below each other.
    ///
    /// # Errors
    /// If the file does not have them in these shapes.
    pub fn qkv(&self, x: Slot, [n_q, n_k, n_v]: [usize; 3]) -> Result<[Slot; 3]> {
        let b = &self.role(Role::Attention);
        if !b.has("attn_qkv.weight") {
            return Ok([b.linear(x, "attn_q", n_q)?, b.linear(x, "attn_k", n_k)?, b.linear(x, "attn_v", n_v)?]);
        }
        let all = b.linear(x, "attn_qkv", n_q + n_k + n_v)?; // (T, q | k | v)
        Ok([b.columns(all, 0, n_q)?, b.columns(all, n_q, n_k)?, b.columns(all, n_q + n_k, n_v)?])
    }

    /// The logits: `output.weight` (n_vocab, width of x), or the embedding where the file ties the two.
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn head(&self, x: Slot) -> Result<Slot> {
        let b = &self.root().role(Role::Head);
        let name = if b.has("output.weight") { "output" } else { "token_embd" };
        b.stack(x, (name, "output"), 1, b.n_vocab()?, true)
    }

    /// The logits of a draft head, in its builder: its own `NAME.weight` where the block has it, else as
    /// [`Builder::head`].
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn head_again(&self, x: Slot, name: &str) -> Result<Slot> {
        if !self.has(&format!("{name}.weight")) {
            return self.head(x);
        }
        self.role(Role::Head).stack(x, (name, name), 1, self.n_vocab()?, true)
    }

    /// Each of `parts` equal parts of `x` times `NAME.weight` (n_out, width of a part): (T, parts * n_out).
    ///
    /// # Errors
    /// If the file does not have it in this shape, or has something to be added to or multiplied with the product.
    pub fn linear_of_parts(&self, x: Slot, name: &str, parts: usize, n_out: usize) -> Result<Slot> {
        let n_in = self.width(x) / parts;
        let w = self.matrix(&format!("{name}.weight"), &[n_out, n_in])?;
        Ok(self.push_named(name, OfParts { parts }, &[x], &[parts * n_out], &[w], &[])[0])
    }

    /// Head `h` of `x` times matrix `h` of `NAME.weight` (heads, n_out, width of a head): (T, heads * n_out).
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn head_linear(&self, x: Slot, name: &str, heads: usize, n_out: usize) -> Result<Slot> {
        let width = self.width(x);
        if !width.is_multiple_of(heads) {
            bail!("{}: tensor {name}.weight: {width} columns cannot be shared by {heads} heads", self.file());
        }
        self.stack(x, (name, name), heads, n_out, false)
    }

    /// A convolution along the sequence of each head of `x`, the oldest tap first: `NAME.weight`
    /// (taps, heads, n_out, width of a head), and `NAME.bias` where the file has it: (T, heads *
    /// n_out). Before the sequence's start x is `start`, or 0.
    ///
    /// # Errors
    /// If the file does not have them in these shapes.
    pub fn head_conv(
        &self,
        x: Slot,
        name: &str,
        (taps, heads): (usize, usize),
        n_out: usize,
        start: Option<WeightId>,
    ) -> Result<Slot> {
        let w = self.matrix(&format!("{name}.weight"), &[taps * heads, n_out, self.width(x) / heads])?;
        let bias = self.opt_vector(&format!("{name}.bias"), &[heads * n_out])?;
        let tap = |i: usize, bias: Option<WeightId>| {
            let back = taps - 1 - i;
            let row = if back == 0 { x } else { self.shift(x, name, back, start) };
            let op = Linear { heads, first: i * heads, bias: bias.is_some(), scale: false, logits: false };
            let weights: Vec<WeightId> = [Some(w), bias].into_iter().flatten().collect();
            self.push_named(name, op, &[row], &[heads * n_out], &weights, &[])[0]
        };
        let first = tap(0, bias);
        Ok((1..taps).fold(first, |sum, i| self.add(sum, tap(i, None))))
    }

    fn stack(&self, x: Slot, (name, label): (&str, &str), heads: usize, n_out: usize, logits: bool) -> Result<Slot> {
        let n_in = self.width(x);
        let w = self.matrix(&format!("{name}.weight"), &[heads, n_out, n_in / heads])?;
        let scale_name = format!("{name}.scale");
        // One number multiplies the output, a vector as wide as the input multiplies that.
        let of_input = n_in > 1 && self.shape(&scale_name) == Some(&[n_in]);
        let (x, scale) = match of_input {
            true => (self.scale_by(x, &scale_name)?, None),
            false => (x, self.opt_vector(&scale_name, &[1])?),
        };
        let bias = self.opt_vector(&format!("{name}.bias"), &[heads * n_out])?;
        let op = Linear { heads, first: 0, bias: bias.is_some(), scale: scale.is_some(), logits };
        let weights: Vec<WeightId> = [Some(w), scale, bias].into_iter().flatten().collect();
        Ok(self.push_named(label, op, &[x], &[heads * n_out], &weights, &[])[0])
    }
}
