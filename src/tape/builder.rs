//! Records a tape: finds each weight in the file's directory, checks its shape, and pushes a step. The ops' own
//! builder methods (`b.norm`, `b.attend`, ...) stand in the ops' files.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail};

use super::{Op, RowSet, Slot, SlotInfo, StateId, StateKind, StateSpec, Step, Tape, Weight, WeightId, WeightKind};
use crate::gguf::{Gguf, Value};
use crate::quant::QuantType;

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
    gguf: &'a Gguf,
    arch: String,
    /// What the user chose.
    pub settings: Settings,
    tape: RefCell<Tape>,
    known: RefCell<HashMap<String, WeightId>>,
}

/// The names of one layer's tensors.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The layer's number, from 0.
    pub i: usize,
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
        Builder { gguf, arch: arch.into(), settings, tape: RefCell::default(), known: RefCell::default() }
    }

    // ---- metadata: keys are given without the architecture's prefix ----

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// Whether the key is there.
    pub fn has_key(&self, name: &str) -> bool {
        self.gguf.meta.get(&self.key(name)).is_some()
    }

    /// A required count.
    pub fn n(&self, name: &str) -> Result<usize> {
        self.gguf.meta.usize(&self.key(name))
    }

    /// A count, or a default where the key is absent.
    pub fn n_or(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.gguf.meta.opt_usize(&self.key(name))?.unwrap_or(default))
    }

    /// A required number.
    pub fn f(&self, name: &str) -> Result<f32> {
        self.gguf.meta.f32(&self.key(name))
    }

    /// A number, or a default where the key is absent.
    pub fn f_or(&self, name: &str, default: f32) -> Result<f32> {
        Ok(self.gguf.meta.opt_f32(&self.key(name))?.unwrap_or(default))
    }

    /// A flag, or a default where the key is absent.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.gguf.meta.opt_bool(&self.key(name))?.unwrap_or(default))
    }

    /// A word, if the key is there.
    pub fn opt_str(&self, name: &str) -> Result<Option<&str>> {
        self.gguf.meta.opt_str(&self.key(name))
    }

    /// A number for each of `n` layers: from an array with at least `n` entries, or one value for all.
    pub fn per_layer(&self, name: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let key = self.key(name);
        let values = match self.gguf.meta.get(&key) {
            None => return Ok(None),
            Some(Value::Arr(_)) => self.gguf.meta.f32s(&key)?,
            Some(_) => vec![self.gguf.meta.f32(&key)?; n],
        };
        if values.len() < n {
            bail!("{}: key {key} has {} entries, one for each of {n} layers expected", self.file(), values.len());
        }
        Ok(Some(values))
    }

    /// A flag for each of `n` layers.
    pub fn per_layer_flag(&self, name: &str, n: usize) -> Result<Option<Vec<bool>>> {
        let key = self.key(name);
        if self.gguf.meta.get(&key).is_none() {
            return Ok(None);
        }
        let values = self.gguf.meta.bools(&key)?;
        if values.len() < n {
            bail!("{}: key {key} has {} entries, one for each of {n} layers expected", self.file(), values.len());
        }
        Ok(Some(values))
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

    /// The layers that take part: `block_count`, less the multi-token-prediction blocks at the end, whose tensors are
    /// ignored.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        let all = self.n("block_count")?;
        let extra = self.n_or("nextn_predict_layers", 0)?;
        let n = all.checked_sub(extra).ok_or_else(|| {
            anyhow!("{}: {} is {extra} but there are only {all} blocks", self.file(), self.key("nextn_predict_layers"))
        })?;
        for i in n..all {
            self.ignore(&format!("blk.{i}."), "multi-token prediction is not used yet");
        }
        Ok((0..n).map(|i| Layer { i }).collect())
    }

    // ---- weights ----

    /// Whether the file has this tensor (full name).
    pub fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
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
        if trim(&t.shape) != trim(want) && !(kind == WeightKind::Matrix && self.reshapes(&t.shape, want)) {
            bail!("{}: tensor {name} has shape {:?}, {want:?} expected from the metadata", self.file(), t.shape);
        }
        let mut shape = [1; 3];
        for (s, w) in shape.iter_mut().rev().zip(want.iter().rev()) {
            *s = *w;
        }
        match kind {
            WeightKind::Ints { .. } if t.ty.quant().is_some() => {
                bail!("{}: tensor {name} is {}, integers expected", self.file(), t.ty.name())
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

    /// Some converters flatten a stack of matrices: (groups * rows, columns) for (groups, rows, columns).
    fn reshapes(&self, have: &[usize], want: &[usize]) -> bool {
        have.last() == want.last() && have.iter().product::<usize>() == want.iter().product::<usize>()
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

    /// What q . k is multiplied with: the key `attention.scale` where there is one, else 1 / sqrt(dim).
    pub fn scale(&self, dim: usize) -> Result<f32> {
        let scale = self.f_or("attention.scale", 0.0)?;
        Ok(if scale == 0.0 { 1.0 / (dim as f32).sqrt() } else { scale })
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
            op: Box::new(op),
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
        Ok(self.state(StateSpec { label, width, ty, kind: StateKind::Rows { every, window } }))
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

    /// The finished tape. Fails, naming them, if the file holds tensors that the family neither read nor ignored:
    /// a model with a part that is not understood is refused, never run without it.
    pub fn finish(self, logits: Slot) -> Result<Tape> {
        let mut tape = self.tape.into_inner();
        tape.logits = Some(logits);
        let known = self.known.into_inner();
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
        Ok(tape)
    }
}
