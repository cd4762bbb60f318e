//! The report as one JSON object (`--json`). Bytes are whole numbers; everything else is named for
//! what it counts. Of a file that this version cannot run there is what the header alone tells:
//! everything that has no tape in it (no parts, state, places, placement, prediction, steps; the
//! memory of the weights alone), and the exit status is that of a model that cannot be used.
//! ```text
//! name, architecture
//! verdict           [fits, placement, speed]              the three lines at the head of the report
//! files             [{path, bytes}]                       all files of a split model, in order
//! layers, vocabulary
//! context           {trained, used}                       used: with the given -c
//! parameters        {total, active}                       active: those that one token is multiplied with, or null
//! experts           {layers, count, used} or null         count and used: in one layer; used may be null
//! mtp               {blocks, parameters, bytes} or null   blocks that predict further tokens; part of the total, never
//!                                                         active
//! draft_heads       {count, weight_bytes, state_bytes, counted, why_none} or null   of these blocks, where the model can
//!                                                         run: what they take besides the model, and whether the
//!                                                         memory below has it in it
//! tables            [{tensor, parameters, bytes}]         lookup tables other than the token embedding
//! weights           {bytes, format, bits_per_weight, formats: [{format, tensors, weights, bytes}],
//!                    unused: [{prefix, why, tensors, bytes}]}   unused: in the file but not computed with
//! unused_metadata   [{key, value, why, known}]            metadata keys of the architecture that nothing depends on;
//!                                                         value: as text; known: whether their meaning is known
//! prompt_active_parameters                                what one token of a long prompt is multiplied with, where that
//!                                                         is less than `active`; else null
//! notes             [text]                                what is taken as known where the file does not say
//! parts             [{part, bytes, bytes_per_token}]      the bytes of weights by what they are for
//! bytes_per_token                                         weights that one generated token reads
//! state             {bytes, bytes_per_token, fixed_bytes} what a sequence remembers: bytes at full context, of which
//!                                                         fixed_bytes do not grow with it; bytes_per_token is an
//!                                                         average and may have a fraction
//! places            [{place, steps, weight_bytes, mapped_bytes, state_bytes, buffer_bytes, cache_bytes}]
//!                                                         mapped_bytes: lookup tables that stay in the file, which are
//!                                                         not needed memory; cache_bytes: the expert cache
//! placement         {flags, words, batch, gpu_free_bytes, gpu_needed_bytes, tokens_per_s, prompt_tokens_per_s}
//!                                                         flags: what asks for this placement; batch: prompt tokens
//!                                                         computed together; tokens_per_s: what is expected, or
//!                                                         the ceiling; prompt_tokens_per_s: as in prediction
//! prediction        {ceiling_tokens_per_s, expected_tokens_per_s, at_most, depth, limit, words, parts_ms, threads, isa,
//!                    steps, formats: [{format, bytes_per_token, gbps}], ram_gbps, ram_bytes, vram_gbps, bus_gbps,
//!                    gpu_measured, card, gpu_launches, not_measured, prompt: {tokens_per_s, all_rows_tokens_per_s, batch, limit,
//!                    measured}}
//!                                                         limit: memory, kernels, attention, steps, others, gpu,
//!                                                         launches, bus or sampling; at_most: of the CPU only what it
//!                                                         reads is counted; card: the one whose rates are assumed, or
//!                                                         null; gpu_launches: kernels and copies of a token;
//!                                                         expected is null where nothing was measured, for which
//!                                                         not_measured has the reason; ram_bytes: those that ram_gbps
//!                                                         was measured on; prompt: a long one, in batches of this many
//!                                                         tokens, its limit cpu, bus or gpu; all_rows: if no row were
//!                                                         left out, null where none is; measured: whether the
//!                                                         CPU's part of it was
//! memory            {needed_bytes, total_bytes, free_bytes, fits, words, drive: {experts_in_memory, experts, memory_bytes,
//!                    drive_bytes, misses, bytes_per_token, gbps, gbps_from}}
//!                                                         fits: yes, crowded, no or unknown; total and free are null
//!                                                         where the system does not say, drive where all has room; its
//!                                                         experts are those of a layer, misses and bytes those of a
//!                                                         token that chooses among all alike; of a file that cannot run also cache_bytes, about
//!                                                         what a KV cache of its sizes would take, or null
//! numa              {divided, why, nodes: [{node, threads, weight_bytes}], gbps, ceiling_tokens_per_s}
//!                                                         why: the reason where weights are not divided over the nodes, and
//!                                                         the rest is null; gbps: what all nodes read together at most
//! missing           [text]                                why this version cannot run the model; empty where it can
//! steps             [{label, op, shape, formats, bytes, bytes_per_token, place}]   with --steps only
//! ```

use serde_json::{Value, json};

use super::facts::{ModelFacts, StepFacts};
use super::file::FileFacts;
use super::numa::NumaFacts;
use super::speed::{GpuRates, Speed};
use super::summary;
use super::verdict::MemoryFit;
use crate::cli::predict::Limit;

