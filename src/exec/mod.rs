//! Walks a plan for one batch of rows.

mod cache;
mod device;
mod header;
mod pins;
mod rehearse;
mod weights;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cpu::{self, Pool};
use crate::gguf::Gguf;
use crate::plan::{Place, Plan, Shape, Stage};
use crate::tape::{Batch, CpuIo, Half, Part, Slot, State, StateSpec, Tape, WeightView, Work};

pub use cache::CacheStats;
pub use device::{Device, Waits};
pub use rehearse::{Rehearsal, Walked};
pub use weights::Weights;

/// What sequences remember needs more memory than there is: in words, with what to do.
#[derive(Debug, PartialEq, Eq)]
pub struct NoMemory(String);

impl std::fmt::Display for NoMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoMemory {}

/// Called with a step's label and each of its outputs, (rows, width), which it may change.
pub type Observer<'a> = &'a mut (dyn FnMut(&str, &mut [f32], usize) + Send);

/// Bytes of a state that come from a GPU at once: enough for the bus, little enough to lie in the CPU's caches.
const PIECE: usize = 4 << 20;

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
    /// How many steps of the walk at hand are done, for who looks on from another thread.
    pub walked: Arc<AtomicUsize>,
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
        let walked = Arc::default();
        Ok(Engine { gguf, tape, plan, pool, pool_batch, states, weights, memory, device, walked, coming })
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
        let Engine { gguf, tape, plan, pool, pool_batch, states, weights, memory, device, walked, coming } = self;
        let pool = pool_batch.as_ref().filter(|_| batch.rows.len() > 1).unwrap_or(pool);
        for m in memory.iter_mut() {
            m.work.angles.clear();
            m.work.acts.rows_only = batch.alike;
        }
        let width = |slot: Slot| tape.slots[slot.0 as usize].width;
        if let Some(device) = device {
            device.begin(batch)?;
        }
        walked.store(0, Ordering::Relaxed);
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
                        walked.store(i + 1, Ordering::Relaxed);
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

    /// Writes what a sequence of `tokens` tokens remembers, or what later tokens overwrite of it (see
    /// [`State::stretches`]): state after state, straight from where it lies.
    ///
    /// # Errors
    /// If it cannot be written, or the GPU fails.
    pub fn save(&self, seq: u32, tokens: usize, whole: bool, out: &mut dyn Write) -> Result<()> {
        let mut piece = Vec::new();
        for (i, state) in self.states.iter().enumerate() {
            for (at, len) in state.stretches(tokens, whole) {
                let Some(device) = self.device_of(i) else {
                    out.write_all(&state.of(seq).bytes[at..at + len])?;
                    continue;
                };
                for from in (at..at + len).step_by(PIECE) {
                    piece.resize(PIECE.min(at + len - from), 0);
                    device.read_state(i, seq, from, &mut piece)?;
                    out.write_all(&piece)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes that [`Engine::save`] writes.
    pub fn saved_bytes(&self, tokens: usize, whole: bool) -> usize {
        self.states.iter().flat_map(|s| s.stretches(tokens, whole)).map(|(_, len)| len).sum()
    }

    /// Reads what [`Engine::save`] wrote of a whole sequence, beside what there is.
    ///
    /// # Errors
    /// If it cannot be read, or there is no memory for it.
    pub fn read(&self, tokens: usize, from: &mut dyn Read) -> Result<Vec<Part>> {
        let mut parts = Vec::with_capacity(self.states.len());
        for state in &self.states {
            let mut part = state.part().context("no memory for what a sequence remembers")?;
            for (at, len) in state.stretches(tokens, true) {
                from.read_exact(&mut part.bytes[at..at + len])?;
            }
            parts.push(part);
        }
        Ok(parts)
    }

    /// Makes what [`Engine::read`] gave for the same `tokens` the sequence's.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn put(&mut self, seq: u32, tokens: usize, parts: Vec<Part>) -> Result<()> {
        for (i, part) in parts.into_iter().enumerate() {
            match self.device_of(i) {
                None => *self.states[i].of_mut(seq) = part,
                Some(device) => {
                    for (at, len) in self.states[i].stretches(tokens, true) {
                        device.write_state(i, seq, at, &part.bytes[at..at + len])?;
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
    /// If the GPU fails.
    pub fn put_back(&mut self, seq: u32, tokens: usize, mut saved: &[u8]) -> Result<()> {
        for i in 0..self.states.len() {
            for (at, len) in self.states[i].stretches(tokens, false) {
                let (piece, rest) = saved.split_at(len);
                match self.device_of(i) {
                    None => self.states[i].of_mut(seq).bytes[at..at + len].copy_from_slice(piece),
                    Some(device) => device.write_state(i, seq, at, piece)?,
                }
                saved = rest;
            }
            self.states[i].replaced(seq, tokens, false);
        }
        Ok(())
    }

    /// The device that holds a state, if one does.
    fn device_of(&self, state: usize) -> Option<&Device> {
        self.device.as_ref().filter(|_| self.plan.state_places[state] == Place::Gpu)
    }

    /// Forgets a sequence.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn clear(&mut self, seq: u32) -> Result<()> {
        for i in 0..self.states.len() {
            if let Some(device) = self.device_of(i) {
                device.clear_state(i, seq)?;
            }
            self.states[i].clear(seq);
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
        Some(m) if need > m.total => format!("this machine has {}", gb(m.total)),
        _ => "the system does not give this program that much (a limit, as by ulimit -v)".into(),
    };
    let sequences = if n_seq == 1 { String::new() } else { format!("{n_seq} sequences of ") };
    Err(NoMemory(format!(
        "{}: {sequences}a context of {n_ctx} tokens needs {} of memory beside the weights, but {has}: choose a smaller \
         context with -c, or a smaller cache type",
        gguf.path.display(),
        gb(need)
    ))
    .into())
}
