//! Starts the kernels of kernels/basic.cu.

use anyhow::Result;
use crate::cuda::{Gpu, Ptr, args::{Arg, Grid}, queue::start, codes::GluKind, codes::RopePairs};

/// Starts `rms_norm` of kernels/basic.cu:
/// ```text
/// x / sqrt(mean(x^2) + eps) * scale * weight over runs of `n` values, with mean + eps counted as
/// `least` at least; the weights of `groups` runs follow each other, and begin again. A block per
/// run.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn rms_norm(gpu: Option<&Gpu>, grid: Grid, x: Ptr, weight: Ptr, out: Ptr, n: i32, groups: i32, eps: f32, least: f32,
        scale: f32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(weight), Arg::Ptr(out), Arg::Int(n), Arg::Int(groups), Arg::Float(eps),
        Arg::Float(least), Arg::Float(scale)];
    start(gpu, ("basic", "rms_norm"), grid, &args)
}

/// Starts `layer_norm` of kernels/basic.cu:
/// ```text
/// (x - mean) / sqrt(variance + eps) * weight + bias over runs of `n` values; `weight` and `bias`
/// may be null, and all runs share them. A block per run.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn layer_norm(gpu: Option<&Gpu>, grid: Grid, x: Ptr, weight: Ptr, bias: Ptr, out: Ptr, n: i32,
        eps: f32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(weight), Arg::Ptr(bias), Arg::Ptr(out), Arg::Int(n), Arg::Float(eps)];
    start(gpu, ("basic", "layer_norm"), grid, &args)
}

/// Starts `rotate` of kernels/basic.cu:
/// ```text
/// The Walsh-Hadamard transform of runs of as many values as a block has threads, a power of two
/// from 32 to 512; see src/ops/rotate.rs. `out` may be `x`. A block per run.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn rotate(gpu: Option<&Gpu>, grid: Grid, x: Ptr, out: Ptr, by: f32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(out), Arg::Float(by)];
    start(gpu, ("basic", "rotate"), grid, &args)
}

/// Starts `bring` of kernels/basic.cu:
/// ```text
/// Words between the host's memory and the device's: up to three runs, each along x. Grid: (words /
/// threads, runs).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn bring(gpu: Option<&Gpu>, grid: Grid, from: Ptr, to: Ptr, n: u64, from2: Ptr, to2: Ptr, n2: u64, from3: Ptr,
        to3: Ptr, n3: u64) -> Result<()> {
    let args = [Arg::Ptr(from), Arg::Ptr(to), Arg::Long(n), Arg::Ptr(from2), Arg::Ptr(to2), Arg::Long(n2),
        Arg::Ptr(from3), Arg::Ptr(to3), Arg::Long(n3)];
    start(gpu, ("basic", "bring"), grid, &args)
}

/// Starts `add` of kernels/basic.cu:
/// ```text
/// x + y.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn add(gpu: Option<&Gpu>, grid: Grid, x: Ptr, y: Ptr, out: Ptr, n: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::Ptr(out), Arg::Long(n)];
    start(gpu, ("basic", "add"), grid, &args)
}

/// Starts `scale` of kernels/basic.cu:
/// ```text
/// x times a number.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn scale(gpu: Option<&Gpu>, grid: Grid, x: Ptr, out: Ptr, by: f32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(out), Arg::Float(by), Arg::Long(total)];
    start(gpu, ("basic", "scale"), grid, &args)
}

/// Starts `scale_by` of kernels/basic.cu:
/// ```text
/// x[r][i] * v[i % n / run]: `run` of `n` columns share a value of `v`, and a row of x is a
/// multiple of `n`.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn scale_by(gpu: Option<&Gpu>, grid: Grid, x: Ptr, v: Ptr, out: Ptr, n: i32, run: i32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(v), Arg::Ptr(out), Arg::Int(n), Arg::Int(run), Arg::Long(total)];
    start(gpu, ("basic", "scale_by"), grid, &args)
}

/// Starts `affine` of kernels/basic.cu:
/// ```text
/// (x[r][i] + bias[i]) * by[i] of rows of `n` values.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn affine(gpu: Option<&Gpu>, grid: Grid, x: Ptr, by: Ptr, bias: Ptr, out: Ptr, n: i32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(by), Arg::Ptr(bias), Arg::Ptr(out), Arg::Int(n), Arg::Long(total)];
    start(gpu, ("basic", "affine"), grid, &args)
}

