//! What real drivers do to a program, by the emulated one: memory that cannot be pinned,
//! allocations that fail late, kernels that fail in the middle of an answer.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::emu;
use tandem::gguf::Gguf;
use tandem::plan::{self, Ask};
use tandem::session::{self, Options};
use tandem::tape::{ExpertShare, WeightKind};

/// Settings of the driver, or of the program, by the names of environment variables.
type Env<'a> = &'a [(&'a str, &'a str)];

/// Runs the program with the emulated driver and this on stdin; None where there is no such driver.
fn tandem(args: &[&str], env: Env, stdin: &str) -> Option<Output> {
    let library = emu::library()?;
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(args).env("LD_LIBRARY_PATH", library.parent().unwrap()).env("NO_COLOR", "1").envs(env.iter().copied());
    let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), stdin.as_bytes());
    Some(child.wait_with_output().unwrap())
}

/// The exit status, stdout and stderr.
fn said(args: &[&str], env: Env, stdin: &str) -> Option<(i32, String, String)> {
    let o = tandem(args, env, stdin)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((o.status.code().expect("no signal ends it"), text(&o.stdout), text(&o.stderr)))
}

/// A prompt whose likeliest continuation is far ahead of the second at every token, for a model
/// that is mapped from a file. Its experts stay on the CPU, and some of them in the GPU's cache, so
/// that every way of the GPU's memory is taken.
fn run(more: &[&str], env: Env) -> Option<(i32, String, String)> {
    let demo = common::demo();
    let first = ["run", "-m", demo.to_str().unwrap(), "-p", "JULIET:", "-n", "24", "--temp", "0", "-c", "256"];
    said(&[&first[..], more].concat(), env, "")
}

fn folder(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gpu_faults").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn kernels_that_do_not_load_are_an_error_before_the_first_token() {
    let dir = folder("kernels");
    std::fs::write(dir.join("attend.sm_80.ptx"), "no kernels").unwrap();
    let broken = [("TANDEM_PTX_DIR", dir.to_str().unwrap())];
    let Some((status, got, stderr)) = run(&["-cmoe"], &broken) else { return };
    assert!(status == 1 && got.is_empty(), "{status} {got} {stderr}");
    assert!(stderr.contains("refused the kernels of attend: CUDA_ERROR_INVALID_IMAGE"), "{stderr}");
    let (status, got, stderr) = run(&["-cmoe", "--gpu-fallback"], &broken).unwrap();
    let (_, want, _) = run(&["-ngl", "0"], &[]).unwrap();
    assert_eq!((status, got), (0, want), "{stderr}");
    assert!(stderr.contains("the CPU takes its place"), "{stderr}");
}

#[test]
fn what_the_driver_takes_for_page_tables_is_left_to_it() {
    let gguf = Gguf::open(&common::demo()).unwrap();
    let (o, ask) = (Options::default(), Ask { cpu_moe: Some(usize::MAX), ..Ask::default() });
    let shape = session::shape(&gguf, &o).unwrap();
    let mut seen = 0;
    for mb in [8, 16, 24, 32, 48, 64, 128, 256] {
        let fit = plan::fit(session::tape(&gguf, &o).unwrap(), &ask, &[mb << 20], shape).unwrap();
        let shared = fit.tape.steps.iter().filter(|s| s.share == ExpertShare::OnGpu);
        let weights = shared.flat_map(|s| &s.weights).map(|w| &fit.tape.weights[w.0 as usize]);
        let pinned: usize = weights.filter(|w| w.kind == WeightKind::Matrix).map(|w| w.bytes).sum();
        assert!(fit.footprint.needed() <= mb << 20, "{mb} MB");
        assert_eq!(fit.footprint.needed() - fit.footprint.total(), fit.footprint.page_tables);
        // A byte for 512; each layer's share is rounded down.
        assert!(fit.footprint.page_tables.abs_diff(pinned / 512) <= fit.layers, "{mb} MB: {pinned} bytes of experts");
        seen += usize::from(pinned > 0);
    }
    assert!(seen > 1, "some placements copy experts");
}

/// Launches at which the driver fails: while the prompt is read, early in the answer, and late in
/// it.
const LAUNCHES: [&str; 3] = ["40", "500", "1500"];

/// The words of the error of a GPU that was lost.
fn tells_the_loss(text: &str) -> bool {
    text.contains("the GPU was lost in") && text.contains("CUDA_ERROR_ILLEGAL_ADDRESS")
}

