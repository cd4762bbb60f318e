//! What can be asked of a sampler: every parameter, its default, its names, and what it may be.
//!
//! Fields have the names of llama.cpp's server API; defaults are llama.cpp's (common/common.h). Its other names for them,
//! in flags and in a GGUF file's `general.sampling.*`, are in one table with the ranges, so that a value is checked the
//! same way wherever it comes from.

use super::order::Stage;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// The stages in the order they run in; one that is not here does nothing.
    pub order: Vec<Stage>,
    /// What is added to logits before all else; -inf forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// What logits are divided by; 0 takes the likeliest candidate.
    pub temperature: f32,
    /// The temperature moves this far to both sides, up where the model is unsure; 0 is off.
    pub dynatemp_range: f32,
    /// How the entropy's share of the largest possible becomes the temperature's share of its range.
    pub dynatemp_exponent: f32,
    /// 0 or less keeps all.
    pub top_k: i32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 keeps all.
    pub typical_p: f32,
    /// 0 or less keeps all.
    pub top_n_sigma: f32,
    /// How often XTC cuts.
    pub xtc_probability: f32,
    /// From which probability on a token is one of the likely; above 0.5, XTC is off.
    pub xtc_threshold: f32,
    /// Cuts that add up probabilities leave at least this many candidates, and so does min-p; XTC does not cut below it.
    pub min_keep: i32,
    /// How many of the last tokens are penalized; -1 is all of them, 0 none.
    pub repeat_last_n: i32,
    /// What a seen token's logit is divided by, or multiplied with where it is negative; 1 is off.
    pub repeat_penalty: f32,
    /// What is taken off a seen token's logit.
    pub presence_penalty: f32,
    /// What is taken off a token's logit for each time it was seen.
    pub frequency_penalty: f32,
    /// DRY takes multiplier x base ^ (repeated tokens - allowed length) off a logit; 0 is off.
    pub dry_multiplier: f32,
    /// The base in DRY's formula, see `dry_multiplier`.
    pub dry_base: f32,
    /// Repetitions shorter than this cost nothing.
    pub dry_allowed_length: i32,
    /// In how many of the last tokens repetitions are looked for; -1 is all of them, 0 none.
    pub dry_penalty_last_n: i32,
    /// 1 or 2: mirostat of that version chooses, and of the stages only temperature runs before it.
    pub mirostat: i32,
    /// The surprise that mirostat aims at, in bits.
    pub mirostat_tau: f32,
    /// How fast mirostat learns.
    pub mirostat_eta: f32,
    /// The probability that adaptive-p aims at; negative is off.
    pub adaptive_target: f32,
    /// How slowly adaptive-p forgets.
    pub adaptive_decay: f32,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            order: Stage::default_order(),
            logit_bias: Vec::new(),
            temperature: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            min_keep: 0,
            repeat_last_n: 64,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            adaptive_target: -1.0,
            adaptive_decay: 0.9,
        }
    }
}

/// Where a number is kept, and the least and the largest that it may be.
enum Field {
    Real(fn(&mut Params) -> &mut f32, f32, f32),
    Whole(fn(&mut Params) -> &mut i32, i32, i32),
}
use Field::{Real, Whole};

/// A parameter that is a number: its names, where it is, and the stage that reads it (mirostat is none).
type Number = (&'static [&'static str], Field, Option<Stage>);

const MOST: f32 = f32::MAX;

