//! Tokens in, logits out: one call takes any mix of prompts and of single tokens.
//!
//! ```text
//! check every part; an error here changes nothing
//! for each part of several tokens: its batches, one walk each          kernels for many rows
//! for all parts of one token:      one walk for all of them together   row kernels only, if they are few
//! ```
//! Prompts and single tokens are walks of their own on purpose. In one walk the prompt would either go through row
//! kernels, which decode every weight again for every row, or the single tokens would share products with it, and their
//! last bits would depend on what else is being read. Prompts come first, so that an interruption, which can only hit a
//! prompt, finds no single token read whose output would be lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};

use super::{ContextFull, Interrupted, Session};
use crate::exec::{GpuLost, Observer, Watch};
use crate::gguf::CutShort;
use crate::sample::argmax;
use crate::tape::{Batch, Row};

/// Single tokens that are computed together and come out as if each were alone. Measured on two cores: 8 lose a tenth at
/// most by it, 32 a quarter.
pub(super) const FEW: usize = 8;

/// In a prompt that leaves rows out every so many tokens all states are made whole, so that an interruption or a prompt with
/// another end need not read everything again: for DeepSeek-V4.1 that is as much work as reading 600 tokens.
const WHOLE: usize = 16384;

/// Which logits a call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None.
    None,
    /// None: these are tokens of a prompt, of which so many more will be read next, before anything else happens to the
    /// sequence. A model whose prompts leave rows out ([`Tape::spares_rows`](crate::tape::Tape::spares_rows)) then computes
    /// of these tokens what the prompt's end needs. Until it is read the sequence can be cleared and rewound, nothing else
    /// ([`Session::is_whole`]).
    More(usize),
    /// Those after the last token.
    Last,
    /// Those after every token.
    All,
    /// Those after every token of the call from this one on.
    From(usize),
    /// Of those after the last token only the largest, and whose it is: the logits need not leave a GPU.
    Argmax,
}

/// The result of a call for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The logits that were asked for: (output rows, n_vocab), row-major. Empty where none were.
    Logits(Vec<f32>),
    /// The largest logit after the last token, for [`Want::Argmax`].
    Argmax {
        /// Whose logit it is: the first of several equal ones, or the first whose logit is NaN.
        token: u32,
        /// The logit.
        logit: f32,
    },
}

impl Output {
    /// The logits.
    ///
    /// # Panics
    /// If the call asked for the argmax alone.
    pub fn into_logits(self) -> Vec<f32> {
        match self {
            Output::Logits(logits) => logits,
            Output::Argmax { .. } => panic!("Want::Argmax returns no logits"),
        }
    }

    /// The largest of a token's logits, as [`Want::Argmax`] returns it.
    pub fn argmax(logits: &[f32]) -> Output {
        let best = logits.iter().position(|v| v.is_nan()).unwrap_or_else(|| argmax(logits) as usize);
        Output::Argmax { token: best as u32, logit: logits[best] }
    }
}

/// Rows of prompts in the layers that need not compute all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct SparedRows {
    /// Rows of the batches, summed over these layers.
    pub all: usize,
    /// Those of them that were computed.
    pub computed: usize,
}

/// The progress of reading a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens to be read.
    pub total: usize,
    /// Tokens that are read. Those of the batch that is being computed count by the share of the model's steps that are
    /// done, since a batch may take a minute.
    pub read: usize,
}

/// Steps with one new token for a sequence, which is what generating is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct DecodeStats {
    /// Tokens that were computed alone.
    pub tokens: usize,
    /// Seconds that they took.
    pub seconds: f64,
    /// Tokens of steps of several sequences, which are counted in neither of the others.
    pub together: usize,
}

/// Who looks on during a call.
#[derive(Default)]
pub(super) struct Looking<'a> {
    pub(super) observer: Option<Observer<'a>>,
    progress: Option<&'a mut dyn FnMut(Progress)>,
}

/// The observer for one of several walks.
fn reborrow<'a>(observer: &'a mut Option<Observer<'_>>) -> Option<Observer<'a>> {
    match observer {
        Some(f) => Some(&mut **f),
        None => None,
    }
}

