//! What jinja2 reads otherwise than minijinja, written so that both mean the same.
//!
//! ```text
//! \r\n, \r                  \n, before anything else
//! {% generation %}          a scope that prints its body: {% with %}
//! 'a\/b', '\U0001F600'      escapes of Python's strings: \\/ and the character
//! a in b, a == b            a|__plain__ in b|__plain__, where a template has own characters
//! list[a:b:c]               list.__slice__(a, b, c): minijinja 3.0 counts backwards wrongly, and panics on what is empty
//! ```

use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::own::Literals;

/// An expression of our own.
fn regex(text: &str) -> Regex {
    Regex::new(text).expect("an expression that a test compiles")
}

/// A filter of ours that takes a text without regard to who wrote it.
const PLAIN: &str = "|__plain__";

const STRING: &str = r#"'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*""#;

/// Comments and raw text, in which nothing means anything, and tags.
static TAG: LazyLock<Regex> = LazyLock::new(|| {
    let raw = r"\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}";
    let inner = format!(r#"(?:{STRING}|[^'"])*?"#);
    regex(&format!(r"(?s)\{{#.*?#\}}|{raw}|(?<tag>\{{%{inner}%\}}|\{{\{{{inner}\}}\}})"))
});

/// The tag that marks what a model says.
static GENERATION: LazyLock<Regex> = LazyLock::new(|| regex(r"^(\{%[-+]?\s*(?:end)?)generation(\s*[-+]?%\})$"));

/// Within a tag: strings, slices with a step, and comparisons.
static PART: LazyLock<Regex> = LazyLock::new(|| {
    let bound = r#"[^\[\]{}:,'"]*"#;
    let slice = format!(r"\[(?<a>{bound}):(?<b>{bound}):(?<c>{bound})\]");
    regex(&format!(r"(?s)(?<string>{STRING})|{slice}|(?<op>==|!=|\b(?:not\s+)?in\b)(?<right>\s*[A-Za-z_][\w.]*)?"))
});

/// A loop's tag up to its `in`, or a test's name up to it: no comparison.
static NO_COMPARISON: LazyLock<Regex> = LazyLock::new(|| regex(r"(?s)^\{%[-+]?\s*for\s[\w\s,()]*$|\bis\s*$"));

/// Escapes of Python's strings that minijinja does not know.
static ESCAPE: LazyLock<Regex> = LazyLock::new(|| regex(r"(?s)\\(?:U([0-9A-Fa-f]{8})|.)"));

/// A template as minijinja is to read it. Lines stay where they are. With `own`, what the template itself writes of
/// control tokens is in own characters.
pub(super) fn translate(source: &str, mut own: Option<&mut Literals>) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    for c in TAG.captures_iter(&source) {
        let (Some(whole), tag) = (c.get(0), c.name("tag")) else { continue };
        out += &text(&source[done..whole.start()], &mut own);
        done = whole.end();
        match tag {
            Some(tag) => {
                let tag = GENERATION.replace(tag.as_str(), "${1}with${2}");
                out += &PART.replace_all(&tag, |c: &Captures| part(&tag, c, &mut own));
            }
            None if whole.as_str().starts_with("{#") => out += whole.as_str(),
            None => out += &text(whole.as_str(), &mut own),
        }
    }
    out + &text(&source[done..], &mut own)
}

/// Text that is written as it is.
fn text(text: &str, own: &mut Option<&mut Literals>) -> String {
    match own {
        Some(own) if !text.is_empty() => own.mark(text, false),
        _ => text.to_owned(),
    }
}

/// A string or a slice in a tag.
fn part(tag: &str, c: &Captures, own: &mut Option<&mut Literals>) -> String {
    if let Some(string) = c.name("string") {
        let said = ESCAPE.replace_all(string.as_str(), escape);
        let (before, after) = (&tag[..string.start()], &tag[string.end()..]);
        return match own {
            Some(own) if !compared(before, after) => {
                let (quote, body) = said.split_at(1);
                format!("{quote}{}{quote}", own.mark(&body[..body.len() - 1], true))
            }
            _ => said.into_owned(),
        };
    }
    if let Some(op) = c.name("op") {
        return if own.is_some() { comparison(tag, c, op.start()) } else { c[0].to_owned() };
    }
    let bound = |name: &str| match c[name].trim() {
        "" => "none".to_owned(),
        _ => c[name].to_owned(),
    };
    format!(".__slice__({},{},{})", bound("a"), bound("b"), bound("c"))
}

/// A comparison at a place of a tag, of what its sides say and not of who wrote it.
fn comparison(tag: &str, c: &Captures, start: usize) -> String {
    let before = &tag[..start];
    if NO_COMPARISON.is_match(before) {
        return c[0].to_owned();
    }
    let value = |c: char| c.is_alphanumeric() || matches!(c, '_' | ')' | ']');
    let left = if before.trim_end().ends_with(value) { PLAIN } else { "" };
    let called = tag[start + c[0].len()..].trim_start().starts_with(['(', '[']);
    let right = c.name("right").filter(|r| r.as_str().trim() != "not" && !called).map_or("", |_| PLAIN);
    format!("{left} {}{right}", &c[0])
}

/// Whether a string between these parts of a tag is compared, or is a key, and not written.
fn compared(before: &str, after: &str) -> bool {
    let (before, after) = (before.trim_end(), after.trim_start());
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let last = before.rsplit(|c| !word(c)).next();
    let next = after.split(|c| !word(c)).next();
    let key = before.strip_suffix('[').is_some_and(|of| of.ends_with(|c| word(c) || c == ')' || c == ']'));
    before.ends_with("==")
        || before.ends_with("!=")
        || before.ends_with(".get(")
        || last == Some("in")
        || key && after.starts_with(']')
        || after.starts_with("==")
        || after.starts_with("!=")
        || after.starts_with(':')
        || matches!(next, Some("in" | "not"))
}

fn escape(c: &Captures) -> String {
    let character = c.get(1).and_then(|hex| char::from_u32(u32::from_str_radix(hex.as_str(), 16).ok()?));
    match (character, &c[0]) {
        (Some(character), _) => character.into(),
        (None, r"\/") => r"\\/".into(),
        (None, other) => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_are_rewritten_and_lines_stay_where_they_are() {
        for (source, want) in [
            ("{%- generation -%}\r\na{% endgeneration %}", "{%- with -%}\na{% endwith %}"),
            ("{# {% generation %} #}{% raw %}{% generation %}{% endraw %}", ""),
            ("[1:2:-1] 'a\\/b' {{ x[1:2:-1] }}", "[1:2:-1] 'a\\/b' {{ x.__slice__(1,2,-1) }}"),
            ("{{ x[::-1][0] ~ '[::-1] %}' }}", "{{ x.__slice__(none,none,-1)[0] ~ '[::-1] %}' }}"),
            ("{{ x[1:-1] + [{'a': 1, 'b': -1}] }}", ""),
            (r"{{ 'a\/\\/\U0001F600\n' }}", "{{ 'a\\\\/\\\\/😀\\n' }}"),
        ] {
            assert_eq!(translate(source, None), if want.is_empty() { source } else { want });
        }
    }
}
