//! The model families: one file each, one function in it, found by `general.architecture`. What several of them are made
//! of is in `blocks`, `latent`, `mixers`, `compressed`, `levels` and `engram`, and in `heads` what their draft heads have in common.

mod blocks;
pub mod checkpoint;
mod compressed;
mod engram;
mod heads;
mod latent;
mod levels;
mod mixers;

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
    afmoe: "afmoe",
    bailingmoe3: "bailingmoe3",
    cohere2moe: "cohere2moe",
    deepseek2: "deepseek2",
    deepseek32: "deepseek32",
    deepseek4: "deepseek4",
    deepseek41: "deepseek41",
    dots1: "dots1" "bailingmoe2" "hy_v3",
    ernie4_5_moe: "ernie4_5-moe",
    exaone_moe: "exaone-moe",
    gemma3: "gemma3",
    gemma4: "gemma4",
    glm4: "glm4",
    glm4moe: "glm4moe",
    glm5_next: "glm5-next",
    glm_dsa: "glm-dsa",
    gpt_oss: "gpt-oss",
    granitehybrid: "granitehybrid",
    granitemoe: "granite" "granitemoe",
    hunyuan_moe: "hunyuan-moe",
    hy_v4: "hy_v4",
    jamba: "jamba",
    kimi_k3: "kimi-k3",
    kimi_linear: "kimi-linear",
    laguna: "laguna",
    lfm2: "lfm2" "lfm2moe",
    llama: "llama",
    llama4: "llama4",
    maple: "maple",
    mellum: "mellum",
    mimo2: "mimo2",
    minimax_01: "minimax-01",
    minimax_m2: "minimax-m2",
    minimax_m3: "minimax-m3",
    mistral3: "mistral3",
    mistral4: "mistral4",
    muse_glimmer: "muse-glimmer",
    nemotron_h: "nemotron_h" "nemotron_h_moe",
    olmo2: "olmo2",
    olmoe: "olmoe",
    phimoe: "phimoe",
    qwen2: "qwen2",
    qwen2moe: "qwen2moe",
    qwen3: "qwen3",
    qwen35: "qwen35moe" "qwen35" "qwen3next",
    qwen3moe: "qwen3moe",
    qwen4exp: "qwen4exp",
    seed_oss: "seed_oss",
    smallthinker: "smallthinker",
    smollm3: "smollm3",
    step35: "step35",
    zaya: "zaya",
}

/// The architectures that this version runs.
pub fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(arch, _)| *arch)
}

/// Records the tape of the model in `gguf`, from its header alone. Draft heads that are asked for and cannot be recorded are
/// left out, with the reason in [`Tape::heads_off`].
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
    if settings.heads {
        match record(gguf, arch, settings.clone(), build) {
            Ok(tape) => return Ok(tape),
            // Heads that cannot be computed are no reason to refuse the model.
            Err(why) => {
                let tape = record(gguf, arch, Settings { heads: false, ..settings }, build)?;
                return Ok(Tape { heads_off: Some(format!("{why:#}")), ..tape });
            }
        }
    }
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
    if !b.has_ended() {
        b.end_part(logits);
    }
    Ok(cut_rows(b.finish()?))
}
