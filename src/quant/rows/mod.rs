//! Row kernels: rows of weights times one to four rows of activations, each of which gets the bits
//! that it gets alone. A block of weights is decoded once for all of them, so that further rows cost
//! little while the weights come from memory.
//!
//! The kernels that several formats share, by kind of block and instruction set. A format brings
//! how it unpacks a block; what no other format shares is in the format's own file.
//!
//! ```text
//! kind of block                           AVX-512           AVX2             any
//! floats                                  float_avx512      each format
//! 32 to 128 weights, a scale per 16, 32   small_avx512      small_avx2       blocks
//! 256 weights, scales of sub-blocks       super_avx512      super_avx2       super_block
//! 256 weights out of a codebook           codebook_avx512   codebook_avx2    codebook
//! ```
//! `small_cache` encodes and decodes blocks of 32 for KV caches.

pub(crate) mod blocks;
pub(crate) mod codebook;
#[cfg(target_arch = "x86_64")]
pub(crate) mod codebook_avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod codebook_avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod float_avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod small_avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod small_avx512;
pub(crate) mod small_cache;
#[cfg(target_arch = "x86_64")]
pub(crate) mod super_avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod super_avx512;
pub(crate) mod super_block;
