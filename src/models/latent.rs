//! Latent attention (MLA), which many families share: keys and values are cached as one latent row per token.
//!
//! ```text
//! c            = norm(attn_kv_a_mqa(h)[..latent])             the rest of that row is rotated, for all heads alike
//! query head   = (attn_k_b (plain part), rotated part)        in the space of the latent rows
//! out          = attn_v_b (attention over the rows (c, rotated), whose values are c)
//! ```
//! So attention runs over the latent rows as over a single key head. Files of an older layout have both matrices in one
//! `attn_kv_b`; there keys and values are expanded and cached in full.
//!
//! An indexer in front of it (DeepSeek sparse attention) chooses the rows that each token attends to.

use anyhow::Result;

use super::blocks::{mscale, temperature};
use crate::ops::{Attend, Index, Pairs, Piece, Rope, Scaling, Selected, Temperature};
use crate::tape::{Builder, Role, Slot, WeightId};

/// Latent attention of a model.
#[derive(Clone, Debug)]
pub(super) struct Latent {
    /// Query heads.
    pub heads: usize,
    /// Columns of a latent row.
    pub latent: usize,
    /// Columns of a query head.
    pub k_dim: usize,
    /// Columns of a value head.
    pub v_dim: usize,
    /// Columns of a query head, its last, that meet the keys as they are, and not in the latent space.
    pub n_rot: usize,
    /// Their rotation; None for a model without one.
    pub rope: Option<Rope>,
    /// Multiplies q . k.
    pub scale: f32,
    /// What queries are multiplied by as positions grow.
    pub temperature: Option<Temperature>,
    /// A score for each head that no value belongs to.
    pub sinks: Option<WeightId>,
    /// Of the norms.
    pub eps: f32,
}

impl Latent {
    /// The shape that the metadata gives, with the last `rope.dimension_count` columns of a head rotated.
    pub(super) fn new(b: &Builder) -> Result<Latent> {
        const N_ROT: &str = "rope.dimension_count";
        let (k_key, v_key) = if b.has_key("attention.key_length_mla") {
            ("attention.key_length_mla", "attention.value_length_mla")
        } else {
            ("attention.key_length", "attention.value_length")
        };
        let (k_dim, v_dim) = (b.count(k_key)?, b.count(v_key)?);
        let (heads, latent) = (b.count("attention.head_count")?, b.count("attention.kv_lora_rank")?);
        let n_rot = b.count_or_zero(N_ROT)?;
        if n_rot >= k_dim {
            return Err(b.bad_key(N_ROT, n_rot, format!("fewer than the {k_dim} columns of a head")));
        }
        let rope = if n_rot == 0 { None } else { Some(b.rope_from_keys(n_rot, Pairs::Adjacent)?) };
        let scale = 1.0 / (k_dim as f32).sqrt();
        let (temperature, sinks, eps) = (None, None, b.eps()?);
        Ok(Latent { heads, latent, k_dim, v_dim, n_rot, rope, scale, temperature, sinks, eps })
    }

    /// With the scores scaled as YaRN and the temperature want it. When a file gives `yarn_log_multiplier`
    /// (0.1 * mscale_all_dim), the scores grow by mscale(mscale_all_dim) squared, and cos and sin by
    /// mscale(1) / mscale(mscale_all_dim), or with `cancel` not at all: there the original has both corrections alike.
    pub(super) fn scaled(b: &Builder, cancel: bool) -> Result<Latent> {
        let mut latent = Latent::new(b)?;
        latent.temperature = temperature(b)?;
        let by = match latent.rope.as_mut().map(|rope| &mut rope.scaling) {
            None => return Err(b.bad_key("rope.dimension_count", 0, "some columns of a head")),
            Some(Scaling::None) => 1.0,
            Some(Scaling::Linear(_) | Scaling::Long(_)) => {
                return Err(b.bad_key("rope.scaling.type", "another", "none or yarn in a model of this kind"));
            }
            Some(Scaling::Yarn { factor, magnitude, .. }) => {
                let log = b.number_or("rope.scaling.yarn_log_multiplier", 0.0)? / 0.1;
                if log != 0.0 {
                    let usual = if cancel { 1.0 } else { mscale(*factor, 1.0) / mscale(*factor, log) };
                    *magnitude = b.positive_or("rope.scaling.attn_factor", 1.0)? * usual;
                }
                *magnitude * mscale(*factor, log)
            }
        };
        latent.scale = by * by / (latent.k_dim as f32).sqrt();
        Ok(latent)
    }

    /// The normed low-rank row that queries are made of: `attn_q_a`, `attn_q_a_norm`; None where the file has none.
    pub(super) fn low_rank(&self, b: &Builder, h: Slot) -> Result<Option<Slot>> {
        if !b.has("attn_q_a.weight") {
            return Ok(None);
        }
        let q = b.linear(h, "attn_q_a", b.count("attention.q_lora_rank")?)?;
        b.norm(q, "attn_q_a_norm", self.eps).map(Some) // (T, q_lora_rank)
    }

