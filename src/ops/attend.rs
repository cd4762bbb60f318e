//! attend: softmax attention of every head over the rows its sequence has cached.
//!
//! ```text
//! s[p] = cap(scale * q . k[p])     for the visible positions p: all up to the token's own, or the last `window`
//! out  = sum_p e^s[p] v[p] / (sum_p e^s[p] + e^sink)
//! ```
//! Grouped heads share keys and values (`heads / kv_heads` each). `v_dim` columns of the key serve as the value where
//! the two are one (latent attention, DeepSeek-V4). `extra` adds the rows of a second, compressed cache: all complete
//! ones, or those that an index step selected. The batch's own rows are cached before anything is computed.

use anyhow::{Result, bail};

use crate::cpu::{dot_rows, sum_rows};
use crate::tape::{Builder, CpuIo, Op, Slot, State, StateId, WeightId};

/// An attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Query heads.
    pub heads: usize,
    /// Key (and value) heads.
    pub kv_heads: usize,
    /// Columns of a key head.
    pub k_dim: usize,
    /// Columns of a value head.
    pub v_dim: usize,
    /// Multiplies q . k.
    pub scale: f32,
    /// Positions that a token sees, itself included.
    pub window: Option<usize>,
    /// Squashes scores to (-cap, cap) by tanh.
    pub soft_cap: Option<f32>,
}

/// A second cache to attend to.
#[derive(Clone, Copy, Debug)]
pub struct Extra {
    /// Rows of keys that are also the values, one per `every` tokens.
    pub state: StateId,
    /// Tokens per row; a row is visible to the token that completes it.
    pub every: usize,
    /// Rows selected for each token, -1 for none; None takes every visible row.
    pub select: Option<Slot>,
}

#[derive(Debug)]
struct AttendOp {
    a: Attend,
    /// Values are the first columns of the keys.
    shared: bool,
    sinks: bool,
    /// `(every, selected)`.
    extra: Option<(usize, bool)>,
}

/// One head of one token: its scores and what they sum up.
struct Head<'a> {
    op: &'a AttendOp,
    kv_head: usize,
    keys: &'a State,
    values: &'a State,
    extra: Option<&'a State>,
}

impl Head<'_> {
    /// Scores `rows` adjacent cached rows.
    fn score(&self, keys: &State, bytes: &[u8], q: crate::quant::ActRow<'_>, scores: &mut Vec<f32>) {
        let at = self.kv_head * keys.ty().row_bytes(self.op.a.k_dim);
        let from = scores.len();
        scores.resize(from + bytes.len() / keys.row_bytes(), 0.0);
        dot_rows(keys.ty(), &bytes[at..], keys.row_bytes(), q, &mut scores[from..]);
    }

    /// Adds `p` times each of the rows' values.
    fn gather(&self, values: &State, bytes: &[u8], p: &[f32], out: &mut [f32]) {
        let at = self.kv_head * values.ty().row_bytes(self.op.a.v_dim);
        sum_rows(values.ty(), &bytes[at..], values.row_bytes(), p, out);
    }
}

