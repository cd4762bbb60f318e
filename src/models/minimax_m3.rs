//! MiniMax M3: grouped attention with per-head norms, rotated in part; leading dense layers, then a router with a bias for the
//! choice and a shared expert, all of gpt-oss's clamped SwiGLU. After the dense layers every key head reads only the blocks
//! of rows that its index head selects.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture, QkNorm};
use crate::ops::{BlockIndex, Gate, Glu, Pairs, Selected};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let mut attention = Attention { qk_norm: QkNorm::Heads, ..Attention::new(b, Pairs::Halves)? };
        if l.i >= n_dense {
            attention.selected = Some(select(&b.role(Role::Attention), h, &attention)?);
        }
        x = b.add(x, attention.build(b, h)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = if l.i < n_dense { blocks::dense(b, h, Glu::Oai)? } else { mixture(b, h)? };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

/// The blocks that each key head attends to: an index head for each.
fn select(b: &Builder, h: Slot, attention: &Attention) -> Result<Selected> {
    const HEADS: &str = "attention.indexer.head_count";
    let (heads, kv_heads) = (b.count(HEADS)?, attention.heads.1);
    if heads != kv_heads {
        return Err(b.bad_key(HEADS, heads, format!("as many as the {kv_heads} key heads")));
    }
    let x = BlockIndex {
        heads,
        dim: b.count("attention.indexer.key_length")?,
        k: b.count("attention.indexer.top_k")?,
        size: b.count("attention.indexer.block_size")?,
        local: b.count_or_zero("attention.indexer.local_blocks")?,
    };
    let turn = |x: Slot, name: &str, dim: usize| {
        let x = b.head_norm(x, name, dim, b.eps()?)?;
        attention.rope.as_ref().map_or(Ok(x), |rope| b.rope(x, dim, rope))
    };
    let q = turn(b.linear(h, "indexer.q_proj", heads * x.dim)?, "indexer.q_norm", x.dim)?; // (T, heads * dim)
    let k = turn(b.linear(h, "indexer.k_proj", x.dim)?, "indexer.k_norm", x.dim)?; // (T, dim)
    let blocks = b.index_blocks(x, q, b.cache_rows("indexer.k", k)?)?; // (T, heads * k)
    Ok(Selected { blocks, size: x.size, lists: heads })
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let n_ff = b.count("expert_feed_forward_length")?;
    let gate = blocks::gating(b, Gate::Sigmoid)?;
    let mut mixture = Mixture::new(b, gate, b.flag_or("expert_weights_norm", false)?, n_ff)?;
    (mixture.experts.glu, mixture.bias) = (Glu::Oai, true);
    let y = mixture.build(b, h)?; // (T, n_embd)
    let n_shared = n_ff * b.count("expert_shared_count")?;
    Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_shared, Glu::Oai)?))
}
