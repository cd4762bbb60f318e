//! Models from a hub: huggingface.co, or a mirror that answers like it.
//!
//! [`Hub::cached`] finds what is on disk, without a request. [`Hub::plan`] asks the hub which files
//! a model has, in two requests. [`Hub::fetch`] brings those that are not there, [`Hub::headers`]
//! only their headers.
//!
//! | file | what |
//! |---|---|
//! | `names`, `choose` | names that are checked before they are used; which files are the model that was asked for |
//! | `cache`, `partial` | the cache's folders and links; a file on the way, and the record that outlives the process |
//! | `events` | what a fetch tells its caller, and how patient it is |
//! | `http`, `api`, `ranges` | requests, and what each answer means; what a hub says about a repository |
//! | `transfer`, `digest`, `headers` | a file by ranges over several connections; its hash; headers alone |
//!
//! The protocol is huggingface_hub's (2026-08-20), the choice of files llama.cpp's
//! `common/download.cpp` (b11434) where that is not ambiguous. hf-hub has no resuming, no ranges,
//! and checks neither length nor hash, so the client is our own.

mod api;
mod cache;
mod choose;
mod digest;
mod events;
mod headers;
mod http;
mod names;
mod partial;
mod ranges;
mod transfer;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use cache::{CachedRepo, HubCache};
pub use choose::{HubChoice, HubFile, HubModel};
pub use events::{FetchEvent, FetchStopped, HubLimits, HubUnreachable};
pub use names::ModelName;
pub use partial::UnfinishedFile;

use http::{Client, Trouble};
use partial::Unfinished;
use transfer::Source;

/// The hub that is asked where no other one is named.
pub const ENDPOINT: &str = "https://huggingface.co";

/// Bytes that are left free on the disk after a fetch.
const SPARE: u64 = 64 << 20;

/// A hub, and the cache of what came from it.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The address of the hub.
    pub endpoint: String,
    /// A token that gives access to gated and private repositories.
    pub token: Option<String>,
    /// The cache on disk.
    pub cache: HubCache,
    /// Nothing is asked of any server.
    pub offline: bool,
    /// How servers are talked to.
    pub limits: HubLimits,
}

/// What is to be fetched.
#[derive(Debug, Clone)]
pub struct FetchPlan {
    /// `USER/REPO`.
    pub repo: String,
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// The model, and why this one.
    pub choice: HubChoice,
    /// Bytes of files that are whole in the cache.
    pub cached_bytes: u64,
    /// Bytes of files that an earlier fetch began.
    pub begun_bytes: u64,
}

/// A model in the cache.
#[derive(Debug, Clone)]
pub struct CachedModel {
    /// `USER/REPO`.
    pub repo: String,
    /// The model; hashes are not known.
    pub model: HubModel,
    /// Its first file.
    pub path: PathBuf,
}

