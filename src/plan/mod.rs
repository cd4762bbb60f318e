//! Where each step of a tape runs, which values cross between places, and which buffer each value lives in: all from
//! the header, before a weight is read.

mod layout;
mod place;

pub use layout::Layout;
pub use place::{Place, Rules};

use std::ops::Range;

use crate::tape::{Slot, Step, Tape};

/// A stretch of a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Steps of the tape that run at one place.
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
    /// What is done, in order.
    pub stages: Vec<Stage>,
    /// Buffers of each place, in the order of [`Place::ALL`].
    pub layouts: Vec<Layout>,
}

impl Plan {
    /// Places every step by `rule`. Steps that share a state run where the first of them runs, since a state lives in
    /// one memory.
    pub fn new(tape: &Tape, rule: &dyn Fn(&Tape, &Step) -> Place) -> Plan {
        let mut state_places: Vec<Option<Place>> = vec![None; tape.states.len()];
        let mut places = Vec::with_capacity(tape.steps.len());
        for step in &tape.steps {
            let held = step.states.iter().find_map(|s| state_places[s.0 as usize]);
            let place = held.unwrap_or_else(|| rule(tape, step));
            for s in &step.states {
                debug_assert!(state_places[s.0 as usize].is_none_or(|p| p == place), "{}: states apart", step.label);
                state_places[s.0 as usize] = Some(place);
            }
            places.push(place);
        }
        let mut home: Vec<Vec<Place>> = vec![Vec::new(); tape.slots.len()]; // places that hold the value by now
        let mut stages: Vec<Stage> = Vec::new();
        for (i, (step, &place)) in tape.steps.iter().zip(&places).enumerate() {
            for x in &step.ins {
                let at = &mut home[x.0 as usize];
                if !at.contains(&place) {
                    stages.push(Stage::Copy(*x, at[0], place));
                    at.push(place);
                }
            }
            for x in &step.outs {
                home[x.0 as usize].push(place);
            }
            match stages.last_mut() {
                Some(Stage::Run(p, range)) if *p == place => range.end = i + 1,
                _ => stages.push(Stage::Run(place, i..i + 1)),
            }
        }
        // The logits are read from the CPU's memory.
        let logits = tape.logits.expect("a finished tape has logits");
        let at = &home[logits.0 as usize];
        if !at.contains(&Place::Cpu) {
            stages.push(Stage::Copy(logits, at[0], Place::Cpu));
        }
        let layouts = Place::ALL.iter().map(|&p| Layout::new(tape, &stages, p)).collect();
        let state_places = state_places.into_iter().map(|p| p.unwrap_or(Place::Cpu)).collect();
        Plan { places, state_places, stages, layouts }
    }

    /// Everything on the CPU.
    pub fn cpu(tape: &Tape) -> Plan {
        Plan::new(tape, &|_, _| Place::Cpu)
    }

    /// Bytes of working buffers at `place` for a batch of `rows`, all of them wanted.
    pub fn buffer_bytes(&self, place: Place, rows: usize) -> usize {
        self.layouts[place.index()].widths.iter().map(|w| w * rows * 4).sum()
    }
}
