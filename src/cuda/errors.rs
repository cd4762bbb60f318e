//! What the driver refuses: memory that ran out, a call that failed, and a context that is gone.

use std::fmt;

use anyhow::{Result, anyhow};
use cudarc::driver::result::DriverError;
use cudarc::driver::sys;

/// Memory that the driver did not give.
#[derive(Debug)]
pub struct OutOfMemory {
    /// The purpose of the allocation.
    pub what: String,
    /// Bytes that were asked for; 0 where the driver alone knows.
    pub bytes: usize,
    /// Bytes that were free, where that is known.
    pub free: Option<usize>,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |b: usize| b as f64 / 1e6;
        match self.bytes {
            0 => write!(f, "{}", self.what)?,
            bytes => write!(f, "{:.1} MB of {}", mb(bytes), self.what)?,
        }
        self.free.map_or(Ok(()), |free| write!(f, ", {:.1} MB are free", mb(free)))
    }
}

impl std::error::Error for OutOfMemory {}

/// A call that the driver refused, or that reported what went wrong in work before it.
#[derive(Clone, Debug)]
pub struct DriverFailed {
    /// The call that reported it, in words: `to start add`.
    pub call: String,
    /// The driver's name of the error.
    pub name: String,
    /// Whether the context is gone: every later call fails too. The error then comes from work that
    /// ran before the call.
    pub is_lost: bool,
    /// The kernel that ran, where every one is waited for.
    pub kernel: Option<String>,
}

impl fmt::Display for DriverFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_lost, &self.kernel) {
            (true, Some(kernel)) => write!(f, "the GPU was lost in kernel {kernel}: {}", self.name),
            (true, None) => write!(f, "the GPU was lost: {}", self.name),
            _ => write!(f, "the GPU's driver refused {}: {}", self.call, self.name),
        }
    }
}

impl std::error::Error for DriverFailed {}

/// Errors after which a context is of no more use, by the driver's numbers: the device is
/// unavailable, ECC, NVLink, illegal address, launch timeout (the watchdog of a card that draws a
/// screen), context destroyed, assert, then the stack, an instruction, an alignment, an address
/// space, the program counter, any other fault of a kernel, a contained fault, unknown.
const LOST: [u32; 15] = [46, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999];

/// Whether the error, or one that it was made of, comes from a call of the driver that failed.
pub fn is_failure(e: &anyhow::Error) -> bool {
    e.is::<DriverFailed>() || e.is::<OutOfMemory>()
}

/// A call that the driver refused, in words.
pub(super) fn refused(call: &str, e: DriverError) -> anyhow::Error {
    if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return OutOfMemory { what: format!("GPU memory ({call})"), bytes: 0, free: None }.into();
    }
    let name = e.error_name().ok().and_then(|n| n.to_str().ok()).unwrap_or("an unknown error").to_owned();
    DriverFailed { call: call.to_owned(), name, is_lost: LOST.contains(&(e.0 as u32)), kernel: None }.into()
}

pub(super) trait DriverContext<T> {
    fn driver_context(self, call: &str) -> Result<T>;
}

impl<T> DriverContext<T> for Result<T, DriverError> {
    fn driver_context(self, call: &str) -> Result<T> {
        self.map_err(|e| refused(call, e))
    }
}

/// The error with the kernel that it comes from.
pub(super) fn of_kernel(e: anyhow::Error, kernel: &str) -> anyhow::Error {
    match e.downcast::<DriverFailed>() {
        Ok(failed) => DriverFailed { kernel: Some(kernel.to_owned()), ..failed }.into(),
        Err(other) => other,
    }
}

/// 12.8 for 12080.
pub(super) fn cuda_version(n: i32) -> String {
    format!("{}.{}", n / 1000, n % 1000 / 10)
}

/// A module that the driver does not take.
pub(super) fn module_error(name: &str, driver: i32, e: DriverError) -> anyhow::Error {
    match e.0 {
        sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            anyhow!("the driver (CUDA {}) is too old for the kernels", cuda_version(driver))
        }
        _ => refused(&format!("the kernels of {name}"), e),
    }
}