impl Hub {
    /// The hub, cache and token that the environment names, as `var` returns its variables:
    /// `MODEL_ENDPOINT` or `HF_ENDPOINT`; `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, or the file
    /// `HF_TOKEN_PATH` or `HF_HOME/token`; `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`.
    ///
    /// # Errors
    /// If there is no folder for the cache, or a variable is not text.
    pub fn of(var: &dyn Fn(&str) -> Option<OsString>) -> Result<Hub> {
        let text = |name: &str| -> Result<Option<String>> {
            let Some(value) = var(name).filter(|v| !v.is_empty()) else { return Ok(None) };
            value.into_string().map(Some).map_err(|_| anyhow::anyhow!("{name} is not text"))
        };
        let endpoint = match text("MODEL_ENDPOINT")? {
            None => text("HF_ENDPOINT")?,
            some => some,
        };
        let token = match (text("HF_TOKEN")?, text("HUGGING_FACE_HUB_TOKEN")?) {
            (Some(token), _) | (None, Some(token)) => Some(token),
            (None, None) => token_file(var).and_then(|path| std::fs::read_to_string(path).ok()),
        };
        let on = |v: String| matches!(v.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true");
        let offline = text("HF_HUB_OFFLINE")?.is_some_and(on) || text("TRANSFORMERS_OFFLINE")?.is_some_and(on);
        Ok(Hub {
            endpoint: endpoint.unwrap_or_else(|| ENDPOINT.to_owned()),
            token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
            cache: HubCache::of(var)?,
            offline,
            limits: HubLimits::default(),
        })
    }

    /// The model of this name that is whole in the cache; nothing is asked of the hub. `exact`:
    /// only one that the hub would surely choose too, whatever else it has; else the best of what
    /// is there.
    pub fn cached(&self, name: &ModelName, usual: &[&str], exact: bool) -> Option<CachedModel> {
        let found = |repo: CachedRepo| {
            let model = choose::choose(&repo.files, name, usual).ok()?.model;
            let sure = match &name.quant {
                Some(quant) => model.quant().eq_ignore_ascii_case(quant),
                None => true,
            };
            let path = repo.snapshot.join(&model.files.first()?.path);
            (sure || !exact).then_some(CachedModel { repo: repo.repo, model, path })
        };
        self.cache.cached(&name.repo).into_iter().find_map(found)
    }

    /// Everything that is in the cache: models, whole or not, and what is on the way.
    pub fn list(&self) -> Vec<CachedModel> {
        let mut list: Vec<CachedModel> = Vec::new();
        for repo in self.cache.repos() {
            for model in choose::models(&repo.files, true) {
                let path = repo.snapshot.join(&model.files[0].path);
                if list.iter().all(|m| m.repo != repo.repo || m.model.stem != model.stem) {
                    list.push(CachedModel { repo: repo.repo.clone(), model, path });
                }
            }
        }
        list
    }

    /// The files that are being fetched or were left unfinished: ours, and the paths and lengths of
    /// other programs'.
    pub fn unfinished(&self) -> (Vec<UnfinishedFile>, Vec<(PathBuf, u64)>) {
        let mut dirs: Vec<PathBuf> = self.cache.repos().into_iter().map(|r| r.dir).collect();
        dirs.dedup();
        let (mut own, mut foreign) = (Vec::new(), Vec::new());
        for dir in dirs {
            let (a, b) = partial::unfinished_in(&dir.join("blobs"));
            own.extend(a);
            foreign.extend(b);
        }
        (own, foreign)
    }

    fn client(&self) -> Result<Client> {
        Client::new(&self.endpoint, self.token.as_deref(), &self.limits)
    }

    /// Asks the hub for the files of a model.
    ///
    /// # Errors
    /// [`HubUnreachable`] if the hub is not to be asked or does not answer; if it refuses, has no
    /// such model or several ([`ModelName`]); [`FetchStopped`] if `stop` is raised.
    pub fn plan(
        &self,
        name: &ModelName,
        usual: &[&str],
        stop: &AtomicBool,
        report: &dyn Fn(FetchEvent),
    ) -> Result<FetchPlan> {
        if self.offline {
            return Err(HubUnreachable("the hub is not asked (--offline, HF_HUB_OFFLINE)".into()).into());
        }
        let client = self.client()?;
        let note = |text| report(FetchEvent::Note(text));
        let unreachable = |why| anyhow::Error::from(HubUnreachable(format!("{why} ({})", self.endpoint)));
        let mut busy = false;
        let listing = client.patiently(stop, &note, || match api::list(&client, &name.repo) {
            // A machine that is offline is told so at once.
            Err(Trouble::Unreachable(why)) => Err(Trouble::Fatal(unreachable(why))),
            listing => {
                busy = matches!(&listing, Err(Trouble::Again(..)));
                listing
            }
        });
        let listing = match listing {
            Err(e) if busy && !e.is::<FetchStopped>() => return Err(unreachable(format!("{e:#}"))),
            other => other?,
        };
        let mut choice = choose::choose(&listing.files, name, usual).with_context(|| name.repo.clone())?;
        for file in choice.model.files.iter_mut().filter(|f| f.hash.is_empty()) {
            let located = client.patiently(stop, &note, || api::locate(&client, &name.repo, &listing.commit, file))?;
            let Some(hash) = located.hash else {
                bail!("{}/{}: {} gives no hash of it, so it cannot be checked", name.repo, file.path, self.endpoint)
            };
            file.hash = hash;
        }
        let mut plan =
            FetchPlan { repo: name.repo.clone(), commit: listing.commit, choice, cached_bytes: 0, begun_bytes: 0 };
        for file in &plan.choice.model.files {
            match self.is_there(&plan, file) {
                true => plan.cached_bytes += file.size,
                false => plan.begun_bytes += self.part(&plan.repo, file, false).bytes(),
            }
        }
        Ok(plan)
    }

    /// Fetches what is missing of a model; returns the path of its first file in the cache. Every
    /// file is opened by its final name only after its length and hash were checked.
    ///
    /// # Errors
    /// If the disk has too little space (nothing is fetched then), a server refuses, what it sends
    /// is wrong, or `stop` is raised ([`FetchStopped`]). What was fetched stays, and the next fetch
    /// goes on from there.
    pub fn fetch(&self, plan: &FetchPlan, stop: &AtomicBool, report: &dyn Fn(FetchEvent)) -> Result<PathBuf> {
        let files = &plan.choice.model.files;
        let missing = files.iter().map(|f| f.size).sum::<u64>() - plan.cached_bytes - plan.begun_bytes;
        if missing > 0 {
            let free = cache::free_bytes(&self.cache.repo_dir(&plan.repo));
            enough(missing, free, self.cache.root())?;
        }
        let client = Arc::new(self.client()?);
        let mut before = 0;
        for file in files {
            let at = |event: FetchEvent| match event {
                FetchEvent::At(bytes) => report(FetchEvent::At(before + bytes)),
                note => report(note),
            };
            if !self.is_there(plan, file) {
                self.fetch_file(&client, plan, file, stop, &at)?;
            }
            before += file.size;
            report(FetchEvent::At(before));
        }
        let mut first = None;
        for file in files {
            let path = self.cache.link(&plan.repo, &plan.commit, file)?;
            first.get_or_insert(path);
        }
        self.cache.write_ref(&plan.repo, &plan.commit)?;
        first.context("a model has at least one file")
    }

    /// Fetches one file, unless another process does meanwhile.
    fn fetch_file(
        &self,
        client: &Arc<Client>,
        plan: &FetchPlan,
        file: &HubFile,
        stop: &AtomicBool,
        report: &dyn Fn(FetchEvent),
    ) -> Result<()> {
        let mut said = false;
        let lock = loop {
            if let Some(lock) = self.cache.lock(&plan.repo, &file.hash)? {
                break lock;
            }
            if !std::mem::replace(&mut said, true) {
                report(FetchEvent::Note(format!("{}: another process fetches it; waiting for that", file.path)));
            }
            if stop.load(Ordering::SeqCst) {
                return Err(FetchStopped.into());
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        if self.is_there(plan, file) {
            return Ok(());
        }
        let part = self.part(&plan.repo, file, !lock.holds());
        let source = Source { repo: plan.repo.clone(), commit: plan.commit.clone(), blob: file.clone() };
        transfer::fetch(client, &source, part, stop, report)
    }

    /// Fetches the headers of a model's files alone, into files in `dir` that are as long as the
    /// real ones and have no weights; returns the path of the first, and how many bytes were
    /// fetched.
    ///
    /// # Errors
    /// If a header cannot be fetched or is malformed, or `stop` is raised ([`FetchStopped`]).
    pub fn headers(
        &self,
        plan: &FetchPlan,
        dir: &Path,
        stop: &AtomicBool,
        note: &(dyn Fn(String) + Sync),
    ) -> Result<(PathBuf, u64)> {
        let source =
            |blob: &HubFile| Source { repo: plan.repo.clone(), commit: plan.commit.clone(), blob: blob.clone() };
        let sources: Vec<Source> = plan.choice.model.files.iter().map(source).collect();
        let bytes = headers::fetch(&self.client()?, &sources, dir, stop, note)?;
        Ok((headers::path_in(dir, &sources[0]), bytes))
    }

    /// Whether a file is whole in the cache, as a blob or in the snapshot.
    fn is_there(&self, plan: &FetchPlan, file: &HubFile) -> bool {
        let dir = self.cache.repo_dir(&plan.repo);
        let whole = |path: PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.len() == file.size);
        whole(dir.join("blobs").join(&file.hash)) || whole(dir.join("snapshots").join(&plan.commit).join(&file.path))
    }

    fn part(&self, repo: &str, file: &HubFile, private: bool) -> Unfinished {
        Unfinished::of(&self.cache.repo_dir(repo).join("blobs"), repo, file, self.limits.range_bytes, private)
    }
}

/// Refuses to fetch what does not fit on the disk.
fn enough(missing: u64, free: Option<u64>, root: &Path) -> Result<()> {
    let gb = |n: u64| n as f64 / 1e9;
    match free {
        Some(free) if free < missing.saturating_add(SPARE) => bail!(
            "the disk of {} has {:.1} GB free, {:.1} GB are needed: nothing was fetched; free some, or set HF_HOME to \
             a folder on another disk",
            root.display(),
            gb(free),
            gb(missing.saturating_add(SPARE))
        ),
        _ => Ok(()),
    }
}

/// The file with the token that `hf auth login` writes.
fn token_file(var: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME").or_else(|| set("USERPROFILE"))?.join(".cache")));
        set("HF_HOME").or_else(|| Some(cache?.join("huggingface")))
    };
    set("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_known_before_the_first_byte() {
        let root = Path::new("/cache");
        assert!(enough(1 << 30, Some((1 << 30) + SPARE), root).is_ok());
        assert!(enough(1 << 30, None, root).is_ok());
        let said = enough(130_000_000_000, Some(100_000_000_000), root).unwrap_err().to_string();
        assert!(said.contains("/cache has 100.0 GB free, 130.1 GB are needed"), "{said}");
        assert!(enough(u64::MAX, Some(u64::MAX - 1), root).is_err());
    }

    #[test]
    fn the_environment_names_hub_token_and_cache_as_for_other_programs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        let hub = |vars: &[(&str, &str)]| {
            let var = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| OsString::from(v.1));
            Hub::of(&var).unwrap()
        };
        let plain = hub(&[("HOME", "/nowhere")]);
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), (ENDPOINT, None, false));
        assert_eq!(hub(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
        let set = hub(&[
            ("HF_HOME", home),
            ("HF_TOKEN", " hf_a "),
            ("HF_ENDPOINT", "https://m.org"),
            ("HF_HUB_OFFLINE", "Yes"),
        ]);
        assert_eq!((set.endpoint.as_str(), set.token.as_deref(), set.offline), ("https://m.org", Some("hf_a"), true));
    }
}
