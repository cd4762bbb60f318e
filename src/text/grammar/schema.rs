//! Which JSON schemas can be kept: every keyword is known, means something here, or is named as
//! what is not supported.
//!
//! A keyword that nobody looks at is a promise broken in silence: `uniqueItems`, or `maxlength` for
//! `maxLength`. So what is neither kept nor a remark is an error, with its place. Only what the
//! schema reaches is looked at, as only that is used.

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

/// Formats that llguidance keeps (its `json/formats.rs`). JSON Schema 2020-12 (validation 7) has
/// any other be a remark.
const FORMATS: &[&str] =
    &["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"];

/// Up to here a 64-bit float has all whole numbers, and is not itself what a larger one was rounded
/// to.
const EXACT: u64 = 9_007_199_254_740_992;

/// A multiple without its point, at most. What keeps `multipleOf` has this many states: 100,000
/// take a third of a second, a million nine seconds. llguidance computes with 32 bits, and keeps
/// wrongly what does not fit.
const MULTIPLE: u64 = 100_000;
/// The same where allOf joins several, which multiplies them.
const MULTIPLES: u64 = 40_000;
/// Decimal places of a multiple, at most, for the same reason.
const PLACES: u32 = 8;

/// Inside are more constraints on the same value.
const SAME: &[&str] = &["allOf", "anyOf", "oneOf", "$ref"];
/// Places that are looked at for what they say of the same number, at most.
const VISITS: usize = 200_000;

/// Places that a schema names, at most.
const REFS: usize = 5000;

/// White space between the parts of a document: one blank, or a line's end with its indent.
/// llguidance takes any amount where this is not said, and a model that likes blanks never comes
/// back.
const SPACE: &str = r"\x20|\r?\n[\x20\t]{0,40}";

/// A schema as llguidance is to have it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) schema: Value,
    /// What in it is not kept, with its place, though it is no error.
    pub(super) remarks: Vec<String>,
}

