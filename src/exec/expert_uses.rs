//! How often each expert of a model was chosen, in a file that the next run begins with: what was chosen
//! most is read from the drive first, before anything asks for it.
//!
//! ```text
//! experts-<hash>.json   {"version": 1, "model": "<hash>", "uses": {"<first tensor of a layer>": [12, 0, 310, ..], ..}}
//! ```
//! The hash is that of the model's file name and of what its header says of the tensors. So another model with
//! the same name and header would begin with this one's experts; that costs a slow beginning and no more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3Default;

use crate::gguf::Gguf;

/// To be raised when the numbers mean something else.
const VERSION: u64 = 1;
/// More bytes than any model's experts take.
const LARGEST: u64 = 16 << 20;

/// The file of a model, and what it says.
#[derive(Debug)]
pub(super) struct ExpertUses {
    path: PathBuf,
    model: String,
    /// By the name of a layer's first tensor: how often each expert was chosen, old choices counting less.
    uses: BTreeMap<String, Vec<u32>>,
}

impl ExpertUses {
    /// What is known of a model in a folder: nothing, where it has no file of this model.
    pub(super) fn of(folder: &Path, gguf: &Gguf) -> ExpertUses {
        let model = identity(gguf);
        let path = folder.join(format!("experts-{model}.json"));
        let uses = match read(&path, &model) {
            Ok(uses) => uses,
            Err(e) => {
                tracing::debug!("{}: ignored, and replaced at the end: {e:#}", path.display());
                BTreeMap::new()
            }
        };
        if !uses.is_empty() {
            tracing::debug!("{}: the experts that earlier runs used most are read first", path.display());
        }
        ExpertUses { path, model, uses }
    }

    /// How often each of the `n` experts was chosen, of the layer whose first tensor has this name.
    pub(super) fn layer(&self, tensor: &str, n: usize) -> Option<&[u32]> {
        self.uses.get(tensor).map(Vec::as_slice).filter(|uses| uses.len() == n)
    }

    /// Writes the file with what is known of these layers by now, as a whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written; then the old one stays.
    pub(super) fn save(mut self, layers: impl Iterator<Item = (String, Vec<u32>)>) -> Result<()> {
        self.uses.extend(layers);
        let folder = self.path.parent().expect("it is in a folder");
        fs::create_dir_all(folder)?;
        let file = tempfile::NamedTempFile::new_in(folder)?;
        let text = json!({ "version": VERSION, "model": self.model, "uses": self.uses }).to_string();
        fs::write(file.path(), text)?;
        file.persist(&self.path).context("cannot be put in place")?;
        Ok(())
    }

    /// Where it is, for people.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// What a file says of a model; nothing, if there is no file.
fn read(path: &Path, model: &str) -> Result<BTreeMap<String, Vec<u32>>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        opened => opened?,
    };
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= LARGEST, "it has more than {LARGEST} bytes");
    let all: Value = serde_json::from_str(&text)?;
    ensure!(all["version"] == VERSION, "version {}, expected {VERSION}", all["version"]);
    ensure!(all["model"] == model, "it is of the model {}, expected {model}", all["model"]);
    Ok(serde_json::from_value(all["uses"].clone())?)
}

/// What a model is known by, without a look at its weights.
fn identity(gguf: &Gguf) -> String {
    let mut hash = Xxh3Default::new();
    let first = gguf.shards().next().and_then(Path::file_name).unwrap_or_default();
    hash.update(first.as_encoded_bytes());
    for t in gguf.tensors.iter().filter(|t| gguf.is_own(t)) {
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
        let demo = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")).unwrap();
        let open = |name: &str| ExpertUses::of(&folder, &Gguf::from_bytes(demo.clone(), Path::new(name)).unwrap());
        let known = || open("a.gguf").layer("x", 3).map(<[u32]>::to_vec);
        let save = || open("a.gguf").save([("x".to_owned(), vec![5, 0, 7])].into_iter()).unwrap();
        assert_eq!(known(), None);
        save();
        assert_eq!(known(), Some(vec![5, 0, 7]));
        assert!(open("b.gguf").layer("x", 3).is_none() && open("a.gguf").layer("x", 4).is_none());
        open("a.gguf").save([("y".to_owned(), vec![1])].into_iter()).unwrap();
        assert_eq!(known(), Some(vec![5, 0, 7]), "layers that a run did not have stay known");
        let path = open("a.gguf").path;
        let good = fs::read_to_string(&path).unwrap();
        let other = open("b.gguf").model;
        for bad in [
            &good[..good.len() / 2],
            "",
            "{}",
            "[",
            &good.replace("\"version\":1", "\"version\":2"),
            &good.replace(&open("a.gguf").model, &other),
            &good.replace("5,0,7", "5,-1,7"),
            &good.replace("[5,0,7]", "{}"),
        ] {
            assert_ne!(bad, good);
            fs::write(&path, bad).unwrap();
            assert_eq!(known(), None, "{bad}");
            save();
            assert_eq!(known(), Some(vec![5, 0, 7]), "after {bad}");
        }
        fs::write(&path, vec![b' '; LARGEST as usize + 1]).unwrap();
        assert_eq!(known(), None);
    }
}
