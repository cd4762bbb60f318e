//! The experts of split layers that a GPU holds at a time: a cache of the most used ones, and a ring for prompts.
//!
//! Of every layer whose experts run at both places, the most used experts are in slots. While a prompt is read, others
//! stream through a ring of two parts, one of which is filled while the GPU computes with the other. Which experts are
//! in slots and which stream during a walk is settled when the walk begins; the CPU computes the others.
//!
//! **Slots.** A score per expert counts how often it was chosen, old counts fading with every token; after a walk the
//! experts whose score is above that of the worst one in a slot are brought over, best first and some MB at a time, and
//! are used from the walk after their arrival.
//!
//! **Ring.** Before a batch, the number of experts of a layer that stream is chosen so that the slower side finishes as early
//! as possible, by the rates measured so far:
//!
//! ```text
//! GPU side   bytes of the experts / rate of the ring, or their products * cost of a product there, the larger
//! CPU side   bytes of its experts / rate of reading them, or their products * cost of a product here, the larger
//! ```
//! None, some or all of them stream: one formula has all three cases. The hottest experts stream, since they give the GPU
//! the most work for their bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::drive::ReadBuffer;
use super::pinned::PinnedExperts;
use super::residency::ExpertSource;
use super::scores::{ExpertScores, HALF_LIFE};
use crate::cpu::Pool;
use crate::cuda::{Arena, Event, Gpu, OutOfMemory, Pinned, Ptr};
use crate::gguf::Gguf;
use crate::plan::cost::{CPU_PRODUCTS, HardwareRates};
use crate::plan::{self, ALIGN, Place, Plan};
use crate::tape::{Batch, ExpertShare, RowSet, Tape};

/// Experts that may take another's slot for each token that was read: a few MB more than what a token reads from memory
/// anyhow. Empty slots are filled whatever this is.
const PER_TOKEN: usize = 4;
/// Bytes that may be brought over at once: they arrive together, a few ms later.
const AT_ONCE: usize = 64 << 20;
/// Bytes of slots that are given back at least where memory runs out.
const GIVE_BACK: usize = 64 << 20;
/// Layers that are looked at after a single token: one in this many.
const IN_TURN: usize = 4;
/// Weights in a byte, where nothing was measured yet: of 4-bit formats.
const WEIGHTS: f64 = 2.0;
/// An expert takes another's slot only if its score is this many times as high: otherwise two would take turns.
const BETTER: f32 = 1.25;

/// Statistics of the expert cache and the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CacheStats {
    /// Choices of the router in walks of one token, or of some that verify drafts.
    pub chosen: usize,
    /// Those of `chosen` whose expert was in a slot.
    pub hits: usize,
    /// Experts brought into slots.
    pub uploads: usize,
    /// Bytes of the experts brought into slots.
    pub upload_bytes: usize,
    /// Batches that went in halves, so that both sides worked at the same time.
    pub halved: usize,
    /// Experts that were streamed through the ring.
    pub passed: usize,
    /// Bytes of the experts that were streamed through the ring.
    pub passed_bytes: usize,
}

impl std::ops::Add for CacheStats {
    type Output = CacheStats;

    fn add(self, b: CacheStats) -> CacheStats {
        CacheStats {
            chosen: self.chosen + b.chosen,
            hits: self.hits + b.hits,
            uploads: self.uploads + b.uploads,
            upload_bytes: self.upload_bytes + b.upload_bytes,
            halved: self.halved + b.halved,
            passed: self.passed + b.passed,
            passed_bytes: self.passed_bytes + b.passed_bytes,
        }
    }
}

/// A stack of matrices of one layer.
#[derive(Debug)]
struct Stack {
    /// Its number among the tape's weights, and among the file's tensors.
    weight: usize,
    tensor: usize,
    /// Bytes of an expert's matrix.
    bytes: usize,
    /// The slots.
    at: Ptr,
}

