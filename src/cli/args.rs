//! The command line: clap structs and nothing else. Flags have llama.cpp's names wherever it has one.

mod model;
mod sampling;
mod talk;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::text::Clock;
pub use model::Model;
pub use sampling::Sampling;
pub use talk::{Batch, Chat, Reasoning, Run, Structured, Talk, WhenFull};

/// Runs mixture-of-experts language models from GGUF files on this machine.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 done (also when the reader of stdout went away), 1 failed, 2 wrong usage, \
                        3 bad model file, 4 context full, 5 out of memory, 6 dead end of a grammar, 130 interrupted (128 and the \
                        number of another signal that ended it).")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Say more on stderr (twice: everything)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Say nothing on stderr but warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// An option that cannot have its effect is an error instead of a notice
    #[arg(long, global = true)]
    pub strict: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one of it in a process
pub enum Verb {
    /// Talk with a model
    Chat(Chat),
    /// Answer or continue one prompt; stdout carries the model's text and nothing else
    Run(Run),
    /// Answer a line of JSON with a line of JSON, several at once
    Batch(Batch),
    /// Write the logits of a token list as raw little-endian f32 rows
    Logits(Logits),
    /// Perplexity and KL divergence over a text, as llama-perplexity computes them (-c is 512 unless given)
    Perplexity(Perplexity),
    /// What a model is, what it costs, where its parts go and how fast it will be, from the header alone
    Explain(Explain),
    /// What this machine can do, and what slows it down
    Doctor(Doctor),
    /// Text to token numbers, as llama-tokenize prints them
    Tokenize(Tokenize),
    /// A chat template's variables, as JSON on stdin, to the exact prompt
    Template(Template),
    /// Measure prompt and decode rates
    Bench(Bench),
    /// Hold what this machine computes, on the CPU and on the GPU, to the scalar kernels; exit status 1 if it is off
    Verify(Verify),
    /// A shell's completions for these verbs and flags
    Completions(Completions),
    /// A page of the manual
    Man(Man),
}

/// `tandem logits`.
#[derive(Debug, Args)]
pub struct Logits {
    /// The model.
    #[command(flatten)]
    pub model: Model,
    /// A JSON file (a list, or an object with prompt_ids), or numbers: 1,2,3
    #[arg(long, value_name = "FILE|LIST")]
    pub tokens: String,
    /// Which positions to write: all, or numbers (negative ones count from the end)
    #[arg(long, value_name = "LIST", default_value = "all", allow_hyphen_values = true)]
    pub positions: String,
    /// Where to write [n_positions, n_vocab] f32
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `tandem perplexity`.
#[derive(Debug, Args)]
pub struct Perplexity {
    /// The model.
    #[command(flatten)]
    pub model: Model,
    /// The text
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Read at most this many chunks; -1 is all
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub chunks: i64,
    /// Base logits: written, or read with --kl-divergence
    #[arg(long, value_name = "FILE", visible_alias = "save-all-logits")]
    pub kl_divergence_base: Option<PathBuf>,
    /// Compare with the base logits instead
    #[arg(long, requires = "kl_divergence_base")]
    pub kl_divergence: bool,
}

/// `tandem explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The GGUF file (any shard of a split one); without it, the built-in demo model
    #[arg(value_name = "MODEL")]
    pub path: Option<PathBuf>,
    /// The model, by llama.cpp's flag, and how it would be opened.
    #[command(flatten)]
    pub model: Model,
    /// Plan for a GPU with so much memory free instead of this machine's (16G)
    #[arg(long, value_name = "SIZE")]
    pub vram: Option<String>,
    /// Plan for so much memory instead of this machine's (128G)
    #[arg(long, value_name = "SIZE")]
    pub ram: Option<String>,
    /// Predict the speed with so many GB/s from memory instead of measuring this machine
    #[arg(long, value_name = "N")]
    pub ram_gbps: Option<f64>,
    /// Predict with so many GB/s from the GPU's memory [default: as measured, or 500 with --vram]
    #[arg(long, value_name = "N")]
    pub vram_gbps: Option<f64>,
    /// Predict with so many GB/s between memory and the GPU [default: as measured, or 22 with --vram]
    #[arg(long, value_name = "N")]
    pub bus_gbps: Option<f64>,
    /// Predict for so many tokens in the context
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub depth: usize,
    /// Every step of the tape, not only the sums
    #[arg(long)]
    pub steps: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// `tandem doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// `tandem tokenize`.
#[derive(Debug, Args)]
pub struct Tokenize {
    /// The GGUF file; without it, the built-in demo model
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// The text
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Read the text from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Read the text from stdin
    #[arg(long, conflicts_with_all = ["prompt", "file"])]
    pub stdin: bool,
    /// Print one JSON list of numbers
    #[arg(long)]
    pub ids: bool,
    /// Do not put the begin-of-text token first
    #[arg(long)]
    pub no_bos: bool,
    /// Read control tokens as plain text
    #[arg(long)]
    pub no_parse_special: bool,
    /// Print the number of tokens too
    #[arg(long)]
    pub show_count: bool,
}

/// `tandem template`.
#[derive(Debug, Args)]
pub struct Template {
    /// The GGUF file whose template and vocabulary count; without it, the built-in demo model
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Read the template from a file; no model is needed then
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "chat_template"])]
    pub chat_template_file: Option<PathBuf>,
    /// The template of this name, where a model has several
    #[arg(long, value_name = "NAME")]
    pub chat_template: Option<String>,
    /// The time that the template is told: YYYY-MM-DD, "YYYY-MM-DD HH:MM:SS", or seconds since 1970 [default: now]
    #[arg(long, value_name = "TIME")]
    pub now: Option<Clock>,
}

/// `tandem verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The model.
    #[command(flatten)]
    pub model: Model,
    /// Tokens to run it over: all but the last four in one batch
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub tokens: usize,
    /// Only the model, not the products of every format
    #[arg(long)]
    pub model_only: bool,
}

/// `tandem bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// The model.
    #[command(flatten)]
    pub model: Model,
    /// Prompt lengths to measure
    #[arg(short = 'p', long, value_name = "N,..", value_delimiter = ',', default_values_t = [512])]
    pub n_prompt: Vec<usize>,
    /// Numbers of tokens to generate
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', default_values_t = [128])]
    pub n_gen: Vec<usize>,
    /// Tokens already in the context
    #[arg(short = 'd', long, value_name = "N,..", value_delimiter = ',', default_values_t = [0])]
    pub n_depth: Vec<usize>,
    /// Runs of each
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,
    /// The form of the table
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    pub output: Output,
}

/// `tandem completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `tandem man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The verb; without it, the program's own page
    pub verb: Option<String>,
}

/// The form of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Markdown.
    Md,
    /// Comma-separated values.
    Csv,
    /// JSON.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_do_not_contradict_each_other_in_any_verb() {
        Cli::command().debug_assert();
    }
}
