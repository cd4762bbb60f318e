//! How errors end the program: usage errors, options without effect, and the one table of exit
//! statuses.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::signals;
use crate::cuda::{DriverFailed, OutOfMemory};
use crate::exec::{GpuLost, NoMemory};
use crate::gguf::CutShort;
use crate::session::{ContextFull, Interrupted};
use crate::talk::{End, Generated};
use crate::tape::WrongCacheType;
use crate::text::TooLong;
use crate::text::grammar::DeadEnd;

/// A failure with an exit status of its own, wrapped around the error that explains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Usage,
    Model,
    /// The context filled up while an answer was written. (A prompt that it has no room for is a
    /// [`ContextFull`].)
    Context,
    /// What was thought left no token for the answer.
    NoAnswer,
    /// A text ended before it had the form that was asked for.
    Cut,
    /// The driver lost the GPU while a model ran.
    GpuLost,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Failure::Usage => "usage error",
            Failure::Model => "cannot use this model",
            Failure::Context => "context full",
            Failure::NoAnswer => "the answer never began",
            Failure::Cut => "incomplete text",
            Failure::GpuLost => "GPU lost",
        })
    }
}

/// Statuses of failures that [`Failure`] does not name, as they are errors of their own.
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const BAD_MODEL: u8 = 3;
const CONTEXT_FULL: u8 = 4;
const OUT_OF_MEMORY: u8 = 5;
const DEAD_END: u8 = 6;

/// The exit statuses: the number, what it means, and the failure that ends with it, if one of
/// [`Failure`] does.
const STATUSES: [(u8, &str, Option<Failure>); 11] = [
    (0, "success (also if stdout was closed early)", None),
    (FAILED, "failure", None),
    (USAGE, "usage error", Some(Failure::Usage)),
    (BAD_MODEL, "unusable model file", Some(Failure::Model)),
    (CONTEXT_FULL, "context full", Some(Failure::Context)),
    (OUT_OF_MEMORY, "out of memory", None),
    (DEAD_END, "the grammar allows no token", None),
    (7, "the answer never began (with --strict)", Some(Failure::NoAnswer)),
    (8, "JSON or another form was cut (with --strict)", Some(Failure::Cut)),
    (9, "the GPU was lost", Some(Failure::GpuLost)),
    (130, "interrupted (128 + the signal's number for other signals)", None),
];

