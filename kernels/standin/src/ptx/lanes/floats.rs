//! Floats of 32 bits. What a device computes approximately (`approx`) is as exact here as the host's library.

use super::{Operation, lanes};

/// The two roundings that are not the host's: down, and to zero.
#[derive(Clone, Copy, PartialEq)]
enum Toward {
    Below,
    Above,
    Zero,
}

/// a b + c, rounded once.
fn fma_toward(a: f32, b: f32, c: f32, toward: Toward) -> f32 {
    // The product is exact in f64; the sum is `sum` and `error` together, exactly (Knuth's sum of two).
    let (product, c) = (a as f64 * b as f64, c as f64);
    let sum = product + c;
    let part = sum - product;
    let error = (product - (sum - part)) + (c - part);
    let near = sum as f32;
    if !near.is_finite() && !sum.is_infinite() || sum.is_nan() || sum.is_infinite() {
        return near;
    }
    let (above, below) = match (near as f64).partial_cmp(&sum) {
        Some(std::cmp::Ordering::Greater) => (true, false),
        Some(std::cmp::Ordering::Less) => (false, true),
        _ => (error < 0.0, error > 0.0),
    };
    match toward {
        Toward::Below if above => near.next_down(),
        Toward::Above if below => near.next_up(),
        Toward::Zero if above && sum > 0.0 => near.next_down(),
        Toward::Zero if below && sum < 0.0 => near.next_up(),
        _ => near,
    }
}

/// Numbers too small for the usual form become zeros.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// The other one where one is not a number; -0 is less than 0.
fn min(a: f32, b: f32) -> f32 {
    if a == b { f32::from_bits(a.to_bits() | b.to_bits()) } else { a.min(b) }
}

fn max(a: f32, b: f32) -> f32 {
    if a == b { f32::from_bits(a.to_bits() & b.to_bits()) } else { a.max(b) }
}

/// An instruction, or the same with inputs and results flushed.
macro_rules! flushable {
    ($ftz:expr, |$($of:ident),*| $value:expr) => {
        if $ftz {
            lanes!(f32: |$($of: f32),*| { $(let $of = flush($of);)* flush($value) })
        } else {
            lanes!(f32: |$($of: f32),*| $value)
        }
    };
}

pub(super) fn find(name: &str) -> Option<Operation> {
    let name = name.strip_suffix(".f32")?;
    let (op, ftz) = name.strip_suffix(".ftz").map_or((name, false), |op| (op, true));
    Some(match op {
        "add" | "add.rn" => flushable!(ftz, |a, b| a + b),
        "sub" | "sub.rn" => flushable!(ftz, |a, b| a - b),
        "mul" | "mul.rn" => flushable!(ftz, |a, b| a * b),
        "fma.rn" | "mad.rn" => flushable!(ftz, |a, b, c| a.mul_add(b, c)),
        "add.rm" => lanes!(f32: |a: f32, b: f32| fma_toward(a, 1.0, b, Toward::Below)),
        "add.rp" => lanes!(f32: |a: f32, b: f32| fma_toward(a, 1.0, b, Toward::Above)),
        "add.rz" => lanes!(f32: |a: f32, b: f32| fma_toward(a, 1.0, b, Toward::Zero)),
        "fma.rm" => lanes!(f32: |a: f32, b: f32, c: f32| fma_toward(a, b, c, Toward::Below)),
        "fma.rp" => lanes!(f32: |a: f32, b: f32, c: f32| fma_toward(a, b, c, Toward::Above)),
        "fma.rz" => lanes!(f32: |a: f32, b: f32, c: f32| fma_toward(a, b, c, Toward::Zero)),
        "mul.rz" => lanes!(f32: |a: f32, b: f32| fma_toward(a, b, 0.0, Toward::Zero)),
        "div.rn" | "div.full" | "div.approx" => flushable!(ftz, |a, b| a / b),
        "rcp.rn" | "rcp.approx" => flushable!(ftz, |a| 1.0 / a),
        "sqrt.rn" | "sqrt.approx" => flushable!(ftz, |a| a.sqrt()),
        "rsqrt.approx" => flushable!(ftz, |a| (1.0 / (a as f64).sqrt()) as f32),
        "ex2.approx" => flushable!(ftz, |a| a.exp2()),
        "lg2.approx" => flushable!(ftz, |a| a.log2()),
        "sin.approx" => flushable!(ftz, |a| a.sin()),
        "cos.approx" => flushable!(ftz, |a| a.cos()),
        "tanh.approx" => flushable!(ftz, |a| a.tanh()),
        "neg" => flushable!(ftz, |a| -a),
        "abs" => flushable!(ftz, |a| a.abs()),
        "copysign" => lanes!(f32: |a: f32, b: f32| b.copysign(a)),
        "min" => flushable!(ftz, |a, b| min(a, b)),
        "max" => flushable!(ftz, |a, b| max(a, b)),
        "min.NaN" => flushable!(ftz, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { min(a, b) }),
        "max.NaN" => flushable!(ftz, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { max(a, b) }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_and_sum_is_rounded_once_and_in_the_direction_that_was_asked_for() {
        let tiny = 2f32.powi(-60);
        assert_eq!(fma_toward(1.0, 1.0, tiny, Toward::Below), 1.0);
        assert_eq!(fma_toward(1.0, 1.0, tiny, Toward::Above), 1f32.next_up());
        assert_eq!(fma_toward(1.0, 1.0, -tiny, Toward::Below), 1f32.next_down());
        assert_eq!(fma_toward(1.0, 1.0, -tiny, Toward::Zero), 1f32.next_down());
        assert_eq!(fma_toward(-1.0, 1.0, tiny, Toward::Zero), (-1f32).next_up());
        assert_eq!(fma_toward(3.0, 5.0, 1.0, Toward::Below), 16.0);
    }
}
