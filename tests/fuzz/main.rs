//! The fuzz targets as seeded property tests: whatever a stranger hands in ends as a result or as
//! an error that names it, never in a panic, a wait without end or a demand for memory. The same
//! targets run without bounds from fuzz/.
//!
//! What never ends or fills the memory (`tests/data/hostile`: templates that loop or grow, schemas
//! and grammars with millions of states) is mutated as well, and its promise is that it ends within
//! its limits. `TANDEM_FUZZ_TIMES=10` makes that 20,000 inputs: 4000 templates, 3000 schemas, 3000
//! grammars, 10,000 lines of a batch.

#![allow(missing_docs)]

mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tandem::quant::Rng;

/// No input takes longer; the usual one takes a millisecond.
const LIMIT: Duration = Duration::from_secs(20);
/// The command line's stack: what overflows a test's smaller one would be no fault.
const STACK: usize = 8 << 20;

/// The system's allocator, with a count of what is allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(ALLOCATED.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promise is System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(ALLOCATED.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promise is System's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is System's.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often the number of inputs is run that suffices for every day: `TANDEM_FUZZ_TIMES`, or once.
fn times() -> u64 {
    std::env::var("TANDEM_FUZZ_TIMES").map_or(1, |n| n.parse().expect("TANDEM_FUZZ_TIMES is a number"))
}

/// Has forms tried in a process of their own before they are compiled, as the program does.
fn try_forms() {
    tandem::text::grammar::try_with(|trial| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .arg("__try-form")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let _ = child.stdin.take().expect("a pipe").write_all(trial.as_bytes());
        let status = child.wait()?;
        anyhow::ensure!(status.code().is_some(), "compiling it takes too much: {status}");
        Ok(())
    });
}

/// The files of `tests/data/hostile` with this extension.
fn hostile(extension: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = std::fs::read_dir("tests/data/hostile").unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == extension));
    files.sort();
    files.into_iter().map(|p| std::fs::read(p).unwrap()).collect()
}

/// What the lines of `tests/data/hostile` have under this name.
fn hostile_forms(name: &str) -> Vec<Value> {
    let lines = hostile("jsonl").concat();
    let lines = std::str::from_utf8(&lines).unwrap().lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    lines.filter_map(|l| l.get(name).cloned()).collect()
}

