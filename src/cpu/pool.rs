//! The thread pool: parallel loops of a few microseconds, many per token.
//!
//! A loop is published as one number that changes (`epoch`); workers that see it join. Each thread has a run of indices
//! of its own, which it takes from the front, so that it streams through memory in order; when that is empty it steals
//! single indices from the back of the others' runs. The caller works too, then closes the loop and waits only for those
//! who joined: a worker that is asleep, or off its core because the machine is busy, holds nobody up. Between loops
//! workers spin for some tens of microseconds, which covers the small steps of a token, and then park.
//!
//! Tried and left: rayon's pool (its workers sleep between loops and are woken one by one: the demo model decodes half as
//! fast). One shared counter instead of runs: threads then read alternate 48 KB pieces, which hardware prefetchers follow
//! badly (Q4_K experts from memory, two Zen 4 cores: 52 tokens/s, with runs 68).

#![allow(unsafe_code)] // the loop's body is borrowed from the caller for as long as the loop is open

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Limits, Topology};

/// Work below this many bytes touched is done by the calling thread: even a spinning worker takes a microsecond.
const SMALL: usize = 32 * 1024;

/// How long a worker spins for the next loop before it parks.
const SPIN: Duration = Duration::from_micros(60);
/// How long a worker spins where a GPU works between loops: a layer's attention takes it 100 microseconds and more, and
/// waking all threads for every layer would cost as much.
const SPIN_WITH_GPU: Duration = Duration::from_micros(400);

/// A loop's body. The pointer is only followed between `open` and the moment when nobody is inside any more.
struct Body<'a> {
    f: &'a (dyn Fn(usize) + Sync),
}

#[derive(Debug, Default)]
struct PoolState {
    /// Counts loops; a change wakes spinning workers.
    epoch: AtomicUsize,
    /// Whether a loop may be joined.
    open: AtomicBool,
    /// Workers inside the loop.
    inside: AtomicUsize,
    /// Each thread's run of indices; the caller's first.
    runs: Vec<Run>,
    /// The loop's `Body`, lifetimes erased.
    body: AtomicPtr<()>,
    /// Set by a worker whose body panicked; the caller panics in turn.
    panicked: AtomicBool,
    quit: AtomicBool,
    beside_gpu: AtomicBool,
    parked: Vec<AtomicBool>,
}

/// The indices `from..to` that are left, as `from << 32 | to`; on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Run(AtomicU64);

impl Run {
    fn set(&self, from: usize, to: usize) {
        self.0.store((from as u64) << 32 | to as u64, SeqCst);
    }

    /// Takes the first index, or the last.
    fn take(&self, first: bool) -> Option<usize> {
        let mut now = self.0.load(SeqCst);
        loop {
            let (from, to) = (now >> 32, now & 0xffff_ffff);
            if from >= to {
                return None;
            }
            let next = if first { (from + 1) << 32 | to } else { from << 32 | (to - 1) };
            match self.0.compare_exchange_weak(now, next, SeqCst, SeqCst) {
                Ok(_) => return Some(if first { from } else { to - 1 } as usize),
                Err(other) => now = other,
            }
        }
    }
}

impl PoolState {
    /// Takes indices until none are left: thread `me`'s own from the front, then the others' from the back.
    fn take(&self, me: usize, body: &Body<'_>) {
        while let Some(i) = self.runs[me].take(true) {
            (body.f)(i);
        }
        for other in (me + 1..self.runs.len()).chain(0..me) {
            while let Some(i) = self.runs[other].take(false) {
                (body.f)(i);
            }
        }
    }

    /// A worker's life.
    fn work(&self, me: usize) {
        let mut seen = 0;
        loop {
            let start = Instant::now();
            let mut spins = 0u32;
            while self.epoch.load(SeqCst) == seen {
                if self.quit.load(SeqCst) {
                    return;
                }
                std::hint::spin_loop();
                spins += 1;
                let most = if self.beside_gpu.load(SeqCst) { SPIN_WITH_GPU } else { SPIN };
                // Reading the clock is itself some twenty nanoseconds.
                if spins.is_multiple_of(64) && start.elapsed() > most {
                    self.parked[me].store(true, SeqCst);
                    if self.epoch.load(SeqCst) == seen && !self.quit.load(SeqCst) {
                        std::thread::park();
                    }
                    self.parked[me].store(false, SeqCst);
                }
            }
            seen = self.epoch.load(SeqCst);
            self.inside.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) {
                // SAFETY: `open` was true after `inside` was raised, and the caller, which owns the body, lowers `open`
                // and then waits for `inside` to be zero before the body goes away (both sequentially consistent).
                let body = unsafe { &*self.body.load(SeqCst).cast::<Body<'_>>() };
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.take(me + 1, body))).is_err() {
                    self.panicked.store(true, SeqCst);
                    self.runs.iter().for_each(|r| r.set(0, 0));
                }
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }
}

