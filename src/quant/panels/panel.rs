//! A panel: 32 rows of weights of any integer format as plain 8-bit codes, and how a format fills one.

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

/// Half of a panel's rows, as decoders fill them.
#[derive(Debug)]
pub(crate) struct PanelHalf<'a> {
    panel: &'a mut Panel,
    /// 0 or 1.
    half: usize,
    /// The step and the group that the block begins with.
    step: usize,
    group: usize,
}

impl PanelHalf<'_> {
    /// Columns `4 * step..4 * step + 4` of the block.
    #[inline(always)]
    pub(crate) fn codes(&mut self, step: usize, codes: impl Lanes) {
        let to = &mut self.panel.codes[self.step + step].as_chunks_mut::<64>().0[self.half];
        codes.store(to);
    }

    /// What the codes of the block's group `g` are multiplied with (f32).
    #[inline(always)]
    pub(crate) fn scale(&mut self, g: usize, scale: impl Lanes) {
        put(&mut self.panel.scale[self.group + g], self.half, scale);
    }

    /// What is then taken off the weights of the block's group `g` (f32).
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

/// Where a panel's rows are.
#[derive(Clone, Copy, Debug)]
pub struct WeightRows<'a> {
    /// The weights, from the first row's first block on.
    pub w: &'a [u8],
    /// Bytes from a row to the next.
    pub stride: usize,
    /// Rows that there are: 1 to [`ROWS`]. The last stands in for those that are missing.
    pub rows: usize,
}

/// Decodes `(bytes, to)` of the rows into a panel: whole blocks, at most [`CHUNK`] columns.
pub type PanelFill = unsafe fn(&WeightRows<'_>, std::ops::Range<usize>, &mut Panel);

/// How a format fills panels.
#[derive(Clone, Copy, Debug)]
pub struct PanelSpec {
    /// Codes that share a scale: 16, 32 or 256.
    pub group: usize,
    /// The largest size of a code.
    pub most: u8,
    /// Whether it has minimums.
    pub mins: bool,
    /// Best instruction set first, scalar last.
    pub fill: &'static [(Isa, PanelFill)],
}

impl<'a> WeightRows<'a> {
    /// Row `r`'s bytes and those after it; the last row again where there are fewer.
    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> &'a [u8] {
        &self.w[r.min(self.rows - 1) * self.stride..]
    }

    /// Where rows `16 * half..16 * half + 16` begin.
    #[inline(always)]
    pub(crate) fn starts(&self, half: usize) -> [usize; 16] {
        let mut starts = [0; 16];
        for (r, start) in starts.iter_mut().enumerate() {
            *start = (half * 16 + r).min(self.rows - 1) * self.stride;
        }
        starts
    }

    /// The block at byte `at` of each of those rows.
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
    /// The place of the half's block number `b`, of `block` weights in groups of `group`.
    #[inline(always)]
    pub(crate) fn new(panel: &'a mut Panel, half: usize, b: usize, (block, group): (usize, usize)) -> PanelHalf<'a> {
        PanelHalf { panel, half, step: b * block / 4, group: b * block / group }
    }
}

/// A format's decoder (generic over [`Lanes`]), compiled for every instruction set: `fill_panels!(FILL, decode, block, group)`.
///
/// The loop stands here and calls the decoder by its name: handed to a function as a value it would be called through a
/// shim that has no vector instructions and that the compiler does not always inline, and then every operation is a call.
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
            fill_panels!(loop s, bytes, to, crate::quant::panels::lanes::Plain([0; 16]), $decode, $block, $group);
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
