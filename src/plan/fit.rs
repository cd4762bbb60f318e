//! The placement that the command line asks for, or the best one that fits.
//!
//! Nothing need be asked. What a GPU has room for is taken in the order of what it gains: the output head and the layers
//! without their experts (read whole for every token, and attention is what a CPU is worst at), then the experts that are
//! chosen most, in a cache; or everything, where everything fits. Layers go from the last to the first, as in llama.cpp.

use anyhow::Result;

use super::batch::{Candidate, choose, sizes};
use super::{Cache, Footprint, Needs, Place, Plan, Rules, Shape, experts_of, ring_part_bytes, split};
use crate::tape::{ExpertShare, Role, Step, Tape};

/// How much GPU memory the expert cache may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheSize {
    /// All memory that is left.
    #[default]
    Auto,
    /// None; whole layers of experts are put there instead.
    Off,
    /// So many bytes.
    Bytes(usize),
}

/// What is asked of a placement; the default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// Layers on the GPU, the head counted as one: `-ngl`.
    pub gpu_layers: Option<usize>,
    /// Layers from the first whose experts stay on the CPU: `-ncmoe`, and `-cmoe` for all.
    pub cpu_moe: Option<usize>,
    /// `--expert-cache`.
    pub cache: CacheSize,
    /// `-ot`.
    pub rules: Rules,
    /// Rows up to which the batch is chosen (`plan/batch.rs`) where anything runs on a GPU; None takes the shape's.
    pub batch_up_to: Option<usize>,
}

/// Steps that a GPU cannot run, for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason.
    pub why: String,
    /// The first of the steps.
    pub first: String,
    /// How many.
    pub steps: usize,
}

/// A placed model, and how it came about.
#[derive(Debug)]
pub struct Fit {
    /// The tape, with expert steps in halves where they run at both places.
    pub tape: Tape,
    /// Where it runs.
    pub plan: Plan,
    /// Bytes on the GPU.
    pub footprint: Footprint,
    /// For how much, with the batch that was chosen.
    pub shape: Shape,
    /// As `-ngl` says it.
    pub gpu_layers: usize,
    /// As `-ncmoe` says it.
    pub cpu_moe: usize,
    /// Layers of the model.
    pub layers: usize,
    /// What stays on the CPU because it must.
    pub refused: Vec<Refused>,
    /// What was asked and cannot be had, in words.
    pub less: Option<String>,
}

/// The layer that a step counts as, as `-ngl` counts them: the head comes after the last one, and what all layers read goes
/// with the first; None for the embedding.
fn layer_of(step: &Step, layers: usize) -> Option<usize> {
    match step.role {
        Role::Head => Some(layers),
        Role::Embedding => None,
        _ => Some(step.layer.unwrap_or(0)),
    }
}

/// A model that is to be placed.
struct Placing<'a> {
    ask: &'a Ask,
    shape: Shape,
    /// Bytes that may be taken.
    budget: usize,
    layers: usize,
}

impl Placing<'_> {
    fn on_gpu(&self, gpu_layers: usize, layer: Option<usize>) -> bool {
        layer.is_some_and(|l| l + gpu_layers > self.layers)
    }

    fn plan(&self, tape: &Tape, needs: &Needs, (gpu_layers, cpu_moe): (usize, usize)) -> Plan {
        // A head that shares the embedding's matrix brings it along.
        let head = tape.steps.iter().rfind(|s| s.outs.first() == tape.logits.as_ref());
        let tied = |s: &Step| head.is_some_and(|h| s.weights.first().is_some_and(|w| h.weights.first() == Some(w)));
        let ruled = self.ask.rules.places(tape);
        let plan = Plan::new(tape, &|i, step| {
            if let Some(place) = ruled[i] {
                return if place.is_gpu() && needs.refuses[i].is_some() { Place::Cpu } else { place };
            }
            let layer = layer_of(step, self.layers);
            let there = match layer {
                None => gpu_layers > self.layers && (step.weights.is_empty() || tied(step)),
                Some(_) => self.on_gpu(gpu_layers, layer),
            };
            let experts = step.op.splits_by_expert() && layer.is_some_and(|l| l < cpu_moe);
            if there && !experts && needs.refuses[i].is_none() { Place::Gpu(0) } else { Place::Cpu }
        });
        Plan { starts: needs.starts.clone(), ..plan }
    }

    fn footprint(&self, tape: &Tape, needs: &Needs, at: (usize, usize)) -> Footprint {
        Footprint::of(tape, &self.plan(tape, needs, at), needs, self.shape)
    }

    fn fits(&self, tape: &Tape, needs: &Needs, at: (usize, usize)) -> bool {
        self.footprint(tape, needs, at).needed() <= self.budget
    }
}

