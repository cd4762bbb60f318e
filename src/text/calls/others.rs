//! Calls in notations of their own.
//!
//! ```text
//! harmony     <|channel|>commentary to=functions.N <|constrain|>json<|message|>{..}, or the recipient before the channel
//! Gemma 4     call:N{k:<|"|>text<|"|>,n:3}
//! Python      N(k="v", n=3); Llama's own tools N.call(k="v")
//! MiniMax M3  ]<]minimax[>[<invoke name="N">]<]minimax[>[<k>v]<]minimax[>[</k>]<]minimax[>[</invoke>, lists as <item>
//! ```

use serde_json::{Map, Value};

use super::call::{Call, Found, Offer, blank};
use super::json::{JsonRead, Notation, read, whole};
use super::typed;

/// The end of a head in harmony.
const MESSAGE: &str = "<|message|>";

const CHANNEL: &str = "<|channel|>";

/// A call in harmony, from its head on, as the reader of parts gives it.
pub(super) fn harmony(text: &str) -> Found {
    let (head, body) = text.split_once(MESSAGE).unwrap_or((text, ""));
    let words = head.replace(CHANNEL, " ").replace("<|constrain|>", " ");
    if words.contains('<') && head.len() < text.len() || words.split_whitespace().count() > 4 {
        return Found::Nothing;
    }
    if head.len() == text.len() {
        return Found::Cut;
    }
    let to = head.split_once(" to=").map_or("", |(_, to)| to);
    let end = to.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(to.len());
    let name = to[..end].strip_prefix("functions.").unwrap_or(&to[..end]);
    let at = text.len() - body.len() + blank(body);
    if name.is_empty() || matches!(name, "user" | "assistant" | "self") {
        return Found::Nothing;
    }
    if text[at..].is_empty() {
        return Found::Cut;
    }
    match read(&text[at..], Notation::Json) {
        JsonRead::Whole(Value::Object(map), n) => Found::Whole(Call::new(name, map), at + n),
        JsonRead::Cut => Found::Cut,
        _ => Found::Nothing,
    }
}

/// A call of Gemma's.
pub(super) fn gemma(source: Offer, text: &str) -> Found {
    let Some(begun) = text.strip_prefix("call:") else { return Found::Nothing };
    let Some(end) = begun.find('{') else {
        return if begun.contains([' ', '\n', '<']) { Found::Nothing } else { Found::Cut };
    };
    let name = begun[..end].trim();
    if name.is_empty() || name.contains([' ', '\n', '<']) {
        return Found::Nothing;
    }
    let name = source.tools.without(name, ':');
    match read(&begun[end..], Notation::Gemma) {
        JsonRead::Whole(Value::Object(mut map), n) => {
            let schema = source.tools.schema(&name).unwrap_or(&Value::Null);
            for (key, value) in &mut map {
                // A bare value where only text is allowed is its text.
                let member = typed::member(schema, schema, Some(key));
                let text = member.is_some_and(|m| typed::allows(m, schema, "string"));
                let own = |name| member.is_some_and(|m| typed::allows(m, schema, name));
                let allowed = match &value {
                    Value::Number(_) => own("number") || own("integer"),
                    Value::Bool(_) => own("boolean"),
                    _ => true,
                };
                if text && !allowed {
                    *value = Value::String(value.to_string());
                }
            }
            Found::Whole(Call::new(&name, map), 5 + end + n)
        }
        JsonRead::Cut => Found::Cut,
        _ => Found::Nothing,
    }
}

/// A call as Python writes it; `method` is the text between name and bracket.
pub(super) fn python(text: &str, method: &str) -> Found {
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let Some(name) = text[..end].strip_suffix(method).filter(|n| !n.is_empty()) else {
        return if end == text.len() { Found::Cut } else { Found::Nothing };
    };
    if end == text.len() {
        return Found::Cut;
    }
    let Some(mut rest) = text[end..].strip_prefix('(') else { return Found::Nothing };
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(')') {
            return Found::Whole(Call::new(name, arguments), text.len() - after.len());
        }
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        if rest.is_empty() {
            return Found::Cut;
        }
        let Some((key, value)) = rest.split_once('=') else {
            return if rest.contains([')', '\n']) { Found::Nothing } else { Found::Cut };
        };
        let key = key.trim();
        if key.is_empty() || !key.chars().all(is_name) {
            return Found::Nothing;
        }
        match literal(value) {
            Ok((value, after)) => {
                arguments.insert(key.to_owned(), value);
                rest = after;
            }
            Err(cut) => return Found::part(cut),
        }
    }
}

