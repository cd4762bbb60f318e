//! Blocks that many families are made of: plain functions, which a family calls or not. None of them knows a family.

use anyhow::Result;

use crate::ops::{Attend, Experts, Gate, Glu, Pairs, Rope, Route, Selected, Temperature};
use crate::tape::{Builder, Layer, Role, Slot, WeightId};

/// Which values of q and k are normed together, if any, with `attn_q_norm` and `attn_k_norm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Each head, before the rotation.
    Heads,
    /// Each head, after the rotation.
    RotatedHeads,
    /// Each head, after the rotation, without a weight.
    BareRotatedHeads,
    /// The whole row, before the rotation.
    Rows,
}

/// Grouped attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    /// Query heads, and key heads that they share.
    pub heads: (usize, usize),
    /// Columns of a head of q and k.
    pub dim: usize,
    /// Columns of a head of v.
    pub v_dim: usize,
    /// The rotation of queries and keys; None for a layer without one.
    pub rope: Option<Rope>,
    /// The norms of q and k.
    pub qk_norm: QkNorm,
    /// Positions that a token sees, itself included; None is all.
    pub window: Option<usize>,
    /// Whether the window cuts positions into chunks, of which a token sees its own.
    pub chunks: bool,
    /// Multiplies q . k; None is 1 / sqrt(dim).
    pub scale: Option<f32>,
    /// A score for each head that no value belongs to.
    pub sinks: Option<WeightId>,
    /// How `attn_gate` of the layer's rows, a column for each head or for each of its columns, gates the result.
    pub gate: Option<Glu>,
    /// What queries are multiplied by as positions grow.
    pub temperature: Option<Temperature>,
    /// The rows to attend to; None is all.
    pub selected: Option<Selected>,
}

impl Attention {
    /// Attention to all positions, in the shape and with the rotation that the metadata gives the layer.
    pub(super) fn new(b: &Builder, pairs: Pairs) -> Result<Attention> {
        let heads = b.heads()?;
        let dim = b.head_dim(heads.0, b.count("embedding_length")?)?;
        let v_dim = b.count_or("attention.value_length", dim)?;
        let rope = Some(b.rope_from_keys(dim, pairs)?);
        Ok(Attention {
            heads,
            dim,
            v_dim,
            rope,
            qk_norm: QkNorm::None,
            window: None,
            chunks: false,
            scale: None,
            sinks: None,
            gate: None,
            temperature: None,
            selected: None,
        })
    }

    /// The same attention to a window, rotated with nothing stretched by a base of its own (`rope.freq_base_swa`).
    pub(super) fn in_window(self, b: &Builder, window: usize) -> Result<Attention> {
        let own = self.rope.as_ref().map(|rope| b.windowed_rope(rope.n_rot, rope.pairs, rope.base));
        let rope = own.transpose()?;
        Ok(Attention { rope, window: Some(window), ..self })
    }

    /// From a layer's normed rows to what is added to the residual: `attn_q`, `attn_k`, `attn_v` (or `attn_qkv`),
    /// `attn_q_norm`, `attn_k_norm`, `attn_output`.
    pub(super) fn build(&self, b: &Builder, h: Slot) -> Result<Slot> {
        let b = &b.role(Role::Attention);
        let (n_embd, (heads, kv_heads), dim) = (b.width(h), self.heads, self.dim);
        let [q, k, v] = b.qkv(h, [heads * dim, kv_heads * dim, kv_heads * self.v_dim])?; // (T, heads * dim) ...
        let (q, k) = (self.turn(b, q, "attn_q_norm")?, self.turn(b, k, "attn_k_norm")?);
        let q = self.temperature.map_or(q, |t| b.temperature(q, t));
        let kv = b.cache(k, v, kv_heads, self.window)?;
        let mut attend = Attend::causal(heads).selected(self.selected);
        attend = self.scale.map_or(attend, |scale| attend.scale(scale));
        attend = self.sinks.map_or(attend, |sinks| attend.sinks(sinks));
        attend = if self.chunks { attend.in_chunks() } else { attend };
        let mut y = b.attend(q, &kv, attend)?; // (T, heads * v_dim)
        if let Some(gate) = self.gate {
            let each = b.shape("attn_gate.weight").is_some_and(|s| s[0] == heads);
            y = b.glu(gate, b.linear(h, "attn_gate", if each { heads } else { b.width(y) })?, y);
        }
        b.linear(y, "attn_output", n_embd)
    }

