//! Loads, stores and atomic instructions of a warp, in every kind of memory.

use std::collections::HashMap;

use super::lanes::{Class, Doubles, Reg, Regs};
use super::machine::FaultKind;
use super::meter::Meter;
use super::shadow::{self, Who};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Global,
    Shared,
    Local,
}

impl Space {
    /// A place that was read and never written.
    pub(super) fn describe(self, at: u64) -> String {
        match self {
            Space::Global => format!("global memory at {at:x}, which another block writes"),
            Space::Shared => format!("shared memory at {at}, which was never written"),
            Space::Local => format!("local memory at {at}, which was never written"),
        }
    }
}

/// A load or a store of one value or a vector of them.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) space: Space,
    /// The values' registers.
    pub(super) values: Vec<Reg>,
    /// Bytes of a value.
    pub(super) bytes: usize,
    /// Whether a value is extended by its sign.
    pub(super) signed: bool,
    /// A register with an address; for a parameter unused.
    pub(super) at: Reg,
    pub(super) offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtomicOp {
    Add,
    AddF32,
    Min,
    Max,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
    Exchange,
    /// The first value is what is compared with.
    Swap,
}

/// Reads a value, and writes what an operation makes of it.
#[derive(Debug)]
pub(super) struct Atomic {
    pub(super) space: Space,
    pub(super) op: AtomicOp,
    /// Where the old value goes; None for `red`.
    pub(super) to: Option<Reg>,
    pub(super) bytes: usize,
    pub(super) at: Reg,
    pub(super) offset: i64,
    pub(super) values: Vec<Reg>,
}

/// What a lane did wrong.
pub(super) struct Wrong {
    pub(super) lane: u32,
    pub(super) kind: FaultKind,
    pub(super) text: String,
}

pub(super) type Result<T> = std::result::Result<T, Wrong>;

fn wrong<T>(lane: usize, kind: FaultKind, text: String) -> Result<T> {
    Err(Wrong { lane: lane as u32, kind, text })
}

pub(super) fn unordered<T>(lane: usize, checked: std::result::Result<T, String>) -> Result<T> {
    checked.or_else(|text| wrong(lane, FaultKind::Other, text))
}

/// The lanes of a mask.
pub(super) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

struct Allocation {
    at: u64,
    bytes: usize,
    shadow: shadow::Global,
}

impl Allocation {
    fn holds(&self, at: u64, bytes: usize) -> bool {
        at >= self.at && at - self.at + bytes as u64 <= self.bytes as u64
    }
}

/// The memory that a launch reaches.
#[derive(Default)]
pub(super) struct Global {
    /// In rising order.
    allocations: Vec<Allocation>,
    /// Between launches: shadows by the address of the allocation.
    shadows: HashMap<u64, shadow::Global>,
    /// The allocation that was found last.
    last: usize,
    launch: u32,
}

impl Global {
    /// A launch begins that reaches these addresses and bytes.
    pub(super) fn begin(&mut self, memory: impl Iterator<Item = (u64, usize)>) {
        let shadows = &mut self.shadows;
        let of = |(at, bytes)| Allocation { at, bytes, shadow: shadows.remove(&at).unwrap_or_default() };
        self.allocations = memory.map(of).collect();
        self.allocations.sort_unstable_by_key(|a| a.at);
        self.last = 0;
        self.launch += 1;
    }

    pub(super) fn end(&mut self) {
        self.shadows.extend(self.allocations.drain(..).map(|a| (a.at, a.shadow)));
    }

    /// An allocation is no more.
    pub(super) fn forget(&mut self, at: u64) {
        self.shadows.remove(&at);
    }

    /// The allocation that holds a range.
    fn find(&mut self, at: u64, bytes: usize) -> Option<&mut Allocation> {
        if self.allocations.get(self.last).is_none_or(|a| !a.holds(at, bytes)) {
            self.last = self.allocations.partition_point(|a| a.at <= at).checked_sub(1)?;
        }
        Some(&mut self.allocations[self.last]).filter(|a| a.holds(at, bytes))
    }

