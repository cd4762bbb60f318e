//! A sequence as a file: its states, and a text of the caller's (the conversation).
//!
//! ```text
//! file  "tandem\x1a\n" | u32 version | u64 bytes of the head | u64 bytes of the states | head | sum | states | sum
//! head  JSON: model, fingerprint, kept (what each state is), tokens, checkpoints, note; heads (what each state of draft heads
//!       is), head_bytes (theirs in the sequence and in each checkpoint, where they come last)
//! sum   XXH3-128 of everything before it
//! ```
//!
//! Numbers are little-endian. The states are what [`Session::save`] writes: used rows only, the same whatever the context,
//! the batch, the threads and the placement are, so a sequence can be taken up under others. What must agree is the model
//! (its fingerprint) and how states are kept (the cache types). The states of draft heads need not: where there are others,
//! or none, the sequence is the same, and heads begin without rows.
//!
//! A file is replaced as a whole (`whole_file.rs`). It is read once, into memory that becomes the sequence's when the
//! last sum was right.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3Default;

use crate::gguf::{Gguf, Writer};
use crate::session::Session;
use crate::tape::{StateKind, StateSpec};
use crate::whole_file;

const MAGIC: [u8; 8] = *b"tandem\x1a\n";

/// To be raised when the file is laid out otherwise, or when a state of the same description holds something else.
const VERSION: u32 = 1;

/// Bytes before the head, and of a sum.
const FIXED: u64 = 8 + 4 + 8 + 8;
const SUM: u64 = 16;

/// More than any head has: a text of millions of tokens.
const MOST_HEAD: u64 = 256 << 20;

/// Bytes that are read or written at once, so that they are summed while they are in the CPU's caches.
const PIECE: usize = 256 << 10;

/// Bytes of each tensor that the fingerprint takes in: a page, which costs a disk no more than one byte of it.
const PAGE: usize = 4096;

/// The header of a saved sequence, without its states.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// The model's name and file, for people.
    pub model: String,
    /// The fingerprint of the model.
    pub fingerprint: String,
    /// The tokens read.
    pub tokens: Vec<u32>,
    /// The lengths that it can go back to without reading from its start.
    pub checkpoints: Vec<usize>,
    /// The caller's text.
    pub note: String,
    kept: Vec<String>,
    heads: Vec<String>,     // what each state of draft heads is
    head_bytes: Vec<usize>, // of `bytes`, theirs
    bytes: u64,             // of the states
}

/// Saves a sequence and a text of the caller's. The file is there as a whole or not at all, also if the program is killed
/// or the disk is full: what was there before stays until then. A link stays too, what it leads to is replaced.
///
/// # Errors
/// If there is no place for a file, it cannot be written, or the GPU fails.
pub fn save(path: &Path, session: &Session, seq: usize, note: &str) -> Result<()> {
    let head = Head::of(session, Some(seq), note)?;
    tracing::debug!("saving {} tokens to {}: {:.1} MB", head.tokens.len(), path.display(), head.bytes as f64 / 1e6);
    replace(path, |file| head.write(session, Some(seq), file))
        .with_context(|| format!("cannot save to {}", path.display()))
}

/// Saves a text of the caller's, in the same way, with a sequence that has read nothing.
///
/// # Errors
/// As [`save`].
pub fn save_note(path: &Path, session: &Session, note: &str) -> Result<()> {
    let head = Head::of(session, None, note)?;
    replace(path, |file| head.write(session, None, file)).with_context(|| format!("cannot save to {}", path.display()))
}

/// Reads what every saving needs of the model's file, so that saving does not depend on the file any more.
///
/// # Errors
/// If the model's file cannot be read.
pub fn prepare(session: &Session) -> Result<()> {
    session.fingerprint(fingerprint).map(drop)
}

/// Returns a file name for a sequence that begins with these tokens, which differs for other models, cache types and
/// tokens.
///
/// # Errors
/// If the model's file cannot be read.
pub fn key(session: &Session, tokens: &[u32]) -> Result<String> {
    let (kept, _) = described(session);
    let model = session.fingerprint(fingerprint)?;
    let own = xxhash_rust::xxh3::xxh3_64(json!([model, kept, tokens]).to_string().as_bytes());
    Ok(format!("{own:016x}"))
}

