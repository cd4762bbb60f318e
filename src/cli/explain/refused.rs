//! A file that this version cannot run: what its header tells, then what is missing, by name.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Error, Result, anyhow};

use super::facts::TABLES;
use super::file::FileFacts;
use super::json;
use super::report::{self, MAPPED, about, formats, row};
use super::summary::lines_of_refused;
use super::verdict::MemoryFit;
use crate::cli::args::ExplainArgs;
use crate::cli::errors::Failure;
use crate::cli::human::{size, table, wrapped};
use crate::cli::terminal::Stdout;
use crate::cpu::{Bandwidth, Memory, Pool};
use crate::gguf::Gguf;
use crate::quant;
use crate::session;
use crate::tape::Refusal;

/// Prints the report of a file that has no tape, because of `why`.
///
/// # Errors
/// Always: the model cannot be used, which the exit status tells too.
pub(super) fn explain(a: &ExplainArgs, gguf: &Gguf, memory: Option<Memory>, why: Error) -> Result<()> {
    let f = FileFacts::new(gguf, |_| false);
    let fit = MemoryFit::of_weights(&f, memory);
    let cache = cache(a, gguf, &f);
    let missing = missing(gguf, &why);
    let gbps = match a.ram_gbps {
        Some(gbps) => gbps,
        None => Bandwidth::default().measure(&Pool::new(a.model.threads)?),
    };
    let reason = in_short(&missing);
    let verdict = lines_of_refused(&f, &fit, &reason, gbps);
    let mut out = Stdout::of_reports();
    if a.json {
        let mut object = json::of_file(&f, &fit, &verdict);
        object["memory"]["cache_bytes"] = cache.map(|c| c.1).into();
        object["missing"] = missing.into();
        serde_json::to_writer_pretty(&mut out, &object).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        out.write_all(report::verdict(&verdict).as_bytes())?;
        out.write_all(report(&f, &fit, cache, &missing).as_bytes())?;
    }
    out.flush()?;
    Err(anyhow!("{}: the report names what is missing", gguf.path.display())).context(Failure::Model)
}

/// The context, and the bytes of its KV cache if every layer has the attention that the metadata's
/// sizes tell of.
fn cache(a: &ExplainArgs, gguf: &Gguf, f: &FileFacts) -> Option<(usize, usize)> {
    let n_ctx = session::context(gguf, a.model.ctx_size).ok()?;
    let ty = quant::by_name(&a.model.cache_type_k).filter(|ty| ty.kv.is_some())?;
    let bytes = f.cached_values?.checked_mul(n_ctx)? as f64 / ty.block as f64 * ty.bytes as f64;
    Some((n_ctx, bytes as usize))
}

/// The first thing that is missing, short enough for a line.
fn in_short(missing: &[String]) -> String {
    let first = missing.first().map_or("nobody knows why", |m| m.split(['(', ';']).next().unwrap_or(m).trim_end());
    let cut: String = first.chars().take(70).collect();
    let dots = if cut.len() < first.len() { ".." } else { "" };
    match missing.len() {
        0 | 1 => format!("{cut}{dots}"),
        n => format!("{cut}{dots}, and {} more below", n - 1),
    }
}

fn report(f: &FileFacts, fit: &MemoryFit, cache: Option<(usize, usize)>, missing: &[String]) -> String {
    let mut out = about(f, None) + &formats(f) + "\nMemory\n";
    let mut rows = vec![row([&"weights", &size(fit.needed), &"without the KV cache and working buffers"])];
    if let Some((n_ctx, bytes)) = cache {
        let note = format!("about, at {n_ctx} tokens, if every layer has the attention that the sizes tell of");
        rows.push(row([&"KV cache", &size(bytes), &note]));
    }
    let tables: usize = f.tables.iter().map(|t| t.bytes).sum();
    if tables > 0 {
        rows.insert(0, row([&TABLES, &size(tables), &MAPPED]));
    }
    if let Some(m) = fit.memory {
        rows.push(row([&"this machine", &size(m.total), &format!("{} of it free", size(m.free))]));
    }
    out += &table(&rows, &[false, true, false]);
    fit.words.iter().for_each(|words| out += &wrapped(words));
    out += "\nThis version cannot run the model. What is missing\n";
    missing.iter().for_each(|what| out += &wrapped(what));
    out
}

/// What is missing, each by name: tensors of the same name in several layers are one.
fn missing(gguf: &Gguf, why: &Error) -> Vec<String> {
    let Some(refusal) = why.downcast_ref::<Refusal>() else {
        let text = format!("{why:#}");
        return vec![text.strip_prefix(&format!("{}: ", gguf.path.display())).unwrap_or(&text).to_owned()];
    };
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for name in refusal.tensors.iter().map(|name| name.escape_debug().to_string()) {
        let of_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let name = of_layer.map_or(name.clone(), |(_, rest)| format!("blk.*.{rest}"));
        *names.entry(name).or_default() += 1;
    }
    let tensor = |(name, n): (&String, &usize)| match n {
        1 => format!("tensor {name}: not part of the {} model that this version knows", refusal.arch),
        n => format!("{n} tensors {name}: not part of the {} model that this version knows", refusal.arch),
    };
    let keys = refusal.keys.iter().map(|key| format!("metadata key {key}"));
    names.iter().map(tensor).chain(keys).collect()
}
