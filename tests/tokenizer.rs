//! Token numbers are the reference's, text comes back as it went in, and text never turns into structure.

mod common;

use common::{find, ids, json as read_json, local, whole};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tandem::gguf::{Gguf, Value, Writer};
use tandem::text::{Clock, Prompt, Prompter, Template, Tokenizer};

fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::new(&Gguf::open(path).unwrap()).unwrap()
}

fn small() -> Tokenizer {
    tokenizer(&local().join("models/qwen3moe.gguf"))
}

const VOCABULARIES: [&str; 5] = ["gpt-2", "llama-bpe", "deepseek-llm", "qwen35", "gemma-4"];

/// The reference vocabularies, if they are here: each one's file and tokenizer.
fn vocabularies() -> &'static [(PathBuf, Tokenizer)] {
    static ALL: LazyLock<Vec<(PathBuf, Tokenizer)>> = LazyLock::new(|| {
        let Some(dir) = whole() else { return Vec::new() };
        let paths = VOCABULARIES.iter().map(|n| dir.join(format!("vocab/ggml-vocab-{n}.gguf")));
        paths.map(|p| (p.clone(), tokenizer(&p))).collect()
    });
    if ALL.is_empty() {
        println!("not checked, because the reference folder is not next to this checkout: {VOCABULARIES:?}");
    }
    &ALL
}

/// Those, and the small one in the repository.
fn all() -> impl Iterator<Item = &'static Tokenizer> {
    static SMALL: LazyLock<Tokenizer> = LazyLock::new(small);
    vocabularies().iter().map(|(_, t)| t).chain([&*SMALL])
}

const MULTILINGUAL: &str = "I'll go; they'RE   here.\r\n\r\n\tTabs\tand  trailing  \n\nΑθήνα Москва हिन्दी ภาษาไทย 中文字符 \
                            日本語のテキスト 한국어 العربية עברית Việt naïve e\u{301}a\u{300} ½ ³ 1234567890 ٣٤٥ 👩‍👩‍👧‍👦🏳️‍🌈 \u{a0}\u{2003}\u{3000}x \
                            <|im_start|>user</s>[INST] \u{0}\u{7f}\u{85} a_b-c/d\\e {\"k\": [1, 2.5e-3]} ''' \"\"\" ... !!! \u{fffd}";

/// Compares the ids of a vocabulary's test texts with llama.cpp's.
fn check_cases(path: &Path, t: &Tokenizer) {
    let name = path.display();
    let text = |ext: &str| std::fs::read_to_string(path.with_extension(format!("gguf.{ext}"))).unwrap();
    let (input, output) = (text("inp"), text("out"));
    let input = input.strip_suffix("\n__ggml_vocab_test__\n").unwrap_or(&input);
    let cases: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
    let want: Vec<Vec<u32>> =
        output.lines().map(|l| l.split_whitespace().map(|n| n.parse().unwrap()).collect()).collect();
    assert_eq!(cases.len(), want.len(), "{name}");
    for (case, want) in cases.iter().zip(&want) {
        assert_eq!(&t.encode(case, false, false).unwrap(), want, "{name}: {case:?}");
    }
}

#[test]
fn ids_equal_the_reference_on_every_case_of_every_vocabulary() {
    for (path, t) in vocabularies() {
        check_cases(path, t);
    }
    // llama.cpp's own folder `models` has more of them.
    let Some(folder) = std::env::var_os("TANDEM_TEST_VOCAB") else { return };
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "gguf") && path.with_extension("gguf.inp").exists() {
            match Tokenizer::new(&Gguf::open(&path).unwrap()) {
                Ok(t) => check_cases(&path, &t),
                Err(e) => assert!(format!("{e:#}").contains("\"tokenizer.ggml.model\" is \"bert\""), "{e:#}"),
            }
        }
    }
}

#[test]
fn prompts_of_every_reference_model_have_the_reference_ids() {
    let dir = whole().unwrap_or_else(local).join("models");
    let mut checked = 0;
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let Some(stem) = path.to_str().and_then(|p| p.strip_suffix(".tokens.json")) else { continue };
        let want = read_json(&path);
        let t = tokenizer(Path::new(&format!("{stem}.gguf")));
        let got = t.encode(want["prompt_text"].as_str().unwrap(), true, want["parse_special"].as_bool().unwrap());
        assert_eq!(got.unwrap(), ids(&want["prompt_ids"]), "{stem}");
        assert_eq!(t.adds_bos(), want["add_bos"].as_bool().unwrap(), "{stem}");
        checked += 1;
    }
    assert!(checked > 0);
}

#[test]
fn rendered_conversations_have_the_reference_ids() {
    for name in ["qwen3moe", "gpt-oss"] {
        let Some(path) = find(&format!("models/{name}.chat.json")) else {
            println!("not checked, because the reference folder is not next to this checkout: {name}.chat.json");
            continue;
        };
        let chat = read_json(&path);
        let t = tokenizer(&path.with_file_name(format!("{name}.gguf")));
        let got = t.encode(chat["rendered"].as_str().unwrap(), true, true).unwrap();
        assert_eq!(got, ids(&chat["ids_add_special_parse_special"]), "{name}");
    }
}

#[test]
fn text_comes_back_as_it_went_in() {
    for t in all() {
        let got = t.decode(&t.encode(MULTILINGUAL, false, false).unwrap(), false);
        assert_eq!(got, MULTILINGUAL, "{t:?}");
    }
}

