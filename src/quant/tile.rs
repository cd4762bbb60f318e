//! Many tokens at once: blocks of any integer format become a panel of plain 8-bit codes, and one kernel multiplies
//! panels. Formats of floats share the frame and have nothing to decode: floats.rs.
//!
//! ```text
//! panel of 32 rows x 256 columns:   for every 4 columns: 32 x (4 codes, i8), row after row        (a "step", 128 bytes)
//!                                   for every group of 16, 32 or 256 columns: 32 scales (f32), 32 offsets (i32)
//!                                   for every group, or every 16 columns of 256: 32 minimums (f32)
//! w[r][k]  = scale[r][k / group] * code[r][k] - min[r][k / group]
//! out[t][r] = sum over groups of  d[t] * (scale[r] * sum_k code * q[t][k] - min[r] * sum_k q[t][k])
//! ```
//! Decoding a block costs about as much as multiplying it with one or two tokens, so a panel is made once and used for
//! all tokens that share the rows. It stays in the first-level cache meanwhile; the tokens' sums wait in memory, which
//! costs a load and a store per 256 columns. `vpdpbusd` multiplies unsigned by signed bytes: the activations are shifted
//! by 128 and the panel's offsets, `-128 * sum of the group's codes`, take that off again, exactly, in integers.
//! Where a code times the integer scale of its sub-block fits 8 bits, that product is the panel's code and all 256 columns
//! are one group: a sixth less to do per token (Q2_K).

use super::floats::{Form, Product, Words};
use super::lanes::Lanes;
use super::{QuantType, act::Act};
use crate::simd::Isa;

/// Rows of a panel.
pub const ROWS: usize = 32;
/// Columns of a panel.
pub const CHUNK: usize = 256;
/// Tokens that are multiplied together.
const TOKENS: usize = 6;

/// Decoded rows: [`ROWS`] rows of up to [`CHUNK`] columns.
#[derive(Debug)]
#[repr(align(64))]
pub struct Panel {
    codes: [[u8; 4 * ROWS]; CHUNK / 4],
    scale: [[f32; ROWS]; CHUNK / 16],
    min: [[f32; ROWS]; CHUNK / 16],
    offset: [[i32; ROWS]; CHUNK / 16],
}

/// Half of a panel's rows, as decoders fill them.
#[derive(Debug)]
pub struct Half<'a> {
    panel: &'a mut Panel,
    /// 0 or 1.
    half: usize,
    /// The step and the group that the block begins with.
    step: usize,
    group: usize,
}

impl Half<'_> {
    /// Columns `4 * step..4 * step + 4` of the block.
    #[inline(always)]
    pub fn codes(&mut self, step: usize, codes: impl Lanes) {
        let to = &mut self.panel.codes[self.step + step].as_chunks_mut::<64>().0[self.half];
        codes.store(to);
    }

    /// What the codes of the block's group `g` are multiplied with (f32).
    #[inline(always)]
    pub fn scale(&mut self, g: usize, scale: impl Lanes) {
        put(&mut self.panel.scale[self.group + g], self.half, scale);
    }

    /// What is then taken off the weights of the block's group `g` (f32).
    #[inline(always)]
    pub fn min(&mut self, g: usize, min: impl Lanes) {
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
pub struct Source<'a> {
    /// The weights, from the first row's first block on.
    pub w: &'a [u8],
    /// Bytes from a row to the next.
    pub stride: usize,
    /// Rows that there are: 1 to [`ROWS`]. The last stands in for those that are missing.
    pub rows: usize,
}

/// Decodes `(bytes, to)` of the rows into a panel: whole blocks, at most [`CHUNK`] columns.
pub type Fill = unsafe fn(&Source<'_>, std::ops::Range<usize>, &mut Panel);

/// How a format fills panels.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    /// Codes that share a scale: 16, 32 or 256.
    pub group: usize,
    /// The largest size of a code.
    pub most: u8,
    /// Whether it has minimums.
    pub mins: bool,
    /// Best instruction set first, scalar last.
    pub fill: &'static [(Isa, Fill)],
}

