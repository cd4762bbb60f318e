//! Sequences as files: they go on as if they had never stopped, and no file is ever half there or half believed.

mod common;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::source::Source;
use common::{emu, exact, nmse, reference, references, whole};
use serde_json::json;
use tandem::cuda::Gpu;
use tandem::gguf::{Gguf, Value};
use tandem::plan::{Place, Plan};
use tandem::quant::{self, Rng};
use tandem::session::{self, Options, Session, Want};
use tandem::store;
use tandem::tape::{StateKind, StateSpec};
use xxhash_rust::xxh3::xxh3_128;

fn open(path: &Path, o: &Options) -> Session {
    Session::open(path, o).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()))
}

/// A folder of this test's own, and a file's name in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.session");
    (dir, path)
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")
}

fn draw(n: usize, n_vocab: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.below(n_vocab) as u32).collect()
}

/// Token by token, so that no batch decides an order of sums.
fn singly(s: &mut Session, tokens: &[u32]) -> Vec<f32> {
    tokens.iter().flat_map(|&t| s.feed(0, &[t], Want::Last).unwrap().into_logits()).collect()
}

fn files(dir: &Path) -> Vec<String> {
    let mut list: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    list.sort();
    list
}

#[test]
fn a_saved_sequence_goes_on_in_a_new_session_as_if_it_had_never_stopped() {
    let (_dir, path) = place();
    let f16 = quant::by_name("f16").unwrap();
    let models = references().into_iter().map(|r| (r.gguf, exact().type_k));
    for (model, ty) in models.chain([(demo(), f16), (demo(), quant::by_name("q4_0").unwrap())]) {
        // A batch so small that windows' rings have gone round.
        let o = Options { n_ctx: Some(1100), n_batch: 16, type_k: ty, type_v: ty, ..exact() };
        let mut a = open(&model, &o);
        let text = draw(712, a.n_vocab(), 3);
        a.feed(0, &text[..700], Want::None).unwrap();
        store::save(&path, &a, 0, "[\"so far\"]").unwrap();
        let want = singly(&mut a, &text[700..]);
        for (n_ctx, n_batch, threads) in [(1100, 16, 0), (4000, 512, 1), (712, 33, 2)] {
            let mut b = open(&model, &Options { n_ctx: Some(n_ctx), n_batch, threads, ..o.clone() });
            b.feed(0, &text[5..40], Want::None).unwrap(); // something to be forgotten
            assert_eq!(store::load(&path, &mut b, 0).unwrap(), "[\"so far\"]");
            assert_eq!(b.tokens(0), &text[..700]);
            let got = singly(&mut b, &text[700..]);
            assert!(got == want, "{}: context {n_ctx}, batch {n_batch}: another than before", model.display());
        }
        let head = store::peek(&path).unwrap();
        assert_eq!((head.tokens.as_slice(), head.note.as_str()), (&text[..700], "[\"so far\"]"));
        let small = Options { n_ctx: Some(699), ..o };
        let said = format!("{:#}", store::load(&path, &mut open(&model, &small), 0).unwrap_err());
        assert!(said.contains("has 700 tokens, and the context has room for 699"), "{said}");
        let kb = fs::metadata(&path).unwrap().len() / 1024;
        say!("{:40} bit-equal under 3 settings ({kb} KB)", model.file_name().unwrap().display());
    }
}

