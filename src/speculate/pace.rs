//! How many tokens to draft: the number that gives the most tokens per second by what was measured, zero included.
//!
//! ```text
//! E(k)    = 1 + a1 + a1 a2 + .. + a1 .. ak     tokens of a round with k drafts; aj: draft j is right if those before it are
//! cost(k) = T(m + k) + draft(k)                seconds; T(n): a walk with n rows; m: sequences that read a token in it
//! gain(k) = (m - 1 + E(k)) / cost(k)           tokens per second, of which the largest is chosen
//! ```
//! `aj` fade over some rounds, so that they follow the text. T(n) is measured while running; what was not measured yet is
//! taken to rise in a straight line, which is more than it costs where rows share experts.
//!
//! What is not known must be tried, and a trial may lose. So there is a **budget** in plain steps: a round that would be
//! lost whole is begun only if all rounds so far, gains included, are then not behind by more than a share of the tokens
//! made. Where nothing seems to pay, a draft is tried as often as a smaller share allows; a depth that pays is exceeded by
//! one every 16 rounds or more, and a plain step is taken every 64 or more, so that T of no draft stays true.
//!
//! The shape of this is known from colibri (JustVugg/colibri), whose gate has no budget.

/// Drafts of a round at most: with the token before them 8 rows, which go through row kernels.
pub const MOST: usize = 7;

/// Of a sum over rounds, what stays after a round.
const FADE: f64 = 1.0 - 1.0 / 20.0;
/// Rounds that the first guess of a rate counts as.
const GUESS_COUNTS: f64 = 1.0;
/// Where a rate is guessed from the one before it, this much of it.
const DEEPER: f64 = 0.95;
/// A rise per row before any was measured, as a share of a plain step.
const RISE: f64 = 0.5;
/// The newest of many measurements counts as this share.
const NEWEST: f64 = 1.0 / 8.0;
/// Plain steps that may be lost from the start, and for every token that was made.
const LOSS: (f64, f64) = (0.5, 0.010);
/// Plain steps that trials may cost for every token, while nothing seems to pay.
const TRIALS: f64 = 0.008;
/// What looks at other depths may cost, as a share of the time.
const LOOKS: f64 = 0.01;
/// Rounds from one deeper trial to the next, and from one plain step to the next, at least.
const DEEPER_EVERY: usize = 16;
const PLAIN_EVERY: usize = 64;
/// Drafting is chosen where it is expected to be this many times as fast as not.
const BETTER: f64 = 1.01;

/// Seconds that walks take, by their rows.
#[derive(Clone, Debug, Default)]
pub struct RowCosts {
    rows: [Average; MOST + 2],
}

/// An average of measurements that forgets.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    value: f64,
    count: usize,
}

impl Average {
    fn get(self) -> Option<f64> {
        (self.count > 0).then_some(self.value)
    }

    fn add(&mut self, value: f64) {
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

    /// Whether walks of `rows` rows were measured more than once.
    pub fn is_known(&self, rows: usize) -> bool {
        self.rows.get(rows).is_some_and(|a| a.count > 1)
    }

    /// The seconds of a walk of `rows` rows; in plain steps where no walk was measured.
    pub fn of(&self, rows: usize) -> f64 {
        if let Some(seconds) = self.measured(rows) {
            return seconds;
        }
        let known = |n: &usize| self.measured(*n).map(|t| (*n as f64, t));
        let below = (1..rows).rev().find_map(|n| known(&n));
        let above = (rows + 1..self.rows.len()).find_map(|n| known(&n));
        let n = rows as f64;
        match (below, above) {
            (None, None) => 1.0 + (n - 1.0) * RISE,
            (None, Some((b, t))) => t * (1.0 + (n - 1.0) * RISE) / (1.0 + (b - 1.0) * RISE),
            (Some((a, s)), Some((b, t))) => s + (t - s).max(0.0) * (n - a) / (b - a),
            (Some((a, s)), None) => {
                let before = (1..a as usize).find_map(|n| known(&n));
                let rise = match before {
                    Some((first, t)) => ((s - t) / (a - first)).max(0.0),
                    None => s * RISE / (1.0 + (a - 1.0) * RISE),
                };
                s + rise * (n - a)
            }
        }
    }
}

/// Plain steps that were gained and lost by drafts so far.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// Gains less losses.
    balance: f64,
    /// Tokens made.
    tokens: f64,
    /// What trials may cost.
    trials: f64,
}

impl Budget {
    /// A round made `tokens` tokens in `steps` times the time that a plain step takes for one.
    pub fn note(&mut self, tokens: usize, steps: f64) {
        let tokens = tokens as f64;
        self.balance += tokens - steps;
        self.tokens += tokens;
        self.trials = (self.trials + tokens * TRIALS).min(1.0);
    }