/// A literal of Python's, and what follows it; without one, whether the text's end cuts it.
fn literal(text: &str) -> Result<(Value, &str), bool> {
    let text = text.trim_start();
    if text.starts_with(['{', '[']) {
        return match read(text, Notation::Python) {
            JsonRead::Whole(value, n) => Ok((value, &text[n..])),
            JsonRead::Cut => Err(true),
            JsonRead::Bad(..) => Err(false),
        };
    }
    let end = match text.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let mut escaped = false;
            let close = text.char_indices().skip(1).find(|(_, c)| {
                let end = *c == quote && !escaped;
                escaped = *c == '\\' && !escaped;
                end
            });
            close.ok_or(true)?.0 + 1
        }
        _ => text.find([',', ')']).ok_or(true)?,
    };
    let value = whole(&text[..end], Notation::Python).ok_or(false)?;
    Ok((value, &text[end..]))
}

/// The prefix of each tag of MiniMax M3.
pub(super) const MARK: &str = "]<]minimax[>[";

/// A call of MiniMax M3.
pub(super) fn nested(source: Offer, text: &str) -> Found {
    let Some(begun) = text.strip_prefix("]<]minimax[>[<invoke name=\"") else { return Found::Nothing };
    let Some((name, body)) = begun.split_once("\">") else { return Found::Cut };
    if name.is_empty() || name.contains(['<', '\n']) {
        return Found::Nothing;
    }
    let root = source.tools.schema(name).unwrap_or(&Value::Null);
    match element(body, "invoke", Some(root), root, 0) {
        Some((Value::Object(map), rest)) => Found::Whole(Call::new(name, map), text.len() - rest.len()),
        Some((Value::String(blank), rest)) if blank.trim().is_empty() => {
            Found::Whole(Call::new(name, Map::new()), text.len() - rest.len())
        }
        Some(_) => Found::Nothing,
        None => Found::Cut,
    }
}

/// The value of the element that a tag of this name opened, and what follows its closing tag; None if it has none.
fn element<'t>(
    text: &'t str,
    name: &str,
    schema: Option<&Value>,
    root: &Value,
    depth: usize,
) -> Option<(Value, &'t str)> {
    let close = format!("{MARK}</{name}>");
    let (mut map, mut list) = (Map::new(), Vec::new());
    let mut rest = text;
    while depth < 64
        && let Some(tag) = rest.trim_start().strip_prefix(MARK)
        && let Some((inner, body)) = tag.strip_prefix('<').and_then(|t| t.split_once('>'))
        && !inner.starts_with('/')
    {
        let is_list = schema.is_some_and(|s| typed::allows(s, root, "array"));
        let own = if is_list { None } else { Some(inner) };
        let schema = schema.and_then(|s| typed::member(s, root, own));
        let (value, after) = element(body, inner, schema, root, depth + 1)?;
        if is_list || inner == "item" && schema.is_none() {
            list.push(value);
        } else {
            map.insert(inner.to_owned(), value);
        }
        rest = after;
    }
    if rest.len() == text.len() {
        let (said, after) = text.split_once(&close)?;
        let array = schema.is_some_and(|s| typed::allows(s, root, "array") && !typed::allows(s, root, "string"));
        let object = schema.is_some_and(|s| typed::allows(s, root, "object") && !typed::allows(s, root, "string"));
        let value = match schema {
            _ if array && said.is_empty() => Value::Array(Vec::new()),
            _ if object && said.is_empty() => Value::Object(Map::new()),
            Some(schema) => typed::inner(said, schema, root),
            None => Value::String(said.to_owned()),
        };
        return Some((value, after));
    }
    let after = rest.trim_start().strip_prefix(&close)?;
    Some((if list.is_empty() { Value::Object(map) } else { Value::Array(list) }, after))
}
