//! rope: rotates pairs of values in each head by an angle that grows with the token's position.
//!
//! ```text
//! (a, b) -> (a cos t - b sin t, a sin t + b cos t),  t = pos * base^(-2i / n_rot),  i = 0 .. n_rot / 2
//! Adjacent pairs: (0,1), (2,3), ...        Halves: (0, n/2), (1, n/2 + 1), ...
//! ```
//! YaRN (arXiv 2309.00071, as in ggml's `rope_yarn`): low frequencies are divided by `factor`, high ones kept, a ramp
//! between the dimensions that turn `beta_fast` and `beta_slow` times over the original context; cos and sin are
//! multiplied by `magnitude`. Factors that a file gives for each pair divide its angle (Llama 3, LongRoPE).
//!
//! Angles are computed in f64 once per batch and specification, and shared by all layers: at position 100,000 an f32
//! product is already off by 0.006.

use std::f64::consts::PI;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use anyhow::Result;

use crate::cuda::{Grid, int, launch};
use crate::tape::{Batch, Builder, CpuIo, GpuIo, Op, Slot, Table};

const N_ROT: &str = "rope.dimension_count";
const ATTN_FACTOR: &str = "rope.scaling.attn_factor";
const N_ORIG: &str = "rope.scaling.original_context_length";

/// Which values of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// Neighbours.
    Adjacent,
    /// The first half with the second.
    Halves,
}

impl Pairs {
    /// As the kernels number them.
    pub(super) fn code(self) -> launch::RopePairs {
        match self {
            Pairs::Adjacent => launch::RopePairs::Adjacent,
            Pairs::Halves => launch::RopePairs::Halves,
        }
    }
}

/// How the angles are stretched beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// Every angle divided by a factor.
    Linear(f32),
    /// By the factors of each pair alone; cos and sin are multiplied by this (LongRoPE).
    Long(f32),
    /// YaRN.
    Yarn {
        /// How far the context is stretched.
        factor: f32,
        /// The context of the original training.
        n_orig: usize,
        /// Turns above which a frequency is kept.
        beta_fast: f32,
        /// Turns below which a frequency is divided.
        beta_slow: f32,
        /// Multiplies cos and sin.
        magnitude: f32,
    },
}

/// A rotation.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Values of a head that take part; the rest pass through.
    pub n_rot: usize,
    /// Column in the head where they begin.
    pub offset: usize,
    /// Pairing.
    pub pairs: Pairs,
    /// The base of the frequencies.
    pub base: f32,
    /// Stretching.
    pub scaling: Scaling,
    /// What each pair's angle is divided by; empty for nothing.
    pub factors: Arc<[f32]>,
    /// Turns back instead.
    pub inverse: bool,
}

impl Rope {
    /// The rotation of a head's first `n_rot` values, nothing stretched.
    pub fn plain(n_rot: usize, pairs: Pairs, base: f32) -> Rope {
        Rope { n_rot, offset: 0, pairs, base, scaling: Scaling::None, factors: Arc::default(), inverse: false }
    }

    /// A number that two ropes share when their angles are the same.
    fn key(&self) -> u64 {
        let mut h = DefaultHasher::new();
        (self.n_rot, self.base.to_bits(), format!("{:?} {:?}", self.scaling, self.factors)).hash(&mut h);
        h.finish()
    }

    /// Radians per position of pair `i`, and the magnitude.
    fn frequencies(&self) -> (Vec<f64>, f64) {
        let n = self.n_rot as f64;
        let base = self.base as f64;
        let plain = |i: usize| base.powf(-2.0 * i as f64 / n) / self.factors.get(i).map_or(1.0, |&f| f as f64);
        let pairs = 0..self.n_rot / 2;
        match self.scaling {
            Scaling::None => (pairs.map(plain).collect(), 1.0),
            Scaling::Long(magnitude) => (pairs.map(plain).collect(), magnitude as f64),
            Scaling::Linear(f) => (pairs.map(|i| plain(i) / f as f64).collect(), 1.0),
            Scaling::Yarn { factor, n_orig, beta_fast, beta_slow, magnitude } => {
                let dim = |turns: f32| n * (n_orig as f64 / (turns as f64 * 2.0 * PI)).ln() / (2.0 * base.ln());
                let low = dim(beta_fast).floor().max(0.0);
                let high = dim(beta_slow).ceil().min(n - 1.0);
                let freq = |i: usize| {
                    let ramp = 1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    let inner = plain(i);
                    inner / factor as f64 * (1.0 - ramp) + inner * ramp
                };
                (pairs.map(freq).collect(), magnitude as f64)
            }
        }
    }

    /// `(cos, sin)` of every pair at position `pos`, interleaved.
    fn angles(freq: &[f64], magnitude: f64, pos: u32, out: &mut Vec<f32>) {
        for f in freq {
            let (sin, cos) = (pos as f64 * f).sin_cos();
            out.extend([(cos * magnitude) as f32, (sin * magnitude) as f32]);
        }
    }

