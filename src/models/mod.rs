//! The model families: one file each, one function in it, found by `general.architecture`. What several of them are made
//! of is in `blocks`.

mod blocks;
pub mod checkpoint;

use anyhow::{Result, bail};

use crate::gguf::Gguf;
use crate::ops::cut_rows;
use crate::tape::{Builder, Settings, Slot, Tape};

type Build = fn(&Builder) -> Result<Slot>;

macro_rules! families {
    ($($file:ident: $($arch:literal)*),* $(,)?) => {
        $(mod $file;)*
        static FAMILIES: &[(&str, Build)] = &[$($(($arch, $file::build),)*)*];
    };
}

families! {
    deepseek2: "deepseek2",
    deepseek4: "deepseek4",
    gemma3: "gemma3",
    glm4moe: "glm4moe",
    gpt_oss: "gpt-oss",
    llama: "llama",
    qwen2: "qwen2",
    qwen35: "qwen35moe" "qwen35",
    qwen3: "qwen3",
    qwen3moe: "qwen3moe",
    zaya: "zaya",
}

/// The architectures that this version runs.
pub fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(arch, _)| *arch)
}

/// Records the tape of the model in `gguf`, from its header alone.
///
/// # Errors
/// If no family knows the file's architecture, or the file is not what its family expects.
pub fn build(gguf: &Gguf, settings: Settings) -> Result<Tape> {
    let arch = gguf.meta.str("general.architecture")?;
    let Some((_, build)) = FAMILIES.iter().find(|(a, _)| *a == arch) else {
        bail!(
            "{}: metadata key \"general.architecture\" is {arch:?}, expected one that this version runs ({})",
            gguf.path.display(),
            known().collect::<Vec<_>>().join(", ")
        );
    };
    record(gguf, arch, settings, build)
}

/// Records the tape that a family function writes of the model in `gguf`, from its header alone.
///
/// # Errors
/// If the file is not what the function expects.
pub fn record(
    gguf: &Gguf,
    arch: &str,
    settings: Settings,
    family: impl FnOnce(&Builder) -> Result<Slot>,
) -> Result<Tape> {
    let b = Builder::new(gguf, arch, settings);
    if !b.flag_or("attention.causal", true)? {
        return Err(b.bad_key("attention.causal", false, "true: this version reads from left to right only"));
    }
    let logits = family(&b)?;
    let argmax = b.argmax(logits);
    Ok(cut_rows(b.finish(logits, argmax)?))
}
