//! What a walk of a plan takes: a clock for the CPU and one for the GPU, which wait for each other where the stages do.
//!
//! ```text
//! a step on the GPU   kernels * seconds of a launch + the larger of bytes / its memory's rate and products / its rate
//! a step on the CPU   as measured, or the larger of bytes / memory's rate and products / (CPU_PRODUCTS * that rate)
//! a copy              a launch + bytes / the bus's rate; who reads it waits for it, the others go on
//! a recurrence        CHAIN for each row besides, since its tokens come one after the other
//! ```
//! Of an expert layer at two places the GPU takes the experts in slots. While a prompt is read, some of the others stream
//! through the ring, as many as let both sides end earliest: the rule of `exec/cache.rs`, which has all three regimes (none,
//! some, all). All experts are taken to be chosen alike, which is the worst for a cache.
//!
//! Several GPUs have one clock, at the rates of the first: for a token they take turns. (That a prompt's next batch begins on
//! the first while the last is still busy with the one before is left out.)
//!
//! Never held against a real GPU: the constants below are estimates, to be replaced by what devices measure.

use super::{Cache, Place, Plan, PlanStage, expert_bytes, experts_of};
use crate::cuda::SMALL;
use crate::tape::{ExpertShare, RowSet, Slot, StateKind, Step, Tape, WeightKind};

/// Multiply-adds of a CPU for each byte that it could read of memory, where it was not measured.
/// Published rates of prompts come to 7 (llama.cpp, Ryzen 7950X), 8 (KTransformers, Xeon 6454S), 21
/// (ik_llama.cpp, EPYC 9V45) and 22 (ik_llama.cpp, Ryzen 7950X).
pub const CPU_PRODUCTS: f64 = 12.0;
/// Multiply-adds of a GPU for each byte that it could read of its memory. The kernels issue some 30 instructions for an
/// IMMA of 4,096 multiply-adds (counted in ptxas's output), so four schedulers do 546 a clock and multiprocessor: 25e12 a
/// second on an RTX 3060 (70 for each byte), 76e12 on a 3090 (81), 220e12 on a 5090 (124), if every cycle issued; kernels
/// of this kind issue in half of them or less.
const GPU_PRODUCTS: f64 = 40.0;
/// What a multiply-add of attention costs in such of matrices: 64 HMMA of 2,048 in some 3,800 instructions.
const ATTENTION: f64 = 4.0;
/// The share of its memory's rate that kernels of a GPU reach: matrix-vector products of llama.cpp reach 75 to 90%.
const VRAM_SHARE: f64 = 0.85;
/// Seconds from the host's call until a graph or a first kernel begins.
const START: f64 = 8e-6;
/// Seconds until the host sees that a copy has arrived.
const WAKE: f64 = 5e-6;
/// Seconds of a token in a recurrence on a GPU: about 1,000 clocks of loads, two barriers and four shuffles, each of which
/// waits for the one before it.
const CHAIN: f64 = 0.5e-6;

/// What a machine does: bytes per second, and seconds of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HardwareRates {
    /// From the CPU's memory.
    pub ram: f64,
    /// From the GPU's memory.
    pub vram: f64,
    /// Between the two.
    pub bus: f64,
    /// Seconds that a small kernel takes by itself in a graph, and started one by one.
    pub launch: (f64, f64),
}

impl HardwareRates {
    /// Assumed where [`Gpu::launch_seconds`](crate::cuda::Gpu::launch_seconds) could not measure it. NVIDIA's "Getting
    /// Started with CUDA Graphs" has 3.4 and 3.8 microseconds for kernels of 2.9 (V100); today's devices take less in a
    /// graph, and a stage that is started kernel by kernel is fed by a host that also computes.
    pub const LAUNCH: (f64, f64) = (2.5e-6, 5e-6);

    /// A usual machine: DDR5 in two channels, a large card of recent years, PCIe 4.0 with 16 lanes.
    pub const USUAL: HardwareRates = HardwareRates { ram: 80e9, vram: 900e9, bus: 25e9, launch: HardwareRates::LAUNCH };
}

/// The rows of a walk, and the tokens that each has in sight on average.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkShape {
    /// Rows: 1 for decode.
    pub rows: usize,
    /// Tokens in sight.
    pub seen: usize,
    /// Of a part of a prompt: how many of its tokens follow, so that rows may be left out; see [`RowSet::Last`].
    pub follow: Option<usize>,
}

