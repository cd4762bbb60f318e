//! How fast a model will decode, and what limits it: for `explain` before it is loaded, for
//! `--stats` next to the measured rate.
//!
//! ```text
//! ceiling   = 1 / (the walk of the plan, of the CPU bytes / memory's rate alone)
//! expected  = 1 / (the walk of the plan with the CPU as it was measured + others + sampling)
//! the CPU   = reading + kernels + attention + steps:
//!     reading     bytes / what the threads read of a buffer as large as the weights
//!     kernels     what the formats' kernels take longer than reading, measured on such a buffer
//!     attention   as walked, at the asked depth
//!     steps       what is left: threads that meet, norms, routing, quantized activations, pieces too small to share
//! others    = how much longer the walks took in the mean than in the median: other programs' turns on the cores
//! ```
//! What the GPU adds comes from `plan/cost.rs`: kernels started, bytes and products, copies, and what
//! both sides wait for each other. Where they work at the same time, the CPU's time counts, and of
//! the GPU's what it takes longer. As many experts are cached as there are slots, as if they were
//! chosen evenly.

mod prompt;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cpu::{Bandwidth, Memory, Pool, Topology};
use crate::cuda::Gpu;
use crate::exec::{Profile, SyntheticRun};
use crate::plan::cost::{HardwareRates, WalkShape, WalkTime};
use crate::plan::{self, Plan};
use crate::sample::{Params, Sampler};
use crate::tape::{ExpertShare, Step, Tape, WeightKind};

pub(super) use prompt::PromptSpeed;

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bandwidths {
    /// From memory; None until it is measured.
    pub(super) ram: Option<f64>,
    /// From the GPU's memory.
    pub(super) vram: f64,
    /// Between the two.
    pub(super) bus: f64,
    /// Seconds of a small kernel in a graph, and started by itself.
    pub(super) launch: (f64, f64),
}

impl Bandwidths {
    /// Assumed for a machine that cannot be measured: a mid-range card, PCIe 4.0 with 16 lanes.
    const ASSUMED: Bandwidths = Bandwidths { ram: None, vram: 500e9, bus: 22e9, launch: HardwareRates::LAUNCH };

    /// As measured on the GPU, if there is one that can be measured, else assumed.
    pub(super) fn of_gpu(gpu: Option<&Gpu>) -> Bandwidths {
        gpu.and_then(|gpu| Bandwidths::measured(gpu).ok()).unwrap_or(Bandwidths::ASSUMED)
    }

    /// As measured on a GPU.
    ///
    /// # Errors
    /// If there is no memory for it, or the driver reports an error.
    pub(super) fn measured(gpu: &Gpu) -> Result<Bandwidths> {
        gpu.enter()?;
        let ((bus, vram), launch) = (gpu.rates()?, gpu.launch_seconds()?);
        Ok(Bandwidths { ram: None, vram, bus, launch })
    }

    /// With memory's rate.
    fn with_ram(self, ram: f64) -> HardwareRates {
        HardwareRates { ram, vram: self.vram, bus: self.bus, launch: self.launch }
    }
}

/// A usual card, for a GPU of which nothing but the memory is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Card {
    /// The free memory from which a GPU is taken to be this one.
    from: usize,
    pub(super) name: &'static str,
    /// Bytes per second: the published rate of its memory, and what copies over its bus reach.
    vram: f64,
    bus: f64,
}

/// The slowest card that many have of each size: PCIe 4.0 with 8 lanes, with 16 (5.0 with 8), 5.0 with 16.
const CARDS: [Card; 5] = [
    Card { from: 0, name: "RTX 4060", vram: 272e9, bus: 12e9 },
    Card { from: 10 << 30, name: "RTX 3060", vram: 360e9, bus: 24e9 },
    Card { from: 14 << 30, name: "RTX 5060 Ti", vram: 448e9, bus: 24e9 },
    Card { from: 20 << 30, name: "RTX 3090", vram: 936e9, bus: 24e9 },
    Card { from: 28 << 30, name: "RTX 5090", vram: 1792e9, bus: 50e9 },
];

