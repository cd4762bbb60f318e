//! Names that come from a user or a server: repositories, files, hashes. None is used before it is
//! checked here, since each becomes part of a path or of an address.

use anyhow::{Result, bail};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stays as it is in an address; `/` separates folders.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Names in front of a repository in a pasted address.
const SITES: [&str; 4] = ["https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/"];

/// A model as a user names it: `USER/REPO`, `USER/REPO:QUANT`, or the address of a repository or of
/// a file in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// `USER/REPO`.
    pub repo: String,
    /// What is after the colon: the end of a file's name, like a weight format.
    pub quant: Option<String>,
    /// One file, by its path in the repository.
    pub file: Option<String>,
}

impl ModelName {
    /// Reads a name; `file` is a file that is given apart from it, by its path in the repository or
    /// its address.
    ///
    /// # Errors
    /// If it names no repository, another revision than `main`, or two things at once.
    pub fn parse(text: &str, file: Option<&str>) -> Result<ModelName> {
        let text = text.trim();
        let site = SITES.iter().find_map(|s| text.strip_prefix(s));
        let (rest, inside) = match site {
            Some(rest) => split_address(rest.trim_end_matches('/'), text)?,
            None => (text.to_owned(), None),
        };
        let (repo, quant) = match rest.split_once(':') {
            Some((repo, quant)) => (repo, Some(quant.trim())),
            None => (rest.as_str(), None),
        };
        if !is_repo(repo) {
            bail!("{text:?} is no model of a hub, expected USER/REPO or USER/REPO:QUANT");
        }
        if quant == Some("") {
            bail!("{text:?}: nothing is after the colon, expected the end of a file's name, or no colon");
        }
        let file = match (inside, file) {
            (Some(_), Some(file)) => bail!("{text:?} names a file already, and {file:?} is another; give one of them"),
            (Some(inside), None) => Some(inside),
            (None, given) => given.map(str::to_owned),
        };
        if let Some(bad) = file.as_deref().filter(|f| !is_safe_path(f)) {
            bail!("{bad:?} is no file of a repository, expected its path there, like folder/name.gguf");
        }
        Ok(ModelName { repo: repo.to_owned(), quant: quant.filter(|_| file.is_none()).map(str::to_owned), file })
    }
}

impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.file, &self.quant) {
            (Some(file), _) => write!(f, "{}, file {file}", self.repo),
            (None, Some(quant)) => write!(f, "{}:{quant}", self.repo),
            (None, None) => f.write_str(&self.repo),
        }
    }
}

/// The repository and the file of an address without its site:
/// `USER/REPO[/(blob|resolve|tree)/REVISION[/FILE]]`.
fn split_address(rest: &str, whole: &str) -> Result<(String, Option<String>)> {
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let mut parts = rest.splitn(5, '/');
    let mut next = || parts.next().filter(|p| !p.is_empty());
    let repo = format!("{}/{}", next().unwrap_or_default(), next().unwrap_or_default());
    match (next(), next(), next()) {
        (None, ..) => Ok((repo, None)),
        (Some("tree"), None | Some("main"), None) => Ok((repo, None)),
        (Some("blob" | "resolve"), Some("main"), Some(file)) => {
            let file = percent_encoding::percent_decode_str(file).decode_utf8_lossy().into_owned();
            Ok((repo, Some(file)))
        }
        (Some("blob" | "resolve" | "tree"), Some(revision), _) if revision != "main" => {
            bail!("{whole:?} is of the revision {revision:?}; only main can be fetched: give USER/REPO")
        }
        _ => bail!("{whole:?} is no address of a model: give USER/REPO"),
    }
}

/// Whether this names a repository: two words of letters, digits, `_`, and single `.` and `-`
/// between them.
pub(super) fn is_repo(id: &str) -> bool {
    let word = |w: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '_';
        !w.is_empty()
            && w.chars().all(|c| inner(c) || c == '.' || c == '-')
            && w.starts_with(inner)
            && w.ends_with(inner)
            && !["..", "--", ".-", "-."].iter().any(|pair| w.contains(pair))
    };
    id.len() <= 200 && id.split_once('/').is_some_and(|(user, repo)| word(user) && word(repo))
}

/// Whether this path of a repository stays below the folder that it is appended to, on every
/// system.
pub(super) fn is_safe_path(path: &str) -> bool {
    let fine = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    let odd = |c: char| c.is_control() || c == '\\' || c == ':';
    path.len() <= 1024 && !path.contains(odd) && path.split('/').all(fine)
}

/// Whether this is a number of `digits` hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A path as it is written in an address.
pub(super) fn encoded(path: &str) -> String {
    utf8_percent_encode(path, PLAIN).to_string()
}

/// Text of a server for a message: one line, no control characters, at most 200 characters.
pub(super) fn quoted(text: &str) -> String {
    let mut line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    if text.trim().chars().count() > 200 {
        line.push_str("..");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> (String, Option<String>, Option<String>) {
        let n = ModelName::parse(text, None).unwrap();
        (n.repo, n.quant, n.file)
    }

    #[test]
    fn a_name_is_a_repository_with_or_without_a_format_or_a_pasted_address() {
        let s = |t: &str| Some(t.to_owned());
        assert_eq!(name("a/B-c_1.5"), ("a/B-c_1.5".into(), None, None));
        assert_eq!(name("a/b:Q4_K_M"), ("a/b".into(), s("Q4_K_M"), None));
        assert_eq!(name("https://huggingface.co/a/b"), ("a/b".into(), None, None));
        assert_eq!(name("https://huggingface.co/a/b/tree/main"), ("a/b".into(), None, None));
        assert_eq!(name("hf.co/a/b:F16"), ("a/b".into(), s("F16"), None));
        let file = "https://huggingface.co/a/b/blob/main/x/m%2B1-Q8_0.gguf?download=true";
        assert_eq!(name(file), ("a/b".into(), None, s("x/m+1-Q8_0.gguf")));
        for bad in ["", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/b--c", "a/b:", "a/b c", "-a/b", "https://x.y/a/b"]
        {
            assert!(ModelName::parse(bad, None).is_err(), "{bad}");
        }
        assert!(ModelName::parse("https://huggingface.co/a/b/blob/other/m.gguf", None).is_err());
        assert!(ModelName::parse("a/b", Some("../m.gguf")).is_err());
    }

    #[test]
    fn no_path_of_a_server_leaves_the_folder_that_it_is_appended_to() {
        for fine in ["m.gguf", "a/b/m.gguf", "a b [x]+#%.gguf", "..m.gguf"] {
            assert!(is_safe_path(fine), "{fine}");
        }
        for bad in ["", "/m", "../m", "a/../m", "a//m", "a/.", "a\\..\\m", "C:m", "a\nb", "a/\u{1b}[0m", "m/"] {
            assert!(!is_safe_path(bad), "{bad:?}");
        }
        assert_eq!(encoded("x y/[a]+b#c%.gguf"), "x%20y/%5Ba%5D%2Bb%23c%25.gguf");
    }
}
