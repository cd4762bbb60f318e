//! The GPU, where there is one: found at run time through the driver, which is the only thing that a user needs.
//!
//! One device, one stream of work in order and a second one for copies. Kernels are PTX in this binary (`kernels.rs`),
//! which the driver compiles for its device. Nothing above this floor calls the driver.

#![allow(unsafe_code)] // driver calls; each states what it relies on

mod args;
#[rustfmt::skip]
mod codes;
mod errors;
mod join;
mod kernels;
#[rustfmt::skip]
pub mod launch;
mod measure;
mod memory;
mod open;
mod pinning;
mod queue;
mod streams;

use args::Arg;
pub use args::{CacheArg, Grid, int};
use errors::DriverContext;
pub use errors::{DriverFailed, OutOfMemory, is_failure};
use join::Launch;
pub use kernels::{all as modules, module_of};
pub use memory::{Arena, Buffer, Pinned, Ptr, Registered};
pub use pinning::{HostMemory, PinMode, pin_mode};
use queue::LaunchQueue;
pub use queue::count_launches;
pub use streams::{Event, Graph, Stream};

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::ops::Range;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use cudarc::driver::result as cu;
use cudarc::driver::sys;

/// Bytes up to which a kernel copies ([`Gpu::bring`], [`Gpu::send`]).
pub const SMALL: usize = 64 << 10;

thread_local! {
    /// Whether this thread only looks up the kernels that it starts ([`Gpu::load_kernels`]).
    static LOOKS_UP: Cell<bool> = const { Cell::new(false) };
}

/// How long kernels are compiled before the user is told.
const PATIENCE: Duration = Duration::from_millis(1000);

