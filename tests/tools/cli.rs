//! What the program makes of tools: in lines of a batch, in `run`, and in the prompts of conversations with calls.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::common::{local, program};

fn template(name: &str) -> String {
    local().join("tools").join(name).display().to_string()
}

/// A template of a few words in a file of its own.
fn written(name: &str, text: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// What `tandem batch` answers with this template to these lines, and what it says besides.
fn answers(template: &str, lines: &[Value]) -> (Vec<Value>, String) {
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    let out = program(&["batch", "-c", "1500", "--chat-template-file", template], text.as_bytes());
    let said = String::from_utf8(out.stderr).unwrap();
    let lines = String::from_utf8(out.stdout).unwrap();
    (lines.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect(), said)
}

fn schema() -> Value {
    json!({ "type": "object", "required": ["speed", "mode"], "additionalProperties": false, "properties": {
        "speed": { "type": "integer", "minimum": 0, "maximum": 9 }, "mode": { "enum": ["up", "down"] } } })
}

fn tools() -> Value {
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name, "parameters": schema() } });
    json!([tool("lift"), tool("crane")])
}

fn user() -> Value {
    json!([{ "role": "user", "content": "Lift it." }])
}

#[test]
fn a_call_that_is_asked_for_comes_in_each_form_of_a_line() {
    let named = json!({ "type": "function", "function": { "name": "crane" } });
    let own = json!({ "id": 1, "messages": user(), "tools": tools(), "tool_choice": "required", "n_predict": 200,
        "parallel_tool_calls": false, "reasoning_budget": 2 });
    let api = json!({ "custom_id": "c", "url": "/v1/chat/completions", "body": { "messages": user(), "tools": tools(),
        "tool_choice": named, "max_tokens": 200, "parallel_tool_calls": false, "reasoning_budget": 2 } });
    for name in ["hermes.jinja", "lines.jinja", "messages.jinja", "text.jinja"] {
        let (got, said) = answers(&template(name), &[own.clone(), api.clone()]);
        assert_eq!(got[0]["finish"], "tool_calls", "{name}: {} {said}", got[0]);
        let calls = got[0]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1, "{name}: {calls:?}");
        assert!(calls[0]["name"] == "lift" || calls[0]["name"] == "crane");
        assert!(jsonschema::is_valid(&schema(), &calls[0]["arguments"]), "{calls:?}");

        let choice = &got[1]["response"]["body"]["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{name}: {}", got[1]);
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("crane")));
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(jsonschema::is_valid(&schema(), &arguments), "{arguments}");
        assert!(choice["message"]["content"].is_null());
        assert_eq!(call["id"].as_str().unwrap().len(), 9);
    }
}

#[test]
fn a_call_that_is_cut_off_is_told_apart_with_a_warning() {
    let line = json!({ "messages": user(), "tools": tools(), "tool_choice": "required", "n_predict": 20 });
    let (got, said) = answers(&template("hermes.jinja"), &[line]);
    assert_eq!((&got[0]["finish"], got[0].get("tool_calls")), (&json!("limit"), None), "{}", got[0]);
    assert!(got[0]["incomplete_tool_call"].as_str().unwrap().starts_with("<tool_call>"), "{}", got[0]);
    assert_eq!(got[0]["text"], "");
    assert!(said.contains("a tool call was cut off"), "{said}");
}

#[test]
fn tools_for_a_template_that_takes_none_are_an_error_of_that_line() {
    let plain = written("no-tools.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let line = |more: Value| {
        let mut line = json!({ "messages": user(), "n_predict": 1 });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line
    };
    let none = json!({ "tools": tools(), "tool_choice": "none" });
    let (got, _) = answers(&plain, &[line(json!({ "tools": tools() })), line(none), line(json!({}))]);
    assert!(got[0]["error"].as_str().unwrap().contains("the chat template takes none"), "{}", got[0]);
    assert!(got[1]["error"].is_null() && got[2]["error"].is_null(), "{got:?}");
}