    /// Whether so many plain steps may be lost.
    fn allows(&self, loss: f64) -> bool {
        self.balance - loss >= -(LOSS.0 + LOSS.1 * self.tokens)
    }

    /// Whether a trial may lose so many plain steps; they are then spent.
    fn spend(&mut self, loss: f64) -> bool {
        let allowed = self.allows(loss) && LOSS.0 + self.trials >= loss;
        if allowed {
            self.trials -= loss;
        }
        allowed
    }

    /// A trial took so many plain steps more than were set aside for it.
    fn overran(&mut self, steps: f64) {
        self.trials -= steps.max(0.0);
    }

    /// A trial was right: another may follow at once.
    fn refund(&mut self, tokens: usize) {
        self.trials = (self.trials + tokens as f64).min(1.0);
    }
}

/// How often a source's drafts are right for a sequence, and how deep to draft.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Of each position, faded: how often it was judged, and how often it was right.
    seen: [f64; MOST],
    right: [f64; MOST],
    /// The first guesses: of the first position's rate, and of what a drafted token costs, in plain steps.
    guess: f64,
    guess_cost: f64,
    /// Seconds for a drafted token.
    draft: Average,
    /// Rounds with drafts since the last deeper trial, and since the last plain step.
    since_deeper: usize,
    since_plain: usize,
    /// The draft under way is a trial that was not expected to pay: the plain steps that it loses if it is wrong.
    trial: Option<f64>,
    /// By how many plain steps the last trial was longer than its rows and its draft, as where a head first reads what it
    /// missed; the next is expected to be so, too.
    longer: f64,
}

/// What a round would be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Tokens to draft.
    pub drafts: usize,
    /// Tokens per second.
    pub gain: f64,
}

impl Pace {
    /// A pace whose first guesses are that a draft is right with probability `guess`, and costs `guess_cost` plain steps.
    pub fn new((guess, guess_cost): (f64, f64)) -> Pace {
        Pace {
            seen: [0.0; MOST],
            right: [0.0; MOST],
            guess,
            guess_cost,
            draft: Average::default(),
            since_deeper: 0,
            since_plain: 0,
            trial: None,
            longer: 0.0,
        }
    }

    /// Another text begins: what is known of the last one counts little.
    pub fn begin(&mut self) {
        for sum in self.seen.iter_mut().chain(&mut self.right) {
            *sum *= 0.25;
        }
    }

    /// The probability that draft `j`, from 0, is right if those before it are.
    pub fn rate(&self, j: usize) -> f64 {
        let guess = if j == 0 { self.guess } else { self.rate(j - 1) * DEEPER };
        (self.right[j] + guess * GUESS_COUNTS) / (self.seen[j] + GUESS_COUNTS)
    }

    /// Of `drafted` tokens the first `right` were right, in a round of `steps` plain steps.
    pub fn note(&mut self, drafted: usize, right: usize, steps: f64, budget: &mut Budget) {
        for j in 0..drafted.min(right + 1) {
            self.seen[j] = self.seen[j] * FADE + 1.0;
            self.right[j] = self.right[j] * FADE + f64::from(j < right);
        }
        if let Some(lost) = self.trial.take() {
            let longer = (steps - 1.0 - lost).max(0.0);
            budget.overran(longer - self.longer);
            budget.refund(right);
            self.longer = longer;
        }
    }

    /// It took so long to draft so many tokens.
    pub fn note_draft(&mut self, drafted: usize, seconds: f64) {
        if drafted > 0 {
            self.draft.add(seconds / drafted as f64);
        }
    }

    /// Tokens per second of rounds with `drafts` drafts, of `others` sequences more that read a token in them.
    pub fn gain(&self, drafts: usize, others: usize, costs: &RowCosts) -> f64 {
        let (mut expected, mut chance) = (1.0, 1.0);
        for j in 0..drafts {
            chance *= self.rate(j);
            expected += chance;
        }
        (others as f64 + expected) / self.cost(drafts, others, costs)
    }

    fn cost(&self, drafts: usize, others: usize, costs: &RowCosts) -> f64 {
        let draft = self.draft.get().unwrap_or_else(|| self.guess_cost * costs.of(1));
        costs.of(others + 1 + drafts) + drafts as f64 * draft
    }

