//! Activations in the form that a format's kernels multiply with.
//!
//! ```text
//! F32   the row itself
//! F16   the row itself, for F16 weights
//! Bf16  the row itself, for BF16 weights; for many tokens BF16, where the CPU multiplies that
//! Q8    i8 per value, an f32 scale per 32 values
//! Q8K   i8 per value, an f32 scale per 256 values (super-block formats sum whole super-blocks in integers)
//! ```
//! `d = max|x| / 127`, `q = round(x / d)` with ties to even. Both quantized forms carry the sum of `q` over every 16
//! values, which formats with an offset or a minimum multiply with. A step quantizes its input once and every weight row
//! shares it. ggml keeps the Q8 scale as f16 (`block_q8_0`); an f32 costs nothing here and is closer.
//!
//! Row kernels and panels want different layouts. Either is made in parts that do not touch, so that a caller with
//! threads can share them out; quantizing a block gives the same bits wherever it is done.

use super::floats::{Form, Words};
use super::tile::{CHUNK, Columns, TileActs};
use crate::simd::{self, Isa};

/// A form of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// As they are, one token at a time.
    F32,
    /// As they are, for F16 weights.
    F16,
    /// As they are, for BF16 weights; for many tokens rounded to BF16 where the CPU multiplies that.
    Bf16,
    /// 8 bits, a scale per 32 values.
    Q8,
    /// 8 bits, a scale per 256 values.
    Q8K,
}

impl Act {
    /// Values that share one scale; rows must be a multiple of it. 1 for floats.
    pub fn block(self) -> usize {
        match self {
            Act::F32 | Act::F16 | Act::Bf16 => 1,
            Act::Q8 => 32,
            Act::Q8K => 256,
        }
    }

    /// What many tokens at once are made into.
    pub fn form(self, isa: Isa) -> Form {
        match self {
            Act::Bf16 if isa >= Isa::Avx512Bf16 => Form::Bf16,
            Act::F32 | Act::F16 | Act::Bf16 => Form::F32,
            Act::Q8 | Act::Q8K => Form::Codes,
        }
    }
}

/// 512 activations as the row kernels of AVX-512 take them, in whole cache lines. Where a row is not a whole number of
/// 128, zeros stand before its last part, so that it meets the last 128 weights, of which some were met before.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Quad {
    /// Four times 128: the first 16 of every 32, then the second 16 of every 32.
    pub q: [[[i8; 64]; 2]; 4],
    /// The scale of every 32.
    pub d: [f32; 16],
    /// The sum of `q` over every 32.
    pub sums: [i32; 16],
    /// The sums over what meets in a lane of 32 bits when the two vectors of each 128 are multiplied: four of the first,
    /// four of the second.
    pub lanes: [[[i16; 2]; 16]; 4],
}

impl Quad {
    const ZERO: Quad = Quad { q: [[[0; 64]; 2]; 4], d: [0.0; 16], sums: [0; 16], lanes: [[[0; 2]; 16]; 4] };
    /// Activations in one.
    pub const LEN: usize = 512;

    /// The activations from column `from` on of the row of `n` that begins at `row` of `q`.
    fn set(&mut self, n: usize, from: usize, row: usize, block: usize, (q, d, sums): (&[i8], &[f32], &[i16])) {
        let len = Quad::LEN.min(n - from);
        if len < Quad::LEN {
            self.clone_from(&Quad::ZERO);
        }
        for (g, q) in q[row + from..][..len].as_chunks::<32>().0.iter().enumerate() {
            let at = row + from + 32 * g;
            let g = g + if from + 32 * g >= n / 128 * 128 { 4 - n % 128 / 32 } else { 0 };
            let (unit, to) = (g / 4, g % 4 * 16);
            for (half, q) in q.as_chunks::<16>().0.iter().enumerate() {
                self.q[unit][half][to..to + 16].copy_from_slice(q);
            }
            self.d[g] = d[at / block];
            self.sums[g] = sums[at / 16] as i32 + sums[at / 16 + 1] as i32;
        }
        for (lanes, q) in self.lanes.iter_mut().zip(&self.q) {
            for (half, q) in q.iter().enumerate() {
                for (lane, q) in lanes.iter_mut().zip(q.as_chunks::<4>().0) {
                    lane[half] = q.iter().map(|&q| q as i16).sum();
                }
            }
        }
    }
}