impl WalkShape {
    /// Rows that a value of this set has where the last row alone wants logits.
    pub fn count(&self, set: RowSet) -> usize {
        match set {
            RowSet::All => self.rows,
            RowSet::Output => 1,
            RowSet::Argmax => 0,
            RowSet::Others => self.rows - 1,
            RowSet::Last(reach) => {
                let left_out = self.follow.map_or(0, |n| (self.rows + n).saturating_sub(reach + 1));
                self.rows.saturating_sub(left_out)
            }
        }
    }
}

impl WalkShape {
    /// Rows that a step is given.
    pub fn rows_of(&self, tape: &Tape, step: &Step) -> usize {
        match step.last {
            Some(reach) => self.count(RowSet::Last(reach)),
            None => step.ins.first().map_or(self.rows, |x| self.count(tape.slots[x.0 as usize].rows)),
        }
    }
}

/// What a step costs wherever it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepCost {
    /// Bytes of weights and states that are read at least once.
    pub bytes: f64,
    /// Multiply-adds with weights.
    pub products: f64,
    /// Multiply-adds with cached rows.
    pub attention: f64,
}

impl StepCost {
    /// Of all of its experts, whichever its share is.
    pub fn of(tape: &Tape, step: &Step, at: WalkShape) -> StepCost {
        let n = at.rows_of(tape, step) as f64;
        if n == 0.0 {
            return StepCost::default();
        }
        let weights: Vec<_> = step.weights.iter().map(|w| &tape.weights[w.0 as usize]).collect();
        let all: usize = weights.iter().map(|w| w.bytes).sum();
        // Of the bytes, those that one token reads: fewer where it goes to some experts, or looks rows up.
        let share = (step.op.bytes_per_token(&weights) as f64 / all.max(1) as f64).min(1.0);
        let read = 1.0 - (1.0 - share).powf(n);
        let matrices = weights.iter().filter(|w| w.kind == WeightKind::Matrix);
        let products = matrices.map(|w| w.count() as f64).sum::<f64>() * share * n;
        let seen = step.op.rows_seen(at.seen) as f64;
        let mut bytes = all as f64 * read;
        let states = || step.states.iter().map(|s| &tape.states[s.0 as usize]);
        let first = states().next().map(|s| &s.kind);
        for s in states() {
            match s.kind {
                StateKind::Fixed => bytes += 2.0 * s.ty.row_bytes(s.width) as f64, // read and written
                StateKind::Rows { .. } if Some(&s.kind) == first => bytes += seen * s.ty.row_bytes(s.width) as f64,
                StateKind::Rows { .. } => {} // of a second cache, whose rows are among those seen
            }
        }
        // Queries meet keys, and what comes of it, in attention, values of about the same width.
        let queries = step.ins.first().map_or(0, |x| tape.width(*x)) as f64;
        let both = if step.op.name() == "attend" { 2.0 } else { 1.0 };
        StepCost { bytes, products, attention: n * seen * queries * both }
    }

    /// Seconds on a CPU whose memory gives `ram` bytes per second.
    pub fn on_cpu(&self, ram: f64) -> f64 {
        (self.bytes / ram).max((self.products + self.attention) / (CPU_PRODUCTS * ram))
    }

    /// Seconds on a GPU whose memory gives `vram` bytes per second, of which the step reads and writes `more` besides.
    fn on_gpu(&self, vram: f64, more: f64) -> f64 {
        let products = self.products + ATTENTION * self.attention;
        ((self.bytes + more) / (VRAM_SHARE * vram)).max(products / (GPU_PRODUCTS * vram))
    }
}

/// How long a walk takes, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WalkTime {
    /// From its begin to its end.
    pub whole: f64,
    /// In which the CPU computes.
    pub cpu: f64,
    /// In which the GPU computes, without launches.
    pub gpu: f64,
    /// That launches take.
    pub launches: f64,
    /// In which the bus is busy.
    pub bus: f64,
    /// Kernels and copies that were started on the GPU.
    pub started: usize,
}

impl std::ops::Add for WalkTime {
    type Output = WalkTime;

    fn add(self, o: WalkTime) -> WalkTime {
        WalkTime {
            whole: self.whole + o.whole,
            cpu: self.cpu + o.cpu,
            gpu: self.gpu + o.gpu,
            launches: self.launches + o.launches,
            bus: self.bus + o.bus,
            started: self.started + o.started,
        }
    }
}

impl std::ops::Div<f64> for WalkTime {
    type Output = WalkTime;