impl Card {
    /// Its rates.
    pub(super) fn rates(self) -> Bandwidths {
        Bandwidths { vram: self.vram, bus: self.bus, ..Bandwidths::ASSUMED }
    }

    /// The card that a GPU with this much free memory is taken for.
    pub(super) fn of(free: usize) -> Card {
        *CARDS.iter().rfind(|c| c.from <= free).expect("the first has no bound")
    }
}

/// What this machine's CPU does with a tape.
#[derive(Clone, Debug)]
pub(super) struct CpuProfile {
    pub(super) threads: usize,
    /// Bytes per second that the threads read of a buffer as large as the weights.
    pub(super) ram: f64,
    /// Bytes of that buffer.
    pub(super) buffer: usize,
    /// Bytes per second that the kernels of each format reach on such a buffer.
    pub(super) formats: BTreeMap<&'static str, f64>,
    pub(super) walked: Profile,
    /// Seconds to choose a token from its logits.
    pub(super) sampling: f64,
}

/// Bytes that no cache holds, on a machine whose caches are not known.
const LARGE: usize = 256 << 20;
/// For how long tokens are walked.
const WALK: Duration = Duration::from_millis(500);

/// Bytes that stand for memory in a measurement, on a machine with this much of it free: more than
/// its caches hold.
fn room(free: usize) -> usize {
    LARGE.max(4 * Topology::read(Path::new("/")).cache).min(free / 4)
}

/// A buffer whose rate is the roof over decoding weights of this many bytes: as large as they are, so
/// that weights which the caches hold are compared with reading from these.
pub(super) fn roof(weights: usize, pool: &Pool) -> Bandwidth {
    let free = Memory::of_this_machine().map_or(usize::MAX, |m| m.free);
    Bandwidth::of(weights.min(room(free)), pool)
}

/// Bytes for random weights, if the states of `depth` tokens fit as well; else why not.
fn room_for(tape: &Tape, depth: usize, n_batch: usize) -> Result<usize, String> {
    let free = Memory::of_this_machine().map_or(usize::MAX, |m| m.free);
    let states = tape.states.iter().fold(0usize, |sum, s| sum.saturating_add(s.bytes(depth, n_batch)));
    if states > free / 2 {
        let gb = |n: usize| n as f64 / 1e9;
        let (has, needs) = (gb(free), gb(states));
        return Err(format!("a context of {depth} tokens needs {needs:.1} GB to measure, and {has:.1} GB are free"));
    }
    Ok(room(free))
}

/// Seconds of each step that the CPU does for a batch of `n` tokens of a prompt that comes after
/// `depth` tokens; None for the GPU's. Takes one to two seconds.
pub(super) fn measure_prompt(
    tape: &Tape,
    plan: &Plan,
    pool: &Pool,
    (depth, n): (usize, usize),
) -> Result<Vec<Option<f64>>, String> {
    let room = room_for(tape, depth.saturating_add(n), n)?;
    Ok(SyntheticRun::new(tape, &plan.places, pool, depth, room).prompt(n))
}

/// Walks the CPU's part of a tape with `depth` tokens in the context, or says why it cannot be
/// done. Takes about a second.
pub(super) fn measure(tape: &Tape, plan: &Plan, pool: &Pool, depth: usize) -> Result<CpuProfile, String> {
    let room = room_for(tape, depth, 1)?;
    let rehearsal = SyntheticRun::new(tape, &plan.places, pool, depth, room);
    let buffer = rehearsal.bytes().min(room);
    let bandwidth = Bandwidth::of(buffer, pool);
    let before = bandwidth.measure(pool);
    let walked = rehearsal.walk(WALK);
    let names = tape.weights.iter().filter(|w| w.kind == WeightKind::Matrix).map(|w| w.format());
    let mut formats: BTreeMap<&'static str, f64> = BTreeMap::new();
    for name in names {
        if !formats.contains_key(name)
            && let Some(rate) = rehearsal.rate(name)
        {
            formats.insert(name, rate * 1e9);
        }
    }
    let mut sampler = Sampler::new(Params::default(), 1, Vec::new());
    let pick = |_| {
        let start = Instant::now();
        std::hint::black_box(sampler.pick(&walked.logits, None));
        start.elapsed().as_secs_f64()
    };
    let sampling = (0..5).map(pick).fold(f64::MAX, f64::min);
    // Other programs come and go: the better of two measurements counts.
    let ram = before.max(bandwidth.measure(pool)) * 1e9;
    Ok(CpuProfile { threads: pool.threads(), ram, buffer, formats, walked, sampling })
}

