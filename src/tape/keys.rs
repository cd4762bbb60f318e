//! What a family reads from the metadata: counts, numbers, words and flags, each held to a range that the rest of the
//! program can rely on. Keys are given without the architecture's prefix.
//!
//! Counts are multiplied with each other, three at a time at most, so they are kept below 2^20. Floats are finite.

use std::fmt::Display;

use anyhow::{Error, Result, anyhow};

use super::Builder;
use crate::gguf::Value;

/// The largest count: far above any model's, and small enough that a product of three fits 64 bits.
const MAX_COUNT: usize = 1 << 20;

impl Builder<'_> {
    /// The key with the architecture's prefix.
    fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// The key with the architecture's prefix, for whoever looks it up: it is noted as read. What is not noted is held
    /// against the known keys when the tape is finished.
    fn key(&self, name: &str) -> String {
        self.read.borrow_mut().insert(name.to_owned());
        self.full(name)
    }

    /// The error for a key whose value is of the right kind but means nothing.
    pub fn bad_key(&self, name: &str, found: impl Display, want: impl Display) -> Error {
        anyhow!("{}: metadata key {:?} is {found}, expected {want}", self.file(), self.full(name))
    }

    /// Whether the key is there.
    pub fn has_key(&self, name: &str) -> bool {
        self.gguf.meta.get(&self.key(name)).is_some()
    }

    /// Whether the key is there and a list.
    pub fn is_list(&self, name: &str) -> bool {
        matches!(self.gguf.meta.get(&self.key(name)), Some(Value::Arr(_)))
    }

    fn ranged(&self, name: &str, n: usize, from: usize, to: usize) -> Result<usize> {
        if (from..=to).contains(&n) {
            return Ok(n);
        }
        Err(self.bad_key(name, n, format!("a number from {from} to {to}")))
    }

    /// A required count, at least 1.
    pub fn n(&self, name: &str) -> Result<usize> {
        self.n_to(name, MAX_COUNT)
    }

    /// A required count, from 1 to `most`.
    pub fn n_to(&self, name: &str, most: usize) -> Result<usize> {
        self.ranged(name, self.gguf.meta.usize(&self.key(name))?, 1, most)
    }

    /// A count, at least 1, or a default where the key is absent.
    pub fn n_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.has_key(name) { self.n(name) } else { Ok(default) }
    }

    /// A count; None where the key is absent or 0.
    pub fn opt_n(&self, name: &str) -> Result<Option<usize>> {
        let n = self.gguf.meta.opt_usize(&self.key(name))?.unwrap_or(0);
        Ok(Some(self.ranged(name, n, 0, MAX_COUNT)?).filter(|&n| n > 0))
    }

    /// A number of tokens, at least 1: it may be larger than a count, and is not multiplied with any.
    pub fn tokens(&self, name: &str) -> Result<usize> {
        self.n_to(name, u32::MAX as usize)
    }

    /// A required number.
    pub fn f(&self, name: &str) -> Result<f32> {
        let f = self.gguf.meta.f32(&self.key(name))?;
        if f.is_finite() { Ok(f) } else { Err(self.bad_key(name, f, "a finite number")) }
    }

    /// A number, or a default where the key is absent.
    pub fn f_or(&self, name: &str, default: f32) -> Result<f32> {
        if self.has_key(name) { self.f(name) } else { Ok(default) }
    }

    /// A required number above 0.
    pub fn positive(&self, name: &str) -> Result<f32> {
        let f = self.f(name)?;
        if f > 0.0 { Ok(f) } else { Err(self.bad_key(name, f, "a number above 0")) }
    }

    /// A number above 0, or a default where the key is absent.
    pub fn positive_or(&self, name: &str, default: f32) -> Result<f32> {
        if self.has_key(name) { self.positive(name) } else { Ok(default) }
    }

    /// A flag, or a default where the key is absent.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.gguf.meta.opt_bool(&self.key(name))?.unwrap_or(default))
    }

    /// A word, if the key is there.
    pub fn opt_str(&self, name: &str) -> Result<Option<&str>> {
        self.gguf.meta.opt_str(&self.key(name))
    }

    /// A value for each of `n` layers: from an array with at least `n` entries, or one value for all.
    fn each<T: Clone>(
        &self,
        name: &str,
        n: usize,
        list: impl FnOnce(&str) -> Result<Vec<T>>,
        one: impl FnOnce(&str) -> Result<T>,
    ) -> Result<Option<Vec<T>>> {
        let key = self.key(name);
        let values = match self.gguf.meta.get(&key) {
            None => return Ok(None),
            Some(Value::Arr(_)) => list(&key)?,
            Some(_) => vec![one(&key)?; n],
        };
        if values.len() < n {
            let found = format!("an array of {}", values.len());
            return Err(self.bad_key(name, found, format!("an entry for each of {n} layers")));
        }
        Ok(Some(values))
    }

    /// A number for each of `n` layers, if the key is there.
    pub fn per_layer(&self, name: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let meta = &self.gguf.meta;
        let values = self.each(name, n, |k| meta.f32s(k), |k| meta.f32(k))?;
        match values.iter().flatten().find(|f| !f.is_finite()) {
            Some(f) => Err(self.bad_key(name, format!("a list with {f}"), "finite numbers")),
            None => Ok(values),
        }
    }

    /// A count for each of `n` layers, 0 allowed, if the key is there.
    pub fn per_layer_n(&self, name: &str, n: usize) -> Result<Option<Vec<usize>>> {
        let meta = &self.gguf.meta;
        let values = self.each(name, n, |k| meta.usizes(k), |k| meta.usize(k))?;
        values.iter().flatten().try_for_each(|&v| self.ranged(name, v, 0, MAX_COUNT).map(drop))?;
        Ok(values)
    }

    /// A flag for each of `n` layers, if the key is there.
    pub fn per_layer_flag(&self, name: &str, n: usize) -> Result<Option<Vec<bool>>> {
        let meta = &self.gguf.meta;
        self.each(name, n, |k| meta.bools(k), |k| meta.bool(k))
    }

    // ---- what several families read alike ----

    /// Heads, and key heads that they share.
    pub fn heads(&self) -> Result<(usize, usize)> {
        let heads = self.n("attention.head_count")?;
        let kv_heads = self.n_or("attention.head_count_kv", heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.bad_key("attention.head_count_kv", kv_heads, format!("a divisor of the {heads} heads")));
        }
        Ok((heads, kv_heads))
    }

    /// Columns of a head: `attention.key_length`, or its share of the embedding.
    pub fn head_dim(&self, heads: usize, n_embd: usize) -> Result<usize> {
        if !self.has_key("attention.key_length") && !n_embd.is_multiple_of(heads) {
            let want = format!("a divisor of the {n_embd} columns, since there is no attention.key_length");
            return Err(self.bad_key("attention.head_count", heads, want));
        }
        self.n_or("attention.key_length", n_embd / heads)
    }

    /// What norms keep from dividing by zero with.
    pub fn eps(&self) -> Result<f32> {
        let name = "attention.layer_norm_rms_epsilon";
        let eps = self.f(name)?;
        if (0.0..1.0).contains(&eps) { Ok(eps) } else { Err(self.bad_key(name, eps, "a number from 0, below 1")) }
    }

    /// What the weights of experts are multiplied with; 0 stands for nothing.
    pub fn expert_scale(&self) -> Result<f32> {
        let scale = self.f_or("expert_weights_scale", 1.0)?;
        Ok(if scale == 0.0 { 1.0 } else { scale })
    }

    /// `(groups of experts, groups used)`; (1, 1) where there are none.
    pub fn expert_groups(&self) -> Result<(usize, usize)> {
        match self.opt_n("expert_group_count")? {
            None | Some(1) => Ok((1, 1)),
            Some(n) => Ok((n, self.n_to("expert_group_used_count", n)?)),
        }
    }
}
