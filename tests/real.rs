//! What real files carry beyond the reference models: other layouts of the same weights, tensors for parts that are not
//! used, older and newer keys. Each is computed as it means, or refused by name.

mod common;

use common::source::Source;
use common::{exact, find};
use tandem::gguf::{Array, Gguf, Value};
use tandem::session::{Session, Want};

/// The reference model of this name, if it is here.
fn source(name: &str) -> Option<Source> {
    find(&format!("models/{name}.gguf")).map(|p| Source::open(name, &p))
}

fn open(s: &Source) -> anyhow::Result<Session> {
    Session::new(Gguf::from_bytes(s.bytes(), "real.gguf".as_ref())?, &exact())
}

/// Logits after each of 60 tokens.
fn logits(s: &Source) -> Vec<f32> {
    let mut session = open(s).unwrap_or_else(|e| panic!("{}: {e:#}", s.name));
    let n = session.n_vocab();
    let ids: Vec<u32> = (0..60).map(|i| (i * i * 31 + i) as u32 % n as u32).collect();
    session.feed(0, &ids, Want::All).unwrap().into_logits()
}

fn refusal(s: &Source) -> String {
    match open(s) {
        Ok(_) => panic!("{}: opened", s.name),
        Err(e) => format!("{e:#}"),
    }
}

#[track_caller]
fn same(a: &Source, b: &Source, what: &str) {
    assert!(logits(a) == logits(b), "{}: {what}", a.name);
}

#[track_caller]
fn differ(a: &Source, b: &Source, what: &str) {
    assert!(logits(a) != logits(b), "{}: {what}", a.name);
}

/// `change` of every model here that is listed; how many there were.
fn each(names: &[&str], mut change: impl FnMut(&Source)) {
    let n = names.iter().filter_map(|n| source(n)).inspect(|s| change(s)).count();
    assert!(n > 0, "none of {names:?} is here");
}

fn layers(s: &Source) -> usize {
    let Some(Value::U32(n)) = s.key("block_count") else { panic!("block_count") };
    *n as usize
}

#[test]
fn gate_and_up_experts_in_one_tensor_are_the_same_model() {
    each(&["qwen3moe", "qwen35moe", "gpt-oss", "deepseek2-v3", "deepseek4"], |s| {
        let mut fused = s.clone();
        for l in 0..layers(s) {
            for suffix in ["weight", "bias"] {
                let name = |part: &str| format!("blk.{l}.ffn_{part}_exps.{suffix}");
                if !s.has(&name("gate")) {
                    continue;
                }
                let (gate, up) = (fused.take(&name("gate")), fused.take(&name("up")));
                let mut shape = gate.shape.clone();
                shape[1] *= 2;
                let per_expert = gate.data.len() / 4 / shape[0];
                let (g, u) = (gate.floats(), up.floats());
                let pairs = g.chunks(per_expert).zip(u.chunks(per_expert));
                let values: Vec<f32> = pairs.flat_map(|(g, u)| [g, u].concat()).collect();
                fused.add(&name("gate_up"), &shape, &values);
            }
        }
        same(s, &fused, "fused experts");
    });
}

#[test]
fn q_k_and_v_in_one_tensor_are_the_same_model() {
    each(&["qwen3moe", "qwen35moe", "qwen35", "gpt-oss", "kimi-linear", "lfm2", "jamba"], |s| {
        let mut fused = s.clone();
        for l in 0..layers(s) {
            for suffix in ["weight", "bias"] {
                let name = |part: &str| format!("blk.{l}.attn_{part}.{suffix}");
                if !s.has(&name("q")) || !s.has(&name("k")) {
                    continue;
                }
                let parts = ["q", "k", "v"].map(|p| fused.take(&name(p)));
                let mut shape = parts[0].shape.clone();
                shape[0] = parts.iter().map(|p| p.shape[0]).sum();
                let values: Vec<f32> = parts.iter().flat_map(|p| p.floats()).collect();
                fused.add(&name("qkv"), &shape, &values);
            }
        }
        same(s, &fused, "fused q, k and v");
    });
}

