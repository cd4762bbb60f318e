//! Trinity of Arcee (AFMoE): embeddings times the square root of their width; three layers that see a window to one that
//! sees everything and does not rotate; a sigmoid gate after attention; four norms to a layer; leading dense layers, then a
//! sigmoid router with a bias for the choice, and a shared expert.

use anyhow::Result;

use super::blocks::{self, Attention, Full, QkNorm, windowed};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let window = b.optional_tokens("attention.sliding_window")?;
    let windowed = windowed(b, &layers, 4, Full::Last)?;
    let x = b.embed()?;
    let mut x = b.scale(x, (b.width(x) as f32).sqrt()); // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let attention = Attention::new(b, Pairs::Halves)?;
        let mut attention = Attention { qk_norm: QkNorm::Heads, gate: Some(Glu::Sigmoid), ..attention };
        if let Some(window) = window.filter(|_| windowed[l.i]) {
            attention = attention.in_window(b, window)?;
        }
        if l.i % 4 == 3 {
            attention.rope = None;
        }
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let a = attention.build(b, h)?;
        x = b.add(x, b.norm(a, "post_attention_norm", eps)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = blocks::feed_forward(b, h, Gate::Sigmoid)?;
        x = b.add(x, b.norm(y, "post_ffw_norm", eps)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
