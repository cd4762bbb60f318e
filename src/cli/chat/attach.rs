//! Files that go into a message: by `/read FILE`, or by `@FILE` in the message.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::command::path;

/// A file's text as a model reads it: its name, and the text between fences that it does not have.
///
/// # Errors
/// If it is no regular file, longer than `most` bytes, empty, or not UTF-8.
pub(super) fn block(file: &Path, most: usize) -> Result<String> {
    let name = file.display();
    let about = file.metadata().with_context(|| format!("cannot read {name}"))?;
    if !about.is_file() {
        bail!("{name}: not a regular file; give the name of a text file");
    }
    let mut bytes = Vec::new();
    let opened = File::open(file).with_context(|| format!("cannot read {name}"))?;
    opened.take(most as u64 + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    if bytes.len() > most {
        bail!("{name}: longer than the {most} bytes that the context could hold; give a part of it, or a larger -c");
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => bail!("{name}: not UTF-8 text (byte {}); give a text file", e.utf8_error().valid_up_to()),
    };
    let text = text.trim_start_matches('\u{feff}').trim_end();
    if text.is_empty() {
        bail!("{name}: the file is empty");
    }
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    Ok(format!("{name}:\n{fence}\n{text}\n{fence}"))
}

/// The words of a message that name a file by `@`, as they are typed: at the beginning of the
/// message or after a blank, with blanks in them escaped.
pub(super) fn mentions(message: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in message.char_indices().chain([(message.len(), ' ')]) {
        if c.is_whitespace() && !escaped || at == message.len() {
            words.push(&message[start..at]);
            start = at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    words.into_iter().filter_map(|word| word.strip_prefix('@')).filter(|word| !word.is_empty()).collect()
}

/// The file that a mention names: as it is, or without a punctuation mark after it.
pub(super) fn file_of(mention: &str) -> Option<String> {
    let bare = mention.trim_end_matches(['.', ',', ';', ':', '!', '?', ')', '"', '\'']);
    [mention, bare].into_iter().map(path).find(|name| !name.is_empty() && Path::new(name).is_file())
}

/// Whether a mention that names no file looks like one: someone's name does not.
pub(super) fn looks_like_file(mention: &str) -> bool {
    let bare = mention.trim_end_matches(['.', ',', ';', ':', '!', '?', ')', '"', '\'']);
    bare.contains('/')
        || bare.rsplit_once('.').is_some_and(|(name, end)| !name.is_empty() && (1..=5).contains(&end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_mentioned_after_a_blank_and_never_within_a_word() {
        assert_eq!(mentions("@a.txt and @b/c.rs, me@home.org @ @my\\ file x"), ["a.txt", "b/c.rs,", "my\\ file"]);
        assert_eq!(mentions("no files\n@x"), ["x"]);
        assert!(
            looks_like_file("notes.txt?")
                && looks_like_file("a/b")
                && !looks_like_file("john")
                && !looks_like_file("x.")
        );
    }

    #[test]
    fn a_file_is_read_whole_or_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "\u{feff}one\n```\ntwo\n```\n").unwrap();
        std::fs::write(at("b"), b"\xff").unwrap();
        std::fs::write(at("c"), "").unwrap();
        assert!(block(&at("a"), 100).unwrap().ends_with("a:\n````\none\n```\ntwo\n```\n````"));
        let said = |name: &str, most| format!("{:#}", block(&at(name), most).unwrap_err());
        assert!(said("a", 3).contains("longer than the 3 bytes"));
        assert!(said("b", 9).contains("not UTF-8"));
        assert!(said("c", 9).contains("empty"));
        assert!(said("none", 9).contains("cannot read"));
        assert!(said("", 9).contains("not a regular file"));
    }
}
