//! `tandem explain`: what a model is, what a token costs, what fits where; from the header alone.
//! The report is this verb's answer, so it goes to stdout.
//!
//! `--json` prints one object. Bytes are whole numbers; everything else is named for what it
//! counts:
//! ```text
//! name, architecture
//! files             [{path, bytes}]                       all files of a split model, in order
//! layers, vocabulary
//! context           {trained, used}                       used: with the given -c
//! parameters        {total, active}                       active: those that one token is multiplied with
//! experts           {layers, count, used} or null         count and used: in one layer
//! weights           {bytes, bits_per_weight, formats: [{format, tensors, weights, bytes}],
//!                    unused: [{prefix, why, tensors, bytes}]}   unused: in the file but not computed with
//! unused_metadata   [{key, value, why, known}]            metadata keys of the architecture that nothing depends on;
//!                                                         value: as text; known: whether their meaning is known
//! parts             [{part, bytes, bytes_per_token}]      the bytes of weights by what they are for
//! bytes_per_token                                         weights that one generated token reads
//! state             {bytes, bytes_per_token, fixed_bytes} what a sequence remembers: bytes at full context, of which
//!                                                         fixed_bytes do not grow with it; bytes_per_token is an
//!                                                         average and may have a fraction
//! places            [{place, steps, weight_bytes, state_bytes, buffer_bytes, cache_bytes}]   cache_bytes: the expert
//!                                                         cache
//! placement         {flags, words, gpu_free_bytes, gpu_needed_bytes, tokens_per_s, prompt_tokens_per_s}   flags: what asks
//!                                                         for this placement; tokens_per_s: what is expected, or
//!                                                         the ceiling; the prompt's is null where the CPU reads it
//! prediction        {ceiling_tokens_per_s, expected_tokens_per_s, at_most, depth, limit, words, parts_ms, threads, isa,
//!                    steps, formats: [{format, bytes_per_token, gbps}], ram_gbps, ram_bytes, vram_gbps, bus_gbps,
//!                    gpu_measured, not_measured}          limit: memory, kernels, attention, steps, others, gpu or
//!                                                         sampling; at_most: with a GPU only what it reads is counted;
//!                                                         expected is null where nothing was measured, for which
//!                                                         not_measured has the reason; ram_bytes: those that ram_gbps
//!                                                         was measured on
//! memory            {needed_bytes, total_bytes, free_bytes, fits, words}   fits: yes, crowded, no or unknown; total and
//!                                                         free are null where the system does not say
//! steps             [{label, op, shape, formats, bytes, bytes_per_token, place}]   with --steps only
//! ```

mod facts;
mod report;
mod speed;
mod verdict;

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::errors::{Failure, usage};
use super::human::parse_size;
use super::predict::{Bandwidths, Limit};
use super::{args, open};
use crate::cpu::{Memory, Pool};
use crate::gguf::Load;
use crate::plan;
use crate::session;
use facts::{ModelFacts, PlacedModel, StepFacts};
use speed::Speed;
use verdict::MemoryFit;

