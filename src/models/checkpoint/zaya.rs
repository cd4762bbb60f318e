//! ZAYA1 as transformers 5.24 publishes it (models/zaya). The names in GGUF are this program's.

use anyhow::Result;

use super::{Config, Recipe};

/// The two kinds of layers.
const FULL: &str = "hybrid";
const WINDOWED: &str = "hybrid_sliding";

/// The numbers that shapes are made of.
struct Sizes {
    n_vocab: usize,
    n_embd: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// Taps of the two convolutions.
    taps: [usize; 2],
    router: usize,
    n_expert: usize,
    n_ff: usize,
}

pub(super) fn recipe(c: &Config) -> Result<Recipe> {
    c.only("num_experts_per_tok", 1)?;
    c.only("hidden_act", "silu")?;
    let s = Sizes {
        n_vocab: c.count("vocab_size")?,
        n_embd: c.count("hidden_size")?,
        layers: c.count("num_hidden_layers")?,
        heads: c.count("num_attention_heads")?,
        kv_heads: c.count("num_key_value_heads")?,
        dim: c.count("head_dim")?,
        taps: [c.count("cca_time0")?, c.count("cca_time1")?],
        router: c.count("router_hidden_size")?,
        n_expert: c.count("num_experts")?,
        n_ff: c.count("moe_intermediate_size")?,
    };
    let mut r = Recipe::new("zaya");
    keys(c, &s, &mut r)?;
    positions(c, &s, &mut r)?;
    let one = [s.n_embd];
    r.matrix("token_embd.weight".into(), "model.embed_tokens.weight".into(), &[s.n_vocab, s.n_embd]);
    r.full("input_scale.weight".into(), "model.input_hidden_states_scale".into(), &one);
    r.full("input_scale.bias".into(), "model.input_hidden_states_bias".into(), &one);
    for l in 0..s.layers {
        attention(&mut r, &s, &format!("blk.{l}."), &format!("model.layers.{l}."));
        mixture(&mut r, &s, l);
    }
    r.full("output_norm.weight".into(), "model.norm.weight".into(), &one);
    let (tied, bias) = (c.flag_or("tie_word_embeddings", true)?, c.flag_or("lm_head_bias", false)?);
    if tied {
        r.ignored.push(("lm_head.weight", "the embedding is the head"));
    }
    if !tied || bias {
        // GGUF has no bias of a head that is the embedding: then the embedding is written twice.
        let from = if tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        r.matrix("output.weight".into(), from.into(), &[s.n_vocab, s.n_embd]);
    }
    if bias {
        r.full("output.bias".into(), "lm_head.bias".into(), &[s.n_vocab]);
    }
    Ok(r)
}

fn keys(c: &Config, s: &Sizes, r: &mut Recipe) -> Result<()> {
    if !s.heads.is_multiple_of(s.kv_heads) {
        let want = format!("a divisor of the {} heads", s.heads);
        return Err(c.bad("num_key_value_heads", s.kv_heads, want));
    }
    if !(s.kv_heads * s.dim).is_multiple_of(2) {
        return Err(c.bad("head_dim", s.dim, "heads of keys that are an even number of columns together"));
    }
    r.count("block_count", s.layers);
    r.key("context_length", c.tokens("max_position_embeddings")?);
    r.count("embedding_length", s.n_embd);
    r.count("attention.head_count", s.heads);
    r.count("attention.head_count_kv", s.kv_heads);
    r.count("attention.key_length", s.dim);
    r.count("attention.value_length", s.dim);
    r.key("attention.layer_norm_rms_epsilon", c.number("rms_norm_eps")? as f32);
    r.count("expert_count", s.n_expert);
    r.count("expert_used_count", 1);
    r.count("expert_feed_forward_length", s.n_ff);
    r.key("expert_gating_func", 1u32); // softmax
    r.count("router_length", s.router);
    r.count("cca.time0", s.taps[0]);
    r.count("cca.time1", s.taps[1]);
    Ok(())
}

/// The rotation and the windows. One number of rotated values serves both kinds of layers.
fn positions(c: &Config, s: &Sizes, r: &mut Recipe) -> Result<()> {
    let kinds = c.words("layer_types")?;
    if kinds.len() != s.layers {
        return Err(c.bad("layer_types", format!("a list of {}", kinds.len()), format!("{} layers", s.layers)));
    }
    if let Some(other) = kinds.iter().find(|k| ![FULL, WINDOWED].contains(k)) {
        return Err(c.bad("layer_types", format!("{other:?} in a layer"), format!("{FULL:?} or {WINDOWED:?}")));
    }
    let all = c.object("rope_parameters")?;
    let rope = all.object(FULL)?;
    rope.only("rope_type", "default")?;
    let factor = rope.number("partial_rotary_factor")?;
    let n_rot = (s.dim as f64 * factor) as usize;
    if !(1..=s.dim).contains(&n_rot) || n_rot % 2 == 1 {
        let want = format!("a part of the {} columns of a head that is an even number", s.dim);
        return Err(rope.bad("partial_rotary_factor", factor, want));
    }
    r.key("rope.freq_base", rope.number("rope_theta")? as f32);
    r.count("rope.dimension_count", n_rot);
    let any = kinds.contains(&WINDOWED);
    let windowed = if any || all.get(WINDOWED).is_some() { Some(all.object(WINDOWED)?) } else { None };
    if let Some(windowed) = &windowed {
        windowed.only("rope_type", "default")?;
        let other = windowed.number("partial_rotary_factor")?;
        if other != factor {
            return Err(windowed.bad("partial_rotary_factor", other, format!("{factor}, that of the other layers")));
        }
    }
    if !any && c.get("sliding_window").is_none() {
        return Ok(());
    }
    r.key("attention.sliding_window", c.tokens("sliding_window")?);
    r.key("attention.sliding_window_pattern", kinds.iter().map(|k| *k == WINDOWED).collect::<Vec<bool>>());
    if let Some(windowed) = &windowed {
        r.key("rope.freq_base_swa", windowed.number("rope_theta")? as f32);
    }
    Ok(())
}

