//! Latent attention: DeepSeek V3, Kimi K2, GLM-5 with an indexer; and DeepSeek V4.

use super::{BIAS, Extent, matrix};
use crate::model::{Kind, Model, Part};

pub(super) struct DeepSeek {
    arch: &'static str,
    layers: usize,
    n_embd: usize,
    heads: usize,
    q_rank: usize,
    /// Columns of a head that do not turn, and of a value.
    head: (usize, usize),
    n_ff: usize,
    dense: usize,
    n_expert: usize,
    scale: f32,
    groups: (usize, usize),
    context: usize,
    base: f32,
    eps: f32,
    /// Factor and fast beta.
    yarn: Option<(f32, f32)>,
    /// Which layers choose rows with an indexer of their own; none of them where there is no
    /// indexer.
    indexer: Option<fn(usize) -> bool>,
}

pub(super) const V3: DeepSeek = DeepSeek {
    arch: "deepseek2",
    layers: 61,
    n_embd: 7168,
    heads: 128,
    q_rank: 1536,
    head: (128, 128),
    n_ff: 18432,
    dense: 3,
    n_expert: 256,
    scale: 2.5,
    groups: (8, 4),
    context: 163_840,
    base: 10_000.0,
    eps: 1e-6,
    yarn: Some((40.0, 32.0)),
    indexer: None,
};
pub(super) const KIMI_K2: DeepSeek = DeepSeek {
    heads: 64,
    dense: 1,
    n_expert: 384,
    scale: 2.827,
    groups: (1, 1),
    context: 131_072,
    base: 50_000.0,
    yarn: Some((32.0, 1.0)),
    ..V3
};
pub(super) const KIMI_K26: DeepSeek = DeepSeek { context: 262_144, yarn: Some((64.0, 32.0)), ..KIMI_K2 };
pub(super) const GLM_51: DeepSeek = DeepSeek {
    arch: "glm-dsa",
    layers: 78,
    n_embd: 6144,
    heads: 64,
    q_rank: 2048,
    head: (192, 256),
    n_ff: 12288,
    groups: (1, 1),
    context: 202_752,
    base: 1e6,
    eps: 1e-5,
    yarn: None,
    indexer: Some(|_| true),
    ..V3
};
pub(super) const GLM_52: DeepSeek =
    DeepSeek { context: 1_048_576, base: 8e6, indexer: Some(|i| i < 2 || i % 4 == 2), ..GLM_51 };

impl DeepSeek {
    const LATENT: usize = 512;
    const ROT: usize = 64;
    const FF_EXP: usize = 2048;
    /// Heads of the indexer, and their columns.
    const INDEX: (usize, usize) = (32, 128);

