//! The weight formats: one file each, one row of the table below each.
//!
//! A format is its block layout, a scalar decode (bit-equal to the reference implementation), a scalar dot product (the
//! truth that every faster kernel is held to), and the vector kernels. Every kernel has the same shape: a group of
//! weight rows times one row of activations. Integer formats take activations quantized once per step by [`act`].
//!
//! Adding a format is a file and a line in `formats!`.

pub mod act;
mod ahead;
mod blocks;
#[cfg(test)]
mod check;
mod codebook;
#[cfg(target_arch = "x86_64")]
mod codebook_avx2;
mod codebook_panels;
mod codes;
#[cfg(target_arch = "x86_64")]
mod float_rows;
mod floats;
mod forms;
mod grid;
#[cfg(target_arch = "x86_64")]
mod grid512;
mod lanes;
mod panel;
pub mod ptx;
mod quantize;
pub mod retired;
mod rng;
#[cfg(target_arch = "x86_64")]
mod small;
#[cfg(target_arch = "x86_64")]
mod super_avx2;
mod super_block;
mod super_panels;
#[cfg(target_arch = "x86_64")]
mod super_rows;
mod tables;
mod types;
#[cfg(target_arch = "x86_64")]
mod units;
mod work;

pub use act::{Acts, PanelPart, RowPart};
pub use forms::{Act, ActRow, CHUNK, Columns, Form, Quad, TileActs, WORDS, Words};
pub use panel::{Fill, Panel, ROWS, Source, Tile};
pub use rng::Rng;
pub use types::{Decode, DotRows, Kernel, Kv, QuantType};
pub use work::Work;

macro_rules! formats {
    ($($file:ident),* $(,)?) => {
        $(pub mod $file;)*
        /// Every format.
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

/// The format with this GGUF number.
pub fn by_id(id: u32) -> Option<&'static QuantType> {
    TYPES.iter().copied().find(|t| t.id == id)
}

/// The format of this name, in any case: `q8_0`, `Q8_0`, `f16`.
pub fn by_name(name: &str) -> Option<&'static QuantType> {
    TYPES.iter().copied().find(|t| t.name.eq_ignore_ascii_case(name))
}

/// The names of the formats that a KV cache can have, for messages: `f32, f16, ...`.
pub fn cache_types() -> String {
    let names: Vec<String> = TYPES.iter().filter(|t| t.kv.is_some()).map(|t| t.name.to_lowercase()).collect();
    names.join(", ")
}
