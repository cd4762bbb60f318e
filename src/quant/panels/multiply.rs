//! The entry to products of weight rows with many tokens, for every format, and a thread's scratch
//! memory for them.

use std::ops::Range;

use super::ahead::Ahead;
use super::codes::PanelProduct;
#[cfg(target_arch = "x86_64")]
use super::codes::{offsets_avx2, offsets_avx512};
use super::floats::FloatProduct;
use super::panel::{Panel, PanelFill, PanelSpec, ROWS, WeightRows};
#[cfg(target_arch = "x86_64")]
use super::tiles::{self, TileScratch};
use crate::quant::activations::{Act, CHUNK, PanelActs, PanelForm};
use crate::quant::types::QuantType;
use crate::simd::Isa;
#[cfg(target_arch = "x86_64")]
use crate::simd::vnni_is_vex;

/// Scratch memory of one thread: a panel, and the sums of its tokens.
#[derive(Debug, Default)]
pub struct PanelScratch {
    panel: Box<Panel>,
    /// A line per token, filled up at the front so that lines of tiles do not cross those of the cache.
    sums: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    tiles: TileScratch,
}

impl PanelScratch {
    /// Computes `out(i)[r] = row r . x row t` for every `(t, i)` of `tokens` and every row of `w`.
    pub fn multiply(
        &mut self,
        ty: &QuantType,
        w: WeightRows<'_>,
        x: PanelActs<'_>,
        tokens: &[(u32, u32)],
        isa: Isa,
        mut out: impl FnMut(u32, &[f32]),
    ) {
        #[cfg(target_arch = "x86_64")]
        let by_tiles = by_tiles(ty, x.form, tokens.len(), isa);
        #[cfg(target_arch = "x86_64")]
        let count = match by_tiles && ty.panel.is_some() {
            true => self.tiles.gather(x, tokens),
            false => tokens.len().next_multiple_of(2),
        };
        #[cfg(not(target_arch = "x86_64"))]
        let count = tokens.len();
        self.sums.clear();
        self.sums.resize((count + 1) * ROWS, 0.0);
        let first = self.sums.as_ptr().align_offset(64).min(ROWS);
        let sums = &mut self.sums[first..].as_chunks_mut().0[..count];
        match x.form {
            #[cfg(target_arch = "x86_64")]
            PanelForm::Bf16 if by_tiles && ty.act == Act::Bf16 => {
                #[allow(unsafe_code)]
                // SAFETY: the instruction set was just compared with what the CPU has.
                unsafe {
                    self.tiles.gather_words(x, tokens);
                    self.tiles.add_floats(w, x.n, &mut sums[..tokens.len()]);
                };
            }
            #[cfg(target_arch = "x86_64")]
            PanelForm::Bf16 if by_tiles => panels_by_tiles(&mut self.tiles, &mut self.panel, ty, w, x.n, isa, sums),
            PanelForm::Codes => panels(&mut self.panel, ty, w, x, tokens, isa, sums),
            PanelForm::F32 | PanelForm::Bf16 => {
                assert!(x.form == ty.act.form(isa, 1), "{:?} for {}", x.form, ty.name);
                FloatProduct { w, n: x.n, x: x.words, rows: x.rows, tokens }.add(
                    ty.act,
                    isa,
                    &mut sums[..tokens.len()],
                );
            }
        }
        for (&(_, o), sums) in tokens.iter().zip(&*sums) {
            out(o, &sums[..w.rows]);
        }
    }

    /// Returns how many tokens with rows of `n` values [`PanelScratch::multiply`] should be given at
    /// once at most, so that a thread's cache has them for all rows of a piece: where products are
    /// as fast as tiles make them, reading activations from farther away would take longer than
    /// multiplying.
    pub fn most_tokens(ty: &QuantType, n: usize, isa: Isa) -> usize {
        #[cfg(target_arch = "x86_64")]
        if by_tiles(ty, PanelForm::Bf16, usize::MAX, isa) {
            return tiles::most_tokens(n);
        }
        let _ = (ty, n, isa);
        usize::MAX
    }
}

