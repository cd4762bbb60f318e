//! What the driver knows: devices, memory, streams of queued work, events, graphs, modules.

mod device;
mod launch;
mod log;
mod memory;
mod queue;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::ptx;
pub(crate) use device::{attribute, can_reach, context, count, current, enter, total};
pub(crate) use launch::Shape;
use launch::{Function, Module};
use log::Log;
use memory::Block;
pub(crate) use memory::End;
use queue::{Event, Stream, Task};

/// What a call answers with: the numbers of CUresult.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Code {
    InvalidValue = 1,
    OutOfMemory = 2,
    NoDevice = 100,
    InvalidDevice = 101,
    InvalidImage = 200,
    InvalidContext = 201,
    PeerAccessUnsupported = 217,
    InvalidHandle = 400,
    NotFound = 500,
    NotReady = 600,
    IllegalAddress = 700,
    PeerAccessAlreadyEnabled = 704,
    MisalignedAddress = 716,
    LaunchFailed = 719,
    NotSupported = 801,
    CaptureUnsupported = 900,
}

impl Code {
    pub(crate) const ALL: [(Code, &'static std::ffi::CStr); 16] = [
        (Code::InvalidValue, c"CUDA_ERROR_INVALID_VALUE"),
        (Code::OutOfMemory, c"CUDA_ERROR_OUT_OF_MEMORY"),
        (Code::NoDevice, c"CUDA_ERROR_NO_DEVICE"),
        (Code::InvalidDevice, c"CUDA_ERROR_INVALID_DEVICE"),
        (Code::InvalidImage, c"CUDA_ERROR_INVALID_IMAGE"),
        (Code::InvalidContext, c"CUDA_ERROR_INVALID_CONTEXT"),
        (Code::PeerAccessUnsupported, c"CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"),
        (Code::InvalidHandle, c"CUDA_ERROR_INVALID_HANDLE"),
        (Code::NotFound, c"CUDA_ERROR_NOT_FOUND"),
        (Code::NotReady, c"CUDA_ERROR_NOT_READY"),
        (Code::IllegalAddress, c"CUDA_ERROR_ILLEGAL_ADDRESS"),
        (Code::PeerAccessAlreadyEnabled, c"CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED"),
        (Code::MisalignedAddress, c"CUDA_ERROR_MISALIGNED_ADDRESS"),
        (Code::LaunchFailed, c"CUDA_ERROR_LAUNCH_FAILED"),
        (Code::NotSupported, c"CUDA_ERROR_NOT_SUPPORTED"),
        (Code::CaptureUnsupported, c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),
    ];
}

pub(crate) type Result<T = ()> = std::result::Result<T, Code>;

/// Refuses a call, and says on stderr why.
macro_rules! refuse {
    ($code:expr, $($text:tt)*) => {{
        eprintln!("emulated driver: {}", format_args!($($text)*));
        Err($code)
    }};
}
pub(crate) use refuse;

/// All that the driver keeps. A handle is a number: see [`Handle`].
#[derive(Default)]
pub(crate) struct Driver {
    /// Device memory by address.
    device: BTreeMap<u64, Block>,
    /// Pinned host memory by address.
    pinned: BTreeMap<u64, Block>,
    /// Bytes that are allocated on each device.
    used: Vec<usize>,
    /// Allocations of device memory and graphs that were asked for so far.
    allocations: i64,
    /// Pairs of devices of which the first may reach the second's memory.
    peers: Vec<(usize, usize)>,
    streams: Vec<Stream>,
    events: Vec<Event>,
    graphs: HashMap<usize, Arc<Vec<Task>>>,
    n_graphs: usize,
    modules: Vec<Module>,
    functions: Vec<Function>,
    /// After work of a device that failed everything that is asked of its context fails.
    failed: Vec<Option<Code>>,
    /// Launches that ran so far.
    launches: i64,
    log: Log,
    machine: ptx::Machine,
}

/// The driver, if no work of this thread's device has failed.
pub(crate) fn driver() -> Result<MutexGuard<'static, Driver>> {
    static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| Mutex::new(Driver::new()));
    let driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    driver.outcome()?;
    Ok(driver)
}

impl Driver {
    fn new() -> Driver {
        let devices = count();
        // Each device has a stream that nobody creates, and nobody destroys.
        Driver {
            used: vec![0; devices],
            failed: vec![None; devices],
            streams: (0..devices).map(Stream::new).collect(),
            log: Log::open(),
            ..Driver::default()
        }
    }

    /// The outcome of all work of this thread's device that has run.
    fn outcome(&self) -> Result {
        let failed = current().ok().and_then(|device| self.failed[device]);
        failed.map_or(Ok(()), Err)
    }
}

/// An opaque pointer of the driver's: the number of a thing in a list, and something added so that it is not null.
pub(crate) type Handle = usize;
const FIRST: Handle = 16;

/// The place in a list that a handle names.
fn index(handle: Handle, len: usize) -> Result<usize> {
    handle.checked_sub(FIRST).filter(|i| *i < len).ok_or(Code::InvalidHandle)
}