impl<'a> Source<'a> {
    /// Row `r`'s bytes and those after it; the last row again where there are fewer.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> &'a [u8] {
        &self.w[r.min(self.rows - 1) * self.stride..]
    }

    /// Where rows `16 * half..16 * half + 16` begin.
    #[inline(always)]
    pub(super) fn starts(&self, half: usize) -> [usize; 16] {
        let mut starts = [0; 16];
        for (r, start) in starts.iter_mut().enumerate() {
            *start = (half * 16 + r).min(self.rows - 1) * self.stride;
        }
        starts
    }

    /// The block at byte `at` of each of those rows.
    #[inline(always)]
    pub(super) fn blocks<const BYTES: usize>(&self, starts: &[usize; 16], at: usize) -> [&[u8; BYTES]; 16] {
        // A loop: the closure of from_fn is not always inlined into functions of other features.
        let mut blocks = [&[0; BYTES]; 16];
        for (block, start) in blocks.iter_mut().zip(starts) {
            *block = self.w[start + at..].first_chunk().expect("a whole block");
        }
        blocks
    }
}

impl<'a> Half<'a> {
    /// The place of the half's block number `b`, of `block` weights in groups of `group`.
    #[inline(always)]
    pub(super) fn new(panel: &'a mut Panel, half: usize, b: usize, (block, group): (usize, usize)) -> Half<'a> {
        Half { panel, half, step: b * block / 4, group: b * block / group }
    }
}

/// What is multiplied next, asked for while this is: short pieces of rows that lie far apart, which hardware does not
/// foresee. It saves a tenth of a prompt's time (Q4_K and Q6_K from memory: filling panels takes a third as long).
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct Ahead<'a> {
    w: &'a [u8],
    /// The first row's piece; a hint may lie beyond the matrix.
    at: usize,
    stride: usize,
    /// Cache lines of a piece, of all pieces, and of a token's share.
    lines: usize,
    all: usize,
    share: usize,
}

impl<'a> Ahead<'a> {
    /// `rows` pieces of `len` bytes, `stride` apart, the first at `at` of `w`, to be asked for by `tokens`.
    pub(super) fn new(w: &'a [u8], at: usize, stride: usize, len: usize, rows: usize, tokens: usize) -> Ahead<'a> {
        let lines = len.div_ceil(64);
        let all = rows * lines;
        Ahead { w, at, stride, lines, all, share: all.div_ceil(tokens) }
    }

    /// Asks for the share of these tokens.
    #[inline]
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    pub(super) fn ask(&self, tokens: &std::ops::Range<usize>) {
        let from = (tokens.start * self.share).min(self.all);
        let (mut row, mut line) = (from / self.lines, from % self.lines);
        for _ in from..(tokens.end * self.share).min(self.all) {
            crate::simd::x86::prefetch_l2(self.w, self.at + row * self.stride + 64 * line);
            line += 1;
            if line == self.lines {
                (row, line) = (row + 1, 0);
            }
        }
    }
}

/// A format's decoder (generic over [`Lanes`]), compiled for every instruction set: `tile!(FILL, decode, block, group)`.
///
/// The loop stands here and calls the decoder by its name: handed to a function as a value it would be called through a
/// shim that has no vector instructions and that the compiler does not always inline, and then every operation is a call.
macro_rules! tile {
    (loop $s:ident, $bytes:ident, $to:ident, $zero:expr, $decode:ident, $block:expr, $group:expr) => {
        for half in 0..2 {
            let starts = $s.starts(half);
            for (b, at) in $bytes.clone().step_by(BYTES).enumerate() {
                let block = crate::quant::lanes::Block::new($s.blocks(&starts, at), $zero);
                $decode(&block, &mut crate::quant::tile::Half::new($to, half, b, ($block, $group)));
            }
        }
    };
    ($name:ident, $decode:ident, $block:expr, $group:expr) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bitalg,f16c")]
        fn fill_avx512(
            s: &crate::quant::tile::Source<'_>,
            bytes: std::ops::Range<usize>,
            to: &mut crate::quant::tile::Panel,
        ) {
            tile!(loop s, bytes, to, crate::quant::lanes::Wide::zero(), $decode, $block, $group);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn fill_avx2(
            s: &crate::quant::tile::Source<'_>,
            bytes: std::ops::Range<usize>,
            to: &mut crate::quant::tile::Panel,
        ) {
            tile!(loop s, bytes, to, crate::quant::lanes::Plain([0; 16]), $decode, $block, $group);
        }
        fn fill_plain(
            s: &crate::quant::tile::Source<'_>,
            bytes: std::ops::Range<usize>,
            to: &mut crate::quant::tile::Panel,
        ) {
            tile!(loop s, bytes, to, crate::quant::lanes::Plain([0; 16]), $decode, $block, $group);
        }
        static $name: &[(crate::simd::Isa, crate::quant::tile::Fill)] = &[
            #[cfg(target_arch = "x86_64")]
            (crate::simd::Isa::Avx512, fill_avx512),
            #[cfg(target_arch = "x86_64")]
            (crate::simd::Isa::Avx2, fill_avx2),
            (crate::simd::Isa::Scalar, fill_plain),
        ];
    };
}
pub(super) use tile;

/// [`CHUNK`] activations of a row, and what goes with them.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Columns {
    /// `q + 128`.
    pub u: [u8; CHUNK],
    /// The scale of every 32; all the same where 256 share one.
    pub d: [f32; CHUNK / 32],
    /// The sum of `q` over every 16, times the scale where 32 share one.
    pub sums: [f32; CHUNK / 16],
}

