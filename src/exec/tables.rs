//! Large tables that stay in the file: the system reads no more of them than is asked for, and what a batch needs is asked for
//! before anything is computed, so that it arrives while the steps before are.
//!
//! A thread of its own asks: the system takes 11 microseconds for a request, and a prompt's batch has ten thousand rows and more.
//! Pages that were read leave the program's memory again from time to time, so that no table fills it; those that the system has
//! room for are still in its page cache.
//!
//! Rejected: a cache of the program's own for hot rows, filled by the threads that read experts. Text that repeats itself, for
//! which the page cache has all rows, decodes as fast as with the table in memory, and no cache holds random rows
//! (benches/record/2026-11-30-deepseek41.md). A row that was asked for is there when it is read: 29 major faults in 800 tokens.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context, Result};

use crate::gguf::Gguf;
use crate::tape::{Batch, State, Tape, Weight, WeightKind};

/// Bytes from which on a table is large; smaller ones are in memory soon.
const LARGE: usize = 256 << 20;

/// Rows, each of a page or two, that are read of tables before what was read is given up: 64 MiB.
const MOST: usize = 16 << 10;

fn is_large(w: &Weight) -> bool {
    w.kind == WeightKind::Mapped && w.bytes >= LARGE
}

/// Rows of a table that a batch will read.
#[derive(Debug)]
struct Ask {
    /// The table's place in [`Gguf::tensors`].
    tensor: usize,
    /// Bytes of a row.
    row: usize,
    rows: Vec<usize>,
}

/// A model's large tables.
#[derive(Debug)]
pub(super) struct Tables {
    gguf: Arc<Gguf>,
    /// Their places in [`Gguf::tensors`].
    tensors: Vec<usize>,
    /// To the thread, which ends with this.
    asks: Sender<Vec<Ask>>,
    /// Rows that were asked for since pages were given up.
    rows: usize,
}

impl Tables {
    /// Tells the system that a model's large tables are read here and there, and starts the thread. None if it has none.
    pub(super) fn open(gguf: &Arc<Gguf>, tape: &Tape) -> Result<Option<Tables>> {
        let mut tensors: Vec<usize> = tape.mapped().filter(|w| is_large(w)).map(|w| w.tensor).collect();
        tensors.dedup();
        if tensors.is_empty() {
            return Ok(None);
        }
        tensors.iter().for_each(|&t| gguf.reads_scattered(&gguf.tensors[t]));
        let ((asks, next), file) = (channel::<Vec<Ask>>(), gguf.clone());
        let serve = move || {
            for ask in next.into_iter().flatten() {
                file.will_read(&file.tensors[ask.tensor], ask.row, &ask.rows);
            }
        };
        std::thread::Builder::new().name("tables".into()).spawn(serve).context("cannot start a thread")?;
        Ok(Some(Tables { gguf: gguf.clone(), tensors, asks, rows: 0 }))
    }

    /// Asks for the rows that a batch will read, in the order in which it does.
    pub(super) fn ask_for_rows(&mut self, tape: &Tape, states: &[State], batch: &Batch) {
        if self.rows > MOST {
            self.tensors.iter().for_each(|&t| self.gguf.was_read(&self.gguf.tensors[t]));
            self.rows = 0;
        }
        let mut all = Vec::new();
        for step in &tape.steps[tape.part_steps(batch.part)] {
            let Some(w) = step.weights.first().map(|w| &tape.weights[w.0 as usize]).filter(|w| is_large(w)) else {
                continue;
            };
            let states: Vec<&State> = step.states.iter().map(|s| &states[s.0 as usize]).collect();
            let rows = step.op.rows_ahead(batch, &states);
            self.rows += rows.len();
            all.push(Ask { tensor: w.tensor, row: w.bytes / (w.shape[0] * w.shape[1]), rows });
        }
        let _ = self.asks.send(all); // without the thread the rows come when they are read
    }
}
