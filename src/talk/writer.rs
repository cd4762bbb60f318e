//! One generation: from logits to tokens to text, in its parts, until something ends it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::stops::Stops;
use super::tools::{CallRules, ToolUse};
use super::turns::{self, Turns};
use crate::sample::{Sampler, logprob_of, logprobs};
use crate::session::{Output, Session, Want};
use crate::speculate::{Next, Speculation};
use crate::text::grammar::{DeadEnd, Grammar};
use crate::text::{Call, Part, Reader, TokenStream, Tokenizer};

/// Parameters of a generation.
#[derive(Clone, Debug, Default)]
pub struct GenParams {
    /// Tokens, at most.
    pub limit: Option<usize>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Go on where the model would end.
    pub ignore_eos: bool,
    /// Tokens of reasoning, at most.
    pub budget: Option<usize>,
    /// The likeliest tokens at each place, with their log-probabilities: how many; None is not at all.
    pub logprobs: Option<usize>,
}

impl GenParams {
    /// The parameters of an answer in a conversation: where the model could go on with the user's part, that ends it too.
    pub fn of(mut self, turns: &Turns) -> GenParams {
        self.stop.extend(turns.user_opens().filter(|_| !self.ignore_eos).map(String::from));
        self
    }
}

/// What ended a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The model.
    Model,
    /// One of the stop texts.
    Stop(String),
    /// The grammar: nothing can follow.
    Complete,
    /// The limit of tokens was reached.
    Limit(usize),
    /// The context.
    Context,
    /// The user.
    Interrupted,
}

impl End {
    /// For people: `stopped: reached -n 64`.
    pub fn describe(&self) -> String {
        match self {
            End::Model => "stopped: end of the answer".into(),
            End::Stop(text) => format!("stopped: stop text {text:?}"),
            End::Complete => "stopped: the grammar is complete".into(),
            End::Limit(n) => format!("stopped: reached -n {n}"),
            End::Context => "stopped: the context is full (a larger -c gives more room)".into(),
            End::Interrupted => "stopped: interrupted".into(),
        }
    }

    /// Whether the text is all that was to come, and was not cut off.
    pub fn is_whole(&self) -> bool {
        matches!(self, End::Model | End::Stop(_) | End::Complete)
    }

    /// In one word, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            End::Model | End::Complete => "end",
            End::Stop(_) => "stop",
            End::Limit(_) => "limit",
            End::Context => "context",
            End::Interrupted => "interrupted",
        }
    }
}

/// Everything that was written.
#[derive(Clone, Debug, Default)]
pub struct Generated {
    /// The tokens that were written, a stop text's among them; not the model's end.
    pub tokens: Vec<u32>,
    /// What the model thought.
    pub reasoning: String,
    /// What it answered.
    pub answer: String,
    /// The tools that it calls, once [`Generated::take_calls`] has taken them out of the answer.
    pub calls: Vec<Call>,
    /// The text of a call that was begun and cut off.
    pub incomplete: String,
    /// For every token, where asked: `{token, logprob, top: [{token, logprob}]}`.
    pub logprobs: Vec<Value>,
}

impl Generated {
    /// Takes the calls out of what was written with these tools on offer. Where a call was begun and cut off, a warning
    /// says it.
    pub fn take_calls(&mut self, tools: &ToolUse, end: &End) {
        let taken = tools.take(&self.reasoning, &self.answer, end.is_whole());
        (self.reasoning, self.answer) = (taken.reasoning, taken.content);
        (self.calls, self.incomplete) = (taken.calls, taken.incomplete);
        for (i, call) in self.calls.iter_mut().enumerate() {
            let said = self.tokens.iter().flat_map(|t| t.to_le_bytes());
            call.id.get_or_insert_with(|| number(said.chain([i as u8])));
        }
        if !self.incomplete.is_empty() {
            tracing::warn!("a tool call was cut off and is not among the calls: {}", end.describe());
        }
    }

    /// The calls as this program's own lines have them: `{id, name, arguments}`, the arguments as an object.
    pub fn own_calls(&self) -> Value {
        let one = |call: &Call| json!({ "id": call.id, "name": call.name, "arguments": call.arguments });
        self.calls.iter().map(one).collect()
    }

