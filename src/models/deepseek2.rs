//! DeepSeek V2, V3, R1, Kimi K2 and kin: latent attention; leading dense layers, then a grouped router with a shared
//! expert. The families that add something to the attention use the same [`trunk`].

use anyhow::Result;

use super::blocks::{self, Mixture};
use super::heads::Frame;
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
/// gives the rows that a layer attends to, from its normed rows and low-rank queries. Draft heads attend to all rows.
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
        let dense = l.i < n_dense;
        x = layer(&l.scope(b), x, latent, (!dense).then_some(&experts), &mut select)?;
    }
    let h = b.norm(x, "output_norm", eps)?;
    let logits = b.head(h)?; // (output rows, n_vocab)
    Frame::normed().record(b, (logits, h), |b, x| {
        b.ignore("indexer.", "the draft head attends to all rows");
        let experts = b.has("ffn_gate_inp.weight").then_some(&experts);
        layer(b, x, latent, experts, &mut |_, _, _| Ok(None))
    })
}

/// Gives the rows that a layer attends to.
type Select<'a> = &'a mut dyn FnMut(&Builder, Slot, Option<Slot>) -> Result<Option<Selected>>;

/// A layer with these experts, or a dense one.
fn layer(b: &Builder, x: Slot, latent: &Latent, experts: Option<&Mixture>, select: Select<'_>) -> Result<Slot> {
    let h = b.norm(x, "attn_norm", latent.eps)?;
    let mixer = &b.role(Role::Attention);
    let low = latent.low_rank(mixer, h)?;
    let selected = select(mixer, h, low)?;
    let a = latent.build(mixer, h, low, selected)?; // (T, heads * v_dim)
    let x = b.add(x, mixer.linear(a, "attn_output", b.width(x))?);

    let h = b.norm(x, "ffn_norm", latent.eps)?;
    let y = match experts {
        None => blocks::dense(b, h, Glu::Silu)?,
        Some(experts) => mixture(b, h, experts)?,
    };
    Ok(b.add(x, y))
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