impl Stack {
    /// An expert's matrix: that of a slot of the CPU's, if it is in one, or in the file's memory.
    fn matrix<'a>(&self, gguf: &'a Gguf, expert: u32, held: Option<&'a ReadBuffer>) -> &'a [u8] {
        let in_file = || &gguf.data(&gguf.tensors[self.tensor])[expert as usize * self.bytes..][..self.bytes];
        held.map_or_else(in_file, ReadBuffer::matrix)
    }
}

/// A layer whose experts run at both places.
#[derive(Debug)]
struct CachedLayer {
    /// The step of the GPU's share.
    step: usize,
    /// The part of the tape that the step belongs to.
    part: usize,
    stacks: Vec<Stack>,
    /// Experts per token.
    k: usize,
    /// Which rows of a batch it sees.
    rows: RowSet,
    /// The slot of each expert, -1 for none.
    slot_of: Vec<i32>,
    /// The expert in each slot; those on their way are not.
    holds: Vec<Option<u32>>,
    scores: ExpertScores,
    /// At least 0 for those that the GPU does in the current walk.
    on_gpu: Vec<i32>,
    /// Experts that stream through the ring in the current walk, pass after pass.
    passes: Vec<Vec<u32>>,
    /// The matrices of those that are in slots of the CPU's, until they are in the ring.
    held: HashMap<u32, Vec<Arc<ReadBuffer>>>,
}

impl CachedLayer {
    /// The step of the CPU's share.
    fn cpu_step(&self) -> usize {
        self.step - 1
    }

    fn expert_bytes(&self) -> usize {
        self.stacks.iter().map(|s| s.bytes).sum()
    }

    /// Where each stack begins in a part of the ring.
    fn in_ring(&self, per_pass: usize) -> Vec<usize> {
        let mut at = (self.slot_of.len() * 4).next_multiple_of(ALIGN);
        let mut begin = |s: &Stack| {
            let here = at;
            at += (per_pass * s.bytes).next_multiple_of(ALIGN);
            here
        };
        self.stacks.iter().map(&mut begin).collect()
    }
}

/// A cost as it was measured: the exponential moving average of its values, a quarter for the newest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ema(Option<f64>);

impl Ema {
    /// The average; None before the first value.
    pub(super) fn get(self) -> Option<f64> {
        self.0
    }

    pub(super) fn add(&mut self, v: f64) {
        self.0 = Some(self.0.map_or(v, |old| old + (v - old) * 0.25));
    }
}

/// What is known of the speed of both sides.
#[derive(Debug, Default)]
struct Rates {
    /// Seconds for a byte through the ring.
    ring: Ema,
    /// Seconds for a byte of an expert and a product with it, on the GPU.
    gpu: Ema,
    /// Seconds for a byte of an expert that few tokens share, on the CPU.
    read: Ema,
    /// Seconds for a byte of an expert and a product with it, where many share it, on the CPU.
    cpu: Ema,
}

/// One of the two parts of the ring.
#[derive(Debug)]
struct RingPart {
    device: Ptr,
    staging: Pinned,
    /// Passed before and after the copy that fills it; the staging memory has been read then.
    going: Event,
    full: Event,
    /// Passed before and after the products with it.
    begun: Event,
    used: Event,
    /// Bytes that it was last filled with, and the seconds that it took to bring them into the staging memory.
    copied: (usize, f64),
    /// Bytes times products of its last use, until that was timed.
    work: f64,
}

/// Experts on their way into slots.
#[derive(Debug)]
struct InFlight {
    staging: Pinned,
    arrived: Event,
    /// (layer, expert, slot)
    list: Vec<(usize, u32, usize)>,
}

