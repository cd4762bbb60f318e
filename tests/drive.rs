//! Models whose experts are not all in memory: the same logits from any number of slots, and a clear end
//! of whatever a drive does.

mod common;
#[path = "drive/fuse.rs"]
mod fuse;
#[path = "drive/group.rs"]
mod group;

use std::collections::BTreeSet;
use std::fs::{DirEntry, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Reference, emu, exact, nmse, program, reference};
use tandem::cuda::Gpu;
use tandem::exec::{DriveStats, read_at};
use tandem::gguf::{CutShort, Gguf};
use tandem::plan::{Ask, CacheSize, Place, Plan, experts_of};
use tandem::session::{self, Options, RamLimit, Session, Want};
use tandem::tape::Tape;

/// A model of each kind of expert layer: gate and up apart, with biases, in one matrix, with shared experts, weighed
/// first, without a gate, in layers of different formats; and one of each kind of state.
const KINDS: &[&str] = &[
    "qwen3moe",
    "gpt-oss",
    "gemma4-moe",
    "glm4moe",
    "llama4",
    "nemotron_h_moe",
    "deepseek4",
    "deepseek41",
    "deepseek2-v3",
    "qwen35moe-mtp",
];

fn kinds() -> Vec<Reference> {
    let have: Vec<Reference> = KINDS.iter().filter_map(|name| reference(name)).collect();
    if have.len() < KINDS.len() {
        say!("{} of {} models: the others are not next to this checkout", have.len(), KINDS.len());
    }
    have
}

/// Experts of a layer and how many of them a token chooses, the most of all layers.
fn experts(tape: &Tape) -> (usize, usize) {
    let layers = || tape.steps.iter().filter(|s| s.op.splits_by_expert());
    let k = layers().map(|s| tape.width(s.ins[1])).max().expect("a model with experts");
    (layers().map(|s| experts_of(tape, s)).max().unwrap(), k)
}

/// The logits of all tokens: most of the prompt in pieces, the rest token by token.
fn logits(s: &mut Session, prompt: &[u32]) -> Vec<f32> {
    let (pieces, singles) = prompt.split_at(prompt.len() - 8);
    let mut all = Vec::new();
    for piece in pieces.chunks(50).chain(singles.chunks(1)) {
        all.extend(s.feed(0, piece, Want::All).unwrap().into_logits());
    }
    all
}

fn beginning(r: &Reference) -> &[u32] {
    &r.prompt[..r.prompt.len().min(110)]
}

fn stats(s: &Session) -> DriveStats {
    s.engine().drive_stats().expect("experts are on the drive")
}

#[test]
fn logits_are_bit_equal_whatever_number_of_experts_is_in_memory() {
    for r in kinds() {
        let prompt = beginning(&r);
        let mut whole = Session::open(&r.gguf, &exact()).unwrap();
        assert!(whole.ram().is_none(), "with memory for all nothing changes");
        let want = logits(&mut whole, prompt);
        let (n, k) = experts(&whole.engine().tape);
        for slots in [1, 2, k + 1, n.div_ceil(2), n] {
            let o = Options { ram: RamLimit::Slots(slots), ..exact() };
            let mut s = Session::open(&r.gguf, &o).unwrap();
            assert!(logits(&mut s, prompt) == want, "{}: {slots} of {n} slots", r.name);
            let DriveStats { needed, hits, bytes, .. } = stats(&s);
            say!("{:16} {slots:3} of {n} experts in memory: {hits} of {needed} hits, {bytes} bytes read", r.name);
            assert!(bytes > 0);
            if slots < n {
                assert!(hits < needed);
            } else {
                let before = stats(&s);
                s.clear(0);
                assert!(logits(&mut s, prompt) == want);
                // Not the bytes: experts that no token has chosen yet may be read meanwhile.
                let DriveStats { needed, hits, .. } = stats(&s);
                assert_eq!(hits - before.hits, needed - before.needed, "{}: all is in memory by now", r.name);
            }
        }
    }
}

