//! The experts of a model that is larger than memory: those in memory, and the others on the drive.
//!
//! Each layer has some slots of memory, and a slot holds all matrices of one expert. A step names the
//! experts that its batch chose. Those in slots are computed while the others are read from the drive
//! into slots of experts that are used least and that the step does not need now, and these as they
//! arrive. A batch that chose more experts than there are slots passes through them in groups.
//!
//! ```text
//! chosen    e3 e7 e8 e12        slots  [e3] [e5] [e8] [e9]
//! pass 1    e3 e8 computed      reading e7 over e5, e12 over e9 meanwhile
//! pass 2    e12 computed, since it came first;   pass 3    e7
//! ```
//! A sum over experts is made after all passes, in the router's order, so that results do not depend
//! on what was in memory (`ops/experts.rs`). Slots are counted by layer, not for all layers together:
//! with less memory than a token's experts of all layers take, the least recently used of all would
//! always be the one that is needed next.
//!
//! When a model is opened, each slot asks for some expert, to be read while no step waits for anything. A
//! step that finds such an expert still to be read has it read at once, and one that needs a slot takes
//! one that is only to be filled before it gives one up. Which experts these are, and in which order, a file
//! says that earlier runs left (`expert_uses.rs`).

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use super::drive::{BufferPlace, DriveReader, ReadAt, ReadBuffer, ReadDone, ReadRequest, forget, network};
use super::expert_uses::ExpertUses;
use super::scores::{ExpertScores, HALF_LIFE};
use crate::cpu::{Memory, MemoryPressure};
use crate::gguf::{CutShort, Gguf};
use crate::plan::{self, Plan, Shape};
use crate::tape::{ExpertPass, Step, Tape};

/// Experts of a layer that are read at once, at most: as many reads as keep a drive busy, and few
/// enough that a prompt which passes through the slots does not empty them all.
const AT_ONCE: usize = 12;
/// Of the slots, the part that is given back when memory is short: one in this many.
const GIVEN_BACK: usize = 8;
/// Memory is short when programs wait for it and less than this part of it is free: one byte in so many.
const FREE: usize = 16;
/// Of what is known of earlier runs a choice counts half when this many tokens have followed it.
const USES_HALF_LIFE: f32 = 4096.0;
/// The score at the beginning of the expert of a layer that earlier runs chose most, as if it had been chosen
/// so often just now; that of the others is less in proportion.
const SCORE_BEFORE: f32 = 4.0;

/// How a model's experts are kept in memory where the others stay on the drive.
#[derive(Clone, Debug)]
pub struct RamPool {
    /// Slots of each layer; a layer with fewer experts has as many as those.
    pub slots: usize,
    /// The largest batch that there is working memory for besides the slots; where a larger one comes, slots
    /// are given back for it. None: slots are never given back for that.
    pub batch: Option<Shape>,
    /// Whether to lock the slots in RAM, where the system allows it.
    pub lock: bool,
    /// What reads.
    pub read: ReadAt,
    /// The folder of the file that says which experts earlier runs used most; None begins without it, and
    /// leaves none.
    pub uses: Option<PathBuf>,
}

/// What was read from the drive so far, and waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DriveStats {
    /// Experts that steps of the CPU needed.
    pub needed: usize,
    /// Those of `needed` that were in memory.
    pub hits: usize,
    /// Bytes that were read.
    pub bytes: usize,
    /// Seconds for which a step waited with nothing to compute.
    pub waited: f64,
    /// Slots of each layer at present.
    pub slots: usize,
}

/// The matrices of all experts of a layer in their file.
#[derive(Debug)]
struct StackOnDrive {
    /// The number of the file among those of the reader.
    file: usize,
    offset: u64,
    /// Bytes of an expert's matrix.
    bytes: usize,
}

