//! Speculation: tokens are drafted by something cheap, and the model verifies several of them in one walk.
//!
//! ```text
//! the sampler chose t0            d1 .. dk are drafted to follow it; the model reads t0 d1 .. dk in one walk
//! from the logits after t0        the sampler chooses t1, as it would without drafts
//!   t1 = d1                       it is read already: t2 is chosen from the logits after d1, and so on
//!   t1 is another token           the sequence goes back to t0; t1 begins the next round
//! ```
//! So nothing depends on the drafts but the time: every token is chosen by the same sampler, with the same draws, from the
//! same logits, one by one, and whatever ends a text ends it in the same place. `ahead` does the rounds, `drafter` and its
//! files the drafts, and `pace` decides how many there are, zero included, by what this run and earlier ones measured
//! (`costs`, `memory`); without drafts a round is the plain step.

mod ahead;
mod costs;
mod drafter;
mod lookup;
mod memory;
mod model;
mod pace;
#[cfg(test)]
mod simulated;
mod stats;

pub use ahead::{Limits, Next, Speculation};
pub use costs::{MOST, Multiples, RowCosts};
pub use drafter::{Drafter, HeadDraft, Script};
pub use lookup::look_up;
pub use model::{DraftModel, check_vocabulary};
pub use pace::{Budget, Choice, Guess, Move, Pace};
pub use stats::{RoundStats, SourceStats};
