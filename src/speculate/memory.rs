//! What a run measured of speculation, in a file that the next one begins with, so that it need not find out again by
//! drafting less than pays. What is remembered is a first guess: it counts as a few judgements, gives way to the first
//! measurements, and the budget of [`Pace`] takes it for wrong by half.
//!
//! ```text
//! speculation-<hash>.json   {.., "runs": [{"where": "avx512, 2 threads, ..", "rows": [1.0, 1.36, null, ..],
//!     "sources": {"mtp": {"judged": [..], "right": [..], "draft": 0.05, "missed": 0.002}, ..}}, ..]}
//! ```
//! `rows`: what walks of 1, 2, .. rows take; like `draft` (a token chosen among the whole vocabulary) and `missed` in
//! plain steps. Costs differ from machine to machine, so that each kind of run (`where`) has an entry, the newest
//! first. How often drafts are right is kept by position.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::costs::{MOST, Multiples, RowCosts};
use super::pace::{Guess, Pace};
use super::stats::SourceStats;
use crate::model_file::ModelFile;
use crate::plan::Place;
use crate::session::{NumaOutcome, Session};
use crate::simd;

/// To be raised when the numbers mean something else.
const VERSION: u64 = 1;
/// Kinds of runs that are remembered of a model.
const RUNS: usize = 16;
/// Judgements of a position from which on its rate is remembered, and as many as those of earlier runs count as at
/// most.
const JUDGED: (f64, f64) = (4.0, 200.0);
/// More plain steps than anything takes that was measured.
const LONGEST: f64 = 1000.0;

/// What is remembered of a source of drafts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SourceMemory {
    /// By position, how often a draft was judged, since those before it were right, and how often it was right.
    judged: [f64; MOST],
    right: [f64; MOST],
    /// Plain steps that a drafted token takes, and a token that is read before a draft.
    draft: Option<f64>,
    missed: Option<f64>,
}

impl SourceMemory {
    /// A memory in which each position was judged so often, and right with probability `p`.
    #[cfg(test)]
    pub(super) fn of(judged: f64, p: f64, draft: Option<f64>, missed: Option<f64>) -> SourceMemory {
        SourceMemory { judged: [judged; MOST], right: [judged * p; MOST], draft, missed }
    }

    /// What a run begins with, which without a memory were the `first` guesses: of a rate, and of what a draft costs.
    pub(super) fn guess(&self, first: (f64, f64)) -> Guess {
        let rate = |j: usize| (self.judged[j] >= JUDGED.0).then(|| self.right[j] / self.judged[j]);
        let guess = Guess::new((rate(0).unwrap_or(first.0), self.draft.unwrap_or(first.1)));
        match rate(0) {
            Some(_) => guess.remembered(std::array::from_fn(|j| rate(j + 1)), self.missed),
            None => guess,
        }
    }

    /// Adds what a run found out: how often drafts were right, and what they cost where that was measured.
    pub(super) fn add<'a>(&mut self, stats: &SourceStats, paces: impl Iterator<Item = &'a Pace>, costs: &RowCosts) {
        for (j, (judged, right)) in stats.judged().into_iter().enumerate() {
            let kept = (JUDGED.1 / self.judged[j]).min(1.0);
            self.judged[j] = self.judged[j] * kept + judged as f64;
            self.right[j] = self.right[j] * kept + right as f64;
        }
        let Some(one) = costs.measured(1) else { return };
        for pace in paces {
            let (draft, missed) = pace.draft_seconds();
            self.draft = draft.map(|seconds| seconds / one).or(self.draft);
            self.missed = missed.map(|seconds| seconds / one).or(self.missed);
        }
    }

    fn to_json(&self) -> Value {
        json!({"judged": self.judged, "right": self.right, "draft": self.draft, "missed": self.missed})
    }

    fn parse(value: &Value) -> Result<SourceMemory> {
        let list = |key: &str| -> Result<[f64; MOST]> {
            let all: Vec<f64> = serde_json::from_value(value[key].clone())?;
            all.try_into().ok().with_context(|| format!("{key}: {MOST} numbers expected"))
        };
        let (judged, right) = (list("judged")?, list("right")?);
        let fine = judged.iter().zip(&right).all(|(n, right)| (0.0..=*n).contains(right) && n.is_finite());
        ensure!(fine, "right: no more than was judged expected");
        Ok(SourceMemory { judged, right, draft: steps(&value["draft"])?, missed: steps(&value["missed"])? })
    }
}

