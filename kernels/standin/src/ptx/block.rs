//! A block's warps: which lanes run next, barriers, and what ends a launch.

use super::code::{Entry, Inst, Op, Special};
use super::lanes::{Class, Doubles, Reg, Regs};
use super::machine::{Fault, FaultKind};
use super::memory::{Global, Own, Place, Wrong, lanes};
use super::meter::Meter;
use super::shadow::Who;
use super::tensor;
use crate::driver::Shape;

/// Instructions after which a block counts as one that never ends.
const MOST_INSTRUCTIONS: u64 = 1 << 32;

/// Lanes of a warp that are at one place of the code.
#[derive(Clone, Copy, Debug)]
struct Group {
    pc: usize,
    lanes: u32,
}

/// A cp.async under way.
struct Copy {
    lane: usize,
    to: usize,
    from: u64,
    bytes: usize,
    group: u32,
}

#[derive(Default)]
struct Warp {
    regs: Regs,
    groups: Vec<Group>,
    /// The warp's threads that have not ended.
    alive: u32,
    copies: Vec<Copy>,
    /// Groups of cp.async that each lane has closed.
    groups_closed: [u32; 32],
    /// Barriers of the warp so far.
    interval: u32,
    /// The first read of what was never written.
    unwritten: Option<String>,
}

/// How far a warp got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    AtBarrier,
    Ended,
}

/// A group of lanes after a piece of code.
enum Next {
    /// Lanes go on at other places, or have ended.
    Moved,
    /// They wait for others.
    Waits,
}

/// The state of a block; kept from block to block for its memory.
#[derive(Default)]
pub(super) struct Block {
    warps: Vec<Warp>,
    own: Own,
    shape: Option<Shape>,
    at: [u32; 3],
    number: u32,
    /// Barriers of the block so far.
    interval: u32,
    issued: u64,
}

/// What a block needs of its launch.
struct Launch<'a> {
    entry: &'a Entry,
    params: &'a [u64],
    global: &'a mut Global,
    meter: &'a mut Meter,
}

/// The place of a thread of a number.
fn thread_at(number: u32, block: [u32; 3]) -> [u32; 3] {
    [number % block[0], number / block[0] % block[1], number / (block[0] * block[1])]
}

impl Block {
    /// Makes room for the blocks of a launch.
    pub(super) fn prepare(&mut self, entry: &Entry, shape: &Shape) {
        let threads = shape.block.iter().product::<u32>();
        self.shape = Some(*shape);
        self.warps.resize_with(threads.div_ceil(32) as usize, Warp::default);
        for warp in &mut self.warps {
            warp.regs.reset(entry.n_regs);
        }
    }

    /// Runs one block of a launch.
    pub(super) fn run(
        &mut self,
        entry: &Entry,
        params: &[u64],
        at: [u32; 3],
        number: u32,
        seed: u64,
        global: &mut Global,
        meter: &mut Meter,
    ) -> Result<(), Fault> {
        (self.at, self.number, self.interval, self.issued) = (at, number, 0, 0);
        self.begin(entry);
        let mut order: Vec<usize> = (0..self.warps.len()).collect();
        let mut launch = Launch { entry, params, global, meter };
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number as u64;
        loop {
            if seed != 0 {
                shuffle(&mut order, &mut random);
            }
            let mut waiting = false;
            for &warp in &order {
                if self.warps[warp].alive != 0 {
                    waiting |= self.run_warp(warp, &mut launch)? == Stop::AtBarrier;
                }
            }
            launch.meter.instructions += std::mem::take(&mut self.issued);
            if !waiting {
                return Ok(());
            }
            self.interval += 1;
            for warp in &mut self.warps {
                warp.groups.iter_mut().for_each(|g| g.pc += 1);
            }
        }
    }

    /// Threads at the first instruction, with what they are told of their place.
    fn begin(&mut self, entry: &Entry) {
        let shape = self.shape.expect("a launch was prepared");
        let threads = shape.block.iter().product::<u32>();
        let shared = entry.shared_bytes + shape.shared as usize;
        self.own.reset(shared, threads as usize, entry.local_bytes);
        for (w, warp) in self.warps.iter_mut().enumerate() {
            let first = w as u32 * 32;
            let n = (threads - first).min(32);
            warp.alive = if n == 32 { !0 } else { (1 << n) - 1 };
            warp.groups = vec![Group { pc: 0, lanes: warp.alive }];
            warp.copies.clear();
            warp.groups_closed = [0; 32];
            warp.interval = 0;
            warp.unwritten = None;
            warp.regs.written.iter_mut().for_each(|w| w.fill(0));
            for (reg, value) in &entry.constants {
                warp.regs.set_wide(*reg, &[*value; 32], !0);
            }
            for (reg, special) in &entry.specials {
                let value = |lane: u32| match *special {
                    Special::Tid(axis) => thread_at(first + lane, shape.block)[axis],
                    Special::Ntid(axis) => shape.block[axis],
                    Special::Ctaid(axis) => self.at[axis],
                    Special::Nctaid(axis) => shape.grid[axis],
                    Special::Lane => lane,
                    Special::Warp => w as u32,
                };
                let values: Doubles = std::array::from_fn(|lane| value(lane as u32) as u64);
                warp.regs.set_wide(*reg, &values, !0);
            }
        }
    }

