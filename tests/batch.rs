//! `tandem batch`: a line in, a line out, whatever the lines are.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use tandem::sample::{Params, Sampler};
use tandem::schedule::{Request, Scheduler};
use tandem::session::{Options, Session};
use tandem::speculate::Speculation;
use tandem::talk::{self, GenParams, Generated, Writer};
use tandem::text::{Reader, Tokenizer};

fn tandem(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(args).env("CUDA_VISIBLE_DEVICES", ""); // on the CPU, whatever is here
    c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

/// What `tandem batch` answers to these lines, and its exit status.
fn answers(args: &[&str], lines: &str) -> (Vec<Value>, i32) {
    let out = common::program(&[&["batch"], args].concat(), lines.as_bytes());
    let text = String::from_utf8(out.stdout).unwrap();
    let values = text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect();
    (values, out.status.code().unwrap())
}

/// Beginnings of lines that the demo model could have seen.
fn prompts(n: usize) -> Vec<String> {
    let names = ["ROMEO", "JULIET", "KING HENRY", "First Citizen", "HAMLET", "GLOUCESTER", "NURSE", "OTHELLO"];
    let starts = ["O, ", "What say you", "My lord, I", "The sun", "I am not", "Good night", "Come, come,", "Where is"];
    let ends = ["", " and", " the", " to be", " my", " of love", " in the night", ","];
    let one = |i: usize| format!("{}:\n{}{}", names[i % 8], starts[i / 8 % 8], ends[i / 64 % 8]);
    (0..n).map(|i| one(i * 7 + i / 512)).collect()
}

#[test]
fn a_thousand_lines_are_answered_in_order_as_run_answers_them_and_bad_ones_are_errors() {
    let prompts = prompts(1000);
    let bad = ["{", r#"{"id": "bad", "prompt": 1}"#, r#"{"id": "bad", "prompt": "x", "n_perdict": 1}"#];
    let mut lines = String::new();
    for (i, p) in prompts.iter().enumerate() {
        lines += &match i % 100 {
            77 => format!("{}\n", bad[i / 100 % 3]),
            _ => format!("{}\n", json!({ "id": i, "prompt": p, "temperature": 0, "n_predict": 5 + i % 20 })),
        };
    }
    let (got, status) = answers(&["--parallel", "8"], &lines);
    assert_eq!((got.len(), status), (1000, 0));

    let mut session = Session::open(&common::demo(), &Options { n_ctx: Some(512), ..Options::default() }).unwrap();
    let tokenizer = Tokenizer::new(session.engine().gguf()).unwrap();
    for (i, (p, answer)) in prompts.iter().zip(&got).enumerate() {
        if i % 100 == 77 {
            assert!(answer["error"].is_string() && answer.get("text").is_none(), "{answer}");
            assert_eq!(answer["line"], i + 1);
            continue;
        }
        assert_eq!(answer["id"], i);
        session.clear(0);
        let ids = tokenizer.encode(p, true, true).unwrap();
        let sampler = Sampler::new(Params { temperature: 0.0, ..Params::default() }, 0, Vec::new());
        let asked = GenParams { limit: Some(5 + i % 20), ..GenParams::default() };
        let mut writer = Writer::new(&tokenizer, sampler, None, Reader::plain(), asked, &ids);
        let output = session.feed(0, &ids, writer.want()).unwrap();
        talk::write(
            &mut session,
            &mut Speculation::off(),
            0,
            &mut writer,
            output,
            &AtomicBool::new(false),
            &mut |_, _| Ok(()),
        )
        .unwrap();
        assert_eq!(answer["text"], writer.generated.answer, "line {i}: {p:?}");
    }
    // And that is what the verb writes.
    for i in [0, 13, 500] {
        let n = (5 + i % 20).to_string();
        let out = tandem(&["run", "-p", &prompts[i], "--temp", "0", "-n", &n]).stdin(Stdio::null()).output().unwrap();
        assert_eq!(got[i]["text"], String::from_utf8(out.stdout).unwrap());
    }
}

/// Runs a scheduler until nothing is left to do; what was generated, by the requests' numbers.
fn drained(s: &mut Scheduler<'_>) -> BTreeMap<usize, Generated> {
    let mut all = BTreeMap::new();
    while !s.is_idle() {
        for answer in s.step().unwrap() {
            answer.end.unwrap();
            all.insert(answer.number, answer.generated);
        }
    }
    all
}

#[test]
fn a_long_prompt_that_arrives_midway_is_read_between_the_tokens_of_the_others() {
    let open = |n_seq: usize| {
        Session::open(&common::demo(), &Options { n_ctx: Some(2048), n_seq, ..Options::default() }).unwrap()
    };
    let tokenizer = Tokenizer::new(open(1).engine().gguf()).unwrap();
    let long: String = (0..90).map(|i| format!("{i} good night, and {} good morrow.\n", i * i)).collect();
    let texts = ["ROMEO:\nO, ", "KING HENRY:\nThe sun", long.as_str()];
    let request = |number: usize| {
        let prompt = tokenizer.encode(texts[number], true, true).unwrap();
        let sampler = Sampler::new(Params::default(), 7 + number as u64, Vec::new());
        let params = GenParams { limit: Some(60), ignore_eos: true, logprobs: Some(2), ..GenParams::default() };
        let writer = Writer::new(&tokenizer, sampler, None, Reader::plain(), params, &prompt);
        Request { number, prompt, writer }
    };
    let n_long = request(2).prompt.len();
    assert!((400..1900).contains(&n_long), "{n_long} tokens");
    let alone = (0..3).map(|i| {
        let mut s = Scheduler::new(open(1), Speculation::off());
        s.add(request(i)).unwrap();
        drained(&mut s).remove(&i).unwrap()
    });
    let alone: Vec<Generated> = alone.collect();

    let mut s = Scheduler::new(open(3), Speculation::off());
    (0..2).for_each(|i| s.add(request(i)).unwrap());
    (0..5).for_each(|_| assert!(s.step().unwrap().is_empty()));
    s.add(request(2)).unwrap();
    let mut steps = 0;
    while s.session().tokens(2).len() < n_long {
        let have = |s: &Scheduler<'_>| [0, 1, 2].map(|i| s.session().tokens(i).len());
        let before = have(&s);
        assert!(s.step().unwrap().is_empty());
        let after = have(&s);
        assert_eq!((after[0], after[1]), (before[0] + 1, before[1] + 1), "an answer stalled");
        assert!(after[2] > before[2] && after[2] - before[2] <= 128, "{} tokens in a step", after[2] - before[2]);
        steps += 1;
    }
    assert_eq!(steps, n_long.div_ceil(128));
    let together = drained(&mut s);
    for (i, alone) in alone.iter().enumerate() {
        // Log-probabilities too: the logits are bit-equal.
        assert_eq!((&together[&i].tokens, &together[&i].logprobs), (&alone.tokens, &alone.logprobs), "request {i}");
    }
}

#[test]
fn a_program_that_keeps_the_process_open_gets_each_answer_before_it_asks_again() {
    let mut child = tandem(&["batch", "--parallel", "4"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for i in 0..3 {
        writeln!(stdin, "{}", json!({ "id": i, "prompt": "ROMEO:", "n_predict": 4, "seed": i })).unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&answer["id"], &answer["tokens"]["generated"]), (&json!(i), &json!(4)), "{answer}");
        assert_eq!(answer["seed"], i);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_prompts_begin_with_is_computed_once() {
    let common = "ROMEO:\nBut, soft! what light through yonder window breaks? It is the east, and Juliet is the sun.";
    let lines: String = (0..12)
        .map(|i| format!("{}\n", json!({ "id": i, "prompt": format!("{common}\n{i} times"), "n_predict": 2 })))
        .collect();
    let (got, _) = answers(&["--parallel", "3"], &lines);
    let known =
        |v: &Value| v["tokens"]["known"].as_u64().unwrap() as f64 / v["tokens"]["prompt"].as_u64().unwrap() as f64;
    assert_eq!(got.len(), 12);
    assert!(got[1..].iter().all(|v| known(v) > 0.8), "{got:#?}");
}

#[test]
fn requests_of_openais_batch_files_are_answered_in_kind() {
    let chat = json!({ "custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {
        "model": "m", "messages": [{ "role": "user", "content": "Who art thou?" }], "max_tokens": 6, "temperature": 0,
        "logprobs": true, "top_logprobs": 2 } });
    let text = json!({ "custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {
        "model": "m", "prompt": "ROMEO:", "max_tokens": 3, "seed": 1 } });
    let wrong = json!({ "custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": { "input": "x" } });
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/romeo.jinja");
    let (got, _) = answers(&["--chat-template-file", template], &format!("{chat}\n{text}\n{wrong}\n"));
    let ids: Vec<&Value> = got.iter().map(|v| &v["custom_id"]).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    let body = &got[0]["response"]["body"];
    assert_eq!((&got[0]["response"]["status_code"], &got[0]["error"]), (&json!(200), &Value::Null));
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("m")));
    let choice = &body["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["role"]), (&json!("length"), &json!("assistant")));
    let probs = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(probs.len(), 6);
    for p in probs {
        let top = p["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"]), (2, &p["token"]), "greedy takes the likeliest");
        assert!(p["logprob"].as_f64().unwrap() <= 0.0);
    }
    let usage = &body["usage"];
    assert_eq!(usage["completion_tokens"], 6);
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), usage["prompt_tokens"].as_u64().unwrap() + 6);
    assert_eq!(got[1]["response"]["body"]["object"], "text_completion");
    assert_eq!(got[2]["response"]["status_code"], 400);
    assert!(got[2]["error"]["message"].as_str().unwrap().contains("/v1/chat/completions"), "{}", got[2]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_answer_is_no_finished_one_in_openais_form() {
    let mut child = tandem(&["batch", "-c", "40000"]).spawn().unwrap();
    let body = json!({ "prompt": "ROMEO:", "max_tokens": 30000, "ignore_eos": true });
    let line = json!({ "custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body });
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", json!({ "prompt": "ROMEO:", "n_predict": 1 })).unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap(); // it listens now
    writeln!(stdin, "{line}").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    common::signal("INT", child.id());
    let mut answer = String::new();
    stdout.read_line(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&answer["custom_id"], &answer["response"]["status_code"]), (&json!("a"), &json!(503)), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("interrupted"), "{answer}");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn lines_that_are_no_text_or_empty_do_not_disturb_the_others() {
    let good = |i: u32| json!({ "id": i, "prompt": "ROMEO:", "n_predict": 3 }).to_string();
    let lines = [good(1).as_bytes(), b"\xff\xfe", b"", good(2).as_bytes(), b"{\"id\": 9}"].join(&b'\n');
    let out = common::program(&["batch", "--parallel", "2"], &lines);
    let got: Vec<Value> =
        String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(out.status.success());
    assert_eq!(got.len(), 4);
    assert_eq!((&got[0]["id"], &got[2]["id"]), (&json!(1), &json!(2)));
    assert_eq!((&got[1]["line"], &got[3]["line"]), (&json!(2), &json!(5)), "as an editor counts them");
    assert_ne!(got[0]["text"], got[2]["text"], "equal requests without a seed are drawn apart");
}

#[test]
fn a_form_that_was_cut_is_in_the_status_under_strict_and_a_warning_otherwise() {
    let lines = "{\"prompt\": \"x\", \"regex\": \"(ab){30}\", \"n_predict\": 3}\n{\"prompt\": \"x\", \"n_predict\": 2}";
    let (values, status) = answers(&["--strict"], lines);
    assert_eq!((values.len(), &values[0]["complete"], status), (2, &json!(false), 8), "{values:?}");
    assert_eq!(answers(&[], lines).1, 0);
    assert_eq!(answers(&["--strict"], lines.lines().nth(1).unwrap()).1, 0);
}

#[test]
fn several_answers_at_once_are_those_that_come_one_by_one() {
    let lines: String = prompts(40)
        .iter()
        .enumerate()
        .map(|(i, p)| format!("{}\n", json!({ "id": i, "prompt": p, "n_predict": 12, "seed": i, "top_k": 20 })))
        .collect();
    let text = |v: &[Value]| v.iter().map(|a| a["text"].clone()).collect::<Vec<_>>();
    let (one, _) = answers(&["--parallel", "1"], &lines);
    let (eight, _) = answers(&["--parallel", "8"], &lines);
    assert_eq!(text(&one), text(&eight));
    let (mut any, _) = answers(&["--parallel", "8", "--unordered"], &lines);
    any.sort_by_key(|v| v["id"].as_u64());
    assert_eq!(text(&one), text(&any));
}
