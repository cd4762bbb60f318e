//! What a person types, made ready for clap: the verb where there is none, llama.cpp's flags, and
//! values that begin with a dash.
//!
//! clap reads `-rtr` as `-r tr` and `-fmoe` as `-f moe`. So every word is looked up here first, with
//! the number of values that its flag takes, and handed on as `--flag=value`; a word that nobody
//! knows is wrong usage. All that is wrong with a command is told at once.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::Result;
use clap::{Command, CommandFactory};

use super::args::Cli;
use super::errors::off;
use super::flags::{self, Lookup, Outcome, look_up};
use super::terminal::dimmed;

/// What `tandem` alone prints.
const GUIDE: &str = "\
Tandem runs language models (GGUF files), mixture-of-experts ones above all, on this machine.
  tandem MODEL.gguf                    chats with a model
  tandem run -m MODEL.gguf \"QUESTION\"  answers one question, or what is piped in
  tandem explain MODEL.gguf            tells whether a model fits, where it goes and how fast it is
  tandem doctor                        shows what this machine can do, and what slows it down
  tandem --help                        lists all verbs; flags have the names that llama.cpp gives them";

/// A command line as clap reads it, and what is to be told about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The words, the program's name first.
    pub words: Vec<OsString>,
    /// Flags that ask for what is so anyway, with their values.
    already: Vec<String>,
    /// Flags that have no effect, and why.
    idle: Vec<(String, &'static str)>,
}

/// What there is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// To run a command.
    Run(CommandLine),
    /// To print this text.
    Print(&'static str),
}

/// Which of stdin and stdout are terminals.
#[derive(Clone, Copy, Debug)]
pub struct Terminals {
    /// stdin.
    pub stdin: bool,
    /// stdout.
    pub stdout: bool,
}

/// Reads the arguments of the process, its name first.
///
/// # Errors
/// If a flag is none, is not here, or lacks its value, or nothing tells what to do; the message has
/// all that is wrong.
pub fn read(words: Vec<OsString>, at: Terminals) -> Result<Request, String> {
    if words.len() < 2 {
        return Ok(Request::Print(GUIDE));
    }
    let mut program = Cli::command();
    program.build(); // gives the verbs the flags of all
    let words = with_verb(words, &program, at)?;
    let Some(verb) = program.find_subcommand(&words[1]).filter(|v| v.get_name() != "help") else {
        return Ok(Request::Run(CommandLine { words, ..CommandLine::default() })); // clap says what it is
    };
    let mut line = CommandLine { words: words[..2].to_vec(), ..CommandLine::default() };
    let refused = line.settle(verb, &program, &words[2..]);
    match &refused[..] {
        [] => Ok(Request::Run(line)),
        [(flag, why)] => Err(format!("{flag}: {why}")),
        all => {
            let lines = all.iter().map(|(flag, why)| format!("\n  {flag}: {why}"));
            Err(format!("{} flags cannot be used:{}", all.len(), lines.collect::<String>()))
        }
    }
}

/// The words with the verb in front: where there is none, a prompt asks for an answer, and a person
/// at a terminal wants to chat.
fn with_verb(mut words: Vec<OsString>, program: &Command, at: Terminals) -> Result<Vec<OsString>, String> {
    let run = program.find_subcommand("run").expect("a verb");
    let (mut places, mut prompt, mut help, mut model) = (Vec::new(), false, false, false);
    let mut i = 1;
    while i < words.len() && words[i] != "--" {
        let Some(text) = words[i].to_str().filter(|t| is_flag(t)) else {
            places.push(i);
            i += 1;
            continue;
        };
        let known = look_up(run, text);
        prompt |= matches!(known.own(), Some("prompt" | "file"));
        help |= matches!(known.own(), Some("help" | "version"));
        model |= known.own() == Some("model");
        i += 1 + known.values(&words[i + 1..]).unwrap_or(0);
    }
    let is_verb = |word: &OsString| *word == "help" || program.get_subcommands().any(|v| *word == *v.get_name());
    // Of a flag that only the verb knows, the value may look like a word of its own.
    let named = places.iter().find(|&&at| words[1].as_encoded_bytes().starts_with(b"-") && is_verb(&words[at]));
    let verb = match named.or(places.first()) {
        Some(&at) if is_verb(&words[at]) || !(help || model || is_model(&words[at])) => {
            let verb = words.remove(at); // clap names the near one if it is none
            words.insert(1, verb);
            return Ok(words);
        }
        _ if help => return Ok(words),
        Some(_) if prompt || places.len() > usize::from(!model) => "run",
        _ if prompt || !at.stdin => "run",
        _ if at.stdout => "chat",
        _ => {
            return Err("no verb given: tandem run answers a prompt, tandem batch many; tandem --help lists all".into());
        }
    };
    words.insert(1, verb.into());
    Ok(words)
}

