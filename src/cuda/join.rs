//! Launches that become one: pairs of kernels of which the second reads what the first wrote, or what
//! the first read, and a kernel that does the work of both.
//!
//! Within `Gpu::joined` a launch waits for the next (`queue.rs`). If a rule of [`RULES`] knows one launch
//! for both, that one waits instead, and so on; otherwise the first is started. A joined launch stores all that
//! its parts store, bit for bit, so that nobody needs to know who reads it; and it is only made where
//! no part writes what another block of an earlier part may still have to read: buffers are used
//! again as soon as their values are dead.
//!
//! | rule | launches | as one |
//! |---|---|---|
//! | [`matrices`] | two products of one row with matrices of about as many rows | `matvec1`, two deep |
//! | [`words`] | up to three copies to or from the host | `bring`, three deep |
//! | [`coded_glu`] | `glu`, `quantize` | `glu` |
//! | [`normed_hyper`] | `hyper_pre`, `rms_norm`, `quantize` | `hyper_pre` |
//! | [`summed_hyper`] | `add` (up to two), `hyper_post` | `hyper_post` |
//! | [`Chain`] | `pack`, `add` (up to three), `rms_norm`, `rope`, `quantize`, in this order | `chain` |

use super::args::{Arg, Grid};
use super::{Ptr, int};

/// A launch as the driver gets it.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    /// The kernel's module and name.
    pub(super) kernel: (&'static str, String),
    /// Its blocks.
    pub(super) grid: Grid,
    /// Its arguments.
    pub(super) args: Vec<Arg>,
}

/// The work of one launch.
#[derive(Debug)]
pub(super) enum Pending {
    /// A launch as it came, or joined by a rule.
    One(Launch),
    /// The parts of a chain.
    Chain(Chain),
}

/// A rule: the launch that does the work of two, which follow each other.
type JoinRule = fn(&Launch, &Launch) -> Option<Launch>;

/// The rules for pairs; the first that applies counts. Chains come after them.
const RULES: [JoinRule; 4] = [matrices, words, coded_glu, normed_hyper];

impl Pending {
    /// The work of both, if one launch can do it.
    pub(super) fn join(&self, next: &Launch) -> Option<Pending> {
        match self {
            Pending::One(first) => {
                let pair = RULES.iter().find_map(|rule| rule(first, next));
                let pair = pair.or_else(|| summed_hyper(&[ChainPart::of(first)?], next)).map(Pending::One);
                pair.or_else(|| Chain::begin(first)?.and(next).map(Pending::Chain))
            }
            Pending::Chain(chain) => {
                let post = summed_hyper(&chain.parts, next).map(Pending::One);
                post.or_else(|| chain.clone().and(next).map(Pending::Chain))
            }
        }
    }

    /// The one launch.
    pub(super) fn launch(self) -> Launch {
        match self {
            Pending::One(launch) => launch,
            Pending::Chain(chain) => chain.launch(),
        }
    }
}

const NONE: Ptr = Ptr(0);

impl Launch {
    fn is(&self, name: &str) -> bool {
        self.kernel.1 == name
    }

    fn pointer(&self, i: usize) -> Ptr {
        let Arg::Ptr(at) = self.args[i] else { unreachable!("argument {i} of {} is a pointer", self.kernel.1) };
        at
    }

    fn number(&self, i: usize) -> i32 {
        let Arg::Int(n) = self.args[i] else { unreachable!("argument {i} of {} is an int", self.kernel.1) };
        n
    }
}

/// Whether runs of f32 share no memory.
fn apart((a, n): (Ptr, usize), (b, m): (Ptr, usize)) -> bool {
    a.0 + 4 * n as u64 <= b.0 || b.0 + 4 * m as u64 <= a.0
}

