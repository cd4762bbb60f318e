//! Many tokens at once: blocks of any integer format become a panel of plain 8-bit codes, and one kernel multiplies
//! panels.
//!
//! ```text
//! panel of 32 rows:   for every 4 columns: 32 x (4 codes, i8), row after row                      (a "step", 128 bytes)
//!                     for every group of 16 or 32 columns: 32 scales, 32 minimums (f32), 32 offsets (i32)
//! w[r][k]  = scale[r][k / group] * code[r][k] - min[r][k / group]
//! out[t][r] = sum over groups of  d[t] * (scale[r] * sum_k code * q[t][k] - min[r] * sum_k q[t][k])
//! ```
//! Decoding a block costs about as much as multiplying it with two or three tokens, so a panel is made once and used
//! for all tokens that share the rows. `vpdpbusd` multiplies unsigned by signed bytes: the activations are shifted by
//! 128 and the panel's offsets, `-128 * sum of the group's codes`, take that off again, exactly, in integers.

use super::QuantType;
use crate::simd::{self, Isa};

/// Tokens from which a panel is worth making.
pub const FROM: usize = 4;
/// Rows of a panel.
pub const ROWS: usize = 32;
/// Columns that [`Unpack`] decodes at a time.
pub const CHUNK: usize = 256;

/// Up to [`CHUNK`] weights of a row: codes, and a scale and minimum for every group of them.
#[derive(Clone, Debug)]
pub struct Codes {
    /// The codes, -128 to 127.
    pub q: [i8; CHUNK],
    /// What a group's codes are multiplied with.
    pub scale: [f32; CHUNK / 16],
    /// What is then taken off; untouched by formats without minimums.
    pub min: [f32; CHUNK / 16],
}

/// Decodes blocks of at most [`CHUNK`] weights.
pub type Unpack = unsafe fn(&[u8], &mut Codes);

/// How a format fills panels.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    /// Codes that share a scale: 16 or 32.
    pub group: usize,
    /// Whether it has minimums.
    pub mins: bool,
    /// Best instruction set first, scalar last.
    pub unpack: &'static [(Isa, Unpack)],
}

/// Decoded rows, kept by a thread between panels.
#[derive(Debug, Default)]
pub struct Panel {
    n: usize,
    group: usize,
    mins: bool,
    codes: Vec<[u8; 4 * ROWS]>,
    scale: Vec<[f32; ROWS]>,
    min: Vec<[f32; ROWS]>,
    offset: Vec<[i32; ROWS]>,
}

/// Activations for panels: bytes shifted by 128, and what turns sums back into values.
#[derive(Clone, Copy, Debug)]
pub struct TileActs<'a> {
    /// Values in a row.
    pub n: usize,
    /// Values that share a scale.
    pub block: usize,
    /// The rows, `q + 128`.
    pub u: &'a [u8],
    /// Scales, n / block a row.
    pub d: &'a [f32],
    /// Sums of `q` over every 16 values, n / 16 a row.
    pub sums: &'a [i16],
}

impl Panel {
    /// Decodes `rows` (at most [`ROWS`]) rows of `n` weights, `stride` bytes apart; missing rows become zeros.
    pub fn fill(&mut self, ty: &QuantType, w: &[u8], stride: usize, rows: usize, n: usize) {
        let tile = ty.tile.as_ref().expect("a format that fills panels");
        let groups = n / tile.group;
        (self.n, self.group, self.mins) = (n, tile.group, tile.mins);
        self.codes.resize(n / 4, [0; 4 * ROWS]);
        self.scale.resize(groups, [0.0; ROWS]);
        self.offset.resize(groups, [0; ROWS]);
        if tile.mins {
            self.min.resize(groups, [0.0; ROWS]);
        }
        let (_, unpack) = tile.unpack.iter().find(|(isa, _)| *isa <= simd::isa()).expect("a scalar form stands last");
        let zero = Codes { q: [0; CHUNK], scale: [0.0; CHUNK / 16], min: [0.0; CHUNK / 16] };
        let mut sixteen: [Codes; 16] = std::array::from_fn(|_| zero.clone());
        let chunk_bytes = CHUNK / ty.block * ty.bytes;
        for half in 0..2 {
            for (c, at) in (0..n).step_by(CHUNK).enumerate() {
                let len = CHUNK.min(n - at);
                let bytes = ty.row_bytes(len);
                for (i, codes) in sixteen.iter_mut().enumerate() {
                    let r = half * 16 + i;
                    if r < rows {
                        let from = r * stride + c * chunk_bytes;
                        #[allow(unsafe_code)]
                        // SAFETY: the instruction set was just checked.
                        unsafe {
                            unpack(&w[from..from + bytes], codes)
                        };
                    } else if c == 0 {
                        codes.clone_from(&zero);
                    }
                }
                self.weave(&sixteen, half, at, len);
            }
        }
        self.offsets();
    }

