//! How fast a long prompt is read, batch by batch, and what limits it.
//!
//! ```text
//! on the CPU    as measured (a batch of one layer of each kind), or from memory's rate alone:
//!               the larger of bytes / rate and products / (CPU_PRODUCTS * rate)
//! on the GPU    the larger of bytes / rate and products / (GPU_PRODUCTS * rate), by its memory
//! between them  bytes of activations / the bus's rate
//! an expert layer of both, with a share c of the experts cached; t: seconds on the CPU alone,
//! u: over the bus, or on the GPU if that takes longer
//!               t (1 - c) without streaming, or (1 - c) / (1/t + 1/u): both end at the same time
//! ```
//! So every layer takes at most what the CPU alone takes, and more GPU memory never makes a prompt
//! slower.

use super::{Bandwidths, cached};
use crate::plan::{self, Place, Plan, PlanStage};
use crate::tape::{ExpertShare, RowSet, Step, Tape, WeightKind};

/// Multiply-adds of a CPU for each byte that it could read of memory, where it was not measured.
/// Published rates of prompts come to 7 (llama.cpp, Ryzen 7950X), 8 (KTransformers, Xeon 6454S), 21
/// (ik_llama.cpp, EPYC 9V45) and 22 (ik_llama.cpp, Ryzen 7950X).
const CPU_PRODUCTS: f64 = 12.0;
/// Multiply-adds of a GPU for each byte that it could read of its memory. Half-precision tensor
/// cores have 36 (RTX 3060) to 82 (RTX 4090); kernels reach about half.
const GPU_PRODUCTS: f64 = 30.0;

/// What most of a prompt's time goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum PromptLimit {
    /// The CPU's products.
    Cpu,
    /// Streaming experts, and activations, over the bus.
    Bus,
    /// The GPU's products.
    Gpu,
}

impl PromptLimit {
    /// In two words.
    pub(in crate::cli) fn name(self) -> &'static str {
        match self {
            PromptLimit::Cpu => "the CPU",
            PromptLimit::Bus => "the bus",
            PromptLimit::Gpu => "the GPU",
        }
    }

    /// In words.
    pub(in crate::cli) fn words(self) -> &'static str {
        match self {
            PromptLimit::Cpu => "the CPU's products",
            PromptLimit::Bus => "the bus that experts are streamed over",
            PromptLimit::Gpu => "the GPU's products",
        }
    }

    pub(in crate::cli) fn word(self) -> &'static str {
        match self {
            PromptLimit::Cpu => "cpu",
            PromptLimit::Bus => "bus",
            PromptLimit::Gpu => "gpu",
        }
    }
}

/// The speed of a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cli) struct PromptSpeed {
    pub(in crate::cli) tokens_per_s: f64,
    /// Tokens of the batch that it is predicted for.
    pub(in crate::cli) n_batch: usize,
    pub(in crate::cli) limit: PromptLimit,
    /// Whether the CPU's part was measured; else it is assumed from memory's rate.
    pub(in crate::cli) measured: bool,
}

impl PromptSpeed {
    /// For batches of `n_batch` tokens. `ram`: bytes per second from the CPU's memory; `measured`:
    /// the seconds of each step for such a batch.
    pub(in crate::cli) fn new(
        tape: &Tape,
        plan: &Plan,
        n_batch: usize,
        (ram, rates): (f64, Bandwidths),
        measured: Option<&[Option<f64>]>,
    ) -> PromptSpeed {
        let (mut cpu, mut bus, mut gpu) = (0.0, 0.0, 0.0);
        for (i, (step, place)) in tape.steps.iter().zip(&plan.places).enumerate() {
            let cost = Cost::of(tape, step, n_batch);
            let there = cost.seconds(rates.vram, GPU_PRODUCTS);
            let here = measured.and_then(|m| m[i]).unwrap_or_else(|| cost.seconds(ram, CPU_PRODUCTS));
            match (step.share, place) {
                (ExpertShare::OnGpu, _) => {} // counted with the other share
                (ExpertShare::All, Place::Gpu(_)) => gpu += there,
                (ExpertShare::All, Place::Cpu | Place::Twin) => cpu += here,
                (ExpertShare::OnCpu, _) => {
                    let cached = cached(tape, plan, step);
                    let bytes = (plan::experts_of(tape, step) * plan::expert_bytes(tape, step)) as f64;
                    let stream = (bytes / rates.bus).max(there);
                    let alone = here * (1.0 - cached);
                    let both = if plan.cache.ring > 0 { alone * stream / (here + stream) } else { alone };
                    // The GPU's products of the cached experts run at the same time.
                    let rest = (there * cached - both).max(0.0);
                    gpu += rest;
                    if here < stream { cpu += both } else { bus += both }
                }
            }
        }
        for stage in &plan.stages {
            if let PlanStage::Copy(slot, from, to) = stage
                && (from.is_gpu() || to.is_gpu())
            {
                let info = tape.slots[slot.0 as usize];
                bus += (rows(info.rows, n_batch) * info.width * 4) as f64 / rates.bus;
            }
        }
        let parts = [(PromptLimit::Cpu, cpu), (PromptLimit::Bus, bus), (PromptLimit::Gpu, gpu)];
        let limit = parts.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are three").0;
        let tokens_per_s = n_batch as f64 / (cpu + bus + gpu).max(1e-9);
        PromptSpeed { tokens_per_s, n_batch, limit, measured: measured.is_some() }
    }
}

