//! Requests whose form (a JSON schema, a grammar) is being compiled, on a thread of its own: the
//! answers of others go on.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::job::Job;
use crate::text::Tokenizer;
use crate::text::grammar::{Grammar, Grammars, Kind};

/// Requests that wait for their forms, at most: further lines are not read before one of them
/// begins.
const MOST: usize = 16;

/// Requests that wait for their forms.
pub(super) struct Forms {
    /// None when there will be no more.
    ask: Option<Sender<(usize, Kind)>>,
    compiled: Receiver<(usize, Result<Grammar>)>,
    /// By the request's number: its line and what it asks.
    waiting: BTreeMap<usize, (usize, Job)>,
}

impl Forms {
    /// Starts the thread. It ends when no more forms come.
    pub(super) fn new<'scope, 'env>(scope: &'scope Scope<'scope, 'env>, tokenizer: &'env Tokenizer) -> Forms {
        let (ask, asked) = channel::<(usize, Kind)>();
        let (give, compiled) = channel();
        let work = move || {
            let mut grammars: Option<Grammars> = None;
            for (number, kind) in asked {
                let made = match grammars.take().map_or_else(|| Grammars::new(tokenizer), Ok) {
                    Ok(ready) => grammars.insert(ready).start(&kind),
                    Err(e) => Err(e),
                };
                if give.send((number, made)).is_err() {
                    return;
                }
            }
        };
        // Where no thread can be started, the channels are closed, and every form is refused as
        // that.
        let _ = std::thread::Builder::new().name("forms".into()).spawn_scoped(scope, work);
        Forms { ask: Some(ask), compiled, waiting: BTreeMap::new() }
    }

    /// Whether another request may wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MOST
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Has a request's form compiled.
    pub(super) fn compile(&mut self, number: usize, line: usize, job: Job) {
        if let (Some(ask), Some(kind)) = (&self.ask, job.kind.clone()) {
            let _ = ask.send((number, kind)); // a thread that is gone is told by `next`
        }
        self.waiting.insert(number, (line, job));
    }

    /// A request whose form is compiled, or cannot be, with its number and line. Waits for one if
    /// `patience` is given.
    pub(super) fn next(&mut self, patience: Option<Duration>) -> Option<(usize, usize, Job, Result<Grammar>)> {
        if self.waiting.is_empty() {
            return None;
        }
        let (number, made) =
            match (self.compiled.recv_timeout(patience.unwrap_or_default()), self.waiting.keys().next()) {
                (Ok(done), _) => done,
                (Err(std::sync::mpsc::RecvTimeoutError::Disconnected), Some(first)) => {
                    (*first, Err(anyhow!("no thread to compile the form")))
                }
                _ => return None,
            };
        let (line, job) = self.waiting.remove(&number)?;
        Some((number, line, job, made))
    }

    /// What still waits, with its number and line.
    pub(super) fn drain(&mut self) -> Vec<(usize, usize, Job)> {
        std::mem::take(&mut self.waiting).into_iter().map(|(number, (line, job))| (number, line, job)).collect()
    }

    /// Lets the thread end.
    pub(super) fn close(&mut self) {
        self.ask = None;
    }
}
