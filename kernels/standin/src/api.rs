//! The driver's C interface: arguments to and from `driver`, which does the work.
//!
//! What every function leans on: the pointers that a caller hands in are those that the driver's documentation asks for,
//! null or valid for what is read or written there during the call.
#![allow(non_snake_case, clippy::missing_safety_doc)] // the interface's names

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::copy_nonoverlapping;

use crate::driver::{self, Code, Driver, End, Handle, Result, Shape, current, driver};

/// CUresult: 0, or a [`Code`].
type Status = c_int;

fn status(result: Result) -> Status {
    result.map_or_else(|code| code as Status, |()| 0)
}

/// Writes a result to where the caller wants it.
///
/// # Safety
/// `to` may be written.
unsafe fn give<T>(to: *mut T, value: Result<T>) -> Status {
    status(value.map(|value| {
        // SAFETY: by this function's own condition.
        unsafe { to.write(value) };
    }))
}

/// Does something with the driver, if no work of this thread's device has failed.
fn with(f: impl FnOnce(&mut Driver) -> Result) -> Status {
    status(driver().and_then(|mut d| f(&mut d)))
}

/// Gets something from the driver, if no work of this thread's device has failed.
///
/// # Safety
/// `to` may be written.
unsafe fn ask<T>(to: *mut T, f: impl FnOnce(&mut Driver) -> Result<T>) -> Status {
    // SAFETY: by this function's own condition.
    unsafe { give(to, driver().and_then(|mut d| f(&mut d))) }
}

/// Declares functions of the interface. Each may be called with what the driver's documentation asks for.
macro_rules! api {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        /// As the driver's documentation has it.
        ///
        /// # Safety
        /// The pointers are valid for what the documentation says is done with them.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> Status {
            // SAFETY: by this function's own condition.
            #[allow(unused_unsafe)]
            unsafe { $body }
        }
    )*};
}

fn exists(device: c_int) -> Result<usize> {
    usize::try_from(device).ok().filter(|&d| d < driver::count()).ok_or(Code::InvalidDevice)
}

// Devices and contexts.
api! {
    fn cuInit(_flags: c_uint) { status(if driver::count() > 0 { Ok(()) } else { Err(Code::NoDevice) }) }
    fn cuDriverGetVersion(version: *mut c_int) { give(version, Ok(13000)) }
    fn cuDeviceGetCount(n: *mut c_int) { give(n, Ok(driver::count() as c_int)) }
    fn cuDeviceGet(device: *mut c_int, i: c_int) { give(device, exists(i).map(|_| i)) }
    fn cuDeviceGetName(name: *mut c_char, n: c_int, device: c_int) {
        status(exists(device).map(|_| {
            let text = "emulated device"; // of every one, as cards of one kind have one name
            let len = text.len().min(n as usize - 1);
            copy_nonoverlapping(text.as_ptr(), name.cast(), len);
            name.add(len).write(0);
        }))
    }
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) { give(uuid, exists(device).map(|d| [d as u8 + 1; 16])) }
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) { give(uuid, exists(device).map(|d| [d as u8 + 1; 16])) }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) { give(bytes, exists(device).and_then(driver::total)) }
    fn cuDeviceGetAttribute(value: *mut c_int, which: c_int, device: c_int) {
        give(value, exists(device).map(|_| driver::attribute(which)))
    }
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) {
        give(context, exists(device).map(driver::context))
    }
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) { status(exists(device).map(|_| ())) }
    fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, _flags: c_uint) { status(exists(device).map(|_| ())) }
    fn cuCtxSetCurrent(context: Handle) { status(driver::enter(context)) }
    fn cuCtxGetCurrent(context: *mut Handle) { give(context, Ok(current().map_or(0, driver::context))) }
    fn cuCtxGetDevice(device: *mut c_int) { give(device, current().map(|d| d as c_int)) }
    fn cuCtxSynchronize() { with(Driver::wait_all) }
    fn cuDeviceCanAccessPeer(can: *mut c_int, from: c_int, to: c_int) {
        let both = exists(from).and_then(|from| Ok((from, exists(to)?)));
        give(can, both.map(|(from, to)| driver::can_reach(from, to) as c_int))
    }
    fn cuCtxEnablePeerAccess(context: Handle, _flags: c_uint) { with(|d| d.reach(context)) }
    fn cuGetErrorName(code: c_int, name: *mut *const c_char) {
        let known = Code::ALL.iter().find(|(c, _)| *c as c_int == code);
        give(name, Ok(known.map_or(c"CUDA_ERROR_UNKNOWN", |(_, name)| name).as_ptr()))
    }
    fn cuGetErrorString(_code: c_int, text: *mut *const c_char) {
        give(text, Ok(c"the emulated driver said why on stderr".as_ptr()))
    }
}

