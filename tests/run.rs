//! `tandem run` for scripts: what comes in, what goes out, what is kept, and how it ends.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn tandem(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(args).stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", ""); // on the CPU, whatever is here
    c
}

fn run(args: &[&str]) -> Output {
    tandem(&[&["run"], args].concat()).output().unwrap()
}

/// Runs the program with something on stdin.
fn piped(args: &[&str], stdin: &str) -> Output {
    common::program(&[&["run"], args].concat(), stdin.as_bytes())
}

fn out(o: &Output) -> String {
    assert!(o.status.success(), "{}", err(o));
    String::from_utf8(o.stdout.clone()).unwrap()
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

/// An empty folder of one test.
fn folder(name: &str) -> PathBuf {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("run").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

const ROMEO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/romeo.jinja");

#[test]
fn a_prompt_and_what_is_piped_in_are_one_prompt() {
    let whole = out(&run(&["-p", "ROMEO:\nBut soft", "-n", "8", "--temp", "0"]));
    assert_eq!(out(&piped(&["-p", "ROMEO:", "-n", "8", "--temp", "0"], "But soft")), whole);
    assert_eq!(out(&piped(&["-p", "ROMEO:\n", "-n", "8", "--temp", "0"], "But soft")), whole);
    assert_eq!(out(&piped(&["-n", "8", "--temp", "0"], "ROMEO:\nBut soft")), whole);
}

#[test]
fn json_is_one_object_with_all_that_is_known() {
    let o = run(&["-p", "ROMEO:", "-n", "6", "--seed", "4", "--json", "--logprobs", "3"]);
    let text = out(&o);
    assert_eq!(text.lines().count(), 1);
    let v: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(v["text"], out(&run(&["-p", "ROMEO:", "-n", "6", "--seed", "4"])));
    assert_eq!((&v["finish"], &v["seed"], &v["reasoning"]), (&"limit".into(), &4.into(), &"".into()));
    assert_eq!(v["tokens"]["generated"], 6);
    assert!(v["tokens"]["prompt"].as_u64().unwrap() > 0);
    for key in ["seconds", "tokens_per_second"] {
        assert!(v[key]["prompt"].as_f64().unwrap() > 0.0 && v[key]["generation"].as_f64().unwrap() > 0.0, "{v}");
    }
    let probs = v["logprobs"].as_array().unwrap();
    assert_eq!(probs.len(), 6);
    for p in probs {
        let top: Vec<f64> = p["top"].as_array().unwrap().iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(top.len() == 3 && top.is_sorted_by(|a, b| a >= b) && p["logprob"].as_f64().unwrap() <= top[0], "{p}");
    }
    assert_eq!(run(&["-p", "x", "--logprobs", "3"]).status.code(), Some(2), "they have nowhere to go without --json");
}

#[test]
fn an_output_file_has_the_text_alone_and_stdout_nothing() {
    let file = folder("output").join("text");
    let o = run(&["-p", "ROMEO:", "-n", "8", "--seed", "4", "-o", file.to_str().unwrap()]);
    assert!(out(&o).is_empty());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), out(&run(&["-p", "ROMEO:", "-n", "8", "--seed", "4"])));
}

#[test]
fn a_stop_text_ends_the_text_before_it() {
    let free = out(&run(&["-p", "ROMEO:", "-n", "40", "--temp", "0"]));
    let word = free.split_whitespace().nth(4).unwrap();
    let v = run(&["-p", "ROMEO:", "-n", "40", "--temp", "0", "--json", "-r", "never said", "--stop", word]);
    let v: Value = serde_json::from_str(&out(&v)).unwrap();
    assert_eq!(v["finish"], "stop");
    assert_eq!(v["text"], free[..free.find(word).unwrap()]);
}

