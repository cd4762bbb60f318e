//! Whole models made bad, one key or tensor at a time and several at once: every one must be refused in words that name
//! the file and the culprit, or run. None may panic, hang, or ask for memory that it has no use for.

#[path = "../common/mod.rs"]
mod common;

mod change;
mod template;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use change::{Change, Changes};
use common::references;
use common::source::Source;
use tandem::gguf::Gguf;
use tandem::models;
use tandem::quant::{self, Rng};
use tandem::session::{self, Options, Session, Want};
use tandem::tape::Settings;
use tandem::text::Tokenizer;

/// What the files are called.
const FILE: &str = "hostile.gguf";
/// Tokens fed to every model that opens.
const TOKENS: usize = 40;
/// No variant takes longer; the usual one takes some milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// A file to be tried: the model, and what is changed in it.
struct Variant<'a> {
    source: &'a Source,
    changes: Vec<Change>,
}

impl Variant<'_> {
    fn describe(&self) -> String {
        let list: Vec<String> = self.changes.iter().map(|c| self.source.describe(c)).collect();
        format!("{} {}", self.source.name, list.join(" and "))
    }
}

enum Outcome {
    Impossible,
    Refused(String),
    Ran,
}

fn options() -> Options {
    Options { n_ctx: Some(64), n_batch: 16, threads: 1, heads: true, ..Options::default() }
}

/// Opens the file and feeds it some tokens, as the command line would.
fn try_file(v: &Variant) -> Outcome {
    let Some(bytes) = v.source.with(&v.changes) else { return Outcome::Impossible };
    let run = || -> anyhow::Result<()> {
        let gguf = Gguf::from_bytes(bytes, FILE.as_ref())?;
        if let [Change::Key(i, _)] = &v.changes[..]
            && !v.source.is_engine_key(&v.source.meta[*i].0)
        {
            let tokenizer = Tokenizer::new(&gguf)?;
            let ids = tokenizer.encode("Who would fardels bear?\n \u{e9}\u{4e00} 12", true, true)?;
            let mut stream = tokenizer.stream();
            ids.iter().for_each(|&id| drop(stream.push(id)));
            stream.finish();
            models::build(&gguf, settings())?;
            return Ok(());
        }
        // The model's own context, all of it: too much for the machine, or a number that can be had.
        let own = Options { n_ctx: Some(0), ..options() };
        session::tape(&gguf, &own)?;
        if v.changes.iter().any(|c| matches!(c, Change::Key(i, _) if v.source.meta[*i].0.ends_with("context_length"))) {
            Session::new(Gguf::from_bytes(v.source.with(&v.changes).expect("as above"), FILE.as_ref())?, &own)?;
        }
        let mut s = Session::new(gguf, &options())?;
        let n_vocab = s.n_vocab();
        let ids: Vec<u32> = (0..TOKENS).map(|i| (i * 37 % n_vocab) as u32).collect();
        let logits = s.feed(0, &ids[..TOKENS - 1], Want::All)?.into_logits();
        assert_eq!(logits.len(), (TOKENS - 1) * n_vocab);
        s.feed(0, &ids[TOKENS - 1..], Want::Last)?.into_logits();
        s.draft(0, ids[0], 2, 0.0)?; // nothing where there are no draft heads
        Ok(())
    };
    match run() {
        Ok(()) => Outcome::Ran,
        Err(e) => Outcome::Refused(format!("{e:#}")),
    }
}

fn settings() -> Settings {
    let f16 = quant::by_name("f16").unwrap();
    Settings { n_ctx: 64, type_k: f16, type_v: f16, heads: true }
}

/// Whether the refusal says where to look: the file, and a key or tensor. A block_count that is too large, say, is told
/// by the first tensor that is missing.
fn says_where(said: &str) -> bool {
    let names = ["metadata key \"", "blk.", "tensor ", "tensors are not part of", "context with -c"];
    said.contains(FILE) && names.iter().any(|n| said.contains(n))
}

/// Whether it names the very key or tensor that was changed.
fn names_the_culprit(v: &Variant, said: &str) -> bool {
    v.changes.iter().any(|c| match c {
        Change::Key(i, _) => said.contains(&v.source.meta[*i].0),
        Change::Remove(i) | Change::Shape(i, _) | Change::Type(i, _) => said.contains(&v.source.tensors[*i].name),
        Change::Rename(i, to) => said.contains(&v.source.tensors[*i].name) || said.contains(to),
    })
}