impl Session {
    /// Reads tokens into each of several sequences and returns what each part wants, in the order
    /// of the parts. A part of several tokens is read like a prompt, in batches; parts of one token
    /// are computed together. On the CPU each of those comes out bit for bit as if it were alone,
    /// if there are at most 8 or if that was asked for
    /// ([`Options::deterministic`](super::Options::deterministic)); with more, their products share
    /// decoded weights.
    ///
    /// # Errors
    /// With every sequence as it was: a token outside the vocabulary, [`ContextFull`], a sequence
    /// that has two parts. [`Interrupted`] if the stop flag was raised while a prompt was read: the
    /// sequences hold the batches that were finished, and no part of one token; of a model whose prompts leave rows out
    /// ([`Tape::spares_rows`](crate::tape::Tape::spares_rows)) what they held before, and some multiple of 16384 tokens. [`CutShort`] if a
    /// file of the model is not what it was: what was being computed is dropped, and the sequences
    /// hold what they held before, or less where that is overwritten. [`GpuLost`] if a GPU fails
    /// and [`Options::gpu_fallback`](super::Options::gpu_fallback) is not set: all sequences are
    /// then empty.
    pub fn forward(&mut self, parts: &[(usize, &[u32], Want)]) -> Result<Vec<Output>> {
        self.forward_watched(parts, Looking::default())
    }

