//! ZAYA1: attention over compressed queries and keys that are convolved along the sequence (CCA), a
//! router of three layers whose state goes on from layer to layer, one expert or none for a token,
//! and a learned affine step on both sides of every residual sum.
//!
//! The metadata keys and the names of the tensors are this program's: no other one writes the
//! architecture.
//!
//! ```text
//! q0, k0 = Wq h, Wk h                 z = [q0 | k0]
//! u = heads of D x D matrices * (depthwise taps * z)        both causal, with bias, no activation
//! q = unit(u_q + (q0 + k0) / 2)
//! k = unit(u_k + the mean of (q0 + k0) / 2 over a key head's queries) * temp
//! v = [Wv h[t] | Wv' h[t - 1]]                              joined first, then cut into heads
//! ```

use anyhow::Result;

use super::blocks::{Full, Mixture, windowed};
use crate::ops::{Attend, Gate, Glu, Pairs, Piece, Rope};
use crate::tape::{Builder, Role, Slot};

/// The least length that a head of q or k is divided by.
const FLOOR: f32 = f32::EPSILON;

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let eps = b.eps()?;
    let layers = b.layers()?;
    let window = b.optional_tokens("attention.sliding_window")?;
    let windowed = windowed(b, &layers, 1, Full::Last)?;

    let mut x = b.affine(b.embed()?, "input_scale")?; // (T, n_embd)
    let mut state = None; // of the router, from the layer before: (T, router_length)
    for l in &layers {
        let b = &l.scope(b);
        let h = b.norm(x, "attn_norm", eps)?;
        let a = attention(&b.role(Role::Attention), h, window.filter(|_| windowed[l.i]))?;
        x = b.add(b.affine(a, "attn_out_scale")?, b.affine(x, "attn_res_scale")?);

        let h = b.norm(x, "ffn_norm", eps)?;
        let r = router_state(&b.role(Role::Router), h, state)?;
        let y = mixture(b, h, r, eps)?;
        x = b.add(b.affine(y, "ffn_out_scale")?, b.affine(x, "ffn_res_scale")?);
        state = Some(r);
    }
    b.head(b.norm(x, "output_norm", eps)?) // (output rows, n_vocab)
}

/// The rotation, by a base of its own in layers with a window.
fn rope(b: &Builder, dim: usize, window: Option<usize>) -> Result<Rope> {
    let rope = b.rope_from_keys(dim, Pairs::Halves)?;
    let base = b.positive_or("rope.freq_base_swa", rope.base)?;
    Ok(if window.is_some() { Rope { base, ..rope } } else { rope })
}

fn attention(b: &Builder, h: Slot, window: Option<usize>) -> Result<Slot> {
    let n_embd = b.width(h);
    let (heads, kv_heads) = b.heads()?;
    let dim = b.head_dim(heads, n_embd)?;
    let (n_q, n_kv) = (heads * dim, kv_heads * dim);
    let v_dim = b.count_or("attention.value_length", dim)?;
    if v_dim != dim || !n_kv.is_multiple_of(2) {
        return Err(b.bad_key("attention.value_length", v_dim, format!("{dim}, that of a key, in an even row")));
    }
    let whole = |x| Piece { x, stride: 0, offset: 0, len: b.width(x) };

    let q0 = b.linear(h, "attn_q", n_q)?; // (T, heads * dim)
    let k0 = b.linear(h, "attn_k", n_kv)?; // (T, kv_heads * dim)
    let z = b.pack(1, &[whole(q0), whole(k0)])?; // (T, q | k)
    let y = b.linear_conv(z, "cca_conv0", b.count("cca.time0")?)?;
    let start = b.opt_vector("cca_conv0.bias", &[n_q + n_kv])?; // y before the start, where z is 0
    let u = b.head_conv(y, "cca_conv1", (b.count("cca.time1")?, heads + kv_heads), dim, start)?;
    let (q_mean, k_mean) = b.heads_mean(q0, k0, dim);
    let q = b.unit_norm(b.add(b.columns(u, 0, n_q)?, q_mean), dim, FLOOR);
    let k = b.unit_norm(b.add(b.columns(u, n_q, n_kv)?, k_mean), dim, FLOOR);
    let k = b.scale_heads(k, "attn_k_temp.weight", kv_heads)?;
    let rope = rope(b, dim, window)?;
    let (q, k) = (b.rope(q, dim, &rope)?, b.rope(k, dim, &rope)?);

    let now = b.linear(h, "attn_v", n_kv / 2)?; // (T, n_kv / 2)
    let next = b.linear(h, "attn_v_prev", n_kv / 2)?;
    let start = b.opt_vector("attn_v_prev.bias", &[n_kv / 2])?;
    let v = b.pack(1, &[whole(now), whole(b.shift(next, "attn_v_prev", 1, start))])?; // (T, kv_heads * dim)
    let kv = b.cache(k, v, kv_heads, window)?;
    b.linear(b.attend(q, &kv, Attend::causal(heads))?, "attn_output", n_embd)
}

/// What a layer's router decides from, and the next layer's adds to.
fn router_state(b: &Builder, h: Slot, before: Option<Slot>) -> Result<Slot> {
    let r = b.linear(h, "ffn_gate_inp", b.count("router_length")?)?; // (T, router_length)
    match before {
        Some(before) => Ok(b.add(r, b.scale_by(before, "ffn_gate_inp_prev.weight")?)),
        None => Ok(r),
    }
}

/// One expert or, for the last of the router's classes, none. The weight is its probability among
/// all classes.
fn mixture(b: &Builder, h: Slot, r: Slot, eps: f32) -> Result<Slot> {
    let router = &b.role(Role::Router);
    let gate = b.count_or("expert_gating_func", 1)?;
    if gate != 1 {
        return Err(b.bad_key("expert_gating_func", gate, "1 (softmax)"));
    }
    if b.flag_or("expert_weights_norm", false)? {
        return Err(b.bad_key("expert_weights_norm", true, "false: a probability counts as it is"));
    }
    let experts = Mixture::new(b, Gate::Softmax, false, b.count("expert_feed_forward_length")?)?;
    let (n, width) = (experts.experts.n + 1, router.width(r));
    let m = router.norm(r, "router_norm", eps)?;
    let m = router.activate(Glu::GeluErf, router.linear(m, "router_fc1", width)?);
    let m = router.activate(Glu::GeluErf, router.linear(m, "router_fc2", width)?);
    let logits = router.linear(m, "router_out", n)?; // (T, experts and none)
    let bias = b.vector("exp_probs_b.bias", &[n])?;
    let chosen = b.route_or_none(logits, experts.route, Some(bias))?; // (T, k) each
    b.experts("ffn", h, chosen, experts.experts)
}
