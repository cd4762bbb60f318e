//! A conversation under way: its messages, what the model has read of them, and the answers that it
//! writes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::facts;
use super::lines::Lines;
use super::screen::{AnswerWriter, Screen, aside, styled};
use crate::cli::args;
use crate::cli::echo::Quiet;
use crate::cli::errors::unanswered;
use crate::cli::human::grouped;
use crate::cli::session_file::SessionFile;
use crate::cli::settings::Settings;
use crate::cli::signals;
use crate::cli::terminal::PromptBar;
use crate::session::{ContextFull, Session};
use crate::speculate::Speculation;
use crate::store;
use crate::talk::{self, End, GenParams, Generated, Turns, Writer};
use crate::text::Tokenizer;

/// States up to this size are saved after every answer; larger ones at the end, the messages after
/// every answer.
const SAVED_AT_ONCE: usize = 64 << 20;

/// Shares of the context. From the first on a notice says how full it is (or when another turn like
/// the last does not fit); one part in the second is kept free for an answer of unknown length.
const NEARLY_FULL: f64 = 0.8;
const ANSWER: usize = 8;

/// A conversation under way.
pub(super) struct Chat<'t> {
    pub(super) session: Session,
    pub(super) speculation: Speculation,
    pub(super) tokenizer: &'t Tokenizer,
    pub(super) turns: Turns,
    /// `{role, content, reasoning_content}`, as templates read them.
    pub(super) messages: Vec<Value>,
    pub(super) settings: Settings,
    pub(super) seed: u64,
    /// What followed the last message, while it is answered again.
    pub(super) replaced: Vec<Value>,
    /// What was taken out to be edited, until the next message or command.
    pub(super) edited: Vec<Value>,
    /// What `/read` puts before the next message, where stdin is no terminal.
    pub(super) ahead: String,
    /// The files of [`Command::Save`], which may be saved to again.
    pub(super) saved: Vec<SessionFile>,
    /// Answers drawn so far: each has a seed of its own, and all of them follow from the first.
    pub(super) drawn: u64,
    /// Whether the seed was asked for.
    pub(super) seeded: bool,
    pub(super) params: GenParams,
    pub(super) when_full: args::WhenFull,
    pub(super) file: Option<SessionFile>,
    pub(super) screen: Screen,
    pub(super) interrupted: Arc<AtomicBool>,
    pub(super) last: Option<Last>,
}

/// What the last answer took.
pub(super) struct Last {
    pub(super) read: usize,
    pub(super) kept: usize,
    pub(super) read_s: f64,
    pub(super) made: usize,
    /// Of `made`, those of reasoning.
    pub(super) thought: usize,
    pub(super) made_s: f64,
    pub(super) ended: String,
}

