//! How much of a GPU's memory a plan takes, worked out from the tape without a device.

use anyhow::{Context, Result};

use super::{MAX_GPUS, Place, Plan, PlanStage, shared_states};
use crate::cuda::{Arena, CacheArg, Gpu, Grid, Ptr, count_launches, launch};
use crate::tape::{
    Batch, ExpertShare, GpuIo, GpuState, GpuValue, GpuWeight, Lists, Row, RowSet, Scratch, Slot, StateId, StateKind,
    StateSpec, Step, Tape, WeightId, WeightKind, quantize,
};

/// How much a model is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub n_seq: usize,
    /// Tokens of each.
    pub n_ctx: usize,
    /// Tokens of a batch.
    pub n_batch: usize,
    /// Tokens of a batch that have output rows, at most.
    pub n_output_rows: usize,
}

/// The step of addresses that everything in device memory begins at.
pub const ALIGN: usize = Arena::ALIGN;

/// Bytes of pinned host memory for which the driver takes a byte of the device's memory: page
/// tables, 8 bytes for 4 KB.
const PINNED_PER_BYTE: usize = 512;

/// Lists of int32 that begin the header of a batch: tokens, sequences, positions, output rows.
pub const LISTS: usize = 4;

/// Bytes that a plan takes on a device, by what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Weights that stay there.
    pub weights: usize,
    /// What the sequences remember.
    pub states: usize,
    /// Values between steps.
    pub values: usize,
    /// Memory inside steps.
    pub scratch: usize,
    /// The batch and its tables.
    pub header: usize,
    /// The cache of the most used experts.
    pub cache: usize,
    /// The ring through which experts stream while a prompt is read.
    pub ring: usize,
    /// The device's page tables of the host memory that experts are copied from, which the driver
    /// allocates: 8 bytes for every 4 KB that is pinned.
    pub page_tables: usize,
}

impl Footprint {
    /// Returns what must be free for it, in bytes: what is allocated, and what the driver takes for
    /// its page tables.
    pub fn needed(&self) -> usize {
        self.total() + self.page_tables
    }

    /// Returns the sum of what is allocated, in bytes.
    pub fn total(&self) -> usize {
        self.weights + self.states + self.values + self.scratch + self.header + self.cache + self.ring
    }

    /// Adds what another takes.
    pub fn add(&mut self, other: &Footprint) {
        self.weights += other.weights;
        self.states += other.states;
        self.values += other.values;
        self.scratch += other.scratch;
        self.header += other.header;
        self.cache += other.cache;
        self.ring += other.ring;
        self.page_tables += other.page_tables;
    }

    /// Describes it for reports: the parts with their megabytes.
    pub fn describe(&self) -> String {
        let parts = [
            (self.weights, "weights"),
            (self.states, "context"),
            (self.values + self.scratch + self.header, "working memory"),
            (self.cache, "cached experts"),
            (self.ring, "streamed experts"),
        ];
        let part = |(bytes, name): &(usize, &str)| format!("{name} {:.1}", *bytes as f64 / 1e6);
        parts.iter().filter(|p| p.0 > 0).map(part).collect::<Vec<_>>().join(", ")
    }

    /// Returns what a plan takes on a GPU, its `place`, when it is opened.
    pub fn of(tape: &Tape, plan: &Plan, needs: &Needs, shape: Shape, place: Place) -> Footprint {
        let Shape { n_seq, n_ctx, n_batch, .. } = shape;
        let mut sum = Footprint::default();
        let mut seen = vec![false; tape.weights.len()];
        let mut states = vec![false; tape.states.len()];
        let mut tables: Vec<&str> = Vec::new();
        let lanes: Vec<usize> = lane_rows(tape, n_batch).collect();
        let header = |bytes: usize| lanes.iter().map(|rows| (rows * bytes).next_multiple_of(ALIGN)).sum::<usize>();
        sum.header = header(LISTS * 4);
        for (i, step) in tape.steps.iter().enumerate().filter(|(i, _)| plan.places[*i] == place) {
            for w in step.weights.iter().map(|w| w.0 as usize) {
                if !streams_through(tape, step, w) && !std::mem::replace(&mut seen[w], true) {
                    sum.weights += weight_bytes(tape, w).next_multiple_of(ALIGN);
                }
            }
            for s in &step.states {
                if !std::mem::replace(&mut states[s.0 as usize], true) {
                    sum.states += n_seq * tape.states[s.0 as usize].bytes(n_ctx, n_batch).next_multiple_of(ALIGN);
                }
            }
            for (key, row_bytes) in &needs.tables[i] {
                if !tables.contains(&key.as_str()) {
                    tables.push(key);
                    sum.header += header(*row_bytes);
                }
            }
            if step.share == ExpertShare::OnGpu {
                sum.header += lanes.len() * (experts_of(tape, step) * 4).next_multiple_of(ALIGN);
                sum.cache += stacks(tape, step)
                    .map(|(_, b)| (plan.cache(place).slots * b).next_multiple_of(ALIGN))
                    .sum::<usize>();
                sum.ring = sum.ring.max(2 * ring_part_bytes(tape, step, plan.cache(place).ring));
                sum.page_tables += experts_of(tape, step) * expert_bytes(tape, step) / PINNED_PER_BYTE;
            }
            sum.scratch = sum.scratch.max(needs.scratch[i]);
        }
        let layout = &plan.layouts[place.index()];
        sum.values = layout.bytes(&shape).chain(layout.code_bytes(&shape)).map(|b| b.next_multiple_of(ALIGN)).sum();
        sum.scratch = sum.scratch.next_multiple_of(ALIGN);
        sum
    }
}