#[test]
fn an_answer_that_never_began_is_said_and_has_a_status_under_strict() {
    let model = folder("thinks").join("model.gguf");
    let pieces = ["<think>", "a plan", "</think>", "Yes", ", sir."];
    std::fs::write(&model, common::puppet::puppet(&pieces, common::puppet::PLAIN)).unwrap();
    let says = |more: &[&str]| run(&[&["-m", model.to_str().unwrap(), "-p", "hi", "--temp", "0"], more].concat());
    // The vocabulary names the tags, the template does not.
    assert_eq!(out(&says(&[])), "Yes, sir.");
    let o = says(&["-n", "2", "-q"]);
    assert!(out(&o).is_empty(), "thoughts are no answer");
    let why =
        "all 2 tokens were reasoning (stopped: reached -n 2); raise -n, or end the reasoning with --reasoning-budget N";
    assert!(err(&o).contains(why), "{}", err(&o));
    let o = says(&["-n", "2", "--json", "--strict"]);
    assert_eq!(o.status.code(), Some(7), "{}", err(&o));
    let v: Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!((&v["finish"], &v["answer_began"], &v["reasoning"]), (&"limit".into(), &false.into(), &"a plan".into()));
    let v: Value = serde_json::from_str(&out(&says(&["--json", "--strict"]))).unwrap();
    assert_eq!(
        (&v["answer_began"], &v["text"], &v["reasoning"]),
        (&true.into(), &"Yes, sir.".into(), &"a plan".into())
    );
    assert_eq!(out(&says(&["--reasoning-tags", "<think>", "Yes"])), ", sir.");
    assert_eq!(out(&says(&["--reasoning-tags", "a plan", "Yes"])), "<think>a plan</think>Yes, sir.", "not at the head");
    assert_eq!(says(&["--reasoning-tags", "", "x"]).status.code(), Some(2));
    let o = says(&["--raw", "--reasoning-tags", "a", "b", "-n", "1"]);
    assert!(err(&o).contains("--reasoning-tags has no effect"), "{}", err(&o));
}

#[test]
fn a_template_makes_the_prompt_a_message_and_raw_leaves_it_a_text() {
    let text = |args: &[&str]| out(&run(&[&["-n", "8", "--temp", "0"], args].concat()));
    let put = text(&["-p", "ROMEO:\nGood morrow\n\nJULIET:\n"]);
    assert_eq!(text(&["-p", "Good morrow", "--chat-template-file", ROMEO]), put);
    assert_ne!(text(&["-p", "Good morrow"]), put);
    assert_eq!(text(&["-p", "Good morrow", "--chat-template-file", ROMEO, "--raw"]), text(&["-p", "Good morrow"]));
    let o = run(&["-p", "x", "--chat"]);
    assert!(o.status.code() == Some(2) && err(&o).contains("no chat template"), "{}", err(&o));
    let o = run(&["-p", "x", "-sys", "Be kind", "-n", "1"]);
    assert!(o.status.code() == Some(2) && err(&o).contains("no chat template"), "{}", err(&o));
    let o = run(&["-p", "x", "-n", "1", "--chat-template-file", ROMEO, "--reasoning", "off"]);
    assert!(o.status.success() && err(&o).contains("--reasoning off has no effect: "), "{}", err(&o));
    let o = run(&["-p", "x", "--chat-template-file", ROMEO, "--chat-template-kwargs", "[1]"]);
    assert!(o.status.code() == Some(2) && err(&o).contains("a JSON object"), "{}", err(&o));
}

#[test]
fn a_template_that_fails_is_an_error_with_its_line_and_nothing_else_is_tried() {
    let file = folder("template").join("bad.jinja");
    std::fs::write(&file, "{{ messages[0].content }}\n{{ raise_exception('no such role') }}").unwrap();
    let o = run(&["-p", "x", "--chat-template-file", file.to_str().unwrap()]);
    assert!(!o.status.success() && o.stdout.is_empty());
    assert!(err(&o).contains("line 2") && err(&o).contains("no such role"), "{}", err(&o));
}