    /// From a layer's normed rows to its heads' values, (T, heads * v_dim), which `attn_output` multiplies. `low` is what
    /// [`Latent::low_rank`] gave; `selected` are the rows to attend to.
    pub(super) fn build(&self, b: &Builder, h: Slot, low: Option<Slot>, selected: Option<Selected>) -> Result<Slot> {
        let (heads, latent, n_rot, k_dim) = (self.heads, self.latent, self.n_rot, self.k_dim);
        let plain = k_dim - n_rot;
        let split = b.has("attn_k_b.weight");
        if split {
            b.ignore("attn_kv_b.", "attn_k_b and attn_v_b hold the same");
        }
        let mut attend = Attend::causal(heads).scale(self.scale).selected(selected);
        attend = self.sinks.map_or(attend, |sinks| attend.sinks(sinks));

        let q = match low {
            Some(low) => b.linear(low, "attn_q_b", heads * k_dim)?,
            None => b.linear(h, "attn_q", heads * k_dim)?,
        }; // (T, heads * (plain | rotated))
        let kv = b.linear(h, "attn_kv_a_mqa", latent + n_rot)?; // (T, latent | rotated)
        let c = if n_rot == 0 { kv } else { b.columns(kv, 0, latent)? };
        let c = b.norm(c, "attn_kv_a_norm", self.eps)?; // (T, latent)
        let turn = |x: Slot| self.rope.as_ref().map_or(Ok(x), |rope| b.rope(x, n_rot, rope));
        let part = |offset, len| b.pack(heads, &[Piece { x: q, stride: k_dim, offset, len }]);
        let (q, turned) = match n_rot {
            0 => (q, None),
            _ => {
                let k = turn(b.columns(kv, latent, n_rot)?)?; // (T, n_rot)
                (part(0, plain)?, Some((turn(part(plain, n_rot)?)?, k))) // (T, heads * plain), (T, heads * n_rot)
            }
        };
        // Heads of `len` columns of their own, then the rotated columns.
        let join = |x: Slot, len: usize, heads: usize, turned: Option<(Slot, usize)>| {
            let own = Piece { x, stride: len, offset: 0, len };
            match turned {
                Some((x, stride)) => b.pack(heads, &[own, Piece { x, stride, offset: 0, len: n_rot }]),
                None => Ok(x),
            }
        };
        let (q_turned, k_turned) = (turned.map(|t| (t.0, n_rot)), turned.map(|t| (t.1, 0)));
        let warm = |q: Slot| self.temperature.map_or(q, |t| b.temperature(q, t));
        if split {
            let q = b.head_linear(q, "attn_k_b", heads, latent)?; // (T, heads * latent)
            let q = warm(join(q, latent, heads, q_turned)?);
            let k = join(c, latent, 1, k_turned)?; // (T, latent + n_rot)
            let a = b.attend(q, &b.cache_shared(k, latent, None)?, attend)?; // (T, heads * latent)
            return b.head_linear(a, "attn_v_b", heads, self.v_dim);
        }
        let kv = b.linear(c, "attn_kv_b", heads * (plain + self.v_dim))?; // (T, heads * (k plain | v))
        let part = |offset, len| Piece { x: kv, stride: plain + self.v_dim, offset, len };
        let k = join(b.pack(heads, &[part(0, plain)])?, plain, heads, k_turned)?; // (T, heads * k_dim)
        let v = b.pack(heads, &[part(plain, self.v_dim)])?; // (T, heads * v_dim)
        let q = warm(join(q, plain, heads, q_turned)?);
        b.attend(q, &b.cache(k, v, heads, None)?, attend)
    }
}

/// The indexer in front of latent attention: it scores every row before a token and chooses the best.
#[derive(Clone, Debug)]
pub(super) struct Indexer {
    /// Its heads, and how many rows it chooses.
    pub index: Index,
    /// The rotation of its queries and keys.
    pub rope: Rope,
    /// Of the LayerNorm over keys.
    pub eps: f32,
}

impl Indexer {
    /// The shape that the metadata gives.
    pub(super) fn new(b: &Builder, rope: Rope, eps: f32) -> Result<Indexer> {
        let (heads, dim) = (b.count("attention.indexer.head_count")?, b.count("attention.indexer.key_length")?);
        let k = b.count("attention.indexer.top_k")?;
        Ok(Indexer { index: Index { heads, dim, k, every: 1, open: false }, rope, eps })
    }

    /// The rows that each token attends to, from a layer's normed rows and the low-rank queries: `indexer.attn_q_b`,
    /// `indexer.attn_k`, `indexer.k_norm`, `indexer.proj`.
    pub(super) fn build(&self, b: &Builder, h: Slot, low: Option<Slot>) -> Result<Selected> {
        let b = &b.role(Role::Attention);
        b.need("attn_q_a.weight")?;
        let low = low.expect("what attn_q_a gives");
        let (Index { heads, dim, .. }, rope) = (self.index, &self.rope);
        let q = b.rope(b.linear(low, "indexer.attn_q_b", heads * dim)?, dim, rope)?; // (T, heads * dim)
        b.need("indexer.k_norm.bias")?;
        let k = b.layer_norm(b.linear(h, "indexer.attn_k", dim)?, "indexer.k_norm", self.eps)?; // (T, dim)
        let keys = b.cache_rows("indexer.k", b.rope(k, dim, rope)?)?;
        let weights = b.linear(h, "indexer.proj", heads)?; // (T, heads)
        let blocks = b.index(self.index, q, Some(weights), keys)?; // (T, k)
        Ok(Selected { blocks, size: 1, lists: 1 })
    }

    /// The rows of a layer that `attention.indexer.types` gives an indexer of its own, which it does to those that are
    /// `full` where the file does not say; for the others those that the last such layer chose.
    pub(super) fn build_or_last(
        &self,
        b: &Builder,
        (h, low): (Slot, Option<Slot>),
        full: bool,
        last: &mut Option<Selected>,
    ) -> Result<Option<Selected>> {
        const TYPES: &str = "attention.indexer.types";
        if b.flag_or(TYPES, full)? {
            *last = Some(self.build(b, h, low)?);
        }
        if last.is_none() {
            return Err(b.bad_key(TYPES, false, "true for the first layer with such attention"));
        }
        Ok(*last)
    }
}