    /// Runs a warp until all of its lanes wait for the block or have ended. Of the groups of lanes that can go on, that
    /// with the lowest place in the code does, so that those that took different ways meet after them.
    fn run_warp(&mut self, w: usize, launch: &mut Launch<'_>) -> Result<Stop, Fault> {
        loop {
            let warp = &mut self.warps[w];
            if warp.alive == 0 {
                return Ok(Stop::Ended);
            }
            warp.groups.retain(|g| g.lanes != 0);
            warp.groups.sort_unstable_by_key(|g| g.pc);
            warp.groups.dedup_by(|later, first| {
                let same = later.pc == first.pc;
                first.lanes |= if same { later.lanes } else { 0 };
                same
            });
            if let [Group { pc, .. }] = warp.groups[..]
                && matches!(launch.entry.code[pc].op, Op::Barrier)
            {
                return Ok(Stop::AtBarrier);
            }
            let mut moved = false;
            for g in 0..self.warps[w].groups.len() {
                if let Next::Moved = self.run_group(w, g, launch)? {
                    moved = true;
                    break;
                }
            }
            if !moved {
                let Group { pc, lanes } = self.warps[w].groups[0];
                let others = self.warps[w].groups.iter().skip(1).map(|g| {
                    let inst = &launch.entry.code[g.pc];
                    format!("; lanes {:08x} wait at line {} ({})", g.lanes, inst.line, inst.name)
                });
                let text =
                    format!("lanes {lanes:08x} wait here for lanes that never come{}", others.collect::<String>());
                let lane = lanes.trailing_zeros();
                return Err(self.fault(w, &launch.entry.code[pc], Wrong { lane, kind: FaultKind::Other, text }));
            }
        }
    }

    fn fault(&self, w: usize, inst: &Inst, wrong: Wrong) -> Fault {
        let [x, y, z] = self.at;
        let thread = thread_at(w as u32 * 32 + wrong.lane, self.shape.expect("a launch was prepared").block);
        let [tx, ty, tz] = thread;
        let mut text = format!(
            "line {} of the PTX ({}): block ({x},{y},{z}) thread ({tx},{ty},{tz}): {}",
            inst.line, inst.name, wrong.text
        );
        if let (true, Some(first)) = (wrong.text.ends_with("was never written"), &self.warps[w].unwritten) {
            text = format!("{text}; the first of that was {first}");
        }
        Fault { kind: wrong.kind, text }
    }

    /// Runs a group until it comes to the place of another, parts ways, goes back, or has to wait.
    fn run_group(&mut self, w: usize, g: usize, launch: &mut Launch<'_>) -> Result<Next, Fault> {
        let Group { mut pc, lanes: all } = self.warps[w].groups[g];
        let (start, limit) = (pc, self.warps[w].groups.get(g + 1).map_or(usize::MAX, |next| next.pc));
        let entry = launch.entry;
        while pc < limit {
            let inst = &entry.code[pc];
            let mut mask = all;
            if let Some((predicate, wanted)) = inst.guard {
                let reg = Reg { class: Class::Predicate, number: predicate };
                let unwritten = all & !self.warps[w].regs.written(reg);
                if unwritten != 0 {
                    return Err(self.unwritten(w, inst, unwritten));
                }
                let set = self.warps[w].regs.predicates[predicate as usize];
                mask &= if wanted { set } else { !set };
            }
            self.issued += 1;
            match &inst.op {
                Op::Branch(target) if mask == all && *target > pc && *target < limit => {
                    pc = *target;
                    continue;
                }
                Op::Branch(target) if mask != 0 => {
                    self.leave(w, g, pc + 1, all & !mask);
                    self.warps[w].groups.push(Group { pc: *target, lanes: mask });
                    if self.issued > MOST_INSTRUCTIONS {
                        let text = "the block does not end".into();
                        return Err(self.fault(w, inst, Wrong { lane: 0, kind: FaultKind::Other, text }));
                    }
                    return Ok(Next::Moved);
                }
                Op::Return if mask != 0 => {
                    self.end(w, inst, mask)?;
                    self.leave(w, g, pc + 1, all & !mask);
                    return Ok(Next::Moved);
                }
                _ if mask == 0 => {}
                op if op.meets() && (mask != all || !self.all_are_here(w, op, mask)) => {
                    self.issued -= 1;
                    // Those that do not take part go on.
                    if mask != all {
                        self.leave(w, g, pc + 1, all & !mask);
                        self.warps[w].groups.push(Group { pc, lanes: mask });
                        return Ok(Next::Moved);
                    }
                    self.leave(w, g, pc, all);
                    return Ok(if pc == start { Next::Waits } else { Next::Moved });
                }
                _ => self.execute(w, inst, mask, launch)?,
            }
            pc += 1;
        }
        self.leave(w, g, pc, all);
        Ok(Next::Moved)
    }

