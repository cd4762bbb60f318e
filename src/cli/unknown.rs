//! Metadata keys that nobody knows: told once when a model is opened, an error under `--strict`.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::errors::doubt;
use crate::gguf::Gguf;
use crate::tape::Tape;

/// Keys that a notice names; of more it tells the number.
const NAMED: usize = 8;

/// Names the metadata keys of the model that neither this version nor llama.cpp knows.
///
/// # Errors
/// If there are any and `--strict` was given.
pub(super) fn unknown_keys(gguf: &Gguf, tape: &Tape) -> Result<()> {
    let unknown: Vec<String> = tape
        .unused_keys
        .iter()
        .filter(|k| !k.known)
        .map(|k| format!("{:?} (value {})", k.key, k.value)) // quoted: it may hold anything
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let more = match unknown.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} more (tandem explain lists them)"),
    };
    let text = format!(
        "{}: unknown metadata, not used: {}{more}; if the model depends on it, the output is wrong",
        gguf.path.display(),
        unknown[..unknown.len().min(NAMED)].join(", ")
    );
    static TOLD: AtomicBool = AtomicBool::new(false); // a verb may open the model more than once
    if TOLD.swap(true, Ordering::Relaxed) { Ok(()) } else { doubt(text) }
}
