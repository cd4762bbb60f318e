//! Draft heads: what a model's own blocks for multi-token prediction say comes next.
//!
//! ```text
//! n tokens are read, t_0 is chosen to come at position n
//! one head        reads (t_0, H[n-1]) -> t_1, H[n];  (t_1, H[n]) -> t_2, H[n+1];  ..
//! several heads   head i reads (t_0, H[n-1]) .. (t_i, H[n+i-1]) -> t_(i+1), H[n+i]
//! ```
//! H holds the rows that the model hands on (`ops/hand.rs`). A head has keys and values of its own for every token, made
//! from the model's rows: what it read while it drafted is read again from those, in the walk that begins the next draft.
//! Where nothing is drafted for a while a head falls behind. Before the next prompt it reads what it missed, as far as H
//! remembers; before a draft only the last of it, so that trying one costs little. What the heads say never decides what the
//! model says, so a head without some rows drafts worse and does no other harm.

use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};

use super::Session;
use crate::exec::{GpuLost, Watch};
use crate::sample::argmax;
use crate::tape::{Batch, Likely, Row};

/// Tokens that a head reads before a draft, at most, of those that it missed.
pub const LAG: usize = 64;

/// Tokens of one draft, at most: less than what every ring can go back by.
const MOST: usize = 64;

/// Rows of a walk that come out as if each were alone.
const FEW: usize = 8;

/// What is wanted of a step of a draft.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    /// The argmax and its logit, and nothing else.
    argmax_only: bool,
    /// The tokens whose logits are wanted; None is all.
    likely: Option<Likely>,
}

/// How far a head has read a sequence.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeadProgress {
    /// Tokens read with the model's rows.
    read: usize,
    /// The token after them, if it was read already: it was about to come.
    next: Option<u32>,
}

impl HeadProgress {
    /// Of a sequence with all of its `n` tokens read.
    pub(super) fn whole(n: usize) -> HeadProgress {
        HeadProgress { read: n, next: None }
    }

    /// The first position that is to be read, of a sequence with these tokens.
    fn from(self, tokens: &[u32]) -> usize {
        match self.next {
            Some(next) if tokens.get(self.read) == Some(&next) => self.read + 1,
            _ => self.read.min(tokens.len()),
        }
    }
}

impl Session {
    /// The number of draft heads; 0 where the file has none, or [`Options::heads`](super::Options::heads) is not set.
    pub fn n_heads(&self) -> usize {
        self.engine.tape.n_heads()
    }

    /// Drafts up to `most` tokens that may follow `next_token`, the one that was chosen to come next
    /// and is not read yet. A draft ends before a token whose probability is below `p_min`, with the
    /// last head where there are several, and where the context does; it is empty without heads.
    /// The sequence does not change.
    ///
    /// # Errors
    /// A token outside the vocabulary, or [`ContextFull`](super::ContextFull). As
    /// [`Session::forward`] for a file that was cut short and for a GPU that fails; with
    /// [`Options::gpu_fallback`](super::Options::gpu_fallback) the draft is then empty.
    pub fn draft(&mut self, seq: usize, next_token: u32, most: usize, p_min: f32) -> Result<Vec<u32>> {
        self.draft_with((seq, next_token), (most, p_min), true, &mut |_, _| ())
    }

