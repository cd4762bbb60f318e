//! A call that a template writes, read as a model's text, is the same call: the template writes it again as it was.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tandem::gguf::Gguf;
use tandem::talk::{ToolUse, Turns, message};
use tandem::text::{Part, Reader, Taken, Template, Tokenizer};

use super::common::{local, whole};

fn tools() -> ToolUse {
    let text = json!({ "type": "string", "description": "Some text." });
    let list = json!([
        { "type": "function", "function": { "name": "write_line", "description": "Writes a line.", "parameters": {
            "type": "object", "required": ["text"], "properties": {
                "text": text, "count": { "type": "integer", "description": "How often." },
                "size": { "type": "number", "description": "How large." },
                "bold": { "type": "boolean", "description": "Whether it is bold." },
                "tags": { "type": "array", "items": { "type": "string" }, "description": "Words." },
                "font": { "type": "object", "description": "The font.", "properties": {
                    "name": { "type": "string" }, "weight": { "type": "integer" } } } } } } },
        { "type": "function", "function": { "name": "stop_all", "description": "Stops.", "parameters": {
            "type": "object", "properties": {} } } },
    ]);
    ToolUse::new(Some(&list), None, None).unwrap().unwrap()
}

/// Calls to write, by what is hard about them.
fn messages() -> Vec<Value> {
    let line = |arguments: Value| ("write_line", arguments);
    let calls: Vec<Vec<(&str, Value)>> = vec![
        vec![("stop_all", json!({}))],
        vec![line(json!({ "text": "a line", "count": 3 }))],
        vec![line(json!({ "text": "two\nlines, \"quoted\" \\ {x} é", "size": 2.5, "bold": true }))],
        vec![line(json!({ "text": "12", "tags": ["x", "y z"], "font": { "name": "Garamond", "weight": 400 } }))],
        vec![line(json!({ "text": " spaced " })), ("stop_all", json!({}))],
        vec![line(json!({ "text": "a" })), line(json!({ "text": "a" })), line(json!({ "text": "b", "count": -7 }))],
    ];
    let mut all = Vec::new();
    for content in ["", "I write it."] {
        for list in &calls {
            let calls = list.iter().enumerate().map(|(i, (name, arguments))| {
                let function = json!({ "name": name, "arguments": arguments.to_string() });
                json!({ "id": format!("abcdefgh{i}"), "type": "function", "function": function })
            });
            let content = if content.is_empty() { Value::Null } else { content.into() };
            all.push(json!({ "role": "assistant", "content": content, "tool_calls": calls.collect::<Vec<_>>() }));
        }
    }
    all
}

fn templates() -> Vec<(String, PathBuf)> {
    let mut all = Vec::new();
    let folders = [
        Some(local().join("tools")),
        whole().map(|d| d.join("templates/llama.cpp-b11434")),
        whole().map(|d| d.join("templates")),
    ];
    for dir in folders.into_iter().flatten() {
        for file in std::fs::read_dir(dir).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "jinja") {
                all.push((path.file_stem().unwrap().to_string_lossy().into_owned(), path));
            }
        }
    }
    all.sort();
    all
}

/// The text of an answer as the reader and the markup take it, whole or sign by sign.
fn taken(turns: &Turns, tools: &ToolUse, tail: &str, text: &str, signs: bool) -> Taken {
    let mut reader = Reader::new(turns.source(), tail).watching(tools.markup().unwrap());
    let mut parts = Vec::new();
    match signs {
        true => text.chars().for_each(|c| parts.extend(reader.push(&c.to_string()))),
        false => parts.extend(reader.push(text)),
    }
    parts.extend(reader.finish());
    let join = |part: Part| parts.iter().filter(|p| p.0 == part).map(|p| p.1.as_str()).collect::<String>();
    tools.take(&join(Part::Reasoning), &join(Part::Answer), true)
}

