//! Text from outside that can never become a control token.
//!
//! A prompt is a rendered template, in which control tokens are meant, around what people and tools said, in which they
//! are not. [`Prompter`] renders the template with its own text in own characters (`marks.rs`) wherever that can be part
//! of a control token (`own.rs`); what was said goes in as it is, so that the template can search, compare and cut it.
//! [`Tokenizer::encode_prompt`] finds a control token only where the template itself wrote it. Whatever a template makes
//! of what was said, out of its middle, of its capitals or of two of its pieces: it stays text.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::Result;
use minijinja::Environment;
use serde_json::Value;

use super::clock::Clock;
use super::marks::{Moved, base, is_own, own};
use super::own::{Literals, is_word};
use super::template::Template;
use super::tokenizer::Tokenizer;

/// A template's text around a conversation, and which of it the template itself wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    text: String,
    /// Where in the text own characters are, ascending, none next to another.
    own: Vec<Range<usize>>,
    /// Words that may be within a control token between own characters.
    words: BTreeSet<String>,
}

impl Prompt {
    /// The text, as transformers renders it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The part of a prompt from byte `start` to byte `end`.
    pub fn part(&self, start: usize, end: usize) -> Prompt {
        let within = |r: &Range<usize>| r.start.max(start)..r.end.min(end);
        let own = self.own.iter().map(within).filter(|r| r.start < r.end).map(|r| r.start - start..r.end - start);
        Prompt { text: self.text[start..end].to_owned(), own: own.collect(), words: self.words.clone() }
    }

    /// Whether the template itself wrote a token here.
    fn is_own(&self, span: Range<usize>) -> bool {
        let mut at = span.start;
        let mut ranges = self.own[self.own.partition_point(|r| r.end <= at)..].iter();
        while at < span.end {
            let Some(next) = ranges.next().filter(|r| r.start < span.end) else { return false };
            let gap = &self.text[at.min(next.start)..next.start];
            if !gap.is_empty() && (at == span.start || !self.words.contains(gap)) {
                return false;
            }
            at = next.end;
        }
        true
    }
}

/// A chat template that writes the prompts of one model.
#[derive(Debug)]
pub struct Prompter {
    template: Template,
    /// The template with own characters.
    env: Environment<'static>,
    /// Its words that may be within a control token.
    words: BTreeSet<String>,
    /// Variables that a template has from the vocabulary.
    given: Vec<(&'static str, String)>,
}

impl Prompter {
    /// For the model with this vocabulary.
    ///
    /// # Errors
    /// If the template does not parse with its control tokens in own characters.
    pub fn new(template: Template, tokenizer: &Tokenizer) -> Result<Prompter> {
        let mut literals = Literals::new(tokenizer);
        let env = template.with_own(&mut literals)?;
        let words = literals.words;
        let given = [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())];
        let given =
            given.into_iter().filter_map(|(name, id)| Some((name, tokenizer.piece(id?).chars().map(own).collect())));
        Ok(Prompter { given: given.collect(), template, env, words })
    }

    /// What the template's file says.
    pub fn source(&self) -> &str {
        self.template.source()
    }

    /// The prompt. `variables` is an object: `messages` and whatever else the template asks for; `bos_token` and
    /// `eos_token` are the vocabulary's unless they are given, as text.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn prompt(&self, variables: &Value, clock: Clock) -> Result<Prompt> {
        let mut variables = variables.clone();
        let moved = Moved::out_of(&mut variables);
        let roles = variables["messages"].as_array().into_iter().flatten().filter_map(|m| m["role"].as_str());
        let words =
            self.words.iter().map(String::as_str).chain(roles.filter(|r| is_word(r))).map(String::from).collect();
        if let Some(variables) = variables.as_object_mut() {
            for (name, text) in self.given.iter().filter(|(_, text)| !text.is_empty()) {
                variables.entry(*name).or_insert_with(|| text.as_str().into());
            }
        }
        let (written, _) = self.template.run(&self.env, variables, clock)?;
        let mut prompt = Prompt { text: String::with_capacity(written.len()), own: Vec::new(), words };
        for c in written.chars() {
            let start = prompt.text.len();
            prompt.text.push(moved.back(base(c)));
            match prompt.own.last_mut() {
                _ if !is_own(c) => {}
                Some(last) if last.end == start => last.end = prompt.text.len(),
                _ => prompt.own.push(start..prompt.text.len()),
            }
        }
        Ok(prompt)
    }
}

impl Tokenizer {
    /// The tokens of a prompt: control tokens where the template wrote them, and text. The begin token comes first where
    /// the file asks for it and the template did not write it.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let text = prompt.text();
        let found = self.special.find(text, |span, id| !self.vocab.reserved(id) || prompt.is_own(span.clone()));
        let begun = found.first().is_some_and(|(span, id)| span.start == 0 && self.bos() == Some(*id));
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.bos().filter(|_| self.adds_bos() && !begun));
        self.cut(text, found, &mut ids)?;
        Ok(ids)
    }
}
