//! Small files in the cache folder in which a run leaves for the next one what it found out about a model.
//!
//! ```text
//! <kind>-<hash>.json   {"version": 1, "model": "<hash>", "<key>": ..}
//! ```
//! The hash is that of the model's file name and of what its header says of the tensors. So another model with the same
//! name and header begins with what was found out about this one: nothing that a text depends on may come from such a
//! file, only how fast it is written.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3Default;

use crate::gguf::Gguf;
use crate::whole_file;

/// More bytes than any such file has.
const LARGEST: u64 = 16 << 20;

/// The file of one kind for one model, which need not be there.
#[derive(Debug)]
pub(crate) struct ModelFile {
    path: PathBuf,
    model: String,
    /// What the numbers in it mean.
    version: u64,
}

impl ModelFile {
    /// The file of a model in a folder, which need not be there either.
    pub(crate) fn new(folder: &Path, kind: &str, version: u64, gguf: &Gguf) -> ModelFile {
        let model = identity(gguf, false);
        ModelFile { path: folder.join(format!("{kind}-{model}.json")), model, version }
    }

    /// Where it is, for people.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file has under a key, as `parse` reads it: nothing if there is no file, or it is damaged, of another
    /// version or of another model.
    pub(crate) fn read<T>(&self, key: &str, parse: impl FnOnce(&Value) -> Result<T>) -> Option<T> {
        match self.value(key).and_then(|v| v.map(|v| parse(&v)).transpose()) {
            Ok(known) => known,
            Err(e) => {
                tracing::debug!("{}: ignored, and replaced at the end: {e:#}", self.path.display());
                None
            }
        }
    }

    fn value(&self, key: &str) -> Result<Option<Value>> {
        let file = match File::open(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut text = String::new();
        file.take(LARGEST + 1).read_to_string(&mut text)?;
        ensure!(text.len() as u64 <= LARGEST, "it has more than {LARGEST} bytes");
        let mut all: Value = serde_json::from_str(&text)?;
        ensure!(all["version"] == self.version, "version {}, expected {}", all["version"], self.version);
        ensure!(all["model"] == self.model, "it is of the model {}, expected {}", all["model"], self.model);
        Ok(Some(all[key].take()))
    }

    /// Makes this all that the file has, as a whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written; then the old one stays.
    pub(crate) fn write(&self, key: &str, value: &Value) -> Result<()> {
        fs::create_dir_all(self.path.parent().context("it is in no folder")?)?;
        let text = json!({ "version": self.version, "model": self.model, key: value }).to_string();
        whole_file::replace(&self.path, br#"{"version":"#, |file| Ok(file.write_all(text.as_bytes())?))
    }
}

/// What a model is known by without a look at its weights; or the drafter that its file took in.
pub(crate) fn identity(gguf: &Gguf, drafter: bool) -> String {
    let mut hash = Xxh3Default::new();
    let tensors = || gguf.tensors.iter().filter(|t| gguf.is_own(t) != drafter);
    let first = if drafter { tensors().map(|t| t.shard).min().unwrap_or(0) } else { 0 };
    hash.update(gguf.shards().nth(first).and_then(Path::file_name).unwrap_or_default().as_encoded_bytes());
    for t in tensors() {
        hash.update(format!("{} {:?} {:?} {} {}\n", t.name, t.shape, t.ty, t.shard, t.offset).as_bytes());
    }
    format!("{:032x}", hash.digest128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_broken_foreign_or_old_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("not/there/yet");
        let demo = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")).unwrap();
        let open = |name: &str| {
            ModelFile::new(&folder, "things", 1, &Gguf::from_bytes(demo.clone(), Path::new(name)).unwrap())
        };
        let a = open("a.gguf");
        let parse = |v: &Value| Ok(serde_json::from_value::<Vec<u32>>(v.clone())?);
        let known = || a.read("x", parse);
        let save = || a.write("x", &json!([5, 0, 7])).unwrap();
        assert_eq!(known(), None);
        save();
        assert_eq!(known(), Some(vec![5, 0, 7]));
        assert_eq!(open("b.gguf").read("x", parse), None);
        let good = fs::read_to_string(a.path()).unwrap();
        for bad in [
            &good[..good.len() / 2],
            "",
            "{}",
            "[",
            &good.replace("\"version\":1", "\"version\":2"),
            &good.replace(&a.model, &open("b.gguf").model),
            &good.replace("5,0,7", "5,-1,7"),
            &good.replace("[5,0,7]", "{}"),
        ] {
            assert_ne!(bad, good);
            fs::write(a.path(), bad).unwrap();
            assert_eq!(known(), None, "{bad}");
            save();
            assert_eq!(known(), Some(vec![5, 0, 7]), "after {bad}");
        }
        fs::write(a.path(), vec![b' '; LARGEST as usize + 1]).unwrap();
        assert_eq!(known(), None);
    }

    #[test]
    fn what_a_killed_process_began_is_removed_by_the_next_one_that_writes() {
        let dir = tempfile::tempdir().unwrap();
        let demo = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")).unwrap();
        let file = ModelFile::new(dir.path(), "things", 1, &Gguf::from_bytes(demo, Path::new("a.gguf")).unwrap());
        fs::write(dir.path().join(".tandem-abcdef.part"), "{\"version\":1,").unwrap();
        fs::write(dir.path().join(".tandem-ghijkl.part"), "tandem\x1a\n").unwrap();
        file.write("x", &json!(1)).unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".tandem-ghijkl.part".as_ref(), file.path().file_name().unwrap()]);
    }
}
