//! The cache of models on disk, in the layout that huggingface_hub and llama.cpp share.
//!
//! ```text
//! CACHE/models--USER--REPO/refs/main                      the commit, 40 hexadecimal digits
//!                          snapshots/COMMIT/PATH          a relative link to a blob, or the file itself
//!                          blobs/HASH                     the contents, named by their hash
//!                          blobs/HASH.tandem              what is being fetched, with HASH.tandem.json next to it
//! CACHE/.locks/models--USER--REPO/HASH.lock               locked (flock) while a process fetches that blob
//! ```
//!
//! CACHE is the first that is set of `LLAMA_CACHE`, `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`,
//! `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`, and `~/.cache/huggingface/hub`. Where
//! LLAMA_CACHE is set, models are also looked for in the place that would count without it. What
//! other programs wrote is never changed: their unfinished files have other names (`.incomplete`,
//! `.downloadInProgress`).

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::choose::HubFile;
use super::names::{is_hex, is_repo, is_safe_path};

/// How deep folders of a snapshot are looked into.
const DEEPEST: usize = 6;

/// The end of the name of what is being fetched.
pub(super) const UNFINISHED: &str = ".tandem";

/// The folders that models are kept in.
#[derive(Debug, Clone)]
pub struct HubCache {
    /// Where models are written, then where else they are looked for.
    roots: Vec<PathBuf>,
}

/// What a cache has of a repository: one commit's files.
#[derive(Debug, Clone)]
pub struct CachedRepo {
    /// `USER/REPO`.
    pub repo: String,
    /// `models--USER--REPO`.
    pub dir: PathBuf,
    /// The folder of the commit's files.
    pub snapshot: PathBuf,
    /// The files that are there, whole; their hashes are not known.
    pub files: Vec<HubFile>,
}

impl HubCache {
    /// The cache in this folder.
    pub fn at(root: &Path) -> HubCache {
        HubCache { roots: vec![root.to_owned()] }
    }

