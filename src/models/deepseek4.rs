//! DeepSeek-V4: four residual streams joined by hyper-connections; attention over a sliding window plus compressed
//! rows of everything before (one row per 4 tokens, chosen by an indexer, or one per 128, all of them); sqrt-softplus
//! routing with the first layers routed by token.
//!
//! Key and value are one 512-wide row shared by all heads. Its last columns are rotated, so the attention output is
//! rotated back before the grouped low-rank output projection. Layers with compression use a second rope base, and
//! YaRN without its usual magnitude.

use anyhow::Result;

use super::blocks;
use super::heads::Frame;
use crate::ops::{Attend, Compress, Experts, Extra, Gate, Hyper, Index, Pairs, Piece, Rope, Route, Scaling};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.count("embedding_length")?;
    let eps = b.eps()?;
    let hyper = Hyper {
        n: b.count("hyper_connection.count")?,
        width: n_embd,
        rounds: Some(b.count_up_to("hyper_connection.sinkhorn_iterations", 1000)?),
        magnitude: 2.0,
        eps: b.number("hyper_connection.epsilon")?,
        norm_eps: eps,
    };
    let x = b.embed()?; // (T, n_embd)
    let mut s = b.pack(hyper.n, &[Piece { x, stride: 0, offset: 0, len: n_embd }])?; // (T, n * n_embd)
    for l in b.layers()? {
        s = layer(&l.scope(b), s, hyper)?;
    }
    let join = |b: &Builder, s: Slot| b.root().hyper_head("output_hc", s, hyper);
    let x = join(b, s)?; // (output rows, n_embd)
    let logits = b.head(b.norm(x, "output_norm", eps)?)?; // (output rows, n_vocab)
    let frame = Frame { streams: hyper.n, join: &join, ..Frame::residual() };
    frame.record(b, (logits, s), |b, s| layer(b, s, hyper))
}

/// A layer, from the streams to the streams: (T, n * n_embd).
fn layer(b: &Builder, s: Slot, hyper: Hyper) -> Result<Slot> {
    let eps = b.eps()?;
    let (h, back) = b.hyper_pre("hc_attn", s, hyper)?; // (T, n_embd)
    let h = b.norm(h, "attn_norm", eps)?;
    let a = attention(&b.role(Role::Attention), h, eps)?;
    let s = b.hyper_post(a, s, back);

    let (h, back) = b.hyper_pre("hc_ffn", s, hyper)?;
    let h = b.norm(h, "ffn_norm", eps)?;
    Ok(b.hyper_post(mixture(b, h)?, s, back))
}

/// The rotation of the last columns of a `dim`-wide head.
fn rope(b: &Builder, dim: usize, compressed: bool) -> Result<Rope> {
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

fn attention(b: &Builder, h: Slot, eps: f32) -> Result<Slot> {
    const RATIOS: &str = "attention.compress_ratios";
    let n_embd = b.count("embedding_length")?;
    let heads = b.count("attention.head_count")?;
    let dim = b.count("attention.key_length")?;
    if !b.has_key(RATIOS) {
        return Err(b.bad_key(RATIOS, "missing", "an entry for each layer"));
    }
    let ratio = b.count_or_zero(RATIOS)?;
    let rot = rope(b, dim, ratio != 0)?;
    let q_low = b.linear(h, "attn_q_a", b.count("attention.q_lora_rank")?)?;
    let q_low = b.norm(q_low, "attn_q_a_norm", eps)?; // (T, q_lora_rank)
    let q = b.linear(q_low, "attn_q_b", heads * dim)?; // (T, heads * dim)
    let q = b.rope(b.bare_norm(q, dim, eps), dim, &rot)?;
    let kv = b.norm(b.linear(h, "attn_kv", dim)?, "attn_kv_a_norm", eps)?; // (T, dim)
    let kv = b.rope(kv, dim, &rot)?;

    let compress = |name: &str, dim: usize| {
        let overlap = ratio == 4;
        let norm = Some((b.vector(&format!("{name}_norm.weight"), &[dim])?, eps));
        let c = Compress { ratio, dim, overlap, norm, rope: Some(rope(b, dim, true)?) };
        let wide = dim * (1 + overlap as usize);
        let rows = b.linear(h, &format!("{name}_kv"), wide)?;
        let scores = b.linear(h, &format!("{name}_gate"), wide)?;
        b.compress(name, c, rows, Some(scores))
    };
    let extra = match ratio {
        0 => None,
        128 => Some(Extra { state: compress("attn_compressor", dim)?, every: ratio, select: None }),
        4 => {
            let state = compress("attn_compressor", dim)?;
            let (n, dim) = (b.count("attention.indexer.head_count")?, b.count("attention.indexer.key_length")?);
            let keys = compress("indexer_compressor", dim)?;
            let q = b.linear(q_low, "indexer.attn_q_b", n * dim)?; // (T, n * dim)
            let q = b.rope(q, dim, &rope(b, dim, true)?)?;
            let weights = b.linear(h, "indexer.proj", n)?; // (T, n)
            let x = Index { heads: n, dim, k: b.count("attention.indexer.top_k")?, every: ratio, open: false };
            let select = Some(b.index(x, q, Some(weights), keys)?); // (T, top_k)
            Some(Extra { state, every: ratio, select })
        }
        other => return Err(b.bad_key(RATIOS, other, format!("0, 4 or 128 in layer {}", b.layer()))),
    };
    let sinks = b.vector("attn_sinks.weight", &[heads])?;
    let kv = b.cache_shared(kv, dim, Some(b.tokens("attention.sliding_window")?))?;
    let a = b.attend(q, &kv, Attend::causal(heads).sinks(sinks).extra(extra))?; // (T, heads * dim)
    let a = b.rope(a, dim, &Rope { inverse: true, ..rot })?;
    let (groups, rank) = (b.count("attention.output_group_count")?, b.count("attention.output_lora_rank")?);
    let a = b.head_linear(a, "attn_output_a", groups, rank)?; // (T, groups * rank)
    b.linear(a, "attn_output_b", n_embd)
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
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
