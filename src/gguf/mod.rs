//! GGUF files: metadata, the tensor directory, models split over several files, and the mapped bytes of the weights.
//!
//! ```text
//! file    "GGUF" | u32 version | u64 tensors | u64 keys | key.. | tensor.. | padding | data
//! key     str name | u32 kind | value
//! array   u32 kind | u64 count | elements            an element that is an array starts again with its kind
//! tensor  str name | u32 n | u64 dim (n times, row length first) | u32 type | u64 offset into data
//! str     u64 length | UTF-8 bytes
//! ```
//!
//! All numbers are little-endian. `data` and every tensor in it start on a multiple of `general.alignment` (32).
//! Dimensions are turned round here, once: a [`Tensor`]'s shape reads (.., out, in), as the rest of the program does.
//!
//! Everything a file says is checked when it is opened; what [`Gguf::open`] returns can be trusted.

mod faults;
mod map;
mod meta;
mod nodes;
mod parse;
mod split;
mod unwritten;
mod write;

pub(crate) use faults::any_lost;
pub(crate) use map::read_at;
pub use map::{CutShort, Load, MappedFile, SharedBytes};
pub use meta::{Array, FromValue, Meta, Scalar, Value};
pub use nodes::OnNodes;
pub(crate) use nodes::OverNodes;
pub use parse::{Header, parse, parse_beginning};
pub use split::{shard_name, shard_of};
pub use unwritten::HOLES;
pub use write::Writer;

use crate::quant::{self, QuantType};
use anyhow::{Result, bail};
use map::{FileBytes, Use};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What a tensor's elements are.
#[derive(Clone, Copy, PartialEq)]
pub enum TensorType {
    /// A weight format.
    Quant(&'static QuantType),
    /// 8-bit integers: a table, not weights, like the other whole numbers here.
    I8,
    /// 16-bit integers.
    I16,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// 64-bit floats.
    F64,
}

impl TensorType {
    /// The type with this GGUF number.
    pub fn by_id(id: u32) -> Option<TensorType> {
        Some(match id {
            24 => TensorType::I8,
            25 => TensorType::I16,
            26 => TensorType::I32,
            27 => TensorType::I64,
            28 => TensorType::F64,
            _ => TensorType::Quant(quant::by_id(id)?),
        })
    }

    /// The type's number in a GGUF file.
    pub fn id(self) -> u32 {
        match self {
            TensorType::Quant(q) => q.id,
            TensorType::I8 => 24,
            TensorType::I16 => 25,
            TensorType::I32 => 26,
            TensorType::I64 => 27,
            TensorType::F64 => 28,
        }
    }

    /// The type's usual name, in capitals.
    pub fn name(self) -> &'static str {
        match self {
            TensorType::Quant(q) => q.name,
            TensorType::I8 => "I8",
            TensorType::I16 => "I16",
            TensorType::I32 => "I32",
            TensorType::I64 => "I64",
            TensorType::F64 => "F64",
        }
    }

    /// Elements in a block, and the bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            TensorType::Quant(q) => (q.block, q.bytes),
            TensorType::I8 => (1, 1),
            TensorType::I16 => (1, 2),
            TensorType::I32 => (1, 4),
            TensorType::I64 | TensorType::F64 => (1, 8),
        }
    }

    /// Bytes of a row of `n` elements; `n` must be a multiple of the block.
    pub fn row_bytes(self, n: usize) -> usize {
        let (block, bytes) = self.block();
        debug_assert_eq!(n % block, 0);
        n / block * bytes
    }

    /// The weight format, if it is one.
    pub fn quant(self) -> Option<&'static QuantType> {
        match self {
            TensorType::Quant(q) => Some(q),
            _ => None,
        }
    }

    /// Bytes of a tensor of this type, or why there can be none of this shape (.., out, in).
    pub(crate) fn bytes_of(self, shape: &[usize]) -> Result<usize, String> {
        let (block, bytes) = self.block();
        let (name, row) = (self.name(), shape.last().copied().unwrap_or(1));
        if let Some(zero) = shape.iter().position(|&d| d == 0) {
            return Err(format!("dimension {zero} of its shape {shape:?} is 0, every dimension must be at least 1"));
        }
        if !row.is_multiple_of(block) {
            return Err(format!("its rows have {row} weights, but {name} packs blocks of {block}: not a whole number"));
        }
        shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .and_then(|n| (n / block).checked_mul(bytes))
            .filter(|&n| i64::try_from(n).is_ok())
            .ok_or_else(|| format!("its shape {shape:?} of {name} is more bytes than any file can have"))
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of the directory. Its bytes are at [`Gguf::data`].
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The tensor's name, unique in the model.
    pub name: String,
    /// (.., out, in): the row length is last. One to four dimensions, none of them 0.
    pub shape: Vec<usize>,
    /// What the elements are.
    pub ty: TensorType,
    /// Which file of a split model holds it, from 0.
    pub shard: usize,
    /// Where its bytes start, counted from the start of that file.
    pub offset: u64,
    /// How many bytes it has; they are all inside the file.
    pub bytes: usize,
}

