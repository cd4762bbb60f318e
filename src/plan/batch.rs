//! How many rows of a prompt are computed together, where nobody asked for a number.
//!
//! What streams through the ring goes over the bus once for each batch, however many rows it has; so prompts are faster
//! in larger ones. But the values, the memory inside steps and the windows' rings grow with the batch, and what they take
//! the expert cache, or whole layers, cannot have. So a plan is made for every size, and one is chosen:
//!
//! ```text
//! allowed   what grows with the batch takes at most half of the memory, and a decoded token at most DECODE_LOSS
//!           more seconds than with the size that is best for it, as a share of a token's with no expert cached; and a
//!           prompt is read no slower than on the CPU alone
//! chosen    of the sizes that are allowed the smallest that reads a prompt in at most PROMPT_LOSS times the seconds of
//!           the one that is best for prompts; one below USUAL only where no other is allowed; where none is, the best
//!           for prompts
//! ```
//! With more memory more sizes are allowed, none fewer: so prompts get no slower. (Rejected: a share of the seconds that a
//! token takes with its cache. These shrink with more memory, and what a batch costs does not: gpt-oss-120b read prompts
//! slower with 32 GiB than with 24.) Decode gets slower by DECODE_LOSS at most, where the next size is allowed first.
//!
//! The seconds are estimates at the rates of a usual machine (`cost.rs`), never those that were measured: a model is placed
//! in the same way each time that it is opened, and as `explain` says. With everything on the CPU nothing streams, and the
//! size is the usual one.

use super::cost::{HardwareRates, WalkShape, WalkTime};
use super::{Cache, Footprint, Plan, Shape, expert_bytes};
use crate::tape::{ExpertShare, Tape};

/// Sizes that are tried.
const SIZES: [usize; 6] = [256, 512, 1024, 2048, 4096, 8192];
/// The size from which tensor cores are busy, so that larger ones gain by what streams alone.
const USUAL: usize = 1024;
/// What decode may lose for prompts.
const DECODE_LOSS: f64 = 0.04;
/// What prompts may lose for memory, and for how often a walk can be stopped.
const PROMPT_LOSS: f64 = 1.02;
/// Tokens of the prompt that is compared, at most.
const PROMPT: usize = 8192;

/// The largest batch that is chosen.
pub const LARGEST: usize = SIZES[SIZES.len() - 1];

/// Returns the sizes to try, at most `most`, rising.
pub(super) fn sizes(shape: &Shape, most: usize) -> Vec<usize> {
    let most = most.min(shape.n_ctx.saturating_mul(shape.n_seq)).max(1);
    let mut list: Vec<usize> = SIZES.iter().map(|n| (*n).min(most)).collect();
    list.dedup();
    list
}

/// A placement for one size, as far as the choice depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Rows.
    pub(super) rows: usize,
    /// Bytes on the GPU that depend on the size.
    pub(super) growing: usize,
    /// Seconds of a token of a prompt.
    pub(super) prompt: f64,
    /// Seconds of a decoded token.
    pub(super) decode: f64,
}

impl Candidate {
    /// Of a plan in `budget` bytes.
    pub(super) fn of(tape: &Tape, plan: &Plan, footprint: &Footprint, shape: &Shape, budget: usize) -> Candidate {
        let seen = shape.n_ctx.min(PROMPT) / 2;
        let time_of = |plan: &Plan, rows| {
            WalkTime::assumed(tape, plan, WalkShape { rows, seen, follow: None }, HardwareRates::USUAL).whole
        };
        let time = |rows| time_of(plan, rows);
        // Slots are whole experts of every layer. What is left over counts for a part of one more, or the choice would hang
        // on chance.
        let halves = tape.steps.iter().filter(|s| s.share == ExpertShare::OnGpu);
        let slot = halves.map(|s| expert_bytes(tape, s)).sum::<usize>();
        let decode = match slot {
            0 => time(1),
            slot => {
                let part = (budget.saturating_sub(footprint.total()) as f64 / slot as f64).min(1.0);
                let caches = plan.caches.map(|c| Cache { slots: c.slots + 1, ..c });
                let more = time_of(&Plan { caches, ..plan.clone() }, 1);
                time(1) * (1.0 - part) + more * part
            }
        };
        let growing = footprint.values + footprint.scratch + footprint.header + footprint.states;
        let rows = shape.n_batch;
        Candidate { rows, growing, prompt: time(rows) / rows as f64, decode }
    }
}

