//! Gemma 4: layers with a window and, every sixth, without; experts beside a dense layer, or a
//! table of embeddings for each layer.

use super::{Extent, NORM};
use crate::model::{Kind, Model, Part};

pub(super) struct Gemma4 {
    layers: usize,
    n_embd: usize,
    heads: usize,
    /// Key heads of layers with a window, and without.
    kv_heads: (usize, usize),
    n_ff: usize,
    context: usize,
    window: usize,
    /// Experts, their width, and how many are used; no experts where there are 0.
    experts: (usize, usize, usize),
    /// Columns of each layer's embedding; 0 where there is none.
    per_layer: usize,
    /// Layers at the end that read another layer's keys and values.
    shared_kv: usize,
    /// Whether the layers without a window have values that are not their keys.
    own_values: bool,
}

pub(super) const A4B: Gemma4 = Gemma4 {
    layers: 30,
    n_embd: 2816,
    heads: 16,
    kv_heads: (8, 2),
    n_ff: 2112,
    context: 262_144,
    window: 1024,
    experts: (128, 704, 8),
    per_layer: 0,
    shared_kv: 0,
    own_values: false,
};
pub(super) const DENSE_31B: Gemma4 =
    Gemma4 { layers: 60, n_embd: 5376, heads: 32, kv_heads: (16, 4), n_ff: 21504, experts: (0, 0, 0), ..A4B };
pub(super) const E4B: Gemma4 = Gemma4 {
    layers: 42,
    n_embd: 2560,
    heads: 8,
    kv_heads: (2, 2),
    n_ff: 10240,
    context: 131_072,
    window: 512,
    experts: (0, 0, 0),
    per_layer: 256,
    shared_kv: 18,
    own_values: true,
};

impl Gemma4 {
    /// Columns of a head in layers with a window, and without.
    const DIM: (usize, usize) = (256, 512);

    fn windowed(i: usize) -> bool {
        i % 6 != 5
    }

    /// Of few layers those at the end read other keys as in the whole model, as long as there are
    /// layers of both kinds to read from.
    fn shared(&self, layers: usize) -> usize {
        self.shared_kv.min(layers.saturating_sub(6))
    }

    pub(super) fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        let layers = layers.of(self.layers);
        let n = self.n_embd;
        let mut m = Model::new("gemma4");
        self.keys(&mut m, layers);
        m.weight("token_embd", &[n_vocab, n], Part::Output); // the head's matrix too, with its format and scale
        m.tensor("output_norm.weight", &[n], Kind::F32 { mean: 2.0, spread: 0.2 });
        if self.per_layer > 0 {
            let wide = layers * self.per_layer;
            m.weight("per_layer_token_embd", &[n_vocab, wide], Part::Embed);
            m.weight("per_layer_model_proj", &[wide, n], Part::Attn);
            m.norm("per_layer_proj_norm", self.per_layer);
        }
        // A quarter of the columns turn where there is no window.
        if (0..layers).any(|i| !Self::windowed(i)) {
            m.tensor("rope_freqs.weight", &[Self::DIM.1 / 2], Kind::Turning(Self::DIM.1 / 8));
        }
        for i in 0..layers {
            let b = &format!("blk.{i}");
            self.attention(&mut m, b, Self::windowed(i), i < layers - self.shared(layers));
            self.feed_forward(&mut m, b);
            if self.per_layer > 0 {
                m.weight(format!("{b}.inp_gate"), &[self.per_layer, n], Part::Shared);
                m.weight(format!("{b}.proj"), &[n, self.per_layer], Part::Shared);
                m.norm(format!("{b}.post_norm"), n);
            }
            m.tensor(format!("{b}.layer_output_scale.weight"), &[1], NORM);
        }
        m
    }

    fn keys(&self, m: &mut Model, layers: usize) {
        let (experts, n_ff_exp, used) = self.experts;
        m.sizes(layers, self.context, self.n_embd, 1e6, 1e-6);
        m.counts(&[("feed_forward_length", self.n_ff), ("attention.head_count", self.heads)]);
        let kv_heads = |i| if Self::windowed(i) { self.kv_heads.0 } else { self.kv_heads.1 };
        m.each("attention.head_count_kv", layers, kv_heads);
        let (dim_swa, dim) = Self::DIM;
        m.counts(&[("attention.key_length", dim), ("attention.value_length", dim), ("rope.dimension_count", dim)]);
        m.counts(&[("attention.key_length_swa", dim_swa), ("attention.value_length_swa", dim_swa)]);
        m.set("rope.freq_base_swa", 1e4f32);
        m.counts(&[("rope.dimension_count_swa", dim_swa), ("attention.sliding_window", self.window)]);
        m.set("attention.sliding_window_pattern", (0..layers).map(Self::windowed).collect::<Vec<bool>>());
        m.count("attention.shared_kv_layers", self.shared(layers));
        m.count("embedding_length_per_layer_input", self.per_layer);
        m.set("final_logit_softcapping", 30f32);
        if experts > 0 {
            m.counts(&[("expert_count", experts), ("expert_used_count", used)]);
            m.count("expert_feed_forward_length", n_ff_exp);
        }
    }

    fn attention(&self, m: &mut Model, b: &str, windowed: bool, own_kv: bool) {
        let (n, heads) = (self.n_embd, self.heads);
        let (dim, kv_heads) = if windowed { (Self::DIM.0, self.kv_heads.0) } else { (Self::DIM.1, self.kv_heads.1) };
        m.norm(format!("{b}.attn_norm"), n);
        m.weight(format!("{b}.attn_q"), &[heads * dim, n], Part::Attn);
        m.norm(format!("{b}.attn_q_norm"), dim);
        if own_kv {
            m.weight(format!("{b}.attn_k"), &[kv_heads * dim, n], Part::Attn);
            m.norm(format!("{b}.attn_k_norm"), dim);
            if windowed || self.own_values {
                m.weight(format!("{b}.attn_v"), &[kv_heads * dim, n], Part::Attn);
            }
        }
        m.weight(format!("{b}.attn_output"), &[n, heads * dim], Part::Attn);
        m.norm(format!("{b}.post_attention_norm"), n);
    }

    fn feed_forward(&self, m: &mut Model, b: &str) {
        let (n, (experts, n_ff, _)) = (self.n_embd, self.experts);
        m.norm(format!("{b}.ffn_norm"), n);
        m.dense(b, "", self.n_ff, n);
        m.norm(format!("{b}.post_ffw_norm"), n);
        if experts == 0 {
            return;
        }
        // The router reads rows that were divided by the root of their width.
        m.tensor(format!("{b}.ffn_gate_inp.weight"), &[experts, n], Kind::F32 { mean: 0.0, spread: 1.0 });
        m.tensor(format!("{b}.ffn_gate_inp.scale"), &[n], NORM);
        for name in ["pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"] {
            m.norm(format!("{b}.{name}"), n);
        }
        m.weight(format!("{b}.ffn_gate_up_exps"), &[experts, 2 * n_ff, n], Part::Experts);
        m.weight(format!("{b}.ffn_down_exps"), &[experts, n, n_ff], Part::Down);
        m.tensor(format!("{b}.ffn_down_exps.scale"), &[experts], NORM);
    }
}
