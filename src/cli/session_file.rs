//! The file that a session is saved to. If another program has written to it meanwhile, it is not
//! overwritten.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A session's file, known by how it was when it was last read or written here.
#[derive(Clone)]
pub(super) struct SessionFile {
    path: PathBuf,
    /// None: there was none.
    seen: Option<(u64, SystemTime)>,
    /// Whether it was read or written here.
    known: bool,
}

impl SessionFile {
    /// The file as it is now.
    pub(super) fn new(path: &Path) -> SessionFile {
        SessionFile { path: path.to_owned(), seen: look(path), known: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there, with something in it.
    pub(super) fn exists(&self) -> bool {
        self.path.metadata().is_ok_and(|about| about.len() > 0 || !about.is_file())
    }

    /// This file, marked as one that was read or written here.
    pub(super) fn seen(self) -> SessionFile {
        SessionFile { known: true, ..self }
    }

    /// Whether it has contents that were neither read nor written here.
    pub(super) fn is_strange(&self) -> bool {
        !self.known && self.exists()
    }

    /// Saves to it by `save`; to a new file next to it if it is no longer the one that was seen.
    pub(super) fn save<R>(&mut self, save: impl FnOnce(&Path) -> R) -> R {
        let now = look(&self.path);
        if now.is_some() && now != self.seen {
            let names = (2..).map(|n| {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{n}"));
                PathBuf::from(name)
            });
            let other = names.into_iter().find(|p| p.symlink_metadata().is_err()).expect("numbers do not end");
            tracing::warn!(
                "{} was changed by another program: it is left as it is, and this session is saved to {}",
                self.path.display(),
                other.display()
            );
            self.path = other;
        }
        let done = save(&self.path);
        (self.seen, self.known) = (look(&self.path), true);
        done
    }
}

/// What tells a file from its successor, which is always a new one.
fn look(path: &Path) -> Option<(u64, SystemTime)> {
    let about = path.metadata().ok()?;
    Some((about.len(), about.modified().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_program_saved_stays_and_ones_own_goes_to_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk");
        let write = |text: &'static str| move |p: &Path| std::fs::write(p, text).unwrap();
        let (mut one, mut other) = (SessionFile::new(&path), SessionFile::new(&path));
        one.save(write("one"));
        other.save(write("the other's"));
        one.save(write("one, longer"));
        other.save(write("the other's, longer"));
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((&*read("talk"), &*read("talk.2")), ("one, longer", "the other's, longer"));
        std::fs::remove_file(&path).unwrap();
        one.save(write("one"));
        assert_eq!(read("talk"), "one", "a file that was taken away is made again");
    }
}
