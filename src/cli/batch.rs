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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::errors::usage;
use super::files::apart;
use super::opened::{Mode, Opened};
use super::stats::stats;
use super::{args, structured};
use crate::session::{Interrupted, Session, Want};
use crate::talk::{self, End, GenParams, Turns, Writer};
use crate::text::grammar::Grammars;
use crate::text::{Reader, Tokenizer};
use job::{Defaults, Job, Prompt, Refused};
use reply::Done;

/// Tokens that two prompts must share beyond what a seat has, for a copy to be worth its time.
const WORTH: usize = 16;

/// How often it is looked for Ctrl-C while no request comes.
const IDLE: Duration = Duration::from_millis(100);

/// Runs the verb.
pub(super) fn run(a: &args::BatchArgs) -> Result<()> {
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
    let t = Opened::open(
        &a.model,
        &a.sampling,
        &a.talk,
        Mode { n_seq: a.parallel, raw: a.raw, leaves: true, requests: true },
    )?;
    let Opened { session, tokenizer, turns, settings, interrupted } = t;
    let system = a.talk.system()?;
    if turns.is_none() && system.is_some() {
        return usage("-sys: prompts are continued as they are here, and have no system message".into());
    }
    let seed = settings.seed();
    let defaults = Defaults { settings, asked: a.talk.gen_params(), kind: form, raw: a.raw };
    let grammars = std::cell::OnceCell::new();
    let desk = Desk { tokenizer: &tokenizer, turns: turns.as_ref(), system, grammars: &grammars, seed };
    let out: Box<dyn Write> = match &a.output {
        Some(path) => {
            Box::new(BufWriter::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?))
        }
        None => Box::new(std::io::stdout().lock()),
    };
    let out = Out { to: out, unordered: a.unordered, next: 0, waiting: BTreeMap::new() };
    let seats = (0..a.parallel).map(|_| None).collect();
    let start = Instant::now();
    let mut work =
        Work { desk, defaults, session, seats, out, interrupted: &interrupted, count: 0, refused: 0, made: 0 };
    let done = work.answer(&lines(input, 2 * a.parallel));
    let written = work.finish(done.as_ref().err());
    let Work { session, count, refused, made, .. } = work;
    let seconds = start.elapsed().as_secs_f64();
    tracing::info!(
        "{count} requests, {refused} of them refused; {made} tokens written in {seconds:.1} s, {:.1} per second",
        made as f64 / seconds.max(1e-9)
    );
    stats(&session, &a.model)?;
    done.and(written)?;
    if interrupted.load(Ordering::SeqCst) {
        return Err(Interrupted.into());
    }
    if count > 0 && refused == count {
        anyhow::bail!("none of the {count} requests could be answered");
    }
    Ok(())
}

/// Requests under way.
struct Work<'t> {
    desk: Desk<'t>,
    defaults: Defaults,
    session: Session,
    seats: Vec<Option<Seat<'t>>>,
    out: Out,
    interrupted: &'t AtomicBool,
    /// Requests that came, those of them that were refused, and the tokens that were written.
    count: usize,
    refused: usize,
    made: usize,
}

