//! DeepSeek V2, V3, R1, Kimi K2 and kin: latent attention; leading dense layers, then a grouped router with a shared
//! expert. The families that add something to the attention use the same [`trunk`].

use anyhow::Result;

use super::blocks::{self, Mixture};
use super::latent::Latent;
use crate::ops::{Gate, Glu, Selected};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    // Files from before the key existed: V2 and its kin, except GLM-4.7-Flash, told by its vocabulary.
    let flash = matches!(b.count("block_count")?, 47 | 48) && b.n_vocab()? == 154_880;
    let unstated = if flash { Gate::Sigmoid } else { Gate::Softmax };
    trunk(b, &Latent::scaled(b, true)?, unstated, |_, _, _| Ok(None))
}

/// The layers and the head around latent attention. `unstated` is the router's function in files that name none; `select`
/// gives the rows that a layer attends to, from its normed rows and low-rank queries.
pub(super) fn trunk(
    b: &Builder,
    latent: &Latent,
    unstated: Gate,
    mut select: impl FnMut(&Builder, Slot, Option<Slot>) -> Result<Option<Selected>>,
) -> Result<Slot> {
    let eps = latent.eps;
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    let experts = experts(b, unstated)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?;
        let mixer = &b.role(Role::Attention);
        let low = latent.low_rank(mixer, h)?;
        let selected = select(mixer, h, low)?;
        let a = latent.build(mixer, h, low, selected)?; // (T, heads * v_dim)
        x = b.add(x, mixer.linear(a, "attn_output", b.width(x))?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = if l.i < n_dense { blocks::dense(b, h, Glu::Silu)? } else { mixture(b, h, &experts)? };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

/// The routed experts, which all layers after the dense ones have alike.
fn experts(b: &Builder, unstated: Gate) -> Result<Mixture> {
    let n_ff = b.count("expert_feed_forward_length")?;
    let gate = match b.count_or_zero("expert_gating_func")? {
        0 => unstated,
        1 => Gate::Softmax,
        2 => Gate::Sigmoid,
        other => return Err(b.bad_key("expert_gating_func", other, "1 (softmax) or 2 (sigmoid)")),
    };
    Ok(Mixture { bias: true, ..Mixture::new(b, gate, b.flag_or("expert_weights_norm", false)?, n_ff)? })
}

fn mixture(b: &Builder, h: Slot, experts: &Mixture) -> Result<Slot> {
    let y = experts.build(b, h)?;
    match b.count_or_zero("expert_shared_count")? {
        0 => Ok(y),
        n => Ok(b.add(y, blocks::mlp(b, h, "_shexp", n * experts.experts.n_ff, Glu::Silu)?)),
    }
}
