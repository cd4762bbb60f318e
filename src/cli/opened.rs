//! A model opened to generate text: its session with tokenizer, chat template and sampling
//! settings.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::args::{self, Reasoning};
use super::errors::{Failure, off, usage};
use super::escapes::unescape;
use super::files::{own_place, read_text};
use super::settings::Settings;
use super::{open, signals, speculation};
use crate::session::Session;
use crate::speculate::Speculation;
use crate::talk::{GenParams, Turns};
use crate::text::{Clock, Markers, Template, Tokenizer};

/// Variables by which templates turn reasoning on and off.
const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];

/// A model that is ready to generate.
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) tokenizer: Tokenizer,
    /// None where the model has no template and none was given.
    pub(super) turns: Option<Turns>,
    pub(super) settings: Settings,
    /// What drafts.
    pub(super) speculation: Speculation,
    /// Raised by Ctrl-C.
    pub(super) interrupted: Arc<AtomicBool>,
}

/// How a verb uses the model.
pub(super) struct Mode {
    /// Sequences.
    pub(super) n_seq: usize,
    /// Prompts have no template.
    pub(super) raw: bool,
    /// A second Ctrl-C ends the program.
    pub(super) leaves: bool,
    /// Every request may set parameters of its own, so that no flag is without effect for all.
    pub(super) requests: bool,
}

impl Opened {
    /// Opens the model.
    pub(super) fn open(
        model: &args::ModelArgs,
        sampling: &args::SamplingArgs,
        talk: &args::TalkArgs,
        drafts: &args::SpeculationArgs,
        Mode { n_seq, raw, leaves, requests }: Mode,
    ) -> Result<Opened> {
        let mut settings = Settings::new(sampling)?;
        if talk.stop.iter().any(String::is_empty) {
            return usage("--stop: expected some text; an empty one would stop at once".into());
        }
        let further = further(talk)?; // usage errors come before a model is loaded
        let limits = speculation::limits(drafts, model)?;
        let mut o = open::for_sequences(open::options(model)?, n_seq, requests);
        o.drafts = limits.most;
        o.heads = speculation::uses_heads(drafts, limits);
        // The built-in model leaves nothing on a disk.
        let keeps = model.model.is_some() && !model.no_profile;
        let cache = if keeps { own_place("XDG_CACHE_HOME", ".cache") } else { None };
        o.expert_uses = cache.clone();
        let gguf = open::header(model.model.as_deref(), &o.first_load(), o.threads)?;
        let tokenizer = Tokenizer::new(&gguf).context(Failure::Model)?;
        settings.follow(&gguf.meta);
        if !requests {
            settings.report_idle()?;
        }
        let template = if raw { None } else { template(&gguf, &tokenizer, talk)? };
        log_text(&tokenizer, &settings, template.as_ref(), talk);
        let turns = match template {
            Some(template) => Some(turns(template, talk, further, &tokenizer)?),
            None => {
                talk.without_template(if raw {
                    "--raw uses no chat template"
                } else {
                    "this model has no chat template"
                })?;
                None
            }
        };
        let start = Instant::now();
        let (gguf, draft) = speculation::draft_model(drafts, model, (gguf, &tokenizer), &o)?;
        let session = open::session(gguf, model, &o)?;
        tracing::debug!("the model was ready after {:.2} s", start.elapsed().as_secs_f64());
        let mut speculation = speculation::speculation(drafts, limits, &session, draft)?;
        if let Some(cache) = cache {
            speculation = speculation.remembering(&cache, &session);
        }
        let interrupted = signals::listen(&session, leaves)?;
        Ok(Opened { session, tokenizer, turns, settings, speculation, interrupted })
    }
}

/// Logs what becomes of text (`-v`): the vocabulary, the template, the sampling parameters.
fn log_text(tokenizer: &Tokenizer, settings: &Settings, template: Option<&Template>, talk: &args::TalkArgs) {
    let piece = |id: Option<u32>| id.map_or("none".into(), |id| format!("{:?} ({id})", tokenizer.piece(id)));
    let (begins, ends) = (piece(tokenizer.bos()), piece(tokenizer.eos()));
    tracing::debug!("vocabulary: {} tokens; begin of text {begins}, end of text {ends}", tokenizer.n_vocab());
    match template {
        None => tracing::debug!("chat template: none; text is continued as it is"),
        Some(t) => {
            let from = match &talk.chat_template_file {
                Some(path) => path.display().to_string(),
                None => "the model's file".into(),
            };
            tracing::debug!("chat template: {} bytes, from {from}", t.source().len());
        }
    }
    let sampling: Vec<String> = settings.list().into_iter().map(|(name, value, _)| format!("{name}={value}")).collect();
    tracing::debug!("sampling: {}", sampling.join(" "));
}

