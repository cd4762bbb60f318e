//! Small products of dense f32 matrices, and the softmax between them: what attention consists of.
//!
//! Every element of a product is one chain of fused multiply-adds along `k`, whatever the number of rows, so results do
//! not depend on how rows are put together. (The scalar form rounds between multiplying and adding.)

#![allow(unsafe_code)] // calls of functions compiled for an instruction set, after asking for it

use crate::simd::{self, Isa};

/// Columns that a product computes at once.
pub const COLS: usize = 32;
/// Rows that a product computes at once, at most: 16 sums, two vectors of `b` and one of `a` in AVX-512.
pub const ROWS: usize = 8;

/// A matrix in memory: rows `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The first row's first column on.
    pub at: &'a [f32],
    /// Values from a row to the next.
    pub stride: usize,
}

/// `c[r][j] = sum_k a[r][k] * b[k][j]`, added to what is there if `add`; `rows` rows, `k` terms and [`COLS`] columns.
pub fn product(rows: usize, k: usize, a: Rows<'_>, b: Rows<'_>, c: &mut [f32], c_stride: usize, add: bool) {
    let end = |m: Rows<'_>, n: usize, width: usize| n == 0 || m.at.len() >= (n - 1) * m.stride + width;
    assert!(end(a, rows, k) && end(b, k, COLS) && (rows == 0 || c.len() >= (rows - 1) * c_stride + COLS));
    for r in (0..rows).step_by(ROWS) {
        let a = Rows { at: &a.at[r * a.stride..], ..a };
        let c = &mut c[r * c_stride..];
        macro_rules! rows {
            ($($n:literal)*) => {
                match rows - r {
                    $($n => some::<$n>(k, a, b, c, c_stride, add),)*
                    _ => some::<ROWS>(k, a, b, c, c_stride, add),
                }
            };
        }
        rows!(1 2 3 4 5 6 7);
    }
}

fn some<const R: usize>(k: usize, a: Rows<'_>, b: Rows<'_>, c: &mut [f32], c_stride: usize, add: bool) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: each form is called where `isa` says that the CPU has its instructions.
    unsafe {
        match simd::isa() {
            isa if isa >= Isa::Avx512 => return product_avx512::<R>(k, a, b, c, c_stride, add),
            Isa::Avx2 => return product_avx2::<R>(k, a, b, c, c_stride, add),
            _ => {}
        }
    }
    product_plain::<R>(k, a, b, c, c_stride, add);
}

fn product_plain<const R: usize>(k: usize, a: Rows<'_>, b: Rows<'_>, c: &mut [f32], c_stride: usize, add: bool) {
    for r in 0..R {
        let mut sums = [0f32; COLS];
        if add {
            sums.copy_from_slice(&c[r * c_stride..][..COLS]);
        }
        for k in 0..k {
            let (x, row) = (a.at[r * a.stride + k], &b.at[k * b.stride..][..COLS]);
            sums.iter_mut().zip(row).for_each(|(s, b)| *s += x * b);
        }
        c[r * c_stride..][..COLS].copy_from_slice(&sums);
    }
}

