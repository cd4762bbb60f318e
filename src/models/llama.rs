//! Llama, dense and MoE (Mixtral), and the many models that are built the same way: grouped attention whose rotation turns
//! neighbouring columns, with factors for each pair from Llama 3.1 on; SwiGLU, or experts with a softmax router.

use anyhow::Result;

use super::blocks::{self, Attention, Mixture};
use crate::ops::{Gate, Glu, Pairs};
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, Attention::new(b, Pairs::Adjacent)?.build(b, h)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = match b.has("ffn_gate_inp.weight") {
            true => Mixture::new(b, Gate::Softmax, true, b.count("feed_forward_length")?)?.build(b, h)?,
            false => blocks::dense(b, h, Glu::Silu)?,
        };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