/// Memory for one expert.
#[derive(Debug)]
struct PoolSlot {
    /// Whose matrices are there or on their way.
    expert: Option<u32>,
    /// One for each stack; None while it is being read. Copies to a GPU share it for a while.
    matrices: Vec<Option<Arc<ReadBuffer>>>,
    /// Being read, to be read, or used by the current pass.
    busy: bool,
    /// Why one of the matrices that are being read could not be.
    failed: Option<CutShort>,
}

impl PoolSlot {
    /// Whether another expert may be read into it.
    fn is_idle(&self) -> bool {
        !self.busy && self.matrices.iter().flatten().all(|m| Arc::strong_count(m) == 1)
    }
}

/// A layer's experts.
#[derive(Debug)]
struct PooledLayer {
    /// Its number among the layers.
    number: usize,
    /// The name of its first tensor.
    name: String,
    stacks: Vec<StackOnDrive>,
    /// What slots are given up by.
    scores: ExpertScores,
    /// What the next run begins with.
    uses: ExpertScores,
    /// The slot of each expert that is in memory.
    slot_of: Vec<Option<usize>>,
    /// Whether an expert is being read into a slot, or is to be.
    coming: Vec<bool>,
    slots: Vec<PoolSlot>,
}

/// The experts in memory, and the reader of the others.
#[derive(Debug)]
pub(super) struct Residency {
    layers: Vec<PooledLayer>,
    /// The layer of a step.
    of_step: HashMap<usize, usize>,
    reader: DriveReader,
    stats: DriveStats,
    pressure: MemoryPressure,
    /// The largest batch that there is memory for.
    batch: Option<Shape>,
    /// The file for the next run.
    file: Option<ExpertUses>,
    /// Whether it was said that memory was short.
    has_warned: bool,
}

/// The steps whose experts the CPU multiplies by, with their numbers; of several steps with the same
/// experts the first.
pub fn pooled_steps<'a>(tape: &'a Tape, plan: &'a Plan) -> impl Iterator<Item = (usize, &'a Step)> {
    let mut seen = Vec::new();
    let steps = tape.steps.iter().enumerate().zip(&plan.places);
    let here = steps.filter(|((_, step), place)| step.op.splits_by_expert() && !place.is_gpu()).map(|(step, _)| step);
    here.filter(move |(_, step)| {
        let new = !seen.contains(&step.weights[0]);
        seen.push(step.weights[0]);
        new
    })
}

/// Bytes of memory that `slots` slots of each layer take.
pub fn pool_bytes(tape: &Tape, plan: &Plan, slots: usize) -> usize {
    let slot = |step: &Step| plan::stacks(tape, step).map(|(_, b)| ReadBuffer::bytes_for(b)).sum::<usize>();
    pooled_steps(tape, plan).map(|(_, step)| slots.min(plan::experts_of(tape, step)) * slot(step)).sum()
}

/// Slots of each layer that `bytes` of memory hold, at most as many as a layer has experts; 0 if there is
/// no room for one in each.
pub fn slots_within(tape: &Tape, plan: &Plan, bytes: usize) -> usize {
    let most = pooled_steps(tape, plan).map(|(_, step)| plan::experts_of(tape, step)).max().unwrap_or(0);
    let counts: Vec<usize> = (1..=most).collect();
    counts.partition_point(|n| pool_bytes(tape, plan, *n) <= bytes)
}

