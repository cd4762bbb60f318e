//! What the tests of whole models share: where the reference data is, and how far two sets of logits are apart.

#![allow(dead_code, unreachable_pub, missing_docs)] // each test file uses its part

pub mod emu;
pub mod source;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Prints a figure past the test harness, which keeps the output of passing tests to itself.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

use serde_json::Value;
use tandem::gguf::Load;
use tandem::quant;
use tandem::session::Options;

/// The reference data in the repository: a small part, enough to prove the engine anywhere.
pub fn local() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// The whole reference data, where it is next to the checkout.
pub fn whole() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("shared/oracle");
    dir.is_dir().then_some(dir)
}

/// The folder to take a reference file from: the whole set if it is there, else the repository's part.
pub fn find(file: &str) -> Option<PathBuf> {
    whole().into_iter().chain([local()]).map(|d| d.join(file)).find(|p| p.exists())
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn ids(v: &Value) -> Vec<u32> {
    v.as_array().expect("a list of numbers").iter().map(|x| x.as_u64().expect("a number") as u32).collect()
}

pub fn floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Options of the exact kind: an f32 cache, the whole prompt in one batch.
pub fn exact() -> Options {
    let f32 = quant::by_name("f32").unwrap();
    Options { n_ctx: Some(512), type_k: f32, type_v: f32, load: Load::default(), ..Options::default() }
}

/// sum((a - b)^2) / sum(a^2).
pub fn nmse(want: &[f32], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len());
    let d: f64 = want.iter().zip(got).map(|(&a, &b)| (a as f64 - b as f64).powi(2)).sum();
    d / want.iter().map(|&a| (a as f64).powi(2)).sum::<f64>()
}

/// The rows of `all` (rows of `width`) at `positions`.
pub fn rows(all: &[f32], width: usize, positions: &[u32]) -> Vec<f32> {
    positions.iter().flat_map(|&p| &all[p as usize * width..(p as usize + 1) * width]).copied().collect()
}

pub fn argmax(x: &[f32]) -> u32 {
    (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]).then(b.cmp(&a))).unwrap() as u32
}

/// A reference model: its file, prompt, positions and logits.
pub struct Reference {
    pub name: String,
    pub gguf: PathBuf,
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
    pub positions: Vec<u32>,
    pub logits: Vec<f32>,
    pub info: Value,
}

/// The reference model of this name, if its files are here.
pub fn reference(name: &str) -> Option<Reference> {
    let file = |ext: &str| find(&format!("models/{name}.{ext}"));
    let gguf = file("gguf")?;
    let tokens = json(&file("tokens.json")?);
    let info = json(&file("json")?);
    Some(Reference {
        name: name.into(),
        gguf,
        prompt: ids(&tokens["prompt_ids"]),
        greedy: ids(&tokens["greedy_ids"]),
        positions: ids(&info["logits"]["positions"]),
        logits: floats(&file("logits.f32")?),
        info,
    })
}

/// Every reference model of the families that this version runs.
pub const MODELS: &[&str] = &[
    "llama",
    "llama-moe",
    "qwen2",
    "qwen3",
    "gemma3",
    "glm4moe",
    "qwen3moe",
    "qwen3moe-yarn",
    "gpt-oss",
    "gpt-oss-norope-scaling",
    "qwen35",
    "qwen35moe",
    "deepseek2-v3",
    "deepseek2-k2",
    "deepseek2-v2",
    "deepseek2-lite",
    "deepseek2-legacy-kvb",
    "deepseek4",
    "deepseek4-hash",
];

/// The reference models that are here. Prints which are not; fails if the whole set is here and one is missing.
pub fn references() -> Vec<Reference> {
    let (mut have, mut not) = (Vec::new(), Vec::new());
    for name in MODELS {
        match reference(name) {
            Some(r) => have.push(r),
            None => not.push(*name),
        }
    }
    assert!(!have.is_empty(), "the repository carries some reference models");
    if !not.is_empty() {
        assert!(whole().is_none(), "the reference folder is there but lacks {not:?}");
        say!("not checked, because the reference folder is not next to this checkout: {}", not.join(", "));
    }
    have
}

/// The file of the built-in model.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")
}

/// Sends a process a signal.
pub fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap().success());
}

/// What the program does with these arguments and this on stdin, on the CPU whatever is here.
pub fn program(args: &[&str], stdin: &[u8]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(args).env("CUDA_VISIBLE_DEVICES", "");
    let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut to, bytes) = (child.stdin.take().unwrap(), stdin.to_vec());
    // Beside the reading of what it writes; a program that was given its text otherwise need not read this.
    let writer = std::thread::spawn(move || drop(to.write_all(&bytes)));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    out
}
