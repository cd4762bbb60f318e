//! A session: a model and the sequences it is reading. Tokens go in, logits come out; a sequence can go back, be
//! saved, be copied.

mod forward;
mod gpu;
mod heads;
mod likely;
mod numa;
mod ram;
mod verify;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail};

use crate::cpu::{Memory, Pool};
use crate::cuda::Gpu;
use crate::exec::{self, Device, Engine, GpuLost, RamPool, ReadAt, Weights};
use crate::gguf::{Gguf, Load};
use crate::models;
use crate::plan::{self, Ask, Place, Plan, Shape};
use crate::quant::{self, QuantType};
use crate::tape::{Settings, State, StateKind, Tape};

pub use forward::{DecodeStats, Output, Progress, SparedRows, Want};
pub use gpu::{budget, margin};
use heads::HeadProgress;
pub use heads::LAG as HEADS_LAG;
pub use likely::DraftLogits;
use numa::Divided;
pub use numa::{Numa, NumaOutcome, NumaPlan};
pub use ram::RamLimit;
pub use verify::Draft;

/// Context used when none is asked for: enough for a talk, small enough that no model is refused for its cache.
const DEFAULT_CONTEXT: usize = 8192;

/// Positions are kept in 32 bits.
pub const MAX_CONTEXT: usize = u32::MAX as usize;

/// Checkpoints kept per sequence, and the bytes of those of all sequences.
const CHECKPOINTS: usize = 16;
const CHECKPOINT_BYTES: usize = 512 << 20;

/// Checkpoints that are saved with a sequence whatever they take: those before and after the last text that was read, so
/// that an answer can be given again, or a turn taken back, without reading more than that text. Older ones are saved
/// too while all of them take at most [`CARRIED_BYTES`]: windows are small, recurrent blocks are not.
const CARRIED: usize = 2;
const CARRIED_BYTES: usize = 64 << 20;

/// The settings with which a model is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens per sequence; None is the model's own context up to 8192, 0 all of it.
    pub n_ctx: Option<usize>,
    /// Tokens computed together when reading a prompt, where `ask` does not leave it to the plan.
    pub n_batch: usize,
    /// Output rows of a batch (tokens whose logits are computed), at most; None is all of them. A GPU allocates memory for
    /// this many.
    pub n_output_rows: Option<usize>,
    /// Sequences.
    pub n_seq: usize,
    /// Threads; 0 is what RAYON_NUM_THREADS says, else one per performance core.
    pub threads: usize,
    /// Threads for batches of more than one row; None is as `threads`.
    pub threads_batch: Option<usize>,
    /// Format of cached keys.
    pub type_k: &'static QuantType,
    /// Format of cached values.
    pub type_v: &'static QuantType,
    /// Whether the file's draft heads (blocks for multi-token prediction) are opened too, for [`Session::draft`].
    pub heads: bool,
    /// Where steps run.
    pub ask: Ask,
    /// Let measured times decide nothing.
    pub deterministic: bool,
    /// Whether batches of a prompt go in halves, so that a GPU and the CPU work at the same time; None: as measured times
    /// suggest.
    pub halves: Option<bool>,
    /// Measure what a GPU and the CPU wait for each other, and count the experts that are read.
    pub stats: bool,
    /// Whether the file is mapped or read.
    pub load: Load,
    /// How much memory a mapped file's weights may take.
    pub ram: RamLimit,
    /// Whether weights are divided over the memory of NUMA nodes.
    pub numa: Numa,
    /// Whether the memory for experts is locked, where they are not all there.
    pub lock_ram: bool,
    /// What reads experts from the drive.
    pub read_at: ReadAt,
    /// The folder of files that say which experts of a model earlier runs used most, for models whose experts are not
    /// all in memory; None neither reads nor writes one.
    pub expert_uses: Option<PathBuf>,
    /// A mapped file is read into memory if experts are copied from it to a GPU that cannot copy
    /// from a map by itself, and there is memory enough.
    pub read_to_pin: bool,
    /// Where the GPU fails, read again on the CPU what the sequences have read, and go on.
    pub gpu_fallback: bool,
    /// Drafted tokens of a sequence that are verified together, at most; 0 where nothing is drafted. Recurrent blocks take
    /// as many times their memory more.
    pub drafts: usize,
}

