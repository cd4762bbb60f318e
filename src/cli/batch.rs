//! `tandem batch`: one request per line in, one answer per line out, several at once.
//!
//! Every sequence of the session is a seat. A request takes the free seat that has most of its prompt already, or copies
//! what another seat has of it; then all seats that are taken write a token in every step, so that weights are read once
//! for all of them. A line that cannot be answered gives an error in its place.

mod job;
mod reply;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args;
use super::talking::Talking;
use super::{apart, stats, structured, usage};
use crate::session::{Interrupted, Session, Want};
use crate::talk::{self, Asked, End, Turns, Writer};
use crate::text::grammar::Grammars;
use crate::text::{Reader, Tokenizer};
use job::{Defaults, Job, Prompt, Refused};
use reply::Done;

/// Tokens that two prompts must share beyond what a seat has, for a copy to be worth its time.
const WORTH: usize = 16;

/// How often it is looked for Ctrl-C while no request comes.
const IDLE: Duration = Duration::from_millis(100);

/// Runs the verb.
pub(super) fn run(a: &args::Batch) -> Result<()> {
    if a.parallel == 0 {
        return usage("--parallel 0: at least 1 expected".into());
    }
    let form = structured::form(&a.structured)?;
    if let Some(out) = &a.output {
        apart("-o", out, &[("the model", a.model.model.as_deref()), ("the requests", a.input.as_deref())])?;
    }
    let input: Box<dyn BufRead + Send> = match &a.input {
        Some(path) if path.as_os_str() != "-" => {
            Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?))
        }
        _ if std::io::stdin().is_terminal() => return usage("no requests; name a file, or pipe them in".into()),
        _ => Box::new(BufReader::new(std::io::stdin())),
    };
    let t = Talking::open(&a.model, &a.sampling, &a.talk, a.parallel, (a.raw, true))?;
    let Talking { mut session, tokenizer, turns, settings, interrupted } = t;
    let system = a.talk.system()?;
    if turns.is_none() && system.is_some() {
        return usage("-sys: prompts are continued as they are here, and have no system message".into());
    }
    let seed = settings.seed();
    let defaults = Defaults { settings, asked: a.talk.asked(), kind: form, raw: a.raw };
    let grammars = std::cell::OnceCell::new();
    let desk = Desk { tokenizer: &tokenizer, turns: turns.as_ref(), system, grammars: &grammars, seed };
    let out: Box<dyn Write> = match &a.output {
        Some(path) => {
            Box::new(BufWriter::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?))
        }
        None => Box::new(std::io::stdout().lock()),
    };
    let mut out = Out { to: out, unordered: a.unordered, next: 0, waiting: BTreeMap::new() };

    let lines = lines(input, 2 * a.parallel);
    let mut seats: Vec<Option<Seat<'_>>> = (0..a.parallel).map(|_| None).collect();
    let (start, mut count, mut refused, mut made) = (Instant::now(), 0usize, 0usize, 0usize);
    let mut more = true;
    loop {
        while more && seats.iter().any(Option::is_none) && !interrupted.load(Ordering::SeqCst) {
            let next = match seats.iter().all(Option::is_none) {
                true => match lines.recv_timeout(IDLE) {
                    Ok(line) => Ok(line),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => Err(TryRecvError::Disconnected),
                },
                false => lines.try_recv(),
            };
            let (at, line) = match next {
                Ok(line) => line.context("cannot read the requests")?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    more = false;
                    break;
                }
            };
            let n = count;
            count += 1;
            let begun = Job::parse(&line, &defaults).and_then(|job| desk.seat(job, (n, at), &mut session, &mut seats));
            match begun {
                Ok(None) => {}
                Ok(Some((seat, end))) => {
                    let seat = seats[seat].take().expect("just taken");
                    made += seat.writer.said.tokens.len();
                    out.put(n, &seat.done(end))?;
                    if seats.iter().any(Option::is_some) {
                        break; // those who wait for a step get it
                    }
                }
                Err(_) if interrupted.load(Ordering::SeqCst) => {}
                Err(e) => {
                    refused += 1;
                    out.put(n, &reply::error(&e, n, at))?;
                }
            }
        }
        if interrupted.load(Ordering::SeqCst) {
            break;
        }
        let rows: Vec<(usize, u32)> =
            seats.iter().enumerate().filter_map(|(i, s)| Some((i, s.as_ref()?.token))).collect();
        if rows.is_empty() {
            break;
        }
        let greedy = seats.iter().flatten().all(|s| s.writer.want() == Want::Likeliest);
        let logits = session.step(&rows, greedy)?;
        let width = logits.len() / rows.len();
        for ((i, _), logits) in rows.iter().zip(logits.chunks_exact(width)) {
            let seat = seats[*i].as_mut().expect("it wrote");
            let full = session.tokens(*i).len() == session.n_ctx();
            let end = match seat.writer.next(logits, greedy) {
                Ok((token, _, end)) => {
                    seat.token = token;
                    end.or_else(|| full.then_some(End::Context))
                }
                Err(e) => {
                    let seat = seats[*i].take().expect("it wrote");
                    refused += 1;
                    let e = Refused { form: seat.form, id: seat.id, why: format!("{e:#}") };
                    out.put(seat.n, &reply::error(&e, seat.n, seat.line))?;
                    continue;
                }
            };
            if let Some(end) = end {
                let seat = seats[*i].take().expect("it wrote");
                made += seat.writer.said.tokens.len();
                out.put(seat.n, &seat.done(end))?;
            }
        }
    }
    let broken = interrupted.load(Ordering::SeqCst);
    for seat in seats.iter_mut().filter_map(Option::take) {
        made += seat.writer.said.tokens.len();
        out.put(seat.n, &seat.done(End::Interrupted))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    tracing::info!(
        "{count} requests, {refused} of them refused; {made} tokens written in {seconds:.1} s, {:.1} per second",
        made as f64 / seconds.max(1e-9)
    );
    stats(&session, &a.model)?;
    if broken {
        out.flush_waiting()?;
        return Err(Interrupted.into());
    }
    if count > 0 && refused == count {
        anyhow::bail!("none of the {count} requests could be answered");
    }
    Ok(())
}

