//! The CPU's threads, the drivers of the weight kernels, and what this machine has.

pub mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_tiles;
mod bandwidth;
mod cgroup;
pub mod dense;
mod dmi;
mod host;
mod matmul;
mod memory;
mod mempolicy;
mod numa;
mod pool;
mod pressure;
mod topology;

pub use bandwidth::Bandwidth;
pub use cgroup::Limits;
pub use dmi::{Stick, sticks};
pub use host::{Governor, Host, Link, NumaNode, Spent, major_faults};
pub use matmul::{Group, decode, dot_rows, dot_rows_by_many, encode, grouped};
pub use memory::Memory;
pub use mempolicy::is_governed;
pub(crate) use mempolicy::{bound_to, leave_in_place, nodes_of};
pub use numa::{NodeSplit, NumaNodes, WeightNode, run_on};
pub(crate) use pool::in_parallel;
pub use pool::{Pool, best_threads, default_threads};
pub use pressure::MemoryPressure;
pub use topology::{Cpu, Topology};
