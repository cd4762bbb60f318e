//! Qwen2-MoE and Qwen1.5-MoE: grouped attention with biases; a softmax router whose weights are left as they are; a shared
//! expert with a sigmoid gate.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture};
use crate::ops::{Gate, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, Attention::new(b, Pairs::Halves)?.build(b, h)?);

        let n_ff = b.count("feed_forward_length")?;
        let n_expert_ff = b.count_or("expert_feed_forward_length", n_ff / b.count("expert_used_count")?)?;
        let h = b.norm(x, "ffn_norm", eps)?;
        let y = Mixture::new(b, Gate::Softmax, false, n_expert_ff)?.build(b, h)?;
        let shared = blocks::gated_shared(b, h, b.count_or("expert_shared_feed_forward_length", n_ff)?)?;
        x = b.add(x, b.add(y, shared));
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
