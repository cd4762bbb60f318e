//! Whole models with steps on a GPU: over the emulated driver, hybrid logits equal the CPU's.

mod common;
#[path = "gpu/several.rs"]
mod several;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use common::profile::{self, OF_MODELS, TIERS, interpreted};
use common::{Reference, emu, exact, nmse, references};
use tandem::cuda::Gpu;
use tandem::gguf::Gguf;
use tandem::plan::{Ask, CacheSize, LARGEST_BATCH, Place, Plan, PlanStage};
use tandem::quant::{self, QuantType};
use tandem::session::{self, Options, Output, Session, Want};
use tandem::tape::{ExpertShare, Step, Tape, WeightKind};

/// Where a placement puts a step.
type Rule = fn(usize, &Step) -> Place;

fn named(step: &Step, part: &str) -> bool {
    step.label.contains(part)
}

/// The CPU's logits with caches of f32, and with caches of f16. All is f32 in these files but for queries and keys in
/// attention, which the GPU multiplies as f16: so it is held to what the CPU's own logits are off with caches of f16, which
/// depends on how sharp a model's attention is (4e-9 to 4e-3 in these). What is wrong by more than rounding shows as 1e-1.
struct Truth {
    exact: Vec<f32>,
    f16: Vec<f32>,
    n_vocab: usize,
    /// The reference's own error with caches of f16.
    reference: f64,
}

impl Truth {
    fn of(r: &Reference, prompt: &[u32]) -> Truth {
        let cpu = |ty: &str| {
            let ty = quant::by_name(ty).unwrap();
            let o = Options { type_k: ty, type_v: ty, ..exact() };
            Session::open(&r.gguf, &o).unwrap().feed(0, prompt, Want::All).unwrap().into_logits()
        };
        let (exact, f16) = (cpu("f32"), cpu("f16"));
        let n_vocab = exact.len() / prompt.len();
        Truth { exact, f16, n_vocab, reference: common::f16_noise(&r.info) }
    }

    /// The error of `got`, and whether it is within three times that of f16 caches.
    ///
    /// Where roundings tip a choice of experts or of rows, one row and those that read it are off by 1e-2, and which do so
    /// is chance. So the sum over all rows may also be 5e-2, if half the rows are within three times what half of them are off
    /// on the CPU: what is wrong is wrong in most rows. Or it may be ten times what f16 caches do to the reference itself: it
    /// shows which models are like that (gemma4-moe 1e-3, deepseek32 8e-3; models without choices 1e-8 to 1e-6).
    fn holds(&self, got: &[f32]) -> (f64, bool) {
        let error = nmse(&self.exact, got);
        let of_rows = |x: &[f32]| {
            let rows = self.exact.chunks(self.n_vocab).zip(x.chunks(self.n_vocab));
            let mut errors: Vec<f64> = rows.map(|(want, got)| nmse(want, got)).collect();
            errors.sort_by(f64::total_cmp);
            errors[errors.len() / 2]
        };
        let tipped = error <= 5e-2 && (of_rows(got) <= 3.0 * of_rows(&self.f16) || error <= 10.0 * self.reference);
        (error, error <= 3.0 * nmse(&self.exact, &self.f16) || tipped)
    }
}

/// Tokens of a prompt where not all of them are needed.
const SHORT: usize = 90;

/// Everything but the embedding on the GPU; the experts on the CPU; every third step on the CPU.
const PLACEMENTS: [(&str, Rule); 3] = [
    ("all", |_, s| if named(s, "token_embd") { Place::Cpu } else { Place::Gpu(0) }),
    ("experts on the CPU", |_, s| if named(s, "token_embd") || named(s, "exps") { Place::Cpu } else { Place::Gpu(0) }),
    ("mixed", |i, _| if i % 3 == 0 { Place::Cpu } else { Place::Gpu(0) }),
];

/// A plan by the rule, but for what no GPU takes.
fn plan(tape: &Tape, rule: Rule) -> Plan {
    Plan::new(tape, &|i: usize, s: &Step| if s.op.gpu_refuses().is_some() { Place::Cpu } else { rule(i, s) })
}

fn has_experts(r: &Reference) -> bool {
    let tape = session::tape(&Gguf::open(&r.gguf).unwrap(), &exact()).unwrap();
    tape.steps.iter().any(|s| s.op.splits_by_expert())
}