/// Threads for the CPU's share of a walk: the caller and `n - 1` workers.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<PoolState>,
    workers: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
    n: usize,
    /// One loop at a time; held by whoever runs one.
    turn: Mutex<()>,
}

impl Pool {
    /// The most threads of a pool: more than any one machine has cores.
    pub const MOST: usize = 1024;

    /// A pool of `n` threads; 0 means as many as compute best here.
    ///
    /// # Errors
    /// If `n` is above [`Pool::MOST`], or the system starts no more threads.
    pub fn new(n: usize) -> Result<Pool> {
        let n = if n == 0 { best_threads() } else { n };
        ensure!(n <= Self::MOST, "{n} threads (-t) are more than the {} that can be; one per core is best", Self::MOST);
        let parked = (1..n).map(|_| AtomicBool::new(false)).collect();
        let runs = (0..n).map(|_| Run::default()).collect();
        let shared = Arc::new(PoolState { parked, runs, ..PoolState::default() });
        // A pool from the start, so that threads that did start end again where one does not.
        let mut pool = Pool { shared, workers: Vec::new(), threads: Vec::new(), n, turn: Mutex::new(()) };
        for me in 0..n - 1 {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("tandem-{}", me + 1))
                .spawn(move || shared.work(me))
                .with_context(|| format!("cannot start {n} threads"))?;
            pool.threads.push(worker.thread().clone());
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Has the threads wait longer for the next loop, because a GPU works between loops.
    pub fn beside_gpu(&self) {
        self.shared.beside_gpu.store(true, SeqCst);
    }

    /// Threads in the pool, the caller included.
    pub fn threads(&self) -> usize {
        self.n
    }

    /// Calls `f` for 0..n, in parallel when `bytes` (touched in all) is worth it.
    pub fn each(&self, n: usize, bytes: usize, f: impl Fn(usize) + Sync + Send) {
        if self.n == 1 || n <= 1 || bytes < SMALL {
            return (0..n).for_each(f);
        }
        // A loop inside a loop, or from a second thread, runs on the thread that started it.
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(), // a body panicked; the loop was closed all the same
            Err(TryLockError::WouldBlock) => return (0..n).for_each(f),
        };
        let s = &*self.shared;
        let body = Body { f: &f };
        assert!(n < 1 << 32, "indices have 32 bits; a longer loop would hand some out twice");
        s.panicked.store(false, SeqCst); // by a loop whose caller panicked too
        for (me, run) in s.runs.iter().enumerate() {
            run.set(n * me / self.n, n * (me + 1) / self.n);
        }
        s.body.store((&raw const body).cast_mut().cast(), SeqCst);
        s.open.store(true, SeqCst);
        s.epoch.fetch_add(1, SeqCst);
        for (parked, thread) in s.parked.iter().zip(&self.threads) {
            if parked.load(SeqCst) {
                thread.unpark();
            }
        }
        // The loop must be closed, and empty, before `body` goes, also when `f` panics.
        struct Close<'a>(&'a PoolState);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.open.store(false, SeqCst);
                let mut spins = 0;
                while self.0.inside.load(SeqCst) != 0 {
                    std::hint::spin_loop();
                    spins += 1;
                    if spins > 2000 {
                        std::thread::yield_now(); // somebody is off its core: this one may be what it waits for
                    }
                }
            }
        }
        let close = Close(s);
        s.take(0, &body);
        drop(close);
        assert!(!s.panicked.swap(false, SeqCst), "a worker thread panicked");
    }

    /// Calls `f` with every item, in parallel when `bytes` is worth it.
    pub fn each_of<T: Send>(&self, items: impl Iterator<Item = T>, bytes: usize, f: impl Fn(T) + Sync + Send) {
        if self.n == 1 || bytes < SMALL {
            return items.for_each(f);
        }
        // Each is taken once: the locks are never waited for.
        let items: Vec<Mutex<Option<T>>> = items.map(|item| Mutex::new(Some(item))).collect();
        self.each(items.len(), bytes, |i| {
            let item = items[i].lock().ok().and_then(|mut item| item.take());
            f(item.expect("every index is taken once"));
        });
    }

    /// Calls `f` with every piece of `out` of `width` values and its number, in parallel when `bytes` is worth it.
    pub fn pieces(&self, out: &mut [f32], width: usize, bytes: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
        let len = out.len();
        let out = SharedOut(out.as_mut_ptr());
        let out = &out;
        self.each(len.div_ceil(width.max(1)), bytes, move |i| {
            // SAFETY: piece `i` is inside `out`, and every index is taken once.
            f(i, unsafe { out.part(i * width, width.min(len - i * width)) });
        });
    }

    /// As [`Pool::pieces`] over two buffers cut into the same number of pieces.
    pub fn pieces2(
        &self,
        (a, wa): (&mut [f32], usize),
        (b, wb): (&mut [f32], usize),
        bytes: usize,
        f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
    ) {
        let (na, nb) = (a.len(), b.len());
        let (a, b) = (SharedOut(a.as_mut_ptr()), SharedOut(b.as_mut_ptr()));
        let (a, b) = (&a, &b);
        self.each(na.div_ceil(wa).min(nb.div_ceil(wb)), bytes, move |i| {
            // SAFETY: piece `i` is inside each buffer, and every index is taken once.
            let (pa, pb) = unsafe { (a.part(i * wa, wa.min(na - i * wa)), b.part(i * wb, wb.min(nb - i * wb))) };
            f(i, pa, pb);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        self.threads.iter().for_each(Thread::unpark);
        for w in self.workers.drain(..) {
            let _ = w.join();
        }
    }
}

/// A buffer of which several threads write disjoint parts.
pub(super) struct SharedOut(pub(super) *mut f32);
// SAFETY: parts handed out at one time do not overlap (the promise of `part`).
unsafe impl Sync for SharedOut {}
// SAFETY: as above.
unsafe impl Send for SharedOut {}

impl SharedOut {
    /// # Safety
    /// `at..at + n` is inside the buffer and no other thread touches it meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, at: usize, n: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), n) }
    }
}

