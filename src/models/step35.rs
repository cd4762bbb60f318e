//! Step 3.5 Flash: three layers that see a window to one that sees everything and rotates half as many columns; heads for
//! each layer, each gated by a sigmoid of its own; a sigmoid router with a bias for the choice, a shared expert, and
//! SwiGLU that is clamped in some layers.

use anyhow::Result;

use super::blocks::{self, Attention, Full, Mixture, QkNorm, silu_capped, windowed};
use super::heads::{Frame, is_windowed};
use crate::ops::{Gate, Glu, Pairs, Rope};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let windowed = windowed(b, &layers, 4, Full::First)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        x = layer(&l.scope(b), x, windowed[l.i])?;
    }
    let logits = b.head(b.norm(x, "output_norm", eps)?)?; // (output rows, n_vocab)
    Frame::residual().record(b, (logits, x), |b, x| layer(b, x, is_windowed(b)?))
}

fn layer(b: &Builder, x: Slot, windowed: bool) -> Result<Slot> {
    let eps = b.eps()?;
    let attention = Attention::new(b, Pairs::Halves)?;
    let attention = match windowed {
        true => attention.in_window(b, b.tokens("attention.sliding_window")?)?,
        false => {
            let rope = attention.rope.map(|rope| Rope { n_rot: rope.n_rot / 2, ..rope });
            Attention { rope, ..attention }
        }
    };
    let qk_norm = if b.has("attn_q_norm.weight") { QkNorm::Heads } else { QkNorm::None };
    let gate = b.has("attn_gate.weight").then_some(Glu::Sigmoid);
    let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
    let x = b.add(x, Attention { qk_norm, gate, ..attention }.build(b, h)?);

    let h = b.norm(x, "ffn_norm", eps)?;
    let shared = silu_capped(b.cap("swiglu_clamp_shexp")?);
    let y = if blocks::is_dense(b)? {
        blocks::dense(b, h, shared)?
    } else {
        let mut m = Mixture { shared, ..Mixture::from_keys(b, Gate::Sigmoid)? };
        m.experts.glu = silu_capped(b.cap("swiglu_clamp_exp")?);
        m.build_with_shared(b, h)?
    };
    Ok(b.add(x, y))
}
