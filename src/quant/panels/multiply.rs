//! The entry to products of weight rows with many tokens, for every format, and a thread's scratch
//! memory for them.

use super::ahead::Ahead;
use super::codes::PanelProduct;
#[cfg(target_arch = "x86_64")]
use super::codes::{offsets_avx2, offsets_avx512};
use super::floats::FloatProduct;
use super::panel::{Panel, ROWS, WeightRows};
#[cfg(target_arch = "x86_64")]
use super::tiles::{self, CodeKind, TilePanel, TileScratch};
use crate::quant::activations::{Act, CHUNK, PanelActs, PanelForm};
use crate::quant::types::QuantType;
use crate::simd::Isa;
#[cfg(target_arch = "x86_64")]
use crate::simd::vnni_is_vex;

/// Scratch memory of one thread: a panel, and the sums of its tokens.
#[derive(Debug)]
pub struct PanelScratch {
    /// Tokens from which matrix tiles are used where the CPU has them; None for what is best. Tests
    /// and benchmarks set it.
    pub tiles_from: Option<usize>,
    panel: Box<Panel>,
    sums: Vec<[f32; ROWS]>,
    #[cfg(target_arch = "x86_64")]
    tiles: TileScratch,
}

impl Default for PanelScratch {
    fn default() -> PanelScratch {
        let panel = Panel {
            codes: [[0; 4 * ROWS]; CHUNK / 4],
            scale: [[0.0; ROWS]; CHUNK / 16],
            min: [[0.0; ROWS]; CHUNK / 16],
            offset: [[0; ROWS]; CHUNK / 16],
        };
        PanelScratch {
            tiles_from: None,
            panel: Box::new(panel),
            sums: Vec::new(),
            #[cfg(target_arch = "x86_64")]
            tiles: TileScratch::default(),
        }
    }
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
        self.sums.clear();
        self.sums.resize(tokens.len().next_multiple_of(2), [0.0; ROWS]);
        let form = ty.act.form(isa);
        assert!(x.form == form, "activations laid out as {:?} are wanted as {form:?}", x.form);
        match form {
            PanelForm::Codes => self.panels(ty, w, x, tokens, isa),
            #[cfg(target_arch = "x86_64")]
            PanelForm::Bf16 if self.by_tiles(ty, tokens.len(), isa) => {
                #[allow(unsafe_code)]
                // SAFETY: the instruction set was just compared with what the CPU has.
                unsafe {
                    self.tiles.gather(x, tokens, None);
                    self.tiles.add_floats(w, x.n, &mut self.sums[..tokens.len()]);
                }
            }
            PanelForm::F32 | PanelForm::Bf16 => {
                let sums = &mut self.sums[..tokens.len()];
                FloatProduct { w, n: x.n, x: x.words, rows: x.rows, tokens }.add(ty.act, isa, sums);
            }
        }
        for (&(_, o), sums) in tokens.iter().zip(&self.sums) {
            out(o, &sums[..w.rows]);
        }
    }

    /// Returns how many tokens with rows of `n` values [`PanelScratch::multiply`] should be given at
    /// once at most, so that a thread's cache has them for all rows of a piece: where products are
    /// as fast as tiles make them, reading activations from farther away would take longer than
    /// multiplying.
    pub fn most_tokens(ty: &QuantType, n: usize, isa: Isa) -> usize {
        #[cfg(target_arch = "x86_64")]
        if has_tiles(ty, isa) {
            return tiles::most_tokens(ty.panel.map(|p| p.group), n);
        }
        let _ = (ty, n, isa);
        usize::MAX
    }

    /// Whether tiles multiply this many tokens.
    #[cfg(target_arch = "x86_64")]
    fn by_tiles(&self, ty: &QuantType, tokens: usize, isa: Isa) -> bool {
        has_tiles(ty, isa) && tokens >= self.tiles_from.unwrap_or_else(|| tiles::worth(ty.panel.map(|p| p.group)))
    }

    /// Adds the products of a format of codes to the sums, panel after panel.
    fn panels(&mut self, ty: &QuantType, w: WeightRows<'_>, x: PanelActs<'_>, tokens: &[(u32, u32)], isa: Isa) {
        let spec = ty.panel.as_ref().expect("a format that fills panels");
        let (_, fill) = spec.fill.iter().find(|(i, _)| *i <= isa).expect("the last decoder is scalar");
        #[cfg(target_arch = "x86_64")]
        let code_tiles = self.by_tiles(ty, tokens.len(), isa).then(|| {
            #[allow(unsafe_code)]
            // SAFETY: the instruction set was just compared with what the CPU has.
            unsafe {
                self.tiles.gather(x, tokens, Some(CodeKind { group: spec.group, mins: spec.mins }))
            };
            self.tiles.code_tiles(spec.group)
        });
        for at in (0..x.n).step_by(CHUNK) {
            let len = CHUNK.min(x.n - at);
            let bytes = ty.row_bytes(at)..ty.row_bytes(at + len);
            // The rows' next columns, or the first ones of the rows after them.
            let next = if at + len < x.n { bytes.end } else { ROWS * w.stride };
            let ahead = Ahead::new(w.w, next, w.stride, bytes.len(), ROWS, tokens.len());
            #[allow(unsafe_code)]
            // SAFETY: the instruction set was just compared with what the CPU has.
            unsafe {
                fill(&w, bytes, &mut self.panel)
            };
            debug_assert!(
                self.panel.codes[..len / 4].as_flattened().iter().all(|c| (*c as i8).unsigned_abs() <= spec.most)
            );
            let by_256 = x.block == Act::Q8K.block();
            #[cfg(target_arch = "x86_64")]
            if let Some(code_tiles) = &code_tiles {
                let (chunk, group, mins) = (at / CHUNK, spec.group, spec.mins);
                let part = TilePanel { panel: &self.panel, chunk, len, group, mins, by_256 };
                #[allow(unsafe_code)]
                // SAFETY: as above.
                unsafe {
                    self.tiles.add_codes(code_tiles, &part, &mut self.sums, ahead)
                };
                continue;
            }
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            // SAFETY: as above.
            unsafe {
                match isa {
                    Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => offsets_avx512(&mut self.panel, spec.group, len),
                    Isa::AvxVnni => offsets_avx2(&mut self.panel, spec.group, len),
                    Isa::Avx2 if spec.most <= 64 => offsets_avx2(&mut self.panel, spec.group, len),
                    _ => {} // these take activations as they are, not shifted
                }
            };
            let columns = &x.columns[at / CHUNK * x.rows..][..x.rows];
            let part = PanelProduct {
                panel: &self.panel,
                x: columns,
                len,
                group: spec.group,
                most: spec.most,
                mins: spec.mins,
                by_256,
            };
            #[cfg(target_arch = "x86_64")]
            if isa >= Isa::Avx2 {
                #[allow(unsafe_code)]
                // SAFETY: as above.
                unsafe {
                    match isa {
                        Isa::Avx2 => part.multiply_avx2(tokens, &mut self.sums),
                        Isa::AvxVnni if vnni_is_vex() => part.multiply_vnni(tokens, &mut self.sums),
                        Isa::AvxVnni => part.multiply_vnni_evex(tokens, &mut self.sums),
                        _ => part.multiply_avx512(tokens, &mut self.sums, ahead),
                    }
                };
                continue;
            }
            for (&(t, _), sums) in tokens.iter().zip(&mut self.sums) {
                part.multiply(t as usize, sums);
            }
        }
    }
}

/// Whether tiles multiply the format: all but F16 and F32.
#[cfg(target_arch = "x86_64")]
fn has_tiles(ty: &QuantType, isa: Isa) -> bool {
    isa >= Isa::Amx && (ty.panel.is_some() || ty.act == Act::Bf16)
}