    fn div(self, n: f64) -> WalkTime {
        WalkTime {
            whole: self.whole / n,
            cpu: self.cpu / n,
            gpu: self.gpu / n,
            launches: self.launches / n,
            bus: self.bus / n,
            started: (self.started as f64 / n) as usize,
        }
    }
}

/// The clocks of both sides.
struct Clocks<'a> {
    tape: &'a Tape,
    plan: &'a Plan,
    at: WalkShape,
    rates: HardwareRates,
    on_cpu: &'a dyn Fn(usize) -> f64,
    cpu: f64,
    gpu: f64,
    /// Until when the ring's copies go.
    bus: f64,
    /// Whether the GPU goes on without the host.
    running: bool,
    /// When a value that was sent down arrives.
    arrives: Vec<f64>,
    /// Small copies that the last kernel makes.
    copies: usize,
    sum: WalkTime,
}

impl WalkTime {
    /// Of a plan at these rates. `on_cpu`: seconds of a step there, by its number, with all of its experts.
    pub fn of(
        tape: &Tape,
        plan: &Plan,
        at: WalkShape,
        rates: HardwareRates,
        on_cpu: &dyn Fn(usize) -> f64,
    ) -> WalkTime {
        let arrives = vec![0.0; tape.slots.len()];
        let (cpu, gpu, bus, running, copies, sum) = (0.0, 0.0, 0.0, false, 0, WalkTime::default());
        let mut clocks = Clocks { tape, plan, at, rates, on_cpu, cpu, gpu, bus, running, arrives, copies, sum };
        // The model's alone, without draft heads.
        for stage in &plan.stages[plan.parts[0].clone()] {
            if let PlanStage::Run(..) = stage {
                clocks.copies = 0;
            }
            match stage {
                PlanStage::Run(Place::Gpu(_), steps) => {
                    clocks.start();
                    steps.clone().for_each(|i| clocks.gpu_step(i));
                }
                PlanStage::Run(_, steps) => {
                    clocks.running = false;
                    steps.clone().for_each(|i| clocks.cpu_step(i));
                }
                PlanStage::Copy(x, from, to) if from.is_gpu() || to.is_gpu() => clocks.copy(*x, *to),
                PlanStage::Copy(..) => {}
            }
        }
        let sent = clocks.arrives.iter().copied().fold(0.0, f64::max);
        WalkTime { whole: clocks.cpu.max(clocks.gpu).max(sent), ..clocks.sum }
    }

    /// Of a plan on a machine that was not measured.
    pub fn assumed(tape: &Tape, plan: &Plan, at: WalkShape, rates: HardwareRates) -> WalkTime {
        let on_cpu = |i: usize| StepCost::of(tape, &tape.steps[i], at).on_cpu(rates.ram);
        WalkTime::of(tape, plan, at, rates, &on_cpu)
    }
}

