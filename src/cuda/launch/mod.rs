//! One function for every kernel, with the arguments of its prototype: a module for each source. kernels/ptx.sh makes
//! these files (so does kernels/launch.py, without the CUDA compiler) from the sources, whose hash is
//! a0e5eeea0fed84d1a74fa5bb6525339211b2db98029afa2c8550393e2dbf0d36.

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
