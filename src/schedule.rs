//! A scheduler: requests in, answers out, several at once over the sequences of one session.
//!
//! Each sequence is a slot. A request waits until a slot is free, takes the one that has read most of its prompt already,
//! or copies what another slot has read of it. Then every step computes, in one call of [`Session::forward`],
//!
//! ```text
//! a piece of the prompt that is being read, and whole short prompts after it, up to PIECE tokens together
//! the next token of every answer that is being generated
//! ```
//! so that a long prompt holds no answer up for longer than one piece takes. Where a prompt is cut depends on the prompt
//! alone (and on what of it was known), never on what else is running: with kernels for many rows the last bits of its
//! logits depend on the cuts, and an answer must not depend on its neighbours.
//!
//! Where a model's prompts leave rows out, each piece leaves out what the prompt's end does not look at, so that pieces cost no
//! more than the whole. Then a sequence can go back to few places in it: to where it was whole. So a prompt that begins as
//! another did, of which too little is kept, is made whole where they part, and those that begin alike go on from there.
//! Rejected: longer pieces where nothing is being generated, which leave out less, and would make cuts depend on neighbours.
//!
//! Where tokens are drafted, an answer's next tokens may be read already: they are chosen at the beginning of a step, so that
//! all answers need a new walk at the same time.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

use crate::session::{Output, Session, Want};
use crate::speculate::{Next, Speculation};
use crate::talk::{End, Generated, Writer, shared};

/// Tokens of prompts that one step reads, at most. Measured with a 30B mixture of experts on the CPU
/// (benches/record/2026-11-21-zen4-targets.md): 128 tokens are read at 0.72 to 0.85 of the speed of 512, and hold the
/// others up for a third of the time; 64 are read at 0.54 to 0.70 of it.
pub const PIECE: usize = 128;

/// Tokens that two prompts must share beyond what a slot has read, for a copy, or a wait, to be worth its time.
const WORTH: usize = 16;

/// A prompt that wants an answer.
#[derive(Debug)]
pub struct Request<'t> {
    /// The caller's name for it, which its [`Answer`] carries.
    pub number: usize,
    /// What is to be read; at least one token.
    pub prompt: Vec<u32>,
    /// What generates the answer.
    pub writer: Writer<'t>,
}

/// What became of a request.
#[derive(Debug)]
pub struct Answer {
    /// The request's number.
    pub number: usize,
    /// What was generated.
    pub generated: Generated,
    /// What ended it, or why it failed.
    pub end: Result<End>,
    /// Whether the text is whole by its grammar; true where there is none.
    pub complete: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that did not have to be read for this request.
    pub known_tokens: usize,
    /// Seconds since the request was added.
    pub seconds: f64,
}

/// A sequence of the session that answers a request.
#[derive(Debug)]
struct ActiveRequest<'t> {
    request: Request<'t>,
    /// The answer's newest token, which is not read yet; None while the prompt is being read.
    token: Option<u32>,
    known: usize,
    /// Where its prompt parts from one that was read before, if that is not known: the sequence is whole there.
    parts: usize,
    added: Instant,
}

/// Requests that are answered over one session.
#[derive(Debug)]
pub struct Scheduler<'t> {
    session: Session,
    /// One for each sequence of the session.
    slots: Vec<Option<ActiveRequest<'t>>>,
    /// Requests that have no slot yet, oldest first.
    waiting: VecDeque<(Request<'t>, Instant)>,
    speculation: Speculation,
    /// Answers that ended and were not returned yet.
    done: Vec<Answer>,
}

impl<'t> Scheduler<'t> {
    /// Takes over a session, all of whose sequences become slots.
    pub fn new(session: Session, speculation: Speculation) -> Scheduler<'t> {
        let slots = (0..session.n_seq()).map(|_| None).collect();
        Scheduler { session, slots, waiting: VecDeque::new(), speculation, done: Vec::new() }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// What was drafted.
    pub fn speculation(&self) -> &Speculation {
        &self.speculation
    }

