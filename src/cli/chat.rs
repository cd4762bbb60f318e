//! `tandem chat`: a conversation in the terminal. What the model answers goes to stdout, all else to stderr.
//!
//! The conversation is a list of messages; what the model has read of it follows from that list and is never its own
//! state (see `talk/turns.rs`): taking back, answering anew and editing change the list, and the next reading finds what
//! it can keep.

mod commands;
mod line;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::kept::Kept;
use super::sampling::Settings;
use super::talking::{Manner, Reading, Talking};
use super::{apart, args, has_folder, is_closed_pipe, signals, stats, usage};
use crate::session::{ContextFull, Interrupted, Session};
use crate::store;
use crate::talk::{self, End, GenParams, Turns, Writer};
use crate::text::{Part, Tokenizer};
use commands::Command;
use line::{Line, Lines};

/// States up to this size are saved after every answer; larger ones at the end, the words after every answer.
const SAVED_AT_ONCE: usize = 64 << 20;

/// Shares of the context: from the first on it is said how full it is (or when another turn like the last has no room); the
/// second is kept for an answer of unknown length.
const NEARLY_FULL: f64 = 0.8;
const ANSWER: usize = 8;

/// A conversation under way.
struct Chat<'t> {
    session: Session,
    tokenizer: &'t Tokenizer,
    turns: Turns,
    /// `{role, content, reasoning_content}`, as templates read them.
    messages: Vec<Value>,
    settings: Settings,
    seed: u64,
    /// What stands behind the last message while it is answered anew.
    replaced: Vec<Value>,
    /// What was taken out to be edited, until something else is said.
    edited: Vec<Value>,
    /// The files that were saved or loaded by command, which may be saved to again.
    saved: Vec<Kept>,
    /// Answers drawn so far: each has a seed of its own, and the whole conversation follows from the first.
    drawn: u64,
    /// Whether the seed was asked for.
    seeded: bool,
    asked: GenParams,
    when_full: args::WhenFull,
    file: Option<Kept>,
    screen: Screen,
    interrupted: Arc<AtomicBool>,
    last: Option<Last>,
}

/// What the last answer took.
struct Last {
    read: usize,
    kept: usize,
    read_s: f64,
    made: usize,
    made_s: f64,
    ended: String,
}

/// How the terminal is written to.
struct Screen {
    colour: bool,
    reasoning: bool,
}

impl Screen {
    fn new(reasoning: bool) -> Screen {
        Screen { colour: super::colour(std::io::stdout().is_terminal()), reasoning }
    }
}

/// Runs the verb.
pub(super) fn run(a: &args::Chat) -> Result<()> {
    if let Some(path) = &a.session {
        has_folder("--session", path)?;
        apart("--session", path, &[("the model", a.model.model.as_deref())])?;
    }
    let leaves = !std::io::stdin().is_terminal();
    let manner = Manner { n_seq: 1, raw: false, leaves, requests: false };
    let t = Talking::open(&a.model, &a.sampling, &a.talk, manner)?;
    let Talking { session, tokenizer, turns, settings, interrupted } = t;
    let Some(turns) = turns else {
        return usage(
            "this model has no chat template; give one with --chat-template-file, or continue a text with tandem run"
                .into(),
        );
    };
    let asked = a.talk.params().of(&turns);
    let seed = settings.seed();
    let mut chat = Chat {
        session,
        tokenizer: &tokenizer,
        turns,
        messages: Vec::new(),
        settings,
        seed,
        drawn: 0,
        seeded: a.sampling.seed.is_some(),
        replaced: Vec::new(),
        edited: Vec::new(),
        saved: Vec::new(),
        asked,
        when_full: a.when_full,
        file: a.session.as_deref().map(Kept::new),
        screen: Screen::new(!a.hide_reasoning),
        interrupted,
        last: None,
    };
    if let Some(file) = chat.file.clone().filter(Kept::exists) {
        chat.load(file.path())?;
    }
    if let Some(text) = a.talk.system()? {
        talk::set_system(&mut chat.messages, &text);
    }
    let mut lines = Lines::new()?;
    let talked = chat.talk(&mut lines);
    // Whatever ended it, the conversation is kept, with what was about to be edited.
    chat.put_back_edited();
    let kept = chat.keep(true);
    stats(&chat.session, &a.model)?;
    talked.and(kept)?;
    if signals::leaving() { Err(Interrupted.into()) } else { Ok(()) }
}