/// The experts of a model that a GPU holds for a while.
#[derive(Debug, Default)]
pub(super) struct ExpertCache {
    layers: Vec<CachedLayer>,
    /// The layer of a step, by the numbers of both shares' steps.
    of_step: HashMap<usize, usize>,
    /// The slots' memory, apart from all else: where memory runs out, some of it is given back.
    memory: Option<Arena>,
    /// Slots of each layer.
    slots: usize,
    in_flight: Option<InFlight>,
    ring: Option<[RingPart; 2]>,
    /// Experts that a part of the ring holds.
    per_pass: usize,
    /// Passes of the current walk that are not yet in the ring, last first: (layer, pass).
    ahead: Vec<(usize, usize)>,
    /// The passes that are in the ring, oldest first, with their part of it.
    staged: Vec<(usize, usize, usize)>,
    /// The part that is filled next.
    turn: usize,
    rates: Rates,
    /// Whether the current walk decodes: one row, or some that verify drafts.
    single: bool,
    /// How often experts were looked at for what should be brought.
    looked: usize,
    /// Experts that may still take another's slot.
    credit: usize,
    /// Let timing decide nothing.
    pub deterministic: bool,
    /// What was done so far.
    pub stats: CacheStats,
    /// Of the model's own memory, what the device copies from; nothing is being copied when it is given back (`Device`'s drop).
    pub pinned: PinnedExperts,
}

impl ExpertCache {
    /// The cache of the GPU that is the plan's `place`.
    pub(super) fn open(gpu: &Gpu, memory: &Arena, tape: &Tape, (plan, place): (&Plan, Place)) -> Result<ExpertCache> {
        let (mut layers, mut of_step) = (Vec::new(), HashMap::new());
        let plan::Cache { slots, ring: per_pass } = plan.cache(place);
        for (i, step) in tape.steps.iter().enumerate() {
            match step.share {
                ExpertShare::All => continue,
                ExpertShare::OnCpu if plan.places[i + 1] != place => continue, // another GPU's
                ExpertShare::OnGpu if plan.places[i] != place => continue,
                ExpertShare::OnCpu => {
                    of_step.insert(i, layers.len()); // the GPU's share is the next step
                    continue;
                }
                ExpertShare::OnGpu => of_step.insert(i, layers.len()),
            };
            let mut stacks = Vec::new();
            for (weight, bytes) in plan::stacks(tape, step) {
                stacks.push(Stack { weight, tensor: tape.weights[weight].tensor, bytes, at: Ptr::default() });
            }
            let n = plan::experts_of(tape, step);
            layers.push(CachedLayer {
                step: i,
                part: step.part,
                stacks,
                k: tape.width(step.ins[1]),
                rows: tape.slots[step.outs[0].0 as usize].rows,
                slot_of: vec![-1; n],
                holds: Vec::new(),
                scores: ExpertScores::new(n),
                on_gpu: vec![-1; n],
                passes: Vec::new(),
                held: HashMap::new(),
            });
        }
        let part_bytes = layers.iter().map(|l| plan::ring_part_bytes(tape, &tape.steps[l.step], per_pass)).max();
        let part = |bytes: usize| -> Result<RingPart> {
            Ok(RingPart {
                device: memory.take(bytes),
                staging: gpu.pinned(bytes, "streamed experts")?,
                going: Event::timed()?,
                full: Event::timed()?,
                begun: Event::timed()?,
                used: Event::timed()?,
                copied: (0, 0.0),
                work: 0.0,
            })
        };
        let ring = match part_bytes.filter(|b| *b > 0) {
            Some(bytes) => Some([part(bytes)?, part(bytes)?]),
            None => None,
        };
        let most = layers.iter().map(CachedLayer::expert_bytes).max().unwrap_or(0);
        let in_flight = match slots > 0 && !layers.is_empty() {
            true => Some(InFlight {
                staging: gpu.pinned(AT_ONCE.max(most), "experts on their way")?,
                arrived: Event::new()?,
                list: Vec::new(),
            }),
            false => None,
        };
        let mut cache = ExpertCache {
            layers,
            of_step,
            memory: None,
            slots: 0,
            in_flight,
            ring,
            per_pass,
            ahead: Vec::new(),
            staged: Vec::new(),
            turn: 0,
            rates: Rates::default(),
            single: false,
            looked: 0,
            credit: 0,
            deterministic: false,
            stats: CacheStats::default(),
            pinned: PinnedExperts::default(),
        };
        cache.allocate(gpu, slots)?;
        Ok(cache)
    }

