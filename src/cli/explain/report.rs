//! The report in words and aligned columns.

use super::facts::{HeadFacts, ModelFacts, PlacementFacts, StepFacts, TABLES};
use super::file::{ExpertFacts, FileFacts};
use super::speed::{GpuRates, Speed};
use super::summary;
use super::verdict::{MemoryFit, Verdict};
use crate::cli::human::{count, size, table, wrapped};
use crate::cli::predict::{Limit, PromptSpeed};

/// The line on the size of lookup tables that stay in the file.
pub(super) const MAPPED: &str = "stay in the file, so they are not counted below";

pub(super) fn row<const N: usize>(cells: [&dyn std::fmt::Display; N]) -> Vec<String> {
    cells.iter().map(|c| c.to_string()).collect()
}

/// What the model is: the head of every report. `n_ctx` is the context used here, where the model
/// can run.
pub(super) fn about(f: &FileFacts, n_ctx: Option<usize>) -> String {
    let trained = f.n_ctx_trained.map_or("not given in the file".into(), |n| format!("trained with {n} tokens"));
    let used_here = n_ctx.map_or(String::new(), |n| format!("; {n} used here (-c)"));
    let active = match f.active {
        Some(n) => format!("of which {} are active per token", count(n)),
        None => "of which the file does not say how many are active per token".into(),
    };
    let arch = f.arch.as_ref().map_or("not given in the file".into(), |a| a.escape_debug().to_string());
    let mut about = vec![
        row([&"architecture", &arch]),
        row([&"layers", &layers(f)]),
        row([&"parameters", &format!("{}, {active}", count(f.params))]),
        row([&"format", &format!("{}, {}", f.format, size(f.bytes))]),
    ];
    for t in &f.tables {
        let name = t.name.trim_end_matches(".weight");
        about.push(row([&"", &format!("{} of them in the lookup table {name}, {}", count(t.params), size(t.bytes))]));
    }
    if let Some(m) = &f.mtp {
        let blocks = if m.blocks == 1 { "1 block".into() } else { format!("{} blocks", m.blocks) };
        let text = format!("{} of them in {blocks} for multi-token prediction, {}", count(m.params), size(m.bytes));
        about.push(row([&"", &text]));
    }
    about.push(row([&"vocabulary", &f.n_vocab.map_or("not in the file".into(), |n| format!("{n} tokens"))]));
    about.push(row([&"context", &format!("{trained}{used_here}")]));
    for (i, (path, bytes)) in f.files.iter().enumerate() {
        let what = match (i, f.files.len()) {
            (0, 1) => "file".into(),
            (0, n) => format!("{n} files"),
            _ => String::new(),
        };
        about.push(row([&what, &format!("{path} ({})", size(*bytes as usize))]));
    }
    format!("{}\n{}", f.name, table(&about, &[false, false]))
}

fn layers(f: &FileFacts) -> String {
    let Some(e) = f.experts else { return f.layers.to_string() };
    let used = e.used.map_or("an unknown number".into(), |n| n.to_string());
    if e.layers == f.layers {
        format!("{}, each with {} experts, {used} of them used per token", f.layers, e.count)
    } else {
        format!("{}, {} of them with {} experts, {used} of those used per token", f.layers, e.layers, e.count)
    }
}

/// What the draft heads take.
fn heads(h: &HeadFacts) -> String {
    if let Some(off) = &h.off {
        return wrapped(&format!("Draft heads (multi-token prediction): none, because {off}."));
    }
    let heads = if h.count == 1 { "1 draft head takes".into() } else { format!("{} draft heads take", h.count) };
    let (weights, states) = (size(h.weight_bytes), size(h.state_bytes));
    let counted = if h.is_counted { "counted below" } else { "not counted below, since they are off" };
    wrapped(&format!(
        "Multi-token prediction: {heads} {weights} of weights and {states} of KV cache besides the model; {counted}."
    ))
}

/// The weight formats of the file.
pub(super) fn formats(f: &FileFacts) -> String {
    let mut rows = vec![row([&"", &"tensors", &"weights", &"size", &"share"])];
    for x in &f.formats {
        let share = format!("{:.1} %", x.bytes as f64 * 100.0 / f.bytes.max(1) as f64);
        rows.push(row([&x.name, &x.tensors, &count(x.weights), &size(x.bytes), &share]));
    }
    let tensors: usize = f.formats.iter().map(|x| x.tensors).sum();
    let bits = format!("{:.2} bits per weight", f.bits());
    rows.push(row([&"all", &tensors, &count(f.formats.iter().map(|x| x.weights).sum()), &size(f.bytes), &bits]));
    format!("\nFormats\n{}", table(&rows, &[false, true, true, true, true]))
}

