//! Which files of a repository are the model that was asked for.
//!
//! A model is one GGUF file or all the files of a split one: the same path up to the number, the
//! same count. Its *quant* is the last part of its name, after `-` or `.` (llama.cpp:
//! `[-.]([A-Z0-9_]+)$`). llama.cpp searches `QUANT[.-]` anywhere in the path, so that `F16` finds
//! BF16; here the quant must begin at a boundary, and where several files match, none is taken.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};

use super::names::ModelName;
use crate::gguf::shard_of;

/// Parts of the names of files that go with a model and are none (llama.cpp's
/// `gguf_filename_is_model`).
const NOT_MODELS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// `split.count` is a u16 in every known writer.
const MOST_SHARDS: usize = 65535;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Its path in the repository.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of the contents (64 hexadecimal digits), or the hash that git gives a file (40);
    /// empty where not known.
    pub hash: String,
}

/// A model of a repository: its files in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// The path without number and `.gguf`.
    pub stem: String,
    /// The files that are there, in order.
    pub files: Vec<HubFile>,
    /// How many files it has, by their names.
    pub count: usize,
    /// The first file that is not there, from 1.
    pub missing: Option<usize>,
}

impl HubModel {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }

    /// The last part of the name, which is the weight format by custom; empty where the name has
    /// one part only. A format of Unsloth's dynamic kind keeps its `UD-`.
    pub fn quant(&self) -> &str {
        let name = self.stem.rsplit('/').next().unwrap_or_default();
        let Some(at) = name.rfind(['-', '.']) else { return "" };
        match name[..at].rfind(['-', '.']) {
            Some(before) if name[before + 1..at].eq_ignore_ascii_case("ud") => &name[before + 1..],
            None if name[..at].eq_ignore_ascii_case("ud") => name,
            _ => &name[at + 1..],
        }
    }

    /// The name of its only or first file.
    fn first(&self) -> &str {
        self.files.first().map_or(&self.stem, |f| &f.path)
    }
}

/// The model that was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubChoice {
    /// The model.
    pub model: HubModel,
    /// The reason in words, where the user did not name it: "no quant was given".
    pub why: Option<String>,
}

/// The models among files; what only goes with a model is not among them unless `all`.
pub(super) fn models(files: &[HubFile], all: bool) -> Vec<HubModel> {
    let mut groups: BTreeMap<(String, usize), Vec<(usize, HubFile)>> = BTreeMap::new();
    for file in files.iter().filter(|f| f.path.to_ascii_lowercase().ends_with(".gguf")) {
        let name = file.path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        if !all && NOT_MODELS.iter().any(|n| name.contains(n)) {
            continue;
        }
        let shard = shard_of(&file.path).filter(|s| s.2 <= MOST_SHARDS);
        let (stem, no, count) = shard.unwrap_or((&file.path[..file.path.len() - 5], 0, 1));
        groups.entry((stem.to_owned(), count)).or_default().push((no, file.clone()));
    }
    let model = |((stem, count), mut parts): ((String, usize), Vec<(usize, HubFile)>)| {
        parts.sort_by_key(|p| p.0);
        parts.dedup_by_key(|p| p.0);
        let gap = parts.iter().enumerate().position(|(i, p)| p.0 != i).unwrap_or(parts.len());
        let missing = (gap < count).then_some(gap + 1);
        HubModel { stem, files: parts.into_iter().map(|p| p.1).collect(), count, missing }
    };
    groups.into_iter().map(model).collect()
}

/// Chooses the model that `name` asks for; without a quant the first of `usual` that the repository
/// has, else its only model.
///
/// # Errors
/// If there is none, several match, or a part of it is missing; the message lists what there is.
pub(super) fn choose(files: &[HubFile], name: &ModelName, usual: &[&str]) -> Result<HubChoice> {
    let models = models(files, false);
    let choice = match (&name.file, &name.quant) {
        (Some(file), _) => HubChoice { model: with_file(files, file)?, why: None },
        (None, Some(quant)) => HubChoice { model: with_quant(&models, quant)?, why: None },
        (None, None) => without_quant(&models, files, usual)?,
    };
    if let Some(no) = choice.model.missing {
        let (first, count) = (choice.model.first(), choice.model.count);
        bail!("{first}: file {no} of {count} is missing in the repository");
    }
    Ok(choice)
}

/// The model that a file belongs to.
fn with_file(files: &[HubFile], file: &str) -> Result<HubModel> {
    let all = models(files, true);
    let found = all.iter().find(|m| m.files.iter().any(|f| f.path == file));
    found.cloned().ok_or_else(|| anyhow!("the repository has no GGUF file {file:?}; it has {}", listed(&all)))
}

