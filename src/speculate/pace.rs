//! How many tokens to draft: the number that gives the most tokens per second by what was measured, zero included.
//!
//! ```text
//! E(k)    = 1 + a1 + a1 a2 + .. + a1 .. ak     tokens of a round with k drafts; aj: draft j is right if those before it are
//! cost(k) = T(m + k) + draft(k)                seconds; T(n): a walk with n rows; m: sequences that read a token in it
//! gain(k) = (m - 1 + E(k)) / cost(k)           tokens per second, of which the largest is chosen
//! ```
//! `aj` fade over some rounds, so that they follow the text. T(n) is measured while running; what was not measured yet
//! is taken to be what earlier runs measured (`memory.rs`), else to rise in a straight line, which is more than it
//! costs where rows share experts. What drafts took is counted as if they had looked at the whole vocabulary, and what
//! they will take by the part that they look at now (`session/likely.rs`).
//!
//! What is not known must be tried, and a trial may lose. So there is a **budget** in plain steps: a round is begun
//! only if all rounds so far, gains included, are then not behind by more than a share of the tokens made, were it
//! lost as often as drafts are wrong; and not by more than a larger share, were every draft wrong and, where this run
//! has not measured it yet, were it to take twice as long as is thought. How often drafts are wrong is found out by
//! **looks**: one token is drafted and compared with the one that comes, without a row for it in a walk. They are
//! what a text begins with, unless earlier runs say how often drafts are right; where nothing seems to pay there are
//! as many as a smaller share allows, and now and then a round with a draft, which shows T. None is made while drafts
//! look at the whole vocabulary since the text has only begun. A depth that pays is exceeded by one after 4, 8, and
//! then every 16 rounds or more, and a plain step is taken every 64 or more, so that T of no draft stays true.
//!
//! Rejected: to wait for two plain steps where there is a memory (2% of an answer of 96 tokens that is drafted three
//! times as fast), to take the first one for true (what it takes too long counts as a gain of every round), and
//! memories that count as 2 or 8 judgements (the same within half a percent). A limit on what is expected alone lost
//! more than 2% on one text of 250.
//!
//! The shape of this is known from colibri (JustVugg/colibri), whose gate has no budget.

use super::costs::{Average, DOUBT, MOST, RowCosts};

/// Of what is known of a text, what counts after a further token.
const FADE: f64 = 1.0 - 1.0 / 50.0;
/// Judgements that the first guess of a rate counts as, and those without which nothing but looks is tried.
const GUESS_COUNTS: f64 = 1.0;
const SURE: f64 = 1.5;
/// Judgements that a rate which earlier runs saw counts as where a text begins.
const MEMORY_COUNTS: f64 = 4.0;
/// Where a rate is guessed from the one before it, this much of it.
const DEEPER: f64 = 0.95;
/// Plain steps that may be lost from the start, and for every token that was made.
const LOSS: (f64, f64) = (1.0, 0.008);
/// Plain steps that may be lost by the worst luck, and for every token that was made, the larger of both.
///
/// Rejected: 1.5 and 0.015, which never begin to draft where a draft costs a fifth of a step and a further row is not
/// measured yet (0.99 instead of 1.20 in answers of 96 tokens); 2.2 and more, which lose more than 2% on some texts and
/// gain nothing.
const WORST: (f64, f64) = (1.9, 0.018);
/// Plain steps that trials may cost at first, and for every token more, while nothing seems to pay; they add up to so
/// many.
const TRIALS: (f64, f64, f64) = (0.45, 0.007, 3.0);
/// A draft that is not expected to pay is tried where it is this much of plain steps' speed, and is taken to cost as
/// much at least, whatever its chances.
const HOPE: f64 = 0.85;
const LEAST_LOST: f64 = 0.15;
/// What a token that is read before a draft costs before that was measured, as a share of a drafted token.
const MISSED_COST: f64 = 0.1;
/// What looks at other depths may cost, as a share of the time.
const LOOKS: f64 = 0.01;
/// Rounds from one deeper trial to the next, first and later, and from one plain step to the next, at least.
const DEEPER_EVERY: (usize, usize) = (4, 16);
const PLAIN_EVERY: usize = 64;
/// Drafting is chosen where it is expected to be this many times as fast as not.
const BETTER: f64 = 1.01;

