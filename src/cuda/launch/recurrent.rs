//! Starts the kernels of kernels/recurrent.cu.

use anyhow::Result;
use crate::cuda::{Gpu, Ptr, args::{Arg, Grid}, queue::start};

/// Starts `conv` of kernels/recurrent.cu:
/// ```text
/// out[t][c] = silu(sum_j w[c][j] x[pos - (taps - 1 - j) step][c] + bias[c]), from the batch's rows
/// and, before them, rows of f32 by position; `bias` may be null, and `silu` 0 for none. With
/// `keep`, where the batch has one row, it is stored by its position too: in the place of one that
/// nothing reads any more. Grid: (columns / 128, rows).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn conv(gpu: Option<&Gpu>, grid: Grid, x: Ptr, past: Ptr, w: Ptr, bias: Ptr, seq: Ptr, pos: Ptr, out: Ptr,
        silu: i32, keep: i32, n: i32, taps: i32, step: i32, capacity: i32, row_bytes: u64,
        seq_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(past), Arg::Ptr(w), Arg::Ptr(bias), Arg::Ptr(seq), Arg::Ptr(pos), Arg::Ptr(out),
        Arg::Int(silu), Arg::Int(keep), Arg::Int(n), Arg::Int(taps), Arg::Int(step), Arg::Int(capacity),
        Arg::Long(row_bytes), Arg::Long(seq_bytes)];
    start(gpu, ("recurrent", "conv"), grid, &args)
}

/// Starts `shift` of kernels/recurrent.cu:
/// ```text
/// out[t][c] = x[pos - back][c], from the batch's rows and, before them, rows of f32 by position;
/// before the sequence's start `before[c]`, or 0 where that is null. Grid: (columns / 128, rows).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn shift(gpu: Option<&Gpu>, grid: Grid, x: Ptr, past: Ptr, before: Ptr, seq: Ptr, pos: Ptr, out: Ptr, n: i32,
        back: i32, capacity: i32, row_bytes: u64, seq_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(past), Arg::Ptr(before), Arg::Ptr(seq), Arg::Ptr(pos), Arg::Ptr(out), Arg::Int(n),
        Arg::Int(back), Arg::Int(capacity), Arg::Long(row_bytes), Arg::Long(seq_bytes)];
    start(gpu, ("recurrent", "shift"), grid, &args)
}

/// The sizes that [`delta`] has kernels for: `n`.
pub const DELTA: [usize; 5] = [16, 32, 64, 128, 256];

/// Starts `delta_N` of kernels/recurrent.cu:
/// ```text
/// The gated delta rule; see src/ops/delta.rs. Four threads hold a row of a head's state (N x N) in
/// registers, four columns of every sixteen each. Rows do not meet, so that a head is shared out
/// among blocks. `bound` is 0 where the decay has none. Grid: (value heads, runs of tokens of one
/// sequence, parts of a head).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn delta(gpu: Option<&Gpu>, n: usize, grid: Grid, q: Ptr, k: Ptr, v: Ptr, beta: Ptr, alpha: Ptr, dt: Ptr, a: Ptr,
        state: Ptr, out: Ptr, first: Ptr, count: Ptr, seq: Ptr, k_heads: i32, v_heads: i32, run: i32, bound: f32,
        sign: f32, blocks: i32, keep: i32) -> Result<()> {
    let args = [Arg::Ptr(q), Arg::Ptr(k), Arg::Ptr(v), Arg::Ptr(beta), Arg::Ptr(alpha), Arg::Ptr(dt), Arg::Ptr(a),
        Arg::Ptr(state), Arg::Ptr(out), Arg::Ptr(first), Arg::Ptr(count), Arg::Ptr(seq), Arg::Int(k_heads),
        Arg::Int(v_heads), Arg::Int(run), Arg::Float(bound), Arg::Float(sign), Arg::Int(blocks), Arg::Int(keep)];
    start(gpu, ("recurrent", &format!("delta_{n}")), grid, &args)
}

/// The sizes that [`delta_channels`] has kernels for: `n`.
pub const DELTA_CHANNELS: [usize; 5] = [16, 32, 64, 128, 256];

