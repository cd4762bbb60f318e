//! The hash of a blob, taken from the disk in order while later bytes are still coming, so that a
//! whole file needs no second reading and what is checked is what was written.
//!
//! 64 hexadecimal digits are the SHA-256 of the contents (git LFS and Xet). 40 are git's name of a
//! file: the SHA-1 of `"blob " + length + "\0" + contents`.

use std::fs::File;
use std::io;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::choose::HubFile;
use crate::gguf::read_at;

/// Bytes per read.
const READ: usize = 1 << 20;

/// The hash of the beginning of a blob.
pub(super) struct FrontHash {
    context: Context,
    /// How many bytes are in it.
    at: u64,
    buffer: Vec<u8>,
}

impl FrontHash {
    /// The hash of nothing, of the kind that names this blob.
    pub(super) fn of(blob: &HubFile) -> FrontHash {
        let git = blob.hash.len() == 40;
        let mut context = Context::new(if git { &SHA1_FOR_LEGACY_USE_ONLY } else { &SHA256 });
        if git {
            context.update(format!("blob {}\0", blob.size).as_bytes());
        }
        FrontHash { context, at: 0, buffer: vec![0; READ] }
    }

    /// Goes on by at most one read towards the byte `to`; whether there is more.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn advance(&mut self, file: &File, to: u64) -> io::Result<bool> {
        let n = to.saturating_sub(self.at).min(READ as u64) as usize;
        read_at(file, &mut self.buffer[..n], self.at)?;
        self.context.update(&self.buffer[..n]);
        self.at += n as u64;
        Ok(self.at < to)
    }

    /// How many bytes are in it.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The hash, in hexadecimal digits.
    pub(super) fn finish(self) -> String {
        self.context.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect()
    }
}

#[cfg(unix)]
pub(super) fn write_at(file: &File, part: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, part, at)
}

#[cfg(windows)]
pub(super) fn write_at(file: &File, mut part: &[u8], mut at: u64) -> io::Result<()> {
    while !part.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, part, at)?;
        part = &part[n..];
        at += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_those_of_git_and_sha256sum() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"hello\n").unwrap();
        let of = |digits: usize| {
            let mut hash = FrontHash::of(&HubFile { path: "f".into(), size: 6, hash: "0".repeat(digits) });
            assert!(hash.advance(&file, 2).is_ok_and(|more| !more));
            assert!(hash.advance(&file, 6).is_ok_and(|more| !more));
            hash.finish()
        };
        assert_eq!(of(40), "ce013625030ba8dba906f756967f9e9ca394464a"); // git hash-object
        assert_eq!(of(64), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    }
}
