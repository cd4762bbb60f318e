//! Starts the kernels of kernels/attend.cu.

use anyhow::Result;
use crate::cuda::{Gpu, Ptr, args::{Arg, CacheArg, Grid}, queue::start, codes::CacheType};

/// The sizes that [`attend`] has kernels for: `mt`, `nv`.
pub const ATTEND: [(usize, usize); 8] = [(1, 2), (1, 4), (1, 8), (1, 16), (2, 8), (2, 16), (4, 2), (4, 4)];

/// Starts `attend_MT_NV` of kernels/attend.cu:
/// ```text
/// The parts of attention. MT: query rows of a block in 16s. NV: columns of values in 32s. Shared
/// memory: see `shared_bytes` in src/ops/attend.rs. Grid: (spans times row_tiles, key heads,
/// splits); 128 threads.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn attend(gpu: Option<&Gpu>, mt: usize, nv: usize, grid: Grid, q: Ptr, keys: CacheArg, values: CacheArg,
        extra: CacheArg, select: Ptr, spans: Ptr, pos: Ptr, parts: Ptr, heads: i32, kv_heads: i32, k_dim: i32,
        v_dim: i32, scale: f32, window: i32, cap: f32, every: i32, n_select: i32, block_size: i32, lists: i32,
        shared_kv: i32, row_tiles: i32, splits: i32, stages: i32) -> Result<()> {
    let args = [Arg::Ptr(q), Arg::Cache(keys), Arg::Cache(values), Arg::Cache(extra), Arg::Ptr(select), Arg::Ptr(spans),
        Arg::Ptr(pos), Arg::Ptr(parts), Arg::Int(heads), Arg::Int(kv_heads), Arg::Int(k_dim), Arg::Int(v_dim),
        Arg::Float(scale), Arg::Int(window), Arg::Float(cap), Arg::Int(every), Arg::Int(n_select), Arg::Int(block_size),
        Arg::Int(lists), Arg::Int(shared_kv), Arg::Int(row_tiles), Arg::Int(splits), Arg::Int(stages)];
    start(gpu, ("attend", &format!("attend_{mt}_{nv}")), grid, &args)
}

/// Starts `attend_join` of kernels/attend.cu:
/// ```text
/// Joins the parts of every token and head, and its sink; a part without keys has the sum 0 and no
/// values. Grid: (heads, tokens).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn attend_join(gpu: Option<&Gpu>, grid: Grid, parts: Ptr, sinks: Ptr, out: Ptr, v_dim: i32,
        splits: i32) -> Result<()> {
    let args = [Arg::Ptr(parts), Arg::Ptr(sinks), Arg::Ptr(out), Arg::Int(v_dim), Arg::Int(splits)];
    start(gpu, ("attend", "attend_join"), grid, &args)
}

/// Starts `store_rows` of kernels/attend.cu:
/// ```text
/// Stores rows of f32 in a cache, at their positions; a negative one leaves its row out. Grid:
/// rows. Blocks of codes become what the CPU makes of them.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn store_rows(gpu: Option<&Gpu>, grid: Grid, x: Ptr, rows: Ptr, seq: Ptr, pos: Ptr, width: i32,
        cache_type: CacheType, capacity: i32, row_bytes: u64, seq_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(rows), Arg::Ptr(seq), Arg::Ptr(pos), Arg::Int(width), Arg::Int(cache_type as i32),
        Arg::Int(capacity), Arg::Long(row_bytes), Arg::Long(seq_bytes)];
    start(gpu, ("attend", "store_rows"), grid, &args)
}
