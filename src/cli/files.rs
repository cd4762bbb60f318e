//! The files that a verb reads and writes: texts, folders of this program, and checks before
//! anything is lost.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::errors::usage;
use super::human::size;
use super::terminal::Stdout;

/// The most bytes of a text that is read (a prompt, a schema, a template): 16 million tokens and
/// more. What has more is no text, or never ends.
const MOST_TEXT: usize = 64 << 20;

/// Refuses to write to a file that is also read: it would be emptied before it is read.
pub(super) fn apart(flag: &str, out: &Path, others: &[(&str, Option<&Path>)]) -> Result<()> {
    let Ok(own) = out.canonicalize() else { return Ok(()) }; // not there yet
    for (what, other) in others {
        if other.is_some_and(|o| o.canonicalize().is_ok_and(|o| o == own)) {
            return usage(format!(
                "{flag} {}: this is {what}, which would be overwritten; name another file",
                out.display()
            ));
        }
    }
    Ok(())
}

/// Refuses a file whose folder does not exist, before there is an answer that could be lost.
pub(super) fn has_folder(flag: &str, file: &Path) -> Result<()> {
    if file.is_dir() {
        return usage(format!("{flag} {}: this is a folder, expected a file", file.display()));
    }
    match file.parent().filter(|p| !p.as_os_str().is_empty() && !p.is_dir()) {
        Some(no) => usage(format!("{flag} {}: the folder {} does not exist", file.display(), no.display())),
        None => Ok(()),
    }
}

/// Where this program's folder in `variable` or `in_home` is or would be; None if neither that variable nor
/// HOME is set.
pub(super) fn own_place(variable: &str, in_home: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let place = set(variable).or_else(|| Some(set("HOME")?.join(in_home)))?;
    Some(place.join("tandem"))
}

/// This program's folder in `variable` or `in_home`, created if it does not exist; None if neither
/// that variable nor HOME is set.
pub(super) fn own_folder(variable: &str, in_home: &str) -> Result<Option<PathBuf>> {
    let Some(dir) = own_place(variable, in_home) else { return Ok(None) };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(Some(dir))
}

/// Where an answer goes, which its errors name: a file, or stdout.
pub(super) struct AnswerFile {
    to: Box<dyn Write>,
    file: Option<(PathBuf, File)>,
    /// Whether the file was made here, and has nothing in it so far.
    is_new: bool,
}

impl AnswerFile {
    /// Opens the file, or stdout where there is none.
    ///
    /// # Errors
    /// If the file cannot be made or emptied.
    pub(super) fn open(path: Option<&Path>) -> Result<AnswerFile> {
        let Some(path) = path else {
            return Ok(AnswerFile { to: Box::new(Stdout::of_answers()), file: None, is_new: false });
        };
        let is_new = path.symlink_metadata().is_err();
        let open = || {
            let file = File::create(path)?;
            Ok::<_, io::Error>((file.try_clone()?, file))
        };
        let (file, to) = open().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(AnswerFile { to: Box::new(to), file: Some((path.to_owned(), file)), is_new })
    }

    /// An error, with the name of the file. A file that was made for an answer of which nothing
    /// could be written is removed.
    fn failed(&mut self, e: io::Error) -> io::Error {
        let Some((path, file)) = &self.file else { return e };
        if std::mem::take(&mut self.is_new) && file.metadata().is_ok_and(|about| about.len() == 0) {
            let _ = std::fs::remove_file(path); // the error to be told is the first one
        }
        io::Error::new(e.kind(), format!("cannot write {}: {e}", path.display()))
    }
}

impl Write for AnswerFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes).map_err(|e| self.failed(e))?;
        self.is_new &= n == 0;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush().map_err(|e| self.failed(e))
    }
}

/// Reads all of a text, of which `known` bytes are there already; `what` it is, for errors.
///
/// # Errors
/// If it cannot be read, or has more bytes than any text.
pub(super) fn read_within(from: impl Read, what: &str, known: usize) -> Result<Vec<u8>> {
    let most = MOST_TEXT.saturating_sub(known);
    let mut bytes = Vec::new();
    from.take(most as u64 + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {what}"))?;
    if bytes.len() > most {
        return usage(format!("{what}: more than {}, expected a text of at most that", size(MOST_TEXT)));
    }
    Ok(bytes)
}

/// Reads a text file, naming it in the error. A byte order mark at its head is no part of the text.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let bytes = read_within(file, &path.display().to_string(), 0)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Err(e) => bail!("{}: not UTF-8 text (byte {})", path.display(), e.utf8_error().valid_up_to()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_an_end_is_refused_after_some_megabytes() {
        let told = read_within(io::repeat(0), "stdin", 0).unwrap_err();
        assert!(format!("{told:#}").contains("stdin: more than 67.1 MB"), "{told:#}");
        assert_eq!(read_within(io::repeat(0).take(9), "stdin", MOST_TEXT - 9).unwrap().len(), 9);
        assert!(read_within(io::repeat(0).take(9), "stdin", MOST_TEXT - 8).is_err(), "together with what there is");
    }
}
