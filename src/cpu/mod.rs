//! The CPU's threads and the drivers of the weight kernels.

mod matmul;
mod pool;

pub use matmul::{Group, axpy, dot_rows, grouped};
pub use pool::Pool;
