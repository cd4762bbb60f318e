//! The shapes: published dimensions, the metadata keys that the usual converter writes, every tensor by its name.
//!
//! All layers of a model come with the blocks that predict further tokens where the converter
//! writes them; fewer come without, unless they are asked for. Dimensions are those of the released
//! configurations.

mod deepseek;
mod deepseek41;
mod gemma;
mod grouped;
mod nemotron;
mod qwen;

use tandem::gguf::Value;

use crate::model::{Kind, Model, Part, Spec};

/// How much of a model is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// The first layers; None is all of them.
    pub(crate) layers: Option<usize>,
    /// Blocks that predict further tokens come with fewer layers too.
    pub(crate) heads: bool,
}

impl Extent {
    /// Layers of a model that has so many.
    fn of(self, layers: usize) -> usize {
        self.layers.unwrap_or(layers)
    }

    /// Layers of a model that has so many, and its blocks that predict further tokens.
    fn with_heads(self, layers: usize, heads: usize) -> (usize, usize) {
        (self.of(layers), if self.layers.is_none() || self.heads { heads } else { 0 })
    }
}

/// A model that can be written.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: usize,
    pub(crate) n_vocab: usize,
    /// Of so many layers and tokens.
    pub(crate) build: fn(Extent, usize) -> Model,
}

#[rustfmt::skip]
pub(crate) static SHAPES: &[Shape] = &[
    Shape { name: "tiny", layers: 4, n_vocab: 1024, build: |l, v| TINY.model(l, v) },
    Shape { name: "tiny-mtp", layers: 4, n_vocab: 1024, build: |l, v| qwen::TINY.model(l, v) },
    Shape { name: "qwen3-30b-a3b", layers: 48, n_vocab: 151_936, build: |l, v| QWEN3_30B.model(l, v) },
    Shape { name: "qwen3-235b-a22b", layers: 94, n_vocab: 151_936, build: |l, v| QWEN3_235B.model(l, v) },
    Shape { name: "v4-flash-experts", layers: 4, n_vocab: 32_768, build: |l, v| V4_FLASH_EXPERTS.model(l, v) },
    Shape { name: "gpt-oss-20b", layers: 24, n_vocab: 201_088, build: |l, v| gpt_oss(l.of(24), 32, v) },
    Shape { name: "gpt-oss-120b", layers: 36, n_vocab: 201_088, build: |l, v| gpt_oss(l.of(36), 128, v) },
    Shape { name: "qwen3.5-35b-a3b", layers: 40, n_vocab: 248_320, build: |l, v| qwen::QWEN35_35B.model(l, v) },
    Shape { name: "qwen3.5-122b-a10b", layers: 48, n_vocab: 248_320, build: |l, v| qwen::QWEN35_122B.model(l, v) },
    Shape { name: "qwen3-next-80b-a3b", layers: 48, n_vocab: 151_936, build: |l, v| qwen::QWEN3_NEXT.model(l, v) },
    Shape { name: "qwen3.8-flash-next", layers: 48, n_vocab: 248_320, build: |l, v| qwen::QWEN38_FLASH.model(l, v) },
    Shape { name: "deepseek-v3", layers: 61, n_vocab: 129_280, build: |l, v| deepseek::V3.model(l, v) },
    Shape { name: "kimi-k2", layers: 61, n_vocab: 163_840, build: |l, v| deepseek::KIMI_K2.model(l, v) },
    Shape { name: "kimi-k2.6", layers: 61, n_vocab: 163_840, build: |l, v| deepseek::KIMI_K26.model(l, v) },
    Shape { name: "glm-5.1", layers: 78, n_vocab: 154_880, build: |l, v| deepseek::GLM_51.model(l, v) },
    Shape { name: "glm-5.2", layers: 78, n_vocab: 154_880, build: |l, v| deepseek::GLM_52.model(l, v) },
    Shape { name: "deepseek-v4-flash", layers: 43, n_vocab: 129_280, build: |l, v| deepseek::V4_FLASH.model(l, v) },
    Shape { name: "deepseek-v4-pro", layers: 61, n_vocab: 129_280, build: |l, v| deepseek::V4_PRO.model(l, v) },
    Shape { name: "deepseek-v4.1-flash", layers: 40, n_vocab: 129_280, build: |l, v| deepseek41::FLASH.model(l, v) },
    Shape { name: "tiny-v4.1", layers: 40, n_vocab: 4096, build: |l, v| deepseek41::NARROW.model(l, v) },
    Shape { name: "tiny-v4.1-4gb", layers: 40, n_vocab: 4096, build: |l, v| deepseek41::TABLES.model(l, v) },
    Shape { name: "tiny-v4.1-20gb", layers: 40, n_vocab: 4096, build: |l, v| deepseek41::HOLES.model(l, v) },
    Shape { name: "gemma4-26b-a4b", layers: 30, n_vocab: 262_144, build: |l, v| gemma::A4B.model(l, v) },
    Shape { name: "gemma4-31b", layers: 60, n_vocab: 262_144, build: |l, v| gemma::DENSE_31B.model(l, v) },
    Shape { name: "gemma4-e4b", layers: 42, n_vocab: 262_144, build: |l, v| gemma::E4B.model(l, v) },
    Shape { name: "minimax-m2.7", layers: 62, n_vocab: 200_064, build: |l, v| grouped::MINIMAX_M27.model(l, v) },
    Shape { name: "minimax-m3", layers: 60, n_vocab: 200_064, build: |l, v| grouped::MINIMAX_M3.model(l, v) },
    Shape { name: "glm-4.5-air", layers: 46, n_vocab: 151_552, build: |l, v| grouped::GLM_45_AIR.model(l, v) },
    Shape { name: "glm-4.6", layers: 92, n_vocab: 151_552, build: |l, v| grouped::GLM_46.model(l, v) },
    Shape { name: "laguna-xs-2.1", layers: 40, n_vocab: 100_352, build: |l, v| grouped::LAGUNA_XS.model(l, v) },
    Shape { name: "laguna-s-2.1", layers: 48, n_vocab: 100_352, build: |l, v| grouped::LAGUNA_S.model(l, v) },
    Shape { name: "step-3.7-flash", layers: 45, n_vocab: 128_896, build: |l, v| grouped::STEP_37.model(l, v) },
    Shape { name: "mimo-v2.5", layers: 48, n_vocab: 152_576, build: |l, v| grouped::mimo_v25(l, v) },
    Shape { name: "nemotron-3-super", layers: 88, n_vocab: 131_072, build: |l, v| nemotron::SUPER.model(l, v) },
    Shape { name: "nemotron-3-ultra", layers: 108, n_vocab: 131_072, build: |l, v| nemotron::ULTRA.model(l, v) },
    Shape { name: "nemotron-3.5-lightning", layers: 52, n_vocab: 131_072, build: |l, v| nemotron::LIGHTNING.model(l, v) },
];

