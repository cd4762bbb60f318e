//! A model of the thread pool's epoch protocol (src/cpu/pool.rs), checked in every interleaving of its threads.
//!
//! Each step of the model is one access to shared memory, in the order of the code; all accesses there are sequentially
//! consistent, so interleavings are all that can happen. The model mirrors `Run::take`, `PoolState::take`, `PoolState::work`,
//! `Pool::each` from where the loop's turn is held, and `Drop for Pool`; [`MIRRORED`] holds the statements, and a test
//! fails when the code no longer has them in that order. What is not in it: the turn's lock, the clock (a worker may park
//! at any time), and `park` returning without a reason, which would only hide a lost wake-up.
//!
//! Held, with up to three threads and three loops: every index is taken exactly once, nobody touches a loop's body before
//! it is published or after its caller left, a caller leaves only when all is done or somebody panicked, no worker sleeps
//! through a loop that it was to be woken for, and from every state the pool comes to its end.

use std::collections::HashMap;

/// The statements that the model mirrors, in the order of the file.
const MIRRORED: &[&str] = &[
    // Run::take
    "let mut now = self.0.load(SeqCst);",
    "if from >= to {",
    "match self.0.compare_exchange_weak(now, next, SeqCst, SeqCst) {",
    "Err(other) => now = other,",
    // PoolState::take
    "while let Some(i) = self.runs[me].take(true) {",
    "for other in (me + 1..self.runs.len()).chain(0..me) {",
    "while let Some(i) = self.runs[other].take(false) {",
    // PoolState::work
    "while self.epoch.load(SeqCst) == seen {",
    "if self.quit.load(SeqCst) {",
    "self.parked[me].store(true, SeqCst);",
    "if self.epoch.load(SeqCst) == seen && !self.quit.load(SeqCst) {",
    "std::thread::park();",
    "self.parked[me].store(false, SeqCst);",
    "seen = self.epoch.load(SeqCst);",
    "self.inside.fetch_add(1, SeqCst);",
    "if self.open.load(SeqCst) {",
    "self.body.load(SeqCst)",
    "self.panicked.store(true, SeqCst);",
    "self.runs.iter().for_each(|r| r.set(0, 0));",
    "self.inside.fetch_sub(1, SeqCst);",
    // Pool::each
    "s.panicked.store(false, SeqCst);",
    "run.set(n * me / self.n, n * (me + 1) / self.n);",
    "s.body.store(",
    "s.open.store(true, SeqCst);",
    "s.epoch.fetch_add(1, SeqCst);",
    "if parked.load(SeqCst) {",
    "thread.unpark();",
    "self.0.open.store(false, SeqCst);",
    "while self.0.inside.load(SeqCst) != 0 {",
    "s.take(0, &body);",
    "drop(close);",
    "s.panicked.swap(false, SeqCst)",
    // Drop for Pool
    "self.shared.quit.store(true, SeqCst);",
    "self.threads.iter().for_each(Thread::unpark);",
    "w.join();",
];

/// The most threads of a model, the caller included.
const THREADS: usize = 3;

/// What is modelled.
#[derive(Clone, Copy)]
struct Model {
    /// Threads, the caller included.
    threads: u8,
    /// Loops that the caller runs before it drops the pool.
    loops: u8,
    /// Indices of every loop.
    items: u8,
    /// The index at which a loop's body panics, if it does.
    panics_at: Option<u8>,
    /// What is done wrong, to show that the model finds it.
    fault: Option<Fault>,
}

/// Mistakes that the protocol must not make.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The caller looks for parked workers before it raises the epoch.
    LooksBeforeEpoch,
    /// A worker says that it parks after it looked at the epoch for the last time.
    SaysParkedTooLate,
    /// A worker looks whether the loop is open before it counts itself in.
    LooksBeforeInside,
    /// The caller waits for those inside before it closes the loop.
    WaitsBeforeClosing,
    /// An index is taken without a check that nobody else took it meanwhile.
    TakesWithoutCompare,
    /// The pool is dropped without waking those that are parked.
    QuitsWithoutWaking,
}

