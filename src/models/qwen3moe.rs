//! Qwen3-MoE: grouped attention with per-head norms on q and k; a softmax router, top-k renormalised; SwiGLU experts.

use anyhow::Result;

use crate::ops::{Attend, Experts, Gate, Glu, Pairs, Route};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let (heads, kv_heads) = b.heads()?;
    let dim = b.head_dim(heads, n_embd)?;
    let eps = b.eps()?;
    let rope = b.rope_from_keys(dim, Pairs::Halves)?;
    let scale = 1.0 / (dim as f32).sqrt();
    let attend = Attend { heads, kv_heads, k_dim: dim, v_dim: dim, scale, window: None, soft_cap: None };
    let (k, groups) = (b.n("expert_used_count")?, b.expert_groups()?);
    let route = Route { k, gate: Gate::Softmax, norm: true, scale: 1.0, groups };
    let n_expert = b.n("expert_count")?;
    let experts = Experts { n: n_expert, n_ff: b.n("expert_feed_forward_length")?, glu: Glu::Silu };

    let mut x = b.embed("token_embd", n_embd)?; // (T, n_embd)
    for l in b.layers()? {
        let h = b.norm(x, &l.w("attn_norm"), eps)?; // (T, n_embd)
        let [q, k, v] = b.qkv(&l, h, [heads * dim, kv_heads * dim, kv_heads * dim])?; // (T, heads * dim) ...
        let q = b.rope(l.w("q_rope"), b.head_norm(q, &l.w("attn_q_norm"), dim, eps)?, dim, &rope)?;
        let k = b.rope(l.w("k_rope"), b.head_norm(k, &l.w("attn_k_norm"), dim, eps)?, dim, &rope)?;
        let a = b.attend(l.w("attn"), attend, (q, k, Some(v)), None, None)?; // (T, heads * dim)
        let [from, a] = b.wanted_in_last(&l, [x, a]);
        x = b.add(l.w("ffn_inp"), from, b.linear(a, &l.w("attn_output"), n_embd)?);

        let h = b.norm(x, &l.w("ffn_norm"), eps)?;
        let logits = b.linear(h, &l.w("ffn_gate_inp"), n_expert)?; // (T, n_expert)
        let chosen = b.route(l.w("ffn_moe_topk"), logits, route, None, None)?; // (T, k) each
        x = b.add(l.w("l_out"), x, b.experts(&l.w("ffn"), h, chosen, experts)?);
    }
    b.head(b.norm(x, "output_norm", eps)?, "output", "token_embd") // (W, n_vocab)
}
