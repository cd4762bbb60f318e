//! The weight formats: one file each, one row of the table below each.
//!
//! A format is its block layout, a scalar decode (bit-equal to the reference implementation), a scalar dot product (the
//! truth that every faster kernel is held to), and the vector kernels. Every kernel has the same shape: a group of
//! weight rows times one row of activations. Integer formats take activations quantized once per step by [`act`].
//!
//! Adding a format is a file and a line in `formats!`.

pub mod act;
#[cfg(test)]
pub mod check;
mod codebook;
pub mod floats;
#[cfg(target_arch = "x86_64")]
mod grid512;
pub mod lanes;
pub mod ptx;
pub mod retired;
#[cfg(target_arch = "x86_64")]
mod small;
mod super_block;
#[cfg(target_arch = "x86_64")]
mod super_rows;
mod tables;
pub mod tile;
#[cfg(target_arch = "x86_64")]
mod units;

pub use act::{Act, ActRow};
pub use tile::Tile;

use crate::simd::{self, Isa};

/// One weight format of GGUF.
#[derive(Debug)]
pub struct QuantType {
    /// The type's number in a GGUF tensor directory (`ggml_type`).
    pub id: u32,
    /// The type's usual name, in capitals as GGUF tools print it.
    pub name: &'static str,
    /// Weights in a block; a row is a whole number of blocks.
    pub block: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// What the kernels multiply with.
    pub act: Act,
    /// Decodes whole blocks: `(blocks, out)` with `out.len() == blocks.len() / bytes * block`. Bit-equal to ggml.
    pub dequant: fn(&[u8], &mut [f32]),
    /// How it fills panels for many tokens; None for floats.
    pub tile: Option<Tile>,
    /// Best instruction set first, the scalar truth last.
    pub kernels: &'static [Kernel],
    /// Fills one block with random weights of about unit RMS: for tests and for synthetic models.
    pub random: fn(&mut Rng, &mut [u8]),
    /// What a KV cache needs, for the types that can be one.
    pub kv: Option<Kv>,
}

/// Rows of weights times one row of activations: `out[r] = sum_i w[r][i] * x[i]`.
///
/// `(w, stride, x, out)`: row `r` starts at byte `r * stride` of `w` and has `x.n` weights.
pub type DotRows = unsafe fn(&[u8], usize, ActRow<'_>, &mut [f32]);

/// A dot kernel for one instruction set.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// What the CPU must have for `dot` to be called; that is the whole safety condition.
    pub isa: Isa,
    /// The kernel.
    pub dot: DotRows,
}

/// Decodes whole blocks: `(blocks, out)`.
pub type Decode = unsafe fn(&[u8], &mut [f32]);

/// What a format needs to serve as a KV cache type.
#[derive(Debug)]
pub struct Kv {
    /// Encodes `x` (a multiple of the block) into blocks.
    pub encode: fn(&[f32], &mut [u8]),
    /// Decodes whole blocks, as `dequant`, with vectors: best instruction set first, scalar last.
    pub decode: &'static [(Isa, Decode)],
    /// Whether the blocks are the values as f16, which attention then multiplies with as they are.
    pub halves: bool,
}

impl QuantType {
    /// Bytes of a row of `n` weights; `n` must be a multiple of the block.
    pub fn row_bytes(&self, n: usize) -> usize {
        debug_assert_eq!(n % self.block, 0);
        n / self.block * self.bytes
    }

    /// Whether [`tile::Work`] multiplies it with many tokens at once.
    pub fn has_tiles(&self) -> bool {
        self.tile.is_some() || matches!(self.act, Act::F16 | Act::Bf16)
    }

    /// The fastest kernel that this CPU (and `TANDEM_ISA`) allows.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernels.iter().find(|k| k.isa <= simd::isa()).expect("a scalar kernel stands last")
    }

    /// Bits per weight, scales included.
    pub fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.block as f64
    }
}

