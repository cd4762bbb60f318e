//! Access to rows of weights as blocks of bytes: f16 fields of a block, rows of a group, blocks of
//! a row.

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
/// time, and the last three or fewer one at a time. Several tokens get one row at a time: they share
/// its decoded blocks, and hide each other's latency.
///
/// Four rows share the loads of the activations and hide each other's latency: from cache that is
/// 1.4 to 2 times the speed of one. From memory they are four short streams, which hardware
/// prefetchers follow badly (Q4_0 on a Zen 4 core: 5 GB/s, one row at a time 10), so kernels
/// prefetch the same place of the next group, which gives 10 GB/s and more.
#[cfg(target_arch = "x86_64")]
pub(crate) fn by_four<const T: usize>(
    w: &[u8],
    stride: usize,
    mut out: [&mut [f32]; T],
    four: impl Fn(&[u8]) -> [[f32; 4]; T],
    one: impl Fn(&[u8]) -> [[f32; 1]; T],
) {
    let rows = out[0].len();
    let fours = if T == 1 { rows / 4 * 4 } else { 0 };
    for r in (0..fours).step_by(4) {
        for (out, sums) in out.iter_mut().zip(four(&w[r * stride..])) {
            out[r..r + 4].copy_from_slice(&sums);
        }
    }
    for r in fours..rows {
        for (out, [sum]) in out.iter_mut().zip(one(&w[r * stride..])) {
            out[r] = sum;
        }
    }
}

/// Returns the first `n` blocks of each of `R` rows, `stride` bytes apart.
#[cfg(target_arch = "x86_64")]
pub(crate) fn blocks<const R: usize, const BYTES: usize>(w: &[u8], stride: usize, n: usize) -> [&[[u8; BYTES]]; R] {
    std::array::from_fn(|r| &w[r * stride..].as_chunks().0[..n])
}
