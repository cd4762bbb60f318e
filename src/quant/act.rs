//! Activations in the form that a format's kernels multiply with.
//!
//! ```text
//! F32   the row itself
//! Q8    i8 per value, an f32 scale per 32 values
//! Q8K   i8 per value, an f32 scale per 256 values (super-block formats sum whole super-blocks in integers)
//! ```
//! `d = max|x| / 127`, `q = round(x / d)` with ties to even. Both quantized forms carry the sum of `q` over every 16
//! values, which formats with an offset or a minimum multiply with. A step quantizes its input once and every weight row
//! shares it. ggml keeps the Q8 scale as f16 (`block_q8_0`); an f32 costs nothing here and is closer.

use super::tile::{CHUNK, Columns, TileActs};
use crate::simd::{self, Isa};

/// A form of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// As they are.
    F32,
    /// 8 bits, a scale per 32 values.
    Q8,
    /// 8 bits, a scale per 256 values.
    Q8K,
}

impl Act {
    /// Values that share one scale; rows must be a multiple of it. 1 for F32.
    pub fn block(self) -> usize {
        match self {
            Act::F32 => 1,
            Act::Q8 => 32,
            Act::Q8K => 256,
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
}

/// One row of activations, borrowed. For `Act::F32` only `f` is filled, else only the others.
#[derive(Clone, Copy, Debug)]
pub struct ActRow<'a> {
    /// Values in the row.
    pub n: usize,
    /// The values (F32).
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
    act: Option<Act>,
    n: usize,
    q: Vec<i8>,
    columns: Vec<Columns>,
    quads: Vec<Quad>,
    d: Vec<f32>,
    sums: Vec<i16>,
}

impl Acts {
    /// Quantizes `x` (rows of `n` values) into the form `act`. F32 rows are not copied: [`Acts::row`] hands them back.
    pub fn set(&mut self, act: Act, n: usize, x: &[f32]) {
        self.act = Some(act);
        self.n = n;
        if act == Act::F32 {
            return;
        }
        let block = act.block();
        debug_assert!(n.is_multiple_of(block) && x.len().is_multiple_of(n));
        self.q.resize(x.len(), 0);
        self.d.resize(x.len() / block, 0.0);
        self.sums.resize(x.len() / 16, 0);
        quantize(block, x, &mut self.q, &mut self.d, &mut self.sums);
        if x.len() / n >= super::tile::FROM {
            self.turn(block);
        }
        if simd::detected() >= Isa::Avx512 {
            self.quads(block);
        }
    }

    /// Lays the rows out for row kernels.
    fn quads(&mut self, block: usize) {
        let n = self.n;
        self.quads.clear();
        for (row, q) in self.q.chunks_exact(n).enumerate() {
            for (i, q) in q.chunks(Quad::LEN).enumerate() {
                let mut quad = Quad::ZERO;
                for (g, q) in q.as_chunks::<32>().0.iter().enumerate() {
                    let at = row * n + i * Quad::LEN + 32 * g;
                    let g = g + if i * Quad::LEN + 32 * g >= n / 128 * 128 { 4 - n % 128 / 32 } else { 0 };
                    let (unit, to) = (g / 4, g % 4 * 16);
                    for (half, q) in q.as_chunks::<16>().0.iter().enumerate() {
                        quad.q[unit][half][to..to + 16].copy_from_slice(q);
                    }
                    quad.d[g] = self.d[at / block];
                    quad.sums[g] = self.sums[at / 16] as i32 + self.sums[at / 16 + 1] as i32;
                }
                for (lanes, q) in quad.lanes.iter_mut().zip(&quad.q) {
                    for (half, q) in q.iter().enumerate() {
                        for (lane, q) in lanes.iter_mut().zip(q.as_chunks::<4>().0) {
                            lane[half] = q.iter().map(|&q| q as i16).sum();
                        }
                    }
                }
                self.quads.push(quad);
            }
        }
    }

    /// Lays the rows out for panels.
    fn turn(&mut self, block: usize) {
        let (n, rows) = (self.n, self.q.len() / self.n);
        self.columns.resize(n.div_ceil(CHUNK) * rows, Columns::ZERO);
        for (i, to) in self.columns.iter_mut().enumerate() {
            let (c, t) = (i / rows, i % rows);
            let at = t * n + c * CHUNK;
            let len = CHUNK.min(n - c * CHUNK);
            to.u.iter_mut().zip(&self.q[at..at + len]).for_each(|(u, &q)| *u = q as u8 ^ 0x80);
            for (g, d) in to.d.iter_mut().enumerate().take(len / 32) {
                *d = self.d[(at + 32 * g) / block];
            }
            for (g, sum) in to.sums.iter_mut().enumerate().take(len / 16) {
                *sum = self.sums[at / 16 + g] as f32 * if block == CHUNK { 1.0 } else { to.d[g / 2] };
            }
        }
    }

    /// All rows, for panels; only after [`Acts::set`] with at least [`super::tile::FROM`] rows of a quantized form.
    pub fn tile(&self) -> TileActs<'_> {
        let block = self.act.map_or(1, Act::block);
        TileActs { n: self.n, block, rows: self.q.len() / self.n, columns: &self.columns }
    }

    /// Row `t`; `x` is the same slice that [`Acts::set`] was given.
    pub fn row<'a>(&'a self, t: usize, x: &'a [f32]) -> ActRow<'a> {
        let n = self.n;
        match self.act {
            None | Some(Act::F32) => ActRow { n, f: &x[t * n..(t + 1) * n], q: &[], d: &[], sums: &[], quads: &[] },
            Some(act) => {
                let (nd, ns) = (n / act.block(), n / 16);
                let quads = self.quads.chunks_exact(n.div_ceil(Quad::LEN)).nth(t).unwrap_or(&[]);
                ActRow {
                    n,
                    f: &[],
                    q: &self.q[t * n..(t + 1) * n],
                    d: &self.d[t * nd..(t + 1) * nd],
                    sums: &self.sums[t * ns..(t + 1) * ns],
                    quads,
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
        // SAFETY: isa() says that this CPU has AVX2.
        unsafe {
            quantize_avx2(block, x, q, d, sums)
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