impl Default for Options {
    fn default() -> Options {
        let f16 = quant::by_name("f16").expect("f16 is always known");
        Options {
            n_ctx: None,
            n_batch: 512,
            n_output_rows: None,
            n_seq: 1,
            threads: 0,
            threads_batch: None,
            type_k: f16,
            type_v: f16,
            heads: false,
            ask: Ask::default(),
            deterministic: false,
            halves: None,
            stats: false,
            load: Load::default(),
            ram: RamLimit::Auto,
            numa: Numa::Auto,
            lock_ram: false,
            read_at: exec::read_at,
            expert_uses: None,
            read_to_pin: false,
            gpu_fallback: false,
            drafts: 0,
        }
    }
}

/// A call that did not finish.
#[derive(Debug, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A call that the context has no room for.
#[derive(Debug, PartialEq, Eq)]
pub struct ContextFull {
    /// Tokens a sequence may have.
    pub n_ctx: usize,
    /// Tokens it has.
    pub used: usize,
    /// Tokens given on top.
    pub given: usize,
}

impl std::fmt::Display for ContextFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ContextFull { n_ctx, used, given } = self;
        if *used == 0 {
            return write!(
                f,
                "the context of {n_ctx} tokens has no room for the {given} that were given (a larger -c gives room)"
            );
        }
        write!(
            f,
            "the context of {n_ctx} tokens is full: {used} are used and {given} more were given (a larger -c gives room)"
        )
    }
}

impl std::error::Error for ContextFull {}

/// Everything a sequence remembers, to be taken up again by a session of the same model and cache types.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The tokens read.
    pub tokens: Vec<u32>,
    /// The lengths that the sequence can go back to by a checkpoint.
    pub checkpoints: Vec<usize>,
    /// The bytes that [`Session::save`] writes.
    pub states: Vec<u8>,
}

#[derive(Debug, Default)]
struct Sequence {
    tokens: Vec<u32>,
    checkpoints: Vec<Checkpoint>, // rising in length
    heads: Vec<HeadProgress>,     // none where none has read anything
}

/// The state that tokens after the first `n` overwrite.
#[derive(Debug)]
struct Checkpoint {
    n: usize,
    states: Vec<u8>,
}

/// A model with its sequences.
#[derive(Debug)]
pub struct Session {
    engine: Engine,
    seqs: Vec<Sequence>,
    shape: Shape,
    n_vocab: usize,
    stop: Arc<AtomicBool>,
    decode_stats: DecodeStats,
    draft_logits: DraftLogits,
    /// Whether it drafts for another model.
    draft_only: bool,
    /// Of the weights that a draft reads, the share that the product of the vocabulary does.
    vocabulary_share: OnceLock<f64>,
    spared_rows: SparedRows,
    /// How it was opened.
    options: Options,
    /// How experts are kept in memory, where the others stay on the drive.
    ram: Option<RamPool>,
    /// What became of NUMA nodes.
    numa: NumaOutcome,
    /// Why nothing more is computed.
    lost: Option<GpuLost>,
    fingerprint: OnceLock<String>,
}

/// The context that a model gets: what was asked, else its own up to 8192.
///
/// # Errors
/// If the file does not say what architecture it has, or names a context that cannot be; or if more than
/// [`MAX_CONTEXT`] tokens are asked for.
pub fn context(gguf: &Gguf, asked: Option<usize>) -> Result<usize> {
    let key = format!("{}.context_length", gguf.meta.str("general.architecture")?);
    let trained = gguf.meta.opt_usize(&key)?;
    let file = gguf.path.display();
    if let Some(bad) = trained.filter(|n| !(1..=MAX_CONTEXT).contains(n)) {
        bail!("{file}: metadata key {key:?} is {bad}, a number of tokens from 1 to {MAX_CONTEXT} expected");
    }
    let trained = trained.unwrap_or(DEFAULT_CONTEXT);
    match asked {
        None => Ok(trained.min(DEFAULT_CONTEXT)),
        Some(0) => Ok(trained),
        Some(n) if n > MAX_CONTEXT => bail!("a context of {n} tokens (-c) is more than the {MAX_CONTEXT} that can be"),
        Some(n) => Ok(n),
    }
}