#[test]
fn blocks_that_predict_further_tokens_take_no_part() {
    each(&["qwen3moe", "qwen35moe", "qwen35", "deepseek2-v3", "deepseek4"], |s| {
        let n = layers(s);
        let mut more = s.clone();
        more.set("block_count", n as u32 + 1).set("nextn_predict_layers", 1u32);
        for t in &s.tensors {
            if let Some(rest) = t.name.strip_prefix(&format!("blk.{}.", n - 1)) {
                let values = vec![0.5; t.shape.iter().product()];
                more.add(&format!("blk.{n}.{rest}"), &t.shape, &values);
            }
        }
        for name in ["eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head_norm.weight", "eh_proj.scale"] {
            more.add(&format!("blk.{n}.nextn.{name}"), &[2, 3], &[1.0; 6]);
        }
        if let Some(Value::Arr(Array::Bool(flags))) = s.key("attention.recurrent_layers").cloned() {
            more.set("attention.recurrent_layers", [flags, vec![false]].concat());
        }
        same(s, &more, "a block for further tokens");
        let session = open(&more).unwrap();
        let ignored = &session.engine().tape.ignored;
        assert!(ignored.iter().any(|(p, _)| *p == format!("blk.{n}.")), "{}: {ignored:?}", s.name);
    });
}

/// DeepSeek-V4 files of some converters say that they have such a block, but their block_count does not count it.
#[test]
fn a_last_layer_is_not_dropped_for_a_block_that_is_not_there() {
    each(&["deepseek4", "qwen3moe", "deepseek2-v3"], |s| {
        let mut claims = s.clone();
        claims.set("nextn_predict_layers", 1u32);
        same(s, &claims, "a claim of a further block");
        // Where it is counted but its tensors were left out, the rest is the model.
        claims.set("block_count", layers(s) as u32 + 1);
        if s.arch != "deepseek4" {
            same(s, &claims, "a block that was left out");
        }
    });
}

#[test]
fn scales_beside_weights_are_multiplied_with_and_input_scales_are_left_alone() {
    each(&["qwen3moe", "deepseek2-v3", "qwen35moe"], |s| {
        let (mut halved, mut scaled) = (s.clone(), s.clone());
        let n_expert = s.tensors.iter().find(|t| t.name.ends_with("ffn_down_exps.weight")).unwrap().shape[0];
        let mut count = 0;
        for part in ["attn_q", "attn_q_b", "attn_k_b", "attn_qkv", "ffn_up_exps", "ffn_down_exps", "ffn_up_shexp"] {
            for l in 0..layers(s) {
                let name = format!("blk.{l}.{part}");
                if !s.has(&format!("{name}.weight")) {
                    continue;
                }
                let t = halved.tensor(&format!("{name}.weight"));
                t.data = t.floats().iter().flat_map(|v| (v * 0.5).to_le_bytes()).collect();
                let n = if part.ends_with("_exps") { n_expert } else { 1 };
                scaled.add(&format!("{name}.scale"), &[n], &vec![0.5; n]);
                scaled.add(&format!("{name}.input_scale"), &[n], &vec![7.0; n]);
                count += 1;
            }
        }
        assert!(count > 3);
        same(&halved, &scaled, "scales");
        differ(s, &scaled, "scales that change nothing");
        let mut alone = s.clone();
        alone.add("blk.0.no_such_thing.input_scale", &[1], &[1.0]);
        assert!(refusal(&alone).contains("blk.0.no_such_thing.input_scale"));
    });
}