/// Threads that compute best on this machine (see [`Topology::threads`]).
pub fn best_threads() -> usize {
    let root = Path::new("/");
    let known = Topology::read(root).threads(Limits::read(root).cpus);
    known.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_index_is_taken_exactly_once_in_loop_after_loop() {
        let pool = Pool::new(4).unwrap();
        // An interpreter takes a millisecond for what takes a microsecond.
        for round in 0..if cfg!(miri) { 40 } else { 3000 } {
            let n = 2 + round % 37;
            let seen: Vec<AtomicU32> = (0..n).map(|_| AtomicU32::new(0)).collect();
            pool.each(n, SMALL, |i| {
                seen[i].fetch_add(1, SeqCst);
            });
            assert!(seen.iter().all(|s| s.load(SeqCst) == 1), "round {round}");
            if round % 500 == 0 {
                std::thread::sleep(SPIN * 4); // long enough for the workers to park
            }
        }
    }

    #[test]
    fn pieces_cover_a_buffer_whose_length_is_no_multiple() {
        let pool = Pool::new(3).unwrap();
        let mut out = vec![0.0; 1003];
        pool.pieces(&mut out, 10, SMALL, |i, part| part.fill(i as f32));
        assert!(out.iter().enumerate().all(|(at, v)| *v == (at / 10) as f32));
    }

    #[test]
    fn items_are_handed_out_once_each() {
        let pool = Pool::new(3).unwrap();
        let mut out = vec![0; 1003];
        pool.each_of(out.chunks_mut(10), SMALL, |part| part.iter_mut().for_each(|v| *v += 1));
        assert!(out.iter().all(|v| *v == 1));
    }

    #[test]
    fn a_loop_inside_a_loop_runs_where_it_stands() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicU32::new(0);
        pool.each(8, SMALL, |_| {
            pool.each(5, SMALL, |_| {
                count.fetch_add(1, SeqCst);
            });
        });
        assert_eq!(count.into_inner(), 40);
    }

    #[test]
    fn a_panic_in_a_loop_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        let run = || pool.each(100, SMALL, |i| assert_ne!(i, 41, "on purpose"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        let count = AtomicU32::new(0);
        pool.each(100, SMALL, |_| {
            count.fetch_add(1, SeqCst);
        });
        assert_eq!(count.into_inner(), 100);
    }

    #[test]
    fn an_absurd_number_of_threads_is_an_error_and_not_an_endless_wait() {
        for n in [5000, usize::MAX] {
            assert!(Pool::new(n).unwrap_err().to_string().contains("more than the 1024"));
        }
        assert_eq!(Pool::new(3).unwrap().threads(), 3);
    }
}
