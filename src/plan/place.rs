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

/// GPUs that a model can be spread over.
pub const MAX_GPUS: usize = 8;

impl Place {
    /// Every place, in the order of [`Place::index`].
    pub const ALL: [Place; 2 + MAX_GPUS] = {
        let mut all = [Place::Cpu; 2 + MAX_GPUS];
        all[1] = Place::Twin;
        let mut n = 0;
        while n < MAX_GPUS {
            all[2 + n] = Place::Gpu(n as u8);
            n += 1;
        }
        all
    };

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
            Place::Gpu(n) => ["GPU", "GPU1", "GPU2", "GPU3", "GPU4", "GPU5", "GPU6", "GPU7"]
                .get(n as usize)
                .copied()
                .unwrap_or("GPU?"),
        }
    }

    /// The place that a rule names.
    fn by_name(name: &str) -> Option<Place> {
        match name.to_ascii_uppercase().as_str() {
            // llama.cpp's names for memory that the CPU computes in: pinned, and laid out differently.
            "CPU" | "CUDA_HOST" | "CPU_REPACK" => Some(Place::Cpu),
            "TWIN" => Some(Place::Twin),
            gpu => gpu_number(gpu).filter(|n| *n < MAX_GPUS).map(|n| Place::Gpu(n as u8)),
        }
    }
}

/// The number of a GPU by its name, `GPU1` or llama.cpp's `CUDA1`; one without a number is the first.
pub fn gpu_number(name: &str) -> Option<usize> {
    let name = name.to_ascii_uppercase();
    match name.strip_prefix("GPU").or_else(|| name.strip_prefix("CUDA"))? {
        "" => Some(0),
        n => n.parse().ok(),
    }
}

/// `-ot REGEX=PLACE` rules, the first that matches a tensor of a step decides.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    list: Vec<(Regex, Place)>,
}

impl Rules {
    /// Adds `REGEX=PLACE[,REGEX=PLACE ...]`; `GPU` is the first GPU, `GPU0`, llama.cpp's `CUDA0`; `GPU1` the second.
    ///
    /// # Errors
    /// If a rule has another form, names no place, or its regex is none.
    pub fn add(&mut self, text: &str) -> Result<()> {
        for rule in text.split(',') {
            let (pattern, place) =
                rule.rsplit_once('=').with_context(|| format!("-ot {rule}: REGEX=PLACE expected"))?;
            let Some(place) = Place::by_name(place) else {
                bail!(
                    "-ot {rule}: no place is called {place}; expected CPU, GPU or CUDA0 to CUDA{}, or TWIN",
                    MAX_GPUS - 1
                )
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

    /// The numbers of the GPUs that rules name.
    pub fn gpus(&self) -> impl Iterator<Item = usize> {
        self.list.iter().filter_map(|(_, p)| if let Place::Gpu(n) = p { Some(*n as usize) } else { None })
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
    fn a_rule_names_a_gpu_by_its_number_and_the_first_one_without_too() {
        for (text, n) in [("x=GPU", 0), ("x=gpu0", 0), ("x=CUDA0", 0), ("x=CUDA1", 1), ("x=GPU7", 7)] {
            let mut rules = Rules::default();
            rules.add(text).unwrap();
            assert_eq!(rules.gpus().collect::<Vec<_>>(), [n], "{text}");
            assert_eq!(rules.list[0].1, Place::Gpu(n as u8), "{text}");
        }
        for bad in ["GPU8", "CUDA-1", "CUDA256", "GPUx", "METAL0"] {
            let error = Rules::default().add(&format!("x={bad}")).unwrap_err().to_string();
            assert!(error.contains(&format!("no place is called {bad}")), "{error}");
        }
    }

    #[test]
    fn places_are_numbered_in_the_order_of_their_list() {
        assert!(Place::ALL.iter().enumerate().all(|(i, place)| place.index() == i));
        assert_eq!(Place::by_name(Place::ALL[9].name()), Some(Place::Gpu(7)));
    }
}
