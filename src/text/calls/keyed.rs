//! Calls with a pair of tags for each argument: GLM 4.5 and later, Hy3.
//!
//! ```text
//! GLM   <tool_call>N<arg_key>K</arg_key><arg_value>V</arg_value></tool_call>, perhaps with line breaks between the tags
//! Hy3   <tool_call:opensource>N<tool_sep:opensource>\n<arg_key:opensource>K</arg_key:opensource>\n<arg_value:opensource>..
//! ```

use serde_json::{Map, Value};

use super::call::{Call, Found, Offer, begins, blank};
use super::objects::PLAIN;
use super::typed;

/// The tags, each with its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Keyed {
    pub(super) call: [&'static str; 2],
    pub(super) key: [&'static str; 2],
    pub(super) value: [&'static str; 2],
    /// The text after the name.
    pub(super) separator: &'static str,
}

impl Keyed {
    pub(super) fn find(&self, source: Offer, text: &str) -> Found {
        let Some(begun) = text.strip_prefix(self.call[0]) else { return Found::Nothing };
        let skip = self.call[0].len() + blank(begun);
        if text[skip..].starts_with('{') {
            // JSON instead, which is a guess.
            return match PLAIN.find(source, &text[skip..]) {
                Found::Whole(call, n) if source.tools.has(&call.name) => {
                    let rest = &text[skip + n..];
                    let closed = rest.trim_start().strip_prefix(self.call[1]).unwrap_or(rest);
                    Found::Whole(call, text.len() - closed.len())
                }
                Found::Cut => Found::Cut,
                _ => Found::Nothing,
            };
        }
        let end = begun.find('<').unwrap_or(begun.len());
        let name = begun[..end].trim();
        if name.contains('\n') || name.is_empty() && end < begun.len() {
            return Found::Nothing;
        }
        let mut at = self.call[0].len() + end;
        if !self.separator.is_empty() && text[at..].starts_with(self.separator) {
            at += self.separator.len();
        }
        let schema = source.tools.schema(name).unwrap_or(&Value::Null);
        let mut arguments = Map::new();
        loop {
            at += blank(&text[at..]);
            let rest = &text[at..];
            if rest.starts_with(self.call[1]) {
                return Found::Whole(Call::new(name, arguments), at + self.call[1].len());
            }
            if rest.starts_with(self.key[0]) {
                let Some((key, value, n)) = self.argument(source, rest, schema) else { return Found::Cut };
                arguments.insert(key, value);
                at += n;
                continue;
            }
            if rest.is_empty() || begins(rest, &[self.call[1], self.key[0], self.separator]) {
                let known = !arguments.is_empty() || source.tools.has(name);
                let whole = source.complete && known && !begins(rest, &[self.key[0]]);
                return if whole { Found::Whole(Call::new(name, arguments), text.len()) } else { Found::Cut };
            }
            return Found::Nothing;
        }
    }

    /// An argument's key and value, and how many bytes they take; None if it has no end.
    fn argument(&self, source: Offer, text: &str, schema: &Value) -> Option<(String, Value, usize)> {
        let rest = text.strip_prefix(self.key[0])?;
        let (key, after) = rest.split_once(self.key[1])?;
        let key = key.trim();
        let rest = after.trim_start().strip_prefix(self.value[0])?;
        let start = text.len() - rest.len();
        let (end, after) = self.close(source, rest).or_else(|| {
            let next = [self.key[0], self.call[1]].into_iter().filter_map(|t| rest.find(t)).min()?;
            Some((next, next))
        })?;
        Some((key.to_owned(), typed::value(&rest[..end], schema, key), start + after))
    }

    /// Where a value ends and where its closing tag does: the first that a key or the call's end follows.
    fn close(&self, source: Offer, text: &str) -> Option<(usize, usize)> {
        let close = self.value[1];
        let all = text.match_indices(close).map(|(end, _)| (end, end + close.len()));
        let ends = |after: usize| {
            let rest = text[after..].trim_start();
            rest.is_empty()
                || [self.key[0], self.call[1]].iter().any(|t| rest.starts_with(t))
                || source.complete && begins(rest, &[self.call[1]])
        };
        all.into_iter().find(|(_, after)| ends(*after))
    }
}
