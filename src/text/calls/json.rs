//! JSON as models write it: where a value ends, and what it is.
//!
//! ```text
//! JSON     line breaks and tabs within a string count as what they are
//! Python   also 'text', True, False, None
//! Gemma    also <|"|>text<|"|>, in which nothing is escaped; keys without quotes; a word that is no JSON is text
//! ```
//! A value is rewritten as strict JSON sign by sign, which serde_json reads.

use serde_json::Value;

/// The quote of Gemma's texts.
pub(in crate::text) const QUOTE: &str = "<|\"|>";

/// A value may be nested so deep.
const DEPTH: usize = 100;

/// How a value may be written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Notation {
    /// As JSON.
    Json,
    /// As JSON or as Python's literals.
    Python,
    /// As Gemma's arguments.
    Gemma,
}

/// What there is at the beginning of a text.
#[derive(Debug, PartialEq)]
pub(super) enum JsonRead {
    /// A value, and how many bytes it takes.
    Whole(Value, usize),
    /// The text's end cuts it.
    Cut,
    /// This is no such value, from this byte on; what stood before it as JSON, and the brackets that it left open.
    Bad(usize, String, Vec<char>),
}

/// The object or list at the beginning of a text.
pub(super) fn read(text: &str, notation: Notation) -> JsonRead {
    let mut rewriter = Rewriter { text, notation, at: 0, out: String::with_capacity(text.len()), open: Vec::new() };
    match rewriter.run() {
        Outcome::Done => match serde_json::from_str(&rewriter.out) {
            Ok(value) => JsonRead::Whole(value, rewriter.at),
            Err(_) => JsonRead::Bad(rewriter.at, rewriter.out, rewriter.open),
        },
        Outcome::Cut => JsonRead::Cut,
        Outcome::Bad => JsonRead::Bad(rewriter.at, rewriter.out, rewriter.open),
    }
}

/// A value of any type that is the whole text, white space aside.
pub(super) fn whole(text: &str, notation: Notation) -> Option<Value> {
    let text = text.trim();
    if let Ok(value) = serde_json::from_str(text) {
        return Some(value);
    }
    let wrapped = format!("[{text}]");
    match read(&wrapped, notation) {
        JsonRead::Whole(Value::Array(mut list), n) if n == wrapped.len() && list.len() == 1 => list.pop(),
        _ => None,
    }
}

/// How far a rewriter came.
enum Outcome {
    Done,
    Cut,
    Bad,
}

struct Rewriter<'a> {
    text: &'a str,
    notation: Notation,
    at: usize,
    out: String,
    /// The brackets that close what is open.
    open: Vec<char>,
}

impl Rewriter<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn run(&mut self) -> Outcome {
        // Whether a key comes next, where there are such.
        let mut key = false;
        loop {
            let Some(c) = self.rest().chars().next() else { return Outcome::Cut };
            let within = !self.open.is_empty();
            match c {
                '{' | '[' if self.open.len() < DEPTH => {
                    self.open.push(if c == '{' { '}' } else { ']' });
                    key = c == '{';
                    self.sign(c);
                }
                '}' | ']' if self.open.last() == Some(&c) => {
                    self.open.pop();
                    self.sign(c);
                    if self.open.is_empty() {
                        return Outcome::Done;
                    }
                }
                ',' if within => {
                    key = self.open.last() == Some(&'}');
                    self.sign(c);
                }
                ':' if within => {
                    key = false;
                    self.sign(c);
                }
                c if within && c.is_whitespace() => self.sign(' '),
                '"' if within => {
                    if !self.quoted("\"", true) {
                        return Outcome::Cut;
                    }
                }
                '\'' if within && self.notation != Notation::Json => {
                    if !self.quoted("'", true) {
                        return Outcome::Cut;
                    }
                }
                '<' if within && self.notation == Notation::Gemma && self.rest().starts_with(QUOTE) => {
                    if !self.quoted(QUOTE, false) {
                        return Outcome::Cut;
                    }
                }
                _ if !within => return Outcome::Bad,
                '}' | ']' | '{' | '[' => return Outcome::Bad,
                _ if self.notation == Notation::Gemma => self.bare(key),
                c if c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.') => self.word(),
                _ => return Outcome::Bad,
            }
        }
    }

    /// Takes one sign, written as this one.
    fn sign(&mut self, as_this: char) {
        self.at += self.rest().chars().next().map_or(0, char::len_utf8);
        self.out.push(as_this);
    }

    /// Takes a text between two quotes; false if it has no end.
    fn quoted(&mut self, quote: &str, escapes: bool) -> bool {
        let inner = &self.text[self.at + quote.len()..];
        let mut text = String::new();
        let mut chars = inner.char_indices();
        while let Some((i, c)) = chars.next() {
            if inner[i..].starts_with(quote) {
                self.at += i + 2 * quote.len();
                self.out.push('"');
                self.out.push_str(&text);
                self.out.push('"');
                return true;
            }
            match c {
                '\\' if escapes => match chars.next() {
                    Some((_, '\'')) => text.push('\''),
                    Some((i, 'u')) if is_hex(&inner[i + 1..]) => text.push_str("\\u"),
                    Some((_, next @ ('"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't'))) => text.extend(['\\', next]),
                    // No escape: two signs that stand for themselves.
                    Some((_, next)) if next < ' ' => text.push_str(&format!("\\\\\\u{:04x}", u32::from(next))),
                    Some((_, next)) => text.extend(['\\', '\\', next]),
                    None => return false,
                },
                '"' | '\\' => text.extend(['\\', c]),
                c if c < ' ' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => text.push(c),
            }
        }
        false
    }

    /// Takes a word, as Python's words JSON's.
    fn word(&mut self) {
        let end = self.rest().find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '+' | '.'));
        let word = &self.rest()[..end.unwrap_or(self.rest().len())];
        let (n, python) = (word.len(), self.notation != Notation::Json);
        let same = match word {
            "True" if python => "true".into(),
            "False" if python => "false".into(),
            "None" if python => "null".into(),
            other => number(other).map_or_else(|| other.to_owned(), |n| n.to_string()),
        };
        self.at += n;
        self.out.push_str(&same);
    }

    /// Takes what has no quotes up to the next sign of structure: a key, or a value, which is text unless it is JSON.
    fn bare(&mut self, key: bool) {
        let ends = |c: char| matches!(c, ',' | '}' | ']') || key && c == ':';
        let all = &self.rest()[..self.rest().find(ends).unwrap_or(self.rest().len())];
        let said = all.trim();
        let value = match said {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            _ if key => Value::String(said.into()),
            _ => match serde_json::from_str(said) {
                Ok(value) => value,
                Err(_) => number(said).unwrap_or_else(|| Value::String(said.into())),
            },
        };
        let n = all.len();
        self.at += n;
        self.out.push_str(&value.to_string());
    }
}

