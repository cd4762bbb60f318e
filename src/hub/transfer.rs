//! The transfer of one blob: ranges of it over several connections, each continued where it broke,
//! hashed while it comes.
//!
//! Always by bounded ranges: single answers of more than some hundred GB are refused, and a broken
//! one costs little. A server that ignores ranges is read by one connection from the beginning,
//! each time from the start. Threads are detached, not joined: one that waits for a silent server holds up
//! neither Ctrl-C nor an error.

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::api::locate;
use super::choose::HubFile;
use super::digest::{FrontHash, write_at};
use super::events::{FetchEvent, FetchStopped};
use super::http::{Client, Trouble};
use super::partial::Unfinished;
use super::ranges::{Answer, kind_of};

/// Bytes read at once from a connection.
const READ: usize = 256 << 10;
/// How often progress is brought to the disk.
const KEEP: Duration = Duration::from_secs(5);
/// How often the caller is told of progress, and how soon a raised `stop` is seen.
const TELL: Duration = Duration::from_millis(100);

/// What a transfer brings.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) repo: String,
    pub(super) commit: String,
    pub(super) blob: HubFile,
}

impl Source {
    /// The file's name in messages.
    fn name(&self) -> String {
        format!("{}/{}", self.repo, self.blob.path)
    }
}

/// A transfer, shared by its threads.
struct Transfer {
    client: Arc<Client>,
    source: Source,
    file: File,
    shared: Mutex<TransferState>,
    /// Told when bytes arrived or something ended.
    wake: Condvar,
    /// The address of the bytes, and how often it was asked for.
    address: Mutex<(String, usize)>,
    /// Ends the threads.
    stop: AtomicBool,
}

struct TransferState {
    part: Unfinished,
    /// The whole blob comes as one answer, since the server ignores ranges.
    whole: bool,
    taken: Vec<bool>,
    ended: Option<End>,
    notes: Vec<String>,
}

/// How a transfer ended.
enum End {
    /// All bytes are there; their hash.
    Whole(String),
    NoRanges,
    Failed(anyhow::Error),
}

/// Fetches a blob into `part` and gives it its final name; tells `report` how many of its bytes are
/// there.
///
/// # Errors
/// If a server refuses it, a disk does, the hash is wrong twice, or `stop` is raised
/// ([`FetchStopped`]). What was fetched stays for the next time, except after a wrong hash.
pub(super) fn fetch(
    client: &Arc<Client>,
    source: &Source,
    mut part: Unfinished,
    stop: &AtomicBool,
    report: &dyn Fn(FetchEvent),
) -> Result<()> {
    let note = |text: String| report(FetchEvent::Note(format!("{}: {text}", source.blob.path)));
    let Source { repo, commit, blob } = source;
    let located = client.patiently(stop, &note, || locate(client, repo, commit, blob))?;
    let (mut whole, mut connections) = (false, client.limits.connections.max(1));
    let mut wrong: Option<String> = None;
    loop {
        let file = part.open()?;
        let (back, end) = run(client, source, (part, whole), (&located.url, file), connections, stop, report)?;
        part = back;
        match end {
            End::NoRanges => {
                note("the server ignores ranges: one connection, and no resuming".into());
                (whole, connections) = (true, 1);
            }
            End::Whole(hash) if hash == source.blob.hash => {
                return part.finish(&part.open()?);
            }
            End::Whole(hash) if wrong.is_none() => {
                note(format!("its hash is {hash}, expected {}: fetched again, by one connection", source.blob.hash));
                (wrong, connections) = (Some(hash), 1);
            }
            End::Whole(hash) => {
                part.remove();
                let first = wrong.unwrap_or_default();
                let seen = if first == hash { hash } else { format!("{first}, then {hash}") };
                bail!(
                    "{}: its hash is {seen}, expected {}; the disk, the memory or {} is at fault",
                    source.name(),
                    source.blob.hash,
                    client.endpoint
                );
            }
            End::Failed(e) => return Err(e),
        }
        part.forget(whole);
    }
}

