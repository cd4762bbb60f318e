//! How much a chat template may do: a template comes with a model's file, and the file from
//! anybody.
//!
//! ```text
//! steps      minijinja's fuel: one for an instruction, for 64 bytes made or read, for two items visited
//! sizes      of a text that is made of something (~, format, replace, join, tojson), of a list, of the whole prompt
//! depth      of lists within lists, of macros and loops that call themselves (minijinja's limit of 500)
//! source     bytes of the template, parts of one tag, which also bounds how deep its expressions are
//! ```
//!
//! minijinja counts what its instructions make, but not what they go through: that a list of lists
//! of lists is compared, printed, or a key, is one step to it. `jinja.rs` puts the filters of this
//! file wherever that happens. They return what they are given, count what is in it as steps, and
//! refuse what is out of all proportion. What such a filter refuses is an error with its line.
//!
//! A namespace is the only thing in a template that changes, so only there can something come to
//! contain itself, or become deeper with every turn of a loop. `__held__` refuses both.
//!
//! Measured over the 77 reference templates, with conversations of 200 messages: at most 26 % of
//! the steps (`tests/template.rs` holds 30). Rejected: a process of its own for every prompt, with
//! limits of the system: 3 to 30 milliseconds each, and no line in what it says.

use std::fmt::Write;

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, State, Value, formatting, tests};

use super::marks::plain;
use super::strings::{invalid, unowned};

/// The largest template. The largest of the 77 reference templates has 18,120 bytes.
pub(super) const TEMPLATE_BYTES: usize = 256 << 10;
/// Names, strings, operators and brackets in one tag, at most: expressions go no deeper than this.
pub(super) const TAG_TOKENS: usize = 10_000;
/// Steps of one prompt, with which no more than 128 MB can be made.
const STEPS: u64 = 2_000_000;
/// Bytes that one step pays for.
const STEP_BYTES: usize = 64;
/// How often a template may go through its conversation beyond [`STEPS`], and how often it may copy
/// all of it with every message: some put the prompt together in a variable, to which each message
/// adds several texts.
const PASSES: u64 = 32;
const COPIES: u64 = 24;
/// Steps of the longest conversation, at most: some ten seconds.
const MOST_STEPS: u64 = 256_000_000;
/// A text that is made at once, in bytes: several times the text of the longest context there is.
pub(super) const TEXT_BYTES: usize = 16 << 20;
/// A prompt, in bytes.
pub(super) const PROMPT_BYTES: usize = 64 << 20;
/// A form in which the time is written, in bytes.
pub(super) const TIME_BYTES: usize = 1024;
/// Values within a value, at most.
const ITEMS: usize = 1_000_000;
/// Lists within lists. JSON that comes from outside has at most 128.
pub(super) const DEPTH: usize = 200;
/// The stack on which a template runs. Only what is used of it becomes memory.
pub(super) const STACK: usize = 256 << 20;

/// The steps of a prompt from these variables.
pub(super) fn steps(variables: &serde_json::Value) -> u64 {
    let given = variables.as_object().into_iter().flatten().filter_map(|(_, v)| v.as_array());
    let messages = given.map(|list| list.len() as u64).sum::<u64>();
    let pass = (size(variables) / STEP_BYTES) as u64;
    (STEPS + pass.saturating_mul(PASSES + COPIES * messages)).min(MOST_STEPS)
}

/// The bytes of all texts in a value, about.
fn size(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(list) => list.iter().map(|v| size(v) + STEP_BYTES).sum(),
        serde_json::Value::Object(map) => map.iter().map(|(k, v)| k.len() + size(v) + STEP_BYTES).sum(),
        _ => 0,
    }
}

