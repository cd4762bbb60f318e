//! A file's bytes: mapped, or read into memory, and locked there if asked.
//!
//! Both kinds start on a page boundary, so a tensor is aligned in memory as it is in the file.

use anyhow::{Context, Result, anyhow, bail};
use memmap2::{Mmap, MmapMut, MmapOptions};
use rayon::prelude::*;
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::faults::Guard;
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

/// Holes of a file that are looked at; a whole file has none.
const MOST_HOLES: usize = 10_000;

/// Bytes per read when a file is not mapped: large enough for full disk speed, small enough to share among threads.
pub(super) const READ: usize = 32 << 20;

/// A file's bytes, which stay where they are for as long as anyone holds them.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A file that no longer is what it was when it was opened, or that cannot be read any more.
#[derive(Debug, PartialEq, Eq)]
pub struct CutShort {
    path: PathBuf,
    /// Bytes that it had, and has; the same where they cannot be read any more.
    had: u64,
    has: u64,
    /// Where a read failed, and what the system said.
    failed: Option<(u64, String)>,
}

impl CutShort {
    /// A file of other bytes than it had, or of other contents where `had` and `has` are the same.
    pub(crate) fn changed(path: &Path, had: u64, has: u64) -> CutShort {
        CutShort { path: path.to_owned(), had, has, failed: None }
    }

    /// A file whose read at the byte `at` failed, for the reason in `words`.
    pub(crate) fn failed(path: &Path, at: u64, words: &str) -> CutShort {
        CutShort { path: path.to_owned(), had: 0, has: 0, failed: Some((at, words.into())) }
    }
}

impl std::fmt::Display for CutShort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CutShort { path, had, has, failed } = self;
        let shown = path.display();
        if let Some((at, words)) = failed {
            return write!(
                f,
                "{shown} could not be read at byte {at}: {words}; check its drive or network, then start again"
            );
        }
        match had == has {
            true => write!(
                f,
                "{shown} could not be read while it was in use: it is being rewritten, or its disk or network failed; \
                 start again when it is whole"
            ),
            false => write!(
                f,
                "{shown} went from {had} to {has} bytes while it was in use: wait until whatever writes it is done, \
                 then start again"
            ),
        }
    }
}

impl std::error::Error for CutShort {}

/// A mapped file.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    bytes: FileBytes,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// If there is no such file, or it cannot be mapped.
    pub fn open(path: &Path) -> Result<MappedFile> {
        Ok(MappedFile { path: path.to_owned(), bytes: FileBytes::open(path, &Load::default())? })
    }

    /// Fails if the bytes that were read of it may be others than the file's.
    ///
    /// # Errors
    /// [`CutShort`].
    pub fn check(&self) -> Result<()> {
        Ok(self.bytes.check(&self.path)?)
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.as_slice()
    }
}

/// The bytes of one file.
#[derive(Debug)]
pub(super) struct FileBytes {
    store: Arc<Backing>,
    file: Option<File>,
    /// What was left in the file when the rest of it was read: the map, and the places in order.
    mapped: Option<(Arc<Backing>, Vec<Range<usize>>)>,
}

/// How a part of a map is used.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    /// It is read here and there.
    Scattered,
    /// It is read soon.
    Soon,
    /// It is not read for now: its pages may leave the program's memory.
    Done,
}

#[derive(Debug)]
enum Backing {
    Map(GuardedMap),
    Read(MmapMut), // pages of our own, not the file's; writable, since a GPU's driver pins those on every machine
    Vec(Vec<u8>),
}

/// A map of a file, whose lost pages read as zeros.
#[derive(Debug)]
struct GuardedMap {
    guard: Option<Guard>, // dropped before the map
    map: Mmap,
}

impl GuardedMap {
    fn new(map: Mmap, path: &Path) -> GuardedMap {
        let start = map.as_ptr() as usize;
        let guard = Guard::new(start..start + map.len());
        if guard.is_none() && cfg!(unix) {
            tracing::warn!("{} is not guarded: if it is cut short while it is used, the program ends", path.display());
        }
        GuardedMap { guard, map }
    }
}

