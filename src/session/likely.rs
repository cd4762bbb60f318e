//! The part of the vocabulary that drafts look at: one that holds nearly all tokens of the text.
//!
//! The product of the vocabulary is most of what a draft costs. Ids of byte-pair and SentencePiece vocabularies rise with
//! rarity, so a draft takes the first eighth, quarter or half of the ids; and, since some vocabularies have their single
//! characters elsewhere (Gemma's near the end), of 32 equal blocks the one that holds the most of the text besides. It is
//! the smallest such part with nearly all of the sequence's last tokens, or the whole where none has. A token outside can
//! only make a draft wrong: the model itself chooses among all. Nothing is kept, so that a text that changes, or goes
//! back, needs no care.
//!
//! Rejected: the first ids alone, which are 64% of English in Gemma's vocabulary, with that block 91%. To hold 97 of 100
//! tokens: twice the part for half of the misses, which are 3 to 4 of 100 as it is.

use super::Session;
use crate::tape::Likely;

/// The last tokens of a sequence that are looked at, and how many there must be.
const LAST: usize = 256;
const LEAST: usize = 32;

/// Of a hundred of them, how many the part has to hold.
const ENOUGH: usize = 95;

/// Blocks of the vocabulary, of which one is taken besides the first ids.
const BLOCKS: usize = 32;

/// What the first ids may be: an eighth of all, and so on.
const PARTS: [usize; 3] = [8, 4, 2];

/// Rows of a product that take no time worth saving.
const FEW_ROWS: usize = 4096;

/// The ids that a draft after `tokens` looks at; None is all.
fn likely(tokens: &[u32], n_vocab: usize) -> Option<Likely> {
    let last = &tokens[tokens.len().saturating_sub(LAST)..];
    let size = n_vocab.div_ceil(BLOCKS);
    let part = |first: usize| {
        let (mut held, mut blocks) = (0, [0; BLOCKS]);
        for &token in last {
            let of = if (token as usize) < first { &mut held } else { &mut blocks[token as usize / size] };
            *of += 1;
        }
        let best = (0..BLOCKS).max_by_key(|b| blocks[*b]).expect("there are blocks");
        let from = (best * size).max(first); // the block that the first ids end in has no more of them
        let n = if blocks[best] > 0 { ((best + 1) * size).min(n_vocab) - from } else { 0 };
        (100 * (held + blocks[best]) >= ENOUGH * last.len()).then_some(Likely { first, more: (from, n) })
    };
    let parts = PARTS.map(|of| n_vocab.div_ceil(of)).into_iter().filter(|n| *n >= FEW_ROWS);
    parts.into_iter().find_map(part).filter(|_| last.len() >= LEAST)
}

/// Logits that drafts computed, and those that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftLogits {
    computed: u64,
    all: u64,
}

impl DraftLogits {
    /// The share of the vocabulary that drafts looked at; None where nothing was drafted.
    pub fn share(self) -> Option<f64> {
        (self.all > 0).then(|| self.computed as f64 / self.all as f64)
    }
}

impl Session {
    /// Everything that is computed from now on is a draft for another model.
    pub fn draft_only(&mut self) {
        self.draft_only = true;
    }

    /// The logits that drafts computed so far.
    pub fn draft_logits(&self) -> DraftLogits {
        self.draft_logits
    }

    /// What a draft after `tokens` takes, of what it takes where it looks at the whole vocabulary; by the weights that both
    /// read. None where it looks at all of it since the text has only begun.
    pub fn draft_work(&self, tokens: &[u32]) -> Option<f64> {
        let has_parts = !self.engine.plan.on_gpu() && self.n_vocab.div_ceil(PARTS[2]) >= FEW_ROWS;
        if has_parts && tokens.len() < LEAST {
            return None;
        }
        let looks_at = self.logits_of(self.likely_in(tokens)) as f64 / self.n_vocab as f64;
        Some(1.0 - self.vocabulary_share.get_or_init(|| self.vocabulary_share()) * (1.0 - looks_at))
    }

