//! Reads of a model's files from the drive, several at a time, into memory of the program's own.
//!
//! ```text
//! file    ..|----page----|----page----|----page----|..    a direct read begins and ends with pages
//! matrix           |====================|                 so a matrix begins somewhere in its buffer
//! ```
//! Direct reads (O_DIRECT) leave the page cache alone, which would hold the same bytes a second time.
//! Where the file system refuses them, and for the rest of a matrix whose direct read failed or came
//! back short in the middle of a page, reads go through the page cache, and what they left there is
//! given up.
//!
//! Blocking reads on threads of their own reach a drive's rate at these sizes, and work where
//! containers forbid io_uring.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result};
use memmap2::MmapMut;

use crate::gguf::CutShort;

/// Where direct reads begin and end: a multiple of every drive's block.
pub(super) const PAGE: usize = 4096;
/// Threads that read: a drive is seldom faster with more requests of this size at once.
pub(super) const READERS: usize = 8;
/// Those of them that may read what nothing waits for, so that a step never waits for more than these.
const IDLE_READERS: usize = 2;

/// Reads some bytes at a place of a file, as `pread` does: [`read_at`], or what a test puts in its
/// place.
pub type ReadAt = fn(&File, &mut [u8], u64) -> io::Result<usize>;

/// Reads bytes from the byte `at` of a file on, and returns how many.
///
/// # Errors
/// What the system says.
pub fn read_at(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, to, at);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, to, at);
}

/// Memory for a matrix that is read from a file.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    pages: MmapMut,
    /// The bytes of the matrix.
    matrix: Range<usize>,
}

impl ReadBuffer {
    /// Bytes of the buffer of a matrix of `len` bytes, wherever it begins in its file.
    pub(super) fn bytes_for(len: usize) -> usize {
        len.next_multiple_of(PAGE) + PAGE
    }

    /// Memory for a matrix of `len` bytes. It takes none before it is read into.
    pub(super) fn new(len: usize) -> io::Result<ReadBuffer> {
        let pages = MmapMut::map_anon(ReadBuffer::bytes_for(len))?;
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage); // a wish that a system may not grant
        Ok(ReadBuffer { pages, matrix: 0..0 })
    }

    /// The bytes that were read last.
    pub(super) fn matrix(&self) -> &[u8] {
        &self.pages[self.matrix.clone()]
    }

    /// Locks the memory in RAM.
    pub(super) fn lock(&self) -> io::Result<()> {
        self.pages.lock()
    }
}

/// A file of a model, open for reads that need no map.
#[derive(Debug)]
pub(super) struct DriveFile {
    path: PathBuf,
    file: File,
    /// The same file for direct reads, where the system opens it so.
    direct: Option<File>,
    /// The file system has refused a direct read.
    refuses: AtomicBool,
    /// Length and time of the last change when it was opened.
    opened: (u64, Option<SystemTime>),
}

impl DriveFile {
    /// The file that is open under this path.
    pub(super) fn open(path: &Path, file: &File) -> Result<DriveFile> {
        let shown = || format!("cannot read {}", path.display());
        let file = file.try_clone().with_context(shown)?;
        let opened = state_of(&file).with_context(shown)?;
        Ok(DriveFile {
            path: path.to_owned(),
            direct: open_direct(&file),
            file,
            refuses: AtomicBool::new(false),
            opened,
        })
    }

    /// Fails if the file is not what it was when it was opened.
    fn check(&self) -> Result<(), CutShort> {
        match state_of(&self.file) {
            Ok(now) if now == self.opened => Ok(()),
            Ok((has, _)) => Err(CutShort::changed(&self.path, self.opened.0, has)),
            Err(e) => Err(CutShort::failed(&self.path, 0, &e.to_string())),
        }
    }

    /// Whether reads pass the page cache by.
    pub(super) fn reads_directly(&self) -> bool {
        self.direct.is_some() && !self.refuses.load(Relaxed)
    }

