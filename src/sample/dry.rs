//! DRY, "don't repeat yourself" (<https://github.com/oobabooga/text-generation-webui/pull/5677>): a token that would go on
//! with what was said before costs multiplier x base ^ (n - allowed length), where n tokens before it are those that stood
//! before it then.
//!
//! Repetitions are counted from the text's end back to the last breaker (a line's end, a quote): after one, everything is
//! new. All n are found in one pass, as the Z array of the last tokens read backwards: z[k] is how far the text's end
//! equals the text's end k tokens ago.

use std::collections::HashMap;

use super::candidates::Candidates;
use super::params::{Params, window};

/// The breakers, and memory for one look at the text.
#[derive(Clone, Debug, Default)]
pub(super) struct Dry {
    /// By the token that a breaker begins in: the tokens that complete it, none if that one holds it all.
    breakers: HashMap<u32, Vec<Vec<u32>>>,
    z: Vec<usize>,
    /// For each token that would go on with a repetition: the longest one's length so far.
    repeats: HashMap<u32, usize>,
}

impl Dry {
    /// With these sequences of tokens as breakers.
    pub(super) fn new(sequences: Vec<Vec<u32>>) -> Dry {
        let mut breakers: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        for sequence in sequences {
            if let Some((first, rest)) = sequence.split_first() {
                breakers.entry(*first).or_default().push(rest.to_vec());
            }
        }
        Dry { breakers, ..Dry::default() }
    }

    /// Lowers the logits.
    pub(super) fn apply(&mut self, seen: &[u32], c: &mut Candidates, params: &Params) {
        let n = seen.len().min(window(params.dry_penalty_last_n));
        let allowed = window(params.dry_allowed_length);
        let text = &seen[seen.len() - n..];
        if n <= allowed {
            return;
        }
        let limit = self.since_breaker(text);
        if limit < allowed {
            return;
        }
        self.find(text, limit, allowed);
        // So that no power overflows an f32; llama.cpp's bound.
        let most = if params.dry_base > 1.000001 { (88.722_84 / params.dry_base.ln()) as usize } else { 0 };
        c.change(&self.repeats, |logit, repeated| {
            let n = repeated - allowed;
            let n = if most > 0 { n.min(most) } else { n };
            logit - (f64::from(params.dry_multiplier) * f64::from(params.dry_base).powf(n as f64)) as f32
        });
    }

    /// How many tokens follow the last breaker; all of them if there is none.
    fn since_breaker(&self, text: &[u32]) -> usize {
        let longest_at = |at: usize| {
            let rest = &text[at + 1..];
            let tails = self.breakers.get(&text[at])?.iter().filter(|tail| rest.starts_with(tail));
            tails.map(|tail| rest.len() - tail.len()).min()
        };
        (0..text.len()).rev().find_map(longest_at).unwrap_or(text.len())
    }

    /// Finds what would go on with a repetition of at least `allowed` tokens; none counts for more than `limit`.
    fn find(&mut self, text: &[u32], limit: usize, allowed: usize) {
        let n = text.len();
        let back = |i: usize| text[n - 1 - i];
        self.z.clear();
        self.z.push(n);
        self.repeats.clear();
        // The stretch that reaches furthest: it begins at `start`, ends before `end`, and equals the beginning.
        let (mut start, mut end) = (0, 0);
        for k in 1..n {
            let mut z = if k < end { self.z[k - start].min(end - k) } else { 0 };
            while k + z < n && back(z) == back(k + z) {
                z += 1;
            }
            if k + z > end {
                (start, end) = (k, k + z);
            }
            self.z.push(z);
            let (next, z) = (back(k - 1), z.min(limit));
            let breaks = || self.breakers.get(&next).is_some_and(|tails| tails.iter().any(Vec::is_empty));
            if z >= allowed && !breaks() {
                let longest = self.repeats.entry(next).or_default();
                *longest = z.max(*longest);
            }
        }
    }
}
