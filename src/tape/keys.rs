//! What a family reads from the metadata: counts, numbers, words and flags, each held to a range that the rest of the
//! program can rely on. Keys are given without the architecture's prefix. Where a key lists a value for each layer, a
//! layer's builder reads the layer's own.
//!
//! Counts are multiplied with each other, three at a time at most, so they are kept below 2^20. Floats are finite.

use std::fmt::Display;

use anyhow::{Error, Result, anyhow};

use super::Builder;
use crate::gguf::{Scalar, Value};

/// The largest count: far above any model's, and small enough that a product of three fits 64 bits.
const MAX_COUNT: usize = 1 << 20;

impl Builder<'_> {
    /// The key with the architecture's prefix.
    fn full_key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch())
    }

    /// The key with the architecture's prefix, for whoever looks it up: it is noted as read. What is not noted is held
    /// against the known keys when the tape is finished.
    fn key(&self, name: &str) -> String {
        let read = if self.drafter { &self.rec.read_of_drafter } else { &self.rec.read };
        read.borrow_mut().insert(name.to_owned());
        self.full_key(name)
    }

    /// The error for a key whose value is of the right kind but means nothing.
    pub fn bad_key(&self, name: &str, found: impl Display, want: impl Display) -> Error {
        anyhow!("{}: metadata key {:?} is {found}, expected {want}", self.file(), self.full_key(name))
    }

    /// The value of a key; in a layer's builder the layer's own, where it lists several.
    fn value(&self, name: &str) -> Result<Option<Value>> {
        match (self.rec.gguf.meta.get(&self.key(name)), self.layer) {
            (Some(Value::Arr(list)), Some(i)) => match list.get(i) {
                Some(value) => Ok(Some(value)),
                None => {
                    let found = format!("an array of {}", list.len());
                    Err(self.bad_key(name, found, format!("an entry for each layer, {} among them", i + 1)))
                }
            },
            (value, _) => Ok(value.cloned()),
        }
    }

    /// The value of a key as a number or flag, if the key is there.
    fn opt<T: Scalar>(&self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.value(name)? else { return Ok(None) };
        let found = T::of(&value);
        found.map(Some).ok_or_else(|| self.bad_key(name, value.describe(), format!("a {}", T::NAME)))
    }

    fn need_key<T: Scalar>(&self, name: &str) -> Result<T> {
        self.opt(name)?.ok_or_else(|| {
            let (file, key) = (self.file(), self.key(name));
            anyhow!("{file}: metadata key {key:?} is missing: the file is incomplete, or not for this architecture")
        })
    }

    /// Whether the key is there.
    pub fn has_key(&self, name: &str) -> bool {
        self.rec.gguf.meta.get(&self.key(name)).is_some()
    }

    /// A number above 0 that a user asked for; the file's own does not count.
    ///
    /// # Errors
    /// If it is no number above 0.
    pub fn asked_or(&self, name: &str, default: f32) -> Result<f32> {
        let asked = self.rec.gguf.meta.is_replaced(&self.full_key(name));
        if asked { self.positive(name) } else { Ok(default) }
    }

    /// Whether the key is there and a list.
    pub fn is_list(&self, name: &str) -> bool {
        matches!(self.rec.gguf.meta.get(&self.key(name)), Some(Value::Arr(_)))
    }

    fn ranged(&self, name: &str, n: usize, from: usize, to: usize) -> Result<usize> {
        if (from..=to).contains(&n) {
            return Ok(n);
        }
        Err(self.bad_key(name, n, format!("a number from {from} to {to}")))
    }

    /// A required count, at least 1.
    ///
    /// # Errors
    /// If the key is missing, of another kind, or out of range.
    pub fn count(&self, name: &str) -> Result<usize> {
        self.count_up_to(name, MAX_COUNT)
    }

    /// A required count, from 1 to `most`.
    ///
    /// # Errors
    /// If the key is missing, of another kind, or out of range.
    pub fn count_up_to(&self, name: &str, most: usize) -> Result<usize> {
        self.ranged(name, self.need_key(name)?, 1, most)
    }

    /// A count, at least 1, or a default where the key is absent.
    ///
    /// # Errors
    /// If the key is of another kind or out of range.
    pub fn count_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.has_key(name) { self.count(name) } else { Ok(default) }
    }

    /// A count that may be 0, which it also is where the key is absent.
    ///
    /// # Errors
    /// If the key is of another kind or out of range.
    pub fn count_or_zero(&self, name: &str) -> Result<usize> {
        self.ranged(name, self.opt(name)?.unwrap_or(0), 0, MAX_COUNT)
    }

    /// A number of tokens, at least 1: it may be larger than a count, and is not multiplied with any.
    ///
    /// # Errors
    /// If the key is missing, of another kind, or out of range.
    pub fn tokens(&self, name: &str) -> Result<usize> {
        self.count_up_to(name, u32::MAX as usize)
    }

    /// A number of tokens, or None where it is 0 or the key is absent.
    ///
    /// # Errors
    /// If the key is of another kind or out of range.
    pub fn optional_tokens(&self, name: &str) -> Result<Option<usize>> {
        let n = self.ranged(name, self.opt(name)?.unwrap_or(0), 0, u32::MAX as usize)?;
        Ok(Some(n).filter(|&n| n > 0))
    }

    /// A required number.
    ///
    /// # Errors
    /// If the key is missing, no number, or not finite.
    pub fn number(&self, name: &str) -> Result<f32> {
        let f: f32 = self.need_key(name)?;
        if f.is_finite() { Ok(f) } else { Err(self.bad_key(name, f, "a finite number")) }
    }

    /// A number, or a default where the key is absent.
    ///
    /// # Errors
    /// If the key is no number, or not finite.
    pub fn number_or(&self, name: &str, default: f32) -> Result<f32> {
        if self.has_key(name) { self.number(name) } else { Ok(default) }
    }

    /// A required number above 0.
    ///
    /// # Errors
    /// If the key is missing, no number, or not above 0.
    pub fn positive(&self, name: &str) -> Result<f32> {
        let f = self.number(name)?;
        if f > 0.0 { Ok(f) } else { Err(self.bad_key(name, f, "a number above 0")) }
    }

    /// A number above 0, or a default where the key is absent.
    ///
    /// # Errors
    /// If the key is no number, or not above 0.
    pub fn positive_or(&self, name: &str, default: f32) -> Result<f32> {
        if self.has_key(name) { self.positive(name) } else { Ok(default) }
    }

    /// What values are squashed to by tanh; 0 where they are not, as where the key is absent.
    ///
    /// # Errors
    /// If the key is no number from 0 up.
    pub fn cap(&self, name: &str) -> Result<f32> {
        let cap = self.number_or(name, 0.0)?;
        if cap >= 0.0 { Ok(cap) } else { Err(self.bad_key(name, cap, "a number from 0 up")) }
    }

    /// A flag, or a default where the key is absent.
    ///
    /// # Errors
    /// If the key is neither a flag nor 0 or 1.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.opt(name)?.unwrap_or(default))
    }

    /// A word, if the key is there.
    ///
    /// # Errors
    /// If the key is no string.
    pub fn word(&self, name: &str) -> Result<Option<&str>> {
        self.rec.gguf.meta.opt_str(&self.key(name))
    }

    /// A list of counts that are not the layers', 0 allowed, if the key is there.
    ///
    /// # Errors
    /// If the key is no list of counts.
    pub fn counts(&self, name: &str) -> Result<Option<Vec<usize>>> {
        let values = self.rec.gguf.meta.opt_usizes(&self.key(name))?;
        values.iter().flatten().try_for_each(|&v| self.ranged(name, v, 0, MAX_COUNT).map(drop))?;
        Ok(values)
    }

    /// A list of whole numbers that are not multiplied with counts, if the key is there.
    ///
    /// # Errors
    /// If the key is no list of whole numbers from 0 up.
    pub fn whole_numbers(&self, name: &str) -> Result<Option<Vec<usize>>> {
        self.rec.gguf.meta.opt_usizes(&self.key(name))
    }

    // ---- what several families read alike ----

    /// Heads, and key heads that they share.
    ///
    /// # Errors
    /// If the keys do not fit each other.
    pub fn heads(&self) -> Result<(usize, usize)> {
        let heads = self.count("attention.head_count")?;
        let kv_heads = self.count_or("attention.head_count_kv", heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.bad_key("attention.head_count_kv", kv_heads, format!("a divisor of the {heads} heads")));
        }
        Ok((heads, kv_heads))
    }

    /// Columns of a head: `attention.key_length`, or its share of the embedding.
    ///
    /// # Errors
    /// If the keys do not fit each other.
    pub fn head_dim(&self, heads: usize, n_embd: usize) -> Result<usize> {
        if !self.has_key("attention.key_length") && !n_embd.is_multiple_of(heads) {
            let want = format!("a divisor of the {n_embd} columns, since there is no attention.key_length");
            return Err(self.bad_key("attention.head_count", heads, want));
        }
        self.count_or("attention.key_length", n_embd / heads)
    }

    /// What norms keep from dividing by zero with.
    ///
    /// # Errors
    /// If the key is missing or out of range.
    pub fn eps(&self) -> Result<f32> {
        let name = "attention.layer_norm_rms_epsilon";
        let eps = self.number(name)?;
        if (0.0..1.0).contains(&eps) { Ok(eps) } else { Err(self.bad_key(name, eps, "a number from 0, below 1")) }
    }

    /// What the weights of experts are multiplied with; 0 means nothing.
    ///
    /// # Errors
    /// If the key is no number.
    pub fn expert_scale(&self) -> Result<f32> {
        let scale = self.number_or("expert_weights_scale", 1.0)?;
        Ok(if scale == 0.0 { 1.0 } else { scale })
    }

    /// `(groups of experts, groups used)`; (1, 1) where there are none.
    ///
    /// # Errors
    /// If more groups are used than there are.
    pub fn expert_groups(&self) -> Result<(usize, usize)> {
        match self.count_or_zero("expert_group_count")? {
            0 | 1 => Ok((1, 1)),
            n => Ok((n, self.count_up_to("expert_group_used_count", n)?)),
        }
    }
}