/// Runs the verb.
pub(super) fn run(a: &args::ExplainArgs) -> Result<()> {
    let path = match (&a.path, &a.model.model) {
        (Some(_), Some(_)) => return usage("the model is given twice; give it once, with or without -m".into()),
        (a, b) => a.as_deref().or(b.as_deref()),
    };
    check_rates(a)?;
    let options = open::options(&a.model)?;
    // The header is all that is read here, whatever the flags say about loading.
    let gguf = open::header(path, &Load { mmap: true, mlock: false }, 0)?;
    let tape = session::tape(&gguf, &options).context(Failure::Model)?;
    super::unknown::unknown_keys(&gguf, &tape)?;
    let shape = session::shape(&gguf, &options).context(Failure::Model)?;
    let n_ctx = session::context(&gguf, options.n_ctx)?;
    if a.depth >= n_ctx {
        return usage(format!("--depth {}: expected less than the context of {n_ctx} tokens (-c)", a.depth));
    }
    let gpu = if a.vram.is_none() { open::gpu(&a.model, &options)? } else { None };
    let vram = match (&a.vram, &gpu) {
        (Some(text), _) => Some((bytes("--vram", text)?, false)),
        (None, Some(gpu)) => Some((gpu.memory()?.0, gpu.shown)),
        (None, None) => None,
    };
    let memory = match &a.ram {
        Some(text) => bytes("--ram", text).map(|n| Some(Memory { total: n, free: n }))?,
        None => Memory::of_this_machine(),
    };
    let budget = vram.map(|(free, shown)| free - session::margin(free, shown));
    let placed = plan::fit(tape, &options.ask, budget, shape)?;
    let gpu = gpu.filter(|_| placed.plan.on_gpu() && (a.vram_gbps.is_none() || a.bus_gbps.is_none()));
    let of_gpu = gpu.map(|gpu| gpu.rates()).transpose()?;
    let rates = rates(a, of_gpu);
    let model =
        PlacedModel { gguf: &gguf, placed: &placed, vram: vram.map(|v| v.0), bus: rates.bus, options: &options, shape };
    let facts = ModelFacts::new(&model)?;
    let fit = MemoryFit::new(&model, &facts, memory);
    let speed = Speed::new(a, &placed, &Pool::new(options.threads)?, rates, of_gpu.is_some());
    print(a, &model, &facts, &fit, &speed)
}

/// Refuses rates that are no rates.
fn check_rates(a: &args::ExplainArgs) -> Result<()> {
    for (flag, rate) in [("--ram-gbps", a.ram_gbps), ("--vram-gbps", a.vram_gbps), ("--bus-gbps", a.bus_gbps)] {
        if let Some(rate) = rate.filter(|r| !(*r > 0.0 && r.is_finite())) {
            return usage(format!("{flag} {rate}: expected more than 0 GB/s"));
        }
    }
    Ok(())
}

fn bytes(flag: &str, text: &str) -> Result<usize> {
    match parse_size(text) {
        Some(n) => Ok(n),
        None => usage(format!("{flag} {text}: expected a size like 16G")),
    }
}

/// The rates to predict with: as given, else as measured on the GPU (bus, memory), else assumed.
fn rates(a: &args::ExplainArgs, of_gpu: Option<(f64, f64)>) -> Bandwidths {
    let (bus, vram) = of_gpu.unwrap_or((Bandwidths::ASSUMED.bus, Bandwidths::ASSUMED.vram));
    Bandwidths {
        ram: a.ram_gbps.map(|r| r * 1e9),
        vram: a.vram_gbps.map_or(vram, |r| r * 1e9),
        bus: a.bus_gbps.map_or(bus, |r| r * 1e9),
    }
}

fn print(
    a: &args::ExplainArgs,
    model: &PlacedModel<'_>,
    facts: &ModelFacts,
    fit: &MemoryFit,
    speed: &Speed,
) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if a.json {
        let mut object = object(facts, fit, speed);
        if a.steps {
            object["steps"] = facts::steps(model).iter().filter_map(step).collect();
        }
        serde_json::to_writer_pretty(&mut out, &object).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        out.write_all(report::report(facts, fit, speed).as_bytes())?;
        if a.steps {
            out.write_all(report::steps(&facts::steps(model)).as_bytes())?;
        }
    }
    out.flush()?;
    Ok(())
}

