//! tokenizer.json, the tokenizer file of Hugging Face, as GGUF metadata.
//!
//! A GGUF file says less: it names its pre-tokenizer instead of describing it. The name is found by
//! what it does: of the pre-tokenizers that this version knows, the one that cuts [`SAMPLE`] as the
//! file's own does. Then the metadata are read back, and must give the token numbers that the crate
//! `tokenizers` gives. What they cannot express is refused.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value as Json;
use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::pre::{self, PreTokenizer as KnownPre};
use super::split::Splitter;
use super::tokenizer::Tokenizer;
use crate::gguf::{Gguf, Value, Writer};

/// Text on which pre-tokenizers differ: contractions, runs of digits, blanks, signs and newlines,
/// capitals inside words, and letters of many scripts.
const SAMPLE: &str = "I'm you'll WE'RE it'S, isn't?  Hello   World!\tcamelCase HTTPServer x1 12 1234567 3.14 10,000\n\n\n \
    \n  if (a[0] != b) { return -1; } // été naïve straße Œuvre\r\n\r\n   привет مرحبا שלום नमस्ते 你好世界2024年 こんにちは 안녕 \
    สวัส 😀👍🏽 $5 #tag @me <b>$$$</b> \"q\" '1' a_b 、。！ ١٢٣ ½ e\u{301} \u{200d}end.\n";

/// The kinds of tokens by their numbers in a file.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct HubTokenizer {
    file: PathBuf,
    json: Json,
    inner: tokenizers::Tokenizer,
}

impl HubTokenizer {
    /// Parses the text of a tokenizer.json.
    ///
    /// # Errors
    /// If the crate `tokenizers` does not read it, or its model is not byte pairs.
    pub fn new(file: &Path, text: &str) -> Result<HubTokenizer> {
        let shown = file.display();
        let json: Json = serde_json::from_str(text).with_context(|| format!("{shown}: not JSON"))?;
        let inner: tokenizers::Tokenizer =
            text.parse().map_err(|e| anyhow!("{shown}: not a tokenizer that this version can read: {e}"))?;
        let kind = &json["model"]["type"];
        if kind.as_str().is_some_and(|kind| kind != "BPE") {
            bail!("{shown}: the model is {kind}, expected \"BPE\" (byte pairs), the only one that can be converted");
        }
        Ok(HubTokenizer { file: file.to_owned(), json, inner })
    }

    /// The number of a token.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// The metadata of a model of `n_vocab` tokens; those that the tokenizer lacks are unused.
    /// `further`: keys of special tokens, whose word counts before the file's own.
    ///
    /// # Errors
    /// If there are more tokens, or GGUF cannot say what the file says, naming it.
    pub fn keys(&self, n_vocab: usize, further: Vec<(String, Value)>) -> Result<Vec<(String, Value)>> {
        let model = &self.json["model"];
        let letters = self.json["pre_tokenizer"].to_string().contains("\"ByteLevel\"");
        let (tokens, kinds) = self.tokens(n_vocab)?;
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let mut keys: Vec<(String, Value)> = Vec::new();
        let added = self.added_around()?;
        let given = further.iter().find(|(name, _)| *name == key("add_bos_token")).map(|(_, v)| v);
        let adds_bos = given.map_or(added.0, |v| *v == Value::Bool(true));
        let (kind, pre) = match (letters, adds_bos) {
            (true, _) => ("gpt2", Some(self.pre_name(model["ignore_merges"].as_bool().unwrap_or(false))?)),
            // Text in UTF-8 with ▁ for spaces. The first of these always adds the token.
            (false, true) => ("gemma4", None),
            (false, false) => ("gpt2", Some("sarvam-moe")),
        };
        keys.push((key("model"), kind.into()));
        keys.extend(pre.map(|pre| (key("pre"), pre.into())));
        keys.extend([(key("tokens"), tokens.into()), (key("token_type"), kinds.into())]);
        keys.push((key("merges"), self.merges()?.into()));
        for (name, value) in [("add_bos_token", added.0), ("add_eos_token", added.1)] {
            keys.push((key(name), value.into()));
        }
        keys.retain(|(name, _)| !further.iter().any(|(n, _)| n == name));
        keys.extend(further);
        self.check(&keys)?;
        Ok(keys)
    }

