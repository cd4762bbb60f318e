//! What a batch of a prompt will cost, measured as a token is, with random weights.
//!
//! A whole batch would take as long as reading a prompt does. So of every kind of layer one is
//! walked, with up to 128 tokens, in the middle of the batch, where attention sees as many tokens
//! as it does on average; the times are scaled by tokens. An expert step keeps the number of tokens
//! that share an expert, which decides how fast its products are:
//! ```text
//! experts there, of all   E'' of E        as many as the buffer has room for and the tokens give work
//! tokens                  T = n E'' / E   so that each expert has n k / E of them, as in a batch of n
//! ```

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::SyntheticRun;
use crate::plan;
use crate::tape::{Batch, Row, RowSet, Slot, State, Step, Work};

/// Tokens that are walked together, round after round: from 128 on products are hardly faster for
/// more. What counts is the last round, or the faster one of two that are alike.
const ROUNDS: [usize; 3] = [32, 128, 128];
/// No further round is walked where the rounds so far took this long.
const ENOUGH: Duration = Duration::from_millis(500);

/// A walk under way.
struct BatchWalk<'a> {
    batch: &'a Batch,
    /// Tokens of the batch that is asked for.
    n: usize,
    /// The walked steps that read a value last.
    last: HashMap<u32, usize>,
    values: HashMap<u32, Vec<f32>>,
    states: Vec<State>,
    work: Work,
}

