//! output_rows: keeps the rows whose logits are computed. Everything from the last look at other rows on works on
//! those alone, so a prompt's last layer costs little more than attention.
//!
//! No family asks for it: [`cut_rows`] finds in a finished tape which values are needed in all rows. Those are the inputs of
//! steps that keep something of every token (caches, recurrences) or read its position, and what those are made of.
//!
//! In a model whose last layers see a window only, besides what earlier layers keep of every token, a prompt needs of these layers
//! little more than its end ([`Tape::spares_rows`]): a layer that stores keys for a window of w tokens is needed w - 1 tokens
//! further back than what reads them. [`on_last_rows`] counts that, step by step.
//!
//! Rows that a model hands on to draft heads are needed of every token, and their last steps could run on all rows. But
//! products with many rows may add in another order than with few (`quant/panels/`), so the logits would have other last
//! bits than without heads. So the steps stay on the output rows, and what they give is computed once more, for the other
//! rows alone. While tokens are generated there are none.

use std::sync::Arc;

use anyhow::Result;

use crate::cuda::{Grid, int, launch};
use crate::tape::{Batch, CpuIo, ExpertShare, GpuIo, Op, RowSet, Slot, SlotInfo, StateUse, Step, Table, Tape};

/// Keeps the output rows, or the others.
#[derive(Debug)]
struct TakeRows {
    rows: RowSet,
    /// Whether they are found by a table: the list of output rows that comes with every batch is of all of its rows.
    listed: bool,
}

impl Op for TakeRows {
    fn name(&self) -> &'static str {
        if self.rows == RowSet::Output { "output_rows" } else { "other_rows" }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        if io.outs[0].is_empty() {
            return;
        }
        let width = io.ins[0].len() / io.rows;
        for (r, out) in io.batch.indices(self.rows).into_iter().zip(io.outs[0].chunks_exact_mut(width)) {
            out.copy_from_slice(&io.ins[0][r as usize * width..][..width]);
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, out) = (io.ins[0], io.outs[0]);
        let total = out.rows * out.width;
        let rows = io.tables.first().copied().unwrap_or(io.lists.output_rows);
        launch::take_rows(io.gpu, Grid::each(total), x.ptr, rows, out.ptr, int(x.width), total as u64)
    }

    fn tables(&self) -> Vec<Table> {
        let rows = self.rows;
        let fill = move |batch: &Batch, to: &mut [u8]| {
            for (row, to) in batch.indices(rows).into_iter().zip(to.as_chunks_mut::<4>().0) {
                *to = row.to_ne_bytes();
            }
        };
        let table = Table { key: format!("{rows:?} rows"), row_bytes: 4, fill: Box::new(fill) };
        Vec::from_iter(self.listed.then_some(table))
    }
}

/// Of every step, whether it has to run on all rows.
fn on_all_rows(tape: &Tape) -> Vec<bool> {
    let mut needed = vec![false; tape.slots.len()]; // values that are needed in all rows
    let mut all = vec![false; tape.steps.len()];
    for (step, all) in tape.steps.iter().zip(&mut all).rev() {
        let keeps = !step.states.is_empty() && step.op.of_rows(RowSet::Output).is_none();
        *all = keeps || !step.op.by_row() || step.outs.iter().any(|x| needed[x.0 as usize]);
        if *all {
            step.ins.iter().for_each(|x| needed[x.0 as usize] = true);
        }
    }
    all
}

/// Of every step that does not run on all rows, whether the other rows are handed on too, or what they are made of: the
/// model's, of which a head reads every row.
fn on_other_rows(tape: &Tape, all: &[bool]) -> Vec<bool> {
    let mut needed = vec![false; tape.slots.len()];
    let mut others = vec![false; tape.steps.len()];
    for (i, step) in tape.steps.iter().enumerate().rev().filter(|(i, s)| !all[*i] && s.part == 0) {
        let hands = step.op.of_rows(RowSet::Others).is_some();
        others[i] = hands || step.outs.iter().any(|x| needed[x.0 as usize]);
        if others[i] {
            step.ins.iter().for_each(|x| needed[x.0 as usize] = true);
        }
    }
    others
}

