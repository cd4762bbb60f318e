//! Delta nets with attention in every fourth layer: Qwen3-Next, Qwen3.5, and Qwen3.8-Flash-Next
//! with streams, an indexer and a table of embeddings by n-gram.

use super::{Extent, NORM, matrix};
use crate::model::{Kind, Model, Part};

pub(super) struct Qwen35 {
    arch: &'static str,
    layers: usize,
    n_embd: usize,
    heads: (usize, usize),
    v_heads: usize,
    experts: (usize, usize),
    n_ff_exp: usize,
    /// Rows of each of the table's heads in the whole model; 0: no table, no streams, no indexer.
    table_rows: usize,
    /// Whether the two gates of a delta net share a matrix.
    fused_gates: bool,
}

pub(super) const QWEN35_35B: Qwen35 = Qwen35 {
    arch: "qwen35moe",
    layers: 40,
    n_embd: 2048,
    heads: (16, 2),
    v_heads: 32,
    experts: (256, 8),
    n_ff_exp: 512,
    table_rows: 0,
    fused_gates: false,
};
/// Experts as many as in a large model, and a block that predicts a further token, at a size for tests.
pub(super) const TINY: Qwen35 =
    Qwen35 { layers: 4, n_embd: 256, heads: (2, 1), v_heads: 16, experts: (128, 8), n_ff_exp: 64, ..QWEN35_35B };
pub(super) const QWEN35_122B: Qwen35 =
    Qwen35 { layers: 48, n_embd: 3072, heads: (32, 2), v_heads: 64, n_ff_exp: 1024, ..QWEN35_35B };
pub(super) const QWEN3_NEXT: Qwen35 =
    Qwen35 { arch: "qwen3next", layers: 48, experts: (512, 10), fused_gates: true, ..QWEN35_35B };
pub(super) const QWEN38_FLASH: Qwen35 = Qwen35 {
    arch: "qwen4exp",
    layers: 48,
    n_embd: 2560,
    heads: (24, 2),
    v_heads: 48,
    experts: (512, 10),
    n_ff_exp: 640,
    table_rows: 20_000_096,
    ..QWEN35_35B
};

impl Qwen35 {
    const DIM: usize = 256;
    const K_HEADS: usize = 16;
    const STATE: usize = 128;
    const TAPS: usize = 4;
    /// Residual streams, and the rank of their mixing.
    const STREAMS: (usize, usize) = (4, 320);
    /// Heads of the indexer, and their columns.
    const INDEX: (usize, usize) = (4, 128);
    /// Keys that the indexer takes for one.
    const RATIO: usize = 4;
    /// Heads of the table for each length of n-gram, the longest n-gram, and columns of a row.
    const TABLE: (usize, usize, usize) = (8, 3, 160);
    /// The layer that the table's rows go to.
    const TABLE_LAYER: usize = 1;

