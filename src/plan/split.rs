//! Expert layers that run at two places at once: the GPU multiplies by the experts that it has, the CPU by the others.
//!
//! ```text
//! out = experts(x, ids, weights)     becomes     b   = experts(x, ids, weights), the others       on the CPU
//!                                                a   = experts(x, ids, weights), cached ones      on the GPU
//!                                                out = a + b                                      on the GPU
//! ```
//! To the plan and the walk these are steps like others: the GPU's is started, the CPU's runs meanwhile, and the sum
//! waits for both. So the sum, and what depends on it, comes after all else of its layer: a shared expert mostly, which
//! does not wait for the CPU then.

use std::sync::Arc;

use crate::ops::Add;
use crate::tape::{ExpertShare, Slot, Step, Tape};

/// Returns the tape with those expert steps split in two that `which` picks by their number.
pub fn split(tape: &Tape, which: &dyn Fn(usize) -> bool) -> Tape {
    let mut halves = tape.clone();
    halves.steps.clear();
    let mut late: Vec<Step> = Vec::new(); // a layer's sum and what depends on it
    for (i, step) in tape.steps.iter().enumerate() {
        let depends = late.iter().any(|s| s.outs.iter().any(|x| step.ins.contains(x)));
        // Steps that share a state stay in order.
        let may_wait = step.states.is_empty() && !which(i);
        if late.first().is_some_and(|s| s.layer != step.layer || s.part != step.part) || (depends && !may_wait) {
            halves.steps.append(&mut late);
        } else if depends {
            late.push(step.clone());
            continue;
        }
        if !which(i) {
            halves.steps.push(step.clone());
            continue;
        }
        let info = tape.slots[step.outs[0].0 as usize];
        let mut part = |share: ExpertShare, name: &str| {
            halves.slots.push(info);
            let out = Slot(halves.slots.len() as u32 - 1);
            halves.steps.push(Step { label: format!("{}.{name}", step.label), share, outs: vec![out], ..step.clone() });
            out
        };
        // The CPU's first: what it waits for is sent before the GPU begins its own share.
        let rest = part(ExpertShare::OnCpu, "rest");
        let ins = vec![part(ExpertShare::OnGpu, "cached"), rest];
        late.push(Step { op: Arc::new(Add), ins, weights: Vec::new(), states: Vec::new(), ..step.clone() });
    }
    halves.steps.append(&mut late);
    halves
}