/// The table of exit statuses as one sentence, for `--help` and the manual.
pub(super) fn statuses() -> String {
    let list: Vec<String> = STATUSES.iter().map(|(n, what, _)| format!("{n} {what}")).collect();
    format!("Exit status: {}.", list.join(", "))
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

/// Why there is no answer and what helps, if it never began; None where it did, or nobody waited
/// for it to.
pub(super) fn unanswered(said: &Generated, end: &End) -> Option<String> {
    let n = said.tokens.len();
    if said.began(end) || matches!(end, End::Interrupted | End::Limit(0)) {
        return None;
    }
    let more = match end {
        End::Limit(_) => "raise -n",
        End::Context => "raise -c",
        _ => {
            return Some(match said.reasoning.is_empty() {
                true => "the model ended its answer at once".into(),
                false => {
                    format!("the model ended after {n} tokens of reasoning; try another prompt, or --reasoning off")
                }
            });
        }
    };
    let all = if n == 1 { "the only token was".into() } else { format!("all {n} tokens were") };
    Some(match said.reasoning.is_empty() {
        true => format!("{all} blank ({}); {more}", end.describe()),
        false => {
            format!("{all} reasoning ({}); {more}, or end the reasoning with --reasoning-budget N", end.describe())
        }
    })
}

/// Prints why an answer never began; an error under `--strict`.
pub(super) fn no_answer(why: String) -> Result<()> {
    if STRICT.load(Ordering::Relaxed) {
        return Err(anyhow::anyhow!(why).context(Failure::NoAnswer));
    }
    tracing::warn!("no answer: {why}");
    Ok(())
}

/// A usage error.
pub(super) fn usage<T>(text: String) -> Result<T> {
    Err(anyhow::anyhow!(text).context(Failure::Usage))
}

/// Reports texts that end before they have the form that was asked for, `what` in words: a warning,
/// and under `--strict` the error that ends the program.
pub(super) fn incomplete(what: String) -> Result<()> {
    if STRICT.load(Ordering::Relaxed) {
        return Err(anyhow::anyhow!(what).context(Failure::Cut));
    }
    tracing::warn!("{what}");
    Ok(())
}

/// The program's exit status after a failure, by [`STATUSES`].
pub(super) fn exit_status(e: &anyhow::Error) -> u8 {
    if e.is::<CutShort>() {
        return BAD_MODEL; // also where saving fails with it
    }
    if e.is::<WrongCacheType>() {
        return USAGE;
    }
    // Before the model's own failure, which is wrapped around everything that opening one meets.
    if e.is::<OutOfMemory>() || e.is::<NoMemory>() || is_refused_memory(e) {
        return OUT_OF_MEMORY;
    }
    let failed = e.downcast_ref::<DriverFailed>();
    let failure = match e.is::<GpuLost>() || failed.is_some_and(|f| f.is_lost) {
        true => Some(&Failure::GpuLost),
        false => e.downcast_ref::<Failure>().filter(|_| failed.is_none()), // no fault of the model
    };
    if let Some(failure) = failure {
        let row = STATUSES.iter().find(|s| s.2 == Some(*failure));
        return row.expect("every failure is in the table").0;
    }
    if e.is::<ContextFull>() || e.is::<TooLong>() {
        CONTEXT_FULL
    } else if e.is::<DeadEnd>() {
        DEAD_END
    } else if e.is::<Interrupted>() {
        signals::status() as u8
    } else {
        FAILED
    }
}

/// Whether the system refused memory that a file or a map was to have.
fn is_refused_memory(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::OutOfMemory))
}

/// Whether the error is only a closed stdout, which is how `| head` ends a program.
pub(super) fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn every_failure_has_one_number_and_the_help_names_all_of_them() {
        let all = [Failure::Usage, Failure::Model, Failure::Context, Failure::NoAnswer, Failure::Cut, Failure::GpuLost];
        let numbers = all.map(|f| exit_status(&anyhow!("why").context(f)));
        assert_eq!(numbers, [2, 3, 4, 7, 8, 9]);
        for (i, (n, what, _)) in STATUSES.iter().enumerate() {
            assert!(STATUSES[..i].iter().all(|s| s.0 < *n), "{n} is there twice, or out of order");
            assert!(statuses().contains(&format!("{n} {what}")));
        }
        assert_eq!(exit_status(&anyhow!("anything else")), 1);
    }

    #[test]
    fn what_fails_while_a_model_is_opened_is_not_always_a_fault_of_the_file() {
        let refused = Err::<(), _>(std::io::Error::from(ErrorKind::OutOfMemory));
        let e = refused.context("cannot read x.gguf into memory").context(Failure::Model).unwrap_err();
        assert_eq!(exit_status(&e), 5);
        let missing = Err::<(), _>(std::io::Error::from(ErrorKind::NotFound));
        assert_eq!(exit_status(&missing.context(Failure::Model).unwrap_err()), 3);
        let (call, name) = ("to finish".into(), "CUDA_ERROR_ILLEGAL_ADDRESS".into());
        let failed = DriverFailed { call, name, is_lost: false, kernel: None };
        let lost = DriverFailed { is_lost: true, ..failed.clone() };
        let of = |failed: DriverFailed| exit_status(&anyhow!(failed).context(Failure::Model));
        assert_eq!((of(failed), of(lost)), (1, 9), "nor is what a driver refuses, or a GPU that is lost");
        let full = ContextFull { n_ctx: 8, used: 0, given: 9 };
        assert_eq!(exit_status(&anyhow::Error::from(full)), 4);
    }
}
