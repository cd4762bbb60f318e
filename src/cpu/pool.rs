//! The process's threads, and parallel loops of a few microseconds on them, many per token.
//!
//! A loop is published as one number that changes (`epoch`); workers that see it join. Each thread
//! has a run of indices of its own, which it takes from the front, so that it streams through
//! memory in order; when that is empty it steals single indices from the back of the others' runs.
//! The caller works too, then closes the loop and waits only for those who joined: a worker that is
//! asleep, or off its core because the machine is busy, holds nobody up. Between loops workers spin
//! for some tens of microseconds, which covers the small steps of a token, and then park.
//!
//! Where weights are divided over NUMA nodes ([`Pool::over_nodes`]), every worker is pinned to a CPU, a loop's first
//! indices are those of node 0's threads (`numa.rs`), and a thread steals from its own node first. The caller is held
//! on its node's CPUs alone, not on one of them: threads that it starts later have the same.
//!
//! ```text
//! AWAY     the thread is rayon's; a loop that wants it calls it with `spawn_broadcast`
//! HERE     it is in `work`, where it spins or computes, or it has been called
//! PARKED   it is in `work` and sleeps; a loop that wants it unparks it
//! ```
//! The workers are the threads of one rayon pool, as many as the largest [`Pool`] that lives. They
//! stay in `work` until [`in_parallel`] wants them for rayon's own loops, which the token loop
//! never does. Against threads that were the pool's alone, on two cores in paired rounds, medians
//! and quartiles: Q4_K decodes at 0.99x (0.96-1.02) and reads prompts at 1.00x (0.97-1.02), Q8_0 at
//! 1.00x (0.97-1.03) and 0.99x (0.97-1.02), and while a dozen compilers run Q4_K decodes at 0.99x.
//!
//! Rejected: rayon's loops within a token (its workers sleep between loops and are woken one by
//! one: the demo model decodes half as fast). Workers that leave for rayon instead of parking (a
//! broadcast costs more than an unpark: the demo model decodes at 0.91x). One shared counter
//! instead of runs: threads then read alternate 48 KB pieces, which hardware prefetchers follow
//! badly (Q4_K experts from memory, two Zen 4 cores: 52 tokens/s, with runs 68).

#![allow(unsafe_code)] // the loop's body is borrowed from the caller for as long as the loop is open

use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::numa::{LoopPart, NodeSplit, NumaNodes, run_on};
use super::{Limits, Topology};

/// Work below this many bytes touched is done by the calling thread: even a spinning worker takes a
/// microsecond.
const SMALL: usize = 32 * 1024;

/// How long a worker spins for the next loop before it parks.
const SPIN: Duration = Duration::from_micros(60);
/// How long a worker spins where a GPU works between loops: a layer's attention takes it 100
/// microseconds and more, and waking all threads for every layer would cost as much.
const SPIN_WITH_GPU: Duration = Duration::from_micros(400);

/// A loop's body. The pointer is only followed between `open` and the moment when nobody is inside
/// any more.
struct Body<'a> {
    f: &'a (dyn Fn(usize) + Sync),
    /// The runs of each node's threads and the indices that they begin with; of one node where there are not several.
    parts: &'a [LoopPart],
    /// The run of each thread, the caller's first; None where it is the thread's own number.
    numbers: Option<&'a [usize]>,
}

impl Body<'_> {
    /// The run of a thread, and those of the threads of its node.
    fn place(&self, thread: usize) -> (usize, Range<usize>) {
        let me = self.numbers.map_or(thread, |numbers| numbers[thread]);
        let own = self.parts.iter().find(|part| part.threads.contains(&me));
        (me, own.map_or(me..me + 1, |part| part.threads.clone()))
    }
}

/// Whether a GPU works between loops, so that workers spin for longer; from then on for the whole
/// process.
static BESIDE_GPU: AtomicBool = AtomicBool::new(false);

// Where a worker is (see the file's head).
const AWAY: u8 = 0;
const HERE: u8 = 1;
const PARKED: u8 = 2;

