//! MiMo-V2-Flash and kin: values narrower than keys, key heads for each layer, layers that see a window and have sinks;
//! a first dense layer, then a sigmoid router with a bias for the choice, top-k renormalised.

use anyhow::Result;

use super::blocks::{self, Attention, Full, Mixture, windowed};
use super::heads::{Frame, is_windowed};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let windowed = windowed(b, &layers, 6, Full::First)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        x = layer(&l.scope(b), x, windowed[l.i])?;
    }
    let logits = b.head(b.norm(x, "output_norm", eps)?)?; // (output rows, n_vocab)
    Frame::residual().record(b, (logits, x), |b, x| layer(b, x, is_windowed(b)?))
}

fn layer(b: &Builder, x: Slot, windowed: bool) -> Result<Slot> {
    let eps = b.eps()?;
    let mut attention = Attention::new(b, Pairs::Halves)?;
    if windowed {
        attention = attention.in_window(b, b.tokens("attention.sliding_window")?)?;
    }
    attention.sinks = b.opt_vector("attn_sinks.weight", &[attention.heads.0])?;
    let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
    let x = b.add(x, b.scale(attention.build(b, h)?, b.number_or("attention.value_scale", 1.0)?));

    let h = b.norm(x, "ffn_norm", eps)?;
    let y = if blocks::is_dense(b)? { blocks::dense(b, h, Glu::Silu)? } else { experts(b)?.build(b, h)? };
    Ok(b.add(x, y))
}

fn experts(b: &Builder) -> Result<Mixture> {
    let mut experts = Mixture::from_keys(b, Gate::Sigmoid)?;
    experts.route.norm = true;
    Ok(experts)
}