    /// The calls as the API has them: `{id, type, function: {name, arguments}}`, the arguments as text.
    pub fn api_calls(&self) -> Value {
        let one = |call: &Call| {
            let function = json!({ "name": call.name, "arguments": call.arguments.to_string() });
            json!({ "id": call.id, "type": "function", "function": function })
        };
        self.calls.iter().map(one).collect()
    }

    /// The message that it is in a conversation; None if nothing was said.
    pub fn message(&self) -> Option<Value> {
        let mut message = turns::message("assistant", &self.answer);
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = self.reasoning.clone().into();
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = self.api_calls();
        }
        let said = !self.answer.is_empty() || !self.reasoning.is_empty() || !self.calls.is_empty();
        said.then_some(message)
    }

    /// Whether the answer began, after what was thought: there is some of it or a call, or what ended it was found in it.
    pub fn began(&self, end: &End) -> bool {
        let called = !self.calls.is_empty() || !self.incomplete.is_empty();
        called || !self.answer.trim().is_empty() || matches!(end, End::Stop(_) | End::Complete)
    }
}

/// In reasoning, the text that ends it and begins the answer: where that must be a message with one of these heads, up to
/// what they have in common.
fn closing(reader: &Reader, heads: &[String]) -> Option<String> {
    const WHO: &str = "assistant";
    let mut close = reader.close()?;
    if let (Some(first), Some(at)) = (heads.first(), close.find(WHO)) {
        let same = |n: &usize| first.is_char_boundary(*n) && heads.iter().all(|h| h.starts_with(&first[..*n]));
        let n = (0..=first.len()).rev().find(same).unwrap_or(0);
        close.truncate(at + WHO.len());
        close.push_str(&first[..n]);
    }
    Some(close)
}

/// A number for a call that has none: nine letters and digits, as Mistral's templates want it, out of a 64-bit FNV-1a
/// hash of what was generated.
fn number(said: impl Iterator<Item = u8>) -> String {
    const SIGNS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut hash = said.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut sign = || {
        let sign = SIGNS[(hash % 36) as usize];
        hash /= 36;
        char::from(sign)
    };
    (0..9).map(|_| sign()).collect()
}

/// A generation under way.
#[derive(Debug)]
pub struct Writer<'t> {
    tokenizer: &'t Tokenizer,
    sampler: Sampler,
    /// Holds for the answer, not for what is thought before it.
    grammar: Option<Grammar>,
    reader: Reader,
    stream: TokenStream<'t>,
    /// With a grammar, what may come while nothing of the answer does: all that does not end the text before there is one.
    unruled: Vec<u32>,
    /// The token that opens reasoning, which a grammar does not know.
    opens: Option<u32>,
    /// What holds calls to their schemas.
    calls: CallRules,
    /// The answer as the reader gave it, and how much of it was searched for calls.
    seen: String,
    searched: usize,
    stops: Stops,
    params: GenParams,
    /// Tokens that come next whatever the logits say.
    forced: VecDeque<u32>,
    thought: usize,
    /// What was written so far.
    pub generated: Generated,
}

/// Text that came, by the part that it belongs to.
pub type Parts = Vec<(Part, String)>;