/// The template to use.
fn template(gguf: &crate::gguf::Gguf, tokenizer: &Tokenizer, talk: &args::TalkArgs) -> Result<Option<Template>> {
    if let Some(path) = &talk.chat_template_file {
        let source = read_text(path)?;
        if source.trim().is_empty() {
            off(&format!("--chat-template-file {}", path.display()), "an empty template is none")?;
            return Ok(None);
        }
        return Template::new(&source, &path.display().to_string()).map(Some).context(Failure::Usage);
    }
    if let Some(name) = &talk.chat_template {
        let bos = tokenizer.bos().is_some() && tokenizer.adds_bos();
        return Template::chosen(&gguf.meta, name, bos).map(Some).context(Failure::Usage);
    }
    match gguf.meta.opt_str("tokenizer.chat_template")?.filter(|source| !source.trim().is_empty()) {
        Some(_) => Template::of(&gguf.meta, None, false).map(Some).context(Failure::Model),
        None => Ok(None),
    }
}

fn turns(
    template: Template,
    talk: &args::TalkArgs,
    mut further: Map<String, Value>,
    tokenizer: &Tokenizer,
) -> Result<Turns> {
    if talk.reasoning != Reasoning::Auto {
        let on = talk.reasoning == Reasoning::On;
        let known: Vec<&str> = SWITCHES.into_iter().filter(|s| is_switch(&template, s)).collect();
        if known.is_empty() {
            let flag = if on { "--reasoning on" } else { "--reasoning off" };
            off(flag, "the chat template has no reasoning switch")?;
        }
        for name in known {
            further.entry(name).or_insert(on.into());
        }
    }
    for name in further.keys().filter(|name| !template.source().contains(name.as_str())) {
        off(&format!("--chat-template-kwargs {name}"), "the chat template does not use this variable")?;
    }
    let mut turns = Turns::new(template, tokenizer, further, Clock::now())?;
    if let Some([open, close]) = talk.reasoning_tags.as_deref() {
        if open.trim().is_empty() || close.trim().is_empty() {
            return usage("--reasoning-tags: expected two texts, as in --reasoning-tags '<think>' '</think>'".into());
        }
        turns = turns.with_markers(Markers::new(open, close));
    }
    if talk.reasoning_budget >= 0 && !turns.may_reason() {
        off(
            "--reasoning-budget",
            "neither the chat template nor the vocabulary has markers for reasoning (--reasoning-tags names them)",
        )?;
    }
    Ok(turns)
}

/// Whether a prompt is another one with this variable than without it.
fn is_switch(template: &Template, name: &str) -> bool {
    let prompt = |on: bool| {
        let messages = [crate::talk::message("user", "a")];
        let variables = serde_json::json!({ "messages": messages, "add_generation_prompt": true, name: on });
        template.render(&variables, Clock::now()).ok()
    };
    prompt(true) != prompt(false)
}

/// The variables of `--chat-template-kwargs`.
fn further(talk: &args::TalkArgs) -> Result<Map<String, Value>> {
    let Some(text) = &talk.chat_template_kwargs else { return Ok(Map::new()) };
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => match map.keys().find(|k| matches!(k.as_str(), "messages" | "add_generation_prompt"))
        {
            Some(own) => usage(format!("--chat-template-kwargs: {own} is set by this program; set other variables")),
            None => Ok(map),
        },
        Ok(other) => usage(format!("--chat-template-kwargs {other}: expected a JSON object")),
        Err(e) => usage(format!("--chat-template-kwargs: not JSON: {e}")),
    }
}

impl args::TalkArgs {
    /// Reports every template option as without effect.
    fn without_template(&self, why: &str) -> Result<()> {
        let given = [
            ("--reasoning", self.reasoning != Reasoning::Auto),
            ("--reasoning-budget", self.reasoning_budget >= 0),
            ("--reasoning-tags", self.reasoning_tags.is_some()),
            ("--chat-template-kwargs", self.chat_template_kwargs.is_some()),
            ("--chat-template", self.chat_template.is_some()),
            ("--chat-template-file", self.chat_template_file.is_some()),
        ];
        given.iter().filter(|(_, given)| *given).try_for_each(|(flag, _)| off(flag, why))
    }

    /// The parameters of every generation.
    pub(super) fn params(&self) -> GenParams {
        GenParams {
            limit: usize::try_from(self.n_predict).ok(),
            stop: self.stop.iter().map(|text| self.text(text)).collect(),
            ignore_eos: self.ignore_eos,
            budget: usize::try_from(self.reasoning_budget).ok(),
            logprobs: None,
        }
    }

    /// The text that a flag means.
    pub(super) fn text(&self, typed: &str) -> String {
        if self.no_escape { typed.to_owned() } else { unescape(typed) }
    }

    /// The system message, if one is given.
    pub(super) fn system(&self) -> Result<Option<String>> {
        match &self.system_prompt_file {
            Some(path) => read_text(path).map(Some),
            None => Ok(self.system_prompt.clone()),
        }
    }
}
