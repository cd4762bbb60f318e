//! Large tables that stay in the file: the system reads no more of them than is asked for, and what a batch needs is asked for
//! before anything is computed, so that it arrives while the steps before are.

use crate::gguf::Gguf;
use crate::tape::{Batch, State, Tape, Weight, WeightKind};

/// Bytes from which on a table is large; smaller ones are in memory soon.
const LARGE: usize = 256 << 20;

fn is_large(w: &Weight) -> bool {
    w.kind == WeightKind::Mapped && w.bytes >= LARGE
}

/// Tells the system that a model's large tables are read here and there.
pub(super) fn announce(gguf: &Gguf, tape: &Tape) {
    tape.mapped().filter(|w| is_large(w)).for_each(|w| gguf.reads_scattered(&gguf.tensors[w.tensor]));
}

/// Asks for the rows of large tables that a batch will read.
pub(super) fn ask_for_rows(gguf: &Gguf, tape: &Tape, states: &[State], batch: &Batch) {
    for step in &tape.steps[tape.part_steps(batch.part)] {
        let Some(w) = step.weights.first().map(|w| &tape.weights[w.0 as usize]).filter(|w| is_large(w)) else {
            continue;
        };
        let states: Vec<&State> = step.states.iter().map(|s| &states[s.0 as usize]).collect();
        let row = w.bytes / (w.shape[0] * w.shape[1]);
        gguf.will_read(&gguf.tensors[w.tensor], row, &step.op.rows_ahead(batch, &states));
    }
}
