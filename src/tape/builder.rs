//! Records a tape: finds each weight in the file's directory, checks its shape, and pushes a step. The ops' own
//! builder methods (`b.norm`, `b.attend`, ...) stand in the ops' files.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};

use super::known_keys;
use super::{
    Half, Op, RowSet, Slot, SlotInfo, StateId, StateKind, StateSpec, Step, Tape, Weight, WeightId, WeightKind,
};
use crate::gguf::{Gguf, TensorType};
use crate::quant::QuantType;

/// Some converters flatten a stack of matrices: (groups * rows, columns) for (groups, rows, columns).
fn flattens(have: &[usize], want: &[usize]) -> bool {
    matches!((have, want), (&[n, cols], &[groups, rows, c]) if cols == c && groups.checked_mul(rows) == Some(n))
}

/// What the user chose that shapes a tape.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Tokens a sequence may have.
    pub n_ctx: usize,
    /// The format of cached keys.
    pub type_k: &'static QuantType,
    /// The format of cached values.
    pub type_v: &'static QuantType,
}

/// The tape being written, and the file it is written from.
#[derive(Debug)]
pub struct Builder<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) arch: String,
    /// What the user chose.
    pub settings: Settings,
    tape: RefCell<Tape>,
    known: RefCell<HashMap<String, WeightId>>,
    /// The metadata keys that were looked up, without the architecture's prefix.
    pub(super) read: RefCell<HashSet<String>>,
}

/// The names of one layer's tensors.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The layer's number, from 0.
    pub i: usize,
    /// Whether it is the last one.
    pub last: bool,
}

impl Layer {
    /// `blk.I.NAME`.
    pub fn w(&self, name: &str) -> String {
        format!("blk.{}.{name}", self.i)
    }
}

impl<'a> Builder<'a> {
    /// A builder over a file's header.
    pub fn new(gguf: &'a Gguf, arch: &str, settings: Settings) -> Builder<'a> {
        let (tape, known, read) = Default::default();
        Builder { gguf, arch: arch.into(), settings, tape, known, read }
    }

    /// The file, for messages.
    pub fn file(&self) -> String {
        self.gguf.path.display().to_string()
    }

    /// Tokens in the vocabulary: rows of the embedding.
    pub fn n_vocab(&self) -> Result<usize> {
        let t = self.gguf.tensor("token_embd.weight").context(self.missing("token_embd.weight"))?;
        Ok(t.shape[0])
    }

    /// The layers that take part: `block_count`, less the blocks at the end that predict further tokens
    /// (`nextn_predict_layers`) and are ignored.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        let all = self.n("block_count")?;
        if all > self.gguf.tensors.len() {
            let want = format!("no more blocks than the file's {} tensors", self.gguf.tensors.len());
            return Err(self.bad_key("block_count", all, want));
        }
        let extra = self.opt_n("nextn_predict_layers")?.unwrap_or(0);
        let Some(mut n) = all.checked_sub(extra).filter(|&n| n > 0) else {
            return Err(self.bad_key("nextn_predict_layers", extra, format!("fewer than the {all} blocks")));
        };
        let any = |prefix: &str| self.gguf.tensors.iter().any(|t| t.name.starts_with(prefix));
        // A block that predicts further tokens has tensors of that name. Some files state such blocks and come without
        // them, with block_count less by as many: there the last blocks are layers like the others.
        while n < all && any(&format!("blk.{n}.")) && !any(&format!("blk.{n}.nextn.")) {
            n += 1;
        }
        for i in n..all {
            self.ignore(&format!("blk.{i}."), "multi-token prediction is not used yet");
        }
        Ok((0..n).map(|i| Layer { i, last: i + 1 == n }).collect())
    }

    // ---- weights ----

    /// Whether the file has this tensor (full name).
    pub fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// Fails unless the file has this tensor (full name): where what reads it would do without.
    pub fn need(&self, name: &str) -> Result<()> {
        if self.has(name) { Ok(()) } else { bail!(self.missing(name)) }
    }

    /// Marks the tensors whose names start so as deliberately unused.
    pub fn ignore(&self, prefix: &str, why: &'static str) {
        self.tape.borrow_mut().ignored.push((prefix.into(), why));
    }

    fn missing(&self, name: &str) -> String {
        format!(
            "{}: tensor {name} is missing; a {} model needs it (is the file complete, and converted for this \
             architecture?)",
            self.file(),
            self.arch
        )
    }

