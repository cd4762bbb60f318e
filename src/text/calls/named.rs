//! Calls that name the tool in front of its arguments, which are a JSON object.
//!
//! ```text
//! Kimi K2          <|tool_call_begin|>functions.N:0<|tool_call_argument_begin|>{..}<|tool_call_end|>
//! DeepSeek V3.1    <｜tool▁call▁begin｜>N<｜tool▁sep｜>{..}<｜tool▁call▁end｜>
//! DeepSeek V3      <｜tool▁call▁begin｜>function<｜tool▁sep｜>N\n```json\n{..}\n```<｜tool▁call▁end｜>
//! Mistral          N[CALL_ID]I[ARGS]{..}, N[ARGS]{..}
//! Functionary 3.1  <function=N>{..}</function>
//! Functionary 3.2  N\n{..}
//! Solar            <|tool_call:begin|>I<|tool_call:name|>N<|tool_call:args|>{..}<|tool_call:end|>
//! ```

use super::call::{Call, Found, Offer, Tools, begins, blank};
use super::json::{JsonRead, Notation, read};
use super::typed::object;

/// How a call names its tool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Named {
    Kimi,
    DeepSeek,
    /// DeepSeek V3.
    Fenced,
    Mistral,
    /// Mistral with a number.
    Numbered,
    Function,
    Line,
    Solar,
}

impl Named {
    pub(super) fn find(self, source: Offer, text: &str) -> Found {
        match self {
            Named::Kimi => kimi(source, text),
            Named::DeepSeek | Named::Fenced => deepseek(text),
            Named::Mistral | Named::Numbered => mistral(text),
            Named::Function => function(text),
            Named::Line => line(text),
            Named::Solar => solar(text),
        }
    }
}

/// What is before a mark, and after it; without the mark, whether more text could bring it.
fn head<'a>(text: &'a str, mark: &str) -> Result<(&'a str, &'a str), bool> {
    match text.split_once(mark) {
        Some((head, rest)) if !head.contains('\n') || head.trim().lines().count() < 2 => Ok((head, rest)),
        Some(_) => Err(false),
        None if text.trim_end().contains('\n') => Err(false),
        None => Err(true),
    }
}

/// The arguments after this part of a call.
fn arguments(whole: &str, rest: &str, name: &str, id: Option<&str>) -> Found {
    let at = whole.len() - rest.len() + blank(rest);
    let text = &whole[at..];
    if text.is_empty() || "```json".starts_with(text.trim_end()) && !text.starts_with('{') {
        return Found::Cut;
    }
    let fence = ["```json", "```"].into_iter().find(|f| text.starts_with(f)).unwrap_or("");
    let inner = &text[fence.len()..];
    let skip = fence.len() + blank(inner);
    if name.is_empty() {
        return Found::Nothing;
    }
    match read(&text[skip..], Notation::Json) {
        JsonRead::Whole(value, n) => {
            let Some(map) = object(value) else { return Found::Nothing };
            let mut end = at + skip + n;
            let after = &whole[end..];
            if !fence.is_empty() && after.trim_start().starts_with("```") {
                end += blank(after) + 3;
            }
            let mut call = Call::new(name, map);
            call.id = id.filter(|id| !id.is_empty()).map(String::from);
            Found::Whole(call, end)
        }
        JsonRead::Cut => Found::Cut,
        JsonRead::Bad(..) if text[skip..].is_empty() => Found::Cut,
        JsonRead::Bad(..) => Found::Nothing,
    }
}

/// What a call of Kimi's begins with, and what its arguments do.
pub(super) const KIMI: [&str; 2] = ["<|tool_call_begin|>", "<|tool_call_argument_begin|>"];

fn kimi(source: Offer, text: &str) -> Found {
    let Some(begun) = text.strip_prefix(KIMI[0]) else { return Found::Nothing };
    match head(begun, KIMI[1]) {
        Ok((head, _)) if head.contains("<|") => Found::Nothing,
        Ok((head, rest)) => {
            let id = head.trim();
            arguments(text, rest, &name_in(id, source.tools), Some(id))
        }
        Err(cut) => Found::part(cut),
    }
}

