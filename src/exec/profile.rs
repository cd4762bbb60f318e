//! A synthetic benchmark: what a token will cost, measured before a model is read. Its tape is walked with random
//! weights.
//!
//! Every step that the CPU will do runs as it will, on the same threads, with the same shapes. Only the bytes differ: a
//! matrix is a part of a *buffer*, random blocks of its format. Where all matrices have room each has a place of its own,
//! so that a small model is read from the cache that will hold it; of a large one the buffer is several times the last
//! cache, and matrices take turns in it, so that each is read from memory. Of the experts as many are there as have room.
//!
//! A buffer asks for huge pages, since a file's pages are in large pieces too: in small ones Q4_K of 2.4 GB walks at
//! 0.8 of the speed that it then has.
//!
//! What that leaves out: which experts text prefers (all come in turn here), and pages of a file that are not in memory.
//!
//! Rejected: a sum over bytes by rate and steps by a constant. Steps differ too much for one constant, and a small
//! model is nothing but steps.

mod prompt;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use rayon::prelude::*;

use crate::cpu::{Group, Pool, grouped, in_parallel};
use crate::plan::Place;
use crate::quant::Acts;
use crate::quant::{self, QuantType, Rng};
use crate::tape::{Batch, CpuIo, ExpertShare, Row, State, Step, Tape, Weight, WeightId, WeightKind, WeightView, Work};

/// Blocks of a format that are made at random; the rest of a buffer repeats them.
const MADE: usize = 64 << 10;
/// Rows of a table that are there to be looked up.
const LOOKED_UP: usize = 64;
/// Matrices begin at multiples of this, as tensors of a file do, and at a block.
const ALIGN: usize = 32;
/// Tokens walked, at most, and positions that they take in turn.
const TOKENS: usize = 1000;
const POSITIONS: usize = 64;
/// Bytes of one product when a format's rate is measured.
const BULK: usize = 64 << 20;

/// A tape with random weights, ready to be walked.
#[derive(Debug)]
pub struct SyntheticRun<'a> {
    tape: &'a Tape,
    pool: &'a Pool,
    /// The steps that are walked.
    steps: Vec<bool>,
    buffers: BTreeMap<&'static str, RandomBuffer>,
    /// Where each matrix begins in a buffer that has room for all.
    places: Vec<usize>,
    /// Vectors' values, and tables' integers.
    small: Vec<(Vec<f32>, Vec<i32>)>,
    /// Tokens in the context.
    depth: usize,
    /// Bytes of all matrices that are walked.
    bytes: usize,
}

/// The times of a synthetic run.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Seconds of a token: the median, which is one that nothing disturbed.
    pub token: f64,
    /// The mean, in which other programs' turns on the cores count too.
    pub mean: f64,
    /// Of it each step's, in the median; None where it was not walked: a GPU's, or one with a matrix beyond all measure.
    pub steps: Vec<Option<f64>>,
    /// The last token's logits; zeros where the head was not walked.
    pub logits: Vec<f32>,
}

/// Random blocks of one format.
#[derive(Debug)]
struct RandomBuffer {
    ty: &'static QuantType,
    bytes: MmapMut,
    /// Whether it has room for all matrices of the format.
    whole: bool,
}

/// How a step reads a matrix of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    /// All of it.
    Whole,
    /// This many matrices of the stack.
    Stack(usize),
    /// A row.
    Row,
}

/// How the matrices of a step are read, told by how much of them a token reads.
fn use_of(tape: &Tape, step: &Step, id: WeightId) -> Use {
    let all: usize = step.weights.iter().map(|w| tape.weights[w.0 as usize].bytes).sum();
    let share = step.op.bytes_per_token(&step.weights.iter().map(|w| &tape.weights[w.0 as usize]).collect::<Vec<_>>())
        as f64
        / all.max(1) as f64;
    let stack = tape.weights[id.0 as usize].shape[0];
    match stack {
        _ if share > 0.999 => Use::Whole,
        1 => Use::Row,
        n => Use::Stack((n as f64 * share).round().max(1.0) as usize),
    }
}

/// Bytes, rounded up to where the next matrix of a format can begin.
fn aligned(format: &str, bytes: usize) -> usize {
    bytes.next_multiple_of(quant::by_name(format).map_or(1, |ty| ty.bytes) * ALIGN)
}

/// Bytes of the rows of a table that are there.
fn rows_bytes(w: &Weight) -> usize {
    w.bytes / w.shape[1] * LOOKED_UP.min(w.shape[1])
}