/// Makes a sequence what was saved in a file, and returns the caller's text. If that fails, the sequence is as it was.
///
/// # Errors
/// If the file cannot be read, is cut short or damaged, or is not from this model and these cache types; or if the GPU
/// fails, with the sequence cleared.
pub fn load(path: &Path, session: &mut Session, seq: usize) -> Result<String> {
    let mut read = || -> Result<String> {
        let (mut file, head) = Head::open(path)?;
        head.fits(session)?;
        tracing::debug!("loading {} tokens from {}", head.tokens.len(), path.display());
        let own = head.heads == described(session).1
            && head.head_bytes == session.head_bytes(head.tokens.len(), &head.checkpoints);
        let skipped = (!own).then_some(&head.head_bytes[..]);
        session.load(seq, (&head.tokens, &head.checkpoints), skipped, &mut file, |file| file.agree("states"))?;
        Ok(head.note)
    };
    read().with_context(|| format!("cannot load {}", path.display()))
}

/// Reads what a file says of itself. That the states in it are whole only [`load`] finds out.
///
/// # Errors
/// If the file cannot be read, is cut short, or its head is damaged.
pub fn peek(path: &Path) -> Result<Head> {
    Head::open(path).map(|(_, head)| head).with_context(|| format!("cannot read {}", path.display()))
}

impl Head {
    fn of(session: &Session, seq: Option<usize>, note: &str) -> Result<Head> {
        let gguf = session.engine().gguf();
        let tokens = seq.map_or(Vec::new(), |seq| session.tokens(seq).to_vec());
        let checkpoints = seq.map_or(Vec::new(), |seq| session.checkpoints(seq));
        let (kept, heads) = described(session);
        Ok(Head {
            model: name(gguf),
            fingerprint: session.fingerprint(fingerprint)?.to_owned(),
            bytes: session.saved_bytes(tokens.len(), &checkpoints) as u64,
            head_bytes: if heads.is_empty() { Vec::new() } else { session.head_bytes(tokens.len(), &checkpoints) },
            tokens,
            checkpoints,
            note: note.into(),
            kept,
            heads,
        })
    }