fn attention(r: &mut Recipe, s: &Sizes, to: &str, from: &str) {
    let (n_q, n_kv, heads) = (s.heads * s.dim, s.kv_heads * s.dim, s.heads + s.kv_heads);
    let qkv = format!("{from}self_attn.qkv_proj.");
    let one = [s.n_embd];
    r.full(format!("{to}attn_norm.weight"), format!("{from}input_layernorm.weight"), &one);
    let o_proj = format!("{from}self_attn.o_proj");
    for (name, hf, shape) in [
        ("attn_q", format!("{qkv}q_proj"), [n_q, s.n_embd]),
        ("attn_k", format!("{qkv}k_proj"), [n_kv, s.n_embd]),
        ("attn_v", format!("{qkv}v_proj_current"), [n_kv / 2, s.n_embd]),
        ("attn_v_prev", format!("{qkv}v_proj_delayed"), [n_kv / 2, s.n_embd]),
        ("attn_output", o_proj, [s.n_embd, n_q]),
    ] {
        r.matrix(format!("{to}{name}.weight"), format!("{hf}.weight"), &shape);
        r.full(format!("{to}{name}.bias"), format!("{hf}.bias"), &shape[..1]).optional = true;
    }
    let [t0, t1] = s.taps;
    let (taps, mixed) = (format!("{qkv}conv_qk_depthwise"), format!("{qkv}conv_qk_grouped"));
    r.full(format!("{to}cca_conv0.weight"), format!("{taps}.weight"), &[heads * s.dim, t0]);
    r.full(format!("{to}cca_conv0.bias"), format!("{taps}.bias"), &[heads * s.dim]);
    let rule = r.matrix(format!("{to}cca_conv1.weight"), format!("{mixed}.weight"), &[t1, heads, s.dim, s.dim]);
    (rule.have, rule.last_axis_first) = (vec![heads * s.dim, s.dim, t1], true);
    r.full(format!("{to}cca_conv1.bias"), format!("{mixed}.bias"), &[heads * s.dim]);
    r.full(format!("{to}attn_k_temp.weight"), format!("{from}self_attn.qk_norm.temp"), &[s.kv_heads]);
    residual(r, s, &format!("{to}attn"), &format!("{from}post_attention_residual_scale"));
}

/// The affine steps on both sides of a residual sum.
fn residual(r: &mut Recipe, s: &Sizes, to: &str, from: &str) {
    for (name, hf) in [("out", "hidden_states"), ("res", "residual")] {
        r.full(format!("{to}_{name}_scale.weight"), format!("{from}.{hf}_scale"), &[s.n_embd]);
        r.full(format!("{to}_{name}_scale.bias"), format!("{from}.{hf}_bias"), &[s.n_embd]);
    }
}

fn mixture(r: &mut Recipe, s: &Sizes, l: usize) {
    let (to, from) = (format!("blk.{l}."), format!("model.layers.{l}."));
    let (gate, router) = (format!("{from}mlp.gate."), s.router);
    r.full(format!("{to}ffn_norm.weight"), format!("{from}post_attention_layernorm.weight"), &[s.n_embd]);
    r.full(format!("{to}ffn_gate_inp.weight"), format!("{gate}down_proj.weight"), &[router, s.n_embd]);
    r.full(format!("{to}ffn_gate_inp.bias"), format!("{gate}down_proj.bias"), &[router]);
    if l > 0 {
        r.full(format!("{to}ffn_gate_inp_prev.weight"), format!("{gate}router_states_scale"), &[router]);
    }
    r.full(format!("{to}router_norm.weight"), format!("{gate}router_mlp.norm.weight"), &[router]);
    for fc in ["fc1", "fc2"] {
        r.full(format!("{to}router_{fc}.weight"), format!("{gate}router_mlp.{fc}.weight"), &[router, router]);
        r.full(format!("{to}router_{fc}.bias"), format!("{gate}router_mlp.{fc}.bias"), &[router]);
    }
    let classes = s.n_expert + 1; // the last is no expert
    r.full(format!("{to}router_out.weight"), format!("{gate}router_mlp.out_proj.weight"), &[classes, router]);
    r.full(format!("{to}exp_probs_b.bias"), format!("{gate}balancing_biases"), &[classes]);
    let (n, n_ff) = (s.n_expert, s.n_ff);
    let experts = format!("{from}mlp.experts.");
    r.matrix(format!("{to}ffn_gate_up_exps.weight"), format!("{experts}gate_up_proj"), &[n, 2 * n_ff, s.n_embd]);
    r.matrix(format!("{to}ffn_down_exps.weight"), format!("{experts}down_proj"), &[n, s.n_embd, n_ff]);
    residual(r, s, &format!("{to}ffn"), &format!("{from}post_mlp_residual_scale"));
}
