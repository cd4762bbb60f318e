//! What jinja2 reads otherwise than minijinja, written so that both mean the same, and where a
//! template's values are checked against `limits.rs`.
//!
//! ```text
//! \r\n, \r                  \n, before anything else
//! {% generation %}          a scope that prints its body: {% with %}
//! 'a\/b', '\U0001F600'      escapes of Python's strings: \\/ and the character
//! list[a:b:c]               list.__slice__(a,b,c): minijinja counts backwards wrongly, and skips
//!                           through a list in one step
//! a ~ b, a * b, a + b       a|__text__ ~ b|__text__, __single__, __short__
//! a == b, a in b, x[a]      __compared__: the text, without regard to who wrote it
//! a|join                    a|__weighed__|join, for every filter that goes through all of a value
//! {% set a = b %}           __kept__, and __held__ where a namespace holds it
//! ```
//!
//! These filters of ours return what they are given, or an error. So it does not matter which part
//! of an expression the filter binds to: of a / b|__single__ * c only b is looked at, and a
//! quotient is no list.

use std::sync::LazyLock;

use anyhow::{Result, bail};
use regex::{Captures, Regex};

use super::limits::{TAG_TOKENS, TEMPLATE_BYTES};
use super::own::Literals;

/// An expression of our own.
fn regex(text: &str) -> Regex {
    Regex::new(text).expect("an expression that a test compiles")
}

/// The tag that marks what a model says.
static GENERATION: LazyLock<Regex> = LazyLock::new(|| regex(r"^(\{%[-+]?\s*(?:end)?)generation(\s*[-+]?%\})$"));

/// The tags around text that means nothing.
static RAW: LazyLock<Regex> = LazyLock::new(|| regex(r"^\{%[-+]?\s*raw\s*[-+]?%\}"));
static END_RAW: LazyLock<Regex> = LazyLock::new(|| regex(r"\{%[-+]?\s*endraw\s*[-+]?%\}"));

/// Escapes of Python's strings that minijinja does not know.
static ESCAPE: LazyLock<Regex> = LazyLock::new(|| regex(r"(?s)\\(?:U([0-9A-Fa-f]{8})|.)"));

/// Filters that look at a value's size, its beginning or its end, or at one text; those of
/// `python.rs` count what they do.
const CHEAP: &[&str] = &[
    "abs",
    "bool",
    "capitalize",
    "count",
    "d",
    "default",
    "first",
    "float",
    "from_json",
    "int",
    "items",
    "last",
    "length",
    "list",
    "lower",
    "replace",
    "reverse",
    "round",
    "safe",
    "string",
    "title",
    "tojson",
    "trim",
    "upper",
];

/// Words between values.
const BETWEEN: &[&str] = &["and", "elif", "else", "if", "in", "is", "not", "or", "recursive"];

