//! Streams, events and graphs: work in order, which runs when something waits for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Instant;

use super::launch::Launch;
use super::{Code, Driver, FIRST, Handle, Result, current, index, refuse};
use crate::setting;

/// A piece of work.
#[derive(Clone)]
pub(super) enum Task {
    Copy { to: u64, from: u64, bytes: usize },
    Write { to: u64, bytes: Arc<[u8]> },
    Set { to: u64, value: u8, bytes: usize },
    Launch(Arc<Launch>),
}

enum Entry {
    Run(Task),
    /// The stream of this number has done so much before this one goes on.
    After(usize, u64),
    /// An event takes the time.
    Mark(usize),
}

pub(super) struct Stream {
    pub(super) device: usize,
    queue: VecDeque<Entry>,
    pub(super) pushed: u64,
    done: u64,
    capture: Option<Capture>,
    destroyed: bool,
}

struct Capture {
    tasks: Vec<Task>,
    thread: ThreadId,
}

impl Stream {
    pub(super) fn new(device: usize) -> Stream {
        Stream { device, queue: VecDeque::new(), pushed: 0, done: 0, capture: None, destroyed: false }
    }

    /// Whether what is pushed goes into a graph.
    pub(super) fn records(&self) -> bool {
        self.capture.is_some()
    }
}

pub(super) struct Event {
    device: usize,
    /// The stream that it was recorded in, and how much that has done then.
    recorded: Option<(usize, u64)>,
    time: Option<Instant>,
    asked: bool,
}

impl Driver {
    /// The stream of a handle; 0, 1 and 2 name the one that every device has.
    pub(super) fn stream(&self, handle: Handle) -> Result<usize> {
        if handle <= 2 {
            return current();
        }
        let stream = index(handle, self.streams.len())?;
        if self.streams[stream].destroyed { Err(Code::InvalidHandle) } else { Ok(stream) }
    }

    pub(super) fn push(&mut self, stream: usize, task: Task) {
        let s = &mut self.streams[stream];
        match &mut s.capture {
            Some(capture) => capture.tasks.push(task),
            None => self.enter_queue(stream, Entry::Run(task)),
        }
    }

    fn enter_queue(&mut self, stream: usize, entry: Entry) {
        self.streams[stream].queue.push_back(entry);
        self.streams[stream].pushed += 1;
    }

    /// Runs a stream's work until it has done so much.
    pub(super) fn drain(&mut self, stream: usize, to: u64) {
        let device = self.streams[stream].device;
        while self.streams[stream].done < to {
            match self.streams[stream].queue.pop_front().expect("what was pushed and is not done is queued") {
                Entry::Run(task) if self.failed[device].is_none() => self.run(stream, &task),
                Entry::Run(_) => {}
                Entry::After(other, at) => self.drain(other, at),
                Entry::Mark(event) => self.events[event].time = Some(Instant::now()),
            }
            self.streams[stream].done += 1;
        }
    }

    pub(super) fn drain_all(&mut self) {
        for stream in 0..self.streams.len() {
            self.drain(stream, self.streams[stream].pushed);
        }
    }

