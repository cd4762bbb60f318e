//! Starts the kernels of kernels/matrix.cuh.

use anyhow::Result;
use crate::cuda::{Gpu, Ptr, args::{Arg, Grid}, queue::start};

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
/// an activation row for each pair). Grid: (rows / ROWS * lanes / threads, pairs / T, 1); 128
/// threads. For one pair it may be two deep: the second time for `w2`, as many matrices of `n_out2`
/// rows as long, and `out2`; blocks beyond the rows of one of them have nothing to do.  A lane that
/// has two rows has the weights of both on their way at once, and brings the activations once for
/// both. Rejected: two rows with four pairs, too (registers of Q4_K, Q5_K, Q6_K, IQ2_S and IQ3_S
/// spill, and the PTX grows by 500 KB, for up to a tenth fewer instructions).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn matvec1(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, w2: Ptr, x: Ptr, scales: Ptr, ids: Ptr,
        slots: Ptr, out: Ptr, out2: Ptr, n_in: i32, n_out: i32, n_out2: i32, pairs: i32, share: i32, heads: i32,
        lanes: i32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(w2), Arg::Ptr(x), Arg::Ptr(scales), Arg::Ptr(ids), Arg::Ptr(slots), Arg::Ptr(out),
        Arg::Ptr(out2), Arg::Int(n_in), Arg::Int(n_out), Arg::Int(n_out2), Arg::Int(pairs), Arg::Int(share),
        Arg::Int(heads), Arg::Int(lanes), Arg::Long(row_bytes)];
    start(gpu, (format, &format!("matvec1_{format}")), grid, &args)
}

/// Starts `matvec4_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Few pairs: `lanes` threads (16 to 128, a power of two) for two rows of the matrix and one pair,
/// or for one row and `T` pairs, which share the matrix (only where there are no ids, one head and
/// an activation row for each pair). Grid: (rows / ROWS * lanes / threads, pairs / T, 1); 128
/// threads. For one pair it may be two deep: the second time for `w2`, as many matrices of `n_out2`
/// rows as long, and `out2`; blocks beyond the rows of one of them have nothing to do.  A lane that
/// has two rows has the weights of both on their way at once, and brings the activations once for
/// both. Rejected: two rows with four pairs, too (registers of Q4_K, Q5_K, Q6_K, IQ2_S and IQ3_S
/// spill, and the PTX grows by 500 KB, for up to a tenth fewer instructions).
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
/// matrices have few rows (routers, mixes), or else long ones. Grid: (rows, pairs / T, 1), for one
/// pair up to two deep as in `matvec_body`; up to 512 threads.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn matvec1_floats(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, w2: Ptr, x: Ptr, ids: Ptr,
        slots: Ptr, out: Ptr, out2: Ptr, n_in: i32, n_out: i32, n_out2: i32, pairs: i32, share: i32, heads: i32,
        row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(w2), Arg::Ptr(x), Arg::Ptr(ids), Arg::Ptr(slots), Arg::Ptr(out), Arg::Ptr(out2),
        Arg::Int(n_in), Arg::Int(n_out), Arg::Int(n_out2), Arg::Int(pairs), Arg::Int(share), Arg::Int(heads),
        Arg::Long(row_bytes)];
    start(gpu, (format, &format!("matvec1_{format}")), grid, &args)
}

/// Starts `normed1_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Rows of activations, T to a block, that are normed first, without a weight: x / sqrt(mean(x^2) +
/// eps). Every block sums the squares too, so that the normed rows need not exist; large blocks,
/// since few rows of a matrix (mixes of streams) are long. Out: (rows, n_out). Grid: (n_out, rows /
/// T).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn normed1_floats(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, x: Ptr, out: Ptr, n_in: i32,
        n_out: i32, rows: i32, eps: f32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(x), Arg::Ptr(out), Arg::Int(n_in), Arg::Int(n_out), Arg::Int(rows),
        Arg::Float(eps), Arg::Long(row_bytes)];
    start(gpu, (format, &format!("normed1_{format}")), grid, &args)
}

/// Starts `normed4_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Rows of activations, T to a block, that are normed first, without a weight: x / sqrt(mean(x^2) +
/// eps). Every block sums the squares too, so that the normed rows need not exist; large blocks,
/// since few rows of a matrix (mixes of streams) are long. Out: (rows, n_out). Grid: (n_out, rows /
/// T).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn normed4_floats(gpu: Option<&Gpu>, format: &'static str, grid: Grid, w: Ptr, x: Ptr, out: Ptr, n_in: i32,
        n_out: i32, rows: i32, eps: f32, row_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(w), Arg::Ptr(x), Arg::Ptr(out), Arg::Int(n_in), Arg::Int(n_out), Arg::Int(rows),
        Arg::Float(eps), Arg::Long(row_bytes)];
    start(gpu, (format, &format!("normed4_{format}")), grid, &args)
}

/// Starts `matvec4_FORMAT` of kernels/matrix.cuh:
/// ```text
/// Few pairs of a format of floats, on activations as they are: a block per row, since such
/// matrices have few rows (routers, mixes), or else long ones. Grid: (rows, pairs / T, 1), for one
/// pair up to two deep as in `matvec_body`; up to 512 threads.
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