    fn weight(&self, name: &str, kind: WeightKind, want: &[usize]) -> Result<WeightId> {
        let index = self.gguf.index(name).ok_or_else(|| anyhow!(self.missing(name)))?;
        let t = &self.gguf.tensors[index];
        // Leading ones carry no information: (1, n) and (n) are the same tensor.
        let trim = |s: &[usize]| s.iter().copied().skip_while(|&d| d == 1).collect::<Vec<_>>();
        if trim(&t.shape) != trim(want) && !(kind == WeightKind::Matrix && flattens(&t.shape, want)) {
            let (file, have, want) = (self.file(), &t.shape, &want[want.iter().take_while(|&&d| d == 1).count()..]);
            bail!(
                "{file}: tensor {name} has shape {have:?}, {want:?} expected from the metadata and the other tensors"
            );
        }
        let mut shape = [1; 3];
        for (s, w) in shape.iter_mut().rev().zip(want.iter().rev()) {
            *s = *w;
        }
        match kind {
            WeightKind::Ints { .. } if t.ty != TensorType::I32 => {
                bail!("{}: tensor {name} is {}, I32 expected", self.file(), t.ty.name())
            }
            WeightKind::Matrix | WeightKind::Vector if t.ty.quant().is_none() => {
                bail!("{}: tensor {name} is {}, a weight format expected", self.file(), t.ty.name())
            }
            _ => {}
        }
        if let Some(ty) = t.ty.quant().filter(|_| kind == WeightKind::Matrix) {
            let block = ty.act.block();
            if !shape[2].is_multiple_of(block) {
                bail!(
                    "{}: tensor {name} is {} with rows of {}, a multiple of {block} expected",
                    self.file(),
                    ty.name,
                    shape[2]
                );
            }
        }
        let mut known = self.known.borrow_mut();
        if let Some(&id) = known.get(name)
            && self.tape.borrow().weights[id.0 as usize].kind == kind
        {
            return Ok(id);
        }
        let mut tape = self.tape.borrow_mut();
        let id = WeightId(tape.weights.len() as u32);
        tape.weights.push(Weight {
            name: name.into(),
            tensor: index,
            shape,
            format: t.ty.name(),
            bytes: t.bytes,
            kind,
        });
        known.insert(name.into(), id);
        Ok(id)
    }

    /// A matrix (full name) of this shape: (rows, columns), or (matrices, rows, columns).
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<WeightId> {
        self.weight(name, WeightKind::Matrix, shape)
    }

    /// A small tensor (full name) of this shape, decoded to f32.
    pub fn vector(&self, name: &str, shape: &[usize]) -> Result<WeightId> {
        self.weight(name, WeightKind::Vector, shape)
    }

    /// A vector if the file has it.
    pub fn opt_vector(&self, name: &str, shape: &[usize]) -> Result<Option<WeightId>> {
        if self.has(name) { self.vector(name, shape).map(Some) } else { Ok(None) }
    }

    /// An integer table (full name) of `k` expert numbers for every token: (n_vocab, k), each below `n_expert`.
    pub fn expert_table(&self, name: &str, k: usize, n_expert: usize) -> Result<WeightId> {
        let id = self.weight(name, WeightKind::Ints { below: n_expert }, &[self.n_vocab()?, k])?;
        Ok(id)
    }

    // ---- steps ----

    /// Columns of a value.
    pub fn width(&self, x: Slot) -> usize {
        self.tape.borrow().width(x)
    }

    /// Rows of a value.
    pub fn rows(&self, x: Slot) -> RowSet {
        self.tape.borrow().slots[x.0 as usize].rows
    }

    /// Fails, naming the step, unless `x` has `want` columns.
    pub fn expect_width(&self, label: &str, x: Slot, want: usize) -> Result<()> {
        let have = self.width(x);
        if have != want {
            bail!("{}: step {label} takes {want} columns from the metadata but is given {have}", self.file());
        }
        Ok(())
    }

    /// Records a step with outputs of these widths, in the same rows as the first input.
    pub fn push(
        &self,
        label: impl Into<String>,
        op: impl Op + 'static,
        ins: &[Slot],
        outs: &[usize],
        weights: &[WeightId],
        states: &[StateId],
    ) -> Vec<Slot> {
        let rows = ins.first().map_or(RowSet::All, |&x| self.rows(x));
        self.push_rows(label, op, ins, outs, rows, weights, states)
    }

