//! Penalties on the tokens of the text so far: for each of them by how often it occurs in the last tokens.
//!
//! logit / repeat (logit x repeat if it is negative), then - count x frequency - presence.

use std::collections::HashMap;

use super::candidates::Candidates;
use super::params::{Params, window};

/// How often each token occurs in the last tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Penalties {
    counts: HashMap<u32, u32>,
}

impl Penalties {
    /// Counts the last of `seen`; the token that it pushes out of the window is no longer counted.
    pub(super) fn accept(&mut self, seen: &[u32], params: &Params) {
        let Some((new, before)) = seen.split_last() else { return };
        *self.counts.entry(*new).or_default() += 1;
        if let Some(gone) = before.len().checked_sub(window(params.repeat_last_n)).map(|at| before[at])
            && let Some(n) = self.counts.get_mut(&gone)
        {
            *n -= 1;
            if *n == 0 {
                self.counts.remove(&gone);
            }
        }
    }

    /// Lowers the logits.
    pub(super) fn apply(&self, c: &mut Candidates, params: &Params) {
        let repeat = params.repeat_penalty;
        c.change(&self.counts, |logit, &n| {
            let logit = if logit <= 0.0 { logit * repeat } else { logit / repeat };
            logit - n as f32 * params.frequency_penalty - params.presence_penalty
        });
    }
}
