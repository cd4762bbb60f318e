//! The beginning of a generation: the prompt becomes tokens, as a message or as a text to continue,
//! and is read.

use anyhow::{Context, Result};

use super::prefix;
use super::saved::Saved;
use crate::cli::args;
use crate::cli::errors::usage;
use crate::sample::Sampler;
use crate::session::{ContextFull, Output, Progress, Session};
use crate::talk::{self, CallRules, GenParams, ToolUse, Turns, Writer};
use crate::text::grammar::Grammar;
use crate::text::{Reader, Tokenizer};

/// What a generation needs besides its prompt.
pub(super) struct Start<'t, 'p> {
    pub(super) flags: &'t args::RunArgs,
    pub(super) tokenizer: &'t Tokenizer,
    pub(super) sampler: Sampler,
    pub(super) grammar: Option<Grammar>,
    pub(super) tools: Option<&'t ToolUse>,
    pub(super) rules: CallRules,
    pub(super) progress: &'p mut dyn FnMut(Progress),
}

impl<'t> Start<'t, '_> {
    /// Reads the conversation in `saved` with `prompt` as its next message; `prefix` is the system
    /// message.
    ///
    /// # Errors
    /// If the template fails, the prompt does not fit into the context, or it cannot be read.
    pub(super) fn chat(
        self,
        session: &mut Session,
        turns: &Turns,
        saved: &mut Saved,
        prompt: &str,
        prefix: Option<&str>,
    ) -> Result<(Writer<'t>, Output)> {
        let tokenizer = self.tokenizer;
        if let Some(text) = self.flags.talk.system()?.as_deref().or(prefix) {
            talk::set_system(&mut saved.messages, text);
        }
        tokenizer.check_length(prompt, session.n_ctx())?; // before a template makes more of it
        saved.messages.push(talk::message("user", prompt));
        let list = self.tools.map(ToolUse::list);
        let (text, reader) = match &self.flags.prefill {
            Some(begun) => {
                let all = [&saved.messages[..], &[talk::message("assistant", begun)]].concat();
                turns.begun(&all, self.tools, None).context("--prefill")?
            }
            None => {
                let text = turns.prompt_with(&saved.messages, list, None, true)?;
                let reader = turns.reader(&text, self.tools);
                (text, reader)
            }
        };
        tokenizer.check_length(text.text(), session.n_ctx())?;
        let ids = tokenizer.encode_prompt(&text)?;
        tracing::debug!("prompt: {} message(s) became {} tokens", saved.messages.len(), ids.len());
        tracing::trace!("prompt as the template made it: {:?}", text.text());
        check_room(session, 0, ids.len())?; // with the whole count, before the first of it is read
        if prefix.is_some() {
            let system = &saved.messages[..saved.messages.len() - 1];
            let other = [system, &[talk::message("user", "")]].concat();
            let other = tokenizer.encode_prompt(&turns.prompt_with(&other, list, None, true)?)?;
            prefix::read(session, &ids[..talk::shared(&ids, &other)], self.progress)?;
        }
        let params = self.params().of(turns);
        let writer = Writer::with_calls(tokenizer, self.sampler, self.grammar, reader, params, &ids, self.rules);
        let logits = talk::read(session, 0, tokenizer, &ids, writer.want(), self.progress)?;
        Ok((writer, logits))
    }

    /// Continues the text in the session with `prefix` and `prompt`, as they are.
    ///
    /// # Errors
    /// If there is no text at all, it does not fit into the context, or it cannot be read.
    pub(super) fn raw(
        self,
        session: &mut Session,
        saved: &mut Saved,
        prompt: &str,
        prefix: Option<&str>,
    ) -> Result<(Writer<'t>, Output)> {
        let tokenizer = self.tokenizer;
        let text = prefix.unwrap_or_default().to_owned() + prompt;
        tokenizer.check_length(&text, session.n_ctx())?;
        let mut ids = std::mem::take(&mut saved.pending);
        ids.extend(match session.tokens(0).is_empty() {
            true => tokenizer.encode_beginning(&text)?,
            false => tokenizer.encode(&text, false, true)?,
        });
        if ids.is_empty()
            && let Some(&last) = session.tokens(0).last()
        {
            // Nothing is added to a session: its last token is read once more, since logits follow
            // a token.
            session.rewind(0, session.tokens(0).len() - 1)?;
            ids.push(last);
        }
        if ids.is_empty() {
            return usage("the prompt is empty; give some text with -p, -f or on stdin".into());
        }
        let used = session.tokens(0).len();
        tracing::debug!("prompt: {} bytes of text became {} tokens, after {used} known ones", text.len(), ids.len());
        check_room(session, used, ids.len())?;
        if let Some(prefix) = prefix {
            // One token at least is left to read: logits follow it.
            let known = talk::shared(&ids[..ids.len() - 1], &tokenizer.encode_beginning(prefix)?);
            prefix::read(session, &ids[..known], self.progress)?;
        }
        let done = session.tokens(0).len() - used;
        let whole = [session.tokens(0), &ids[done..]].concat();
        let params = self.params();
        let writer = Writer::new(tokenizer, self.sampler, self.grammar, Reader::plain(), params, &whole);
        let logits = session.feed_with_progress(0, &ids[done..], writer.want(), self.progress)?;
        Ok((writer, logits))
    }

    fn params(&self) -> GenParams {
        GenParams { logprobs: self.flags.logprobs, ..self.flags.talk.params() }
    }
}

/// Fails if the context has no room for what is given.
fn check_room(session: &Session, used: usize, given: usize) -> Result<()> {
    match used + given > session.n_ctx() {
        true => Err(ContextFull { n_ctx: session.n_ctx(), used, given }.into()),
        false => Ok(()),
    }
}
