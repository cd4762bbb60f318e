//! `tandem bench --spec`: greedy decoding with drafts and without, in turn, on real text; and what a step costs by its rows,
//! by which the number of drafts is chosen, with the experts that it reads.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{TEXT, hash_of, median, write_table};
use crate::cli::args::{BenchArgs, TableFormat};
use crate::cli::errors::{Failure, off};
use crate::cli::stats::stats;
use crate::cli::terminal::Stdout;
use crate::cli::{open, speculation};
use crate::exec::ExpertReads;
use crate::sample::argmax;
use crate::session::{Output, Session, Want};
use crate::simd;
use crate::speculate::{Next, RowCosts, SourceStats, Speculation};
use crate::text::Tokenizer;

/// How often each number of rows is measured for each repetition.
const STEPS: usize = 4;

/// Answers of `n` tokens with drafts and without.
struct Pairs {
    test: String,
    /// Seconds of every answer without drafts, and of the one with drafts next to it.
    seconds: Vec<[f64; 2]>,
    n: usize,
    /// By the name of the source.
    sources: Vec<(&'static str, SourceStats)>,
    /// The share of the vocabulary that each one's drafts looked at, so far.
    looked: Vec<Option<f64>>,
    /// Whether the texts with drafts were those without.
    same: bool,
    hash: u64,
    reads: ExpertReads,
    steps: Vec<StepCost>,
}

impl Pairs {
    /// Tokens per second without drafts (0) or with them (1).
    fn rate(&self, with: usize) -> f64 {
        median(&self.rates(with))
    }

    fn rates(&self, with: usize) -> Vec<f64> {
        self.seconds.iter().map(|pair| self.n as f64 / pair[with]).collect()
    }

    /// How many times as fast each answer with drafts was.
    fn ratios(&self) -> Vec<f64> {
        self.seconds.iter().map(|pair| pair[0] / pair[1]).collect()
    }

    fn drafted(&self) -> SourceStats {
        let mut sum = SourceStats::default();
        self.sources.iter().for_each(|(_, stats)| sum.add(stats));
        sum
    }
}

/// What steps with this many rows cost.
struct StepCost {
    rows: usize,
    seconds: f64,
    /// Different experts that a layer read; None without experts on the CPU.
    experts: Option<f64>,
    /// Seconds as predicted by those of one and two rows: in a straight line, and by the experts that are read.
    line: Option<f64>,
    by_experts: Option<f64>,
}

/// Runs the verb with `--spec`.
pub(super) fn run(a: &BenchArgs) -> Result<()> {
    let limits = speculation::limits(&a.speculation, &a.model)?;
    if a.n_depth != [0] {
        off("-d", "with --spec the text before the answer has -p tokens")?;
    }
    let mut o = open::for_sequences(open::options(&a.model)?, 1, false);
    (o.drafts, o.stats) = (limits.most, true);
    o.heads = speculation::uses_heads(&a.speculation, limits);
    let most = |list: &[usize]| list.iter().copied().max().unwrap_or(0);
    let steps = (1 + limits.most) * (2 + limits.most) / 2; // of a round over all numbers of rows
    let need = most(&a.n_prompt).max(1) + most(&a.n_gen).max(steps) + limits.most;
    super::make_room(&mut o, need)?;
    let gguf = open::header(a.model.model.as_deref(), &o.first_load(), o.threads)?;
    let name = gguf.meta.opt_str("general.name")?.unwrap_or("unnamed").to_string();
    let tokenizer = Tokenizer::new(&gguf).context(Failure::Model)?;
    let (gguf, draft) = speculation::draft_model(&a.speculation, &a.model, (gguf, &tokenizer), &o)?;
    let mut s = open::session(gguf, &a.model, &o)?;
    let mut drafts = speculation::speculation(&a.speculation, limits, &s, draft)?;
    let text = tokenizer.encode(TEXT, true, false)?;
    let mut all = Vec::new();
    for &p in &a.n_prompt {
        let prompt: Vec<u32> = text.iter().copied().cycle().take(p.max(1)).collect();
        for &n in &a.n_gen {
            all.push(pairs(&mut s, &mut drafts, &prompt, n, a)?);
        }
    }
    stats(&s, &a.model)?;
    print(a.output, &all, &name, s.engine().pool.threads())
}

fn name_of(a: &BenchArgs) -> String {
    use clap::ValueEnum;
    a.speculation.spec.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned())
}

