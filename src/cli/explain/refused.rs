//! A file that this version cannot run: what its header tells, then what is missing, by name.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Error, Result, anyhow};

use super::facts::TABLES;
use super::file::FileFacts;
use super::json;
use super::report::{MAPPED, about, formats, row};
use super::verdict::MemoryFit;
use crate::cli::args::ExplainArgs;
use crate::cli::errors::Failure;
use crate::cli::human::{size, table, wrapped};
use crate::cpu::Memory;
use crate::gguf::Gguf;
use crate::tape::Refusal;

/// Prints the report of a file that has no tape, because of `why`.
///
/// # Errors
/// Always: the model cannot be used, which the exit status tells too.
pub(super) fn explain(a: &ExplainArgs, gguf: &Gguf, memory: Option<Memory>, why: Error) -> Result<()> {
    let f = FileFacts::new(gguf, |_| false);
    let fit = MemoryFit::of_weights(&f, memory);
    let missing = missing(gguf, &why);
    let mut out = std::io::stdout().lock();
    if a.json {
        let mut object = json::of_file(&f, &fit);
        object["missing"] = missing.into();
        serde_json::to_writer_pretty(&mut out, &object).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        out.write_all(report(&f, &fit, &missing).as_bytes())?;
    }
    out.flush()?;
    Err(anyhow!("{}: the report names what is missing", gguf.path.display())).context(Failure::Model)
}

fn report(f: &FileFacts, fit: &MemoryFit, missing: &[String]) -> String {
    let mut out = about(f, None) + &formats(f) + "\nMemory\n";
    let mut rows = vec![row([&"weights", &size(fit.needed), &"without the KV cache and working buffers"])];
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
