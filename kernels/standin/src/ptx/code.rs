//! Decoded kernels: instructions whose operands are numbers of registers.

use super::exchange::Exchange;
use super::lanes::{Lanes, Reg};
use super::memory::{Access, Atomic};
use super::tensor::Mma;

/// A kernel.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its parameters, in order.
    pub params: Vec<Param>,
    /// The most threads of a block (`.maxntid`), where it says so.
    pub most_threads: Option<u32>,
    /// Bytes of shared memory that its variables take; dynamic shared memory begins behind them.
    pub(super) shared_bytes: usize,
    /// Bytes of a thread's local memory.
    pub(super) local_bytes: usize,
    pub(super) code: Vec<Inst>,
    /// How many registers of each class there are, constants included.
    pub(super) n_regs: [usize; 3],
    /// Registers that hold constants, and their values.
    pub(super) constants: Vec<(Reg, u64)>,
    /// Registers that hold what a thread is told of its place.
    pub(super) specials: Vec<(Reg, Special)>,
}

impl Entry {
    /// Bytes of shared memory that a block takes, without what its launch asks for.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }
}

/// A parameter of a kernel: where it lies among all of them, and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    pub(super) name: String,
    /// Bytes from the start of the parameters.
    pub offset: usize,
    /// Its size.
    pub bytes: usize,
}

/// What a thread is told of its place; numbers of axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
}

#[derive(Debug)]
pub(super) struct Inst {
    pub(super) op: Op,
    /// A predicate, and whether lanes run where it is not set.
    pub(super) guard: Option<(u16, bool)>,
    /// The registers that it reads, but for its guard; in what is not for each lane by itself those alone that must have
    /// been written: addresses and masks.
    pub(super) reads: Box<[Reg]>,
    /// The line of the text, from 1.
    pub(super) line: u32,
    /// As the text has it.
    pub(super) name: Box<str>,
}

#[derive(Debug)]
pub(super) enum Op {
    /// Each lane for itself, in registers.
    Lanes(Lanes),
    Load(Access),
    Store(Access),
    /// A parameter of the kernel; bytes from the start.
    LoadParam(Access),
    Atomic(Atomic),
    /// To shared memory, from global memory, so many bytes.
    CopyAsync {
        to: Reg,
        to_offset: i64,
        from: Reg,
        from_offset: i64,
        bytes: usize,
    },
    CopyCommit,
    /// So many of the youngest groups may be under way.
    CopyWait(u32),
    /// The number of an instruction.
    Branch(usize),
    Return,
    /// bar.sync 0
    Barrier,
    /// A mask.
    WarpBarrier(u16),
    Exchange(Exchange),
    LoadMatrix {
        to: [u16; 4],
        n: usize,
        transposed: bool,
        at: Reg,
        offset: i64,
    },
    Mma(Mma),
    Nothing,
}
