//! Walks a plan for one batch of rows.

mod cache;
mod device;
mod header;
mod pins;
mod rehearse;
mod weights;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::cpu::{self, Pool};
use crate::gguf::Gguf;
use crate::plan::{Place, Plan, Shape, Stage};
use crate::tape::{Batch, CpuIo, Half, Slot, State, StateSpec, Tape, WeightView, Work};

pub use cache::CacheStats;
pub use device::{Device, Waits};
pub use rehearse::{Rehearsal, Walked};
pub use weights::Weights;

/// Called with a step's label and each of its outputs, (rows, width), which it may change.
pub type Observer<'a> = &'a mut (dyn FnMut(&str, &mut [f32], usize) + Send);

/// A model ready to run: its plan, its weights, its memory.
#[derive(Debug)]
pub struct Engine {
    gguf: Gguf,
    /// The model.
    pub tape: Tape,
    /// Where it runs.
    pub plan: Plan,
    /// The threads.
    pub pool: Pool,
    /// Those for batches of more than one row, where they differ.
    pub pool_batch: Option<Pool>,
    /// What the sequences remember.
    pub states: Vec<State>,
    weights: Weights,
    memory: Vec<Memory>,
    device: Option<Device>,
    /// The stage from which on values that the GPU sends down are on their way, by value and place; None when fetched.
    coming: Vec<[Option<usize>; Place::ALL.len()]>,
}

/// The buffers of one place.
#[derive(Debug, Default)]
struct Memory {
    buffers: Vec<Vec<f32>>,
    work: Work,
}

impl Engine {
    /// Makes room for what `shape` says. A plan with steps on a GPU
    /// comes with the device that was opened for it.
    pub fn new(
        gguf: Gguf,
        (tape, plan): (Tape, Plan),
        (pool, pool_batch): (Pool, Option<Pool>),
        shape: Shape,
        weights: Weights,
        device: Option<Device>,
    ) -> Result<Engine> {
        assert_eq!(plan.on_gpu(), device.is_some(), "a device where the plan has steps on one, and only there");
        let here = |i: &usize| plan.state_places[*i] != Place::Gpu;
        let on_host: Vec<StateSpec> = (0..tape.states.len()).filter(here).map(|i| tape.states[i].clone()).collect();
        let Shape { n_seq, n_ctx, n_batch, .. } = shape;
        check_room(&gguf, &on_host, shape, cpu::Memory::of_this_machine())?;
        let states = tape
            .states
            .iter()
            .zip(&plan.state_places)
            .map(|(s, place)| match place {
                Place::Gpu => State::elsewhere(s, n_seq, n_ctx, n_batch),
                _ => State::new(s, n_seq, n_ctx, n_batch),
            })
            .collect();
        if device.is_some() {
            pool.beside_gpu();
            pool_batch.iter().for_each(Pool::beside_gpu);
        }
        let coming = vec![[None; Place::ALL.len()]; tape.slots.len()];
        let memory = plan
            .layouts
            .iter()
            .map(|l| Memory { buffers: vec![Vec::new(); l.widths.len()], work: Work::default() })
            .collect();
        Ok(Engine { gguf, tape, plan, pool, pool_batch, states, weights, memory, device, coming })
    }

