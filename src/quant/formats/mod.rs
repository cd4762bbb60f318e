//! The weight formats, one file each: the layout of a block, a scalar decode, the table entry, the
//! kernels.
//!
//! A new format is one file and one line in `formats!` below.

#[cfg(test)]
mod check;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod check_tiles;
pub mod retired;

use super::types::{Encode, QuantType};

macro_rules! formats {
    ($($file:ident),* $(,)?) => {
        $(pub mod $file;)*
        /// All formats, in the order of the list.
        pub static TYPES: &[&QuantType] = &[$(&$file::TYPE),*];
    };
}

formats! {
    f32,
    f16,
    q4_0,
    q4_1,
    q5_0,
    q5_1,
    q8_0,
    q2_k,
    q3_k,
    q4_k,
    q5_k,
    q6_k,
    iq4_nl,
    iq4_xs,
    bf16,
    tq1_0,
    tq2_0,
    mxfp4,
    nvfp4,
    q1_0,
    q2_0,
    iq2_xxs,
    iq2_xs,
    iq3_xxs,
    iq1_s,
    iq3_s,
    iq2_s,
    iq1_m,
}

/// Returns the format with this GGUF number.
pub fn by_id(id: u32) -> Option<&'static QuantType> {
    TYPES.iter().copied().find(|t| t.id == id)
}

/// Returns the format of this name, in upper or lower case: `q8_0`, `Q8_0`, `f16`.
pub fn by_name(name: &str) -> Option<&'static QuantType> {
    TYPES.iter().copied().find(|t| t.name.eq_ignore_ascii_case(name))
}

/// Returns the names of the formats that a KV cache can have, for messages: `f32, f16, ...`.
pub fn cache_types() -> String {
    let names: Vec<String> = TYPES.iter().filter(|t| t.kv.is_some()).map(|t| t.name.to_lowercase()).collect();
    names.join(", ")
}

/// Returns how weights become this format; None for a format that this version only reads.
pub fn encoder(ty: &QuantType) -> Option<Encode> {
    let written: [(&QuantType, Encode); 4] = [
        (&f32::TYPE, f32::encode),
        (&f16::TYPE, f16::encode),
        (&bf16::TYPE, bf16::encode),
        (&q8_0::TYPE, q8_0::encode),
    ];
    written.into_iter().find(|(t, _)| *t == ty).map(|(_, encode)| encode)
}

/// Returns the names of the formats that weights can be written in, for messages: `f32, f16, ...`.
pub fn written_types() -> String {
    let names: Vec<String> = TYPES.iter().filter(|t| encoder(t).is_some()).map(|t| t.name.to_lowercase()).collect();
    names.join(", ")
}
