//! OLMo 2 and 3: norms after attention and feed-forward instead of before, and over all heads of q and k together; in
//! OLMo 3 three layers that see a window only, and rotate with nothing stretched, to one that sees everything.

use anyhow::Result;

use super::blocks::{self, Attention, Full, QkNorm, windowed};
use crate::ops::{Glu, Pairs, Rope};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let window = b.optional_tokens("attention.sliding_window")?;
    let windowed = windowed(b, &layers, 4, Full::Last)?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let mut attention = Attention { qk_norm: QkNorm::Rows, ..Attention::new(b, Pairs::Halves)? };
        if let Some(window) = window.filter(|_| windowed[l.i]) {
            let rope = attention.rope.map(|rope| Rope::plain(rope.n_rot, rope.pairs, rope.base));
            attention = Attention { rope, window: Some(window), ..attention };
        }
        let a = attention.build(b, x)?; // (T, n_embd)
        x = b.add(x, b.norm(a, "post_attention_norm", eps)?);

        let y = blocks::dense(b, x, Glu::Silu)?;
        x = b.add(x, b.norm(y, "post_ffw_norm", eps)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
