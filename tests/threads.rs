//! The threads of a process that computes: one set of them, as many as were asked for. Alone in
//! this program, since it counts them.
#![cfg(target_os = "linux")]

mod common;

use std::fs;

use tandem::eval;
use tandem::gguf::Load;
use tandem::session::{Options, Session, Want};

/// The names of the threads of this process.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    // A thread may end while it is looked at.
    tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok()).collect()
}

#[test]
fn all_loops_of_a_process_take_as_many_threads_as_were_asked_for() {
    let before = threads().len();
    let load = Load { mmap: false, mlock: false };
    let o = Options { n_ctx: Some(64), threads: 3, threads_batch: Some(2), load, ..Options::default() };
    let mut session = Session::open(&common::demo(), &o).unwrap();
    for round in 0..3 {
        session.rewind(0, 0).unwrap();
        let prompt: Vec<u32> = (10..42).collect();
        let logits = session.feed(0, &prompt, Want::All).unwrap().into_logits();
        let rows = eval::log_probs(&logits, session.n_vocab()).unwrap();
        assert_eq!(rows.len(), prompt.len());
        session.feed(0, &[7], Want::Last).unwrap();
        let now = threads();
        let ours = now.iter().filter(|name| name.starts_with("tandem-")).count();
        assert_eq!((ours, now.len()), (3, before + 3), "round {round}: {now:?}");
    }
    drop(session);
    let gone = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        threads().len() == before
    });
    assert!(gone, "the threads of no pool do not end: {:?}", threads());
}
