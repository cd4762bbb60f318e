//! Models that write in a form: the built-in one, which knows nothing but plays, and ones of random weights, which know
//! nothing at all and write bytes as they come.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use tandem::gguf::Gguf;
use tandem::sample::{Params, Sampler, Stage};
use tandem::session::{Options, Session, Want};
use tandem::speculate::Speculation;
use tandem::talk::{self, GenParams, Writer};
use tandem::text::grammar::{Grammar, Grammars, Kind};
use tandem::text::{Reader, Tokenizer};

use super::common::references;
use super::{has, small};

/// Tokens of one text, at most. The forms are such that fewer do.
const LIMIT: usize = 1500;
/// Texts in each form.
const ROUNDS: usize = 6;

fn schemas() -> Vec<Value> {
    let text = json!({"type": "string", "maxLength": 12});
    vec![
        json!({"type": "object", "properties": {"a": text, "b": {"type": "boolean"}}, "required": ["a", "b"],
               "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": text, "b": {"type": "null"}, "c": {"enum": [1, 2]}},
               "required": ["c"], "additionalProperties": false}),
        json!({"enum": ["red", "green", "blue", 4, null, true, {"a": [1]}]}),
        json!({"const": {"name": "é\n\"q\"", "list": [1, 2.5, null]}}),
        json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 4}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 3}),
        json!({"type": "array", "prefixItems": [{"type": "boolean"}, text], "items": false, "minItems": 2}),
        json!({"type": "integer", "minimum": -17, "maximum": 230}),
        json!({"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 8}),
        json!({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000}),
        json!({"type": "number", "minimum": 0.25, "maximum": 1.5}),
        json!({"type": "string", "minLength": 3, "maxLength": 5}),
        json!({"type": "string", "pattern": "^[A-Z]{2}-\\d{3,5}$"}),
        json!({"type": "string", "pattern": "^(日本|é|🔵){2,4}$"}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "string", "format": "uuid"}),
        json!({"type": "string", "format": "ipv4"}),
        json!({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, text, {"type": "null"}]}),
        json!({"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}]}),
        json!({"allOf": [{"type": "integer", "minimum": 3, "maximum": 700}, {"maximum": 40}]}),
        json!({"type": ["string", "null"], "maxLength": 4}),
        json!({"$defs": {"p": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
               "required": ["x"], "additionalProperties": false}},
               "type": "object", "properties": {"from": {"$ref": "#/$defs/p"}, "to": {"$ref": "#/$defs/p"}},
               "required": ["from", "to"], "additionalProperties": false}),
        json!({"$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}},
               "$ref": "#/$defs/tree"}),
        json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
               "patternProperties": {"^[A-Z]{1,3}$": {"type": "boolean"}}, "additionalProperties": false,
               "maxProperties": 3}),
        json!({"type": "object", "properties": {"user": {"type": "object", "properties": {
               "name": {"type": "string", "minLength": 1, "maxLength": 8}, "tags": {"type": "array", "items":
               {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 3}}, "required": ["name", "tags"],
               "additionalProperties": false}}, "required": ["user"], "additionalProperties": false}),
    ]
}

const REGEXES: &[&str] = &[
    "[A-Z][a-z]{2,8}( [A-Z][a-z]{2,8}){0,3}",
    r"\d{4}-\d\d-\d\d",
    "(yes|no|maybe)!?",
    r"[^\x00-\x7f]{2,6}",
    r"(?s).{5,20}",
    r"#[0-9a-f]{6}/[ -~]{1,8}",
];