#[test]
fn experts_reach_the_gpu_by_the_best_way_that_the_driver_allows_and_it_is_said() {
    let Some((_, want, stderr)) = run(&["-cmoe"], &[]) else { return };
    assert!(want.len() > 20 && stderr.contains("of experts are "), "a mapped file is pinned: {stderr}");
    let (no, old, unknown) =
        (("TANDEM_EMU_READ_ONLY", "0"), ("TANDEM_EMU_KERNEL_MODULE", "565.57.01"), ("TANDEM_EMU_KERNEL_MODULE", ""));
    let cases: [(&[&str], Env, &[&str]); 7] = [
        (&[], &[no], &["reading the weights into memory", "attribute 113 is 0", "of experts are "]),
        (&[], &[old], &["reading the weights into memory", "kernel module 565.57.01", "of experts are "]),
        (&[], &[unknown], &["reading the weights into memory", "kernel module is unknown", "of experts are "]),
        (&["--keep-mmap"], &[no], &["through staging memory, because", "attribute 113 is 0"]),
        (&["--mmap"], &[old], &["through staging memory, because", "kernel module 565.57.01"]),
        (&["--no-mmap"], &[no], &["of experts are "]),
        (
            &["--no-mmap"],
            &[no, ("TANDEM_EMU_NO_REGISTER", "1")],
            &["through staging memory, because the system does not pin"],
        ),
    ];
    for (flags, env, words) in cases {
        let (status, got, stderr) = run(&[&["-cmoe"], flags].concat(), env).unwrap();
        assert_eq!((status, &got), (0, &want), "{flags:?} {env:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{flags:?} {env:?}: {word} is not in {stderr}");
        }
        let read = stderr.contains("reading the weights");
        assert_eq!(read, flags.is_empty(), "what the user asked for holds: {flags:?} {env:?}: {stderr}");
    }
    // Where no expert crosses the bus, or there is no GPU, nothing need be read.
    for flags in [["-ngl", "0"], ["-ngl", "all"]] {
        let (status, got, stderr) = run(&flags, &[no]).unwrap();
        assert_eq!((status, &got), (0, &want), "{stderr}");
        assert!(!stderr.contains("reading the weights"), "{flags:?}: {stderr}");
    }
}

#[test]
fn memory_that_runs_out_late_costs_slots_of_the_expert_cache_and_not_the_answer() {
    let Some((_, want, stderr)) = run(&["-cmoe"], &[]) else { return };
    assert!(stderr.contains("cached on the GPU"), "{stderr}");
    // The first allocation is the model's, the second the cache's, then there are graphs.
    for (limit, words) in [("1", "experts of each layer are cached"), ("2", "the expert cache gives back")] {
        let (status, got, stderr) = run(&["-cmoe"], &[("TANDEM_EMU_ALLOC_LIMIT", limit)]).unwrap();
        assert_eq!((status, &got), (0, &want), "{limit}: {stderr}");
        assert!(stderr.contains(words), "{limit}: {stderr}");
    }
    let (status, got, stderr) = run(&[], &[("TANDEM_EMU_ALLOC_LIMIT", "0")]).unwrap();
    assert_eq!((status, &got), (0, &want), "without any the CPU computes: {stderr}");
    assert!(stderr.contains("trying a smaller placement") && stderr.contains("no GPU is used"), "{stderr}");
}

#[test]
fn a_gpu_that_is_lost_ends_with_its_own_status_and_the_text_goes_on_from_the_session_file() {
    let Some((_, want, _)) = run(&["-cmoe"], &[]) else { return };
    let (file, mut begun) = (folder("lost").join("text"), 0);
    let session = ["--session", file.to_str().unwrap()];
    for at in LAUNCHES {
        let _ = std::fs::remove_file(&file);
        let fault = [("TANDEM_EMU_FAULT_AT", at)];
        let (status, got, stderr) = run(&[&["-cmoe"], &session[..]].concat(), &fault).unwrap();
        assert_eq!(status, 9, "{at}: {stderr}");
        assert!(tells_the_loss(&stderr), "{at}: {stderr}");
        assert!(stderr.contains("TANDEM_GPU_SYNC=1") && stderr.contains("--gpu-fallback"), "what to do: {stderr}");
        let text = got.strip_suffix('\n').unwrap_or(&got);
        assert!(want.starts_with(text), "what was written stays: {got:?} of {want:?}");
        if text.is_empty() {
            assert!(!file.exists(), "nothing was begun that could be lost");
            continue;
        }
        begun += 1;
        let rest = ["run", "-m", common::demo().to_str().unwrap(), "-p", "", "-n", "24", "--temp", "0", "-c", "256"]
            .map(String::from);
        let rest: Vec<&str> = rest.iter().map(String::as_str).chain(session).chain(["-ngl", "0"]).collect();
        let (status, more, stderr) = said(&rest, &[], "").unwrap();
        assert_eq!(status, 0, "{stderr}");
        // The last line's end is the model's, or the program's.
        let whole = [text, &got].map(|text| text.to_owned() + &more);
        assert!(whole.iter().any(|w| w.starts_with(want.trim_end())), "{at}: {whole:?}, expected {want:?}");
    }
    assert!(begun > 0, "one of the faults is in the middle of the answer");
}