/// The rows that each part of a batch has at most: the whole batch, or its first half; and where experts are at two
/// places, a second half.
pub fn lane_rows(tape: &Tape, n_batch: usize) -> impl Iterator<Item = usize> {
    let split = tape.steps.iter().any(|step| step.share == ExpertShare::OnGpu);
    [n_batch].into_iter().chain(split.then_some(n_batch / 2))
}

/// What each step needs on a GPU whatever the plan.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Scratch memory, in bytes.
    pub scratch: Vec<usize>,
    /// Tables: key and bytes for each row.
    pub tables: Vec<Vec<(String, usize)>>,
    /// Why a step cannot run there, if so.
    pub refuses: Vec<Option<String>>,
    /// What it starts there.
    pub starts: Vec<GpuStarts>,
}

/// What the GPU body of a step starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuStarts {
    /// Kernels for a single row, without those that joined launches do with the step before.
    pub single: usize,
    /// Kernels for the largest batch, likewise.
    pub batch: usize,
    /// Bytes of scratch memory that it fills for the largest batch.
    pub scratch_bytes: usize,
}

impl Needs {
    /// Asks every step's GPU body, which starts nothing where no device is.
    ///
    /// # Errors
    /// If a GPU body cannot run a step of this shape.
    pub fn of(tape: &Tape, shape: Shape) -> Result<Needs> {
        let mut scratch = vec![0; tape.steps.len()];
        let mut starts = vec![GpuStarts::default(); tape.steps.len()];
        let own: Vec<Option<String>> = tape.steps.iter().map(|s| refuses(tape, s)).collect();
        // What one step cannot do there keeps all away that share a state with it.
        let groups = shared_states(tape);
        let refusing = |group: usize| (0..own.len()).find(|&i| groups[i] == Some(group) && own[i].is_some());
        let refuses: Vec<Option<String>> =
            groups.iter().enumerate().map(|(i, g)| own[g.and_then(refusing).unwrap_or(i)].clone()).collect();
        let mut coded = vec![false; tape.slots.len()];
        tape.steps.iter().flat_map(|s| tape.code_inputs(s)).for_each(|x| coded[x.0 as usize] = true);
        // A single row, the fewest that tensor cores take, and all: each takes other kernels.
        for n in [1, shape.n_batch.min(17), shape.n_batch] {
            let steps = tape.steps.iter().enumerate().filter(|(i, _)| refuses[*i].is_none());
            let starts_of = steps.map(|(i, step)| {
                let batch = batch_of(n, &shape, tape.is_of_others(step));
                (i, start_step(tape, step, &coded, (&batch, &shape), None, false))
            });
            for ((i, used), launches) in count_launches(starts_of) {
                let used = used.with_context(|| format!("step {}", tape.steps[i].label))?;
                scratch[i] = scratch[i].max(used);
                let single = if n == 1 { launches } else { starts[i].single };
                starts[i] = GpuStarts { single, batch: launches, scratch_bytes: used }; // the last is the largest
            }
        }
        let tables = |s: &Step| s.tables().into_iter().map(|t| (t.key, t.row_bytes)).collect();
        Ok(Needs { scratch, tables: tape.steps.iter().map(tables).collect(), refuses, starts })
    }
}

/// A batch of `n` tokens of one sequence, with as many output rows as there can be; with none for a step of the others.
fn batch_of(n: usize, shape: &Shape, of_others: bool) -> Batch {
    let rows = (0..n as u32).map(|pos| Row { token: 0, seq: 0, pos }).collect();
    let outputs = if of_others { 0 } else { n.min(shape.n_output_rows) as u32 };
    let output_rows = (0..outputs).collect();
    Batch { rows, output_rows, argmax_only: true, ..Batch::default() }
}

