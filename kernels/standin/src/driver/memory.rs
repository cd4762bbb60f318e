//! Device memory, pinned memory, and copies between them.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::device::total;
use super::queue::Task;
use super::{Code, Driver, Handle, Result, current, refuse};
use crate::setting;

/// An allocation.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) bytes: usize,
    /// Its device; for pinned memory the one whose context pinned it.
    pub(crate) device: usize,
    /// None where the memory is the program's own.
    layout: Option<Layout>,
}

/// The block that holds all of a range.
pub(crate) fn inside(blocks: &BTreeMap<u64, Block>, at: u64, bytes: usize) -> Option<(u64, &Block)> {
    let (start, block) = blocks.range(..=at).next_back()?;
    (at + bytes as u64 <= start + block.bytes as u64).then_some((*start, block))
}

/// Whether a block begins or ends within a range: no copy may begin in pinned memory and end in other.
fn across(blocks: &BTreeMap<u64, Block>, at: u64, bytes: usize) -> bool {
    let end = at + bytes as u64;
    blocks.range(..end).next_back().is_some_and(|(start, block)| {
        let block_end = start + block.bytes as u64;
        block_end > at && (*start > at || block_end < end)
    })
}

/// Memory of the stand-in's own whose every byte is 0xff: a NaN in every float format.
fn fill(bytes: usize, align: usize) -> Result<(u64, Layout)> {
    let layout = Layout::from_size_align(bytes.max(1), align).map_err(|_| Code::OutOfMemory)?;
    // SAFETY: the size is not 0.
    let at = unsafe { alloc(layout) };
    if at.is_null() {
        return Err(Code::OutOfMemory);
    }
    // SAFETY: that many bytes were just allocated.
    unsafe { at.write_bytes(0xff, layout.size()) };
    Ok((at as u64, layout))
}

/// Whether the program may write to a page: others can be pinned for reading alone.
fn is_writable(at: u64) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().any(|line| {
        let mut words = line.split(' ');
        let range = words.next().and_then(|range| range.split_once('-'));
        let number = |hex| u64::from_str_radix(hex, 16).unwrap_or(0);
        range.is_some_and(|(from, to)| (number(from)..number(to)).contains(&at))
            && words.next().is_some_and(|mode| mode.as_bytes().get(1) == Some(&b'w'))
    })
}

impl Block {
    fn free(self, at: u64) {
        if let Some(layout) = self.layout {
            // SAFETY: allocated in `fill` with this layout; the caller has just taken the block out of its list.
            unsafe { dealloc(at as *mut u8, layout) };
        }
    }
}

/// One end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The program's memory, pinned or not.
    Host(u64),
    /// Memory that devices reach.
    Device(u64),
}

impl End {
    fn at(self) -> u64 {
        match self {
            End::Host(at) | End::Device(at) => at,
        }
    }
}

