//! Draft heads (multi-token prediction) against llama.cpp's: their logits over a whole prompt, the rows that are handed on,
//! and rounds of a greedy speculation. And that a model says the same with heads as without, bit for bit.

#[macro_use]
mod common;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::source::Source;
use common::{Reference, emu, exact, floats, ids, json, nmse, references};
use serde_json::Value;
use tandem::cpu::Pool;
use tandem::cuda::Gpu;
use tandem::exec::SyntheticRun;
use tandem::gguf::{Gguf, TensorType};
use tandem::plan::cost::{HardwareRates, WalkShape, WalkTime};
use tandem::plan::{Ask, Place, Plan};
use tandem::quant;
use tandem::session::{self, Options, Session, Want};
use tandem::store;
use tandem::tape::{Slot, Step, Tape};

/// What the reference is off from an exact computation: 1e-13 or less, and as much for ours.
const LIMIT: f64 = 1e-8;

/// A model with draft heads, and what its heads are to say.
struct Heads {
    model: Reference,
    info: Value,
}

impl Heads {
    fn file(&self, ext: &str) -> Vec<f32> {
        floats(&self.model.gguf.with_extension(format!("mtp.{ext}.f32")))
    }

    fn positions(&self) -> Vec<u32> {
        ids(&self.info["positions"])
    }

    fn count(&self, key: &str) -> usize {
        self.info[key].as_u64().unwrap() as usize
    }
}

fn all() -> Vec<Heads> {
    let with_heads = |model: Reference| {
        let info = model.gguf.with_extension("mtp.json");
        info.exists().then(|| Heads { info: json(&info), model })
    };
    references().into_iter().filter_map(with_heads).collect()
}

fn with_heads() -> Options {
    Options { heads: true, ..exact() }
}

fn open(path: &Path, o: &Options) -> Session {
    let s = Session::open(path, o).unwrap();
    assert_eq!(s.n_heads() > 0, o.heads, "{}: {:?}", path.display(), s.engine().tape.heads_off);
    s
}

