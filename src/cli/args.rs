//! The command line: clap structs and nothing else. Flags have llama.cpp's names wherever it has
//! one.

mod hub;
mod model;
mod overrides;
mod sampling;
mod speculation;
mod talk;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::text::Clock;
pub use hub::{FetchArgs, HubArgs, ListArgs};
pub use model::ModelArgs;
pub use overrides::OverrideArgs;
pub use sampling::SamplingArgs;
pub use speculation::{Spec, SpeculationArgs};
pub use talk::{BatchArgs, ChatArgs, Reasoning, RunArgs, StructuredArgs, TalkArgs, WhenFull};

/// Runs mixture-of-experts language models from GGUF files on this machine.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, propagate_version = true, max_term_width = 100, subcommand_required = true)]
#[command(after_help = super::errors::statuses())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Print more on stderr (-vv: everything)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Print only warnings and errors on stderr
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Fail if an option has no effect or metadata is unknown, instead of printing a notice
    #[arg(long, global = true)]
    pub strict: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one of it in a process
pub enum Verb {
    /// Chat with a model in the terminal
    Chat(ChatArgs),
    /// Answer or continue one prompt; only the model's text goes to stdout
    Run(RunArgs),
    /// Answer requests from JSON lines with JSON lines, several at a time
    Batch(BatchArgs),
    /// Convert a published checkpoint (safetensors) to a GGUF file
    Convert(ConvertArgs),
    /// Write the logits of a token list as raw little-endian f32 rows
    Logits(LogitsArgs),
    /// Perplexity and KL divergence over a text, as llama-perplexity computes them (-c defaults to
    /// 512)
    Perplexity(PerplexityArgs),
    /// Show a model's size, memory use, placement and expected speed, from the header alone
    Explain(ExplainArgs),
    /// Show what this machine can do, and what slows it down
    Doctor(DoctorArgs),
    /// Fetch a model from the hub into the cache, without opening it
    Fetch(FetchArgs),
    /// List the models in the cache
    List(ListArgs),
    /// Convert text to token IDs, as llama-tokenize prints them
    Tokenize(TokenizeArgs),
    /// Render a chat template: variables as JSON on stdin, the exact prompt on stdout
    Template(TemplateArgs),
    /// Measure prompt and decode rates
    Bench(BenchArgs),
    /// Compare what this machine computes, on the CPU and on the GPU, with the scalar kernels; exit
    /// status 1 on a mismatch
    Verify(VerifyArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print a manual page
    Man(ManArgs),
}

/// `tandem convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Folder with config.json, model.safetensors (or an index of several) and tokenizer.json
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// GGUF file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Type of the matrices: f32, f16, bf16 or q8_0; routers, norms and vectors are always f32
    /// [default: the type of the checkpoint]
    #[arg(long = "type", value_name = "TYPE")]
    pub ty: Option<String>,
    /// Replace FILE if it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Write nothing; print the equivalent command with the type written out
    #[arg(long)]
    pub dry_run: bool,
}

/// `tandem logits`.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Token IDs: 1,2,3, or a JSON file with a list or an object that has prompt_ids
    #[arg(long, value_name = "FILE|LIST")]
    pub tokens: String,
    /// Positions to write: all, or numbers (negative ones count from the end)
    #[arg(long, value_name = "LIST", default_value = "all", allow_hyphen_values = true)]
    pub positions: String,
    /// TableFormat file: f32, shape [n_positions, n_vocab]
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `tandem perplexity`.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text file to read
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Read at most N chunks; -1 reads all
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub chunks: i64,
    /// File of base logits: written, or read with --kl-divergence
    #[arg(long, value_name = "FILE", visible_alias = "save-all-logits")]
    pub kl_divergence_base: Option<PathBuf>,
    /// Compare with the base logits: KL divergence instead of perplexity
    #[arg(long, requires = "kl_divergence_base")]
    pub kl_divergence: bool,
}