    /// The GPU's part, where there is one.
    pub fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Computes the batch; what was wanted is then in [`Engine::result`]. Returns
    /// false, with the states of the batch's sequences half-written, when `stop` was raised meanwhile.
    ///
    /// # Errors
    /// If the GPU fails; the states are then lost.
    pub fn walk(&mut self, batch: &Batch, stop: &AtomicBool, mut observer: Option<Observer<'_>>) -> Result<bool> {
        let Engine { gguf, tape, plan, pool, pool_batch, states, weights, memory, device, coming } = self;
        let pool = pool_batch.as_ref().filter(|_| batch.rows.len() > 1).unwrap_or(pool);
        for m in memory.iter_mut() {
            m.work.angles.clear();
        }
        let width = |slot: Slot| tape.slots[slot.0 as usize].width;
        if let Some(device) = device {
            device.begin(batch)?;
        }
        let mut next = 0;
        while let Some(stage) = plan.stages.get(next) {
            if is_gpu(stage) {
                let device = device.as_mut().expect("a plan with a GPU has a device");
                if batch.rows.len() > 1 && stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                let range = stretch(plan, next);
                for stage in &plan.stages[range.clone()] {
                    match stage {
                        Stage::Copy(slot, from, Place::Gpu) => {
                            let rows = batch.count(tape.slots[slot.0 as usize].rows);
                            let buffer = plan.buffer(*slot, *from) as usize;
                            let from = &memory[from.index()].buffers[buffer][..rows * width(*slot)];
                            device.outgoing(plan.buffer(*slot, Place::Gpu))?[..from.len()].copy_from_slice(from);
                        }
                        Stage::Copy(slot, Place::Gpu, to) => coming[slot.0 as usize][to.index()] = Some(range.start),
                        Stage::Run(_, steps) => {
                            for step in &tape.steps[steps.clone()] {
                                step.states.iter().for_each(|s| states[s.0 as usize].wrote(&batch.rows));
                            }
                        }
                        _ => {}
                    }
                }
                next = range.end;
                match &mut observer {
                    None => device.start(tape, plan, batch, range)?,
                    Some(f) => device.observe(tape, plan, batch, range, f)?,
                }
                continue;
            }
            next += 1;
            match stage {
                Stage::Copy(slot, from, to) => {
                    let rows = batch.count(tape.slots[slot.0 as usize].rows);
                    let buffer = |p: &Place| plan.buffer(*slot, *p) as usize;
                    let mut out = std::mem::take(&mut memory[to.index()].buffers[buffer(to)]);
                    out.clear();
                    out.extend_from_slice(&memory[from.index()].buffers[buffer(from)][..rows * width(*slot)]);
                    memory[to.index()].buffers[buffer(to)] = out;
                }
                Stage::Run(place, range) => {
                    for slot in tape.steps[range.clone()].iter().flat_map(|s| &s.ins) {
                        let Some(from) = coming[slot.0 as usize][place.index()].take() else { continue };
                        let n = batch.count(tape.slots[slot.0 as usize].rows) * width(*slot);
                        let device = device.as_ref().expect("a plan with a GPU has a device");
                        let buffer = plan.buffer(*slot, *place);
                        let to = &mut memory[place.index()].buffers[buffer as usize];
                        to.clear();
                        to.extend_from_slice(device.arrived(from, (*place, buffer), n)?);
                    }
                    let memory = &mut memory[place.index()];
                    let at = |slot: Slot| plan.buffer(slot, *place) as usize;
                    for (i, step) in range.clone().map(|i| (i, &tape.steps[i])) {
                        // A single row is over in a moment, and undoing it may cost more.
                        if batch.rows.len() > 1 && stop.load(Ordering::Relaxed) {
                            return Ok(false);
                        }
                        let rows_of = |slot: Slot| batch.count(tape.slots[slot.0 as usize].rows);
                        let mut outs: Vec<Vec<f32>> = Vec::with_capacity(step.outs.len());
                        for &o in &step.outs {
                            let mut out = std::mem::take(&mut memory.buffers[at(o)]);
                            out.resize(rows_of(o) * width(o), 0.0);
                            outs.push(out);
                        }
                        let rows = step.ins.first().map_or(batch.rows.len(), |&x| rows_of(x));
                        if rows > 0 {
                            let ins: Vec<&[f32]> =
                                step.ins.iter().map(|&x| &memory.buffers[at(x)][..rows_of(x) * width(x)]).collect();
                            let shared = device.as_mut().filter(|_| step.half == Half::Rest);
                            let taken = shared.as_ref().map_or(Vec::new(), |d| d.experts.taken(i).to_vec());
                            let view = |w| WeightView { slots: &taken, ..weights.view(gguf, tape, *place, w) };
                            let views: Vec<WeightView> = step.weights.iter().map(|&w| view(w)).collect();
                            let mut own: Vec<State> =
                                step.states.iter().map(|s| std::mem::take(&mut states[s.0 as usize])).collect();
                            let mut seconds = 0.0;
                            let mut compute = || {
                                let start = Instant::now();
                                step.op.cpu(&mut CpuIo {
                                    batch,
                                    rows,
                                    ins: &ins,
                                    outs: &mut outs,
                                    weights: &views,
                                    states: &mut own,
                                    work: &mut memory.work,
                                    pool,
                                });
                                seconds = start.elapsed().as_secs_f64();
                            };
                            match shared {
                                None => compute(),
                                Some(device) => {
                                    device.beside((gguf, tape, plan), batch, (i, &taken), pool, &mut compute)?;
                                    device.experts.note(i, ins[1], seconds);
                                }
                            }
                            for (s, state) in step.states.iter().zip(own) {
                                states[s.0 as usize] = state;
                            }
                        }
                        for (&o, mut out) in step.outs.iter().zip(outs) {
                            if let Some(f) = &mut observer {
                                f(&step.label, &mut out, width(o));
                            }
                            memory.buffers[at(o)] = out;
                        }
                    }
                }
            }
        }
        if let Some(device) = device {
            for slot in tape.results() {
                let Some(from) = coming[slot.0 as usize][Place::Cpu.index()].take() else { continue };
                if batch.greedy && tape.logits == Some(slot) {
                    continue; // it stays where it is
                }
                let (buffer, rows) = (plan.buffer(slot, Place::Cpu), batch.count(tape.slots[slot.0 as usize].rows));
                let to = &mut memory[Place::Cpu.index()].buffers[buffer as usize];
                to.clear();
                to.extend_from_slice(device.arrived(from, (Place::Cpu, buffer), rows * width(slot))?);
            }
            device.end(gguf, batch)?;
        }
        Ok(true)
    }

