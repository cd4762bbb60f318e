//! GLM-4 of April 2025, 9B and 32B, dense: four norms to a layer, a rotation of part of each head, and the gate and what
//! it gates in one matrix `ffn_up`.

use anyhow::Result;

use super::blocks::Attention;
use crate::ops::{Glu, Pairs};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    // Models that also see images have their pairs in halves.
    let sections = b.counts("rope.dimension_sections")?.is_some_and(|s| s.iter().any(|&n| n > 0));
    let pairs = if sections { Pairs::Halves } else { Pairs::Adjacent };
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let attention = Attention::new(b, pairs)?;
        b.text_sections(attention.rope.as_ref().map_or(0, |rope| rope.n_rot / 2), false)?;
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let a = attention.build(b, h)?;
        x = b.add(x, b.norm(a, "post_attention_norm", eps)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = dense(&b.role(Role::Dense), h)?;
        x = b.add(x, b.norm(y, "post_ffw_norm", eps)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

fn dense(b: &Builder, h: Slot) -> Result<Slot> {
    let n_ff = b.count("feed_forward_length")?;
    let both = b.linear(h, "ffn_up", 2 * n_ff)?; // (T, gate | up)
    let inner = b.glu(Glu::Silu, b.columns(both, 0, n_ff)?, b.columns(both, n_ff, n_ff)?); // (T, n_ff)
    b.linear(inner, "ffn_down", b.width(h))
}