#[test]
fn a_stream_gives_whole_characters_and_the_same_text() {
    for t in all() {
        let ids = t.encode(MULTILINGUAL, false, false).unwrap();
        let (mut stream, mut text) = (t.stream(), String::new());
        for &id in &ids {
            let new = stream.push(id);
            assert!(!new.contains('\u{fffd}') || MULTILINGUAL[text.len()..].starts_with(&new), "{t:?}: {new:?}");
            text += &new;
        }
        assert_eq!(text + &stream.finish(), MULTILINGUAL, "{t:?}");
    }
}

#[test]
fn bytes_that_never_become_a_character_do_not_hold_a_stream_up() {
    let t = small();
    let byte = |b: char| t.encode(&b.to_string(), false, false).unwrap();
    let e_acute = byte('é'); // two byte tokens: C3 A9
    let mut stream = t.stream();
    assert_eq!(stream.push(e_acute[1]), "\u{fffd}");
    assert_eq!(stream.push(e_acute[0]), "");
    assert_eq!(stream.push(byte('x')[0]), "\u{fffd}x");
    assert_eq!(stream.push(e_acute[0]), "");
    assert_eq!(stream.finish(), "\u{fffd}");
    let odd = [e_acute[1], e_acute[0], byte('x')[0], e_acute[0]];
    assert_eq!(t.decode(&odd, false), "\u{fffd}\u{fffd}x\u{fffd}");
}

#[test]
fn a_control_token_typed_by_a_user_stays_text() {
    for t in all() {
        let controls: Vec<u32> = (0..t.n_vocab() as u32).filter(|&id| t.is_control(id)).collect();
        assert!(!controls.is_empty(), "{t:?}");
        for &id in &controls {
            let piece = t.piece(id);
            for text in [piece.to_owned(), format!("a{piece} b"), format!("{piece}{piece}")] {
                let got = t.encode(&text, false, false).unwrap();
                assert!(!got.iter().any(|&g| t.is_control(g)), "{t:?}: {text:?} gave {got:?}");
                assert_eq!(t.decode(&got, false), text, "{t:?}");
            }
            assert_eq!(t.encode(piece, false, true).unwrap(), [id], "{t:?}: {piece:?}");
            assert_eq!(t.decode(&[id], true), piece);
        }
    }
}

#[test]
fn every_token_that_ends_a_turn_is_known() {
    let t = small();
    assert_eq!(t.bos(), Some(375));
    assert_eq!(t.eos(), Some(376));
    let ends: Vec<&str> = t.eog().iter().map(|&id| t.piece(id)).collect();
    assert_eq!(ends, ["<|eos|>", "<|im_end|>"]);
    assert!(t.is_eog(379) && !t.is_eog(378));
    // As the reference prints them.
    let want: [&[u32]; 5] = [&[50256], &[128001, 128009], &[100001], &[128247, 151643, 151645], &[1, 50, 106]];
    for ((path, t), want) in vocabularies().iter().zip(want) {
        assert_eq!(t.eog(), want, "{}", path.display());
    }
}

/// A small vocabulary of the given tokens and kinds.
fn made(model: &str, tokens: &[(&str, i32)], more: &[(&str, Value)]) -> anyhow::Result<Tokenizer> {
    let mut w = Writer::new();
    w.set("general.architecture", "test");
    w.set("tokenizer.ggml.model", model);
    w.set("tokenizer.ggml.tokens", tokens.iter().map(|t| t.0.to_owned()).collect::<Vec<String>>());
    w.set("tokenizer.ggml.token_type", tokens.iter().map(|t| t.1).collect::<Vec<i32>>());
    for (key, value) in more {
        w.set(key, value.clone());
    }
    Tokenizer::new(&Gguf::from_bytes(w.to_bytes()?, Path::new("made.gguf"))?)
}

fn error(model: &str, tokens: &[(&str, i32)], more: &[(&str, Value)]) -> String {
    format!("{:#}", made(model, tokens, more).unwrap_err())
}

fn list(lines: &[&str]) -> Value {
    lines.iter().map(|s| s.to_string()).collect::<Vec<String>>().into()
}

#[test]
fn an_unknown_pre_tokenizer_is_named_and_never_guessed() {
    let tokens = [("a", 1), ("b", 1), ("ab", 1)];
    let merges = ("tokenizer.ggml.merges", list(&["a b"]));
    let e = error("gpt2", &tokens, &[merges.clone(), ("tokenizer.ggml.pre", "gpt-9".into())]);
    assert!(e.contains("made.gguf") && e.contains("tokenizer.ggml.pre") && e.contains("gpt-9"), "{e}");
    assert!(e.contains("llama-bpe"), "{e}");
    let e = error("gpt2", &tokens, &[merges]);
    assert!(e.contains("tokenizer.ggml.pre") && e.contains("missing"), "{e}");
    let e = error("t5", &tokens, &[]);
    assert!(e.contains("tokenizer.ggml.model") && e.contains("t5") && e.contains("gpt2"), "{e}");
}

#[test]
fn a_tokenizer_that_no_family_here_uses_is_refused_by_its_key() {
    for model in ["bert", "t5", "rwkv", "plamo2", "hybriddna", "whitespace", "none", "no_vocab"] {
        let e = error(model, &[("a", 1)], &[]);
        assert!(e.contains("made.gguf") && e.contains(&format!("\"tokenizer.ggml.model\" is {model:?}")), "{e}");
    }
}