    pub(super) fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        // What predicts further tokens is written for models with an indexer.
        let (main, extra) = layers.with_heads(self.layers, usize::from(self.indexer.is_some()));
        let n = self.n_embd;
        let mut m = Model::new(self.arch);
        self.keys(&mut m, main, extra, n_vocab);
        m.ends(n_vocab, n);
        for i in 0..main + extra {
            let b = &format!("blk.{i}");
            self.attention(&mut m, b);
            if i < main && self.indexer.is_some_and(|has| has(i)) {
                let (heads, dim) = Self::INDEX;
                m.norm(format!("{b}.indexer.k_norm"), dim);
                m.tensor(format!("{b}.indexer.k_norm.bias"), &[dim], BIAS);
                m.weight(format!("{b}.indexer.proj"), &[heads, n], Part::Attn);
                m.weight(format!("{b}.indexer.attn_k"), &[dim, n], Part::Attn);
                m.weight(format!("{b}.indexer.attn_q_b"), &[heads * dim, self.q_rank], Part::Attn);
            }
            m.norm(format!("{b}.ffn_norm"), n);
            if i < self.dense {
                m.dense(b, "", self.n_ff, n);
            } else {
                m.biased_experts(b, self.n_expert, Self::FF_EXP, Self::FF_EXP, n);
            }
            if i >= main {
                m.nextn(b, n);
            }
        }
        m
    }

    fn keys(&self, m: &mut Model, main: usize, extra: usize, n_vocab: usize) {
        let (latent, n_rot, (plain, v_dim)) = (Self::LATENT, Self::ROT, self.head);
        m.common(main + extra, self.context, self.n_embd, (self.heads, 1), self.base, self.eps);
        if let Some((factor, fast)) = self.yarn {
            m.yarn(factor, 4096, (fast, 1.0));
            m.set("rope.scaling.yarn_log_multiplier", 0.1f32);
        }
        m.counts(&[("feed_forward_length", self.n_ff), ("expert_count", self.n_expert), ("expert_used_count", 8)]);
        m.counts(&[("expert_group_count", self.groups.0), ("expert_group_used_count", self.groups.1)]);
        m.counts(&[("expert_gating_func", 2), ("leading_dense_block_count", self.dense), ("vocab_size", n_vocab)]);
        m.counts(&[("attention.q_lora_rank", self.q_rank), ("attention.kv_lora_rank", latent)]);
        m.counts(&[("attention.key_length", latent + n_rot), ("attention.value_length", latent)]);
        m.counts(&[("attention.key_length_mla", plain + n_rot), ("attention.value_length_mla", v_dim)]);
        m.counts(&[("expert_feed_forward_length", Self::FF_EXP), ("expert_shared_count", 1)]);
        m.count("rope.dimension_count", n_rot);
        m.set("expert_weights_scale", self.scale);
        m.set("expert_weights_norm", true);
        if let Some(has) = self.indexer {
            let (heads, dim) = Self::INDEX;
            m.counts(&[("attention.indexer.head_count", heads), ("attention.indexer.key_length", dim)]);
            m.count("attention.indexer.top_k", 2048);
            m.set("attention.indexer.types", (0..main).map(has).collect::<Vec<bool>>());
        }
        if extra > 0 {
            m.count("nextn_predict_layers", extra);
        }
    }

    fn attention(&self, m: &mut Model, b: &str) {
        let (n, heads, q_rank, latent, n_rot) = (self.n_embd, self.heads, self.q_rank, Self::LATENT, Self::ROT);
        let (plain, v_dim) = self.head;
        m.norm(format!("{b}.attn_norm"), n);
        m.weight(format!("{b}.attn_q_a"), &[q_rank, n], Part::Attn);
        m.norm(format!("{b}.attn_q_a_norm"), q_rank);
        m.weight(format!("{b}.attn_q_b"), &[heads * (plain + n_rot), q_rank], Part::Attn);
        m.weight(format!("{b}.attn_kv_a_mqa"), &[latent + n_rot, n], Part::Attn);
        m.norm(format!("{b}.attn_kv_a_norm"), latent);
        m.weight(format!("{b}.attn_k_b"), &[heads, latent, plain], Part::Attn);
        m.weight(format!("{b}.attn_v_b"), &[heads, v_dim, latent], Part::Attn);
        m.weight(format!("{b}.attn_output"), &[n, heads * v_dim], Part::Attn);
    }
}

pub(super) struct V4 {
    layers: usize,
    n_embd: usize,
    heads: usize,
    q_rank: usize,
    groups: usize,
    n_expert: usize,
    n_ff: usize,
    scale: f32,
    top_k: usize,
    /// The ratio of compression in the first two layers.
    first: i32,
}

pub(super) const V4_FLASH: V4 = V4 {
    layers: 43,
    n_embd: 4096,
    heads: 64,
    q_rank: 1024,
    groups: 8,
    n_expert: 256,
    n_ff: 2048,
    scale: 1.5,
    top_k: 512,
    first: 0,
};
pub(super) const V4_PRO: V4 = V4 {
    layers: 61,
    n_embd: 7168,
    heads: 128,
    q_rank: 1536,
    groups: 16,
    n_expert: 384,
    n_ff: 3072,
    scale: 2.5,
    top_k: 1024,
    first: 128,
};

impl V4 {
    const DIM: usize = 512;
    const HASHED: usize = 3;
    /// Experts used.
    const USED: usize = 6;
    const INDEX: (usize, usize) = (64, 128);
    const O_RANK: usize = 1024;
    const STREAMS: usize = 4;

    fn ratio(&self, i: usize) -> i32 {
        match i {
            0 | 1 => self.first,
            i if i < self.layers => [4, 128][i % 2],
            _ => 0,
        }
    }

