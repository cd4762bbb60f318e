//! norm: `x / sqrt(mean(x^2) + eps) * weight`, over the whole row or over each head of it; and the
//! older LayerNorm, which takes the mean away first and may add a bias: `(x - mean(x)) /
//! sqrt(var(x) + eps) * weight + bias`. Some models bound the length of a head from below instead
//! of adding eps: `x / max(sqrt(mean(x^2)), floor)`.
//!
//! The sum of squares is kept in f64: it costs nothing next to the memory traffic and makes the result independent of
//! the order of summation.

use anyhow::{Result, bail};

use super::linear::scale_bias;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, GpuValue, Op, Slot, WeightId};

#[derive(Debug)]
struct Norm {
    /// Values normalised together.
    head: usize,
    /// Heads after which the weight, if any, begins again.
    groups: usize,
    eps: f32,
    /// The least that the mean of squares counts as.
    least: f32,
    /// Multiplies the result: 1, or 1/sqrt(head) to make it an L2 norm.
    scale: f32,
}

/// Normalises one head in place of the output.
pub(super) fn rms(x: &[f32], weight: Option<&[f32]>, eps: f32, scale: f32, out: &mut [f32]) {
    bounded_rms(x, weight, (eps, 0.0), scale, out);
}

fn bounded_rms(x: &[f32], weight: Option<&[f32]>, (eps, least): (f32, f32), scale: f32, out: &mut [f32]) {
    let sum: f64 = x.iter().map(|&v| v as f64 * v as f64).sum();
    let mean = (sum / x.len() as f64) as f32 + eps;
    let inv = scale / if mean < least { least } else { mean }.sqrt(); // max would hide a NaN
    match weight {
        Some(w) => out.iter_mut().zip(x).zip(w).for_each(|((o, x), w)| *o = x * inv * w),
        None => out.iter_mut().zip(x).for_each(|(o, x)| *o = x * inv),
    }
}

/// Norms every `head` values in device memory.
pub(super) fn norm(
    io: &GpuIo<'_>,
    x: GpuValue,
    (weight, groups): (Option<Ptr>, usize),
    head: usize,
    (eps, scale): (f32, f32),
    out: Ptr,
) -> Result<()> {
    bounded_norm(io, x, (weight, groups), head, (eps, 0.0, scale), out)
}

