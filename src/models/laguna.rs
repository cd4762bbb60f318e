//! Laguna XS and M: attention whose result is gated by a softplus, for each head or for each of its columns; one layer that
//! sees everything, its rotation stretched by YaRN, to three that see a window; heads for each layer; leading dense layers,
//! then a sigmoid router with a bias for the choice, and a shared expert.

use anyhow::Result;

use super::blocks::{self, Attention, Full, QkNorm, windowed};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let window = b.optional_tokens("attention.sliding_window")?;
    let windowed = windowed(b, &layers, 4, Full::First)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let attention = Attention::new(b, Pairs::Halves)?;
        let mut attention = Attention { qk_norm: QkNorm::Heads, gate: Some(Glu::Softplus), ..attention };
        if let Some(window) = window.filter(|_| windowed[l.i]) {
            attention = attention.in_window(b, window)?;
        }
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        x = b.add(x, blocks::feed_forward(b, h, Gate::Sigmoid)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
