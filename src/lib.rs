//! Tandem runs mixture-of-experts language models from GGUF files on one ordinary machine.

#![deny(unsafe_code)] // allowed, block by block, only in the files that ARCHITECTURE.md names

pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod eval;
pub mod exec;
pub mod gguf;
pub mod models;
pub mod ops;
pub mod plan;
pub mod quant;
pub mod sample;
pub mod session;
pub mod simd;
pub mod store;
pub mod talk;
pub mod tape;
pub mod text;
