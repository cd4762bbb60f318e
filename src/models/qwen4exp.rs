//! Qwen4: Qwen3.5's layers between residual streams that are gated through a bottleneck, with a sigmoid in the delta net's gate;
//! attention reads the blocks of rows whose mean keys an indexer prefers, and the newest. One layer adds rows of a table of
//! n-grams, which can be larger than memory and stays in the file.

use std::sync::Arc;

use anyhow::Result;

use super::qwen35::{attention, delta_net, mixture};
use crate::ops::{Compress, Glu, HyperLow, Index, Ngram, Pairs, Piece, Selected};
use crate::tape::{Builder, Role, Slot};

const NGRAM: &str = "ple.ngram_size";

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let (n_embd, eps) = (b.count("embedding_length")?, b.eps()?);
    let every = b.count_or("full_attention_interval", 4)?;
    let n = b.count("hyper_connection.count")?;
    let hyper = HyperLow { n, rank: b.count("hyper_connection.low_rank")?, eps };
    let x = b.embed()?; // (T, n_embd)
    let mut s = b.pack(n, &[Piece { x, stride: 0, offset: 0, len: n_embd }])?; // (T, n * n_embd)
    let layers = b.counts("ple.layers")?.unwrap_or_default();
    let grams = if layers.is_empty() { None } else { Some(grams(b, &layers)?) };
    for l in b.layers()? {
        let b = &l.scope(b);
        if let Some(grams) = grams.filter(|_| layers.contains(&l.i)) {
            s = add_grams(b, grams, s, eps)?;
        }
        let (h, back) = b.hyper_low("hc_attn", s, hyper)?; // (T, n_embd), (T, n)
        let recurrent = b.flag_or("attention.recurrent_layers", !(l.i + 1).is_multiple_of(every))?;
        let mixer = &b.role(Role::Attention);
        let a = match recurrent {
            true => delta_net(mixer, h, eps, Glu::Sigmoid)?,
            false => attention(mixer, h, eps, select(mixer, h, eps)?)?,
        }; // (T, n_embd)
        s = b.hyper_post(a, s, back);

        let (h, back) = b.hyper_low("hc_ffn", s, hyper)?;
        s = b.hyper_post(mixture(b, h)?, s, back);
    }
    b.head(b.hyper_low_head("output_hc", s, hyper)?) // (output rows, n_vocab)
}

/// The rows that a layer attends to: of blocks of `compress_ratios` rows those whose mean key the indexer prefers, and the
/// one that is not complete.
fn select(b: &Builder, h: Slot, eps: f32) -> Result<Option<Selected>> {
    const TOP_K: &str = "attention.indexer.top_k";
    let size = b.count_or_zero("attention.compress_ratios")?;
    if size == 0 {
        return Ok(None);
    }
    let (heads, dim) = (b.count("attention.indexer.head_count")?, b.count("attention.indexer.key_length")?);
    let rows = b.count(TOP_K)?;
    if !rows.is_multiple_of(size) {
        return Err(b.bad_key(TOP_K, rows, format!("a multiple of the {size} rows of a block")));
    }
    let rope = b.rope_from_keys(dim, Pairs::Halves)?;
    let q = b.linear(h, "indexer.q_proj", heads * dim)?; // (T, heads * dim)
    let q = b.rope(b.head_norm(q, "indexer.q_norm", dim, eps)?, dim, &rope)?;
    let norm = Some((b.vector("indexer.k_norm.weight", &[dim])?, eps));
    let c = Compress { ratio: size, dim, overlap: false, norm, rope: Some(rope) };
    let keys = b.compress("indexer.k", c, b.linear(h, "indexer.k_proj", dim)?, None)?;
    let x = Index { heads, dim, k: rows / size, every: size, open: true };
    Ok(Some(Selected { blocks: b.index(x, q, None, keys)?, size, lists: 1 })) // (T, rows / size + 1)
}

/// The rows of the table that each token and those before it choose: (T, heads * columns).
fn grams(b: &Builder, layers: &[usize]) -> Result<Slot> {
    const PER: &str = "ple.heads_per_ngram";
    if layers.len() > 1 {
        return Err(b.bad_key("ple.layers", format!("{layers:?}"), "one layer"));
    }
    let (longest, per) = (b.count_up_to(NGRAM, 64)?, b.count_up_to(PER, 1024)?);
    if longest < 2 {
        return Err(b.bad_key(NGRAM, longest, "2 or more"));
    }
    let list = |name: &str, n: usize| match b.whole_numbers(name)? {
        Some(mut list) if list.len() >= n => {
            list.truncate(n);
            Ok(list)
        }
        found => Err(b.bad_key(name, format!("{} numbers", found.map_or(0, |l| l.len())), format!("{n}"))),
    };
    let n_heads = (longest - 1) * per;
    let sizes = list("ple.head_vocab_sizes", n_heads)?;
    if sizes.contains(&0) {
        return Err(b.bad_key("ple.head_vocab_sizes", 0, "numbers above 0"));
    }
    let factors = list("ple.layer_multipliers", longest)?.into_iter().map(|f| f as u64).collect();
    let heads = list("ple.head_offsets", n_heads)?.into_iter().zip(sizes).collect();
    let pad = b.count_or_zero("ple.eos_token_id")? as u32;
    let dim = b.count("embedding_length_per_layer_input")?;
    b.ngram("per_layer_token_embd.weight", Ngram { factors, heads, map: Arc::default(), pad, ends: true }, dim)
}

/// The streams with the rows of the table in them: gated by each stream, and convolved along the sequence.
fn add_grams(b: &Builder, grams: Slot, s: Slot, eps: f32) -> Result<Slot> {
    let (all, n_embd) = (b.width(s), b.count("embedding_length")?);
    let (key, value) = (b.linear(grams, "ple_key", all)?, b.linear(grams, "ple_value", n_embd)?);
    let norms = ["ple_norm_key", "ple_norm_query", "ple_norm_conv"];
    let [gated, normed] = b.stream_gate([key, value, s], norms, eps)?; // (T, n * n_embd) each
    let conv = b.wide_conv(normed, "ple_conv1d", b.count("ple.conv_kernel")?, b.count(NGRAM)?)?;
    Ok(b.add(s, b.add(gated, conv)))
}
