//! SentencePiece vocabularies: the pair of neighbours with the best score is joined first, over the whole text.
//!
//! Spaces are written ▁, one is put before the text, and a letter without a token becomes its bytes, <0xE4> and so on.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use anyhow::{Result, bail};

use super::vocab::Vocab;
use crate::gguf::Meta;

const SCORES: &str = "tokenizer.ggml.scores";

/// A SentencePiece vocabulary.
#[derive(Debug)]
pub(super) struct Spm {
    /// The tokens that text can become, and their scores.
    tokens: HashMap<String, (u32, f32)>,
    /// The token of every byte.
    bytes: Vec<Option<u32>>,
    /// Whether a space is put before a text.
    pub(super) prefix: bool,
}

/// Two neighbours that would make a token.
#[derive(Debug)]
struct Bigram {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Ord for Bigram {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Bigram {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Bigram {}

/// A part of the text, and its neighbours; empty once it was joined to the one before it.
#[derive(Debug)]
struct Symbol {
    start: usize,
    end: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl Spm {
    /// Reads the scores.
    pub(super) fn new(meta: &Meta, vocab: &Vocab) -> Result<Spm> {
        let (file, n) = (meta.file().display(), vocab.pieces.len());
        let scores = meta.f32s(SCORES)?;
        if scores.len() != n {
            bail!("{file}: metadata key {SCORES:?} has {} elements, but there are {n} tokens", scores.len());
        }
        if let Some(i) = scores.iter().position(|s| s.is_nan()) {
            bail!("{file}: metadata key {SCORES:?}: element {i} is not a number");
        }
        // What is not there cannot be spelt: text never becomes a control token.
        let tokens: HashMap<String, (u32, f32)> = (0..n)
            .filter(|&id| !vocab.reserved(id as u32))
            .map(|id| (vocab.pieces[id].clone(), (id as u32, scores[id])))
            .collect();
        let byte = |b: u8| {
            let plain = b.is_ascii().then(|| (b as char).to_string());
            let known = tokens.get(&format!("<0x{b:02X}>")).or_else(|| tokens.get(&plain?));
            known.map(|t| t.0)
        };
        let bytes = (0..=255).map(byte).collect();
        let prefix = meta.opt("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        Ok(Spm { tokens, bytes, prefix })
    }

    /// Appends the tokens of a text without control tokens; `first`: it is the first, or follows a control token.
    pub(super) fn encode(&self, text: &str, first: bool, out: &mut Vec<u32>) -> Result<()> {
        let mut text = text.replace(' ', "▁");
        if first && self.prefix {
            text.insert(0, '▁');
        }
        let n = text.chars().count();
        let mut parts: Vec<Symbol> = Vec::with_capacity(n);
        for (i, (start, c)) in text.char_indices().enumerate() {
            let after = (i + 1 < n).then_some(i + 1);
            parts.push(Symbol { start, end: start + c.len_utf8(), before: i.checked_sub(1), after });
        }
        let pair = |parts: &[Symbol], left: Option<usize>, right: Option<usize>| {
            let (left, right) = (left?, right?);
            let both = &text[parts[left].start..parts[right].end];
            self.tokens.get(both).map(|&(_, score)| Bigram { score, left, right, bytes: both.len() })
        };
        let mut queue: BinaryHeap<Bigram> = (1..n).filter_map(|i| pair(&parts, Some(i - 1), Some(i))).collect();
        while let Some(Bigram { left, right, bytes, .. }) = queue.pop() {
            let whole = parts[left].start..parts[right].end;
            let stale = parts[left].start == parts[left].end || parts[right].start == parts[right].end;
            if stale || parts[left].after != Some(right) || whole.len() != bytes {
                continue;
            }
            let after = parts[right].after;
            parts[left].end = whole.end;
            parts[left].after = after;
            parts[right].start = whole.end;
            if let Some(after) = after {
                parts[after].before = Some(left);
            }
            queue.extend(pair(&parts, parts[left].before, Some(left)));
            queue.extend(pair(&parts, Some(left), after));
        }
        for part in parts.iter().filter(|p| p.start < p.end) {
            let said = &text[part.start..part.end];
            match self.tokens.get(said) {
                Some(&(id, _)) => out.push(id),
                None => {
                    for b in said.bytes() {
                        let Some(id) = self.bytes[b as usize] else {
                            bail!("cannot tokenize {said:?}: the vocabulary has no token for the byte 0x{b:02X}");
                        };
                        out.push(id);
                    }
                }
            }
        }
        Ok(())
    }
}
