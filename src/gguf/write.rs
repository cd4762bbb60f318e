//! Writes GGUF files: for tests, for synthetic models, and for tools.
//!
//! Data is streamed: a tensor is a function that writes its bytes when its turn comes. A tensor may also be a hole: it
//! has its place in the file but nothing is written there, so on most file systems it takes no disk space and reads as
//! zeros.

use super::meta::{Array, Value};
use super::parse::{ALIGNMENT, ALIGNMENT_KEY};
use super::{TensorType, shard_name, split};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Writes the bytes of one tensor.
type Fill<'a> = Box<dyn FnMut(&mut dyn Write) -> io::Result<()> + 'a>;

/// A GGUF file being put together.
pub struct Writer<'a> {
    version: u32,
    meta: Vec<(String, Value)>,
    tensors: Vec<Entry<'a>>,
    names: HashSet<String>,
}

struct Entry<'a> {
    name: String,
    shape: Vec<usize>,
    ty: TensorType,
    bytes: usize,
    fill: Option<Fill<'a>>,
}

/// One file's header, and where its tensors go.
struct FileLayout {
    header: Vec<u8>,
    places: Vec<u64>,
    len: u64,
}

impl<'a> Default for Writer<'a> {
    fn default() -> Self {
        Writer::new()
    }
}

impl<'a> Writer<'a> {
    /// An empty file of version 3.
    pub fn new() -> Writer<'a> {
        Writer { version: 3, meta: Vec::new(), tensors: Vec::new(), names: HashSet::new() }
    }

    /// Writes this version's number instead; 2 and 3 have the same layout.
    pub fn version(&mut self, version: u32) -> &mut Self {
        self.version = version;
        self
    }

    /// Sets a metadata key: adds it, or replaces its value. `general.alignment` sets the alignment too.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let value = value.into();
        match self.meta.iter_mut().find(|(k, _)| k == key) {
            Some(entry) => entry.1 = value,
            None => self.meta.push((key.to_owned(), value)),
        }
        self
    }

    /// Adds a tensor of shape (.., out, in). `fill` must write exactly its bytes.
    ///
    /// # Errors
    /// If the name is empty or taken, or the shape is none for the format.
    pub fn add_tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        ty: TensorType,
        fill: impl FnMut(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> Result<&mut Self> {
        self.add(name, shape, ty, Some(Box::new(fill)))
    }

    /// Adds a tensor whose bytes are not written: a hole in the file.
    ///
    /// # Errors
    /// If the name is empty or taken, or the shape is none for the format.
    pub fn add_hole(&mut self, name: &str, shape: &[usize], ty: TensorType) -> Result<&mut Self> {
        self.add(name, shape, ty, None)
    }

    fn add(&mut self, name: &str, shape: &[usize], ty: TensorType, fill: Option<Fill<'a>>) -> Result<&mut Self> {
        ensure!(!name.is_empty(), "a tensor needs a name");
        ensure!((1..=4).contains(&shape.len()), "tensor {name:?}: {} dimensions, expected 1 to 4", shape.len());
        let bytes = ty.bytes_of(shape).map_err(|e| anyhow!("tensor {name:?}: {e}"))?;
        ensure!(self.names.insert(name.to_owned()), "tensor {name:?} is added twice");
        self.tensors.push(Entry { name: name.to_owned(), shape: shape.to_vec(), ty, bytes, fill });
        Ok(self)
    }

    /// How many bytes the tensors added so far take.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes as u64).sum()
    }

    /// Writes everything into one file. Until it is complete it has `.partial` after its name.
    ///
    /// # Errors
    /// If the file cannot be written; an incomplete file keeps the `.partial` name.
    pub fn write(&mut self, path: &Path) -> Result<()> {
        let layout = self.layout(&self.meta, 0..self.tensors.len())?;
        write_file(path, &layout, &mut self.tensors)
    }

    /// Writes everything into `count` files of about equal size, named after `stem` in the folder of `path`'s parent:
    /// `DIR/m.gguf` becomes `DIR/m-00001-of-00003.gguf` and so on. Returns their paths.
    ///
    /// # Errors
    /// If the tensors cannot be split into `count` files, or a file cannot be written.
    pub fn write_split(&mut self, path: &Path, count: usize) -> Result<Vec<PathBuf>> {
        let shown = path.display();
        let n = self.tensors.len();
        ensure!((1..=split::MAX_FILES.min(n)).contains(&count), "{shown}: cannot split {n} tensors over {count} files");
        let stem =
            path.file_stem().and_then(|s| s.to_str()).with_context(|| format!("{shown}: no usable file name"))?;
        let mut paths = Vec::new();
        for (no, range) in cuts(&self.tensors.iter().map(|t| t.bytes as u64).collect::<Vec<_>>(), count).enumerate() {
            let mut meta = if no == 0 { self.meta.clone() } else { Vec::new() };
            meta.push((split::NO.into(), Value::U16(no as u16)));
            meta.push((split::COUNT.into(), Value::U16(count as u16)));
            meta.push((split::TENSORS.into(), Value::I32(n as i32)));
            let layout = self.layout(&meta, range.clone())?;
            let path = path.with_file_name(shard_name(stem, no, count));
            write_file(&path, &layout, &mut self.tensors[range])?;
            paths.push(path);
        }
        Ok(paths)
    }

    /// The whole file as bytes; holes are zeros.
    ///
    /// # Errors
    /// If a tensor's `fill` fails.
    pub fn to_bytes(&mut self) -> Result<Vec<u8>> {
        let layout = self.layout(&self.meta, 0..self.tensors.len())?;
        let mut out = layout.header;
        out.resize(layout.len as usize, 0);
        for (t, &at) in self.tensors.iter_mut().zip(&layout.places) {
            if let Some(fill) = &mut t.fill {
                let mut data = Vec::with_capacity(t.bytes);
                fill(&mut data)?;
                check_size(&t.name, t.bytes, data.len() as u64)?;
                out[at as usize..at as usize + t.bytes].copy_from_slice(&data);
            }
        }
        Ok(out)
    }

    fn layout(&self, meta: &[(String, Value)], tensors: Range<usize>) -> Result<FileLayout> {
        let alignment = match meta.iter().find(|(k, _)| k == ALIGNMENT_KEY) {
            None => ALIGNMENT,
            Some((_, Value::U32(a))) if *a >= 8 && a.is_power_of_two() => u64::from(*a),
            Some((_, v)) => bail!("{ALIGNMENT_KEY} is {}, expected a u32 power of two from 8 up", v.describe()),
        };
        let tensors = &self.tensors[tensors];
        let mut header = b"GGUF".to_vec();
        header.extend(self.version.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((meta.len() as u64).to_le_bytes());
        for (key, value) in meta {
            ensure!(!key.is_empty(), "a metadata key needs a name");
            put_str(&mut header, key);
            header.extend(value.id().to_le_bytes());
            put_value(&mut header, value);
        }
        let (mut places, mut at) = (Vec::new(), 0u64);
        for t in tensors {
            put_str(&mut header, &t.name);
            header.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|&d| header.extend((d as u64).to_le_bytes()));
            header.extend(t.ty.id().to_le_bytes());
            header.extend(at.to_le_bytes());
            places.push(at);
            at = at
                .checked_add(t.bytes as u64)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .context("the tensors are larger than any file can be")?;
        }
        let data = if tensors.is_empty() { 0 } else { (header.len() as u64).next_multiple_of(alignment) };
        places.iter_mut().for_each(|p| *p += data);
        Ok(FileLayout { len: (data + at).max(header.len() as u64), header, places })
    }
}

