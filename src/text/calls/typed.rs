//! Values that carry no type take the one that the tool's schema gives them.
//!
//! ```text
//! string            as it is written, even where it looks like a number; null where that is allowed
//! integer, number   also 96.0 for 96
//! boolean           also True and False
//! array, object     JSON, or Python's literals
//! no type at all    JSON's objects and arrays are read, all else is text
//! ```
//! What does not convert stays text.

use serde_json::{Map, Value};

use super::json::{Notation, whole};

/// So many schemas are looked at, at most, where $ref, anyOf and the like lead from one to others.
const LOOKS: usize = 500;

/// The value of an argument, by the schema of all arguments.
pub(super) fn value(text: &str, schema: &Value, key: &str) -> Value {
    let mut types = Types::default();
    if let Some(found) = member(schema, schema, Some(key)) {
        types.of(found, schema);
    }
    types.convert(text)
}

/// The value of a text by a schema inside of another, which $ref is looked up in.
pub(super) fn inner(text: &str, schema: &Value, root: &Value) -> Value {
    let mut types = Types::default();
    types.of(schema, root);
    types.convert(text)
}

/// The schemas of an object's member or, without a key, of a list's items.
pub(super) fn member<'a>(schema: &'a Value, root: &'a Value, key: Option<&str>) -> Option<&'a Value> {
    made_of(schema, root).into_iter().find_map(|schema| match key {
        Some(key) => schema["properties"].get(key),
        None => schema.get("items"),
    })
}

/// Whether a schema allows this type.
pub(super) fn allows(schema: &Value, root: &Value, name: &str) -> bool {
    let mut types = Types::default();
    types.of(schema, root);
    types.has(name)
}

/// A schema, and those that it is made of.
pub(super) fn made_of<'a>(schema: &'a Value, root: &'a Value) -> Vec<&'a Value> {
    let mut all = vec![schema];
    let mut at = 0;
    while at < all.len() && all.len() < LOOKS {
        let one = all[at];
        let to = one["$ref"].as_str().and_then(|to| to.strip_prefix('#')).and_then(|to| root.pointer(to));
        let lists = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|k| one.get(k)?.as_array());
        let more = to.into_iter().chain(lists.flatten());
        for schema in more {
            if !all.iter().any(|s| std::ptr::eq(*s, schema)) {
                all.push(schema);
            }
        }
        at += 1;
    }
    all
}

/// The types that a schema allows.
#[derive(Default)]
struct Types(Vec<String>);

impl Types {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|t| t == name)
    }

    fn of(&mut self, schema: &Value, root: &Value) {
        for schema in made_of(schema, root) {
            match &schema["type"] {
                Value::String(one) => self.0.push(one.clone()),
                Value::Array(all) => self.0.extend(all.iter().filter_map(|t| t.as_str().map(String::from))),
                _ => {
                    let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
                    self.0.extend(values.map(|v| type_of(v).to_owned()));
                }
            }
        }
    }

    fn convert(&self, text: &str) -> Value {
        let said = text.trim();
        let own = || Value::String(text.to_owned());
        if self.0.is_empty() {
            return serde_json::from_str(said)
                .ok()
                .filter(|v: &Value| v.is_object() || v.is_array())
                .unwrap_or_else(own);
        }
        if self.has("null") && matches!(said, "null" | "None") {
            return Value::Null;
        }
        if self.has("string") {
            // A list or an object where that is allowed as well is clearly one.
            let read = serde_json::from_str(said).ok().filter(|v: &Value| self.has(type_of(v)));
            return read.filter(|v| v.is_object() || v.is_array()).unwrap_or_else(own);
        }
        let flag = match said {
            "true" | "True" => Some(true),
            "false" | "False" => Some(false),
            _ => None,
        };
        let read = match whole(said, Notation::Python) {
            Some(v) if v.is_number() => self.number(v),
            Some(v) if (v.is_array() || v.is_object()) && self.has(type_of(&v)) => Some(v),
            _ => flag.filter(|_| self.has("boolean")).map(Value::Bool),
        };
        read.unwrap_or_else(own)
    }

    fn number(&self, value: Value) -> Option<Value> {
        if self.has("integer") {
            if value.is_i64() || value.is_u64() {
                return Some(value);
            }
            match value.as_f64().filter(|f| f.fract() == 0.0) {
                Some(f) if f.abs() < 9e15 => return Some((f as i64).into()),
                Some(_) => return Some(value),
                None => {}
            }
        }
        self.has("number").then_some(value)
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// An object out of JSON: itself, or the one that a text holds.
pub(super) fn object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(map) => Some(map),
        Value::Null => Some(Map::new()),
        Value::String(text) if text.trim().is_empty() => Some(Map::new()),
        Value::String(text) => match whole(&text, Notation::Json) {
            Some(Value::Object(map)) => Some(map),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_takes_the_type_of_the_schema_or_stays_text() {
        let schema = json!({"properties": {
            "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": ["number", "null"]}, "b": {"type": "boolean"},
            "o": {"$ref": "#/$defs/o"}, "m": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "e": {"enum": [1, 2]},
            "u": {"description": "anything"}, "l": {"type": ["array", "string"]},
        }, "$defs": {"o": {"type": "object"}}});
        for (key, text, want) in [
            ("s", " 12 ", json!(" 12 ")),
            ("s", "null", json!("null")),
            ("i", " 96.0\n", json!(96)),
            ("i", "9007199254740995", json!(9_007_199_254_740_995u64)),
            ("i", "9.5", json!("9.5")),
            ("n", "-1.5", json!(-1.5)),
            ("n", "null", json!(null)),
            ("b", "True", json!(true)),
            ("b", "yes", json!("yes")),
            ("o", "{'a': None}", json!({"a": null})),
            ("o", "{'a'", json!("{'a'")),
            ("m", "null", json!(null)),
            ("m", "[1]", json!("[1]")),
            ("l", "[1]", json!([1])),
            ("e", "2", json!(2)),
            ("u", "{\"a\": 1}", json!({"a": 1})),
            ("u", "0123", json!("0123")),
            ("unknown", "5", json!("5")),
        ] {
            assert_eq!(value(text, &schema, key), want, "{key}: {text}");
        }
        let branches =
            json!({"oneOf": [{"properties": {"a": {"type": "string"}}}, {"properties": {"b": {"type": "number"}}}]});
        assert_eq!(value("3", &branches, "b"), json!(3));
        let circle = json!({"properties": {"a": {"$ref": "#/properties/a"}}});
        assert_eq!(value("3", &circle, "a"), json!("3"));
    }
}
