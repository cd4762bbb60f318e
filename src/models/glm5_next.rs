//! GLM-5.3-Flash: three layers of Kimi Delta Attention to one of latent attention without a rotation, whose rows an indexer
//! chooses in blocks by pooled keys; residual streams joined by hyper-connections; clamped SwiGLU, leading dense layers, then
//! experts and a shared one.

use anyhow::Result;

use super::blocks::{self, Mixture, silu_clamped};
use super::latent::Latent;
use super::mixers::{decay_bound, delta_attention};
use crate::ops::{Compress, Decay, Gate, Hyper, Index, Piece, Selected};
use crate::tape::{Builder, Role, Slot};

/// Of the L2 norms over keys and queries of Kimi Delta Attention, whatever the file says.
const L2_EPS: f32 = 1e-6;

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let (n_embd, eps) = (b.count("embedding_length")?, b.eps()?);
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    let hyper = Hyper {
        n: b.count("hyper_connection.count")?,
        width: n_embd,
        rounds: Some(b.count_up_to("hyper_connection.sinkhorn_iterations", 1000)?),
        magnitude: 2.0,
        eps: b.number("hyper_connection.epsilon")?,
        norm_eps: eps,
    };
    let decay = decay_bound(b)?.map_or(Decay::Softplus, |bound| Decay::Bounded { bound, sign: -1.0 });
    let latent = Latent::new(b)?;
    let mut last = None;
    let x = b.embed()?; // (T, n_embd)
    let mut s = b.pack(hyper.n, &[Piece { x, stride: 0, offset: 0, len: n_embd }])?; // (T, n * n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let (h, back) = b.hyper_pre("hc_attn", s, hyper)?; // (T, n_embd)
        let h = b.norm(h, "attn_norm", eps)?;
        let a = match b.count_or_zero("attention.head_count_kv")? {
            0 => delta_attention(b, h, decay, L2_EPS)?,
            _ => attention(&b.role(Role::Attention), h, &latent, &mut last)?,
        };
        s = b.hyper_post(a, s, back);

        let (h, back) = b.hyper_pre("hc_ffn", s, hyper)?;
        let h = b.norm(h, "ffn_norm", eps)?;
        let clamp = b.number_or("swiglu_clamp_exp", 0.0)?;
        let shared_clamp = b.number_or("swiglu_clamp_shexp", clamp)?;
        let y = match l.i < n_dense {
            true => blocks::dense(b, h, silu_clamped(shared_clamp))?,
            false => mixture(b, h, (clamp, shared_clamp))?,
        };
        s = b.hyper_post(y, s, back);
    }
    b.head(b.norm(b.hyper_mean(s, hyper.n), "output_norm", eps)?) // (output rows, n_vocab)
}

/// Latent attention to the rows that the layer's indexer chooses, or the last one before it.
fn attention(b: &Builder, h: Slot, latent: &Latent, last: &mut Option<Selected>) -> Result<Slot> {
    const TYPES: &str = "attention.indexer.types";
    b.need("attn_q_a.weight")?;
    let low = latent.low_rank(b, h)?;
    if b.flag_or(TYPES, true)? {
        *last = Some(select(b, h, low.expect("what attn_q_a gives"))?);
    }
    if last.is_none() {
        return Err(b.bad_key(TYPES, false, "true for the first layer with such attention"));
    }
    let a = latent.build(b, h, low, *last)?; // (T, heads * v_dim)
    b.linear(a, "attn_output", b.width(h))
}

/// The blocks of `kpool` rows that the indexer prefers by their pooled keys, and the one that is not complete.
fn select(b: &Builder, h: Slot, low: Slot) -> Result<Selected> {
    const TOP_K: &str = "attention.indexer.top_k";
    const TAIL: &str = "attention.indexer.kpool_select_tail";
    let (heads, dim) = (b.count("attention.indexer.head_count")?, b.count("attention.indexer.key_length")?);
    let (rows, size) = (b.count(TOP_K)?, b.count("attention.indexer.kpool")?);
    if !rows.is_multiple_of(size) {
        return Err(b.bad_key(TOP_K, rows, format!("a multiple of the {size} rows of a block")));
    }
    if !b.flag_or(TAIL, false)? {
        return Err(b.bad_key(TAIL, false, "true: without the open block the first tokens would see nothing"));
    }
    b.need("indexer.k_norm.bias")?;
    let eps = b.number_or("attention.layer_norm_epsilon", 0.0)?;
    let k = b.layer_norm(b.linear(h, "indexer.attn_k", dim)?, "indexer.k_norm", eps)?; // (T, dim)
    let gate = b.linear(h, "indexer_compressor_gate", dim)?; // (T, dim)
    let c = Compress { ratio: size, dim, overlap: false, norm: None, rope: None };
    let keys = b.compress("indexer_compressor", c, k, Some(gate))?;
    let q = b.linear(low, "indexer.attn_q_b", heads * dim)?; // (T, heads * dim)
    let weights = b.linear(h, "indexer.proj", heads)?; // (T, heads)
    let x = Index { heads, dim, k: rows / size, every: size, open: true };
    Ok(Selected { blocks: b.index(x, q, Some(weights), keys)?, size, lists: 1 }) // (T, rows / size + 1)
}

fn mixture(b: &Builder, h: Slot, (clamp, shared_clamp): (f32, f32)) -> Result<Slot> {
    let n_ff = b.count("expert_feed_forward_length")?;
    let gate = match b.count_or_zero("expert_gating_func")? {
        1 => Gate::Softmax,
        0 | 2 => Gate::Sigmoid,
        other => return Err(b.bad_key("expert_gating_func", other, "1 (softmax) or 2 (sigmoid)")),
    };
    let mut mixture = Mixture::new(b, gate, b.flag_or("expert_weights_norm", false)?, n_ff)?;
    (mixture.experts.glu, mixture.bias) = (silu_clamped(clamp), true);
    let y = mixture.build(b, h)?; // (T, n_embd)
    let n_shared = n_ff * b.count("expert_shared_count")?;
    Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_shared, silu_clamped(shared_clamp))?))
}
