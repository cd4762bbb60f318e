//! Kimi Linear: three layers of Kimi Delta Attention to one of latent attention without a rotation;
//! leading dense layers, then experts and a shared one.

use anyhow::Result;

use super::blocks::{self, Mixture};
use super::mixers;
use crate::ops::{Decay, Gate, Glu};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?;
        let a = match b.count_or_zero("attention.head_count_kv")? {
            0 => mixers::kimi_delta(b, h, Decay::Softplus)?,
            _ => {
                let a = mixers::latent_attention(b, h, None)?; // (T, heads * v_dim)
                b.role(Role::Attention).linear(a, "attn_output", b.width(x))?
            }
        }; // (T, n_embd)
        x = b.add(x, a);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = if l.i < n_dense { blocks::dense(b, h, Glu::Silu)? } else { mixture(b, h)? };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let n_ff = b.count("expert_feed_forward_length")?;
    let experts = Mixture { bias: true, ..Mixture::new(b, blocks::gating(b, Gate::Sigmoid)?, true, n_ff)? };
    let y = experts.build(b, h)?; // (T, n_embd)
    Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_ff * b.count("expert_shared_count")?, Glu::Silu)?))
}