    /// Puts 16 rows' codes into the panel's columns `at..at + len`.
    fn weave(&mut self, rows: &[Codes; 16], half: usize, at: usize, len: usize) {
        let steps = &mut self.codes[at / 4..(at + len) / 4];
        #[cfg(target_arch = "x86_64")]
        let done = simd::isa() >= Isa::Avx512 && {
            #[allow(unsafe_code)]
            // SAFETY: isa() says that this CPU has AVX-512.
            unsafe {
                weave_avx512(rows, half, steps)
            };
            true
        };
        #[cfg(not(target_arch = "x86_64"))]
        let done = false;
        if !done {
            for (s, step) in steps.iter_mut().enumerate() {
                for (r, row) in rows.iter().enumerate() {
                    for b in 0..4 {
                        step[(half * 16 + r) * 4 + b] = row.q[s * 4 + b] as u8;
                    }
                }
            }
        }
        let g0 = at / self.group;
        for g in 0..len / self.group {
            for (r, row) in rows.iter().enumerate() {
                self.scale[g0 + g][half * 16 + r] = row.scale[g];
                if self.mins {
                    self.min[g0 + g][half * 16 + r] = row.min[g];
                }
            }
        }
    }

    /// Sums up each group's codes, once all are there.
    fn offsets(&mut self) {
        let codes = self.codes.chunks_exact(self.group / 4);
        #[cfg(target_arch = "x86_64")]
        if simd::isa() >= Isa::Avx512 {
            for (steps, offset) in codes.zip(&mut self.offset) {
                #[allow(unsafe_code)]
                // SAFETY: isa() says that this CPU has AVX-512 with VNNI.
                unsafe {
                    offsets_avx512(steps, offset)
                };
            }
            return;
        }
        for (steps, offset) in codes.zip(&mut self.offset) {
            offset.fill(0);
            for step in steps {
                for (o, codes) in offset.iter_mut().zip(step.as_chunks::<4>().0) {
                    *o -= 128 * codes.iter().map(|&c| c as i8 as i32).sum::<i32>();
                }
            }
        }
    }

