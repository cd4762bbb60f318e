//! Access to rows of weights as blocks of bytes: f16 fields of a block, rows of a group, blocks of
//! a row.

#[cfg(target_arch = "x86_64")]
use crate::quant::activations::{ActBlock, ActRow};

/// Returns the f16 at byte `at` of a block as f32.
#[inline]
pub(crate) fn f16_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Writes `x` as f16 at byte `at` of a block.
pub(crate) fn put_f16(block: &mut [u8], at: usize, x: f32) {
    block[at..at + 2].copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
}

/// Splits row group `w` into its rows: `out.len()` rows of `bytes` bytes, `stride` apart.
#[inline]
pub(crate) fn rows(w: &[u8], stride: usize, bytes: usize) -> impl Iterator<Item = &[u8]> {
    (0..).map(move |r| &w[r * stride..r * stride + bytes])
}

/// Calls a kernel with the rows of `w`, and stores what it returns for every token: four rows at a
/// time for one token, two for two tokens, and one for more; the last rows one at a time.
///
/// The rows share the loads of the activations and hide each other's latency: from cache four are
/// 1.4 to 2 times as fast as one. From memory they are four short streams, which hardware
/// prefetchers follow badly (Q4_0 on a Zen 4 core: 5 GB/s, one row at a time 10), so kernels
/// prefetch the same place of the next group, which gives 10 GB/s and more.
#[cfg(target_arch = "x86_64")]
pub(crate) fn by_four<const T: usize>(
    w: &[u8],
    stride: usize,
    mut out: [&mut [f32]; T],
    four: impl Fn(&[u8]) -> [[f32; 4]; T],
    two: impl Fn(&[u8]) -> [[f32; 2]; T],
    one: impl Fn(&[u8]) -> [[f32; 1]; T],
) {
    let rows = out[0].len();
    let mut r = 0;
    while r < rows {
        let (w, left) = (&w[r * stride..], rows - r);
        r += match T {
            1 if left >= 4 => store(&mut out, r, four(w)),
            2 if left >= 2 => store(&mut out, r, two(w)),
            _ => store(&mut out, r, one(w)),
        };
    }
}

/// Stores the sums of `R` rows, and returns how many they are.
#[cfg(target_arch = "x86_64")]
fn store<const R: usize, const T: usize>(out: &mut [&mut [f32]; T], r: usize, sums: [[f32; R]; T]) -> usize {
    out.iter_mut().zip(sums).for_each(|(out, sums)| out[r..r + R].copy_from_slice(&sums));
    R
}

/// Calls a kernel for two tokens with each two of the tokens: for kernels of floats, which have as
/// many sums for four as there are registers.
///
/// Rejected: row by row, so that the second two tokens find a row in the first-level cache. There
/// they find the first two tokens' activations instead of their own (BF16, rows of 2048: no faster
/// from memory than one token at a time). The sums of all four, of which some have no register: 1.6
/// times as slow.
#[cfg(target_arch = "x86_64")]
pub(crate) fn two_by_two<const T: usize>(
    x: [ActRow<'_>; T],
    mut out: [&mut [f32]; T],
    two: impl Fn([ActRow<'_>; 2], [&mut [f32]; 2]),
) {
    for (x, [a, b]) in x.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<2>().0) {
        two(*x, [a, b]);
    }
}

/// Returns what `of` returns for each of `T` rows. It stands for `x.map(of)`, which is not inlined
/// for more than two rows; nor for any if `of` is a closure in a kernel, since that has the kernel's
/// instruction set.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn of_each<'a, R: Copy, const T: usize>(x: &[ActRow<'a>; T], of: impl Fn(&ActRow<'a>) -> R) -> [R; T] {
    let mut all = [of(&x[0]); T];
    for t in 1..T {
        all[t] = of(&x[t]);
    }
    all
}

/// Returns block `i` of each of `T` rows of activations.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn act_blocks<'a, const T: usize>(x: &[ActRow<'a>; T], i: usize) -> [&'a ActBlock; T] {
    of_each(x, |x| &x.act_blocks[i])
}

/// Returns the `i`-th `N` floats of each of `T` rows of activations.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn floats<'a, const N: usize, const T: usize>(x: &[ActRow<'a>; T], i: usize) -> [&'a [f32; N]; T] {
    of_each(x, |x| &x.f.as_chunks().0[i])
}

/// Activations 32 at a time, the scale of each 32, and their sums over every 16.
#[cfg(target_arch = "x86_64")]
pub(crate) type SmallActs<'a> = (&'a [[i8; 32]], &'a [f32], &'a [[i16; 2]]);

/// Returns the first `n` times 32 activations of each of `T` rows of the kind `Act::Q8`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn small_acts<'a, const T: usize>(x: &[ActRow<'a>; T], n: usize) -> [SmallActs<'a>; T] {
    of_each(x, |x| (&x.q.as_chunks().0[..n], &x.d[..n], &x.sums.as_chunks().0[..n]))
}

/// Returns the first `n` blocks of each of `R` rows, `stride` bytes apart.
#[cfg(target_arch = "x86_64")]
pub(crate) fn blocks<const R: usize, const BYTES: usize>(w: &[u8], stride: usize, n: usize) -> [&[[u8; BYTES]]; R] {
    std::array::from_fn(|r| &w[r * stride..].as_chunks().0[..n])
}
