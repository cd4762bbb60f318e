//! Records a tape: finds each weight in the file's directory, checks its shape, and pushes a step. The ops' own
//! builder methods (`b.norm`, `b.attend`, ...) are in the ops' files.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};

use super::known_keys;
use super::{
    ExpertShare, Op, Refusal, Role, RowSet, Slot, SlotInfo, StateId, StateKind, StateSpec, Step, Tape, Weight,
    WeightId, WeightKind, WrongCacheType,
};
use crate::gguf::{Gguf, TensorType};
use crate::quant::QuantType;

/// Some converters flatten a stack of matrices: (groups * rows, columns) for (groups, rows,
/// columns). And a file may have stacks of stacks, which are one stack here: (taps, heads, rows,
/// columns) for (taps * heads, rows, columns).
fn flattens(have: &[usize], want: &[usize]) -> bool {
    match (have, want) {
        (&[n, cols], &[groups, rows, c]) => cols == c && groups.checked_mul(rows) == Some(n),
        (&[taps, heads, r, c], &[n, rows, cols]) => (r, c) == (rows, cols) && taps.checked_mul(heads) == Some(n),
        _ => false,
    }
}

/// Of `all` blocks of a file those that are layers, where it states that the last `extra` predict
/// further tokens: `extra` is less than `all`. Such a block has `nextn` tensors. Some files state
/// such blocks and come without them, with `all` less by as many: there the last blocks are layers
/// like the others.
pub fn trunk_blocks(gguf: &Gguf, all: usize, extra: usize) -> usize {
    let any = |prefix: &str| gguf.tensors.iter().any(|t| t.name.starts_with(prefix));
    let is_layer = |n: &usize| any(&format!("blk.{n}.")) && !any(&format!("blk.{n}.nextn."));
    (all - extra..all).find(|n| !is_layer(n)).unwrap_or(all)
}

/// The user's settings that shape a tape.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Tokens a sequence may have.
    pub n_ctx: usize,
    /// The format of cached keys.
    pub type_k: &'static QuantType,
    /// The format of cached values.
    pub type_v: &'static QuantType,
}

/// The state that all scopes of one builder share.
#[derive(Debug)]
pub(super) struct Recorder<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) arch: String,
    settings: Settings,
    tape: RefCell<Tape>,
    known: RefCell<HashMap<String, WeightId>>,
    /// How often each label was given.
    labels: RefCell<HashMap<String, usize>>,
    /// Of each value the name that its maker goes by: a weight's, or that of the value it was made of.
    origins: RefCell<Vec<String>>,
    /// The metadata keys that were looked up, without the architecture's prefix.
    pub(super) read: RefCell<HashSet<String>>,
}

/// Writes a tape from a file's header. A builder of a layer ([`Layer::scope`]) finds weights by their names in the
/// layer, and the layer's own value where a metadata key lists one for each.
#[derive(Clone, Debug)]
pub struct Builder<'a> {
    pub(super) rec: Rc<Recorder<'a>>,
    pub(super) layer: Option<usize>,
    role: Option<Role>,
}

/// A layer of a model.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// The layer's number, from 0.
    pub i: usize,
}

impl Layer {
    /// A builder of this layer: `attn_q` means `blk.I.attn_q`.
    pub fn scope<'a>(&self, b: &Builder<'a>) -> Builder<'a> {
        Builder { rec: b.rec.clone(), layer: Some(self.i), role: None }
    }
}

impl<'a> Builder<'a> {
    /// A builder over a file's header.
    pub fn new(gguf: &'a Gguf, arch: &str, settings: Settings) -> Builder<'a> {
        let rec = Recorder {
            gguf,
            arch: arch.into(),
            settings,
            tape: RefCell::default(),
            known: RefCell::default(),
            labels: RefCell::default(),
            origins: RefCell::default(),
            read: RefCell::default(),
        };
        Builder { rec: Rc::new(rec), layer: None, role: None }
    }

    /// The same builder for steps of one part of the model, for those whose op does not say which part it is.
    pub fn role(&self, role: Role) -> Builder<'a> {
        Builder { role: Some(role), ..self.clone() }
    }