/// The name in a number like `functions.N:0`, of which some part may be missing.
fn name_in(id: &str, tools: &Tools) -> String {
    let plain = id.strip_prefix("functions.").unwrap_or(id);
    let count = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let name = plain.rsplit_once(':').filter(|(_, n)| count(n)).map_or(plain, |(name, _)| name);
    if tools.has(name) {
        return name.to_owned();
    }
    // Signs may be missing or others: the only offered name that fits.
    let fits = |offered: &&str| {
        let mut rest = id;
        for part in ["functions", "function"] {
            if let Some(after) = id.strip_prefix(part) {
                rest = after;
                break;
            }
        }
        let rest = if rest.starts_with(offered) { rest } else { rest.trim_start_matches(['.', '_', ':', '-']) };
        let end = rest.strip_prefix(offered).map(|end| end.trim_start_matches(['.', '_', ':', '-']));
        end.is_some_and(|end| end.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut all = tools.iter().map(|(name, _)| name).filter(fits);
    match (all.next(), all.next()) {
        (Some(one), None) => one.to_owned(),
        _ => name.to_owned(),
    }
}

/// What a call of DeepSeek's begins with, and what parts its head.
pub(super) const DEEPSEEK: [&str; 2] = ["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"];

fn deepseek(text: &str) -> Found {
    let Some(begun) = text.strip_prefix(DEEPSEEK[0]) else { return Found::Nothing };
    let (first, rest) = match head(begun, DEEPSEEK[1]) {
        Ok(parts) => parts,
        Err(cut) => return Found::part(cut),
    };
    let first = first.trim();
    if first.contains('<') {
        return Found::Nothing;
    }
    if first != "function" || rest.trim_start().starts_with(['{', '`']) {
        return arguments(text, rest, first, None);
    }
    // The kind comes first and the name after it.
    let name = rest.trim_start();
    match name.find(['\n', '`', '{']) {
        Some(end) => arguments(text, &name[end..], name[..end].trim(), None),
        None => Found::Cut,
    }
}

fn mistral(text: &str) -> Found {
    let start = blank(text);
    let begun = &text[start..];
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    let end = begun.find(|c| !is_name(c)).unwrap_or(begun.len());
    let (name, mut rest) = begun.split_at(end);
    if rest.is_empty() {
        return Found::Cut;
    }
    let mut id = None;
    if let Some(after) = rest.trim_start().strip_prefix("[CALL_ID]") {
        let end = after.find(['[', '{']).unwrap_or(after.len());
        id = Some(after[..end].trim());
        rest = &after[end..];
    }
    rest = rest.trim_start();
    if begins(rest, &["[ARGS]", "[CALL_ID]"]) || rest.is_empty() {
        return Found::Cut;
    }
    rest = rest.strip_prefix("[ARGS]").unwrap_or(rest);
    if !rest.is_empty() && !rest.trim_start().starts_with('{') {
        return Found::Nothing;
    }
    arguments(text, rest, name, id)
}

fn function(text: &str) -> Found {
    let Some(begun) = text.strip_prefix("<function=") else { return Found::Nothing };
    match head(begun, ">") {
        Ok((_, rest)) if !rest.trim_start().is_empty() && !rest.trim_start().starts_with('{') => Found::Nothing,
        Ok((name, rest)) => arguments(text, rest, name.trim().trim_matches('"'), None),
        Err(cut) => Found::part(cut),
    }
}

fn line(text: &str) -> Found {
    match text.split_once('\n') {
        Some((_, rest)) if !rest.trim_start().starts_with('{') => Found::Nothing,
        Some((name, rest)) => arguments(text, rest, name.trim(), None),
        None => Found::Nothing,
    }
}

/// The marks of a call of Solar's.
pub(super) const SOLAR: [&str; 3] = ["<|tool_call:begin|>", "<|tool_call:name|>", "<|tool_call:args|>"];

fn solar(text: &str) -> Found {
    let Some(begun) = text.strip_prefix(SOLAR[0]) else { return Found::Nothing };
    let (id, rest) = match head(begun, SOLAR[1]) {
        Ok(parts) => parts,
        Err(cut) => return Found::part(cut),
    };
    match head(rest, SOLAR[2]) {
        Ok((name, rest)) => arguments(text, rest, name.trim(), Some(id.trim())),
        Err(cut) => Found::part(cut),
    }
}
