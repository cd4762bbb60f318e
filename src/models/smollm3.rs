//! SmolLM3: Llama whose every fourth layer does not rotate queries and keys.

use anyhow::Result;

use super::blocks::{self, Attention};
use crate::ops::{Glu, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let mut attention = Attention::new(b, Pairs::Adjacent)?;
        if l.i % 4 == 3 {
            attention.rope = None;
        }
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        x = b.add(x, blocks::dense(b, h, Glu::Silu)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