#[test]
fn a_wait_that_is_missing_is_found() {
    if !quick_device() || models(KINDS).is_empty() {
        return;
    }
    let mut c = std::process::Command::new(std::env::current_exe().unwrap());
    c.args(["logits_are_the_cpus_for_every_family_and_placement", "--exact"]).env("TANDEM_TEST_MODEL", "qwen3moe");
    assert!(c.status().unwrap().success(), "with its waits it passes");
    assert!(!c.env("TANDEM_EMU_DEAF", "1").output().unwrap().status.success(), "without them it must not");
}

#[test]
fn the_ptx_that_ships_computes_models_of_every_family_in_both_tiers() {
    // Where no compiler is, the test itself does this.
    if !quick_device() {
        return;
    }
    let start = |tier| {
        let (mut c, profile) = interpreted(tier, "models");
        c.args(["logits_are_the_cpus_for_every_family_and_placement", "--exact"]);
        (c.spawn().unwrap(), profile)
    };
    let all_are_here = models(FAMILIES).len() == FAMILIES.len();
    for (tier, (mut child, profile)) in TIERS.into_iter().zip(TIERS.map(start)) {
        assert!(child.wait().unwrap().success(), "sm_{tier}");
        let ran = profile::read(&profile);
        profile::print(&ran, &format!("sm_{tier}, tiny models"));
        let missing: Vec<&&str> = OF_MODELS.iter().filter(|n| !ran.contains_key(**n)).collect();
        assert!(!all_are_here || missing.is_empty(), "sm_{tier}: kernels that no model starts: {missing:?}");
    }
}

/// Its logits are off by up to 1e-2, and whether they are is chance: on the way another expert is chosen where two are
/// nearly equal (weights of 0.24671 and 0.24665). With the CPU's choices the GPU's logits are the CPU's, so all of that is
/// due to the choices.
#[test]
fn with_the_cpus_choices_a_model_whose_choices_tip_has_the_cpus_logits() {
    if !emu::load() {
        return;
    }
    let Some(r) = models(KINDS).into_iter().find(|r| r.name == "gemma4-moe") else { return };
    let prompt = &r.prompt[..r.prompt.len().min(60)];
    let truth = Truth::of(&r, prompt);
    let is_choice = |label: &str| label.ends_with("ffn_moe_topk");
    let mut choices: HashMap<String, VecDeque<Vec<f32>>> = HashMap::new();
    let mut keep = |label: &str, values: &mut [f32], _: usize| {
        if is_choice(label) {
            choices.entry(label.into()).or_default().push_back(values.to_vec());
        }
    };
    let f32s = quant::by_name("f32").unwrap();
    let o = Options { type_k: f32s, type_v: f32s, ..exact() };
    Session::open(&r.gguf, &o).unwrap().feed_observed(0, prompt, Want::All, Some(&mut keep)).unwrap();
    let mut count = 0;
    let mut put_back = |label: &str, values: &mut [f32], _: usize| {
        if is_choice(label) {
            values.copy_from_slice(&choices.get_mut(label).unwrap().pop_front().unwrap());
            count += 1;
        }
    };
    let o = exact();
    let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
    let tape = session::tape(&gguf, &o).unwrap();
    let plan = plan(&tape, PLACEMENTS[0].1);
    let mut s = Session::planned(gguf, tape, plan, &o, &[Arc::new(Gpu::open().unwrap())]).unwrap();
    let got = s.feed_observed(0, prompt, Want::All, Some(&mut put_back)).unwrap().into_logits();
    let error = nmse(&truth.exact, &got);
    say!("{:24} with the CPU's choices NMSE {error:.1e}", r.name);
    assert!(count > 0 && error < 1e-5, "{count} choices, {error:e}");
}

/// A model of every family whose steps all run on a GPU, as far as they have steps of their own.
const FAMILIES: &[&str] = &[
    "deepseek2-legacy-kvb",
    "deepseek2-v3",
    "deepseek32",
    "deepseek4",
    "deepseek4-hash",
    "deepseek41",
    "gemma3",
    "gemma4-dense",
    "gemma4-e2b",
    "gemma4-moe",
    "gemma4-moe-sharedkv",
    "glm-dsa",
    "glm4",
    "glm4moe",
    "glm5-next",
    "gpt-oss",
    "kimi-linear",
    "llama",
    "mimo2",
    "minimax-m2",
    "mistral3",
    "muse-glimmer",
    "nemotron_h_moe",
    "olmo2",
    "qwen2",
    "qwen3",
    "qwen35moe",
    "qwen3moe",
    "qwen3next",
    "qwen4exp",
    "seed_oss",
    "smollm3",
    "zaya-small",
];