/// Lines as they come with their numbers, none of them empty, some of them ahead. What is not UTF-8 is no JSON either, and
/// is refused as that.
fn lines(input: Box<dyn BufRead + Send>, ahead: usize) -> Receiver<std::io::Result<(usize, String)>> {
    let (send, lines) = mpsc::sync_channel(ahead);
    std::thread::spawn(move || {
        for (i, line) in input.split(b'\n').enumerate() {
            let text = |bytes: Vec<u8>| match String::from_utf8(bytes) {
                Ok(text) => text.trim_start_matches('\u{feff}').to_owned(),
                Err(e) => format!("not UTF-8 from byte {} on", e.utf8_error().valid_up_to() + 1),
            };
            let line = line.map(|bytes| (i + 1, text(bytes)));
            if line.as_ref().is_ok_and(|(_, text)| text.trim().is_empty()) {
                continue;
            }
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// A request that is being answered.
struct Seat<'t> {
    n: usize,
    line: usize,
    form: job::Form,
    id: serde_json::Value,
    writer: Writer<'t>,
    /// What comes next.
    token: u32,
    seed: u64,
    prompt_tokens: usize,
    known_tokens: usize,
    start: Instant,
}

impl Seat<'_> {
    fn done(self, ended: End) -> serde_json::Value {
        let Seat { n, form, id, mut writer, seed, prompt_tokens, known_tokens, start, .. } = self;
        if matches!(ended, End::Context | End::Interrupted) {
            writer.finish(); // what was held back
        }
        let (seconds, complete) = (start.elapsed().as_secs_f64(), writer.is_complete());
        let said = writer.said;
        reply::answer(&form, &id, n, &Done { said, ended, complete, seed, prompt_tokens, known_tokens, seconds })
    }
}

/// What every request needs.
struct Desk<'t> {
    tokenizer: &'t Tokenizer,
    turns: Option<&'t Turns>,
    system: Option<String>,
    grammars: &'t std::cell::OnceCell<Grammars<'t>>,
    seed: u64,
}

impl<'t> Desk<'t> {
    /// Seats a request and reads its prompt; what ended it already, if something did.
    fn seat(
        &self,
        job: Job,
        (n, line): (usize, usize),
        session: &mut Session,
        seats: &mut [Option<Seat<'t>>],
    ) -> Result<Option<(usize, End)>, Box<Refused>> {
        let (form, id) = (job.form.clone(), job.id.clone());
        self.try_seat(job, (n, line), session, seats).map_err(|e| Box::new(Refused { form, id, why: format!("{e:#}") }))
    }

    fn try_seat(
        &self,
        job: Job,
        (n, line): (usize, usize),
        session: &mut Session,
        seats: &mut [Option<Seat<'t>>],
    ) -> Result<Option<(usize, End)>> {
        let start = Instant::now();
        let Job { form, id, prompt, settings, mut asked, kind } = job;
        let (text, reader) = self.prompt(&prompt, &mut asked)?;
        let ids = match &reader {
            Some(_) => self.tokenizer.encode_prompt(&text)?,
            None => self.tokenizer.encode(&text, true, true)?,
        };
        if ids.is_empty() {
            anyhow::bail!("the prompt is empty");
        }
        if ids.len() > session.n_ctx() {
            let full = crate::session::ContextFull { n_ctx: session.n_ctx(), used: 0, given: ids.len() };
            return Err(full.into());
        }
        let grammar = match &kind {
            None => None,
            Some(kind) => {
                if self.grammars.get().is_none() {
                    let _ = self.grammars.set(Grammars::new(self.tokenizer)?);
                }
                Some(self.grammars.get().expect("just set").start(kind)?)
            }
        };
        let seed = settings.seed.unwrap_or(self.seed.wrapping_add(n as u64));
        let sampler = settings.sampler(seed, self.tokenizer)?;
        let reader = reader.unwrap_or_else(Reader::plain);
        let mut writer = Writer::new(self.tokenizer, sampler, grammar, reader, asked, &ids);

        let (at, known) = take_seat(session, seats, &ids)?;
        let greedy = writer.want() == Want::Likeliest;
        let logits = session.feed(at, &ids[known..], writer.want())?;
        let (token, _, end) = writer.next(&logits, greedy)?;
        let full = session.tokens(at).len() == session.n_ctx();
        let prompt_tokens = ids.len();
        seats[at] = Some(Seat { n, line, form, id, writer, token, seed, prompt_tokens, known_tokens: known, start });
        Ok(end.or_else(|| full.then_some(End::Context)).map(|end| (at, end)))
    }

    /// The text of a prompt, and what reads the answer where a template was put around it.
    fn prompt(&self, prompt: &Prompt, asked: &mut Asked) -> Result<(String, Option<Reader>)> {
        let system = self.system.iter().map(|s| talk::message("system", s));
        let (messages, tools, variables) = match (prompt, self.turns) {
            (Prompt::Text { text, raw: true }, _) | (Prompt::Text { text, .. }, None) => {
                return Ok((text.clone(), None));
            }
            (Prompt::Text { text, .. }, Some(_)) => (system.chain([talk::message("user", text)]).collect(), None, None),
            (Prompt::Messages { messages, tools, variables }, _) => {
                let has = messages.iter().any(|m| m["role"] == "system" || m["role"] == "developer");
                let all = system.filter(|_| !has).chain(messages.iter().cloned()).collect::<Vec<_>>();
                (all, tools.as_ref(), Some(variables))
            }
        };
        let turns = self.turns.context(
            "messages need a chat template, which this model has not; give one with \
             --chat-template-file, or send a prompt",
        )?;
        let text = turns.prompt_with(self.tokenizer, &messages, tools, variables, true)?;
        *asked = std::mem::take(asked).of(turns);
        let reader = turns.reader(&text);
        Ok((text, Some(reader)))
    }
}

/// Gives a prompt the free seat where least of it is left to read: how many of its tokens are there already.
fn take_seat(session: &mut Session, seats: &[Option<Seat<'_>>], ids: &[u32]) -> Result<(usize, usize)> {
    let most = ids.len() - 1; // logits follow a token: one at least is read
    let shared = |session: &Session, s: usize| talk::shared(session.tokens(s), &ids[..most]);
    let free = (0..seats.len()).filter(|i| seats[*i].is_none());
    let (at, own) =
        free.map(|i| (i, shared(session, i))).max_by_key(|(i, n)| (*n, usize::MAX - i)).expect("one is free");
    let (from, best) = (0..seats.len()).map(|i| (i, shared(session, i))).max_by_key(|x| x.1).expect("there are seats");
    if best >= own + WORTH && from != at {
        session.copy(from, at, best)?;
        return Ok((at, best));
    }
    session.rewind(at, own)?;
    Ok((at, own))
}

/// Where answers go, in the order of their requests unless that does not matter.
struct Out {
    to: Box<dyn Write>,
    unordered: bool,
    next: usize,
    waiting: BTreeMap<usize, String>,
}

impl Out {
    fn put(&mut self, n: usize, line: &serde_json::Value) -> Result<()> {
        if self.unordered {
            writeln!(self.to, "{line}")?;
            return Ok(self.to.flush()?);
        }
        self.waiting.insert(n, line.to_string());
        while let Some(line) = self.waiting.remove(&self.next) {
            writeln!(self.to, "{line}")?;
            self.next += 1;
        }
        Ok(self.to.flush()?)
    }

    /// What is done but waits for others, when no more will be.
    fn flush_waiting(&mut self) -> Result<()> {
        for line in std::mem::take(&mut self.waiting).into_values() {
            writeln!(self.to, "{line}")?;
        }
        Ok(self.to.flush()?)
    }
}
