//! Whether a model fits into this machine's memory, and what to do where it does not.

use super::drive::DriveTier;
use super::facts::{ModelFacts, PlacedModel};
use super::file::FileFacts;
use super::formats;
use crate::cli::human::size;
use crate::cpu::Memory;

/// The judgement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Yes,
    /// It fits into the machine, but not next to the running programs.
    Crowded,
    No,
    Unknown,
}

impl Verdict {
    pub(super) fn word(self) -> &'static str {
        match self {
            Verdict::Yes => "yes",
            Verdict::Crowded => "crowded",
            Verdict::No => "no",
            Verdict::Unknown => "unknown",
        }
    }

    fn of(needed: usize, at: Memory) -> Verdict {
        if needed <= at.free {
            Verdict::Yes
        } else if needed <= (at.total as f64 * USABLE) as usize {
            Verdict::Crowded
        } else {
            Verdict::No
        }
    }
}

/// What is needed, what is there, and the words for it.
pub(super) struct MemoryFit {
    pub(super) memory: Option<Memory>,
    pub(super) needed: usize,
    pub(super) verdict: Verdict,
    /// The answer in a line of the verdict.
    pub(super) line: String,
    pub(super) words: Vec<String>,
    /// What comes from the drive, where only experts have no room in memory.
    pub(super) drive: Option<DriveTier>,
}

/// Of the memory that is there, the share that one program should count on.
const USABLE: f64 = 0.95;

impl MemoryFit {
    /// `drive_gbps`: the drive's rate, if it is not to be measured.
    pub(super) fn new(
        m: &PlacedModel<'_>,
        f: &ModelFacts,
        memory: Option<Memory>,
        drive_gbps: Option<f64>,
    ) -> MemoryFit {
        let here = || f.places.iter().filter(|p| !p.is_gpu);
        let weights: usize = here().map(|p| p.weight_bytes).sum();
        let rest: usize = here().map(|p| p.state_bytes + p.buffer_bytes).sum();
        let needed = weights + rest;
        let Some(at) = memory else { return MemoryFit::unknown(needed) };
        let usable = (at.total as f64 * USABLE) as usize;
        let verdict = Verdict::of(needed, at);
        let (need, free) = (size(needed), size(at.free));
        let missing = needed.saturating_sub(usable);
        let no_room = verdict == Verdict::No;
        let drive = no_room.then(|| DriveTier::new(m, weights, usable.saturating_sub(rest), drive_gbps)).flatten();
        let (line, words) = match verdict {
            Verdict::No => {
                let line = format!("no, it needs {need}, {} more than this machine has", size(missing));
                (line, too_large(m, f, (weights, rest, usable), drive.as_ref()))
            }
            Verdict::Crowded => {
                let gap = size(needed - at.free);
                let text = format!(
                    "It fits into this machine, but not next to the running programs: close programs that use {gap}, or \
                     some experts are read from the drive for every token, which is slow."
                );
                (format!("once programs that use {gap} are closed, it needs {need} and {free} are free"), vec![text])
            }
            _ => (
                format!("yes, it needs {need} of {free} free memory"),
                vec![format!("It fits: it needs {need} of {free} free memory.")],
            ),
        };
        MemoryFit { memory, needed, verdict, line, words, drive }
    }

    /// The judgement on the weights alone, of a file whose states nobody knows. Lookup tables stay
    /// in the file, and what predicts further tokens is not read.
    pub(super) fn of_weights(f: &FileFacts, memory: Option<Memory>) -> MemoryFit {
        let aside = f.tables.iter().map(|t| t.bytes).chain(f.mtp.iter().map(|m| m.bytes)).sum::<usize>();
        let needed = f.bytes - aside;
        let Some(at) = memory else { return MemoryFit::unknown(needed) };
        let verdict = Verdict::of(needed, at);
        let (need, free) = (size(needed), size(at.free));
        let (line, text) = match verdict {
            Verdict::No => (
                format!("no, the weights alone need {need} of {}", size(at.total)),
                format!("The weights alone do not fit: they need {need} of {}.", size(at.total)),
            ),
            Verdict::Crowded => (
                format!("the weights alone once programs are closed, they need {need} and {free} are free"),
                format!("The weights alone, {need}, fit into this machine, but not next to the running programs."),
            ),
            _ => (
                format!("yes, the weights alone, which need {need} of {free} free memory"),
                format!("The weights alone fit: they need {need} of {free} free memory."),
            ),
        };
        MemoryFit { memory, needed, verdict, line, words: vec![text], drive: None }
    }

    /// The judgement where the system does not say how much memory there is.
    fn unknown(needed: usize) -> MemoryFit {
        let words = vec!["The system does not report its memory.".into()];
        let line = format!("unknown, it needs {} and the system does not report its memory", size(needed));
        MemoryFit { memory: None, needed, verdict: Verdict::Unknown, line, words, drive: None }
    }
}

