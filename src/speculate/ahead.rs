//! The rounds: sequences read drafted tokens ahead of those that are chosen.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::costs::{MOST, RowCosts};
use super::drafter::Drafter;
use super::memory::{MemoryFile, RunMemory};
use super::pace::{Budget, Guess, Move, Pace};
use super::stats::{RoundStats, SourceStats};
use crate::session::{DraftLogits, Output, Session, Want};

/// How much may be drafted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Tokens of a draft, at most.
    pub most: usize,
    /// Tokens of a draft, at least: a shorter one is dropped. Above 0 something is drafted in every round, whatever times
    /// are measured.
    pub least: usize,
    /// A token that its drafter gives a lower probability ends the draft before it.
    pub p_min: f32,
    /// Let measured times decide nothing: rows cost what is guessed.
    pub deterministic: bool,
}

/// A token that was chosen for a sequence, and is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// The sequence.
    pub seq: usize,
    /// The token.
    pub token: u32,
    /// What is wanted after it: [`Want::Last`] or [`Want::Argmax`].
    pub want: Want,
    /// Tokens that may still be chosen after it; drafts beyond these would be for nothing.
    pub room: usize,
}

/// The drafts under way of one sequence, and what is known of its text.
#[derive(Debug)]
struct Sequence {
    /// Drafted tokens that are read and not yet chosen, oldest first, with what was computed after each.
    ahead: VecDeque<(u32, Output)>,
    /// The round that read them.
    round: Option<Round>,
    /// By source: how often it is right, a token that it drafted and that is only compared with the one that comes, and the
    /// tokens that came since it drafted.
    paces: Vec<Pace>,
    looks: Vec<Option<u32>>,
    missed: Vec<usize>,
}

/// A round with drafts that were not all judged yet.
#[derive(Clone, Copy, Debug)]
struct Round {
    source: usize,
    drafted: usize,
    right: usize,
    /// Seconds of this sequence's share, in plain steps.
    steps: f64,
}

impl Sequence {
    /// The token that was read came without drafts.
    fn one_more(&mut self) {
        self.paces.iter_mut().for_each(|pace| pace.pass(1));
        for (missed, look) in self.missed.iter_mut().zip(&self.looks) {
            *missed += usize::from(look.is_none()); // what looked has read it
        }
    }
}

/// Speculation over the sequences of a session: what drafts, what is drafted, what became of it.
#[derive(Debug)]
pub struct Speculation {
    sources: Vec<(Drafter, SourceStats)>,
    limits: Limits,
    seqs: Vec<Sequence>,
    costs: RowCosts,
    budget: Budget,
    stats: RoundStats,
    /// What earlier runs measured.
    memory: RunMemory,
    /// The file that has it, with the names that sources have there.
    file: Option<(MemoryFile, Vec<String>)>,
}

/// A round's drafts for a sequence: the source, and the tokens.
type Drafted = Option<(usize, Vec<u32>)>;

impl Speculation {
    /// Nothing is drafted.
    pub fn off() -> Speculation {
        let limits = Limits { most: 0, least: 0, p_min: 0.0, deterministic: false };
        Speculation::new(Vec::new(), limits)
    }

    /// Drafts from these sources, the better one in each round.
    pub fn new(drafters: Vec<Drafter>, limits: Limits) -> Speculation {
        Speculation {
            sources: drafters.into_iter().map(|d| (d, SourceStats::default())).collect(),
            limits,
            seqs: Vec::new(),
            costs: RowCosts::new(limits.deterministic),
            budget: Budget::default(),
            stats: RoundStats::default(),
            memory: RunMemory::default(),
            file: None,
        }
    }

