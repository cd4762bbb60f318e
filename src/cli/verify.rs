//! `tandem verify`: whether this machine computes what it should, on the CPU with every instruction
//! set and on the GPU.
//!
//! Two tables. The first holds products of every weight format to sums in f64 of the decoded
//! weights. The second runs a model: every step is given the scalar kernels' values, and what it
//! makes of them on each place is compared with what the scalar kernels made; last come the logits
//! of the model left to itself, over a prompt and token by token.
//!
//! Figures are normalized mean squared errors, sum (got - want)^2 / sum want^2, the worst of each
//! line.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::errors::Failure;
use super::terminal::Stdout;
use super::{args, open};
use crate::cpu::{self, Group, Pool};
use crate::cuda::{Gpu, Ptr, module_of};
use crate::gguf::Load;
use crate::plan::CacheSize;
use crate::quant::Acts;
use crate::quant::{self, QuantType, Rng};
use crate::session::{self, Options, Session, Want};
use crate::simd::{self, Isa};
use crate::tape::{Batch, GpuIo, GpuValue, GpuWeight, MatrixRows, Scratch};

/// What products may be off: activations of 8 bits, with a scale for 32 of them, are off by 3e-5,
/// and with one for 256 by 6e-5. A single code that is off by one in every block of 32 shows as
/// 1e-3 or more.
const PRODUCT: f64 = 1.5e-4;
/// What a step may be off from the scalar kernels: on the CPU by the order of sums, and rows that
/// are rounded again; on the GPU also by activations that share a scale with fewer others, twice in
/// an expert, whose products then cancel in a single token's sum (6.5e-4 was seen), and by
/// attention in f16.
const STEP: (f64, f64) = (1e-6, 2e-3);
/// What the logits may be off: the steps' errors add up, and a router may choose otherwise between
/// two that are close.
const LOGITS: (f64, f64) = (1e-3, 2e-2);

/// A place that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Cpu(Isa),
    /// All that a GPU can do.
    Gpu,
    /// Experts on the CPU, some of them cached on the GPU.
    Hybrid,
}

impl Where {
    fn name(self) -> &'static str {
        match self {
            Where::Cpu(isa) => isa.name(),
            Where::Gpu => "GPU",
            Where::Hybrid => "hybrid",
        }
    }

    fn is_cpu(self) -> bool {
        matches!(self, Where::Cpu(_))
    }
}

/// Runs the verb.
pub(super) fn run(a: &args::VerifyArgs) -> Result<()> {
    // The formats take a while: faults of the model are reported before that.
    let options = open::options(&a.model)?;
    let path = a.model.model.as_deref();
    let load = if path.is_some() { Load { mmap: true, mlock: false } } else { options.load };
    let file = open::header(path, &load, 0)?;
    session::tape(&file, &options).context(Failure::Model)?;
    drop(file);
    let gpu = match Gpu::open() {
        Ok(gpu) => Some(Arc::new(gpu)),
        Err(e) => {
            tracing::info!("GPU: not verified: {e:#}");
            None
        }
    };
    let best = simd::isa();
    let isas = Isa::ALL.into_iter().filter(|isa| *isa <= best);
    let mut places: Vec<Where> = isas.map(Where::Cpu).collect();
    if let Some(gpu) = &gpu {
        tracing::info!("GPU: {gpu:?}");
        places.extend([Where::Gpu, Where::Hybrid]);
    }
    let mut bad = Vec::new();
    if !a.model_only {
        report(
            "format",
            &places[..places.len() - gpu.is_some() as usize],
            &products(&places, gpu.as_deref())?,
            &mut bad,
        )?;
    }
    report("op", &places, &model(a, &places, gpu.as_ref(), best)?, &mut bad)?;
    simd::set(best);
    if bad.is_empty() {
        return Ok(writeln!(Stdout::of_reports(), "\nAll within their limits.")?);
    }
    bail!("{} of the errors above exceed their limits: {}", bad.len(), bad.join("; "))
}

/// A line of a table: what, and for each place the worst error and its limit.
type ErrorTable = BTreeMap<String, Vec<Option<(f64, f64)>>>;

fn report(head: &str, places: &[Where], lines: &ErrorTable, bad: &mut Vec<String>) -> Result<()> {
    let mut out = Stdout::of_reports();
    let wide = lines.keys().map(String::len).max().unwrap_or(0).max(head.len());
    write!(out, "\n{head:wide$}")?;
    places.iter().try_for_each(|p| write!(out, "  {:>10}", p.name()))?;
    writeln!(out)?;
    for (name, cells) in lines {
        write!(out, "{name:wide$}")?;
        for (cell, place) in cells.iter().zip(places) {
            match cell {
                None => write!(out, "  {:>10}", "-")?,
                Some((error, limit)) => {
                    let over = error.is_nan() || error > limit;
                    write!(out, "  {:>9}{}", format!("{error:.1e}"), if over { '!' } else { ' ' })?;
                    if over {
                        bad.push(format!("{name} on {}: error {error:.1e}, at most {limit:.0e} allowed", place.name()));
                    }
                }
            }
        }
        writeln!(out)?;
    }
    out.flush()?;
    Ok(())
}

