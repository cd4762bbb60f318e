//! Products of rows of weights with many tokens at once: panels of decoded rows for formats of
//! codes, and kernels that read weights of two bytes as they are.
//!
//! ```text
//! multiply   the entry: a group of rows times many tokens, whatever the format
//! codes      kernels that multiply a panel               floats      kernels for F16 and BF16
//! tiles      both by matrix tiles (AMX)
//! panel      a panel, and how a format fills it          ahead       prefetching
//! lanes      the vector that decoders are written over   pair, wide  its AVX2 and AVX-512 versions
//! codebook, super_block   what the decoders of several formats share
//! ```

mod ahead;
pub(crate) mod codebook;
mod codes;
mod floats;
pub(crate) mod lanes;
mod multiply;
#[cfg(target_arch = "x86_64")]
pub(crate) mod pair;
pub(crate) mod panel;
pub(crate) mod super_block;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
pub(crate) mod wide;

#[cfg(test)]
pub(crate) use codes::shares_min;
pub use multiply::PanelScratch;
pub use panel::{Panel, PanelFill, PanelSpec, ROWS, WeightRows};