    /// The cache that the environment names; `var` returns a variable's value.
    ///
    /// # Errors
    /// If no variable names one and there is no HOME.
    pub fn of(var: &dyn Fn(&str) -> Option<OsString>) -> Result<HubCache> {
        let set = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let hub = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(set("HF_HOME")?.join("hub")))
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join("huggingface/hub")))
            .or_else(|| Some(set("HOME").or_else(|| set("USERPROFILE"))?.join(".cache/huggingface/hub")));
        let mut roots: Vec<PathBuf> = set("LLAMA_CACHE").into_iter().chain(hub).collect();
        roots.dedup();
        if roots.is_empty() {
            return Err(anyhow!("no folder for models: set HF_HOME or HOME"));
        }
        Ok(HubCache { roots })
    }

    /// The folder that models are written to.
    pub fn root(&self) -> &Path {
        &self.roots[0]
    }

    /// The folder of a repository in the cache that is written to.
    pub(super) fn repo_dir(&self, repo: &str) -> PathBuf {
        self.root().join(folder_of(repo))
    }

    /// What is cached of a repository: for each place that has some of it the commit of `main`,
    /// then others.
    pub fn cached(&self, repo: &str) -> Vec<CachedRepo> {
        self.roots.iter().flat_map(|root| read_repo(repo, &root.join(folder_of(repo)))).collect()
    }

    /// All commits of all repositories that are cached, also such of which no file is whole.
    pub fn repos(&self) -> Vec<CachedRepo> {
        let mut repos: Vec<CachedRepo> = Vec::new();
        for entry in self.roots.iter().flat_map(fs::read_dir).flatten().flatten() {
            let name = entry.file_name();
            let Some(repo) = name.to_str().and_then(repo_of) else { continue };
            let whole = read_repo(&repo, &entry.path());
            let unfinished = if whole.is_empty() { unfinished_only(&repo, &entry.path()) } else { None };
            repos.extend(whole.into_iter().chain(unfinished));
        }
        repos.sort_by(|a, b| a.repo.cmp(&b.repo)); // stable: a repository's commits stay in order
        repos
    }

    /// Writes which commit `main` is: whole or not at all.
    pub(super) fn write_ref(&self, repo: &str, commit: &str) -> Result<()> {
        let dir = self.repo_dir(repo).join("refs");
        let path = dir.join("main");
        if fs::read_to_string(&path).is_ok_and(|old| old.trim() == commit) {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            fs::create_dir_all(&dir)?;
            let mut file = tempfile::NamedTempFile::new_in(&dir)?;
            io::Write::write_all(&mut file, commit.as_bytes())?;
            readable_by_all(file.as_file());
            file.persist(&path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Links a blob to its path in the snapshot of a commit, and returns that path. Where there are
    /// no links, the blob moves there. A file that is there already stays.
    pub(super) fn link(&self, repo: &str, commit: &str, file: &HubFile) -> Result<PathBuf> {
        let dir = self.repo_dir(repo);
        let at = dir.join("snapshots").join(commit).join(&file.path);
        if at.metadata().is_ok_and(|m| m.is_file() && m.len() == file.size) {
            return Ok(at);
        }
        let up = "../".repeat(2 + file.path.matches('/').count());
        let link = || -> io::Result<()> {
            fs::create_dir_all(at.parent().expect("a path in a folder"))?;
            if at.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
                fs::remove_file(&at)?; // it leads nowhere, or to an older file
            }
            let blob = dir.join("blobs").join(&file.hash);
            match symlink(format!("{up}blobs/{}", file.hash).as_ref(), &at) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => fs::rename(&blob, &at),
                other => other,
            }
        };
        link().with_context(|| format!("cannot write {}", at.display()))?;
        Ok(at)
    }

    /// Locks a blob against other processes that fetch it; None if another one has it. On a file
    /// system without locks the result holds no lock.
    pub(super) fn lock(&self, repo: &str, hash: &str) -> Result<Option<BlobLock>> {
        let dir = self.root().join(".locks").join(folder_of(repo));
        let path = dir.join(format!("{hash}.lock"));
        let open = || {
            fs::create_dir_all(&dir)?;
            File::options().create(true).append(true).open(&path)
        };
        let file = open().with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(BlobLock(Some(file)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            // Some network drives have no locks: the caller writes to a file of its own then.
            Err(TryLockError::Error(_)) => Ok(Some(BlobLock(None))),
        }
    }
}

/// A blob's lock, released when dropped.
#[derive(Debug)]
pub(super) struct BlobLock(Option<File>);

impl BlobLock {
    /// Whether other processes are kept away.
    pub(super) fn holds(&self) -> bool {
        self.0.is_some()
    }
}

/// Bytes free for this user on the disk of a folder, which need not exist yet; None where the
/// system does not say.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let there = dir.ancestors().find(|d| d.exists())?;
    #[cfg(unix)]
    {
        let about = rustix::fs::statvfs(if there.as_os_str().is_empty() { Path::new(".") } else { there }).ok()?;
        about.f_bavail.checked_mul(about.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = there;
        None
    }
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(to, at)
}

/// Gives a temporary file, which is private, the permissions of other files in a cache that several
/// users may share.
pub(super) fn readable_by_all(file: &File) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = file.set_permissions(fs::Permissions::from_mode(0o644));
    }
    #[cfg(not(unix))]
    let _ = file;
}

