//! Long texts in the input line: each is a placeholder there, so that the line stays a line to be
//! edited, and becomes its text when the line is done.

use rustyline::{KeyCode, KeyEvent, Modifiers};

use crate::cli::human::grouped;

/// The longest text that is shown as it is: characters, and lines.
const SHOWN: (usize, usize) = (1000, 10);

/// The long texts of a chat.
#[derive(Debug, Default)]
pub(super) struct Pastes {
    /// What has come of a paste that is under way.
    open: Option<String>,
    /// Placeholders and the texts that they stand for.
    kept: Vec<(String, String)>,
}

impl Pastes {
    /// Whether a paste is under way.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// A paste begins.
    pub(super) fn begin(&mut self) {
        self.open = Some(String::new());
    }

    /// Takes in the text of one key of a paste. Escape sequences and control characters are left
    /// out.
    pub(super) fn key(&mut self, key: &KeyEvent) {
        let Some(text) = &mut self.open else { return };
        match key {
            KeyEvent(KeyCode::Char(c), m) if !m.contains(Modifiers::CTRL) => text.push(*c),
            KeyEvent(KeyCode::Tab, _) => text.push('\t'),
            KeyEvent(KeyCode::Enter, _) => text.push('\r'), // which terminals send for a line break
            KeyEvent(KeyCode::Char('J'), Modifiers::CTRL) => text.push('\n'),
            _ => {}
        }
    }

    /// The paste is over: what goes into the line.
    pub(super) fn end(&mut self) -> String {
        let text = self.open.take().unwrap_or_default().replace("\r\n", "\n").replace('\r', "\n");
        if text.chars().count() <= SHOWN.0 && text.lines().count() <= SHOWN.1 {
            return text;
        }
        self.keep("pasted", text)
    }

    /// Keeps a text under a placeholder, which is returned.
    pub(super) fn keep(&mut self, what: &str, text: String) -> String {
        let (what, n) = (what.replace('[', "("), grouped(text.chars().count())); // a bracket is where it begins
        let same = |name: &str| self.kept.iter().any(|(other, kept)| other == name && *kept != text);
        let names = (1..).map(|i| match i {
            1 => format!("[{what} {n} characters]"),
            i => format!("[{what} {n} characters, {i}]"),
        });
        let name = names.into_iter().find(|name| !same(name)).expect("numbers do not end");
        self.kept.retain(|(other, _)| *other != name);
        self.kept.push((name.clone(), text));
        name
    }

    /// A line with the texts in their places.
    pub(super) fn expand(&self, line: &str) -> String {
        let mut out = String::new();
        let mut rest = line;
        // What a text says is no placeholder, so each is looked for in what is left of the line.
        let first = |rest: &str| self.kept.iter().filter_map(|kept| Some((rest.find(&kept.0)?, kept))).min();
        while let Some((at, (name, text))) = first(rest) {
            out += &rest[..at];
            out += text;
            rest = &rest[at + name.len()..];
        }
        out + rest
    }

    /// A line with placeholders for the texts that are in it.
    pub(super) fn collapse(&self, line: &str) -> String {
        let long = |text: &str| text.chars().count() > SHOWN.0 || text.lines().count() > SHOWN.1;
        let fold = |line: String, (name, text): &(String, String)| match long(text) {
            true => line.replace(text.as_str(), name),
            false => line,
        };
        self.kept.iter().rev().fold(line.to_owned(), fold)
    }

    /// Whether a line has a placeholder in it.
    pub(super) fn has(&self, line: &str) -> bool {
        self.kept.iter().any(|(name, _)| line.contains(name.as_str()))
    }

    /// Whether the text before the cursor ends with a placeholder.
    pub(super) fn ends(&self, text: &str) -> bool {
        self.kept.iter().any(|(name, _)| text.ends_with(name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paste(pastes: &mut Pastes, text: &str) -> String {
        pastes.begin();
        text.chars().for_each(|c| pastes.key(&KeyEvent::new(c, Modifiers::NONE)));
        pastes.end()
    }

    #[test]
    fn a_long_paste_is_a_placeholder_that_becomes_the_text_again() {
        let mut pastes = Pastes::default();
        let (one, other) = ("a\tß\r\n".repeat(600), "x".repeat(1700));
        let name = paste(&mut pastes, &one);
        assert_eq!(name, "[pasted 2,400 characters]");
        let second = paste(&mut pastes, &other);
        let line = format!("What is {name} to {second}?");
        let whole = pastes.expand(&line);
        assert_eq!(whole, format!("What is {} to {other}?", "a\tß\n".repeat(600)));
        assert_eq!(pastes.collapse(&whole), line);
        assert_eq!(paste(&mut pastes, &one), name, "the same text again");
        assert_eq!(paste(&mut pastes, &"b\tß\r\n".repeat(600)), "[pasted 2,400 characters, 2]");
        assert!(pastes.ends(&format!("What is {name}")) && !pastes.ends("What is [pasted 2,400 characters"));
    }

    #[test]
    fn a_short_paste_is_itself_without_what_is_no_text() {
        let mut pastes = Pastes::default();
        assert_eq!(paste(&mut pastes, "ls \u{1}-l\r\nx\ry"), "ls -l\nx\ny");
        assert!(!pastes.has("[pasted 2,400 characters]") && !pastes.is_open());
    }
}