/// What happens and what helps when weights and the rest are more than `usable`.
fn too_large(
    m: &PlacedModel<'_>,
    f: &ModelFacts,
    (weights, rest, usable): (usize, usize, usize),
    drive: Option<&DriveTier>,
) -> Vec<String> {
    let missing = weights + rest - usable;
    let mut words = vec![format!("It does not fit: it needs {} more than this machine has.", size(missing))];
    words.extend(drive.map(DriveTier::words));
    // A shorter context, if that alone is enough.
    let (states, places) = (&m.placed.tape.states, &m.placed.plan.state_places);
    let at = |n_ctx: usize| {
        let here = states.iter().zip(places).filter(|(_, place)| !place.is_gpu());
        here.map(|(s, _)| s.bytes(n_ctx, m.shape.n_batch)).sum::<usize>()
    };
    let fixed = rest.saturating_sub(at(f.n_ctx));
    let fits = |n_ctx: usize| weights + fixed + at(n_ctx) <= usable;
    let step = 256;
    if f.n_ctx > step && fits(step) {
        let (mut low, mut high) = (1, f.n_ctx / step);
        while low < high {
            let mid = (low + high).div_ceil(2);
            if fits(mid * step) { low = mid } else { high = mid - 1 }
        }
        words.push(format!("What helps: a context of at most {} tokens (-c {0}).", low * step));
        return words;
    }
    let cache = at(f.n_ctx) - at(1);
    if cache * 10 > usable {
        let smaller = match f.cache_types {
            ("Q8_0", "Q8_0") => ", or -ctk q4_0 -ctv q4_0, which takes about half of q8_0 and is less exact",
            ("F32" | "F16" | "BF16", _) | (_, "F32" | "F16" | "BF16") => {
                ", -ctk q8_0 -ctv q8_0 (about half of f16) or -ctk q4_0 -ctv q4_0 (about a quarter, less exact)"
            }
            _ => "",
        };
        words.push(format!("What helps with the KV cache: a smaller -c{smaller}."));
    }
    let in_file: usize = f.file.tables.iter().map(|t| t.params).sum();
    let params = (f.file.params - in_file) as f64;
    let room = usable.saturating_sub(rest) as f64 * 8.0 / params;
    let this = f.file.format;
    words.push(match formats::largest(room.min(f.file.bits() * 0.99)) {
        Some(name) => format!("What helps: a file in {name} or smaller (this one is {this}), or more memory."),
        None => {
            let (name, bits) = formats::SMALLEST;
            let least = (params * bits / 8.0 + rest as f64) / USABLE;
            format!("No format makes it small enough: even in {name} it needs {}.", size(least as usize))
        }
    });
    words
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::Gguf;
    use crate::plan;
    use crate::session::{self, Options};

    /// The verdict on a small model with `n_ctx` tokens on a machine whose memory is
    /// `total(needed)`, `free` of it free.
    fn said(n_ctx: usize, total: impl Fn(usize) -> usize, free: f64) -> (Verdict, String) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/qwen3moe.gguf");
        let gguf = Gguf::open(&path).unwrap();
        let options = Options { n_ctx: Some(n_ctx), n_batch: 8, ..Options::default() };
        let tape = session::tape(&gguf, &options).unwrap();
        let shape = session::shape(&gguf, &options).unwrap();
        let placed = plan::fit(tape, &options.ask, &[], shape).unwrap();
        let model = PlacedModel { gguf: &gguf, placed: &placed, vram: None, options: &options, shape };
        let facts = ModelFacts::new(&model).unwrap();
        let total = total(MemoryFit::new(&model, &facts, None, Some(3.0)).needed);
        let memory = Memory { total, free: (total as f64 * free) as usize };
        let fit = MemoryFit::new(&model, &facts, Some(memory), Some(3.0));
        (fit.verdict, fit.words.join(" "))
    }

    #[test]
    fn a_model_fits_or_fits_once_others_leave_or_does_not_fit() {
        let (verdict, words) = said(512, |n| n * 2, 1.0);
        assert!(verdict == Verdict::Yes && words.starts_with("It fits:"), "{words}");
        let (verdict, words) = said(512, |n| n * 2, 0.25);
        assert!(verdict == Verdict::Crowded && words.contains("close programs"), "{words}");
        let (verdict, words) = said(256, |n| n * 3 / 4, 1.0);
        assert!(verdict == Verdict::No && words.contains("It still runs"), "{words}");
        assert!(words.contains("a file in BF16 or smaller (this one is F32)"), "{words}");
    }

    #[test]
    fn where_a_shorter_context_is_enough_the_longest_that_fits_is_named() {
        // 3 layers with keys and values of 64 columns in f16 are 768 bytes per token.
        let (verdict, words) = said(4096, |n| ((n - 768 * 1000) as f64 / USABLE) as usize, 1.0);
        assert!(verdict == Verdict::No && words.contains("-c 3072"), "{words}");
    }
}
