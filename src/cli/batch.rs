//! `tandem batch`: one request per line in, one answer per line out, several at once.
//!
//! Here lines become requests and answers become lines; `schedule` is what answers several of them at once. A line that
//! cannot be answered gives an error in its place.

mod forms;
mod job;
mod reply;
mod requests;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::errors::{incomplete, usage};
use super::files::{AnswerFile, apart};
use super::opened::{Mode, Opened};
use super::settings::Settings;
use super::stats::stats;
use super::{args, speculation, structured};
use crate::exec::GpuLost;
use crate::schedule::{Answer, Request, Scheduler};
use crate::session::Interrupted;
use crate::talk::{self, GenParams, ToolUse, Turns, Writer};
use crate::text::grammar::Kind;
use crate::text::{Reader, Tokenizer};
use forms::{Compiled, Forms};
use job::{Defaults, Job, Prompt, Refused, Then};
use reply::Done;
use requests::{Next, Requests};

/// How often a wait for requests looks for Ctrl-C.
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
        &a.speculation,
        Mode { n_seq: a.parallel, raw: a.raw, leaves: true, requests: true },
    )?;
    let Opened { session, tokenizer, turns, settings, speculation: drafts, interrupted } = t;
    let system = a.talk.system()?;
    if turns.is_none() && system.is_some() {
        return usage("-sys: prompts are continued as they are here, and have no system message".into());
    }
    let seed = settings.seed();
    let defaults = Defaults { settings, params: a.talk.params(), kind: form, raw: a.raw };
    let n_ctx = session.n_ctx();
    let prompts = Prompts { tokenizer: &tokenizer, turns: turns.as_ref(), system, seed, n_ctx };
    let out = BufWriter::new(AnswerFile::open(a.output.as_deref())?);
    let out = Out { to: out, unordered: a.unordered, next: 0, waiting: BTreeMap::new() };
    let start = Instant::now();
    let (done, written, work) = std::thread::scope(|s| {
        let mut work = Work {
            prompts,
            defaults,
            scheduler: Scheduler::new(session, drafts),
            forms: Forms::new(s, &tokenizer),
            askers: HashMap::new(),
            out,
            interrupted: &interrupted,
            count: 0,
            refused: 0,
            cut: 0,
            generated: 0,
        };
        let done = Requests::read(input, 2 * a.parallel).and_then(|lines| match work.answer(&lines) {
            Err(e) if e.is::<GpuLost>() => work.refuse_all(&lines, &e).and(Err(e)),
            done => done,
        });
        let written = work.finish(done.as_ref().err());
        work.forms.close();
        (done, written, work)
    });
    let Work { scheduler, count, refused, cut, generated, .. } = work;
    let seconds = start.elapsed().as_secs_f64();
    tracing::info!(
        "{count} requests, {refused} of them refused; {generated} tokens generated in {seconds:.1} s, {:.1} per second",
        generated as f64 / seconds.max(1e-9)
    );
    stats(scheduler.session(), &a.model)?;
    speculation::stats(scheduler.speculation(), scheduler.session(), &a.model);
    done.and(written)?;
    if interrupted.load(Ordering::SeqCst) {
        return Err(Interrupted.into());
    }
    if count > 0 && refused == count {
        anyhow::bail!("none of the {count} requests could be answered");
    }
    if cut > 0 {
        incomplete(format!("{cut} of the {count} texts are not complete by their grammar (\"complete\": false)"))?;
    }
    Ok(())
}

/// Reads one line as `tandem batch` does, without a model: for tests and fuzzing.
///
/// # Errors
/// If the line is no request that could be answered, with the reason.
pub fn check_request(line: &str) -> Result<()> {
    let defaults = Defaults { settings: Default::default(), params: GenParams::default(), kind: None, raw: false };
    Job::parse(line, &defaults).map(drop).map_err(|refused| anyhow::Error::msg(refused.why))
}

/// Requests under way.
struct Work<'t> {
    prompts: Prompts<'t>,
    defaults: Defaults,
    scheduler: Scheduler<'t>,
    /// Requests that wait until their form is compiled.
    forms: Forms,
    /// Who asked what is being answered, by the request's number.
    askers: HashMap<usize, Asker>,
    out: Out,
    interrupted: &'t AtomicBool,
    /// Requests that came, those of them that were refused, those whose text is not whole by its
    /// grammar, and the tokens that were generated.
    count: usize,
    refused: usize,
    cut: usize,
    generated: usize,
}