/// Norms: about one.
const NORM: Kind = Kind::F32 { mean: 1.0, spread: 0.1 };
const BIAS: Kind = Kind::F32 { mean: 0.0, spread: 0.1 };

/// A router or another F32 matrix with rows of `n`: outputs of RMS `gain` from inputs of unit RMS.
fn matrix(n: usize, gain: f32) -> Kind {
    Kind::F32 { mean: 0.0, spread: gain / (n as f32).sqrt() }
}

impl Model {
    fn new(arch: &'static str) -> Model {
        Model { arch, ..Model::default() }
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.meta.push((key.into(), value.into()));
    }

    fn count(&mut self, key: &str, n: usize) {
        self.set(key, n as u32);
    }

    fn counts(&mut self, list: &[(&str, usize)]) {
        list.iter().for_each(|(key, n)| self.count(key, *n));
    }

    /// The keys that every converted model has.
    fn common(&mut self, blocks: usize, context: usize, n_embd: usize, heads: (usize, usize), base: f32, eps: f32) {
        self.sizes(blocks, context, n_embd, base, eps);
        self.counts(&[("attention.head_count", heads.0), ("attention.head_count_kv", heads.1)]);
    }

    /// The keys that every converted model has, but for the heads, which differ from layer to
    /// layer.
    fn sizes(&mut self, blocks: usize, context: usize, n_embd: usize, base: f32, eps: f32) {
        self.counts(&[("block_count", blocks), ("context_length", context), ("embedding_length", n_embd)]);
        self.set("rope.freq_base", base);
        self.set("attention.layer_norm_rms_epsilon", eps);
    }

    /// A count for each block.
    fn each(&mut self, key: &str, blocks: usize, n: impl Fn(usize) -> usize) {
        self.set(key, (0..blocks).map(|i| n(i) as u32).collect::<Vec<u32>>());
    }