/// The tape of a file under these options, from its header.
///
/// # Errors
/// As [`context`], and if no family can be built from the file: its architecture is unknown, or a key or tensor is
/// missing, wrong, or not used.
pub fn tape(gguf: &Gguf, o: &Options) -> Result<Tape> {
    let settings = Settings { n_ctx: context(gguf, o.n_ctx)?, type_k: o.type_k, type_v: o.type_v, heads: o.heads };
    let mut tape = models::build(gguf, settings)?;
    tape.keep_trail(o.drafts);
    Ok(tape)
}

/// Opens a model's files, mapped or read as `load` says. Tables of which a token reads a few rows
/// stay mapped, whatever it says: they can be larger than memory.
///
/// # Errors
/// If a file cannot be read or held in memory as `load` asks ([`NoMemory`](crate::exec::NoMemory)
/// where the machine has less than it takes), is no valid GGUF, or a part of a split model is
/// missing.
pub fn open_files(path: &Path, load: &Load) -> Result<Gguf> {
    let mut gguf = Gguf::open_mapped(path, load)?;
    if *load != Load::default() {
        let ty = quant::TYPES[0];
        let tape = models::build(&gguf, Settings { n_ctx: 1, type_k: ty, type_v: ty, heads: false });
        // Faults of the model are reported when it is opened with the user's settings.
        let mapped: Vec<usize> = tape.iter().flat_map(|t| t.mapped().map(|w| w.tensor)).collect();
        if !load.mmap {
            exec::check_weights(&gguf, &mapped, Memory::of_this_machine())?;
        }
        gguf.settle(load, &mapped)?;
    }
    Ok(gguf)
}

/// Returns how many sequences, tokens and output rows a session under these options holds.
///
/// # Errors
/// If nothing could be run with them.
pub fn shape(gguf: &Gguf, o: &Options) -> Result<Shape> {
    if o.n_batch == 0 || o.n_seq == 0 {
        bail!("a batch of {} tokens and {} sequences cannot be run; both must be at least 1", o.n_batch, o.n_seq);
    }
    let n_ctx = context(gguf, o.n_ctx)?;
    let n_batch = o.n_batch.min(n_ctx.saturating_mul(o.n_seq));
    let verified = if o.drafts > 0 { o.n_seq.max(forward::FEW) } else { 1 };
    let n_output_rows = o.n_output_rows.unwrap_or(n_batch).max(verified).min(n_batch);
    Ok(Shape { n_seq: o.n_seq, n_ctx, n_batch, n_output_rows })
}

/// Brings a model's weights to where they are to be: experts in slots, rows on NUMA nodes, or as the file's map.
fn settle(gguf: &mut Gguf, placed: (&Tape, &Plan, Shape), o: &Options) -> Result<(Option<RamPool>, Divided)> {
    let ram = ram::settle(gguf, placed, o)?;
    let numa = numa::settle(gguf, placed, ram.as_ref(), o)?;
    Ok((ram, numa))
}

impl Session {
    /// Opens the model at `path` (any shard of it).
    ///
    /// # Errors
    /// As [`Session::new`], and if the file cannot be read or is no GGUF file.
    pub fn open(path: &Path, o: &Options) -> Result<Session> {
        let _threads = Pool::new(o.threads)?; // as many read the file if it is not mapped
        Session::new(open_files(path, &o.first_load())?, o)
    }

    /// Opens a model whose header is read already, on the CPU; rules may put steps elsewhere on it.
    ///
    /// # Errors
    /// As [`tape`] and [`shape`]; [`NoMemory`](crate::exec::NoMemory) if the machine cannot hold what the sequences
    /// remember; and if threads cannot be started.
    pub fn new(gguf: Gguf, o: &Options) -> Result<Session> {
        let tape = tape(&gguf, o)?;
        let shape = shape(&gguf, o)?;
        let fit = plan::fit(tape, &o.ask, &[], shape)?;
        Session::planned(gguf, fit.tape, fit.plan, o, &[])
    }

