//! Writes a GGUF file of random weights with a real model's shape: every tensor, every metadata key, any mix of weight
//! formats, a vocabulary that tokenizes text. What such a file says is noise; what it costs to run is real.
//!
//! ```text
//! cargo run --release --example synth -- --shape qwen3-30b-a3b --layers 8 --quant Q4_K_M -o small.gguf
//! cargo run --release --example synth -- --shape qwen3-235b-a22b --header-only --split 3 -o big.gguf
//! cargo run --release --example synth -- --shape qwen3.5-35b-a3b --layers 16 --skew --mtp 0.7 -o drafts.gguf
//! ```

#[path = "model.rs"]
mod model;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use model::{Holes, Mix, OwnText, SHAPES, Synth};

#[derive(Debug, Parser)]
#[command(about = "Writes a GGUF file of random weights with a real model's shape", max_term_width = 100)]
struct Args {
    /// The model's shape
    #[arg(long, value_name = "NAME", value_parser = SHAPES.iter().map(|s| s.name).collect::<Vec<_>>())]
    shape: String,
    /// Only the first N layers
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Weight formats: a format or llama-quantize's name for a mix (Q4_K_M), and exceptions after commas, of experts=,
    /// down=, attn=, shared=, embed=, output= (Q4_K,attn=Q8_0)
    #[arg(long, value_name = "MIX", default_value = "Q4_K_M")]
    quant: Mix,
    /// Over this many files
    #[arg(long, value_name = "N")]
    split: Option<usize>,
    /// Write the headers only: the weights are holes in the file, which take no space and read as zeros
    #[arg(long)]
    header_only: bool,
    /// Other weights
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Tokens in the vocabulary [default: the shape's own]
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Routers that choose as trained ones do, while the model goes on with its own greedy text: of a
    /// layer's experts the 12.5% that were used last are chosen again about 67% of the time, the 25% about
    /// 81%. Uniform choices, as other texts have them, make every drafted row bring new experts
    #[arg(long, value_name = "on|off", num_args = 0..=1, default_value = "off", default_missing_value = "on")]
    #[arg(value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set, hide_possible_values = true)]
    skew: bool,
    /// A block for multi-token prediction that is right with probability P about the model's own greedy
    /// text, and costs what a real one does; for shapes that have one
    #[arg(long, value_name = "P")]
    mtp: Option<f32>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let a = Args::parse();
    let holes = if a.header_only { Holes::All } else { Holes::None };
    if let Some(p) = a.mtp.filter(|p| !(0.0..=1.0).contains(p)) {
        bail!("--mtp {p}: expected a probability from 0 to 1");
    }
    let synth = Synth { layers: a.layers, mix: a.quant, seed: a.seed, vocab: a.vocab, holes };
    let own = OwnText { skew: a.skew, mtp: a.mtp };
    for (path, bytes) in synth.write_with(own, &a.shape, a.split, &a.out)? {
        println!("{} ({:.1} GB)", path.display(), bytes as f64 / 1e9);
    }
    Ok(())
}
