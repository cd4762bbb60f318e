//! DeepSeek V2, V3, R1, Kimi K2 and kin: latent attention; leading dense layers, then a grouped router with a shared
//! expert.
//!
//! Keys and values are cached as one latent row per token. `attn_k_b` moves the query into the latent space and
//! `attn_v_b` moves the result out of it, so attention runs over the latent rows as over a single key head. Files of
//! the older layout have both in one `attn_kv_b`; there keys and values are expanded and cached in full.

use anyhow::Result;

use crate::ops::{Attend, Experts, Gate, Glu, Pairs, Part, Rope, Route, Scaling};
use crate::tape::{Builder, Layer, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let eps = b.eps()?;
    let n_dense = b.opt_n("leading_dense_block_count")?.unwrap_or(0);
    let by_position = b.f_or("attention.temperature_scale", 0.0)?;
    if by_position != 0.0 {
        let want = "none: this version does not scale attention with the position";
        return Err(b.bad_key("attention.temperature_scale", by_position, want));
    }

    let mut x = b.embed("token_embd", n_embd)?; // (T, n_embd)
    for l in b.layers()? {
        let h = b.norm(x, &l.w("attn_norm"), eps)?;
        let [from, a] = b.wanted_in_last(&l, [x, attention(b, &l, h, eps)?]);
        x = b.add(l.w("ffn_inp"), from, a);

        let h = b.norm(x, &l.w("ffn_norm"), eps)?;
        let y = if l.i < n_dense {
            let n_ff = b.n("feed_forward_length")?;
            b.swiglu(&l, h, ["ffn_gate", "ffn_up", "ffn_down"], n_ff, n_embd, Glu::Silu)?
        } else {
            mixture(b, &l, h)?
        };
        x = b.add(l.w("l_out"), x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?, "output", "token_embd") // (W, n_vocab)
}

/// The rotation, and what the softmax scale must be multiplied with. YaRN in these models stretches the softmax scale
/// by mscale squared and, when the file gives `yarn_log_multiplier` (0.1 * mscale_all_dim), leaves cos and sin alone:
/// there the two corrections of the original cancel.
fn yarn(b: &Builder, n_rot: usize) -> Result<(Rope, f32)> {
    let mut rope = b.rope_from_keys(n_rot, Pairs::Adjacent)?;
    match &mut rope.scaling {
        Scaling::None => Ok((rope, 1.0)),
        Scaling::Linear(_) => Err(b.bad_key("rope.scaling.type", "linear", "none or yarn in a model of this kind")),
        Scaling::Yarn { factor, magnitude, .. } => {
            let log = b.f_or("rope.scaling.yarn_log_multiplier", 0.0)? / 0.1;
            if log != 0.0 {
                *magnitude = b.positive_or("rope.scaling.attn_factor", 1.0)?;
            }
            let mscale = *magnitude * (1.0 + 0.1 * log * factor.ln());
            Ok((rope, mscale * mscale))
        }
    }
}

fn attention(b: &Builder, l: &Layer, h: Slot, eps: f32) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let heads = b.n("attention.head_count")?;
    let latent = b.n("attention.kv_lora_rank")?;
    let n_rot = b.n("rope.dimension_count")?;
    let split = b.has(&l.w("attn_k_b.weight"));
    let (k_key, v_key) = if b.has_key("attention.key_length_mla") {
        ("attention.key_length_mla", "attention.value_length_mla")
    } else {
        ("attention.key_length", "attention.value_length")
    };
    let (k_dim, v_dim) = (b.n(k_key)?, b.n(v_key)?);
    let Some(plain) = k_dim.checked_sub(n_rot).filter(|&n| n > 0) else {
        return Err(b.bad_key(k_key, k_dim, format!("more than the {n_rot} values that are rotated")));
    };
    if split {
        b.ignore(&l.w("attn_kv_b."), "attn_k_b and attn_v_b hold the same");
    }
    let (rope, mscale) = yarn(b, n_rot)?;
    let scale = mscale / (k_dim as f32).sqrt();

    let q = if b.has(&l.w("attn_q_a.weight")) {
        let q = b.linear(h, &l.w("attn_q_a"), b.n("attention.q_lora_rank")?)?;
        b.linear(b.norm(q, &l.w("attn_q_a_norm"), eps)?, &l.w("attn_q_b"), heads * k_dim)?
    } else {
        b.linear(h, &l.w("attn_q"), heads * k_dim)?
    }; // (T, heads * (plain | rotated))
    let kv = b.linear(h, &l.w("attn_kv_a_mqa"), latent + n_rot)?; // (T, latent | rotated)
    let c = b.norm(b.columns(l.w("kv_latent"), kv, 0, latent)?, &l.w("attn_kv_a_norm"), eps)?; // (T, latent)
    let k_rot = b.rope(l.w("k_rope"), b.columns(l.w("k_pe"), kv, latent, n_rot)?, n_rot, &rope)?; // (T, n_rot)
    let q_rot = b.pack(l.w("q_pe"), heads, &[Part { x: q, stride: k_dim, offset: plain, len: n_rot }])?;
    let q_rot = b.rope(l.w("q_rope"), q_rot, n_rot, &rope)?; // (T, heads * n_rot)
    let q_plain = b.pack(l.w("q_nope"), heads, &[Part { x: q, stride: k_dim, offset: 0, len: plain }])?;
    let each = |x, len| Part { x, stride: len, offset: 0, len };
    let all = |x, len| Part { x, stride: 0, offset: 0, len };

    let a = if split {
        let q_latent = b.head_linear(q_plain, &l.w("attn_k_b"), heads, latent)?; // (T, heads * latent)
        let q = b.pack(l.w("q_all"), heads, &[each(q_latent, latent), each(q_rot, n_rot)])?;
        let k = b.pack(l.w("k_all"), 1, &[all(c, latent), all(k_rot, n_rot)])?; // (T, latent + n_rot)
        let k_dim = latent + n_rot;
        let attend = Attend { heads, kv_heads: 1, k_dim, v_dim: latent, scale, window: None, soft_cap: None };
        let a = b.attend(l.w("attn"), attend, (q, k, None), None, None)?; // (T, heads * latent)
        b.head_linear(a, &l.w("attn_v_b"), heads, v_dim)? // (T, heads * v_dim)
    } else {
        let kv = b.linear(c, &l.w("attn_kv_b"), heads * (plain + v_dim))?; // (T, heads * (k plain | v))
        let part = |offset, len| Part { x: kv, stride: plain + v_dim, offset, len };
        let k = b.pack(l.w("k_all"), heads, &[part(0, plain), all(k_rot, n_rot)])?; // (T, heads * k_dim)
        let v = b.pack(l.w("v_all"), heads, &[part(plain, v_dim)])?; // (T, heads * v_dim)
        let q = b.pack(l.w("q_all"), heads, &[each(q_plain, plain), each(q_rot, n_rot)])?;
        let attend = Attend { heads, kv_heads: heads, k_dim, v_dim, scale, window: None, soft_cap: None };
        b.attend(l.w("attn"), attend, (q, k, Some(v)), None, None)?
    };
    b.linear(a, &l.w("attn_output"), n_embd)
}