const NUMBERS: &[Number] = &[
    (&["temperature", "temp"], Real(|p| &mut p.temperature, 0.0, MOST), Some(Stage::Temperature)),
    (&["dynatemp_range"], Real(|p| &mut p.dynatemp_range, 0.0, MOST), Some(Stage::Temperature)),
    (&["dynatemp_exponent", "dynatemp_exp"], Real(|p| &mut p.dynatemp_exponent, 0.0, MOST), Some(Stage::Temperature)),
    (&["top_k"], Whole(|p| &mut p.top_k, i32::MIN, i32::MAX), Some(Stage::TopK)),
    (&["top_p"], Real(|p| &mut p.top_p, 0.0, 1.0), Some(Stage::TopP)),
    (&["min_p"], Real(|p| &mut p.min_p, 0.0, 1.0), Some(Stage::MinP)),
    (&["typical_p", "typical", "typ_p"], Real(|p| &mut p.typical_p, 0.0, 1.0), Some(Stage::TypicalP)),
    (&["top_n_sigma", "top_nsigma"], Real(|p| &mut p.top_n_sigma, -MOST, MOST), Some(Stage::TopNSigma)),
    (&["xtc_probability"], Real(|p| &mut p.xtc_probability, 0.0, 1.0), Some(Stage::Xtc)),
    (&["xtc_threshold"], Real(|p| &mut p.xtc_threshold, 0.0, 1.0), Some(Stage::Xtc)),
    (&["min_keep"], Whole(|p| &mut p.min_keep, 0, i32::MAX), None),
    (&["repeat_last_n", "penalty_last_n"], Whole(|p| &mut p.repeat_last_n, -1, i32::MAX), Some(Stage::Penalties)),
    // The smallest normal number: its inverse is finite.
    (
        &["repeat_penalty", "penalty_repeat"],
        Real(|p| &mut p.repeat_penalty, f32::MIN_POSITIVE, MOST),
        Some(Stage::Penalties),
    ),
    (&["presence_penalty"], Real(|p| &mut p.presence_penalty, -MOST, MOST), Some(Stage::Penalties)),
    (&["frequency_penalty"], Real(|p| &mut p.frequency_penalty, -MOST, MOST), Some(Stage::Penalties)),
    (&["dry_multiplier"], Real(|p| &mut p.dry_multiplier, 0.0, MOST), Some(Stage::Dry)),
    (&["dry_base"], Real(|p| &mut p.dry_base, 1.0, MOST), Some(Stage::Dry)),
    (&["dry_allowed_length"], Whole(|p| &mut p.dry_allowed_length, 0, i32::MAX), Some(Stage::Dry)),
    (&["dry_penalty_last_n"], Whole(|p| &mut p.dry_penalty_last_n, -1, i32::MAX), Some(Stage::Dry)),
    (&["mirostat"], Whole(|p| &mut p.mirostat, 0, 2), None),
    (&["mirostat_tau", "mirostat_ent"], Real(|p| &mut p.mirostat_tau, 0.0, MOST), None),
    (&["mirostat_eta", "mirostat_lr"], Real(|p| &mut p.mirostat_eta, 0.0, MOST), None),
    (&["adaptive_target"], Real(|p| &mut p.adaptive_target, -MOST, 1.0), Some(Stage::AdaptiveP)),
    (&["adaptive_decay"], Real(|p| &mut p.adaptive_decay, 0.0, 0.99), Some(Stage::AdaptiveP)),
];

/// The parameter of a name; words may be joined by `_` or `-`.
fn number(name: &str) -> Option<&'static Number> {
    let name = name.replace('-', "_");
    NUMBERS.iter().find(|(names, ..)| names.contains(&name.as_str()))
}

