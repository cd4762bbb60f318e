//! The devices that the environment describes, and the one that each thread works on.

use std::cell::Cell;

use super::{Code, Driver, FIRST, Handle, Result};
use crate::setting;

/// Bytes of memory of each device.
fn memory() -> Vec<usize> {
    let list = std::env::var("TANDEM_EMU_MEM_MB").unwrap_or_else(|_| "2048".into());
    let mb = list.split(',').map(|n| n.trim().parse::<usize>().unwrap_or(0));
    mb.filter(|&n| n > 0).map(|n| n << 20).collect()
}

/// The number of devices.
pub(crate) fn count() -> usize {
    memory().len()
}

/// All memory of a device, in bytes.
pub(crate) fn total(device: usize) -> Result<usize> {
    memory().get(device).copied().ok_or(Code::InvalidDevice)
}

thread_local!(static CURRENT: Cell<Option<usize>> = const { Cell::new(None) });

/// The device of this thread's context.
///
/// # Errors
/// If the thread has made no context its own.
pub(crate) fn current() -> Result<usize> {
    CURRENT.get().ok_or(Code::InvalidContext)
}

/// Makes a context this thread's.
pub(crate) fn enter(context: Handle) -> Result {
    CURRENT.set(match context {
        0 => None,
        _ => Some(super::index(context, count()).map_err(|_| Code::InvalidContext)?),
    });
    Ok(())
}

/// The context of a device.
pub(crate) fn context(device: usize) -> Handle {
    FIRST + device
}

/// An attribute by the number of CUdevice_attribute.
pub(crate) fn attribute(which: i32) -> i32 {
    let sm = setting("TANDEM_EMU_SM", 80) as i32;
    match which {
        1 => 1024,       // threads of a block
        2 | 3 => 1024,   // along x, y
        4 => 64,         // along z
        5 => i32::MAX,   // blocks along x
        6 | 7 => 65535,  // along y, z
        8 => 48 << 10,   // shared memory of a block
        10 => 32,        // lanes of a warp
        13 => 1_000_000, // clock, kHz
        16 => 4,         // multiprocessors
        36 => 1_000_000, // memory clock, kHz
        37 => 64,        // bits of the memory's bus
        38 => 4 << 20,   // second-level cache
        41 => 1,         // unified addressing
        75 => sm / 10,   // compute capability
        76 => sm % 10,
        97 if sm < 80 => 64 << 10, // shared memory that a block may ask for
        97 => 99 << 10,
        113 => (setting("TANDEM_EMU_READ_ONLY", 1) != 0) as i32,
        _ => 0,
    }
}

/// Whether devices can reach each other's memory.
pub(crate) fn can_reach(from: usize, to: usize) -> bool {
    from != to && setting("TANDEM_EMU_PEER", 1) != 0
}

impl Driver {
    /// Lets this thread's device reach the memory of another.
    pub(crate) fn reach(&mut self, context: Handle) -> Result {
        let (from, to) = (current()?, super::index(context, count())?);
        if !can_reach(from, to) {
            return Err(Code::PeerAccessUnsupported);
        }
        if self.peers.contains(&(from, to)) {
            return Err(Code::PeerAccessAlreadyEnabled);
        }
        self.peers.push((from, to));
        Ok(())
    }
}