fn mixture(b: &Builder, l: &Layer, h: Slot) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let n_expert = b.n("expert_count")?;
    let n_ff = b.n("expert_feed_forward_length")?;
    let gate = match b.opt_n("expert_gating_func")?.unwrap_or(0) {
        // Files from before the key existed: V2 and its kin, except GLM-4.7-Flash, told by its vocabulary.
        0 if matches!(b.n("block_count")?, 47 | 48) && b.n_vocab()? == 154_880 => Gate::Sigmoid,
        0 | 1 => Gate::Softmax,
        2 => Gate::Sigmoid,
        other => return Err(b.bad_key("expert_gating_func", other, "1 (softmax) or 2 (sigmoid)")),
    };
    let route = Route {
        k: b.n("expert_used_count")?,
        gate,
        norm: b.flag_or("expert_weights_norm", false)?,
        scale: b.expert_scale()?,
        groups: b.expert_groups()?,
    };
    let bias = b.opt_vector(&l.w("exp_probs_b.bias"), &[n_expert])?;
    let logits = b.linear(h, &l.w("ffn_gate_inp"), n_expert)?; // (T, n_expert)
    let chosen = b.route(l.w("ffn_moe_topk"), logits, route, bias, None)?; // (T, k) each
    let y = b.experts(&l.w("ffn"), h, chosen, Experts { n: n_expert, n_ff, glu: Glu::Silu })?;
    let Some(n_shared) = b.opt_n("expert_shared_count")?.map(|n| n * n_ff) else { return Ok(y) };
    let shared = b.swiglu(l, h, ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"], n_shared, n_embd, Glu::Silu)?;
    Ok(b.add(l.w("ffn_out"), y, shared))
}
