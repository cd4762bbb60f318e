//! The entry to products of weight rows with many tokens, for every format, and a thread's scratch
//! memory for them.

use super::ahead::Ahead;
use super::codes::PanelProduct;
#[cfg(target_arch = "x86_64")]
use super::codes::{offsets_avx2, offsets_avx512};
use super::floats::FloatProduct;
use super::panel::{Panel, ROWS, WeightRows};
use crate::quant::activations::{Act, CHUNK, PanelActs, PanelForm};
use crate::quant::types::QuantType;
use crate::simd::Isa;

/// Scratch memory of one thread: a panel, and the sums of its tokens.
#[derive(Debug)]
pub struct PanelScratch {
    panel: Box<Panel>,
    sums: Vec<[f32; ROWS]>,
}

impl Default for PanelScratch {
    fn default() -> PanelScratch {
        let panel = Panel {
            codes: [[0; 4 * ROWS]; CHUNK / 4],
            scale: [[0.0; ROWS]; CHUNK / 16],
            min: [[0.0; ROWS]; CHUNK / 16],
            offset: [[0; ROWS]; CHUNK / 16],
        };
        PanelScratch { panel: Box::new(panel), sums: Vec::new() }
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
            PanelForm::F32 | PanelForm::Bf16 => {
                let sums = &mut self.sums[..tokens.len()];
                FloatProduct { w, n: x.n, x: x.words, rows: x.rows, tokens }.add(ty.act, isa, sums);
            }
        }
        for (&(_, o), sums) in tokens.iter().zip(&self.sums) {
            out(o, &sums[..w.rows]);
        }
    }

    /// Adds the products of a format of codes to the sums, panel after panel.
    fn panels(&mut self, ty: &QuantType, w: WeightRows<'_>, x: PanelActs<'_>, tokens: &[(u32, u32)], isa: Isa) {
        let spec = ty.panel.as_ref().expect("a format that fills panels");
        let (_, fill) = spec.fill.iter().find(|(i, _)| *i <= isa).expect("the last decoder is scalar");
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
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            // SAFETY: as above.
            unsafe {
                match isa {
                    Isa::Avx512 | Isa::Avx512Bf16 => offsets_avx512(&mut self.panel, spec.group, len),
                    Isa::Avx2 if spec.most <= 64 => offsets_avx2(&mut self.panel, spec.group, len),
                    _ => {} // these take activations as they are, not shifted
                }
            };
            let columns = &x.columns[at / CHUNK * x.rows..][..x.rows];
            let by_256 = x.block == Act::Q8K.block();
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
                    match isa >= Isa::Avx512 {
                        true => part.multiply_avx512(tokens, &mut self.sums, ahead),
                        false => part.multiply_avx2(tokens, &mut self.sums),
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
