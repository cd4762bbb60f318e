//! Walks a plan for one batch of rows.

mod cache;
mod device;
mod drive;
mod drive_rate;
mod expert_reads;
mod expert_uses;
mod halves;
mod inputs;
mod lost;
mod pinned;
mod place_memory;
mod profile;
mod residency;
mod scores;
mod tables;
mod weights;

use std::io::{Read, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cpu::{self, Pool};
use crate::cuda;
use crate::gguf::{Gguf, any_lost};
use crate::plan::{Place, Plan, PlanStage, Shape};
use crate::tape::{
    Batch, CpuIo, ExpertPass, ExpertPasses, ExpertShare, SeqRows, Slot, State, StateSpec, StateUse, Tape, WeightView,
    Work,
};

use halves::Lane;
use place_memory::{PlaceMemory, with_room};
use residency::{ExpertSource, Residency};
use tables::Tables;

pub use cache::CacheStats;
pub use device::{Device, Waits};
pub use drive::{ReadAt, read_at};
pub use drive_rate::{DriveTrial, drive_rate};
pub use expert_reads::ExpertReads;
pub use lost::GpuLost;
pub use profile::{Profile, SyntheticRun};
pub use residency::{DriveStats, RamPool, pool_bytes, pooled_steps, slots_within};
pub use weights::Weights;

/// Weights that are read, or the sequences' states, need more memory than there is; the text says
/// how much, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub struct NoMemory(pub(crate) String);

impl std::fmt::Display for NoMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoMemory {}

/// Called with a step's label and each of its outputs, (rows, width), which it may change.
pub type Observer<'a> = &'a mut (dyn FnMut(&str, &mut [f32], usize) + Send);

/// Who looks on during a walk.
#[derive(Default)]
pub struct Watch<'a> {
    /// Sees every step's outputs, and may change them. The GPU then runs step by step.
    pub observer: Option<Observer<'a>>,
    /// Called with the number of steps that are done, after each that the CPU runs.
    pub progress: Option<&'a mut dyn FnMut(usize)>,
}

/// Bytes of a state that come from a GPU at once: enough for the bus, little enough for the CPU's caches.
const PIECE: usize = 4 << 20;

/// A model ready to run: its plan, its weights, its memory.
#[derive(Debug)]
pub struct Engine {
    gguf: Arc<Gguf>,
    /// The model.
    pub tape: Tape,
    /// Where it runs.
    pub plan: Plan,
    /// The threads.
    pub pool: Pool,
    /// Those for batches of more than one row, where they differ.
    pub pool_batch: Option<Pool>,
    /// The states of the sequences.
    pub states: Vec<State>,
    /// The experts that walks of few rows read, if they are counted.
    pub expert_reads: Option<ExpertReads>,
    weights: Weights,
    /// Of a batch or its first half, and of a second half.
    lanes: [LaneMemory; 2],
    /// The GPUs, by their numbers in [`Place::Gpu`].
    devices: Vec<Device>,
    /// The experts in memory, where others stay on the drive.
    residency: Option<Residency>,
    /// The tables that stay in the file, if it has large ones.
    tables: Option<Tables>,
}

/// The CPU's memory of a batch on its way through the plan.
#[derive(Debug)]
struct LaneMemory {
    places: Vec<PlaceMemory>,
    /// The first of the stages that send a value down from the GPU, by value and place; None when it was fetched.
    in_flight: Vec<[Option<usize>; Place::ALL.len()]>,
}

impl LaneMemory {
    fn new(tape: &Tape, plan: &Plan) -> LaneMemory {
        let buffers = |n: usize| PlaceMemory { buffers: vec![Vec::new(); n], work: Work::default() };
        LaneMemory {
            places: plan.layouts.iter().map(|l| buffers(l.widths.len())).collect(),
            in_flight: vec![[None; Place::ALL.len()]; tape.slots.len()],
        }
    }
}