/// Models with every kind of state and of experts, for what does not depend on the other steps.
const KINDS: &[&str] = &[
    "deepseek4",
    "deepseek41",
    "gemma4-moe",
    "glm-dsa",
    "glm5-next",
    "gpt-oss",
    "nemotron_h_moe",
    "qwen3moe",
    "zaya-small",
];

/// Tokens of the prompts where kernels are interpreted: more for models that choose rows by an indexer when they have many.
fn interpreted_tokens(model: &str) -> usize {
    if ["deepseek32", "glm-dsa"].contains(&model) { 60 } else { 16 }
}

/// Whether there is a device on which whole models do not take hours.
fn quick_device() -> bool {
    if !emu::load() {
        return false;
    }
    if !emu::compiled() {
        say!("skipped, as kernels are interpreted: what runs whole models");
    }
    emu::compiled()
}

/// The reference models of these names, or all where `TANDEM_TEST_ALL` or `TANDEM_TEST_MODEL` is set; with as many tokens as
/// `TANDEM_TEST_TOKENS` says, for sanitizers, which take their time.
fn models(names: &[&str]) -> Vec<Reference> {
    let most = std::env::var("TANDEM_TEST_TOKENS").map_or(usize::MAX, |n| n.parse().unwrap());
    let mut list = references();
    let set = |name: &str| std::env::var_os(name).is_some();
    list.retain(|r| set("TANDEM_TEST_ALL") || set("TANDEM_TEST_MODEL") || names.contains(&&*r.name));
    for r in &mut list {
        r.prompt.truncate(if emu::compiled() { most } else { most.min(interpreted_tokens(&r.name)) });
    }
    list
}

#[test]
fn logits_are_the_cpus_for_every_family_and_placement() {
    if !emu::load() {
        return;
    }
    let mut failed = Vec::new();
    let [all, named] = ["TANDEM_TEST_ALL", "TANDEM_TEST_MODEL"].map(|name| std::env::var_os(name).is_some());
    for r in models(FAMILIES) {
        let o = exact();
        for (i, (name, rule)) in PLACEMENTS.into_iter().enumerate() {
            let moe = has_experts(&r);
            // The placements that matter most: the others differ in which steps copy to which, and that is no family's.
            let spared = if moe { 2 } else { 1 };
            if !all && (i == spared || (i > 0 && !named && !KINDS.contains(&&*r.name))) {
                continue;
            }
            // Long enough to run past a window, once.
            let prompt = if i == 0 { &r.prompt[..] } else { &r.prompt[..r.prompt.len().min(SHORT)] };
            let truth = Truth::of(&r, prompt);
            let run = || -> anyhow::Result<(f64, bool)> {
                let gguf = Gguf::open_with(&r.gguf, &o.load)?;
                let tape = session::tape(&gguf, &o)?;
                let plan = plan(&tape, rule);
                let mut s = Session::planned(gguf, tape, plan, &o, &[Arc::new(Gpu::open()?)])?;
                // A prompt in two batches, then token by token: the second single token is recorded, the third replayed.
                let n = prompt.len();
                let mut got = s.feed(0, &prompt[..n / 2], Want::All)?.into_logits();
                got.extend(s.feed(0, &prompt[n / 2..n - 5], Want::All)?.into_logits());
                for t in &prompt[n - 5..] {
                    got.extend(s.feed(0, &[*t], Want::Last)?.into_logits());
                }
                Ok(truth.holds(&got))
            };
            match run() {
                Ok((error, holds)) => {
                    say!("{:24} {name:20} NMSE {error:.1e}", r.name);
                    if !holds {
                        failed.push(format!("{} {name}", r.name));
                    }
                }
                Err(e) => {
                    say!("{:24} {name:20} {e:#}", r.name);
                    failed.push(format!("{} {name}", r.name));
                }
            }
        }
    }
    assert!(failed.is_empty(), "off: {failed:?}");
}

