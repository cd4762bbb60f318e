//! A reference model taken apart, so that tests can put it together otherwise.

use std::path::Path;

use tandem::gguf::{Gguf, TensorType, Value, Writer};

/// A good model, taken apart.
#[derive(Clone)]
pub struct Source {
    pub name: String,
    pub arch: String,
    pub meta: Vec<(String, Value)>,
    pub tensors: Vec<Part>,
}

/// One of its tensors.
#[derive(Clone)]
pub struct Part {
    pub name: String,
    pub shape: Vec<usize>,
    pub ty: TensorType,
    pub data: Vec<u8>,
}

impl Source {
    pub fn open(name: &str, path: &Path) -> Source {
        let gguf = Gguf::open(path).unwrap_or_else(|e| panic!("{e:#}"));
        let part = |t: &tandem::gguf::Tensor| Part {
            name: t.name.clone(),
            shape: t.shape.clone(),
            ty: t.ty,
            data: gguf.data(t).to_vec(),
        };
        Source {
            name: name.into(),
            arch: gguf.meta.str("general.architecture").unwrap().into(),
            meta: gguf.meta.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect(),
            tensors: gguf.tensors.iter().map(part).collect(),
        }
    }

    /// Sets a key, given without the architecture's prefix.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Source {
        let key = format!("{}.{key}", self.arch);
        self.meta.retain(|(k, _)| *k != key);
        self.meta.push((key, value.into()));
        self
    }

    /// The value of a key.
    pub fn key(&self, key: &str) -> Option<&Value> {
        let key = format!("{}.{key}", self.arch);
        self.meta.iter().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// Removes a key.
    pub fn unset(&mut self, key: &str) -> &mut Source {
        let key = format!("{}.{key}", self.arch);
        self.meta.retain(|(k, _)| *k != key);
        self
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.tensors.iter().any(|t| t.name == tensor)
    }

    /// The tensor of this name.
    pub fn tensor(&mut self, name: &str) -> &mut Part {
        let model = self.name.clone();
        self.tensors.iter_mut().find(|t| t.name == name).unwrap_or_else(|| panic!("{model}: no {name}"))
    }

    /// Takes a tensor out.
    pub fn take(&mut self, name: &str) -> Part {
        let at = self.tensors.iter().position(|t| t.name == name);
        self.tensors.remove(at.unwrap_or_else(|| panic!("{}: no {name}", self.name)))
    }

    /// Adds a tensor of f32.
    pub fn add(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Source {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let ty = TensorType::by_id(0).unwrap();
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensors.push(Part { name: name.into(), shape: shape.to_vec(), ty, data });
        self
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        for (key, value) in &self.meta {
            w.set(key, value.clone());
        }
        for t in &self.tensors {
            w.add_tensor(&t.name, &t.shape, t.ty, |out| out.write_all(&t.data)).unwrap();
        }
        w.to_bytes().unwrap()
    }
}

impl Part {
    /// Its numbers, of an f32 tensor.
    pub fn floats(&self) -> Vec<f32> {
        self.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}
