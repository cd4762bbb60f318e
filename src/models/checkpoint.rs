//! What a family knows of the checkpoints that its models are published as: the metadata keys and
//! tensors of GGUF that config.json and the safetensors become. `convert` carries it out.
//!
//! A family that can be converted is a file in `checkpoint/` with one function, and a line in
//! `RECIPES`.

mod zaya;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};
use serde_json::{Map, Value as Json};

use crate::gguf::Value;

/// What a model of a type becomes.
type MakeRecipe = fn(&Config) -> Result<Recipe>;

/// The types by `model_type` in config.json.
static RECIPES: &[(&str, MakeRecipe)] = &[("zaya", zaya::recipe)];

/// The largest count, as for metadata: a product of three fits 64 bits.
const MAX_COUNT: u64 = 1 << 20;

/// What a checkpoint becomes.
#[derive(Debug)]
pub struct Recipe {
    /// The architecture in GGUF.
    pub arch: &'static str,
    /// Metadata of the architecture, keys in full.
    pub keys: Vec<(String, Value)>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorRule>,
    /// Tensors of the checkpoint that are left out, and why.
    pub ignored: Vec<(&'static str, &'static str)>,
}

/// A tensor of the GGUF file, and what it is made of.
#[derive(Debug, Clone)]
pub struct TensorRule {
    /// Its name.
    pub to: String,
    /// The name in the checkpoint.
    pub from: String,
    /// The shape in the checkpoint, where dimensions of 1 do not count.
    pub have: Vec<usize>,
    /// The shape in the file, (.., out, in).
    pub shape: Vec<usize>,
    /// Whether it is F32 whatever the type of the file: routers, norms, vectors.
    pub full: bool,
    /// Whether a checkpoint may be without it.
    pub optional: bool,
    /// Whether the last axis of the checkpoint's becomes the first.
    pub last_axis_first: bool,
}

impl Recipe {
    /// A recipe without keys and tensors.
    fn new(arch: &'static str) -> Recipe {
        Recipe { arch, keys: Vec::new(), tensors: Vec::new(), ignored: Vec::new() }
    }

    /// Adds a key, given without the architecture's prefix.
    fn key(&mut self, name: &str, value: impl Into<Value>) {
        self.keys.push((format!("{}.{name}", self.arch), value.into()));
    }

    /// Adds a count; [`Config`] keeps them small.
    fn count(&mut self, name: &str, n: usize) {
        self.key(name, n as u32);
    }

    /// Adds a tensor in the type of the file, and returns its rule.
    fn matrix(&mut self, to: String, from: String, shape: &[usize]) -> &mut TensorRule {
        let (have, shape) = (shape.to_vec(), shape.to_vec());
        self.tensors.push(TensorRule { to, from, have, shape, full: false, optional: false, last_axis_first: false });
        self.tensors.last_mut().expect("it was just added")
    }

    /// Adds a tensor that stays F32, and returns its rule.
    fn full(&mut self, to: String, from: String, shape: &[usize]) -> &mut TensorRule {
        let rule = self.matrix(to, from, shape);
        rule.full = true;
        rule
    }
}

/// The `model_type`s that this version can convert.
pub fn convertible() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|(name, _)| *name)
}

/// What the checkpoint of this configuration becomes.
///
/// # Errors
/// If it is of a type that this version cannot convert, or says what it cannot carry over; the
/// message names the key.
pub fn recipe(config: &Config) -> Result<Recipe> {
    let found = config.word("model_type")?;
    match RECIPES.iter().find(|(name, _)| *name == found) {
        Some((_, recipe)) => recipe(config),
        None => {
            let can = convertible().collect::<Vec<_>>().join(", ");
            let want = format!("one that this version can convert ({can}); look for a GGUF file of this model instead");
            Err(config.bad("model_type", format!("{found:?}"), want))
        }
    }
}

/// A config.json, or an object in it.
#[derive(Debug)]
pub struct Config {
    file: PathBuf,
    /// Where in the file it is, for messages: `rope_parameters.`.
    at: String,
    values: Map<String, Json>,
}

impl Config {
    /// Parses the text of a file.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn parse(file: &Path, text: &str) -> Result<Config> {
        match serde_json::from_str(text).with_context(|| format!("{}: not JSON", file.display()))? {
            Json::Object(values) => Ok(Config { file: file.to_owned(), at: String::new(), values }),
            _ => bail!("{}: expected a JSON object", file.display()),
        }
    }

    /// The value of a key; a null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.values.get(key).filter(|v| !v.is_null())
    }

    /// The error for a key whose value cannot be used.
    pub fn bad(&self, key: &str, found: impl Display, want: impl Display) -> Error {
        anyhow!("{}: key \"{}{key}\" is {found}, expected {want}", self.file.display(), self.at)
    }

    fn need<'a, T>(&'a self, key: &str, want: &str, read: impl Fn(&'a Json) -> Option<T>) -> Result<T> {
        let Some(value) = self.get(key) else { return Err(self.bad(key, "missing", want)) };
        read(value).ok_or_else(|| self.bad(key, value, want))
    }

    /// A whole number from 1 up.
    fn count(&self, key: &str) -> Result<usize> {
        let want = format!("a whole number from 1 to {MAX_COUNT}");
        let number = |v: &Json| v.as_u64().filter(|n| (1..=MAX_COUNT).contains(n)).map(|n| n as usize);
        self.need(key, &want, number)
    }

    /// A whole number of tokens, from 1 up: larger than a count may be.
    fn tokens(&self, key: &str) -> Result<u32> {
        let number = |v: &Json| v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        self.need(key, "a number of tokens, from 1 up", number)
    }

    /// A finite number.
    fn number(&self, key: &str) -> Result<f64> {
        self.need(key, "a number", |v| v.as_f64().filter(|f| f.is_finite()))
    }

    /// A text.
    fn word(&self, key: &str) -> Result<&str> {
        self.need(key, "a text", Json::as_str)
    }

    /// A flag, or a default where the key is absent.
    fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        if self.get(key).is_none() { Ok(default) } else { self.need(key, "true or false", Json::as_bool) }
    }

    /// A list of texts.
    fn words(&self, key: &str) -> Result<Vec<&str>> {
        let list = self.need(key, "a list of texts", Json::as_array)?;
        list.iter().map(|v| v.as_str().ok_or_else(|| self.bad(key, v, "a text in each place"))).collect()
    }

    /// An object.
    fn object(&self, key: &str) -> Result<Config> {
        let values = self.need(key, "an object", Json::as_object)?.clone();
        Ok(Config { file: self.file.clone(), at: format!("{}{key}.", self.at), values })
    }

    /// Fails unless a key, where it is there, has the one value that is understood.
    fn only(&self, key: &str, want: impl Into<Json>) -> Result<()> {
        let want = want.into();
        match self.get(key) {
            Some(found) if *found != want => Err(self.bad(key, found, format!("{want}, the only one that is known"))),
            _ => Ok(()),
        }
    }
}
