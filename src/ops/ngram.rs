//! ngram: rows of a big table that a hash of a token and those before it chooses, and the gate through which they reach the
//! residual streams (Qwen4's per-layer embeddings, DeepSeek-V4.1's engram).
//!
//! ```text
//! c[0], c[1], ..  the token and those before it, by number, or by the number that a list gives each; before the start `pad`,
//!                 and where a token ends a text it and all before it are end of text
//! mixed(m) = c[0] * f[0] xor .. xor c[m-1] * f[m-1]                in 64 bits, for m = 2 .. tokens of the longest n-gram
//! row(h)   = offset[h] + mixed(m) mod size[h]                      heads h of m; the rows of all heads side by side
//!
//! gate[i]  = sigmoid(signed root of norm(key[i]) . norm(stream[i]) / sqrt(width))      for each of n streams
//! gated[i] = gate[i] * value                                       and its norm, for a convolution
//! ```
//! or the streams with that added (V4.1, where the signed root of 0 is that of 1e-6, the least there is).
//!
//! The table can be larger than memory: a few rows of it are read per token, and it stays in the file.

use std::sync::Arc;

use anyhow::{Result, bail};

use super::conv::is_last;
use super::glu::sigmoid;
use super::norm::rms;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Batch, Builder, CpuIo, GpuIo, Op, Slot, State, Weight, WeightId};

/// How a hash chooses rows.
#[derive(Clone, Debug)]
pub struct Ngram {
    /// Factor of the token itself, of the one before it, and so on: as many as the longest n-gram has tokens.
    pub factors: Vec<u64>,
    /// Where each head's rows begin, and how many there are: heads of pairs first, then of triples, as many each.
    pub heads: Vec<(usize, usize)>,
    /// The number that stands for a token; where the list ends, `pad` does. Empty for the token itself.
    pub map: Arc<[u32]>,
    /// What stands before the sequence's start.
    pub pad: u32,
    /// Whether a token `pad` ends a text, so that what is before it does not count.
    pub ends: bool,
}

#[derive(Debug)]
struct NgramOp(Ngram);

impl Ngram {
    /// The numbers of tokens are below this, so that they are exact as f32.
    pub const NUMBERS: usize = 1 << 24;

    /// The number of a token.
    fn number(&self, token: u32) -> u32 {
        if self.map.is_empty() { token } else { self.map.get(token as usize).copied().unwrap_or(self.pad) }
    }

    /// The rows that the tokens `c` choose: the newest first.
    fn rows(&self, c: &[u32]) -> impl Iterator<Item = usize> {
        let each = self.heads.len() / (self.factors.len() - 1);
        let mut mixed = (c[0] as u64).wrapping_mul(self.factors[0]);
        let per_size = self.heads.chunks(each).zip(&self.factors[1..]).zip(&c[1..]);
        let rows = per_size.flat_map(move |((heads, factor), &token)| {
            mixed ^= (token as u64).wrapping_mul(*factor);
            heads.iter().map(move |&(offset, size)| offset + (mixed % size as u64) as usize)
        });
        rows.collect::<Vec<_>>().into_iter()
    }
}

