//! DeepSeek-V4.1: V4's streams with a mix that lags by a block; compressed rows (one per 2 tokens, or per token) that some layers
//! make and the layers after them read too, as they do the choice of an indexer, which is made in two levels from some layer
//! on; and two layers that first add rows of a table of n-grams (engram), which stays in the file.
//!
//! Which layer makes rows, keys or a choice is told by its tensors alone.

use anyhow::Result;

use super::compressed::{self, OneRow, RATIOS, mixture, ratio, streams};
use super::engram;
use super::levels::Levels;
use crate::ops::{Extra, Piece, Rope, Scaling};
use crate::tape::{Builder, Role, Slot, StateId};

/// What a file of this architecture cannot do without; what is read below anyway is not listed.
const NEEDED: [&str; 6] = [
    "context_length",
    "expert_weights_scale",
    "expert_weights_norm",
    "attention.compress_rope_freq_base",
    "attention.indexer.top_k",
    "engram.pad_id",
];

/// Keys of other programs' files under this architecture's name, in which other things differ too.
const FOREIGN: [&str; 4] = ["engram.head_dim", "engram.n_heads", "engram.pad_token_id", "engram.num_embeddings"];

/// What makes compressed rows.
const ROWS: &str = "attn_compressor_kv.weight";

/// What layers read of the newest layer that has it, with the tokens of a row.
#[derive(Debug)]
struct Newest {
    rows: Option<(StateId, usize)>,
    keys: Option<(StateId, usize)>,
    /// The chosen rows of each token.
    top: Option<(Slot, usize)>,
    /// The indexers.
    levels: Levels,
}