/// One row of activations, borrowed. For floats only `f` is filled, else only the others.
#[derive(Clone, Copy, Debug)]
pub struct ActRow<'a> {
    /// Values in the row.
    pub n: usize,
    /// The values (floats).
    pub f: &'a [f32],
    /// The quantized values (n).
    pub q: &'a [i8],
    /// The scales (n / block).
    pub d: &'a [f32],
    /// The sum of `q` over every 16 values (n / 16).
    pub sums: &'a [i16],
    /// All of that once more, where the CPU has AVX-512 (n / 512, rounded up).
    pub quads: &'a [Quad],
}

/// Rows of activations in one form, kept between steps so that memory is reused.
#[derive(Debug, Default)]
pub struct Acts {
    /// Products take row kernels only, so that the bits of each do not depend on others.
    pub rows_only: bool,
    act: Option<Act>,
    n: usize,
    /// For row kernels.
    q: Vec<i8>,
    d: Vec<f32>,
    sums: Vec<i16>,
    quads: Vec<Quad>,
    /// For many tokens at once, of one form or the other.
    rows: usize,
    form: Option<Form>,
    columns: Vec<Columns>,
    words: Vec<Words>,
}

/// Values in a part: enough to be worth handing to a thread.
const PART: usize = 16 * 1024;

impl Acts {
    /// Quantizes `x` (rows of `n` values) into the form `act`, for row kernels. Rows of floats are not copied:
    /// [`Acts::row`] hands them back.
    pub fn set(&mut self, act: Act, n: usize, x: &[f32]) {
        self.row_parts(act, n, x).for_each(RowPart::fill);
    }

    /// Lays `x` out for panels of this instruction set.
    pub fn set_panels(&mut self, act: Act, isa: Isa, n: usize, x: &[f32]) {
        self.panel_parts(act, isa, n, x).for_each(PanelPart::fill);
    }

    /// The work of [`Acts::set`]; all parts must be filled.
    pub fn row_parts<'a>(&'a mut self, act: Act, n: usize, x: &'a [f32]) -> impl Iterator<Item = RowPart<'a>> {
        (self.act, self.n) = (Some(act), n);
        let block = act.block();
        let len = if block == 1 { 0 } else { x.len() };
        debug_assert!(n.is_multiple_of(block) && len.is_multiple_of(n.max(1)));
        self.q.resize(len, 0);
        self.d.resize(len / block, 0.0);
        self.sums.resize(len / 16, 0);
        let quads = if simd::detected() >= Isa::Avx512 { len / n.max(1) * n.div_ceil(Quad::LEN) } else { 0 };
        self.quads.resize(quads, Quad::ZERO);
        let rows = (PART / n.max(1)).max(1);
        let q = self.q.chunks_mut(rows * n).zip(x.chunks(rows * n));
        let more = self.d.chunks_mut(rows * n / block).zip(self.sums.chunks_mut(rows * n / 16));
        let mut quads = self.quads.chunks_mut(rows * n.div_ceil(Quad::LEN));
        q.zip(more).map(move |((q, x), (d, sums))| {
            let quads = quads.next().unwrap_or_default();
            RowPart { n, block, x, q, d, sums, quads }
        })
    }

    /// The work of [`Acts::set_panels`]; all parts must be filled.
    pub fn panel_parts<'a>(
        &'a mut self,
        act: Act,
        isa: Isa,
        n: usize,
        x: &'a [f32],
    ) -> impl Iterator<Item = PanelPart<'a>> {
        let (block, form, rows) = (act.block(), act.form(isa), x.len() / n.max(1));
        (self.act, self.n, self.rows, self.form) = (Some(act), n, rows, Some(form));
        let chunk = form.columns();
        let len = n.div_ceil(chunk) * rows;
        let (columns, words) = if form == Form::Codes { (len, 0) } else { (0, len) };
        self.columns.resize(columns, Columns::ZERO);
        self.words.resize(words, Words::ZERO);
        let each = PART / chunk;
        let columns = self.columns.chunks_mut(each).map(move |to| To::Columns(block, to));
        let words = self.words.chunks_mut(each).map(move |to| To::Words(form, to));
        let part = move |(i, to)| PanelPart { x, n, rows, first: i * each, chunk, to };
        columns.chain(words).enumerate().map(part)
    }

    /// All rows, for panels; only after [`Acts::set_panels`].
    pub fn tile(&self) -> TileActs<'_> {
        let (block, form) = (self.act.map_or(1, Act::block), self.form.expect("activations laid out for panels"));
        TileActs { n: self.n, block, rows: self.rows, form, columns: &self.columns, words: &self.words }
    }

    /// Row `t`; `x` is the same slice that [`Acts::set`] was given.
    pub fn row<'a>(&'a self, t: usize, x: &'a [f32]) -> ActRow<'a> {
        let n = self.n;
        let block = self.act.map_or(1, Act::block);
        if block == 1 {
            return ActRow { n, f: &x[t * n..(t + 1) * n], q: &[], d: &[], sums: &[], quads: &[] };
        }
        let (nd, ns, nq) = (n / block, n / 16, n.div_ceil(Quad::LEN));
        ActRow {
            n,
            f: &[],
            q: &self.q[t * n..(t + 1) * n],
            d: &self.d[t * nd..(t + 1) * nd],
            sums: &self.sums[t * ns..(t + 1) * ns],
            quads: if self.quads.is_empty() { &[] } else { &self.quads[t * nq..(t + 1) * nq] },
        }
    }
}

