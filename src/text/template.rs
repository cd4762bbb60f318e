//! Chat templates: a conversation to the prompt that the model was trained on, as Hugging Face transformers renders it.
//!
//! A template is Jinja. transformers (`utils/chat_template_utils.py`) runs it in Python's jinja2, sandboxed:
//!
//! ```text
//! environment   trim_blocks, lstrip_blocks, {% break %} and {% continue %}, no escaping, \r\n read as \n
//! functions     raise_exception(message), strftime_now(format)
//! filters       tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False), without jinja2's HTML escapes
//! tags          {% generation %} .. {% endgeneration %} marks what a model says, and prints it
//! variables     tools, documents (none unless given), add_generation_prompt (false); messages, bos_token, eos_token
//!               and whatever else the user gives
//! undefined     prints nothing, is empty and false; nothing can be taken out of it
//! ```
//!
//! How much it may do is bounded (`limits.rs`): minijinja's fuel counts its steps, and it runs on a thread with a stack of
//! its own. What jinja2 reads otherwise than minijinja is in `jinja.rs`, what it does to values otherwise in `python.rs`.

use std::io::{self, Write};

use anyhow::{Context, Error, Result, anyhow, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::{Map, json};

use super::clock::Clock;
use super::marks::{Moved, plain};
use super::own::Literals;
use super::tokenizer::Tokenizer;
use super::{jinja, limits, python};
use crate::gguf::Meta;

const KEY: &str = "tokenizer.chat_template";

/// A chat template, parsed.
#[derive(Debug)]
pub struct Template {
    name: String,
    source: String,
    env: Environment<'static>,
}

impl Template {
    /// Parses a template; `name` is what errors call it.
    ///
    /// # Errors
    /// If the template does not parse; the message gives the line.
    pub fn new(source: &str, name: &str) -> Result<Template> {
        let env = environment(source, None, name)?;
        Ok(Template { name: name.to_owned(), source: source.to_owned(), env })
    }

    /// The template with what it writes of control tokens in own characters.
    pub(super) fn with_own(&self, own: &mut Literals) -> Result<Environment<'static>> {
        environment(&self.source, Some(own), &self.name)
    }

    /// The template that a model's file has: the one of this name, or without a name the model's usual one, which may
    /// be another where there are tools (`tool_use`, as transformers has it).
    ///
    /// # Errors
    /// If the model has no such template, or an empty one (the message lists those it has), or it does not parse.
    pub fn of(meta: &Meta, named: Option<&str>, tools: bool) -> Result<Template> {
        let file = meta.file().display();
        let keyed = |name: &str| match name {
            "default" => KEY.to_owned(),
            name => format!("{KEY}.{name}"),
        };
        let key = match named {
            Some(name) => keyed(name),
            None if tools && meta.get(&keyed("tool_use")).is_some() => keyed("tool_use"),
            None => KEY.to_owned(),
        };
        let Some(source) = meta.opt_str(&key)?.filter(|source| !source.trim().is_empty()) else {
            let prefix = keyed("");
            let mut has: Vec<&str> = meta.iter().filter_map(|(k, _)| k.strip_prefix(&prefix)).collect();
            has.extend(meta.get(KEY).map(|_| "default"));
            match (named, has.is_empty()) {
                (Some(name), false) => bail!("{file}: it has no chat template {name:?}; it has {}", has.join(", ")),
                (None, false) => bail!("{file}: it has no usual chat template; choose one of {}", has.join(", ")),
                (_, true) => bail!(
                    "{file}: metadata key {key:?} is missing: the model has no chat template, so nothing says how it \
                     expects a conversation. Give its template as a file, or continue plain text instead"
                ),
            }
        };
        Template::new(source, &format!("{file}: {key}"))
    }

    /// What the template's file says.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt. `variables` is an object: `messages` and whatever else the template asks for.
    ///
    /// # Errors
    /// If the template raises an error or runs into one; the message gives its words and line.
    pub fn render(&self, variables: &serde_json::Value, clock: Clock) -> Result<String> {
        let mut variables = variables.clone();
        let moved = Moved::out_of(&mut variables);
        Ok(moved.restore(self.run(&self.env, variables, clock)?.0))
    }

    /// The steps that it takes to render a prompt, and the most that these variables allow.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn steps(&self, variables: &serde_json::Value, clock: Clock) -> Result<(u64, u64)> {
        Ok((self.run(&self.env, variables.clone(), clock)?.1, limits::steps(variables)))
    }

    /// What the template writes in this environment, and the steps that this took.
    pub(super) fn run(&self, env: &Environment, variables: serde_json::Value, clock: Clock) -> Result<(String, u64)> {
        let most = limits::steps(&variables);
        let serde_json::Value::Object(given) = variables else {
            bail!("{}: the variables of a template are a JSON object, but these are {variables}", self.name);
        };
        let mut all = Map::new();
        for (name, value) in
            [("tools", json!(null)), ("documents", json!(null)), ("add_generation_prompt", json!(false))]
        {
            all.insert(name.into(), value);
        }
        all.extend(given);
        let strftime = Value::from_function(move |format: &str| -> Result<String, minijinja::Error> {
            let wrong = |why: String| minijinja::Error::new(ErrorKind::InvalidOperation, why);
            if format.len() > limits::TIME_BYTES {
                return Err(wrong(format!(
                    "a time in {} bytes, expected at most {}",
                    format.len(),
                    limits::TIME_BYTES
                )));
            }
            clock.strftime(format).map_err(|e| wrong(format!("{e:#}")))
        });
        on_own_stack(|| {
            let context = std::iter::once(("strftime_now".to_owned(), strftime))
                .chain(all.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))));
            let mut env = env.clone();
            env.set_fuel(Some(most));
            let template = env.get_template(&self.name).map_err(|e| failed(&self.name, &e))?;
            let mut out = Written::default();
            let rendered = template.render_captured_to(Value::from_pairs(context), &mut out);
            let rendered = rendered.map_err(|e| failed(&self.name, &e))?;
            if out.lost {
                bail!("{}: a prompt of more than {} bytes", self.name, limits::PROMPT_BYTES);
            }
            let steps = rendered.state().fuel_levels().map_or(0, |(used, _)| used);
            let text = String::from_utf8(out.text).with_context(|| format!("{}: not UTF-8", self.name))?;
            Ok((text, steps))
        })
    }
}

