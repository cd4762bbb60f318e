//! The flags that say something else than the model's file, or than the system.

use clap::Args;

/// What holds instead of the model file's metadata, and where threads run.
#[derive(Args, Clone, Debug, Default)]
pub struct OverrideArgs {
    /// Use this metadata instead of the model file's: KEY=TYPE:VALUE with the type int, float, bool
    /// or str, separated by commas; may be given several times [also: -okv]
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    pub override_kv: Vec<String>,
    /// RoPE: base frequency; 0 is the model's
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub rope_freq_base: Option<f32>,
    /// RoPE: multiply frequencies by N, which extends the context 1/N times; 0 is the model's
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "rope_scale")]
    pub rope_freq_scale: Option<f32>,
    /// RoPE: extend the context N times; 0 is the model's
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub rope_scale: Option<f32>,
    /// RoPE: how frequencies are scaled
    #[arg(long, value_name = "none|linear|yarn", value_parser = ["none", "linear", "yarn"])]
    pub rope_scaling: Option<String>,
    /// YaRN: context size of the original training; 0 is the model's
    #[arg(long, value_name = "N")]
    pub yarn_orig_ctx: Option<u32>,
    /// YaRN: multiply queries and keys by N; -1 is the model's
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub yarn_attn_factor: Option<f32>,
    /// YaRN: rotations over the original context from which a frequency stays as it is; -1 is the
    /// model's
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub yarn_beta_fast: Option<f32>,
    /// YaRN: rotations up to which a frequency is scaled in full; -1 is the model's
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub yarn_beta_slow: Option<f32>,
    /// Run on the CPUs of this bit mask in hexadecimal: f0 is CPUs 4 to 7 [also: -C]
    #[arg(long, value_name = "MASK")]
    pub cpu_mask: Option<String>,
    /// Run on the CPUs of this range, and those of --cpu-mask: 0-7 [also: -Cr]
    #[arg(long, value_name = "FROM-TO")]
    pub cpu_range: Option<String>,
}
