//! Values of arguments as rules of a grammar.
//!
//! ```text
//! in JSON      the schema itself, as llguidance keeps it
//! in tags      text up to the closing tag, where the schema has a string; else JSON
//! in Gemma's   {k:<|"|>text<|"|>,n:3}, by the schema's types
//! ```
//! What of a text's schema is kept: enum, const, pattern, minLength and maxLength.

use serde_json::{Value, json};

use super::json::QUOTE;
use super::typed::{self, made_of};
use crate::text::grammar::schema_rule;

/// The tokens that write a text: the numbers of control tokens, and text between them.
pub(super) type Marks<'a> = &'a dyn Fn(&str) -> Vec<Result<u32, String>>;

/// An argument of a call with tags.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Argument {
    pub(super) key: String,
    pub(super) schema: Value,
    /// What $ref is looked up in.
    pub(super) root: Value,
    pub(super) required: bool,
}

/// The ways in which a schema's arguments can be: the branches of oneOf and anyOf, each with its arguments.
pub(super) fn arguments(schema: &Value) -> Vec<Vec<Argument>> {
    let branches: Vec<&Value> =
        ["oneOf", "anyOf"].into_iter().filter_map(|k| schema.get(k)?.as_array()).flatten().collect();
    let own = list(schema, schema);
    if branches.is_empty() {
        return vec![own];
    }
    let with = |branch: &&Value| {
        let mut all = own.clone();
        for more in list(branch, schema) {
            match all.iter_mut().find(|a| a.key == more.key) {
                Some(known) => known.required |= more.required,
                None => all.push(more),
            }
        }
        let needed = required(branch);
        all.iter_mut().for_each(|a| a.required |= needed.contains(&a.key.as_str()));
        all
    };
    branches.iter().map(with).collect()
}

fn list(schema: &Value, root: &Value) -> Vec<Argument> {
    let mut all: Vec<Argument> = Vec::new();
    let (mut needed, mut todo) = (Vec::new(), vec![schema]);
    let mut looks = 0;
    while let Some(part) = todo.pop() {
        looks += 1;
        needed.extend(required(part));
        for (key, inner) in part["properties"].as_object().into_iter().flatten() {
            if !all.iter().any(|a| a.key == *key) {
                all.push(Argument { key: key.clone(), schema: inner.clone(), root: root.clone(), required: false });
            }
        }
        let to = part["$ref"].as_str().and_then(|to| root.pointer(to.strip_prefix('#')?));
        if looks < 50 {
            todo.extend(to);
            todo.extend(part["allOf"].as_array().into_iter().flatten());
        }
    }
    all.iter_mut().for_each(|a| a.required = needed.contains(&a.key.as_str()));
    all
}

fn required(schema: &Value) -> Vec<&str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A text as a literal of Lark.
pub(super) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// CallGrammars of a grammar that is being made.
pub(super) struct Values<'a> {
    marks: Marks<'a>,
    pub(super) lines: Vec<String>,
}