impl Op for AttendOp {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let a = &self.a;
        let (q, new_k) = (io.ins[0], io.ins[1]);
        let k_width = new_k.len() / io.rows;
        for (t, row) in io.batch.rows.iter().enumerate() {
            let pos = row.pos as usize;
            io.states[0].write(row.seq, pos, &new_k[t * k_width..(t + 1) * k_width]);
            if !self.shared {
                let width = io.ins[2].len() / io.rows;
                io.states[1].write(row.seq, pos, &io.ins[2][t * width..(t + 1) * width]);
            }
        }
        let keys = &io.states[0];
        let values = if self.shared { keys } else { &io.states[1] };
        let extra = self.extra.map(|_| &io.states[if self.shared { 1 } else { 2 }]);
        let sinks = self.sinks.then(|| io.weights[0].values);
        let select = match self.extra {
            Some((_, true)) => Some(io.ins[if self.shared { 2 } else { 3 }]),
            _ => None,
        };
        let mut acts = std::mem::take(&mut io.work.acts);
        acts.set(keys.ty().act, a.k_dim, q);
        let per_kv = a.heads / a.kv_heads;
        let depth = io.batch.rows.iter().map(|r| r.pos as usize + 1).max().unwrap_or(0);
        let bytes = io.rows * a.heads * a.window.map_or(depth, |w| depth.min(w)) * (a.k_dim + a.v_dim);
        io.pool.pieces(&mut io.outs[0], a.v_dim, bytes, |i, out| {
            let (t, h) = (i / a.heads, i % a.heads);
            let row = io.batch.rows[t];
            let end = row.pos as usize + 1;
            let start = a.window.map_or(0, |w| end.saturating_sub(w));
            let x = acts.row(i, q);
            let head = Head { op: self, kv_head: h / per_kv, keys, values, extra };
            let mut s = Vec::with_capacity(end - start + 8);
            for (_, bytes) in keys.runs(row.seq, start, end) {
                head.score(head.keys, bytes, x, &mut s);
            }
            let own = s.len();
            let chosen: Option<Vec<usize>> = select.map(|sel| {
                let k = sel.len() / io.rows;
                sel[t * k..(t + 1) * k].iter().take_while(|&&r| r >= 0.0).map(|&r| r as usize).collect()
            });
            let complete = self.extra.map_or(0, |(every, _)| end / every);
            if let Some(rows) = head.extra {
                match &chosen {
                    Some(list) => list.iter().for_each(|&r| head.score(rows, rows.row(row.seq, r), x, &mut s)),
                    None => rows.runs(row.seq, 0, complete).for_each(|(_, b)| head.score(rows, b, x, &mut s)),
                }
            }
            let mut max = sinks.map_or(f32::NEG_INFINITY, |s| s[h]);
            for v in s.iter_mut() {
                *v *= a.scale;
                if let Some(cap) = a.soft_cap {
                    *v = cap * (*v / cap).tanh();
                }
                max = max.max(*v);
            }
            let mut sum = sinks.map_or(0.0, |s| ((s[h] - max).exp()) as f64);
            for v in s.iter_mut() {
                *v = (*v - max).exp();
                sum += *v as f64;
            }
            let inv = (1.0 / sum) as f32;
            s.iter_mut().for_each(|v| *v *= inv);
            out.fill(0.0);
            let mut at = 0;
            for (_, bytes) in head.values.runs(row.seq, start, end) {
                let n = bytes.len() / head.values.row_bytes();
                head.gather(head.values, bytes, &s[at..at + n], out);
                at += n;
            }
            debug_assert_eq!(at, own);
            if let Some(rows) = head.extra {
                match &chosen {
                    Some(list) => {
                        for (&r, p) in list.iter().zip(&s[own..]) {
                            head.gather(rows, rows.row(row.seq, r), std::slice::from_ref(p), out);
                        }
                    }
                    None => {
                        for (_, bytes) in rows.runs(row.seq, 0, complete) {
                            let n = bytes.len() / rows.row_bytes();
                            head.gather(rows, bytes, &s[at..at + n], out);
                            at += n;
                        }
                    }
                }
            }
        });
        io.work.acts = acts;
    }
}

impl Builder<'_> {
    /// Attention of `q` (T, heads * k_dim) over cached `k` (T, kv_heads * k_dim) and `v` (T, kv_heads * v_dim); None
    /// takes the first `v_dim` columns of the keys. Creates and owns the layer's cache. (T, heads * v_dim).
    pub fn attend(
        &self,
        label: String,
        a: Attend,
        (q, k, v): (Slot, Slot, Option<Slot>),
        sinks: Option<WeightId>,
        extra: Option<Extra>,
    ) -> Result<Slot> {
        self.expect_width(&label, q, a.heads * a.k_dim)?;
        self.expect_width(&label, k, a.kv_heads * a.k_dim)?;
        debug_assert!(
            a.heads.is_multiple_of(a.kv_heads) && a.window != Some(0),
            "the keys were read by heads and tokens"
        );
        debug_assert!(
            v.is_some() || a.kv_heads == 1 && a.v_dim <= a.k_dim,
            "keys serve as values in one key head only"
        );
        let (type_k, type_v) = (self.settings.type_k, self.settings.type_v);
        let mut states = vec![self.head_rows(&label, "k", type_k, a.kv_heads, a.k_dim, a.v_dim, a.window)?];
        let mut ins = vec![q, k];
        if let Some(v) = v {
            self.expect_width(&label, v, a.kv_heads * a.v_dim)?;
            states.push(self.head_rows(&label, "v", type_v, a.kv_heads, a.v_dim, a.v_dim, a.window)?);
            ins.push(v);
        }
        if let Some(e) = extra {
            states.push(e.state);
            ins.extend(e.select);
        }
        let op = AttendOp {
            a,
            shared: v.is_none(),
            sinks: sinks.is_some(),
            extra: extra.map(|e| (e.every, e.select.is_some())),
        };
        let weights: Vec<WeightId> = sinks.into_iter().collect();
        Ok(self.push(label, op, &ins, &[a.heads * a.v_dim], &weights, &states)[0])
    }

    fn head_rows(
        &self,
        label: &str,
        what: &str,
        ty: &'static crate::quant::QuantType,
        heads: usize,
        dim: usize,
        part: usize,
        window: Option<usize>,
    ) -> Result<StateId> {
        if !dim.is_multiple_of(ty.block) || !part.is_multiple_of(ty.block) {
            bail!(
                "cache type {} packs {} values together, which the heads of {label} ({dim} and {part} wide) do not \
                 divide into; choose f16",
                ty.name,
                ty.block
            );
        }
        self.rows_state(format!("{label}.{what}"), heads * dim, ty, 1, window)
    }
}