/// How far `got` is from `want`.
fn nmse(want: impl Iterator<Item = f64>, got: &[f32]) -> f64 {
    let (mut off, mut size) = (0.0, 0.0);
    for (want, got) in want.zip(got) {
        off += (*got as f64 - want).powi(2);
        size += want * want;
    }
    if off == 0.0 { 0.0 } else { off / size.max(1e-30) }
}

/// Products of every format with few and with many rows.
fn products(places: &[Where], gpu: Option<&Gpu>) -> Result<ErrorTable> {
    let pool = Pool::new(0)?;
    let mut lines = ErrorTable::new();
    let mut rng = Rng(7);
    for ty in quant::TYPES {
        let (n_out, n_in) = (70, if ty.act.block() == 1 { 500 } else { 1024 });
        let mut w = vec![0; ty.row_bytes(n_out * n_in)];
        w.chunks_exact_mut(ty.bytes).for_each(|b| (ty.random)(&mut rng, b));
        let mut values = vec![0f32; n_out * n_in];
        (ty.dequant)(&w, &mut values);
        let mut worst: Vec<Option<(f64, f64)>> = vec![None; places.len()];
        for rows in [1, 4, 40] {
            let x: Vec<f32> = (0..rows * n_in).map(|_| rng.normal()).collect();
            let want: Vec<f64> = x
                .chunks_exact(n_in)
                .flat_map(|x| {
                    values.chunks_exact(n_in).map(move |w| w.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum())
                })
                .collect();
            for (place, worst) in places.iter().zip(&mut worst) {
                let got = match (place, gpu) {
                    (Where::Cpu(isa), _) => {
                        simd::set(*isa);
                        let pairs: Vec<(u32, u32)> = (0..rows as u32).map(|r| (r, r)).collect();
                        let mut out = vec![0f32; rows * n_out];
                        let group = [Group { w: &w, pairs: &pairs }];
                        cpu::grouped(&pool, ty, (n_out, n_in), &group, &mut Acts::default(), &x, &mut out);
                        out
                    }
                    (Where::Gpu, Some(gpu)) if module_of(ty.name).is_some() => on_gpu(gpu, ty, (&w, n_out, n_in), &x)?,
                    _ => continue,
                };
                let error = nmse(want.iter().copied(), &got);
                let before = worst.map_or(0.0, |(e, _)| e);
                *worst = Some((if error > before || error.is_nan() { error } else { before }, PRODUCT));
            }
        }
        lines.insert(ty.name.to_owned(), worst);
    }
    Ok(lines)
}

/// A product on the GPU: rows of `x` times a matrix.
fn on_gpu(gpu: &Gpu, ty: &'static QuantType, (w, n_out, n_in): (&[u8], usize, usize), x: &[f32]) -> Result<Vec<f32>> {
    let rows = x.len() / n_in;
    let what = "a product";
    let (weights, acts) = (gpu.alloc(w.len(), what)?, gpu.alloc(x.len() * 4, what)?);
    let (out, scratch) = (gpu.alloc(rows * n_out * 4, what)?, gpu.alloc(16 << 20, what)?);
    gpu.upload(&gpu.work, weights.ptr(), w)?;
    gpu.upload(&gpu.work, acts.ptr(), x)?;
    let batch = Batch::default();
    let io = GpuIo::bare(Some(gpu), &batch, rows, Scratch::new(scratch.ptr(), scratch.bytes));
    let matrix = GpuWeight { ptr: weights.ptr(), shape: [1, n_out, n_in], ty: Some(ty), slots: Ptr::default() };
    io.product(&matrix, GpuValue { ptr: acts.ptr(), rows, width: n_in }, MatrixRows::All, out.ptr())?;
    let mut got = vec![0f32; rows * n_out];
    gpu.download(&gpu.work, &mut got, out.ptr())?;
    gpu.work.wait()?;
    Ok(got)
}

/// The calls that a model is fed with: a prompt in one batch, then single tokens.
struct Calls {
    tokens: Vec<u32>,
    prompt: usize,
}

impl Calls {
    fn new(n_vocab: usize, n: usize) -> Calls {
        let mut rng = Rng(3);
        Calls { tokens: (0..n).map(|_| rng.below(n_vocab) as u32).collect(), prompt: n - n.min(5) + 1 }
    }

