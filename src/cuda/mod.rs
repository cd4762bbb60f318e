//! The GPU, where there is one: found at run time through the driver, which is the only thing that a user needs.
//!
//! One device, one stream of work in order and a second one for copies. Kernels are PTX in this binary (`kernels.rs`),
//! which the driver compiles for its device. Nothing above this floor calls the driver.

#![allow(unsafe_code)] // driver calls; each states what it relies on

mod args;
#[rustfmt::skip]
mod codes;
mod kernels;
#[rustfmt::skip]
pub mod launch;
mod measure;

use args::Arg;
pub use args::{CacheArg, Grid, count_launches, int};
pub use kernels::{all as modules, module_of};

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, bail};
use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys;

/// The oldest compute capability that the kernels are made for.
const OLDEST: (i32, i32) = (7, 5);
/// The oldest driver: of CUDA 11.4, the first with all calls that are made here.
const OLDEST_DRIVER: i32 = 11040;

/// Bytes up to which a kernel copies.
const SMALL: usize = 64 << 10;

/// 12.8 for 12080.
fn cuda_version(n: i32) -> String {
    format!("{}.{}", n / 1000, n % 1000 / 10)
}

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
    /// Work in order.
    pub work: Stream,
    /// The stream of copies, which runs concurrently.
    pub copies: Stream,
    modules: Mutex<HashMap<&'static str, sys::CUmodule>>,
    functions: Mutex<HashMap<(&'static str, String), Function>>,
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

/// A call that the driver refused.
fn refused(what: &str, e: DriverError) -> anyhow::Error {
    let name = e.error_name().ok().and_then(|n| n.to_str().ok()).unwrap_or("an unknown error").to_owned();
    anyhow!("the GPU's driver refused {what}: {name}")
}

trait DriverContext<T> {
    fn driver_context(self, what: &str) -> Result<T>;
}
impl<T> DriverContext<T> for Result<T, DriverError> {
    fn driver_context(self, what: &str) -> Result<T> {
        self.map_err(|e| refused(what, e))
    }
}

impl Gpu {
    /// Opens the device with the most memory, the first of equals, or says in words why there is none to use.
    ///
    /// # Errors
    /// If there is no driver, no device, or a device that the kernels do not run on; the message says which.
    pub fn open() -> Result<Gpu> {
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
        use sys::CUdevice_attribute as A;
        // SAFETY: the device was handed out by the driver, and stays valid for the process's life.
        let of = |d: sys::CUdevice, a: A| {
            unsafe { cu::device::get_attribute(d, a) }.driver_context("to describe the device")
        };
        let capability_of = |d| -> Result<(i32, i32)> {
            Ok((
                of(d, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                of(d, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ))
        };
        // Of several devices the one with the most memory that the kernels are made for.
        let n = cu::device::get_count().driver_context("to count its devices")?;
        let devices =
            (0..n).map(cu::device::get).collect::<Result<Vec<_>, _>>().driver_context("to name its devices")?;
        // SAFETY: as above.
        let memory = |d: &sys::CUdevice| unsafe { cu::device::total_mem(*d) }.unwrap_or(0);
        let fits = |d: &&sys::CUdevice| capability_of(**d).is_ok_and(|c| c >= OLDEST);
        let best = devices.iter().rev().filter(fits).max_by_key(|d| memory(d)).or(devices.first());
        let device = *best.context("the NVIDIA driver finds no GPU")?;
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
            work,
            copies,
            modules: Mutex::default(),
            functions: Mutex::default(),
            context: Context { device, context },
        })
    }

    /// Makes the device this thread's: every thread that starts work on it calls this first.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context lives.
        unsafe { cu::ctx::set_current(self.context.context) }.driver_context("a context")
    }

    /// Bytes of device memory: free now, and in all.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn memory(&self) -> Result<(usize, usize)> {
        cu::mem_get_info().driver_context("to tell its memory")
    }

    /// Device memory; contents are anything. An error names what it was for.
    ///
    /// # Errors
    /// [`OutOfMemory`], which names what the memory was for, or another error of the driver.
    pub fn alloc(&self, bytes: usize, what: &str) -> Result<Buffer> {
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
    /// pages that `owner` holds.
    ///
    /// # Errors
    /// If the system or the driver does not pin these pages.
    pub fn register(&self, owner: Owner, bytes: Range<usize>) -> Result<Registered> {
        let at = (*owner).as_ref()[bytes.clone()].as_ptr();
        // Read-only pages (a mapped file's) can be pinned where the system knows pages that a device only reads.
        let flags = sys::CU_MEMHOSTREGISTER_READ_ONLY;
        // SAFETY: the memory lives as long as `owner`, which the result keeps until it has given the memory back; the
        // device is only ever told to read from it.
        unsafe { sys::cuMemHostRegister_v2(at.cast_mut().cast(), bytes.len(), flags) }
            .result()
            .driver_context(&format!("to pin {} MB of the model", bytes.len() >> 20))?;
        Ok(Registered { at, _owner: owner })
    }

    /// Copies to the device, in the stream's order. Memory that is not pinned has been read when this returns.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn upload<T: bytemuck::NoUninit>(&self, stream: &Stream, to: Ptr, from: &[T]) -> Result<()> {
        // SAFETY: the callers hand out pointers into their own buffers; pinned memory outlives the stream's work because
        // its owner waits for the stream before it is reused or dropped.
        unsafe { cu::memcpy_htod_async(to.0, from, stream.0) }.driver_context("a copy to the device")
    }

    /// Copies from pinned memory, from byte `at` on, when the stream gets there.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn upload_pinned(&self, stream: &Stream, to: Ptr, from: &Pinned, at: usize, bytes: usize) -> Result<()> {
        assert!(at + bytes <= from.bytes);
        // SAFETY: the memory is as long; its owner writes to it again only after an event that follows this copy.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, from.at.add(at).cast(), bytes, stream.0) }
            .result()
            .driver_context("a copy to the device")
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
        // Pinned memory has one address for both (unified addressing, on every 64-bit system).
        let words = bytes.len().div_ceil(4);
        launch::bring(Some(self), Grid::each(words), Ptr(from.at as u64).at(bytes.start), to, words as u64)
    }

    /// Copies from the device, in the stream's order: done when the stream has been waited for.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn download<T: bytemuck::AnyBitPattern>(&self, stream: &Stream, to: &mut [T], from: Ptr) -> Result<()> {
        // SAFETY: as above.
        unsafe { cu::memcpy_dtoh_async(to, from.0, stream.0) }.driver_context("a copy from the device")
    }

    /// Copies from the device into pinned memory, which fills when the stream gets there.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn download_pinned(&self, stream: &Stream, to: &Pinned, bytes: Range<usize>, from: Ptr) -> Result<()> {
        assert!(bytes.end <= to.bytes);
        // SAFETY: the memory is as long; its owner reads it only after an event that follows this copy.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.at.add(bytes.start).cast(), from.0, bytes.len(), stream.0) }
            .result()
            .driver_context("a copy from the device")
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn copy(&self, stream: &Stream, to: Ptr, from: Ptr, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { cu::memcpy_dtod_async(to.0, from.0, bytes, stream.0) }.driver_context("a copy on the device")
    }

    /// Fills device memory with zeros.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn zero(&self, stream: &Stream, to: Ptr, bytes: usize) -> Result<()> {
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

    /// Starts kernel `name` of a module. `args` must be what the kernel's source declares: only the functions of `launch`,
    /// which are made from the sources, call this.
    fn launch(&self, (module, name): (&'static str, &str), grid: Grid, args: &[Arg]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let f = self.function(module, name, grid.shared_bytes)?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::at).collect();
        let [x, y, z] = grid.blocks.map(|n| n as u32);
        let (threads, shared) = (grid.threads as u32, grid.shared_bytes as u32);
        // SAFETY: the function belongs to a module that lives as long as the device; the arguments are read before the
        // call returns, and are those of the prototype that the caller was made from.
        unsafe { cu::launch_kernel(f, (x, y, z), (threads, 1, 1), shared, self.work.0, &mut pointers) }
            .driver_context(&format!("to start {name}"))
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
        let module = unsafe { cu::module::load_data(image.as_ptr().cast()) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
                anyhow!("the driver (CUDA {}) is too old for the kernels", cuda_version(self.driver))
            }
            _ => refused(&format!("the kernels of {name}"), e),
        })?;
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
        let graph = unsafe { cu::stream::end_capture(self.work.0) };
        done?;
        let graph = graph.driver_context("a graph")?;
        // SAFETY: the graph was just made; what runs is a copy of it.
        unsafe {
            let exec = cu::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            cu::graph::destroy(graph).driver_context("to forget a graph")?;
            Ok(Graph(exec.driver_context("a graph")?))
        }
    }

    /// Starts a graph on the work stream.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: the graph lives; what it names outlives it, by its owner's promise.
        unsafe { cu::graph::launch(graph.0, self.work.0) }.driver_context("to start a graph")
    }
}

