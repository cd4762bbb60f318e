//! The form that a text is to have, from the flags.

use std::path::Path;

use anyhow::{Context, Result};

use serde_json::Value;

use super::args::{RunArgs, StructuredArgs};
use super::errors::{Failure, doubt, usage};
use super::files::read_text;
use crate::talk::ToolUse;
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

/// The tools of `tandem run`, if it has some.
pub(super) fn tools(a: &RunArgs) -> Result<Option<ToolUse>> {
    let Some(arg) = &a.tools else { return Ok(None) };
    let list: Value = match serde_json::from_str(&text(arg, |t| t.trim_start().starts_with(['[', '{']))?) {
        Ok(Value::Object(map)) if map.contains_key("tools") => map["tools"].clone(),
        Ok(one @ Value::Object(_)) => Value::Array(vec![one]),
        Ok(list) => list,
        Err(e) => return usage(format!("--tools: not JSON: {e}")),
    };
    let choice = a.tool_choice.as_deref().map(|choice| match choice {
        "auto" | "required" | "none" => Value::from(choice),
        name => serde_json::json!({ "name": name }),
    });
    let parallel = Value::Bool(!a.no_parallel_tool_calls);
    match ToolUse::new(Some(&list), choice.as_ref(), Some(&parallel)) {
        Ok(Some(_)) if a.structured.json_schema.is_some() || a.structured.grammar.is_some() => {
            usage("--tools and a form of the answer (--json-schema, --grammar): give one of them".into())
        }
        Ok(Some(_)) if a.structured.regex.is_some() => usage("--tools and --regex: give one of them".into()),
        Ok(None) if a.tool_choice.as_deref() != Some("none") => usage("--tools: the list is empty".into()),
        Ok(tools) => Ok(tools),
        Err(e) => usage(format!("--tools: {e:#}")),
    }
}

/// The text itself if it looks like one, else the contents of the file of that name.
fn text(arg: &str, is_text: impl Fn(&str) -> bool) -> Result<String> {
    if is_text(arg) { Ok(arg.to_owned()) } else { read_text(Path::new(arg)) }
}