    /// Checks one lane's access; then its bytes may be read or written. Whether what is read was written: see `shadow`.
    fn check(&mut self, lane: usize, at: u64, bytes: usize, who: Who, write: Option<bool>) -> Result<bool> {
        let launch = self.launch;
        let Some(Allocation { at: start, bytes: size, shadow }) = self.find(at, bytes) else {
            let text = format!("{bytes} bytes at {at:x} lie in no memory that the device reaches");
            return wrong(lane, FaultKind::Address, text);
        };
        let offset = (at - *start) as usize;
        let checked = match write {
            None => shadow.read(offset, bytes, launch, who),
            Some(atomic) => shadow.write(*size, offset, bytes, launch, who, atomic).map(|()| true),
        };
        unordered(lane, checked)
    }

    /// Copies 4, 8 or 16 bytes out of global memory, for cp.async.
    pub(super) fn read(&mut self, lane: usize, at: u64, to: &mut [u8], who: Who) -> Result<()> {
        self.check(lane, at, to.len(), who, None)?;
        // SAFETY: the range lies in an allocation, as was just checked.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }
}

/// The memory of a block.
#[derive(Default)]
pub(super) struct Own {
    pub(super) shared: Vec<u8>,
    pub(super) shadow: shadow::Shared,
    /// Of each thread, one after the other, with a byte that says whether it was written for each.
    local: Vec<[u8; 2]>,
    local_bytes: usize,
}

impl Own {
    pub(super) fn reset(&mut self, shared_bytes: usize, threads: usize, local_bytes: usize) {
        self.shared.clear();
        self.shared.resize(shared_bytes, 0xff);
        self.shadow.reset(shared_bytes);
        self.local.clear();
        self.local.resize(threads * local_bytes, [0xff, 0]);
        self.local_bytes = local_bytes;
    }

    /// Checks that a range lies in shared memory.
    pub(super) fn shared_at(&self, lane: usize, at: u64, bytes: usize) -> Result<usize> {
        let at = at as u32 as u64; // shared addresses have 32 bits
        if at + bytes as u64 > self.shared.len() as u64 {
            let size = self.shared.len();
            let text = format!("{bytes} bytes at {at} of shared memory, of which the block has {size}");
            return wrong(lane, FaultKind::Address, text);
        }
        Ok(at as usize)
    }

    fn local_at(&self, lane: usize, thread: usize, at: u64, bytes: usize) -> Result<usize> {
        if at + bytes as u64 > self.local_bytes as u64 {
            let text = format!("{bytes} bytes at {at} of local memory, of which a thread has {}", self.local_bytes);
            return wrong(lane, FaultKind::Address, text);
        }
        Ok(thread * self.local_bytes + at as usize)
    }
}

/// The value of so many bytes, extended to 64 bits.
pub(super) fn extend(value: u64, bytes: usize, signed: bool) -> u64 {
    let unused = 64 - 8 * bytes as u32;
    if signed { ((value << unused) as i64 >> unused) as u64 } else { value << unused >> unused }
}

/// A number of 1, 2, 4 or 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(all)
}

/// A value of global memory.
///
/// # Safety
/// So many bytes at the address can be read, and the address is a multiple of their number.
unsafe fn read(at: u64, bytes: usize) -> u64 {
    // SAFETY: by this function's own condition.
    unsafe {
        match bytes {
            1 => *(at as *const u8) as u64,
            2 => *(at as *const u16) as u64,
            4 => *(at as *const u32) as u64,
            _ => *(at as *const u64),
        }
    }
}

/// Writes a value to global memory.
///
/// # Safety
/// So many bytes at the address can be written, and the address is a multiple of their number.
unsafe fn write(at: u64, bytes: usize, value: u64) {
    // SAFETY: by this function's own condition.
    unsafe {
        match bytes {
            1 => *(at as *mut u8) = value as u8,
            2 => *(at as *mut u16) = value as u16,
            4 => *(at as *mut u32) = value as u32,
            _ => *(at as *mut u64) = value,
        }
    }
}

