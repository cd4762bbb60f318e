//! Calls that are held to the tools' schemas: whatever a model would like to write, what it writes are calls that can be
//! read, with arguments that the schemas accept.

use serde_json::{Value, json};
use tandem::gguf::Gguf;
use tandem::quant::Rng;
use tandem::sample::{Params, Sampler};
use tandem::session::{Output, Want};
use tandem::talk::{End, GenParams, ToolUse, Writer};
use tandem::text::grammar::{Grammar, Grammars, Kind};
use tandem::text::{CallGrammars, Markup, Reader, Tokenizer, Tools};

use super::common::local;

/// A part of a chat template for each markup that has a grammar.
const MARKUPS: &[&str] = &[
    "<tool_call>\n{\"name\": ..",
    "<tool_call>\n<function=..>\n<parameter=..>",
    "<seed:tool_call>",
    "<|channel|>commentary<|message|>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁begin｜>```json",
    "｜DSML｜ tool_calls",
    "｜DSML｜ function_calls",
    "<tool_call><arg_key>",
    "{%- set HYTK = ':opensource' %}",
    "<minimax:tool_call>",
    "<|tool_call_begin|>",
    "[TOOL_CALLS]",
    "[TOOL_CALLS][ARGS]",
    "[TOOL_CALLS][CALL_ID][ARGS]",
    "<|tool_call>call:",
    "<|python_tag|>",
    "<|tool_call|>",
    "<TOOLCALL>",
    "<|tools_prefix|>",
    "<|START_ACTION|>",
    "<|tool_call:begin|>",
    "<atem:invoke",
    "<function name=",
    "open_tag('call'",
    "<function=..></function>",
];

fn tools() -> Tools {
    let text = json!({ "type": "string" });
    let short = json!({ "type": "string", "minLength": 1, "maxLength": 6 });
    let number = json!({ "type": "integer", "minimum": 0, "maximum": 99 });
    let tool = |name: &str, schema: Value| json!({ "function": { "name": name, "parameters": schema } });
    Tools::new(&json!([
        tool("note", json!({ "type": "object", "required": ["text", "n"], "additionalProperties": false, "properties": {
            "text": text, "n": number, "bold": { "type": "boolean" }, "until": { "type": ["integer", "null"] } } })),
        tool("pick", json!({ "type": "object", "required": ["mode"], "additionalProperties": false, "properties": {
            "mode": { "enum": ["bake", "grill"] }, "word": short, "code": { "type": "string", "pattern": "^[a-z]{2,4}$" } } })),
        tool("send", json!({ "type": "object", "required": ["list"], "additionalProperties": false,
            "$defs": { "part": { "type": "object", "required": ["id"], "additionalProperties": false, "properties": {
                "id": { "type": "integer" }, "name": short } } },
            "properties": { "list": { "type": "array", "minItems": 1, "maxItems": 3, "items": { "$ref": "#/$defs/part" } },
                "to": { "anyOf": [{ "type": "object", "required": ["x"], "additionalProperties": false, "properties": {
                    "x": { "type": "number" } } }, { "type": "null" }] } } })),
        tool("stop", json!({ "type": "object", "properties": {}, "additionalProperties": false })),
    ]))
    .unwrap()
}

/// Writes tokens that the grammar allows as they come, with a leaning to what closes a text.
fn write(tokenizer: &Tokenizer, grammar: &mut Grammar, rng: &mut Rng) -> String {
    let bytes: Vec<Vec<u8>> = (0..tokenizer.n_vocab() as u32).map(|id| tokenizer.bytes(id, true)).collect();
    let (mut tokens, mut closing): (Vec<u32>, Vec<u8>) = (Vec::new(), Vec::new());
    let closers = [
        "\"",
        "</",
        "\n</parameter>",
        "<|\"|>",
        "<|close|>argument<|sep|>",
        "<｜/",
        "</｜DSML｜parameter>",
        "</arg_value>",
        "</arg_value:opensource>",
        "</parameter>",
        "</atem:parameter>",
        "</param>",
    ];
    while !grammar.is_done() && tokens.len() < 3000 {
        let mask = grammar.mask().unwrap();
        let has = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
        let all: Vec<u32> = (0..tokenizer.n_vocab() as u32).filter(|id| has(*id)).collect();
        assert!(!all.is_empty());
        if all.iter().any(|id| tokenizer.is_eog(*id)) && rng.bits().is_multiple_of(3) {
            break;
        }
        if closing.is_empty() && all.len() > 60 && rng.bits().is_multiple_of(4) {
            closing = closers[rng.bits() as usize % closers.len()].bytes().rev().collect();
        }
        let next = closing.pop().and_then(|b| all.iter().find(|id| bytes[**id as usize] == [b])).copied();
        let plain: Vec<u32> = all.iter().copied().filter(|id| bytes[*id as usize].iter().all(u8::is_ascii)).collect();
        let some = if plain.is_empty() { &all } else { &plain };
        let token = next.unwrap_or_else(|| some[rng.bits() as usize % some.len()]);
        if tokenizer.is_eog(token) {
            break;
        }
        if next.is_none() {
            closing.clear();
        }
        grammar.accept(token).unwrap();
        tokens.push(token);
    }
    assert!(grammar.may_end(), "{:?}", tokenizer.decode(&tokens, true));
    tokenizer.decode(&tokens, true)
}

/// The grammars of a markup, each with the text that stands before it.
fn grammars(source: &str, tools: &Tools, parallel: bool) -> Vec<(String, String)> {
    let marks = |text: &str| vec![Err(text.to_owned())];
    let CallGrammars { after, whole, heads } = Markup::of(source).unwrap().rules(tools, parallel, &marks).unwrap();
    let after = after.into_iter().flat_map(|(opens, text)| opens.into_iter().map(move |open| (open, text.clone())));
    assert!(whole.is_some() || !heads.is_empty(), "{source}");
    after.chain(whole.map(|text| (String::new(), text))).collect()
}

