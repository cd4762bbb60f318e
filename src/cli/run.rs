//! `tandem run`: one prompt, one text. stdout carries the model's text and nothing else.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args;
use super::kept::Kept;
use super::talking::{Manner, Reading, Talking};
use super::{Failure, apart, has_folder, own_folder, read_text, stats, structured, usage};
use crate::session::{ContextFull, Interrupted, Session};
use crate::store;
use crate::talk::{self, End, Generated, Turns, Writer};
use crate::text::grammar::Grammars;
use crate::text::{Part, Reader, Tokenizer};

/// Runs the verb.
pub(super) fn run(a: &args::Run) -> Result<()> {
    check_files(a)?;
    let prompt = prompt(a)?;
    let prefix = a.prefix_file.as_deref().map(read_text).transpose()?;
    let mut form = structured::form(&a.structured)?;
    let t =
        Talking::open(&a.model, &a.sampling, &a.talk, Manner { n_seq: 1, raw: a.raw, leaves: true, requests: false })?;
    let Talking { mut session, tokenizer, turns, settings, interrupted } = t;
    let turns = mode(a, turns)?;
    let grammars = form.as_ref().map(|_| Grammars::new(&tokenizer)).transpose().context(Failure::Model)?;
    let grammar = grammars.as_ref().zip(form.take()).map(|(g, f)| g.start(&f).context(Failure::Usage)).transpose()?;
    let start = Instant::now(); // loading what is known is part of what the first token takes
    let mut file = a.session.as_deref().map(Kept::new);
    let mut known = match file.as_ref().filter(|f| f.exists()) {
        Some(file) => Known::load(file.path(), &mut session, turns.is_some())?,
        None => Known { chat: turns.is_some(), ..Known::default() },
    };
    let seed = settings.seed();
    let sampler = settings.sampler(seed.wrapping_add(known.drawn), &tokenizer)?;
    let asked = talk::GenParams { logprobs: a.logprobs, ..a.talk.params() };
    let mut reading = Reading::new();
    let mut progress = |p| reading.progress(p);
    let (mut writer, logits) = match &turns {
        Some(turns) => {
            if let Some(text) = a.talk.system()?.or(prefix.clone()) {
                talk::set_system(&mut known.messages, &text);
            }
            known.messages.push(talk::message("user", &prompt));
            let text = turns.prompt(&tokenizer, &known.messages, true)?;
            let ids = tokenizer.encode_prompt(&text)?;
            check_room(&session, 0, ids.len())?; // with the whole count, before the first of it is read
            if prefix.is_some() {
                let system = &known.messages[..known.messages.len() - 1];
                let other = [system, &[talk::message("user", "")]].concat();
                let other = tokenizer.encode_prompt(&turns.prompt(&tokenizer, &other, true)?)?;
                read_prefix(&mut session, &ids[..talk::shared(&ids, &other)], &mut progress)?;
            }
            let asked = asked.of(turns);
            let writer = Writer::new(&tokenizer, sampler, grammar, turns.reader(&text), asked, &ids);
            let logits = talk::read(&mut session, 0, &tokenizer, &ids, writer.want(), &mut progress)?;
            (writer, logits)
        }
        None => {
            let text = prefix.clone().unwrap_or_default() + &prompt;
            let mut ids = std::mem::take(&mut known.pending);
            ids.extend(match session.tokens(0).is_empty() {
                true => tokenizer.encode_beginning(&text)?,
                false => tokenizer.encode(&text, false, true)?,
            });
            if ids.is_empty()
                && let Some(&last) = session.tokens(0).last()
            {
                // Nothing is added to a session: its last token is read once more, since logits follow a token.
                session.rewind(0, session.tokens(0).len() - 1)?;
                ids.push(last);
            }
            if ids.is_empty() {
                return usage("the prompt is empty; give some text with -p, -f or on stdin".into());
            }
            let used = session.tokens(0).len();
            check_room(&session, used, ids.len())?;
            if let Some(prefix) = &prefix {
                // One token at least is left to read: logits follow it.
                let known = talk::shared(&ids[..ids.len() - 1], &tokenizer.encode_beginning(prefix)?);
                read_prefix(&mut session, &ids[..known], &mut progress)?;
            }
            let done = session.tokens(0).len() - used;
            let whole = [session.tokens(0), &ids[done..]].concat();
            let writer = Writer::new(&tokenizer, sampler, grammar, Reader::plain(), asked, &whole);
            let logits = session.feed_with_progress(0, &ids[done..], writer.want(), &mut progress)?;
            (writer, logits)
        }
    };
    let (read, read_s) = (reading.finish(), start.elapsed().as_secs_f64());
    let prompt_tokens = session.tokens(0).len();

    let mut out = output(a)?; // not before there is something to write
    let start = Instant::now();
    let mut ink = Ink { out: &mut out, json: a.json, thinks: std::io::stderr().is_terminal(), thought: false };
    let ended =
        talk::write(&mut session, 0, &mut writer, logits, &interrupted, &mut |part, text| ink.write(part, text))
            .and_then(|ended| ink.finish().map(|()| ended));
    let (made_s, complete) = (start.elapsed().as_secs_f64(), writer.is_complete());
    let said = std::mem::take(&mut writer.generated);
    drop(writer);
    if let Some(file) = &mut file {
        // Also when nobody reads stdout any more.
        let stopped = matches!(ended, Ok(End::Stop(_)));
        known.keep(&said, stopped, &mut session, &tokenizer, prompt_tokens)?;
        file.save(|path| store::save(path, &session, 0, &known.note()))?;
    }
    let ended = ended?;

    let rate = |n: usize, s: f64| n as f64 / s.max(1e-9);
    let made = said.tokens.len();
    if a.json {
        let object = json!({
            "text": said.answer, "reasoning": said.reasoning, "finish": ended.name(), "complete": complete, "seed": seed,
            "tokens": { "prompt": prompt_tokens, "read": read, "generated": made },
            "seconds": { "prompt": read_s, "generation": made_s },
            "tokens_per_second": { "prompt": rate(read, read_s), "generation": rate(made, made_s) },
            "logprobs": a.logprobs.map(|_| &said.logprobs),
        });
        writeln!(out, "{object}")?;
    } else if a.output.is_none() && std::io::stdout().is_terminal() && !said.answer.ends_with('\n') {
        say!("");
    }
    out.flush()?;
    if !complete {
        tracing::warn!("the text is not complete by its grammar: it was ended by {}", ended.words());
    }
    tracing::info!(
        "prompt: {read} tokens, {:.1} per second; text: {made} tokens, {:.1} per second; ended by {}",
        rate(read, read_s),
        rate(made, made_s),
        ended.words(),
    );
    if matches!(ended, End::Context) {
        tracing::warn!("the context of {} tokens is full, and the text ends there (-c is its size)", session.n_ctx());
    }
    stats(&session, &a.model)?;
    match ended {
        End::Interrupted => Err(Interrupted.into()),
        _ => Ok(()),
    }
}