    fn write(&self, session: &Session, seq: Option<usize>, file: &mut File) -> Result<()> {
        let mut head = json!({
            "model": self.model,
            "fingerprint": self.fingerprint,
            "kept": self.kept,
            "tokens": self.tokens,
            "checkpoints": self.checkpoints,
            "note": self.note,
        });
        if !self.heads.is_empty() {
            head["heads"] = json!(self.heads);
            head["head_bytes"] = json!(self.head_bytes);
        }
        let head = head.to_string();
        ensure!(head.len() as u64 <= MOST_HEAD, "the text to save has {} bytes, too many", self.note.len());
        let mut out = Summed::new(file);
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&(head.len() as u64).to_le_bytes())?;
        out.write_all(&self.bytes.to_le_bytes())?;
        out.write_all(head.as_bytes())?;
        out.seal()?;
        match seq {
            Some(seq) => session.save(seq, &mut out)?,
            None => drop(io::copy(&mut io::repeat(0).take(self.bytes), &mut out)?), // recurrent blocks begin as zeros
        }
        Ok(out.seal()?)
    }

    /// Opens a file and reads its head.
    fn open(path: &Path) -> Result<(Summed<File>, Head)> {
        // Asked of the path first: opening a pipe would wait for its other end.
        ensure!(fs::metadata(path)?.is_file(), "it is a folder or a device: give the name of a file");
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut file = Summed::new(file);
        let mut first = [0; FIXED as usize];
        let have = &mut first[..len.min(FIXED) as usize];
        file.read_exact(have)?;
        let magic = &have[..have.len().min(MAGIC.len())];
        ensure!(*magic == MAGIC[..magic.len()], "it is not a saved session: it begins with {}", magic.escape_ascii());
        ensure!(len >= FIXED, "it is cut short: it has {len} bytes, expected at least {FIXED}. Start a new session");
        let version = u32::from_le_bytes(first[8..12].try_into()?);
        ensure!(
            version == VERSION,
            "it is of version {version}, and this program reads version {VERSION}: use the program that saved it, or \
             start a new session"
        );
        let [head_bytes, bytes] = [12, 20].map(|at| u64::from_le_bytes(first[at..at + 8].try_into().expect("8 bytes")));
        let whole = [FIXED, head_bytes, SUM, bytes, SUM].iter().try_fold(0u64, |sum, n| sum.checked_add(*n));
        ensure!(
            head_bytes <= MOST_HEAD && whole == Some(len),
            "it has {len} bytes, expected {}: it is cut short or damaged. Use a copy, or start a new session",
            whole.map_or("many more".into(), |n| n.to_string())
        );
        let mut text = vec![0; head_bytes as usize];
        file.read_exact(&mut text)?;
        file.agree("head")?;
        let head: Value = serde_json::from_slice(&text)?;
        let head = Head::parse(&head, bytes).context("its header is incomplete: this program did not save it")?;
        Ok((file, head))
    }

    fn parse(head: &Value, bytes: u64) -> Option<Head> {
        let text = |key: &str| Some(head[key].as_str()?.to_owned());
        fn list<T>(value: &Value, one: impl FnMut(&Value) -> Option<T>) -> Option<Vec<T>> {
            value.as_array()?.iter().map(one).collect()
        }
        Some(Head {
            model: text("model")?,
            fingerprint: text("fingerprint")?,
            tokens: list(&head["tokens"], |v| u32::try_from(v.as_u64()?).ok())?,
            checkpoints: list(&head["checkpoints"], |v| usize::try_from(v.as_u64()?).ok())?,
            note: text("note")?,
            kept: list(&head["kept"], |v| Some(v.as_str()?.to_owned()))?,
            heads: list(&head["heads"], |v| Some(v.as_str()?.to_owned())).unwrap_or_default(),
            head_bytes: list(&head["head_bytes"], |v| usize::try_from(v.as_u64()?).ok()).unwrap_or_default(),
            bytes,
        })
    }

    /// Fails, with the reason, if this is not a sequence that the session could have.
    fn fits(&self, session: &Session) -> Result<()> {
        let gguf = session.engine().gguf();
        let (theirs, ours) = (&self.fingerprint, session.fingerprint(fingerprint)?);
        ensure!(
            *theirs == ours,
            "it was saved with another model: {} (fingerprint {theirs}), this one is {} (fingerprint {ours}). Open that \
             model (-m), or start a new session",
            self.model,
            name(gguf)
        );
        let (kept, _) = described(session);
        if let Some((theirs, ours)) = self.kept.iter().zip(&kept).find(|(a, b)| a != b) {
            bail!(
                "it was saved with other cache types: {theirs}; in this session it is {ours}. Give the types that it was \
                 saved with (-ctk, -ctv)"
            );
        }
        let (n, n_ctx) = (self.tokens.len(), session.n_ctx());
        ensure!(n <= n_ctx, "it has {n} tokens, and the context has room for {n_ctx}: use a larger -c");
        let own: usize = session.head_bytes(n, &self.checkpoints).iter().sum();
        let model = (session.saved_bytes(n, &self.checkpoints) - own) as u64;
        let ours = self.head_bytes.iter().try_fold(model, |sum, &n| sum.checked_add(n as u64)).unwrap_or(u64::MAX);
        let theirs = self.bytes;
        ensure!(
            self.kept.len() == kept.len() && theirs == ours,
            "its {} states have {theirs} bytes, {} states of {ours} bytes expected: another version of this program saved \
             it. Start a new session",
            self.kept.len(),
            kept.len()
        );
        Ok(())
    }
}

/// What each state of a session is: those of the model, and those of its draft heads.
fn described(session: &Session) -> (Vec<String>, Vec<String>) {
    let tape = &session.engine().tape;
    let (model, heads) = tape.states.split_at(tape.model_states());
    let all = |states: &[StateSpec]| states.iter().map(describe).collect();
    (all(model), all(heads))
}

