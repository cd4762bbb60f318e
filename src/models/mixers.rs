//! What layers of several families have in the place of grouped attention: latent attention, Kimi
//! Delta Attention, Mamba-2. Plain functions, as in `blocks`; none of them knows a family.

use anyhow::Result;

use crate::ops::{Attend, Decay, Delta, Glu, Piece, Rope, Scan};
use crate::tape::{Builder, Role, Slot};

/// Latent attention to all positions, from a layer's normed rows to the heads' outputs: (T, heads *
/// value length). The last `rope.dimension_count` columns of each query and of the shared key are
/// rotated, if there is a rotation. Keys and values are cached as one latent row per token; files
/// of the older layout have `attn_kv_b`, and a full cache.
pub(super) fn latent_attention(b: &Builder, h: Slot, rope: Option<&Rope>) -> Result<Slot> {
    let b = &b.role(Role::Attention);
    let (heads, eps) = (b.count("attention.head_count")?, b.eps()?);
    let (latent, n_rot) = (b.count("attention.kv_lora_rank")?, b.count("rope.dimension_count")?);
    let (k_dim, v_dim) = (b.count("attention.key_length_mla")?, b.count("attention.value_length_mla")?);
    let Some(plain) = k_dim.checked_sub(n_rot).filter(|&n| n > 0) else {
        return Err(b.bad_key("attention.key_length_mla", k_dim, format!("more than rope.dimension_count, {n_rot}")));
    };
    let turn = |x: Slot| rope.map_or(Ok(x), |rope| b.rope(x, n_rot, rope));
    let attend = Attend::causal(heads).scale(1.0 / (k_dim as f32).sqrt());

    let q = if b.has("attn_q_a.weight") {
        let q = b.linear(h, "attn_q_a", b.count("attention.q_lora_rank")?)?;
        b.linear(b.norm(q, "attn_q_a_norm", eps)?, "attn_q_b", heads * k_dim)?
    } else {
        b.linear(h, "attn_q", heads * k_dim)?
    }; // (T, heads * (plain | rotated))
    let kv = b.linear(h, "attn_kv_a_mqa", latent + n_rot)?; // (T, latent | rotated)
    let c = b.norm(b.columns(kv, 0, latent)?, "attn_kv_a_norm", eps)?; // (T, latent)
    let k_rot = turn(b.columns(kv, latent, n_rot)?)?; // (T, n_rot)
    let q_rot = turn(b.pack(heads, &[Piece { x: q, stride: k_dim, offset: plain, len: n_rot }])?)?;
    let q_plain = b.pack(heads, &[Piece { x: q, stride: k_dim, offset: 0, len: plain }])?; // (T, heads * plain)
    let each = |x, len| Piece { x, stride: len, offset: 0, len };
    let all = |x, len| Piece { x, stride: 0, offset: 0, len };
    if !b.has("attn_k_b.weight") {
        let kv = b.linear(c, "attn_kv_b", heads * (plain + v_dim))?; // (T, heads * (k plain | v))
        let part = |offset, len| Piece { x: kv, stride: plain + v_dim, offset, len };
        let k = b.pack(heads, &[part(0, plain), all(k_rot, n_rot)])?; // (T, heads * k_dim)
        let v = b.pack(heads, &[part(plain, v_dim)])?; // (T, heads * v_dim)
        let q = b.pack(heads, &[each(q_plain, plain), each(q_rot, n_rot)])?;
        return b.attend(q, &b.cache(k, v, heads, None)?, attend);
    }
    b.ignore("attn_kv_b.", "attn_k_b and attn_v_b hold the same");
    let q_latent = b.head_linear(q_plain, "attn_k_b", heads, latent)?; // (T, heads * latent)
    let q = b.pack(heads, &[each(q_latent, latent), each(q_rot, n_rot)])?;
    let k = b.pack(1, &[all(c, latent), all(k_rot, n_rot)])?; // (T, latent + n_rot)
    let a = b.attend(q, &b.cache_shared(k, latent, None)?, attend)?; // (T, heads * latent)
    b.head_linear(a, "attn_v_b", heads, v_dim)
}