#[test]
fn experts_of_every_weight_format_are_found_where_they_begin_in_their_file() {
    for name in ["Q4_K_M", "IQ2_XXS", "MXFP4_MOE"] {
        let Some(gguf) = common::find(&format!("quants/qwen3moe-256.{name}.gguf")) else { continue };
        let prompt = &common::ids(&common::json(&gguf.with_file_name("qwen3moe-256.tokens.json"))["prompt_ids"]);
        let want = logits(&mut Session::open(&gguf, &exact()).unwrap(), prompt);
        let o = Options { ram: RamLimit::Slots(3), ..exact() };
        assert!(logits(&mut Session::open(&gguf, &o).unwrap(), prompt) == want, "{name}");
    }
}

#[test]
fn a_split_between_the_cpu_and_its_twin_is_bit_equal_too() {
    let r = reference("qwen3moe").unwrap();
    let want = logits(&mut Session::open(&r.gguf, &exact()).unwrap(), beginning(&r));
    let o = Options { ram: RamLimit::Slots(2), ..exact() };
    let gguf = Gguf::open(&r.gguf).unwrap();
    let tape = session::tape(&gguf, &o).unwrap();
    let plan = Plan::new(&tape, &|i, _| if i % 3 == 0 { Place::Twin } else { Place::Cpu });
    assert!(logits(&mut Session::planned(gguf, tape, plan, &o, &[]).unwrap(), beginning(&r)) == want);
}

#[test]
fn with_a_gpu_that_holds_some_experts_logits_do_not_depend_on_the_memory_either() {
    if !emu::load() || !emu::compiled() {
        return;
    }
    for r in ["qwen3moe", "gpt-oss"].map(|name| reference(name).unwrap()) {
        let prompt = &r.prompt[..70];
        let ask = Ask { cpu_moe: Some(usize::MAX), cache: CacheSize::Bytes(1 << 20), ..Ask::default() };
        let open = |ram: RamLimit| {
            let o = Options { ram, ask: ask.clone(), deterministic: true, ..exact() };
            let gpu = Arc::new(Gpu::open().unwrap());
            Session::hybrid(Gguf::open(&r.gguf).unwrap(), &o, &[gpu], |_, _| Ok(())).unwrap()
        };
        let want = logits(&mut open(RamLimit::Off), prompt);
        let mut s = open(RamLimit::Slots(2));
        assert!(s.engine().plan.on_gpu());
        assert!(logits(&mut s, prompt) == want, "{}", r.name);
        assert!(s.engine().cache_stats().uploads > 0 && stats(&s).bytes > 0, "both have their share");
    }
}

#[test]
fn what_streams_to_a_gpu_comes_from_slots_while_the_cpu_reads_others_into_them() {
    if !emu::load() || !emu::compiled() {
        return;
    }
    for r in ["qwen3moe", "gpt-oss"].map(|name| reference(name).unwrap()) {
        let ask = Ask { cpu_moe: Some(usize::MAX), cache: CacheSize::Bytes(1 << 20), ..Ask::default() };
        let open = |ram: RamLimit| {
            let o = Options { ram, ask: ask.clone(), ..exact() };
            let gpu = Arc::new(Gpu::open().unwrap());
            Session::hybrid(Gguf::open(&r.gguf).unwrap(), &o, &[gpu], |_, _| Ok(())).unwrap()
        };
        let mut all = open(RamLimit::Off);
        let (n, _) = experts(&all.engine().tape);
        let (want, mut passed) = (logits(&mut all, &r.prompt), 0);
        for slots in [1, 2, n / 2, n - 1] {
            let mut s = open(RamLimit::Slots(slots));
            let off = nmse(&want, &logits(&mut s, &r.prompt)); // sums may have another order
            assert!(off < 1e-5, "{} with {slots} slots: NMSE {off:.1e}", r.name);
            passed += s.engine().cache_stats().passed;
        }
        assert!(passed > 0, "{}: nothing streamed", r.name);
    }
}