impl Tensor {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it is a lookup table of which a token reads a few rows: embeddings for each layer,
    /// or rows by the hash of the last tokens. Such a table may be larger than the rest of the
    /// model, and is best left in its file.
    pub fn is_lookup_table(&self) -> bool {
        self.name == "per_layer_token_embd.weight" || self.name.ends_with(".engram_embd.weight")
    }

    /// Its bytes' place in its file.
    pub fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start + self.bytes
    }
}

/// One open file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: FileBytes,
}

/// An open model: one GGUF file, or all the files of a split one.
#[derive(Debug)]
pub struct Gguf {
    /// The path as it was given.
    pub path: PathBuf,
    /// The format's version, 2 or 3.
    pub version: u32,
    /// The model's metadata: the first file's.
    pub meta: Meta,
    /// Every tensor, file after file, in directory order.
    pub tensors: Vec<Tensor>,
    /// Why memory could not be locked, one line per file, where [`Load::mlock`] asked for it and it failed.
    pub unlocked: Vec<String>,
    files: Vec<Shard>,
    index: HashMap<String, usize>,
    /// The architecture of a drafter whose file was taken in, and the first of its files.
    drafter: Option<(String, usize)>,
}

/// What the names of a drafter's tensors begin with.
pub const DRAFTER: &str = "drafter.";

impl Gguf {
    /// Opens a model and maps its files; `path` may be any file of a split model.
    ///
    /// # Errors
    /// If a file cannot be read, is no valid GGUF, or a part of a split model is missing; the message names the file.
    pub fn open(path: &Path) -> Result<Gguf> {
        Gguf::open_with(path, &Load::default())
    }

    /// Opens a model, mapped or read as `load` says.
    ///
    /// # Errors
    /// If a file cannot be read or held in memory as `load` asks, is no valid GGUF, or a part of a split model is missing.
    pub fn open_with(path: &Path, load: &Load) -> Result<Gguf> {
        let mut model = Gguf::open_mapped(path, load)?;
        model.settle(load, &[])?;
        Ok(model)
    }

    /// Opens a model whose header is to be looked at before [`Gguf::settle`] does what `load` says.
    ///
    /// # Errors
    /// If a file cannot be read, is no valid GGUF, or a part of a split model is missing.
    pub fn open_mapped(path: &Path, load: &Load) -> Result<Gguf> {
        split::open(path, load)
    }

    /// Reads or locks the weights as `load` says; the tensors in `mapped` (places in [`Gguf::tensors`]) stay in the file.
    ///
    /// # Errors
    /// If a file cannot be read or held in memory.
    pub fn settle(&mut self, load: &Load, mapped: &[usize]) -> Result<()> {
        self.settle_with(load, mapped, None).map(drop)
    }

    /// Reads the weights into memory, the rows of every matrix divided over NUMA nodes, and locks them if `mlock` says so;
    /// the tensors in `mapped` stay in the file. The pool of [`OverNodes`] must live.
    ///
    /// # Errors
    /// As [`Gguf::settle`].
    pub(crate) fn settle_over(&mut self, over: OverNodes<'_>, mlock: bool, mapped: &[usize]) -> Result<OnNodes> {
        self.settle_with(&Load { mmap: false, mlock }, mapped, Some(over))
    }

