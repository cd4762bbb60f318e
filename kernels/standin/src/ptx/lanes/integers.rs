//! Integers and bits.

use super::{Operation, lanes};

/// `s` picks four of the eight bytes of b:a, or their signs.
pub(in crate::ptx) fn prmt(a: u32, b: u32, s: u32) -> u32 {
    let both = (b as u64) << 32 | a as u64;
    (0..4).fold(0, |out, i| {
        let which = s >> (4 * i) & 15;
        let byte = (both >> (8 * (which & 7))) as u8;
        let byte = if which & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        out | (byte as u32) << (8 * i)
    })
}

pub(in crate::ptx) fn dp4a_signed(a: u32, b: u32, c: u32) -> u32 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    (0..4).fold(c, |sum, i| sum.wrapping_add((a[i] as i8 as i32 * b[i] as i8 as i32) as u32))
}

pub(in crate::ptx) fn dp4a_unsigned(a: u32, b: u32, c: u32) -> u32 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    (0..4).fold(c, |sum, i| sum.wrapping_add(a[i] as u32 * b[i] as u32))
}

/// Bits of `b` with those of `a` put at `at`, `n` of them.
pub(in crate::ptx) fn bfi(a: u64, b: u64, at: u32, n: u32, width: u32) -> u64 {
    let (at, n) = (at & 255, n & 255);
    if at >= width || n == 0 {
        return b;
    }
    let ones = if n >= 64 { !0 } else { (1u64 << n) - 1 };
    b & !(ones << at) | (a & ones) << at
}

/// `n` bits of `a` from bit `at` on, sign extended where `signed`: from the last bit of the field, or of the value where
/// the field ends beyond it.
pub(in crate::ptx) fn bfe(a: u64, at: u32, n: u32, width: u32, signed: bool) -> u64 {
    let (at, n) = (at & 255, n & 255);
    let bit = |i: u32| i < width && a >> i & 1 != 0;
    let sign = signed && n > 0 && bit((at + n - 1).min(width - 1));
    (0..width).fold(0, |out, i| {
        let set = if i < n && at + i < width { bit(at + i) } else { sign };
        out | (set as u64) << i
    })
}

/// Bit i of the result is bit 4 a + 2 b + c of `table`.
fn lop3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|i| table >> i & 1 != 0).fold(0, |out, i| {
        let term = |x: u32, set: bool| if set { x } else { !x };
        out | term(a, i & 4 != 0) & term(b, i & 2 != 0) & term(c, i & 1 != 0)
    })
}

/// Shifts by as many bits as there are and more give 0, or the sign.
fn shift(value: u64, by: u32, width: u32, left: bool) -> u64 {
    match (by < width, left) {
        (false, _) => 0,
        (true, true) => value << by,
        (true, false) => value >> by,
    }
}

fn shift_signed(value: i64, by: u32, width: u32) -> i64 {
    value >> by.min(width - 1)
}

/// The highest bit that is set (for a negative number: that is not), or all ones where there is none.
fn bfind(a: u32, signed: bool) -> u32 {
    let a = if signed && (a as i32) < 0 { !a } else { a };
    31u32.wrapping_sub(a.leading_zeros())
}

macro_rules! arithmetic {
    ($name:expr, $op:expr, $ty:ty, $wide:ty) => {
        match $op {
            "add" => lanes!($ty: |a: $ty, b: $ty| a.wrapping_add(b)),
            "sub" => lanes!($ty: |a: $ty, b: $ty| a.wrapping_sub(b)),
            "mul.lo" => lanes!($ty: |a: $ty, b: $ty| a.wrapping_mul(b)),
            "mul.hi" => lanes!($ty: |a: $ty, b: $ty| ((a as $wide * b as $wide) >> <$ty>::BITS) as $ty),
            "mad.lo" => lanes!($ty: |a: $ty, b: $ty, c: $ty| a.wrapping_mul(b).wrapping_add(c)),
            // What PTX leaves open for 0 is all ones and the dividend here, as on devices.
            "div" => lanes!($ty: |a: $ty, b: $ty| if b == 0 { !0 } else { a.wrapping_div(b) }),
            "rem" => lanes!($ty: |a: $ty, b: $ty| if b == 0 { a } else { a.wrapping_rem(b) }),
            "min" => lanes!($ty: |a: $ty, b: $ty| a.min(b)),
            "max" => lanes!($ty: |a: $ty, b: $ty| a.max(b)),
            _ => return None,
        }
    };
}