#[test]
fn tensors_that_say_the_same_twice_or_serve_images_change_nothing() {
    each(&["deepseek2-v3"], |s| {
        let mut both = s.clone();
        for l in 0..layers(s) {
            both.add(&format!("blk.{l}.attn_kv_b.weight"), &[2, 3], &[9.0; 6]);
        }
        same(s, &both, "attn_kv_b together with its two halves");
    });
    each(&["deepseek4"], |s| {
        let mut images = s.clone();
        for l in 0..layers(s) {
            images.add(&format!("blk.{l}.exp_probs_b_vl.bias"), &[8], &[9.0; 8]);
        }
        same(s, &images, "a routing bias for images");
    });
}

/// Older Qwen3-Next files: the rows of q, k, v and the gate by key head, in one tensor.
#[test]
fn delta_net_inputs_in_one_tensor_by_key_head_are_the_same_model() {
    each(&["qwen3next"], |s| {
        let mut old = s.clone();
        let (k_heads, run, dim, cols) = (2, 2, 16, 64); // the reference model's shape
        for l in 0..layers(s) {
            let name = |part: &str| format!("blk.{l}.{part}.weight");
            if !s.has(&name("attn_gate")) {
                continue;
            }
            let (qkv, z) = (old.take(&name("attn_qkv")).floats(), old.take(&name("attn_gate")).floats());
            let rows = |of: &[f32], from: usize, n: usize| of[from * cols..(from + n) * cols].to_vec();
            let by_head = (0..k_heads).flat_map(|h| {
                let (n_k, n_v) = (k_heads * dim, run * dim);
                let q_and_k = [rows(&qkv, h * dim, dim), rows(&qkv, n_k + h * dim, dim)];
                let v_and_z = [rows(&qkv, 2 * n_k + h * n_v, n_v), rows(&z, h * n_v, n_v)];
                [q_and_k.concat(), v_and_z.concat()].concat()
            });
            old.add(&name("ssm_in"), &[k_heads * (2 + 2 * run) * dim, cols], &by_head.collect::<Vec<f32>>());
        }
        same(s, &old, "q, k, v and the gate in ssm_in");
    });
}

/// Older files expand keys and values instead of working in the latent space: the same but for
/// rounding.
#[test]
fn latent_attention_with_its_halves_in_one_tensor_is_the_same_model() {
    each(&["kimi-linear", "kimi-k3", "bailingmoe3-mtp"], |s| {
        let mut old = s.clone();
        for l in 0..layers(s) {
            let name = |part: &str| format!("blk.{l}.{part}.weight");
            if !s.has(&name("attn_k_b")) {
                continue;
            }
            let (k, v) = (old.take(&name("attn_k_b")), old.take(&name("attn_v_b")));
            let [heads, latent, plain] = k.shape[..] else { panic!("a stack") };
            let (v_dim, k, v) = (v.shape[1], k.floats(), v.floats());
            let head = |h: usize| {
                let turned = (0..plain * latent).map(|i| k[h * plain * latent + i % latent * plain + i / latent]);
                turned.chain(v[h * v_dim * latent..(h + 1) * v_dim * latent].to_vec()).collect::<Vec<f32>>()
            };
            let values: Vec<f32> = (0..heads).flat_map(head).collect();
            old.add(&name("attn_kv_b"), &[heads * (plain + v_dim), latent], &values);
        }
        let error = common::nmse(&logits(s), &logits(&old));
        assert!(error < 1e-10, "{}: {error:.1e}", s.name); // two roundings of f32
    });
}

#[test]
fn a_stack_of_matrices_may_be_flat_but_not_turned() {
    each(&["deepseek2-v3", "deepseek4"], |s| {
        for name in ["blk.0.attn_v_b.weight", "blk.0.attn_output_a.weight"].iter().filter(|n| s.has(n)) {
            let (mut flat, mut turned) = (s.clone(), s.clone());
            let t = flat.tensor(name);
            t.shape = vec![t.shape[0] * t.shape[1], t.shape[2]];
            same(s, &flat, name);
            turned.tensor(name).shape.swap(0, 1);
            assert!(refusal(&turned).contains(name), "{}: {name} turned", s.name);
        }
    });
}