#[test]
fn a_session_goes_on_as_if_it_had_never_stopped() {
    let dir = folder("session");
    let file = dir.join("s");
    let file = file.to_str().unwrap();
    // A text that is continued, in three parts.
    let part = |prompt: &str, n: &str| out(&run(&["-p", prompt, "-n", n, "--temp", "0", "--session", file]));
    let parts = part("ROMEO:", "9") + &part("", "14") + &part("", "7");
    assert_eq!(parts, out(&run(&["-p", "ROMEO:", "-n", "30", "--temp", "0"])));
    // A conversation.
    let talk = dir.join("t");
    let args = ["-n", "8", "--temp", "0", "--chat-template-file", ROMEO];
    let said = |text: &str, more: &[&str]| out(&run(&[&args[..], &["-p", text], more].concat()));
    let kept = ["--session", talk.to_str().unwrap()];
    let first = said("Good morrow", &kept);
    let second = said("What then?", &kept);
    let whole = format!("ROMEO:\nGood morrow\n\nJULIET:\n{}\n\nROMEO:\nWhat then?\n\nJULIET:\n", first.trim());
    let again = out(&run(&["-p", &whole, "-n", "8", "--temp", "0"]));
    assert_eq!(second.trim(), again.trim());
    // Each of another kind is refused, and stays.
    let before = std::fs::read(&talk).unwrap();
    let o = run(&["-p", "x", "--session", kept[1]]);
    assert!(o.status.code() == Some(2) && err(&o).contains("conversation"), "{}", err(&o));
    assert_eq!(std::fs::read(&talk).unwrap(), before);
}

#[test]
fn the_second_start_of_a_long_session_reads_nothing_again() {
    let dir = folder("resume");
    let file = dir.join("s");
    let file = file.to_str().unwrap();
    let long = "But soft, what light through yonder window breaks? It is the east, and Juliet is the sun.\n".repeat(80);
    let at = |prompt: &str| -> Value {
        let o = run(&["-p", prompt, "-n", "1", "-c", "4096", "--temp", "0", "--json", "--session", file]);
        serde_json::from_str(&out(&o)).unwrap()
    };
    let (first, second) = (at(&long), at(""));
    let n = first["tokens"]["read"].as_u64().unwrap();
    assert!(n > 2000, "{n} tokens");
    assert_eq!(second["tokens"]["read"], 1);
    // From the file's opening to the first token, against the reading of the prompt.
    let seconds = |v: &Value| v["seconds"]["prompt"].as_f64().unwrap();
    let share = seconds(&second) / seconds(&first);
    say!("the second start took {:.1}% of the first", 100.0 * share);
    assert!(share < 0.05, "{first}\n{second}");
}

#[test]
fn a_prefix_is_read_once_and_then_found_by_later_runs() {
    let dir = folder("prefix");
    let prefix = dir.join("prefix");
    std::fs::write(&prefix, "But soft, what light through yonder window breaks? It is the east.\n".repeat(20)).unwrap();
    let at = |text: &str, more: &[&str]| -> (Value, String) {
        let args = [
            "run",
            "-p",
            text,
            "-n",
            "4",
            "--temp",
            "0",
            "-c",
            "1024",
            "--json",
            "--prefix-file",
            prefix.to_str().unwrap(),
        ];
        let o = tandem(&[&args[..], more].concat()).env("XDG_CACHE_HOME", &dir).output().unwrap();
        (serde_json::from_str(&out(&o)).unwrap(), err(&o))
    };
    let read = |v: &Value| v["tokens"]["read"].as_u64().unwrap();
    for more in [&["--raw"][..], &["--chat-template-file", ROMEO]] {
        let (first, said) = at("Who art thou?", more);
        assert!(said.contains("is cached in"), "{said}");
        let (second, said) = at("Who art thou?", more);
        assert!(!said.contains("is cached in"), "{said}");
        assert!(read(&second) * 10 < read(&first), "{first} {second}");
        assert_eq!(first["text"], second["text"]);
        let (third, _) = at("Another question!", more);
        assert!(read(&third) * 10 < read(&first), "{third}");
    }
}