/// The one model whose name ends in a quant.
fn with_quant(models: &[HubModel], quant: &str) -> Result<HubModel> {
    match matching(models, quant)[..] {
        [] if models.is_empty() => bail!("the repository has no GGUF model"),
        [] => bail!("no model of the repository is called {quant}; it has {}", listed(models)),
        [one] => Ok(one.clone()),
        ref several => {
            let several: Vec<HubModel> = several.iter().map(|m| (*m).clone()).collect();
            let (all, file) = (listed(&several), several[0].first().to_owned());
            bail!("several models of the repository are called {quant}: {all}; name one by its file (-hff {file})")
        }
    }
}

/// The models whose name ends in this quant; where one is the plain form of all others (`m-Q4`
/// next to `m-UD-Q4`), that one alone. If no name ends in it, those that have it inside or as their
/// folder.
fn matching<'a>(models: &'a [HubModel], quant: &str) -> Vec<&'a HubModel> {
    let quant = quant.to_ascii_lowercase();
    // `_` is a boundary in front of what can only be a format: letters, then digits.
    let format = quant.starts_with(|c: char| c.is_ascii_alphabetic()) && quant.contains(|c: char| c.is_ascii_digit());
    let boundary = |c: char| matches!(c, '-' | '.' | '/') || (c == '_' && format);
    let ends: Vec<(&HubModel, String)> = models
        .iter()
        .filter_map(|m| {
            let stem = m.stem.to_ascii_lowercase();
            let rest = stem.strip_suffix(&quant)?;
            (rest.is_empty() || rest.ends_with(boundary)).then(|| (m, rest.trim_end_matches(boundary).to_owned()))
        })
        .collect();
    // The bound is for lists that are made to take time.
    if ends.len() < 100
        && let Some((plain, _)) =
            ends.iter().find(|(_, rest)| ends.iter().all(|(_, other)| other == rest || other == &format!("{rest}-ud")))
        && ends.iter().filter(|(_, rest)| !rest.ends_with("-ud")).count() == 1
    {
        return vec![plain];
    }
    if !ends.is_empty() {
        return ends.into_iter().map(|(m, _)| m).collect();
    }
    let inside = |m: &&HubModel| {
        let stem = m.stem.to_ascii_lowercase();
        stem.match_indices(&quant).any(|(at, _)| {
            let after = stem[at + quant.len()..].chars().next();
            (at == 0 || stem[..at].ends_with(boundary)) && after.is_none_or(|c| matches!(c, '-' | '.' | '/'))
        })
    };
    models.iter().filter(inside).collect()
}

/// The model to take where the user named none.
fn without_quant(models: &[HubModel], files: &[HubFile], usual: &[&str]) -> Result<HubChoice> {
    if models.is_empty() {
        bail!("{}", no_model(files));
    }
    if let [only] = models {
        return Ok(HubChoice { model: only.clone(), why: Some("the only model of the repository".into()) });
    }
    for quant in usual {
        if !matching(models, quant).is_empty() {
            let others = models.len() - 1;
            let why = format!("no quant was given; {others} more in the repository");
            return Ok(HubChoice { model: with_quant(models, quant)?, why: Some(why) });
        }
    }
    let there = listed(models);
    bail!("no quant was given, and none of the usual ones is there: name one, USER/REPO:QUANT, of {there}")
}

/// Why a repository has no model, by what it has.
fn no_model(files: &[HubFile]) -> String {
    let has = |what: &str| files.iter().find(|f| f.path.to_ascii_lowercase().contains(what)).map(|f| f.path.clone());
    let lower = |f: &&HubFile| f.path.to_ascii_lowercase().ends_with(".gguf");
    if let Some(piece) = has(".gguf.").or_else(|| has(".gguf-")) {
        format!(
            "the repository has no whole GGUF file: {piece} is a piece that must be joined with the others (cat), then \
             opened with -m"
        )
    } else if let Some(other) = files.iter().find(lower) {
        format!(
            "the repository has no GGUF model: {} goes with one and is none; -hff takes it all the same",
            other.path
        )
    } else if let Some(weights) = has(".safetensors") {
        format!(
            "the repository has no GGUF file ({weights} is a checkpoint): look for a repository with -GGUF in its \
             name, or fetch the checkpoint and convert it (tandem convert)"
        )
    } else {
        "the repository has no GGUF file".into()
    }
}