/// Plain steps that were gained and lost by drafts so far.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Gains less losses.
    balance: f64,
    /// Tokens made.
    tokens: f64,
    /// What trials may cost.
    trials: f64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { balance: 0.0, tokens: 0.0, trials: TRIALS.0 }
    }
}

impl Budget {
    /// A round made `tokens` tokens in `steps` times the time that a plain step takes for one.
    pub fn note(&mut self, tokens: usize, steps: f64) {
        let tokens = tokens as f64;
        self.balance += tokens - steps;
        self.tokens += tokens;
        self.trials = (self.trials + tokens * TRIALS.1).min(TRIALS.2);
    }

    /// Whether a round may be begun.
    fn allows(&self, loss: Loss) -> bool {
        self.balance - loss.expected >= -(LOSS.0 + LOSS.1 * self.tokens)
            && self.balance - loss.worst >= -WORST.0.max(WORST.1 * self.tokens)
    }

    /// Whether a trial may be made, for which `need` plain steps are to be left; what it is to cost is then spent.
    fn spend(&mut self, loss: Loss, need: f64) -> bool {
        let allowed = self.allows(loss) && self.trials >= need.max(loss.expected);
        if allowed {
            self.trials -= loss.expected;
        }
        allowed
    }
}

/// Plain steps that a round is to lose.
#[derive(Clone, Copy, Debug)]
struct Loss {
    /// As often as drafts are wrong.
    expected: f64,
    /// If all of them are, and it takes longer than it is thought.
    worst: f64,
}

/// What is taken for true of a source of drafts before anything of a text is seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    /// How often the first draft is right.
    rate: f64,
    /// How often later ones are if those before them are; None: a little less often than the one before.
    later: [Option<f64>; MOST - 1],
    /// Judgements that these count as.
    counts: f64,
    /// Plain steps that a drafted token takes which is chosen among the whole vocabulary.
    draft: f64,
    /// Plain steps that a token takes which is read before a draft; None: a share of those of a draft.
    missed: Option<f64>,
}

impl Guess {
    /// Nothing is known but how often the first draft may be right, and the plain steps that a drafted token may take.
    pub fn new((rate, draft): (f64, f64)) -> Guess {
        Guess { rate, later: [None; MOST - 1], counts: GUESS_COUNTS, draft, missed: None }
    }

    /// The rate is what earlier runs saw. So are those of later drafts, and the plain steps that a token takes which is
    /// read before a draft, where they are known.
    pub fn remembered(self, later: [Option<f64>; MOST - 1], missed: Option<f64>) -> Guess {
        Guess { later, missed, counts: MEMORY_COUNTS, ..self }
    }
}

/// How often a source's drafts are right for a sequence, and how deep to draft.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Of each position, faded: how often it was judged, and how often it was right.
    seen: [f64; MOST],
    right: [f64; MOST],
    guess: Guess,
    /// Seconds for a drafted token that is chosen among the whole vocabulary, and for a token that is read before a look.
    draft: Average,
    missed: Average,
    /// What a drafted token takes now, of one that is chosen among the whole vocabulary; and whether it may take less soon.
    work: f64,
    is_early: bool,
    /// Rounds with drafts since the last deeper trial, how many there must be, and rounds since the last plain step.
    since_deeper: usize,
    deeper_every: usize,
    since_plain: usize,
}

/// What a round would be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Tokens to draft.
    pub drafts: usize,
    /// Tokens per second.
    pub gain: f64,
}

/// What to do in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing is drafted.
    Plain,
    /// One token is drafted, to see whether it comes; it is not verified.
    Look,
    /// So many tokens are drafted and verified.
    Draft(usize),
}

impl Pace {
    /// A pace that begins with a guess.
    pub fn new(guess: Guess) -> Pace {
        Pace {
            seen: [0.0; MOST],
            right: [0.0; MOST],
            guess,
            draft: Average::default(),
            missed: Average::default(),
            work: 1.0,
            is_early: false,
            since_deeper: 0,
            deeper_every: DEEPER_EVERY.0,
            since_plain: 0,
        }
    }

