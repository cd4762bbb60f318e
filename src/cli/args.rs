//! The command line: clap structs and nothing else. Flags have llama.cpp's names wherever it has one.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::text::Clock;

/// Runs mixture-of-experts language models from GGUF files on this machine.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 done (also when the reader of stdout went away), 1 failed, 2 wrong usage, \
                        3 bad model file, 4 context full, 130 interrupted.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Say more on stderr (twice: everything)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// An option that cannot have its effect is an error instead of a notice
    #[arg(long, global = true)]
    pub strict: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Continue a prompt; stdout carries the model's text and nothing else
    Run(Run),
    /// Write the logits of a token list as raw little-endian f32 rows
    Logits(Logits),
    /// Perplexity and KL divergence over a text, as llama-perplexity computes them (-c is 512 unless given)
    Perplexity(Perplexity),
    /// What a model is, what it costs and where its parts go, from the header alone
    Explain(Explain),
    /// Text to token numbers, as llama-tokenize prints them
    Tokenize(Tokenize),
    /// A chat template's variables, as JSON on stdin, to the exact prompt
    Template(Template),
    /// Measure prompt and decode rates
    Bench(Bench),
    /// Hold what this machine computes, on the CPU and on the GPU, to the scalar kernels; exit status 1 if it is off
    Verify(Verify),
}

/// Which model, and how it is opened.
#[derive(Debug, Args, Clone)]
pub struct Model {
    /// The GGUF file (any shard of a split one); without it, the built-in demo model
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Tokens of context; 0 is the model's own [default: the model's own, up to 8192]
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<usize>,
    /// Threads when generating; 0 is one per physical core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Threads when reading a prompt [default: as --threads] [also: -tb]
    #[arg(long, value_name = "N")]
    pub threads_batch: Option<usize>,
    /// Tokens read as one batch, at most
    #[arg(short, long, value_name = "N", default_value_t = 2048)]
    pub batch_size: usize,
    /// Tokens computed together, at most; the smaller of the two counts [also: -ub]
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub ubatch_size: usize,
    /// Format of cached keys: f32, f16 or q8_0 [also: -ctk]
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_k: String,
    /// Format of cached values: f32, f16 or q8_0 [also: -ctv]
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_v: String,
    /// Read the file into memory instead of mapping it
    #[arg(long)]
    pub no_mmap: bool,
    /// Keep the model from being swapped out
    #[arg(long)]
    pub mlock: bool,
    /// Layers on the GPU, the output head counted as one; 0 is the CPU alone [default: what fits] [also: -ngl]
    #[arg(long, value_name = "N|all|auto")]
    pub gpu_layers: Option<String>,
    /// Put the tensors that match a regex at a place: REGEX=CPU|GPU|TWIN, separated by commas [also: -ot]
    #[arg(long, value_name = "RULES")]
    pub override_tensor: Vec<String>,
    /// Keep all experts on the CPU, but for those in the cache [also: -cmoe]
    #[arg(long)]
    pub cpu_moe: bool,
    /// Keep the experts of the first N layers on the CPU, but for those in the cache [also: -ncmoe]
    #[arg(long, value_name = "N", conflicts_with = "cpu_moe")]
    pub n_cpu_moe: Option<usize>,
    /// GPU memory for the experts that are chosen most: a size (6G, 800M), off, or auto for what is left
    #[arg(long, value_name = "SIZE|off|auto", default_value = "auto")]
    pub expert_cache: String,
    /// Let measured times decide nothing: the same input gives the same bits again
    #[arg(long)]
    pub deterministic: bool,
    /// Say at the end what the GPU and the CPU waited for each other, and what the cached experts did
    #[arg(long)]
    pub stats: bool,
}

/// `tandem run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The model.
    #[command(flatten)]
    pub model: Model,
    /// The prompt; piped stdin is appended to it
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Tokens to generate; -1 is until the model ends or the context is full
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub n_predict: i64,
    /// How to choose tokens.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Go on where the model would end
    #[arg(long)]
    pub ignore_eos: bool,
}

/// How tokens are chosen.
#[derive(Debug, Args, Clone)]
pub struct Sampling {
    /// 0 takes the likeliest token; higher is more daring
    #[arg(long, value_name = "T", allow_negative_numbers = true, default_value_t = 0.8, visible_alias = "temperature")]
    pub temp: f32,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: usize,
    /// Keep the likeliest tokens that together reach P
    #[arg(long, value_name = "P", allow_negative_numbers = true, default_value_t = 0.95)]
    pub top_p: f32,
    /// Keep the tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true, default_value_t = 0.05)]
    pub min_p: f32,
    /// The same seed gives the same text [default: a new one each time, said on stderr]
    #[arg(short, long, value_name = "N")]
    pub seed: Option<u64>,
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
    /// Every step of the tape, not only the sums
    #[arg(long)]
    pub steps: bool,
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

/// llama.cpp's short flags of several letters, which clap cannot have.
const SHORT: &[(&str, &str)] = &[
    ("-ngl", "--gpu-layers"),
    ("--n-gpu-layers", "--gpu-layers"),
    ("-ot", "--override-tensor"),
    ("-cmoe", "--cpu-moe"),
    ("-ncmoe", "--n-cpu-moe"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-tb", "--threads-batch"),
    ("-ub", "--ubatch-size"),
];

/// The process's arguments with llama.cpp's short forms written out, `-ngl 99` and `-ngl=99` alike. What follows `--`
/// is left alone.
pub fn arguments(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut plain = false;
    args.map(|arg| {
        plain |= arg == "--";
        let Some(text) = arg.to_str().filter(|_| !plain) else { return arg };
        let (flag, value) = text.split_once('=').map_or((text, None), |(f, v)| (f, Some(v)));
        match (SHORT.iter().find(|(s, _)| *s == flag), value) {
            (Some((_, long)), Some(v)) => format!("{long}={v}").into(),
            (Some((_, long)), None) => (*long).into(),
            (None, _) => arg,
        }
    })
    .collect()
}
