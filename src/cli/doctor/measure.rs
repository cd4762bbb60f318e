//! What `tandem doctor` measures: memory's rate by threads, what other programs take, and the GPU.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::cpu::{Bandwidth, Host, Pool, Spent, best_threads};
use crate::cuda;
use crate::simd::{self, Isa};

/// For how long others are watched while nothing runs here.
const WATCH: Duration = Duration::from_millis(300);
/// Each number of threads is measured so often, in turns: others come and go.
const ROUNDS: usize = 3;

/// What was measured.
pub(super) struct Tested {
    /// GB/s by threads on cores of their own, rising.
    pub(super) by_threads: Vec<(usize, f64)>,
    /// The same with a thread on every logical CPU, where cores have several.
    pub(super) siblings: Option<(usize, f64)>,
    /// Shares of all CPUs' time that others used, and that a host took.
    pub(super) others: Option<(f64, f64)>,
    pub(super) isa: Isa,
    pub(super) detected: Isa,
    /// Whether this process may use matrix tiles, or why not.
    pub(super) tiles: Result<(), &'static str>,
    /// The GPU with the most memory.
    pub(super) gpu: GpuReport,
    /// The others: name, and bytes free and all.
    pub(super) more_gpus: Vec<NamedMemory>,
}

/// A GPU's name, and its memory: bytes free, and all.
pub(super) type NamedMemory = (String, Option<(usize, usize)>);

/// The GPU, or why there is none to use.
pub(super) enum GpuReport {
    None(String),
    There {
        name: String,
        /// Bytes free, and all.
        memory: Option<(usize, usize)>,
        /// Bytes per second over the bus, and of its memory.
        rates: Result<(f64, f64), String>,
        /// The version of the driver's kernel module.
        module: Option<String>,
        /// Why experts cannot be copied from a mapped file directly; None if they can.
        unpinnable: Option<String>,
    },
}

impl Tested {
    /// GB/s that threads on cores of their own reach at most.
    pub(super) fn best(&self) -> f64 {
        self.by_threads.iter().map(|x| x.1).fold(0.0, f64::max)
    }

    pub(super) fn measure(root: &Path, host: &Host) -> Result<Tested> {
        let before = Spent::now(root);
        std::thread::sleep(WATCH);
        let others = before.zip(Spent::now(root)).map(|(a, b)| b.since(&a));
        let n = best_threads();
        let mut counts: Vec<usize> = (0..).map(|i| 1 << i).take_while(|c| *c < n).collect();
        counts.push(n);
        // As many threads as logical CPUs of the same cores.
        let fast = host.topology.cpus.iter().filter(|c| c.allowed && !c.efficient).count();
        let with_siblings = (n == host.topology.cores(|c| c.allowed && !c.efficient) && fast > n).then_some(fast);
        let all: Vec<usize> = counts.iter().copied().chain(with_siblings).collect();
        let bandwidth = Bandwidth::default();
        let pools = all.iter().map(|n| Pool::new(*n)).collect::<Result<Vec<_>>>()?;
        let mut best = vec![0f64; pools.len()];
        for _ in 0..ROUNDS {
            for (best, pool) in best.iter_mut().zip(&pools) {
                *best = best.max(bandwidth.measure(pool));
            }
        }
        let (gpu, more_gpus) = gpus();
        let mut by_threads: Vec<(usize, f64)> = all.into_iter().zip(best).collect();
        let siblings = with_siblings.and_then(|_| by_threads.pop());
        let (isa, detected, tiles) = (simd::isa(), simd::detected(), simd::tiles::usable());
        Ok(Tested { by_threads, siblings, others, isa, detected, tiles, gpu, more_gpus })
    }
}

/// The GPU with the most memory, the first of equals, and what is known of the others.
fn gpus() -> (GpuReport, Vec<NamedMemory>) {
    let mut all = match cuda::Gpu::open_all(None) {
        Err(why) => return (GpuReport::None(format!("{why:#}")), Vec::new()),
        Ok(all) => all,
    };
    let size = |gpu: &cuda::Gpu| gpu.memory().map_or(0, |m| m.1);
    let best = (0..all.len()).rev().max_by_key(|i| size(&all[*i])).expect("one at least");
    let gpu = all.remove(best);
    let report = GpuReport::There {
        name: format!("{gpu:?}"),
        memory: gpu.memory().ok(),
        rates: gpu.enter().and_then(|()| gpu.rates()).map_err(|e| format!("{e:#}")),
        module: gpu.kernel_module.clone(),
        unpinnable: gpu.pin_mode(cuda::HostMemory::Mapped).err(),
    };
    (report, all.iter().map(|gpu| (format!("{gpu:?}"), gpu.memory().ok())).collect())
}
