//! The flags of the verbs that open a model.

use std::path::PathBuf;

use clap::Args;

/// Which model, and how it is opened.
#[derive(Debug, Args, Clone)]
pub struct Model {
    /// The GGUF file (any shard of a split one); without it, the built-in demo model
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Tokens of context; 0 is the model's own [default: the model's own, up to 8192]
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<usize>,
    /// Threads when generating; 0 is one per performance core, hyperthreads not counted
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
    /// Load nothing; print one command that asks for the same, in which context, threads, batches, placement and sampling
    /// are written out as they would be
    #[arg(long)]
    pub dry_run: bool,
    /// Say at the end how fast tokens were made and should have been, what the GPU and the CPU waited for each other, and
    /// what the cached experts did
    #[arg(long)]
    pub stats: bool,
}