impl Chat<'_> {
    /// The first lines on a terminal, with a new model or with another one.
    pub(super) fn greet(&self, new: bool) {
        if tracing::enabled!(tracing::Level::INFO) {
            self.show_model();
        }
        if new {
            say!("{}", self.begins());
            self.show_last_turn();
        } else if self.turn_count() > 0 {
            say!("(the conversation goes on; this model reads it with the next message)");
        }
    }

    /// Shows what runs.
    pub(super) fn show_model(&self) {
        let engine = self.session.engine();
        say!("{}; {}", facts::model(engine.gguf()), facts::placement(&engine.tape, &engine.plan));
        say!("{}", facts::limits(&self.session));
    }

    /// Bytes of a file that could fit into the context: tokens of more than 16 are rare.
    pub(super) fn most_bytes(&self) -> usize {
        self.session.n_ctx().saturating_mul(16)
    }

    /// What was said before, if something was, and where help is.
    pub(super) fn begins(&self) -> String {
        match self.turn_count() {
            0 => "/help lists the commands, Ctrl-C stops an answer".into(),
            n => format!(
                "continuing after {}; {} of {} tokens used; /help lists the commands",
                count_turns(n),
                self.session.tokens(0).len(),
                self.session.n_ctx()
            ),
        }
    }

    /// Shows the last message and its answer, as a reminder.
    pub(super) fn show_last_turn(&self) {
        let Some(at) = self.messages.iter().rposition(|m| m["role"] == "user") else { return };
        let text = |m: &Value| m["content"].as_str().unwrap_or_default().to_owned();
        styled(&format!("\n> {}\n", head(&self.screen.shown(&text(&self.messages[at]), false))));
        for answer in &self.messages[at + 1..] {
            styled(&format!("{}\n", tail(self.screen.shown(&text(answer), self.screen.markdown).trim_end())));
        }
    }

    /// Reads what is new of the conversation and writes the answer, which becomes part of it.
    pub(super) fn answer(&mut self) -> Result<End> {
        self.interrupted.store(false, Ordering::SeqCst);
        self.session.stop_flag().store(false, Ordering::SeqCst);
        if signals::leaving() {
            return Ok(End::Interrupted);
        }
        let prompt = self.turns.prompt(&self.messages, true)?;
        let ids = self.tokenizer.encode_prompt(&prompt)?;
        let sampler = self.settings.sampler(self.seed.wrapping_add(self.drawn), self.tokenizer)?;
        self.drawn += 1;
        let reader = self.turns.reader(&prompt, None);
        let mut writer = Writer::new(self.tokenizer, sampler, None, reader, self.params.clone(), &ids);

        let quiet = Quiet::begin();
        let start = Instant::now();
        let mut reading = PromptBar::new();
        let want = writer.want();
        let logits = talk::read(&mut self.session, 0, self.tokenizer, &ids, want, &mut |p| reading.progress(p))?;
        let (read, read_s) = (reading.finish(), start.elapsed().as_secs_f64());

        let start = Instant::now();
        let mut ink = AnswerWriter::new(&self.screen);
        let ended = talk::write(
            &mut self.session,
            &mut self.speculation,
            0,
            &mut writer,
            logits,
            &self.interrupted,
            &mut |part, text| ink.write(part, text),
        );
        // What was generated is kept, even if stdout was closed meanwhile.
        let inked = ink.finish();
        let ended = ended.and_then(|end| inked.map(|()| end));
        let (thought, made_s) = (ink.thought_tokens(), start.elapsed().as_secs_f64());
        let said = std::mem::take(&mut writer.generated);
        drop(quiet);
        let words = ended.as_ref().map_or_else(|e| format!("{e:#}"), |e| e.describe());
        let (kept, made) = (ids.len().saturating_sub(read), said.tokens.len());
        self.last = Some(Last { read, kept, read_s, made, thought, made_s, ended: words });
        if let Some(mut message) = said.message() {
            message["content"] = said.answer.trim_end().into();
            self.messages.push(message);
        }
        self.report(&said, &ended);
        self.keep(false)?;
        ended
    }

    /// Tells how an answer ended, how fast it was, and how full the context is.
    fn report(&self, said: &Generated, ended: &Result<End>) {
        if let Ok(end) = ended {
            match unanswered(said, end) {
                Some(why) => say!("(no answer: {why})"),
                None if said.answer.is_empty() => say!("(empty answer; {})", end.describe()),
                None if matches!(end, End::Model | End::Stop(_) | End::Complete) => {}
                None => say!("({})", end.describe()),
            }
        }
        let Some(l) = &self.last else { return };
        let (used, all) = (self.session.tokens(0).len(), self.session.n_ctx());
        if self.screen.person && l.made > 0 {
            let thought = if l.thought > 0 { format!(" ({} of reasoning)", grouped(l.thought)) } else { String::new() };
            aside(&format!(
                "{:.1} tokens/s, {} {}{thought}, context {} of {}, first token after {:.2} s",
                l.made as f64 / l.made_s.max(1e-9),
                grouped(l.made),
                if l.made == 1 { "token" } else { "tokens" },
                grouped(used),
                grouped(all),
                l.read_s
            ));
        }
        let turn = l.read + l.made; // the next may be as long
        if (used as f64 > NEARLY_FULL * all as f64 || used + turn > all) && ended.is_ok() {
            say!("(context: {used} of {all} tokens used; when it is full, {})", self.when_full.words());
        }
    }

    /// Whether there is room for the conversation and an answer. If not, the user is told before
    /// anything is lost, and the oldest turns are dropped if that is chosen.
    pub(super) fn make_room(&mut self, lines: &mut Lines) -> Result<bool> {
        let all = self.session.n_ctx();
        let answer = self.params.limit.unwrap_or(all / ANSWER).min(all / 2);
        let count = |messages: &[Value]| -> Result<usize> {
            let prompt = self.turns.prompt(messages, true)?;
            self.tokenizer.check_length(prompt.text(), all)?;
            Ok(self.tokenizer.encode_prompt(&prompt)?.len())
        };
        let need = count(&self.messages)?;
        if need + answer <= all {
            return Ok(true);
        }
        // Whole turns from the oldest on, the system message and the last message left out.
        let first = self.messages.iter().position(|m| m["role"] == "user").unwrap_or(0);
        let starts: Vec<usize> =
            (first + 1..self.messages.len()).filter(|&i| self.messages[i]["role"] == "user").collect();
        let mut found = None;
        for (turns, &to) in starts.iter().enumerate() {
            let left = [&self.messages[..first], &self.messages[to..]].concat();
            let n = count(&left)?;
            if n + answer <= all {
                found = Some((turns + 1, left, n));
                break;
            }
        }
        let full = ContextFull { n_ctx: all, used: 0, given: need };
        let Some((turns, left, n)) = found else {
            if need < all {
                return Ok(true); // there is some room for the answer, if little
            }
            return Err(full.into());
        };
        let what = if turns == 1 { "the oldest turn".into() } else { format!("the {turns} oldest turns") };
        say!(
            "The context is full: this conversation takes {need} of {all} tokens, and the answer needs room. Without \
             {what} it takes {n}, which have to be computed again."
        );
        let drop = match self.when_full {
            args::WhenFull::Drop => true,
            args::WhenFull::Stop => false,
            args::WhenFull::Ask => lines.ask("Drop them? [y/n] ")?,
        };
        if drop {
            self.messages = left;
            return Ok(true);
        }
        if self.when_full == args::WhenFull::Stop && lines.is_terminal() {
            anyhow::bail!("the context is full (--when-full stop): use /undo, /clear or /save");
        }
        if !lines.is_terminal() {
            return Err(full.into());
        }
        say!("(nothing was changed; use /undo, /clear or /save, or start again with a larger -c)");
        Ok(false)
    }

    pub(super) fn turn_count(&self) -> usize {
        self.messages.iter().filter(|m| m["role"] == "user").count()
    }

    /// Removes the last message of the user and all that follows it, and returns its text.
    pub(super) fn take_back(&mut self) -> Option<String> {
        Some(self.take_out()?.0)
    }

    /// Removes the last message of the user and all that follows it: its text, and what was
    /// removed.
    pub(super) fn take_out(&mut self) -> Option<(String, Vec<Value>)> {
        let at = self.messages.iter().rposition(|m| m["role"] == "user")?;
        let text = self.messages[at]["content"].as_str().unwrap_or_default().to_owned();
        Some((text, self.messages.split_off(at)))
    }

    /// Puts back what was taken out to be edited.
    pub(super) fn put_back_edited(&mut self) {
        if !self.edited.is_empty() {
            self.messages.append(&mut self.edited);
            say!("(the last message and its answer are unchanged)");
        }
    }

    /// Saves to the conversation's own file, if it has one.
    pub(super) fn keep(&mut self, whole: bool) -> Result<()> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let settled = self.session.settle(); // a GPU that is lost is known before something is saved
        let done = file.save(|path| self.save(path, whole));
        self.file = Some(file);
        done.and(settled)
    }

    pub(super) fn save(&self, path: &Path, whole: bool) -> Result<()> {
        let note = json!({ "messages": self.messages, "drawn": self.drawn, "seed": self.seed });
        let note = note.to_string();
        match whole || self.session.state_bytes(0) <= SAVED_AT_ONCE {
            true => store::save(path, &self.session, 0, &note),
            false => store::save_note(path, &self.session, &note),
        }
    }

    pub(super) fn load(&mut self, path: &Path) -> Result<()> {
        let note = store::load(path, &mut self.session, 0)?;
        let note: Value =
            serde_json::from_str(&note).with_context(|| format!("{}: not a conversation", path.display()))?;
        let Some(list) = note["messages"].as_array() else {
            anyhow::bail!(
                "{}: holds plain text, not a conversation; continue it with tandem run --session",
                path.display()
            );
        };
        self.messages = list.clone();
        self.drawn = note["drawn"].as_u64().unwrap_or(0);
        self.seed = note["seed"].as_u64().filter(|_| !self.seeded).unwrap_or(self.seed);
        Ok(())
    }
}

/// Lines of the last answer that a reminder shows, and of the message before it.
const REMINDED: (usize, usize) = (40, 8);

/// The end of a text, with a line in place of what is left out.
fn tail(text: &str) -> String {
    let n = text.lines().count();
    match n.checked_sub(REMINDED.0).filter(|less| *less > 1) {
        Some(less) => format!("(... {less} lines)\n") + &text.lines().skip(less).collect::<Vec<_>>().join("\n"),
        None => text.to_owned(),
    }
}

/// The beginning of a text, with a line in place of what is left out.
fn head(text: &str) -> String {
    let n = text.lines().count();
    match n.checked_sub(REMINDED.1).filter(|more| *more > 1) {
        Some(more) => text.lines().take(REMINDED.1).collect::<Vec<_>>().join("\n") + &format!("\n(... {more} lines)"),
        None => text.to_owned(),
    }
}

/// A number of turns, for people.
pub(super) fn count_turns(n: usize) -> String {
    format!("{n} {}", if n == 1 { "turn" } else { "turns" })
}