    /// Whether a slot is left for one more request.
    pub fn has_room(&self) -> bool {
        self.slots.iter().flatten().count() + self.waiting.len() < self.slots.len()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// Accepts a request. Its prompt is read by the steps that follow.
    ///
    /// # Errors
    /// If the prompt is empty, has a token outside the vocabulary, or is longer than the context
    /// ([`ContextFull`](crate::session::ContextFull)). The request is then not accepted.
    pub fn add(&mut self, request: Request<'t>) -> Result<()> {
        if request.prompt.is_empty() {
            bail!("the prompt is empty");
        }
        self.session.check(0, &request.prompt)?;
        self.waiting.push_back((request, Instant::now()));
        Ok(())
    }

    /// Reads the next piece of the prompts and computes a token for every answer, or several where drafts are right.
    /// Returns the answers that ended with them.
    ///
    /// # Errors
    /// [`Interrupted`](crate::session::Interrupted) if the session's stop flag was raised while a prompt was read, and
    /// others if a GPU fails: the answers are then as far as they were, and may be gone on with.
    pub fn step(&mut self) -> Result<Vec<Answer>> {
        self.choose_drafted()?;
        let pieces = self.plan_pieces()?;
        self.read_prompts(&pieces)?;
        let nexts: Vec<Next> = (0..self.slots.len()).filter(|i| pieces[*i] == 0).filter_map(|i| self.next(i)).collect();
        if !nexts.is_empty() {
            let outputs = self.speculation.read_all(&mut self.session, &nexts)?;
            for (next, output) in nexts.iter().zip(outputs) {
                self.choose_token(next.seq, &output)?;
            }
        }
        Ok(std::mem::take(&mut self.done))
    }

    /// A slot's newest token, if it generates.
    fn next(&self, i: usize) -> Option<Next> {
        let slot = self.slots[i].as_ref()?;
        let writer = &slot.request.writer;
        slot.token.map(|token| Next { seq: i, token, want: writer.want(), room: writer.room() })
    }

    /// Chooses the tokens whose logits are there, since what they follow was drafted; then no sequence is ahead.
    fn choose_drafted(&mut self) -> Result<()> {
        for i in 0..self.slots.len() {
            while let Some(next) = self.next(i)
                && let Some(output) = self.speculation.take(&next)
            {
                self.choose_token(i, &output)?;
            }
            self.speculation.settle(&mut self.session, i)?;
        }
        Ok(())
    }

    /// Reads a piece of each prompt; of those that end with it, the first token is chosen.
    fn read_prompts(&mut self, pieces: &[usize]) -> Result<()> {
        let (mut at, mut parts) = (Vec::new(), Vec::new());
        for (i, &piece) in pieces.iter().enumerate().filter(|(_, piece)| **piece > 0) {
            let slot = self.slots[i].as_ref().expect("a slot that reads");
            let Request { prompt, writer, .. } = &slot.request;
            let read = self.session.tokens(i).len();
            let end = read + piece;
            let want = if end == prompt.len() { writer.want() } else { Want::More(slot.stretch_end(read) - end) };
            parts.push((i, &prompt[read..read + piece], want));
            at.push(i);
        }
        if parts.is_empty() {
            return Ok(());
        }
        let outputs = self.session.forward(&parts)?;
        for (i, output) in at.into_iter().zip(outputs) {
            let prompt = &self.slots[i].as_ref().expect("a slot that reads").request.prompt;
            if self.session.tokens(i).len() == prompt.len() {
                self.speculation.begin(i);
                self.choose_token(i, &output)?;
            }
        }
        Ok(())
    }

    /// Chooses a slot's next token; an answer that ends with it is done.
    fn choose_token(&mut self, i: usize, output: &Output) -> Result<()> {
        let full = self.speculation.len_of(&self.session, i) == self.session.n_ctx();
        let slot = self.slots[i].as_mut().expect("the slot answers a request");
        let end = match slot.request.writer.next(output) {
            Ok((token, _, end)) => {
                slot.token = Some(token);
                end.or(full.then_some(End::Context)).map(Ok)
            }
            Err(e) => Some(Err(e)),
        };
        if let Some(end) = end {
            let answer = self.slots[i].take().expect("the slot answers a request").end(end);
            self.done.push(answer);
            self.speculation.settle(&mut self.session, i)?;
        }
        Ok(())
    }

    /// Ends what is being generated with [`End::Interrupted`]. Requests whose prompt was not read yet are dropped.
    pub fn interrupt(&mut self) -> Vec<Answer> {
        self.waiting.clear();
        self.slots.iter_mut().for_each(|slot| *slot = slot.take().filter(|s| s.token.is_some()));
        self.release_all(|| Ok(End::Interrupted))
    }

    /// Ends every request with this error.
    pub fn fail(&mut self, why: &anyhow::Error) -> Vec<Answer> {
        let why = format!("{why:#}");
        let mut answers = self.release_all(|| Err(anyhow!("{why}")));
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let slot = |(request, added)| ActiveRequest { request, token: None, known: 0, parts: 0, added };
        answers.extend(waiting.map(slot).map(|slot| slot.end(Err(anyhow!("{why}")))));
        answers
    }

    /// How many tokens of its prompt each slot reads in the next step. Gives waiting requests their slots.
    fn plan_pieces(&mut self) -> Result<Vec<usize>> {
        let mut pieces = vec![0; self.slots.len()];
        // At most one prompt is half read: others begin only where their first piece fits into the step, too.
        for (i, piece) in pieces.iter_mut().enumerate() {
            if let Some(slot) = self.slots[i].as_ref().filter(|slot| slot.token.is_none()) {
                let read = self.session.tokens(i).len();
                *piece = (slot.stretch_end(read) - read).min(PIECE);
            }
        }
        while let Some((request, _)) = self.waiting.front()
            && self.slots.iter().any(Option::is_none)
        {
            let source = self.choose(&request.prompt);
            let piece = (stretch_end(&request.prompt, source.parts, source.n) - source.n).min(PIECE);
            let used: usize = pieces.iter().sum();
            if self.is_being_read(&request.prompt, source.n) || (used > 0 && used + piece > PIECE) {
                break;
            }
            let again = self.prepare(&source)?;
            let (request, added) = self.waiting.pop_front().expect("it was looked at");
            let Source { slot, n, parts, .. } = source;
            self.slots[slot] = Some(ActiveRequest { request, token: None, known: n - again, parts, added });
            pieces[slot] = piece;
        }
        Ok(pieces)
    }

    /// The free slot for a prompt, and the sequence that has most of it.
    fn choose(&self, prompt: &[u32]) -> Source {
        let prompt = &prompt[..prompt.len() - 1]; // logits follow a token: one at least is read
        let alike = |i: usize| shared(self.session.tokens(i), prompt);
        let known = |i: &usize| self.session.kept(*i, alike(*i));
        let free = (0..self.slots.len()).filter(|i| self.slots[*i].is_none());
        let slot = free.max_by_key(|i| (known(i), usize::MAX - i)).expect("a slot is free");
        let whole = (0..self.slots.len()).filter(|i| self.session.is_whole(*i));
        let from = whole.max_by_key(known).filter(|from| known(from) >= known(&slot) + WORTH).unwrap_or(slot);
        let (n, longest) = (known(&from), (0..self.slots.len()).map(alike).max().unwrap_or(0));
        Source { slot, from, n, parts: if longest >= n + WORTH { longest } else { n } }
    }

    /// Whether a slot that is reading its prompt will soon have more of this one than the `known` tokens that there are.
    fn is_being_read(&self, prompt: &[u32], known: usize) -> bool {
        let prompt = &prompt[..prompt.len() - 1];
        let mut reading = self.slots.iter().flatten().filter(|slot| slot.token.is_none());
        reading.any(|slot| shared(&slot.request.prompt, prompt) >= known + WORTH)
    }

    /// Makes a slot's sequence what was chosen for it. Returns how many tokens had to be read again for that.
    fn prepare(&mut self, &Source { slot, from, n, .. }: &Source) -> Result<usize> {
        if from == slot { self.session.rewind(slot, n) } else { self.session.copy(from, slot, n) }
    }

    fn release_all(&mut self, end: impl Fn() -> Result<End>) -> Vec<Answer> {
        let mut answers = std::mem::take(&mut self.done);
        answers.extend(self.slots.iter_mut().filter_map(Option::take).map(|slot| slot.end(end())));
        for i in 0..self.slots.len() {
            let _ = self.speculation.settle(&mut self.session, i); // what fails here fails at the next walk, too
        }
        answers
    }
}

/// Where the stretch of a prompt ends, made whole at `parts`, that is read once `read` tokens are.
fn stretch_end(prompt: &[u32], parts: usize, read: usize) -> usize {
    if read < parts { parts } else { prompt.len() }
}

/// Where a slot takes what is known of a prompt from.
#[derive(Debug)]
struct Source {
    slot: usize,
    /// The sequence that has read its first `n` tokens; the slot's own, or another's that is copied.
    from: usize,
    n: usize,
    /// The tokens that it shares with a sequence, be they kept or not.
    parts: usize,
}

impl ActiveRequest<'_> {
    /// Where the stretch of the prompt ends that is being read once `read` tokens are.
    fn stretch_end(&self, read: usize) -> usize {
        stretch_end(&self.request.prompt, self.parts, read)
    }

    fn end(self, end: Result<End>) -> Answer {
        let ActiveRequest { request: Request { number, prompt, mut writer }, known, added, .. } = self;
        if matches!(end, Ok(End::Context | End::Interrupted)) {
            writer.finish(); // what was held back as the possible beginning of a stop text
        }
        let complete = writer.is_complete();
        let (generated, seconds) = (writer.generated, added.elapsed().as_secs_f64());
        Answer { number, generated, end, complete, prompt_tokens: prompt.len(), known_tokens: known, seconds }
    }
}
