//! One function for every kernel, with the arguments of its prototype: a module for each source. kernels/ptx.sh makes
//! these files (so does kernels/launch.py, without the CUDA compiler) from the sources, whose hash is
//! 967c183e6ec6ed2e3a17e851ea8843ce7fd54e2d79f434dddc3814c5883f1907.

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