impl SyntheticRun<'_> {
    /// Prepares a walk of the steps that `places` leaves to the CPU, with `depth` tokens in the context, in about `room`
    /// bytes.
    pub fn new<'a>(tape: &'a Tape, places: &[Place], pool: &'a Pool, depth: usize, room: usize) -> SyntheticRun<'a> {
        // For the sake of one step a buffer grows to this; steps that want more are not walked.
        let largest = room.saturating_mul(2);
        let weight = |id: &WeightId| &tape.weights[id.0 as usize];
        let matrices = |step: &'a Step| step.weights.iter().filter(|id| weight(id).kind == WeightKind::Matrix);
        let mut steps = Vec::with_capacity(tape.steps.len());
        // By format the bytes that one step wants at once; by matrix those that any step wants.
        let mut most: BTreeMap<&'static str, usize> = BTreeMap::new();
        let mut wanted = vec![0; tape.weights.len()];
        for (step, place) in tape.steps.iter().zip(places) {
            let mut wants: BTreeMap<&'static str, usize> = BTreeMap::new();
            for id in matrices(step) {
                let w = weight(id);
                let bytes = match use_of(tape, step, *id) {
                    Use::Whole => w.bytes,
                    Use::Stack(n) => w.bytes / w.shape[0] * n,
                    Use::Row => rows_bytes(w),
                };
                *wants.entry(w.format()).or_default() += aligned(w.format(), bytes);
            }
            let mapped = step.weights.iter().any(|id| weight(id).kind == WeightKind::Mapped);
            let here = !place.is_gpu() && step.share != ExpertShare::OnGpu && !mapped && step.part == 0;
            let walked = here && wants.values().all(|n| *n <= largest);
            steps.push(walked);
            for id in matrices(step).filter(|_| walked) {
                let (w, wanted) = (weight(id), &mut wanted[id.0 as usize]);
                let bytes = if use_of(tape, step, *id) == Use::Row { rows_bytes(w) } else { w.bytes };
                *wanted = (*wanted).max(aligned(w.format(), bytes));
                let most = most.entry(w.format()).or_default();
                *most = (*most).max(wants[w.format()]);
            }
        }
        let mut totals: BTreeMap<&'static str, usize> = BTreeMap::new();
        let mut at = Vec::with_capacity(tape.weights.len());
        for (w, wanted) in tape.weights.iter().zip(wanted) {
            let total = totals.entry(w.format()).or_default();
            at.push(*total);
            *total += wanted;
        }
        let all: usize = totals.values().sum();
        let buffers = most.into_iter().filter_map(|(name, most)| {
            let total = totals[name];
            let share = if all <= room { total } else { (room as f64 * total as f64 / all as f64) as usize };
            let bytes = share.max(most).min(total);
            Some((name, RandomBuffer::new(quant::by_name(name)?, bytes, bytes == total)))
        });
        let small = tape.weights.iter().map(|w| match w.kind {
            WeightKind::Matrix | WeightKind::Mapped => Default::default(),
            // Small, so that sums over a row stay near one.
            WeightKind::Vector => (vec![1.0 / 32.0; w.count()], Vec::new()),
            WeightKind::Ints { below } => (Vec::new(), (0..w.count()).map(|i| (i % below.max(1)) as i32).collect()),
        });
        SyntheticRun {
            tape,
            pool,
            steps,
            buffers: buffers.collect(),
            places: at,
            small: small.collect(),
            depth,
            bytes: all,
        }
    }

    /// Bytes of the matrices that tokens are multiplied with here, if each is chosen once.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// GB/s that products of a format reach in one long piece: what its kernels and the memory allow. None where no matrix
    /// of the format is walked.
    pub fn rate(&self, format: &str) -> Option<f64> {
        let s = self.buffers.get(format)?;
        let widest = self.tape.weights.iter().filter(|w| w.kind == WeightKind::Matrix && w.format() == format);
        let n_in = widest.max_by_key(|w| w.bytes)?.shape[2];
        let stride = s.ty.row_bytes(n_in);
        let rows = (s.bytes.len().min(BULK) / stride).max(1);
        if rows * stride > s.bytes.len() {
            return None;
        }
        let (mut acts, x, mut out) = (Acts::default(), vec![0.5; n_in], vec![0.0; rows]);
        let (mut best, mut rounds, mut from, all) = (0f64, 0, 0, Instant::now());
        while rounds < 3 || all.elapsed() < Duration::from_millis(8) {
            let group = [Group { w: &s.bytes[from..from + rows * stride], pairs: &[(0, 0)] }];
            let start = Instant::now();
            grouped(self.pool, s.ty, (rows, n_in), &group, &mut acts, &x, &mut out);
            best = best.max((rows * stride) as f64 / start.elapsed().as_secs_f64() / 1e9);
            rounds += 1;
            from += rows * stride;
            if from + rows * stride > s.bytes.len() {
                from = 0;
            }
        }
        Some(best)
    }

    /// Walks tokens for about so long: one that warms the caches, then at least one that counts.
    pub fn walk(&self, time: Duration) -> Profile {
        let tape = self.tape;
        let n_ctx = self.depth + POSITIONS;
        let mut states: Vec<State> = tape.states.iter().map(|s| State::new(s, 1, n_ctx, 1)).collect();
        for state in &mut states {
            // Written, so that rows are memory of their own: what was never written is one page of zeros.
            for (at, len) in state.saved_ranges(self.depth, true) {
                state.of_mut(0).bytes[at..at + len].fill(0);
            }
            state.replaced(0, self.depth, true);
        }
        let mut values: Vec<Vec<f32>> = tape.slots.iter().map(|s| vec![0.0; s.width]).collect();
        let (mut work, mut rng) = (Work::default(), Rng(1));
        let mut turn = 0; // of the experts
        let mut steps: Vec<Vec<f64>> = vec![Vec::new(); tape.steps.len()];
        let mut tokens = Vec::new();
        let begin = Instant::now();
        for i in 0..TOKENS {
            let token = rng.below(LOOKED_UP.min(tape.n_vocab())) as u32;
            let pos = (self.depth + i % POSITIONS) as u32;
            let batch = Batch { rows: vec![Row { token, seq: 0, pos }], output_rows: vec![0], ..Batch::default() };
            work.angles.clear();
            let start = Instant::now();
            for (n, step) in tape.steps.iter().enumerate().filter(|(n, s)| self.steps[*n] && !tape.is_of_others(s)) {
                let start = Instant::now();
                self.step(step, &batch, &mut values, &mut states, &mut work, &mut turn);
                steps[n].push(start.elapsed().as_secs_f64());
            }
            tokens.push(start.elapsed().as_secs_f64());
            if i > 0 && begin.elapsed() >= time {
                break;
            }
        }
        let counted = |v: &[f64]| median(v.get(1..).filter(|v| !v.is_empty())?);
        let logits = tape.logits.map(|l| std::mem::take(&mut values[l.0 as usize])).unwrap_or_default();
        let mean = tokens[1..].iter().sum::<f64>() / (tokens.len() - 1) as f64;
        let steps = steps.iter().map(|s| counted(s)).collect();
        Profile { token: counted(&tokens).unwrap_or(0.0), mean, steps, logits }
    }

    fn step(
        &self,
        step: &Step,
        batch: &Batch,
        values: &mut [Vec<f32>],
        states: &mut [State],
        work: &mut Work,
        turn: &mut usize,
    ) {
        let (views, there) = self.views(step);
        if let Some(there) = there {
            // The experts that come next, whatever a router of random weights would choose.
            let ids = &mut values[step.ins[1].0 as usize];
            ids.iter_mut().enumerate().for_each(|(j, id)| *id = ((*turn + j) % there) as f32);
            *turn += ids.len();
        }
        let mut outs: Vec<Vec<f32>> = step.outs.iter().map(|o| std::mem::take(&mut values[o.0 as usize])).collect();
        let ins: Vec<&[f32]> = step.ins.iter().map(|x| &values[x.0 as usize][..]).collect();
        self.compute(step, (batch, 1), (&ins, &mut outs), &views, states, work);
        for (o, out) in step.outs.iter().zip(outs) {
            values[o.0 as usize] = out;
        }
    }

    /// Calls a step's CPU body on a batch of which its inputs have `rows` rows.
    fn compute(
        &self,
        step: &Step,
        (batch, rows): (&Batch, usize),
        (ins, outs): (&[&[f32]], &mut [Vec<f32>]),
        weights: &[WeightView<'_>],
        states: &mut [State],
        work: &mut Work,
    ) {
        let mut own: Vec<State> = step.states.iter().map(|s| std::mem::take(&mut states[s.0 as usize])).collect();
        step.op.cpu(&mut CpuIo {
            batch,
            rows,
            ins,
            outs: outs.iter_mut().map(|out| &mut out[..]).collect(),
            weights,
            passes: None,
            states: &mut own,
            work,
            pool: self.pool,
        });
        for (s, state) in step.states.iter().zip(own) {
            states[s.0 as usize] = state;
        }
    }

    /// The weights as a step sees them, and of one that is routed how many experts are there of
    /// every stack.
    fn views(&self, step: &Step) -> (Vec<WeightView<'_>>, Option<usize>) {
        let (views, there): (Vec<_>, Vec<_>) = step.weights.iter().map(|id| self.view(step, *id)).unzip();
        (views, there.into_iter().flatten().min())
    }

    /// A weight as a step sees it, and of a stack how many matrices are there.
    fn view(&self, step: &Step, id: WeightId) -> (WeightView<'_>, Option<usize>) {
        let (w, (values, ints)) = (&self.tape.weights[id.0 as usize], &self.small[id.0 as usize]);
        let view = WeightView { data: &[], values, ints, shape: w.shape, ty: None, slots: &[] };
        let Some(s) = self.buffers.get(w.format()).filter(|_| w.kind == WeightKind::Matrix) else {
            return (view, None);
        };
        let ty = Some(s.ty);
        let at = self.places[id.0 as usize];
        let part = |bytes: usize| {
            let unit = s.ty.bytes * ALIGN;
            let at = if at + bytes <= s.bytes.len() { at } else { at % (s.bytes.len() - bytes + 1) / unit * unit };
            &s.bytes[at..at + bytes]
        };
        match use_of(self.tape, step, id) {
            Use::Whole => (WeightView { data: part(w.bytes), ty, ..view }, None),
            Use::Row => (WeightView { data: part(rows_bytes(w)), ty, ..view }, None),
            Use::Stack(_) if s.whole => (WeightView { data: part(w.bytes), ty, ..view }, Some(w.shape[0])),
            Use::Stack(_) => {
                // Stacks of one step come one after the other, so that none is in a cache for another's sake.
                let one = |w: &Weight| w.bytes / w.shape[0];
                let of_step = || step.weights.iter().map(|x| &self.tape.weights[x.0 as usize]);
                let same = || of_step().filter(|x| x.kind == WeightKind::Matrix && x.format() == w.format());
                let n = (s.bytes.len() / same().map(one).sum::<usize>()).min(w.shape[0]);
                let before: usize = same().take_while(|x| x.name != w.name).map(one).sum();
                (WeightView { data: &s.bytes[n * before..][..n * one(w)], ty, ..view }, Some(n))
            }
        }
    }
}

