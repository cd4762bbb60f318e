//! llama.cpp's grammar notation (GBNF), read into rules.
//!
//! ```text
//! rule   = name "::=" alt       ends with its line, but for lines inside ( ) and after a |
//! alt    = seq ("|" seq)*
//! seq    = (item repeat*)*
//! item   = "text" | [a-z] | [^a-z] | . | name | ( alt ) | <token> | <[12]> | !<token> | !<[12]>
//! repeat = * | + | ? | {m} | {m,} | {m,n}
//! ```
//!
//! Comments go from # to the end of the line. Escapes are \xHH, \uHHHH, \UHHHHHHHH (code points), \t \r \n, and
//! \ before any of \ " [ ] -. Source: llama.cpp, grammars/README.md and src/llama-grammar.cpp. What differs: a rule
//! defined twice and an empty class are errors here, left recursion is none, and names may have underscores.

use std::collections::HashMap;

use anyhow::{Result, bail};

/// Groups inside groups, at most.
const DEEPEST: usize = 100;
/// A repetition's bound, at most.
const MOST: u32 = 100_000;
/// Characters, repetitions and the like in all rules, at most.
const LARGEST: usize = 200_000;
const LAST: u32 = char::MAX as u32;

/// Characters, as ranges of code points: ascending, apart from each other, without surrogates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set(pub(super) Vec<(u32, u32)>);

impl Set {
    fn new(mut ranges: Vec<(u32, u32)>) -> Set {
        ranges.sort_unstable();
        let mut out: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (lo, hi) in ranges {
            match out.last_mut() {
                Some(last) if lo <= last.1.saturating_add(1) => last.1 = last.1.max(hi),
                _ => out.push((lo, hi)),
            }
        }
        let surrogates = 0xd800..=0xdfff;
        let whole = out.into_iter().flat_map(|(lo, hi)| [(lo, hi.min(0xd7ff)), (lo.max(0xe000), hi)]);
        // A range below the gap gives its second half as (0xe000, less), one above it its first as (more, 0xd7ff).
        Set(whole.filter(|(lo, hi)| lo <= hi && !surrogates.contains(lo)).collect())
    }

    fn not(&self) -> Set {
        let mut from = 0;
        let mut out = Vec::new();
        for &(lo, hi) in &self.0 {
            if from < lo {
                out.push((from, lo - 1));
            }
            from = hi + 1;
        }
        if from <= LAST {
            out.push((from, LAST));
        }
        Set::new(out)
    }

    /// Adds the characters of another set; whether any was new.
    pub(super) fn add(&mut self, other: &Set) -> bool {
        let all = Set::new([&self.0[..], &other.0].concat());
        let more = all != *self;
        *self = all;
        more
    }
}

/// A part of a rule; parts name each other by their place in [`Gbnf::nodes`].
#[derive(Debug)]
pub(super) enum Node {
    /// One character of these.
    Set(Set),
    /// One token: of these, or any but these.
    Tokens { ids: Vec<u32>, not: bool },
    /// What a rule says.
    Rule(usize),
    /// One after the other.
    Seq(Vec<usize>),
    /// One of them.
    Alt(Vec<usize>),
    /// So often, at least and at most.
    Repeat(usize, u32, Option<u32>),
}

/// A grammar.
#[derive(Debug, Default)]
pub(super) struct Gbnf {
    pub(super) nodes: Vec<Node>,
    /// What each rule says.
    pub(super) bodies: Vec<usize>,
    /// The rule that the whole text follows.
    pub(super) root: usize,
}

