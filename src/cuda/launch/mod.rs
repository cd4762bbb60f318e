//! One function for every kernel, with the arguments of its prototype: a module for each source. kernels/ptx.sh makes
//! these files (so does kernels/launch.py, without the CUDA compiler) from the sources, whose hash is
//! 084eed14e80f967197a1320332b7a80898f8e21af8de615e4e32b7f4cb4402ef.

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