impl Op for NgramOp {
    fn name(&self) -> &'static str {
        "ngram"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (x, table) = (&self.0, &io.weights[0]);
        let (bytes, dim) = (table.row_bytes(), table.shape[2]);
        let rows = self.rows_ahead(io.batch, &[&io.states[0]]);
        for (row, out) in rows.into_iter().zip(io.outs[0].chunks_exact_mut(dim)) {
            (table.format().dequant)(&table.data[row * bytes..(row + 1) * bytes], out);
        }
        let rows = io.batch.rows.iter().enumerate();
        for (_, row) in rows.filter(|(t, _)| is_last(io.batch, *t, x.factors.len())) {
            io.states[0].write(row.seq, row.pos as usize, &[x.number(row.token) as f32]);
        }
    }

    fn rows_ahead(&self, batch: &Batch, states: &[&State]) -> Vec<usize> {
        let (x, rows) = (&self.0, &batch.rows);
        let mut c = vec![0u32; x.factors.len()];
        let mut all = Vec::with_capacity(rows.len() * x.heads.len());
        for (t, row) in rows.iter().enumerate() {
            c[0] = x.number(row.token);
            let mut ended = false;
            for back in 1..c.len() {
                ended |= back > row.pos as usize;
                if !ended {
                    c[back] = match t.checked_sub(back).filter(|&from| rows[from].seq == row.seq) {
                        Some(from) => x.number(rows[from].token),
                        None => {
                            let stored = states[0].row(row.seq, row.pos as usize - back);
                            f32::from_ne_bytes(stored.try_into().expect("a row of one value")) as u32
                        }
                    };
                }
                ended |= x.ends && c[back] == x.pad;
                if ended {
                    c[back] = x.pad;
                }
            }
            all.extend(x.rows(&c));
        }
        all
    }

    fn gpu(&self, _: &GpuIo<'_>) -> Result<()> {
        unreachable!("the table is not on a GPU")
    }

    fn gpu_refuses(&self) -> Option<String> {
        Some("a table that stays in the file".into())
    }

    fn by_row(&self) -> bool {
        false
    }

    fn bytes_per_token(&self, weights: &[&Weight]) -> usize {
        weights[0].bytes / weights[0].shape[1] * self.0.heads.len()
    }
}

/// The gate of streams; see the head of the file.
#[derive(Debug)]
struct StreamGate {
    n: usize,
    eps: f32,
    /// Whether the streams with the gated value are wanted, and nothing normed.
    is_added: bool,
}

impl Op for StreamGate {
    fn name(&self) -> &'static str {
        "stream_gate"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let [key, value, streams] = io.ins else { unreachable!("the builder gives three inputs") };
        let [norm_key, norm_query] = [0, 1].map(|i| io.weights[i].values);
        let (n, width) = (self.n, value.len() / io.rows);
        let bytes = key.len() * 24;
        // With two rows of scratch: the gate of a stream.
        let gate = |i: usize, k: &mut [f32], q: &mut [f32]| {
            let (own, at) = (i * width..(i + 1) * width, i % n * width..(i % n + 1) * width);
            rms(&key[own.clone()], Some(&norm_key[at.clone()]), self.eps, 1.0, k);
            rms(&streams[own], Some(&norm_query[at]), self.eps, 1.0, q);
            let dot: f64 = k.iter().zip(&*q).map(|(&a, &b)| a as f64 * b as f64).sum();
            let s = dot as f32 / (width as f32).sqrt();
            let root = s.abs().max(1e-6).sqrt();
            if s == 0.0 && !self.is_added { 0.5 } else { sigmoid(if s < 0.0 { -root } else { root }) }
        };
        if self.is_added {
            let scratch = &mut io.work.buffers[0];
            scratch.resize(key.len(), 0.0);
            return io.pool.pieces2((&mut io.outs[0], width), (scratch, width), bytes, |i, out, q| {
                let gate = gate(i, out, q);
                let values = value[i / n * width..].iter().zip(&streams[i * width..]);
                out.iter_mut().zip(values).for_each(|(o, (v, s))| *o = s + gate * v);
            });
        }
        let norm_out = io.weights[2].values;
        let [gated, normed] = &mut io.outs[..] else { unreachable!("the builder takes two outputs") };
        io.pool.pieces2((gated, width), (normed, width), bytes, |i, gated, normed| {
            let gate = gate(i, gated, normed);
            gated.iter_mut().zip(&value[i / n * width..]).for_each(|(o, v)| *o = gate * v);
            rms(gated, Some(&norm_out[i % n * width..][..width]), self.eps, 1.0, normed);
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let [key, value, streams] = io.ins else { unreachable!("the builder gives three inputs") };
        let [norm_key, norm_query] = [0, 1].map(|i| io.weights[i].ptr);
        let none = Ptr::default();
        launch::stream_gate(
            io.gpu,
            Grid::new([key.rows * self.n, 1, 1], 256),
            key.ptr,
            value.ptr,
            streams.ptr,
            norm_key,
            norm_query,
            io.weights.get(2).map_or(none, |w| w.ptr),
            io.outs[0].ptr,
            io.outs.get(1).map_or(none, |out| out.ptr),
            int(self.n),
            int(value.width),
            self.eps,
        )
    }
}

impl Builder<'_> {
    /// The rows of table `name` that each token and those before it choose: (T, heads * columns of the table).
    ///
    /// # Errors
    /// If the table is missing, has other columns or too few rows, or tokens cannot be numbered.
    pub fn ngram(&self, name: &str, x: Ngram, dim: usize) -> Result<Slot> {
        let n = x.factors.len();
        debug_assert!(n > 1 && x.heads.len().is_multiple_of(n - 1), "the numbers were read as they belong together");
        let want = x.heads.iter().map(|(from, n)| from.saturating_add(*n)).max().unwrap_or(0);
        self.need(name)?;
        let rows = self.shape(name).and_then(|s| s.first().copied()).unwrap_or(0);
        if rows < want {
            bail!("{}: tensor {name} has {rows} rows, {want} or more expected from the metadata", self.file());
        }
        let most = Ngram::NUMBERS;
        if self.n_vocab()? > most {
            bail!(
                "{}: a vocabulary of {} tokens is more than the {most} that can be hashed",
                self.file(),
                self.n_vocab()?
            );
        }
        if x.map.iter().chain([&x.pad]).any(|&id| id as usize >= most) {
            bail!("{}: a token has a number beyond the {most} that can be hashed", self.file());
        }
        let table = self.mapped(name, &[rows, dim])?;
        let state = self.last_rows("ngram.tokens", 1, n);
        let width = x.heads.len() * dim;
        Ok(self.push_named("ngram", NgramOp(x), &[], &[width], &[table], &[state])[0])
    }