/// Fails if the context has no room for what is given.
fn check_room(session: &Session, used: usize, given: usize) -> Result<()> {
    match used + given > session.n_ctx() {
        true => Err(ContextFull { n_ctx: session.n_ctx(), used, given }.into()),
        false => Ok(()),
    }
}

/// Whether the prompt is a message or a text.
fn mode(a: &args::Run, turns: Option<Turns>) -> Result<Option<Turns>> {
    let asked = a.talk.system_prompt.is_some() || a.talk.system_prompt_file.is_some();
    match turns {
        None if a.raw && asked => usage("--raw continues a text, which has no system message".into()),
        Some(turns) => Ok(Some(turns)),
        None if a.chat || asked => usage(
            "this model has no chat template: give one with --chat-template-file, or continue a text without --chat and \
             -sys"
                .into(),
        ),
        None => Ok(None),
    }
}

/// Reads what prompts begin with, or finds it read by an earlier run.
fn read_prefix(session: &mut Session, ids: &[u32], progress: &mut dyn FnMut(crate::session::Progress)) -> Result<()> {
    let path = prefix_path(session, ids).unwrap_or_else(|e| {
        tracing::warn!("{e:#}");
        None
    });
    if let Some(path) = path.as_deref().filter(|p| p.exists()) {
        match store::load(path, session, 0) {
            Ok(_) if session.tokens(0) == ids => return Ok(()),
            Ok(_) => session.clear(0),
            Err(e) => tracing::warn!("the prefix is read again: {e:#}"),
        }
    }
    session.feed_with_progress(0, ids, crate::session::Want::None, progress)?;
    match path {
        Some(path) => match store::save(&path, session, 0, "") {
            Ok(()) => tracing::info!("the prefix of {} tokens is kept in {}", ids.len(), path.display()),
            Err(e) => tracing::warn!("the prefix is not kept: {e:#}"),
        },
        None => tracing::warn!("the prefix is not kept, because XDG_CACHE_HOME or HOME has no place for it"),
    }
    Ok(())
}

/// Where a prefix is kept.
fn prefix_path(session: &Session, ids: &[u32]) -> Result<Option<PathBuf>> {
    let Some(dir) = own_folder("XDG_CACHE_HOME", ".cache").context("no folder for the prefix")? else {
        return Ok(None);
    };
    Ok(Some(dir.join(format!("prefix-{}.session", store::key(session, ids)?))))
}

/// What a session file knows beside the sequence.
#[derive(Default)]
struct Known {
    /// Whether it is a conversation, and no text that is continued.
    chat: bool,
    messages: Vec<Value>,
    /// Tokens of a continued text that were written and not read.
    pending: Vec<u32>,
    drawn: u64,
    /// The seed that a conversation began with in `tandem chat`.
    seed: Option<u64>,
}

