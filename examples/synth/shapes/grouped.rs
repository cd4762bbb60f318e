//! Grouped attention with experts: MiniMax M2 and M3, GLM-4.5, Laguna, Step, MiMo. Of however few
//! layers the last has experts: the metadata describes them.

use super::{BIAS, Extent, Kind};
use crate::model::{Model, Part};

pub(super) struct MiniMax {
    layers: usize,
    n_embd: usize,
    heads: (usize, usize),
    context: usize,
    /// Width of the leading dense layers and how many there are.
    dense: (usize, usize),
    experts: (usize, usize),
    n_ff: usize,
    /// M3: shared experts, norms for each head, and an indexer in all layers with experts.
    sparse: bool,
}

pub(super) const MINIMAX_M27: MiniMax = MiniMax {
    layers: 62,
    n_embd: 3072,
    heads: (48, 8),
    context: 196_608,
    dense: (1536, 0),
    experts: (256, 8),
    n_ff: 1536,
    sparse: false,
};
pub(super) const MINIMAX_M3: MiniMax = MiniMax {
    layers: 60,
    n_embd: 6144,
    heads: (64, 4),
    context: 1_048_576,
    dense: (12288, 3),
    experts: (128, 4),
    n_ff: 3072,
    sparse: true,
};

impl MiniMax {
    const DIM: usize = 128;
    const INDEX_HEADS: usize = 4;

    pub(super) fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        let (layers, n, dim, (heads, kv_heads)) = (layers.of(self.layers), self.n_embd, Self::DIM, self.heads);
        let lead = self.dense.1.min(layers - 1);
        let mut m = Model::new(if self.sparse { "minimax-m3" } else { "minimax-m2" });
        m.common(layers, self.context, n, self.heads, 5e6, 1e-6);
        m.counts(&[("attention.key_length", dim), ("attention.value_length", dim), ("rope.dimension_count", 64)]);
        m.counts(&[("feed_forward_length", self.dense.0), ("expert_feed_forward_length", self.n_ff)]);
        m.counts(&[("expert_count", self.experts.0), ("expert_used_count", self.experts.1), ("expert_gating_func", 2)]);
        if self.sparse {
            m.counts(&[("expert_shared_count", 1), ("leading_dense_block_count", lead)]);
            m.set("expert_weights_scale", 2f32);
            m.set("expert_weights_norm", true);
            m.counts(&[("attention.indexer.head_count", Self::INDEX_HEADS), ("attention.indexer.key_length", dim)]);
            m.counts(&[("attention.indexer.top_k", 16), ("attention.indexer.block_size", 128)]);
            m.count("attention.indexer.local_blocks", 1);
        }
        m.ends(n_vocab, n);
        for i in 0..layers {
            let b = &format!("blk.{i}");
            m.norm(format!("{b}.attn_norm"), n);
            m.grouped(b, n, self.heads, dim);
            m.qk_norms(b, if self.sparse { (dim, dim) } else { (heads * dim, kv_heads * dim) });
            m.norm(format!("{b}.ffn_norm"), n);
            if i < lead {
                m.dense(b, "", self.dense.0, n);
                continue;
            }
            m.biased_experts(b, self.experts.0, self.n_ff, if self.sparse { self.n_ff } else { 0 }, n);
            if self.sparse {
                m.weight(format!("{b}.indexer.q_proj"), &[Self::INDEX_HEADS * dim, n], Part::Attn);
                m.weight(format!("{b}.indexer.k_proj"), &[dim, n], Part::Attn);
                m.norm(format!("{b}.indexer.q_norm"), dim);
                m.norm(format!("{b}.indexer.k_norm"), dim);
            }
        }
        m
    }
}

pub(super) struct Glm4Moe {
    layers: usize,
    n_embd: usize,
    context: usize,
    dense: (usize, usize),
    n_expert: usize,
    n_ff: usize,
    scale: f32,
    qk_norm: bool,
}

pub(super) const GLM_45_AIR: Glm4Moe = Glm4Moe {
    layers: 46,
    n_embd: 4096,
    context: 131_072,
    dense: (10944, 1),
    n_expert: 128,
    n_ff: 1408,
    scale: 1.0,
    qk_norm: false,
};
pub(super) const GLM_46: Glm4Moe = Glm4Moe {
    layers: 92,
    n_embd: 5120,
    context: 202_752,
    dense: (12288, 3),
    n_expert: 160,
    n_ff: 1536,
    scale: 2.5,
    qk_norm: true,
};