/// Whether tiles multiply this many tokens of this layout: all formats but F16 and F32.
#[cfg(target_arch = "x86_64")]
fn by_tiles(ty: &QuantType, form: PanelForm, tokens: usize, isa: Isa) -> bool {
    let from = if ty.act == Act::Bf16 { tiles::WORTH_FLOATS } else { 1 };
    isa >= Isa::Amx && form == PanelForm::Bf16 && tokens >= from && (ty.panel.is_some() || ty.act == Act::Bf16)
}

/// Calls `each` with the pieces of rows that are decoded at a time: the bytes, the columns' start, and prefetches for the
/// next.
fn pieces(
    ty: &QuantType,
    w: WeightRows<'_>,
    n: usize,
    tokens: usize,
    mut each: impl FnMut(Range<usize>, usize, usize, Ahead<'_>),
) {
    for at in (0..n).step_by(CHUNK) {
        let len = CHUNK.min(n - at);
        let bytes = ty.row_bytes(at)..ty.row_bytes(at + len);
        // The rows' next columns, or the first ones of the rows after them.
        let next = if at + len < n { bytes.end } else { ROWS * w.stride };
        let ahead = Ahead::new(w.w, next, w.stride, bytes.len(), ROWS, tokens);
        each(bytes, at, len, ahead);
    }
}

/// The decoder of a format of codes for this instruction set.
fn filler(spec: &PanelSpec, isa: Isa) -> PanelFill {
    spec.fill.iter().find(|(i, _)| *i <= isa).expect("the last decoder is scalar").1
}

/// Adds the products of a format of codes to the sums by tiles, panel after panel.
#[cfg(target_arch = "x86_64")]
fn panels_by_tiles(
    scratch: &mut TileScratch,
    panel: &mut Panel,
    ty: &QuantType,
    w: WeightRows<'_>,
    n: usize,
    isa: Isa,
    sums: &mut [[f32; ROWS]],
) {
    let spec = ty.panel.as_ref().expect("a format that fills panels");
    let (fill, tiles) = (filler(spec, isa), scratch.tiles());
    pieces(ty, w, n, sums.len(), |bytes, at, len, ahead| {
        #[allow(unsafe_code)]
        // SAFETY: `isa`, which has tiles, is one that the CPU has.
        unsafe {
            fill(&w, bytes, panel);
            scratch.add_codes(&tiles, (panel, spec), (at / CHUNK, len), sums, ahead);
        }
    });
}

/// Adds the products of a format of codes to the sums, panel after panel.
fn panels(
    panel: &mut Panel,
    ty: &QuantType,
    w: WeightRows<'_>,
    x: PanelActs<'_>,
    tokens: &[(u32, u32)],
    isa: Isa,
    sums: &mut [[f32; ROWS]],
) {
    let spec = ty.panel.as_ref().expect("a format that fills panels");
    let fill = filler(spec, isa);
    pieces(ty, w, x.n, tokens.len(), |bytes, at, len, ahead| {
        #[allow(unsafe_code)]
        // SAFETY: the instruction set was just compared with what the CPU has.
        unsafe {
            fill(&w, bytes, panel)
        };
        debug_assert!(panel.codes[..len / 4].as_flattened().iter().all(|c| (*c as i8).unsigned_abs() <= spec.most));
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        // SAFETY: as above.
        unsafe {
            match isa {
                Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => offsets_avx512(panel, spec.group, len),
                Isa::AvxVnni => offsets_avx2(panel, spec.group, len),
                Isa::Avx2 if spec.most <= 64 => offsets_avx2(panel, spec.group, len),
                _ => {} // these take activations as they are, not shifted
            }
        };
        let part = PanelProduct {
            panel,
            x: &x.columns[at / CHUNK * x.rows..][..x.rows],
            len,
            group: spec.group,
            most: spec.most,
            mins: spec.mins,
            by_256: x.block == Act::Q8K.block(),
        };
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        // SAFETY: as above.
        unsafe {
            match isa {
                Isa::Scalar => {}
                Isa::Avx2 => return part.multiply_avx2(tokens, sums),
                Isa::AvxVnni if vnni_is_vex() => return part.multiply_vnni(tokens, sums),
                Isa::AvxVnni => return part.multiply_vnni_evex(tokens, sums),
                _ => return part.multiply_avx512(tokens, sums, ahead),
            }
        };
        let _ = ahead;
        for (&(t, _), sums) in tokens.iter().zip(&mut *sums) {
            part.multiply(t as usize, sums);
        }
    });
}
