//! What layers of several families have in the place of grouped attention: latent attention, Kimi Delta Attention,
//! Mamba-2. Plain functions, as in `blocks`; none of them knows a family.

use anyhow::Result;

use super::latent::Latent;
use crate::ops::{Decay, Delta, Glu, Rope, Scan};
use crate::tape::{Builder, Role, Slot};

/// Latent attention to all positions, from a layer's normed rows to the heads' outputs: (T, heads * value length). The last
/// `rope.dimension_count` columns of each query and of the shared key are rotated, if there is a rotation. Keys and values are
/// cached as one latent row per token; files of the older layout have `attn_kv_b`, and a full cache.
pub(super) fn latent_attention(b: &Builder, h: Slot, rope: Option<&Rope>) -> Result<Slot> {
    let b = &b.role(Role::Attention);
    let latent = Latent { rope: rope.cloned(), ..Latent::new(b)? };
    latent.build(b, h, latent.low_rank(b, h)?, None)
}

/// Kimi Delta Attention, from a layer's normed rows to what is added to the residual: convolutions over q, k and v, the
/// delta rule with a decay for each key channel, a norm gated by a sigmoid.
pub(super) fn kimi_delta(b: &Builder, h: Slot, decay: Decay) -> Result<Slot> {
    delta_attention(b, h, decay, b.eps()?)
}

/// [`kimi_delta`] with an `l2_eps` of its own in the norms over keys and queries.
pub(super) fn delta_attention(b: &Builder, h: Slot, decay: Decay, l2_eps: f32) -> Result<Slot> {
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
    let q = b.l2_norm(b.conv(q, "ssm_conv1d_q", taps)?, dim, l2_eps);
    let k = b.l2_norm(b.conv(k, "ssm_conv1d_k", taps)?, dim, l2_eps);
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
