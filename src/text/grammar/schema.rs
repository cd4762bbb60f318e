//! Which JSON schemas can be kept: every keyword is known, means something here, or is named as what is not supported.
//!
//! A keyword that nobody looks at is a promise broken in silence: `uniqueItems`, or `maxlength` for `maxLength`. So what is
//! neither kept nor a remark is an error, with its place. Only what the schema reaches is looked at, as only that is used.

use std::collections::HashSet;

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// Kept by llguidance (its `IMPLEMENTED`), with no schema inside.
const KEPT: &[&str] = &[
    "const",
    "enum",
    "type",
    "minItems",
    "maxItems",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];
/// Kept; inside is a schema, or a list of them.
const INSIDE: &[&str] = &["items", "additionalItems", "additionalProperties", "anyOf", "oneOf", "allOf", "prefixItems"];
/// Kept; inside are schemas by name.
const NAMED: &[&str] = &["properties", "patternProperties"];
/// Remarks, and places that only a $ref makes count.
const REMARKS: &[&str] = &[
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "deprecated",
    "description",
    "discriminator",
    "example",
    "examples",
    "id",
    "readOnly",
    "title",
    "writeOnly",
];

/// The largest whole number below which a 64-bit float has all.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Places that a schema names, at most.
const REFS: usize = 5000;

/// White space between the parts of a document: one blank, or a line's end with its indent. llguidance takes any amount
/// where this is not said, and a model that likes blanks never comes back.
const SPACE: &str = r"\x20|\r?\n[\x20\t]{0,40}";

/// The schema as llguidance is to have it.
///
/// # Errors
/// If a part of it could not be kept.
pub(super) fn prepare(schema: &Value) -> Result<Value> {
    let mut todo = vec![(String::from("#"), schema)];
    let mut seen = HashSet::new();
    while let Some((at, part)) = todo.pop() {
        let map = match part {
            Value::Object(map) => map,
            Value::Bool(_) => continue,
            other => bail!("at {at}: a schema is an object, true or false; this is {other}"),
        };
        for (key, value) in map {
            let inside = format!("{at}/{key}");
            match key.as_str() {
                "const" | "enum" | "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf"
                    if !is_exact(value) =>
                {
                    bail!("at {inside}: a whole number beyond 2^53 loses digits; use a string");
                }
                k if KEPT.contains(&k) || REMARKS.contains(&k) => {}
                k if NAMED.contains(&k) => match value {
                    Value::Object(map) => todo.extend(map.iter().map(|(k, v)| (format!("{inside}/{k}"), v))),
                    other => bail!("at {inside}: an object of schemas expected; this is {other}"),
                },
                k if INSIDE.contains(&k) => match value {
                    Value::Array(list) => {
                        todo.extend(list.iter().enumerate().map(|(i, v)| (format!("{inside}/{i}"), v)));
                    }
                    one => todo.push((inside, one)),
                },
                "$ref" => {
                    let Some(to) = value.as_str() else { bail!("at {inside}: a text expected; this is {value}") };
                    let Some(target) = to.strip_prefix('#').and_then(|p| schema.pointer(p.trim_end_matches('/')))
                    else {
                        bail!("at {inside}: {to:?} is no place in this schema (#/$defs/NAME is one)");
                    };
                    if seen.len() > REFS {
                        bail!("at {inside}: more than {REFS} places are named by a $ref");
                    }
                    if seen.insert(to) {
                        todo.push((to.to_owned(), target));
                    }
                }
                k if k.starts_with("x-") && k != "x-guidance" => {}
                k => bail!("at {at}: {k:?} is not supported{}", instead(k)),
            }
        }
    }
    let mut ready = if schema == &Value::Bool(true) { json!({}) } else { schema.clone() };
    if let Value::Object(map) = &mut ready {
        map.insert("x-guidance".into(), json!({ "whitespace_pattern": SPACE }));
    }
    Ok(ready)
}

/// Whether all numbers in a value are those that they become: llguidance computes in 64-bit floats.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.as_f64().is_some_and(|f| f.abs() <= EXACT || (f.fract() != 0.0 && f.is_finite())),
        Value::Array(list) => list.iter().all(is_exact),
        Value::Object(map) => map.values().all(is_exact),
        _ => true,
    }
}

/// What to write instead of a keyword.
fn instead(key: &str) -> &'static str {
    match key {
        "nullable" => "; use \"type\": [..., \"null\"]",
        "if" | "then" | "else" | "not" | "dependentSchemas" | "dependentRequired" => "; use anyOf over the cases",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_is_named_with_its_place() {
        for (schema, says) in [
            (
                json!({"properties": {"a": {"uniqueItems": true}}}),
                "at #/properties/a: \"uniqueItems\" is not supported",
            ),
            (json!({"enum": ["a", {"id": 175_928_847_299_117_063_u64}]}), "at #/enum: a whole number beyond 2^53"),
            (json!({"maximum": 1e30}), "at #/maximum: a whole number beyond 2^53"),
            (json!({"items": [{}, {"maxlength": 3}]}), "at #/items/1: \"maxlength\" is not supported"),
            (json!({"anyOf": [{"not": {}}]}), "at #/anyOf/0: \"not\" is not supported; use anyOf over the cases"),
            (json!({"type": "string", "nullable": true}), "at #: \"nullable\" is not supported; use \"type\": [...,"),
            (
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"contains": {}}}}),
                "at #/$defs/a: \"contains\" is not supported",
            ),
            (
                json!({"$ref": "https://example.com/s"}),
                "at #/$ref: \"https://example.com/s\" is no place in this schema",
            ),
            (json!({"$ref": "#/$defs/b", "$defs": {}}), "at #/$ref: \"#/$defs/b\" is no place"),
            (json!({"items": 3}), "at #/items: a schema is an object, true or false; this is 3"),
            (json!({"properties": []}), "at #/properties: an object of schemas expected; this is []"),
            (json!("string"), "at #: a schema is an object, true or false; this is \"string\""),
            (json!({"x-guidance": {"lenient": true}}), "at #: \"x-guidance\" is not supported"),
        ] {
            let e = prepare(&schema).unwrap_err().to_string();
            assert!(e.starts_with(says), "{schema}: {e}");
        }
    }

    #[test]
    fn names_and_values_are_not_taken_for_keywords() {
        let schema = json!({
            "properties": {"not": {"enum": [{"if": 1}], "default": {"then": 2}}, "$ref": {"const": {"$ref": "x"}}},
            "$defs": {"never used": {"not": {}}},
            "x-order": 1,
        });
        prepare(&schema).unwrap();
        prepare(&json!({"items": {"$ref": "#"}})).unwrap();
    }
}