impl Work<'_> {
    /// Answers requests until there are no more, or an interruption.
    fn answer(&mut self, lines: &Requests) -> Result<()> {
        let mut more = true;
        loop {
            while more && self.scheduler.has_room() && self.forms.has_room() && !self.is_interrupted() {
                // A line is waited for only while there is nothing else to do.
                match lines.next(self.is_idle().then_some(IDLE))? {
                    Next::Line((line, Ok(text))) => self.accept(line, &text)?,
                    Next::Line((line, Err(why))) => {
                        let refused = Refused { form: job::Form::Own, id: serde_json::Value::Null, why };
                        self.count += 1;
                        self.refuse(&refused, self.count - 1, line)?;
                    }
                    Next::NotYet if self.is_idle() => continue,
                    Next::NotYet => break,
                    Next::NoMore => more = false,
                }
            }
            if self.is_interrupted() || self.is_idle() {
                return Ok(());
            }
            while let Some((ready, compiled)) = self.forms.next(self.scheduler.is_idle().then_some(IDLE)) {
                match compiled {
                    Ok(compiled) => self.begin(ready, compiled)?,
                    Err(e) => self.refuse(&ready.refused(&e), ready.number, ready.line)?,
                }
            }
            if self.scheduler.is_idle() {
                continue;
            }
            match self.scheduler.step() {
                Ok(answers) => answers.into_iter().try_for_each(|answer| self.write(answer))?,
                Err(e) if self.is_interrupted() && e.is::<Interrupted>() => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes the error in place of every answer that is under way or to come.
    fn refuse_all(&mut self, lines: &Requests, e: &anyhow::Error) -> Result<()> {
        self.finish(Some(e))?;
        while !self.is_interrupted() {
            match lines.next(Some(IDLE))? {
                Next::Line((line, text)) => {
                    let why = format!("{e:#}");
                    let refused = match text.map(|text| Job::parse(&text, &self.defaults)) {
                        Ok(Ok(job)) => Refused { form: job.form, id: job.id, why },
                        Ok(Err(refused)) => *refused,
                        Err(why) => Refused { form: job::Form::Own, id: serde_json::Value::Null, why },
                    };
                    self.count += 1;
                    self.refuse(&refused, self.count - 1, line)?;
                }
                Next::NotYet => {}
                Next::NoMore => break,
            }
        }
        Ok(())
    }

    /// Hands a line to the scheduler, at once or when its form is compiled, or writes why it is refused.
    fn accept(&mut self, line: usize, text: &str) -> Result<()> {
        let number = self.count;
        self.count += 1;
        let job = match Job::parse(text, &self.defaults) {
            Ok(job) => job,
            Err(refused) => return self.refuse(&refused, number, line),
        };
        let (form, id) = (job.form.clone(), job.id.clone());
        let checked = job.kind.as_ref().map_or(Ok(()), structured::check);
        match checked.and_then(|()| self.prompts.ready(job, number, line)) {
            Ok(ready) if ready.kind.is_none() && ready.tools.is_none() => self.begin(ready, Compiled::default()),
            Ok(ready) => {
                self.forms.compile(ready);
                Ok(())
            }
            Err(e) => self.refuse(&Refused { form, id, why: format!("{e:#}") }, number, line),
        }
    }

    /// Hands a request with its form to the scheduler, or writes why it is refused.
    fn begin(&mut self, ready: Ready, compiled: Compiled) -> Result<()> {
        let (number, line) = (ready.number, ready.line);
        let (form, id) = (ready.form.clone(), ready.id.clone());
        let added = self.prompts.request(ready, compiled).and_then(|(request, asker)| {
            self.scheduler.add(request)?;
            Ok(asker)
        });
        match added {
            Ok(asker) => drop(self.askers.insert(number, asker)),
            Err(e) => self.refuse(&Refused { form, id, why: format!("{e:#}") }, number, line)?,
        }
        Ok(())
    }

    /// Writes what was under way when everything ended, `failed` or interrupted, and what waited for it.
    fn finish(&mut self, failed: Option<&anyhow::Error>) -> Result<()> {
        let answers = match failed {
            Some(e) => self.scheduler.fail(e),
            None => self.scheduler.interrupt(),
        };
        answers.into_iter().try_for_each(|answer| self.write(answer))?;
        if let Some(e) = failed {
            for ready in self.forms.drain() {
                self.refuse(&ready.refused(e), ready.number, ready.line)?;
            }
        }
        self.out.flush_waiting()
    }

    /// Whether there is nothing to do.
    fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.forms.is_empty()
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    fn write(&mut self, answer: Answer) -> Result<()> {
        let number = answer.number;
        let asker = self.askers.remove(&number).expect("an answer goes to who asked");
        let Asker { line, form, id, seed, tools } = asker;
        let Answer { mut generated, end, complete, prompt_tokens, known_tokens, seconds, .. } = answer;
        match end {
            Ok(ended) => {
                if let Some(tools) = &tools {
                    generated.take_calls(tools, &ended);
                }
                self.generated += generated.tokens.len();
                self.cut += !complete as usize;
                let done = Done { generated, ended, complete, seed, prompt_tokens, known_tokens, seconds };
                self.out.put(number, &reply::answer(&form, &id, number, &done))
            }
            Err(e) => self.refuse(&Refused { form, id, why: format!("{e:#}") }, number, line),
        }
    }

    fn refuse(&mut self, why: &Refused, n: usize, line: usize) -> Result<()> {
        self.refused += 1;
        self.out.put(n, &reply::error(why, n, line))
    }
}

/// Who asked, and what the answer has to say of the question.
struct Asker {
    line: usize,
    form: job::Form,
    id: serde_json::Value,
    seed: u64,
    tools: Option<ToolUse>,
}

/// A request whose prompt is read, before its form is compiled.
struct Ready {
    number: usize,
    line: usize,
    form: job::Form,
    id: serde_json::Value,
    settings: Settings,
    params: GenParams,
    /// The prompt.
    ids: Vec<u32>,
    reader: Reader,
    tools: Option<ToolUse>,
    kind: Option<Kind>,
}

impl Ready {
    fn refused(&self, e: &anyhow::Error) -> Refused {
        Refused { form: self.form.clone(), id: self.id.clone(), why: format!("{e:#}") }
    }
}

/// What makes a request of a line.
struct Prompts<'t> {
    tokenizer: &'t Tokenizer,
    turns: Option<&'t Turns>,
    system: Option<String>,
    seed: u64,
    n_ctx: usize,
}

impl<'t> Prompts<'t> {
    /// A line's request, as far as it needs no form.
    fn ready(&self, job: Job, number: usize, line: usize) -> Result<Ready> {
        let Job { form, id, prompt, settings, mut params, kind } = job;
        let (ids, reader, tools) = self.prompt(&prompt, &mut params)?;
        let reader = reader.unwrap_or_else(Reader::plain);
        Ok(Ready { number, line, form, id, settings, params, ids, reader, tools, kind })
    }

    /// The request for the scheduler, and who asked.
    fn request(&self, ready: Ready, compiled: Compiled) -> Result<(Request<'t>, Asker)> {
        let Ready { number, line, form, id, settings, params, ids, reader, tools, .. } = ready;
        let seed = settings.seed.unwrap_or(self.seed.wrapping_add(number as u64));
        let sampler = settings.sampler(seed, self.tokenizer)?;
        let Compiled { grammar, calls } = compiled;
        let writer = Writer::with_calls(self.tokenizer, sampler, grammar, reader, params, &ids, calls);
        Ok((Request { number, prompt: ids, writer }, Asker { line, form, id, seed, tools }))
    }

    /// The tokens of a prompt, what reads the answer where a template was put around it, and the tools in the prompt.
    fn prompt(&self, prompt: &Prompt, params: &mut GenParams) -> Result<(Vec<u32>, Option<Reader>, Option<ToolUse>)> {
        let system = self.system.iter().map(|s| talk::message("system", s));
        let (messages, tools, variables, then) = match (prompt, self.turns) {
            (Prompt::Text { text, raw: true }, _) | (Prompt::Text { text, .. }, None) => {
                self.tokenizer.check_length(text, self.n_ctx)?;
                return Ok((self.tokenizer.encode_beginning(text)?, None, None));
            }
            (Prompt::Text { text, .. }, Some(_)) => {
                (system.chain([talk::message("user", text)]).collect(), None, None, Then::Answer)
            }
            (Prompt::Messages { messages, tools, variables, then }, _) => {
                let has = messages.iter().any(|m| m["role"] == "system" || m["role"] == "developer");
                let all = system.filter(|_| !has).chain(messages.iter().cloned()).collect::<Vec<_>>();
                (all, tools.as_deref().cloned(), Some(variables), *then)
            }
        };
        let turns = self.turns.context(
            "messages need a chat template, which this model has not; give one with \
             --chat-template-file, or send a prompt",
        )?;
        let tools = tools.map(|tools| turns.check_tools(tools)).transpose()?;
        let (prompt, reader) = match then {
            Then::Rest => turns.begun(&messages, tools.as_ref(), variables)?,
            _ => {
                let list = tools.as_ref().map(ToolUse::list);
                let prompt = turns.prompt_with(&messages, list, variables, then == Then::Answer)?;
                let reader = turns.reader(&prompt, tools.as_ref());
                (prompt, reader)
            }
        };
        *params = std::mem::take(params).of(turns);
        self.tokenizer.check_length(prompt.text(), self.n_ctx)?;
        Ok((self.tokenizer.encode_prompt(&prompt)?, Some(reader), tools))
    }
}

/// Where answers go, in the order of their requests unless that does not matter.
struct Out {
    to: BufWriter<AnswerFile>,
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