/// Measures answers of `n` tokens to a prompt, and steps by their rows over the same tokens.
fn pairs(s: &mut Session, drafts: &mut Speculation, prompt: &[u32], n: usize, a: &BenchArgs) -> Result<Pairs> {
    let test = format!("{} tg{n} @ p{}", name_of(a), prompt.len());
    let mut pairs = Pairs {
        test,
        seconds: Vec::new(),
        n,
        sources: drafts.sources().map(|(name, _)| (name, SourceStats::default())).collect(),
        looked: Vec::new(),
        same: true,
        hash: 0,
        reads: ExpertReads::default(),
        steps: Vec::new(),
    };
    s.clear(0);
    let first = token_of(s.feed(0, prompt, Want::Argmax)?);
    let mut plain = Speculation::off();
    let before = s.engine().expert_reads.clone().unwrap_or_default();
    let mut text = Vec::new();
    // The first round warms caches and is not counted.
    for round in 0..=a.repetitions {
        if n == 0 {
            break;
        }
        let mut took = [0.0; 2];
        for with in [round % 2, 1 - round % 2] {
            let speculation = if with == 1 { &mut *drafts } else { &mut plain };
            // Each answer is a process's first, and those before it were earlier runs.
            speculation.restart(!a.model.no_profile);
            s.rewind(0, prompt.len())?;
            let start = Instant::now();
            let made = answer(s, speculation, first, n)?;
            took[with] = start.elapsed().as_secs_f64();
            pairs.same &= text.is_empty() || made == text;
            text = made;
            if with == 1 && round > 0 {
                pairs.sources.iter_mut().zip(drafts.sources()).for_each(|(sum, (_, stats))| sum.1.add(stats));
            }
        }
        if round > 0 {
            pairs.seconds.push(took);
        }
    }
    pairs.looked = drafts.shares(s);
    let bytes: Vec<u8> = text.iter().flat_map(|t| t.to_le_bytes()).collect();
    pairs.hash = hash_of(&bytes);
    pairs.reads = s.engine().expert_reads.clone().unwrap_or_default().since(&before);
    if !pairs.same {
        tracing::warn!("{}: the text with drafts is another one than without", pairs.test);
    }
    let rounds = a.repetitions * STEPS;
    text.truncate(n);
    pairs.steps = steps(s, prompt, &text, drafts.limits().most, rounds)?;
    Ok(pairs)
}

/// Decodes `n` tokens, of which the first was chosen already.
fn answer(s: &mut Session, speculation: &mut Speculation, first: u32, n: usize) -> Result<Vec<u32>> {
    let (mut text, mut token) = (Vec::with_capacity(n), first);
    for i in 0..n {
        text.push(token);
        token = token_of(speculation.read(s, Next { seq: 0, token, want: Want::Argmax, room: n - 1 - i })?);
    }
    speculation.settle(s, 0)?;
    Ok(text)
}

fn token_of(output: Output) -> u32 {
    match output {
        Output::Argmax { token, .. } => token,
        Output::Logits(logits) => argmax(&logits),
    }
}

/// Measures steps of 1 row and up to `drafts` more over a text after the prompt, in turn.
fn steps(s: &mut Session, prompt: &[u32], text: &[u32], drafts: usize, rounds: usize) -> Result<Vec<StepCost>> {
    let most = 1 + drafts.min(s.most_drafts());
    let text: Vec<u32> = text.iter().chain(prompt).copied().cycle().take(most * (most + 1) / 2 * 4).collect();
    let (mut seconds, mut at) = (vec![Vec::new(); most + 1], text.len());
    let mut before = ExpertReads::default();
    for round in 0..=rounds {
        if round == 1 {
            before = s.engine().expert_reads.clone().unwrap_or_default();
        }
        for rows in 1..=most {
            if at + rows > text.len() || s.tokens(0).len() + rows > s.n_ctx() {
                s.rewind(0, prompt.len())?;
                at = 0;
            }
            let part = (0, &text[at..at + rows], Want::Argmax);
            let start = Instant::now();
            if rows == 1 {
                s.forward(&[part]).map(drop)?
            } else {
                s.verify(&[part]).map(drop)?
            };
            if round > 0 {
                seconds[rows].push(start.elapsed().as_secs_f64());
            }
            at += rows;
        }
    }
    let reads = s.engine().expert_reads.clone().unwrap_or_default().since(&before);
    let mut costs = RowCosts::default();
    (1..=most.min(2)).for_each(|rows| costs.note(rows, median(&seconds[rows])));
    let (one, two) = (costs.of(1), costs.of(2));
    let experts = [1, 2].map(|rows| reads.per_layer(rows));
    let cost = |rows: usize| {
        let here = reads.per_layer(rows);
        let by_experts = match (experts, here) {
            ([Some(a), Some(b)], Some(n)) if b > a => Some(one + (two - one) * (n - a) / (b - a)),
            _ => None,
        };
        let known = rows > 2;
        StepCost {
            rows,
            seconds: median(&seconds[rows]),
            experts: here,
            line: known.then(|| costs.of(rows)),
            by_experts: by_experts.filter(|_| known),
        }
    };
    Ok((1..=most).map(cost).collect())
}