impl PooledLayer {
    /// The slot that is given up for another expert: an empty one, or that of the expert which is
    /// used least of those that are not needed now.
    fn victim(&self) -> Option<usize> {
        let worth = |slot: &PoolSlot| slot.expert.map_or(-1.0, |e| self.scores.of(e));
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_idle());
        free.min_by(|a, b| worth(a.1).total_cmp(&worth(b.1))).map(|(i, _)| i)
    }

    /// The reads that bring an expert into a slot, whose old one is gone from now on.
    fn reads(&mut self, expert: u32, slot: usize) -> Vec<ReadRequest> {
        let at = &mut self.slots[slot];
        if let Some(old) = at.expert.replace(expert) {
            self.slot_of[old as usize] = None;
        }
        at.busy = true;
        self.coming[expert as usize] = true;
        let matrices = self.stacks.iter().zip(&mut at.matrices).enumerate();
        let read = |(stack, (s, matrix)): (usize, (&StackOnDrive, &mut Option<Arc<ReadBuffer>>))| ReadRequest {
            to: BufferPlace { layer: self.number, slot, stack },
            file: s.file,
            place: (s.offset + expert as u64 * s.bytes as u64, s.bytes),
            buffer: matrix.take().and_then(Arc::into_inner).expect("an idle slot has all its buffers to itself"),
        };
        matrices.map(read).collect()
    }

    /// Asks for an expert that a step waits for, if it is not there by now: into the slot of one that was
    /// to be read while the drive is idle, or else into the one that is given up. What was to be read
    /// itself is read at once. Returns false if no slot is free now.
    fn ask(&mut self, reader: &DriveReader, expert: u32) -> bool {
        if let Some(slot) = self.slot_of[expert as usize] {
            self.slots[slot].busy = true;
            return true;
        }
        if self.coming[expert as usize] {
            let own = reader.take_back(self.number, |slot| self.slots[slot].expert == Some(expert));
            own.into_iter().flatten().for_each(|r| reader.request(r)); // else it is being read
            return true;
        }
        if let Some(list) = reader.take_back(self.number, |_| true) {
            self.put_back(list);
        }
        let Some(slot) = self.victim() else { return false };
        self.reads(expert, slot).into_iter().for_each(|r| reader.request(r));
        true
    }

    /// Empties a slot again whose reads were taken back.
    fn put_back(&mut self, list: Vec<ReadRequest>) {
        for r in list {
            let slot = &mut self.slots[r.to.slot];
            slot.matrices[r.to.stack] = Some(Arc::new(r.buffer));
            slot.busy = false;
            if let Some(e) = slot.expert.take() {
                self.coming[e as usize] = false;
            }
        }
    }

    /// Takes a matrix that was read. If it was the last one of its slot, returns the slot's expert, which
    /// is there now unless a read failed.
    fn arrived(&mut self, done: ReadDone) -> Option<(u32, Result<(), CutShort>)> {
        let slot = &mut self.slots[done.to.slot];
        slot.matrices[done.to.stack] = Some(Arc::new(done.buffer));
        if let Err(e) = done.result {
            slot.failed = Some(e);
        }
        if slot.matrices.iter().any(Option::is_none) {
            return None;
        }
        let expert = slot.expert.expect("it is that of the reads");
        slot.busy = false;
        self.coming[expert as usize] = false;
        match slot.failed.take() {
            Some(e) => {
                slot.expert = None;
                Some((expert, Err(e)))
            }
            None => {
                self.slot_of[expert as usize] = Some(done.to.slot);
                Some((expert, Ok(())))
            }
        }
    }

    /// Marks an expert that is there as used by the current pass, or not any more.
    fn set_busy(&mut self, expert: u32, busy: bool) {
        self.slots[self.slot_of[expert as usize].expect("an expert of this pass")].busy = busy;
    }

    /// Gives the memory of `count` slots back to the system, but not that of the last one: slots
    /// whose experts are used least, of those that nothing reads.
    fn give_back(&mut self, count: usize) {
        assert!(!self.coming.contains(&true), "reads know their slots by number");
        for _ in 0..count.min(self.slots.len().saturating_sub(1)) {
            let Some(at) = self.victim() else { return };
            let gone = self.slots.swap_remove(at);
            if let Some(e) = gone.expert {
                self.slot_of[e as usize] = None;
            }
            if let Some(e) = self.slots.get(at).and_then(|moved| moved.expert) {
                self.slot_of[e as usize] = Some(at);
            }
        }
    }

    /// The matrix of an expert that is in a slot.
    fn matrix(&self, stack: usize, expert: u32) -> &[u8] {
        let slot = &self.slots[self.slot_of[expert as usize].expect("an expert of this pass")];
        slot.matrices[stack].as_ref().expect("an expert of this pass is there whole").matrix()
    }
}

