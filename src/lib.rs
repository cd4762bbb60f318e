//! Tandem runs mixture-of-experts language models from GGUF files on one ordinary machine.

#![deny(unsafe_code)] // allowed, block by block, only in the files that ARCHITECTURE.md names

pub mod gguf;
#[allow(missing_docs)]
pub mod quant;
pub mod simd;
