//! What a plan keeps on the GPU, and how its segments there are started.
//!
//! Everything is allocated when the model is opened, for the largest batch, and stays where it is; so the segments of a
//! decode step are recorded as graphs once and started again with other contents in the same places. What differs from
//! batch to batch (tokens, positions, tables, which experts are cached) comes over in one copy at the beginning of a walk.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use super::Observer;
use super::cache::{CacheStats, ExpertCache};
use super::halves::{self, DenseClock, Lane};
use super::inputs::BatchInputs;
use super::lost::GpuLost;
use super::pinned::PinnedExperts;
use super::residency::ExpertSource;
use super::weights::Weights;
use crate::cpu::Pool;
use crate::cuda::{Arena, DriverFailed, Event, Gpu, Graph, OutOfMemory, Pinned, Ptr};
use crate::gguf::Gguf;
use crate::plan::{self, Needs, Place, Plan, PlanStage, Shape};
use crate::tape::{
    Batch, ExpertShare, GpuIo, GpuState, GpuValue, GpuWeight, Scratch, Slot, Step, Tape, WeightKind, code_bytes,
    quantize,
};

/// A plan's share of a device.
#[derive(Debug)]
pub struct Device {
    /// The place of the device in the plan.
    place: Place,
    weights: Vec<Option<GpuWeight>>,
    states: Vec<Option<GpuState>>,
    /// Where values are, by the plan's buffers.
    values: Vec<Ptr>,
    /// Of every slot that has codes: where its buffer is, and the codes of the buffer.
    codes: Vec<Option<(Ptr, Ptr)>>,
    scratch: (Ptr, usize),
    /// Of each lane; one where no layer is split by expert.
    inputs: Vec<BatchInputs>,
    /// Values on their way to a place, by the place and its buffer: values that share one there share this too.
    staging: HashMap<(Place, u32), Pinned>,
    /// Passed when a segment's values have arrived, by its lane and number.
    arrived: Vec<Event>,
    /// Passed when a value that another GPU needs is there, and when one of another GPU has come.
    handed: [Event; 2],
    /// The segment that last sent values up through a buffer, by its lane and the buffer: until it is passed the staging
    /// memory is read.
    sent: HashMap<(usize, u32), usize>,
    /// None where the device could not make graphs: stages are then started one by one.
    graphs: Option<HashMap<(usize, StepKind), Graph>>,
    /// A graph found no memory: slots of the expert cache are given back before the next walk.
    is_short: bool,
    /// What is known of the steps of the current walk.
    progress: StepProgress,
    /// Walks so far that may be recorded, by their kind.
    steps: HashMap<StepKind, usize>,
    /// The measured times; None where measuring was not asked for.
    times: Option<Times>,
    /// How long the GPU works for a row of a prompt, apart from streamed experts; None where no layer is split by expert.
    pub(super) dense: Option<DenseClock>,
    /// The largest batch.
    shape: Shape,
    /// Whether prompts go in halves; None: as their times suggest.
    pub in_halves: Option<bool>,
    /// The experts that are here for a while.
    pub(super) experts: ExpertCache,
    /// All device memory; the pointers above lead into it.
    #[allow(dead_code)] // kept for its drop
    memory: Arena,
    /// The device; closed after all that is in its memory.
    pub(super) gpu: Arc<Gpu>,
}

/// Times of both sides in decode steps: walks of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waits {
    /// The number of walks.
    pub walks: usize,
    /// The time of all of them, in seconds like all below.
    pub whole: f64,
    /// The CPU waited for values from the GPU.
    pub cpu_waited: f64,
    /// The GPU waited between its segments, for values from the CPU.
    pub gpu_waited: f64,
    /// The GPU worked.
    pub gpu_worked: f64,
}

/// What the host knows of the steps that it started on the device, by their numbers.
#[derive(Debug, Default)]
struct StepProgress {
    /// Steps before this one are done: values that came after them were waited for.
    done: Cell<usize>,
    /// Steps from this one on were not started.
    started: Cell<usize>,
    /// The step whose kernels were started last, one by one.
    last: Cell<usize>,
    /// Where the steps of each segment end, by the number of its first stage.
    ends: HashMap<usize, usize>,
}

#[derive(Debug)]
struct Times {
    /// Passed when a segment begins; `Device::arrived` keep the time too.
    began: Vec<Event>,
    /// When the current walk began, if it is of one row, and its segments so far.
    walk: Option<Instant>,
    segments: Vec<usize>,
    waited: Cell<f64>,
    sum: Waits,
}

