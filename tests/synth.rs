//! Synthetic models: every shape is one that its family accepts, and what they compute is tame.

#[path = "../examples/synth/model.rs"]
mod model;

use std::path::{Path, PathBuf};

use model::{Mix, SHAPES, Synth};
use tandem::gguf::Gguf;
use tandem::quant;
use tandem::session::{self, Options, Session, Want};

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("tandem-synth-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn synth(mix: &str, header_only: bool) -> Synth {
    let mix: Mix = mix.parse().unwrap();
    Synth { layers: None, mix, seed: 1, vocab: None, header_only }
}

fn one(s: &Synth, shape: &str, dir: &Path) -> PathBuf {
    s.write(shape, None, &dir.join(format!("{shape}.gguf"))).unwrap()[0].0.clone()
}

#[test]
fn every_shape_has_exactly_the_tensors_that_its_family_reads_and_its_published_size() {
    let dir = Folder::new("headers");
    // In billions, as published; the Qwen3.5 ones with the block that predicts a second token.
    let sizes = [
        ("qwen3-30b-a3b", 30.5),
        ("qwen3-235b-a22b", 235.1),
        ("gpt-oss-20b", 20.9),
        ("gpt-oss-120b", 116.8),
        ("qwen3.5-35b-a3b", 35.5),
        ("qwen3.5-122b-a10b", 124.6),
        ("deepseek-v3", 671.0),
        ("kimi-k2", 1026.4),
        ("deepseek-v4-flash", 284.3),
    ];
    for shape in SHAPES {
        let path = one(&synth("Q4_K_M", true), shape.name, &dir.0);
        let gguf = Gguf::open(&path).unwrap();
        let tape = session::tape(&gguf, &Options::default()).unwrap_or_else(|e| panic!("{}: {e:#}", shape.name));
        assert_eq!(tape.n_vocab(), shape.n_vocab, "{}", shape.name);
        let params: f64 = gguf.tensors.iter().map(|t| t.elements() as f64).sum::<f64>() / 1e9;
        println!("{:20} {params:8.1} billion parameters, {:6.1} GB", shape.name, gguf.bytes() as f64 / 1e9);
        if let Some((_, want)) = sizes.iter().find(|s| s.0 == shape.name) {
            assert!((params / want - 1.0).abs() < 0.01, "{}: {params} billion, {want} published", shape.name);
        }
    }
}

#[test]
fn a_shortened_shape_is_a_model_too() {
    let dir = Folder::new("layers");
    for shape in SHAPES {
        for layers in [1, 4] {
            let s = Synth { layers: Some(layers), vocab: Some(1000), ..synth("IQ4_NL,embed=Q6_K", true) };
            let gguf = Gguf::open(&one(&s, shape.name, &dir.0)).unwrap();
            session::tape(&gguf, &Options::default()).unwrap_or_else(|e| panic!("{}: {e:#}", shape.name));
        }
    }
}

fn rms(x: &[f32]) -> f32 {
    (x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32).sqrt()
}

/// Runs a model over some tokens and holds its logits and its router to sensible behaviour.
fn runs(path: &Path, what: &str) {
    let mut s = Session::open(path, &Options { n_ctx: Some(256), ..Options::default() }).unwrap();
    let n = s.n_vocab();
    let layers = s.engine().tape.steps.iter().filter(|s| s.label.ends_with("ffn_moe_topk")).count();
    let router = format!("blk.{}.ffn_moe_topk", layers - 1);
    let tokens: Vec<u32> = (0..48u32).map(|i| i * 7919 % n as u32).collect();
    let (mut largest, mut experts, mut k) = (0f32, std::collections::HashSet::new(), 0);
    let mut see = |label: &str, x: &mut [f32], width: usize| {
        assert!(x.iter().all(|v| v.is_finite()), "{what}: {label} is not finite");
        if label.ends_with("l_out") || label.ends_with("hc_ffn_post") {
            largest = largest.max(rms(x));
        }
        if label == router && x.iter().all(|v| v.fract() == 0.0) {
            experts.extend(x.iter().map(|&e| e as u32));
            k = width;
        }
    };
    let logits = s.feed_observed(0, &tokens, Want::All, Some(&mut see)).unwrap().into_logits();
    let last = &logits[(tokens.len() - 1) * n..];
    let spread = rms(last);
    println!("{what:40} residual RMS {largest:8.2}, logits RMS {spread:6.2}, {} experts seen, {k} each", experts.len());
    assert!(spread > 0.5 && spread < 1e4, "{what}: logits of RMS {spread}");
    assert!(last.iter().zip(&logits[..n]).any(|(a, b)| a != b), "{what}: all positions have the same logits");
    assert!(experts.len() > 2 * k, "{what}: every token goes to the same experts");
}

#[test]
fn a_tiny_model_of_any_mix_computes_finite_and_varied_logits() {
    let dir = Folder::new("tiny");
    for mix in ["Q4_K_M", "Q8_0", "MXFP4,attn=BF16", "Q2_K,experts=Q3_K,output=Q5_1", "NVFP4", "F32"] {
        runs(&one(&synth(mix, false), "tiny", &dir.0), mix);
    }
}

#[test]
fn the_first_layers_of_other_families_compute_finite_and_varied_logits() {
    let dir = Folder::new("families");
    for (shape, layers) in [("gpt-oss-20b", 2), ("qwen3.5-35b-a3b", 4)] {
        let s = Synth { layers: Some(layers), vocab: Some(1000), ..synth("Q4_0,experts=Q1_0", false) };
        runs(&one(&s, shape, &dir.0), shape);
    }
}

#[test]
fn the_blocks_of_every_format_can_be_made_small() {
    let dir = Folder::new("formats");
    for ty in quant::TYPES {
        let s = Synth { layers: Some(1), ..synth(&format!("Q8_0,output={}", ty.name), false) };
        let gguf = Gguf::open(&one(&s, "tiny", &dir.0)).unwrap();
        let t = gguf.tensor("output.weight").unwrap();
        let q = t.ty.quant().unwrap();
        let mut w = vec![0f32; t.elements()];
        (q.dequant)(gguf.data(t), &mut w);
        let size = rms(&w) * 16.0; // rows of 256
        println!("{:8} rows of length {size:.2}", q.name);
        assert!((0.3..3.0).contains(&size), "{}: rows of length {size}", q.name);
    }
}
