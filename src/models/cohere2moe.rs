//! Command A MoE: attention and feed-forward both read one LayerNorm and are added together; one layer that sees everything,
//! and does not rotate, to three that see a window; leading dense layers, then experts and a shared one, averaged.

use anyhow::Result;

use super::blocks::{self, Attention, Full, Mixture, windowed};
use super::heads::{Frame, is_windowed};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};

const EPS: &str = "attention.layer_norm_epsilon";

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let layers = b.layers()?;
    let windowed = windowed(b, &layers, 4, Full::First)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        let rotated = windowed[l.i] || l.i < b.count_or_zero("leading_dense_block_count")?;
        x = layer(&l.scope(b), x, windowed[l.i], rotated)?;
    }
    let scaled = |b: &Builder, logits: Slot| Ok(b.scale(logits, b.number("logit_scale")?));
    let h = norm(b, x, "output_norm")?;
    let logits = scaled(b, b.head(h)?)?; // (output rows, n_vocab)
    let frame = Frame { norm: &norm, head_norm: &norm, logits: &scaled, ..Frame::normed() };
    frame.record(b, (logits, h), |b, x| layer(b, x, is_windowed(b)?, true))
}

fn layer(b: &Builder, x: Slot, windowed: bool, rotated: bool) -> Result<Slot> {
    let mut attention = Attention::new(b, Pairs::Adjacent)?;
    if windowed {
        attention.window = Some(b.tokens("attention.sliding_window")?);
    }
    attention.rope = attention.rope.filter(|_| rotated);
    let h = norm(b, x, "attn_norm")?; // (T, n_embd)
    let a = attention.build(b, h)?;
    let y = if blocks::is_dense(b)? { blocks::dense(b, h, Glu::Silu)? } else { mixture(b, h)? };
    Ok(b.add(b.add(x, y), a))
}

/// LayerNorm, or in some files an RMS norm, by which of the two keys is there.
fn norm(b: &Builder, x: Slot, name: &str) -> Result<Slot> {
    if b.has_key(EPS) { b.layer_norm(x, name, b.number(EPS)?) } else { b.norm(x, name, b.eps()?) }
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let y = Mixture { bias: false, ..Mixture::from_keys(b, Gate::Sigmoid)? }.build_with_shared(b, h)?;
    Ok(if b.has("ffn_up_shexp.weight") { b.scale(y, 0.5) } else { y })
}