    /// Queries or keys, normed and rotated.
    fn turn(&self, b: &Builder, x: Slot, norm: &str) -> Result<Slot> {
        let x = match self.qk_norm {
            QkNorm::Heads => b.head_norm(x, norm, self.dim, b.eps()?)?,
            QkNorm::Rows => b.norm(x, norm, b.eps()?)?,
            QkNorm::None | QkNorm::RotatedHeads | QkNorm::BareRotatedHeads => x,
        };
        let x = self.rope.as_ref().map_or(Ok(x), |rope| b.rope(x, self.dim, rope))?;
        match self.qk_norm {
            QkNorm::RotatedHeads => b.head_norm(x, norm, self.dim, b.eps()?),
            QkNorm::BareRotatedHeads => Ok(b.bare_norm(x, self.dim, b.eps()?)),
            _ => Ok(x),
        }
    }
}

/// The temperature of attention that `attention.temperature_scale` asks for. It grows every `attention.temperature_length`
/// tokens, and where the file does not say that, every context of the original training.
pub(super) fn temperature(b: &Builder) -> Result<Option<Temperature>> {
    const EVERY: [&str; 3] = ["attention.temperature_length", "rope.scaling.original_context_length", "context_length"];
    let scale = b.number_or("attention.temperature_scale", 0.0)?;
    if scale == 0.0 {
        return Ok(None);
    }
    let every = EVERY.into_iter().find(|key| b.has_key(key)).unwrap_or(EVERY[0]);
    Ok(Some(Temperature { scale, every: b.tokens(every)?, offset: 0 }))
}

/// What YaRN multiplies by beyond the trained context, as transformers' `get_mscale`: 1 + 0.1 * log * ln(factor).
pub(super) fn mscale(factor: f32, log: f32) -> f32 {
    1.0 + 0.1 * log * factor.ln().max(0.0)
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

/// SwiGLU, clamped where a limit is given: 0 is none.
pub(super) fn silu_clamped(limit: f32) -> Glu {
    if limit > 1e-6 { Glu::SiluClamp(limit) } else { Glu::Silu }
}

/// SwiGLU, clamped after the gate's activation where a limit is given: 0 is none.
pub(super) fn silu_capped(limit: f32) -> Glu {
    if limit > 1e-6 { Glu::SiluCap(limit) } else { Glu::Silu }
}

/// A shared expert of this width inside, gated by a sigmoid of one column `ffn_gate_inp_shexp`.
pub(super) fn gated_shared(b: &Builder, h: Slot, n_ff: usize) -> Result<Slot> {
    let y = mlp(b, h, "_shexp", n_ff, Glu::Silu)?; // (T, n_embd)
    let gate = b.role(Role::Shared).linear(h, "ffn_gate_inp_shexp", 1)?; // (T, 1)
    Ok(b.glu(Glu::Sigmoid, gate, y))
}

/// The dense feed-forward layer of `feed_forward_length`.
pub(super) fn dense(b: &Builder, h: Slot, glu: Glu) -> Result<Slot> {
    mlp(b, h, "", b.count("feed_forward_length")?, glu)
}

/// Which of every N layers sees everything, where the others see a window only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    First,
    Last,
}

/// Which of `layers` see a window only: those that `sliding_window_pattern` lists; or of every N layers, `every` where
/// the file does not say, all but one.
pub(super) fn windowed(b: &Builder, layers: &[Layer], every: usize, full: Full) -> Result<Vec<bool>> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    if b.is_list(PATTERN) {
        return layers.iter().map(|l| l.scope(b).flag_or(PATTERN, false)).collect();
    }
    let every = b.count_or(PATTERN, every)?;
    let full = if full == Full::First { 0 } else { every - 1 };
    Ok(layers.iter().map(|l| l.i % every != full).collect())
}