    fn run(&mut self, stream: usize, task: &Task) {
        // SAFETY (of the three): the ranges lie in allocations, or in memory that the program vouched for when it queued
        // the work; whether those still exist then is the program's promise, as with the real driver.
        match task {
            Task::Copy { to, from, bytes } => unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) },
            Task::Write { to, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), *to as *mut u8, bytes.len());
            },
            Task::Set { to, value, bytes } => unsafe { (*to as *mut u8).write_bytes(*value, *bytes) },
            Task::Launch(launch) => self.run_kernel(self.streams[stream].device, launch),
        }
    }

    pub(crate) fn create_stream(&mut self) -> Result<Handle> {
        self.streams.push(Stream::new(current()?));
        Ok(FIRST + self.streams.len() - 1)
    }

    pub(crate) fn destroy_stream(&mut self, handle: Handle) -> Result {
        let stream = self.stream(handle)?;
        self.drain(stream, self.streams[stream].pushed);
        self.streams[stream].destroyed = handle > 2;
        self.outcome()
    }

    pub(crate) fn wait_stream(&mut self, handle: Handle) -> Result {
        let stream = self.stream(handle)?;
        self.drain(stream, self.streams[stream].pushed);
        self.outcome()
    }

    /// Waits for all work of this thread's device.
    pub(crate) fn wait_all(&mut self) -> Result {
        current()?;
        self.drain_all();
        self.outcome()
    }

    pub(crate) fn query_stream(&self, handle: Handle) -> Result {
        let stream = &self.streams[self.stream(handle)?];
        if stream.done == stream.pushed { Ok(()) } else { Err(Code::NotReady) }
    }

    pub(crate) fn create_event(&mut self) -> Result<Handle> {
        self.events.push(Event { device: current()?, recorded: None, time: None, asked: false });
        Ok(FIRST + self.events.len() - 1)
    }

    pub(crate) fn record(&mut self, event: Handle, stream: Handle) -> Result {
        let (event, stream) = (index(event, self.events.len())?, self.stream(stream)?);
        if self.streams[stream].records() {
            return refuse!(Code::CaptureUnsupported, "an event recorded in a graph");
        }
        if self.streams[stream].device != self.events[event].device {
            return refuse!(Code::InvalidHandle, "an event is recorded in a stream of another device");
        }
        self.enter_queue(stream, Entry::Mark(event));
        self.events[event].recorded = Some((stream, self.streams[stream].pushed));
        self.events[event].asked = false;
        Ok(())
    }

    /// What comes after in the stream waits for the event.
    pub(crate) fn wait_event(&mut self, stream: Handle, event: Handle) -> Result {
        let (stream, event) = (self.stream(stream)?, index(event, self.events.len())?);
        let Some((other, at)) = self.events[event].recorded else { return Ok(()) };
        if self.streams[stream].records() {
            return refuse!(Code::CaptureUnsupported, "a wait for an event of outside in a graph");
        }
        if setting("TANDEM_EMU_DEAF", 0) == 0 {
            self.enter_queue(stream, Entry::After(other, at));
        }
        Ok(())
    }

    /// Not yet, the first time; work that nobody waits for is done in the end.
    pub(crate) fn query_event(&mut self, event: Handle) -> Result {
        let event = index(event, self.events.len())?;
        let Some((stream, at)) = self.events[event].recorded else { return Ok(()) };
        if self.streams[stream].done >= at {
            return Ok(());
        }
        if !std::mem::replace(&mut self.events[event].asked, true) {
            return Err(Code::NotReady);
        }
        self.drain(stream, at);
        self.outcome()
    }

    pub(crate) fn synchronize_event(&mut self, event: Handle) -> Result {
        let event = index(event, self.events.len())?;
        if let Some((stream, at)) = self.events[event].recorded
            && setting("TANDEM_EMU_DEAF", 0) == 0
        {
            self.drain(stream, at);
        }
        self.outcome()
    }

    /// Milliseconds from one event to another.
    pub(crate) fn elapsed(&self, from: Handle, to: Handle) -> Result<f32> {
        let time = |event| Ok(self.events[index(event, self.events.len())?].time);
        let (Some(from), Some(to)) = (time(from)?, time(to)?) else { return Err(Code::NotReady) };
        Ok(to.saturating_duration_since(from).as_secs_f32() * 1e3)
    }

    /// Whether this thread records a graph: it may not wait for a device meanwhile.
    pub(super) fn capturing(&self) -> bool {
        let own = std::thread::current().id();
        self.streams.iter().any(|s| s.capture.as_ref().is_some_and(|c| c.thread == own))
    }

    pub(crate) fn begin_capture(&mut self, stream: Handle) -> Result {
        let stream = self.stream(stream)?;
        if self.streams[stream].records() {
            return Err(Code::InvalidValue);
        }
        self.streams[stream].capture = Some(Capture { tasks: Vec::new(), thread: std::thread::current().id() });
        Ok(())
    }

    pub(crate) fn end_capture(&mut self, stream: Handle) -> Result<Handle> {
        let stream = self.stream(stream)?;
        let Some(capture) = self.streams[stream].capture.take() else {
            return refuse!(Code::InvalidValue, "the end of a recording that nobody began");
        };
        Ok(self.keep_graph(Arc::new(capture.tasks)))
    }

    fn keep_graph(&mut self, tasks: Arc<Vec<Task>>) -> Handle {
        self.n_graphs += 1;
        self.graphs.insert(FIRST + self.n_graphs, tasks);
        FIRST + self.n_graphs
    }

    pub(crate) fn instantiate(&mut self, graph: Handle) -> Result<Handle> {
        let tasks = self.graphs.get(&graph).ok_or(Code::InvalidHandle)?.clone();
        self.count_allocation()?;
        Ok(self.keep_graph(tasks))
    }

    pub(crate) fn replay(&mut self, graph: Handle, stream: Handle) -> Result {
        let stream = self.stream(stream)?;
        let tasks = self.graphs.get(&graph).ok_or(Code::InvalidHandle)?.clone();
        let kernels = tasks.iter().filter(|t| matches!(t, Task::Launch(_))).count();
        self.log.line(false, format_args!("replay {kernels} {}", tasks.len() - kernels));
        tasks.iter().for_each(|task| self.push(stream, task.clone()));
        Ok(())
    }

    /// Forgets a graph or what was made of it.
    pub(crate) fn destroy_graph(&mut self, graph: Handle) -> Result {
        self.graphs.remove(&graph).map(|_| ()).ok_or(Code::InvalidHandle)
    }
}
