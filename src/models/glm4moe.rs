//! GLM-4.5, 4.6 and 4.7, Air and large: grouped attention with biases, rotated in part, in the large one with per-head norms
//! on q and k; leading dense layers, then a sigmoid router with a bias for the choice, and a shared expert.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let qk_norm = b.has("attn_q_norm.weight");
        let attention = Attention { qk_norm, ..Attention::new(b, Pairs::Halves)? };
        b.text_sections(attention.rope.as_ref().map_or(0, |rope| rope.n_rot / 2), false)?;
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let h = b.norm(x, "post_attention_norm", eps)?;
        let y = if l.i < n_dense { blocks::dense(b, h, Glu::Silu)? } else { mixture(b, h)? };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let n_ff = b.count("expert_feed_forward_length")?;
    let gate = match b.count_or_zero("expert_gating_func")? {
        1 => Gate::Softmax,
        0 | 2 => Gate::Sigmoid,
        other => return Err(b.bad_key("expert_gating_func", other, "1 (softmax) or 2 (sigmoid)")),
    };
    let experts = Mixture { bias: true, ..Mixture::new(b, gate, b.flag_or("expert_weights_norm", false)?, n_ff)? };
    let y = experts.build(b, h)?; // (T, n_embd)
    let n_shared = n_ff * b.count("expert_shared_count")?;
    Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_shared, Glu::Silu)?))
}