    /// Opens a model with a plan of one's own, and the devices for what it places there.
    ///
    /// # Errors
    /// As [`Session::new`], and if the GPU fails or has no memory for its part.
    pub fn planned(mut gguf: Gguf, tape: Tape, plan: Plan, o: &Options, gpus: &[Arc<Gpu>]) -> Result<Session> {
        let shape = shape(&gguf, o)?;
        let (ram, numa) = settle(&mut gguf, (&tape, &plan, shape), o)?;
        let weights = Weights::load(&gguf, &tape, &plan)?;
        let mut devices = Vec::new();
        for (gpu, n) in gpus.iter().filter(|_| plan.on_gpu()).zip(0..) {
            let place = Place::Gpu(n);
            plan::load_kernels((gpu, place), &tape, &plan, shape)?;
            devices.push(Device::open((gpu.clone(), place), &gguf, &tape, &plan, &weights, shape)?);
        }
        devices.iter_mut().for_each(|device: &mut Device| device.pin(&gguf, ram.is_none()));
        Session::with(gguf, (tape, plan, shape), o, (weights, ram, numa), devices)
    }

    fn with(
        gguf: Gguf,
        (tape, mut plan, shape): (Tape, Plan, Shape),
        o: &Options,
        (weights, ram, numa): (Weights, Option<RamPool>, Divided),
        mut devices: Vec<Device>,
    ) -> Result<Session> {
        for (n, device) in devices.iter_mut().enumerate() {
            plan.caches[n].slots = device.cache_slots(); // fewer where memory ran out
            device.deterministic(o.deterministic);
            device.in_halves = o.halves;
            if o.stats {
                device.keep_time()?;
            }
        }
        let n_vocab = tape.n_vocab();
        log_placement(&tape, &plan, shape);
        let few = Pool::new(o.threads)?;
        let many = o.threads_batch.filter(|n| *n != o.threads).map(Pool::new).transpose()?;
        let threads = (few.threads(), many.as_ref().map_or(few.threads(), Pool::threads));
        tracing::debug!("threads: {} for single tokens, {} for prompts", threads.0, threads.1);
        let mut engine = Engine::new(Arc::new(gguf), (tape, plan), (few, many), shape, weights, devices)?;
        engine.expert_reads = o.stats.then(Default::default);
        ram.iter().try_for_each(|pool| engine.pool_experts(pool))?;
        let seqs = (0..shape.n_seq).map(|_| Sequence::default()).collect();
        Ok(Session {
            engine,
            seqs,
            shape,
            n_vocab,
            stop: Arc::default(),
            decode_stats: DecodeStats::default(),
            draft_logits: DraftLogits::default(),
            draft_only: false,
            vocabulary_share: OnceLock::new(),
            spared_rows: SparedRows::default(),
            options: o.clone(),
            ram,
            numa: numa.outcome,
            lost: None,
            fingerprint: OnceLock::new(),
        })
    }

    /// What the model's file is known by; `make` reads the file for it, the first time.
    ///
    /// # Errors
    /// What `make` returns, and [`CutShort`](crate::gguf::CutShort) if the file was not whole any more when it was read.
    pub(crate) fn fingerprint(&self, make: impl FnOnce(&Gguf) -> Result<String>) -> Result<&str> {
        if let Some(known) = self.fingerprint.get() {
            return Ok(known);
        }
        let new = make(self.engine.gguf())?;
        self.engine.gguf().check_files()?;
        Ok(self.fingerprint.get_or_init(|| new))
    }

    /// The engine underneath.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Tokens a sequence may have.
    pub fn n_ctx(&self) -> usize {
        self.shape.n_ctx
    }

    /// Tokens computed together, at most.
    pub fn n_batch(&self) -> usize {
        self.shape.n_batch
    }

    /// Sequences.
    pub fn n_seq(&self) -> usize {
        self.shape.n_seq
    }

    /// How experts are kept in memory, where the others stay on the drive; None where all are in memory, or the
    /// system maps them.
    pub fn ram(&self) -> Option<&RamPool> {
        self.ram.as_ref()
    }

