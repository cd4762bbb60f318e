//! What Python and jinja2 do to the values of a template, where minijinja's way differs.
//!
//! Every difference here was seen by rendering the same snippets with both. Not taken over are
//! differences of which no template is known: floats below 1e-4 or from 1e16 on within printed
//! lists and with `~`; `"%d" % n`, a macro's `varargs` and rarer methods and filters, which are
//! errors; and that Python refuses some of what minijinja allows (`for` over none, `'a' < 1`).

use std::borrow::Cow;

use minijinja::value::{Kwargs, Rest, Serde, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, State, Value, filters};
use minijinja_contrib::globals::joiner;
use minijinja_contrib::pycompat::unknown_method_callback;

use super::limits::{DEPTH, fits, format, replaceable, weighed, written};
use super::marks::{base, pieces, plain};
use super::strings::{CASES, cased, invalid, places, replace, split, strip, unowned};

/// Gives a template's environment Python's ways.
pub(super) fn install(env: &mut Environment<'static>) {
    env.set_formatter(|out, state, value| Ok(out.write_str(&text(state, value)?)?));
    env.set_unknown_method_callback(method);
    env.add_function("joiner", joiner);
    env.remove_global("debug"); // jinja2 has none
    env.add_filter("tojson", tojson);
    env.add_filter("from_json", from_json);
    env.add_filter("string", |state: &State, value: &Value| text(state, value).map(Cow::into_owned));
    env.add_filter("trim", |state: &State, value: &Value, chars: Option<&str>| {
        Ok::<_, Error>(strip(&text(state, value)?, chars, true, true).to_owned())
    });
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("items", items);
    env.add_filter("int", int);
    env.add_filter("replace", |state: &State, value: &Value, old: &Value, new: &Value, count: Option<usize>| {
        let (value, old, new) = (text(state, value)?, text(state, old)?, text(state, new)?);
        replaceable(&value, &old, &new, count)?;
        Ok::<_, Error>(replace(&value, &old, &new, count))
    });
    for name in CASES {
        env.add_filter(*name, |state: &State, value: &Value| Ok::<_, Error>(cased(&text(state, value)?, name)));
    }
    env.add_test("sequence", |value: &Value| {
        // What has a length and can be indexed: a text and a mapping as well.
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
}

/// `str(value)`.
fn text<'v>(state: &State, value: &'v Value) -> Result<Cow<'v, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.into());
    }
    if value.as_object().is_some() {
        return written(state, value).map(Cow::from);
    }
    Ok(number(value).into())
}

/// What `str` makes of a number, and of what is no list, mapping or text.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(v) if value.kind() == ValueKind::Number && !value.is_integer() => float(v),
        _ => value.to_string(),
    }
}

/// `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16
/// on.
fn float(v: f64) -> String {
    let scientific = format!("{v:e}");
    let Some((digits, exponent)) = scientific.split_once('e').and_then(|(d, e)| Some((d, e.parse::<i32>().ok()?)))
    else {
        return scientific.to_lowercase(); // nan, inf
    };
    match exponent {
        -4..16 => format!("{v:?}"),
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// `default(value, default_value='', boolean=False)`.
fn default(value: &Value, args: Rest<Value>, more: Kwargs) -> Result<Value, Error> {
    let other: Option<Value> = more.get("default_value")?;
    let other = args.first().cloned().or(other).unwrap_or_else(|| "".into()); // none is a default too
    let boolean = args.get(1).cloned().or(more.get("boolean")?).is_some_and(|b| b.is_true());
    more.assert_all_used()?;
    Ok(if value.is_undefined() || boolean && !value.is_true() { other } else { value.clone() })
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { filters::length(value) }
}

fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::from(Vec::<Value>::new())) } else { filters::items(value) }
}

/// `int(value, default=0, base=10)`: what is no number is the default.
fn int(state: &State, value: &Value, other: Option<Value>, base: Option<u32>, more: Kwargs) -> Result<Value, Error> {
    let other = other.or(more.get("default")?).unwrap_or_else(|| 0.into());
    filters::int(state, value, Some(other), base, more)
}

