//! The form that a text is to have, from the flags.

use std::path::Path;

use anyhow::Result;

use super::args::StructuredArgs;
use super::errors::usage;
use super::files::read_text;
use crate::text::grammar::Kind;

/// The form that the flags ask for, if any.
pub(super) fn form(a: &StructuredArgs) -> Result<Option<Kind>> {
    if let Some(arg) = &a.json_schema {
        let text = text(arg, |t| t.trim_start().starts_with('{'))?;
        return match serde_json::from_str(&text) {
            Ok(schema) => Ok(Some(Kind::JsonSchema(schema))),
            Err(e) => usage(format!("--json-schema: not JSON: {e}")),
        };
    }
    if let Some(arg) = &a.grammar {
        let rules = |t: &str| t.contains("::=") || t.contains("start:");
        return Ok(Some(Kind::grammar(text(arg, rules)?)));
    }
    Ok(a.regex.clone().map(Kind::Regex))
}

/// The text itself if it looks like one, else the contents of the file of that name.
fn text(arg: &str, is_text: impl Fn(&str) -> bool) -> Result<String> {
    if is_text(arg) { Ok(arg.to_owned()) } else { read_text(Path::new(arg)) }
}
