//! The tape: a model as a straight line of coarse steps over numbered values, recorded once from the file's header.
//!
//! A family function writes it through [`Builder`]; the plan places it; the walk runs it. There is no control flow in
//! a tape: what depends on data (the router's choice, which rows attention selects) happens inside an op.

mod builder;
mod gpu;
mod keys;
mod known_keys;
mod refusal;
mod state;

use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

pub use builder::{Builder, Layer, Settings, trunk_blocks};
pub use gpu::{GpuIo, GpuState, GpuValue, GpuWeight, Lists, MatrixRows, Scratch, code_bytes, quantize};
pub use known_keys::{Class, UnusedKey, classify};
pub use refusal::{Refusal, WrongCacheType};
pub use state::{SeqRows, State, StateKind, StateSpec};

use anyhow::Result;

use crate::cpu::Pool;
use crate::quant::Acts;
use crate::quant::QuantType;

/// A value of the tape: a matrix of f32 with one row per token. Small integers (expert numbers, selected rows) are kept
/// as exact floats, -1 meaning none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(pub u32);

/// Which rows of a batch a value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowSet {
    /// One per token.
    All,
    /// One per output row: a token whose logits are computed.
    Output,
    /// One per output row of which only the argmax is asked for: as many as [`RowSet::Output`], or none.
    Argmax,
    /// One per row that is no output row.
    Others,
    /// Of a prompt those that are at most so many tokens before one whose logits are computed, or before the last that is known
    /// to follow: what nobody will look at is left out. In other batches all.
    Last(usize),
}

/// The shape of a value, as far as it is known before anything runs.
#[derive(Clone, Copy, Debug)]
pub struct SlotInfo {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub rows: RowSet,
}

/// A weight's number in [`Tape::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId(pub u32);

/// A state's number in [`Tape::states`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateId(pub u32);

/// How a step reads a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// Rows in the file's own blocks, multiplied by a format's kernels or decoded row by row.
    Matrix,
    /// Rows in the file's own blocks, of which a token reads a few. They stay in the file's map, and count as no memory.
    Mapped,
    /// A small tensor, decoded to f32 when the model is opened (norms, biases, sinks, convolution taps).
    Vector,
    /// Integers, decoded when the model is opened and checked to be in `0..below` (a table of expert numbers).
    Ints {
        /// The bound.
        below: usize,
    },
}

/// A tensor of the file, as the tape uses it.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The tensor's name in the file.
    pub name: String,
    /// Its index in the file's directory.
    pub tensor: usize,
    /// (matrices, rows, columns); leading ones where the tensor has fewer dimensions.
    pub shape: [usize; 3],
    /// The format of its blocks; None for integers.
    pub ty: Option<&'static QuantType>,
    /// Bytes in the file.
    pub bytes: usize,
    /// How the steps read it.
    pub kind: WeightKind,
}

impl Weight {
    /// Number of weights.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The format of a matrix; None for what is decoded when the model is opened.
    pub fn matrix_type(&self) -> Option<&'static QuantType> {
        self.ty.filter(|_| self.kind == WeightKind::Matrix)
    }

    /// Whether it is a matrix of codes: a GPU multiplies it by activations in 8 bits.
    pub fn is_coded(&self) -> bool {
        self.matrix_type().is_some_and(|ty| ty.act.block() != 1)
    }

    /// The format's name, for reports.
    pub fn format(&self) -> &'static str {
        self.ty.map_or("I32", |ty| ty.name)
    }
}

/// Which of its experts a step multiplies by. An expert layer that runs at two places at once is two steps of the
/// tape, followed by the sum of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertShare {
    /// All.
    All,
    /// Those that are in the GPU's memory by the time it runs.
    OnGpu,
    /// The others.
    OnCpu,
}

/// Which part of a model a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Before the first layer: the rows of the tokens.
    Embedding,
    /// Attention, or what a layer has in its place to look at other tokens: projections, cache, recurrence.
    Attention,
    /// The choice of experts.
    Router,
    /// Experts that every token goes through.
    Shared,
    /// A feed-forward layer without experts.
    Dense,
    /// Experts that tokens are sent to.
    Experts,
    /// What joins the parts of a layer: norms, residual sums, mixes of streams.
    Mixing,
    /// After the last layer: the last norm and the logits.
    Head,
}

impl Role {
    /// Every role, in the order of reports.
    pub const ALL: [Role; 8] = [
        Role::Embedding,
        Role::Attention,
        Role::Router,
        Role::Shared,
        Role::Dense,
        Role::Experts,
        Role::Mixing,
        Role::Head,
    ];

