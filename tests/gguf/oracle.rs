//! The reader against files that another implementation wrote, where those files exist.

use serde_json::Value as Json;
use std::fs;
use std::path::{Path, PathBuf};
use tandem::gguf::{Gguf, Value};
use tandem::quant;

/// The GGUF files of one folder of the reference files; none, with a note, where there is no such folder.
fn files(folder: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/oracle").join(folder);
    let Ok(entries) = fs::read_dir(&dir) else {
        println!("skipped: no reference files at {}", dir.display());
        return Vec::new();
    };
    let mut files: Vec<_> =
        entries.map(|e| e.unwrap().path()).filter(|p| p.extension() == Some("gguf".as_ref())).collect();
    files.sort();
    files
}

fn json(path: &Path) -> Json {
    let text = fs::read_to_string(path.with_extension("json")).unwrap();
    serde_json::from_str(&text.replace("Infinity", "null")).unwrap()
}

#[test]
fn every_reference_model_opens_with_the_metadata_and_size_that_its_writer_noted() {
    for path in files("models") {
        let (m, note) = (Gguf::open(&path).unwrap(), json(&path));
        assert_eq!(m.tensors.len(), note["n_tensors"], "{}", path.display());
        assert_eq!(m.meta.str("general.architecture").unwrap(), note["arch"]);
        assert_eq!(m.meta.strs("tokenizer.ggml.tokens").unwrap().len(), note["n_vocab"]);
        let weights = m.tensors.iter().filter(|t| t.ty.quant().is_some());
        let elements: usize = m.tensors.iter().map(|t| t.elements()).sum();
        assert_eq!(elements, note["n_params"], "{}", path.display());
        assert!(weights.map(|t| m.data(t).len()).sum::<usize>() > 0);
        for (key, want) in note["kv"].as_object().unwrap() {
            let got = m.meta.get(key).unwrap_or_else(|| panic!("{}: no {key}", path.display()));
            assert!(same(got, want), "{}: {key} is {got:?}, expected {want}", path.display());
        }
    }
}

/// Whether a value is what a JSON note says.
fn same(got: &Value, want: &Json) -> bool {
    match (got, want) {
        (Value::Str(s), Json::String(w)) => s == w,
        (Value::Bool(b), Json::Bool(w)) => b == w,
        (Value::F32(f), Json::Number(w)) => *f == w.as_f64().unwrap() as f32,
        (Value::F64(f), Json::Number(w)) => *f == w.as_f64().unwrap(),
        (Value::Arr(a), Json::Array(w)) => a.len() == w.len() && (0..a.len()).all(|i| same(&a.get(i).unwrap(), &w[i])),
        (Value::Arr(_) | Value::Str(_) | Value::Bool(_), _) => false,
        (n, w) => n.describe().rsplit(' ').next() == Some(&w.to_string()),
    }
}

#[test]
fn every_reference_quantization_opens_or_says_which_format_is_missing() {
    let mut missing = Vec::new();
    for path in files("quants") {
        let note = json(&path);
        let types = note["tensor_types"].as_object().unwrap();
        let unknown = types.values().find(|t| quant::by_name(t.as_str().unwrap()).is_none());
        match Gguf::open(&path) {
            Ok(m) => {
                assert_eq!(unknown, None, "{}", path.display());
                assert_eq!(fs::metadata(&path).unwrap().len(), note["file_bytes"]);
                assert_eq!(m.tensors.len(), types.len());
                for (name, ty) in types {
                    let t = m.tensor(name).unwrap();
                    assert_eq!(t.ty.name(), ty);
                    assert_eq!(m.data(t).len(), t.bytes);
                }
            }
            Err(e) => {
                let ty = unknown.unwrap_or_else(|| panic!("{e:#}"));
                assert!(e.to_string().contains("is unknown"), "{e:#}");
                missing.push(ty.clone());
            }
        }
    }
    if !missing.is_empty() {
        println!("formats that this build lacks: {missing:?}");
    }
}

#[test]
fn a_reference_split_opens_from_each_of_its_files_and_equals_the_unsplit_model() {
    let files = files("split");
    let Some(first) = files.first() else { return };
    let whole = Gguf::open(&first.with_file_name("../models/qwen3moe.gguf")).unwrap();
    for path in &files {
        let m = Gguf::open(path).unwrap();
        assert!(m.shards().eq(files.iter().map(|p| p.as_path())));
        assert_eq!(m.tensors.len(), whole.tensors.len());
        for t in &whole.tensors {
            let other = m.tensor(&t.name).unwrap();
            assert_eq!((&t.shape, t.ty, whole.data(t)), (&other.shape, other.ty, m.data(other)), "{}", t.name);
        }
        for (key, value) in whole.meta.iter() {
            assert_eq!(m.meta.get(key), Some(value), "{key}");
        }
    }
}

#[test]
fn every_reference_vocabulary_opens() {
    for path in files("vocab") {
        let m = Gguf::open(&path).unwrap();
        assert!(m.tensors.is_empty() && m.meta.repaired().is_empty());
        let n = m.meta.strs("tokenizer.ggml.tokens").unwrap().len();
        assert_eq!(m.meta.i32s("tokenizer.ggml.token_type").unwrap().len(), n);
        assert!(n > 30_000, "{}", path.display());
    }
}