    /// [`Session::draft`] among all tokens of the vocabulary, not only likely ones, that shows `look` the logits of every
    /// step: the step's number and (n_vocab) values, or the argmax and its logit where a GPU is used and `p_min` is 0.
    ///
    /// # Errors
    /// As [`Session::draft`].
    pub fn draft_observed(
        &mut self,
        seq: usize,
        next_token: u32,
        most: usize,
        p_min: f32,
        look: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Vec<u32>> {
        self.draft_with((seq, next_token), (most, p_min), false, look)
    }

    /// A draft, among likely tokens or all.
    fn draft_with(
        &mut self,
        (seq, next_token): (usize, u32),
        (most, p_min): (usize, f32),
        likely: bool,
        look: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Vec<u32>> {
        let n = self.seqs[seq].tokens.len();
        self.check(n, &[next_token])?;
        if let Some(lost) = &self.lost {
            return Err(lost.clone().into());
        }
        let heads = self.n_heads();
        // A drafter of its own looks at what the model has read.
        let steps = if heads > 1 { heads } else { heads * MOST * usize::from(n > 0 || !self.engine.tape.is_drafter) };
        let most = most.min(steps).min(self.shape.n_ctx - n - 1);
        // On the CPU the logits are there anyway.
        let argmax_only = p_min <= 0.0 && self.engine.plan.on_gpu();
        let mut prefix = vec![next_token];
        for i in 0..most {
            let likely = if likely { self.likely_after(seq) } else { None };
            let wanted = Wanted { argmax_only, likely };
            let step = match self.engine.tape.is_drafter {
                true => self.drafter_step(seq, i.min(1), prefix[i], wanted),
                false => self.head_step(seq, if heads > 1 { i } else { 0 }, &prefix, wanted),
            };
            let logits = match step {
                Err(e) if e.is::<GpuLost>() && self.lost.is_none() => {
                    self.after_loss(&self.lengths(), e)?;
                    return Ok(Vec::new());
                }
                logits => logits?,
            };
            look(i, &logits);
            let best = if argmax_only { logits[0] as u32 } else { argmax(&logits) };
            if p_min > 0.0 && probability(&logits, best) < p_min {
                break;
            }
            prefix.push(best);
        }
        prefix.remove(0);
        Ok(prefix)
    }

    /// The logits (n_vocab) of a head that reads `next_token` with the model's row of the token before: what the first step
    /// of a draft by this head would be. The sequence does not change.
    ///
    /// # Errors
    /// As [`Session::draft`], and if there is no such head.
    pub fn head_logits(&mut self, seq: usize, head: usize, next_token: u32) -> Result<Vec<f32>> {
        if head >= self.n_heads() {
            bail!("draft head {head}: there are {}", self.n_heads());
        }
        self.check(self.seqs[seq].tokens.len(), &[next_token])?;
        if self.engine.tape.is_drafter {
            return self.drafter_step(seq, 0, next_token, Wanted::default());
        }
        self.walk_head(seq, head, (self.seqs[seq].tokens.len(), &[next_token]), Some(Wanted::default()))
    }

    /// The step of a draft that reads the last token of `prefix`, which follows the sequence's tokens: its logits, or the
    /// argmax and its logit where nothing else is needed.
    fn head_step(&mut self, seq: usize, head: usize, prefix: &[u32], wanted: Wanted) -> Result<Vec<f32>> {
        let n = self.seqs[seq].tokens.len();
        // A single head has read the tokens before the last one in this draft; each of several begins with the first.
        let from = if self.n_heads() > 1 { 0 } else { prefix.len() - 1 };
        self.walk_head(seq, head, (n + from, &prefix[from..]), Some(wanted))
    }

    /// A step of a drafter of its own: the first, or a later one. All are at the position of the first drafted token.
    fn drafter_step(&mut self, seq: usize, later: usize, token: u32, wanted: Wanted) -> Result<Vec<f32>> {
        let pos = self.seqs[seq].tokens.len() as u32;
        let batch = Batch {
            rows: vec![Row { token, seq: seq as u32, pos }],
            output_rows: vec![0],
            argmax_only: wanted.argmax_only,
            likely: wanted.likely,
            deterministic_rows: true,
            part: 1 + later,
            ..Batch::default()
        };
        self.engine.walk(&batch, &AtomicBool::new(false), Watch::default())?;
        Ok(self.engine.result(&batch).to_vec())
    }

    /// Lets all heads of a sequence read what they have not read yet.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub(super) fn heads_follow(&mut self, seq: usize) -> Result<()> {
        let heads = if self.engine.tape.is_drafter { 0 } else { self.n_heads() };
        for head in 0..heads {
            let (progress, tokens) = (self.progress(seq, head), &self.seqs[seq].tokens);
            let n = tokens.len();
            if n > progress.from(tokens) {
                self.walk_head(seq, head, (n, &[]), None)?;
            }
        }
        Ok(())
    }

    fn progress(&self, seq: usize, head: usize) -> HeadProgress {
        self.seqs[seq].heads.get(head).copied().unwrap_or_default()
    }

    /// Walks a head over `drafted` tokens from position `at` on, and before them over what it has not read yet of the
    /// sequence, if they begin at its end. Returns what is wanted of the last token, if anything is.
    fn walk_head(
        &mut self,
        seq: usize,
        head: usize,
        (at, drafted): (usize, &[u32]),
        wanted: Option<Wanted>,
    ) -> Result<Vec<f32>> {
        let n = self.seqs[seq].tokens.len();
        let (n_batch, tokens) = (self.shape.n_batch, &self.seqs[seq].tokens);
        // H keeps at least a batch of rows.
        let most = if wanted.is_some() { LAG.min(n_batch) } else { n_batch };
        let mut from = self.progress(seq, head).from(tokens).max(n.saturating_sub(most));
        let mut rest: Vec<u32> = Vec::new();
        match at == n {
            true => rest.extend_from_slice(&tokens[from..]),
            false => from = at,
        }
        rest.extend_from_slice(drafted);
        let last = rest.len() - wanted.is_some() as usize; // the row whose logits are wanted
        let mut result = Vec::new();
        for (i, chunk) in rest.chunks(n_batch).enumerate() {
            let (first, pos) = (i * n_batch, from + i * n_batch);
            let row = |(token, pos): (&u32, usize)| Row { token: *token, seq: seq as u32, pos: pos as u32 };
            let is_here = (first..first + chunk.len()).contains(&last);
            let batch = Batch {
                rows: chunk.iter().zip(pos..).map(row).collect(),
                output_rows: Vec::from_iter(is_here.then(|| (last - first) as u32)),
                argmax_only: wanted.is_some_and(|w| w.argmax_only),
                likely: wanted.and_then(|w| w.likely),
                deterministic_rows: self.options.deterministic || chunk.len() <= FEW,
                part: 1 + head,
                ..Batch::default()
            };
            self.engine.walk(&batch, &AtomicBool::new(false), Watch::default())?;
            if is_here {
                result = self.engine.result(&batch).to_vec();
            }
        }
        if at == n {
            let heads = self.n_heads();
            let list = &mut self.seqs[seq].heads;
            list.resize(heads, HeadProgress::default());
            list[head] = HeadProgress { read: n, next: drafted.first().copied() };
        }
        Ok(result)
    }

    /// Takes note that a sequence has gone back to `n` tokens, which the model's states allow.
    ///
    /// # Errors
    /// As [`Session::rewind`].
    pub(super) fn heads_rewind(&mut self, seq: usize, n: usize) -> Result<()> {
        for head in &mut self.seqs[seq].heads {
            if head.read >= n {
                *head = HeadProgress::whole(n);
            }
        }
        match self.engine.tape.hidden {
            Some(hidden) => self.engine.rewind_rows(hidden.0 as usize, seq as u32, n),
            None => Ok(()),
        }
    }
}

/// The probability of a token.
fn probability(logits: &[f32], token: u32) -> f32 {
    let of = logits[token as usize];
    let sum: f64 = logits.iter().map(|l| f64::from(l - of).exp()).sum();
    (1.0 / sum) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_was_read_ahead_counts_only_if_it_came() {
        let ahead = HeadProgress { read: 3, next: Some(7) };
        assert_eq!(ahead.from(&[1, 2, 3, 7, 9]), 4);
        assert_eq!(ahead.from(&[1, 2, 3, 8, 9]), 3);
        assert_eq!(ahead.from(&[1, 2, 3]), 3);
        assert_eq!(ahead.from(&[1]), 1);
        assert_eq!(HeadProgress::whole(2).from(&[1, 2, 3]), 2);
    }

    #[test]
    fn a_probability_is_the_softmax_of_the_logits() {
        let logits = [1.0f32, 3.0, 2.0];
        let sum: f32 = logits.iter().map(|l| l.exp()).sum();
        assert!((probability(&logits, 1) - 3f32.exp() / sum).abs() < 1e-6);
    }
}
