//! Kimi K3: as Kimi Linear, with a bounded decay and a gate on latent attention; the residual
//! stream attends to what it was at the beginning of every block of layers; SiTU activations;
//! experts in a narrower space.

use anyhow::Result;

use super::blocks::{self, Mixture};
use super::mixers;
use crate::ops::{Decay, Gate, Glu, Piece};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    let block = b.count("attn_res.block_size")?;
    let decay = match mixers::decay_bound(b)? {
        Some(bound) => Decay::Bounded { bound, sign: -1.0 },
        None => Decay::Softplus,
    };
    let situ = Glu::Situ(b.positive("activation.situ_beta")?, b.cap("activation.situ_linear_beta")?);

    let mut x = b.embed()?; // (T, n_embd)
    let mut kept: Option<Slot> = None; // (T, blocks so far * n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let mixed = |kept: Option<Slot>, x: Slot, name: &str| kept.map_or(Ok(x), |k| b.mix_sources(k, x, name, eps));
        let input = x;
        let h = b.norm(mixed(kept, x, "attn_res_score")?, "attn_norm", eps)?; // (T, n_embd)
        if kept.is_none() {
            b.ignore("attn_res_score.", "nothing is kept yet that could be attended to");
        }
        let begins = l.i.is_multiple_of(block);
        if begins {
            let part = |x| Piece { x, stride: 0, offset: 0, len: b.width(x) };
            kept = Some(kept.map_or(Ok(input), |k| b.pack(1, &[part(k), part(input)]))?);
        }
        let a = match b.count_or_zero("attention.head_count_kv")? {
            0 => mixers::kimi_delta(b, h, decay)?,
            _ => attention(&b.role(Role::Attention), h)?,
        };
        x = if begins { a } else { b.add(x, a) };

        let h = b.norm(mixed(kept, x, "ffn_res_score")?, "ffn_norm", eps)?;
        x = b.add(x, if l.i < n_dense { blocks::dense(b, h, situ)? } else { mixture(b, h, situ, eps)? });
    }
    let x = kept.map_or(Ok(x), |k| b.mix_sources(k, x, "output_res_score", eps))?;
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

fn attention(b: &Builder, h: Slot) -> Result<Slot> {
    let a = mixers::latent_attention(b, h, None)?; // (T, heads * v_dim)
    let gated = match b.has("attn_gate.weight") {
        true => b.glu(Glu::Sigmoid, b.linear(h, "attn_gate", b.width(a))?, a),
        false => a,
    };
    b.linear(gated, "attn_output", b.width(h))
}

fn mixture(b: &Builder, h: Slot, situ: Glu, eps: f32) -> Result<Slot> {
    let n_ff = b.count("expert_feed_forward_length")?;
    let mut experts = Mixture::new(b, blocks::gating(b, Gate::Sigmoid)?, b.flag_or("expert_weights_norm", false)?, n_ff)?;
    (experts.bias, experts.experts.glu) = (true, situ);
    let latent = b.count_or_zero("expert_latent_length")?;
    let e = &b.role(Role::Experts);
    let x = if latent > 0 { e.linear(h, "ffn_routed_down", latent)? } else { h }; // (T, latent)
    let mut y = experts.build_apart(b, h, x)?;
    if latent > 0 {
        y = if b.has("ffn_routed_norm.weight") { e.norm(y, "ffn_routed_norm", eps)? } else { y };
        y = e.linear(y, "ffn_routed_up", b.width(h))?; // (T, n_embd)
    }
    Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_ff * b.count("expert_shared_count")?, situ)?))
}
