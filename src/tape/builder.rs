//! Records a tape: finds each weight in the file's directory, checks its shape, and pushes a step. The ops' own
//! builder methods (`b.norm`, `b.attend`, ...) are in the ops' files.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};

use super::known_keys;
use super::{
    ExpertShare, Op, Refusal, Role, RowSet, Slot, SlotInfo, StateId, StateKind, StateSpec, Step, Tape, Weight,
    WeightId, WeightKind, WrongCacheType,
};
use crate::gguf::{DRAFTER, Gguf, TensorType, Value};
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

/// The key that says how many blocks at the end of a file are draft heads.
const HEADS: &str = "nextn_predict_layers";

/// The number of the last block that a file has tensors of.
fn last_block(gguf: &Gguf) -> usize {
    let number = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok();
    gguf.tensors.iter().filter_map(|t| number(&t.name)).filter(|&i| i < gguf.tensors.len()).max().unwrap_or(0)
}

/// Whether a block is a draft head.
fn is_head(gguf: &Gguf, block: usize) -> bool {
    let prefix = format!("blk.{block}.nextn.");
    gguf.tensors.iter().any(|t| t.name.starts_with(&prefix))
}

/// The first of the blocks at the end that are draft heads although the metadata states none: all blocks from it on have
/// `nextn` tensors.
fn unstated_heads(gguf: &Gguf, all: usize) -> Option<usize> {
    let n_heads = (0..all.max(1 + last_block(gguf))).rev().take_while(|&i| is_head(gguf, i)).count();
    Some(all.max(1 + last_block(gguf)) - n_heads).filter(|&first| n_heads > 0 && (1..=all).contains(&first))
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
    /// Whether the file's draft heads (blocks for multi-token prediction) are recorded after the model.
    pub heads: bool,
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
    /// Those of a drafter's metadata.
    pub(super) read_of_drafter: RefCell<HashSet<String>>,
    /// The part of the tape that steps are recorded for.
    part: Cell<usize>,
    /// The blocks that are draft heads.
    head_blocks: RefCell<Vec<usize>>,
}

