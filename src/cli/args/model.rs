//! The flags of the verbs that open a model.

use std::path::PathBuf;

use clap::Args;

use super::HubArgs;
use super::overrides::OverrideArgs;

/// Which model, and how it is opened.
#[derive(Debug, Args, Clone)]
pub struct ModelArgs {
    /// GGUF file (any shard of a split model) [default: the built-in demo model]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// The model of a hub instead of a file.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Context size in tokens; 0 is the training context [default: the training context, up to
    /// 8192]
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<usize>,
    /// Threads for decoding; 0 is RAYON_NUM_THREADS, or one per physical performance core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Threads for prompts [default: same as --threads] [also: -tb]
    #[arg(long, value_name = "N")]
    pub threads_batch: Option<usize>,
    /// Largest batch of prompt tokens; without -ub it bounds the number that is chosen
    #[arg(short, long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Prompt tokens computed together; the smaller of -b and -ub counts [default: 1024 on the CPU;
    /// with a GPU 256 to 8192, as its memory allows] [also: -ub]
    #[arg(long, value_name = "N")]
    pub ubatch_size: Option<usize>,
    /// KV cache type of keys: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl [also: -ctk]
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_k: String,
    /// KV cache type of values: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl [also: -ctv]
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_v: String,
    /// Read the model into memory instead of mapping the file
    #[arg(long)]
    pub no_mmap: bool,
    /// Keep the file mapped even if a GPU can copy experts from memory only, and there is enough
    /// for them [also: --mmap]
    #[arg(long, conflicts_with = "no_mmap")]
    pub keep_mmap: bool,
    /// Lock the model in memory, so that it is not swapped out
    #[arg(long)]
    pub mlock: bool,
    /// Memory for weights: a size (48G, 900M), auto for what is free if the model does not fit, or off.
    /// Experts beyond it are read from the drive when they are needed; explain predicts for a machine
    /// with this much
    #[arg(long, value_name = "SIZE|auto|off", default_value = "auto")]
    pub ram: String,
    /// Do not begin with what earlier runs measured of the model, nor keep it for later ones: what drafts cost
    /// and how often they are right, and which experts are used most where these are read from the drive.
    /// run, chat and batch keep that in the cache folder, bench --spec from answer to answer
    #[arg(long, hide_short_help = true)]
    pub no_profile: bool,
    /// On machines of several NUMA nodes, read the weights so that each node's threads find their rows in
    /// its own memory: distribute does, auto where that pays and fits, off leaves the file mapped
    #[arg(long, value_name = "auto|distribute|off", default_value = "auto")]
    pub numa: String,
    /// Layers on the GPU, the output head counted as one; 0 uses the CPU only [default: what fits]
    /// [also: -ngl]
    #[arg(long, value_name = "N|all|auto")]
    pub gpu_layers: Option<String>,
    /// Place the tensors that match a regex: REGEX=CPU|GPU|GPU1|TWIN, separated by commas [also: -ot]
    #[arg(long, value_name = "RULES")]
    pub override_tensor: Vec<String>,
    /// The GPUs to use: CUDA0,CUDA1 or none [default: all that the kernels run on] [also: -dev]
    #[arg(long, value_name = "LIST|none", hide_short_help = true)]
    pub device: Option<String>,
    /// Spread layers over all GPUs (layer), or use one alone (none) [also: -sm]
    #[arg(long, value_name = "layer|none", default_value = "layer", hide_short_help = true)]
    pub split_mode: String,
    /// The GPU of --split-mode none [default: the one with the most memory] [also: -mg]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub main_gpu: Option<usize>,
    /// The share of the layers that each GPU has, like 3,1 [default: by free memory] [also: -ts]
    #[arg(long, value_name = "SHARES", hide_short_help = true)]
    pub tensor_split: Option<String>,
    /// Keep all experts on the CPU, except those in the expert cache [also: -cmoe]
    #[arg(long)]
    pub cpu_moe: bool,
    /// Keep the experts of the first N layers on the CPU, except those in the expert cache [also:
    /// -ncmoe]
    #[arg(long, value_name = "N", conflicts_with = "cpu_moe")]
    pub n_cpu_moe: Option<usize>,
    /// GPU memory that caches the most used experts: a size (6G, 800M), off, or auto for what is
    /// left
    #[arg(long, value_name = "SIZE|off|auto", default_value = "auto")]
    pub expert_cache: String,
    /// Go on with the CPU if the GPU is lost, instead of ending with exit status 9: it reads again
    /// what the GPU had read
    #[arg(long)]
    pub gpu_fallback: bool,
    /// Bit-identical output for identical input (ignores timing measurements)
    #[arg(long)]
    pub deterministic: bool,
    /// Load nothing; print the equivalent command with context, threads, batch sizes, placement and
    /// sampling written out
    #[arg(long)]
    pub dry_run: bool,
    /// Print at the end the measured and the predicted speed, how long CPU and GPU waited for each
    /// other, and the hits of the expert cache
    #[arg(long)]
    pub stats: bool,
    /// What holds instead of the model file's metadata.
    #[command(flatten)]
    pub overrides: OverrideArgs,
}
