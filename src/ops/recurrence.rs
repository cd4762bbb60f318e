//! What recurrent ops share: the runs of tokens in a batch, and the walk over the heads of a state.

use std::ops::Range;

use crate::tape::{Batch, CpuIo, Table};

/// The batch's sequences: (first row, rows, sequence).
pub(super) fn runs(batch: &Batch) -> Vec<(usize, usize, u32)> {
    let mut runs: Vec<(usize, usize, u32)> = Vec::new();
    for (i, row) in batch.rows.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.2 == row.seq => run.1 += 1,
            _ => runs.push((i, 1, row.seq)),
        }
    }
    runs
}

/// The runs for a GPU: the first row, the number of rows and the sequence of every run, in three
/// lists, each as long as the batch.
pub(super) fn table() -> Table {
    let fill = |batch: &Batch, to: &mut [u8]| {
        let n = batch.rows.len();
        let to: &mut [[u8; 4]] = to.as_chunks_mut().0;
        for (i, (first, count, seq)) in runs(batch).into_iter().enumerate() {
            to[i] = (first as i32).to_ne_bytes();
            to[n + i] = (count as i32).to_ne_bytes();
            to[2 * n + i] = (seq as i32).to_ne_bytes();
        }
    };
    Table { key: "runs".into(), row_bytes: 12, fill: Box::new(fill) }
}

/// Calls `f(head, rows, state, out)` for every head and every run of rows of one sequence: with the
/// head's part of the op's first state, `size` values, and an output of `dim` columns for each of
/// the rows. The first output, (rows, heads * dim), is put together of those. Where rows verify drafts
/// the state keeps a copy of what it is after each but the last.
pub(super) fn each_head(
    io: &mut CpuIo<'_>,
    (heads, dim, size): (usize, usize, usize),
    f: impl Fn(usize, Range<usize>, &mut [f32], &mut [f32]) + Sync + Send,
) {
    for (from, count, seq) in runs(io.batch) {
        let to = from + count;
        let [by_head, ..] = &mut io.work.buffers; // (heads, tokens, dim)
        by_head.resize(heads * count * dim, 0.0);
        let copies = if io.batch.verifies { count - 1 } else { 0 };
        let (state, mut copies) = io.states[0].fixed_with_copies(seq, io.batch.rows[to - 1].pos as usize + 1, copies);
        let bytes = count * state.len() * 12;
        if copies.is_empty() {
            io.pool.pieces2((state, size), (by_head, count * dim), bytes, |h, state, out| f(h, from..to, state, out));
        } else {
            // The state after each token is copied while it is in the CPU's caches.
            let mut pieces: Vec<_> = copies.iter_mut().map(|copy| copy.chunks_mut(size)).collect();
            let heads = state.chunks_mut(size).zip(by_head.chunks_mut(count * dim)).enumerate();
            let heads = heads.map(|(h, (state, out))| {
                let copies: Vec<&mut [f32]> = pieces.iter_mut().map(|p| p.next().expect("a piece per head")).collect();
                (h, state, out, copies)
            });
            io.pool.each_of(heads, bytes, |(h, state, out, mut copies)| {
                for (i, out) in out.chunks_mut(dim).enumerate() {
                    f(h, from + i..from + i + 1, state, out);
                    if let Some(copy) = copies.get_mut(i) {
                        copy.copy_from_slice(state);
                    }
                }
            });
        }
        for t in from..to {
            for h in 0..heads {
                let at = (h * count + t - from) * dim;
                io.outs[0][(t * heads + h) * dim..][..dim].copy_from_slice(&by_head[at..at + dim]);
            }
        }
    }
}
