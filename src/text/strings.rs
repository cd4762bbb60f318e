//! What Python's strings do, for texts that are in part a template's own (`marks.rs`).
//!
//! They look for what a text says, whoever wrote it, and what they return has the characters of what they were given: a
//! template's stay its own, and no other becomes one.

use std::collections::BTreeSet;
use std::ops::Range;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Value, filters};

use super::marks::{base, has_own, own_as, pieces, plain};

/// Methods and filters that change the case of letters.
pub(super) const CASES: &[&str] = &["upper", "lower", "title", "capitalize"];

/// An operation that a value cannot do.
pub(super) fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why.into())
}

/// What `str.strip` takes for white space, beyond what Unicode does: four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// `str.strip`, on the sides that are asked for.
pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let chars: Option<BTreeSet<char>> = chars.map(|chars| chars.chars().map(base).collect());
    let drop = |c: char| chars.as_ref().map_or_else(|| is_space(base(c)), |chars| chars.contains(&base(c)));
    let text = if left { text.trim_start_matches(drop) } else { text };
    if right { text.trim_end_matches(drop) } else { text }
}

/// A text with the case of its letters changed; letters of the template stay the template's.
pub(super) fn cased(text: &str, how: &str) -> String {
    let said = plain(text);
    let mut letters = said.chars();
    let changed = match how {
        "upper" => said.to_uppercase(),
        "lower" => said.to_lowercase(),
        "title" => filters::title(said.as_ref().into()),
        _ => letters
            .next()
            .map_or_else(String::new, |c| c.to_uppercase().chain(letters.as_str().to_lowercase().chars()).collect()),
    };
    own_as(text, changed)
}

/// `str.replace`.
pub(super) fn replace(text: &str, old: &str, new: &str, count: Option<usize>) -> String {
    let most = count.unwrap_or(usize::MAX);
    if old.is_empty() || !has_own(text) && !has_own(old) {
        return text.replacen(old, new, most);
    }
    let old = plain(old);
    let found = pieces(text, |text| Ok::<_, Error>(places(text, text.splitn(most.saturating_add(1), old.as_ref()))));
    found.unwrap_or_default().join(new)
}

/// Where parts of a text are.
pub(super) fn places<'t>(text: &str, parts: impl IntoIterator<Item = &'t str>) -> Vec<Range<usize>> {
    let place = |part: &str| {
        let start = part.as_ptr() as usize - text.as_ptr() as usize;
        start..start + part.len()
    };
    parts.into_iter().map(place).collect()
}

/// `str.split` and, from the right, `str.rsplit`.
pub(super) fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (sep, most, more): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let sep = sep.or(more.get("sep")?).map(plain);
    let most = most.or(more.get("maxsplit")?).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    more.assert_all_used()?;
    let n = most.saturating_add(1);
    let mut parts = pieces(text, |text| {
        let parts: Vec<&str> = match sep.as_deref() {
            Some("") => return Err(invalid("empty separator")),
            Some(sep) if from_right => text.rsplitn(n, sep).collect(),
            Some(sep) => text.splitn(n, sep).collect(),
            None => words(text, most, from_right),
        };
        Ok(places(text, parts))
    })?;
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// At most this many words of a text, from the near end on, and the rest. White space goes where it parts words; at the
/// far end it stays if the last word is not parted.
fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let near = |text| strip(text, None, !from_right, from_right);
    let (mut parts, mut rest) = (Vec::new(), near(text));
    while !rest.is_empty() && parts.len() < most {
        let Some(cut) = (if from_right { rest.rfind(is_space) } else { rest.find(is_space) }) else { break };
        let after = cut + rest[cut..].chars().next().map_or(1, char::len_utf8);
        let (word, left) = if from_right { (&rest[after..], &rest[..cut]) } else { (&rest[..cut], &rest[after..]) };
        parts.push(word);
        rest = near(left);
    }
    parts.extend(Some(rest).filter(|r| !r.is_empty()));
    parts
}

/// An argument that is looked for, or a list of them.
pub(super) fn unowned(value: &Value) -> Value {
    match (value.as_str(), value.kind()) {
        (Some(text), _) if has_own(text) => plain(text).as_ref().into(),
        (None, ValueKind::Seq) => {
            value.try_iter().map_or_else(|_| value.clone(), |list| list.map(|v| unowned(&v)).collect())
        }
        _ => value.clone(),
    }
}