/// Every name of llama.cpp b11434, with what `llama_vocab::impl::load` sets for it: whether merges are ignored where a
/// word is a token, whether texts begin with the begin token, whether tokens are bytes.
const NAMES: &[(&str, bool, bool, bool)] = &[
    ("a.x-4.0", false, false, true),
    ("afmoe", false, false, true),
    ("bailingmoe", false, false, true),
    ("bailingmoe2", false, false, true),
    ("bloom", false, false, true),
    ("chameleon", false, true, true),
    ("chatglm-bpe", false, false, true),
    ("codeshell", false, false, true),
    ("cohere2moe", false, false, true),
    ("command-r", false, false, true),
    ("dbrx", false, false, true),
    ("deepseek-coder", false, false, true),
    ("deepseek-llm", false, false, true),
    ("deepseek-r1-qwen", false, false, true),
    ("deepseek-v3", false, false, true),
    ("default", false, false, true),
    ("exaone", false, false, true),
    ("exaone-moe", false, false, true),
    ("exaone4", false, false, true),
    ("f2llmv2", false, false, true),
    ("falcon", false, false, true),
    ("falcon-h1", true, true, true),
    ("falcon3", true, true, true),
    ("gemma4", false, true, false),
    ("gigachat", false, false, true),
    ("glm4", true, false, true),
    ("glm5", true, false, true),
    ("gpt-2", false, false, true),
    ("gpt-4o", false, false, true),
    ("gpt3-finnish", false, false, true),
    ("granite-docling", false, false, true),
    ("granite-embed-multi-311m", false, true, false),
    ("granite-embed-multi-97m", true, false, true),
    ("grok-2", false, false, true),
    ("hunyuan", false, false, true),
    ("hunyuan-dense", false, false, true),
    ("hy_v4", false, false, true),
    ("jais", false, false, true),
    ("jais-2", false, false, true),
    ("jina-de", false, false, true),
    ("jina-es", false, false, true),
    ("jina-v1-en", false, false, true),
    ("jina-v2-code", false, false, true),
    ("jina-v2-de", false, false, true),
    ("jina-v2-es", false, false, true),
    ("jina-v5-nano", true, true, true),
    ("joyai-llm", false, false, true),
    ("kanana2", false, false, true),
    ("kimi-k2", false, false, true),
    ("kormo", false, false, true),
    ("laguna", false, false, true),
    ("lfm2", true, true, true),
    ("llada-moe", false, false, true),
    ("llama-bpe", true, true, true),
    ("llama-v3", true, true, true),
    ("llama3", true, true, true),
    ("llama4", false, false, true),
    ("megrez", false, false, true),
    ("mellum", false, false, true),
    ("mellum2", false, false, true),
    ("midm-2.0", true, true, true),
    ("minerva-7b", false, false, true),
    ("minicpm5", true, false, true),
    ("minimax-m2", false, false, true),
    ("mmbert", false, false, false),
    ("modern-bert", false, false, true),
    ("mpt", false, false, true),
    ("olmo", false, false, true),
    ("phi-2", false, false, true),
    ("pixtral", true, true, true),
    ("poro-chat", false, false, true),
    ("qwen2", false, false, true),
    ("qwen35", false, false, true),
    ("refact", false, false, true),
    ("roberta-bpe", false, false, true),
    ("sarvam-moe", false, false, false),
    ("seed-coder", false, false, true),
    ("smaug-bpe", false, false, true),
    ("smollm", false, false, true),
    ("solar-open", false, false, true),
    ("spark2_5", false, false, true),
    ("stablelm2", false, false, true),
    ("starcoder", false, false, true),
    ("superbpe", false, false, true),
    ("talkie", false, false, true),
    ("tekken", true, true, true),
    ("tiny_aya", false, false, true),
    ("trillion", false, false, true),
    ("ufakzeka", false, false, true),
    ("viking", false, false, true),
    ("whitespace", false, false, false),
    ("youtu", true, false, true),
];

#[test]
fn every_name_of_llama_cpp_is_known_with_its_rules() {
    let letters = ["a", "b", "ab", "▁", "Ġ", "▁a", "b▁"];
    let mut tokens: Vec<(String, i32)> = letters.iter().map(|l| (l.to_string(), 1)).collect();
    tokens.push(("<s>".into(), 3));
    tokens.extend((0..=255).map(|b| (format!("<0x{b:02X}>"), 6)));
    let tokens: Vec<(&str, i32)> = tokens.iter().map(|(t, k)| (t.as_str(), *k)).collect();
    for &(name, ignore_merges, add_bos, bytes) in NAMES {
        let more = [
            ("tokenizer.ggml.pre", Value::from(name)),
            ("tokenizer.ggml.merges", list(&[])),
            ("tokenizer.ggml.bos_token_id", 7u32.into()),
        ];
        let t = made("gpt2", &tokens, &more).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(t.adds_bos(), add_bos, "{name}");
        if !matches!(name, "mmbert" | "kimi-k2") {
            let joined: &[u32] = if ignore_merges { &[2] } else { &[0, 1] };
            assert_eq!(t.encode("ab", false, false).unwrap(), joined, "{name}");
        }
        if name != "whitespace" && name != "mmbert" {
            let space = if bytes { 4 } else { 3 };
            assert!(t.encode("a b", false, false).unwrap().contains(&space), "{name}");
        }
        assert_eq!(t.decode(&[4], false), if bytes { " " } else { "Ġ" }, "{name}");
    }
}