/// A number of plain steps, or null.
fn steps(value: &Value) -> Result<Option<f64>> {
    let number: Option<f64> = serde_json::from_value(value.clone())?;
    ensure!(number.is_none_or(|n| (0.0..=LONGEST).contains(&n)), "{value} plain steps, 0 to {LONGEST} expected");
    Ok(number)
}

/// What is remembered of runs of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RunMemory {
    /// What walks cost by their rows.
    pub(super) rows: Multiples,
    /// By the names of sources.
    pub(super) sources: BTreeMap<String, SourceMemory>,
}

impl RunMemory {
    fn to_json(&self, kind: &str) -> Value {
        let sources: Map<String, Value> = self.sources.iter().map(|(name, s)| (name.clone(), s.to_json())).collect();
        json!({"where": kind, "rows": self.rows[1..], "sources": sources})
    }

    fn parse(value: &Value) -> Result<RunMemory> {
        let list = value["rows"].as_array().filter(|l| l.len() == MOST + 1);
        let mut rows = Multiples::default();
        for (n, value) in list.with_context(|| format!("rows: {} numbers expected", MOST + 1))?.iter().enumerate() {
            rows[n + 1] = steps(value)?;
            ensure!(rows[n + 1] != Some(0.0), "rows: a walk of {} rows takes no time", n + 1);
        }
        let sources = value["sources"].as_object().context("sources expected")?;
        let sources = sources.iter().map(|(name, s)| Ok((name.clone(), SourceMemory::parse(s)?)));
        Ok(RunMemory { rows, sources: sources.collect::<Result<_>>()? })
    }
}

/// The file of a model, and the kind of runs that this one is.
#[derive(Debug)]
pub(super) struct MemoryFile {
    file: ModelFile,
    kind: String,
}

impl MemoryFile {
    /// The file for a session's model in a folder, which need not be there.
    pub(super) fn of(folder: &Path, session: &Session) -> MemoryFile {
        let file = ModelFile::new(folder, "speculation", VERSION, session.engine().gguf());
        MemoryFile { file, kind: kind_of(session) }
    }

    /// What earlier runs of this kind left.
    pub(super) fn read(&self) -> Option<RunMemory> {
        let own =
            |runs: &Value| list(runs)?.iter().find(|run| run["where"] == self.kind).map(RunMemory::parse).transpose();
        self.file.read("runs", own).flatten()
    }

    /// Leaves this for the next run of this kind.
    ///
    /// # Errors
    /// As [`ModelFile::write`].
    pub(super) fn write(&self, memory: &RunMemory) -> Result<()> {
        // Other runs may have written it meanwhile.
        let mut runs = self.file.read("runs", |runs| list(runs).cloned()).unwrap_or_default();
        runs.retain(|run| run["where"] != self.kind);
        runs.insert(0, memory.to_json(&self.kind));
        runs.truncate(RUNS);
        self.file.write("runs", &json!(runs))
    }

    /// Where it is, for people.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }
}

fn list(runs: &Value) -> Result<&Vec<Value>> {
    runs.as_array().context("runs: a list expected")
}

