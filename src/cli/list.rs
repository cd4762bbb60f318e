//! `tandem list`: the models in the cache, whole or not, and what is on the way.

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args::ListArgs;
use super::errors::Failure;
use super::human::{size, table};
use crate::hub::{CachedModel, Hub, UnfinishedFile};

/// Runs the verb.
pub(super) fn run(a: &ListArgs) -> Result<()> {
    let hub = Hub::of(&|name| std::env::var_os(name)).context(Failure::Usage)?;
    let models = hub.list();
    let (own, foreign) = hub.unfinished();
    let mut out = std::io::stdout().lock();
    if a.json {
        let object = json!({
            "cache": hub.cache.root(),
            "models": models.iter().map(object).collect::<Vec<Value>>(),
            "unfinished": own.iter().map(|u| json!({
                "repo": u.repo, "file": u.path, "bytes": u.size, "fetched_bytes": u.done,
            })).collect::<Vec<Value>>(),
            "unfinished_of_others": foreign.iter().map(|(p, n)| json!({"path": p, "bytes": n})).collect::<Vec<Value>>(),
        });
        serde_json::to_writer_pretty(&mut out, &object).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    let mut rows: Vec<Vec<String>> = models.iter().map(row).collect();
    rows.extend(own.iter().map(unfinished));
    if rows.is_empty() {
        tracing::info!("no model in {}; tandem fetch USER/REPO:QUANT brings one", hub.cache.root().display());
    } else {
        rows.insert(0, ["model", "size", "state"].map(String::from).to_vec());
        out.write_all(table(&rows, &[false, true, false]).as_bytes())?;
        let bytes: u64 = models.iter().map(|m| m.model.bytes()).sum();
        tracing::info!("{} in {}", size(bytes as usize), hub.cache.root().display());
    }
    for (path, bytes) in &foreign {
        tracing::info!("{} ({}): left unfinished by another program", path.display(), size(*bytes as usize));
    }
    Ok(out.flush()?)
}

/// What `-hf` opens a model by: its quant, or its file where the name has none.
fn name(m: &CachedModel) -> String {
    match (m.model.quant(), m.model.files.first()) {
        ("", Some(file)) => format!("{} -hff {}", m.repo, file.path),
        (quant, _) => format!("{}:{quant}", m.repo),
    }
}

fn row(m: &CachedModel) -> Vec<String> {
    let state = match (m.model.files.len(), m.model.count) {
        (1, 1) => "complete".into(),
        (n, count) if n == count => format!("complete, {n} files"),
        (n, count) => format!("{n} of {count} files"),
    };
    vec![name(m), size(m.model.bytes() as usize), state]
}

fn unfinished(u: &UnfinishedFile) -> Vec<String> {
    let percent = u.done as f64 * 100.0 / u.size.max(1) as f64;
    vec![format!("{} {}", u.repo, u.path), size(u.size as usize), format!("{percent:.0}% fetched")]
}

fn object(m: &CachedModel) -> Value {
    let files: Vec<&str> = m.model.files.iter().map(|f| f.path.as_str()).collect();
    json!({
        "name": name(m), "repo": m.repo, "quant": m.model.quant(), "bytes": m.model.bytes(), "files": files,
        "n_files": m.model.count, "complete": m.model.missing.is_none(), "path": m.path,
    })
}
