//! `tandem bench`: prompt and decode rates on real text, with the share of this machine's memory
//! bandwidth that decode reaches, and a hash of the last logits, by which two builds can be
//! compared.

mod spec;

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use super::args::{self, Spec, TableFormat};
use super::errors::{Failure, usage};
use super::human::size;
use super::stats::stats;
use super::terminal::Stdout;
use super::{open, predict};
use crate::cpu::Bandwidth;
use crate::session::{Options, Session, Want};
use crate::simd;
use crate::tape::ExpertShare;
use crate::text::Tokenizer;

/// The beginning of Shakespeare's Coriolanus (public domain): real text, since a router fed random
/// tokens spreads its choice over experts as no reader's text does.
static TEXT: &str = include_str!("../../benches/text.txt");

/// One line of the table.
struct TestRow {
    test: String,
    rates: Vec<f64>,
    /// For decode: GB of weights read per second from the CPU's memory, what the machine read right
    /// before and after, and the ratio of the two round by round. Medians.
    read: Option<[f64; 3]>,
    /// With a GPU: the share of its memory's rate that weights were read at, for decode, and the
    /// share of the bus's rate that experts came over with, for prompts. Medians.
    gpu: Option<f64>,
    hash: u64,
}

/// Runs the verb.
pub(super) fn run(a: &args::BenchArgs) -> Result<()> {
    if a.repetitions == 0 {
        return usage("--repetitions must be at least 1".into());
    }
    if a.speculation.spec != Spec::Off {
        return spec::run(a);
    }
    if let Some(path) = &a.speculation.model_draft {
        return usage(format!("-md {}: bench drafts only with --spec", path.display()));
    }
    let mut o = open::options(&a.model)?;
    let most = |list: &[usize]| list.iter().copied().max().unwrap_or(0);
    let need = most(&a.n_depth) + most(&a.n_prompt).max(most(&a.n_gen));
    make_room(&mut o, need)?;
    let gguf = open::header(a.model.model.as_deref(), &o.first_load(), o.threads)?;
    let name = gguf.meta.opt_str("general.name")?.unwrap_or("unnamed").to_string();
    let tokenizer = Tokenizer::new(&gguf).context(Failure::Model)?;
    let mut s = open::session(gguf, &a.model, &o)?;
    let text = tokenizer.encode(TEXT, true, false)?;

    let tape = &s.engine().tape;
    let bytes: usize = tape.weights.iter().map(|w| w.bytes).sum();
    let params: usize = tape.weights.iter().map(|w| w.count()).sum();
    let per_token: usize = tape.bytes_per_token();
    let rates = s.engine().devices().first().map(|d| d.rates()).transpose()?;
    let launch = s.engine().devices().first().map(|d| d.gpu().launch_seconds()).transpose()?;
    let threads = s.engine().pool.threads();
    let bandwidth = a.n_gen.iter().any(|n| *n > 0).then(|| predict::roof(bytes, &s.engine().pool));
    let roof_bytes = bandwidth.as_ref().map(Bandwidth::bytes);

    let bench = Bench { text, read: Reads::new(&s), rates, bandwidth, repetitions: a.repetitions };
    let mut rows = Vec::new();
    for &depth in &a.n_depth {
        let tests = a.n_prompt.iter().map(|n| (*n, true)).chain(a.n_gen.iter().map(|n| (*n, false)));
        for (n, is_prompt) in tests.filter(|(n, _)| *n > 0) {
            rows.push(bench.row(&mut s, depth, n, is_prompt)?);
        }
    }
    let isa = simd::isa().name();
    stats(&s, &a.model)?;
    print(a.output, &rows, &TableHead { name, size: bytes, params, per_token, threads, isa, rates, launch, roof_bytes })
}

/// Makes the context as long as tests need, unless its length was asked for.
///
/// # Errors
/// If that is too short: a usage error.
fn make_room(o: &mut Options, need: usize) -> Result<()> {
    match o.n_ctx {
        Some(n) if n != 0 && n < need => usage(format!("-c {n}: these tests need {need} tokens of context")),
        Some(_) => Ok(()),
        None => {
            o.n_ctx = Some(need);
            Ok(())
        }
    }
}

/// Bytes of weights that one token reads, by place.
struct Reads {
    cpu: f64,
    gpu: f64,
    /// Of experts that run on the CPU or on the GPU, token by token; they are part of `cpu`.
    both: f64,
}

