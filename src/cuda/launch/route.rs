//! Starts the kernels of kernels/route.cu.

use anyhow::Result;
use crate::cuda::{Gpu, Ptr, args::{Arg, Grid}, queue::start, codes::RouterGate};

/// Starts `route` of kernels/route.cu:
/// ```text
/// A warp per row: (ids, weights), k each, best first. See src/ops/route.rs. `table`: rows of k
/// experts by token; `which`: the number of each row's token, null where every token has a row. The
/// last `no_expert` of the n classes have the id -1.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn route(gpu: Option<&Gpu>, grid: Grid, logits: Ptr, bias: Ptr, table: Ptr, tokens: Ptr, which: Ptr, ids: Ptr,
        weights: Ptr, n: i32, k: i32, gate: RouterGate, norm: i32, scale: f32, n_groups: i32, groups_used: i32,
        no_expert: i32) -> Result<()> {
    let args = [Arg::Ptr(logits), Arg::Ptr(bias), Arg::Ptr(table), Arg::Ptr(tokens), Arg::Ptr(which), Arg::Ptr(ids),
        Arg::Ptr(weights), Arg::Int(n), Arg::Int(k), Arg::Int(gate as i32), Arg::Int(norm), Arg::Float(scale),
        Arg::Int(n_groups), Arg::Int(groups_used), Arg::Int(no_expert)];
    start(gpu, ("route", "route"), grid, &args)
}

/// Starts `count_pairs` of kernels/route.cu:
/// ```text
/// Counts the pairs of each expert and cuts them into tiles of 128: `first` is where an expert's
/// pairs begin in the order of experts, negative for experts whose slot is; `tiles` has room for
/// pairs / 128 + n of them, the rest get n = 0. One block.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn count_pairs(gpu: Option<&Gpu>, grid: Grid, ids: Ptr, slots: Ptr, first: Ptr, tiles: Ptr, pairs: i32, n: i32,
        n_tiles: i32) -> Result<()> {
    let args = [Arg::Ptr(ids), Arg::Ptr(slots), Arg::Ptr(first), Arg::Ptr(tiles), Arg::Int(pairs), Arg::Int(n),
        Arg::Int(n_tiles)];
    start(gpu, ("route", "count_pairs"), grid, &args)
}

/// Starts `sort_pairs` of kernels/route.cu:
/// ```text
/// `order`: the pairs of expert 0, then of 1, rising, so that sums come out the same from run to
/// run. A block per expert.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn sort_pairs(gpu: Option<&Gpu>, grid: Grid, ids: Ptr, first: Ptr, order: Ptr, pairs: i32) -> Result<()> {
    let args = [Arg::Ptr(ids), Arg::Ptr(first), Arg::Ptr(order), Arg::Int(pairs)];
    start(gpu, ("route", "sort_pairs"), grid, &args)
}

/// Starts `mix_pairs` of kernels/route.cu:
/// ```text
/// out[t] = sum over the token's k pairs of weight (null: 1) times row, leaving out pairs without
/// an expert and those whose slot is negative; added to what is there if `add`.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn mix_pairs(gpu: Option<&Gpu>, grid: Grid, rows: Ptr, ids: Ptr, weights: Ptr, slots: Ptr, out: Ptr, width: i32,
        k: i32, add: i32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(rows), Arg::Ptr(ids), Arg::Ptr(weights), Arg::Ptr(slots), Arg::Ptr(out), Arg::Int(width),
        Arg::Int(k), Arg::Int(add), Arg::Long(total)];
    start(gpu, ("route", "mix_pairs"), grid, &args)
}

/// Starts `even_pairs` of kernels/route.cu:
/// ```text
/// The order and the tiles of pairs that are known: pair p meets matrix p mod heads. A block per
/// tile.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn even_pairs(gpu: Option<&Gpu>, grid: Grid, order: Ptr, tiles: Ptr, pairs: i32, heads: i32,
        n_tiles: i32) -> Result<()> {
    let args = [Arg::Ptr(order), Arg::Ptr(tiles), Arg::Int(pairs), Arg::Int(heads), Arg::Int(n_tiles)];
    start(gpu, ("route", "even_pairs"), grid, &args)
}