impl Device {
    /// Brings the weights over that a plan has at `place`, this GPU, and allocates all else.
    ///
    /// # Errors
    /// [`OutOfMemory`] names what had no room; others if the driver fails.
    pub fn open(
        (gpu, place): (Arc<Gpu>, Place),
        gguf: &Gguf,
        tape: &Tape,
        plan: &Plan,
        loaded: &Weights,
        shape: Shape,
    ) -> Result<Device> {
        let Shape { n_seq, n_ctx, n_batch, .. } = shape;
        let mut weights: Vec<Option<GpuWeight>> = vec![None; tape.weights.len()];
        let mut states: Vec<Option<GpuState>> = vec![None; tape.states.len()];
        // What must fit is taken first: a model that does not fit fails before its weights are read.
        let needs = Needs::of(tape, shape)?;
        gpu.enter()?;
        let footprint = plan::Footprint::of(tape, plan, &needs, shape, place);
        tracing::debug!("{} memory in MB: {}", place.name(), footprint.describe());
        // The cache's slots have memory of their own, which can be given back.
        let fixed = footprint.total() - footprint.cache;
        let memory = Arena::new(&gpu, fixed, &format!("the model ({})", footprint.describe()))?;
        let scratch = (memory.take(footprint.scratch), footprint.scratch);
        let lanes = plan::lane_rows(tape, n_batch);
        let inputs =
            lanes.map(|rows| BatchInputs::new(&gpu, &memory, tape, (plan, place), rows)).collect::<Result<_>>()?;
        let experts = ExpertCache::open(&gpu, &memory, tape, (plan, place))?;
        let layout = &plan.layouts[place.index()];
        let values: Vec<Ptr> = layout.bytes(&shape).map(|b| memory.take(b)).collect();
        let beside: Vec<Ptr> = layout.code_bytes(&shape).map(|b| memory.take(b)).collect();
        let coded = layout.buffer.iter().zip(&layout.coded).map(|(buffer, coded)| buffer.filter(|_| *coded));
        let codes = coded.map(|b| b.map(|b| (values[b as usize], beside[b as usize]))).collect();
        let on_gpu = || tape.steps.iter().zip(&plan.places).filter(|(_, p)| **p == place).map(|(s, _)| s);
        for s in on_gpu().flat_map(|step| &step.states).map(|s| s.0 as usize) {
            if states[s].is_none() {
                let spec = &tape.states[s];
                let bytes = n_seq * spec.bytes(n_ctx, n_batch).next_multiple_of(plan::ALIGN);
                let at = memory.take(bytes);
                gpu.zero(&gpu.work, at, bytes)?;
                states[s] = Some(plan::state_of(spec, at, n_ctx, n_batch));
            }
        }
        let mut small: Vec<Vec<u8>> = Vec::new(); // kept until the copies are over
        for (step, w) in on_gpu().flat_map(|step| step.weights.iter().map(move |w| (step, w.0 as usize))) {
            if weights[w].is_some() {
                continue;
            }
            let weight = &tape.weights[w];
            let ty = weight.matrix_type();
            let mut ptr = Ptr::default();
            if !plan::streams_through(tape, step, w) {
                ptr = memory.take(plan::weight_bytes(tape, w));
                match weight.kind {
                    WeightKind::Mapped => {} // its steps run on the CPU
                    WeightKind::Matrix => gpu.upload(&gpu.work, ptr, gguf.data(&gguf.tensors[weight.tensor]))?,
                    WeightKind::Vector | WeightKind::Ints { .. } => {
                        small.push(loaded.bytes(w));
                        gpu.upload(&gpu.work, ptr, small.last().expect("just pushed"))?;
                    }
                }
            }
            weights[w] = Some(GpuWeight { ptr, shape: weight.shape, ty, slots: Ptr::default() });
        }
        let staging = staging(&gpu, plan, place, &shape)?;
        let arrived = (0..2 * plan.stages.len()).map(|_| Event::new()).collect::<Result<Vec<_>>>()?;
        let dense = experts.some().then(|| DenseClock::new(plan.stages.len())).transpose()?;
        gpu.work.wait()?;
        drop(small);
        let graphs = (!gpu.sync).then(HashMap::new); // a graph's kernels cannot be waited for one by one
        let (sent, steps) = (HashMap::new(), HashMap::new());
        Ok(Device {
            place,
            experts,
            gpu,
            weights,
            states,
            memory,
            values,
            codes,
            scratch,
            inputs,
            staging,
            arrived,
            handed: [Event::new()?, Event::new()?],
            sent,
            graphs,
            is_short: false,
            progress: StepProgress::default(),
            steps,
            times: None,
            dense,
            shape,
            in_halves: None,
        })
    }

