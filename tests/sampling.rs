//! How tokens are to be chosen, as it is given by flags, by a model's file and in JSON; and the texts that DRY stops at.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::Parser;
use common::{local, whole};
use serde_json::{Value as Json, json};
use tandem::cli::args::{Cli, Verb};
use tandem::cli::argv::{Request, Terminals, read};
use tandem::cli::settings::Settings;
use tandem::gguf::{Gguf, Meta, Value, Writer};
use tandem::sample::{Params, Stage};
use tandem::text::Tokenizer;

/// The settings that flags of `run` ask for.
fn flags(flags: &[&str]) -> anyhow::Result<Settings> {
    let all = ["tandem", "run"].iter().chain(flags).map(Into::into).collect();
    let Request::Run(line) = read(all, Terminals { stdin: false, stdout: false }).map_err(anyhow::Error::msg)? else {
        panic!("a verb is there")
    };
    let Verb::Run(a) = Cli::try_parse_from(line.words)?.verb else { panic!("run") };
    Settings::new(&a.sampling)
}

fn set(fields: &[(&str, Json)]) -> Settings {
    let mut s = Settings::default();
    fields.iter().for_each(|(name, value)| assert!(s.set(name, value).unwrap(), "{name} is known"));
    s
}

fn refused(name: &str, value: Json) -> String {
    let mut s = Settings::default();
    let e = s.set(name, &value).unwrap_err().to_string();
    assert_eq!(s.params, Params::default(), "nothing changes");
    assert!(e.contains(name) && e.contains("expected"), "{e}");
    e
}

/// The metadata of a file with these keys.
fn meta(keys: &[(&str, Value)]) -> Meta {
    let mut w = Writer::new();
    w.set("general.architecture", "test");
    for (key, value) in keys {
        w.set(key, value.clone());
    }
    Gguf::from_bytes(w.to_bytes().unwrap(), Path::new("made.gguf")).unwrap().meta
}