impl Residency {
    /// Empty slots for all layers, and the threads that read.
    ///
    /// # Errors
    /// If a file cannot be read, or the system gives no memory or threads.
    pub(super) fn open(gguf: &Gguf, (tape, plan): (&Tape, &Plan), pool: &RamPool) -> Result<Residency> {
        let (mut layers, mut of_weight, mut shards) = (Vec::new(), HashMap::new(), Vec::new());
        let shards_of: Vec<&Path> = gguf.shards().collect();
        let file = pool.uses.as_deref().map(|folder| ExpertUses::of(folder, gguf));
        for (_, step) in pooled_steps(tape, plan) {
            let mut stacks = Vec::new();
            for (weight, bytes) in plan::stacks(tape, step) {
                let t = &gguf.tensors[tape.weights[weight].tensor];
                let file = shards.iter().position(|s| *s == t.shard).unwrap_or_else(|| {
                    shards.push(t.shard);
                    shards.len() - 1
                });
                stacks.push(StackOnDrive { file, offset: t.offset, bytes });
            }
            let n = plan::experts_of(tape, step);
            let slot = |_| -> Result<PoolSlot> {
                let buffer = |s: &StackOnDrive| ReadBuffer::new(s.bytes).map(Arc::new).map(Some);
                let buffers = stacks.iter().map(buffer).collect::<Result<_, _>>();
                let matrices = buffers.context("cannot allocate memory for experts")?;
                Ok(PoolSlot { expert: None, matrices, busy: false, failed: None })
            };
            let slots = (0..pool.slots.min(n)).map(slot).collect::<Result<_>>()?;
            let (number, first) = (layers.len(), step.weights[0]);
            of_weight.insert(first, number);
            let name = gguf.tensors[tape.weights[first.0 as usize].tensor].name.clone();
            let (slot_of, coming) = (vec![None; n], vec![false; n]);
            let (scores, uses) = scores_before(file.as_ref().and_then(|f| f.layer(&name, n)), n);
            layers.push(PooledLayer { number, name, stacks, scores, uses, slot_of, coming, slots });
        }
        let here = tape.steps.iter().enumerate().zip(&plan.places).filter(|(_, place)| !place.is_gpu());
        let of_step = here.filter_map(|((i, s), _)| Some((i, *of_weight.get(s.weights.first()?)?))).collect();
        let open = |s: &usize| -> (&Path, &File) { (shards_of[*s], gguf.file(*s).expect("what stays is in a file")) };
        let files: Vec<(&Path, &File)> = shards.iter().map(open).collect();
        files.iter().for_each(|(_, file)| forget(file, 0, 0)); // all that was read into memory is there twice
        if let Some((path, kind)) = files.iter().find_map(|(path, file)| Some((path, network(file)?))) {
            tracing::warn!("{}: on {kind}, so experts that are not in memory come from there", path.display());
        }
        let reader = DriveReader::open(&files, layers.len(), pool.read)?;
        let pressure = MemoryPressure::of(Path::new("/"));
        let stats = DriveStats::default();
        let mut residency =
            Residency { layers, of_step, reader, stats, pressure, batch: pool.batch, file, has_warned: false };
        if pool.lock {
            residency.lock();
        }
        residency.fill();
        Ok(residency)
    }

    /// Asks for some expert into every slot, those first that earlier runs used most, to be read while the
    /// drive has nothing else to do: the first tokens find some of theirs, and those of a chat all that fit.
    fn fill(&mut self) {
        for layer in &mut self.layers {
            let order = layer.uses.order();
            for (slot, expert) in (0..layer.slots.len()).zip(order) {
                self.reader.request_idle(layer.reads(expert, slot));
            }
        }
    }

