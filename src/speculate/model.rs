//! Drafts from a smaller model of the same vocabulary, which has a session of its own.

use anyhow::{Result, bail};

use crate::sample::logprob_of;
use crate::session::{ContextFull, Output, Session, Want};
use crate::text::Tokenizer;

/// Tokens of the vocabularies' ends that may be missing in one of them: padding, and special tokens that the other model was
/// not trained with. llama.cpp's bound (common/speculative.cpp).
const FEWER: usize = 128;

/// Tokens from which on it reads what is new before it drafts.
const LAG: usize = 64;

/// A model that drafts.
#[derive(Debug)]
pub struct DraftModel {
    session: Session,
    /// Tokens after which nothing is drafted.
    ends: Vec<u32>,
    /// Tokens that the other model knows.
    n_vocab: usize,
    /// Whether going back from a draft needs a checkpoint taken before it: a recurrent block is not there any more.
    needs_checkpoint: bool,
}

/// Fails if a draft model's vocabulary is another one than the model's, so that its drafts would be other texts.
///
/// # Errors
/// The sizes, or the first token that differs with both of its texts.
pub fn check_vocabulary(model: &Tokenizer, draft: &Tokenizer) -> Result<()> {
    let (n, m) = (model.n_vocab(), draft.n_vocab());
    // Texts first: they say more than numbers.
    for id in 0..n.min(m) as u32 {
        let special = model.is_control(id) && draft.is_control(id);
        let (a, b) = (model.piece(id), draft.piece(id));
        if a != b && !special {
            bail!(
                "token {id} is {b:?} in the draft model and {a:?} in the model: a draft model of the same vocabulary \
                 expected"
            );
        }
    }
    if n.abs_diff(m) > FEWER {
        bail!("the draft model has {m} tokens and the model {n}: a difference of at most {FEWER} expected");
    }
    Ok(())
}

impl DraftModel {
    /// A model that drafts for one with `n_vocab` tokens, as many sequences as its `session` has. Drafts end with the tokens
    /// in `ends`.
    pub fn new(mut session: Session, ends: Vec<u32>, n_vocab: usize) -> DraftModel {
        session.draft_only();
        let needs_checkpoint = session.has_recurrent_blocks();
        DraftModel { session, ends, n_vocab, needs_checkpoint }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Reads `tokens`, if they are many more than it has read.
    pub(super) fn follow(&mut self, seq: usize, tokens: &[u32]) -> Result<()> {
        let known = self.session.tokens(seq).iter().zip(tokens).take_while(|(a, b)| a == b).count();
        if tokens.len() - known < LAG {
            return Ok(());
        }
        self.session.rewind(seq, known)?;
        match self.session.feed(seq, &tokens[known..], Want::None) {
            Err(e) if e.is::<ContextFull>() => Ok(()), // nothing is drafted then
            read => read.map(drop),
        }
    }

    /// At most `most` tokens that may follow `tokens` and `next`, up to the first that has a probability below `p_min`. None
    /// where the context has no room.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub(super) fn draft(
        &mut self,
        (seq, tokens, next): (usize, &[u32], u32),
        most: usize,
        p_min: f32,
    ) -> Result<Vec<u32>> {
        let known = self.session.tokens(seq).iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.session.rewind(seq, known)?;
        let unread = [&tokens[known..], &[next]].concat();
        let want = if p_min > 0.0 { Want::Last } else { Want::Argmax };
        // After drafts that were all right two tokens are new, which need no checkpoints as a prompt does.
        let read = if unread.len() <= 1 + self.session.most_drafts() {
            self.session.verify(&[(seq, &unread, want)]).map(|mut rows| rows[0].pop().expect("an output for each row"))
        } else {
            self.session.feed(seq, &unread, want)
        };
        let mut output = match read {
            Err(e) if e.is::<ContextFull>() => return Ok(Vec::new()),
            output => output?,
        };
        if self.needs_checkpoint {
            self.session.checkpoint(seq)?;
        }
        let mut drafts = Vec::with_capacity(most);
        loop {
            let token = match &output {
                Output::Argmax { token, .. } => *token,
                Output::Logits(logits) => {
                    let token = crate::sample::argmax(logits);
                    if logprob_of(logits, token).exp() < p_min {
                        break;
                    }
                    token
                }
            };
            if token as usize >= self.n_vocab {
                break; // of the draft model alone
            }
            drafts.push(token);
            let full = self.session.tokens(seq).len() == self.session.n_ctx();
            if drafts.len() == most || full || self.ends.contains(&token) {
                break;
            }
            output = self.session.feed(seq, &[token], want)?;
        }
        Ok(drafts)
    }
}