#[test]
fn a_head_that_the_file_leaves_out_is_the_embedding() {
    each(&["qwen3moe", "qwen35moe", "gpt-oss", "deepseek2-v3", "deepseek4"], |s| {
        let (mut tied, mut copied) = (s.clone(), s.clone());
        tied.take("output.weight");
        copied.tensor("output.weight").data = s.clone().tensor("token_embd.weight").data.clone();
        same(&copied, &tied, "tied");
    });
}

#[test]
fn tensors_of_unknown_purpose_are_refused_by_name() {
    let names = [
        "rope_freqs.weight",
        "rope_factors_long.weight",
        "blk.0.attn_rot_embd.weight",
        "blk.0.attn_norm.bias",
        "output_norm.bias",
        "blk.0.exp_probs_b.weight",
        "blk.0.ffn_gate_exps.weight.lora_a",
        "output.scales",
        "nextn.eh_proj.weight",
        "blk.1.attn_q_norm.bias",
        "v.blk.0.attn_q.weight",
    ];
    each(&["qwen3moe", "gpt-oss", "qwen35moe", "deepseek2-v3", "deepseek4", "kimi-linear", "nemotron_h_moe"], |s| {
        for name in names {
            let mut more = s.clone();
            more.add(name, &[4], &[1.0; 4]);
            let said = refusal(&more);
            assert!(said.contains(name) && said.contains("real.gguf"), "{}: {said}", s.name);
        }
    });
}

#[test]
fn rope_scaling_is_what_the_newer_and_the_older_keys_say() {
    each(&["qwen3moe"], |s| {
        let with = |list: &[(&str, Value)]| {
            let mut s = s.clone();
            for (k, v) in list {
                s.set(k, v.clone());
            }
            s
        };
        let ty = |t: &str| ("rope.scaling.type", Value::from(t));
        let factor = |f: f32| ("rope.scaling.factor", Value::from(f));
        let linear = with(&[ty("linear"), factor(4.0)]);
        differ(s, &linear, "a linear factor");
        same(&linear, &with(&[factor(4.0)]), "linear is what is meant without a type");
        same(&linear, &with(&[("rope.scale_linear", 4f32.into())]), "the older name of the factor");
        same(s, &with(&[ty("none"), factor(4.0)]), "none means none");
        same(s, &with(&[ty("linear"), factor(0.0)]), "0 means none");
        differ(s, &with(&[ty("yarn"), factor(4.0)]), "yarn");
        for (keys, named) in [
            (vec![ty("longrope"), factor(4.0)], "longrope"),
            (vec![factor(-1.0)], "rope.scaling.factor"),
            (vec![("rope.scaling.attn_factor", 1.5f32.into())], "rope.scaling.attn_factor"),
            (vec![("rope.dimension_count", 34u32.into())], "rope.dimension_count"),
        ] {
            assert!(refusal(&with(&keys)).contains(named), "{named}");
        }
    });
}

#[test]
fn windows_lie_on_the_layers_that_the_pattern_names() {
    each(&["gpt-oss"], |s| {
        let with = |v: Value| {
            let mut s = s.clone();
            s.set("attention.sliding_window_pattern", v);
            s
        };
        same(s, &with(2u32.into()), "every other layer is the default");
        same(s, &with(vec![true, false, true, false].into()), "a list");
        same(&with(1u32.into()), &with(vec![false; 4].into()), "no windows");
        same(&with(4u32.into()), &with(vec![true, true, true, false].into()), "three of four");
        differ(s, &with(1u32.into()), "windows that change nothing");
        let mut base = s.clone();
        base.set("rope.freq_base_swa", 500f32);
        differ(s, &base, "a base of their own that changes nothing");
    });
}

#[test]
fn groups_of_experts_limit_the_choice_in_every_family() {
    each(&["qwen3moe", "qwen35moe", "gpt-oss"], |s| {
        let mut groups = s.clone();
        groups.set("expert_group_count", 4u32).set("expert_group_used_count", 2u32);
        differ(s, &groups, "groups that change nothing");
        groups.set("expert_group_count", 1u32).set("expert_group_used_count", 1u32);
        same(s, &groups, "one group is none");
    });
}

