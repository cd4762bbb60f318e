//! How an answer is written to the terminal, its reasoning set apart; and what is shown while there
//! is nothing else to see.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::markdown::Markdown;
use super::wrap::Style;
use crate::cli::human::grouped;
use crate::cli::terminal::{answer_text, colour, columns, dimmed};
use crate::printable::printable;
use crate::text::Part;

/// How often the count of hidden thoughts is drawn.
const DRAWN: Duration = Duration::from_millis(100);

/// How the terminal is written to.
pub(super) struct Screen {
    /// Whether reasoning is shown.
    pub(super) reasoning: bool,
    /// Whether Markdown is shown in styles.
    pub(super) markdown: bool,
    /// Whether stdin is a terminal, so that somebody is there.
    pub(super) person: bool,
    /// Whether the terminal has no cursor that can be moved; it breaks lines as it likes.
    dumb: bool,
}

impl Screen {
    pub(super) fn new(reasoning: bool) -> Screen {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Screen { reasoning, markdown: true, person: std::io::stdin().is_terminal(), dumb }
    }

    /// The columns to write in; None where lines are not broken.
    fn width(&self, at: impl AsFd) -> Option<usize> {
        if self.dumb { None } else { columns(at) }
    }

    /// A whole text as it would be shown on stderr, in the styles of Markdown or as it is.
    pub(super) fn shown(&self, text: &str, markdown: bool) -> String {
        if !std::io::stderr().is_terminal() {
            return text.to_owned();
        }
        let mut page = Markdown::new(colour(true), !markdown);
        page.set_width(self.width(std::io::stderr()));
        page.push(&printable(text)) + &page.finish()
    }
}

/// Prints a line on stderr that is only there to be glanced at; nothing under `-q` or if stderr is
/// not a terminal.
pub(super) fn aside(text: &str) {
    if !std::io::stderr().is_terminal() || !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    styled(&format!("{}\n", dimmed(text)));
}

/// Writes text that has escape sequences of this program's own on stderr.
pub(super) fn styled(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes an answer, its reasoning set apart.
pub(super) struct AnswerWriter<'s> {
    screen: &'s Screen,
    /// None where text is written as it comes: not on a terminal.
    page: Option<Markdown>,
    thoughts: Thoughts,
    /// The last text was reasoning.
    dim: bool,
    /// Whether anything of the answer, or of the reasoning, was written.
    answered: bool,
    thought: bool,
    /// The last text ended a line.
    line_done: bool,
}

impl<'s> AnswerWriter<'s> {
    pub(super) fn new(screen: &'s Screen) -> AnswerWriter<'s> {
        let page = std::io::stdout().is_terminal().then(|| Markdown::new(colour(true), !screen.markdown));
        let thoughts = Thoughts::new(std::io::stderr().is_terminal() && !screen.dumb && !screen.reasoning);
        AnswerWriter { screen, page, thoughts, dim: false, answered: false, thought: false, line_done: true }
    }

    /// Writes text; called once for every token, so with nothing where a token completes no text.
    pub(super) fn write(&mut self, part: Part, text: &str) -> Result<()> {
        let reasoning = part == Part::Reasoning;
        if reasoning && self.screen.reasoning {
            self.thoughts.tokens += 1;
        }
        if reasoning && !self.screen.reasoning {
            self.thoughts.count(!self.answered && !self.thought);
            return Ok(());
        }
        // White space before the first word would only move the answer about.
        let text = if reasoning && !self.thought || !reasoning && !self.answered { text.trim_start() } else { text };
        if text.is_empty() {
            return Ok(());
        }
        self.thoughts.clear();
        let mut out = std::io::stdout().lock();
        if reasoning != self.dim {
            self.dim = reasoning;
            if !reasoning && self.thought {
                out.write_all(self.end_of_part().as_bytes())?;
                out.write_all(if self.line_done { b"\n" } else { b"\n\n" })?;
            }
        }
        *(if reasoning { &mut self.thought } else { &mut self.answered }) = true;
        self.line_done = text.ends_with('\n');
        let text = answer_text(text);
        match &mut self.page {
            None => out.write_all(text.as_bytes())?,
            Some(page) => {
                page.set_width(self.screen.width(std::io::stdout())); // the window may have changed
                let shown = if reasoning { page.aside(&text, Style::DIM) } else { page.push(&text) };
                out.write_all(shown.as_bytes())?;
            }
        }
        Ok(out.flush()?)
    }

    /// The tokens of reasoning so far, shown or hidden.
    pub(super) fn thought_tokens(&self) -> usize {
        self.thoughts.tokens
    }

    /// What was held back of the part that ends.
    fn end_of_part(&mut self) -> String {
        self.page.as_mut().map_or_else(String::new, Markdown::finish)
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        self.thoughts.clear();
        let rest = self.end_of_part();
        let mut out = std::io::stdout().lock();
        out.write_all(rest.as_bytes())?;
        if !self.line_done {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }
}

/// The count of hidden thoughts: a line on stderr that changes in place.
struct Thoughts {
    shown: bool,
    tokens: usize,
    since: Option<Instant>,
    drawn: Option<Instant>,
}

impl Thoughts {
    fn new(shown: bool) -> Thoughts {
        let shown = shown && tracing::enabled!(tracing::Level::INFO);
        Thoughts { shown, tokens: 0, since: None, drawn: None }
    }

    /// A token more; `free`: the cursor is at the head of a line.
    fn count(&mut self, free: bool) {
        self.tokens += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.shown && free && self.drawn.is_none_or(|at| at.elapsed() >= DRAWN) {
            self.drawn = Some(Instant::now());
            let (n, seconds) = (grouped(self.tokens), since.elapsed().as_secs());
            let text = format!("thinking {n} {}, {seconds} s", if self.tokens == 1 { "token" } else { "tokens" });
            let text = if colour(true) { format!("\x1b[2m{text}\x1b[22m") } else { text };
            let _ = write!(std::io::stderr(), "\r{text}\x1b[K");
        }
    }

    /// Takes the line away.
    fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
