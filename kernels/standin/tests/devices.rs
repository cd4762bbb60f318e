//! Several devices of different sizes, as their driver has them: contexts, memory, streams and events of each, copies between
//! them, and a fault that is one device's alone.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

use cuda as _; // the library whose functions are declared here

type Handle = usize;

unsafe extern "C" {
    fn cuInit(flags: c_uint) -> c_int;
    fn cuDeviceGetCount(n: *mut c_int) -> c_int;
    fn cuDeviceGetName(name: *mut c_char, n: c_int, device: c_int) -> c_int;
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> c_int;
    fn cuDeviceCanAccessPeer(can: *mut c_int, from: c_int, to: c_int) -> c_int;
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> c_int;
    fn cuCtxSetCurrent(context: Handle) -> c_int;
    fn cuCtxEnablePeerAccess(context: Handle, flags: c_uint) -> c_int;
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int;
    fn cuMemAlloc_v2(at: *mut u64, bytes: usize) -> c_int;
    fn cuMemHostAlloc(at: *mut u64, bytes: usize, flags: c_uint) -> c_int;
    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) -> c_int;
    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) -> c_int;
    fn cuMemcpyPeerAsync(to: u64, there: Handle, from: u64, here: Handle, bytes: usize, stream: Handle) -> c_int;
    fn cuStreamCreate(stream: *mut Handle, flags: c_uint) -> c_int;
    fn cuStreamSynchronize(stream: Handle) -> c_int;
    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) -> c_int;
    fn cuEventCreate(event: *mut Handle, flags: c_uint) -> c_int;
    fn cuEventRecord(event: Handle, stream: Handle) -> c_int;
    fn cuModuleLoadData(module: *mut Handle, image: *const c_char) -> c_int;
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) -> c_int;
    fn cuLaunchKernel(
        function: Handle,
        gx: c_uint,
        gy: c_uint,
        gz: c_uint,
        bx: c_uint,
        by: c_uint,
        bz: c_uint,
        shared: c_uint,
        stream: Handle,
        params: *const *const u8,
        extra: *mut *mut c_void,
    ) -> c_int;
}

const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const INVALID_CONTEXT: c_int = 201;
const INVALID_HANDLE: c_int = 400;
const ILLEGAL_ADDRESS: c_int = 700;
const PEER_ACCESS_ALREADY_ENABLED: c_int = 704;

/// What a call writes, which must succeed.
fn got<T: Default>(call: impl FnOnce(*mut T) -> c_int) -> T {
    let mut value = T::default();
    assert_eq!(call(&mut value), 0);
    value
}

/// A device with its context, a stream, an event, and memory of 4 KB.
struct Device {
    context: Handle,
    stream: Handle,
    event: Handle,
    memory: u64,
}

impl Device {
    fn open(number: c_int) -> Device {
        // SAFETY: each call writes to a place of its own.
        unsafe {
            let context = got(|to| cuDevicePrimaryCtxRetain(to, number));
            assert_eq!(cuCtxSetCurrent(context), 0);
            let (stream, event) = (got(|to| cuStreamCreate(to, 1)), got(|to| cuEventCreate(to, 2)));
            Device { context, stream, event, memory: got(|to| cuMemAlloc_v2(to, 4096)) }
        }
    }

    fn enter(&self) {
        // SAFETY: the context lives.
        assert_eq!(unsafe { cuCtxSetCurrent(self.context) }, 0);
    }
}

/// Writes 7 to the address that is its parameter.
const KERNEL: &CStr = c".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry seven(.param .u64 p)\n{\n\
    .reg .b32 %r<2>;\n.reg .b64 %rd<2>;\nld.param.u64 %rd0, [p];\nmov.u32 %r0, 7;\nst.global.u32 [%rd0], %r0;\nret;\n}\n";

fn launch(function: Handle, at: u64, stream: Handle) -> c_int {
    let params = [(&raw const at).cast::<u8>()];
    // SAFETY: the kernel has one parameter of 8 bytes.
    unsafe { cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, params.as_ptr(), null_mut()) }
}