/// What the caller of a loop and the workers share.
#[derive(Debug)]
struct PoolState {
    /// Counts loops; a change wakes spinning workers.
    epoch: AtomicUsize,
    /// Whether a loop may be joined.
    open: AtomicBool,
    /// Workers inside the loop.
    inside: AtomicUsize,
    /// Threads that share the loop, the caller included. Workers above that number leave it alone.
    threads: AtomicUsize,
    /// Each thread's run of indices; the caller's first.
    runs: Vec<Run>,
    /// The loop's `Body`, lifetimes erased.
    body: AtomicPtr<()>,
    /// Set by a worker whose body panicked; the caller panics in turn.
    panicked: AtomicBool,
    /// Sends the workers back to rayon.
    leave: AtomicBool,
    /// Where each worker is: AWAY, HERE or PARKED.
    presence: Vec<AtomicU8>,
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
    fn new(threads: usize) -> PoolState {
        PoolState {
            epoch: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            threads: AtomicUsize::new(threads),
            runs: (0..threads).map(|_| Run::default()).collect(),
            body: AtomicPtr::default(),
            panicked: AtomicBool::new(false),
            leave: AtomicBool::new(false),
            presence: (1..threads).map(|_| AtomicU8::new(AWAY)).collect(),
        }
    }

    /// Takes indices until none are left: the thread's own from the front, then the others' from
    /// the back, those of its node first.
    fn take(&self, thread: usize, threads: usize, body: &Body<'_>) {
        let (me, node) = body.place(thread);
        while let Some(i) = self.runs[me].take(true) {
            (body.f)(i);
        }
        for other in (me + 1..node.end).chain(node.start..me).chain(node.end..threads).chain(0..node.start) {
            while let Some(i) = self.runs[other].take(false) {
                (body.f)(i);
            }
        }
    }

    /// What a broadcast runs on the thread of worker `me`: loops, until the workers are sent back.
    fn work(&self, me: usize) {
        if self.presence[me].load(SeqCst) != HERE {
            return; // a call that was for others, or that it did not wait for
        }
        let mut seen = self.epoch.load(SeqCst).wrapping_sub(1); // the loop that it was called for may be open
        let mut since = Instant::now();
        while self.wait(me, seen, since) {
            seen = self.epoch.load(SeqCst);
            if self.join(me) {
                since = Instant::now();
            }
        }
    }

    /// Waits until the epoch is not `seen`; parks when the last loop of this worker, at `since`, is
    /// too long ago. False if the worker is to leave.
    fn wait(&self, me: usize, seen: usize, since: Instant) -> bool {
        let mut spins = 0u32;
        while self.epoch.load(SeqCst) == seen {
            if self.leave.load(SeqCst) {
                self.presence[me].store(AWAY, SeqCst);
                // Either the caller of the next loop sees that this worker is away, or this worker
                // sees the loop.
                if self.epoch.load(SeqCst) == seen {
                    return false;
                }
                self.presence[me].store(HERE, SeqCst);
                return true;
            }
            std::hint::spin_loop();
            spins += 1;
            // Reading the clock is itself some twenty nanoseconds.
            if spins.is_multiple_of(64) && since.elapsed() > spin_time() {
                self.presence[me].store(PARKED, SeqCst);
                if self.epoch.load(SeqCst) == seen {
                    std::thread::park(); // not for long if it is to leave: whoever dismisses unparks all
                }
                self.presence[me].store(HERE, SeqCst);
            }
        }
        true
    }

    /// Takes part in the loop if it is still open. Says whether worker `me` is among those that
    /// share it.
    fn join(&self, me: usize) -> bool {
        self.inside.fetch_add(1, SeqCst);
        let open = self.open.load(SeqCst);
        let threads = self.threads.load(SeqCst); // of this loop if it is open, else of the one before or after it
        let shares = me + 1 < threads;
        if open && shares {
            // SAFETY: `open` was true after `inside` was raised, and the caller, which owns the
            // body, lowers `open` and then waits for `inside` to be zero before the body goes away
            // (both sequentially consistent).
            let body = unsafe { &*self.body.load(SeqCst).cast::<Body<'_>>() };
            if catch_unwind(AssertUnwindSafe(|| self.take(me + 1, threads, body))).is_err() {
                self.panicked.store(true, SeqCst);
                self.runs.iter().for_each(|r| r.set(0, 0));
            }
        }
        self.inside.fetch_sub(1, SeqCst);
        shares
    }
}

/// How long a worker spins for the next loop.
fn spin_time() -> Duration {
    if BESIDE_GPU.load(SeqCst) { SPIN_WITH_GPU } else { SPIN }
}

/// The threads of a rayon pool, of which all but one are workers: the caller of a loop works too.
#[derive(Debug)]
struct Workers {
    rayon: ThreadPool,
    /// The rayon pool's threads, by number.
    handles: Vec<Thread>,
    state: Arc<PoolState>,
}

impl Workers {
    /// Starts so many threads, each on a CPU of its own where there are nodes.
    fn start(threads: usize, nodes: Option<&NumaNodes>) -> Result<Workers> {
        let builder = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("tandem-{}", i + 1));
        let cpus = nodes.map(|nodes| nodes.cpus(threads)).unwrap_or_default();
        let failed = Arc::new(AtomicUsize::new(0));
        let (of_threads, counted) = (cpus.clone(), failed.clone());
        let builder = builder.start_handler(move |i| {
            // Thread `i` is worker `i + 1` of a loop; the last one is none, and has the caller's CPU.
            let cpu = of_threads.get((i + 1) % threads);
            counted.fetch_add(cpu.is_some_and(|cpu| run_on(&[*cpu]).is_err()).into(), SeqCst);
        });
        let rayon = builder.build().map_err(|e| {
            anyhow!("cannot start {threads} threads ({e}): raise the limit (`ulimit -u` shows it), or use fewer (-t)")
        })?;
        let handles = rayon.broadcast(|_| std::thread::current());
        match failed.load(SeqCst) {
            0 => {}
            n => {
                tracing::warn!("{n} of {threads} threads could not be pinned to the CPUs of their NUMA nodes {cpus:?}")
            }
        }
        Ok(Workers { rayon, handles, state: Arc::new(PoolState::new(threads)) })
    }

