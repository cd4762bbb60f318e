//! A model of the threads' protocol (src/cpu/pool.rs), checked in every interleaving.
//!
//! Each step of the model is one access to shared memory, in the order of the code; all accesses
//! there are sequentially consistent, so interleavings are all that can happen. The model mirrors
//! `Run::take`, `PoolState`, and of `Workers` the loop, the wake-up, the call by broadcast and the
//! dismissal; [`MIRRORED`] holds the statements, and a test fails when the code no longer has them
//! in that order. What is not in it: the lock that admits one caller at a time, the clock (a worker
//! may park at any time), `park` returning without a reason, which would only hide a lost wake-up,
//! and rayon, which is trusted to run a broadcast's job once on every thread.
//!
//! Held, with up to three threads and three loops: every index is taken exactly once, nobody
//! touches a loop's body before it is published or after its caller left, nobody takes part in a
//! loop of fewer threads, a caller leaves only when all is done or somebody panicked, no worker
//! sleeps or stays away through a loop that it was to come to, none sleeps when rayon wants the
//! threads, and from every state all threads come to be rayon's when the last pool is dropped.

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
    "for other in (me + 1..node.end).chain(node.start..me).chain(node.end..threads).chain(0..node.start) {",
    "while let Some(i) = self.runs[other].take(false) {",
    // PoolState::work
    "if self.presence[me].load(SeqCst) != HERE {",
    "let mut seen = self.epoch.load(SeqCst).wrapping_sub(1);",
    "while self.wait(me, seen, since) {",
    "seen = self.epoch.load(SeqCst);",
    "if self.join(me) {",
    // PoolState::wait
    "while self.epoch.load(SeqCst) == seen {",
    "if self.leave.load(SeqCst) {",
    "self.presence[me].store(AWAY, SeqCst);",
    "if self.epoch.load(SeqCst) == seen {",
    "return false;",
    "self.presence[me].store(HERE, SeqCst);",
    "return true;",
    "self.presence[me].store(PARKED, SeqCst);",
    "if self.epoch.load(SeqCst) == seen {",
    "std::thread::park();",
    "self.presence[me].store(HERE, SeqCst);",
    // PoolState::join
    "self.inside.fetch_add(1, SeqCst);",
    "let open = self.open.load(SeqCst);",
    "let threads = self.threads.load(SeqCst);",
    "if open && shares {",
    "self.body.load(SeqCst)",
    "self.panicked.store(true, SeqCst);",
    "self.runs.iter().for_each(|r| r.set(0, 0));",
    "self.inside.fetch_sub(1, SeqCst);",
    // Workers::share
    "s.panicked.store(false, SeqCst);",
    "s.threads.store(threads, SeqCst);",
    "run.set(items.start + n * me / all, items.start + n * (me + 1) / all);",
    "s.body.store(",
    "s.open.store(true, SeqCst);",
    "s.epoch.fetch_add(1, SeqCst);",
    "self.wake(threads - 1);",
    "self.0.open.store(false, SeqCst);",
    "while self.0.inside.load(SeqCst) != 0 {",
    "s.take(0, threads, body);",
    "drop(close);",
    "s.panicked.swap(false, SeqCst)",
    // Workers::wake
    "match presence.load(SeqCst) {",
    "PARKED => thread.unpark(),",
    "presence.compare_exchange(AWAY, HERE, SeqCst, SeqCst)",
    "self.rayon.spawn_broadcast(",
    "state.work(thread.index());",
    // Workers::dismiss, Workers::lend
    "self.state.leave.store(true, SeqCst);",
    "self.handles.iter().for_each(Thread::unpark);",
    "self.dismiss();",
    "self.rayon.install(f)",
    "self.state.leave.store(false, SeqCst);",
];

/// The most threads of a model, the caller included.
const THREADS: usize = 3;

