//! Tandem runs mixture-of-experts language models from GGUF files on one ordinary machine.

#![deny(unsafe_code)] // allowed, block by block, only in the files that ARCHITECTURE.md names
#![deny(clippy::print_stdout, clippy::print_stderr)] // they panic where nobody reads any more

/// Says a line on stderr, if somebody reads it.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*)));
    }};
}

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
pub mod schedule;
pub mod session;
pub mod simd;
pub mod store;
pub mod talk;
pub mod tape;
pub mod text;
