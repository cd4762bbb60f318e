//! What a sequence remembers between walks: rows by position (keys, values, compressed entries, convolution inputs) or
//! one fixed block of floats (recurrent states).
//!
//! Rows are stored by position in a ring. A cache without a window has room for the whole context, so the ring never
//! wraps; one with a window keeps the window, a batch, and some slack that lets a sequence be rewound a little without
//! reading anything again; where only what came before the batch is looked at, the window is all. What cannot be rewound is
//! restored from a checkpoint by the session.
//!
//! Where drafted tokens are verified ([`StateSpec::trail`]) every state can go back to each token of the last walk that
//! verified some: a ring of rows from before the batch has as many rows more, and a fixed block is copied after each token
//! but the last, so that going back is a choice of another block.

use std::io;
use std::ops::{Deref, DerefMut, Range};

use memmap2::MmapMut;

use super::{Batch, Row};
use crate::cpu::{self, Pool};
use crate::quant::{self, QuantType};

/// Rows that a windowed ring keeps beyond what attention needs, so that short rewinds cost nothing.
const SLACK: usize = 256;

/// The shape of a state.
#[derive(Clone, Debug, PartialEq)]
pub enum StateKind {
    /// One row for every `every` tokens.
    Rows {
        /// Tokens that share a row.
        every: usize,
        /// Rows that are ever looked at again, counted back from the newest; None is all.
        window: Option<usize>,
        /// Whether only rows from before the current batch are looked at: then there is room for the window alone, and
        /// neither for a batch nor for going back.
        before_batch: bool,
    },
    /// One f32 block, rewritten by every token.
    Fixed,
}

/// A state of the tape: what it is called, how wide, how kept.
#[derive(Clone, Debug)]
pub struct StateSpec {
    /// For reports: `blk.0.k`.
    pub label: String,
    /// Values in a row, or in the fixed block.
    pub width: usize,
    /// The format that rows are stored in.
    pub ty: &'static QuantType,
    /// Rows or a block.
    pub kind: StateKind,
    /// How many tokens a sequence can go back at least after a walk that verified drafts ([`Batch::verifies`]); 0 where
    /// nothing is drafted.
    pub trail: usize,
}

impl StateSpec {
    /// Rows to keep for one sequence of at most `n_ctx` tokens fed `n_batch` at a time; of a fixed block itself and its
    /// copies.
    pub fn capacity(&self, n_ctx: usize, n_batch: usize) -> usize {
        match self.kind {
            StateKind::Fixed => 1 + self.trail,
            StateKind::Rows { every, window, before_batch } => {
                let all = n_ctx.div_ceil(every).max(1);
                if let (Some(w), true) = (window, before_batch) {
                    return all.min(w.saturating_add(self.trail));
                }
                let ring = |w: usize| w.saturating_add(n_batch.div_ceil(every)).saturating_add(SLACK);
                window.map_or(all, |w| all.min(ring(w)))
            }
        }
    }

    /// Whether later tokens destroy what earlier ones left (a window or a recurrence), so that going back may need help.
    pub fn is_overwritten(&self) -> bool {
        !matches!(self.kind, StateKind::Rows { window: None, .. })
    }

    /// Bytes of this state for one sequence; the largest number there is, where it would be more.
    pub fn bytes(&self, n_ctx: usize, n_batch: usize) -> usize {
        self.capacity(n_ctx, n_batch).saturating_mul(self.ty.row_bytes(self.width))
    }
}

/// A state of one model, with a part for every sequence.
#[derive(Debug)]
pub struct State {
    spec: StateSpec,
    row_bytes: usize,
    capacity: usize,
    seqs: Vec<SeqRows>,
}

/// What one sequence has in a state.
#[derive(Debug, Default)]
pub struct SeqRows {
    /// The stored rows, each at its place in the ring, or the block of a fixed state.
    pub bytes: ZeroedBytes,
    /// The first row that is still there: those before it were overwritten, or were not part of what was loaded.
    low: usize,
    /// Tokens that a fixed block has absorbed.
    high: usize,
    /// Blocks for copies of a fixed block; none where it is on a GPU.
    copies: Vec<ZeroedBytes>,
    /// How many tokens the copies had absorbed, the first one's number first.
    trail: Range<usize>,
}