#[test]
fn the_scale_of_the_experts_weights_counts_or_is_refused() {
    let others =
        ["lfm2moe", "kimi-linear", "bailingmoe3-mtp", "granitehybrid", "jamba", "nemotron_h_moe", "minimax-01"];
    each(&[&["qwen3moe", "qwen35moe", "deepseek2-v3", "deepseek4"][..], &others].concat(), |s| {
        let (mut one, mut more) = (s.clone(), s.clone());
        differ(one.set("expert_weights_scale", 1f32), more.set("expert_weights_scale", 2.5f32), "a scale");
    });
    each(&["gpt-oss"], |s| {
        assert!(refusal(s.clone().set("expert_weights_scale", 2.5f32)).contains("expert_weights_scale"));
    });
}

#[test]
fn a_bias_that_a_family_cannot_do_without_is_missed_by_name() {
    each(&["gpt-oss"], |s| {
        for part in ["attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
            let (mut less, name) = (s.clone(), format!("blk.1.{part}.bias"));
            less.take(&name);
            assert!(refusal(&less).contains(&name), "{name}");
        }
    });
    each(&["jamba"], |s| {
        for name in ["blk.0.ssm_conv1d.bias", "blk.0.ssm_dt.bias"] {
            let mut less = s.clone();
            less.take(name);
            assert!(refusal(&less).contains(name), "{name}");
        }
    });
}

#[test]
fn keys_that_ask_for_what_is_not_computed_are_refused_by_name() {
    let cases: [(&str, &str, Value); 12] = [
        ("qwen3moe", "attention.causal", false.into()),
        ("qwen35moe", "rope.dimension_sections", vec![2i32, 2, 2, 2].into()),
        ("qwen35", "ssm.inner_size", 96u32.into()),
        ("deepseek2-v3", "attention.clamp_kqv", 0.1f32.into()),
        ("deepseek2-v3", "rope.scaling.type", "linear".into()),
        ("deepseek2-v3", "expert_gating_func", 3u32.into()),
        ("deepseek4", "attention.compress_ratios", vec![0i32, 8, 128, 4].into()),
        ("deepseek4", "expert_gating_func", 2u32.into()),
        ("bailingmoe3-mtp", "kda.safe_gate", false.into()),
        ("bailingmoe3-mtp", "kda.gate_lower_bound", 0f32.into()),
        ("kimi-k3", "activation.situ_beta", 0f32.into()),
        ("granitehybrid", "ssm.inner_size", 126u32.into()),
    ];
    for (name, key, value) in cases {
        let Some(mut s) = source(name) else { continue };
        let said = refusal(s.set(key, value));
        assert!(said.contains(key) && said.contains("real.gguf"), "{name}: {said}");
    }
    // A number for each layer is read as such; where it is not the tensors' own, one of them is named.
    each(&["gpt-oss"], |s| {
        let layers = layers(s);
        let mut listed = s.clone();
        listed.set("attention.head_count", vec![8u32; layers]);
        same(s, &listed, "the same number for each layer");
        let wrong: Vec<u32> = (0..layers).map(|l| if l == 2 { 4 } else { 8 }).collect();
        assert!(refusal(listed.set("attention.head_count", wrong)).contains("tensor blk.2."));
        assert!(refusal(listed.set("attention.head_count", vec![8u32; 2])).contains("attention.head_count"));
    });
    let Some(mut s) = source("deepseek4") else { return };
    assert!(refusal(s.unset("swiglu_clamp_exp")).contains("swiglu_clamp_exp"));
}

