//! The places a step can run at, and the rules that the command line makes.

use anyhow::{Context, Result, bail};
use regex::Regex;

use super::shared_states;
use crate::tape::{Step, Tape};

/// Where a step runs and its values live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The CPU and its memory.
    Cpu,
    /// The CPU's code over a second memory that poses as a device: placement, copies and order can be tested anywhere,
    /// and the result must equal the CPU's bit for bit.
    Twin,
    /// A GPU and its memory, by the GPU's number.
    Gpu(u8),
}

impl Place {
    /// Every place, in the order of [`Place::index`]. One GPU is all that is used so far.
    pub const ALL: [Place; 3] = [Place::Cpu, Place::Twin, Place::Gpu(0)];

    /// Its number.
    pub fn index(self) -> usize {
        match self {
            Place::Cpu => 0,
            Place::Twin => 1,
            Place::Gpu(n) => 2 + n as usize,
        }
    }

    /// Whether it is a GPU.
    pub fn is_gpu(self) -> bool {
        matches!(self, Place::Gpu(_))
    }

    /// Its name in rules and reports.
    pub fn name(self) -> &'static str {
        match self {
            Place::Cpu => "CPU",
            Place::Twin => "TWIN",
            Place::Gpu(_) => "GPU",
        }
    }
}

/// `-ot REGEX=PLACE` rules, the first that matches a tensor of a step decides.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    list: Vec<(Regex, Place)>,
}

impl Rules {
    /// Adds `REGEX=PLACE[,REGEX=PLACE ...]`; `GPU` is the first GPU, `GPU0`, llama.cpp's `CUDA0`.
    ///
    /// # Errors
    /// If a rule has another form, names no place, or its regex is none.
    pub fn add(&mut self, text: &str) -> Result<()> {
        for rule in text.split(',') {
            let (pattern, place) =
                rule.rsplit_once('=').with_context(|| format!("-ot {rule}: REGEX=PLACE expected"))?;
            let place = match place.to_ascii_uppercase().as_str() {
                // llama.cpp's names for memory that the CPU computes in: pinned, and laid out differently.
                "CPU" | "CUDA_HOST" | "CPU_REPACK" => Place::Cpu,
                "TWIN" => Place::Twin,
                "GPU" | "GPU0" | "CUDA0" | "CUDA" => Place::Gpu(0),
                _ => bail!("-ot {rule}: no place is called {place}; expected CPU, GPU (also CUDA0) or TWIN"),
            };
            let pattern = Regex::new(pattern).with_context(|| format!("-ot {rule}: {pattern} is no regex"))?;
            self.list.push((pattern, place));
        }
        Ok(())
    }

    /// Where the rules put a step, if one of them matches.
    fn place(&self, tape: &Tape, step: &Step) -> Option<Place> {
        let names = || step.weights.iter().map(|w| tape.weights[w.0 as usize].name.as_str());
        let hit = self.list.iter().find(|(r, _)| names().any(|n| r.is_match(n)));
        hit.map(|(_, p)| *p)
    }

    /// Where the rules put each step, if one of them matches it or a step that it shares a state with.
    pub fn places(&self, tape: &Tape) -> Vec<Option<Place>> {
        let own: Vec<Option<Place>> = tape.steps.iter().map(|s| self.place(tape, s)).collect();
        let groups = shared_states(tape);
        let of_group = |group: usize| (0..own.len()).filter(|&i| groups[i] == Some(group)).find_map(|i| own[i]);
        (0..own.len()).map(|i| own[i].or_else(|| groups[i].and_then(of_group))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_the_first_gpu_with_or_without_its_number_and_no_gpu_that_is_not_used() {
        for (text, place) in
            [("x=GPU", Place::Gpu(0)), ("x=gpu0", Place::Gpu(0)), ("x=CUDA0", Place::Gpu(0)), ("x=Twin", Place::Twin)]
        {
            let mut rules = Rules::default();
            rules.add(text).unwrap();
            assert!(rules.name(place), "{text}");
        }
        let error = Rules::default().add("x=GPU1").unwrap_err().to_string();
        assert!(error.contains("no place is called GPU1"), "{error}");
    }

    #[test]
    fn places_are_numbered_in_the_order_of_their_list() {
        assert!(Place::ALL.iter().enumerate().all(|(i, place)| place.index() == i));
    }
}
