//! A form is tried before it is compiled, where nothing is lost if that takes too long: in another
//! process.
//!
//! llguidance's limits do not bound everything: of some forms (`multipleOf` with others, a long
//! `allOf` of patterns, the overlap of thousands of words) it explores millions of states before it
//! looks at one of them. A thread can be neither ended nor bounded, a process can. So the program
//! re-executes itself ([`try_with`]), and what it runs there ([`run_trial`]) compiles the form for
//! a vocabulary of single bytes: what can take long does not depend on the vocabulary, apart from
//! what llguidance's limits do bound. If that ends within the process's limits, the form is
//! compiled here. Whether it is right is not the question there: a mistake is told where it is
//! compiled.

use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};
use serde_json::{Value, json};

use super::{Kind, compiled, factory};
use crate::text::Tokenizer;

/// How a form is tried, if it is.
static WAY: OnceLock<fn(&str) -> Result<()>> = OnceLock::new();

/// Has every form tried in this way before it is compiled. `way` runs [`run_trial`] with its
/// argument in a process of its own, and fails if that does not come to an end.
pub fn try_with(way: fn(&str) -> Result<()>) {
    let _ = WAY.set(way); // the first one stays
}

/// How a form is tried, if it is.
pub(super) fn way() -> Option<fn(&str) -> Result<()>> {
    WAY.get().copied()
}

/// A form, and what is to be known of a vocabulary to compile it.
pub(super) struct Trial {
    form: Value,
    tokens: u32,
    /// Control tokens that a grammar may name.
    named: Vec<(u32, String)>,
}

impl Trial {
    /// For a form in this vocabulary.
    pub(super) fn new(kind: &Kind, tokenizer: &Tokenizer) -> Trial {
        let form = match kind {
            Kind::JsonSchema(schema) => json!({ "json_schema": schema }),
            Kind::Gbnf(text) => json!({ "gbnf": text }),
            Kind::Lark(text) => json!({ "lark": text }),
            Kind::Regex(text) => json!({ "regex": text }),
        };
        if !kind.names_tokens() {
            return Trial { form, tokens: 256, named: Vec::new() };
        }
        let tokens = tokenizer.n_vocab() as u32;
        let named = (0..tokens).filter(|id| tokenizer.is_control(*id) || tokenizer.is_eog(*id));
        let named = named.map(|id| (id, tokenizer.piece(id).to_owned())).collect();
        Trial { form, tokens: tokens.max(256), named }
    }

    /// What [`run_trial`] reads.
    pub(super) fn to_json(&self) -> String {
        json!({ "form": self.form, "tokens": self.tokens, "named": self.named }).to_string()
    }
}

/// Compiles a form as [`try_with`] was handed it.
///
/// # Errors
/// If the form has a mistake, or `trial` is none.
pub fn run_trial(trial: &str) -> Result<()> {
    let trial: Value = serde_json::from_str(trial).context("not JSON")?;
    let (name, form) = trial["form"].as_object().and_then(|o| o.iter().next()).context("no form")?;
    let text = || form.as_str().unwrap_or_default().to_owned();
    let kind = match name.as_str() {
        "json_schema" => Kind::JsonSchema(form.clone()),
        "gbnf" => Kind::Gbnf(text()),
        "lark" => Kind::Lark(text()),
        _ => Kind::Regex(text()),
    };
    // Single bytes first; a control token has the place that it has in the vocabulary.
    let tokens = trial["tokens"].as_u64().unwrap_or(256).clamp(256, 1 << 24) as usize;
    let mut words: Vec<Vec<u8>> = (0..tokens).map(|id| u8::try_from(id).map(|b| vec![b]).unwrap_or_default()).collect();
    let mut named = Vec::new();
    for pair in trial["named"].as_array().into_iter().flatten() {
        let (Some(id), Some(piece)) = (pair[0].as_u64(), pair[1].as_str()) else { continue };
        if let Some(word) = words.get_mut(id as usize) {
            *word = [&[TokTrie::SPECIAL_TOKEN_MARKER], piece.as_bytes()].concat();
            named.push((id as u32, piece));
        }
    }
    let env: TokEnv =
        Arc::new(ApproximateTokEnv::new(TokTrie::from(&TokRxInfo::new(tokens as u32, INVALID_TOKEN), &words)));
    let token = |text: &str| Some(named.iter().find(|(_, piece)| *piece == text).map_or(0, |(id, _)| *id));
    compiled(&factory(&env)?, &kind, &token, &[]).map(drop)
}