/// A template as minijinja is to read it. Lines stay where they are. With `own`, what the template
/// itself writes of control tokens is in own characters.
///
/// # Errors
/// If the template is larger than [`TEMPLATE_BYTES`], a tag has more than [`TAG_TOKENS`] parts, or
/// one does not end.
pub(super) fn translate(source: &str, mut own: Option<&mut Literals>) -> Result<String> {
    if source.len() > TEMPLATE_BYTES {
        bail!("{} bytes: expected at most {TEMPLATE_BYTES} of a chat template", source.len());
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(2 * source.len());
    let mut done = 0;
    while let Some(start) = next_tag(&source, done) {
        out += &text(&source[done..start], &mut own);
        let Some(end) = tag_end(&source[start..]).map(|n| start + n) else {
            bail!("line {}: the tag that begins here does not end", line(&source, start));
        };
        let whole = &source[start..end];
        done = end;
        if whole.starts_with("{#") {
            out += whole;
        } else if RAW.is_match(whole) {
            out += &text(whole, &mut own);
        } else {
            let whole = GENERATION.replace(whole, "${1}with${2}");
            let Some(tag) = Tag::new(&whole) else {
                bail!("line {}: a tag of more than {TAG_TOKENS} parts", line(&source, start));
            };
            out += &tag.rewritten(&mut own);
        }
    }
    Ok(out + &text(&source[done..], &mut own))
}

/// The line of a place.
fn line(source: &str, at: usize) -> usize {
    source[..at].matches('\n').count() + 1
}

/// Where the next tag or comment begins.
fn next_tag(source: &str, from: usize) -> Option<usize> {
    let braces = source[from..].match_indices('{').map(|(at, _)| from + at);
    braces.into_iter().find(|at| matches!(source.as_bytes().get(at + 1), Some(b'%' | b'{' | b'#')))
}

/// Where the tag, the comment or the raw text with which this begins ends.
fn tag_end(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    if bytes[1] == b'#' {
        return rest.find("#}").map(|at| at + 2);
    }
    if let Some(raw) = RAW.find(rest) {
        return END_RAW.find_at(rest, raw.end()).map(|end| end.end());
    }
    let close = if bytes[1] == b'%' { b"%}" } else { b"}}" };
    let (mut at, mut depth) = (2, 0);
    while at < bytes.len() {
        match bytes[at] {
            _ if depth == 0 && bytes[at..].starts_with(close) => return Some(at + 2),
            b'\'' | b'"' => at += string_end(&bytes[at..])? - 1,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// The length of the string with which this begins, with its quotes.
fn string_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    while *bytes.get(at)? != bytes[0] {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    Some(at + 1)
}

/// Text that is written as it is.
fn text(text: &str, own: &mut Option<&mut Literals>) -> String {
    match own {
        Some(own) if !text.is_empty() => own.mark(text, false),
        _ => text.to_owned(),
    }
}

/// What a part of a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TagPart {
    Name,
    Number,
    String,
    /// A bracket that opens, and the number of the part that closes it.
    Open(usize),
    Close,
    /// An operator, a comma, a colon.
    Sign,
}

/// A tag, in its parts.
struct Tag<'t> {
    text: &'t str,
    /// What each part is, and where it begins and ends.
    parts: Vec<(TagPart, usize, usize)>,
    /// It begins with a word that says what it does: {% %}, not {{ }}.
    statement: bool,
    /// The parts of its expressions begin here: what comes before names what is set.
    from: usize,
}

/// Text that goes into a tag in place of some of it. What closes goes before what opens at the same
/// place, and of what closes the lower `order` is the inner one.
struct Edit {
    at: usize,
    order: u8,
    end: usize,
    new: String,
}

impl<'t> Tag<'t> {
    /// Reads a tag; None if it has too many parts.
    fn new(text: &'t str) -> Option<Tag<'t>> {
        let sign = |c: u8| matches!(c, b'-' | b'+');
        let bytes = text.as_bytes();
        let mut end = text.len() - 2;
        end -= usize::from(end > 2 && sign(bytes[end - 1]));
        let mut at = 2 + usize::from(end > 2 && sign(bytes[2]));
        let (mut parts, mut open) = (Vec::new(), Vec::new());
        while at < end {
            let start = at;
            let rest = &text[at..end];
            let c = rest.chars().next().unwrap_or(' ');
            let run = |of: fn(char) -> bool| rest.find(|c| !of(c)).unwrap_or(rest.len());
            let mut part = TagPart::Sign;
            at += c.len_utf8();
            match c {
                c if c.is_whitespace() => continue,
                '\'' | '"' => {
                    part = TagPart::String;
                    at = start + string_end(rest.as_bytes())?;
                }
                '0'..='9' => {
                    part = TagPart::Number;
                    at = start + run(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
                }
                c if c.is_alphabetic() || c == '_' => {
                    part = TagPart::Name;
                    at = start + run(|c| c.is_alphanumeric() || c == '_');
                }
                '(' | '[' | '{' => open.push(parts.len()), // a sign until it closes
                ')' | ']' | '}' => {
                    part = TagPart::Close;
                    let here = parts.len();
                    if let Some(opened) = open.pop() {
                        let opened: &mut (TagPart, usize, usize) = &mut parts[opened];
                        opened.0 = TagPart::Open(here);
                    }
                }
                _ if ["==", "!=", "<=", ">=", "//", "**"].iter().any(|two| rest.starts_with(two)) => at += 1,
                _ => {}
            }
            parts.push((part, start, at));
            if parts.len() > TAG_TOKENS {
                return None;
            }
        }
        let mut tag = Tag { text, parts, statement: bytes[1] == b'%', from: 0 };
        if tag.statement {
            let until = match tag.said(0) {
                "for" => tag.find(1, tag.parts.len(), "in"),
                "set" => tag.find(1, tag.parts.len(), "="),
                "call" if matches!(tag.part(1), TagPart::Open(_)) => Some(tag.after(1) - 1),
                _ => None,
            };
            tag.from = until.unwrap_or(0) + 1;
        }
        Some(tag)
    }

    /// What a part is; a sign after the last one.
    fn part(&self, i: usize) -> TagPart {
        self.parts.get(i).map_or(TagPart::Sign, |p| p.0)
    }

    /// What a part says.
    fn said(&self, i: usize) -> &'t str {
        self.parts.get(i).map_or("", |&(_, start, end)| &self.text[start..end])
    }

    /// The part after this one, and after all that is in its brackets.
    fn after(&self, i: usize) -> usize {
        match self.part(i) {
            TagPart::Open(close) => close + 1,
            _ => i + 1,
        }
    }

    /// Between these parts, the first one in no further brackets that says this.
    fn find(&self, from: usize, to: usize, what: &str) -> Option<usize> {
        let mut i = from;
        while i < to {
            if self.said(i) == what && self.part(i) != TagPart::String {
                return Some(i);
            }
            i = self.after(i);
        }
        None
    }

    /// Whether a value ends with this part.
    fn ends_value(&self, i: Option<usize>) -> bool {
        let Some(i) = i.filter(|i| *i > 0 || !self.statement) else { return false };
        match self.part(i) {
            TagPart::Name => !BETWEEN.contains(&self.said(i)),
            TagPart::Number | TagPart::String | TagPart::Close => true,
            TagPart::Open(_) | TagPart::Sign => false,
        }
    }

    /// The part with which the operand ends that begins with this one, its filters with it.
    fn operand_end(&self, mut i: usize) -> Option<usize> {
        while matches!(self.said(i), "-" | "+") && self.part(i) == TagPart::Sign {
            i += 1;
        }
        if i >= self.parts.len() || matches!(self.part(i), TagPart::Sign | TagPart::Close) {
            return None;
        }
        let mut next = self.after(i);
        while self.part(i) == TagPart::String && self.part(next) == TagPart::String {
            next += 1;
        }
        loop {
            next = match (self.part(next), self.said(next)) {
                (TagPart::Sign, "." | "|") if matches!(self.part(next + 1), TagPart::Name | TagPart::Number) => {
                    next + 2
                }
                (TagPart::Open(_), "(" | "[") => self.after(next),
                _ => return Some(next - 1),
            };
        }
    }

    /// Whether all of these parts are one number or one string.
    fn is_constant(&self, from: usize, to: usize) -> bool {
        (from..to).all(|i| matches!(self.part(i), TagPart::Number | TagPart::String) || self.said(i) == "-")
    }

    /// The tag as minijinja is to read it.
    fn rewritten(&self, own: &mut Option<&mut Literals>) -> String {
        let mut edits = Vec::new();
        for i in 0..self.parts.len() {
            if self.part(i) == TagPart::String {
                self.string(i, own, &mut edits);
            }
        }
        for i in self.from..self.parts.len() {
            match (self.part(i), self.said(i)) {
                (TagPart::Sign, "|") => self.filter(i, &mut edits),
                (TagPart::Sign, _) | (TagPart::Name, "in" | "not") => self.operator(i, &mut edits),
                (TagPart::Open(close), "[") if self.ends_value(i.checked_sub(1)) => {
                    self.subscript(i, close, &mut edits)
                }
                (TagPart::Open(close), "{") => self.keys(i, close, &mut edits),
                (TagPart::Open(close), "(") if i > 1 && self.said(i - 1) == "changed" && self.said(i - 2) == "." => {
                    self.wrap(i + 1, close, "__weighed__", &mut edits);
                }
                _ => {}
            }
        }
        if self.statement && self.said(0) == "set" && self.from > 1 {
            let held = (1..self.from).any(|i| self.said(i) == ".");
            let name = if held { "__held__" } else { "__kept__" };
            self.wrap(self.from, self.parts.len(), name, &mut edits);
        }
        edits.sort_by_key(|e| (e.at, e.order));
        let mut out = String::with_capacity(2 * self.text.len());
        let mut done = 0;
        for e in edits {
            out += &self.text[done..e.at];
            out += &e.new;
            done = e.end;
        }
        out + &self.text[done..]
    }

    /// Puts a filter after a part.
    fn put(&self, i: usize, order: u8, filter: &str, edits: &mut Vec<Edit>) {
        let at = self.parts[i].2;
        edits.push(Edit { at, order, end: at, new: format!("|{filter}") });
    }

    /// Puts these parts in brackets and a filter after them.
    fn wrap(&self, from: usize, to: usize, filter: &str, edits: &mut Vec<Edit>) {
        if from >= to || self.is_constant(from, to) {
            return;
        }
        let (start, end) = (self.parts[from].1, self.parts[to - 1].2);
        edits.push(Edit { at: start, order: 5, end: start, new: "(".into() });
        edits.push(Edit { at: end, order: 3, end, new: format!(")|{filter}") });
    }

    /// A string: its escapes, and in own characters what is not compared with anything.
    fn string(&self, i: usize, own: &mut Option<&mut Literals>, edits: &mut Vec<Edit>) {
        let (_, at, end) = self.parts[i];
        let said = ESCAPE.replace_all(&self.text[at..end], escape);
        let new = match own {
            Some(own) if !compared(&self.text[..at], &self.text[end..]) => {
                let (quote, body) = said.split_at(1);
                format!("{quote}{}{quote}", own.mark(&body[..body.len() - 1], true))
            }
            _ => said.into_owned(),
        };
        edits.push(Edit { at, order: 9, end, new });
    }

    /// An operator between two values.
    fn operator(&self, i: usize, edits: &mut Vec<Edit>) {
        let (guard, right) = match self.said(i) {
            "~" => ("__text__", i + 1),
            "*" => ("__single__", i + 1),
            "+" => ("__short__", i + 1),
            "==" | "!=" | "<" | ">" | "<=" | ">=" | "in" => ("__compared__", i + 1),
            "not" if self.said(i + 1) == "in" => ("__compared__", i + 2),
            _ => return,
        };
        let Some(left) = i.checked_sub(1).filter(|left| self.ends_value(Some(*left))) else { return };
        self.put(left, 2, guard, edits);
        if let Some(end) = self.operand_end(right) {
            self.put(end, 1, guard, edits);
        }
    }

    /// A filter that may go through all of a value.
    fn filter(&self, i: usize, edits: &mut Vec<Edit>) {
        if i > 0 && !CHEAP.contains(&self.said(i + 1)) && self.ends_value(Some(i - 1)) {
            self.put(i - 1, 2, "__weighed__", edits);
        }
    }

    /// What is in the brackets after a value: a key or a number, or a slice.
    fn subscript(&self, open: usize, close: usize, edits: &mut Vec<Edit>) {
        let Some(first) = self.find(open + 1, close, ":") else {
            return self.wrap(open + 1, close, "__compared__", edits);
        };
        let second = self.find(first + 1, close, ":");
        let mut replace = |i: usize, new: String| {
            let (_, at, end) = self.parts[i];
            edits.push(Edit { at, order: 9, end, new });
        };
        let none = |from: usize, to: usize| if from == to { "none" } else { "" };
        replace(open, format!(".__slice__({}", none(open + 1, first)));
        replace(first, format!(",{}", none(first + 1, second.unwrap_or(close))));
        match second {
            Some(second) => replace(second, format!(",{}", none(second + 1, close))),
            None => {
                edits.push(Edit { at: self.parts[close].1, order: 4, end: self.parts[close].1, new: ",none".into() })
            }
        }
        replace_close(self.parts[close], edits);
    }

    /// The keys of a mapping.
    fn keys(&self, open: usize, close: usize, edits: &mut Vec<Edit>) {
        let mut from = open + 1;
        while let Some(colon) = self.find(from, close, ":") {
            self.wrap(from, colon, "__compared__", edits);
            let Some(comma) = self.find(colon, close, ",") else { return };
            from = comma + 1;
        }
    }
}

/// The bracket that closes a slice.
fn replace_close((_, at, end): (TagPart, usize, usize), edits: &mut Vec<Edit>) {
    edits.push(Edit { at, order: 9, end, new: ")".into() });
}

/// Whether a string between these texts of a tag is compared, or is a key, and not written.
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
            ("{{ x[::-1][0] ~ '[::-1] %}' }}", "{{ x.__slice__(none,none,-1)[0]|__text__ ~ '[::-1] %}'|__text__ }}"),
            (
                "{{ x[a[0]:-1] + [{'a': 1, 'b': -1}] }}",
                "{{ x.__slice__(a[0],-1,none)|__short__ + [{'a': 1, 'b': -1}]|__short__ }}",
            ),
            (r"{{ 'a\/\\/\U0001F600\n' }}", "{{ 'a\\\\/\\\\/😀\\n' }}"),
        ] {
            assert_eq!(translate(source, None).unwrap(), if want.is_empty() { source } else { want });
        }
    }

    #[test]
    fn a_values_size_is_looked_at_wherever_it_would_be_gone_through() {
        for (source, want) in [
            ("{%- set ns.a = b, 1 -%}", "{%- set ns.a = (b, 1)|__held__ -%}"),
            ("{% set a %}b{% endset %}{% set a = '=' %}", ""),
            ("{% for x in y if x in ['a'] %}", "{% for x in y if x|__compared__ in ['a']|__compared__ %}"),
            (
                "{{ a.b(c)|join is not in d or -2 * e }}",
                "{{ a.b(c)|__weighed__|join is not in d or -2|__single__ * e|__single__ }}",
            ),
            (
                "{{ {k: v, 'x': f(*y)}['x'][i - 1] }}",
                "{{ {(k)|__compared__: v, 'x': f(*y)}['x'][(i - 1)|__compared__] }}",
            ),
            ("{{ a ~ b|trim ~ 'c' 'd' }}", "{{ a|__text__ ~ b|trim|__text__|__text__ ~ 'c' 'd'|__text__ }}"),
            ("{{ x not in y.z[0](1) }}", "{{ x|__compared__ not in y.z[0](1)|__compared__ }}"),
            ("{{ a if b else {} }}{{ not c }}{{ d is string }}", ""),
        ] {
            assert_eq!(translate(source, None).unwrap(), if want.is_empty() { source } else { want });
        }
    }

    #[test]
    fn a_template_that_is_too_large_or_does_not_end_is_named_by_its_line() {
        let e = |source: &str| translate(source, None).unwrap_err().to_string();
        assert!(e(&"x".repeat(TEMPLATE_BYTES + 1)).contains("bytes"));
        assert!(e(&format!("\n{{{{ 1{} }}}}", "+1".repeat(TAG_TOKENS))).starts_with("line 2: a tag of more than"));
        for open in ["{{ ' }}", "{% if (a %}", "{# ", "{% raw %}", "{{ [}}"] {
            assert!(e(&format!("a\nb\n{open}")).starts_with("line 3: the tag that begins here"), "{open}");
        }
    }
}
