//! One function for every kernel, with the arguments of its prototype: a module for each source. kernels/ptx.sh makes
//! these files (so does kernels/launch.py, without the CUDA compiler) from the sources, whose hash is
//! 00e4012dc32cf7d69445eee1fda022bc686d582d43feb9662d9ee36f02e67a31.

#![allow(clippy::too_many_arguments)] // the kernels' arguments, in their order

mod attend;
mod basic;
mod matrix;
mod recurrent;
mod route;
mod streams;

pub use super::codes::*;
pub use attend::*;
pub use basic::*;
pub use matrix::*;
pub use recurrent::*;
pub use route::*;
pub use streams::*;
