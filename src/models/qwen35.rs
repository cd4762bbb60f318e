//! Qwen3-Next, and Qwen3.5, dense and MoE: three gated-delta-net layers to one of gated attention;
//! a shared expert with a sigmoid gate.

use anyhow::Result;

use super::blocks::{self, Mixture};
use super::heads::Frame;
use crate::ops::{Attend, Decay, Delta, Gate, Glu, Pairs, Piece, Selected};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let every = b.count_or("full_attention_interval", 4)?;

    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let recurrent = b.flag_or("attention.recurrent_layers", !(l.i + 1).is_multiple_of(every))?;
        x = layer(b, x, recurrent)?;
    }
    let h = b.norm(x, "output_norm", eps)?;
    let logits = b.head(h)?; // (output rows, n_vocab)
    Frame::normed().record(b, (logits, h), |b, x| layer(b, x, false))
}

fn layer(b: &Builder, x: Slot, recurrent: bool) -> Result<Slot> {
    let eps = b.eps()?;
    let h = b.norm(x, "attn_norm", eps)?;
    let mixer = &b.role(Role::Attention);
    let a = match recurrent {
        true => delta_net(mixer, h, eps, Glu::Silu)?,
        false => attention(mixer, h, eps, None)?,
    }; // (T, n_embd)
    let x = b.add(x, a);

    let h = b.norm(x, "post_attention_norm", eps)?;
    let moe = b.has("ffn_gate_inp.weight");
    let y = if moe { mixture(b, h)? } else { blocks::dense(b, h, Glu::Silu)? };
    Ok(b.add(x, y))
}

/// Attention whose output is gated by a sigmoid; `attn_q` holds query and gate of each head next to each other.
pub(super) fn attention(b: &Builder, h: Slot, eps: f32, selected: Option<Selected>) -> Result<Slot> {
    let n_embd = b.count("embedding_length")?;
    let (heads, kv_heads) = b.heads()?;
    let dim = b.head_dim(heads, n_embd)?;
    let rope = b.rope_from_keys(dim, Pairs::Halves)?;
    b.text_sections(rope.n_rot / 2, true)?;
    let [qg, k, v] = b.qkv(h, [heads * dim * 2, kv_heads * dim, kv_heads * dim])?; // (T, heads * (q | gate)) ...
    let piece = |offset| Piece { x: qg, stride: dim * 2, offset, len: dim };
    let q = b.pack(heads, &[piece(0)])?; // (T, heads * dim)
    let gate = b.pack(heads, &[piece(dim)])?; // (T, heads * dim)
    let q = b.rope(b.head_norm(q, "attn_q_norm", dim, eps)?, dim, &rope)?;
    let k = b.rope(b.head_norm(k, "attn_k_norm", dim, eps)?, dim, &rope)?;
    let kv = b.cache(k, v, kv_heads, None)?;
    let a = b.attend(q, &kv, Attend::causal(heads).selected(selected))?; // (T, heads * dim)
    b.linear(b.glu(Glu::Sigmoid, gate, a), "attn_output", n_embd)
}

/// Gated delta net: convolution over q, k and v, the delta rule, a norm that is gated.
pub(super) fn delta_net(b: &Builder, h: Slot, eps: f32, gate: Glu) -> Result<Slot> {
    let n_embd = b.count("embedding_length")?;
    let (k_heads, v_heads) = (b.count("ssm.group_count")?, b.count("ssm.time_step_rank")?);
    let dim = b.count("ssm.state_size")?;
    let inner = b.count_or("ssm.inner_size", v_heads * dim)?;
    if inner != v_heads * dim {
        return Err(b.bad_key("ssm.inner_size", inner, format!("{v_heads} heads of {dim}, as wide as those of the keys")));
    }
    let (n_k, n_v) = (k_heads * dim, v_heads * dim);
    let by_key_head = b.has("ssm_ba.weight");
    let run = if by_key_head { v_heads / k_heads } else { 1 };
    let delta = Delta { k_heads, v_heads, dim, run, decay: Decay::Softplus };
    let (qkv, z) = match b.has("ssm_in.weight") {
        true => qkvz(b, h, &delta)?,
        false => (b.linear(h, "attn_qkv", 2 * n_k + n_v)?, b.linear(h, "attn_gate", n_v)?),
    }; // (T, q | k | v) and (T, n_v)
    let (beta, alpha) = match by_key_head {
        true => {
            let x = b.linear(h, "ssm_ba", 2 * v_heads)?; // (T, k_heads * (beta | alpha))
            let part = |offset| b.pack(k_heads, &[Piece { x, stride: 2 * run, offset, len: run }]);
            (part(0)?, part(run)?)
        }
        false => (b.linear(h, "ssm_beta", v_heads)?, b.linear(h, "ssm_alpha", v_heads)?),
    }; // (T, v_heads) each
    let qkv = b.conv(qkv, "ssm_conv1d", b.count("ssm.conv_kernel")?)?;
    let q = b.l2_norm(b.columns(qkv, 0, n_k)?, dim, eps); // (T, n_k)
    let k = b.l2_norm(b.columns(qkv, n_k, n_k)?, dim, eps); // (T, n_k)
    let v = b.columns(qkv, 2 * n_k, n_v)?; // (T, n_v)
    let y = b.delta(delta, [q, k, v, beta, alpha], "ssm_dt.bias", "ssm_a")?; // (T, n_v)
    let y = b.head_norm(y, "ssm_norm", dim, eps)?;
    b.linear(b.glu(gate, z, y), "ssm_out", n_embd)
}

/// Queries, keys and values, and the gate, from the one matrix of older Qwen3-Next files, whose rows go by key head.
fn qkvz(b: &Builder, h: Slot, d: &Delta) -> Result<(Slot, Slot)> {
    let (dim, n_v) = (d.dim, d.run * d.dim);
    let stride = 2 * dim + 2 * n_v;
    let x = b.linear(h, "ssm_in", d.k_heads * stride)?; // (T, k_heads * (q | k | v | z))
    let part = |offset, len| b.pack(d.k_heads, &[Piece { x, stride, offset, len }]);
    let all = |x, len| Piece { x, stride: 0, offset: 0, len: d.k_heads * len };
    let qkv = b.pack(1, &[all(part(0, dim)?, dim), all(part(dim, dim)?, dim), all(part(2 * dim, n_v)?, n_v)])?;
    Ok((qkv, part(2 * dim + n_v, n_v)?))
}

pub(super) fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let experts = Mixture::new(b, Gate::Softmax, true, b.count("expert_feed_forward_length")?)?;
    let y = experts.build(b, h)?; // (T, n_embd)
    if !b.has("ffn_up_shexp.weight") {
        return Ok(y);
    }
    Ok(b.add(y, blocks::gated_shared(b, h, b.count("expert_shared_feed_forward_length")?)?))
}
