//! Hy4: residual streams that are not mixed with each other; latent attention with sinks, gated by a sigmoid, over rows that an
//! indexer chooses, which several layers share; clamped SwiGLU in the routed experts alone.

use anyhow::Result;

use super::blocks::{self, Mixture};
use super::latent::{Indexer, Latent};
use crate::ops::{Gate, Glu, Hyper, Pairs, Piece, Rope};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let (n_embd, eps) = (b.count("embedding_length")?, b.eps()?);
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    let hyper = Hyper {
        n: b.count("hyper_connection.count")?,
        width: n_embd,
        rounds: None,
        magnitude: b.number("hyper_connection.magnitude")?,
        eps: b.number("hyper_connection.epsilon")?,
        norm_eps: eps,
    };
    let latent = Latent::new(b)?;
    let indexer = indexer(b, &latent)?;
    let mut last = None;
    let x = b.embed()?; // (T, n_embd)
    let mut s = b.pack(hyper.n, &[Piece { x, stride: 0, offset: 0, len: n_embd }])?; // (T, n * n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let (h, back) = b.hyper_pre("hc_attn", s, hyper)?; // (T, n_embd), (T, n)
        let h = b.norm(h, "attn_norm", eps)?;
        let mixer = &b.role(Role::Attention);
        let low = latent.low_rank(mixer, h)?;
        let selected = match &indexer {
            Some(indexer) => indexer.build_or_last(mixer, (h, low), true, &mut last)?,
            None => None,
        };
        let sinks = Some(b.vector("attn_sinks.weight", &[latent.heads])?);
        let a = Latent { sinks, ..latent.clone() }.build(mixer, h, low, selected)?; // (T, heads * v_dim)
        let a = b.glu(Glu::Sigmoid, mixer.linear(h, "attn_gate", b.width(a))?, a);
        s = b.hyper_post(mixer.linear(a, "attn_output", n_embd)?, s, back);

        let (h, back) = b.hyper_pre("hc_ffn", s, hyper)?;
        let h = b.norm(h, "ffn_norm", eps)?;
        let y = if l.i < n_dense { blocks::dense(b, h, Glu::Silu)? } else { mixture(b, h)? };
        s = b.hyper_post(y, s, back);
    }
    let x = b.hyper_head("output_hc", s, hyper)?; // (output rows, n_embd)
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

/// The indexer, in files that have one: its queries and keys are rotated in their last columns, as the attention's are.
fn indexer(b: &Builder, latent: &Latent) -> Result<Option<Indexer>> {
    const DIM: &str = "attention.indexer.key_length";
    if b.count_or_zero("attention.indexer.top_k")? == 0 {
        return Ok(None);
    }
    let rope = b.rope_from_keys(latent.k_dim, Pairs::Adjacent)?;
    let dim = b.count(DIM)?;
    let Some(offset) = dim.checked_sub(rope.n_rot) else {
        return Err(b.bad_key(DIM, dim, format!("no fewer than the {} columns that are rotated", rope.n_rot)));
    };
    Indexer::new(b, Rope { offset, ..rope }, latent.eps).map(Some)
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let n_ff = b.count("expert_feed_forward_length")?;
    let gate = blocks::gating(b, Gate::Sigmoid)?;
    let mut mixture = Mixture::new(b, gate, b.flag_or("expert_weights_norm", false)?, n_ff)?;
    mixture.experts.glu = blocks::silu_clamped(b.number_or("swiglu_clamp_exp", 0.0)?);
    mixture.bias = true;
    let y = mixture.build(b, h)?; // (T, n_embd)
    let n_shared = n_ff * b.count("expert_shared_count")?;
    Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_shared, Glu::Silu)?))
}
