//! Blocks that many families are made of: plain functions, which a family calls or not. None of them knows a family.

use anyhow::Result;

use crate::ops::{Attend, Experts, Gate, Glu, Pairs, Rope, Route};
use crate::tape::{Builder, Layer, Role, Slot, WeightId};

/// Grouped attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    /// Query heads, and key heads that they share.
    pub heads: (usize, usize),
    /// Columns of a head.
    pub dim: usize,
    /// The rotation of queries and keys; None for a layer without one.
    pub rope: Option<Rope>,
    /// Whether each head of q and k is normed before the rotation.
    pub qk_norm: bool,
    /// Of those norms.
    pub eps: f32,
    /// Positions that a token sees, itself included; None is all.
    pub window: Option<usize>,
    /// Multiplies q . k; None is 1 / sqrt(dim).
    pub scale: Option<f32>,
    /// A score for each head that no value belongs to.
    pub sinks: Option<WeightId>,
}

impl Attention {
    /// Attention to all positions, in the shape and with the rotation that the metadata gives the layer.
    pub(super) fn new(b: &Builder, pairs: Pairs) -> Result<Attention> {
        let heads = b.heads()?;
        let dim = b.head_dim(heads.0, b.count("embedding_length")?)?;
        let rope = Some(b.rope_from_keys(dim, pairs)?);
        Ok(Attention { heads, dim, rope, qk_norm: false, eps: b.eps()?, window: None, scale: None, sinks: None })
    }

    /// From a layer's normed rows to what is added to the residual: `attn_q`, `attn_k`, `attn_v` (or `attn_qkv`),
    /// `attn_q_norm`, `attn_k_norm`, `attn_output`.
    pub(super) fn build(&self, b: &Builder, h: Slot) -> Result<Slot> {
        let b = &b.role(Role::Attention);
        let (n_embd, (heads, kv_heads), dim) = (b.width(h), self.heads, self.dim);
        let [q, k, v] = b.qkv(h, [heads * dim, kv_heads * dim, kv_heads * dim])?; // (T, heads * dim) ...
        let turn = |x: Slot, name: &str| {
            let x = if self.qk_norm { b.head_norm(x, name, dim, self.eps)? } else { x };
            self.rope.as_ref().map_or(Ok(x), |rope| b.rope(x, dim, rope))
        };
        let (q, k) = (turn(q, "attn_q_norm")?, turn(k, "attn_k_norm")?);
        let kv = b.cache(k, v, kv_heads, self.window)?;
        let mut attend = Attend::causal(heads);
        attend = self.scale.map_or(attend, |scale| attend.scale(scale));
        attend = self.sinks.map_or(attend, |sinks| attend.sinks(sinks));
        b.linear(b.attend(q, &kv, attend)?, "attn_output", n_embd)
    }
}

/// A feed-forward layer `NAME_gate`, `NAME_up`, `NAME_down` with the suffix after it: `down(glu(gate(h), up(h)))`.
pub(super) fn mlp(b: &Builder, h: Slot, suffix: &str, n_ff: usize, glu: Glu) -> Result<Slot> {
    let b = &b.role(if suffix.is_empty() { Role::Dense } else { Role::Shared });
    let name = |part: &str| format!("ffn_{part}{suffix}");
    let inner = match glu.has_gate() {
        true => b.glu(glu, b.linear(h, &name("gate"), n_ff)?, b.linear(h, &name("up"), n_ff)?),
        false => b.activate(glu, b.linear(h, &name("up"), n_ff)?),
    }; // (T, n_ff)
    b.linear(inner, &name("down"), b.width(h))
}

/// The dense feed-forward layer of `feed_forward_length`.
pub(super) fn dense(b: &Builder, h: Slot, glu: Glu) -> Result<Slot> {
    mlp(b, h, "", b.count("feed_forward_length")?, glu)
}

/// Which of `layers` see a window only: those that `sliding_window_pattern` lists; or of every N layers, `every` where
/// the file does not say, all but the last.
pub(super) fn windowed(b: &Builder, layers: &[Layer], every: usize) -> Result<Vec<bool>> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    if b.is_list(PATTERN) {
        return layers.iter().map(|l| l.scope(b).flag_or(PATTERN, false)).collect();
    }
    let every = b.count_or(PATTERN, every)?;
    Ok(layers.iter().map(|l| l.i % every < every - 1).collect())
}

/// The router's function, as `expert_gating_func` numbers it.
pub(super) fn gating(b: &Builder) -> Result<Gate> {
    match b.count("expert_gating_func")? {
        1 => Ok(Gate::Softmax),
        2 => Ok(Gate::Sigmoid),
        other => Err(b.bad_key("expert_gating_func", other, "1 (softmax) or 2 (sigmoid)")),
    }
}

/// Routed experts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixture {
    /// The router.
    pub route: Route,
    /// The experts.
    pub experts: Experts,
    /// Whether the router adds `exp_probs_b.bias` for the choice.
    pub bias: bool,
}

impl Mixture {
    /// The layer's experts, each `n_ff` wide inside, with a router whose weights sum to 1 where `norm` says so.
    pub(super) fn new(b: &Builder, gate: Gate, norm: bool, n_ff: usize) -> Result<Mixture> {
        let (k, groups) = (b.count("expert_used_count")?, b.expert_groups()?);
        let route = Route { k, gate, norm, scale: b.expert_scale()?, groups };
        Ok(Mixture { route, experts: Experts { n: b.count("expert_count")?, n_ff, glu: Glu::Silu }, bias: false })
    }

    /// From a layer's normed rows to the weighted sum of the chosen experts: `ffn_gate_inp`, `ffn_*_exps`.
    pub(super) fn build(&self, b: &Builder, h: Slot) -> Result<Slot> {
        self.build_on(b, h, h)
    }

    /// The same with experts that read `x` in place of `h`, which is then the router's alone: as
    /// wide as `x`.
    pub(super) fn build_on(&self, b: &Builder, h: Slot, x: Slot) -> Result<Slot> {
        let n = self.experts.n;
        let logits = b.role(Role::Router).linear(h, "ffn_gate_inp", n)?; // (T, n)
        let bias = if self.bias { b.opt_vector("exp_probs_b.bias", &[n])? } else { None };
        let chosen = b.route(logits, self.route, bias, None)?; // (T, k) each
        b.experts("ffn", x, chosen, self.experts)
    }
}
