//! Tandem runs mixture-of-experts language models from GGUF files on one ordinary machine.
//!
//! # Map
//! The modules are floors: each imports only those above it in this list (ARCHITECTURE.md says why).
//! - [`simd`], [`quant`], [`sample`]: the CPU's instruction sets, the weight formats, logits to a token.
//!   `printable` makes text from files safe for a terminal; `whole_file` replaces files as a whole.
//! - [`gguf`], [`cpu`], [`cuda`]: model files, threads and matrix products, the GPU's driver.
//! - [`hub`]: models from a hub, and the cache of them. `model_file`: what a run leaves for the next one.
//! - [`text`], [`tape`], [`eval`]: tokenizer, chat templates and grammars; a model as a list of steps; perplexity.
//! - [`ops`], [`models`], [`plan`]: one file per operation, one per model family, and what runs where.
//! - [`convert`]: published checkpoints to model files.
//! - [`exec`], [`session`]: the walk through a plan, and sequences that take tokens and give logits.
//! - [`store`], [`talk`], [`schedule`], [`cli`]: sequences as files, conversations, many requests, the commands.
//!
//! # Example
//! Opens the built-in model, reads a prompt, and samples 16 tokens after it.
//! ```
//! use std::path::Path;
//! use tandem::gguf::Gguf;
//! use tandem::sample::{Params, Sampler};
//! use tandem::session::{Options, Session, Want};
//! use tandem::text::Tokenizer;
//!
//! # fn main() -> anyhow::Result<()> {
//! let model = Gguf::open(Path::new("demo/demo.gguf"))?;
//! let tokenizer = Tokenizer::new(&model)?;
//! let mut session = Session::new(model, &Options { n_ctx: Some(64), ..Options::default() })?;
//! let mut sampler = Sampler::new(Params::default(), 42, Vec::new());
//! let mut tokens = tokenizer.encode_beginning("ROMEO:")?;
//! let (mut stream, mut text) = (tokenizer.stream(), String::new());
//! for _ in 0..16 {
//!     let logits = session.feed(0, &tokens, Want::Last)?.into_logits(); // one per token of the vocabulary
//!     tokens = vec![sampler.pick(&logits, None).expect("no grammar forbids any token")];
//!     sampler.accept(tokens[0]);
//!     text += &stream.push(tokens[0]);
//! }
//! assert!(!text.is_empty());
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)] // allowed, block by block, only in the files that ARCHITECTURE.md names
#![deny(clippy::print_stdout, clippy::print_stderr)] // they panic where nobody reads any more

/// Says a line on stderr, if somebody reads it. Control characters become escapes: the text may name what a file holds.
macro_rules! say {
    ($($text:tt)*) => { $crate::printable::say(format_args!($($text)*)) };
}

pub mod cli;
pub mod convert;
pub mod cpu;
pub mod cuda;
pub mod eval;
pub mod exec;
pub mod gguf;
pub mod hub;
mod model_file;
pub mod models;
pub mod ops;
pub mod plan;
mod printable;
pub mod quant;
pub mod sample;
pub mod schedule;
pub mod session;
pub mod simd;
pub mod speculate;
pub mod store;
pub mod talk;
pub mod tape;
pub mod text;
mod whole_file;