/// The schema as llguidance is to have it.
///
/// # Errors
/// If a part of it could not be kept.
pub(super) fn prepare(schema: &Value) -> Result<Prepared> {
    let mut todo = vec![(String::from("#"), schema)];
    let mut seen = HashSet::new();
    let (mut dropped, mut remarks) = (Vec::new(), Vec::new());
    let (mut multiples, mut joined) = (false, Vec::new());
    while let Some((at, part)) = todo.pop() {
        let map = match part {
            Value::Object(map) => map,
            Value::Bool(_) => continue,
            other => bail!("at {at}: a schema is an object, true or false; this is {other}"),
        };
        if SAME.iter().any(|k| map.contains_key(*k)) {
            joined.push((at.clone(), part));
        }
        for (key, value) in map {
            let inside = format!("{at}/{key}");
            match key.as_str() {
                "const" | "enum" | "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf"
                    if !is_exact(value) =>
                {
                    bail!("at {inside}: a whole number beyond 2^53 loses digits; use a string");
                }
                "format" if value.as_str().is_some_and(|f| !FORMATS.contains(&f)) => {
                    remarks.push(format!("at {inside}: the format {value} is not known, so that it is not enforced"));
                    dropped.push(at.clone());
                }
                "multipleOf" => {
                    if multiple(value).is_none() {
                        bail!(
                            "at {inside}: multiples of {value} cannot be kept, only those of at most {MULTIPLE} (without its \
                             point, of which {PLACES} places may follow)"
                        );
                    }
                    multiples = true;
                }
                k if KEPT.contains(&k) || REMARKS.contains(&k) => {}
                k if NAMED.contains(&k) => match value {
                    Value::Object(map) => todo.extend(map.iter().map(|(k, v)| (format!("{inside}/{}", escaped(k)), v))),
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
                    let to = to.trim_end_matches('/');
                    let Some(target) = to.strip_prefix('#').and_then(|p| schema.pointer(p)) else {
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
    let mut left = VISITS;
    for (at, part) in joined.into_iter().filter(|_| multiples) {
        let mut found = Vec::new();
        same_number(schema, part, &mut found, &mut left);
        if least_common(&found) > MULTIPLES || left == 0 {
            bail!("at {at}: that a number is a multiple of all that multipleOf says of it cannot be kept");
        }
    }
    let mut ready = if schema == &Value::Bool(true) { json!({}) } else { schema.clone() };
    if let Value::Object(map) = &mut ready {
        map.insert("x-guidance".into(), json!({ "whitespace_pattern": SPACE }));
    }
    for at in dropped {
        if let Some(Value::Object(map)) = ready.pointer_mut(&at[1..]) {
            map.remove("format");
        }
    }
    Ok(Prepared { schema: ready, remarks })
}

/// What `multipleOf` says of the number that this schema is for, in it and in the constraints on the
/// same number elsewhere.
fn same_number(root: &Value, part: &Value, found: &mut Vec<(u64, u32)>, left: &mut usize) {
    let mut todo = vec![part];
    let mut seen = HashSet::new();
    while let Some(part) = todo.pop().filter(|_| *left > 0) {
        *left -= 1;
        if !seen.insert(std::ptr::from_ref(part)) {
            continue;
        }
        found.extend(part.get("multipleOf").and_then(multiple));
        for key in SAME {
            match part.get(*key) {
                Some(Value::Array(list)) => todo.extend(list),
                Some(Value::String(to)) => {
                    todo.extend(to.strip_prefix('#').and_then(|p| root.pointer(p.trim_end_matches('/'))))
                }
                Some(one) => todo.push(one),
                None => {}
            }
        }
    }
}

/// A name as a part of a place.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// A number without its point, and how many of its places come after that; None where either is too
/// many.
fn multiple(value: &Value) -> Option<(u64, u32)> {
    let number = value.as_f64().filter(|n| *n > 0.0)?;
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e')?;
    let fraction = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let exponent = exponent.parse::<i32>().ok()? - fraction as i32;
    let whole =
        digits.replace('.', "").parse::<u64>().ok()?.checked_mul(10_u64.checked_pow(exponent.max(0) as u32)?)?;
    let places = exponent.min(0).unsigned_abs();
    (whole <= MULTIPLE && places <= PLACES).then_some((whole, places))
}

/// The least common multiple of all of these in units of their last place, or a number beyond all
/// bounds.
fn least_common(multiples: &[(u64, u32)]) -> u64 {
    let most = multiples.iter().map(|(_, places)| *places).max().unwrap_or(0);
    let in_units = multiples.iter().map(|(whole, places)| whole * 10_u64.pow(most - places));
    in_units.fold(1, |a, b| {
        let (mut x, mut y) = (a, b);
        while y != 0 {
            (x, y) = (y, x % y);
        }
        a.saturating_mul(b / x.max(1)).max(b)
    })
}

/// The schema as llguidance is to have it where it leaves out what it does not keep.
pub(super) fn lenient(schema: &Value) -> Value {
    let mut ready = if schema.is_object() { schema.clone() } else { json!({}) };
    ready["x-guidance"] = json!({ "lenient": true });
    ready
}

/// Whether all numbers in a value are those that they become: llguidance computes in 64-bit floats.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(n) => match (n.as_u64().or(n.as_i64().map(i64::unsigned_abs)), n.as_f64()) {
            (Some(whole), _) => whole <= EXACT,
            (None, float) => float.is_some_and(|f| f.abs() < EXACT as f64 || f.fract() != 0.0 && f.is_finite()),
        },
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
            (json!({"minimum": 9_007_199_254_740_993_i64}), "at #/minimum: a whole number beyond 2^53"),
            (json!({"items": {"const": -9_007_199_254_740_993_i64}}), "at #/items/const: a whole number beyond 2^53"),
            (json!({"exclusiveMaximum": u64::MAX}), "at #/exclusiveMaximum: a whole number beyond 2^53"),
            (json!({"maximum": 9_007_199_254_740_992.0}), "at #/maximum: a whole number beyond 2^53"),
            (
                json!({"properties": {"a/b": {"multipleOf": 1_000_003}}}),
                "at #/properties/a~1b/multipleOf: multiples of",
            ),
            (json!({"multipleOf": 1e-9}), "at #/multipleOf: multiples of"),
            (json!({"multipleOf": 0.123_456_7}), "at #/multipleOf: multiples of"),
            (json!({"allOf": [{"multipleOf": 997}, {"multipleOf": 1009}]}), "at #: that a number is a multiple of all"),
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
    fn numbers_that_a_float_has_exactly_are_kept() {
        for bound in [json!(9_007_199_254_740_992_u64), json!(-9_007_199_254_740_992_i64), json!(1e15), json!(0.1)] {
            prepare(&json!({"minimum": bound, "enum": [bound]})).unwrap();
        }
        for (number, want) in
            [(json!(0.01), (1, 2)), (json!(0.3), (3, 1)), (json!(2.5), (25, 1)), (json!(1000), (1000, 0))]
        {
            assert_eq!(multiple(&number), Some(want), "{number}");
        }
        assert_eq!(least_common(&[(1, 2), (5, 0), (25, 1)]), 500);
        // Of different numbers they are not multiplied.
        let apart = json!({"anyOf": [{"$ref": "#/$defs/a"}], "properties": {"b": {"multipleOf": 0.01}},
            "$defs": {"a": {"properties": {"c": {"multipleOf": 1009}, "d": {"multipleOf": 997}}}}});
        prepare(&apart).unwrap();
    }

    #[test]
    fn an_unknown_format_is_a_remark_with_its_place() {
        let schema =
            json!({"properties": {"a/b": {"format": "uri-reference"}, "c": {"format": "date"}}, "format": "x"});
        let Prepared { schema, remarks } = prepare(&schema).unwrap();
        assert_eq!(schema["properties"], json!({"a/b": {}, "c": {"format": "date"}}));
        assert!(schema.get("format").is_none());
        let mut all = remarks.join("; ");
        assert!(all.contains("at #/properties/a~1b/format: the format \"uri-reference\" is not known"), "{all}");
        all.retain(|c| c == ';');
        assert_eq!(all.len(), 1);
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
