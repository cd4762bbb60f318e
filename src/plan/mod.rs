//! Where each step of a tape runs, which values cross between places, and which buffer each value lives in: all from
//! the header, before a weight is read.

mod batch;
pub mod cost;
mod fit;
mod footprint;
mod layout;
mod place;
mod share;
mod split;

pub use batch::LARGEST as LARGEST_BATCH;
pub use fit::{Ask, CacheSize, Fit, Refused, fit};
pub use footprint::{ALIGN, Footprint, GpuStarts, LISTS, Needs, Shape, load_kernels};
pub use footprint::{expert_bytes, experts_of, host_bytes, lane_rows, ring_part_bytes};
pub use footprint::{stacks, state_of, streams_through, weight_bytes};
pub use layout::Layout;
pub use place::{MAX_GPUS, Place, Rules, gpu_number};
pub use split::split;

use std::ops::Range;

use crate::tape::{ExpertShare, Slot, Step, Tape};

/// A segment of a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum PlanStage {
    /// A range of the tape's steps that run at one place.
    Run(Place, Range<usize>),
    /// A value carried from one place's memory to another's.
    Copy(Slot, Place, Place),
}

/// A placed tape.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Place of each step.
    pub places: Vec<Place>,
    /// Place of each state.
    pub state_places: Vec<Place>,
    /// The runs and copies, in order.
    pub stages: Vec<PlanStage>,
    /// The stages of each part of the tape: the model's, then those of each draft head.
    pub parts: Vec<Range<usize>>,
    /// Buffers of each place, in the order of [`Place::ALL`].
    pub layouts: Vec<Layout>,
    /// The capacities of the GPUs' expert caches, by their numbers.
    pub caches: [Cache; MAX_GPUS],
    /// What each step starts where it runs on a GPU, for estimates; none where nobody counted.
    pub starts: Vec<GpuStarts>,
}

/// The expert cache in a GPU's memory: its capacity, the same in every layer of which the GPU has a share of the experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cache {
    /// Experts of a layer that stay.
    pub slots: usize,
    /// Experts of a layer in each part of the ring through which others stream while a prompt is read; 0 for none.
    pub ring: usize,
}

impl Plan {
    /// Places every step by `rule`, which is given its number. Steps that share a state, directly or through others, run
    /// where the first of them runs, since a state lives in one memory; of a step that is split by expert, one share runs
    /// on the CPU and one on a GPU, the first where the rule names none.
    pub fn new(tape: &Tape, rule: &dyn Fn(usize, &Step) -> Place) -> Plan {
        let mut state_places: Vec<Option<Place>> = vec![None; tape.states.len()];
        let mut places: Vec<Place> = Vec::with_capacity(tape.steps.len());
        let groups = shared_states(tape);
        for (i, step) in tape.steps.iter().enumerate() {
            let held = groups[i].filter(|&first| first < i).map(|first| places[first]);
            let place = match step.share {
                ExpertShare::OnGpu => Some(rule(i, step)).filter(|p| p.is_gpu()).unwrap_or(Place::Gpu(0)),
                ExpertShare::OnCpu => Place::Cpu,
                // The argmax is found where the logits are.
                ExpertShare::All if step.outs.first() == Some(&tape.results(step.part)[1]) => {
                    let logits = tape.results(step.part)[0];
                    let head = tape.steps.iter().position(|s| s.outs.first() == Some(&logits));
                    places[head.expect("a finished tape has logits")]
                }
                ExpertShare::All => held.unwrap_or_else(|| rule(i, step)),
            };
            for s in &step.states {
                debug_assert!(state_places[s.0 as usize].is_none_or(|p| p == place), "{}: states apart", step.label);
                state_places[s.0 as usize] = Some(place);
            }
            places.push(place);
        }
        let (stages, parts) = order(tape, &places);
        let layouts = Place::ALL.iter().map(|&p| Layout::new(tape, (&stages, &parts), p)).collect();
        let state_places = state_places.into_iter().map(|p| p.unwrap_or(Place::Cpu)).collect();
        Plan { places, state_places, stages, parts, layouts, caches: Default::default(), starts: Vec::new() }
    }

    /// The buffer of a value at a place where it is at some time.
    pub fn buffer(&self, slot: Slot, place: Place) -> u32 {
        self.layouts[place.index()].buffer[slot.0 as usize].expect("the plan brings the value there")
    }

    /// The expert cache of a GPU; none at other places.
    pub fn cache(&self, place: Place) -> Cache {
        if let Place::Gpu(n) = place { self.caches[n as usize] } else { Cache::default() }
    }

    /// The GPUs on which anything runs, in order.
    pub fn gpus(&self) -> impl Iterator<Item = Place> {
        Place::ALL.into_iter().filter(|p| p.is_gpu() && self.places.contains(p))
    }

    /// Whether anything runs on a GPU.
    pub fn on_gpu(&self) -> bool {
        self.places.iter().any(|p| p.is_gpu())
    }

    /// Everything on the CPU.
    pub fn cpu(tape: &Tape) -> Plan {
        Plan::new(tape, &|_, _| Place::Cpu)
    }

