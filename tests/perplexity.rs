//! `tandem perplexity` as its user meets it: against what llama-perplexity printed and wrote, where that is next to the
//! checkout, and against itself and its errors anywhere.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{exact, local, reference, whole};
use tandem::eval::base::BaseReader;
use tandem::session::{Session, Want};

/// Runs the verb with f32 caches, as the reference did.
fn tandem(args: &[&str]) -> Output {
    let exact = ["perplexity", "-ctk", "f32", "-ctv", "f32"];
    let out =
        Command::new(env!("CARGO_BIN_EXE_tandem")).args(exact).args(args).env("CUDA_VISIBLE_DEVICES", "").output();
    out.expect("the program starts")
}

/// The report of a run that must succeed.
fn report(args: &[&str]) -> String {
    let out = tandem(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Exit status and stderr of a run that must fail, with nothing on stdout.
fn failure(args: &[&str]) -> (i32, String) {
    let out = tandem(args);
    assert!(!out.status.success() && out.stdout.is_empty(), "{args:?} went through");
    (out.status.code().expect("an exit status"), String::from_utf8(out.stderr).unwrap())
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn model(name: &str) -> String {
    shown(&local().join(format!("models/{name}.gguf"))).into()
}

/// A path for a file of this test.
fn temporary(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("perplexity-{name}"))
}

/// A play's first `n` bytes, in a file.
fn text(name: &str, n: usize) -> PathBuf {
    let path = temporary(name);
    let play = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/text.txt")).unwrap();
    std::fs::write(&path, &play[..n]).unwrap();
    path
}

#[derive(Debug)]
struct Line {
    label: String,
    value: f64,
    error: Option<f64>,
    last_digit: f64, // what one step of the last digit printed is worth
}

/// The lines of a report that carry a figure.
fn lines(report: &str) -> Vec<Line> {
    let figure = |line: &str| {
        let (label, rest) = line.rsplit_once([':', '='])?;
        let words = rest.split(|c: char| c.is_whitespace() || c == '%');
        let mut numbers = words.filter_map(|w| Some((w.parse::<f64>().ok()?, w.rsplit_once('.')?.1.len())));
        let (value, decimals) = numbers.next()?;
        let label = label.split_whitespace().collect::<Vec<_>>().join(" ");
        let last_digit = 0.1f64.powi(decimals as i32);
        Some(Line { label, value, error: numbers.next().map(|(e, _)| e), last_digit })
    };
    report.lines().filter_map(figure).collect()
}

fn line<'a>(lines: &'a [Line], label: &str) -> &'a Line {
    lines.iter().find(|l| l.label == label).unwrap_or_else(|| panic!("no line {label:?} in {lines:?}"))
}

/// The reference's folder, or a notice that there is none.
fn oracle(what: &str) -> Option<PathBuf> {
    let dir = whole();
    if dir.is_none() {
        println!("not checked, because the reference folder is not next to this checkout: {what}");
    }
    dir
}

#[test]
fn the_perplexity_of_a_text_is_the_reference_s() {
    let Some(dir) = oracle("perplexity of a text") else { return };
    let (m, f) = (dir.join("quants/qwen3moe-256.F16.gguf"), dir.join("perplexity/text.txt"));
    let got = lines(&report(&["-m", shown(&m), "-f", shown(&f), "-c", "128"]));
    let want = lines(&std::fs::read_to_string(dir.join("perplexity/F16.txt")).unwrap());
    let (got, want) = (line(&got, "Final estimate: PPL"), line(&want, "Final estimate: PPL"));
    println!("perplexity {}, the reference has {} (limit 0.1%)", got.value, want.value);
    assert!((got.value / want.value - 1.0).abs() < 1e-3, "{got:?} is not {want:?}");
}

#[test]
fn a_model_is_no_distance_from_the_base_that_the_reference_wrote_of_it() {
    let Some(dir) = oracle("divergence from the reference's own logits") else { return };
    let (m, b) = (dir.join("quants/qwen3moe-256.F16.gguf"), dir.join("perplexity/qwen3moe-256.F16.kld"));
    let got = lines(&report(&["-m", shown(&m), "--kl-divergence-base", shown(&b), "--kl-divergence"]));
    let kld = line(&got, "Mean KLD");
    println!("mean KL divergence {} ± {} (limit 1e-4)", kld.value, kld.error.unwrap());
    assert!(kld.value.abs() < 1e-4, "{kld:?}");
}