/// The row that was handed on at a position.
fn hidden(s: &Session, pos: usize) -> Vec<f32> {
    let state = s.engine().tape.hidden.expect("there are heads").0 as usize;
    let bytes = s.engine().states[state].row(0, pos);
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn every_head_says_what_the_reference_says_over_a_whole_prompt() {
    let list = all();
    if list.is_empty() {
        say!("skipped: no reference with draft heads is here");
    }
    for h in &list {
        let (name, prompt, positions) = (&h.model.name, &h.model.prompt, h.positions());
        let n_heads = h.count("n_heads");
        let mut s = open(&h.model.gguf, &with_heads());
        assert_eq!(s.n_heads(), n_heads, "{name}");
        let (mut logits, mut handed) = (vec![Vec::new(); n_heads], vec![Vec::new(); n_heads]);
        let mut target = Vec::new();
        for &p in &positions {
            let have = s.tokens(0).len();
            // The row of the position before is in the ring as the model has stored it.
            if p as usize > have {
                s.feed(0, &prompt[have..p as usize], Want::None).unwrap();
            }
            for (head, (logits, handed)) in logits.iter_mut().zip(&mut handed).enumerate() {
                logits.extend(s.head_logits(0, head, prompt[p as usize]).unwrap());
                handed.extend(hidden(&s, p as usize));
            }
            s.feed(0, &prompt[p as usize..=p as usize], Want::None).unwrap();
            target.extend(hidden(&s, p as usize));
        }
        let compare = |what: &str, want: &[f32], got: &[f32]| {
            let error = nmse(want, got);
            say!("{name}: {what} {error:.1e}");
            assert!(error < LIMIT, "{name}: {what}: {error:.1e}");
        };
        compare("the model's rows", &h.file("target_hidden"), &target);
        compare("logits of heads", &h.file("logits"), &logits.concat());
        compare("rows of heads", &h.file("hidden"), &handed.concat());
    }
}

#[test]
fn rounds_of_drafts_are_those_of_the_reference() {
    for h in all() {
        let (name, most) = (&h.model.name, h.count("n_draft"));
        let mut s = open(&h.model.gguf, &with_heads());
        s.feed(0, &h.model.prompt, Want::None).unwrap();
        let text = [&h.model.prompt[..], &h.model.greedy].concat();
        let mut logits = Vec::new();
        for (i, round) in h.info["rounds"].as_array().unwrap().iter().enumerate() {
            let (pos, next) = (round["pos"].as_u64().unwrap() as usize, round["id_last"].as_u64().unwrap() as u32);
            assert_eq!((s.tokens(0).len(), text[pos]), (pos, next), "{name}: round {i}");
            let mut look = |_: usize, row: &[f32]| logits.extend_from_slice(row);
            let draft = s.draft_observed(0, next, most, 0.0, &mut look).unwrap();
            assert_eq!(draft, ids(&round["draft"]), "{name}: round {i}");
            assert_eq!(s.tokens(0).len(), pos, "a draft changes no sequence");
            // The model reads all of it and goes back to what was right.
            let accepted = round["accepted"].as_u64().unwrap() as usize;
            s.feed(0, &[&[next], &draft[..]].concat(), Want::None).unwrap();
            s.rewind(0, pos + 1 + accepted).unwrap();
        }
        let want = h.file("draft");
        let error = nmse(&want, &logits[..want.len()]);
        say!("{name}: logits of drafts {error:.1e}");
        assert!(error < LIMIT, "{name}: {error:.1e}");
    }
}

/// The model with its matrices in Q8_0, whose products for many rows add in another order than those for few.
fn quantized(path: &Path) -> Gguf {
    let mut s = Source::open("quantized", path);
    let q8_0 = TensorType::by_id(8).unwrap();
    for t in s.tensors.iter_mut().filter(|t| t.shape.len() > 1 && t.shape.last().unwrap().is_multiple_of(32)) {
        if t.ty == TensorType::by_id(0).unwrap() && !t.name.contains("conv1d") {
            let mut data = Vec::new();
            for block in t.floats().as_chunks::<32>().0 {
                let scale = block.iter().fold(0f32, |most, v| most.max(v.abs())) / 127.0;
                data.extend(half::f16::from_f32(scale).to_le_bytes());
                data.extend(block.iter().map(|v| (v / scale.max(1e-30)).round() as i8 as u8));
            }
            (t.ty, t.data) = (q8_0, data);
        }
    }
    Gguf::from_bytes(s.bytes(), path).unwrap()
}

#[test]
fn a_model_says_the_same_with_heads_as_without_bit_for_bit() {
    for h in all() {
        let name = &h.model.name;
        for o in [exact(), Options { n_batch: 37, ..exact() }] {
            let open = |heads: bool| Session::new(quantized(&h.model.gguf), &Options { heads, ..o.clone() }).unwrap();
            let (mut a, mut b) = (open(false), open(true));
            assert_eq!(b.n_heads(), h.count("n_heads"), "{name}");
            let [x, y] = [&mut a, &mut b].map(|s| s.feed(0, &h.model.prompt, Want::Last).unwrap().into_logits());
            assert_eq!(x, y, "{name}: after the prompt");
            for &token in &h.model.greedy[..4] {
                b.draft(0, token, 3, 0.0).unwrap();
                let [x, y] = [&mut a, &mut b].map(|s| s.feed(0, &[token], Want::Last).unwrap().into_logits());
                assert_eq!(x, y, "{name}: after a token");
            }
        }
    }
}

/// A session's first drafts after a prompt, and what a probability that is asked for cuts off.
#[test]
fn drafts_are_the_same_however_a_prompt_was_cut_and_end_where_they_are_unsure() {
    for h in all().into_iter().filter(|h| ["qwen35moe-mtp", "mimo2-mtp"].contains(&h.model.name.as_str())) {
        let (prompt, next) = (&h.model.prompt, h.model.greedy[0]);
        let most = h.count("n_draft");
        let draft = |n_batch: usize, cut: usize, p_min: f32| {
            let mut s = open(&h.model.gguf, &Options { n_batch, ..with_heads() });
            s.feed(0, &prompt[..cut], Want::None).unwrap();
            // Token by token: the heads fall behind, and catch up.
            prompt[cut..].iter().for_each(|t| drop(s.feed(0, &[*t], Want::None).unwrap()));
            s.draft(0, next, most, p_min).unwrap()
        };
        let whole = draft(512, prompt.len(), 0.0);
        assert_eq!(whole.len(), most);
        assert_eq!(draft(512, prompt.len() - 60, 0.0), whole);
        assert_eq!(draft(37, prompt.len() - 3, 0.0), whole);
        assert_eq!(draft(512, prompt.len(), 1.1), [0u32; 0]);
        let some = draft(512, prompt.len(), 0.1);
        assert_eq!(some, whole[..some.len()]);
    }
}

/// Models with one head and with several, of which the rest is about.
fn few() -> Vec<Heads> {
    all().into_iter().filter(|h| ["qwen35moe-mtp", "mimo2-mtp"].contains(&h.model.name.as_str())).collect()
}

/// Logits of every head in turn, and a draft, at some places of a text; between them the model goes on and back.
fn said(s: &mut Session, h: &Heads, places: &[usize]) -> Vec<f32> {
    let (prompt, n_heads) = (&h.model.prompt, h.count("n_heads"));
    let mut out = Vec::new();
    s.feed(0, &prompt[..places[0]], Want::None).unwrap();
    for &p in places {
        let have = s.tokens(0).len();
        if p > have {
            s.feed(0, &prompt[have..p], Want::None).unwrap();
        }
        for head in 0..n_heads {
            out.extend(s.head_logits(0, head, prompt[p]).unwrap());
        }
        let draft = s.draft(0, prompt[p], h.count("n_draft"), 0.0).unwrap();
        s.feed(0, &[&[prompt[p]], &draft[..]].concat(), Want::None).unwrap();
        s.rewind(0, p + 1).unwrap();
    }
    out
}

#[test]
fn heads_at_two_places_say_what_they_say_at_one() {
    for h in few() {
        let places = [100, 102, 103, 110, 130];
        let want = said(&mut open(&h.model.gguf, &with_heads()), &h, &places);
        let gguf = Gguf::open(&h.model.gguf).unwrap();
        let tape = session::tape(&gguf, &with_heads()).unwrap();
        let plan = Plan::new(&tape, &|i, _| if i % 3 == 0 { Place::Twin } else { Place::Cpu });
        let mut s = Session::planned(gguf, tape, plan, &with_heads(), &[]).unwrap();
        assert!(said(&mut s, &h, &places) == want, "{}", h.model.name);
    }
}

/// Queries and keys are f16 there, and sums have another order: held to what f16 caches do on the CPU, as in gpu.rs.
#[test]
fn heads_on_a_gpu_say_what_they_say_on_the_cpu() {
    if !emu::load() {
        return;
    }
    let gpu = Arc::new(Gpu::open().unwrap());
    let in_the_file = few().into_iter().map(|h| (h, None));
    let apart = assistants().into_iter().filter(|a| a.0.model.name.ends_with("dense"));
    for (h, drafter) in in_the_file.chain(apart.map(|(h, path)| (h, Some(path)))) {
        let name = &h.model.name;
        let gguf = || {
            let model = Gguf::open(&h.model.gguf).unwrap();
            match &drafter {
                Some(path) => model.with_drafter(Gguf::open(path).unwrap()).unwrap(),
                None => model,
            }
        };
        let f16 = quant::by_name("f16").unwrap();
        let cpu = |o: Options, places: &[usize]| said(&mut Session::new(gguf(), &o).unwrap(), &h, places);
        let half = Options { type_k: f16, type_v: f16, ..with_heads() };
        let layers = Some(usize::MAX);
        let all = Ask { gpu_layers: layers, ..Ask::default() };
        let cached = Ask { cpu_moe: layers, ..all.clone() };
        let hybrid = |ask: Ask, halves: bool| {
            let o = Options { ask, deterministic: true, halves: Some(halves), ..with_heads() };
            Session::hybrid(gguf(), &o, std::slice::from_ref(&gpu), |_, _| Ok(())).unwrap()
        };
        let mixed = || {
            let tape = session::tape(&gguf(), &with_heads()).unwrap();
            let refused = |s: &Step| s.op.gpu_refuses().is_some() || s.label.contains("token_embd");
            let here = |i: usize, s: &Step| refused(s) || i.is_multiple_of(5);
            let plan = Plan::new(&tape, &|i, s| if here(i, s) { Place::Cpu } else { Place::Gpu(0) });
            Session::planned(gguf(), tape, plan, &with_heads(), std::slice::from_ref(&gpu)).unwrap()
        };
        let short: &[usize] = &[40, 42, 43, 50];
        let mut runs = vec![("all", hybrid(all, false), short), ("mixed", mixed(), short)];
        if drafter.is_none() {
            runs.push(("cached experts", hybrid(cached.clone(), false), short));
        }
        if name == "mimo2-mtp" {
            runs.push(("a prompt in halves", hybrid(cached, true), &[150, 152]));
        }
        for (what, mut s, places) in runs {
            assert!(s.engine().plan.on_gpu(), "{name}: {what}");
            let (want, half) = (cpu(with_heads(), places), cpu(half.clone(), places));
            let (error, limit) = (nmse(&want, &said(&mut s, &h, places)), (3.0 * nmse(&want, &half)).max(1e-3));
            say!("{name} on a GPU, {what}: {error:.1e} (limit {limit:.1e})");
            assert!(error <= limit, "{name} {what}: {error:.1e}");
        }
    }
}

#[test]
fn a_saved_sequence_is_loaded_with_heads_and_without() {
    let dir = tempfile::tempdir().unwrap();
    for h in few() {
        let name = &h.model.name;
        let (text, rest) = h.model.prompt.split_at(300);
        let o = |heads: bool| Options { heads, ..exact() };
        let go_on = |s: &mut Session| {
            let one = |t: &u32| s.feed(0, &[*t], Want::Last).unwrap().into_logits();
            rest[..4].iter().flat_map(one).collect::<Vec<f32>>()
        };
        let files = [false, true].map(|heads| {
            let (path, mut s) = (dir.path().join(format!("{name}.{heads}")), open(&h.model.gguf, &o(heads)));
            s.feed(0, &text[..150], Want::None).unwrap();
            s.feed(0, &text[150..], Want::None).unwrap();
            store::save(&path, &s, 0, "note").unwrap();
            (path, store::key(&s, text).unwrap())
        });
        assert_eq!(files[0].1, files[1].1, "{name}: the name of a file does not depend on heads");
        let mut straight = open(&h.model.gguf, &o(true));
        straight.feed(0, text, Want::None).unwrap();
        let (next, most) = (rest[0], h.count("n_draft"));
        let draft = straight.draft(0, next, most, 0.0).unwrap();
        let want = go_on(&mut straight);
        for (saved, loaded) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut s = open(&h.model.gguf, &o(loaded));
            s.feed(0, &text[7..50], Want::None).unwrap();
            assert_eq!(store::load(&files[saved as usize].0, &mut s, 0).unwrap(), "note");
            let drafted = s.draft(0, next, most, 0.0).unwrap();
            assert_eq!(drafted.len(), if loaded { most } else { 0 }, "{name}");
            if saved && loaded {
                assert_eq!(drafted, draft, "{name}: the heads' rows are back");
            }
            assert!(go_on(&mut s) == want, "{name}: saved {saved}, loaded {loaded}");
            s.rewind(0, 150).unwrap();
            let again = s.feed(0, &text[150..], Want::Last).unwrap();
            straight.rewind(0, 150).unwrap();
            assert!(again == straight.feed(0, &text[150..], Want::Last).unwrap(), "{name}: back at a checkpoint");
            straight.rewind(0, 300).unwrap();
        }
        // And as a snapshot.
        let snapshots = [false, true].map(|heads| {
            let mut s = open(&h.model.gguf, &o(heads));
            s.feed(0, text, Want::None).unwrap();
            s.snapshot(0).unwrap()
        });
        let mut s = open(&h.model.gguf, &o(true));
        for (snapshot, same) in snapshots.iter().zip([false, true]) {
            s.restore(0, snapshot).unwrap();
            let drafted = s.draft(0, next, most, 0.0).unwrap();
            assert!(!same || drafted == draft, "{name}: {drafted:?}");
            assert!(go_on(&mut s) == want, "{name}: a snapshot");
        }
    }
}

