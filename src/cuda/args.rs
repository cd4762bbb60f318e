//! What a kernel is started with: the shape of its grid, and its arguments as the driver takes them.

use std::ffi::c_void;

use super::Ptr;
use super::codes::CacheType;

/// Threads of a block in kernels that have a thread per value.
const BLOCK: usize = 256;

/// The blocks that a kernel runs in, the threads of each, and the dynamic shared memory of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub(super) blocks: [usize; 3],
    pub(super) threads: usize,
    pub(super) shared_bytes: usize,
}

impl Grid {
    /// Blocks along x, y and z, of `threads` threads each. Nothing is started where one of the three is 0.
    pub fn new(blocks: [usize; 3], threads: usize) -> Grid {
        Grid { blocks, threads, shared_bytes: 0 }
    }

    /// A thread for each of `total` values.
    pub fn each(total: usize) -> Grid {
        Grid::new([total.div_ceil(BLOCK), 1, 1], BLOCK)
    }

    /// With dynamic shared memory for each block.
    pub fn with_shared(self, shared_bytes: usize) -> Grid {
        Grid { shared_bytes, ..self }
    }
}

/// A count as kernels take most of them. What may be larger is u64 in their prototypes.
///
/// # Panics
/// From 2^31 on.
pub fn int(n: usize) -> i32 {
    i32::try_from(n).expect("counts that kernels take as int are below 2^31")
}

/// `struct Cache` of kernels/attend.cu: rows by position in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheArg {
    /// The first sequence's first row.
    pub rows: u64,
    /// Bytes from a row to the next.
    pub row_bytes: u64,
    /// Bytes from a sequence to the next.
    pub seq_bytes: u64,
    /// Rows of a sequence.
    pub capacity: i32,
    /// The format of the rows.
    pub ty: CacheType,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    /// A pointer of any type; [`Ptr::default`] is null.
    Ptr(Ptr),
    /// int, or one of the enums of kernels/codes.cuh
    Int(i32),
    /// u64
    Long(u64),
    /// float
    Float(f32),
    /// struct Cache
    Cache(CacheArg),
}

impl Arg {
    /// Where the driver reads the value.
    pub(super) fn at(&self) -> *mut c_void {
        match self {
            Arg::Ptr(v) => (&raw const v.0).cast_mut().cast(),
            Arg::Int(v) => (&raw const *v).cast_mut().cast(),
            Arg::Long(v) => (&raw const *v).cast_mut().cast(),
            Arg::Float(v) => (&raw const *v).cast_mut().cast(),
            Arg::Cache(v) => (&raw const *v).cast_mut().cast(),
        }
    }
}