impl Chat<'_> {
    fn talk(&mut self, lines: &mut Lines) -> Result<()> {
        if lines.is_terminal() {
            say!("{}", self.greeting());
        }
        let mut draft = String::new();
        let mut left = false; // whether Ctrl-C was the last that came
        loop {
            let line = self.next_line(lines, &std::mem::take(&mut draft))?;
            let again = std::mem::replace(&mut left, false);
            match line {
                Line::End => return Ok(()),
                Line::Interrupt { empty: true } if again => return Ok(()),
                Line::Interrupt { .. } => {
                    left = true;
                    self.put_back_edited();
                    say!("(Ctrl-C once more leaves; so do /exit and Ctrl-D)");
                }
                Line::Text(text) if text.trim().is_empty() => self.put_back_edited(),
                Line::Text(text) if text.starts_with('/') => {
                    self.put_back_edited();
                    let next = Command::parse(&text).and_then(|command| self.run(command));
                    match next {
                        Ok(Next::Nothing) => {}
                        Ok(Next::Leave) => return Ok(()),
                        Ok(Next::Edit(text)) => draft = text,
                        Ok(Next::Answer) => (draft, left) = self.answer_or_say(lines)?,
                        // What a script goes on with would be another conversation than it means.
                        Err(e) if !lines.is_terminal() => return Err(e),
                        Err(e) => say!("{e:#}"),
                    }
                }
                Line::Text(text) => {
                    self.edited.clear();
                    self.messages.push(talk::message("user", &text));
                    (draft, left) = self.answer_or_say(lines)?;
                }
            }
        }
    }

    /// The next line; while it is typed, what the next prompt will begin with is read.
    fn next_line(&mut self, lines: &mut Lines, draft: &str) -> Result<Line> {
        if !lines.is_terminal() || self.turn_count() == 0 {
            return lines.read(draft);
        }
        let stop = self.session.stop_flag();
        stop.store(false, Ordering::SeqCst);
        let (session, tokenizer, turns, messages) = (&mut self.session, self.tokenizer, &self.turns, &self.messages);
        let line = std::thread::scope(|s| {
            // What goes wrong here is said when the next message is read.
            s.spawn(|| drop(talk::read_ahead(session, 0, tokenizer, turns, messages)));
            let line = lines.read(draft);
            stop.store(true, Ordering::SeqCst);
            line
        });
        stop.store(false, Ordering::SeqCst);
        line
    }

    fn greeting(&self) -> String {
        let n = self.turn_count();
        let context = self.session.n_ctx();
        match n {
            0 => format!("context: {context} tokens; /help lists the commands, Ctrl-C stops an answer"),
            n => format!(
                "going on after {}; {} of {context} tokens used; /help lists the commands",
                commands::turns(n),
                self.session.tokens(0).len()
            ),
        }
    }

    /// Answers; what fails is said, and the message that stays without an answer is given back to be edited. The bool:
    /// whether Ctrl-C ended it.
    fn answer_or_say(&mut self, lines: &mut Lines) -> Result<(String, bool)> {
        let done = match self.make_room(lines) {
            Ok(true) => self.answer(),
            Ok(false) => Ok(End::Context),
            Err(e) => Err(e),
        };
        let stopped = matches!(done, Ok(End::Interrupted)) || done.as_ref().is_err_and(|e| e.is::<Interrupted>());
        match done {
            Ok(_) => {}
            Err(e) if e.is::<Interrupted>() => say!("(stopped while reading; your message is back in the line)"),
            // Nobody is there to do something about it: the program ends with the status that says what was wrong.
            Err(e) if is_closed_pipe(&e) || !lines.is_terminal() => return Err(e),
            Err(e) => say!("{e:#}"),
        }
        let unanswered = self.messages.last().is_some_and(|m| m["role"] == "user");
        let before = std::mem::take(&mut self.replaced);
        let back = match unanswered {
            false => String::new(),
            true if before.is_empty() => self.take_back().unwrap_or_default(),
            true => {
                self.messages.extend(before); // the answer that there was
                String::new()
            }
        };
        Ok((back, stopped))
    }

    /// Reads what is new of the conversation and writes the answer, which becomes part of it.
    fn answer(&mut self) -> Result<End> {
        self.interrupted.store(false, Ordering::SeqCst);
        self.session.stop_flag().store(false, Ordering::SeqCst);
        if signals::leaving() {
            return Ok(End::Interrupted);
        }
        let prompt = self.turns.prompt(self.tokenizer, &self.messages, true)?;
        let ids = self.tokenizer.encode_prompt(&prompt)?;
        let sampler = self.settings.sampler(self.seed.wrapping_add(self.drawn), self.tokenizer)?;
        self.drawn += 1;
        let reader = self.turns.reader(&prompt);
        let mut writer = Writer::new(self.tokenizer, sampler, None, reader, self.asked.clone(), &ids);

        let start = Instant::now();
        let mut reading = Reading::new();
        let want = writer.want();
        let logits = talk::read(&mut self.session, 0, self.tokenizer, &ids, want, &mut |p| reading.progress(p))?;
        let (read, read_s) = (reading.finish(), start.elapsed().as_secs_f64());

        let start = Instant::now();
        let mut ink = Ink::new(&self.screen);
        let ended = talk::write(&mut self.session, 0, &mut writer, logits, &self.interrupted, &mut |part, text| {
            ink.write(part, text)
        });
        // Where nobody reads any more, what was said still counts.
        let inked = ink.finish();
        let ended = ended.and_then(|end| inked.map(|()| end));
        let said = std::mem::take(&mut writer.generated);
        let words = ended.as_ref().map_or_else(|e| format!("{e:#}"), |e| e.words());
        let kept = ids.len().saturating_sub(read);
        let made_s = start.elapsed().as_secs_f64();
        self.last = Some(Last { read, kept, read_s, made: said.tokens.len(), made_s, ended: words.clone() });
        match said.message() {
            Some(mut message) => {
                message["content"] = said.answer.trim_end().into();
                self.messages.push(message);
            }
            None if matches!(ended, Ok(End::Model | End::Stop(_))) => say!("(nothing was said; ended by {words})"),
            None => {}
        }
        match &ended {
            Ok(End::Model | End::Stop(_) | End::Complete) | Err(_) => {}
            Ok(end) => say!("(ended by {})", end.words()),
        }
        self.keep(false)?;
        let (used, all) = (self.session.tokens(0).len(), self.session.n_ctx());
        let turn = self.last.as_ref().map_or(0, |l| l.read + l.made); // the next may be as long
        if (used as f64 > NEARLY_FULL * all as f64 || used + turn > all) && ended.is_ok() {
            say!("(context: {used} of {all} tokens used; when it is full: {})", self.when_full.words());
        }
        ended
    }

    /// Whether there is room for the conversation and an answer: where there is not, it is said before anything is lost,
    /// and the oldest turns go if that is chosen.
    fn make_room(&mut self, lines: &mut Lines) -> Result<bool> {
        let all = self.session.n_ctx();
        let answer = self.asked.limit.unwrap_or(all / ANSWER).min(all / 2);
        let count = |messages: &[Value]| -> Result<usize> {
            let prompt = self.turns.prompt(self.tokenizer, messages, true)?;
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
                return Ok(true); // little room is left for the answer, but some
            }
            return Err(full.into());
        };
        let what = if turns == 1 { "the oldest turn".into() } else { format!("the {turns} oldest turns") };
        say!(
            "The context is full: this conversation has {need} tokens of {all}, and the answer needs room. Without {what} \
             it has {n}, which would be read anew."
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
            anyhow::bail!("nothing is answered, since --when-full stop says so; /undo, /clear and /save are left");
        }
        if !lines.is_terminal() {
            return Err(full.into());
        }
        say!("(nothing was changed; /undo, /clear, /save, or a larger -c when you start again)");
        Ok(false)
    }

    fn turn_count(&self) -> usize {
        self.messages.iter().filter(|m| m["role"] == "user").count()
    }

    /// Takes back the last message of the user and all behind it, and returns it.
    fn take_back(&mut self) -> Option<String> {
        Some(self.take_out()?.0)
    }

    /// The same, with what was taken.
    fn take_out(&mut self) -> Option<(String, Vec<Value>)> {
        let at = self.messages.iter().rposition(|m| m["role"] == "user")?;
        let text = self.messages[at]["content"].as_str().unwrap_or_default().to_owned();
        Some((text, self.messages.split_off(at)))
    }

    /// What was to be edited and was not is as before.
    fn put_back_edited(&mut self) {
        if !self.edited.is_empty() {
            self.messages.append(&mut self.edited);
            say!("(the last message and its answer stay as they were)");
        }
    }

    /// Saves to the conversation's own file, if it has one.
    fn keep(&mut self, whole: bool) -> Result<()> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let done = file.save(|path| self.save(path, whole));
        self.file = Some(file);
        done
    }

    fn save(&self, path: &Path, whole: bool) -> Result<()> {
        let note = json!({ "messages": self.messages, "drawn": self.drawn, "seed": self.seed });
        let note = note.to_string();
        match whole || self.session.state_bytes(0) <= SAVED_AT_ONCE {
            true => store::save(path, &self.session, 0, &note),
            false => store::save_note(path, &self.session, &note),
        }
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let note = store::load(path, &mut self.session, 0)?;
        let note: Value =
            serde_json::from_str(&note).with_context(|| format!("{}: no conversation", path.display()))?;
        let Some(list) = note["messages"].as_array() else {
            anyhow::bail!("{}: it holds no conversation; tandem run --session goes on with it", path.display());
        };
        self.messages = list.clone();
        self.drawn = note["drawn"].as_u64().unwrap_or(0);
        self.seed = note["seed"].as_u64().filter(|_| !self.seeded).unwrap_or(self.seed);
        Ok(())
    }
}