/// Where a thread is in `PoolState::take`: `at` counts the runs that it went through, its own first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Take {
    Load { at: u8 },
    Swap { at: u8, now: (u8, u8) },
    Run { at: u8, item: u8 },
}

/// What the caller does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Caller {
    ResetPanicked,
    SetRun(u8),
    StoreBody,
    Open,
    RaiseEpoch,
    LookAt(u8),
    Unpark(u8),
    Take(Take),
    Close { unwinding: bool },
    Wait { unwinding: bool },
    CheckPanicked,
    Quit,
    Wake(u8),
    Join,
    Gone,
}

/// What a worker does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Worker {
    LookAtEpoch,
    LookAtQuit,
    SayParked,
    LookAgainAtEpoch,
    LookAgainAtQuit,
    Park,
    SayAwake,
    SeeEpoch,
    Enter,
    LookWhetherOpen,
    LoadBody,
    Take(Take),
    SayPanicked,
    ClearRun(u8),
    Leave,
    Gone,
}

/// All of shared memory and where every thread is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    epoch: u8,
    open: bool,
    inside: u8,
    runs: [(u8, u8); THREADS],
    /// The loop whose body the pointer leads to, and the one whose body is alive; 0 for none.
    body: u8,
    alive: u8,
    panicked: bool,
    quit: bool,
    parked: [bool; THREADS - 1],
    /// Whether `unpark` was called and `park` has not returned since.
    token: [bool; THREADS - 1],
    /// The indices that were taken in this loop, a bit each.
    done: u8,
    /// Loops that the caller has begun.
    round: u8,
    caller: Caller,
    workers: [Worker; THREADS - 1],
    seen: [u8; THREADS - 1],
    /// The loop whose body each worker has loaded.
    joined: [u8; THREADS - 1],
}