    /// The angles of every row of a batch, at the first position of its run of `every`.
    pub(super) fn table(&self, every: usize) -> Table {
        let (freq, magnitude) = self.frequencies();
        let n_rot = self.n_rot;
        let fill = move |batch: &Batch, to: &mut [u8]| {
            let mut angles = Vec::with_capacity(n_rot);
            for (row, to) in batch.rows.iter().zip(to.chunks_exact_mut(n_rot * 4)) {
                angles.clear();
                Rope::angles(&freq, magnitude, row.pos / every as u32 * every as u32, &mut angles);
                to.copy_from_slice(bytemuck::cast_slice(&angles));
            }
        };
        Table { key: format!("angles {} {every}", self.key()), row_bytes: n_rot * 4, fill: Box::new(fill) }
    }

    /// The angles of one position, for ops that rotate rows of their own.
    pub(super) fn angles_at(&self, pos: u32) -> Vec<f32> {
        let (freq, magnitude) = self.frequencies();
        let mut out = Vec::with_capacity(self.n_rot);
        Rope::angles(&freq, magnitude, pos, &mut out);
        out
    }

    /// Rotates one head in place by angles from [`Rope::angles_at`] or the batch's table.
    pub(super) fn rotate(&self, angles: &[f32], head: &mut [f32]) {
        let part = &mut head[self.offset..self.offset + self.n_rot];
        let half = self.n_rot / 2;
        for i in 0..half {
            let (cos, sin) = (angles[2 * i], angles[2 * i + 1]);
            let sin = if self.inverse { -sin } else { sin };
            let (a, b) = match self.pairs {
                Pairs::Adjacent => (2 * i, 2 * i + 1),
                Pairs::Halves => (i, i + half),
            };
            let (x, y) = (part[a], part[b]);
            part[a] = x * cos - y * sin;
            part[b] = x * sin + y * cos;
        }
    }
}

#[derive(Debug)]
struct RopeOp {
    rope: Rope,
    head: usize,
    key: u64,
}

impl Op for RopeOp {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let rope = &self.rope;
        let table = io.work.angles.entry((self.key, io.rows)).or_insert_with(|| {
            let (freq, magnitude) = rope.frequencies();
            let mut table = Vec::with_capacity(io.batch.rows.len() * rope.n_rot);
            io.batch.rows.iter().for_each(|r| Rope::angles(&freq, magnitude, r.pos, &mut table));
            table
        });
        let table = &*table;
        let x = io.ins[0];
        let width = x.len() / io.rows;
        io.pool.pieces(io.outs[0], width, x.len() * 8, |t, out| {
            out.copy_from_slice(&x[t * width..(t + 1) * width]);
            for head in out.chunks_exact_mut(self.head) {
                rope.rotate(&table[t * rope.n_rot..][..rope.n_rot], head);
            }
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, rope) = (io.ins[0], &self.rope);
        let total = x.rows * x.width;
        launch::rope(
            io.gpu,
            Grid::each(total),
            x.ptr,
            io.tables[0],
            io.outs[0].ptr,
            int(x.width),
            int(self.head),
            int(rope.n_rot),
            int(rope.offset),
            rope.pairs.code(),
            i32::from(rope.inverse),
            total as u64,
        )
    }

    fn by_row(&self) -> bool {
        false
    }

    fn tables(&self) -> Vec<Table> {
        vec![self.rope.table(1)]
    }
}

