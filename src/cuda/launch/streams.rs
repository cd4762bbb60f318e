//! Starts the kernels of kernels/streams.cu.

use anyhow::Result;
use crate::cuda::{Gpu, Ptr, args::{Arg, Grid}, queue::start, codes::RopePairs, codes::CacheType};

/// Starts `hyper_pre` of kernels/streams.cu:
/// ```text
/// What a block reads from the streams, and how it writes back; see src/ops/hyper.rs. A block per
/// token; `back` is null at the head of the model. Without `mixed` it is a weight for each stream
/// and no matrix. Where `normed` is not null, it gets what `rms_norm` makes of the whole row, and
/// where `codes` is not null they get that in 8 bits. Where `next` is not null it gets the weights
/// that were made of `mixes`, and what is read are the streams by the weights `given`, or the first
/// stream; where `mixes` is null the streams by `given` and nothing else.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn hyper_pre(gpu: Option<&Gpu>, grid: Grid, streams: Ptr, mixes: Ptr, scale: Ptr, base: Ptr, out: Ptr, back: Ptr,
        weight: Ptr, normed: Ptr, codes: Ptr, scales: Ptr, given: Ptr, next: Ptr, n: i32, width: i32, mixed: i32,
        rounds: i32, magnitude: f32, eps: f32, post_eps: f32, norm_eps: f32, norm_least: f32,
        norm_scale: f32) -> Result<()> {
    let args = [Arg::Ptr(streams), Arg::Ptr(mixes), Arg::Ptr(scale), Arg::Ptr(base), Arg::Ptr(out), Arg::Ptr(back),
        Arg::Ptr(weight), Arg::Ptr(normed), Arg::Ptr(codes), Arg::Ptr(scales), Arg::Ptr(given), Arg::Ptr(next),
        Arg::Int(n), Arg::Int(width), Arg::Int(mixed), Arg::Int(rounds), Arg::Float(magnitude), Arg::Float(eps),
        Arg::Float(post_eps), Arg::Float(norm_eps), Arg::Float(norm_least), Arg::Float(norm_scale)];
    start(gpu, ("streams", "hyper_pre"), grid, &args)
}

/// Starts `hyper_post` of kernels/streams.cu:
/// ```text
/// The streams after a block gave `x`, or `x` + `y` where `y` is not null, which is stored as
/// `sum`; and the same with `y2`. Without `mixed` each keeps what it has. A thread per value.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn hyper_post(gpu: Option<&Gpu>, grid: Grid, x: Ptr, y: Ptr, sum: Ptr, y2: Ptr, sum2: Ptr, streams: Ptr, back: Ptr,
        out: Ptr, n: i32, width: i32, mixed: i32, total: u64) -> Result<()> {
    let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::Ptr(sum), Arg::Ptr(y2), Arg::Ptr(sum2), Arg::Ptr(streams),
        Arg::Ptr(back), Arg::Ptr(out), Arg::Int(n), Arg::Int(width), Arg::Int(mixed), Arg::Long(total)];
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
/// src/ops/ngram.rs. Where `normed` is null the stream with that added. A block per row and stream.
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
/// The row of every token that completes a block of `ratio`; those of others are 0. See
/// src/ops/compress.rs: a softmax over the block's tokens (and with `overlap` the block's before)
/// in each column, or without `scores` the mean; a norm where there is a weight of one, rotation;
/// stored as f32 in `rows`, from where `store_rows` takes them. A block of threads per token.  With
/// `kv`, of a batch of one row, that row of `kvs` and `scores` is stored first: `score` with the
/// offset of its place (`add_place`). With `cache`, the row that is made is stored there, as
/// `store_rows` would.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn compress(gpu: Option<&Gpu>, grid: Grid, kvs: Ptr, scores: Ptr, kv: Ptr, score: Ptr, ape: Ptr, norm: Ptr,
        angles: Ptr, seq: Ptr, pos: Ptr, rows: Ptr, dim: i32, ratio: i32, overlap: i32, eps: f32, n_rot: i32,
        offset: i32, pairs: RopePairs, inverse: i32, capacity: i32, row_bytes: u64, seq_bytes: u64, cache: Ptr,
        cache_type: CacheType, cache_capacity: i32, cache_row_bytes: u64, cache_seq_bytes: u64) -> Result<()> {
    let args = [Arg::Ptr(kvs), Arg::Ptr(scores), Arg::Ptr(kv), Arg::Ptr(score), Arg::Ptr(ape), Arg::Ptr(norm),
        Arg::Ptr(angles), Arg::Ptr(seq), Arg::Ptr(pos), Arg::Ptr(rows), Arg::Int(dim), Arg::Int(ratio),
        Arg::Int(overlap), Arg::Float(eps), Arg::Int(n_rot), Arg::Int(offset), Arg::Int(pairs as i32),
        Arg::Int(inverse), Arg::Int(capacity), Arg::Long(row_bytes), Arg::Long(seq_bytes), Arg::Ptr(cache),
        Arg::Int(cache_type as i32), Arg::Int(cache_capacity), Arg::Long(cache_row_bytes), Arg::Long(cache_seq_bytes)];
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

/// Starts `best_of_blocks` of kernels/streams.cu:
/// ```text
/// score[t][b] = the best of the scores of block b's rows, of `size` rows for `every` tokens each;
/// the newest block that token t sees comes before all. A thread per block of rows. Grid: (most
/// blocks / 128, tokens).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn best_of_blocks(gpu: Option<&Gpu>, grid: Grid, scores: Ptr, pos: Ptr, best: Ptr, every: i32, size: i32, most: i32,
        most_blocks: i32) -> Result<()> {
    let args = [Arg::Ptr(scores), Arg::Ptr(pos), Arg::Ptr(best), Arg::Int(every), Arg::Int(size), Arg::Int(most),
        Arg::Int(most_blocks)];
    start(gpu, ("streams", "best_of_blocks"), grid, &args)
}