/// What a token's time goes into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Limit {
    /// Reading weights from memory.
    Memory,
    /// The kernels of a format.
    Kernels(&'static str),
    /// Attention over the context.
    Attention,
    /// The fixed cost of every step.
    Steps,
    /// Other programs.
    Others,
    /// Reading and computing on the GPU.
    Gpu,
    /// Starting kernels on the GPU.
    Launches,
    /// Copies between the two, and waiting for them.
    Bus,
    /// Choosing the token.
    Sampling,
}

impl Limit {
    pub(super) fn word(self) -> &'static str {
        match self {
            Limit::Memory => "memory",
            Limit::Kernels(_) => "kernels",
            Limit::Attention => "attention",
            Limit::Steps => "steps",
            Limit::Others => "others",
            Limit::Gpu => "gpu",
            Limit::Launches => "launches",
            Limit::Bus => "bus",
            Limit::Sampling => "sampling",
        }
    }
}

/// What is predicted.
#[derive(Clone, Debug)]
pub(super) struct Prediction {
    /// Tokens per second if the CPU did nothing but read its weights.
    pub(super) ceiling: f64,
    /// Tokens per second to expect; None where the CPU's share could not be measured.
    pub(super) expected: Option<f64>,
    /// Seconds of a token by what they go into; with the rates alone, those of the ceiling.
    pub(super) parts: Vec<(Limit, f64)>,
    /// Kernels and copies that a token starts on a GPU.
    pub(super) started: usize,
    /// Bytes per second from memory.
    pub(super) ram: f64,
    /// Bytes that a token reads from the CPU's memory.
    pub(super) cpu_bytes: f64,
    /// Of `cpu_bytes`, the bytes by format.
    pub(super) formats: BTreeMap<&'static str, f64>,
}

