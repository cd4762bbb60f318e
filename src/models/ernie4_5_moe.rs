//! ERNIE 4.5 MoE: grouped attention with adjacent pairs; dense layers first and in between, else a softmax router with a
//! bias for the choice, top-k renormalised, and shared experts.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let every = b.count("interleave_moe_layer_step")?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let attention = Attention::new(b, Pairs::Adjacent)?;
        b.text_sections(attention.dim / 2, false)?;
        x = b.add(x, attention.build(b, h)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = if l.i < b.count_or_zero("leading_dense_block_count")? || (l.i + 1) % every != 0 {
            blocks::dense(b, h, Glu::Silu)?
        } else {
            let experts = Mixture::new(b, Gate::Softmax, true, b.count("expert_feed_forward_length")?)?;
            Mixture { bias: true, ..experts }.build_with_shared(b, h)?
        };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
