//! Ling 3.0: layers of Kimi Delta Attention with a bounded decay, and every few of them one of
//! latent attention with a gate per head; leading dense layers, then experts in groups and a shared
//! one.

use anyhow::Result;

use super::blocks::{self, Mixture, silu_capped};
use super::heads::Frame;
use super::mixers;
use crate::ops::{Decay, Gate, Glu, Pairs};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    if !b.flag_or("kda.safe_gate", true)? {
        return Err(b.bad_key("kda.safe_gate", false, "true in a model of this kind"));
    }
    let Some(bound) = mixers::decay_bound(b)? else {
        return Err(b.bad_key("kda.gate_lower_bound", "missing", "a number below 0"));
    };
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?;
        let a = match b.count_or_zero("attention.head_count_kv")? {
            0 => mixers::kimi_delta(b, h, Decay::Bounded { bound, sign: 1.0 })?,
            _ => attention(&b.role(Role::Attention), h)?,
        }; // (T, n_embd)
        x = b.add(x, a);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = if l.i < n_dense { blocks::dense(b, h, silu_capped(b.number_or("swiglu_clamp_shexp", 0.0)?))? } else { mixture(b, h)? };
        x = b.add(x, y);
    }
    let h = b.norm(x, "output_norm", eps)?;
    let logits = b.head(h)?; // (output rows, n_vocab)
    Frame::normed().record(b, (logits, h), |b, x| {
        let x = b.add(x, attention(&b.role(Role::Attention), b.norm(x, "attn_norm", eps)?)?);
        Ok(b.add(x, mixture(b, b.norm(x, "ffn_norm", eps)?)?))
    })
}

fn attention(b: &Builder, h: Slot) -> Result<Slot> {
    let heads = b.count("attention.head_count")?;
    // Files that also know images have sections, and rotate halves.
    let sections = b.root().counts("rope.dimension_sections")?.is_some_and(|s| s.iter().take(2).all(|&n| n > 0));
    let pairs = if sections { Pairs::Halves } else { Pairs::Adjacent };
    let rope = b.rope_from_keys(b.count("rope.dimension_count")?, pairs)?;
    b.text_sections(rope.n_rot / 2, false)?;
    let a = mixers::latent_attention(b, h, Some(&rope))?; // (T, heads * v_dim)
    let gate = b.linear(h, "attn_gate", heads)?; // (T, heads)
    b.linear(b.glu(Glu::Sigmoid, gate, a), "attn_output", b.width(h))
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let n_ff = b.count("expert_feed_forward_length")?;
    let mut experts = Mixture::new(b, blocks::gating(b, Gate::Sigmoid)?, b.flag_or("expert_weights_norm", false)?, n_ff)?;
    (experts.bias, experts.experts.glu) = (true, silu_capped(b.number_or("swiglu_clamp_exp", 0.0)?));
    let y = experts.build(b, h)?; // (T, n_embd)
    let n_shared = b.count_or("expert_shared_feed_forward_length", n_ff * b.count("expert_shared_count")?)?;
    Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_shared, silu_capped(b.number_or("swiglu_clamp_shexp", 0.0)?))?))
}