impl Prediction {
    /// From the rates alone, or with what was measured, for a token that comes after `depth` others. `rates.ram` counts
    /// where it is given.
    pub(super) fn new(
        tape: &Tape,
        plan: &Plan,
        depth: usize,
        rates: Bandwidths,
        measured: Option<&CpuProfile>,
    ) -> Prediction {
        let ram = rates.ram.or(measured.map(|m| m.ram)).unwrap_or(f64::INFINITY);
        let (at, rates) = (WalkShape { rows: 1, seen: depth + 1, follow: None }, rates.with_ram(ram));
        let reading = |i: usize| tape.step_bytes(&tape.steps[i]) as f64 / ram;
        let least = WalkTime::of(tape, plan, at, rates, &reading);
        let (ceiling, started) = (1.0 / least.whole.max(1e-9), least.started);
        let mut formats: BTreeMap<&'static str, f64> = BTreeMap::new();
        for (i, step) in tape.model().iter().enumerate().filter(|(i, _)| !plan.places[*i].is_gpu()) {
            by_format(tape, step, tape.step_bytes(step) as f64 * (1.0 - cached(tape, plan, i)), &mut formats);
        }
        let cpu_bytes = formats.values().sum();
        let Some(m) = measured else {
            let mut parts = vec![(Limit::Memory, least.cpu)];
            parts.extend(on_gpu(&least));
            parts.retain(|p| p.1 > 0.0);
            return Prediction { ceiling, expected: None, parts, started, ram, cpu_bytes, formats };
        };
        let took = |i: usize| m.walked.steps[i].unwrap_or_else(|| reading(i));
        let time = WalkTime::of(tape, plan, at, rates, &took);
        let between: f64 = m.walked.token - m.walked.steps.iter().flatten().sum::<f64>();
        let walked = time.cpu + between.max(0.0);
        // Other programs slow down what is done here, which may be less than was walked.
        let others = (m.walked.mean / m.walked.token.max(1e-12) - 1.0).max(0.0) * walked;
        let mut parts = vec![(Limit::Memory, cpu_bytes / ram)];
        for (name, bytes) in &formats {
            let rate = m.formats.get(name).copied().unwrap_or(ram);
            parts.push((Limit::Kernels(name), (bytes / rate - bytes / ram).max(0.0)));
        }
        let attends = |(i, step): (usize, &Step)| {
            let here = !plan.places[i].is_gpu() && step.op.name() == "attend";
            here.then(|| took(i))
        };
        parts.push((Limit::Attention, tape.model().iter().enumerate().filter_map(attends).sum()));
        // A walk in a quiet moment may be quicker than the sum of what was measured in others.
        let known: f64 = parts.iter().map(|p| p.1).sum();
        let scale = (walked / known.max(1e-12)).min(1.0);
        parts.iter_mut().for_each(|p| p.1 *= scale);
        parts.push((Limit::Steps, (walked - known).max(0.0)));
        parts.push((Limit::Others, others));
        parts.extend(on_gpu(&time));
        parts.push((Limit::Sampling, m.sampling));
        parts.retain(|p| p.1 > 0.0);
        let expected = Some(1.0 / parts.iter().map(|p| p.1).sum::<f64>().max(1e-9));
        Prediction { ceiling, expected, parts, started, ram, cpu_bytes, formats }
    }

    /// The largest part.
    pub(super) fn limit(&self) -> Limit {
        self.parts.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(Limit::Memory, |p| p.0)
    }

    /// What limits it and what would help, in words.
    pub(super) fn limit_words(&self, steps: usize, measured: Option<&CpuProfile>) -> String {
        let ram = self.ram / 1e9;
        match self.limit() {
            Limit::Memory => format!(
                "memory bandwidth ({ram:.1} GB/s): faster memory or fewer bits per weight help, more threads do not"
            ),
            Limit::Kernels(name) => {
                let rate = measured.and_then(|m| m.formats.get(name)).map_or(0.0, |r| r / 1e9);
                format!("the {name} kernels: {rate:.1} GB/s where memory gives {ram:.1}; more cores help")
            }
            Limit::Attention => "attention over the context: a shorter context helps".into(),
            Limit::Steps => format!(
                "the fixed cost of {steps} steps (thread synchronization, norms, routing): the model is small for this machine"
            ),
            Limit::Others => "other programs on the same cores: stop them, or leave them cores with -t".into(),
            Limit::Gpu => "GPU memory bandwidth".into(),
            Limit::Launches => format!("launching {} kernels and copies on the GPU", self.started),
            Limit::Bus => "what CPU and GPU copy and wait for each other".into(),
            Limit::Sampling => "sampling from the vocabulary".into(),
        }
    }

    /// What limits it, in a few words.
    pub(super) fn limit_in_short(&self, steps: usize) -> String {
        match self.limit() {
            Limit::Memory => format!("memory bandwidth, {:.1} GB/s", self.ram / 1e9),
            Limit::Kernels(name) => format!("the {name} kernels"),
            Limit::Attention => "attention over the context".into(),
            Limit::Steps => format!("the fixed cost of {steps} steps"),
            Limit::Others => "other programs on the cores".into(),
            Limit::Gpu => "GPU memory bandwidth".into(),
            Limit::Launches => format!("{} launches", self.started),
            Limit::Bus => "copies between CPU and GPU".into(),
            Limit::Sampling => "sampling".into(),
        }
    }