/// Every other single change, and some pairs and more; every one with `TANDEM_TEST_ALL`, which takes minutes. Of tensors that
/// differ only in their layer, the first represents all. Most keys are of several models, of which some get the others.
fn variants((number, source): (usize, &Source)) -> Vec<Variant<'_>> {
    let kind = |name: &str| match name.strip_prefix("blk.").and_then(|n| n.split_once('.')) {
        Some((_, rest)) => rest.to_owned(),
        None => name.to_owned(),
    };
    let keys: Vec<Change> = (0..source.meta.len()).flat_map(|i| source.key_changes(i)).collect();
    let mut seen = HashSet::new();
    let picked = (0..source.tensors.len()).filter(|&i| seen.insert(kind(&source.tensors[i].name)));
    let tensors: Vec<Change> = picked.flat_map(|i| source.tensor_changes(i)).collect();
    let engine: Vec<&Change> =
        keys.iter().filter(|c| matches!(c, Change::Key(i, _) if source.is_engine_key(&source.meta[*i].0))).collect();
    let mut rng = Rng(source.meta.len() as u64 + source.tensors.len() as u64);
    let several: Vec<Vec<Change>> = (0..100)
        .map(|_| {
            let draw = |rng: &mut Rng| match rng.below(4) {
                0 => tensors[rng.below(tensors.len())].clone(),
                _ => engine[rng.below(engine.len())].clone(),
            };
            (0..2 + rng.below(3)).map(|_| draw(&mut rng)).collect()
        })
        .collect();
    let every = if std::env::var_os("TANDEM_TEST_ALL").is_some() { 1 } else { 2 };
    let single = keys.iter().chain(&tensors).skip(number % every).step_by(every).map(|c| vec![c.clone()]);
    single.chain(several).map(|changes| Variant { source, changes }).collect()
}

/// The most address space that this program has had, where the system says.
fn peak_kib() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmPeak:")?.trim().strip_suffix("kB")?.trim().parse().ok())
}

#[test]
fn no_whole_model_made_bad_panics_hangs_or_asks_for_absurd_memory() {
    let mut files: Vec<(String, PathBuf)> = references().into_iter().map(|r| (r.name, r.gguf)).collect();
    let quants = ["Q4_K_M", "MXFP4_MOE", "IQ2_XXS"].map(|ty| format!("qwen3moe-256.{ty}"));
    files.extend(quants.map(|name| (name.clone(), common::local().join(format!("quants/{name}.gguf")))));
    let sources: Vec<Source> = files.iter().map(|(n, path)| Source::open(n, path)).collect();
    let all: Vec<Variant> = sources.iter().enumerate().flat_map(variants).collect();
    let next = AtomicUsize::new(0);
    let running: Mutex<Vec<Option<(usize, Instant)>>> = Mutex::new(vec![None; 2]);
    let failed: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let (refused, exact, ran) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let before = peak_kib();
    let start = Instant::now();
    std::panic::set_hook(Box::new(|_| {})); // a panic is told below, with the file that made it
    std::thread::scope(|s| {
        for worker in 0..2 {
            let (next, running, failed, all) = (&next, &running, &failed, &all);
            let (refused, exact, ran) = (&refused, &exact, &ran);
            s.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(v) = all.get(i) else { break };
                    running.lock().unwrap()[worker] = Some((i, Instant::now()));
                    let fail = |why: String| failed.lock().unwrap().push(format!("{}: {why}", v.describe()));
                    match catch_unwind(AssertUnwindSafe(|| try_file(v))) {
                        Ok(Outcome::Impossible) => {}
                        Ok(Outcome::Ran) => drop(ran.fetch_add(1, Ordering::Relaxed)),
                        Ok(Outcome::Refused(said)) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            exact.fetch_add(usize::from(names_the_culprit(v, &said)), Ordering::Relaxed);
                            if !says_where(&said) {
                                fail(format!("refused without saying where: {said}"));
                            }
                        }
                        Err(panic) => {
                            let text = panic.downcast_ref::<String>().cloned();
                            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                            fail(format!("PANIC: {}", text.unwrap_or_default()));
                        }
                    }
                }
                running.lock().unwrap()[worker] = None;
            });
        }
        // A walk that never ends cannot be stopped; the program can.
        while next.load(Ordering::Relaxed) < all.len() || running.lock().unwrap().iter().any(Option::is_some) {
            for (i, since) in running.lock().unwrap().iter().flatten() {
                if since.elapsed() > LIMIT {
                    say!("{} takes more than {LIMIT:?}", all[*i].describe());
                    std::process::exit(101);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    drop(std::panic::take_hook());
    let (refused, exact, ran) = (refused.into_inner(), exact.into_inner(), ran.into_inner());
    let total = refused + ran;
    say!("{total} bad models: {refused} refused, {exact} of them by the changed key or tensor's own name; {ran} ran");
    say!("in {:.1?}", start.elapsed());
    let failed = failed.into_inner().unwrap();
    for f in failed.iter() {
        say!("{f}");
    }
    assert!(failed.is_empty(), "{} of {total} bad models were not handled; they stand above", failed.len());
    assert!(ran * 20 > total && refused * 20 > total, "the changes are too wild or too tame to show anything");
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        say!("the address space grew by {} MiB", (after - before) >> 10);
        assert!(after - before < 2 << 20, "the address space grew by {} KiB", after - before);
    }
}
