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
//! What a second, third or fourth token adds to a pass, in times of a pass for one, where two Zen 4
//! cores read rows of 2048 weights from memory (and what a pass of its own over the same piece, in
//! the cache, added): Q8_0 0.02 to 0.11 (0.4), MXFP4 0.15 to 0.19 (0.4), IQ4_XS 0.22 to 0.27 (0.5),
//! Q6_K 0.19 to 0.24 (0.5), Q4_K 0.28 to 0.35 (0.55); IQ2_XXS on one core 0.27 to 0.33 (0.95).
//!
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
