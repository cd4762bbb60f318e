//! How errors end the program: usage errors, options without effect, and the exit status of each
//! kind of failure.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::signals;
use crate::cuda::OutOfMemory;
use crate::exec::NoMemory;
use crate::session::{ContextFull, Interrupted};
use crate::text::grammar::DeadEnd;

/// A failure with an exit status of its own, wrapped around the error that explains it.
#[derive(Debug)]
pub(super) enum Failure {
    Usage,
    Model,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Failure::Usage => "usage error",
            Failure::Model => "cannot use this model",
        })
    }
}

/// Whether `--strict` was given; an option without effect is an error then.
static STRICT: AtomicBool = AtomicBool::new(false);

/// Makes every option without effect an error from now on (`--strict`).
pub(super) fn be_strict(strict: bool) {
    STRICT.store(strict, Ordering::Relaxed);
}

/// Prints a notice that an option has no effect and why; an error under `--strict`.
pub(super) fn off(option: &str, why: &str) -> Result<()> {
    if STRICT.load(Ordering::Relaxed) {
        return Err(anyhow::anyhow!("{option} has no effect: {why}").context(Failure::Usage));
    }
    tracing::warn!("{option} has no effect: {why}");
    Ok(())
}

/// Prints a notice about something that may change what is computed; an error under `--strict`.
pub(super) fn doubt(text: String) -> Result<()> {
    if STRICT.load(Ordering::Relaxed) {
        return usage(text);
    }
    tracing::warn!("{text}");
    Ok(())
}

/// A usage error.
pub(super) fn usage<T>(text: String) -> Result<T> {
    Err(anyhow::anyhow!(text).context(Failure::Usage))
}

/// The program's exit status after a failure; `--help` lists them.
pub(super) fn exit_status(e: &anyhow::Error) -> u8 {
    if e.is::<OutOfMemory>() || e.is::<NoMemory>() {
        return 5;
    }
    match e.downcast_ref::<Failure>() {
        Some(Failure::Usage) => return 2,
        Some(Failure::Model) => return 3,
        None => {}
    }
    if e.is::<ContextFull>() {
        4
    } else if e.is::<DeadEnd>() {
        6
    } else if e.is::<Interrupted>() {
        signals::status() as u8
    } else {
        1
    }
}

/// Whether the error is only a closed stdout, which is how `| head` ends a program.
pub(super) fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe))
}
