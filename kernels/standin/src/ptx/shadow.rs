//! Who touched which place of memory: reads of what was never written, and accesses that no barrier orders.
//!
//! Two accesses to a place by different threads of a block, one of which writes, must have a barrier of the block between
//! them, or one of the warp where both are of one warp: an exchange of values alone does not order memory. What another block
//! writes in the same launch counts as never written. Places are words of 4 bytes with a mask of bytes. Of several readers
//! the block, the warp or the thread is kept, so that a writer that did not read itself meets them. In global memory only
//! writers are kept.

/// Who accesses: a thread, and the barriers that it has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) block: u32,
    /// Its number in the block.
    pub(super) thread: u16,
    /// Barriers of the block that were passed before.
    pub(super) interval: u32,
    /// Barriers of the warp that were passed before.
    pub(super) warp_interval: u32,
}

impl Who {
    fn warp(self) -> u16 {
        self.thread / 32
    }

    /// Whether all that `earlier` did is ordered before what this thread does now.
    fn follows(self, earlier: &Trace) -> bool {
        earlier.thread == self.thread
            || earlier.interval < self.interval
            || (earlier.thread < MANY
                && earlier.thread % WARP / 32 == self.warp()
                && earlier.warp_interval < self.warp_interval)
    }
}

/// An access that is remembered. Threads from `WARP` on stand for all of a warp, `MANY` for threads of several.
#[derive(Clone, Copy, Default)]
struct Trace {
    thread: u16,
    /// Which bytes of the word.
    bytes: u8,
    /// Whether by an atomic instruction.
    atomic: bool,
    interval: u32,
    warp_interval: u32,
}
const WARP: u16 = 1024;
const MANY: u16 = 4096;

impl Trace {
    fn of(who: Who, bytes: u8, atomic: bool) -> Trace {
        let Who { thread, interval, warp_interval, .. } = who;
        Trace { thread, bytes, atomic, interval, warp_interval }
    }
}

/// A word of shared memory.
#[derive(Clone, Copy, Default)]
struct Word {
    writer: Trace,
    reader: Trace,
    /// Bytes that hold something.
    written: u8,
    /// Bytes that a cp.async will write.
    in_flight: u8,
}

/// The shadow of a block's shared memory.
#[derive(Default)]
pub(super) struct Shared(Vec<Word>);

/// The words of a range, and which bytes of each are in it.
fn words(at: usize, bytes: usize) -> impl Iterator<Item = (usize, u8)> {
    let end = at + bytes;
    (at / 4..end.div_ceil(4)).map(move |word| {
        let (from, to) = (at.max(word * 4) - word * 4, end.min(word * 4 + 4) - word * 4);
        (word, ((1u8 << to) - 1) & !((1u8 << from) - 1))
    })
}

type Checked = Result<(), String>;
/// Whether all that was read was written before, by what is ordered before the read.
type Defined = Result<bool, String>;

impl Shared {
    /// Nothing is written.
    pub(super) fn reset(&mut self, bytes: usize) {
        self.0.clear();
        self.0.resize(bytes.div_ceil(4), Word::default());
    }

    pub(super) fn read(&mut self, at: usize, bytes: usize, who: Who) -> Defined {
        let mut defined = true;
        for (i, mask) in words(at, bytes) {
            let word = &mut self.0[i];
            if word.in_flight & mask != 0 {
                return Err(format!("reads shared memory at {at} to which a cp.async is under way: a wait is missing"));
            }
            defined &= word.written & mask == mask;
            meet(&word.writer, mask, who, false, "reads", at)?;
            word.add_reader(mask, who);
        }
        Ok(defined)
    }

    pub(super) fn write(&mut self, at: usize, bytes: usize, who: Who, atomic: bool) -> Checked {
        for (i, mask) in words(at, bytes) {
            let word = &mut self.0[i];
            if atomic && word.written & mask != mask {
                return Err(format!("reads shared memory at {at} that was never written"));
            }
            meet(&word.writer, mask, who, atomic, "writes", at)?;
            if word.reader.bytes & mask != 0 && !who.follows(&word.reader) {
                let other = word.reader.describe();
                return Err(format!("writes shared memory at {at}, which {other} has read: a barrier is missing"));
            }
            word.writer = Trace::of(who, mask, atomic);
            word.written |= mask;
            word.in_flight &= !mask;
        }
        Ok(())
    }

    /// A value that was not written before was written here.
    pub(super) fn undefine(&mut self, at: usize, bytes: usize) {
        words(at, bytes).for_each(|(i, mask)| self.0[i].written &= !mask);
    }

    /// A cp.async begins: until it lands nothing can be read there.
    pub(super) fn begin_copy(&mut self, at: usize, bytes: usize, who: Who) -> Checked {
        self.write(at, bytes, who, false)?;
        for (i, mask) in words(at, bytes) {
            self.0[i].in_flight |= mask;
        }
        Ok(())
    }