/// One attempt, from what is there in `part`, by this many connections.
fn run(
    client: &Arc<Client>,
    source: &Source,
    (part, whole): (Unfinished, bool),
    (url, file): (&str, File),
    connections: usize,
    stop: &AtomicBool,
    report: &dyn Fn(FetchEvent),
) -> Result<(Unfinished, End)> {
    let taken = vec![false; part.done.len()];
    let open = (0..taken.len()).filter(|&i| part.done[i] < part.end(i) - part.start(i)).count();
    let state = TransferState { part, whole, taken, ended: None, notes: Vec::new() };
    let transfer = Arc::new(Transfer {
        client: client.clone(),
        source: source.clone(),
        file,
        shared: Mutex::new(state),
        wake: Condvar::new(),
        address: Mutex::new((url.to_owned(), 0)),
        stop: AtomicBool::new(false),
    });
    let start = |name: &str, work: fn(&Transfer)| {
        let transfer = transfer.clone();
        let thread = std::thread::Builder::new().name(name.into());
        let guarded = move || {
            // Nobody joins the thread: a panic that went unseen would be a transfer without end.
            if catch_unwind(AssertUnwindSafe(|| work(&transfer))).is_err() {
                transfer.end(End::Failed(anyhow!("{}: a fault in this program", transfer.source.name())));
            }
        };
        thread.spawn(guarded).context("cannot start a thread").map(|_| ())
    };
    let started = (0..connections.min(open))
        .try_for_each(|_| start("fetch", Transfer::work))
        .and_then(|()| start("hash", Transfer::hash))
        .and_then(|()| start("keep", Transfer::keep));
    let end = started.and_then(|()| transfer.watch(stop, report));
    transfer.stop.store(true, Ordering::SeqCst);
    transfer.wake.notify_all();
    let part = transfer.lock().part.clone();
    // No fsync: after a crash of the machine the hash tells, and Ctrl-C must not wait for a slow
    // disk.
    let saved = part.save(&part.done);
    let end = end?;
    if !matches!(end, End::Whole(_)) {
        saved?;
    }
    Ok((part, end))
}

impl Transfer {
    fn lock(&self) -> MutexGuard<'_, TransferState> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Tells of progress until the transfer ends or is to stop.
    fn watch(&self, stop: &AtomicBool, report: &dyn Fn(FetchEvent)) -> Result<End> {
        let mut told: Vec<(String, Instant)> = Vec::new();
        let (size, mut whole_since, mut said) = (self.source.blob.size, None, false);
        let mut state = self.lock();
        loop {
            let (notes, bytes, end) = (std::mem::take(&mut state.notes), state.part.bytes(), state.ended.take());
            drop(state);
            for note in notes {
                // Eight connections that break together are one message.
                told.retain(|(_, at)| at.elapsed() < KEEP);
                if told.iter().all(|(text, _)| *text != note) {
                    report(FetchEvent::Note(format!("{}: {note}", self.source.blob.path)));
                    told.push((note, Instant::now()));
                }
            }
            report(FetchEvent::At(bytes));
            if bytes == size && !said && whole_since.get_or_insert_with(Instant::now).elapsed() > KEEP {
                let path = &self.source.blob.path;
                report(FetchEvent::Note(format!("{path}: all bytes are here, their hash is being taken")));
                said = true;
            }
            if let Some(end) = end {
                return Ok(end);
            }
            if stop.load(Ordering::SeqCst) {
                return Err(FetchStopped.into());
            }
            state = self.wake.wait_timeout(self.lock(), TELL).unwrap_or_else(PoisonError::into_inner).0;
            if state.ended.is_none() {
                // Wakes come with every read; this often is enough for people.
                drop(state);
                std::thread::sleep(TELL / 4);
                state = self.lock();
            }
        }
    }

    fn end(&self, end: End) {
        let mut state = self.lock();
        // The first reason counts: what follows from it comes later.
        if state.ended.is_none() && !self.stopped() {
            state.ended = Some(end);
        }
        drop(state);
        self.wake.notify_all();
    }

    /// A connection: range after range.
    fn work(&self) {
        while let Some(i) = self.take() {
            if let Err(end) = self.range(i) {
                return self.end(end);
            }
        }
    }

    /// The next range that nobody fetches yet.
    fn take(&self) -> Option<usize> {
        let mut state = self.lock();
        let open = |i: &usize| !state.taken[*i] && state.part.done[*i] < state.part.end(*i) - state.part.start(*i);
        let i = (0..state.taken.len()).find(open).filter(|_| !self.stopped())?;
        state.taken[i] = true;
        Some(i)
    }

    /// Where range `i` goes on, and where it ends.
    fn rest(&self, i: usize) -> (u64, u64) {
        let state = self.lock();
        (state.part.start(i) + state.part.done[i], state.part.end(i))
    }

    /// Fetches the rest of a range, however often the line breaks, as long as some bytes arrive in
    /// between.
    fn range(&self, i: usize) -> Result<(), End> {
        let (mut failures, mut renewed) = (0, false);
        loop {
            let (from, to) = self.rest(i);
            if from == to || self.stopped() {
                return Ok(());
            }
            let (url, version) = self.address.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let trouble = match self.stream(&url, i, from, to) {
                Ok(()) => continue,
                Err(trouble) => trouble,
            };
            if self.rest(i).0 > from {
                (failures, renewed) = (0, false);
            }
            let (why, wait) = match trouble {
                Trouble::NoRanges => return Err(End::NoRanges),
                Trouble::Expired(_) if !renewed => {
                    renewed = true;
                    match self.renew(version) {
                        Ok(()) => continue,
                        Err(Trouble::Again(why, wait)) => (why, wait),
                        Err(Trouble::Unreachable(why)) => (why, None),
                        Err(other) => return Err(End::Failed(other.into())),
                    }
                }
                Trouble::Again(why, wait) => (why, wait),
                Trouble::Unreachable(why) => (why, None),
                other => return Err(End::Failed(other.into())),
            };
            failures += 1;
            let note = |text| self.lock().notes.push(text);
            self.client.pause(failures, &why, wait, &self.stop, &note).map_err(|e| {
                let name = self.source.name();
                End::Failed(e.context(name))
            })?;
        }
    }