    fn yarn(&mut self, factor: f32, original: usize, beta: (f32, f32)) {
        self.set("rope.scaling.type", "yarn");
        self.set("rope.scaling.factor", factor);
        self.count("rope.scaling.original_context_length", original);
        self.set("rope.scaling.yarn_beta_fast", beta.0);
        self.set("rope.scaling.yarn_beta_slow", beta.1);
    }

    pub(crate) fn tensor(&mut self, name: impl Into<String>, shape: &[usize], kind: Kind) {
        self.tensors.push(Spec { name: name.into(), shape: shape.to_vec(), kind, halved: 0 });
    }

    fn weight(&mut self, name: impl Into<String>, shape: &[usize], part: Part) {
        self.tensor(format!("{}.weight", name.into()), shape, Kind::Weight(part));
    }

    fn norm(&mut self, name: impl Into<String>, n: usize) {
        self.tensor(format!("{}.weight", name.into()), &[n], NORM);
    }

    /// Embedding and head. The last norm is larger, so that the logits are not all alike.
    fn ends(&mut self, n_vocab: usize, n_embd: usize) {
        self.weight("token_embd", &[n_vocab, n_embd], Part::Embed);
        self.tensor("output_norm.weight", &[n_embd], Kind::F32 { mean: 2.0, spread: 0.2 });
        self.weight("output", &[n_vocab, n_embd], Part::Output);
    }

    fn experts(&mut self, b: &str, n: usize, n_ff: usize, n_embd: usize) {
        self.tensor(format!("{b}.ffn_gate_inp.weight"), &[n, n_embd], matrix(n_embd, 1.0));
        self.weight(format!("{b}.ffn_gate_exps"), &[n, n_ff, n_embd], Part::Experts);
        self.weight(format!("{b}.ffn_up_exps"), &[n, n_ff, n_embd], Part::Experts);
        self.weight(format!("{b}.ffn_down_exps"), &[n, n_embd, n_ff], Part::Down);
    }

    /// Experts chosen with a bias, and a shared one of `n_shared` (0: none).
    fn biased_experts(&mut self, b: &str, n: usize, n_ff: usize, n_shared: usize, n_embd: usize) {
        self.experts(b, n, n_ff, n_embd);
        self.tensor(format!("{b}.exp_probs_b.bias"), &[n], Kind::F32 { mean: 0.0, spread: 0.05 });
        if n_shared > 0 {
            self.dense(b, "_shexp", n_shared, n_embd);
        }
    }

    /// The projections of grouped attention.
    fn grouped(&mut self, b: &str, n_embd: usize, (heads, kv_heads): (usize, usize), dim: usize) {
        self.weight(format!("{b}.attn_q"), &[heads * dim, n_embd], Part::Attn);
        self.weight(format!("{b}.attn_k"), &[kv_heads * dim, n_embd], Part::Attn);
        self.weight(format!("{b}.attn_v"), &[kv_heads * dim, n_embd], Part::Attn);
        self.weight(format!("{b}.attn_output"), &[n_embd, heads * dim], Part::Attn);
    }

    /// Norms of queries and keys.
    fn qk_norms(&mut self, b: &str, (q, k): (usize, usize)) {
        self.norm(format!("{b}.attn_q_norm"), q);
        self.norm(format!("{b}.attn_k_norm"), k);
    }

    /// What a block that predicts a further token has beside a layer.
    fn nextn(&mut self, b: &str, n_embd: usize) {
        self.weight(format!("{b}.nextn.eh_proj"), &[n_embd, 2 * n_embd], Part::Attn);
        for name in ["enorm", "hnorm", "shared_head_norm"] {
            self.norm(format!("{b}.nextn.{name}"), n_embd);
        }
    }

    /// A dense feed-forward layer; `suffix` is "" or "_shexp".
    fn dense(&mut self, b: &str, suffix: &str, n_ff: usize, n_embd: usize) {
        self.weight(format!("{b}.ffn_gate{suffix}"), &[n_ff, n_embd], Part::Shared);
        self.weight(format!("{b}.ffn_up{suffix}"), &[n_ff, n_embd], Part::Shared);
        self.weight(format!("{b}.ffn_down{suffix}"), &[n_embd, n_ff], Part::Shared);
    }
}

struct Qwen3 {
    layers: usize,
    n_embd: usize,
    heads: (usize, usize),
    dim: usize,
    n_ff: usize,
    experts: (usize, usize),
    n_ff_exp: usize,
}

