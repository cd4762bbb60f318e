//! The headers of a model that is not fetched: what `explain` needs, by a few range requests.
//!
//! The header of each file is read from the beginning until it parses, and written to a file of the
//! full length without the weights, which takes up the header's bytes only: what opens files opens
//! these too.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};

use super::api::locate;
use super::events::FetchStopped;
use super::http::{Client, Trouble, seconds};
use super::ranges::{Answer, kind_of};
use super::transfer::Source;
use crate::gguf::parse_beginning;

/// Bytes of the first request: enough for all files but the first, which has the vocabulary.
const FIRST: u64 = 512 << 10;
/// How much more each further request makes it.
const GROWTH: u64 = 2;

/// Writes the headers of these files into `dir`; returns how many bytes were fetched.
///
/// # Errors
/// If a header cannot be fetched or is malformed, or `stop` is raised ([`FetchStopped`]).
pub(super) fn fetch(
    client: &Client,
    sources: &[Source],
    dir: &Path,
    stop: &AtomicBool,
    note: &(dyn Fn(String) + Sync),
) -> Result<u64> {
    let (next, failed, sum) = (AtomicUsize::new(0), Mutex::new(None), AtomicUsize::new(0));
    let work = || {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::SeqCst)) {
            match one(client, source, dir, stop, note) {
                Ok(n) => {
                    sum.fetch_add(n, Ordering::SeqCst);
                }
                Err(e) => {
                    failed.lock().expect("no thread panics here").get_or_insert(e);
                    next.store(sources.len(), Ordering::SeqCst);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..client.limits.connections.min(sources.len()) {
            // Where the system gives no thread, those that there are do all.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    match failed.into_inner().expect("no thread panics here") {
        Some(e) => Err(e),
        None => Ok(sum.into_inner() as u64),
    }
}

/// Fetches and writes one header; returns its bytes.
fn one(client: &Client, source: &Source, dir: &Path, stop: &AtomicBool, note: &dyn Fn(String)) -> Result<usize> {
    let Source { repo, commit, blob } = source;
    let located = client.patiently(stop, note, || locate(client, repo, commit, blob))?;
    let name = format!("{repo}/{}", blob.path);
    let mut bytes = Vec::new();
    let mut want = FIRST.min(blob.size);
    while parse_beginning(&bytes, blob.size, Path::new(&name))?.is_none() {
        while (bytes.len() as u64) < want {
            client.patiently(stop, note, || more(client, source, &located.url, &mut bytes, want))?;
            if stop.load(Ordering::SeqCst) {
                return Err(FetchStopped.into());
            }
        }
        want = (want * GROWTH).min(blob.size);
    }
    let path = path_in(dir, source);
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(path.parent().expect("a path in a folder"))?;
        let mut file = File::create(&path)?;
        file.write_all(&bytes)?;
        file.set_len(blob.size)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(bytes.len())
}

/// Where the header of a file is in a folder of headers.
pub(super) fn path_in(dir: &Path, source: &Source) -> PathBuf {
    dir.join(&source.repo).join(&source.blob.path)
}

/// Reads on until `want` bytes of the beginning are there, or the line breaks after it brought some.
fn more(client: &Client, source: &Source, url: &str, bytes: &mut Vec<u8>, want: u64) -> Result<(), Trouble> {
    let from = bytes.len() as u64;
    let mut response = client.ask(false, url, Some((from, want)), true)?;
    match kind_of(client, url, &response, (from, want, source.blob.size))? {
        Answer::Part => {}
        Answer::Whole => bytes.clear(),
        Answer::Refusal => {
            return Err(client.refused(url, response, &format!("{}/{}", source.repo, source.blob.path)));
        }
    }
    let rest = want - bytes.len() as u64;
    let read = response.body_mut().as_reader().take(rest).read_to_end(bytes);
    match read {
        _ if bytes.len() as u64 > from => Ok(()),
        Ok(_) => Err(Trouble::Again("the line broke".into(), None)),
        Err(e) => {
            let silence = seconds(client.limits.silence);
            Err(Trouble::Again(format!("the line broke or was silent for {silence}: {e}"), None))
        }
    }
}