/// A model whose own states go back any distance, while the rows that are handed on are kept for some hundred tokens.
#[test]
fn going_back_far_reads_nothing_again_and_heads_go_on_drafting() {
    for h in all().into_iter().filter(|h| h.model.name == "glm4moe-mtp") {
        let mut s = open(&h.model.gguf, &Options { n_ctx: Some(2000), n_batch: 16, ..with_heads() });
        let n_vocab = s.n_vocab() as u32;
        let text: Vec<u32> = (0..1500).map(|i| i * 7919 % n_vocab).collect();
        s.feed(0, &text, Want::None).unwrap();
        assert_eq!(s.rewind(0, 100).unwrap(), 0);
        assert_eq!(s.draft(0, 5, 3, 0.0).unwrap().len(), 3);
        // From here on all is as if the rest had never been, but for one row of the head.
        s.feed(0, &text[100..], Want::None).unwrap();
        s.feed(0, &[5, 6, 7], Want::None).unwrap();
        assert_eq!(s.rewind(0, 1501).unwrap(), 0);
        let kept = hidden(&s, 1500);
        assert!(kept.iter().any(|v| *v != 0.0), "a short way back, the row is still there");
    }
}

#[test]
fn why_a_file_has_no_draft_heads_is_said() {
    let Some(h) = few().into_iter().find(|h| h.model.name == "qwen35moe-mtp") else { return };
    let why = |change: &dyn Fn(&mut Source)| {
        let mut s = Source::open("changed", &h.model.gguf);
        change(&mut s);
        let gguf = Gguf::from_bytes(s.bytes(), Path::new("changed.gguf")).unwrap();
        let mut s = Session::new(gguf, &with_heads()).unwrap();
        assert_eq!(s.n_heads(), 0);
        assert!(s.draft(0, 1, 3, 0.0).unwrap().is_empty());
        let logits = s.feed(0, &h.model.prompt, Want::Last).unwrap().into_logits();
        let last = &h.model.logits[h.model.logits.len() - logits.len()..];
        assert!(nmse(last, &logits) < LIMIT, "the model is as it was");
        s.engine().tape.heads_off.clone().expect("a reason")
    };
    let no_key = why(&|s| {
        s.unset("nextn_predict_layers");
    });
    assert!(no_key.contains("blk.4.nextn") && no_key.contains("nextn_predict_layers"), "{no_key}");
    let no_tensors = why(&|s| s.tensors.retain(|t| !t.name.starts_with("blk.4.")));
    assert!(no_tensors.contains("nextn_predict_layers = 1") && no_tensors.contains("no tensors"), "{no_tensors}");
    let missing = why(&|s| drop(s.take("blk.4.nextn.hnorm.weight")));
    assert!(missing.contains("blk.4.nextn.hnorm.weight is missing"), "{missing}");
    let more = why(&|s| {
        s.add("blk.4.nextn.extra.weight", &[4], &[1.0; 4]);
    });
    assert!(more.contains("blk.4.nextn.extra.weight"), "{more}");
    let none = session::tape(&Gguf::open(&h.model.gguf).unwrap(), &exact()).unwrap();
    assert!(none.heads_off.is_none() && none.hidden.is_none(), "nothing is said where none were asked for");
}