/// Layers 2, 4 and 5 make rows that the layers after each read: of 5 to 8, which share some, half are on either side.
#[test]
fn layers_that_read_the_rows_of_others_may_be_at_two_places() {
    if !quick_device() {
        return;
    }
    let o = exact();
    for r in models(&["deepseek41"]) {
        let truth = Truth::of(&r, &r.prompt);
        for before in [false, true] {
            let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
            let tape = session::tape(&gguf, &o).unwrap();
            let on_gpu = |s: &Step| s.layer.is_some_and(|l| (l < 7) == before) && s.op.gpu_refuses().is_none();
            let plan = Plan::new(&tape, &|_, s: &Step| if on_gpu(s) { Place::Gpu(0) } else { Place::Cpu });
            assert!(plan.stages.iter().filter(|s| matches!(s, PlanStage::Copy(..))).count() > 2, "values cross");
            let mut s = Session::planned(gguf, tape, plan, &o, &[Arc::new(Gpu::open().unwrap())]).unwrap();
            let (first, last) = r.prompt.split_at(r.prompt.len() - 5);
            let mut got = s.feed(0, first, Want::All).unwrap().into_logits();
            last.iter().for_each(|t| got.extend(s.feed(0, &[*t], Want::Last).unwrap().into_logits()));
            let (error, holds) = truth.holds(&got);
            let side = if before { "before" } else { "after" };
            say!("{:24} layers {side} the cut on the GPU  NMSE {error:.1e}", r.name);
            assert!(holds, "{side}: {error:e}");
        }
    }
}

/// Rows that nobody looks at are left out there too: logits and what follows stay what they are when all are computed, but for
/// what other kernels for fewer rows tip.
#[test]
fn the_end_of_a_prompt_is_what_it_is_with_all_rows() {
    if !quick_device() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    for r in models(&["deepseek41"]) {
        let n = 200;
        for (name, halves, n_batch) in [("in batches", false, 64), ("in halves", true, 140)] {
            let o = Options {
                ask: Ask { cpu_moe: Some(usize::MAX), cache: CacheSize::Bytes(300 << 10), ..Ask::default() },
                halves: Some(halves),
                n_batch,
                ..exact()
            };
            let read = |want: Want| {
                let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
                let mut s = Session::hybrid(gguf, &o, std::slice::from_ref(&gpu), |_, _| Ok(())).unwrap();
                let mut got = s.feed(0, &r.prompt[..n], want).unwrap().into_logits();
                got.drain(..got.len() - s.n_vocab());
                for t in &r.prompt[n..n + 6] {
                    got.extend(s.feed(0, &[*t], Want::Last).unwrap().into_logits());
                }
                // Rows that are read again are those that were left out.
                s.rewind(0, n / 2).unwrap();
                got.extend(s.feed(0, &r.prompt[n / 2..n], Want::Last).unwrap().into_logits());
                (got, s.n_vocab())
            };
            let ((short, n_vocab), (whole, _)) = (read(Want::Last), read(Want::All));
            let mut errors: Vec<f64> =
                whole.chunks(n_vocab).zip(short.chunks(n_vocab)).map(|(a, b)| nmse(a, b)).collect();
            say!("{:24} {name:12} last logits {:.1e}, after {:?}", r.name, errors[0], &errors[1..]);
            errors.sort_by(f64::total_cmp);
            assert!(errors[errors.len() / 2] < 1e-4 && errors[errors.len() - 1] < 1e-1, "{name}: {errors:?}");
        }
    }
}

