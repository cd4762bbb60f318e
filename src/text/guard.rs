//! Text from outside that can never become a control token.
//!
//! A prompt is a rendered template, in which control tokens are meant, around what people and tools said, in which
//! they are not. [`Tokenizer::guard`] puts a mark into every control token's text that a string holds, begins in the
//! middle of or breaks off in; the template renders it; [`Tokenizer::encode_prompt`] takes the marks out again, and no
//! control token is found across one. What is cut into tokens is the text as it was.
//!
//! ```text
//! U+FDD0           a mark: the text before it and the text after it are not parts of one control token
//! U+FDD1 U+FDD2    U+FDD0, as someone wrote it
//! U+FDD1 U+FDD3    U+FDD1, as someone wrote it
//! ```
//!
//! These are noncharacters, which Unicode keeps for uses like this one. A mark is never part of an escape, so nothing
//! before it can take it away. Marks are within a string's text and not around it, so that a template may trim, split,
//! compare and join what is guarded; none is where one of the template's own tokens could be cut by it.
//!
//! Two ways to a control token remain, both the template's own doing: it writes its beginning and its end around a
//! guarded text (`'<|' + name + '|>'`), or makes other text of a guarded one (takes out its middle, turns capitals into
//! small letters).

use std::borrow::Cow;

use anyhow::Result;
use serde_json::Value;

use super::Tokenizer;
use super::python::strip;

const MARK: char = '\u{fdd0}';
const ESCAPE: char = '\u{fdd1}';
const WAS_MARK: char = '\u{fdd2}';
const WAS_ESCAPE: char = '\u{fdd3}';

/// Whether a character is one of those that a guard puts in.
pub(super) fn is_mark(c: char) -> bool {
    (MARK..=WAS_ESCAPE).contains(&c)
}

impl Tokenizer {
    /// A text that stays text in a prompt, whatever it holds.
    pub fn guard<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut marks = Vec::new();
        for (span, _) in self.special.candidates(text).filter(|(_, id)| self.vocab.reserved(*id)) {
            let first = text[span.start..].chars().next().map_or(1, char::len_utf8);
            marks.push(span.start + first);
            if first == span.len() {
                marks.push(span.start); // a single character has a mark on both sides
            }
        }
        // A template may take the white space off.
        let left = text.len() - strip(text, None, true, false).len();
        let right = strip(text, None, false, true).len();
        for piece in self.special.texts().filter(|(_, id)| self.vocab.reserved(*id)).map(|(piece, _)| piece) {
            let first = piece.chars().next().map_or(1, char::len_utf8);
            let last = piece.chars().next_back().map_or(1, char::len_utf8);
            for (cut, _) in piece.char_indices().skip(1) {
                for end in [right, text.len()] {
                    if text[..end].ends_with(&piece[..cut]) {
                        marks.push(end - cut + first);
                    }
                }
                for start in [left, 0] {
                    if text[start..].starts_with(&piece[cut..]) {
                        marks.push(start + piece.len() - cut - last);
                    }
                }
            }
        }
        if marks.is_empty() && !text.contains([MARK, ESCAPE]) {
            return Cow::Borrowed(text);
        }
        marks.sort_unstable();
        marks.dedup();
        let mut out = String::with_capacity(text.len() + 3 * marks.len());
        let mut marks = marks.into_iter().peekable();
        for (at, c) in text.char_indices() {
            out.extend(marks.next_if_eq(&at).map(|_| MARK));
            match c {
                MARK => out.extend([ESCAPE, WAS_MARK]),
                ESCAPE => out.extend([ESCAPE, WAS_ESCAPE]),
                c => out.push(c),
            }
        }
        out.extend(marks.next().map(|_| MARK));
        Cow::Owned(out)
    }

    /// Messages, tools or other variables of a template in which every text is guarded: contents, names, calls and their
    /// arguments. Roles and keys that are plain words stay as they are, since a template looks for them.
    pub fn guarded(&self, value: &Value) -> Value {
        let field = |(key, value): (&String, &Value)| match value {
            Value::String(text) if key == "role" => (key.clone(), self.guard_name(text).into()),
            _ => (self.guard_name(key), self.guarded(value)),
        };
        match value {
            Value::String(text) => self.guard(text).into(),
            Value::Array(list) => list.iter().map(|v| self.guarded(v)).collect(),
            Value::Object(map) => map.iter().map(field).collect(),
            other => other.clone(),
        }
    }

    fn guard_name(&self, name: &str) -> String {
        let word = name.chars().all(|c| c.is_alphanumeric() || c == '_');
        if word { name.to_owned() } else { self.guard(name).into_owned() }
    }

    /// The tokens of a prompt: a template's text with its control tokens, and guarded text, which has none. The begin
    /// token comes first where the file asks for it and the template did not write it.
    ///
    /// # Errors
    /// If the text cannot be encoded.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let (text, marks) = unguard(prompt);
        let at = |p: usize| marks.binary_search(&p).is_ok();
        let found = self.special.find(&text, |span, id| {
            let inside = marks.get(marks.partition_point(|&m| m <= span.start)).is_some_and(|&m| m < span.end);
            let one = text[span.clone()].chars().nth(1).is_none();
            !self.vocab.reserved(id) || !(inside || one && at(span.start) && at(span.end))
        });
        let begun = found.first().is_some_and(|(span, id)| span.start == 0 && self.bos() == Some(*id));
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.bos().filter(|_| self.adds_bos() && !begun));
        self.cut(&text, found, &mut ids)?;
        Ok(ids)
    }
}

/// The text without what guards put in, and where its marks were, ascending.
fn unguard(text: &str) -> (Cow<'_, str>, Vec<usize>) {
    if !text.contains([MARK, ESCAPE]) {
        return (Cow::Borrowed(text), Vec::new());
    }
    let (mut plain, mut marks) = (String::with_capacity(text.len()), Vec::new());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            MARK => marks.push(plain.len()),
            ESCAPE if rest.next_if_eq(&WAS_MARK).is_some() => plain.push(MARK),
            ESCAPE => {
                rest.next_if_eq(&WAS_ESCAPE);
                plain.push(ESCAPE);
            }
            c => plain.push(c),
        }
    }
    (Cow::Owned(plain), marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_guard_wrote_is_taken_as_it_is() {
        let plain = |text: &str| unguard(text).0.into_owned();
        assert_eq!(plain("a\u{fdd2}b\u{fdd1}c\u{fdd1}"), "a\u{fdd2}b\u{fdd1}c\u{fdd1}", "escapes of nothing");
        assert_eq!(plain("a\u{fdd0}b"), "ab");
        assert_eq!(unguard("é\u{fdd0}b\u{fdd1}\u{fdd2}\u{fdd0}").1, [2, 6]);
    }
}