// Memory.
api! {
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        with(|d| {
            let (some, all) = d.memory()?;
            free.write(some);
            total.write(all);
            Ok(())
        })
    }
    fn cuMemAlloc_v2(at: *mut u64, bytes: usize) { ask(at, |d| d.allocate(bytes)) }
    fn cuMemFree_v2(at: u64) { with(|d| d.free(at)) }
    fn cuMemHostAlloc(at: *mut u64, bytes: usize, _flags: c_uint) { ask(at, |d| d.allocate_pinned(bytes)) }
    fn cuMemFreeHost(at: u64) { with(|d| d.free_pinned(at)) }
    fn cuMemHostRegister_v2(at: u64, bytes: usize, flags: c_uint) { with(|d| d.register(at, bytes, flags)) }
    fn cuMemHostUnregister(at: u64) { with(|d| d.unregister(at)) }
    fn cuMemHostGetDevicePointer_v2(device: *mut u64, host: u64, _flags: c_uint) { give(device, Ok(host)) }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        with(|d| d.copy(End::Device(to), End::Host(from), bytes, stream))
    }
    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        with(|d| d.copy(End::Host(to), End::Device(from), bytes, stream))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        with(|d| d.copy(End::Device(to), End::Device(from), bytes, stream))
    }
    fn cuMemcpyPeerAsync(to: u64, there: Handle, from: u64, here: Handle, bytes: usize, stream: Handle) {
        with(|d| d.copy_between((to, there), (from, here), bytes, stream))
    }
    fn cuMemcpyHtoD_v2(to: u64, from: u64, bytes: usize) {
        with(|d| {
            d.copy(End::Device(to), End::Host(from), bytes, 0)?;
            d.wait_all()
        })
    }
    fn cuMemcpyDtoH_v2(to: u64, from: u64, bytes: usize) {
        with(|d| {
            d.wait_all()?;
            d.copy(End::Host(to), End::Device(from), bytes, 0)
        })
    }
    fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: Handle) { with(|d| d.set(to, value, bytes, stream)) }
}

// Streams, events and graphs.
api! {
    fn cuStreamCreate(stream: *mut Handle, _flags: c_uint) { ask(stream, Driver::create_stream) }
    fn cuStreamCreateWithPriority(stream: *mut Handle, _flags: c_uint, _priority: c_int) {
        ask(stream, Driver::create_stream)
    }
    fn cuStreamDestroy_v2(stream: Handle) { with(|d| d.destroy_stream(stream)) }
    fn cuStreamSynchronize(stream: Handle) { with(|d| d.wait_stream(stream)) }
    fn cuStreamQuery(stream: Handle) { with(|d| d.query_stream(stream)) }
    fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) { with(|d| d.wait_event(stream, event)) }
    fn cuEventCreate(event: *mut Handle, _flags: c_uint) { ask(event, Driver::create_event) }
    fn cuEventDestroy_v2(_event: Handle) { 0 } // queued work may name it
    fn cuEventRecord(event: Handle, stream: Handle) { with(|d| d.record(event, stream)) }
    fn cuEventQuery(event: Handle) { with(|d| d.query_event(event)) }
    fn cuEventSynchronize(event: Handle) { with(|d| d.synchronize_event(event)) }
    fn cuEventElapsedTime(ms: *mut f32, from: Handle, to: Handle) { ask(ms, |d| d.elapsed(from, to)) }
    fn cuStreamBeginCapture_v2(stream: Handle, _mode: c_int) { with(|d| d.begin_capture(stream)) }
    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) { ask(graph, |d| d.end_capture(stream)) }
    fn cuGraphInstantiateWithFlags(exec: *mut Handle, graph: Handle, _flags: u64) {
        ask(exec, |d| d.instantiate(graph))
    }
    fn cuGraphLaunch(exec: Handle, stream: Handle) { with(|d| d.replay(exec, stream)) }
    fn cuGraphUpload(_exec: Handle, _stream: Handle) { 0 }
    fn cuGraphExecDestroy(exec: Handle) { with(|d| d.destroy_graph(exec)) }
    fn cuGraphDestroy(graph: Handle) { with(|d| d.destroy_graph(graph)) }
}

// Modules and launches.
api! {
    fn cuModuleLoadData(module: *mut Handle, image: *const c_char) {
        let text = CStr::from_ptr(image).to_str().map_err(|_| Code::InvalidImage);
        ask(module, |d| d.load(text?))
    }
    fn cuModuleLoadDataEx(
        module: *mut Handle,
        image: *const c_char,
        _n: c_uint,
        _options: *mut c_int,
        _values: *mut *mut c_void,
    ) {
        cuModuleLoadData(module, image)
    }
    fn cuModuleUnload(_module: Handle) { 0 } // its functions may still be queued
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) {
        let name = CStr::from_ptr(name).to_str().map_err(|_| Code::NotFound);
        ask(function, |d| d.function(module, name?))
    }
    fn cuFuncGetAttribute(value: *mut c_int, _which: c_int, _function: Handle) { give(value, Ok(0)) }
    fn cuFuncSetAttribute(function: Handle, which: c_int, value: c_int) {
        const MOST_DYNAMIC_SHARED: c_int = 8;
        if which == MOST_DYNAMIC_SHARED { with(|d| d.allow_shared(function, value)) } else { 0 }
    }
    fn cuLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared: c_uint,
        stream: Handle,
        params: *const *const u8,
        _extra: *mut *mut c_void,
    ) {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared };
        let mut param = |i: usize, to: &mut [u8]| copy_nonoverlapping(*params.add(i), to.as_mut_ptr(), to.len());
        with(|d| d.launch(function, shape, stream, &mut param))
    }
}