    /// Another text begins: what is known of the last one counts little.
    pub fn begin(&mut self) {
        self.fade(0.25);
    }

    /// The text has so many tokens more.
    pub fn pass(&mut self, tokens: usize) {
        let by = FADE.powi(tokens as i32);
        self.fade(by);
        self.guess.counts = GUESS_COUNTS + (self.guess.counts - GUESS_COUNTS) * by;
    }

    fn fade(&mut self, by: f64) {
        self.seen.iter_mut().chain(&mut self.right).for_each(|sum| *sum *= by);
    }

    /// How much is known of the text: judgements of the first position, faded.
    pub fn known(&self) -> f64 {
        self.seen[0]
    }

    /// The probability that draft `j`, from 0, is right if those before it are.
    pub fn rate(&self, j: usize) -> f64 {
        let later = |before: usize| match self.guess.later[before] {
            Some(rate) => (rate, self.guess.counts),
            None => (self.rate(before) * DEEPER, GUESS_COUNTS),
        };
        let (guess, counts) = j.checked_sub(1).map_or((self.guess.rate, self.guess.counts), later);
        (self.right[j] + guess * counts) / (self.seen[j] + counts)
    }

    /// The probability that the first draft is wrong; what earlier runs saw counts no more than any guess.
    fn risk(&self) -> f64 {
        1.0 - (self.right[0] + self.guess.rate * GUESS_COUNTS) / (self.seen[0] + GUESS_COUNTS)
    }

    /// Of `drafted` tokens the first `right` were right.
    pub fn note(&mut self, drafted: usize, right: usize) {
        for j in 0..drafted.min(right + 1) {
            self.seen[j] += 1.0;
            self.right[j] += f64::from(j < right);
        }
    }

    /// It took so long to draft so many tokens, after `missed` were read that came in plain steps.
    pub fn note_draft(&mut self, drafted: usize, missed: usize, seconds: f64) {
        match (drafted, missed, self.draft.get()) {
            (0, ..) => {}
            (_, 0, _) => self.draft.add(seconds / (drafted as f64 * self.work)),
            (_, _, Some(draft)) => {
                self.missed.add((seconds - draft * self.work * drafted as f64).max(0.0) / missed as f64)
            }
            _ => {}
        }
    }

    /// From now on a drafted token takes this much of what one takes that is chosen among the whole vocabulary. None: as
    /// much, until more of the text is known; looks wait for that.
    pub fn set_work(&mut self, work: Option<f64>) {
        (self.work, self.is_early) = (work.unwrap_or(1.0), work.is_none());
    }

    /// The seconds of a drafted token that is chosen among the whole vocabulary, and of one that is read before a draft,
    /// where they were measured.
    pub fn draft_seconds(&self) -> (Option<f64>, Option<f64>) {
        (self.draft.get(), self.missed.get())
    }

    /// Tokens per second of rounds with `drafts` drafts, of `others` sequences more that read a token in them.
    pub fn gain(&self, drafts: usize, others: usize, costs: &RowCosts) -> f64 {
        (others as f64 + self.expected(drafts)) / self.cost(drafts, others, costs)
    }

    /// Tokens of a round with `drafts` drafts.
    fn expected(&self, drafts: usize) -> f64 {
        let (mut expected, mut chance) = (1.0, 1.0);
        for j in 0..drafts {
            chance *= self.rate(j);
            expected += chance;
        }
        expected
    }

    /// Seconds for a drafted token now.
    pub fn draft_cost(&self, costs: &RowCosts) -> f64 {
        self.work * self.draft.get().unwrap_or_else(|| self.guess.draft * costs.of(1))
    }

    /// Seconds for a token that is read before a draft.
    fn missed_cost(&self, costs: &RowCosts) -> f64 {
        let guess = || match self.guess.missed {
            Some(steps) => steps * costs.of(1),
            None => self.draft_cost(costs) * MISSED_COST,
        };
        self.missed.get().unwrap_or_else(guess)
    }