    /// `out(i)[r] = row r . x row tokens[i]` for every token and all rows of the panel.
    pub fn multiply(&self, x: TileActs<'_>, tokens: &[(u32, u32)], mut out: impl FnMut(u32, &[f32; ROWS])) {
        debug_assert_eq!(x.n, self.n);
        let mut sums = [[0f32; ROWS]; 6];
        for some in tokens.chunks(6) {
            let ids: [usize; 6] = std::array::from_fn(|i| some[i.min(some.len() - 1)].0 as usize);
            #[cfg(target_arch = "x86_64")]
            let done = simd::isa() >= Isa::Avx512 && {
                #[allow(unsafe_code)]
                // SAFETY: isa() says that this CPU has AVX-512 with VNNI.
                unsafe {
                    match (some.len(), self.group, self.mins) {
                        (1..=2, 32, false) => self.multiply_avx512::<2, 8, false>(x, ids, &mut sums),
                        (1..=2, 32, true) => self.multiply_avx512::<2, 8, true>(x, ids, &mut sums),
                        (1..=2, _, false) => self.multiply_avx512::<2, 4, false>(x, ids, &mut sums),
                        (1..=2, _, true) => self.multiply_avx512::<2, 4, true>(x, ids, &mut sums),
                        (3..=4, 32, false) => self.multiply_avx512::<4, 8, false>(x, ids, &mut sums),
                        (3..=4, 32, true) => self.multiply_avx512::<4, 8, true>(x, ids, &mut sums),
                        (3..=4, _, false) => self.multiply_avx512::<4, 4, false>(x, ids, &mut sums),
                        (3..=4, _, true) => self.multiply_avx512::<4, 4, true>(x, ids, &mut sums),
                        (_, 32, false) => self.multiply_avx512::<6, 8, false>(x, ids, &mut sums),
                        (_, 32, true) => self.multiply_avx512::<6, 8, true>(x, ids, &mut sums),
                        (_, _, false) => self.multiply_avx512::<6, 4, false>(x, ids, &mut sums),
                        (_, _, true) => self.multiply_avx512::<6, 4, true>(x, ids, &mut sums),
                    }
                };
                true
            };
            #[cfg(not(target_arch = "x86_64"))]
            let done = false;
            if !done {
                for (i, sum) in sums.iter_mut().enumerate().take(some.len()) {
                    self.multiply_scalar(x, ids[i], sum);
                }
            }
            for (&(_, o), sum) in some.iter().zip(&sums) {
                out(o, sum);
            }
        }
    }

    fn multiply_scalar(&self, x: TileActs<'_>, t: usize, out: &mut [f32; ROWS]) {
        out.fill(0.0);
        for g in 0..self.n / self.group {
            let u = &x.u[t * x.n + g * self.group..][..self.group];
            let d = x.d[(t * x.n + g * self.group) / x.block];
            let sums = &x.sums[(t * x.n + g * self.group) / 16..][..self.group / 16];
            let sum = sums.iter().map(|&s| s as i32).sum::<i32>() as f32 * d;
            for (r, out) in out.iter_mut().enumerate() {
                let mut dot = self.offset[g][r];
                for (step, u) in self.codes[g * self.group / 4..].iter().zip(u.as_chunks::<4>().0) {
                    dot += (0..4).map(|b| step[r * 4 + b] as i8 as i32 * u[b] as i32).sum::<i32>();
                }
                *out += dot as f32 * (self.scale[g][r] * d);
                if self.mins {
                    *out -= self.min[g][r] * sum;
                }
            }
        }
    }

    /// `T` tokens times the panel; `S` steps to a group. Twelve integer and twelve float sums, two vectors of codes:
    /// 26 of the 32 registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn multiply_avx512<const T: usize, const S: usize, const MINS: bool>(
        &self,
        x: TileActs<'_>,
        ids: [usize; 6],
        out: &mut [[f32; ROWS]; 6],
    ) {
        use crate::simd::x86::*;
        use std::arch::x86_64::*;
        let groups = self.n / (S * 4);
        let u: [&[[u8; 4]]; T] = std::array::from_fn(|t| &x.u[ids[t] * x.n..][..x.n].as_chunks::<4>().0[..groups * S]);
        let per_group = x.block / (S * 4); // groups that share an activation scale
        let d: [&[f32]; T] = std::array::from_fn(|t| &x.d[ids[t] * x.n / x.block..][..x.n / x.block]);
        let s: [&[i16]; T] = std::array::from_fn(|t| &x.sums[ids[t] * x.n / 16..][..x.n / 16]);
        let mut sums = [[_mm512_setzero_ps(); 2]; T];
        for g in 0..groups {
            let offset = load_i32x32(&self.offset[g]);
            let mut dots = [offset; T];
            for (j, step) in self.codes[g * S..][..S].iter().enumerate() {
                let [lo, hi] = load_u8x128(step);
                for t in 0..T {
                    let u = _mm512_set1_epi32(i32::from_le_bytes(u[t][g * S + j]));
                    dots[t][0] = _mm512_dpbusd_epi32(dots[t][0], u, lo);
                    dots[t][1] = _mm512_dpbusd_epi32(dots[t][1], u, hi);
                }
            }
            let scale = load_f32x32(&self.scale[g]);
            for t in 0..T {
                let dt = d[t][g / per_group];
                let dv = _mm512_set1_ps(dt);
                for h in 0..2 {
                    let v = _mm512_mul_ps(scale[h], dv);
                    sums[t][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][h]), v, sums[t][h]);
                }
            }
            if MINS {
                let min = load_f32x32(&self.min[g]);
                for t in 0..T {
                    let sum: i32 = s[t][g * S / 4..][..S / 4].iter().map(|&s| s as i32).sum();
                    let sum = _mm512_set1_ps(sum as f32 * d[t][g / per_group]);
                    for h in 0..2 {
                        sums[t][h] = _mm512_fnmadd_ps(min[h], sum, sums[t][h]);
                    }
                }
            }
        }
        for t in 0..T {
            store_f32x32(&mut out[t], sums[t]);
        }
    }
}