#[test]
fn every_line_of_a_comparison_with_a_base_is_the_reference_s_within_its_error_bar() {
    let Some(dir) = oracle("comparison of a quantised model with its base") else { return };
    let (m, f) = (dir.join("quants/qwen3moe-256.Q4_K_M.gguf"), dir.join("perplexity/text.txt"));
    let b = dir.join("perplexity/qwen3moe-256.F16.kld");
    let base = ["--kl-divergence-base", shown(&b), "--kl-divergence"];
    let got = lines(&report(&[&["-m", shown(&m), "-f", shown(&f), "-c", "128"], &base[..]].concat()));
    let want = lines(&std::fs::read_to_string(dir.join("perplexity/Q4_K_M-against-F16.txt")).unwrap());
    assert_eq!(want.len(), 34, "the reference's lines were understood");
    let labels = |lines: &[Line]| lines.iter().map(|l| l.label.clone()).collect::<Vec<_>>();
    assert_eq!(labels(&got), labels(&want));
    let mut off = Vec::new();
    for (g, w) in got.iter().zip(&want) {
        // Percentiles have no error bar: a token whose experts change moves an extreme by its distance to the next
        // one, a few percent. Nor has the correlation.
        let limit = w.error.unwrap_or(if w.label.starts_with("Cor") { 0.1 } else { 0.05 * w.value.abs() });
        let limit = limit + w.last_digit;
        let by = (g.value - w.value).abs();
        let kind = if w.error.is_some() { "its error bar" } else { "no error bar" };
        println!("{:30} {:12} {:12}  off by {by:.6}, limit {limit:.6} ({kind})", w.label, g.value, w.value);
        if by > limit || by.is_nan() {
            off.push(&w.label);
        }
    }
    assert!(off.is_empty(), "off: {off:?}");
}

#[test]
fn the_head_and_tokens_of_our_base_file_are_the_reference_s_byte_for_byte_and_its_rows_nearly_so() {
    let Some(dir) = oracle("a base file against the reference's") else { return };
    let (m, f) = (dir.join("quants/qwen3moe-256.F16.gguf"), dir.join("perplexity/text.txt"));
    let (ours, theirs) = (temporary("ours.kld"), dir.join("perplexity/qwen3moe-256.F16.kld"));
    let limit = ["-c", "128", "--chunks", "16", "--kl-divergence-base", shown(&ours)];
    report(&[&["-m", shown(&m), "-f", shown(&f)], &limit[..]].concat());
    let (a, b) = (std::fs::read(&ours).unwrap(), std::fs::read(&theirs).unwrap());
    assert_eq!(a[..16], b[..16], "name, context and vocabulary");
    let tokens = 20..20 + 4 * 128 * 16;
    assert!(a[tokens.clone()] == b[tokens], "tokens");
    let (mut a, mut b) = (BaseReader::open(&ours).unwrap(), BaseReader::open(&theirs).unwrap());
    let (a, b) = (a.rows(1000).unwrap(), b.rows(1000).unwrap());
    let pairs = a.iter().zip(&b).flat_map(|(a, b)| a.log_probs().zip(b.log_probs()));
    let (sum, n) = pairs.fold((0.0, 0), |(sum, n), (a, b)| (sum + (a as f64 - b as f64).abs(), n + 1));
    let mean = sum / n as f64;
    println!("log-probabilities differ by {mean:.5} in the mean (limit 0.002; the reference computes in F16 here)");
    assert!(mean < 0.002, "log-probabilities differ by {mean}");
}

#[test]
fn a_model_is_no_distance_from_the_base_that_it_wrote_itself() {
    for name in ["qwen3moe", "qwen35moe"] {
        let (m, f, b) = (model(name), text(&format!("{name}-own.txt"), 2000), temporary(&format!("{name}-own.kld")));
        let ppl = report(&["-m", &m, "-f", shown(&f), "-c", "101", "--kl-divergence-base", shown(&b)]);
        let got = lines(&report(&["-m", &m, "--kl-divergence-base", shown(&b), "--kl-divergence"]));
        assert!(line(&got, "Mean KLD").value.abs() < 1e-5, "{name}: {got:?}");
        assert_eq!(line(&got, "Same top p").value, 100.0, "{name}: {got:?}");
        let (alone, compared) = (line(&lines(&ppl), "Final estimate: PPL").value, line(&got, "Mean PPL(Q)").value);
        assert!((alone / compared - 1.0).abs() < 1e-6, "{name}: perplexity {alone} alone, {compared} against the base");
    }
}

#[test]
fn batches_smaller_than_a_chunk_give_the_same_perplexity() {
    for name in ["qwen3moe", "qwen35moe"] {
        let (m, f) = (model(name), text(&format!("{name}-batch.txt"), 1500));
        let ppl = |b: &str| {
            let r = lines(&report(&["-m", &m, "-f", shown(&f), "-c", "100", "-b", b]));
            line(&r, "Final estimate: PPL").value
        };
        let want = ppl("512");
        for b in ["7", "50", "64", "99"] {
            let got = ppl(b);
            assert!((got / want - 1.0).abs() < 1e-5, "{name}: {got} in batches of {b}, {want} in one");
        }
    }
}