    /// Calls the body for the indices of all its parts on `threads` threads.
    fn share(&self, threads: usize, body: &Body<'_>) {
        let s = &*self.state;
        let end = body.parts.last().map_or(0, |part| part.items.end);
        assert!(end < 1 << 32, "indices have 32 bits; a longer loop would hand some out twice");
        s.panicked.store(false, SeqCst); // by a loop whose caller panicked too
        // Workers spin on the memory around it: a store would take it from them.
        if s.threads.load(SeqCst) != threads {
            s.threads.store(threads, SeqCst);
        }
        for LoopPart { threads, items } in body.parts {
            let (n, all) = (items.len(), threads.len());
            for (me, run) in s.runs[threads.clone()].iter().enumerate() {
                run.set(items.start + n * me / all, items.start + n * (me + 1) / all);
            }
        }
        s.body.store(std::ptr::from_ref(body).cast_mut().cast(), SeqCst);
        s.open.store(true, SeqCst);
        s.epoch.fetch_add(1, SeqCst);
        self.wake(threads - 1);
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
        s.take(0, threads, body);
        drop(close);
        assert!(!s.panicked.swap(false, SeqCst), "a worker thread panicked");
    }

    /// Has the first `n` workers look at the epoch.
    fn wake(&self, n: usize) {
        let mut call = false;
        for (presence, thread) in self.state.presence[..n].iter().zip(&self.handles) {
            match presence.load(SeqCst) {
                PARKED => thread.unpark(),
                // It may be back by itself at this moment.
                AWAY => call |= presence.compare_exchange(AWAY, HERE, SeqCst, SeqCst).is_ok(),
                _ => {}
            }
        }
        if call {
            let state = self.state.clone();
            self.rayon.spawn_broadcast(move |thread| {
                if thread.index() < state.presence.len() {
                    state.work(thread.index());
                }
            });
        }
    }

    /// Sends all workers back to rayon.
    fn dismiss(&self) {
        self.state.leave.store(true, SeqCst);
        self.handles.iter().for_each(Thread::unpark);
    }

    /// Runs `f`, whose rayon loops have the threads meanwhile.
    fn lend<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.dismiss();
        let value = catch_unwind(AssertUnwindSafe(|| self.rayon.install(f)));
        self.state.leave.store(false, SeqCst); // the next loop of a token calls them again
        value.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.dismiss(); // rayon ends the threads
    }
}

/// The threads of this process. Whoever holds the lock may share out a loop.
static THREADS: Mutex<Threads> = Mutex::new(Threads { workers: None, pools: 0, nodes: None });

#[derive(Debug)]
struct Threads {
    /// There are some while there are pools, as many as the largest has asked for.
    workers: Option<Workers>,
    /// The [`Pool`]s that live.
    pools: usize,
    /// The nodes that the threads are divided over, while a pool lives.
    nodes: Option<Arc<NumaNodes>>,
}