pub(super) fn build(b: &Builder) -> Result<Slot> {
    check(b)?;
    let (eps, hyper, layers) = (b.eps()?, streams(b)?, b.layers()?);
    let (grams, levels) = (engram::layers(b, layers.len())?, Levels::from_keys(b, &layers)?);
    b.spare_rows(); // of the layers after the last that makes rows, a prompt needs its end
    let x = b.embed()?; // (T, n_embd)
    let mut s = b.pack(hyper.n, &[Piece { x, stride: 0, offset: 0, len: hyper.width }])?; // (T, n * n_embd)
    let (mut pre, mut newest) = (None, Newest { rows: None, keys: None, top: None, levels });
    for l in &layers {
        let b = &l.scope(b);
        if grams.contains(&l.i) {
            s = engram::add(b, s)?;
        }
        let [h, back, next] = b.hyper_lagged("hc_attn", s, pre, hyper)?; // (T, n_embd), (T, n + n * n), (T, n)
        let h = b.norm(h, "attn_norm", eps)?;
        let a = attention(&b.role(Role::Attention), h, &mut newest)?;
        s = b.hyper_post(a, s, back);

        let [h, back, next] = b.hyper_lagged("hc_ffn", s, Some(next), hyper)?;
        let h = b.norm(h, "ffn_norm", eps)?;
        s = b.hyper_post(mixture(b, h)?, s, back);
        pre = Some(next);
    }
    let x = b.hyper_collapse(s, pre.expect("a model has a layer")); // (output rows, n_embd)
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

/// Refuses files that are not of the form that this family reads.
fn check(b: &Builder) -> Result<()> {
    if let Some(key) = NEEDED.iter().find(|key| !b.has_key(key)) {
        return Err(b.bad_key(key, "missing", "the value of the published model"));
    }
    if let Some(key) = FOREIGN.iter().find(|key| b.has_key(key)) {
        return Err(b.bad_key(key, "present", "no such key: the file has another program's layout"));
    }
    let dim = b.count("attention.key_length")?;
    let fixed = [("attention.head_count_kv", 1), ("attention.value_length", dim)];
    for (key, want) in fixed.into_iter().filter(|(key, _)| b.has_key(key)) {
        let n = b.count(key)?;
        if n != want {
            return Err(b.bad_key(key, n, format!("{want}: all heads share one row per token, key and value in one")));
        }
    }
    if b.count_or_zero("hash_layer_count")? > 0 {
        return Err(b.bad_key("hash_layer_count", b.count("hash_layer_count")?, "0: no layer is routed by token"));
    }
    b.ignore("mtp.", "draft blocks, which this version does not compute");
    ["v.", "mm."].iter().for_each(|part| b.ignore(part, "the vision tower; text-only here"));
    Ok(())
}

/// The rotation of a head's last columns, by YaRN's turns as the file has them.
fn rope(b: &Builder, dim: usize, compressed: bool) -> Result<Rope> {
    let mut rope = compressed::rope(b, dim, compressed)?;
    if let Scaling::Yarn { beta_fast, beta_slow, .. } = &mut rope.scaling {
        *beta_fast = b.positive_or("rope.scaling.yarn_beta_fast", 32.0)?;
        *beta_slow = b.positive_or("rope.scaling.yarn_beta_slow", 1.0)?;
    }
    Ok(rope)
}

/// The state or value that a layer with rows of `every` tokens reads, or the error that `tensor` is missing in it.
fn newest<T: Copy>(b: &Builder, of: Option<(T, usize)>, every: usize, tensor: &str) -> Result<T> {
    match of {
        Some((value, of)) if of == every => Ok(value),
        Some((_, of)) => Err(b.bad_key(RATIOS, every, format!("{of} in layer {}, as where {tensor} is", b.layer()))),
        None => {
            b.need(tensor)?;
            b.need(ROWS)?; // keys are made of them
            Err(b.bad_key(RATIOS, every, format!("0 in layer {}, before any that has {tensor}", b.layer())))
        }
    }
}

fn attention(b: &Builder, h: Slot, last: &mut Newest) -> Result<Slot> {
    const KEYS: &str = "indexer.attn_k.weight";
    const QUERIES: &str = "indexer.attn_q_b.weight";
    let (dim, every, eps) = (b.count("attention.key_length")?, ratio(b)?, b.eps()?);
    if every > 2 {
        return Err(b.bad_key(RATIOS, every, format!("0, 1 or 2 in layer {}", b.layer())));
    }
    let at = OneRow::new(b, dim, rope(b, dim, every != 0)?)?;
    let (q_low, q) = at.queries(b, h)?; // (T, q_lora_rank), (T, heads * dim)
    let q = b.rope(q, dim, &at.rope)?;
    let kv = at.row(b, h)?; // (T, dim)
    if every == 0 {
        return at.build(b, (q, kv), None);
    }
    if b.has(ROWS) {
        let rows = b.linear(h, "attn_compressor_kv", dim)?; // (T, dim)
        let pool = |rows| b.pool("attn_compressor", every, rows, b.linear(h, "attn_compressor_gate", dim)?);
        let rows = if every > 1 { pool(rows)? } else { rows };
        let rows = b.norm(rows, "attn_compressor_norm", eps)?;
        last.rows = Some((b.keep("attn_compressor", rows, every, at.rope.clone())?, every));
        if b.has(KEYS) {
            let dim = b.count("attention.indexer.key_length")?;
            let keys = b.norm(b.linear(rows, "indexer.attn_k", dim)?, "indexer.k_norm", eps)?; // (T, dim)
            last.keys = Some((b.keep("indexer.attn_k", keys, every, rope(b, dim, true)?)?, every));
        }
    }
    if b.has(QUERIES) {
        let keys = (newest(b, last.keys, every, KEYS)?, every);
        let dim = b.count("attention.indexer.key_length")?;
        last.top = Some((last.levels.choose(b, (h, q_low), &rope(b, dim, true)?, keys)?, every));
    }
    let (state, select) = (newest(b, last.rows, every, ROWS)?, Some(newest(b, last.top, every, QUERIES)?));
    at.build(b, (q, kv), Some(Extra { state, every, select }))
}
