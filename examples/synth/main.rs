//! Writes a GGUF file of random weights with a real model's shape: every tensor, every metadata key, any mix of weight
//! formats, a vocabulary that tokenizes text. What such a file says is noise; what it costs to run is real.
//!
//! ```text
//! cargo run --release --example synth -- --shape qwen3-30b-a3b --layers 8 --quant Q4_K_M -o small.gguf
//! cargo run --release --example synth -- --shape qwen3-235b-a22b --header-only --split 3 -o big.gguf
//! ```

#[path = "model.rs"]
mod model;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use model::{Holes, Mix, SHAPES, Synth};

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
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let a = Args::parse();
    let holes = if a.header_only { Holes::All } else { Holes::None };
    let synth = Synth { layers: a.layers, mix: a.quant, seed: a.seed, vocab: a.vocab, holes };
    for (path, bytes) in synth.write(&a.shape, a.split, &a.out)? {
        println!("{} ({:.1} GB)", path.display(), bytes as f64 / 1e9);
    }
    Ok(())
}