    /// Begins to pin the experts' memory, once all devices have their weights: nothing else may be copied from memory
    /// that is pinned in part. Nothing is pinned where experts are not `in_memory`.
    pub fn pin(&mut self, gguf: &Gguf, in_memory: bool) {
        match in_memory {
            true => self.experts.pin(&self.gpu, gguf),
            false => self.experts.pinned = PinnedExperts::none("they are not all in memory"),
        }
    }

    /// Keeps the time from now on.
    ///
    /// # Errors
    /// If the driver fails to make the events.
    pub fn keep_time(&mut self) -> Result<()> {
        let events = |like: &[Event]| like.iter().map(|_| Event::timed()).collect::<Result<Vec<_>>>();
        let (began, arrived) = (events(&self.arrived)?, events(&self.arrived)?);
        self.arrived = arrived;
        let sum = Waits::default();
        self.times = Some(Times { began, walk: None, segments: Vec::new(), waited: Cell::new(0.0), sum });
        Ok(())
    }

    /// Bytes per second over the bus and through the device's memory (see [`Gpu::rates`]).
    ///
    /// # Errors
    /// If the driver fails.
    pub fn rates(&self) -> Result<(f64, f64)> {
        self.gpu.enter()?;
        self.gpu.rates()
    }

    /// The device, for measurements.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Returns how long both sides waited; None where the times are not measured.
    pub fn waits(&self) -> Option<Waits> {
        self.times.as_ref().map(|t| t.sum)
    }

    /// Describes how the GPU reads the experts' memory, for reports; None where no layer is split by expert.
    pub fn expert_memory(&self) -> Option<String> {
        self.experts.some().then(|| self.experts.pinned.describe())
    }

    /// Whether measured times decide nothing.
    pub fn deterministic(&mut self, on: bool) {
        self.experts.deterministic = on;
    }

    /// Experts of each split layer that the expert cache has slots for.
    pub fn cache_slots(&self) -> usize {
        self.experts.slots_each()
    }

    /// Statistics of the expert cache so far.
    pub fn cache_stats(&self) -> CacheStats {
        self.experts.stats
    }

    /// The halves in which a batch goes through `plan`, if it should.
    pub(super) fn halves(&self, plan: &Plan, batch: &Batch) -> Option<[Batch; 2]> {
        let clock = self.dense.as_ref().filter(|_| !batch.verifies)?;
        let wanted =
            self.in_halves.unwrap_or_else(|| !self.experts.deterministic && clock.prefers_halves(&self.experts, batch));
        if !wanted {
            return None;
        }
        halves::cut(batch, &self.shape, [Place::Cpu, self.place].map(|place| &plan.layouts[place.index()]))
    }

    /// Begins a walk of a batch, in halves or not.
    pub(super) fn begin(&mut self, batch: &Batch, in_halves: bool, source: ExpertSource<'_>) -> Result<()> {
        self.gpu.enter()?;
        self.progress.done.set(0);
        self.progress.started.set(0);
        if std::mem::take(&mut self.is_short) {
            self.give_back()?;
        }
        if let Some(clock) = self.dense.as_mut().filter(|_| batch.part == 0 && !batch.verifies) {
            clock.begin(&self.experts, batch, in_halves);
        }
        self.experts.stats.halved += in_halves as usize;
        self.experts.begin(batch, !in_halves, source)?;
        if is_step(batch) {
            *self.steps.entry(kind_of(batch)).or_default() += 1; // one that wants nothing loads no kernels of the head
        }
        if let Some(times) = &mut self.times {
            times.walk = (batch.rows.len() == 1 && batch.part == 0).then(Instant::now);
            times.segments.clear();
            times.waited.set(0.0);
        }
        Ok(())
    }

    /// Brings the rows of a walk over.
    pub(super) fn send(&mut self, lane: &Lane<'_>) -> Result<()> {
        self.gpu.enter()?;
        self.inputs[lane.number].send(&self.gpu, lane.batch, &self.experts)
    }