/// Gives a template's environment the filters that `jinja.rs` puts into it, and tests and filters
/// that count.
pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter("__text__", |state: &State, value: &Value| made_text(state, value));
    env.add_filter("__single__", single);
    env.add_filter("__short__", short);
    env.add_filter("__weighed__", |state: &State, value: &Value| weighed(state, value).map(|()| value.clone()));
    env.add_filter("__compared__", |state: &State, value: &Value| weighed(state, value).map(|()| unowned(value)));
    env.add_filter("__kept__", |state: &State, value: &Value| kept(state, value, false));
    env.add_filter("__held__", |state: &State, value: &Value| kept(state, value, true));
    env.add_filter("format", |state: &State, form: &str, args: Rest<Value>| format(state, form, &args, true));
    compare(env, &["eq", "equalto", "=="], |a, b| a == b);
    compare(env, &["ne", "!="], |a, b| a != b);
    compare(env, &["lt", "lessthan", "<"], |a, b| a < b);
    compare(env, &["le", "<="], |a, b| a <= b);
    compare(env, &["gt", "greaterthan", ">"], |a, b| a > b);
    compare(env, &["ge", ">="], |a, b| a >= b);
    env.add_test("in", |state: &State, a: &Value, b: &Value| -> Result<bool, Error> {
        weighed(state, a)?;
        weighed(state, b)?;
        tests::is_in(state, &unowned(a), &unowned(b))
    });
}

/// Adds a test that compares two values, under its names.
fn compare(env: &mut Environment<'static>, names: &'static [&str], holds: fn(&Value, &Value) -> bool) {
    for name in names {
        env.add_test(*name, move |state: &State, a: &Value, b: &Value| -> Result<bool, Error> {
            weighed(state, a)?;
            weighed(state, b)?;
            Ok(holds(&unowned(a), &unowned(b)))
        });
    }
}

/// Counts bytes as steps.
pub(super) fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / STEP_BYTES) as u64)
}

/// Refuses a text that would be too large.
pub(super) fn fits(bytes: usize) -> Result<(), Error> {
    if bytes > TEXT_BYTES {
        return Err(invalid(format!(
            "a text of more than {TEXT_BYTES} bytes, the most that a template may make at once"
        )));
    }
    Ok(())
}

/// What is in a value, as often as it is in it.
#[derive(Default)]
struct Contents {
    items: usize,
    bytes: usize,
}

impl Contents {
    /// Adds a value that is in `depth` others; in what a namespace holds there must be no namespace
    /// (`held`).
    fn add(&mut self, value: &Value, depth: usize, held: bool) -> Result<(), Error> {
        self.items += 1;
        self.bytes += value.as_str().map_or(0, str::len);
        if self.items > ITEMS {
            return Err(invalid(format!(
                "a value of more than {ITEMS} values, the most that a template may go through"
            )));
        }
        fits(self.bytes)?;
        let Some(object) = value.as_object() else { return Ok(()) };
        if (held || depth > 0) && object.type_name().ends_with("::Namespace") {
            return Err(invalid("a namespace inside of a value: it could come to contain itself"));
        }
        if depth == DEPTH {
            return Err(invalid(format!("lists within lists, more than {DEPTH} deep")));
        }
        match value.kind() {
            ValueKind::Map => object.try_iter_pairs().into_iter().flatten().try_for_each(|(key, value)| {
                self.add(&key, depth + 1, held)?;
                self.add(&value, depth + 1, held)
            }),
            ValueKind::Seq | ValueKind::Iterable => {
                object.try_iter().into_iter().flatten().try_for_each(|item| self.add(&item, depth + 1, held))
            }
            _ => Ok(()),
        }
    }
}

/// Counts what is in a value as steps: a quarter for each, and its bytes.
fn weigh(state: &State, value: &Value) -> Result<Contents, Error> {
    let mut contents = Contents::default();
    contents.add(value, 0, false)?;
    state.consume_fuel((contents.items / 4) as u64)?;
    pay(state, contents.bytes)?;
    Ok(contents)
}

/// As [`weigh`], for what is only gone through.
pub(super) fn weighed(state: &State, value: &Value) -> Result<(), Error> {
    weigh(state, value).map(drop)
}

