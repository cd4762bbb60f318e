//! Which of a template's own text can be part of a control token: that text is written in own characters.
//!
//! ```text
//! a whole token                    '<|im_start|>' + role + '\n'
//! its beginning, at the end        '<|' + role + '|>'
//! its end, at the beginning
//! signs from its middle            '<' ~ '|' ~ 'user' ~ '|' ~ '>'
//! ```
//!
//! Words stay as they are, since a template compares them with what it is given (`role == 'user'`). So a control token
//! may have in its middle, between own characters, a word that the template has or a role of a message.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::marks::own;
use super::tokenizer::Tokenizer;

/// Where `format` puts something into a string: what is on both sides are pieces of their own.
static HOLE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\{[^{}]*\}|%[sd]").expect("a test compiles it"));

/// Control tokens of which parts are looked for have at most this many bytes; real ones have some dozens.
const LONGEST: usize = 256;

/// Looks for the parts of control tokens in a template's text.
pub(super) struct Literals<'t> {
    tokenizer: &'t Tokenizer,
    /// What control tokens end with, whole tokens among it, sorted: a text is within one if it begins one of these.
    endings: Vec<&'t str>,
    /// What control tokens begin with and end with, where that is more than a word.
    starts: HashSet<&'t str>,
    ends: HashSet<&'t str>,
    /// The length of the longest control token.
    longest: usize,
    /// The template's words that are within a control token.
    pub(super) words: BTreeSet<String>,
}

impl<'t> Literals<'t> {
    /// For the control tokens of this vocabulary.
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Literals<'t> {
        let reserved = tokenizer.special.texts().filter(|(_, id)| tokenizer.vocab.reserved(*id));
        let tokens: Vec<&str> = reserved.map(|(text, _)| text).filter(|text| text.len() <= LONGEST).collect();
        let mut endings: Vec<&str> = tokens.iter().flat_map(|t| t.char_indices().map(|(at, _)| &t[at..])).collect();
        endings.sort_unstable();
        endings.dedup();
        let cuts = || tokens.iter().flat_map(|t| t.char_indices().skip(1).map(|(at, _)| t.split_at(at)));
        Literals {
            starts: cuts().map(|(start, _)| start).filter(|t| !is_word(t)).collect(),
            ends: cuts().map(|(_, end)| end).filter(|t| !is_word(t)).collect(),
            longest: tokens.iter().map(|t| t.len()).max().unwrap_or(0),
            words: BTreeSet::new(),
            tokenizer,
            endings,
        }
    }

    /// A piece of a template's text, or with `string` the inside of a string in one of its tags, with own characters.
    pub(super) fn mark(&mut self, source: &str, string: bool) -> String {
        let letters = letters(source, string);
        let text: String = letters.iter().map(|(c, _)| c).collect();
        let mut marked = vec![false; text.len()];
        let tokens = self.tokenizer.special.candidates(&text);
        for (span, _) in tokens.filter(|(_, id)| self.tokenizer.vocab.reserved(*id)) {
            marked[span].fill(true);
        }
        let holes: Vec<Range<usize>> = HOLE.find_iter(&text).filter(|_| string).map(|m| m.range()).collect();
        let starts = std::iter::once(0).chain(holes.iter().map(|hole| hole.end));
        let ends = holes.iter().map(|hole| hole.start).chain(std::iter::once(text.len()));
        for (start, end) in starts.zip(ends) {
            for part in self.parts(&text[start..end]).into_iter().flatten() {
                marked[start + part.start..start + part.end].fill(true);
            }
        }
        let with_marks = letters.iter().zip(text.char_indices().map(|(at, _)| marked[at]));
        with_marks.map(|(&(c, written), marked)| if marked { own(c).to_string() } else { written.to_owned() }).collect()
    }

    /// Where a text that something else is put next to may be part of a control token: at its ends, or all of it.
    fn parts(&mut self, text: &str) -> [Option<Range<usize>>; 2] {
        let said = text.trim();
        let from = text.len() - text.trim_start().len();
        let first = self.endings.partition_point(|ending| *ending < said);
        let within = said.len() < self.longest && self.endings.get(first).is_some_and(|e| e.starts_with(said));
        if said.is_empty() || is_word(said) {
            self.words.extend(Some(said.to_owned()).filter(|w| within && !w.is_empty()));
            return [None, None];
        }
        if within {
            return [Some(from..from + said.len()), None];
        }
        let mut cuts: Vec<usize> = said.char_indices().skip(1).map(|(at, _)| at).collect();
        cuts.insert(0, 0);
        let near_end = cuts.iter().filter(|at| said.len() - **at < self.longest);
        let start = near_end.copied().find(|at| self.starts.contains(&said[*at..]));
        let near_start = cuts.iter().rev().filter(|at| **at < self.longest);
        let end = near_start.copied().find(|at| self.ends.contains(&said[..*at]));
        [start.map(|at| from + at..from + said.len()), end.map(|at| from..from + at)]
    }
}

/// The characters of a text, each with how it is written; in a string a quote, a line break or a tab may be escaped.
fn letters(source: &str, string: bool) -> Vec<(char, &str)> {
    let mut letters = Vec::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let escaped = (string && c == '\\').then(|| rest[1..].chars().next()).flatten();
        let (c, n) = match escaped {
            Some('n' | 'r' | 't') => (' ', 2),
            Some(quote @ ('"' | '\'')) => (quote, 2),
            Some(other) => ('\\', 1 + other.len_utf8()),
            None => (c, c.len_utf8()),
        };
        letters.push((c, &rest[..n]));
        rest = &rest[n..];
    }
    letters
}

/// Whether a text has nothing but letters, digits and _.
pub(super) fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || c == '_')
}
