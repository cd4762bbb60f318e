//! What a person types, made ready for clap: llama.cpp's short flags, and `tandem -m FILE` without
//! a verb.

use std::ffi::OsString;

use clap::CommandFactory;

use super::args::Cli;

/// llama.cpp's short flags of several letters, which clap cannot have.
const SHORT: &[(&str, &str)] = &[
    ("-ngl", "--gpu-layers"),
    ("--n-gpu-layers", "--gpu-layers"),
    ("-ot", "--override-tensor"),
    ("-cmoe", "--cpu-moe"),
    ("-ncmoe", "--n-cpu-moe"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-tb", "--threads-batch"),
    ("-ub", "--ubatch-size"),
    ("-sys", "--system-prompt"),
    ("-sysf", "--system-prompt-file"),
    ("-rea", "--reasoning"),
    ("-jf", "--json-schema"),
    ("-hf", "--hf-repo"),
    ("-hfr", "--hf-repo"),
    ("-hff", "--hf-file"),
    ("-hft", "--hf-token"),
];

/// llama.cpp's short flags of several letters that have no meaning here: clap would read their
/// first letter.
const FOREIGN: &[(&str, &str)] = &[
    ("-cnv", "tandem chat is a conversation"),
    ("-no-cnv", "tandem run is one prompt; --raw continues it as it is"),
    ("-fa", "flash attention is always on"),
    ("-mli", "a line that ends in a backslash continues on the next"),
    ("-nkvo", "the KV cache is placed with its layer"),
    ("-sm", "one GPU is used"),
    ("-mg", "one GPU is used"),
    ("-ts", "one GPU is used"),
    ("-st", "tandem run is a single turn"),
    ("-md", "there are no draft models"),
    ("-np", "tandem batch has --parallel"),
];

/// The process's arguments with llama.cpp's short forms written out, `-ngl 99` and `-ngl=99` alike.
/// What follows `--` is left alone.
pub fn arguments(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut plain = false;
    args.map(|arg| {
        plain |= arg == "--";
        let Some(text) = arg.to_str().filter(|_| !plain) else { return arg };
        let (flag, value) = text.split_once('=').map_or((text, None), |(f, v)| (f, Some(v)));
        match (SHORT.iter().find(|(s, _)| *s == flag), value) {
            (Some((_, long)), Some(v)) => format!("{long}={v}").into(),
            (Some((_, long)), None) => (*long).into(),
            (None, _) => arg,
        }
    })
    .collect()
}

/// The arguments with a verb: where only flags are given, a person at a terminal wants to chat.
///
/// # Errors
/// If there is no verb and no terminal, or a flag of llama.cpp's that has no meaning here.
pub fn with_verb(mut args: Vec<OsString>, at_terminal: bool) -> Result<Vec<OsString>, String> {
    let command = Cli::command();
    let verb = |arg: &OsString| command.get_subcommands().any(|c| *arg == *c.get_name()) || arg == "help";
    let told = |arg: &OsString| ["-h", "--help", "-V", "--version"].iter().any(|f| arg == f);
    let flag = args.get(1).is_some_and(|a| a.to_str().is_some_and(|a| a.starts_with('-')));
    if flag && !args.iter().skip(1).any(|a| verb(a) || told(a)) {
        if !at_terminal {
            return Err(
                "no verb given: tandem run answers a prompt, tandem batch many; tandem --help lists all verbs".into()
            );
        }
        args.insert(1, "chat".into());
    }
    let strange = |a: &&OsString| FOREIGN.iter().find(|(f, _)| *a == f);
    match args.iter().skip(1).take_while(|a| *a != "--").find_map(|a| strange(&a)) {
        Some((flag, instead)) => Err(format!("{flag}: no such flag here; {instead}")),
        None => Ok(args),
    }
}
