//! DeepSeek-V4: four residual streams joined by hyper-connections; attention over a sliding window plus compressed
//! rows of everything before (one row per 4 tokens, chosen by an indexer, or one per 128, all of them); sqrt-softplus
//! routing with the first layers routed by token.

use anyhow::Result;

use super::compressed::{OneRow, RATIOS, mixture, ratio, rope, streams};
use super::heads::Frame;
use crate::ops::{Compress, Extra, Hyper, Index, Piece};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.count("embedding_length")?;
    let hyper = streams(b)?;
    let x = b.embed()?; // (T, n_embd)
    let mut s = b.pack(hyper.n, &[Piece { x, stride: 0, offset: 0, len: n_embd }])?; // (T, n * n_embd)
    for l in b.layers()? {
        s = layer(&l.scope(b), s, hyper)?;
    }
    let join = |b: &Builder, s: Slot| b.root().hyper_head("output_hc", s, hyper);
    let x = join(b, s)?; // (output rows, n_embd)
    let logits = b.head(b.norm(x, "output_norm", b.eps()?)?)?; // (output rows, n_vocab)
    let frame = Frame { streams: hyper.n, join: &join, ..Frame::residual() };
    frame.record(b, (logits, s), |b, s| layer(b, s, hyper))
}

/// A layer, from the streams to the streams: (T, n * n_embd).
fn layer(b: &Builder, s: Slot, hyper: Hyper) -> Result<Slot> {
    let eps = b.eps()?;
    let (h, back) = b.hyper_pre("hc_attn", s, hyper)?; // (T, n_embd)
    let h = b.norm(h, "attn_norm", eps)?;
    let a = attention(&b.role(Role::Attention), h, eps)?;
    let s = b.hyper_post(a, s, back);

    let (h, back) = b.hyper_pre("hc_ffn", s, hyper)?;
    let h = b.norm(h, "ffn_norm", eps)?;
    Ok(b.hyper_post(mixture(b, h)?, s, back))
}

fn attention(b: &Builder, h: Slot, eps: f32) -> Result<Slot> {
    let dim = b.count("attention.key_length")?;
    let ratio = ratio(b)?;
    let at = OneRow::new(b, dim, rope(b, dim, ratio != 0)?)?;
    let (q_low, q) = at.queries(b, h)?; // (T, q_lora_rank), (T, heads * dim)
    let q = b.rope(b.bare_norm(q, dim, eps), dim, &at.rope)?;
    let kv = at.row(b, h)?; // (T, dim)

    let compress = |name: &str, dim: usize| {
        let overlap = ratio == 4;
        let norm = Some((b.vector(&format!("{name}_norm.weight"), &[dim])?, eps));
        let c = Compress { ratio, dim, overlap, norm, rope: Some(rope(b, dim, true)?) };
        let wide = dim * (1 + overlap as usize);
        let rows = b.linear(h, &format!("{name}_kv"), wide)?;
        let scores = b.linear(h, &format!("{name}_gate"), wide)?;
        b.compress(name, c, rows, Some(scores))
    };
    let extra = match ratio {
        0 => None,
        128 => Some(Extra { state: compress("attn_compressor", dim)?, every: ratio, select: None }),
        4 => {
            let state = compress("attn_compressor", dim)?;
            let (n, dim) = (b.count("attention.indexer.head_count")?, b.count("attention.indexer.key_length")?);
            let keys = compress("indexer_compressor", dim)?;
            let q = b.linear(q_low, "indexer.attn_q_b", n * dim)?; // (T, n * dim)
            let q = b.rope(q, dim, &rope(b, dim, true)?)?;
            let weights = b.linear(h, "indexer.proj", n)?; // (T, n)
            let x = Index { heads: n, dim, k: b.count("attention.indexer.top_k")?, every: ratio, open: false };
            let select = Some(b.index(x, q, Some(weights), keys)?); // (T, top_k)
            Some(Extra { state, every: ratio, select })
        }
        other => return Err(b.bad_key(RATIOS, other, format!("0, 4 or 128 in layer {}", b.layer()))),
    };
    at.build(b, (q, kv), extra)
}
