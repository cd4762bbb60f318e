//! Temperature, fixed or by entropy.
//!
//! Dynamic temperature (<https://arxiv.org/abs/2309.02772>): with the entropy's share h of the largest possible, ln n, it is
//! low + (high - low) h^exponent, where low and high are the temperature less and more the range.

use super::candidates::Candidates;
use super::cuts::entropy;
use super::params::Params;

/// Divides the logits by the temperature; at 0 the likeliest stays alone.
pub(super) fn apply(c: &mut Candidates, params: &Params) {
    let mut t = params.temperature;
    if params.dynatemp_range > 0.0 {
        let lse = c.softmax();
        let list = c.list();
        if list.len() < 2 {
            return;
        }
        let share = entropy(list, lse) / (list.len() as f64).ln();
        let (low, high) = ((t - params.dynatemp_range).max(0.0), t + params.dynatemp_range);
        // Rounding can leave the entropy of one sure token just below 0, which no power takes.
        t = low + (high - low) * share.max(0.0).powf(f64::from(params.dynatemp_exponent)) as f32;
    }
    if t > 0.0 { c.divide(t) } else { c.best() }
}