    fn settle_with(&mut self, load: &Load, mapped: &[usize], over: Option<OverNodes<'_>>) -> Result<OnNodes> {
        let mut found = OnNodes::default();
        for (shard, Shard { path, bytes }) in self.files.iter_mut().enumerate() {
            let tensors = mapped.iter().map(|&i| &self.tensors[i]).filter(|t| t.shard == shard);
            let mut keep: Vec<Range<usize>> = tensors.map(Tensor::range).collect();
            keep.sort_by_key(|r| r.start);
            let stays = !keep.is_empty();
            match over {
                None => bytes.settle(path, load, keep, map::read)?,
                Some(over) => {
                    let read = self.tensors.iter().enumerate().filter(|(i, t)| t.shard == shard && !mapped.contains(i));
                    let ranges = nodes::ranges(read.map(|(_, t)| t), over.split);
                    bytes.settle(path, load, keep, |file, len, keep| nodes::read(file, len, keep, (over, &ranges)))?;
                    nodes::look(bytes.as_slice(), &ranges, over.split, &mut found);
                }
            }
            if load.mlock && stays {
                let path = path.display();
                self.unlocked.push(format!("{path} holds a table that stays on disk, and cannot be locked without it"));
            } else if load.mlock
                && let Err(e) = bytes.lock(path)
            {
                self.unlocked.push(e.to_string());
            }
        }
        Ok(found)
    }

    /// Opens one whole file from memory: for tests and tools. Errors call the file `name`.
    ///
    /// # Errors
    /// If the bytes are no valid GGUF file, or one part of a split model.
    pub fn from_bytes(bytes: Vec<u8>, name: &Path) -> Result<Gguf> {
        let header = parse(&bytes, bytes.len() as u64, name)?;
        if let Some(count @ 2..) = header.meta.opt_usize(split::COUNT)? {
            bail!("{}: one of {count} files of a split model, which cannot be opened from memory", name.display());
        }
        let shard = Shard { path: name.to_owned(), bytes: FileBytes::from(bytes) };
        Gguf::assemble(name, vec![(header, shard)])
    }

    /// Joins the files of a model, which are in order and agree with each other.
    fn assemble(path: &Path, parts: Vec<(Header, Shard)>) -> Result<Gguf> {
        let mut files: Vec<Shard> = Vec::with_capacity(parts.len());
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut index = HashMap::new();
        let mut first = None;
        for (shard, (header, file)) in parts.into_iter().enumerate() {
            for mut tensor in header.tensors {
                tensor.shard = shard;
                if let Some(other) = index.insert(tensor.name.clone(), tensors.len()) {
                    let other = &files[tensors[other].shard].path;
                    let (here, name) = (file.path.display(), &tensor.name);
                    bail!("{here}: tensor {name:?} is also in {}: these are not parts of one model", other.display());
                }
                tensors.push(tensor);
            }
            first.get_or_insert((header.version, header.meta));
            files.push(file);
        }
        let (version, meta) = first.expect("a model has at least one file");
        let (path, unlocked) = (path.to_owned(), Vec::new());
        Ok(Gguf { path, version, meta, tensors, unlocked, files, index, drafter: None })
    }