impl Params {
    /// The field that is meant by any of a number's names; None if it is no number's.
    pub fn name_of(name: &str) -> Option<&'static str> {
        number(name).map(|(names, ..)| names[0])
    }

    /// Sets the number of this name, in any of llama.cpp's spellings. False if there is no such number; an error, which
    /// is what was expected instead, if the value cannot be.
    ///
    /// # Errors
    /// If the value is not of the parameter's kind, or out of its range.
    pub fn set(&mut self, name: &str, value: f64) -> Result<bool, String> {
        match number(name) {
            None => return Ok(false),
            Some((_, Real(at, least, most), _)) => {
                let value = value as f32;
                if !(*least..=*most).contains(&value) {
                    let what = match (*least, *most) {
                        (f32::MIN_POSITIVE, _) => "above 0".to_owned(),
                        (0.0 | 1.0, MOST) => format!("from {least} up"),
                        (_, MOST) => "that is finite".to_owned(),
                        (least, most) if least == -MOST => format!("up to {most}"),
                        (least, most) => format!("from {least} to {most}"),
                    };
                    return Err(format!("a number {what}"));
                }
                *at(self) = value;
            }
            Some((_, Whole(at, least, most), _)) => {
                if value.fract() != 0.0 || !(f64::from(*least)..=f64::from(*most)).contains(&value) {
                    let what = match (*least, *most) {
                        (i32::MIN, _) => String::new(),
                        (least, i32::MAX) => format!(" from {least} up"),
                        (least, most) => format!(" from {least} to {most}"),
                    };
                    return Err(format!("a whole number{what}"));
                }
                *at(self) = value as i32;
            }
        }
        Ok(true)
    }

    /// Every number, by its first name.
    pub fn numbers(&self) -> Vec<(&'static str, f64)> {
        let mut own = self.clone();
        let mut value = |field: &Field| match field {
            // Through text: 0.8 is to be 0.8, not the nearest f32 to it.
            Real(at, ..) => at(&mut own).to_string().parse().unwrap_or(f64::NAN),
            Whole(at, ..) => f64::from(*at(&mut own)),
        };
        NUMBERS.iter().map(|(names, field, _)| (names[0], value(field))).collect()
    }

    /// Why the number of this name has no effect with the current settings; None if it has one.
    pub fn idle(&self, name: &str) -> Option<String> {
        let (names, _, stage) = number(name)?;
        match (self.mirostat > 0, stage) {
            (true, Some(_)) if names[0] != "temperature" => Some("mirostat does not use it".into()),
            (false, None) if names[0].starts_with("mirostat_") => Some("mirostat is off".into()),
            (false, Some(stage)) if !self.order.contains(stage) => {
                Some(format!("the sampler order does not include {}", stage.name()))
            }
            // These leave the likeliest candidate where it is.
            (false, Some(Stage::TopK | Stage::TopP | Stage::MinP | Stage::TopNSigma)) if self.greedy() => {
                Some("temperature 0 always takes the most likely token".into())
            }
            (false, _) => {
                let (needs, is_off) = match names[0] {
                    "dynatemp_exponent" => ("dynatemp_range", self.dynatemp_range <= 0.0),
                    "xtc_threshold" => ("xtc_probability", self.xtc_probability <= 0.0),
                    "repeat_last_n" => ("a penalty", !self.penalizes()),
                    "dry_base" | "dry_allowed_length" | "dry_penalty_last_n" => {
                        ("dry_multiplier", self.dry_multiplier == 0.0)
                    }
                    "adaptive_decay" => ("adaptive_target", self.adaptive_target < 0.0),
                    _ => return None,
                };
                is_off.then(|| format!("it needs {needs}, which is off"))
            }
            _ => None,
        }
    }

    /// Whether anything is drawn, so that a seed counts.
    pub fn draws(&self) -> bool {
        let xtc = self.mirostat == 0 && self.order.contains(&Stage::Xtc) && self.active(Stage::Xtc);
        !self.greedy() || xtc
    }

    fn penalizes(&self) -> bool {
        self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether the likeliest candidate is taken, and nothing is drawn.
    pub fn greedy(&self) -> bool {
        self.temperature <= 0.0
            && (self.mirostat > 0 || self.dynatemp_range <= 0.0 && self.order.contains(&Stage::Temperature))
    }

    /// Whether a stage can change anything.
    pub(super) fn active(&self, stage: Stage) -> bool {
        match stage {
            Stage::Penalties => self.repeat_last_n != 0 && self.penalizes(),
            Stage::Dry => self.dry_multiplier != 0.0 && self.dry_base >= 1.0 && self.dry_penalty_last_n != 0,
            Stage::TopNSigma => self.top_n_sigma > 0.0,
            Stage::TopK => self.top_k > 0,
            Stage::TypicalP => self.typical_p < 1.0,
            Stage::TopP => self.top_p < 1.0,
            Stage::MinP => self.min_p > 0.0,
            Stage::Xtc => self.xtc_probability > 0.0 && self.xtc_threshold <= 0.5,
            Stage::Temperature => self.temperature != 1.0 || self.dynatemp_range > 0.0,
            Stage::AdaptiveP => self.adaptive_target >= 0.0,
        }
    }
}

