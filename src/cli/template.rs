//! `tandem template`: a chat template's variables to the exact prompt.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use serde_json::Value;

use super::errors::{Failure, usage};
use super::files::{read_text, read_within};
use super::terminal::Stdout;
use super::{args, open};
use crate::gguf::Load;
use crate::text::{Clock, Template, Tokenizer};

/// Runs the verb.
pub(super) fn run(a: &args::TemplateArgs) -> Result<()> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return usage(
            "no variables; pipe in a JSON object: {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}".into(),
        );
    }
    let mut variables: Value =
        serde_json::from_slice(&read_within(stdin, "stdin", 0)?).context("stdin is not one JSON object")?;
    let Some(object) = variables.as_object_mut() else {
        return usage(format!("stdin is {variables}, expected a JSON object with messages in it"));
    };
    let template = match &a.chat_template_file {
        Some(path) => Template::new(&read_text(path)?, &path.display().to_string())?,
        None => {
            let gguf = open::header(a.model.as_deref(), &Load::default(), 0)?;
            let tokenizer = Tokenizer::new(&gguf).context(Failure::Model)?;
            tokenizer.add_variables(object);
            let tools = object.get("tools").and_then(Value::as_array).is_some_and(|t| !t.is_empty());
            match &a.chat_template {
                Some(name) => Template::chosen(&gguf.meta, name, tokenizer.adds_bos()).context(Failure::Usage)?,
                None => Template::of(&gguf.meta, None, tools).context(Failure::Model)?,
            }
        }
    };
    let prompt = template.render(&variables, a.now.unwrap_or_else(Clock::now))?;
    let mut out = Stdout::of_answers();
    out.write_all(prompt.as_bytes())?;
    out.flush()?;
    Ok(())
}
