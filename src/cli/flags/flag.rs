//! A flag of llama.cpp: what follows it, and what becomes of it in a verb.

use std::ffi::OsString;

use clap::{Command, CommandFactory};

use super::values::adjusted;
use crate::cli::args::Cli;

/// What follows a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Takes {
    /// No value.
    Nothing,
    /// The next word.
    One,
    /// The next word, and the one after it if that is a number.
    Pair,
    /// The next two words.
    Two,
    /// The next word if it is on, off, auto, a number for one of them, or a list of such; otherwise no value.
    Switch,
}

/// For which values and verbs a flag asks for what is so anyway.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) enum When {
    Any,
    /// For these values; "" is none.
    Is(&'static [&'static str]),
    /// For numbers from this one on.
    AtLeast(i64),
    /// In these verbs.
    Verbs(&'static [&'static str]),
}

/// The class of a flag.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) enum Support {
    /// It is this flag here.
    Works(&'static str),
    /// It is this flag in the verbs that have it; otherwise the other class counts.
    WorksOr(&'static str, &'static Support),
    /// It is the words that follow from its value, or the reason why there are none; no words where it is so anyway.
    Becomes(fn(&str) -> Result<Vec<String>, String>),
    /// It is this flag here, and changes the text.
    Changes(&'static str),
    /// It is so anyway, in the cases named; in others it is not here for this reason.
    Already(When, &'static str),
    /// One of two, by the value.
    If(When, &'static Support, &'static Support),
    /// It is not followed for this reason, which changes no text.
    Idle(&'static str),
    /// It is refused: the reason, and what to do instead.
    NotHere(&'static str),
}

/// Flags of the table that get the same answer.
#[derive(Debug)]
pub(in crate::cli) struct Flag {
    /// Spellings, separated by spaces.
    names: &'static str,
    /// What follows.
    pub(in crate::cli) takes: Takes,
    pub(super) support: Support,
}

/// What becomes of a flag that was typed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum Outcome {
    /// These words stand for it.
    Words(Vec<OsString>),
    /// It is so anyway.
    Already,
    /// It has no effect, for this reason.
    Idle(&'static str),
    /// It is refused, for this reason.
    Refused(String),
}

impl Flag {
    /// A row of the table.
    pub(super) const fn new(names: &'static str, takes: Takes, support: Support) -> Flag {
        Flag { names, takes, support }
    }

    /// Its spellings.
    pub(in crate::cli) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.names.split(' ')
    }

    /// The flag here that it is, if it is one.
    pub(in crate::cli) fn long(&self) -> Option<&'static str> {
        match self.support {
            Support::Works(long) | Support::WorksOr(long, _) | Support::Changes(long) => Some(long),
            _ => None,
        }
    }

    /// Whether it is not refused anyway.
    pub(in crate::cli) fn is_useful(&self) -> bool {
        !matches!(self.support, Support::NotHere(_))
    }

    /// What becomes of it in a verb, with these values (none, one or two).
    pub(in crate::cli) fn outcome(&self, verb: &Command, values: &[OsString]) -> Outcome {
        self.support.outcome(verb, values)
    }
}

impl Support {
    fn outcome(&self, verb: &Command, values: &[OsString]) -> Outcome {
        let first = values.first().map_or("".into(), |v| v.to_string_lossy());
        match *self {
            Support::Works(long) | Support::Changes(long) => words(verb, &[(long, values.first())]),
            Support::WorksOr(long, _) if has(verb, long) => words(verb, &[(long, values.first())]),
            Support::WorksOr(_, other) => other.outcome(verb, values),
            Support::Becomes(of) => match of(&first) {
                Ok(list) if list.is_empty() => Outcome::Already,
                Ok(list) => {
                    let split = |word: &String| match word.split_once('=') {
                        Some((long, value)) => (long.to_owned(), Some(OsString::from(value))),
                        None => (word.clone(), None),
                    };
                    let list: Vec<(String, Option<OsString>)> = list.iter().map(split).collect();
                    words(verb, &list.iter().map(|(long, value)| (&long[..], value.as_ref())).collect::<Vec<_>>())
                }
                Err(why) => Outcome::Refused(why),
            },
            Support::If(when, yes, no) => (if when.holds(verb, &first) { yes } else { no }).outcome(verb, values),
            Support::Already(when, _) if when.holds(verb, &first) => Outcome::Already,
            Support::Already(_, why) | Support::NotHere(why) => Outcome::Refused(format!("not here; {why}")),
            Support::Idle(why) => Outcome::Idle(why),
        }
    }
}

impl When {
    fn holds(self, verb: &Command, value: &str) -> bool {
        match self {
            When::Any => true,
            When::Is(list) => list.contains(&value),
            When::AtLeast(least) => value.parse::<i64>().is_ok_and(|n| n >= least),
            When::Verbs(list) => list.contains(&verb.get_name()),
        }
    }
}

/// Whether a verb has a long flag.
fn has(verb: &Command, long: &str) -> bool {
    verb.get_arguments().any(|a| a.get_long() == Some(long.trim_start_matches('-')))
}

/// Long flags of a verb with their values, as words; refused if the verb lacks one of them.
fn words(verb: &Command, list: &[(&str, Option<&OsString>)]) -> Outcome {
    if let Some((long, _)) = list.iter().find(|(long, _)| !has(verb, long)) {
        return Outcome::Refused(elsewhere(verb, long));
    }
    let word = |(long, value): &(&str, Option<&OsString>)| match value {
        Some(value) => joined(long, adjusted(long, value)),
        None => (*long).into(),
    };
    Outcome::Words(list.iter().map(word).collect())
}

/// `--flag=value`, which clap reads whatever the value begins with.
pub(in crate::cli) fn joined(long: &str, value: OsString) -> OsString {
    let mut word = OsString::from(format!("{long}="));
    word.push(value);
    word
}

/// The reason why a verb refuses a flag that other verbs have.
pub(in crate::cli) fn elsewhere(verb: &Command, long: &str) -> String {
    let program = Cli::command();
    let others: Vec<String> =
        program.get_subcommands().filter(|v| has(v, long)).map(|v| format!("tandem {}", v.get_name())).collect();
    let has = if others.len() == 1 { "has" } else { "have" };
    match others.is_empty() {
        true => format!("tandem {} has no such flag", verb.get_name()),
        false => format!("tandem {} has no {long}; {} {has} it", verb.get_name(), others.join(", ")),
    }
}
