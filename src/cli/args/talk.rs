//! The flags of the verbs that write text.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::model::ModelArgs;
use super::sampling::SamplingArgs;
use super::speculation::SpeculationArgs;

/// How a conversation is put to the model, and what ends its answer.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Conversation")]
pub struct TalkArgs {
    /// System message [also: -sys]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// Read the system message from a file [also: -sysf]
    #[arg(long, value_name = "FILE", conflicts_with = "system_prompt")]
    pub system_prompt_file: Option<PathBuf>,
    /// Chat template to use: the name of one of the model's, one of llama.cpp's names (chatml,
    /// llama3, ...), or Jinja
    #[arg(long, value_name = "NAME|JINJA")]
    pub chat_template: Option<String>,
    /// Chat template (Jinja) to use instead of the model's
    #[arg(long, value_name = "FILE", conflicts_with = "chat_template")]
    pub chat_template_file: Option<PathBuf>,
    /// Additional variables for the template, as a JSON object
    #[arg(long, value_name = "JSON")]
    pub chat_template_kwargs: Option<String>,
    /// Turn reasoning on or off, if the template has a switch [also: -rea]
    #[arg(long, value_enum, default_value_t = Reasoning::Auto)]
    pub reasoning: Reasoning,
    /// End the reasoning after N tokens; -1 is no limit
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub reasoning_budget: i64,
    /// The texts between which the model reasons, if neither its template nor its vocabulary names them
    #[arg(long, num_args = 2, value_names = ["OPEN", "CLOSE"], allow_hyphen_values = true)]
    pub reasoning_tags: Option<Vec<String>>,
    /// Stop at this text; may be given several times
    #[arg(short = 'r', long, value_name = "TEXT", alias = "reverse-prompt", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Take -p and --stop as they are typed; otherwise \n, \t, \\, \", \' and \xHH are escapes
    #[arg(long)]
    pub no_escape: bool,
    /// Tokens to generate; -1 is no limit: until the model ends or the context is full
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, alias = "predict", value_parser = clap::value_parser!(i64).range(-1..))]
    pub n_predict: i64,
    /// Ignore the model's end token and go on
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
#[command(next_help_heading = "Structured output")]
#[group(multiple = false, conflicts_with = "ignore_eos")]
pub struct StructuredArgs {
    /// Generate a JSON document that satisfies this schema: a file, or the schema itself ({...})
    /// [also: -jf]
    #[arg(short, long, value_name = "FILE|SCHEMA", alias = "json-schema-file")]
    pub json_schema: Option<String>,
    /// Generate text that this grammar allows, in GBNF (llama.cpp) or Lark (llguidance): a file, or
    /// the rules themselves
    #[arg(long, value_name = "FILE|RULES", alias = "grammar-file")]
    pub grammar: Option<String>,
    /// Generate text that this regular expression matches as a whole
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub regex: Option<String>,
}

/// `tandem run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt, as -p has it
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "file"])]
    pub question: Option<String>,
    /// The prompt; text from stdin is appended to it
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Do not read stdin (for scripts that leave it open)
    #[arg(long)]
    pub no_stdin: bool,
    /// The prompt is a user message for the chat template [default: if the model has a template]
    #[arg(long, conflicts_with = "raw")]
    pub chat: bool,
    /// The prompt is plain text to continue, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Write this before the prompt and continue plain text, as --raw does
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "chat")]
    pub in_prefix: Option<String>,
    /// Write this after the prompt and continue plain text, as --raw does
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "chat")]
    pub in_suffix: Option<String>,
    /// Print one JSON object: text, reasoning, finish reason, token counts, times, seed
    #[arg(long)]
    pub json: bool,
    /// With --json: the log-probability of every token, and of the N most likely ones at its
    /// position
    #[arg(long, value_name = "N", requires = "json")]
    pub logprobs: Option<usize>,
    /// Tools that the model may call: a JSON list as OpenAI's API has it, or a file with one. Calls
    /// are printed as JSON, one per line, after the answer
    #[arg(long, value_name = "FILE|JSON", conflicts_with = "raw")]
    pub tools: Option<String>,
    /// Whether a tool is called: auto, required, none, or the name of the one to call [default:
    /// auto]
    #[arg(long, value_name = "CHOICE", requires = "tools")]
    pub tool_choice: Option<String>,
    /// Allow one tool call per answer
    #[arg(long, requires = "tools")]
    pub no_parallel_tool_calls: bool,
    /// Begin the answer with this text, which the model continues; only what it adds is printed
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    pub prefill: Option<String>,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Continue the session in this file, if it exists, and save it there afterwards
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
    /// File with the beginning of the prompt (the system message, if there is a template), computed
    /// once and cached for later runs
    #[arg(long, value_name = "FILE", conflicts_with_all = ["session", "system_prompt", "system_prompt_file"])]
    pub prefix_file: Option<PathBuf>,
    /// How the prompt is put.
    #[command(flatten)]
    pub talk: TalkArgs,
    /// The form that the text is to have.
    #[command(flatten)]
    pub structured: StructuredArgs,
    /// How to choose tokens.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What drafts tokens.
    #[command(flatten)]
    pub speculation: SpeculationArgs,
}

impl RunArgs {
    /// Whether the prompt is plain text to continue, whatever template there is.
    pub fn is_raw(&self) -> bool {
        self.raw || self.in_prefix.is_some() || self.in_suffix.is_some()
    }
}

/// `tandem chat`.
#[derive(Debug, Args, Clone)]
pub struct ChatArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Continue the conversation in this file, if it exists, and save it there
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
    /// What to do when the context is full
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = WhenFull::Ask)]
    pub when_full: WhenFull,
    /// Do not show the model's reasoning
    #[arg(long)]
    pub hide_reasoning: bool,
    /// How the conversation is put.
    #[command(flatten)]
    pub talk: TalkArgs,
    /// How to choose tokens.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What drafts tokens.
    #[command(flatten)]
    pub speculation: SpeculationArgs,
}

/// What to do when the context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// Ask whether to drop the oldest turns.
    Ask,
    /// Drop the oldest turns.
    Drop,
    /// Answer no further message.
    Stop,
}

impl WhenFull {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            WhenFull::Ask => "you are asked whether to drop the oldest turns",
            WhenFull::Drop => "the oldest turns are dropped",
            WhenFull::Stop => "no further message is answered",
        }
    }
}

/// `tandem batch`.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// File of requests, one JSON object per line; - or no file reads stdin
    #[arg(value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Requests that are answered at the same time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub parallel: usize,
    /// Write answers in the order in which they are done
    #[arg(long)]
    pub unordered: bool,
    /// Prompts are plain text to continue, even if the model has a chat template
    #[arg(long)]
    pub raw: bool,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How prompts are put, where a request does not say.
    #[command(flatten)]
    pub talk: TalkArgs,
    /// The form of answers, where a request does not say.
    #[command(flatten)]
    pub structured: StructuredArgs,
    /// How to choose tokens, where a request does not say.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What drafts tokens.
    #[command(flatten)]
    pub speculation: SpeculationArgs,
}