    /// Reads the `len` bytes from the byte `at` on into a buffer.
    pub(super) fn fill(&self, read: ReadAt, (at, len): (u64, usize), buffer: &mut ReadBuffer) -> Result<(), CutShort> {
        let from = (at % PAGE as u64) as usize;
        let (start, want) = (at - from as u64, from + len);
        let pages = &mut buffer.pages[..want.next_multiple_of(PAGE)];
        let mut direct = self.direct.as_ref().filter(|_| !self.refuses.load(Relaxed));
        let (mut got, mut cached) = (0, false);
        while got < want {
            let place = start + got as u64;
            cached |= direct.is_none();
            let n = match read(direct.unwrap_or(&self.file), &mut pages[got..], place) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if direct.is_some() => {
                    if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) {
                        self.refuse_direct(&e);
                    }
                    0
                }
                Err(e) => return Err(self.failed(place, &e.to_string())),
            };
            if n == 0 && direct.is_none() {
                return Err(self.failed(place, "the file ends there"));
            }
            got += n;
            if n == 0 || !got.is_multiple_of(PAGE) {
                direct = None;
            }
        }
        if cached {
            forget(&self.file, start, pages.len());
        }
        buffer.matrix = from..want;
        Ok(())
    }

    fn refuse_direct(&self, e: &io::Error) {
        if !self.refuses.swap(true, Relaxed) {
            tracing::info!(
                "{}: the file system refuses direct reads ({e}); experts are read through the page cache",
                self.path.display()
            );
        }
    }

    /// Why a read at this place failed: another file by now, or what the system says.
    fn failed(&self, at: u64, words: &str) -> CutShort {
        self.check().err().unwrap_or_else(|| CutShort::failed(&self.path, at, words))
    }
}

/// Length and time of the last change of a file.
fn state_of(file: &File) -> io::Result<(u64, Option<SystemTime>)> {
    let about = file.metadata()?;
    Ok((about.len(), about.modified().ok()))
}

/// The file that is open, and not another that has its name by now, opened for direct reads.
#[cfg(target_os = "linux")]
fn open_direct(file: &File) -> Option<File> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).custom_flags(libc::O_DIRECT).open(name).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &File) -> Option<File> {
    None
}

/// The file system of others, or of a program, that a file is on; None on one of this machine's kernel.
/// Numbers: include/uapi/linux/magic.h of Linux.
pub(super) fn network(file: &File) -> Option<&'static str> {
    #[cfg(target_os = "linux")]
    return match rustix::fs::fstatfs(file).ok()?.f_type as u32 {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x0102_1997 => Some("9P"),
        0x00c3_6400 => Some("Ceph"),
        0x6573_5546 => Some("FUSE"),
        _ => None,
    };
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        None
    }
}

/// Gives up what the page cache has of a part of a file.
pub(super) fn forget(file: &File, from: u64, len: usize) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, from, std::num::NonZeroU64::new(len as u64), rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = (file, from, len);
}

/// One of a pool's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BufferPlace {
    pub(super) layer: usize,
    pub(super) slot: usize,
    /// The number of the matrix in its slot.
    pub(super) stack: usize,
}

/// A matrix that is to be read.
#[derive(Debug)]
pub(super) struct ReadRequest {
    pub(super) to: BufferPlace,
    /// The number of the file.
    pub(super) file: usize,
    /// Its first byte there, and its bytes.
    pub(super) place: (u64, usize),
    /// Where it goes.
    pub(super) buffer: ReadBuffer,
}

/// A request that is done: the buffer comes back, with the matrix or the reason why it has none.
#[derive(Debug)]
pub(super) struct ReadDone {
    pub(super) to: BufferPlace,
    pub(super) buffer: ReadBuffer,
    pub(super) result: Result<(), CutShort>,
}

/// What is to be read.
#[derive(Debug, Default)]
struct ReadQueues {
    /// What a step waits for.
    wanted: VecDeque<ReadRequest>,
    /// The matrices of a slot, to be read while nothing is waited for, by layer.
    idle: Vec<VecDeque<Vec<ReadRequest>>>,
    /// The layer whose idle ones are next: all layers fill at the same rate.
    turn: usize,
    /// Threads that read idle ones.
    idle_threads: usize,
    is_closed: bool,
}

