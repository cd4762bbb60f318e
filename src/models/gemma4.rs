//! Gemma 4: the 26B-A4B with experts in parallel to a dense layer, the dense 31B, E2B and E4B with embeddings for each layer.
//!
//! Layers that see a window only have heads, widths and a rotation of their own; where a layer has no `attn_v`, its
//! values are its keys before norm and rotation. The last layers of some models have no keys and values at all and read
//! those of the last earlier layer of their kind.
//!
//! A drafter may come in a file of its own (`gemma4-assistant`). It is narrow, and reads the model's embedding of a token, the
//! model's row of the token before, and the caches of the model's last layers, of which it sees the same rows in every step of
//! a draft: those before the first drafted token.

use anyhow::Result;

use super::blocks::{self, Full, Mixture, windowed};
use crate::ops::{Attend, Gate, Glu, Kv, Pairs, Piece, Rope};
use crate::tape::{Builder, Layer, Role, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let n_embd = b.count("embedding_length")?;
    let eps = b.eps()?;
    let layers = b.layers()?;
    let own_caches = layers.len().saturating_sub(b.count_or_zero("attention.shared_kv_layers")?);
    let layer_width = b.count_or_zero("embedding_length_per_layer_input")?;
    let windowed = windowed(b, &layers, 6, Full::Last)?;

    let mut x = b.scale(b.embed()?, (n_embd as f32).sqrt()); // (T, n_embd)
    let of_layers = match layer_width {
        0 => None,
        width => Some(layer_embeddings(b, x, width, layers.len(), eps)?),
    };
    let mut caches = [None, None]; // of the last layer that sees everything, and of the last that sees a window
    for l in &layers {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?; // (T, n_embd)
        let cache = &mut caches[windowed[l.i] as usize];
        let a = attention(&b.role(Role::Attention), h, windowed[l.i], cache, l.i < own_caches)?;
        x = b.add(x, b.norm(a, "post_attention_norm", eps)?);

        let dense = blocks::dense(b, b.norm(x, "ffn_norm", eps)?, Glu::Gelu)?; // (T, n_embd)
        let y = match b.has("ffn_gate_inp.weight") {
            true => {
                let dense = b.norm(dense, "post_ffw_norm_1", eps)?;
                b.add(dense, b.norm(experts(b, x, eps)?, "post_ffw_norm_2", eps)?)
            }
            false => dense,
        };
        x = b.add(x, b.norm(y, "post_ffw_norm", eps)?);

        if let Some(of_layers) = of_layers {
            let own = b.columns(of_layers, l.i * layer_width, layer_width)?; // (T, layer_width)
            let gate = b.linear(x, "inp_gate", layer_width)?;
            let y = b.linear(b.glu(Glu::Gelu, gate, own), "proj", n_embd)?;
            x = b.add(x, b.norm(y, "post_norm", eps)?);
        }
        if b.has("layer_output_scale.weight") {
            x = b.scale(x, b.values("layer_output_scale.weight", &[1])?[0]);
        }
    }
    let h = b.norm(x, "output_norm", eps)?;
    let logits = b.head(h)?; // (output rows, n_vocab)
    const CAP: &str = "final_logit_softcapping";
    let logits = b.soft_cap(logits, if b.has_key(CAP) { b.cap(CAP)? } else { 30.0 });
    if let [Some(full), Some(windowed)] = caches
        && b.has_drafter("gemma4-assistant", logits, h)?
    {
        // The first step reads the row of the token before, the others what the step before them handed on.
        for back in [1, 0] {
            assistant(b, &b.drafter_scope(), back, [full, windowed])?;
        }
    }
    Ok(logits)
}

/// A step of the drafter `d` of the model `b`, in a part of its own.
fn assistant(b: &Builder, d: &Builder, back: usize, [full, windowed]: [Kv; 2]) -> Result<()> {
    let (n_embd, eps) = (b.count("embedding_length")?, d.eps()?);
    if d.count("embedding_length_out")? != n_embd {
        let found = d.count("embedding_length_out")?;
        return Err(d.bad_key("embedding_length_out", found, format!("the model's {n_embd} columns")));
    }
    let e = b.scale(b.embed()?, (n_embd as f32).sqrt()); // (T, n_embd)
    let piece = |x| Piece { x, stride: 0, offset: 0, len: n_embd };
    let both = d.pack(1, &[piece(e), piece(d.handed(n_embd, back)?)])?; // (T, e | handed)
    let mut x = d.linear(both, "nextn.pre_projection", d.count("embedding_length")?)?; // (T, width)
    d.count_or_zero("attention.shared_kv_layers")?; // all of them
    let window = d.tokens("attention.sliding_window")?;
    if windowed.window != Some(window) {
        return Err(d.bad_key("attention.sliding_window", window, format!("the model's, {:?}", windowed.window)));
    }
    for i in 0..d.count_up_to("block_count", 64)? {
        let d = &Layer { i }.scope(d);
        let in_window = d.flag_or("attention.sliding_window_pattern", true)?;
        let (kv, rope) = match in_window {
            true => (windowed, d.windowed_rope(windowed.k_dim, Pairs::Halves, 10_000.0)?),
            false => (full, d.rope_from_keys(full.k_dim, Pairs::Halves)?), // with rope_freqs
        };
        let a = assistant_attention(&d.role(Role::Attention), d.norm(x, "attn_norm", eps)?, &kv, &rope)?;
        x = d.add(x, d.norm(a, "post_attention_norm", eps)?);

        let y = blocks::dense(d, d.norm(x, "ffn_norm", eps)?, Glu::Gelu)?;
        x = d.add(x, d.norm(y, "post_ffw_norm", eps)?);
        x = d.scale(x, d.values("layer_output_scale.weight", &[1])?[0]);
    }
    let h = d.norm(x, "output_norm", eps)?; // (output rows, width)
    d.hand_on(d.role(Role::Head).linear(h, "nextn.post_projection", n_embd)?)?;
    d.ignore("masked_embd", "all tokens are candidates");
    d.end_part(d.head(h)?); // (output rows, n_vocab)
    Ok(())
}

