//! What a sequence remembers between walks: rows by position (keys, values, compressed entries, convolution inputs) or
//! one fixed block of floats (recurrent states).
//!
//! Rows are stored by position in a ring. A cache without a window has room for the whole context, so the ring never
//! wraps; one with a window keeps the window, a batch, and some slack that lets a sequence be rewound a little without
//! reading anything again. What cannot be rewound is restored from a checkpoint by the session.

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
}

impl StateSpec {
    /// Rows to keep for one sequence of at most `n_ctx` tokens fed `n_batch` at a time.
    fn capacity(&self, n_ctx: usize, n_batch: usize) -> usize {
        match self.kind {
            StateKind::Fixed => 1,
            StateKind::Rows { every, window } => {
                let all = n_ctx.div_ceil(every).max(1);
                window.map_or(all, |w| all.min(w + n_batch.div_ceil(every) + SLACK))
            }
        }
    }

    /// Whether later tokens destroy what earlier ones left (a window or a recurrence), so that going back may need help.
    pub fn is_overwritten(&self) -> bool {
        !matches!(self.kind, StateKind::Rows { window: None, .. })
    }

    /// Bytes of this state for one sequence.
    pub fn bytes(&self, n_ctx: usize, n_batch: usize) -> usize {
        self.capacity(n_ctx, n_batch) * self.ty.row_bytes(self.width)
    }
}

/// A state of one model, with a part for every sequence.
#[derive(Debug)]
pub struct State {
    spec: StateSpec,
    row_bytes: usize,
    capacity: usize,
    seqs: Vec<Part>,
}

#[derive(Debug, Default)]
struct Part {
    /// The stored rows.
    bytes: Vec<u8>,
    /// The block of a fixed state.
    fixed: Vec<f32>,
    /// Tokens absorbed: for rows, the highest ever since the last load.
    high: usize,
}

impl Default for State {
    fn default() -> State {
        State {
            spec: StateSpec { label: String::new(), width: 0, ty: quant::TYPES[0], kind: StateKind::Fixed },
            row_bytes: 0,
            capacity: 0,
            seqs: Vec::new(),
        }
    }
}

impl State {
    /// An empty state for `n_seq` sequences. Memory is zeroed, so the system commits it only as it fills.
    pub fn new(spec: &StateSpec, n_seq: usize, n_ctx: usize, n_batch: usize) -> State {
        let capacity = spec.capacity(n_ctx, n_batch);
        let row_bytes = spec.ty.row_bytes(spec.width);
        let part = || match spec.kind {
            StateKind::Fixed => Part { fixed: vec![0.0; spec.width], ..Part::default() },
            StateKind::Rows { .. } => Part { bytes: vec![0; capacity * row_bytes], ..Part::default() },
        };
        State { spec: spec.clone(), row_bytes, capacity, seqs: (0..n_seq).map(|_| part()).collect() }
    }

    /// The format of the rows.
    pub fn ty(&self) -> &'static QuantType {
        self.spec.ty
    }

    /// Bytes from one row to the next.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Stores row `index` (position / every) of a sequence; `tokens` is how many tokens the sequence has with it.
    pub fn write(&mut self, seq: u32, index: usize, values: &[f32], tokens: usize) {
        debug_assert_eq!(values.len(), self.spec.width);
        let kv = self.spec.ty.kv.as_ref().expect("a state is kept in a type that encodes");
        let part = &mut self.seqs[seq as usize];
        let at = index % self.capacity * self.row_bytes;
        (kv.encode)(values, &mut part.bytes[at..at + self.row_bytes]);
        part.high = part.high.max(tokens);
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

    /// The block of a fixed state; `tokens` is how many tokens the sequence has once the caller has updated it.
    pub fn fixed(&mut self, seq: u32, tokens: usize) -> &mut [f32] {
        let part = &mut self.seqs[seq as usize];
        part.high = tokens;
        &mut part.fixed
    }

    /// Forgets a sequence.
    pub fn clear(&mut self, seq: u32) {
        let part = &mut self.seqs[seq as usize];
        part.fixed.fill(0.0);
        part.high = 0;
    }

    /// Whether the sequence can go back to `tokens` tokens with what is stored.
    pub fn can_rewind(&self, seq: u32, tokens: usize) -> bool {
        let high = self.seqs[seq as usize].high;
        match self.spec.kind {
            _ if tokens >= high => true,
            StateKind::Fixed => false,
            StateKind::Rows { window: None, .. } => true,
            StateKind::Rows { every, window: Some(w) } => {
                // The rows below high - capacity are overwritten; a sequence of `tokens` looks back to tokens - window.
                (tokens / every).saturating_sub(w) + self.capacity >= high.div_ceil(every)
            }
        }
    }

    /// What cannot be found again after the sequence has grown beyond `tokens` (`whole`: everything it remembers).
    pub fn save(&self, seq: u32, tokens: usize, whole: bool) -> Vec<u8> {
        let part = &self.seqs[seq as usize];
        match self.spec.kind {
            StateKind::Fixed => bytemuck::cast_slice(&part.fixed).to_vec(),
            StateKind::Rows { every, window } => {
                let to = tokens / every;
                let from = match window {
                    Some(w) => to.saturating_sub(w),
                    None if whole => 0,
                    None => to,
                };
                self.runs(seq, from, to).flat_map(|(_, bytes)| bytes).copied().collect()
            }
        }
    }

    /// Takes back what [`State::save`] gave for the same `tokens` and `whole`. Returns false, with nothing changed, when
    /// the length is not what this state would have saved.
    pub fn load(&mut self, seq: u32, tokens: usize, whole: bool, bytes: &[u8]) -> bool {
        let (capacity, row_bytes) = (self.capacity, self.row_bytes);
        let part = &mut self.seqs[seq as usize];
        match self.spec.kind {
            StateKind::Fixed => {
                if bytes.len() != part.fixed.len() * 4 {
                    return false;
                }
                for (f, b) in part.fixed.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *f = f32::from_ne_bytes(*b);
                }
            }
            StateKind::Rows { every, window } => {
                let to = tokens / every;
                let from = match window {
                    Some(w) => to.saturating_sub(w),
                    None if whole => 0,
                    None => to,
                };
                if bytes.len() != (to - from) * row_bytes || to - from > capacity {
                    return false;
                }
                for (i, row) in (from..to).zip(bytes.chunks_exact(row_bytes)) {
                    let at = i % capacity * row_bytes;
                    part.bytes[at..at + row_bytes].copy_from_slice(row);
                }
            }
        }
        part.high = tokens;
        true
    }
}
