//! Nemotron-H and Nemotron 3, dense and MoE: each layer is one of a Mamba-2 scan, attention without
//! a rotation, and a feed-forward layer of squared ReLU, or experts of that kind without a gate,
//! which may work in a narrower space, in addition to a shared one.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture};
use super::heads::Frame;
use super::mixers;
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let y = if b.count_or_zero("feed_forward_length")? > 0 {
            feed_forward(b, h)?
        } else if b.count_or_zero("attention.head_count_kv")? > 0 {
            attention(b, h)?
        } else {
            mixers::mamba2(b, h)?
        };
        x = b.add(x, y);
    }
    let h = b.norm(x, "output_norm", eps)?;
    let logits = b.head(h)?; // (output rows, n_vocab)
    let head_norm =
        |b: &Builder, x: Slot, name: &str| b.layer_norm(x, name, b.number_or("attention.layer_norm_epsilon", eps)?);
    let frame = Frame { head_norm: &head_norm, ..Frame::normed() };
    frame.record(b, (logits, h), |b, x| {
        let x = b.add(x, attention(b, b.norm(x, "attn_norm", eps)?)?);
        Ok(b.add(x, feed_forward(b, b.norm(x, "post_attention_norm", eps)?)?))
    })
}

fn attention(b: &Builder, h: Slot) -> Result<Slot> {
    let scale = Some(b.number_or("attention.scale", 0.0)?).filter(|&s| s != 0.0);
    Attention { rope: None, scale, ..Attention::new(b, Pairs::Halves)? }.build(b, h)
}

fn feed_forward(b: &Builder, h: Slot) -> Result<Slot> {
    if !b.has("ffn_gate_inp.weight") {
        return blocks::dense(b, h, Glu::ReluSquared);
    }
    let n_ff = match b.count_or_zero("expert_feed_forward_length")? {
        0 => b.count("feed_forward_length")? / b.count("expert_used_count")?,
        n => n,
    };
    let mut experts = Mixture::new(b, Gate::Sigmoid, b.flag_or("expert_weights_norm", false)?, n_ff)?;
    (experts.bias, experts.experts.glu) = (true, Glu::ReluSquared);
    let latent = b.has("ffn_latent_down.weight");
    let e = &b.role(Role::Experts);
    let x = if latent { e.linear(h, "ffn_latent_down", b.count("moe_latent_size")?)? } else { h }; // (T, latent)
    let y = experts.build_apart(b, h, x)?;
    let y = if latent { e.linear(y, "ffn_latent_up", b.width(h))? } else { y }; // (T, n_embd)
    let n_shared = b.count("expert_shared_feed_forward_length")?;
    Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_shared, Glu::ReluSquared)?))
}
