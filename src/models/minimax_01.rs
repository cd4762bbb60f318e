//! MiniMax-Text-01 and M1: seven layers of lightning attention to one of grouped attention; the
//! normed rows are added back, scaled, in place of the residual; experts of a softmax router.

use anyhow::Result;

use super::blocks::{Attention, Mixture};
use crate::ops::{Gate, Glu, Pairs, Piece};
use crate::tape::{Builder, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let every = b.count_or("full_attention_interval", 8)?;
    let scale = b.number("residual_scale")?;
    let mut x = b.embed()?; // (T, n_embd)
    let layers = b.layers()?;
    let n_layers = layers.len();
    for l in layers {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let a = match b.flag_or("attention.recurrent_layers", !(l.i + 1).is_multiple_of(every))? {
            true => lightning(&b.role(Role::Attention), h, eps, n_layers)?,
            false => Attention::new(b, Pairs::Halves)?.build(b, h)?,
        };
        x = b.add(b.scale(h, scale), a);

        let h = b.norm(x, "ffn_norm", eps)?;
        let experts = Mixture::new(b, Gate::Softmax, true, b.count("feed_forward_length")?)?;
        x = b.add(b.scale(h, scale), experts.build(b, h)?);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

fn lightning(b: &Builder, h: Slot, eps: f32, n_layers: usize) -> Result<Slot> {
    let (n_embd, heads) = (b.width(h), b.count("attention.head_count")?);
    let dim = b.head_dim(heads, n_embd)?;
    let qkv = b.linear(h, "attn_qkv", 3 * heads * dim)?; // (T, heads * (q | k | v))
    let qkv = b.glu(Glu::Sigmoid, qkv, qkv); // SiLU
    let part = |i: usize| b.pack(heads, &[Piece { x: qkv, stride: 3 * dim, offset: i * dim, len: dim }]);
    let y = b.lightning(heads, [part(0)?, part(1)?, part(2)?], (b.layer(), n_layers))?; // (T, heads * dim)
    let y = b.norm(y, "attn_norm_2", eps)?;
    let gate = b.linear(h, "attn_gate", heads * dim)?; // (T, heads * dim)
    b.linear(b.glu(Glu::Sigmoid, gate, y), "attn_output", n_embd)
}
