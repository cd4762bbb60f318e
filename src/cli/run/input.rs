//! The prompt of `tandem run`, from its flags and from stdin, and the checks of the files that are
//! named.

use std::io::IsTerminal;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cli::args;
use crate::cli::errors::{Failure, usage};
use crate::cli::files::{apart, has_folder, read_text, read_within};
use crate::cli::signals::start_thread;

/// Refuses to write a file that is also read, or whose folder does not exist.
pub(super) fn check_files(a: &args::RunArgs) -> Result<()> {
    let read = [
        ("the model", a.model.model.as_deref()),
        ("the prompt", a.file.as_deref()),
        ("the prefix", a.prefix_file.as_deref()),
        ("the session", a.session.as_deref()),
    ];
    if let Some(out) = &a.output {
        apart("-o", out, &read)?;
        has_folder("-o", out)?;
    }
    if let Some(path) = &a.session {
        apart("--session", path, &read[..3])?;
        has_folder("--session", path)?;
    }
    Ok(())
}

/// The prompt, between --in-prefix and --in-suffix.
pub(super) fn prompt(a: &args::RunArgs) -> Result<String> {
    let around = |text: &Option<String>| text.as_deref().map_or(String::new(), |text| a.talk.text(text));
    Ok(around(&a.in_prefix) + &given(a)? + &around(&a.in_suffix))
}

/// The prompt from -p or -f, with stdin appended to it.
fn given(a: &args::RunArgs) -> Result<String> {
    let own = match (a.prompt.as_ref().or(a.question.as_ref()), &a.file) {
        (Some(text), _) => Some(a.talk.text(text)),
        (None, Some(path)) => Some(read_text(path)?),
        (None, None) => None,
    };
    let piped = if a.no_stdin || std::io::stdin().is_terminal() { None } else { Some(stdin(own.as_deref())?) };
    match (own, piped) {
        (None, None) => usage("no prompt; give one with -p TEXT or -f FILE, or pipe it in".into()),
        (Some(own), None) => Ok(own),
        (None, Some(piped)) => Ok(piped),
        (Some(own), Some(piped)) if piped.is_empty() => Ok(own),
        (Some(own), Some(piped)) => {
            tracing::info!("{} bytes of stdin are appended to the prompt (--no-stdin ignores stdin)", piped.len());
            let gap = if own.is_empty() || own.ends_with(char::is_whitespace) { "" } else { "\n" };
            Ok(own + gap + &piped)
        }
    }
}

/// All of stdin. Where there is a prompt already, stdin may never end: after 2 seconds a notice
/// says what is waited for.
fn stdin(prompt: Option<&str>) -> Result<String> {
    let (send, done) = mpsc::channel::<()>();
    if prompt.is_some() {
        start_thread("stdin", move || {
            if done.recv_timeout(Duration::from_secs(2)) == Err(mpsc::RecvTimeoutError::Timeout) {
                tracing::warn!("waiting for the end of stdin, to append it to the prompt (--no-stdin ignores stdin)");
            }
        })?;
    }
    let bytes = read_within(std::io::stdin(), "stdin", prompt.map_or(0, str::len))?;
    drop(send);
    String::from_utf8(bytes).context("stdin is not UTF-8 text").context(Failure::Usage)
}
