//! Reads the header of one file from its bytes.
//!
//! The bytes are not trusted: every count is held against what is left before anything is reserved for it, so a file
//! can never ask for more than a few times its own header's size.

use super::meta::{Array, KINDS, Meta, Value};
use super::{Tensor, TensorType};
use crate::quant::retired;
use anyhow::{Result, anyhow, bail};
use std::collections::HashSet;
use std::path::Path;

/// The most bytes a header may have. The largest known (a vocabulary of 262144 tokens) is under 16 MiB.
const MAX_HEADER: usize = 256 << 20;
/// The most bytes the name of a key or tensor may have.
const MAX_NAME: usize = 65535;
/// How deep arrays may nest.
const MAX_DEPTH: u32 = 8;
/// What tensors are aligned to where the file does not say.
pub(super) const ALIGNMENT: u64 = 32;
/// The key that says it.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

const DAMAGED: &str = "the file is cut short or damaged: fetch it again";
const TWICE: &str = "the file is damaged, or its writer is at fault";

/// What one file's header says.
#[derive(Debug, Clone)]
pub struct Header {
    /// The format's version, 2 or 3.
    pub version: u32,
    /// The file's metadata.
    pub meta: Meta,
    /// The file's tensors in directory order; their offsets count from the start of the file.
    pub tensors: Vec<Tensor>,
    /// What tensors are aligned to.
    pub alignment: u64,
    /// Where the data starts.
    pub data: u64,
}

/// Reads the header of a file of `len` bytes that starts with `bytes` (all of the file, or enough of it); errors call
/// it `file`. Every tensor that is returned is inside the file, aligned, and overlaps no other.
///
/// # Errors
/// If the header is malformed or a tensor is not inside the file; the message names the file, the place and what was
/// expected.
pub fn parse(bytes: &[u8], len: u64, file: &Path) -> Result<Header> {
    parse_with(&mut Cursor::new(bytes, len), bytes, len, file)
}

/// As [`parse`], of a file of which only the beginning is there; None if more of it is needed.
///
/// # Errors
/// If the header is malformed, or longer than any header may be.
pub fn parse_beginning(bytes: &[u8], len: u64, file: &Path) -> Result<Option<Header>> {
    if bytes.len() < 24 && (bytes.len() as u64) < len {
        return Ok(None);
    }
    let mut c = Cursor::new(bytes, len);
    let parsed = parse_with(&mut c, bytes, len, file);
    if parsed.is_err() && c.more { Ok(None) } else { parsed.map(Some) }
}

fn parse_with(c: &mut Cursor<'_>, bytes: &[u8], len: u64, file: &Path) -> Result<Header> {
    let mut meta = Meta::new(file);
    let file = file.display();

    let version = check_start(bytes, len).map_err(|e| anyhow!("{file}: {e}"))?;
    c.at = 8;
    let mut counts = || Ok::<_, String>((c.u64()?, c.u64()?));
    let (n_tensors, n_keys) = counts().map_err(|e| anyhow!("{file}: the counts of tensors and keys: {e}"))?;

    // The least that a key (name of one byte, kind, value of one byte) and a tensor (name of one byte, no dimensions)
    // can take.
    for (count, least, what) in [(n_keys, 14, "metadata keys"), (n_tensors, 25, "tensors")] {
        let most = (len - c.at as u64) / least;
        if count > most {
            bail!("{file}: the header counts {count} {what}, but {len} bytes hold {most} at most: {DAMAGED}");
        }
    }

    for i in 0..n_keys {
        let key = c.name().map_err(|e| anyhow!("{file}: the name of metadata key {i} of {n_keys}: {e}"))?;
        let value = c.u32().and_then(|kind| c.value(kind));
        let value = value.map_err(|e| anyhow!("{file}: metadata key {}: {e}", shown(&key)))?;
        if std::mem::take(&mut c.repaired) {
            meta.note_repair(&key);
        }
        if meta.get(&key).is_some() {
            bail!("{file}: metadata key {} is there twice: {TWICE}", shown(&key));
        }
        meta.insert(key, value);
    }

    let alignment = match meta.opt_u64(ALIGNMENT_KEY)? {
        None => ALIGNMENT,
        Some(a) if a >= 8 && a.is_power_of_two() => a,
        Some(a) => bail!("{file}: metadata key {ALIGNMENT_KEY:?} is {a}, expected a power of two of at least 8"),
    };

    let mut names = HashSet::new();
    let mut tensors = Vec::with_capacity((n_tensors as usize).min(1 << 16));
    for i in 0..n_tensors {
        let name = c.name().map_err(|e| anyhow!("{file}: the name of tensor {i} of {n_tensors}: {e}"))?;
        if !names.insert(name.clone()) {
            bail!("{file}: tensor {} is there twice: {TWICE}", shown(&name));
        }
        let tensor = c.tensor(name.clone(), alignment);
        tensors.push(tensor.map_err(|e| anyhow!("{file}: tensor {}: {e}", shown(&name)))?);
    }

    let data = if tensors.is_empty() { c.at as u64 } else { (c.at as u64).next_multiple_of(alignment) };
    place(&mut tensors, data, len).map_err(|e| anyhow!("{file}: {e}"))?;
    Ok(Header { version, meta, tensors, alignment, data })
}

