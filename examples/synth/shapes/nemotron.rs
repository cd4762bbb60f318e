//! Nemotron 3: recurrent layers and layers of experts in turn, attention in a few places; the
//! experts of the larger models read a narrower row.

use super::{BIAS, Extent, NORM};
use crate::model::{Kind, Model, Part};

pub(super) struct Nemotron3 {
    layers: usize,
    n_embd: usize,
    heads: (usize, usize),
    /// The layers with attention.
    attention: &'static [usize],
    experts: (usize, usize),
    n_ff: usize,
    n_shared: usize,
    /// The width of the experts' rows; 0: that of the embedding.
    latent: usize,
    ssm_heads: usize,
    scale: f32,
}

pub(super) const SUPER: Nemotron3 = Nemotron3 {
    layers: 88,
    n_embd: 4096,
    heads: (32, 2),
    attention: &[7, 16, 25, 36, 47, 58, 69, 78],
    experts: (512, 22),
    n_ff: 2688,
    n_shared: 5376,
    latent: 1024,
    ssm_heads: 128,
    scale: 5.0,
};
pub(super) const ULTRA: Nemotron3 = Nemotron3 {
    layers: 108,
    n_embd: 8192,
    heads: (64, 2),
    attention: &[7, 14, 23, 32, 39, 48, 57, 64, 73, 82, 89, 98],
    n_ff: 5120,
    n_shared: 10240,
    latent: 2048,
    ssm_heads: 256,
    ..SUPER
};
pub(super) const LIGHTNING: Nemotron3 = Nemotron3 {
    layers: 52,
    n_embd: 2688,
    attention: &[5, 12, 19, 26, 33, 42],
    experts: (128, 6),
    n_ff: 1856,
    n_shared: 3712,
    latent: 0,
    ssm_heads: 64,
    scale: 2.5,
    ..SUPER
};

/// What a layer is.
#[derive(Clone, Copy, PartialEq)]
enum Layer {
    Recurrent,
    Experts,
    Attention,
    /// Attention and experts, in the block that predicts a further token.
    Both,
}

impl Nemotron3 {
    const DIM: usize = 128;
    const SSM_HEAD: usize = 64;
    const STATE: usize = 128;
    const GROUPS: usize = 8;
    const TAPS: usize = 4;

