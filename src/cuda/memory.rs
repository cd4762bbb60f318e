//! Memory that the device works with: its own, and the host's that it copies from and to by itself.

#![allow(unsafe_code)] // driver calls; each states what it relies on

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use cudarc::driver::result as cu;
use cudarc::driver::sys;

use super::errors::{DriverContext, OutOfMemory, refused};
use super::{Gpu, PinMode};

impl Gpu {
    /// Bytes of device memory: free now, and in all.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.enter()?;
        cu::mem_get_info().driver_context("to tell its memory")
    }

    /// Device memory; contents are anything. An error names what it was for.
    ///
    /// # Errors
    /// [`OutOfMemory`], which names what the memory was for, or another error of the driver.
    pub fn alloc(&self, bytes: usize, what: &str) -> Result<Buffer> {
        self.enter()?;
        // Kernels read whole words; the driver's own step is larger.
        let bytes = bytes.max(1).next_multiple_of(Arena::ALIGN);
        // SAFETY: the memory is freed when the buffer is dropped, and nowhere else.
        let ptr = unsafe { cu::malloc_sync(bytes) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = self.memory().map(|m| m.0).ok();
                OutOfMemory { what: format!("GPU memory for {what}"), bytes, free }.into()
            }
            _ => refused(&format!("{bytes} bytes of memory for {what}"), e),
        })?;
        Ok(Buffer { ptr, bytes })
    }

    /// Host memory that the device copies from and to by itself; zeros.
    ///
    /// # Errors
    /// If the system does not allow this much pinned memory; the message names what it was for.
    pub fn pinned(&self, bytes: usize, what: &str) -> Result<Pinned> {
        self.enter()?;
        // SAFETY: the memory is freed when the value is dropped, and nowhere else.
        let at = unsafe { cu::malloc_host(bytes.max(1), 0) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                OutOfMemory { what: format!("pinned host memory for {what}"), bytes, free: None }.into()
            }
            _ => refused(&format!("{bytes} bytes of pinned memory for {what}"), e),
        })?;
        // SAFETY: that many bytes were just handed out.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes.max(1)) };
        Ok(Pinned { at: at.cast(), bytes })
    }

    /// Makes host memory one that the device copies from by itself, for as long as the result lives. `bytes` are whole
    /// pages that `owner` holds, `mode` is how pages like these may be pinned ([`Gpu::pin_mode`]).
    ///
    /// # Errors
    /// If the system or the driver does not pin these pages.
    pub fn register(&self, owner: Owner, bytes: Range<usize>, mode: PinMode) -> Result<Registered> {
        self.enter()?;
        let at = (*owner).as_ref()[bytes.clone()].as_ptr();
        let flags = match mode {
            PinMode::ReadOnly => sys::CU_MEMHOSTREGISTER_READ_ONLY,
            PinMode::Plain => 0,
        };
        // SAFETY: the memory lives as long as `owner`, which the result keeps until it has given the memory back; the
        // device is only ever told to read from it.
        unsafe { sys::cuMemHostRegister_v2(at.cast_mut().cast(), bytes.len(), flags) }.result().map_err(|e| {
            let what = format!("{} MB of the model", bytes.len() >> 20);
            match e.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => anyhow!("the system does not pin {what}"),
                _ => refused(&format!("to pin {what}"), e),
            }
        })?;
        Ok(Registered { at, _owner: owner })
    }
}

/// A place in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ptr(pub u64);

impl Ptr {
    /// So many bytes further.
    pub fn at(self, bytes: usize) -> Ptr {
        Ptr(self.0 + bytes as u64)
    }
}

/// Device memory of our own.
#[derive(Debug)]
pub struct Buffer {
    ptr: u64,
    /// Its size.
    pub bytes: usize,
}

impl Buffer {
    /// Where it begins.
    pub fn ptr(&self) -> Ptr {
        Ptr(self.ptr)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `alloc`; the call waits for work that uses it.
        let _ = unsafe { cu::free_sync(self.ptr) };
    }
}

/// Device memory in one piece, of which parts are handed out from its start: what many small allocations would lose to the
/// driver's rounding is not lost, and what they take is known before.
#[derive(Debug)]
pub struct Arena {
    buffer: Buffer,
    used: std::cell::Cell<usize>,
}

impl Arena {
    /// The parts' step.
    pub const ALIGN: usize = 256;

    /// Allocates `bytes` of device memory; an error names `what` they were for.
    ///
    /// # Errors
    /// [`OutOfMemory`], which names what the memory was for, or another error of the driver.
    pub fn new(gpu: &Gpu, bytes: usize, what: &str) -> Result<Arena> {
        Ok(Arena { buffer: gpu.alloc(bytes, what)?, used: std::cell::Cell::new(0) })
    }

    /// So many bytes of it.
    ///
    /// # Panics
    /// If more is taken than there is: an error of this program.
    pub fn take(&self, bytes: usize) -> Ptr {
        let at = self.used.get();
        let end = at + bytes.next_multiple_of(Arena::ALIGN);
        assert!(end <= self.buffer.bytes, "{end} bytes of a piece of {}", self.buffer.bytes);
        self.used.set(end);
        self.buffer.ptr().at(at)
    }
}

/// Host memory that stays where it is, so that the device copies by itself.
#[derive(Debug)]
pub struct Pinned {
    pub(super) at: *mut u8,
    pub(super) bytes: usize,
}

// SAFETY: plain memory, owned by the value.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes as values.
    pub fn as_slice<T: bytemuck::AnyBitPattern>(&self) -> &[T] {
        // SAFETY: that many bytes were allocated, page-aligned, and set.
        bytemuck::cast_slice(unsafe { std::slice::from_raw_parts(self.at, self.bytes) })
    }

    /// As values to write.
    pub fn as_mut_slice<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        // SAFETY: as above, and the reference is the only one.
        bytemuck::cast_slice_mut(unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `pinned`.
        let _ = unsafe { cu::free_host(self.at.cast()) };
    }
}

/// Whoever holds memory that is pinned.
type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Someone else's memory, pinned.
pub struct Registered {
    at: *const u8,
    _owner: Owner,
}

// SAFETY: plain memory that is only read.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registered({:p})", self.at)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: registered in `register`, once; copies from it are over, by its owner's promise.
        let _ = unsafe { sys::cuMemHostUnregister(self.at.cast_mut().cast()) };
    }
}
