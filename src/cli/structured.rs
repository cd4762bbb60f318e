//! The form that a text is to have, from the flags.

use std::path::Path;

use anyhow::{Context, Result};

use super::args::StructuredArgs;
use super::errors::{Failure, doubt, usage};
use super::files::read_text;
use crate::text::grammar::Kind;

/// The form that the flags ask for, if any.
pub(super) fn form(a: &StructuredArgs) -> Result<Option<Kind>> {
    let kind = if let Some(arg) = &a.json_schema {
        let text = text(arg, |t| t.trim_start().starts_with('{'))?;
        match serde_json::from_str(&text) {
            Ok(schema) => Kind::JsonSchema(schema),
            Err(e) => return usage(format!("--json-schema: not JSON: {e}")),
        }
    } else if let Some(arg) = &a.grammar {
        Kind::grammar(text(arg, |t| t.contains("::=") || t.contains("start:"))?)
    } else if let Some(regex) = &a.regex {
        Kind::Regex(regex.clone())
    } else {
        return Ok(None);
    };
    kind.remarks().context(Failure::Usage)?.into_iter().try_for_each(doubt)?;
    Ok(Some(kind))
}

/// Says what of a request's form will not be kept; an error under `--strict`.
pub(super) fn check(kind: &Kind) -> Result<()> {
    kind.remarks()?.into_iter().try_for_each(doubt)
}

/// The text itself if it looks like one, else the contents of the file of that name.
fn text(arg: &str, is_text: impl Fn(&str) -> bool) -> Result<String> {
    if is_text(arg) { Ok(arg.to_owned()) } else { read_text(Path::new(arg)) }
}