/// The methods of Python's values that pycompat lacks or has otherwise.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if name == "__slice__" {
        let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(args)?;
        return slice(state, value, start, stop, step.unwrap_or(1));
    }
    let gone_through = matches!(value.kind(), ValueKind::Seq).then_some(value);
    gone_through.into_iter().chain(args).filter(|v| v.as_object().is_some()).try_for_each(|v| weighed(state, v))?;
    if name == "copy" && matches!(value.kind(), ValueKind::Map | ValueKind::Seq) {
        let () = from_args(args)?;
        return Ok(value.clone());
    }
    let Some(s) = value.as_str() else { return unknown_method_callback(state, value, name, args) };
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Ok(strip(s, chars, name != "rstrip", name != "lstrip").into())
        }
        "split" | "rsplit" => split(s, args, name == "rsplit"),
        "partition" | "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            let last = name == "rpartition";
            let parts = pieces(s, |s| {
                let sep = plain(sep);
                let cut = if last { s.rfind(sep.as_ref()) } else { s.find(sep.as_ref()) };
                let (at, after) = cut.map_or(if last { (0, 0) } else { (s.len(), s.len()) }, |at| (at, at + sep.len()));
                Ok::<_, Error>(vec![0..at, at..after, after..s.len()])
            })?;
            Ok(Tuple::from(parts.into_iter().map(Value::from).collect::<Vec<_>>()).into())
        }
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            let left = pieces(s, |s| {
                let part = plain(part);
                let rest = if name == "removeprefix" { s.strip_prefix(&*part) } else { s.strip_suffix(&*part) };
                Ok::<_, Error>(places(s, [rest.unwrap_or(s)]))
            })?;
            Ok(left.concat().into())
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            let count = count.and_then(|n| usize::try_from(n).ok());
            replaceable(s, old, new, count)?;
            Ok(replace(s, old, new, count).into())
        }
        _ if CASES.contains(&name) => {
            let () = from_args(args)?;
            Ok(cased(s, name).into())
        }
        "index" | "rindex" => {
            let found = method(state, value, if name == "index" { "find" } else { "rfind" }, args)?;
            if found == Value::from(-1) { Err(invalid("substring not found")) } else { Ok(found) }
        }
        "format" => format(state, s, args, false),
        // These give texts whose characters are those of their input.
        "join" | "splitlines" => unknown_method_callback(state, value, name, args),
        // These look for something, or at something.
        _ => {
            let args: Vec<Value> = args.iter().map(unowned).collect();
            unknown_method_callback(state, &plain(s).as_ref().into(), name, &args)
        }
    }
}

/// `value[start:stop:step]`, as CPython's `PySlice_AdjustIndices` has it.
fn slice(state: &State, value: &Value, start: Option<i64>, stop: Option<i64>, step: i64) -> Result<Value, Error> {
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    match (value.as_str(), value.kind()) {
        (Some(s), _) => {
            let all: Vec<char> = s.chars().collect();
            Ok(places_of(all.len(), start, stop, step).map(|i| all[i]).collect::<String>().into())
        }
        (None, ValueKind::Seq | ValueKind::Iterable) => {
            let all: Vec<Value> = value.try_iter()?.collect();
            state.consume_fuel((all.len() / 4) as u64)?;
            let taken: Vec<Value> = places_of(all.len(), start, stop, step).map(|i| all[i].clone()).collect();
            Ok(if value.downcast_object_ref::<Tuple>().is_some() { Tuple::from(taken).into() } else { taken.into() })
        }
        (None, ValueKind::Undefined | ValueKind::None) => Ok(Vec::<Value>::new().into()),
        (None, kind) => Err(invalid(format!("value of type {kind} cannot be sliced"))),
    }
}

/// The places that a slice takes of `len`.
fn places_of(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let n = len as i64;
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let index = move |at: Option<i64>, or: i64| {
        at.map_or(or, |i| (if i < 0 { i.saturating_add(n) } else { i }).clamp(low, high))
    };
    let (start, stop) = (index(start, first), index(stop, last));
    let within = move |i: &i64| if step > 0 { *i < stop } else { *i > stop };
    std::iter::successors(Some(start), move |i| Some(i.saturating_add(step))).take_while(within).map(|i| i as usize)
}

