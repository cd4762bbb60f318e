//! What is fuzzed: one function per kind of input that may come from a stranger.
//!
//! Each takes any bytes, panics where a promise is broken, and says whether the input was taken. `main.rs` calls them
//! with seeded inputs in every test run; the programs in fuzz/ call them for as long as one likes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use tandem::gguf::{Gguf, Writer};
use tandem::models::checkpoint::{self, Config};
use tandem::session::{self, Options, Session, Want};
use tandem::store;
use tandem::text::grammar::{Grammars, Kind};
use tandem::text::{Clock, HubTokenizer, Prompter, Template, Tokenizer};
use xxhash_rust::xxh3::xxh3_128;

/// What errors call the input.
const NAME: &str = "fuzz.input";
/// The most bytes of a text that is tried, and of an error. Longer texts find nothing that shorter ones do not.
const LONGEST: usize = 16 << 10;

/// A file of the repository; fuzz/ is a crate of its own inside it.
fn repository(file: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    [here.join(file), here.join("..").join(file)].into_iter().find(|p| p.exists()).expect("a file of the repository")
}

/// A model with a cache by position, a recurrent state and a vocabulary of single bytes and some words.
fn model() -> Gguf {
    Gguf::open(&repository("tests/data/models/qwen35.gguf")).expect("the reference model opens")
}

/// Holds an error to what every error promises: it is not empty, not endless, and names what it is about.
fn check(error: &anyhow::Error, names: &str) {
    let text = format!("{error:#}");
    assert!(!text.is_empty() && text.len() < LONGEST, "an error of {} bytes", text.len());
    assert!(text.contains(names), "an error that does not name {names}: {text}");
}

/// A text of a length that is tried.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok().filter(|text| text.len() <= LONGEST)
}

/// A model file: the header, every tensor's bytes, the tape that its family makes of it, its tokenizer.
pub(crate) fn gguf(data: &[u8]) -> bool {
    let gguf = match Gguf::from_bytes(data.to_vec(), Path::new(NAME)) {
        Ok(gguf) => gguf,
        Err(e) => {
            check(&e, NAME);
            return false;
        }
    };
    assert!(gguf.tensors.iter().all(|t| gguf.data(t).len() == t.bytes && gguf.tensor(&t.name).is_some()));
    let tape = session::tape(&gguf, &Options::default());
    let tokenizer = Tokenizer::new(&gguf);
    tape.as_ref().err().into_iter().chain(tokenizer.as_ref().err()).for_each(|e| check(e, NAME));
    tape.is_ok()
}

/// A saved session: as it is, and again with the lengths and sums that it ought to have, which no fuzzer would guess.
pub(crate) fn session(data: &[u8]) -> bool {
    static SESSION: LazyLock<Mutex<Session>> = LazyLock::new(|| {
        let o = Options { n_ctx: Some(64), n_batch: 16, threads: 1, ..Options::default() };
        Mutex::new(Session::new(model(), &o).expect("the reference model runs"))
    });
    let mut session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    let mut load = |bytes: &[u8]| {
        let mut file = tempfile::Builder::new().prefix(NAME).tempfile().expect("a place for a file");
        file.write_all(bytes).expect("room for a file");
        session.clear(0);
        session.feed(0, &[1, 2], Want::None).expect("two tokens are read");
        let peeked = store::peek(file.path()).inspect_err(|e| check(e, NAME));
        match store::load(file.path(), &mut session, 0) {
            Ok(note) => {
                let head = peeked.expect("what loads has a head");
                assert!(head.note == note && head.tokens == session.tokens(0));
                go_on(&mut session);
                true
            }
            Err(e) => {
                check(&e, NAME);
                assert_eq!(session.tokens(0), [1, 2], "a file that is refused leaves the sequence as it was");
                false
            }
        }
    };
    let as_it_is = load(data);
    as_it_is | sealed(data).is_some_and(|file| load(&file))
}

/// Uses what was loaded: goes back, and reads on if there is room.
fn go_on(session: &mut Session) {
    let n = session.tokens(0).len();
    session.rewind(0, n / 2).inspect_err(|e| check(e, "")).ok();
    session.feed(0, &[3], Want::Last).inspect_err(|e| check(e, "")).ok();
}

/// A session file with right lengths and sums, if it has a beginning.
fn sealed(data: &[u8]) -> Option<Vec<u8>> {
    const FIXED: usize = 28;
    const SUM: usize = 16;
    let rest = data.get(FIXED..)?;
    let head = u64::from_le_bytes(data[12..20].try_into().ok()?).min(rest.len() as u64) as usize;
    let states = rest.get(head + SUM..).unwrap_or_default();
    let states = &states[..states.len().saturating_sub(SUM)];
    let mut file = data[..12].to_vec();
    file.extend((head as u64).to_le_bytes());
    file.extend((states.len() as u64).to_le_bytes());
    file.extend(&rest[..head]);
    file.extend(xxh3_128(&file).to_le_bytes());
    file.extend(states);
    file.extend(xxh3_128(&file).to_le_bytes());
    Some(file)
}