#[test]
fn every_way_to_end_has_its_own_status() {
    let status = |args: &[&str]| {
        let o = run(args);
        (o.status.code().unwrap(), err(&o))
    };
    let (code, said) = status(&["-p", &"ROMEO: ".repeat(40), "-c", "32"]);
    assert!(code == 4 && said.contains("32"), "{code} {said}");
    for more in [&["--ignore-eos"][..], &[]] {
        let (code, said) = status(&[&["-p", "ROMEO:", "-c", "32"], more].concat());
        assert!(code == 0 && said.contains("the context of 32 tokens is full"), "what -1 asks for: {code} {said}");
    }
    let (code, said) = status(&["-p", "Hi", "-c", "12", "--seed", "1", "--chat-template-file", ROMEO]);
    assert!(code == 4 && said.contains("is cut there"), "an answer has an end: {code} {said}");
    let (code, said) = status(&["-p", "ROMEO:", "-c", "32", "-n", "100", "--ignore-eos"]);
    assert!(code == 4 && said.contains("filled up after 3") && said.contains("is cut there"), "{code} {said}");
    let (code, said) = status(&["-p", "x", "-c", "4000000000"]);
    assert!(code == 5 && said.contains("-c"), "{code} {said}");
    let (code, said) = status(&["-p", "x", "--grammar", "root ::= <[70]>", "--logit-bias", "70-inf"]);
    assert!(code == 6 && said.contains("dead end"), "{code} {said}");
    let (code, said) = status(&["-p", "x", "--no-such-flag"]);
    assert!(code == 2 && said.contains("--no-such-flag: no such flag"), "{said}");
    let (code, said) = status(&["-p", "x", "--top-kk", "3"]);
    assert!(code == 2 && said.contains("--top-k"), "a near flag is named: {said}");
    let (code, _) = status(&["-p", "x", "-m", "/nowhere.gguf"]);
    assert_eq!(code, 3);
}

#[test]
fn a_dry_run_prints_one_command_that_asks_for_the_same_again() {
    let asked =
        ["-p", "one 'two'\nthree", "--json", "--stop", "x", "-n", "5", "--temp", "0.3", "--seed", "4", "-t", "1"];
    let first = out(&run(&[&asked[..], &["--dry-run"]].concat()));
    assert_eq!(first.trim().lines().count(), 2, "the prompt has two lines: {first}");
    for flag in ["tandem run", "-c ", "-t 1", "-ngl 0", "-ctk f16", "--temperature 0.3", "--n-predict=5"] {
        assert!(first.contains(flag), "{flag}: {first}");
    }
    // A shell that runs it gets what was asked for, and what it would do is the same again.
    let shell = |end: &str| {
        let line = first.trim().replacen("tandem", "\"$0\"", 1) + end + " </dev/null";
        let mut c = Command::new("sh");
        c.args(["-c", &line, env!("CARGO_BIN_EXE_tandem")]).env("CUDA_VISIBLE_DEVICES", "");
        out(&c.output().unwrap())
    };
    assert_eq!(shell(" --dry-run"), first);
    let text = |json: &str| serde_json::from_str::<Value>(json).unwrap()["text"].clone();
    assert_eq!(text(&shell("")), text(&out(&run(&asked))));
}

#[test]
fn a_chat_from_a_pipe_answers_line_by_line_and_ends_with_what_was_wrong() {
    let chat = |stdin: &str, more: &[&str]| {
        let args = [&["chat", "--chat-template-file", ROMEO, "-n", "6", "--temp", "0"], more].concat();
        common::program(&args, stdin.as_bytes())
    };
    let text = out(&chat("Good morrow\nWhat then?\n", &[]));
    assert_eq!(text.lines().next().unwrap(), out(&chat("Good morrow\n", &[])).lines().next().unwrap());
    assert!(text.trim().lines().count() >= 2, "two answers and nothing else: {text}");
    let o = chat(&"Speak on, and on, and on, my love\n".repeat(20), &["-c", "64"]);
    assert_eq!(o.status.code(), Some(4), "{}", err(&o));
}