#[test]
fn devices_have_memory_streams_and_faults_of_their_own() {
    // SAFETY: no other thread runs; the calls are handed what they ask for, and memory that they gave.
    unsafe {
        std::env::set_var("TANDEM_EMU_MEM_MB", "64,32");
        assert_eq!(cuInit(0), 0);
        assert_eq!(got(|to| cuDeviceGetCount(to)), 2);
        assert_eq!([0, 1].map(|d| got(|to| cuDeviceTotalMem_v2(to, d))), [64 << 20, 32 << 20]);
        let mut name = [0; 64];
        assert_eq!(cuDeviceGetName(name.as_mut_ptr(), 64, 1), 0);
        assert_eq!(CStr::from_ptr(name.as_ptr()), c"emulated device");
        let (first, second) = (Device::open(0), Device::open(1));

        // The second one is this thread's.
        let mut at = 0;
        assert_eq!(cuMemAlloc_v2(&mut at, 40 << 20), OUT_OF_MEMORY);
        let (mut free, mut total) = (0, 0);
        assert_eq!(cuMemGetInfo_v2(&mut free, &mut total), 0);
        assert_eq!((free, total), ((32 << 20) - 4096, 32 << 20));
        first.enter();
        assert_eq!(cuMemAlloc_v2(&mut at, 40 << 20), 0);

        // Up to one, over to the other, down from there: the second stream waits for the first's event.
        let host: u64 = got(|to| cuMemHostAlloc(to, 4096, 0));
        let words = host as *mut u32;
        (0..512).for_each(|i| words.add(i).write_volatile(5));
        let all_came = || (512..1024).all(|i| words.add(i).read_volatile() == 5);
        assert_eq!(cuMemcpyHtoDAsync_v2(first.memory, host, 2048, first.stream), 0);
        let (to, from) = ((second.memory, second.context), (first.memory, first.context));
        assert_eq!(cuMemcpyPeerAsync(to.0, from.1, from.0, to.1, 2048, first.stream), INVALID_VALUE);
        assert_eq!(cuMemcpyPeerAsync(to.0, to.1, from.0, from.1, 2048, first.stream), 0);
        assert_eq!(cuEventRecord(second.event, first.stream), INVALID_HANDLE);
        assert_eq!(cuEventRecord(first.event, first.stream), 0);
        second.enter();
        assert_eq!(cuStreamWaitEvent(second.stream, first.event, 0), 0);
        assert_eq!(cuMemcpyDtoHAsync_v2(host + 2048, second.memory, 2048, second.stream), 0);
        assert!(!all_came(), "nothing runs before it is waited for");
        assert_eq!(cuStreamSynchronize(second.stream), 0);
        assert!(all_came());

        // A kernel reaches its own device's memory, and another's where that was allowed.
        let module = got(|to| cuModuleLoadData(to, KERNEL.as_ptr()));
        let seven = got(|to| cuModuleGetFunction(to, module, c"seven".as_ptr()));
        assert_eq!(launch(seven, second.memory, first.stream), INVALID_HANDLE);
        first.enter();
        assert_eq!(launch(seven, second.memory, second.stream), INVALID_CONTEXT);
        second.enter();
        assert_eq!(got(|to| cuDeviceCanAccessPeer(to, 1, 0)), 1);
        assert_eq!(cuCtxEnablePeerAccess(first.context, 0), 0);
        assert_eq!(cuCtxEnablePeerAccess(first.context, 0), PEER_ACCESS_ALREADY_ENABLED);
        assert_eq!(launch(seven, first.memory, second.stream), 0);
        assert_eq!(cuStreamSynchronize(second.stream), 0);

        // A fault ends all work of its own device, and of no other.
        assert_eq!(launch(seven, 64, second.stream), 0);
        assert_eq!(cuStreamSynchronize(second.stream), ILLEGAL_ADDRESS);
        assert_eq!(cuMemAlloc_v2(&mut at, 16), ILLEGAL_ADDRESS);
        first.enter();
        assert_eq!(cuMemAlloc_v2(&mut at, 16), 0);
        assert_eq!(cuMemcpyDtoHAsync_v2(host, first.memory, 4, first.stream), 0);
        assert_eq!(cuStreamSynchronize(first.stream), 0);
        assert_eq!(words.read_volatile(), 7);
    }
}