impl Columns {
    /// Nothing.
    pub const ZERO: Columns = Columns { u: [0; CHUNK], d: [0.0; CHUNK / 32], sums: [0.0; CHUNK / 16] };
}

/// Activations for many tokens at once.
#[derive(Clone, Copy, Debug)]
pub struct TileActs<'a> {
    /// Values in a row.
    pub n: usize,
    /// Values that share a scale: 32 or 256.
    pub block: usize,
    /// Rows.
    pub rows: usize,
    /// What they were made into.
    pub form: Form,
    /// The first [`CHUNK`] columns of every row, then the next: neighbours in a panel's columns would fall into the same
    /// few sets of the cache if they lay a power of two apart. The last may not be full.
    pub columns: &'a [Columns],
    /// The same for floats, [`super::floats::WORDS`] words at a time.
    pub words: &'a [Words],
}

/// A thread's panel, and its tokens' sums.
#[derive(Debug)]
pub struct Work {
    panel: Box<Panel>,
    sums: Vec<[f32; ROWS]>,
}

impl Default for Work {
    fn default() -> Work {
        let panel = Panel {
            codes: [[0; 4 * ROWS]; CHUNK / 4],
            scale: [[0.0; ROWS]; CHUNK / 16],
            min: [[0.0; ROWS]; CHUNK / 16],
            offset: [[0; ROWS]; CHUNK / 16],
        };
        Work { panel: Box::new(panel), sums: Vec::new() }
    }
}

impl Work {
    /// `out(i)[r] = row r . x row t` for every `(t, i)` of `tokens` and the rows of `w`.
    pub fn multiply(
        &mut self,
        ty: &QuantType,
        w: Source<'_>,
        x: TileActs<'_>,
        tokens: &[(u32, u32)],
        isa: Isa,
        mut out: impl FnMut(u32, &[f32]),
    ) {
        self.sums.clear();
        self.sums.resize(tokens.len().next_multiple_of(2), [0.0; ROWS]);
        let form = ty.act.form(isa);
        assert!(x.form == form, "activations laid out as {:?} are wanted as {form:?}", x.form);
        match form {
            Form::Codes => self.panels(ty, w, x, tokens, isa),
            Form::F32 | Form::Bf16 => {
                let sums = &mut self.sums[..tokens.len()];
                Product { w, n: x.n, x: x.words, rows: x.rows, tokens }.add(ty.act, isa, sums);
            }
        }
        for (&(_, o), sums) in tokens.iter().zip(&self.sums) {
            out(o, &sums[..w.rows]);
        }
    }