impl RandomBuffer {
    fn new(ty: &'static QuantType, bytes: usize, whole: bool) -> RandomBuffer {
        let mut map = MmapMut::map_anon(bytes).expect("memory that the system said it has");
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage); // a system without them does well enough
        let mut rng = Rng(7);
        let mut made = vec![0; (MADE / ty.bytes * ty.bytes).min(bytes.next_multiple_of(ty.bytes))];
        made.chunks_exact_mut(ty.bytes).for_each(|block| (ty.random)(&mut rng, block));
        let parts = map.par_chunks_mut(made.len());
        in_parallel(|| parts.for_each(|to| to.copy_from_slice(&made[..to.len()]))).expect("the run's pool has threads");
        RandomBuffer { ty, bytes: map, whole }
    }
}

fn median(v: &[f64]) -> Option<f64> {
    let mut v = v.to_vec();
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::Gguf;
    use crate::models;
    use crate::tape::Settings;

    pub(super) fn tape(name: &str) -> Tape {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/models/{name}.gguf"));
        let f16 = quant::by_name("f16").unwrap();
        models::build(&Gguf::open(&path).unwrap(), Settings { n_ctx: 4096, type_k: f16, type_v: f16, heads: false })
            .unwrap()
    }

    #[test]
    fn every_family_is_walked_whole_whatever_room_there_is() {
        let pool = Pool::new(2).unwrap();
        for name in ["qwen3moe", "gpt-oss", "qwen35", "qwen35moe", "deepseek2-v3", "deepseek4"] {
            let tape = tape(name);
            let places = vec![Place::Cpu; tape.steps.len()];
            for (depth, room) in [(0, 1 << 30), (700, 1 << 30), (3000, 256 << 10)] {
                let walked = SyntheticRun::new(&tape, &places, &pool, depth, room).walk(Duration::ZERO);
                assert!(walked.steps.iter().all(|s| s.is_some_and(|s| s > 0.0)), "{name} at {depth}");
                assert!(walked.token >= walked.steps.iter().flatten().sum::<f64>() * 0.5, "{name} at {depth}");
                assert!(walked.mean > 0.0 && walked.logits.len() == tape.n_vocab());
            }
        }
    }

    #[test]
    fn what_a_gpu_does_is_not_walked() {
        let pool = Pool::new(1).unwrap();
        let tape = tape("qwen3moe");
        let experts = |s: &Step| s.op.name() == "experts";
        let places: Vec<Place> =
            tape.steps.iter().map(|s| if experts(s) { Place::Cpu } else { Place::Gpu(0) }).collect();
        let walked = SyntheticRun::new(&tape, &places, &pool, 0, 1 << 20).walk(Duration::ZERO);
        for (step, time) in tape.steps.iter().zip(&walked.steps) {
            assert_eq!(experts(step), time.is_some(), "{}", step.label);
        }
        assert!(walked.logits.iter().all(|l| *l == 0.0));
    }

    #[test]
    fn formats_that_are_there_have_a_rate_and_others_none() {
        let pool = Pool::new(1).unwrap();
        let tape = tape("qwen3moe");
        let r = SyntheticRun::new(&tape, &vec![Place::Cpu; tape.steps.len()], &pool, 0, 1 << 30);
        assert!(r.rate("F32").unwrap() > 0.0);
        assert!(r.rate("IQ1_M").is_none());
    }
}
