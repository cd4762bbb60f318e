//! One function for every kernel, with the arguments of its prototype. kernels/ptx.sh makes this file (so does
//! kernels/launch.py, without the CUDA compiler) from the kernels' sources, whose hash is
//! 2dc73b05f03d825e37f95185faff656c787ddeaedd51f191ab985c158a01619a.

#![allow(clippy::too_many_arguments)] // the kernels' arguments, in their order

pub use super::codes::*;
use super::{Gpu, Ptr, args::{Arg, CacheArg, Grid, start}};
use anyhow::Result;

/// Starts `rows_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Rows `ids[t]` of a table: out (rows, n). A block per row.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn rows(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, ids: Ptr, out: Ptr, n: i32,
        row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(ids), Arg::Ptr(out), Arg::Int(n), Arg::Long(row_bytes)];
    start(gpu, (format, &format!("rows_{format}")), grid, &args)
}

/// Starts `matvec1_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Few pairs: `lanes` threads (16 to 128, a power of two) for two rows of the matrix and one pair,
/// or for one row and `T` pairs, which share the matrix (only where there are no ids, one head and
/// an activation row for each pair). Grid: (rows / ROWS * lanes / threads, pairs / T); 128 threads.
/// A lane that has two rows has the weights of both on their way at once, and brings the
/// activations once for both. Rejected: two rows with four pairs, too (registers of Q4_K, Q5_K,
/// Q6_K, IQ2_S and IQ3_S spill, and the PTX grows by 500 KB, for up to a tenth fewer instructions).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn matvec1(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, x: Ptr, scales: Ptr, ids: Ptr, slots: Ptr,
        out: Ptr, n_in: i32, n_out: i32, pairs: i32, share: i32, heads: i32, lanes: i32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(x), Arg::Ptr(scales), Arg::Ptr(ids), Arg::Ptr(slots), Arg::Ptr(out),
        Arg::Int(n_in), Arg::Int(n_out), Arg::Int(pairs), Arg::Int(share), Arg::Int(heads), Arg::Int(lanes),
        Arg::Long(row_bytes)];
    start(gpu, (format, &format!("matvec1_{format}")), grid, &args)
}

/// Starts `matvec4_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Few pairs: `lanes` threads (16 to 128, a power of two) for two rows of the matrix and one pair,
/// or for one row and `T` pairs, which share the matrix (only where there are no ids, one head and
/// an activation row for each pair). Grid: (rows / ROWS * lanes / threads, pairs / T); 128 threads.
/// A lane that has two rows has the weights of both on their way at once, and brings the
/// activations once for both. Rejected: two rows with four pairs, too (registers of Q4_K, Q5_K,
/// Q6_K, IQ2_S and IQ3_S spill, and the PTX grows by 500 KB, for up to a tenth fewer instructions).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn matvec4(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, x: Ptr, scales: Ptr, ids: Ptr, slots: Ptr,
        out: Ptr, n_in: i32, n_out: i32, pairs: i32, share: i32, heads: i32, lanes: i32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(x), Arg::Ptr(scales), Arg::Ptr(ids), Arg::Ptr(slots), Arg::Ptr(out),
        Arg::Int(n_in), Arg::Int(n_out), Arg::Int(pairs), Arg::Int(share), Arg::Int(heads), Arg::Int(lanes),
        Arg::Long(row_bytes)];
    start(gpu, (format, &format!("matvec4_{format}")), grid, &args)
}

/// Starts `matmul_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Many pairs: 128 rows of a matrix times up to 128 pairs, 64 columns at a time: codes in shared
/// memory, products by tensor cores, sums in f32. Grid: (rows / 128, tiles); 256 threads. Of eight
/// warps each has 32 rows and every second strip of 16 pairs; strips beyond a tile's end are left
/// out, so that a tile of few pairs costs little more than its decoding, and no kernel for smaller
/// tiles is needed.  Sums of 32 products are below 2^20, so that their bits on top of those of 1.5
/// * 2^23 are a float as they are: no conversion. A scale is an f16 times at most 8 bits: 1.5 *
/// 2^23 times it is exact, and one fused operation gives scale times sum, rounded once.  At most
/// 128 registers and 48 KB of shared memory: two blocks on a multiprocessor of sm_86, of which one
/// multiplies while the other waits for its weights; one on sm_75, and of formats whose groups have
/// two scales and two minimums (Q2_K), which would spill on sm_120. So numbers of rows and places
/// are read again rather than kept where formats have many.  Rejected: a second kernel for tiles of
/// 64 x 64 (PTX of 25 KB more for each format and tier); weights kept in registers while the tile
/// before them is multiplied (12 registers, which spill).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn matmul(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, x: Ptr, scales: Ptr, tiles: Ptr, order: Ptr,
        out: Ptr, n_in: i32, n_out: i32, share: i32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(x), Arg::Ptr(scales), Arg::Ptr(tiles), Arg::Ptr(order), Arg::Ptr(out),
        Arg::Int(n_in), Arg::Int(n_out), Arg::Int(share), Arg::Long(row_bytes)];
    start(gpu, (format, &format!("matmul_{format}")), grid, &args)
}

