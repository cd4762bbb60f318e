//! The weight formats, and the kernels that multiply with them.
//!
//! A format is its block layout, a scalar decode (bit-equal to the reference implementation), a
//! scalar dot product (the truth that every faster kernel is held to), and the vector kernels.
//! Every row kernel has the same shape: a group of weight rows times one to four rows of
//! activations, of which each gets the bits that it gets alone.
//! Integer formats take activations quantized once per step by [`activations`].
//!
//! ```text
//! formats/       one file per format, and the list of them
//! rows/          kernels for one to four tokens, by kind of block and instruction set
//! panels/        kernels for many tokens
//! activations/   what both multiply with: layouts, quantization
//! codebooks/     the codebooks of the IQ formats
//! types          what a format is to the rest of the crate
//! ptx            the kernels for GPUs
//! ```
//! Imports between these files form no circle: types that formats need live below the list of
//! formats.

pub mod activations;
mod codebooks;
pub mod formats;
pub mod panels;
pub mod ptx;
mod rng;
mod rows;
mod types;

pub use activations::{Act, ActRow, Acts, PanelForm};
pub use formats::{TYPES, by_id, by_name, cache_types, encoder, retired, written_types};
pub use rng::Rng;
pub use types::{CacheFormat, Decode, DotRows, Encode, EncodeRow, Floats, Kernel, MOST_TOKENS, QuantType};
