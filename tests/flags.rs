//! Commands of llama.cpp and ik_llama.cpp, pasted: what they print, what they change and how they
//! end. The table of all flags has its tests beside it.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::{floats, local};

fn run(args: &[&str]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
    c.args(args).stdin(Stdio::null()).env("CUDA_VISIBLE_DEVICES", ""); // on the CPU, whatever is here
    c.output().unwrap()
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

fn out(o: &Output) -> String {
    assert!(o.status.success(), "{}", err(o));
    String::from_utf8(o.stdout.clone()).unwrap()
}

/// What `run` writes with these arguments.
fn text(args: &[&str]) -> String {
    out(&run(&[&["run", "-n", "12", "--temp", "0"], args].concat()))
}

/// A file of one test.
fn scratch(name: &str) -> PathBuf {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("flags");
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(name)
}

#[test]
fn flags_that_ask_for_what_is_so_are_told_in_one_line_and_change_nothing() {
    let plain = text(&["-p", "ROMEO:"]);
    let pasted = ["--jinja", "-fa", "on", "--no-warmup", "-rtr", "-fmoe", "-mla", "2", "-amb", "512", "-p", "ROMEO:"];
    let o = run(&[&["run", "-n", "12", "--temp", "0"], &pasted[..]].concat());
    assert_eq!(out(&o), plain);
    let told = "already so here: --jinja, -fa on, --no-warmup, -rtr, -fmoe, -mla 2, -amb 512\n";
    assert_eq!(err(&o).matches(told).count(), 1, "{}", err(&o));
    let o = run(&[&["run", "-n", "1", "-q", "--strict"], &pasted[..]].concat());
    assert!(o.status.success() && o.stderr.is_empty(), "{}", err(&o));
    let o = run(&["run", "-n", "1", "--numa", "distribute", "-p", "x"]);
    assert!(o.status.success() && err(&o).contains("--numa distribute has no effect: "), "{}", err(&o));
    let o = run(&["run", "-n", "1", "--numa", "distribute", "-p", "x", "--strict"]);
    assert_eq!(o.status.code(), Some(2), "{}", err(&o));
}

#[test]
fn a_short_flag_that_nobody_knows_is_never_read_as_another_with_a_value() {
    let dir = scratch("empty");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    for flag in ["-oae", "-rtrx", "-fmoex", "-sfx", "-lvx", "-hffx"] {
        let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
        let o = c.args(["run", "--no-stdin", "-p", "x", "-n", "1", flag]).current_dir(&dir).output().unwrap();
        assert_eq!(o.status.code(), Some(2), "{flag}: {}", err(&o));
        assert!(err(&o).contains(&format!("{flag}: no such flag")) && o.stdout.is_empty(), "{}", err(&o));
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "no answer was written to a file");
    let o = run(&["run", "-m", "nowhere", "--host", "0.0.0.0", "--lora", "a.gguf", "-xyz", "-p", "x"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(
        ["3 flags", "--host 0.0.0.0: ", "--lora a.gguf: ", "-xyz: "].iter().all(|p| err(&o).contains(p)),
        "{}",
        err(&o)
    );
}

#[test]
fn tandem_alone_is_a_guide_and_a_prompt_needs_no_flag() {
    let o = run(&[]);
    assert_eq!(out(&o).lines().count(), 6);
    assert!(o.stderr.is_empty());
    let tail = ["-n", "12", "--temp", "0"];
    assert_eq!(out(&run(&[&["run", "ROMEO:"], &tail[..]].concat())), text(&["-p", "ROMEO:"]));
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/demo.gguf");
    assert_eq!(out(&run(&[&[demo, "-p", "ROMEO:"], &tail[..]].concat())), text(&["-p", "ROMEO:"]));
    let o = run(&["run", "ROMEO:", "-p", "x"]);
    assert_eq!(o.status.code(), Some(2), "two prompts: {}", err(&o));
}

#[test]
fn escapes_in_prompts_and_stop_texts_are_those_of_llama_cpp() {
    let plain = text(&["-p", "First Citizen:\n"]);
    assert_eq!(text(&["-p", r"First\x20Citizen:\n"]), plain);
    assert_eq!(text(&["--in-prefix", "First ", "-p", "Citizen:", "--in-suffix", r"\n"]), plain);
    assert_ne!(text(&["-p", r"First Citizen:\n", "--no-escape"]), plain);
    let o = run(&["run", "-n", "60", "--temp", "0", "-p", "First Citizen:\n", "-r", r"\n", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out(&o)).unwrap();
    assert!(json["finish"] == "stop" && !json["text"].as_str().unwrap().contains('\n'), "{json}");
}

#[test]
fn metadata_from_the_command_line_is_what_the_model_is_computed_with() {
    let model = local().join("models/qwen3moe.gguf");
    let model = model.to_str().unwrap();
    let file = scratch("logits.f32");
    let tokens = (1..40).map(|t| t.to_string()).collect::<Vec<_>>().join(",");
    let base = ["logits", "-m", model, "--tokens", &tokens, "--positions", "-1", "--out", file.to_str().unwrap()];
    let logits = |more: &[&str]| {
        let o = run(&[&base[..], more].concat());
        assert!(o.status.success(), "{more:?}: {}", err(&o));
        floats(&file)
    };
    let usual = logits(&[]);
    let used = "qwen3moe.expert_used_count=int:1";
    let (one, rope) = (logits(&["--override-kv", used]), logits(&["--rope-freq-base", "500"]));
    assert!(one != usual && rope != usual && rope != one);
    assert_eq!(logits(&["-okv", "qwen3moe.rope.freq_base=float:500"]), rope);
    assert_eq!(logits(&["--rope-freq-base", "0", "--yarn-beta-fast", "-1"]), usual, "the model's own");
    let scaled = logits(&["--rope-scale", "4"]);
    assert_eq!(logits(&["--rope-freq-scale", "0.25", "--rope-scaling", "linear"]), scaled);
    let yarn = ["--rope-scale", "4", "--rope-scaling", "yarn", "--yarn-orig-ctx", "64"];
    let (ramp, fast) = (logits(&yarn), logits(&[&yarn[..], &["--yarn-beta-fast", "4"]].concat()));
    assert!(ramp != scaled && fast != ramp);
    for (more, status, says) in [
        (&["--override-kv", "a=i32:1"][..], 2, "expected KEY=TYPE:VALUE"),
        (&["--rope-scale", "-3"], 2, "--rope-scale -3: expected a number above 0"),
        (&["--yarn-beta-fast", "4", "--strict"], 2, "--yarn-beta-fast has no effect"),
        (&["--override-kv", "qwen3moe.block_count=int:9"], 3, "blk."),
    ] {
        let o = run(&[&base[..], more].concat());
        assert_eq!(o.status.code(), Some(status), "{more:?}: {}", err(&o));
        assert!(err(&o).contains(says), "{more:?}: {}", err(&o));
    }
}

#[test]
fn a_chat_template_is_named_as_llama_cpp_names_it_or_written_out() {
    let o = run(&["run", "--chat-template", "nosuch", "-p", "x"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(err(&o).contains("chatml") && err(&o).contains("mistral-v7-tekken"), "{}", err(&o));
    let named = text(&["--chat-template", "vicuna", "-p", "Speak."]);
    let jinja = "{% for m in messages %}{{ 'USER: ' + m.content + '\\n' }}{% endfor %}ASSISTANT:";
    assert_eq!(named, text(&["--chat-template", jinja, "-p", "Speak."]));
}

#[cfg(target_os = "linux")]
#[test]
fn a_mask_of_one_cpu_leaves_one_thread() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let first: u32 = allowed.split([',', '-']).next().unwrap().parse().unwrap();
    let range = format!("{first}-{first}");
    let o = run(&["run", "-p", "x", "--cpu-range", &range, "--dry-run"]);
    assert!(out(&o).contains(" -t 1 "), "{}", out(&o));
    let o = run(&["run", "-p", "x", "-C", "0xg"]);
    assert_eq!(o.status.code(), Some(2), "{}", err(&o));
}