impl AsRef<[u8]> for Backing {
    fn as_ref(&self) -> &[u8] {
        match self {
            Backing::Map(GuardedMap { map, .. }) => map,
            Backing::Read(pages) => pages,
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
        // If it is cut short later, its pages become zeros (`faults.rs`) and `check` tells. What remains is the caller's
        // side of every memory map: the file must not be rewritten in place while the model runs, which would compute
        // with other weights.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) };
        let store = match map {
            Ok(map) => Backing::Map(GuardedMap::new(map, path)),
            Err(_) if !load.mmap => {
                let whole = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory).into());
                Backing::Read(whole.and_then(|len| read(&file, len, &[])).with_context(|| unread(path, len))?)
            }
            Err(e) => return Err(e).context(format!("cannot map {shown} ({len} bytes): --no-mmap reads it instead")),
        };
        Ok(FileBytes { store: Arc::new(store), file: Some(file), mapped: None })
    }

    /// Reads the weights with `read` (of a file of so many bytes) if they are not to stay mapped, all but those at the
    /// places in `keep`, which are in order.
    pub(super) fn settle(
        &mut self,
        path: &Path,
        load: &Load,
        keep: Vec<Range<usize>>,
        read: impl FnOnce(&File, usize, &[Range<usize>]) -> Result<MmapMut>,
    ) -> Result<()> {
        if let (false, Backing::Map(map), Some(file)) = (load.mmap, &*self.store, &self.file) {
            let len = map.map.len();
            let pages = read(file, len, &keep).with_context(|| unread(path, len as u64))?;
            let pages = Arc::new(Backing::Read(pages));
            let map = std::mem::replace(&mut self.store, pages);
            self.mapped = Some((map, keep)).filter(|(_, keep)| !keep.is_empty());
        }
        Ok(())
    }

    /// The bytes at a place, from where they are.
    pub(super) fn at(&self, range: Range<usize>) -> &[u8] {
        match &self.mapped {
            Some((map, _)) if self.stays(&range) => &(**map).as_ref()[range],
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

    /// Tells the system how a part of a tensor will be read, where it is in the file's map: a wish that it may not grant.
    pub(super) fn advise(&self, tensor: Range<usize>, part: Range<usize>, use_of: Use) {
        let map = self.mapped.as_ref().filter(|_| self.stays(&tensor)).map_or(&self.store, |(map, _)| map);
        let Backing::Map(GuardedMap { map, .. }) = &**map else { return };
        #[cfg(unix)]
        let _ = match use_of {
            Use::Scattered => map.advise_range(memmap2::Advice::Random, part.start, part.len()),
            Use::Soon => map.advise_range(memmap2::Advice::WillNeed, part.start, part.len()),
            // SAFETY: nothing ever writes to a map of a model's file, so whoever reads these pages again, now or later, gets
            // what they held: the file's bytes.
            #[allow(unsafe_code)]
            Use::Done => unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len())
            },
        };
        #[cfg(not(unix))]
        let _ = (map, part, use_of);
    }

    /// Whether the bytes are in the file's map.
    pub(super) fn is_mapped(&self) -> bool {
        matches!(&*self.store, Backing::Map(_))
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

    /// Fails if pages of the file's map were lost, or the file has another length by now.
    pub(super) fn check(&self, path: &Path) -> Result<(), CutShort> {
        let map = self.mapped.as_ref().map_or(&self.store, |(map, _)| map);
        let (Backing::Map(GuardedMap { guard, map }), Some(file)) = (&**map, &self.file) else { return Ok(()) };
        let had = map.len() as u64;
        let has = file.metadata().map_or(0, |about| about.len());
        match guard.as_ref().is_some_and(Guard::is_lost) || has != had {
            true => Err(CutShort::changed(path, had, has)),
            false => Ok(()),
        }
    }

    /// The file, where the bytes are one's.
    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Whether the bytes at a place were left in the file when the others were read.
    pub(super) fn stays(&self, range: &Range<usize>) -> bool {
        let starts = |kept: &[Range<usize>]| kept.binary_search_by_key(&range.start, |r| r.start).is_ok();
        self.mapped.as_ref().is_some_and(|(_, kept)| starts(kept))
    }

    /// Whether the bytes are a file's.
    pub(super) fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// The parts of the file that the file system keeps no bytes for, in order. None where it does not say.
    pub(super) fn holes(&self) -> Vec<Range<u64>> {
        let mut holes = Vec::new();
        let Some(file) = &self.file else { return holes };
        let len = self.as_slice().len() as u64;
        let mut at = 0;
        while let Some(start) = next(file, at, Next::Hole).filter(|start| *start < len)
            && holes.len() < MOST_HOLES
        {
            at = next(file, start, Next::Data).unwrap_or(len);
            holes.push(start..at);
        }
        holes
    }

    /// Locks the bytes in RAM, or says in words why not.
    pub(super) fn lock(&self, path: &Path) -> Result<()> {
        let (locked, len) = match &*self.store {
            Backing::Map(GuardedMap { map, .. }) => (map.lock(), map.len()),
            Backing::Read(pages) => (pages.lock(), pages.len()),
            Backing::Vec(_) => return Ok(()),
        };
        locked.map_err(|e| {
            let shown = path.display();
            anyhow!(
                "cannot lock {shown} ({len} bytes) in RAM: {e}. Raise the limit (`ulimit -l` shows it, in KiB), free \
                 memory, or do without --mlock"
            )
        })
    }
}

/// What could not be done with a file of `len` bytes.
fn unread(path: &Path, len: u64) -> String {
    format!("cannot read {} ({len} bytes) into memory", path.display())
}

