//! The tokenizer of a GGUF file: text to token numbers and back.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use super::bpe::Bpe;
use super::pre;
use super::spm::Spm;
use super::vocab::{BYTE, CONTROL, NORMAL, SHOWN, UNKNOWN, USER, Vocab};
use crate::gguf::{Gguf, Meta};

/// What a file without a vocabulary has as its tokenizer's model.
pub const NO_VOCABULARY: &str = "none";

/// How text is cut into tokens.
enum Scheme {
    Bpe(Box<Bpe>),
    Spm(Spm),
}

/// A GGUF file's vocabulary, and how to use it.
pub struct Tokenizer {
    file: String,
    pub(super) vocab: Vocab,
    model: Scheme,
    /// Tokens that are found in any text.
    user: Finder,
    /// Those and the control tokens.
    pub(super) special: Finder,
    /// White space after a token that was found is dropped.
    strip: bool,
    /// What [`Tokenizer::sequences_with`] found last: that takes the whole vocabulary, and is asked for again and again.
    pub(super) sequences: Mutex<Option<Sequences>>,
}

/// Texts, and the token sequences that bring them about.
type Sequences = (Vec<String>, Vec<Vec<u32>>);

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.file, self.n_vocab())
    }
}

impl Tokenizer {
    /// Builds the tokenizer that the file's metadata describe.
    ///
    /// # Errors
    /// If the file has no tokenizer, or one that is not supported; the message names the metadata key.
    pub fn new(gguf: &Gguf) -> Result<Tokenizer> {
        Tokenizer::of(&gguf.meta)
    }

    fn of(meta: &Meta) -> Result<Tokenizer> {
        let file = meta.file().display().to_string();
        let kind = meta.str("tokenizer.ggml.model")?;
        let (vocab, model) = match kind {
            "gpt2" | "gemma4" => {
                let name = if kind == "gpt2" { pre_name(meta)? } else { kind };
                let Some(pre) = pre::pre(name) else {
                    bail!(
                        "{file}: metadata key \"tokenizer.ggml.pre\" is {name:?}, which this version does not know: \
                         it cannot cut text as the model expects. If the model's authors say which known one it \
                         equals, set the key to that; known are {}",
                        pre::names().join(", ")
                    );
                };
                let (mut vocab, ids) = Vocab::new(meta, pre.add_bos)?;
                if pre.raw && pre.add_bos && !vocab.add_bos {
                    // The first converters of these models wrote false; without the token they talk nonsense.
                    tracing::warn!("{file}: \"tokenizer.ggml.add_bos_token\" is false, but this model needs the token");
                    vocab.add_bos = true;
                }
                let bpe = Bpe::new(meta, &vocab, ids, pre)?;
                (vocab, Scheme::Bpe(Box::new(bpe)))
            }
            "llama" => {
                let (mut vocab, _) = Vocab::new(meta, true)?;
                // Where the file does not say: SentencePiece's own order, which llama.cpp takes too.
                let first = |id: u32| Some(id).filter(|id| vocab.pieces.len() > *id as usize && vocab.reserved(*id));
                (vocab.bos, vocab.eos) = (vocab.bos.or(first(1)), vocab.eos.or(first(2)));
                let spm = Spm::new(meta, &vocab)?;
                (vocab, Scheme::Spm(spm))
            }
            NO_VOCABULARY | "no_vocab" => bail!(
                "{file}: metadata key \"tokenizer.ggml.model\" is {kind:?}: the file has no vocabulary, so that text \
                 cannot be read or written; `tandem logits --tokens` takes token IDs. Convert the model again with its \
                 tokenizer.json in the folder"
            ),
            other => bail!(
                "{file}: metadata key \"tokenizer.ggml.model\" is {other:?}, expected one this version can use: gpt2 \
                 (byte pairs), gemma4 or llama (SentencePiece)"
            ),
        };
        for (add, id, key) in [(vocab.add_bos, vocab.bos, "bos"), (vocab.add_eos, vocab.eos, "eos")] {
            if add && id.is_none() {
                bail!(
                    "{file}: metadata key \"tokenizer.ggml.{key}_token_id\" is missing, but every text is to have \
                     that token: set the key, or \"tokenizer.ggml.add_{key}_token\" to false"
                );
            }
        }
        let finder = |kinds: u8, not: u8| {
            let ids = 0..vocab.pieces.len();
            Finder::new(ids.filter(|&i| vocab.kinds[i] & kinds != 0 && vocab.kinds[i] & not == 0), &vocab.pieces)
        };
        let user = finder(USER, CONTROL | UNKNOWN);
        let special = finder(USER | CONTROL | UNKNOWN, 0);
        let name = meta.opt_str("general.name")?.unwrap_or("").to_ascii_lowercase();
        let strip = name.contains("phi-3") || name.contains("phi3");
        Ok(Tokenizer { file, vocab, model, user, special, strip, sequences: Mutex::default() })
    }