    /// Gives every layer `slots` empty slots, or as many as the device has memory for, which a
    /// notice says.
    fn allocate(&mut self, gpu: &Gpu, slots: usize) -> Result<()> {
        self.memory = None;
        let bytes_of = |layers: &[CachedLayer], n: usize| -> usize {
            layers.iter().flat_map(|l| &l.stacks).map(|s| (n * s.bytes).next_multiple_of(ALIGN)).sum()
        };
        let (mut n, mut lack) = (if self.layers.is_empty() { 0 } else { slots }, None);
        while n > 0 {
            match Arena::new(gpu, bytes_of(&self.layers, n), "cached experts") {
                Ok(memory) => {
                    self.memory = Some(memory);
                    break;
                }
                Err(e) => lack = Some(e.downcast::<OutOfMemory>()?),
            }
            n = n * 7 / 8;
        }
        if let Some(lack) = lack {
            tracing::warn!("not enough memory for {lack}; {n} of {slots} experts of each layer are cached");
        }
        for layer in &mut self.layers {
            layer.holds = vec![None; n];
            layer.slot_of.fill(-1);
            layer
                .stacks
                .iter_mut()
                .for_each(|s| s.at = self.memory.as_ref().map_or_else(Ptr::default, |m| m.take(n * s.bytes)));
        }
        self.slots = n;
        Ok(())
    }