#[test]
fn no_value_crosses_from_the_model_to_a_head_and_each_step_of_a_part_has_its_own_label() {
    let pool = Pool::new(1).unwrap();
    for h in all() {
        let tape = session::tape(&Gguf::open(&h.model.gguf).unwrap(), &with_heads()).unwrap();
        let labels: HashSet<&str> = tape.steps.iter().map(|s| s.label.as_str()).collect();
        assert_eq!(labels.len(), tape.steps.len(), "{}", h.model.name);
        let part_of = |x: &Slot| tape.steps.iter().find(|s| s.outs.contains(x)).map(|s| s.part);
        for s in &tape.steps {
            assert!(s.ins.iter().all(|x| part_of(x) == Some(s.part)), "{}: {}", h.model.name, s.label);
        }
        let without = session::tape(&Gguf::open(&h.model.gguf).unwrap(), &exact()).unwrap();
        assert_eq!(tape.bytes_per_token(), without.bytes_per_token(), "{}", h.model.name);
        assert_eq!(tape.n_layers(), without.n_layers());
        let plan = Plan::cpu(&tape);
        let at = WalkShape { rows: 1, seen: 100, follow: None };
        let time = |tape: &Tape, plan: &Plan| WalkTime::assumed(tape, plan, at, HardwareRates::USUAL).whole;
        assert_eq!(time(&tape, &plan), time(&without, &Plan::cpu(&without)), "{}: an estimate", h.model.name);
        // What is measured for estimates: the model's steps, those for other rows in prompts alone.
        let run = SyntheticRun::new(&tape, &plan.places, &pool, 10, 1 << 24);
        let (token, prompt) = (run.walk(Duration::ZERO).steps, run.prompt(100));
        for (i, s) in tape.steps.iter().enumerate() {
            assert_eq!(prompt[i].is_some(), s.part == 0, "{}: {}", h.model.name, s.label);
            assert_eq!(token[i].is_some(), s.part == 0 && !tape.is_of_others(s), "{}: {}", h.model.name, s.label);
        }
    }
}