// SAFETY: the driver's handles may be used from every thread that has the context (`enter`); the driver itself orders
// what several threads start on one stream.
unsafe impl Send for Gpu {}
// SAFETY: as above; what is kept here is guarded by locks.
unsafe impl Sync for Gpu {}

/// Device memory ran out.
#[derive(Debug)]
pub struct OutOfMemory {
    /// The purpose of the allocation.
    pub what: String,
    /// Bytes that were asked for.
    pub bytes: usize,
    /// Bytes that were free, where that is known.
    pub free: Option<usize>,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |b: usize| b as f64 / 1e6;
        write!(f, "{:.1} MB of {}", mb(self.bytes), self.what)?;
        self.free.map_or(Ok(()), |free| write!(f, ", {:.1} MB are free", mb(free)))
    }
}

impl std::error::Error for OutOfMemory {}

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
    at: *mut u8,
    bytes: usize,
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

/// Work that runs in order.
#[derive(Debug)]
pub struct Stream(sys::CUstream);

impl Stream {
    fn new() -> Result<Stream> {
        Ok(Stream(cu::stream::create(cu::stream::StreamKind::NonBlocking).driver_context("a stream")?))
    }

    /// Waits until everything in it is done.
    ///
    /// # Errors
    /// If work that is waited for failed, or the driver reports another error.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives.
        unsafe { cu::stream::synchronize(self.0) }.driver_context("to finish")
    }

    /// What comes after waits for the event.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn after(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        unsafe { cu::stream::wait_event(self.0, event.0, flags) }.driver_context("to wait for an event")
    }
}

