//! gpt-oss: attention with sinks and biases, a sliding window on every other layer; experts chosen by their logits,
//! weighted by a softmax over the chosen, biased, with a clamped SwiGLU.

use anyhow::Result;

use crate::ops::{Attend, Experts, Gate, Glu, Pairs, Route};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let (heads, kv_heads) = (b.n("attention.head_count")?, b.n("attention.head_count_kv")?);
    let dim = b.n_or("attention.key_length", n_embd / heads)?;
    let eps = b.f("attention.layer_norm_rms_epsilon")?;
    let rope = b.rope_from_keys(b.n_or("rope.dimension_count", dim)?, Pairs::Halves)?;
    let window = b.n("attention.sliding_window")?;
    let scale = b.f_or("expert_weights_scale", 1.0)?;
    let scale = if scale == 0.0 { 1.0 } else { scale };
    let k = b.n("expert_used_count")?;
    let route = Route { k, gate: Gate::SoftmaxOfChosen, norm: false, scale, groups: (1, 1) };
    let n_expert = b.n("expert_count")?;
    let experts = Experts { n: n_expert, n_ff: b.n("expert_feed_forward_length")?, glu: Glu::Oai };

    let mut x = b.embed("token_embd", n_embd)?; // (T, n_embd)
    for l in b.layers()? {
        let h = b.norm(x, &l.w("attn_norm"), eps)?; // (T, n_embd)
        let q = b.rope(l.w("q_rope"), b.linear(h, &l.w("attn_q"), heads * dim)?, dim, &rope); // (T, heads * dim)
        let k = b.rope(l.w("k_rope"), b.linear(h, &l.w("attn_k"), kv_heads * dim)?, dim, &rope); // (T, kv_heads * dim)
        let v = b.linear(h, &l.w("attn_v"), kv_heads * dim)?; // (T, kv_heads * dim)
        let sinks = b.vector(&l.w("attn_sinks.weight"), &[heads])?;
        let window = (l.i % 2 == 0 && window > 0).then_some(window);
        let scale = 1.0 / (dim as f32).sqrt();
        let attend = Attend { heads, kv_heads, k_dim: dim, v_dim: dim, scale, window, soft_cap: None };
        let a = b.attend(l.w("attn"), attend, (q, k, Some(v)), Some(sinks), None)?; // (T, heads * dim)
        x = b.add(l.w("ffn_inp"), x, b.linear(a, &l.w("attn_output"), n_embd)?);

        let h = b.norm(x, &l.w("post_attention_norm"), eps)?;
        let logits = b.linear(h, &l.w("ffn_gate_inp"), n_expert)?; // (T, n_expert)
        let chosen = b.route(l.w("ffn_moe_topk"), logits, route, None, None)?; // (T, k) each
        x = b.add(l.w("l_out"), x, b.experts(&l.w("ffn"), h, chosen, experts)?);
    }
    b.head(b.norm(b.wanted(x), "output_norm", eps)?, "output", "token_embd") // (W, n_vocab)
}