/// Rows that are needed although nobody can say how far back.
const ALL: usize = usize::MAX;

/// Of every step that `all` says runs on all rows, how far before a row whose logits are wanted it has to run, at most:
/// [`RowSet::Last`]. None for steps that need all rows indeed.
fn on_last_rows(tape: &Tape, all: &[bool]) -> Vec<Option<usize>> {
    let (mut values, mut states) = (vec![0; tape.slots.len()], vec![0; tape.states.len()]);
    let mut reach = vec![None; tape.steps.len()];
    for (i, step) in tape.steps.iter().enumerate().rev().filter(|(i, _)| all[*i]) {
        let mut need = step.outs.iter().map(|x| values[x.0 as usize]).max().unwrap_or(0);
        for (k, s) in step.states.iter().enumerate() {
            match step.op.state_use(k) {
                None => need = ALL,
                Some(StateUse::Stores) => need = need.max(states[s.0 as usize]),
                Some(StateUse::Reads(_)) => {}
            }
        }
        for (k, s) in step.states.iter().enumerate() {
            let read = &mut states[s.0 as usize];
            match step.op.state_use(k) {
                Some(StateUse::Reads(Some(window))) if need < ALL => *read = (*read).max(need + window - 1),
                Some(StateUse::Stores) => {}
                _ => *read = ALL,
            }
        }
        step.ins.iter().map(|x| x.0 as usize).for_each(|x| values[x] = values[x].max(need));
        reach[i] = Some(need).filter(|n| *n < ALL);
    }
    reach
}

/// A tape that is being rewritten, step by step.
struct Cut {
    tape: Tape,
    steps: Vec<Step>,
    /// What holds the output rows, and the other rows, of a value that has all.
    made: [Vec<Option<Slot>>; 2],
}

/// The tape with every step on the output rows that need not run on all rows. A value that both kinds of steps read is
/// cut once, before the first that reads the output rows.
///
/// # Panics
/// If the logits would have all rows: they would be computed and brought over for nothing.
pub(crate) fn cut_rows(mut tape: Tape) -> Tape {
    let all = on_all_rows(&tape);
    let others = on_other_rows(&tape, &all);
    // Draft heads read rows of every token.
    let last = match tape.spares_rows && tape.parts() == 1 {
        true => on_last_rows(&tape, &all),
        false => vec![None; tape.steps.len()],
    };
    tape.spares_rows = last.iter().any(Option::is_some);
    let steps = std::mem::take(&mut tape.steps);
    let none = vec![None; tape.slots.len()];
    let mut cut = Cut { steps: Vec::with_capacity(steps.len() + 2), made: [none.clone(), none], tape };
    for (((mut step, all), others), last) in steps.into_iter().zip(all).zip(others).zip(last) {
        if all {
            step.last = last;
            let rows = last.map_or(RowSet::All, RowSet::Last);
            step.outs.iter().for_each(|x| cut.tape.slots[x.0 as usize].rows = rows);
            cut.steps.push(step);
            continue;
        }
        let copy = others.then(|| step.clone());
        for i in 0..step.ins.len() {
            step.ins[i] = cut.part_of(step.ins[i], RowSet::Output, &step);
        }
        let is_argmax = (0..cut.tape.parts()).any(|part| step.outs.first() == Some(&cut.tape.results(part)[1]));
        let rows = if is_argmax { RowSet::Argmax } else { RowSet::Output };
        step.outs.iter().for_each(|x| cut.tape.slots[x.0 as usize].rows = rows);
        step.op = step.op.of_rows(rows).unwrap_or(step.op);
        cut.steps.push(step);
        if let Some(copy) = copy {
            cut.repeat(copy);
        }
    }
    let tape = Tape { steps: cut.steps, ..cut.tape };
    for part in 0..tape.parts() {
        let [logits, _] = tape.results(part);
        assert_eq!(tape.slots[logits.0 as usize].rows, RowSet::Output, "logits are computed for the output rows");
    }
    tape
}