/// Where a prompt is written. What is too much of it is lost: an error here would have no line, and a template that
/// writes without end soon runs out of steps, which has.
#[derive(Default)]
struct Written {
    text: Vec<u8>,
    lost: bool,
}

impl Write for Written {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.lost |= self.text.len() + text.len() > limits::PROMPT_BYTES;
        if !self.lost {
            self.text.extend_from_slice(text);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Does this on a thread whose stack holds what a template that is not too large can nest.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|s| {
        let thread =
            std::thread::Builder::new().name("template".into()).stack_size(limits::STACK).spawn_scoped(s, work);
        let thread = thread.context("no thread for the chat template can be started")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Tokenizer {
    /// Adds the variables that a template has from the vocabulary, where they are not given: `bos_token`, `eos_token`.
    pub fn add_variables(&self, variables: &mut Map<String, serde_json::Value>) {
        for (name, id) in [("bos_token", self.bos()), ("eos_token", self.eos())] {
            if let Some(id) = id.filter(|_| !variables.contains_key(name)) {
                variables.insert(name.into(), self.piece(id).into());
            }
        }
    }
}

/// jinja2 as transformers sets it up, with one template in it.
fn environment(source: &str, own: Option<&mut Literals>, name: &str) -> Result<Environment<'static>> {
    let source = jinja::translate(source, own).map_err(|e| anyhow!("{name}, {e}"))?;
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|e| failed(name, &e))?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_debug(true); // for what its errors say
    env.add_function("raise_exception", |message: &Value| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("the template says: {message}")))
    });
    python::install(&mut env);
    limits::install(&mut env);
    on_own_stack(|| {
        env.add_template_owned(name.to_owned(), source).map_err(|e| failed(name, &e))?;
        Ok(env)
    })
}

/// The error that a template gave: where, and what.
fn failed(name: &str, e: &minijinja::Error) -> Error {
    let line = e.line().map_or_else(String::new, |line| format!(", line {line}"));
    let what = match e.kind() {
        ErrorKind::OutOfFuel => {
            "the template takes far more steps than a conversation of this size needs, and may never end".to_owned()
        }
        kind => e.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    let why = std::error::Error::source(e).map_or_else(String::new, |why| format!(": {why}"));
    anyhow!("{name}{line}: {}", plain(&format!("{what}{why}")))
}
