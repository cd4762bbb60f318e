//! The flags that say how tokens are chosen.

use clap::Args;

/// How tokens are chosen. Numbers are checked where they are used (`cli::sampling`), by the ranges that hold for all
/// sources of them.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling (without a flag as the model's file says, else the default)")]
pub struct Sampling {
    /// The same seed gives the same text; -1 is a new one [default: a new one each time, said on stderr]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(i64).range(-1..), allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// The samplers in their order, between semicolons [default:
    /// penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature]
    #[arg(long, value_name = "NAMES")]
    pub samplers: Option<String>,
    /// The same by letters [default: edskypmxt]
    #[arg(long, value_name = "LETTERS", visible_alias = "sampling-seq", conflicts_with = "samplers")]
    pub sampler_seq: Option<String>,
    /// What logits are divided by: 0 takes the likeliest token, higher is more daring [default: 0.8]
    #[arg(long, value_name = "T", allow_negative_numbers = true, visible_alias = "temperature")]
    pub temp: Option<f64>,
    /// Let the temperature move this far to both sides, up where the model is unsure [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dynatemp_range: Option<f64>,
    /// How it moves: the exponent of the entropy's share [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, alias = "dynatemp-exponent")]
    pub dynatemp_exp: Option<f64>,
    /// Keep the K likeliest tokens; 0 keeps all [default: 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<f64>,
    /// Keep the likeliest tokens that together reach P; 1 keeps all [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Keep the tokens at least P times as likely as the likeliest; 0 keeps all [default: 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f64>,
    /// Keep the tokens that surprise about as much as one expects, until they reach P [default: 1, off]
    #[arg(long, value_name = "P", allow_negative_numbers = true, visible_alias = "typical-p")]
    pub typical: Option<f64>,
    /// Keep logits within N standard deviations of the largest [default: -1, off]
    #[arg(long, value_name = "N", allow_negative_numbers = true, visible_alias = "top-n-sigma")]
    pub top_nsigma: Option<f64>,
    /// How often all likely tokens but the least likely of them are taken away [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub xtc_probability: Option<f64>,
    /// From which probability on a token is a likely one; above 0.5 none is [default: 0.1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub xtc_threshold: Option<f64>,
    /// How many of the last tokens are penalized; -1 is all, 0 none [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<f64>,
    /// Divide the logits of these tokens (multiply them where negative) [default: 1, off]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f64>,
    /// Take this off the logits of these tokens [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub presence_penalty: Option<f64>,
    /// Take this off for each time that they occur [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f64>,
    /// DRY: a token that goes on with a repetition loses N x base ^ (its length - allowed) [default: 0, off]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_multiplier: Option<f64>,
    /// The base [default: 1.75]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_base: Option<f64>,
    /// Repetitions of fewer tokens cost nothing [default: 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_allowed_length: Option<f64>,
    /// In how many of the last tokens repetitions are looked for; -1 is all, 0 none [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_penalty_last_n: Option<f64>,
    /// What repetitions do not reach across, in place of a line's end, : " and *; may be given more than once, none is none
    #[arg(long, value_name = "TEXT|none")]
    pub dry_sequence_breaker: Vec<String>,
    /// Keep the surprise of the text at a target instead, by mirostat of this version [default: 0, off]
    #[arg(long, value_name = "0|1|2", allow_negative_numbers = true)]
    pub mirostat: Option<f64>,
    /// The target, in bits: mirostat's tau [default: 5]
    #[arg(long, value_name = "N", allow_negative_numbers = true, alias = "mirostat-tau")]
    pub mirostat_ent: Option<f64>,
    /// How fast it learns: mirostat's eta [default: 0.1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, alias = "mirostat-eta")]
    pub mirostat_lr: Option<f64>,
    /// Choose tokens near this probability, if --samplers names adaptive_p [default: -1, off]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub adaptive_target: Option<f64>,
    /// How slowly it forgets how likely the last tokens were, 0 to 0.99 [default: 0.9]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub adaptive_decay: Option<f64>,
    /// Add to the logit of a token: 15043+1, 15043-0.5, 15043-inf; may be given more than once
    #[arg(short, long, value_name = "TOKEN(+/-)BIAS")]
    pub logit_bias: Vec<String>,
}

impl Sampling {
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