impl Cut {
    /// The value that has these rows of `x`, for a reader.
    fn part_of(&mut self, x: Slot, rows: RowSet, reader: &Step) -> Slot {
        let (i, which) = (x.0 as usize, (rows == RowSet::Others) as usize);
        match self.made[which].get(i) {
            Some(Some(known)) => return *known,
            Some(None) if matches!(self.tape.slots[i].rows, RowSet::All | RowSet::Last(_)) => {}
            _ => return x,
        }
        let step = take_rows(&mut self.tape, (x, rows), reader, &self.steps);
        self.made[which][i] = Some(step.outs[0]);
        self.steps.push(step);
        self.made[which][i].expect("just made")
    }

    /// Adds a step for the other rows that was added for the output rows.
    fn repeat(&mut self, mut step: Step) {
        for i in 0..step.ins.len() {
            step.ins[i] = self.part_of(step.ins[i], RowSet::Others, &step);
        }
        for x in &mut step.outs {
            let width = self.tape.width(*x);
            self.tape.slots.push(SlotInfo { width, rows: RowSet::Others });
            let new = Slot(self.tape.slots.len() as u32 - 1);
            self.made[1][x.0 as usize] = Some(new);
            *x = new;
        }
        step.label += ".others";
        step.op = step.op.of_rows(RowSet::Others).unwrap_or(step.op);
        self.steps.push(step);
    }
}

/// The step that keeps some rows of `x` for `reader`.
fn take_rows(tape: &mut Tape, (x, rows): (Slot, RowSet), reader: &Step, before: &[Step]) -> Step {
    let maker = before.iter().rfind(|s| s.outs.contains(&x)).expect("a value is made before it is read");
    let nth = maker.outs.iter().position(|out| *out == x).filter(|n| *n > 0);
    let last = if let RowSet::Last(reach) = tape.slots[x.0 as usize].rows { Some(reach) } else { None };
    let op = TakeRows { rows, listed: rows == RowSet::Others || last.is_some() };
    let label = format!("{}.{}{}", maker.label, op.name(), nth.map_or(String::new(), |n| format!(".{}", n + 1)));
    tape.slots.push(SlotInfo { width: tape.width(x), rows });
    Step {
        label,
        layer: reader.layer,
        part: reader.part,
        role: reader.role,
        op: Arc::new(op),
        share: ExpertShare::All,
        last,
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
                part: 0,
                role: Role::Mixing,
                op: Arc::new(Dummy(by_row)),
                share: ExpertShare::All,
                last: None,
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

    #[derive(Debug)]
    struct Hand;

    impl Op for Hand {
        fn name(&self) -> &'static str {
            "hand"
        }
        fn cpu(&self, _: &mut CpuIo<'_>) {}
        fn gpu(&self, _: &GpuIo<'_>) -> Result<()> {
            Ok(())
        }
        fn of_rows(&self, _: RowSet) -> Option<Arc<dyn Op>> {
            Some(Arc::new(Hand))
        }
    }

    #[test]
    fn what_is_handed_on_is_computed_for_the_output_rows_as_before_and_for_the_others_apart() {
        let mut tape = tape(false);
        let last = tape.steps[6].clone(); // the last layer's residual
        let hand = Step { op: Arc::new(Hand), label: "hand".into(), ins: last.outs, outs: Vec::new(), ..last };
        let steps = rows(&cut_rows(tape.clone()));
        tape.steps.push(Step { states: vec![StateId(2)], ..hand });
        let with = cut_rows(tape);
        let of = |s: &Step| (s.label.clone(), s.outs.first().map(|x| with.slots[x.0 as usize].rows));
        let got: Vec<_> = with.steps.iter().map(of).collect();
        let model: Vec<_> = got.iter().filter(|(_, rows)| *rows != Some(RowSet::Others) && rows.is_some()).collect();
        assert!(model.iter().zip(&steps).all(|(a, b)| a.0 == b.0 && a.1 == Some(b.1)), "{got:?}");
        let others: Vec<&str> =
            got.iter().filter(|(_, rows)| *rows == Some(RowSet::Others)).map(|(l, _)| l.as_str()).collect();
        let want = ["step 4.other_rows", "step 5.others", "step 3.other_rows", "step 6.others"];
        assert_eq!(others, want, "no logits of them: {got:?}");
        assert_eq!(got.iter().filter(|(label, _)| label.starts_with("hand")).count(), 2);
    }
}