/// Starts `delta_channels_N` of kernels/recurrent.cu:
/// ```text
/// The gated delta rule; see src/ops/delta.rs. Four threads hold a row of a head's state (N x N) in
/// registers, four columns of every sixteen each. Rows do not meet, so that a head is shared out
/// among blocks. `bound` is 0 where the decay has none. Grid: (value heads, runs of tokens of one
/// sequence, parts of a head).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn delta_channels(gpu: Option<&Gpu>, n: usize, grid: Grid, q: Ptr, k: Ptr, v: Ptr, beta: Ptr, alpha: Ptr, dt: Ptr,
        a: Ptr, state: Ptr, out: Ptr, first: Ptr, count: Ptr, seq: Ptr, k_heads: i32, v_heads: i32, run: i32,
        bound: f32, sign: f32, blocks: i32, keep: i32) -> Result<()> {
    let args = [Arg::Ptr(q), Arg::Ptr(k), Arg::Ptr(v), Arg::Ptr(beta), Arg::Ptr(alpha), Arg::Ptr(dt), Arg::Ptr(a),
        Arg::Ptr(state), Arg::Ptr(out), Arg::Ptr(first), Arg::Ptr(count), Arg::Ptr(seq), Arg::Int(k_heads),
        Arg::Int(v_heads), Arg::Int(run), Arg::Float(bound), Arg::Float(sign), Arg::Int(blocks), Arg::Int(keep)];
    start(gpu, ("recurrent", &format!("delta_channels_{n}")), grid, &args)
}

/// The sizes that [`scan`] has kernels for: `n`.
pub const SCAN: [usize; 5] = [16, 32, 64, 128, 256];

/// Starts `scan_N` of kernels/recurrent.cu:
/// ```text
/// A scan whose state decays as a whole in each head (Mamba-2; without `dt` lightning attention,
/// where head h forgets at the rate scale base^(h + 1)); see src/ops/scan.rs. Four threads hold a
/// row of a head's state (dim x N) in registers, four columns of every sixteen each. `d` may be
/// null. Grid: (heads, runs of tokens of one sequence, parts of a head).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn scan(gpu: Option<&Gpu>, n: usize, grid: Grid, x: Ptr, b: Ptr, c: Ptr, dt: Ptr, bias: Ptr, a: Ptr, d: Ptr,
        state: Ptr, out: Ptr, first: Ptr, count: Ptr, seq: Ptr, heads: i32, dim: i32, groups: i32, base: f32,
        scale: f32, blocks: i32, keep: i32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(b), Arg::Ptr(c), Arg::Ptr(dt), Arg::Ptr(bias), Arg::Ptr(a), Arg::Ptr(d),
        Arg::Ptr(state), Arg::Ptr(out), Arg::Ptr(first), Arg::Ptr(count), Arg::Ptr(seq), Arg::Int(heads), Arg::Int(dim),
        Arg::Int(groups), Arg::Float(base), Arg::Float(scale), Arg::Int(blocks), Arg::Int(keep)];
    start(gpu, ("recurrent", &format!("scan_{n}")), grid, &args)
}

/// The sizes that [`channel_scan`] has kernels for: `n`.
pub const CHANNEL_SCAN: [usize; 2] = [16, 32];

/// Starts `channel_scan_N` of kernels/recurrent.cu:
/// ```text
/// A scan in which every channel has a step, and every value of its state (N) a rate, of its own
/// (Mamba); see src/ops/scan.rs. A thread holds a channel's state in registers. Grid: (channels /
/// 128, runs of tokens of one sequence).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn channel_scan(gpu: Option<&Gpu>, n: usize, grid: Grid, x: Ptr, b: Ptr, c: Ptr, dt: Ptr, a: Ptr, d: Ptr,
        state: Ptr, out: Ptr, first: Ptr, count: Ptr, seq: Ptr, width: i32, per: i32, keep: i32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(b), Arg::Ptr(c), Arg::Ptr(dt), Arg::Ptr(a), Arg::Ptr(d), Arg::Ptr(state),
        Arg::Ptr(out), Arg::Ptr(first), Arg::Ptr(count), Arg::Ptr(seq), Arg::Int(width), Arg::Int(per), Arg::Int(keep)];
    start(gpu, ("recurrent", &format!("channel_scan_{n}")), grid, &args)
}
