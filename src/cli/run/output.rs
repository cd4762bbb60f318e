//! Where the text of `tandem run` goes, piece by piece.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};

use crate::cli::args;
use crate::cli::terminal::colour;
use crate::text::Part;

/// Where the text goes.
pub(super) fn open(a: &args::RunArgs) -> Result<Box<dyn Write>> {
    match &a.output {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(Box::new(file))
        }
        None => Ok(Box::new(std::io::stdout().lock())),
    }
}

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
            Part::Reasoning if self.thinks => {
                let _ = write!(std::io::stderr(), "{}", self.dim(text));
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

    /// Reasoning is dimmed where colours are wanted.
    fn dim(&self, text: &str) -> String {
        if colour(std::io::stderr().is_terminal()) { format!("\x1b[2m{text}\x1b[22m") } else { text.into() }
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        if self.thought {
            say!("");
        }
        Ok(self.out.flush()?)
    }
}