    /// Bytes of working buffers at `place` for the largest batch.
    pub fn buffer_bytes(&self, place: Place, shape: &Shape) -> usize {
        let layout = &self.layouts[place.index()];
        layout.bytes(shape).sum::<usize>() + layout.code_bytes(shape).sum::<usize>()
    }
}

/// Of every step that has states, the first step that it shares one with, directly or through others.
pub(crate) fn shared_states(tape: &Tape) -> Vec<Option<usize>> {
    let mut first: Vec<Option<usize>> = vec![None; tape.states.len()]; // the first step of each state's group
    for (i, step) in tape.steps.iter().enumerate() {
        let joined: Vec<usize> = step.states.iter().filter_map(|s| first[s.0 as usize]).collect();
        let lead = joined.iter().copied().min().unwrap_or(i);
        step.states.iter().for_each(|s| first[s.0 as usize] = Some(lead));
        first.iter_mut().flatten().filter(|g| joined.contains(g)).for_each(|g| *g = lead);
    }
    tape.steps.iter().map(|step| step.states.first().and_then(|s| first[s.0 as usize])).collect()
}

/// The steps in the order in which they are started, with the copies between them.
///
/// The host waits while it computes, the GPU does not: so what the GPU can do without the host's next results is started
/// before the host begins. A host step waits until something on the GPU needs it, and GPU steps overtake it meanwhile:
/// of an expert layer that gives norm, router, copies down, shared expert on the GPU, then the experts on the host,
/// then the copy up and the sum. Each part of the tape ends before the next begins; returned are also the stages of each.
fn order(tape: &Tape, places: &[Place]) -> (Vec<PlanStage>, Vec<Range<usize>>) {
    let mut home: Vec<Vec<Place>> = vec![Vec::new(); tape.slots.len()]; // places that hold the value by now
    let mut stages: Vec<PlanStage> = Vec::new();
    let mut late: Vec<PlanStage> = Vec::new(); // what the host has still to do
    let mut owed = vec![false; tape.slots.len()]; // values that it owes
    let run = |stages: &mut Vec<PlanStage>, before: usize, place: Place, i: usize| match stages[before..].last_mut() {
        Some(PlanStage::Run(p, range)) if *p == place && range.end == i => range.end = i + 1,
        _ => stages.push(PlanStage::Run(place, i..i + 1)),
    };
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (i, (step, &place)) in tape.steps.iter().zip(places).enumerate() {
        if step.part > parts.len() {
            end_part(tape, parts.len(), &home, (&mut stages, &mut late), &mut parts);
            owed.fill(false);
        }
        if place.is_gpu() && step.ins.iter().any(|x| owed[x.0 as usize]) {
            stages.append(&mut late);
            owed.fill(false);
        }
        for x in &step.ins {
            let at = &mut home[x.0 as usize];
            if !at.contains(&place) {
                let copy = PlanStage::Copy(*x, at[0], place);
                // What the GPU sends is sent at once; what passes between the host's own memories waits its turn.
                if at[0].is_gpu() || place.is_gpu() {
                    stages.push(copy)
                } else {
                    late.push(copy)
                }
                at.push(place);
            }
        }
        for x in &step.outs {
            home[x.0 as usize].push(place);
            owed[x.0 as usize] = !place.is_gpu();
        }
        match place.is_gpu() {
            true => run(&mut stages, parts.last().map_or(0, |before| before.end), place, i),
            false => run(&mut late, 0, place, i),
        }
    }
    end_part(tape, parts.len(), &home, (&mut stages, &mut late), &mut parts);
    (stages, parts)
}

/// Ends the stages of a part, with what the host has still to do and the results, which are read from the CPU's memory.
fn end_part(
    tape: &Tape,
    part: usize,
    home: &[Vec<Place>],
    (stages, late): (&mut Vec<PlanStage>, &mut Vec<PlanStage>),
    parts: &mut Vec<Range<usize>>,
) {
    stages.append(late);
    for slot in tape.results(part) {
        let at = &home[slot.0 as usize];
        if !at.contains(&Place::Cpu) {
            stages.push(PlanStage::Copy(slot, at[0], Place::Cpu));
        }
    }
    parts.push(parts.last().map_or(0, |before| before.end)..stages.len());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ops::Add;
    use crate::quant;
    use crate::tape::{Role, StateId, StateKind, StateSpec};

    #[test]
    fn steps_that_share_a_state_through_others_are_one_group() {
        let spec = StateSpec { label: "state".into(), width: 1, ty: quant::TYPES[0], kind: StateKind::Fixed, trail: 0 };
        let mut tape = Tape { states: vec![spec; 3], ..Tape::default() };
        for states in [&[0u32][..], &[2], &[1], &[], &[0, 1]] {
            tape.steps.push(Step {
                label: format!("step {}", tape.steps.len()),
                layer: None,
                part: 0,
                role: Role::Attention,
                op: Arc::new(Add),
                share: ExpertShare::All,
                last: None,
                ins: Vec::new(),
                outs: Vec::new(),
                weights: Vec::new(),
                states: states.iter().map(|&s| StateId(s)).collect(),
            });
        }
        assert_eq!(shared_states(&tape), [Some(0), Some(1), Some(0), None, Some(0)]);
    }
}
