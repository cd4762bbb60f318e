//! Why a family refuses a file: the parts of it that would not be computed.

use std::fmt;

use crate::quant::QuantType;

/// Tensors that a message names; of more it says that there are some.
const NAMED: usize = 4;

/// What a family neither reads nor can leave alone in a file, so that the file is refused: it would
/// be computed wrongly without it.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The file, for messages.
    pub file: String,
    /// The architecture.
    pub arch: String,
    /// Names of tensors that no step reads.
    pub tensors: Vec<String>,
    /// Metadata keys that change what is computed: each with its value, the one expected, and what
    /// it does.
    pub keys: Vec<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = format!("part of the {} model that this version knows", self.arch);
        let mut parts = Vec::new();
        if !self.tensors.is_empty() {
            let more = if self.tensors.len() > NAMED { ", ..." } else { "" };
            let named = self.tensors[..self.tensors.len().min(NAMED)].join(", ");
            parts.push(format!("{} tensors are not {model} ({named}{more})", self.tensors.len()));
        }
        if !self.keys.is_empty() {
            parts.push(format!("metadata keys ask for what is not {model}: {}", self.keys.join("; ")));
        }
        let parts = parts.join("; ");
        write!(f, "{}: {parts}; it would be computed wrongly without them, so it is refused", self.file)
    }
}

impl std::error::Error for Refusal {}

/// The error of a cache type whose blocks do not divide a model's rows.
#[derive(Debug)]
pub struct WrongCacheType(String);

impl WrongCacheType {
    /// `what` is the size that the blocks of `ty`, asked for by `flag`, do not divide.
    pub fn new(flag: &str, ty: &QuantType, what: String) -> WrongCacheType {
        let name = ty.name.to_lowercase();
        WrongCacheType(format!("{flag} {name}: {what} is not a multiple of {}; use {flag} f16", ty.block))
    }
}

impl fmt::Display for WrongCacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongCacheType {}