/// The AVX-512 product over whatever the rows of `b` are: `load(k)` gives 32 columns of row `k`.
#[cfg(target_arch = "x86_64")]
macro_rules! product_avx512 {
    ($name:ident, $b:ident: $ty:ty, |$k:ident| $load:expr) => {
        #[target_feature(enable = "avx512f")]
        fn $name<const R: usize>(k: usize, a: Rows<'_>, $b: $ty, c: &mut [f32], c_stride: usize, add: bool) {
            use crate::simd::x86::*;
            use std::arch::x86_64::*;
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            if add {
                for r in 0..R {
                    sums[r] = load_f32x32(c[r * c_stride..][..COLS].as_array().unwrap());
                }
            }
            let a: [&[f32]; R] = std::array::from_fn(|r| &a.at[r * a.stride..][..k]);
            for $k in 0..k {
                let b = $load;
                for r in 0..R {
                    let x = _mm512_set1_ps(a[r][$k]);
                    for h in 0..2 {
                        sums[r][h] = _mm512_fmadd_ps(x, b[h], sums[r][h]);
                    }
                }
            }
            for r in 0..R {
                store_f32x32(c[r * c_stride..][..COLS].as_mut_array().unwrap(), sums[r]);
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
product_avx512!(product_avx512, b: Rows<'_>, |k| load_f32x32(b.at[k * b.stride..][..COLS].as_array().unwrap()));

#[cfg(target_arch = "x86_64")]
product_avx512!(halves_avx512, b: (&[&[u8]], usize), |k| {
    let (low, high) = b.0[k][b.1..][..64].split_at(32);
    [load_f16x16(low.as_array().unwrap()), load_f16x16(high.as_array().unwrap())]
});

/// Whether rows of f16 can be multiplied as they are: [`product_halves`] and [`turn_halves`].
pub fn takes_halves() -> bool {
    simd::isa() >= Isa::Avx512
}

/// `c[r][j] += sum_k a[r][k] * b[k][j]` for every column of the rows of f16 `b`; what lies beyond the last whole
/// [`COLS`] columns must be handed in as zeros up to there. Only where [`takes_halves`].
///
/// # Panics
/// Without AVX-512.
pub fn product_halves(rows: usize, a: Rows<'_>, b: &[&[u8]], c: &mut [f32], c_stride: usize) {
    assert!(takes_halves());
    #[cfg(target_arch = "x86_64")]
    for col in (0..b.first().map_or(0, |b| b.len() / 2)).step_by(COLS) {
        for r in (0..rows).step_by(ROWS) {
            let a = Rows { at: &a.at[r * a.stride..], ..a };
            let c = &mut c[r * c_stride + col..];
            macro_rules! rows {
                ($($n:literal)*) => {
                    // SAFETY: takes_halves says that the CPU has AVX-512.
                    unsafe {
                        match rows - r {
                            $($n => halves_avx512::<$n>(b.len(), a, (b, 2 * col), c, c_stride, true),)*
                            _ => halves_avx512::<ROWS>(b.len(), a, (b, 2 * col), c, c_stride, true),
                        }
                    }
                };
            }
            rows!(1 2 3 4 5 6 7);
        }
    }
}

/// Turns 16 rows of `k` values in f16 into columns of f32: `to[i * stride + r] = rows[r][i]`. `k` is a multiple of 8. Only
/// where [`takes_halves`].
///
/// # Panics
/// Without AVX-512.
pub fn turn_halves(rows: [&[u8]; 16], to: &mut [f32], stride: usize) {
    assert!(takes_halves());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: takes_halves says that the CPU has AVX-512.
    unsafe {
        turn_halves_avx512(rows, to, stride)
    }
}

/// Words of two values are turned first, then the even values of two vectors of words are brought together, and the odd.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn turn_halves_avx512(rows: [&[u8]; 16], to: &mut [f32], stride: usize) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    static EVEN: [i16; 32] = {
        let mut t = [0; 32];
        let mut i = 0;
        while i < 32 {
            t[i] = 2 * i as i16;
            i += 1;
        }
        t
    };
    let even = load_i16x32(&EVEN);
    let odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    let n = rows[0].len() / 16;
    let rows: [&[[u8; 16]]; 16] = rows.map(|r| &r.as_chunks().0[..n]);
    for i in 0..n {
        let w = turn_words_16(std::array::from_fn(|r| &rows[r][i]));
        for (j, (a, b)) in [(w[0], w[1]), (w[2], w[3])].into_iter().enumerate() {
            for (odd, which) in [even, odd].into_iter().enumerate() {
                let both = _mm512_permutex2var_epi16(a, which, b);
                let (low, high) = (_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both));
                for (k, v) in [(8 * i + 4 * j + odd, low), (8 * i + 4 * j + 2 + odd, high)] {
                    store_f32x16(to[k * stride..][..16].as_mut_array().unwrap(), _mm512_cvtph_ps(v));
                }
            }
        }
    }
}

/// Half the columns and half the rows at a time: AVX2 has half the registers, of half the width.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn product_avx2<const R: usize>(k: usize, a: Rows<'_>, b: Rows<'_>, c: &mut [f32], c_stride: usize, add: bool) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    for r0 in (0..R).step_by(4) {
        let a: [&[f32]; 4] = std::array::from_fn(|i| &a.at[(r0 + i).min(R - 1) * a.stride..][..k]);
        for half in 0..2 {
            let at = |m: &[f32], i: usize| load_f32x8(&m[half * 16..][..16].as_chunks::<8>().0[i]);
            let mut sums = [[_mm256_setzero_ps(); 2]; 4];
            for i in 0..4.min(R - r0) {
                if add {
                    let c = &c[(r0 + i) * c_stride..][..COLS];
                    sums[i] = [at(c, 0), at(c, 1)];
                }
            }
            for k in 0..k {
                let b = &b.at[k * b.stride..][..COLS];
                let b = [at(b, 0), at(b, 1)];
                for i in 0..4 {
                    let x = _mm256_set1_ps(a[i][k]);
                    for h in 0..2 {
                        sums[i][h] = _mm256_fmadd_ps(x, b[h], sums[i][h]);
                    }
                }
            }
            for i in 0..4.min(R - r0) {
                let c = &mut c[(r0 + i) * c_stride + half * 16..][..16];
                for (c, s) in c.as_chunks_mut::<8>().0.iter_mut().zip(sums[i]) {
                    store_f32x8(c, s);
                }
            }
        }
    }
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
                    Isa::Avx2 => return avx2($($arg),*),
                    _ => {}
                }
            }
            body($($arg),*)
        }
    };
}