/// `tandem explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// GGUF file (any shard of a split model) [default: the built-in demo model]
    #[arg(value_name = "MODEL")]
    pub path: Option<PathBuf>,
    /// The model, by llama.cpp's flag, and how it would be opened.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Plan for a GPU with this much free memory (16G or 16GiB; 16GB is 16e9 bytes; 24G,12G is two
    /// GPUs) instead of this machine's; the report has sizes in the same unit
    #[arg(long, value_name = "SIZE")]
    pub vram: Option<String>,
    /// Predict the speed for a memory bandwidth of N GB/s instead of measuring it
    #[arg(long, value_name = "N")]
    pub ram_gbps: Option<f64>,
    /// Predict for a GPU memory bandwidth of N GB/s [default: measured, or with --vram that of a
    /// usual card of this size]
    #[arg(long, value_name = "N")]
    pub vram_gbps: Option<f64>,
    /// Predict for N GB/s between memory and the GPU [default: measured, or with --vram that of a
    /// usual card of this size]
    #[arg(long, value_name = "N")]
    pub bus_gbps: Option<f64>,
    /// Predict for a drive that reads N GB/s, where experts have no room in memory [default: measured on
    /// the file, or 3 where it cannot be]
    #[arg(long, value_name = "N")]
    pub drive_gbps: Option<f64>,
    /// Predict for N tokens in the context
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub depth: usize,
    /// List every step of the tape, not only the sums
    #[arg(long)]
    pub steps: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `tandem doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Measure the drive that this file is on [default: the largest model in the cache]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `tandem tokenize`.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// GGUF file [default: the built-in demo model]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// The model of a hub.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Text to tokenize
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Take -p as it is typed; otherwise \n, \t, \\, \", \' and \xHH are escapes
    #[arg(long)]
    pub no_escape: bool,
    /// Read the text from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Read the text from stdin
    #[arg(long, conflicts_with_all = ["prompt", "file"])]
    pub stdin: bool,
    /// Print the token IDs as one JSON list
    #[arg(long)]
    pub ids: bool,
    /// Do not add the begin-of-text token
    #[arg(long)]
    pub no_bos: bool,
    /// Treat control tokens as plain text
    #[arg(long)]
    pub no_parse_special: bool,
    /// Print the number of tokens too
    #[arg(long)]
    pub show_count: bool,
}

/// `tandem template`.
#[derive(Debug, Args)]
pub struct TemplateArgs {
    /// GGUF file whose template and vocabulary are used [default: the built-in demo model]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// The model of a hub.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Read the template from a file; no model is needed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "chat_template"])]
    pub chat_template_file: Option<PathBuf>,
    /// Template to use: the name of one of the model's, one of llama.cpp's names (chatml, llama3,
    /// ...), or Jinja
    #[arg(long, value_name = "NAME|JINJA")]
    pub chat_template: Option<String>,
    /// The current time for the template: YYYY-MM-DD, "YYYY-MM-DD HH:MM:SS", or seconds since 1970
    /// [default: now]
    #[arg(long, value_name = "TIME")]
    pub now: Option<Clock>,
}

/// `tandem verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Number of tokens to run, all but the last four in one batch
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub tokens: usize,
    /// Check only the model, not the matrix products of every format
    #[arg(long)]
    pub model_only: bool,
}

/// `tandem bench`.
#[derive(Debug, Args)]
#[command(mut_arg("spec", |a| a.default_value("off").help(SPEC_OF_BENCH)))]
pub struct BenchArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prompt lengths
    #[arg(short = 'p', long, value_name = "N,..", value_delimiter = ',', default_values_t = [512])]
    pub n_prompt: Vec<usize>,
    /// Numbers of tokens to generate
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', default_values_t = [128])]
    pub n_gen: Vec<usize>,
    /// Tokens already in the context
    #[arg(short = 'd', long, value_name = "N,..", value_delimiter = ',', default_values_t = [0])]
    pub n_depth: Vec<usize>,
    /// Repetitions of each test
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,
    /// Format of the table
    #[arg(short, long, value_enum, default_value_t = TableFormat::Md)]
    pub output: TableFormat,
    /// Drafts, and how many.
    #[command(flatten)]
    pub speculation: SpeculationArgs,
}

/// What `--spec` does in `bench`.
const SPEC_OF_BENCH: &str = "Measure greedy decoding with drafts from WHAT and without, in turn: -n tokens after the first \
    -p of a text, and what a step costs by its rows. Instead of the other tests";

/// `tandem completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `tandem man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The verb; without it, the page of the program
    pub verb: Option<String>,
}

/// Format of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
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
