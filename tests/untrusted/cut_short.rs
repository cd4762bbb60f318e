//! Model files that are cut short while they are used, and files of which a part was never written.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tandem::convert::Conversion;
use tandem::gguf::{CutShort, Gguf};
use tandem::quant;
use tandem::session::{Options, Session, Want};
use tandem::store;

use crate::{common, ended, err, folder, tandem};

const ROMEO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/romeo.jinja");

/// A copy of a model, to be damaged.
fn copy(of: &Path, name: &str) -> PathBuf {
    let file = folder(name).join("model.gguf");
    std::fs::copy(of, &file).unwrap();
    file
}

fn cut(file: &Path, bytes: u64) {
    File::options().write(true).open(file).unwrap().set_len(bytes).unwrap();
}

fn open(file: &Path) -> Session {
    Session::open(file, &Options { n_ctx: Some(64), n_batch: 8, threads: 2, ..Options::default() }).unwrap()
}

/// Feeds a part during which the file is cut after some steps, if it is one that is to fail.
fn feed(s: &mut Session, tokens: &[u32], cut_after: Option<(usize, &Path)>) -> anyhow::Result<Vec<f32>> {
    let mut steps = 0;
    let mut observer = |_: &str, _: &mut [f32], _: usize| {
        steps += 1;
        if let Some((n, file)) = cut_after
            && steps == n
        {
            cut(file, 4096);
        }
    };
    s.feed_observed(0, tokens, Want::Last, Some(&mut observer)).map(|output| output.into_logits())
}

/// A family whose states are rows by position, and one with recurrent blocks, which a step that is dropped has changed.
const FAMILIES: [&str; 2] = ["qwen3moe", "qwen35moe"];

#[test]
fn a_token_that_was_computed_with_a_file_cut_short_is_dropped_and_the_sequence_goes_on_elsewhere() {
    for family in FAMILIES {
        let good = common::local().join(format!("models/{family}.gguf"));
        let file = copy(&good, &format!("token-{family}"));
        let ids: Vec<u32> = (0..20).map(|i| i * 7 % 250).collect();
        let (prompt, singles) = ids.split_at(15);
        let mut whole = open(&good);
        let mut s = open(&file);
        let dir = file.parent().unwrap();
        store::prepare(&s).unwrap();
        for session in [&mut whole, &mut s] {
            session.feed(0, prompt, Want::None).unwrap();
            singles[..4].iter().for_each(|t| drop(session.feed(0, &[*t], Want::None).unwrap()));
        }
        let steps = s.engine().tape.steps.len();
        let e = feed(&mut s, &singles[4..], Some((steps / 2, &file))).unwrap_err();
        assert!(e.is::<CutShort>() && e.to_string().contains(file.to_str().unwrap()), "{e:#}");
        let left = s.tokens(0).len();
        assert_eq!(left, if family == "qwen3moe" { 19 } else { 15 }, "{family}: back to where nothing was overwritten");
        assert_eq!(s.tokens(0), &ids[..left]);
        // Nothing more is computed, and what there is can be saved for a file that is whole.
        assert!(s.feed(0, &[1], Want::Last).unwrap_err().is::<CutShort>());
        store::save(&dir.join("saved"), &s, 0, "text").unwrap();
        let mut again = open(&good);
        assert_eq!(store::load(&dir.join("saved"), &mut again, 0).unwrap(), "text");
        let mut last = Vec::new();
        for t in &ids[left..] {
            last = feed(&mut again, &[*t], None).unwrap();
        }
        assert_eq!(last, feed(&mut whole, &singles[4..], None).unwrap(), "{family}");
    }
}

#[test]
fn of_a_prompt_that_was_read_from_a_file_cut_short_the_batches_before_stay() {
    for family in FAMILIES {
        let good = common::local().join(format!("models/{family}.gguf"));
        let file = copy(&good, &format!("prompt-{family}"));
        let ids: Vec<u32> = (0..20).map(|i| i * 7 % 250).collect();
        let (mut whole, mut s) = (open(&good), open(&file));
        let steps = s.engine().tape.steps.len();
        let e = feed(&mut s, &ids, Some((steps + steps / 2, &file))).unwrap_err(); // in the second batch of 8
        assert!(e.is::<CutShort>(), "{e:#}");
        assert_eq!(s.tokens(0), &ids[..8], "{family}");
        let mut again = open(&good);
        again.restore(0, &s.snapshot(0).unwrap()).unwrap();
        assert_eq!(feed(&mut again, &ids[8..], None).unwrap(), feed(&mut whole, &ids, None).unwrap(), "{family}");
    }
}

