//! What attention consists of: products of queries with the rows of a cache, and the softmax between them.
//!
//! ```text
//! scores:  s[r][j]  = q[r] . k[j]             mix:  out[r] += sum_j p[r][j] v[j]
//! ```
//! A score is as many sums as a vector has lanes, which are folded in one order; a mixed value is one chain of fused
//! multiply-adds along `j`. Neither depends on which rows are computed together, so results are the same bits however a
//! batch is cut. (The scalar form has one sum, and rounds between multiplying and adding.)
//!
//! What did not help: keys turned into columns first, so that a score is a chain too. For the eight query rows of a
//! decode step turning costs as much as multiplying, folding a third of it, and it wants 32 KB of the nearest cache.

#![allow(unsafe_code)] // calls of functions compiled for an instruction set, after asking for it

use crate::quant::Floats;
use crate::simd::{self, Isa};

/// Rows of a cache are whole runs of this many values: columns that are computed together.
pub const COLS: usize = 32;
/// Keys that are scored together, at most.
pub const BLOCK: usize = 64;
/// Query rows that are multiplied together, at most; what remains goes by fours, twos and ones.
const ROWS: usize = 8;
/// Columns that alternate between the query rows of a lot.
const LANES: usize = 16;

/// Rows of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// At most [`BLOCK`] rows of a multiple of [`COLS`] values, as little-endian bytes.
    pub rows: &'a [&'a [u8]],
    /// What the values are.
    pub floats: Floats,
    /// Rows that are wanted afterwards: asked for meanwhile, a few lines at a time.
    pub next: &'a [&'a [u8]],
}

impl Rows<'_> {
    /// Values in a row.
    pub(super) fn width(&self) -> usize {
        let bytes = self.rows.first().map_or(0, |r| r.len());
        bytes / self.floats.bytes()
    }

    /// Values `16 i` to `16 i + 15` of a row.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn load(&self, row: &[u8], i: usize) -> std::arch::x86_64::__m512 {
        match self.floats {
            Floats::Single => simd::x86::load_f32x16_bytes(&row.as_chunks().0[i]),
            Floats::Half => simd::x86::load_f16x16(&row.as_chunks().0[i]),
            Floats::Brain => simd::x86::load_bf16x16(&row.as_chunks().0[i]),
        }
    }

    /// Value `i` of row `j`.
    fn value(&self, j: usize, i: usize) -> f32 {
        let row = self.rows[j];
        match self.floats {
            Floats::Single => f32::from_le_bytes(*row[4 * i..].first_chunk().expect("a whole value")),
            Floats::Half => half::f16::from_le_bytes(*row[2 * i..].first_chunk().expect("a whole value")).to_f32(),
            Floats::Brain => {
                let upper = u16::from_le_bytes(*row[2 * i..].first_chunk().expect("a whole value"));
                f32::from_bits((upper as u32) << 16)
            }
        }
    }
}

/// Query rows as [`scores`] reads them: lots of 8, then at most one of 4, of 2 and of 1; in a lot 16 columns of each row,
/// then the next 16.
#[derive(Clone, Debug, Default)]
pub struct Queries {
    values: Vec<f32>,
    rows: usize,
    width: usize,
}

impl Queries {
    /// Takes rows of `dim` values, times `scale`; columns up to a multiple of [`COLS`] become zeros.
    pub fn set<'a>(&mut self, dim: usize, scale: f32, rows: impl ExactSizeIterator<Item = &'a [f32]>) {
        (self.rows, self.width) = (rows.len(), dim.next_multiple_of(COLS));
        self.values.clear();
        self.values.resize(self.rows * self.width, 0.0);
        for (r, row) in rows.enumerate() {
            let (lot, n) = lot_of(self.rows, r);
            let to = self.values[lot * self.width..][..n * self.width].chunks_exact_mut(n * LANES);
            for (from, to) in row.chunks(LANES).zip(to) {
                to[(r - lot) * LANES..].iter_mut().zip(from).for_each(|(to, q)| *to = q * scale);
            }
        }
    }

    /// Value `i` of row `r`.
    fn value(&self, r: usize, i: usize) -> f32 {
        let (lot, n) = lot_of(self.rows, r);
        self.values[lot * self.width + (i / LANES * n + r - lot) * LANES + i % LANES]
    }
}

