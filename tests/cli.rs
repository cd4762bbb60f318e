//! The program as a person or a script meets it: what is on stdout, what on stderr, how it ends.

mod common;

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use common::source::Source;
use common::{floats, nmse, reference};

fn tandem(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(args).stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", ""); // on the CPU, whatever is here
    c
}

fn run(args: &[&str]) -> Output {
    tandem(args).output().unwrap()
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

/// A file of one test.
fn scratch(name: &str) -> std::path::PathBuf {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(name)
}

#[test]
fn run_writes_the_text_and_nothing_else_to_stdout() {
    let o = run(&["run", "-p", "ROMEO:", "-n", "40", "--seed", "1"]);
    assert!(o.status.success(), "{}", err(&o));
    let text = String::from_utf8(o.stdout.clone()).expect("whole characters");
    assert!(text.split_whitespace().count() >= 10, "forty tokens are a few words: {text:?}");
    assert!(!text.contains("tandem") && !text.contains("token") && !text.contains("ROMEO:ROMEO"), "{text}");
    assert!(err(&o).contains("built-in demo"), "what was used is reported on stderr: {}", err(&o));
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_one_another() {
    let text = |seed| run(&["run", "-p", "JULIET:", "-n", "30", "--seed", seed]).stdout;
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn temperature_zero_needs_no_seed_to_repeat_itself() {
    let text = || run(&["run", "-p", "KING", "-n", "20", "--temp", "0"]).stdout;
    let first = text();
    assert!(!first.is_empty());
    assert_eq!(first, text());
}

#[test]
fn a_prompt_from_a_flag_a_file_and_a_pipe_is_the_same() {
    let file = scratch("prompt.txt");
    std::fs::write(&file, "First Citizen:\n").unwrap();
    let tail = ["-n", "12", "--temp", "0"];
    let with = |args: &[&str]| run(&[&["run"], args, &tail].concat()).stdout;
    let flag = with(&["-p", "First Citizen:\n"]);
    assert_eq!(flag, with(&["-f", file.to_str().unwrap()]));
    let mut child = tandem(&[&["run"][..], &tail].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"First Citizen:\n").unwrap();
    assert_eq!(flag, child.wait_with_output().unwrap().stdout);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = tandem(&["run", "-p", "ROMEO:", "-n", "400", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ten = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut ten).unwrap(); // and the pipe closes here
    let o = child.wait_with_output().unwrap();
    assert!(o.status.success(), "{}", err(&o));
    assert!(!err(&o).contains("panicked") && !err(&o).contains("Broken pipe"), "{}", err(&o));
}

#[test]
fn an_answer_comes_whole_where_nobody_reads_what_is_said_beside_it() {
    let args = ["run", "-p", "ROMEO:", "-n", "20", "--temp", "0"];
    let mut child = tandem(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let o = child.wait_with_output().unwrap();
    assert!(o.status.success());
    assert_eq!(o.stdout, run(&args).stdout);
    // Nor does a failure become another one.
    let mut child = tandem(&["run", "-m", "nowhere", "-p", "x"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_with_the_text_so_far_and_status_130() {
    let mut child = tandem(&["run", "-p", "ROMEO:", "-n", "100000", "-c", "100000", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 20];
    out.read_exact(&mut first).unwrap();
    common::signal("INT", child.id());
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let o = child.wait_with_output().unwrap();
    assert_eq!(o.status.code(), Some(130), "{}", err(&o));
    String::from_utf8([&first[..], &rest].concat()).expect("whole characters to the end");
    assert!(err(&o).contains("stopped: interrupted"), "{}", err(&o));
}

#[cfg(unix)]
#[test]
fn a_text_that_is_ended_from_outside_is_kept_in_its_session_unless_hangups_are_to_be_ignored() {
    let file = scratch("ended.session");
    let _ = std::fs::remove_file(&file);
    let line = "trap '' HUP; exec \"$0\" run -p ROMEO: -n 100000 -c 100000 --ignore-eos --session \"$1\"";
    let mut child = Command::new("sh");
    child.args(["-c", line, env!("CARGO_BIN_EXE_tandem"), file.to_str().unwrap()]).env("CUDA_VISIBLE_DEVICES", "");
    let mut child = child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut some = [0; 20];
    out.read_exact(&mut some).unwrap();
    common::signal("HUP", child.id());
    let mut more = [0; 200];
    out.read_exact(&mut more).unwrap(); // as under nohup
    common::signal("TERM", child.id());
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let o = child.wait_with_output().unwrap();
    assert_eq!(o.status.code(), Some(143), "{}", err(&o));
    let kept = std::fs::metadata(&file).unwrap().len();
    assert!(kept > 1000, "{kept} bytes");
}

#[test]
fn an_unknown_metadata_key_is_told_once_and_an_error_under_strict() {
    let mut source = Source::open("qwen3moe", &common::local().join("models/qwen3moe.gguf"));
    source.set("norm_top_k_prob", true).set("\u{1b}[2J", 3u32);
    let file = scratch("unknown_key.gguf");
    std::fs::write(&file, source.bytes()).unwrap();
    let (file, out) = (file.to_str().unwrap(), scratch("unknown_key.f32"));
    for verb in [
        &["run", "--raw", "-p", "x", "-n", "2"][..],
        &["explain", "--ram-gbps", "50"],
        &["logits", "--tokens", "1", "--out", out.to_str().unwrap()],
    ] {
        let args = [&verb[..1], &["-m", file], &verb[1..]].concat();
        let o = run(&args);
        let told = err(&o);
        assert!(o.status.success(), "{args:?}: {told}");
        assert_eq!(told.matches("unknown metadata, not used").count(), 1, "{args:?}: {told}");
        assert!(told.contains("\"qwen3moe.norm_top_k_prob\" (value true)") && !told.contains('\u{1b}'), "{told}");
        let o = run(&[&args[..], &["--strict"]].concat());
        assert_eq!(o.status.code(), Some(2), "{args:?}: {}", err(&o));
        assert!(err(&o).contains("qwen3moe.norm_top_k_prob") && o.stdout.is_empty(), "{args:?}: {}", err(&o));
    }
    source.set("logit_scale", 0.25f32);
    std::fs::write(file, source.bytes()).unwrap();
    let o = run(&["run", "-m", file, "-p", "x"]);
    assert_eq!(o.status.code(), Some(3), "{}", err(&o));
    assert!(err(&o).contains("qwen3moe.logit_scale is 0.25, expected 1"), "{}", err(&o));
}

#[test]
fn failures_have_their_own_exit_status_and_say_what_to_do() {
    let bad = scratch("bad.gguf");
    std::fs::write(&bad, "GGUF but not really").unwrap();
    let bad = bad.to_str().unwrap();
    for (args, status, says) in [
        (&["run", "-m", "/does/not/exist.gguf", "-p", "x"][..], 3, "/does/not/exist.gguf"),
        (&["run", "-m", bad, "-p", "x"], 3, "bad.gguf"),
        (&["run", "-p", "x", "--temp", "-1"], 2, "--temp"),
        (&["run", "-p", "x", "--top-p", "1.5"], 2, "--top-p"),
        (&["run", "-p", "x", "-ctk", "q9"], 2, "expected f32, f16, q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, bf16"),
        (&["run", "-p", "x", "-ctk", "q6_k"], 2, "-ctk q6_k: Q6_K is no cache type"),
        (&["run", "-m", "tests/data/models/gpt-oss.gguf", "-p", "x", "-ctk", "q4_0"], 2, "-ctk q4_0: the head size"),
        (
            &["run", "-m", "tests/data/models/deepseek2-v3.gguf", "-p", "x", "-ctv", "q8_0", "--strict"],
            2,
            "-ctv q8_0 has no",
        ),
        (&["run", "-p", "x", "-ot", "exps=MOON"], 2, "MOON"),
        (&["run", "-p", "x", "--strict", "-ngl", "99"], 2, "-ngl 99 has no effect"),
        (&["run", "-p", "x", "--strict", "-cmoe"], 2, "-cmoe has no effect"),
        (&["run", "-p", "x", "--strict", "-ncmoe", "2", "-ngl", "0"], 2, "-ncmoe 2 has no effect: -ngl 0"),
        (&["run", "-p", "x", "--strict", "--mlock"], 2, "--mlock has no effect: the built-in model"),
        (&["logits", "--tokens", "1,2,x", "--out", "x.f32"], 2, "\"x\" is no token ID"),
        (&["verify", "-m", "/does/not/exist.gguf"], 3, "/does/not/exist.gguf"),
        (&["run", "-p", "x", "--no-such-flag"], 2, "--no-such-flag"),
        (&["run", "-p", ""], 2, "the prompt is empty"),
        (&["run", "-p", "a long prompt in a small context", "-c", "4"], 4, "context of 4 tokens has no room for the"),
        (&["run", "-f", "benches/text.txt", "-c", "600"], 4, "600 tokens has no room for the 1"), // over 10,000
        (&["run", "-f", "/does/not/exist.txt"], 1, "/does/not/exist.txt"),
        (&["run", "-p", "x", "--regex", "a(b"], 2, "unclosed group"),
        (&["run", "-p", "x", "--regex", "a", "-j", "{}"], 2, "cannot be used with"),
        (&["run", "-p", "x", "--regex", "a", "--ignore-eos"], 2, "cannot be used with"),
        (&["run", "-p", "x", "-j", "{\"a\""], 2, "line 1 column 4"),
        (&["run", "-p", "x", "-jf", "/does/not/exist.json"], 1, "/does/not/exist.json"),
        (&["run", "-p", "x", "-j", "{\"not\": {}}"], 2, "at #: \"not\" is not supported"),
        (&["run", "-p", "x", "-j", "{\"type\": \"strin\"}"], 2, "Invalid type: strin"),
        (&["run", "-p", "x", "--grammar", "root ::= a"], 2, "line 1, column 10: there is no rule a"),
        (&["run", "-p", "x", "--grammar", "start: a"], 2, "unknown name"),
        (&["run", "-p", "x", "--grammar", "root ::= root"], 6, "dead end"),
    ] {
        let o = run(args);
        assert_eq!(o.status.code(), Some(status), "{args:?}: {}", err(&o));
        assert!(err(&o).contains(says), "{args:?} says {}", err(&o));
        assert!(o.stdout.is_empty(), "{args:?} wrote to stdout");
        assert!(!err(&o).contains("panicked"), "{args:?}: {}", err(&o));
    }
}

#[test]
fn stdout_has_the_form_that_was_asked_for_and_one_cut_short_is_said() {
    let schema = scratch("schema.json");
    let text = r#"{"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 99}}, "required": ["n"], "additionalProperties": false}"#;
    std::fs::write(&schema, text).unwrap();
    for from in [["-j", text], ["-jf", schema.to_str().unwrap()]] {
        let o = run(&[&["run", "-p", "x"], &from[..]].concat());
        assert!(o.status.success(), "{}", err(&o));
        let value: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
        assert!((1..=99).contains(&value["n"].as_i64().unwrap()), "{value}");
    }
    let o = run(&["run", "-p", "x", "--grammar", "root ::= \"é\" [0-9]{4}"]);
    let text = String::from_utf8(o.stdout.clone()).unwrap();
    assert!(text.len() == 6 && text.starts_with('é') && text[2..].parse::<u16>().is_ok(), "{text}: {}", err(&o));
    let o = run(&["run", "-p", "x", "--regex", "-?(ab){30}", "-n", "3"]);
    assert!(o.status.success() && err(&o).contains("not complete by its grammar"), "{}", err(&o));
    let o = run(&["run", "-p", "x", "--regex", "-?(ab){30}", "-n", "3", "--strict"]);
    assert!(o.status.code() == Some(8) && err(&o).contains("not complete by its grammar"), "{}", err(&o));
    assert!(!o.stdout.is_empty(), "what was written stays");
}

#[test]
fn llama_cpp_s_short_flags_are_taken_and_an_option_without_effect_is_said() {
    let args =
        ["run", "-p", "x", "-n", "1", "-ngl", "99", "-ncmoe", "3", "-ub", "64", "-tb", "1", "-ctk", "q8_0", "-ctv=f32"];
    for more in [&["-ot", "exps=CPU"][..], &["--expert-cache", "2M", "--deterministic"]] {
        let o = run(&[&args[..], more].concat());
        assert!(o.status.success(), "{}", err(&o));
        assert!(err(&o).contains("-ngl 99 has no effect: "), "{}", err(&o));
    }
    let o = run(&["run", "-p", "x", "-n", "5", "-cmoe", "--stats", "--ignore-eos"]);
    assert!(o.status.success() && err(&o).contains("decode: 4 tokens, "), "{}", err(&o));
    assert!(err(&o).contains(" predicted") && err(&o).contains("limited by "), "{}", err(&o));
    let o = run(&["run", "-p", "x", "-n", "1", "-cmoe", "-ncmoe", "3"]);
    assert_eq!(o.status.code(), Some(2), "all and three are two things: {}", err(&o));
}

#[test]
fn v_tells_of_loading_placement_and_text_and_vv_of_every_step() {
    let told = |more: &[&str]| {
        let o = run(&[&["run", "-p", "ROMEO:", "-n", "2"], more].concat());
        assert!(o.status.success(), "{}", err(&o));
        (String::from_utf8(o.stdout.clone()).unwrap(), err(&o))
    };
    let [(_, plain), (_, v), (_, vv)] = [&[][..], &["-v"], &["-vv"]].map(told);
    for words in
        ["tensors", "chat template: none", "sampling: temperature", "CPU: 57 of 57 steps", "ready after", "threads: "]
    {
        assert!(v.contains(words) && vv.contains(words) && !plain.contains(words), "{words}: {plain}{v}{vv}");
    }
    for words in ["step blk.0.attn_q: linear on CPU", "read 2 tokens from position 0", "decoded 1 token(s)"] {
        assert!(vv.contains(words) && !v.contains(words), "{words}: {v}{vv}");
    }
}

#[test]
fn logits_writes_the_asked_rows_and_they_equal_the_reference() {
    let r = reference("qwen3moe").expect("a model of the repository");
    let out = scratch("logits.f32");
    let positions: Vec<String> = r.positions.iter().map(u32::to_string).collect();
    let tokens: Vec<String> = r.prompt.iter().map(u32::to_string).collect();
    let (model, path) = (r.gguf.to_str().unwrap(), out.to_str().unwrap());
    let args = ["logits", "-m", model, "--tokens", &tokens.join(","), "--out", path, "-ctk", "f32", "-ctv", "f32"];
    let o = run(&[&args[..], &["--positions", &positions.join(",")]].concat());
    assert!(o.status.success(), "{}", err(&o));
    assert!(nmse(&r.logits, &floats(&out)) < 1e-8);

    // The last position, counted from the end, from a token file.
    let file = r.gguf.with_extension("tokens.json");
    let args = ["logits", "-m", model, "--tokens", file.to_str().unwrap(), "--positions", "-1", "--out", path];
    let o = run(&args);
    assert!(o.status.success(), "{}", err(&o));
    let n = floats(&out).len();
    assert!(nmse(&r.logits[r.logits.len() - n..], &floats(&out)) < 1e-5, "f16 cache by default");
}

#[test]
fn bench_prints_a_row_per_test_in_every_form() {
    let args = ["bench", "-p", "32", "-n", "4", "-d", "0,16", "-r", "2", "-o"];
    let form = |o: &str| {
        let o = run(&[&args[..], &[o]].concat());
        assert!(o.status.success(), "{}", err(&o));
        String::from_utf8(o.stdout).unwrap()
    };
    let md = form("md");
    for test in ["pp32", "tg4", "pp32 @ d16", "tg4 @ d16"] {
        assert!(md.contains(&format!("| {test} |")), "{md}");
    }
    assert_eq!(form("csv").lines().count(), 5);
    let json: serde_json::Value = serde_json::from_str(&form("json")).unwrap();
    let rows = json.as_array().unwrap();
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|r| r["tokens_per_s"].as_f64().unwrap() > 0.0));
    // Weights that caches hold are compared with reading as much, not with reading memory.
    assert!(rows[2]["read_bytes"].as_u64().unwrap() <= rows[2]["size_bytes"].as_u64().unwrap(), "{}", rows[2]);
    // Text, model and arithmetic are fixed, so the last logits are too.
    let hash = |i: usize| rows[i]["logits_hash"].as_str().unwrap().to_string();
    assert_eq!(hash(0), serde_json::from_str::<serde_json::Value>(&form("json")).unwrap()[0]["logits_hash"]);
    assert_ne!(hash(0), hash(1));
}

#[test]
fn bench_measures_decoding_with_drafts_and_without_in_every_form() {
    let args = ["bench", "--spec", "ngram", "--draft-max", "3", "-p", "64", "-n", "24", "-r", "2", "-o"];
    let form = |o: &str| {
        let o = run(&[&args[..], &[o]].concat());
        assert!(o.status.success(), "{}", err(&o));
        String::from_utf8(o.stdout).unwrap()
    };
    assert!(form("md").contains("| ngram tg24 @ p64 |"), "{}", form("md"));
    assert_eq!(form("csv").lines().count(), 2 + 1 + 5, "a row of answers, a line, a row for each number of rows");
    let json: serde_json::Value = serde_json::from_str(&form("json")).unwrap();
    let row = &json.as_array().unwrap()[0];
    assert!(row["ratio"].as_f64().unwrap() > 0.0 && row["same_text"] == true, "{row}");
    assert_eq!(row["tokens_per_s_each"].as_array().unwrap().len(), 2, "{row}");
    assert_eq!(row["sources"][0]["source"], "ngram");
    let steps = row["steps"].as_array().unwrap();
    let experts = |i: usize| steps[i]["experts_per_layer"].as_f64().unwrap();
    assert_eq!(steps.len(), 4);
    assert!(experts(0).fract() == 0.0 && experts(3) > experts(0) && experts(3) <= 4.0 * experts(0), "{row}");
    for (more, word) in [(["--spec", "mtp"], "--spec mtp: "), (["-md", "demo/demo.gguf"], "only with --spec")] {
        let o = run(&["bench", more[0], more[1]]);
        assert!(o.status.code() == Some(2) && err(&o).contains(word), "{}", err(&o));
    }
}

#[test]
fn doctor_says_what_the_machine_can_do_and_its_json_has_every_field() {
    let o = run(&["doctor"]);
    assert!(o.status.success(), "{}", err(&o));
    let text = String::from_utf8(o.stdout).unwrap();
    for head in [
        "processor",
        "cores",
        "instructions",
        "matrix tiles",
        "memory",
        "huge pages",
        "Reading memory",
        "1 thread",
        "Reading the drive",
        "Which file to take",
        "Remarks",
    ] {
        assert!(text.contains(head), "{head}: {text}");
    }
    for (path, status, words) in [("no/such.gguf", 1, "cannot read no/such.gguf"), ("src", 2, "src: expected a file")] {
        let o = run(&["doctor", path]);
        assert!(o.status.code() == Some(status) && err(&o).contains(words) && o.stdout.is_empty(), "{}", err(&o));
    }
    let o = run(&["doctor", "--json"]);
    let j: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    for (key, fields) in [
        ("cpu", "name isa matrix_tiles flags cores efficiency_cores logical allowed threads cache_bytes"),
        ("limits", "cpus memory_bytes lockable_bytes"),
        (
            "memory",
            "total_bytes free_bytes swap_bytes swap_free_bytes huge_pages huge_reserved_bytes sticks sticks_unknown",
        ),
        ("others", "busy stolen load"),
        ("drive", "file reads unknown"),
    ] {
        let object = j[key].as_object().unwrap_or_else(|| panic!("{key}: {j}"));
        assert_eq!(object.keys().map(String::as_str).collect::<Vec<_>>().join(" "), fields, "{key}");
    }
    for key in ["nodes", "governors", "virtual_machine", "bandwidth", "gpu", "gpu_unknown", "models", "remarks"] {
        assert!(j.get(key).is_some(), "{key}: {j}");
    }
    let rates = j["bandwidth"].as_array().unwrap();
    assert!(rates.iter().all(|r| r["gbps"].as_f64() > Some(0.0)), "{rates:?}");
    assert_eq!(rates[0]["threads"], 1);
    assert!(rates.iter().any(|r| r["threads"] == j["cpu"]["threads"]), "{rates:?}");
    assert!(j["gpu"].is_null() && j["gpu_unknown"].is_string(), "none is to be seen here");
}

#[test]
fn a_model_in_pieces_with_one_missing_names_the_missing_one() {
    let Some(dir) = common::whole() else {
        say!("not checked: the reference folder is not next to this checkout");
        return;
    };
    let there = scratch("split");
    let _ = std::fs::remove_dir_all(&there);
    std::fs::create_dir_all(&there).unwrap();
    for i in [1, 2, 4] {
        let name = format!("qwen3moe-0000{i}-of-00004.gguf");
        std::fs::copy(dir.join("split").join(&name), there.join(&name)).unwrap();
    }
    let o = run(&["run", "-m", there.join("qwen3moe-00002-of-00004.gguf").to_str().unwrap(), "-p", "x"]);
    assert_eq!(o.status.code(), Some(3), "{}", err(&o));
    assert!(err(&o).contains("qwen3moe-00003-of-00004.gguf"), "{}", err(&o));
}