    /// Leaves for the next run which experts were used most.
    fn save_uses(&mut self) {
        let Some(file) = self.file.take().filter(|_| self.stats.needed > 0) else { return };
        let uses = |l: &PooledLayer| (l.name.clone(), l.uses.all().iter().map(|u| u.round() as u32).collect());
        let path = file.path().to_owned();
        if let Err(e) = file.save(self.layers.iter().map(uses)) {
            tracing::debug!("{}: the experts used most are not kept for the next run: {e:#}", path.display());
        }
    }

    /// Takes what was read meanwhile.
    fn take_arrived(&mut self) {
        while let Some(done) = self.reader.next_done() {
            self.take(done);
        }
    }

    /// Takes what was read and nothing waits for. If that failed, it is read again when something does, and fails then.
    fn take(&mut self, done: ReadDone) {
        self.stats.bytes += done.buffer.matrix().len();
        let _ = self.layers[done.to.layer].arrived(done);
    }

    /// Locks all slots in RAM, or says why not.
    fn lock(&self) {
        let slots = self.layers.iter().flat_map(|l| &l.slots);
        let mut all = slots.flat_map(|s| &s.matrices).flatten();
        if let Err(e) = all.try_for_each(|m| m.lock()) {
            tracing::warn!(
                "--mlock: not all memory for experts is locked: {e}; raise the limit (ulimit -l shows it, in KiB)"
            );
        }
    }