impl Engine {
    /// Allocates what a model needs to run batches of this `shape`. A plan with steps on a GPU comes with the device
    /// that was opened for it.
    ///
    /// # Errors
    /// [`NoMemory`] if the sequences' states need more memory than the machine has; if a thread cannot be started.
    pub fn new(
        gguf: Arc<Gguf>,
        (tape, plan): (Tape, Plan),
        (pool, pool_batch): (Pool, Option<Pool>),
        shape: Shape,
        weights: Weights,
        devices: Vec<Device>,
    ) -> Result<Engine> {
        assert_eq!(plan.on_gpu(), !devices.is_empty(), "a device where the plan has steps on one, and only there");
        let here = |i: &usize| !plan.state_places[*i].is_gpu();
        let on_host: Vec<StateSpec> = (0..tape.states.len()).filter(here).map(|i| tape.states[i].clone()).collect();
        let Shape { n_seq, n_ctx, n_batch, .. } = shape;
        check_room(&gguf, &on_host, shape, cpu::Memory::of_this_machine())?;
        let states = tape
            .states
            .iter()
            .zip(&plan.state_places)
            .map(|(s, place)| match place {
                Place::Gpu(_) => State::elsewhere(s, n_seq, n_ctx, n_batch),
                _ => State::new(s, n_seq, n_ctx, n_batch),
            })
            .collect();
        if !devices.is_empty() {
            pool.beside_gpu();
            pool_batch.iter().for_each(Pool::beside_gpu);
        }
        let tables = Tables::open(&gguf, &tape)?;
        let lanes = [LaneMemory::new(&tape, &plan), LaneMemory::new(&tape, &plan)];
        Ok(Engine {
            gguf,
            tape,
            plan,
            pool,
            pool_batch,
            states,
            expert_reads: None,
            weights,
            lanes,
            devices,
            residency: None,
            tables,
        })
    }

    /// Keeps some of the CPU's experts in memory, and reads the others when they are needed. The file
    /// has been read but for these (see [`Gguf::stays`]).
    ///
    /// # Errors
    /// If a file cannot be read, or the system gives no memory or threads.
    pub fn pool_experts(&mut self, pool: &RamPool) -> Result<()> {
        self.residency = Some(Residency::open(&self.gguf, (&self.tape, &self.plan), pool)?);
        Ok(())
    }

    /// What was read from the drive; None where all experts are in memory, or the system maps them.
    pub fn drive_stats(&self) -> Option<DriveStats> {
        self.residency.as_ref().map(Residency::stats)
    }

    /// Fails if a file of the model is not what it was when it was opened.
    fn check_files(&self) -> Result<()> {
        self.gguf.check_files()?;
        Ok(self.residency.as_ref().map_or(Ok(()), Residency::check)?)
    }

