//! A file's bytes: mapped, or read into memory, and locked there if asked.
//!
//! Both kinds start on a page boundary, so a tensor is aligned in memory as it is in the file.

use anyhow::{Context, Result, anyhow, bail};
use memmap2::{Mmap, MmapMut};
use rayon::prelude::*;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::cpu::in_parallel;

/// How to bring a model's files into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Map the files, and let the system page them in as they are used. Otherwise read them whole, now.
    pub mmap: bool,
    /// Ask the system to keep the bytes in RAM. If it refuses, [`super::Gguf::unlocked`] says why.
    pub mlock: bool,
}

impl Default for Load {
    fn default() -> Load {
        Load { mmap: true, mlock: false }
    }
}

/// Bytes per read when a file is not mapped: large enough for full disk speed, small enough to share among threads.
const READ: usize = 32 << 20;

/// A file's bytes, which stay where they are for as long as anyone holds them.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Maps a file that is read once, from its beginning to its end.
///
/// # Errors
/// If there is no such file, or it cannot be mapped.
pub fn map_file(path: &Path) -> Result<SharedBytes> {
    Ok(FileBytes::open(path, &Load::default())?.share())
}

/// The bytes of one file.
#[derive(Debug)]
pub(super) struct FileBytes {
    store: Arc<Backing>,
    file: Option<File>,
    /// What was left in the file when the rest of it was read: the map, and the places in order.
    mapped: Option<(Arc<Backing>, Vec<Range<usize>>)>,
}

#[derive(Debug)]
enum Backing {
    Map(Mmap),
    Read(Mmap), // pages of our own, not the file's
    Vec(Vec<u8>),
}

impl AsRef<[u8]> for Backing {
    fn as_ref(&self) -> &[u8] {
        match self {
            Backing::Map(pages) | Backing::Read(pages) => pages,
            Backing::Vec(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> FileBytes {
        FileBytes { store: Arc::new(Backing::Vec(bytes)), file: None, mapped: None }
    }
}

impl FileBytes {
    /// Maps `path`, whatever `load` says: the header is read from the map, so a bad file is refused before its weights
    /// are read. Where the file system cannot map, an unmapped load reads everything now.
    pub(super) fn open(path: &Path, load: &Load) -> Result<FileBytes> {
        let shown = path.display();
        // Asked of the path first: opening a pipe would wait for its other end.
        let about = fs::metadata(path).with_context(|| format!("cannot open {shown}"))?;
        if about.is_dir() && path.join("config.json").exists() {
            bail!("{shown} is the folder of a checkpoint, expected a .gguf file: tandem convert makes one of it");
        }
        if !about.is_file() {
            bail!("{shown} is not a file: give the path of a .gguf file");
        }
        let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        let len = file.metadata().with_context(|| format!("cannot read {shown}"))?.len();
        if len == 0 {
            bail!("{shown} is empty, a GGUF file has at least 24 bytes: fetch the file again");
        }
        // SAFETY: nothing here writes to the file, and `recheck` refuses one that changed length while it was opened.
        // What remains is the caller's side of every memory map: the file must not be cut short or rewritten while the
        // model runs (that reads other weights, or ends the process with SIGBUS).
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) };
        let store = match map {
            Ok(map) => Backing::Map(map),
            Err(_) if !load.mmap => Backing::Read(read(path, &file, len, &[])?),
            Err(e) => return Err(e).context(format!("cannot map {shown} ({len} bytes): --no-mmap reads it instead")),
        };
        Ok(FileBytes { store: Arc::new(store), file: Some(file), mapped: None })
    }

    /// Reads the weights if they are not to stay mapped, all but those at the places in `keep`, which are in order.
    pub(super) fn settle(&mut self, path: &Path, load: &Load, keep: Vec<Range<usize>>) -> Result<()> {
        if let (false, Backing::Map(map), Some(file)) = (load.mmap, &*self.store, &self.file) {
            let pages = Arc::new(Backing::Read(read(path, file, map.len() as u64, &keep)?));
            let map = std::mem::replace(&mut self.store, pages);
            self.mapped = Some((map, keep)).filter(|(_, keep)| !keep.is_empty());
        }
        Ok(())
    }

    /// The bytes at a place, from where they are.
    pub(super) fn at(&self, range: Range<usize>) -> &[u8] {
        match &self.mapped {
            Some((map, kept)) if kept.contains(&range) => &(**map).as_ref()[range],
            _ => &self.as_slice()[range],
        }
    }

    /// The bytes.
    pub(super) fn as_slice(&self) -> &[u8] {
        (*self.store).as_ref()
    }

    /// The bytes, for those who outlive the model.
    pub(super) fn share(&self) -> SharedBytes {
        self.store.clone()
    }

    /// Fails if the file no longer has the length that was mapped: it is still being written, or being replaced.
    pub(super) fn recheck(&self, path: &Path) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let had = self.as_slice().len() as u64;
        let has = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
        if had != has {
            let shown = path.display();
            bail!("{shown} went from {had} to {has} bytes while it was being opened: wait until it is complete");
        }
        Ok(())
    }

