//! Byte-pair encoding: the letters of a word joined in the order of the file's list of merges.
//!
//! ```text
//! byte letters   a vocabulary of bytes is written in 256 printable letters: 0x21..=0x7e, 0xa1..=0xac and 0xae..=0xff
//!                mean themselves, the other 68 bytes in ascending order for U+0100, U+0101, ..
//! raw            a vocabulary of text has ▁ for the space, and <0x41> tokens for the bytes of letters it lacks
//! ```

use std::collections::HashSet;
use std::sync::LazyLock;

use anyhow::{Result, anyhow, bail};
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab as Ids};

use super::pre::PreTokenizer;
use super::split::Splitter;
use super::vocab::{BYTE, NORMAL, Vocab};
use crate::gguf::Meta;

/// The most bytes of a word, which takes a hundred times as much memory to be joined. Text has breaks.
const LONGEST_WORD: usize = 4 << 20;

const MERGES: &str = "tokenizer.ggml.merges";

/// The letter of every byte.
static LETTERS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u8 as char,
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("a letter below U+0200")
        }
    })
});

/// The byte of every letter, by the letter's number.
static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut bytes = [None; 0x144];
    for (byte, letter) in LETTERS.iter().enumerate() {
        bytes[*letter as usize] = Some(byte as u8);
    }
    bytes
});

/// A byte-pair vocabulary.
pub(super) struct Bpe {
    model: BPE,
    words: Splitter,
    raw: bool,
    whole_newlines: bool,
    space_first: bool,
}

impl Bpe {
    /// Builds it from the merges; takes the map of texts, which is the larger part of it.
    pub(super) fn new(meta: &Meta, vocab: &Vocab, mut ids: Ids, pre: &PreTokenizer) -> Result<Bpe> {
        let file = meta.file().display();
        let merges = match meta.opt_strs(MERGES)? {
            Some(lines) => parse(lines, &ids, vocab).map_err(|e| anyhow!("{file}: metadata key {MERGES:?}: {e}"))?,
            None if pre.ordered => joined_in_order(vocab, &ids),
            None => bail!("{file}: metadata key {MERGES:?} is missing: the vocabulary cannot join letters without it"),
        };
        // What is not there cannot be spelt: text never becomes a control token.
        ids.retain(|_, id| !vocab.reserved(*id));
        let model = BpeBuilder::new()
            .vocab_and_merges(ids, merges)
            .ignore_merges(pre.ignore_merges)
            .byte_fallback(pre.raw)
            .build()
            .map_err(|e| anyhow!("{file}: the vocabulary cannot be built: {e}"))?;
        let PreTokenizer { raw, whole_newlines, space_first, .. } = *pre;
        Ok(Bpe { model, words: Splitter::new(pre.rules)?, raw, whole_newlines, space_first })
    }

    /// Appends the tokens of a text without control tokens.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        if self.raw {
            for word in self.words.pieces(text) {
                let whole = self.whole_newlines && word.starts_with('\n');
                match self.model.token_to_id(word) {
                    Some(id) if whole => out.push(id),
                    _ => self.line(&word.replace(' ', "▁"), out)?,
                }
            }
            return Ok(());
        }
        let mut letters = String::new();
        for word in self.words.pieces(text) {
            letters.clear();
            letters.extend(word.bytes().map(|b| LETTERS[b as usize]));
            self.word(&letters, word, out)?;
        }
        Ok(())
    }

    /// Appends the tokens of a line in which ▁ represents spaces.
    fn line(&self, line: &str, out: &mut Vec<u32>) -> Result<()> {
        if !self.space_first || line.starts_with('\n') {
            return self.word(line, line, out);
        }
        let line = line.strip_prefix('▁').unwrap_or(line);
        line.split('▁').try_for_each(|word| self.word(&format!("▁{word}"), word, out))
    }

    /// Appends the tokens of a word, which is `said` in an error.
    fn word(&self, word: &str, said: &str, out: &mut Vec<u32>) -> Result<()> {
        if word.len() > LONGEST_WORD {
            bail!("cannot tokenize {} bytes without a break, expected at most {LONGEST_WORD}", word.len());
        }
        let tokens = self.model.tokenize(word).map_err(|e| anyhow!("cannot tokenize {said:?}: {e}"))?;
        // The model leaves out a letter it has no token for; the others' lengths tell.
        if tokens.iter().map(|t| t.offsets.1 - t.offsets.0).sum::<usize>() != word.len() {
            bail!("cannot tokenize {said:?}: the vocabulary has no token for one of its bytes");
        }
        out.extend(tokens.iter().map(|t| t.id));
        Ok(())
    }

    /// The bytes of an ordinary token.
    pub(super) fn bytes(&self, piece: &str) -> Vec<u8> {
        if self.raw {
            return piece.replace('▁', " ").into_bytes();
        }
        let byte = |c: char| BYTES.get(c as usize).copied().flatten();
        piece.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| piece.as_bytes().to_vec())
    }
}

/// The pairs of lines like `a b`, each of which joins two tokens to a third. Only the first of equal lines counts, and
/// none that has to do with a control token.
fn parse(lines: &[String], ids: &Ids, vocab: &Vocab) -> Result<Merges, String> {
    let mut seen = HashSet::with_capacity(lines.len());
    let mut merges = Vec::with_capacity(lines.len());
    let mut both = String::new();
    for (i, line) in lines.iter().enumerate() {
        // The space that parts them is not the first character: that may be a space of the token's own.
        let space = line.bytes().skip(1).position(|c| c == b' ').map(|at| at + 1);
        let Some((a, b)) = space.map(|at| (&line[..at], &line[at + 1..])) else {
            return Err(format!("element {i} is {line:?}, expected two tokens with a space between them"));
        };
        both.clear();
        both.extend([a, b]);
        let id = |text: &str| {
            ids.get(text).copied().ok_or_else(|| {
                format!(
                    "element {i} is {line:?}, but \"tokenizer.ggml.tokens\" has no token {text:?}: the two do not \
                     belong together"
                )
            })
        };
        let (left, right, joined) = (id(a)?, id(b)?, id(&both)?);
        if ![left, right, joined].iter().any(|&id| vocab.reserved(id)) && seen.insert((left, right)) {
            merges.push((a.to_owned(), b.to_owned()));
        }
    }
    Ok(merges)
}

/// The merges of a vocabulary that is listed in the order in which its tokens were joined: those of all tokens before
/// it leave a token in two parts, and these are what it joins.
fn joined_in_order(vocab: &Vocab, ids: &Ids) -> Merges {
    let mut merges = Vec::new();
    let mut ends = Vec::new(); // where the parts of the token end, in bytes
    for (id, piece) in vocab.pieces.iter().enumerate().filter(|&(id, _)| vocab.kinds[id] & (NORMAL | BYTE) != 0) {
        ends.clear();
        ends.extend(piece.char_indices().skip(1).map(|(at, _)| at));
        ends.push(piece.len());
        while ends.len() > 2 {
            let start = |i: usize| if i == 0 { 0 } else { ends[i - 1] };
            let rank = |i: usize| ids.get(&piece[start(i)..ends[i + 1]]).copied().filter(|&r| (r as usize) < id);
            let Some((_, i)) = (0..ends.len() - 1).filter_map(|i| Some((rank(i)?, i))).min() else { break };
            ends.remove(i);
        }
        if ends.len() == 2 {
            merges.push((piece[..ends[0]].to_owned(), piece[ends[0]..].to_owned()));
        }
    }
    merges
}