#[test]
fn what_one_place_saved_another_takes_up() {
    let (_dir, path) = place();
    let gpu = (emu::load() && emu::compiled()).then(|| Arc::new(Gpu::open().unwrap()));
    let mut seen = HashSet::new(); // on the emulated GPU a model of each kind
    for r in references() {
        let o = exact();
        let (text, rest) = r.prompt[..76].split_at(70);
        let mut cpu = open(&r.gguf, &o);
        cpu.feed(0, text, Want::None).unwrap();
        store::save(&path, &cpu, 0, "").unwrap();
        let want = singly(&mut cpu, rest);
        let twin = |i: usize| if i.is_multiple_of(3) { Place::Cpu } else { Place::Twin };
        let placed = |place: &dyn Fn(usize) -> Place, gpu: Option<&Arc<Gpu>>| {
            let gguf = Gguf::open(&r.gguf).unwrap();
            let tape = session::tape(&gguf, &o).unwrap();
            let plan = Plan::new(&tape, &|i, s| if s.op.gpu_refuses().is_some() { Place::Cpu } else { place(i) });
            Session::planned(gguf, tape, plan, &o, gpu.map_or(&[], std::slice::from_ref)).unwrap()
        };
        let mut b = placed(&twin, None);
        store::load(&path, &mut b, 0).unwrap();
        assert!(singly(&mut b, rest) == want, "{}: a file of the CPU's at its twin", r.name);
        let Some(gpu) = gpu.as_ref().filter(|_| seen.insert(kinds_of_states(&r.gguf))) else { continue };
        // The GPU multiplies queries and keys as f16: it is held to what caches of f16 do to the CPU's logits, as in gpu.rs,
        // but, over so few tokens, to no less than 1e-3. A state that is not where it belongs shows as 1e-1.
        let f16 = quant::by_name("f16").unwrap();
        let mut half = open(&r.gguf, &Options { type_k: f16, type_v: f16, ..o.clone() });
        half.feed(0, text, Want::None).unwrap();
        let limit = (3.0 * nmse(&want, &singly(&mut half, rest))).max(1e-3);
        let near = |what: &str, got: &[f32]| {
            let error = nmse(&want, got);
            say!("{:24} {what}: NMSE {error:.1e} (limit {limit:.1e})", r.name);
            assert!(error <= limit, "{} {what}: {error:e}", r.name);
        };
        let mut b = placed(&|i| if i % 7 == 2 { Place::Cpu } else { Place::Gpu(0) }, Some(gpu));
        store::load(&path, &mut b, 0).unwrap();
        let got = singly(&mut b, rest);
        near("a file of the CPU's on a GPU", &got);
        b.rewind(0, text.len()).unwrap();
        assert!(singly(&mut b, rest) == got, "{}: gone back and on again", r.name);
        b.rewind(0, text.len()).unwrap();
        let back = path.with_extension("gpu");
        store::save(&back, &b, 0, "").unwrap();
        let same = |p: &Path| fs::read(p).unwrap();
        assert!(same(&path) == same(&back), "{}: nothing was lost on the way to the GPU and back", r.name);
        b.clear(0);
        b.feed(0, text, Want::None).unwrap();
        store::save(&path, &b, 0, "").unwrap();
        let here = singly(&mut b, rest);
        b.clear(0);
        store::load(&path, &mut b, 0).unwrap();
        assert!(singly(&mut b, rest) == here, "{}: a file of the GPU's on a GPU", r.name);
        let mut b = open(&r.gguf, &o);
        store::load(&path, &mut b, 0).unwrap();
        near("a file of the GPU's on the CPU", &singly(&mut b, rest));
    }
}

/// What a model's sequences remember, by kind: what is saved and gone back in depends on nothing else.
fn kinds_of_states(gguf: &Path) -> BTreeSet<String> {
    let tape = session::tape(&Gguf::open(gguf).unwrap(), &exact()).unwrap();
    let kind = |s: &StateSpec| match s.kind {
        StateKind::Fixed => "fixed".to_owned(),
        StateKind::Rows { every, window, before_batch } => format!("{every} {} {before_batch}", window.is_some()),
    };
    tape.states.iter().map(kind).collect()
}

#[test]
fn an_answer_is_given_again_after_a_load_without_reading_the_conversation() {
    let (_dir, path) = place();
    let mut seen = HashSet::new();
    for r in references().into_iter().filter(|r| seen.insert(kinds_of_states(&r.gguf))) {
        let o = Options { n_ctx: Some(1100), n_batch: 16, ..exact() };
        let mut a = open(&r.gguf, &o);
        let text = draw(900, a.n_vocab(), 9);
        // Three turns: a question read, an answer given token by token, long enough to run past the windows.
        let mut turns = Vec::new();
        for _ in 0..3 {
            let from = a.tokens(0).len();
            a.feed(0, &text[from..from + 40], Want::None).unwrap();
            turns.push((from, from + 40));
            singly(&mut a, &text[from + 40..from + 290]);
        }
        store::save(&path, &a, 0, "").unwrap();
        let mut b = open(&r.gguf, &o);
        store::load(&path, &mut b, 0).unwrap();
        // A raised flag interrupts whatever reads more than a token.
        let stop = b.stop_flag();
        for &(question, answer) in turns.iter().rev() {
            stop.store(true, Ordering::SeqCst);
            for to in [answer, question] {
                b.rewind(0, to).unwrap_or_else(|e| panic!("{}: back to {to}: {e:#}", r.name));
            }
            stop.store(false, Ordering::SeqCst);
            let got = b.feed(0, &text[question..answer + 1], Want::Last).unwrap().into_logits();
            let want = open(&r.gguf, &o).feed(0, &text[..answer + 1], Want::Last).unwrap().into_logits();
            let error = nmse(&want, &got);
            assert!(error < 1e-10, "{}: from {question} on: {error:e}", r.name);
        }
    }
}

