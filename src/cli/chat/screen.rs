//! How an answer is written to the terminal, its reasoning set apart.

use std::io::{IsTerminal, Write};

use anyhow::Result;

use crate::cli::terminal::{answer_text, colour};
use crate::text::Part;

/// How the terminal is written to.
pub(super) struct Screen {
    pub(super) colour: bool,
    pub(super) reasoning: bool,
}

impl Screen {
    pub(super) fn new(reasoning: bool) -> Screen {
        Screen { colour: colour(std::io::stdout().is_terminal()), reasoning }
    }
}

/// Writes an answer, its reasoning set apart.
pub(super) struct AnswerWriter<'s> {
    screen: &'s Screen,
    dim: bool,
    /// Whether anything of the answer, or of the reasoning, was written.
    answered: bool,
    thought: bool,
    /// The last text ended a line.
    line_done: bool,
}

impl<'s> AnswerWriter<'s> {
    pub(super) fn new(screen: &'s Screen) -> AnswerWriter<'s> {
        AnswerWriter { screen, dim: false, answered: false, thought: false, line_done: true }
    }

    pub(super) fn write(&mut self, part: Part, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let reasoning = part == Part::Reasoning;
        if reasoning && !self.screen.reasoning {
            return Ok(());
        }
        // White space before the first word would only move the answer about.
        let text = if reasoning && !self.thought || !reasoning && !self.answered { text.trim_start() } else { text };
        if text.is_empty() {
            return Ok(());
        }
        if reasoning != self.dim {
            self.set(&mut out, reasoning)?;
            if !reasoning && self.thought {
                let gap = if self.line_done { "\n" } else { "\n\n" };
                out.write_all(gap.as_bytes())?;
            }
        }
        *(if reasoning { &mut self.thought } else { &mut self.answered }) = true;
        self.line_done = text.ends_with('\n');
        out.write_all(answer_text(text).as_bytes())?;
        Ok(out.flush()?)
    }

    fn set(&mut self, out: &mut impl Write, dim: bool) -> Result<()> {
        self.dim = dim;
        if self.screen.colour {
            out.write_all(if dim { b"\x1b[2m" } else { b"\x1b[22m" })?;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.dim {
            self.set(&mut out, false)?;
        }
        if !self.line_done {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }
}
