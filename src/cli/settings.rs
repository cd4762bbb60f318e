//! How tokens are chosen, put together from all sources: flags, then the model's own file, then the
//! defaults; and single parameters later, by their names in llama.cpp's and OpenAI's APIs.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::args::SamplingArgs;
use super::errors::{Failure, off, usage};
use super::escapes::unescape;
use crate::gguf::Meta;
use crate::sample::{Params, Sampler, Stage};
use crate::text::Tokenizer;

/// llama.cpp's breakers for DRY (common/common.h).
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// What a GGUF file can ask for: the keys after `general.sampling.`, except `sequence`
/// (gguf-py/gguf/constants.py).
const KEYS: [&str; 11] = [
    "temp",
    "top_k",
    "top_p",
    "min_p",
    "xtc_probability",
    "xtc_threshold",
    "penalty_last_n",
    "penalty_repeat",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
];

/// How tokens are to be chosen, before there is a vocabulary to choose from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What needs no vocabulary.
    pub params: Params,
    /// None for a new one.
    pub seed: Option<u64>,
    /// Texts that no repetition reaches across, for DRY.
    pub breakers: Vec<String>,
    /// What is added to the logits of each token of a text.
    pub text_bias: Vec<(String, f32)>,
    /// The flags that were given, whose parameters a model's file does not change.
    given: Vec<&'static str>,
}

impl Default for Settings {
    fn default() -> Settings {
        let breakers = BREAKERS.map(String::from).to_vec();
        Settings { params: Params::default(), seed: None, breakers, text_bias: Vec::new(), given: Vec::new() }
    }
}

impl Settings {
    /// What the flags say, over the defaults.
    ///
    /// # Errors
    /// If a value is not in its range, or a name is unknown: a usage error.
    pub fn new(flags: &SamplingArgs) -> Result<Settings> {
        let mut s = Settings { seed: flags.seed.and_then(|n| u64::try_from(n).ok()), ..Settings::default() };
        if let Some(names) = &flags.samplers {
            s.params.order = Stage::from_names(names).context("--samplers").context(Failure::Usage)?;
            s.given.push("samplers");
        }
        if let Some(letters) = &flags.sampler_seq {
            s.params.order = Stage::from_letters(letters).context("--sampler-seq").context(Failure::Usage)?;
            s.given.push("sampler-seq");
        }
        for (flag, value) in flags.numbers() {
            if let Err(expected) = s.params.set(flag, value) {
                return usage(format!("--{flag} {value}: expected {expected}"));
            }
            s.given.push(flag);
        }
        s.given.extend(s.seed.map(|_| "seed"));
        s.given.extend(flags.dry_sequence_breaker.first().map(|_| "dry-sequence-breaker"));
        if !flags.dry_sequence_breaker.is_empty() {
            let from = flags.dry_sequence_breaker.iter().rposition(|b| b == "none").map_or(0, |at| at + 1);
            s.breakers = flags.dry_sequence_breaker[from..].iter().map(|b| unescape(b)).collect();
        }
        for text in &flags.logit_bias {
            let Some(bias) = bias(text) else {
                return usage(format!("--logit-bias {text}: expected a token ID and what to add, like 15043-1.5"));
            };
            s.params.logit_bias.push(bias);
        }
        Ok(s)
    }

    /// Fills in what the model's file asks for and no flag sets, with a notice.
    pub fn follow(&mut self, meta: &Meta) {
        let taken = self.take(meta);
        if !taken.is_empty() {
            tracing::info!("sampling parameters of the model file: {}", taken.join(", "));
        }
    }

