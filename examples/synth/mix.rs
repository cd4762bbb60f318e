//! Which format each part of a model gets.

use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};
use tandem::quant::{self, QuantType};

/// A part of a model that has a format of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    /// `ffn_gate_exps`, `ffn_up_exps`.
    Experts,
    /// `ffn_down_exps`.
    Down,
    /// Everything in attention's place, recurrent layers too.
    Attn,
    /// Shared experts and dense layers.
    Shared,
    /// `token_embd`.
    Embed,
    /// `output`.
    Output,
}

const PARTS: [(&str, Part); 6] = [
    ("experts", Part::Experts),
    ("down", Part::Down),
    ("attn", Part::Attn),
    ("shared", Part::Shared),
    ("embed", Part::Embed),
    ("output", Part::Output),
];

/// Mixes by name: `(name, file type, formats in the order of PARTS)`. They are what llama-quantize makes of these
/// names, without its exceptions for single layers.
type Preset = (&'static str, u32, [&'static str; 6]);
const PRESETS: &[Preset] = &[
    ("Q2_K", 10, ["Q2_K", "Q3_K", "Q4_K", "Q4_K", "Q2_K", "Q6_K"]),
    ("Q3_K_M", 12, ["Q3_K", "Q4_K", "Q4_K", "Q4_K", "Q3_K", "Q6_K"]),
    ("Q4_K_S", 14, ["Q4_K", "Q4_K", "Q4_K", "Q4_K", "Q4_K", "Q6_K"]),
    ("Q4_K_M", 15, ["Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q4_K", "Q6_K"]),
    ("Q5_K_M", 17, ["Q5_K", "Q6_K", "Q5_K", "Q5_K", "Q5_K", "Q6_K"]),
    ("IQ2_XXS", 19, ["IQ2_XXS", "Q2_K", "Q8_0", "Q8_0", "Q8_0", "Q8_0"]),
    ("IQ2_XS", 20, ["IQ2_XS", "Q2_K", "Q8_0", "Q8_0", "Q8_0", "Q8_0"]),
    ("MXFP4", 38, ["MXFP4", "MXFP4", "Q8_0", "Q8_0", "Q8_0", "Q8_0"]),
    ("NVFP4", 39, ["NVFP4", "NVFP4", "Q8_0", "Q8_0", "Q8_0", "Q8_0"]),
];

/// The numbers of `general.file_type` for files of (almost) one format.
const FILE_TYPES: &[(&str, u32)] = &[
    ("F32", 0),
    ("F16", 1),
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q8_0", 7),
    ("Q5_0", 8),
    ("Q5_1", 9),
    ("Q3_K", 11),
    ("Q4_K", 14),
    ("Q5_K", 16),
    ("Q6_K", 18),
    ("IQ3_XXS", 23),
    ("IQ1_S", 24),
    ("IQ4_NL", 25),
    ("IQ3_S", 26),
    ("IQ2_S", 28),
    ("IQ4_XS", 30),
    ("IQ1_M", 31),
    ("BF16", 32),
    ("TQ1_0", 36),
    ("TQ2_0", 37),
    ("Q1_0", 40),
    ("Q2_0", 41),
];

/// A format for each part.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    formats: [&'static QuantType; 6],
    file_type: u32,
}

fn named(name: &str) -> Result<&'static QuantType> {
    let known = || quant::TYPES.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
    quant::by_name(name).with_context(|| format!("no weight format is called {name}; there are {}", known()))
}

impl FromStr for Mix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mix> {
        let mut mix: Option<Mix> = None;
        for word in text.split(',') {
            let Some((part, format)) = word.split_once('=') else {
                if mix.is_some() {
                    bail!("{word}: only the first word names the whole mix; PART=FORMAT expected");
                }
                mix = Some(Mix::preset(word)?);
                continue;
            };
            let Some(i) = PARTS.iter().position(|(name, _)| *name == part) else {
                bail!("no part is called {part}; there are {}", PARTS.map(|p| p.0).join(", "));
            };
            let mix = match &mut mix {
                Some(mix) => mix,
                none => none.insert(Mix::preset("Q4_K_M")?),
            };
            mix.formats[i] = named(format)?;
            if part == "experts" && !text.contains("down=") {
                mix.formats[1] = mix.formats[0]; // saying what experts are means all of their matrices
            }
        }
        mix.context("an empty mix")
    }
}

impl Mix {
    fn preset(name: &str) -> Result<Mix> {
        if let Some((_, file_type, formats)) = PRESETS.iter().find(|p| p.0.eq_ignore_ascii_case(name)) {
            let mut list = Vec::new();
            for f in formats {
                list.push(named(f)?);
            }
            return Ok(Mix { formats: list.try_into().expect("six parts"), file_type: *file_type });
        }
        let ty = named(name)?;
        let file_type = FILE_TYPES.iter().find(|f| f.0 == ty.name).map_or(1024, |f| f.1);
        // Formats under 4 bits are for experts: with all of a model in them, real files are not made.
        let rest = if ty.bits() < 4.0 { named("Q8_0")? } else { ty };
        Ok(Mix { formats: [ty, ty, rest, rest, rest, rest], file_type })
    }

    /// `general.file_type`.
    pub(crate) fn file_type(&self) -> u32 {
        self.file_type
    }

    /// The format of a part's matrix with rows of `n`: where `n` is not a whole number of blocks, the next larger format
    /// with smaller blocks, as llama-quantize does.
    pub(crate) fn format(&self, part: Part, n: usize) -> &'static QuantType {
        let i = PARTS.iter().position(|p| p.1 == part).expect("every part is listed");
        let ty = self.formats[i];
        let fits = |t: &QuantType| n.is_multiple_of(t.block) && n.is_multiple_of(t.act.block());
        if fits(ty) {
            return ty;
        }
        let smaller = ["IQ4_NL", "Q5_0", "Q5_1", "Q8_0", "F16"].iter().filter_map(|name| quant::by_name(name));
        smaller.into_iter().find(|t| t.bits() >= ty.bits() && fits(t)).expect("F16 fits any row")
    }
}
