//! Models split over several files: `name-00002-of-00005.gguf` has `split.no` 1 and `split.count` 5.
//!
//! The first file holds the model's metadata; every file holds some of the tensors and its own directory of them.

use super::map::{FileBytes, Load};
use super::parse::{Header, parse};
use super::{Gguf, Shard};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

pub(super) const NO: &str = "split.no";
pub(super) const COUNT: &str = "split.count";
pub(super) const TENSORS: &str = "split.tensors.count";
/// `split.count` is a u16 in every known writer.
pub(super) const MAX_FILES: usize = 65535;

/// The name of file `no` (from 0) of `count`: `shard_name("m", 1, 5)` is `m-00002-of-00005.gguf`.
pub fn shard_name(stem: &str, no: usize, count: usize) -> String {
    format!("{stem}-{:05}-of-{count:05}.gguf", no + 1)
}

/// The parts of such a name: stem, number from 0, count. `None` for any other name.
pub fn shard_of(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, no) = rest.rsplit_once('-')?;
    let number = |s: &str| (s.len() >= 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<usize>().ok())?;
    let (no, count) = (number(no)?.checked_sub(1)?, number(count)?);
    (no < count && shard_name(stem, no, count) == name).then_some((stem, no, count))
}

/// Opens the file, and the other files if it is one of several, and maps them.
pub(super) fn open(path: &Path, load: &Load) -> Result<Gguf> {
    let given = open_one(path, load)?;
    let meta = &given.0.meta;
    let count = meta.opt_usize(COUNT)?.unwrap_or(1);
    let mut parts = Vec::new();
    if count < 2 {
        parts.push(given);
    } else if let Some(at) = next_file(&given) {
        bail!(
            "{}: it is several files of a split model joined into one (another GGUF file begins at byte {at}), which is no \
             GGUF file: keep the {count} files as they came and name any of them, or join them with llama-gguf-split --merge",
            path.display()
        );
    } else {
        let no = meta.usize(NO)?;
        if count > MAX_FILES {
            bail!(
                "{}: metadata key {COUNT:?} is {count}, expected at most {MAX_FILES}: the file is damaged",
                path.display()
            );
        }
        let paths = siblings(path, no, count)?;
        let mut given = Some(given);
        for (i, path) in paths.iter().enumerate() {
            parts.push(if i == no { given.take().expect("taken once") } else { open_one(path, load)? });
        }
        agree(&parts)?;
    }

    let model = Gguf::assemble(path, parts)?;
    model.files.iter().try_for_each(|Shard { path, bytes }| bytes.recheck(path))?;
    Ok(model)
}

fn open_one(path: &Path, load: &Load) -> Result<(Header, Shard)> {
    let bytes = FileBytes::open(path, load)?;
    let header = parse(bytes.as_slice(), bytes.as_slice().len() as u64, path)?;
    Ok((header, Shard { path: path.to_owned(), bytes }))
}

/// Where another GGUF file begins after the tensors of this one, as in files that `cat` joined.
fn next_file((header, shard): &(Header, Shard)) -> Option<usize> {
    let last = header.tensors.iter().map(|t| t.range().end).max();
    let end = last.unwrap_or(header.data as usize);
    // A writer fills its last tensor up to the alignment, or does not.
    let begins = [end, end.next_multiple_of(header.alignment as usize)];
    begins.into_iter().find(|&at| shard.bytes.as_slice().get(at..).is_some_and(|rest| rest.starts_with(b"GGUF")))
}

/// The paths of all files of the model that file `no` of `count` at `path` belongs to; all of them exist.
fn siblings(path: &Path, no: usize, count: usize) -> Result<Vec<PathBuf>> {
    let shown = path.display();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let stem = match shard_of(name) {
        Some((stem, n, c)) if n == no && c == count => stem,
        _ => {
            let (nth, want) = (no + 1, shard_name("NAME", no, count));
            bail!(
                "{shown}: its metadata ({NO}, {COUNT}) says it is file {nth} of {count} of a split model, so its name \
                 must end like {want}: give all the files their original names"
            );
        }
    };
    let paths: Vec<PathBuf> = (0..count).map(|i| path.with_file_name(shard_name(stem, i, count))).collect();
    let missing: Vec<_> = paths.iter().filter(|p| !p.exists()).map(|p| p.display().to_string()).collect();
    if let [first, ..] = &missing[..] {
        let more = match missing.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        bail!(
            "{shown}: one of {count} files of a split model, but {first}{more} is missing: all must be in one folder"
        );
    }
    Ok(paths)
}

/// Checks that the files, in order, say the same about the model.
fn agree(parts: &[(Header, Shard)]) -> Result<()> {
    let expect =
        |(header, shard): &(Header, Shard), key: &str, want: usize, why: &str| match header.meta.opt_usize(key)? {
            Some(n) if n != want => bail!(
                "{}: metadata key {key:?} is {n}, expected {want} {why}: the files are not of one model",
                shard.path.display()
            ),
            _ => Ok(()),
        };
    for (i, part) in parts.iter().enumerate() {
        part.0.meta.usize(NO)?;
        part.0.meta.usize(COUNT)?;
        expect(part, NO, i, "as its name says")?;
        expect(part, COUNT, parts.len(), "as in the other files")?;
    }
    let found = parts.iter().map(|(h, _)| h.tensors.len()).sum();
    parts.iter().try_for_each(|part| expect(part, TENSORS, found, "(the tensors found in all files)"))
}
