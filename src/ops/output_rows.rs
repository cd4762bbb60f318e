//! output_rows: keeps the rows whose logits are computed. Everything from the last look at other rows on works on
//! those alone, so a prompt's last layer costs little more than attention.
//!
//! No family asks for it: [`cut_rows`] finds in a finished tape which values are needed in all rows. Those are the inputs of
//! steps that keep something of every token (caches, recurrences) or read its position, and what those are made of.

use std::sync::Arc;

use anyhow::Result;

use crate::cuda::{Grid, int, launch};
use crate::tape::{CpuIo, ExpertShare, GpuIo, Op, RowSet, Slot, SlotInfo, Step, Tape};

#[derive(Debug)]
struct OutputRows;

impl Op for OutputRows {
    fn name(&self) -> &'static str {
        "output_rows"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        if io.batch.output_rows.is_empty() {
            return;
        }
        let width = io.outs[0].len() / io.batch.output_rows.len();
        for (&r, out) in io.batch.output_rows.iter().zip(io.outs[0].chunks_exact_mut(width)) {
            out.copy_from_slice(&io.ins[0][r as usize * width..][..width]);
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, out) = (io.ins[0], io.outs[0]);
        let total = out.rows * out.width;
        launch::take_rows(io.gpu, Grid::each(total), x.ptr, io.lists.output_rows, out.ptr, int(x.width), total as u64)
    }
}

/// Of every step, whether it has to run on all rows.
fn on_all_rows(tape: &Tape) -> Vec<bool> {
    let mut needed = vec![false; tape.slots.len()]; // values that are needed in all rows
    tape.kept.iter().for_each(|x| needed[x.0 as usize] = true);
    let mut all = vec![false; tape.steps.len()];
    for (step, all) in tape.steps.iter().zip(&mut all).rev() {
        *all = !step.states.is_empty() || !step.op.by_row() || step.outs.iter().any(|x| needed[x.0 as usize]);
        if *all {
            step.ins.iter().for_each(|x| needed[x.0 as usize] = true);
        }
    }
    all
}

/// The tape with every step on the output rows that need not run on all rows. A value that both kinds of steps read is
/// cut once, before the first that reads the output rows.
///
/// # Panics
/// If the logits would have all rows: they would be computed and brought over for nothing.
pub(crate) fn cut_rows(mut tape: Tape) -> Tape {
    let all = on_all_rows(&tape);
    let mut cut: Vec<Option<Slot>> = vec![None; tape.slots.len()];
    let mut steps: Vec<Step> = Vec::with_capacity(tape.steps.len() + 2);
    for (mut step, all) in std::mem::take(&mut tape.steps).into_iter().zip(all) {
        if !all {
            for i in 0..step.ins.len() {
                let x = step.ins[i];
                if tape.slots[x.0 as usize].rows == RowSet::All && cut[x.0 as usize].is_none() {
                    let made = output_rows(&mut tape, x, &step, &steps);
                    cut[x.0 as usize] = Some(made.outs[0]);
                    steps.push(made);
                }
                step.ins[i] = cut.get(x.0 as usize).copied().flatten().unwrap_or(x);
            }
            let rows = if step.outs.first() == tape.argmax.as_ref() { RowSet::Argmax } else { RowSet::Output };
            step.outs.iter().for_each(|x| tape.slots[x.0 as usize].rows = rows);
        }
        steps.push(step);
    }
    tape.steps = steps;
    let logits = tape.results()[0];
    assert_eq!(tape.slots[logits.0 as usize].rows, RowSet::Output, "logits are computed for the output rows");
    tape
}