/// Runs a target on `rounds` inputs, each made by `make` of a generator of its own. Returns how
/// many were taken.
fn holds(target: fn(&[u8]) -> bool, rounds: u64, most_bytes: usize, make: impl Fn(&mut Rng) -> Vec<u8> + Send) -> u64 {
    // One target at a time, so that the memory is its own.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (began, inputs) = channel::<Option<Vec<u8>>>();
    std::thread::scope(|s| {
        s.spawn(move || {
            let mut now = None;
            loop {
                match inputs.recv_timeout(LIMIT) {
                    Ok(next) => now = next,
                    Err(RecvTimeoutError::Timeout) if now.is_none() => {}
                    Err(RecvTimeoutError::Timeout) => {
                        let input = now.unwrap_or_default();
                        eprintln!("no end after {LIMIT:?}: {}", input.escape_ascii());
                        std::process::exit(1);
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        let work = move || {
            let mut taken = 0;
            for round in 0..rounds {
                let input = make(&mut Rng(round));
                let _ = began.send(Some(input.clone()));
                let before = ALLOCATED.load(Relaxed);
                PEAK.store(before, Relaxed);
                match catch_unwind(AssertUnwindSafe(|| target(&input))) {
                    Ok(is_taken) => taken += u64::from(is_taken),
                    Err(_) => panic!("round {round} broke a promise: {}", input.escape_ascii()),
                }
                let used = PEAK.load(Relaxed) - before.min(PEAK.load(Relaxed));
                assert!(used < most_bytes, "round {round} allocated {used} bytes: {}", input.escape_ascii());
            }
            taken
        };
        let worker = std::thread::Builder::new().stack_size(STACK).spawn_scoped(s, work).unwrap();
        worker.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    })
}

/// One of the seeds, changed in a few places; `words` are put in as well as bytes.
fn mutated(rng: &mut Rng, seeds: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut text = seeds[rng.below(seeds.len())].clone();
    for _ in 0..rng.below(6) {
        let at = rng.below(text.len() + 1);
        let end = (at + 1 + rng.below(24)).min(text.len());
        match rng.below(8) {
            0 if at < text.len() => text[at] ^= 1 << rng.below(8),
            1 if at < text.len() => text[at] = rng.bits() as u8,
            2 => text.truncate(at),
            3 => drop(text.drain(at..end)),
            4 => {
                let part = text[at..end].to_vec();
                let to = rng.below(text.len() + 1);
                text.splice(to..to, part);
            }
            5 => {
                let other = &seeds[rng.below(seeds.len())];
                let from = rng.below(other.len() + 1);
                let part = other[from..(from + rng.below(40)).min(other.len())].to_vec();
                text.splice(at..end, part);
            }
            6 if !words.is_empty() => drop(text.splice(at..end, words[rng.below(words.len())].bytes())),
            _ if !words.is_empty() => drop(text.splice(at..at, words[rng.below(words.len())].bytes())),
            _ => {}
        }
    }
    text
}

/// Both verdicts must come up, or the inputs are too wild or too tame to show anything.
fn assert_varied(taken: u64, rounds: u64) {
    println!("{taken} of {rounds} inputs are taken");
    assert!(taken > rounds / 50 && taken < rounds * 49 / 50, "{taken} of {rounds} are taken");
}

#[test]
fn a_model_file_is_read_or_refused() {
    let model = std::fs::read("tests/data/models/qwen35.gguf").unwrap();
    let seeds = [model, targets::small_gguf()].map(|bytes| {
        let data = tandem::gguf::parse(&bytes, bytes.len() as u64, "seed".as_ref()).unwrap().data;
        (bytes, data as usize)
    });
    let edges = [0, 1, 31, 32, 33, 0xffff, u64::MAX, 1 << 40];
    let rounds = 3000 * times();
    let taken = holds(targets::gguf, rounds, 64 << 20, |rng| {
        let (seed, header) = &seeds[rng.below(2)];
        // Bytes put in or taken out move all that follows: most changes keep the length.
        if rng.below(4) == 0 {
            return mutated(rng, std::slice::from_ref(seed), &[]);
        }
        let mut file = seed.clone();
        for _ in 0..1 + rng.below(3) {
            let (at, n) = (rng.below(header - 8), [1, 4, 8][rng.below(3)]);
            let value = if rng.below(2) == 0 { rng.bits() } else { edges[rng.below(edges.len())] };
            file[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
        }
        file
    });
    assert_varied(taken, rounds);
}

#[test]
fn a_saved_session_is_loaded_or_refused() {
    let saved = targets::saved_session();
    // A token that no vocabulary has, as a number of the head: the sums are made right by the
    // target.
    let at = saved.windows(3).position(|w| w == b",7,").expect("the tokens are in the head");
    let strange = [&saved[..at], b",4294967295,", &saved[at + 3..]].concat();
    let seeds = [saved, strange];
    let words = ["0", "4294967295", "[]", "null", "\"tokens\"", "-1", "[4294967295]", "18446744073709551615", ","];
    let rounds = 1500 * times();
    let taken = holds(targets::session, rounds, 64 << 20, |rng| mutated(rng, &seeds, &words));
    assert_varied(taken, rounds);
}

#[test]
fn a_chat_template_renders_or_says_what_is_wrong() {
    let seeds = [
        "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}",
        "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif -%}{% for m in messages if m.content is not none %}\
         {{ loop.index0 ~ ':' ~ m.content.split(' ')[0] }}{% else %}none{% endfor %}",
        "{% set ns = namespace(last=none) %}{% for m in messages[::-1] %}{% set ns.last = m.role %}{% endfor %}\
         {{ raise_exception('no') if ns.last == 'x' else bos_token + ns.last }}",
        "{% macro line(m, n=1) %}{{ m.role | upper }}{{ ' ' * n }}{% endmacro %}{% for m in messages %}{{ line(m) }}\
         {% if m.tool_calls is defined %}{{ m.tool_calls[0].function.arguments | items | list }}{% endif %}{% endfor %}",
        "{{ strftime_now('%Y-%m-%d') }}{% generation %}{{ messages | map(attribute='role') | join(', ') }}\
         {% endgeneration %}{% if add_generation_prompt %}{{ eos_token }}{% endif %}",
    ]
    .map(|s| s.as_bytes().to_vec());
    let words = [
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{%- ",
        " -%}",
        "{# ",
        " #}",
        "if ",
        "else",
        "endif",
        "endfor",
        "set x = ",
        "not ",
        " in ",
        " is defined",
        " | length",
        " | tojson",
        " | first",
        ".startswith('a')",
        ".strip()",
        "[0]",
        "[-1]",
        "[1:]",
        "messages",
        "tools",
        "loop.last",
        "none",
        "''",
        "'",
        "\"",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "+",
        "~",
        "==",
        "1",
        "ü",
    ];
    let rounds = 6000 * times();
    let taken = holds(targets::template, rounds, 64 << 20, |rng| mutated(rng, &seeds, &words));
    assert_varied(taken, rounds);
}

#[test]
fn a_template_that_means_harm_ends() {
    let mut seeds = hostile("jinja");
    assert!(seeds.len() >= 17, "{}", seeds.len());
    seeds.push(b"{% macro f(a, n) %}{{ f([a, a], n - 1) if n else '' ~ a }}{% endmacro %}{{ f(1, 20) }}".to_vec());
    seeds.push(b"{% for m in messages %}{{ m.content }}{% endfor %}".to_vec());
    let words = [
        " * 99999999",
        " * 10**9",
        "range(99999)",
        "range(9)",
        "[0]",
        " ~ ",
        " + ",
        " == ",
        " in ",
        "n",
        "ns",
        "namespace(a=n)",
        "{% set n.l = n.l + n.l %}",
        "{% set n.n = [n] %}",
        "{% set ns.s = ns.s ~ ns.s %}",
        "{% set n = namespace() %}",
        "{% for i in range(9999) %}",
        "{% endfor %}",
        "{% macro g(a) %}{{ g([a, a]) }}{% endmacro %}{{ g(1) }}",
        "|join",
        "|list",
        "|batch(99999999, 'x')",
        "|sort",
        "|unique",
        "|map('string')",
        "|format('x')",
        "|replace('', 'xxxxxxxx')",
        "|indent(99999)",
        "|tojson(indent=80)",
        "|string",
        ".format(n)",
        ".join(n.l)",
        ".split('')",
        "[::-1]",
        "[1:]",
        "'%99999d'",
        "'{:99999}'",
        "{{ ",
        " }}",
        "loop.changed(n)",
    ];
    let rounds = 400 * times();
    let taken = holds(targets::template, rounds, 300 << 20, |rng| mutated(rng, &seeds, &words));
    println!("{taken} of {rounds} inputs are taken");
}

#[test]
fn a_schema_that_means_harm_ends() {
    try_forms();
    let mut seeds: Vec<Vec<u8>> = hostile_forms("json_schema").iter().map(|s| s.to_string().into_bytes()).collect();
    seeds.push(
        br#"{"allOf": [{"type": "integer", "multipleOf": 97}, {"anyOf": [{"multipleOf": 89}, {"multipleOf": 83}]}]}"#
            .to_vec(),
    );
    seeds.push(br#"{"type": "string", "pattern": "^(a|b)*a(a|b){12}$", "minLength": 100, "maxLength": 1000}"#.to_vec());
    seeds.push(br##"{"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"items": {"$ref": "#/$defs/a"}}]}}, "$ref": "#/$defs/a"}"##.to_vec());
    let words = [
        "{\"type\": \"integer\", \"multipleOf\": 99991}",
        ", {\"type\": \"integer\", \"multipleOf\": 1009}",
        ", {\"type\": \"string\", \"pattern\": \"(.*a.{9}){9}\"}",
        ", {\"pattern\": \"[a-z]{1,9999}x\"}",
        "\"minLength\": 99999, ",
        "\"maxItems\": 99999, ",
        "\"anyOf\"",
        "\"allOf\"",
        "\"oneOf\"",
        "{9}",
        "{99}",
        ".*",
        "00",
        "1",
        "7",
        "\"properties\": {\"a\": {}}, ",
        ", {\"$ref\": \"#\"}",
    ];
    let rounds = 300 * times();
    let taken = holds(targets::schema, rounds, 300 << 20, |rng| mutated(rng, &seeds, &words));
    println!("{taken} of {rounds} inputs are taken");
}

#[test]
fn a_grammar_that_means_harm_ends() {
    try_forms();
    let mut seeds: Vec<Vec<u8>> =
        hostile_forms("grammar").iter().map(|s| s.as_str().expect("a text").as_bytes().to_vec()).collect();
    seeds.push(b"root ::= a b c\na ::= b b | \"x\"\nb ::= c c | \"x\"\nc ::= a a | \"\"".to_vec());
    seeds.push(b"root ::= (\"a\"? [a-z]{0,99}){1,99} x{9}\nx ::= y{9}\ny ::= root? \"a\" | [a-z]".to_vec());
    seeds.push(b"root ::= \"word1\" root | \"word2\" root | \"word\" root | \"\"".to_vec());
    let words = [
        "s s s",
        " | ",
        "*",
        "+",
        "?",
        "{99}",
        "{9,999}",
        "root",
        "[a-z]",
        "(s | s s)",
        "\"\"",
        ".",
        "\n",
        "s ::= ",
        "x",
        "[^a]*",
    ];
    let rounds = 300 * times();
    let taken = holds(targets::gbnf, rounds, 300 << 20, |rng| mutated(rng, &seeds, &words));
    println!("{taken} of {rounds} inputs are taken");
}

#[test]
fn a_line_of_a_batch_that_means_harm_is_read_or_refused() {
    let lines = hostile("jsonl").concat();
    let seeds: Vec<Vec<u8>> = lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec).collect();
    let words = [
        "[[[[[[[[",
        "{\"a\":",
        "\"prompt\": ",
        "\"n_predict\": 99999999999, ",
        "\"stop\": [\"\"], ",
        "1e309",
        "\\ud800",
        "\"json_schema\": ",
        "\"grammar\": \"\", ",
    ];
    let rounds = 1000 * times();
    let taken = holds(targets::batch, rounds, 16 << 20, |rng| mutated(rng, &seeds, &words));
    println!("{taken} of {rounds} inputs are taken");
}

#[test]
fn a_grammar_is_followed_or_says_what_is_wrong() {
    let mut seeds: Vec<Vec<u8>> = ["list", "arithmetic", "json_arr"]
        .map(|f| std::fs::read(format!("tests/data/grammars/{f}.gbnf")).unwrap())
        .into();
    seeds.push(b"root ::= \"yes\" | \"no\" [a-z]{1,3} (\" \" word)*\nword ::= [^\\n0-9]+\n".to_vec());
    let words = [
        "root ::= ",
        "\n",
        "\"a\"",
        "[a-z]",
        "[^x]",
        "*",
        "+",
        "?",
        "{2}",
        "{1,3}",
        "{,2}",
        " | ",
        "(",
        ")",
        "\\x41",
        "\\n",
        ".",
        "<[5]>",
        "::=",
        "#",
        "\"",
        "[",
        "]",
        "ü",
        "word",
    ];
    try_forms();
    let rounds = 800 * times();
    let taken = holds(targets::gbnf, rounds, 256 << 20, |rng| mutated(rng, &seeds, &words));
    assert_varied(taken, rounds);
}

/// A schema of a few parts; some of them are wrong.
fn any_schema(rng: &mut Rng, depth: usize) -> Value {
    let inner = |rng: &mut Rng| if depth == 0 { json!({"type": "string"}) } else { any_schema(rng, depth - 1) };
    let mut schema = serde_json::Map::new();
    for _ in 0..1 + rng.below(3) {
        let small = rng.below(4);
        let (key, value) = match rng.below(20) {
            0 => ("type", json!(["string", "integer", "number", "boolean", "null", "object", "array"][rng.below(7)])),
            1 => ("type", json!(["string", "null"])),
            2 => ("properties", json!({ "a": inner(rng), "b": inner(rng) })),
            3 => ("items", inner(rng)),
            4 => ("enum", json!([1, "x", null, [2], { "k": true }])),
            5 => ("const", json!(["x", 1.5, null, [], {}])),
            6 => ("pattern", json!(["^[a-z]+$", "a|b", "(", "\\d{2}"][small])),
            7 => (["minLength", "maxLength", "minItems", "maxItems"][small], json!(rng.below(5))),
            8 => ("required", json!(["a"])),
            9 => (["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"][small], json!(rng.below(100))),
            10 => ("anyOf", json!([inner(rng), inner(rng)])),
            11 => ("prefixItems", json!([inner(rng)])),
            12 => ("additionalProperties", if small == 0 { inner(rng) } else { json!(small == 1) }),
            13 => ("format", json!(["date", "uuid", "email", "no-such-format"][small])),
            14 => ("$ref", json!(["#", "#/$defs/a", "#/nowhere", "http://elsewhere"][small])),
            15 => ("$defs", json!({ "a": inner(rng) })),
            16 => (["minimum", "minLength", "type", "items"][small], json!([-1, null, "7", 1e300])),
            17 => (["uniqueItems", "maxlength", "not", "if"][small], json!(true)),
            18 => ("description", json!("ü")),
            _ => ("oneOf", json!([{ "const": 1 }, { "const": "b" }])),
        };
        schema.insert(key.into(), value);
    }
    Value::Object(schema)
}

#[test]
fn a_schema_is_followed_or_says_what_is_wrong() {
    try_forms();
    let rounds = 800 * times();
    let taken = holds(targets::schema, rounds, 256 << 20, |rng| any_schema(rng, 2).to_string().into_bytes());
    assert_varied(taken, rounds);
}

#[test]
fn a_line_of_a_batch_is_a_request_or_says_what_is_wrong() {
    let seeds = [
        r#"{"id": 1, "prompt": "x", "n_predict": 8, "temperature": 0.5, "stop": ["a", "b"], "logprobs": 2}"#,
        r#"{"id": "a", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "json_schema": {}}"#,
        r#"{"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]}], "top_logprobs": 2, "logprobs": true}}"#,
        r#"{"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "a", "n": 1, "max_tokens": 3, "stream": false}}"#,
    ]
    .map(|s| s.as_bytes().to_vec());
    let words = [
        "null",
        "true",
        "-1",
        "1e400",
        "18446744073709551616",
        "\"stop\": ",
        "\"grammar\": \"x\"",
        "\"top_k\": ",
        "{}",
        "[]",
        "\"response_format\": {\"type\": \"json_object\"}",
        "\"sampler\": 1",
        ", ",
        ": ",
        "\"",
        "{",
        "}",
        "[",
        "]",
        "\\u0000",
    ];
    let rounds = 20_000 * times();
    let taken = holds(targets::batch, rounds, 16 << 20, |rng| mutated(rng, &seeds, &words));
    assert_varied(taken, rounds);
}

#[test]
fn the_configuration_of_a_checkpoint_is_a_recipe_or_is_refused() {
    let seeds = [std::fs::read("tests/data/zaya/config.json").unwrap()];
    let words =
        ["null", "0", "-1", "1e400", "1048576", "18446744073709551615", "[]", "{}", "true", "\"x\"", "0.3", ", "];
    let rounds = 5000 * times();
    let taken = holds(targets::config, rounds, 64 << 20, |rng| mutated(rng, &seeds, &words));
    assert_varied(taken, rounds);
}

#[test]
fn a_tokenizer_of_a_checkpoint_is_carried_over_or_refused() {
    let bytes: serde_json::Map<String, Value> = (0..256).map(|b| (format!("<0x{b:02X}>"), b.into())).collect();
    let mut vocab = bytes;
    vocab.extend([("<unk>", 256), ("a", 257), ("b", 258), ("ab", 259)].map(|(t, id)| (t.to_owned(), id.into())));
    let token = json!({"id": 260, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false});
    let seed = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [token], "pre_tokenizer": null,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": ["a b"]},
    });
    let seeds = [seed.to_string().into_bytes()];
    let words =
        ["null", "0", "-1", "300", "18446744073709551615", "[]", "{}", "true", "\"a\"", "\"BPE\"", "\"\"", ", "];
    let rounds = 300 * times();
    let taken = holds(targets::tokenizer_json, rounds, 64 << 20, |rng| mutated(rng, &seeds, &words));
    assert_varied(taken, rounds);
}
