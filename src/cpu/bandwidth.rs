//! How fast this machine reads memory with a pool's threads: the roof over decode.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{Pool, dense};

/// Bytes read in a round: several times the last-level cache of a desktop.
const BYTES: usize = 256 << 20;
/// Bytes that a thread reads at a time.
const PIECE: usize = 1 << 20;

/// A stretch of memory to read.
#[derive(Debug)]
pub struct Bandwidth {
    memory: Vec<u64>,
}

impl Default for Bandwidth {
    fn default() -> Bandwidth {
        Bandwidth { memory: vec![1; BYTES / 8] } // ones: zeros might all be the same page
    }
}

impl Bandwidth {
    /// GB/s of the better of two rounds, each thread reading pieces of its own run. Takes some tens of milliseconds:
    /// measured right beside what it is compared with, since other programs change it from moment to moment.
    pub fn measure(&self, pool: &Pool) -> f64 {
        let pieces: Vec<&[u64]> = self.memory.chunks(PIECE / 8).collect();
        let total = AtomicU64::new(0);
        let mut best = 0f64;
        for _ in 0..2 {
            let start = Instant::now();
            pool.each(pieces.len(), BYTES, |i| {
                total.fetch_add(dense::sum(pieces[i]), Ordering::Relaxed);
            });
            best = best.max(BYTES as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
        black_box(total.into_inner());
        best
    }
}
