//! Kernels that multiply a panel of 8-bit codes with many tokens. Every integer format is decoded
//! into such panels (panel.rs); formats of floats have nothing to decode and have kernels of their
//! own (floats.rs).
//!
//! ```text
//! panel of 32 rows x 256 columns:
//!   for every 4 columns (a "step", 128 bytes):     32 x (4 codes, i8), row after row
//!   for every group of 16, 32 or 256 columns:      32 scales (f32), 32 offsets (i32)
//!   for every group, or every 16 columns of 256:   32 minimums (f32)
//! w[r][k]   = scale[r][k / group] * code[r][k] - min[r][k / group]
//! out[t][r] = sum over groups of
//!             d[t] * (scale[r] * sum_k code * q[t][k] - min[r] * sum_k q[t][k])
//! ```
//! Decoding a block costs about as much as multiplying it with one or two tokens, so a panel is
//! made once and used for all tokens that share the rows. It stays in the first-level cache
//! meanwhile; the tokens' sums wait in memory, which costs a load and a store per 256 columns.
//! `vpdpbusd` multiplies unsigned by signed bytes: the activations are shifted by 128 and the
//! panel's offsets, `-128 * sum of the group's codes`, take that off again, exactly, in integers.
//! Where a code times the integer scale of its sub-block fits 8 bits, that product is the panel's
//! code and all 256 columns are one group: a sixth less to do per token (Q2_K).

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256i;

#[cfg(target_arch = "x86_64")]
use super::ahead::Ahead;
use super::panel::{Panel, ROWS};
#[cfg(target_arch = "x86_64")]
use crate::quant::activations::CHUNK;
use crate::quant::activations::PanelColumns;

/// Tokens that are multiplied together.
const TOKENS: usize = 6;

/// Returns how many codes share a minimum in a format with groups of this size.
pub(crate) const fn shares_min(group: usize) -> usize {
    if group > 32 { 16 } else { group }
}

/// A panel, and the activations of all tokens for the panel's columns.
pub(crate) struct PanelProduct<'a> {
    pub(crate) panel: &'a Panel,
    /// One entry per row of activations.
    pub(crate) x: &'a [PanelColumns],
    pub(crate) len: usize,
    pub(crate) group: usize,
    pub(crate) most: u8,
    pub(crate) mins: bool,
    pub(crate) by_256: bool,
}