/// Products of the same activations, whose second matrices are free: of as many blocks that a third at
/// most has nothing to do. Between the two there is nothing but where the matrices and results are.
fn matrices(first: &Launch, second: &Launch) -> Option<Launch> {
    first.kernel.1.strip_prefix("matvec1_")?;
    // w, w2, x, (scales,) ids, slots, out, out2, n_in, n_out, n_out2, pairs, share, heads, (lanes,) row_bytes: what is in
    // brackets is for codes
    let out = if first.args.len() == 16 { 6 } else { 5 };
    let same = |i: usize| match (first.args[i], second.args[i]) {
        (Arg::Ptr(a), Arg::Ptr(b)) => a == b,
        (Arg::Int(a), Arg::Int(b)) => a == b,
        (Arg::Long(a), Arg::Long(b)) => a == b,
        _ => false,
    };
    let (w2, out2, n_out, n_out2, heads) = (1, out + 1, out + 3, out + 4, out + 7);
    let own = |i: usize| [0, w2, out, out2, n_out, n_out2].contains(&i);
    let free = |l: &Launch| l.pointer(w2) == NONE && l.number(heads) == 1;
    if first.kernel != second.kernel || first.grid.threads != second.grid.threads || !free(first) || !free(second) {
        return None;
    }
    let (a, b) = (first.grid.blocks, second.grid.blocks);
    let (most, all) = (a[0].max(b[0]), a[0] + b[0]);
    if a[1] != b[1] || 4 * most > 3 * all || !(0..first.args.len()).all(|i| own(i) || same(i)) {
        return None;
    }
    let mut both = first.clone();
    both.grid.blocks = [most, a[1], 2];
    (both.args[w2], both.args[out2], both.args[n_out2]) = (second.args[0], second.args[out], second.args[n_out]);
    Some(both)
}

/// Copies by a kernel, whose second or third run is free.
fn words(first: &Launch, second: &Launch) -> Option<Launch> {
    if !first.is("bring") || !second.is("bring") || second.grid.blocks[1] != 1 || first.grid.blocks[1] == 3 {
        return None;
    }
    let runs = first.grid.blocks[1];
    let (from, to) = (second.pointer(0), second.pointer(1));
    // What the first brings is not what the second takes on, and neither writes over the other's.
    if (0..runs).any(|i| [from, to].contains(&first.pointer(3 * i + 1)) || first.pointer(3 * i) == to) {
        return None;
    }
    let mut both = first.clone();
    both.args[3 * runs..3 * runs + 3].copy_from_slice(&second.args[..3]);
    both.grid.blocks = [first.grid.blocks[0].max(second.grid.blocks[0]), runs + 1, 1];
    Some(both)
}

/// A gate whose result is needed in 8 bits.
fn coded_glu(first: &Launch, second: &Launch) -> Option<Launch> {
    const OUT: usize = 2; // after g and u; the total comes last
    const CODES: usize = 3;
    const SCALES: usize = 4;
    let Some(ChainPart::Codes { x, codes, scales, total }) = ChainPart::of(second) else { return None };
    let Some(Arg::Long(values)) = first.args.last() else { return None };
    let joins = first.is("glu") && first.pointer(OUT) == x && first.pointer(CODES) == NONE && *values == total as u64;
    joins.then(|| {
        let mut both = first.clone();
        (both.args[CODES], both.args[SCALES]) = (Arg::Ptr(codes), Arg::Ptr(scales));
        both
    })
}

/// What a block reads from its streams, normed, and in 8 bits.
fn normed_hyper(first: &Launch, second: &Launch) -> Option<Launch> {
    if !first.is("hyper_pre") {
        return None;
    }
    // streams, mixes, scale, base, out, back, weight, normed, codes, scales, given, next, n, width, ..
    let (rows, n, width) = (first.grid.blocks[0], first.number(12) as usize, first.number(13) as usize);
    let mut both = first.clone();
    match ChainPart::of(second)? {
        ChainPart::Norm { x, weight, out, n: run, total, by, .. } => {
            let fits = x == first.pointer(4) && first.pointer(7) == NONE && run == width && total == rows * width;
            // One block may be done before another has read its streams, and their weights.
            let read = [(first.pointer(0), rows * n * width), (first.pointer(10), rows * n)];
            if !fits || second.grid.threads != first.grid.threads || !read.iter().all(|read| apart(*read, (out, total)))
            {
                return None;
            }
            (both.args[6], both.args[7]) = (Arg::Ptr(weight), Arg::Ptr(out));
            let last = both.args.len() - 3;
            both.args[last..].copy_from_slice(&by.map(Arg::Float));
        }
        ChainPart::Codes { x, codes, scales, total } => {
            let fits = x == first.pointer(7) && first.pointer(8) == NONE && total == rows * width;
            if !fits || !width.is_multiple_of(32) {
                return None;
            }
            (both.args[8], both.args[9]) = (Arg::Ptr(codes), Arg::Ptr(scales));
        }
        _ => return None,
    }
    Some(both)
}

