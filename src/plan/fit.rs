//! The placement that the command line asks for, or the best one that fits.
//!
//! Nothing need be asked. What a GPU has room for is taken in the order of what it gains: the output head and the layers
//! without their experts (read whole for every token, and attention is what a CPU is worst at), then the experts that are
//! chosen most, in a cache; or everything, where everything fits. Layers go from the last to the first, as in llama.cpp.

use anyhow::Result;

use super::batch::{Candidate, choose, sizes};
use super::{
    Cache, Footprint, MAX_GPUS, Needs, Place, Plan, Rules, Shape, experts_of, ring_part_bytes, share, split,
    weight_bytes,
};
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
    /// `-ts`: the share of the layers that each GPU has; by their memory if empty.
    pub split: Vec<f64>,
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
    /// Bytes on all GPUs together.
    pub footprint: Footprint,
    /// Bytes on each GPU, by its number; empty where everything is on the CPU.
    pub each: Vec<Footprint>,
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
/// with the first; None for the embedding. A draft head goes with the last layer, whichever block it is.
fn layer_of(step: &Step, layers: usize) -> Option<usize> {
    match step.role {
        Role::Head => Some(layers),
        Role::Embedding => None,
        _ if step.part > 0 => Some(layers.saturating_sub(1)),
        _ => Some(step.layer.unwrap_or(0)),
    }
}

/// A model that is to be placed.
struct Placing<'a> {
    ask: &'a Ask,
    shape: Shape,
    /// Bytes that may be taken of each GPU.
    budgets: Vec<usize>,
    layers: usize,
    /// Bytes of each layer, and of the head, as far as they may go to a GPU.
    layer_bytes: Vec<usize>,
}

impl Placing<'_> {
    fn new<'a>(tape: &Tape, ask: &'a Ask, budgets: &[usize], shape: Shape) -> Placing<'a> {
        let layers = tape.n_layers();
        let on_cpu = |l: usize| ask.cache == CacheSize::Off && ask.cpu_moe.is_some_and(|n| l < n);
        let mut layer_bytes = vec![0; layers + 1];
        for step in &tape.steps {
            let Some(l) = layer_of(step, layers).filter(|l| !(step.op.splits_by_expert() && on_cpu(*l))) else {
                continue;
            };
            let states = step.states.iter().map(|s| tape.states[s.0 as usize].bytes(shape.n_ctx, shape.n_batch));
            let weights = step.weights.iter().map(|w| weight_bytes(tape, w.0 as usize));
            layer_bytes[l] += weights.sum::<usize>() + shape.n_seq * states.sum::<usize>();
        }
        Placing { ask, shape, budgets: budgets.to_vec(), layers, layer_bytes }
    }

    fn on_gpu(&self, gpu_layers: usize, layer: Option<usize>) -> bool {
        layer.is_some_and(|l| l + gpu_layers > self.layers)
    }

    /// The first layer on a GPU, and the GPU of each from there on.
    fn shares(&self, gpu_layers: usize) -> (usize, Vec<u8>) {
        let first = (self.layers + 1).saturating_sub(gpu_layers);
        let bytes = &self.layer_bytes[first..];
        // Shares of GPUs that are not there count for nothing.
        let shares = &self.ask.split[..self.ask.split.len().min(self.budgets.len())];
        let gpus = match shares.iter().any(|s| *s > 0.0) {
            true => share::by_shares(bytes.len(), shares),
            false => share::by_memory(bytes, &self.budgets),
        };
        (first, gpus)
    }

    fn plan(&self, tape: &Tape, needs: &Needs, (gpu_layers, cpu_moe): (usize, usize)) -> Plan {
        // A head that shares the embedding's matrix brings it along.
        let head = tape.steps.iter().rfind(|s| s.outs.first() == tape.logits.as_ref());
        let tied = |s: &Step| head.is_some_and(|h| s.weights.first().is_some_and(|w| h.weights.first() == Some(w)));
        let ruled = self.ask.rules.places(tape);
        let (first, gpus) = self.shares(gpu_layers);
        // What no layer has goes with the first that is there; the embedding, where it shares its matrix, with the head.
        let gpu_of = |layer: Option<usize>| {
            let at = layer.map_or(gpus.len() - 1, |l| l.saturating_sub(first).min(gpus.len() - 1));
            Place::Gpu(gpus[at])
        };
        let plan = Plan::new(tape, &|i, step| {
            if let Some(place) = ruled[i] {
                let there = matches!(place, Place::Gpu(n) if (n as usize) < self.budgets.len());
                return if place.is_gpu() && (needs.refuses[i].is_some() || !there) { Place::Cpu } else { place };
            }
            if step.share == ExpertShare::OnGpu {
                return gpu_of(layer_of(step, self.layers));
            }
            let layer = layer_of(step, self.layers);
            let there = match layer {
                None => gpu_layers > self.layers && (step.weights.is_empty() || tied(step)),
                Some(_) => self.on_gpu(gpu_layers, layer),
            };
            let experts = step.op.splits_by_expert() && layer.is_some_and(|l| l < cpu_moe);
            if there && !experts && needs.refuses[i].is_none() { gpu_of(layer) } else { Place::Cpu }
        });
        Plan { starts: needs.starts.clone(), ..plan }
    }

    /// What a plan takes on each GPU.
    fn footprints(&self, tape: &Tape, plan: &Plan, needs: &Needs) -> Vec<Footprint> {
        let of = |n: usize| Footprint::of(tape, plan, needs, self.shape, Place::Gpu(n as u8));
        (0..self.budgets.len()).map(of).collect()
    }

    fn fits(&self, tape: &Tape, needs: &Needs, at: (usize, usize)) -> bool {
        let plan = self.plan(tape, needs, at);
        let each = self.footprints(tape, &plan, needs);
        // A GPU that has no step has no more than the lists of a batch.
        let fits =
            |n: usize, f: &Footprint| f.needed() <= self.budgets[n] || !plan.places.contains(&Place::Gpu(n as u8));
        each.iter().enumerate().all(|(n, f)| fits(n, f))
    }
}

