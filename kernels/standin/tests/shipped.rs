//! The PTX in kernels/ptx, or in the folder of `TANDEM_PTX_DIR`: whether all of its instructions are interpreted.

use std::path::PathBuf;

use cuda::ptx::Image;

#[test]
fn every_file_is_decoded() {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../ptx");
    let dir = std::env::var_os("TANDEM_PTX_DIR").map_or_else(here, PathBuf::from);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "ptx"));
    assert!(!paths.is_empty(), "{}: no PTX", dir.display());
    paths.sort();
    // All that is missing at once: a change of a header reaches every file.
    let why =
        |p: &PathBuf| Image::new(&std::fs::read_to_string(p).unwrap()).err().map(|e| format!("{}: {e}", p.display()));
    let refused: Vec<String> = paths.iter().filter_map(why).collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
