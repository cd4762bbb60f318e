//! Requests whose form (a JSON schema, a grammar, the schemas of tools) is being compiled, on a
//! thread of its own: the answers of others go on.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::Ready;
use crate::talk::{CallRules, ToolUse};
use crate::text::Tokenizer;
use crate::text::grammar::{Grammar, Grammars, Kind};

/// Requests that wait for their forms, at most: further lines are not read before one of them
/// begins.
const MOST: usize = 16;

/// What holds an answer to its form.
#[derive(Default)]
pub(super) struct Compiled {
    pub(super) grammar: Option<Grammar>,
    pub(super) calls: CallRules,
}

impl Compiled {
    fn new(
        tokenizer: &Tokenizer,
        grammars: &Grammars<'_>,
        kind: Option<&Kind>,
        tools: Option<&ToolUse>,
    ) -> Result<Compiled> {
        let grammar = kind.map(|kind| grammars.start(kind)).transpose()?;
        let calls = tools.map(|tools| tools.rules(tokenizer, grammars)).transpose()?.unwrap_or_default();
        Ok(Compiled { grammar, calls })
    }
}

/// The number of a request, its form and its tools.
type Asked = (usize, Option<Kind>, Option<ToolUse>);

/// Requests that wait for their forms.
pub(super) struct Forms {
    /// None when there will be no more.
    ask: Option<Sender<Asked>>,
    compiled: Receiver<(usize, Result<Compiled>)>,
    /// By the request's number.
    waiting: BTreeMap<usize, Ready>,
}

impl Forms {
    /// Starts the thread. It ends when no more forms come.
    pub(super) fn new<'scope, 'env>(scope: &'scope Scope<'scope, 'env>, tokenizer: &'env Tokenizer) -> Forms {
        let (ask, asked) = channel::<Asked>();
        let (give, compiled) = channel();
        let work = move || {
            let mut grammars: Option<Grammars> = None;
            for (number, kind, tools) in asked {
                let made = match grammars.take().map_or_else(|| Grammars::new(tokenizer), Ok) {
                    Ok(ready) => Compiled::new(tokenizer, grammars.insert(ready), kind.as_ref(), tools.as_ref()),
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
    pub(super) fn compile(&mut self, ready: Ready) {
        if let Some(ask) = &self.ask {
            // A thread that is gone is told by `next`.
            let _ = ask.send((ready.number, ready.kind.clone(), ready.tools.clone()));
        }
        self.waiting.insert(ready.number, ready);
    }

    /// A request whose form is compiled, or cannot be. Waits for one if `patience` is given.
    pub(super) fn next(&mut self, patience: Option<Duration>) -> Option<(Ready, Result<Compiled>)> {
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
        self.waiting.remove(&number).map(|ready| (ready, made))
    }

    /// What still waits.
    pub(super) fn drain(&mut self) -> Vec<Ready> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// Lets the thread end.
    pub(super) fn close(&mut self) {
        self.ask = None;
    }
}