/// The first row of the lot of row `r`, and the lot's rows.
fn lot_of(rows: usize, r: usize) -> (usize, usize) {
    let mut from = 0;
    loop {
        let n = (1 << (rows - from).ilog2()).min(ROWS);
        if r < from + n {
            return (from, n);
        }
        from += n;
    }
}

/// Below every score.
const LOWEST: f32 = -1e30;

/// The softmax of some keys for some query rows: the largest score, the sum of the others' ratios to it, and the sum of
/// the values in those proportions, a row after the other.
#[derive(Debug)]
pub struct Soft<'a> {
    /// Each row's largest score: (rows).
    pub most: &'a mut [f32],
    /// Each row's sum of `e^(score - most)`: (rows).
    pub sum: &'a mut [f32],
    /// Each row's sum of values, times those: (rows, width).
    pub out: &'a mut [f32],
    /// Columns of a value.
    pub width: usize,
}

impl<'a> Soft<'a> {
    /// `rows` rows of `width` columns, in a buffer of `rows * (width + 2)` values.
    pub fn new(rows: usize, width: usize, buffer: &'a mut [f32]) -> Soft<'a> {
        let (most, rest) = buffer.split_at_mut(rows);
        let (sum, rest) = rest.split_at_mut(rows);
        Soft { most, sum, out: &mut rest[..rows * width], width }
    }

    /// No keys.
    pub fn clear(&mut self) {
        self.most.fill(LOWEST);
        self.sum.fill(0.0);
        self.out.fill(0.0);
    }

    /// Adds another's keys. It may have more rows, which are left out.
    pub fn join(&mut self, other: &Soft<'_>) {
        for r in 0..self.most.len() {
            let most = self.most[r].max(other.most[r]);
            let (x, y) = (simd::exp(self.most[r] - most), simd::exp(other.most[r] - most));
            let at = r * self.width..(r + 1) * self.width;
            blend(&mut self.out[at.clone()], x, &other.out[at], y);
            self.sum[r] = self.sum[r] * x + other.sum[r] * y;
            self.most[r] = most;
        }
    }
}

/// `s[r][j] = q[r] . k[j]`.
pub fn scores(q: &Queries, k: Rows<'_>, s: &mut [[f32; BLOCK]]) {
    if k.rows.is_empty() {
        return;
    }
    assert!(k.width() == q.width && k.rows.len() <= BLOCK && s.len() == q.rows);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: each form is called where `isa` says that the CPU has its instructions.
    unsafe {
        match (simd::isa(), k.floats) {
            (Isa::Scalar, _) => {}
            (Isa::Avx2 | Isa::AvxVnni, Floats::Single) => return x86::floats_256::scores(&q.values, k, s),
            (Isa::Avx2 | Isa::AvxVnni, Floats::Half) => return x86::halves_256::scores(&q.values, k, s),
            (Isa::Avx2 | Isa::AvxVnni, Floats::Brain) => return x86::uppers_256::scores(&q.values, k, s),
            (_, Floats::Single) => return x86::floats_512::scores(&q.values, k, s),
            (_, Floats::Half) => return x86::halves_512::scores(&q.values, k, s),
            (_, Floats::Brain) => return x86::uppers_512::scores(&q.values, k, s),
        }
    }
    for (r, s) in s.iter_mut().enumerate() {
        for (j, s) in s[..k.rows.len()].iter_mut().enumerate() {
            *s = (0..q.width).map(|i| q.value(r, i) * k.value(j, i)).sum();
        }
    }
}

/// `out[r] += sum_j p[r][j] v[j]`, where the rows of `out` are contiguous, as wide as the values.
pub fn mix(p: &[[f32; BLOCK]], v: Rows<'_>, out: &mut [f32]) {
    let width = v.width();
    if width == 0 {
        return;
    }
    assert!(width.is_multiple_of(COLS) && v.rows.len() <= BLOCK && out.len() == p.len() * width);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: each form is called where `isa` says that the CPU has its instructions.
    unsafe {
        match (simd::isa(), v.floats) {
            (Isa::Scalar, _) => {}
            (Isa::Avx2 | Isa::AvxVnni, Floats::Single) => return x86::floats_256::mix(p, v, out),
            (Isa::Avx2 | Isa::AvxVnni, Floats::Half) => return x86::halves_256::mix(p, v, out),
            (Isa::Avx2 | Isa::AvxVnni, Floats::Brain) => return x86::uppers_256::mix(p, v, out),
            (_, Floats::Single) => return x86::floats_512::mix(p, v, out),
            (_, Floats::Half) => return x86::halves_512::mix(p, v, out),
            (_, Floats::Brain) => return x86::uppers_512::mix(p, v, out),
        }
    }
    for (out, p) in out.chunks_exact_mut(width).zip(p) {
        for (j, p) in p[..v.rows.len()].iter().enumerate() {
            out.iter_mut().enumerate().for_each(|(i, out)| *out += p * v.value(j, i));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, LANES, Rows};
    use crate::simd::x86::*;
    use std::arch::x86_64::*;

    /// Both products for one instruction set and one kind of row: vectors of `$len` values, `$bytes` bytes of a row. The
    /// sums of `$rows` query rows times `$keys` keys are folded at once; `$mixed` rows are mixed together.
    macro_rules! products {
        ($name:ident, $features:literal, $len:literal, $bytes:literal, $load:ident, $load_f32:ident, $store:ident,
         $zero:ident, $splat:ident, $fma:ident, $fold:ident, $(($rows:literal $keys:literal))*, $($mixed:literal)*) => {
            pub(super) mod $name {
                use super::*;

                const PARTS: usize = LANES / $len;

                #[target_feature(enable = $features)]
                pub(in super::super) fn scores(q: &[f32], k: Rows<'_>, s: &mut [[f32; BLOCK]]) {
                    let width = k.width();
                    let rows = s.len();
                    let mut r = 0;
                    while r < rows {
                        let (q, s) = (q[r * width..].as_chunks::<LANES>().0, &mut s[r..]);
                        // The first rows ask for what comes next.
                        let k = Rows { next: if r == 0 { k.next } else { &[] }, ..k };
                        match rows - r {
                            $($rows.. => {
                                let q = &q.as_chunks::<$rows>().0[..width / LANES];
                                some_scores::<$rows, $keys>(q, k, s.first_chunk_mut().expect("as many rows"));
                                r += $rows;
                            })*
                            _ => unreachable!("the last case takes one row"),
                        }
                    }
                }

                // Loops where from_fn would do: its closures are not always inlined into functions of other features.
                #[target_feature(enable = $features)]
                fn some_scores<const R: usize, const J: usize>(
                    q: &[[[f32; LANES]; R]],
                    k: Rows<'_>,
                    s: &mut [[f32; BLOCK]; R],
                ) {
                    let count = k.rows.len();
                    for j in (0..count).step_by(J) {
                        // Keys that are missing from the last lot are the last one again.
                        let mut keys: [&[[[u8; $bytes]; PARTS]]; J] = [&[]; J];
                        for (i, key) in keys.iter_mut().enumerate() {
                            *key = &k.rows[(j + i).min(count - 1)].as_chunks().0.as_chunks().0[..q.len()];
                            if let Some(next) = k.next.get(j + i) {
                                crate::simd::prefetch(next);
                            }
                        }
                        let mut sums = [[$zero(); J]; R];
                        for (i, q) in q.iter().enumerate() {
                            for part in 0..PARTS {
                                let mut k = [$zero(); J];
                                for j in 0..J {
                                    k[j] = $load(&keys[j][i][part]);
                                }
                                for r in 0..R {
                                    let q = $load_f32(&q[r].as_chunks().0[part]);
                                    for j in 0..J {
                                        sums[r][j] = $fma(q, k[j], sums[r][j]);
                                    }
                                }
                            }
                        }
                        let sums = $fold(sums.as_flattened().as_array().expect("as many as are folded"));
                        for (s, sums) in s.iter_mut().zip(sums.as_chunks::<J>().0) {
                            match s[j..].first_chunk_mut() {
                                Some(to) => *to = *sums,
                                None => s[j..].iter_mut().zip(sums).for_each(|(to, sum)| *to = *sum),
                            }
                        }
                    }
                }

                #[target_feature(enable = $features)]
                pub(in super::super) fn mix(p: &[[f32; BLOCK]], v: Rows<'_>, out: &mut [f32]) {
                    let width = v.width();
                    let steps = width / (2 * $len);
                    for step in 0..steps {
                        let mut r = 0;
                        while r < p.len() {
                            let v = Rows { next: if r == 0 { v.next } else { &[] }, ..v };
                            let out = &mut out[r * width..];
                            match p.len() - r {
                                $($mixed.. => {
                                    let p: &[_; $mixed] = p[r..].first_chunk().expect("as many rows");
                                    some_mix(p, v, out, width, (step, steps));
                                    r += $mixed;
                                })*
                                _ => unreachable!("the last case takes one row"),
                            }
                        }
                    }
                }

                /// Step `step` of `steps`: two vectors of every row.
                #[target_feature(enable = $features)]
                fn some_mix<const R: usize>(
                    p: &[[f32; BLOCK]; R],
                    v: Rows<'_>,
                    out: &mut [f32],
                    width: usize,
                    (step, steps): (usize, usize),
                ) {
                    let out = out.as_chunks_mut::<$len>().0;
                    let mut sums = [[$zero(); 2]; R];
                    for r in 0..R {
                        for h in 0..2 {
                            sums[r][h] = $load_f32(&out[r * width / $len + 2 * step + h])
                        }
                    }
                    // Every step asks for its share of the next rows.
                    let share = v.next.first().map_or(0, |n| n.len().div_ceil(steps).next_multiple_of(64));
                    for (j, row) in v.rows[..v.rows.len().min(BLOCK)].iter().enumerate() {
                        if let Some(next) = v.next.get(j) {
                            let from = (share * step).min(next.len());
                            crate::simd::prefetch(&next[from..next.len().min(from + share)]);
                        }
                        let row = &row.as_chunks::<$bytes>().0[2 * step..][..2];
                        let v = [$load(&row[0]), $load(&row[1])];
                        for r in 0..R {
                            let p = $splat(p[r][j]);
                            for h in 0..2 {
                                sums[r][h] = $fma(p, v[h], sums[r][h]);
                            }
                        }
                    }
                    for r in 0..R {
                        for h in 0..2 {
                            $store(&mut out[r * width / $len + 2 * step + h], sums[r][h]);
                        }
                    }
                }
            }
        };
    }
    #[rustfmt::skip]
    products!(halves_512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", 16, 32, load_f16x16, load_f32x16, store_f32x16, _mm512_setzero_ps, _mm512_set1_ps, _mm512_fmadd_ps, fold16, (8 2)(4 4)(2 8)(1 16), 8 4 2 1);
    #[rustfmt::skip]
    products!(floats_512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", 16, 64, load_f32x16_bytes, load_f32x16, store_f32x16, _mm512_setzero_ps, _mm512_set1_ps, _mm512_fmadd_ps, fold16, (8 2)(4 4)(2 8)(1 16), 8 4 2 1);
    #[rustfmt::skip]
    products!(halves_256, "avx2,fma,f16c", 8, 16, load_f16x8, load_f32x8, store_f32x8, _mm256_setzero_ps, _mm256_set1_ps, _mm256_fmadd_ps, fold8, (8 1)(4 2)(2 4)(1 8), 4 2 1);
    #[rustfmt::skip]
    products!(uppers_512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", 16, 32, load_bf16x16, load_f32x16, store_f32x16, _mm512_setzero_ps, _mm512_set1_ps, _mm512_fmadd_ps, fold16, (8 2)(4 4)(2 8)(1 16), 8 4 2 1);
    #[rustfmt::skip]
    products!(uppers_256, "avx2,fma,f16c", 8, 16, load_bf16x8, load_f32x8, store_f32x8, _mm256_setzero_ps, _mm256_set1_ps, _mm256_fmadd_ps, fold8, (8 1)(4 2)(2 4)(1 8), 4 2 1);
    #[rustfmt::skip]
    products!(floats_256, "avx2,fma,f16c", 8, 32, load_f32x8_bytes, load_f32x8, store_f32x8, _mm256_setzero_ps, _mm256_set1_ps, _mm256_fmadd_ps, fold8, (8 1)(4 2)(2 4)(1 8), 4 2 1);
}

/// Compiles a plain body for every instruction set, and picks one.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: each form is called where `isa` says that the CPU has its instructions.
            unsafe {
                match simd::isa() {
                    isa if isa >= Isa::Avx512 => return avx512($($arg),*),
                    Isa::Avx2 | Isa::AvxVnni => return avx2($($arg),*),
                    _ => {}
                }
            }
            body($($arg),*)
        }
    };
}

for_each_isa! {
    /// Squashes scores to (-cap, cap) if there is a cap; returns the largest, or -inf.
    pub fn largest(s: &mut [f32], cap: Option<f32>) -> f32 {
        if let Some(cap) = cap {
            s.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
        }
        let mut most = [f32::NEG_INFINITY; 16];
        let (full, rest) = s.as_chunks::<16>();
        for part in full {
            most.iter_mut().zip(part).for_each(|(m, &v)| *m = if v > *m { v } else { *m });
        }
        rest.iter().zip(&mut most).for_each(|(&v, m)| *m = if v > *m { v } else { *m });
        most.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
    }
}

for_each_isa! {
    /// Replaces every `s` by `e^(s - most)` and returns their sum.
    pub fn exponentials(s: &mut [f32], most: f32) -> f32 {
        let mut sums = [0f32; 16];
        let (full, rest) = s.as_chunks_mut::<16>();
        for part in full {
            for (v, sum) in part.iter_mut().zip(&mut sums) {
                *v = simd::exp(*v - most);
                *sum += *v;
            }
        }
        for (v, sum) in rest.iter_mut().zip(&mut sums) {
            *v = simd::exp(*v - most);
            *sum += *v;
        }
        sums.iter().sum()
    }
}

for_each_isa! {
    /// `a = a * x + b * y`.
    pub fn blend(a: &mut [f32], x: f32, b: &[f32], y: f32) {
        a.iter_mut().zip(b).for_each(|(a, &b)| *a = *a * x + b * y);
    }
}

for_each_isa! {
    /// The Walsh-Hadamard transform of runs of `run` values, a power of two: `x[i] = sum_j (-1)^bits(i & j) x[j] / sqrt(run)`.
    /// It is its own inverse.
    pub fn hadamard(x: &mut [f32], run: usize) {
        let by = 1.0 / (run as f32).sqrt();
        for x in x.chunks_exact_mut(run) {
            let mut half = 1;
            while half < run {
                for pair in x.chunks_exact_mut(2 * half) {
                    let (a, b) = pair.split_at_mut(half);
                    a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
                }
                half *= 2;
            }
            x.iter_mut().for_each(|v| *v *= by);
        }
    }
}

for_each_isa! {
    /// `x = 1 / (1 + e^(-k x))`.
    pub fn sigmoids(x: &mut [f32], k: f32) {
        x.iter_mut().for_each(|x| *x = 1.0 / (1.0 + simd::exp(-k * *x)));
    }
}

for_each_isa! {
    /// `a += x * b`.
    pub fn add_times(a: &mut [f32], x: f32, b: &[f32]) {
        a.iter_mut().zip(b).for_each(|(a, &b)| *a += x * b);
    }
}

for_each_isa! {
    /// `out[j] = s[j] . x`, for rows of `s` as long as `x`, as many as `out` has values.
    pub fn row_dots(s: &[f32], x: &[f32], out: &mut [f32]) {
        for (s, out) in s.chunks_exact(x.len()).zip(out) {
            let mut sums = [0f32; 16];
            for (s, x) in s.chunks(16).zip(x.chunks(16)) {
                sums.iter_mut().zip(s).zip(x).for_each(|((sum, s), x)| *sum += s * x);
            }
            *out = sums.iter().sum();
        }
    }
}

for_each_isa! {
    /// A step of a recurrent state, for rows of `s` as long as `decay`, `b` and `c`, as many as `x`
    /// and `out` have values: `s[j] = s[j] * decay + x[j] * b`, column by column, then `out[j] =
    /// s[j] . c`.
    pub fn recur(s: &mut [f32], decay: &[f32], x: &[f32], b: &[f32], c: &[f32], out: &mut [f32]) {
        for ((s, x), out) in s.chunks_exact_mut(decay.len()).zip(x).zip(out) {
            let mut sums = [0f32; 16];
            let columns = s.chunks_mut(16).zip(decay.chunks(16)).zip(b.chunks(16)).zip(c.chunks(16));
            for (((s, decay), b), c) in columns {
                for ((((sum, s), decay), b), c) in sums.iter_mut().zip(s).zip(decay).zip(b).zip(c) {
                    *s = *s * decay + x * b;
                    *sum += *s * c;
                }
            }
            *out = sums.iter().sum();
        }
    }
}

for_each_isa! {
    /// The wrapping sum.
    pub fn sum(v: &[u64]) -> u64 {
        // Eight vectors of sums, so that the loop waits for memory and not for its own additions.
        let mut sums = [0u64; 64];
        let (full, rest) = v.as_chunks::<64>();
        for part in full {
            sums.iter_mut().zip(part).for_each(|(s, v)| *s = s.wrapping_add(*v));
        }
        sums.iter().chain(rest).fold(0, |s, v| s.wrapping_add(*v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Rng;

    const KINDS: [Floats; 3] = [Floats::Single, Floats::Half, Floats::Brain];

    fn bytes_of(row: &[f32], floats: Floats) -> Vec<u8> {
        match floats {
            Floats::Single => row.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Floats::Half => row.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
            Floats::Brain => row.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        }
    }

    /// Random rows that floats of every kind hold exactly: their bytes, and their values.
    fn random_rows(rng: &mut Rng, n: usize, width: usize, floats: Floats) -> (Vec<Vec<u8>>, Vec<Vec<f64>>) {
        (0..n)
            .map(|_| {
                // 8 bits of precision, and no magnitude that an f16 rounds.
                let value = |v: f32| if v.abs() < 1e-3 { 1.0 } else { half::bf16::from_f32(v).to_f32() };
                let row: Vec<f32> = (0..width).map(|_| value(rng.normal())).collect();
                (bytes_of(&row, floats), row.iter().map(|&v| v as f64).collect::<Vec<f64>>())
            })
            .unzip()
    }

    #[test]
    fn scores_and_mixtures_are_the_sums_of_their_terms_for_every_number_of_rows() {
        let mut rng = Rng(5);
        for floats in KINDS {
            for rows in 1..20 {
                let (width, n) = (COLS * (1 + rng.below(5)), 1 + rng.below(40));
                let (bytes, values) = random_rows(&mut rng, n, width, floats);
                let slices: Vec<&[u8]> = bytes.iter().map(|b| b.as_slice()).collect();
                let cached = Rows { rows: &slices, floats, next: &slices };
                let q: Vec<f32> = (0..rows * width).map(|_| rng.normal()).collect();
                let mut queries = Queries::default();
                queries.set(width, 0.5, q.chunks(width));
                let mut s = vec![[7f32; BLOCK]; rows];
                scores(&queries, cached, &mut s);
                for (q, s) in q.chunks(width).zip(&s) {
                    for (k, s) in values.iter().zip(s) {
                        let want: f64 = q.iter().zip(k).map(|(&q, k)| 0.5 * q as f64 * k).sum();
                        // 160 terms of about 1.
                        assert!((*s as f64 - want).abs() < 1e-4, "{rows} rows, {n} keys: {s} for {want}");
                    }
                }
                let mut out = q.clone();
                mix(&s, cached, &mut out);
                for (i, out) in out.iter().enumerate() {
                    let (r, c) = (i / width, i % width);
                    let sum: f64 = (0..n).map(|j| s[r][j] as f64 * values[j][c]).sum();
                    // 40 terms of about 13.
                    assert!((*out as f64 - sum - q[i] as f64).abs() < 1e-3, "{rows} rows, {n} values: {out}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_whatever_company_and_as_floats_of_any_kind() {
        let mut rng = Rng(6);
        let (rows, n, width) = (13, 37, 96);
        let (bytes, values) = random_rows(&mut rng, n, width, Floats::Half);
        let rows_of = |floats: Floats| -> Vec<Vec<u8>> {
            let one = |r: &Vec<f64>| bytes_of(&r.iter().map(|&v| v as f32).collect::<Vec<f32>>(), floats);
            values.iter().map(one).collect()
        };
        let kinds = KINDS.map(|floats| (rows_of(floats), floats));
        let q: Vec<f32> = (0..rows * width).map(|_| rng.normal()).collect();
        let run = |bytes: &[Vec<u8>], floats: Floats, from: usize, to: usize| {
            let slices: Vec<&[u8]> = bytes.iter().map(|b| b.as_slice()).collect();
            let cached = Rows { rows: &slices, floats, next: &[] };
            let mut queries = Queries::default();
            queries.set(width, 1.0, q[from * width..to * width].chunks(width));
            let mut s = vec![[0f32; BLOCK]; to - from];
            scores(&queries, cached, &mut s);
            let mut out = vec![0f32; (to - from) * width];
            mix(&s, cached, &mut out);
            let s: Vec<f32> = s.iter().flat_map(|s| s[..bytes.len()].to_vec()).collect();
            (s, out)
        };
        let all = run(&bytes, Floats::Half, 0, rows);
        for (from, to) in (0..rows).flat_map(|a| (a + 1..=rows).map(move |b| (a, b))) {
            for (bytes, floats) in &kinds {
                let (s, out) = run(bytes, *floats, from, to);
                assert_eq!(s, all.0[from * n..to * n], "rows {from}..{to}, {floats:?}");
                assert_eq!(out, all.1[from * width..to * width], "rows {from}..{to}, {floats:?}");
            }
            assert_eq!(run(&bytes[from..to], Floats::Half, 0, 1).0, all.0[from..to], "keys {from}..{to}");
        }
    }

    #[test]
    fn a_rotation_is_its_formula_in_every_run_and_undoes_itself() {
        let mut rng = Rng(8);
        for run in [32, 64, 128, 512] {
            let x: Vec<f32> = (0..3 * run).map(|_| rng.normal()).collect();
            let mut y = x.clone();
            hadamard(&mut y, run);
            for (i, y) in y.iter().enumerate() {
                let sign = |j: usize| if ((i % run) & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let sum: f64 = (0..run).map(|j| sign(j) * x[i / run * run + j] as f64).sum();
                assert!((*y as f64 - sum / (run as f64).sqrt()).abs() < 1e-5, "value {i} of runs of {run}");
            }
            hadamard(&mut y, run);
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-5), "runs of {run}");
        }
    }

    #[test]
    fn softmax_pieces_do_what_they_say() {
        let mut rng = Rng(7);
        for n in [1, 15, 16, 17, 64, 100] {
            let s: Vec<f32> = (0..n).map(|_| rng.normal() * 9.0).collect();
            let mut t = s.clone();
            let most = largest(&mut t, None);
            assert_eq!(most, s.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v)));
            let sum = exponentials(&mut t, most);
            let want: f64 = s.iter().map(|&v| (v as f64 - most as f64).exp()).sum();
            assert!((sum as f64 - want).abs() < 1e-6 * want, "{sum} for {want}");
            let capped = largest(&mut s.clone(), Some(3.0));
            assert!(capped < 3.0 && capped > 0.0 || n == 1);
        }
        let mut none = [f32::NEG_INFINITY; 3];
        assert_eq!(largest(&mut none, None), f32::NEG_INFINITY);
        assert_eq!(exponentials(&mut none, 0.0), 0.0);
    }
}
