//! What the decoders of super-block formats share when they fill panels.

use super::lanes::Lanes;
use super::panel::PanelHalf;

/// Sets the scales and minimums of Q4_K and Q5_K for 16 rows: the 6-bit fields of
/// [`scales_and_mins`](crate::quant::rows::super_block::scales_and_mins), times the factors d and
/// dmin that precede them.
#[inline(always)]
pub(crate) fn scales_and_mins_16<V: Lanes>([d, s, m, low]: [V; 4], out: &mut PanelHalf<'_>) {
    let (d, dmin) = (Factor::new(d.f16_to_f32()), Factor::new(d.shr(16).f16_to_f32()));
    let scales = [d.times(s.mask(0x3f3f_3f3f)), d.times(low.mask(0x0f0f_0f0f).or(s.shr(2).mask(0x3030_3030)))];
    let mins =
        [dmin.times(m.mask(0x3f3f_3f3f)), dmin.times(low.shr(4).mask(0x0f0f_0f0f).or(m.shr(2).mask(0x3030_3030)))];
    for j in 0..8 {
        out.scale(j, scales[j / 4][j % 4]);
        out.min(j, mins[j / 4][j % 4]);
    }
}

/// A factor of 16 rows (f32) that multiplies the four bytes of a word in place. Byte `j` of a word
/// is an integer 256^j too large, so the factor is kept four times, each 256^j smaller. Both are
/// exact.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factor<V>([V; 4]);

impl<V: Lanes> Factor<V> {
    /// Makes it from the factor (f32).
    #[inline(always)]
    pub(crate) fn new(d: V) -> Factor<V> {
        let part = d.splat((1.0f32 / 256.0).to_bits());
        let (d1, d2) = (d.mul_f32(part), d.mul_f32(part).mul_f32(part));
        Factor([d, d1, d2, d2.mul_f32(part)])
    }

    /// Multiplies the four bytes of a word, all below 128, with the factor.
    #[inline(always)]
    pub(crate) fn times(&self, bytes: V) -> [V; 4] {
        [
            bytes.mask(0xff).to_f32().mul_f32(self.0[0]),
            bytes.mask(0xff00).to_f32().mul_f32(self.0[1]),
            bytes.mask(0xff_0000).to_f32().mul_f32(self.0[2]),
            bytes.mask(0xff00_0000).to_f32().mul_f32(self.0[3]),
        ]
    }

    /// Multiplies the four signed bytes of a word with the factor.
    #[inline(always)]
    pub(crate) fn times_signed(&self, bytes: V) -> [V; 4] {
        [
            bytes.shl(24).to_f32().mul_f32(self.0[3]),
            bytes.shl(16).mask(0xff00_0000).to_f32().mul_f32(self.0[3]),
            bytes.shl(8).mask(0xff00_0000).to_f32().mul_f32(self.0[3]),
            bytes.mask(0xff00_0000).to_f32().mul_f32(self.0[3]),
        ]
    }
}

/// Moves bit `from` of every byte to bit `to`.
#[inline(always)]
pub(crate) fn bit<V: Lanes>(v: V, from: usize, to: usize) -> V {
    let moved = if from < to { v.shl((to - from) as u32) } else { v.shr((from - to) as u32) };
    moved.mask(0x0101_0101 << to)
}