    /// The GPUs' parts, by the numbers of [`Place::Gpu`]; none where everything runs on the CPU.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Statistics of the expert caches of all devices together.
    pub fn cache_stats(&self) -> CacheStats {
        self.devices.iter().map(Device::cache_stats).fold(CacheStats::default(), |a, b| a + b)
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The file, for another engine.
    pub(crate) fn share_gguf(&self) -> Arc<Gguf> {
        self.gguf.clone()
    }

    /// An error of the driver as one that says what a session lost by it; other errors as they are.
    fn failed(&self, e: anyhow::Error) -> anyhow::Error {
        match self.devices.iter().find(|d| d.is_under_way()).or(self.devices.first()) {
            Some(device) if cuda::is_failure(&e) => device.lost(&self.tape, &self.plan, &e).into(),
            _ => e,
        }
    }

    /// Computes the batch, by the part of the tape that it names; its results are then in [`Engine::result`]. Returns false, with the
    /// states of the batch's sequences half-written, when `stop` was raised meanwhile. A batch of
    /// one row is never stopped: it is over in a moment, and undoing it may cost more.
    ///
    /// # Errors
    /// [`CutShort`](crate::gguf::CutShort) if a model's file is not what it was, with the states
    /// half-written as above. [`GpuLost`] if the GPU fails; the states are then lost.
    pub fn walk(&mut self, batch: &Batch, stop: &AtomicBool, watch: Watch<'_>) -> Result<bool> {
        self.check_files()?;
        if let Some(residency) = &mut self.residency {
            residency.make_room((&self.tape, &self.plan), batch.rows.len());
            residency.give_way();
        }
        let done = self.walk_stages(batch, stop, watch).map_err(|e| self.failed(e))?;
        self.check_files()?; // what it computed with zeros is dropped
        Ok(done)
    }

    fn walk_stages(&mut self, batch: &Batch, stop: &AtomicBool, mut watch: Watch<'_>) -> Result<bool> {
        self.tables.iter_mut().for_each(|tables| tables.ask_for_rows(&self.tape, &self.states, batch));
        // With several GPUs the CPU's time is one's alone anyway.
        let halves = match (&watch.observer, &self.devices[..]) {
            (None, [device]) if batch.part == 0 => device.halves(&self.plan, batch),
            _ => None,
        };
        let source = ExpertSource { gguf: &self.gguf, residency: self.residency.as_ref() };
        for device in &mut self.devices {
            device.begin(batch, halves.is_some(), source)?;
        }
        let done = match &halves {
            None => self.walk_lanes(&[Lane::whole(batch)], stop, &mut watch)?,
            Some(halves) => self.walk_lanes(&Lane::halves(halves), stop, &mut watch)?,
        };
        if done {
            let source = ExpertSource { gguf: &self.gguf, residency: self.residency.as_ref() };
            self.devices.iter_mut().try_for_each(|device| device.end(source, batch))?;
        }
        Ok(done)
    }

    /// Takes a batch, or its halves in turns, through all stages. Returns false if it was stopped.
    fn walk_lanes(&mut self, lanes: &[Lane<'_>], stop: &AtomicBool, watch: &mut Watch<'_>) -> Result<bool> {
        for lane in lanes {
            for m in &mut self.lanes[lane.number].places {
                m.work.angles.clear();
                m.work.acts.rows_only = lane.batch.deterministic_rows;
            }
            self.devices.iter_mut().try_for_each(|device| device.send(lane))?;
        }
        let stopped = || lanes[0].batch.rows.len() > 1 && stop.load(Ordering::Relaxed);
        let stages = self.plan.parts[lanes[0].batch.part].clone();
        let mut next = stages.start;
        while next < stages.end {
            let from = next;
            for lane in lanes {
                let Some(to) = self.turn(lane, from, &stopped, watch)? else { return Ok(false) };
                next = to;
            }
        }
        lanes.iter().try_for_each(|lane| self.fetch_results(lane))?;
        Ok(true)
    }

    /// A lane's turn: the host's stages from `from` on, and then the GPU's, which are started. Returns the stage after them,
    /// or None if it was stopped.
    fn turn(
        &mut self,
        lane: &Lane<'_>,
        from: usize,
        stopped: &dyn Fn() -> bool,
        watch: &mut Watch<'_>,
    ) -> Result<Option<usize>> {
        let (mut next, end) = (from, self.plan.parts[lane.batch.part].end);
        while next < end && gpu_of(&self.plan.stages[next]).is_none() {
            match self.plan.stages[next] {
                PlanStage::Copy(slot, from, to) => self.copy_stage(lane, slot, from, to),
                PlanStage::Run(place, ref steps) => {
                    let steps = steps.clone();
                    if !self.run_steps(lane, place, steps, stopped, watch)? {
                        return Ok(None);
                    }
                }
            }
            next += 1;
        }
        while next < end && gpu_of(&self.plan.stages[next]).is_some() {
            if stopped() {
                return Ok(None);
            }
            next = self.start_gpu_stages(lane, next, &mut watch.observer)?;
        }
        Ok(Some(next))
    }

    /// Values of f32 that a slot has in this batch.
    fn count(&self, batch: &Batch, slot: Slot) -> usize {
        let info = &self.tape.slots[slot.0 as usize];
        batch.count(info.rows) * info.width
    }

    /// Starts the GPU's stages from `from` on, as far as they go together, and returns the stage after them. What they
    /// read of the CPU's memory is copied first; what they send down is in flight afterwards.
    fn start_gpu_stages(&mut self, lane: &Lane<'_>, from: usize, observer: &mut Option<Observer<'_>>) -> Result<usize> {
        let (range, own) = (segment(&self.plan, lane.batch.part, from), lane.number);
        let gpu = gpu_of(&self.plan.stages[from]).expect("the first stage is a GPU's");
        for at in range.clone() {
            match self.plan.stages[at] {
                PlanStage::Copy(slot, Place::Gpu(from), Place::Gpu(_)) => {
                    self.devices[gpu].receive(&self.devices[from as usize], &self.plan, &self.tape, lane, &slot)?;
                }
                PlanStage::Copy(slot, from, to @ Place::Gpu(_)) => {
                    let n = self.count(lane.batch, slot);
                    let (source, to) = (self.plan.buffer(slot, from), self.plan.buffer(slot, to));
                    let values = &self.lanes[own].places[from.index()].buffers[source as usize][..n];
                    self.devices[gpu].outgoing(&self.plan, lane, to)?[..n].copy_from_slice(values);
                }
                PlanStage::Copy(slot, Place::Gpu(_), to) => {
                    self.lanes[own].in_flight[slot.0 as usize][to.index()] = Some(range.start);
                }
                PlanStage::Run(_, ref steps) => {
                    let steps = steps.clone();
                    for s in self.tape.steps[steps.clone()].iter().flat_map(|step| &step.states) {
                        self.states[s.0 as usize].wrote(lane.batch);
                    }
                    steps.for_each(|i| self.leave_out(lane.batch, i));
                }
                PlanStage::Copy(..) => {}
            }
        }
        let device = &mut self.devices[gpu];
        match observer {
            None => device.start(&self.tape, &self.plan, lane, range.clone())?,
            Some(f) => device.observe(&self.tape, &self.plan, lane, range.clone(), f)?,
        }
        Ok(range.end)
    }

    /// Copies a value between two memories of the CPU.
    fn copy_stage(&mut self, lane: &Lane<'_>, slot: Slot, from: Place, to: Place) {
        let n = self.count(lane.batch, slot);
        let buffer = |place: Place| self.plan.buffer(slot, place) as usize;
        let places = &mut self.lanes[lane.number].places;
        let mut out = std::mem::take(&mut places[to.index()].buffers[buffer(to)]);
        out.clear();
        out.extend_from_slice(&places[from.index()].buffers[buffer(from)][..n]);
        places[to.index()].buffers[buffer(to)] = out;
    }

    /// Runs steps on the CPU, once the values have arrived that the GPU sends them. Returns false if it was stopped
    /// before all of them were done.
    fn run_steps(
        &mut self,
        lane: &Lane<'_>,
        place: Place,
        steps: Range<usize>,
        stopped: &dyn Fn() -> bool,
        watch: &mut Watch<'_>,
    ) -> Result<bool> {
        for i in steps.clone() {
            for k in 0..self.tape.steps[i].ins.len() {
                self.fetch(lane, self.tape.steps[i].ins[k], place)?;
            }
        }
        for i in steps {
            if stopped() {
                return Ok(false);
            }
            if any_lost() {
                self.gguf.check_files()?;
            }
            self.run_step(lane, place, i, &mut watch.observer)?;
            if let Some(progress) = watch.progress.as_mut().filter(|_| lane.last) {
                progress(i + 1);
            }
        }
        Ok(true)
    }

    /// Runs one step on the CPU: takes its output buffers, computes, and gives them back.
    fn run_step(&mut self, lane: &Lane<'_>, place: Place, i: usize, observer: &mut Option<Observer<'_>>) -> Result<()> {
        let (batch, own) = (lane.batch, lane.number);
        let mut outs: Vec<(Vec<f32>, usize)> = Vec::with_capacity(self.tape.steps[i].outs.len());
        for &slot in &self.tape.steps[i].outs {
            let n = self.count(batch, slot);
            let buffer = self.plan.buffer(slot, place) as usize;
            let values = std::mem::take(&mut self.lanes[own].places[place.index()].buffers[buffer]);
            outs.push((with_room(values, n), n));
        }
        let rows_of = |slot: &Slot| batch.count(self.tape.slots[slot.0 as usize].rows);
        let rows = match self.tape.steps[i].last {
            Some(reach) => batch.rows.len() - batch.first(reach),
            None => self.tape.steps[i].ins.first().map_or(batch.rows.len(), rows_of),
        };
        self.leave_out(batch, i);
        if rows > 0 {
            self.compute(lane, place, (i, rows), &mut outs)?;
        }
        let step = &self.tape.steps[i];
        for (&slot, (mut values, n)) in step.outs.iter().zip(outs) {
            if let Some(f) = observer {
                f(&step.label, &mut values[..n], self.tape.width(slot));
            }
            self.lanes[own].places[place.index()].buffers[self.plan.buffer(slot, place) as usize] = values;
        }
        Ok(())
    }

    /// Takes note of the rows that step `i` leaves out of the states that it stores rows in.
    fn leave_out(&mut self, batch: &Batch, i: usize) {
        let step = &self.tape.steps[i];
        let first = step.last.map_or(0, |reach| batch.first(reach));
        for (k, s) in step.states.iter().enumerate().filter(|_| first > 0) {
            if step.op.state_use(k) == Some(StateUse::Stores) {
                self.states[s.0 as usize].left_out(batch, first);
            }
        }
    }

    /// Calls the CPU body of step `i`, whose inputs have `rows` rows; of each output there are a buffer and the number of
    /// values.
    fn compute(
        &mut self,
        lane: &Lane<'_>,
        place: Place,
        (i, rows): (usize, usize),
        outs: &mut [(Vec<f32>, usize)],
    ) -> Result<()> {
        let Engine {
            gguf, tape, plan, pool, pool_batch, states, expert_reads, weights, lanes, devices, residency, ..
        } = self;
        let batch = lane.batch;
        let pool = pool_batch.as_ref().filter(|_| batch.rows.len() > 1).unwrap_or(pool);
        let (step, PlaceMemory { buffers, work }) = (&tape.steps[i], &mut lanes[lane.number].places[place.index()]);
        let value = |slot: Slot| {
            let info = &tape.slots[slot.0 as usize];
            // A value of more rows than the step has is read from the step's first one on.
            let values = &buffers[plan.buffer(slot, place) as usize][..batch.count(info.rows) * info.width];
            &values[batch.skipped(step, info.rows) * info.width..]
        };
        let part = batch.of_step(step);
        let batch = part.as_ref().unwrap_or(batch);
        let ins: Vec<&[f32]> = step.ins.iter().map(|&slot| value(slot)).collect();
        let is_decoded = batch.part == 0 && (batch.rows.len() == 1 || batch.verifies);
        if let (Some(reads), true) = (expert_reads, is_decoded && step.op.name() == "experts") {
            reads.note(rows, ins[1]);
        }
        // The other experts are a GPU's, whose share is the next step.
        let shared = match plan.places.get(i + 1) {
            Some(Place::Gpu(n)) if step.share == ExpertShare::OnCpu => Some(&mut devices[*n as usize]),
            _ => None,
        };
        let on_gpu = shared.as_ref().map_or(Vec::new(), |d| d.experts.on_gpu(i).to_vec());
        let view = |w| WeightView { slots: &on_gpu, ..weights.view(gguf, tape, place, w) };
        let views: Vec<WeightView> = step.weights.iter().map(|&w| view(w)).collect();
        let mut own: Vec<State> = step.states.iter().map(|s| std::mem::take(&mut states[s.0 as usize])).collect();
        let mut residency = residency.as_mut().filter(|r| r.serves(i));
        let (mut seconds, mut read) = (0.0, Ok(()));
        let mut compute = || {
            let start = Instant::now();
            let mut through = residency
                .as_mut()
                .map(|r| |pass: &mut ExpertPass<'_>| read = r.passes(i, rows, (ins[1], &on_gpu), pass));
            let passes = through.as_mut().map(|f| ExpertPasses(f));
            let (weights, states) = (&views[..], &mut own[..]);
            let outs = outs.iter_mut().map(|(values, n)| &mut values[..*n]).collect();
            step.op.cpu(&mut CpuIo { batch, rows, ins: &ins, outs, weights, passes, states, work, pool });
            seconds = start.elapsed().as_secs_f64();
        };
        let mut done = Ok(());
        match shared {
            None => compute(),
            Some(device) => {
                done = device.compute_and_stream((gguf, tape, plan), lane, (i, &on_gpu), pool, &mut compute);
                device.experts.note(i, ins[1], seconds);
            }
        }
        for (s, state) in step.states.iter().zip(own) {
            states[s.0 as usize] = state;
        }
        read?;
        done
    }

    /// Takes a value that the GPU sent to `place` into its buffer there, if it is in flight.
    fn fetch(&mut self, lane: &Lane<'_>, slot: Slot, place: Place) -> Result<()> {
        let own = lane.number;
        let Some(stage) = self.lanes[own].in_flight[slot.0 as usize][place.index()].take() else { return Ok(()) };
        let n = self.count(lane.batch, slot);
        let buffer = self.plan.buffer(slot, place);
        let gpu = gpu_of(&self.plan.stages[stage]).expect("a GPU sent it");
        let to = &mut self.lanes[own].places[place.index()].buffers[buffer as usize];
        to.clear();
        to.extend_from_slice(self.devices[gpu].arrived(&self.plan, lane, stage, (place, buffer), n)?);
        Ok(())
    }

    /// Takes the results that the GPU sent down. Those of a second half come after those of the first.
    fn fetch_results(&mut self, lane: &Lane<'_>) -> Result<()> {
        let cpu = Place::Cpu.index();
        let results = self.tape.results(lane.batch.part);
        for slot in results {
            // The logits stay on the GPU where only the argmax is asked for.
            if lane.batch.argmax_only && results[0] == slot {
                self.lanes[lane.number].in_flight[slot.0 as usize][cpu] = None;
            }
            self.fetch(lane, slot, Place::Cpu)?;
        }
        if lane.number == 1 {
            let slot = results[lane.batch.argmax_only as usize];
            let buffer = self.plan.buffer(slot, Place::Cpu) as usize;
            let [first, second] = &mut self.lanes;
            let width = self.tape.width(slot);
            let (all, rest) = (&mut first.places[cpu].buffers[buffer], &second.places[cpu].buffers[buffer]);
            all.truncate(lane.before[1] * width);
            all.extend_from_slice(&rest[..lane.batch.output_rows.len() * width]);
        }
        Ok(())
    }

    /// Writes what a sequence of `tokens` tokens remembers, or what later tokens overwrite of it (see
    /// [`State::saved_ranges`]): state after state, straight from its memory.
    ///
    /// # Errors
    /// If it cannot be written; [`GpuLost`] if the GPU fails.
    pub fn save(&self, seq: u32, tokens: usize, whole: bool, out: &mut dyn Write) -> Result<()> {
        let mut piece = Vec::new();
        for (i, state) in self.states.iter().enumerate() {
            for (at, len) in state.saved_ranges(tokens, whole) {
                let Some(device) = self.device_of(i) else {
                    out.write_all(&state.of(seq).bytes[at..at + len])?;
                    continue;
                };
                for from in (at..at + len).step_by(PIECE) {
                    piece.resize(PIECE.min(at + len - from), 0);
                    device.read_state(i, seq, from, &mut piece).map_err(|e| self.failed(e))?;
                    out.write_all(&piece)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes that [`Engine::save`] writes.
    pub fn saved_bytes(&self, tokens: usize, whole: bool) -> usize {
        self.states.iter().flat_map(|s| s.saved_ranges(tokens, whole)).map(|(_, len)| len).sum()
    }

    /// Of [`Engine::saved_bytes`], those of the model: they come first, then those of draft heads.
    pub fn model_bytes(&self, tokens: usize, whole: bool) -> usize {
        let model = &self.states[..self.tape.model_states()];
        model.iter().flat_map(|s| s.saved_ranges(tokens, whole)).map(|(_, len)| len).sum()
    }

    /// Reads what [`Engine::save`] wrote of a whole sequence, with draft heads or of the model alone, into memory of its
    /// own; no sequence changes.
    ///
    /// # Errors
    /// If it cannot be read, or there is no memory for it.
    pub fn read(&self, tokens: usize, heads: bool, from: &mut dyn Read) -> Result<Vec<SeqRows>> {
        let mut parts = Vec::with_capacity(self.states.len());
        let saved = if heads { self.states.len() } else { self.tape.model_states() };
        for (i, state) in self.states.iter().enumerate() {
            let mut part = state.part().context("cannot allocate the state of a sequence")?;
            for (at, len) in state.saved_ranges(tokens, true).into_iter().filter(|_| i < saved) {
                from.read_exact(&mut part.bytes[at..at + len])?;
            }
            parts.push(part);
        }
        Ok(parts)
    }

    /// Takes a state of rows back to `tokens` tokens. Rows that would be looked at again and are not there any more become
    /// zeros.
    ///
    /// # Errors
    /// [`GpuLost`] if the GPU fails.
    pub fn rewind_rows(&mut self, state: usize, seq: u32, tokens: usize) -> Result<()> {
        if self.states[state].can_rewind(seq, tokens) {
            return Ok(());
        }
        for (at, len) in self.states[state].saved_ranges(tokens, false) {
            match self.device_of(state) {
                None => self.states[state].of_mut(seq).bytes[at..at + len].fill(0),
                Some(device) => device.write_state(state, seq, at, &vec![0; len]).map_err(|e| self.failed(e))?,
            }
        }
        self.states[state].replaced(seq, tokens, false);
        Ok(())
    }

    /// Makes what [`Engine::read`] gave for the same `tokens` the sequence's.
    ///
    /// # Errors
    /// [`GpuLost`] if the GPU fails.
    pub fn put(&mut self, seq: u32, tokens: usize, parts: Vec<SeqRows>) -> Result<()> {
        for (i, part) in parts.into_iter().enumerate() {
            match self.device_of(i) {
                None => *self.states[i].of_mut(seq) = part,
                Some(device) => {
                    for (at, len) in self.states[i].saved_ranges(tokens, true) {
                        device.write_state(i, seq, at, &part.bytes[at..at + len]).map_err(|e| self.failed(e))?;
                    }
                }
            }
            self.states[i].replaced(seq, tokens, true);
        }
        Ok(())
    }

    /// Puts back what [`Engine::save`] wrote of what later tokens overwrite.
    ///
    /// # Errors
    /// [`GpuLost`] if the GPU fails.
    pub fn put_back(&mut self, seq: u32, tokens: usize, mut saved: &[u8]) -> Result<()> {
        for i in 0..self.states.len() {
            for (at, len) in self.states[i].saved_ranges(tokens, false) {
                let (piece, rest) = saved.split_at(len);
                match self.device_of(i) {
                    None => self.states[i].of_mut(seq).bytes[at..at + len].copy_from_slice(piece),
                    Some(device) => device.write_state(i, seq, at, piece).map_err(|e| self.failed(e))?,
                }
                saved = rest;
            }
            self.states[i].replaced(seq, tokens, false);
        }
        Ok(())
    }

    /// Takes a sequence back to `tokens` tokens, to which every state can go.
    ///
    /// # Errors
    /// [`GpuLost`] if the GPU fails.
    pub fn go_back(&mut self, seq: u32, tokens: usize) -> Result<()> {
        for i in 0..self.states.len() {
            if let Some(copy) = self.states[i].go_back(seq, tokens) {
                let device = self.device_of(i).expect("elsewhere the block is exchanged at once");
                device.use_copy(i, seq, copy).map_err(|e| self.failed(e))?;
            }
        }
        Ok(())
    }

    /// The device that holds a state, if one does.
    fn device_of(&self, state: usize) -> Option<&Device> {
        match self.plan.state_places[state] {
            Place::Gpu(n) => Some(&self.devices[n as usize]),
            Place::Cpu | Place::Twin => None,
        }
    }

    /// Waits for all that the GPU was given, as for what was brought into the expert cache after
    /// the last walk.
    ///
    /// # Errors
    /// [`GpuLost`] if it failed meanwhile.
    pub fn settle(&self) -> Result<()> {
        self.devices.iter().try_for_each(Device::settle).map_err(|e| self.failed(e))
    }

    /// Forgets a sequence.
    ///
    /// # Errors
    /// [`GpuLost`] if the GPU fails.
    pub fn clear(&mut self, seq: u32) -> Result<()> {
        for i in 0..self.states.len() {
            if let Some(device) = self.device_of(i) {
                device.clear_state(i, seq).map_err(|e| self.failed(e))?;
            }
            self.states[i].clear(seq);
        }
        Ok(())
    }

    /// The results of the last walk: logits, (output rows, n_vocab), or after a greedy one only the argmax of each row
    /// and its logit, (output rows, 2). A walk of another part of the tape overwrites them.
    pub fn result(&self, batch: &Batch) -> &[f32] {
        let slot = self.tape.results(batch.part)[batch.argmax_only as usize];
        let buffer = self.plan.buffer(slot, Place::Cpu) as usize;
        &self.lanes[0].places[Place::Cpu.index()].buffers[buffer][..batch.output_rows.len() * self.tape.width(slot)]
    }
}

/// The number of the GPU whose stage it is: work there, a copy to it, or a copy from it to the host.
fn gpu_of(stage: &PlanStage) -> Option<usize> {
    match *stage {
        PlanStage::Run(Place::Gpu(n), _)
        | PlanStage::Copy(_, _, Place::Gpu(n))
        | PlanStage::Copy(_, Place::Gpu(n), _) => Some(n as usize),
        _ => None,
    }
}

/// A GPU's stages of a part from `from` on that are started together: up to the next stage that is not its own, and no further than
/// the next values that are sent down, which the host may be waiting for. Values that are sent up are in staging memory
/// when it starts, so no two of them may come through one buffer; those of another GPU come before it starts.
fn segment(plan: &Plan, part: usize, from: usize) -> Range<usize> {
    let stages = &plan.stages[..plan.parts[part].end];
    let down = |s: &PlanStage| matches!(s, PlanStage::Copy(_, Place::Gpu(_), Place::Cpu | Place::Twin));
    let across = |s: &PlanStage| matches!(s, PlanStage::Copy(_, Place::Gpu(_), Place::Gpu(_)));
    let up = |s: &PlanStage| match *s {
        PlanStage::Copy(slot, Place::Cpu | Place::Twin, to @ Place::Gpu(_)) => Some(plan.buffer(slot, to)),
        _ => None,
    };
    let gpu = gpu_of(&stages[from]);
    let mut through: Vec<u32> = up(&stages[from]).into_iter().collect();
    let mut to = from + 1;
    while to < stages.len() && gpu_of(&stages[to]) == gpu && (!down(&stages[to - 1]) || down(&stages[to])) {
        if across(&stages[to]) && !across(&stages[to - 1]) {
            break;
        }
        if let Some(buffer) = up(&stages[to]) {
            if through.contains(&buffer) {
                break;
            }
            through.push(buffer);
        }
        to += 1;
    }
    from..to
}

/// Fails if the weights that are to be read into memory (all but the tensors in `mapped`, places in
/// [`Gguf::tensors`]) are more than this machine has of it.
///
/// # Errors
/// [`NoMemory`].
pub fn check_weights(gguf: &Gguf, mapped: &[usize], memory: Option<cpu::Memory>) -> Result<()> {
    let stays: u64 = mapped.iter().map(|&i| gguf.tensors[i].bytes as u64).sum();
    let need = gguf.bytes().saturating_sub(stays) as usize;
    match memory {
        Some(m) if need > m.total => Err(NoMemory(format!(
            "{}: reading the weights takes {} of memory, but this machine has {}: leave out --no-mmap, or take a file with \
             smaller formats",
            gguf.path.display(),
            gigabytes(need),
            gigabytes(m.total)
        ))
        .into()),
        _ => Ok(()),
    }
}

/// Bytes for people, as whole and tenths of 1e9.
fn gigabytes(bytes: usize) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Fails if what the sequences remember needs more memory than there is: asking for it would end the program, at once
/// or in the middle of a long text.
fn check_room(
    gguf: &Gguf,
    states: &[StateSpec],
    Shape { n_seq, n_ctx, n_batch, .. }: Shape,
    memory: Option<cpu::Memory>,
) -> Result<()> {
    let one = states.iter().fold(0usize, |sum, s| sum.saturating_add(s.bytes(n_ctx, n_batch)));
    let need = one.saturating_mul(n_seq);
    let had = Vec::<u8>::new().try_reserve_exact(need).is_ok(); // asked for and given back, never touched
    if had && memory.is_none_or(|m| need <= m.total) {
        return Ok(());
    }
    let has = match memory {
        Some(m) if need > m.total => format!("this machine has {}", gigabytes(m.total)),
        _ => "the system does not give this program that much (a limit, as by ulimit -v)".into(),
    };
    let sequences = if n_seq == 1 { String::new() } else { format!("{n_seq} sequences of ") };
    Err(NoMemory(format!(
        "{}: {sequences}a context of {n_ctx} tokens needs {} of memory besides the weights, but {has}: choose a smaller \
         context with -c, or a smaller cache type",
        gguf.path.display(),
        gigabytes(need)
    ))
    .into())
}