    /// Adds the products of a format of codes, panel after panel.
    fn panels(&mut self, ty: &QuantType, w: Source<'_>, x: TileActs<'_>, tokens: &[(u32, u32)], isa: Isa) {
        let tile = ty.tile.as_ref().expect("a format that fills panels");
        let (_, fill) = tile.fill.iter().find(|(i, _)| *i <= isa).expect("a scalar form stands last");
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
                self.panel.codes[..len / 4].as_flattened().iter().all(|c| (*c as i8).unsigned_abs() <= tile.most)
            );
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            // SAFETY: as above.
            unsafe {
                match isa {
                    Isa::Avx512 | Isa::Avx512Bf16 => offsets_avx512(&mut self.panel, tile.group, len),
                    Isa::Avx2 if tile.most <= 64 => offsets_avx2(&mut self.panel, tile.group, len),
                    _ => {} // these take activations as they are, not shifted
                }
            };
            let columns = &x.columns[at / CHUNK * x.rows..][..x.rows];
            let by_256 = x.block == Act::Q8K.block();
            let part = Part {
                panel: &self.panel,
                x: columns,
                len,
                group: tile.group,
                most: tile.most,
                mins: tile.mins,
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

/// Codes that share a minimum, of a format whose groups are so large.
const fn shares_min(group: usize) -> usize {
    if group > 32 { 16 } else { group }
}

/// A panel and the columns of the activations that it meets.
struct Part<'a> {
    panel: &'a Panel,
    /// One for each row of activations.
    x: &'a [Columns],
    len: usize,
    group: usize,
    most: u8,
    mins: bool,
    by_256: bool,
}

impl Part<'_> {
    /// Adds token `t`'s products to `out`: the truth.
    fn multiply(&self, t: usize, out: &mut [f32; ROWS]) {
        let (x, p) = (&self.x[t], self.panel);
        for g in 0..self.len / self.group {
            let k = g * self.group;
            let d = x.d[k / 32];
            for (r, out) in out.iter_mut().enumerate() {
                let mut dot = 0;
                for (step, u) in p.codes[k / 4..].iter().zip(x.u[k..][..self.group].as_chunks::<4>().0) {
                    dot += (0..4).map(|b| step[r * 4 + b] as i8 as i32 * (u[b] as i32 - 128)).sum::<i32>();
                }
                *out += dot as f32 * (p.scale[g][r] * d);
            }
        }
        let of_min = shares_min(self.group);
        for g in 0..if self.mins { self.len / of_min } else { 0 } {
            let k = g * of_min;
            let sum = x.sums[k / 16..][..of_min / 16].iter().sum::<f32>() * if self.by_256 { x.d[k / 32] } else { 1.0 };
            out.iter_mut().zip(&p.min[g]).for_each(|(out, min)| *out -= min * sum);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
    fn multiply_avx512(&self, tokens: &[(u32, u32)], sums: &mut [[f32; ROWS]], ahead: Ahead<'_>) {
        for (i, (some, sums)) in tokens.chunks(TOKENS).zip(sums.chunks_mut(TOKENS)).enumerate() {
            ahead.ask(&(i * TOKENS..i * TOKENS + some.len()));
            let x: [&Columns; TOKENS] = std::array::from_fn(|i| &self.x[some[i.min(some.len() - 1)].0 as usize]);
            macro_rules! tokens {
                ($t:literal) => {
                    match (self.group, self.mins, self.by_256) {
                        (32, false, false) => self.avx512::<$t, 8, false, false>(x, sums),
                        (32, false, true) => self.avx512::<$t, 8, false, true>(x, sums),
                        (32, true, false) => self.avx512::<$t, 8, true, false>(x, sums),
                        (32, true, true) => self.avx512::<$t, 8, true, true>(x, sums),
                        (256, false, _) => self.avx512::<$t, 64, false, true>(x, sums),
                        (256, true, _) => self.avx512::<$t, 64, true, true>(x, sums),
                        (_, false, false) => self.avx512::<$t, 4, false, false>(x, sums),
                        (_, false, true) => self.avx512::<$t, 4, false, true>(x, sums),
                        (_, true, false) => self.avx512::<$t, 4, true, false>(x, sums),
                        (_, true, true) => self.avx512::<$t, 4, true, true>(x, sums),
                    }
                };
            }
            match some.len() {
                1..=2 => tokens!(2),
                3..=4 => tokens!(4),
                _ => tokens!(6),
            }
        }
    }

    /// `T` tokens times the panel; `S` steps to a group, one activation scale for all (`K`) or one per 32 columns.
    /// Twelve integer and twelve float sums, two vectors of codes: 26 of the 32 registers. Indices are masked where a
    /// bounds check would stand in the innermost loops.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn avx512<const T: usize, const S: usize, const MINS: bool, const K: bool>(
        &self,
        x: [&Columns; TOKENS],
        out: &mut [[f32; ROWS]],
    ) {
        use crate::simd::x86::*;
        use std::arch::x86_64::*;
        let p = self.panel;
        let out = &mut out[..T];
        let mut sums = [[_mm512_setzero_ps(); 2]; T];
        if !K {
            for t in 0..T {
                sums[t] = load_f32x32(&out[t]);
            }
        }
        for g in 0..self.len / (S * 4) {
            let g = g & (CHUNK / 4 / S - 1);
            let mut dots = [load_i32x32(&p.offset[g]); T];
            for j in 0..S {
                let [lo, hi] = load_u8x128(&p.codes[g * S + j]);
                for t in 0..T {
                    let u = x[t].u.as_chunks::<4>().0[g * S + j];
                    let u = _mm512_set1_epi32(i32::from_le_bytes(u));
                    dots[t][0] = _mm512_dpbusd_epi32(dots[t][0], u, lo);
                    dots[t][1] = _mm512_dpbusd_epi32(dots[t][1], u, hi);
                }
            }
            let scale = load_f32x32(&p.scale[g]);
            for t in 0..T {
                for h in 0..2 {
                    let mut v = scale[h];
                    if !K {
                        v = _mm512_mul_ps(v, _mm512_set1_ps(x[t].d[g * S / 8]));
                    }
                    sums[t][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][h]), v, sums[t][h]);
                }
            }
            for m in 0..if MINS { 4 * S / shares_min(4 * S) } else { 0 } {
                let min = load_f32x32(&p.min[(g + m) & 15]);
                for t in 0..T {
                    let sums16 = &x[t].sums;
                    let sum = match S {
                        8 => sums16[(2 * g) & 15] + sums16[((2 * g) & 15) + 1],
                        _ => sums16[(g + m) & 15],
                    };
                    for h in 0..2 {
                        sums[t][h] = _mm512_fnmadd_ps(min[h], _mm512_set1_ps(sum), sums[t][h]);
                    }
                }
            }
        }
        for t in 0..T {
            if K {
                let (before, d) = (load_f32x32(&out[t]), _mm512_set1_ps(x[t].d[0]));
                for h in 0..2 {
                    sums[t][h] = _mm512_fmadd_ps(sums[t][h], d, before[h]);
                }
            }
            store_f32x32(&mut out[t], sums[t]);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn multiply_avx2(&self, tokens: &[(u32, u32)], sums: &mut [[f32; ROWS]]) {
        let mut done = 0;
        while done < tokens.len() {
            let (tokens, sums) = (&tokens[done..], &mut sums[done..]);
            let x = |i: usize| &self.x[tokens[i].0 as usize];
            macro_rules! tokens {
                ($x:expr, $t:literal) => {{
                    let sums = sums.first_chunk_mut().expect("as many sums");
                    for half in 0..2 {
                        match (self.group, 64 / self.most, self.mins) {
                            (256, _, true) => self.avx2::<$t, 64, 1, true>($x, half, sums),
                            (256, _, false) => self.avx2::<$t, 64, 1, false>($x, half, sums),
                            (32, 4.., true) => self.avx2::<$t, 8, 4, true>($x, half, sums),
                            (32, 4.., false) => self.avx2::<$t, 8, 4, false>($x, half, sums),
                            (32, 2.., true) => self.avx2::<$t, 8, 2, true>($x, half, sums),
                            (32, 2.., false) => self.avx2::<$t, 8, 2, false>($x, half, sums),
                            (32, 1, true) => self.avx2::<$t, 8, 1, true>($x, half, sums),
                            (32, 1, false) => self.avx2::<$t, 8, 1, false>($x, half, sums),
                            (32, _, true) => self.avx2::<$t, 8, 0, true>($x, half, sums),
                            (32, _, false) => self.avx2::<$t, 8, 0, false>($x, half, sums),
                            (_, 4.., false) => self.avx2::<$t, 4, 4, false>($x, half, sums),
                            (_, 2.., false) => self.avx2::<$t, 4, 2, false>($x, half, sums),
                            (_, _, false) => self.avx2::<$t, 4, 1, false>($x, half, sums),
                            (_, _, true) => self.avx2::<$t, 4, 1, true>($x, half, sums),
                        }
                    }
                    done += $t;
                }};
            }
            match tokens.len() {
                3.. => tokens!([x(0), x(1), x(2)], 3),
                _ => tokens!([x(0)], 1),
            }
        }
    }

    /// `T` tokens times 16 rows. `maddubs` wants one side unsigned, which the shifted activations are, and leaves sums of
    /// two products in 16 bits: those of `N` steps are added up there, as far as the largest code allows (255 * 64 * 2 =
    /// 32640). Where even one is too much (`N` 0) the sign of a code moves to the activation as it was, never -128:
    /// |code| * |q| is at most 128 * 127, and a pair of those still fits.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2<const T: usize, const S: usize, const N: usize, const MINS: bool>(
        &self,
        x: [&Columns; T],
        half: usize,
        out: &mut [[f32; ROWS]; T],
    ) {
        use crate::simd::x86::*;
        use std::arch::x86_64::*;
        let p = self.panel;
        let at = |r: &[f32; ROWS], i: usize| load_f32x8(&r.as_chunks::<8>().0[2 * half + i]);
        for g in 0..self.len / (S * 4) {
            let g = g & (CHUNK / 4 / S - 1);
            let mut dots = [[_mm256_setzero_si256(); 2]; T];
            if N > 0 {
                let offset: &[[u8; 32]; 4] = bytemuck::cast_ref(&p.offset[g]);
                dots = [[load_u8x32(&offset[2 * half]), load_u8x32(&offset[2 * half + 1])]; T];
            }
            for j in (0..S).step_by(N.max(1)) {
                let mut pairs = [[_mm256_setzero_si256(); 2]; T];
                for j in j..j + N.max(1) {
                    let codes = p.codes[g * S + j].as_chunks::<32>().0;
                    let w = [load_u8x32(&codes[2 * half]), load_u8x32(&codes[2 * half + 1])];
                    for t in 0..T {
                        let u = x[t].u.as_chunks::<4>().0[g * S + j];
                        let u = _mm256_set1_epi32(i32::from_le_bytes(u));
                        for i in 0..2 {
                            pairs[t][i] = match N {
                                0 => {
                                    let q = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
                                    _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(q, w[i]))
                                }
                                _ => _mm256_add_epi16(pairs[t][i], _mm256_maddubs_epi16(u, w[i])),
                            };
                        }
                    }
                }
                for t in 0..T {
                    for i in 0..2 {
                        let fours = _mm256_madd_epi16(pairs[t][i], _mm256_set1_epi16(1));
                        dots[t][i] = _mm256_add_epi32(dots[t][i], fours);
                    }
                }
            }
            for t in 0..T {
                let out = out[t].as_chunks_mut::<8>().0;
                let d = x[t].d[g * S / 8];
                for i in 0..2 {
                    let scale = _mm256_mul_ps(at(&p.scale[g], i), _mm256_set1_ps(d));
                    let out = &mut out[2 * half + i];
                    let mut sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t][i]), scale, load_f32x8(out));
                    let of_min = shares_min(4 * S);
                    for m in 0..if MINS { 4 * S / of_min } else { 0 } {
                        let less: f32 = x[t].sums[g * S / 4 + m..][..of_min / 16].iter().sum();
                        let less = _mm256_set1_ps(if self.by_256 { less * d } else { less });
                        sum = _mm256_fnmadd_ps(at(&p.min[g + m], i), less, sum);
                    }
                    store_f32x8(out, sum);
                }
            }
        }
    }
}

