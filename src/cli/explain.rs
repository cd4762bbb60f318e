//! `tandem explain`: what a model is, what a token costs, what fits where; from the header alone. The report is this
//! verb's answer, so it goes to stdout.
//!
//! `--json` prints one object. Bytes are whole numbers; everything else is named for what it counts:
//! ```text
//! name, architecture
//! files             [{path, bytes}]                       all files of a split model, in order
//! layers, vocabulary
//! context           {trained, used}                       used: with the given -c
//! parameters        {total, active}                       active: those that one token is multiplied with
//! experts           {layers, count, used} or null         count and used: in one layer
//! weights           {bytes, bits_per_weight, formats: [{format, tensors, weights, bytes}],
//!                    unused: [{prefix, why, tensors, bytes}]}   unused: in the file but not computed with
//! parts             [{part, bytes, bytes_per_token}]      the bytes of weights by what they are for
//! bytes_per_token                                         weights that one generated token reads
//! state             {bytes, bytes_per_token, fixed_bytes} what a sequence remembers: bytes at full context, of which
//!                                                         fixed_bytes do not grow with it; bytes_per_token is an
//!                                                         average and may have a fraction
//! places            [{place, steps, weight_bytes, state_bytes, buffer_bytes, cache_bytes}]   cache_bytes: experts that
//!                                                         come and go
//! placement         {flags, words, gpu_free_bytes, gpu_needed_bytes, tokens_per_s, prompt_tokens_per_s}   flags: what asks
//!                                                         for it in so many words; the rates are predictions, the
//!                                                         prompt's null where the CPU reads it
//! memory            {needed_bytes, total_bytes, free_bytes, fits, words}   fits: yes, crowded, no or unknown; total and
//!                                                         free are null where the system does not say
//! steps             [{label, op, shape, formats, bytes, bytes_per_token, place}]   with --steps only
//! ```

mod facts;
mod fit;
mod text;

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Failure, args, gguf, options, usage};
use crate::cpu::Memory;
use crate::gguf::Load;
use crate::plan;
use crate::session;
use facts::{Facts, Model, StepFacts};
use fit::Fit;

/// Runs the verb.
pub(super) fn run(a: &args::Explain) -> Result<()> {
    let path = match (&a.path, &a.model.model) {
        (Some(_), Some(_)) => return usage("the model is given twice; once is enough, with or without -m".into()),
        (a, b) => a.as_deref().or(b.as_deref()),
    };
    let options = options(&a.model)?;
    // Whatever the flags say of loading: the header is all that is read here.
    let gguf = gguf(path, &Load { mmap: true, mlock: false })?;
    let tape = session::tape(&gguf, &options).context(Failure::Model)?;
    let shape = session::shape(&gguf, &options).context(Failure::Model)?;
    let bytes = |flag: &str, text: &str| match super::size(text) {
        Some(n) => Ok(n),
        None => usage(format!("{flag} {text}: a size like 16G expected")),
    };
    let vram = match &a.vram {
        Some(text) => Some((bytes("--vram", text)?, false)),
        None => match super::gpu(&a.model, &options)? {
            Some(gpu) => Some((gpu.memory()?.0, gpu.shown)),
            None => None,
        },
    };
    let memory = match &a.ram {
        Some(text) => bytes("--ram", text).map(|n| Some(Memory { total: n, free: n }))?,
        None => Memory::of_this_machine(),
    };
    let budget = vram.map(|(free, shown)| free - session::margin(free, shown));
    let placed = plan::fit(tape, &options.ask, budget, shape)?;
    let model = Model { gguf: &gguf, placed: &placed, vram: vram.map(|v| v.0), options: &options, shape };
    let facts = Facts::new(&model)?;
    let fit = Fit::new(&model, &facts, memory);
    let mut out = std::io::stdout().lock();
    if a.json {
        let mut object = object(&facts, &fit);
        if a.steps {
            object["steps"] = facts::steps(&model).iter().filter_map(step).collect();
        }
        serde_json::to_writer_pretty(&mut out, &object).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        out.write_all(text::report(&facts, &fit).as_bytes())?;
        if a.steps {
            out.write_all(text::steps(&facts::steps(&model)).as_bytes())?;
        }
    }
    out.flush()?;
    Ok(())
}

fn object(f: &Facts, fit: &Fit) -> Value {
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
            "tokens_per_s": f.placement.decode,
            "prompt_tokens_per_s": f.placement.prompt,
        },
        "memory": {
            "needed_bytes": fit.needed,
            "total_bytes": fit.memory.map(|m| m.total),
            "free_bytes": fit.memory.map(|m| m.free),
            "fits": fit.verdict.word(),
            "words": fit.words,
        },
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