/// How often drafts were judged and right, by position.
fn by_position(stats: &SourceStats) -> Vec<[usize; 2]> {
    stats.by_position.iter().filter(|p| p.0 > 0).map(|p| [p.0, p.1]).collect()
}

fn print(form: TableFormat, all: &[Pairs], name: &str, threads: usize) -> Result<()> {
    let mut out = Stdout::of_reports();
    if form == TableFormat::Json {
        let list: Vec<Value> = all.iter().map(|p| as_json(p, name, threads)).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(());
    }
    let columns = [
        "model",
        "isa",
        "threads",
        "test",
        "off t/s",
        "on t/s",
        "ratio",
        "min-max",
        "drafts; looks",
        "accepted",
        "by position",
    ];
    let cells = |p: &Pairs| {
        let (ratios, drafted) = (p.ratios(), p.drafted());
        let (low, high) = (ratios.iter().copied().fold(f64::MAX, f64::min), ratios.iter().copied().fold(0.0, f64::max));
        [
            name.into(),
            simd::isa().name().into(),
            threads.to_string(),
            p.test.clone(),
            format!("{:.2}", p.rate(0)),
            format!("{:.2}", p.rate(1)),
            format!("{:.3}", median(&ratios)),
            format!("{low:.3}-{high:.3}"),
            format!("{} of {}; {}", drafted.rounds, drafted.drafted, drafted.looks.0),
            format!("{:.0}%", 100.0 * drafted.accepted as f64 / drafted.drafted.max(1) as f64),
            drafted.shares(),
        ]
    };
    let measured = all.iter().filter(|p| !p.seconds.is_empty());
    if measured.clone().next().is_some() {
        write_table(&mut out, form, columns, measured.map(cells))?;
        writeln!(out)?;
    }
    let columns = ["test", "rows", "ms", "experts", "ms, line", "ms, experts"];
    let ms = |s: Option<f64>| s.map_or(String::new(), |s| format!("{:.2}", s * 1e3));
    let lines = all.iter().flat_map(|p| p.steps.iter().map(move |c| (p, c))).map(|(p, c)| {
        let experts = c.experts.map_or(String::new(), |n| format!("{n:.1}"));
        [p.test.clone(), c.rows.to_string(), ms(Some(c.seconds)), experts, ms(c.line), ms(c.by_experts)]
    });
    write_table(&mut out, form, columns, lines)?;
    if form == TableFormat::Md {
        writeln!(
            out,
            "\nlooks: tokens drafted to see whether they come, and not verified; ms: of a step with so many rows; experts: different ones that a layer reads in it. Predicted from 1 and 2 rows: \
             in a line, and by the experts."
        )?;
        for p in all {
            for ((source, _), share) in p.sources.iter().zip(&p.looked).filter_map(|(s, share)| Some((s, (*share)?))) {
                writeln!(out, "{}: {source} looked at {:.0}% of the vocabulary.", p.test, 100.0 * share)?;
            }
        }
        for (p, further) in all.iter().filter_map(|p| Some((p, p.reads.per_further_row()?))) {
            let one = p.reads.per_layer(1).unwrap_or(0.0);
            writeln!(
                out,
                "{}: each drafted row brought {further:.1} experts of a layer; none shared would be {one:.1}.",
                p.test
            )?;
        }
    }
    Ok(())
}

fn as_json(p: &Pairs, name: &str, threads: usize) -> Value {
    let sources = p.sources.iter().zip(&p.looked).map(|((source, stats), looked)| {
        json!({
            "source": source, "drafts": stats.rounds, "drafted": stats.drafted, "accepted": stats.accepted,
            "by_position": by_position(stats), "looks": stats.looks.0, "looks_right": stats.looks.1,
            "share_of_vocabulary": looked,
        })
    });
    let steps = p.steps.iter().map(|c| {
        json!({
            "rows": c.rows, "ms": c.seconds * 1e3, "experts_per_layer": c.experts,
            "ms_from_two": c.line.map(|s| s * 1e3), "ms_by_experts": c.by_experts.map(|s| s * 1e3),
        })
    });
    let measured = !p.seconds.is_empty();
    json!({
        "model": name, "threads": threads, "isa": simd::isa().name(), "test": p.test,
        "tokens_per_s_off": measured.then(|| p.rate(0)), "tokens_per_s": measured.then(|| p.rate(1)),
        "tokens_per_s_off_each": p.rates(0), "tokens_per_s_each": p.rates(1),
        "ratio": measured.then(|| median(&p.ratios())), "ratio_each": p.ratios(),
        "sources": sources.collect::<Vec<_>>(), "same_text": p.same, "text_hash": format!("{:016x}", p.hash),
        "experts_per_drafted_row": p.reads.per_further_row(), "steps": steps.collect::<Vec<_>>(),
    })
}