/// All that changes what steps cost: the instruction set, the threads, what runs where, and what is read from the
/// drive.
fn kind_of(session: &Session) -> String {
    let engine = session.engine();
    let steps = |place: Place| engine.plan.places.iter().filter(|p| **p == place).count();
    let mut kind = format!("{}, {} threads", simd::isa().name(), engine.pool.threads());
    for (n, device) in engine.devices().iter().enumerate() {
        let (steps, all) = (steps(Place::Gpu(n as u8)), engine.plan.places.len());
        kind += &format!(", {steps} of {all} steps on {:?}", device.gpu());
    }
    if session.ram().is_some() {
        kind += ", experts from the drive";
    }
    if matches!(session.numa(), NumaOutcome::On { .. }) {
        kind += ", over NUMA nodes";
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;

    fn file(folder: &Path, kind: &str) -> MemoryFile {
        let demo = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")).unwrap();
        let gguf = Gguf::from_bytes(demo, Path::new("a.gguf")).unwrap();
        MemoryFile { file: ModelFile::new(folder, "speculation", VERSION, &gguf), kind: kind.into() }
    }

    fn memory(two_rows: f64) -> RunMemory {
        let mut rows = Multiples::default();
        (rows[1], rows[2]) = (Some(1.0), Some(two_rows));
        let source = SourceMemory::of(10.0, 0.5, Some(0.05), None);
        RunMemory { rows, sources: BTreeMap::from([("mtp".into(), source)]) }
    }

    #[test]
    fn each_kind_of_run_begins_with_what_the_last_one_of_its_kind_left() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(file(dir.path(), "a").read(), None);
        file(dir.path(), "a").write(&memory(1.5)).unwrap();
        file(dir.path(), "b").write(&memory(1.7)).unwrap();
        file(dir.path(), "a").write(&memory(1.6)).unwrap();
        assert_eq!(file(dir.path(), "a").read(), Some(memory(1.6)));
        assert_eq!(file(dir.path(), "b").read(), Some(memory(1.7)));
        (0..RUNS).for_each(|n| file(dir.path(), &n.to_string()).write(&memory(1.5)).unwrap());
        assert_eq!(file(dir.path(), "a").read(), None, "the file does not grow for ever");
        assert_eq!(file(dir.path(), "0").read(), Some(memory(1.5)));
    }

    #[test]
    fn numbers_that_cannot_be_are_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), "a");
        file.write(&memory(1.5)).unwrap();
        let good = std::fs::read_to_string(file.path()).unwrap();
        for (from, to) in [
            ("1.5", "0.0"),
            ("1.5", "-1.5"),
            ("1.5", "1e300"),
            ("1.5", "\"1.5\""),
            ("[1.0,1.5,", "[1.0,"),
            ("0.05", "-0.05"),
            ("\"right\":[5.0", "\"right\":[11.0"),
            ("\"right\":[5.0", "\"right\":[-1.0"),
            ("\"judged\":[10.0,", "\"judged\":["),
            ("\"sources\":{\"mtp\":{", "\"sources\":{\"mtp\":3,\"x\":{"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            std::fs::write(file.path(), &bad).unwrap();
            assert_eq!(file.read(), None, "{bad}");
            file.write(&memory(1.5)).unwrap();
            assert_eq!(file.read(), Some(memory(1.5)));
        }
    }

    #[test]
    fn what_was_judged_long_ago_counts_less_and_less() {
        let mut memory = SourceMemory::of(10_000.0, 1.0, None, None);
        let mut wrong = SourceStats::default();
        (0..600).for_each(|_| wrong.note(1, 0));
        memory.add(&wrong, std::iter::empty(), &RowCosts::default());
        assert_eq!(Pace::new(memory.guess((0.9, 0.1))).rate(0), 0.25, "200 of 800");
        // Few judgements say nothing.
        let mut memory = SourceMemory::default();
        let mut few = SourceStats::default();
        (0..3).for_each(|_| few.note(1, 0));
        memory.add(&few, std::iter::empty(), &RowCosts::default());
        assert_eq!(memory.guess((0.9, 0.1)), Guess::new((0.9, 0.1)));
    }
}
