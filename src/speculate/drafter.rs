//! What drafts: a model's own heads, a draft model, the text itself, or a test's script.

use std::fmt::{self, Debug, Formatter};

use anyhow::Result;

use super::lookup::look_up;
use super::model::DraftModel;
use crate::model_file::identity;
use crate::session::{DraftLogits, HEADS_LAG, Session};

/// Drafts with a model's heads: the session, the sequence, the token that was just chosen, how many tokens at most, and the
/// probability below which a token ends the draft.
pub type HeadDraft = fn(&mut Session, usize, u32, usize, f32) -> Result<Vec<u32>>;

/// Drafts as a test says: the sequence, its tokens with the newest, and how many at most.
pub struct Script(#[allow(clippy::type_complexity)] pub Box<dyn FnMut(usize, &[u32], usize) -> Vec<u32> + Send>);

impl Debug for Script {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Script")
    }
}

/// A source of drafts.
#[derive(Debug)]
pub enum Drafter {
    /// The heads that predict further tokens, in the model's own file.
    Heads(HeadDraft),
    /// Another model of the same vocabulary.
    Model(Box<DraftModel>),
    /// The prompt and what was generated.
    Lookup,
    /// For tests.
    Script(Script),
}

impl Drafter {
    /// As `--spec` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Drafter::Heads(_) => "mtp",
            Drafter::Model(_) => "draft",
            Drafter::Lookup => "ngram",
            Drafter::Script(_) => "script",
        }
    }

    /// What a file that remembers it calls it: the models that draft are told apart.
    pub(super) fn identity(&self, session: &Session) -> String {
        let gguf = session.engine().gguf();
        match self {
            Drafter::Model(model) => format!("draft {}", identity(model.session().engine().gguf(), false)),
            Drafter::Heads(_) if gguf.drafter().is_some() => format!("mtp {}", identity(gguf, true)),
            _ => self.name().into(),
        }
    }

    /// Before anything is known: how often the first draft is right, and what it costs in single steps of the model.
    pub(super) fn guess(&self) -> (f64, f64) {
        match self {
            Drafter::Heads(_) => (0.75, 0.1),
            Drafter::Model(_) => (0.65, 0.2),
            Drafter::Lookup | Drafter::Script(_) => (0.5, 0.0),
        }
    }

    /// The logits that its drafts for this session computed.
    pub(super) fn logits(&self, session: &Session) -> Option<DraftLogits> {
        match self {
            Drafter::Heads(_) => Some(session.draft_logits()),
            Drafter::Model(model) => Some(model.session().draft_logits()),
            Drafter::Lookup | Drafter::Script(_) => None,
        }
    }

    /// What a token that it drafts now takes, of what one takes that is chosen among the whole vocabulary; None where that
    /// may be less soon.
    pub(super) fn work(&self, session: &Session, seq: usize) -> Option<f64> {
        match self {
            Drafter::Heads(_) => session.draft_work(session.tokens(seq)),
            Drafter::Model(model) => model.session().draft_work(session.tokens(seq)), // it reads the text when it drafts
            Drafter::Lookup | Drafter::Script(_) => Some(1.0),
        }
    }

    /// Whether it may be one that was made for another model.
    pub(super) fn may_be_useless(&self) -> bool {
        matches!(self, Drafter::Heads(_) | Drafter::Model(_))
    }

    /// Of tokens that came since it drafted, how many it reads before it drafts again.
    pub(super) fn reads(&self, missed: usize) -> usize {
        match self {
            Drafter::Heads(_) => missed.min(HEADS_LAG),
            Drafter::Model(_) => missed,
            Drafter::Lookup | Drafter::Script(_) => 0,
        }
    }

    /// Reads what is new of a sequence where that is much, as a prompt is.
    pub(super) fn follow(&mut self, session: &Session, seq: usize) -> Result<()> {
        match self {
            Drafter::Model(model) => model.follow(seq, session.tokens(seq)),
            _ => Ok(()), // heads read prompts with the model
        }
    }

    /// At most `most` tokens that may follow what a sequence has read and `next`.
    pub(super) fn draft(
        &mut self,
        session: &mut Session,
        (seq, next): (usize, u32),
        most: usize,
        p_min: f32,
    ) -> Result<Vec<u32>> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let mut drafts = match self {
            Drafter::Heads(draft) => draft(session, seq, next, most, p_min)?,
            Drafter::Model(model) => model.draft((seq, session.tokens(seq), next), most, p_min)?,
            Drafter::Lookup => look_up(session.tokens(seq), next, most),
            Drafter::Script(script) => (script.0)(seq, &[session.tokens(seq), &[next]].concat(), most),
        };
        // Whatever drafts, ids outside the vocabulary never reach the model.
        let valid = drafts.iter().take(most).take_while(|t| (**t as usize) < session.n_vocab()).count();
        drafts.truncate(valid);
        Ok(drafts)
    }
}
