//! The table against the lists of both programs, and every spelling in it through the whole way of
//! a command line.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;

use clap::CommandFactory;

use super::flag::{Support, Takes};
use super::lookup::find;
use super::table::TABLE;
use crate::cli::args::Cli;
use crate::cli::argv::{CommandLine, Request, Terminals, read};

/// What becomes of these words after `tandem`.
fn typed(words: &[&str]) -> Result<CommandLine, String> {
    let all = std::iter::once("tandem").chain(words.iter().copied()).map(OsString::from).collect();
    match read(all, Terminals { stdin: true, stdout: true })? {
        Request::Run(line) => Ok(line),
        Request::Print(text) => panic!("{words:?} prints {text}"),
    }
}

/// The words after the verb.
fn words(line: &str) -> Vec<String> {
    let line = typed(&line.split(' ').collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{line}: {e}"));
    line.words[1..].iter().map(|w| w.to_str().unwrap().to_owned()).collect()
}

fn refused(line: &str) -> String {
    typed(&line.split(' ').collect::<Vec<_>>()).map(|l| panic!("{line} becomes {:?}", l.words)).unwrap_err()
}

#[test]
fn every_flag_of_both_programs_is_in_the_table_and_takes_as_many_values() {
    let mut counts: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    let facts = include_str!("../../../tests/data/flags.txt");
    for line in facts.lines().filter(|l| !l.starts_with('#')) {
        let mut parts = line.split(' ').skip(1);
        let n: usize = parts.next().unwrap().parse().unwrap();
        parts.for_each(|name| {
            counts.entry(name).or_default().insert(n);
        });
    }
    assert!(counts.len() > 700, "{} spellings were read", counts.len());
    // In one program -dr names a repository, in the other it is --dry-run, as -p is --n-prompt in a
    // benchmark: the verbs have those themselves.
    for (name, counts) in counts.iter().filter(|(name, _)| **name != "-dr") {
        let flag = find(name).unwrap_or_else(|| panic!("{name} is missing"));
        let all: &[usize] = match flag.takes {
            Takes::Nothing => &[0],
            Takes::One => &[1],
            Takes::Pair => &[1, 2],
            Takes::Two => &[2],
            Takes::Switch => &[0, 1],
        };
        assert!(counts.iter().all(|n| all.contains(n)), "{name} takes {counts:?}, in the table {:?}", flag.takes);
    }
}

/// The class of a flag, as its head counts them.
fn class(support: &Support) -> &'static str {
    match support {
        Support::Works(_) | Support::WorksOr(..) | Support::Becomes(_) => "works",
        Support::Changes(_) => "changes what is written",
        Support::Already(..) | Support::If(..) => "already so",
        Support::Idle(_) => "no effect on the text",
        Support::NotHere(_) => "not here",
    }
}

#[test]
fn every_spelling_of_the_table_ends_in_its_class() {
    let (mut seen, mut counts) = (HashSet::new(), BTreeMap::new());
    for flag in TABLE {
        let values: &[&str] = match flag.takes {
            Takes::Nothing => &[""],
            Takes::Two => &["a b"],
            _ => &["0", "1", "", "none", "auto", "off", "causal", "4"],
        };
        for name in flag.names() {
            assert!(seen.insert(name), "{name} is in the table twice");
            *counts.entry(class(&flag.support)).or_insert(0) += 1;
            let lines = || {
                let verbs = ["run", "chat", "batch", "perplexity", "tokenize", "bench"];
                let lines =
                    verbs.into_iter().flat_map(move |verb| values.iter().map(move |v| format!("{verb} {name} {v}")));
                lines.map(|line| typed(&line.split_whitespace().collect::<Vec<_>>()))
            };
            let becomes_words = || lines().flatten().any(|l| l.words.len() > 2);
            let is_told = || lines().flatten().any(|l| l.tells(name) && l.words.len() == 2);
            let holds = match flag.support {
                Support::Works(_) | Support::Changes(_) | Support::Becomes(_) => becomes_words(),
                Support::WorksOr(..) => becomes_words() && is_told(),
                Support::Already(..) | Support::If(..) | Support::Idle(_) => is_told(),
                // A verb may have a flag under this very name, with a meaning of its own.
                Support::NotHere(_) => lines().take(2).all(|line| match line {
                    Err(why) => why.starts_with(name) && why.len() > name.len() + 9,
                    Ok(line) => line.words.len() > 2,
                }),
            };
            assert!(holds, "{name}: {:?} gives {:?}", flag.support, lines().collect::<Vec<_>>());
        }
    }
    let all: usize = counts.values().sum();
    say!("{all} spellings of {} rows: {counts:?}", TABLE.len());
}