/// Sums of which the last is what goes back to the streams: all threads of a column read their terms,
/// and one stores them.
fn summed_hyper(parts: &[ChainPart], post: &Launch) -> Option<Launch> {
    if !post.is("hyper_post") || parts.len() > 2 || parts.last()?.out() != post.pointer(0) || post.pointer(1) != NONE {
        return None;
    }
    // x, y, sum, y2, sum2, streams, back, out, n, .., total
    let Some(Arg::Long(streams)) = post.args.last() else { return None };
    let (streams, total) = (*streams as usize, parts[0].total());
    let terms = sums(parts)?;
    let stored: Vec<(Ptr, usize)> =
        parts.iter().map(|p| (p.out(), total)).chain([(post.pointer(7), streams)]).collect();
    let read = std::iter::once(terms.0).chain(terms.1.iter().map(|(other, _)| *other));
    if streams != total * post.number(8) as usize
        || !read.into_iter().all(|at| stored.iter().all(|s| apart((at, total), *s)))
    {
        return None;
    }
    let mut all = post.clone();
    all.args[0] = Arg::Ptr(terms.0);
    for (i, (other, out)) in terms.1.into_iter().enumerate() {
        (all.args[1 + 2 * i], all.args[2 + 2 * i]) = (Arg::Ptr(other), Arg::Ptr(out));
    }
    Some(all)
}

/// The first term of sums that follow each other, and of each its other term and where it is stored; None where a part is
/// none.
fn sums(parts: &[ChainPart]) -> Option<(Ptr, Vec<(Ptr, Ptr)>)> {
    let (mut first, mut rest) = (NONE, Vec::new());
    for part in parts {
        let ChainPart::Add { x, y, out, .. } = *part else { return None };
        // The sum is the same either way round.
        let last: Option<Ptr> = rest.last().map(|(_, out)| *out);
        let (value, other) = if last == Some(y) && last != Some(x) { (y, x) } else { (x, y) };
        if last.is_none() {
            first = value;
        }
        rest.push((other, out));
    }
    Some((first, rest))
}

/// What a launch does as a part of a chain: it reads `x`, and writes as many values, `total`, at `out`.
#[derive(Clone, Copy, Debug)]
enum ChainPart {
    /// Columns of wider rows.
    Pack { x: Ptr, out: Ptr, x_width: i32, heads: usize, head: usize, stride: i32, from: i32, total: usize },
    /// A sum.
    Add { x: Ptr, y: Ptr, out: Ptr, total: usize },
    /// A norm of runs of `n` values; `by`: eps, least, scale.
    Norm { x: Ptr, weight: Ptr, out: Ptr, n: usize, groups: i32, by: [f32; 3], total: usize },
    /// A rotation of heads of `n` values.
    Rope { x: Ptr, angles: Ptr, out: Ptr, width: usize, n: usize, rest: [i32; 4], total: usize },
    /// 8 bits.
    Codes { x: Ptr, codes: Ptr, scales: Ptr, total: usize },
}