/// The sum of what is taken on each GPU.
fn total(each: &[Footprint]) -> Footprint {
    each.iter().fold(Footprint::default(), |mut sum, f| {
        sum.add(f);
        sum
    })
}

/// Bytes that the ring has for the experts of a copy, about: long enough to reach the bus's full rate.
const RING: usize = 256 << 20;

/// Places a tape in so many bytes of each GPU's memory; none is a machine without a GPU.
///
/// # Errors
/// If a step's GPU body refuses shapes that it said it takes: an error of this program.
pub fn fit(tape: Tape, ask: &Ask, budgets: &[usize], shape: Shape) -> Result<Fit> {
    let budgets = &budgets[..budgets.len().min(MAX_GPUS)];
    let (false, Some(most)) = (budgets.is_empty(), ask.batch_up_to) else { return place(tape, ask, budgets, shape) };
    let budget = budgets.iter().fold(0usize, |sum, b| sum.saturating_add(*b));
    let mut fits = Vec::new();
    for n_batch in sizes(&shape, most) {
        let shape = Shape { n_batch, n_output_rows: shape.n_output_rows.min(n_batch), ..shape };
        fits.push(place(tape.clone(), ask, budgets, shape)?);
    }
    let cost = |f: &Fit| Candidate::of(&f.tape, &f.plan, &f.footprint, &f.shape, budget);
    let alone = place(tape.clone(), ask, &[], shape)?;
    let without = Ask { cpu_moe: Some(usize::MAX), cache: CacheSize::Off, ..ask.clone() };
    let unlimited = vec![usize::MAX; budgets.len()];
    let uncached = place(tape, &without, &unlimited, fits[0].shape)?;
    let list: Vec<Candidate> = fits.iter().map(cost).collect();
    let fit = fits.swap_remove(choose(&list, budget, cost(&uncached).decode, cost(&alone).prompt));
    if fit.plan.on_gpu() { Ok(fit) } else { Ok(Fit { shape, ..fit }) }
}

/// Places a tape for a batch of the shape's size.
///
/// Of several GPUs one alone is taken where everything fits there, since nothing crosses then; and where a small one holds
/// fewer layers than what a GPU needs for itself takes away, it has none.
fn place(tape: Tape, ask: &Ask, budgets: &[usize], shape: Shape) -> Result<Fit> {
    if budgets.is_empty() {
        return Ok(without_gpus(tape, ask, shape));
    }
    let needs = Needs::of(&tape, shape)?;
    if budgets.len() == 1 || !ask.split.is_empty() || ask.rules.gpus().next().is_some() {
        return place_on(&tape, &needs, &Placing::new(&tape, ask, budgets, shape)).map(|(fit, _)| fit);
    }
    let mut order: Vec<usize> = (0..budgets.len()).collect();
    order.sort_by_key(|n| std::cmp::Reverse(budgets[*n]));
    let among = |n: usize| {
        let mut some = vec![0; budgets.len()];
        order[..n].iter().for_each(|g| some[*g] = budgets[*g]);
        place_on(&tape, &needs, &Placing::new(&tape, ask, &some, shape))
    };
    let (alone, all_fit) = among(1)?;
    if all_fit {
        return Ok(alone);
    }
    let mut best = among(budgets.len())?.0;
    for fewer in (2..budgets.len()).rev().map(|n| among(n).map(|f| f.0)).chain([Ok(alone)]) {
        let fewer = fewer?;
        if fewer.gpu_layers > best.gpu_layers {
            best = fewer;
        }
    }
    Ok(best)
}

