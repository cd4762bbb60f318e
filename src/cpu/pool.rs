//! The thread pool: rayon's, entered once per walk, so that every step inside forks from a worker.

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

/// Work below this many bytes touched is done by the calling thread: waking the others costs more.
const SMALL: usize = 64 * 1024;

/// The most threads of a pool: more than any one machine has cores.
const MOST: usize = 1024;

/// Threads for the CPU's share of a walk.
#[derive(Debug)]
pub struct Pool {
    pool: rayon::ThreadPool,
    n: usize,
}

impl Pool {
    /// A pool of `n` threads; 0 means one per physical core.
    pub fn new(n: usize) -> Result<Pool> {
        let n = if n == 0 { physical_cores() } else { n };
        ensure!(n <= MOST, "{n} threads (-t) are more than the {MOST} that can be; one per core is best");
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .thread_name(|i| format!("tandem-{i}"))
            .build()
            .with_context(|| format!("cannot start {n} threads"))?;
        Ok(Pool { pool, n })
    }

    /// Threads in the pool.
    pub fn threads(&self) -> usize {
        self.n
    }

    /// Runs `f` on a worker; parallel loops inside it use this pool.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    /// Calls `f` for 0..n, in parallel when `bytes` (touched in all) is worth it.
    pub fn each(&self, n: usize, bytes: usize, f: impl Fn(usize) + Sync + Send) {
        if self.n == 1 || n <= 1 || bytes < SMALL {
            (0..n).for_each(f);
        } else {
            (0..n).into_par_iter().for_each(f);
        }
    }

    /// Calls `f` with every piece of `out` of `width` values and its number, in parallel when `bytes` is worth it.
    pub fn pieces(&self, out: &mut [f32], width: usize, bytes: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
        if self.n == 1 || out.len() <= width || bytes < SMALL {
            out.chunks_mut(width).enumerate().for_each(|(i, o)| f(i, o));
        } else {
            out.par_chunks_mut(width).enumerate().for_each(|(i, o)| f(i, o));
        }
    }

    /// As [`Pool::pieces`] over two buffers cut into the same number of pieces.
    pub fn pieces2(
        &self,
        (a, wa): (&mut [f32], usize),
        (b, wb): (&mut [f32], usize),
        bytes: usize,
        f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
    ) {
        if self.n == 1 || bytes < SMALL {
            a.chunks_mut(wa).zip(b.chunks_mut(wb)).enumerate().for_each(|(i, (a, b))| f(i, a, b));
        } else {
            let pieces = a.par_chunks_mut(wa).zip(b.par_chunks_mut(wb));
            pieces.enumerate().for_each(|(i, (a, b))| f(i, a, b));
        }
    }
}

/// Physical cores that this process may use: hyperthread siblings share an arithmetic unit and slow each other down.
fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut cores = std::collections::HashSet::new();
    for cpu in 0..4096 {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let Ok(siblings) = std::fs::read_to_string(path) else { break };
        cores.insert(siblings);
    }
    if cores.is_empty() { allowed } else { allowed.min(cores.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absurd_number_of_threads_is_an_error_and_not_an_endless_wait() {
        for n in [5000, usize::MAX] {
            assert!(Pool::new(n).unwrap_err().to_string().contains("more than the 1024"));
        }
        assert_eq!(Pool::new(3).unwrap().threads(), 3);
    }
}
