//! The flags of the verbs that write text.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::model::Model;
use super::sampling::Sampling;

/// How a conversation is put to the model, and what ends its answer.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Conversation")]
pub struct Talk {
    /// What the model is told before all else [also: -sys]
    #[arg(long, value_name = "TEXT")]
    pub system_prompt: Option<String>,
    /// The same from a file [also: -sysf]
    #[arg(long, value_name = "FILE", conflicts_with = "system_prompt")]
    pub system_prompt_file: Option<PathBuf>,
    /// Which of the model's chat templates to use, where it has several
    #[arg(long, value_name = "NAME")]
    pub chat_template: Option<String>,
    /// A chat template (Jinja) instead of the model's
    #[arg(long, value_name = "FILE", conflicts_with = "chat_template")]
    pub chat_template_file: Option<PathBuf>,
    /// Further variables for the template, as a JSON object
    #[arg(long, value_name = "JSON")]
    pub chat_template_kwargs: Option<String>,
    /// Whether the model thinks before it answers, where its template has a switch [also: -rea]
    #[arg(long, value_enum, default_value_t = Reasoning::Auto)]
    pub reasoning: Reasoning,
    /// End the thinking after so many tokens; -1 is never
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub reasoning_budget: i64,
    /// A text that ends the answer; may be given several times
    #[arg(short = 'r', long, value_name = "TEXT", alias = "reverse-prompt")]
    pub stop: Vec<String>,
    /// Tokens to generate; -1 is until the model ends or the context is full
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, alias = "predict", value_parser = clap::value_parser!(i64).range(-1..))]
    pub n_predict: i64,
    /// Go on where the model would end
    #[arg(long)]
    pub ignore_eos: bool,
}

/// Whether a model thinks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reasoning {
    /// It does.
    On,
    /// It does not.
    Off,
    /// As its template has it.
    Auto,
}

/// The form that a text is to have.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Form of the text")]
#[group(multiple = false, conflicts_with = "ignore_eos")]
pub struct Structured {
    /// Write a JSON document that this schema accepts: a file, or the schema itself ({...}) [also: -jf]
    #[arg(short, long, value_name = "FILE|SCHEMA", alias = "json-schema-file")]
    pub json_schema: Option<String>,
    /// Write what this grammar derives, in llama.cpp's notation (GBNF) or llguidance's (Lark): a file, or the rules
    /// themselves
    #[arg(long, value_name = "FILE|RULES", alias = "grammar-file")]
    pub grammar: Option<String>,
    /// Write what this regular expression matches from beginning to end
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub regex: Option<String>,
}

/// `tandem run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The model.
    #[command(flatten)]
    pub model: Model,
    /// The prompt; what comes on stdin is put behind it
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Do not read stdin
    #[arg(long)]
    pub no_stdin: bool,
    /// The prompt is a message, which the chat template is put around [default: if the model has a template]
    #[arg(long, conflicts_with = "raw")]
    pub chat: bool,
    /// The prompt is a text to continue as it is
    #[arg(long)]
    pub raw: bool,
    /// One JSON object: text, reasoning, what ended it, counts, times, seed
    #[arg(long)]
    pub json: bool,
    /// With --json: the log-probability of every token, and of the N likeliest at its place
    #[arg(long, value_name = "N", requires = "json")]
    pub logprobs: Option<usize>,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Go on with what this file holds, if it is there, and keep all of it there afterwards
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
    /// A text to begin the prompt with (the system message, where there is a template), read once and kept for later runs
    #[arg(long, value_name = "FILE", conflicts_with_all = ["session", "system_prompt", "system_prompt_file"])]
    pub prefix_file: Option<PathBuf>,
    /// How the prompt is put.
    #[command(flatten)]
    pub talk: Talk,
    /// The form that the text is to have.
    #[command(flatten)]
    pub structured: Structured,
    /// How to choose tokens.
    #[command(flatten)]
    pub sampling: Sampling,
}

/// `tandem chat`.
#[derive(Debug, Args)]
pub struct Chat {
    /// The model.
    #[command(flatten)]
    pub model: Model,
    /// Go on with the conversation in this file, if it is there, and keep it there
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
    /// What to do when the context is full
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = WhenFull::Ask)]
    pub when_full: WhenFull,
    /// Do not show what the model thinks
    #[arg(long)]
    pub hide_reasoning: bool,
    /// How the conversation is put.
    #[command(flatten)]
    pub talk: Talk,
    /// How to choose tokens.
    #[command(flatten)]
    pub sampling: Sampling,
}

/// What to do when the context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// Ask.
    Ask,
    /// Drop the oldest turns, whole.
    Drop,
    /// Nothing more is answered.
    Stop,
}

impl WhenFull {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            WhenFull::Ask => "you are asked whether the oldest turns may go",
            WhenFull::Drop => "the oldest turns go, whole",
            WhenFull::Stop => "nothing more is answered",
        }
    }
}

/// `tandem batch`.
#[derive(Debug, Args)]
pub struct Batch {
    /// The model.
    #[command(flatten)]
    pub model: Model,
    /// The file of requests, one JSON object per line; - or none is stdin
    #[arg(value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Requests that are answered at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub parallel: usize,
    /// Answer in the order in which requests are done
    #[arg(long)]
    pub unordered: bool,
    /// Prompts are texts to continue as they are, also where the model has a chat template
    #[arg(long)]
    pub raw: bool,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How prompts are put, where a request does not say.
    #[command(flatten)]
    pub talk: Talk,
    /// The form of answers, where a request does not say.
    #[command(flatten)]
    pub structured: Structured,
    /// How to choose tokens, where a request does not say.
    #[command(flatten)]
    pub sampling: Sampling,
}
