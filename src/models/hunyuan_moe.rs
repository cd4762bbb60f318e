//! Hunyuan-A13B: grouped attention whose per-head norms come after the rotation; a softmax router, top-k renormalised, and
//! a shared expert.

use anyhow::Result;

use super::blocks::{Attention, Mixture, QkNorm};
use crate::ops::{Gate, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let attention = Attention { qk_norm: QkNorm::RotatedHeads, ..Attention::new(b, Pairs::Halves)? };
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let experts = Mixture::new(b, Gate::Softmax, true, b.count("expert_feed_forward_length")?)?;
        let h = b.norm(x, "ffn_norm", eps)?;
        x = b.add(x, experts.build_with_shared(b, h)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