impl Work<'_> {
    /// Answers requests until there are no more, or an interruption.
    fn answer(&mut self, lines: &Requests) -> Result<()> {
        let mut more = true;
        loop {
            while more && self.seats.iter().any(Option::is_none) && !self.is_interrupted() {
                let next = match self.seats.iter().all(Option::is_none) {
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
                let n = self.count;
                self.count += 1;
                let job = Job::parse(&line, &self.defaults);
                match job.and_then(|job| self.desk.seat(job, (n, at), &mut self.session, &mut self.seats)) {
                    Ok(None) => {}
                    Ok(Some((seat, end))) => {
                        self.done(seat, end)?;
                        if self.seats.iter().any(Option::is_some) {
                            break; // those who wait for a step get it
                        }
                    }
                    Err(_) if self.is_interrupted() => {}
                    Err(e) => self.refuse(&e, n, at)?,
                }
            }
            if self.is_interrupted() {
                return Ok(());
            }
            let rows: Vec<(usize, u32)> =
                self.seats.iter().enumerate().filter_map(|(i, s)| Some((i, s.as_ref()?.token))).collect();
            if rows.is_empty() {
                return Ok(());
            }
            let greedy = self.seats.iter().flatten().all(|s| s.writer.want() == Want::Likeliest);
            let logits = self.session.step(&rows, greedy)?;
            let width = logits.len() / rows.len();
            for ((i, _), logits) in rows.iter().zip(logits.chunks_exact(width)) {
                let seat = self.seats[*i].as_mut().expect("it wrote");
                let full = self.session.tokens(*i).len() == self.session.n_ctx();
                match seat.writer.next(logits, greedy) {
                    Ok((token, _, end)) => {
                        seat.token = token;
                        if let Some(end) = end.or_else(|| full.then_some(End::Context)) {
                            self.done(*i, end)?;
                        }
                    }
                    Err(e) => self.fail(*i, &e)?,
                }
            }
        }
    }

    /// Writes what was under way when everything ended, `failed` or interrupted, and what waited for it.
    fn finish(&mut self, failed: Option<&anyhow::Error>) -> Result<()> {
        for i in (0..self.seats.len()).filter(|i| self.seats[*i].is_some()).collect::<Vec<_>>() {
            match failed {
                Some(e) => self.fail(i, e)?,
                None => self.done(i, End::Interrupted)?,
            }
        }
        self.out.flush_waiting()
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    fn done(&mut self, seat: usize, end: End) -> Result<()> {
        let seat = self.seats[seat].take().expect("somebody sits there");
        self.made += seat.writer.generated.tokens.len();
        self.out.put(seat.n, &seat.done(end))
    }

    fn fail(&mut self, seat: usize, why: &anyhow::Error) -> Result<()> {
        let Seat { n, line, form, id, .. } = self.seats[seat].take().expect("somebody sits there");
        self.refuse(&Refused { form, id, why: format!("{why:#}") }, n, line)
    }

    fn refuse(&mut self, why: &Refused, n: usize, line: usize) -> Result<()> {
        self.refused += 1;
        self.out.put(n, &reply::error(why, n, line))
    }
}

/// Lines with their numbers.
type Requests = Receiver<std::io::Result<(usize, String)>>;

/// Lines as they come with their numbers, none of them empty, some of them ahead. What is not UTF-8 is no JSON either, and
/// is refused as that.
fn lines(input: Box<dyn BufRead + Send>, ahead: usize) -> Requests {
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
        let said = writer.generated;
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
            None => self.tokenizer.encode_beginning(&text)?,
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
        let logits = session.feed(at, &ids[session.tokens(at).len()..], writer.want())?;
        let (token, _, end) = writer.next(&logits, greedy)?;
        let full = session.tokens(at).len() == session.n_ctx();
        let prompt_tokens = ids.len();
        seats[at] = Some(Seat { n, line, form, id, writer, token, seed, prompt_tokens, known_tokens: known, start });
        Ok(end.or_else(|| full.then_some(End::Context)).map(|end| (at, end)))
    }

    /// The text of a prompt, and what reads the answer where a template was put around it.
    fn prompt(&self, prompt: &Prompt, asked: &mut GenParams) -> Result<(String, Option<Reader>)> {
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

/// Gives a prompt the free seat where least of it is left to read: which, and how many of its tokens were there without
/// reading them again.
fn take_seat(session: &mut Session, seats: &[Option<Seat<'_>>], ids: &[u32]) -> Result<(usize, usize)> {
    let most = ids.len() - 1; // logits follow a token: one at least is read
    let shared = |session: &Session, s: usize| talk::shared(session.tokens(s), &ids[..most]);
    let free = (0..seats.len()).filter(|i| seats[*i].is_none());
    let (at, own) =
        free.map(|i| (i, shared(session, i))).max_by_key(|(i, n)| (*n, usize::MAX - i)).expect("one is free");
    let (from, best) = (0..seats.len()).map(|i| (i, shared(session, i))).max_by_key(|x| x.1).expect("there are seats");
    if best >= own + WORTH && from != at {
        let again = session.copy(from, at, best)?;
        return Ok((at, best - again));
    }
    let again = session.rewind(at, own)?;
    Ok((at, own - again))
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
