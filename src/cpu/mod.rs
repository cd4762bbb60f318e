//! The CPU's threads, the drivers of the weight kernels, and what this machine has.

mod bandwidth;
pub mod dense;
mod matmul;
mod memory;
mod pool;

pub use bandwidth::Bandwidth;
pub use matmul::{Group, decode, dot_rows, grouped};
pub use memory::Memory;
pub use pool::Pool;