    /// Gives some slots' memory back to the driver, an eighth or 64 MB. The others are empty
    /// afterwards, and fill again with what is used most. Nothing that reads or fills them may be
    /// under way, or be recorded. Returns whether there were any.
    pub(super) fn give_back(&mut self, gpu: &Gpu) -> Result<bool> {
        if self.slots == 0 {
            return Ok(false);
        }
        let bytes: usize = self.layers.iter().map(CachedLayer::expert_bytes).sum();
        let less = (self.slots / 8).max(GIVE_BACK / bytes.max(1)).clamp(1, self.slots);
        tracing::warn!(
            "GPU memory has run out: the expert cache gives back {less} of its {} slots in each layer",
            self.slots
        );
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.list.clear();
        }
        self.allocate(gpu, self.slots - less)?;
        Ok(true)
    }

    /// Slots of each layer.
    pub(super) fn slots_each(&self) -> usize {
        self.slots
    }

    /// Pins their memory, from now on. Nothing else may be copied from the model's own memory after this: a copy must not
    /// begin in pinned memory and end in other.
    pub(super) fn pin(&mut self, gpu: &Arc<Gpu>, gguf: &Gguf) {
        self.pinned = PinnedExperts::start(gpu, gguf, self.layers.iter().flat_map(|l| &l.stacks).map(|s| s.tensor));
    }

    /// Whether there are any.
    pub(super) fn some(&self) -> bool {
        !self.layers.is_empty()
    }

    /// The slot of each expert of a step's layer, -1 for none.
    pub(super) fn slots(&self, step: usize) -> &[i32] {
        &self.layers[self.of_step[&step]].slot_of
    }

    /// At least 0 for each expert of the step's layer that the GPU does in this walk.
    pub(super) fn on_gpu(&self, step: usize) -> &[i32] {
        &self.layers[self.of_step[&step]].on_gpu
    }

    /// The slots of a weight of a step's layer.
    pub(super) fn at(&self, step: usize, weight: usize) -> Ptr {
        let stacks = &self.layers[self.of_step[&step]].stacks;
        stacks.iter().find(|s| s.weight == weight).expect("a stack of this layer").at
    }

    /// Whether slots hold any expert of the step's layer.
    pub(super) fn any(&self, step: usize) -> bool {
        self.layers[self.of_step[&step]].holds.iter().any(Option::is_some)
    }

    /// Whether the step's layer has slots at all.
    pub(super) fn room(&self, step: usize) -> bool {
        !self.layers[self.of_step[&step]].holds.is_empty()
    }

    /// Passes through the ring for a step in this walk.
    pub(super) fn passes(&self, step: usize) -> usize {
        self.layers[self.of_step[&step]].passes.len()
    }

    /// The step of the GPU's share, by the number of the CPU's.
    pub(super) fn gpu_step(&self, step: usize) -> usize {
        self.layers[self.of_step[&step]].step
    }

    /// Before a walk: takes the experts that have arrived into use, and decides which ones stream for the batch, if any
    /// may.
    pub(super) fn begin(&mut self, batch: &Batch, streams: bool, source: ExpertSource<'_>) -> Result<()> {
        if let Some(in_flight) = &mut self.in_flight
            && !in_flight.list.is_empty()
        {
            if self.deterministic {
                in_flight.arrived.wait()?;
            }
            if in_flight.arrived.is_done()? {
                for (layer, expert, slot) in in_flight.list.drain(..) {
                    let layer = &mut self.layers[layer];
                    layer.slot_of[expert as usize] = slot as i32;
                    layer.holds[slot] = Some(expert);
                }
            }
        }
        self.single = (batch.rows.len() == 1 || batch.verifies) && batch.part == 0;
        self.ahead.clear();
        for l in 0..self.layers.len() {
            let rows = batch.count(self.layers[l].rows);
            let is_prompt = rows > 1 && streams && !batch.verifies;
            let through = match &self.ring {
                Some(_) if is_prompt && self.layers[l].part == batch.part => self.through(l, rows, source),
                _ => Vec::new(),
            };
            let layer = &mut self.layers[l];
            if layer.part == batch.part {
                layer.scores.fade(batch.rows.len());
            }
            layer.on_gpu.clone_from(&layer.slot_of);
            through.iter().for_each(|&e| layer.on_gpu[e as usize] = 0);
            let hold = |&e: &u32| Some((e, source.in_slot(layer.cpu_step(), e)?));
            layer.held = through.iter().take(source.may_hold(layer.cpu_step())).filter_map(hold).collect();
            layer.passes = through.chunks(self.per_pass.max(1)).map(<[u32]>::to_vec).collect();
            self.ahead.extend((0..layer.passes.len()).map(|p| (l, p)));
        }
        self.ahead.reverse();
        self.staged.clear(); // of a walk that was stopped
        Ok(())
    }

    /// Layers that are split.
    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Seconds that the experts of all layers are expected to take for a batch of `rows`: those of the batch as a whole, with
    /// the ring, and those of half of its rows without; None before both sides were measured.
    pub(super) fn prompt_seconds(&self, rows: usize) -> Option<[f64; 2]> {
        self.known()?;
        let sum = |rows: usize, ring: bool| -> f64 {
            (0..self.layers.len()).map(|l| self.shares(l, rows, ring && self.ring.is_some()).1).sum()
        };
        Some([sum(rows, true), sum(rows / 2, false)])
    }

    /// Whether the rates are known that a share is chosen by.
    fn known(&self) -> Option<()> {
        self.rates.ring.0?;
        self.rates.cpu.0.or(self.rates.read.0).map(drop)
    }

    /// The experts of a layer that should stream for a batch of `rows`, hottest first.
    ///
    /// The first batch goes by a usual machine's rates. Rejected: half of the experts for each side, which in a batch of
    /// 8,192 rows leaves the CPU work for as long as it takes to read 4,096 tokens alone.
    fn through(&self, l: usize, rows: usize, source: ExpertSource<'_>) -> Vec<u32> {
        let layer = &self.layers[l];
        if self.known().is_none() && rows * layer.k < 4 * layer.scores.len() {
            return Vec::new(); // too few to measure anything
        }
        let (mut order, _, count) = self.shares(l, rows, true);
        order.truncate(count);
        if !self.deterministic {
            order.retain(|&e| source.is_in_memory(layer.cpu_step(), e)); // the bus does not wait for the drive
            order.truncate(source.may_hold(layer.cpu_step()));
        }
        order
    }

    /// The experts of a layer that are in no slot, hottest first; the seconds that a batch of `rows` is expected to take
    /// with them; and how many should stream for that, if any may.
    fn shares(&self, l: usize, rows: usize, may_stream: bool) -> (Vec<u32>, f64, usize) {
        let layer = &self.layers[l];
        let n = layer.scores.len();
        let order: Vec<u32> = layer.scores.order().into_iter().filter(|&e| layer.slot_of[e as usize] < 0).collect();
        let bytes = layer.expert_bytes() as f64;
        // The share of the products that each expert is expected to have; one that was never chosen has some too.
        let total: f32 = layer.scores.total() + n as f32 * 1e-3;
        let products = (rows * layer.k) as f64;
        let expected = |e: u32| ((layer.scores.of(e) + 1e-3) / total) as f64 * products;
        let touched = |e: u32| 1.0 - (-expected(e)).exp();
        let (known, r, usual) = (self.known().is_some(), &self.rates, HardwareRates::USUAL);
        let or = |measured: Ema, usual: f64| measured.0.unwrap_or(if known { 0.0 } else { usual });
        let (ring, read) = (or(r.ring, 1.0 / usual.bus), or(r.read, 1.0 / usual.ram));
        let (cpu, gpu) = (or(r.cpu, WEIGHTS / (CPU_PRODUCTS * usual.ram)), or(r.gpu, 0.0));
        let mut here: (f64, f64) = order.iter().fold((0.0, 0.0), |s, &e| (s.0 + touched(e), s.1 + expected(e)));
        let mut there = (0.0f64, 0.0f64);
        let cost = |here: (f64, f64), there: (f64, f64)| {
            let cpu = (here.0 * bytes * read).max(here.1 * bytes * cpu);
            cpu.max(there.0 * bytes * ring).max(there.1 * bytes * gpu)
        };
        let (mut best, mut count) = (cost(here, there), 0);
        for (i, &e) in order.iter().enumerate().filter(|_| may_stream) {
            here = (here.0 - touched(e), here.1 - expected(e));
            there = (there.0 + 1.0, there.1 + expected(e));
            let c = cost(here, there);
            if c < best {
                (best, count) = (c, i + 1);
            }
        }
        (order, best, count)
    }

    /// Records what the router chose in a layer, by the step of the CPU's share, and how long that step took.
    pub(super) fn note(&mut self, step: usize, ids: &[f32], seconds: f64) {
        let layer = &mut self.layers[self.of_step[&step]];
        let n = layer.scores.len();
        let (mut products, mut touched) = (0usize, vec![false; n]);
        let none = ids.iter().filter(|id| **id < 0.0).count();
        for &id in ids.iter().filter(|id| **id >= 0.0) {
            let e = id as usize;
            layer.scores.choose(e as u32);
            if layer.on_gpu[e] < 0 {
                products += 1;
                touched[e] = true;
            }
        }
        if self.single {
            self.stats.chosen += ids.len() - none;
            self.stats.hits += ids.len() - none - products;
        }
        let touched = touched.iter().filter(|t| **t).count();
        let bytes = layer.expert_bytes() as f64;
        if touched > 0 && !self.deterministic {
            if products >= 8 * touched {
                self.rates.cpu.add(seconds / (products as f64 * bytes));
            } else {
                self.rates.read.add(seconds / (touched as f64 * bytes));
            }
        }
    }

    /// Brings the experts over that gain most, if none are on their way. Called between walks.
    pub(super) fn bring(&mut self, gpu: &Gpu, source: ExpertSource<'_>, batch: &Batch) -> Result<()> {
        let rows = batch.rows.len();
        self.credit = (self.credit + PER_TOKEN * rows).min(PER_TOKEN * HALF_LIFE as usize);
        // More of a prompt is to come, whose passes would wait for these copies.
        let Some(in_flight) = self.in_flight.as_mut().filter(|c| c.list.is_empty() && !batch.output_rows.is_empty())
        else {
            return Ok(());
        };
        self.looked += 1;
        let mut list: Vec<(f32, usize, u32, usize)> = Vec::new(); // gain, layer, expert, slot
        for (l, layer) in
            self.layers.iter().enumerate().filter(|(l, _)| rows > 1 || (l + self.looked).is_multiple_of(IN_TURN))
        {
            let score = |e: &u32| layer.scores.of(*e);
            let mut slots: Vec<usize> = (0..layer.holds.len()).collect();
            let worth = |s: &usize| layer.holds[*s].as_ref().map_or(-1.0, score);
            slots.sort_by(|a, b| worth(a).total_cmp(&worth(b)).then(a.cmp(b)));
            let order = layer.scores.order();
            let at_hand = |e: u32| self.deterministic || source.is_in_memory(layer.cpu_step(), e);
            let new = order.iter().filter(|&&e| layer.slot_of[e as usize] < 0 && at_hand(e));
            for (e, slot) in new.zip(slots) {
                let (have, want) = (worth(&slot), score(e));
                if want > 0.0 && want > have * BETTER {
                    list.push((want - have.max(0.0), l, *e, slot));
                }
            }
        }
        list.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        if list.is_empty() {
            return Ok(());
        }
        // Kernels that read what the slots held have been started: the copies wait for them.
        let before = Event::new()?;
        before.record(&gpu.work)?;
        gpu.copies.after(&before)?;
        let (mut at, mut sum, mut going) = (0, 0, Vec::new());
        for (_, l, expert, slot) in list {
            let layer = &mut self.layers[l];
            if sum + layer.expert_bytes() > in_flight.staging.bytes() {
                break; // the rest have their turn when these have arrived
            }
            if let Some(old) = layer.holds[slot] {
                if self.credit == 0 {
                    continue;
                }
                self.credit -= 1;
                layer.holds[slot] = None;
                layer.slot_of[old as usize] = -1;
            }
            let held = source.in_slot(layer.cpu_step(), expert);
            for (m, s) in layer.stacks.iter().enumerate() {
                let from = s.matrix(source.gguf, expert, held.as_ref().map(|h| &*h[m]));
                let to = s.at.at(slot * s.bytes);
                match self.pinned.parts(from) {
                    Some(parts) => upload_parts(gpu, to, &parts)?,
                    None => {
                        in_flight.staging.as_mut_slice::<u8>()[at..at + s.bytes].copy_from_slice(from);
                        gpu.upload_pinned(&gpu.copies, to, &in_flight.staging, at, s.bytes)?;
                        at += s.bytes;
                    }
                }
                sum += s.bytes;
            }
            going.push((l, expert, slot));
        }
        self.stats.uploads += going.len();
        self.stats.upload_bytes += sum;
        in_flight.arrived.record(&gpu.copies)?;
        in_flight.list = going; // only now: what an error cut short is not there
        Ok(())
    }

    /// Fills a part of the ring with the next pass, if one is due and a part is free.
    fn stage(&mut self, gpu: &Gpu, gguf: &Gguf, pool: Option<&Pool>) -> Result<()> {
        if self.staged.len() == 2 {
            return Ok(());
        }
        let (Some((l, p)), Some(ring)) = (self.ahead.pop(), &mut self.ring) else { return Ok(()) };
        let (layer, h) = (&self.layers[l], self.turn);
        let part = &mut ring[h];
        self.turn = 1 - h;
        part.full.wait()?; // the staging memory has been read
        part.measure(&mut self.rates)?;
        let start = Instant::now();
        let experts = &layer.passes[p];
        let bytes: &mut [u8] = part.staging.as_mut_slice();
        let n = layer.slot_of.len();
        let table_bytes = (n * 4).next_multiple_of(ALIGN);
        let (table, mut rest) = bytes.split_at_mut(table_bytes);
        let table: &mut [i32] = &mut bytemuck::cast_slice_mut(table)[..n];
        table.fill(-1);
        experts.iter().enumerate().for_each(|(i, &e)| table[e as usize] = i as i32);
        let mut staged: Vec<(&mut [u8], &[u8])> = Vec::new(); // what goes through the staging memory
        let mut direct: Vec<(usize, Vec<&[u8]>)> = Vec::new(); // what does not, by its first byte in the ring
        let mut copies = vec![(0, n * 4)]; // (first byte, bytes) of the staging memory
        for (m, (s, at)) in layer.stacks.iter().zip(layer.in_ring(self.per_pass)).enumerate() {
            let (own, after) = rest.split_at_mut((self.per_pass * s.bytes).next_multiple_of(ALIGN));
            rest = after;
            let from = |&e: &u32| s.matrix(gguf, e, layer.held.get(&e).map(|h| &*h[m]));
            let all: Vec<&[u8]> = experts.iter().map(from).collect();
            match all.iter().map(|from| self.pinned.parts(from)).collect::<Option<Vec<_>>>() {
                Some(parts) => direct.extend(parts.into_iter().enumerate().map(|(i, p)| (at + i * s.bytes, p))),
                None => {
                    staged.extend(own.chunks_exact_mut(s.bytes).zip(all));
                    copies.push((at, experts.len() * s.bytes));
                }
            }
        }
        let sum = experts.len() * layer.expert_bytes();
        match pool {
            Some(pool) => pool.each_of(staged.into_iter(), sum, |(to, from)| to.copy_from_slice(from)),
            None => staged.into_iter().for_each(|(to, from)| to.copy_from_slice(from)),
        }
        part.copied = (sum, start.elapsed().as_secs_f64());
        gpu.copies.after(&part.used)?;
        part.going.record(&gpu.copies)?;
        for (at, len) in copies {
            gpu.upload_pinned(&gpu.copies, part.device.at(at), &part.staging, at, len)?;
        }
        for (at, parts) in direct {
            upload_parts(gpu, part.device.at(at), &parts)?;
        }
        part.full.record(&gpu.copies)?;
        self.stats.passed += experts.len();
        self.stats.passed_bytes += sum;
        self.staged.push((l, p, h));
        let CachedLayer { passes, held, .. } = &mut self.layers[l];
        held.retain(|e, _| !passes[p].contains(e));
        Ok(())
    }

    /// The passes of a step of the current walk, one after the other: `multiply` is given where each stack is, in the
    /// step's order, and where the table of places does, and starts the products. While they run the next pass is brought.
    pub(super) fn stream_experts(
        &mut self,
        gpu: &Gpu,
        gguf: &Gguf,
        step: usize,
        pool: Option<&Pool>,
        products: usize,
        mut multiply: impl FnMut(&dyn Fn(usize) -> Ptr, Ptr) -> Result<()>,
    ) -> Result<()> {
        let l = self.of_step[&step];
        for _ in 0..self.layers[l].passes.len() {
            if self.staged.is_empty() {
                self.stage(gpu, gguf, pool)?;
            }
            let (layer, pass, h) = self.staged.remove(0);
            assert_eq!(layer, l, "passes come in the order of the layers");
            let layer = &self.layers[l];
            let part = &mut self.ring.as_mut().expect("passes have a ring")[h];
            let places = layer.in_ring(self.per_pass);
            let at = |weight: usize| {
                let i = layer.stacks.iter().position(|s| s.weight == weight).expect("a stack of this layer");
                part.device.at(places[i])
            };
            gpu.work.after(&part.full)?;
            part.begun.record(&gpu.work)?;
            multiply(&at, part.device)?;
            part.used.record(&gpu.work)?;
            let share = layer.passes[pass].len() as f64 / layer.scores.len() as f64;
            part.work = share * products as f64 * layer.expert_bytes() as f64;
            self.stage(gpu, gguf, pool)?;
        }
        Ok(())
    }
}

/// Copies pinned parts to adjacent memory.
fn upload_parts(gpu: &Gpu, mut to: Ptr, parts: &[&[u8]]) -> Result<()> {
    for part in parts {
        gpu.upload(&gpu.copies, to, part)?;
        to = to.at(part.len());
    }
    Ok(())
}

impl RingPart {
    /// Takes the times of its last use, which is over.
    fn measure(&mut self, rates: &mut Rates) -> Result<()> {
        if self.copied.0 > 0 {
            // Copies into staging memory and out of it run side by side.
            let seconds = self.full.since(&self.going)?.max(self.copied.1);
            rates.ring.add(seconds / self.copied.0 as f64);
        }
        if self.work > 0.0 && self.used.is_done()? {
            rates.gpu.add(self.used.since(&self.begun)? / self.work);
            self.work = 0.0;
        }
        Ok(())
    }
}