impl ReadQueues {
    /// What a thread reads next, and whether anything waits for it.
    fn pop(&mut self) -> Option<(Vec<ReadRequest>, bool)> {
        if let Some(r) = self.wanted.pop_front() {
            return Some((vec![r], true));
        }
        if self.idle_threads == IDLE_READERS {
            return None;
        }
        let n = self.idle.len();
        let l = (0..n).map(|i| (self.turn + i) % n).find(|l| !self.idle[*l].is_empty())?;
        self.turn = l + 1;
        self.idle_threads += 1;
        self.idle[l].pop_front().map(|list| (list, false))
    }
}

/// The queues, and a sign that there is more in them.
#[derive(Debug, Default)]
struct SharedQueues {
    queues: Mutex<ReadQueues>,
    more: Condvar,
}

impl SharedQueues {
    fn lock(&self) -> MutexGuard<'_, ReadQueues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads that read. They end with the matrix that they are at when this is dropped.
#[derive(Debug)]
pub(super) struct DriveReader {
    files: Arc<Vec<DriveFile>>,
    shared: Arc<SharedQueues>,
    done: Mutex<Receiver<ReadDone>>,
}

impl DriveReader {
    /// Starts the threads for these files, which are open, and slots of so many layers.
    pub(super) fn open(files: &[(&Path, &File)], layers: usize, read: ReadAt) -> Result<DriveReader> {
        let files: Vec<DriveFile> = files.iter().map(|(p, f)| DriveFile::open(p, f)).collect::<Result<_>>()?;
        let (files, shared, (back, done)) = (Arc::new(files), Arc::new(SharedQueues::default()), channel());
        shared.lock().idle.resize_with(layers, VecDeque::new);
        let reader = DriveReader { files, shared, done: Mutex::new(done) }; // ends the threads, if not all start
        for i in 0..READERS {
            let (files, shared, back) = (reader.files.clone(), reader.shared.clone(), back.clone());
            let serve = move || serve(&files, read, &shared, &back);
            std::thread::Builder::new().name(format!("drive-{i}")).spawn(serve).context("cannot start a thread")?;
        }
        Ok(reader)
    }

    /// Asks for a matrix.
    pub(super) fn request(&self, r: ReadRequest) {
        self.shared.lock().wanted.push_back(r);
        self.shared.more.notify_one();
    }

    /// Asks for all matrices of a slot, to be read while nothing is waited for.
    pub(super) fn request_idle(&self, slot: Vec<ReadRequest>) {
        let Some(layer) = slot.first().map(|r| r.to.layer) else { return };
        self.shared.lock().idle[layer].push_back(slot);
        self.shared.more.notify_one();
    }

    /// Takes back what was asked for in this layer for a slot, and not begun: the last that `is_it`.
    pub(super) fn take_back(&self, layer: usize, is_it: impl Fn(usize) -> bool) -> Option<Vec<ReadRequest>> {
        let idle = &mut self.shared.lock().idle[layer];
        let at = idle.iter().rposition(|slot| is_it(slot[0].to.slot))?;
        idle.remove(at)
    }

    /// The next matrix that was asked for and is read, if there is one.
    pub(super) fn next_done(&self) -> Option<ReadDone> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).try_recv().ok()
    }

    /// The next matrix that was asked for, when it is read: there must be one.
    pub(super) fn next_when_done(&self) -> ReadDone {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.recv().expect("each request comes back")
    }

    /// Fails if a file is not what it was when it was opened.
    pub(super) fn check(&self) -> Result<(), CutShort> {
        self.files.iter().try_for_each(DriveFile::check)
    }
}

impl Drop for DriveReader {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.more.notify_all();
    }
}

