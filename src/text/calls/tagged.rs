//! Calls with a tag for each argument.
//!
//! ```text
//! Qwen3-Coder  <function=N>\n<parameter=K>\nV\n</parameter>\n</function>
//! MiniMax M2   <invoke name="N">\n<parameter name="K">V</parameter>\n</invoke>
//! DeepSeek V4  <｜DSML｜invoke name="N">\n<｜DSML｜parameter name="K" string="true|false">V</｜DSML｜parameter>\n</｜DSML｜invoke>
//! MiniCPM 5    <function name="N"><param name="K">V</param></function>, V perhaps in <![CDATA[V]]>
//! Kimi K3      <|open|>call tool="N" index="1"<|sep|><|open|>argument key="K" type="T"<|sep|>V<|close|>argument<|sep|>..
//! ```
//! A closing tag counts where the next tag or the call's end follows, and at its own level: values may hold whole calls.

use serde_json::{Map, Value};

use super::call::{Call, Found, Offer, begins, blank};
use super::json::{JsonRead, Notation, read, whole};
use super::typed;

/// The tags.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tagged {
    /// A call up to its name or attributes, and its end.
    pub(super) call: [&'static str; 2],
    /// An argument up to its key or attributes, and its end.
    pub(super) argument: [&'static str; 2],
    /// What ends a tag.
    pub(super) end: &'static str,
    /// One line break on each side of a value is the markup's.
    pub(super) lines: bool,
    /// The attribute that tells a value's type, by which text is verbatim and all else JSON.
    pub(super) kind: Option<&'static str>,
    /// The template writes no line breaks between tags.
    pub(super) tight: bool,
}

impl Tagged {
    pub(super) fn find(&self, source: Offer, text: &str) -> Found {
        let Some((head, mut at)) = self.tag(text, self.call[0]) else {
            return if text.contains(self.end) { Found::Nothing } else { Found::Cut };
        };
        let Some(name) = named(head, self.call[0], &["name", "tool"]) else { return Found::Nothing };
        let schema = source.tools.schema(&name).unwrap_or(&Value::Null);
        let mut arguments = Map::new();
        loop {
            at += blank(&text[at..]);
            let rest = &text[at..];
            if rest.starts_with(self.call[1]) {
                return Found::Whole(Call::new(&name, arguments), at + self.call[1].len());
            }
            if rest.starts_with(self.argument[0]) {
                let Some((key, value, n)) = self.argument(source, rest, schema) else { return Found::Cut };
                arguments.insert(key, value);
                at += n;
                continue;
            }
            if rest.is_empty() || begins(rest, &[self.call[1], self.argument[0]]) {
                let whole = source.complete && !begins(rest, &[self.argument[0]]);
                return if whole { Found::Whole(Call::new(&name, arguments), text.len()) } else { Found::Cut };
            }
            // All arguments as one object, which some write.
            match self.object(rest) {
                Some(JsonRead::Whole(Value::Object(map), n)) => {
                    arguments.extend(map);
                    at += n;
                }
                Some(JsonRead::Cut) => return Found::Cut,
                _ => return Found::Nothing,
            }
        }
    }

    /// An object of arguments, in Kimi K3's tag or as it is.
    fn object(&self, text: &str) -> Option<JsonRead> {
        let (open, close) = (r#"<|open|>json type="object"<|sep|>"#, "<|close|>json<|sep|>");
        let (skip, end) = if text.starts_with(open) { (open.len(), close) } else { (0, "") };
        if begins(text, &[open]) {
            return Some(JsonRead::Cut);
        }
        if !text[skip..].starts_with('{') {
            return None;
        }
        Some(match read(&text[skip..], Notation::Json) {
            JsonRead::Whole(value, n) if text[skip + n..].starts_with(end) => {
                JsonRead::Whole(value, skip + n + end.len())
            }
            JsonRead::Whole(value, n) => JsonRead::Whole(value, skip + n),
            other => other,
        })
    }

    /// What a tag says after its name, and where it ends.
    fn tag<'a>(&self, text: &'a str, name: &str) -> Option<(&'a str, usize)> {
        let rest = text.strip_prefix(name)?;
        let n = rest.find(self.end)?;
        (!rest[..n].contains('\n')).then(|| (&rest[..n], name.len() + n + self.end.len()))
    }

    /// An argument's key and value, and how many bytes they take; None if it has no end.
    fn argument(&self, source: Offer, text: &str, schema: &Value) -> Option<(String, Value, usize)> {
        let (head, start) = self.tag(text, self.argument[0])?;
        let key = named(head, self.argument[0], &["name", "key"])?;
        let rest = &text[start..];
        if let Some(raw) = rest.trim_start().strip_prefix("<![CDATA[") {
            let end = raw.find(&format!("]]>{}", self.argument[1]))?;
            let n = text.len() - raw.len() + end + 3 + self.argument[1].len();
            return Some((key, Value::String(raw[..end].to_owned()), n));
        }
        let (end, after) =
            self.close(source, rest, true).or_else(|| self.close(source, rest, false)).or_else(|| {
                // No end at all: the next tag is one.
                let next = [self.argument[0], self.call[1]].into_iter().filter_map(|t| rest.find(t)).min()?;
                Some((next, next))
            })?;
        let mut raw = &rest[..end];
        if self.lines {
            raw = raw.strip_prefix("\r\n").or_else(|| raw.strip_prefix('\n')).unwrap_or(raw);
            raw = raw.strip_suffix('\n').map_or(raw, |r| r.strip_suffix('\r').unwrap_or(r));
        }
        let kind = self.kind.and_then(|kind| attribute(head, kind));
        let value = match kind {
            Some("true" | "string") => Value::String(raw.to_owned()),
            Some(_) => whole(raw, Notation::Json).unwrap_or_else(|| typed::value(raw, schema, &key)),
            None => typed::value(raw, schema, &key),
        };
        Some((key, value, start + after))
    }

    /// Where a value ends and where its closing tag does; `nested`: tags in the value that balance are the value's.
    fn close(&self, source: Offer, text: &str, nested: bool) -> Option<(usize, usize)> {
        let [open, close] = self.argument;
        let (mut at, mut depth) = (0, 0usize);
        loop {
            let end = at + text[at..].find(close)?;
            if nested {
                depth += text[at..end].matches(open).count();
            }
            let after = end + close.len();
            let rest = text[after..].trim_start();
            let ends = rest.is_empty()
                || [open, self.call[1]].iter().any(|t| rest.starts_with(t))
                || source.complete && begins(rest, &[self.call[1]]);
            if depth == 0 && ends {
                return Some((end, after));
            }
            depth = depth.saturating_sub(1);
            at = after;
        }
    }
}

/// The name in a tag: after `=`, or an attribute's.
fn named(head: &str, tag: &str, attributes: &[&str]) -> Option<String> {
    let name = match tag.ends_with('=') {
        true => Some(head.trim().trim_matches('"')),
        false => attributes.iter().find_map(|a| attribute(head, a)),
    };
    name.filter(|n| !n.is_empty() && !n.contains('<')).map(String::from)
}

/// The value of an attribute: `key="value"`.
fn attribute<'a>(head: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = head;
    loop {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let (value, next) = after[1..].split_once(quote)?;
        if name.trim() == key {
            return Some(value);
        }
        rest = next;
    }
}