    /// Begins with what earlier runs with this model left in a folder, and leaves there for the next one what was
    /// measured when this is dropped; not where measured times decide nothing.
    pub fn remembering(mut self, folder: &Path, session: &Session) -> Speculation {
        if self.is_off() || self.limits.deterministic {
            return self;
        }
        let file = MemoryFile::of(folder, session);
        if let Some(memory) = file.read() {
            tracing::debug!("{}: drafts begin with what earlier runs measured", file.path().display());
            self.start(memory);
        }
        self.file = Some((file, self.sources.iter().map(|(drafter, _)| drafter.identity(session)).collect()));
        self
    }

    /// Whether this begins with what earlier runs measured.
    pub fn has_memory(&self) -> bool {
        self.memory != RunMemory::default()
    }

    /// What the next run is to begin with.
    fn learned(&self) -> RunMemory {
        let mut memory = RunMemory { rows: self.costs.multiples(), ..self.memory.clone() };
        for (i, (_, stats)) in self.sources.iter().enumerate() {
            let paces = self.seqs.iter().map(|s| &s.paces[i]);
            memory.sources.entry(self.key(i)).or_default().add(stats, paces, &self.costs);
        }
        memory
    }

    /// What a source is remembered by.
    fn key(&self, source: usize) -> String {
        match &self.file {
            Some((_, names)) => names[source].clone(),
            None => self.sources[source].0.name().into(),
        }
    }

    /// Whether nothing is ever drafted.
    pub fn is_off(&self) -> bool {
        self.sources.is_empty() || self.limits.most == 0
    }

    /// How much may be drafted.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What each source did, by its name.
    pub fn sources(&self) -> impl Iterator<Item = (&'static str, &SourceStats)> {
        self.sources.iter().map(|(drafter, stats)| (drafter.name(), stats))
    }

    /// The share of the vocabulary that the drafts of each source looked at; None for those that compute no logits.
    pub fn shares(&self, session: &Session) -> Vec<Option<f64>> {
        self.sources.iter().map(|(drafter, _)| drafter.logits(session).and_then(DraftLogits::share)).collect()
    }

    /// What all rounds were.
    pub fn stats(&self) -> RoundStats {
        self.stats
    }

    /// What walks cost by their rows.
    pub fn costs(&self) -> &RowCosts {
        &self.costs
    }

    /// Begins again as another process does: with what this one leaves for it, if it `remembers`, else with nothing.
    /// For sequences without drafts under way.
    pub fn restart(&mut self, remembers: bool) {
        let memory = if remembers && !self.limits.deterministic { self.learned() } else { RunMemory::default() };
        self.start(memory);
    }

    fn start(&mut self, memory: RunMemory) {
        self.sources.iter_mut().for_each(|source| source.1 = SourceStats::default());
        self.costs = if self.limits.deterministic { RowCosts::new(true) } else { RowCosts::after(memory.rows) };
        (self.budget, self.stats) = (Budget::default(), RoundStats::default());
        self.seqs.clear();
        self.memory = memory;
    }

    /// A text begins, or is gone on with, in a sequence of which nothing is drafted.
    pub fn begin(&mut self, seq: usize) {
        let s = self.of(seq);
        s.paces.iter_mut().for_each(Pace::begin);
        s.looks.fill(None);
        s.missed.fill(0); // what drafts has read the prompt, or reads it without being charged for it
    }

    fn of(&mut self, seq: usize) -> &mut Sequence {
        while self.seqs.len() <= seq {
            let guess = |i: usize| {
                let first = self.sources[i].0.guess();
                self.memory.sources.get(&self.key(i)).map_or(Guess::new(first), |memory| memory.guess(first))
            };
            let paces: Vec<Pace> = (0..self.sources.len()).map(|i| Pace::new(guess(i))).collect();
            let (looks, missed) = (vec![None; paces.len()], vec![0; paces.len()]);
            self.seqs.push(Sequence { ahead: VecDeque::new(), round: None, paces, looks, missed });
        }
        &mut self.seqs[seq]
    }