    /// The texts and kinds of all tokens.
    fn tokens(&self, n_vocab: usize) -> Result<(Vec<String>, Vec<i32>)> {
        let shown = self.file.display();
        let model = &self.json["model"];
        let mut tokens: Vec<String> = (0..n_vocab).map(|i| format!("[PAD{i}]")).collect();
        let mut kinds = vec![UNUSED; n_vocab];
        let mut set = |text: &str, id: &Json, kind: i32| {
            let Some(at) = id.as_u64().map(|id| id as usize).filter(|id| *id < n_vocab) else {
                bail!("{shown}: token {text:?} has the number {id}, but the model's embedding has {n_vocab} rows")
            };
            (tokens[at], kinds[at]) = (text.to_owned(), kind);
            Ok(())
        };
        let Some(vocab) = model["vocab"].as_object() else { bail!("{shown}: \"model\" has no \"vocab\"") };
        let bytes = model["byte_fallback"].as_bool().unwrap_or(false);
        for (text, id) in vocab {
            let byte = bytes && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            set(text, id, if byte { BYTE } else { NORMAL })?;
        }
        for token in self.json["added_tokens"].as_array().into_iter().flatten() {
            let text = token["content"].as_str().unwrap_or_default();
            for flag in ["single_word", "lstrip", "rstrip"] {
                if token[flag].as_bool() == Some(true) {
                    bail!("{shown}: added token {text:?} has {flag}, which GGUF cannot express");
                }
            }
            set(text, &token["id"], if token["special"] == true { CONTROL } else { USER })?;
        }
        if let Some(text) = model["unk_token"].as_str()
            && let Some(id) = self.id(text)
        {
            set(text, &id.into(), UNKNOWN)?;
        }
        Ok((tokens, kinds))
    }

    /// The merges, `a b` each.
    fn merges(&self) -> Result<Vec<String>> {
        let merge = |m: &Json| match m {
            Json::String(line) => Some(line.clone()),
            Json::Array(pair) => match (pair.first()?.as_str()?, pair.get(1)?.as_str()?) {
                (a, b) if !a.contains(' ') && !b.contains(' ') => Some(format!("{a} {b}")),
                _ => None,
            },
            _ => None,
        };
        let list = self.json["model"]["merges"].as_array().map_or(&[][..], |list| list);
        let bad = |m: &Json| anyhow!("{}: merge {m}: expected two texts without spaces", self.file.display());
        list.iter().map(|m| merge(m).ok_or_else(|| bad(m))).collect()
    }

    /// The name of the pre-tokenizer that cuts the sample as this one does.
    fn pre_name(&self, ignore_merges: bool) -> Result<&'static str> {
        let mut cut = PreTokenizedString::from(SAMPLE);
        if let Some(pre) = self.inner.get_pre_tokenizer() {
            pre.pre_tokenize(&mut cut).map_err(|e| anyhow!("{}: its pre-tokenizer fails: {e}", self.file.display()))?;
        }
        let ends = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let want: Vec<usize> = ends.iter().map(|(_, span, _)| span.1).collect();
        for known in pre::all().filter(|p| !p.raw && p.ignore_merges == ignore_merges) {
            if ends_of(known)? == want {
                return Ok(known.names[0]);
            }
        }
        bail!(
            "{}: its pre-tokenizer ({}) cuts text as none of those that this version knows; known are {}",
            self.file.display(),
            self.json["pre_tokenizer"],
            pre::names().join(", ")
        )
    }

    /// Whether a text gets a token before it, and one after it.
    fn added_around(&self) -> Result<(bool, bool)> {
        let (bare, whole) = (self.encode("a", false)?, self.encode("a", true)?);
        let at = whole.windows(bare.len().max(1)).position(|w| w == bare).unwrap_or(0);
        Ok((at > 0, at + bare.len() < whole.len()))
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let shown = self.file.display();
        let ids = self.inner.encode(text, special).map_err(|e| anyhow!("{shown}: it cannot encode {text:?}: {e}"))?;
        Ok(ids.get_ids().to_vec())
    }

    /// Fails unless the metadata give the numbers that the file gives.
    fn check(&self, keys: &[(String, Value)]) -> Result<()> {
        let mut writer = Writer::new();
        for (key, value) in keys {
            writer.set(key, value.clone());
        }
        let ours = Tokenizer::new(&Gguf::from_bytes(writer.to_bytes()?, &self.file)?)?;
        for text in SAMPLE.split_inclusive(' ').chain(SAMPLE.lines()).chain([SAMPLE]) {
            let (want, have) = (self.encode(text, false)?, ours.encode(text, false, true)?);
            if want != have {
                bail!(
                    "{}: {text:?} has the token IDs {want:?}, but {have:?} by what GGUF can express of this tokenizer: \
                     it is not converted",
                    self.file.display()
                );
            }
        }
        Ok(())
    }
}

/// Where the pieces end into which a known pre-tokenizer cuts the sample.
fn ends_of(known: &KnownPre) -> Result<Vec<usize>> {
    let pieces = Splitter::new(known.rules)?.pieces(SAMPLE).into_iter();
    Ok(pieces
        .scan(0, |end, piece| {
            *end += piece.len();
            Some(*end)
        })
        .collect())
}