/// Starts `matvec1_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Few pairs of a format of floats, on activations as they are: a block per row, since such
/// matrices have few rows (routers, mixes), or else long ones. Grid: (rows, pairs / T); up to 512
/// threads.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn matvec1_floats(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, x: Ptr, ids: Ptr, slots: Ptr,
        out: Ptr, n_in: i32, n_out: i32, pairs: i32, share: i32, heads: i32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(x), Arg::Ptr(ids), Arg::Ptr(slots), Arg::Ptr(out), Arg::Int(n_in),
        Arg::Int(n_out), Arg::Int(pairs), Arg::Int(share), Arg::Int(heads), Arg::Long(row_bytes)];
    start(gpu, (format, &format!("matvec1_{format}")), grid, &args)
}

/// Starts `matvec4_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Few pairs of a format of floats, on activations as they are: a block per row, since such
/// matrices have few rows (routers, mixes), or else long ones. Grid: (rows, pairs / T); up to 512
/// threads.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn matvec4_floats(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, x: Ptr, ids: Ptr, slots: Ptr,
        out: Ptr, n_in: i32, n_out: i32, pairs: i32, share: i32, heads: i32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(x), Arg::Ptr(ids), Arg::Ptr(slots), Arg::Ptr(out), Arg::Int(n_in),
        Arg::Int(n_out), Arg::Int(pairs), Arg::Int(share), Arg::Int(heads), Arg::Long(row_bytes)];
    start(gpu, (format, &format!("matvec4_{format}")), grid, &args)
}

/// Starts `matmul_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Many pairs of a format of floats: f32, 32 columns at a time. A thread sums 8 rows times 8 pairs;
/// warps without pairs only bring values. Grid: (rows / 128, tiles); 256 threads.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn matmul_floats(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, x: Ptr, tiles: Ptr, order: Ptr,
        out: Ptr, n_in: i32, n_out: i32, share: i32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(x), Arg::Ptr(tiles), Arg::Ptr(order), Arg::Ptr(out), Arg::Int(n_in),
        Arg::Int(n_out), Arg::Int(share), Arg::Long(row_bytes)];
    start(gpu, (format, &format!("matmul_{format}")), grid, &args)
}

/// Starts `split_FORMAT` of kernels/matrix.cuh:
/// ```text
/// A row of activations as two values of 16 bits that add up to each, for tensor cores: (rows, 2,
/// wide), zeros from `n` on; `by`: what products with it are multiplied with. For F16 rows are
/// scaled by a power of two, so that the largest value is between 2^13 and 2^14: none overflows,
/// and what is lost of small ones is 2^-39 of the largest. A block per row.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn split(gpu: Option<&Gpu>, format: &'static str, grid: Grid, x: Ptr, halves: Ptr, by: Ptr, n: i32,
        wide: i32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(halves), Arg::Ptr(by), Arg::Int(n), Arg::Int(wide)];
    start(gpu, (format, &format!("split_{format}")), grid, &args)
}

