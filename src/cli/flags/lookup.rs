//! Which flag a word is: one of the verb, one of the table, or none.
//!
//! A word with one dash and several letters is a flag of several letters, flags of the verb without
//! values (`-vv`), or one with a number (`-n5`); anything else is unknown, and never split.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command};

use super::flag::{Flag, Takes, elsewhere, joined};
use super::table::TABLE;
use super::values::adjusted;

/// How much a known name must be like an unknown one to be named with it.
const NEAR: f64 = 0.6;

/// What a word that begins with a dash is.
pub(in crate::cli) enum Lookup<'c, 't> {
    /// A flag of the verb; with a value, if it is in the same word.
    Own(&'c Arg, Option<&'t str>),
    /// Several flags of the verb without values: `-vv`.
    Several,
    /// A flag of the table; with a value, if it is in the same word.
    Listed(&'static Flag, Option<&'t str>),
    /// Nobody knows it.
    Unknown,
}

/// Which flag of the verb, or of the table, a word is.
pub(in crate::cli) fn look_up<'c, 't>(verb: &'c Command, word: &'t str) -> Lookup<'c, 't> {
    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    if let Some(arg) = own(verb, name) {
        return Lookup::Own(arg, value);
    }
    if let Some(flag) = find(name) {
        return Lookup::Listed(flag, value);
    }
    let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.starts_with('-')) else { return Lookup::Unknown };
    let short = |c: char| verb.get_arguments().find(|a| a.get_short() == Some(c));
    let first = letters.chars().next().and_then(|c| Some((short(c)?, &letters[c.len_utf8()..])));
    match first {
        Some((arg, rest)) if takes_value(arg) && is_number(rest) => Lookup::Own(arg, Some(rest)),
        Some(_) if letters.chars().all(|c| short(c).is_some_and(|a| !takes_value(a))) => Lookup::Several,
        _ => Lookup::Unknown,
    }
}

impl Lookup<'_, '_> {
    /// The long name of a flag of the verb.
    pub(in crate::cli) fn own(&self) -> Option<&str> {
        match self {
            Lookup::Own(arg, _) => arg.get_long(),
            Lookup::Listed(flag, _) => flag.long().map(|long| long.trim_start_matches('-')),
            _ => None,
        }
    }

    /// Whether nobody knows it.
    pub(in crate::cli) fn is_unknown(&self) -> bool {
        matches!(self, Lookup::Unknown)
    }

    /// How many of the words after it are its values; None if there are too few.
    pub(in crate::cli) fn values(&self, rest: &[OsString]) -> Option<usize> {
        let is = |i: usize, of: fn(&str) -> bool| rest.get(i).and_then(|w| w.to_str()).is_some_and(of);
        let takes = match self {
            Lookup::Own(_, Some(_)) | Lookup::Listed(_, Some(_)) | Lookup::Several | Lookup::Unknown => return Some(0),
            Lookup::Own(arg, None) if takes_two(arg) => Takes::Two,
            Lookup::Own(arg, None) if takes_value(arg) => Takes::One,
            Lookup::Own(..) => Takes::Nothing,
            Lookup::Listed(flag, None) => flag.takes,
        };
        let n = match takes {
            Takes::Nothing => 0,
            Takes::Switch => usize::from(is(0, is_switch)),
            Takes::One => 1,
            Takes::Pair => 1 + usize::from(is(1, |word| word.parse::<f64>().is_ok())),
            Takes::Two => 2,
        };
        (n <= rest.len()).then_some(n)
    }

    /// Whether its value may be any text, one that looks like a flag too.
    pub(in crate::cli) fn takes_text(&self, verb: &Command) -> bool {
        let text = |a: &Arg| a.is_allow_hyphen_values_set();
        match self {
            Lookup::Own(arg, _) => text(arg),
            _ => {
                self.own().and_then(|long| verb.get_arguments().find(|a| a.get_long() == Some(long))).is_some_and(text)
            }
        }
    }
}

/// Whether a flag of the verb takes two values.
fn takes_two(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|n| n.min_values() == 2)
}

/// The word for clap: a flag of the verb with its value.
pub(in crate::cli) fn own_word(arg: &Arg, value: &OsStr) -> OsString {
    let long = format!("--{}", arg.get_long().unwrap_or_default());
    joined(&long, adjusted(&long, &value.to_owned()))
}

/// The flag of the verb by this name.
fn own<'c>(verb: &'c Command, name: &str) -> Option<&'c Arg> {
    let name = dashed(name);
    let long = name.strip_prefix("--");
    let short = name.strip_prefix('-').filter(|rest| rest.chars().count() == 1).and_then(|rest| rest.chars().next());
    verb.get_arguments().find(|a| match (long, short) {
        (Some(long), _) => a.get_long() == Some(long) || a.get_all_aliases().is_some_and(|all| all.contains(&long)),
        (None, Some(short)) => a.get_short() == Some(short),
        _ => false,
    })
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// The flag of this name in the table.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    let name = dashed(name);
    TABLE.iter().find(|flag| flag.names().any(|n| n == name))
}

/// A name with the underscores of a long one as dashes: llama.cpp takes both.
fn dashed(name: &str) -> String {
    if name.starts_with("--") { name.replace('_', "-") } else { name.to_owned() }
}

/// Whether a word is a value of [`Takes::Switch`].
fn is_switch(word: &str) -> bool {
    const WORDS: [&str; 10] = ["on", "off", "auto", "true", "false", "enabled", "disabled", "0", "1", "-1"];
    word.split(',').all(|part| WORDS.contains(&part))
}

/// Whether the rest of a word is a number, or several: `5`, `-1`, `0.5`, `512,1024`, `7-inf`.
fn is_number(text: &str) -> bool {
    let text = text.strip_suffix("inf").unwrap_or(text);
    text.contains(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || "+-.,".contains(c))
}

/// What is wrong with a word that no flag of the verb, nor of the table, has for a name.
pub(in crate::cli) fn unknown(verb: &Command, program: &Command, word: &str) -> String {
    let name = dashed(word.split('=').next().unwrap_or(word));
    let others = program.get_subcommands().filter(|v| v.get_name() != verb.get_name());
    if let Some(long) = others.filter_map(|v| own(v, &name)).find_map(Arg::get_long) {
        return elsewhere(verb, &format!("--{long}"));
    }
    match near(verb, &name) {
        Some(near) => format!("no such flag; the nearest is {near}"),
        None => format!("no such flag; tandem {} --help lists them", verb.get_name()),
    }
}

/// The known name that is most like an unknown one.
fn near(verb: &Command, name: &str) -> Option<String> {
    let bare = |name: &str| name.trim_start_matches('-').to_lowercase();
    let longs = verb.get_arguments().filter_map(Arg::get_long).map(|long| format!("--{long}"));
    let listed = TABLE.iter().filter(|f| f.is_useful()).flat_map(Flag::names).map(String::from);
    let name = bare(name);
    let like = |other: &str| match (bare(other), name.len()) {
        (other, _) if other == name => 1.0,
        (other, 3..) if other.starts_with(&name) => 0.9,
        (other, _) => strsim::normalized_damerau_levenshtein(&other, &name),
    };
    let all = longs.chain(listed).map(|other| (like(&other), other));
    all.filter(|(like, _)| *like >= NEAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}