/// Checks the magic and the version.
fn check_start(bytes: &[u8], len: u64) -> Result<u32, String> {
    let Some(start) = bytes.first_chunk::<8>() else {
        return Err(format!("it has {len} bytes, a GGUF file has at least 24: {DAMAGED}"));
    };
    let (magic, version) = start.split_at(4);
    let version = u32::from_le_bytes([version[0], version[1], version[2], version[3]]);
    if magic != b"GGUF" {
        let what = match bytes {
            [b'F', b'U', b'G', b'G', ..] => return Err(big_endian()),
            [b't', b'j', b'g', b'g', ..] | [b'f', b'm', b'g', b'g', ..] | [b'l', b'm', b'g', b'g', ..] => {
                "a GGML file from before GGUF: convert the original model again"
            }
            [b'P', b'K', 3, 4, ..] => "a zip archive (a PyTorch checkpoint?): convert it to GGUF first",
            [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', ..] => {
                "a Git LFS pointer, not the file itself: fetch the file with `git lfs pull`"
            }
            [_, _, _, _, _, 0, 0, 0, b'{', ..] => {
                "a safetensors file: tandem convert FOLDER -o FILE.gguf makes GGUF of a checkpoint's folder if its \
                 architecture can be converted; else fetch the model as GGUF"
            }
            [b'<', ..] => "a web page: the download went wrong, fetch the file again",
            [0, 0, 0, 0, ..] => "zeros, as an unfinished download leaves: fetch the file again",
            _ => "no GGUF file, or a damaged one",
        };
        return Err(format!("it starts with \"{}\", expected \"GGUF\": it is {what}", magic.escape_ascii()));
    }
    match version {
        2 | 3 => Ok(version),
        1 => Err("it is GGUF version 1, expected 2 or 3: convert the original model again".into()),
        v if (1..=3).contains(&v.swap_bytes()) => Err(big_endian()),
        v => Err(format!("it is GGUF version {v}, expected 2 or 3: it is damaged, or newer than this program")),
    }
}

fn big_endian() -> String {
    "it is a big-endian GGUF file, expected little-endian: get the little-endian one, or convert it with \
     gguf_convert_endian.py"
        .into()
}