impl<'t> Writer<'t> {
    /// A generation that follows a prompt.
    pub fn new(
        tokenizer: &'t Tokenizer,
        sampler: Sampler,
        grammar: Option<Grammar>,
        reader: Reader,
        params: GenParams,
        prompt: &[u32],
    ) -> Writer<'t> {
        Writer::with_calls(tokenizer, sampler, grammar, reader, params, prompt, CallRules::default())
    }

    /// A generation that follows a prompt, with calls that are held to their schemas.
    pub fn with_calls(
        tokenizer: &'t Tokenizer,
        mut sampler: Sampler,
        grammar: Option<Grammar>,
        reader: Reader,
        params: GenParams,
        prompt: &[u32],
        mut calls: CallRules,
    ) -> Writer<'t> {
        let grammar = calls.whole.take().or(grammar);
        prompt.iter().for_each(|t| sampler.accept(*t));
        let stops = Stops::new(params.stop.iter().cloned());
        // Where the prompt has opened a reasoning that may have no token, it is closed at once.
        let close = closing(&reader, &calls.heads).filter(|_| params.budget == Some(0));
        let forced: VecDeque<u32> =
            close.and_then(|text| tokenizer.encode(&text, false, true).ok()).unwrap_or_default().into();
        let (generated, stream) = (Generated::default(), tokenizer.stream());
        let opens = reader.may_open().and_then(|text| match tokenizer.encode(text, false, true).as_deref() {
            Ok([one]) => Some(*one),
            _ => None,
        });
        let mut unruled = Vec::new();
        if grammar.is_some() || calls.markup.is_some() {
            unruled = vec![u32::MAX; tokenizer.n_vocab().div_ceil(32)];
            tokenizer.eog().iter().for_each(|id| unruled[*id as usize / 32] &= !(1 << (id % 32)));
        }
        Writer {
            tokenizer,
            sampler,
            grammar,
            unruled,
            reader,
            stream,
            opens,
            calls,
            seen: String::new(),
            searched: 0,
            stops,
            params,
            forced,
            thought: 0,
            generated,
        }
    }

    /// What the next token is chosen from: all logits, or the argmax, where that is all that counts.
    pub fn want(&self) -> Want {
        let plain = !self.is_held() && self.params.logprobs.is_none() && self.sampler.is_greedy();
        if plain { Want::Argmax } else { Want::Last }
    }

    /// Tokens that may still be chosen.
    pub fn room(&self) -> usize {
        self.params.limit.map_or(usize::MAX, |n| n.saturating_sub(self.generated.tokens.len()))
    }

    /// Whether a form rules what comes.
    fn is_held(&self) -> bool {
        self.grammar.is_some() || self.calls.must
    }

    /// Chooses the next token from what a session returned for [`Writer::want`]. Returns it, the text that is complete
    /// with it, and what ends the generation, if something does: the token is then not to be read any more.
    ///
    /// # Errors
    /// If the logits are not numbers, or the grammar allows no token.
    pub fn next(&mut self, output: &Output) -> Result<(u32, Parts, Option<End>)> {
        if let Some(n) = self.params.limit.filter(|n| *n == self.generated.tokens.len()) {
            return Ok((0, self.finish(), Some(End::Limit(n))));
        }
        if match output {
            Output::Logits(logits) => logits.iter().any(|v| v.is_nan()),
            Output::Argmax { logit, .. } => logit.is_nan(),
        } {
            bail!(
                "the model computed NaN; the file is damaged, or this is a bug worth reporting with the model's name"
            );
        }
        // A grammar is for the answer. Where reasoning may open, it may still do so.
        let beginning = self.reader.may_open().is_some();
        let ruled = beginning || self.reader.part() == Some(Part::Answer);
        let forced = self.forced.pop_front();
        let token = match (forced, output) {
            (Some(token), _) | (None, &Output::Argmax { token, .. }) => token,
            (None, Output::Logits(logits)) => self.choose(logits, beginning, ruled)?,
        };
        if self.tokenizer.is_eog(token) && !self.params.ignore_eos {
            return Ok((token, self.finish(), Some(End::Model)));
        }
        self.sampler.accept(token);
        if let (Some(n), Output::Logits(logits)) = (self.params.logprobs, output) {
            self.note(logits, token, n);
        }
        self.generated.tokens.push(token);
        let mut complete = false;
        if let Some(grammar) =
            self.grammar.as_mut().filter(|_| ruled && forced.is_none() && !(beginning && self.opens == Some(token)))
        {
            grammar.accept(token)?;
            complete = grammar.is_done();
        }
        if complete && !self.calls.after.is_empty() && !self.calls.single && !self.calls.must {
            // The call is whole, and anything may follow it.
            (complete, self.grammar) = (false, None);
            self.seen.clear();
        }
        let (mut parts, stop) = self.push(token)?;
        match self.grammar {
            None if !complete && stop.is_none() => self.open_call(),
            _ => self.searched = self.seen.len(),
        }
        let end = match stop {
            Some(stop) => Some(End::Stop(stop)),
            None if complete => Some(End::Complete),
            None => self.params.limit.filter(|n| *n == self.generated.tokens.len()).map(End::Limit),
        };
        if end.is_some() && !matches!(end, Some(End::Stop(_))) {
            parts.extend(self.finish());
        }
        Ok((token, parts, end))
    }

    /// Samples a token among those that the grammar allows. `beginning`: reasoning may still open; `ruled`: the grammar
    /// holds for what comes next.
    fn choose(&mut self, logits: &[f32], beginning: bool, ruled: bool) -> Result<u32> {
        // Where messages have heads, the answer comes after one, and nowhere else.
        let heads = if self.is_held() { self.reader.heads(&self.calls.heads) } else { None };
        let mut more;
        let allowed = match (&mut self.grammar, self.opens.filter(|_| beginning)) {
            (_, _) if heads.is_some() => {
                more = vec![0; logits.len().div_ceil(32)];
                for head in heads.iter().flatten() {
                    let next = self.tokenizer.encode(head, false, true)?;
                    next.first().into_iter().for_each(|id| more[*id as usize / 32] |= 1 << (id % 32));
                }
                Some(&more[..])
            }
            (Some(g), None) if ruled => Some(g.mask()?),
            (Some(g), Some(open)) => {
                more = g.mask()?.to_vec();
                more[open as usize / 32] |= 1 << (open % 32);
                Some(&more[..])
            }
            (Some(_), None) => Some(&self.unruled[..]),
            (None, _) if self.calls.must => Some(&self.unruled[..]),
            (None, _) => None,
        };
        match self.sampler.pick(logits, allowed) {
            Some(token) => Ok(token),
            None if allowed.is_some() => Err(DeadEnd.into()),
            None => bail!("no token is left to sample: --logit-bias forbids every one"),
        }
    }

    /// Takes in a token's text: what is complete with it, and the stop text that ended it, if one did.
    fn push(&mut self, token: u32) -> Result<(Parts, Option<String>)> {
        let special = self.tokenizer.is_control(token) && self.reader.knows(self.tokenizer.piece(token));
        let text = self.stream.push_as(token, special);
        self.thought += (self.reader.part() == Some(Part::Reasoning)) as usize;
        let came = self.reader.push(&text);
        if !self.calls.after.is_empty() {
            self.seen.extend(came.iter().filter(|(part, _)| *part == Part::Answer).map(|(_, text)| text.as_str()));
        }
        let close = closing(&self.reader, &self.calls.heads);
        if let Some(close) = close.filter(|_| self.params.budget.is_some_and(|n| self.thought >= n)) {
            self.forced = self.tokenizer.encode(&close, false, true)?.into();
            self.params.budget = None;
        }
        Ok(self.stopped(came))
    }

    /// Where the answer so far ends with the marks that open a call: what follows is held to the tools' schemas.
    fn open_call(&mut self) {
        let Some(markup) = self.calls.markup.filter(|_| self.reader.part() == Some(Part::Answer)) else { return };
        // A mark may have begun in what was searched before.
        let opens =
            || self.calls.after.iter().flat_map(|(opens, grammar)| opens.iter().map(move |open| (open, grammar)));
        let longest = opens().map(|(open, _)| open.len()).max().unwrap_or(0);
        self.searched = self.searched.min(self.seen.len());
        let mut from = self.searched.saturating_sub(longest);
        while !self.seen.is_char_boundary(from) {
            from -= 1;
        }
        let found = opens().filter_map(|(open, grammar)| {
            let at = from + self.seen[from..].find(open.as_str())?;
            Some((at + open.len(), at, grammar)).filter(|f| f.0 > self.searched)
        });
        let first = found.min_by_key(|(end, at, _)| (*at, std::cmp::Reverse(*end)));
        let opened = first.filter(|(_, at, _)| markup.is_open(&self.seen, *at));
        if let Some((end, _, grammar)) = opened {
            let mut grammar = grammar.clone();
            // The last token may say more than the mark.
            let more = self.tokenizer.encode(&self.seen[end..], false, true).unwrap_or_default();
            if more.into_iter().all(|id| grammar.accept(id).is_ok()) {
                self.grammar = Some(grammar);
            }
        }
        self.searched = self.seen.len();
    }

    /// Whether the text is whole by its grammar; always where there is none.
    pub fn is_complete(&mut self) -> bool {
        self.grammar.as_mut().is_none_or(|g| g.may_end())
    }

    /// The text that was held back, when something else ends the generation.
    pub fn finish(&mut self) -> Parts {
        let rest = std::mem::replace(&mut self.stream, self.tokenizer.stream()).finish();
        let mut came = self.reader.push(&rest);
        came.extend(std::mem::replace(&mut self.reader, Reader::plain()).finish());
        let (mut parts, stop) = self.stopped(came);
        let rest = self.stops.finish();
        if stop.is_none() && !rest.is_empty() {
            self.generated.answer.push_str(&rest);
            parts.push((Part::Answer, rest));
        }
        parts
    }

    /// Text that came, up to a stop in the answer.
    fn stopped(&mut self, came: Parts) -> (Parts, Option<String>) {
        let mut parts = Vec::with_capacity(came.len());
        for (part, text) in came {
            if part == Part::Reasoning {
                self.generated.reasoning.push_str(&text);
                parts.push((part, text));
                continue;
            }
            let (text, stop) = self.stops.push(&text);
            self.generated.answer.push_str(&text);
            if !text.is_empty() {
                parts.push((part, text));
            }
            if stop.is_some() {
                return (parts, stop);
            }
        }
        (parts, None)
    }

    fn note(&mut self, logits: &[f32], token: u32, n: usize) {
        let one = |(id, p): (u32, f32)| {
            let (text, bytes) = (self.tokenizer.decode(&[id], true), self.tokenizer.bytes(id, true));
            json!({ "token": text, "id": id, "bytes": bytes, "logprob": p })
        };
        let mut own = one((token, logprob_of(logits, token)));
        own["top"] = logprobs(logits, n).into_iter().map(one).collect();
        self.generated.logprobs.push(own);
    }
}