    /// Feeds them all; `see` is given the call's number with every output. The logits of all
    /// tokens.
    fn feed(&self, s: &mut Session, see: &mut (dyn FnMut(usize, &str, &mut [f32]) + Send)) -> Result<Vec<f32>> {
        let (prompt, rest) = self.tokens.split_at(self.prompt);
        let mut logits =
            s.feed_observed(0, prompt, Want::All, Some(&mut |l: &str, v: &mut [f32], _| see(0, l, v)))?.into_logits();
        for (i, t) in rest.iter().enumerate() {
            let see = &mut |l: &str, v: &mut [f32], _| see(i + 1, l, v);
            logits.extend(s.feed_observed(0, &[*t], Want::All, Some(see))?.into_logits());
        }
        Ok(logits)
    }

    /// Feeds them all without an observer, as for users; returns the logits of all tokens.
    fn plain(&self, s: &mut Session) -> Result<Vec<f32>> {
        let (prompt, rest) = self.tokens.split_at(self.prompt);
        let mut logits = s.feed(0, prompt, Want::All)?.into_logits();
        for t in rest {
            logits.extend(s.feed(0, &[*t], Want::All)?.into_logits());
        }
        Ok(logits)
    }
}

/// What a call of a step gave: (call, label, number of the output) -> values.
type Reference = BTreeMap<(usize, String), Vec<Vec<f32>>>;

fn model(a: &args::VerifyArgs, places: &[Where], gpu: Option<&Arc<Gpu>>, best: Isa) -> Result<ErrorTable> {
    let base = open::for_all_logits(open::options(&a.model)?);
    let open_at = |place: Where| -> Result<Session> {
        let mut o = Options { n_ctx: Some(base.n_ctx.unwrap_or(512).max(a.tokens)), ..base.clone() };
        let file = open::header(a.model.model.as_deref(), &o.first_load(), o.threads)?;
        let opened = match place {
            Where::Cpu(isa) => {
                simd::set(isa);
                o.ask.gpu_layers = Some(0);
                Session::new(file, &o)
            }
            Where::Gpu | Where::Hybrid => {
                simd::set(best);
                let hybrid = place == Where::Hybrid;
                o.ask.cpu_moe = if hybrid { Some(usize::MAX) } else { o.ask.cpu_moe };
                o.ask.cache = if hybrid { o.ask.cache } else { CacheSize::Off };
                let gpu = gpu.expect("a place on a GPU has one").clone();
                Session::hybrid(file, &o, &[gpu], |fit, _| {
                    tracing::info!("{}: {}", place.name(), fit.describe());
                    Ok(())
                })
            }
        };
        opened.context(Failure::Model)
    };
    let mut s = open_at(Where::Cpu(Isa::Scalar))?;
    let calls = Calls::new(s.n_vocab(), a.tokens.max(2));
    // Lines are ops and the formats that they read.
    let tape = &s.engine().tape;
    let line = |step: &crate::tape::Step| {
        let mut formats: Vec<&str> = step.weights.iter().map(|w| tape.weights[w.0 as usize].format()).collect();
        formats.dedup();
        format!("{} {}", step.op.name(), formats.join(" ")).trim_end().to_owned()
    };
    let line_of: BTreeMap<String, String> = tape.steps.iter().map(|s| (s.label.clone(), line(s))).collect();
    let mut known = Reference::new();
    let logits = calls.feed(&mut s, &mut |call, label, values| {
        known.entry((call, label.to_owned())).or_default().push(values.to_vec());
    })?;
    drop(s);
    let mut lines = ErrorTable::new();
    for (at, &place) in places.iter().enumerate() {
        let (step_limit, logit_limit) = if place.is_cpu() { (STEP.0, LOGITS.0) } else { (STEP.1, LOGITS.1) };
        let mut put = |name: &str, error: f64, limit: f64| {
            let cell = &mut lines.entry(name.to_owned()).or_insert_with(|| vec![None; places.len()])[at];
            let before = cell.map_or(0.0, |(e, _)| e);
            *cell = Some((if error > before || error.is_nan() { error } else { before }, limit));
        };
        let mut s = open_at(place)?;
        let mut seen: BTreeMap<(usize, String), usize> = BTreeMap::new();
        calls.feed(&mut s, &mut |call, label, values| {
            let key = (call, label.to_owned());
            // The halves of a step have no counterpart; their sum has one.
            let Some(want) = known.get(&key) else { return };
            let turn = seen.entry(key).or_insert(0);
            put(&line_of[label], nmse(want[*turn].iter().map(|v| *v as f64), values), step_limit);
            values.copy_from_slice(&want[*turn]);
            *turn += 1;
        })?;
        drop(s);
        let got = calls.plain(&mut open_at(place)?)?;
        put("~ logits of the whole", nmse(logits.iter().map(|v| *v as f64), &got), logit_limit);
    }
    Ok(lines)
}