/// Describes the layout of a state's saved contents.
fn describe(s: &StateSpec) -> String {
    let (label, width, ty) = (&s.label, s.width, s.ty.name);
    match s.kind {
        StateKind::Fixed => format!("{label} in a block of {width} {ty}"),
        StateKind::Rows { every, window, .. } => {
            let every = if every == 1 { String::new() } else { format!(", one for every {every} tokens") };
            let window = window.map_or(String::new(), |w| format!(", the last {w}"));
            format!("{label} in rows of {width} {ty}{every}{window}")
        }
    }
}

/// The model's name and file, for people.
fn name(gguf: &Gguf) -> String {
    let file = gguf.path.file_name().unwrap_or_default().to_string_lossy();
    match gguf.meta.opt_str("general.name") {
        Ok(Some(name)) => format!("{name}, {file}"),
        _ => file.into(),
    }
}

/// The fingerprint of a model: a hash of its metadata, the names, shapes and types of its tensors, and a page of each.
/// It is the same for any shard, for other splits, and whatever a file says of its origin and of how a conversation is
/// written: the states of a sequence depend on none of that.
fn fingerprint(gguf: &Gguf) -> Result<String> {
    let of_file = |key: &str| {
        let about = ["general.", "split.", "tokenizer.chat_template"].iter().any(|part| key.starts_with(part));
        let drafter =
            gguf.drafter().is_some_and(|arch| key.strip_prefix(arch).is_some_and(|rest| rest.starts_with('.')));
        (about && key != "general.architecture") || drafter
    };
    let mut meta: Vec<_> = gguf.meta.iter().filter(|(key, _)| !of_file(key)).collect();
    meta.sort_by_key(|(key, _)| *key);
    let mut header = Writer::new();
    for (key, value) in meta {
        header.set(key, value.clone());
    }
    let mut hash = Xxh3Default::new();
    hash.update(&header.to_bytes()?);
    let mut tensors: Vec<_> = gguf.tensors.iter().filter(|t| gguf.is_own(t)).collect();
    tensors.sort_by_key(|t| &t.name);
    for t in tensors {
        let data = gguf.data(t);
        let middle = data.len() / 2;
        hash.update(format!("{} {:?} {:?}\n", t.name, t.shape, t.ty).as_bytes());
        hash.update(&data[middle..data.len().min(middle + PAGE)]);
    }
    Ok(format!("{:032x}", hash.digest128()))
}

/// Makes what `write` writes the file at `path`, all of it or nothing, unless another kind of file is there.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let other = fs::metadata(path).is_ok_and(|old| old.is_file() && old.len() > 0) && !is_session(path);
    ensure!(
        !other,
        "there is another file of that name, which is not a saved session and would be lost: give another name"
    );
    whole_file::replace(path, &MAGIC, write)
}

/// Whether a file begins as sessions do.
fn is_session(path: &Path) -> bool {
    let mut begin = [0; MAGIC.len()];
    File::open(path).and_then(|mut f| f.read_exact(&mut begin)).is_ok() && begin == MAGIC
}

/// A file and the sum of what went through it.
struct Summed<F> {
    file: F,
    sum: Xxh3Default,
}

impl<F> Summed<F> {
    fn new(file: F) -> Summed<F> {
        Summed { file, sum: Xxh3Default::new() }
    }
}

impl<F: Write> Summed<F> {
    fn seal(&mut self) -> io::Result<()> {
        let sum = self.sum.digest128();
        self.write_all(&sum.to_le_bytes())
    }
}

impl<F: Read> Summed<F> {
    fn agree(&mut self, part: &str) -> Result<()> {
        let (ours, mut theirs) = (self.sum.digest128(), [0; SUM as usize]);
        self.read_exact(&mut theirs)?;
        let theirs = u128::from_le_bytes(theirs);
        ensure!(
            ours == theirs,
            "it is damaged: the checksum up to the end of its {part} is {ours:032x}, {theirs:032x} expected. Use a copy, or \
             start a new session"
        );
        Ok(())
    }
}

impl<F: Write> Write for Summed<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.sum.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<F: Read> Read for Summed<F> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let most = bytes.len().min(PIECE);
        let n = self.file.read(&mut bytes[..most])?;
        self.sum.update(&bytes[..n]);
        Ok(n)
    }
}
