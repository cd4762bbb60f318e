//! Every weight format through a whole model: as near to the exact logits as the reference itself, or nearer.

mod common;

use std::process::Command;

use common::{exact, floats, ids, json, local, nmse, rows, whole};
use tandem::session::{Session, Want};

#[test]
fn logits_in_every_format_are_no_farther_from_the_exact_ones_than_the_reference_s() {
    let all = whole();
    if all.is_none() {
        say!("three formats only: the reference folder is not next to this checkout");
    }
    let dir = all.clone().unwrap_or_else(local).join("quants");
    let prompt = ids(&json(&dir.join("qwen3moe-256.tokens.json"))["prompt_ids"]);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "gguf"));
    files.sort();
    assert!(files.len() >= if all.is_some() { 28 } else { 3 }, "the reference has a model in every format");
    let mut failed = Vec::new();
    for gguf in files {
        let info = json(&gguf.with_extension("json"));
        let name = info["llama_quantize_type"].as_str().or(info["name"].as_str()).unwrap().to_string();
        let positions = ids(&info["positions"]);
        let mut s = match Session::open(&gguf, &exact()) {
            Ok(s) => s,
            Err(e) => {
                say!("{name:16} {e:#}");
                failed.push(name);
                continue;
            }
        };
        let n = s.n_vocab();
        let got = rows(&s.feed(0, &prompt, Want::All).unwrap().into_logits(), n, &positions);
        let want = floats(&gguf.with_extension("logits_exact.f32"));
        let theirs = nmse(&want, &floats(&gguf.with_extension("logits.f32")));
        let ours = nmse(&want, &got);
        // The formats that are multiplied with f32 activations have no activation noise at all; the others may have
        // half as much again as the reference.
        let limit = 1.5 * theirs;
        say!("{name:16} NMSE {ours:.1e}, the reference's own {theirs:.1e}, limit {limit:.1e}");
        if ours.is_nan() || ours > limit {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "off: {failed:?}");
}

/// The test above in a process of its own in which matrix tiles are emulated, where the CPU has none.
#[test]
#[cfg(debug_assertions)]
fn by_emulated_matrix_tiles_logits_are_as_near() {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
    if has("amx_bf16") || !has("avx512_bf16") || std::env::var("TANDEM_ISA").is_ok() {
        say!("skipped, emulated matrix tiles: the CPU has its own, or lacks AVX-512 with BF16, or TANDEM_ISA is set");
        return;
    }
    let test = "logits_in_every_format_are_no_farther_from_the_exact_ones_than_the_reference_s";
    let mut this = Command::new(std::env::current_exe().unwrap());
    let out = this.args([test, "--exact"]).env("TANDEM_ISA", "amx-emulated").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    say!("with emulated matrix tiles:\n{said}");
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stdout));
    assert!(said.contains("matrix tiles are emulated"), "nothing said that tiles are emulated: {said}");
}