/// The three lines at the head of a report.
pub(super) fn verdict(lines: &[String; 3]) -> String {
    lines.join("\n") + "\n\n"
}

/// The whole report of a model that can run; `numa`: the section on NUMA nodes.
pub(super) fn report(f: &ModelFacts, fit: &MemoryFit, speed: &Speed, numa: &str) -> String {
    let mut out = verdict(&summary::lines(fit, &f.placement.line, speed));
    out += &about(&f.file, Some(f.n_ctx));
    out += &formats(&f.file);
    out += &f.heads.as_ref().map_or(String::new(), heads);
    for u in &f.unused {
        out += &wrapped(&format!("Not used: {} tensors {}*, {}: {}.", u.tensors, u.prefix, size(u.bytes), u.why));
    }
    out += &unused_keys(f);
    out += &f.notes.iter().map(|note| wrapped(&format!("Taken as known: {note}."))).collect::<String>();
    if let Some((layer, n)) = f.prompt_active {
        let before = if layer > 0 { format!("all of the layers before {layer}, and ") } else { String::new() };
        out += &wrapped(&format!(
            "Of a long prompt each token but those at its end is multiplied with {} of the parameters: {before}what layer \
             {layer} keeps of every token.",
            count(n)
        ));
    }

    out += "\nWeights, and what one decoded token reads of them\n";
    let mut rows = vec![row([&"", &"size", &"read per token", &""])];
    for p in &f.parts {
        let note = match (p.name, f.file.experts) {
            ("experts", Some(ExpertFacts { count, used: Some(used), .. })) => format!("{used} of {count}"),
            (TABLES, _) => "rows by token, read from the file".into(),
            ("head", _) if f.tied => "shared with the embedding".into(),
            ("embedding", _) => "one row".into(),
            _ => String::new(),
        };
        rows.push(row([&p.name, &size(p.bytes), &size(p.bytes_per_token), &note]));
    }
    let used: usize = f.parts.iter().map(|p| p.bytes).sum();
    rows.push(row([&"all", &size(used), &size(f.bytes_per_token), &""]));
    out += &table(&rows, &[false, true, true, false]);
    out += &memory(f, fit);
    if f.placement.vram.is_some() {
        out += &placement(&f.placement);
    }
    out + numa + &predicted(f, fit, speed)
}

/// What takes memory, by place, and whether it fits.
fn memory(f: &ModelFacts, fit: &MemoryFit) -> String {
    let mut out = String::from("\nMemory\n");
    let several = f.places.len() > 1;
    let all: usize = f.places.iter().map(|p| p.steps).sum();
    let mut rows = Vec::new();
    for p in &f.places {
        let at = if several { format!(" on {}", p.name) } else { String::new() };
        let steps = if several { format!("{} of {all} steps", p.steps) } else { String::new() };
        rows.push(row([&format!("weights{at}"), &size(p.weight_bytes), &steps]));
        if p.mapped_bytes > 0 {
            rows.push(row([&TABLES, &size(p.mapped_bytes), &MAPPED]));
        }
        rows.push(row([
            &format!("KV cache{at}"),
            &size(p.state_bytes),
            &if several { String::new() } else { cache(f) },
        ]));
        let note = format!("for batches of {} tokens", f.n_batch);
        rows.push(row([&format!("working buffers{at}"), &size(p.buffer_bytes), &note]));
        if p.cache_bytes > 0 {
            rows.push(row([&format!("expert cache{at}"), &size(p.cache_bytes), &""]));
        }
    }
    let p = &f.placement;
    if let Some(free) = p.vram {
        rows.push(row([&"total on GPU", &size(p.needed), &format!("{} free there", size(free))]));
    }
    rows.push(row([&if p.vram.is_some() { "total on CPU" } else { "total" }, &size(fit.needed), &""]));
    if let Some(d) = &fit.drive {
        let kept = format!("{} of {} of each layer", d.slots, d.of);
        rows.push(row([&"experts kept in memory", &size(d.in_memory), &kept]));
        let missed = format!("{:.0} % of the choices, if all are chosen alike", d.misses * 100.0);
        rows.push(row([&"experts on the drive", &size(d.on_drive), &missed]));
    }
    if let Some(m) = fit.memory {
        rows.push(row([&"this machine", &size(m.total), &format!("{} of it free", size(m.free))]));
    }
    out += &table(&rows, &[false, true, false]);
    if several {
        out += &wrapped(&format!("KV cache in total: {}, {}.", size(f.state_bytes), cache(f)));
    }
    for words in &fit.words {
        out += &wrapped(words);
    }
    out
}

