//! A small file with every kind of metadata and a tensor of every type.

use std::io::Write;
use tandem::gguf::{Array, TensorType, Value, Writer};
use tandem::quant::{self, Rng};

/// One value of every kind, and arrays of every kind, nested and empty ones too.
pub(crate) fn values() -> Vec<(&'static str, Value)> {
    let strings = |s: &[&str]| s.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    vec![
        ("general.architecture", "sample".into()),
        ("a.u8", 200u8.into()),
        ("a.i8", (-100i8).into()),
        ("a.u16", 60000u16.into()),
        ("a.i16", (-30000i16).into()),
        ("a.u32", 4_000_000_000u32.into()),
        ("a.i32", (-2_000_000_000i32).into()),
        ("a.f32", 0.1f32.into()),
        ("a.true", true.into()),
        ("a.false", false.into()),
        ("a.str", "größer ☃".into()),
        ("a.str.empty", "".into()),
        ("a.u64", u64::MAX.into()),
        ("a.i64", i64::MIN.into()),
        ("a.f64", 0.1f64.into()),
        ("r.u8", vec![0u8, 255].into()),
        ("r.i8", vec![-1i8, 127].into()),
        ("r.u16", vec![1u16, 65535].into()),
        ("r.i16", vec![-1i16, 32767].into()),
        ("r.u32", vec![7u32, 8, 9].into()),
        ("r.i32", vec![-7i32, 8].into()),
        ("r.f32", vec![1.5f32, -0.0].into()),
        ("r.bool", vec![true, false, true].into()),
        ("r.str", strings(&["", "a", "Ġthe", "☃"]).into()),
        ("r.u64", vec![u64::MAX].into()),
        ("r.i64", vec![i64::MIN, 0].into()),
        ("r.f64", vec![f64::MAX].into()),
        ("r.empty", Vec::<u32>::new().into()),
        ("r.nested", vec![Array::U8(vec![1, 2]), Array::Str(strings(&["x"])), Array::Arr(vec![])].into()),
        ("r.deep", vec![Array::Arr(vec![Array::Arr(vec![Array::Bool(vec![true])])])].into()),
    ]
}

/// Every tensor type that there is.
pub(crate) fn types() -> Vec<TensorType> {
    let tables = [TensorType::I8, TensorType::I16, TensorType::I32, TensorType::I64, TensorType::F64];
    quant::TYPES.iter().map(|&q| TensorType::Quant(q)).chain(tables).collect()
}

/// The bytes that the sample gives a tensor.
pub(crate) fn tensor_bytes(ty: TensorType, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    Rng(u64::from(ty.id())).fill(&mut bytes);
    bytes
}

/// The sample, not yet written.
pub(crate) fn writer<'a>() -> Writer<'a> {
    let mut w = Writer::new();
    for (key, value) in values() {
        w.set(key, value);
    }
    for ty in types() {
        let (block, bytes) = ty.block();
        let data = move |out: &mut dyn Write| out.write_all(&tensor_bytes(ty, 6 * bytes));
        w.add_tensor(&format!("t.{}", ty.name()), &[3, 2 * block], ty, data).unwrap();
    }
    w
}
