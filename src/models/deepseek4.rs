//! DeepSeek-V4: four residual streams joined by hyper-connections; attention over a sliding window plus compressed
//! rows of everything before (one row per 4 tokens, chosen by an indexer, or one per 128, all of them); sqrt-softplus
//! routing with the first layers routed by token.
//!
//! Key and value are one 512-wide row shared by all heads. Its last columns are rotated, so the attention output is
//! rotated back before the grouped low-rank output projection. Layers with compression use a second rope base, and
//! YaRN without its usual magnitude.

use anyhow::Result;

use crate::ops::{Attend, Compress, Experts, Extra, Gate, Glu, Hyper, Index, Pairs, Part, Rope, Route, Scaling};
use crate::tape::{Builder, Layer, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let eps = b.eps()?;
    let hyper = Hyper {
        n: b.n("hyper_connection.count")?,
        width: n_embd,
        rounds: b.n_to("hyper_connection.sinkhorn_iterations", 1000)?,
        eps: b.f("hyper_connection.epsilon")?,
        norm_eps: eps,
    };
    let layers = b.layers()?;
    let Some(ratios) = b.per_layer_n("attention.compress_ratios", layers.len())? else {
        return Err(b.bad_key("attention.compress_ratios", "missing", "an entry for each layer"));
    };

    let x = b.embed("token_embd", n_embd)?; // (T, n_embd)
    let mut s = b.pack("hc_init".into(), hyper.n, &[Part { x, stride: 0, offset: 0, len: n_embd }])?; // (T, n * n_embd)
    for l in layers {
        let (h, back) = b.hyper_pre(&l.w("hc_attn"), s, hyper)?; // (T, n_embd)
        let h = b.norm(h, &l.w("attn_norm"), eps)?;
        let a = attention(b, &l, h, eps, ratios[l.i])?;
        let [a, from, back] = b.wanted_in_last(&l, [a, s, back]);
        s = b.hyper_post(l.w("hc_attn_post"), a, from, back, hyper);

        let (h, back) = b.hyper_pre(&l.w("hc_ffn"), s, hyper)?;
        let h = b.norm(h, &l.w("ffn_norm"), eps)?;
        let y = mixture(b, &l, h)?;
        s = b.hyper_post(l.w("hc_ffn_post"), y, s, back, hyper);
    }
    let x = b.hyper_head("output_hc", s, hyper)?; // (W, n_embd)
    b.head(b.norm(x, "output_norm", eps)?, "output", "token_embd") // (W, n_vocab)
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

fn attention(b: &Builder, l: &Layer, h: Slot, eps: f32, ratio: usize) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let heads = b.n("attention.head_count")?;
    let dim = b.n("attention.key_length")?;
    let rot = rope(b, dim, ratio != 0)?;
    let q_low = b.linear(h, &l.w("attn_q_a"), b.n("attention.q_lora_rank")?)?;
    let q_low = b.norm(q_low, &l.w("attn_q_a_norm"), eps)?; // (T, q_lora_rank)
    let q = b.linear(q_low, &l.w("attn_q_b"), heads * dim)?; // (T, heads * dim)
    let q = b.rope(l.w("q_rope"), b.bare_norm(l.w("q_norm"), q, dim, eps), dim, &rot)?;
    let kv = b.norm(b.linear(h, &l.w("attn_kv"), dim)?, &l.w("attn_kv_a_norm"), eps)?; // (T, dim)
    let kv = b.rope(l.w("kv_rope"), kv, dim, &rot)?;

    let compress = |name: &str, dim: usize| {
        let overlap = ratio == 4;
        let c = Compress { ratio, dim, overlap, eps, rope: rope(b, dim, true)? };
        let wide = dim * (1 + overlap as usize);
        let rows = b.linear(h, &l.w(&format!("{name}_kv")), wide)?;
        let scores = b.linear(h, &l.w(&format!("{name}_gate")), wide)?;
        b.compress(&l.w(name), c, rows, scores)
    };
    let extra = match ratio {
        0 => None,
        128 => Some(Extra { state: compress("attn_compressor", dim)?, every: ratio, select: None }),
        4 => {
            let state = compress("attn_compressor", dim)?;
            let (n, dim) = (b.n("attention.indexer.head_count")?, b.n("attention.indexer.key_length")?);
            let keys = compress("indexer_compressor", dim)?;
            let q = b.linear(q_low, &l.w("indexer.attn_q_b"), n * dim)?; // (T, n * dim)
            let q = b.rope(l.w("indexer.q_rope"), q, dim, &rope(b, dim, true)?)?;
            let weights = b.linear(h, &l.w("indexer.proj"), n)?; // (T, n)
            let x = Index { heads: n, dim, k: b.n("attention.indexer.top_k")?, every: ratio };
            let select = Some(b.index(l.w("indexer.top_k"), x, q, weights, keys)?); // (T, top_k)
            Some(Extra { state, every: ratio, select })
        }
        other => return Err(b.bad_key("attention.compress_ratios", other, format!("0, 4 or 128 in layer {}", l.i))),
    };
    let sinks = b.vector(&l.w("attn_sinks.weight"), &[heads])?;
    let window = Some(b.tokens("attention.sliding_window")?);
    let scale = 1.0 / (dim as f32).sqrt();
    let attend = Attend { heads, kv_heads: 1, k_dim: dim, v_dim: dim, scale, window, soft_cap: None };
    let a = b.attend(l.w("attn"), attend, (q, kv, None), Some(sinks), extra)?; // (T, heads * dim)
    let a = b.rope(l.w("attn_derope"), a, dim, &Rope { inverse: true, ..rot })?;
    let (groups, rank) = (b.n("attention.output_group_count")?, b.n("attention.output_lora_rank")?);
    let a = b.head_linear(a, &l.w("attn_output_a"), groups, rank)?; // (T, groups * rank)
    b.linear(a, &l.w("attn_output_b"), n_embd)
}