/// How fast it will be.
fn predicted(f: &ModelFacts, fit: &MemoryFit, speed: &Speed) -> String {
    let p = &speed.prediction;
    let depth = if speed.depth > 0 { format!(" with {} tokens in the context", speed.depth) } else { String::new() };
    let mut out = format!("\nDecode speed{depth}\n");
    let gb = |n: f64| format!("{:.1} GB/s", n / 1e9);
    let rate = |r: f64| format!("{r:.*} tokens/s", if r < 1000.0 { 1 } else { 0 });
    let mut why = format!("{} per token", size(f.bytes_per_token));
    if p.cpu_bytes > 0.0 {
        let from = if f.places.len() > 1 { format!("; {} from memory", size(p.cpu_bytes as usize)) } else { "".into() };
        why += &format!("{from} at {}, {}", gb(p.ram), speed.ram_from);
    }
    let mut rows = vec![row([&"ceiling", &rate(p.ceiling), &why])];
    let ms = |s: f64| format!("{:.*} ms", if s < 2e-3 { 3 } else { 1 }, s * 1e3);
    if let (Some(expected), Ok(m)) = (p.expected, &speed.measured) {
        let threads = if m.threads == 1 { "1 thread".into() } else { format!("{} threads", m.threads) };
        let whole = ms(1.0 / expected);
        rows.push(row([&"expected", &rate(expected), &format!("{whole} per token with {threads}, {}", speed.isa)]));
    }
    if p.expected.is_some() || f.placement.needed > 0 {
        let total: f64 = p.parts.iter().map(|x| x.1).sum();
        for &(limit, seconds) in p.parts.iter().filter(|x| x.1 >= 0.005 * total) {
            rows.push(row([&"", &ms(seconds), &part(limit, speed)]));
        }
    }
    out += &table(&rows, &[false, true, false]);
    match &speed.measured {
        Ok(m) => out += &wrapped(&format!("Limited by {}.", p.limit_words(speed.steps, Some(m)))),
        Err(why) => out += &wrapped(why),
    }
    if f.placement.needed > 0 {
        let r = &speed.rates;
        let how = match speed.gpu_from {
            GpuRates::Measured => "measured just now".into(),
            GpuRates::Given => "as given".into(),
            GpuRates::Assumed(card) => format!("of an {card}, where not given (--vram-gbps, --bus-gbps)"),
        };
        out += &wrapped(&format!("GPU memory bandwidth {}, bus {}: {how}.", gb(r.vram), gb(r.bus)));
    }
    out += &prompt(&speed.prompt, f.placement.needed > 0);
    if fit.verdict == Verdict::No {
        out += &wrapped("These figures assume that the model fits into memory.");
    }
    out
}

/// What a part of a token's time goes into.
fn part(limit: Limit, speed: &Speed) -> String {
    let p = &speed.prediction;
    match limit {
        Limit::Memory => format!("reading {} of weights from memory", size(p.cpu_bytes as usize)),
        Limit::Kernels(name) => {
            let rate = speed.measured.as_ref().ok().and_then(|m| m.formats.get(name));
            let reach = rate.map_or(String::new(), |r| format!(", which reach {:.1} GB/s", r / 1e9));
            format!("the {name} kernels beyond that{reach}")
        }
        Limit::Attention => "attention".into(),
        Limit::Steps => format!("fixed costs of {} steps", speed.steps),
        Limit::Others => "waiting for cores used by other programs".into(),
        Limit::Gpu => "the GPU's reading and computing beyond the CPU's time".into(),
        Limit::Launches => format!("launching {} kernels and copies on the GPU", p.started),
        Limit::Bus => "copies between CPU and GPU, and waiting for them".into(),
        Limit::Sampling => "sampling".into(),
    }
}