    /// `value` (T, width) times a gate for each of the streams, made of `key` and the streams (T, n * width): (T, n * width),
    /// and the same normed. The norms of keys, streams and what is returned have weights `norms` (n, width).
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn stream_gate(&self, [key, value, streams]: [Slot; 3], norms: [&str; 3], eps: f32) -> Result<[Slot; 2]> {
        let (all, width) = (self.width(streams), self.width(value));
        let n = all / width;
        let weights: Vec<WeightId> =
            norms.iter().map(|name| self.vector(&format!("{name}.weight"), &[n, width])).collect::<Result<_>>()?;
        let op = StreamGate { n, eps, is_added: false };
        let outs = self.push(op, &[key, value, streams], &[all, all], &weights);
        Ok([outs[0], outs[1]])
    }

    /// The streams (T, n * width), to each of which `value` (T, width) was added by a gate made of `key` and the stream itself,
    /// whose norms have weights `norms` (n, width).
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn add_gated(&self, [key, value, streams]: [Slot; 3], norms: [&str; 2], eps: f32) -> Result<Slot> {
        let (all, width) = (self.width(streams), self.width(value));
        let n = all / width;
        let weights: Vec<WeightId> =
            norms.iter().map(|name| self.vector(&format!("{name}.weight"), &[n, width])).collect::<Result<_>>()?;
        Ok(self.push(StreamGate { n, eps, is_added: true }, &[key, value, streams], &[all], &weights)[0])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Ngram;

    #[test]
    fn heads_of_pairs_come_before_those_of_triples_and_products_wrap() {
        let heads = vec![(0, 7), (7, 11), (18, 13), (31, 17)];
        let x = Ngram { factors: vec![u64::MAX, 3, 5], heads, map: Arc::default(), pad: 0, ends: true };
        let pair = 2u64.wrapping_mul(u64::MAX) ^ 9;
        let triple = pair ^ 20;
        let want = [pair % 7, 7 + pair % 11, 18 + triple % 13, 31 + triple % 17];
        assert_eq!(x.rows(&[2, 3, 4]).map(|r| r as u64).collect::<Vec<_>>(), want);
    }
}
