//! DeepSeek V2, V3, R1, Kimi K2 and kin: latent attention; leading dense layers, then a grouped router with a shared
//! expert.
//!
//! Keys and values are cached as one latent row per token. `attn_k_b` moves the query into the latent space and
//! `attn_v_b` moves the result out of it, so attention runs over the latent rows as over a single key head. Files of
//! the older layout have both in one `attn_kv_b`; there keys and values are expanded and cached in full.

use anyhow::Result;

use super::blocks::{self, Mixture};
use crate::ops::{Attend, Gate, Glu, Pairs, Piece, Rope, Scaling};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    let by_position = b.number_or("attention.temperature_scale", 0.0)?;
    if by_position != 0.0 {
        let want = "none: this version does not scale attention with the position";
        return Err(b.bad_key("attention.temperature_scale", by_position, want));
    }

    let experts = experts(b)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?;
        x = b.add(x, attention(&b.role(Role::Attention), h, eps)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = if l.i < n_dense { blocks::dense(b, h, Glu::Silu)? } else { mixture(b, h, &experts)? };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

/// The rotation, and what the softmax scale must be multiplied with. YaRN in these models stretches the softmax scale
/// by mscale squared and, when the file gives `yarn_log_multiplier` (0.1 * mscale_all_dim), leaves cos and sin alone:
/// there the two corrections of the original cancel.
fn yarn(b: &Builder, n_rot: usize) -> Result<(Rope, f32)> {
    let mut rope = b.rope_from_keys(n_rot, Pairs::Adjacent)?;
    match &mut rope.scaling {
        Scaling::None => Ok((rope, 1.0)),
        Scaling::Linear(_) | Scaling::Long(_) => {
            Err(b.bad_key("rope.scaling.type", "another", "none or yarn in a model of this kind"))
        }
        Scaling::Yarn { factor, magnitude, .. } => {
            let log = b.number_or("rope.scaling.yarn_log_multiplier", 0.0)? / 0.1;
            if log != 0.0 {
                *magnitude = b.positive_or("rope.scaling.attn_factor", 1.0)?;
            }
            let mscale = *magnitude * (1.0 + 0.1 * log * factor.ln());
            Ok((rope, mscale * mscale))
        }
    }
}

fn attention(b: &Builder, h: Slot, eps: f32) -> Result<Slot> {
    let n_embd = b.count("embedding_length")?;
    let heads = b.count("attention.head_count")?;
    let latent = b.count("attention.kv_lora_rank")?;
    let n_rot = b.count("rope.dimension_count")?;
    let split = b.has("attn_k_b.weight");
    let (k_key, v_key) = if b.has_key("attention.key_length_mla") {
        ("attention.key_length_mla", "attention.value_length_mla")
    } else {
        ("attention.key_length", "attention.value_length")
    };
    let (k_dim, v_dim) = (b.count(k_key)?, b.count(v_key)?);
    let Some(plain) = k_dim.checked_sub(n_rot).filter(|&n| n > 0) else {
        return Err(b.bad_key(k_key, k_dim, format!("more than the {n_rot} values that are rotated")));
    };
    if split {
        b.ignore("attn_kv_b.", "attn_k_b and attn_v_b hold the same");
    }
    let (rope, mscale) = yarn(b, n_rot)?;
    let attend = Attend::causal(heads).scale(mscale / (k_dim as f32).sqrt());

    let q = if b.has("attn_q_a.weight") {
        let q = b.linear(h, "attn_q_a", b.count("attention.q_lora_rank")?)?;
        b.linear(b.norm(q, "attn_q_a_norm", eps)?, "attn_q_b", heads * k_dim)?
    } else {
        b.linear(h, "attn_q", heads * k_dim)?
    }; // (T, heads * (plain | rotated))
    let kv = b.linear(h, "attn_kv_a_mqa", latent + n_rot)?; // (T, latent | rotated)
    let c = b.norm(b.columns(kv, 0, latent)?, "attn_kv_a_norm", eps)?; // (T, latent)
    let k_rot = b.rope(b.columns(kv, latent, n_rot)?, n_rot, &rope)?; // (T, n_rot)
    let q_rot = b.pack(heads, &[Piece { x: q, stride: k_dim, offset: plain, len: n_rot }])?;
    let q_rot = b.rope(q_rot, n_rot, &rope)?; // (T, heads * n_rot)
    let q_plain = b.pack(heads, &[Piece { x: q, stride: k_dim, offset: 0, len: plain }])?;
    let each = |x, len| Piece { x, stride: len, offset: 0, len };
    let all = |x, len| Piece { x, stride: 0, offset: 0, len };

    let a = if split {
        let q_latent = b.head_linear(q_plain, "attn_k_b", heads, latent)?; // (T, heads * latent)
        let q = b.pack(heads, &[each(q_latent, latent), each(q_rot, n_rot)])?;
        let k = b.pack(1, &[all(c, latent), all(k_rot, n_rot)])?; // (T, latent + n_rot)
        let a = b.attend(q, &b.cache_shared(k, latent, None)?, attend)?; // (T, heads * latent)
        b.head_linear(a, "attn_v_b", heads, v_dim)? // (T, heads * v_dim)
    } else {
        let kv = b.linear(c, "attn_kv_b", heads * (plain + v_dim))?; // (T, heads * (k plain | v))
        let part = |offset, len| Piece { x: kv, stride: plain + v_dim, offset, len };
        let k = b.pack(heads, &[part(0, plain), all(k_rot, n_rot)])?; // (T, heads * k_dim)
        let v = b.pack(heads, &[part(plain, v_dim)])?; // (T, heads * v_dim)
        let q = b.pack(heads, &[each(q_plain, plain), each(q_rot, n_rot)])?;
        b.attend(q, &b.cache(k, v, heads, None)?, attend)?
    };
    b.linear(a, "attn_output", n_embd)
}

/// The routed experts, which all layers after the dense ones have alike.
fn experts(b: &Builder) -> Result<Mixture> {
    let n_ff = b.count("expert_feed_forward_length")?;
    let gate = match b.count_or_zero("expert_gating_func")? {
        // Files from before the key existed: V2 and its kin, except GLM-4.7-Flash, told by its vocabulary.
        0 if matches!(b.count("block_count")?, 47 | 48) && b.n_vocab()? == 154_880 => Gate::Sigmoid,
        0 | 1 => Gate::Softmax,
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