    /// Writes down where a group is.
    fn leave(&mut self, w: usize, g: usize, pc: usize, lanes: u32) {
        self.warps[w].groups[g] = Group { pc, lanes };
    }

    /// Whether the lanes that an instruction waits for are those of the mask.
    fn all_are_here(&self, w: usize, op: &Op, mask: u32) -> bool {
        let warp = &self.warps[w];
        match op {
            Op::Barrier => false, // see `run_warp`
            Op::Mma(_) | Op::LoadMatrix { .. } => mask == warp.alive,
            Op::WarpBarrier(members) | Op::Exchange(super::exchange::Exchange { members, .. }) => {
                let members = &warp.regs.words[*members as usize];
                lanes(mask).all(|lane| members[lane] & warp.alive & !mask == 0)
            }
            _ => true,
        }
    }

    fn unwritten(&self, w: usize, inst: &Inst, lanes: u32) -> Fault {
        let text = "depends on a value that was never written".into();
        self.fault(w, inst, Wrong { lane: lanes.trailing_zeros(), kind: FaultKind::Other, text })
    }

    /// Threads end.
    fn end(&mut self, w: usize, inst: &Inst, mask: u32) -> Result<(), Fault> {
        if let Some(copy) = self.warps[w].copies.iter().find(|c| mask >> c.lane & 1 != 0) {
            let text = "the thread ends, and a cp.async was never waited for".into();
            return Err(self.fault(w, inst, Wrong { lane: copy.lane as u32, kind: FaultKind::Other, text }));
        }
        self.warps[w].alive &= !mask;
        Ok(())
    }

    fn execute(&mut self, w: usize, inst: &Inst, mask: u32, launch: &mut Launch<'_>) -> Result<(), Fault> {
        let regs = &mut self.warps[w].regs;
        let unwritten = mask & !inst.reads.iter().fold(!0, |all, reg| all & regs.written(*reg));
        if let Op::Lanes(op) = &inst.op {
            // What is made of it counts as not written: only what depends on that is a fault.
            (op.operation.run)(regs, &op.args, mask);
            regs.undefine(Reg { class: op.operation.to, number: op.args.to }, unwritten);
            return Ok(());
        }
        if unwritten != 0 {
            return Err(self.unwritten(w, inst, unwritten));
        }
        let read = self.others(w, &inst.op, mask, launch).map_err(|wrong| self.fault(w, inst, wrong))?;
        if let (Some((lane, what)), None) = (read, &self.warps[w].unwritten) {
            let thread = w * 32 + lane;
            self.warps[w].unwritten = Some(format!("line {}, where thread {thread} reads {what}", inst.line));
        }
        Ok(())
    }

