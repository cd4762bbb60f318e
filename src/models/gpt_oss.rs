//! gpt-oss: attention with sinks and biases, a sliding window on every other layer; experts chosen by their logits,
//! weighted by a softmax over the chosen, biased, with a clamped SwiGLU.

use anyhow::Result;

use super::blocks::{Attention, Full, Mixture, windowed};
use crate::ops::{Experts, Gate, Glu, Pairs, Rope, Route};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let window = b.tokens("attention.sliding_window")?;
    let (k, groups) = (b.count("expert_used_count")?, b.expert_groups()?);
    let route = Route { k, gate: Gate::SoftmaxOfChosen, norm: false, scale: 1.0, groups };
    let (n, n_ff) = (b.count("expert_count")?, b.count("expert_feed_forward_length")?);
    let mixture = Mixture { route, experts: Experts { n, n_ff, glu: Glu::Oai, weight_first: false }, bias: false, shared: Glu::Oai };

    let mut x = b.embed()?; // (T, n_embd)
    let layers = b.layers()?;
    let windowed = windowed(b, &layers, 2, Full::Last)?;
    for l in layers {
        let b = &l.scope(b);
        // Linear layers use a bias where there is one; here there must be.
        let inner: &[_] = match b.has("ffn_gate_up_exps.weight") {
            true => &["ffn_gate_up_exps"],
            false => &["ffn_gate_exps", "ffn_up_exps"],
        };
        let biased = ["attn_output", "ffn_gate_inp", "ffn_down_exps"];
        biased.iter().chain(inner).try_for_each(|name| b.need(&format!("{name}.bias")))?;

        let mut attention = Attention::new(b, Pairs::Halves)?;
        attention.sinks = Some(b.vector("attn_sinks.weight", &[attention.heads.0])?);
        if windowed[l.i] {
            let rope = attention.rope.expect("every layer is rotated");
            let base = b.positive_or("rope.freq_base_swa", rope.base)?;
            attention = Attention { rope: Some(Rope { base, ..rope }), window: Some(window), ..attention };
        }
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let h = b.norm(x, "post_attention_norm", eps)?;
        x = b.add(x, mixture.build(b, h)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