    /// Whether the weights are divided over NUMA nodes.
    pub fn numa(&self) -> &NumaOutcome {
        &self.numa
    }

    /// Size of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// The tokens that a sequence has read.
    pub fn tokens(&self, seq: usize) -> &[u32] {
        &self.seqs[seq].tokens
    }

    /// Raised (from a signal handler, say), it makes a running [`Session::feed`] return [`Interrupted`] soon.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Forgets a sequence.
    pub fn clear(&mut self, seq: usize) {
        self.seqs[seq] = Sequence::default();
        let _ = self.engine.clear(seq as u32); // a GPU that fails here fails at the next token, and says so there
    }

    fn overwritten(&self, seq: usize) -> Result<Checkpoint> {
        let n = self.seqs[seq].tokens.len();
        let mut states = Vec::with_capacity(self.engine.saved_bytes(n, false));
        self.engine.save(seq as u32, n, false, &mut states)?;
        Ok(Checkpoint { n, states })
    }

    /// Whether later tokens destroy anything that earlier ones left.
    fn is_overwritten(&self) -> bool {
        let tape = &self.engine.tape;
        tape.states[..tape.model_states()].iter().any(|s| s.is_overwritten())
    }

    /// Whether a sequence has recurrent blocks, which single steps overwrite.
    pub fn has_recurrent_blocks(&self) -> bool {
        self.engine.tape.states.iter().any(|s| s.kind == StateKind::Fixed)
    }

    /// Whether a sequence can be gone on with in any way, saved and copied: it is not where a prompt is still to be read on
    /// ([`Want::More`]).
    pub fn is_whole(&self, seq: usize) -> bool {
        self.can_rewind(seq, self.seqs[seq].tokens.len())
    }

    /// Whether what is stored reaches back to the first `n` tokens of a sequence.
    fn can_rewind(&self, seq: usize, n: usize) -> bool {
        self.model_states().iter().all(|s| s.can_rewind(seq as u32, n))
    }

    /// How many of a sequence's first `n` tokens need not be read again where it is to become these, or a part of them.
    pub fn kept(&self, seq: usize, n: usize) -> usize {
        let checkpoint = || self.seqs[seq].checkpoints.iter().rfind(|c| c.n <= n);
        if self.can_rewind(seq, n) { n } else { checkpoint().map_or(0, |c| c.n) }
    }

    /// Remembers what the sequence's next tokens will overwrite, so that a rewind need not read from the start.
    ///
    /// # Errors
    /// [`GpuLost`] if the GPU fails.
    pub fn checkpoint(&mut self, seq: usize) -> Result<()> {
        let n = self.seqs[seq].tokens.len();
        let known = self.seqs[seq].checkpoints.last().is_some_and(|c| c.n >= n);
        if n == 0 || known || !self.is_overwritten() || !self.is_whole(seq) {
            return Ok(());
        }
        self.heads_follow(seq)?;
        let new = self.overwritten(seq)?;
        self.keep_checkpoint(seq, new);
        Ok(())
    }

    fn keep_checkpoint(&mut self, seq: usize, new: Checkpoint) {
        let bytes = CHECKPOINT_BYTES / self.seqs.len();
        let list = &mut self.seqs[seq].checkpoints;
        if list.last().is_none_or(|c| c.n < new.n) {
            list.push(new);
        }
        list.drain(..list.len() - newest(list, (1, CHECKPOINTS), bytes).len());
    }

    /// Takes the sequence back to its first `n` tokens. Where what is stored does not reach back, the nearest
    /// checkpoint is loaded and the tokens since are read again: the result is the same as if the rest never was. Returns
    /// how many were read again.
    ///
    /// # Errors
    /// With the sequence as it was, if it has fewer tokens. [`Interrupted`] while tokens are read again, of which the
    /// sequence then holds the finished batches; [`GpuLost`] if the GPU fails.
    pub fn rewind(&mut self, seq: usize, n: usize) -> Result<usize> {
        let mut had = self.lengths();
        match self.rewind_once(seq, n) {
            Err(e) if e.is::<GpuLost>() && self.lost.is_none() => {
                had[seq] = n;
                self.after_loss(&had, e).map(|()| n)
            }
            done => done,
        }
    }