for_each_isa! {
    /// Multiplies scores by `scale` and squashes them to (-cap, cap) if there is a cap; returns the largest, or -inf.
    pub fn scale_scores(s: &mut [f32], scale: f32, cap: Option<f32>) -> f32 {
        s.iter_mut().for_each(|v| *v *= scale);
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

for_each_isa! {
    /// Turns 32 rows of `k` values into columns: `to[i * stride + r] = rows[r * k + i]`.
    pub fn turn(rows: &[f32], k: usize, to: &mut [f32], stride: usize) {
        let mut i = 0;
        // A square of 16 at a time, through arrays that stay in registers.
        while i + 16 <= k {
            for half in 0..2 {
                let mut square = [[0f32; 16]; 16];
                for (r, row) in square.iter_mut().enumerate() {
                    row.copy_from_slice(&rows[(half * 16 + r) * k + i..][..16]);
                }
                for j in 0..16 {
                    let to = &mut to[(i + j) * stride + half * 16..][..16];
                    for r in 0..16 {
                        to[r] = square[r][j];
                    }
                }
            }
            i += 16;
        }
        for i in i..k {
            for r in 0..32 {
                to[i * stride + r] = rows[r * k + i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Rng;

    #[test]
    fn products_are_the_sums_of_their_terms_for_every_number_of_rows() {
        let mut rng = Rng(5);
        for rows in 1..20 {
            let (k, sa, sb, sc) = (1 + rng.below(70), 80, 40, 36);
            let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal()).collect() };
            let (a, b, start) = (random(rows * sa), random(k * sb), random(rows * sc));
            for add in [false, true] {
                let mut c = start.clone();
                product(rows, k, Rows { at: &a, stride: sa }, Rows { at: &b, stride: sb }, &mut c, sc, add);
                for r in 0..rows {
                    for j in 0..sc {
                        let sum: f64 = (0..k).map(|k| a[r * sa + k] as f64 * b[k * sb + j] as f64).sum();
                        let want = match j < COLS {
                            true => sum + if add { start[r * sc + j] as f64 } else { 0.0 },
                            false => start[r * sc + j] as f64,
                        };
                        // 70 terms of about 1, rounded one after the other.
                        assert!(
                            (c[r * sc + j] as f64 - want).abs() < 4e-5,
                            "{rows} rows: {} for {want}",
                            c[r * sc + j]
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_halves_are_multiplied_and_turned_as_their_values() {
        if !takes_halves() {
            return;
        }
        let mut rng = Rng(8);
        for (rows, n, width) in [(1, 16, 32), (8, 40, 128), (13, 64, 96)] {
            let half = |rng: &mut Rng| half::f16::from_f32(rng.normal());
            let b: Vec<Vec<half::f16>> = (0..n).map(|_| (0..width).map(|_| half(&mut rng)).collect()).collect();
            let bytes: Vec<Vec<u8>> = b.iter().map(|r| r.iter().flat_map(|h| h.to_le_bytes()).collect()).collect();
            let slices: Vec<&[u8]> = bytes.iter().map(|b| b.as_slice()).collect();
            let flat: Vec<f32> = b.iter().flatten().map(|h| h.to_f32()).collect();
            let a: Vec<f32> = (0..rows * n).map(|_| rng.normal()).collect();
            let (mut got, mut want) = (vec![1f32; rows * width], vec![1f32; rows * width]);
            let a = Rows { at: &a, stride: n };
            product_halves(rows, a, &slices, &mut got, width);
            for col in (0..width).step_by(COLS) {
                let b = Rows { at: &flat[col..], stride: width };
                product(rows, n, a, b, &mut want[col..], width, true);
            }
            assert_eq!(got, want, "{rows} rows times {n} by {width}");
            let mut turned = vec![0f32; width * 20];
            turn_halves(std::array::from_fn(|r| slices[r]), &mut turned, 20);
            for i in 0..width {
                assert!((0..16).all(|r| turned[i * 20 + r] == flat[r * width + i]));
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_whatever_company() {
        let mut rng = Rng(6);
        let k = 100;
        let a: Vec<f32> = (0..8 * k).map(|_| rng.normal()).collect();
        let b: Vec<f32> = (0..k * COLS).map(|_| rng.normal()).collect();
        let b = Rows { at: &b, stride: COLS };
        let mut all = vec![0f32; 8 * COLS];
        product(8, k, Rows { at: &a, stride: k }, b, &mut all, COLS, false);
        for n in 1..8 {
            for from in 0..8 - n {
                let mut some = vec![0f32; n * COLS];
                product(n, k, Rows { at: &a[from * k..], stride: k }, b, &mut some, COLS, false);
                assert_eq!(some, all[from * COLS..(from + n) * COLS], "rows {from}..{}", from + n);
            }
        }
    }

    #[test]
    fn softmax_pieces_do_what_they_say() {
        let mut rng = Rng(7);
        for n in [1, 15, 16, 17, 64, 100] {
            let s: Vec<f32> = (0..n).map(|_| rng.normal() * 9.0).collect();
            let mut t = s.clone();
            let most = scale_scores(&mut t, 0.5, None);
            assert_eq!(most, s.iter().fold(f32::NEG_INFINITY, |m, v| m.max(v * 0.5)));
            let sum = exponentials(&mut t, most);
            let want: f64 = s.iter().map(|&v| (v as f64 * 0.5 - most as f64).exp()).sum();
            assert!((sum as f64 - want).abs() < 1e-6 * want, "{sum} for {want}");
            let capped = scale_scores(&mut s.clone(), 1.0, Some(3.0));
            assert!(capped < 3.0 && capped > 0.0 || n == 1);
        }
        let mut none = [f32::NEG_INFINITY; 3];
        assert_eq!(scale_scores(&mut none, 2.0, None), f32::NEG_INFINITY);
        assert_eq!(exponentials(&mut none, 0.0), 0.0);
    }

    #[test]
    fn turned_rows_stand_as_columns() {
        for k in [5, 16, 40, 128] {
            let rows: Vec<f32> = (0..32 * k).map(|i| i as f32).collect();
            let mut to = vec![-1f32; k * 40];
            turn(&rows, k, &mut to, 40);
            for i in 0..k {
                assert!((0..40).all(|r| to[i * 40 + r] == if r < 32 { (r * k + i) as f32 } else { -1.0 }));
            }
        }
    }
}
