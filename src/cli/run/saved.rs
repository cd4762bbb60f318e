//! What a session file of `tandem run` holds along with the sequence: the conversation, or the
//! tokens not yet read.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cli::errors::usage;
use crate::session::Session;
use crate::store;
use crate::talk::Generated;
use crate::text::Tokenizer;

/// What a session file of `tandem run` holds along with the sequence.
#[derive(Default)]
pub(super) struct Saved {
    /// Whether it is a conversation, not plain text.
    pub(super) chat: bool,
    pub(super) messages: Vec<Value>,
    /// Tokens of a continued text that were written and not read.
    pub(super) pending: Vec<u32>,
    pub(super) drawn: u64,
    /// The seed that a conversation began with in `tandem chat`.
    pub(super) seed: Option<u64>,
}

impl Saved {
    pub(super) fn load(path: &std::path::Path, session: &mut Session, chat: bool) -> Result<Saved> {
        let note = store::load(path, session, 0)?;
        let name = path.display();
        let note: Value =
            serde_json::from_str(&note).with_context(|| format!("{name}: not a session of this program"))?;
        let drawn = note["drawn"].as_u64().unwrap_or(0);
        match (note["messages"].as_array(), chat) {
            (Some(list), true) => {
                let seed = note["seed"].as_u64();
                Ok(Saved { chat, messages: list.clone(), drawn, seed, ..Saved::default() })
            }
            (Some(_), false) => usage(format!("{name} holds a conversation, which --raw cannot continue")),
            (None, true) => usage(format!("{name} holds plain text, not a conversation; continue it with --raw")),
            (None, false) => {
                let list = note["pending"].as_array().into_iter().flatten();
                let pending = list.filter_map(|v| u32::try_from(v.as_u64()?).ok()).collect();
                Ok(Saved { pending, drawn, ..Saved::default() })
            }
        }
    }

    /// Takes in what was generated after the tokens of `prompt`. The sequence may hold less than that where the model
    /// failed; the rest is pending then.
    pub(super) fn keep(
        &mut self,
        said: &Generated,
        stopped: bool,
        session: &mut Session,
        tokenizer: &Tokenizer,
        prompt: &[u32],
    ) -> Result<()> {
        self.drawn += 1;
        if self.chat {
            match said.message() {
                Some(message) => self.messages.push(message),
                None => drop(self.messages.pop()), // the question may be put again
            }
        } else {
            let (mut shown, mut rest) = (said.tokens.len(), "");
            if stopped {
                // A stop text, and what came with it, was not written; it may begin within a token.
                let mut bytes = Vec::new();
                let whole = |t: &&u32| {
                    bytes.extend(tokenizer.bytes(**t, false));
                    said.answer.as_bytes().starts_with(&bytes)
                };
                shown = said.tokens.iter().take_while(whole).count();
                let text: usize = said.tokens[..shown].iter().map(|t| tokenizer.bytes(*t, false).len()).sum();
                rest = said.answer.get(text..).unwrap_or_default();
            }
            session.rewind(0, session.tokens(0).len().min(prompt.len() + shown))?;
            self.pending = [prompt, &said.tokens[..shown]].concat().split_off(session.tokens(0).len());
            self.pending.extend(tokenizer.encode(rest, false, false)?);
        }
        Ok(())
    }

    pub(super) fn note(&self) -> String {
        let mut note = json!({ "drawn": self.drawn });
        match self.chat {
            true => note["messages"] = self.messages.clone().into(),
            false => note["pending"] = self.pending.clone().into(),
        }
        if let Some(seed) = self.seed {
            note["seed"] = seed.into();
        }
        note.to_string()
    }
}