impl Builder<'_> {
    /// The rotation that the `rope.*` keys describe: of `rope.dimension_count` values from the start of each head of
    /// `head`, or of all.
    ///
    /// `attention.scale`-like corrections stay with the family; cos and sin get YaRN's usual `1 + 0.1 ln(factor)`.
    ///
    /// # Errors
    /// If the keys do not describe a rotation.
    pub fn rope_from_keys(&self, head: usize, pairs: Pairs) -> Result<Rope> {
        let n_rot = self.count_or(N_ROT, head)?;
        if !n_rot.is_multiple_of(2) {
            return Err(self.bad_key(N_ROT, n_rot, "an even number: values are rotated in pairs"));
        }
        let base = self.positive_or("rope.freq_base", 10000.0)?;
        // 0 means no scaling, and so does an absent key; `scale_linear` is the factor's older name.
        let factor = self.number_or("rope.scaling.factor", self.number_or("rope.scale_linear", 0.0)?)?;
        let factor = if factor == 0.0 { 1.0 } else { factor };
        if factor < 0.0 {
            return Err(self.bad_key("rope.scaling.factor", factor, "a number above 0"));
        }
        let factors = self.rope_factors(n_rot)?;
        let magnitude = self.positive_or(ATTN_FACTOR, 1.0)?;
        let scaling = match self.word("rope.scaling.type")? {
            Some("yarn") => Scaling::Yarn {
                factor,
                n_orig: match self.has_key(N_ORIG) {
                    true => self.tokens(N_ORIG)?,
                    false => self.tokens("context_length")?,
                },
                // Files carry yarn_beta_fast and _slow, but the reference reads them for two families only and takes
                // these for all others, so the files were made and tested with these. What a user asks for counts.
                beta_fast: self.asked_or("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: self.asked_or("rope.scaling.yarn_beta_slow", 1.0)?,
                magnitude: magnitude * (1.0 + 0.1 * factor.ln().max(0.0)),
            },
            Some("longrope") if factors.is_empty() => {
                let want = "none, linear or yarn, since there are no tensors rope_factors_long and rope_factors_short";
                return Err(self.bad_key("rope.scaling.type", "longrope", want));
            }
            Some("longrope") => Scaling::Long(magnitude),
            // Converters of some families name no type.
            None if !factors.is_empty() && factor == 1.0 => Scaling::Long(magnitude),
            _ if magnitude != 1.0 => return Err(self.bad_key(ATTN_FACTOR, magnitude, "1, except with yarn scaling")),
            Some("none") => Scaling::None,
            None | Some("linear") if factor == 1.0 => Scaling::None,
            None | Some("linear") => Scaling::Linear(factor),
            Some(other) => return Err(self.bad_key("rope.scaling.type", other, "none, linear, yarn or longrope")),
        };
        Ok(Rope { n_rot, offset: 0, pairs, base, scaling, factors, inverse: false })
    }

    /// The rotation of layers that see a window, nothing stretched: of `rope.dimension_count_swa` columns by the base
    /// `rope.freq_base_swa`, or of `n_rot` by `base` where the keys are absent.
    ///
    /// # Errors
    /// If the keys do not describe a rotation.
    pub fn windowed_rope(&self, n_rot: usize, pairs: Pairs, base: f32) -> Result<Rope> {
        const N_ROT: &str = "rope.dimension_count_swa";
        let n_rot = self.count_or(N_ROT, n_rot)?;
        if !n_rot.is_multiple_of(2) {
            return Err(self.bad_key(N_ROT, n_rot, "an even number: values are rotated in pairs"));
        }
        Ok(Rope::plain(n_rot, pairs, self.positive_or("rope.freq_base_swa", base)?))
    }

    /// What a file divides the angles of each pair by: `rope_freqs`, in the layer or for all, or one of
    /// `rope_factors_long` and `_short`, by whether the context is longer than that of the original training.
    fn rope_factors(&self, n_rot: usize) -> Result<Arc<[f32]>> {
        let root = &self.root();
        let long = self.has_key(N_ORIG) && self.settings().n_ctx > self.tokens(N_ORIG)?;
        let (used, idle) = match long {
            true => ("rope_factors_long.weight", "rope_factors_short."),
            false => ("rope_factors_short.weight", "rope_factors_long."),
        };
        for b in [self, root] {
            if b.has("rope_freqs.weight") {
                return Ok(b.values("rope_freqs.weight", &[n_rot / 2])?.into());
            }
            if b.has(used) {
                b.ignore(idle, "it is for contexts of another length");
                return Ok(b.values(used, &[n_rot / 2])?.into());
            }
        }
        Ok(Arc::default())
    }

    /// Fails unless a rotation in sections that count time, height and width is the plain one for a text, where all
    /// three are the same position: as long as every one of `pairs` belongs to one of the three.
    ///
    /// # Errors
    /// If some pair does not.
    pub fn text_sections(&self, pairs: usize, interleaved: bool) -> Result<()> {
        const SECTIONS: &str = "rope.dimension_sections";
        let Some(sections) = self.root().counts(SECTIONS)?.filter(|s| s.len() >= 3) else { return Ok(()) };
        let all: usize = sections.iter().sum();
        let first: usize = sections[..3].iter().sum();
        let covered = |i: usize| if interleaved { i < 3 * sections[i % 3] } else { i < first };
        if all == 0 || !(0..pairs).map(|i| i % all).all(covered) {
            let found = format!("{sections:?}");
            return Err(self.bad_key(SECTIONS, found, format!("sections that cover all {pairs} pairs of a head")));
        }
        Ok(())
    }

    /// Rotates every head of `head` values by its row's position.
    ///
    /// # Errors
    /// If more columns are rotated than a head has.
    pub fn rope(&self, x: Slot, head: usize, rope: &Rope) -> Result<Slot> {
        debug_assert!(self.width(x).is_multiple_of(head));
        if rope.offset + rope.n_rot > head {
            return Err(self.bad_key(N_ROT, rope.n_rot, format!("no more than the {head} columns of a head")));
        }
        let op = RopeOp { rope: rope.clone(), head, key: rope.key() };
        Ok(self.push(op, &[x], &[self.width(x)], &[])[0])
    }
}