/// Some rows for row kernels, still to be quantized.
#[derive(Debug)]
pub struct RowPart<'a> {
    n: usize,
    block: usize,
    x: &'a [f32],
    q: &'a mut [i8],
    d: &'a mut [f32],
    sums: &'a mut [i16],
    quads: &'a mut [Quad],
}

impl RowPart<'_> {
    /// Quantizes them.
    pub fn fill(self) {
        quantize(self.block, self.x, self.q, self.d, self.sums);
        for (i, quad) in self.quads.iter_mut().enumerate() {
            let each = self.n.div_ceil(Quad::LEN);
            quad.set(self.n, i % each * Quad::LEN, i / each * self.n, self.block, (self.q, self.d, self.sums));
        }
    }
}

/// Some columns of some rows, still to be laid out for panels.
#[derive(Debug)]
pub struct PanelPart<'a> {
    x: &'a [f32],
    n: usize,
    rows: usize,
    /// Where `to` begins among all.
    first: usize,
    chunk: usize,
    to: To<'a>,
}

#[derive(Debug)]
enum To<'a> {
    /// With the values that share a scale.
    Columns(usize, &'a mut [Columns]),
    Words(Form, &'a mut [Words]),
}

impl PanelPart<'_> {
    /// Lays them out.
    pub fn fill(self) {
        #[cfg(target_arch = "x86_64")]
        if simd::isa() >= Isa::Avx2 {
            #[allow(unsafe_code)]
            // SAFETY: isa() says what this CPU has.
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

    #[inline(always)] // so that it is compiled anew for each instruction set
    fn fill_by(self, quantize: impl Fn(usize, &[f32], &mut [i8], &mut [f32], &mut [i16])) {
        let (x, n, rows, first, chunk) = (self.x, self.n, self.rows, self.first, self.chunk);
        let from = |i: usize| {
            let (c, t) = ((first + i) / rows, (first + i) % rows);
            &x[t * n + c * chunk..t * n + n.min((c + 1) * chunk)]
        };
        match self.to {
            To::Words(form, to) => to.iter_mut().enumerate().for_each(|(i, to)| to.set(form, from(i))),
            To::Columns(block, to) => {
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

/// Quantizes whole blocks of `block` values: `q`, a scale per block, a sum per 16 values.
pub fn quantize(block: usize, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    #[cfg(target_arch = "x86_64")]
    if simd::isa() >= Isa::Avx2 {
        #[allow(unsafe_code)]
        // SAFETY: isa() says what this CPU has.
        unsafe {
            if simd::isa() >= Isa::Avx512 {
                quantize_avx512(block, x, q, d, sums)
            } else {
                quantize_avx2(block, x, q, d, sums)
            }
        };
        return;
    }
    quantize_scalar(block, x, q, d, sums);
}

#[inline(always)] // so that the form below is compiled anew for its instruction set
fn quantize_scalar(block: usize, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    for (b, x) in x.chunks_exact(block).enumerate() {
        let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let inv = if max > 0.0 { 127.0 / max } else { 0.0 };
        d[b] = max / 127.0;
        for (q, x) in q[b * block..].iter_mut().zip(x) {
            *q = (x * inv).round_ties_even().clamp(-127.0, 127.0) as i8; // 127 / a tiny max may overflow
        }
    }
    for (s, q) in sums.iter_mut().zip(q.chunks_exact(16)) {
        *s = q.iter().map(|&q| q as i16).sum();
    }
}

/// The scalar form, compiled for AVX2: the compiler vectorises it well and the results are the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_avx2(block: usize, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    quantize_scalar(block, x, q, d, sums);
}

/// The same bits, 256 values at a time: eight blocks or one. A NaN counts for nothing and becomes 0, as in the scalar
/// form.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn quantize_avx512(block: usize, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let (x256, x_rest) = x.as_chunks::<CHUNK>();
    let (q256, q_rest) = q.as_chunks_mut::<CHUNK>();
    let (sums256, sums_rest) = sums.as_chunks_mut::<16>();
    let (d256, d_rest) = d.split_at_mut(x256.len() * CHUNK / block);
    let max_of = |x: &[f32; 16], m: __m512| _mm512_max_ps(_mm512_abs_ps(load_f32x16(x)), m); // m where x is NaN
    let zero = _mm512_setzero_ps();
    for (b, x) in x256.iter().enumerate() {
        let (x, q) = (x.as_chunks::<16>().0, q256[b].as_chunks_mut::<64>().0);
        let mut inv = [zero; 8];
        let scale = |max: f32, d: &mut f32| {
            *d = max / 127.0;
            _mm512_set1_ps(if max > 0.0 { 127.0 / max } else { 0.0 })
        };
        if block == CHUNK {
            let mut max = [zero; 4];
            for (i, x) in x.iter().enumerate() {
                max[i % 4] = max_of(x, max[i % 4]);
            }
            let max = _mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3]));
            inv = [scale(_mm512_reduce_max_ps(max), &mut d256[b]); 8];
        } else {
            for (i, d) in d256[b * 8..][..8].iter_mut().enumerate() {
                let max = _mm512_reduce_max_ps(max_of(&x[2 * i], max_of(&x[2 * i + 1], zero)));
                inv[i] = scale(max, d);
            }
        }
        let mut packed = [_mm512_setzero_si512(); 4];
        for (i, packed) in packed.iter_mut().enumerate() {
            let four: [__m512i; 4] = std::array::from_fn(|j| {
                let v = _mm512_mul_ps(load_f32x16(&x[4 * i + j]), inv[2 * i + j / 2]);
                let most = _mm512_set1_ps(127.0);
                let near = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-127.0)), most);
                _mm512_maskz_cvtps_epi32(_mm512_cmpord_ps_mask(v, v), near)
            });
            *packed = pack_i32x64(four);
            store_i8x64(&mut q[i], *packed);
        }
        sum_by_16(packed, &mut sums256[b]);
    }
    quantize_scalar(block, x_rest, q_rest, d_rest, sums_rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Rng;

    /// Values with everything that could differ: ties, zeros, blocks of zeros, subnormals, infinities, NaN.
    fn values(rng: &mut Rng, n: usize) -> Vec<f32> {
        let kind = rng.below(6);
        let one = |i: usize| match (kind, rng.below(40)) {
            (0, _) => (rng.below(255) as f32 - 127.0) * 0.5,
            (1, _) => 0.0,
            (2, _) => rng.normal() * 1e-41,
            (3, 0) => f32::NAN,
            (3, 1) => -0.0,
            (4, 0) if i.is_multiple_of(3) => [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX][rng.below(4)],
            _ => rng.normal(),
        };
        (0..n).map(one).collect()
    }

    type Quantize = fn(usize, &[f32], &mut [i8], &mut [f32], &mut [i16]);

    #[test]
    fn every_instruction_set_quantizes_to_the_same_bits() {
        let mut rng = Rng(4);
        for round in 0..400 {
            let block = [32, 256][round % 2];
            let n = block * (1 + rng.below(20));
            let x = values(&mut rng, n);
            let run = |f: Quantize| {
                let (mut q, mut d, mut sums) = (vec![0; n], vec![0.0; n / block], vec![0; n / 16]);
                f(block, &x, &mut q, &mut d, &mut sums);
                (q, d.iter().map(|d: &f32| d.to_bits()).collect::<Vec<_>>(), sums)
            };
            assert!(run(quantize) == run(quantize_scalar), "block {block}, {n} values, round {round}");
        }
    }

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
            acts.set_panels(act, simd::isa(), n, &x);
            let tile = acts.tile();
            for (t, k) in (0..rows).flat_map(|t| (0..n).map(move |k| (t, k))) {
                let (row, columns) = (acts.row(t, &x), &tile.columns[k / CHUNK * rows + t]);
                let at = k % CHUNK;
                let scale = if act == Act::Q8 { row.d[k / 32] } else { 1.0 };
                assert_eq!(columns.u[at] as i32 - 128, row.q[k] as i32);
                assert_eq!(columns.d[at / 32].to_bits(), row.d[k / act.block()].to_bits());
                assert_eq!(columns.sums[at / 16].to_bits(), (row.sums[k / 16] as f32 * scale).to_bits());
            }
        }
    }
}
