//! Command A MoE: attention and feed-forward both read one LayerNorm and are added together; one layer that sees everything,
//! and does not rotate, to three that see a window; leading dense layers, then experts and a shared one, averaged.

use anyhow::Result;

use super::blocks::{self, Attention, Full, Mixture, windowed};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};

const EPS: &str = "attention.layer_norm_epsilon";

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let layers = b.layers()?;
    let windowed = windowed(b, &layers, 4, Full::First)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let mut attention = Attention::new(b, Pairs::Adjacent)?;
        if windowed[l.i] {
            attention.window = Some(b.tokens("attention.sliding_window")?);
        } else if l.i >= b.count_or_zero("leading_dense_block_count")? {
            attention.rope = None;
        }
        let h = norm(b, x, "attn_norm")?; // (T, n_embd)
        let a = attention.build(b, h)?;
        let y = if blocks::is_dense(b)? { blocks::dense(b, h, Glu::Silu)? } else { mixture(b, h)? };
        x = b.add(b.add(x, y), a);
    }
    let logits = b.head(norm(b, x, "output_norm")?)?; // (output rows, n_vocab)
    Ok(b.scale(logits, b.number("logit_scale")?))
}

/// LayerNorm, or in some files an RMS norm, by which of the two keys is there.
fn norm(b: &Builder, x: Slot, name: &str) -> Result<Slot> {
    if b.has_key(EPS) { b.layer_norm(x, name, b.number(EPS)?) } else { b.norm(x, name, b.eps()?) }
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let y = Mixture { bias: false, ..Mixture::from_keys(b, Gate::Sigmoid)? }.build_with_shared(b, h)?;
    Ok(if b.has("ffn_up_shexp.weight") { b.scale(y, 0.5) } else { y })
}