/// The router's function, as `expert_gating_func` numbers it, or `default` where the file does not say.
pub(super) fn gating(b: &Builder, default: Gate) -> Result<Gate> {
    const FUNCTION: &str = "expert_gating_func";
    match b.count_or_zero(FUNCTION)? {
        0 => Ok(default),
        1 => Ok(Gate::Softmax),
        2 => Ok(Gate::Sigmoid),
        3 => Ok(Gate::SoftmaxOfChosen),
        4 => Ok(Gate::SqrtSoftplus),
        other => Err(b.bad_key(FUNCTION, other, "1 to 4 (softmax, sigmoid, softmax of the chosen, root of softplus)")),
    }
}

/// Routed experts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixture {
    /// The router.
    pub route: Route,
    /// The experts.
    pub experts: Experts,
    /// Whether the router adds `exp_probs_b.bias`, where the file has it, for the choice.
    pub bias: bool,
    /// How a layer's shared experts, if it has any, are activated.
    pub shared: Glu,
}

impl Mixture {
    /// The layer's experts, each `n_ff` wide inside, with a router whose weights sum to 1 where `norm` says so.
    pub(super) fn new(b: &Builder, gate: Gate, norm: bool, n_ff: usize) -> Result<Mixture> {
        let (k, groups) = (b.count("expert_used_count")?, b.expert_groups()?);
        let route = Route { k, gate, norm, scale: b.expert_scale()?, groups };
        let experts = Experts { n: b.count("expert_count")?, n_ff, glu: Glu::Silu, weight_first: false };
        Ok(Mixture { route, experts, bias: false, shared: Glu::Silu })
    }

    /// The layer's experts as the metadata describes the router too: its function, `gate` where the file does not say,
    /// and whether the weights are made to sum to 1.
    pub(super) fn from_keys(b: &Builder, gate: Gate) -> Result<Mixture> {
        let gate = gating(b, gate)?;
        let norm = b.flag_or("expert_weights_norm", false)?;
        Ok(Mixture { bias: true, ..Mixture::new(b, gate, norm, b.count("expert_feed_forward_length")?)? })
    }

    /// From a layer's normed rows to the weighted sum of the chosen experts: `ffn_gate_inp`, `ffn_*_exps`.
    pub(super) fn build(&self, b: &Builder, h: Slot) -> Result<Slot> {
        self.build_apart(b, h, h)
    }

    /// As [`Mixture::build`], with a router that reads `of_router` in place of `h`.
    pub(super) fn build_apart(&self, b: &Builder, of_router: Slot, h: Slot) -> Result<Slot> {
        let n = self.experts.n;
        let logits = b.role(Role::Router).linear(of_router, "ffn_gate_inp", n)?; // (T, n)
        // Some converters leave out the suffix.
        let bias = if b.has("exp_probs_b") { "exp_probs_b" } else { "exp_probs_b.bias" };
        let bias = if self.bias { b.opt_vector(bias, &[n])? } else { None };
        let chosen = b.route(logits, self.route, bias, None)?; // (T, k) each
        b.experts("ffn", h, chosen, self.experts)
    }

    /// The weighted sum of the chosen experts and the shared ones, which every token takes.
    pub(super) fn build_with_shared(&self, b: &Builder, h: Slot) -> Result<Slot> {
        let y = self.build(b, h)?;
        let n = b.count_or_zero("expert_shared_count")?;
        let width = match b.count_or_zero("expert_shared_feed_forward_length")? {
            0 => n.max(1) * self.experts.n_ff,
            all => all,
        };
        // Files of a kind where there may be none have 0 or nothing for both.
        if n == 0 && !b.has("ffn_up_shexp.weight") {
            return Ok(y);
        }
        Ok(b.add(y, mlp(b, h, "_shexp", width, self.shared)?))
    }
}

/// Whether the layer's feed-forward part is dense: one of the leading ones that the metadata counts, or without a router.
pub(super) fn is_dense(b: &Builder) -> Result<bool> {
    Ok(b.layer() < b.count_or_zero("leading_dense_block_count")? || !b.has("ffn_gate_inp.weight"))
}

/// A dense layer, or experts as the metadata describes them with shared ones: SwiGLU all of them.
pub(super) fn feed_forward(b: &Builder, h: Slot, gate: Gate) -> Result<Slot> {
    if is_dense(b)? { dense(b, h, Glu::Silu) } else { Mixture::from_keys(b, gate)?.build_with_shared(b, h) }
}
