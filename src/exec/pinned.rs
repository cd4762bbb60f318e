//! The experts' part of the model's memory, pinned: the GPU then copies from it by DMA, and the CPU
//! copies nothing.
//!
//! Pinning looks up every page, and reads those that were not in memory, so it goes on piece by
//! piece in the background. What is not pinned yet, or cannot be (`cuda/pinning.rs` says what can),
//! goes through staging memory.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::cpu::Memory;
use crate::cuda::{Gpu, HostMemory, PinMode, Registered};
use crate::gguf::{Gguf, SharedBytes};

/// Bytes that are pinned at once. The driver does nothing else meanwhile, so a piece is short work.
const PIECE: usize = 64 << 20;
const PAGE: usize = 4096;
/// Of the memory that programs could have, the share that may be pinned.
const SHARE: f64 = 0.8;

/// Whole pages of a file.
struct PinnedPages {
    /// Addresses.
    at: Range<usize>,
    /// Their range within the file.
    bytes: Range<usize>,
    owner: SharedBytes,
}

/// How far the pinning has come.
#[derive(Debug, Default)]
struct PinState {
    /// Pieces from the first on that are pinned.
    ready: AtomicUsize,
    stop: AtomicBool,
    kept: Mutex<Vec<Registered>>,
    /// Why it stopped early.
    why: Mutex<Option<String>>,
}

/// The experts of a model's files, being pinned in the background.
#[derive(Default)]
pub(super) struct PinnedExperts {
    pieces: Arc<Vec<PinnedPages>>,
    state: Arc<PinState>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for PinnedExperts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedExperts({})", self.describe())
    }
}

/// The pages that hold these bytes, cut into pieces. They begin and end with pages, or where the file's bytes do.
fn pieces(owner: &SharedBytes, mut parts: Vec<Range<usize>>) -> Vec<PinnedPages> {
    let all = (**owner).as_ref();
    let from = all.as_ptr() as usize;
    parts.sort_by_key(|p| p.start);
    let mut list: Vec<PinnedPages> = Vec::new();
    let mut done = from; // pages before this address are in the list
    for part in parts {
        let page = (from + part.start) / PAGE * PAGE;
        let (mut at, end) = (page.max(done), (from + part.end).next_multiple_of(PAGE).min(from + all.len()));
        while at < end {
            let to = (at / PIECE + 1).saturating_mul(PIECE).min(end);
            match list.last_mut() {
                Some(last) if last.at.end == at && !at.is_multiple_of(PIECE) => {
                    (last.at.end, last.bytes.end) = (to, to - from);
                }
                _ => list.push(PinnedPages { at: at..to, bytes: at - from..to - from, owner: owner.clone() }),
            }
            at = to;
        }
        done = done.max(end);
    }
    list
}

/// Whose memory a file's weights are in.
pub(super) fn memory_of(gguf: &Gguf, shard: usize) -> HostMemory {
    if gguf.is_mapped(shard) { HostMemory::Mapped } else { HostMemory::Own }
}

/// Bytes that may be pinned of experts that take `bytes`: a share of what programs could have,
/// where memory of the program's own is counted as if it were free, since it cannot be given up in
/// any case.
fn most_pinned(memory: HostMemory, bytes: usize) -> usize {
    let own = if memory == HostMemory::Own { bytes } else { 0 };
    Memory::of_this_machine().map_or(usize::MAX, |m| ((m.free + own) as f64 * SHARE) as usize)
}

impl PinState {
    fn refuse(&self, why: String) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Pins a piece. Returns whether the next one may follow.
    fn pin(&self, gpu: &Gpu, pieces: &[PinnedPages], i: usize, (mode, most): (PinMode, usize)) -> bool {
        if pieces[i].at.end - pieces[0].at.start > most && pieces[..=i].iter().map(|p| p.at.len()).sum::<usize>() > most
        {
            self.refuse(format!(
                "no more than {:.1} GB of this machine's free memory may be pinned",
                most as f64 / 1e9
            ));
            return false;
        }
        // Read first what is not in memory: the driver would hold everything else up meanwhile.
        let bytes = &(*pieces[i].owner).as_ref()[pieces[i].bytes.clone()];
        std::hint::black_box(bytes.iter().step_by(PAGE).fold(0u8, |sum, b| sum ^ b));
        match gpu.register(pieces[i].owner.clone(), pieces[i].bytes.clone(), mode) {
            Ok(r) => {
                self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(r);
                self.ready.store(i + 1, Ordering::Release);
                !self.stop.load(Ordering::Relaxed)
            }
            Err(e) => {
                self.refuse(format!("{e:#}"));
                false
            }
        }
    }
}

impl PinnedExperts {
    /// Pins nothing, for the reason that [`PinnedExperts::describe`] gives.
    pub(super) fn none(why: &str) -> PinnedExperts {
        let pinned = PinnedExperts::default();
        pinned.state.refuse(why.into());
        pinned
    }