/// Turns offsets into the data into offsets into the file, and checks that each tensor has its own place there.
fn place(tensors: &mut [Tensor], data: u64, len: u64) -> Result<(), String> {
    let end = |t: &Tensor| t.offset.checked_add(t.bytes as u64);
    for t in tensors.iter_mut() {
        t.offset = data.saturating_add(t.offset);
        if end(t).is_none_or(|end| end > len) {
            let (name, bytes, at) = (shown(&t.name), t.bytes, t.offset);
            return Err(format!(
                "tensor {name}: its {bytes} bytes from byte {at} on end after the file's {len}: {DAMAGED}"
            ));
        }
    }
    let mut order: Vec<&Tensor> = tensors.iter().collect();
    order.sort_unstable_by_key(|t| t.offset);
    for pair in order.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if a.range().end as u64 > b.offset {
            let (one, other) = (shown(&a.name), shown(&b.name));
            let (a, b) = (a.range(), b.range());
            return Err(format!("tensors {one} (bytes {a:?}) and {other} (bytes {b:?}) overlap: {TWICE}"));
        }
    }
    Ok(())
}

/// A place in the bytes of a header. Errors are said in words; the caller adds the file and the key or tensor.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    len: u64,
    repaired: bool,
    /// The file has more bytes than are here, and one of those is needed.
    more: bool,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8], len: u64) -> Cursor<'a> {
        Cursor { bytes: &bytes[..bytes.len().min(MAX_HEADER)], at: 0, len, repaired: false, more: false }
    }

    /// Notes whether `n` bytes from here on may be in the part of the file that is not here.
    fn note_more(&mut self, n: u64) {
        let most = self.len.min(MAX_HEADER as u64);
        self.more = (self.bytes.len() as u64) < most && n <= most - self.at as u64;
    }

    /// The next `n` bytes.
    fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        let left = &self.bytes[self.at..];
        if n > left.len() as u64 {
            self.note_more(n);
            return Err(self.short(n));
        }
        self.at += n as usize;
        Ok(&left[..n as usize])
    }

    #[cold]
    fn short(&self, n: u64) -> String {
        let (at, have, len) = (self.at, self.bytes.len(), self.len);
        if (have as u64) < len {
            format!("{n} bytes at byte {at} lead past the {have} that a header may have")
        } else {
            format!("{n} bytes are expected at byte {at}, but the file has {len}: {DAMAGED}")
        }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (bytes, _) = self.take(N as u64)?.split_first_chunk().expect("just as many");
        Ok(*bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.fixed().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.fixed().map(u64::from_le_bytes)
    }

    /// The bytes of a string.
    fn string(&mut self) -> Result<&'a [u8], String> {
        let n = self.u64()?;
        self.take(n)
    }

    /// The name of a key or tensor.
    fn name(&mut self) -> Result<String, String> {
        match self.string()? {
            [] => Err(format!("it is empty (before byte {}): {DAMAGED}", self.at)),
            long if long.len() > MAX_NAME => {
                Err(format!("it has {} bytes, expected at most {MAX_NAME}: {DAMAGED}", long.len()))
            }
            bytes => str::from_utf8(bytes).map(str::to_owned).map_err(|_| {
                let shown: String = bytes.escape_ascii().take(80).map(char::from).collect();
                format!("it is not UTF-8 (\"{shown}\"): {DAMAGED}")
            }),
        }
    }

    /// A string value. One bad byte in a description must not keep a model from running, so it is replaced, and noted.
    fn text(&mut self) -> Result<String, String> {
        let bytes = self.string()?;
        Ok(match str::from_utf8(bytes) {
            Ok(s) => s.to_owned(),
            Err(_) => {
                self.repaired = true;
                String::from_utf8_lossy(bytes).into_owned()
            }
        })
    }

    /// A metadata value of this kind.
    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.fixed()?)),
            1 => Value::I8(i8::from_le_bytes(self.fixed()?)),
            2 => Value::U16(u16::from_le_bytes(self.fixed()?)),
            3 => Value::I16(i16::from_le_bytes(self.fixed()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.fixed()?)),
            6 => Value::F32(f32::from_le_bytes(self.fixed()?)),
            7 => Value::Bool(truth(self.fixed::<1>()?[0])?),
            8 => Value::Str(self.text()?),
            9 => Value::Arr(self.array(1)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.fixed()?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed()?)),
            _ => return Err(unknown_kind(kind)),
        })
    }

    /// An array, `depth` deep.
    fn array(&mut self, depth: u32) -> Result<Array, String> {
        if depth > MAX_DEPTH {
            return Err(format!("its arrays are nested more than {MAX_DEPTH} deep: {DAMAGED}"));
        }
        let (kind, n) = (self.u32()?, self.u64()?);
        // The least that one element takes: a string is at least its length, an array its kind and its count.
        let least = *[1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8].get(kind as usize).ok_or_else(|| unknown_kind(kind))?;
        let left = self.bytes.len() - self.at;
        if n > (left / least) as u64 {
            self.note_more(n.saturating_mul(least as u64));
            let (what, at) = (KINDS[kind as usize], self.at);
            return Err(format!(
                "its array of {n} {what} at byte {at} does not fit in the {left} bytes left: {DAMAGED}"
            ));
        }
        let n = n as usize;
        macro_rules! numbers {
            ($type:ty) => {{
                let (parts, _) = self.take((n * least) as u64)?.as_chunks();
                parts.iter().map(|&b| <$type>::from_le_bytes(b)).collect()
            }};
        }
        Ok(match kind {
            0 => Array::U8(self.take(n as u64)?.to_vec()),
            1 => Array::I8(numbers!(i8)),
            2 => Array::U16(numbers!(u16)),
            3 => Array::I16(numbers!(i16)),
            4 => Array::U32(numbers!(u32)),
            5 => Array::I32(numbers!(i32)),
            6 => Array::F32(numbers!(f32)),
            7 => Array::Bool(self.take(n as u64)?.iter().map(|&b| truth(b)).collect::<Result<_, _>>()?),
            8 => Array::Str(self.many(n, Cursor::text)?),
            9 => Array::Arr(self.many(n, |c| c.array(depth + 1))?),
            10 => Array::U64(numbers!(u64)),
            11 => Array::I64(numbers!(i64)),
            _ => Array::F64(numbers!(f64)),
        })
    }

    /// `n` elements, `n` already held against the bytes left.
    fn many<T>(&mut self, n: usize, mut one: impl FnMut(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let mut out = Vec::with_capacity(n);
        for i in 0..n {
            out.push(one(self).map_err(|e| format!("element {i} of {n}: {e}"))?);
        }
        Ok(out)
    }

    /// A tensor of the directory; its offset is still counted from the start of the data.
    fn tensor(&mut self, name: String, alignment: u64) -> Result<Tensor, String> {
        let n = self.u32()?;
        if n > 4 {
            return Err(format!("it has {n} dimensions, expected 1 to 4: {DAMAGED}"));
        }
        let mut shape = vec![1; n.max(1) as usize]; // no dimensions: one number
        for at in (0..n as usize).rev() {
            let d = self.u64()?;
            shape[at] = usize::try_from(d).map_err(|_| format!("dimension {d} is more than any file can hold"))?;
        }
        let (id, offset) = (self.u32()?, self.u64()?);
        let ty = TensorType::by_id(id).ok_or_else(|| match retired::by_id(id) {
            Some((name, why)) => format!("its type {name} ({id}) {why}"),
            None => format!("its type {id} is unknown: the file is damaged, or newer than this program"),
        })?;
        let bytes = ty.bytes_of(&shape)?;
        if !offset.is_multiple_of(alignment) {
            return Err(format!("its data offset {offset} is not a multiple of the alignment {alignment}: {DAMAGED}"));
        }
        Ok(Tensor { name, shape, ty, shard: 0, offset, bytes })
    }
}

/// A name, quoted, and cut where it is absurdly long.
fn shown(name: &str) -> String {
    match name.char_indices().nth(100) {
        None => format!("{name:?}"),
        Some((cut, _)) => format!("{:?}..", &name[..cut]),
    }
}

fn truth(byte: u8) -> Result<bool, String> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        b => Err(format!("a bool is the byte {b}, expected 0 or 1: {DAMAGED}")),
    }
}

#[cold]
fn unknown_kind(kind: u32) -> String {
    format!("its kind of value is {kind}, expected 0 to 12: the file is damaged, or newer than this program")
}
