//! The rules of the house, as ARCHITECTURE.md states them: floors, names, unsafe code, file lengths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every Rust file under `dir`, as (path from the crate's root, contents).
fn sources(dir: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut todo, mut list) = (vec![root.join(dir)], Vec::new());
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name: PathBuf = path.strip_prefix(root).unwrap().into();
            list.push((name.display().to_string(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    list.sort();
    list
}

/// The floor of each top-level module; a file imports only lower floors, or its own module.
fn floors() -> BTreeMap<&'static str, u32> {
    BTreeMap::from([
        ("simd", 0),
        ("quant", 0),
        ("sample", 0),
        ("gguf", 1),
        ("cpu", 1),
        ("cuda", 1),
        ("text", 2),
        ("tape", 2),
        ("eval", 2),
        ("ops", 3),
        ("models", 4),
        ("plan", 4),
        ("exec", 5),
        ("session", 6),
        ("store", 7),
        ("talk", 7),
        ("schedule", 8),
        ("cli", 9),
        ("main", 10),
    ])
}

fn module(path: &str) -> &str {
    let rest = path.strip_prefix("src/").unwrap();
    rest.split('/').next().unwrap().trim_end_matches(".rs")
}

#[test]
fn every_file_imports_only_lower_floors() {
    let floors = floors();
    let mut seen = 0;
    for (path, text) in sources("src") {
        let own = module(&path);
        if own == "lib" {
            continue;
        }
        let floor = *floors.get(own).unwrap_or_else(|| panic!("{path}: module {own} has no floor; give it one here"));
        for part in text.split("crate::").skip(1) {
            let other: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let Some(&below) = floors.get(other.as_str()) else { panic!("{path}: imports crate::{other}, no module") };
            // `simd` is the foundation of its own floor.
            let fine = other == own
                || below < floor
                || (other == "simd" && floor == 0)
                || (other == "quant" && own == "sample");
            assert!(fine, "{path} (floor {floor}) imports crate::{other} (floor {below})");
            seen += 1;
        }
    }
    assert!(seen > 50, "the imports were found");
}

#[test]
fn only_models_name_architectures_and_only_quant_names_formats() {
    let formats = regex::Regex::new(r"\b(?i:(I?Q[1-8]_(0|1|K|S|M|XS|XXS|NL)|TQ[12]_0|MXFP4|NVFP4|BF16))\b").unwrap();
    let archs = regex::Regex::new(r"(?i)qwen|gpt.?oss|deepseek[0-9]|gemma|minimax|\bglm|kimi_").unwrap();
    for (path, text) in sources("src") {
        // Comments may say which model a thing is for, and tests may name what they test; code may not.
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (i, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap();
            let at = format!("{path}:{}: {line}", i + 1);
            // The command line's help and defaults may name the cache types that a user types.
            if !path.starts_with("src/quant/") && !path.starts_with("src/cli/") {
                assert!(!formats.is_match(line), "a weight format is named outside quant/: {at}");
            }
            // A tokenizer's pre-tokenizers carry the names of the models they were made for.
            if !path.starts_with("src/models/") && !path.starts_with("src/text/") {
                assert!(!archs.is_match(line), "an architecture is named outside models/: {at}");
            }
        }
    }
}

#[test]
fn unsafe_code_stands_only_in_its_named_files_and_says_what_it_leans_on() {
    let named = [
        "src/quant/tile.rs",
        "src/quant/lanes.rs",
        "src/quant/grid512.rs",
        "src/cpu/dense.rs",
        "src/cuda/mod.rs",
        "src/simd.rs",
        "src/gguf/map.rs",
        "src/cpu/matmul.rs",
        "src/cpu/pool.rs",
        "src/quant/act.rs",
        "src/quant/floats.rs",
        "src/quant/check.rs",
    ];
    let block = regex::Regex::new(r"\bunsafe (\{|fn|impl)|\bunsafe \|").unwrap();
    for (path, text) in sources("src") {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            // The type of a kernel is `unsafe fn(..)`; naming a type runs nothing.
            if !block.is_match(code) || code.contains("unsafe fn(") {
                continue;
            }
            assert!(named.contains(&path.as_str()), "{path}:{}: unsafe code in a file that is not named for it", i + 1);
            let before = lines[i.saturating_sub(8)..=i].join("\n");
            let says = before.contains("SAFETY") || before.contains("# Safety");
            assert!(says, "{path}:{}: an unsafe block without the promise it leans on", i + 1);
        }
    }
}

#[test]
fn files_stay_short_enough_to_be_read() {
    for dir in ["src", "tests", "examples"] {
        for (path, text) in sources(dir) {
            // Tables of constants are facts, not code to read.
            if path.contains("/tables") {
                continue;
            }
            assert!(text.lines().count() <= 800, "{path} has {} lines; 800 is the limit", text.lines().count());
        }
    }
}

#[test]
fn nothing_is_left_undone() {
    for (path, text) in sources("src") {
        for word in ["todo!(", "unimplemented!(", "FIXME", "dbg!("] {
            assert!(!text.contains(word), "{path} contains {word}");
        }
        let prints =
            text.lines().any(|l| l.trim_start().starts_with("println!") || l.trim_start().starts_with("print!"));
        assert!(!prints, "{path}: stdout is written through a handle whose errors are seen");
    }
}