/// `json.loads`, a filter that llama.cpp's templates for DeepSeek use and jinja2 has not.
fn from_json(state: &State, text: &str) -> Result<Value, Error> {
    state.consume_fuel(text.len() as u64)?; // two characters can become a value of dozens of bytes
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| invalid(format!("from_json: the text is no JSON: {e}")))?;
    Ok(Value::from(Serde(value)))
}

/// `json.dumps` with transformers' defaults; by position come ensure_ascii, indent and separators.
fn tojson(state: &State, value: &Value, args: Rest<Value>, more: Kwargs) -> Result<String, Error> {
    let given = |position: usize, name: &str| -> Result<Option<Value>, Error> {
        Ok(args.get(position).cloned().or(more.get(name)?).filter(|v| !v.is_none()))
    };
    let ascii = given(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let sorted = given(usize::MAX, "sort_keys")?.is_some_and(|v| v.is_true());
    let indent = match given(1, "indent")? {
        Some(by) => Some(match by.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(i64::try_from(by)?.clamp(0, 80) as usize),
        }),
        None => None,
    };
    let (item, key) = match given(2, "separators")? {
        Some(pair) => {
            let part = |i: usize| Ok::<_, Error>(text(state, &pair.get_item(&i.into())?)?.into_owned());
            (part(0)?, part(1)?)
        }
        None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
    };
    more.assert_all_used()?;
    let mut out = String::new();
    Json { ascii, sorted, indent, item, key }.write(value, 0, &mut out)?;
    state.consume_fuel((out.len() / 8) as u64)?;
    Ok(out)
}

/// How JSON is written.
struct Json {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    /// The text between two items.
    item: String,
    /// The text between a key and its value.
    key: String,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq => self.list(value, depth, out, '[', ']')?,
            ValueKind::Map => self.list(value, depth, out, '{', '}')?,
            kind => match scalar(value) {
                Some(text) => *out += &text,
                None => return Err(invalid(format!("a value of type {kind} cannot be written as JSON"))),
            },
        }
        Ok(())
    }

    fn list(&self, value: &Value, depth: usize, out: &mut String, open: char, close: char) -> Result<(), Error> {
        if depth == DEPTH {
            return Err(invalid(format!("lists within lists, {DEPTH} deep, cannot be written as JSON")));
        }
        let map = open == '{';
        let mut items: Vec<Value> = value.try_iter()?.collect();
        if map && self.sorted {
            items.sort();
        }
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                *out += &self.item;
            }
            self.line(depth + 1, out);
            fits(out.len())?;
            if !map {
                self.write(item, depth + 1, out)?;
                continue;
            }
            match item.as_str().map(str::to_owned).or_else(|| scalar(item)) {
                Some(key) => self.string(&key, out),
                None => return Err(invalid(format!("a value of type {} cannot be a key in JSON", item.kind()))),
            }
            *out += &self.key;
            self.write(&value.get_item(item)?, depth + 1, out)?;
        }
        if !items.is_empty() {
            self.line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for written in text.chars() {
            let c = base(written);
            match c {
                '"' => *out += "\\\"",
                '\\' => *out += "\\\\",
                '\n' => *out += "\\n",
                '\r' => *out += "\\r",
                '\t' => *out += "\\t",
                '\x08' => *out += "\\b",
                '\x0c' => *out += "\\f",
                _ if c < ' ' || self.ascii && c >= '\x7f' => {
                    out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|u| format!("\\u{u:04x}")));
                }
                _ => out.push(written),
            }
        }
        out.push('"');
    }
}

/// What is one word in JSON.
fn scalar(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::None => Some("null".into()),
        ValueKind::Bool => Some(if value.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Some(match number(value).as_str() {
            "nan" => "NaN".into(),
            "inf" => "Infinity".into(),
            "-inf" => "-Infinity".into(),
            number => number.into(),
        }),
        _ => None,
    }
}
