//! What walks cost by their rows, in seconds: as measured, and before that by what earlier runs measured.

/// Drafts of a round at most: with the token before them 8 rows, which go through row kernels.
pub const MOST: usize = 7;

/// A rise per row before any was measured, as a share of a plain step.
const RISE: f64 = 0.5;
/// The newest of many measurements counts as this share.
const NEWEST: f64 = 1.0 / 8.0;

/// How many times a first measurement may be what earlier runs' say, to be believed.
const AGREE: f64 = 1.05;
/// How many times as long as it is thought a walk may take that was not measured in this run.
pub(super) const DOUBT: f64 = 2.0;

/// What walks take by their rows, as multiples of what one row takes; None where that is not known.
pub type Multiples = [Option<f64>; MOST + 2];

/// Seconds that walks take, by their rows.
#[derive(Clone, Debug, Default)]
pub struct RowCosts {
    rows: [Average; MOST + 2],
    /// What earlier runs measured.
    before: Multiples,
    /// Nothing is measured: what is guessed is known.
    guessed: bool,
}

/// An average of measurements that forgets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Average {
    value: f64,
    count: usize,
}

impl Average {
    /// The average; None if nothing was measured.
    pub(super) fn get(self) -> Option<f64> {
        (self.count > 0).then_some(self.value)
    }

    /// One more measurement.
    pub(super) fn add(&mut self, value: f64) {
        self.count += 1;
        if self.count == 2 && value < self.value {
            self.value = value; // the first time anything is computed it takes longer
        }
        // Something else took the machine's time meanwhile.
        let value = if self.count > 3 { value.min(2.0 * self.value) } else { value };
        self.value += (value - self.value) * (1.0 / self.count as f64).max(NEWEST);
    }
}

impl RowCosts {
    /// Nothing is measured yet; if `guessed`, nothing ever is.
    pub fn new(guessed: bool) -> RowCosts {
        RowCosts { guessed, ..RowCosts::default() }
    }

    /// Nothing is measured yet but in earlier runs.
    pub fn after(before: Multiples) -> RowCosts {
        RowCosts { before, ..RowCosts::default() }
    }

    /// A walk of so many rows took so long.
    pub fn note(&mut self, rows: usize, seconds: f64) {
        if let Some(average) = self.rows.get_mut(rows).filter(|_| rows > 0) {
            average.add(seconds);
        }
    }

    /// The seconds that were measured for `rows` rows; None if none were.
    pub fn measured(&self, rows: usize) -> Option<f64> {
        self.rows.get(rows).and_then(|a| a.get())
    }

    /// What walks take by this run's measurements, or by earlier runs' where it has none.
    pub fn multiples(&self) -> Multiples {
        let one = self.measured(1).filter(|_| self.rows[1].count > 1);
        std::array::from_fn(|rows| match (self.measured(rows), one) {
            (Some(seconds), Some(one)) => Some(seconds / one),
            _ => self.before[rows],
        })
    }

    /// The plain steps that walks of `rows` rows took in earlier runs.
    fn remembered(&self, rows: usize) -> Option<f64> {
        self.before.get(rows).copied().flatten()
    }

    /// Whether walks of `rows` rows were measured more than once, or never will be.
    pub fn is_measured(&self, rows: usize) -> bool {
        self.guessed || self.rows.get(rows).is_some_and(|a| a.count > 1)
    }

    /// Whether it is known what walks of `rows` rows take: by several measurements, or by one that earlier runs' agree
    /// with.
    pub fn is_known(&self, rows: usize) -> bool {
        let agree = |seconds: f64| {
            self.remembered(rows).is_some() && self.by_memory(rows).is_none_or(|before| before <= seconds * AGREE)
        };
        self.is_measured(rows) || self.measured(rows).is_some_and(agree)
    }

    /// Whether a walk of `rows` rows was measured, in this run or an earlier one, or never will be.
    pub fn was_measured(&self, rows: usize) -> bool {
        self.guessed || self.measured(rows).is_some() || self.remembered(rows).is_some()
    }

    /// The seconds that a walk of `plain` rows and `drafts` more may take, unless something is wrong with the machine.
    pub fn at_most(&self, plain: usize, drafts: usize) -> f64 {
        let (rows, guess) = (plain + drafts, self.of(plain + drafts));
        match self.measured(rows) {
            Some(seconds) => seconds,
            None if self.guessed => guess,
            // A walk is no slower than its rows one by one.
            None => (guess * DOUBT).min(self.of(plain) * (1 + drafts) as f64),
        }
    }

