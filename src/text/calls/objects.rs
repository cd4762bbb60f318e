//! Calls that are JSON objects: `{"name": N, "arguments": {..}}`, one or a list.

use serde_json::{Map, Value};

use super::call::{Call, Found, Offer};
use super::json::{JsonRead, Notation, read};
use super::typed::object;

/// How an object says what is called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Objects {
    /// The keys of name, arguments and number, as the template writes them.
    pub(super) keys: [&'static str; 3],
    /// `{N: {..}}`: the only key is the name.
    pub(super) short: bool,
    /// Without an object of arguments it is none.
    pub(super) strict: bool,
    /// What closes a call, at which a forgotten brace is mended.
    pub(super) close: &'static str,
}

/// `{"name": N, "arguments": {..}}`.
pub(super) const PLAIN: Objects =
    Objects { keys: ["name", "arguments", "id"], short: false, strict: false, close: "</tool_call>" };

/// Keys that others have for the same.
const NAMES: [&str; 2] = ["name", "tool_name"];
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];
const NUMBERS: [&str; 3] = ["id", "tool_call_id", "call_id"];

impl Objects {
    pub(super) fn find(&self, source: Offer, text: &str) -> Found {
        match read(text, Notation::Json) {
            JsonRead::Whole(Value::Object(map), n) => match self.call(source, map) {
                Some(call) => Found::Whole(call, n),
                None => Found::Nothing,
            },
            JsonRead::Cut => Found::Cut,
            JsonRead::Bad(at, begun, open) if open == ['}'] && text[at..].starts_with(self.close) => {
                let map = serde_json::from_str(&format!("{begun}}}")).ok();
                let call = map.and_then(|map| self.call(source, map)).filter(|c| source.tools.has(&c.name));
                call.map_or(Found::Nothing, |call| Found::Whole(call, at))
            }
            _ => Found::Nothing,
        }
    }

    fn call(&self, source: Offer, mut map: Map<String, Value>) -> Option<Call> {
        if self.short && map.len() == 1 {
            let (name, value) = map.iter().next()?;
            if value.is_object() || source.tools.has(name) {
                return Some(Call::new(name, object(value.clone())?));
            }
        }
        if let Some(Value::Object(inner)) = map.get("function") {
            map = inner.clone();
        }
        let mut take = |keys: &[&str]| keys.iter().find_map(|k| map.remove(*k));
        let name = take(&NAMES)?;
        let (arguments, id) = (take(&ARGUMENTS), take(&NUMBERS));
        if arguments.is_none() && self.strict {
            return None;
        }
        let arguments = arguments.map_or(Some(Map::new()), object)?;
        let mut call = Call::new(name.as_str().filter(|n| !n.is_empty())?, arguments);
        call.id = match id {
            Some(Value::String(id)) if !id.is_empty() => Some(id),
            Some(Value::Number(n)) => Some(n.to_string()),
            _ => None,
        };
        Some(call)
    }
}