const TINY: Qwen3 =
    Qwen3 { layers: 4, n_embd: 256, heads: (4, 2), dim: 64, n_ff: 512, experts: (16, 4), n_ff_exp: 256 };
const QWEN3_30B: Qwen3 =
    Qwen3 { layers: 48, n_embd: 2048, heads: (32, 4), dim: 128, n_ff: 6144, experts: (128, 8), n_ff_exp: 768 };
const QWEN3_235B: Qwen3 =
    Qwen3 { layers: 94, n_embd: 4096, heads: (64, 4), dim: 128, n_ff: 12288, experts: (128, 8), n_ff_exp: 1536 };

/// DeepSeek-V4-Flash's routed experts in a plain transformer: what every engine runs, for comparisons of experts alone.
const V4_FLASH_EXPERTS: Qwen3 =
    Qwen3 { layers: 4, n_embd: 4096, heads: (32, 4), dim: 128, n_ff: 8192, experts: (256, 6), n_ff_exp: 2048 };

impl Qwen3 {
    fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        let (layers, n, dim, (heads, kv_heads)) = (layers.of(self.layers), self.n_embd, self.dim, self.heads);
        let mut m = Model::new("qwen3moe");
        m.common(layers, 40960, n, self.heads, 1e6, 1e-6);
        m.counts(&[("feed_forward_length", self.n_ff), ("expert_count", self.experts.0)]);
        m.counts(&[("expert_used_count", self.experts.1), ("expert_feed_forward_length", self.n_ff_exp)]);
        m.counts(&[("attention.key_length", dim), ("attention.value_length", dim)]);
        m.ends(n_vocab, n);
        for i in 0..layers {
            let b = &format!("blk.{i}");
            m.norm(format!("{b}.attn_norm"), n);
            m.weight(format!("{b}.attn_q"), &[heads * dim, n], Part::Attn);
            m.weight(format!("{b}.attn_k"), &[kv_heads * dim, n], Part::Attn);
            m.weight(format!("{b}.attn_v"), &[kv_heads * dim, n], Part::Attn);
            m.norm(format!("{b}.attn_q_norm"), dim);
            m.norm(format!("{b}.attn_k_norm"), dim);
            m.weight(format!("{b}.attn_output"), &[n, heads * dim], Part::Attn);
            m.norm(format!("{b}.ffn_norm"), n);
            m.experts(b, self.experts.0, self.n_ff_exp, n);
        }
        m
    }
}

fn gpt_oss(layers: usize, n_expert: usize, n_vocab: usize) -> Model {
    let (n, dim, heads, kv_heads, n_ff) = (2880, 64, 64, 8, 2880);
    let mut m = Model::new("gpt-oss");
    m.common(layers, 131_072, n, (heads, kv_heads), 150_000.0, 1e-5);
    m.yarn(32.0, 4096, (32.0, 1.0));
    m.counts(&[("feed_forward_length", n_ff), ("expert_count", n_expert), ("expert_used_count", 4)]);
    m.counts(&[("attention.key_length", dim), ("attention.value_length", dim), ("attention.sliding_window", 128)]);
    m.count("expert_feed_forward_length", n_ff);
    m.ends(n_vocab, n);
    for i in 0..layers {
        let b = &format!("blk.{i}");
        m.norm(format!("{b}.attn_norm"), n);
        for (name, out, from) in [
            ("attn_q", heads * dim, n),
            ("attn_k", kv_heads * dim, n),
            ("attn_v", kv_heads * dim, n),
            ("attn_output", n, heads * dim),
        ] {
            m.weight(format!("{b}.{name}"), &[out, from], Part::Attn);
            m.tensor(format!("{b}.{name}.bias"), &[out], BIAS);
        }
        m.tensor(format!("{b}.attn_sinks.weight"), &[heads], Kind::F32 { mean: 0.0, spread: 1.0 });
        m.norm(format!("{b}.post_attention_norm"), n);
        m.experts(b, n_expert, n_ff, n);
        m.tensor(format!("{b}.ffn_gate_inp.bias"), &[n_expert], BIAS);
        for (name, out) in [("ffn_gate_exps", n_ff), ("ffn_up_exps", n_ff), ("ffn_down_exps", n)] {
            m.tensor(format!("{b}.{name}.bias"), &[n_expert, out], BIAS);
        }
    }
    m
}
