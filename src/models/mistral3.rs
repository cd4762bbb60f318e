//! Mistral 3, dense and MoE: Llama with YaRN whose numbers the file gives, and queries that grow with the logarithm of
//! their position.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture, mscale};
use crate::ops::{Gate, Glu, Pairs, Rope, Scaling};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let temperature = blocks::temperature(b)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let mut attention = Attention { temperature, ..Attention::new(b, Pairs::Adjacent)? };
        attention.rope = attention.rope.map(|rope| yarn(b, rope)).transpose()?;
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = match b.has("ffn_gate_inp.weight") {
            true => Mixture::new(b, Gate::Softmax, true, b.count("feed_forward_length")?)?.build(b, h)?,
            false => blocks::dense(b, h, Glu::Silu)?,
        };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

/// The rotation with the file's own ramp. With `yarn_log_multiplier` 1, as files have it, cos and sin keep their length.
fn yarn(b: &Builder, mut rope: Rope) -> Result<Rope> {
    if let Scaling::Yarn { factor, beta_fast, beta_slow, magnitude, .. } = &mut rope.scaling {
        *beta_fast = b.positive_or("rope.scaling.yarn_beta_fast", *beta_fast)?;
        *beta_slow = b.positive_or("rope.scaling.yarn_beta_slow", *beta_slow)?;
        *magnitude /= mscale(*factor, b.number_or("rope.scaling.yarn_log_multiplier", 0.0)?);
    }
    Ok(rope)
}