/// What the header alone tells, with the memory that is needed: the part that every object has.
pub(super) fn of_file(f: &FileFacts, fit: &MemoryFit, verdict: &[String; 3]) -> Value {
    let formats = f
        .formats
        .iter()
        .map(|x| json!({ "format": x.name, "tensors": x.tensors, "weights": x.weights, "bytes": x.bytes }));
    let tables = f.tables.iter().map(|t| json!({ "tensor": t.name, "parameters": t.params, "bytes": t.bytes }));
    json!({
        "name": f.name,
        "architecture": f.arch,
        "verdict": verdict,
        "files": f.files.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes })).collect::<Vec<_>>(),
        "layers": f.layers,
        "vocabulary": f.n_vocab,
        "context": { "trained": f.n_ctx_trained, "used": null },
        "parameters": { "total": f.params, "active": f.active },
        "experts": f.experts.map(|e| json!({ "layers": e.layers, "count": e.count, "used": e.used })),
        "mtp": f.mtp.as_ref().map(|m| json!({ "blocks": m.blocks, "parameters": m.params, "bytes": m.bytes })),
        "tables": tables.collect::<Vec<_>>(),
        "weights": {
            "bytes": f.bytes,
            "format": f.format,
            "bits_per_weight": f.bits(),
            "formats": formats.collect::<Vec<_>>(),
            "unused": [],
        },
        "memory": {
            "needed_bytes": fit.needed,
            "total_bytes": fit.memory.map(|m| m.total),
            "free_bytes": fit.memory.map(|m| m.free),
            "drive": fit.drive.as_ref().map(|d| json!({
                "experts_in_memory": d.slots,
                "experts": d.of,
                "memory_bytes": d.in_memory,
                "drive_bytes": d.on_drive,
                "misses": d.misses,
                "bytes_per_token": d.per_token,
                "gbps": d.speed.rate / 1e9,
                "gbps_from": d.speed.from,
            })),
            "fits": fit.verdict.word(),
            "words": fit.words,
        },
        "missing": [],
    })
}

/// The object of a model that can run.
pub(super) fn object(f: &ModelFacts, fit: &MemoryFit, speed: &Speed) -> Value {
    let unused =
        f.unused.iter().map(|x| json!({ "prefix": x.prefix, "why": x.why, "tensors": x.tensors, "bytes": x.bytes }));
    let parts =
        f.parts.iter().map(|x| json!({ "part": x.name, "bytes": x.bytes, "bytes_per_token": x.bytes_per_token }));
    let places = f.places.iter().map(|x| {
        json!({
            "place": x.name,
            "steps": x.steps,
            "weight_bytes": x.weight_bytes,
            "mapped_bytes": x.mapped_bytes,
            "state_bytes": x.state_bytes,
            "buffer_bytes": x.buffer_bytes,
            "cache_bytes": x.cache_bytes,
        })
    });
    let keys = f.unused_keys.iter();
    let keys = keys.map(|k| json!({ "key": k.key, "value": k.value, "why": k.why, "known": k.known }));
    let mut object = of_file(&f.file, fit, &summary::lines(fit, &f.placement.line, speed));
    object["context"]["used"] = f.n_ctx.into();
    object["draft_heads"] = json!(f.heads.as_ref().map(|h| {
        json!({
            "count": h.count,
            "weight_bytes": h.weight_bytes,
            "state_bytes": h.state_bytes,
            "counted": h.is_counted,
            "why_none": h.off,
        })
    }));
    object["weights"]["unused"] = unused.collect();
    object["unused_metadata"] = keys.collect();
    object["notes"] = json!(f.notes);
    object["prompt_active_parameters"] = json!(f.prompt_active.map(|(_, n)| n));
    object["parts"] = parts.collect();
    object["bytes_per_token"] = f.bytes_per_token.into();
    object["state"] = json!({
        "bytes": f.state_bytes,
        "bytes_per_token": f.state_bytes_per_token,
        "fixed_bytes": f.state_fixed_bytes,
    });
    object["places"] = places.collect();
    object["placement"] = json!({
        "flags": f.placement.flags,
        "words": f.placement.words,
        "batch": f.n_batch,
        "gpu_free_bytes": f.placement.vram,
        "gpu_needed_bytes": f.placement.needed,
        "tokens_per_s": speed.prediction.expected.unwrap_or(speed.prediction.ceiling),
        "prompt_tokens_per_s": speed.prompt.tokens_per_s,
    });
    object["prediction"] = prediction(speed);
    object
}

/// What is said of NUMA nodes.
pub(super) fn numa(n: &NumaFacts) -> Value {
    let plan = n.plan.as_ref().ok();
    let nodes = plan.map(|plan| {
        let node = |(i, node): (usize, &crate::cpu::WeightNode)| {
            json!({ "node": node.id, "threads": plan.split.threads_of(i), "weight_bytes": plan.bytes_of(i) })
        };
        plan.nodes.list.iter().enumerate().map(node).collect::<Vec<_>>()
    });
    json!({
        "divided": plan.is_some(),
        "why": n.plan.as_ref().err(),
        "nodes": nodes,
        "gbps": n.at_most.map(|m| m.0 / 1e9),
        "ceiling_tokens_per_s": n.at_most.map(|m| m.1),
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
        "at_most": p.expected.is_none(),
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
        "gpu_measured": s.gpu_from == GpuRates::Measured,
        "card": if let GpuRates::Assumed(card) = s.gpu_from { Some(card) } else { None },
        "gpu_launches": p.started,
        "not_measured": s.measured.as_ref().err(),
        "prompt": {
            "tokens_per_s": s.prompt.tokens_per_s,
            "all_rows_tokens_per_s": s.prompt.all_rows.map(|(_, speed)| speed),
            "batch": s.prompt.n_batch,
            "limit": s.prompt.limit.word(),
            "measured": s.prompt.measured,
        },
    })
}

/// A step as JSON; copies between places are no steps.
pub(super) fn step(s: &StepFacts) -> Option<Value> {
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