    pub(super) fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        let layers = layers.of(self.layers);
        let n = self.n_embd;
        let mut m = Model::new("deepseek4");
        self.keys(&mut m, layers);
        m.ends(n_vocab, n);
        hyper(&mut m, "output_hc".into(), n, Self::STREAMS, 1);
        for i in 0..layers {
            let b = &format!("blk.{i}");
            self.attention(&mut m, b, self.ratio(i));
            m.norm(format!("{b}.ffn_norm"), n);
            if i < Self::HASHED {
                m.experts(b, self.n_expert, self.n_ff, n);
                let name = format!("{b}.ffn_gate_tid2eid.weight");
                m.tensor(name, &[n_vocab, Self::USED], Kind::Experts(self.n_expert));
                m.dense(b, "_shexp", self.n_ff, n);
            } else {
                m.biased_experts(b, self.n_expert, self.n_ff, self.n_ff, n);
            }
        }
        m
    }

    fn keys(&self, m: &mut Model, layers: usize) {
        let (index_heads, index_dim) = Self::INDEX;
        m.common(layers, 1_048_576, self.n_embd, (self.heads, 1), 10_000.0, 1e-6);
        m.yarn(16.0, 65536, (32.0, 1.0));
        m.counts(&[("expert_count", self.n_expert), ("expert_used_count", Self::USED), ("expert_gating_func", 4)]);
        m.counts(&[("attention.key_length", Self::DIM), ("attention.value_length", Self::DIM)]);
        m.counts(&[("rope.dimension_count", 64), ("attention.q_lora_rank", self.q_rank)]);
        m.counts(&[("attention.sliding_window", 128), ("expert_feed_forward_length", self.n_ff)]);
        m.count("expert_shared_count", 1);
        m.set("expert_weights_scale", self.scale);
        m.set("expert_weights_norm", true);
        m.set("swiglu_clamp_exp", vec![10f32; layers]);
        m.set("swiglu_clamp_shexp", vec![10f32; layers]);
        m.counts(&[("attention.indexer.head_count", index_heads), ("attention.indexer.key_length", index_dim)]);
        m.counts(&[("attention.indexer.top_k", self.top_k), ("attention.output_group_count", self.groups)]);
        m.count("attention.output_lora_rank", Self::O_RANK);
        // One entry more than layers: the block that predicts a second token is not converted, its
        // ratio is.
        m.set("attention.compress_ratios", (0..=layers).map(|i| self.ratio(i)).collect::<Vec<i32>>());
        m.set("attention.compress_rope_freq_base", 160_000f32);
        m.counts(&[("hyper_connection.count", Self::STREAMS), ("hyper_connection.sinkhorn_iterations", 20)]);
        m.set("hyper_connection.epsilon", 1e-6f32);
        m.counts(&[("hash_layer_count", Self::HASHED), ("embedding_length_out", self.n_embd * Self::STREAMS)]);
    }

    fn attention(&self, m: &mut Model, b: &str, ratio: i32) {
        let (n, heads, dim, groups, o_rank) = (self.n_embd, self.heads, Self::DIM, self.groups, Self::O_RANK);
        m.norm(format!("{b}.attn_norm"), n);
        m.tensor(format!("{b}.attn_sinks.weight"), &[heads], Kind::F32 { mean: 0.0, spread: 1.0 });
        m.weight(format!("{b}.attn_q_a"), &[self.q_rank, n], Part::Attn);
        m.norm(format!("{b}.attn_q_a_norm"), self.q_rank);
        m.weight(format!("{b}.attn_q_b"), &[heads * dim, self.q_rank], Part::Attn);
        m.weight(format!("{b}.attn_kv"), &[dim, n], Part::Attn);
        m.norm(format!("{b}.attn_kv_a_norm"), dim);
        m.weight(format!("{b}.attn_output_a"), &[groups * o_rank, heads * dim / groups], Part::Attn);
        m.weight(format!("{b}.attn_output_b"), &[n, groups * o_rank], Part::Attn);
        hyper(m, format!("{b}.hc_attn"), n, (2 + Self::STREAMS) * Self::STREAMS, 3);
        hyper(m, format!("{b}.hc_ffn"), n, (2 + Self::STREAMS) * Self::STREAMS, 3);
        let compressor = |m: &mut Model, name: &str, dim: usize| {
            let wide = dim * if ratio == 4 { 2 } else { 1 };
            m.weight(format!("{b}.{name}_kv"), &[wide, n], Part::Attn);
            m.weight(format!("{b}.{name}_gate"), &[wide, n], Part::Attn);
            m.tensor(format!("{b}.{name}_ape.weight"), &[ratio as usize, wide], BIAS);
            m.norm(format!("{b}.{name}_norm"), dim);
        };
        if ratio != 0 {
            compressor(m, "attn_compressor", dim);
        }
        if ratio == 4 {
            let (heads, dim) = Self::INDEX;
            m.tensor(format!("{b}.indexer.proj.weight"), &[heads, n], matrix(n, 1.0));
            m.weight(format!("{b}.indexer.attn_q_b"), &[heads * dim, self.q_rank], Part::Attn);
            compressor(m, "indexer_compressor", dim);
        }
    }
}

/// The mixing weights of residual streams.
fn hyper(m: &mut Model, name: String, n: usize, mixes: usize, scales: usize) {
    let wide = n * V4::STREAMS;
    m.tensor(format!("{name}_fn.weight"), &[mixes, wide], matrix(wide, 1.0));
    m.tensor(format!("{name}_base.weight"), &[mixes], Kind::F32 { mean: 0.0, spread: 0.5 });
    m.tensor(format!("{name}_scale.weight"), &[scales], Kind::F32 { mean: 0.5, spread: 0.1 });
}
