//! A blob that is being fetched: its bytes so far, and a record of which they are that outlives the
//! process.
//!
//! `HASH.tandem` has the blob's full length from the beginning; `HASH.tandem.json` says how many
//! bytes of each range of it are there. The record is written after the bytes are on the disk
//! (fsync), so that it never promises what a crash took away. The final name is given after the
//! hash was checked, so a file with that name is whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cache::{UNFINISHED, readable_by_all};
use super::choose::HubFile;

/// The record's version.
const VERSION: u64 = 1;

/// The most ranges of a blob, so that the record stays small whatever length a server claims.
const MOST_RANGES: u64 = 1 << 16;

/// An unfinished blob.
#[derive(Debug, Clone)]
pub(super) struct Unfinished {
    /// Where its bytes are.
    pub(super) path: PathBuf,
    record: PathBuf,
    repo: String,
    blob: HubFile,
    /// Bytes of a range; the last one may be shorter.
    pub(super) range_bytes: u64,
    /// Bytes that are there at the beginning of each range.
    pub(super) done: Vec<u64>,
}

/// What the record of an unfinished blob says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedFile {
    /// `USER/REPO`.
    pub repo: String,
    /// The file's path in the repository.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// How many bytes are there.
    pub done: u64,
}

impl Unfinished {
    /// What is there of a blob in the folder `blobs`, or an empty one. A `private` one is no one
    /// else's, and is not found again. Nothing is written.
    pub(super) fn of(blobs: &Path, repo: &str, blob: &HubFile, range_bytes: u64, private: bool) -> Unfinished {
        let own = if private { format!(".{}", std::process::id()) } else { String::new() };
        let path = blobs.join(format!("{}{own}{UNFINISHED}", blob.hash));
        let record = path.with_file_name(format!("{}{own}{UNFINISHED}.json", blob.hash));
        let range_bytes = range_bytes.max(blob.size.div_ceil(MOST_RANGES)).max(1);
        let mut it =
            Unfinished { path, record, repo: repo.to_owned(), blob: blob.clone(), range_bytes, done: Vec::new() };
        it.done = it.recorded().unwrap_or_default();
        if it.done.is_empty() {
            it.range_bytes = range_bytes;
            it.done = vec![0; blob.size.div_ceil(range_bytes) as usize];
        }
        it
    }

    /// The recorded progress, if the record is of this blob and the file has its length; takes over
    /// its ranges.
    fn recorded(&mut self) -> Option<Vec<u64>> {
        let record: Value = serde_json::from_slice(&fs::read(&self.record).ok()?).ok()?;
        let number = |key: &str| record[key].as_u64();
        let same = number("version") == Some(VERSION) && number("size") == Some(self.blob.size);
        let range_bytes = number("range_bytes").filter(|n| *n > 0 && same)?;
        let length = fs::metadata(&self.path).ok().filter(|m| m.is_file())?.len();
        let done: Vec<u64> = record["done"].as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
        self.range_bytes = range_bytes;
        let fits = |(i, d): (usize, &u64)| *d <= self.end(i) - self.start(i);
        let right = length == self.blob.size
            && done.len() as u64 == self.blob.size.div_ceil(range_bytes)
            && done.iter().enumerate().all(fits);
        right.then_some(done)
    }

    /// Where range `i` begins.
    pub(super) fn start(&self, i: usize) -> u64 {
        (i as u64 * self.range_bytes).min(self.blob.size)
    }

    /// Where range `i` ends, excluding.
    pub(super) fn end(&self, i: usize) -> u64 {
        self.start(i).saturating_add(self.range_bytes).min(self.blob.size)
    }

    /// Bytes that are there.
    pub(super) fn bytes(&self) -> u64 {
        self.done.iter().sum()
    }

    /// Bytes that are there without a gap from the beginning.
    pub(super) fn front(&self) -> u64 {
        let whole = self.done.iter().enumerate().take_while(|(i, d)| **d == self.end(*i) - self.start(*i)).count();
        self.start(whole) + self.done.get(whole).copied().unwrap_or(0)
    }

