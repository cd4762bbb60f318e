//! What the metadata keys that no family read would have meant, so that none is passed over in silence.
//!
//! ```text
//! key that nobody read       this version knows its meaning?  its value
//!   names, sizes, training   yes, it is no arithmetic         any        idle, listed
//!   scales, caps, modes      yes                              neutral    listed
//!                                                             other      the model is refused
//!   any other                no                               any        listed, and a notice
//! ```
//! A size is idle because tensors are accounted for on their own: a part that the family does not
//! compute has tensors that the family does not read. A scale, a cap or a mode shows nowhere else. Whether llama.cpp
//! reads a key for the very architecture does not matter: a scale that its graph ignores, this version refuses too,
//! because no converter writes it without meaning it.
//!
//! The names are those of llama.cpp b11434 (`LLM_KV_NAMES` in src/llama-arch.cpp); what each does, and at which value it
//! does nothing, is taken from src/llama-model.cpp, src/llama-graph.cpp and src/models. Which keys its converters write
//! for architectures whose graphs ignore them is taken from conversion/: those are idle here, or neutral at the values
//! that are written.

use std::collections::HashSet;

use crate::gguf::{Array, Gguf, Value};

/// A key of the file's architecture that the tape does not depend on.
#[derive(Clone, Debug)]
pub struct UnusedKey {
    /// The key, with the architecture's prefix.
    pub key: String,
    /// Its value, cut short.
    pub value: String,
    /// Why it may be left alone; for a key that is not known, that it is not.
    pub why: String,
    /// Whether the key's meaning is known.
    pub known: bool,
}