    /// Starts the stages `range` of a plan, all of them on the GPU or copies to and from it. The lane's event in `arrived`
    /// of `range.start` is passed when they are done.
    pub(super) fn start(
        &mut self,
        tape: &Tape,
        plan: &Plan,
        lane: &Lane<'_>,
        range: std::ops::Range<usize>,
    ) -> Result<()> {
        let batch = lane.batch;
        self.gpu.enter()?;
        self.sends(plan, lane, range.clone());
        if let Some(clock) = self.dense.as_mut().filter(|_| is_prompt(batch)) {
            clock.segment_begins(&self.gpu, lane, range.start)?;
        }
        if let Some(times) = self.times.as_mut().filter(|t| t.walk.is_some()) {
            times.began[range.start].record(&self.gpu.work)?;
            times.segments.push(range.start);
        }
        // The first walk of its kind loads kernels, which a recording must not; the second records.
        let record = is_step(batch) && self.steps.get(&kind_of(batch)).is_some_and(|n| *n > 1);
        let key = (range.start, kind_of(batch));
        if record && !self.is_short && self.graphs.as_ref().is_some_and(|g| !g.contains_key(&key)) {
            self.record(key, tape, plan, lane, range.clone())?;
        }
        let graph = self.graphs.as_ref().and_then(|g| g.get(&key)).filter(|_| record);
        match graph {
            Some(graph) => self.gpu.replay(graph)?,
            None => self.stages(tape, plan, lane, range.clone())?,
        }
        if let Some(clock) = self.dense.as_mut().filter(|_| is_prompt(batch)) {
            clock.segment_ends(&self.gpu)?;
        }
        self.arrived[self.event(lane, range.start)].record(&self.gpu.work)
    }

    /// Records the stages as a graph. Where that is not possible, they are started one by one from
    /// now on; where memory has run out, in this walk: the next one begins by giving slots of the
    /// cache back.
    fn record(
        &mut self,
        key: (usize, StepKind),
        tape: &Tape,
        plan: &Plan,
        lane: &Lane<'_>,
        range: std::ops::Range<usize>,
    ) -> Result<()> {
        match self.gpu.capture(|| self.stages(tape, plan, lane, range)) {
            Ok(graph) => drop(self.graphs.as_mut().map(|g| g.insert(key, graph))),
            Err(e) if e.downcast_ref::<DriverFailed>().is_some_and(|f| f.is_lost) => return Err(e),
            Err(e) if e.is::<OutOfMemory>() && self.experts.slots_each() > 0 => self.is_short = true,
            Err(e) => {
                tracing::warn!("graphs: off, because {e:#}; kernels are started one by one");
                self.graphs = None;
            }
        }
        Ok(())
    }

    /// Gives slots of the expert cache back, between walks. Graphs name the slots, so they are
    /// recorded again.
    fn give_back(&mut self) -> Result<()> {
        self.settle()?;
        if let Some(graphs) = &mut self.graphs {
            graphs.clear();
        }
        self.experts.give_back(&self.gpu).map(drop)
    }

    /// The error of a walk in which the driver failed: it names the steps that were under way, or
    /// the one step and its kernel where each is waited for.
    pub(super) fn lost(&self, tape: &Tape, plan: &Plan, e: &anyhow::Error) -> GpuLost {
        let p = &self.progress;
        // A walk of a draft head starts no steps of the parts before it.
        let part = p.started.get().checked_sub(1).map_or(0, |last| tape.steps[last].part);
        let here = |i: &usize| plan.places[*i] == self.place && tape.steps[*i].part == part;
        let under_way = (p.done.get()..p.started.get()).filter(here).map(|i| tape.steps[i].label.as_str());
        let last = tape.steps.get(p.last.get()).map(|s| s.label.as_str());
        GpuLost::new(e, &under_way.collect::<Vec<_>>(), last.filter(|_| self.gpu.sync))
    }

    /// Runs the stages as [`Device::start`] does, but step by step: `f` sees what each gives before the next begins.
    pub(super) fn observe(
        &mut self,
        tape: &Tape,
        plan: &Plan,
        lane: &Lane<'_>,
        range: std::ops::Range<usize>,
        f: &mut Observer<'_>,
    ) -> Result<()> {
        self.gpu.enter()?;
        self.sends(plan, lane, range.clone());
        for at in range.clone() {
            let PlanStage::Run(place, steps) = &plan.stages[at] else {
                self.run(tape, plan, lane, &plan.stages[at])?;
                continue;
            };
            for i in steps.clone() {
                self.run(tape, plan, lane, &PlanStage::Run(*place, i..i + 1))?;
                for slot in &tape.steps[i].outs {
                    let v = self.value(plan, tape, lane, slot);
                    let mut values = vec![0f32; v.rows * v.width];
                    self.gpu.download(&self.gpu.work, &mut values, v.ptr)?;
                    self.gpu.work.wait()?;
                    f(&tape.steps[i].label, &mut values, v.width);
                    self.gpu.upload(&self.gpu.work, v.ptr, &values)?;
                    self.make_codes(slot, v)?;
                    self.gpu.work.wait()?;
                }
            }
        }
        self.arrived[self.event(lane, range.start)].record(&self.gpu.work)
    }

