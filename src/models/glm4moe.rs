//! GLM-4.5, 4.6 and 4.7, Air and large: grouped attention with biases, rotated in part, in the large one with per-head norms
//! on q and k; leading dense layers, then a sigmoid router with a bias for the choice, and a shared expert.

use anyhow::Result;

use super::blocks::{self, Attention, QkNorm};
use super::heads::Frame;
use crate::ops::{Gate, Pairs};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        x = layer(&l.scope(b), x)?;
    }
    let h = b.norm(x, "output_norm", b.eps()?)?;
    let logits = b.head(h)?; // (output rows, n_vocab)
    Frame::normed().record(b, (logits, h), layer)
}

fn layer(b: &Builder, x: Slot) -> Result<Slot> {
    let eps = b.eps()?;
    let qk_norm = if b.has("attn_q_norm.weight") { QkNorm::Heads } else { QkNorm::None };
    let attention = Attention { qk_norm, ..Attention::new(b, Pairs::Halves)? };
    b.text_sections(attention.rope.as_ref().map_or(0, |rope| rope.n_rot / 2), false)?;
    let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
    let x = b.add(x, attention.build(b, h)?);

    let h = b.norm(x, "post_attention_norm", eps)?;
    Ok(b.add(x, blocks::feed_forward(b, h, Gate::Sigmoid)?))
}