    /// Gives some of the slots' memory back to the system, if programs wait for memory. Called between
    /// walks.
    pub(super) fn give_way(&mut self) {
        let is_short = |m: Memory| m.free < m.total / FREE;
        if !self.pressure.is_high(Instant::now()) || !Memory::of_this_machine().is_none_or(is_short) {
            return;
        }
        let most = self.layers.iter().map(|l| l.slots.len().div_ceil(GIVEN_BACK)).max().unwrap_or(0);
        self.give_back(most);
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(
                "programs wait for memory: fewer experts are kept there from now on, {} of each layer at present",
                self.slots()
            );
        }
    }

    /// Gives back slots for the working memory of a batch of `rows` tokens, where it is the largest so far. Called
    /// between walks.
    pub(super) fn make_room(&mut self, (tape, plan): (&Tape, &Plan), rows: usize) {
        let Some(had) = self.batch.filter(|had| had.n_batch < rows) else { return };
        let needed = Shape { n_batch: rows, ..had };
        let more = plan::host_bytes(tape, plan, &needed).saturating_sub(plan::host_bytes(tape, plan, &had));
        let slots = self.slots();
        let all = pool_bytes(tape, plan, slots);
        let fewer = (0..slots).find(|n| all - pool_bytes(tape, plan, slots - n) >= more).unwrap_or(slots);
        self.give_back(fewer);
        self.batch = Some(needed);
        tracing::debug!("a batch of {rows} tokens: {} experts of each layer in memory from now on", self.slots());
    }

    /// Gives some slots of each layer back to the system, when what is being read into them has come.
    fn give_back(&mut self, count: usize) {
        for layer in &mut self.layers {
            while let Some(list) = self.reader.take_back(layer.number, |_| true) {
                layer.put_back(list);
            }
        }
        self.take_arrived();
        while self.layers.iter().any(|l| l.coming.contains(&true)) {
            let done = self.reader.next_when_done();
            self.take(done);
        }
        self.layers.iter_mut().for_each(|layer| layer.give_back(count));
    }

    /// Slots of each layer; a layer with fewer experts has as many as those.
    fn slots(&self) -> usize {
        self.layers.iter().map(|l| l.slots.len()).max().unwrap_or(0)
    }

    /// Whether a step's experts are here.
    pub(super) fn serves(&self, step: usize) -> bool {
        self.of_step.contains_key(&step)
    }

    /// The matrices of an expert of a step's layer, in the order of its stacks; None if they are not in
    /// memory. They stay there for as long as they are held.
    fn expert(&self, step: usize, expert: u32) -> Option<Vec<Arc<ReadBuffer>>> {
        let layer = &self.layers[*self.of_step.get(&step)?];
        let slot = &layer.slots[layer.slot_of[expert as usize]?];
        slot.matrices.iter().cloned().collect()
    }

    /// What was read so far.
    pub(super) fn stats(&self) -> DriveStats {
        DriveStats { slots: self.slots(), ..self.stats }
    }

    /// Fails if a file is not what it was when it was opened.
    pub(super) fn check(&self) -> Result<(), CutShort> {
        self.reader.check()
    }

    /// Takes a step for `tokens` tokens through the experts of `ids`, those left out that a GPU has:
    /// calls `compute` with some of them at a time, and with what finds their matrices.
    ///
    /// # Errors
    /// If an expert cannot be read. Then not all were computed; nothing is being read any more.
    pub(super) fn passes(
        &mut self,
        step: usize,
        tokens: usize,
        (ids, on_gpu): (&[f32], &[i32]),
        compute: &mut ExpertPass<'_>,
    ) -> Result<(), CutShort> {
        self.take_arrived();
        let Residency { layers, of_step, reader, stats, .. } = self;
        let own = of_step[&step];
        let layer = &mut layers[own];
        layer.scores.fade(tokens);
        layer.uses.fade(tokens);
        let mut needed = vec![false; layer.slot_of.len()];
        for e in ids.iter().filter(|id| **id >= 0.0).map(|id| *id as usize) {
            if on_gpu.get(e).is_none_or(|&slot| slot < 0) {
                needed[e] = true;
                layer.scores.choose(e as u32);
                layer.uses.choose(e as u32);
            }
        }
        let chosen = (0..needed.len() as u32).filter(|&e| needed[e as usize]);
        let (mut ready, missing): (Vec<u32>, Vec<u32>) = chosen.partition(|&e| layer.slot_of[e as usize].is_some());
        ready.iter().for_each(|&e| layer.set_busy(e, true)); // not given up before they are computed
        stats.needed += ready.len() + missing.len();
        stats.hits += ready.len();
        let (mut missing, mut asked) = (missing.into_iter().peekable(), vec![false; needed.len()]);
        let (mut in_flight, mut failed) = (0, None);
        loop {
            let layer = &mut layers[own];
            while failed.is_none() && in_flight < AT_ONCE && missing.peek().is_some_and(|e| layer.ask(reader, *e)) {
                let e = missing.next().expect("just seen");
                match layer.slot_of[e as usize] {
                    Some(_) => ready.push(e), // it arrived unasked
                    None => (asked[e as usize], in_flight) = (true, in_flight + 1),
                }
            }
            if !ready.is_empty() {
                if failed.is_none() {
                    compute(&ready, &|stack, expert| layer.matrix(stack, expert));
                }
                ready.drain(..).for_each(|e| layer.set_busy(e, false));
            } else if in_flight > 0 || failed.is_none() && missing.peek().is_some() {
                let start = Instant::now();
                let mut next = Some(reader.next_when_done());
                stats.waited += start.elapsed().as_secs_f64();
                while let Some(done) = next {
                    let l = done.to.layer;
                    stats.bytes += done.buffer.matrix().len();
                    if let Some((e, result)) = layers[l].arrived(done)
                        && l == own
                        && asked[e as usize]
                    {
                        in_flight -= 1;
                        match result {
                            Ok(()) => ready.push(e),
                            Err(e) => failed = failed.or(Some(e)),
                        }
                    }
                    next = reader.next_done();
                }
                // Before any of their slots is given up.
                ready.iter().for_each(|&e| layers[own].set_busy(e, true));
            } else {
                return failed.map_or(Ok(()), Err);
            }
        }
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        self.save_uses();
    }
}