/// Writes a tape from a file's header. A builder of a layer ([`Layer::scope`]) finds weights by their names in the
/// layer, and the layer's own value where a metadata key lists one for each.
#[derive(Clone, Debug)]
pub struct Builder<'a> {
    pub(super) rec: Rc<Recorder<'a>>,
    pub(super) layer: Option<usize>,
    role: Option<Role>,
    /// Whether names and keys are those of a drafter that was taken in.
    pub(super) drafter: bool,
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
        Builder { layer: Some(self.i), role: None, ..b.clone() }
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
            read_of_drafter: RefCell::default(),
            part: Cell::new(0),
            head_blocks: RefCell::default(),
        };
        Builder { rec: Rc::new(rec), layer: None, role: None, drafter: false }
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

    /// Tokens of the file's vocabulary, which may be fewer than the embedding has rows; as many where the file has none.
    ///
    /// # Errors
    /// If the file has no embedding.
    pub fn n_tokens(&self) -> Result<usize> {
        match self.rec.gguf.meta.get("tokenizer.ggml.tokens") {
            Some(Value::Arr(list)) => Ok(list.len()),
            _ => self.n_vocab(),
        }
    }

    /// The layers that take part: `block_count`, less the blocks at the end that predict further tokens
    /// (`nextn_predict_layers`): the draft heads, see [`Builder::draft_heads`].
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
        let extra = self.count_or_zero(HEADS)?;
        if extra >= all {
            return Err(self.bad_key(HEADS, extra, format!("fewer than the {all} blocks")));
        }
        let n = trunk_blocks(gguf, all, extra);
        if extra == 0
            && let Some(first) = unstated_heads(gguf, all)
        {
            return Ok(self.without_heads(first, all));
        }
        for i in n..all {
            self.ignore(&format!("blk.{i}."), "blocks for multi-token prediction, which is off");
        }
        let heads: Vec<usize> = (n..all).take_while(|&i| is_head(gguf, i)).collect();
        self.rec.tape.borrow_mut().heads_off = Some(match heads.len() {
            0 if extra == 0 => "the file has no blocks for multi-token prediction".into(),
            0 => format!(
                "{} has {HEADS} = {extra}, and the file has no tensors of such blocks; a file converted with them has draft heads",
                self.file()
            ),
            _ => format!("this version does not compute the draft heads of {}", self.rec.arch),
        });
        self.rec.head_blocks.replace(heads);
        Ok((0..n).map(|i| Layer { i }).collect())
    }

    /// The layers of a file with blocks for multi-token prediction, from `first` on, that its metadata does not mention.
    fn without_heads(&self, first: usize, all: usize) -> Vec<Layer> {
        const WHY: &str = "blocks for multi-token prediction that the metadata does not state";
        let blocks = all.max(1 + last_block(self.rec.gguf));
        (first..blocks).for_each(|i| self.ignore(&format!("blk.{i}."), WHY));
        let why = format!("the file has such blocks (blk.{first}.nextn.*), but its metadata has no {HEADS}");
        self.rec.tape.borrow_mut().heads_off = Some(why);
        (0..first.min(all)).map(|i| Layer { i }).collect()
    }

    // ---- draft heads ----

    /// Ends the model, whose logits these are, and begins its draft heads, if they are wanted and the file has any: returns
    /// their blocks. What [`Builder::hand_on`] stores of `hidden` is what heads read of each of the model's tokens.
    ///
    /// # Errors
    /// If the widths of states do not fit each other.
    pub fn draft_heads(&self, logits: Slot, hidden: Slot) -> Result<Vec<Layer>> {
        let blocks = match self.rec.settings.heads {
            true => self.rec.head_blocks.borrow().clone(),
            false => Vec::new(),
        };
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        self.hand_on(hidden)?;
        self.end_part(logits);
        let mut tape = self.rec.tape.borrow_mut();
        tape.heads_off = None;
        tape.ignored.retain(|(prefix, _)| !blocks.iter().any(|i| *prefix == format!("blk.{i}.")));
        Ok(blocks.into_iter().map(|i| Layer { i }).collect())
    }

    /// Ends the model, whose logits these are, if heads are wanted and a drafter of this architecture was taken in that reads
    /// `hidden` of each of the model's tokens. Returns whether it is so.
    ///
    /// # Errors
    /// If the drafter is of another architecture.
    pub fn has_drafter(&self, arch: &str, logits: Slot, hidden: Slot) -> Result<bool> {
        match self.rec.gguf.drafter().filter(|_| self.rec.settings.heads) {
            None => return Ok(false),
            Some(have) if have != arch => bail!("{}: the drafter is {have:?}, expected {arch:?}", self.file()),
            Some(_) => {}
        }
        self.hand_on(hidden)?;
        self.end_part(logits);
        let mut tape = self.rec.tape.borrow_mut();
        (tape.heads_off, tape.is_drafter) = (None, true);
        Ok(true)
    }

    /// A builder of the drafter that was taken in, which records the next part of the tape.
    pub fn drafter_scope(&self) -> Builder<'a> {
        self.rec.part.set(self.rec.part.get() + 1);
        Builder { layer: None, role: None, drafter: true, ..self.clone() }
    }

    /// A builder of the next draft head, in this block.
    pub fn head_scope(&self, block: Layer) -> Builder<'a> {
        self.rec.part.set(self.rec.part.get() + 1);
        block.scope(self)
    }

    /// Ends the part of the tape that is being recorded, whose logits these are.
    pub fn end_part(&self, logits: Slot) {
        let argmax = self.root().argmax(logits);
        let mut tape = self.rec.tape.borrow_mut();
        match self.rec.part.get() {
            0 => (tape.logits, tape.argmax) = (Some(logits), Some(argmax)),
            _ => tape.heads.push([logits, argmax]),
        }
    }

    /// Whether the model's part has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.rec.tape.borrow().logits.is_some()
    }

    /// The state of the rows that draft heads read, of this width: one for the model and all heads. It has room to go back
    /// some hundred rows, and to let heads fall as far behind.
    ///
    /// # Errors
    /// If it has another width.
    pub(crate) fn hidden_state(&self, width: usize) -> Result<StateId> {
        if let Some(known) = self.rec.tape.borrow().hidden {
            let have = self.rec.tape.borrow().states[known.0 as usize].width;
            if have != width {
                bail!("{}: a draft head hands on {width} columns, the model {have}", self.file());
            }
            return Ok(known);
        }
        let ty = crate::quant::TYPES[0];
        let kind = StateKind::Rows { every: 1, window: Some(2), before_batch: false }; // its own row, and the one before
        let id = self.state(StateSpec { label: "hidden".into(), width, ty, kind, trail: 0 });
        self.rec.tape.borrow_mut().hidden = Some(id);
        Ok(id)
    }

    // ---- weights, by their names in this builder's layer ----

    /// The name in the file: `blk.I.NAME` in a layer, else `NAME`.
    fn full(&self, name: &str) -> String {
        let file = if self.drafter { DRAFTER } else { "" };
        match self.layer {
            Some(i) => format!("{file}blk.{i}.{name}"),
            None => format!("{file}{name}"),
        }
    }

    /// The architecture whose metadata is read.
    pub(super) fn arch(&self) -> &str {
        self.rec.gguf.drafter().filter(|_| self.drafter).unwrap_or(&self.rec.arch)
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

    /// Lets prompts leave rows out that no later token will look at.
    pub fn spare_rows(&self) {
        self.rec.tape.borrow_mut().spares_rows = true;
    }

    /// Has `explain` say what is taken as known where the file does not say.
    pub fn note(&self, what: &str) {
        self.rec.tape.borrow_mut().notes.push(what.into());
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
            part: self.rec.part.get(),
            role,
            op: Arc::new(op),
            share: ExpertShare::All,
            last: None,
            ins: ins.to_vec(),
            outs: outs.clone(),
            weights: weights.to_vec(),
            states: states.to_vec(),
        });
        outs
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
        let kind = StateKind::Rows { every, window, before_batch: false };
        Ok(self.state(StateSpec { label, width, ty, kind, trail: 0 }))
    }

    /// The newest `n` rows of f32 from before the current batch.
    pub fn last_rows(&self, name: &str, width: usize, n: usize) -> StateId {
        let label = self.full(name);
        let kind = StateKind::Rows { every: 1, window: Some(n), before_batch: true };
        self.state(StateSpec { label, width, ty: crate::quant::TYPES[0], kind, trail: 0 })
    }

    /// A recurrent state: one block of floats.
    pub fn fixed_state(&self, name: &str, width: usize) -> StateId {
        let label = self.full(name);
        let ty = crate::quant::TYPES[0]; // a recurrent state is f32: anything less collapses within a few tokens
        self.state(StateSpec { label, width, ty, kind: StateKind::Fixed, trail: 0 })
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
    pub fn finish(self) -> Result<Tape> {
        let mut tape = self.rec.tape.take();
        if !self.rec.settings.heads {
            tape.heads_off = None;
        }
        if !tape.is_drafter && self.rec.gguf.drafter().is_some() {
            tape.ignored.push((DRAFTER.into(), "a drafter, which is off"));
            if self.rec.settings.heads && tape.heads.is_empty() {
                let (file, arch) = (self.file(), &self.rec.arch);
                let drafter = self.rec.gguf.drafter().unwrap_or_default();
                tape.heads_off = Some(format!("{file}: this version has no drafter {drafter:?} for a {arch} model"));
            }
        }
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
        let mut keys;
        (tape.unused_keys, keys) = known_keys::unused(gguf, &self.rec.arch, &read);
        if let Some(arch) = gguf.drafter().filter(|_| tape.is_drafter) {
            let (unused, refused) = known_keys::unused(gguf, arch, &self.rec.read_of_drafter.borrow());
            tape.unused_keys.extend(unused);
            keys.extend(refused);
        }
        if !tensors.is_empty() || !keys.is_empty() {
            let (file, arch) = (gguf.path.display().to_string(), self.rec.arch.clone());
            return Err(Refusal { file, arch, tensors, keys }.into());
        }
        Ok(tape)
    }
}
