//! Muse Glimmer, dense: the embedding is normed; three layers that see a window, and rotate, to one that sees everything
//! and does not; a sigmoid gate after attention; four norms to a layer; the logits are scaled, then squashed.

use anyhow::Result;

use super::blocks::{self, Attention, Full, QkNorm, windowed};
use crate::ops::{Glu, Pairs};
use crate::tape::{Builder, Slot};

/// Of the norms after attention and the feed-forward layer.
const POST_EPS: f32 = 1e-8;

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let windowed = windowed(b, &layers, 4, Full::Last)?;
    let x = b.embed()?;
    let mut x = b.bare_norm(x, b.width(x), eps); // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let attention = Attention::new(b, Pairs::Adjacent)?;
        let attention = Attention { qk_norm: QkNorm::Heads, gate: Some(Glu::Sigmoid), ..attention };
        let attention = match windowed[l.i] {
            true => attention.in_window(b, b.tokens("attention.sliding_window")?)?,
            false => Attention { rope: None, ..attention },
        };
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let a = attention.build(b, h)?;
        x = b.add(x, b.norm(a, "post_attention_norm", POST_EPS)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = blocks::dense(b, h, Glu::Silu)?;
        x = b.add(x, b.norm(y, "post_ffw_norm", POST_EPS)?);
    }
    let logits = b.head(b.norm(x, "output_norm", eps)?)?; // (output rows, n_vocab)
    let logits = b.scale(logits, b.number("logit_scale")?);
    Ok(b.soft_cap(logits, b.cap("final_logit_softcapping")?))
}