// SAFETY: see `Gpu`.
unsafe impl Send for Stream {}
// SAFETY: see `Gpu`.
unsafe impl Sync for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created in `new`.
        let _ = unsafe { cu::stream::destroy(self.0) };
    }
}

/// A point in a stream.
#[derive(Debug)]
pub struct Event(sys::CUevent);

impl Event {
    /// An event that no stream has passed yet.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn new() -> Result<Event> {
        Ok(Event(cu::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).driver_context("an event")?))
    }

    /// An event that records the time at which a stream passes it.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn timed() -> Result<Event> {
        Ok(Event(cu::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).driver_context("an event")?))
    }

    /// Seconds from `start` to this; both keep the time and have been passed.
    ///
    /// # Errors
    /// If one of them keeps no time or has not been passed.
    pub fn since(&self, start: &Event) -> Result<f64> {
        // SAFETY: both live.
        let ms = unsafe { cu::event::elapsed(start.0, self.0) }.driver_context("to tell a time")?;
        Ok(ms as f64 / 1e3)
    }

    /// Marks the end of what is in the stream now.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both live.
        unsafe { cu::event::record(self.0, stream.0) }.driver_context("to record an event")
    }

    /// Waits until the stream has passed it.
    ///
    /// # Errors
    /// If work that is waited for failed, or the driver reports another error.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event lives.
        unsafe { cu::event::synchronize(self.0) }.driver_context("to finish")
    }

    /// Whether the stream has passed it.
    ///
    /// # Errors
    /// If work before the event failed, or the driver reports another error.
    pub fn is_done(&self) -> Result<bool> {
        // SAFETY: the event lives.
        match unsafe { cu::event::query(self.0) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(refused("to finish", e)),
        }
    }
}

// SAFETY: see `Gpu`.
unsafe impl Send for Event {}
// SAFETY: see `Gpu`.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created in `new`.
        let _ = unsafe { cu::event::destroy(self.0) };
    }
}

/// Recorded work.
#[derive(Debug)]
pub struct Graph(sys::CUgraphExec);

// SAFETY: see `Gpu`.
unsafe impl Send for Graph {}
// SAFETY: see `Gpu`.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made in `capture`.
        let _ = unsafe { cu::graph::exec_destroy(self.0) };
    }
}
