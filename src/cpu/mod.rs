//! The CPU's threads, the drivers of the weight kernels, and what this machine has.

mod bandwidth;
mod cgroup;
pub mod dense;
mod dmi;
mod host;
mod matmul;
mod memory;
mod pool;
mod pressure;
mod topology;

pub use bandwidth::Bandwidth;
pub use cgroup::Limits;
pub use dmi::{Stick, sticks};
pub use host::{Governor, Host, Link, NumaNode, Spent, major_faults};
pub use matmul::{Group, decode, dot_rows, dot_rows_by_many, encode, grouped};
pub use memory::Memory;
pub(crate) use pool::in_parallel;
pub use pool::{Pool, best_threads, default_threads};
pub use pressure::MemoryPressure;
pub use topology::{Cpu, Topology};
