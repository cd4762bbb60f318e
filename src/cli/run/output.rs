//! Where the text of `tandem run` goes, piece by piece.

use std::io::{IsTerminal, Write};

use anyhow::Result;

use crate::cli::terminal::dimmed;
use crate::talk::Generated;
use crate::text::{Markup, Part};

/// Writes text as it comes: the answer to stdout or the file, the reasoning to stderr if that is a
/// terminal. Where tools are offered, an answer that may be a call is held back.
pub(super) struct OutputWriter<'o> {
    out: &'o mut dyn Write,
    json: bool,
    calls: Option<&'static Markup>,
    /// The answer so far, where it may hold calls, and how much of it was written.
    answer: String,
    written: usize,
    thinks: bool,
    thought: bool,
}

impl<'o> OutputWriter<'o> {
    pub(super) fn new(out: &'o mut dyn Write, json: bool, calls: Option<&'static Markup>) -> OutputWriter<'o> {
        let thinks = std::io::stderr().is_terminal();
        OutputWriter { out, json, calls, answer: String::new(), written: 0, thinks, thought: false }
    }

    pub(super) fn write(&mut self, part: Part, text: &str) -> Result<()> {
        match part {
            _ if text.is_empty() => {}
            Part::Reasoning if self.thinks => {
                let _ = write!(std::io::stderr(), "{}", dimmed(text));
                self.thought = true;
            }
            Part::Answer if !self.json => {
                if std::mem::take(&mut self.thought) {
                    say!("\n");
                }
                let text = match self.calls {
                    Some(calls) => {
                        self.answer.push_str(text);
                        let (from, to) = (self.written, calls.certain(&self.answer).max(self.written));
                        self.written = to;
                        &self.answer[from..to]
                    }
                    None => text,
                };
                self.out.write_all(text.as_bytes())?;
                self.out.flush()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The end: what was held back, and the calls, one JSON object per line.
    pub(super) fn finish(&mut self, said: &Generated) -> Result<()> {
        if self.thought {
            say!("");
        }
        if self.calls.is_some() && !self.json {
            let shown = self.answer[..self.written].trim_start().len().min(said.answer.len());
            let start = said.answer.len() - said.answer.trim_start().len();
            let at = if self.written == 0 { 0 } else { start + shown };
            self.out.write_all(said.answer.get(at..).unwrap_or("").as_bytes())?;
            if !said.answer.is_empty() && !said.calls.is_empty() && !said.answer.ends_with('\n') {
                writeln!(self.out)?;
            }
            for call in said.own_calls().as_array().into_iter().flatten() {
                writeln!(self.out, "{call}")?;
            }
        }
        Ok(self.out.flush()?)
    }
}