    fn rewind_once(&mut self, seq: usize, n: usize) -> Result<usize> {
        let have = self.seqs[seq].tokens.len();
        if n > have {
            bail!("cannot go back to {n} tokens: the sequence has {have}");
        }
        if self.lost.is_some() {
            return Ok(0); // it is empty
        }
        self.seqs[seq].checkpoints.retain(|c| c.n <= n);
        if self.can_rewind(seq, n) {
            self.engine.go_back(seq as u32, n)?;
            self.seqs[seq].tokens.truncate(n);
            return self.heads_rewind(seq, n).map(|()| 0);
        }
        let again = self.seqs[seq].tokens[..n].to_vec();
        let from = self.go_to_checkpoint(seq)?;
        let checkpoints = std::mem::take(&mut self.seqs[seq].checkpoints);
        let read = self.feed(seq, &again[from..], Want::None);
        let list = &mut self.seqs[seq].checkpoints;
        let newer = std::mem::replace(list, checkpoints);
        let longest = list.last().map_or(0, |c| c.n);
        list.extend(newer.into_iter().filter(|c| c.n > longest));
        read.map(|_| n - from)
    }

    /// Makes a sequence what it was at its last checkpoint, or empty if it has none. Returns how many tokens that are.
    fn go_to_checkpoint(&mut self, seq: usize) -> Result<usize> {
        let n = match self.seqs[seq].checkpoints.last() {
            Some(c) => {
                self.engine.put_back(seq as u32, c.n, &c.states)?;
                c.n
            }
            None => {
                self.engine.clear(seq as u32)?;
                0
            }
        };
        self.seqs[seq].tokens.truncate(n);
        self.heads_rewind(seq, n)?;
        Ok(n)
    }

    /// The states of the model, without those of draft heads.
    fn model_states(&self) -> &[State] {
        &self.engine.states[..self.engine.tape.model_states()]
    }

    /// After a walk that failed since a file was cut short: makes a sequence what it was before the walk, or, where the
    /// walk has overwritten that, what it was at its last checkpoint. Nothing can be read again.
    fn undo_walk(&mut self, seq: usize) -> Result<()> {
        let n = self.seqs[seq].tokens.len();
        if !self.can_rewind(seq, n) {
            self.go_to_checkpoint(seq)?;
        }
        Ok(())
    }

    /// The checkpoints that are saved with a sequence.
    fn carried(&self, seq: usize) -> &[Checkpoint] {
        let Sequence { tokens, checkpoints, .. } = &self.seqs[seq];
        // One at the sequence's end is what is saved anyway.
        let before = checkpoints.partition_point(|c| c.n < tokens.len());
        newest(&checkpoints[..before], (CARRIED, CHECKPOINTS), CARRIED_BYTES)
    }

    /// The lengths, below its own and rising, that a saved sequence can go back to without reading from its start.
    pub fn checkpoints(&self, seq: usize) -> Vec<usize> {
        self.carried(seq).iter().map(|c| c.n).collect()
    }

    /// Writes what a sequence remembers, with its checkpoints: [`Session::saved_bytes`] bytes, which do not depend on
    /// the size of the context or of a batch, on threads, or on where steps run.
    ///
    /// # Errors
    /// If it cannot be written, the GPU fails, or the sequence is not whole ([`Session::is_whole`]).
    pub fn save(&self, seq: usize, out: &mut dyn Write) -> Result<()> {
        if self.lost.is_some() {
            // What is left is a sequence that has read nothing; recurrent blocks begin as zeros.
            std::io::copy(&mut std::io::repeat(0).take(self.state_bytes(seq) as u64), out)?;
            return Ok(());
        }
        if !self.is_whole(seq) {
            bail!(
                "sequence {seq} is in the middle of a prompt, of which rows were left out; expected it to be read to its end"
            );
        }
        self.engine.save(seq as u32, self.seqs[seq].tokens.len(), true, out)?;
        for c in self.carried(seq) {
            out.write_all(&c.states)?;
        }
        Ok(())
    }