    /// The number of drafts, at most `most`, that gives the most tokens per second as far as is known.
    pub fn best(&self, most: usize, others: usize, costs: &RowCosts) -> Choice {
        let plain = Choice { drafts: 0, gain: self.gain(0, others, costs) };
        let deep = (1..=most.min(MOST)).map(|k| Choice { drafts: k, gain: self.gain(k, others, costs) });
        let best = deep.fold(Choice { drafts: 0, gain: 0.0 }, |a, b| if b.gain > a.gain { b } else { a });
        if best.gain > plain.gain * BETTER { best } else { plain }
    }

    /// What to draft in this round: [`Pace::best`], or a trial that the budget allows.
    pub fn choose(&mut self, most: usize, others: usize, costs: &RowCosts, budget: &mut Budget) -> usize {
        self.trial = None;
        if most == 0 {
            return 0;
        }
        // What is lost if every draft is wrong, in plain steps.
        let loss = |pace: &Pace, k: usize| pace.cost(k, others, costs) / costs.of(others + 1) - 1.0;
        let mut best = self.best(most, others, costs).drafts;
        while best > 0 && !budget.allows(loss(self, best)) {
            best -= 1;
        }
        if best == 0 {
            self.since_plain = 0;
            let lost = loss(self, 1).max(0.01);
            self.trial = budget.spend(lost + self.longer).then_some(lost);
            return usize::from(self.trial.is_some());
        }
        self.since_plain += 1;
        self.since_deeper += 1;
        // What another depth is expected to lose against the best one, at most a share of what the rounds since took.
        let gain = self.gain(best, others, costs);
        let is_due = |pace: &Pace, k: usize, since: usize| {
            let lost = pace.cost(k, others, costs) * (1.0 - pace.gain(k, others, costs) / gain);
            lost <= since as f64 * LOOKS * pace.cost(best, others, costs)
        };
        if self.since_plain >= PLAIN_EVERY && is_due(self, 0, self.since_plain) {
            self.since_plain = 0;
            return 0;
        }
        let deeper = best + 1;
        if self.since_deeper >= DEEPER_EVERY && deeper <= most.min(MOST) && is_due(self, deeper, self.since_deeper) {
            self.since_deeper = 0;
            return if budget.allows(loss(self, deeper)) { deeper } else { best };
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Rng;

    /// A model: seconds of a walk by its rows, of a drafted token, and of each token that a head missed before.
    struct Machine {
        walk: fn(usize) -> f64,
        draft: f64,
        missed: f64,
    }

    /// Experts that stream from memory: each row brings new ones. 8 of 128, an eighth of the time shared.
    fn experts(n: usize) -> f64 {
        let distinct = 1.0 - (1.0f64 - 8.0 / 128.0).powi(n as i32);
        0.25 + 0.75 * distinct / (8.0 / 128.0)
    }

    const MACHINES: [Machine; 6] = [
        Machine { walk: |n| 1.0 + 0.05 * (n - 1) as f64, draft: 0.04, missed: 0.0 },
        Machine { walk: |n| 1.0 + 0.35 * (n - 1) as f64, draft: 0.05, missed: 0.0 },
        Machine { walk: experts, draft: 0.05, missed: 0.0 },
        Machine { walk: |n| n as f64, draft: 0.1, missed: 0.0 },
        Machine { walk: |n| if n < 5 { 1.0 + 0.1 * n as f64 } else { 3.0 }, draft: 0.0, missed: 0.0 },
        Machine { walk: |n| 1.0 + 0.7 * (n - 1) as f64, draft: 0.3, missed: 0.03 },
    ];

    /// Whether draft `j` of the token at `at` is right.
    type Right<'a> = &'a dyn Fn(usize, usize, &mut Rng) -> bool;

    fn right(at: usize, k: usize, rng: &mut Rng, is_right: Right<'_>) -> usize {
        (0..k).take_while(|j| is_right(at, *j, rng)).count()
    }

    /// Seconds per token of rounds that each draft `k` tokens.
    fn fixed(m: &Machine, tokens: usize, k: usize, is_right: Right<'_>) -> f64 {
        let (mut rng, mut at, mut seconds) = (Rng(3), 0, 0.0);
        while at < tokens {
            seconds += (m.walk)(1 + k) + m.draft * k as f64;
            at += 1 + right(at, k, &mut rng, is_right);
        }
        seconds / at as f64
    }

    /// Seconds per token as the pace chooses, of the tokens from `from` on; measurements scatter.
    fn paced(m: &Machine, tokens: usize, from: usize, is_right: Right<'_>) -> f64 {
        let (mut rng, mut noise, mut at) = (Rng(3), Rng(7), 0);
        let (mut pace, mut budget, mut costs) = (Pace::new((0.6, 0.1)), Budget::default(), RowCosts::default());
        let (mut seconds, mut made, mut behind) = (0.0, 0, 0);
        while at < tokens {
            let k = if !costs.is_known(1) { 0 } else { pace.choose(4, 0, &costs, &mut budget) };
            let mut scatter = |t: f64| t * (0.97 + 0.06 * f64::from(noise.unit()));
            let missed = if k > 0 { m.missed * behind as f64 } else { 0.0 };
            let (walk, draft) = (scatter((m.walk)(1 + k)), scatter(m.draft * k as f64) + missed);
            let good = right(at, k, &mut rng, is_right);
            costs.note(1 + k, walk);
            if behind == 0 {
                pace.note_draft(k, draft);
            }
            pace.note(k, good, (walk + draft) / costs.of(1), &mut budget);
            budget.note(1 + good, (walk + draft) / costs.of(1));
            behind = if k > 0 { 0 } else { 64.min(behind + 1) };
            if at >= from {
                seconds += (m.walk)(1 + k) + m.draft * k as f64 + missed;
                made += 1 + good;
            }
            at += 1 + good;
        }
        seconds / made as f64
    }

    fn chance(p: f64) -> impl Fn(usize, usize, &mut Rng) -> bool {
        move |_, _, rng| f64::from(rng.unit()) < p
    }

    #[test]
    fn no_text_makes_it_slower_than_without_by_more_than_two_hundredths() {
        let flips = |every: usize| {
            move |at: usize, _: usize, rng: &mut Rng| (at / every).is_multiple_of(2) && f64::from(rng.unit()) < 0.9
        };
        type Schedule = Box<dyn Fn(usize, usize, &mut Rng) -> bool>;
        let schedules: Vec<(&str, Schedule)> = vec![
            ("never right", Box::new(chance(0.0))),
            ("rarely right", Box::new(chance(0.2))),
            ("half", Box::new(chance(0.5))),
            ("mostly", Box::new(chance(0.8))),
            ("good, then never", Box::new(|at, _, _| at < 60)),
            ("first draft alone", Box::new(|_, j, _| j == 0)),
            ("in turns of 20", Box::new(flips(20))),
            ("in turns of 7", Box::new(flips(7))),
            ("every other round", Box::new(|at, _, _| at % 2 == 0)),
        ];
        for (name, is_right) in &schedules {
            for (i, m) in MACHINES.iter().enumerate() {
                for tokens in [100, 200, 1000] {
                    let ratio = (m.walk)(1) / paced(m, tokens, 0, is_right);
                    assert!(ratio > 0.98, "{name}, machine {i}, {tokens} tokens: {ratio:.3} of the speed without");
                }
            }
        }
    }

    #[test]
    fn in_the_long_run_it_is_as_fast_as_the_best_fixed_depth() {
        for (i, m) in MACHINES.iter().enumerate() {
            for p in [0.0, 0.3, 0.5, 0.7, 0.85, 0.95] {
                let best = (0..=4).map(|k| fixed(m, 20_000, k, &chance(p))).fold(f64::INFINITY, f64::min);
                let ratio = best / paced(m, 20_000, 1000, &chance(p));
                assert!(ratio > 0.97, "machine {i}, {p}: {ratio:.3} of the best fixed depth");
            }
        }
    }

    #[test]
    fn a_change_of_the_text_is_followed() {
        // Good drafts from the 300th token on, or up to it: the tokens after that as with the better choice, nearly.
        for (i, m) in MACHINES[..3].iter().enumerate() {
            let stops = |at: usize, _: usize, rng: &mut Rng| at < 300 && f64::from(rng.unit()) < 0.9;
            let ratio = (m.walk)(1) / paced(m, 800, 300, &stops);
            assert!(ratio > 0.95, "machine {i}: after good drafts stop {ratio:.3} of the speed without");
            let begins = |at: usize, _: usize, rng: &mut Rng| at >= 300 && f64::from(rng.unit()) < 0.9;
            let best = (0..=4).map(|k| fixed(m, 20_000, k, &chance(0.9))).fold(f64::INFINITY, f64::min);
            let ratio = best / paced(m, 1300, 300, &begins);
            assert!(ratio > 0.88, "machine {i}: after good drafts begin {ratio:.3} of the best");
        }
    }

    #[test]
    fn what_was_not_measured_is_between_and_beyond_what_was() {
        let mut costs = RowCosts::default();
        assert_eq!([1, 2, 3].map(|n| costs.of(n)), [1.0, 1.5, 2.0]);
        costs.note(1, 10.0);
        assert_eq!([1, 2, 3].map(|n| costs.of(n)), [10.0, 15.0, 20.0]);
        costs.note(3, 14.0);
        assert_eq!([2, 3, 5].map(|n| costs.of(n)), [12.0, 14.0, 18.0]);
    }
}