/// What a key means that nobody read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// It tells nothing about the arithmetic, for this reason.
    Idle(&'static str),
    /// It does this, but not at the value that it has.
    Neutral(&'static str),
    /// It changes what is computed.
    Means {
        /// What it does.
        what: &'static str,
        /// The value at which it would do nothing.
        expected: String,
    },
    /// Neither this version nor llama.cpp knows it.
    Unknown,
}

/// When a key does nothing.
#[derive(Clone, Copy, Debug)]
enum Neutral {
    /// At each of these numbers; a flag is 0 or 1.
    At(&'static [f64]),
    /// At 0, and at no less than the training context.
    Context,
    /// At 0, and where this other key is absent or neutral.
    Without(&'static str),
    /// At the value of this other key, and where nothing has a window.
    Windowed(&'static str),
    /// At 0, and where the rotation is not scaled by YaRN.
    WithoutYarn,
}

#[derive(Clone, Copy, Debug)]
enum KeyRule {
    Idle(&'static str),
    Means(&'static str, Neutral),
}

use KeyRule::{Idle, Means};
use Neutral::{At, Context, Windowed, Without, WithoutYarn};

/// A factor: 1 changes nothing, and 0 means that there is none.
const SCALE: Neutral = At(&[1.0, 0.0]);
/// A cap, a slope, a switch: 0 turns it off.
const OFF: Neutral = At(&[0.0]);

const SIZE: &str = "a size, which the shapes of the tensors also give";
const LAYERS: &str = "the names of the tensors tell which layers are of which kind";
const PART: &str = "a number of a part that has tensors of its own";
const NORM: &str = "only the norms of another kind of model use it";
const ROTATION: &str = "only a model that rotates queries and keys uses it";
const YARN: &str = "fixed for models of this kind, whatever the file says";
const IMAGES: &str = "it is about images; text alone is computed";
const EMBEDDING: &str = "it is about embeddings and classes, not about the next token";
const DRAFT: &str = "it describes a draft model";

/// Every key with the architecture's prefix that llama.cpp knows, and what converters of DeepSeek-V4.1 write besides.
#[rustfmt::skip]
const KEYS: &[(&str, KeyRule)] = &[
    // Names, sizes and training.
    ("vocab_size", Idle(SIZE)),
    ("context_length", Idle("the training context")),
    ("tensor_data_layout", Idle("a name")),
    ("embedding_length", Idle(SIZE)),
    ("embedding_length_out", Idle(SIZE)),
    ("embedding_length_per_layer_input", Idle(SIZE)),
    ("features_length", Idle(SIZE)),
    ("block_count", Idle(SIZE)),
    ("feed_forward_length", Idle(SIZE)),
    ("expert_feed_forward_length", Idle(SIZE)),
    ("expert_shared_feed_forward_length", Idle(SIZE)),
    ("expert_chunk_feed_forward_length", Idle(SIZE)),
    ("expert_latent_length", Idle(SIZE)),
    ("expert_count", Idle(SIZE)),
    ("expert_shared_count", Idle(SIZE)),
    ("experts_per_group", Idle(SIZE)),
    ("moe_latent_size", Idle(SIZE)),
    ("attention.head_count", Idle(SIZE)),
    ("attention.head_count_kv", Idle(SIZE)),
    ("attention.key_length", Idle(SIZE)),
    ("attention.value_length", Idle(SIZE)),
    ("attention.key_length_mla", Idle(SIZE)),
    ("attention.value_length_mla", Idle(SIZE)),
    ("attention.key_length_swa", Idle(SIZE)),
    ("attention.value_length_swa", Idle(SIZE)),
    ("attention.key_length_mla_swa", Idle(SIZE)),
    ("attention.value_length_mla_swa", Idle(SIZE)),
    ("attention.q_lora_rank", Idle(SIZE)),
    ("attention.kv_lora_rank", Idle(SIZE)),
    ("attention.kv_lora_rank_swa", Idle(SIZE)),
    ("attention.decay_lora_rank", Idle(SIZE)),
    ("attention.iclr_lora_rank", Idle(SIZE)),
    ("attention.value_residual_mix_lora_rank", Idle(SIZE)),
    ("attention.gate_lora_rank", Idle(SIZE)),
    ("attention.relative_buckets_count", Idle(SIZE)),
    ("time_mix_extra_dim", Idle(SIZE)),
    ("time_decay_extra_dim", Idle(SIZE)),
    ("token_shift_count", Idle(SIZE)),
    ("wkv.head_size", Idle(SIZE)),

    // Kinds of layers. A layer with experts, a recurrent one, one that reuses keys: each has tensors of other names.
    ("leading_dense_block_count", Idle(LAYERS)),
    ("moe_every_n_layers", Idle(LAYERS)),
    ("interleave_moe_layer_step", Idle(LAYERS)),
    ("full_attention_interval", Idle(LAYERS)),
    ("attention.recurrent_layers", Idle(LAYERS)),
    ("nextn_predict_layers", Idle(LAYERS)),
    ("attention.kv_source_layer_ids", Idle(LAYERS)),
    ("attention.index_source_layer_ids", Idle(LAYERS)),

    // Experts.
    ("expert_used_count", Idle("only a layer with experts uses it")),
    ("expert_group_count", Means("experts are chosen from the best groups only", At(&[0.0, 1.0]))),
    ("expert_group_used_count", Means("the number of groups that experts are chosen from", Without("expert_group_count"))),
    ("expert_weights_scale", Means("the weights of the chosen experts are multiplied by it", SCALE)),
    // The next two are read by families in which files differ. Where they are not read, the weights of the chosen
    // experts are a softmax that sums to 1; a family of which that is not true must read them.
    ("expert_weights_norm", Means("whether the weights of the chosen experts sum to 1", At(&[1.0]))),
    ("expert_gating_func", Means("the function of the router, 1 for softmax", At(&[1.0, 0.0]))),
    ("expert_group_scale", Means("the outputs of grouped experts are multiplied by it", SCALE)),
    ("swiglu_clamp_exp", Means("the activations of experts are clamped to it", OFF)),
    ("swiglu_clamp_shexp", Means("the activations of the shared expert are clamped to it", OFF)),

    // Scales, caps and modes of the whole model.
    ("logit_scale", Means("the logits are multiplied or divided by it", SCALE)),
    ("residual_scale", Means("what a layer adds is multiplied by it", SCALE)),
    ("embedding_scale", Means("the embedding is multiplied by it", SCALE)),
    ("final_logit_softcapping", Means("the logits are capped by tanh", OFF)),
    ("attn_logit_softcapping", Means("the scores of attention are capped by tanh", OFF)),
    ("router_logit_softcapping", Means("the router's logits are capped by tanh", OFF)),
    ("hidden_activation", Means("the activation of the feed-forward layers", At(&[]))),
    ("activation.situ_beta", Means("a constant of the activation", OFF)),
    ("activation.situ_linear_beta", Means("a constant of the activation", OFF)),
    ("use_parallel_residual", Means("attention and feed-forward layer read the same input", OFF)),
    ("swin_norm", Means("norms come after attention and feed-forward layer", OFF)),
    ("rescale_every_n_layers", Means("values are halved every few layers", OFF)),
    ("num_loops", Means("the number of times that the layers run", At(&[1.0, 0.0]))),
    ("skip_loop_final_norm", Means("no norm between two runs of the layers", OFF)),
    ("hrm.layers_per_stack", Means("the layers are two stacks", OFF)),
    ("hrm.h_cycles", Means("the layers run several times", OFF)),
    ("hrm.l_cycles", Means("the layers run several times", OFF)),
    ("hrm.prefix_lm", Means("a prompt is attended to in both directions", OFF)),

    // Attention.
    ("attention.causal", Means("whether a token sees only those before it", At(&[1.0]))),
    // It replaces 1 / sqrt(head size), so that 1 changes something. Which size, only the family knows.
    ("attention.scale", Means("the scores of attention are multiplied by it", OFF)),
    ("attention.output_scale", Means("the scores of attention are multiplied by it", SCALE)),
    ("attention.value_scale", Means("the values of attention are multiplied by it", SCALE)),
    ("attention.max_alibi_bias", Means("attention is biased by distance", OFF)),
    ("attention.clamp_kqv", Means("queries, keys and values are clamped to it", OFF)),
    ("attention.temperature_scale", Means("the scores of attention grow with the position", OFF)),
    ("attention.temperature_length", Means("the scores of attention grow with the position",
        Without("attention.temperature_scale"))),
    ("attention.sliding_window", Means("attention sees only the newest tokens, this many", Context)),
    ("attention.sliding_window_pattern", Means("which layers see only a window", Without("attention.sliding_window"))),
    ("attention.rope_pattern", Means("which layers rotate queries and keys", At(&[1.0]))),
    ("attention.shared_kv_layers", Means("the last layers read the keys and values of others", OFF)),
    ("attention.compress_ratios", Means("attention also sees compressed rows", OFF)),

    // Rotation. Converters write YaRN's numbers for every family; the reference takes most as fixed.
    ("rope.dimension_count", Idle(ROTATION)),
    ("rope.dimension_count_swa", Means("the number of rotated values in layers with a window",
        Windowed("rope.dimension_count"))),
    ("rope.dimension_sections", Idle("it is about positions in images; in a text all sections count tokens")),
    ("rope.freq_base", Idle(ROTATION)),
    ("rope.freq_base_swa", Means("the rotation's base in layers with a window", Windowed("rope.freq_base"))),
    ("rope.scale_linear", Means("positions are divided by it", SCALE)),
    ("rope.scaling.type", Idle("it has an effect with rope.scaling.factor only")),
    ("rope.scaling.factor", Means("positions are divided by it", SCALE)),
    ("rope.scaling.alpha", Means("the rotation's base is raised by it", SCALE)),
    ("rope.scaling.attn_factor", Means("rotated values are multiplied by it", SCALE)),
    ("rope.scaling.original_context_length", Idle("it has an effect with rope.scaling.type only")),
    ("rope.scaling.finetuned", Idle("it tells how the model was trained")),
    ("rope.scaling.yarn_log_multiplier", Means("the scores of attention are multiplied by a power of its logarithm",
        WithoutYarn)),
    ("rope.scaling.yarn_ext_factor", Idle(YARN)),
    ("rope.scaling.yarn_attn_factor", Idle(YARN)),
    ("rope.scaling.yarn_beta_fast", Idle(YARN)),
    ("rope.scaling.yarn_beta_slow", Idle(YARN)),

    // Norms.
    ("attention.layer_norm_epsilon", Idle(NORM)),
    ("attention.layer_norm_rms_epsilon", Idle(NORM)),
    ("attention.group_norm_epsilon", Idle(NORM)),
    ("attention.group_norm_groups", Idle(NORM)),

    // Parts with tensors of their own.
    ("attn_res.block_size", Idle(PART)),
    ("attention.indexer.head_count", Idle(PART)),
    ("attention.indexer.key_length", Idle(PART)),
    ("attention.indexer.top_k", Idle(PART)),
    ("attention.indexer.block_size", Idle(PART)),
    ("attention.indexer.local_blocks", Idle(PART)),
    ("attention.indexer.types", Idle(PART)),
    ("attention.indexer.kpool", Idle(PART)),
    ("attention.indexer.kpool_select_tail", Idle(PART)),
    ("attention.output_group_count", Idle(PART)),
    ("attention.output_lora_rank", Idle(PART)),
    ("attention.compress_rope_freq_base", Idle(PART)),
    ("hyper_connection.count", Idle(PART)),
    ("hyper_connection.sinkhorn_iterations", Idle(PART)),
    ("hyper_connection.epsilon", Idle(PART)),
    ("hyper_connection.low_rank", Idle(PART)),
    ("hyper_connection.magnitude", Means("what hyper-connections add is multiplied by it", SCALE)),
    ("hash_layer_count", Idle(PART)),
    ("engram.compressed_vocab_size", Idle(SIZE)),
    ("ple.layers", Idle(PART)),
    ("ple.ngram_size", Idle(PART)),
    ("ple.heads_per_ngram", Idle(PART)),
    ("ple.conv_kernel", Idle(PART)),
    ("ple.layer_multipliers", Idle(PART)),
    ("ple.head_offsets", Idle(PART)),
    ("ple.head_vocab_sizes", Idle(PART)),
    ("ple.eos_token_id", Idle(PART)),
    ("ple.image_token_id", Idle(PART)),
    ("ssm.conv_kernel", Idle(PART)),
    ("ssm.inner_size", Idle(PART)),
    ("ssm.state_size", Idle(PART)),
    ("ssm.time_step_rank", Idle(PART)),
    ("ssm.group_count", Idle(PART)),
    ("ssm.dt_b_c_rms", Means("norms over the recurrent layers' inputs", OFF)),
    ("kda.head_dim", Idle(PART)),
    ("kda.safe_gate", Means("the gate of recurrent layers is bounded", OFF)),
    ("kda.gate_lower_bound", Means("the gate of recurrent layers is bounded", OFF)),
    ("shortconv.l_cache", Idle(PART)),
    ("adapters.count", Idle(PART)),
    ("adapters.token_ids_activate", Idle(PART)),
    ("adapters.token_ids_substitute", Idle(PART)),
    ("adapters.lora_rank", Idle(PART)),
    ("adapters.router_gain", Idle(PART)),
    ("posnet.embedding_length", Idle(PART)),
    ("posnet.block_count", Idle(PART)),
    ("convnext.embedding_length", Idle(PART)),
    ("convnext.block_count", Idle(PART)),
    ("decoder_start_token_id", Idle(PART)),
    ("decoder_block_count", Idle(PART)),

    // Images, embeddings, classes and drafts.
    ("n_deepstack_layers", Idle(IMAGES)),
    ("deepstack_mapping", Idle(IMAGES)),
    ("pooling_type", Idle(EMBEDDING)),
    ("classifier.output_labels", Idle(EMBEDDING)),
    ("classifier.pooling_type", Idle(EMBEDDING)),
    ("decision.block_count", Idle(EMBEDDING)),
    ("decision.routing_block_count", Idle(EMBEDDING)),
    ("decision.head_count", Idle(EMBEDDING)),
    ("dense_2_feat_in", Idle(EMBEDDING)),
    ("dense_2_feat_out", Idle(EMBEDDING)),
    ("dense_3_feat_in", Idle(EMBEDDING)),
    ("dense_3_feat_out", Idle(EMBEDDING)),
    ("target_layers", Idle(DRAFT)),
    ("target_hidden_size", Idle(DRAFT)),
    ("norm_before_residual", Means("the residual comes after a norm", OFF)),
    ("norm_before_fc", Means("a norm over the draft model's input", OFF)),
    ("block_size", Idle(DRAFT)),
    ("conv_kernel_size", Idle(DRAFT)),
    ("conv_group_size", Idle(DRAFT)),
    ("selector_rank", Idle(DRAFT)),
    ("selector_top_k", Idle(DRAFT)),
];

/// The meaning of a key that nobody read. Names are without the architecture's prefix, also those that `other` is asked
/// for: the values of the file's other keys, which tell whether some do anything.
pub fn classify<'a>(name: &str, value: &Value, other: &dyn Fn(&str) -> Option<&'a Value>) -> Class {
    match KEYS.iter().find(|(n, _)| *n == name) {
        None => Class::Unknown,
        Some((_, Idle(why))) => Class::Idle(why),
        Some((_, Means(what, neutral))) if neutral.holds(value, other) => Class::Neutral(what),
        Some((_, Means(what, neutral))) => Class::Means { what, expected: neutral.expected() },
    }
}

impl Neutral {
    /// Whether it does nothing at this value: of a list, at every entry.
    fn holds<'a>(self, value: &Value, other: &dyn Fn(&str) -> Option<&'a Value>) -> bool {
        let first = |name: &str| numbers(other(name)?)?.first().copied();
        let all = |test: &dyn Fn(f64) -> bool| numbers(value).is_some_and(|v| v.iter().all(|&n| test(n)));
        let quiet = |name: &str| other(name).is_none_or(|v| matches!(classify(name, v, other), Class::Neutral(_)));
        match self {
            At(neutral) => all(&|n| neutral.contains(&n)),
            Context => all(&|n| n == 0.0 || first("context_length").is_some_and(|c| n >= c)),
            Without(name) => quiet(name) || all(&|n| n == 0.0),
            Windowed(name) => quiet("attention.sliding_window") || all(&|n| first(name) == Some(n)),
            WithoutYarn => {
                let yarn = matches!(other("rope.scaling.type"), Some(Value::Str(s)) if s == "yarn");
                !yarn || all(&|n| n == 0.0)
            }
        }
    }

    fn expected(self) -> String {
        match self {
            At([]) => "no such key".into(),
            At([first, ..]) => format!("{first}"),
            Context => "no less than context_length".into(),
            Windowed(name) => format!("the value of {name}"),
            Without(_) | WithoutYarn => "0".into(),
        }
    }
}

/// The numbers of a value or of a list, a flag as 0 or 1; None for text and lists of lists.
fn numbers(value: &Value) -> Option<Vec<f64>> {
    let one = |v: &Value| match *v {
        Value::U8(n) => Some(n.into()),
        Value::I8(n) => Some(n.into()),
        Value::U16(n) => Some(n.into()),
        Value::I16(n) => Some(n.into()),
        Value::U32(n) => Some(n.into()),
        Value::I32(n) => Some(n.into()),
        Value::U64(n) => Some(n as f64),
        Value::I64(n) => Some(n as f64),
        Value::F32(n) => Some(n.into()),
        Value::F64(n) => Some(n),
        Value::Bool(n) => Some(n as u8 as f64),
        Value::Str(_) | Value::Arr(_) => None,
    };
    match value {
        Value::Arr(a) => (0..a.len()).map(|i| one(&a.get(i)?)).collect(),
        v => Some(vec![one(v)?]),
    }
}

/// A value in a few words: of a long list or text its start.
fn text(value: &Value) -> String {
    match value {
        Value::Arr(Array::Arr(_)) => value.describe(),
        Value::Arr(a) => {
            let shown: Vec<String> = (0..a.len().min(4)).filter_map(|i| Some(text(&a.get(i)?))).collect();
            let more = if a.len() > 4 { format!(", ... {} in all", a.len()) } else { String::new() };
            format!("[{}{more}]", shown.join(", "))
        }
        Value::Str(s) if s.chars().count() > 40 => format!("{:?}...", s.chars().take(40).collect::<String>()),
        Value::Str(s) => format!("{s:?}"),
        Value::Bool(b) => b.to_string(),
        Value::F32(n) => format!("{n:?}"),
        Value::F64(n) => format!("{n:?}"),
        Value::U64(n) => n.to_string(),
        Value::I64(n) => n.to_string(),
        small => numbers(small).map_or_else(String::new, |n| n[0].to_string()),
    }
}

/// The keys of the file's architecture that are not in `read` (their names without the prefix), in
/// the file's order: those that nothing depends on, and those that change what is computed, in
/// words.
pub(super) fn unused(gguf: &Gguf, arch: &str, read: &HashSet<String>) -> (Vec<UnusedKey>, Vec<String>) {
    let prefix = format!("{arch}.");
    let other = |name: &str| gguf.meta.get(&format!("{prefix}{name}"));
    let (mut unused, mut refused) = (Vec::new(), Vec::new());
    for (key, value) in gguf.meta.iter() {
        // The session reads the training context, and takes its own from it.
        let used = |name: &str| read.contains(name) || name == "context_length";
        let Some(name) = key.strip_prefix(&prefix).filter(|name| !used(name)) else { continue };
        let (why, known) = match classify(name, value, &other) {
            Class::Idle(why) => (why.to_owned(), true),
            Class::Neutral(what) => (format!("{what}; without effect at this value"), true),
            Class::Unknown => ("neither this version nor llama.cpp knows it".to_owned(), false),
            Class::Means { what, expected } => {
                refused.push(format!("{key} is {}, expected {expected} ({what})", text(value)));
                continue;
            }
        };
        unused.push(UnusedKey { key: key.to_owned(), value: text(value), why, known });
    }
    (unused, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of value, empty and nested lists, and the numbers that comparisons trip over.
    fn values() -> Vec<Value> {
        let floats = [0.0, 1.0, -1.0, 0.25, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE, f32::MAX];
        let mut all: Vec<Value> = vec![
            u8::MAX.into(),
            i8::MIN.into(),
            u16::MAX.into(),
            i16::MIN.into(),
            u32::MAX.into(),
            i32::MIN.into(),
            u64::MAX.into(),
            i64::MIN.into(),
            true.into(),
            false.into(),
            "".into(),
            "yarn".into(),
            Value::Str("\u{1b}".repeat(100)),
            f64::NAN.into(),
            vec![f64::MAX, f64::NAN].into(),
            vec![0u8; 5].into(),
            vec![1u32; 3].into(),
            vec![true, false].into(),
            vec![String::from("x")].into(),
            Vec::<f32>::new().into(),
            Value::Arr(Array::Arr(vec![Array::F32(vec![1.0])])),
        ];
        all.extend(floats.map(Value::F32));
        all.push(floats.to_vec().into());
        all
    }

    #[test]
    fn no_value_of_any_key_makes_classify_panic() {
        let values = values();
        for name in KEYS.iter().map(|(name, _)| *name).chain(["", "no.such.key"]) {
            for value in &values {
                assert!(!text(value).is_empty(), "{value:?}");
                for others in values.iter().map(Some).chain([None]) {
                    let class = classify(name, value, &|_| others);
                    assert_eq!(class == Class::Unknown, !KEYS.iter().any(|(n, _)| *n == name), "{name}");
                }
            }
        }
    }

    #[test]
    fn a_key_is_in_the_table_once_and_depends_only_on_keys_of_the_table() {
        let names: HashSet<&str> = KEYS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), KEYS.len());
        for (name, rule) in KEYS {
            if let Means(_, Without(other) | Windowed(other)) = rule {
                assert!(names.contains(other), "{name} depends on {other}");
            }
        }
    }

    /// What a key of this value means in a file with these other keys.
    fn class(name: &str, value: impl Into<Value>, others: &[(&str, Value)]) -> Class {
        classify(name, &value.into(), &|n| others.iter().find(|(name, _)| *name == n).map(|(_, v)| v))
    }

    #[test]
    fn a_key_is_neutral_by_its_own_value_or_by_another_key() {
        let file = [
            ("context_length", 4096u32.into()),
            ("attention.sliding_window", 128u32.into()),
            ("rope.freq_base", 10000f32.into()),
            ("rope.scaling.type", "yarn".into()),
        ];
        let neutral = |name: &str, value: Value| match class(name, value, &file) {
            Class::Neutral(_) => true,
            Class::Means { .. } => false,
            other => panic!("{name}: {other:?}"),
        };
        assert!(!neutral("attention.scale", 1f32.into()), "scores that are not divided by the root of the head size");
        assert!(
            neutral("attention.sliding_window", 4096u32.into()) && neutral("attention.sliding_window", 0u32.into())
        );
        assert!(!neutral("attention.sliding_window", 4095u32.into()));
        assert!(neutral("attention.sliding_window_pattern", vec![false; 4].into()));
        assert!(!neutral("attention.sliding_window_pattern", vec![false, true].into()));
        assert!(neutral("rope.freq_base_swa", 10000f32.into()) && !neutral("rope.freq_base_swa", 5000f32.into()));
        assert!(!neutral("rope.scaling.yarn_log_multiplier", 0.1f32.into()));
        assert!(neutral("logit_scale", vec![1f32; 4].into()) && !neutral("logit_scale", vec![1f32, 0.5].into()));
        assert!(!neutral("logit_scale", "1".into()) && !neutral("logit_scale", f32::NAN.into()));
        let alone = |name: &str, value: Value| matches!(class(name, value, &[]), Class::Neutral(_));
        assert!(alone("attention.sliding_window_pattern", 4u32.into()), "no layer has a window");
        assert!(alone("rope.freq_base_swa", 5000f32.into()), "no layer has a window");
        assert!(alone("rope.scaling.yarn_log_multiplier", 0.1f32.into()), "the rotation is not scaled");
    }
}