    /// The name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Role::Embedding => "embedding",
            Role::Attention => "attention",
            Role::Router => "router",
            Role::Shared => "shared experts",
            Role::Dense => "dense layers",
            Role::Experts => "experts",
            Role::Mixing => "norms and mixing",
            Role::Head => "head",
        }
    }
}

/// One step: an op, what it reads, what it writes.
#[derive(Clone, Debug)]
pub struct Step {
    /// A GGUF-like name, unique in the tape, so that logs of two programs can be compared line by line.
    pub label: String,
    /// The layer it belongs to; None before the first layer and after the last.
    pub layer: Option<usize>,
    /// The part of the tape that it belongs to: 0 is the model, and each draft head after it is a part of its own.
    pub part: usize,
    /// The part of the model that it computes.
    pub role: Role,
    /// The operation.
    pub op: Arc<dyn Op>,
    /// Which of its experts it multiplies by; [`ExpertShare::All`] for ops without experts.
    pub share: ExpertShare,
    /// It is given the rows of [`RowSet::Last`] as its batch, where that is not all.
    pub last: Option<usize>,
    /// Values read.
    pub ins: Vec<Slot>,
    /// Values written; each slot is written by exactly one step.
    pub outs: Vec<Slot>,
    /// Weights read.
    pub weights: Vec<WeightId>,
    /// States read and written.
    pub states: Vec<StateId>,
}

impl Step {
    /// The tables that the GPU body reads: of the rows that the step is given.
    pub fn tables(&self) -> Vec<Table> {
        let Some(reach) = self.last else { return self.op.tables() };
        let of_last = |Table { key, row_bytes, fill }: Table| {
            let fill = move |batch: &Batch, to: &mut [u8]| match batch.first(reach) {
                0 => fill(batch, to),
                first => fill(&batch.rows_from(first), to),
            };
            Table { key: format!("{key}, last {reach}"), row_bytes, fill: Box::new(fill) }
        };
        self.op.tables().into_iter().map(of_last).collect()
    }
}

/// A model, recorded.
#[derive(Clone, Debug, Default)]
pub struct Tape {
    /// Every value.
    pub slots: Vec<SlotInfo>,
    /// Every tensor in use.
    pub weights: Vec<Weight>,
    /// The states of a sequence: caches and recurrent blocks.
    pub states: Vec<StateSpec>,
    /// The steps, in the order in which they run.
    pub steps: Vec<Step>,
    /// The value that holds the logits: (output rows, n_vocab).
    pub logits: Option<Slot>,
    /// The value that holds the argmax of each output row and its logit: (argmax rows, 2).
    pub argmax: Option<Slot>,
    /// The logits and the argmax of each draft head, which are those of parts 1, 2 ..
    pub heads: Vec<[Slot; 2]>,
    /// The rows that the model hands on to its draft heads, and a head to its next step; the states after it are the
    /// heads'. None where there are no heads.
    pub hidden: Option<StateId>,
    /// Whether the heads are a drafter that was taken in: it reads the model's caches, and has no rows of its own. Part 1 reads
    /// what the model handed on, part 2 what the step before did, both at the position of the token after the model's.
    pub is_drafter: bool,
    /// Why there are no draft heads, in words, where they were asked for.
    pub heads_off: Option<String>,
    /// Tensors that the family leaves alone, and why (in words).
    pub ignored: Vec<(String, &'static str)>,
    /// Metadata keys of the architecture that the tape does not depend on, and why.
    pub unused_keys: Vec<UnusedKey>,
    /// Whether prompts leave rows out that nobody will look at; see [`RowSet::Last`].
    pub spares_rows: bool,
    /// What the family takes as known where the file does not say, in words.
    pub notes: Vec<String>,
}

impl Tape {
    /// Width of a value.
    pub fn width(&self, slot: Slot) -> usize {
        self.slots[slot.0 as usize].width
    }

    /// The weights that stay in the file.
    pub fn mapped(&self) -> impl Iterator<Item = &Weight> {
        self.weights.iter().filter(|w| w.kind == WeightKind::Mapped)
    }

    /// The values that a step's GPU body multiplies as codes.
    pub fn code_inputs(&self, step: &Step) -> impl Iterator<Item = Slot> {
        let weights: Vec<&Weight> = step.weights.iter().map(|w| &self.weights[w.0 as usize]).collect();
        step.op.code_inputs(&weights).iter().map(|&i| step.ins[i])
    }

    /// The number of draft heads.
    pub fn n_heads(&self) -> usize {
        if self.is_drafter { 1 } else { self.heads.len() }
    }

