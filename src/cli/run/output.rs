//! Where the text of `tandem run` goes, piece by piece.

use std::io::{IsTerminal, Write};

use anyhow::Result;

use crate::cli::terminal::dimmed;
use crate::text::Part;

/// Writes text as it comes: the answer to stdout or the file, the reasoning to stderr if that is a
/// terminal.
pub(super) struct OutputWriter<'o> {
    out: &'o mut dyn Write,
    json: bool,
    thinks: bool,
    thought: bool,
}

impl<'o> OutputWriter<'o> {
    pub(super) fn new(out: &'o mut dyn Write, json: bool) -> OutputWriter<'o> {
        OutputWriter { out, json, thinks: std::io::stderr().is_terminal(), thought: false }
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
                self.out.write_all(text.as_bytes())?;
                self.out.flush()?;
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        if self.thought {
            say!("");
        }
        Ok(self.out.flush()?)
    }
}