    /// Tokens per second without choosing them, as a bench counts them.
    pub(super) fn decode(&self) -> Option<f64> {
        self.expected?;
        let seconds: f64 = self.parts.iter().filter(|p| p.0 != Limit::Sampling).map(|p| p.1).sum();
        Some(1.0 / seconds.max(1e-9))
    }
}

/// What a walk takes beyond the CPU's time, shared out in proportion to what the GPU and the bus are busy with.
fn on_gpu(time: &WalkTime) -> [(Limit, f64); 3] {
    let busy = [(Limit::Gpu, time.gpu), (Limit::Launches, time.launches), (Limit::Bus, time.bus)];
    let all: f64 = busy.iter().map(|p| p.1).sum();
    let rest = (time.whole - time.cpu).max(0.0) / all.max(1e-12);
    busy.map(|(limit, seconds)| (limit, seconds * rest))
}

/// The share of a step's experts that the GPU has.
fn cached(tape: &Tape, plan: &Plan, i: usize) -> f64 {
    let step = &tape.steps[i];
    match step.share {
        // The GPU's share comes next.
        ExpertShare::OnCpu => {
            (plan.cache(plan.places[i + 1]).slots as f64 / plan::experts_of(tape, step) as f64).min(1.0)
        }
        _ => 0.0,
    }
}