/// Rows that a value of this set has in a batch whose last token alone wants logits.
fn rows(set: RowSet, n_batch: usize) -> usize {
    match set {
        RowSet::All => n_batch,
        RowSet::Output => 1,
        RowSet::Argmax => 0,
    }
}

/// What a step's weights cost for a batch.
struct Cost {
    /// Bytes that are read at least once.
    bytes: f64,
    /// Multiply-adds.
    products: f64,
}

impl Cost {
    fn of(tape: &Tape, step: &Step, n_batch: usize) -> Cost {
        let n = step.ins.first().map_or(n_batch, |x| rows(tape.slots[x.0 as usize].rows, n_batch)) as f64;
        let weights = || step.weights.iter().map(|w| &tape.weights[w.0 as usize]);
        let all: usize = weights().map(|w| w.bytes).sum();
        // Of the bytes, those that one token reads: fewer where it goes to some experts, or looks
        // rows up.
        let list: Vec<_> = weights().collect();
        let share = step.op.bytes_per_token(&list) as f64 / all.max(1) as f64;
        let read = 1.0 - (1.0 - share.min(1.0)).powf(n);
        let matrices = weights().filter(|w| w.kind == WeightKind::Matrix);
        let products = matrices.map(|w| w.count() as f64).sum::<f64>() * share * n;
        Cost { bytes: all as f64 * read, products }
    }

    /// Seconds at a place that reads `rate` bytes per second, and does this many products in the time
    /// of a byte.
    fn seconds(&self, rate: f64, products: f64) -> f64 {
        (self.bytes / rate).max(self.products / (products * rate))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::Gguf;
    use crate::plan::{Ask, Fit, fit};
    use crate::session::{self, Options};

    const RATES: Bandwidths = Bandwidths { ram: Some(50e9), vram: 500e9, bus: 22e9 };
    const BATCH: usize = 64;

    /// A small reference model on a machine whose GPU has `vram` bytes, if it has one.
    fn placed(name: &str, vram: Option<usize>) -> Fit {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/models/{name}.gguf"));
        let gguf = Gguf::open(&path).unwrap();
        let options = Options { n_ctx: Some(256), n_batch: BATCH, ..Options::default() };
        let (tape, shape) = (session::tape(&gguf, &options).unwrap(), session::shape(&gguf, &options).unwrap());
        fit(tape, &Ask::default(), vram, shape).unwrap()
    }

    fn speed(p: &Fit) -> PromptSpeed {
        PromptSpeed::new(&p.tape, &p.plan, BATCH, (50e9, RATES), None)
    }

    #[test]
    fn a_prompt_on_the_cpu_alone_takes_its_products_time() {
        let p = placed("qwen3moe", None);
        let got = speed(&p);
        let products: f64 = p.tape.steps.iter().map(|s| Cost::of(&p.tape, s, BATCH).products).sum();
        let at_most = BATCH as f64 / (products / (CPU_PRODUCTS * 50e9));
        assert!(got.limit == PromptLimit::Cpu && !got.measured, "{got:?}");
        assert!(got.tokens_per_s > 0.0 && got.tokens_per_s <= at_most * 1.000_001, "{got:?}, at most {at_most}");
        // What is measured counts instead.
        let steps = vec![Some(1.0); p.tape.steps.len()];
        let got = PromptSpeed::new(&p.tape, &p.plan, BATCH, (50e9, RATES), Some(&steps));
        assert!((got.tokens_per_s * steps.len() as f64 / BATCH as f64 - 1.0).abs() < 1e-9 && got.measured, "{got:?}");
    }

    #[test]
    fn more_gpu_memory_never_makes_a_prompt_slower() {
        for name in ["qwen3moe", "gpt-oss", "deepseek4", "qwen35moe"] {
            let mut before = speed(&placed(name, None)).tokens_per_s;
            for shift in 16..26 {
                let p = placed(name, Some(1 << shift));
                let now = speed(&p);
                assert!(now.tokens_per_s >= before * 0.98, "{name} with {} bytes: {now:?} after {before}", 1 << shift);
                before = now.tokens_per_s;
            }
        }
    }
}
