//! PTX as text: its tokens, and operands by their form.

use std::iter::Peekable;
use std::vec::IntoIter;

/// A word, a number, a string or one character of punctuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    /// From 1.
    pub(super) line: u32,
}

/// What an instruction works on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand<'a> {
    /// A register, a special register, a variable or a label.
    Name(&'a str),
    /// `!%p1`
    Not(&'a str),
    /// An integer, or the bits of a float.
    Number(u64),
    /// `%r1|%p1`: a value and a predicate.
    Both(&'a str, &'a str),
    /// `{a, b}`
    Vector(Vec<Operand<'a>>),
    /// `[name+8]`, `[8]`
    Address(Option<&'a str>, i64),
}

pub(super) type Result<T> = std::result::Result<T, String>;

/// Where a text has been read up to.
pub(super) struct Reader<'a> {
    tokens: Peekable<IntoIter<Token<'a>>>,
    /// The line of the token that was read last.
    pub(super) line: u32,
}

fn in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// The length of the word that a text begins with; `ld.global.L1::no_allocate.u32` is one.
fn word(text: &str) -> usize {
    let end = text.find(|c| !in_word(c)).unwrap_or(text.len());
    if text[end..].starts_with("::") { end + 2 + word(&text[end + 2..]) } else { end }
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut all = Vec::new();
    for (of, line) in text.lines().zip(1..) {
        // No kernel of ours has comments over several lines.
        let mut rest = of.split("//").next().unwrap_or("").trim_start();
        while let Some(first) = rest.chars().next() {
            let len = if in_word(first) {
                word(rest)
            } else if first == '"' {
                rest[1..].find('"').map_or(rest.len(), |end| end + 2)
            } else {
                first.len_utf8()
            };
            all.push(Token { text: &rest[..len], line });
            rest = rest[len..].trim_start();
        }
    }
    all
}

/// An integer (`-8`, `0x1f`, `5U`) or the bits of a float (`0f3F800000`, `0d...`).
fn number(text: &str) -> Option<u64> {
    let text = text.strip_suffix('U').unwrap_or(text);
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    match text.get(..2) {
        Some("0x" | "0X" | "0f" | "0F" | "0d" | "0D") => hex(&text[2..]),
        _ => text.parse().ok(),
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Reader<'a> {
        Reader { tokens: tokens(text).into_iter().peekable(), line: 0 }
    }

    /// An error at this place.
    pub(super) fn error<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        Err(format!("line {} of the PTX: {what}", self.line))
    }

    pub(super) fn peek(&mut self) -> Option<&'a str> {
        self.tokens.peek().map(|t| t.text)
    }

    pub(super) fn next(&mut self) -> Result<&'a str> {
        match self.tokens.next() {
            Some(token) => {
                self.line = token.line;
                Ok(token.text)
            }
            None => self.error("the text ends early"),
        }
    }

    /// Reads a token if it is this one.
    pub(super) fn take(&mut self, text: &str) -> bool {
        let here = self.peek() == Some(text);
        if here {
            let _ = self.next();
        }
        here
    }

    pub(super) fn expect(&mut self, text: &str) -> Result<()> {
        match self.next()? {
            found if found == text => Ok(()),
            found => self.error(format_args!("{found}, {text} expected")),
        }
    }

    /// A number with its sign.
    pub(super) fn number(&mut self) -> Result<u64> {
        let negative = self.take("-");
        let text = self.next()?;
        match number(text) {
            Some(n) => Ok(if negative { n.wrapping_neg() } else { n }),
            None => self.error(format_args!("{text}, a number expected")),
        }
    }

    pub(super) fn operand(&mut self) -> Result<Operand<'a>> {
        if self.take("{") {
            let mut parts = Vec::new();
            while !self.take("}") {
                parts.push(self.operand()?);
                self.take(",");
            }
            return Ok(Operand::Vector(parts));
        }
        if self.take("[") {
            return self.address();
        }
        if self.take("!") {
            return Ok(Operand::Not(self.next()?));
        }
        if self.peek() == Some("-") {
            return Ok(Operand::Number(self.number()?));
        }
        let text = self.next()?;
        if let Some(n) = number(text) {
            return Ok(Operand::Number(n));
        }
        if !text.starts_with(in_word) {
            return self.error(format_args!("{text}, an operand expected"));
        }
        Ok(if self.take("|") { Operand::Both(text, self.next()?) } else { Operand::Name(text) })
    }

    /// What follows a `[`.
    fn address(&mut self) -> Result<Operand<'a>> {
        let text = self.peek().unwrap_or("");
        let base = if number(text).is_some() { None } else { Some(self.next()?) };
        let plus = self.take("+");
        let offset = if base.is_none() || plus || self.peek() == Some("-") { self.number()? as i64 } else { 0 };
        self.expect("]")?;
        Ok(Operand::Address(base, offset))
    }

    /// Operands up to the end of the statement.
    pub(super) fn operands(&mut self) -> Result<Vec<Operand<'a>>> {
        let mut all = Vec::new();
        while !self.take(";") {
            all.push(self.operand()?);
            if self.peek() != Some(";") {
                self.expect(",")?;
            }
        }
        Ok(all)
    }
}
