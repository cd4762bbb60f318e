//! The ways in which a good file is made a bad one, one key or one tensor at a time.

use tandem::gguf::{Array, TensorType, Value, Writer};
use tandem::quant::{self, Rng};

use crate::common::source::Source;

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// The key gets another value, or none.
    Key(usize, Option<Value>),
    /// The tensor is left out.
    Remove(usize),
    /// The tensor gets another name.
    Rename(usize, String),
    /// The tensor gets another shape, and bytes enough for it.
    Shape(usize, Vec<usize>),
    /// The tensor gets another type, and bytes enough for it: noise, so that its numbers may be anything.
    Type(usize, TensorType),
}

/// What is tried with a model.
pub(crate) trait Changes {
    /// The file with these changes; None where no file can say them (a row that is no whole number of blocks).
    fn with(&self, changes: &[Change]) -> Option<Vec<u8>>;
    /// Whether the engine, and not the tokenizer or a reader of file lists, gives this key a meaning.
    fn is_engine_key(&self, key: &str) -> bool;
    /// What is tried with key `i`.
    fn key_changes(&self, i: usize) -> Vec<Change>;
    /// What is tried with tensor `i`.
    fn tensor_changes(&self, i: usize) -> Vec<Change>;
    /// The change in words.
    fn describe(&self, c: &Change) -> String;
}

impl Changes for Source {
    fn with(&self, changes: &[Change]) -> Option<Vec<u8>> {
        let mut w = Writer::new();
        for (i, (key, value)) in self.meta.iter().enumerate() {
            let new = changes.iter().find_map(|c| match c {
                Change::Key(at, new) if *at == i => Some(new.as_ref()),
                _ => None,
            });
            if let Some(value) = new.unwrap_or(Some(value)) {
                w.set(key, value.clone());
            }
        }
        for (i, part) in self.tensors.iter().enumerate() {
            let (mut name, mut shape, mut ty, mut keep) = (&part.name, &part.shape, part.ty, true);
            for c in changes {
                match c {
                    Change::Remove(at) if *at == i => keep = false,
                    Change::Rename(at, to) if *at == i => name = to,
                    Change::Shape(at, to) if *at == i => shape = to,
                    Change::Type(at, to) if *at == i => ty = *to,
                    _ => {}
                }
            }
            let row = *shape.last().unwrap();
            if !row.is_multiple_of(ty.block().0) {
                return None;
            }
            let bytes = ty.row_bytes(row) * shape.iter().rev().skip(1).product::<usize>();
            let noise = ty != part.ty;
            let fill = move |out: &mut dyn std::io::Write| {
                if bytes <= part.data.len() && !noise {
                    return out.write_all(&part.data[..bytes]);
                }
                let mut data: Vec<u8> = part.data.iter().copied().cycle().take(bytes).collect();
                if noise {
                    Rng(i as u64).fill(&mut data);
                }
                out.write_all(&data)
            };
            if keep {
                w.add_tensor(name, shape, ty, fill).ok()?;
            }
        }
        w.to_bytes().ok()
    }

    fn is_engine_key(&self, key: &str) -> bool {
        key == "general.architecture" || key.starts_with(&format!("{}.", self.arch))
    }

    fn key_changes(&self, i: usize) -> Vec<Change> {
        let mut new: Vec<Value> = match &self.meta[i].1 {
            Value::F32(v) => floats(*v).into_iter().map(Value::from).collect(),
            Value::Bool(v) => vec![Value::Bool(!v), "yes".into()],
            Value::Str(_) => vec!["no-such-word".into(), "".into(), 7u32.into()],
            Value::Arr(a) => arrays(a),
            number => integers(number),
        };
        new.retain(|v| format!("{v:?}") != format!("{:?}", self.meta[i].1));
        [None].into_iter().chain(new.into_iter().map(Some)).map(|v| Change::Key(i, v)).collect()
    }