/// Zeroed memory, which the system commits as it fills.
#[derive(Debug, Default)]
pub struct ZeroedBytes(Option<MmapMut>);

/// From here on memory is asked for in pages of 2 MB: attention reads short pieces far apart, and each small page would
/// have its address looked up again. Smaller states would mostly fill such pages with nothing.
const HUGE: usize = 4 << 20;

impl ZeroedBytes {
    fn new(n: usize) -> io::Result<ZeroedBytes> {
        let map = MmapMut::map_anon(n.max(1))?;
        #[cfg(target_os = "linux")]
        if n >= HUGE {
            let _ = map.advise(memmap2::Advice::HugePage); // a system without them does well enough
        }
        Ok(ZeroedBytes(Some(map)))
    }
}

impl Deref for ZeroedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for ZeroedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Default for State {
    fn default() -> State {
        State {
            spec: StateSpec { label: String::new(), width: 0, ty: quant::TYPES[0], kind: StateKind::Fixed, trail: 0 },
            row_bytes: 0,
            capacity: 0,
            seqs: Vec::new(),
        }
    }
}

impl State {
    /// An empty state for `n_seq` sequences. Memory is zeroed, so the system commits it only as it fills.
    pub fn new(spec: &StateSpec, n_seq: usize, n_ctx: usize, n_batch: usize) -> State {
        let mut state = State::elsewhere(spec, n_seq, n_ctx, n_batch);
        let part = |_| state.part().expect("memory that the system said it has");
        state.seqs = (0..n_seq).map(part).collect();
        state
    }

    /// A state whose contents are on a GPU; what is known of them is kept here.
    pub fn elsewhere(spec: &StateSpec, n_seq: usize, n_ctx: usize, n_batch: usize) -> State {
        let capacity = spec.capacity(n_ctx, n_batch);
        let seqs = (0..n_seq).map(|_| SeqRows::default()).collect();
        State { spec: spec.clone(), row_bytes: spec.ty.row_bytes(spec.width), capacity, seqs }
    }

    /// An empty part for one more sequence.
    ///
    /// # Errors
    /// If the system does not give the memory.
    pub fn part(&self) -> io::Result<SeqRows> {
        let copies = if self.spec.kind == StateKind::Fixed { self.spec.trail } else { 0 };
        let rows = self.capacity - copies;
        let copies = (0..copies).map(|_| ZeroedBytes::new(self.row_bytes)).collect::<io::Result<_>>()?;
        Ok(SeqRows { bytes: ZeroedBytes::new(rows * self.row_bytes)?, copies, ..SeqRows::default() })
    }

    /// The part of a sequence; its memory is empty where the state is on a GPU.
    pub fn of(&self, seq: u32) -> &SeqRows {
        &self.seqs[seq as usize]
    }

    /// The same, to be changed; [`State::replaced`] is then told.
    pub fn of_mut(&mut self, seq: u32) -> &mut SeqRows {
        &mut self.seqs[seq as usize]
    }

    /// Takes note that a GPU has stored what the rows of a batch give.
    pub fn wrote(&mut self, batch: &Batch) {
        let mut last = None;
        for row in &batch.rows {
            let (part, n) = (&mut self.seqs[row.seq as usize], row.pos as usize + 1);
            match self.spec.kind {
                StateKind::Fixed => {
                    let follows = batch.verifies && last == Some(row.seq);
                    let first = if follows { part.trail.start } else { n };
                    (part.high, part.trail, last) = (n, first..n, Some(row.seq));
                }
                StateKind::Rows { every, .. } => part.low = part.low.max((n / every).saturating_sub(self.capacity)),
            }
        }
    }

    /// Takes note that of a part of a prompt the rows before `first` were left out.
    pub fn left_out(&mut self, batch: &Batch, first: usize) {
        if let (StateKind::Rows { every, .. }, Some(row), 1..) = (self.spec.kind.clone(), batch.rows.first(), first) {
            let part = &mut self.seqs[row.seq as usize];
            part.low = part.low.max((row.pos as usize + first) / every);
        }
    }