impl PanelProduct<'_> {
    /// Adds token `t`'s products to `out`. This scalar version is what the vector versions are
    /// tested against.
    pub(crate) fn multiply(&self, t: usize, out: &mut [f32; ROWS]) {
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
    pub(crate) fn multiply_avx512(&self, tokens: &[(u32, u32)], sums: &mut [[f32; ROWS]], ahead: Ahead<'_>) {
        for (i, (some, sums)) in tokens.chunks(TOKENS).zip(sums.chunks_mut(TOKENS)).enumerate() {
            ahead.ask(&(i * TOKENS..i * TOKENS + some.len()));
            let x: [&PanelColumns; TOKENS] = std::array::from_fn(|i| &self.x[some[i.min(some.len() - 1)].0 as usize]);
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

    /// `T` tokens times the panel; `S` steps to a group, one activation scale for all (`K`) or one
    /// per 32 columns. Twelve integer and twelve float sums, two vectors of codes: 26 of the 32
    /// registers. Indices are masked to save bounds checks in the innermost loops.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn avx512<const T: usize, const S: usize, const MINS: bool, const K: bool>(
        &self,
        x: [&PanelColumns; TOKENS],
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
    pub(crate) fn multiply_avx2(&self, tokens: &[(u32, u32)], sums: &mut [[f32; ROWS]]) {
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

    /// `T` tokens times 16 rows. `maddubs` wants one side unsigned, which the shifted activations
    /// are, and leaves sums of two products in 16 bits: those of `N` steps are added up there, as
    /// far as the largest code allows (255 * 64 * 2 = 32640). Where even one is too much (`N` 0)
    /// the sign of a code moves to the activation as it was, never -128: |code| * |q| is at most
    /// 128 * 127, and a pair of those still fits.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2<const T: usize, const S: usize, const N: usize, const MINS: bool>(
        &self,
        x: [&PanelColumns; T],
        half: usize,
        out: &mut [[f32; ROWS]; T],
    ) {
        use crate::simd::x86::*;
        use std::arch::x86_64::*;
        let p = self.panel;
        // The activations as they were, once for all rows.
        let mut q = [[0; CHUNK]; T];
        if N == 0 {
            for t in 0..T {
                for (to, u) in q[t].as_chunks_mut().0.iter_mut().zip(x[t].u.as_chunks().0) {
                    store_u8x32(to, _mm256_xor_si256(load_u8x32(u), _mm256_set1_epi8(-128)));
                }
            }
        }
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
                        let u = if N == 0 { &q[t] } else { &x[t].u }.as_chunks::<4>().0[g * S + j];
                        let u = _mm256_set1_epi32(i32::from_le_bytes(u));
                        for i in 0..2 {
                            pairs[t][i] = match N {
                                0 => _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(u, w[i])),
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
            self.add_scaled::<T, S, MINS>(x, half, g, dots, out);
        }
    }

    /// Adds the products of group `g` with 16 rows, scaled, to the sums of `T` tokens.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn add_scaled<const T: usize, const S: usize, const MINS: bool>(
        &self,
        x: [&PanelColumns; T],
        half: usize,
        g: usize,
        dots: [[__m256i; 2]; T],
        out: &mut [[f32; ROWS]; T],
    ) {
        use crate::simd::x86::*;
        use std::arch::x86_64::*;
        let (p, g) = (self.panel, g & (CHUNK / 4 / S - 1));
        let at = |r: &[f32; ROWS], i: usize| load_f32x8(&r.as_chunks::<8>().0[2 * half + i]);
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

    /// AVX-VNNI version of [`PanelProduct::multiply_avx2`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avxvnni")]
    pub(crate) fn multiply_vnni(&self, tokens: &[(u32, u32)], sums: &mut [[f32; ROWS]]) {
        use std::arch::x86_64::*;
        self.multiply_256(tokens, sums, |sum, u, w| _mm256_dpbusd_avx_epi32(sum, u, w));
    }

    /// [`PanelProduct::multiply_vnni`] in the encoding of AVX512_VNNI.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512vnni,avx512vl")]
    pub(crate) fn multiply_vnni_evex(&self, tokens: &[(u32, u32)], sums: &mut [[f32; ROWS]]) {
        use std::arch::x86_64::*;
        self.multiply_256(tokens, sums, |sum, u, w| _mm256_dpbusd_epi32(sum, u, w));
    }

    /// All tokens times the panel; `dot` adds products of four bytes to 32 bits.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn multiply_256(
        &self,
        tokens: &[(u32, u32)],
        sums: &mut [[f32; ROWS]],
        dot: impl Fn(__m256i, __m256i, __m256i) -> __m256i + Copy,
    ) {
        let mut done = 0;
        while done < tokens.len() {
            let (tokens, sums) = (&tokens[done..], &mut sums[done..]);
            let x = |i: usize| &self.x[tokens[i].0 as usize];
            macro_rules! tokens {
                ($x:expr, $t:literal) => {{
                    let sums = sums.first_chunk_mut().expect("as many sums");
                    for half in 0..2 {
                        match (self.group, self.mins) {
                            (256, true) => self.vnni::<$t, 64, true>($x, half, sums, dot),
                            (256, false) => self.vnni::<$t, 64, false>($x, half, sums, dot),
                            (32, true) => self.vnni::<$t, 8, true>($x, half, sums, dot),
                            (32, false) => self.vnni::<$t, 8, false>($x, half, sums, dot),
                            (_, true) => self.vnni::<$t, 4, true>($x, half, sums, dot),
                            (_, false) => self.vnni::<$t, 4, false>($x, half, sums, dot),
                        }
                    }
                    done += $t;
                }};
            }
            match tokens.len() {
                4.. => tokens!([x(0), x(1), x(2), x(3)], 4),
                _ => tokens!([x(0)], 1),
            }
        }
    }

    /// `T` tokens times 16 rows: eight sums, two vectors of codes and one of activations.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn vnni<const T: usize, const S: usize, const MINS: bool>(
        &self,
        x: [&PanelColumns; T],
        half: usize,
        out: &mut [[f32; ROWS]; T],
        dot: impl Fn(__m256i, __m256i, __m256i) -> __m256i + Copy,
    ) {
        use crate::simd::x86::*;
        use std::arch::x86_64::*;
        let p = self.panel;
        for g in 0..self.len / (S * 4) {
            let g = g & (CHUNK / 4 / S - 1);
            let offset: &[[u8; 32]; 4] = bytemuck::cast_ref(&p.offset[g]);
            let mut dots = [[load_u8x32(&offset[2 * half]), load_u8x32(&offset[2 * half + 1])]; T];
            for j in g * S..(g + 1) * S {
                let codes = p.codes[j].as_chunks::<32>().0;
                let w = [load_u8x32(&codes[2 * half]), load_u8x32(&codes[2 * half + 1])];
                for t in 0..T {
                    let u = _mm256_set1_epi32(i32::from_le_bytes(x[t].u.as_chunks::<4>().0[j]));
                    for i in 0..2 {
                        dots[t][i] = dot(dots[t][i], u, w[i]);
                    }
                }
            }
            self.add_scaled::<T, S, MINS>(x, half, g, dots, out);
        }
    }
}

/// Sets the panel's offsets: `-128 * sum of the codes` of each row and group. Activations are
/// stored plus 128, and the offset takes that part of the product off again.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn offsets_avx512(panel: &mut Panel, group: usize, len: usize) {
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

/// AVX2 version of [`offsets_avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn offsets_avx2(panel: &mut Panel, group: usize, len: usize) {
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