    /// Pins these tensors of a model: the first piece now, the others in the background.
    pub(super) fn start(gpu: &Arc<Gpu>, gguf: &Gguf, tensors: impl Iterator<Item = usize>) -> PinnedExperts {
        let mut parts: Vec<Vec<Range<usize>>> = Vec::new();
        for t in tensors.map(|t| &gguf.tensors[t]) {
            parts.resize(parts.len().max(t.shard + 1), Vec::new());
            parts[t.shard].push(t.range());
        }
        let used: Vec<(usize, Vec<Range<usize>>)> =
            parts.into_iter().enumerate().filter(|(_, p)| !p.is_empty()).collect();
        let memory = used.iter().map(|(shard, _)| memory_of(gguf, *shard)).find(|m| *m == HostMemory::Mapped);
        let memory = memory.unwrap_or(HostMemory::Own);
        let mut list: Vec<PinnedPages> =
            used.into_iter().flat_map(|(shard, p)| pieces(&gguf.share(shard), p)).collect();
        list.sort_by_key(|p| p.at.start);
        let bytes = list.iter().map(|p| p.at.len()).sum();
        let mut pinned = PinnedExperts { pieces: Arc::new(list), state: Arc::default(), thread: None };
        let mode = match gpu.pin_mode(memory) {
            Ok(mode) => mode,
            Err(why) => {
                pinned.state.refuse(why);
                return pinned;
            }
        };
        let most = most_pinned(memory, bytes);
        let n = pinned.pieces.len();
        if n > 0 && pinned.state.pin(gpu, &pinned.pieces, 0, (mode, most)) && n > 1 {
            let (gpu, state, pieces) = (gpu.clone(), pinned.state.clone(), pinned.pieces.clone());
            let rest = move || match gpu.enter() {
                Ok(()) => drop((1..n).all(|i| state.pin(&gpu, &pieces, i, (mode, most)))),
                Err(e) => state.refuse(format!("{e:#}")),
            };
            match std::thread::Builder::new().name("pinned".into()).spawn(rest) {
                Ok(thread) => pinned.thread = Some(thread),
                Err(e) => pinned.state.refuse(format!("no thread could be started: {e}")),
            }
        }
        pinned
    }

    /// `bytes` in parts that the device can copy from by itself; None if it cannot, or not yet.
    pub(super) fn parts<'a>(&self, bytes: &'a [u8]) -> Option<Vec<&'a [u8]>> {
        let ready = &self.pieces[..self.state.ready.load(Ordering::Acquire)];
        let mut at = bytes.as_ptr() as usize;
        let mut i = ready.partition_point(|p| p.at.end <= at);
        let (mut rest, mut list) = (bytes, Vec::new());
        while !rest.is_empty() {
            let piece = ready.get(i).filter(|p| p.at.contains(&at))?;
            let (part, after) = rest.split_at(rest.len().min(piece.at.end - at));
            (rest, at, i) = (after, at + part.len(), i + 1);
            list.push(part);
        }
        Some(list)
    }

    /// How much is pinned, and what kept the rest from it, in words.
    pub(super) fn describe(&self) -> String {
        let ready = self.state.ready.load(Ordering::Acquire);
        let size = |p: &[PinnedPages]| match p.iter().map(|p| p.at.len()).sum::<usize>() as f64 / 1e9 {
            gb if gb < 1.0 => format!("{:.0} MB", gb * 1e3),
            gb => format!("{gb:.1} GB"),
        };
        let (have, all) = (size(&self.pieces[..ready]), size(&self.pieces));
        match &*self.state.why.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) if ready == 0 => format!("experts reach the GPU through staging memory, because {why}"),
            Some(why) => format!(
                "{have} of {all} of experts are pinned, the others reach the GPU through staging memory, because {why}"
            ),
            None if ready < self.pieces.len() => {
                format!("{all} of experts are being pinned, so that the GPU copies them directly")
            }
            None => format!("{all} of experts are pinned: the GPU copies them directly"),
        }
    }
}

impl Drop for PinnedExperts {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of a file that are close together, far apart, and across the end of a piece.
    #[test]
    fn pieces_hold_every_byte_once_and_begin_with_pages() {
        let owner: SharedBytes = Arc::new(vec![0u8; 40 * PAGE + 17]);
        let all = (*owner).as_ref();
        let from = all.as_ptr() as usize;
        let parts = vec![
            3 * PAGE + 5..9 * PAGE,
            9 * PAGE + 1..9 * PAGE + 2,
            20 * PAGE..20 * PAGE + 1,
            39 * PAGE..all.len(),
            0..1,
        ];
        let list = pieces(&owner, parts.clone());
        for (i, p) in list.iter().enumerate() {
            assert_eq!((p.at.start - from, p.at.end - from), (p.bytes.start, p.bytes.end));
            assert!(p.at.start == from || p.at.start.is_multiple_of(PAGE), "{i}");
            assert!(p.at.end == from + all.len() || p.at.end.is_multiple_of(PAGE), "{i}");
            assert!(i == 0 || list[i - 1].at.end <= p.at.start, "no page is pinned twice");
        }
        let pinned = PinnedExperts { pieces: Arc::new(list), state: Arc::default(), thread: None };
        assert!(pinned.parts(&all[0..1]).is_none(), "nothing is ready yet");
        pinned.state.ready.store(pinned.pieces.len(), Ordering::Release);
        for part in parts {
            let got = pinned.parts(&all[part.clone()]).expect("pinned");
            assert_eq!(got.iter().map(|p| p.len()).sum::<usize>(), part.len());
        }
        assert!(pinned.parts(&all[12 * PAGE..13 * PAGE]).is_none(), "nobody asked for these");
    }
}