/// Starts `matmul16_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Many pairs of a format of 16 bits, 32 columns at a time, on activations that `split_body` made
/// two values of: two products by tensor cores for each, with the precision of f32 (one of
/// activations that are rounded to 16 bits would be off by more than all else in a model).
/// Otherwise as `matmul_body`: the same tiles, warps, strips and places in shared memory.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn matmul16(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, halves: Ptr, by: Ptr, tiles: Ptr,
        order: Ptr, out: Ptr, n_in: i32, n_out: i32, share: i32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(halves), Arg::Ptr(by), Arg::Ptr(tiles), Arg::Ptr(order), Arg::Ptr(out),
        Arg::Int(n_in), Arg::Int(n_out), Arg::Int(share), Arg::Long(row_bytes)];
    start(gpu, (format, &format!("matmul16_{format}")), grid, &args)
}

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
/// Words from the host's memory.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn bring(gpu: Option<&Gpu>, grid: Grid, from: Ptr, to: Ptr, n: u64) -> Result<()> {
    let args = [Arg::Ptr(from), Arg::Ptr(to), Arg::Long(n)];
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
/// gate.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn glu(gpu: Option<&Gpu>, grid: Grid, g: Ptr, u: Ptr, out: Ptr, kind: GluKind, limit: f32, limit_u: f32, n: i32,
        run: i32, g_stride: u64, u_stride: u64, total: u64) -> Result<()> {
    let args = [Arg::Ptr(g), Arg::Ptr(u), Arg::Ptr(out), Arg::Int(kind as i32), Arg::Float(limit), Arg::Float(limit_u),
        Arg::Int(n), Arg::Int(run), Arg::Long(g_stride), Arg::Long(u_stride), Arg::Long(total)];
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

/// Starts `conv` of kernels/recurrent.cu:
/// ```text
/// out[t][c] = silu(sum_j w[c][j] x[pos - (taps - 1 - j) step][c] + bias[c]), from the batch's rows
/// and, before them, rows of f32 by position; `bias` may be null, and `silu` 0 for none. Grid:
/// (columns / 128, rows).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn conv(gpu: Option<&Gpu>, grid: Grid, x: Ptr, past: Ptr, w: Ptr, bias: Ptr, seq: Ptr, pos: Ptr, out: Ptr,
        silu: i32, n: i32, taps: i32, step: i32, capacity: i32, row_bytes: u64, seq_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(past), Arg::Ptr(w), Arg::Ptr(bias), Arg::Ptr(seq), Arg::Ptr(pos), Arg::Ptr(out),
        Arg::Int(silu), Arg::Int(n), Arg::Int(taps), Arg::Int(step), Arg::Int(capacity), Arg::Long(row_bytes),
        Arg::Long(seq_bytes)];
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
        sign: f32) -> Result<()> {
    let args = [Arg::Ptr(q), Arg::Ptr(k), Arg::Ptr(v), Arg::Ptr(beta), Arg::Ptr(alpha), Arg::Ptr(dt), Arg::Ptr(a),
        Arg::Ptr(state), Arg::Ptr(out), Arg::Ptr(first), Arg::Ptr(count), Arg::Ptr(seq), Arg::Int(k_heads),
        Arg::Int(v_heads), Arg::Int(run), Arg::Float(bound), Arg::Float(sign)];
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
        bound: f32, sign: f32) -> Result<()> {
    let args = [Arg::Ptr(q), Arg::Ptr(k), Arg::Ptr(v), Arg::Ptr(beta), Arg::Ptr(alpha), Arg::Ptr(dt), Arg::Ptr(a),
        Arg::Ptr(state), Arg::Ptr(out), Arg::Ptr(first), Arg::Ptr(count), Arg::Ptr(seq), Arg::Int(k_heads),
        Arg::Int(v_heads), Arg::Int(run), Arg::Float(bound), Arg::Float(sign)];
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
        scale: f32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(b), Arg::Ptr(c), Arg::Ptr(dt), Arg::Ptr(bias), Arg::Ptr(a), Arg::Ptr(d),
        Arg::Ptr(state), Arg::Ptr(out), Arg::Ptr(first), Arg::Ptr(count), Arg::Ptr(seq), Arg::Int(heads), Arg::Int(dim),
        Arg::Int(groups), Arg::Float(base), Arg::Float(scale)];
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
        state: Ptr, out: Ptr, first: Ptr, count: Ptr, seq: Ptr, channels: i32) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(b), Arg::Ptr(c), Arg::Ptr(dt), Arg::Ptr(a), Arg::Ptr(d), Arg::Ptr(state),
        Arg::Ptr(out), Arg::Ptr(first), Arg::Ptr(count), Arg::Ptr(seq), Arg::Int(channels)];
    start(gpu, ("recurrent", &format!("channel_scan_{n}")), grid, &args)
}

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

/// Starts `hyper_pre` of kernels/streams.cu:
/// ```text
/// What a block reads from the streams, and how it writes back; see src/ops/hyper.rs. A block per
/// token; `back` is null at the head of the model. Without `mixed` it is a weight for each stream
/// and no matrix.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn hyper_pre(gpu: Option<&Gpu>, grid: Grid, streams: Ptr, mixes: Ptr, scale: Ptr, base: Ptr, out: Ptr, back: Ptr,
        n: i32, width: i32, mixed: i32, rounds: i32, magnitude: f32, eps: f32, post_eps: f32) -> Result<()> {
    let args = [Arg::Ptr(streams), Arg::Ptr(mixes), Arg::Ptr(scale), Arg::Ptr(base), Arg::Ptr(out), Arg::Ptr(back),
        Arg::Int(n), Arg::Int(width), Arg::Int(mixed), Arg::Int(rounds), Arg::Float(magnitude), Arg::Float(eps),
        Arg::Float(post_eps)];
    start(gpu, ("streams", "hyper_pre"), grid, &args)
}