/// What is modelled.
#[derive(Clone, Copy)]
struct Model {
    /// Threads, the caller included.
    threads: u8,
    /// Loops that the caller runs before it drops the last pool.
    loops: u8,
    /// Indices of every loop.
    items: u8,
    /// The index at which a loop's body panics, if it does.
    panics_at: Option<u8>,
    /// Whether the workers are dismissed for a loop of rayon's after the first loop.
    borrows: bool,
    /// Whether the second loop is for one thread less.
    narrow: bool,
    /// Whether the caller is on a NUMA node of its own, and the workers on another. (Numbers of threads that are not in
    /// their order are another naming of the runs, and make no other states.)
    nodes: bool,
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
    /// The workers are dismissed without waking those that are parked.
    DismissesWithoutWaking,
    /// A worker leaves without a look whether a loop began meanwhile.
    LeavesWithoutLookingBack,
    /// The broadcast is sent before the workers' presence says so.
    BroadcastsTooEarly,
    /// The caller writes that a worker is here without a check that it is still away.
    CallsWithoutCompare,
    /// A worker looks how many threads share the loop before it looks whether it is open.
    LooksAtThreadsTooEarly,
}

/// Where a worker says that it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Presence {
    Away,
    Here,
    Parked,
}

/// Where a thread is in `PoolState::take`: `at` counts the runs that it went through, its own
/// first.
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
    SetThreads,
    SetRun(u8),
    StoreBody,
    Open,
    RaiseEpoch,
    LookAt(u8),
    Unpark(u8),
    Call(u8),
    Broadcast,
    Take(Take),
    Close { unwinding: bool },
    Wait { unwinding: bool },
    CheckPanicked,
    Dismiss,
    Wake(u8),
    Borrow,
    TakeBack,
    Gone,
}

/// What a worker does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Worker {
    /// The thread is rayon's.
    Out,
    LookWhetherCalled,
    LoadEpoch,
    LookAtEpoch,
    LookAtLeave,
    SayAway,
    LookBack,
    SayParked,
    LookAgainAtEpoch,
    Park,
    SayHere {
        then_see: bool,
    },
    SeeEpoch,
    Enter,
    LookWhetherOpen,
    LookAtThreads,
    LoadBody,
    Take(Take),
    SayPanicked,
    ClearRun(u8),
    Leave,
}

/// All of shared memory and where every thread is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    epoch: u8,
    open: bool,
    inside: u8,
    threads: u8,
    runs: [(u8, u8); THREADS],
    /// The loop whose body the pointer leads to, and the one whose body is alive; 0 for none.
    body: u8,
    alive: u8,
    panicked: bool,
    leave: bool,
    presence: [Presence; THREADS - 1],
    /// Whether `unpark` was called and `park` has not returned since.
    token: [bool; THREADS - 1],
    /// Broadcast jobs that each worker's thread has not begun.
    jobs: [u8; THREADS - 1],
    /// The indices that were taken in this loop, a bit each.
    done: u8,
    /// Loops that the caller has begun.
    round: u8,
    /// Whether the caller has found a worker away in this loop.
    call: bool,
    caller: Caller,
    workers: [Worker; THREADS - 1],
    seen: [u8; THREADS - 1],
    /// The loop whose body each worker has loaded, and the number of threads that it saw.
    joined: [u8; THREADS - 1],
    sharing: [u8; THREADS - 1],
}

impl Model {
    fn start(&self) -> State {
        State {
            epoch: 0,
            open: false,
            inside: 0,
            threads: self.threads,
            runs: [(0, 0); THREADS],
            body: 0,
            alive: 0,
            panicked: false,
            leave: false,
            presence: [Presence::Away; THREADS - 1],
            token: [false; THREADS - 1],
            jobs: [0; THREADS - 1],
            done: 0,
            round: 1,
            call: false,
            caller: Caller::ResetPanicked,
            workers: [Worker::Out; THREADS - 1],
            seen: [0; THREADS - 1],
            joined: [0; THREADS - 1],
            sharing: [0; THREADS - 1],
        }
    }