impl Reads {
    fn new(s: &Session) -> Reads {
        let (tape, places) = (&s.engine().tape, &s.engine().plan.places);
        let at = |on_gpu: bool| {
            let here = tape.model().iter().zip(places).filter(|(_, p)| p.is_gpu() == on_gpu);
            here.map(|(step, _)| tape.step_bytes(step)).sum::<usize>() as f64
        };
        let both =
            tape.model().iter().filter(|s| s.share == ExpertShare::OnCpu).map(|s| tape.step_bytes(s)).sum::<usize>();
        Reads { cpu: at(false), gpu: at(true), both: both as f64 }
    }
}

/// What all tests have in common.
struct Bench {
    text: Vec<u32>,
    read: Reads,
    /// Bytes per second over the bus and through the GPU's memory.
    rates: Option<(f64, f64)>,
    /// Measures memory right before and after every round of decoding.
    bandwidth: Option<Bandwidth>,
    repetitions: usize,
}

impl Bench {
    /// Runs one test: a prompt of `n` tokens, or `n` single tokens, with `depth` tokens in the
    /// context.
    fn row(&self, s: &mut Session, depth: usize, n: usize, is_prompt: bool) -> Result<TestRow> {
        let token = |i: usize| self.text[i % self.text.len()];
        let at = if depth > 0 { format!(" @ d{depth}") } else { String::new() };
        let test = format!("{}{n}{at}", if is_prompt { "pp" } else { "tg" });
        let mut row = TestRow { test, rates: Vec::new(), read: None, gpu: None, hash: 0 };
        let before: Vec<u32> = (0..depth).map(token).collect();
        let now: Vec<u32> = (depth..depth + n).map(token).collect();
        let (mut gbps, mut roofs, mut shares, mut gpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let bandwidth = self.bandwidth.as_ref().filter(|_| !is_prompt);
        // The first round warms caches and is not counted.
        for round in 0..=self.repetitions {
            if s.tokens(0).starts_with(&before) && s.tokens(0).len() >= depth {
                s.rewind(0, depth)?;
            } else {
                s.clear(0);
                s.feed(0, &before, Want::None)?;
            }
            let before = bandwidth.map(|b| b.measure(&s.engine().pool));
            let counts = |s: &Session| s.engine().cache_stats();
            let had = counts(s);
            let start = Instant::now();
            let mut logits = Vec::new();
            if is_prompt {
                logits = s.feed(0, &now, Want::Last)?.into_logits();
            } else {
                for &t in &now {
                    logits = s.feed(0, &[t], Want::Last)?.into_logits();
                }
            }
            let seconds = start.elapsed().as_secs_f64();
            row.hash = hash(&logits);
            if round == 0 {
                continue;
            }
            row.rates.push(n as f64 / seconds);
            let has = counts(s);
            let hits = (has.hits - had.hits) as f64 / ((has.chosen - had.chosen) as f64).max(1.0);
            if let Some((bus, memory)) = self.rates {
                gpu.push(match is_prompt {
                    true => (has.passed_bytes - had.passed_bytes) as f64 / seconds / bus,
                    false => n as f64 * (self.read.gpu + hits * self.read.both) / seconds / memory,
                });
            }
            if let (Some(before), Some(bandwidth)) = (before, bandwidth) {
                let roof = (before + bandwidth.measure(&s.engine().pool)) / 2.0;
                let rate = n as f64 * (self.read.cpu - hits * self.read.both) / seconds / 1e9;
                gbps.push(rate);
                roofs.push(roof);
                shares.push(rate / roof);
            }
        }
        row.gpu = self.rates.map(|_| median(&gpu));
        if !is_prompt {
            row.read = Some([median(&gbps), median(&roofs), median(&shares)]);
        }
        Ok(row)
    }
}

/// What the whole table has in common.
struct TableHead {
    name: String,
    size: usize,
    params: usize,
    per_token: usize,
    threads: usize,
    isa: &'static str,
    /// Bytes per second over the bus and through the GPU's memory.
    rates: Option<(f64, f64)>,
    /// Seconds of a small kernel of the GPU, in a graph and by itself.
    launch: Option<(f64, f64)>,
    /// Bytes of the buffer whose read rate is the roof over decoding.
    roof_bytes: Option<usize>,
}

/// FNV-1a over the bits.
fn hash(logits: &[f32]) -> u64 {
    let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
    hash_of(&bytes)
}

fn hash_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

fn median(v: &[f64]) -> f64 {
    let mut v = v.to_vec();
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

/// Writes a table in Markdown or with commas.
fn write_table<const N: usize>(
    out: &mut impl Write,
    form: TableFormat,
    columns: [&str; N],
    mut rows: impl Iterator<Item = [String; N]>,
) -> Result<()> {
    let (open, sep, close) = if form == TableFormat::Csv { ("", ",", "") } else { ("| ", " | ", " |") };
    let mut line = |cells: [String; N]| writeln!(out, "{open}{}{close}", cells.join(sep));
    line(columns.map(String::from))?;
    if form == TableFormat::Md {
        line(columns.map(|c| if matches!(c, "model" | "isa" | "test" | "hash") { "---" } else { "--:" }.into()))?;
    }
    let (not, but) = if form == TableFormat::Csv { (',', ";") } else { ('|', "/") };
    Ok(rows.try_for_each(|cells| line(cells.map(|cell| cell.replace(not, but))))?)
}

fn print(form: TableFormat, rows: &[TestRow], h: &TableHead) -> Result<()> {
    let mut out = Stdout::of_reports();
    let spread = |r: &[f64]| (r.iter().copied().fold(f64::MAX, f64::min), r.iter().copied().fold(0.0, f64::max));
    if form == TableFormat::Json {
        let list: Vec<_> = rows
            .iter()
            .map(|r| {
                json!({
                    "model": h.name, "size_bytes": h.size, "params": h.params, "threads": h.threads, "isa": h.isa,
                    "bytes_per_token": h.per_token, "test": r.test, "tokens_per_s": median(&r.rates),
                    "tokens_per_s_each": r.rates, "gbps": r.read.map(|r| r[0]), "read_gbps": r.read.map(|r| r[1]),
                    "share_of_read": r.read.map(|r| r[2]), "read_bytes": h.roof_bytes, "share_of_gpu": r.gpu,
                    "bus_gbps": h.rates.map(|r| r.0 / 1e9), "vram_gbps": h.rates.map(|r| r.1 / 1e9),
                    "launch_us": h.launch.map(|l| [l.0 * 1e6, l.1 * 1e6]),
                    "logits_hash": format!("{:016x}", r.hash),
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(());
    }
    let columns = [
        "model", "size GB", "params B", "isa", "threads", "test", "t/s", "min-max", "GB/s", "of read", "of GPU", "hash",
    ];
    let cells = |r: &TestRow| {
        let (low, high) = spread(&r.rates);
        [
            h.name.clone(),
            format!("{:.2}", h.size as f64 / 1e9),
            format!("{:.2}", h.params as f64 / 1e9),
            h.isa.into(),
            h.threads.to_string(),
            r.test.clone(),
            format!("{:.2}", median(&r.rates)),
            format!("{low:.2}-{high:.2}"),
            r.read.map_or("".into(), |r| format!("{:.2}", r[0])),
            r.read.map_or("".into(), |r| format!("{:.0}%", r[2] * 100.0)),
            r.gpu.map_or("".into(), |share| format!("{:.0}%", share * 100.0)),
            format!("{:016x}", r.hash),
        ]
    };
    write_table(&mut out, form, columns, rows.iter().map(cells))?;
    if form == TableFormat::Md {
        let gb = h.per_token as f64 / 1e9;
        let roof = rows.iter().find_map(|r| r.read).map(|r| r[1]);
        let allows = roof.map_or("".into(), |roof| {
            let (n, most) = (h.threads, roof / gb);
            // A model that is smaller than the buffer that is measured may be read from the caches.
            let small = h.roof_bytes.filter(|bytes| *bytes >= h.size / 8 * 8);
            let of = small.map_or("".into(), |bytes| format!(" of a buffer of the model's size ({})", size(bytes)));
            format!("; this machine reads {roof:.1} GB/s{of} with {n} threads, which allows {most:.1} t/s")
        });
        writeln!(out, "\n{gb:.3} GB of weights read per token{allows}.")?;
        if let Some((graph, single)) = h.launch {
            let [graph, single] = [graph, single].map(|s| s * 1e6);
            writeln!(out, "A small kernel takes {graph:.1} microseconds in a graph, {single:.1} by itself.")?;
        }
        if let Some((bus, memory)) = h.rates {
            writeln!(
                out,
                "The GPU reads {:.1} GB/s over the bus and {:.1} GB/s from its memory: \"of GPU\" is the share of the bus rate \
                 for prompts, and of the memory rate for decode.",
                bus / 1e9,
                memory / 1e9
            )?;
        }
    }
    Ok(())
}
