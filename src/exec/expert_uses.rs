//! How often each expert of a model was chosen, in a file that the next run begins with: what was chosen
//! most is read from the drive first, before anything asks for it.
//!
//! ```text
//! experts-<hash>.json   {.., "uses": {"<first tensor of a layer>": [12, 0, 310, ..], ..}}
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::gguf::Gguf;
use crate::model_file::ModelFile;

/// To be raised when the numbers mean something else.
const VERSION: u64 = 1;

/// The file of a model, and what it says.
#[derive(Debug)]
pub(super) struct ExpertUses {
    file: ModelFile,
    /// By the name of a layer's first tensor: how often each expert was chosen, old choices counting less.
    uses: BTreeMap<String, Vec<u32>>,
}

impl ExpertUses {
    /// What is known of a model in a folder: nothing, where it has no file of this model.
    pub(super) fn of(folder: &Path, gguf: &Gguf) -> ExpertUses {
        let file = ModelFile::new(folder, "experts", VERSION, gguf);
        let uses: BTreeMap<_, _> =
            file.read("uses", |uses| Ok(serde_json::from_value(uses.clone())?)).unwrap_or_default();
        if !uses.is_empty() {
            tracing::debug!("{}: the experts that earlier runs used most are read first", file.path().display());
        }
        ExpertUses { file, uses }
    }

    /// How often each of the `n` experts was chosen, of the layer whose first tensor has this name.
    pub(super) fn layer(&self, tensor: &str, n: usize) -> Option<&[u32]> {
        self.uses.get(tensor).map(Vec::as_slice).filter(|uses| uses.len() == n)
    }

    /// Writes the file with what is known of these layers by now.
    ///
    /// # Errors
    /// As [`ModelFile::write`].
    pub(super) fn save(mut self, layers: impl Iterator<Item = (String, Vec<u32>)>) -> Result<()> {
        self.uses.extend(layers);
        self.file.write("uses", &json!(self.uses))
    }

    /// Where it is, for people.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_a_run_did_not_have_stay_known() {
        let dir = tempfile::tempdir().unwrap();
        let demo = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf")).unwrap();
        let gguf = Gguf::from_bytes(demo, Path::new("a.gguf")).unwrap();
        let save = |layer: &str, uses: &[u32]| {
            ExpertUses::of(dir.path(), &gguf).save([(layer.to_owned(), uses.to_vec())].into_iter()).unwrap();
        };
        save("x", &[5, 0, 7]);
        save("y", &[1]);
        let known = ExpertUses::of(dir.path(), &gguf);
        assert_eq!(known.layer("x", 3), Some(&[5, 0, 7][..]));
        assert_eq!(known.layer("y", 1), Some(&[1][..]));
        assert_eq!(known.layer("x", 4), None, "another number of experts");
    }
}
