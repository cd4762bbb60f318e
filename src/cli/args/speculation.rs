//! The flags of speculation.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What drafts, and how much.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Speculation (changes how fast a text is made, not the text)")]
pub struct SpeculationArgs {
    /// What drafts tokens, which the model then verifies several at a time. auto takes whatever
    /// there is (MTP heads of the file, a draft model, repetitions of the text) while it makes
    /// decoding faster, by times measured on the way; ngram repeats what followed in the prompt and
    /// the text
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Spec::Auto)]
    pub spec: Spec,
    /// Draft model: a smaller GGUF file with the same vocabulary [also: -md]
    #[arg(long, value_name = "FILE")]
    pub model_draft: Option<PathBuf>,
    /// Layers of the draft model on the GPU [default: what fits] [also: -ngld]
    #[arg(long, value_name = "N|all|auto", requires = "model_draft")]
    pub gpu_layers_draft: Option<String>,
    /// Tokens of a draft, at most; 0 drafts nothing, 7 is the most that can be
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub draft_max: usize,
    /// Tokens of a draft, at least; above 0 there is a draft whenever something is found, whatever
    /// times are measured
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub draft_min: usize,
    /// End a draft before a token that the draft model or head gives a probability below P among
    /// those that it looks at: the likely ones of the vocabulary
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub draft_p_min: f32,
}

/// What drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Spec {
    /// What there is and pays.
    Auto,
    /// Nothing.
    Off,
    /// The heads of the model's file that predict further tokens.
    Mtp,
    /// The draft model.
    Draft,
    /// The text.
    Ngram,
}