impl ChainPart {
    /// The part that a launch of one of these kernels is.
    fn of(l: &Launch) -> Option<ChainPart> {
        use Arg::{Float, Int, Long, Ptr};
        Some(match (&*l.kernel.1, &l.args[..]) {
            (
                "pack",
                &[
                    Ptr(x),
                    Ptr(out),
                    Int(x_width),
                    Int(heads),
                    Int(head),
                    Int(0),
                    Int(stride),
                    Int(from),
                    Int(len),
                    Long(n),
                ],
            ) if len == head => {
                let (heads, head, total) = (heads as usize, head as usize, n as usize);
                ChainPart::Pack { x, out, x_width, heads, head, stride, from, total }
            }
            ("add", &[Ptr(x), Ptr(y), Ptr(out), Long(n)]) => ChainPart::Add { x, y, out, total: n as usize },
            (
                "rms_norm",
                &[Ptr(x), Ptr(weight), Ptr(out), Int(n), Int(groups), Float(eps), Float(least), Float(scale)],
            ) => {
                let (n, by) = (n as usize, [eps, least, scale]);
                ChainPart::Norm { x, weight, out, n, groups, by, total: n * l.grid.blocks[0] }
            }
            (
                "rope",
                &[
                    Ptr(x),
                    Ptr(angles),
                    Ptr(out),
                    Int(width),
                    Int(n),
                    Int(n_rot),
                    Int(offset),
                    Int(pairs),
                    Int(inverse),
                    Long(all),
                ],
            ) => {
                let (width, n, total) = (width as usize, n as usize, all as usize);
                ChainPart::Rope { x, angles, out, width, n, rest: [n_rot, offset, pairs, inverse], total }
            }
            ("quantize", &[Ptr(x), Ptr(codes), Ptr(scales), Long(groups)]) => {
                ChainPart::Codes { x, codes, scales, total: 32 * groups as usize }
            }
            _ => return None,
        })
    }

    /// Its place in a chain.
    fn rank(&self) -> usize {
        match self {
            ChainPart::Pack { .. } => 0,
            ChainPart::Add { .. } => 1,
            ChainPart::Norm { .. } => 2,
            ChainPart::Rope { .. } => 3,
            ChainPart::Codes { .. } => 4,
        }
    }

    /// What it writes; nothing comes after codes.
    fn out(&self) -> Ptr {
        match *self {
            ChainPart::Pack { out, .. }
            | ChainPart::Add { out, .. }
            | ChainPart::Norm { out, .. }
            | ChainPart::Rope { out, .. } => out,
            ChainPart::Codes { .. } => NONE,
        }
    }

    fn total(&self) -> usize {
        match *self {
            ChainPart::Pack { total, .. }
            | ChainPart::Add { total, .. }
            | ChainPart::Norm { total, .. }
            | ChainPart::Rope { total, .. }
            | ChainPart::Codes { total, .. } => total,
        }
    }

    fn reads(&self, value: Ptr) -> bool {
        match *self {
            ChainPart::Add { x, y, .. } => value == x || value == y,
            ChainPart::Pack { x, .. }
            | ChainPart::Norm { x, .. }
            | ChainPart::Rope { x, .. }
            | ChainPart::Codes { x, .. } => value == x,
        }
    }
}

/// Launches of which each reads what the one before wrote, value by value or run by run, so that a
/// block can do them all for its run.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    parts: Vec<ChainPart>,
    run: usize,
}

impl Chain {
    fn begin(first: &Launch) -> Option<Chain> {
        let part = ChainPart::of(first)?;
        (part.rank() < 4).then(|| Chain { parts: vec![part], run: 0 })
    }

    /// The chain with one more part, if that is possible.
    fn and(mut self, next: &Launch) -> Option<Chain> {
        let (part, last) = (ChainPart::of(next)?, self.parts.last()?);
        let sums = self.parts.iter().filter(|p| p.rank() == 1).count();
        let in_order = part.rank() > last.rank() || (part.rank() == 1 && last.rank() == 1 && sums < 3);
        if !in_order || !part.reads(last.out()) || part.total() != last.total() {
            return None;
        }
        self.parts.push(part);
        self.run = self.find_run()?;
        self.is_safe().then_some(self)
    }

