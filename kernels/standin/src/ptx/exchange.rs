//! Instructions by which the lanes of a mask tell each other values: shfl, vote, match.

use super::lanes::{Class, Reg, Regs, Words};
use super::machine::FaultKind;
use super::memory::{Result, Wrong, lanes};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExchangeOp {
    Up,
    Down,
    Bfly,
    Idx,
    Ballot,
    Any,
    All,
    Uni,
    MatchAny,
    MatchAll,
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) op: ExchangeOp,
    pub(super) to: Reg,
    /// shfl: whether the lane that was read is in range; match.all: whether all are equal.
    pub(super) holds: Option<u16>,
    /// The value, or a predicate; whether that is inverted.
    pub(super) of: Reg,
    pub(super) inverted: bool,
    /// shfl: a lane or a distance, and a limit with the mask of segments.
    pub(super) by: u16,
    pub(super) clamp: u16,
    /// The lanes that take part.
    pub(super) members: u16,
}

/// The lane that a lane reads, and whether that is in range, by the pseudocode of the PTX manual.
pub(super) fn source(op: ExchangeOp, lane: u32, by: u32, clamp: u32) -> (u32, bool) {
    let (by, limit, segments) = (by & 31, clamp & 31, clamp >> 8 & 31);
    let (most, least) = (lane & segments | limit & !segments, lane & segments);
    let (from, holds) = match op {
        ExchangeOp::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= most as i32),
        ExchangeOp::Down => (lane + by, lane + by <= most),
        ExchangeOp::Bfly => (lane ^ by, lane ^ by <= most),
        _ => (least | by & !segments, (least | by & !segments) <= most),
    };
    if holds { (from, true) } else { (lane, false) }
}

impl Exchange {
    /// Runs for the lanes of a mask, which are all that take part.
    pub(super) fn run(&self, regs: &mut Regs, mask: u32) -> Result<()> {
        if self.of.class == Class::Predicate {
            self.vote(regs, mask);
            return Ok(());
        }
        let values = regs.words[self.of.number as usize];
        let written = regs.written(self.of);
        let mut out: Words = [0; 32];
        let (mut holds, mut undefined) = (0, 0);
        match self.op {
            ExchangeOp::MatchAny => {
                let equal = |a: usize| lanes(mask).filter(|&b| values[a] == values[b]).fold(0, |m, b| m | 1 << b);
                lanes(mask).for_each(|lane| out[lane] = equal(lane));
            }
            ExchangeOp::MatchAll => {
                let first = lanes(mask).next().map(|lane| values[lane]);
                if lanes(mask).all(|lane| Some(values[lane]) == first) {
                    (out, holds) = ([mask; 32], mask);
                }
            }
            _ => {
                let (by, clamp) = (regs.words[self.by as usize], regs.words[self.clamp as usize]);
                for lane in lanes(mask) {
                    let (from, in_range) = source(self.op, lane as u32, by[lane], clamp[lane]);
                    if mask >> from & 1 == 0 {
                        let text = format!("reads lane {from}, which is not in the mask {mask:08x} or has ended");
                        return Err(Wrong { lane: lane as u32, kind: FaultKind::Other, text });
                    }
                    out[lane] = values[from as usize];
                    undefined |= (!written >> from & 1) << lane;
                    holds |= (in_range as u32) << lane;
                }
            }
        }
        regs.set_words(self.to.number, &out, mask);
        regs.undefine(self.to, undefined);
        if let Some(to) = self.holds {
            regs.set_predicate(to, holds, mask);
        }
        Ok(())
    }

    fn vote(&self, regs: &mut Regs, mask: u32) {
        let set = regs.predicates[self.of.number as usize];
        let set = if self.inverted { !set & mask } else { set & mask };
        let result = match self.op {
            ExchangeOp::Ballot => return regs.set_words(self.to.number, &[set; 32], mask),
            ExchangeOp::Any => set != 0,
            ExchangeOp::All => set == mask,
            _ => set == 0 || set == mask,
        };
        regs.set_predicate(self.to.number, if result { !0 } else { 0 }, mask);
    }
}
