//! Forms on the command line: files as editors write them, schemas that say more than is kept, and
//! forms that take so long that the process with the others must not wait for them.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::common::{local, program};

/// A file with this text in it.
fn file(name: &str, text: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// What `tandem run` writes and says, and its exit status.
fn run(args: &[&str]) -> (String, String, Option<i32>) {
    let fixed = ["run", "--no-stdin", "-p", "x", "-n", "40", "--temp", "0"];
    let out = program(&[&fixed[..], args].concat(), b"");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(out.stdout), text(out.stderr), out.status.code())
}

#[test]
fn a_byte_order_mark_at_a_files_head_is_no_part_of_it() {
    let schema = file("bom.json", "\u{feff}{\"enum\": [7]}");
    assert_eq!(run(&["-q", "-j", &schema]).0.trim(), "7");
    let grammar = file("bom.gbnf", "\u{feff}root ::= \"ab\"");
    assert_eq!(run(&["-q", "--grammar", &grammar]).0.trim(), "ab");
    let ids = |text: &str| program(&["tokenize", "-q", "--ids", "-f", &file("bom.txt", text)], b"").stdout;
    assert_eq!(ids("\u{feff}ROMEO:"), ids("ROMEO:"));
    let template = file("bom.jinja", "\u{feff}{{ x }}");
    let out = program(&["template", "--chat-template-file", &template], b"{\"x\": \"y\"}");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "y");
}

#[test]
fn a_bound_that_a_float_cannot_hold_is_an_error_that_names_its_place() {
    for schema in [
        r#"{"type": "integer", "minimum": 9007199254740993, "maximum": 9007199254740993}"#,
        r#"{"type": "integer", "maximum": 9007199254740993}"#,
        r#"{"enum": [-9007199254740993]}"#,
    ] {
        let (out, e, status) = run(&["-j", schema]);
        let place = e.contains("#/minimum") || e.contains("#/maximum") || e.contains("#/enum");
        assert!(out.is_empty() && status == Some(2) && place && e.contains("2^53"), "{schema}: {e}");
    }
}

#[test]
fn a_format_that_nobody_knows_is_a_notice_and_an_error_under_strict() {
    let schema = r#"{"enum": ["a"], "format": "uri-reference"}"#;
    let (out, e, status) = run(&["-j", schema]);
    assert!(out.trim() == "\"a\"" && status == Some(0) && e.contains("#/format") && e.contains("uri-reference"), "{e}");
    let (out, e, status) = run(&["--strict", "-j", schema]);
    assert!(out.is_empty() && status == Some(2) && e.contains("uri-reference"), "{e}");
}

#[test]
fn a_form_that_takes_long_is_an_error_of_its_line_and_holds_up_no_other() {
    let dir = local().join("hostile");
    let mut bad: Vec<Value> = ["allof_24", "anyof_multipleof_2", "multipleof_big", "gbnf_ambig2"]
        .iter()
        .map(|name| {
            let text = std::fs::read_to_string(dir.join(format!("{name}.jsonl"))).unwrap();
            let line = text
                .lines()
                .find(|l| l.contains("json_schema") || l.contains("grammar"))
                .expect("a line with a form")
                .to_owned();
            serde_json::from_str(&line).unwrap()
        })
        .collect();
    let properties: serde_json::Map<String, Value> = (0..20_000).map(|i| (format!("p{i}"), json!({}))).collect();
    let primes = |key: &str, list: &[u32]| json!({ key: list.iter().map(|m| json!({"type": "integer", "multipleOf": m})).collect::<Vec<_>>() });
    let words = (0..5000).map(|i| format!("\"word{i}\" root")).collect::<Vec<_>>().join(" | ");
    bad.extend([
        json!({"prompt": "a", "n_predict": 4, "json_schema": {"type": "object", "properties": properties}}),
        json!({"prompt": "a", "n_predict": 4, "json_schema": primes("allOf", &[101, 103, 107, 109])}),
        json!({"prompt": "a", "n_predict": 4, "json_schema": primes("anyOf", &[99_989, 99_991, 99_971])}),
        json!({"prompt": "a", "n_predict": 4, "grammar": format!("root ::= {words} | \"\"")}),
        json!({"prompt": "a", "n_predict": 4, "regex": "(.*a.{300}.*b.{300}.*c.{300}){9}"}),
    ]);
    let n = bad.len();
    let good = (0..24).map(|i| json!({"prompt": "ROMEO:", "n_predict": 6, "temperature": 0, "id": i}));
    let lines: Vec<String> = bad.into_iter().chain(good).map(|line| format!("{line}\n")).collect();
    let limited = "ulimit -v 6000000; exec \"$0\" batch -q --unordered --parallel 2";
    let mut child = Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_tandem")])
        .env("CUDA_VISIBLE_DEVICES", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), lines.concat().as_bytes()).unwrap();
    let (done, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output().unwrap()));
    let out = end.recv_timeout(Duration::from_secs(120)).expect("the batch comes to an end");
    let answers: Vec<Value> =
        String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), n + 24);
    let (errors, texts): (Vec<&Value>, Vec<&Value>) = answers.iter().partition(|a| a.get("error").is_some());
    assert!(texts.len() >= 24 && texts.iter().filter(|a| a["id"].is_u64()).count() == 24, "the others are answered");
    for e in &errors {
        println!("{e}");
        assert!(e["error"].as_str().is_some_and(|e| e.len() < 400 && !e.contains("panic")), "{e}");
    }
    assert!(errors.len() >= n - 1, "{} errors", errors.len());
    let before = answers.iter().take_while(|a| a.get("error").is_none()).count();
    let last = answers.iter().rposition(|a| a.get("error").is_some()).unwrap();
    assert!(before > 0 || last > n, "answers come while forms are compiled: {answers:?}");
}
