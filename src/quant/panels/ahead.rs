//! Prefetching the weights that are multiplied next.

/// Prefetches for the next panel while the current one is multiplied. A panel reads short pieces of
/// rows that are far apart, which hardware prefetchers do not predict. Saves a tenth of a prompt's
/// time (Q4_K and Q6_K from memory: filling panels takes a third as long).
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Ahead<'a> {
    w: &'a [u8],
    /// Byte offset of the first row's piece. It may be past the end of the matrix, since a prefetch
    /// never faults.
    at: usize,
    stride: usize,
    /// Cache lines in a piece, in all pieces, and in one token's share.
    lines: usize,
    all: usize,
    share: usize,
}

impl<'a> Ahead<'a> {
    /// Plans prefetches of `rows` pieces of `len` bytes, `stride` apart, the first at `at` of `w`,
    /// spread over `tokens`.
    pub(crate) fn new(w: &'a [u8], at: usize, stride: usize, len: usize, rows: usize, tokens: usize) -> Ahead<'a> {
        let lines = len.div_ceil(64);
        let all = rows * lines;
        Ahead { w, at, stride, lines, all, share: all.div_ceil(tokens) }
    }

    /// Prefetches the share of these tokens.
    #[inline]
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    pub(crate) fn ask(&self, tokens: &std::ops::Range<usize>) {
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
