//! Text and token numbers: a GGUF file's vocabulary, and how text is cut into its tokens and put together again.

mod bpe;
pub mod grammar;
mod pre;
mod split;
mod spm;
mod tokenizer;
mod vocab;

pub use tokenizer::{Stream, Tokenizer};
