//! Rows of activations, kept in the forms that kernels multiply with.
//!
//! ```text
//! F32   the row itself
//! F16   the row itself, for F16 weights
//! Bf16  the row itself, for BF16 weights; for many tokens BF16, where the CPU multiplies that
//! Q8    i8 per value, an f32 scale per 32 values
//! Q8K   i8 per value, an f32 scale per 256 values (super-block formats sum whole super-blocks in
//!       integers)
//! ```
//! `d = max|x| / 127`, `q = round(x / d)` with ties to even. Both quantized forms carry the sum of
//! `q` over every 16 values, which formats with an offset or a minimum multiply with. A step
//! quantizes its input once and every weight row shares it. ggml keeps the Q8 scale as f16
//! (`block_q8_0`); an f32 costs nothing here and is closer.
//!
//! Row kernels and panels read different layouts. Each is made in disjoint parts, so that a caller
//! can give them to several threads. Quantizing a block gives the same bits in whichever part it is
//! done.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::forms::{Act, ActBlock, ActRow, CHUNK, PanelActs, PanelColumns, PanelForm, PanelWords};
use super::quantize::{quantize, quantize_scalar};
#[cfg(target_arch = "x86_64")]
use super::quantize::{quantize_avx2, quantize_avx512};
use crate::simd::{self, Isa};

/// Rows of activations in one form. The buffers are kept between steps, so that their memory is
/// reused.
#[derive(Debug, Default)]
pub struct Acts {
    /// Products use row kernels only, so that the bits of a token do not depend on other tokens.
    pub rows_only: bool,
    act: Option<Act>,
    n: usize,
    /// Quantized values for row kernels.
    q: Vec<i8>,
    d: Vec<f32>,
    sums: Vec<i16>,
    act_blocks: Vec<ActBlock>,
    /// Rows in the layout for many tokens: `columns` for codes, `words` for floats; `stamp` is
    /// theirs alone.
    stamp: u64,
    rows: usize,
    columns: Vec<PanelColumns>,
    words: Vec<PanelWords>,
    /// How many of both there are; the others are left from longer rows.
    laid_out: (usize, usize),
}

/// Values in a part: enough work to be worth handing to a thread.
const PART: usize = 16 * 1024;

impl Acts {
    /// Quantizes `x` (rows of `n` values) into the form `act`, for row kernels. Rows of floats are
    /// not copied: [`Acts::row`] hands them back.
    pub fn set(&mut self, act: Act, n: usize, x: &[f32]) {
        self.row_parts(act, n, x).for_each(RowPart::fill);
    }

    /// Writes `x` in a layout for many tokens.
    pub fn set_panels(&mut self, act: Act, form: PanelForm, n: usize, x: &[f32]) {
        self.panel_parts(act, form, n, x).for_each(PanelPart::fill);
    }

    /// Splits the work of [`Acts::set`] into parts. The caller must fill every part.
    pub fn row_parts<'a>(&'a mut self, act: Act, n: usize, x: &'a [f32]) -> impl Iterator<Item = RowPart<'a>> {
        (self.act, self.n) = (Some(act), n);
        let block = act.block();
        let len = if block == 1 { 0 } else { x.len() };
        debug_assert!(n.is_multiple_of(block) && len.is_multiple_of(n.max(1)));
        self.q.resize(len, 0);
        self.d.resize(len / block, 0.0);
        self.sums.resize(len / 16, 0);
        let act_blocks = if simd::detected() >= Isa::Avx512 { len / n.max(1) * n.div_ceil(ActBlock::LEN) } else { 0 };
        self.act_blocks.resize(act_blocks, ActBlock::ZERO);
        let rows = (PART / n.max(1)).max(1);
        let q = self.q.chunks_mut(rows * n).zip(x.chunks(rows * n));
        let more = self.d.chunks_mut(rows * n / block).zip(self.sums.chunks_mut(rows * n / 16));
        let mut act_blocks = self.act_blocks.chunks_mut(rows * n.div_ceil(ActBlock::LEN));
        q.zip(more).map(move |((q, x), (d, sums))| {
            let act_blocks = act_blocks.next().unwrap_or_default();
            RowPart { n, block, x, q, d, sums, act_blocks }
        })
    }