    /// It has landed: as if the thread had written now.
    pub(super) fn end_copy(&mut self, at: usize, bytes: usize, who: Who) {
        for (i, mask) in words(at, bytes) {
            self.0[i].writer = Trace::of(who, mask, false);
            self.0[i].in_flight &= !mask;
        }
    }
}

/// Whether the last writer of these bytes is ordered before an access.
fn meet(writer: &Trace, mask: u8, who: Who, atomic: bool, does: &str, at: usize) -> Checked {
    if writer.bytes & mask == 0 || who.follows(writer) || (atomic && writer.atomic) {
        return Ok(());
    }
    let other = writer.describe();
    Err(format!("{does} shared memory at {at}, which {other} has written: a barrier is missing"))
}

impl Trace {
    fn describe(&self) -> String {
        match self.thread {
            MANY => "threads of several warps".into(),
            warp @ WARP.. => format!("warp {}", (warp - WARP) / 32),
            thread => format!("thread {thread}"),
        }
    }
}

impl Word {
    fn add_reader(&mut self, mask: u8, who: Who) {
        let new = Trace::of(who, mask, false);
        let old = self.reader;
        if old.bytes == 0 || old.interval < who.interval {
            self.reader = new;
            return;
        }
        if old.thread == who.thread && old.warp_interval == who.warp_interval {
            self.reader.bytes |= mask;
            return;
        }
        let same_warp = old.thread < MANY && old.thread % WARP / 32 == who.warp();
        let thread = match same_warp {
            true if old.warp_interval < who.warp_interval => {
                self.reader = new;
                return;
            }
            true => WARP + who.warp() * 32,
            false => MANY,
        };
        self.reader = Trace { thread, bytes: old.bytes | mask, ..new };
    }
}

/// The shadow of an allocation of global memory: for each word the launch and block that wrote it last, and the thread and
/// the barriers before it. Empty until a kernel writes there.
#[derive(Default)]
pub(super) struct Global(Vec<[u64; 2]>);

/// In place of a thread: an atomic instruction of any.
const ATOMIC: u64 = 0xffff;

impl Global {
    fn meet(word: [u64; 2], launch: u32, who: Who, atomic: bool) -> bool {
        if (word[0] >> 32) as u32 != launch {
            return true;
        }
        let thread = word[1] >> 48;
        if atomic && thread == ATOMIC {
            return true;
        }
        let trace = Trace {
            thread: thread as u16,
            bytes: 15,
            atomic: false,
            interval: (word[1] >> 24) as u32 & 0xff_ffff,
            warp_interval: word[1] as u32 & 0xff_ffff,
        };
        word[0] as u32 == who.block && (trace.interval < who.interval || (thread != ATOMIC && who.follows(&trace)))
    }

    /// What a thread of this launch reads must not have been written by another of its block without a barrier. What
    /// another block writes in the same launch counts as not written.
    pub(super) fn read(&self, at: usize, bytes: usize, launch: u32, who: Who) -> Defined {
        if self.0.is_empty() {
            return Ok(true);
        }
        let mut defined = true;
        for word in &self.0[at / 4..(at + bytes).div_ceil(4)] {
            if Global::meet(*word, launch, who, false) {
                continue;
            }
            if word[0] as u32 == who.block {
                let other = Global::describe(*word);
                return Err(format!("reads global memory that {other} has written: a barrier is missing"));
            }
            defined = false;
        }
        Ok(defined)
    }

    /// As for reading; values of less than a word may share one.
    pub(super) fn write(
        &mut self,
        size: usize,
        at: usize,
        bytes: usize,
        launch: u32,
        who: Who,
        atomic: bool,
    ) -> Checked {
        if self.0.is_empty() {
            self.0 = vec![[0; 2]; size.div_ceil(4)];
        }
        let thread = if atomic { ATOMIC } else { who.thread as u64 };
        let barriers = (who.interval as u64 & 0xff_ffff) << 24 | who.warp_interval as u64 & 0xff_ffff;
        for i in at / 4..(at + bytes).div_ceil(4) {
            let whole = at <= i * 4 && i * 4 + 4 <= at + bytes;
            if !whole {
                continue;
            }
            if !Global::meet(self.0[i], launch, who, atomic) {
                return Err(format!(
                    "writes global memory that {} has written in this launch",
                    Global::describe(self.0[i])
                ));
            }
            self.0[i] = [(launch as u64) << 32 | who.block as u64, thread << 48 | barriers];
        }
        Ok(())
    }

    fn describe(word: [u64; 2]) -> String {
        match word[1] >> 48 {
            ATOMIC => "an atomic instruction".into(),
            thread => format!("thread {thread} of block {}", word[0] as u32),
        }
    }
}