/// A value that gets a name. What is read as it is iterated becomes a list: a loop could make one
/// of another without end.
fn kept(state: &State, value: &Value, held: bool) -> Result<Value, Error> {
    if value.as_object().is_none() {
        return Ok(value.clone());
    }
    let mut contents = Contents::default();
    contents.add(value, 0, held)?;
    state.consume_fuel((contents.items / 4) as u64)?;
    if value.kind() == ValueKind::Iterable && value.len().is_some() {
        return Ok(value.try_iter()?.collect::<Vec<Value>>().into());
    }
    Ok(value.clone())
}

/// What is multiplied: a list of a hundred million items is one step to make.
fn single(value: &Value) -> Result<Value, Error> {
    if value.as_object().is_some() {
        return Err(invalid(format!("a {} times a number: a text or two numbers expected", value.kind())));
    }
    Ok(value.clone())
}

/// What is added, of which no loop makes a list without end.
fn short(value: &Value) -> Result<Value, Error> {
    match value.as_object().and_then(|_| value.len()) {
        Some(n) if n > ITEMS => Err(invalid(format!("a list of {n} items, expected at most {ITEMS}"))),
        _ => Ok(value.clone()),
    }
}

/// What is put together with ~.
fn made_text(state: &State, value: &Value) -> Result<Value, Error> {
    match value.as_object() {
        Some(_) => written(state, value).map(Value::from),
        None => Ok(value.clone()),
    }
}

/// A list or a mapping as text.
pub(super) fn written(state: &State, value: &Value) -> Result<String, Error> {
    let mut bounded = Bounded(String::new());
    let done = write!(bounded, "{value}");
    if done.is_err() {
        fits(usize::MAX)?;
    }
    state.consume_fuel((bounded.0.len() / 8) as u64)?; // so much slower is this than copying
    Ok(bounded.0)
}

/// A text that does not become too large.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if self.0.len() + text.len() > TEXT_BYTES {
            return Err(std::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// `form % args` (`percent`) or `form.format(args)`.
pub(super) fn format(state: &State, form: &str, args: &[Value], percent: bool) -> Result<Value, Error> {
    let mut largest = 64; // what a number takes
    let mut widest = 0;
    for arg in args {
        let contents = weigh(state, arg)?;
        largest = largest.max(4 * (contents.bytes + 8 * contents.items)); // with quotes and escapes
        widest = widest.max(arg.as_i64().map_or(0, |n| n.unsigned_abs() as usize));
    }
    let (mut fields, mut bytes) = (0_usize, form.len());
    for field in form.split(if percent { '%' } else { '{' }).skip(1) {
        let end = if percent { field.find(char::is_alphabetic) } else { field.find('}') };
        let spec = &field[..end.unwrap_or(field.len())];
        fields += 1;
        for number in spec.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()) {
            bytes = bytes.saturating_add(number.parse().unwrap_or(usize::MAX));
        }
        if percent && spec.contains('*') {
            bytes = bytes.saturating_add(widest);
        }
    }
    bytes = bytes.saturating_add(fields.saturating_mul(largest));
    fits(bytes)?;
    state.consume_fuel(4 * fields as u64)?;
    let style = if percent { formatting::FormatStyle::Printf } else { formatting::FormatStyle::StrFormat };
    formatting::format(style, form, args).map(Value::from)
}

/// Refuses to replace what would make a text too large.
pub(super) fn replaceable(text: &str, old: &str, new: &str, most: Option<usize>) -> Result<(), Error> {
    let found = match (new.len() > old.len(), old) {
        (false, _) => return Ok(()),
        (true, "") => text.chars().count() + 1,
        (true, old) => plain(text).matches(plain(old).as_ref()).count(),
    };
    fits(text.len().saturating_add(found.min(most.unwrap_or(usize::MAX)).saturating_mul(new.len())))
}