type Check = Box<dyn Fn(&str) -> bool>;
type Written = (&'static str, fn(&str) -> bool);

/// Grammars, and a check of what is written in them.
const GRAMMARS: &[Written] = &[
    (
        "root ::= \"(\" word (\",\" list)? \")\"\nlist ::= \"(\" word (\",\" word){0,3} \")\"\nword ::= [a-z]{1,4}",
        |t| {
            let (open, close) = (t.matches('(').count(), t.matches(')').count());
            open == close && t.ends_with(&")".repeat(open)) && t.split([',', '(', ')']).all(|w| w.len() <= 4)
        },
    ),
    (
        "root ::= pair{1,3}\npair ::= key \": \" value \"\\n\"\nkey ::= [a-z]{1,6}\nvalue ::= [0-9]{1,3} | \"none\"",
        |t| {
            t.lines().all(|l| {
                l.split_once(": ").is_some_and(|(k, v)| !k.is_empty() && (v == "none" || v.parse::<u16>().is_ok()))
            })
        },
    ),
    ("root ::= [ぁ-ゟ]{3,9} \"。\"", |t| t.ends_with('。') && (4..=10).contains(&t.chars().count())),
    ("root ::= \"a\" root? \"b\"", |t| t == format!("{}{}", "a".repeat(t.len() / 2), "b".repeat(t.len() / 2))),
];

/// What answers are put in: nothing; tags that the prompt opened; messages with heads. What is thought is cut short, as a
/// model that knows nothing never ends it.
const SHAPES: [(&str, &str); 3] = [
    ("", ""),
    ("<think></think>", "<think>\n"),
    ("<|start|>assistant<|channel|>final<|message|>", "<|start|>assistant"),
];

/// Whether a text is a list in a list in a list, deeper than the 127 levels that the parser here reads: what the recursive
/// schema may come to, and no other.
fn is_deep_list(text: &str) -> bool {
    let brackets: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let depth = brackets.len() / 2;
    depth > 127 && brackets == "[".repeat(depth) + &"]".repeat(depth)
}

/// Writes a text.
fn write(s: &mut Session, t: &Tokenizer, g: Grammar, (seed, shape): (u64, usize), what: &str) -> String {
    let params = Params { temperature: 1.0, order: vec![Stage::Temperature], ..Params::default() };
    let asked = GenParams { limit: Some(LIMIT), budget: Some(9), ..GenParams::default() };
    let reader = Reader::new(SHAPES[shape].0, SHAPES[shape].1);
    s.rewind(0, 0).unwrap();
    let prompt = t.encode("KING:", true, false).unwrap();
    let mut writer = Writer::new(t, Sampler::new(params, seed, Vec::new()), Some(g), reader, asked, &prompt);
    let output = s.feed(0, &prompt, Want::Last).unwrap();
    let never = AtomicBool::new(false);
    let end = talk::write(s, &mut Speculation::off(), 0, &mut writer, output, &never, &mut |_, _| Ok(()));
    let end = end.unwrap_or_else(|e| panic!("{what}: {e:#}"));
    let text = std::mem::take(&mut writer.generated.answer);
    assert!(writer.is_complete(), "{what}: {text:?} is not complete, but ended by {end:?}");
    text
}

#[test]
fn whatever_a_model_would_say_it_says_it_in_the_form() {
    let o = Options { n_ctx: Some(LIMIT + 64), threads: 1, ..Options::default() };
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf");
    // Text cannot be written without a vocabulary.
    let has_words = |p: &PathBuf| Gguf::open(p).unwrap().meta.get("tokenizer.ggml.tokens").is_some();
    let models = references().into_iter().map(|r| r.gguf).filter(has_words);
    let paths: Vec<PathBuf> = [demo].into_iter().chain(models).collect();
    let mut sessions: Vec<Session> = paths.iter().map(|p| Session::open(p, &o).unwrap()).collect();
    let tokenizers: Vec<Tokenizer> = sessions.iter().map(|s| Tokenizer::new(s.engine().gguf()).unwrap()).collect();
    let grammars: Vec<Grammars> = tokenizers.iter().map(|t| Grammars::new(t).unwrap()).collect();
    let mut forms: Vec<(Kind, Check)> = Vec::new();
    for schema in schemas() {
        let judge = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        let valid = move |t: &str| match serde_json::from_str(t) {
            Ok(v) => judge.is_valid(&v),
            Err(_) => is_deep_list(t),
        };
        forms.push((Kind::JsonSchema(schema), Box::new(valid)));
    }
    for regex in REGEXES {
        let whole = regex::Regex::new(&format!("^(?:{regex})$")).unwrap();
        forms.push((Kind::Regex((*regex).into()), Box::new(move |t: &str| whole.is_match(t))));
    }
    for (grammar, valid) in GRAMMARS {
        forms.push((Kind::grammar((*grammar).into()), Box::new(valid)));
    }
    for round in 0..ROUNDS {
        for (i, (kind, valid)) in forms.iter().enumerate() {
            // Another model for every form and round; the built-in one is the first, and comes more often.
            let m = [0, 1 + (i + round) % (sessions.len() - 1)][usize::from((i + round) % 3 > 0)];
            let seed = (round * forms.len() + i) as u64;
            let what = format!("{}, seed {seed}, {kind:?}", paths[m].display());
            let of = (seed, (i + round / 3) % SHAPES.len());
            let text = write(&mut sessions[m], &tokenizers[m], grammars[m].start(kind).unwrap(), of, &what);
            assert!(valid(&text), "{what}: {text:?}");
        }
    }
    assert!(ROUNDS * forms.len() >= 200, "{} texts", ROUNDS * forms.len());
}

#[test]
fn a_model_that_likes_blanks_comes_to_an_end() {
    let t = small();
    let grammars = Grammars::new(&t).unwrap();
    // A number's decimals have no end of their own, blanks or not.
    for schema in schemas().into_iter().filter(|s| s["type"] != "number") {
        let mut g = grammars.start(&Kind::JsonSchema(schema.clone())).unwrap();
        let mut text = Vec::new();
        while !g.is_done() {
            let mask = g.mask().unwrap();
            let allowed: Vec<u32> = (0..t.n_vocab() as u32).filter(|&id| has(mask, id) && !t.is_eog(id)).collect();
            let blank = |id: &&u32| t.bytes(**id, false).iter().all(u8::is_ascii_whitespace);
            let token = *allowed.iter().find(blank).unwrap_or_else(|| allowed.last().unwrap());
            g.accept(token).unwrap();
            text.extend(t.bytes(token, false));
            assert!(text.len() < 5000, "{schema}: {}", String::from_utf8_lossy(&text));
        }
    }
}