#[test]
fn an_unknown_short_flag_is_never_split_and_the_near_one_is_named() {
    for (line, near) in [
        ("run -rtx -p x", "-rtr"),
        ("run -ngx 9 -p x", "-ngl"),
        ("run -tempp 9 -p x", "--temp"),
        ("run --tmep 9 -p x", "--temp"),
        ("run -ctx 4096", "--ctx-size"),
        ("run -oout.txt -p x", "no such flag"),
        ("run -pHello", "no such flag"),
        ("run -vx -p x", "no such flag"),
        ("bench --session x", "tandem chat, tandem run have it"),
        ("run --when-full drop -p x", "tandem run has no --when-full; tandem chat has it"),
    ] {
        assert!(refused(line).contains(near), "{line}: {}", refused(line));
    }
    assert_eq!(words("run -n5 -c4096 -s-1 -vv")[1..], ["--n-predict=5", "--ctx-size=4096", "--seed=-1", "-vv"]);
    assert_eq!(words("run --reasoning-tags <a> -b- x")[1..], ["--reasoning-tags", "<a>", "-b-", "x"]);
    assert_eq!(words("run -l7-inf -l 3+1")[1..], ["--logit-bias=7-inf", "--logit-bias=3+1"]);
    assert_eq!(words("bench -p512,1024")[1..], ["--n-prompt=512,1024"]);
}

