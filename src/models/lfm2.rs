//! LFM2 and LFM2.5, dense and MoE: gated short convolutions, and every few layers grouped attention
//! with norms on q and k; in the MoE ones leading dense layers, then experts of a sigmoid router
//! with a bias for the choice.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture, QkNorm};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let n_dense = b.count_or_zero("leading_dense_block_count")?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?;
        let a = match b.count_or_zero("attention.head_count_kv")? {
            0 => short_conv(&b.role(Role::Attention), h)?,
            _ => {
                let window = b.optional_tokens("attention.sliding_window")?;
                Attention { qk_norm: QkNorm::Heads, window, ..Attention::new(b, Pairs::Halves)? }.build(b, h)?
            }
        }; // (T, n_embd)
        x = b.add(x, a);

        let h = b.norm(x, "ffn_norm", eps)?;
        let moe = l.i >= n_dense && b.has_key("expert_count");
        x = b.add(x, if moe { mixture(b, h)? } else { blocks::dense(b, h, Glu::Silu)? });
    }
    b.head(b.norm(x, "token_embd_norm", eps)?) // (output rows, n_vocab)
}

/// `out(c * conv(b * x))`, with `b | c | x` from one matrix.
fn short_conv(b: &Builder, h: Slot) -> Result<Slot> {
    let (n, taps) = (b.width(h), b.count("shortconv.l_cache")?);
    let bcx = b.linear(h, "shortconv.in_proj", 3 * n)?; // (T, b | c | x)
    let part = |i: usize| b.columns(bcx, i * n, n);
    let y = b.linear_conv(b.glu(Glu::Multiply, part(0)?, part(2)?), "shortconv.conv", taps)?; // (T, n_embd)
    b.linear(b.glu(Glu::Multiply, part(1)?, y), "shortconv.out_proj", n)
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let n_ff = b.count("expert_feed_forward_length")?;
    Mixture { bias: true, ..Mixture::new(b, blocks::gating(b, Gate::Sigmoid)?, true, n_ff)? }.build(b, h)
}
