//! [`QuantType`]: what the rest of the crate knows of a weight format.

use super::activations::{Act, ActRow};
use super::panels::panel::PanelSpec;
use super::rng::Rng;
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
    /// Decodes whole blocks: `(blocks, out)` with `out.len() == blocks.len() / bytes * block`.
    /// Bit-equal to ggml.
    pub dequant: fn(&[u8], &mut [f32]),
    /// How the format fills panels for many tokens; `None` for floats.
    pub panel: Option<PanelSpec>,
    /// Row kernels, the best instruction set first, the scalar one last.
    pub kernels: &'static [Kernel],
    /// Fills one block with random weights of about unit RMS: for tests and for synthetic models.
    pub random: fn(&mut Rng, &mut [u8]),
    /// What a KV cache needs; `None` if the format cannot be a cache type.
    pub kv: Option<CacheFormat>,
}

/// The most rows of activations that a kernel multiplies in one pass over the weights.
pub const MOST_TOKENS: usize = 4;

/// Rows of weights times `T` rows of activations: `out[t][r] = sum_i w[r][i] * x[t][i]`.
///
/// `(w, stride, x, out)`: row `r` starts at byte `r * stride` of `w`. It has `x[t].n` weights, and
/// `r` goes up to `out[t].len()`; both are the same for every `t`. A block of weights is decoded
/// once. A row of activations gets the same bits whatever `T` is, and whatever the others are.
pub type DotRows<const T: usize> = unsafe fn(&[u8], usize, [ActRow<'_>; T], [&mut [f32]; T]);

/// A row kernel for one instruction set.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The instruction set that the CPU must have.
    pub isa: Isa,
    /// The kernel for one row of activations.
    pub one: DotRows<1>,
    /// For two.
    pub two: DotRows<2>,
    /// For three.
    pub three: DotRows<3>,
    /// For four.
    pub four: DotRows<4>,
}

impl Kernel {
    /// Multiplies as [`DotRows`] says, with 1 to [`MOST_TOKENS`] rows of activations.
    ///
    /// # Safety
    /// The CPU must have the instruction set [`Kernel::isa`].
    #[allow(unsafe_code)]
    pub unsafe fn dot(&self, w: &[u8], stride: usize, x: &[ActRow<'_>], out: &mut [&mut [f32]]) {
        // SAFETY: the caller promises the instruction set.
        unsafe {
            match (x, out) {
                ([a], [to]) => (self.one)(w, stride, [*a], [to]),
                ([a, b], [to_a, to_b]) => (self.two)(w, stride, [*a, *b], [to_a, to_b]),
                ([a, b, c], [to_a, to_b, to_c]) => (self.three)(w, stride, [*a, *b, *c], [to_a, to_b, to_c]),
                ([a, b, c, d], [to_a, to_b, to_c, to_d]) => {
                    (self.four)(w, stride, [*a, *b, *c, *d], [to_a, to_b, to_c, to_d])
                }
                (x, out) => panic!("{} rows of activations for {} outputs", x.len(), out.len()),
            }
        }
    }
}

/// Lists the row kernels of a format: those for x86-64, which are generic over the number of rows of
/// activations, the best instruction set first, and after the semicolon the scalar one. That takes
/// one row of activations and is called for each.
macro_rules! kernels {
    ($($isa:ident: $dot:ident),*; $scalar:ident) => {{
        use crate::quant::types::Kernel;
        use crate::simd::Isa;
        fn each<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
            x.into_iter().zip(out).for_each(|(x, out)| $scalar(w, stride, x, out));
        }
        &[
            $(
                #[cfg(target_arch = "x86_64")]
                Kernel { isa: Isa::$isa, one: $dot, two: $dot, three: $dot, four: $dot },
            )*
            Kernel { isa: Isa::Scalar, one: each, two: each, three: each, four: each },
        ]
    }};
}
pub(crate) use kernels;

/// Decodes whole blocks: `(blocks, out)`. The CPU must have the instruction set that goes with it.
pub type Decode = unsafe fn(&[u8], &mut [f32]);

/// Encodes whole blocks: `(values, out)`, bit-equal to what the Python package gguf writes.
pub type Encode = fn(&[f32], &mut [u8]);

/// Encodes whole blocks: `(values, out)`. The CPU must have the instruction set that goes with it.
pub type EncodeRow = unsafe fn(&[f32], &mut [u8]);

/// What a format needs to serve as a KV cache type.
#[derive(Debug)]
pub struct CacheFormat {
    /// Encoders of rows (a multiple of the block), the best instruction set first, the scalar one
    /// last. All give the same bits, those of ggml's `quantize_row_*_ref`.
    pub encode: &'static [(Isa, EncodeRow)],
    /// Vector versions of `dequant`, the best instruction set first, the scalar one last.
    pub decode: &'static [(Isa, Decode)],
    /// The kind of floats that the blocks are, which attention multiplies without decoding; `None`
    /// for codes.
    pub floats: Option<Floats>,
}

/// Floats, each in its little-endian bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floats {
    /// f32.
    Single,
    /// f16: 5 bits of exponent, 10 of fraction.
    Half,
    /// bfloat16, the upper half of an f32: 8 bits of exponent, 7 of fraction.
    Brain,
}

impl Floats {
    /// Returns the bytes of a value.
    pub fn bytes(self) -> usize {
        if self == Floats::Single { 4 } else { 2 }
    }
}

impl QuantType {
    /// Returns the bytes of a row of `n` weights; `n` must be a multiple of the block.
    pub fn row_bytes(&self, n: usize) -> usize {
        debug_assert_eq!(n % self.block, 0);
        n / self.block * self.bytes
    }

    /// Returns whether [`PanelScratch`](crate::quant::panels::PanelScratch) multiplies the format
    /// with many tokens at once.
    pub fn multiplies_many(&self) -> bool {
        self.panel.is_some() || matches!(self.act, Act::F16 | Act::Bf16)
    }

    /// Returns the fastest row kernel that this CPU (and `TANDEM_ISA`) allows.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernels.iter().find(|k| k.isa <= simd::isa()).expect("the last kernel is scalar")
    }

    /// Returns the bits per weight, scales included.
    pub fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.block as f64
    }
}

impl PartialEq for QuantType {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