#[test]
fn a_value_is_never_read_as_a_flag_and_a_missing_one_is_told() {
    assert_eq!(words("run -p -rtr -n 3")[1..], ["--prompt=-rtr", "--n-predict=3"]);
    assert_eq!(words("run -r --lora -p x")[1..], ["--stop=--lora", "--prompt=x"]);
    assert_eq!(words("run -fa -p x")[1..], ["--prompt=x"], "the older form has no value");
    let all = refused("run --lora_scaled a.gguf 0.5 --host 0.0.0.0 -xyz -m");
    for part in [
        "4 flags",
        "--lora_scaled a.gguf: not here; ",
        "--host 0.0.0.0: ",
        "-xyz: no such flag",
        "-m: a value is missing",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    assert!(refused("run -m -ngl 99").contains("-m: a value is missing: -ngl is a flag"));
}

#[test]
fn numbers_mean_what_they_mean_in_llama_cpp() {
    assert_eq!(
        words("run -t -1 -tb -1 -ngl -1 -n -2")[1..],
        ["--threads=0", "--threads-batch=0", "--gpu-layers=auto", "--n-predict=-1"]
    );
    assert_eq!(words("run -ngl -2 --temp -1")[1..], ["--gpu-layers=all", "--temp=-1"]);
}

#[test]
fn a_command_without_a_verb_gets_the_one_that_it_means() {
    let verb = |line: &str, stdin: bool, stdout: bool| {
        let all = std::iter::once("tandem").chain(line.split_whitespace()).map(OsString::from).collect();
        match read(all, Terminals { stdin, stdout }) {
            Ok(Request::Run(line)) => line.words[1..].join(&OsString::from(" ")).into_string().unwrap(),
            Ok(Request::Print(text)) => text.to_owned(),
            Err(e) => e,
        }
    };
    for (line, want) in [
        ("x.gguf", "chat --model=x.gguf"),
        ("-m x.gguf -ngl 9", "chat --model=x.gguf --gpu-layers=9"),
        ("-m x.gguf -p hi", "run --model=x.gguf --prompt=hi"),
        ("x.gguf -p hi", "run --model=x.gguf --prompt=hi"),
        ("x.gguf hi", "run --model=x.gguf hi"),
        ("-m x.gguf hi", "run --model=x.gguf hi"),
        ("-hfr a/b -p hi", "run --hf-repo=a/b --prompt=hi"),
        ("-q run hi", "run -q hi"),
        ("run x.gguf hi", "run --model=x.gguf hi"),
        ("explain x.gguf", "explain x.gguf"),
        ("batch x.gguf y.jsonl", "batch --model=x.gguf y.jsonl"),
        ("bnech", "bnech"),
        ("--ram 64G explain x.gguf", "explain --ram=64G x.gguf"),
        ("--version", "--version"),
    ] {
        assert_eq!(verb(line, true, true), want, "{line}");
    }
    assert_eq!(verb("x.gguf", false, false), "run --model=x.gguf", "the prompt is piped in");
    assert!(verb("x.gguf", true, false).starts_with("no verb given"));
    assert_eq!(verb("", true, true).lines().count(), 6);
}

/// Commands as people post them, with the ways that they end: a word that the command for clap has,
/// or one that the message has.
const POSTED: [(&str, Result<&str, &str>); 20] = [
    ("run -m M -ngl 99 -ot exps=CPU -fa -c 8192 -p hi", Ok("--override-tensor=exps=CPU")),
    ("run -m M -ngl 99 -ot .ffn_.*_exps.=CPU --no-mmap -fa on -ctk q8_0 -ctv q8_0 -p hi", Ok("--no-mmap")),
    (
        r"run --model M --n-gpu-layers 99 -ot blk\.(1|2|3)\.ffn.*=CUDA0,exps=CPU -t 16 -ub 4096 -b 4096 -p hi",
        Ok("--ubatch-size=4096"),
    ),
    ("run -m M -fmoe -rtr -amb 512 -mla 2 -fa -ngl 63 -ot exps=CPU -t 24 -tb 48 -p hi", Ok("--threads-batch=48")),
    (
        "run -m M -mla 3 -fa -amb 512 -fmoe -ctk q8_0 -c 32768 -ngl 99 -ot exps=CPU --parallel 1 -p hi",
        Ok("--ctx-size=32768"),
    ),
    ("run -m M -rtr -fmoe -ser 7,1 -p hi", Err("-ser 7,1: not here; all chosen experts count")),
    (
        "run -m M -ngl 99 --n-cpu-moe 28 --jinja -fa on --temp 0.6 --top-p 0.95 --top-k 20 --min-p 0 -p hi",
        Ok("--n-cpu-moe=28"),
    ),
    ("run -m M -ngl 99 -ncmoe 20 --no-warmup -dio -p hi", Ok("--n-cpu-moe=20")),
    ("run -m M -cmoe --numa distribute --mlock -t 32 -p hi", Ok("--mlock")),
    (
        "run -m M --host 0.0.0.0 --port 8080 -ngl 99 -cmoe --api-key x -p hi",
        Err("--port 8080: not here; there is no HTTP server"),
    ),
    ("run -m M --lora a.gguf --mmproj b.gguf -p hi", Err("2 flags cannot be used")),
    ("run -m M -ot token_embd=CPU -sm none -mg 0 -dev CUDA0 -p hi", Ok("--main-gpu=0")),
    ("run -m M -ts 24,24 -sm layer -ngl 99 -p hi", Ok("--tensor-split=24,24")),
    ("run -m M -st -cnv -p hi", Err("-cnv: not here; tandem chat is a conversation")),
    ("chat -m M -cnv --color -i -mli -ngl 99 --reasoning-budget 0", Ok("--reasoning-budget=0")),
    ("run -m M --rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 32768 -c 131072 -p hi", Ok("--rope-scale=4")),
    (
        "run -m M --override-kv qwen3moe.expert_used_count=int:6 -p hi",
        Ok("--override-kv=qwen3moe.expert_used_count=int:6"),
    ),
    ("run -hf user/repo:Q4_K_M --jinja -ngl 99 -p hi", Ok("--hf-repo=user/repo:Q4_K_M")),
    ("bench -m M -p 512 -n 128 -fa 1 -mmp 0 -rtr 1 -fmoe 1 -ngl 99 -ot exps=CPU -r 3", Ok("--no-mmap")),
    (
        "perplexity -m M -f wiki.txt -c 512 --seed 1337 -fmoe -mla 3 -ngl 99",
        Err("--seed 1337: tandem perplexity has no --seed"),
    ),
];

#[test]
fn commands_as_they_are_posted_run_or_end_in_one_complete_message() {
    for (line, want) in POSTED {
        let all: Vec<&str> = line.split(' ').collect();
        match (typed(&all), want) {
            (Ok(line), Ok(word)) => {
                assert!(line.words.iter().any(|w| w == word), "{word}: {:?}", line.words);
                Cli::command().try_get_matches_from(&line.words).unwrap_or_else(|e| panic!("{line:?}: {e}"));
            }
            (Err(e), Err(part)) => assert!(e.contains(part), "{line}: {e}"),
            (got, _) => panic!("{line}: {got:?}"),
        }
    }
}

#[test]
fn what_is_so_anyway_is_so_for_its_values_alone() {
    for line in ["run -fa off", "run -np 4", "run --no-jinja", "chat -st", "run -cnv", "run --attention non-causal"] {
        let flag = line.split(' ').nth(1).unwrap();
        assert!(refused(line).starts_with(flag), "{line}: {}", refused(line));
    }
    for line in ["run -fa on", "run -fa", "run -np 1", "run --jinja", "chat -cnv", "run -st"] {
        let all: Vec<&str> = line.split(' ').collect();
        let got = typed(&all).unwrap();
        assert!(got.words.len() == 2 && got.tells(all[1]), "{line}: {got:?}");
    }
    assert_eq!(words("batch -np 4")[1..], ["--parallel=4"]);
    assert_eq!(
        words("run -dev none -lm mlock -lv 5")[1..],
        ["--device=none", "--no-mmap", "--mlock", "--verbose", "--verbose"]
    );
}