    /// Reads `tokens` into a sequence and returns what is wanted.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn feed(&mut self, seq: usize, tokens: &[u32], want: Want) -> Result<Output> {
        self.feed_watched((seq, tokens, want), Looking::default())
    }

    /// [`Session::feed`] that reports how far it is: at the beginning, at the end, and after every step in between.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn feed_with_progress(
        &mut self,
        seq: usize,
        tokens: &[u32],
        want: Want,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Output> {
        let total = tokens.len();
        progress(Progress { total, read: 0 });
        let looking = Looking { observer: None, progress: Some(progress) };
        let output = self.feed_watched((seq, tokens, want), looking)?;
        progress(Progress { total, read: total });
        Ok(output)
    }

    /// [`Session::feed`] with an `observer` that sees every step's outputs.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn feed_observed(
        &mut self,
        seq: usize,
        tokens: &[u32],
        want: Want,
        observer: Option<Observer<'_>>,
    ) -> Result<Output> {
        self.feed_watched((seq, tokens, want), Looking { observer, progress: None })
    }

    /// One token for each of several sequences, computed together.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn step(&mut self, rows: &[(usize, u32)], want: Want) -> Result<Vec<Output>> {
        let parts: Vec<(usize, &[u32], Want)> =
            rows.iter().map(|(seq, token)| (*seq, std::slice::from_ref(token), want)).collect();
        self.forward(&parts)
    }

    /// The single tokens read so far.
    pub fn decode_stats(&self) -> DecodeStats {
        self.decode_stats
    }

    /// What prompts left out so far; all zeros for a model whose prompts leave nothing out.
    pub fn spared_rows(&self) -> SparedRows {
        self.spared_rows
    }

    /// Fails if a sequence that has `used` tokens cannot have these too.
    ///
    /// # Errors
    /// A token outside the vocabulary, or [`ContextFull`].
    pub fn check(&self, used: usize, tokens: &[u32]) -> Result<()> {
        if let Some(bad) = tokens.iter().find(|&&t| t as usize >= self.n_vocab) {
            bail!("token {bad} is outside the vocabulary of {} tokens", self.n_vocab);
        }
        if used + tokens.len() > self.shape.n_ctx {
            return Err(ContextFull { n_ctx: self.shape.n_ctx, used, given: tokens.len() }.into());
        }
        Ok(())
    }

    fn feed_watched(&mut self, part: (usize, &[u32], Want), looking: Looking<'_>) -> Result<Output> {
        Ok(self.forward_watched(&[part], looking)?.remove(0))
    }

    /// Computes the parts; where the GPU fails and the session goes on with the CPU, from the
    /// beginning of the call again.
    fn forward_watched(&mut self, parts: &[(usize, &[u32], Want)], mut looking: Looking<'_>) -> Result<Vec<Output>> {
        self.recovering(|s| s.forward_once(parts, &mut looking))
    }

    /// Computes; where the GPU fails and the session goes on with the CPU, once more.
    pub(super) fn recovering<T>(&mut self, mut compute: impl FnMut(&mut Session) -> Result<T>) -> Result<T> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone().into());
        }
        let had = self.lengths();
        match compute(self) {
            Err(e) if e.is::<GpuLost>() && self.lost.is_none() => {
                self.after_loss(&had, e)?;
                compute(self)
            }
            done => done,
        }
    }

    /// Fails if a part has tokens that its sequence cannot have, or a sequence has two parts.
    pub(super) fn check_parts(&self, parts: &[(usize, &[u32], Want)]) -> Result<()> {
        for (i, &(seq, tokens, _)) in parts.iter().enumerate() {
            self.check(self.seqs[seq].tokens.len(), tokens)?;
            if parts[..i].iter().any(|p| p.0 == seq) {
                bail!("sequence {seq} is given twice in one call; at most one part for each sequence expected");
            }
        }
        Ok(())
    }

    fn forward_once(&mut self, parts: &[(usize, &[u32], Want)], looking: &mut Looking<'_>) -> Result<Vec<Output>> {
        self.check_parts(parts)?;
        let mut outputs: Vec<Output> = parts.iter().map(|_| Output::Logits(Vec::new())).collect();
        let is_single = |p: &(usize, &[u32], Want)| p.1.len() == 1 && !matches!(p.2, Want::More(_));
        for (output, &part) in outputs.iter_mut().zip(parts).filter(|(_, p)| !p.1.is_empty() && !is_single(p)) {
            *output = self.read_prompt(part, looking)?;
        }
        let singles: Vec<usize> = (0..parts.len()).filter(|&i| is_single(&parts[i])).collect();
        let deterministic_rows = self.options.deterministic || singles.len() <= FEW;
        let start = Instant::now();
        for group in singles.chunks(self.shape.n_batch.min(self.shape.n_output_rows)) {
            let rows: Vec<(usize, u32, Want)> =
                group.iter().map(|&i| (parts[i].0, parts[i].1[0], parts[i].2)).collect();
            let computed = self.decode(&rows, deterministic_rows, reborrow(&mut looking.observer))?;
            group.iter().zip(computed).for_each(|(&i, output)| outputs[i] = output);
        }
        match singles[..] {
            [] => {}
            [i] if self.seqs[parts[i].0].tokens.len() == 1 => {} // a prompt of one token
            [_] => {
                self.decode_stats.tokens += 1;
                self.decode_stats.seconds += start.elapsed().as_secs_f64();
            }
            _ => self.decode_stats.together += singles.len(),
        }
        Ok(outputs)
    }

    /// Computes one token for each of several sequences in one walk, or several where drafts are verified. Such a walk is not
    /// interrupted: it is over soon.
    pub(super) fn decode(
        &mut self,
        rows: &[(usize, u32, Want)],
        deterministic_rows: bool,
        observer: Option<Observer<'_>>,
    ) -> Result<Vec<Output>> {
        let likely = self.likely_of(&rows.iter().map(|row| row.0).collect::<Vec<_>>());
        let is_wanted = |want: Want| !matches!(want, Want::None | Want::More(_) | Want::From(1..));
        let output_rows: Vec<u32> = (0..rows.len() as u32).filter(|&i| is_wanted(rows[i as usize].2)).collect();
        let argmax_only = !output_rows.is_empty() && output_rows.iter().all(|&i| rows[i as usize].2 == Want::Argmax);
        let row = |(i, &(seq, token, _)): (usize, &(usize, u32, Want))| {
            let before = rows[..i].iter().rev().take_while(|r| r.0 == seq).count();
            Row { token, seq: seq as u32, pos: (self.seqs[seq].tokens.len() + before) as u32 }
        };
        let verifies = rows.windows(2).any(|pair| pair[0].0 == pair[1].0);
        let batch = Batch {
            rows: rows.iter().enumerate().map(row).collect(),
            output_rows,
            argmax_only,
            deterministic_rows,
            alone: self.options.deterministic,
            verifies,
            likely,
            ..Batch::default()
        };
        let start = Instant::now();
        if let Err(e) = self.engine.walk(&batch, &AtomicBool::new(false), Watch { observer, progress: None }) {
            if e.is::<CutShort>() {
                rows.iter().try_for_each(|row| self.undo_walk(row.0))?;
            }
            return Err(e);
        }
        tracing::trace!("decoded {} token(s) in {:.2} ms", rows.len(), start.elapsed().as_secs_f64() * 1e3);
        for &(seq, token, _) in rows {
            self.seqs[seq].tokens.push(token);
        }
        let result = self.engine.result(&batch);
        let mut results = result.chunks_exact(if argmax_only { 2 } else { self.n_vocab });
        let output = |want: Want| match want {
            want if !is_wanted(want) => Output::Logits(Vec::new()),
            Want::Argmax => match *results.next().expect("a result for each row that wants one") {
                [token, logit] if argmax_only => Output::Argmax { token: token as u32, logit },
                ref logits => Output::argmax(logits), // others of the walk want their logits
            },
            _ => Output::Logits(results.next().expect("a result for each row that wants one").to_vec()),
        };
        Ok(rows.iter().map(|r| r.2).map(output).collect())
    }

    /// Reads several tokens into a sequence, batch after batch, with checkpoints before and after them.
    fn read_prompt(&mut self, (seq, tokens, want): (usize, &[u32], Want), looking: &mut Looking<'_>) -> Result<Output> {
        let n_batch = match want {
            Want::All | Want::From(_) => self.shape.n_batch.min(self.shape.n_output_rows),
            _ => self.shape.n_batch,
        };
        let more = if let Want::More(n) = want { n } else { 0 };
        // What the rows whose logits are wanted look at is not left out before them.
        let wanted = if let Want::From(n) = want { n + 1 } else { usize::MAX };
        let stop = self.seqs[seq].tokens.len() + wanted.min(tokens.len() + more);
        self.checkpoint(seq)?;
        let mut results = Vec::new();
        for (i, chunk) in tokens.chunks(n_batch).enumerate() {
            let (first, pos) = (i * n_batch, self.seqs[seq].tokens.len() as u32);
            let n = chunk.len() as u32;
            let row = |(token, pos): (&u32, u32)| Row { token: *token, seq: seq as u32, pos };
            let output_rows = match want {
                Want::All => (0..n).collect(),
                Want::From(from) => (from.saturating_sub(first) as u32..n).collect(),
                Want::Last | Want::Argmax if first + chunk.len() == tokens.len() => vec![n - 1],
                _ => Vec::new(),
            };
            // To where the states are to be whole next: what that takes begins in the batches before.
            let whole = (pos as usize / WHOLE + 1) * WHOLE;
            let left = whole.min(stop).saturating_sub(pos as usize + chunk.len());
            let likely = if output_rows.is_empty() { None } else { self.likely_of(&[seq]) };
            let batch = Batch {
                rows: chunk.iter().zip(pos..).map(row).collect(),
                output_rows,
                argmax_only: want == Want::Argmax,
                follow: self.engine.tape.spares_rows.then_some(left),
                likely,
                ..Batch::default()
            };
            self.read_batch((seq, chunk), &batch, (first, tokens.len()), looking)?;
            if !batch.output_rows.is_empty() {
                results.extend_from_slice(self.engine.result(&batch));
            }
            self.heads_follow(seq)?;
        }
        self.checkpoint(seq)?;
        match want {
            Want::Argmax => Ok(Output::Argmax { token: results[0] as u32, logit: results[1] }),
            _ => Ok(Output::Logits(results)),
        }
    }

    /// Reads one batch of a prompt, of whose `total` tokens `first` come before it. An interruption leaves the sequence as
    /// it was before the batch.
    fn read_batch(
        &mut self,
        (seq, chunk): (usize, &[u32]),
        batch: &Batch,
        (first, total): (usize, usize),
        looking: &mut Looking<'_>,
    ) -> Result<()> {
        let from = self.seqs[seq].tokens.len();
        // Going back from a half-read batch must not mean reading all batches before it again.
        let is_whole = self.is_whole(seq);
        let before = (first > 0 && self.is_overwritten() && is_whole).then(|| self.overwritten(seq)).transpose()?;
        let n_steps = self.engine.tape.model().len();
        let observer = reborrow(&mut looking.observer);
        let mut report = looking
            .progress
            .as_mut()
            .map(|f| move |done: usize| f(Progress { total, read: first + chunk.len() * done / n_steps }));
        let progress = report.as_mut().map(|f| f as &mut dyn FnMut(usize));
        let start = Instant::now();
        let walked = self.engine.walk(batch, &self.stop, Watch { observer, progress });
        if walked.as_ref().is_err_and(|e| e.is::<CutShort>()) {
            self.seqs[seq].checkpoints.extend(before);
            self.undo_walk(seq)?;
            return Err(walked.expect_err("just seen"));
        }
        if !walked? {
            self.stop.store(false, Ordering::Relaxed);
            self.seqs[seq].tokens.extend_from_slice(chunk); // half-read: states may hold any of these
            self.seqs[seq].checkpoints.extend(before);
            match is_whole {
                true => drop(self.rewind(seq, from)?),
                false => drop(self.go_to_checkpoint(seq)?), // reading it again would take as long
            }
            return Err(Interrupted.into());
        }
        let spared = self.engine.tape.model().iter().filter(|s| s.op.name() == "experts").filter_map(|s| s.last);
        for reach in spared {
            self.spared_rows.all += chunk.len();
            self.spared_rows.computed += chunk.len() - batch.first(reach);
        }
        let (n, seconds) = (chunk.len(), start.elapsed().as_secs_f64().max(1e-9));
        tracing::trace!(
            "read {n} tokens from position {from} on in {seconds:.3} s, {:.1} tokens/s",
            n as f64 / seconds
        );
        // It was needed in case of an interruption; now it spares later prompts with this beginning a second reading.
        if let Some(before) = before {
            self.keep_checkpoint(seq, before);
        }
        self.seqs[seq].tokens.extend_from_slice(chunk);
        if let Some(report) = &mut report {
            report(n_steps);
        }
        Ok(())
    }
}
