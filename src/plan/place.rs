//! The places a step can run at, and the rules that the command line makes.

use anyhow::{Context, Result, bail};
use regex::Regex;

use crate::tape::{Step, Tape};

/// Where a step runs and its values live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The CPU and its memory.
    Cpu,
    /// The CPU's code over a second memory that poses as a device: placement, copies and order can be tested anywhere,
    /// and the result must equal the CPU's bit for bit.
    Twin,
    /// The GPU and its memory.
    Gpu,
}

impl Place {
    /// Every place, in the order of [`Place::index`].
    pub const ALL: [Place; 3] = [Place::Cpu, Place::Twin, Place::Gpu];

    /// Its number.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its name in rules and reports.
    pub fn name(self) -> &'static str {
        match self {
            Place::Cpu => "CPU",
            Place::Twin => "TWIN",
            Place::Gpu => "GPU",
        }
    }
}

/// `-ot REGEX=PLACE` rules, the first that matches a tensor of a step decides.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    list: Vec<(Regex, Place)>,
}

impl Rules {
    /// Adds `REGEX=PLACE[,REGEX=PLACE ...]`.
    pub fn add(&mut self, text: &str) -> Result<()> {
        for rule in text.split(',') {
            let (pattern, place) =
                rule.rsplit_once('=').with_context(|| format!("-ot {rule}: REGEX=PLACE expected"))?;
            let place = match Place::ALL.iter().find(|p| p.name().eq_ignore_ascii_case(place)) {
                Some(p) => *p,
                None => bail!("-ot {rule}: no place is called {place}; CPU, GPU or TWIN expected"),
            };
            let pattern = Regex::new(pattern).with_context(|| format!("-ot {rule}: {pattern} is no regex"))?;
            self.list.push((pattern, place));
        }
        Ok(())
    }

    /// Where the rules put a step, if one of them matches.
    pub fn place(&self, tape: &Tape, step: &Step) -> Option<Place> {
        let names = || step.weights.iter().map(|w| tape.weights[w.0 as usize].name.as_str());
        let hit = self.list.iter().find(|(r, _)| names().any(|n| r.is_match(n)));
        hit.map(|(_, p)| *p)
    }

    /// Whether any rule names the place.
    pub fn name(&self, place: Place) -> bool {
        self.list.iter().any(|(_, p)| *p == place)
    }

    /// The rules as they were written.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.list.iter().map(|(regex, place)| format!("{regex}={}", place.name()))
    }
}