/// Models in words: quants with sizes, files where the names have no quant.
fn listed(models: &[HubModel]) -> String {
    let twice = |m: &HubModel| models.iter().filter(|o| o.quant().eq_ignore_ascii_case(m.quant())).count() > 1;
    let one = |m: &HubModel| {
        let name = if m.quant().is_empty() || twice(m) { m.first() } else { m.quant() };
        format!("{name} ({:.1} GB)", m.bytes() as f64 / 1e9)
    };
    let mut words: Vec<String> = models.iter().take(40).map(one).collect();
    if models.len() > words.len() {
        words.push(format!("and {} more", models.len() - words.len()));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(paths: &[&str]) -> Vec<HubFile> {
        paths.iter().map(|p| HubFile { path: (*p).into(), size: 1_500_000_000, hash: String::new() }).collect()
    }

    const USUAL: [&str; 2] = ["Q4_K_M", "Q8_0"];

    fn chosen(paths: &[&str], name: &str) -> String {
        match choose(&repo(paths), &ModelName::parse(name, None).unwrap(), &USUAL) {
            Ok(c) => c.model.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>().join(" "),
            Err(e) => format!("error: {e}"),
        }
    }

    const SEVERAL: [&str; 7] = [
        "README.md",
        "m-BF16.gguf",
        "m-F16.gguf",
        "m-Q4_K_M.gguf",
        "m-UD-Q4_K_XL.gguf",
        "mmproj-Q4_K_M.gguf",
        "mtp-m-Q4_K_M.gguf",
    ];

    #[test]
    fn a_quant_begins_at_a_boundary_and_what_goes_with_a_model_is_none() {
        assert_eq!(chosen(&SEVERAL, "a/b"), "m-Q4_K_M.gguf");
        assert_eq!(chosen(&SEVERAL, "a/b:f16"), "m-F16.gguf"); // not BF16
        assert_eq!(chosen(&SEVERAL, "a/b:Q4_K_XL"), "m-UD-Q4_K_XL.gguf");
        assert_eq!(chosen(&SEVERAL, "a/b:UD-Q4_K_XL"), "m-UD-Q4_K_XL.gguf");
        assert_eq!(chosen(&["x/m_Q4_K_M.gguf", "x/m_Q4_K_S.gguf"], "a/b:q4_k_s"), "x/m_Q4_K_S.gguf");
        assert_eq!(chosen(&["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"], "a/b:Q4_K_M"), "m-Q4_K_M.gguf");
        assert_eq!(chosen(&["m-Q4_K_M-v2.gguf", "m-Q8_0-v2.gguf"], "a/b:Q8_0"), "m-Q8_0-v2.gguf");
    }

    #[test]
    fn a_quant_that_is_not_there_or_not_clear_fetches_nothing_and_lists_what_there_is() {
        for quant in ["Q4", "K_M", "Q4_K", "Q9_0", "q4.k.m", "Q4_K_M+", ".*"] {
            let said = chosen(&SEVERAL, &format!("a/b:{quant}"));
            let list = "it has BF16 (1.5 GB), F16 (1.5 GB), Q4_K_M (1.5 GB), UD-Q4_K_XL (1.5 GB)";
            assert!(said.starts_with(&format!("error: no model of the repository is called {quant}")), "{said}");
            assert!(said.ends_with(list), "{said}");
        }
        let said = chosen(&["x-Q4_K_M.gguf", "yy-Q4_K_M.gguf"], "a/b");
        assert!(said.contains("several") && said.contains("-hff x-Q4_K_M.gguf"), "{said}");
        let said = chosen(&["x-Q2_K.gguf", "x-BF16.gguf"], "a/b");
        assert!(said.contains("no quant was given") && said.contains("Q2_K (1.5 GB)"), "{said}");
        assert_eq!(chosen(&["only.gguf"], "a/b"), "only.gguf");
    }

    #[test]
    fn the_files_of_a_split_model_come_together_or_not_at_all() {
        let parts =
            ["Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf", "m-Q4_K_M-00001-of-00003.gguf"];
        assert_eq!(chosen(&parts, "a/b:Q8_0"), format!("{} {}", parts[1], parts[0]));
        assert!(chosen(&parts, "a/b").contains("file 2 of 3 is missing"), "{}", chosen(&parts, "a/b"));
        let name = ModelName::parse("a/b", Some(parts[0])).unwrap();
        assert_eq!(choose(&repo(&parts), &name, &USUAL).unwrap().model.files.len(), 2);
        let absurd = "m-00001-of-99999999999999.gguf";
        assert_eq!(chosen(&[absurd], "a/b"), absurd, "a count that no model has is a part of a name");
        assert!(chosen(&["m.gguf.part1of2", "m.gguf.part2of2"], "a/b").contains("must be joined"));
        assert!(chosen(&["model.safetensors"], "a/b").contains("tandem convert"));
    }
}