/// Writes from `output` on, which the session returned for the prompt, until something ends the generation; `show` sees
/// the text as it comes, and is called with none for a token that completes none. However it ends, the sequence has then
/// read what was written and no drafts.
///
/// # Errors
/// As [`Writer::next`] and [`Session::feed`], and what `show` returns.
pub fn write(
    session: &mut Session,
    speculation: &mut Speculation,
    seq: usize,
    writer: &mut Writer<'_>,
    output: Output,
    stop: &AtomicBool,
    show: &mut dyn FnMut(Part, &str) -> Result<()>,
) -> Result<End> {
    speculation.begin(seq);
    let ended = write_on(session, speculation, seq, writer, output, stop, show);
    let settled = speculation.settle(session, seq);
    ended.and_then(|end| settled.map(|()| end))
}

fn write_on(
    session: &mut Session,
    speculation: &mut Speculation,
    seq: usize,
    writer: &mut Writer<'_>,
    mut output: Output,
    stop: &AtomicBool,
    show: &mut dyn FnMut(Part, &str) -> Result<()>,
) -> Result<End> {
    loop {
        let interrupted = stop.load(Ordering::SeqCst);
        let (token, parts, end) =
            if interrupted { (0, writer.finish(), Some(End::Interrupted)) } else { writer.next(&output)? };
        if parts.is_empty() && end.is_none() {
            show(writer.reader.part().unwrap_or(Part::Answer), "")?;
        }
        for (part, text) in parts {
            show(part, &text)?;
        }
        if let Some(end) = end {
            return Ok(end);
        }
        if speculation.len_of(session, seq) == session.n_ctx() {
            for (part, text) in writer.finish() {
                show(part, &text)?;
            }
            return Ok(End::Context);
        }
        let next = Next { seq, token, want: writer.want(), room: writer.room() };
        output = speculation.read(session, next)?;
    }
}