/// Everything on the CPU, as far as rules do not name its second memory.
fn without_gpus(tape: Tape, ask: &Ask, shape: Shape) -> Fit {
    let ruled = ask.rules.places(&tape);
    let plan = Plan::new(&tape, &|i, _| match ruled[i] {
        Some(Place::Twin) => Place::Twin,
        _ => Place::Cpu,
    });
    let layers = tape.n_layers();
    let (footprint, each, refused) = (Footprint::default(), Vec::new(), Vec::new());
    Fit { tape, plan, footprint, each, shape, gpu_layers: 0, cpu_moe: layers, layers, refused, less: None }
}

/// Places a tape; returns with it whether all that was asked for is on the GPUs.
fn place_on(tape: &Tape, needs: &Needs, m: &Placing<'_>) -> Result<(Fit, bool)> {
    let (ask, layers, shape) = (m.ask, m.layers, m.shape);
    let most = ask.gpu_layers.map_or(layers + 1, |n| n.min(layers + 1));
    let asked_moe = ask.cpu_moe.map(|n| n.min(layers));

    // The most layers that fit, experts left out as far as that may be; then as many layers' experts as fit.
    let moe = asked_moe.unwrap_or(layers);
    let gpu_layers = last_that(most, |n| m.fits(tape, needs, (n, moe)));
    let less = match ask.gpu_layers {
        Some(n) if gpu_layers < most => {
            let need = total(&m.footprints(tape, &m.plan(tape, needs, (most, moe)), needs)).total();
            let may = m.budgets.iter().fold(0usize, |sum, b| sum.saturating_add(*b));
            let mb = |b: usize| b as f64 / 1e6;
            Some(format!("-ngl {n} needs {:.0} MB of GPU memory and {:.0} MB may be used", mb(need), mb(may)))
        }
        _ => None,
    };
    let all_fit = gpu_layers == most && m.fits(tape, needs, (most, asked_moe.unwrap_or(0)));
    let cpu_moe = match asked_moe {
        Some(n) => n,
        None if all_fit => 0,
        // Experts of layers whose rest is not there would only add copies.
        None if ask.cache == CacheSize::Off && gpu_layers > 0 => {
            let more = last_that(gpu_layers.min(layers), |n| m.fits(tape, needs, (gpu_layers, layers - n)));
            layers - more
        }
        None => layers,
    };
    let at = (gpu_layers, cpu_moe);
    let refused = refused(tape, needs, |i| m.on_gpu(gpu_layers, layer_of(&tape.steps[i], layers)));
    let plan = m.plan(tape, needs, at);
    let cached = with_cache(tape, needs, m, at, &plan)?;
    let is_cached = cached.is_some();
    let (tape, plan, each) = cached.unwrap_or_else(|| {
        let each = m.footprints(tape, &plan, needs);
        (tape.clone(), plan, each)
    });
    let footprint = total(&each);
    let fit = Fit { tape, plan, footprint, each, shape, gpu_layers, cpu_moe, layers, refused, less };
    Ok((fit, all_fit && !is_cached))
}

