//! `tandem run`: one prompt, one text. stdout carries the model's text and nothing else.

mod input;
mod output;
mod prefix;
mod saved;
mod start;

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use super::args;
use super::errors::{Failure, incomplete, no_answer, unanswered, usage};
use super::files::{AnswerFile, read_text};
use super::opened::{Mode, Opened};
use super::session_file::SessionFile;
use super::stats::stats;
use super::terminal::PromptBar;
use super::{speculation, structured};
use crate::session::{Interrupted, Session};
use crate::store;
use crate::talk::{self, End, Generated, ToolUse, Turns};
use crate::text::grammar::Grammars;
use output::OutputWriter;
use saved::Saved;
use start::Start;

/// Runs the verb.
pub(super) fn run(a: &args::RunArgs) -> Result<()> {
    input::check_files(a)?;
    let prompt = input::prompt(a)?;
    let prefix = a.prefix_file.as_deref().map(read_text).transpose()?;
    let mut form = structured::form(&a.structured)?;
    let tools = structured::tools(a)?;
    let mode = Mode { n_seq: 1, raw: a.is_raw(), leaves: true, requests: false };
    let opened = Opened::open(&a.model, &a.sampling, &a.talk, &a.speculation, mode)?;
    let Opened { mut session, tokenizer, turns, settings, speculation: mut drafts, interrupted } = opened;
    let turns = check_turns(a, turns)?;
    let tools = match (tools, &turns) {
        (Some(tools), Some(turns)) => Some(turns.check_tools(tools).context(Failure::Usage)?),
        _ => None,
    };
    let grammars = if form.is_some() || tools.is_some() { Some(Grammars::new(&tokenizer)) } else { None };
    let grammars = grammars.transpose().context(Failure::Model)?;
    let rules = tools.as_ref().zip(grammars.as_ref()).map(|(t, g)| t.rules(&tokenizer, g).context(Failure::Usage));
    let rules = rules.transpose()?.unwrap_or_default();
    let grammar = grammars.as_ref().zip(form.take()).map(|(g, f)| g.start(&f).context(Failure::Usage)).transpose()?;

    let start = Instant::now(); // loading what is known is part of what the first token takes
    let mut file = a.session.as_deref().map(SessionFile::new);
    file.iter().try_for_each(|_| store::prepare(&session))?;
    let mut saved = match file.as_ref().filter(|f| f.exists()) {
        Some(file) => Saved::load(file.path(), &mut session, turns.is_some())?,
        None => Saved { chat: turns.is_some(), ..Saved::default() },
    };
    let seed = settings.seed();
    let sampler = settings.sampler(seed.wrapping_add(saved.drawn), &tokenizer)?;
    let mut bar = PromptBar::new();
    let progress = &mut |p| bar.progress(p);
    let begin = Start { flags: a, tokenizer: &tokenizer, sampler, grammar, tools: tools.as_ref(), rules, progress };
    let (mut writer, logits) = match &turns {
        Some(turns) => begin.chat(&mut session, turns, &mut saved, &prompt, prefix.as_deref())?,
        None => begin.raw(&mut session, &mut saved, &prompt, prefix.as_deref())?,
    };
    let (read, read_s) = (bar.finish(), start.elapsed().as_secs_f64());
    let prompt = session.tokens(0).to_vec();
    let prompt_tokens = prompt.len();

    let mut out = AnswerFile::open(a.output.as_deref())?; // not before there is something to write
    let start = Instant::now();
    let mut shown = OutputWriter::new(&mut out, a.json, tools.as_ref().and_then(ToolUse::markup));
    let show = &mut |part, text: &str| shown.write(part, text);
    let ended = talk::write(&mut session, &mut drafts, 0, &mut writer, logits, &interrupted, show);
    let (made_s, complete) = (start.elapsed().as_secs_f64(), writer.is_complete());
    let mut said = std::mem::take(&mut writer.generated);
    drop(writer);
    if let (Some(tools), Ok(ended)) = (&tools, &ended) {
        said.take_calls(tools, ended);
    }
    let ended = ended.and_then(|ended| shown.finish(&said).map(|()| ended));
    // A GPU that is lost is known before something is saved.
    let settled = if file.is_some() { session.settle() } else { Ok(()) };
    if let Some(file) = &mut file {
        // Also when nobody reads stdout any more, or the GPU was lost.
        let stopped = matches!(ended, Ok(End::Stop(_)));
        let mut whole = said.clone();
        whole.answer.insert_str(0, a.prefill.as_deref().unwrap_or_default());
        saved.keep(&whole, stopped, &mut session, &tokenizer, &prompt)?;
        file.save(|path| store::save(path, &session, 0, &saved.note()))?;
    }
    let ended = ended.and_then(|ended| settled.map(|()| ended))?;
    let summary = Summary { said, ended, complete, seed, prompt_tokens, read, read_s, made_s };
    summary.print(a, &mut out)?;
    stats(&session, &a.model)?;
    speculation::stats(&drafts, &session, &a.model);
    summary.status(a, &session, turns.is_some())
}