impl Clocks<'_> {
    /// The GPU's next stage is started: by the host, which has done what came before it.
    fn start(&mut self) {
        if !std::mem::replace(&mut self.running, true) {
            self.gpu = self.gpu.max(self.cpu + START);
        }
    }

    /// Seconds of so many launches.
    fn launches(&mut self, n: usize) -> f64 {
        let (graph, single) = self.rates.launch;
        let seconds = n as f64 * if self.at.rows == 1 { graph } else { single };
        self.sum.started += n;
        self.sum.launches += seconds;
        seconds
    }

    /// Kernels that a step starts, but for what the kernels of the step before do.
    fn kernels(&self, i: usize) -> usize {
        let starts = self.plan.starts.get(i).copied().unwrap_or_default();
        if self.at.rows == 1 { starts.single } else { starts.batch }
    }

    /// Seconds of a step on the GPU without launches, of all of its experts.
    fn gpu_seconds(&self, i: usize) -> f64 {
        let (tape, step) = (self.tape, &self.tape.steps[i]);
        let values = step.ins.iter().chain(&step.outs).map(|x| {
            let info = tape.slots[x.0 as usize];
            self.at.count(info.rows) * info.width * 4
        });
        let scratch = self.plan.starts.get(i).map_or(0, |s| s.scratch_bytes);
        let inside = if self.at.rows == 1 { 0 } else { 2 * scratch }; // written and read
        let more = (values.sum::<usize>() + inside) as f64;
        let fixed = step.states.iter().any(|s| tape.states[s.0 as usize].kind == StateKind::Fixed);
        let chain = if fixed { CHAIN * self.at.rows as f64 } else { 0.0 };
        StepCost::of(tape, step, self.at).on_gpu(self.rates.vram, more).max(chain)
    }

    fn gpu_step(&mut self, i: usize) {
        let step = &self.tape.steps[i];
        let none = |x: &Slot| self.at.count(self.tape.slots[x.0 as usize].rows) == 0;
        if step.outs.iter().any(none) || self.at.rows_of(self.tape, step) == 0 {
            return;
        }
        let share = match step.share {
            ExpertShare::OnGpu => {
                let n = experts_of(self.tape, step);
                self.plan.cache(self.plan.places[i]).slots.min(n) as f64 / n as f64
            }
            _ => 1.0,
        };
        let work = share * self.gpu_seconds(i);
        self.sum.gpu += work;
        let kernels = if share > 0.0 { self.kernels(i) } else { 1 }; // zeros
        self.gpu += work + self.launches(kernels);
    }

    fn cpu_step(&mut self, i: usize) {
        let step = &self.tape.steps[i];
        for x in &step.ins {
            self.cpu = self.cpu.max(self.arrives[x.0 as usize]);
        }
        if self.at.rows_of(self.tape, step) == 0 {
            return;
        }
        if step.share == ExpertShare::OnCpu {
            return self.experts(i);
        }
        let seconds = (self.on_cpu)(i);
        self.sum.cpu += seconds;
        self.cpu += seconds;
    }

    fn copy(&mut self, x: Slot, to: Place) {
        if self.tape.slots[x.0 as usize].rows == RowSet::Others && self.at.rows == 1 {
            return;
        }
        let rows = self.tape.slots[x.0 as usize].rows;
        if matches!(rows, RowSet::Last(_)) && self.at.count(rows) == 0 {
            return;
        }
        self.start();
        let down = !to.is_gpu();
        if !down {
            self.gpu = self.gpu.max(self.cpu); // the value is the CPU's last
        }
        let info = self.tape.slots[x.0 as usize];
        let bytes = self.at.count(info.rows) * info.width * 4;
        let seconds = bytes as f64 / self.rates.bus;
        self.sum.bus += seconds;
        let coded = self.plan.layouts[to.index()].coded[x.0 as usize];
        // Up to three small ones that follow each other are one kernel (`cuda/join.rs`).
        let joins = bytes <= SMALL && (1..3).contains(&self.copies);
        self.copies = if coded || bytes > SMALL { 0 } else { self.copies % 3 + 1 };
        self.gpu += seconds + self.launches(usize::from(!joins) + usize::from(coded));
        if down {
            self.arrives[x.0 as usize] = self.gpu + WAKE;
        }
    }

    /// The CPU's share of an expert layer, while others stream through the ring.
    fn experts(&mut self, i: usize) {
        let step = &self.tape.steps[i];
        let Cache { slots, ring } = self.plan.cache(self.plan.places[i + 1]); // of the GPU's share, which comes next
        let n = experts_of(self.tape, step);
        let others = n - slots.min(n);
        let (here, there) = ((self.on_cpu)(i) / n as f64, self.gpu_seconds(i) / n as f64);
        let over = expert_bytes(self.tape, step) as f64 / self.rates.bus;
        let pass = self.rates.launch.1 * self.kernels(i + 1) as f64; // the GPU's share comes next
        let (start, begun) = (self.cpu, self.gpu.max(self.cpu));
        // What two parts of the ring hold was brought while the bus had nothing else to do.
        let idle = (start - self.bus).max(0.0);
        let ends = |k: usize| {
            let passes = k.div_ceil(ring.max(1));
            let ahead = idle.min((2 * ring).min(k) as f64 * over);
            let bus = start + k as f64 * over - ahead;
            let last = ring.min(k) as f64 * there;
            let gpu = if k == 0 { self.gpu } else { (begun + k as f64 * there).max(bus + last) + passes as f64 * pass };
            (start + (others - k) as f64 * here, bus, gpu)
        };
        let most = if ring > 0 && self.at.rows > 1 { others } else { 0 };
        let end = |k: &usize| {
            let (cpu, _, gpu) = ends(*k);
            cpu.max(gpu)
        };
        let k = (0..=most).min_by(|a, b| end(a).total_cmp(&end(b))).unwrap_or(0);
        let (cpu, bus, gpu) = ends(k);
        (self.cpu, self.gpu) = (cpu, gpu);
        self.sum.cpu += (others - k) as f64 * here;
        if k > 0 {
            self.bus = bus;
            self.sum.bus += k as f64 * over;
            self.sum.gpu += k as f64 * there;
            let kernels = k.div_ceil(ring) * self.kernels(i + 1);
            self.launches(kernels);
        }
    }
}
