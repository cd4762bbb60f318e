//! A model whose experts have no room in memory all at once: what stays there, what comes from the
//! drive, and how fast that is.

use std::path::Path;
use std::time::Duration;

use super::facts::PlacedModel;
use crate::cli::human::size;
use crate::exec::{DriveTrial, drive_rate, pooled_steps, slots_within};
use crate::plan::{self, Place};
use crate::tape::ExpertShare;

/// Bytes per second of a drive that cannot be measured: a usual NVMe drive.
const USUAL: f64 = 3e9;
/// For how long a drive is measured.
const TRIAL: Duration = Duration::from_millis(400);

/// How fast the drive is.
#[derive(Clone, Debug)]
pub(super) struct DriveSpeed {
    /// Bytes per second.
    pub(super) rate: f64,
    /// Where the rate is from, for people.
    pub(super) from: String,
}

impl DriveSpeed {
    /// That of `gbps`, or that of the drive on which the file is, as experts are read from it.
    fn of(gbps: Option<f64>, file: &Path, matrix: usize) -> DriveSpeed {
        match gbps.map(Ok).unwrap_or_else(|| drive_rate(file, DriveTrial::of_experts(matrix), TRIAL)) {
            Ok(rate) if gbps.is_some() => DriveSpeed { rate: rate * 1e9, from: "as given".into() },
            Ok(rate) => DriveSpeed { rate, from: "measured just now".into() },
            Err(_) => DriveSpeed { rate: USUAL, from: "assumed".into() },
        }
    }

    /// The rate in words.
    pub(super) fn words(&self) -> String {
        format!("a drive of {:.1} GB/s", self.rate / 1e9)
    }
}

/// Experts that stay on the drive.
#[derive(Clone, Debug)]
pub(super) struct DriveTier {
    /// Experts of each layer in memory, and all of them, in the layer that has the most.
    pub(super) slots: usize,
    pub(super) of: usize,
    /// Bytes of the experts in memory, and of those that are only on the drive.
    pub(super) in_memory: usize,
    pub(super) on_drive: usize,
    /// Bytes that a decoded token reads from the drive, and its part of all choices, if all experts
    /// are chosen alike.
    pub(super) per_token: f64,
    pub(super) misses: f64,
    pub(super) speed: DriveSpeed,
}

impl DriveTier {
    /// With `room` bytes of memory for weights. None where what every token reads has no room in it,
    /// or all experts have.
    pub(super) fn new(m: &PlacedModel<'_>, weights: usize, room: usize, gbps: Option<f64>) -> Option<DriveTier> {
        let (tape, plan) = (&m.placed.tape, &m.placed.plan);
        let steps = || pooled_steps(tape, plan).map(|(i, step)| (i, step, plan::experts_of(tape, step)));
        let of = steps().map(|(.., n)| n).max()?;
        let all: usize = steps().map(|(_, step, n)| n * plan::expert_bytes(tape, step)).sum();
        let dense = weights.saturating_sub(all);
        let slots = slots_within(tape, plan, room.saturating_sub(dense));
        if slots == 0 || slots == of {
            return None;
        }
        // Experts that a GPU caches are not asked for.
        let cached = |i: usize, share| match share {
            ExpertShare::OnCpu => plan.places.get(i + 1).map_or(0, |p: &Place| plan.cache(*p).slots),
            _ => 0,
        };
        let (mut per_token, mut choices, mut missed, mut largest) = (0.0, 0.0, 0.0, 0);
        for (i, step, n) in steps() {
            let k = tape.width(step.ins[1]) as f64;
            let misses = n.saturating_sub(slots + cached(i, step.share)) as f64 / n as f64;
            per_token += k * misses * plan::expert_bytes(tape, step) as f64;
            (choices, missed) = (choices + k, missed + k * misses);
            largest = plan::stacks(tape, step).map(|(_, bytes)| bytes).fold(largest, usize::max);
        }
        let in_memory = steps().map(|(_, step, n)| slots.min(n) * plan::expert_bytes(tape, step)).sum();
        let speed = DriveSpeed::of(gbps, &m.gguf.path, largest);
        let misses = missed / choices;
        Some(DriveTier { slots, of, in_memory, on_drive: all - in_memory, per_token, misses, speed })
    }

    /// What happens, for people.
    pub(super) fn words(&self) -> String {
        let DriveTier { slots, of, speed, .. } = self;
        let ms = self.per_token / speed.rate * 1e3;
        format!(
            "It still runs: {slots} of {of} experts of each layer are kept in memory, and the others are read from the drive \
             when they are chosen. If all are chosen alike, that is {} per token, which {} ({}) reads in {ms:.1} ms. Texts \
             that stay with a topic read less, since what was chosen last is likely to be chosen again.",
            size(self.per_token as usize),
            speed.words(),
            speed.from
        )
    }
}
