//! What a token costs in launches: counted in the stand-in driver, layer by layer. And joined launches: they give what
//! those that they are made of give.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::source::{Part, Source};
use common::{Reference, emu, exact, nmse, references};
use tandem::cuda::Gpu;
use tandem::gguf::{Array, Gguf, TensorType, Value};
use tandem::plan::cost::{HardwareRates, WalkShape, WalkTime};
use tandem::plan::{self, Ask, CacheSize, Place, Plan, PlanStage};
use tandem::quant;
use tandem::session::{self, Options, Session, Want};
use tandem::tape::{ExpertShare, Slot, Step, WeightKind};

/// Experts on the CPU, and as many of them as have room on the GPU: what most users run.
fn split() -> Options {
    Options { ask: Ask { cpu_moe: Some(usize::MAX), cache: CacheSize::Auto, ..Ask::default() }, ..exact() }
}

/// The model with its matrices in Q8_0, but for those that published files leave as they are: routers, mixes of streams,
/// and what has one row.
fn coded(r: &Reference) -> Source {
    let tape = session::tape(&Gguf::open(&r.gguf).unwrap(), &exact()).unwrap();
    let ty = quant::by_name("q8_0").unwrap();
    let mut source = Source::open(&r.name, &r.gguf);
    for w in tape.weights.iter().filter(|w| w.kind == WeightKind::Matrix && w.shape[2] % 32 == 0 && w.shape[1] > 1) {
        let plain = ["ffn_gate_inp", "hc_", "hyper"].iter().any(|part| w.name.contains(part));
        let part = source.tensor(&w.name);
        if plain || part.data.len() != 4 * w.count() {
            continue;
        }
        let mut data = vec![0; ty.row_bytes(w.count())];
        let rows = part.floats();
        for (row, to) in rows.chunks(w.shape[2]).zip(data.chunks_mut(ty.row_bytes(w.shape[2]))) {
            tandem::cpu::encode(ty, row, to);
        }
        (part.ty, part.data) = (TensorType::Quant(ty), data);
    }
    source
}

/// The block that a tensor belongs to.
fn block(t: &Part) -> Option<usize> {
    t.name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// The number of a model's blocks.
fn blocks(s: &Source) -> usize {
    s.tensors.iter().filter_map(block).max().map_or(0, |last| last + 1)
}

/// The first `n` layers of a model.
fn cut(s: &Source, n: usize) -> Source {
    let (mut part, all) = (s.clone(), blocks(s));
    part.tensors.retain(|t| block(t).is_none_or(|b| b < n));
    for (_, value) in &mut part.meta {
        match value {
            Value::Arr(Array::U32(list)) if list.len() == all => list.truncate(n),
            Value::Arr(Array::I32(list)) if list.len() == all => list.truncate(n),
            Value::Arr(Array::F32(list)) if list.len() == all => list.truncate(n),
            Value::Arr(Array::Bool(list)) if list.len() == all => list.truncate(n),
            _ => {}
        }
    }
    part.set("block_count", n as u32);
    part
}

fn file(name: &str, source: &Source) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("launches-{}-{name}.gguf", std::process::id()));
    std::fs::write(&path, source.bytes()).unwrap();
    path
}

/// The launches, copies and memsets of a step of one row, as they are recorded, by name.
fn recorded(model: &Path) -> Vec<String> {
    let log = model.with_extension("log");
    let _ = std::fs::remove_file(&log);
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args(["one_model_takes_a_few_tokens", "--exact", "--nocapture"]);
    c.env("TANDEM_EMU_COUNT", &log).env("TANDEM_TEST_FILE", model);
    let out = c.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(log).unwrap();
    let word = |line: &str| Some(line.strip_prefix("recorded ")?.split(' ').take(2).collect::<Vec<_>>().join(" "));
    text.lines().filter_map(word).collect()
}