    pub(super) fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        let (main, extra) = layers.with_heads(self.layers, 1);
        let (n, n_ff) = (self.n_embd, self.n_ff_exp);
        let full = |i: usize| i >= main || (i + 1).is_multiple_of(4);
        let streams = self.table_rows > 0;
        let mut m = Model::new(self.arch);
        self.keys(&mut m, main, extra);
        if streams {
            self.table(&mut m, main, extra, n_vocab);
            m.weight("token_embd", &[n_vocab, n], Part::Embed);
            self.mixer(&mut m, "output_hc", false);
            m.weight("output", &[n_vocab, n], Part::Output);
        } else {
            m.ends(n_vocab, n);
        }
        for i in 0..main + extra {
            let b = &format!("blk.{i}");
            let before = |m: &mut Model, mixer: &str, norm: &str| match streams {
                true => self.mixer(m, &format!("{b}.{mixer}"), true),
                false => m.norm(format!("{b}.{norm}"), n),
            };
            before(&mut m, "hc_attn", "attn_norm");
            if full(i) {
                self.attention(&mut m, b)
            } else {
                self.delta_net(&mut m, b)
            }
            if streams && i == Self::TABLE_LAYER {
                self.table_input(&mut m, b);
            }
            before(&mut m, "hc_ffn", "post_attention_norm");
            m.experts(b, self.experts.0, n_ff, n);
            m.tensor(format!("{b}.ffn_gate_inp_shexp.weight"), &[n], matrix(n, 1.0));
            m.dense(b, "_shexp", n_ff, n);
            if i >= main {
                self.next_token(&mut m, b);
            }
        }
        m
    }

    fn keys(&self, m: &mut Model, main: usize, extra: usize) {
        let (n_ff, v_heads) = (self.n_ff_exp, self.v_heads);
        m.common(main + extra, 262_144, self.n_embd, self.heads, 1e7, 1e-6);
        m.counts(&[("expert_count", self.experts.0), ("expert_used_count", self.experts.1)]);
        m.counts(&[("attention.key_length", Self::DIM), ("attention.value_length", Self::DIM)]);
        m.counts(&[("expert_feed_forward_length", n_ff), ("expert_shared_feed_forward_length", n_ff)]);
        m.counts(&[("ssm.conv_kernel", Self::TAPS), ("ssm.state_size", Self::STATE)]);
        m.counts(&[("ssm.group_count", Self::K_HEADS), ("ssm.time_step_rank", v_heads)]);
        m.count("ssm.inner_size", v_heads * Self::STATE);
        m.counts(&[("full_attention_interval", 4), ("rope.dimension_count", Self::DIM / 4)]);
        if self.fused_gates {
            m.count("feed_forward_length", 5120); // no layer is dense
        } else {
            m.set("rope.dimension_sections", vec![11i32, 11, 10, 0]);
            let recurrent = (0..main + extra).map(|i| i < main && !(i + 1).is_multiple_of(4));
            m.set("attention.recurrent_layers", recurrent.collect::<Vec<bool>>());
        }
        if extra > 0 {
            m.count("nextn_predict_layers", extra);
        }
    }

    fn attention(&self, m: &mut Model, b: &str) {
        let (n, dim, (heads, kv_heads)) = (self.n_embd, Self::DIM, self.heads);
        m.weight(format!("{b}.attn_q"), &[heads * dim * 2, n], Part::Attn);
        m.weight(format!("{b}.attn_k"), &[kv_heads * dim, n], Part::Attn);
        m.weight(format!("{b}.attn_v"), &[kv_heads * dim, n], Part::Attn);
        m.qk_norms(b, (dim, dim));
        m.weight(format!("{b}.attn_output"), &[n, heads * dim], Part::Attn);
        if self.table_rows > 0 {
            let (heads, dim) = Self::INDEX;
            m.weight(format!("{b}.indexer.q_proj"), &[heads * dim, n], Part::Attn);
            m.weight(format!("{b}.indexer.k_proj"), &[dim, n], Part::Attn);
            m.norm(format!("{b}.indexer.q_norm"), dim);
            m.norm(format!("{b}.indexer.k_norm"), dim);
        }
    }

    fn delta_net(&self, m: &mut Model, b: &str) {
        let (n, v_heads, n_v) = (self.n_embd, self.v_heads, self.v_heads * Self::STATE);
        let n_qkv = 2 * Self::K_HEADS * Self::STATE + n_v;
        m.weight(format!("{b}.attn_qkv"), &[n_qkv, n], Part::Attn);
        m.weight(format!("{b}.attn_gate"), &[n_v, n], Part::Attn);
        m.tensor(format!("{b}.ssm_conv1d.weight"), &[n_qkv, Self::TAPS], Kind::F32 { mean: 0.0, spread: 0.7 });
        m.tensor(format!("{b}.ssm_dt.bias"), &[v_heads], Kind::TimeStep);
        m.tensor(format!("{b}.ssm_a"), &[v_heads], Kind::Decay);
        if self.fused_gates {
            m.weight(format!("{b}.ssm_ba"), &[2 * v_heads, n], Part::Attn);
        } else {
            m.weight(format!("{b}.ssm_beta"), &[v_heads, n], Part::Attn);
            m.weight(format!("{b}.ssm_alpha"), &[v_heads, n], Part::Attn);
        }
        m.norm(format!("{b}.ssm_norm"), Self::STATE);
        m.weight(format!("{b}.ssm_out"), &[n, n_v], Part::Attn);
    }

    /// What mixes the streams into a row, and spreads it over them again (`inject`).
    fn mixer(&self, m: &mut Model, name: &str, inject: bool) {
        let (n, (streams, rank)) = (self.n_embd, Self::STREAMS);
        m.tensor(format!("{name}_norm.weight"), &[streams, n], NORM);
        m.weight(format!("{name}_down"), &[rank, streams * n], Part::Attn);
        m.weight(format!("{name}_up"), &[streams * n, rank], Part::Attn);
        if inject {
            m.weight(format!("{name}_inject"), &[streams, streams * n], Part::Attn);
        }
    }

    /// The keys of streams, indexer and table, and the table. A shorter vocabulary comes with a
    /// smaller one.
    fn table(&self, m: &mut Model, main: usize, extra: usize, n_vocab: usize) {
        let (per_length, longest, columns) = Self::TABLE;
        let heads = per_length * (longest - 1);
        let rows = self.table_rows.min(n_vocab * 81); // 20 million of 248,320 tokens
        let (streams, rank) = Self::STREAMS;
        m.counts(&[("hyper_connection.count", streams), ("hyper_connection.low_rank", rank)]);
        m.count("embedding_length_out", streams * self.n_embd);
        m.counts(&[("attention.indexer.head_count", Self::INDEX.0), ("attention.indexer.key_length", Self::INDEX.1)]);
        m.count("attention.indexer.top_k", 2048);
        let ratio = |i: usize| if i >= main || (i + 1).is_multiple_of(4) { Self::RATIO } else { 0 };
        m.each("attention.compress_ratios", main + extra, ratio);
        m.set("ple.layers", vec![Self::TABLE_LAYER as u32]);
        m.counts(&[("ple.ngram_size", longest), ("ple.heads_per_ngram", per_length), ("ple.conv_kernel", Self::TAPS)]);
        m.counts(&[("ple.eos_token_id", n_vocab - 1), ("embedding_length_per_layer_input", columns)]);
        m.set("ple.layer_multipliers", vec![24_242_424_242_441u64, 13_131_313_131_317, 7_777_777_777_777]);
        m.set("ple.head_offsets", (0..heads).map(|i| (i * rows) as u64).collect::<Vec<u64>>());
        m.set("ple.head_vocab_sizes", vec![rows as u64; heads]);
        m.weight("per_layer_token_embd", &[heads * rows, columns], Part::Embed);
    }

    fn table_input(&self, m: &mut Model, b: &str) {
        let (n, (streams, _)) = (self.n_embd, Self::STREAMS);
        m.weight(format!("{b}.ple_key"), &[streams * n, n], Part::Attn);
        m.weight(format!("{b}.ple_value"), &[n, n], Part::Attn);
        for name in ["key", "query", "conv"] {
            m.tensor(format!("{b}.ple_norm_{name}.weight"), &[streams, n], NORM);
        }
        let taps = Kind::F32 { mean: 0.0, spread: 0.5 };
        m.tensor(format!("{b}.ple_conv1d.weight"), &[streams * n, Self::TAPS], taps);
    }

    /// What the block that predicts a further token has beside a layer.
    fn next_token(&self, m: &mut Model, b: &str) {
        let n = self.n_embd;
        if self.table_rows == 0 {
            return m.nextn(b, n);
        }
        m.weight(format!("{b}.nextn.eh_proj"), &[n, 2 * n], Part::Attn);
        m.norm(format!("{b}.nextn.enorm"), n);
        m.tensor(format!("{b}.nextn.hnorm.weight"), &[Self::STREAMS.0, n], NORM);
        self.mixer(m, &format!("{b}.nextn.hc_head"), false);
    }
}
