//! A panel: 32 rows of weights of any integer format as plain 8-bit codes, and how a format fills
//! one.

use super::lanes::Lanes;
use crate::quant::activations::CHUNK;
use crate::simd::Isa;

/// Rows of a panel.
pub const ROWS: usize = 32;

/// Decoded rows: [`ROWS`] rows of up to [`CHUNK`] columns.
#[derive(Debug)]
#[repr(align(64))]
pub struct Panel {
    pub(crate) codes: [[u8; 4 * ROWS]; CHUNK / 4],
    pub(crate) scale: [[f32; ROWS]; CHUNK / 16],
    pub(crate) min: [[f32; ROWS]; CHUNK / 16],
    pub(crate) offset: [[i32; ROWS]; CHUNK / 16],
}

impl Default for Panel {
    fn default() -> Panel {
        Panel {
            codes: [[0; 4 * ROWS]; CHUNK / 4],
            scale: [[0.0; ROWS]; CHUNK / 16],
            min: [[0.0; ROWS]; CHUNK / 16],
            offset: [[0; ROWS]; CHUNK / 16],
        }
    }
}

/// Sixteen of a panel's rows, which a decoder fills from one block of each row.
#[derive(Debug)]
pub(crate) struct PanelHalf<'a> {
    panel: &'a mut Panel,
    /// 0 or 1.
    half: usize,
    /// The step and the group in which the block begins.
    step: usize,
    group: usize,
}

impl PanelHalf<'_> {
    /// Sets columns `4 * step..4 * step + 4` of the block.
    #[inline(always)]
    pub(crate) fn codes(&mut self, step: usize, codes: impl Lanes) {
        let to = &mut self.panel.codes[self.step + step].as_chunks_mut::<64>().0[self.half];
        codes.store(to);
    }

    /// Sets the scale (f32) of the codes of the block's group `g`.
    #[inline(always)]
    pub(crate) fn scale(&mut self, g: usize, scale: impl Lanes) {
        put(&mut self.panel.scale[self.group + g], self.half, scale);
    }

    /// Sets the minimum (f32) of the block's group `g`, which is subtracted from code times scale.
    #[inline(always)]
    pub(crate) fn min(&mut self, g: usize, min: impl Lanes) {
        put(&mut self.panel.min[self.group + g], self.half, min);
    }
}

#[inline(always)]
fn put(to: &mut [f32; ROWS], half: usize, v: impl Lanes) {
    let bytes: &mut [u8; 4 * ROWS] = bytemuck::cast_mut(to);
    v.store(&mut bytes.as_chunks_mut::<64>().0[half]);
}

/// Up to [`ROWS`] rows of weights in memory.
#[derive(Clone, Copy, Debug)]
pub struct WeightRows<'a> {
    /// The weights, from the first row's first block on.
    pub w: &'a [u8],
    /// Bytes from a row to the next.
    pub stride: usize,
    /// The number of rows: 1 to [`ROWS`]. The last is read again in place of those that are
    /// missing.
    pub rows: usize,
}

/// Decodes a range of bytes of each row into a panel: whole blocks, at most [`CHUNK`] columns.
pub type PanelFill = unsafe fn(&WeightRows<'_>, std::ops::Range<usize>, &mut Panel);

/// How a format fills panels.
#[derive(Clone, Copy, Debug)]
pub struct PanelSpec {
    /// Codes that share a scale: 16, 32 or 256.
    pub group: usize,
    /// The largest size of a code.
    pub most: u8,
    /// Whether groups have minimums.
    pub mins: bool,
    /// Best instruction set first, scalar last.
    pub fill: &'static [(Isa, PanelFill)],
}

impl<'a> WeightRows<'a> {
    /// Returns the bytes from row `r` on, or from the last row if there are fewer rows.
    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> &'a [u8] {
        &self.w[r.min(self.rows - 1) * self.stride..]
    }

    /// Returns the byte offsets of rows `16 * half..16 * half + 16`.
    #[inline(always)]
    pub(crate) fn starts(&self, half: usize) -> [usize; 16] {
        let mut starts = [0; 16];
        for (r, start) in starts.iter_mut().enumerate() {
            *start = (half * 16 + r).min(self.rows - 1) * self.stride;
        }
        starts
    }

    /// Returns the block at byte `at` of each of the rows that begin at `starts`.
    #[inline(always)]
    pub(crate) fn blocks<const BYTES: usize>(&self, starts: &[usize; 16], at: usize) -> [&[u8; BYTES]; 16] {
        // A loop: the closure of from_fn is not always inlined into functions of other features.
        let mut blocks = [&[0; BYTES]; 16];
        for (block, start) in blocks.iter_mut().zip(starts) {
            *block = self.w[start + at..].first_chunk().expect("a whole block");
        }
        blocks
    }
}

impl<'a> PanelHalf<'a> {
    /// Returns where block number `b` of half `half` goes, for blocks of `block` weights in groups
    /// of `group`.
    #[inline(always)]
    pub(crate) fn new(panel: &'a mut Panel, half: usize, b: usize, (block, group): (usize, usize)) -> PanelHalf<'a> {
        PanelHalf { panel, half, step: b * block / 4, group: b * block / group }
    }
}

/// Compiles a format's decoder (generic over [`Lanes`]) for every instruction set:
/// `fill_panels!(FILL, decode, block, group)`.
///
/// A macro, so that the loop calls the decoder by its name. A decoder passed as a value is called
/// through a shim that lacks the vector instructions; where the compiler does not inline the shim,
/// every vector operation becomes a call.
macro_rules! fill_panels {
    (loop $s:ident, $bytes:ident, $to:ident, $zero:expr, $decode:ident, $block:expr, $group:expr) => {
        for half in 0..2 {
            let starts = $s.starts(half);
            for (b, at) in $bytes.clone().step_by(BYTES).enumerate() {
                let block = crate::quant::panels::lanes::Blocks16::new($s.blocks(&starts, at), $zero);
                $decode(&block, &mut crate::quant::panels::panel::PanelHalf::new($to, half, b, ($block, $group)));
            }
        }
    };
    ($name:ident, $decode:ident, $block:expr, $group:expr) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bitalg,f16c")]
        fn fill_avx512(
            s: &crate::quant::panels::panel::WeightRows<'_>,
            bytes: std::ops::Range<usize>,
            to: &mut crate::quant::panels::panel::Panel,
        ) {
            fill_panels!(loop s, bytes, to, crate::quant::panels::wide::Wide::zero(), $decode, $block, $group);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn fill_avx2(
            s: &crate::quant::panels::panel::WeightRows<'_>,
            bytes: std::ops::Range<usize>,
            to: &mut crate::quant::panels::panel::Panel,
        ) {
            fill_panels!(loop s, bytes, to, crate::quant::panels::pair::Paired::zero(), $decode, $block, $group);
        }
        fn fill_plain(
            s: &crate::quant::panels::panel::WeightRows<'_>,
            bytes: std::ops::Range<usize>,
            to: &mut crate::quant::panels::panel::Panel,
        ) {
            fill_panels!(loop s, bytes, to, crate::quant::panels::lanes::Plain([0; 16]), $decode, $block, $group);
        }
        static $name: &[(crate::simd::Isa, crate::quant::panels::panel::PanelFill)] = &[
            #[cfg(target_arch = "x86_64")]
            (crate::simd::Isa::Avx512, fill_avx512),
            #[cfg(target_arch = "x86_64")]
            (crate::simd::Isa::Avx2, fill_avx2),
            (crate::simd::Isa::Scalar, fill_plain),
        ];
    };
}
pub(crate) use fill_panels;
