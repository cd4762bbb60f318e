//! What models write, and what a client should get of it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tandem::quant::Rng;
use tandem::text::{Markup, Part, Reader, Tools};

use super::common::{local, whole};

/// A part of a chat template for each markup, by the name of its cases: enough to tell it.
const SIGNS: &[(&str, &str)] = &[
    ("qwen-hermes", "<think></think><tool_call>\n{\"name\": .."),
    ("qwen-xml", "<think></think><tool_call>\n<function=..>\n<parameter=..>"),
    ("harmony", "<|start|>assistant<|channel|>commentary to=functions.<|message|>"),
    ("deepseek-v3.1", "<think></think><｜tool▁call▁begin｜>"),
    ("deepseek-v3", "<think></think><｜tool▁call▁begin｜>"),
    ("deepseek-v4", "<think></think>｜DSML｜ tool_calls"),
    ("deepseek-v3.2", "<think></think>｜DSML｜ function_calls"),
    ("glm", "<think></think><tool_call><arg_key>"),
    ("minimax-m2", "<think></think><minimax:tool_call><invoke name="),
    ("kimi-k2", "<think></think><|tool_call_begin|>"),
    ("mistral", "[THINK][/THINK][TOOL_CALLS]"),
    ("gemma4", "<|channel>thought\n<channel|><|tool_call>call:"),
    ("llama3", "<|python_tag|>{\"name\": function name, \"parameters\": .."),
    ("granite", "<|tool_call|>"),
    ("nemotron", "<think></think><TOOLCALL>"),
    ("hunyuan", "{%- set HYTK = ':opensource' %}"),
];

/// The template's text that a case is read by.
fn signs(case: &Value) -> &'static str {
    match case["model_family"].as_str().unwrap_or("") {
        "Nemotron-3-Nano" => SIGNS[1].1,
        "Hunyuan-A13B" => "<think></think><answer><tool_calls>[..]</tool_calls></answer>",
        "Granite-4.0" => "<tool_call>\n{\"name\": ..",
        _ => SIGNS.iter().find(|(name, _)| case["format"] == *name).expect("a known markup").1,
    }
}

/// What a client gets when the text comes in these pieces.
fn read(template: &str, case: &Value, pieces: &[&str]) -> Value {
    let tools = Tools::new(&case["tools"]).unwrap();
    let markup = Markup::of(template).expect("a markup");
    let mut reader = Reader::new(template, case["prompt_end"].as_str().unwrap());
    if !tools.is_empty() {
        reader = reader.watching(markup);
    }
    let mut parts: Vec<(Part, String)> = pieces.iter().flat_map(|p| reader.push(p)).collect();
    parts.extend(reader.finish());
    let join = |part: Part| parts.iter().filter(|p| p.0 == part).map(|p| p.1.as_str()).collect::<String>();
    let complete = case["complete"].as_bool().unwrap();
    let taken = markup.take(&tools, &join(Part::Reasoning), &join(Part::Answer), complete);
    let calls = taken.calls.iter().map(|c| json!({ "name": c.name, "arguments": c.arguments }));
    json!({
        "content": taken.content, "reasoning": taken.reasoning, "tool_calls": calls.collect::<Vec<_>>(),
        "incomplete": taken.incomplete,
    })
}

/// A text without white space; blank is null.
fn bare(text: &Value) -> Value {
    let text: String = text.as_str().unwrap_or("").split_whitespace().collect();
    if text.is_empty() { Value::Null } else { text.into() }
}

fn cases(dir: &Path) -> Vec<Value> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "jsonl"));
    files.sort();
    let lines = files.iter().flat_map(|f| {
        let text = std::fs::read_to_string(f).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    });
    lines.collect()
}

/// The cases of the repository, and the whole set where it is.
fn all() -> Vec<Value> {
    let mut all = cases(&local().join("tools"));
    assert!(all.len() > 30, "the repository has a case for each markup and rule");
    match whole().map(|dir| dir.with_file_name("cases/tool-calls")).filter(|d| d.is_dir()) {
        Some(dir) => all.extend(cases(&dir)),
        None => println!("not checked, because the folder is not next to this checkout: the larger set of cases"),
    }
    all
}

/// What is wrong with a case that is read in these pieces, if anything.
fn wrong(case: &Value, pieces: &[&str]) -> Option<String> {
    let got = read(signs(case), case, pieces);
    let want = &case["expected"];
    let same = bare(&got["content"]) == bare(&want["content"])
        && bare(&got["reasoning"]) == bare(&want["reasoning"])
        && got["tool_calls"] == want["tool_calls"];
    (!same).then(|| format!("{}: got {got}\n    want {want}", case["id"]))
}

#[test]
fn every_answer_gives_a_client_what_it_should_get() {
    let all = all();
    let failed: Vec<String> = all.iter().filter_map(|c| wrong(c, &[c["text"].as_str().unwrap()])).collect();
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), all.len(), failed.join("\n"));
}

#[test]
fn the_result_is_the_same_however_the_text_is_cut() {
    for case in all() {
        let text = case["text"].as_str().unwrap();
        let whole = read(signs(&case), &case, &[text]);
        let signs_alone: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = signs_alone.iter().map(String::as_str).collect();
        assert_eq!(read(signs(&case), &case, &pieces), whole, "{}: sign by sign", case["id"]);
        for (at, _) in text.char_indices() {
            let (a, b) = text.split_at(at);
            assert_eq!(read(signs(&case), &case, &[a, b]), whole, "{}: {a:?} and {b:?}", case["id"]);
        }
    }
}

#[test]
fn what_was_cut_off_is_told_apart_and_nothing_of_it_is_lost() {
    for case in all().iter().filter(|c| c["complete"] == false) {
        let got = read(signs(case), case, &[case["text"].as_str().unwrap()]);
        let text = case["text"].as_str().unwrap();
        let incomplete = got["incomplete"].as_str().unwrap();
        assert!(text.contains(incomplete), "{}: {incomplete:?}", case["id"]);
        let begun = case["expected"]["tool_calls"].as_array().unwrap().is_empty();
        assert!(!begun || !incomplete.is_empty(), "{}: {got}", case["id"]);
    }
}

#[test]
fn damaged_answers_are_read_too_and_never_otherwise_when_they_come_in_pieces() {
    let all = cases(&local().join("tools"));
    let mut rng = Rng(11);
    for round in 0..3000 {
        let mut case = all[round % all.len()].clone();
        let mut text: Vec<char> = case["text"].as_str().unwrap().chars().collect();
        let other: Vec<char> = all[rng.below(all.len())]["text"].as_str().unwrap().chars().collect();
        for _ in 0..1 + rng.below(3) {
            let (at, n) = (rng.below(text.len() + 1), rng.below(12));
            let end = (at + n).min(text.len());
            let from = rng.below(other.len());
            let more = &other[from..(from + rng.below(16)).min(other.len())];
            text.splice(at..if rng.below(2) == 0 { at } else { end }, more.iter().copied());
        }
        let text: String = text.into_iter().collect();
        case["complete"] = (rng.below(2) == 0).into();
        let signs_alone: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = signs_alone.iter().map(String::as_str).collect();
        assert_eq!(
            read(signs(&case), &case, &pieces),
            read(signs(&case), &case, &[text.as_str()]),
            "{}: {text:?}",
            case["id"]
        );
    }
}