/// What follows a command.
enum Next {
    Nothing,
    /// The conversation is over.
    Leave,
    /// The last message is to be answered.
    Answer,
    /// This text is to be edited.
    Edit(String),
}

/// Writes an answer, its reasoning set apart.
struct Ink<'s> {
    screen: &'s Screen,
    dim: bool,
    /// Something of the answer, or of the reasoning, was written.
    answered: bool,
    thought: bool,
    /// The last text ended a line.
    line_done: bool,
}

impl<'s> Ink<'s> {
    fn new(screen: &'s Screen) -> Ink<'s> {
        Ink { screen, dim: false, answered: false, thought: false, line_done: true }
    }

    fn write(&mut self, part: Part, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let reasoning = part == Part::Reasoning;
        if reasoning && !self.screen.reasoning {
            return Ok(());
        }
        // White space before the first word would only move the answer about.
        let text = if reasoning && !self.thought || !reasoning && !self.answered { text.trim_start() } else { text };
        if text.is_empty() {
            return Ok(());
        }
        if reasoning != self.dim {
            self.set(&mut out, reasoning)?;
            if !reasoning && self.thought {
                let gap = if self.line_done { "\n" } else { "\n\n" };
                out.write_all(gap.as_bytes())?;
            }
        }
        *(if reasoning { &mut self.thought } else { &mut self.answered }) = true;
        self.line_done = text.ends_with('\n');
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    fn set(&mut self, out: &mut impl Write, dim: bool) -> Result<()> {
        self.dim = dim;
        if self.screen.colour {
            out.write_all(if dim { b"\x1b[2m" } else { b"\x1b[22m" })?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.dim {
            self.set(&mut out, false)?;
        }
        if !self.line_done {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }
}
