//! Own characters: how a template's own text is told from the conversation's while a template is rendered.
//!
//! ```text
//! own(c) = c + 0x40000     a character of a control token's text that the template itself wrote
//! ```
//!
//! Planes 4 to 7, in which these numbers are, have no characters in Unicode. Every own character is one character, so
//! that whatever moves, cuts, counts or joins text takes its origin along. What compares, searches or changes characters
//! goes by [`base`]; `python.rs` does so for every filter and method.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::Value;

/// The distance of an own character from the one that it represents.
const DISTANCE: u32 = 0x4_0000;
/// No text of a conversation has own characters: one with such a number gets another one from here on.
const FREE: u32 = 2 * DISTANCE;

/// Whether a template wrote this character itself.
pub(super) fn is_own(c: char) -> bool {
    (DISTANCE..FREE).contains(&(c as u32))
}

/// The own character for one of planes 0 to 3; any other as it is.
pub(super) fn own(c: char) -> char {
    let moved = (c as u32).checked_add(DISTANCE).filter(|n| *n < FREE);
    moved.and_then(char::from_u32).unwrap_or(c)
}

/// The character that this one represents.
pub(super) fn base(c: char) -> char {
    if is_own(c) { char::from_u32(c as u32 - DISTANCE).unwrap_or(c) } else { c }
}

/// Whether a text can have own characters: their first byte in UTF-8 is 0xf1.
pub(super) fn has_own(text: &str) -> bool {
    text.bytes().any(|b| b == 0xf1) && text.contains(is_own)
}

/// The text without regard to who wrote it.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if has_own(text) { text.chars().map(base).collect::<String>().into() } else { text.into() }
}

/// `changed` with the origins of `text`, if both have equally many characters; else it is nobody's own.
pub(super) fn own_as(text: &str, changed: String) -> String {
    if !has_own(text) || text.chars().count() != changed.chars().count() {
        return changed;
    }
    text.chars().zip(changed.chars()).map(|(was, c)| if is_own(was) { own(c) } else { c }).collect()
}

/// The pieces of a text that `find` names by their places in its plain text.
pub(super) fn pieces<E>(text: &str, find: impl Fn(&str) -> Result<Vec<Range<usize>>, E>) -> Result<Vec<&str>, E> {
    let plain = plain(text);
    let ranges = find(&plain)?;
    if let Cow::Borrowed(_) = plain {
        return Ok(ranges.into_iter().map(|r| &text[r]).collect());
    }
    // Where a place of the plain text is in the text.
    let mut places = BTreeMap::from([(plain.len(), text.len())]);
    places.extend(plain.char_indices().zip(text.char_indices()).map(|((at, _), (place, _))| (at, place)));
    Ok(ranges.into_iter().map(|r| &text[places[&r.start]..places[&r.end]]).collect())
}

/// Characters of a conversation that have the numbers of own ones, and their substitutes while it is rendered.
#[derive(Debug, Default)]
pub(super) struct Moved(BTreeMap<char, char>);

impl Moved {
    /// Takes characters with own numbers out of every text of a conversation. There are none but in hostile or broken
    /// text, since they are no characters.
    pub(super) fn out_of(value: &mut Value) -> Moved {
        let mut seen = BTreeSet::new();
        every_text(value, &mut |text| {
            seen.extend(text.chars().filter(|c| *c as u32 >= DISTANCE));
            None
        });
        let free = (FREE..=char::MAX as u32).filter_map(char::from_u32).filter(|c| !seen.contains(c));
        let moved = Moved(seen.iter().copied().filter(|c| is_own(*c)).zip(free).collect());
        if !moved.0.is_empty() {
            let to = |c: char| moved.0.get(&c).copied().unwrap_or(c);
            every_text(value, &mut |text| Some(text.chars().map(to).collect()));
        }
        moved
    }

    /// The character that was written in a conversation for this one.
    pub(super) fn back(&self, c: char) -> char {
        self.0.iter().find(|(_, to)| **to == c).map_or(c, |(from, _)| *from)
    }

    /// A text with all its characters back.
    pub(super) fn restore(&self, text: String) -> String {
        if self.0.is_empty() { text } else { text.chars().map(|c| self.back(c)).collect() }
    }
}

/// Calls `change` with every text and key of a value, and puts in its place what it returns.
fn every_text(value: &mut Value, change: &mut dyn FnMut(&str) -> Option<String>) {
    match value {
        Value::String(text) => {
            if let Some(new) = change(text) {
                *text = new;
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| every_text(v, change)),
        Value::Object(map) => {
            for (key, mut value) in std::mem::take(map) {
                every_text(&mut value, change);
                map.insert(change(&key).unwrap_or(key), value);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(text: &str) -> String {
        text.chars().map(own).collect()
    }

    #[test]
    fn an_own_character_stands_for_one_and_nothing_else_is_own() {
        for c in ['a', '<', '｜', '\u{0}', '\u{3ffff}'] {
            assert!(is_own(own(c)) && !is_own(c));
            assert_eq!(base(own(c)), c);
        }
        assert_eq!(own('\u{10ffff}'), '\u{10ffff}');
        assert!(!has_own("aé中😀\u{10ffff}") && has_own(&marked("a")));
        assert_eq!(own_as(&format!("a{}", marked("b")), "AB".into()), format!("A{}", marked("B")));
        assert_eq!(own_as(&marked("ß"), "SS".into()), "SS");
    }

    #[test]
    fn pieces_are_found_by_what_they_say_and_keep_who_wrote_them() {
        let text = format!("é{}b", marked("a,"));
        let found: Result<_, ()> = pieces(&text, |plain| {
            assert_eq!(plain, "éa,b");
            Ok(vec![0..3, 4..5, 5..5])
        });
        assert_eq!(found.unwrap(), [&text[..6], "b", ""]);
    }

    #[test]
    fn a_conversation_with_numbers_of_own_characters_comes_back_as_it_was() {
        let text = "x\u{40041}\u{7ffff}\u{80000}\u{40041}";
        let mut value = serde_json::json!([{ text: text }, 1]);
        let moved = Moved::out_of(&mut value);
        let new = value[0].as_object().unwrap().iter().next().unwrap();
        assert!(!has_own(new.0) && new.0 == new.1.as_str().unwrap());
        assert_eq!(moved.restore(new.0.clone()), text);
    }
}
