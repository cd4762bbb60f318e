//! `tandem tokenize`: text to token IDs, printed as llama-tokenize prints them.

use std::io::{BufWriter, IsTerminal, Write};

use anyhow::{Context, Result, anyhow};

use super::errors::{Failure, usage};
use super::escapes::unescape;
use super::files::{read_text, read_within};
use super::terminal::Stdout;
use super::{args, open};
use crate::gguf::Load;
use crate::text::Tokenizer;

/// Runs the verb.
pub(super) fn run(a: &args::TokenizeArgs) -> Result<()> {
    let text = text(a)?;
    let gguf = open::header(a.model.as_deref(), &Load::default(), 0)?;
    let tokenizer = Tokenizer::new(&gguf).context(Failure::Model)?;
    let ids = tokenizer.encode(&text, tokenizer.adds_bos() && !a.no_bos, !a.no_parse_special)?;
    let mut out = BufWriter::new(Stdout::of_answers());
    if a.ids {
        writeln!(out, "{ids:?}")?;
    } else {
        for &id in &ids {
            write!(out, "{id:6} -> '")?;
            // A token's bytes need not be whole characters; they are written as they are.
            out.write_all(&tokenizer.bytes(id, true))?;
            writeln!(out, "'")?;
        }
    }
    if a.show_count {
        writeln!(out, "Total number of tokens: {}", ids.len())?;
    }
    out.flush()?;
    Ok(())
}

/// The text from -p, -f or stdin.
fn text(a: &args::TokenizeArgs) -> Result<String> {
    if let Some(text) = &a.prompt {
        return Ok(if a.no_escape { text.clone() } else { unescape(text) });
    }
    if let Some(path) = &a.file {
        return read_text(path);
    }
    if !a.stdin && std::io::stdin().is_terminal() {
        return usage("no text; give one with -p TEXT or -f FILE, or pipe it in".into());
    }
    let bytes = read_within(std::io::stdin(), "stdin", 0)?;
    String::from_utf8(bytes).map_err(|e| anyhow!("stdin is not UTF-8 text (byte {})", e.utf8_error().valid_up_to()))
}
