//! The CPU's threads and the drivers of the weight kernels.

mod bandwidth;
mod matmul;
mod pool;

pub use bandwidth::read_bandwidth;
pub use matmul::{Group, dot_rows, grouped, sum_rows};
pub use pool::Pool;