/// Attention to rows of a cache of the model that come before the token.
fn assistant_attention(d: &Builder, h: Slot, kv: &Kv, rope: &Rope) -> Result<Slot> {
    let heads = d.count("attention.head_count")?;
    if !heads.is_multiple_of(kv.heads) {
        return Err(d.bad_key("attention.head_count", heads, format!("a multiple of the model's {} key heads", kv.heads)));
    }
    let q = d.linear(h, "attn_q", heads * kv.k_dim)?;
    let q = d.rope(d.head_norm(q, "attn_q_norm", kv.k_dim, d.eps()?)?, kv.k_dim, rope)?;
    let a = d.attend(q, kv, Attend::causal(heads).scale(1.0).before())?;
    d.linear(a, "attn_output", d.width(h))
}

/// What every layer adds of the token: a row of a table of its own, and a part of the embedding: (T, layers * width).
fn layer_embeddings(b: &Builder, x: Slot, width: usize, layers: usize, eps: f32) -> Result<Slot> {
    let n = layers * width;
    let own = b.scale(b.look_up("per_layer_token_embd", n)?, (width as f32).sqrt()); // (T, n)
    let b = &b.role(Role::Mixing);
    let of_x = b.scale(b.linear(x, "per_layer_model_proj", n)?, 1.0 / (b.width(x) as f32).sqrt());
    let of_x = b.head_norm(of_x, "per_layer_proj_norm", width, eps)?;
    Ok(b.scale(b.add(of_x, own), 0.5f32.sqrt()))
}

/// `cache` is that of the last layer of the kind, which a layer without one of its own reads.
fn attention(b: &Builder, h: Slot, windowed: bool, cache: &mut Option<Kv>, own: bool) -> Result<Slot> {
    let eps = b.eps()?;
    let (heads, kv_heads) = b.heads()?;
    let (dim, v_dim, rope, window) = match windowed {
        false => {
            let dim = b.count("attention.key_length")?;
            let rope = b.rope_from_keys(dim, Pairs::Halves)?; // with rope_freqs
            (dim, "attention.value_length", rope, None)
        }
        true => {
            let dim = b.count("attention.key_length_swa")?;
            let rope = b.windowed_rope(dim, Pairs::Halves, 10_000.0)?;
            let window = Some(b.tokens("attention.sliding_window")?);
            (dim, "attention.value_length_swa", rope, window)
        }
    };
    if b.count(v_dim)? != dim {
        return Err(b.bad_key(v_dim, b.count(v_dim)?, format!("{dim}, as wide as a key")));
    }

    let (q, kv) = if own {
        let (q, k, v) = if b.has("attn_v.weight") || b.has("attn_qkv.weight") {
            let [q, k, v] = b.qkv(h, [heads * dim, kv_heads * dim, kv_heads * dim])?;
            (q, k, v)
        } else {
            let k = b.linear(h, "attn_k", kv_heads * dim)?;
            (b.linear(h, "attn_q", heads * dim)?, k, k)
        }; // (T, heads * dim) ...
        let k = b.rope(b.head_norm(k, "attn_k_norm", dim, eps)?, dim, &rope)?;
        let v = b.bare_norm(v, dim, eps);
        let kv = b.cache(k, v, kv_heads, window)?;
        *cache = Some(kv);
        (q, kv)
    } else {
        b.ignore("attn_k", "the layer reads another layer's keys");
        b.ignore("attn_v", "the layer reads another layer's values");
        let Some(kv) = *cache else {
            let want = "so few that a layer of each kind has keys of its own";
            return Err(b.bad_key("attention.shared_kv_layers", b.count("attention.shared_kv_layers")?, want));
        };
        (b.linear(h, "attn_q", heads * dim)?, kv)
    };
    let q = b.rope(b.head_norm(q, "attn_q_norm", dim, eps)?, dim, &rope)?;
    b.linear(b.attend(q, &kv, Attend::causal(heads).scale(1.0))?, "attn_output", b.width(h))
}

/// The experts, whose router reads the residual normed without a weight.
fn experts(b: &Builder, x: Slot, eps: f32) -> Result<Slot> {
    let n_embd = b.width(x);
    let mut m = Mixture::new(b, Gate::Softmax, true, b.count("expert_feed_forward_length")?)?;
    m.experts.glu = Glu::Gelu;
    let r = b.scale(b.bare_norm(x, n_embd, eps), 1.0 / (n_embd as f32).sqrt()); // (T, n_embd)
    m.build_apart(b, r, b.norm(x, "pre_ffw_norm_2", eps)?)
}