/// A warp's place in its block, for memory.
pub(super) struct Place<'a> {
    pub(super) global: &'a mut Global,
    pub(super) own: &'a mut Own,
    pub(super) meter: &'a mut Meter,
    /// The warp's first thread; lanes add theirs.
    pub(super) who: Who,
    /// What the last lane read that was never written.
    pub(super) unwritten: Option<(usize, String)>,
}

impl Place<'_> {
    pub(super) fn who(&self, lane: usize) -> Who {
        Who { thread: self.who.thread + lane as u16, ..self.who }
    }

    /// The addresses of an access, each a multiple of its size.
    pub(super) fn addresses(&self, regs: &Regs, at: Reg, offset: i64, bytes: usize, mask: u32) -> Result<Doubles> {
        let addresses = regs.wide(at).map(|a| a.wrapping_add_signed(offset));
        match lanes(mask).find(|&lane| !addresses[lane].is_multiple_of(bytes as u64)) {
            None => Ok(addresses),
            Some(lane) => {
                let text = format!("{:x} is not a multiple of the access's {bytes} bytes", addresses[lane]);
                wrong(lane, FaultKind::Alignment, text)
            }
        }
    }

    pub(super) fn load(&mut self, regs: &mut Regs, access: &Access, mask: u32) -> Result<()> {
        let Access { space, bytes, signed, .. } = *access;
        let all = bytes * access.values.len();
        let addresses = self.addresses(regs, access.at, access.offset, all, mask)?;
        self.meter.access(space, false, &addresses, all, mask);
        let mut values = [[0u64; 32]; 4];
        let mut undefined = 0;
        for lane in lanes(mask) {
            let (at, who) = (addresses[lane], self.who(lane));
            let defined;
            match space {
                Space::Global => {
                    defined = self.global.check(lane, at, all, who, None)?;
                    for (i, value) in values.iter_mut().enumerate().take(access.values.len()) {
                        // SAFETY: the access lies in an allocation and is aligned, as was just checked.
                        value[lane] = unsafe { read(at + (i * bytes) as u64, bytes) };
                    }
                }
                Space::Shared => {
                    let at = self.own.shared_at(lane, at, all)?;
                    defined = unordered(lane, self.own.shadow.read(at, all, who))?;
                    for (i, value) in values.iter_mut().enumerate().take(access.values.len()) {
                        value[lane] = number(&self.own.shared[at + i * bytes..][..bytes]);
                    }
                }
                Space::Local => {
                    let at = self.own.local_at(lane, who.thread as usize, at, all)?;
                    let here = &self.own.local[at..at + all];
                    defined = here.iter().all(|b| b[1] != 0);
                    for (i, value) in values.iter_mut().enumerate().take(access.values.len()) {
                        let part: Vec<u8> = here[i * bytes..][..bytes].iter().map(|b| b[0]).collect();
                        value[lane] = number(&part);
                    }
                }
            }
            if !defined {
                undefined |= 1 << lane;
                self.unwritten = Some((lane, space.describe(at)));
            }
        }
        for (reg, values) in access.values.iter().zip(&values) {
            regs.set_wide(*reg, &values.map(|v| extend(v, bytes, signed)), mask);
            regs.undefine(*reg, undefined);
        }
        Ok(())
    }

    pub(super) fn store(&mut self, regs: &Regs, access: &Access, mask: u32) -> Result<()> {
        let bytes = access.bytes;
        let all = bytes * access.values.len();
        let addresses = self.addresses(regs, access.at, access.offset, all, mask)?;
        self.meter.access(access.space, true, &addresses, all, mask);
        let mut values = [[0; 32]; 4];
        access.values.iter().zip(&mut values).for_each(|(reg, v)| *v = regs.wide(*reg));
        let defined = access.values.iter().fold(!0, |all, reg| all & regs.written(*reg));
        for lane in lanes(mask) {
            let (at, who, defined) = (addresses[lane], self.who(lane), defined >> lane & 1 != 0);
            let parts = values[..access.values.len()].iter().map(|v| v[lane]).enumerate();
            match access.space {
                Space::Global if !defined => {
                    return wrong(lane, FaultKind::Other, "stores a value that was never written".into());
                }
                Space::Global => {
                    self.global.check(lane, at, all, who, Some(false))?;
                    for (i, value) in parts {
                        // SAFETY: the access lies in an allocation and is aligned, as was just checked.
                        unsafe { write(at + (i * bytes) as u64, bytes, value) };
                    }
                }
                Space::Shared => {
                    let at = self.own.shared_at(lane, at, all)?;
                    unordered(lane, self.own.shadow.write(at, all, who, false))?;
                    for (i, value) in parts {
                        self.own.shared[at + i * bytes..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                    }
                    if !defined {
                        self.own.shadow.undefine(at, all);
                    }
                }
                Space::Local => {
                    let at = self.own.local_at(lane, who.thread as usize, at, all)?;
                    for (i, value) in parts {
                        let to = &mut self.own.local[at + i * bytes..][..bytes];
                        to.iter_mut().zip(value.to_le_bytes()).for_each(|(to, byte)| *to = [byte, defined as u8]);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn atomic(&mut self, regs: &mut Regs, atomic: &Atomic, mask: u32) -> Result<()> {
        let bytes = atomic.bytes;
        let addresses = self.addresses(regs, atomic.at, atomic.offset, bytes, mask)?;
        self.meter.access(atomic.space, true, &addresses, bytes, mask);
        let values: Vec<Doubles> = atomic.values.iter().map(|reg| regs.wide(*reg)).collect();
        let mut old = [0; 32];
        for lane in lanes(mask) {
            let (at, who) = (addresses[lane], self.who(lane));
            let operands: Vec<u64> = values.iter().map(|v| v[lane]).collect();
            if atomic.space == Space::Shared {
                let at = self.own.shared_at(lane, at, bytes)?;
                unordered(lane, self.own.shadow.write(at, bytes, who, true))?;
                let place = &mut self.own.shared[at..at + bytes];
                old[lane] = number(place);
                let new = apply(atomic.op, bytes, old[lane], &operands);
                place.copy_from_slice(&new.to_le_bytes()[..bytes]);
            } else {
                self.global.check(lane, at, bytes, who, Some(true))?;
                // SAFETY: the access lies in an allocation and is aligned, as was just checked.
                unsafe {
                    old[lane] = read(at, bytes);
                    write(at, bytes, apply(atomic.op, bytes, old[lane], &operands));
                }
            }
        }
        if let Some(to) = atomic.to {
            regs.set_wide(to, &old, mask);
        }
        Ok(())
    }
}

/// The new value.
fn apply(op: AtomicOp, bytes: usize, old: u64, operands: &[u64]) -> u64 {
    let value = operands[0];
    let (a, b) = (extend(old, bytes, true) as i64, extend(value, bytes, true) as i64);
    match op {
        AtomicOp::Add => old.wrapping_add(value),
        AtomicOp::AddF32 => (f32::from_bits(old as u32) + f32::from_bits(value as u32)).to_bits() as u64,
        AtomicOp::Min => old.min(value),
        AtomicOp::Max => old.max(value),
        AtomicOp::MinSigned => a.min(b) as u64,
        AtomicOp::MaxSigned => a.max(b) as u64,
        AtomicOp::And => old & value,
        AtomicOp::Or => old | value,
        AtomicOp::Xor => old ^ value,
        AtomicOp::Exchange => value,
        AtomicOp::Swap => {
            if old == value {
                operands[1]
            } else {
                old
            }
        }
    }
}

/// Whether a register can hold a value of so many bytes.
pub(super) fn holds(reg: Reg, bytes: usize) -> bool {
    match reg.class {
        Class::Word => bytes <= 4,
        Class::Double => bytes <= 8,
        Class::Predicate => false,
    }
}