/// Starts `index_scores` of kernels/streams.cu:
/// ```text
/// score[t][r] = sum over heads of weight times max(q . key r, 0), for the rows that token t sees;
/// without weights all are 1. Tensor cores, on queries (and keys that are not f16) as the sums of
/// two f16 each, scaled by a power of two: as exact as f32, since a choice of rows hangs on the
/// last bits. A block has 64 rows, each of its four warps 16 heads at a time; at most 128 columns.
/// With `blocks`, `n_blocks` for each token, the rows are those of these blocks of `size`, one
/// after the other. Grid: (most rows / 64, tokens).
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn index_scores(gpu: Option<&Gpu>, grid: Grid, q: Ptr, weights: Ptr, keys: Ptr, seq: Ptr, pos: Ptr, scores: Ptr,
        heads: i32, dim: i32, every: i32, cache_type: CacheType, most: i32, capacity: i32, row_bytes: u64,
        seq_bytes: u64, blocks: Ptr, n_blocks: i32, size: i32) -> Result<()> {
    let args = [Arg::Ptr(q), Arg::Ptr(weights), Arg::Ptr(keys), Arg::Ptr(seq), Arg::Ptr(pos), Arg::Ptr(scores),
        Arg::Int(heads), Arg::Int(dim), Arg::Int(every), Arg::Int(cache_type as i32), Arg::Int(most),
        Arg::Int(capacity), Arg::Long(row_bytes), Arg::Long(seq_bytes), Arg::Ptr(blocks), Arg::Int(n_blocks),
        Arg::Int(size)];
    start(gpu, ("streams", "index_scores"), grid, &args)
}

/// Starts `index_top` of kernels/streams.cu:
/// ```text
/// The `k` best rows of each of a token's `lists`, rising, then -1; the lower of equals. Of rows of
/// `every` tokens those count that have their first `every - from` + 1 tokens: from 1 those that
/// are complete, from `every` those that are begun. `open` adds the one that is not complete. With
/// `blocks`, `n_blocks` for each token, scores are those of the rows of these blocks of `size`. A
/// block of 256 per list: the k-th largest is found eight bits at a time.
/// ```
/// # Errors
/// If the driver does not take the kernel or its arguments.
pub fn index_top(gpu: Option<&Gpu>, grid: Grid, scores: Ptr, pos: Ptr, out: Ptr, k: i32, every: i32, most: i32,
        lists: i32, from: i32, open: i32, blocks: Ptr, n_blocks: i32, size: i32) -> Result<()> {
    let args = [Arg::Ptr(scores), Arg::Ptr(pos), Arg::Ptr(out), Arg::Int(k), Arg::Int(every), Arg::Int(most),
        Arg::Int(lists), Arg::Int(from), Arg::Int(open), Arg::Ptr(blocks), Arg::Int(n_blocks), Arg::Int(size)];
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
