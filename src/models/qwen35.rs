//! Qwen3.5, dense and MoE: three gated-delta-net layers to one of gated attention; a shared expert behind a sigmoid.

use anyhow::Result;

use crate::ops::{Attend, Delta, Experts, Gate, Glu, Pairs, Part, Route};
use crate::tape::{Builder, Layer, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let eps = b.eps()?;
    let layers = b.layers()?;
    let every = b.n_or("full_attention_interval", 4)?;
    let listed = b.per_layer_flag("attention.recurrent_layers", layers.len())?;

    let mut x = b.embed("token_embd", n_embd)?; // (T, n_embd)
    for l in layers {
        let h = b.norm(x, &l.w("attn_norm"), eps)?;
        let recurrent = listed.as_ref().map_or(!(l.i + 1).is_multiple_of(every), |r| r[l.i]);
        let a = if recurrent { delta_net(b, &l, h, eps)? } else { attention(b, &l, h, eps)? }; // (T, n_embd)
        let [from, a] = b.wanted_in_last(&l, [x, a]);
        x = b.add(l.w("attn_residual"), from, a);

        let h = b.norm(x, &l.w("post_attention_norm"), eps)?;
        let y = if b.has(&l.w("ffn_gate_inp.weight")) { mixture(b, &l, h)? } else { dense(b, &l, h)? };
        x = b.add(l.w("l_out"), x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?, "output", "token_embd") // (W, n_vocab)
}

/// Attention whose output is gated by a sigmoid; `attn_q` holds query and gate of each head side by side.
fn attention(b: &Builder, l: &Layer, h: Slot, eps: f32) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let (heads, kv_heads) = b.heads()?;
    let dim = b.head_dim(heads, n_embd)?;
    let rope = b.rope_from_keys(dim, Pairs::Halves)?;
    check_sections(b, rope.n_rot / 2)?;
    let [qg, k, v] = b.qkv(l, h, [heads * dim * 2, kv_heads * dim, kv_heads * dim])?; // (T, heads * (q | gate)) ...
    let part = |offset| Part { x: qg, stride: dim * 2, offset, len: dim };
    let q = b.pack(l.w("q"), heads, &[part(0)])?; // (T, heads * dim)
    let gate = b.pack(l.w("gate"), heads, &[part(dim)])?; // (T, heads * dim)
    let q = b.rope(l.w("q_rope"), b.head_norm(q, &l.w("attn_q_norm"), dim, eps)?, dim, &rope)?;
    let k = b.rope(l.w("k_rope"), b.head_norm(k, &l.w("attn_k_norm"), dim, eps)?, dim, &rope)?;
    let scale = 1.0 / (dim as f32).sqrt();
    let attend = Attend { heads, kv_heads, k_dim: dim, v_dim: dim, scale, window: None, soft_cap: None };
    let a = b.attend(l.w("attn"), attend, (q, k, Some(v)), None, None)?; // (T, heads * dim)
    b.linear(b.glu(l.w("attn_gated"), Glu::Sigmoid, gate, a), &l.w("attn_output"), n_embd)
}

/// The rotation is in interleaved sections that count time, height and width. In a text these are the same position, so
/// it is the plain rotation, as long as every pair belongs to one of the three.
fn check_sections(b: &Builder, pairs: usize) -> Result<()> {
    const SECTIONS: &str = "rope.dimension_sections";
    let Some(sections) = b.per_layer_n(SECTIONS, 3)? else { return Ok(()) };
    let all: usize = sections.iter().sum();
    if all == 0 || !(0..pairs).map(|i| i % all).all(|i| i < 3 * sections[i % 3]) {
        let found = format!("{sections:?}");
        return Err(b.bad_key(SECTIONS, found, format!("sections that cover all {pairs} pairs of a head")));
    }
    Ok(())
}

/// Gated delta net: convolution over q, k and v, the delta rule, a norm gated by SiLU.
fn delta_net(b: &Builder, l: &Layer, h: Slot, eps: f32) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let (k_heads, v_heads) = (b.n("ssm.group_count")?, b.n("ssm.time_step_rank")?);
    let dim = b.n("ssm.state_size")?;
    let inner = b.n_or("ssm.inner_size", v_heads * dim)?;
    if inner != v_heads * dim {
        return Err(b.bad_key("ssm.inner_size", inner, format!("{v_heads} heads of {dim}, as wide as those of the keys")));
    }
    let (n_k, n_v) = (k_heads * dim, v_heads * dim);
    let qkv = b.linear(h, &l.w("attn_qkv"), 2 * n_k + n_v)?; // (T, q | k | v)
    let z = b.linear(h, &l.w("attn_gate"), n_v)?; // (T, n_v)
    let beta = b.linear(h, &l.w("ssm_beta"), v_heads)?; // (T, v_heads)
    let alpha = b.linear(h, &l.w("ssm_alpha"), v_heads)?; // (T, v_heads)
    let qkv = b.conv(qkv, &l.w("ssm_conv1d"), b.n("ssm.conv_kernel")?)?;
    let q = b.l2_norm(l.w("q_l2"), b.columns(l.w("q_conv"), qkv, 0, n_k)?, dim, eps); // (T, n_k)
    let k = b.l2_norm(l.w("k_l2"), b.columns(l.w("k_conv"), qkv, n_k, n_k)?, dim, eps); // (T, n_k)
    let v = b.columns(l.w("v_conv"), qkv, 2 * n_k, n_v)?; // (T, n_v)
    let shape = Delta { k_heads, v_heads, dim };
    let y = b.delta(l.w("delta"), shape, [q, k, v, beta, alpha], &l.w("ssm_dt.bias"), &l.w("ssm_a"))?; // (T, n_v)
    let y = b.head_norm(y, &l.w("ssm_norm"), dim, eps)?;
    b.linear(b.glu(l.w("delta_gated"), Glu::Silu, z, y), &l.w("ssm_out"), n_embd)
}

fn mixture(b: &Builder, l: &Layer, h: Slot) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let n_expert = b.n("expert_count")?;
    let (k, groups) = (b.n("expert_used_count")?, b.expert_groups()?);
    let route = Route { k, gate: Gate::Softmax, norm: true, scale: 1.0, groups };
    let experts = Experts { n: n_expert, n_ff: b.n("expert_feed_forward_length")?, glu: Glu::Silu };
    let logits = b.linear(h, &l.w("ffn_gate_inp"), n_expert)?; // (T, n_expert)
    let chosen = b.route(l.w("ffn_moe_topk"), logits, route, None, None)?; // (T, k) each
    let y = b.experts(&l.w("ffn"), h, chosen, experts)?; // (T, n_embd)
    if !b.has(&l.w("ffn_up_shexp.weight")) {
        return Ok(y);
    }
    let n_ff = b.n("expert_shared_feed_forward_length")?;
    let shared = b.swiglu(l, h, ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"], n_ff, n_embd, Glu::Silu)?;
    let gate = b.linear(h, &l.w("ffn_gate_inp_shexp"), 1)?; // (T, 1)
    Ok(b.add(l.w("ffn_out"), y, b.glu(l.w("ffn_shexp_gated"), Glu::Sigmoid, gate, shared)))
}

fn dense(b: &Builder, l: &Layer, h: Slot) -> Result<Slot> {
    let n_ff = b.n("feed_forward_length")?;
    b.swiglu(l, h, ["ffn_gate", "ffn_up", "ffn_down"], n_ff, b.n("embedding_length")?, Glu::Silu)
}