    /// The number of parts: the model, and its draft heads. Steps of one part are adjacent, and no value is read in
    /// another part than its own: what a head reads of the model is in a state.
    pub fn parts(&self) -> usize {
        1 + self.heads.len()
    }

    /// The steps of a part.
    pub fn part_steps(&self, part: usize) -> Range<usize> {
        let before = |part: usize| self.steps.partition_point(|s| s.part < part);
        before(part)..before(part + 1)
    }

    /// The steps of the model, without those of its draft heads.
    pub fn model(&self) -> &[Step] {
        &self.steps[self.part_steps(0)]
    }

    /// The number of states that the model has without its draft heads: they are the first.
    pub fn model_states(&self) -> usize {
        self.hidden.map_or(self.states.len(), |s| s.0 as usize)
    }

    /// Bytes of weights that one decoded token reads, without draft heads.
    pub fn bytes_per_token(&self) -> usize {
        self.model().iter().map(|s| self.step_bytes(s)).sum()
    }

    /// Whether a step is for rows that are no output rows alone: where a single token is decoded there are none.
    pub fn is_of_others(&self, step: &Step) -> bool {
        step.ins.iter().chain(&step.outs).any(|x| self.slots[x.0 as usize].rows == RowSet::Others)
    }

    /// Bytes of weights that one decoded token reads in a step. Of a step that is split by expert the CPU's share
    /// counts, as if nothing were cached.
    pub fn step_bytes(&self, step: &Step) -> usize {
        if step.share == ExpertShare::OnGpu || self.is_of_others(step) {
            return 0;
        }
        let weights: Vec<&Weight> = step.weights.iter().map(|w| &self.weights[w.0 as usize]).collect();
        step.op.bytes_per_token(&weights)
    }

    /// The values that a walk of a part returns: the logits, and the argmax of each row.
    ///
    /// # Panics
    /// If the tape is not finished.
    pub fn results(&self, part: usize) -> [Slot; 2] {
        match part {
            0 => [self.logits, self.argmax].map(|x| x.expect("a finished tape has results")),
            head => self.heads[head - 1],
        }
    }

    /// Has the states keep what going back `tokens` tokens takes, after a walk that verified as many drafted ones.
    pub fn keep_trail(&mut self, tokens: usize) {
        self.states.iter_mut().for_each(|s| s.trail = tokens);
    }

    /// The number of layers, without draft heads.
    pub fn n_layers(&self) -> usize {
        self.model().iter().filter_map(|s| s.layer).max().map_or(0, |last| last + 1)
    }

    /// Size of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.width(self.results(0)[0])
    }
}

/// A row of a batch: a token of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The token.
    pub token: u32,
    /// The sequence it belongs to.
    pub seq: u32,
    /// Its position there, from 0.
    pub pos: u32,
}

/// The rows that one walk of the plan computes. Rows of one sequence are adjacent, in rising position.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The rows.
    pub rows: Vec<Row>,
    /// The output rows: indices of the rows whose logits are computed, rising.
    pub output_rows: Vec<u32>,
    /// Only the argmax of each output row is asked for; the logits stay where they are.
    pub argmax_only: bool,
    /// Every row is to come out, bit for bit, as if it were alone: on the CPU by row kernels only.
    pub deterministic_rows: bool,
    /// Up to 8 rows are to come out so on a GPU, too, where attention then reads keys again for each of them.
    pub alone: bool,
    /// Rows of one sequence verify drafted tokens: states keep what going back to any row of it takes.
    pub verifies: bool,
    /// The part of the tape that is walked: 0 is the model.
    pub part: usize,
    /// Of a part of one sequence's prompt: how many of its tokens will follow before anything else happens to the sequence.
    /// Rows may then be left out; None where all are needed.
    pub follow: Option<usize>,
    /// Of each output row only the logits of these tokens are wanted: on the CPU the others are minus infinity, and not
    /// computed. None: all of them.
    pub likely: Option<Likely>,
}

/// A part of the vocabulary: the first ids, and some further on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Likely {
    /// As many of the first.
    pub first: usize,
    /// The first of some more, which come after those, and how many.
    pub more: (usize, usize),
}

impl Likely {
    /// The two ranges of ids.
    pub fn ranges(self) -> [Range<usize>; 2] {
        [0..self.first, self.more.0..self.more.0 + self.more.1]
    }
}

impl Batch {
    /// Row `t` of a value that has `rows` of them: of all rows, or of the output rows.
    pub fn row(&self, rows: usize, t: usize) -> Row {
        self.rows[if rows == self.rows.len() { t } else { self.output_rows[t] as usize }]
    }