fn object(f: &ModelFacts, fit: &MemoryFit, speed: &Speed) -> Value {
    let formats = f
        .formats
        .iter()
        .map(|x| json!({ "format": x.name, "tensors": x.tensors, "weights": x.weights, "bytes": x.bytes }));
    let unused =
        f.unused.iter().map(|x| json!({ "prefix": x.prefix, "why": x.why, "tensors": x.tensors, "bytes": x.bytes }));
    let parts =
        f.parts.iter().map(|x| json!({ "part": x.name, "bytes": x.bytes, "bytes_per_token": x.bytes_per_token }));
    let places = f.places.iter().map(|x| {
        json!({
            "place": x.name,
            "steps": x.steps,
            "weight_bytes": x.weight_bytes,
            "state_bytes": x.state_bytes,
            "buffer_bytes": x.buffer_bytes,
            "cache_bytes": x.cache_bytes,
        })
    });
    let keys = f.unused_keys.iter();
    let keys = keys.map(|k| json!({ "key": k.key, "value": k.value, "why": k.why, "known": k.known }));
    json!({
        "name": f.name,
        "architecture": f.arch,
        "files": f.files.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes })).collect::<Vec<_>>(),
        "layers": f.layers,
        "vocabulary": f.n_vocab,
        "context": { "trained": f.n_ctx_trained, "used": f.n_ctx },
        "parameters": { "total": f.params, "active": f.active },
        "experts": f.experts.map(|e| json!({ "layers": e.layers, "count": e.count, "used": e.used })),
        "weights": {
            "bytes": f.bytes,
            "bits_per_weight": f.bits(),
            "formats": formats.collect::<Vec<_>>(),
            "unused": unused.collect::<Vec<_>>(),
        },
        "unused_metadata": keys.collect::<Vec<_>>(),
        "parts": parts.collect::<Vec<_>>(),
        "bytes_per_token": f.bytes_per_token,
        "state": {
            "bytes": f.state_bytes,
            "bytes_per_token": f.state_bytes_per_token,
            "fixed_bytes": f.state_fixed_bytes,
        },
        "places": places.collect::<Vec<_>>(),
        "placement": {
            "flags": f.placement.flags,
            "words": f.placement.words,
            "gpu_free_bytes": f.placement.vram,
            "gpu_needed_bytes": f.placement.needed,
            "tokens_per_s": speed.prediction.expected.unwrap_or(speed.prediction.ceiling),
            "prompt_tokens_per_s": f.placement.prompt,
        },
        "prediction": prediction(speed),
        "memory": {
            "needed_bytes": fit.needed,
            "total_bytes": fit.memory.map(|m| m.total),
            "free_bytes": fit.memory.map(|m| m.free),
            "fits": fit.verdict.word(),
            "words": fit.words,
        },
    })
}

fn prediction(s: &Speed) -> Value {
    let (p, m) = (&s.prediction, s.measured.as_ref().ok());
    let parts = p.parts.iter().map(|(limit, seconds)| {
        let name = match limit {
            Limit::Kernels(format) => format!("kernels {format}"),
            other => other.word().into(),
        };
        (name, json!(seconds * 1e3))
    });
    let formats = p.formats.iter().map(|(name, bytes)| {
        let gbps = m.and_then(|m| m.formats.get(name)).map(|r| r / 1e9);
        json!({ "format": name, "bytes_per_token": bytes, "gbps": gbps })
    });
    json!({
        "ceiling_tokens_per_s": p.ceiling,
        "expected_tokens_per_s": p.expected,
        "at_most": p.at_most,
        "depth": s.depth,
        "limit": p.limit().word(),
        "words": p.limit_words(s.steps, m),
        "parts_ms": parts.collect::<serde_json::Map<_, _>>(),
        "threads": m.map(|m| m.threads),
        "isa": s.isa,
        "steps": s.steps,
        "formats": formats.collect::<Vec<_>>(),
        "ram_gbps": p.ram / 1e9,
        "ram_bytes": m.map(|m| m.buffer),
        "vram_gbps": s.rates.vram / 1e9,
        "bus_gbps": s.rates.bus / 1e9,
        "gpu_measured": s.gpu_measured,
        "not_measured": s.measured.as_ref().err(),
    })
}

/// A step as JSON; copies between places are no steps.
fn step(s: &StepFacts) -> Option<Value> {
    match s {
        StepFacts::Copy { .. } => None,
        StepFacts::Step { label, op, shape, formats, bytes, bytes_per_token, place } => Some(json!({
            "label": label,
            "op": op,
            "shape": shape,
            "formats": formats,
            "bytes": bytes,
            "bytes_per_token": bytes_per_token,
            "place": place,
        })),
    }
}