#[test]
fn a_space_begins_each_word_or_none_has_any_where_the_model_has_it_so() {
    let tokens = [("a", 1), ("b", 1), ("▁", 1), ("▁a", 1), ("ab", 1), ("\n", 1), ("\n\n", 1)];
    let merges = |lines: &[&str]| ("tokenizer.ggml.merges", list(lines));
    let ids = |name: &str, text: &str| {
        let more = [("tokenizer.ggml.pre", Value::from(name)), merges(&["▁ a", "a b"])];
        made("gpt2", &tokens, &more).unwrap().encode(text, false, false).unwrap()
    };
    assert_eq!(ids("mmbert", "ab a"), [3, 1, 3], "▁ab, ▁a");
    assert_eq!(ids("mmbert", "  a\n\nb"), [2, 3, 6, 2, 1]);
    assert_eq!(ids("whitespace", " ab  a\nb"), [4, 0, 1]);
    assert_eq!(ids("sarvam-moe", "ab a"), [4, 3]);
}

#[test]
fn lists_that_contradict_each_other_are_named() {
    let tokens = [("a", 1), ("b", 1), ("ab", 1)];
    let pre = ("tokenizer.ggml.pre", Value::from("gpt-2"));
    let merges = |lines: &[&str]| ("tokenizer.ggml.merges", list(lines));
    for (tokens, more, said) in [
        (&tokens[..], vec![pre.clone()], "tokenizer.ggml.merges"),
        (&tokens, vec![pre.clone(), merges(&["a b", "a c"])], "element 1 is \"a c\""),
        (&tokens, vec![pre.clone(), merges(&["b a"])], "no token \"ba\""),
        (&tokens, vec![pre.clone(), merges(&["ab"])], "element 0 is \"ab\""),
        (&[("a", 1), ("a", 1)], vec![pre.clone(), merges(&[])], "tokens 0 and 1 are both \"a\""),
        (&[("a", 1), ("b", 9)], vec![pre.clone(), merges(&[])], "element 1 is 9"),
        (
            &tokens,
            vec![pre.clone(), merges(&["a b"]), ("tokenizer.ggml.token_type", vec![1i32; 2].into())],
            "tokenizer.ggml.token_type\" has 2 elements",
        ),
        (
            &tokens,
            vec![pre.clone(), merges(&["a b"]), ("tokenizer.ggml.eos_token_id", 3u32.into())],
            "tokenizer.ggml.eos_token_id\" is 3",
        ),
        (
            &tokens,
            vec![pre.clone(), merges(&["a b"]), ("tokenizer.ggml.add_bos_token", true.into())],
            "tokenizer.ggml.bos_token_id\" is missing",
        ),
    ] {
        let e = error("gpt2", tokens, &more);
        assert!(e.contains("made.gguf") && e.contains(said), "{e}");
    }
    let e = error("llama", &tokens, &[("tokenizer.ggml.scores", vec![0f32; 2].into())]);
    assert!(e.contains("tokenizer.ggml.scores"), "{e}");
}

#[test]
fn a_byte_without_a_token_is_an_error_and_not_left_out() {
    let more = [("tokenizer.ggml.pre", "gpt-2".into()), ("tokenizer.ggml.merges", list(&["a b"]))];
    let t = made("gpt2", &[("a", 1), ("b", 1), ("ab", 1)], &more).unwrap();
    assert_eq!(t.encode("abba", false, false).unwrap(), [2, 1, 0]);
    let e = format!("{:#}", t.encode("abc", false, false).unwrap_err());
    assert!(e.contains("made.gguf") && e.contains("abc"), "{e}");
}

