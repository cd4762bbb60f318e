//! Phi-3.5-MoE: grouped attention with biases and LongRoPE, norms with biases; a softmax router, top-k renormalised; a head
//! with a bias.
//!
//! The model's own norms take the mean away first; the reference does not, and files were made and tested with it.

use anyhow::Result;

use super::blocks::{Attention, Mixture};
use crate::ops::{Gate, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    // As wide as the context in the released model. The reference lets every token see everything.
    b.optional_tokens("attention.sliding_window")?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, Attention::new(b, Pairs::Halves)?.build(b, h)?);

        let experts = Mixture::new(b, Gate::Softmax, true, b.count("feed_forward_length")?)?;
        let h = b.norm(x, "ffn_norm", eps)?;
        x = b.add(x, experts.build(b, h)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
