//! Streams of work, the points in them that can be waited for, and what was recorded of one.

#![allow(unsafe_code)] // driver calls; each states what it relies on

use std::sync::OnceLock;

use anyhow::Result;
use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys;

use super::errors::{DriverContext, refused};

/// Whether a thread that waits for the device sleeps instead of spinning (see `open.rs`): on one or
/// two CPUs.
pub(super) fn waits_asleep() -> bool {
    static FEW: OnceLock<bool> = OnceLock::new();
    *FEW.get_or_init(|| std::thread::available_parallelism().is_ok_and(|n| n.get() <= 2))
}

/// Work that runs in order.
#[derive(Debug)]
pub struct Stream(pub(super) sys::CUstream);

impl Stream {
    pub(super) fn new() -> Result<Stream> {
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
        Event::with(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// An event that records the time at which a stream passes it.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn timed() -> Result<Event> {
        Event::with(sys::CUevent_flags::CU_EVENT_DEFAULT as u32)
    }

    fn with(flags: u32) -> Result<Event> {
        // The context's own flag is about waits for streams; an event is spun for unless its flag
        // says otherwise.
        let asleep = if waits_asleep() { sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32 } else { 0 };
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuEventCreate(&mut event, flags | asleep) }.result().driver_context("an event")?;
        Ok(Event(event))
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
pub struct Graph(pub(super) sys::CUgraphExec);

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
