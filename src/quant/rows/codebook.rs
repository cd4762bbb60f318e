//! The scalar code of the codebook formats (IQ1, IQ2, IQ3): a super-block as plain integers, its
//! decoder and its row kernel.
//!
//! ```text
//! w[i] = d * scale[i / 16] * q[i]     d includes the format's fraction: f16 / 8, f16 / 4 or f16
//! q[i] = +-grid byte                  |q| <= 62, scale <= 31: exact in f32 in any order
//! ```

use super::blocks::{put_f16, rows};
use super::super_block::{N as BLOCK, acts};
use crate::quant::activations::ActRow;
use crate::quant::rng::Rng;

/// A super-block of a codebook format as integers.
pub(crate) struct SuperBlock {
    pub(crate) d: f32,
    pub(crate) scale: [i32; 16],
    pub(crate) q: [i8; BLOCK],
}

/// Decodes whole blocks of `BYTES` bytes.
pub(crate) fn dequant<const BYTES: usize>(unpack: fn(&[u8; BYTES]) -> SuperBlock, blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let s = unpack(b);
        for (i, (o, &q)) in o.iter_mut().zip(&s.q).enumerate() {
            *o = s.d * s.scale[i / 16] as f32 * q as f32;
        }
    }
}

/// The scalar row kernel: exact integers within a super-block, f64 across super-blocks.
pub(crate) fn dot<const BYTES: usize>(
    unpack: fn(&[u8; BYTES]) -> SuperBlock,
    w: &[u8],
    stride: usize,
    x: ActRow<'_>,
    out: &mut [f32],
) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
        let mut sum = 0f64;
        for (b, (q, d, _)) in row.as_chunks::<BYTES>().0.iter().zip(acts(x)) {
            let s = unpack(b);
            let dots = s.q.as_chunks::<16>().0.iter().zip(q.as_chunks::<16>().0);
            let dots = dots.map(|(w, q)| w.iter().zip(q).map(|(&w, &q)| w as i32 * q as i32).sum::<i32>());
            let dot: i32 = dots.zip(&s.scale).map(|(dot, scale)| dot * scale).sum();
            sum += s.d as f64 * d as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

/// Fills a block with random bytes, all of which are valid, and draws the f16 scale at `at` around
/// `1 / rms`.
pub(crate) fn random(rng: &mut Rng, block: &mut [u8], at: usize, rms: f32) {
    rng.fill(block);
    put_f16(block, at, (0.5 + rng.unit()) / rms);
}

/// Returns the 8 signs (a set bit is minus) of a 7-bit field: the eighth makes the number of
/// minuses even.
pub(crate) fn even_signs(field: u32) -> u8 {
    let seven = field & 127;
    (seven | (seven.count_ones() & 1) << 7) as u8
}

/// Returns the 8 values of a grid entry with their signs.
pub(crate) fn signed(grid: u64, signs: u8) -> [i8; 8] {
    let bytes = grid.to_le_bytes();
    std::array::from_fn(|i| if signs >> i & 1 == 0 { bytes[i] as i8 } else { -(bytes[i] as i8) })
}

/// Returns the 8 weights of an entry of IQ1S with their offset, in eighths: `8 * (grid +- 1/8)`.
pub(crate) fn shifted(grid: u64, minus: bool) -> [i8; 8] {
    grid.to_le_bytes().map(|b| b as i8 - if minus { 9 } else { 7 })
}

/// Unpacks 16 scales of 4 bits, the low half of a byte first, as `2s + 1`.
pub(crate) fn nibble_scales(bytes: &[u8]) -> [i32; 16] {
    std::array::from_fn(|i| 2 * (bytes[i / 2] >> (4 * (i % 2)) & 15) as i32 + 1)
}
