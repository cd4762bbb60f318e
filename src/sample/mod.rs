//! From logits to a token: pure and seeded, so the same seed gives the same text.
//!
//! The stages are llama.cpp's, under its names and in its order or any other (src/llama-sampler.cpp and common/sampling.cpp
//! there). Each sees what the stages before it left, with probabilities that sum to 1 again. It differs in three points:
//! what is cut or forbidden is gone, where llama.cpp leaves some of it in place at -inf, to be counted by k and by dynamic
//! temperature; equals are told apart by their numbers, the lower first; and -1 last tokens are all of them.

mod candidates;
mod choose;
mod cuts;
mod dry;
mod logprobs;
mod order;
mod params;
mod penalties;
mod temperature;
#[cfg(test)]
mod tests;

pub use candidates::argmax;
pub use logprobs::{logprob_of, logprobs};
pub use order::Stage;
pub use params::Params;

use crate::quant::Rng;
use candidates::Candidates;
use choose::Choice;
use dry::Dry;
use params::window;
use penalties::Penalties;

/// Chooses tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: Params,
    /// The stages that do something, in order.
    stages: Vec<Stage>,
    choice: Choice,
    /// The text so far.
    seen: Vec<u32>,
    penalties: Penalties,
    dry: Dry,
    candidates: Candidates,
    rng: Rng,
}

impl Sampler {
    /// A sampler whose draws follow from `seed`. `breakers` are the token sequences after which DRY starts over
    /// (the tokenizer finds them); without DRY there need be none.
    pub fn new(mut params: Params, seed: u64, breakers: Vec<Vec<u32>>) -> Sampler {
        if params.mirostat > 0 {
            params.order = vec![Stage::Temperature];
            params.dynatemp_range = 0.0;
        }
        let mut stages: Vec<Stage> = params.order.iter().copied().filter(|s| params.active(*s)).collect();
        let adaptive = stages.contains(&Stage::AdaptiveP);
        stages.retain(|s| *s != Stage::AdaptiveP);
        if params.greedy() {
            // These cuts always keep the likeliest, so right before it is taken they are for nothing.
            let keeps = |s: &Stage| matches!(s, Stage::TopK | Stage::TopP | Stage::MinP | Stage::TopNSigma);
            while let Some(at) = stages.iter().position(|s| *s == Stage::Temperature)
                && at > 0
                && keeps(&stages[at - 1])
            {
                stages.remove(at - 1);
            }
        }
        let choice = Choice::new(&params, adaptive);
        let (penalties, candidates) = (Penalties::default(), Candidates::default());
        Sampler {
            stages,
            choice,
            seen: Vec::new(),
            penalties,
            dry: Dry::new(breakers),
            candidates,
            rng: Rng(seed),
            params,
        }
    }

    /// Notes a token of the text: all of the prompt's, and then each one that it goes on with.
    pub fn accept(&mut self, token: u32) {
        self.seen.push(token);
        if self.stages.contains(&Stage::Penalties) {
            self.penalties.accept(&self.seen, &self.params);
        }
        self.choice.accept(token);
    }

    /// Chooses a token, of those whose bit in `allowed` is set (32 tokens to a word, the lowest bit first). None only if
    /// no token is left: none is allowed, or those that are have a logit or a bias of -inf.
    pub fn pick(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Option<u32> {
        self.narrow(logits, allowed);
        if self.candidates.list().is_empty() {
            return None;
        }
        let unit = self.unit();
        let at = self.choice.choose(&mut self.candidates, logits.len(), unit);
        Some(self.candidates.list()[at].id)
    }

    /// Whether it always takes the token with the largest logit, so that it needs no other.
    pub fn is_greedy(&self) -> bool {
        let plain = self.params.mirostat <= 0 && self.params.logit_bias.is_empty();
        plain && self.params.greedy() && self.stages == [Stage::Temperature]
    }

    /// Runs the stages.
    fn narrow(&mut self, logits: &[f32], allowed: Option<&[u32]>) {
        self.candidates.load(logits, allowed, &self.params.logit_bias);
        let min_keep = window(self.params.min_keep);
        for at in 0..self.stages.len() {
            let chance = if self.stages[at] == Stage::Xtc { self.unit() as f32 } else { 0.0 };
            let (c, p) = (&mut self.candidates, &self.params);
            match self.stages[at] {
                Stage::Penalties => self.penalties.apply(c, p),
                Stage::Dry => self.dry.apply(&self.seen, c, p),
                Stage::TopNSigma => cuts::top_n_sigma(c, p.top_n_sigma),
                Stage::TopK => c.top(window(p.top_k)),
                Stage::TypicalP => cuts::typical(c, p.typical_p, min_keep),
                Stage::TopP => cuts::top_p(c, p.top_p, min_keep),
                Stage::MinP => cuts::min_p(c, p.min_p, min_keep),
                Stage::Xtc if chance <= p.xtc_probability => cuts::xtc(c, p.xtc_threshold, min_keep),
                Stage::Temperature => temperature::apply(c, p),
                Stage::Xtc | Stage::AdaptiveP => {} // adaptive-p is the choice, not a stage before it
            }
        }
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.rng.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}
