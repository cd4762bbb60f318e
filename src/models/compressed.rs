//! What DeepSeek-V4 and its successor share: attention whose heads have one row per token, key and value in one, to a window and
//! to compressed rows of everything before; and their experts.
//!
//! Its last columns are rotated, so the attention output is rotated back before the grouped low-rank output projection. Layers
//! with compressed rows use a second rope base, and YaRN without its usual magnitude.

use anyhow::Result;

use super::blocks;
use crate::ops::{Attend, Experts, Extra, Gate, Hyper, Pairs, Rope, Route, Scaling};
use crate::tape::{Builder, Role, Slot};

/// The key that gives the tokens of a compressed row, for each layer.
pub(super) const RATIOS: &str = "attention.compress_ratios";

/// The residual streams.
pub(super) fn streams(b: &Builder) -> Result<Hyper> {
    Ok(Hyper {
        n: b.count("hyper_connection.count")?,
        width: b.count("embedding_length")?,
        rounds: Some(b.count_up_to("hyper_connection.sinkhorn_iterations", 1000)?),
        magnitude: 2.0,
        eps: b.number("hyper_connection.epsilon")?,
        norm_eps: b.eps()?,
    })
}

/// Tokens of a compressed row in this layer, 0 for a layer without any.
pub(super) fn ratio(b: &Builder) -> Result<usize> {
    if !b.has_key(RATIOS) {
        return Err(b.bad_key(RATIOS, "missing", "an entry for each layer"));
    }
    b.count_or_zero(RATIOS)
}

/// The rotation of the last columns of a `dim`-wide head.
pub(super) fn rope(b: &Builder, dim: usize, compressed: bool) -> Result<Rope> {
    let mut rope = b.rope_from_keys(dim, Pairs::Adjacent)?;
    let Some(offset) = dim.checked_sub(rope.n_rot) else {
        return Err(b.bad_key("rope.dimension_count", rope.n_rot, format!("no more than the {dim} columns of a head")));
    };
    rope.offset = offset;
    if compressed {
        rope.base = b.positive("attention.compress_rope_freq_base")?;
        if let Scaling::Yarn { magnitude, .. } = &mut rope.scaling {
            *magnitude = 1.0;
        }
    } else {
        rope.scaling = Scaling::None;
    }
    Ok(rope)
}

/// Attention of a layer.
#[derive(Clone, Debug)]
pub(super) struct OneRow {
    /// Query heads.
    pub heads: usize,
    /// Columns of a head and of a row.
    pub dim: usize,
    /// The rotation of both.
    pub rope: Rope,
}

impl OneRow {
    /// Of a layer with this rotation.
    pub(super) fn new(b: &Builder, dim: usize, rope: Rope) -> Result<OneRow> {
        Ok(OneRow { heads: b.count("attention.head_count")?, dim, rope })
    }

    /// The normed low-rank row (T, q_lora_rank), and what it gives, (T, heads * dim), not rotated yet.
    pub(super) fn queries(&self, b: &Builder, h: Slot) -> Result<(Slot, Slot)> {
        let low = b.linear(h, "attn_q_a", b.count("attention.q_lora_rank")?)?;
        let low = b.norm(low, "attn_q_a_norm", b.eps()?)?;
        Ok((low, b.linear(low, "attn_q_b", self.heads * self.dim)?))
    }

    /// The rotated row of each token: (T, dim).
    pub(super) fn row(&self, b: &Builder, h: Slot) -> Result<Slot> {
        let kv = b.norm(b.linear(h, "attn_kv", self.dim)?, "attn_kv_a_norm", b.eps()?)?;
        b.rope(kv, self.dim, &self.rope)
    }

    /// From rotated queries, and rows that this caches, to what the layer writes back: (T, n_embd).
    pub(super) fn build(&self, b: &Builder, (q, kv): (Slot, Slot), extra: Option<Extra>) -> Result<Slot> {
        let (heads, dim) = (self.heads, self.dim);
        let sinks = b.vector("attn_sinks.weight", &[heads])?;
        let kv = b.cache_shared(kv, dim, Some(b.tokens("attention.sliding_window")?))?;
        let a = b.attend(q, &kv, Attend::causal(heads).sinks(sinks).extra(extra))?; // (T, heads * dim)
        let a = b.rope(a, dim, &Rope { inverse: true, ..self.rope.clone() })?;
        let (groups, rank) = (b.count("attention.output_group_count")?, b.count("attention.output_lora_rank")?);
        let a = b.head_linear(a, "attn_output_a", groups, rank)?; // (T, groups * rank)
        b.linear(a, "attn_output_b", b.count("embedding_length")?)
    }
}

/// Experts of a square-root-softplus router, of which the first layers may be routed by token, and a shared one.
pub(super) fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let (n, k) = (b.count("expert_count")?, b.count("expert_used_count")?);
    if !b.has_key("swiglu_clamp_exp") {
        return Err(b.bad_key("swiglu_clamp_exp", "missing", "a limit for each layer, 0 for none"));
    }
    let clamp = b.number("swiglu_clamp_exp")?;
    let shared_clamp = b.number_or("swiglu_clamp_shexp", clamp)?;
    let gate = b.count("expert_gating_func")?;
    if gate != 4 {
        return Err(b.bad_key("expert_gating_func", gate, "4 (sqrt-softplus)"));
    }
    let route = Route {
        k,
        gate: Gate::SqrtSoftplus,
        norm: b.flag_or("expert_weights_norm", false)?,
        scale: b.expert_scale()?,
        groups: b.expert_groups()?,
    };
    b.ignore("exp_probs_b_vl.bias", "vision routing bias; text-only here");
    let (bias, table) = if b.layer() < b.count_or_zero("hash_layer_count")? {
        (None, Some(b.expert_table("ffn_gate_tid2eid.weight", k, n)?))
    } else {
        (Some(b.vector("exp_probs_b.bias", &[n])?), None)
    };
    let n_ff = b.count("expert_feed_forward_length")?;
    let logits = b.role(Role::Router).linear(h, "ffn_gate_inp", n)?; // (T, n)
    let chosen = b.route(logits, route, bias, table)?; // (T, k) each
    let y = b.experts("ffn", h, chosen, Experts { n, n_ff, glu: blocks::silu_clamped(clamp), weight_first: false })?;
    let n_shared = n_ff * b.count("expert_shared_count")?;
    Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_shared, blocks::silu_clamped(shared_clamp))?))
}
