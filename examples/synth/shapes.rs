//! The shapes: published dimensions, the metadata keys that the usual converter writes, every tensor by its name.

use tandem::gguf::Value;

use crate::model::{Kind, Model, Part, Spec};

/// A model that can be written.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: usize,
    pub(crate) n_vocab: usize,
    /// Of so many layers (None: all) and tokens.
    pub(crate) build: fn(Option<usize>, usize) -> Model,
}

pub(crate) static SHAPES: &[Shape] = &[
    Shape { name: "tiny", layers: 4, n_vocab: 1024, build: |l, v| TINY.model(l, v) },
    Shape { name: "qwen3-30b-a3b", layers: 48, n_vocab: 151_936, build: |l, v| QWEN3_30B.model(l, v) },
    Shape { name: "qwen3-235b-a22b", layers: 94, n_vocab: 151_936, build: |l, v| QWEN3_235B.model(l, v) },
    Shape { name: "v4-flash-experts", layers: 4, n_vocab: 32_768, build: |l, v| V4_FLASH_EXPERTS.model(l, v) },
    Shape { name: "gpt-oss-20b", layers: 24, n_vocab: 201_088, build: |l, v| gpt_oss(l.unwrap_or(24), 32, v) },
    Shape { name: "gpt-oss-120b", layers: 36, n_vocab: 201_088, build: |l, v| gpt_oss(l.unwrap_or(36), 128, v) },
    Shape { name: "qwen3.5-35b-a3b", layers: 40, n_vocab: 248_320, build: |l, v| QWEN35_35B.model(l, v) },
    Shape { name: "qwen3.5-122b-a10b", layers: 48, n_vocab: 248_320, build: |l, v| QWEN35_122B.model(l, v) },
    Shape { name: "deepseek-v3", layers: 61, n_vocab: 129_280, build: |l, v| DEEPSEEK_V3.model(l, v) },
    Shape { name: "kimi-k2", layers: 61, n_vocab: 163_840, build: |l, v| KIMI_K2.model(l, v) },
    Shape {
        name: "deepseek-v4-flash",
        layers: 43,
        n_vocab: 129_280,
        build: |l, v| deepseek_v4_flash(l.unwrap_or(43), v),
    },
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
    fn common(&mut self, layers: usize, context: usize, n_embd: usize, heads: (usize, usize), base: f32, eps: f32) {
        self.counts(&[("block_count", layers), ("context_length", context), ("embedding_length", n_embd)]);
        self.counts(&[("attention.head_count", heads.0), ("attention.head_count_kv", heads.1)]);
        self.set("rope.freq_base", base);
        self.set("attention.layer_norm_rms_epsilon", eps);
    }

    fn yarn(&mut self, factor: f32, original: usize, beta: (f32, f32)) {
        self.set("rope.scaling.type", "yarn");
        self.set("rope.scaling.factor", factor);
        self.count("rope.scaling.original_context_length", original);
        self.set("rope.scaling.yarn_beta_fast", beta.0);
        self.set("rope.scaling.yarn_beta_slow", beta.1);
    }

    fn tensor(&mut self, name: impl Into<String>, shape: &[usize], kind: Kind) {
        self.tensors.push(Spec { name: name.into(), shape: shape.to_vec(), kind });
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
    fn model(&self, layers: Option<usize>, n_vocab: usize) -> Model {
        let (layers, n, dim, (heads, kv_heads)) = (layers.unwrap_or(self.layers), self.n_embd, self.dim, self.heads);
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

struct Qwen35 {
    layers: usize,
    n_embd: usize,
    heads: (usize, usize),
    v_heads: usize,
    n_ff_exp: usize,
}

const QWEN35_35B: Qwen35 = Qwen35 { layers: 40, n_embd: 2048, heads: (16, 2), v_heads: 32, n_ff_exp: 512 };
const QWEN35_122B: Qwen35 = Qwen35 { layers: 48, n_embd: 3072, heads: (32, 2), v_heads: 64, n_ff_exp: 1024 };

impl Qwen35 {
    const DIM: usize = 256;
    const EXPERTS: usize = 256;
    const K_HEADS: usize = 16;
    const STATE: usize = 128;
    const TAPS: usize = 4;

    /// All layers come with the block that predicts a second token, as the converter writes them; fewer come without.
    fn model(&self, layers: Option<usize>, n_vocab: usize) -> Model {
        let (main, extra) = layers.map_or((self.layers, 1), |n| (n, 0));
        let (n, n_ff, v_heads) = (self.n_embd, self.n_ff_exp, self.v_heads);
        let full = |i: usize| i >= main || (i + 1).is_multiple_of(4);
        let mut m = Model::new("qwen35moe");
        m.common(main + extra, 262_144, n, self.heads, 1e7, 1e-6);
        m.set("rope.dimension_sections", vec![11i32, 11, 10, 0]);
        m.counts(&[("expert_count", Self::EXPERTS), ("expert_used_count", 8), ("attention.key_length", Self::DIM)]);
        m.counts(&[("attention.value_length", Self::DIM), ("expert_feed_forward_length", n_ff)]);
        m.counts(&[("expert_shared_feed_forward_length", n_ff), ("ssm.conv_kernel", Self::TAPS)]);
        m.counts(&[("ssm.state_size", Self::STATE), ("ssm.group_count", Self::K_HEADS)]);
        m.counts(&[("ssm.time_step_rank", v_heads), ("ssm.inner_size", v_heads * Self::STATE)]);
        m.set("attention.recurrent_layers", (0..main + extra).map(|i| !full(i)).collect::<Vec<bool>>());
        m.counts(&[("full_attention_interval", 4), ("rope.dimension_count", Self::DIM / 4)]);
        if extra > 0 {
            m.count("nextn_predict_layers", extra);
        }
        m.ends(n_vocab, n);
        for i in 0..main + extra {
            let b = &format!("blk.{i}");
            m.norm(format!("{b}.attn_norm"), n);
            if full(i) {
                self.attention(&mut m, b)
            } else {
                self.delta_net(&mut m, b)
            }
            m.norm(format!("{b}.post_attention_norm"), n);
            m.experts(b, Self::EXPERTS, n_ff, n);
            m.tensor(format!("{b}.ffn_gate_inp_shexp.weight"), &[n], matrix(n, 1.0));
            m.dense(b, "_shexp", n_ff, n);
            if i >= main {
                m.weight(format!("{b}.nextn.eh_proj"), &[n, 2 * n], Part::Attn);
                for name in ["enorm", "hnorm", "shared_head_norm"] {
                    m.norm(format!("{b}.nextn.{name}"), n);
                }
            }
        }
        m
    }

    fn attention(&self, m: &mut Model, b: &str) {
        let (n, dim, (heads, kv_heads)) = (self.n_embd, Self::DIM, self.heads);
        m.weight(format!("{b}.attn_q"), &[heads * dim * 2, n], Part::Attn);
        m.weight(format!("{b}.attn_k"), &[kv_heads * dim, n], Part::Attn);
        m.weight(format!("{b}.attn_v"), &[kv_heads * dim, n], Part::Attn);
        m.norm(format!("{b}.attn_q_norm"), dim);
        m.norm(format!("{b}.attn_k_norm"), dim);
        m.weight(format!("{b}.attn_output"), &[n, heads * dim], Part::Attn);
    }

    fn delta_net(&self, m: &mut Model, b: &str) {
        let (n, v_heads, n_v) = (self.n_embd, self.v_heads, self.v_heads * Self::STATE);
        let n_qkv = 2 * Self::K_HEADS * Self::STATE + n_v;
        m.weight(format!("{b}.attn_qkv"), &[n_qkv, n], Part::Attn);
        m.weight(format!("{b}.attn_gate"), &[n_v, n], Part::Attn);
        m.tensor(format!("{b}.ssm_conv1d.weight"), &[n_qkv, Self::TAPS], Kind::F32 { mean: 0.0, spread: 0.7 });
        m.tensor(format!("{b}.ssm_dt.bias"), &[v_heads], Kind::TimeStep);
        m.tensor(format!("{b}.ssm_a"), &[v_heads], Kind::Decay);
        m.weight(format!("{b}.ssm_beta"), &[v_heads, n], Part::Attn);
        m.weight(format!("{b}.ssm_alpha"), &[v_heads, n], Part::Attn);
        m.norm(format!("{b}.ssm_norm"), Self::STATE);
        m.weight(format!("{b}.ssm_out"), &[n, n_v], Part::Attn);
    }
}

struct DeepSeek {
    heads: usize,
    dense: usize,
    n_expert: usize,
    scale: f32,
    groups: (usize, usize),
    context: usize,
    base: f32,
    yarn: (f32, f32),
}

const DEEPSEEK_V3: DeepSeek = DeepSeek {
    heads: 128,
    dense: 3,
    n_expert: 256,
    scale: 2.5,
    groups: (8, 4),
    context: 163_840,
    base: 10_000.0,
    yarn: (40.0, 32.0),
};
const KIMI_K2: DeepSeek = DeepSeek {
    heads: 64,
    dense: 1,
    n_expert: 384,
    scale: 2.827,
    groups: (1, 1),
    context: 131_072,
    base: 50_000.0,
    yarn: (32.0, 1.0),
};

impl DeepSeek {
    fn model(&self, layers: Option<usize>, n_vocab: usize) -> Model {
        let (layers, n, heads) = (layers.unwrap_or(61), 7168, self.heads);
        let (q_rank, latent, n_rot, plain, v_dim, n_ff) = (1536, 512, 64, 128, 128, 2048);
        let mut m = Model::new("deepseek2");
        m.common(layers, self.context, n, (heads, 1), self.base, 1e-6);
        m.yarn(self.yarn.0, 4096, (self.yarn.1, 1.0));
        m.set("rope.scaling.yarn_log_multiplier", 0.1f32);
        m.counts(&[("feed_forward_length", 18432), ("expert_count", self.n_expert), ("expert_used_count", 8)]);
        m.counts(&[("expert_group_count", self.groups.0), ("expert_group_used_count", self.groups.1)]);
        m.counts(&[("expert_gating_func", 2), ("leading_dense_block_count", self.dense), ("vocab_size", n_vocab)]);
        m.counts(&[("attention.q_lora_rank", q_rank), ("attention.kv_lora_rank", latent)]);
        m.counts(&[("attention.key_length", latent + n_rot), ("attention.value_length", latent)]);
        m.counts(&[("attention.key_length_mla", plain + n_rot), ("attention.value_length_mla", v_dim)]);
        m.counts(&[("expert_feed_forward_length", n_ff), ("expert_shared_count", 1), ("rope.dimension_count", n_rot)]);
        m.set("expert_weights_scale", self.scale);
        m.set("expert_weights_norm", true);
        m.ends(n_vocab, n);
        for i in 0..layers {
            let b = &format!("blk.{i}");
            m.norm(format!("{b}.attn_norm"), n);
            m.weight(format!("{b}.attn_q_a"), &[q_rank, n], Part::Attn);
            m.norm(format!("{b}.attn_q_a_norm"), q_rank);
            m.weight(format!("{b}.attn_q_b"), &[heads * (plain + n_rot), q_rank], Part::Attn);
            m.weight(format!("{b}.attn_kv_a_mqa"), &[latent + n_rot, n], Part::Attn);
            m.norm(format!("{b}.attn_kv_a_norm"), latent);
            m.weight(format!("{b}.attn_k_b"), &[heads, latent, plain], Part::Attn);
            m.weight(format!("{b}.attn_v_b"), &[heads, v_dim, latent], Part::Attn);
            m.weight(format!("{b}.attn_output"), &[n, heads * v_dim], Part::Attn);
            m.norm(format!("{b}.ffn_norm"), n);
            if i < self.dense {
                m.dense(b, "", 18432, n);
            } else {
                m.experts(b, self.n_expert, n_ff, n);
                m.tensor(format!("{b}.exp_probs_b.bias"), &[self.n_expert], Kind::F32 { mean: 0.0, spread: 0.05 });
                m.dense(b, "_shexp", n_ff, n);
            }
        }
        m
    }
}

fn deepseek_v4_flash(layers: usize, n_vocab: usize) -> Model {
    const HASHED: usize = 3;
    let (n, heads, dim, q_rank, n_expert, k, n_ff) = (4096, 64, 512, 1024, 256, 6, 2048);
    let (index_heads, index_dim, groups, o_rank, streams) = (64, 128, 8, 1024, 4);
    let ratio = |i: usize| if (2..43).contains(&i) { [4, 128][i % 2] } else { 0 };
    let mut m = Model::new("deepseek4");
    m.common(layers, 1_048_576, n, (heads, 1), 10_000.0, 1e-6);
    m.yarn(16.0, 65536, (32.0, 1.0));
    m.counts(&[("expert_count", n_expert), ("expert_used_count", k), ("expert_gating_func", 4)]);
    m.counts(&[("attention.key_length", dim), ("attention.value_length", dim), ("rope.dimension_count", 64)]);
    m.counts(&[("attention.q_lora_rank", q_rank), ("attention.sliding_window", 128)]);
    m.counts(&[("expert_feed_forward_length", n_ff), ("expert_shared_count", 1)]);
    m.set("expert_weights_scale", 1.5f32);
    m.set("expert_weights_norm", true);
    m.set("swiglu_clamp_exp", vec![10f32; layers]);
    m.set("swiglu_clamp_shexp", vec![10f32; layers]);
    m.counts(&[("attention.indexer.head_count", index_heads), ("attention.indexer.key_length", index_dim)]);
    m.counts(&[("attention.indexer.top_k", 512), ("attention.output_group_count", groups)]);
    m.count("attention.output_lora_rank", o_rank);
    // One entry more than layers: the block that predicts a second token is not converted, its ratio is.
    m.set("attention.compress_ratios", (0..=layers).map(ratio).collect::<Vec<i32>>());
    m.set("attention.compress_rope_freq_base", 160_000f32);
    m.counts(&[("hyper_connection.count", streams), ("hyper_connection.sinkhorn_iterations", 20)]);
    m.set("hyper_connection.epsilon", 1e-6f32);
    m.counts(&[("hash_layer_count", HASHED), ("embedding_length_out", n * streams)]);
    m.ends(n_vocab, n);
    let hyper = |m: &mut Model, name: String, mixes: usize, scales: usize| {
        m.tensor(format!("{name}_fn.weight"), &[mixes, n * streams], matrix(n * streams, 1.0));
        m.tensor(format!("{name}_base.weight"), &[mixes], Kind::F32 { mean: 0.0, spread: 0.5 });
        m.tensor(format!("{name}_scale.weight"), &[scales], Kind::F32 { mean: 0.5, spread: 0.1 });
    };
    hyper(&mut m, "output_hc".into(), streams, 1);
    for i in 0..layers {
        let b = &format!("blk.{i}");
        m.norm(format!("{b}.attn_norm"), n);
        m.tensor(format!("{b}.attn_sinks.weight"), &[heads], Kind::F32 { mean: 0.0, spread: 1.0 });
        m.weight(format!("{b}.attn_q_a"), &[q_rank, n], Part::Attn);
        m.norm(format!("{b}.attn_q_a_norm"), q_rank);
        m.weight(format!("{b}.attn_q_b"), &[heads * dim, q_rank], Part::Attn);
        m.weight(format!("{b}.attn_kv"), &[dim, n], Part::Attn);
        m.norm(format!("{b}.attn_kv_a_norm"), dim);
        m.weight(format!("{b}.attn_output_a"), &[groups * o_rank, heads * dim / groups], Part::Attn);
        m.weight(format!("{b}.attn_output_b"), &[n, groups * o_rank], Part::Attn);
        hyper(&mut m, format!("{b}.hc_attn"), (2 + streams) * streams, 3);
        hyper(&mut m, format!("{b}.hc_ffn"), (2 + streams) * streams, 3);
        let compressor = |m: &mut Model, name: &str, dim: usize| {
            let wide = dim * if ratio(i) == 4 { 2 } else { 1 };
            m.weight(format!("{b}.{name}_kv"), &[wide, n], Part::Attn);
            m.weight(format!("{b}.{name}_gate"), &[wide, n], Part::Attn);
            m.tensor(format!("{b}.{name}_ape.weight"), &[ratio(i) as usize, wide], BIAS);
            m.norm(format!("{b}.{name}_norm"), dim);
        };
        if ratio(i) != 0 {
            compressor(&mut m, "attn_compressor", dim);
        }
        if ratio(i) == 4 {
            m.tensor(format!("{b}.indexer.proj.weight"), &[index_heads, n], matrix(n, 1.0));
            m.weight(format!("{b}.indexer.attn_q_b"), &[index_heads * index_dim, q_rank], Part::Attn);
            compressor(&mut m, "indexer_compressor", index_dim);
        }
        m.norm(format!("{b}.ffn_norm"), n);
        m.experts(b, n_expert, n_ff, n);
        if i < HASHED {
            m.tensor(format!("{b}.ffn_gate_tid2eid.weight"), &[n_vocab, k], Kind::Experts(n_expert));
        } else {
            m.tensor(format!("{b}.exp_probs_b.bias"), &[n_expert], Kind::F32 { mean: 0.0, spread: 0.05 });
        }
        m.dense(b, "_shexp", n_ff, n);
    }
    m
}