/// Starts `hyper_post` of kernels/streams.cu:
/// ```text
/// The streams after a block gave `x`; without `mixed` each keeps what it has. A thread per value.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn hyper_post(gpu: Option<&Gpu>, grid: Grid, x: Ptr, streams: Ptr, back: Ptr, out: Ptr, n: i32, width: i32,
        mixed: i32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(streams), Arg::Ptr(back), Arg::Ptr(out), Arg::Int(n), Arg::Int(width),
        Arg::Int(mixed), Arg::Long(total)];
    start(gpu, ("streams", "hyper_post"), grid, &args)
}

/// Starts `silu_of` of kernels/streams.cu:
/// ```text
/// silu(by * x).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn silu_of(gpu: Option<&Gpu>, grid: Grid, x: Ptr, out: Ptr, by: f32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(out), Arg::Float(by), Arg::Long(total)];
    start(gpu, ("streams", "silu_of"), grid, &args)
}

/// Starts `twice_sigmoid` of kernels/streams.cu:
/// ```text
/// 2 sigmoid(by * x).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn twice_sigmoid(gpu: Option<&Gpu>, grid: Grid, x: Ptr, out: Ptr, by: f32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(out), Arg::Float(by), Arg::Long(total)];
    start(gpu, ("streams", "twice_sigmoid"), grid, &args)
}

/// Starts `gated_mean` of kernels/streams.cu:
/// ```text
/// The mean over a row's `n` streams of values times the sigmoids of their gates, or without gates
/// of the values. A thread per value of the result.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn gated_mean(gpu: Option<&Gpu>, grid: Grid, x: Ptr, gate: Ptr, out: Ptr, n: i32, width: i32,
        total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(gate), Arg::Ptr(out), Arg::Int(n), Arg::Int(width), Arg::Long(total)];
    start(gpu, ("streams", "gated_mean"), grid, &args)
}

/// Starts `stream_gate` of kernels/streams.cu:
/// ```text
/// A value times a gate for each stream, made of a key and the stream, and that normed; see
/// src/ops/ngram.rs. A block per row and stream.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn stream_gate(gpu: Option<&Gpu>, grid: Grid, key: Ptr, value: Ptr, streams: Ptr, norm_key: Ptr, norm_query: Ptr,
        norm_out: Ptr, gated: Ptr, normed: Ptr, n: i32, width: i32, eps: f32) -> Result<()> {
    let args = [Arg::Ptr(key), Arg::Ptr(value), Arg::Ptr(streams), Arg::Ptr(norm_key), Arg::Ptr(norm_query),
        Arg::Ptr(norm_out), Arg::Ptr(gated), Arg::Ptr(normed), Arg::Int(n), Arg::Int(width), Arg::Float(eps)];
    start(gpu, ("streams", "stream_gate"), grid, &args)
}

/// Starts `add_place` of kernels/streams.cu:
/// ```text
/// Scores with their place's offset: `out[t] = score[t] + ape[pos[t] mod ratio]`.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn add_place(gpu: Option<&Gpu>, grid: Grid, score: Ptr, ape: Ptr, pos: Ptr, out: Ptr, width: i32, ratio: i32,
        total: u64) -> Result<()> {
    let args = [Arg::Ptr(score), Arg::Ptr(ape), Arg::Ptr(pos), Arg::Ptr(out), Arg::Int(width), Arg::Int(ratio),
        Arg::Long(total)];
    start(gpu, ("streams", "add_place"), grid, &args)
}

/// Starts `compress` of kernels/streams.cu:
/// ```text
/// The row of every token that completes a block of `ratio`; others are left. See
/// src/ops/compress.rs: a softmax over the block's tokens (and with `overlap` the block's before)
/// in each column, or without `scores` the mean; a norm where there is a weight of one, rotation;
/// stored as f32 in `rows`, from where `store_rows` takes them. A block of threads per token.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn compress(gpu: Option<&Gpu>, grid: Grid, kvs: Ptr, scores: Ptr, norm: Ptr, angles: Ptr, seq: Ptr, pos: Ptr,
        rows: Ptr, dim: i32, ratio: i32, overlap: i32, eps: f32, n_rot: i32, offset: i32, pairs: RopePairs,
        inverse: i32, capacity: i32, row_bytes: u64, seq_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(kvs), Arg::Ptr(scores), Arg::Ptr(norm), Arg::Ptr(angles), Arg::Ptr(seq), Arg::Ptr(pos),
        Arg::Ptr(rows), Arg::Int(dim), Arg::Int(ratio), Arg::Int(overlap), Arg::Float(eps), Arg::Int(n_rot),
        Arg::Int(offset), Arg::Int(pairs as i32), Arg::Int(inverse), Arg::Int(capacity), Arg::Long(row_bytes),
        Arg::Long(seq_bytes)];
    start(gpu, ("streams", "compress"), grid, &args)
}