    /// Takes in the file of a drafter that reads what this model computes (Gemma 4's assistants): its tensors, whose names
    /// then begin with [`DRAFTER`], and the metadata of its architecture.
    ///
    /// # Errors
    /// If there is one already, or the file does not say what architecture it has, or has this model's.
    pub fn with_drafter(mut self, drafter: Gguf) -> Result<Gguf> {
        let (file, arch) = (drafter.path.display(), drafter.meta.str("general.architecture")?);
        if self.meta.str("general.architecture")? == arch || self.drafter.is_some() {
            bail!("{file}: its architecture is {arch:?}, expected that of a drafter, and one drafter for a model");
        }
        let (prefix, first) = (format!("{arch}."), self.files.len());
        for (key, value) in drafter.meta.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            self.meta.insert(key.to_owned(), value.clone());
        }
        self.drafter = Some((arch.to_owned(), first));
        for mut t in drafter.tensors {
            (t.name, t.shard) = (format!("{DRAFTER}{}", t.name), t.shard + first);
            self.index.insert(t.name.clone(), self.tensors.len());
            self.tensors.push(t);
        }
        self.files.extend(drafter.files);
        self.unlocked.extend(drafter.unlocked);
        Ok(self)
    }

    /// The architecture of the drafter that was taken in.
    pub fn drafter(&self) -> Option<&str> {
        self.drafter.as_ref().map(|d| d.0.as_str())
    }

    /// Whether a tensor is the model's own, and not a drafter's.
    pub fn is_own(&self, t: &Tensor) -> bool {
        self.drafter.as_ref().is_none_or(|d| t.shard < d.1)
    }

    /// The place in [`Gguf::tensors`] of the tensor of this name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.index(name).map(|i| &self.tensors[i])
    }

    /// The bytes of one of this model's tensors.
    pub fn data(&self, t: &Tensor) -> &[u8] {
        self.files[t.shard].bytes.at(t.range())
    }

    /// The bytes of a file, which stay where they are for as long as the result is held.
    pub fn share(&self, shard: usize) -> SharedBytes {
        self.files[shard].bytes.share()
    }

    /// A file of the model, where it has one.
    pub(crate) fn file(&self, shard: usize) -> Option<&File> {
        self.files[shard].bytes.file()
    }

    /// Tells the system that rows of a table are read here and there: it then reads no more than it is asked for.
    pub fn reads_scattered(&self, table: &Tensor) {
        self.files[table.shard].bytes.advise(table.range(), table.range(), Use::Scattered);
    }

    /// Tells the system that these rows of a table, of `row` bytes each, will be read soon, so that it begins with what it
    /// does not have in memory. It need not have read them when this returns, but may take as long as the drive takes to
    /// accept the requests.
    pub fn will_read(&self, table: &Tensor, row: usize, rows: &[usize]) {
        const PAGE: usize = 4096;
        let start = table.range().start;
        let page = |r: &usize| (start + r * row) / PAGE..(start + (r + 1) * row).div_ceil(PAGE);
        let mut pages: Vec<Range<usize>> = rows.iter().map(page).collect();
        pages.sort_unstable_by_key(|p| p.start);
        let mut pages = pages.into_iter().peekable();
        while let Some(mut run) = pages.next() {
            while let Some(next) = pages.next_if(|next| next.start <= run.end) {
                run.end = run.end.max(next.end);
            }
            let bytes = (run.start * PAGE).max(start)..(run.end * PAGE).min(table.range().end);
            self.files[table.shard].bytes.advise(table.range(), bytes, Use::Soon);
        }
    }

    /// Tells the system that what was read of a table need not stay in the program's memory: pages that it keeps in its own
    /// are found there again.
    pub fn was_read(&self, table: &Tensor) {
        self.files[table.shard].bytes.advise(table.range(), table.range(), Use::Done);
    }

    /// Whether a tensor was left in its file when [`Gguf::settle`] read the others into memory.
    pub fn stays(&self, t: &Tensor) -> bool {
        self.files[t.shard].bytes.stays(&t.range())
    }

    /// Whether a file's weights are in its map; otherwise they are in memory of the program's own,
    /// which is writable.
    pub fn is_mapped(&self, shard: usize) -> bool {
        self.files[shard].bytes.is_mapped()
    }

    /// Fails if a file was cut short, or could not be read, since it was mapped: what was computed with its bytes
    /// meanwhile may be wrong.
    ///
    /// # Errors
    /// [`CutShort`], which names the file.
    pub fn check_files(&self) -> Result<(), CutShort> {
        self.files.iter().try_for_each(|file| file.bytes.check(&file.path))
    }

    /// The bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes as u64).sum()
    }

    /// The model's files, in order.
    pub fn shards(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| f.path.as_path())
    }
}