/// Loads the kernels that a plan's steps start, for one token, few and many: the driver compiles
/// them now, and what their code takes is no longer free. Nothing is started.
///
/// # Errors
/// If the driver does not take a kernel.
pub fn load_kernels((gpu, place): (&Gpu, Place), tape: &Tape, plan: &Plan, shape: Shape) -> Result<()> {
    // Up to four rows share a weight, from 16 on tensor cores multiply.
    let mut counts = [1, 2, 3, 4, 8, 17, shape.n_batch].map(|n| n.min(shape.n_batch)).to_vec();
    counts.dedup();
    let word = Ptr::default();
    gpu.load_kernels(|| {
        launch::bring(Some(gpu), Grid::each(1), word, word, 1, word, word, 0, word, word, 0)?; // how a batch comes over
        let coded = &plan.layouts[place.index()].coded;
        let all = |n: usize| {
            let mut here = tape.steps.iter().zip(&plan.places).filter(|(_, p)| **p == place).map(|(s, _)| s);
            here.try_for_each(|step| {
                let batch = batch_of(n, &shape, tape.is_of_others(step));
                let adds = if step.share == ExpertShare::OnGpu { &[false, true][..] } else { &[false] };
                adds.iter().try_for_each(|add| {
                    let loaded = start_step(tape, step, coded, (&batch, &shape), Some(gpu), *add);
                    loaded.map(drop).with_context(|| format!("step {}", step.label))
                })
            })
        };
        for n in counts {
            all(n)?;
            gpu.joined(|| all(n))?; // others where launches follow each other
        }
        Ok(())
    })
}

/// Starts a step and the codes of what it makes, and returns the scratch memory it takes in bytes. `coded`: the slots that
/// have codes. `gpu`, where there is one, only looks kernels up.
fn start_step(
    tape: &Tape,
    step: &Step,
    coded: &[bool],
    (batch, shape): (&Batch, &Shape),
    gpu: Option<&Gpu>,
    add: bool,
) -> Result<usize> {
    let rows = |x: &Slot| batch.count(tape.slots[x.0 as usize].rows);
    // All values and weights have addresses of their own, by which the launches that can be joined are found.
    let ptr = |x: &Slot| Ptr((1 << 62) + (u64::from(x.0) << 30));
    let value = |x: &Slot| GpuValue { ptr: ptr(x), rows: rows(x), width: tape.width(*x) };
    let codes = |x: &Slot| if coded[x.0 as usize] { ptr(x).at(1 << 29) } else { Ptr::default() };
    // Of a value that is read from some row on the codes are made again.
    let has_codes = step.last.is_none() || batch.rows.len() == 1;
    let read_codes = |x: &Slot| if has_codes { codes(x) } else { Ptr::default() };
    let weight = |id: &WeightId| {
        let (w, ptr) = (&tape.weights[id.0 as usize], Ptr((1 << 61) + (u64::from(id.0) << 30)));
        GpuWeight { ptr, shape: w.shape, ty: w.matrix_type(), slots: Ptr::default() }
    };
    let state = |s: &StateId| state_of(&tape.states[s.0 as usize], Ptr::default(), shape.n_ctx, shape.n_batch);
    let tables = vec![Ptr::default(); step.op.tables().len()];
    let io = GpuIo {
        gpu,
        batch,
        lists: Lists::default(),
        tables: &tables,
        rows: step.ins.first().map_or(batch.rows.len(), rows),
        ins: &step.ins.iter().map(value).collect::<Vec<_>>(),
        codes: &step.ins.iter().map(read_codes).collect::<Vec<_>>(),
        outs: &step.outs.iter().map(value).collect::<Vec<_>>(),
        weights: &step.weights.iter().map(weight).collect::<Vec<_>>(),
        states: &step.states.iter().map(state).collect::<Vec<_>>(),
        add,
        scratch: Scratch::counted(),
    };
    step.op.gpu(&io)?;
    let mut made = step.outs.iter().filter(|x| coded[x.0 as usize]);
    made.try_for_each(|x| quantize(gpu, value(x), codes(x)))?;
    Ok(io.scratch.used())
}