#[test]
fn a_limit_of_chunks_is_that_of_a_text_as_long() {
    let (m, f) = (model("qwen3moe"), text("limit.txt", 2000));
    let some = report(&["-m", &m, "-f", shown(&f), "-c", "64", "--chunks", "2"]);
    let out = tandem(&["-m", &m, "-f", shown(&f), "-c", "64"]);
    let (all, said) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert_ne!(some, all);
    let ppl = line(&lines(&some), "Final estimate: PPL").value;
    assert!(said.contains(&format!("[2]{ppl:.4},")), "after two chunks of all it was not {ppl}:\n{said}");
    assert!(!all.contains("[2]"), "what is on the way to the answer is not on stdout: {all}");
}

#[test]
fn logits_from_a_token_on_are_the_last_rows_of_all_logits() {
    let r = reference("qwen3moe").expect("the repository carries it");
    let mut o = exact();
    o.n_batch = 16;
    let mut s = Session::open(&r.gguf, &o).unwrap();
    let all = s.feed(0, &r.prompt[..50], Want::All).unwrap().into_logits();
    for from in [0, 5, 16, 40, 49, 50] {
        s.clear(0);
        let part = s.feed(0, &r.prompt[..50], Want::From(from)).unwrap().into_logits();
        assert!(part == all[from * s.n_vocab()..], "from {from}");
    }
}

#[test]
fn wrong_usage_is_told_before_a_model_is_opened() {
    let f = text("usage.txt", 500);
    let m = ["-m", "no-such-model.gguf"];
    let (status, e) = failure(&m);
    assert!(status == 2 && e.contains("-f FILE"), "{status}: {e}");
    let (status, e) = failure(&[&m[..], &["-f", shown(&f), "--chunks", "0"]].concat());
    assert!(status == 2 && e.contains("--chunks 0"), "{status}: {e}");
    let (status, e) = failure(&[&m[..], &["-f", "no-such-text.txt"]].concat());
    assert!(status == 1 && e.contains("no-such-text.txt"), "{status}: {e}");
    let (status, _) = failure(&[&m[..], &["--kl-divergence"]].concat());
    assert_eq!(status, 2, "--kl-divergence needs a base");
}

#[test]
fn a_text_too_short_for_one_chunk_is_told_what_it_has_and_what_it_needs() {
    let (m, f) = (model("qwen3moe"), text("short.txt", 20));
    let (status, e) = failure(&["-m", &m, "-f", shown(&f)]);
    assert!(status == 1 && e.contains("short.txt") && e.contains("a chunk needs 512"), "{status}: {e}");
    let b = temporary("short.kld");
    failure(&["-m", &m, "-f", shown(&f), "--kl-divergence-base", shown(&b)]);
    assert!(!b.exists(), "no base file is begun for a text that cannot be read");
}

#[test]
fn a_base_that_does_not_fit_is_refused_with_both_sides() {
    let (m, f, b) = (model("qwen3moe"), text("fit.txt", 2000), temporary("fit.kld"));
    report(&["-m", &m, "-f", shown(&f), "-c", "64", "--kl-divergence-base", shown(&b)]);
    let against = |extra: &[&str]| {
        let (status, e) = failure(&[&["--kl-divergence-base", shown(&b), "--kl-divergence"], extra].concat());
        assert!(status == 1 && e.contains("fit.kld"), "{status}: {e}");
        e
    };
    let e = against(&["-m", &model("qwen35")]);
    assert!(e.contains("rows of 384") && e.contains("vocabulary of 352"), "{e}");
    let e = against(&["-m", &m, "-c", "128"]);
    assert!(e.contains("chunks of 64") && e.contains("-c 64"), "{e}");
    let other = temporary("fit-other.txt");
    std::fs::write(&other, "Second Citizen: not the text of the base").unwrap();
    let e = against(&["-m", &m, "-f", shown(&other)]);
    assert!(e.contains("fit-other.txt") && e.contains("another text"), "{e}");
    std::fs::write(&b, &std::fs::read(&b).unwrap()[..5000]).unwrap();
    let e = against(&["-m", "no-such-model.gguf"]);
    assert!(e.contains("5000 bytes") && e.contains("expected"), "{e}");
    std::fs::remove_file(&b).unwrap();
    assert!(against(&["-m", &m]).contains("cannot open"));
}

#[test]
fn too_few_rows_for_statistics_are_an_error_and_not_an_empty_answer() {
    let (m, f, b) = (model("qwen3moe"), text("few.txt", 2000), temporary("few.kld"));
    report(&["-m", &m, "-f", shown(&f), "-c", "64", "--kl-divergence-base", shown(&b)]);
    let base = ["--kl-divergence-base", shown(&b), "--kl-divergence"];
    let (status, e) = failure(&[&["-m", &m, "--chunks", "3"], &base[..]].concat());
    assert!(status == 1 && e.contains("93 rows") && e.contains("fewer than 100"), "{status}: {e}");
    report(&[&["-m", &m, "--chunks", "4"], &base[..]].concat());
}