impl PartialEq for QuantType {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

macro_rules! formats {
    ($($file:ident),* $(,)?) => {
        $(pub mod $file;)*
        /// Every format.
        pub static TYPES: &[&QuantType] = &[$(&$file::TYPE),*];
    };
}

formats! {
    f32,
    f16,
    q4_0,
    q4_1,
    q5_0,
    q5_1,
    q8_0,
    q2_k,
    q3_k,
    q4_k,
    q5_k,
    q6_k,
    iq4_nl,
    iq4_xs,
    bf16,
    tq1_0,
    tq2_0,
    mxfp4,
    nvfp4,
    q1_0,
    q2_0,
    iq2_xxs,
    iq2_xs,
    iq3_xxs,
    iq1_s,
    iq3_s,
    iq2_s,
    iq1_m,
}

/// The format with this GGUF number.
pub fn by_id(id: u32) -> Option<&'static QuantType> {
    TYPES.iter().copied().find(|t| t.id == id)
}

/// The format of this name, in any case: `q8_0`, `Q8_0`, `f16`.
pub fn by_name(name: &str) -> Option<&'static QuantType> {
    TYPES.iter().copied().find(|t| t.name.eq_ignore_ascii_case(name))
}

/// The names of the formats that a KV cache can have, for messages: `f32, f16, ...`.
pub fn cache_types() -> String {
    let names: Vec<String> = TYPES.iter().filter(|t| t.kv.is_some()).map(|t| t.name.to_lowercase()).collect();
    names.join(", ")
}

/// A small, fast, seeded generator (SplitMix64, public domain, Vigna 2015) for synthetic weights and tests.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// About normal, mean 0 and variance 1 (the sum of twelve uniforms, less six).
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(8) {
            let bits = self.bits().to_le_bytes();
            part.copy_from_slice(&bits[..part.len()]);
        }
    }
}

/// The f16 at byte `at` of a block, widened.
#[inline]
pub(crate) fn f16_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Writes `x` as f16 at byte `at` of a block.
pub(crate) fn put_f16(block: &mut [u8], at: usize, x: f32) {
    block[at..at + 2].copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
}

/// Splits row group `w` into its rows: `out.len()` rows of `bytes` bytes, `stride` apart.
#[inline]
pub(crate) fn rows(w: &[u8], stride: usize, bytes: usize) -> impl Iterator<Item = &[u8]> {
    (0..).map(move |r| &w[r * stride..r * stride + bytes])
}

/// Hands the rows of `w` to a kernel four at a time, and the last three or fewer one at a time: `(rows, out)`.
///
/// Four rows share the loads of the activations and hide each other's latency: from cache that is 1.4 to 2 times the
/// speed of one. From memory they are four short streams, which hardware prefetchers follow badly (Q4_0 on a Zen 4 core:
/// 5 GB/s, one row at a time 10), so kernels ask for the same place in the next group: 10 GB/s and more.
#[cfg(target_arch = "x86_64")]
pub(crate) fn by_four(
    w: &[u8],
    stride: usize,
    out: &mut [f32],
    four: impl Fn(&[u8], &mut [f32; 4]),
    one: impl Fn(&[u8], &mut [f32; 1]),
) {
    let (fours, rest) = out.as_chunks_mut::<4>();
    let done = fours.len() * 4;
    for (i, out) in fours.iter_mut().enumerate() {
        four(&w[i * 4 * stride..], out);
    }
    for (i, out) in rest.as_chunks_mut::<1>().0.iter_mut().enumerate() {
        one(&w[(done + i) * stride..], out);
    }
}

/// The first `n` blocks of each of `R` rows, `stride` apart.
#[cfg(target_arch = "x86_64")]
pub(crate) fn blocks<const R: usize, const BYTES: usize>(w: &[u8], stride: usize, n: usize) -> [&[[u8; BYTES]]; R] {
    std::array::from_fn(|r| &w[r * stride..].as_chunks().0[..n])
}
