//! Llama 4, Scout and Maverick: three layers that see their chunk of 8192 positions, and rotate and then norm queries and
//! keys, to one that sees everything and does not rotate, whose queries grow with the logarithm of their position; experts
//! that read rows weighed by a sigmoid router, and a shared one; in Maverick every second layer is dense.

use anyhow::Result;

use super::blocks::{self, Attention, Full, Mixture, QkNorm, windowed};
use crate::ops::{Gate, Glu, Pairs, Temperature};
use crate::tape::{Builder, Slot};

/// Positions of a chunk, and between two steps of the temperature: no key says it.
const CHUNK: usize = 8192;

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let windowed = windowed(b, &layers, 4, Full::Last)?;
    // Without a window there are no chunks, and every layer rotates.
    let chunks = !b.has_key("attention.sliding_window") || b.optional_tokens("attention.sliding_window")?.is_some();
    let every = b.count("interleave_moe_layer_step")?;
    // The 17B models with 128 experts have no norms of q and k, told by their layers and experts.
    let qk_norm = if b.count("expert_count")? == 128 { QkNorm::None } else { QkNorm::BareRotatedHeads };
    let mut x = b.embed()?; // (T, n_embd)
    for l in &layers {
        let b = &l.scope(b);
        let mut attention = Attention { qk_norm, ..Attention::new(b, Pairs::Adjacent)? };
        if chunks && windowed[l.i] {
            (attention.window, attention.chunks) = (Some(CHUNK), true);
        } else if chunks {
            let temperature = Some(Temperature { scale: 0.1, every: CHUNK, offset: 1 });
            attention = Attention { rope: None, qk_norm: QkNorm::None, temperature, ..attention };
        }
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        x = b.add(x, attention.build(b, h)?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let y = if (l.i + 1) % every == 0 {
            let mut m = Mixture::new(b, Gate::Sigmoid, false, b.count("expert_feed_forward_length")?)?;
            m.experts.weight_first = true;
            m.build_with_shared(b, h)?
        } else {
            blocks::dense(b, h, Glu::Silu)?
        };
        x = b.add(x, y);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}