    /// The tokens of a text. `add_special`: with the begin and end tokens that the file asks for. `parse_special`:
    /// the texts of control tokens become these tokens; without it, no text ever does.
    ///
    /// # Errors
    /// If the text cannot be encoded.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        out.extend(self.vocab.bos.filter(|_| add_special && self.vocab.add_bos));
        let begun = out.len();
        let finder = if parse_special { &self.special } else { &self.user };
        self.cut(text, finder.find(text, |_, _| true), &mut out)?;
        if begun == 1 && out.get(1) == self.vocab.bos.as_ref() {
            tracing::warn!("the text starts with the begin token already, so now there are two of them");
        }
        out.extend(self.vocab.eos.filter(|_| add_special && self.vocab.add_eos));
        Ok(out)
    }

    /// The tokens of a text that is to be continued: with the begin token that the file asks for, and without the end
    /// token, which would end it.
    ///
    /// # Errors
    /// If the text cannot be encoded.
    pub fn encode_beginning(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true, true)?;
        ids.pop_if(|id| self.vocab.add_eos && Some(*id) == self.vocab.eos);
        Ok(ids)
    }

    /// Appends the tokens that were found in a text, and those of the text between them.
    pub(super) fn cut(&self, text: &str, found: Vec<(Range<usize>, u32)>, out: &mut Vec<u32>) -> Result<()> {
        let mut done = 0;
        let mut first = true; // nothing, or a token that was found, comes before
        for (span, id) in found.into_iter().map(|(s, id)| (s, Some(id))).chain([(text.len()..text.len(), None)]) {
            let mut between = &text[done..span.start];
            if self.strip && done > 0 && !self.keeps_space(out.last().copied()) {
                between = between.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
            }
            if !between.is_empty() {
                match &self.model {
                    Scheme::Bpe(bpe) => bpe.encode(between, out),
                    Scheme::Spm(spm) => spm.encode(between, first, out),
                }
                .with_context(|| self.file.clone())?;
                first = false;
            }
            if let Some(id) = id {
                out.push(id);
                first = true;
            }
            done = span.end;
        }
        Ok(())
    }

    /// Whether white space after this token is kept where that after others is not.
    fn keeps_space(&self, id: Option<u32>) -> bool {
        id.is_none_or(|id| matches!(self.piece(id), "<unk>" | "<s>" | "<|endoftext|>"))
    }

    /// The bytes of a token; they need not be whole characters. A control token has some only with `special`, a
    /// number outside the vocabulary has none.
    pub fn bytes(&self, id: u32, special: bool) -> Vec<u8> {
        let Some(&kind) = self.vocab.kinds.get(id as usize) else { return Vec::new() };
        let piece = self.piece(id);
        if kind & (CONTROL | UNKNOWN) != 0 && kind & SHOWN == 0 && !special {
            Vec::new()
        } else if kind & (CONTROL | UNKNOWN | USER) != 0 {
            piece.as_bytes().to_vec()
        } else if kind & BYTE != 0 {
            byte_of(piece).map_or_else(|| piece.as_bytes().to_vec(), |b| vec![b])
        } else if kind & NORMAL != 0 {
            match &self.model {
                Scheme::Bpe(bpe) => bpe.bytes(piece),
                Scheme::Spm(_) => piece.replace('▁', " ").into_bytes(),
            }
        } else {
            Vec::new()
        }
    }

    /// The text of tokens; bytes that are not UTF-8 become U+FFFD. With `special`, control tokens are written out.
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id, special)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Text from tokens that come one by one, without control tokens.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream { tokenizer: self, tail: Vec::new() }
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos
    }

    /// Whether every text starts with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        self.vocab.add_bos
    }

    /// Whether every text ends with [`Tokenizer::eos`].
    pub fn adds_eos(&self) -> bool {
        self.vocab.add_eos
    }

    /// Whether a generation ends with this token: the end of the text, of a turn, of a message.
    pub fn is_eog(&self, id: u32) -> bool {
        self.vocab.eog.binary_search(&id).is_ok()
    }

    /// All tokens that end a generation, ascending.
    pub fn eog(&self) -> &[u32] {
        &self.vocab.eog
    }

    /// How many tokens there are.
    pub fn n_vocab(&self) -> usize {
        self.vocab.pieces.len()
    }

    /// A token as the vocabulary writes it; empty for a number outside it.
    pub fn piece(&self, id: u32) -> &str {
        self.vocab.pieces.get(id as usize).map_or("", |p| p)
    }

    /// Whether a token is structure, not text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocab.kinds.get(id as usize).is_some_and(|k| k & CONTROL != 0)
    }
}

