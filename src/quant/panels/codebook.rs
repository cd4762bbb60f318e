//! What the decoders of the codebook formats (IQ1, IQ2, IQ3) share when they fill panels.

use super::lanes::{Blocks16, Lanes};
use super::panel::PanelHalf;

/// Returns the odd scale `2s + 1` as f32.
#[inline(always)]
pub(crate) fn odd_scale<V: Lanes>(s: V) -> V {
    s.add(s).or(s.splat(1)).to_f32()
}

/// Spreads the low 28 bits of a word, 4 fields of 7 signs, to bytes of 8 signs.
#[inline(always)]
pub(crate) fn signs_of_28<V: Lanes>(v: V) -> V {
    let v = v.mask(0x3fff).or(v.mask(0x0fff_c000).shl(2));
    with_parity(v.mask(0x007f_007f).or(v.mask(0x3f80_3f80).shl(1)))
}

/// Sets the eighth sign bit of every byte to the parity of its other seven.
#[inline(always)]
pub(crate) fn with_parity<V: Lanes>(v: V) -> V {
    static PARITY: [i8; 16] = [0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0];
    v.or(v.xor(v.shr(4)).mask(0x0f0f_0f0f).look_up8(&PARITY))
}

/// Sets the codes of 4 entries of 8 weights; byte `l` of `signs` belongs to entry `l`.
#[inline(always)]
pub(crate) fn put_eights<V: Lanes>(out: &mut PanelHalf<'_>, step: usize, grid: [[V; 2]; 4], signs: V) {
    put_fours(out, step, [grid[0][0], grid[0][1], grid[1][0], grid[1][1]], signs);
    put_fours(out, step + 4, [grid[2][0], grid[2][1], grid[3][0], grid[3][1]], signs.shr(16));
}

/// Sets the codes of 4 entries of 4 weights; bits `4l..4l + 4` of `signs` belong to entry `l`.
#[inline(always)]
pub(crate) fn put_fours<V: Lanes>(out: &mut PanelHalf<'_>, step: usize, grid: [V; 4], signs: V) {
    for (l, grid) in grid.into_iter().enumerate() {
        out.codes(step + l, grid.negate8_at(signs, 4 * l as u32));
    }
}

/// Sets 16 scales `(2s + 1) * d` from 4-bit fields in words `from..from + 2` of the 16 bytes at
/// `at`.
#[inline(always)]
pub(crate) fn put_nibble_scales<V: Lanes, const BYTES: usize>(
    b: &Blocks16<'_, V, BYTES>,
    at: usize,
    from: usize,
    d: V,
    out: &mut PanelHalf<'_>,
) {
    let words = b.words(at);
    for g in 0..16 {
        out.scale(g, odd_scale(words[from + g / 8].shr(4 * (g as u32 % 8)).mask(15)).mul_f32(d));
    }
}