/// Runs what must not hang.
fn ends(f: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        f();
        let _ = done.send(());
    });
    if ended.recv_timeout(Duration::from_secs(300)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("it hangs");
    }
    thread.join().unwrap();
}

/// What [`faulty`] did so far, and its random numbers.
static INJECTED: AtomicUsize = AtomicUsize::new(0);
static SEED: AtomicU64 = AtomicU64::new(7);

/// A drive that fails, is interrupted, slow, or returns less than it was asked for.
fn faulty(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
    let seed = SEED.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
    let random = (seed ^ (seed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33;
    let (what, how) = (random % 100, (random / 100) as usize);
    let fault = |kind: i32| {
        INJECTED.fetch_add(1, SeqCst);
        Err(io::Error::from_raw_os_error(kind))
    };
    match what {
        0..2 => fault(libc::EIO),
        2..16 => fault(libc::EINTR),
        16..18 => fault(libc::EINVAL),
        18..60 => {
            INJECTED.fetch_add(1, SeqCst);
            let n = to.len().min(1 + how % 6000);
            read_at(file, &mut to[..n], at)
        }
        60..62 => {
            INJECTED.fetch_add(1, SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            read_at(file, to, at)
        }
        _ => read_at(file, to, at),
    }
}

#[test]
fn a_thousand_errors_short_and_slow_reads_give_clear_errors_and_never_a_wrong_logit() {
    ends(|| {
        let r = reference("qwen3moe").unwrap();
        let prompt = beginning(&r);
        let want = logits(&mut Session::open(&r.gguf, &exact()).unwrap(), prompt);
        let o = Options { ram: RamLimit::Slots(3), read_at: faulty, ..exact() };
        let mut s = Session::open(&r.gguf, &o).unwrap();
        let n = s.n_vocab();
        let mut errors = 0;
        while INJECTED.load(SeqCst) < 1000 || errors < 5 {
            s.clear(0);
            while s.tokens(0).len() < prompt.len() {
                let at = s.tokens(0).len();
                let piece = &prompt[at..prompt.len().min(at + 1 + at % 5)];
                match s.feed(0, piece, Want::Last) {
                    Ok(output) => {
                        let end = (at + piece.len()) * n;
                        let error = common::nmse(&want[end - n..end], &output.into_logits());
                        assert!(error < 1e-10, "after {} tokens: {error:e}", at + piece.len());
                    }
                    Err(e) => {
                        errors += 1;
                        assert!(e.is::<CutShort>(), "{e:#}");
                        let said = e.to_string();
                        assert!(said.contains("qwen3moe.gguf could not be read at byte"), "{said}");
                        assert!(said.contains("(os error 5)") || said.contains("(os error 22)"), "{said}");
                        assert_eq!(s.tokens(0).len(), at, "the sequence is what it was");
                    }
                }
            }
        }
        say!("{} faults, {errors} of them errors", INJECTED.load(SeqCst));
    });
}

/// A drive that is gone.
fn gone(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::Error::from_raw_os_error(libc::EIO))
}

#[test]
fn a_drive_that_is_gone_ends_every_call_and_what_there_is_can_be_saved() {
    let r = reference("qwen3moe").unwrap();
    let o = Options { ram: RamLimit::Slots(3), read_at: gone, ..exact() };
    let mut s = Session::open(&r.gguf, &o).unwrap();
    for tokens in [&r.prompt[..40], &r.prompt[..1]] {
        assert!(s.feed(0, tokens, Want::Last).unwrap_err().is::<CutShort>());
        assert!(s.tokens(0).is_empty());
    }
    s.snapshot(0).unwrap();
}

/// A file system without direct reads.
fn indirect(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
    match rustix::fs::fcntl_getfl(file)?.contains(rustix::fs::OFlags::DIRECT) {
        true => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        false => read_at(file, to, at),
    }
}

#[test]
fn without_direct_reads_logits_are_the_same() {
    let r = reference("gpt-oss").unwrap();
    let want = logits(&mut Session::open(&r.gguf, &exact()).unwrap(), beginning(&r));
    let o = Options { ram: RamLimit::Slots(3), read_at: indirect, ..exact() };
    assert!(logits(&mut Session::open(&r.gguf, &o).unwrap(), beginning(&r)) == want);
}

/// A copy of a model, to be damaged.
fn copy(r: &Reference, name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("drive");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join(format!("{name}-{}.gguf", std::process::id()));
    std::fs::copy(&r.gguf, &file).unwrap();
    file
}

#[test]
fn a_file_that_is_cut_rewritten_or_replaced_meanwhile_is_found_or_does_not_matter() {
    let r = reference("qwen3moe").unwrap();
    let want = logits(&mut Session::open(&r.gguf, &exact()).unwrap(), beginning(&r));
    let o = Options { ram: RamLimit::Slots(2), ..exact() };
    let len = std::fs::metadata(&r.gguf).unwrap().len();
    let write = |file: &Path| File::options().write(true).open(file).unwrap();
    for (name, change) in [
        ("cut", &(|file: &Path| write(file).set_len(len / 3).unwrap()) as &(dyn Fn(&Path) + Sync)),
        ("rewritten", &|file: &Path| std::fs::write(file, vec![7; len as usize]).unwrap()),
        ("touched", &|file: &Path| write(file).set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap()),
    ] {
        let file = copy(&r, name);
        let mut s = Session::open(&file, &o).unwrap();
        s.feed(0, &r.prompt[..30], Want::None).unwrap();
        // In the middle of a walk, and before one.
        let mut steps = 0;
        let half = s.engine().tape.steps.len() / 2;
        let mut observer = |_: &str, _: &mut [f32], _: usize| {
            steps += 1;
            if steps == half {
                change(&file);
            }
        };
        let e = s.feed_observed(0, &r.prompt[30..40], Want::Last, Some(&mut observer)).unwrap_err();
        assert!(e.is::<CutShort>() && e.to_string().contains(name), "{e:#}");
        assert_eq!(s.tokens(0), &r.prompt[..30], "{name}");
        assert!(s.feed(0, &[1], Want::Last).unwrap_err().is::<CutShort>(), "{name}");
        std::fs::remove_file(file).unwrap();
    }
    // A file under the same name is another one: this goes on with the one that it opened.
    let file = copy(&r, "replaced");
    let mut s = Session::open(&file, &o).unwrap();
    let other = copy(&r, "other");
    std::fs::write(&other, b"something else").unwrap();
    std::fs::rename(&other, &file).unwrap();
    assert!(logits(&mut s, beginning(&r)) == want);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_limit_below_what_a_token_needs_is_refused_and_one_above_all_changes_nothing() {
    let r = reference("qwen3moe").unwrap();
    let open = |bytes: usize| Session::open(&r.gguf, &Options { ram: RamLimit::Bytes(bytes), ..exact() });
    let size = std::fs::metadata(&r.gguf).unwrap().len() as usize;
    let said = format!("{:#}", open(1000).unwrap_err());
    assert!(said.contains("what every token reads and one expert of each layer take"), "{said}");
    assert!(open(size).unwrap().ram().is_none());
    let slots = |bytes: usize| open(bytes).ok().and_then(|s| s.ram().map(|pool| pool.slots));
    let found: Vec<usize> = (1..20).filter_map(|i| slots(size * i / 20)).collect();
    assert!(found.len() > 3 && found.is_sorted() && found[0] < found[found.len() - 1], "{found:?}");
}

#[test]
fn the_program_answers_as_with_all_in_memory_says_so_once_and_refuses_by_exit_status() {
    let r = reference("qwen3moe").unwrap();
    let m = r.gguf.to_str().unwrap();
    let size = std::fs::metadata(&r.gguf).unwrap().len();
    let tokens = r.prompt[..20].iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let out = |name: &str| Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.f32", std::process::id()));
    let run = |to: &Path, more: &[&str]| {
        program(&[&["logits", "-m", m, "--tokens", &tokens, "--out", to.to_str().unwrap()], more].concat(), b"")
    };
    let text = |o: &std::process::Output| String::from_utf8_lossy(&o.stderr).into_owned();
    let (plain, pooled) = (out("plain"), out("pooled"));
    let o = run(&plain, &[]);
    assert!(o.status.success() && !text(&o).contains("--ram"), "{}", text(&o));
    let ram = format!("{}K", size * 7 / 10 / 1024);
    let o = run(&pooled, &["--ram", &ram]);
    assert!(
        o.status.success() && text(&o).matches("experts of each layer are kept there").count() == 1,
        "{}",
        text(&o)
    );
    assert!(std::fs::read(&plain).unwrap() == std::fs::read(&pooled).unwrap());
    for (more, status, part) in [
        (&["--ram", "1K"][..], 5, "expected a larger --ram"),
        (&["--ram", "much"], 2, "expected a size like 48G or 900M, auto or off"),
        (&["--ram", &ram, "--no-mmap"], 2, "cannot be used with --no-mmap"),
        (&["--ram", "1G", "--strict"], 2, "all weights fit into it"),
        (&["--ram", "off", "--strict"], 0, ""),
    ] {
        let o = run(&pooled, more);
        assert!(o.status.code() == Some(status) && text(&o).contains(part), "{more:?}: {}", text(&o));
    }
    [plain, pooled].iter().for_each(|file| std::fs::remove_file(file).unwrap());
}

/// Where [`noting`] was asked to read.
static PLACES: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// A drive whose reads are noted.
fn noting(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
    PLACES.lock().unwrap().push(at);
    read_at(file, to, at)
}

#[test]
fn a_second_run_reads_those_experts_first_that_the_first_one_used_most() {
    // Its matrices are larger than a page, so that where a read begins says what it reads.
    let (demo, prompt) = (common::demo(), (3..60).collect::<Vec<u32>>());
    let dir = tempfile::tempdir().unwrap();
    let gguf = Gguf::open(&demo).unwrap();
    let o = Options { ram: RamLimit::Slots(1), read_at: noting, expert_uses: Some(dir.path().into()), ..exact() };
    let mut s = Session::open(&demo, &o).unwrap();
    let (n, _) = experts(&s.engine().tape);
    let want = logits(&mut s, &prompt);
    drop(s);
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    let uses = &common::json(file)["uses"];
    PLACES.lock().unwrap().clear();
    let slots = n / 2;
    let mut s = Session::open(&demo, &Options { ram: RamLimit::Slots(slots), ..o }).unwrap();
    let layers: Vec<_> = gguf.tensors.iter().filter(|t| uses[&t.name].is_array()).collect();
    assert!(layers.len() > 1);
    // What is read of a layer's first tensor while nothing asks for anything, in order.
    let read = |tensor: &&tandem::gguf::Tensor| -> Vec<usize> {
        let bytes = tensor.bytes / n;
        let begins = |at: &u64| (0..n).find(|e| (tensor.offset + (e * bytes) as u64) / 4096 * 4096 == *at);
        let mut all: Vec<usize> = PLACES.lock().unwrap().iter().filter_map(begins).collect();
        all.dedup();
        all
    };
    let start = Instant::now();
    while layers.iter().any(|l| read(l).len() < slots) {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", layers.iter().map(read).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(5));
    }
    for layer in &layers {
        let uses: Vec<u64> = uses[&layer.name].as_array().unwrap().iter().map(|u| u.as_u64().unwrap()).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|e| (std::cmp::Reverse(uses[*e]), *e));
        let set = |list: &[usize]| list.iter().copied().collect::<BTreeSet<usize>>();
        assert_eq!(set(&read(layer)), set(&order[..slots]), "{}: {uses:?}", layer.name);
        assert!(order[..3].contains(&read(layer)[0]), "two threads read: {:?} of {order:?}", read(layer));
    }
    assert!(logits(&mut s, &prompt) == want);
}

/// The demo model with `--ram` for some of its experts: the verb, further arguments, and a cache folder of its own.
fn small_demo(verb: &str, more: &[&str], cache: &Path) -> Vec<String> {
    let demo = common::demo();
    let ram = format!("{}K", std::fs::metadata(&demo).unwrap().len() * 7 / 10 / 1024);
    let program = env!("CARGO_BIN_EXE_tandem");
    let cache = format!("XDG_CACHE_HOME={}", cache.display());
    let all = ["CUDA_VISIBLE_DEVICES=", &cache, program, verb, "-m", demo.to_str().unwrap(), "--ram", &ram];
    all.iter().chain(more).map(|a| a.to_string()).collect()
}

#[test]
fn the_experts_used_most_are_kept_for_the_next_run_also_after_ctrl_c_unless_no_profile_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let is_experts = |file: &DirEntry| file.file_name().to_string_lossy().starts_with("experts-");
    let all = || std::fs::read_dir(dir.path().join("tandem")).into_iter().flatten().flatten();
    let kept = || all().filter(is_experts).collect::<Vec<_>>();
    let run = |more: &[&str]| {
        let args = small_demo("run", &[&["-p", "ROMEO:", "--raw"], more].concat(), dir.path());
        let mut c = Command::new("env");
        c.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        c
    };
    let said = |more: &[&str]| {
        let o = run(more).output().unwrap();
        let text = String::from_utf8_lossy(&o.stderr).into_owned();
        assert!(o.status.success(), "{text}");
        text
    };
    let ignored = "ignored, and replaced at the end";
    said(&["-n", "4", "--no-profile"]);
    assert_eq!(all().count(), 0);
    let mut child = run(&["-n", "100000", "--ignore-eos", "-c", "8192"]).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let o = child.wait_with_output().unwrap();
    assert_eq!(o.status.code(), Some(130), "{}", String::from_utf8_lossy(&o.stderr));
    let [file] = &kept()[..] else { panic!("{:?}", kept()) };
    let text = said(&["-n", "4", "-v"]);
    assert!(
        text.contains("the experts that earlier runs used most are read first") && !text.contains(ignored),
        "{text}"
    );
    std::fs::write(file.path(), "{").unwrap();
    let text = said(&["-n", "4", "-v"]);
    assert!(text.contains(ignored), "{text}");
    assert!(!said(&["-n", "4", "-v"]).contains(ignored), "it was replaced");
}

#[test]
fn a_model_on_a_network_file_system_is_read_from_there_and_a_notice_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let r = reference("qwen3moe").unwrap();
    let Some(_served) = fuse::Served::mount(&r.gguf, "model.gguf", &dir.path().join("far")) else { return };
    let ram = format!("{}K", std::fs::metadata(&r.gguf).unwrap().len() * 7 / 10 / 1024);
    let tokens = r.prompt[..20].iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let run = |file: &Path, name: &str| {
        let out = dir.path().join(name);
        let (file, to) = (file.to_str().unwrap(), out.to_str().unwrap());
        let o = program(&["logits", "-m", file, "--tokens", &tokens, "--out", to, "--ram", &ram], b"");
        let text = String::from_utf8_lossy(&o.stderr).into_owned();
        assert!(o.status.success(), "{text}");
        (std::fs::read(out).unwrap(), text)
    };
    let (near, far) = (run(&r.gguf, "near.f32"), run(&dir.path().join("far/model.gguf"), "far.f32"));
    assert!(near.0 == far.0);
    let notice = "model.gguf: on FUSE, so experts that are not in memory come from there";
    assert!(far.1.matches(notice).count() == 1 && !near.1.contains("so experts that are not in memory"), "{}", far.1);
}