    /// Rows that a value of this row set has.
    pub fn count(&self, rows: RowSet) -> usize {
        match rows {
            RowSet::All => self.rows.len(),
            RowSet::Output => self.output_rows.len(),
            RowSet::Argmax => self.output_rows.len() * self.argmax_only as usize,
            RowSet::Others => self.rows.len() - self.output_rows.len(),
            RowSet::Last(reach) => self.rows.len() - self.first(reach),
        }
    }

    /// The first of the rows that values of [`RowSet::Last`] have, which end with the batch.
    pub fn first(&self, reach: usize) -> usize {
        let Some(follow) = self.follow else { return 0 };
        let last = (self.rows.len() + follow).saturating_sub(1);
        let before = self.output_rows.first().map_or(last, |&row| last.min(row as usize));
        before.saturating_sub(reach).min(self.rows.len())
    }

    /// The first row of values of this set that are the last of a batch, or all.
    pub fn first_of(&self, rows: RowSet) -> usize {
        if let RowSet::Last(reach) = rows { self.first(reach) } else { 0 }
    }

    /// How many rows of a value of this set come before the first that a step is given.
    pub fn skipped(&self, step: &Step, rows: RowSet) -> usize {
        step.last.map_or(0, |reach| self.first(reach) - self.first_of(rows))
    }

    /// The rows that a step is given as a batch, where those are not all.
    pub fn of_step(&self, step: &Step) -> Option<Batch> {
        step.last.map(|reach| self.first(reach)).filter(|first| *first > 0).map(|first| self.rows_from(first))
    }

    /// The rows from `first` on as a batch.
    pub fn rows_from(&self, first: usize) -> Batch {
        Batch {
            rows: self.rows[first..].to_vec(),
            output_rows: self.output_rows.iter().map(|row| row - first as u32).collect(),
            ..*self
        }
    }

    /// The numbers of the rows that a value of this row set has, rising.
    pub fn indices(&self, rows: RowSet) -> Vec<u32> {
        let all = 0..self.rows.len() as u32;
        match rows {
            RowSet::All => all.collect(),
            RowSet::Output | RowSet::Argmax => self.output_rows.clone(),
            RowSet::Others => all.filter(|i| self.output_rows.binary_search(i).is_err()).collect(),
            RowSet::Last(reach) => all.skip(self.first(reach)).collect(),
        }
    }
}

/// A weight as an op sees it while running.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// The blocks, for a matrix.
    pub data: &'a [u8],
    /// The decoded values, for a vector.
    pub values: &'a [f32],
    /// The decoded integers, for ints.
    pub ints: &'a [i32],
    /// (matrices, rows, columns).
    pub shape: [usize; 3],
    /// The format, for a matrix.
    pub ty: Option<&'static QuantType>,
    /// Where each matrix of a stack is in the GPU's memory, -1 for not there: those that are there are left out. Empty
    /// where the whole stack is multiplied by.
    pub slots: &'a [i32],
}

impl<'a> WeightView<'a> {
    /// The format of a matrix.
    pub fn format(&self) -> &'static QuantType {
        self.ty.expect("a matrix has a format")
    }

    /// Bytes of one row of a matrix.
    pub fn row_bytes(&self) -> usize {
        self.format().row_bytes(self.shape[2])
    }

    /// The blocks of matrix `i` of a stack.
    pub fn matrix(&self, i: usize) -> &'a [u8] {
        let bytes = self.row_bytes() * self.shape[1];
        &self.data[i * bytes..(i + 1) * bytes]
    }
}

/// Memory that steps share within a walk and keep between walks.
#[derive(Debug, Default)]
pub struct Work {
    /// Quantized activations of the current step.
    pub acts: Acts,
    /// Free use; contents mean nothing between steps.
    pub buffers: [Vec<f32>; 4],
    /// Rotation angles of this batch, by rope specification and number of rows, which are its last: `cos, sin` pairs, (rows, n_rot).
    pub angles: HashMap<(u64, usize), Vec<f32>>,
}

/// Finds the matrix of an expert, by the number of the stack among the step's.
pub type MatrixOf<'m> = dyn Fn(usize, u32) -> &'m [u8] + 'm;

/// Computes with some experts, whose matrices it finds.
pub type ExpertPass<'p> = dyn FnMut(&[u32], &MatrixOf<'_>) + 'p;

/// For a step whose experts are not all in memory: calls what it is given with some of those that the
/// batch chose at a time, until all had their turn.
pub struct ExpertPasses<'a>(pub &'a mut dyn FnMut(&mut ExpertPass<'_>));

impl Debug for ExpertPasses<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExpertPasses")
    }
}

