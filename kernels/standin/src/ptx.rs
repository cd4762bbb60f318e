//! An interpreter of PTX, as far as the kernels of kernels/ptx use it.
//!
//! A text becomes an [`Image`] once: its statements (`parse`) are decoded into instructions with register numbers
//! (`decode`, `code`); what is not known is an error by name. A register holds the values of a warp's 32 lanes, so that an
//! instruction is a loop over lanes that the compiler vectorises (`lanes` and the files of `lanes/`). Lanes have places of
//! their own in the code, and those with the lowest go first (`block`), which brings lanes that parted together again; what
//! is `.sync` waits for the lanes of its mask (`exchange`, `tensor`).
//!
//! Every access is held to its alignment and to the allocations that the device reaches (`memory`). Registers, shared and
//! local memory know what was never written, and so does everything that is computed from it; a fault is where an address, a
//! branch or what is stored in global memory depends on it, as kernels may compute what they then drop. Accesses of several
//! threads to one place must be ordered by a barrier, of the block or of the warp (`shadow`). A copy by cp.async lands when
//! it is waited for, no earlier. `meter` counts what decides about speed.
//!
//! Not as on a device: `approx` functions are exact to f32, sums of mma are f32 sums in the order of k, blocks run one after
//! the other, and memory of the device is not ordered weakly.

mod block;
mod code;
mod decode;
mod exchange;
mod lanes;
mod machine;
mod memory;
pub mod meter;
mod parse;
mod shadow;
mod tensor;
#[cfg(test)]
mod tests;

pub use code::{Entry, Param};
pub use machine::{Fault, FaultKind, Machine};

/// A module: its kernels, and memory for its variables.
#[derive(Debug)]
pub struct Image {
    /// The kernels, in the order of the text.
    pub entries: Vec<Entry>,
    /// The module's variables, by address.
    pub(crate) variables: Vec<(u64, Box<[u64]>)>,
}

impl Image {
    /// Decodes a module's text.
    ///
    /// # Errors
    /// If the text is not PTX, or has a part that this interpreter does not know; the message names it and its line.
    pub fn new(text: &str) -> Result<Image, String> {
        decode::module(text)
    }
}
