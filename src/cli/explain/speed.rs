//! How fast a model will be, and where the figures come from.

use crate::cli::args;
use crate::cli::predict::{self, Bandwidths, CpuProfile, Prediction, PromptSpeed};
use crate::cpu::{Bandwidth, Pool};
use crate::plan::{Fit, Shape};
use crate::simd;

/// A prediction and what it was made of.
pub(super) struct Speed {
    pub(super) depth: usize,
    pub(super) steps: usize,
    pub(super) isa: &'static str,
    pub(super) rates: Bandwidths,
    /// Where memory's rate comes from, for people.
    pub(super) ram_from: &'static str,
    /// Where the GPU's rates come from.
    pub(super) gpu_from: GpuRates,
    /// What this machine's CPU does, or why that is not known.
    pub(super) measured: Result<CpuProfile, String>,
    pub(super) prediction: Prediction,
    pub(super) prompt: PromptSpeed,
}

/// Where the rates of a GPU's memory and of its bus come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum GpuRates {
    /// From the GPU of this machine, just now.
    Measured,
    /// From the command line, both of them.
    Given,
    /// At least one is that of this card.
    Assumed(&'static str),
}

impl Speed {
    /// Measures this machine unless `--ram-gbps` says what to assume.
    pub(super) fn new(
        a: &args::ExplainArgs,
        (placed, shape): (&Fit, Shape),
        pool: &Pool,
        rates: Bandwidths,
        gpu_from: GpuRates,
    ) -> Speed {
        let (tape, plan) = (&placed.tape, &placed.plan);
        let measured = match a.ram_gbps {
            Some(_) => {
                Err("The time that kernels and steps take at that rate is unknown, so this is an upper bound.".into())
            }
            None => predict::measure(tape, plan, pool, a.depth).map_err(|why| format!("Not predicted: {why}.")),
        };
        let batch = match &measured {
            Ok(_) => predict::measure_prompt(tape, plan, pool, (a.depth, shape.n_batch)).ok(),
            Err(_) => None,
        };
        // Where the tape could not be walked, memory's rate can be measured all the same.
        let ram = rates.ram.or_else(|| measured.is_err().then(|| Bandwidth::default().measure(pool) * 1e9));
        let rates = Bandwidths { ram, ..rates };
        let prediction = Prediction::new(tape, plan, a.depth, rates, measured.as_ref().ok());
        let at = (shape.n_batch, a.depth, shape.n_ctx);
        let prompt = PromptSpeed::new(tape, plan, at, (prediction.ram, rates), batch.as_deref());
        Speed {
            depth: a.depth,
            steps: tape.model().len(),
            isa: simd::isa().name(),
            rates,
            ram_from: match (a.ram_gbps, a.model.ram.as_str()) {
                (Some(_), _) => "as given",
                (None, "auto" | "off") => "measured just now",
                (None, _) => "as measured on this machine just now",
            },
            gpu_from,
            prediction,
            prompt,
            measured,
        }
    }
}