    /// Locks the bytes in RAM, or says in words why not.
    pub(super) fn lock(&self, path: &Path) -> Result<()> {
        let (Backing::Map(map) | Backing::Read(map)) = &*self.store else { return Ok(()) };
        map.lock().map_err(|e| {
            let (shown, len) = (path.display(), map.len());
            anyhow!(
                "cannot lock {shown} ({len} bytes) in RAM: {e}. Raise the limit (`ulimit -l` shows it, in KiB), free \
                 memory, or do without --mlock"
            )
        })
    }
}

/// Reads a file into fresh pages, several parts at once; the places in `keep` stay untouched pages, which take no memory.
fn read(path: &Path, file: &File, len: u64, keep: &[Range<usize>]) -> Result<Mmap> {
    let fill = || -> Result<Mmap> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut pages = MmapMut::map_anon(len)?;
        let (mut rest, mut at) = (&mut pages[..], 0);
        let whole = (len, len); // where the last part ends
        for (from, to) in keep.iter().map(|r| (r.start, r.end)).chain([whole]) {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(from - at);
            let parts = part.par_chunks_mut(READ).enumerate();
            in_parallel(|| parts.try_for_each(|(i, part)| read_at(file, part, (at + i * READ) as u64)))??;
            rest = &mut after[to - from..];
            at = to;
        }
        Ok(pages.make_read_only()?)
    };
    fill().with_context(|| format!("cannot read {} ({len} bytes) into memory", path.display()))
}

#[cfg(unix)]
fn read_at(file: &File, part: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, part, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut part: &mut [u8], mut at: u64) -> io::Result<()> {
    while !part.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, part, at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        part = &mut part[n..];
        at += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_length_while_it_is_opened_is_refused() {
        let path = std::env::temp_dir().join(format!("tandem-{}-changing.gguf", std::process::id()));
        for (load, new) in
            [(true, 100), (true, 9000), (false, 100)].map(|(mmap, new)| (Load { mmap, mlock: false }, new))
        {
            fs::write(&path, [7; 5000]).unwrap();
            let mut bytes = FileBytes::open(&path, &load).unwrap();
            bytes.recheck(&path).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(new).unwrap();
            let said = bytes.recheck(&path).unwrap_err().to_string();
            assert!(
                said.contains("changing.gguf went from 5000 to") && said.contains(&format!("{new} bytes")),
                "{said}"
            );
            if !load.mmap {
                let said = format!("{:#}", bytes.settle(&path, &load, Vec::new()).unwrap_err());
                assert!(said.contains("cannot read") && said.contains("changing.gguf (5000 bytes)"), "{said}");
            }
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_of_several_reads_is_read_whole() {
        let path = std::env::temp_dir().join(format!("tandem-{}-parts.gguf", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(READ as u64 * 2 + 5).unwrap();
        for (at, byte) in [(0, 1u8), (READ - 1, 2), (READ, 3), (READ * 2 + 4, 4)] {
            use std::io::{Seek, SeekFrom, Write};
            (&file).seek(SeekFrom::Start(at as u64)).unwrap();
            (&file).write_all(&[byte]).unwrap();
        }
        let pages = read(&path, &file, READ as u64 * 2 + 5, &[]).unwrap();
        assert_eq!([pages[0], pages[READ - 1], pages[READ], pages[READ * 2 + 4]], [1, 2, 3, 4]);
        assert_eq!(pages.iter().map(|&b| usize::from(b)).sum::<usize>(), 10);
        // What is to stay in the file is not among what was read, and is found where it is.
        let mut bytes = FileBytes::open(&path, &Load { mmap: false, mlock: false }).unwrap();
        let (table, last) = (READ - 1..READ * 2, READ * 2..READ * 2 + 5);
        bytes.settle(&path, &Load { mmap: false, mlock: false }, vec![table.clone()]).unwrap();
        assert!(bytes.as_slice()[table.clone()].iter().all(|&b| b == 0));
        assert_eq!((&bytes.at(table)[..2], bytes.at(last)[4], bytes.as_slice()[0]), (&[2, 3][..], 4, 1));
        fs::remove_file(path).unwrap();
    }
}