    /// Fills in what the model's file asks for and no flag sets; returns what was filled in.
    pub(super) fn take(&mut self, meta: &Meta) -> Vec<String> {
        let mut taken = Vec::new();
        let mut note = |read: Result<Option<String>>| match read {
            Ok(text) => taken.extend(text),
            // A hint that cannot be followed does not keep a model from being used.
            Err(e) => tracing::warn!("{e:#}; ignored"),
        };
        let place = |key: &str| format!("{}: metadata key {key:?}", meta.file().display());
        if !self.given.iter().any(|flag| matches!(*flag, "samplers" | "sampler-seq")) {
            let key = "general.sampling.sequence";
            let mut read = || {
                let Some(names) = meta.opt_str(key)? else { return Ok(None) };
                self.params.order = Stage::from_names(names).with_context(|| place(key))?;
                Ok(Some(format!("samplers {names}")))
            };
            note(read());
        }
        for name in KEYS {
            let key = format!("general.sampling.{name}");
            if self.given.iter().any(|flag| Params::name_of(flag) == Params::name_of(name)) {
                continue;
            }
            let mut read = || {
                let Some(value) = meta.opt_f32(&key)? else { return Ok(None) };
                let set = self.params.set(name, value.into());
                set.map_err(|expected| anyhow!("{} is {value}, expected {expected}", place(&key)))?;
                Ok(Some(format!("{name} {value}")))
            };
            note(read());
        }
        taken
    }

    /// Reports the flags that have no effect with the current settings.
    pub(super) fn report_idle(&self) -> Result<()> {
        for flag in &self.given {
            let p = &self.params;
            let why = match *flag {
                "samplers" | "sampler-seq" if p.mirostat > 0 => Some("mirostat has its own order".into()),
                "seed" if !p.draws() => Some("temperature 0 always takes the most likely token".into()),
                "dry-sequence-breaker" => p.idle("dry-base"),
                flag => p.idle(flag),
            };
            if let Some(why) = why {
                off(&format!("--{flag}"), &why)?;
            }
        }
        Ok(())
    }

    /// Sets one parameter by its name in llama.cpp's server or OpenAI's API. False if it has no
    /// such parameter; null changes nothing.
    ///
    /// # Errors
    /// If the value is not one that the parameter can have.
    pub fn set(&mut self, name: &str, value: &Value) -> Result<bool> {
        let name = name.replace('-', "_");
        let known = Params::name_of(&name).is_some();
        match name.as_str() {
            "seed" | "samplers" | "dry_sequence_breakers" | "logit_bias" if value.is_null() => {}
            _ if value.is_null() => return Ok(known),
            "seed" => match (value.as_u64(), value.as_i64()) {
                (Some(seed), _) => self.seed = Some(seed),
                (None, Some(-1)) => self.seed = None,
                _ => bail!("seed is {value}, expected a whole number from -1 up"),
            },
            "samplers" => {
                let order = match (value.as_str(), strings(value)) {
                    (Some(names), _) if names.contains(';') => Stage::from_names(names),
                    (Some(letters), _) => Stage::from_letters(letters),
                    (None, Some(names)) => Stage::from_names(&names.join(";")),
                    (None, None) => {
                        bail!("samplers is {value}, expected a list of names, or their letters as a string")
                    }
                };
                self.params.order = order.context("samplers")?;
            }
            "dry_sequence_breakers" => match strings(value) {
                Some(texts) => self.breakers = texts,
                None => bail!("dry_sequence_breakers is {value}, expected a list of strings"),
            },
            "logit_bias" => self.set_bias(value)?,
            _ => {
                // What is no number is in no range.
                let set = self.params.set(&name, value.as_f64().unwrap_or(f64::NAN));
                return set.map_err(|expected| anyhow!("{name} is {value}, expected {expected}"));
            }
        }
        Ok(true)
    }