fn bounded_norm(
    io: &GpuIo<'_>,
    x: GpuValue,
    (weight, groups): (Option<Ptr>, usize),
    head: usize,
    (eps, least, scale): (f32, f32, f32),
    out: Ptr,
) -> Result<()> {
    let grid = Grid::new([x.rows * x.width / head, 1, 1], head.next_multiple_of(32).min(1024));
    launch::rms_norm(io.gpu, grid, x.ptr, weight.unwrap_or_default(), out, int(head), int(groups), eps, least, scale)
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let weight = io.weights.first().map(|w| w.values);
        let bias = io.weights.get(1).map(|w| w.values);
        let x = io.ins[0];
        io.pool.pieces(io.outs[0], self.head, x.len() * 8, |i, out| {
            let weight = weight.map(|w| &w[i % self.groups * self.head..][..self.head]);
            let x = &x[i * self.head..(i + 1) * self.head];
            bounded_rms(x, weight, (self.eps, self.least), self.scale, out);
            if let Some(bias) = bias {
                out.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
            }
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let weight = io.weights.first().map(|w| w.ptr);
        let bounds = (self.eps, self.least, self.scale);
        bounded_norm(io, io.ins[0], (weight, self.groups), self.head, bounds, io.outs[0].ptr)?;
        // A bias is as wide as the row: the builder gives none to heads.
        scale_bias(io, io.outs[0], None, io.weights.get(1).map(|w| w.ptr), None)
    }
}

/// LayerNorm.
#[derive(Debug)]
struct LayerNorm {
    eps: f32,
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (weight, bias) = (io.weights[0].values, io.weights.get(1).map(|w| w.values));
        let (x, n) = (io.ins[0], weight.len());
        io.pool.pieces(io.outs[0], n, x.len() * 12, |i, out| {
            let x = &x[i * n..(i + 1) * n];
            let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n as f64;
            let var = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n as f64;
            let (mean, inv) = (mean as f32, 1.0 / (var as f32 + self.eps).sqrt());
            out.iter_mut().zip(x).zip(weight).for_each(|((o, x), w)| *o = (x - mean) * inv * w);
            if let Some(bias) = bias {
                out.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
            }
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, weight) = (io.ins[0], io.weights[0].ptr);
        let bias = io.weights.get(1).map_or(Ptr::default(), |w| w.ptr);
        let grid = Grid::new([x.rows, 1, 1], x.width.next_multiple_of(32).min(1024));
        launch::layer_norm(io.gpu, grid, x.ptr, weight, bias, io.outs[0].ptr, int(x.width), self.eps)
    }
}

impl Builder<'_> {
    /// LayerNorm of the whole row with `NAME.weight`, and `NAME.bias` where the file has it.
    ///
    /// # Errors
    /// If the file does not have them in this shape.
    pub fn layer_norm(&self, x: Slot, name: &str, eps: f32) -> Result<Slot> {
        let n = [self.width(x)];
        let weight = self.vector(&format!("{name}.weight"), &n)?;
        let bias = self.opt_vector(&format!("{name}.bias"), &n)?;
        let weights: Vec<WeightId> = [Some(weight), bias].into_iter().flatten().collect();
        Ok(self.push_named(name, LayerNorm { eps }, &[x], &[n[0]], &weights, &[])[0])
    }

    /// RMS norm of the whole row with `NAME.weight`, and `NAME.bias` where the file has it.
    ///
    /// # Errors
    /// If the file does not have them in this shape.
    pub fn norm(&self, x: Slot, name: &str, eps: f32) -> Result<Slot> {
        let n = self.width(x);
        let weight = self.vector(&format!("{name}.weight"), &[n])?;
        let bias = self.opt_vector(&format!("{name}.bias"), &[n])?;
        let weights: Vec<WeightId> = [Some(weight), bias].into_iter().flatten().collect();
        Ok(self.push_named(name, Norm { head: n, groups: 1, eps, least: 0.0, scale: 1.0 }, &[x], &[n], &weights, &[])
            [0])
    }

    /// RMS norm of every `head` values with `NAME.weight` (head).
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn head_norm(&self, x: Slot, name: &str, head: usize, eps: f32) -> Result<Slot> {
        let w = self.vector(&format!("{name}.weight"), &[head])?;
        let op = Norm { head, groups: 1, eps, least: 0.0, scale: 1.0 };
        Ok(self.push_named(name, op, &[x], &[self.width(x)], &[w], &[])[0])
    }

    /// RMS norm of each of `groups` equal parts of the row, with `NAME.weight` as wide as the row.
    ///
    /// # Errors
    /// If the file does not have it in this shape, or the row does not divide into this many parts.
    pub fn group_norm(&self, x: Slot, name: &str, groups: usize, eps: f32) -> Result<Slot> {
        let n = self.width(x);
        if !n.is_multiple_of(groups) {
            bail!("{}: tensor {name}.weight: {n} columns cannot be shared by {groups} groups", self.file());
        }
        let w = self.vector(&format!("{name}.weight"), &[groups, n / groups])?;
        let op = Norm { head: n / groups, groups, eps, least: 0.0, scale: 1.0 };
        Ok(self.push_named(name, op, &[x], &[n], &[w], &[])[0])
    }

    /// RMS norm of every `head` values, without a weight.
    pub fn bare_norm(&self, x: Slot, head: usize, eps: f32) -> Slot {
        self.push(Norm { head, groups: 1, eps, least: 0.0, scale: 1.0 }, &[x], &[self.width(x)], &[])[0]
    }

    /// Every `head` values brought to the length sqrt(head): `x * sqrt(head) / max(length of x, floor)`.
    pub fn unit_norm(&self, x: Slot, head: usize, floor: f32) -> Slot {
        let op = Norm { head, groups: 1, eps: 0.0, least: floor * floor / head as f32, scale: 1.0 };
        self.push(op, &[x], &[self.width(x)], &[])[0]
    }

    /// L2 norm of every `head` values: `x / sqrt(sum(x^2) + eps)`.
    pub fn l2_norm(&self, x: Slot, head: usize, eps: f32) -> Slot {
        let n = head as f32;
        let op = Norm { head, groups: 1, eps: eps / n, least: 0.0, scale: 1.0 / n.sqrt() };
        self.push(op, &[x], &[self.width(x)], &[])[0]
    }
}