    /// The builder of the whole model: names mean the file's own.
    pub fn root(&self) -> Builder<'a> {
        Builder { layer: None, ..self.clone() }
    }

    /// Returns the user's settings.
    pub fn settings(&self) -> &Settings {
        &self.rec.settings
    }

    /// The layer that this builder writes.
    ///
    /// # Panics
    /// If it is no layer's builder.
    pub fn layer(&self) -> usize {
        self.layer.expect("a layer's builder")
    }

    /// The file, for messages.
    pub fn file(&self) -> String {
        self.rec.gguf.path.display().to_string()
    }

    /// Tokens in the vocabulary: rows of the embedding.
    ///
    /// # Errors
    /// If the file has no embedding.
    pub fn n_vocab(&self) -> Result<usize> {
        let t = self.rec.gguf.tensor("token_embd.weight").context(self.missing("token_embd.weight"))?;
        Ok(t.shape[0])
    }

    /// The layers that take part: `block_count`, less the blocks at the end that predict further tokens
    /// (`nextn_predict_layers`) and are ignored.
    ///
    /// # Errors
    /// If the keys do not fit each other or the file.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        let gguf = self.rec.gguf;
        let all = self.count("block_count")?;
        if all > gguf.tensors.len() {
            let want = format!("no more blocks than the file's {} tensors", gguf.tensors.len());
            return Err(self.bad_key("block_count", all, want));
        }
        let extra = self.count_or_zero("nextn_predict_layers")?;
        if extra >= all {
            return Err(self.bad_key("nextn_predict_layers", extra, format!("fewer than the {all} blocks")));
        }
        let n = trunk_blocks(gguf, all, extra);
        for i in n..all {
            self.ignore(&format!("blk.{i}."), "multi-token prediction is not used yet");
        }
        Ok((0..n).map(|i| Layer { i }).collect())
    }

    // ---- weights, by their names in this builder's layer ----

    /// The name in the file: `blk.I.NAME` in a layer, else `NAME`.
    fn full(&self, name: &str) -> String {
        match self.layer {
            Some(i) => format!("blk.{i}.{name}"),
            None => name.into(),
        }
    }

    /// The shape of a tensor, (matrices,) rows, columns, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.rec.gguf.tensor(&self.full(name)).map(|t| t.shape.as_slice())
    }

    /// Whether the file has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Fails unless the file has this tensor, where what reads it would do without.
    ///
    /// # Errors
    /// If the file does not have it.
    pub fn need(&self, name: &str) -> Result<()> {
        if self.has(name) { Ok(()) } else { bail!(self.missing(&self.full(name))) }
    }

    /// Marks the tensors whose names start so as deliberately unused.
    pub fn ignore(&self, prefix: &str, why: &'static str) {
        self.rec.tape.borrow_mut().ignored.push((self.full(prefix), why));
    }

    fn missing(&self, name: &str) -> String {
        format!(
            "{}: tensor {name} is missing; a {} model needs it (is the file complete, and converted for this \
             architecture?)",
            self.file(),
            self.rec.arch
        )
    }

    fn weight(&self, name: &str, kind: WeightKind, want: &[usize]) -> Result<WeightId> {
        let name = &self.full(name);
        let index = self.rec.gguf.index(name).ok_or_else(|| anyhow!(self.missing(name)))?;
        let t = &self.rec.gguf.tensors[index];
        // Leading ones carry no information: (1, n) and (n) are the same tensor. Nor do others in a
        // small tensor.
        let trim = |s: &[usize]| match kind {
            WeightKind::Vector => s.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>(),
            _ => s.iter().copied().skip_while(|&d| d == 1).collect(),
        };
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
            WeightKind::Matrix | WeightKind::Mapped | WeightKind::Vector if t.ty.quant().is_none() => {
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
        let mut known = self.rec.known.borrow_mut();
        if let Some(&id) = known.get(name)
            && self.rec.tape.borrow().weights[id.0 as usize].kind == kind
        {
            return Ok(id);
        }
        let mut tape = self.rec.tape.borrow_mut();
        let id = WeightId(tape.weights.len() as u32);
        tape.weights.push(Weight { name: name.into(), tensor: index, shape, ty: t.ty.quant(), bytes: t.bytes, kind });
        known.insert(name.into(), id);
        Ok(id)
    }

    /// A matrix of this shape: (rows, columns), or (matrices, rows, columns).
    ///
    /// # Errors
    /// If the file does not have it, or in another shape or kind.
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<WeightId> {
        self.weight(name, WeightKind::Matrix, shape)
    }

    /// A matrix (rows, columns) that stays in the file.
    ///
    /// # Errors
    /// If the file does not have it, or in another shape or kind.
    pub fn mapped(&self, name: &str, shape: &[usize]) -> Result<WeightId> {
        self.weight(name, WeightKind::Mapped, shape)
    }

    /// A small tensor of this shape, decoded to f32.
    ///
    /// # Errors
    /// If the file does not have it, or in another shape or kind.
    pub fn vector(&self, name: &str, shape: &[usize]) -> Result<WeightId> {
        self.weight(name, WeightKind::Vector, shape)
    }

    /// A vector if the file has it.
    ///
    /// # Errors
    /// If the file has it in another shape or kind.
    pub fn opt_vector(&self, name: &str, shape: &[usize]) -> Result<Option<WeightId>> {
        if self.has(name) { self.vector(name, shape).map(Some) } else { Ok(None) }
    }

    /// The values of a small tensor of this shape, for what has to be known while the tape is written.
    ///
    /// # Errors
    /// If the file does not have it, or in another shape or kind.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let id = self.vector(name, shape)?;
        let tape = self.rec.tape.borrow();
        let w = &tape.weights[id.0 as usize];
        let mut values = vec![0.0; w.count()];
        let ty = w.ty.expect("a vector has a format");
        (ty.dequant)(self.rec.gguf.data(&self.rec.gguf.tensors[w.tensor]), &mut values);
        Ok(values)
    }

    /// An integer table of `k` expert numbers for every token: (n_vocab, k), each below `n_expert`.
    ///
    /// # Errors
    /// If the file does not have it, or in another shape or kind.
    pub fn expert_table(&self, name: &str, k: usize, n_expert: usize) -> Result<WeightId> {
        self.weight(name, WeightKind::Ints { below: n_expert }, &[self.n_vocab()?, k])
    }

    // ---- steps ----

    /// Columns of a value.
    pub fn width(&self, x: Slot) -> usize {
        self.rec.tape.borrow().width(x)
    }

    /// Fails, naming the step, unless `x` has `want` columns.
    ///
    /// # Errors
    /// If it has others.
    pub fn expect_width(&self, step: &str, x: Slot, want: usize) -> Result<()> {
        let have = self.width(x);
        if have != want {
            let step = self.full(step);
            bail!("{}: step {step} takes {want} columns from the metadata but is given {have}", self.file());
        }
        Ok(())
    }

    /// Records a step with outputs of these widths, named after the weight that it is about.
    pub fn push_named(
        &self,
        name: &str,
        op: impl Op + 'static,
        ins: &[Slot],
        outs: &[usize],
        weights: &[WeightId],
        states: &[StateId],
    ) -> Vec<Slot> {
        let name = self.full(name);
        self.record(name.clone(), name, op, ins, outs, weights, states)
    }

    /// Records a step with outputs of these widths, named after what made the value `of`, as far as that belongs to the
    /// same layer, and the op.
    pub fn push_after(
        &self,
        of: Slot,
        op: impl Op + 'static,
        ins: &[Slot],
        outs: &[usize],
        weights: &[WeightId],
        states: &[StateId],
    ) -> Vec<Slot> {
        let origin = self.rec.origins.borrow()[of.0 as usize].clone();
        let scope = self.full("");
        let origin = if origin.starts_with(&scope) { origin } else { scope.trim_end_matches('.').into() };
        let label = format!("{origin}.{}", op.name()).trim_start_matches('.').to_owned();
        self.record(label, origin, op, ins, outs, weights, states)
    }

    /// Records a step that is named after its first input; see [`Builder::push_after`].
    pub fn push(&self, op: impl Op + 'static, ins: &[Slot], outs: &[usize], weights: &[WeightId]) -> Vec<Slot> {
        self.push_after(ins[0], op, ins, outs, weights, &[])
    }

    fn record(
        &self,
        label: String,
        origin: String,
        op: impl Op + 'static,
        ins: &[Slot],
        outs: &[usize],
        weights: &[WeightId],
        states: &[StateId],
    ) -> Vec<Slot> {
        let mut tape = self.rec.tape.borrow_mut();
        let mut origins = self.rec.origins.borrow_mut();
        let slot = |&width: &usize| {
            tape.slots.push(SlotInfo { width, rows: RowSet::All });
            origins.push(origin.clone());
            Slot(tape.slots.len() as u32 - 1)
        };
        let outs: Vec<Slot> = outs.iter().map(slot).collect();
        let role = self.role.unwrap_or_else(|| match self.layer {
            Some(_) => Role::Mixing,
            None if tape.steps.iter().any(|s| s.layer.is_some()) => Role::Head,
            None => Role::Embedding,
        });
        let mut labels = self.rec.labels.borrow_mut();
        let times = labels.entry(label.clone()).or_default();
        *times += 1;
        let label = if *times == 1 { label } else { format!("{label}.{times}") };
        tape.steps.push(Step {
            label,
            layer: self.layer,
            role,
            op: Arc::new(op),
            share: ExpertShare::All,
            ins: ins.to_vec(),
            outs: outs.clone(),
            weights: weights.to_vec(),
            states: states.to_vec(),
        });
        outs
    }

    /// Keeps all rows of a value, also those that are no output rows.
    pub fn keep(&self, x: Slot) {
        self.rec.tape.borrow_mut().kept.push(x);
    }

    // ---- states ----

    /// A state of rows, one per `every` tokens, of which the newest `window` matter (None: all).
    ///
    /// # Errors
    /// If the format is none for a cache, or its blocks do not divide the width.
    pub fn rows_state(
        &self,
        name: &str,
        width: usize,
        ty: &'static QuantType,
        every: usize,
        window: Option<usize>,
    ) -> Result<StateId> {
        if ty.kv.is_none() {
            bail!("{} cannot be a cache type; {} can", ty.name, crate::quant::cache_types());
        }
        let label = self.full(name);
        if !width.is_multiple_of(ty.block) {
            bail!(WrongCacheType::new("-ctk", ty, format!("the width {width} of {label}")));
        }
        Ok(self.state(StateSpec { label, width, ty, kind: StateKind::Rows { every, window, before_batch: false } }))
    }

    /// The newest `n` rows of f32 from before the current batch.
    pub fn last_rows(&self, name: &str, width: usize, n: usize) -> StateId {
        let label = self.full(name);
        let kind = StateKind::Rows { every: 1, window: Some(n), before_batch: true };
        self.state(StateSpec { label, width, ty: crate::quant::TYPES[0], kind })
    }

    /// A recurrent state: one block of floats.
    pub fn fixed_state(&self, name: &str, width: usize) -> StateId {
        let label = self.full(name);
        let ty = crate::quant::TYPES[0]; // a recurrent state is f32: anything less collapses within a few tokens
        self.state(StateSpec { label, width, ty, kind: StateKind::Fixed })
    }

    fn state(&self, spec: StateSpec) -> StateId {
        let mut tape = self.rec.tape.borrow_mut();
        tape.states.push(spec);
        StateId(tape.states.len() as u32 - 1)
    }

    /// The finished tape, in which every value has all rows.
    ///
    /// # Errors
    /// A [`Refusal`] if the file holds tensors that the family neither read nor ignored, or
    /// metadata keys that it did not read and that change what is computed: a model with a part
    /// that is not understood is refused, never run without it.
    pub fn finish(self, logits: Slot, argmax: Slot) -> Result<Tape> {
        let mut tape = self.rec.tape.take();
        (tape.logits, tape.argmax) = (Some(logits), Some(argmax));
        let (gguf, known, read) = (self.rec.gguf, self.rec.known.borrow(), self.rec.read.take());
        // What 4-bit activations would be divided by on hardware that has them. Here they are not 4-bit.
        for t in gguf.tensors.iter().filter(|t| !known.contains_key(&t.name)) {
            if t.name.strip_suffix(".input_scale").is_some_and(|n| known.contains_key(&format!("{n}.weight"))) {
                tape.ignored.push((t.name.clone(), "activations are not quantized to 4 bits"));
            }
        }
        let tensors: Vec<String> = gguf
            .tensors
            .iter()
            .map(|t| &t.name)
            .filter(|n| !known.contains_key(*n) && !tape.ignored.iter().any(|(p, _)| n.starts_with(p)))
            .cloned()
            .collect();
        let keys;
        (tape.unused_keys, keys) = known_keys::unused(gguf, &self.rec.arch, &read);
        if !tensors.is_empty() || !keys.is_empty() {
            let (file, arch) = (gguf.path.display().to_string(), self.rec.arch.clone());
            return Err(Refusal { file, arch, tensors, keys }.into());
        }
        Ok(tape)
    }
}