impl Driver {
    /// Bytes of this thread's device: free, and in all.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        let device = current()?;
        Ok((total(device)? - self.used[device], total(device)?))
    }

    /// One allocation more, of memory or of a graph, if so many are allowed.
    pub(super) fn count_allocation(&mut self) -> Result {
        self.allocations += 1;
        let allowed = self.allocations <= setting("TANDEM_EMU_ALLOC_LIMIT", i64::MAX);
        if allowed { Ok(()) } else { Err(Code::OutOfMemory) }
    }

    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<u64> {
        let device = current()?;
        let hidden = (setting("TANDEM_EMU_HIDDEN_MB", 0) as usize) << 20;
        self.count_allocation()?;
        if self.used[device] + bytes + hidden > total(device)? {
            return Err(Code::OutOfMemory);
        }
        let (at, layout) = fill(bytes, 256)?;
        self.used[device] += bytes;
        self.device.insert(at, Block { bytes, device, layout: Some(layout) });
        Ok(at)
    }

    /// Waits for all work, then frees.
    pub(crate) fn free(&mut self, at: u64) -> Result {
        if at == 0 {
            return Ok(());
        }
        current()?;
        self.drain_all();
        let Some(block) = self.device.remove(&at) else {
            return refuse!(Code::InvalidValue, "{at:x} was freed, but not allocated");
        };
        self.used[block.device] -= block.bytes;
        self.machine.forget(at);
        block.free(at);
        self.outcome()
    }

    pub(crate) fn allocate_pinned(&mut self, bytes: usize) -> Result<u64> {
        let device = current()?;
        let (at, layout) = fill(bytes, 4096)?;
        self.pinned.insert(at, Block { bytes, device, layout: Some(layout) });
        Ok(at)
    }

    pub(crate) fn free_pinned(&mut self, at: u64) -> Result {
        self.drain_all();
        if self.pinned.get(&at).is_none_or(|block| block.layout.is_none()) {
            return Err(Code::InvalidValue);
        }
        self.machine.forget(at);
        self.pinned.remove(&at).expect("it was just there").free(at);
        self.outcome()
    }

    /// Pins memory of the program's own.
    pub(crate) fn register(&mut self, at: u64, bytes: usize, flags: u32) -> Result {
        const READ_ONLY: u32 = 8;
        let device = current()?;
        if flags & READ_ONLY != 0 && setting("TANDEM_EMU_READ_ONLY", 1) == 0 {
            return Err(Code::NotSupported);
        }
        if flags & READ_ONLY == 0 && !is_writable(at) {
            return Err(Code::InvalidValue);
        }
        if setting("TANDEM_EMU_NO_REGISTER", 0) != 0 {
            return Err(Code::OutOfMemory);
        }
        self.pinned.insert(at, Block { bytes, device, layout: None });
        Ok(())
    }

    pub(crate) fn unregister(&mut self, at: u64) -> Result {
        if self.pinned.get(&at).is_none_or(|block| block.layout.is_some()) {
            return Err(Code::InvalidValue);
        }
        self.drain_all();
        self.pinned.remove(&at);
        self.outcome()
    }

    /// Queues a copy. Memory that is not pinned is read at once, and written before the call returns, as the driver
    /// promises.
    pub(crate) fn copy(&mut self, to: End, from: End, bytes: usize, stream: Handle) -> Result {
        let stream = self.stream(stream)?;
        let device_of = |end: End| match end {
            End::Device(at) => inside(&self.device, at, bytes).map(|b| b.1.device),
            End::Host(_) => None,
        };
        let word = match (from, to) {
            (End::Host(_), _) => "up",
            (_, End::Host(_)) => "down",
            _ if device_of(from) == device_of(to) => "within",
            _ => "across",
        };
        let is_pinned = |end: End| inside(&self.pinned, end.at(), bytes).is_some();
        for end in [to, from] {
            match end {
                End::Host(at) if !is_pinned(end) && across(&self.pinned, at, bytes) => {
                    return refuse!(Code::InvalidValue, "a copy of {bytes} bytes lies in pinned memory in part");
                }
                End::Device(_) if device_of(end).is_none() && !is_pinned(end) => {
                    return refuse!(Code::InvalidValue, "a copy of {bytes} bytes leaves its memory");
                }
                _ => {}
            }
        }
        let pageable = |end: End| matches!(end, End::Host(_)) && !is_pinned(end);
        let recorded = self.streams[stream].records();
        if recorded && (pageable(to) || pageable(from)) {
            return refuse!(Code::CaptureUnsupported, "a copy of pageable memory in a graph");
        }
        let waits = pageable(to);
        let task = if pageable(from) {
            // SAFETY: the program says that so many bytes are there to be read.
            let bytes = unsafe { std::slice::from_raw_parts(from.at() as *const u8, bytes) };
            Task::Write { to: to.at(), bytes: Arc::from(bytes) }
        } else {
            Task::Copy { to: to.at(), from: from.at(), bytes }
        };
        self.log.line(recorded, format_args!("copy {word} {bytes}"));
        self.push(stream, task);
        if waits {
            self.drain(stream, self.streams[stream].pushed);
        }
        self.outcome()
    }

    /// Queues a copy from a device's memory to another's, each named by its context.
    pub(crate) fn copy_between(
        &mut self,
        (to, there): (u64, Handle),
        (from, here): (u64, Handle),
        bytes: usize,
        stream: Handle,
    ) -> Result {
        for (at, context) in [(to, there), (from, here)] {
            let device = super::index(context, self.used.len()).map_err(|_| Code::InvalidContext)?;
            if inside(&self.device, at, bytes).is_none_or(|(_, block)| block.device != device) {
                return refuse!(Code::InvalidValue, "{bytes} bytes at {at:x} are not memory of device {device}");
            }
        }
        self.copy(End::Device(to), End::Device(from), bytes, stream)
    }

    pub(crate) fn set(&mut self, to: u64, value: u8, bytes: usize, stream: Handle) -> Result {
        let stream = self.stream(stream)?;
        if inside(&self.device, to, bytes).is_none() {
            return refuse!(Code::InvalidValue, "a memset of {bytes} bytes leaves its memory");
        }
        let recorded = self.streams[stream].records();
        self.log.line(recorded, format_args!("set {bytes}"));
        self.push(stream, Task::Set { to, value, bytes });
        Ok(())
    }
}
