//! The stages of sampling and the order they run in, by llama.cpp's names and letters.

use anyhow::{Result, bail};

/// A stage: it changes logits, or leaves fewer candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Tokens of the text so far become less likely.
    Penalties,
    /// Tokens that would go on with a repetition become less likely.
    Dry,
    /// Logits within this many standard deviations of the largest stay.
    TopNSigma,
    /// The k likeliest stay.
    TopK,
    /// Tokens that surprise about as much as one expects stay.
    TypicalP,
    /// The likeliest that together reach p stay.
    TopP,
    /// Tokens at least p times as likely as the likeliest stay.
    MinP,
    /// Now and then, all likely tokens but the least likely of them go.
    Xtc,
    /// Logits are divided by the temperature.
    Temperature,
    /// Draws near a target probability; it always runs last, wherever it is listed.
    AdaptiveP,
}

/// The stages with llama.cpp's names and letters, in its default order, and after them what that order leaves out
/// (common/sampling.cpp, common/common.h).
const ALL: [(Stage, &str, char); 10] = [
    (Stage::Penalties, "penalties", 'e'),
    (Stage::Dry, "dry", 'd'),
    (Stage::TopNSigma, "top_n_sigma", 's'),
    (Stage::TopK, "top_k", 'k'),
    (Stage::TypicalP, "typ_p", 'y'),
    (Stage::TopP, "top_p", 'p'),
    (Stage::MinP, "min_p", 'm'),
    (Stage::Xtc, "xtc", 'x'),
    (Stage::Temperature, "temperature", 't'),
    (Stage::AdaptiveP, "adaptive_p", 'a'),
];

/// Other names that llama.cpp takes or took.
const ALIASES: [(&str, Stage); 5] = [
    ("nucleus", Stage::TopP),
    ("temp", Stage::Temperature),
    ("typ", Stage::TypicalP),
    ("typical", Stage::TypicalP),
    ("typicalp", Stage::TypicalP),
];

impl Stage {
    /// llama.cpp's default order.
    pub fn default_order() -> Vec<Stage> {
        ALL[..9].iter().map(|(stage, ..)| *stage).collect()
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(stage, ..)| *stage == self).map_or("", |(_, name, _)| name)
    }

    /// An order as `--samplers` has it: names between semicolons, with `_`, `-` or nothing between their words.
    ///
    /// # Errors
    /// If a name is none of a stage.
    pub fn from_names(text: &str) -> Result<Vec<Stage>> {
        let plain = |name: &str| name.trim().to_ascii_lowercase().replace(['_', '-'], "");
        let names = text.split(';').filter(|name| !name.trim().is_empty());
        let stage = |name: &str| {
            let known = ALL.iter().find(|(_, known, _)| plain(known) == plain(name)).map(|(stage, ..)| *stage);
            match known.or_else(|| ALIASES.iter().find(|(alias, _)| *alias == plain(name)).map(|(_, stage)| *stage)) {
                Some(stage) => Ok(stage),
                None if plain(name) == "infill" => bail!("infill completes between two texts, which is not done here"),
                None => bail!("no sampler is called {name:?}; there are {}", ALL.map(|(_, name, _)| name).join(", ")),
            }
        };
        names.map(stage).collect()
    }

    /// An order as `--sampler-seq` has it: a letter for each stage.
    ///
    /// # Errors
    /// If a letter is none of a stage.
    pub fn from_letters(text: &str) -> Result<Vec<Stage>> {
        let stage = |letter: char| match ALL.iter().find(|(.., known)| *known == letter) {
            Some((stage, ..)) => Ok(*stage),
            None if letter == 'i' => bail!("i, infill, completes between two texts, which is not done here"),
            None => {
                let known = ALL.map(|(_, name, letter)| format!("{letter} ({name})"));
                bail!("no sampler has the letter {letter:?}; there are {}", known.join(", "))
            }
        };
        text.trim().chars().map(stage).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_cpp_s_default_order_is_the_default_by_name_and_by_letter() {
        let names = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature";
        assert_eq!(Stage::from_names(names).unwrap(), Stage::default_order());
        assert_eq!(Stage::from_letters("edskypmxt").unwrap(), Stage::default_order());
        assert_eq!(Stage::default_order().iter().map(|s| s.name()).collect::<Vec<_>>().join(";"), names);
    }

    #[test]
    fn every_spelling_that_llama_cpp_takes_is_taken() {
        let spelled = "Top-K;topk;top_k;nucleus;TEMP;typ;typ-p;topnsigma;adaptive-p; min_p ;";
        use Stage::*;
        let want = [TopK, TopK, TopK, TopP, Temperature, TypicalP, TypicalP, TopNSigma, AdaptiveP, MinP];
        assert_eq!(Stage::from_names(spelled).unwrap(), want);
        assert_eq!(Stage::from_names("").unwrap(), []);
        assert_eq!(Stage::from_letters("ka").unwrap(), [TopK, AdaptiveP]);
    }

    #[test]
    fn a_name_or_letter_that_is_none_is_named_with_those_that_are() {
        let e = Stage::from_names("top_k;tfs_z").unwrap_err().to_string();
        assert!(e.contains("\"tfs_z\"") && e.contains("top_n_sigma, top_k"), "{e}");
        let e = Stage::from_letters("kz").unwrap_err().to_string();
        assert!(e.contains("'z'") && e.contains("k (top_k)"), "{e}");
        assert!(Stage::from_names("infill").unwrap_err().to_string().contains("not done here"));
    }
}