/// `-128 * sum of the codes` of each row: the product with activations of zero, which stand as 128, taken off.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn offsets_avx512(steps: &[[u8; 4 * ROWS]], offset: &mut [i32; ROWS]) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let zero = _mm512_setzero_si512();
    let x = _mm512_set1_epi8(-128); // 128, unsigned
    let mut sums = [zero; 2];
    for step in steps {
        let [lo, hi] = load_u8x128(step);
        sums = [_mm512_dpbusd_epi32(sums[0], x, lo), _mm512_dpbusd_epi32(sums[1], x, hi)];
    }
    store_i32x32(offset, sums.map(|s| _mm512_sub_epi32(zero, s)));
}

/// 16 rows of codes, turned so that 4 columns of all rows stand together: a transposition of 16 x 16 four-byte words.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn weave_avx512(rows: &[Codes; 16], half: usize, steps: &mut [[u8; 4 * ROWS]]) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    for (s, steps) in steps.chunks_mut(16).enumerate() {
        let r: [__m512i; 16] = std::array::from_fn(|r| load_i8x64(rows[r].q[s * 64..][..64].as_array().unwrap()));
        // Words of rows (0,1), (2,3), ...; then pairs of rows (0..4), ...; then fours of rows.
        let mut a = [_mm512_setzero_si512(); 16];
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        let mut b = [_mm512_setzero_si512(); 16]; // b[4 q + w]: rows 4q..4q+4, words w, 4 + w, 8 + w, 12 + w by lane
        for q in 0..4 {
            b[4 * q] = _mm512_unpacklo_epi64(a[4 * q], a[4 * q + 2]);
            b[4 * q + 1] = _mm512_unpackhi_epi64(a[4 * q], a[4 * q + 2]);
            b[4 * q + 2] = _mm512_unpacklo_epi64(a[4 * q + 1], a[4 * q + 3]);
            b[4 * q + 3] = _mm512_unpackhi_epi64(a[4 * q + 1], a[4 * q + 3]);
        }
        for w in 0..4 {
            let (r0, r1, r2, r3) = (b[w], b[4 + w], b[8 + w], b[12 + w]);
            let lo01 = _mm512_shuffle_i32x4::<0x44>(r0, r1); // lanes 0, 1 of rows 0..4, then of rows 4..8
            let hi01 = _mm512_shuffle_i32x4::<0xee>(r0, r1);
            let lo23 = _mm512_shuffle_i32x4::<0x44>(r2, r3);
            let hi23 = _mm512_shuffle_i32x4::<0xee>(r2, r3);
            let words = [
                _mm512_shuffle_i32x4::<0x88>(lo01, lo23),
                _mm512_shuffle_i32x4::<0xdd>(lo01, lo23),
                _mm512_shuffle_i32x4::<0x88>(hi01, hi23),
                _mm512_shuffle_i32x4::<0xdd>(hi01, hi23),
            ];
            for (lane, v) in words.into_iter().enumerate() {
                if let Some(step) = steps.get_mut(lane * 4 + w) {
                    store_u8x64(step[half * 64..][..64].as_mut_array().unwrap(), v);
                }
            }
        }
    }
}