#[test]
fn calls_that_are_held_to_their_schemas_can_be_read_and_satisfy_them() {
    let tokenizer = Tokenizer::new(&Gguf::open(&local().join("models/qwen3moe.gguf")).unwrap()).unwrap();
    let forms = Grammars::new(&tokenizer).unwrap();
    let (tools, mut rng, mut count) = (tools(), Rng(7), 0);
    let mut wrong = Vec::new();
    for source in MARKUPS {
        let markup = Markup::of(source).unwrap();
        for (open, text) in grammars(source, &tools, true) {
            let start = || forms.start(&Kind::Lark(text.clone())).unwrap_or_else(|e| panic!("{source}: {e:#}\n{text}"));
            for _ in 0..6 {
                let said = open.clone() + &write(&tokenizer, &mut start(), &mut rng);
                let mut reader = Reader::new(source, "").watching(markup);
                let mut parts = reader.push(&said);
                parts.extend(reader.finish());
                let answer: String = parts.into_iter().map(|(_, text)| text).collect();
                let taken = markup.take(&tools, "", &answer, true);
                let valid = taken
                    .calls
                    .iter()
                    .all(|c| tools.schema(&c.name).is_some_and(|s| jsonschema::is_valid(s, &c.arguments)));
                if !valid || taken.calls.is_empty() || !taken.content.trim().is_empty() {
                    wrong.push(format!("{source} after {open:?}: {said:?}: {taken:?}"));
                }
                count += taken.calls.len();
            }
        }
    }
    assert!(wrong.is_empty(), "{}, of {count} calls:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 500, "{count} calls");
}

#[test]
fn one_call_is_all_where_no_others_may_stand_beside_it() {
    let tokenizer = Tokenizer::new(&Gguf::open(&local().join("models/qwen3moe.gguf")).unwrap()).unwrap();
    let forms = Grammars::new(&tokenizer).unwrap();
    let (tools, mut rng) = (tools().only("stop").unwrap(), Rng(3));
    for source in MARKUPS {
        for (open, text) in grammars(source, &tools, false) {
            let mut grammar = forms.start(&Kind::Lark(text)).unwrap();
            let said = open + &write(&tokenizer, &mut grammar, &mut rng);
            assert_eq!(Markup::of(source).unwrap().take(&tools, "", &said, true).calls.len(), 1, "{source}: {said:?}");
        }
    }
}

/// An answer whose tokens are these where they are given, and else as they come, until the call is whole.
fn answer(tokenizer: &Tokenizer, forms: &Grammars, before: &str, after: &str) -> (bool, String, End, ToolUse) {
    let source = "<tool_call>\n{\"name\": ..";
    let bounded = json!({ "type": "object", "required": ["n"], "additionalProperties": false, "properties": {
        "n": { "type": "integer", "minimum": 0, "maximum": 99 }, "way": { "enum": ["up", "down"] } } });
    let list = json!([{ "function": { "name": "lift", "parameters": bounded } }]);
    let tools = ToolUse::new(Some(&list), None, None).unwrap().unwrap().for_template(source).unwrap();
    let reader = Reader::new(source, "").watching(tools.markup().unwrap());
    let sampler = Sampler::new(Params { temperature: 0.0, ..Params::default() }, 0, Vec::new());
    let params = GenParams { limit: Some(400), ..GenParams::default() };
    let rules = tools.rules(tokenizer, forms).unwrap();
    let mut writer = Writer::with_calls(tokenizer, sampler, None, reader, params, &[], rules);
    let given = |text: &str| tokenizer.encode(text, false, false).unwrap().into_iter().rev().collect::<Vec<u32>>();
    let (mut first, mut last, mut rng) = (given(before), given(after), Rng(5));
    last.insert(0, tokenizer.eog()[0]);
    let mut held = false;
    loop {
        let ruled = matches!(writer.want(), Want::Last);
        held |= ruled;
        let mut logits: Vec<f32> = (0..tokenizer.n_vocab()).map(|_| rng.unit()).collect();
        let next = first.pop().or_else(|| if ruled { None } else { last.pop() });
        if let Some(token) = next {
            logits[token as usize] = 100.0;
        }
        if let (_, _, Some(end)) = writer.next(&Output::Logits(logits)).unwrap() {
            return (held, std::mem::take(&mut writer.generated.answer), end, tools);
        }
    }
}

#[test]
fn an_answer_is_free_until_a_call_opens_then_held_and_free_again_after_it() {
    let tokenizer = Tokenizer::new(&Gguf::open(&local().join("models/qwen3moe.gguf")).unwrap()).unwrap();
    let forms = Grammars::new(&tokenizer).unwrap();
    let (held, text, end, tools) = answer(&tokenizer, &forms, "I lift it.\n<tool_call>\n{", "\nDone.");
    let taken = tools.take("", &text, end.is_whole());
    assert!(held && end == End::Model, "{text:?}: {end:?}");
    assert_eq!((taken.calls.len(), taken.calls[0].name.as_str()), (1, "lift"), "{text:?}");
    assert!(taken.calls[0].arguments["n"].as_u64().unwrap() < 100);
    assert!(taken.content.starts_with("I lift it.") && taken.content.ends_with("Done."), "{text:?}");
    // An example is text.
    let example = "So:\n```\n<tool_call>\n{\"name\": 1}\n</tool_call>\n```\n";
    let (held, text, ..) = answer(&tokenizer, &forms, example, "Done.");
    assert_eq!((held, text), (false, format!("{example}Done.")));
}