fn mixture(b: &Builder, l: &Layer, h: Slot) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let (n_expert, k) = (b.n("expert_count")?, b.n("expert_used_count")?);
    let layers = l.i + 1;
    let glu = |limit: f32| if limit > 1e-6 { Glu::SiluClamp(limit) } else { Glu::Silu };
    let Some(clamps) = b.per_layer("swiglu_clamp_exp", layers)? else {
        return Err(b.bad_key("swiglu_clamp_exp", "missing", "a limit for each layer, 0 for none"));
    };
    let clamp = clamps[l.i];
    let shared_clamp = b.per_layer("swiglu_clamp_shexp", layers)?.map_or(clamp, |v| v[l.i]);
    let gate = b.n("expert_gating_func")?;
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
    b.ignore(&l.w("exp_probs_b_vl.bias"), "it routes images");
    let (bias, table) = if l.i < b.opt_n("hash_layer_count")?.unwrap_or(0) {
        (None, Some(b.expert_table(&l.w("ffn_gate_tid2eid.weight"), k, n_expert)?))
    } else {
        (Some(b.vector(&l.w("exp_probs_b.bias"), &[n_expert])?), None)
    };
    let n_ff = b.n("expert_feed_forward_length")?;
    let logits = b.linear(h, &l.w("ffn_gate_inp"), n_expert)?; // (T, n_expert)
    let chosen = b.route(l.w("ffn_moe_topk"), logits, route, bias, table)?; // (T, k) each
    let y = b.experts(&l.w("ffn"), h, chosen, Experts { n: n_expert, n_ff, glu: glu(clamp) })?;
    let n_shared = n_ff * b.n("expert_shared_count")?;
    let names = ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"];
    let shared = b.swiglu(l, h, names, n_shared, n_embd, glu(shared_clamp))?;
    Ok(b.add(l.w("ffn_out"), y, shared))
}
