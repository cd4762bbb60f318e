//! One function for every kernel, with the arguments of its prototype: a module for each source. kernels/ptx.sh makes
//! these files (so does kernels/launch.py, without the CUDA compiler) from the sources, whose hash is
//! e39fa5db20610df13afe646a0e71b94e67cd238ce5e44bf996801029240b7cdb.

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