    /// Of the weights that a draft reads, the share that the product of the vocabulary does.
    fn vocabulary_share(&self) -> f64 {
        let tape = &self.engine.tape;
        let part = usize::from(!self.draft_only && tape.parts() > 1);
        let (mut all, mut vocabulary) = (0, 0);
        for step in &tape.steps[tape.part_steps(part)] {
            let bytes = tape.step_bytes(step);
            let is_vocabulary = step.weights.iter().any(|w| tape.weights[w.0 as usize].shape[1] == self.n_vocab);
            all += bytes;
            vocabulary += if is_vocabulary { bytes } else { 0 };
        }
        vocabulary as f64 / (all as f64).max(1.0)
    }

    /// The tokens that a draft after `tokens` looks at; None is all of them, as on a GPU, where the product of the vocabulary
    /// takes little time.
    fn likely_in(&self, tokens: &[u32]) -> Option<Likely> {
        if self.engine.plan.on_gpu() { None } else { likely(tokens, self.n_vocab) }
    }

    fn logits_of(&self, part: Option<Likely>) -> usize {
        part.map_or(self.n_vocab, |p| p.first + p.more.1)
    }

    /// The tokens that a draft after what a sequence has read looks at, which is made now.
    pub(super) fn likely_after(&mut self, seq: usize) -> Option<Likely> {
        let part = self.likely_in(&self.seqs[seq].tokens);
        self.draft_logits.computed += self.logits_of(part) as u64;
        self.draft_logits.all += self.n_vocab as u64;
        part
    }

    /// The tokens whose logits are wanted of a walk of these sequences: all, but for drafts of a single sequence.
    pub(super) fn likely_of(&mut self, seqs: &[usize]) -> Option<Likely> {
        let one = seqs.iter().all(|seq| *seq == seqs[0]);
        if self.draft_only && one { self.likely_after(*seqs.first()?) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(tokens: &[u32], n_vocab: usize) -> usize {
        likely(tokens, n_vocab).map_or(n_vocab, |l| l.first)
    }

    #[test]
    fn the_smallest_part_that_holds_nearly_all_tokens_is_looked_at() {
        let n = 80_000;
        let text = |far: &[u32]| [&vec![9999; 100 - far.len()][..], far].concat();
        assert_eq!(likely(&text(&[10_000, 30_000, 50_000, 60_000]), n).unwrap().first, 10_000);
        // One block of the rest is taken whole.
        let chars = [&[70_001; 40][..], &[10_000, 30_000, 50_000, 60_000]].concat();
        assert_eq!(likely(&text(&chars), n), Some(Likely { first: 10_000, more: (70_000, 2500) }));
        assert_eq!(likely(&text(&[]), n), Some(Likely { first: 10_000, more: (77_500, 0) }));
        let spread = |from: u32| (0..7).map(|i| from + 2500 * i).collect::<Vec<u32>>();
        assert_eq!(first(&text(&spread(20_000)), n), 40_000);
        assert_eq!(first(&text(&spread(40_000)), n), n);
    }

    #[test]
    fn the_part_changes_with_the_text_and_is_the_whole_of_one_that_has_only_begun() {
        let n = 80_000;
        let wide: Vec<u32> = (0..LAST as u32).map(|i| i * 150).collect();
        assert_eq!(first(&wide, n), 40_000);
        assert_eq!(first(&[&wide[..], &[5; LAST]].concat(), n), 10_000);
        assert_eq!(first(&[1; LEAST - 1], n), n);
        assert_eq!(first(&[], n), n);
        // A part of few rows is not worth it.
        assert_eq!(first(&[1; 100], 2 * FEW_ROWS - 2), 2 * FEW_ROWS - 2);
        assert_eq!(first(&[1; 100], 2 * FEW_ROWS), FEW_ROWS);
        assert_eq!(first(&[1; 100], 5 * FEW_ROWS), 5 * FEW_ROWS / 4);
    }

    #[test]
    fn every_part_lies_within_the_vocabulary_and_its_ranges_do_not_meet() {
        for n in [8192, 8193, 50_257, 100_001, 151_936, 262_144] {
            for id in [0, n / 8, n / 4 + 1, n / 2, n - 1] {
                let Some(Likely { first, more }) = likely(&[id as u32; 64], n) else { panic!("{id} of {n}") };
                assert!(more.0 >= first && more.0 + more.1 <= n, "{id} of {n}: {first}, {more:?}");
                assert!(id < first || (more.0..more.0 + more.1).contains(&id), "{id} of {n} is looked at");
            }
        }
    }
}