#[test]
fn a_changed_bit_or_a_missing_end_is_refused_and_changes_nothing() {
    let (_dir, path) = place();
    let r = &reference("qwen3moe").unwrap();
    let o = exact();
    let mut a = open(&r.gguf, &o);
    a.feed(0, &r.prompt[..2], Want::None).unwrap();
    store::save(&path, &a, 0, "{}").unwrap();
    let mut b = open(&r.gguf, &o);
    b.feed(0, &r.prompt[7..19], Want::None).unwrap();
    let before = b.snapshot(0).unwrap();
    let good = fs::read(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let refused = |b: &mut Session, what: &str| {
        let Err(e) = store::load(&path, b, 0) else { panic!("{what} was not seen") };
        let said = format!("{e:#}");
        assert!(said.contains("chat.session: it "), "{what}: {said}");
        assert!(b.tokens(0) == before.tokens, "{what}");
    };
    for at in 0..good.len() {
        for bit in 0..8 {
            file.write_at(&[good[at] ^ 1 << bit], at as u64).unwrap();
            refused(&mut b, &format!("bit {bit} of byte {at}"));
        }
        file.write_at(&good[at..=at], at as u64).unwrap();
    }
    assert!(b.snapshot(0).unwrap() == before, "the sequence is what it was");
    file.write_at(&[0], good.len() as u64).unwrap();
    refused(&mut b, "a byte too many");
    for len in (0..good.len()).rev() {
        file.set_len(len as u64).unwrap();
        refused(&mut b, &format!("an end after {len} bytes"));
    }
    assert!(b.snapshot(0).unwrap() == before, "the sequence is what it was");
    fs::write(&path, &good).unwrap();
    store::load(&path, &mut b, 0).unwrap();
    say!("{} changed bits and {} ends were refused", good.len() * 8, good.len());
}

/// A file whose head is another, with sums that are right.
fn with_head(good: &[u8], change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let long = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    let (head, states) = good[28..].split_at(long(12));
    let mut head: serde_json::Value = serde_json::from_slice(head).unwrap();
    change(&mut head);
    let head = head.to_string();
    let mut out = good[..28].to_vec();
    out[12..20].copy_from_slice(&(head.len() as u64).to_le_bytes());
    out.extend(head.as_bytes());
    out.extend(xxh3_128(&out).to_le_bytes());
    out.extend(&states[16..states.len() - 16]);
    out.extend(xxh3_128(&out).to_le_bytes());
    out
}

#[test]
fn a_file_made_to_mislead_is_refused_and_changes_nothing() {
    let (_dir, path) = place();
    let r = reference("gpt-oss").unwrap(); // windows
    let mut a = open(&r.gguf, &exact());
    a.feed(0, &r.prompt[..20], Want::None).unwrap();
    a.feed(0, &r.prompt[20..40], Want::None).unwrap();
    store::save(&path, &a, 0, "").unwrap();
    let good = fs::read(&path).unwrap();
    assert_eq!(a.checkpoints(0), [20]);
    assert!(with_head(&good, |_| ()) == good);
    let before = a.snapshot(0).unwrap();
    let n_vocab = a.n_vocab();
    for (key, value) in [
        ("tokens", json!(vec![n_vocab; 40])),
        ("tokens", json!(vec![-1; 40])),
        ("tokens", json!(vec![1u64 << 40; 40])),
        ("tokens", json!(vec![1; 41])),
        ("tokens", json!(vec![1; 39])),
        ("tokens", json!(vec![1; 600])),
        ("tokens", json!([])),
        ("tokens", json!("1, 2")),
        ("checkpoints", json!([40])),
        ("checkpoints", json!([u64::MAX])),
        ("checkpoints", json!([20, 20])),
        ("checkpoints", json!([])),
        ("checkpoints", json!(null)),
        ("kept", json!([])),
        ("kept", json!(["blk.0"])),
        ("note", json!(1)),
        ("model", json!({})),
        ("fingerprint", json!("0")),
    ] {
        fs::write(&path, with_head(&good, |head| head[key] = value.clone())).unwrap();
        let said = format!("{:#}", store::load(&path, &mut a, 0).unwrap_err());
        assert!(said.contains("chat.session"), "{said}");
        assert!(a.snapshot(0).unwrap() == before, "{key} {value}: {said}");
    }
}

#[test]
fn another_model_cache_type_or_version_is_refused_with_the_reason() {
    let (dir, path) = place();
    let r = reference("qwen3moe").unwrap();
    let o = exact();
    let mut a = open(&r.gguf, &o);
    a.feed(0, &r.prompt[..20], Want::None).unwrap();
    store::save(&path, &a, 0, "").unwrap();
    let refused = |s: &mut Session, words: &[&str]| {
        s.feed(0, &r.prompt[3..9], Want::None).unwrap();
        let before = s.snapshot(0).unwrap();
        let said = format!("{:#}", store::load(&path, s, 0).unwrap_err());
        say!("{said}");
        assert!(words.iter().all(|w| said.contains(w)) && said.contains("chat.session"), "{said}");
        assert!(s.snapshot(0).unwrap() == before, "{said}");
    };
    let write = |name: &str, source: &Source| {
        let path = dir.path().join(name);
        fs::write(&path, source.bytes()).unwrap();
        path
    };
    // Of the same shape, but trained on.
    let mut source = Source::open("tuned", &r.gguf);
    source.tensor("blk.0.attn_q.weight").data.iter_mut().skip(1).step_by(4).for_each(|b| *b ^= 1);
    let tuned = write("tuned.gguf", &source);
    refused(&mut open(&tuned, &o), &["another model", "qwen3moe.gguf", "tuned.gguf", "-m"]);
    // Of the same weights, but rotated otherwise.
    let mut source = Source::open("stretched", &r.gguf);
    source.set("rope.freq_base", 5000f32);
    refused(&mut open(&write("stretched.gguf", &source), &o), &["another model", "stretched.gguf"]);
    for (k, v, label) in [("f16", "f32", ".k"), ("f32", "f16", ".v")] {
        let [type_k, type_v] = [k, v].map(|name| quant::by_name(name).unwrap());
        let mut s = open(&r.gguf, &Options { type_k, type_v, ..exact() });
        refused(&mut s, &["cache types", label, "F32", "F16", "-ctk", "-ctv"]);
    }
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    fs::write(&path, &bytes).unwrap();
    refused(&mut open(&r.gguf, &o), &["version 2", "version 1"]);
    fs::copy(&r.gguf, &path).unwrap();
    refused(&mut open(&r.gguf, &o), &["not a saved session", "GGUF"]);
    fs::remove_file(&path).unwrap();
    refused(&mut open(&r.gguf, &o), &["No such file"]);
    fs::create_dir(&path).unwrap();
    refused(&mut open(&r.gguf, &o), &["folder"]);
}

#[test]
fn a_model_is_the_same_in_other_files_and_under_another_name() {
    let (dir, path) = place();
    let r = reference("qwen3moe").unwrap();
    let mut a = open(&r.gguf, &exact());
    a.feed(0, &r.prompt[..20], Want::None).unwrap();
    store::save(&path, &a, 0, "").unwrap();
    let mut source = Source::open("renamed", &r.gguf);
    source.meta.retain(|(k, _)| k != "general.name" && k != "tokenizer.chat_template");
    source.meta.push(("tokenizer.chat_template".into(), Value::from("{{ messages }}")));
    source.meta.reverse();
    let renamed = dir.path().join("renamed.gguf");
    fs::write(&renamed, source.bytes()).unwrap();
    store::load(&path, &mut open(&renamed, &exact()), 0).unwrap();
    let Some(split) = whole().map(|d| d.join("split")) else { return };
    let mut shards: Vec<PathBuf> = fs::read_dir(split).unwrap().map(|e| e.unwrap().path()).collect();
    shards.retain(|p| p.extension().is_some_and(|e| e == "gguf"));
    assert!(shards.len() > 1);
    for shard in shards {
        store::load(&path, &mut open(&shard, &exact()), 0).unwrap();
    }
}

#[test]
fn a_file_is_private_keeps_its_mode_and_links_stay_links() {
    let (dir, path) = place();
    let r = &reference("qwen3moe").unwrap();
    let mut a = open(&r.gguf, &exact());
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    let mut save = |p: &Path| {
        a.feed(0, &[1], Want::None).unwrap();
        store::save(p, &a, 0, &a.tokens(0).len().to_string())
    };
    save(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("chat.session", &link).unwrap();
    save(&link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!((mode(&path), store::peek(&path).unwrap().note.as_str()), (0o640, "2"));
    // A link to nothing yet.
    let other = dir.path().join("other");
    let ahead = dir.path().join("ahead");
    std::os::unix::fs::symlink(&other, &ahead).unwrap();
    save(&ahead).unwrap();
    assert!(fs::symlink_metadata(&other).unwrap().is_file());
    let round = dir.path().join("round");
    std::os::unix::fs::symlink("round", &round).unwrap();
    // What a killed process left goes; what a living one writes, and what is not ours, stays.
    let [dead, alive] = [".tandem-abcdef.part", ".tandem-ghijkl.part"].map(|n| dir.path().join(n));
    fs::write(&dead, &fs::read(&path).unwrap()[..20]).unwrap();
    fs::write(&alive, &fs::read(&path).unwrap()[..20]).unwrap();
    fs::write(dir.path().join("tandem.part"), "x").unwrap();
    fs::write(dir.path().join(".tandem-x.part"), "mine").unwrap();
    fs::write(dir.path().join(".tandem-mynote.part"), "mine, too").unwrap();
    let held = fs::File::open(&alive).unwrap();
    held.lock().unwrap();
    save(&path).unwrap();
    let parts = [".tandem-ghijkl.part", ".tandem-mynote.part", ".tandem-x.part"];
    let others = ["ahead", "chat.session", "link", "other", "round", "tandem.part"];
    let names = [&parts[..], &others].concat();
    assert_eq!(files(dir.path()), names);
    // Where there can be no file.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    for (p, why) in [
        (path.as_path(), "write-protected"),
        (dir.path(), "folder"),
        (Path::new("/dev/null"), "device"),
        (&round, "leads back"),
        (&dir.path().join("none/chat"), "must exist and be writable"),
    ] {
        let said = format!("{:#}", save(p).unwrap_err());
        assert!(said.contains(why) && said.contains(p.to_str().unwrap()), "{said}");
    }
    assert_eq!(files(dir.path()), names);
}

/// What a process of this test's does in place of the test.
fn child(name: &str, path: &Path) -> Command {
    let mut c = Command::new("sh");
    // Without its signal, a write past the limit is an error like a full disk.
    c.args(["-c", "trap '' XFSZ; test -z \"$LIMIT\" || ulimit -f $LIMIT; exec \"$0\" \"$@\""]);
    c.arg(std::env::current_exe().unwrap()).args([name, "--exact", "--nocapture"]);
    c.env("TANDEM_TEST_STORE", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    c
}

fn as_child() -> Option<PathBuf> {
    std::env::var_os("TANDEM_TEST_STORE").map(PathBuf::from)
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let r = &reference("qwen3moe").unwrap();
    let mut a = open(&r.gguf, &exact());
    a.feed(0, &r.prompt[..20], Want::None).unwrap();
    if let Some(path) = as_child() {
        store::save(&path, &a, 0, "the new one").unwrap();
        return;
    }
    let (dir, path) = place();
    store::save(&path, &a, 0, "the old one").unwrap();
    let save = |limit: &str| child("a_full_disk_leaves_the_old_file", &path).env("LIMIT", limit).output().unwrap();
    for limit in ["0", "1", "4", "16"] {
        let done = save(limit);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && said.contains("cannot save to") && said.contains("too large"), "{said}");
        assert_eq!(files(dir.path()), ["chat.session"]);
        assert_eq!(store::load(&path, &mut a, 0).unwrap(), "the old one");
    }
    assert!(save("").status.success());
    assert_eq!(store::load(&path, &mut a, 0).unwrap(), "the new one");
}

#[test]
fn a_kill_at_any_moment_leaves_one_of_the_files_that_were_saved() {
    const KILLS: usize = 200;
    let r = &reference("qwen3moe").unwrap();
    let mut a = open(&r.gguf, &exact());
    let text = &r.prompt[..60];
    let room = " ".repeat(256 << 10); // so that a kill often meets a half-written file
    if let Some(path) = as_child() {
        if path.exists() {
            store::load(&path, &mut a, 0).unwrap(); // goes on where the one before was killed
        }
        loop {
            let n = a.tokens(0).len() % text.len();
            a.rewind(0, n).unwrap();
            a.feed(0, &text[n..=n], Want::None).unwrap();
            store::save(&path, &a, 0, &format!("{}{room}", n + 1)).unwrap();
        }
    }
    // The logits of the token after so many. (The bytes that are saved also have checkpoints, which differ by where a
    // process began.)
    let after = |a: &mut Session, n: usize| a.feed(0, &[text[n % text.len()]], Want::Last).unwrap().into_logits();
    let truth: Vec<Vec<f32>> = (0..=text.len()).map(|n| after(&mut a, n)).collect();
    let (dir, path) = place();
    let mut rng = Rng(77);
    let (mut unfinished, mut seen) = (0, std::collections::BTreeSet::new());
    let start = Instant::now();
    for kill in 0..KILLS {
        let mut c = child("a_kill_at_any_moment_leaves_one_of_the_files_that_were_saved", &path).spawn().unwrap();
        // The first is given time to save at all.
        while kill == 0 && !path.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(5_000 + rng.below(35_000) as u64));
        c.kill().unwrap();
        c.wait().unwrap();
        let left = files(dir.path()).len() - 1;
        assert!(left <= 1, "a killed process leaves one file at most, and the next removes it");
        unfinished += left;
        let note = store::load(&path, &mut a, 0).unwrap();
        let n: usize = note.trim_end().parse().unwrap();
        assert_eq!(a.tokens(0), &text[..n]);
        assert!(after(&mut a, n) == truth[n], "after kill {kill}: not what {n} tokens leave");
        seen.insert(n);
    }
    store::save(&path, &a, 0, "").unwrap();
    assert_eq!(files(dir.path()), ["chat.session"]);
    let seconds = start.elapsed().as_secs_f64();
    say!("{KILLS} kills in {seconds:.1} s, {unfinished} of them in a half-written file; {} versions seen", seen.len());
    assert!(
        unfinished > KILLS / 20 && seen.len() > KILLS / 20,
        "{unfinished} half-written files, {} versions",
        seen.len()
    );
}

#[test]
fn loading_a_conversation_takes_a_small_part_of_the_time_that_reading_it_takes() {
    let (_dir, path) = place();
    let o = Options { n_ctx: Some(2048), ..Options::default() };
    let mut a = open(&demo(), &o);
    let text = draw(2000, a.n_vocab(), 1);
    let start = Instant::now();
    a.feed(0, &text, Want::None).unwrap();
    let read = start.elapsed().as_secs_f64();
    store::save(&path, &a, 0, "").unwrap();
    let mut b = open(&demo(), &o);
    // The best of some, for the figure is about the work, not about what else the machine does.
    let load = (0..5).map(|_| {
        let start = Instant::now();
        store::load(&path, &mut b, 0).unwrap();
        start.elapsed().as_secs_f64()
    });
    let load = load.fold(f64::INFINITY, f64::min);
    let mb = fs::metadata(&path).unwrap().len() as f64 / 1e6;
    let share = load / read * 100.0;
    say!("2000 tokens: read in {:.0} ms, loaded ({mb:.1} MB) in {:.1} ms: {share:.2}%", read * 1e3, load * 1e3);
    assert!(share < 5.0, "{share:.1}% of the time");
}
