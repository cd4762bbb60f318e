//! A model that says one text, whatever it is asked: token by token, each following from the one before.

use tandem::gguf::{Array, Value};

use super::source::Source;

/// Columns of the model's embedding: one for each token that something follows.
const COLUMNS: usize = 64;

/// A GGUF file of a model that answers with these pieces of text, all of them different. Prompts end in a line break.
pub fn puppet(pieces: &[&str], template: &str) -> Vec<u8> {
    assert!(pieces.len() < COLUMNS, "{} pieces", pieces.len());
    let mut s = Source::open("puppet", &super::local().join("models/qwen3moe.gguf"));
    // What is between the embedding and the head adds nothing.
    for t in s.tensors.iter_mut().filter(|t| t.name.contains("attn_output") || t.name.contains("ffn_down_exps")) {
        t.data.fill(0);
    }
    let mut tokens = strings(&s, "tokenizer.ggml.tokens");
    let feed = tokens.iter().position(|t| t == "Ċ").expect("the token of a line break");
    let end = s.meta.iter().find(|(k, _)| k == "tokenizer.ggml.eos_token_id").map(|(_, v)| v.clone());
    let Some(Value::U32(end)) = end else { panic!("no end of text: {end:?}") };
    let mut say = Vec::new();
    for piece in pieces {
        say.push(tokens.iter().position(|t| t == piece).unwrap_or(tokens.len()));
        tokens.extend((say.last() == Some(&tokens.len())).then(|| piece.to_string()));
    }
    let mut kinds = match get(&s, "tokenizer.ggml.token_type") {
        Value::Arr(Array::I32(kinds)) => kinds,
        other => panic!("{other:?}"),
    };
    kinds.resize(tokens.len(), 4); // user-defined: their texts as they are
    let mut rows = [vec![0f32; tokens.len() * COLUMNS], vec![0f32; tokens.len() * COLUMNS]];
    let order: Vec<usize> = [feed].into_iter().chain(say).chain([end as usize]).collect();
    for (i, pair) in order.windows(2).enumerate() {
        rows[0][pair[0] * COLUMNS + i] = 1.0;
        rows[1][pair[1] * COLUMNS + i] = 10.0;
    }
    for (name, rows) in ["token_embd.weight", "output.weight"].into_iter().zip(&rows) {
        s.take(name);
        s.add(name, &[tokens.len(), COLUMNS], rows);
    }
    s.take("output_norm.weight");
    s.add("output_norm.weight", &[COLUMNS], &[1.0; COLUMNS]);
    for (key, value) in [
        ("tokenizer.ggml.tokens", Value::from(tokens)),
        ("tokenizer.ggml.token_type", Value::from(kinds)),
        ("tokenizer.chat_template", Value::from(template)),
    ] {
        s.meta.iter_mut().find(|(k, _)| k == key).unwrap_or_else(|| panic!("no {key}")).1 = value;
    }
    s.bytes()
}

fn get(s: &Source, key: &str) -> Value {
    s.meta.iter().find(|(k, _)| k == key).unwrap_or_else(|| panic!("no {key}")).1.clone()
}

fn strings(s: &Source, key: &str) -> Vec<String> {
    match get(s, key) {
        Value::Arr(Array::Str(list)) => list,
        other => panic!("{key}: {other:?}"),
    }
}

/// A template without a word on reasoning.
pub const PLAIN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant:\n' }}";