/// Runs in a process of its own, whose driver counts.
#[test]
fn one_model_takes_a_few_tokens() {
    let Some(model) = std::env::var_os("TANDEM_TEST_FILE") else { return };
    assert!(emu::load());
    let o = split();
    let gguf = Gguf::open_with(Path::new(&model), &o.load).unwrap();
    let mut s = Session::hybrid(gguf, &o, &[Arc::new(Gpu::open().unwrap())], |_, _| Ok(())).unwrap();
    s.feed(0, &[1, 2, 3, 4, 5], Want::None).unwrap();
    for t in [6, 7, 8] {
        s.feed(0, &[t], Want::Last).unwrap();
    }
}

/// Launches and copies of each layer from the second on: what a model of one more layer takes more.
fn per_layer(r: &Reference) -> Vec<usize> {
    let source = coded(r);
    let counts: Vec<usize> = (1..=blocks(&source))
        .map(|n| {
            let path = file(&format!("{}-{n}", r.name), &cut(&source, n));
            let list = recorded(&path);
            std::fs::remove_file(path).unwrap();
            list.len()
        })
        .collect();
    counts.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect()
}

/// At most as many as llama.cpp takes, which joins what it can by patterns: attention with experts, a delta net with experts
/// and a shared one, DeepSeek-V4's compressed attention with an indexer.
#[test]
fn a_layer_takes_no_more_launches_than_it_may() {
    if !emu::load() {
        return;
    }
    let budgets = [("qwen3moe", 26), ("qwen35moe", 30), ("deepseek4", 40)];
    let mut over = Vec::new();
    for r in references() {
        let Some((_, most)) = budgets.iter().find(|(name, _)| *name == r.name) else { continue };
        let layers = per_layer(&r);
        say!("{:16} launches and copies of a layer: {layers:?}, at most {most}", r.name);
        if layers.iter().any(|n| n > most) {
            over.push(r.name.clone());
        }
    }
    assert!(over.is_empty(), "too many: {over:?}");
}

/// Estimates of time count launches that were never made. They know neither which buffers are used again, which keeps some
/// launches apart, nor where the GPU stops to let the CPU go on.
#[test]
fn an_estimate_counts_about_as_many_launches_as_there_are() {
    if !emu::load() {
        return;
    }
    for r in references().into_iter().filter(|r| ["qwen3moe", "qwen35moe", "deepseek4"].contains(&&*r.name)) {
        let path = file(&format!("{}-estimate", r.name), &coded(&r));
        let o = split();
        let gguf = Gguf::open_with(&path, &o.load).unwrap();
        let s = Session::hybrid(gguf, &o, &[Arc::new(Gpu::open().unwrap())], |_, _| Ok(())).unwrap();
        let (tape, plan) = (&s.engine().tape, &s.engine().plan);
        let walk = WalkTime::assumed(tape, plan, WalkShape { rows: 1, seen: 8, follow: None }, HardwareRates::USUAL);
        let made = recorded(&path).len();
        std::fs::remove_file(path).unwrap();
        say!("{:16} {} launches in the estimate, {made} made", r.name, walk.started);
        assert!(walk.started.abs_diff(made) * 10 <= made, "{}: {} for {made}", r.name, walk.started);
    }
}

/// A table for people, with TANDEM_TEST_ALL of every family.
#[test]
fn launches_of_every_family_are_listed() {
    if !emu::load() {
        return;
    }
    let all = std::env::var_os("TANDEM_TEST_ALL").is_some();
    let few = ["qwen3moe", "gpt-oss"];
    for r in references().into_iter().filter(|r| all || few.contains(&&*r.name)) {
        let source = coded(&r);
        let path = file(&r.name, &source);
        let list = recorded(&path);
        std::fs::remove_file(path).unwrap();
        let n = |word: &str| list.iter().filter(|l| l.starts_with(word)).count();
        let (launches, copies) = (n("launch"), n("copy") + n("set"));
        let each = list.len() as f64 / blocks(&source) as f64;
        say!("{:24} {:2} layers: {launches:3} kernels, {copies:2} copies; {each:.1} a layer", r.name, blocks(&source));
        if std::env::var_os("TANDEM_TEST_NAMES").is_some() {
            list.iter().for_each(|l| say!("    {l}"));
        }
        assert!(launches > 0, "{}: nothing was recorded", r.name);
    }
}

