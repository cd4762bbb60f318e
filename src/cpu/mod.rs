//! The CPU's threads, the drivers of the weight kernels, and what this machine has.

mod bandwidth;
mod matmul;
mod memory;
mod pool;

pub use bandwidth::read_bandwidth;
pub use matmul::{Group, dot_rows, grouped, sum_rows};
pub use memory::Memory;
pub use pool::Pool;
