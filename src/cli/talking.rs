//! What the verbs that write text share: the model with its vocabulary and template, and a prompt that shows how far it
//! has been read.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde_json::{Map, Value};

use super::args::{self, Reasoning};
use super::sampling::Settings;
use super::{Failure, gguf, off, open, options, read_text, signals, usage};
use crate::session::Progress;
use crate::talk::{GenParams, Turns};
use crate::text::{Clock, Reader, Template, Tokenizer};

/// Variables by which templates switch thinking.
const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];

/// A model that is about to write.
pub(super) struct Talking {
    pub(super) session: crate::session::Session,
    pub(super) tokenizer: Tokenizer,
    /// None where the model has no template and none was given.
    pub(super) turns: Option<Turns>,
    pub(super) settings: Settings,
    /// Raised by Ctrl-C.
    pub(super) interrupted: Arc<AtomicBool>,
}

/// How a verb talks.
pub(super) struct Manner {
    /// Sequences.
    pub(super) n_seq: usize,
    /// Prompts have no template.
    pub(super) raw: bool,
    /// A second Ctrl-C ends the program.
    pub(super) leaves: bool,
    /// Every request may set parameters of its own, so that no flag is idle.
    pub(super) requests: bool,
}

impl Talking {
    /// Opens the model.
    pub(super) fn open(
        model: &args::Model,
        sampling: &args::Sampling,
        talk: &args::Talk,
        Manner { n_seq, raw, leaves, requests }: Manner,
    ) -> Result<Talking> {
        let mut settings = Settings::new(sampling)?;
        if talk.stop.iter().any(String::is_empty) {
            return usage("--stop: an empty text would end everything at once; some text expected".into());
        }
        let further = further(talk)?; // wrong usage is said before a model is loaded
        let o = crate::session::Options { n_seq, n_output_rows: Some(n_seq), ..options(model)? };
        let gguf = gguf(model.model.as_deref(), &o.load)?;
        let tokenizer = Tokenizer::new(&gguf).context(Failure::Model)?;
        settings.follow(&gguf.meta);
        if !requests {
            settings.tell_idle()?;
        }
        let template = if raw { None } else { template(&gguf, talk)? };
        let turns = match template {
            Some(template) => Some(turns(template, talk, further, &tokenizer)?),
            None => {
                talk.without_template(if raw {
                    "--raw leaves the prompt as it is"
                } else {
                    "this model has no chat template"
                })?;
                None
            }
        };
        let session = open(gguf, model, &o)?;
        let interrupted = signals::listen(&session, leaves)?;
        Ok(Talking { session, tokenizer, turns, settings, interrupted })
    }
}

/// The template to use.
fn template(gguf: &crate::gguf::Gguf, talk: &args::Talk) -> Result<Option<Template>> {
    if let Some(path) = &talk.chat_template_file {
        return Template::new(&read_text(path)?, &path.display().to_string()).map(Some).context(Failure::Usage);
    }
    let has = gguf.meta.opt_str("tokenizer.chat_template")?.is_some();
    if !has && talk.chat_template.is_none() {
        return Ok(None);
    }
    let of = Template::of(&gguf.meta, talk.chat_template.as_deref(), false);
    of.map(Some).context(if talk.chat_template.is_some() { Failure::Usage } else { Failure::Model })
}

fn turns(
    template: Template,
    talk: &args::Talk,
    mut further: Map<String, Value>,
    tokenizer: &Tokenizer,
) -> Result<Turns> {
    if talk.reasoning != Reasoning::Auto {
        let on = talk.reasoning == Reasoning::On;
        let known: Vec<&str> = SWITCHES.into_iter().filter(|s| is_switch(&template, s)).collect();
        if known.is_empty() {
            let flag = if on { "--reasoning on" } else { "--reasoning off" };
            off(flag, "the chat template has no switch for it")?;
        }
        for name in known {
            further.entry(name).or_insert(on.into());
        }
    }
    if talk.reasoning_budget >= 0 && !Reader::new(template.source(), "").may_reason() {
        off("--reasoning-budget", "the chat template has no form for thinking")?;
    }
    for name in further.keys().filter(|name| !template.source().contains(name.as_str())) {
        off(&format!("--chat-template-kwargs {name}"), "the chat template has no such variable")?;
    }
    Ok(Turns::new(template, tokenizer, further, Clock::now()))
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

/// The template's further variables.
fn further(talk: &args::Talk) -> Result<Map<String, Value>> {
    let Some(text) = &talk.chat_template_kwargs else { return Ok(Map::new()) };
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => match map.keys().find(|k| matches!(k.as_str(), "messages" | "add_generation_prompt"))
        {
            Some(own) => usage(format!("--chat-template-kwargs: {own} is not for you to set; other variables are")),
            None => Ok(map),
        },
        Ok(other) => usage(format!("--chat-template-kwargs {other}: a JSON object expected")),
        Err(e) => usage(format!("--chat-template-kwargs: not JSON: {e}")),
    }
}

impl args::Talk {
    /// Says of every option for templates that it is without effect.
    fn without_template(&self, why: &str) -> Result<()> {
        let given = [
            ("--reasoning", self.reasoning != Reasoning::Auto),
            ("--reasoning-budget", self.reasoning_budget >= 0),
            ("--chat-template-kwargs", self.chat_template_kwargs.is_some()),
            ("--chat-template", self.chat_template.is_some()),
            ("--chat-template-file", self.chat_template_file.is_some()),
        ];
        given.iter().filter(|(_, given)| *given).try_for_each(|(flag, _)| off(flag, why))
    }

    /// Parameters of every generation.
    pub(super) fn params(&self) -> GenParams {
        GenParams {
            limit: usize::try_from(self.n_predict).ok(),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            budget: usize::try_from(self.reasoning_budget).ok(),
            logprobs: None,
        }
    }

    /// The system message, if one is given.
    pub(super) fn system(&self) -> Result<Option<String>> {
        match &self.system_prompt_file {
            Some(path) => read_text(path).map(Some),
            None => Ok(self.system_prompt.clone()),
        }
    }
}

/// Shows on stderr how far a prompt has been read, and only where that is a terminal.
pub(super) struct Reading {
    bar: ProgressBar,
    /// How far the text is that is being read, and the tokens of those before it.
    at: Progress,
    earlier: usize,
}

impl Reading {
    pub(super) fn new() -> Reading {
        Reading { bar: ProgressBar::hidden(), at: Progress { total: 0, read: 0 }, earlier: 0 }
    }

    pub(super) fn progress(&mut self, p: Progress) {
        if p.read < self.at.read || self.at.total == 0 {
            self.earlier = self.finish(); // a prefix is read before the rest
            self.bar = bar(p.total);
        }
        self.at = p;
        self.bar.set_position(p.read as u64);
    }

    /// Takes the bar away; how many tokens were read.
    pub(super) fn finish(&self) -> usize {
        self.bar.finish_and_clear();
        self.earlier + self.at.read
    }
}

/// A bar for a prompt of `total` tokens.
fn bar(total: usize) -> ProgressBar {
    let bar = ProgressBar::new(total as u64);
    let form = "reading the prompt {bar:30} {pos}/{len} tokens, {rate} per second, {eta} left";
    let style = ProgressStyle::with_template(form).expect("a template that is right");
    let rate = |s: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{:.0}", s.per_sec());
    };
    bar.set_style(style.with_key("rate", rate));
    if !tracing::enabled!(tracing::Level::INFO) {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden()); // -q
    }
    bar
}

impl Drop for Reading {
    /// An error leaves no bar behind.
    fn drop(&mut self) {
        self.finish();
    }
}