impl Glm4Moe {
    pub(super) fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        let (main, extra) = layers.with_heads(self.layers, 1);
        let (n, dim, heads, lead) = (self.n_embd, 128, (96, 8), self.dense.1.min(main - 1));
        let mut m = Model::new("glm4moe");
        m.common(main + extra, self.context, n, heads, 1e6, 1e-5);
        m.counts(&[("attention.key_length", dim), ("attention.value_length", dim), ("rope.dimension_count", 64)]);
        m.counts(&[("feed_forward_length", self.dense.0), ("leading_dense_block_count", lead)]);
        m.counts(&[("expert_count", self.n_expert), ("expert_used_count", 8), ("expert_shared_count", 1)]);
        m.counts(&[("expert_feed_forward_length", self.n_ff), ("expert_gating_func", 2)]);
        m.counts(&[("expert_group_count", 1), ("expert_group_used_count", 1), ("nextn_predict_layers", extra)]);
        m.set("expert_weights_scale", self.scale);
        m.set("expert_weights_norm", true);
        m.ends(n_vocab, n);
        for i in 0..main + extra {
            let b = &format!("blk.{i}");
            m.norm(format!("{b}.attn_norm"), n);
            m.grouped(b, n, heads, dim);
            for (name, heads) in [("attn_q", heads.0), ("attn_k", heads.1), ("attn_v", heads.1)] {
                m.tensor(format!("{b}.{name}.bias"), &[heads * dim], BIAS);
            }
            if self.qk_norm {
                m.qk_norms(b, (dim, dim));
            }
            m.norm(format!("{b}.post_attention_norm"), n);
            if i < lead {
                m.dense(b, "", self.dense.0, n);
            } else {
                m.biased_experts(b, self.n_expert, self.n_ff, self.n_ff, n);
            }
            if i >= main {
                m.nextn(b, n);
            }
        }
        m
    }
}

/// Laguna and Step: every fourth layer sees everything with fewer heads, and a column for each head
/// gates attention.
pub(super) struct Gated {
    arch: &'static str,
    layers: usize,
    /// Dense blocks at the end that predict further tokens, with heads of their own.
    extra: usize,
    n_embd: usize,
    /// With a window, without, and keys.
    heads: (usize, usize, usize),
    dense: (usize, usize),
    experts: (usize, usize),
    n_ff: usize,
    scale: f32,
    base: f32,
    eps: f32,
    /// The rotation's columns in layers without a window, as the converter writes them.
    n_rot: usize,
    /// Factor and fast beta.
    yarn: Option<(f32, f32)>,
}

pub(super) const LAGUNA_XS: Gated = Gated {
    arch: "laguna",
    layers: 40,
    extra: 0,
    n_embd: 2048,
    heads: (64, 48, 8),
    dense: (8192, 1),
    experts: (256, 8),
    n_ff: 512,
    scale: 2.5,
    base: 5e5,
    eps: 1e-6,
    n_rot: 64,
    yarn: Some((32.0, 64.0)),
};
pub(super) const LAGUNA_S: Gated = Gated {
    layers: 48,
    n_embd: 3072,
    heads: (72, 48, 8),
    dense: (12288, 1),
    experts: (256, 10),
    n_ff: 1024,
    yarn: Some((128.0, 32.0)),
    ..LAGUNA_XS
};
pub(super) const STEP_37: Gated = Gated {
    arch: "step35",
    layers: 45,
    extra: 3,
    n_embd: 4096,
    heads: (96, 64, 8),
    dense: (11264, 3),
    experts: (288, 8),
    n_ff: 1280,
    scale: 3.0,
    base: 5e6,
    eps: 1e-5,
    n_rot: 128,
    yarn: None,
};

impl Gated {
    const DIM: usize = 128;