    /// Values of a run: those of a norm or of a head, which must agree with each other and with the rest.
    fn find_run(&self) -> Option<usize> {
        let total = self.parts[0].total();
        let given = self.parts.iter().find_map(|p| match *p {
            ChainPart::Norm { n, .. } | ChainPart::Rope { n, .. } => Some(n),
            _ => None,
        });
        let fits = |run: usize| {
            run > 0
                && total.is_multiple_of(run)
                && self.parts.iter().all(|p| match *p {
                    ChainPart::Pack { head, .. } => head.is_multiple_of(run),
                    ChainPart::Norm { n, .. } | ChainPart::Rope { n, .. } => n == run,
                    ChainPart::Codes { .. } => run.is_multiple_of(32),
                    ChainPart::Add { .. } => true,
                })
                && self.width().is_none_or(|width| width.is_multiple_of(run))
        };
        match given {
            Some(run) => fits(run).then_some(run),
            None => [1024, 512, 256, 128, 64, 32].into_iter().find(|run| fits(*run)),
        }
    }

    /// Columns of a row, where a part depends on them; of a rotation those that it says.
    fn width(&self) -> Option<usize> {
        let of = |p: &ChainPart| match *p {
            ChainPart::Rope { width, .. } => Some(width),
            ChainPart::Pack { heads, head, .. } => Some(heads * head),
            _ => None,
        };
        self.parts.iter().rev().find_map(of)
    }

    /// Only `pack` reads elsewhere than its block writes: nothing may be written there before all have read it. All else
    /// is read and written at one place in its array, by one thread, or by one block on both sides of a barrier.
    fn is_safe(&self) -> bool {
        let ChainPart::Pack { x, x_width, heads, head, total, .. } = self.parts[0] else { return true };
        let width = heads * head;
        let rotated = self.parts.iter().any(|p| matches!(p, ChainPart::Rope { width: w, .. } if *w != width));
        let read = (x, total / width * x_width as usize);
        !rotated && self.parts.iter().filter(|p| p.rank() < 4).all(|p| apart(read, (p.out(), total)))
    }

    /// The one launch.
    fn launch(self) -> Launch {
        let (mut pack, mut norm) = ((NONE, [0; 4]), (NONE, NONE, 1, [0f32; 3]));
        let (mut rope, mut coded) = ((NONE, NONE, [0; 4]), (NONE, NONE));
        let adds: Vec<ChainPart> = self.parts.iter().copied().filter(|p| p.rank() == 1).collect();
        let (term, mut sums) = sums(&adds).expect("all are sums");
        let mut first = None; // what the first part reads
        for part in &self.parts {
            let from = match *part {
                ChainPart::Pack { x, out, x_width, head, stride, from, .. } => {
                    pack = (out, [x_width, int(head), stride, from]);
                    x
                }
                ChainPart::Add { .. } => term,
                ChainPart::Norm { x, weight, out, groups, by, .. } => {
                    norm = (weight, out, groups, by);
                    x
                }
                ChainPart::Rope { x, angles, out, rest, .. } => {
                    rope = (angles, out, rest);
                    x
                }
                ChainPart::Codes { x, codes, scales, .. } => {
                    coded = (codes, scales);
                    x
                }
            };
            first.get_or_insert(from);
        }
        // After a `pack` the first sum's terms are in its own order.
        if let (true, Some(ChainPart::Add { x, y, .. }), Some((other, _))) =
            (pack.0 != NONE, adds.first(), sums.first_mut())
        {
            *other = if *x == pack.0 { *y } else { *x };
        }
        sums.resize(3, (NONE, NONE));
        let pointer = |at: Ptr| Arg::Ptr(at);
        let mut args = vec![pointer(first.unwrap_or_default()), pointer(pack.0)];
        args.extend(pack.1.map(Arg::Int));
        args.extend(sums.into_iter().flat_map(|(other, out)| [pointer(other), pointer(out)]));
        args.extend([pointer(norm.0), pointer(norm.1), Arg::Int(norm.2)]);
        args.extend(norm.3.map(Arg::Float));
        args.extend([pointer(rope.0), pointer(rope.1)]);
        args.extend(rope.2.map(Arg::Int));
        args.extend([pointer(coded.0), pointer(coded.1)]);
        args.extend([self.run, self.width().unwrap_or(self.run)].map(|n| Arg::Int(int(n))));
        let grid = Grid::new([self.parts[0].total() / self.run, 1, 1], self.run.next_multiple_of(32).min(1024));
        Launch { kernel: ("basic", "chain".into()), grid, args }
    }
}