    /// Threads that share a loop.
    fn threads_of(&self, round: u8) -> u8 {
        self.threads - u8::from(self.narrow && round == 2)
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// One step of thread `me` of `threads` in `PoolState::take`: where it is then, None when
    /// nothing is left. `joined` is the loop whose body it calls.
    fn take(&self, s: &mut State, (me, threads): (u8, u8), joined: u8, step: Take) -> Result<Option<Take>, String> {
        // Where the run is at `now`, as the top of the loop in `Run::take` does.
        let look = |at: u8, now: (u8, u8)| match now.0 >= now.1 {
            true if at + 1 == threads => None,
            true => Some(Take::Load { at: at + 1 }),
            false => Some(Take::Swap { at, now }),
        };
        let node = match (self.nodes, me) {
            (false, _) => 0..threads,
            (true, 0) => 0..1,
            (true, _) => 1..threads,
        };
        let others = (me + 1..node.end).chain(node.start..me).chain(node.end..threads).chain(0..node.start);
        let order: Vec<u8> = std::iter::once(me).chain(others).collect();
        let run = |at: u8| usize::from(order[at as usize]);
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
        let late = self.has(Fault::WaitsBeforeClosing);
        s.caller = match s.caller {
            Caller::Take(step) => {
                let unwinding = self.panics(step);
                let (round, threads) = (s.round, self.threads_of(s.round));
                match self.take(&mut s, (0, threads), round, step)? {
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
                self.after_loop(&mut s)
            }
            Caller::Dismiss => {
                s.leave = true;
                let workers = self.threads - 1;
                Caller::Wake(if self.has(Fault::DismissesWithoutWaking) { workers } else { 0 })
            }
            Caller::Wake(w) if w + 1 < self.threads => {
                s.token[w as usize] = true;
                Caller::Wake(w + 1)
            }
            Caller::Wake(_) if s.round > self.loops => Caller::Gone,
            Caller::Wake(_) => Caller::Borrow,
            Caller::Borrow => Caller::TakeBack,
            Caller::TakeBack => {
                s.leave = false;
                Caller::ResetPanicked
            }
            Caller::Gone => return Ok(None),
            _ => self.step_to_loop(&mut s),
        };
        Ok(Some(s))
    }

    /// One step of the caller on the way to a loop.
    fn step_to_loop(&self, s: &mut State) -> Caller {
        let early = self.has(Fault::LooksBeforeEpoch);
        let (threads, begin) = (self.threads_of(s.round), Caller::Take(Take::Load { at: 0 }));
        match s.caller {
            Caller::ResetPanicked => {
                (s.panicked, s.done, s.call) = (false, 0, false);
                Caller::SetThreads
            }
            Caller::SetThreads => {
                s.threads = threads;
                Caller::SetRun(0)
            }
            Caller::SetRun(me) => {
                let n = self.items;
                s.runs[me as usize] = (n * me / threads, n * (me + 1) / threads);
                if me + 1 == threads { Caller::StoreBody } else { Caller::SetRun(me + 1) }
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
            Caller::LookAt(w) if w + 1 == threads => match s.call && !self.has(Fault::BroadcastsTooEarly) {
                true => Caller::Broadcast,
                false if early => Caller::RaiseEpoch,
                false => begin,
            },
            Caller::LookAt(w) => match s.presence[w as usize] {
                Presence::Away if self.has(Fault::BroadcastsTooEarly) => {
                    s.jobs[w as usize] += 1;
                    Caller::Call(w)
                }
                Presence::Away => Caller::Call(w),
                Presence::Parked => Caller::Unpark(w),
                Presence::Here => Caller::LookAt(w + 1),
            },
            Caller::Unpark(w) => {
                s.token[w as usize] = true;
                Caller::LookAt(w + 1)
            }
            Caller::Call(w) => {
                if s.presence[w as usize] == Presence::Away || self.has(Fault::CallsWithoutCompare) {
                    s.presence[w as usize] = Presence::Here;
                    s.call = true;
                }
                Caller::LookAt(w + 1)
            }
            Caller::Broadcast => {
                s.jobs[..self.threads as usize - 1].iter_mut().for_each(|jobs| *jobs += 1);
                if early { Caller::RaiseEpoch } else { begin }
            }
            other => unreachable!("{other:?} is no step to a loop"),
        }
    }

    /// The body goes away; what the caller does then.
    fn leave(&self, s: &mut State, unwinding: bool) -> Caller {
        s.alive = 0;
        if unwinding { self.after_loop(s) } else { Caller::CheckPanicked }
    }

    fn after_loop(&self, s: &mut State) -> Caller {
        s.round += 1;
        match s.round > self.loops || (self.borrows && s.round == 2) {
            true => Caller::Dismiss,
            false => Caller::ResetPanicked,
        }
    }

    /// The steps that worker `w` can take: none if it waits, two where the clock decides.
    fn step_worker(&self, mut s: State, w: usize) -> Result<Vec<State>, String> {
        let early = self.has(Fault::LooksBeforeInside);
        let next = match s.workers[w] {
            Worker::Enter => {
                s.inside += 1;
                match self.has(Fault::LooksAtThreadsTooEarly) {
                    _ if early => Worker::LoadBody,
                    true => Worker::LookAtThreads,
                    false => Worker::LookWhetherOpen,
                }
            }
            Worker::LookWhetherOpen if s.open && self.has(Fault::LooksAtThreadsTooEarly) => Worker::LoadBody,
            Worker::LookWhetherOpen if s.open => Worker::LookAtThreads,
            Worker::LookWhetherOpen if early => Worker::LookAtEpoch,
            Worker::LookWhetherOpen => Worker::Leave,
            Worker::LookAtThreads => {
                s.sharing[w] = s.threads;
                match w as u8 + 1 < s.threads {
                    true if early => Worker::Enter,
                    true if self.has(Fault::LooksAtThreadsTooEarly) => Worker::LookWhetherOpen,
                    true => Worker::LoadBody,
                    false => Worker::Leave,
                }
            }
            Worker::LoadBody => {
                if s.body == 0 || s.alive != s.body {
                    return Err(format!("worker {w} follows a pointer to the body of loop {}, which is gone", s.body));
                }
                if w as u8 + 1 >= self.threads_of(s.body) {
                    return Err(format!("worker {w} takes part in loop {}, which has fewer threads", s.body));
                }
                s.joined[w] = s.body;
                Worker::Take(Take::Load { at: 0 })
            }
            Worker::Take(step) => {
                let panics = self.panics(step);
                let (joined, threads) = (s.joined[w], s.sharing[w]);
                match self.take(&mut s, (w as u8 + 1, threads), joined, step)? {
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
                (s.inside, s.joined[w], s.sharing[w]) = (s.inside - 1, 0, 0);
                Worker::LookAtEpoch
            }
            _ => return Ok(self.step_between_loops(s, w)),
        };
        s.workers[w] = next;
        Ok(vec![s])
    }

    /// The steps that worker `w` can take where it is in no loop.
    fn step_between_loops(&self, mut s: State, w: usize) -> Vec<State> {
        let late = self.has(Fault::SaysParkedTooLate);
        let next = match s.workers[w] {
            Worker::Out if s.jobs[w] == 0 => return Vec::new(),
            Worker::Out => {
                s.jobs[w] -= 1;
                Worker::LookWhetherCalled
            }
            Worker::LookWhetherCalled if s.presence[w] == Presence::Here => Worker::LoadEpoch,
            Worker::LookWhetherCalled => Worker::Out,
            Worker::LoadEpoch => {
                s.seen[w] = s.epoch.wrapping_sub(1);
                Worker::LookAtEpoch
            }
            Worker::LookAtEpoch if s.epoch == s.seen[w] => Worker::LookAtLeave,
            Worker::LookAtEpoch => Worker::SeeEpoch,
            Worker::LookAtLeave if s.leave => Worker::SayAway,
            Worker::LookAtLeave => {
                // It spins on, or has spun for long enough.
                let parks = if late { Worker::LookAgainAtEpoch } else { Worker::SayParked };
                let with = |next| {
                    let mut s = s;
                    s.workers[w] = next;
                    s
                };
                return vec![with(Worker::LookAtEpoch), with(parks)];
            }
            Worker::SayAway => {
                s.presence[w] = Presence::Away;
                if self.has(Fault::LeavesWithoutLookingBack) { Worker::Out } else { Worker::LookBack }
            }
            Worker::LookBack if s.epoch == s.seen[w] => Worker::Out,
            Worker::LookBack => Worker::SayHere { then_see: true },
            Worker::SayParked => {
                s.presence[w] = Presence::Parked;
                if late { Worker::Park } else { Worker::LookAgainAtEpoch }
            }
            Worker::LookAgainAtEpoch if s.epoch != s.seen[w] => Worker::SayHere { then_see: false },
            Worker::LookAgainAtEpoch if late => Worker::SayParked,
            Worker::LookAgainAtEpoch => Worker::Park,
            Worker::Park if !s.token[w] => return Vec::new(),
            Worker::Park => {
                s.token[w] = false;
                Worker::SayHere { then_see: false }
            }
            Worker::SayHere { then_see } => {
                s.presence[w] = Presence::Here;
                if then_see { Worker::SeeEpoch } else { Worker::LookAtEpoch }
            }
            Worker::SeeEpoch => {
                s.seen[w] = s.epoch;
                if self.has(Fault::LooksBeforeInside) { Worker::LookWhetherOpen } else { Worker::Enter }
            }
            other => unreachable!("{other:?} is a step in a loop"),
        };
        s.workers[w] = next;
        vec![s]
    }

    /// Whether a worker sleeps, or is away, though the caller has woken and called all that were to
    /// come to this loop; or sleeps though all were dismissed.
    fn sleeps_through(&self, s: &State) -> bool {
        let asleep = |w: usize| s.workers[w] == Worker::Park && !s.token[w];
        let away = |w: usize| s.workers[w] == Worker::Out && s.jobs[w] == 0;
        let mut all = 0..self.threads as usize - 1;
        match s.caller {
            Caller::Take(_) | Caller::Close { .. } | Caller::Wait { .. } => {
                let mut sharing = 0..self.threads_of(s.round) as usize - 1;
                sharing.any(|w| away(w) || asleep(w) && s.seen[w] != s.epoch)
            }
            Caller::Borrow | Caller::TakeBack => all.any(asleep),
            _ => false,
        }
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
            let out = (0..THREADS - 1).all(|w| s.workers[w] == Worker::Out && s.jobs[w] == 0);
            if s.caller == Caller::Gone && out {
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

impl Default for Model {
    fn default() -> Model {
        Model {
            threads: 2,
            loops: 2,
            items: 3,
            panics_at: None,
            borrows: false,
            narrow: false,
            nodes: false,
            fault: None,
        }
    }
}

#[test]
fn no_interleaving_loses_an_index_a_wake_up_or_the_end() {
    for (threads, loops, items) in [(2, 2, 4), (2, 3, 3), (3, 1, 3), (3, 2, 2), (3, 3, 2)] {
        let model = Model { threads, loops, items, ..Model::default() };
        let states = model.explore().unwrap_or_else(|e| panic!("{threads} threads, {loops} loops: {e}"));
        println!("{threads} threads, {loops} loops of {items}: {states} states");
        assert!(states > 1000, "the threads were interleaved");
    }
}

#[test]
fn threads_that_steal_from_their_own_node_first_lose_no_index_in_any_interleaving() {
    for (items, loops) in [(3, 1), (2, 2)] {
        let model = Model { threads: 3, loops, items, nodes: true, ..Model::default() };
        println!("{} states", model.explore().unwrap());
    }
}

#[test]
fn workers_that_left_for_rayon_come_to_the_next_loop_in_every_interleaving() {
    for (threads, loops, items) in [(2, 3, 3), (3, 2, 2)] {
        let model = Model { threads, loops, items, borrows: true, ..Model::default() };
        let states = model.explore().unwrap_or_else(|e| panic!("{threads} threads, {loops} loops: {e}"));
        println!("{threads} threads, {loops} loops of {items}, rayon's between them: {states} states");
    }
}

#[test]
fn a_loop_of_fewer_threads_is_left_alone_by_the_others_in_every_interleaving() {
    let model = Model { threads: 3, loops: 3, items: 2, narrow: true, ..Model::default() };
    println!("{} states", model.explore().unwrap());
}

#[test]
fn a_body_that_panics_reaches_the_caller_in_every_interleaving() {
    for (threads, loops, items, at) in [(2, 2, 3, 0), (2, 2, 3, 2), (3, 2, 2, 1)] {
        let model = Model { threads, loops, items, panics_at: Some(at), borrows: true, ..Model::default() };
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
        DismissesWithoutWaking,
        LeavesWithoutLookingBack,
        BroadcastsTooEarly,
        CallsWithoutCompare,
        LooksAtThreadsTooEarly,
    ] {
        let narrow = fault == LooksAtThreadsTooEarly;
        let (threads, items) = if narrow { (3, 2) } else { (2, 3) };
        let model =
            Model { threads, loops: 3, items, narrow, borrows: !narrow, fault: Some(fault), ..Model::default() };
        let found = model.explore().expect_err(&format!("{fault:?} shows"));
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
