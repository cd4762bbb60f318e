//! Input without an end, limits of the system, and streams that take nothing.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::{ended, err, folder, shell, tandem};

/// Address space of a program that opens the built-in model, with 300 MB to spare.
const MEMORY: &str = "ulimit -v 700000";
const ROMEO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/romeo.jinja");

#[test]
fn a_text_without_an_end_is_refused_wherever_it_comes_in() {
    let run = ["run", "-t", "2", "-n", "1"];
    for (more, from) in [
        (&["-p", "x", "-j", "/dev/zero", "--no-stdin"][..], "/dev/zero"),
        (&["-p", "x", "--grammar", "/dev/zero", "--no-stdin"], "/dev/zero"),
        (&["-p", "x", "--chat-template-file", "/dev/zero", "--no-stdin"], "/dev/zero"),
        (&["-p", "x", "--chat-template-file", ROMEO, "-sysf", "/dev/zero", "--no-stdin"], "/dev/zero"),
        (&["-f", "/dev/zero", "--no-stdin"], "/dev/zero"),
        (&["-p", "x"], "stdin"),
        (&[], "stdin"),
    ] {
        let o = shell(MEMORY, &[&run[..], more].concat(), "< /dev/zero");
        ended(&o, 2, &format!("{from}: more than 67.1 MB"));
    }
    for verb in ["tokenize", "template"] {
        ended(&shell(MEMORY, &[verb], "< /dev/zero"), 2, "stdin: more than 67.1 MB");
    }
    ended(&shell(MEMORY, &["batch", "-t", "2", "-q", "/dev/zero"], ""), 1, "line 1: it has not ended after 1.1 GB");
}

#[test]
fn a_prompt_that_the_context_cannot_hold_is_refused_by_its_beginning() {
    let dir = folder("long");
    let (plain, blank) = (dir.join("plain"), dir.join("blank"));
    std::fs::write(&plain, "But soft, what light through yonder window breaks?\n".repeat(1 << 20)).unwrap();
    std::fs::write(&blank, " ".repeat(60 << 20)).unwrap();
    for file in [&plain, &blank] {
        for more in [&["--raw"][..], &["--chat-template-file", ROMEO]] {
            let args = ["run", "-t", "2", "-n", "1", "--no-stdin", "-f", file.to_str().unwrap()];
            ended(&shell(MEMORY, &[&args[..], more].concat(), ""), 4, "has no room for the text that was given");
        }
    }
}

