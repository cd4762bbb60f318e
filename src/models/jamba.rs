//! Jamba: Mamba layers with norms on step, b and c, and every few of them one of grouped attention
//! without a rotation; experts of a softmax router in some layers, in the others a dense
//! feed-forward layer.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let a = match b.count_or_zero("attention.head_count_kv")? {
            0 => mamba(&b.role(Role::Attention), h, eps)?,
            _ => Attention { rope: None, ..Attention::new(b, Pairs::Halves)? }.build(b, h)?,
        };
        x = b.add(x, a);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = match b.has("ffn_gate_inp.weight") {
            true => {
                let norm = b.flag_or("expert_weights_norm", false)?;
                Mixture::new(b, Gate::Softmax, norm, b.count("feed_forward_length")?)?.build(b, h)?
            }
            false => blocks::dense(b, h, Glu::Silu)?,
        };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

/// A Mamba layer: a convolution over x, step, b and c from its output, a scan, a gate of SiLU.
fn mamba(b: &Builder, h: Slot, eps: f32) -> Result<Slot> {
    let (inner, columns) = (b.count("ssm.inner_size")?, b.count("ssm.state_size")?);
    let rank = b.count("ssm.time_step_rank")?;
    // Both are used where a file has them; here there must be some.
    ["ssm_conv1d.bias", "ssm_dt.bias"].into_iter().try_for_each(|name| b.need(name))?;
    let xz = b.linear(h, "ssm_in", 2 * inner)?; // (T, x | z)
    let x = b.conv(b.columns(xz, 0, inner)?, "ssm_conv1d", b.count("ssm.conv_kernel")?)?; // (T, inner)
    let all = b.linear(x, "ssm_x", rank + 2 * columns)?; // (T, dt | b | c)
    let part = |offset, len, name| b.norm(b.columns(all, offset, len)?, name, eps);
    let dt = b.linear(part(0, rank, "ssm_dt_norm")?, "ssm_dt", inner)?; // (T, inner)
    let inputs = [x, part(rank, columns, "ssm_b_norm")?, part(rank + columns, columns, "ssm_c_norm")?, dt];
    let y = b.mamba(inputs)?; // (T, inner)
    b.linear(b.glu(Glu::Silu, b.columns(xz, inner, inner)?, y), "ssm_out", b.width(h))
}