    /// What a sequence of `tokens` tokens remembers, state by state (see [`State::save`]).
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn save(&self, seq: u32, tokens: usize, whole: bool) -> Result<Vec<Vec<u8>>> {
        let one = |(i, state): (usize, &State)| match &self.device {
            Some(device) if self.plan.state_places[i] == Place::Gpu => {
                let mut bytes = Vec::new();
                for (at, len) in state.stretches(tokens, whole) {
                    let from = bytes.len();
                    bytes.resize(from + len, 0);
                    device.read_state(i, seq, at, &mut bytes[from..])?;
                }
                Ok(bytes)
            }
            _ => Ok(state.save(seq, tokens, whole)),
        };
        self.states.iter().enumerate().map(one).collect()
    }

    /// Takes back what [`Engine::save`] gave for the same `tokens` and `whole`; false if it does not fit.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn load(&mut self, seq: u32, tokens: usize, whole: bool, saved: &[Vec<u8>]) -> Result<bool> {
        if saved.len() != self.states.len() {
            return Ok(false);
        }
        for (i, (state, bytes)) in self.states.iter_mut().zip(saved).enumerate() {
            match &self.device {
                Some(device) if self.plan.state_places[i] == Place::Gpu => {
                    let parts = state.stretches(tokens, whole);
                    if parts.iter().map(|p| p.1).sum::<usize>() != bytes.len() {
                        return Ok(false);
                    }
                    let mut from = 0;
                    for (at, len) in parts {
                        device.write_state(i, seq, at, &bytes[from..from + len])?;
                        from += len;
                    }
                    state.replaced(seq, tokens, whole);
                }
                _ if !state.load(seq, tokens, whole, bytes) => return Ok(false),
                _ => {}
            }
        }
        Ok(true)
    }

    /// Forgets a sequence.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn clear(&mut self, seq: u32) -> Result<()> {
        for (i, state) in self.states.iter_mut().enumerate() {
            match &self.device {
                Some(device) if self.plan.state_places[i] == Place::Gpu => device.clear_state(i, seq)?,
                _ => {}
            }
            state.clear(seq);
        }
        Ok(())
    }

    /// What the last walk gave: the logits, (wanted, n_vocab), and after a greedy one the likeliest tokens and their logits
    /// alone, (wanted, 2).
    pub fn result(&self, batch: &Batch) -> &[f32] {
        let slot = self.tape.results()[batch.greedy as usize];
        &self.memory[Place::Cpu.index()].buffers[self.plan.buffer(slot, Place::Cpu) as usize]
    }
}

/// Whether a stage is the GPU's: work there, or a copy to or from there.
fn is_gpu(stage: &Stage) -> bool {
    match stage {
        Stage::Run(place, _) => *place == Place::Gpu,
        Stage::Copy(_, from, to) => *from == Place::Gpu || *to == Place::Gpu,
    }
}

/// The GPU's stages from `from` on that are started together: up to the host's next, and no further than the next values
/// that are sent down, which the host may be waiting for. Values that are sent up lie ready when it starts, so no two of them
/// may come through one buffer.
fn stretch(plan: &Plan, from: usize) -> std::ops::Range<usize> {
    let stages = &plan.stages;
    let down = |s: &Stage| matches!(s, Stage::Copy(_, Place::Gpu, _));
    let up = |s: &Stage| match s {
        Stage::Copy(slot, _, Place::Gpu) => Some(plan.buffer(*slot, Place::Gpu)),
        _ => None,
    };
    let mut through: Vec<u32> = up(&stages[from]).into_iter().collect();
    let mut to = from + 1;
    while to < stages.len() && is_gpu(&stages[to]) && (!down(&stages[to - 1]) || down(&stages[to])) {
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
    let gb = |bytes: usize| format!("{:.1} GB", bytes as f64 / 1e9);
    let has = match memory {
        Some(m) => format!("this machine has {}", gb(m.total)),
        None => "the system does not give that much".into(),
    };
    let sequences = if n_seq == 1 { String::new() } else { format!("{n_seq} sequences of ") };
    bail!(
        "{}: {sequences}a context of {n_ctx} tokens needs {} of memory beside the weights, but {has}: choose a smaller \
         context with -c, or a smaller cache type",
        gguf.path.display(),
        gb(need)
    );
}