    fn cost(&self, drafts: usize, others: usize, costs: &RowCosts) -> f64 {
        costs.of(others + 1 + drafts) + drafts as f64 * self.draft_cost(costs)
    }

    /// The number of drafts, at most `most`, that gives the most tokens per second as far as is known.
    pub fn best(&self, most: usize, others: usize, costs: &RowCosts) -> Choice {
        let plain = Choice { drafts: 0, gain: self.gain(0, others, costs) };
        let deep = (1..=most.min(MOST)).map(|k| Choice { drafts: k, gain: self.gain(k, others, costs) });
        let best = deep.fold(Choice { drafts: 0, gain: 0.0 }, |a, b| if b.gain > a.gain { b } else { a });
        if best.gain > plain.gain * BETTER { best } else { plain }
    }

    /// What to do in this round, before which `missed` tokens came in plain steps: [`Pace::best`], or a trial that the
    /// budget allows.
    pub fn choose(
        &mut self,
        (most, others, missed): (usize, usize, usize),
        costs: &RowCosts,
        budget: &mut Budget,
    ) -> Move {
        if most == 0 {
            return Move::Plain;
        }
        let draft = self.draft_cost(costs);
        let behind = missed as f64 * self.missed_cost(costs);
        let one = costs.of(others + 1);
        // Where tokens are to be read before it, a look is begun only if there can be another one.
        let look = (draft + behind) / one;
        let need = look + if missed > 0 { draft / one } else { 0.0 };
        let seen = self.seen[0] + self.guess.counts - GUESS_COUNTS;
        if !costs.is_known(others + 1) || seen < SURE {
            return self.look(look, need, budget);
        }
        let mut best = self.best(most, others, costs).drafts;
        while best > 0 && !budget.allows(self.loss((best, others, behind), costs)) {
            best -= 1;
        }
        if best > 0 {
            return self.look_further(best, (most, others), costs, budget);
        }
        self.since_plain = 0;
        let hoped = self.gain(1, others, costs) > HOPE * self.gain(0, others, costs);
        let loss = self.loss((1, others, behind), costs);
        let lost = (self.cost(1, others, costs) + behind) / one - 1.0 - (1.0 - self.risk());
        if hoped && budget.spend(Loss { expected: lost.max(LEAST_LOST), ..loss }, 0.0) {
            return Move::Draft(1);
        }
        self.look(look, need, budget)
    }

    /// What a round with so many drafts is to lose, before which tokens are read for `behind` seconds.
    fn loss(&self, (drafts, others, behind): (usize, usize, f64), costs: &RowCosts) -> Loss {
        let one = costs.of(others + 1);
        let at_most =
            |measured: Average, seconds: f64| if measured.get().is_some() { seconds } else { seconds * DOUBT };
        let draft = at_most(self.draft, drafts as f64 * self.draft_cost(costs)) + at_most(self.missed, behind);
        Loss {
            expected: ((self.cost(drafts, others, costs) + behind) / one - 1.0) * self.risk(),
            worst: (costs.at_most(others + 1, drafts) + draft) / one - 1.0,
        }
    }

    /// A look, if the budget allows it.
    fn look(&self, cost: f64, need: f64, budget: &mut Budget) -> Move {
        let allowed = !self.is_early && budget.spend(Loss { expected: cost, worst: cost }, need);
        if allowed { Move::Look } else { Move::Plain }
    }

    /// The best number of drafts; or one more, or none, where that was not tried for long.
    fn look_further(&mut self, best: usize, (most, others): (usize, usize), costs: &RowCosts, budget: &Budget) -> Move {
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
            return Move::Plain;
        }
        let deeper = best + 1;
        let is_new = !costs.was_measured(others + 1 + deeper);
        if self.since_deeper >= self.deeper_every
            && deeper <= most.min(MOST)
            && (is_new || is_due(self, deeper, self.since_deeper))
        {
            self.since_deeper = 0;
            self.deeper_every = (2 * self.deeper_every).min(DEEPER_EVERY.1);
            let allowed = budget.allows(self.loss((deeper, others, 0.0), costs));
            return Move::Draft(if allowed { deeper } else { best });
        }
        Move::Draft(best)
    }
}