/// Starts `heads_mean` of kernels/basic.cu:
/// ```text
/// Queries and keys averaged with each other; see src/ops/heads_mean.rs. `group` heads of q share a
/// head of k. A thread per value of k.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn heads_mean(gpu: Option<&Gpu>, grid: Grid, q: Ptr, k: Ptr, to_q: Ptr, to_k: Ptr, dim: i32, group: i32,
        total: u64) -> Result<()> {
    let args = [Arg::Ptr(q), Arg::Ptr(k), Arg::Ptr(to_q), Arg::Ptr(to_k), Arg::Int(dim), Arg::Int(group),
        Arg::Long(total)];
    start(gpu, ("basic", "heads_mean"), grid, &args)
}

/// Starts `scale_rows` of kernels/basic.cu:
/// ```text
/// x[r][i] * by[r], in rows of `n`.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn scale_rows(gpu: Option<&Gpu>, grid: Grid, x: Ptr, by: Ptr, out: Ptr, n: i32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(by), Arg::Ptr(out), Arg::Int(n), Arg::Long(total)];
    start(gpu, ("basic", "scale_rows"), grid, &args)
}

/// Starts `soft_cap` of kernels/basic.cu:
/// ```text
/// cap * tanh(x / cap).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn soft_cap(gpu: Option<&Gpu>, grid: Grid, x: Ptr, out: Ptr, cap: f32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(out), Arg::Float(cap), Arg::Long(total)];
    start(gpu, ("basic", "soft_cap"), grid, &args)
}

/// Starts `glu` of kernels/basic.cu:
/// ```text
/// A gate times the other half, as `kind` has it. Row r takes its gates from `g + r * g_stride`,
/// its other half from `u + r * u_stride`, or 1 where there is no u; `run` values of u share a
/// gate. Where `codes` is not null, the result is stored in 8 bits too; `total` is a multiple of 32
/// then.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn glu(gpu: Option<&Gpu>, grid: Grid, g: Ptr, u: Ptr, out: Ptr, codes: Ptr, scales: Ptr, kind: GluKind, limit: f32,
        limit_u: f32, n: i32, run: i32, g_stride: u64, u_stride: u64, total: u64) -> Result<()> {
    let args = [Arg::Ptr(g), Arg::Ptr(u), Arg::Ptr(out), Arg::Ptr(codes), Arg::Ptr(scales), Arg::Int(kind as i32),
        Arg::Float(limit), Arg::Float(limit_u), Arg::Int(n), Arg::Int(run), Arg::Long(g_stride), Arg::Long(u_stride),
        Arg::Long(total)];
    start(gpu, ("basic", "glu"), grid, &args)
}

/// Starts `rope` of kernels/basic.cu:
/// ```text
/// Rotates pairs in every head of `head` values; `angles`: cos, sin of every pair, for every row. A
/// thread per value.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn rope(gpu: Option<&Gpu>, grid: Grid, x: Ptr, angles: Ptr, out: Ptr, width: i32, head: i32, n_rot: i32,
        offset: i32, pairs: RopePairs, inverse: i32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(angles), Arg::Ptr(out), Arg::Int(width), Arg::Int(head), Arg::Int(n_rot),
        Arg::Int(offset), Arg::Int(pairs as i32), Arg::Int(inverse), Arg::Long(total)];
    start(gpu, ("basic", "rope"), grid, &args)
}

/// Starts `pack` of kernels/basic.cu:
/// ```text
/// One part of every head: columns `at..at + len` of `heads` heads of `head` values come from
/// `x[t][h * stride + offset ..]`.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn pack(gpu: Option<&Gpu>, grid: Grid, x: Ptr, out: Ptr, x_width: i32, heads: i32, head: i32, at: i32, stride: i32,
        offset: i32, len: i32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(out), Arg::Int(x_width), Arg::Int(heads), Arg::Int(head), Arg::Int(at),
        Arg::Int(stride), Arg::Int(offset), Arg::Int(len), Arg::Long(total)];
    start(gpu, ("basic", "pack"), grid, &args)
}