    /// Bytes of a saved sequence of `n` tokens with these checkpoints.
    pub fn saved_bytes(&self, n: usize, checkpoints: &[usize]) -> usize {
        checkpoints.iter().fold(self.engine.saved_bytes(n, true), |sum, &c| sum + self.engine.saved_bytes(c, false))
    }

    /// Bytes of a saved sequence that are of draft heads: those of the sequence, then those of each checkpoint, which come
    /// after the model's.
    pub fn head_bytes(&self, n: usize, checkpoints: &[usize]) -> Vec<usize> {
        let one = |n: usize, whole: bool| self.engine.saved_bytes(n, whole) - self.engine.model_bytes(n, whole);
        [one(n, true)].into_iter().chain(checkpoints.iter().map(|&c| one(c, false))).collect()
    }

    /// Makes a sequence what [`Session::save`] wrote of one with these tokens and checkpoints, once all of it was read
    /// and `agreed` found nothing wrong with it. Until then it stays as it was. `skipped` are the [`Session::head_bytes`]
    /// of a session with other draft heads, or without: its heads' rows are not read then, and those of this session begin
    /// with none, which makes their first drafts worse.
    ///
    /// # Errors
    /// If it cannot be this session's, cannot be read, or is not agreed to; or if the GPU fails, with the sequence
    /// cleared.
    pub fn load<R: Read>(
        &mut self,
        seq: usize,
        (tokens, checkpoints): (&[u32], &[usize]),
        skipped: Option<&[usize]>,
        from: &mut R,
        agreed: impl FnOnce(&mut R) -> Result<()>,
    ) -> Result<()> {
        self.check(0, tokens)?;
        let n = tokens.len();
        if checkpoints.len() > CHECKPOINTS || !checkpoints.is_sorted() || checkpoints.iter().any(|&c| c >= n) {
            bail!("checkpoints at {checkpoints:?}: at most {CHECKPOINTS}, in rising order, below {n} tokens expected");
        }
        let skip = |from: &mut R, i: usize| -> Result<()> {
            let bytes = skipped.and_then(|list| list.get(i)).map_or(0, |n| *n as u64);
            std::io::copy(&mut from.by_ref().take(bytes), &mut std::io::sink())?;
            Ok(())
        };
        let parts = self.engine.read(n, skipped.is_none(), from)?;
        skip(from, 0)?;
        let mut list = Vec::with_capacity(checkpoints.len());
        for (i, &n) in checkpoints.iter().enumerate() {
            let mut states = vec![0; self.engine.saved_bytes(n, false)];
            let own = if skipped.is_none() { states.len() } else { self.engine.model_bytes(n, false) };
            from.read_exact(&mut states[..own])?;
            skip(from, i + 1)?;
            list.push(Checkpoint { n, states });
        }
        agreed(from)?;
        if let Err(e) = self.engine.put(seq as u32, n, parts) {
            self.clear(seq);
            return Err(e);
        }
        let heads = vec![HeadProgress::whole(n); self.n_heads()];
        self.seqs[seq] = Sequence { tokens: tokens.to_vec(), checkpoints: list, heads };
        self.checkpoint(seq) // going back to here must not mean reading it all
    }

    /// Makes sequence `to` the first `n` tokens of sequence `from`. Returns how many had to be read again for it.
    ///
    /// # Errors
    /// If the GPU fails.
    ///
    /// # Panics
    /// If `from` has fewer.
    pub fn copy(&mut self, from: usize, to: usize, n: usize) -> Result<usize> {
        let had = self.lengths();
        match self.copy_once(from, to, n) {
            Err(e) if e.is::<GpuLost>() && self.lost.is_none() => {
                self.after_loss(&had, e)?;
                self.copy_once(from, to, n)
            }
            done => done,
        }
    }

    fn copy_once(&mut self, from: usize, to: usize, n: usize) -> Result<usize> {
        self.heads_follow(from)?;
        if self.is_overwritten() {
            // What it was at `n` may be gone: the nearest checkpoint comes along, and the rest is read again.
            self.restore(to, &self.snapshot(from)?)?;
            return self.rewind(to, n);
        }
        let mut states = Vec::with_capacity(self.engine.saved_bytes(n, true));
        self.engine.save(from as u32, n, true, &mut states)?;
        let tokens = self.seqs[from].tokens[..n].to_vec();
        self.restore(to, &Snapshot { tokens, checkpoints: Vec::new(), states })?;
        Ok(0)
    }