    /// The event that a lane passes when its segment that begins with this stage is done.
    fn event(&self, lane: &Lane<'_>, stage: usize) -> usize {
        lane.number * self.arrived.len() / 2 + stage
    }

    /// Ends a walk, whose last values have arrived.
    pub(super) fn end(&mut self, source: ExpertSource<'_>, batch: &Batch) -> Result<()> {
        self.gpu.enter()?;
        if let Some(times) = &mut self.times
            && let Some(began) = times.walk.take()
        {
            let (sum, list) = (&mut times.sum, &times.segments);
            list.last().map_or(Ok(()), |last| self.arrived[*last].wait())?;
            sum.walks += 1;
            sum.whole += began.elapsed().as_secs_f64();
            sum.cpu_waited += times.waited.get();
            for s in list {
                sum.gpu_worked += self.arrived[*s].since(&times.began[*s])?;
            }
            for pair in list.windows(2) {
                sum.gpu_waited += times.began[pair[1]].since(&self.arrived[pair[0]])?;
            }
        }
        if let Some(clock) = self.dense.as_mut().filter(|_| is_prompt(batch)) {
            clock.end(batch.rows.len())?;
        }
        match batch.part {
            0 => self.experts.bring(&self.gpu, source, batch),
            _ => Ok(()), // a draft head's walk: the model's next one brings what it wants, too
        }
    }

    /// Takes note of the stages that are started now: how far they go, and the values that they
    /// send up.
    fn sends(&mut self, plan: &Plan, lane: &Lane<'_>, range: std::ops::Range<usize>) {
        let end = |stage: &PlanStage| if let PlanStage::Run(_, steps) = stage { Some(steps.end) } else { None };
        if let Some(end) = plan.stages[range.clone()].iter().rev().find_map(end) {
            self.progress.started.set(end);
            self.progress.ends.insert(range.start, end);
        }
        for stage in &plan.stages[range.clone()] {
            if let PlanStage::Copy(slot, Place::Cpu | Place::Twin, Place::Gpu(_)) = stage {
                self.sent.insert((lane.number, plan.buffer(*slot, self.place)), range.start);
            }
        }
    }

    fn stages(&self, tape: &Tape, plan: &Plan, lane: &Lane<'_>, range: std::ops::Range<usize>) -> Result<()> {
        self.gpu.joined(|| plan.stages[range].iter().try_for_each(|stage| self.run(tape, plan, lane, stage)))
    }

    fn run(&self, tape: &Tape, plan: &Plan, lane: &Lane<'_>, stage: &PlanStage) -> Result<()> {
        let batch = lane.batch;
        let value = |x: &Slot| self.value(plan, tape, lane, x);
        match stage {
            PlanStage::Copy(_, Place::Gpu(_), Place::Gpu(_)) => Ok(()), // came before the segment began
            // Nobody reads the logits where only the argmax is asked for.
            PlanStage::Copy(slot, Place::Gpu(_), _) if batch.argmax_only && tape.results(batch.part)[0] == *slot => {
                Ok(())
            }
            PlanStage::Copy(slot, from, to) => {
                let buffer = plan.buffer(*slot, *to);
                let (v, host) = (value(slot), &self.staging[&(*to, buffer)]);
                let at = lane.offset(&plan.layouts[to.index()], buffer);
                let bytes = at..at + v.rows * v.width * 4;
                match from {
                    _ if v.rows == 0 => Ok(()),
                    Place::Gpu(_) => self.gpu.send(host, bytes, v.ptr),
                    _ => {
                        self.gpu.bring(v.ptr, host, bytes)?;
                        self.make_codes(slot, v)
                    }
                }
            }
            PlanStage::Run(_, steps) => steps.clone().map(|i| (i, &tape.steps[i])).try_for_each(|(i, step)| {
                self.progress.last.set(i);
                self.step(step, i, (lane, tape), &value).with_context(|| format!("step {}", step.label))
            }),
        }
    }

