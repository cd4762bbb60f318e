//! What the tests of whole models share: where the reference data is, and how far two sets of logits are apart.

#![allow(dead_code, unreachable_pub, missing_docs)] // each test file uses its part

pub mod emu;
pub mod profile;
pub mod puppet;
pub mod source;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Prints a figure past the test harness, which keeps the output of passing tests to itself.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

use serde_json::{Value, json};
use tandem::convert::Conversion;
use tandem::gguf::Load;
use tandem::models;
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

/// A JSON file, which may hold Python's NaN and Infinity.
pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let text = text.replace(": NaN", ": null").replace(": Infinity", ": null");
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

/// The folders of reference models.
const FOLDERS: [&str; 2] = ["models", "models3"];

/// The reference model of this name, if its files are here.
pub fn reference(name: &str) -> Option<Reference> {
    let file = |ext: &str| FOLDERS.iter().find_map(|folder| find(&format!("{folder}/{name}.{ext}")));
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

/// The reference models that are here and whose family this version runs, by name: the whole set where it is, else the
/// repository's part; of these, where `TANDEM_TEST_MODEL` is set, those whose names begin as one of its words (commas
/// between). Prints which of the set this version does not run.
pub fn references() -> Vec<Reference> {
    let dir = whole().unwrap_or_else(|| {
        say!("the repository's reference models alone: the reference folder is not next to this checkout");
        local()
    });
    let mut names: Vec<String> = FOLDERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(dir.join(folder)).ok())
        .flatten()
        .filter_map(|f| Some(f.unwrap().file_name().to_str()?.strip_suffix(".gguf")?.to_string()))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "the repository carries some reference models");
    let only = std::env::var("TANDEM_TEST_MODEL").unwrap_or_default();
    names.retain(|name| only.split(',').any(|o| name.starts_with(o)));
    let (mut have, mut not) = (Vec::new(), Vec::new());
    for name in names {
        // Drafters have no text of their own.
        let Some(r) = reference(&name) else { continue };
        let gguf = tandem::gguf::Gguf::open(&r.gguf).unwrap();
        let arch = gguf.meta.str("general.architecture").unwrap();
        if models::known().any(|known| known == arch) { have.push(r) } else { not.push(name) }
    }
    have.extend(converted().into_iter().filter(|r| only.split(',').any(|o| r.name.starts_with(o))));
    if !not.is_empty() {
        say!("of families that this version does not run: {}", not.join(", "));
    }
    have
}

/// Published checkpoints and their reference: the small one of the repository, and the larger one
/// where it is next to the checkout.
pub fn checkpoints() -> Vec<(&'static str, PathBuf)> {
    let large = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|p| p.join("shared/zaya")).filter(|d| d.is_dir());
    if large.is_none() {
        say!("skipped: the larger checkpoint, which is not next to the checkout (../shared/zaya)");
    }
    [("zaya-small", Some(local().join("zaya"))), ("zaya", large)]
        .into_iter()
        .filter_map(|(n, d)| Some((n, d?)))
        .collect()
}

/// The checkpoints, converted to F32.
fn converted() -> Vec<Reference> {
    static MADE: OnceLock<Vec<(&str, PathBuf, PathBuf)>> = OnceLock::new();
    let make = || {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("converted");
        std::fs::create_dir_all(&to).unwrap();
        let convert = |(name, dir): (&'static str, PathBuf)| {
            // Other test programs make the same file at this moment.
            let (own, gguf) = (to.join(format!("{name}.{}", std::process::id())), to.join(format!("{name}.gguf")));
            Conversion::new(&dir, quant::by_name("f32")).unwrap().write(&own, &mut |_| ()).unwrap();
            std::fs::rename(own, &gguf).unwrap();
            (name, dir, gguf)
        };
        checkpoints().into_iter().map(convert).collect()
    };
    let reference = |(name, dir, gguf): &(&str, PathBuf, PathBuf)| {
        let tokens = json(&dir.join("tokens.json"));
        let positions = ids(&tokens["positions"]);
        // What the same model in F32 by transformers is off from one in F64.
        let noise = json!({"batch_vs_token_by_token": {"nmse": 1.5e-12}});
        Reference {
            name: (*name).into(),
            gguf: gguf.clone(),
            prompt: ids(&tokens["prompt_ids"]),
            greedy: ids(&tokens["greedy_ids"]),
            info: json!({"logits": {"positions": &positions}, "noise_floor": noise}),
            positions,
            logits: floats(&dir.join("logits.f32")),
        }
    };
    MADE.get_or_init(make).iter().map(reference).collect()
}

/// What caches of f16 do to the reference itself, where that was measured: NMSE.
pub fn f16_noise(info: &Value) -> f64 {
    let keys = ["vs_llama.cpp_default_f16_kv_flash_attn", "vs_f16_caches (window rows, compressed rows, index keys)"];
    keys.iter().find_map(|key| info["noise_floor"][key]["nmse"].as_f64()).unwrap_or(0.0)
}

/// The file of the built-in model.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")
}

/// Sends a process a signal.
pub fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap().success());
}

/// What the program does with these arguments and this on stdin, on the CPU whatever is here, without the user's cache.
pub fn program(args: &[&str], stdin: &[u8]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(args).env("CUDA_VISIBLE_DEVICES", "").env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut to, bytes) = (child.stdin.take().unwrap(), stdin.to_vec());
    // Beside the reading of what it writes; a program that was given its text otherwise need not read this.
    let writer = std::thread::spawn(move || drop(to.write_all(&bytes)));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    out
}
