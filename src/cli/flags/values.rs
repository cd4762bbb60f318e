//! Values of llama.cpp's flags that are written otherwise here.

use std::ffi::OsString;

/// A value as clap takes it: in llama.cpp a number of threads below 1 is all of them, -2 tokens fill the context, -1
/// layers are as many as fit, and what can be on or off has more words for that.
pub(super) fn adjusted(long: &str, value: &OsString) -> OsString {
    let Some(text) = value.to_str() else { return value.clone() };
    let number = text.parse::<i64>().ok();
    let other = match (long, number) {
        ("--threads" | "--threads-batch", Some(..0)) => "0",
        ("--n-predict", Some(-2)) => "-1",
        ("--gpu-layers" | "--gpu-layers-draft", Some(-1)) => "auto",
        ("--gpu-layers" | "--gpu-layers-draft", Some(..-1)) => "all",
        ("--reasoning", Some(-1)) => "auto",
        ("--reasoning", _) if matches!(text, "1" | "true" | "enabled") => "on",
        ("--reasoning", _) if matches!(text, "0" | "false" | "disabled") => "off",
        _ => text,
    };
    other.into()
}

/// `--mmap`, of llama-bench with 0 or 1.
pub(super) fn mmap(value: &str) -> Result<Vec<String>, String> {
    match value {
        "auto" => Ok(Vec::new()),
        "" | "1" | "on" => Ok(vec!["--keep-mmap".into()]),
        "0" | "off" => Ok(vec!["--no-mmap".into()]),
        other => Err(format!("found {other}, expected 0 or 1")),
    }
}

/// `--load-mode`.
pub(super) fn load_mode(value: &str) -> Result<Vec<String>, String> {
    let words: &[&str] = match value {
        "auto" => &[],
        "mmap" => &["--keep-mmap"],
        "none" => &["--no-mmap"],
        "mlock" => &["--no-mmap", "--mlock"],
        "mmap+mlock" => &["--mlock"],
        "dio" => return Err("not here; the file is mapped, or read whole with --no-mmap".into()),
        other => return Err(format!("found {other}, expected auto, none, mmap, mlock or mmap+mlock")),
    };
    Ok(words.iter().map(|w| (*w).to_owned()).collect())
}

/// `--spec-type`: one kind of draft, or several, which are tried in turn here.
pub(super) fn spec_type(value: &str) -> Result<Vec<String>, String> {
    let mut kinds = Vec::new();
    for name in value.split(',') {
        // ik_llama.cpp gives a kind parameters of its own.
        kinds.push(match name.split(':').next().unwrap_or_default() {
            "none" => "off",
            "draft" | "draft-simple" => "draft",
            "mtp" | "draft-mtp" => "mtp",
            "ngram-simple" | "ngram-map-k" | "ngram-map-k4v" | "ngram-mod" | "ngram-cache" => "ngram",
            other => return Err(format!("{other} is not here; --spec auto, off, mtp, draft or ngram")),
        });
    }
    kinds.dedup();
    Ok(vec![format!("--spec={}", if let [one] = kinds[..] { one } else { "auto" })])
}

/// ik_llama.cpp's `-mtp`.
pub(super) fn mtp(_: &str) -> Result<Vec<String>, String> {
    Ok(vec!["--spec=mtp".into()])
}

/// ik_llama.cpp's `--threads-gen-batch`: one number of threads for tokens and one for prompts.
pub(super) fn both_threads(value: &str) -> Result<Vec<String>, String> {
    Ok(match value.split_once(',') {
        Some((tokens, prompts)) => vec![format!("--threads={tokens}"), format!("--threads-batch={prompts}")],
        None => vec![format!("--threads={value}")],
    })
}

/// `--reasoning-effort`, which llama.cpp gives to the template as a variable.
pub(super) fn effort(value: &str) -> Result<Vec<String>, String> {
    let variables = serde_json::json!({ "reasoning_effort": value });
    Ok(vec![format!("--chat-template-kwargs={variables}")])
}

/// `--verbosity`: errors alone are 1, warnings 2, notices 3 (what is printed anyway), the rest 4 and 5.
pub(super) fn verbosity(value: &str) -> Result<Vec<String>, String> {
    match value.parse::<i64>() {
        Ok(..3) => Ok(vec!["--quiet".into()]),
        Ok(3) => Ok(Vec::new()),
        Ok(4) => Ok(vec!["--verbose".into()]),
        Ok(_) => Ok(vec!["--verbose".into(), "--verbose".into()]),
        Err(_) => Err(format!("found {value}, expected a number from 0 to 5")),
    }
}