    /// What is not for each lane by itself. The lane that read what was never written, and what that was.
    fn others(
        &mut self,
        w: usize,
        op: &Op,
        mask: u32,
        launch: &mut Launch<'_>,
    ) -> Result<Option<(usize, String)>, Wrong> {
        let warp = &mut self.warps[w];
        let thread = w as u16 * 32;
        let who = Who { block: self.number, thread, interval: self.interval, warp_interval: warp.interval };
        let mut place = Place { global: launch.global, own: &mut self.own, meter: launch.meter, who, unwritten: None };
        match op {
            Op::LoadParam(access) => {
                for (i, reg) in access.values.iter().enumerate() {
                    let at = access.offset as usize + i * access.bytes;
                    let word = launch.params[at / 8] >> (at % 8 * 8);
                    let value = super::memory::extend(word, access.bytes, access.signed);
                    warp.regs.set_wide(*reg, &[value; 32], mask);
                }
            }
            Op::Load(access) => place.load(&mut warp.regs, access, mask)?,
            Op::Store(access) => place.store(&warp.regs, access, mask)?,
            Op::Atomic(atomic) => place.atomic(&mut warp.regs, atomic, mask)?,
            Op::CopyAsync { to, to_offset, from, from_offset, bytes } => {
                let bytes = *bytes;
                let to = place.addresses(&warp.regs, *to, *to_offset, bytes, mask)?;
                let from = place.addresses(&warp.regs, *from, *from_offset, bytes, mask)?;
                place.meter.access(super::memory::Space::Global, false, &from, bytes, mask);
                for lane in lanes(mask) {
                    let at = place.own.shared_at(lane, to[lane], bytes)?;
                    super::memory::unordered(lane, place.own.shadow.begin_copy(at, bytes, place.who(lane)))?;
                    // Bounds count from here on; the bytes are those of the time when it lands.
                    place.global.read(lane, from[lane], &mut [0; 16][..bytes], place.who(lane))?;
                    let group = warp.groups_closed[lane];
                    warp.copies.push(Copy { lane, to: at, from: from[lane], bytes, group });
                }
            }
            Op::CopyCommit => lanes(mask).for_each(|lane| warp.groups_closed[lane] += 1),
            Op::CopyWait(youngest) => {
                let landed = |c: &Copy| {
                    mask >> c.lane & 1 != 0 && c.group as u64 + (*youngest as u64) < warp.groups_closed[c.lane] as u64
                };
                let (now, later) = std::mem::take(&mut warp.copies).into_iter().partition(landed);
                let now: Vec<Copy> = now;
                warp.copies = later;
                for c in now {
                    let who = place.who(c.lane);
                    place.global.read(c.lane, c.from, &mut place.own.shared[c.to..c.to + c.bytes], who)?;
                    place.own.shadow.end_copy(c.to, c.bytes, who);
                }
            }
            Op::WarpBarrier(members) => {
                let members = warp.regs.words[*members as usize];
                not_a_member(&members, mask)?;
                if warp.alive & !mask == 0 {
                    warp.interval += 1;
                }
            }
            Op::Exchange(exchange) => {
                let members = warp.regs.words[exchange.members as usize];
                not_a_member(&members, mask)?;
                // Lanes with different masks exchange among themselves.
                let mut left = mask;
                while left != 0 {
                    let members = members[left.trailing_zeros() as usize];
                    exchange.run(&mut warp.regs, members & mask)?;
                    left &= !members;
                }
            }
            Op::LoadMatrix { to, n, transposed, at, offset } => {
                whole(mask)?;
                let addresses = place.addresses(&warp.regs, *at, *offset, 16, mask)?;
                let values = tensor::load_matrix(&mut place, &addresses, *n, *transposed)?;
                for (to, (words, undefined)) in to.iter().zip(&values).take(*n) {
                    warp.regs.set_words(*to, words, !0);
                    warp.regs.undefine(Reg { class: Class::Word, number: *to }, *undefined);
                }
            }
            Op::Mma(mma) => {
                whole(mask)?;
                place.meter.mma += 1;
                mma.run(&mut warp.regs);
            }
            Op::Lanes(_) | Op::Branch(_) | Op::Return | Op::Barrier | Op::Nothing => {}
        }
        Ok(place.unwritten)
    }
}

/// A lane that is not in the mask that it hands in.
fn not_a_member(members: &[u32; 32], mask: u32) -> Result<(), Wrong> {
    match lanes(mask).find(|&lane| members[lane] >> lane & 1 == 0) {
        None => Ok(()),
        Some(lane) => {
            let text = format!("the lane is not in its own mask {:08x}", members[lane]);
            Err(Wrong { lane: lane as u32, kind: FaultKind::Other, text })
        }
    }
}

fn whole(mask: u32) -> Result<(), Wrong> {
    if mask == !0 {
        return Ok(());
    }
    let text = format!("needs all lanes of the warp; those here are {mask:08x}");
    Err(Wrong { lane: (!mask).trailing_zeros(), kind: FaultKind::Other, text })
}

/// Puts a list into an order that the state decides (xorshift).
fn shuffle(list: &mut [usize], state: &mut u64) {
    *state |= 1 << 63;
    for i in (1..list.len()).rev() {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        list.swap(i, (*state >> 16) as usize % (i + 1));
    }
}

impl Op {
    /// Whether lanes wait for each other there.
    fn meets(&self) -> bool {
        matches!(self, Op::Barrier | Op::WarpBarrier(_) | Op::Exchange(_) | Op::LoadMatrix { .. } | Op::Mma(_))
    }
}