    /// Records a step whose outputs have the rows `rows`.
    pub fn push_rows(
        &self,
        label: impl Into<String>,
        op: impl Op + 'static,
        ins: &[Slot],
        outs: &[usize],
        rows: RowSet,
        weights: &[WeightId],
        states: &[StateId],
    ) -> Vec<Slot> {
        let mut tape = self.tape.borrow_mut();
        let outs: Vec<Slot> = outs
            .iter()
            .map(|&width| {
                tape.slots.push(SlotInfo { width, rows });
                Slot(tape.slots.len() as u32 - 1)
            })
            .collect();
        tape.steps.push(Step {
            label: label.into(),
            op: Arc::new(op),
            half: Half::Whole,
            ins: ins.to_vec(),
            outs: outs.clone(),
            weights: weights.to_vec(),
            states: states.to_vec(),
        });
        outs
    }

    /// A state of rows, one per `every` tokens, of which the newest `window` matter (None: all).
    pub fn rows_state(
        &self,
        label: String,
        width: usize,
        ty: &'static QuantType,
        every: usize,
        window: Option<usize>,
    ) -> Result<StateId> {
        if ty.kv.is_none() {
            bail!("{} cannot be a cache type; {} can", ty.name, crate::quant::cache_types());
        }
        if !width.is_multiple_of(ty.block) {
            bail!(
                "cache type {} holds rows of a multiple of {} values, but {label} is {width} wide; choose f16",
                ty.name,
                ty.block
            );
        }
        Ok(self.state(StateSpec { label, width, ty, kind: StateKind::Rows { every, window, behind: false } }))
    }

    /// The newest `n` rows of f32 from before the batch at hand.
    pub fn last_rows(&self, label: String, width: usize, n: usize) -> StateId {
        let kind = StateKind::Rows { every: 1, window: Some(n), behind: true };
        self.state(StateSpec { label, width, ty: crate::quant::TYPES[0], kind })
    }

    /// A recurrent state: one block of floats.
    pub fn fixed_state(&self, label: String, width: usize) -> StateId {
        let ty = crate::quant::TYPES[0]; // a recurrent state is f32: anything less collapses within a few tokens
        self.state(StateSpec { label, width, ty, kind: StateKind::Fixed })
    }

    fn state(&self, spec: StateSpec) -> StateId {
        let mut tape = self.tape.borrow_mut();
        tape.states.push(spec);
        StateId(tape.states.len() as u32 - 1)
    }

    /// The finished tape.
    ///
    /// # Errors
    /// If the file holds tensors that the family neither read nor ignored, or metadata keys that it did not read and
    /// that change what is computed, naming them: a model with a part that is not understood is refused, never run
    /// without it.
    pub fn finish(self, logits: Slot, likeliest: Slot) -> Result<Tape> {
        let mut tape = self.tape.into_inner();
        (tape.logits, tape.likeliest) = (Some(logits), Some(likeliest));
        let known = self.known.into_inner();
        let read = self.read.into_inner();
        // What 4-bit activations would be divided by on hardware that has them. Here they are not 4-bit.
        for t in self.gguf.tensors.iter().filter(|t| !known.contains_key(&t.name)) {
            if t.name.strip_suffix(".input_scale").is_some_and(|n| known.contains_key(&format!("{n}.weight"))) {
                tape.ignored.push((t.name.clone(), "activations are not quantized to 4 bits"));
            }
        }
        let left: Vec<&str> = self
            .gguf
            .tensors
            .iter()
            .map(|t| t.name.as_str())
            .filter(|n| !known.contains_key(*n) && !tape.ignored.iter().any(|(p, _)| n.starts_with(p)))
            .collect();
        if !left.is_empty() {
            let more = if left.len() > 4 { ", ..." } else { "" };
            bail!(
                "{}: {} tensors are not part of the {} model that this version knows ({}{more}); it would be computed \
                 wrongly without them, so it is refused",
                self.gguf.path.display(),
                left.len(),
                self.arch,
                left[..left.len().min(4)].join(", ")
            );
        }
        tape.unused_keys = known_keys::unused(self.gguf, &self.arch, &read)?;
        Ok(tape)
    }
}