    /// Tokens of a sequence without drafts that were not chosen.
    pub fn len_of(&self, session: &Session, seq: usize) -> usize {
        session.tokens(seq).len() - self.seqs.get(seq).map_or(0, |s| s.ahead.len())
    }

    /// What is wanted after a token, if it was drafted and is read already.
    pub fn take(&mut self, next: &Next) -> Option<Output> {
        let s = self.of(next.seq);
        let (token, output) = s.ahead.front()?;
        let fits = match (output, next.want) {
            (Output::Logits(_), Want::Last | Want::Argmax) => true,
            (Output::Argmax { .. }, want) => want == Want::Argmax,
            _ => false,
        };
        if *token != next.token || !fits {
            return None;
        }
        let (_, output) = s.ahead.pop_front().expect("it was looked at");
        if let Some(round) = &mut s.round {
            round.right += 1;
        }
        Some(match (output, next.want) {
            (Output::Logits(logits), Want::Argmax) => Output::argmax(&logits),
            (output, _) => output,
        })
    }

    /// Takes a sequence back to what was chosen: drafts that were read and not chosen are gone afterwards.
    ///
    /// # Errors
    /// As [`Session::rewind`].
    pub fn settle(&mut self, session: &mut Session, seq: usize) -> Result<()> {
        let len = self.len_of(session, seq);
        let Some(s) = self.seqs.get_mut(seq) else { return Ok(()) };
        let rejected = !s.ahead.is_empty();
        s.ahead.clear();
        if let Some(Round { source, drafted, right, steps }) = s.round.take() {
            s.paces[source].note(drafted, right);
            s.paces.iter_mut().for_each(|pace| pace.pass(1 + right));
            s.missed.iter_mut().enumerate().filter(|(i, _)| *i != source).for_each(|(_, n)| *n += 1 + right);
            self.budget.note(1 + right, steps);
            let (drafter, stats) = &mut self.sources[source];
            stats.note(drafted, right);
            if drafter.may_be_useless() && stats.is_useless() {
                let (name, drafted) = (drafter.name(), stats.drafted + stats.looks.0);
                let accepted = stats.accepted + stats.looks.1;
                tracing::warn!(
                    "speculation ({name}): off, since {accepted} of {drafted} drafts were right; what drafts may have been \
                     made for another model"
                );
            }
            self.stats.tokens += 1 + right;
            self.stats.plain_seconds += self.costs.measured(1).unwrap_or(0.0) * (1 + right) as f64;
        }
        if rejected {
            let start = Instant::now();
            session.rewind(seq, len)?;
            self.stats.back_seconds += start.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Reads a token that was chosen, with drafts after it where that seems to pay, and returns what is wanted after it.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn read(&mut self, session: &mut Session, next: Next) -> Result<Output> {
        if let Some(output) = self.take(&next) {
            return Ok(output);
        }
        Ok(self.read_all(session, &[next])?.remove(0))
    }

    /// Reads a token for each of several sequences together, none of which [`Speculation::take`] has.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn read_all(&mut self, session: &mut Session, nexts: &[Next]) -> Result<Vec<Output>> {
        let parts: Vec<(usize, &[u32], Want)> =
            nexts.iter().map(|n| (n.seq, std::slice::from_ref(&n.token), n.want)).collect();
        if self.is_off() {
            return session.forward(&parts);
        }
        nexts.iter().try_for_each(|n| self.settle(session, n.seq))?;
        let (drafted, drafting) = self.draft_all(session, nexts)?;
        if drafted.iter().all(Option::is_none) {
            let start = Instant::now();
            let outputs = session.forward(&parts)?;
            // A prompt of one token is like any other.
            self.note_walk(nexts.len(), start.elapsed().as_secs_f64());
            self.stats.plain += 1;
            self.budget.note(nexts.len(), nexts.len() as f64 * (1.0 + drafting / self.costs.of(nexts.len())));
            nexts.iter().for_each(|n| self.of(n.seq).one_more());
            return Ok(outputs);
        }
        self.verify(session, nexts, drafted, drafting)
    }

    /// Reads the tokens and their drafts in one walk.
    fn verify(
        &mut self,
        session: &mut Session,
        nexts: &[Next],
        drafted: Vec<Drafted>,
        drafting: f64,
    ) -> Result<Vec<Output>> {
        let tokens: Vec<Vec<u32>> = nexts
            .iter()
            .zip(&drafted)
            .map(|(n, d)| [&[n.token][..], d.as_ref().map_or(&[][..], |d| &d.1[..])].concat())
            .collect();
        let parts: Vec<(usize, &[u32], Want)> =
            nexts.iter().zip(&tokens).map(|(n, t)| (n.seq, &t[..], n.want)).collect();
        let start = Instant::now();
        let outputs = session.verify(&parts)?;
        let (seconds, rows) = (start.elapsed().as_secs_f64(), tokens.iter().map(Vec::len).sum());
        self.note_walk(rows, seconds);
        self.stats.drafted += 1;
        self.stats.rows += rows;
        self.stats.draft_seconds += drafting;
        self.stats.verify_seconds += seconds;
        let one = self.costs.of(nexts.len()) / nexts.len() as f64;
        let measured = self.costs.measured(1).is_some();
        let walk = if measured { seconds + drafting } else { self.costs.of(rows) };
        // What a sequence without drafts gets is a plain step; the others share what is left.
        let plain = drafted.iter().filter(|d| d.is_none()).count();
        let steps = (walk / one - plain as f64) / (nexts.len() - plain) as f64;
        self.budget.note(plain, plain as f64);
        nexts.iter().zip(&drafted).filter(|(_, d)| d.is_none()).for_each(|(n, _)| self.of(n.seq).one_more());
        let mut first = Vec::with_capacity(nexts.len());
        for ((next, drafted), outputs) in nexts.iter().zip(drafted).zip(outputs) {
            let mut outputs = outputs.into_iter();
            first.push(outputs.next().expect("an output for every row"));
            if let Some((source, drafts)) = drafted {
                let s = &mut self.seqs[next.seq];
                s.round = Some(Round { source, drafted: drafts.len(), right: 0, steps });
                s.ahead = drafts.into_iter().zip(outputs).collect();
            }
        }
        Ok(first)
    }

    fn note_walk(&mut self, rows: usize, seconds: f64) {
        if !self.limits.deterministic {
            self.costs.note(rows, seconds);
        }
    }

    /// Drafts for each of the sequences, and the seconds that they took.
    fn draft_all(&mut self, session: &mut Session, nexts: &[Next]) -> Result<(Vec<Drafted>, f64)> {
        // All sequences get the same share of the rows that go through row kernels.
        let share = session.verify_rows().saturating_sub(nexts.len()) / nexts.len().max(1);
        let share = share.min(session.most_drafts()).min(self.limits.most).min(MOST);
        let (mut drafted, mut sum) = (Vec::with_capacity(nexts.len()), 0.0);
        for next in nexts {
            let free = session.n_ctx() - session.tokens(next.seq).len();
            let most = share.min(next.room.saturating_sub(1)).min(free.saturating_sub(1));
            let (drafts, seconds) = self.draft(session, next, most, nexts.len() - 1)?;
            drafted.push(drafts);
            sum += seconds;
        }
        Ok((drafted, sum))
    }

    /// Drafts for one sequence, while `others` read a token in the same walk, and the seconds that they took.
    fn draft(&mut self, session: &mut Session, next: &Next, most: usize, others: usize) -> Result<(Drafted, f64)> {
        self.judge_looks(next);
        // The cost of a single step comes first.
        let unknown = self.limits.least > 0 && !self.costs.is_known(others + 1);
        if most == 0 || most < self.limits.least || unknown {
            return Ok((None, 0.0));
        }
        let Some((source, text)) = self.source(session, next, most, others) else { return Ok((None, 0.0)) };
        let Speculation { sources, seqs, costs, budget, limits, .. } = self;
        let s = &mut seqs[next.seq];
        let (pace, missed) = (&mut s.paces[source], sources[source].0.reads(s.missed[source]));
        let reach = text.as_ref().map_or(most, Vec::len); // what was found may be short
        let wanted = match &sources[source].0 {
            Drafter::Script(_) => Move::Draft(most),
            _ if limits.least > 0 => Move::Draft(pace.best(most, others, costs).drafts.max(limits.least)),
            _ => pace.choose((reach, others, missed), costs, budget),
        };
        let n = match wanted {
            Move::Plain => return Ok((None, 0.0)),
            Move::Look => 1,
            Move::Draft(n) => n,
        };
        let mut start = Instant::now();
        sources[source].0.follow(session, next.seq)?;
        if missed == 0 {
            start = Instant::now(); // a prompt is read once
        }
        let drafts = match text {
            Some(mut drafts) => {
                drafts.truncate(n);
                drafts
            }
            None => sources[source].0.draft(session, (next.seq, next.token), n, limits.p_min)?,
        };
        let seconds = match limits.deterministic {
            true => pace.draft_cost(costs) * drafts.len() as f64,
            false => start.elapsed().as_secs_f64(),
        };
        pace.note_draft(drafts.len(), missed, seconds);
        s.missed[source] = 0;
        if wanted == Move::Look {
            s.looks[source] = drafts.first().copied();
            return Ok((None, seconds));
        }
        s.looks.fill(None);
        Ok(((drafts.len() >= limits.least.max(1)).then_some((source, drafts)), seconds))
    }

    /// Compares the tokens of looks with the one that came.
    fn judge_looks(&mut self, next: &Next) {
        self.of(next.seq);
        let s = &mut self.seqs[next.seq];
        for ((look, pace), source) in s.looks.iter_mut().zip(&mut s.paces).zip(&mut self.sources) {
            if let Some(token) = look.take() {
                pace.note(1, usize::from(token == next.token));
                source.1.note_look(token == next.token);
            }
        }
    }

    /// The source that seems best in this round; with its drafts where they cost nothing, so that they are made anyway.
    fn source(
        &mut self,
        session: &mut Session,
        next: &Next,
        most: usize,
        others: usize,
    ) -> Option<(usize, Option<Vec<u32>>)> {
        let mut best: Option<([f64; 2], usize, Option<Vec<u32>>)> = None;
        let s = &mut self.seqs[next.seq];
        for (i, (drafter, stats)) in self.sources.iter_mut().enumerate() {
            if drafter.may_be_useless() && stats.is_useless() {
                continue;
            }
            let found = match drafter {
                Drafter::Lookup => Some(super::look_up(session.tokens(next.seq), next.token, most)),
                _ => None,
            };
            let reach = found.as_ref().map_or(most, Vec::len);
            if reach == 0 {
                continue;
            }
            s.paces[i].set_work(drafter.work(session, next.seq));
            s.looks[i] = found.as_ref().map(|tokens| tokens[0]); // which costs nothing
            // Of sources that do not seem to pay the one is tried of which least is known.
            let gain = [s.paces[i].best(reach, others, &self.costs).gain, -s.paces[i].known()];
            if best.as_ref().is_none_or(|b| gain > b.0) {
                best = Some((gain, i, found));
            }
        }
        best.map(|(_, source, found)| (source, found))
    }
}

impl Drop for Speculation {
    fn drop(&mut self) {
        let Some((file, _)) = self.file.as_ref().filter(|_| self.costs.measured(1).is_some()) else { return };
        if let Err(e) = file.write(&self.learned()) {
            let path = file.path().display();
            tracing::debug!("{path}: what was measured of speculation is not kept for the next run: {e:#}");
        }
    }
}