    /// Splits the work of [`Acts::set_panels`] into parts. The caller must fill every part. Codes and
    /// words of the same rows may be laid out both, one after the other.
    pub fn panel_parts<'a>(
        &'a mut self,
        act: Act,
        form: PanelForm,
        n: usize,
        x: &'a [f32],
    ) -> impl Iterator<Item = PanelPart<'a>> {
        static STAMP: AtomicU64 = AtomicU64::new(1);
        let (block, rows) = (act.block(), x.len() / n.max(1));
        (self.act, self.n, self.rows) = (Some(act), n, rows);
        let chunk = form.columns();
        let len = n.div_ceil(chunk) * rows;
        let (columns, words) = if form == PanelForm::Codes { (len, 0) } else { (0, len) };
        // What is there is kept: every entry is written again, by all threads, and zeros would be written by one.
        if form == PanelForm::Codes {
            self.columns.resize(self.columns.len().max(len), PanelColumns::ZERO);
            self.laid_out.0 = len;
        } else {
            self.stamp = STAMP.fetch_add(1, Relaxed);
            self.words.resize(self.words.len().max(len), PanelWords::ZERO);
            self.laid_out.1 = len;
        }
        let each = PART / chunk;
        let columns = self.columns[..columns].chunks_mut(each).map(move |to| To::PanelColumns(block, to));
        let words = self.words[..words].chunks_mut(each).map(move |to| To::PanelWords(form, to));
        let part = move |(i, to)| PanelPart { x, n, rows, first: i * each, chunk, to };
        columns.chain(words).enumerate().map(part)
    }

    /// Returns all rows in a layout for many tokens, which was the last but for others of the same
    /// rows that [`Acts::set_panels`] was called for.
    ///
    /// # Panics
    /// If it was not called with this layout and as many rows.
    pub fn panels(&self, form: PanelForm) -> PanelActs<'_> {
        let (block, stamp, n, rows) = (self.act.map_or(1, Act::block), self.stamp, self.n, self.rows);
        let (columns, words) = self.laid_out;
        let laid_out = if form == PanelForm::Codes { columns } else { words };
        assert!(laid_out == n.div_ceil(form.columns()) * rows, "activations laid out as {form:?}");
        PanelActs { stamp, n, block, rows, form, columns: &self.columns[..columns], words: &self.words[..words] }
    }

    /// Returns row `t` for row kernels; `x` must be the slice that [`Acts::set`] was given.
    pub fn row<'a>(&'a self, t: usize, x: &'a [f32]) -> ActRow<'a> {
        let n = self.n;
        let block = self.act.map_or(1, Act::block);
        if block == 1 {
            return ActRow { n, f: &x[t * n..(t + 1) * n], q: &[], d: &[], sums: &[], act_blocks: &[] };
        }
        let (nd, ns, nq) = (n / block, n / 16, n.div_ceil(ActBlock::LEN));
        ActRow {
            n,
            f: &[],
            q: &self.q[t * n..(t + 1) * n],
            d: &self.d[t * nd..(t + 1) * nd],
            sums: &self.sums[t * ns..(t + 1) * ns],
            act_blocks: if self.act_blocks.is_empty() { &[] } else { &self.act_blocks[t * nq..(t + 1) * nq] },
        }
    }
}

/// Rows for row kernels that are still to be quantized.
#[derive(Debug)]
pub struct RowPart<'a> {
    n: usize,
    block: usize,
    x: &'a [f32],
    q: &'a mut [i8],
    d: &'a mut [f32],
    sums: &'a mut [i16],
    act_blocks: &'a mut [ActBlock],
}

impl RowPart<'_> {
    /// Quantizes the rows of this part.
    pub fn fill(self) {
        quantize(self.block, self.x, self.q, self.d, self.sums);
        for (i, act_block) in self.act_blocks.iter_mut().enumerate() {
            let each = self.n.div_ceil(ActBlock::LEN);
            act_block.set(self.n, i % each * ActBlock::LEN, i / each * self.n, self.block, (self.q, self.d, self.sums));
        }
    }
}