    /// Takes biases as an object, token to bias, or a list of such pairs; a token is a number or a
    /// text, and a bias of false forbids.
    fn set_bias(&mut self, value: &Value) -> Result<()> {
        let pairs: Vec<(Value, &Value)> = match value {
            Value::Object(map) => {
                let key = |k: &String| k.parse::<u32>().map_or_else(|_| Value::from(k.as_str()), Value::from);
                map.iter().map(|(k, v)| (key(k), v)).collect()
            }
            Value::Array(list) => {
                let pair = |v: &'_ Value| v.as_array().is_some_and(|v| v.len() == 2);
                if let Some(other) = list.iter().find(|v| !pair(v)) {
                    bail!("logit_bias has {other}, expected pairs of a token and a bias");
                }
                list.iter().map(|pair| (pair[0].clone(), &pair[1])).collect()
            }
            _ => bail!("logit_bias is {value}, expected an object or a list of pairs, tokens and biases"),
        };
        let (mut ids, mut texts) = (Vec::new(), Vec::new());
        for (token, by) in pairs {
            let by = match by {
                Value::Bool(false) => f32::NEG_INFINITY,
                by => match by.as_f64().map(|by| by as f32) {
                    Some(by) if by < f32::INFINITY => by,
                    _ => bail!("logit_bias has {by} for {token}, expected a number, or false"),
                },
            };
            match (token.as_u64().and_then(|id| u32::try_from(id).ok()), token.as_str()) {
                (Some(id), _) => ids.push((id, by)),
                (None, Some(text)) => texts.push((text.to_owned(), by)),
                (None, None) => bail!("logit_bias has the token {token}, expected its number or a text"),
            }
        }
        (self.params.logit_bias, self.text_bias) = (ids, texts);
        Ok(())
    }

    /// The seed; a notice tells a new one, if anything is drawn with it.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let seed = now.map_or(0, |d| d.as_nanos() as u64) & 0xffff_ffff;
            if !self.params.greedy() {
                tracing::info!("seed {seed} (--seed {seed} reproduces this text)");
            }
            seed
        })
    }

    /// All parameters, for people: name, value, and the default where that is another one.
    pub(super) fn list(&self) -> Vec<(String, String, Option<String>)> {
        let order = |p: &Params| p.order.iter().map(|s| s.name()).collect::<Vec<_>>().join(";");
        let values = |s: &Settings| {
            let numbers = s.params.numbers().into_iter().map(|(name, value)| (name.to_owned(), value.to_string()));
            let biases = s.params.logit_bias.len() + s.text_bias.len();
            let rest = [
                ("samplers".to_owned(), order(&s.params)),
                ("logit_bias".to_owned(), format!("{biases} tokens")),
                ("dry_sequence_breakers".to_owned(), format!("{:?}", s.breakers)),
            ];
            numbers.chain(rest).collect::<Vec<_>>()
        };
        let pairs = values(self).into_iter().zip(values(&Settings::default()));
        pairs
            .map(|((name, value), (_, default))| (name, value.clone(), (value != default).then_some(default)))
            .collect()
    }

    /// The sampler for a vocabulary.
    ///
    /// # Errors
    /// If a bias is for a token that the vocabulary does not have, or a text cannot be tokenized.
    pub fn sampler(&self, seed: u64, tokenizer: &Tokenizer) -> Result<Sampler> {
        let mut params = self.params.clone();
        for (text, by) in &self.text_bias {
            params.logit_bias.extend(tokenizer.encode(text, false, false)?.into_iter().map(|id| (id, *by)));
        }
        if let Some((id, _)) = params.logit_bias.iter().find(|(id, _)| *id as usize >= tokenizer.n_vocab()) {
            let last = tokenizer.n_vocab().saturating_sub(1);
            return usage(format!("logit bias for token {id}: expected a token from 0 to {last}"));
        }
        let dry = params.dry_multiplier > 0.0;
        let breakers = if dry { tokenizer.sequences_with(&self.breakers)? } else { Vec::new() };
        Ok(Sampler::new(params, seed, breakers))
    }
}

/// The strings of a list that has only strings.
fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|v| v.as_str().map(String::from)).collect()
}

/// A bias as the flag has it: `15043+1`, `15043-0.5`, `15043-inf`.
fn bias(text: &str) -> Option<(u32, f32)> {
    let at = text.find(['+', '-'])?;
    let (id, by) = (text[..at].trim().parse().ok()?, &text[at + 1..]);
    if by.starts_with(['+', '-']) {
        return None;
    }
    let by: f32 = by.trim().parse().ok()?;
    let by = if text[at..].starts_with('-') { -by } else { by };
    (by < f32::INFINITY).then_some((id, by))
}
