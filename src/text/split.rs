//! Cuts text into words, before a byte-pair vocabulary joins the bytes of each.
//!
//! A rule cuts every piece that the rules before it left, into its matches and what is between them. Nearly all
//! lists end in `|\s+(?!\S)|\s+`: a run of white space without its last character where a word follows, since that
//! character belongs to the word. That look-ahead is done by hand ([`SplitRule::Words`]), so that the rest is a regular
//! expression in the strict sense and takes linear time on any text.

use anyhow::{Result, bail};
use regex::{Regex, RegexBuilder};

use super::pre::SplitRule::{self, Digits, Doubling, Each, Lines, Only, Words};

/// Room for the states of an expression. The default, 2 MB, is too little for text in all the scripts there are.
const DFA_BYTES: usize = 16 << 20;

/// A rule, ready to use.
#[derive(Debug)]
struct SplitStep {
    rule: SplitRule,
    /// The rule's expression with `|\s+` where white space is handled by hand.
    regex: Regex,
    /// Whether white space that ends in a newline was matched by the expression proper.
    newlines: bool,
}

/// Cuts text as a list of rules says.
#[derive(Debug)]
pub(super) struct Splitter(Vec<SplitStep>);

impl Splitter {
    /// Makes the rules ready.
    pub(super) fn new(rules: &[SplitRule]) -> Result<Splitter> {
        let step = |&rule: &SplitRule| {
            let (expression, newlines) = match rule {
                Each(e) | Only(e) => (e.to_owned(), false),
                Words(e) | Doubling(e) => (format!(r"{e}|\s+"), e.contains(r"\s*[\r\n]")),
                Digits => (r"\p{N}+".to_owned(), false),
                Lines => (r"\n+".to_owned(), false),
            };
            match RegexBuilder::new(&expression).dfa_size_limit(DFA_BYTES).build() {
                Ok(regex) => Ok(SplitStep { rule, regex, newlines }),
                Err(e) => bail!("the pre-tokenizer expression {expression:?} cannot be used: {e}"),
            }
        };
        Ok(Splitter(rules.iter().map(step).collect::<Result<_>>()?))
    }

    /// The pieces of a text: put together they are the text, but for what [`Only`] drops, and none is empty.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for step in &self.0 {
            let mut cut = Vec::with_capacity(pieces.len());
            for piece in pieces {
                step.cut(piece, &mut cut);
            }
            pieces = cut;
        }
        pieces.retain(|p| !p.is_empty());
        pieces
    }
}

impl SplitStep {
    /// Cuts one piece.
    fn cut<'t>(&self, text: &'t str, out: &mut Vec<&'t str>) {
        let mut done = 0; // everything before it has been cut
        while let Some(found) = self.regex.find_at(text, done) {
            let (start, mut end) = (found.start(), found.end());
            match self.rule {
                Words(_) => end = self.give_back(text, start, end),
                Doubling(_) => end = self.halve(text, start, end),
                Each(_) | Only(_) | Digits | Lines => {}
            }
            if start > done && !matches!(self.rule, Only(_)) {
                out.push(&text[done..start]);
            }
            match self.rule {
                Digits => groups(&text[start..end], out),
                _ => out.push(&text[start..end]),
            }
            done = end;
        }
        if done < text.len() && !matches!(self.rule, Only(_)) {
            out.push(&text[done..]);
        }
    }

    /// Whether a match is the run of white space that the expression has last. No other alternative ends in white
    /// space, but for those that end in a newline.
    fn is_space(&self, run: &str) -> bool {
        let last = run.chars().next_back().expect("no expression matches nothing");
        last.is_whitespace() && !(self.newlines && matches!(last, '\r' | '\n'))
    }

    /// `\s+(?!\S)|\s+`: a run before a word leaves its last character to the word, if it has another.
    fn give_back(&self, text: &str, start: usize, end: usize) -> usize {
        let run = &text[start..end];
        if end == text.len() || !self.is_space(run) {
            return end;
        }
        let last = run.chars().next_back().map_or(0, char::len_utf8);
        if last == run.len() { end } else { end - last }
    }

    /// `\s{512}(?!\S)|..|\s{1,2}(?!\S)|\s`: the longest of 512, 256, .. 1 that leaves a word one character.
    fn halve(&self, text: &str, start: usize, end: usize) -> usize {
        let run = &text[start..end];
        if !self.is_space(run) {
            return end;
        }
        let free = run.chars().count() - usize::from(end < text.len());
        let take = (0..=9).rev().map(|p| 1 << p).find(|&n| n <= free).unwrap_or(1);
        start + run.chars().take(take).map(char::len_utf8).sum::<usize>()
    }
}