impl<'a> Values<'a> {
    pub(super) fn new(marks: Marks<'a>) -> Values<'a> {
        Values { marks, lines: Vec::new() }
    }

    /// A mark, in control tokens where it has some.
    pub(super) fn mark(&self, text: &str) -> String {
        let parts = (self.marks)(text);
        if parts.iter().all(Result::is_err) {
            return quote(text);
        }
        let one = |part: &Result<u32, String>| match part {
            Ok(id) => format!("<[{id}]>"),
            Err(text) => quote(text),
        };
        parts.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// A rule of its own with this body, which may have attributes before it.
    fn rule(&mut self, attributes: &str, body: &str) -> String {
        let name = format!("v{}", self.lines.len());
        self.lines.push(format!("{name}{attributes}: {body}"));
        name
    }

    /// JSON that a schema accepts.
    pub(super) fn json(&mut self, schema: &Value) -> String {
        let body = format!("%json {}", schema_rule(schema));
        self.rule("", &body)
    }

    /// A text that matches an expression, up to a mark, and the mark.
    fn text(&mut self, pattern: &str, close: &str) -> String {
        if (self.marks)(close).iter().any(Result::is_ok) {
            let text = self.rule("", &format!("/{pattern}/"));
            return format!("{text} {}", self.mark(close));
        }
        self.rule(&format!("[suffix={}]", quote(close)), &format!("/{pattern}/"))
    }

    /// Values of an argument between tags with the closing one, by what kind they are for the markup.
    pub(super) fn tagged(&mut self, argument: &Argument, close: &str) -> Vec<(&'static str, String)> {
        let Argument { schema, root, .. } = argument;
        let parts = made_of(schema, root);
        let listed = parts.iter().find_map(|s| s.get("enum").and_then(Value::as_array).cloned());
        if let Some(list) = listed.or_else(|| parts.iter().find_map(|s| s.get("const")).map(|c| vec![c.clone()])) {
            let end = self.mark(close);
            let one = |v: &Value| match v {
                Value::String(text) => ("string", format!("{} {end}", quote(text))),
                other => (kind(other), format!("{} {end}", quote(&other.to_string()))),
            };
            return list.iter().map(one).collect();
        }
        let has = |name: &str| typed::allows(schema, root, name);
        let untyped = !["string", "integer", "number", "boolean", "null", "array", "object"].iter().any(|t| has(t));
        if untyped || has("string") {
            let clear = has("array") || has("object");
            let text = if clear { r"(?s:(\s*[^\s\[{].*)?)".to_owned() } else { text_pattern(&parts) };
            return vec![("string", self.text(&text, close))];
        }
        let whole = within(schema, root);
        let value = self.json(&whole);
        let name = ["object", "array", "boolean", "number", "integer"].into_iter().find(|t| has(t)).unwrap_or("null");
        let name = if name == "integer" { "number" } else { name };
        let end = self.mark(close);
        vec![(name, format!("{value} {end}"))]
    }

    /// An object in Gemma's notation.
    pub(super) fn gemma(&mut self, schema: &Value) -> String {
        self.gemma_value(schema, schema, &mut Vec::new())
    }

    /// A value in Gemma's notation; `known` has the rules of places that $ref names.
    fn gemma_value(&mut self, schema: &Value, root: &Value, known: &mut Vec<(String, String)>) -> String {
        if let Some(to) = schema["$ref"].as_str() {
            if let Some((_, rule)) = known.iter().find(|(name, _)| name == to) {
                return rule.clone();
            }
            let target = to.strip_prefix('#').and_then(|p| root.pointer(p)).cloned().unwrap_or(Value::Null);
            let at = self.lines.len();
            let name = format!("v{at}");
            self.lines.push(String::new());
            known.push((to.to_owned(), name.clone()));
            let body = self.gemma_value(&target, root, known);
            self.lines[at] = format!("{name}: {body}");
            return name;
        }
        let listed = schema.get("enum").and_then(Value::as_array).cloned();
        if let Some(list) = listed.or_else(|| schema.get("const").map(|c| vec![c.clone()])) {
            let one = |v: &Value| match v {
                Value::String(text) => format!("{0} {1} {0}", self.mark(QUOTE), quote(text)),
                other => quote(&other.to_string()),
            };
            return format!("({})", list.iter().map(one).collect::<Vec<_>>().join(" | "));
        }
        let branches: Vec<Value> =
            ["anyOf", "oneOf"].into_iter().filter_map(|k| schema.get(k)?.as_array()).flatten().cloned().collect();
        let open = schema.get("properties").is_none();
        if !branches.is_empty() && open {
            let all: Vec<String> = branches.iter().map(|b| self.gemma_value(b, root, known)).collect();
            return format!("({})", all.join(" | "));
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
            _ if !open || !branches.is_empty() => vec!["object"],
            _ => vec!["string", "number", "boolean", "null"],
        };
        let all: Vec<String> = types.iter().map(|name| self.gemma_type(name, schema, root, known)).collect();
        format!("({})", all.join(" | "))
    }

    fn gemma_type(&mut self, name: &str, schema: &Value, root: &Value, known: &mut Vec<(String, String)>) -> String {
        match name {
            "string" => {
                let text = self.text(&text_pattern(&[schema]), QUOTE);
                format!("{} {text}", self.mark(QUOTE))
            }
            "array" => {
                let item = match schema.get("items") {
                    Some(items) => self.gemma_value(items, root, known),
                    None => self.gemma_value(&json!({}), root, known),
                };
                let number = |key: &str| schema[key].as_u64();
                let (least, most) = (number("minItems").unwrap_or(0), number("maxItems"));
                let item = self.rule("", &item);
                let most = most.map_or(String::new(), |n| n.saturating_sub(1).to_string());
                let more = format!("{item} (\",\" {item}){{{},{most}}}", least.saturating_sub(1));
                match (least, number("maxItems")) {
                    (_, Some(0)) => "\"[\" \"]\"".into(),
                    (0, _) => format!("\"[\" ({more})? \"]\""),
                    _ => format!("\"[\" {more} \"]\""),
                }
            }
            "object" => {
                let ways: Vec<String> =
                    arguments(&with_root(schema, root)).iter().map(|way| self.members(way, root, known)).collect();
                format!("\"{{\" ({}) \"}}\"", ways.join(" | "))
            }
            other => {
                let mut one = if schema.is_object() { schema.clone() } else { json!({}) };
                one["type"] = other.into();
                self.json(&one)
            }
        }
    }

    /// The members of an object with commas between them: after none so far, and after others.
    fn members(&mut self, way: &[Argument], root: &Value, known: &mut Vec<(String, String)>) -> String {
        let (mut first, mut later) = ("\"\"".to_owned(), "\"\"".to_owned());
        for argument in way.iter().rev() {
            let value = self.gemma_value(&argument.schema, root, known);
            let member = self.rule("", &format!("{} {value}", quote(&format!("{}:", argument.key))));
            let (now, next) = (format!("{member} {later}"), format!("\",\" {member} {later}"));
            (first, later) = match argument.required {
                true => (self.rule("", &now), self.rule("", &next)),
                false => (self.rule("", &format!("{now} | {first}")), self.rule("", &format!("{next} | {later}"))),
            };
        }
        first
    }
}

/// What the schemas of a text allow, as an expression.
fn text_pattern(parts: &[&Value]) -> String {
    let get = |key: &str| parts.iter().find_map(|s| s.get(key));
    if let Some(pattern) = get("pattern").and_then(Value::as_str) {
        // A pattern need not match the whole.
        let (start, end) = (pattern.starts_with('^'), pattern.ends_with('$') && !pattern.ends_with("\\$"));
        let inner = &pattern[usize::from(start)..pattern.len() - usize::from(end)];
        let any = |anchored| if anchored { "" } else { "(?s:.*)" };
        return format!("{}({}){}", any(start), inner.replace('/', "\\/"), any(end));
    }
    let number = |key: &str| get(key).and_then(Value::as_u64);
    match (number("minLength").unwrap_or(0), number("maxLength")) {
        (0, None) => "(?s:.*)".into(),
        (least, most) => format!("(?s:.{{{least},{}}})", most.map_or(String::new(), |n| n.to_string())),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A self-contained schema, with all that its $ref names.
fn within(schema: &Value, root: &Value) -> Value {
    let mut whole = moved(schema);
    if let Some(map) = whole.as_object_mut().filter(|_| schema.to_string().contains("\"$ref\"")) {
        map.insert("$defs".into(), json!({ "root": moved(root) }));
    }
    whole
}

/// A schema whose $ref lead to where [`within`] puts what they name.
fn moved(schema: &Value) -> Value {
    match schema {
        Value::Object(map) => {
            let one = |(key, value): (&String, &Value)| match value.as_str().and_then(|v| v.strip_prefix('#')) {
                Some(to) if key == "$ref" => (key.clone(), format!("#/$defs/root{to}").into()),
                _ => (key.clone(), moved(value)),
            };
            Value::Object(map.iter().map(one).collect())
        }
        Value::Array(list) => list.iter().map(moved).collect(),
        other => other.clone(),
    }
}

/// An object's schema with the places that its $ref names.
fn with_root(schema: &Value, root: &Value) -> Value {
    let mut whole = schema.clone();
    for key in ["$defs", "definitions"] {
        if let (Some(map), Some(defs)) = (whole.as_object_mut(), root.get(key)) {
            map.entry(key).or_insert_with(|| defs.clone());
        }
    }
    whole
}