#[test]
fn every_flag_of_llama_cpp_under_each_of_its_names_sets_what_the_api_calls_so() {
    for (names, api, value) in [
        (&["--temp", "--temperature"][..], "temperature", 0.5),
        (&["--dynatemp-range"], "dynatemp_range", 0.25),
        (&["--dynatemp-exp"], "dynatemp_exponent", 2.0),
        (&["--top-k"], "top_k", 7.0),
        (&["--top-p"], "top_p", 0.5),
        (&["--min-p"], "min_p", 0.25),
        (&["--typical", "--typical-p"], "typical_p", 0.5),
        (&["--top-nsigma", "--top-n-sigma"], "top_n_sigma", -1.0),
        (&["--xtc-probability"], "xtc_probability", 0.5),
        (&["--xtc-threshold"], "xtc_threshold", 0.25),
        (&["--repeat-last-n"], "repeat_last_n", -1.0),
        (&["--repeat-penalty"], "repeat_penalty", 1.25),
        (&["--presence-penalty"], "presence_penalty", -0.5),
        (&["--frequency-penalty"], "frequency_penalty", 0.5),
        (&["--dry-multiplier"], "dry_multiplier", 0.5),
        (&["--dry-base"], "dry_base", 1.5),
        (&["--dry-allowed-length"], "dry_allowed_length", 4.0),
        (&["--dry-penalty-last-n"], "dry_penalty_last_n", -1.0),
        (&["--mirostat"], "mirostat", 2.0),
        (&["--mirostat-ent"], "mirostat_tau", 3.0),
        (&["--mirostat-lr"], "mirostat_eta", 0.25),
        (&["--adaptive-target"], "adaptive_target", -0.5),
        (&["--adaptive-decay"], "adaptive_decay", 0.5),
    ] {
        for name in names {
            let s = flags(&[name, &value.to_string()]).unwrap();
            assert_eq!(s.params, set(&[(api, json!(value))]).params, "{name}");
        }
    }
    let order = [Stage::TopK, Stage::Temperature];
    for args in [["--samplers", "top-k;temp"], ["--sampler-seq", "kt"], ["--sampling-seq", "kt"]] {
        assert_eq!(flags(&args).unwrap().params.order, order);
    }
    for args in [["-s", "5"], ["--seed", "5"]] {
        assert_eq!(flags(&args).unwrap().seed, Some(5));
    }
    assert_eq!(flags(&["-s", "-1"]).unwrap().seed, None);
    let bias = flags(&["-l", "15043+1", "--logit-bias", "7-0.5", "-l", "8-inf"]).unwrap().params.logit_bias;
    assert_eq!(bias, [(15043, 1.0), (7, -0.5), (8, f32::NEG_INFINITY)]);
    let none: [&str; 0] = [];
    assert_eq!(flags(&[]).unwrap().breakers, ["\n", ":", "\"", "*"]);
    assert_eq!(flags(&["--dry-sequence-breaker", "none"]).unwrap().breakers, none);
    let two = ["--dry-sequence-breaker", r"\n\n", "--dry-sequence-breaker", r#"\x3b\q\\""#];
    assert_eq!(flags(&two).unwrap().breakers, ["\n\n", r#";\q\""#]);
}

#[test]
fn a_flag_out_of_its_range_is_named_with_what_was_expected() {
    for (args, says) in [
        (["--temp", "-1"], "--temp -1: expected a number from 0 up"),
        (["--top-p", "1.1"], "--top-p 1.1: expected a number from 0 to 1"),
        (["--repeat-penalty", "0"], "--repeat-penalty 0: expected a number above 0"),
        (["--mirostat", "3"], "--mirostat 3: expected a whole number from 0 to 2"),
        (["--top-k", "2.5"], "--top-k 2.5: expected a whole number"),
        (["--dry-base", "NaN"], "--dry-base NaN: expected a number from 1 up"),
        (["--samplers", "top_q"], "\"top_q\""),
        (["--sampler-seq", "kq"], "'q'"),
        (["--logit-bias", "15043"], "--logit-bias 15043: "),
        (["--logit-bias", "1+inf"], "--logit-bias 1+inf: "),
        (["--logit-bias", "1--2"], "--logit-bias 1--2: "),
        (["--logit-bias", "-1-2"], "-1"),
        (["--seed", "-2"], "-2"),
        (["--top-p", "half"], "half"),
    ] {
        let e = format!("{:#}", flags(&args).unwrap_err());
        assert!(e.contains(says), "{args:?} says {e}");
    }
}

#[test]
fn a_flag_wins_over_the_model_s_file_and_that_over_the_default() {
    let meta = meta(&[
        ("general.sampling.sequence", "temperature;top_k".into()),
        ("general.sampling.temp", 0.6f32.into()),
        ("general.sampling.top_k", 20i32.into()),
        ("general.sampling.top_p", 0.5f64.into()),
        ("general.sampling.min_p", 0.25f32.into()),
        ("general.sampling.xtc_probability", 0.5f32.into()),
        ("general.sampling.xtc_threshold", 0.25f32.into()),
        ("general.sampling.penalty_last_n", (-1i32).into()),
        ("general.sampling.penalty_repeat", 1.25f32.into()),
        ("general.sampling.mirostat", 1u32.into()),
        ("general.sampling.mirostat_tau", 4.0f32.into()),
        ("general.sampling.mirostat_eta", 0.25f32.into()),
    ]);
    let mut file = Settings::default();
    file.follow(&meta);
    let want = Params {
        order: vec![Stage::Temperature, Stage::TopK],
        temperature: 0.6,
        top_k: 20,
        top_p: 0.5,
        min_p: 0.25,
        xtc_probability: 0.5,
        xtc_threshold: 0.25,
        repeat_last_n: -1,
        repeat_penalty: 1.25,
        mirostat: 1,
        mirostat_tau: 4.0,
        mirostat_eta: 0.25,
        ..Params::default()
    };
    assert_eq!(file.params, want);
    // The flag's name need not be the key's; a flag that says the default is one too.
    let given = ["--repeat-last-n", "5", "--temp", "0.8", "--mirostat", "0", "--sampler-seq", "kt"];
    let mut both = flags(&given).unwrap();
    both.follow(&meta);
    let order = vec![Stage::TopK, Stage::Temperature];
    assert_eq!(both.params, Params { order, repeat_last_n: 5, temperature: 0.8, mirostat: 0, ..want });
}

#[test]
fn what_a_file_asks_for_wrongly_is_left_and_the_rest_is_taken() {
    let mut s = Settings::default();
    s.follow(&meta(&[
        ("general.sampling.sequence", "top_k;nonsense".into()),
        ("general.sampling.temp", (-3.0f32).into()),
        ("general.sampling.top_k", "many".into()),
        ("general.sampling.top_p", 0.5f32.into()),
    ]));
    assert_eq!(s.params, Params { top_p: 0.5, ..Params::default() });
}

#[test]
fn json_fields_have_the_api_s_names_and_unknown_ones_are_left_to_others() {
    let s = set(&[
        ("temperature", json!(0)),
        ("top_k", json!(40.0)),
        ("seed", json!(u64::MAX)),
        ("samplers", json!(["top_k", "min-p"])),
        ("dry_sequence_breakers", json!(["\n", "##"])),
        ("presence_penalty", json!(-2)),
        ("top-p", json!(0.5)),
        ("min_p", Json::Null),
    ]);
    assert_eq!((s.params.temperature, s.params.top_k, s.seed), (0.0, 40, Some(u64::MAX)));
    assert_eq!((s.params.top_p, s.params.min_p, s.params.presence_penalty), (0.5, 0.05, -2.0));
    assert_eq!(s.params.order, [Stage::TopK, Stage::MinP]);
    assert_eq!(s.breakers, ["\n", "##"]);
    for letters_or_names in ["km", "top_k;min_p"] {
        assert_eq!(set(&[("samplers", json!(letters_or_names))]).params.order, s.params.order);
    }
    assert_eq!(set(&[("seed", json!(3)), ("seed", json!(-1))]).seed, None);
    let mut s = Settings::default();
    for other in ["messages", "max_tokens", "stream"] {
        assert!(!s.set(other, &json!(1)).unwrap() && !s.set(other, &Json::Null).unwrap());
    }
    assert!(refused("temperature", json!("hot")).contains("temperature is \"hot\""));
    assert!(refused("top_p", json!(7)).contains("from 0 to 1"));
    refused("top_k", json!([1]));
    refused("seed", json!(-7));
    refused("seed", json!("x"));
    refused("samplers", json!({}));
    refused("dry_sequence_breakers", json!([1]));
}

#[test]
fn a_logit_bias_is_an_object_or_a_list_of_numbers_or_texts() {
    let object = set(&[("logit_bias", json!({"50": -100, "7": false, " the": 1.5}))]);
    let list = set(&[("logit_bias", json!([[50, -100], [7, false], [" the", 1.5]]))]);
    for s in [object, list] {
        assert_eq!(s.params.logit_bias, [(50, -100.0), (7, f32::NEG_INFINITY)]);
        assert_eq!(s.text_bias, [(" the".to_owned(), 1.5)]);
    }
    for bad in [json!(3), json!([[1]]), json!([[1, true]]), json!({"5": "x"}), json!([[-1, 2]]), json!([[1, 1e300]])] {
        refused("logit_bias", bad);
    }
}

#[test]
fn a_bias_for_a_token_that_the_model_does_not_have_is_refused() {
    let t = Tokenizer::new(&Gguf::open(&local().join("models/qwen3moe.gguf")).unwrap()).unwrap();
    let with = |id: usize| set(&[("logit_bias", json!({id.to_string(): 1}))]).sampler(1, &t);
    assert!(with(t.n_vocab() - 1).is_ok());
    let e = format!("{:#}", with(t.n_vocab()).unwrap_err());
    assert!(e.contains(&format!("token {}", t.n_vocab())), "{e}");
}

#[test]
fn dry_s_breakers_are_all_tokens_that_hold_one_and_all_that_one_begins_in() {
    let mut paths: Vec<PathBuf> = vec![local().join("models/qwen3moe.gguf")];
    match whole() {
        Some(dir) => {
            paths.extend(["llama-bpe", "qwen35", "gemma-4"].map(|n| dir.join(format!("vocab/ggml-vocab-{n}.gguf"))))
        }
        None => say!("only one vocabulary is checked: the reference folder is not next to this checkout"),
    }
    for path in paths {
        let t = Tokenizer::new(&Gguf::open(&path).unwrap()).unwrap();
        for text in ["\n", "\"", "...", "Ünd so", "the end of all that is longer than forty bytes"] {
            let known = t.sequences_with(&[text.to_owned()]).unwrap();
            let clipped = &text[..text.floor_char_boundary(40)];
            let whole: Vec<u32> = known.iter().filter(|s| s.len() == 1).map(|s| s[0]).collect();
            let holds = |id: &u32| String::from_utf8_lossy(&t.bytes(*id, true)).contains(clipped);
            assert_eq!(
                whole,
                (0..t.n_vocab() as u32).filter(holds).collect::<Vec<_>>(),
                "{}: {text:?}",
                path.display()
            );
            for s in known.iter().filter(|s| s.len() > 1) {
                let (first, all) =
                    (t.bytes(s[0], true), s.iter().flat_map(|id| t.bytes(*id, true)).collect::<Vec<_>>());
                let at = (1..=first.len()).find(|n| all[first.len() - n..] == *clipped.as_bytes());
                assert!(at.is_some() || s.len() > 20, "{}: {text:?} by {s:?}", path.display());
            }
        }
        let both = t.sequences_with(&["\n".to_owned(), String::new(), ":".to_owned()]).unwrap();
        assert!(both.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once");
    }
}

/// The built-in model with more keys, in a file.
fn remade(name: &str, keys: &[(&str, Value)]) -> PathBuf {
    let demo = Gguf::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")).unwrap();
    let mut w = Writer::new();
    for (key, value) in demo.meta.iter().chain(keys.iter().map(|(k, v)| (*k, v))) {
        w.set(key, value.clone());
    }
    for t in &demo.tensors {
        w.add_tensor(&t.name, &t.shape, t.ty, |to| to.write_all(demo.data(t))).unwrap();
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    w.write(&path).unwrap();
    path
}

fn run(args: &[&str]) -> Output {
    tokens("25", args)
}

fn tokens(n: &str, args: &[&str]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(["run", "-p", "ROMEO:", "-n", n]).args(args);
    c.stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

#[test]
fn what_the_model_s_file_asks_for_is_done_and_said_once() {
    let keys = [("general.sampling.temp", 0f32.into()), ("general.sampling.top_k", 20i32.into())];
    let path = remade("sampling.gguf", &keys);
    let model = ["-m", path.to_str().unwrap()];
    let o = run(&model);
    assert!(o.status.success(), "{}", err(&o));
    assert_eq!(err(&o).matches("sampling parameters of the model file: temp 0, top_k 20").count(), 1, "{}", err(&o));
    assert_eq!(o.stdout, run(&["--temp", "0"]).stdout, "the likeliest tokens, as with the flag");
    assert!(!err(&o).contains("seed"), "nothing is drawn");
    let o = run(&[&model[..], &["--temp", "0.8", "--top-k", "40", "-s", "3"]].concat());
    assert!(!err(&o).contains("model file"), "{}", err(&o));
    assert_eq!(o.stdout, run(&["-s", "3"]).stdout, "flags that say the defaults");
}

#[test]
fn a_flag_without_effect_is_said_and_with_strict_an_error() {
    for (args, says) in [
        (&["--mirostat", "2", "--top-k", "5"][..], "--top-k has no effect: mirostat"),
        (&["--mirostat-lr", "0.2"], "--mirostat-lr has no effect: mirostat is off"),
        (
            &["--samplers", "top_k", "--temp", "0"],
            "--temp has no effect: the sampler order does not include temperature",
        ),
        (&["--mirostat", "1", "--samplers", "top_k"], "--samplers has no effect: mirostat"),
        (
            &["--adaptive-target", "0.2"],
            "--adaptive-target has no effect: the sampler order does not include adaptive_p",
        ),
    ] {
        let o = run(args);
        assert!(o.status.success() && err(&o).contains(says), "{args:?}: {}", err(&o));
        let o = run(&[args, &["--strict"]].concat());
        assert_eq!(o.status.code(), Some(2), "{args:?}: {}", err(&o));
    }
}

#[test]
fn every_sampler_runs_in_the_program_and_its_seed_repeats_it() {
    let plain = run(&["-s", "4"]).stdout;
    for args in [
        &["--repeat-penalty", "1.5", "--repeat-last-n", "-1", "--frequency-penalty", "0.5"][..],
        &["--dry-multiplier", "5", "--dry-allowed-length", "0", "--dry-sequence-breaker", "none"],
        &["--typical", "0.3"],
        &["--top-nsigma", "0.5"],
        &["--xtc-probability", "1", "--xtc-threshold", "0.05"],
        &["--dynatemp-range", "0.7", "--dynatemp-exp", "2"],
        &["--mirostat", "1"],
        &["--mirostat", "2", "--mirostat-ent", "2"],
        &["--sampler-seq", "ma", "--adaptive-target", "0.2"],
        &["--samplers", ""],
    ] {
        let o = run(&[args, &["-s", "4"]].concat());
        assert!(o.status.success(), "{args:?}: {}", err(&o));
        assert_eq!(o.stdout, run(&[args, &["-s", "4"]].concat()).stdout, "{args:?}");
        assert_ne!(o.stdout, plain, "{args:?} changes nothing");
    }
    // Forbidding what greedy takes first changes the text; forbidding all is an error that says so.
    let t =
        Tokenizer::new(&Gguf::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")).unwrap()).unwrap();
    let first = tokens("1", &["--temp", "0"]);
    let banned: Vec<String> = (0..t.n_vocab() as u32).map(|id| format!("-l{id}-inf")).collect();
    let one: Vec<&str> = (0..t.n_vocab() as u32)
        .filter(|id| t.bytes(*id, false) == first.stdout)
        .map(|id| banned[id as usize].as_str())
        .collect();
    assert!(!one.is_empty());
    assert_ne!(tokens("1", &[&["--temp", "0"], &one[..]].concat()).stdout, first.stdout);
    let all: Vec<&str> = banned.iter().map(String::as_str).collect();
    let o = run(&all);
    assert_eq!(o.status.code(), Some(1), "{}", err(&o));
    assert!(err(&o).contains("--logit-bias forbids"), "{}", err(&o));
}
