//! The flags that say how tokens are chosen.

use clap::Args;

/// How tokens are chosen. Numbers are checked where they are used (`cli::settings`), by the ranges
/// that hold for all sources of them.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling (the model file may set other defaults)")]
pub struct SamplingArgs {
    /// Random seed: the same seed gives the same text; -1 is a new one [default: new each time,
    /// printed on stderr]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i64).range(-1..), allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Samplers in order, separated by semicolons [default:
    /// penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature]
    #[arg(long, value_name = "NAMES")]
    pub samplers: Option<String>,
    /// Samplers in order, by letters [default: edskypmxt]
    #[arg(long, value_name = "LETTERS", visible_alias = "sampling-seq", conflicts_with = "samplers")]
    pub sampler_seq: Option<String>,
    /// Temperature; 0 always takes the most likely token [default: 0.8]
    #[arg(long, value_name = "T", allow_negative_numbers = true, visible_alias = "temperature")]
    pub temp: Option<f64>,
    /// Dynamic temperature: how far it moves up or down with the entropy [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dynatemp_range: Option<f64>,
    /// Dynamic temperature: exponent of the normalized entropy [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, alias = "dynatemp-exponent")]
    pub dynatemp_exp: Option<f64>,
    /// Keep the K most likely tokens; 0 keeps all [default: 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<f64>,
    /// Keep the most likely tokens whose probabilities add up to P; 1 keeps all [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Keep tokens at least P times as probable as the most likely one; 0 keeps all [default: 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f64>,
    /// Locally typical sampling with threshold P [default: 1, off]
    #[arg(long, value_name = "P", allow_negative_numbers = true, visible_alias = "typical-p")]
    pub typical: Option<f64>,
    /// Keep tokens whose logits are within N standard deviations of the largest [default: -1, off]
    #[arg(long, value_name = "N", allow_negative_numbers = true, visible_alias = "top-n-sigma")]
    pub top_nsigma: Option<f64>,
    /// XTC: probability of removing all likely tokens except the least likely of them [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub xtc_probability: Option<f64>,
    /// XTC: probability from which a token counts as likely; above 0.5 none does [default: 0.1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub xtc_threshold: Option<f64>,
    /// Number of recent tokens that penalties apply to; -1 is all, 0 none [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<f64>,
    /// Divide the logits of recent tokens by N (multiply negative ones) [default: 1, off]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f64>,
    /// Subtract N from the logits of recent tokens [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub presence_penalty: Option<f64>,
    /// Subtract N from the logit of a recent token for each occurrence [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f64>,
    /// DRY: a token that extends a repetition loses N x base ^ (its length - allowed length)
    /// [default: 0, off]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_multiplier: Option<f64>,
    /// DRY: the base [default: 1.75]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_base: Option<f64>,
    /// DRY: repetitions of fewer tokens cost nothing [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_allowed_length: Option<f64>,
    /// DRY: number of recent tokens searched for repetitions; -1 is all, 0 none [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_penalty_last_n: Option<f64>,
    /// DRY: a text that no repetition reaches across, instead of a line break, : " and *; may be
    /// given several times; none removes all before it
    #[arg(long, value_name = "TEXT|none")]
    pub dry_sequence_breaker: Vec<String>,
    /// Use mirostat 1 or 2, which keeps the surprise of the text at a target [default: 0, off]
    #[arg(long, value_name = "0|1|2", allow_negative_numbers = true)]
    pub mirostat: Option<f64>,
    /// Mirostat: target entropy tau, in bits [default: 5]
    #[arg(long, value_name = "N", allow_negative_numbers = true, alias = "mirostat-tau")]
    pub mirostat_ent: Option<f64>,
    /// Mirostat: learning rate eta [default: 0.1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, alias = "mirostat-eta")]
    pub mirostat_lr: Option<f64>,
    /// Adaptive-p: prefer tokens near this probability, if --samplers names adaptive_p [default:
    /// -1, off]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub adaptive_target: Option<f64>,
    /// Adaptive-p: decay of its average over recent tokens, 0 to 0.99 [default: 0.9]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub adaptive_decay: Option<f64>,
    /// Add to the logit of a token: 15043+1, 15043-0.5, 15043-inf; may be given several times
    #[arg(short, long, value_name = "TOKEN(+/-)BIAS")]
    pub logit_bias: Vec<String>,
}

impl SamplingArgs {
    /// The numbers that were given, by their flags' names.
    pub fn numbers(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = [
            ("temp", self.temp),
            ("dynatemp-range", self.dynatemp_range),
            ("dynatemp-exp", self.dynatemp_exp),
            ("top-k", self.top_k),
            ("top-p", self.top_p),
            ("min-p", self.min_p),
            ("typical", self.typical),
            ("top-nsigma", self.top_nsigma),
            ("xtc-probability", self.xtc_probability),
            ("xtc-threshold", self.xtc_threshold),
            ("repeat-last-n", self.repeat_last_n),
            ("repeat-penalty", self.repeat_penalty),
            ("presence-penalty", self.presence_penalty),
            ("frequency-penalty", self.frequency_penalty),
            ("dry-multiplier", self.dry_multiplier),
            ("dry-base", self.dry_base),
            ("dry-allowed-length", self.dry_allowed_length),
            ("dry-penalty-last-n", self.dry_penalty_last_n),
            ("mirostat", self.mirostat),
            ("mirostat-ent", self.mirostat_ent),
            ("mirostat-lr", self.mirostat_lr),
            ("adaptive-target", self.adaptive_target),
            ("adaptive-decay", self.adaptive_decay),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }
}