#[test]
fn a_text_whose_model_is_cut_short_meanwhile_is_kept_in_its_session_and_goes_on() {
    let file = copy(&common::demo(), "run");
    let session = file.with_file_name("session");
    let (m, s) = (file.to_str().unwrap(), session.to_str().unwrap());
    let args = ["run", "-m", m, "--raw", "-c", "100000", "--ignore-eos", "--temp", "0", "--no-stdin"];
    let first = [&args[..], &["-p", "ROMEO:", "-n", "90000", "--session", s]].concat();
    let mut child = tandem(&first).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = vec![0; 200];
    out.read_exact(&mut text).unwrap();
    cut(&file, 100_000);
    out.read_to_end(&mut text).unwrap();
    let o = child.wait_with_output().unwrap();
    ended(&o, 3, m);
    assert!(err(&o).contains(" bytes while it was in use: wait until"), "{}", err(&o));
    // With the whole file it goes on as if it had never stopped.
    std::fs::copy(common::demo(), &file).unwrap();
    let run = |more: &[&str]| tandem(&[&args[..], more].concat()).output().unwrap();
    let more = run(&["-p", "", "-n", "30", "--session", s]);
    ended(&more, 0, "");
    text.extend(more.stdout);
    let whole = run(&["-p", "ROMEO:", "-n", &(text.len() * 2).min(90_000).to_string()]).stdout;
    assert!(whole.len() >= text.len() && whole.starts_with(&text), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn a_conversation_whose_model_is_cut_short_is_saved_with_what_was_said() {
    let file = copy(&common::demo(), "chat");
    let session = file.with_file_name("session");
    let (m, s) = (file.to_str().unwrap(), session.to_str().unwrap());
    let args = ["chat", "-m", m, "--chat-template-file", ROMEO, "-n", "8", "--temp", "0", "--session", s];
    let mut child = tandem(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    writeln!(keys, "Good morrow").unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300)); // until the answer is saved
    cut(&file, 100_000);
    writeln!(keys, "And now?").unwrap();
    drop(keys);
    out.read_to_end(&mut Vec::new()).unwrap();
    let o = child.wait_with_output().unwrap();
    ended(&o, 3, "while it was in use");
    let note: Value = serde_json::from_str(&store::peek(&session).unwrap().note).unwrap();
    assert_eq!(note["messages"][0]["content"], "Good morrow", "{note}");
    assert_eq!(note["messages"][1]["role"], "assistant", "{note}");
}

#[test]
fn requests_under_way_get_errors_when_the_model_is_cut_short() {
    let file = copy(&common::demo(), "batch");
    let args = ["batch", "-m", file.to_str().unwrap(), "-c", "60000", "--parallel", "2"];
    let mut child = tandem(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ask = |id: u32, n: u32| {
        writeln!(stdin, "{}", json!({ "id": id, "prompt": "ROMEO:", "n_predict": n, "ignore_eos": true })).unwrap();
    };
    ask(1, 2);
    let mut next = || serde_json::from_str::<Value>(&stdout.next().unwrap().unwrap()).unwrap();
    assert!(next()["text"].is_string());
    ask(2, 50_000);
    ask(3, 50_000);
    std::thread::sleep(std::time::Duration::from_millis(200)); // until they are under way
    cut(&file, 100_000);
    for id in [2, 3] {
        let line = next();
        assert_eq!(line["id"], id);
        assert!(line["error"].as_str().is_some_and(|e| e.contains("while it was in use")), "{line}");
    }
    drop(stdin);
    ended(&child.wait_with_output().unwrap(), 3, "while it was in use");
}

#[test]
fn a_checkpoint_that_is_cut_short_while_it_is_converted_gives_no_model() {
    let dir = folder("checkpoint");
    let from = common::local().join("zaya");
    for entry in std::fs::read_dir(&from).unwrap().flatten() {
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let to = dir.join("model.gguf");
    let conversion = Conversion::new(&dir, quant::by_name("f32")).unwrap();
    let sources: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().flatten().map(|e| e.path()).collect();
    let weights: Vec<&PathBuf> = sources.iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    let done = conversion.write(&to, &mut |_| weights.iter().for_each(|file| cut(file, 4096)));
    let e = done.unwrap_err();
    assert!(format!("{e:#}").contains("while it was in use"), "{e:#}");
    assert!(!to.exists());
}

/// Writes zeros over a part of a file, or makes a hole of it.
fn lose(file: &Path, from: u64, hole: bool) {
    let mut f = File::options().write(true).open(file).unwrap();
    let len = f.metadata().unwrap().len();
    if hole {
        f.set_len(from).unwrap();
        f.set_len(len).unwrap();
    } else {
        f.seek(SeekFrom::Start(from)).unwrap();
        f.write_all(&vec![0; (len - from) as usize]).unwrap();
    }
}

#[test]
fn a_file_of_which_a_part_was_never_written_is_refused_with_the_tensors_by_name() {
    let gguf = Gguf::open(&common::demo()).unwrap();
    let mut tensors: Vec<_> = gguf.tensors.iter().filter(|t| t.shape.len() > 1 && t.bytes > 1 << 16).collect();
    tensors.sort_by_key(|t| t.offset);
    let [.., before, last] = tensors[..] else { panic!("the demo has matrices") };
    for hole in [true, false] {
        // The last tensor, and half of the one before it.
        let file = copy(&common::demo(), "unwritten");
        lose(&file, before.offset + before.bytes as u64 / 2, hole);
        let m = file.to_str().unwrap();
        for args in [
            &["run", "-m", m, "-p", "x", "-n", "1", "--no-stdin"][..],
            &["logits", "-m", m, "--tokens", "1", "--out", "/dev/null"],
        ] {
            let o = tandem(args).output().unwrap();
            ended(&o, 3, "a file whose download is not finished");
            assert!(err(&o).contains(&before.name) && err(&o).contains(&last.name), "{}", err(&o));
        }
        let o = tandem(&["explain", m, "--ram-gbps", "9"]).output().unwrap();
        ended(&o, 0, "a file whose download is not finished");
        // A few rows at the end may be those of tokens that nobody uses.
        let file = copy(&common::demo(), "unwritten");
        lose(&file, gguf.tensors.iter().map(|t| t.range().end as u64).max().unwrap() - 8192, hole);
        let o = tandem(&["run", "-m", file.to_str().unwrap(), "-p", "x", "-n", "1", "--no-stdin"]).output().unwrap();
        ended(&o, 0, "rows that the model does not use");
    }
}