/// Cuts the sizes into `count` runs of about equal size, none of them empty.
fn cuts(sizes: &[u64], count: usize) -> impl Iterator<Item = Range<usize>> {
    let total: u64 = sizes.iter().sum();
    let (mut ends, mut sum) = (Vec::new(), 0);
    for (i, size) in sizes.iter().enumerate() {
        sum += size;
        let (made, left) = (ends.len() as u64 + 1, sizes.len() - i - 1);
        let full = u128::from(sum) * count as u128 >= u128::from(total) * u128::from(made);
        if ends.len() + 1 < count && (full || left < count - ends.len()) {
            ends.push(i + 1);
        }
    }
    ends.push(sizes.len());
    let mut start = 0;
    ends.into_iter().map(move |end| std::mem::replace(&mut start, end)..end)
}

fn write_file(path: &Path, layout: &FileLayout, tensors: &mut [Entry<'_>]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let done = write_partial(&partial, layout, tensors)
        .and_then(|()| fs::rename(&partial, path).map_err(Into::into))
        .with_context(|| format!("cannot write {}", path.display()));
    if done.is_err() {
        let _ = fs::remove_file(&partial); // the first error is the one to tell
    }
    done
}

fn write_partial(path: &Path, layout: &FileLayout, tensors: &mut [Entry<'_>]) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(layout.len)?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    out.write_all(&layout.header)?;
    for (t, &at) in tensors.iter_mut().zip(&layout.places) {
        if let Some(fill) = &mut t.fill {
            out.seek(SeekFrom::Start(at))?;
            let mut counted = Counted { out: &mut out, left: t.bytes as u64, over: 0 };
            fill(&mut counted)?;
            let wrote = t.bytes as u64 - counted.left + counted.over;
            check_size(&t.name, t.bytes, wrote)?;
        }
    }
    out.flush()?;
    Ok(())
}

fn check_size(name: &str, want: usize, wrote: u64) -> Result<()> {
    ensure!(want as u64 == wrote, "tensor {name:?}: {wrote} bytes were given, expected {want}");
    Ok(())
}

/// Passes on what belongs to a tensor and counts what does not.
struct Counted<W> {
    out: W,
    left: u64,
    over: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            self.over += bytes.len() as u64;
            return Ok(bytes.len());
        }
        let n = self.out.write(&bytes[..bytes.len().min(self.left as usize)])?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Str(v) => put_str(out, v),
        Value::Arr(v) => put_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&b| u8::from(b))),
        Array::Str(v) => v.iter().for_each(|v| put_str(out, v)),
        Array::Arr(v) => v.iter().for_each(|v| put_array(out, v)),
        Array::U64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
    }
}