#[test]
fn a_process_whose_control_group_runs_short_of_memory_gives_slots_back_and_goes_on() {
    const LIMIT: usize = 512 << 20;
    /// Less than the part of the limit from which on memory is short, a sixteenth.
    const REST: usize = LIMIT / 64 * 3;
    let Some(group) = group::MemoryGroup::new(LIMIT) else { return };
    let dir = tempfile::tempdir().unwrap();
    let args = small_demo("batch", &["--raw"], dir.path());
    let mut c = group.command("env", &args.iter().map(String::as_str).collect::<Vec<_>>());
    let errors = dir.path().join("stderr");
    let mut child =
        c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&errors).unwrap()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut ask = || {
        writeln!(to, r#"{{"prompt": "ROMEO:", "temperature": 0, "n_predict": 20}}"#).unwrap();
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        assert!(line.contains("\"text\""), "{line}: {}", std::fs::read_to_string(&errors).unwrap());
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        answer["text"].clone()
    };
    let gives_way = || std::fs::read_to_string(&errors).unwrap().matches("fewer experts are kept there").count();
    let first = ask();
    (0..20).for_each(|_| assert!(ask() == first));
    assert_eq!(gives_way(), 0, "nothing is short so far");
    // One holds nearly all of the rest, others read a file through what is left, again and again.
    let file = dir.path().join("file");
    std::fs::write(&file, vec![7; LIMIT / 4]).unwrap();
    File::open(&file).unwrap().sync_all().unwrap();
    rustix::fs::fadvise(File::open(&file).unwrap(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let taken = group.taken();
    let hold = |rest: usize| {
        let held = format!("bs={}", LIMIT - rest - taken);
        group.command("dd", &["if=/dev/zero", "of=/dev/null", &held, "count=1000000"]).spawn().unwrap()
    };
    let reads = || group.command("cat", &[file.to_str().unwrap(); 1000]).stdout(Stdio::null()).spawn().unwrap();
    let mut rest = REST;
    let mut others = vec![hold(rest), reads(), reads(), reads()];
    let (start, mut high_since) = (Instant::now(), None);
    let mut is_skipped = false;
    while gives_way() == 0 && !is_skipped {
        assert!(ask() == first);
        let waited = start.elapsed();
        // What the kernel killed, as too little was left, is to hold less.
        if others[0].try_wait().unwrap().is_some() && rest + LIMIT / 256 < LIMIT / 16 {
            rest += LIMIT / 256;
            others[0] = hold(rest);
        }
        // A machine that is busy with something else lets them read less. Many of them need memory of their own.
        if waited.as_secs() > 5 * (others.len() as u64 - 3) && others.len() < 9 {
            others.push(reads());
        }
        let is_high = group.waits() && LIMIT - group.taken() < LIMIT / 16;
        high_since = is_high.then(|| high_since.unwrap_or(waited));
        if let Some(since) = high_since {
            let text = || std::fs::read_to_string(&errors).unwrap();
            assert!(waited - since < Duration::from_secs(20), "nothing was given back: {}", text());
        }
        is_skipped = waited > Duration::from_secs(45) && !is_high;
    }
    if is_skipped {
        let ended = others[0].try_wait().unwrap();
        say!("skipped: the kernel counted no waits for memory (what was to hold most of it: {ended:?})");
    } else {
        (0..5).for_each(|_| assert!(ask() == first));
        assert_eq!(gives_way(), 1, "it is said once");
    }
    for mut other in others {
        other.kill().unwrap();
        other.wait().unwrap();
    }
    drop(to);
    assert!(child.wait().unwrap().success());
}
