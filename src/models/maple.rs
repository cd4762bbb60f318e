//! Maple: layers that see a window, and rotate, among layers that see everything and do not; per-head norms on q and k; a
//! softmax router, top-k renormalised; clamped SwiGLU.

use anyhow::Result;

use super::blocks::{Attention, Full, Mixture, QkNorm, silu_clamped, windowed};
use crate::ops::{Gate, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let windowed = windowed(b, &layers, 2, Full::Last)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let attention = Attention { qk_norm: QkNorm::Heads, ..Attention::new(b, Pairs::Halves)? };
        let attention = match windowed[l.i] {
            true => attention.in_window(b, b.tokens("attention.sliding_window")?)?,
            false => Attention { rope: None, ..attention },
        };
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let mut m = Mixture::new(b, Gate::Softmax, true, b.count("expert_feed_forward_length")?)?;
        m.experts.glu = silu_clamped(b.cap("swiglu_clamp_exp")?);
        let h = b.norm(x, "ffn_norm", eps)?;
        x = b.add(x, m.build(b, h)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