/// Starts `block_scores` of kernels/streams.cu:
/// ```text
/// score[t][h][b] = the largest q . key over the rows of block b that token t sees, for each head;
/// the newest `local` blocks come before all. A warp per block of rows. Grid: (most blocks / 4,
/// tokens, heads).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn block_scores(gpu: Option<&Gpu>, grid: Grid, q: Ptr, keys: Ptr, seq: Ptr, pos: Ptr, scores: Ptr, dim: i32,
        size: i32, local: i32, cache_type: CacheType, most: i32, capacity: i32, row_bytes: u64,
        seq_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(q), Arg::Ptr(keys), Arg::Ptr(seq), Arg::Ptr(pos), Arg::Ptr(scores), Arg::Int(dim),
        Arg::Int(size), Arg::Int(local), Arg::Int(cache_type as i32), Arg::Int(most), Arg::Int(capacity),
        Arg::Long(row_bytes), Arg::Long(seq_bytes)];
    start(gpu, ("streams", "block_scores"), grid, &args)
}

/// Starts `index_scores` of kernels/streams.cu:
/// ```text
/// score[t][r] = sum over heads of weight times max(q . key r, 0), for the rows that token t sees;
/// without weights all are 1. Tensor cores, on queries (and keys that are not f16) as the sums of
/// two f16 each, scaled by a power of two: as exact as f32, since a choice of rows hangs on the
/// last bits. A block has 64 rows, each of its four warps 16 heads at a time; at most 128 columns.
/// Grid: (most rows / 64, tokens).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn index_scores(gpu: Option<&Gpu>, grid: Grid, q: Ptr, weights: Ptr, keys: Ptr, seq: Ptr, pos: Ptr, scores: Ptr,
        heads: i32, dim: i32, every: i32, cache_type: CacheType, most: i32, capacity: i32, row_bytes: u64,
        seq_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(q), Arg::Ptr(weights), Arg::Ptr(keys), Arg::Ptr(seq), Arg::Ptr(pos), Arg::Ptr(scores),
        Arg::Int(heads), Arg::Int(dim), Arg::Int(every), Arg::Int(cache_type as i32), Arg::Int(most),
        Arg::Int(capacity), Arg::Long(row_bytes), Arg::Long(seq_bytes)];
    start(gpu, ("streams", "index_scores"), grid, &args)
}

/// Starts `index_top` of kernels/streams.cu:
/// ```text
/// The `k` best rows of each of a token's `lists`, rising, then -1; the lower of equals. Of rows of
/// `every` tokens those count that are complete, or with `begun` those that are begun; `open` adds
/// the one that is not complete. A block of 256 per list: the k-th largest is found eight bits at a
/// time.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn index_top(gpu: Option<&Gpu>, grid: Grid, scores: Ptr, pos: Ptr, out: Ptr, k: i32, every: i32, most: i32,
        lists: i32, begun: i32, open: i32) -> Result<()> {
    let args = [Arg::Ptr(scores), Arg::Ptr(pos), Arg::Ptr(out), Arg::Int(k), Arg::Int(every), Arg::Int(most),
        Arg::Int(lists), Arg::Int(begun), Arg::Int(open)];
    start(gpu, ("streams", "index_top"), grid, &args)
}

/// Starts `mix_sources` of kernels/streams.cu:
/// ```text
/// Attention of a row's sources to one another: out = sum_i softmax_i(weight . rms_norm(x_i)) x_i,
/// where the sources x_i are the `parts` rows of `n` values that `stack` has for the row, and then
/// `last`. A block per row.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn mix_sources(gpu: Option<&Gpu>, grid: Grid, stack: Ptr, last: Ptr, weight: Ptr, out: Ptr, parts: i32, n: i32,
        eps: f32) -> Result<()> {
    let args = [Arg::Ptr(stack), Arg::Ptr(last), Arg::Ptr(weight), Arg::Ptr(out), Arg::Int(parts), Arg::Int(n),
        Arg::Float(eps)];
    start(gpu, ("streams", "mix_sources"), grid, &args)
}
