//! Qwen2 and 2.5, dense: grouped attention with biases on q, k and v; SwiGLU.

use anyhow::Result;

use super::blocks::{self, Attention};
use crate::ops::{Glu, Pairs};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        // Linear layers use a bias where there is one; here there must be.
        let biased: &[&str] = if b.has("attn_qkv.weight") { &["attn_qkv"] } else { &["attn_q", "attn_k", "attn_v"] };
        biased.iter().try_for_each(|name| b.need(&format!("{name}.bias")))?;
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, Attention::new(b, Pairs::Halves)?.build(b, h)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        x = b.add(x, blocks::dense(b, h, Glu::Silu)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