/// The step that keeps the output rows of `x` for `reader`.
fn output_rows(tape: &mut Tape, x: Slot, reader: &Step, before: &[Step]) -> Step {
    let maker = before.iter().rfind(|s| s.outs.contains(&x)).expect("a value is made before it is read");
    let nth = maker.outs.iter().position(|out| *out == x).filter(|n| *n > 0);
    let label = format!("{}.output_rows{}", maker.label, nth.map_or(String::new(), |n| format!(".{}", n + 1)));
    tape.slots.push(SlotInfo { width: tape.width(x), rows: RowSet::Output });
    Step {
        label,
        layer: reader.layer,
        role: reader.role,
        op: Arc::new(OutputRows),
        share: ExpertShare::All,
        ins: vec![x],
        outs: vec![Slot(tape.slots.len() as u32 - 1)],
        weights: Vec::new(),
        states: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::{Role, StateId};

    /// An op that does nothing; `by_row` as given.
    #[derive(Debug)]
    struct Dummy(bool);

    impl Op for Dummy {
        fn name(&self) -> &'static str {
            "dummy"
        }
        fn cpu(&self, _: &mut CpuIo<'_>) {}
        fn gpu(&self, _: &GpuIo<'_>) -> Result<()> {
            Ok(())
        }
        fn by_row(&self) -> bool {
            self.0
        }
    }

    /// Two layers of (look at other tokens, add to the residual), then logits and their argmax. With `turned` the last
    /// layer's attention is followed by a step that reads positions. Slots: 0 the embedding, then for each layer what
    /// attention gives, what the turn gives, the sum; then logits and argmax.
    fn tape(turned: bool) -> Tape {
        let mut tape = Tape::default();
        let step = |tape: &mut Tape, by_row: bool, ins: &[u32], state: Option<u32>| {
            let out = Slot(tape.slots.len() as u32);
            tape.slots.push(SlotInfo { width: 4, rows: RowSet::All });
            tape.steps.push(Step {
                label: format!("step {}", tape.steps.len()),
                layer: None,
                role: Role::Mixing,
                op: Arc::new(Dummy(by_row)),
                share: ExpertShare::All,
                ins: ins.iter().map(|&x| Slot(x)).collect(),
                outs: vec![out],
                weights: Vec::new(),
                states: state.map(StateId).into_iter().collect(),
            });
            out.0
        };
        let mut x = step(&mut tape, false, &[], None);
        for layer in 0..2 {
            let a = step(&mut tape, true, &[x], Some(layer));
            let a = step(&mut tape, !turned, &[a], None);
            x = step(&mut tape, true, &[x, a], None);
        }
        let logits = step(&mut tape, true, &[x], None);
        let best = step(&mut tape, true, &[logits], None);
        (tape.logits, tape.argmax) = (Some(Slot(logits)), Some(Slot(best)));
        tape
    }

    fn rows(tape: &Tape) -> Vec<(String, RowSet)> {
        let of = |s: &Step| (s.label.clone(), tape.slots[s.outs[0].0 as usize].rows);
        tape.steps.iter().map(of).collect()
    }

    #[test]
    fn what_comes_after_the_last_look_at_other_rows_has_the_output_rows_alone() {
        use RowSet::{All, Argmax, Output};
        let got = rows(&cut_rows(tape(false)));
        let want = [
            ("step 0", All),
            ("step 1", All),
            ("step 2", All),
            ("step 3", All),
            ("step 4", All),
            ("step 4.output_rows", Output),
            ("step 5", Output),
            ("step 3.output_rows", Output),
            ("step 6", Output),
            ("step 7", Output),
            ("step 8", Argmax),
        ];
        assert_eq!(got, want.map(|(label, rows)| (label.to_owned(), rows)));
    }

    #[test]
    fn a_step_that_reads_positions_runs_before_the_cut() {
        let got = rows(&cut_rows(tape(true)));
        assert!(got.contains(&("step 5".into(), RowSet::All)), "{got:?}");
        assert!(got.contains(&("step 6".into(), RowSet::Output)), "{got:?}");
    }

    #[test]
    fn a_value_that_is_kept_has_all_rows_and_the_cut_moves_after_it() {
        let mut tape = tape(false);
        tape.kept.push(Slot(6)); // the last layer's residual
        let got = rows(&cut_rows(tape));
        let cuts: Vec<&String> = got.iter().map(|(l, _)| l).filter(|l| l.ends_with("output_rows")).collect();
        assert_eq!(cuts, ["step 6.output_rows"]);
        assert!(got.contains(&("step 6".into(), RowSet::All)), "{got:?}");
    }
}
