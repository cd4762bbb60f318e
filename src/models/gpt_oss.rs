//! gpt-oss: attention with sinks and biases, a sliding window on every other layer; experts chosen by their logits,
//! weighted by a softmax over the chosen, biased, with a clamped SwiGLU.

use anyhow::Result;

use crate::ops::{Attend, Experts, Gate, Glu, Pairs, Rope, Route};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.n("embedding_length")?;
    let (heads, kv_heads) = b.heads()?;
    let dim = b.head_dim(heads, n_embd)?;
    let eps = b.eps()?;
    let rope = b.rope_from_keys(dim, Pairs::Halves)?;
    let rope_windowed = Rope { base: b.positive_or("rope.freq_base_swa", rope.base)?, ..rope };
    let window = b.tokens("attention.sliding_window")?;
    let (k, groups) = (b.n("expert_used_count")?, b.expert_groups()?);
    let route = Route { k, gate: Gate::SoftmaxOfChosen, norm: false, scale: 1.0, groups };
    let n_expert = b.n("expert_count")?;
    let experts = Experts { n: n_expert, n_ff: b.n("expert_feed_forward_length")?, glu: Glu::Oai };

    let mut x = b.embed("token_embd", n_embd)?; // (T, n_embd)
    let layers = b.layers()?;
    let windowed = windowed(b, layers.len())?;
    for l in layers {
        let h = b.norm(x, &l.w("attn_norm"), eps)?; // (T, n_embd)
        let [q, k, v] = b.qkv(&l, h, [heads * dim, kv_heads * dim, kv_heads * dim])?; // (T, heads * dim) ...
        let rope = if windowed[l.i] { &rope_windowed } else { &rope };
        let q = b.rope(l.w("q_rope"), q, dim, rope)?;
        let k = b.rope(l.w("k_rope"), k, dim, rope)?;
        // Linear layers use a bias where there is one; here there must be.
        let inner: &[_] = match b.has(&l.w("ffn_gate_up_exps.weight")) {
            true => &["ffn_gate_up_exps"],
            false => &["ffn_gate_exps", "ffn_up_exps"],
        };
        let biased = ["attn_output", "ffn_gate_inp", "ffn_down_exps"];
        biased.iter().chain(inner).try_for_each(|name| b.need(&l.w(&format!("{name}.bias"))))?;
        let sinks = b.vector(&l.w("attn_sinks.weight"), &[heads])?;
        let window = windowed[l.i].then_some(window);
        let scale = 1.0 / (dim as f32).sqrt();
        let attend = Attend { heads, kv_heads, k_dim: dim, v_dim: dim, scale, window, soft_cap: None };
        let a = b.attend(l.w("attn"), attend, (q, k, Some(v)), Some(sinks), None)?; // (T, heads * dim)
        let [from, a] = b.wanted_in_last(&l, [x, a]);
        x = b.add(l.w("ffn_inp"), from, b.linear(a, &l.w("attn_output"), n_embd)?);

        let h = b.norm(x, &l.w("post_attention_norm"), eps)?;
        let logits = b.linear(h, &l.w("ffn_gate_inp"), n_expert)?; // (T, n_expert)
        let chosen = b.route(l.w("ffn_moe_topk"), logits, route, None, None)?; // (T, k) each
        x = b.add(l.w("l_out"), x, b.experts(&l.w("ffn"), h, chosen, experts)?);
    }
    b.head(b.norm(x, "output_norm", eps)?, "output", "token_embd") // (W, n_vocab)
}

/// Which layers see a window only: those that `sliding_window_pattern` lists; or of every so many all but the last.
fn windowed(b: &Builder, layers: usize) -> Result<Vec<bool>> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    if b.is_list(PATTERN) {
        return Ok(b.per_layer_flag(PATTERN, layers)?.unwrap_or_default());
    }
    let every = b.n_or(PATTERN, 2)?;
    Ok((0..layers).map(|i| i % every < every - 1).collect())
}