#[test]
fn with_the_fallback_the_cpu_goes_on_where_the_gpu_was_lost_and_nothing_is_written_twice() {
    let Some((_, want, _)) = run(&["-cmoe"], &[]) else { return };
    for at in LAUNCHES {
        let (status, got, stderr) = run(&["-cmoe", "--gpu-fallback"], &[("TANDEM_EMU_FAULT_AT", at)]).unwrap();
        assert_eq!((status, &got), (0, &want), "{at}: {stderr}");
        assert!(tells_the_loss(&stderr) && stderr.contains("going on with the CPU"), "{at}: {stderr}");
    }
    let (status, got, stderr) = run(&["-ngl", "0", "--gpu-fallback"], &[]).unwrap();
    assert_eq!((status, &got), (0, &want), "{stderr}");
    assert!(stderr.contains("--gpu-fallback has no effect"), "{stderr}");
}

#[test]
fn where_every_step_is_waited_for_the_error_names_the_kernel_and_its_step() {
    let Some((_, want, _)) = run(&["-cmoe"], &[]) else { return };
    let (status, got, stderr) = run(&["-cmoe"], &[("TANDEM_GPU_SYNC", "1")]).unwrap();
    assert_eq!((status, &got), (0, &want), "{stderr}");
    for at in ["60", "700"] {
        let (status, _, stderr) = run(&["-cmoe"], &[("TANDEM_GPU_SYNC", "1"), ("TANDEM_EMU_FAULT_AT", at)]).unwrap();
        let line = stderr.lines().find(|l| l.contains("the GPU was lost")).unwrap_or_else(|| panic!("{stderr}"));
        assert!(status == 9 && line.contains("lost in kernel ") && line.contains(" of step "), "{line}");
        assert!(!line.contains("TANDEM_GPU_SYNC"), "it is set: {line}");
    }
}

#[test]
fn every_line_of_a_batch_is_answered_or_has_an_error_of_its_own() {
    let line = |i: usize| format!("{{\"prompt\": \"JULIET:\", \"id\": {i}, \"max_tokens\": 12, \"temperature\": 0}}\n");
    let lines: String = (0..6).map(line).collect();
    let demo = common::demo();
    let args = ["batch", "--raw", "-m", demo.to_str().unwrap(), "--parallel", "2", "-c", "256", "-cmoe"];
    let Some((status, want, stderr)) = said(&args, &[], &lines) else { return };
    assert_eq!((status, want.lines().count()), (0, 6), "{stderr}");
    let fault = [("TANDEM_EMU_FAULT_AT", "700")];
    let texts = |out: &str| -> Vec<Option<String>> {
        let object = |l| serde_json::from_str::<serde_json::Value>(l).unwrap();
        out.lines().map(|l| object(l)["text"].as_str().map(String::from)).collect()
    };
    let (status, got, stderr) = said(&args, &fault, &lines).unwrap();
    assert!(status == 9 && got.lines().count() == 6, "{status} {got} {stderr}");
    for (line, (want, text)) in got.lines().zip(texts(&want).into_iter().zip(texts(&got))) {
        assert!(text == want || (text.is_none() && tells_the_loss(line)), "{line}");
    }
    assert!(got.lines().any(tells_the_loss));
    let (status, got, stderr) = said(&[&args[..], &["--gpu-fallback"]].concat(), &fault, &lines).unwrap();
    assert_eq!((status, texts(&got)), (0, texts(&want)), "{stderr}");
    assert!(stderr.contains("going on with the CPU"), "{stderr}");
}

#[test]
fn a_conversation_is_saved_when_the_gpu_is_lost_and_can_be_taken_up() {
    let file = folder("chat").join("talk");
    let template = common::local().parent().unwrap().parent().unwrap().join("demo/romeo.jinja");
    let demo = common::demo();
    let args = [
        "chat",
        "-m",
        demo.to_str().unwrap(),
        "--chat-template-file",
        template.to_str().unwrap(),
        "-n",
        "16",
        "--temp",
        "0",
        "-cmoe",
        "--session",
        file.to_str().unwrap(),
    ];
    let Some((status, _, stderr)) =
        said(&args, &[("TANDEM_EMU_FAULT_AT", "900")], "Good morrow.\nWho art thou?\nFarewell.\n")
    else {
        return;
    };
    assert!(status == 9 && tells_the_loss(&stderr), "{status} {stderr}");
    let note = tandem::store::peek(&file).unwrap().note;
    assert!(note.contains("Good morrow."), "{note}");
    let (status, out, stderr) = said(&[&args[..], &["-ngl", "0"]].concat(), &[], "Art thou here?\n").unwrap();
    assert!(status == 0 && !out.trim().is_empty(), "{status} {out} {stderr}");
    assert!(tandem::store::peek(&file).unwrap().note.contains("Good morrow."));
}