/// The name of the pre-tokenizer.
fn pre_name(meta: &Meta) -> Result<&str> {
    match meta.opt_str("tokenizer.ggml.pre")? {
        Some(name) if !name.is_empty() => Ok(name),
        _ => bail!(
            "{}: metadata key \"tokenizer.ggml.pre\" is missing, as in files from before May 2024: nothing says how \
             this model cuts text. Convert the model again, or set the key (\"default\" is what programs that guess \
             take)",
            meta.file().display()
        ),
    }
}

/// The byte of a token like <0x0A>.
fn byte_of(piece: &str) -> Option<u8> {
    u8::from_str_radix(piece.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

/// Finds certain tokens' texts in a text.
#[derive(Debug, Default)]
pub(super) struct Finder {
    tokens: HashMap<Box<[u8]>, u32>,
    /// The lengths of the tokens that start with a byte, the longest first.
    lengths: Vec<Vec<usize>>,
}

impl Finder {
    fn new(ids: impl Iterator<Item = usize>, pieces: &[String]) -> Finder {
        let mut lengths = vec![Vec::new(); 256];
        let mut tokens = HashMap::new();
        for id in ids {
            let text = pieces[id].as_bytes();
            lengths[text[0] as usize].push(text.len());
            tokens.insert(text.into(), id as u32);
        }
        for l in &mut lengths {
            l.sort_unstable_by(|a, b| b.cmp(a));
            l.dedup();
        }
        Finder { tokens, lengths }
    }

    /// The tokens' texts and numbers, in no order.
    pub(super) fn texts(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().filter_map(|(text, &id)| Some((std::str::from_utf8(text).ok()?, id)))
    }

    /// Everywhere that a token's text occurs, overlapping and nested occurrences included.
    pub(super) fn candidates<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (Range<usize>, u32)> + 'a {
        let text = text.as_bytes();
        text.iter().enumerate().flat_map(move |(at, &b)| {
            let spans = self.lengths[b as usize].iter().map(move |n| at..at + n);
            spans.filter_map(move |span| Some((span.clone(), *self.tokens.get(text.get(span)?)?)))
        })
    }

    /// Where the tokens are that `may` be there, in order and without overlap. A longer token is found before a shorter
    /// one, even one that starts further left.
    pub(super) fn find(&self, text: &str, may: impl Fn(&Range<usize>, u32) -> bool) -> Vec<(Range<usize>, u32)> {
        let mut all: Vec<_> = self.candidates(text).filter(|(span, id)| may(span, *id)).collect();
        all.sort_by_key(|(span, id)| (usize::MAX - span.len(), *id, span.start));
        let mut taken = vec![false; if all.is_empty() { 0 } else { text.len() }];
        // What was taken is at least as long, so that an overlap covers one end.
        all.retain(|(span, _)| {
            let free = !taken[span.start] && !taken[span.end - 1];
            if free {
                taken[span.clone()].fill(true);
            }
            free
        });
        all.sort_by_key(|(span, _)| span.start);
        all
    }
}

/// Puts the text of tokens together as they come, whole characters at a time.
#[derive(Debug)]
pub struct TokenStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The bytes of a character whose end has not come yet.
    tail: Vec<u8>,
}

impl TokenStream<'_> {
    /// The text that is complete with this token; empty while a character is not.
    pub fn push(&mut self, id: u32) -> String {
        self.push_as(id, false)
    }

    /// The same; `special`: if it is a control token, it is written out.
    pub fn push_as(&mut self, id: u32, special: bool) -> String {
        self.tail.extend(self.tokenizer.bytes(id, special));
        // At most three bytes at the end can be the start of a character; all else is complete or never will be.
        let keep = (1..=3.min(self.tail.len())).rev().find(|&n| {
            let end = &self.tail[self.tail.len() - n..];
            std::str::from_utf8(end).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        });
        let rest = self.tail.split_off(self.tail.len() - keep.unwrap_or(0));
        let whole = std::mem::replace(&mut self.tail, rest);
        String::from_utf8_lossy(&whole).into_owned()
    }

    /// What is left at the end: an incomplete character becomes U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }
}