/// Gemma 4's assistants, each with the model that it drafts for.
fn assistants() -> Vec<(Heads, std::path::PathBuf)> {
    let pair = |(name, target): (&str, &str)| {
        let file = |ext: &str| common::find(&format!("models/{name}.{ext}"));
        let model = common::reference(target)?;
        Some((Heads { info: json(&file("mtp.json")?), model: Reference { name: name.into(), ..model } }, file("gguf")?))
    };
    [("gemma4-assistant-moe", "gemma4-moe"), ("gemma4-assistant-dense", "gemma4-dense")]
        .into_iter()
        .filter_map(pair)
        .collect()
}

#[test]
fn a_drafter_in_a_file_of_its_own_drafts_what_the_reference_does() {
    for (h, path) in assistants() {
        let name = &h.model.name;
        let joined = || Gguf::open(&h.model.gguf).unwrap().with_drafter(Gguf::open(&path).unwrap()).unwrap();
        let file = |ext: &str| floats(&path.with_extension(format!("mtp.{ext}.f32")));
        let mut s = Session::new(joined(), &with_heads()).unwrap();
        assert_eq!(s.n_heads(), 1, "{name}: {:?}", s.engine().tape.heads_off);
        let (mut logits, mut handed, mut target) = (Vec::new(), Vec::new(), Vec::new());
        for p in h.positions() {
            let (have, p) = (s.tokens(0).len(), p as usize);
            s.feed(0, &h.model.prompt[have..p], Want::None).unwrap();
            target.extend(hidden(&s, p - 1));
            logits.extend(s.head_logits(0, 0, h.model.prompt[p]).unwrap());
            handed.extend(hidden(&s, p));
        }
        for (what, want, got) in [
            ("the model's rows", file("target_hidden"), &target),
            ("logits", file("logits"), &logits),
            ("rows", file("hidden"), &handed),
        ] {
            let error = nmse(&want, got);
            say!("{name}: {what} {error:.1e}");
            assert!(error < LIMIT, "{name}: {what}: {error:.1e}");
        }
        let have = s.tokens(0).len();
        s.feed(0, &h.model.prompt[have..], Want::None).unwrap();
        let mut drafts = Vec::new();
        for round in h.info["rounds"].as_array().unwrap() {
            let (pos, next) = (round["pos"].as_u64().unwrap() as usize, round["id_last"].as_u64().unwrap() as u32);
            let mut look = |_: usize, row: &[f32]| drafts.extend_from_slice(row);
            let draft = s.draft_observed(0, next, h.count("n_draft"), 0.0, &mut look).unwrap();
            assert_eq!(draft, ids(&round["draft"]), "{name}: at {pos}");
            s.feed(0, &[&[next], &draft[..]].concat(), Want::None).unwrap();
            s.rewind(0, pos + 1 + round["accepted"].as_u64().unwrap() as usize).unwrap();
        }
        let want = file("draft");
        let error = nmse(&want, &drafts[..want.len()]);
        say!("{name}: logits of drafts {error:.1e}");
        assert!(error < LIMIT, "{name}: {error:.1e}");
        // Without being asked for it is as if it were not there.
        let mut without = Session::new(joined(), &exact()).unwrap();
        let mut alone = Session::open(&h.model.gguf, &exact()).unwrap();
        let [x, y] = [&mut without, &mut alone].map(|s| s.feed(0, &h.model.prompt, Want::Last).unwrap());
        assert!(x == y && without.n_heads() == 0, "{name}");
        let [x, y] = [&s, &alone].map(|s| store::key(s, &[1]).unwrap());
        assert_eq!(x, y, "{name}: the name of a saved sequence");
    }
}
