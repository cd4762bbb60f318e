//! How fast a long prompt is read, batch by batch, and what limits it: the walk of a batch by `plan/cost.rs`, with the CPU's
//! steps as measured (a batch of one layer of each kind), or from memory's rate alone.

use super::Bandwidths;
use crate::plan::Plan;
use crate::plan::cost::{StepCost, WalkShape, WalkTime};
use crate::tape::Tape;

/// Tokens of the prompt that is predicted, as far as the context has room for them.
const LONG: usize = 8192;

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
    /// Tokens of the prompt and tokens per second if all rows were computed, of a model that leaves some out.
    pub(in crate::cli) all_rows: Option<(usize, f64)>,
}

impl PromptSpeed {
    /// For batches of `n_batch` tokens of a prompt that comes after `depth` tokens in a context of `n_ctx`. `ram`: bytes
    /// per second from the CPU's memory; `measured`: the seconds of each step for such a batch.
    pub(in crate::cli) fn new(
        tape: &Tape,
        plan: &Plan,
        (n_batch, depth, n_ctx): (usize, usize, usize),
        (ram, rates): (f64, Bandwidths),
        measured: Option<&[Option<f64>]>,
    ) -> PromptSpeed {
        // The same prompt whatever the batch, so that batches can be compared.
        let long = n_ctx.saturating_sub(depth).min(LONG);
        let time_of = |follow: Option<usize>| {
            let at = WalkShape { rows: n_batch, seen: depth + long / 2, follow };
            let assumed = |i: usize| StepCost::of(tape, &tape.steps[i], at).on_cpu(ram);
            // What was measured is a batch of all rows.
            let share = |i: usize| at.rows_of(tape, &tape.steps[i]) as f64 / n_batch.max(1) as f64;
            let of_all = |i: usize| if tape.steps[i].last.is_some() { share(i) } else { 1.0 };
            let on_cpu = |i: usize| measured.and_then(|m| m[i]).map_or_else(|| assumed(i), |t| t * of_all(i));
            WalkTime::of(tape, plan, at, rates.with_ram(ram), &on_cpu)
        };
        let whole = time_of(None);
        // The prompt's batches in turn, each with what follows it.
        let batches = if tape.spares_rows { long.div_ceil(n_batch.max(1)).max(1) } else { 0 };
        let sum = (0..batches).map(|i| time_of(Some(i * n_batch))).reduce(|a, b| a + b);
        let time = sum.map_or(whole, |sum| sum / batches as f64);
        let all_rows = sum.map(|_| (long, n_batch as f64 / whole.whole.max(1e-9)));
        let parts =
            [(PromptLimit::Cpu, time.cpu), (PromptLimit::Bus, time.bus), (PromptLimit::Gpu, time.gpu + time.launches)];
        let limit = parts.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are three").0;
        let tokens_per_s = n_batch as f64 / time.whole.max(1e-9);
        PromptSpeed { tokens_per_s, n_batch, limit, measured: measured.is_some(), all_rows }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::Gguf;
    use crate::plan::cost::CPU_PRODUCTS;
    use crate::plan::{Ask, Fit, fit};
    use crate::session::{self, Options};

    const RATES: Bandwidths = Bandwidths { ram: Some(50e9), ..Bandwidths::ASSUMED };
    const BATCH: usize = 64;

    /// A small reference model on a machine whose GPU has `vram` bytes, if it has one.
    fn placed(name: &str, vram: Option<usize>) -> Fit {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/models/{name}.gguf"));
        let gguf = Gguf::open(&path).unwrap();
        let options = Options { n_ctx: Some(256), n_batch: BATCH, ..Options::default() };
        let (tape, shape) = (session::tape(&gguf, &options).unwrap(), session::shape(&gguf, &options).unwrap());
        fit(tape, &Ask::default(), vram.as_slice(), shape).unwrap()
    }

    fn speed(p: &Fit, measured: Option<&[Option<f64>]>) -> PromptSpeed {
        PromptSpeed::new(&p.tape, &p.plan, (BATCH, 0, 256), (50e9, RATES), measured)
    }

    #[test]
    fn a_prompt_on_the_cpu_alone_takes_its_products_time() {
        let p = placed("qwen3moe", None);
        let got = speed(&p, None);
        let at = WalkShape { rows: BATCH, seen: 128, follow: None };
        let products: f64 = p.tape.steps.iter().map(|s| StepCost::of(&p.tape, s, at).products).sum();
        let at_most = BATCH as f64 / (products / (CPU_PRODUCTS * 50e9));
        assert!(got.limit == PromptLimit::Cpu && !got.measured, "{got:?}");
        assert!(got.tokens_per_s > 0.0 && got.tokens_per_s <= at_most * 1.000_001, "{got:?}, at most {at_most}");
        // What is measured counts instead.
        let steps = vec![Some(1.0); p.tape.steps.len()];
        let got = speed(&p, Some(&steps));
        assert!((got.tokens_per_s * steps.len() as f64 / BATCH as f64 - 1.0).abs() < 1e-9 && got.measured, "{got:?}");
    }
}
