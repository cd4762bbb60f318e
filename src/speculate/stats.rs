//! What speculation did, for reports.

use super::costs::MOST;

/// What one source drafted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Rounds with its drafts.
    pub rounds: usize,
    /// Tokens drafted.
    pub drafted: usize,
    /// Tokens of these that were chosen.
    pub accepted: usize,
    /// Tokens that were drafted to see whether they come and were not verified, and how many of them came.
    pub looks: (usize, usize),
    /// Of each position: how often a draft was judged there, since those before it were right, and how often it was right.
    pub by_position: [(usize, usize); MOST],
}

impl SourceStats {
    /// Of `drafted` tokens the first `right` were right.
    pub(super) fn note(&mut self, drafted: usize, right: usize) {
        self.rounds += 1;
        self.drafted += drafted;
        self.accepted += right;
        for (j, (judged, accepted)) in self.by_position.iter_mut().enumerate().take(drafted.min(right + 1)) {
            *judged += 1;
            *accepted += usize::from(j < right);
        }
    }

    /// A token that was drafted to see whether it comes has come, or another one.
    pub(super) fn note_look(&mut self, right: bool) {
        self.looks.0 += 1;
        self.looks.1 += usize::from(right);
    }

    /// By position, how often a draft was judged, and how often it was right, looks included.
    pub(super) fn judged(&self) -> [(usize, usize); MOST] {
        let mut all = self.by_position;
        all[0] = (all[0].0 + self.looks.0, all[0].1 + self.looks.1);
        all
    }

    /// Adds what the same source drafted at another time.
    pub fn add(&mut self, other: &SourceStats) {
        self.rounds += other.rounds;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.looks = (self.looks.0 + other.looks.0, self.looks.1 + other.looks.1);
        for (sum, n) in self.by_position.iter_mut().zip(other.by_position) {
            *sum = (sum.0 + n.0, sum.1 + n.1);
        }
    }

    /// Whether nearly nothing was right after many drafts, as from heads that were made for another model.
    pub fn is_useless(&self) -> bool {
        let (drafted, right) = (self.drafted + self.looks.0, self.accepted + self.looks.1);
        drafted >= 200 && right * 20 < drafted
    }

    /// The shares that were right by position, in percent: `83 70 52`.
    pub fn shares(&self) -> String {
        let judged = self.by_position.iter().take_while(|p| p.0 > 0);
        judged.map(|(n, right)| format!("{:.0}", 100.0 * *right as f64 / *n as f64)).collect::<Vec<_>>().join(" ")
    }
}

/// What all rounds were.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RoundStats {
    /// Rounds without drafts.
    pub plain: usize,
    /// Rounds with drafts.
    pub drafted: usize,
    /// Rows of the rounds with drafts.
    pub rows: usize,
    /// Tokens that rounds with drafts made.
    pub tokens: usize,
    /// Seconds that rounds with drafts took: drafting, and verifying.
    pub draft_seconds: f64,
    /// Seconds of verifying walks.
    pub verify_seconds: f64,
    /// Seconds that their tokens would have taken in single steps, as measured meanwhile.
    pub plain_seconds: f64,
    /// Time spent going back.
    pub back_seconds: f64,
}

impl RoundStats {
    /// How many times as fast rounds with drafts were as single steps; None where that was not measured.
    pub fn gain(&self) -> Option<f64> {
        let took = self.draft_seconds + self.verify_seconds + self.back_seconds;
        (self.plain_seconds > 0.0 && took > 0.0).then(|| self.plain_seconds / took)
    }
}