/// `-128 * sum of the codes` of each row: the product with activations of zero, which stand as 128, taken off.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn offsets_avx512(panel: &mut Panel, group: usize, len: usize) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let zero = _mm512_setzero_si512();
    let x = _mm512_set1_epi8(-128); // 128, unsigned
    for (steps, offset) in panel.codes[..len / 4].chunks_exact(group / 4).zip(&mut panel.offset) {
        let mut sums = [zero; 2];
        for step in steps {
            let [lo, hi] = load_u8x128(step);
            sums = [_mm512_dpbusd_epi32(sums[0], x, lo), _mm512_dpbusd_epi32(sums[1], x, hi)];
        }
        store_i32x32(offset, sums.map(|s| _mm512_sub_epi32(zero, s)));
    }
}

/// The same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn offsets_avx2(panel: &mut Panel, group: usize, len: usize) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    for (steps, offset) in panel.codes[..len / 4].chunks_exact(group / 4).zip(&mut panel.offset) {
        let mut sums = [_mm256_setzero_si256(); 4];
        for step in steps {
            for (sum, codes) in sums.iter_mut().zip(step.as_chunks::<32>().0) {
                *sum = _mm256_add_epi32(*sum, dot_u8_i8(_mm256_set1_epi8(1), load_u8x32(codes)));
            }
        }
        let to: &mut [[u32; 8]; 4] = bytemuck::cast_mut(offset);
        for (to, sum) in to.iter_mut().zip(sums) {
            store_u32x8(to, _mm256_slli_epi32::<7>(_mm256_sub_epi32(_mm256_setzero_si256(), sum)));
        }
    }
}
