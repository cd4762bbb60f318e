//! The program with a GPU, over the emulated driver: placements, memory that runs out, and what it says.

mod common;

use std::process::{Command, Output};

use common::emu;

/// Runs the program with the emulated driver; None where there is no compiler for it.
fn tandem(args: &[&str], env: &[(&str, &str)]) -> Option<Output> {
    let library = emu::library()?;
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(args).env("LD_LIBRARY_PATH", library.parent().unwrap()).env("NO_COLOR", "1");
    c.envs(env.iter().copied());
    Some(c.output().unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the program writes on stdout, and on stderr.
fn said(args: &[&str], env: &[(&str, &str)]) -> Option<(String, String)> {
    let out = tandem(args, env)?;
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{args:?}: {stderr}");
    Some((stdout, stderr))
}

/// A prompt whose likeliest continuation is far ahead of the second at every token: a model as small as this one often has
/// two that are within a rounding of each other.
const RUN: [&str; 8] = ["run", "-p", "JULIET:", "-n", "24", "--temp", "0", "-c"];

fn run(more: &[&str], env: &[(&str, &str)]) -> Option<(String, String)> {
    said(&[&RUN[..], &["256"], more].concat(), env)
}

#[test]
fn every_placement_writes_what_the_cpu_writes() {
    let Some((want, _)) = run(&["-ngl", "0"], &[]) else { return };
    assert!(want.len() > 20, "{want:?}");
    for flags in [&["-ngl", "all"][..], &["-ngl", "all", "-cmoe", "--expert-cache", "off"], &["-cmoe"], &["-ngl", "3"]]
    {
        let (got, stderr) = run(flags, &[]).unwrap();
        assert_eq!(got, want, "{flags:?}: {stderr}");
        assert!(stderr.contains("emulated device"), "{flags:?} says what went where: {stderr}");
    }
}

#[test]
fn without_a_gpu_a_line_says_why_and_the_cpu_writes_the_same() {
    let Some((want, stderr)) = run(&["-ngl", "0"], &[]) else { return };
    assert!(!stderr.contains("GPU"), "nobody asked: {stderr}");
    let (got, stderr) = run(&[], &[("TANDEM_EMU_MEM_MB", "0")]).unwrap();
    assert_eq!(got, want);
    assert!(stderr.contains("no GPU is used: the NVIDIA driver finds no GPU"), "{stderr}");
    // What was asked for is an error under --strict, and a notice otherwise.
    let (got, stderr) = run(&["-ngl", "99"], &[("TANDEM_EMU_MEM_MB", "0")]).unwrap();
    assert_eq!(got, want);
    assert!(stderr.contains("-ngl 99 has no effect: "), "{stderr}");
    let out = tandem(&[&RUN[..], &["256", "-ngl", "99", "--strict"]].concat(), &[("TANDEM_EMU_MEM_MB", "0")]).unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    // An old device.
    let (_, stderr) = run(&[], &[("TANDEM_EMU_SM", "61")]).unwrap();
    assert!(stderr.contains("compute capability 6.1"), "{stderr}");
}

#[test]
fn too_little_memory_gives_a_smaller_placement_that_is_said() {
    let Some((want, _)) = run(&["-ngl", "0"], &[]) else { return };
    for mb in ["1", "3", "6", "12"] {
        let (got, stderr) = run(&[], &[("TANDEM_EMU_MEM_MB", mb)]).unwrap();
        assert_eq!(got, want, "{mb} MB: {stderr}");
        assert!(stderr.contains("no GPU is used: no part") || stderr.contains("of GPU memory"), "{mb} MB: {stderr}");
    }
    // More was promised than there is: met, said, and a smaller one used.
    let (got, stderr) = run(&[], &[("TANDEM_EMU_MEM_MB", "64"), ("TANDEM_EMU_HIDDEN_MB", "61")]).unwrap();
    assert_eq!(got, want, "{stderr}");
    assert!(stderr.contains("not enough memory for") && stderr.contains("trying a smaller placement"), "{stderr}");
}

#[test]
fn explain_plans_for_a_gpu_that_is_not_here() {
    let args = ["explain", "--vram", "64M", "--ram", "1G", "-c", "512", "--json"];
    let Some((stdout, _)) = said(&args, &[("TANDEM_EMU_MEM_MB", "0")]) else { return };
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let p = &json["placement"];
    assert!(p["gpu_needed_bytes"].as_u64().unwrap() <= 64 << 20, "{p}");
    assert!(p["flags"].as_str().unwrap().starts_with("-ngl "), "{p}");
    let places = json["places"].as_array().unwrap();
    assert!(places.iter().any(|p| p["place"] == "GPU" && p["weight_bytes"].as_u64() > Some(0)), "{places:?}");
    // The flags that it names ask for the same.
    let flags: Vec<&str> = p["flags"].as_str().unwrap().split(' ').collect();
    let (again, _) = said(&[&args[..], &flags].concat(), &[("TANDEM_EMU_MEM_MB", "0")]).unwrap();
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["placement"]["words"], p["words"]);
    assert_eq!(again["places"], json["places"]);
}

#[test]
fn verify_holds_every_place_to_the_scalar_kernels() {
    let Some((stdout, stderr)) = said(&["verify", "--tokens", "24"], &[]) else { return };
    assert!(stdout.contains("All within their limits."), "{stdout}{stderr}");
    for word in ["scalar", "GPU", "hybrid", "MXFP4", "attend", "experts", "~ logits"] {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
}

#[test]
fn the_batch_is_chosen_for_the_placement_unless_it_is_asked_for() {
    let dry = ["run", "--dry-run", "-p", "x", "-c", "2048"];
    let Some((line, _)) = said(&dry, &[]) else { return };
    let word = |line: &str, flag: &str| {
        let mut words = line.split_whitespace().skip_while(|w| *w != flag);
        words.nth(1).unwrap_or_else(|| panic!("{flag}: {line}")).parse::<usize>().unwrap()
    };
    let chosen = word(&line, "-ub");
    assert!([256, 512, 1024, 2048].contains(&chosen) && word(&line, "-b") >= chosen, "{line}");
    let (_, stderr) = said(&["run", "-v", "-p", "JULIET:", "-n", "1", "--temp", "0", "-c", "2048"], &[]).unwrap();
    assert!(stderr.contains(&format!("batches of up to {chosen} tokens")), "{stderr}");
    // What is asked for is taken, and -b alone is a bound.
    for (flags, most) in [(&["-ub", "64"][..], 64), (&["-b", "100"], 100), (&["-b", "100", "-ub", "3000"], 100)] {
        let (line, _) = said(&[&dry[..], flags].concat(), &[]).unwrap();
        assert_eq!(word(&line, "-ub"), most, "{line}");
    }
    // Nothing computes more rows together than a piece of a prompt has.
    let (line, _) = said(&["batch", "--dry-run", "-c", "2048", "in.jsonl"], &[]).unwrap();
    assert_eq!(word(&line, "-ub"), 128, "{line}");
    // Without a GPU it is what it always is.
    let (line, _) = said(&dry, &[("TANDEM_EMU_MEM_MB", "0")]).unwrap();
    assert_eq!((word(&line, "-ub"), word(&line, "-b")), (1024, 1024), "{line}");
}