#[test]
fn completions_and_pages_of_the_manual_come_from_the_same_definitions() {
    for shell in ["bash", "zsh", "fish"] {
        let o = tandem(&["completions", shell]).output().unwrap();
        let text = out(&o);
        assert!(text.contains("expert-cache") && text.contains("perplexity"), "{shell}");
    }
    assert!(out(&tandem(&["man"]).output().unwrap()).contains("tandem"));
    assert!(out(&tandem(&["man", "run"]).output().unwrap()).contains("logit\\-bias"));
    assert_eq!(tandem(&["man", "walk"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn without_a_verb_a_script_answers_what_is_piped_in_and_no_chat_begins() {
    let o = tandem(&["-q", common::demo().to_str().unwrap(), "-n", "5"]).output().unwrap(); // nothing is piped in
    assert!(
        o.status.code() == Some(2) && o.stdout.is_empty() && err(&o).contains("the prompt is empty"),
        "{}",
        err(&o)
    );
    let o = run(&["-p", "x", "-fa", "off"]);
    assert!(o.status.code() == Some(2) && err(&o).contains("-fa off: not here"), "{}", err(&o));
}

#[test]
fn a_file_that_is_read_is_never_written_over() {
    let dir = folder("apart");
    let model = dir.join("m.gguf");
    std::fs::copy(common::demo(), &model).unwrap();
    let (m, before) = (model.to_str().unwrap(), std::fs::read(&model).unwrap());
    for args in [
        &["run", "-m", m, "-p", "x", "-n", "1", "-o", m][..],
        &["run", "-m", m, "-p", "x", "-n", "1", "--session", m],
        &["logits", "-m", m, "--tokens", "1,2", "--out", m],
        &["batch", "-m", m, "-o", m, m],
    ] {
        let o = tandem(args).output().unwrap();
        assert!(o.status.code() == Some(2) && err(&o).contains("the model"), "{args:?}: {}", err(&o));
        assert!(std::fs::read(&model).unwrap() == before, "{args:?}");
    }
    // Nor one that is no session, by a session; nor is a file emptied by a run that fails.
    let text = dir.join("notes");
    std::fs::write(&text, "my notes").unwrap();
    let t = text.to_str().unwrap();
    assert!(!run(&["-p", "x", "-n", "1", "--session", t]).status.success());
    assert!(!run(&["-p", &"x ".repeat(999), "-c", "32", "-o", t]).status.success());
    assert_eq!(std::fs::read_to_string(&text).unwrap(), "my notes");
}

#[test]
fn a_prefix_alone_is_continued_too() {
    let dir = folder("alone");
    let prefix = dir.join("p");
    std::fs::write(&prefix, "ROMEO:\nBut soft").unwrap();
    let with = ["run", "-p", "", "-n", "6", "--temp", "0", "--raw", "--prefix-file", prefix.to_str().unwrap()];
    let text = || out(&tandem(&with).env("XDG_CACHE_HOME", &dir).output().unwrap());
    let want = out(&run(&["-p", "ROMEO:\nBut soft", "-n", "6", "--temp", "0"]));
    assert_eq!((text(), text()), (want.clone(), want));
}

#[test]
fn a_session_that_a_stop_text_ended_goes_on_behind_what_was_shown() {
    let file = folder("stopped").join("s");
    let args = ["--temp", "0", "--session", file.to_str().unwrap()];
    let free = out(&run(&["-p", "ROMEO:", "-n", "40", "--temp", "0"]));
    let first = out(&run(&[&args[..], &["-p", "ROMEO:", "-n", "40", "-r", ","]].concat()));
    assert_eq!(first, free[..free.find(',').unwrap()]);
    let second = out(&run(&[&args[..], &["-p", "", "-n", "2"]].concat()));
    assert!(second.starts_with(','), "{first:?} then {second:?}");
}

#[test]
fn a_session_keeps_a_stop_text_s_beginning_within_a_token_and_a_conversation_without_an_answer() {
    let dir = folder("within");
    let (file, talk) = (dir.join("s"), dir.join("t"));
    let (file, talk) = (file.to_str().unwrap(), talk.to_str().unwrap());
    let whole = out(&run(&["-p", "ROMEO:", "-n", "12", "--temp", "0"]));
    // A stop that begins in the middle of some word: what stood before it in the word was shown.
    let at = whole.char_indices().filter(|(_, c)| c.is_alphabetic()).nth(3).unwrap().0;
    let args = ["-p", "ROMEO:", "-n", "12", "--temp", "0", "--session", file, "--stop", &whole[at..at + 3]];
    let shown = out(&run(&args));
    assert_eq!(shown, whole[..whole.find(&whole[at..at + 3]).unwrap()]);
    let head = tandem::store::peek(file.as_ref()).unwrap();
    let note: Value = serde_json::from_str(&head.note).unwrap();
    let pending = note["pending"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32);
    let ids: Vec<u32> = head.tokens.iter().copied().chain(pending).collect();
    let demo = tandem::gguf::Gguf::open(&common::demo()).unwrap();
    assert_eq!(tandem::text::Tokenizer::new(&demo).unwrap().decode(&ids, false), format!("ROMEO:{shown}"));
    // Nothing said: the question may be put again, and it is still a conversation.
    let said = |n: &str| run(&["-p", "hi", "-n", n, "--chat-template-file", ROMEO, "--session", talk]);
    assert!(said("0").status.success());
    assert!(!out(&said("3")).is_empty());
}

#[test]
fn a_form_is_for_the_answer_and_not_for_what_ends_the_thinking() {
    let file = folder("form").join("think.jinja");
    std::fs::write(&file, "{% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n{# </think> #}").unwrap();
    for budget in ["0", "8"] {
        let o = run(&[
            "-p",
            "Think",
            "-n",
            "60",
            "--seed",
            "3",
            "--reasoning-budget",
            budget,
            "--regex",
            "[a-z ]{5,12}",
            "--json",
            "--chat-template-file",
            file.to_str().unwrap(),
        ]);
        let v: Value = serde_json::from_str(&out(&o)).unwrap();
        let text = v["text"].as_str().unwrap();
        assert!((5..=12).contains(&text.len()) && text.chars().all(|c| c == ' ' || c.is_ascii_lowercase()), "{v}");
        assert_eq!(v["reasoning"].as_str().unwrap().is_empty(), budget == "0", "{v}");
    }
}

#[test]
fn an_option_for_templates_says_that_it_does_nothing_without_one() {
    for flag in [&["--reasoning", "off"][..], &["--reasoning-budget", "3"], &["--chat-template-kwargs", "{}"]] {
        let o = run(&[&["-p", "x", "-n", "1"], flag].concat());
        assert!(o.status.success() && err(&o).contains(&format!("{} has no effect: ", flag[0])), "{}", err(&o));
        assert_eq!(run(&[&["-p", "x", "-n", "1", "--strict"], flag].concat()).status.code(), Some(2), "{flag:?}");
    }
}

#[test]
fn what_is_thought_is_no_part_of_the_answer() {
    let file = folder("thought").join("think.jinja");
    std::fs::write(&file, "{% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n{# </think> #}").unwrap();
    let args = ["-p", "Think", "-n", "40", "--seed", "3", "--reasoning-budget", "8", "--chat-template-file"];
    let args = [&args[..], &[file.to_str().unwrap()]].concat();
    let v: Value = serde_json::from_str(&out(&run(&[&args[..], &["--json"]].concat()))).unwrap();
    let (thought, said) = (v["reasoning"].as_str().unwrap(), v["text"].as_str().unwrap());
    assert!(!thought.is_empty() && !said.is_empty() && !thought.contains("think>") && !said.contains("think>"), "{v}");
    assert_eq!(out(&run(&args)), said);
}
