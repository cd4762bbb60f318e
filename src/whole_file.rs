//! A file that is written as a whole or not at all: to the same folder under a temporary name, synced, renamed. So a
//! program that is killed, or a disk that is full, leaves what was there before.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::NamedTempFile;

/// Names of files that are being written begin and end so, with random letters between.
const BEGINS: &str = ".tandem-";
const LETTERS: usize = 6;
const ENDS: &str = ".part";

/// Makes what `write` writes the file at `path`, all of it or nothing. A link stays, what it leads to is replaced, and
/// a file keeps its permissions; a new one is for its owner alone. `magic`: what every such file begins with, by which
/// those are known, and removed, that killed processes began here.
///
/// # Errors
/// If there can be no file, it is write-protected, or it cannot be written; what was there before stays.
pub(crate) fn replace(path: &Path, magic: &[u8], write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let path = target(path)?;
    let old = match fs::metadata(&path) {
        Ok(about) => Some(about),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e.into()),
    };
    if let Some(old) = &old {
        ensure!(old.is_file(), "it is a folder or a device: give the name of a file");
        ensure!(!old.permissions().readonly(), "it is write-protected: make it writable, or give another name");
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temp = begin(folder, magic).context("the folder must exist and be writable")?;
    write(temp.as_file_mut())?;
    if let Some(old) = old {
        temp.as_file().set_permissions(old.permissions())?;
    }
    temp.as_file().sync_all()?;
    temp.persist(&path).map_err(|e| e.error)?;
    let _ = File::open(folder).and_then(|f| f.sync_all()); // the new name, too, where the file system can do that
    Ok(())
}

/// The file that a path leads to, which need not be there.
fn target(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok(path),
        }
    }
    bail!("it is a link that leads back to itself");
}

/// Whether a file is the beginning of one with this magic, as far as it goes: nothing may have been written yet.
fn is_begun(path: &Path, magic: &[u8]) -> bool {
    let mut begin = Vec::new();
    let read = File::open(path).and_then(|f| f.take(magic.len() as u64).read_to_end(&mut begin));
    read.is_ok() && magic.starts_with(&begin)
}

/// A new file in a folder, for its owner alone. It is locked as long as it is open, so that one whose process was
/// killed is known by that it is not, and can be removed. Where a file system has no locks, such files stay. A file
/// with anything else in it was not made here, whatever it is called.
fn begin(folder: &Path, magic: &[u8]) -> io::Result<NamedTempFile> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let letters = name.to_str().and_then(|n| n.strip_prefix(BEGINS)?.strip_suffix(ENDS));
        let ours = letters.is_some_and(|l| l.len() == LETTERS && l.bytes().all(|b| b.is_ascii_alphanumeric()));
        let is_file = entry.file_type().is_ok_and(|t| t.is_file());
        let begun = || is_begun(&entry.path(), magic);
        if ours && is_file && begun() && File::open(entry.path()).is_ok_and(|f| f.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path()); // another may have been quicker
        }
    }
    loop {
        let temp = tempfile::Builder::new().prefix(BEGINS).rand_bytes(LETTERS).suffix(ENDS).tempfile_in(folder)?;
        let _ = temp.as_file().lock();
        if temp.path().exists() {
            return Ok(temp);
        } // else another process saw it before it was locked
    }
}