/// Kimi Delta Attention, from a layer's normed rows to what is added to the residual: convolutions
/// over q, k and v, the delta rule with a decay for each key channel, a norm gated by a sigmoid.
pub(super) fn kimi_delta(b: &Builder, h: Slot, decay: Decay) -> Result<Slot> {
    let b = &b.role(Role::Attention);
    let (heads, dim, eps) = (b.count("attention.head_count")?, b.count("kda.head_dim")?, b.eps()?);
    let (n, taps) = (heads * dim, b.count("ssm.conv_kernel")?);
    // Through two matrices or one.
    let project = |name: &str| match b.has(&format!("{name}_b.weight")) {
        true => b.linear(b.linear(h, &format!("{name}_a"), dim)?, &format!("{name}_b"), n),
        false if b.has(&format!("{name}.weight")) => b.linear(h, name, n),
        false => b.linear(h, &format!("{name}_a"), n),
    };
    let [q, k, v] = b.qkv(h, [n; 3])?; // (T, n) each
    let q = b.l2_norm(b.conv(q, "ssm_conv1d_q", taps)?, dim, eps);
    let k = b.l2_norm(b.conv(k, "ssm_conv1d_k", taps)?, dim, eps);
    let v = b.conv(v, "ssm_conv1d_v", taps)?;
    let beta = b.linear(h, "ssm_beta", heads)?; // (T, heads)
    let delta = Delta { k_heads: heads, v_heads: heads, dim, run: 1, decay };
    let y = b.delta(delta, [q, k, v, beta, project("ssm_f")?], "ssm_dt.bias", "ssm_a")?; // (T, n)
    let y = b.head_norm(y, "ssm_norm", dim, eps)?;
    b.linear(b.glu(Glu::Sigmoid, project("ssm_g")?, y), "attn_output", b.width(h))
}

/// The least exponent of a bounded decay that the file gives, if it does; see [`Decay::Bounded`].
pub(super) fn decay_bound(b: &Builder) -> Result<Option<f32>> {
    const BOUND: &str = "kda.gate_lower_bound";
    if !b.has_key(BOUND) {
        return Ok(None);
    }
    let bound = b.number(BOUND)?;
    if bound < 0.0 { Ok(Some(bound)) } else { Err(b.bad_key(BOUND, bound, "a number below 0")) }
}

/// A Mamba-2 layer, from its normed rows to what is added to the residual: a convolution over x, b
/// and c, a scan, a gate of SiLU, a norm per group where the file has one.
pub(super) fn mamba2(b: &Builder, h: Slot) -> Result<Slot> {
    let b = &b.role(Role::Attention);
    let (inner, heads) = (b.count("ssm.inner_size")?, b.count("ssm.time_step_rank")?);
    let (groups, columns) = (b.count("ssm.group_count")?, b.count("ssm.state_size")?);
    if !inner.is_multiple_of(heads) {
        return Err(b.bad_key(
            "ssm.inner_size",
            inner,
            format!("a multiple of the {heads} heads (ssm.time_step_rank)"),
        ));
    }
    let shared = groups * columns;
    let all = b.linear(h, "ssm_in", 2 * (inner + shared) + heads)?; // (T, z | x | b | c | dt)
    let z = b.columns(all, 0, inner)?;
    let xbc = b.conv(b.columns(all, inner, inner + 2 * shared)?, "ssm_conv1d", b.count("ssm.conv_kernel")?)?;
    let dt = b.columns(all, 2 * (inner + shared), heads)?;
    let part = |offset, len| b.columns(xbc, offset, len);
    let inputs = [part(0, inner)?, part(inner, shared)?, part(inner + shared, shared)?, dt];
    let y = b.mamba2(Scan { heads, dim: inner / heads, groups, columns }, inputs)?; // (T, inner)
    let y = b.glu(Glu::Silu, z, y);
    let y = if b.has("ssm_norm.weight") { b.group_norm(y, "ssm_norm", groups, b.eps()?)? } else { y };
    b.linear(y, "ssm_out", b.width(h))
}
