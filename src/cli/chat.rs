//! `tandem chat`: a conversation in the terminal. What the model answers goes to stdout, all else
//! to stderr.
//!
//! The conversation is a list of messages; what the model has read of it follows from that list and
//! is never its own state (see `talk/turns.rs`): taking back, regenerating and editing change the
//! list, and the next reading finds what it can keep.

mod attach;
mod clipboard;
mod command;
mod conversation;
mod facts;
mod lines;
mod markdown;
mod paste;
mod perform;
mod screen;
mod spans;
mod wrap;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::Result;

use super::errors::{is_closed_pipe, usage};
use super::files::{apart, has_folder};
use super::opened::{Mode, Opened};
use super::session_file::SessionFile;
use super::stats::stats;
use super::{args, signals, speculation};
use crate::exec::GpuLost;
use crate::gguf::CutShort;
use crate::session::Interrupted;
use crate::store;
use crate::talk::{self, End};
use command::Command;
use conversation::Chat;
use lines::{Line, Lines};
use perform::Next;
use screen::Screen;

/// Runs the verb.
pub(super) fn run(a: &args::ChatArgs) -> Result<()> {
    if let Some(path) = &a.session {
        has_folder("--session", path)?;
        apart("--session", path, &[("the model", a.model.model.as_deref())])?;
    }
    let mut a = a.clone();
    let (mut taken, mut lines) = (None, None);
    let mut opened = open(&a)?;
    loop {
        let Some((model, left)) = one_model(&a, opened, taken.take(), &mut lines)? else { return Ok(()) };
        let before = a.model.model.replace(model);
        opened = match open(&a) {
            Ok(opened) => opened,
            Err(e) => {
                say!("{e:#}");
                say!("(going back to the model before)");
                a.model.model = before;
                open(&a)?
            }
        };
        taken = Some(left);
    }
}

/// What goes on with another model.
struct Taken {
    messages: Vec<serde_json::Value>,
    file: Option<SessionFile>,
    saved: Vec<SessionFile>,
    /// The seed, and the answers drawn.
    drawn: (u64, u64),
    /// Tokens of an answer, at most.
    limit: Option<usize>,
    screen: Screen,
}

impl Taken {
    /// Nothing yet.
    fn new(a: &args::ChatArgs, seed: u64, limit: Option<usize>) -> Taken {
        let (file, screen) = (a.session.as_deref().map(SessionFile::new), Screen::new(!a.hide_reasoning));
        Taken { messages: Vec::new(), file, saved: Vec::new(), drawn: (seed, 0), limit, screen }
    }
}

/// Opens a model that has a chat template.
fn open(a: &args::ChatArgs) -> Result<Opened> {
    let leaves = !std::io::stdin().is_terminal();
    let mode = Mode { n_seq: 1, raw: false, leaves, requests: false };
    let opened = Opened::open(&a.model, &a.sampling, &a.talk, &a.speculation, mode)?;
    if opened.turns.is_none() {
        return usage(
            "this model has no chat template; give one with --chat-template-file, or continue plain text with tandem run"
                .into(),
        );
    }
    Ok(opened)
}

/// Talks with one model. Returns the model to go on with and what is taken along, or None at the
/// end.
fn one_model(
    a: &args::ChatArgs,
    opened: Opened,
    taken: Option<Taken>,
    lines: &mut Option<Lines>,
) -> Result<Option<(PathBuf, Taken)>> {
    let Opened { session, tokenizer, turns, settings, speculation, interrupted } = opened;
    let turns = turns.expect("`open` refuses a model without a template");
    let params = a.talk.params().of(&turns);
    let seed = settings.seed();
    let goes_on = taken.is_some();
    let taken = taken.unwrap_or_else(|| Taken::new(a, seed, params.limit));
    let mut chat = Chat {
        session,
        speculation,
        tokenizer: &tokenizer,
        turns,
        messages: taken.messages,
        settings,
        seed: taken.drawn.0,
        drawn: taken.drawn.1,
        seeded: a.sampling.seed.is_some(),
        replaced: Vec::new(),
        edited: Vec::new(),
        ahead: String::new(),
        saved: taken.saved,
        params: talk::GenParams { limit: taken.limit, ..params },
        when_full: a.when_full,
        file: taken.file,
        screen: taken.screen,
        interrupted,
        last: None,
    };
    if !goes_on {
        if let Some(file) = chat.file.clone().filter(SessionFile::exists) {
            chat.load(file.path())?;
        }
        if let Some(text) = a.talk.system()? {
            talk::set_system(&mut chat.messages, &text);
        }
    }
    let lines = match lines {
        Some(lines) => lines,
        None => lines.insert(Lines::new()?),
    };
    if lines.is_terminal() {
        chat.greet(!goes_on);
    }
    store::prepare(&chat.session)?; // the model's file may be gone when there is something to save
    let talked = chat.talk(lines);
    // Whatever ended it, the conversation is kept, with what was about to be edited.
    chat.put_back_edited();
    let kept = chat.keep(true);
    stats(&chat.session, &a.model)?;
    speculation::stats(&chat.speculation, &chat.session, &a.model);
    let next = talked?;
    kept?;
    if let Some(lost) = chat.session.lost().filter(|_| next.is_none()) {
        return Err(lost.clone().into());
    }
    if signals::leaving() {
        return Err(Interrupted.into());
    }
    let Chat { messages, file, saved, seed, drawn, params, screen, .. } = chat;
    let drawn = (seed, drawn);
    let left = Taken { messages, file, saved, drawn, limit: params.limit, screen };
    Ok(next.map(|model| (model, left)))
}