/// The memory that a plan leaves becomes the expert caches: the tape with its expert steps in halves, its plan, and what it
/// takes on each GPU. None where nothing is left, no experts are on the CPU, or no cache was asked for.
fn with_cache(
    tape: &Tape,
    needs: &Needs,
    m: &Placing<'_>,
    at: (usize, usize),
    plan: &Plan,
) -> Result<Option<(Tape, Plan, Vec<Footprint>)>> {
    let ruled = m.ask.rules.places(tape);
    let halved = |i: usize| {
        tape.steps[i].op.splits_by_expert()
            && plan.places[i] == Place::Cpu
            && needs.refuses[i].is_none()
            && ruled[i].is_none()
            && m.on_gpu(at.0, layer_of(&tape.steps[i], m.layers))
    };
    let which: Vec<bool> = (0..tape.steps.len()).map(halved).collect();
    if m.ask.cache == CacheSize::Off || !which.contains(&true) {
        return Ok(None);
    }
    let halves = split(tape, &|i| which[i]);
    let needs = Needs::of(&halves, m.shape)?;
    let mut plan = m.plan(&halves, &needs, at);
    plan.caches = caches(&halves, &plan, &needs, m);
    if plan.caches == [Cache::default(); MAX_GPUS] {
        return Ok(None);
    }
    let each = m.footprints(&halves, &plan, &needs);
    Ok(Some((halves, plan, each)))
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

/// How many experts of each layer find room in what a plan leaves of each GPU.
fn caches(tape: &Tape, plan: &Plan, needs: &Needs, m: &Placing<'_>) -> [Cache; MAX_GPUS] {
    let each = m.footprints(tape, plan, needs);
    let left: Vec<usize> = each.iter().zip(&m.budgets).map(|(f, budget)| budget.saturating_sub(f.needed())).collect();
    // A size that was asked for is shared as the memory is.
    let sum = left.iter().map(|n| *n as f64).sum::<f64>().max(1.0);
    let may = |left: usize, of: usize| match m.ask.cache {
        CacheSize::Bytes(n) => left.min((n as f64 * (of as f64 / sum)) as usize),
        _ => left,
    };
    let mut caches = [Cache::default(); MAX_GPUS];
    for (n, left) in left.iter().enumerate() {
        let place = Place::Gpu(n as u8);
        caches[n] = cache(tape, plan, needs, m.shape, place, *left, &|rest| may(rest, *left));
    }
    caches
}

/// Of one GPU, of which `left` bytes are free; `may` says how many of those that the ring leaves its slots may take.
fn cache(
    tape: &Tape,
    plan: &Plan,
    needs: &Needs,
    shape: Shape,
    place: Place,
    left: usize,
    may: &dyn Fn(usize) -> usize,
) -> Cache {
    let here = tape.steps.iter().zip(&plan.places).filter(|(s, p)| s.share == ExpertShare::OnGpu && **p == place);
    let halves: Vec<&Step> = here.map(|(s, _)| s).collect();
    let ring_bytes = |n: usize| 2 * halves.iter().map(|s| ring_part_bytes(tape, s, n)).max().unwrap_or(0);
    let experts = halves.iter().map(|s| experts_of(tape, s)).max().unwrap_or(0);
    let ring = last_that(experts, |n| ring_bytes(n) <= left && (n <= 1 || ring_bytes(n) <= RING.min(left / 4)));
    let may = may(left - ring_bytes(ring));
    let room = |slots| {
        let caches = [Cache { slots, ring: 0 }; MAX_GPUS];
        Footprint::of(tape, &Plan { caches, ..plan.clone() }, needs, shape, place).cache
    };
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
        let gb = |f: &Footprint| f.total() as f64 / 1e9;
        let used = || {
            Place::ALL.iter().filter(|p| self.plan.places.contains(p)).filter_map(|p| match p {
                Place::Gpu(n) => Some(format!("{:.2} GB on {}", gb(&self.each[*n as usize]), p.name())),
                _ => None,
            })
        };
        match self.plan.gpus().count() {
            0 | 1 => format!("{}; {:.2} GB of GPU memory", self.layers_in_words(), gb(&self.footprint)),
            _ => format!("{}; {}", self.layers_in_words(), used().collect::<Vec<_>>().join(", ")),
        }
    }

    /// The number of layers that each GPU has, the head counted as one; as `-ts` says it.
    pub fn layers_each(&self) -> Vec<usize> {
        let mut list = vec![0; self.each.len()];
        for layer in (self.layers + 1).saturating_sub(self.gpu_layers)..=self.layers {
            let steps = self.tape.steps.iter().zip(&self.plan.places);
            let mut here = steps.filter(|(s, p)| layer_of(s, self.layers) == Some(layer) && p.is_gpu());
            if let Some((_, Place::Gpu(n))) = here.next_back() {
                list[*n as usize] += 1;
            }
        }
        list
    }

    /// Experts of each layer that are cached, in words: one number, or the least and the most where GPUs differ.
    pub fn slots_in_words(&self) -> String {
        let slots = self.plan.gpus().map(|p| self.plan.cache(p)).filter(|c| *c != Cache::default()).map(|c| c.slots);
        let (least, most) = slots.fold((usize::MAX, 0), |(least, most), n| (least.min(n), most.max(n)));
        if least >= most { most.to_string() } else { format!("{least} to {most}") }
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
                text += &format!(", {} of {n} in each cached on the GPU", self.slots_in_words());
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
        if self.plan.gpus().count() > 1 || !ask.split.is_empty() {
            let counts: Vec<String> = self.layers_each().iter().map(usize::to_string).collect();
            text += &format!(" -ts {}", counts.join(","));
        }
        rules.texts().for_each(|rule| text += &format!(" -ot '{rule}'"));
        text
    }
}
