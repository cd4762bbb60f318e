//! Mellum 2: Qwen3-MoE with three layers that see a window, and rotate with nothing stretched, to one that sees everything.

use anyhow::Result;

use super::blocks::{Attention, Full, Mixture, QkNorm, windowed};
use crate::ops::{Gate, Pairs, Rope};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let window = b.optional_tokens("attention.sliding_window")?;
    let windowed = windowed(b, &layers, 4, Full::Last)?;
    // The reference turns all layers by one base, whatever this says.
    b.number_or("rope.freq_base_swa", 0.0)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let mut attention = Attention { qk_norm: QkNorm::Heads, ..Attention::new(b, Pairs::Halves)? };
        if let Some(window) = window.filter(|_| windowed[l.i]) {
            let rope = attention.rope.map(|rope| Rope::plain(rope.n_rot, rope.pairs, rope.base));
            attention = Attention { rope, window: Some(window), ..attention };
        }
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let experts = Mixture::new(b, Gate::Softmax, true, b.count("expert_feed_forward_length")?)?;
        let h = b.norm(x, "ffn_norm", eps)?;
        x = b.add(x, experts.build(b, h)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
