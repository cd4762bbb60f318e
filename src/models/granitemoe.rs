//! Granite 3 and 4 of IBM, dense and MoE: the Llama graph with scales on the embedding, on what is added to the residual,
//! on attention and on the logits; some have a shared expert.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let residual = scale(b, "residual_scale")?;
    let mut x = b.scale(b.embed()?, scale(b, "embedding_scale")?); // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let mut attention = Attention::new(b, Pairs::Adjacent)?;
        attention.scale = Some(b.number_or("attention.scale", 0.0)?).filter(|&scale| scale != 0.0);
        if !b.flag_or("rope.scaling.finetuned", true)? {
            attention.rope = None;
        }
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, b.scale(attention.build(b, h)?, residual));

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = if b.has("ffn_gate_inp.weight") {
            Mixture::new(b, Gate::Softmax, true, b.count("feed_forward_length")?)?.build_with_shared(b, h)?
        } else {
            blocks::dense(b, h, Glu::Silu)?
        };
        x = b.add(x, b.scale(y, residual));
    }
    let logits = b.head(b.norm(x, "output_norm", eps)?)?; // (output rows, n_vocab)
    Ok(b.scale(logits, 1.0 / b.positive("logit_scale")?))
}

/// A scale that is not applied where it is 0 or the key is absent.
fn scale(b: &Builder, key: &str) -> Result<f32> {
    let scale = b.number_or(key, 1.0)?;
    Ok(if scale == 0.0 { 1.0 } else { scale })
}
