//! Gemma 3: embeddings times the square root of their width; four norms to a layer; five layers that see a window only, and
//! turn by a base of their own, to one that sees everything; GEGLU.
//!
//! The reference scales queries before the product with keys; a scale in attention is the same up to rounding.

use anyhow::Result;

use super::blocks::{self, Attention, Full, QkNorm, windowed};
use crate::ops::{Glu, Pairs, Rope};
use crate::tape::{Builder, Slot};

/// Layers of the 27B model, whose scores are scaled by the width of a query's share of the embedding.
const LAYERS_27B: usize = 62;

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.count("embedding_length")?;
    let eps = b.eps()?;
    let layers = b.layers()?;
    let window = b.optional_tokens("attention.sliding_window")?;
    let windowed = windowed(b, &layers, 6, Full::Last)?;

    let mut x = b.scale(b.embed()?, (n_embd as f32).sqrt()); // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let mut attention = Attention { qk_norm: QkNorm::Heads, ..Attention::new(b, Pairs::Halves)? };
        if layers.len() == LAYERS_27B {
            attention.scale = Some(1.0 / ((n_embd / attention.heads.0) as f32).sqrt());
        }
        if let Some(window) = window.filter(|_| windowed[l.i]) {
            let base = b.positive_or("rope.freq_base_swa", 10_000.0)?;
            let rope = attention.rope.map(|rope| Rope::plain(rope.n_rot, rope.pairs, base));
            attention = Attention { rope, window: Some(window), ..attention };
        }
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let a = attention.build(b, h)?;
        x = b.add(x, b.norm(a, "post_attention_norm", eps)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = blocks::dense(b, h, Glu::Gelu)?;
        x = b.add(x, b.norm(y, "post_ffw_norm", eps)?);
    }
    let logits = b.head(b.norm(x, "output_norm", eps)?)?; // (output rows, n_vocab)
    Ok(b.soft_cap(logits, b.cap("final_logit_softcapping")?))
}