impl Known {
    fn load(path: &std::path::Path, session: &mut Session, chat: bool) -> Result<Known> {
        let note = store::load(path, session, 0)?;
        let name = path.display();
        let note: Value = serde_json::from_str(&note).with_context(|| format!("{name}: no session of this program"))?;
        let drawn = note["drawn"].as_u64().unwrap_or(0);
        match (note["messages"].as_array(), chat) {
            (Some(list), true) => {
                let seed = note["seed"].as_u64();
                Ok(Known { chat, messages: list.clone(), drawn, seed, ..Known::default() })
            }
            (Some(_), false) => usage(format!("{name} holds a conversation, which --raw cannot continue")),
            (None, true) => usage(format!("{name} holds a text that was continued; --raw goes on with it")),
            (None, false) => {
                let list = note["pending"].as_array().into_iter().flatten();
                let pending = list.filter_map(|v| u32::try_from(v.as_u64()?).ok()).collect();
                Ok(Known { pending, drawn, ..Known::default() })
            }
        }
    }

    /// Takes in what was written behind `prompt` tokens.
    fn keep(
        &mut self,
        said: &Generated,
        stopped: bool,
        session: &mut Session,
        tokenizer: &Tokenizer,
        prompt: usize,
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
            session.rewind(0, session.tokens(0).len().min(prompt + shown))?;
            self.pending = said.tokens[session.tokens(0).len() - prompt..shown].to_vec();
            self.pending.extend(tokenizer.encode(rest, false, false)?);
        }
        Ok(())
    }

    fn note(&self) -> String {
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

/// Files that are written are none of those that are read, and have a folder to be in.
fn check_files(a: &args::Run) -> Result<()> {
    let read = [
        ("the model", a.model.model.as_deref()),
        ("the prompt", a.file.as_deref()),
        ("the prefix", a.prefix_file.as_deref()),
        ("the session", a.session.as_deref()),
    ];
    if let Some(out) = &a.output {
        apart("-o", out, &read)?;
        has_folder("-o", out)?;
    }
    if let Some(path) = &a.session {
        apart("--session", path, &read[..3])?;
        has_folder("--session", path)?;
    }
    Ok(())
}

/// Where the text goes.
fn output(a: &args::Run) -> Result<Box<dyn Write>> {
    match &a.output {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(Box::new(file))
        }
        None => Ok(Box::new(std::io::stdout().lock())),
    }
}

/// Writes text as it comes: the answer to where it belongs, what is thought to a terminal's stderr.
struct Ink<'o> {
    out: &'o mut dyn Write,
    json: bool,
    thinks: bool,
    thought: bool,
}

impl Ink<'_> {
    fn write(&mut self, part: Part, text: &str) -> Result<()> {
        match part {
            Part::Reasoning if self.thinks => {
                let _ = write!(std::io::stderr(), "{}", self.dim(text));
                self.thought = true;
            }
            Part::Answer if !self.json => {
                if std::mem::take(&mut self.thought) {
                    say!("\n");
                }
                self.out.write_all(text.as_bytes())?;
                self.out.flush()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Thoughts are set apart where colours are wanted.
    fn dim(&self, text: &str) -> String {
        if super::colour(std::io::stderr().is_terminal()) { format!("\x1b[2m{text}\x1b[22m") } else { text.into() }
    }

    fn finish(&mut self) -> Result<()> {
        if self.thought {
            say!("");
        }
        Ok(self.out.flush()?)
    }
}

/// The prompt from -p or -f, and what is piped in behind it.
fn prompt(a: &args::Run) -> Result<String> {
    let own = match (&a.prompt, &a.file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(path)) => Some(read_text(path)?),
        (None, None) => None,
    };
    let piped = if a.no_stdin || std::io::stdin().is_terminal() { None } else { Some(stdin(own.is_some())?) };
    match (own, piped) {
        (None, None) => usage("no prompt; give one with -p TEXT or -f FILE, or pipe it in".into()),
        (Some(own), None) => Ok(own),
        (None, Some(piped)) => Ok(piped),
        (Some(own), Some(piped)) if piped.is_empty() => Ok(own),
        (Some(own), Some(piped)) => {
            tracing::info!("{} bytes of stdin are put behind the prompt (--no-stdin leaves stdin alone)", piped.len());
            let gap = if own.is_empty() || own.ends_with(char::is_whitespace) { "" } else { "\n" };
            Ok(own + gap + &piped)
        }
    }
}

/// All of stdin. Where there is a prompt already, nothing may ever come: that this is waited for is said.
fn stdin(has_prompt: bool) -> Result<String> {
    let (send, done) = mpsc::channel::<()>();
    if has_prompt {
        std::thread::spawn(move || {
            if done.recv_timeout(Duration::from_secs(2)) == Err(mpsc::RecvTimeoutError::Timeout) {
                tracing::warn!(
                    "waiting for the end of stdin, which is put behind the prompt (--no-stdin leaves it alone)"
                );
            }
        });
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
    drop(send);
    String::from_utf8(bytes).context("stdin is not UTF-8 text").context(Failure::Usage)
}