/// How fast a long prompt is read.
fn prompt(p: &PromptSpeed, on_gpu: bool) -> String {
    let PromptSpeed { tokens_per_s, n_batch, limit, measured, all_rows } = p;
    let from = match (measured, on_gpu) {
        (true, false) => "measured just now on one layer of each kind",
        (true, true) => "the CPU's part measured just now, the GPU's assumed from its bandwidth",
        (false, _) => "assumed from the memory bandwidth, as a usual machine's cores do",
    };
    let rate = |n: f64| format!("{n:.*}", if n < 100.0 { 1 } else { 0 });
    let (read, whole) = (rate(*tokens_per_s), |(n, speed)| {
        format!(
            " Of the last layers only the end of a prompt is computed; with all rows it would be {} for {n} tokens.",
            rate(speed)
        )
    });
    let text = format!("A long prompt is read at about {read} tokens/s in batches of {n_batch}, limited by");
    wrapped(&format!("{text} {}: {from}.{}", limit.words(), all_rows.map_or(String::new(), whole)))
}

/// Where the model goes on a machine with a GPU.
fn placement(p: &PlacementFacts) -> String {
    let mut out = String::from("\nPlacement\n");
    out += &match p.needed {
        0 => wrapped("Everything runs on the CPU."),
        _ => wrapped(&format!("On the GPU: {}.", p.words)),
    };
    if let Some(n) = p.batch {
        out += &wrapped(&format!("Prompts are read in batches of {n} tokens, chosen for this placement (-ub N)."));
    }
    if !p.together.is_empty() && p.needed > 0 {
        out += &wrapped(&format!(
            "Layers that read the same cached rows have their attention at one place, rather than a copy of the rows: {}.",
            p.together.join("; ")
        ));
    }
    if let Some(less) = &p.less {
        out += &wrapped(&format!("Less than requested: {less}."));
    }
    for r in &p.refused {
        let others = if r.steps > 1 { format!(" and {} more steps", r.steps - 1) } else { String::new() };
        out += &wrapped(&format!("{}{others} stay on the CPU: {}.", r.first, r.why));
    }
    out += &wrapped(&format!("Equivalent flags: {}", p.flags));
    out
}

/// How the bytes of a KV cache come about.
fn cache(f: &ModelFacts) -> String {
    let (k, v) = (f.cache_types.0.to_lowercase(), f.cache_types.1.to_lowercase());
    let types = if k == v { k } else { format!("{k} and {v}") };
    let mut text =
        format!("at {} tokens: {} per token in {types}", f.n_ctx, size(f.state_bytes_per_token.round() as usize));
    if f.state_fixed_bytes > 0 {
        text += &format!(", and {} that do not depend on the context", size(f.state_fixed_bytes));
    }
    text
}

/// Metadata keys that nothing depends on, with the reason: keys of one reason share a paragraph.
fn unused_keys(f: &ModelFacts) -> String {
    let mut by_reason: Vec<(&str, Vec<String>)> = Vec::new();
    for k in &f.unused_keys {
        let key = format!("{} = {}", k.key.escape_debug(), k.value);
        match by_reason.iter_mut().find(|(why, _)| *why == k.why) {
            Some((_, keys)) => keys.push(key),
            None => by_reason.push((&k.why, vec![key])),
        }
    }
    let paragraphs = by_reason.iter().map(|(why, keys)| wrapped(&format!("{}: {why}.", keys.join(", "))));
    match paragraphs.collect::<String>() {
        text if text.is_empty() => text,
        text => format!("\nMetadata that is not used\n{text}"),
    }
}

/// The table of steps.
pub(super) fn steps(list: &[StepFacts]) -> String {
    let mut rows = vec![row([&"step", &"op", &"output", &"format", &"size", &"per token", &"place"])];
    for s in list {
        rows.push(match s {
            StepFacts::Step { label, op, shape, formats, bytes, bytes_per_token, place } => {
                let shown = |n: &usize| if *n == 0 { String::new() } else { size(*n) };
                row([label, op, shape, formats, &shown(bytes), &shown(bytes_per_token), place])
            }
            StepFacts::Copy { label, from, to } => {
                row([label, &"copy", &format!("{from} to {to}"), &"", &"", &"", &""])
            }
        });
    }
    let n = list.iter().filter(|s| matches!(s, StepFacts::Step { .. })).count();
    let head = format!("\nSteps: {n} (T: a row per token of the batch; W: output rows only)\n");
    head + &table(&rows, &[false, false, false, false, true, true, false])
}