#[test]
fn a_content_that_is_null_or_missing_beside_calls_is_empty() {
    let print = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}\
        [{{ c.function.name }} {{ c.function.arguments.city }}]{% endfor %}{% endfor %}";
    let search = "{% for m in messages %}{{ m.content.split('x')[-1] if 'x' in m.content else m.content }}{% endfor %}";
    let conversation = |content: Option<Value>| {
        let function = json!({ "name": "look", "arguments": "{\"city\": \"Bonn\"}" });
        let mut said =
            json!({ "role": "assistant", "tool_calls": [{ "id": "c1", "type": "function", "function": function }] });
        if let Some(content) = content {
            said["content"] = content;
        }
        let tool = json!({ "role": "tool", "tool_call_id": "c1", "content": "no" });
        let user = json!({ "role": "user", "content": "Rain?" });
        json!({ "messages": [user, said, tool], "n_predict": 4, "temperature": 0 })
    };
    let lines = [conversation(Some("".into())), conversation(Some(Value::Null)), conversation(None)];
    for (name, text) in [("print.jinja", print), ("search.jinja", search)] {
        let (got, said) = answers(&written(name, text), &lines);
        for other in &got[1..] {
            assert!(other["error"].is_null(), "{other} {said}");
            assert_eq!(other["tokens"]["prompt"], got[0]["tokens"]["prompt"]);
            assert_eq!(other["text"], got[0]["text"]);
        }
    }
}

#[test]
fn a_message_that_is_begun_is_gone_on_with_and_an_answer_need_not_be_opened() {
    let path = written(
        "turns.jinja",
        "{% for m in messages %}{{ m.role }}: {{ m.content }};\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    );
    let chat = |more: &[(&str, Value)], last: &str| {
        let messages = json!([{ "role": "user", "content": "O, Romeo" }, { "role": "assistant", "content": last }]);
        let mut line = json!({ "messages": messages, "n_predict": 12, "temperature": 0 });
        more.iter().for_each(|(key, value)| line[*key] = value.clone());
        line
    };
    let raw = |text: &str| json!({ "prompt": text, "raw": true, "n_predict": 12, "temperature": 0 });
    let (begun, none) = (("continue_final_message", json!(true)), ("add_generation_prompt", json!(false)));
    let lines = [
        chat(std::slice::from_ref(&begun), "My lord, "),
        raw("user: O, Romeo;\nassistant: My lord, "),
        chat(std::slice::from_ref(&none), "My lord"),
        raw("user: O, Romeo;\nassistant: My lord;\n"),
        chat(&[begun.clone(), ("add_generation_prompt", json!(true))], "My"),
        chat(&[begun], ""),
    ];
    let (got, _) = answers(&path, &lines);
    assert_eq!(got[0]["tokens"]["prompt"], got[1]["tokens"]["prompt"], "{got:?}");
    assert_eq!((&got[0]["text"], &got[2]["text"]), (&got[1]["text"], &got[3]["text"]));
    assert!(got[4]["error"].as_str().unwrap().contains("not both"), "{}", got[4]);
    assert!(got[5]["error"].as_str().unwrap().contains("has no text"), "{}", got[5]);
}

#[test]
fn run_prints_calls_as_objects_and_says_what_is_wrong_with_tools() {
    let (tools, path) = (tools().to_string(), template("hermes.jinja"));
    let run = |more: &[&str]| {
        let base = [
            "run",
            "-p",
            "Lift it.",
            "-n",
            "200",
            "-c",
            "1500",
            "--no-stdin",
            "--chat-template-file",
            &path,
            "--tools",
            &tools,
        ];
        program(&[&base[..], more].concat(), b"")
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let out = run(&["--tool-choice", "crane", "--no-parallel-tool-calls", "--json"]);
    let object: Value = serde_json::from_str(&text(out.stdout)).unwrap();
    assert_eq!(
        (&object["finish"], &object["tool_calls"][0]["name"]),
        (&json!("tool_calls"), &json!("crane")),
        "{object}"
    );
    let out = text(run(&["--tool-choice", "lift", "--no-parallel-tool-calls"]).stdout);
    let call: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{out}: {e}"));
    assert_eq!(call["name"], "lift");
    for (more, says) in [
        (&["--tool-choice", "fly"][..], "none of the tools"),
        (&["--regex", "a"], "give one of them"),
        (&["--raw"], "cannot be used with"),
    ] {
        let out = run(more);
        let said = text(out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(says), "{more:?}: {said}");
    }
}