/// A saved session of the model that [`session`] opens, for a start.
pub(crate) fn saved_session() -> Vec<u8> {
    let o = Options { n_ctx: Some(64), n_batch: 16, threads: 1, ..Options::default() };
    let mut session = Session::new(model(), &o).expect("the reference model runs");
    session.feed(0, &[5, 6, 7, 8, 9], Want::None).expect("five tokens are read");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("saved");
    store::save(&path, &session, 0, "[\"a note\"]").expect("it is saved");
    std::fs::read(path).expect("it was saved")
}

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::new(&model()).expect("it has a vocabulary"));

/// A chat template, and a conversation that it renders, as text and as the prompt of a model.
pub(crate) fn template(data: &[u8]) -> bool {
    let Some(source) = text(data) else { return false };
    let variables = serde_json::json!({
        "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "Hello, <b>you</b> ü" },
            { "role": "assistant", "content": null, "tool_calls": [{ "function": { "name": "f", "arguments": { "x": 1.5 } } }] },
            { "role": "tool", "content": "[1, 2]" },
        ],
        "tools": [{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }],
        "add_generation_prompt": true,
        "bos_token": "<s>",
        "eos_token": "</s>",
    });
    let noon: Clock = "2025-03-14 12:00".parse().expect("a time");
    let prompt = Template::new(source, NAME).and_then(|t| Prompter::new(t, &TOKENIZER)?.prompt(&variables, noon));
    let _ = prompt.inspect_err(|e| check(e, NAME)).map(|p| TOKENIZER.encode_prompt(&p).expect("every byte is a token"));
    let rendered = Template::new(source, NAME).and_then(|t| t.render(&variables, noon));
    rendered.inspect_err(|e| check(e, NAME)).is_ok()
}

/// A grammar in llama.cpp's notation, and the first tokens of a text in it.
pub(crate) fn gbnf(data: &[u8]) -> bool {
    text(data).is_some_and(|text| written(&Kind::Gbnf(text.to_owned()), "grammar"))
}

/// A JSON schema, and the first tokens of a document that it accepts.
pub(crate) fn schema(data: &[u8]) -> bool {
    let schema = text(data).and_then(|text| serde_json::from_str(text).ok());
    schema.is_some_and(|schema| written(&Kind::JsonSchema(schema), "schema"))
}

/// Begins a text of this kind and goes on with some of the tokens that may come.
fn written(kind: &Kind, names: &str) -> bool {
    static GRAMMARS: LazyLock<Grammars<'static>> = LazyLock::new(|| Grammars::new(&TOKENIZER).expect("it is laid out"));
    let mut grammar = match GRAMMARS.start(kind) {
        Ok(grammar) => grammar,
        Err(e) => {
            check(&e, names);
            return false;
        }
    };
    for step in 0..8 {
        let mask = match grammar.mask() {
            Ok(mask) => mask,
            Err(e) => {
                check(&e, "grammar");
                return false;
            }
        };
        let allowed: Vec<u32> =
            (0..TOKENIZER.n_vocab() as u32).filter(|t| mask[*t as usize / 32] >> (t % 32) & 1 == 1).collect();
        assert!(!allowed.is_empty(), "a mask allows something");
        if grammar.is_done() {
            break;
        }
        let token = allowed[step * 7 % allowed.len()];
        if TOKENIZER.is_eog(token) {
            break;
        }
        if let Err(e) = grammar.accept(token) {
            // What a mask allows is accepted, unless it has too many ways to go on.
            check(&e, "too many ways to go on");
            return false;
        }
    }
    true
}

/// A line of `tandem batch`.
pub(crate) fn batch(data: &[u8]) -> bool {
    let Some(line) = text(data) else { return false };
    match tandem::cli::check_request(line) {
        Ok(()) => true,
        Err(e) => {
            check(&e, "");
            false
        }
    }
}

/// A checkpoint's config.json, and what a family makes of it.
pub(crate) fn config(data: &[u8]) -> bool {
    let Some(text) = text(data) else { return false };
    let recipe = Config::parse(Path::new(NAME), text).and_then(|config| checkpoint::recipe(&config));
    recipe.inspect_err(|e| check(e, NAME)).is_ok()
}

/// A checkpoint's tokenizer.json, for a model of 300 tokens.
pub(crate) fn tokenizer_json(data: &[u8]) -> bool {
    let Some(text) = text(data) else { return false };
    let keys = HubTokenizer::new(Path::new(NAME), text).and_then(|t| t.keys(300, Vec::new()));
    keys.inspect_err(|e| check(e, NAME)).is_ok()
}

/// A model file that is all header, for a start: small enough for a fuzzer to change all of it.
pub(crate) fn small_gguf() -> Vec<u8> {
    let mut w = Writer::new();
    w.set("general.architecture", "qwen3moe");
    w.set("qwen3moe.block_count", 1u32);
    w.set("qwen3moe.embedding_length", 32u32);
    w.set("qwen3moe.rope.freq_base", 10000.0f32);
    let zeros = |out: &mut dyn Write| out.write_all(&[0; 256 * 32 * 4]);
    let ty = tandem::gguf::TensorType::by_id(0).expect("F32");
    w.add_tensor("token_embd.weight", &[256, 32], ty, zeros).expect("a tensor");
    w.to_bytes().expect("a file")
}
