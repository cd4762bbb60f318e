//! Weights divided over NUMA nodes, as far as a machine of one node can run it: its CPUs are taken for two nodes
//! (`TANDEM_NODES`), threads are pinned to them, and the system is told to put pages on the one node that there is.
#![cfg(target_os = "linux")]

mod common;

use std::path::PathBuf;
use std::process::{Command, Output};

use common::floats;

/// Runs `tandem logits` of the demo model with these flags, where this machine passes for `nodes` nodes.
fn logits(nodes: &str, flags: &[&str], name: &str) -> (Output, PathBuf) {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("numa");
    std::fs::create_dir_all(&dir).unwrap();
    let (file, model) = (dir.join(name), common::demo());
    let tokens = (0..60).map(|t| (t * 7 % 1000).to_string()).collect::<Vec<_>>().join(",");
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.arg("logits")
        .arg("-m")
        .arg(&model)
        .args(["-v", "-ngl", "0", "--tokens", &tokens, "--out"])
        .arg(&file)
        .args(flags);
    match nodes {
        "" => c.env_remove("TANDEM_NODES"),
        n => c.env("TANDEM_NODES", n),
    };
    (c.output().unwrap(), file)
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

/// Whether this machine has two CPUs for this process.
fn has_two() -> bool {
    std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)
}

#[test]
fn logits_are_bit_equal_however_weights_are_divided_and_the_pages_are_where_they_should_be() {
    if !has_two() {
        return;
    }
    let (o, file) = logits("", &["--numa", "off", "-t", "2"], "off.f32");
    assert!(o.status.success() && err(&o).contains("NUMA: off, because --numa off"), "{}", err(&o));
    let want: Vec<u32> = floats(&file).into_iter().map(f32::to_bits).collect();
    for (i, flags) in
        [&["-t", "2"][..], &["-t", "3"], &["-t", "2", "-tb", "5"], &["-t", "2", "--no-mmap"]].iter().enumerate()
    {
        let (o, file) = logits("2", &[&["--numa", "distribute"][..], flags].concat(), &format!("on{i}.f32"));
        let said = err(&o);
        assert!(o.status.success() && said.contains("into the memory of 2 NUMA nodes"), "{flags:?}: {said}");
        let told = said.lines().find(|l| l.starts_with("NUMA: node ")).unwrap_or_else(|| panic!("{flags:?}: {said}"));
        let all = told.contains("100.0% of") || told.contains("cannot be told here");
        assert!(all && told.matches("threads").count() == 2, "{told}");
        let got: Vec<u32> = floats(&file).into_iter().map(f32::to_bits).collect();
        assert!(got == want, "{flags:?}");
    }
}

#[test]
fn every_way_of_asking_for_nodes_is_done_or_has_its_reason() {
    let ends = |nodes: &str, flags: &[&str], status: i32, words: &str| {
        let (o, _) = logits(nodes, flags, &format!("{}.f32", words.len()));
        assert!(o.status.code() == Some(status) && err(&o).contains(words), "{nodes} {flags:?}: {}", err(&o));
    };
    if has_two() {
        ends("2", &[], 0, "NUMA: off, because 0.0 GB of weights are little");
        ends(
            "2",
            &["--numa", "distribute", "-t", "1"],
            0,
            "--numa distribute has no effect: -t 1: all threads are on one",
        );
        ends("2", &["--no-mmap"], 0, "NUMA: off, because 0.0 GB"); // and the file is read all the same
    }
    ends("1", &["--numa", "distribute", "--strict"], 2, "TANDEM_NODES: expected a number from 2");
    ends("", &["--numa", "isolate"], 0, "--numa isolate has no effect: numactl --cpunodebind=0");
    ends("", &["--numa", "isolate", "--strict"], 2, "--numa isolate has no effect");
    ends("", &["--numa", "numactl"], 0, "the CPUs that numactl allows are kept to anyway");
    ends("", &["--numa", "distribute", "--keep-mmap"], 2, "--numa distribute: found with --keep-mmap");
    ends("", &["--numa", "everywhere"], 2, "--numa everywhere: expected auto, distribute or off");
}