/// Bytes that the ring has for the experts of a copy, about: long enough to reach the bus's full rate.
const RING: usize = 256 << 20;

/// Places a tape in `budget` bytes of GPU memory; None is a machine without a GPU.
///
/// # Errors
/// If a step's GPU body refuses shapes that it said it takes: an error of this program.
pub fn fit(tape: Tape, ask: &Ask, budget: Option<usize>, shape: Shape) -> Result<Fit> {
    let (Some(budget), Some(most)) = (budget, ask.batch_up_to) else { return place(tape, ask, budget, shape) };
    let mut fits = Vec::new();
    for n_batch in sizes(&shape, most) {
        let shape = Shape { n_batch, n_output_rows: shape.n_output_rows.min(n_batch), ..shape };
        fits.push(place(tape.clone(), ask, Some(budget), shape)?);
    }
    let cost = |f: &Fit| Candidate::of(&f.tape, &f.plan, &f.footprint, &f.shape, budget);
    let alone = place(tape.clone(), ask, None, shape)?;
    let without = Ask { cpu_moe: Some(usize::MAX), cache: CacheSize::Off, ..ask.clone() };
    let uncached = place(tape, &without, Some(usize::MAX), fits[0].shape)?;
    let list: Vec<Candidate> = fits.iter().map(cost).collect();
    let fit = fits.swap_remove(choose(&list, budget, cost(&uncached).decode, cost(&alone).prompt));
    if fit.plan.on_gpu() { Ok(fit) } else { Ok(Fit { shape, ..fit }) }
}

/// Places a tape for a batch of the shape's size.
fn place(tape: Tape, ask: &Ask, budget: Option<usize>, shape: Shape) -> Result<Fit> {
    let layers = tape.n_layers();
    let Some(budget) = budget else {
        let ruled = ask.rules.places(&tape);
        let plan = Plan::new(&tape, &|i, _| match ruled[i] {
            Some(Place::Twin) => Place::Twin,
            _ => Place::Cpu,
        });
        let (footprint, refused) = (Footprint::default(), Vec::new());
        return Ok(Fit { tape, plan, footprint, shape, gpu_layers: 0, cpu_moe: layers, layers, refused, less: None });
    };
    let needs = Needs::of(&tape, shape)?;
    let m = Placing { ask, shape, budget, layers };
    let most = ask.gpu_layers.map_or(layers + 1, |n| n.min(layers + 1));
    let asked_moe = ask.cpu_moe.map(|n| n.min(layers));

    // The most layers that fit, experts left out as far as that may be; then as many layers' experts as fit.
    let moe = asked_moe.unwrap_or(layers);
    let gpu_layers = last_that(most, |n| m.fits(&tape, &needs, (n, moe)));
    let less = match ask.gpu_layers {
        Some(n) if gpu_layers < most => {
            let need = m.footprint(&tape, &needs, (most, moe)).total();
            let mb = |b: usize| b as f64 / 1e6;
            Some(format!("-ngl {n} needs {:.0} MB of GPU memory and {:.0} MB may be used", mb(need), mb(budget)))
        }
        _ => None,
    };
    let all_fit = gpu_layers == most && m.fits(&tape, &needs, (most, asked_moe.unwrap_or(0)));
    let cpu_moe = match asked_moe {
        Some(n) => n,
        None if all_fit => 0,
        // Experts of layers whose rest is not there would only add copies.
        None if ask.cache == CacheSize::Off && gpu_layers > 0 => {
            let more = last_that(gpu_layers.min(layers), |n| m.fits(&tape, &needs, (gpu_layers, layers - n)));
            layers - more
        }
        None => layers,
    };
    let at = (gpu_layers, cpu_moe);
    let refused = refused(&tape, &needs, |i| m.on_gpu(gpu_layers, layer_of(&tape.steps[i], layers)));

    // The memory that is left becomes the expert cache.
    let plan = m.plan(&tape, &needs, at);
    let footprint = Footprint::of(&tape, &plan, &needs, shape);
    let ruled = ask.rules.places(&tape);
    let halved = |i: usize| {
        tape.steps[i].op.splits_by_expert()
            && plan.places[i] == Place::Cpu
            && needs.refuses[i].is_none()
            && ruled[i].is_none()
            && m.on_gpu(gpu_layers, layer_of(&tape.steps[i], layers))
    };
    let which: Vec<bool> = (0..tape.steps.len()).map(halved).collect();
    if ask.cache != CacheSize::Off && which.contains(&true) {
        let halves = split(&tape, &|i| which[i]);
        let needs = Needs::of(&halves, shape)?;
        let mut plan = m.plan(&halves, &needs, at);
        plan.cache = cache(&halves, &plan, &needs, &m);
        if plan.cache != Cache::default() {
            let footprint = Footprint::of(&halves, &plan, &needs, shape);
            return Ok(Fit { tape: halves, plan, footprint, shape, gpu_layers, cpu_moe, layers, refused, less });
        }
    }
    Ok(Fit { tape, plan, footprint, shape, gpu_layers, cpu_moe, layers, refused, less })
}

