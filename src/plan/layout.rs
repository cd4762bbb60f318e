//! Which buffer of a place holds each value: values that are never alive together share one.

use std::ops::Range;

use super::{Place, PlanStage, Shape};
use crate::tape::{ExpertShare, RowSet, Slot, Step, Tape, code_bytes};

/// The buffers of one place.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Buffer of each slot of the tape; None where the value never is at this place.
    pub buffer: Vec<Option<u32>>,
    /// Columns of each buffer: of values with a row for every token, and of values with a row for every output row.
    pub widths: Vec<[usize; 2]>,
    /// Whether a step multiplies a slot as codes here, which lie beside it ([`quantize`](crate::tape::quantize)): only on
    /// a GPU.
    pub coded: Vec<bool>,
}

impl Layout {
    /// Walks the stages once for the last use of each value and once to hand out buffers. A step's outputs never share
    /// a buffer with its inputs. The results of a part of the tape are there until another part is walked.
    pub fn new(tape: &Tape, (stages, parts): (&[PlanStage], &[Range<usize>]), place: Place) -> Layout {
        // Every moment at which this place reads or writes: (reads, writes).
        let mut moments: Vec<(Vec<Slot>, Vec<Slot>)> = Vec::new();
        let mut shares: Vec<&Step> = Vec::new(); // the GPU's of steps that are split by expert
        let mut coded = vec![false; tape.slots.len()];
        let mut ends: Vec<usize> = Vec::new(); // the moments before the end of each part
        for (i, stage) in stages.iter().enumerate() {
            if parts.get(ends.len()).is_some_and(|part| part.end == i) {
                ends.push(moments.len());
            }
            match stage {
                PlanStage::Copy(x, from, _) if *from == place => moments.push((vec![*x], vec![])),
                PlanStage::Copy(x, _, to) if *to == place => moments.push((vec![], vec![*x])),
                PlanStage::Run(p, range) if *p == place => {
                    let steps = &tape.steps[range.clone()];
                    let read_as_codes = steps.iter().filter(|_| place.is_gpu()).flat_map(|s| tape.code_inputs(s));
                    read_as_codes.for_each(|x| coded[x.0 as usize] = true);
                    moments.extend(steps.iter().map(|s| (s.ins.clone(), s.outs.clone())));
                    shares.extend(steps.iter().filter(|s| s.share == ExpertShare::OnGpu));
                }
                _ => {}
            }
        }
        let mut last = vec![0; tape.slots.len()];
        for (at, (reads, writes)) in moments.iter().enumerate() {
            reads.iter().chain(writes).for_each(|x| last[x.0 as usize] = at);
        }
        // Experts that stream through the ring are multiplied while the host computes its own, after what this place does
        // until then: what they read lives until their sum with the host's.
        for step in shares {
            let sum = last[step.outs[0].0 as usize];
            moments[sum].0.extend(&step.ins);
            step.ins.iter().for_each(|x| last[x.0 as usize] = last[x.0 as usize].max(sum));
        }
        for part in (0..parts.len()).filter(|_| place == Place::Cpu) {
            // Read after the walk: their buffers are free with the first moment of the next part.
            let end = ends.get(part).map_or(usize::MAX, |end| end - 1);
            tape.results(part).iter().for_each(|x| last[x.0 as usize] = end);
            if let Some(moment) = moments.get_mut(end) {
                moment.0.extend(tape.results(part));
            }
        }
        let mut layout = Layout { buffer: vec![None; tape.slots.len()], widths: Vec::new(), coded };
        let mut free: Vec<u32> = Vec::new();
        for (at, (reads, writes)) in moments.iter().enumerate() {
            for x in writes {
                let of_outputs = matches!(tape.slots[x.0 as usize].rows, RowSet::Output | RowSet::Argmax);
                let (width, rows) = (tape.width(*x), of_outputs as usize);
                // The free buffer whose width is nearest, so that wide ones stay for wide values.
                let near = |&i: &usize| layout.widths[free[i] as usize][rows].abs_diff(width);
                let pick = (0..free.len()).min_by_key(near);
                let buffer = match pick {
                    Some(i) => free.swap_remove(i),
                    None => {
                        layout.widths.push([0; 2]);
                        layout.widths.len() as u32 - 1
                    }
                };
                let w = &mut layout.widths[buffer as usize][rows];
                *w = width.max(*w);
                layout.buffer[x.0 as usize] = Some(buffer);
            }
            let mut done: Vec<Slot> =
                reads.iter().chain(writes).copied().filter(|x| last[x.0 as usize] == at).collect();
            done.dedup();
            for x in done {
                let buffer = layout.buffer[x.0 as usize].expect("a value is written before it is read");
                if !free.contains(&buffer) {
                    free.push(buffer);
                }
            }
        }
        layout
    }

    /// Bytes for codes beside each buffer: of those that hold a value with codes, as many as the whole buffer's have, and what
    /// a second half of a batch loses by beginning at a multiple of 16.
    pub fn code_bytes(&self, shape: &Shape) -> impl Iterator<Item = usize> {
        let mut has = vec![false; self.widths.len()];
        let coded = self.buffer.iter().zip(&self.coded).filter(|(_, coded)| **coded);
        coded.filter_map(|(buffer, _)| *buffer).for_each(|buffer| has[buffer as usize] = true);
        self.bytes(shape).zip(has).map(|(bytes, has)| if has { code_bytes(bytes / 4) + 16 } else { 0 })
    }

    /// Bytes that each buffer must hold, without codes.
    pub fn bytes(&self, shape: &Shape) -> impl Iterator<Item = usize> {
        self.widths.iter().map(|[all, wanted]| 4 * (all * shape.n_batch).max(wanted * shape.n_output_rows))
    }
}
