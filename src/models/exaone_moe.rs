//! K-EXAONE: three layers that see a window, and rotate, to one that sees everything and does not; per-head norms on q and
//! k; leading dense layers, then a sigmoid router with a bias for the choice, and a shared expert.

use anyhow::Result;

use super::blocks::{self, Attention, Full, QkNorm, windowed};
use crate::ops::{Gate, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let windowed = windowed(b, &layers, 4, Full::Last)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let mut attention = Attention { qk_norm: QkNorm::Heads, ..Attention::new(b, Pairs::Halves)? };
        match windowed[l.i] {
            true => attention.window = Some(b.tokens("attention.sliding_window")?),
            false => attention.rope = None,
        }
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        x = b.add(x, blocks::feed_forward(b, h, Gate::Sigmoid)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