    /// Asks for the address again, unless another connection did since.
    fn renew(&self, version: usize) -> Result<(), Trouble> {
        let mut address = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        if address.1 == version {
            let Source { repo, commit, blob } = &self.source;
            *address = (locate(&self.client, repo, commit, blob)?.url, version + 1);
        }
        Ok(())
    }

    /// Reads bytes from and up to (excluding) from one answer, and writes them.
    fn stream(&self, url: &str, i: usize, from: u64, to: u64) -> Result<(), Trouble> {
        let size = self.source.blob.size;
        let whole = self.lock().whole;
        let range = if whole { None } else { Some((from, to)) };
        let mut response = self.client.ask(false, url, range, true)?;
        let length = response.body().content_length();
        let mut at = match kind_of(&self.client, url, &response, (from, to, size))? {
            Answer::Part => from,
            Answer::Whole if from == 0 && to == size => 0,
            Answer::Whole if whole => {
                self.lock().part.done[i] = 0;
                0
            }
            Answer::Whole => return Err(Trouble::NoRanges),
            Answer::Refusal => return Err(self.client.refused(url, response, &self.source.name())),
        };
        let (mut body, mut buffer) = (response.body_mut().as_reader(), vec![0; READ]);
        while at < to {
            let want = (to - at).min(READ as u64) as usize;
            let n = match body.read(&mut buffer[..want]) {
                Ok(0) => return Err(Trouble::Again(format!("the line broke at byte {at} of {size}"), None)),
                Ok(n) => n,
                Err(e) => return Err(self.broken(&e, at)),
            };
            if self.stopped() {
                return Ok(());
            }
            at = self.arrived(i, at, &buffer[..n])?;
        }
        if length == Some(to - from) {
            let _ = body.read(&mut buffer[..1]); // its end, so that the connection is used again
        }
        Ok(())
    }

    /// What it means that a read failed.
    fn broken(&self, e: &std::io::Error, at: u64) -> Trouble {
        let inner = e.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
        let size = self.source.blob.size;
        let why = match matches!(inner, Some(ureq::Error::Timeout(_))) {
            true => format!("no byte came for {}", super::http::seconds(self.client.limits.silence)),
            false => format!("the line broke: {e}"),
        };
        tracing::debug!("{}: {why} at byte {at} of {size}", self.source.blob.path);
        Trouble::Again(why, None)
    }

    /// Writes bytes that arrived for range `i` at the byte `at`; returns where they end.
    fn arrived(&self, i: usize, at: u64, bytes: &[u8]) -> Result<u64, Trouble> {
        if at == 0 && !b"GGUF".starts_with(&bytes[..bytes.len().min(4)]) && self.source.blob.path.ends_with(".gguf") {
            let found = super::names::quoted(&String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
            let name = self.source.name();
            return Err(Trouble::Fatal(anyhow!("{name}: it begins with {found:?}, expected \"GGUF\": no model file")));
        }
        write_at(&self.file, bytes, at).map_err(|e| {
            let state = self.lock();
            let (path, done, size) = (state.part.path.display(), state.part.bytes(), self.source.blob.size);
            Trouble::Fatal(anyhow!("cannot write {path}: {e}; {done} of {size} bytes are there and are kept"))
        })?;
        let mut state = self.lock();
        state.part.done[i] += bytes.len() as u64;
        drop(state);
        self.wake.notify_all();
        Ok(at + bytes.len() as u64)
    }

    /// Follows the front of the bytes and hashes them.
    fn hash(&self) {
        let mut hash = FrontHash::of(&self.source.blob);
        let size = self.source.blob.size;
        loop {
            let state = self.lock();
            // An answer that may begin again from the first byte has no front before its end.
            let front = if state.whole && state.part.bytes() < size { 0 } else { state.part.front() };
            if front <= hash.at() && front < size {
                drop(self.wake.wait_timeout(state, TELL).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(state);
                match hash.advance(&self.file, front) {
                    Err(e) => return self.end(End::Failed(anyhow!("cannot read {}: {e}", self.source.name()))),
                    Ok(false) if front == size => return self.end(End::Whole(hash.finish())),
                    Ok(_) => {}
                }
            }
            if self.stopped() {
                return;
            }
        }
    }

    /// Brings bytes, then the record of them, to the disk from time to time.
    fn keep(&self) {
        loop {
            let since = Instant::now();
            while since.elapsed() < KEEP {
                if self.stopped() {
                    return;
                }
                std::thread::sleep(TELL);
            }
            let done = self.lock().part.done.clone();
            if let Err(e) = self.file.sync_data() {
                return self.end(End::Failed(anyhow!("cannot write {}: {e}", self.source.name())));
            }
            let state = self.lock();
            if state.ended.is_none()
                && !self.stopped()
                && let Err(e) = state.part.save(&done)
            {
                drop(state);
                return self.end(End::Failed(e));
            }
        }
    }
}