fn folder_of(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

fn repo_of(folder: &str) -> Option<String> {
    let repo = folder.strip_prefix("models--")?.replace("--", "/");
    is_repo(&repo).then_some(repo)
}

/// The files of each snapshot of a repository that has some, that of `main` first.
fn read_repo(repo: &str, dir: &Path) -> Vec<CachedRepo> {
    let snapshot = |commit: String| {
        let snapshot = dir.join("snapshots").join(commit);
        let mut files = Vec::new();
        collect(&snapshot, "", 0, &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let dir = dir.to_owned();
        (!files.is_empty()).then(|| CachedRepo { repo: repo.to_owned(), dir, snapshot, files })
    };
    commits_of(dir).into_iter().filter_map(snapshot).collect()
}

/// A repository of which no file is whole yet.
fn unfinished_only(repo: &str, dir: &Path) -> Option<CachedRepo> {
    let some = fs::read_dir(dir.join("blobs")).ok()?.flatten().next().is_some();
    some.then(|| CachedRepo {
        repo: repo.to_owned(),
        dir: dir.to_owned(),
        snapshot: dir.join("snapshots"),
        files: Vec::new(),
    })
}

/// The commits of a repository: that of `main`, those of other branches, then what else has a
/// snapshot.
fn commits_of(dir: &Path) -> Vec<String> {
    let names = |dir: PathBuf| {
        let mut names: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        names.sort();
        names
    };
    let refs = dir.join("refs");
    let branches = [refs.join("main")].into_iter().chain(names(refs));
    let named = branches.filter_map(|path| fs::read_to_string(path).ok().map(|s| s.trim().to_owned()));
    let snapshots = names(dir.join("snapshots")).into_iter();
    let others = snapshots.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
    let mut commits: Vec<String> = Vec::new();
    for commit in named.chain(others).filter(|c| is_hex(c, 40)) {
        if !commits.contains(&commit) {
            commits.push(commit);
        }
    }
    commits
}

/// The whole files below a folder; a link that leads nowhere is none.
fn collect(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<HubFile>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(path) = name.to_str().map(|n| format!("{prefix}{n}")).filter(|p| is_safe_path(p)) else { continue };
        match fs::metadata(entry.path()) {
            Ok(about) if about.is_file() => files.push(HubFile { path, size: about.len(), hash: String::new() }),
            Ok(about) if about.is_dir() && depth < DEEPEST => {
                collect(&entry.path(), &format!("{path}/"), depth + 1, files);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_of(vars: &[(&str, &str)]) -> Vec<String> {
        let var = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| OsString::from(v.1));
        let roots = HubCache::of(&var).map(|c| c.roots).unwrap_or_default();
        roots.iter().map(|r| r.display().to_string()).collect()
    }

    #[test]
    fn the_cache_is_where_the_other_programs_have_it() {
        let home = ("HOME", "/h");
        assert_eq!(cache_of(&[home]), ["/h/.cache/huggingface/hub"]);
        assert_eq!(cache_of(&[home, ("XDG_CACHE_HOME", "/x")]), ["/x/huggingface/hub"]);
        assert_eq!(cache_of(&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")]), ["/f/hub"]);
        assert_eq!(cache_of(&[home, ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), ["/c"]);
        assert_eq!(cache_of(&[home, ("HF_HUB_CACHE", "")]), ["/h/.cache/huggingface/hub"]);
        assert_eq!(cache_of(&[home, ("LLAMA_CACHE", "/l")]), ["/l", "/h/.cache/huggingface/hub"]);
        assert!(cache_of(&[]).is_empty());
    }

    #[test]
    fn a_link_is_relative_and_is_made_again_where_it_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let cache = HubCache::at(dir.path());
        let (hash, commit) = ("a".repeat(64), "c".repeat(40));
        let file = HubFile { path: "x/y/m.gguf".into(), size: 3, hash: hash.clone() };
        let repo = dir.path().join("models--a--b");
        fs::create_dir_all(repo.join("blobs")).unwrap();
        fs::write(repo.join("blobs").join(&hash), "abc").unwrap();
        fs::create_dir_all(repo.join("snapshots").join(&commit).join("x/y")).unwrap();
        symlink("../nowhere".as_ref(), &repo.join("snapshots").join(&commit).join("x/y/m.gguf")).unwrap();
        let at = cache.link("a/b", &commit, &file).unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), "abc");
        assert_eq!(fs::read_link(&at).unwrap(), Path::new(&format!("../../../../blobs/{hash}")));
        cache.write_ref("a/b", &commit).unwrap();
        assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), commit);
        let cached = cache.cached("a/b");
        assert_eq!((cached.len(), &cached[0].files[0].path), (1, &file.path));
        fs::remove_file(repo.join("blobs").join(&hash)).unwrap();
        assert!(cache.cached("a/b").is_empty(), "a link that leads nowhere is no file");
    }

    #[test]
    fn a_lock_keeps_others_away_as_long_as_it_is_held_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let cache = HubCache::at(dir.path());
        let lock = cache.lock("a/b", "h").unwrap().unwrap();
        assert!(cache.lock("a/b", "h").unwrap().is_none());
        drop(lock);
        assert!(cache.lock("a/b", "h").unwrap().is_some(), "the file that is left behind locks nothing");
    }
}