/// Reads a file of `len` bytes into fresh pages, several parts at once; the places in `keep` stay untouched pages, which
/// take no memory.
pub(super) fn read(file: &File, len: usize, keep: &[Range<usize>]) -> Result<MmapMut> {
    // What stays in the file must not count as memory that is promised: it may be more than there is.
    let mut options = MmapOptions::new();
    if !keep.is_empty() {
        options.no_reserve_swap();
    }
    let mut pages = options.len(len).map_anon()?;
    let (mut rest, mut at) = (&mut pages[..], 0);
    let whole = (len, len); // where the last part ends
    for (from, to) in keep.iter().map(|r| (r.start, r.end)).chain([whole]) {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(from - at);
        let parts = part.par_chunks_mut(READ).enumerate();
        in_parallel(|| parts.try_for_each(|(i, part)| read_at(file, part, (at + i * READ) as u64)))??;
        rest = &mut after[to - from..];
        at = to;
    }
    Ok(pages)
}

/// What [`next`] looks for.
#[derive(Clone, Copy)]
enum Next {
    Hole,
    Data,
}

/// Where the next hole or data begins in a file; None if there is none, or the file system does not say.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn next(file: &File, from: u64, what: Next) -> Option<u64> {
    use std::os::fd::AsRawFd;
    let whence = match what {
        Next::Hole => libc::SEEK_HOLE,
        Next::Data => libc::SEEK_DATA,
    };
    // SAFETY: the number is that of an open file. Nothing here reads it from its current place on, which this changes.
    #[allow(unsafe_code)]
    let at = unsafe { libc::lseek(file.as_raw_fd(), i64::try_from(from).ok()?, whence) };
    u64::try_from(at).ok()
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn next(_: &File, _: u64, _: Next) -> Option<u64> {
    None
}

/// Fills `part` from the byte `at` of a file on.
#[cfg(unix)]
pub(crate) fn read_at(file: &File, part: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, part, at)
}

/// Fills `part` from the byte `at` of a file on.
#[cfg(windows)]
pub(crate) fn read_at(file: &File, mut part: &mut [u8], mut at: u64) -> io::Result<()> {
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
                let said = format!("{:#}", bytes.settle(&path, &load, Vec::new(), read).unwrap_err());
                assert!(said.contains("cannot read") && said.contains("changing.gguf (5000 bytes)"), "{said}");
            }
        }
        fs::remove_file(path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_map_whose_file_is_cut_short_reads_as_zeros_and_says_so() {
        let path = std::env::temp_dir().join(format!("tandem-{}-cut.gguf", std::process::id()));
        let pages = 40 * 4096;
        fs::write(&path, vec![7u8; pages]).unwrap();
        let (bytes, other) = (MappedFile::open(&path).unwrap(), MappedFile::open(&path).unwrap());
        bytes.check().unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(10 * 4096).unwrap();
        // By a thread as well, in the middle and at the end, and what is still there as it was.
        let sum = |range: Range<usize>| bytes[range].iter().map(|&b| usize::from(b)).sum::<usize>();
        std::thread::scope(|s| s.spawn(|| assert_eq!(sum(20 * 4096..30 * 4096), 0)).join().unwrap());
        assert_eq!((sum(0..10 * 4096), sum(10 * 4096..pages)), (7 * 10 * 4096, 0));
        assert_eq!(
            bytes.check().unwrap_err().to_string(),
            format!(
                "{} went from 163840 to 40960 bytes while it was in use: wait until whatever writes it is done, then \
                 start again",
                path.display()
            )
        );
        // Grown again: the length is right, the bytes are not, and the mark tells. A map that was not read is whole.
        file.set_len(pages as u64).unwrap();
        assert!(bytes.check().unwrap_err().to_string().contains("could not be read while"));
        other.check().unwrap();
        drop(bytes);
        let new = MappedFile::open(&path).unwrap();
        new.check().unwrap(); // its place in the table is a new one, or was cleaned
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
        let pages = read(&file, READ * 2 + 5, &[]).unwrap();
        assert_eq!([pages[0], pages[READ - 1], pages[READ], pages[READ * 2 + 4]], [1, 2, 3, 4]);
        assert_eq!(pages.iter().map(|&b| usize::from(b)).sum::<usize>(), 10);
        // What is to stay in the file is not among what was read, and is found where it is.
        let mut bytes = FileBytes::open(&path, &Load { mmap: false, mlock: false }).unwrap();
        let (table, last) = (READ - 1..READ * 2, READ * 2..READ * 2 + 5);
        bytes.settle(&path, &Load { mmap: false, mlock: false }, vec![table.clone()], read).unwrap();
        assert!(bytes.as_slice()[table.clone()].iter().all(|&b| b == 0));
        assert_eq!((&bytes.at(table)[..2], bytes.at(last)[4], bytes.as_slice()[0]), (&[2, 3][..], 4, 1));
        fs::remove_file(path).unwrap();
    }
}