/// Adds a step's bytes to those of its weights' formats, in proportion.
fn by_format(tape: &Tape, step: &Step, bytes: f64, to: &mut BTreeMap<&'static str, f64>) {
    let weights = || step.weights.iter().map(|w| &tape.weights[w.0 as usize]);
    let all = weights().map(|w| w.bytes).sum::<usize>().max(1) as f64;
    for w in weights() {
        *to.entry(w.format()).or_default() += bytes * w.bytes as f64 / all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::plan::Place;
    use crate::plan::{Ask, CacheSize, fit};
    use crate::session::{self, Options};

    /// The small reference model, all on the CPU, or with a GPU that has `vram` bytes.
    fn placed(vram: Option<usize>) -> plan::Fit {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/qwen3moe.gguf");
        let gguf = Gguf::open(&path).unwrap();
        let options = Options { n_ctx: Some(256), n_batch: 8, ..Options::default() };
        let (tape, shape) = (session::tape(&gguf, &options).unwrap(), session::shape(&gguf, &options).unwrap());
        let ask = Ask { cpu_moe: vram.map(|_| usize::MAX), cache: CacheSize::Off, ..Ask::default() };
        fit(tape, &ask, vram.as_slice(), shape).unwrap()
    }

    /// Each step takes `step` seconds, a token 1 ms more than all steps.
    fn measured(tape: &Tape, step: f64, ram: f64, format: f64) -> CpuProfile {
        let steps: Vec<Option<f64>> = tape.steps.iter().map(|_| Some(step)).collect();
        let token = step * steps.len() as f64 + 1e-3;
        CpuProfile {
            threads: 2,
            ram,
            buffer: 1 << 20,
            formats: tape.weights.iter().map(|w| (w.format(), format)).collect(),
            walked: Profile { token, mean: token + 0.5e-3, steps, logits: Vec::new() },
            sampling: 2e-3,
        }
    }

    #[test]
    fn the_ceiling_is_the_rate_over_the_bytes_and_the_walk_is_what_to_expect() {
        let p = placed(None);
        let n = p.tape.steps.len() as f64;
        let bytes = p.tape.bytes_per_token() as f64;
        let m = measured(&p.tape, 1e-3, 100.0 * bytes, 100.0 * bytes);
        assert!((m.walked.token - (n * 1e-3 + 1e-3)).abs() < 1e-9);
        let got = Prediction::new(&p.tape, &p.plan, 0, Bandwidths::ASSUMED, Some(&m));
        assert!((got.ceiling - 100.0).abs() < 1e-6, "{got:?}");
        // The walk with what others took of it, and 2 ms of sampling.
        assert!((1.0 / got.expected.unwrap() - (n * 1e-3 + 3.5e-3)).abs() < 1e-9, "{got:?}");
        assert!((1.0 / got.decode().unwrap() - (n * 1e-3 + 1.5e-3)).abs() < 1e-9);
        let sum: f64 = got.parts.iter().map(|p| p.1).sum();
        assert!((sum - 1.0 / got.expected.unwrap()).abs() < 1e-9, "the parts are the whole: {got:?}");
        assert!((got.cpu_bytes - bytes).abs() < 1.0);
    }

    #[test]
    fn what_takes_most_of_a_token_is_what_limits_it() {
        let p = placed(None);
        let (n, bytes) = (p.tape.steps.len() as f64, p.tape.bytes_per_token() as f64);
        let limit = |step: f64, ram: f64, format: f64| {
            let m = measured(&p.tape, step / n, bytes / ram, bytes / format);
            Prediction::new(&p.tape, &p.plan, 0, Bandwidths::ASSUMED, Some(&m)).limit()
        };
        // Seconds of a token: as walked, to read, in the kernels.
        assert_eq!(limit(1.0, 0.9, 0.9), Limit::Memory);
        assert_eq!(limit(1.0, 0.2, 0.9), Limit::Kernels("F32"));
        assert_eq!(limit(1.0, 0.1, 0.1), Limit::Steps);
        assert_eq!(limit(0.5, 0.9, 0.9), Limit::Memory, "a walk in a quieter moment");
    }

    #[test]
    fn what_is_on_a_gpu_is_counted_at_its_rate() {
        let p = placed(Some(1 << 30));
        assert!(p.plan.on_gpu());
        let at = |place: Place| {
            let steps = p.tape.steps.iter().zip(&p.plan.places).filter(|(_, x)| **x == place);
            steps.map(|(s, _)| p.tape.step_bytes(s)).sum::<usize>() as f64
        };
        // On a slow GPU reading is all that counts; on a fast one what is started there does.
        let seconds = |ram: f64, vram: f64| {
            let rates = Bandwidths { ram: Some(ram), vram, bus: 1e12, ..Bandwidths::ASSUMED };
            let got = Prediction::new(&p.tape, &p.plan, 0, rates, None);
            assert!(got.expected.is_none() && got.started > 0, "{got:?}");
            let sum: f64 = got.parts.iter().map(|p| p.1).sum();
            assert!((sum * got.ceiling - 1.0).abs() < 1e-9, "the parts are the whole: {got:?}");
            (1.0 / got.ceiling, got)
        };
        let (slow, _) = seconds(10e6, 40e6);
        let least = at(Place::Cpu) / 10e6 + at(Place::Gpu(0)) / 40e6;
        assert!((1.0..1.3).contains(&(slow / least)), "{slow} s, {least} of reading");
        let (fast, got) = seconds(1e15, 1e15);
        assert!(fast > got.started as f64 * 2e-6 && got.limit() == Limit::Launches, "{got:?}");
        assert!(at(Place::Gpu(0)) > 0.0 && at(Place::Cpu) > 0.0);
    }

    #[test]
    fn a_larger_card_is_never_taken_for_a_slower_one() {
        assert!(CARDS.is_sorted_by(|a, b| a.from < b.from && a.vram <= b.vram && a.bus <= b.bus));
        assert_eq!(Card::of(12 << 30).name, "RTX 3060");
        assert_eq!(Card::of(24 << 30).name, "RTX 3090");
        assert_eq!(Card::of(0).name, "RTX 4060");
    }

    #[test]
    fn a_model_is_measured_in_the_memory_that_there_is() {
        let p = placed(None);
        let pool = Pool::new(1).unwrap();
        let m = measure(&p.tape, &p.plan, &pool, 10).unwrap();
        assert!(m.ram > 0.0 && m.sampling > 0.0 && m.walked.token > 0.0 && m.formats["F32"] > 0.0);
        assert!(m.buffer <= p.tape.weights.iter().map(|w| w.bytes).sum());
        assert!(measure(&p.tape, &p.plan, &pool, usize::MAX / 1_000_000).unwrap_err().contains("GB are free"));
    }
}