impl Model {
    fn start(&self) -> State {
        let mut workers = [Worker::LookAtEpoch; THREADS - 1];
        workers[self.threads as usize - 1..].fill(Worker::Gone);
        State {
            epoch: 0,
            open: false,
            inside: 0,
            runs: [(0, 0); THREADS],
            body: 0,
            alive: 0,
            panicked: false,
            quit: false,
            parked: [false; THREADS - 1],
            token: [false; THREADS - 1],
            done: 0,
            round: 1,
            caller: Caller::ResetPanicked,
            workers,
            seen: [0; THREADS - 1],
            joined: [0; THREADS - 1],
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// One step of thread `me` in `PoolState::take`: where it is then, None when nothing is left, Err(true) if the body
    /// panicked. `joined` is the loop whose body it calls.
    fn take(&self, s: &mut State, me: u8, joined: u8, step: Take) -> Result<Option<Take>, String> {
        // Where the run is at `now`, as the top of the loop in `Run::take` does.
        let look = |at: u8, now: (u8, u8)| match now.0 >= now.1 {
            true if at + 1 == self.threads => None,
            true => Some(Take::Load { at: at + 1 }),
            false => Some(Take::Swap { at, now }),
        };
        let run = |at: u8| usize::from((me + at) % self.threads);
        match step {
            Take::Load { at } => Ok(look(at, s.runs[run(at)])),
            Take::Swap { at, now } => {
                let there = &mut s.runs[run(at)];
                if *there != now && !self.has(Fault::TakesWithoutCompare) {
                    return Ok(look(at, *there));
                }
                let (next, item) = if at == 0 { ((now.0 + 1, now.1), now.0) } else { ((now.0, now.1 - 1), now.1 - 1) };
                *there = next;
                Ok(Some(Take::Run { at, item }))
            }
            Take::Run { at, item } => {
                if s.alive != joined {
                    return Err(format!("thread {me} calls the body of loop {joined}, and {} is alive", s.alive));
                }
                if s.done & 1 << item != 0 {
                    return Err(format!("index {item} of loop {joined} is taken twice"));
                }
                s.done |= 1 << item;
                Ok(Some(Take::Load { at }))
            }
        }
    }

    /// Whether this step calls the body with the index at which it panics.
    fn panics(&self, step: Take) -> bool {
        matches!(step, Take::Run { item, .. } if Some(item) == self.panics_at)
    }

    /// One step of the caller; None if it waits.
    fn step_caller(&self, mut s: State) -> Result<Option<State>, String> {
        let workers = self.threads - 1;
        let (early, late) = (self.has(Fault::LooksBeforeEpoch), self.has(Fault::WaitsBeforeClosing));
        let begin = Caller::Take(Take::Load { at: 0 });
        s.caller = match s.caller {
            Caller::ResetPanicked => {
                (s.panicked, s.done) = (false, 0);
                Caller::SetRun(0)
            }
            Caller::SetRun(me) => {
                let (n, all) = (self.items, self.threads);
                s.runs[me as usize] = (n * me / all, n * (me + 1) / all);
                if me + 1 == all { Caller::StoreBody } else { Caller::SetRun(me + 1) }
            }
            Caller::StoreBody => {
                (s.body, s.alive) = (s.round, s.round);
                Caller::Open
            }
            Caller::Open => {
                s.open = true;
                if early { Caller::LookAt(0) } else { Caller::RaiseEpoch }
            }
            Caller::RaiseEpoch => {
                s.epoch += 1;
                if early { begin } else { Caller::LookAt(0) }
            }
            Caller::LookAt(w) if w == workers => {
                if early {
                    Caller::RaiseEpoch
                } else {
                    begin
                }
            }
            Caller::LookAt(w) if s.parked[w as usize] => Caller::Unpark(w),
            Caller::LookAt(w) => Caller::LookAt(w + 1),
            Caller::Unpark(w) => {
                s.token[w as usize] = true;
                Caller::LookAt(w + 1)
            }
            Caller::Take(step) => {
                let unwinding = self.panics(step);
                let round = s.round;
                match self.take(&mut s, 0, round, step)? {
                    Some(next) if !unwinding => Caller::Take(next),
                    _ if late => Caller::Wait { unwinding },
                    _ => Caller::Close { unwinding },
                }
            }
            Caller::Close { unwinding } => {
                s.open = false;
                if late { self.leave(&mut s, unwinding) } else { Caller::Wait { unwinding } }
            }
            Caller::Wait { .. } if s.inside != 0 => return Ok(None),
            Caller::Wait { unwinding } if late => Caller::Close { unwinding },
            Caller::Wait { unwinding } => self.leave(&mut s, unwinding),
            Caller::CheckPanicked => {
                if !std::mem::take(&mut s.panicked) && s.done != (1 << self.items) - 1 {
                    return Err(format!("loop {} returns with indices {:b} done", s.round, s.done));
                }
                self.next_loop(&mut s)
            }
            Caller::Quit => {
                s.quit = true;
                if self.has(Fault::QuitsWithoutWaking) { Caller::Join } else { Caller::Wake(0) }
            }
            Caller::Wake(w) if w == workers => Caller::Join,
            Caller::Wake(w) => {
                s.token[w as usize] = true;
                Caller::Wake(w + 1)
            }
            Caller::Join if s.workers.iter().any(|w| *w != Worker::Gone) => return Ok(None),
            Caller::Join => Caller::Gone,
            Caller::Gone => return Ok(None),
        };
        Ok(Some(s))
    }

    /// The body goes away; what the caller does then.
    fn leave(&self, s: &mut State, unwinding: bool) -> Caller {
        s.alive = 0;
        if unwinding { self.next_loop(s) } else { Caller::CheckPanicked }
    }

    fn next_loop(&self, s: &mut State) -> Caller {
        if s.round == self.loops {
            return Caller::Quit;
        }
        s.round += 1;
        Caller::ResetPanicked
    }

    /// The steps that worker `w` can take: none if it waits, two where the clock decides.
    fn step_worker(&self, mut s: State, w: usize) -> Result<Vec<State>, String> {
        let (late, early) = (self.has(Fault::SaysParkedTooLate), self.has(Fault::LooksBeforeInside));
        let next = match s.workers[w] {
            Worker::LookAtEpoch if s.epoch == s.seen[w] => Worker::LookAtQuit,
            Worker::LookAtEpoch => Worker::SeeEpoch,
            Worker::LookAtQuit if s.quit => Worker::Gone,
            Worker::LookAtQuit => {
                // It spins on, or has spun for long enough.
                let parks = if late { Worker::LookAgainAtEpoch } else { Worker::SayParked };
                let with = |next| {
                    let mut s = s;
                    s.workers[w] = next;
                    s
                };
                return Ok(vec![with(Worker::LookAtEpoch), with(parks)]);
            }
            Worker::SayParked => {
                s.parked[w] = true;
                if late { Worker::Park } else { Worker::LookAgainAtEpoch }
            }
            Worker::LookAgainAtEpoch if s.epoch == s.seen[w] => Worker::LookAgainAtQuit,
            Worker::LookAgainAtEpoch => Worker::SayAwake,
            Worker::LookAgainAtQuit if s.quit => Worker::SayAwake,
            Worker::LookAgainAtQuit => {
                if late {
                    Worker::SayParked
                } else {
                    Worker::Park
                }
            }
            Worker::Park if !s.token[w] => return Ok(Vec::new()),
            Worker::Park => {
                s.token[w] = false;
                Worker::SayAwake
            }
            Worker::SayAwake => {
                s.parked[w] = false;
                Worker::LookAtEpoch
            }
            Worker::SeeEpoch => {
                s.seen[w] = s.epoch;
                if early { Worker::LookWhetherOpen } else { Worker::Enter }
            }
            Worker::Enter => {
                s.inside += 1;
                if early { Worker::LoadBody } else { Worker::LookWhetherOpen }
            }
            Worker::LookWhetherOpen if s.open => {
                if early {
                    Worker::Enter
                } else {
                    Worker::LoadBody
                }
            }
            Worker::LookWhetherOpen if early => Worker::LookAtEpoch,
            Worker::LookWhetherOpen => Worker::Leave,
            Worker::LoadBody => {
                if s.body == 0 || s.alive != s.body {
                    return Err(format!("worker {w} follows a pointer to the body of loop {}, which is gone", s.body));
                }
                s.joined[w] = s.body;
                Worker::Take(Take::Load { at: 0 })
            }
            Worker::Take(step) => {
                let panics = self.panics(step);
                let joined = s.joined[w];
                match self.take(&mut s, w as u8 + 1, joined, step)? {
                    _ if panics => Worker::SayPanicked,
                    Some(next) => Worker::Take(next),
                    None => Worker::Leave,
                }
            }
            Worker::SayPanicked => {
                s.panicked = true;
                Worker::ClearRun(0)
            }
            Worker::ClearRun(run) => {
                s.runs[run as usize] = (0, 0);
                if run + 1 == self.threads { Worker::Leave } else { Worker::ClearRun(run + 1) }
            }
            Worker::Leave => {
                (s.inside, s.joined[w]) = (s.inside - 1, 0);
                Worker::LookAtEpoch
            }
            Worker::Gone => return Ok(Vec::new()),
        };
        s.workers[w] = next;
        Ok(vec![s])
    }

    /// Whether a worker sleeps though the caller has woken all that were to be woken for this loop.
    fn sleeps_through(&self, s: &State) -> bool {
        let woken = matches!(s.caller, Caller::Take(_) | Caller::Close { .. } | Caller::Wait { .. });
        let sleeps = |w: usize| s.workers[w] == Worker::Park && !s.token[w] && s.seen[w] != s.epoch;
        woken && (0..THREADS - 1).any(sleeps)
    }

    /// Walks through all states: how many there are, or what goes wrong in one.
    fn explore(&self) -> Result<usize, String> {
        let mut numbers = HashMap::from([(self.start(), 0u32)]);
        let (mut todo, mut edges, mut ends) = (vec![self.start()], Vec::new(), Vec::new());
        while let Some(s) = todo.pop() {
            let from = numbers[&s];
            if self.sleeps_through(&s) {
                return Err(format!("a worker sleeps through a loop: {s:?}"));
            }
            let mut next: Vec<State> = self.step_caller(s)?.into_iter().collect();
            for w in 0..self.threads as usize - 1 {
                next.extend(self.step_worker(s, w)?);
            }
            if s.caller == Caller::Gone {
                ends.push(from);
            } else if next.is_empty() {
                return Err(format!("nobody can go on: {s:?}"));
            }
            for s in next {
                let fresh = numbers.len() as u32;
                let to = *numbers.entry(s).or_insert_with(|| {
                    todo.push(s);
                    fresh
                });
                edges.push((to, from));
            }
        }
        // Backwards from the end: a state that is not met spins for ever.
        edges.sort_unstable();
        let mut comes_to_end = vec![false; numbers.len()];
        while let Some(to) = ends.pop() {
            if !std::mem::replace(&mut comes_to_end[to as usize], true) {
                let first = edges.partition_point(|e| e.0 < to);
                ends.extend(edges[first..].iter().take_while(|e| e.0 == to).map(|e| e.1));
            }
        }
        match comes_to_end.iter().all(|end| *end) {
            true => Ok(numbers.len()),
            false => Err("there are states from which the pool never comes to its end".into()),
        }
    }
}

#[test]
fn no_interleaving_loses_an_index_a_wake_up_or_the_end() {
    for (threads, loops, items) in [(2, 1, 4), (2, 3, 3), (3, 1, 3), (3, 2, 2), (3, 3, 2)] {
        let model = Model { threads, loops, items, panics_at: None, fault: None };
        let states = model.explore().unwrap_or_else(|e| panic!("{threads} threads, {loops} loops: {e}"));
        println!("{threads} threads, {loops} loops of {items}: {states} states");
        assert!(states > 1000, "the threads were interleaved");
    }
}

#[test]
fn a_body_that_panics_reaches_the_caller_in_every_interleaving() {
    for (threads, loops, items, at) in [(2, 2, 3, 0), (2, 2, 3, 2), (3, 2, 2, 1)] {
        let model = Model { threads, loops, items, panics_at: Some(at), fault: None };
        model.explore().unwrap_or_else(|e| panic!("{threads} threads, a panic at {at}: {e}"));
    }
}

#[test]
fn a_protocol_with_any_step_out_of_place_is_found_out() {
    use Fault::*;
    for fault in [
        LooksBeforeEpoch,
        SaysParkedTooLate,
        LooksBeforeInside,
        WaitsBeforeClosing,
        TakesWithoutCompare,
        QuitsWithoutWaking,
    ] {
        let model = Model { threads: 2, loops: 2, items: 3, panics_at: None, fault: Some(fault) };
        let found = model.explore().expect_err("the fault shows");
        println!("{fault:?}: {found}");
    }
}

#[test]
fn the_model_mirrors_the_pool() {
    let code = include_str!("../src/cpu/pool.rs");
    let mut rest = code.split("#[cfg(test)]").next().unwrap();
    for statement in MIRRORED {
        let at = rest.find(statement);
        let at = at.unwrap_or_else(|| panic!("src/cpu/pool.rs has no `{statement}` here: change the model with it"));
        rest = &rest[at + statement.len()..];
    }
}