/// Bytes of the CPU's memory that a walk of the largest batch takes: the values between its steps, the largest memory
/// inside one, and what crosses to and from a GPU with the ring's staging memory.
pub fn host_bytes(tape: &Tape, plan: &Plan, shape: &Shape) -> usize {
    let bytes = |x: Slot, at: Place| plan.layouts[at.index()].bytes(shape).nth(plan.buffer(x, at) as usize);
    let mut staging: Vec<(Place, u32)> = Vec::new(); // values that share a buffer share their staging memory
    let (mut crossing, mut rings) = (0, [0; MAX_GPUS]);
    for stage in &plan.stages {
        if let PlanStage::Copy(x, from, to) = *stage
            && from.is_gpu() != to.is_gpu()
            && !staging.contains(&(to, plan.buffer(x, to)))
        {
            staging.push((to, plan.buffer(x, to)));
            crossing += bytes(x, to).unwrap_or(0);
        }
    }
    let mut inside = 0;
    for (step, place) in tape.steps.iter().zip(&plan.places) {
        match place {
            Place::Gpu(n) if step.share == ExpertShare::OnGpu => {
                let ring = &mut rings[*n as usize];
                *ring = (*ring).max(2 * ring_part_bytes(tape, step, plan.cache(*place).ring));
            }
            Place::Gpu(_) => {}
            Place::Cpu | Place::Twin => {
                let Some(out) = step.outs.first().map(|x| tape.slots[x.0 as usize]) else { continue };
                let of_all = matches!(out.rows, RowSet::All | RowSet::Others | RowSet::Last(_));
                let rows = if of_all { shape.n_batch } else { shape.n_output_rows };
                inside = inside.max(step.op.cpu_scratch_bytes(rows, out.width));
            }
        }
    }
    plan.buffer_bytes(Place::Cpu, shape) + inside + crossing + rings.iter().sum::<usize>()
}

fn refuses(tape: &Tape, step: &Step) -> Option<String> {
    for w in step.weights.iter().map(|w| &tape.weights[w.0 as usize]) {
        if let Some(ty) = w.matrix_type().filter(|ty| crate::cuda::module_of(ty.name).is_none()) {
            return Some(format!("there are no kernels for {}", ty.name));
        }
    }
    for s in step.states.iter().map(|s| &tape.states[s.0 as usize]) {
        if !GpuState::takes(&s.kind, s.ty) {
            return Some(format!("there are no kernels for a cache of {}", s.ty.name));
        }
    }
    step.op.gpu_refuses()
}

/// Whether a weight of a step is a stack of which a GPU holds a part at a time.
pub fn streams_through(tape: &Tape, step: &Step, weight: usize) -> bool {
    step.share == ExpertShare::OnGpu && tape.weights[weight].kind == WeightKind::Matrix
}

/// Bytes of a weight as a GPU holds it.
pub fn weight_bytes(tape: &Tape, weight: usize) -> usize {
    let w = &tape.weights[weight];
    match w.kind {
        WeightKind::Mapped => 0,
        WeightKind::Matrix => w.bytes,
        WeightKind::Vector | WeightKind::Ints { .. } => w.count() * 4,
    }
}

/// The stacks of an expert step: the weight's number and the bytes of one expert's matrix.
pub fn stacks<'a>(tape: &'a Tape, step: &'a Step) -> impl Iterator<Item = (usize, usize)> + 'a {
    let all = step.weights.iter().map(|w| (w.0 as usize, &tape.weights[w.0 as usize]));
    all.filter(|(_, w)| w.kind == WeightKind::Matrix).map(|(i, w)| (i, w.bytes / w.shape[0]))
}

/// Experts of an expert step.
pub fn experts_of(tape: &Tape, step: &Step) -> usize {
    tape.weights[step.weights[0].0 as usize].shape[0]
}

/// Bytes of one expert of a step, all stacks.
pub fn expert_bytes(tape: &Tape, step: &Step) -> usize {
    stacks(tape, step).map(|(_, bytes)| bytes).sum()
}

/// Bytes of one of the ring's two parts: the place of each expert (int32), then `experts` experts, stack after stack.
pub fn ring_part_bytes(tape: &Tape, step: &Step, experts: usize) -> usize {
    if experts == 0 {
        return 0;
    }
    let table = (experts_of(tape, step) * 4).next_multiple_of(ALIGN);
    table + stacks(tape, step).map(|(_, b)| (experts * b).next_multiple_of(ALIGN)).sum::<usize>()
}

/// A state as kernels see it, at an address.
pub fn state_of(spec: &StateSpec, at: Ptr, n_ctx: usize, n_batch: usize) -> GpuState {
    let cache = CacheArg {
        rows: at.0,
        row_bytes: spec.ty.row_bytes(spec.width) as u64,
        seq_bytes: spec.bytes(n_ctx, n_batch).next_multiple_of(ALIGN) as u64,
        capacity: i32::try_from(spec.capacity(n_ctx, n_batch)).unwrap_or(i32::MAX),
        ty: GpuState::code(spec.ty).unwrap_or_default(),
    };
    GpuState { cache, width: spec.width, fixed: spec.kind == StateKind::Fixed }
}
