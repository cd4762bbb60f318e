//! Which device is used, and how it is opened.

#![allow(unsafe_code)] // driver calls; each states what it relies on

use std::ffi::{CStr, c_uint};
use std::sync::Mutex;

use anyhow::{Context as _, Result, anyhow, bail};
use cudarc::driver::result as cu;
use cudarc::driver::sys::{self, CUdevice_attribute as A};

use super::errors::{DriverContext, cuda_version, refused};
use super::streams::{Stream, waits_asleep};
use super::{Context, Gpu, pinning};

/// The oldest compute capability that the kernels are made for.
const OLDEST: (i32, i32) = (7, 5);
/// The oldest driver: of CUDA 11.4, the first with all calls that are made here.
const OLDEST_DRIVER: i32 = 11040;

impl Gpu {
    /// Opens the device with the most memory, the first of equals, or says in words why there is none to use.
    ///
    /// # Errors
    /// If there is no driver, no device, or a device that the kernels do not run on; the message says which.
    pub fn open() -> Result<Gpu> {
        let (driver, devices) = devices()?;
        // SAFETY: as in `of`.
        let memory = |d: &sys::CUdevice| unsafe { cu::device::total_mem(*d) }.unwrap_or(0);
        let best = devices.iter().rev().filter(|d| is_new_enough(**d)).max_by_key(|d| memory(d)).or(devices.first());
        Gpu::open_device(driver, best.copied().context("the NVIDIA driver finds no GPU")?)
    }

    /// Opens those devices that the kernels run on, in the driver's order; of `only`, if that names any by their numbers.
    ///
    /// # Errors
    /// As [`Gpu::open`], if there is none of them; or if `only` names one that is not there or too old.
    pub fn open_all(only: Option<&[usize]>) -> Result<Vec<Gpu>> {
        let (driver, devices) = devices()?;
        if let Some(only) = only {
            let named = only.iter().map(|n| {
                let there = devices.get(*n).copied();
                there.with_context(|| format!("there is no GPU {n}; the NVIDIA driver finds {}", devices.len()))
            });
            let named = named.collect::<Result<Vec<_>>>()?;
            return named.into_iter().map(|d| Gpu::open_device(driver, d)).collect();
        }
        let mut usable: Vec<_> = devices.iter().copied().filter(|d| is_new_enough(*d)).collect();
        if usable.is_empty() {
            usable.extend(devices.first()); // whose error says what it lacks
        }
        if usable.is_empty() {
            bail!("the NVIDIA driver finds no GPU");
        }
        usable.into_iter().map(|d| Gpu::open_device(driver, d)).collect()
    }

    fn open_device(driver: i32, device: sys::CUdevice) -> Result<Gpu> {
        let attribute = |a: A| of(device, a);
        let capability = capability_of(device)?;
        let name = cu::device::get_name(device).driver_context("to name the device")?;
        if capability < OLDEST {
            let (major, minor) = capability;
            bail!("{name} has compute capability {major}.{minor}, the kernels need {}.{}", OLDEST.0, OLDEST.1);
        }
        let shown = attribute(A::CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT)? != 0;
        let processors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let shared = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        // A driver that does not know this one cannot do it.
        let pins_read_only = attribute(A::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED).unwrap_or(0) != 0;
        let kernel_module = pinning::kernel_module(&name);
        set_waiting(device);
        // SAFETY: the primary context is released when the `Gpu` is dropped.
        let context = unsafe { cu::primary_ctx::retain(device) }.driver_context("a context")?;
        // SAFETY: the context was just retained.
        unsafe { cu::ctx::set_current(context) }.driver_context("a context")?;
        let (work, copies) = (Stream::new()?, Stream::new()?);
        Ok(Gpu {
            name,
            capability,
            processors,
            shared,
            driver,
            shown,
            pins_read_only,
            kernel_module,
            sync: std::env::var_os("TANDEM_GPU_SYNC").is_some_and(|v| v != "0" && !v.is_empty()),
            work,
            copies,
            modules: Mutex::default(),
            functions: Mutex::default(),
            queue: Mutex::default(),
            context: Context { device, context },
        })
    }
}

fn of(device: sys::CUdevice, a: A) -> Result<i32> {
    // SAFETY: the device was handed out by the driver, and stays valid for the process's life.
    unsafe { cu::device::get_attribute(device, a) }.driver_context("to describe the device")
}

fn capability_of(device: sys::CUdevice) -> Result<(i32, i32)> {
    let major = of(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, of(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

/// Starts the driver: its version, and its devices.
fn devices() -> Result<(i32, Vec<sys::CUdevice>)> {
    // SAFETY: asks whether the library can be loaded, and calls nothing in it.
    if !unsafe { sys::is_culib_present() } {
        bail!("no NVIDIA driver is installed (libcuda was not found)");
    }
    cu::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => anyhow!("the NVIDIA driver finds no GPU"),
        _ => refused("to start", e),
    })?;
    let mut driver = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut driver) }.result().driver_context("to tell its version")?;
    if driver < OLDEST_DRIVER {
        let (has, want) = (cuda_version(driver), cuda_version(OLDEST_DRIVER));
        bail!("the NVIDIA driver is one of CUDA {has}, the kernels need one of {want} or newer: update it");
    }
    let n = cu::device::get_count().driver_context("to count its devices")?;
    let devices = (0..n).map(cu::device::get).collect::<Result<Vec<_>, _>>().driver_context("to name its devices")?;
    Ok((driver, devices))
}

/// Whether the kernels are made for a device.
fn is_new_enough(device: sys::CUdevice) -> bool {
    capability_of(device).is_ok_and(|c| c >= OLDEST)
}

/// Sets how a thread waits for the device, before its context is made. Where the pool's threads
/// spin between loops, so does the one that waits for the GPU: waking up takes some 20 to 50
/// microseconds, and a token has a wait for every layer. Where there are one or two CPUs, a thread
/// that spins takes the time of those that pin and copy experts, so it sleeps.
fn set_waiting(device: sys::CUdevice) {
    type SetFlags = unsafe extern "C" fn(sys::CUdevice, c_uint) -> sys::CUresult;
    let how =
        if waits_asleep() { sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC } else { sys::CUctx_flags::CU_CTX_SCHED_SPIN };
    // SAFETY: the driver's header declares the function like this.
    let Some(set) = (unsafe { optional::<SetFlags>(c"cuDevicePrimaryCtxSetFlags_v2") }) else { return };
    // SAFETY: as in `of`. Where the driver refuses, it chooses by itself.
    if let Err(e) = unsafe { set(device, how as c_uint) }.result() {
        tracing::debug!("{:#}", refused("to set how a wait is spent", e));
    }
}

/// A function of the driver's library, which an old one may lack: a call through the bindings would
/// panic there.
///
/// # Safety
/// The library was found, and the function is of type `F`.
pub(super) unsafe fn optional<F: Copy>(name: &CStr) -> Option<F> {
    // SAFETY: the caller's promise.
    let found = unsafe { sys::culib().get::<F>(name.to_bytes_with_nul()) };
    found.map(|f| *f).inspect_err(|e| tracing::debug!("the driver lacks {name:?}: {e}")).ok()
}