/// An open device.
pub struct Gpu {
    /// The driver's name of the device.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub processors: usize,
    /// Shared memory that a block may ask for, in bytes.
    pub shared: usize,
    /// The driver's version as it counts it: 12080 for 12.8.
    pub driver: i32,
    /// Whether it also draws a screen.
    pub shown: bool,
    /// Whether read-only pages can be pinned: device attribute 113.
    pins_read_only: bool,
    /// The version of NVIDIA's kernel module, where the system tells it.
    pub kernel_module: Option<String>,
    /// Every kernel and copy is waited for, so that an error names its own (`TANDEM_GPU_SYNC=1`).
    pub sync: bool,
    /// Work in order.
    pub work: Stream,
    /// The stream of copies, which runs concurrently.
    pub copies: Stream,
    modules: Mutex<HashMap<&'static str, sys::CUmodule>>,
    functions: Mutex<HashMap<(&'static str, String), Function>>,
    /// The launches that wait for the next one.
    queue: Mutex<LaunchQueue>,
    /// Released after all of the above.
    context: Context,
}

/// The device's primary context.
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`, once.
        unsafe {
            let _ = cu::ctx::set_current(self.context);
            let _ = cu::ctx::synchronize();
            let _ = cu::primary_ctx::release(self.device);
        }
    }
}

#[derive(Clone, Copy)]
struct Function {
    f: sys::CUfunction,
    /// Dynamic shared memory that it was allowed.
    shared: usize,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "{} (sm_{major}{minor})", self.name)
    }
}

/// A map of what is loaded; a thread that panicked left it whole.
fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Makes the device this thread's: every thread that starts work on it calls this first.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context lives.
        unsafe { cu::ctx::set_current(self.context.context) }.driver_context("a context")
    }

    /// How memory of this kind may be pinned here, or why not.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn pin_mode(&self, memory: HostMemory) -> Result<PinMode, String> {
        pin_mode(self.pins_read_only, self.kernel_module.as_deref(), memory)
    }

    /// Loads the kernels that `f` would start: the driver compiles them now, and what they take of
    /// the device's memory is no longer free. Nothing is started. Where that takes a while, a
    /// notice says what the time goes into.
    ///
    /// # Errors
    /// If the driver does not take a kernel.
    pub fn load_kernels(&self, f: impl FnOnce() -> Result<()>) -> Result<()> {
        self.enter()?;
        LOOKS_UP.set(true);
        let done = with_notice(
            PATIENCE,
            || tracing::info!("compiling kernels for {}; this happens once, the driver keeps them", self.name),
            f,
        );
        LOOKS_UP.set(false);
        done
    }

    /// Waits for what was just started in a stream, where every step is waited for; an error is
    /// that of `kernel`.
    fn settle(&self, stream: &Stream, kernel: Option<&str>) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        stream.wait().map_err(|e| match kernel {
            Some(kernel) => errors::of_kernel(e, kernel),
            None => e,
        })
    }

    /// Copies to the device, in the stream's order. Memory that is not pinned has been read when this returns.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn upload<T: bytemuck::NoUninit>(&self, stream: &Stream, to: Ptr, from: &[T]) -> Result<()> {
        self.flush()?;
        // SAFETY: the callers hand out pointers into their own buffers; pinned memory outlives the stream's work because
        // its owner waits for the stream before it is reused or dropped.
        unsafe { cu::memcpy_htod_async(to.0, from, stream.0) }.driver_context("a copy to the device")?;
        self.settle(stream, None)
    }

    /// Copies from pinned memory, from byte `at` on, when the stream gets there.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn upload_pinned(&self, stream: &Stream, to: Ptr, from: &Pinned, at: usize, bytes: usize) -> Result<()> {
        self.flush()?;
        assert!(at + bytes <= from.bytes);
        // SAFETY: the memory is as long; its owner writes to it again only after an event that follows this copy.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, from.at.add(at).cast(), bytes, stream.0) }
            .result()
            .driver_context("a copy to the device")?;
        self.settle(stream, None)
    }

    /// Copies `bytes` of pinned memory to the device in the work stream's order. Few are read by a kernel, so that they do
    /// not wait for large copies of the other stream for the one engine that copies.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn bring(&self, to: Ptr, from: &Pinned, bytes: Range<usize>) -> Result<()> {
        assert!(bytes.end <= from.bytes);
        if bytes.len() > SMALL {
            return self.upload_pinned(&self.work, to, from, bytes.start, bytes.len());
        }
        self.move_words(Ptr(from.at as u64).at(bytes.start), to, bytes.len())
    }

    /// Copies from the device, in the stream's order: done when the stream has been waited for.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn download<T: bytemuck::AnyBitPattern>(&self, stream: &Stream, to: &mut [T], from: Ptr) -> Result<()> {
        self.flush()?;
        // SAFETY: as above.
        unsafe { cu::memcpy_dtoh_async(to, from.0, stream.0) }.driver_context("a copy from the device")
    }

    /// Copies from the device into pinned memory, which fills when the stream gets there.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn download_pinned(&self, stream: &Stream, to: &Pinned, bytes: Range<usize>, from: Ptr) -> Result<()> {
        self.flush()?;
        assert!(bytes.end <= to.bytes);
        // SAFETY: the memory is as long; its owner reads it only after an event that follows this copy.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.at.add(bytes.start).cast(), from.0, bytes.len(), stream.0) }
            .result()
            .driver_context("a copy from the device")?;
        self.settle(stream, None)
    }

    /// Copies values from the device into pinned memory, in the work stream's order. Small ones are written by a kernel, and
    /// several that follow each other by one ([`Gpu::joined`]): a copy of its own costs about as much as a launch each.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn send(&self, to: &Pinned, bytes: Range<usize>, from: Ptr) -> Result<()> {
        assert!(bytes.end <= to.bytes);
        if bytes.len() > SMALL {
            return self.download_pinned(&self.work, to, bytes, from);
        }
        self.move_words(from, Ptr(to.at as u64).at(bytes.start), bytes.len())
    }

    /// A kernel that copies between pinned memory and the device's. Pinned memory has one address for both (unified
    /// addressing, on every 64-bit system).
    fn move_words(&self, from: Ptr, to: Ptr, bytes: usize) -> Result<()> {
        let (words, none) = (bytes.div_ceil(4), Ptr::default());
        launch::bring(Some(self), Grid::each(words), from, to, words as u64, none, none, 0, none, none, 0)
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn copy(&self, stream: &Stream, to: Ptr, from: Ptr, bytes: usize) -> Result<()> {
        self.flush()?;
        // SAFETY: as above.
        unsafe { cu::memcpy_dtod_async(to.0, from.0, bytes, stream.0) }.driver_context("a copy on the device")
    }

    /// Copies from another device's memory, in the order of this one's work.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn copy_from(&self, other: &Gpu, to: Ptr, from: Ptr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.flush()?;
        let (here, there) = (self.context.context, other.context.context);
        // SAFETY: as above; both contexts live as long as their devices.
        unsafe { sys::cuMemcpyPeerAsync(to.0, here, from.0, there, bytes, self.work.0) }
            .result()
            .driver_context("a copy between two devices")?;
        self.settle(&self.work, None)
    }

    /// Lets copies between this device and others go over the bus at once, where the machine can. Elsewhere the driver
    /// takes them through the host's memory.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn join(&self, others: &[Arc<Gpu>]) -> Result<()> {
        self.enter()?;
        for other in others.iter().filter(|o| o.context.device != self.context.device) {
            let mut can = 0;
            // SAFETY: writes one integer.
            unsafe { sys::cuDeviceCanAccessPeer(&mut can, self.context.device, other.context.device) }
                .result()
                .driver_context("to tell which devices reach each other")?;
            // SAFETY: the context lives. A refusal costs speed alone.
            let joined = can != 0
                && unsafe { sys::cuCtxEnablePeerAccess(other.context.context, 0) }
                    .result()
                    .inspect_err(|e| tracing::debug!("{:#}", errors::refused("to join two devices", *e)))
                    .is_ok();
            let how = if joined { "directly" } else { "through the host's memory" };
            tracing::debug!("copies from {} to {} go {how}", other.name, self.name);
        }
        Ok(())
    }

    /// Fills device memory with zeros.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn zero(&self, stream: &Stream, to: Ptr, bytes: usize) -> Result<()> {
        self.flush()?;
        // SAFETY: as above.
        unsafe { cu::memset_d8_async(to.0, 0, bytes, stream.0) }.driver_context("to clear memory")
    }

    /// Bytes per second over the bus to the device, from pinned memory, and through the device's own memory: the best of a
    /// few copies, of less where less is free.
    ///
    /// # Errors
    /// If there is no memory for the copies, or the driver reports an error.
    pub fn rates(&self) -> Result<(f64, f64)> {
        let (free, _) = self.memory()?;
        let bytes = (256 << 20).min(free / 4).max(1 << 20);
        let (host, a, b) = (
            self.pinned(bytes, "a measurement")?,
            self.alloc(bytes, "a measurement")?,
            self.alloc(bytes, "a measurement")?,
        );
        let (start, end) = (Event::timed()?, Event::timed()?);
        let best = |copy: &dyn Fn() -> Result<()>| -> Result<f64> {
            let mut best = f64::MAX;
            for _ in 0..4 {
                start.record(&self.work)?;
                copy()?;
                end.record(&self.work)?;
                end.wait()?;
                best = best.min(end.since(&start)?);
            }
            Ok(best.max(1e-9))
        };
        let up = best(&|| self.upload_pinned(&self.work, a.ptr(), &host, 0, bytes))?;
        let within = best(&|| self.copy(&self.work, b.ptr(), a.ptr(), bytes))?;
        Ok((bytes as f64 / up, 2.0 * bytes as f64 / within)) // read and written
    }

    /// Gives a launch to the driver.
    fn begin(&self, launch: &Launch) -> Result<()> {
        let (grid, (module, name)) = (launch.grid, (launch.kernel.0, &*launch.kernel.1));
        let f = self.function(module, name, grid.shared_bytes)?;
        if LOOKS_UP.get() {
            return Ok(());
        }
        let mut pointers: Vec<*mut c_void> = launch.args.iter().map(Arg::at).collect();
        let [x, y, z] = grid.blocks.map(|n| n as u32);
        let (threads, shared) = (grid.threads as u32, grid.shared_bytes as u32);
        // SAFETY: the function belongs to a module that lives as long as the device; the arguments are read before the
        // call returns, and are those of the prototype that the caller was made from, or that `join` made of such.
        unsafe { cu::launch_kernel(f, (x, y, z), (threads, 1, 1), shared, self.work.0, &mut pointers) }
            .driver_context(&format!("to start {name}"))?;
        self.settle(&self.work, Some(name))
    }

    fn function(&self, module: &'static str, name: &str, shared: usize) -> Result<sys::CUfunction> {
        let key = (module, name.to_owned());
        let known = lock(&self.functions).get(&key).copied();
        let mut found = match known {
            Some(f) => f,
            None => {
                let module = self.module(module)?;
                let c_name = CString::new(name).expect("kernel names have no zero bytes");
                // SAFETY: the module is loaded.
                let f =
                    unsafe { cu::module::get_function(module, c_name) }.driver_context(&format!("kernel {name}"))?;
                Function { f, shared: 48 << 10 }
            }
        };
        if shared > found.shared {
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            unsafe { cu::function::set_function_attribute(found.f, which, shared as i32) }
                .driver_context(&format!("{shared} bytes of shared memory to {name}"))?;
            found.shared = shared;
        }
        lock(&self.functions).insert(key, found);
        Ok(found.f)
    }

    fn module(&self, name: &'static str) -> Result<sys::CUmodule> {
        if let Some(m) = lock(&self.modules).get(name) {
            return Ok(*m);
        }
        let image = CString::new(kernels::ptx(name, self.capability)).expect("PTX has no zero bytes");
        // SAFETY: the image is a text that ends with a zero.
        let module = unsafe { cu::module::load_data(image.as_ptr().cast()) }
            .map_err(|e| errors::module_error(name, self.driver, e))?;
        lock(&self.modules).insert(name, module);
        Ok(module)
    }

    /// Records what `f` starts on the work stream, to be started again as one.
    ///
    /// # Errors
    /// If `f` fails, or the driver cannot record what it started.
    pub fn capture(&self, f: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours, and ends its capture below whatever `f` does.
        unsafe { cu::stream::begin_capture(self.work.0, mode) }.driver_context("to record a graph")?;
        let done = f();
        // SAFETY: as above.
        let recorded = unsafe { cu::stream::end_capture(self.work.0) }.map(Recording);
        done?; // what was recorded before it failed goes
        let recorded = recorded.driver_context("a graph")?;
        // SAFETY: the recording lives; what runs is a copy of it.
        let exec = unsafe { cu::graph::instantiate(recorded.0, sys::CUgraphInstantiate_flags(0)) };
        let graph = Graph(exec.driver_context("a graph")?);
        // What it takes of the device's memory it takes now, not when it is first started.
        type Upload = unsafe extern "C" fn(sys::CUgraphExec, sys::CUstream) -> sys::CUresult;
        // SAFETY: the driver's header declares the function like this.
        if let Some(upload) = unsafe { open::optional::<Upload>(c"cuGraphUpload") } {
            // SAFETY: both live.
            unsafe { upload(graph.0, self.work.0) }.result().driver_context("a graph")?;
        }
        Ok(graph)
    }

    /// Starts a graph on the work stream.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        self.flush()?;
        // SAFETY: the graph lives; what it names outlives it, by its owner's promise.
        unsafe { cu::graph::launch(graph.0, self.work.0) }.driver_context("to start a graph")
    }
}

// SAFETY: the driver's handles may be used from every thread that has the context (`enter`); the driver itself orders
// what several threads start on one stream.
unsafe impl Send for Gpu {}
// SAFETY: as above; what is kept here is guarded by locks.
unsafe impl Sync for Gpu {}

/// What a stream recorded; what runs is made of it.
struct Recording(sys::CUgraph);

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by the end of a capture, and destroyed once.
            let _ = unsafe { cu::graph::destroy(self.0) };
        }
    }
}

/// Does the work, and calls `notice` once meanwhile if it takes longer than `patience`. Where the
/// system starts no more threads, there is no notice.
fn with_notice<T>(patience: Duration, notice: impl Fn() + Sync, work: impl FnOnce() -> T) -> T {
    let (done, wait) = channel::<()>();
    std::thread::scope(|s| {
        let notice = &notice;
        let watch = move || {
            if wait.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                notice();
            }
        };
        let _ = std::thread::Builder::new().spawn_scoped(s, watch);
        let value = work();
        drop(done);
        value
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_notice_comes_once_where_work_takes_long_and_not_where_it_is_quick() {
        let said = AtomicUsize::new(0);
        let say = || _ = said.fetch_add(1, Ordering::SeqCst);
        assert_eq!(with_notice(Duration::from_secs(600), say, || 5), 5);
        assert_eq!(said.load(Ordering::SeqCst), 0, "and the work's end is not waited for by its watcher");
        with_notice(Duration::from_millis(1), say, || {
            while said.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
        });
        assert_eq!(said.load(Ordering::SeqCst), 1);
    }
}
