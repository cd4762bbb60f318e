//! Comparisons: setp.CMP.TYPE.

use super::{Operation, lanes};

macro_rules! ordered {
    ($cmp:expr, $ty:ty) => {
        Some(match $cmp {
            "eq" => lanes!(bool: |a: $ty, b: $ty| a == b),
            "ne" => lanes!(bool: |a: $ty, b: $ty| a != b),
            "lt" | "lo" => lanes!(bool: |a: $ty, b: $ty| a < b),
            "le" | "ls" => lanes!(bool: |a: $ty, b: $ty| a <= b),
            "gt" | "hi" => lanes!(bool: |a: $ty, b: $ty| a > b),
            "ge" | "hs" => lanes!(bool: |a: $ty, b: $ty| a >= b),
            _ => return None,
        })
    };
}

pub(super) fn find(name: &str) -> Option<Operation> {
    let (cmp, ty) = name.strip_prefix("setp.")?.rsplit_once('.')?;
    match ty {
        "u16" | "b16" => ordered!(cmp, u16),
        "s16" => ordered!(cmp, i16),
        "u32" | "b32" => ordered!(cmp, u32),
        "s32" => ordered!(cmp, i32),
        "u64" | "b64" => ordered!(cmp, u64),
        "s64" => ordered!(cmp, i64),
        "f32" => floats(cmp),
        _ => None,
    }
}

/// A comparison with what is not a number is false, or true where the name ends in u.
#[allow(clippy::neg_cmp_op_on_partial_ord, clippy::double_comparisons)] // with what is not a number they differ
fn floats(cmp: &str) -> Option<Operation> {
    Some(match cmp {
        "eq" => lanes!(bool: |a: f32, b: f32| a == b),
        "ne" => lanes!(bool: |a: f32, b: f32| a < b || a > b),
        "lt" => lanes!(bool: |a: f32, b: f32| a < b),
        "le" => lanes!(bool: |a: f32, b: f32| a <= b),
        "gt" => lanes!(bool: |a: f32, b: f32| a > b),
        "ge" => lanes!(bool: |a: f32, b: f32| a >= b),
        "equ" => lanes!(bool: |a: f32, b: f32| !(a < b || a > b)),
        "neu" => lanes!(bool: |a: f32, b: f32| a != b),
        "ltu" => lanes!(bool: |a: f32, b: f32| !(a >= b)),
        "leu" => lanes!(bool: |a: f32, b: f32| !(a > b)),
        "gtu" => lanes!(bool: |a: f32, b: f32| !(a <= b)),
        "geu" => lanes!(bool: |a: f32, b: f32| !(a < b)),
        "num" => lanes!(bool: |a: f32, b: f32| !a.is_nan() && !b.is_nan()),
        "nan" => lanes!(bool: |a: f32, b: f32| a.is_nan() || b.is_nan()),
        _ => return None,
    })
}