    fn tensor_changes(&self, i: usize) -> Vec<Change> {
        let part = &self.tensors[i];
        let mut list = vec![Change::Remove(i), Change::Rename(i, format!("{}x", part.name))];
        let mut shapes = vec![part.shape[1..].to_vec(), vec![part.shape.iter().product()]];
        shapes.push(part.shape.iter().rev().copied().collect());
        for d in 0..part.shape.len() {
            for n in [1, part.shape[d] - 1, part.shape[d] + 1, part.shape[d] * 2] {
                let mut s = part.shape.clone();
                s[d] = n;
                shapes.push(s);
            }
        }
        let mut swapped = part.shape.clone();
        if swapped.len() == 3 {
            swapped.swap(0, 1);
            shapes.push(swapped);
        }
        shapes.push([&[1, 1], &part.shape[..]].concat().into_iter().take(4).collect());
        shapes.retain(|s| *s != part.shape && !s.is_empty() && !s.contains(&0));
        shapes.sort();
        shapes.dedup();
        list.extend(shapes.into_iter().map(|s| Change::Shape(i, s)));
        let types = ["F16", "Q8_0", "Q4_K", "IQ2_XXS", "MXFP4"].map(|n| TensorType::Quant(quant::by_name(n).unwrap()));
        let types = types.into_iter().chain([TensorType::I32, TensorType::F64, TensorType::I8]);
        list.extend(types.filter(|t| *t != part.ty).map(|t| Change::Type(i, t)));
        list
    }

    fn describe(&self, c: &Change) -> String {
        let name = |i: &usize| &self.tensors[*i].name;
        match c {
            Change::Key(i, None) => format!("without {}", self.meta[*i].0),
            Change::Key(i, Some(v)) => {
                format!("{} = {} (was {})", self.meta[*i].0, v.describe(), self.meta[*i].1.describe())
            }
            Change::Remove(i) => format!("without {}", name(i)),
            Change::Rename(i, to) => format!("{} called {to}", name(i)),
            Change::Shape(i, s) => format!("{} of shape {s:?} (was {:?})", name(i), self.tensors[*i].shape),
            Change::Type(i, t) => format!("{} of type {t:?}", name(i)),
        }
    }
}

fn floats(v: f32) -> [f32; 7] {
    [0.0, -v, f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, -1.0]
}

fn integers(value: &Value) -> Vec<Value> {
    let v: i64 = match value {
        Value::U32(v) => i64::from(*v),
        Value::I32(v) => i64::from(*v),
        Value::U64(v) => *v as i64,
        other => panic!("a kind of number that no reference model has: {}", other.describe()),
    };
    let near = [0, 1, v - 1, v + 1, v * 2, v * 3, 7].into_iter().filter(|n| *n >= 0).map(|n| Value::U32(n as u32));
    let far = [
        Value::U32(u32::MAX),
        Value::U64(1 << 40),
        Value::U64(1 << 61),
        Value::U64(u64::MAX),
        Value::I32(-1),
        Value::F32(v as f32 + 0.5),
        "four".into(),
        Value::Arr(Array::U32(vec![v as u32; 3])),
    ];
    near.chain(far).collect()
}

fn arrays(a: &Array) -> Vec<Value> {
    macro_rules! variants {
        ($v:expr, $kind:ident, $odd:expr) => {{
            let v = $v;
            let mut list = vec![v[..v.len().saturating_sub(1)].to_vec(), vec![], [&v[..], &v[..]].concat()];
            for odd in $odd {
                list.push([&v[..v.len().saturating_sub(1)], &[odd]].concat());
            }
            list.into_iter().map(|v| Value::Arr(Array::$kind(v))).collect::<Vec<_>>()
        }};
    }
    let mut list = match a {
        Array::U32(v) => variants!(v, U32, [0, 1, 3, 5, u32::MAX]),
        Array::I32(v) => variants!(v, I32, [0, 1, 3, 5, -1, i32::MAX]),
        Array::U64(v) => variants!(v, U64, [0, 1, 3, 5, u64::MAX]),
        Array::F32(v) => variants!(v, F32, [0.0, -1.0, f32::NAN, f32::INFINITY]),
        Array::Bool(v) => variants!(v, Bool, [true, false]),
        Array::Str(v) => variants!(v, Str, ["".to_owned(), "\u{fffd}".to_owned()]),
        other => panic!("a kind of array that no reference model has: {}", Value::Arr(other.clone()).describe()),
    };
    list.push(Value::Arr(Array::Str(vec!["a".into(); a.len()])));
    list.push(Value::Arr(Array::F32(vec![4.7; a.len()])));
    list.push(Value::Arr(Array::U64(vec![u64::MAX; a.len()])));
    list.push(Value::U32(4));
    list
}
