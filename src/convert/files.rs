//! A checkpoint's folder: config.json, and the safetensors that hold the weights: one file, or
//! several with an index.
//!
//! Headers are read by the crate `safetensors`, which holds every offset against the file's length;
//! the files stay mapped.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use safetensors::SafeTensors;
use serde_json::Value as Json;

use crate::gguf::MappedFile;
use crate::models::checkpoint::{Config, Recipe, TensorRule};
use crate::quant::{self, QuantType};

const CONFIG: &str = "config.json";
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The largest text file that is read: a tokenizer.json has tens of megabytes.
const MOST_TEXT: u64 = 1 << 30;

/// Reads config.json.
pub(super) fn config(dir: &Path) -> Result<Config> {
    if !dir.is_dir() {
        bail!("{}: not a folder, expected one with {CONFIG} and safetensors files", dir.display());
    }
    match text(&dir.join(CONFIG))? {
        Some(text) => Config::parse(&dir.join(CONFIG), &text),
        None => bail!("{}: {CONFIG} is missing; give the folder of a checkpoint in Hugging Face's form", dir.display()),
    }
}

/// The text of a file; None if there is no such file.
pub(super) fn text(path: &Path) -> Result<Option<String>> {
    let shown = path.display();
    let Ok(about) = path.metadata() else { return Ok(None) };
    if !about.is_file() || about.len() > MOST_TEXT {
        bail!("{shown}: {} bytes, expected a text file of at most {MOST_TEXT}", about.len());
    }
    std::fs::read_to_string(path).map(Some).with_context(|| format!("cannot read {shown}"))
}

/// The weights of a checkpoint, by name.
pub(super) struct Checkpoint {
    dir: PathBuf,
    tensors: BTreeMap<String, Source>,
}

/// A tensor in a file.
#[derive(Clone)]
pub(super) struct Source {
    file: Arc<MappedFile>,
    range: Range<usize>,
    shape: Vec<usize>,
    /// The type of its values.
    pub(super) ty: &'static QuantType,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({} {:?})", self.ty.name, self.shape)
    }
}

impl Source {
    /// The values, row by row.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }

    /// Fails if the file was cut short since it was opened.
    pub(super) fn check(&self) -> Result<()> {
        self.file.check()
    }
}

impl Checkpoint {
    /// Opens every file of the checkpoint in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Checkpoint> {
        let mut tensors: BTreeMap<String, Source> = BTreeMap::new();
        for (file, listed) in shards(dir)? {
            let path = dir.join(&file);
            for (name, source) in read(&path)? {
                if tensors.insert(name.clone(), source).is_some() {
                    bail!("{}: tensor {name} is in two files of this checkpoint", path.display());
                }
            }
            if let Some(lost) = listed.iter().find(|name| !tensors.contains_key(*name)) {
                let (shown, index) = (path.display(), dir.join(INDEX));
                bail!("{shown}: tensor {lost} is missing, which {} promises there: fetch both again", index.display());
            }
        }
        Ok(Checkpoint { dir: dir.to_owned(), tensors })
    }

    /// The type that most of the weights have.
    pub(super) fn usual_type(&self) -> &'static QuantType {
        let mut bytes: HashMap<u32, usize> = HashMap::new();
        self.tensors.values().for_each(|t| *bytes.entry(t.ty.id).or_default() += t.range.len() / t.ty.bytes);
        let most = bytes.into_iter().max_by_key(|&(id, n)| (n, id)).map_or(0, |(id, _)| id);
        quant::by_id(most).expect("the type of a tensor")
    }

    /// The tensor that a rule asks for; None where it is optional and missing.
    pub(super) fn find(&self, rule: &TensorRule) -> Result<Option<Source>> {
        let (dir, name) = (self.dir.display(), &rule.from);
        let Some(source) = self.tensors.get(name) else {
            if rule.optional {
                return Ok(None);
            }
            bail!("{dir}: tensor {name} is missing, expected from {CONFIG}: is the checkpoint complete?");
        };
        let real = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
        if real(&source.shape) != real(&rule.have) {
            let (found, want) = (&source.shape, &rule.have);
            bail!("{dir}: tensor {name} has shape {found:?}, expected {want:?} from {CONFIG}");
        }
        Ok(Some(source.clone()))
    }

    /// Fails if a tensor is left that the recipe neither uses nor leaves out.
    pub(super) fn finish(&self, recipe: &Recipe) -> Result<()> {
        let used = |name: &str| {
            recipe.tensors.iter().any(|r| r.from == name) || recipe.ignored.iter().any(|(n, _)| *n == name)
        };
        let left: Vec<&str> = self.tensors.keys().map(|n| n.as_str()).filter(|n| !used(n)).collect();
        let Some(first) = left.first() else { return Ok(()) };
        bail!(
            "{}: {} tensors are not part of the {} model that this version knows ({first}, ..): without them the model \
             would compute something else, so it is not converted",
            self.dir.display(),
            left.len(),
            recipe.arch
        )
    }
}

/// The files of a checkpoint, and the tensors that an index lists for each.
fn shards(dir: &Path) -> Result<Vec<(String, Vec<String>)>> {
    let index = dir.join(INDEX);
    let Some(text) = text(&index)? else {
        if !dir.join(WHOLE).exists() {
            bail!("{}: neither {WHOLE} nor {INDEX} is there: only safetensors can be converted", dir.display());
        }
        return Ok(vec![(WHOLE.into(), Vec::new())]);
    };
    let shown = index.display();
    let json: Json = serde_json::from_str(&text).with_context(|| format!("{shown}: not JSON"))?;
    let Some(map) = json["weight_map"].as_object() else {
        bail!("{shown}: \"weight_map\" is missing, expected the file of every tensor");
    };
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, file) in map {
        // A name with a folder in it could lead anywhere.
        let plain = |f: &&str| Path::new(f).components().count() == 1 && f.ends_with(".safetensors");
        let Some(file) = file.as_str().filter(plain) else {
            bail!(
                "{shown}: tensor {name} is in {file}, expected the name of a .safetensors file in the index's folder"
            );
        };
        files.entry(file.to_owned()).or_default().push(name.clone());
    }
    Ok(files.into_iter().collect())
}

/// The tensors of one file.
fn read(path: &Path) -> Result<Vec<(String, Source)>> {
    let shown = path.display();
    let about = path.metadata().with_context(|| format!("cannot open {shown}"))?;
    if !about.is_file() || about.len() < 8 {
        bail!("{shown}: {} bytes, expected a safetensors file: fetch it again", about.len());
    }
    let file = Arc::new(MappedFile::open(path)?);
    let bytes = &file[..];
    let broken = |e| anyhow!("{shown}: not a whole safetensors file of {} bytes ({e}): fetch it again", bytes.len());
    let (header, directory) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let mut tensors = Vec::new();
    for (name, info) in directory.tensors() {
        let dtype = info.dtype.to_string();
        // Types of floats: a block is one value.
        let Some(ty) = quant::by_name(&dtype).filter(|ty| ty.block == 1) else {
            let floats: Vec<&str> = quant::TYPES.iter().filter(|ty| ty.block == 1).map(|ty| ty.name).collect();
            bail!(
                "{shown}: tensor {name} is {dtype}, expected one of {}: convert the checkpoint first",
                floats.join(", ")
            );
        };
        let (from, to) = info.data_offsets;
        let range = 8 + header + from..8 + header + to;
        tensors.push((name, Source { file: Arc::clone(&file), range, shape: info.shape.clone(), ty }));
    }
    Ok(tensors)
}