/// Chooses one of the candidates (see above), in the order of rising sizes, for `budget` bytes. `uncached`: seconds of a
/// decoded token with no expert cached; `alone`: seconds of a prompt's token on the CPU.
pub(super) fn choose(list: &[Candidate], budget: usize, uncached: f64, alone: f64) -> usize {
    let least = |of: &dyn Fn(&Candidate) -> Option<f64>| list.iter().filter_map(of).fold(f64::INFINITY, f64::min);
    let decode = least(&|c| Some(c.decode)) + DECODE_LOSS * uncached;
    let fixed = list.iter().map(|c| c.growing).min().unwrap_or(0);
    let allowed = |c: &Candidate| c.decode <= decode && c.growing - fixed <= budget / 2 && c.prompt <= alone;
    let from = if list.iter().any(|c| c.rows >= USUAL && allowed(c)) { USUAL } else { 0 };
    let eligible = |c: &Candidate| c.rows >= from && allowed(c);
    let prompt = PROMPT_LOSS * least(&|c| eligible(c).then_some(c.prompt));
    let fastest = || (0..list.len()).min_by(|a, b| list[*a].prompt.total_cmp(&list[*b].prompt)).unwrap_or(0);
    list.iter().position(|c| eligible(c) && c.prompt <= prompt).unwrap_or_else(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size that is chosen of 512, 1024 and so on, by the seconds of a prompt's token and of a decoded one, each with
    /// 1 MB more memory than the one before.
    fn chosen(costs: &[(f64, f64)], budget: usize) -> usize {
        let candidate = |(i, &(prompt, decode)): (usize, &(f64, f64))| Candidate {
            rows: 512 << i,
            growing: (i + 1) * 1_000_000,
            prompt,
            decode,
        };
        let list: Vec<Candidate> = costs.iter().enumerate().map(candidate).collect();
        list[choose(&list, budget, 1.0, 4.5)].rows
    }

    #[test]
    fn the_batch_is_the_one_that_is_best_for_prompts_and_costs_decode_little() {
        let most = usize::MAX;
        assert_eq!(
            chosen(&[(4.0, 1.0), (2.0, 1.01), (1.0, 1.03)], most),
            2048,
            "the largest where decode hardly loses"
        );
        assert_eq!(chosen(&[(4.0, 1.0), (2.0, 1.03), (1.0, 1.05)], most), 1024, "not where it loses more");
        assert_eq!(chosen(&[(4.0, 1.0), (2.0, 1.2), (1.0, 1.5)], most), 512, "none that takes layers away");
        assert_eq!(chosen(&[(1.0, 1.0), (1.01, 1.0), (1.0, 1.0)], most), 1024, "no memory for nothing, and no less");
        assert_eq!(
            chosen(&[(4.0, 1.05), (3.0, 1.0), (2.0, 1.3)], most),
            1024,
            "the smallest need not be best for decode"
        );
        assert_eq!(chosen(&[(3.0, 2.0)], most), 512);
        let costs = [(4.0, 1.0), (2.0, 1.0), (1.0, 1.0)];
        assert_eq!(chosen(&costs, 4_000_000), 2048);
        assert_eq!(chosen(&costs, 3_999_999), 1024, "half of the memory at most");
        assert_eq!(chosen(&costs, 0), 512);
        let slow = [(5.0, 1.0), (4.6, 1.2), (4.4, 1.3)];
        assert_eq!(chosen(&slow, most), 2048, "never slower than the CPU alone");
    }

    #[test]
    fn the_sizes_end_at_what_was_asked_for_and_at_the_context() {
        let shape = |n_ctx| Shape { n_seq: 1, n_ctx, n_batch: 1024, n_output_rows: 1 };
        assert_eq!(sizes(&shape(65536), LARGEST), SIZES);
        assert_eq!(sizes(&shape(3000), LARGEST), [256, 512, 1024, 2048, 3000]);
        assert_eq!(sizes(&shape(65536), 1500), [256, 512, 1024, 1500]);
        assert_eq!(sizes(&shape(65536), 128), [128]);
    }
}