/// The scores with which the `n` experts of a layer begin, to give slots up by and for the next run, from how often
/// earlier runs chose them.
fn scores_before(uses: Option<&[u32]>, n: usize) -> (ExpertScores, ExpertScores) {
    let uses: Vec<f32> = uses.map_or(vec![0.0; n], |list| list.iter().map(|u| *u as f32).collect());
    let most = uses.iter().fold(1.0, |most: f32, u| most.max(*u));
    let scores = uses.iter().map(|u| u / most * SCORE_BEFORE).collect();
    (ExpertScores::from(scores, HALF_LIFE), ExpertScores::from(uses, USES_HALF_LIFE))
}

/// Where copies to a GPU find the CPU's experts: in slots, or in the file's memory.
#[derive(Clone, Copy)]
pub(super) struct ExpertSource<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) residency: Option<&'a Residency>,
}

impl ExpertSource<'_> {
    /// Whether an expert of a step's layer, the CPU's share, can be copied without a read from the
    /// drive.
    pub(super) fn is_in_memory(&self, step: usize, expert: u32) -> bool {
        let Some(residency) = self.residency else { return true };
        let Some(layer) = residency.of_step.get(&step) else { return true };
        residency.layers[*layer].slot_of[expert as usize].is_some()
    }

    /// The matrices of an expert, if it is in a slot; else they are in the file's memory. Its slot stays
    /// as it is for as long as they are held.
    pub(super) fn in_slot(&self, step: usize, expert: u32) -> Option<Vec<Arc<ReadBuffer>>> {
        self.residency?.expert(step, expert)
    }

    /// Experts of a step's layer that copies may hold at a time: half of the slots stay with the CPU,
    /// which reads into them.
    pub(super) fn may_hold(&self, step: usize) -> usize {
        let layer = self.residency.and_then(|r| Some(&r.layers[*r.of_step.get(&step)?]));
        layer.map_or(usize::MAX, |layer| layer.slots.len() / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Place;
    use crate::tape::Settings;

    /// A layer of 6 experts with 3 slots, of which the first two hold experts 4 and 1.
    fn layer() -> PooledLayer {
        let slot = |expert| PoolSlot { expert, matrices: Vec::new(), busy: false, failed: None };
        let mut slot_of = vec![None; 6];
        (slot_of[4], slot_of[1]) = (Some(0), Some(1));
        let slots = vec![slot(Some(4)), slot(Some(1)), slot(None)];
        PooledLayer {
            number: 0,
            name: String::new(),
            stacks: Vec::new(),
            scores: ExpertScores::new(6),
            uses: ExpertScores::new(6),
            slot_of,
            coming: vec![false; 6],
            slots,
        }
    }

    #[test]
    fn an_empty_slot_is_taken_before_one_that_is_used_and_then_that_of_the_expert_used_least() {
        let mut l = layer();
        [4, 4, 1].into_iter().for_each(|e| l.scores.choose(e));
        assert_eq!(l.victim(), Some(2));
        (l.slots[2].expert, l.slot_of[5]) = (Some(5), Some(2));
        (0..3).for_each(|_| l.scores.choose(5));
        assert_eq!(l.victim(), Some(1), "expert 1 was chosen once");
        l.scores.fade(1000);
        l.scores.choose(1);
        assert_eq!(l.victim(), Some(0), "what was chosen long ago counts little");
    }

    #[test]
    fn a_slot_that_is_read_into_or_computed_with_is_never_given_up() {
        let mut l = layer();
        l.slots[2].busy = true;
        l.slots[0].busy = true;
        assert_eq!(l.victim(), Some(1));
        l.slots[1].busy = true;
        assert_eq!(l.victim(), None);
    }

    #[test]
    fn slots_that_are_given_back_are_those_used_least_and_the_others_are_still_found() {
        let mut l = layer();
        [4, 4, 1].into_iter().for_each(|e| l.scores.choose(e));
        l.give_back(1);
        assert_eq!((l.slots.len(), l.slot_of[4], l.slot_of[1]), (2, Some(0), Some(1)), "the empty one first");
        (0..3).for_each(|_| l.scores.choose(1));
        l.give_back(1);
        assert_eq!((l.slots.len(), l.slot_of[4], l.slot_of[1]), (1, None, Some(0)), "what was last moved there");
        assert_eq!(l.slots[0].expert, Some(1));
        l.give_back(5);
        assert_eq!(l.slots.len(), 1, "the last one stays");
    }

    #[test]
    fn a_batch_that_has_no_memory_yet_takes_it_from_no_more_slots_than_it_needs() {
        let gguf = Gguf::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")).unwrap();
        let f16 = crate::quant::by_name("f16").unwrap();
        let settings = Settings { n_ctx: 512, type_k: f16, type_v: f16, heads: false };
        let tape = crate::models::build(&gguf, settings).unwrap();
        let plan = Plan::new(&tape, &|_, _| Place::Cpu);
        let few = Shape { n_seq: 1, n_ctx: 512, n_batch: 8, n_output_rows: 1 };
        let read = crate::exec::read_at;
        let pool = RamPool { slots: 14, batch: Some(few), lock: false, read, uses: None };
        let mut r = Residency::open(&gguf, (&tape, &plan), &pool).unwrap();
        let mut left = |rows: usize| {
            r.make_room((&tape, &plan), rows);
            r.slots()
        };
        assert_eq!(left(8), 14, "there is memory for that");
        let now = left(40);
        let bytes = |rows: usize| plan::host_bytes(&tape, &plan, &Shape { n_batch: rows, ..few });
        let freed = |slots: usize| pool_bytes(&tape, &plan, 14) - pool_bytes(&tape, &plan, slots);
        let more = bytes(40) - bytes(8);
        assert!(1 < now && now < 14 && freed(now) >= more && freed(now + 1) < more, "{now} slots for {more} bytes");
        assert_eq!((left(1), left(40)), (now, now), "it has it by now");
    }

    #[test]
    fn a_slot_that_is_being_copied_to_a_gpu_is_given_up_when_the_copy_is_done() {
        let mut l = layer();
        l.slots[2].busy = true;
        l.slots[0].matrices = vec![Some(Arc::new(ReadBuffer::new(10).unwrap()))];
        [1, 1].into_iter().for_each(|e| l.scores.choose(e));
        let held = l.slots[0].matrices.clone();
        assert_eq!(l.victim(), Some(1), "though its expert is used more");
        drop(held);
        assert_eq!(l.victim(), Some(0));
    }

    #[test]
    fn an_expert_is_there_when_its_last_matrix_is_and_not_if_one_could_not_be_read() {
        let done = |stack: usize, result| {
            let to = BufferPlace { layer: 0, slot: 2, stack };
            ReadDone { to, buffer: ReadBuffer::new(10).unwrap(), result }
        };
        let broken = || Err(CutShort::failed(Path::new("x.gguf"), 7, "gone"));
        for first in [Ok(()), broken()] {
            let (mut l, is_read) = (layer(), first.is_ok());
            l.slots[2] = PoolSlot { expert: Some(3), matrices: vec![None, None], busy: true, failed: None };
            l.coming[3] = true;
            assert!(l.arrived(done(1, first)).is_none(), "the other is still being read");
            let (expert, result) = l.arrived(done(0, Ok(()))).expect("the last one");
            assert_eq!((expert, result.is_ok(), l.slot_of[3].is_some(), l.coming[3]), (3, is_read, is_read, false));
            assert!(!l.slots[2].busy, "it can be given up again");
        }
    }
}
