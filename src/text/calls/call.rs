//! What is offered, what is called, and what is found where a call may be.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

/// A call of a tool, as a model wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The number that the model gave it, where its markup has one.
    pub id: Option<String>,
    /// The tool's name.
    pub name: String,
    /// The arguments by name: always an object.
    pub arguments: Value,
}

impl Call {
    pub(super) fn new(name: &str, arguments: Map<String, Value>) -> Call {
        Call { id: None, name: name.to_owned(), arguments: Value::Object(arguments) }
    }
}

/// The tools that a model is offered: their names, and the schemas of their arguments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools {
    list: Vec<(String, Value)>,
}

impl Tools {
    /// From a list as the API has it, `[{"type": "function", "function": {"name", "parameters"}}]`; the function's object
    /// alone does, too.
    ///
    /// # Errors
    /// If it is no such list, with the place.
    pub fn new(tools: &Value) -> Result<Tools> {
        let Some(all) = tools.as_array() else { bail!("tools is {tools}: a list expected") };
        let mut list: Vec<(String, Value)> = Vec::with_capacity(all.len());
        for (i, tool) in all.iter().enumerate() {
            let function = tool.get("function").unwrap_or(tool);
            let Some(name) = function["name"].as_str().filter(|n| !n.is_empty()) else {
                bail!("tools[{i}] has no name: {{\"type\": \"function\", \"function\": {{\"name\": ..}}}} expected");
            };
            if list.iter().any(|(other, _)| other == name) {
                bail!("tools[{i}]: {name:?} is offered twice");
            }
            let schema = match &function["parameters"] {
                Value::Null => json!({ "type": "object", "properties": {} }),
                schema @ Value::Object(_) => schema.clone(),
                other => bail!("tools[{i}]: parameters is {other}: a schema expected"),
            };
            list.push((name.to_owned(), schema));
        }
        Ok(Tools { list })
    }

    /// Whether none is offered.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Names and schemas, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.list.iter().map(|(name, schema)| (name.as_str(), schema))
    }

    /// Whether a tool of this name is offered.
    pub fn has(&self, name: &str) -> bool {
        self.schema(name).is_some()
    }

    /// The schema of a tool's arguments.
    pub fn schema(&self, name: &str) -> Option<&Value> {
        self.iter().find(|(n, _)| *n == name).map(|(_, schema)| schema)
    }

    /// The one tool of this name alone.
    pub fn only(&self, name: &str) -> Option<Tools> {
        Some(Tools { list: vec![(name.to_owned(), self.schema(name)?.clone())] })
    }

    /// A name as written, or without the part before its last `sign` where only that is offered.
    pub(super) fn without(&self, name: &str, sign: char) -> String {
        let last = name.rsplit(sign).next().unwrap_or(name);
        if !self.has(name) && self.has(last) { last.to_owned() } else { name.to_owned() }
    }
}

/// Text that may hold calls.
#[derive(Clone, Copy)]
pub(super) struct Offer<'a> {
    pub(super) tools: &'a Tools,
    /// The model ended it; else it was cut off.
    pub(super) complete: bool,
}

/// What there is at the beginning of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// A call, and how many bytes it takes.
    Whole(Call, usize),
    /// A call that the text's end cuts.
    Cut,
    /// No call.
    Nothing,
}

impl Found {
    /// Not a whole call: one that the text's end cuts, or none.
    pub(super) fn part(cut: bool) -> Found {
        if cut { Found::Cut } else { Found::Nothing }
    }
}

/// The bytes of white space at the beginning.
pub(super) fn blank(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// Whether a text is the beginning of one of these, and not all of it.
pub(super) fn begins(text: &str, marks: &[&str]) -> bool {
    !text.is_empty() && marks.iter().any(|m| m.len() > text.len() && m.starts_with(text))
}
