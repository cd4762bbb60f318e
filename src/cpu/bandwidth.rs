//! How fast this machine reads memory with a pool's threads: the roof over decode.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Pool;

/// Bytes read in a round: far more than any last-level cache of a desktop.
const BYTES: usize = 1 << 30;

/// GB/s of the best of four rounds over a gigabyte, each thread reading pieces of 1 MB in turn.
pub fn read_bandwidth(pool: &Pool) -> f64 {
    let memory: Vec<u64> = vec![1; BYTES / 8];
    let pieces: Vec<&[u64]> = memory.chunks(128 * 1024).collect();
    let total = AtomicU64::new(0);
    let mut best = 0f64;
    for _ in 0..4 {
        let start = Instant::now();
        pool.each(pieces.len(), BYTES, |i| {
            // Eight sums, so that the loop waits for memory and not for its own additions.
            let mut sums = [0u64; 8];
            for eight in pieces[i].as_chunks::<8>().0 {
                sums.iter_mut().zip(eight).for_each(|(s, v)| *s = s.wrapping_add(*v));
            }
            total.fetch_add(sums.iter().sum(), Ordering::Relaxed);
        });
        best = best.max(BYTES as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    black_box(total.into_inner());
    best
}