/// Keys and values in heads of two blocks (qwen35, every type), in heads of one (qwen3moe), rows that are both with a
/// compressed cache and its indexer (deepseek4), blocks of keys that an indexer chooses (minimax-m3).
#[test]
fn caches_of_every_type_give_what_they_give_on_the_cpu() {
    if !quick_device() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    for r in models(&["qwen3moe", "qwen35", "deepseek4", "deepseek41", "minimax-m3"]) {
        let prompt = &r.prompt[..r.prompt.len().min(SHORT)];
        let truth = Truth::of(&r, prompt);
        // Of half the rows: a choice that tips shows in few.
        let middle = |a: &[f32], b: &[f32]| {
            let mut errors: Vec<f64> =
                a.chunks(truth.n_vocab).zip(b.chunks(truth.n_vocab)).map(|(a, b)| nmse(a, b)).collect();
            errors.sort_by(f64::total_cmp);
            errors[errors.len() / 2]
        };
        let asked = |t: &QuantType| r.name == "qwen35" || ["Q4_0", "Q5_1", "BF16"].contains(&t.name);
        for ty in quant::TYPES.iter().copied().filter(|t| t.kv.is_some() && asked(t)) {
            let o = Options { type_k: ty, type_v: ty, ..exact() };
            let cpu = Session::open(&r.gguf, &o).unwrap().feed(0, prompt, Want::All).unwrap().into_logits();
            let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
            let tape = session::tape(&gguf, &o).unwrap();
            let plan = plan(&tape, PLACEMENTS[0].1);
            let mut places = plan.state_places.iter().zip(&tape.states);
            // The tokens before a batch are where the table is that they choose rows of.
            let held = places.all(|(place, s)| place.is_gpu() || s.label.ends_with("ngram.tokens"));
            assert!(held, "{} {}: all states are on the GPU", r.name, ty.name);
            let mut s = Session::planned(gguf, tape, plan, &o, std::slice::from_ref(&gpu)).unwrap();
            let (first, last) = prompt.split_at(prompt.len() - 3);
            let mut got = s.feed(0, first, Want::All).unwrap().into_logits();
            last.iter().for_each(|t| got.extend(s.feed(0, &[*t], Want::Last).unwrap().into_logits()));
            // Attention's f16 products, and what they tip: a value that lies between two codes may take the other one, and
            // an indexer other rows, so that up to the format's own error comes on top. It is mostly a hundredth of it; rows
            // that are read wrongly are off by 1e-1 and more.
            let (error, own) = (middle(&cpu, &got), middle(&truth.exact, &cpu));
            let limit = 3.0 * middle(&truth.exact, &truth.f16) + own;
            say!("{:24} {:7} NMSE {error:.1e} (limit {limit:.1e}; of the format itself {own:.1e})", r.name, ty.name);
            assert!(error <= limit, "{} {}: {error:e}", r.name, ty.name);
        }
    }
}

/// What its kernels refuse, a GPU leaves to the CPU without a word in the answer, and slowly.
#[test]
fn no_step_of_any_reference_model_has_to_stay_on_the_cpu() {
    for r in references() {
        let tape = session::tape(&Gguf::open(&r.gguf).unwrap(), &exact()).unwrap();
        let in_the_file = |s: &Step| s.weights.iter().any(|w| tape.weights[w.0 as usize].kind == WeightKind::Mapped);
        for step in tape.steps.iter().filter(|s| !in_the_file(s)) {
            assert_eq!(step.op.gpu_refuses(), None, "{}: {}", r.name, step.label);
        }
    }
}

/// The staging memory is what is left where nothing of the model's own can be pinned.
#[test]
fn experts_that_cannot_be_pinned_come_and_go_as_well() {
    if !quick_device() || models(KINDS).is_empty() {
        return;
    }
    let mut c = std::process::Command::new(std::env::current_exe().unwrap());
    c.args(["experts_that_come_and_go_change_nothing_but_the_order_of_sums", "--exact"]);
    c.env("TANDEM_TEST_MODEL", "qwen3moe").env("TANDEM_EMU_NO_REGISTER", "1");
    assert!(c.status().unwrap().success());
}

/// How much of a model's experts a cache has room for, in the models that have any.
#[test]
fn experts_that_come_and_go_change_nothing_but_the_order_of_sums() {
    if !quick_device() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    let (mut count, mut failed) = (0, Vec::new());
    for r in models(TWO_PLACES) {
        let prompt = &r.prompt[..r.prompt.len().min(SHORT)];
        let truth = Truth::of(&r, prompt);
        for (name, cache) in [("a small cache", CacheSize::Bytes(200 << 10)), ("room for all", CacheSize::Auto)] {
            let mut o = exact();
            o.ask.cpu_moe = Some(usize::MAX);
            o.ask.cache = cache;
            let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
            let mut s = Session::hybrid(gguf, &o, std::slice::from_ref(&gpu), |_, _| Ok(())).unwrap();
            if !s.engine().tape.steps.iter().any(|s| s.share == ExpertShare::OnGpu) {
                continue;
            }
            // A prompt that is long enough for experts to pass through, short batches, and single tokens.
            let n = prompt.len();
            assert!(n >= 40, "{}: {n} tokens are too few for this", r.name);
            let mut got = Vec::new();
            let mut from = 0;
            for to in [n / 2, n / 2 + 3, n - 12].into_iter().chain(n - 11..=n) {
                got.extend(s.feed(0, &prompt[from..to], Want::All).unwrap().into_logits());
                from = to;
            }
            let ((error, holds), stats) = (truth.holds(&got), s.engine().devices()[0].cache_stats());
            count += 1;
            say!(
                "{:24} {name:16} NMSE {error:.1e}; {} of {} choices were cached, {} brought, {} passed through",
                r.name,
                stats.hits,
                stats.chosen,
                stats.uploads,
                stats.passed
            );
            if !holds || stats.hits == 0 || stats.uploads == 0 {
                failed.push(format!("{} {name}", r.name));
            }
        }
    }
    assert!((count > 0 || models(TWO_PLACES).is_empty()) && failed.is_empty(), "off: {failed:?}");
}

