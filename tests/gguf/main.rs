//! GGUF files, through the public interface: good ones, every kind of bad one, split ones.

mod bad;
mod good;
mod oracle;
mod sample;
mod split;
mod write;

use std::path::{Path, PathBuf};

/// A fixture.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// An empty folder for one test.
fn folder(test: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gguf").join(test);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// The whole chain of an error, which must hold all of `parts`.
#[track_caller]
fn must_say<T>(result: anyhow::Result<T>, parts: &[&str]) {
    let Err(e) = result else { panic!("no error, expected one that says {parts:?}") };
    let said = format!("{e:#}");
    for part in parts {
        assert!(said.contains(part), "the error does not say {part:?}: {said}");
    }
    assert!(said.len() < 600, "an error of {} characters: {said}", said.len());
}