#[test]
fn a_message_that_is_not_the_last_does_not_end_a_generation() {
    let more = [("tokenizer.ggml.pre", "gpt-4o".into()), ("tokenizer.ggml.merges", list(&[]))];
    let control = |texts: &[&'static str]| texts.iter().map(|t| (*t, 3)).collect::<Vec<_>>();
    let harmony = control(&["<|return|>", "<|call|>", "<|end|>", "<|channel|>", "<|message|>", "<|start|>"]);
    let t = made("gpt2", &harmony, &more).unwrap();
    assert_eq!(t.eog(), [0, 1], "a message's end is no end where calls and returns are");
    assert_eq!(t.decode(&[0, 1, 2, 3, 4, 5], false), "<|end|><|channel|><|message|><|start|>");
    let t = made("gpt2", &control(&["<|end|>", "<|im_start|>", "</s>"]), &more).unwrap();
    assert_eq!(t.eog(), [0, 2]);
    let t = made("gpt2", &[("<|tool_response>", 4), ("</s>", 1), ("<turn|>", 3)], &more).unwrap();
    assert_eq!(t.eog(), [0, 2], "where tools answer, </s> is HTML");
    let t = made("gpt2", &[("<|im_end|>", 1), ("[PAD]", 1), ("x", 1)], &more).unwrap();
    assert_eq!(t.eog(), [0, 1]);
    assert!(t.is_control(0) && t.is_control(1) && !t.is_control(2), "whatever kind the file says they are");
    assert_eq!(t.encode("x", false, false).unwrap(), [2]);
    assert!(t.encode("<|im_end|>", false, false).is_err(), "it has no letters to spell it with");
}

#[test]
fn the_begin_and_end_tokens_come_when_the_file_asks_for_them() {
    let tokens = [("a", 1), ("b", 1), ("ab", 1), ("<go>", 3), ("<stop>", 3)];
    let with = |pre: &str, more: &[(&'static str, Value)]| {
        let base = [
            ("tokenizer.ggml.pre", pre.into()),
            ("tokenizer.ggml.merges", list(&["a b"])),
            ("tokenizer.ggml.bos_token_id", 3u32.into()),
            ("tokenizer.ggml.eos_token_id", 4u32.into()),
        ];
        let t = made("gpt2", &tokens, &[&base[..], more].concat()).unwrap();
        assert_eq!(t.encode("ab", false, false).unwrap(), [2]);
        t.encode("ab", true, false).unwrap()
    };
    let flag = |key: &'static str, on: bool| (key, Value::from(on));
    let (bos, eos) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token");
    assert_eq!(with("gpt-2", &[]), [2]);
    assert_eq!(with("gpt-2", &[flag(bos, true), flag(eos, true)]), [3, 2, 4]);
    assert_eq!(with("llama-bpe", &[]), [3, 2], "this family has it unless the file says no");
    assert_eq!(with("llama-bpe", &[flag(bos, false)]), [2]);
}

#[test]
fn longer_user_tokens_are_found_before_shorter_ones() {
    let tokens = [("a", 1), ("b", 1), ("c", 1), ("ab", 4), ("bca", 4), ("aa", 4)];
    let more = [("tokenizer.ggml.pre", "gpt-2".into()), ("tokenizer.ggml.merges", list(&[]))];
    let t = made("gpt2", &tokens, &more).unwrap();
    assert_eq!(t.encode("abcab", false, false).unwrap(), [0, 4, 1]);
    assert_eq!(t.encode("aaab", false, false).unwrap(), [5, 3]);
    assert_eq!(t.encode("cab", false, false).unwrap(), [2, 3]);
}

#[test]
fn a_vocabulary_in_the_order_of_joining_needs_no_merges() {
    let pre = ("tokenizer.ggml.pre", Value::from("kimi-k2"));
    let tokens = [("a", 1), ("b", 1), ("c", 1), ("bc", 1), ("ab", 1), ("abc", 1), ("<go>", 3)];
    let t = made("gpt2", &tokens, std::slice::from_ref(&pre)).unwrap();
    assert_eq!(t.encode("abc", false, false).unwrap(), [5]);
    assert_eq!(t.encode("abab", false, false).unwrap(), [4, 4]);
    assert_eq!(t.encode("aabcb", false, false).unwrap(), [0, 5, 1]);

    let Some((path, _)) = vocabularies().iter().find(|(p, _)| p.to_str().unwrap().contains("llama-bpe")) else {
        return;
    };
    let file = Gguf::open(path).unwrap();
    let remade = |merges: bool| {
        let mut w = Writer::new();
        for (key, value) in file.meta.iter().filter(|(k, _)| merges || *k != "tokenizer.ggml.merges") {
            w.set(key, if key == "tokenizer.ggml.pre" { pre.1.clone() } else { value.clone() });
        }
        Tokenizer::new(&Gguf::from_bytes(w.to_bytes().unwrap(), Path::new("remade.gguf")).unwrap()).unwrap()
    };
    let text = format!("{MULTILINGUAL} {}", std::fs::read_to_string(file!()).unwrap());
    let ids = remade(false).encode(&text, false, false).unwrap();
    assert_eq!(ids, remade(true).encode(&text, false, false).unwrap());
}

#[test]
fn sentencepiece_joins_the_best_score_first_and_falls_back_to_bytes() {
    let mut tokens: Vec<(String, i32)> = vec![("<unk>".into(), 2), ("<s>".into(), 3), ("</s>".into(), 3)];
    tokens.extend((0..=255).map(|b| (format!("<0x{b:02X}>"), 6)));
    let words = ["▁", "a", "b", "c", "s", "<", ">", "ab", "bc", "▁a", "aa", "s>", "/"];
    tokens.extend(words.iter().map(|w| (w.to_string(), 1)));
    let tokens: Vec<(&str, i32)> = tokens.iter().map(|(t, k)| (t.as_str(), *k)).collect();
    let id = |t: &str| tokens.iter().position(|x| x.0 == t).unwrap() as u32;
    let scores: Vec<f32> = tokens.iter().map(|(t, _)| if *t == "bc" { -1.0 } else { -2.0 }).collect();
    let keys = [
        ("tokenizer.ggml.scores", Value::from(scores)),
        ("tokenizer.ggml.bos_token_id", 1u32.into()),
        ("tokenizer.ggml.eos_token_id", 2u32.into()),
    ];
    let t = made("llama", &tokens, &keys).unwrap();
    let ids = |names: &[&str]| names.iter().map(|n| id(n)).collect::<Vec<_>>();
    let plain = |text: &str| t.encode(text, false, false).unwrap();
    assert_eq!(plain("abc"), ids(&["▁a", "bc"]));
    assert_eq!(plain("aaa"), ids(&["▁a", "aa"]), "of equals the leftmost");
    assert_eq!(plain("é\n"), ids(&["▁", "<0xC3>", "<0xA9>", "<0x0A>"]));
    assert_eq!(plain("<s>"), ids(&["▁", "<", "s>"]), "a control token cannot be spelt");
    assert_eq!(t.encode("a<s>a", true, true).unwrap(), ids(&["<s>", "▁a", "<s>", "▁a"]));
    assert_eq!(plain(""), [0u32; 0]);
    assert_eq!(t.decode(&plain("a b é"), false), " a b é", "the space before the text is the vocabulary's");
    assert_eq!(t.eog(), [2]);
    let no_prefix = [&keys[..], &[("tokenizer.ggml.add_space_prefix", false.into())]].concat();
    assert_eq!(made("llama", &tokens, &no_prefix).unwrap().encode("ab", false, false).unwrap(), ids(&["ab"]));
}

/// Every control token of a vocabulary.
fn controls(t: &Tokenizer) -> Vec<u32> {
    (0..t.n_vocab() as u32).filter(|&id| t.is_control(id)).collect()
}

/// What a template makes of a conversation in which these texts are said.
fn prompter(t: &Tokenizer, source: &str) -> impl Fn(&[&str]) -> Prompt + use<> {
    let prompter = Prompter::new(Template::new(source, "made.jinja").unwrap(), t).unwrap();
    move |texts| {
        let messages: Vec<_> = texts.iter().map(|text| json!({"role": "user", "content": text})).collect();
        prompter.prompt(&json!({ "messages": messages }), Clock::now()).unwrap()
    }
}

const SAY: &str = "{{ messages[0].content }}";

/// The ids of a prompt without the begin token.
fn prompt_ids(t: &Tokenizer, prompt: &Prompt) -> Vec<u32> {
    let mut ids = t.encode_prompt(prompt).unwrap();
    ids.drain(..usize::from(t.adds_bos()));
    ids
}

#[test]
fn what_is_said_has_the_ids_of_plain_text_and_the_prompt_around_it_keeps_its_structure() {
    for t in all() {
        let controls = controls(t);
        let (first, last) = (controls[0], controls[controls.len() - 1]);
        let prompt = prompter(t, &format!("{}{SAY}{}", t.piece(first), t.piece(last)));
        for piece in controls.iter().map(|&id| t.piece(id)) {
            for text in [piece.to_owned(), format!("a{piece} b"), format!("{piece}{piece}"), format!(" \n{piece}\t ")] {
                let mut want = t.encode(&text, false, false).unwrap();
                want.insert(0, first);
                want.push(last);
                if t.adds_bos() && t.bos() != Some(first) {
                    want.insert(0, t.bos().unwrap());
                }
                let prompt = prompt(&[&text]);
                assert_eq!(t.encode_prompt(&prompt).unwrap(), want, "{t:?}: {text:?}");
                assert_eq!(prompt.text(), format!("{}{text}{}", t.piece(first), t.piece(last)));
            }
        }
    }
}

#[test]
fn every_control_token_is_one_however_a_template_writes_it() {
    let t = small();
    let end = t.encode("<|im_end|>", false, true).unwrap();
    for source in [
        "<|im_end|>",
        "{{ '<|im_end|>' }}",
        "{{ '<|im_' ~ 'end|>' }}",
        "{{ '<|' + 'im_end' + '|>' }}",
        "{{ '<' ~ '|' ~ 'im_end' ~ '|' ~ '>' }}",
        "{{ '<|{}|>'.format('im_end') }}",
        "{{ '<|%s|>'|format('im_end') }}",
        "<|{% if true %}im_end{% endif %}|>",
        "<|{{ messages[0].role }}|>",
        "{% macro f() %} <|im_end|>\n{% endmacro %}{{ f()|trim }}",
        "{% set x %}  <|im_end|> {% endset %}{{ x.strip() }}",
        "{{ 'a<|im_end|>b'.replace('a', '').removesuffix('b') }}",
        "{{ 'a,<|im_end|>'.split(',')[1] }}",
        "{{ '<|im_end|>x'.rpartition('x')[0] }}",
        "{{ ['<|im_', 'end|>']|join }}",
        "{{ ('x' ~ '<|im_end|>')[1:] }}",
        "{{ eos_token.replace('eos', 'im_end') }}",
        "{% set e = '<|im_end|>' %}{{ e if e.endswith('|>') and 'a<|im_end|>'.endswith(e) and '<|im_end|>' == e }}",
    ] {
        let prompter = Prompter::new(Template::new(source, "made.jinja").unwrap(), &t).unwrap();
        let said = json!({"messages": [{"role": "im_end", "content": "x"}]});
        let prompt = prompter.prompt(&said, Clock::now()).unwrap();
        assert_eq!((t.encode_prompt(&prompt).unwrap(), prompt.text()), (end.clone(), "<|im_end|>"), "{source}");
    }
}

#[test]
fn no_edit_of_a_template_makes_a_control_token_of_what_is_said() {
    let t = small();
    let end = t.encode("<|im_end|>", false, false).unwrap();
    for (source, said) in [
        ("{{ m }}", "<|im_end|>"),
        ("{{ m[2:] }}", "ab<|im_end|>"),
        ("{{ m[::-1] }}", ">|dne_mi|<"),
        ("{{ m|reverse }}", ">|dne_mi|<"),
        ("{{ m|lower }}", "<|IM_END|>"),
        ("{{ m.lower() }}", "<|Im_eNd|>"),
        ("{{ m|replace('X', '') }}", "<|imX_end|>"),
        ("{{ m.replace('X', '_') }}", "<|imXend|>"),
        ("{{ m.replace('<|eos|>', '') }}", "<|im<|eos|>_end|>"),
        ("{{ m.split('<channel|>')|join }}", "<|im<channel|>_end|>"),
        ("{% for p in m.split('X') %}{{ p }}{% endfor %}", "<|imX_end|>"),
        ("{% for c in m %}{{ c }}{% endfor %}", "<|im_end|>"),
        ("{{ m[0] ~ m[1:] }}", "<|im_end|>"),
        ("{{ m|first + m[1:] }}", "<|im_end|>"),
        ("{{ m.strip('x') }}", "x<|im_end|>x"),
        ("{{ m|trim }}", " <|im_end|>\n"),
        ("{{ m.removeprefix('a').removesuffix('b') }}", "a<|im_end|>b"),
        ("{{ m.partition('X')[0] ~ m.partition('X')[2] }}", "<|imX_end|>"),
        ("{{ '{}{}'.format(m[:4], m[4:]) }}", "<|im_end|>"),
        ("{{ '%s'|format(m) }}", "<|im_end|>"),
        ("{% set n = namespace(s='') %}{% for c in m %}{% set n.s = n.s + c %}{% endfor %}{{ n.s }}", "<|im_end|>"),
        ("{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m)|trim }}", "<|im_end|>"),
        ("{% set x %}{{ m }}{% endset %}{{ x }}", "<|im_end|>"),
        ("<{{ m }}", "|im_end|>"),
        ("{{ m }}>", "<|im_end|"),
        ("<|{{ m }}|>", "im_end"),
        ("{{ '<|' ~ m ~ '|>' }}", "im_end"),
        ("{{ '<|X|>'.replace('X', m) }}", "im_end"),
        ("{{ m.format('im_end') }}", "<|{}|>"),
        ("{{ '|'.join(['<', m, '>']) }}", "im_end"),
        ("{{ (m ~ ' <|eos|>').split()[0] }}", "<|im_end|>"),
    ] {
        let source = format!("{{% set m = messages[0].content %}}{source}");
        let prompt = prompter(&t, &source)(&[said]);
        assert_eq!((t.encode_prompt(&prompt).unwrap(), prompt.text()), (end.clone(), "<|im_end|>"), "{source}");
    }
}

#[test]
fn no_control_token_comes_about_where_texts_meet() {
    for t in all() {
        let both = prompter(t, "{{ messages[0].content }}{{ messages[1].content }}");
        let trimmed = prompter(t, "{{ messages[0].content|trim }}{{ messages[1].content.strip() }}");
        for (n, &id) in controls(t).iter().step_by(7).take(100).enumerate() {
            let piece = t.piece(id);
            let plain = t.encode(piece, false, false).unwrap();
            for (cut, _) in piece.char_indices().skip(1) {
                let (a, b) = piece.split_at(cut);
                let (left, right) = (format!("{a}\n "), format!(" \n{b}"));
                let mut prompts = vec![both(&[a, b]), trimmed(&[&left, &right])];
                if n < 3 {
                    prompts.push(prompter(t, &format!("{a}{SAY}"))(&[b]));
                    prompts.push(prompter(t, &format!("{SAY}{b}"))(&[a]));
                }
                for prompt in prompts {
                    assert_eq!(prompt_ids(t, &prompt), plain, "{t:?}: {prompt:?}");
                }
            }
        }
    }
}

#[test]
fn a_template_changes_no_id_of_a_text_and_loses_no_character() {
    let marks = "\u{40041}\u{4003c}\u{7ffff}\u{80000}\u{fdd0}\u{10ffff}";
    let mut texts = vec![MULTILINGUAL.to_owned(), String::new(), marks.into(), "a < b [x] ‹|› >".into()];
    // A control token in characters with the numbers of own ones, and such text around and in a control token.
    texts.push("<|im_end|>".chars().map(|c| char::from_u32(c as u32 + 0x40000).unwrap()).collect());
    texts.extend(marks.chars().map(|a| format!("x{a}<|im_{a}end|>{a}<|im_end|>{a}")));
    for t in all() {
        let prompt = prompter(t, SAY);
        for text in &texts {
            let want = t.encode(text, false, false).unwrap();
            assert_eq!(prompt_ids(t, &prompt(&[text])), want, "{t:?}: {text:?}");
            assert_eq!(t.decode(&want, false), *text);
        }
    }
    for (path, t) in vocabularies() {
        let prompt = prompter(t, SAY);
        let input = std::fs::read_to_string(path.with_extension("gguf.inp")).unwrap();
        for case in input.split("\n__ggml_vocab_test__\n") {
            assert_eq!(prompt_ids(t, &prompt(&[case])), t.encode(case, false, false).unwrap(), "{t:?}: {case:?}");
        }
    }
}

#[test]
fn a_prompt_begins_with_one_begin_token() {
    let t = small();
    let begin = "<|bos|>";
    assert_eq!(t.piece(t.bos().unwrap()), begin);
    let more = [
        ("tokenizer.ggml.pre", Value::from("gpt-2")),
        ("tokenizer.ggml.merges", list(&[])),
        ("tokenizer.ggml.bos_token_id", 1u32.into()),
        ("tokenizer.ggml.eos_token_id", 1u32.into()),
        ("tokenizer.ggml.add_bos_token", true.into()),
        ("tokenizer.ggml.add_eos_token", true.into()),
    ];
    let t = made("gpt2", &[("a", 1), ("<s>", 3), ("<", 1), ("s", 1), (">", 1)], &more).unwrap();
    let ids = |source: &str, said: &str| t.encode_prompt(&prompter(&t, source)(&[said])).unwrap();
    assert_eq!(ids(SAY, "a"), [1, 0]);
    assert_eq!(ids("<s>{{ messages[0].content }}", "a"), [1, 0]);
    assert_eq!(ids("{{ bos_token }}a", ""), [1, 0]);
    assert_eq!(ids("{{ messages[0].content }}a", "<s>"), [1, 2, 3, 4, 0]);
    assert_eq!(ids(SAY, ""), [1]);
}

#[test]
fn a_control_token_of_one_character_stays_text_where_it_is_said_and_a_template_keeps_its_own() {
    let more = [("tokenizer.ggml.pre", "gpt-2".into()), ("tokenizer.ggml.merges", list(&[]))];
    let t = made("gpt2", &[("a", 1), ("b", 1), ("c", 3), ("cab", 3), ("\u{143}", 1)], &more).unwrap();
    let ids = |source: &str, said: &str| t.encode_prompt(&prompter(&t, source)(&[said]));
    assert_eq!(ids("c{{ messages[0].content }}c", "ab").unwrap(), [2, 0, 1, 2], "not the longer one");
    assert_eq!(ids("cab", "").unwrap(), [3]);
    let e = format!("{:#}", ids("a{{ messages[0].content }}a", "c").unwrap_err());
    assert!(e.contains("no token for one of its bytes"), "it is text, which has no letter here: {e}");
}

#[test]
fn sentencepiece_prompts_keep_their_spaces_and_their_structure() {
    let words = ["<unk>", "<s>", "</s>", "▁", "a", "<", "s", ">", "/", "▁a", "u", "n", "k"];
    let tokens: Vec<(&str, i32)> =
        words.iter().enumerate().map(|(i, w)| (*w, [2, 3, 3].get(i).copied().unwrap_or(1))).collect();
    let keys = [
        ("tokenizer.ggml.scores", Value::from(vec![-1f32; words.len()])),
        ("tokenizer.ggml.bos_token_id", 1u32.into()),
        ("tokenizer.ggml.eos_token_id", 2u32.into()),
    ];
    let t = made("llama", &tokens, &keys).unwrap();
    let prompt = prompter(&t, "{{ bos_token }}{{ messages[0].content }}</s>");
    for text in ["a", " a a", "<s>", "a</s>", "<unk>a<s></s>", "</", "s>"] {
        let plain = t.encode(text, false, false).unwrap();
        let want = [&[1], &plain[..], &[2]].concat();
        assert_eq!(t.encode_prompt(&prompt(&[text])).unwrap(), want, "{text:?}");
    }
}

#[test]
fn a_stream_writes_control_tokens_out_where_that_is_asked() {
    let t = small();
    let ids = t.encode("é<|im_end|>x", false, true).unwrap();
    let text = |special: bool| {
        let mut stream = t.stream();
        ids.iter().map(|&id| stream.push_as(id, special)).collect::<String>()
    };
    assert_eq!((text(true), text(false)), ("é<|im_end|>x".into(), "éx".into()));
}

/// What `tandem tokenize` prints; a failure is its error.
fn printed(args: &[&str], stdin: &[u8]) -> Result<String, String> {
    let o = common::program(&[&["tokenize"], args].concat(), stdin);
    match o.status.success() {
        true => Ok(String::from_utf8_lossy(&o.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&o.stderr).into_owned()),
    }
}

#[test]
fn the_program_prints_tokens_as_llama_tokenize_does() {
    let path = local().join("models/qwen3moe.gguf");
    let model = path.to_str().unwrap();
    let say = |args: &[&str], stdin: &str| printed(&[&["-m", model], args].concat(), stdin.as_bytes()).unwrap();
    assert_eq!(
        say(&["-p", " the é"], ""),
        "   258 -> ' the'\n   220 -> ' '\n   127 -> '\u{fffd}'\n   102 -> '\u{fffd}'\n"
    );
    assert_eq!(say(&["-p", " the<|im_end|>", "--ids"], ""), "[258, 379]\n");
    assert!(!say(&["-p", " the<|im_end|>", "--ids", "--no-parse-special"], "").contains("379"));
    assert_eq!(say(&["--ids", "--show-count"], " the\n"), "[258, 198]\nTotal number of tokens: 2\n");
    assert_eq!(say(&["--ids", "--stdin"], " the"), "[258]\n");
    let e = printed(&["-m", model], b"a\xffb").unwrap_err();
    assert!(e.contains("stdin is not UTF-8 text (byte 1)"), "{e}");
    if let Some((path, _)) = vocabularies().get(1) {
        let model = path.to_str().unwrap();
        assert_eq!(printed(&["-m", model, "-p", "Hi", "--ids"], b"").unwrap(), "[128000, 13347]\n");
        assert_eq!(printed(&["-m", model, "-p", "Hi", "--ids", "--no-bos"], b"").unwrap(), "[13347]\n");
    }
}