#[test]
fn a_line_of_a_batch_that_is_too_long_gets_an_error_and_the_others_get_answers() {
    let dir = folder("lines");
    let file = dir.join("requests.jsonl");
    let mut to = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
    let line = |id: u32, prompt: &str| format!("{}\n", json!({ "id": id, "prompt": prompt, "n_predict": 2 }));
    to.write_all(line(1, "ROMEO:").as_bytes()).unwrap();
    to.write_all(line(2, &"x".repeat(60 << 20)).as_bytes()).unwrap(); // a longer line than any
    to.write_all(line(3, &"y ".repeat(7 << 20)).as_bytes()).unwrap(); // a longer prompt than the context
    to.write_all(line(4, "JULIET:").as_bytes()).unwrap();
    drop(to);
    let o = shell(MEMORY, &["batch", "-t", "2", "-q", file.to_str().unwrap()], "");
    ended(&o, 0, "");
    let got: Vec<Value> =
        String::from_utf8(o.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(got.len(), 4);
    assert!(got[0]["text"].is_string() && got[3]["text"].is_string(), "{got:#?}");
    assert_eq!((&got[1]["line"], &got[2]["id"]), (&json!(2), &json!(3)));
    assert!(got[1]["error"].as_str().unwrap().contains("expected at most 16.8 MB"), "{}", got[1]);
    assert!(got[2]["error"].as_str().unwrap().contains("has no room for the text"), "{}", got[2]);
}

#[test]
fn a_system_that_starts_no_thread_is_told_in_a_sentence() {
    // No thread gets a stack of this size, as none comes about beyond `ulimit -u`, which does not bind root.
    let before = "export RUST_MIN_STACK=100000000000000";
    for args in [
        &["run", "-p", "x", "-n", "1", "--no-stdin"][..],
        &["batch", "-q"],
        &["chat", "--chat-template-file", ROMEO],
        &["bench", "-p", "8", "-n", "1"],
    ] {
        let o = shell(before, args, "< /dev/null");
        ended(&o, 1, "cannot start ");
        assert!(err(&o).contains("ulimit -u"), "{}", err(&o));
    }
}

#[test]
fn what_cannot_be_written_is_no_success() {
    for args in [&["--help"][..], &["run", "--help"], &["--version"], &["explain"], &["completions", "bash"]] {
        ended(&shell("true", args, "> /dev/full"), 1, "cannot write to stdout: No space left on device");
        ended(&shell("true", args, ">&-"), 1, "stdout is closed");
    }
    let run = ["run", "-p", "x", "-n", "5", "--no-stdin"];
    ended(&shell("true", &run, "> /dev/full"), 1, "cannot write to stdout: No space left on device");
    ended(&shell("true", &run, ">&-"), 1, "stdout is closed");
    // Where the answer goes elsewhere, stdout is not missed; nor is a reader that has seen enough.
    let out = folder("closed").join("o");
    ended(&shell("true", &[&run[..], &["-o", out.to_str().unwrap()]].concat(), ">&-"), 0, "");
    assert!(!std::fs::read(&out).unwrap().is_empty());
    ended(&shell("true", &["--help"], "| head -1 > /dev/null"), 0, "");
}

/// The options of a verb that writes to `file`.
fn writers(file: &str) -> [Vec<&str>; 3] {
    [
        vec!["run", "--raw", "-p", "x", "-n", "20", "--no-stdin", "-o", file],
        vec!["logits", "--tokens", "1,2,3", "--out", file],
        vec!["batch", "-q", "-o", file, "requests"],
    ]
}

#[test]
fn a_full_disk_is_told_with_the_file_and_leaves_no_empty_one() {
    let dir = folder("full");
    std::fs::write(dir.join("requests"), "{\"prompt\": \"ROMEO:\", \"n_predict\": 20}\n").unwrap();
    let go = format!("cd {}", dir.display());
    for args in writers("/dev/full") {
        ended(&shell(&go, &args, ""), 1, "cannot write /dev/full: No space left on device");
        assert!(Path::new("/dev/full").exists());
    }
    for args in writers("new") {
        ended(&shell(&format!("{go}; ulimit -f 0"), &args, ""), 1, "cannot write new: File too large");
        assert!(!dir.join("new").exists(), "{args:?} left an empty file");
        // One that was there stays, as does what was written of a text.
        std::fs::write(dir.join("old"), "").unwrap();
        let mut args = args;
        args.iter_mut().filter(|a| **a == "new").for_each(|a| *a = "old");
        ended(&shell(&format!("{go}; ulimit -f 0"), &args, ""), 1, "cannot write old: File too large");
        assert!(dir.join("old").exists());
    }
}

#[test]
fn a_limit_of_file_sizes_is_like_a_full_disk_and_an_old_session_stays() {
    let dir = folder("size");
    let session = dir.join("s");
    let s = session.to_str().unwrap();
    let part = |prompt: &'static str| ["run", "--raw", "-p", prompt, "-n", "30", "--no-stdin", "--session", s];
    assert!(tandem(&part("ROMEO:")).output().unwrap().status.success());
    let before = std::fs::read(&session).unwrap();
    ended(&shell("ulimit -f 2", &part("JULIET:"), ""), 1, &format!("cannot save to {s}: File too large"));
    assert!(std::fs::read(&session).unwrap() == before);
    let out = dir.join("o");
    let args = ["run", "--raw", "-p", "x", "-n", "6000", "-c", "8000", "--ignore-eos", "--no-stdin", "-o"];
    let o = shell("ulimit -f 1", &[&args[..], &[out.to_str().unwrap()]].concat(), "");
    ended(&o, 1, &format!("cannot write {}: File too large", out.display()));
    assert!(std::fs::read(&out).unwrap().len() >= 512, "what was written stays");
}