/// The largest of 0..=most of which `f` holds, which holds of all below it.
fn last_that(most: usize, f: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    while low < high {
        let mid = (low + high).div_ceil(2);
        if f(mid) { low = mid } else { high = mid - 1 }
    }
    low
}

/// How many experts of each layer find room in what a plan leaves.
fn cache(tape: &Tape, plan: &Plan, needs: &Needs, m: &Placing<'_>) -> Cache {
    let left = m.budget.saturating_sub(Footprint::of(tape, plan, needs, m.shape).needed());
    let halves: Vec<&Step> = tape.steps.iter().filter(|s| s.share == ExpertShare::OnGpu).collect();
    let ring_bytes = |n: usize| 2 * halves.iter().map(|s| ring_part_bytes(tape, s, n)).max().unwrap_or(0);
    let experts = halves.iter().map(|s| experts_of(tape, s)).max().unwrap_or(0);
    let ring = last_that(experts, |n| ring_bytes(n) <= left && (n <= 1 || ring_bytes(n) <= RING.min(left / 4)));
    let left = left - ring_bytes(ring);
    let may = match m.ask.cache {
        CacheSize::Bytes(n) => n.min(left),
        _ => left,
    };
    let room =
        |slots| Footprint::of(tape, &Plan { cache: Cache { slots, ring: 0 }, ..plan.clone() }, needs, m.shape).cache;
    Cache { slots: last_that(experts, |n| room(n) <= may), ring }
}

fn refused(tape: &Tape, needs: &Needs, asked: impl Fn(usize) -> bool) -> Vec<Refused> {
    let mut list: Vec<Refused> = Vec::new();
    for (i, why) in needs.refuses.iter().enumerate().filter(|(i, _)| asked(*i)) {
        let Some(why) = why else { continue };
        match list.iter_mut().find(|r| r.why == *why) {
            Some(r) => r.steps += 1,
            None => list.push(Refused { why: why.clone(), first: tape.steps[i].label.clone(), steps: 1 }),
        }
    }
    list
}

impl Fit {
    /// The placement in a line, with the memory that it takes.
    pub fn describe(&self) -> String {
        format!("{}; {:.2} GB of GPU memory", self.layers_in_words(), self.footprint.total() as f64 / 1e9)
    }

    /// Which layers and experts the GPU has, in words.
    pub fn layers_in_words(&self) -> String {
        let head = if self.gpu_layers > self.layers { " and the head" } else { "" };
        let mut text = match self.gpu_layers {
            1 => "the head".into(),
            n => format!("{} of {} layers{head}", n.saturating_sub(1).min(self.layers), self.layers),
        };
        if self.cpu_moe > 0 && self.gpu_layers > 1 {
            let which = if self.cpu_moe == self.layers { "all".into() } else { format!("the first {}", self.cpu_moe) };
            text += &format!(", experts of {which} layers on the CPU");
            let halves = || self.tape.steps.iter().filter(|s| s.share == ExpertShare::OnGpu);
            if let Some(step) = halves().next() {
                let n = experts_of(&self.tape, step);
                text += &format!(", {} of {n} in each cached on the GPU", self.plan.cache.slots);
            }
        }
        text
    }

    /// The flags that ask for exactly this placement.
    pub fn flags(&self, ask: &Ask) -> String {
        let rules = &ask.rules;
        let mut text = format!("-ngl {}", self.gpu_layers);
        if self.gpu_layers > 0 && self.cpu_moe > 0 {
            text += &if self.cpu_moe == self.layers { " -cmoe".into() } else { format!(" -ncmoe {}", self.cpu_moe) };
            match self.footprint {
                Footprint { cache: 0, ring: 0, .. } => text += " --expert-cache off",
                // 0M is no room for experts that stay, and a ring for those that stream.
                Footprint { cache, .. } => text += &format!(" --expert-cache {}M", cache.div_ceil(1_000_000)),
            }
        }
        rules.texts().for_each(|rule| text += &format!(" -ot '{rule}'"));
        text
    }
}