    /// Opens the file for reading and writing, at its full length.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn open(&self) -> Result<File> {
        let open = || -> io::Result<File> {
            fs::create_dir_all(self.path.parent().expect("a path in a folder"))?;
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.path)?;
            if file.metadata()?.len() != self.blob.size {
                file.set_len(self.blob.size)?;
            }
            readable_by_all(&file);
            Ok(file)
        };
        open().with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Forgets what was fetched, and fetches it as one range from now on if `whole`.
    pub(super) fn forget(&mut self, whole: bool) {
        if whole {
            self.range_bytes = self.blob.size.max(1);
        }
        self.done = vec![0; self.blob.size.div_ceil(self.range_bytes) as usize];
    }

    /// Writes the record of these bytes, which the caller brought to the disk before: whole or not
    /// at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn save(&self, done: &[u64]) -> Result<()> {
        let record = json!({
            "version": VERSION, "repo": self.repo, "path": self.blob.path, "size": self.blob.size,
            "range_bytes": self.range_bytes, "done": done,
        });
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(self.record.parent().expect("a path in a folder"))?;
            file.write_all(record.to_string().as_bytes())?;
            readable_by_all(file.as_file());
            file.persist(&self.record)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", self.record.display()))
    }

    /// Gives a blob whose hash is right its final name, after it is on the disk.
    ///
    /// # Errors
    /// If the disk does not keep it, or gives back less than was written.
    pub(super) fn finish(&self, file: &File) -> Result<()> {
        let name = self.path.display();
        file.sync_all().with_context(|| format!("cannot write {name}"))?;
        let length = file.metadata().with_context(|| format!("cannot read {name}"))?.len();
        if length != self.blob.size {
            bail!("{name} has {length} bytes, expected {}: the disk lost some", self.blob.size);
        }
        let blob = self.path.with_file_name(&self.blob.hash);
        fs::rename(&self.path, &blob).with_context(|| format!("cannot rename {name} to {}", blob.display()))?;
        let _ = fs::remove_file(&self.record);
        Ok(())
    }

    /// Removes what cannot be used: bytes with a wrong hash.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.record);
        let _ = fs::remove_file(&self.path);
    }
}

/// The unfinished blobs in a folder: those of this program by their records; those of other
/// programs by path and length.
pub(super) fn unfinished_in(blobs: &Path) -> (Vec<UnfinishedFile>, Vec<(PathBuf, u64)>) {
    let (mut own, mut foreign) = (Vec::new(), Vec::new());
    let mut entries: Vec<PathBuf> = fs::read_dir(blobs).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.ends_with(".incomplete") || name.ends_with(".downloadInProgress") {
            let bytes = path.metadata().map_or(0, |m| m.len());
            foreign.push((path, bytes));
        } else if name.ends_with(&format!("{UNFINISHED}.json")) {
            own.extend(read_record(&path));
        }
    }
    (own, foreign)
}

fn read_record(path: &Path) -> Option<UnfinishedFile> {
    let record: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let text = |key: &str| record[key].as_str().map(super::names::quoted);
    let done = record["done"].as_array()?.iter().filter_map(Value::as_u64).fold(0, u64::saturating_add);
    Some(UnfinishedFile { repo: text("repo")?, path: text("path")?, size: record["size"].as_u64()?, done })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(size: u64) -> HubFile {
        HubFile { path: "m.gguf".into(), size, hash: "a".repeat(64) }
    }

    #[test]
    fn a_record_is_believed_only_if_it_fits_the_file_and_the_blob() {
        let dir = tempfile::tempdir().unwrap();
        let of = |size: u64, range: u64| Unfinished::of(dir.path(), "a/b", &blob(size), range, false);
        let part = of(1000, 300);
        assert_eq!((part.done.len(), part.end(3), part.bytes()), (4, 1000, 0));
        let file = part.open().unwrap();
        part.save(&[300, 300, 20, 50]).unwrap();
        let again = of(1000, 64); // other ranges now: those of the record count
        assert_eq!((again.range_bytes, again.bytes(), again.front()), (300, 670, 620));
        assert_eq!(of(1001, 300).bytes(), 0, "of a blob of another length");
        for bad in [&[300u64, 300, 20][..], &[300, 300, 20, 101], &[301, 0, 0, 0]] {
            part.save(bad).unwrap();
            assert_eq!(of(1000, 300).bytes(), 0, "{bad:?}");
        }
        part.save(&[300, 300, 20, 50]).unwrap();
        file.set_len(999).unwrap();
        assert_eq!(of(1000, 300).bytes(), 0, "a file of another length");
        fs::write(&part.record, "{\"version\":1").unwrap();
        assert_eq!(of(1000, 300).bytes(), 0, "half a record");
        assert_eq!(Unfinished::of(dir.path(), "a/b", &blob(0), 300, false).front(), 0);
    }
}