/// Columns of rows that are still to be written in the layout for many tokens.
#[derive(Debug)]
pub struct PanelPart<'a> {
    x: &'a [f32],
    n: usize,
    rows: usize,
    /// Index of the first entry of `to` among all entries.
    first: usize,
    chunk: usize,
    to: To<'a>,
}

#[derive(Debug)]
enum To<'a> {
    /// Codes; the number counts the values that share a scale.
    PanelColumns(usize, &'a mut [PanelColumns]),
    PanelWords(PanelForm, &'a mut [PanelWords]),
}

impl PanelPart<'_> {
    /// Writes the columns of this part.
    pub fn fill(self) {
        #[cfg(target_arch = "x86_64")]
        if simd::isa() >= Isa::Avx2 {
            #[allow(unsafe_code)]
            // SAFETY: isa() names an instruction set that this CPU has.
            unsafe {
                if simd::isa() >= Isa::Avx512 { self.fill_avx512() } else { self.fill_avx2() }
            };
            return;
        }
        self.fill_by(quantize_scalar);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn fill_avx512(self) {
        self.fill_by(|block, x, q, d, sums| quantize_avx512(block, x, q, d, sums));
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn fill_avx2(self) {
        self.fill_by(|block, x, q, d, sums| quantize_avx2(block, x, q, d, sums));
    }

    #[inline(always)] // so that it is compiled once per instruction set
    fn fill_by(self, quantize: impl Fn(usize, &[f32], &mut [i8], &mut [f32], &mut [i16])) {
        let (x, n, rows, first, chunk) = (self.x, self.n, self.rows, self.first, self.chunk);
        let from = |i: usize| {
            let (c, t) = ((first + i) / rows, (first + i) % rows);
            &x[t * n + c * chunk..t * n + n.min((c + 1) * chunk)]
        };
        match self.to {
            To::PanelWords(form, to) => to.iter_mut().enumerate().for_each(|(i, to)| to.set(form, from(i))),
            To::PanelColumns(block, to) => {
                for (i, to) in to.iter_mut().enumerate() {
                    let x = from(i);
                    let (mut q, mut d, mut sums) = ([0; CHUNK], [0.0; CHUNK / 32], [0; CHUNK / 16]);
                    quantize(block, x, &mut q[..x.len()], &mut d[..x.len() / block], &mut sums[..x.len() / 16]);
                    to.u.iter_mut().zip(q).for_each(|(u, q)| *u = q as u8 ^ 0x80);
                    if block == CHUNK {
                        d = [d[0]; CHUNK / 32];
                    }
                    to.d = d;
                    for (g, (to, sum)) in to.sums.iter_mut().zip(sums).enumerate() {
                        *to = sum as f32 * if block == CHUNK { 1.0 } else { d[g / 2] };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::activations::quantize::tests::values;
    use crate::quant::rng::Rng;

    #[test]
    fn panels_see_what_row_kernels_see() {
        let mut rng = Rng(5);
        for round in 0..if cfg!(miri) { 2 } else { 60 } {
            let act = [Act::Q8, Act::Q8K][round % 2];
            let most = if cfg!(miri) { 4 } else { 90 };
            let (n, rows) = (act.block() * (1 + rng.below(12)), 1 + rng.below(most));
            let x = values(&mut rng, n * rows);
            let mut acts = Acts::default();
            acts.set(act, n, &x);
            acts.set_panels(act, PanelForm::Codes, n, &x);
            let panels = acts.panels(PanelForm::Codes);
            for (t, k) in (0..rows).flat_map(|t| (0..n).map(move |k| (t, k))) {
                let (row, columns) = (acts.row(t, &x), &panels.columns[k / CHUNK * rows + t]);
                let at = k % CHUNK;
                let scale = if act == Act::Q8 { row.d[k / 32] } else { 1.0 };
                assert_eq!(columns.u[at] as i32 - 128, row.q[k] as i32);
                assert_eq!(columns.d[at / 32].to_bits(), row.d[k / act.block()].to_bits());
                assert_eq!(columns.sums[at / 16].to_bits(), (row.sums[k / 16] as f32 * scale).to_bits());
            }
        }
    }
}