macro_rules! bits {
    ($op:expr, $ty:ty) => {
        match $op {
            "and" => lanes!($ty: |a: $ty, b: $ty| a & b),
            "or" => lanes!($ty: |a: $ty, b: $ty| a | b),
            "xor" => lanes!($ty: |a: $ty, b: $ty| a ^ b),
            "not" => lanes!($ty: |a: $ty| !a),
            "mov" => lanes!($ty: |a: $ty| a),
            "selp" => lanes!($ty: |a: $ty, b: $ty, p: bool| if p { a } else { b }),
            _ => return None,
        }
    };
}

/// Instructions of a type that all integers have, then those that only one width has.
pub(super) fn find(name: &str) -> Option<Operation> {
    special(name).or_else(|| {
        let (op, ty) = name.rsplit_once('.')?;
        let found = match ty {
            "u16" => arithmetic!(name, op, u16, u32),
            "s16" => arithmetic!(name, op, i16, i32),
            "u32" => arithmetic!(name, op, u32, u64),
            "s32" => arithmetic!(name, op, i32, i64),
            "u64" => arithmetic!(name, op, u64, u128),
            "s64" => arithmetic!(name, op, i64, i128),
            _ => return None,
        };
        Some(found)
    })
}

fn special(name: &str) -> Option<Operation> {
    let (op, ty) = name.rsplit_once('.')?;
    if let "and" | "or" | "xor" | "not" | "mov" | "selp" = op {
        return Some(match ty {
            "b16" | "u16" | "s16" | "f16" => bits!(op, u16),
            "b32" | "u32" | "s32" | "f32" => bits!(op, u32),
            "b64" | "u64" | "s64" | "f64" => bits!(op, u64),
            "pred" => bits!(op, bool),
            _ => return None,
        });
    }
    Some(match name {
        "mul.wide.u16" => lanes!(u32: |a: u16, b: u16| a as u32 * b as u32),
        "mul.wide.s16" => lanes!(i32: |a: i16, b: i16| a as i32 * b as i32),
        "mul.wide.u32" => lanes!(u64: |a: u32, b: u32| a as u64 * b as u64),
        "mul.wide.s32" => lanes!(i64: |a: i32, b: i32| a as i64 * b as i64),
        "mad.wide.u16" => lanes!(u32: |a: u16, b: u16, c: u32| (a as u32 * b as u32).wrapping_add(c)),
        "mad.wide.s16" => lanes!(i32: |a: i16, b: i16, c: i32| (a as i32 * b as i32).wrapping_add(c)),
        "mad.wide.u32" => lanes!(u64: |a: u32, b: u32, c: u64| (a as u64 * b as u64).wrapping_add(c)),
        "mad.wide.s32" => lanes!(i64: |a: i32, b: i32, c: i64| (a as i64 * b as i64).wrapping_add(c)),
        "neg.s16" => lanes!(i16: |a: i16| a.wrapping_neg()),
        "neg.s32" => lanes!(i32: |a: i32| a.wrapping_neg()),
        "neg.s64" => lanes!(i64: |a: i64| a.wrapping_neg()),
        "abs.s16" => lanes!(i16: |a: i16| a.wrapping_abs()),
        "abs.s32" => lanes!(i32: |a: i32| a.wrapping_abs()),
        "abs.s64" => lanes!(i64: |a: i64| a.wrapping_abs()),
        "shl.b16" => lanes!(u16: |a: u16, n: u32| shift(a as u64, n, 16, true) as u16),
        "shl.b32" => lanes!(u32: |a: u32, n: u32| if n < 32 { a << (n & 31) } else { 0 }),
        "shl.b64" => lanes!(u64: |a: u64, n: u32| shift(a, n, 64, true)),
        "shr.u16" | "shr.b16" => lanes!(u16: |a: u16, n: u32| shift(a as u64, n, 16, false) as u16),
        "shr.u32" | "shr.b32" => lanes!(u32: |a: u32, n: u32| if n < 32 { a >> (n & 31) } else { 0 }),
        "shr.u64" | "shr.b64" => lanes!(u64: |a: u64, n: u32| shift(a, n, 64, false)),
        "shr.s16" => lanes!(i16: |a: i16, n: u32| shift_signed(a as i64, n, 16) as i16),
        "shr.s32" => lanes!(i32: |a: i32, n: u32| a >> n.min(31)),
        "shr.s64" => lanes!(i64: |a: i64, n: u32| shift_signed(a, n, 64)),
        "shf.l.wrap.b32" => lanes!(u32: |a: u32, b: u32, n: u32| {
            ((((b as u64) << 32 | a as u64) << (n & 31)) >> 32) as u32
        }),
        "shf.r.wrap.b32" => lanes!(u32: |a: u32, b: u32, n: u32| (((b as u64) << 32 | a as u64) >> (n & 31)) as u32),
        "shf.l.clamp.b32" => lanes!(u32: |a: u32, b: u32, n: u32| {
            ((((b as u64) << 32 | a as u64) << n.min(32)) >> 32) as u32
        }),
        "shf.r.clamp.b32" => lanes!(u32: |a: u32, b: u32, n: u32| (((b as u64) << 32 | a as u64) >> n.min(32)) as u32),
        "bfe.u32" => lanes!(u32: |a: u32, at: u32, n: u32| bfe(a as u64, at, n, 32, false) as u32),
        "bfe.s32" => lanes!(u32: |a: u32, at: u32, n: u32| bfe(a as u64, at, n, 32, true) as u32),
        "bfe.u64" => lanes!(u64: |a: u64, at: u32, n: u32| bfe(a, at, n, 64, false)),
        "bfe.s64" => lanes!(u64: |a: u64, at: u32, n: u32| bfe(a, at, n, 64, true)),
        "bfi.b32" => lanes!(u32: |a: u32, b: u32, at: u32, n: u32| bfi(a as u64, b as u64, at, n, 32) as u32),
        "bfi.b64" => lanes!(u64: |a: u64, b: u64, at: u32, n: u32| bfi(a, b, at, n, 64)),
        "prmt.b32" => lanes!(u32: |a: u32, b: u32, s: u32| prmt(a, b, s)),
        "lop3.b32" => lanes!(u32: |a: u32, b: u32, c: u32, t: u32| lop3(a, b, c, t)),
        "popc.b32" => lanes!(u32: |a: u32| a.count_ones()),
        "popc.b64" => lanes!(u32: |a: u64| a.count_ones()),
        "clz.b32" => lanes!(u32: |a: u32| a.leading_zeros()),
        "clz.b64" => lanes!(u32: |a: u64| a.leading_zeros()),
        "brev.b32" => lanes!(u32: |a: u32| a.reverse_bits()),
        "brev.b64" => lanes!(u64: |a: u64| a.reverse_bits()),
        "bfind.u32" => lanes!(u32: |a: u32| bfind(a, false)),
        "bfind.s32" => lanes!(u32: |a: u32| bfind(a, true)),
        "bfind.shiftamt.u32" => lanes!(u32: |a: u32| if a == 0 { !0 } else { 31 - bfind(a, false) }),
        "dp4a.s32.s32" => lanes!(u32: |a: u32, b: u32, c: u32| dp4a_signed(a, b, c)),
        "dp4a.u32.u32" => lanes!(u32: |a: u32, b: u32, c: u32| dp4a_unsigned(a, b, c)),
        "cvta.to.global.u64" | "cvta.global.u64" => lanes!(u64: |a: u64| a),
        _ => return None,
    })
}