/// Keys that no family here reads, and values at which they change what is computed and do nothing.
const NOT_COMPUTED: [(&str, f32, f32); 8] = [
    ("logit_scale", 0.25, 1.0),
    ("residual_scale", 0.25, 1.0),
    ("embedding_scale", 0.25, 1.0),
    ("attention.scale", 0.25, 0.0),
    ("final_logit_softcapping", 0.25, 0.0),
    ("attn_logit_softcapping", 50.0, 0.0),
    ("attention.value_scale", 0.7, 1.0),
    ("attention.clamp_kqv", 8.0, 0.0),
];
const FAMILIES: [&str; 11] = [
    "qwen3moe",
    "gpt-oss",
    "qwen35",
    "qwen35moe",
    "deepseek2-v3",
    "deepseek4",
    "bailingmoe3-mtp",
    "jamba",
    "kimi-k3",
    "kimi-linear",
    "lfm2moe",
];

#[test]
fn a_scale_or_cap_that_a_family_does_not_read_is_refused_by_name() {
    each(&FAMILIES, |s| {
        let mut all = s.clone();
        for (key, value, _) in NOT_COMPUTED {
            let said = refusal(s.clone().set(key, value));
            let full = format!("{}.{key} is {value}", s.arch);
            assert!(said.contains(&full) && said.contains("real.gguf"), "{}: {said}", s.name);
            all.set(key, value);
        }
        let said = refusal(&all);
        assert!(NOT_COMPUTED.iter().all(|(key, ..)| said.contains(key)), "{}: {said}", s.name);
        let list = refusal(s.clone().set("residual_scale", vec![1f32, 0.5]));
        assert!(list.contains("residual_scale is [1.0, 0.5]"), "{list}");
    });
}

#[test]
fn a_scale_or_cap_at_its_neutral_value_changes_nothing() {
    each(&FAMILIES, |s| {
        let mut neutral = s.clone();
        for (key, _, value) in NOT_COMPUTED {
            neutral.set(key, value);
        }
        neutral.set("residual_scale", vec![1f32; 9]);
        same(s, &neutral, "scales of 1 and caps of 0");
    });
}

#[test]
fn what_converters_write_and_the_reference_does_not_read_changes_nothing() {
    each(&["qwen3moe", "qwen35moe", "deepseek4"], |s| {
        let mut more = s.clone();
        more.set("rope.scaling.yarn_beta_fast", 4f32).set("rope.scaling.yarn_ext_factor", 1f32);
        more.set("feed_forward_length", 12345u32).set("attention.layer_norm_epsilon", 0.1f32);
        more.set(
            "expert_shared_feed_forward_length",
            s.key("expert_shared_feed_forward_length").cloned().unwrap_or(Value::U32(77)),
        );
        more.set("vocab_size", 7u32).set("pooling_type", 3u32).set("tensor_data_layout", "as it was");
        same(s, &more, "keys that tell nothing about the arithmetic");
    });
}

#[test]
fn a_key_that_nobody_knows_is_listed_as_unknown_and_the_model_runs() {
    each(&["qwen3moe"], |s| {
        let mut more = s.clone();
        more.set("norm_top_k_prob", true);
        same(s, &more, "an unknown key");
        let gguf = Gguf::from_bytes(more.bytes(), "real.gguf".as_ref()).unwrap();
        let tape = tandem::session::tape(&gguf, &exact()).unwrap();
        let unknown: Vec<_> =
            tape.unused_keys.iter().filter(|k| !k.known).map(|k| (&k.key[..], &k.value[..])).collect();
        assert_eq!(unknown, [("qwen3moe.norm_top_k_prob", "true")]);
    });
}

#[test]
fn an_absent_count_of_key_heads_means_one_for_every_head() {
    each(&["deepseek2-legacy-kvb", "qwen3moe"], |s| {
        let mut absent = s.clone();
        absent.unset("attention.head_count_kv");
        if s.arch == "deepseek2" {
            return same(s, &absent, "the count is not used here");
        }
        assert!(refusal(&absent).contains("attn_k.weight"), "four key heads are not in this file");
    });
}
