//! The rules of the house, as ARCHITECTURE.md states them: floors, circles, names, unsafe code, lengths.

#[path = "house/read.rs"]
mod read;

use std::collections::{BTreeMap, BTreeSet};

use read::{File, Modules, file_of, files, item_end, line_of, sources, strip};
use regex::Regex;

/// The most lines of a function, its signature and closing brace included.
const LONGEST_FUNCTION: usize = 100;
/// The most lines of a file.
const LONGEST_FILE: usize = 800;

/// The floor of each top-level module; a file imports only lower floors, or its own module.
fn floors() -> BTreeMap<&'static str, u32> {
    BTreeMap::from([
        ("simd", 0),
        ("printable", 0),
        ("whole_file", 0),
        ("quant", 0),
        ("sample", 0),
        ("gguf", 1),
        ("hub", 2),
        ("model_file", 2),
        ("cpu", 1),
        ("cuda", 1),
        ("text", 2),
        ("tape", 2),
        ("eval", 2),
        ("ops", 3),
        ("models", 4),
        ("plan", 4),
        ("convert", 5),
        ("exec", 5),
        ("session", 6),
        ("store", 7),
        ("speculate", 7),
        ("talk", 8),
        ("schedule", 9),
        ("cli", 10),
        ("main", 11),
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
            // `simd` is the foundation of its own floor; files are read with the threads of `cpu`.
            let fine = other == own
                || below < floor
                || (other == "simd" && floor == 0)
                || (other == "cpu" && own == "gguf")
                || (other == "quant" && own == "sample");
            assert!(fine, "{path} (floor {floor}) imports crate::{other} (floor {below})");
            seen += 1;
        }
    }
    assert!(seen > 50, "the imports were found");
}

#[test]
fn only_models_name_architectures_and_only_quant_names_formats() {
    let formats = Regex::new(r"\b(?i:(I?Q[1-8]_(0|1|K|S|M|XS|XXS|NL)|TQ[12]_0|MXFP4|NVFP4|BF16))\b").unwrap();
    let archs = Regex::new(r"(?i)qwen|gpt.?oss|deepseek[0-9]|gemma|minimax|\bglm|kimi_").unwrap();
    // Comments may say which model a thing is for, and tests may name what they test; code may not.
    for File { path, plain, .. } in files() {
        for (i, line) in plain.lines().enumerate() {
            let at = format!("{path}:{}: {line}", i + 1);
            // The command line's help and defaults may name the cache types that a user types.
            if !path.starts_with("src/quant/") && !path.starts_with("src/cli/") {
                assert!(!formats.is_match(line), "a weight format is named outside quant/: {at}");
            }
            // A tokenizer's pre-tokenizers, and some flags of llama.cpp, carry the names of the models they were made for.
            let named = ["src/models/", "src/text/", "src/cli/flags/table.rs"];
            if !named.iter().any(|part| path.starts_with(part)) {
                assert!(!archs.is_match(line), "an architecture is named outside models/: {at}");
            }
        }
    }
}

#[test]
fn unsafe_code_stands_only_in_its_named_files_and_says_what_it_leans_on() {
    let named = [
        "src/quant/panels/multiply.rs",
        "src/quant/panels/wide.rs",
        "src/quant/panels/pair.rs",
        "src/quant/rows/super_avx2.rs",
        "src/quant/activations/quantize.rs",
        "src/cpu/dense.rs",
        "src/cpu/attention_tiles.rs",
        "src/cuda/mod.rs",
        "src/cuda/memory.rs",
        "src/cuda/open.rs",
        "src/cuda/streams.rs",
        "src/simd.rs",
        "src/simd/emulated.rs",
        "src/simd/tiles.rs",
        "src/gguf/map.rs",
        "src/gguf/faults.rs",
        "src/cli/closed.rs",
        "src/cpu/matmul.rs",
        "src/cpu/mempolicy.rs",
        "src/cpu/pool.rs",
        "src/quant/activations/acts.rs",
        "src/quant/panels/floats.rs",
        "src/quant/formats/check.rs",
        "src/quant/types.rs",
    ];
    let block = Regex::new(r"\bunsafe (\{|fn|impl)|\bunsafe \|").unwrap();
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
            assert!(
                text.lines().count() <= LONGEST_FILE,
                "{path} has {} lines; {LONGEST_FILE} is the limit",
                text.lines().count()
            );
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

#[test]
fn functions_stay_short_enough_to_be_understood() {
    let head = Regex::new(r"\bfn\s+(\w+)").unwrap();
    let (mut long, mut seen) = (BTreeSet::new(), 0);
    for dir in ["src", "tests", "examples"] {
        for (path, text) in sources(dir) {
            let code = strip(&text).1;
            for name in head.captures_iter(&code) {
                let from = name.get(0).unwrap().start();
                let lines = line_of(&code, item_end(&code, from)) + 1 - line_of(&code, from);
                seen += 1;
                if lines > LONGEST_FUNCTION {
                    println!("{path}:{}: {} has {lines} lines", line_of(&code, from), &name[1]);
                    long.insert((path.clone(), name[1].to_owned()));
                }
            }
        }
    }
    assert!(seen > 1000, "the functions were found");
    assert!(long.is_empty(), "functions of more than {LONGEST_FUNCTION} lines: {long:#?}");
}

#[test]
fn no_doc_comment_sends_its_reader_elsewhere() {
    let empty = Regex::new(r"(?i)^(?:the same|see there|as above)\.?$").unwrap();
    let mut found = BTreeSet::new();
    for dir in ["src", "tests", "examples"] {
        for (path, text) in sources(dir) {
            for line in text.lines() {
                let line = line.trim_start();
                let Some(said) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else { continue };
                if empty.is_match(said.trim()) {
                    found.insert((path.clone(), said.trim().to_owned()));
                }
            }
        }
    }
    assert!(found.is_empty(), "doc comments that say nothing: {found:#?}");
}

#[test]
fn no_files_of_a_module_import_each_other_in_a_circle() {
    let edges = Modules::read().edges();
    assert!(edges.len() > 100, "the imports inside modules were found: {}", edges.len());
    // What each file reaches, by whatever way.
    let mut reach = edges.clone();
    loop {
        let further: Vec<_> = reach
            .iter()
            .flat_map(|(a, b)| edges.iter().filter(move |(from, _)| from == b).map(|(_, c)| (a.clone(), c.clone())))
            .filter(|pair| !reach.contains(pair))
            .collect();
        if further.is_empty() {
            break;
        }
        reach.extend(further);
    }
    let mut circles = BTreeSet::new();
    for (a, _) in reach.iter().filter(|(a, b)| a == b) {
        let group = reach.iter().filter(|(from, to)| from == a && reach.contains(&(to.clone(), a.clone())));
        circles.insert(group.map(|(_, to)| file_of(to)).collect::<Vec<_>>());
    }
    assert!(circles.is_empty(), "files that import each other in a circle: {circles:#?}");
}

#[test]
fn the_version_has_its_section_in_the_changelog() {
    let version = env!("CARGO_PKG_VERSION");
    let log = include_str!("../CHANGELOG.md");
    assert!(log.contains(&format!("\n## [{version}] - ")), "CHANGELOG.md has no section for {version}");
}
