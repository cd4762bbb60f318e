//! The process in which a form is tried: this program again, with limits on its time and memory.
//!
//! `tandem __try-form` reads what [`run_trial`] wants from stdin. It is no verb: nothing but this
//! file calls it.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::text::grammar::run_trial;

/// The argument that makes the program try a form.
pub(super) const ARGUMENT: &str = "__try-form";
/// Its exit status where it cannot be limited.
const NO_LIMITS: i32 = 2;
/// Seconds of the processor. The largest ordinary schemas take a twentieth: 300 objects in an anyOf
/// 45 ms, 10,000 words of an enum 110 ms.
const SECONDS: u64 = 1;
/// Memory beyond what the process has when it begins, without the stack on which a form is
/// compiled.
const MEMORY: u64 = 256 << 20;
/// Address space that the compiling thread's stack takes, most of which never becomes memory.
const STACK: u64 = 320 << 20;

/// Tries a form; an error if that takes too much.
pub(super) fn try_form(trial: &str) -> Result<()> {
    let started = std::env::current_exe().and_then(|program| {
        Command::new(program).arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    });
    let mut child = match started {
        Ok(child) => child,
        Err(e) => return unbounded(&format!("no process for it can be started: {e}")),
    };
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(trial.as_bytes()); // one that is gone says why by its status
    }
    let status = child.wait().context("cannot wait for the process that tries it")?;
    let Some(signal) = status.signal() else {
        // A mistake in the form is told where it is compiled.
        return if status.code() == Some(NO_LIMITS) { unbounded("this system sets no limits") } else { Ok(()) };
    };
    match Signal::from_named_raw(signal) {
        Some(Signal::XCPU | Signal::KILL) => {
            bail!("compiling it takes more than {SECONDS} s of processor time; simplify it")
        }
        Some(Signal::ABORT | Signal::SEGV | Signal::BUS) => {
            bail!("compiling it takes more than {} MiB of memory; simplify it", MEMORY >> 20)
        }
        _ => bail!("compiling it was ended by signal {signal}"),
    }
}

/// Says that a form is compiled without having been tried.
fn unbounded(why: &str) -> Result<()> {
    tracing::warn!("nothing bounds how long a grammar takes to compile: {why}");
    Ok(())
}

/// The program as such a process.
pub(super) fn main() -> ExitCode {
    let mut trial = String::new();
    if std::io::stdin().read_to_string(&mut trial).is_err() || limit().is_err() {
        return ExitCode::from(NO_LIMITS as u8);
    }
    ExitCode::from(u8::from(run_trial(&trial).is_err()))
}

/// Limits this process from here on.
fn limit() -> Result<()> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').next().unwrap_or_default().parse().context("/proc/self/statm")?;
    let space = pages * rustix::param::page_size() as u64 + STACK + MEMORY;
    for (resource, most) in [(Resource::Cpu, SECONDS), (Resource::As, space), (Resource::Core, 0)] {
        let hard = getrlimit(resource).maximum;
        let most = hard.map_or(most, |hard| hard.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: hard })?;
    }
    Ok(())
}