impl Chat<'_> {
    /// Talks until the end, or until another model is to go on, which is returned.
    fn talk(&mut self, lines: &mut Lines) -> Result<Option<PathBuf>> {
        let mut draft = String::new();
        let mut left = false; // whether Ctrl-C was the last that came
        loop {
            let line = self.next_line(lines, &std::mem::take(&mut draft))?;
            let again = std::mem::replace(&mut left, false);
            let line = match line {
                Line::Text(text) if lines.is_terminal() => Line::Text(command::with_slash(text)),
                other => other,
            };
            match line {
                Line::End => return Ok(None),
                Line::Interrupt { empty: true } if again => return Ok(None),
                Line::Interrupt { .. } => {
                    left = true;
                    self.put_back_edited();
                    say!("(Ctrl-C again leaves the chat; so do /exit and Ctrl-D)");
                }
                Line::Text(text) if text.trim().is_empty() => self.put_back_edited(),
                // A pasted text is a message, whatever it begins with.
                Line::Text(text) if text.starts_with('/') && !lines.typed().starts_with('[') => {
                    self.put_back_edited();
                    let next = Command::parse(&text).and_then(|command| self.run(command));
                    match next {
                        Ok(Next::Nothing) => {}
                        Ok(Next::Leave) => return Ok(None),
                        Ok(Next::Model(path)) => return Ok(Some(path)),
                        Ok(Next::Edit(text)) => draft = text,
                        Ok(Next::Attach(name, text)) if lines.is_terminal() => {
                            draft = lines.keep(&format!("{name}:"), text) + "\n";
                        }
                        Ok(Next::Attach(_, text)) => self.ahead += &(text + "\n\n"),
                        Ok(Next::Answer) => (draft, left) = self.answer_or_say(lines)?,
                        // A script that went on would have another conversation than it expects.
                        Err(e) if !lines.is_terminal() => return Err(e),
                        Err(e) => say!("{e:#}"),
                    }
                }
                Line::Text(text) => {
                    self.edited.clear();
                    let text = std::mem::take(&mut self.ahead) + &self.with_files(lines, text);
                    self.messages.push(talk::message("user", &text));
                    (draft, left) = self.answer_or_say(lines)?;
                }
            }
        }
    }

    /// A message with the files that it names by `@`, which somebody typed: a script's text is taken
    /// as it is.
    fn with_files(&self, lines: &mut Lines, text: String) -> String {
        let mut blocks = String::new();
        if !lines.is_terminal() {
            return text;
        }
        let typed = lines.typed().to_owned();
        for mention in attach::mentions(&typed) {
            let file = attach::file_of(mention);
            match file.as_ref().map(|file| attach::block(file.as_ref(), self.most_bytes())) {
                Some(Ok(block)) if text.contains(&block) => {} // a message that is edited has it already
                Some(Ok(block)) => {
                    let n = block.chars().count();
                    let file = file.unwrap_or_default();
                    say!("({file}: {} characters go with the message)", super::human::grouped(n));
                    lines.keep(&format!("{file}:"), block.clone());
                    blocks += &(block + "\n\n");
                }
                Some(Err(e)) => say!("({e:#}; @{mention} is sent as it is)"),
                None if attach::looks_like_file(mention) => say!("(@{mention}: no such file; it is sent as it is)"),
                None => {}
            }
        }
        blocks + &text
    }

    /// The next line. While it is typed, the model reads what the next prompt will begin with.
    fn next_line(&mut self, lines: &mut Lines, draft: &str) -> Result<Line> {
        if !lines.is_terminal() || self.turn_count() == 0 {
            return lines.read(draft);
        }
        let stop = self.session.stop_flag();
        stop.store(false, Ordering::SeqCst);
        let (session, tokenizer, turns, messages) = (&mut self.session, self.tokenizer, &self.turns, &self.messages);
        let line = std::thread::scope(|s| {
            // An error here comes up again when the next message is read. Without a thread all of it is read then.
            let ahead = || drop(talk::read_ahead(session, 0, tokenizer, turns, messages));
            let _ = std::thread::Builder::new().spawn_scoped(s, ahead);
            let line = lines.read(draft);
            stop.store(true, Ordering::SeqCst);
            line
        });
        stop.store(false, Ordering::SeqCst);
        line
    }

    /// Answers, and prints what fails. Returns the message if it has no answer, to be edited, and
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
            Err(e) if e.is::<Interrupted>() => say!("(stopped while reading; your message is back in the input line)"),
            // Nobody can react to it: the program ends with the exit status of the error.
            Err(e) if is_closed_pipe(&e) || !lines.is_terminal() => return Err(e),
            // The conversation is saved on the way out; without a file to save to, the user may name one.
            Err(e) if e.is::<CutShort>() && self.file.is_some() => return Err(e),
            Err(e) if e.is::<GpuLost>() => self.offer_cpu(lines, &e)?,
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

    /// After the GPU was lost: the conversation is there, and the CPU can go on with it.
    fn offer_cpu(&mut self, lines: &mut Lines, lost: &anyhow::Error) -> Result<()> {
        say!("{lost:#}");
        if !lines.ask("Go on with the CPU, which reads the conversation again? [y/n] ")? {
            say!("(the conversation is unchanged; /save keeps it, and the next message asks again)");
            return Ok(());
        }
        self.session.leave_gpu()?;
        say!("(the CPU goes on from here; it reads the conversation with the next message, /retry answers again)");
        Ok(())
    }
}