impl Threads {
    fn lock() -> MutexGuard<'static, Threads> {
        THREADS.lock().unwrap_or_else(PoisonError::into_inner) // a loop is closed even if its body panics
    }

    /// None if a loop is running: one that this call is inside of, or another thread's.
    fn try_lock() -> Option<MutexGuard<'static, Threads>> {
        match THREADS.try_lock() {
            Ok(threads) => Some(threads),
            Err(TryLockError::Poisoned(threads)) => Some(threads.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Runs `f`, whose rayon loops take the process's threads: those of the pools that live, else as
/// many as [`default_threads`] says. Must not be called from inside a loop of a [`Pool`].
///
/// # Errors
/// If the system starts no more threads.
pub(crate) fn in_parallel<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    if rayon::current_thread_index().is_some() {
        return Ok(f()); // on a thread of rayon's already
    }
    match &Threads::lock().workers {
        Some(workers) => Ok(workers.lend(f)),
        None => Ok(Workers::start(default_threads(), None)?.lend(f)),
    }
}

/// A number of threads for the CPU's share of a walk: the caller and `n - 1` workers. All pools of
/// a process share its threads; a loop that finds them taken by another one runs on its caller
/// alone.
#[derive(Debug)]
pub struct Pool {
    n: usize,
    /// How its loops are divided over nodes, where they are.
    split: Option<NodeSplit>,
}

thread_local! {
    /// Whether this thread is held on its node.
    static HELD: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// The most threads of a pool: more than any one machine has cores.
    pub const MOST: usize = 1024;

    /// A pool of `n` threads; 0 means [`default_threads`].
    ///
    /// # Errors
    /// If `n` is above [`Pool::MOST`], or the system starts no more threads.
    pub fn new(n: usize) -> Result<Pool> {
        Pool::open(n, None)
    }

    /// A pool of `n` threads; from now on, until the last pool is gone, this process's threads are divided over these
    /// nodes, and so are the loops of pools that are made from now on.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn over_nodes(n: usize, nodes: &Arc<NumaNodes>) -> Result<Pool> {
        Pool::open(n, Some(nodes))
    }

    fn open(n: usize, nodes: Option<&Arc<NumaNodes>>) -> Result<Pool> {
        let n = if n == 0 { default_threads() } else { n };
        ensure!(n <= Self::MOST, "{n} threads (-t) are more than the {} that can be; one per core is best", Self::MOST);
        let mut threads = Threads::lock();
        let had = threads.workers.as_ref().map_or(0, |w| w.handles.len());
        let nodes = nodes.or(threads.nodes.as_ref()).cloned();
        if had < n || nodes != threads.nodes {
            threads.workers = Some(Workers::start(n.max(had), nodes.as_deref())?);
            threads.nodes = nodes;
        }
        threads.pools += 1;
        Ok(Pool { n, split: threads.nodes.as_ref().map(|nodes| NodeSplit::new(nodes, n)) })
    }

    /// How loops are divided over NUMA nodes; None where they are not.
    pub fn split(&self) -> Option<&NodeSplit> {
        self.split.as_ref()
    }

    /// Has the threads wait longer for the next loop, because a GPU works between loops.
    pub fn beside_gpu(&self) {
        BESIDE_GPU.store(true, SeqCst);
    }

    /// Threads in the pool, the caller included.
    pub fn threads(&self) -> usize {
        self.n
    }

    /// Calls `f` for 0..n, in parallel when `bytes` (touched in all) is worth it.
    pub fn each(&self, n: usize, bytes: usize, f: impl Fn(usize) + Sync + Send) {
        match &self.split {
            Some(split) if !self.is_alone(n, bytes) => self.each_part(&split.parts(n), bytes, f),
            _ => self.each_part(&[LoopPart { threads: 0..self.n, items: 0..n }], bytes, f),
        }
    }

    /// Whether a loop of `n` indices that touches so many bytes is done by its caller.
    fn is_alone(&self, n: usize, bytes: usize) -> bool {
        self.n == 1 || n <= 1 || bytes < SMALL
    }

    /// Calls `f` for the indices of all parts, which follow each other from 0 on and have the pool's threads in order,
    /// in parallel when `bytes` (touched in all) is worth it.
    pub(super) fn each_part(&self, parts: &[LoopPart], bytes: usize, f: impl Fn(usize) + Sync + Send) {
        let n = parts.last().map_or(0, |part| part.items.end);
        if self.is_alone(n, bytes) {
            return (0..n).for_each(f);
        }
        // A loop inside a loop, or from a second thread, runs on the thread that started it.
        let Some(threads) = Threads::try_lock() else { return (0..n).for_each(f) };
        if let Some(split) = &self.split
            && !HELD.replace(true)
        {
            let _ = run_on(split.home()); // where the system refuses, it was told when the workers started
        }
        let numbers = self.split.as_ref().map(NodeSplit::numbers);
        let workers = threads.workers.as_ref().expect("there are workers while a pool lives");
        workers.share(self.n, &Body { f: &f, parts, numbers });
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

    /// Calls `f` with every piece of `out` of `width` values and its number, in parallel when
    /// `bytes` is worth it.
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
        let mut threads = Threads::lock();
        threads.pools -= 1;
        if threads.pools == 0 {
            threads.workers = None;
            if let Some(nodes) = threads.nodes.take()
                && HELD.replace(false)
            {
                // Threads that this one starts from now on would be on its node alone.
                let _ = run_on(&nodes.list.iter().flat_map(|node| node.cpus.clone()).collect::<Vec<_>>());
            }
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

/// Threads where no number is asked for: what RAYON_NUM_THREADS says, else [`best_threads`].
pub fn default_threads() -> usize {
    let limit = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok());
    limit.filter(|n| *n > 0).unwrap_or_else(best_threads)
}

/// Threads that compute best on this machine (see [`Topology::threads`]), as it was when it was first asked for: a
/// thread that is held on a NUMA node sees that node's CPUs alone.
pub fn best_threads() -> usize {
    static BEST: OnceLock<usize> = OnceLock::new();
    *BEST.get_or_init(|| {
        let root = Path::new("/");
        let known = Topology::read(root).threads(Limits::read(root).cpus);
        known.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    })
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
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        let count = AtomicU32::new(0);
        pool.each(100, SMALL, |_| {
            count.fetch_add(1, SeqCst);
        });
        assert_eq!(count.into_inner(), 100);
    }

    /// Whether workers take part in a loop, sooner or later: the loops of other tests may hold
    /// them.
    fn comes_to_be_shared(pool: &Pool) -> bool {
        let (caller, start) = (std::thread::current().id(), Instant::now());
        while start.elapsed() < Duration::from_secs(60) {
            let others = AtomicU32::new(0);
            pool.each(64, SMALL, |_| {
                (0..100).for_each(|_| std::hint::spin_loop());
                others.fetch_add((std::thread::current().id() != caller).into(), SeqCst);
            });
            if others.into_inner() > 0 {
                return true;
            }
        }
        false
    }

    #[test]
    fn workers_come_again_after_rayon_had_their_threads() {
        let pool = Pool::new(3).unwrap();
        for round in 0..if cfg!(miri) { 3 } else { 50 } {
            assert!(comes_to_be_shared(&pool), "round {round}");
            if round % 2 == 0 {
                std::thread::sleep(SPIN * 4); // long enough for the workers to park
            }
            let count = AtomicU32::new(0);
            in_parallel(|| {
                rayon::scope(|s| {
                    for _ in 0..20 {
                        s.spawn(|_| _ = count.fetch_add(1, SeqCst));
                    }
                })
            })
            .unwrap();
            assert_eq!(count.into_inner(), 20);
        }
    }

    #[test]
    fn a_panic_in_rayon_s_loop_reaches_the_caller_and_workers_come_again() {
        let pool = Pool::new(3).unwrap();
        let run = || in_parallel(|| -> () { panic!("on purpose") });
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        assert!(comes_to_be_shared(&pool));
    }

    #[test]
    fn a_pool_is_not_helped_by_the_threads_of_a_larger_one() {
        let (large, small) = (Pool::new(5).unwrap(), Pool::new(2).unwrap());
        for round in 0..if cfg!(miri) { 3 } else { 300 } {
            let seen = Mutex::new(std::collections::HashSet::new());
            let look = |_| {
                (0..100).for_each(|_| std::hint::spin_loop());
                seen.lock().unwrap().insert(std::thread::current().id());
            };
            large.each(20, SMALL, look);
            assert!(std::mem::take(&mut *seen.lock().unwrap()).len() <= 5);
            small.each(20, SMALL, look);
            assert!(seen.lock().unwrap().len() <= 2, "round {round}");
        }
    }

    #[test]
    fn rayon_s_loops_take_as_many_threads_as_the_largest_pool() {
        let _pool = Pool::new(6).unwrap();
        // More only where another test's pool has more at this moment.
        assert!(in_parallel(rayon::current_num_threads).unwrap() >= 6);
    }

    #[test]
    fn an_absurd_number_of_threads_is_an_error_and_not_an_endless_wait() {
        for n in [5000, usize::MAX] {
            assert!(Pool::new(n).unwrap_err().to_string().contains("more than the 1024"));
        }
        assert_eq!(Pool::new(3).unwrap().threads(), 3);
    }
}