    /// The seconds of a walk of `rows` rows by those of another number of rows, as measured in this run, and what both
    /// took in earlier runs. In plain steps where no walk was measured.
    fn by_memory(&self, rows: usize) -> Option<f64> {
        let multiple = self.remembered(rows)?;
        let is_other = |n: &usize| *n != rows && self.measured(*n).is_some() && self.before[*n].is_some();
        let near = |n: &usize| (!self.is_measured(*n), n.abs_diff(rows));
        match (1..self.rows.len()).filter(is_other).min_by_key(near) {
            Some(n) => Some(multiple * self.measured(n)? / self.before[n]?),
            None if self.measured(rows).is_some() => None,
            None => Some(multiple),
        }
    }

    /// The seconds of a walk of `rows` rows; in plain steps where no walk was measured.
    pub fn of(&self, rows: usize) -> f64 {
        let known = |n: usize| match (self.measured(n), self.by_memory(n)) {
            // The first time anything is computed it takes longer.
            (Some(measured), Some(before)) if !self.is_measured(n) => Some(measured.min(before)),
            (measured, before) => measured.or(before),
        };
        if let Some(seconds) = known(rows) {
            return seconds;
        }
        let known = |n: usize| known(n).map(|t| (n as f64, t));
        let below = (1..rows).rev().find_map(known);
        let above = (rows + 1..self.rows.len()).find_map(known);
        let n = rows as f64;
        match (below, above) {
            (None, None) => 1.0 + (n - 1.0) * RISE,
            (None, Some((b, t))) => t * (1.0 + (n - 1.0) * RISE) / (1.0 + (b - 1.0) * RISE),
            (Some((a, s)), Some((b, t))) => s + (t - s).max(0.0) * (n - a) / (b - a),
            (Some((a, s)), None) => {
                let before = (1..a as usize).find_map(known);
                let rise = match before {
                    Some((first, t)) => ((s - t) / (a - first)).max(0.0),
                    None => s * RISE / (1.0 + (a - 1.0) * RISE),
                };
                s + rise * (n - a)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_between_and_beyond_what_was() {
        let mut costs = RowCosts::default();
        assert_eq!([1, 2, 3].map(|n| costs.of(n)), [1.0, 1.5, 2.0]);
        costs.note(1, 10.0);
        assert_eq!([1, 2, 3].map(|n| costs.of(n)), [10.0, 15.0, 20.0]);
        costs.note(3, 14.0);
        assert_eq!([2, 3, 5].map(|n| costs.of(n)), [12.0, 14.0, 18.0]);
    }

    #[test]
    fn what_earlier_runs_measured_gives_way_to_measurements() {
        let mut before = Multiples::default();
        (before[1], before[2], before[4]) = (Some(1.0), Some(1.25), Some(1.75));
        let mut costs = RowCosts::after(before);
        assert_eq!([1, 2, 3, 4].map(|n| costs.of(n)), [1.0, 1.25, 1.5, 1.75]);
        assert!(!costs.is_known(1));
        costs.note(1, 10.0);
        assert_eq!([1, 2, 4].map(|n| costs.of(n)), [10.0, 12.5, 17.5], "in the seconds of this run");
        assert!(costs.is_known(1), "by one measurement, which nothing contradicts");
        // The first walk of two rows took longer than two rows do; the second one tells what they take.
        costs.note(2, 18.0);
        assert_eq!(costs.of(2), 12.5);
        assert!(!costs.is_known(1), "two rows say that one takes 14.4 seconds");
        costs.note(2, 18.0);
        assert_eq!(costs.of(2), 18.0);
        costs.note(1, 10.0);
        assert!(costs.is_known(1));
        assert_eq!(costs.multiples()[..5], [None, Some(1.0), Some(1.8), None, Some(1.75)]);
    }

    #[test]
    fn a_first_walk_that_took_too_long_is_found_out_by_others() {
        let mut before = Multiples::default();
        (before[1], before[2]) = (Some(1.0), Some(1.5));
        let mut costs = RowCosts::after(before);
        costs.note(1, 20.0);
        costs.note(2, 15.0);
        assert_eq!(costs.of(1), 10.0);
    }
}