    pub(super) fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        let (main, extra) = layers.with_heads(self.layers, 1);
        let n = self.n_embd;
        let mut m = Model::new("nemotron_h_moe");
        let mut list = self.kinds(main);
        list.extend((0..extra).map(|_| Layer::Both));
        self.keys(&mut m, &list, extra, n_vocab);
        m.ends(n_vocab, n);
        for (i, &layer) in list.iter().enumerate() {
            let b = &format!("blk.{i}");
            m.norm(format!("{b}.attn_norm"), n);
            if layer == Layer::Recurrent {
                self.recurrent(&mut m, b);
            }
            if matches!(layer, Layer::Attention | Layer::Both) {
                m.grouped(b, n, self.heads, Self::DIM);
            }
            if layer == Layer::Both {
                m.norm(format!("{b}.post_attention_norm"), n);
                m.nextn(b, n);
            }
            if matches!(layer, Layer::Experts | Layer::Both) {
                self.mixture(&mut m, b);
            }
        }
        m
    }

    fn kinds(&self, layers: usize) -> Vec<Layer> {
        let mut others = [Layer::Recurrent, Layer::Experts].into_iter().cycle();
        let kind = |i| if self.attention.contains(&i) { Some(Layer::Attention) } else { others.next() };
        (0..layers).map_while(kind).collect()
    }

    fn keys(&self, m: &mut Model, list: &[Layer], extra: usize, n_vocab: usize) {
        let with = |kind: Layer, n: usize| move |i: usize| if [kind, Layer::Both].contains(&list[i]) { n } else { 0 };
        m.sizes(list.len(), 1_048_576, self.n_embd, 10_000.0, 1e-5);
        m.set("attention.layer_norm_epsilon", 1e-5f32);
        m.count("attention.head_count", self.heads.0);
        m.each("attention.head_count_kv", list.len(), with(Layer::Attention, self.heads.1));
        m.each("feed_forward_length", list.len(), with(Layer::Experts, self.n_ff));
        m.counts(&[("attention.key_length", Self::DIM), ("attention.value_length", Self::DIM)]);
        m.counts(&[("rope.dimension_count", Self::DIM), ("vocab_size", n_vocab)]);
        m.set("rope.scaling.finetuned", false);
        m.counts(&[
            ("ssm.conv_kernel", Self::TAPS),
            ("ssm.state_size", Self::STATE),
            ("ssm.group_count", Self::GROUPS),
        ]);
        m.counts(&[("ssm.time_step_rank", self.ssm_heads), ("ssm.inner_size", self.ssm_heads * Self::SSM_HEAD)]);
        if !list.contains(&Layer::Experts) {
            return; // of the first layer alone
        }
        m.counts(&[("expert_count", self.experts.0), ("expert_used_count", self.experts.1)]);
        m.counts(&[("expert_feed_forward_length", self.n_ff), ("expert_shared_feed_forward_length", self.n_shared)]);
        m.counts(&[("expert_shared_count", 1), ("expert_group_count", 1), ("expert_group_used_count", 1)]);
        m.set("expert_weights_norm", true);
        m.set("expert_weights_scale", self.scale);
        if self.latent > 0 {
            m.count("moe_latent_size", self.latent);
        }
        if extra > 0 {
            m.count("nextn_predict_layers", extra);
        }
    }

    fn recurrent(&self, m: &mut Model, b: &str) {
        let (n, heads, inner) = (self.n_embd, self.ssm_heads, self.ssm_heads * Self::SSM_HEAD);
        let conv = inner + 2 * Self::GROUPS * Self::STATE;
        m.weight(format!("{b}.ssm_in"), &[inner + conv + heads, n], Part::Attn);
        m.tensor(format!("{b}.ssm_conv1d.weight"), &[conv, Self::TAPS], Kind::F32 { mean: 0.0, spread: 0.7 });
        m.tensor(format!("{b}.ssm_conv1d.bias"), &[conv], BIAS);
        m.tensor(format!("{b}.ssm_dt.bias"), &[heads], Kind::TimeStep);
        m.tensor(format!("{b}.ssm_a"), &[heads, 1], Kind::Decay);
        m.tensor(format!("{b}.ssm_d"), &[heads, 1], NORM);
        m.tensor(format!("{b}.ssm_norm.weight"), &[Self::GROUPS, inner / Self::GROUPS], NORM);
        m.weight(format!("{b}.ssm_out"), &[n, inner], Part::Attn);
    }

    fn mixture(&self, m: &mut Model, b: &str) {
        let (n, (experts, _), n_ff) = (self.n_embd, self.experts, self.n_ff);
        let wide = if self.latent > 0 { self.latent } else { n };
        m.tensor(format!("{b}.ffn_gate_inp.weight"), &[experts, n], super::matrix(n, 1.0));
        m.tensor(format!("{b}.exp_probs_b.bias"), &[experts], Kind::F32 { mean: 0.0, spread: 0.05 });
        if self.latent > 0 {
            m.weight(format!("{b}.ffn_latent_down"), &[wide, n], Part::Shared);
            m.weight(format!("{b}.ffn_latent_up"), &[n, wide], Part::Shared);
        }
        m.weight(format!("{b}.ffn_up_exps"), &[experts, n_ff, wide], Part::Experts);
        m.weight(format!("{b}.ffn_down_exps"), &[experts, wide, n_ff], Part::Down);
        m.weight(format!("{b}.ffn_up_shexp"), &[self.n_shared, n], Part::Shared);
        m.weight(format!("{b}.ffn_down_shexp"), &[n, self.n_shared], Part::Shared);
    }
}