/// Whether a word that is no flag names a model: by its ending, or by the first bytes of a file that
/// another program keeps under another name.
fn is_model(word: &OsStr) -> bool {
    let path = Path::new(word);
    let begins = || {
        let mut magic = [0; 4];
        path.is_file() && File::open(path).is_ok_and(|mut f| f.read_exact(&mut magic).is_ok()) && magic == *b"GGUF"
    };
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) || begins()
}

/// Whether a word may be a flag.
fn is_flag(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-')
}

impl CommandLine {
    /// Takes in the words after the verb; returns the flags that are refused, and why.
    fn settle(&mut self, verb: &Command, program: &Command, words: &[OsString]) -> Vec<(String, String)> {
        let mut refused = Vec::new();
        let mut i = 0;
        while let Some(word) = words.get(i) {
            i += 1;
            if word == "--" {
                self.words.extend_from_slice(&words[i - 1..]);
                break;
            }
            let Some(text) = word.to_str().filter(|t| is_flag(t)) else {
                self.words.push(self.place(verb, word));
                continue;
            };
            let known = look_up(verb, text);
            let rest = &words[i..];
            let values = known.values(rest).map(|n| &rest[..n]);
            let flag = |w: &&OsString| w.to_str().is_some_and(|w| is_flag(w) && !look_up(verb, w).is_unknown());
            let values = match values.map(|all| (all, all.first().filter(|_| !known.takes_text(verb)).filter(flag))) {
                Some((values, None)) => values,
                Some((_, Some(next))) => {
                    refused.push((text.to_owned(), format!("a value is missing: {} is a flag", next.display())));
                    continue;
                }
                None => {
                    refused.push((text.to_owned(), "a value is missing".into()));
                    continue;
                }
            };
            i += values.len();
            match known {
                Lookup::Own(arg, Some(value)) => self.words.push(flags::own_word(arg, value.as_ref())),
                Lookup::Own(_, None) if values.len() > 1 => {
                    self.words.push(word.clone());
                    self.words.extend_from_slice(values);
                }
                Lookup::Own(arg, None) if !values.is_empty() => self.words.push(flags::own_word(arg, &values[0])),
                Lookup::Own(..) | Lookup::Several => self.words.push(word.clone()),
                Lookup::Listed(flag, attached) => {
                    let own = attached.map(OsString::from);
                    let values = own.as_ref().map_or(values, std::slice::from_ref);
                    let typed = match values.first().filter(|_| attached.is_none()) {
                        Some(value) => format!("{text} {}", value.display()),
                        None => text.to_owned(),
                    };
                    match flag.outcome(verb, values) {
                        Outcome::Words(words) => self.words.extend(words),
                        Outcome::Already => self.already.push(typed),
                        Outcome::Idle(why) => self.idle.push((typed, why)),
                        Outcome::Refused(why) => refused.push((typed, why)),
                    }
                }
                Lookup::Unknown => refused.push((text.to_owned(), flags::unknown(verb, program, text))),
            }
        }
        refused
    }

    /// A word that is no flag: a model that has no flag before it, or what the verb takes.
    fn place(&self, verb: &Command, word: &OsStr) -> OsString {
        let named = self.words.iter().any(|w| w.as_encoded_bytes().starts_with(b"--model="));
        let takes = |long: &str| verb.get_arguments().any(|a| a.get_long() == Some(long));
        let own = verb.get_positionals().any(|a| a.get_id() == "path"); // the verb's own place for a model
        match is_model(word) && takes("model") && !named && !own {
            true => flags::joined("--model", word.to_owned()),
            false => word.to_owned(),
        }
    }

    /// Whether a flag of this name is told as one that is so anyway, or has no effect.
    #[cfg(test)]
    pub(super) fn tells(&self, name: &str) -> bool {
        let told = self.already.iter().chain(self.idle.iter().map(|(flag, _)| flag));
        told.filter_map(|typed| typed.split(' ').next()).any(|flag| flag == name)
    }

    /// Tells what was typed and is so anyway, in one line, and what has no effect.
    ///
    /// # Errors
    /// If something has no effect, and `--strict` was given.
    pub(super) fn tell(&self, quiet: bool) -> Result<()> {
        if !self.already.is_empty() && !quiet {
            let line = format!("already so here: {}", self.already.join(", "));
            let _ = writeln!(std::io::stderr(), "{}", dimmed(&line)); // a closed stderr stops nothing
        }
        self.idle.iter().try_for_each(|(flag, why)| off(flag, why))
    }
}