/// Starts `take_rows` of kernels/basic.cu:
/// ```text
/// Rows `which[r]` of x.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn take_rows(gpu: Option<&Gpu>, grid: Grid, x: Ptr, which: Ptr, out: Ptr, width: i32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(which), Arg::Ptr(out), Arg::Int(width), Arg::Long(total)];
    start(gpu, ("basic", "take_rows"), grid, &args)
}

/// Starts `scale_bias` of kernels/basic.cu:
/// ```text
/// out = out * scale[m] + bias[m][c] of the row's matrix m: its expert, or 0. Either may be absent;
/// a row without an expert stays as it is.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn scale_bias(gpu: Option<&Gpu>, grid: Grid, out: Ptr, scale: Ptr, bias: Ptr, ids: Ptr, width: i32,
        total: u64) -> Result<()> {
    let args = [Arg::Ptr(out), Arg::Ptr(scale), Arg::Ptr(bias), Arg::Ptr(ids), Arg::Int(width), Arg::Long(total)];
    start(gpu, ("basic", "scale_bias"), grid, &args)
}

/// Starts `quantize` of kernels/basic.cu:
/// ```text
/// Rows of f32 as 8-bit codes with a scale per 32, and the sums of codes. A warp per 32 values.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn quantize(gpu: Option<&Gpu>, grid: Grid, x: Ptr, codes: Ptr, scales: Ptr, groups: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(codes), Arg::Ptr(scales), Arg::Long(groups)];
    start(gpu, ("basic", "quantize"), grid, &args)
}

/// Starts `chain` of kernels/basic.cu:
/// ```text
/// What launches of `pack`, `add` (up to three), `rms_norm`, `rope` and `quantize` do one after the
/// other, each with what the one before gave, as far as they are there; a null pointer is one that
/// is not. All results are stored, since others may read them. A block per run of `n` values in
/// rows of `width`: what is normed together, and a head of the rotation; with codes a multiple of
/// 32. `packed` is made of heads of `head` values, `stride` apart in rows of `x_width` from `from`
/// on, and a head is a multiple of a run.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn chain(gpu: Option<&Gpu>, grid: Grid, x: Ptr, packed: Ptr, x_width: i32, head: i32, stride: i32, from: i32,
        y: Ptr, sum: Ptr, y2: Ptr, sum2: Ptr, y3: Ptr, sum3: Ptr, weight: Ptr, normed: Ptr, groups: i32, eps: f32,
        least: f32, scale: f32, angles: Ptr, out: Ptr, n_rot: i32, offset: i32, pairs: RopePairs, inverse: i32,
        codes: Ptr, scales: Ptr, n: i32, width: i32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(packed), Arg::Int(x_width), Arg::Int(head), Arg::Int(stride), Arg::Int(from),
        Arg::Ptr(y), Arg::Ptr(sum), Arg::Ptr(y2), Arg::Ptr(sum2), Arg::Ptr(y3), Arg::Ptr(sum3), Arg::Ptr(weight),
        Arg::Ptr(normed), Arg::Int(groups), Arg::Float(eps), Arg::Float(least), Arg::Float(scale), Arg::Ptr(angles),
        Arg::Ptr(out), Arg::Int(n_rot), Arg::Int(offset), Arg::Int(pairs as i32), Arg::Int(inverse), Arg::Ptr(codes),
        Arg::Ptr(scales), Arg::Int(n), Arg::Int(width)];
    start(gpu, ("basic", "chain"), grid, &args)
}

/// Starts `argmax_of_part` of kernels/basic.cu:
/// ```text
/// The largest value of part blockIdx.x of row blockIdx.y, of `n` values: out[row][part] = number,
/// value.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn argmax_of_part(gpu: Option<&Gpu>, grid: Grid, x: Ptr, out: Ptr, n: i32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(out), Arg::Int(n)];
    start(gpu, ("basic", "argmax_of_part"), grid, &args)
}

/// Starts `argmax` of kernels/basic.cu:
/// ```text
/// The first of `ARGMAX_PARTS` parts of row blockIdx.x: out[row] = number, value. A warp per row.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn argmax(gpu: Option<&Gpu>, grid: Grid, parts: Ptr, out: Ptr) -> Result<()> {
    let args = [Arg::Ptr(parts), Arg::Ptr(out)];
    start(gpu, ("basic", "argmax"), grid, &args)
}
