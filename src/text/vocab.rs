//! What a GGUF file says about its tokens: texts, kinds, which ones begin and end a text.
//!
//! The file's own word is not enough for two things, and every GGUF program settles them by the tokens' texts: which
//! tokens end a generation (files name one, chat models have several), and which ones are control tokens although the
//! file calls them ordinary.

use anyhow::{Result, bail};
use tokenizers::models::bpe::Vocab as Ids;

use crate::gguf::Meta;

/// An ordinary token.
pub(super) const NORMAL: u8 = 1;
/// The token for what cannot be said otherwise.
pub(super) const UNKNOWN: u8 = 2;
/// Structure, not text: turns, ends. Text that merely looks like one must not become one.
pub(super) const CONTROL: u8 = 4;
/// Found in any text before everything else.
pub(super) const USER: u8 = 8;
/// One byte, written <0x41>.
pub(super) const BYTE: u8 = 16;
/// A control token that belongs in the output all the same.
pub(super) const SHOWN: u8 = 32;

/// The kinds by their numbers in a file: undefined, normal, unknown, control, user-defined, unused, byte.
const KINDS: [u8; 7] = [0, NORMAL, UNKNOWN, CONTROL, USER, 0, BYTE];

/// Texts that end a generation wherever a vocabulary has them.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Tokens that a key names, else the first of these texts; found by its text, a token is a control token. The bool:
/// whether it ends a generation (code models write these between files).
const INFILL: &[(&[&str], &[&str], bool)] = &[
    (
        &["fim_pre_token_id", "prefix_token_id"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        false,
    ),
    (
        &["fim_suf_token_id", "suffix_token_id"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        false,
    ),
    (
        &["fim_mid_token_id", "middle_token_id"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        false,
    ),
    (&["fim_pad_token_id"], &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"], true),
    (&["fim_rep_token_id"], &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"], true),
    (&["fim_sep_token_id"], &["<|file_sep|>"], true),
];

/// A vocabulary.
#[derive(Debug)]
pub(super) struct Vocab {
    /// The tokens' texts as the file has them.
    pub(super) pieces: Vec<String>,
    /// What each is: bits of the constants above.
    pub(super) kinds: Vec<u8>,
    /// The token that begins a text.
    pub(super) bos: Option<u32>,
    /// The token that ends a text.
    pub(super) eos: Option<u32>,
    /// Every token that ends a generation, ascending.
    pub(super) eog: Vec<u32>,
    /// Whether a text starts with `bos`.
    pub(super) add_bos: bool,
    /// Whether a text ends with `eos`.
    pub(super) add_eos: bool,
}

impl Vocab {
    /// Reads the tokens, and a map of them by their texts; `add_bos` holds where the file does not say.
    pub(super) fn new(meta: &Meta, add_bos: bool) -> Result<(Vocab, Ids)> {
        let file = meta.file().display();
        let texts = meta.strs("tokenizer.ggml.tokens")?;
        let n = texts.len();
        let numbers = meta.opt_i32s("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; n]);
        if numbers.len() != n {
            let has = numbers.len();
            bail!("{file}: metadata key \"tokenizer.ggml.token_type\" has {has} elements, but there are {n} tokens");
        }
        let mut pieces = Vec::with_capacity(n);
        let mut kinds = Vec::with_capacity(n);
        let mut ids = Ids::default();
        ids.reserve(n);
        for (id, (text, &number)) in texts.iter().zip(&numbers).enumerate() {
            let piece = if text.is_empty() { format!("[EMPTY_{id}]") } else { text.clone() };
            let Some(&kind) = usize::try_from(number).ok().and_then(|k| KINDS.get(k)) else {
                bail!(
                    "{file}: metadata key \"tokenizer.ggml.token_type\": element {id} is {number}, expected a kind of \
                     token from 0 to 6"
                );
            };
            if let Some(other) = ids.insert(piece.clone(), id as u32) {
                let why = match meta.repaired().iter().any(|k| k == "tokenizer.ggml.tokens") {
                    true => " (bytes that are not UTF-8 were replaced by U+FFFD)",
                    false => "",
                };
                bail!(
                    "{file}: metadata key \"tokenizer.ggml.tokens\": tokens {other} and {id} are both {piece:?}, \
                     expected each text once{why}"
                );
            }
            pieces.push(piece);
            kinds.push(kind);
        }
        let mut vocab = Vocab {
            pieces,
            kinds,
            bos: None,
            eos: None,
            eog: Vec::new(),
            add_bos: meta.opt("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos),
            add_eos: meta.opt("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
        };
        vocab.bos = vocab.named(meta, "bos_token_id")?;
        vocab.eos = vocab.named(meta, "eos_token_id")?;
        vocab.collect_ends(meta, &ids)?;
        Ok((vocab, ids))
    }

    /// The token that a key names.
    pub(super) fn named(&self, meta: &Meta, key: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{key}");
        match meta.opt::<u32>(&key)? {
            Some(id) if id as usize >= self.pieces.len() => bail!(
                "{}: metadata key {key:?} is {id}, but there are {} tokens: expected a number below that",
                meta.file().display(),
                self.pieces.len()
            ),
            found => Ok(found),
        }
    }

    /// Finds every token that ends a generation, and the control tokens that only their texts give away.
    fn collect_ends(&mut self, meta: &Meta, ids: &Ids) -> Result<()> {
        let mut eog = Vec::new();
        for (keys, texts, ends) in INFILL {
            let mut id = None;
            for key in *keys {
                id = id.or(self.named(meta, key)?);
            }
            if id.is_none() {
                id = texts.iter().find_map(|t| ids.get(*t).copied());
                id.inspect(|&i| self.kinds[i as usize] |= CONTROL);
            }
            eog.extend(id.filter(|_| *ends));
        }
        let has = |text: &str| ids.contains_key(text);
        // Where the model has calls and returns, its "end" only ends one message of several.
        let calls = has("<|call|>") || has("<|calls|>");
        let messages = has("<|end|>") && calls && (has("<|return|>") || has("<|flush|>"));
        // A vocabulary with tool responses has "</s>" as text: it is HTML there.
        let html = has("<|tool_response>") || has("<|plamo:eos|>");
        for text in ENDS {
            let Some(&id) = ids.get(*text) else { continue };
            match *text {
                "</s>" if html => continue,
                "<|end|>" if messages => self.kinds[id as usize] |= CONTROL | SHOWN,
                _ => {
                    self.kinds[id as usize] |= CONTROL;
                    eog.push(id);
                }
            }
        }
        // The parts of a message's head: without them nobody could tell thinking from answer.
        for text in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
            if let Some(&id) = ids.get(text) {
                self.kinds[id as usize] |= SHOWN;
            }
        }
        for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            let id = self.named(meta, key)?;
            let not_end = |id: u32| match self.pieces[id as usize].as_str() {
                "<|end|>" => messages,
                "</s>" => html,
                _ => false,
            };
            eog.extend(id.filter(|&id| !not_end(id)));
        }
        eog.sort_unstable();
        eog.dedup();
        self.eog = eog;
        Ok(())
    }

    /// Whether text can never become this token by being cut up: it must be asked for.
    pub(super) fn reserved(&self, id: u32) -> bool {
        self.kinds[id as usize] & (CONTROL | UNKNOWN) != 0
    }
}