/// Whether the prompt is a message or a text.
fn check_turns(a: &args::RunArgs, turns: Option<Turns>) -> Result<Option<Turns>> {
    let asked = a.talk.system_prompt.is_some() || a.talk.system_prompt_file.is_some();
    match turns {
        None if a.tools.is_some() || a.prefill.is_some() => {
            let flag = if a.tools.is_some() { "--tools" } else { "--prefill" };
            usage(format!(
                "{flag}: this model has no chat template; give one that takes tools with --chat-template-file"
            ))
        }
        None if a.is_raw() && asked => usage("-sys has no place in a text that --raw continues".into()),
        Some(turns) => Ok(Some(turns)),
        None if a.chat || asked => usage(
            "this model has no chat template: give one with --chat-template-file, or continue plain text without \
             --chat and -sys"
                .into(),
        ),
        None => Ok(None),
    }
}

/// A generation that is over.
struct Summary {
    said: Generated,
    ended: End,
    /// Whether the text is whole by its grammar.
    complete: bool,
    seed: u64,
    prompt_tokens: usize,
    /// Of the prompt's tokens, those that were read now.
    read: usize,
    read_s: f64,
    made_s: f64,
}

impl Summary {
    /// Writes the object that `--json` asks for, and tells the user about the generation.
    fn print(&self, a: &args::RunArgs, out: &mut dyn Write) -> Result<()> {
        let Summary { said, ended, complete, seed, prompt_tokens, read, read_s, made_s } = self;
        let rate = |n: usize, s: f64| n as f64 / s.max(1e-9);
        let made = said.tokens.len();
        if a.json {
            let calls = !said.calls.is_empty() && ended.is_whole();
            let finish = if calls { "tool_calls" } else { ended.name() };
            let mut object = json!({
                "text": said.answer, "reasoning": said.reasoning, "finish": finish, "answer_began": said.began(ended),
                "complete": complete,
                "seed": seed,
                "tokens": { "prompt": prompt_tokens, "read": read, "generated": made },
                "seconds": { "prompt": read_s, "generation": made_s },
                "tokens_per_second": { "prompt": rate(*read, *read_s), "generation": rate(made, *made_s) },
                "logprobs": a.logprobs.map(|_| &said.logprobs),
            });
            if a.tools.is_some() {
                object["tool_calls"] = said.own_calls();
            }
            if !said.incomplete.is_empty() {
                object["incomplete_tool_call"] = said.incomplete.clone().into();
            }
            writeln!(out, "{object}")?;
        } else if a.output.is_none() && std::io::stdout().is_terminal() && !said.answer.ends_with('\n') {
            say!("");
        }
        out.flush()?;
        tracing::info!(
            "prompt: {read} tokens, {:.1} tokens/s; output: {made} tokens, {:.1} tokens/s; {}",
            rate(*read, *read_s),
            rate(made, *made_s),
            ended.describe(),
        );
        Ok(())
    }

    /// Whether the generation was what was asked for; else the error that ends the program.
    /// `answers`: the text is an answer, not what continues a text.
    fn status(&self, a: &args::RunArgs, session: &Session, answers: bool) -> Result<()> {
        let cut = || format!("the text is not complete by its grammar: {}", self.ended.describe());
        if self.ended == End::Interrupted {
            if !self.complete {
                tracing::warn!("{}", cut());
            }
            return Err(Interrupted.into());
        }
        if let Some(why) = unanswered(&self.said, &self.ended).filter(|_| answers) {
            no_answer(why)?;
        }
        if !self.complete {
            incomplete(cut())?;
        }
        if self.ended != End::Context {
            return Ok(());
        }
        let (n_ctx, made) = (session.n_ctx(), self.said.tokens.len());
        // A text that is continued without a limit has no other end than the context, nor has an
        // answer without the model's own end.
        if a.talk.n_predict < 0 && (a.talk.ignore_eos || !answers) {
            tracing::warn!("the context of {n_ctx} tokens is full; a larger -c gives more room");
            return Ok(());
        }
        let why = format!(
            "the context of {n_ctx} tokens filled up after {made} tokens of the answer, which is cut there; a larger -c \
             gives more room"
        );
        Err(anyhow::anyhow!(why).context(Failure::Context))
    }
}