impl SyntheticRun<'_> {
    /// Walks a batch of `n` tokens of a prompt that comes after the tokens in the context. Returns
    /// the seconds of each step; None where it was not walked: a GPU's, or one with a matrix beyond
    /// all measure.
    pub fn prompt(&self, n: usize) -> Vec<Option<f64>> {
        let kinds = self.kinds();
        let walked: Vec<usize> = (0..self.tape.steps.len()).filter(|i| self.steps[*i] && kinds[*i] == *i).collect();
        let (begin, n) = (Instant::now(), n.max(1));
        let mut last: (usize, HashMap<usize, f64>) = Default::default();
        for rows in ROUNDS.map(|rows| rows.min(n)) {
            let mut seconds = self.round(&walked, n, rows);
            if rows == last.0 {
                seconds.iter_mut().for_each(|(i, s)| *s = s.min(last.1[i]));
            }
            last = (rows, seconds);
            if begin.elapsed() > ENOUGH {
                break;
            }
        }
        let seconds = last.1;
        kinds.iter().enumerate().map(|(i, kind)| seconds.get(kind).copied().filter(|_| self.steps[i])).collect()
    }

    /// Walks `rows` tokens in the middle of a batch of `n`; returns the seconds of each step for
    /// all of the batch.
    fn round(&self, walked: &[usize], n: usize, rows: usize) -> HashMap<usize, f64> {
        let first = self.depth + (n - rows) / 2;
        let n_tokens = super::LOOKED_UP.min(self.tape.n_vocab());
        let row = |pos: usize| Row { token: (pos % n_tokens) as u32, seq: 0, pos: pos as u32 };
        let batch = Batch {
            rows: (first..first + rows).map(row).collect(),
            output_rows: vec![rows as u32 - 1],
            ..Batch::default()
        };
        let reads = walked.iter().flat_map(|&i| self.tape.steps[i].ins.iter().map(move |x| (x.0, i)));
        let mut walk = BatchWalk {
            batch: &batch,
            n,
            last: reads.collect(),
            values: HashMap::new(),
            states: self.states(walked, first, rows),
            work: Work::default(),
        };
        walked.iter().map(|&i| (i, self.batch_step(i, &mut walk))).collect()
    }

    /// Of every step the first one that does the same: the step at its place in the first layer of
    /// the same kind.
    fn kinds(&self) -> Vec<usize> {
        let steps = &self.tape.steps;
        let mut layers: Vec<Vec<usize>> = vec![Vec::new(); self.tape.n_layers()];
        for (i, step) in self.tape.model().iter().enumerate() {
            if let Some(layer) = step.layer {
                layers[layer].push(i);
            }
        }
        let mut kinds: Vec<usize> = (0..steps.len()).collect();
        let mut known: HashMap<Vec<String>, &Vec<usize>> = HashMap::new();
        for layer in &layers {
            let signature = layer.iter().map(|&i| self.signature(i)).collect();
            let first = *known.entry(signature).or_insert(layer);
            layer.iter().zip(first).for_each(|(i, first)| kinds[*i] = *first);
        }
        kinds
    }

    /// What the cost of a step depends on.
    fn signature(&self, i: usize) -> String {
        let (tape, step) = (self.tape, &self.tape.steps[i]);
        let weights = step.weights.iter().map(|w| &tape.weights[w.0 as usize]);
        let weights: Vec<_> = weights.map(|w| (w.shape, w.format())).collect();
        let states: Vec<_> =
            step.states.iter().map(|s| &tape.states[s.0 as usize]).map(|s| (s.width, &s.kind)).collect();
        let width = |x: &Slot| tape.width(*x);
        let widths: Vec<usize> = step.ins.iter().chain(&step.outs).map(width).collect();
        format!("{} {:?} {} {weights:?} {states:?} {widths:?}", step.op.name(), step.share, self.steps[i])
    }

    /// The states of the walked steps with `tokens` tokens in them; nothing for the others.
    fn states(&self, walked: &[usize], tokens: usize, rows: usize) -> Vec<State> {
        let used: HashSet<u32> = walked.iter().flat_map(|&i| &self.tape.steps[i].states).map(|s| s.0).collect();
        let mut states: Vec<State> = Vec::with_capacity(self.tape.states.len());
        for (i, spec) in self.tape.states.iter().enumerate() {
            if !used.contains(&(i as u32)) {
                states.push(State::default());
                continue;
            }
            let mut state = State::new(spec, 1, tokens + rows, rows);
            for (at, len) in state.saved_ranges(tokens, true) {
                state.of_mut(0).bytes[at..at + len].fill(0); // memory of its own, not one page of zeros
            }
            state.replaced(0, tokens, true);
            states.push(state);
        }
        states
    }

    /// Runs a step for the batch; returns its seconds for all `n` tokens.
    fn batch_step(&self, i: usize, walk: &mut BatchWalk<'_>) -> f64 {
        let (tape, step) = (self.tape, &self.tape.steps[i]);
        let rows_of = |x: &Slot| walk.batch.count(tape.slots[x.0 as usize].rows);
        let rows = step.ins.first().map_or(walk.batch.rows.len(), rows_of);
        if rows == 0 {
            return 0.0; // the argmax, where logits are asked for
        }
        let (views, there) = self.views(step);
        let part = there.map(|there| self.routed(step, there, walk));
        let tokens = part.map_or(rows, |p| p.0).min(rows);
        let mut outs: Vec<Vec<f32>> = Vec::with_capacity(step.outs.len());
        for x in &step.outs {
            let mut out = walk.values.remove(&x.0).unwrap_or_default();
            out.resize(rows_of(x).min(part.map_or(usize::MAX, |p| p.0)) * tape.width(*x), 0.0);
            outs.push(out);
        }
        for x in &step.ins {
            // What a layer that is not walked would have given: zeros.
            let len = rows_of(x) * tape.width(*x);
            walk.values.entry(x.0).or_default().resize(len, 0.0);
        }
        if let Some((_, experts)) = part {
            let ids = walk.values.get_mut(&step.ins[1].0).expect("just made");
            ids.iter_mut().enumerate().for_each(|(j, id)| *id = (j % experts) as f32);
        }
        let small;
        let batch = match part {
            Some((t, _)) if t < walk.batch.rows.len() => {
                small = Batch {
                    rows: walk.batch.rows[..t].to_vec(),
                    output_rows: vec![t as u32 - 1],
                    ..walk.batch.clone()
                };
                &small
            }
            _ => walk.batch,
        };
        let cut = |x: &Slot| &walk.values[&x.0][..rows_of(x).min(part.map_or(usize::MAX, |p| p.0)) * tape.width(*x)];
        let ins: Vec<&[f32]> = step.ins.iter().map(cut).collect();
        let start = Instant::now();
        self.compute(step, (batch, tokens), (&ins, &mut outs), &views, &mut walk.states, &mut walk.work);
        let seconds = start.elapsed().as_secs_f64();
        for (x, mut out) in step.outs.iter().zip(outs) {
            out.resize(rows_of(x) * tape.width(*x), 0.0);
            if walk.last.contains_key(&x.0) {
                walk.values.insert(x.0, out);
            }
        }
        walk.values.retain(|x, _| walk.last.get(x).is_some_and(|last| *last > i));
        // Of output rows there are as many in any batch.
        let set = step.ins.first().map_or(RowSet::All, |x| tape.slots[x.0 as usize].rows);
        let all = matches!(set, RowSet::All | RowSet::Others | RowSet::Last(_));
        if all { seconds * walk.n as f64 / tokens as f64 } else { seconds }
    }

    /// For an expert step, of whose experts `there` are there: the tokens, and the experts that
    /// they take turns with.
    fn routed(&self, step: &Step, there: usize, walk: &BatchWalk<'_>) -> (usize, usize) {
        let rows = walk.batch.rows.len();
        let (k, all) = (self.tape.width(step.ins[1]), plan::experts_of(self.tape, step));
        let experts = (all * rows / walk.n).clamp(k.min(there), there);
        ((walk.n * experts / all).clamp(1, rows), experts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Pool;
    use crate::exec::profile::tests::tape;
    use crate::plan::Place;

    #[test]
    fn a_prompt_of_every_family_is_walked_whatever_room_there_is() {
        let pool = Pool::new(2).unwrap();
        for name in ["qwen3moe", "gpt-oss", "qwen35", "qwen35moe", "deepseek2-v3", "deepseek4"] {
            let tape = tape(name);
            let places = vec![Place::Cpu; tape.steps.len()];
            for (depth, n, room) in [(0, 1, 1 << 30), (0, 300, 1 << 30), (700, 1000, 256 << 10)] {
                let seconds = SyntheticRun::new(&tape, &places, &pool, depth, room).prompt(n);
                assert!(seconds.iter().all(Option::is_some), "{name}: {n} at {depth}");
                let sum: f64 = seconds.iter().flatten().sum();
                assert!(sum > 0.0 && sum.is_finite(), "{name}: {n} at {depth}: {sum} s");
            }
        }
    }

    #[test]
    fn layers_of_one_kind_share_a_time_and_a_gpu_s_steps_have_none() {
        let pool = Pool::new(1).unwrap();
        let tape = tape("qwen3moe");
        let places: Vec<Place> =
            tape.steps.iter().map(|s| if s.layer == Some(2) { Place::Gpu(0) } else { Place::Cpu }).collect();
        let seconds = SyntheticRun::new(&tape, &places, &pool, 0, 1 << 20).prompt(64);
        let of = |layer| tape.steps.iter().zip(&seconds).filter(move |(s, _)| s.layer == Some(layer)).map(|(_, s)| *s);
        assert!(of(0).eq(of(1)) && of(0).all(|s| s.is_some()), "the same layer");
        assert!(of(2).all(|s| s.is_none()), "the GPU's");
    }
}
