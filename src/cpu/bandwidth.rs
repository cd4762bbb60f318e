//! How fast this machine reads memory with a pool's threads: the roof over decode.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Pool, dense};

/// Bytes read in a round: several times the last-level cache of a desktop.
const BYTES: usize = 256 << 20;
/// Bytes that a thread reads at a time, at most.
const PIECE: usize = 1 << 20;
/// Small stretches are read again and again for so long: a single round is over before a clock can tell.
const LEAST: Duration = Duration::from_millis(4);

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
    /// A buffer of this many bytes: a small one is read from the caches that hold it, as a small model is. Where the pool's
    /// threads are divided over NUMA nodes, each writes what it will read first, so that this is in its node's memory.
    pub fn of(bytes: usize, pool: &Pool) -> Bandwidth {
        let mut memory = vec![0; (bytes / 8).max(1)];
        match pool.split() {
            None => memory.fill(1),
            Some(_) => pool.each_of(memory.chunks_mut(piece(bytes, pool) / 8), bytes, |part| part.fill(1)),
        }
        Bandwidth { memory }
    }

    /// Bytes of the buffer.
    pub fn bytes(&self) -> usize {
        self.memory.len() * 8
    }

    /// GB/s of the best of two rounds or more, each thread reading pieces of its own run. Takes some tens of milliseconds:
    /// measured right before what it is compared with, since other programs change it from moment to moment.
    pub fn measure(&self, pool: &Pool) -> f64 {
        let bytes = self.bytes();
        let pieces: Vec<&[u64]> = self.memory.chunks(piece(bytes, pool) / 8).collect();
        let total = AtomicU64::new(0);
        let (mut best, mut rounds, all) = (0f64, 0, Instant::now());
        while rounds < 2 || all.elapsed() < LEAST {
            let start = Instant::now();
            pool.each(pieces.len(), bytes, |i| {
                total.fetch_add(dense::sum(pieces[i]), Ordering::Relaxed);
            });
            best = best.max(bytes as f64 / start.elapsed().as_secs_f64() / 1e9);
            rounds += 1;
        }
        black_box(total.into_inner());
        best
    }
}

/// Bytes that a thread reads at a time: so few that threads which are late can be helped, as in the matrix driver.
fn piece(bytes: usize, pool: &Pool) -> usize {
    (bytes / pool.threads() / 4).clamp(16 << 10, PIECE) / 8 * 8
}