/// What each of the threads does.
fn serve(files: &[DriveFile], read: ReadAt, shared: &SharedQueues, back: &Sender<ReadDone>) {
    let mut queues = shared.lock();
    loop {
        if queues.is_closed {
            return;
        }
        let Some((list, is_wanted)) = queues.pop() else {
            queues = shared.more.wait(queues).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(queues);
        for ReadRequest { to, file, place, mut buffer } in list {
            let result = files[file].fill(read, place, &mut buffer);
            if back.send(ReadDone { to, buffer, result }).is_err() {
                return;
            }
        }
        queues = shared.lock();
        queues.idle_threads -= !is_wanted as usize;
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    /// Direct reads as a strict drive does them, never all that was asked for.
    fn strict(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
        let aligned = [at as usize, to.len(), to.as_ptr() as usize].iter().all(|n| n.is_multiple_of(PAGE));
        if rustix::fs::fcntl_getfl(file).unwrap().contains(rustix::fs::OFlags::DIRECT) {
            assert!(aligned, "a direct read of {} bytes at {at}", to.len());
        }
        let part = to.len().min(3 * PAGE + if at.is_multiple_of(8) { 0 } else { 1000 });
        read_at(file, &mut to[..part], at)
    }

    #[test]
    fn every_range_of_a_file_arrives_whole_whatever_a_read_returns() {
        fn odd(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
            let n = to.len().min(1 + at as usize % 5000);
            read_at(file, &mut to[..n], at)
        }
        let all = bytes(100_001);
        let file = file_of(&all);
        let open = DriveFile::open(file.path(), file.as_file()).unwrap();
        let mut buffer = ReadBuffer::new(70_000).unwrap();
        for read in [read_at as ReadAt, strict, odd] {
            for place in [(0, 1), (0, PAGE), (4095, 2), (5000, 70_000), (31_000, 69_001), (100_000, 1)] {
                open.fill(read, place, &mut buffer).unwrap();
                assert_eq!(buffer.matrix(), &all[place.0 as usize..][..place.1], "{place:?}");
            }
        }
    }

    #[test]
    fn where_direct_reads_are_refused_the_page_cache_serves() {
        fn refused(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
            match rustix::fs::fcntl_getfl(file).unwrap().contains(rustix::fs::OFlags::DIRECT) {
                true => Err(io::Error::from_raw_os_error(libc::EINVAL)),
                false => read_at(file, to, at),
            }
        }
        let all = bytes(20_000);
        let file = file_of(&all);
        let open = DriveFile::open(file.path(), file.as_file()).unwrap();
        let mut buffer = ReadBuffer::new(9000).unwrap();
        open.fill(refused, (777, 9000), &mut buffer).unwrap();
        assert_eq!(buffer.matrix(), &all[777..9777]);
        assert!(open.direct.is_none() || open.refuses.load(Relaxed), "asked once");
    }

    #[test]
    fn an_error_names_the_file_the_offset_and_what_the_system_says() {
        fn broken(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
            match at {
                0 => read_at(file, &mut to[..PAGE], at),
                _ => Err(io::Error::from_raw_os_error(libc::EIO)),
            }
        }
        let file = file_of(&bytes(20_000));
        let open = DriveFile::open(file.path(), file.as_file()).unwrap();
        let mut buffer = ReadBuffer::new(9000).unwrap();
        let said = open.fill(broken, (10, 9000), &mut buffer).unwrap_err().to_string();
        let name = file.path().display().to_string();
        assert!(said.contains(&name) && said.contains("at byte 4096") && said.contains("(os error 5)"), "{said}");
        let said = open.fill(read_at, (15_000, 6000), &mut buffer).unwrap_err().to_string();
        assert!(said.contains("at byte 20000") && said.contains("the file ends there"), "{said}");
        // A file that changed meanwhile is the better reason.
        file.as_file().set_len(10_000).unwrap();
        let said = open.fill(read_at, (9000, 6000), &mut buffer).unwrap_err().to_string();
        assert!(said.contains("went from 20000 to 10000 bytes"), "{said}");
    }
}
