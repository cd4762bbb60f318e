//! What jinja2 reads otherwise than minijinja, written so that both mean the same.
//!
//! ```text
//! \r\n, \r                  \n, before anything else
//! {% generation %}          a scope that prints its body: {% with %}
//! 'a\/b', '\U0001F600'      escapes of Python's strings: \\/ and the character
//! list[a:b:c]               list.__slice__(a, b, c): minijinja 3.0 counts backwards wrongly, and panics on what is empty
//! ```

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// An expression of our own.
fn regex(text: &str) -> Regex {
    Regex::new(text).expect("an expression that a test compiles")
}

const STRING: &str = r#"'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*""#;

/// Comments and raw text, in which nothing means anything, and tags.
static TAG: LazyLock<Regex> = LazyLock::new(|| {
    let raw = r"\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}";
    let inner = format!(r#"(?:{STRING}|[^'"])*?"#);
    regex(&format!(r"(?s)\{{#.*?#\}}|{raw}|(?<tag>\{{%{inner}%\}}|\{{\{{{inner}\}}\}})"))
});

/// The tag that marks what a model says.
static GENERATION: LazyLock<Regex> = LazyLock::new(|| regex(r"^(\{%[-+]?\s*(?:end)?)generation(\s*[-+]?%\})$"));

/// Within a tag: strings, and slices with a step.
static PART: LazyLock<Regex> = LazyLock::new(|| {
    let bound = r#"[^\[\]{}:,'"]*"#;
    regex(&format!(r"(?s)(?<string>{STRING})|\[(?<a>{bound}):(?<b>{bound}):(?<c>{bound})\]"))
});

/// Escapes of Python's strings that minijinja does not know.
static ESCAPE: LazyLock<Regex> = LazyLock::new(|| regex(r"(?s)\\(?:U([0-9A-Fa-f]{8})|.)"));

/// A template as minijinja is to read it. Lines stay where they are.
pub(super) fn translate(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let tags = TAG.replace_all(&source, |c: &Captures| match c.name("tag") {
        Some(tag) => PART.replace_all(&GENERATION.replace(tag.as_str(), "${1}with${2}"), part).into_owned(),
        None => c[0].to_owned(),
    });
    tags.into_owned()
}

fn part(c: &Captures) -> String {
    if let Some(string) = c.name("string") {
        return ESCAPE.replace_all(string.as_str(), escape).into_owned();
    }
    let bound = |name: &str| match c[name].trim() {
        "" => "none".to_owned(),
        _ => c[name].to_owned(),
    };
    format!(".__slice__({},{},{})", bound("a"), bound("b"), bound("c"))
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
            assert_eq!(translate(source), if want.is_empty() { source } else { want });
        }
    }
}
