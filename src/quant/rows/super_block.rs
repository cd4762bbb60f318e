//! What the formats of 256 weights to a super-block share: pairing blocks with activations, and the
//! 6-bit scales of Q4_K and Q5_K.

#[cfg(target_arch = "x86_64")]
use super::blocks::of_each;
use crate::quant::activations::ActRow;

/// Weights in a super-block.
pub(crate) const N: usize = 256;

/// Iterates over the super-blocks of an `Act::Q8K` row: 256 activations, their scale, and their sum
/// over every 16.
#[inline]
pub(crate) fn acts(x: ActRow<'_>) -> impl Iterator<Item = (&[i8; N], f32, &[i16; N / 16])> {
    let blocks = x.q.as_chunks().0.iter().zip(x.d).zip(x.sums.as_chunks().0);
    blocks.map(|((q, &d), sums)| (q, d, sums))
}

/// A super-block of activations: 256 of them, their scale, and their sum over every 16.
#[cfg(target_arch = "x86_64")]
pub(crate) type BlockActs<'a> = (&'a [i8; N], f32, &'a [i16; N / 16]);

/// Returns super-block `i` of each of `T` rows of the kind `Act::Q8K`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn block_acts<'a, const T: usize>(x: &[ActRow<'a>; T], i: usize) -> [BlockActs<'a>; T] {
    of_each(x, |x| (&x.q.as_chunks().0[i], x.d[i], &x.sums.as_chunks().0[i]))
}

/// Some super-blocks of activations.
#[cfg(target_arch = "x86_64")]
pub(crate) type BlocksActs<'a> = (&'a [[i8; N]], &'a [f32], &'a [[i16; N / 16]]);

/// Returns `count` super-blocks, from `first` on, of each of `T` rows of the kind `Act::Q8K`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn blocks_acts<'a, const T: usize>(x: &[ActRow<'a>; T], first: usize, count: usize) -> [BlocksActs<'a>; T] {
    let part = first..first + count;
    of_each(x, |x| (&x.q.as_chunks().0[part.clone()], &x.d[part.clone()], &x.sums.as_chunks().0[part.clone()]))
}

/// Unpacks the eight scales and the eight minimums of Q4_K and Q5_K from 6 bits each to the bytes
/// of two words.
///
/// ```text
/// byte j        bits 0..6: scale j                  bits 6..8: high bits of scale 4 + j
/// byte 4 + j    bits 0..6: min j                    bits 6..8: high bits of min 4 + j
/// byte 8 + j    bits 0..4: low bits of scale 4 + j  bits 4..8: low bits of min 4 + j
/// ```
#[inline]
pub(crate) fn scales_and_mins(b: &[u8; 12]) -> [u64; 2] {
    let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let (s, m, low) = (word(0), word(4), word(8));
    let scales = (low & 0x0f0f_0f0f) | (s >> 2 & 0x3030_3030);
    let mins = (low >> 4 & 0x0f0f_0f0f) | (m >> 2 & 0x3030_3030);
    [(s & 0x3f3f_3f3f) as u64 | (scales as u64) << 32, (m & 0x3f3f_3f3f) as u64 | (mins as u64) << 32]
}