/// How many of the last tokens a stage looks at; negative is all there are.
pub(super) fn window(last_n: i32) -> usize {
    usize::try_from(last_n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_set_by_any_of_its_names_and_an_unknown_name_is_not_an_error() {
        for name in ["temperature", "temp"] {
            let mut p = Params::default();
            assert_eq!(p.set(name, 0.25), Ok(true));
            assert_eq!(p.temperature, 0.25);
        }
        let mut p = Params::default();
        assert_eq!(p.set("repeat-last-n", -1.0), Ok(true));
        assert_eq!(p.repeat_last_n, -1);
        assert_eq!(p.set("frobnicate", 1.0), Ok(false));
    }

    #[test]
    fn defaults_lie_in_their_ranges_and_values_outside_change_nothing() {
        for (names, field, _) in NUMBERS {
            let mut p = Params::default();
            let now = match field {
                Real(at, ..) => f64::from(*at(&mut p)),
                Whole(at, ..) => f64::from(*at(&mut p)),
            };
            assert_eq!(p.set(names[0], now), Ok(true), "{names:?}");
            assert!(p.set(names[0], f64::NAN).is_err() && p.set(names[0], f64::INFINITY).is_err(), "{names:?}");
            assert_eq!(p, Params::default(), "{names:?}");
        }
        let mut p = Params::default();
        for (name, bad, says) in [
            ("top_p", 1.5, "a number from 0 to 1"),
            ("temp", -1.0, "a number from 0 up"),
            ("repeat_penalty", 0.0, "a number above 0"),
            ("top_n_sigma", f64::MAX, "a number that is finite"),
            ("adaptive_target", 2.0, "a number up to 1"),
            ("top_k", 1.5, "a whole number"),
            ("min_keep", -1.0, "a whole number from 0 up"),
            ("mirostat", 3.0, "a whole number from 0 to 2"),
        ] {
            assert_eq!(p.set(name, bad), Err(says.to_owned()));
        }
    }

    #[test]
    fn a_number_without_effect_says_why() {
        let p = Params { order: vec![Stage::TopK], ..Params::default() };
        assert!(p.idle("top_p").unwrap().contains("does not include top_p"));
        assert!(p.idle("mirostat_lr").unwrap().contains("mirostat is off"));
        assert_eq!(p.idle("top_k"), None);
        let p = Params::default();
        for (name, needs) in [
            ("dynatemp-exp", "dynatemp_range"),
            ("xtc_threshold", "xtc_probability"),
            ("repeat-last-n", "a penalty"),
            ("dry_base", "dry_multiplier"),
        ] {
            assert!(p.idle(name).unwrap().contains(needs), "{name}");
        }
        assert_eq!(Params { repeat_penalty: 1.1, ..p.clone() }.idle("repeat-last-n"), None);
        let p = Params { temperature: 0.0, ..p };
        assert!(p.idle("top_k").unwrap().contains("most likely") && p.idle("typical_p").is_none() && !p.draws());
        assert!(Params { xtc_probability: 0.5, ..p.clone() }.draws());
        let p = Params { mirostat: 2, ..Params::default() };
        assert!(p.idle("top_k").unwrap().contains("mirostat") && p.idle("dynatemp_range").is_some());
        assert!(p.idle("temp").is_none() && p.idle("mirostat_lr").is_none());
    }
}
