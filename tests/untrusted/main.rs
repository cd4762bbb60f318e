//! Files from the internet, and input without an end: nothing of it commands the terminal, takes memory without bounds,
//! or ends the program otherwise than with a sentence.

#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;

mod cut_short;
mod limits;
mod shown;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// An empty folder of one test.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("untrusted").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn tandem(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(args).stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", "");
    c
}

/// What the program does with these arguments, started by a shell after `before` (limits, say), which may also say
/// where its streams lead to, by `redirect`.
fn shell(before: &str, args: &[&str], redirect: &str) -> Output {
    let mut c = Command::new("sh");
    c.arg("-c").arg(format!("{before}; exec \"$0\" \"$@\" {redirect}")).arg(env!("CARGO_BIN_EXE_tandem")).args(args);
    c.stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", "").env("MALLOC_ARENA_MAX", "2");
    c.output().unwrap()
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

/// The program ended with this status and said this, and did not panic.
#[track_caller]
fn ended(o: &Output, status: i32, says: &str) {
    let told = err(o);
    assert!(o.status.code() == Some(status) && told.contains(says), "{}, expected {status} {says}: {told}", o.status);
    assert!(!told.contains("panicked"), "{told}");
}