    fn step(
        &self,
        step: &Step,
        i: usize,
        (lane, tape): (&Lane<'_>, &Tape),
        value: &dyn Fn(&Slot) -> GpuValue,
    ) -> Result<()> {
        let batch = lane.batch;
        if step.share == ExpertShare::All {
            return self.start_step(step, i, (lane, tape), value, None, false);
        }
        let out = value(&step.outs[0]);
        if out.rows == 0 {
            return Ok(());
        }
        // What is recorded must do for whatever the slots hold later.
        if self.experts.any(i) || (is_step(batch) && self.experts.room(i)) {
            let slots = self.inputs[lane.number].places(i);
            self.start_step(step, i, (lane, tape), value, Some((&|w| self.experts.at(i, w), slots)), false)
        } else if self.experts.passes(i) == 0 {
            self.gpu.zero(&self.gpu.work, out.ptr, out.rows * out.width * 4)?;
            self.make_codes(&step.outs[0], out)
        } else {
            Ok(()) // the first pass writes what later ones add to
        }
    }

    /// Starts a step's kernels; `stacks` tells where its stacks of experts are, and the table of their places.
    fn start_step(
        &self,
        step: &Step,
        i: usize,
        (lane, tape): (&Lane<'_>, &Tape),
        value: &dyn Fn(&Slot) -> GpuValue,
        stacks: Option<(&dyn Fn(usize) -> Ptr, Ptr)>,
        add: bool,
    ) -> Result<()> {
        let inputs = &self.inputs[lane.number];
        let part = lane.batch.of_step(step);
        let batch = part.as_ref().unwrap_or(lane.batch);
        let first = lane.batch.rows.len() - batch.rows.len();
        // A value of more rows than the step has is read from the step's first one on, where it has no codes.
        let skipped = |x: &Slot| lane.batch.skipped(step, tape.slots[x.0 as usize].rows);
        let from = |x: &Slot| value(x).after(skipped(x));
        let codes = |x: &Slot| if skipped(x) == 0 { self.codes_of(x, value(x)) } else { Ptr::default() };
        let ins: Vec<GpuValue> = step.ins.iter().map(from).collect();
        let outs: Vec<GpuValue> = step.outs.iter().map(value).collect();
        let rows = ins.first().filter(|_| step.last.is_none()).map_or(batch.rows.len(), |x| x.rows);
        let none = |x: &Slot| lane.batch.count(tape.slots[x.0 as usize].rows) == 0;
        if rows == 0 || step.outs.iter().any(none) {
            return Ok(());
        }
        let weight = |w: usize| {
            let known = self.weights[w].expect("here");
            match stacks {
                Some((at, slots)) if plan::streams_through(tape, step, w) => GpuWeight { ptr: at(w), slots, ..known },
                _ => known,
            }
        };
        let states: Vec<GpuState> = step.states.iter().map(|s| self.states[s.0 as usize].expect("here")).collect();
        step.op.gpu(&GpuIo {
            gpu: Some(&self.gpu),
            batch,
            lists: inputs.lists(first),
            tables: &inputs.tables(i),
            rows,
            ins: &ins,
            codes: &step.ins.iter().map(codes).collect::<Vec<_>>(),
            outs: &outs,
            weights: &step.weights.iter().map(|w| weight(w.0 as usize)).collect::<Vec<_>>(),
            states: &states,
            add,
            scratch: Scratch::new(self.scratch.0, self.scratch.1),
        })?;
        step.outs.iter().zip(outs).try_for_each(|(slot, out)| self.make_codes(slot, out))
    }

    /// Where the codes of a value are; null if it has none. A value that begins within its buffer has them as far on
    /// beside it.
    fn codes_of(&self, slot: &Slot, value: GpuValue) -> Ptr {
        self.codes[slot.0 as usize].map_or(Ptr::default(), |(buffer, codes)| {
            codes.at(code_bytes((value.ptr.0 - buffer.0) as usize / 4).next_multiple_of(16))
        })
    }

    /// Makes the codes of a value that was just written, where some step reads them.
    fn make_codes(&self, slot: &Slot, value: GpuValue) -> Result<()> {
        match self.codes_of(slot, value) {
            Ptr(0) => Ok(()),
            at => quantize(Some(&self.gpu), value, at),
        }
    }

    /// Runs `compute`, the CPU's share of step `i`, while experts stream through the ring for the GPU's. `on_gpu` is at
    /// least 0 for those that the CPU leaves out.
    pub(super) fn compute_and_stream(
        &mut self,
        model: (&Gguf, &Tape, &Plan),
        lane: &Lane<'_>,
        (i, on_gpu): (usize, &[i32]),
        pool: &Pool,
        compute: &mut (dyn FnMut() + '_),
    ) -> Result<()> {
        let step = self.experts.gpu_step(i);
        if self.experts.passes(step) == 0 {
            compute();
            return Ok(());
        }
        if on_gpu.iter().all(|t| *t >= 0) {
            compute(); // nothing but zeros
            return self.stream_experts(model, lane, step, Some(pool));
        }
        let streamed = std::thread::scope(|s| {
            let passes = std::thread::Builder::new().spawn_scoped(s, || self.stream_experts(model, lane, step, None));
            compute();
            passes.ok().map(|passes| passes.join().expect("passes report errors"))
        });
        // Where the system starts no more threads, one comes after the other.
        streamed.unwrap_or_else(|| self.stream_experts(model, lane, step, Some(pool)))
    }

    /// Starts the part of a step's GPU share whose experts stream through the ring; `pool` helps where it is free.
    fn stream_experts(
        &mut self,
        (gguf, tape, plan): (&Gguf, &Tape, &Plan),
        lane: &Lane<'_>,
        i: usize,
        pool: Option<&Pool>,
    ) -> Result<()> {
        self.gpu.enter()?;
        self.progress.last.set(i);
        let step = &tape.steps[i];
        let products = lane.batch.count(tape.slots[step.outs[0].0 as usize].rows) * tape.width(step.ins[1]);
        let mut add = self.experts.any(i);
        let mut experts = std::mem::take(&mut self.experts);
        let done = experts.stream_experts(&self.gpu, gguf, i, pool, products, |at, table| {
            let value = |x: &Slot| self.value(plan, tape, lane, x);
            self.start_step(step, i, (lane, tape), &value, Some((at, table)), std::mem::replace(&mut add, true))
        });
        self.experts = experts;
        done.with_context(|| format!("step {}", step.label))
    }

    /// A value as kernels see it.
    fn value(&self, plan: &Plan, tape: &Tape, lane: &Lane<'_>, x: &Slot) -> GpuValue {
        let rows = lane.batch.count(tape.slots[x.0 as usize].rows);
        let buffer = plan.buffer(*x, self.place);
        let ptr = self.values[buffer as usize].at(lane.offset(&plan.layouts[self.place.index()], buffer));
        GpuValue { ptr, rows, width: tape.width(*x) }
    }

    /// Copies a value of another GPU's to this one, when that one has it; its memory is used again when the copy is over.
    pub(super) fn receive(&self, from: &Device, plan: &Plan, tape: &Tape, lane: &Lane<'_>, x: &Slot) -> Result<()> {
        let (there, here) = (from.value(plan, tape, lane, x), self.value(plan, tape, lane, x));
        if here.rows == 0 {
            return Ok(());
        }
        from.gpu.enter()?;
        from.handed[0].record(&from.gpu.work)?;
        self.gpu.enter()?;
        self.gpu.work.after(&from.handed[0])?;
        self.gpu.copy_from(&from.gpu, here.ptr, there.ptr, here.rows * here.width * 4)?;
        self.make_codes(x, here)?;
        self.handed[1].record(&self.gpu.work)?;
        from.gpu.enter()?;
        from.gpu.work.after(&self.handed[1])
    }

    /// Whether steps were started that are not known to be done.
    pub(super) fn is_under_way(&self) -> bool {
        self.progress.started.get() > self.progress.done.get()
    }

    /// The `n` values that a lane's stages from `stage` on sent down to a buffer of a place, once they are there.
    pub(super) fn arrived(
        &self,
        plan: &Plan,
        lane: &Lane<'_>,
        stage: usize,
        (place, buffer): (Place, u32),
        n: usize,
    ) -> Result<&[f32]> {
        let start = Instant::now();
        self.gpu.enter()?;
        self.arrived[self.event(lane, stage)].wait()?;
        let done = self.progress.ends.get(&stage).copied().unwrap_or(0).max(self.progress.done.get());
        self.progress.done.set(done);
        if let Some(times) = &self.times {
            times.waited.set(times.waited.get() + start.elapsed().as_secs_f64());
        }
        let at = lane.offset(&plan.layouts[place.index()], buffer) / 4;
        Ok(&self.staging[&(place, buffer)].as_slice()[at..at + n])
    }

    /// Where a value is put that a lane's next stages send up to a buffer.
    pub(super) fn outgoing(&mut self, plan: &Plan, lane: &Lane<'_>, buffer: u32) -> Result<&mut [f32]> {
        self.gpu.enter()?;
        if let Some(&stage) = self.sent.get(&(lane.number, buffer)) {
            self.arrived[self.event(lane, stage)].wait()?;
        }
        let at = lane.offset(&plan.layouts[self.place.index()], buffer) / 4;
        Ok(&mut self.staging.get_mut(&(self.place, buffer)).expect("the plan sends it up").as_mut_slice()[at..])
    }

    /// Waits until everything that was started is done.
    pub(super) fn settle(&self) -> Result<()> {
        self.gpu.enter()?;
        self.gpu.work.wait()?;
        self.gpu.copies.wait()
    }

    /// Bytes `at..at + len` of a sequence's part of a state.
    pub(super) fn read_state(&self, state: usize, seq: u32, at: usize, to: &mut [u8]) -> Result<()> {
        let s = self.states[state].expect("here");
        let from = Ptr(s.cache.rows + seq as u64 * s.cache.seq_bytes).at(at);
        self.gpu.enter()?;
        self.gpu.download(&self.gpu.work, to, from)?;
        self.gpu.work.wait()
    }

    /// Replaces bytes from `at` on of a sequence's part of a state.
    pub(super) fn write_state(&self, state: usize, seq: u32, at: usize, from: &[u8]) -> Result<()> {
        let s = self.states[state].expect("here");
        let to = Ptr(s.cache.rows + seq as u64 * s.cache.seq_bytes).at(at);
        self.gpu.enter()?;
        self.gpu.upload(&self.gpu.work, to, from)?;
        self.gpu.work.wait()
    }

    /// Makes a sequence's fixed block what its copy number `copy` is.
    pub(super) fn use_copy(&self, state: usize, seq: u32, copy: usize) -> Result<()> {
        let s = self.states[state].expect("here");
        let (to, block) = (Ptr(s.cache.rows + seq as u64 * s.cache.seq_bytes), s.width * size_of::<f32>());
        self.gpu.enter()?;
        self.gpu.copy(&self.gpu.work, to, to.at((copy + 1) * block), block)
    }

    /// Clears a sequence's part of a state.
    pub(super) fn clear_state(&self, state: usize, seq: u32) -> Result<()> {
        let s = self.states[state].expect("here");
        let to = Ptr(s.cache.rows + seq as u64 * s.cache.seq_bytes);
        self.gpu.enter()?;
        self.gpu.zero(&self.gpu.work, to, s.cache.seq_bytes as usize)
    }
}

/// Pinned memory for the values that cross between the host and a GPU, its `place`.
fn staging(gpu: &Gpu, plan: &Plan, place: Place, shape: &Shape) -> Result<HashMap<(Place, u32), Pinned>> {
    let mut staging = HashMap::new();
    for stage in &plan.stages {
        if let PlanStage::Copy(slot, from, to) = *stage
            && (from == place || to == place)
            && !(from.is_gpu() && to.is_gpu())
            && let std::collections::hash_map::Entry::Vacant(free) = staging.entry((to, plan.buffer(slot, to)))
        {
            let bytes = plan.layouts[to.index()].bytes(shape).nth(plan.buffer(slot, to) as usize);
            free.insert(gpu.pinned(bytes.expect("a buffer"), "values that cross")?);
        }
    }
    Ok(staging)
}

/// What a recorded walk is made for: the part of the tape, the number of rows, and whether only their argmax is wanted.
type StepKind = (usize, usize, bool);

fn kind_of(batch: &Batch) -> StepKind {
    (batch.part, batch.rows.len(), batch.argmax_only)
}

/// Whether walks like this one can be recorded: a token with its result, or several of one sequence that verify drafts.
/// What they start does not depend on positions.
fn is_step(batch: &Batch) -> bool {
    let rows = &batch.rows;
    let verifies = batch.verifies && rows.iter().all(|row| row.seq == rows[0].seq);
    (rows.len() == 1 || verifies) && batch.output_rows.len() == rows.len()
}

/// Whether it is a batch of a prompt, by whose times the next ones are planned.
fn is_prompt(batch: &Batch) -> bool {
    batch.rows.len() > 1 && batch.part == 0 && !batch.verifies
}

impl Drop for Device {
    /// Waits until nothing reads its memory any more, which is freed next.
    fn drop(&mut self) {
        let _ = self.gpu.enter().and_then(|()| self.gpu.work.wait()).and_then(|()| self.gpu.copies.wait());
    }
}