/// One of each kind of state that a first half leaves to the second: rows, rings, recurrent blocks, compressed rows.
const TWO_PLACES: &[&str] = &["deepseek4", "gpt-oss", "qwen35moe", "qwen3moe"];

/// While one half's experts are computed by the CPU, the GPU works on the other half: what belongs to one of them must not
/// be taken for the other's.
#[test]
fn halves_of_a_prompt_that_take_turns_give_what_the_whole_gives() {
    if !quick_device() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    let mut count = 0;
    for r in models(&[TWO_PLACES, &["deepseek41"]].concat()).iter().filter(|r| has_experts(r)) {
        let prompt = &r.prompt[..r.prompt.len().min(110)];
        let truth = Truth::of(r, prompt);
        let o = Options {
            ask: Ask { cpu_moe: Some(usize::MAX), cache: CacheSize::Bytes(200 << 10), ..Ask::default() },
            halves: Some(true),
            ..exact()
        };
        let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
        let mut s = Session::hybrid(gguf, &o, std::slice::from_ref(&gpu), |_, _| Ok(())).unwrap();
        let first = prompt.len() - 3;
        let mut got = s.feed(0, &prompt[..first], Want::All).unwrap().into_logits();
        assert_eq!(s.engine().devices()[0].cache_stats().halved, 1, "{}: the prompt went in halves", r.name);
        prompt[first..].iter().for_each(|t| got.extend(s.feed(0, &[*t], Want::Last).unwrap().into_logits()));
        let (error, holds) = truth.holds(&got);
        say!("{:24} in halves NMSE {error:.1e}", r.name);
        assert!(holds, "{}: {error:e}", r.name);
        // Only the last token's logits are asked for: all of them are the second half's.
        s.rewind(0, 0).unwrap();
        let last = s.feed(0, &prompt[..first], Want::Last).unwrap().into_logits();
        let all = &got[(first - 1) * truth.n_vocab..first * truth.n_vocab];
        assert!(nmse(all, &last) < 1e-3, "{}: {:e}", r.name, nmse(all, &last));
        count += 1;
    }
    assert!(count > 0 || models(TWO_PLACES).is_empty());
}

#[test]
fn the_same_tokens_give_the_same_bits_when_times_decide_nothing() {
    if !quick_device() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    // Only experts come and go.
    let models = models(&["qwen3moe"]);
    let Some(r) = models.iter().find(|r| has_experts(r)) else { return };
    let run = || {
        let mut o = exact();
        o.ask = Ask { cpu_moe: Some(usize::MAX), cache: CacheSize::Bytes(200 << 10), ..Ask::default() };
        o.deterministic = true;
        let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
        let mut s = Session::hybrid(gguf, &o, std::slice::from_ref(&gpu), |_, _| Ok(())).unwrap();
        let mut logits = s.feed(0, &r.prompt[..r.prompt.len() / 2], Want::All).unwrap().into_logits();
        for t in &r.prompt[r.prompt.len() / 2..] {
            logits.extend(s.feed(0, &[*t], Want::Last).unwrap().into_logits());
        }
        (logits, s.engine().devices()[0].cache_stats())
    };
    let (first, second) = (run(), run());
    assert!(first.1.uploads > 0 && first.1.hits > 0, "{:?}", first.1);
    assert!(first == second, "{:?} and {:?}", first.1, second.1);
}