/// Digits by threes from the right: 1 234 567.
fn groups<'t>(digits: &'t str, out: &mut Vec<&'t str>) {
    let starts: Vec<usize> = digits.char_indices().map(|(at, _)| at).collect();
    let mut from = 0;
    for (i, &at) in starts.iter().enumerate().skip(1) {
        if (starts.len() - i).is_multiple_of(3) {
            out.push(&digits[from..at]);
            from = at;
        }
    }
    out.push(&digits[from..]);
}

#[cfg(test)]
mod tests {
    use super::super::pre::{names, pre};
    use super::*;

    fn cut<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        Splitter::new(pre(name).unwrap().rules).unwrap().pieces(text)
    }

    #[test]
    fn every_name_has_expressions_that_compile_and_cut_without_loss() {
        let text =
            "I'll SAY it's 1234567 times:\r\n\r\n  日本語と한국어  \t हिन्दी <|x|> …\u{a0} HelloWorld ПриВет\n \n  ";
        for name in names() {
            let want = if name == "whitespace" { text.split_whitespace().collect() } else { text.to_owned() };
            assert_eq!(cut(name, text).concat(), want, "{name}");
        }
    }

    #[test]
    fn no_name_stands_twice() {
        let names = names();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_word() {
        assert_eq!(cut("gpt-2", "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(cut("gpt-2", "a \n\nb"), ["a", " \n", "\n", "b"]);
        assert_eq!(cut("llama-bpe", "a \n\n  b"), ["a", " \n\n", " ", " b"]);
        assert_eq!(cut("llama-bpe", "a\u{3000}\u{3000}b"), ["a", "\u{3000}", "\u{3000}b"]);
        assert_eq!(cut("spark2_5", "a \n b"), ["a", " \n", " b"]);
    }

    #[test]
    fn words_break_where_capitals_begin_where_the_model_has_it_so() {
        assert_eq!(cut("gpt-4o", "HelloWorld it's ПриВет"), ["Hello", "World", " it's", " При", "Вет"]);
        assert_eq!(cut("gpt-4o", "हिन्दी"), ["हिन्दी"]);
        assert_eq!(cut("llama-bpe", "HelloWorld it's"), ["HelloWorld", " it", "'s"]);
        assert_eq!(cut("kimi-k2", "中文abc漢字'SayHi"), ["中文", "abc", "漢字", "'Say", "Hi"]);
    }

    #[test]
    fn digits_go_by_the_rules_of_each_name() {
        assert_eq!(cut("llama-bpe", "1234567"), ["123", "456", "7"]);
        assert_eq!(cut("qwen2", "123"), ["1", "2", "3"]);
        assert_eq!(cut("tiny_aya", "x1234567 89"), ["x", "1", "234", "567", " ", "89"]);
        assert_eq!(cut("gpt-2", "1234567"), ["1234567"]);
    }

    #[test]
    fn doubling_takes_powers_of_two() {
        let text = format!("a{}b", " ".repeat(14));
        let sizes: Vec<usize> = cut("jais-2", &text).iter().map(|p| p.len()).collect();
        assert_eq!(sizes, [1, 8, 4, 1, 2]);
    }

    #[test]
    fn a_megabyte_of_spaces_is_no_trouble() {
        let text = format!("{}x", " ".repeat(1 << 20));
        assert_eq!(cut("llama-bpe", &text).len(), 2);
    }
}