/// Reads a grammar. `token` finds the token that a text in < > is; `ends` are the tokens that end a generation.
pub(super) fn parse(text: &str, token: &dyn Fn(&str) -> Option<u32>, ends: &[u32]) -> Result<Gbnf> {
    let mut p = Parser {
        text,
        at: 0,
        token,
        ends,
        grammar: Gbnf::default(),
        names: HashMap::new(),
        said: Vec::new(),
        depth: 0,
    };
    p.space(true);
    while p.peek().is_some() {
        p.rule()?;
        if p.grammar.nodes.len() > LARGEST {
            return p.error(p.at, format!("more than {LARGEST} parts up to here"));
        }
    }
    let missing = p.said.iter().zip(&p.grammar.bodies).find(|(_, body)| **body == usize::MAX);
    if let Some((&first, _)) = missing {
        let name = p.names.iter().find(|(_, rule)| p.said[**rule] == first).map_or("", |(name, _)| name);
        return p.error(first, format!("there is no rule {name}"));
    }
    match p.names.get("root") {
        Some(&root) => p.grammar.root = root,
        None => bail!("there is no rule root, with which every text begins"),
    }
    Ok(p.grammar)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    token: &'a dyn Fn(&str) -> Option<u32>,
    ends: &'a [u32],
    grammar: Gbnf,
    names: HashMap<&'a str, usize>,
    /// Where each rule was first named.
    said: Vec<usize>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn error<T>(&self, at: usize, what: String) -> Result<T> {
        let before = &self.text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        bail!("line {line}, column {column}: {what}")
    }

    /// Describes the input at this place for an error.
    fn here(&self) -> String {
        self.peek().map_or("the end".into(), |c| format!("{c:?}"))
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, c: char) -> bool {
        let there = self.peek() == Some(c);
        if there {
            self.at += c.len_utf8();
        }
        there
    }

    fn want(&mut self, c: char) -> Result<()> {
        if self.eat(c) { Ok(()) } else { self.error(self.at, format!("{c:?} expected, found {}", self.here())) }
    }

    fn take(&mut self, of: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let part = &rest[..rest.find(|c| !of(c)).unwrap_or(rest.len())];
        self.at += part.len();
        part
    }

    /// White space and comments; line ends only with `lines`.
    fn space(&mut self, lines: bool) {
        loop {
            self.take(|c| matches!(c, ' ' | '\t') || lines && matches!(c, '\r' | '\n'));
            if self.peek() != Some('#') {
                return;
            }
            self.take(|c| !matches!(c, '\r' | '\n'));
        }
    }

    fn name(&mut self) -> &'a str {
        self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    }

    /// The number of the rule of this name, which began at `at`.
    fn number(&mut self, name: &'a str, at: usize) -> usize {
        *self.names.entry(name).or_insert_with(|| {
            self.grammar.bodies.push(usize::MAX);
            self.said.push(at);
            self.said.len() - 1
        })
    }

    fn node(&mut self, node: Node) -> usize {
        self.grammar.nodes.push(node);
        self.grammar.nodes.len() - 1
    }

    fn rule(&mut self) -> Result<()> {
        let start = self.at;
        let name = self.name();
        if name.is_empty() {
            return self.error(start, format!("a rule's name expected, found {}", self.here()));
        }
        let rule = self.number(name, start);
        self.space(false);
        if !self.text[self.at..].starts_with("::=") {
            return self.error(self.at, format!("\"::=\" expected after {name}, found {}", self.here()));
        }
        self.at += 3;
        self.space(true);
        if self.grammar.bodies[rule] != usize::MAX {
            return self.error(start, format!("the rule {name} is defined a second time"));
        }
        self.grammar.bodies[rule] = self.alt(false)?;
        if !matches!(self.peek(), None | Some('\r' | '\n')) {
            return self.error(self.at, format!("an item, | or the end of the line expected, found {}", self.here()));
        }
        self.space(true);
        Ok(())
    }

    fn alt(&mut self, inside: bool) -> Result<usize> {
        let mut list = vec![self.seq(inside)?];
        while self.eat('|') {
            self.space(true);
            list.push(self.seq(inside)?);
        }
        Ok(if list.len() == 1 { list[0] } else { self.node(Node::Alt(list)) })
    }

    fn seq(&mut self, inside: bool) -> Result<usize> {
        let mut list = Vec::new();
        while let Some(item) = self.item()? {
            list.push(item);
            self.space(inside);
            while let Some((least, most)) = self.repeat(inside)? {
                let item = list.pop().expect("an item was pushed before this loop");
                list.push(self.node(Node::Repeat(item, least, most)));
                self.space(inside);
            }
        }
        Ok(if list.len() == 1 { list[0] } else { self.node(Node::Seq(list)) })
    }

    fn item(&mut self) -> Result<Option<usize>> {
        let start = self.at;
        let node = match self.peek() {
            Some('"') => {
                self.at += 1;
                let mut list = Vec::new();
                while !self.eat('"') {
                    let c = self.char(start, "the text")?;
                    let set = Set::new(vec![(c, c)]);
                    if set.0.is_empty() {
                        return self.error(start, "half of a surrogate pair is no character".into());
                    }
                    list.push(self.node(Node::Set(set)));
                }
                Node::Seq(list)
            }
            Some('[') => Node::Set(self.class()?),
            Some('.') => {
                self.at += 1;
                Node::Set(Set::default().not())
            }
            Some('(') => {
                self.at += 1;
                self.depth += 1;
                if self.depth > DEEPEST {
                    return self.error(start, format!("more than {DEEPEST} nested groups"));
                }
                self.space(true);
                let inner = self.alt(true)?;
                self.want(')')?;
                self.depth -= 1;
                return Ok(Some(inner));
            }
            Some('<' | '!') => self.token()?,
            Some(c) if c.is_ascii_alphanumeric() => {
                let name = self.name();
                Node::Rule(self.number(name, start))
            }
            Some('*' | '+' | '?' | '{') => {
                return self.error(start, format!("{} has nothing before it to repeat", self.here()));
            }
            _ => return Ok(None),
        };
        Ok(Some(self.node(node)))
    }

    fn class(&mut self) -> Result<Set> {
        let start = self.at;
        self.at += 1;
        let not = self.eat('^');
        let mut ranges = Vec::new();
        while !self.eat(']') {
            let lo = self.char(start, "the class")?;
            let rest = &self.text[self.at..];
            let hi = if rest.starts_with('-') && !rest.starts_with("-]") {
                self.at += 1;
                self.char(start, "the class")?
            } else {
                lo
            };
            if hi < lo {
                return self.error(start, format!("a range ends (U+{hi:04X}) before it begins (U+{lo:04X})"));
            }
            ranges.push((lo, hi));
        }
        let set = Set::new(ranges);
        let set = if not && !set.0.is_empty() { set.not() } else { set };
        if set.0.is_empty() {
            return self.error(start, "this class has no character".into());
        }
        Ok(set)
    }

    /// One character of a text or class that began at `start`.
    fn char(&mut self, start: usize, of: &str) -> Result<u32> {
        let at = self.at;
        let digits = match self.next() {
            None => return self.error(start, format!("{of} that begins here does not end")),
            Some('\\') => match self.next() {
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                Some('t') => return Ok('\t' as u32),
                Some('r') => return Ok('\r' as u32),
                Some('n') => return Ok('\n' as u32),
                Some(c @ ('\\' | '"' | '[' | ']' | '-')) => return Ok(c as u32),
                _ => {
                    let known = "\\x \\u \\U \\t \\r \\n \\\\ \\\" \\[ \\] \\-";
                    return self.error(at, format!("no such escape; there are {known}"));
                }
            },
            Some(c) => return Ok(c as u32),
        };
        let hex = self.text.get(self.at..self.at + digits).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
        match hex.and_then(|h| u32::from_str_radix(h, 16).ok()).filter(|c| *c <= LAST) {
            Some(c) => {
                self.at += digits;
                Ok(c)
            }
            None => self.error(at, format!("{digits} hexadecimal digits of a character expected")),
        }
    }

    fn token(&mut self) -> Result<Node> {
        let start = self.at;
        let not = self.eat('!');
        self.want('<')?;
        let rest = &self.text[self.at..];
        let Some(inner) = rest.find('>').map(|n| &rest[..n]) else {
            return self.error(start, "the token that begins here does not end with >".into());
        };
        self.at += inner.len() + 1;
        let id = match inner.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
            Some(number) => number.parse().ok(),
            None => (self.token)(&format!("<{inner}>")),
        };
        let Some(id) = id else { return self.error(start, format!("<{inner}> is no single token of this model")) };
        let mut ids = vec![id];
        if not {
            // "Any token" means any that goes on with the text.
            ids.extend(self.ends.iter().filter(|e| **e != id));
        }
        Ok(Node::Tokens { ids, not })
    }

    fn repeat(&mut self, inside: bool) -> Result<Option<(u32, Option<u32>)>> {
        let bounds = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => return self.bounds(inside).map(Some),
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(bounds))
    }

    fn bounds(&mut self, inside: bool) -> Result<(u32, Option<u32>)> {
        let start = self.at;
        self.at += 1;
        self.space(inside);
        let least = self.count()?;
        self.space(inside);
        let mut most = Some(least);
        if self.eat(',') {
            self.space(inside);
            most = if self.peek() == Some('}') { None } else { Some(self.count()?) };
            self.space(inside);
        }
        self.want('}')?;
        match most {
            Some(most) if most < least => self.error(start, format!("at least {least} but at most {most}")),
            _ => Ok((least, most)),
        }
    }

    fn count(&mut self) -> Result<u32> {
        let at = self.at;
        match self.take(|c| c.is_ascii_digit()).parse() {
            Ok(n) if n <= MOST => Ok(n),
            _ => self.error(at, format!("a number up to {MOST} expected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_tokens(text: &str) -> Result<Gbnf> {
        parse(text, &|_| None, &[])
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_column() {
        for (text, says) in [
            ("root ::= \"a\n", "line 1, column 10: the text that begins here does not end"),
            ("root ::= a\nb ::= \"b\"", "line 1, column 10: there is no rule a"),
            ("# x\nroot = \"a\"", "line 2, column 6: \"::=\" expected after root, found '='"),
            ("rot ::= \"a\"", "there is no rule root"),
            ("root ::= \"a\"\nroot ::= \"b\"", "line 2, column 1: the rule root is defined a second time"),
            ("root ::= [b-a]", "line 1, column 10: a range ends (U+0061) before it begins (U+0062)"),
            ("root ::= []", "line 1, column 10: this class has no character"),
            ("root ::= [^\\x00-\\U0010FFFF]", "line 1, column 10: this class has no character"),
            ("root ::= \"\\q\"", "line 1, column 11: no such escape"),
            ("root ::= \"\\x4\"", "line 1, column 11: 2 hexadecimal digits"),
            ("root ::= \"\\U00110000\"", "line 1, column 11: 8 hexadecimal digits of a character"),
            ("root ::= \"\\uD83D\"", "line 1, column 10: half of a surrogate pair"),
            ("root ::= * \"a\"", "line 1, column 10: '*' has nothing before it to repeat"),
            ("root ::= \"a\"{3,2}", "line 1, column 13: at least 3 but at most 2"),
            ("root ::= \"a\"{,2}", "line 1, column 14: a number up to 100000 expected"),
            ("root ::= \"a\"{2 3}", "line 1, column 16: '}' expected, found '3'"),
            ("root ::= (\"a\"", "line 1, column 14: ')' expected, found the end"),
            ("root ::= \"ä\" )", "line 1, column 14: an item, | or the end of the line expected, found ')'"),
            ("root ::= <think>", "line 1, column 10: <think> is no single token of this model"),
            ("root ::= <think", "line 1, column 10: the token that begins here does not end with >"),
        ] {
            let e = no_tokens(text).unwrap_err().to_string();
            assert!(e.starts_with(says), "{text:?}: {e}");
        }
    }

    #[test]
    fn groups_as_deep_as_a_stack_are_an_error_and_not_a_crash() {
        let e = no_tokens(&format!("root ::= {}", "(".repeat(1_000_000))).unwrap_err().to_string();
        assert!(e.contains("more than 100 nested groups"), "{e}");
    }

    #[test]
    fn what_is_not_in_a_class_is_everything_else_but_surrogates() {
        let all = Set::default().not();
        assert_eq!(all.0, [(0, 0xd7ff), (0xe000, 0x10ffff)]);
        let set = Set::new(vec![('b' as u32, 'd' as u32), ('e' as u32, 'f' as u32), ('a' as u32, 'a' as u32)]);
        assert_eq!(set.0, [('a' as u32, 'f' as u32)]);
        assert_eq!(set.not().0, [(0, 0x60), (0x67, 0xd7ff), (0xe000, 0x10ffff)]);
        assert_eq!(set.not().not(), set);
        assert_eq!(all.not().0, []);
    }
}