    /// Records that the ranges of [`State::saved_ranges`] were written into a sequence's rows.
    pub fn replaced(&mut self, seq: u32, tokens: usize, whole: bool) {
        let low = self.saved(tokens, whole).0;
        let part = &mut self.seqs[seq as usize];
        (part.high, part.trail) = (tokens, 0..0);
        if self.spec.is_overwritten() {
            part.low = low; // older rows may have been there, but later ones may have overwritten them by now
        }
    }

    /// The byte ranges of a sequence's rows that are lost once it grows beyond `tokens` (`whole`: everything that it
    /// remembers), in order: `(first byte, bytes)`. The list does not depend on the capacity of the ring.
    pub fn saved_ranges(&self, tokens: usize, whole: bool) -> Vec<(usize, usize)> {
        if self.spec.kind == StateKind::Fixed {
            return vec![(0, self.row_bytes)];
        }
        let (from, to) = self.saved(tokens, whole);
        let (at, n) = (from % self.capacity, to - from);
        let first = n.min(self.capacity - at);
        let parts = [(at * self.row_bytes, first * self.row_bytes), (0, (n - first) * self.row_bytes)];
        parts.into_iter().filter(|p| p.1 > 0).collect()
    }

    /// The format of the rows.
    pub fn ty(&self) -> &'static QuantType {
        self.spec.ty
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.spec.width
    }

    /// Bytes from one row to the next.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Stores row `index` (position / every) of a sequence.
    pub fn write(&mut self, seq: u32, index: usize, values: &[f32]) {
        debug_assert_eq!(values.len(), self.spec.width);
        let part = &mut self.seqs[seq as usize];
        let at = index % self.capacity * self.row_bytes;
        cpu::encode(self.spec.ty, values, &mut part.bytes[at..at + self.row_bytes]);
        part.low = part.low.max((index + 1).saturating_sub(self.capacity));
    }

    /// Stores a row of `values` for each of a batch's rows, by its position; of a long prompt the threads of `pool` do.
    pub fn write_rows(&mut self, mut rows: &[Row], mut values: &[f32], pool: &Pool) {
        const EACH: usize = 16;
        let (ty, width, bytes) = (self.spec.ty, self.spec.width, self.row_bytes);
        while let Some(first) = rows.first() {
            // Rows that lie one after the other in the ring.
            let start = first.pos as usize % self.capacity;
            let follows = |(i, row): &(usize, &Row)| row.seq == first.seq && row.pos as usize == first.pos as usize + i;
            let n = rows.iter().enumerate().take(self.capacity - start).take_while(follows).count();
            let part = &mut self.seqs[first.seq as usize];
            let to = part.bytes[start * bytes..(start + n) * bytes].chunks_mut(EACH * bytes);
            pool.each_of(to.zip(values.chunks(EACH * width)), 4 * n * width, |(to, values)| {
                to.chunks_exact_mut(bytes).zip(values.chunks_exact(width)).for_each(|(to, x)| cpu::encode(ty, x, to));
            });
            part.low = part.low.max((first.pos as usize + n).saturating_sub(self.capacity));
            (rows, values) = (&rows[n..], &values[n * width..]);
        }
    }

    /// The rows `from..to` of a sequence as one or two runs of adjacent rows: `(first index, bytes)`.
    pub fn runs(&self, seq: u32, from: usize, to: usize) -> impl Iterator<Item = (usize, &[u8])> {
        debug_assert!(to - from <= self.capacity);
        let bytes = &self.seqs[seq as usize].bytes;
        let (a, n) = (from % self.capacity, to - from);
        let first = n.min(self.capacity - a);
        let run = move |at: usize, n: usize| &bytes[at * self.row_bytes..(at + n) * self.row_bytes];
        [(from, run(a, first)), (from + first, run(0, n - first))].into_iter().filter(|(_, b)| !b.is_empty())
    }

    /// The bytes of row `index` of a sequence.
    pub fn row(&self, seq: u32, index: usize) -> &[u8] {
        let at = index % self.capacity * self.row_bytes;
        &self.seqs[seq as usize].bytes[at..at + self.row_bytes]
    }

    /// The rows of a sequence from `index` on, as many as there is room for at least.
    pub fn rows(&self, seq: u32, index: usize) -> impl Iterator<Item = &[u8]> {
        let bytes = &self.seqs[seq as usize].bytes;
        let rows = |bytes| <[u8]>::chunks_exact(bytes, self.row_bytes);
        rows(&bytes[index % self.capacity * self.row_bytes..]).chain(rows(bytes))
    }

    /// The block of a fixed state; `tokens` is how many tokens the sequence has once the caller has updated it.
    pub fn fixed(&mut self, seq: u32, tokens: usize) -> &mut [f32] {
        self.fixed_with_copies(seq, tokens, 0).0
    }

    /// The block of a fixed state, as [`State::fixed`], and blocks for what it is `copies` tokens before that, and so on up
    /// to one token before: going back to these is then free.
    ///
    /// # Panics
    /// If that is more than [`StateSpec::trail`].
    pub fn fixed_with_copies(&mut self, seq: u32, tokens: usize, copies: usize) -> (&mut [f32], Vec<&mut [f32]>) {
        let part = &mut self.seqs[seq as usize];
        (part.high, part.trail) = (tokens, tokens - copies..tokens);
        let list = part.copies[..copies].iter_mut().map(|copy| bytemuck::cast_slice_mut(copy)).collect();
        (bytemuck::cast_slice_mut(&mut part.bytes), list)
    }

    /// Forgets a sequence.
    pub fn clear(&mut self, seq: u32) {
        let part = &mut self.seqs[seq as usize];
        if self.spec.kind == StateKind::Fixed {
            part.bytes.fill(0);
        }
        (part.low, part.high, part.trail) = (0, 0, 0..0);
    }

    /// Goes back to `tokens` tokens, as [`State::can_rewind`] allows. Returns the number of the copy that a GPU must make
    /// the block for that, if one; elsewhere that is done.
    pub fn go_back(&mut self, seq: u32, tokens: usize) -> Option<usize> {
        let part = &mut self.seqs[seq as usize];
        if self.spec.kind != StateKind::Fixed || !part.trail.contains(&tokens) {
            return None;
        }
        let copy = tokens - part.trail.start;
        (part.high, part.trail.end) = (tokens, tokens);
        let Some(block) = part.copies.get_mut(copy) else { return Some(copy) };
        std::mem::swap(&mut part.bytes, block);
        None
    }

    /// Whether the sequence can go back to `tokens` tokens with what is stored.
    pub fn can_rewind(&self, seq: u32, tokens: usize) -> bool {
        let part = &self.seqs[seq as usize];
        match self.spec.kind {
            StateKind::Fixed => tokens >= part.high || part.trail.contains(&tokens),
            StateKind::Rows { window: None, .. } => true,
            // The next row is tokens / every, and a window ends with it.
            StateKind::Rows { every, window: Some(w), .. } => (tokens / every + 1).saturating_sub(w) >= part.low,
        }
    }

    /// The first row that a saved sequence of `tokens` tokens carries, and the row after the last.
    fn saved(&self, tokens: usize, whole: bool) -> (usize, usize) {
        match self.spec.kind {
            StateKind::Fixed => (0, 0),
            StateKind::Rows { every, window, .. } => {
                let to = tokens / every;
                match window {
                    Some(w) => (to.saturating_sub(w), to),
                    None if whole => (0, to),
                    None => (to, to),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Rng;

    fn rows(window: Option<usize>, every: usize) -> StateSpec {
        let kind = StateKind::Rows { every, window, before_batch: false };
        StateSpec { label: "test".into(), width: 1, ty: quant::TYPES[0], kind, trail: 0 }
    }

    fn value(s: &State, row: usize) -> f32 {
        f32::from_le_bytes(s.row(0, row).try_into().unwrap())
    }

    /// What [`State::saved_ranges`] lists, one after the other.
    fn save(s: &State, tokens: usize) -> Vec<u8> {
        s.saved_ranges(tokens, false).into_iter().flat_map(|(at, n)| s.of(0).bytes[at..at + n].to_vec()).collect()
    }

    fn load(s: &mut State, tokens: usize, mut saved: &[u8]) {
        for (at, n) in s.saved_ranges(tokens, false) {
            let (piece, rest) = saved.split_at(n);
            s.of_mut(0).bytes[at..at + n].copy_from_slice(piece);
            saved = rest;
        }
        s.replaced(0, tokens, false);
    }

    #[test]
    fn rows_of_a_batch_are_stored_by_many_threads_as_one_by_one() {
        let pool = Pool::new(2).unwrap();
        let (width, mut rng) = (512, Rng(7));
        for ty in ["f16", "q8_0"] {
            // A ring that a batch's rows go round in, and one that holds all.
            for window in [Some(40), None] {
                let spec = StateSpec { ty: quant::by_name(ty).unwrap(), width, ..rows(window, 1) };
                let [mut many, mut one] = [0; 2].map(|_| State::new(&spec, 2, 1000, 100));
                for from in [0, 100, 207] {
                    let row = |seq| move |pos| Row { token: 0, seq, pos };
                    let batch: Vec<Row> = (from..from + 90).map(row(0)).chain((3..6).map(row(1))).collect();
                    let values: Vec<f32> = (0..batch.len() * width).map(|_| rng.unit()).collect();
                    many.write_rows(&batch, &values, &pool);
                    for (row, values) in batch.iter().zip(values.chunks(width)) {
                        one.write(row.seq, row.pos as usize, values);
                    }
                    for seq in 0..2 {
                        let (many, one) = (many.of(seq), one.of(seq));
                        assert!(many.bytes[..] == one.bytes[..] && many.low == one.low, "{ty}, {window:?}, {from}");
                    }
                }
            }
        }
    }

    /// Feeds, rewinds, saves and loads at random; `can_rewind` may only promise rows that are really there.
    #[test]
    fn a_rewind_that_is_allowed_finds_every_row_that_is_looked_at_again() {
        for (seed, window, every) in [(1, Some(3), 1), (2, Some(40), 1), (3, Some(5), 4), (4, None, 4), (5, Some(1), 1)]
        {
            let mut rng = Rng(seed);
            let spec = rows(window, every);
            let mut s = State::new(&spec, 1, 100_000, 16);
            let mut wrote: Vec<f32> = Vec::new(); // the true content of every row
            let (mut tokens, mut allowed) = (0usize, 0);
            let mut saved: Vec<(usize, Vec<u8>)> = Vec::new();
            for round in 0..3000 {
                for _ in 0..rng.below(if round % 7 == 0 { 700 } else { 30 }) {
                    tokens += 1;
                    if tokens.is_multiple_of(every) {
                        let row = tokens / every - 1;
                        let v = rng.unit();
                        wrote.truncate(row);
                        wrote.push(v);
                        s.write(0, row, &[v]);
                    }
                }
                if rng.below(4) == 0 {
                    saved.push((tokens, save(&s, tokens)));
                }
                let to = tokens - rng.below(600).min(tokens);
                saved.retain(|(n, _)| *n <= to);
                if s.can_rewind(0, to) {
                    allowed += 1;
                    tokens = to;
                } else if let Some((n, bytes)) = saved.last() {
                    load(&mut s, *n, bytes);
                    assert!(s.can_rewind(0, *n), "what was loaded can be used");
                    tokens = *n;
                } else {
                    s.clear(0);
                    tokens = 0;
                }
                wrote.truncate(tokens / every);
                let next = tokens / every;
                for row in window.map_or(0, |w| (next + 1).saturating_sub(w))..next {
                    assert_eq!(value(&s, row), wrote[row], "row {row} of {tokens} tokens, window {window:?}");
                }
                if tokens > 50_000 {
                    s.clear(0);
                    tokens = 0;
                    wrote.clear();
                    saved.clear();
                }
            }
            assert!(allowed > 100, "rewinds are mostly free: {allowed}");
        }
    }

    #[test]
    fn a_window_keeps_at_least_the_window_a_batch_and_some_slack() {
        assert_eq!(rows(Some(100), 1).capacity(100_000, 512), 100 + 512 + SLACK);
        assert_eq!(rows(Some(100), 1).capacity(50, 512), 50);
        assert_eq!(rows(None, 4).capacity(50, 512), 13);
        assert_eq!(rows(Some(usize::MAX), 1).capacity(usize::MAX, 512), usize::MAX);
        assert_eq!(rows(None, 1).bytes(usize::MAX, 1), usize::MAX);
    }
}