/// Of a layer whose experts are at both places: all that the GPU can do without the CPU's share comes before the copy of it,
/// and right after the copy the sum that reads it.
#[test]
fn no_step_that_needs_nothing_of_the_cpus_experts_waits_for_them() {
    let mut layers = 0;
    for r in references() {
        let whole = session::tape(&Gguf::open(&r.gguf).unwrap(), &exact()).unwrap();
        let tape = plan::split(&whole, &|i| whole.steps[i].op.splits_by_expert());
        let in_the_file = |s: &Step| s.weights.iter().any(|w| tape.weights[w.0 as usize].kind == WeightKind::Mapped);
        let host = |s: &Step| s.op.gpu_refuses().is_some() || in_the_file(s) || s.label.contains("token_embd");
        let plan = Plan::new(&tape, &|_, s| if host(s) { Place::Cpu } else { Place::Gpu(0) });
        for cpu in tape.steps.iter().filter(|s| s.share == ExpertShare::OnCpu) {
            let rest = cpu.outs[0];
            let sent = |s: &PlanStage| matches!(s, PlanStage::Copy(x, _, to) if *x == rest && to.is_gpu());
            let copy = plan.stages.iter().position(sent).expect("the CPU's share is sent up");
            let PlanStage::Run(Place::Gpu(_), after) = &plan.stages[copy + 1] else {
                panic!("{}: {:?} comes after the copy of {}", r.name, plan.stages[copy + 1], cpu.label)
            };
            assert!(tape.steps[after.start].ins.contains(&rest), "{}: {}", r.name, tape.steps[after.start].label);
            // What depends on it, step by step.
            let mut of_cpu: Vec<Slot> = vec![rest];
            for (i, step) in tape.steps.iter().enumerate().filter(|(_, s)| s.layer == cpu.layer) {
                if step.ins.iter().any(|x| of_cpu.contains(x)) {
                    of_cpu.extend(&step.outs);
                    continue;
                }
                let runs = |s: &PlanStage| matches!(s, PlanStage::Run(_, steps) if steps.contains(&i));
                let at = plan.stages.iter().position(runs).expect("every step runs");
                assert!(at < copy || !plan.places[i].is_gpu(), "{}: {} waits for {}", r.name, step.label, cpu.label);
            }
            layers += 1;
        }
    }
    assert!(layers > 0, "models with experts are here");
}

/// The steps one by one, as an observer sees them, are not joined.
#[test]
fn joined_launches_give_the_bits_of_those_that_they_are_made_of() {
    if !emu::load() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    let all = std::env::var_os("TANDEM_TEST_ALL").is_some() || std::env::var_os("TANDEM_TEST_MODEL").is_some();
    let few = ["deepseek4", "gemma4-moe", "glm-dsa", "gpt-oss", "nemotron_h_moe", "qwen35moe", "qwen3moe", "qwen3next"];
    for r in references().into_iter().filter(|r| all || few.contains(&&*r.name)) {
        let path = file(&format!("{}-joined", r.name), &coded(&r));
        for (name, ask) in [("all on the GPU", Ask::default()), ("experts at both places", split().ask)] {
            let o = Options { ask, deterministic: true, ..exact() };
            let open = || {
                Session::hybrid(Gguf::open_with(&path, &o.load).unwrap(), &o, std::slice::from_ref(&gpu), |_, _| Ok(()))
                    .unwrap()
            };
            let (mut joined, mut apart) = (open(), open());
            // A prompt for tensor cores, a short one, and single tokens, of which the later ones are replayed.
            let n = r.prompt.len().min(40);
            let mut parts = vec![&r.prompt[..n - 7], &r.prompt[n - 7..n - 4]];
            parts.extend(r.prompt[n - 4..n].chunks(1));
            for (i, part) in parts.into_iter().enumerate() {
                let got = joined.feed(0, part, Want::All).unwrap().into_logits();
                let mut see = |_: &str, _: &mut [f32], _| ();
                let want = apart.feed_observed(0, part, Want::All, Some(&mut see)).unwrap().into_logits();
                assert!(got == want, "{} {name}, part {i}: NMSE {:.1e}", r.name, nmse(&want, &got));
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}