/// Where a model goes on: up to where both texts are the same, and not within a mark.
fn start(opened: &str, whole: &str) -> usize {
    let same = opened.bytes().zip(whole.bytes()).take_while(|(a, b)| a == b).count();
    let mut at = (0..=same).rev().find(|n| opened.is_char_boundary(*n) && whole.is_char_boundary(*n)).unwrap();
    if at < opened.len() {
        let back = opened[..at].rfind(['<', '[']).filter(|b| !opened[*b..at].contains(['>', ']', ' ', '\n']));
        at = back.unwrap_or(at);
    }
    at
}

/// What a template makes of a call that it wrote itself; None where it writes no such calls.
fn round(turns: &Turns, tools: &ToolUse, answer: &Value) -> Option<Result<(), String>> {
    let user = message("user", "Go on.");
    let prompt = |messages: &[Value], open: bool| {
        let prompt = turns.prompt_with(messages, Some(tools.list()), None, open);
        prompt.ok().map(|p| p.text().to_owned())
    };
    let opened = prompt(std::slice::from_ref(&user), true)?;
    let whole = prompt(&[user.clone(), answer.clone()], false)?;
    let at = start(&opened, &whole);
    // Some templates write a turn more.
    let end = whole[at..].find("<｜end▁of▁sentence｜>").map_or(whole.len(), |n| at + n);
    let text = &whole[at..end];
    let first = answer["tool_calls"][0]["function"]["name"].as_str().unwrap();
    if !text.contains(first) || text.split(first).next().is_some_and(|before| before.contains("<SPECIAL_12>")) {
        return None;
    }
    let got = taken(turns, tools, &whole[..at], text, false);
    if taken(turns, tools, &whole[..at], text, true) != got {
        return Some(Err(format!("another result sign by sign: {text:?}")));
    }
    let calls = got.calls.iter().map(|c| {
        let function = json!({ "name": c.name, "arguments": c.arguments.to_string() });
        json!({ "id": c.id.clone().unwrap_or("abcdefgh0".into()), "type": "function", "function": function })
    });
    let mut again = json!({ "role": "assistant", "content": got.content, "tool_calls": calls.collect::<Vec<_>>() });
    if !got.reasoning.is_empty() {
        again["reasoning_content"] = got.reasoning.clone().into();
    }
    let again = prompt(&[user, again], false).unwrap_or_default();
    Some(match again.starts_with(&whole[..end]) {
        true => Ok(()),
        false => Err(format!("wrote {text:?},\n    read {got:?},\n    wrote {:?}", again.get(at..).unwrap_or(&again))),
    })
}

#[test]
fn a_call_that_a_template_writes_reads_back_to_the_same_call() {
    let small = Tokenizer::new(&Gguf::open(&local().join("models/qwen3moe.gguf")).unwrap()).unwrap();
    let (mut wrong, mut none, mut good) = (Vec::new(), Vec::new(), 0);
    for (name, path) in templates() {
        let source = std::fs::read_to_string(&path).unwrap();
        let template = Template::new(&source, &name).unwrap();
        let turns = Turns::new(template, &small, Map::new(), "2025-03-14 12:00".parse().unwrap()).unwrap();
        let Ok(tools) = turns.check_tools(tools()) else {
            none.push(format!("{name}: takes none"));
            continue;
        };
        let mut rounds = 0;
        for answer in messages() {
            let round = if tools.markup().is_some() { round(&turns, &tools, &answer) } else { None };
            match round {
                Some(Ok(())) => rounds += 1,
                Some(Err(what)) => wrong.push(format!("{name} ({}): {what}", tools.markup().unwrap().name())),
                None => {}
            }
        }
        if rounds == 0 {
            none.push(format!("{name}: writes none ({:?})", tools.markup().map(|m| m.name())));
        }
        good += rounds;
    }
    println!("{good} calls came back; of these templates none:\n{}", none.join("\n"));
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), good + wrong.len(), wrong.join("\n"));
    assert!(good > 20);
}
