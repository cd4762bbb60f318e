//! dots.llm1; Ling 2 and Ring 2 (Bailing-MoE 2); Hunyuan 3 (Hy3): grouped attention with per-head norms on q and k, in
//! Ling rotated in part and from one fused matrix; leading dense layers, then a sigmoid router with a bias for the choice, in
//! Ling over groups of experts, and a shared expert.

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
    let attention = Attention { qk_norm: QkNorm::Heads, ..Attention::new(b, Pairs::Halves)? };
    let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
    let x = b.add(x, attention.build(b, h)?);

    let h = b.norm(x, "ffn_norm", eps)?;
    Ok(b.add(x, blocks::feed_forward(b, h, Gate::Sigmoid)?))
}
