//! Walks a plan for one batch of rows.

mod weights;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use crate::cpu::{self, Pool};
use crate::gguf::Gguf;
use crate::plan::{Place, Plan, Stage};
use crate::tape::{Batch, CpuIo, Slot, State, StateSpec, Tape, WeightView, Work};

use weights::Weights;

/// Called with a step's label and each of its outputs: (rows, width).
pub type Observer<'a> = &'a mut (dyn FnMut(&str, &[f32], usize) + Send);

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
}

/// The buffers of one place.
#[derive(Debug, Default)]
struct Memory {
    buffers: Vec<Vec<f32>>,
    work: Work,
}

impl Engine {
    /// Decodes the small weights, checks the integer tables, and makes room for `n_seq` sequences of `n_ctx` tokens, fed
    /// at most `n_batch` at a time.
    pub fn new(
        gguf: Gguf,
        tape: Tape,
        plan: Plan,
        (pool, pool_batch): (Pool, Option<Pool>),
        (n_seq, n_ctx, n_batch): (usize, usize, usize),
    ) -> Result<Engine> {
        check_room(&gguf, &tape.states, (n_seq, n_ctx, n_batch), cpu::Memory::of_this_machine())?;
        let weights = Weights::load(&gguf, &tape, &plan)?;
        let states = tape.states.iter().map(|s| State::new(s, n_seq, n_ctx, n_batch)).collect();
        let memory = plan
            .layouts
            .iter()
            .map(|l| Memory { buffers: vec![Vec::new(); l.widths.len()], work: Work::default() })
            .collect();
        Ok(Engine { gguf, tape, plan, pool, pool_batch, states, weights, memory })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Computes the batch; the logits of its wanted rows, (wanted, n_vocab), are then in [`Engine::logits`]. Returns
    /// false, with the states of the batch's sequences half-written, when `stop` was raised meanwhile.
    pub fn walk(&mut self, batch: &Batch, stop: &AtomicBool, mut observer: Option<Observer<'_>>) -> bool {
        let Engine { gguf, tape, plan, pool, pool_batch, states, weights, memory } = self;
        let pool = pool_batch.as_ref().filter(|_| batch.rows.len() > 1).unwrap_or(pool);
        for m in memory.iter_mut() {
            m.work.angles.clear();
        }
        let width = |slot: Slot| tape.slots[slot.0 as usize].width;
        for stage in &plan.stages {
            match stage {
                Stage::Copy(slot, from, to) => {
                    let rows = batch.count(tape.slots[slot.0 as usize].rows);
                    let buffer = |p: &Place| plan.layouts[p.index()].buffer[slot.0 as usize].unwrap() as usize;
                    let mut out = std::mem::take(&mut memory[to.index()].buffers[buffer(to)]);
                    out.clear();
                    out.extend_from_slice(&memory[from.index()].buffers[buffer(from)][..rows * width(*slot)]);
                    memory[to.index()].buffers[buffer(to)] = out;
                }
                Stage::Run(place, range) => {
                    let layout = &plan.layouts[place.index()];
                    let memory = &mut memory[place.index()];
                    let at = |slot: Slot| layout.buffer[slot.0 as usize].unwrap() as usize;
                    for step in &tape.steps[range.clone()] {
                        // A single row is over in a moment, and undoing it may cost more.
                        if batch.rows.len() > 1 && stop.load(Ordering::Relaxed) {
                            return false;
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
                            let views: Vec<WeightView> =
                                step.weights.iter().map(|&w| weights.view(gguf, tape, *place, w)).collect();
                            let mut own: Vec<State> =
                                step.states.iter().map(|s| std::mem::take(&mut states[s.0 as usize])).collect();
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
                            for (s, state) in step.states.iter().zip(own) {
                                states[s.0 as usize] = state;
                            }
                        }
                        for (&o, out) in step.outs.iter().zip(outs) {
                            if let Some(f) = &mut observer {
                                f(&step.label, &out, width(o));
                            }
                            memory.buffers[at(o)] = out;
                        }
                    }
                }
            }
        }
        true
    }

    /// The logits of the last walk: (wanted, n_vocab).
    pub fn logits(&self) -> &[f32] {
        let slot = self.tape.logits.expect("a finished tape has logits");
        let buffer = self.plan.layouts[Place::Cpu.index()].buffer[slot.0 as usize];
        &self.memory[Place::Cpu.index()].buffers[buffer.expect("the plan brings the logits to the CPU") as usize]
    }
}

/// Fails if what the sequences remember needs more memory than there is: asking for it would end the program, at once
/// or in the middle of a long text.
fn check_room(
    gguf: &Gguf,
    states: &[StateSpec],
    (n_seq, n_ctx, n_batch): (usize, usize, usize),
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
