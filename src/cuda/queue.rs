//! How kernels are started: each at once, or within [`Gpu::joined`] after a look at the next one; without a device they
//! are only counted.

use std::cell::RefCell;
use std::thread::ThreadId;

use anyhow::Result;

use super::args::{Arg, Grid};
use super::join::{Launch, Pending};
use super::{Gpu, lock};

/// The launches that wait.
#[derive(Debug, Default)]
pub(super) enum LaunchQueue {
    /// None waits: each is started at once.
    #[default]
    Off,
    /// The last one that this thread started waits for the next; other threads' are started at once.
    On(ThreadId, Option<Pending>),
}

impl LaunchQueue {
    /// For launches of this thread.
    pub(super) fn on() -> LaunchQueue {
        LaunchQueue::On(std::thread::current().id(), None)
    }

    /// Makes it this thread's, unless it is another's.
    fn claim(&mut self) -> bool {
        let free = !matches!(self, LaunchQueue::On(thread, _) if *thread != std::thread::current().id());
        if free {
            *self = LaunchQueue::on();
        }
        free
    }

    /// Takes a launch in, and returns the one that is to be started now.
    fn push(&mut self, next: Launch) -> Option<Launch> {
        let last = match self {
            LaunchQueue::On(thread, last) if *thread == std::thread::current().id() => last,
            _ => return Some(next),
        };
        let Some(waiting) = last.take() else {
            *last = Some(Pending::One(next));
            return None;
        };
        match waiting.join(&next) {
            Some(joined) => {
                *last = Some(joined);
                None
            }
            None => {
                *last = Some(Pending::One(next));
                Some(waiting.launch())
            }
        }
    }

    /// Takes a launch in, and returns whether it became one with the launch that waited.
    pub(super) fn joins(&mut self, next: Launch) -> bool {
        let waits = matches!(self, LaunchQueue::On(_, Some(_)));
        self.push(next).is_none() && waits
    }

    /// Takes the launch out that waits.
    fn take(&mut self) -> Option<Launch> {
        match self {
            LaunchQueue::Off => None,
            LaunchQueue::On(_, last) => last.take().map(Pending::launch),
        }
    }
}

impl Gpu {
    /// Starts kernel `name` of a module, or lets it wait for the next one ([`Gpu::joined`]). `args`
    /// must be what the kernel's source declares: only the functions of `launch`, which are made
    /// from the sources, call this.
    pub(super) fn launch(&self, (module, name): (&'static str, &str), grid: Grid, args: &[Arg]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let next = Launch { kernel: (module, name.to_owned()), grid, args: args.to_vec() };
        let ready = lock(&self.queue).push(next);
        ready.map_or(Ok(()), |launch| self.begin(&launch))
    }

    /// Runs `f`, and joins launches that follow each other in it where one kernel can do the work of
    /// both (`join.rs`): with the same results, bit for bit. What else `f` does on the work stream goes
    /// through this `Gpu`, in the order of its calls; events and waits come after it.
    ///
    /// # Errors
    /// If `f` fails, or the driver with what waited last.
    pub fn joined<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        // Where every step is waited for each is started, and where another thread's wait for each other.
        if self.sync || !lock(&self.queue).claim() {
            return f();
        }
        let done = f();
        let last = std::mem::take(&mut *lock(&self.queue)).take();
        let done = done?;
        last.map_or(Ok(()), |launch| self.begin(&launch))?;
        Ok(done)
    }

    /// Starts what waits.
    pub(super) fn flush(&self) -> Result<()> {
        let last = lock(&self.queue).take();
        last.map_or(Ok(()), |launch| self.begin(&launch))
    }
}

thread_local! {
    /// The kernels that this thread was asked to start without a device: the one that waits, and how many there were.
    static COUNTED: RefCell<(LaunchQueue, usize)> = RefCell::default();
}

/// Goes through `parts` of a walk, which start kernels without a device, and returns with each how many it would have
/// started on one: a launch that becomes one with that before it (`join.rs`) counts with that one.
pub fn count_launches<T>(parts: impl Iterator<Item = T>) -> Vec<(T, usize)> {
    COUNTED.set((LaunchQueue::on(), 0));
    let new = |part| (part, COUNTED.with_borrow_mut(|(_, n)| std::mem::take(n)));
    let counted = parts.map(new).collect();
    COUNTED.take();
    counted
}

/// Starts a kernel of a module; without a device it is only counted.
pub(super) fn start(gpu: Option<&Gpu>, kernel: (&'static str, &str), grid: Grid, args: &[Arg]) -> Result<()> {
    match gpu {
        Some(gpu) => gpu.launch(kernel, grid, args),
        None => {
            let launch = Launch { kernel: (kernel.0, kernel.1.to_owned()), grid, args: args.to_vec() };
            let new = |(queue, n): &mut (LaunchQueue, usize)| *n += usize::from(!queue.joins(launch));
            if !grid.blocks.contains(&0) {
                COUNTED.with_borrow_mut(new);
            }
            Ok(())
        }
    }
}
