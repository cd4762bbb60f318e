//! Conversions between types.

use super::{Operation, lanes};

/// A half as f32.
pub(in crate::ptx) fn half_to_f32(h: u16) -> f32 {
    let (sign, rest) = ((h as u32 & 0x8000) << 16, (h as u32 & 0x7fff) << 13);
    // The exponent moves by 112; a half that is subnormal is one of f32 after the product, infinity stays.
    let scaled = f32::from_bits(rest) * f32::from_bits(0x7780_0000);
    let bits = if rest >= 0x0f80_0000 { rest | 0x7f80_0000 } else { scaled.to_bits() };
    f32::from_bits(sign | bits)
}

/// The nearest half, ties to even.
pub(in crate::ptx) fn f32_to_half(f: f32) -> u16 {
    let u = f.to_bits();
    let (sign, a) = ((u >> 16 & 0x8000) as u16, u & 0x7fff_ffff);
    sign | match a {
        0x7f80_0001.. => 0x7fff,
        0x477f_f000.. => 0x7c00,
        // A half below the usual range is a multiple of 2^-24: adding 0.5 rounds to that.
        0..0x3880_0000 => (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0x3f00_0000) as u16,
        _ => ((a + 0xfff + (a >> 13 & 1) - 0x3800_0000) >> 13) as u16,
    }
}

/// The nearest value whose lower half is empty, ties to even; the upper half of that.
pub(in crate::ptx) fn f32_to_brain(f: f32) -> u16 {
    let u = f.to_bits();
    if f.is_nan() { 0x7fff } else { ((u + 0x7fff + (u >> 16 & 1)) >> 16) as u16 }
}

fn brain_to_f32(b: u16) -> f32 {
    f32::from_bits((b as u32) << 16)
}

/// What is not a number becomes 0.
fn saturate(a: f32) -> f32 {
    if a.is_nan() { 0.0 } else { a.clamp(0.0, 1.0) }
}

/// From an integer to one of a type. Narrow results are extended to the register, as devices do.
macro_rules! to {
    ($to:expr, $from:ty) => {
        Some(match $to {
            "u8" => lanes!(u32: |a: $from| a as u8 as u32),
            "s8" => lanes!(i32: |a: $from| a as i8 as i32),
            "u16" => lanes!(u16: |a: $from| a as u16),
            "s16" => lanes!(i16: |a: $from| a as i16),
            "u32" => lanes!(u32: |a: $from| a as u32),
            "s32" => lanes!(i32: |a: $from| a as i32),
            "u64" => lanes!(u64: |a: $from| a as u64),
            "s64" => lanes!(i64: |a: $from| a as i64),
            "rn.f32" => lanes!(f32: |a: $from| a as f32),
            _ => return None,
        })
    };
}

/// To integers with a rounding; what is out of range becomes the nearest there is, what is not a number 0.
macro_rules! rounded {
    ($to:expr, |$a:ident| $value:expr) => {
        Some(match $to {
            "u32" => lanes!(u32: |$a: f32| $value as u32),
            "s32" => lanes!(i32: |$a: f32| $value as i32),
            "u64" => lanes!(u64: |$a: f32| $value as u64),
            "s64" => lanes!(i64: |$a: f32| $value as i64),
            "u16" => lanes!(u16: |$a: f32| $value as u16),
            "s16" => lanes!(i16: |$a: f32| $value as i16),
            "f32" => lanes!(f32: |$a: f32| $value),
            _ => return None,
        })
    };
}

pub(super) fn find(name: &str) -> Option<Operation> {
    let (to, from) = name.strip_prefix("cvt.")?.rsplit_once('.')?;
    match from {
        "u8" => to!(to, u8),
        "s8" => to!(to, i8),
        "u16" => to!(to, u16),
        "s16" => to!(to, i16),
        "u32" => to!(to, u32),
        "s32" => to!(to, i32),
        "u64" => to!(to, u64),
        "s64" => to!(to, i64),
        "f16" if to == "f32" => Some(lanes!(f32: |a: u16| half_to_f32(a))),
        "bf16" if to == "f32" => Some(lanes!(f32: |a: u16| brain_to_f32(a))),
        "f32" => from_f32(to),
        _ => None,
    }
}

fn from_f32(to: &str) -> Option<Operation> {
    let (rounding, ty) = to.split_once('.')?;
    match rounding {
        "sat" if ty == "f32" => Some(lanes!(f32: |a: f32| saturate(a))),
        "rni" => rounded!(ty, |a| a.round_ties_even()),
        "rzi" => rounded!(ty, |a| a.trunc()),
        "rmi" => rounded!(ty, |a| a.floor()),
        "rpi" => rounded!(ty, |a| a.ceil()),
        "rn" => Some(match ty {
            "f16" => lanes!(u16: |a: f32| f32_to_half(a)),
            "bf16" => lanes!(u16: |a: f32| f32_to_brain(a)),
            "f16x2" => lanes!(u32: |a: f32, b: f32| (f32_to_half(a) as u32) << 16 | f32_to_half(b) as u32),
            "bf16x2" => lanes!(u32: |a: f32, b: f32| (f32_to_brain(a) as u32) << 16 | f32_to_brain(b) as u32),
            _ => return None,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_come_back_from_f32_as_they_were() {
        for h in 0..=u16::MAX {
            let f = half_to_f32(h);
            let want = if h & 0x7fff > 0x7c00 { h & 0x8000 | 0x7fff } else { h };
            assert_eq!(f32_to_half(f), want, "{h:04x}, {f}");
        }
        // The middle between two neighbours goes to the even one, and what is beyond it up.
        assert_eq!(f32_to_half(1.0 + 2f32.powi(-11)), 0x3c00);
        assert_eq!(f32_to_half((1.0 + 2f32.powi(-11)).next_up()), 0x3c01);
        assert_eq!(f32_to_half(65520.0), 0x7c00);
        assert_eq!(half_to_f32(1), 2f32.powi(-24));
    }
}
