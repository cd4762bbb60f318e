//! The files that a verb reads and writes: texts, folders of this program, and checks before
//! anything is lost.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::errors::usage;

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

/// This program's folder in `variable` or `in_home`, created if it does not exist; None if neither
/// that variable nor HOME is set.
pub(super) fn own_folder(variable: &str, in_home: &str) -> Result<Option<PathBuf>> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let Some(place) = set(variable).or_else(|| Some(set("HOME")?.join(in_home))) else { return Ok(None) };
    let dir = place.join("tandem");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(Some(dir))
}

/// Reads a text file, naming it in the error.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(e) => bail!("{}: not UTF-8 text (byte {})", path.display(), e.utf8_error().valid_up_to()),
    }
}
