//! Log probabilities as a model gives them, before anything is done to its logits.

use super::candidates::{peak, top};
use crate::simd::exp;

/// ln sum exp(logit), in sixteen sums side by side. They are in f64: an f32 sum over a large vocabulary is off in the fourth
/// digit.
fn log_sum(logits: &[f32]) -> f64 {
    let max = peak(logits);
    let mut sums = [0f64; 16];
    for part in logits.chunks(16) {
        for (sum, l) in sums.iter_mut().zip(part) {
            *sum += f64::from(exp(l - max));
        }
    }
    f64::from(max) + sums.iter().sum::<f64>().ln()
}

/// The `n` likeliest tokens with their log probabilities, likeliest first.
pub fn logprobs(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let lse = log_sum(logits);
    let mut list = Vec::new();
    top(logits, n, &mut list);
    list.iter().map(|c| (c.id, (f64::from(c.logit) - lse) as f32)).collect()
}

/// A token's log probability; -inf for one outside the vocabulary.
pub fn logprob_of(logits: &[f32], token: u32) -> f32 {
    logits.get(token as usize).map_or(f32::NEG_INFINITY, |l| (f64::from(*l) - log_sum(logits)) as f32)
}
