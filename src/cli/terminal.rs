//! What only a terminal is shown: colours, and how far a prompt has been read or a file written; and
//! what it is never shown: text that it would obey.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use std::os::fd::AsFd;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use rustix::termios::tcgetwinsize;

use crate::printable::{Printable, printable};
use crate::session::Progress;

/// Standard output, named in its errors.
pub(super) struct Stdout(Box<dyn Write>);

impl Stdout {
    /// For answers and other text that programs read: on a terminal it is made printable, elsewhere
    /// its bytes stay as they are.
    pub(super) fn of_answers() -> Stdout {
        match io::stdout().is_terminal() {
            true => Stdout::of_reports(),
            false => Stdout(Box::new(io::stdout().lock())),
        }
    }

    /// For reports on files that come from anywhere: always made printable.
    pub(super) fn of_reports() -> Stdout {
        Stdout(Box::new(Printable::new(io::stdout().lock())))
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(of_stdout)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(of_stdout)
    }
}

/// An error of writing to stdout, which says so.
pub(super) fn of_stdout(e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("cannot write to stdout: {e}"))
}

/// Text of an answer as stdout is given it (see [`Stdout::of_answers`]), for those who put colours
/// around it.
pub(super) fn answer_text(text: &str) -> Cow<'_, str> {
    if io::stdout().is_terminal() { printable(text) } else { text.into() }
}

/// Whether to write in colours; `terminal`: whether the output is one.
pub(super) fn colour(terminal: bool) -> bool {
    let set = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    terminal && !set && !dumb
}

/// Text for stderr, dimmed where it is a terminal that shows colours. Made printable: the escapes around it would not pass
/// through `say!`.
pub(super) fn dimmed(text: &str) -> String {
    let text = printable(text);
    if colour(io::stderr().is_terminal()) { format!("\x1b[2m{text}\x1b[22m") } else { text.into_owned() }
}

/// The columns of the terminal that `at` is; None if it is none, or does not say.
pub(super) fn columns(at: impl AsFd) -> Option<usize> {
    tcgetwinsize(at).ok().map(|size| usize::from(size.ws_col)).filter(|n| *n > 0)
}

/// Shows on stderr how far a prompt has been read, and only where that is a terminal.
pub(super) struct PromptBar {
    bar: ProgressBar,
    /// How far the current text has been read, and the tokens of those before it.
    at: Progress,
    earlier: usize,
}

impl PromptBar {
    pub(super) fn new() -> PromptBar {
        PromptBar { bar: ProgressBar::hidden(), at: Progress { total: 0, read: 0 }, earlier: 0 }
    }

    pub(super) fn progress(&mut self, p: Progress) {
        if p.read < self.at.read || self.at.total == 0 {
            self.earlier = self.finish(); // a prefix is read before the rest
            self.bar = bar(p.total);
        }
        self.at = p;
        self.bar.set_position(p.read as u64);
    }

    /// Takes the bar away; how many tokens were read.
    pub(super) fn finish(&self) -> usize {
        self.bar.finish_and_clear();
        self.earlier + self.at.read
    }
}

/// A bar for a prompt of `total` tokens.
fn bar(total: usize) -> ProgressBar {
    let bar = ProgressBar::new(total as u64);
    let form = "reading the prompt {bar:30} {pos}/{len} tokens, {rate} tokens/s, {eta} left";
    let style = ProgressStyle::with_template(form).expect("a template that is right");
    let rate = |s: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{:.0}", s.per_sec());
    };
    bar.set_style(style.with_key("rate", rate));
    hide_if_quiet(&bar);
    bar
}

/// Takes the bar from the screen under `-q`.
fn hide_if_quiet(bar: &ProgressBar) {
    if !tracing::enabled!(tracing::Level::INFO) {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
}

/// Shows on stderr how much of a file has been written, and only where that is a terminal.
pub(super) struct WriteBar(ProgressBar);

impl WriteBar {
    /// A bar for a file of this many bytes.
    pub(super) fn new(bytes: u64) -> WriteBar {
        let bar = ProgressBar::new(bytes);
        let form = "writing {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(form).expect("a template that is right"));
        hide_if_quiet(&bar);
        WriteBar(bar)
    }

    pub(super) fn progress(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for WriteBar {
    /// An error leaves no bar on the screen.
    fn drop(&mut self) {
        self.finish();
    }
}

impl Drop for PromptBar {
    /// An error leaves no bar on the screen.
    fn drop(&mut self) {
        self.finish();
    }
}