    /// Bytes that a sequence takes when it is saved.
    pub fn state_bytes(&self, seq: usize) -> usize {
        self.saved_bytes(self.seqs[seq].tokens.len(), &self.checkpoints(seq))
    }

    /// Everything the sequence remembers.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn snapshot(&self, seq: usize) -> Result<Snapshot> {
        let (tokens, checkpoints) = (self.seqs[seq].tokens.clone(), self.checkpoints(seq));
        let mut states = Vec::with_capacity(self.saved_bytes(tokens.len(), &checkpoints));
        self.save(seq, &mut states)?;
        Ok(Snapshot { tokens, checkpoints, states })
    }

    /// Makes a sequence what it was when the snapshot was taken.
    ///
    /// # Errors
    /// With the sequence as it was, if the snapshot is not from this model and these cache types. With the sequence
    /// cleared, if the GPU fails.
    pub fn restore(&mut self, seq: usize, snapshot: &Snapshot) -> Result<()> {
        let Snapshot { tokens, checkpoints, states } = snapshot;
        let (all, heads) = (self.saved_bytes(tokens.len(), checkpoints), self.head_bytes(tokens.len(), checkpoints));
        let skipped: Option<&[usize]> = match states.len() {
            n if n == all => None,
            n if n == all - heads.iter().sum::<usize>() => Some(&[]), // of a session without draft heads
            _ => bail!("the saved state does not fit this model and its cache types"),
        };
        self.load(seq, (tokens, checkpoints), skipped, &mut &states[..], |_| Ok(()))
    }
}

/// Logs what is where (`-v`), and every step's place (`-vv`).
fn log_placement(tape: &Tape, plan: &Plan, shape: Shape) {
    let Shape { n_seq, n_ctx, n_batch, .. } = shape;
    tracing::debug!("context: {n_ctx} tokens, {n_seq} sequence(s), batches of up to {n_batch} tokens");
    for place in Place::ALL {
        let steps = plan.places.iter().filter(|p| **p == place).count();
        let held = tape.states.iter().zip(&plan.state_places).filter(|(_, p)| **p == place);
        let states: usize = held.map(|(s, _)| s.bytes(n_ctx, n_batch).saturating_mul(n_seq)).sum();
        let (states, buffers) = (states as f64 / 1e6, plan.buffer_bytes(place, &shape) as f64 / 1e6);
        if steps > 0 {
            tracing::debug!(
                "{}: {steps} of {} steps, {states:.1} MB of KV cache and states, {buffers:.1} MB of working buffers",
                place.name(),
                tape.steps.len()
            );
        }
    }
    for (step, place) in tape.steps.iter().zip(&plan.places) {
        tracing::trace!("step {}: {} on {}, {} bytes a token", step.label, step.op.name(), place.name(), {
            tape.step_bytes(step)
        });
    }
}

/// The newest checkpoints of a list: the first of `counts` always, up to the second while they take at most `bytes`.
fn newest(list: &[Checkpoint], counts: (usize, usize), bytes: usize) -> &[Checkpoint] {
    let (mut n, mut sum) = (0, 0);
    for c in list.iter().rev() {
        sum += c.states.len();
        if n == counts.1 || (n >= counts.0 && sum > bytes) {
            break;
        }
        n += 1;
    }
    &list[list.len() - n..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_large_checkpoints_the_newest_few_are_taken_and_of_small_ones_many() {
        let list = |bytes| (0..20).map(|n| Checkpoint { n, states: vec![0; bytes] }).collect::<Vec<_>>();
        let taken = |bytes| newest(&list(bytes), (2, 16), 1000).iter().map(|c| c.n).collect::<Vec<_>>();
        assert_eq!(taken(2000), [18, 19]);
        assert_eq!(taken(300), [17, 18, 19]);
        assert_eq!(taken(1), (4..20).collect::<Vec<_>>());
        assert!(newest(&[], (2, 16), 1000).is_empty());
    }
}