    pub(super) fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        let (main, extra) = layers.with_heads(self.layers, self.extra);
        let (n, dim, lead) = (self.n_embd, Self::DIM, self.dense.1.min(main - 1));
        let windowed = |i: usize| i >= main || !i.is_multiple_of(4);
        let heads = |i: usize| if windowed(i) { self.heads.0 } else { self.heads.1 };
        let mut m = Model::new(self.arch);
        m.sizes(main + extra, 262_144, n, self.base, self.eps);
        m.each("attention.head_count", main + extra, heads);
        m.each("attention.head_count_kv", main + extra, |_| self.heads.2);
        m.counts(&[("attention.key_length", dim), ("attention.value_length", dim)]);
        m.counts(&[("rope.dimension_count", self.n_rot), ("rope.dimension_count_swa", dim)]);
        m.set("rope.freq_base_swa", 1e4f32);
        m.count("attention.sliding_window", 512);
        m.set("attention.sliding_window_pattern", (0..main + extra).map(windowed).collect::<Vec<bool>>());
        m.counts(&[("feed_forward_length", self.dense.0), ("leading_dense_block_count", lead)]);
        m.counts(&[("expert_count", self.experts.0), ("expert_used_count", self.experts.1), ("expert_gating_func", 2)]);
        m.counts(&[("expert_feed_forward_length", self.n_ff), ("expert_shared_feed_forward_length", self.n_ff)]);
        m.set("expert_weights_scale", self.scale);
        m.set("expert_weights_norm", true);
        if let Some((factor, fast)) = self.yarn {
            m.yarn(factor, 8192, (fast, 1.0));
        }
        if extra > 0 {
            m.count("nextn_predict_layers", extra);
        }
        m.ends(n_vocab, n);
        for i in 0..main + extra {
            let b = &format!("blk.{i}");
            m.norm(format!("{b}.attn_norm"), n);
            m.grouped(b, n, (heads(i), self.heads.2), dim);
            m.qk_norms(b, (dim, dim));
            m.weight(format!("{b}.attn_gate"), &[heads(i), n], Part::Attn);
            m.norm(format!("{b}.ffn_norm"), n);
            if i < lead || i >= main {
                m.dense(b, "", self.dense.0, n);
            } else {
                m.biased_experts(b, self.experts.0, self.n_ff, self.n_ff, n);
            }
            if i >= main {
                m.nextn(b, n);
                m.weight(format!("{b}.nextn.shared_head_head"), &[n_vocab, n], Part::Output);
            }
        }
        m
    }
}

/// MiMo V2.5: layers with a window have more key heads and sinks; a dense layer first.
pub(super) fn mimo_v25(layers: Extent, n_vocab: usize) -> Model {
    let (main, extra) = layers.with_heads(48, 3);
    let (n, heads, k_dim, v_dim, n_ff) = (4096, 64, 192, 128, 16384);
    let windowed = |i: usize| i >= main || (i != 0 && i % 6 != 5);
    let kv_heads = |i: usize| if windowed(i) { 8 } else { 4 };
    let mut m = Model::new("mimo2");
    m.sizes(main + extra, 1_048_576, n, 1e7, 1e-5);
    m.count("attention.head_count", heads);
    m.each("attention.head_count_kv", main + extra, kv_heads);
    m.counts(&[("attention.key_length", k_dim), ("attention.value_length", v_dim), ("rope.dimension_count", 64)]);
    m.set("rope.freq_base_swa", 1e4f32);
    m.count("attention.sliding_window", 128);
    m.set("attention.sliding_window_pattern", (0..main + extra).map(windowed).collect::<Vec<bool>>());
    m.set("attention.value_scale", 0.707f32);
    m.counts(&[("feed_forward_length", n_ff), ("expert_count", 256), ("expert_used_count", 8)]);
    m.counts(&[("expert_feed_forward_length", 2048), ("expert_gating_func", 2)]);
    m.counts(&[("expert_group_count", 1), ("expert_group_used_count", 1), ("nextn_predict_layers", extra)]);
    m.ends(n_vocab, n);
    for i in 0..main + extra {
        let b = &format!("blk.{i}");
        m.norm(format!("{b}.attn_norm"), n);
        m.weight(format!("{b}.attn_qkv"), &[heads * k_dim + kv_heads(i) * (k_dim + v_dim), n], Part::Attn);
        m.weight(format!("{b}.attn_output"), &[n, heads * v_dim], Part::Attn);
        if windowed(i) {
            m.tensor(format!("{b}.attn_sinks.weight"), &[heads], Kind::F32 { mean: 0.0, spread: 1.0 });
        }
        m.norm(format!("{b}.ffn_norm"), n);
        if i == 0 && main > 1 || i >= main {
            m.dense(b, "", n_ff, n);
        } else {
            m.biased_experts(b, 256, 2048, 0, n);
        }
        if i >= main {
            m.nextn(b, n);
        }
    }
    m
}
