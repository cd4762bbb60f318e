//! SmallThinker: the router reads a layer's input, before attention and norms, so that experts can be fetched early; ReLU
//! gates; where there are windows, one layer that sees everything, and does not rotate, to three that see a window.

use anyhow::Result;

use super::blocks::{Attention, Full, Mixture, windowed};
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
        let attention = match window {
            Some(window) if windowed[l.i] => attention.in_window(b, window)?,
            Some(_) => Attention { rope: None, ..attention },
            None => attention,
        };
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let y = b.add(x, attention.build(b, h)?);

        let mut experts = Mixture::from_keys(b, Gate::Softmax)?;
        experts.route.norm = true;
        experts.experts.glu = Glu::Relu;
        let h = b.norm(y, "ffn_norm", eps)?;
        x = b.add(y, experts.build_apart(b, x, h)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