#[test]
fn the_argmax_is_that_of_the_logits_wherever_they_are() {
    if !quick_device() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    // Heads of floats, with a soft cap, and of blocks with several streams before them.
    for r in models(&["deepseek4", "gemma4-moe", "qwen3moe"]) {
        let prompt = &r.prompt[..r.prompt.len().min(40)];
        let o = exact();
        // The head on the GPU, and on the CPU after layers on the GPU.
        let head_here: Rule = |_, s| if s.label.starts_with("blk.") { Place::Gpu(0) } else { Place::Cpu };
        for (name, rule) in [PLACEMENTS[0], ("head on the CPU", head_here)] {
            let open = || {
                let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
                let tape = session::tape(&gguf, &o).unwrap();
                let plan = plan(&tape, rule);
                Session::planned(gguf, tape, plan, &o, std::slice::from_ref(&gpu)).unwrap()
            };
            let (mut whole, mut greedy) = (open(), open());
            let n = prompt.len() - 6;
            // A prompt, single tokens one of which asks for all logits in between, as recordings of both would be mixed up.
            let parts: Vec<&[u32]> = std::iter::once(&prompt[..n]).chain(prompt[n..].chunks(1)).collect();
            for (i, part) in parts.into_iter().enumerate() {
                let logits = whole.feed(0, part, Want::Last).unwrap().into_logits();
                let best = common::argmax(&logits);
                if i == 3 {
                    assert_eq!(greedy.feed(0, part, Want::Last).unwrap().into_logits(), logits, "{} {name}", r.name);
                    continue;
                }
                let got = greedy.feed(0, part, Want::Argmax).unwrap();
                let want = Output::Argmax { token: best, logit: logits[best as usize] };
                assert_eq!(got, want, "{} {name} part {i}", r.name);
            }
        }
    }
}

#[test]
fn a_gpu_takes_no_more_memory_than_the_plan_said() {
    if !quick_device() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    for r in models(KINDS) {
        let experts = Ask { cpu_moe: Some(usize::MAX), ..Ask::default() };
        for ask in [Ask::default(), experts.clone(), Ask { batch_up_to: Some(LARGEST_BATCH), ..experts }] {
            let o = Options { ask, ..exact() };
            let before = gpu.memory().unwrap().0;
            let (mut planned, mut n_batch) = (0, 0);
            let gguf = Gguf::open_with(&r.gguf, &o.load).unwrap();
            let s = Session::hybrid(gguf, &o, std::slice::from_ref(&gpu), |fit, _| {
                (planned, n_batch) = (fit.footprint.total(), fit.shape.n_batch);
                Ok(())
            });
            let took = before - gpu.memory().unwrap().0;
            assert_eq!(s.unwrap().n_batch(), n_batch, "{}: the batch is the one that was planned", r.name);
            assert!(took <= planned && took * 100 >= planned * 97, "{}: {took} bytes, {planned} planned", r.name);
            assert_eq!(gpu.memory().unwrap().0, before, "{}: all is given back", r.name);
        }
    }
}

#[test]
fn what_a_sequence_remembers_on_a_gpu_can_be_saved_taken_back_and_gone_back_in() {
    if !quick_device() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    for r in models(KINDS) {
        let o = Options { ask: Ask { gpu_layers: Some(usize::MAX), ..Ask::default() }, ..exact() };
        let open = || {
            Session::hybrid(Gguf::open_with(&r.gguf, &o.load).unwrap(), &o, std::slice::from_ref(&gpu), |_, _| Ok(()))
                .unwrap()
        };
        let n = r.prompt.len().min(110); // past the windows
        let mut s = open();
        s.feed(0, &r.prompt[..n / 2], Want::None).unwrap();
        let kept = s.snapshot(0).unwrap();
        let straight = s.feed(0, &r.prompt[n / 2..n], Want::All).unwrap().into_logits();
        // Another text, and back.
        s.rewind(0, n / 2).unwrap();
        s.feed(0, &r.prompt[..7], Want::None).unwrap();
        s.rewind(0, n / 2).unwrap();
        let again = s.feed(0, &r.prompt[n / 2..n], Want::All).unwrap().into_logits();
        assert!(nmse(&straight, &again) < 1e-6, "{}: going back, {:.1e}", r.name, nmse(&straight, &again));
        let mut other = open();
        other.restore(0, &kept).unwrap();
        let taken = other.feed(0, &r.prompt[n / 2..n], Want::All).unwrap().into_logits();
        assert!(straight == taken, "{}: a saved sequence goes on as it would have", r.name);
    }
}
