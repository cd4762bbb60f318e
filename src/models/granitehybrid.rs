//! Granite 4, dense and MoE: Mamba-2 layers, and every few of them one of grouped attention, mostly
//! without a rotation; embedding, residual and logits are scaled; a softmax router, and a shared
//! expert in addition to the chosen ones.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture};
use super::mixers;
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    // 0 means none.
    let scale = |name: &str| b.number_or(name, 0.0).map(|s| if s == 0.0 { 1.0 } else { s });
    let (embedding, residual, logits) = (scale("embedding_scale")?, scale("residual_scale")?, scale("logit_scale")?);
    let attention_scale = Some(b.number_or("attention.scale", 0.0)?).filter(|&s| s != 0.0);
    let rotated = b.flag_or("rope.scaling.finetuned", true)?;

    let mut x = b.scale(b.embed()?, embedding); // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let a = match b.count_or_zero("attention.head_count_kv")? {
            0 => mixers::mamba2(b, h)?,
            _ => {
                let attention = Attention { scale: attention_scale, ..Attention::new(b, Pairs::Adjacent)? };
                let rope = attention.rope.clone().filter(|_| rotated);
                Attention { rope, ..attention }.build(b, h)?
            }
        };
        x = b.add(x, b.scale(a, residual));

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = match b.has("ffn_gate_inp.weight") {
            true => mixture(b, h)?,
            false => blocks::dense(b, h, Glu::Silu)?,
        };
        x = b.add(x, b.scale(y, residual));
    }
    let logits_of = b.head(b.norm(x, "output_norm", eps)?)?; // (output rows, n_vocab)
    Ok(b.scale(logits_of, 1.0 / logits))
}

fn mixture(b: &Builder, h: Slot) -> Result<Slot> {
    let y = Mixture::new(b, Gate::Softmax, true, b.count("feed_forward_length")?)?.build(b, h)?; // (T, n_embd)
    match b.count_or_zero("expert_shared_feed_forward_length")? {
        0 => Ok(y),
        n_ff => Ok(b.add(y, blocks::mlp(b, h, "_shexp", n_ff, Glu::Silu)?)),
    }
}