/// The largest number that can be told, for one that is larger still.
fn number(word: &str) -> Option<Value> {
    let digits = word.strip_prefix('-').unwrap_or(word).starts_with(|c: char| c.is_ascii_digit());
    let large = word.parse::<f64>().ok().filter(|n| digits && n.is_infinite())?;
    Some(f64::MAX.copysign(large).into())
}

/// Whether a text begins with four hexadecimal digits.
fn is_hex(text: &str) -> bool {
    text.bytes().take(4).filter(u8::is_ascii_hexdigit).count() == 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_ends_where_its_brackets_close_and_not_in_a_string() {
        let text = r#"{"a": "}\"]", "b": [1, {"c": null}]} and more}"#;
        let JsonRead::Whole(value, n) = read(text, Notation::Json) else { panic!() };
        assert_eq!((value, &text[n..]), (json!({"a": "}\"]", "b": [1, {"c": null}]}), " and more}"));
        assert_eq!(read("{\"a\": \"x", Notation::Json), JsonRead::Cut);
        assert_eq!(read("{\"a\": [1, 2]", Notation::Json), JsonRead::Cut);
        assert!(matches!(read("{\"a\": 1\n</x>", Notation::Json), JsonRead::Bad(8, _, open) if open == ['}']));
        assert!(matches!(read("{{{", Notation::Json), JsonRead::Cut));
        assert!(matches!(read(&"[".repeat(1000), Notation::Json), JsonRead::Bad(..)));
        assert!(matches!(read("{'a': 1}", Notation::Json), JsonRead::Bad(..)));
        let JsonRead::Whole(value, _) = read("{\"a\": -2e999}", Notation::Json) else { panic!() };
        assert_eq!(value["a"], -f64::MAX);
    }

    #[test]
    fn raw_line_breaks_python_and_gemmas_quotes_are_read() {
        let get = |text: &str, notation| match read(text, notation) {
            JsonRead::Whole(value, n) if n == text.len() => value,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(get("{\"a\": \"b\nc\t\\u00e9\"}", Notation::Json), json!({"a": "b\nc\té"}));
        assert_eq!(
            get("{'a': True, \"b\": [None, 'it\\'s \"x\"']}", Notation::Python),
            json!({"a": true, "b": [null, "it's \"x\""]})
        );
        let gemma = "{a:<|\"|>x\\n}\"y<|\"|>,b c:-2.5,d:[true,null,'z'],e:0042,f:{<|\"|>g h<|\"|>:1}}";
        assert_eq!(
            get(gemma, Notation::Gemma),
            json!({"a": "x\\n}\"y", "b c": -2.5, "d": [true, null, "z"], "e": "0042", "f": {"g h": 1}})
        );
    }
}
