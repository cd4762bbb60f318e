//! Text that a terminal only shows: characters that would command it are written as escapes.
//!
//! ```text
//! U+0000 to U+001F, but \n, \t and the \r of \r\n     cursor, bell, and ESC, which begins all else
//! U+007F, U+0080 to U+009F                           the same commands in one character
//! U+202A to U+202E, U+2066 to U+2069                 the direction of all text up to their end
//! ```
//! The escape is that of JSON, `\u001b`, so that JSON stays what it was. Each character is looked at
//! by itself: a sequence that comes in two pieces has lost its beginning with the first.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Whether a terminal would obey this character instead of showing it.
fn commands(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => true,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        _ => false,
    }
}

/// The text with escapes for the characters that a terminal would obey.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(commands) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if commands(c) && !(c == '\r' && rest.peek() == Some(&'\n')) {
            let _ = write!(safe, "\\u{:04x}", c as u32); // to a String, which takes everything
        } else {
            safe.push(c);
        }
    }
    safe.into()
}

/// Says a text on stderr, if somebody reads it. Names and texts from files go into it as they are.
pub(crate) fn say(text: std::fmt::Arguments<'_>) {
    let _ = io::stderr().write_all(printable(&format!("{text}\n")).as_bytes());
}

/// Passes on what is written to it as printable text. Bytes that are not UTF-8 become U+FFFD.
#[derive(Debug)]
pub(crate) struct Printable<W: Write> {
    to: W,
    /// The beginning of a character whose end has not come yet.
    tail: Vec<u8>,
}

impl<W: Write> Printable<W> {
    pub(crate) fn new(to: W) -> Printable<W> {
        Printable { to, tail: Vec::new() }
    }
}

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tail.extend_from_slice(bytes);
        let whole = std::mem::take(&mut self.tail);
        let mut rest = &whole[..];
        while !rest.is_empty() {
            let (text, bad) = match std::str::from_utf8(rest) {
                Ok(text) => (text, Some(0)),
                Err(e) => {
                    let valid = std::str::from_utf8(&rest[..e.valid_up_to()]).expect("valid up to there");
                    (valid, e.error_len())
                }
            };
            self.to.write_all(printable(text).as_bytes())?;
            match bad {
                None => {
                    self.tail = rest[text.len()..].to_vec();
                    break;
                }
                Some(0) => break,
                Some(n) => {
                    self.to.write_all("\u{fffd}".as_bytes())?;
                    rest = &rest[text.len() + n..];
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_all_other_text_is_as_it_was() {
        for text in ["", "a\tb\nc\r\nd", "é ｜ 中 😀 \u{200f}\u{200d}\u{fffd} \\u001b", "\u{a0}\u{ad}"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text) || text.contains('\r'));
            assert_eq!(printable(text), text);
        }
        assert_eq!(printable("\x1b]52;c;aGk=\x07\r\0"), "\\u001b]52;c;aGk=\\u0007\\u000d\\u0000");
        assert_eq!(printable("\u{9b}2J\x7f\u{202e}x\u{2066}"), "\\u009b2J\\u007f\\u202ex\\u2066");
        for c in (0..=0x10ffff).filter_map(char::from_u32).filter(|c| c.is_control() && !"\n\t".contains(*c)) {
            assert!(!printable(&c.to_string()).contains(c), "{c:?}");
        }
    }

    #[test]
    fn json_with_control_characters_in_it_stays_the_same_json() {
        let text = "\u{9b}2J\x7f\u{202e}\x1b";
        let json = serde_json::to_string(text).unwrap();
        assert!(json.contains('\u{9b}'), "a C1 character needs no escape in JSON");
        assert_eq!(serde_json::from_str::<String>(&printable(&json)).unwrap(), text);
    }

    #[test]
    fn a_command_that_comes_in_pieces_is_none_either() {
        let bytes = "a\x1b[2J\u{9b}é\u{202e}中".as_bytes();
        let whole = printable(std::str::from_utf8(bytes).unwrap()).into_owned();
        for cut in 0..=bytes.len() {
            let mut out = Printable::new(Vec::new());
            out.write_all(&bytes[..cut]).unwrap();
            out.write_all(&bytes[cut..]).unwrap();
            assert_eq!(String::from_utf8(out.to).unwrap(), whole, "cut at {cut}");
        }
        // A C1 character as a single byte is no UTF-8.
        let mut out = Printable::new(Vec::new());
        out.write_all(b"x\x9b2J\xffy").unwrap();
        assert_eq!(String::from_utf8(out.to).unwrap(), "x\u{fffd}2J\u{fffd}y");
    }
}