/// Everything a CPU body may touch.
#[derive(Debug)]
pub struct CpuIo<'a> {
    /// The batch.
    pub batch: &'a Batch,
    /// Rows of the inputs (for an op whose inputs and outputs differ in rows, of the inputs).
    pub rows: usize,
    /// The inputs, (rows, width) each.
    pub ins: &'a [&'a [f32]],
    /// The outputs, (rows, width) each; old contents are garbage and must be overwritten whole.
    pub outs: Vec<&'a mut [f32]>,
    /// The weights, in the step's order.
    pub weights: &'a [WeightView<'a>],
    /// How a step gets its experts where they are not all in memory; the others have them in `weights`.
    pub passes: Option<ExpertPasses<'a>>,
    /// The states, in the step's order.
    pub states: &'a mut [State],
    /// Scratch memory.
    pub work: &'a mut Work,
    /// The threads.
    pub pool: &'a Pool,
}

/// How an op that may run on some of a batch's rows uses a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateUse {
    /// It stores a row for each that it is given, by position.
    Stores,
    /// It reads, for each row that it is given, the rows of the newest so many tokens, the row's own included; None: any.
    Reads(Option<usize>),
}

/// A table that a GPU body reads besides values: computed on the CPU for every batch and brought over with it.
pub struct Table {
    /// Two tables of one key are the same.
    pub key: String,
    /// Bytes for every row of the batch; at least one row's are there.
    pub row_bytes: usize,
    /// Fills the table of a batch.
    #[allow(clippy::type_complexity)]
    pub fill: Box<dyn Fn(&Batch, &mut [u8]) + Send + Sync>,
}

impl Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table({}, {} bytes)", self.key, self.row_bytes)
    }
}

/// A coarse operation: one kernel, or one pass over memory.
pub trait Op: Debug + Send + Sync {
    /// A short name for reports: `linear`, `attend`.
    fn name(&self) -> &'static str;

    /// Computes the outputs on the CPU.
    fn cpu(&self, io: &mut CpuIo<'_>);

    /// Starts the kernels that compute the outputs on a GPU.
    fn gpu(&self, io: &GpuIo<'_>) -> Result<()>;

    /// Why a GPU cannot do it, if so: a shape that its kernels are not made for.
    fn gpu_refuses(&self) -> Option<String> {
        None
    }

    /// The inputs that the GPU body multiplies as codes, by their number: see [`quantize`].
    fn code_inputs(&self, _weights: &[&Weight]) -> &'static [usize] {
        &[]
    }

    /// For a step whose first weight is a table that stays in the file: the rows that a batch will read, which are known before
    /// anything is computed.
    fn rows_ahead(&self, _batch: &Batch, _states: &[&State]) -> Vec<usize> {
        Vec::new()
    }

    /// The tables that the GPU body reads.
    fn tables(&self) -> Vec<Table> {
        Vec::new()
    }

    /// Whether each row of the outputs is computed from the same row of the inputs alone, so that the step may run on the
    /// output rows only. False for bodies that take token or position `t` of the batch for row `t`.
    fn by_row(&self) -> bool {
        true
    }

    /// For an op that stores each row by itself, whichever rows it is given: the same op for rows of this set. None for
    /// all others: an op that has a state is given all rows.
    fn of_rows(&self, _rows: RowSet) -> Option<Arc<dyn Op>> {
        None
    }

    /// For an op that may run on some of a batch's rows although it has states: how it uses state `i` of the step. None for all
    /// others: they are given all rows.
    fn state_use(&self, _i: usize) -> Option<StateUse> {
        None
    }

    /// Whether the work can be shared out by matrix of the first weight's stack, each place leaving out what the other
    /// has, so that the sum of both outputs is the result.
    fn splits_by_expert(&self) -> bool {
        false
    }

    /// Cached rows that it looks at for a token that has `seen` tokens in sight, its own included; 0 for all but attention.
    fn rows_seen(&self, _seen: usize) -> usize {
        0
    }

    /// Bytes of memory that the CPU body fills besides its outputs, of `width` columns, for `rows` rows, where that is much.
    fn cpu_scratch_bytes(&self, _rows: usize, _width: usize) -> usize {
        0
    }

    /// Of the bytes of its weights, how many one token reads: all of them, unless the op picks experts or rows.
    fn bytes_per_token(&self, weights: &[&Weight]) -> usize {
        weights.iter().map(|w| w.bytes).sum()
    }
}
