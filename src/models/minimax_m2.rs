//! MiniMax-M2, M2.5 and M2.7: grouped attention, rotated in part, with norms over all heads of q and k together; a sigmoid
//! router with a bias for the choice.

use anyhow::Result;

use super::blocks::{Attention, Mixture, QkNorm};
use crate::ops::{Gate, Pairs};
use crate::tape::{Builder, Slot};


pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let mut x = b.embed()?; // (T, n_embd)
    for l in b.layers()? {
        let b = &l.scope(b);
        let attention = Attention { qk_norm: QkNorm::Rows, ..Attention::new(b, Pairs::Halves)? };
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let mut experts = Mixture::from_keys(b, Gate::Sigmoid)?;
        experts.route.norm = true;
        let h = b.norm(x, "ffn_norm", eps)?;
        x = b.add(x, experts.build(b, h)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
