//! Synthetic models: every shape is one that its family accepts, and what they compute is tame.

mod common;
#[path = "../examples/synth/model.rs"]
mod model;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use model::{Holes, Mix, OwnText, SHAPES, Synth};
use tandem::gguf::Gguf;
use tandem::models;
use tandem::quant;
use tandem::session::{self, Options, Session, Want};
use tandem::speculate::{Drafter, Limits, Next, Speculation};
use tandem::tape::Tape;

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

fn synth(mix: &str, holes: Holes) -> Synth {
    let mix: Mix = mix.parse().unwrap();
    Synth { layers: None, mix, seed: 1, vocab: None, holes }
}

fn one(s: &Synth, shape: &str, dir: &Path) -> PathBuf {
    s.write(shape, None, &dir.join(format!("{shape}.gguf"))).unwrap()[0].0.clone()
}

/// The tape of a header, where this version has its family.
fn tape(gguf: &Gguf, what: &str) -> Option<Tape> {
    let arch = gguf.meta.str("general.architecture").unwrap();
    if !models::known().any(|known| known == arch) {
        println!("{what}: no family runs {arch} yet");
        return None;
    }
    Some(session::tape(gguf, &Options::default()).unwrap_or_else(|e| panic!("{what}: {e:#}")))
}

#[test]
fn every_shape_has_exactly_the_tensors_that_its_family_reads() {
    let dir = Folder::new("headers");
    for shape in SHAPES {
        let gguf = Gguf::open(&one(&synth("Q4_K_M", Holes::All), shape.name, &dir.0)).unwrap();
        if let Some(tape) = tape(&gguf, shape.name) {
            assert_eq!((tape.n_vocab(), tape.n_layers()), (shape.n_vocab, shape.layers), "{}", shape.name);
        }
    }
}

#[test]
fn a_shortened_shape_is_a_model_too() {
    let dir = Folder::new("layers");
    for shape in SHAPES {
        // With fewer, keys of a kind of layer that is not there would ask for what is not computed.
        let few = FEW.iter().find(|f| f.0 == shape.name).map_or(2, |f| f.1);
        for layers in [few, few + 2] {
            let mix = "IQ4_NL,embed=Q6_K";
            let s = Synth { layers: Some(layers), vocab: Some(1000), ..synth(mix, Holes::All) };
            let gguf = Gguf::open(&one(&s, shape.name, &dir.0)).unwrap();
            tape(&gguf, shape.name);
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
        runs(&one(&synth(mix, Holes::None), "tiny", &dir.0), mix);
    }
}

#[test]
fn the_first_layers_of_other_families_compute_finite_and_varied_logits() {
    let dir = Folder::new("families");
    for (shape, layers) in [("gpt-oss-20b", 2), ("qwen3.5-35b-a3b", 4)] {
        let s = Synth { layers: Some(layers), vocab: Some(1000), ..synth("Q4_0,experts=Q1_0", Holes::None) };
        runs(&one(&s, shape, &dir.0), shape);
    }
}

/// The first layers of full-size shapes, as many as have every kind of layer.
const FEW: &[(&str, usize)] = &[
    ("gpt-oss-120b", 2),
    ("qwen3.5-122b-a10b", 4),
    ("qwen3-next-80b-a3b", 4),
    ("qwen3.8-flash-next", 4),
    ("kimi-k2.6", 2),
    ("glm-5.2", 4),
    ("deepseek-v4-flash", 4),
    ("deepseek-v4-pro", 4),
    ("tiny-v4.1", 22),
    ("gemma4-26b-a4b", 6),
    ("gemma4-31b", 6),
    ("gemma4-e4b", 12),
    ("minimax-m2.7", 2),
    ("minimax-m3", 4),
    ("glm-4.5-air", 2),
    ("laguna-xs-2.1", 5),
    ("step-3.7-flash", 5),
    ("mimo-v2.5", 6),
    ("nemotron-3-super", 8),
];

#[test]
fn the_first_layers_of_full_size_shapes_load_and_run() {
    let dir = Folder::new("few");
    for &(shape, layers) in FEW {
        let mix = "Q1_0,attn=Q1_0,shared=Q1_0,embed=Q4_0,output=Q4_0";
        let s = Synth { layers: Some(layers), vocab: Some(1000), ..synth(mix, Holes::Experts) };
        let path = one(&s, shape, &dir.0);
        if tape(&Gguf::open(&path).unwrap(), shape).is_some() {
            let mut s = Session::open(&path, &Options { n_ctx: Some(256), ..Options::default() }).unwrap();
            let logits = s.feed(0, &[1, 999], Want::All).unwrap().into_logits();
            let (first, second) = logits.split_at(1000);
            println!("{shape:24} {layers:2} layers, logits RMS {:6.2}", rms(second));
            assert!(logits.iter().all(|v| v.is_finite()), "{shape}: logits are not finite");
            assert!(rms(second) > 0.1 && rms(second) < 1e4, "{shape}: logits of RMS {}", rms(second));
            assert_ne!(first, second, "{shape}: all positions have the same logits");
        }
        std::fs::remove_file(path).unwrap();
    }
}

/// Of the maps of a file that the system was told are read here and there: all bytes, and those in memory.
#[cfg(target_os = "linux")]
fn scattered(path: &Path) -> (usize, usize) {
    let (maps, name) = (std::fs::read_to_string("/proc/self/smaps").unwrap(), path.to_str().unwrap());
    let (mut all, mut one, mut of_it) = ((0, 0), (0, 0), false);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let number = |words: &mut std::str::SplitWhitespace<'_>| words.next().unwrap().parse::<usize>().unwrap() << 10;
        match words.next() {
            Some("Size:") => one.0 = number(&mut words),
            Some("Rss:") => one.1 = number(&mut words),
            Some("VmFlags:") if of_it && words.any(|flag| flag == "rr") => all = (all.0 + one.0, all.1 + one.1),
            Some(first) if !first.ends_with(':') => of_it = line.ends_with(name),
            _ => {}
        }
    }
    all
}

#[test]
#[cfg(target_os = "linux")]
fn of_a_table_of_20_gb_only_the_rows_that_are_read_come_into_memory() {
    let dir = Folder::new("table");
    let s = Synth { layers: Some(6), ..synth("Q8_0", Holes::Experts) };
    let path = one(&s, "tiny-v4.1-20gb", &dir.0);
    let mut s = Session::open(&path, &Options { n_ctx: Some(256), ..Options::default() }).unwrap();
    let tokens: Vec<u32> = (0..100u32).map(|i| i * 7919 % s.n_vocab() as u32).collect();
    s.feed(0, &tokens, Want::Argmax).unwrap();
    for token in tokens {
        s.feed(0, &[token], Want::Argmax).unwrap();
    }
    let (bytes, in_memory) = scattered(&path);
    println!("{bytes} bytes of tables are read here and there, {in_memory} of them are in memory");
    assert!(bytes > 20_000_000_000, "the system was told so of {bytes} bytes");
    // 24 rows of a token, each of a page or two, and what lies in the same request as they.
    assert!((1..64 << 20).contains(&in_memory), "{in_memory} bytes are in memory");
}

#[test]
fn the_blocks_of_every_format_can_be_made_small() {
    let dir = Folder::new("formats");
    for ty in quant::TYPES {
        let s = Synth { layers: Some(1), ..synth(&format!("Q8_0,output={}", ty.name), Holes::None) };
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

/// In a process of its own, by matrix tiles, which are emulated where the CPU has none: models of three mixes have nearly
/// the logits that they have by AVX-512.
#[test]
#[cfg(debug_assertions)]
fn by_matrix_tiles_models_have_nearly_the_logits_that_avx_512_gives_them() {
    use tandem::simd::{self, Isa, tiles};
    const CHILD: &str = "TANDEM_TEST_TILES";
    if std::env::var(CHILD).is_err() {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
        if !has("avx512_bf16") || std::env::var("TANDEM_ISA").is_ok() {
            say!("skipped, matrix tiles: the CPU lacks AVX-512 with BF16, or TANDEM_ISA is set");
            return;
        }
        // A CPU with tiles carries out some of their instructions whoever asks, so that none can be emulated there.
        let isa = if has("amx_bf16") { "amx" } else { tiles::EMULATED };
        let test = "by_matrix_tiles_models_have_nearly_the_logits_that_avx_512_gives_them";
        let mut this = std::process::Command::new(std::env::current_exe().unwrap());
        let out = this.args([test, "--exact", "--nocapture"]).env("TANDEM_ISA", isa).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr) + String::from_utf8_lossy(&out.stdout);
        say!("with {isa}:\n{said}");
        assert!(out.status.success() && said.contains("NMSE"), "{said}");
        return;
    }
    if simd::isa() != Isa::Amx {
        say!("skipped, matrix tiles: the system does not let this process use them: no NMSE");
        return;
    }
    let dir = Folder::new("tiles");
    for mix in ["Q4_K_M", "IQ4_XS,experts=MXFP4,output=Q8_0", "Q2_K,experts=IQ2_XXS,output=Q5_1"] {
        let s = Synth { layers: None, vocab: Some(1000), ..synth(mix, Holes::None) };
        let path = one(&s, "tiny", &dir.0);
        let tokens: Vec<u32> = (0..48).map(|i| i * 7919 % 1000).collect();
        // AVX-512 quantizes activations to 8 bits, and tiles round them and the weights to BF16.
        let nmse = tiles_against_vectors(&path, &tokens);
        say!("tiny, {mix}: NMSE {nmse:.1e}");
        assert!(nmse > 0.0 && nmse < 2e-2, "{mix}: NMSE {nmse:.1e}");
        std::fs::remove_file(path).unwrap();
    }
    // Weights of F32 never take tiles: what differs is attention, by 16 bits of mantissa, and what these differences turn
    // when keys and values are rounded to F16. One model of each kind: grouped heads, heads of 512 columns, sinks and
    // windows, squashed scores, one latent head for all, a second cache, blocks that are selected.
    for name in ["qwen3moe", "gemma4-moe", "gpt-oss", "llama4", "deepseek2-v3", "deepseek4", "minimax-m3"] {
        let Some(r) = common::reference(name) else { continue };
        let nmse = tiles_against_vectors(&r.gguf, &r.prompt[..r.prompt.len().min(110)]);
        say!("{name}: NMSE {nmse:.1e}");
        assert!(nmse > 0.0, "{name}: no attention went by tiles");
        assert!(nmse < 1e-6, "{name}: NMSE {nmse:.1e}");
    }
}

/// How far a prompt's logits by matrix tiles are from those by AVX-512. Nothing else may run in this process.
#[cfg(debug_assertions)]
fn tiles_against_vectors(path: &Path, tokens: &[u32]) -> f64 {
    use tandem::simd::{self, Isa};
    let by = |isa: Isa| {
        simd::set(isa);
        let mut s = Session::open(path, &Options { n_ctx: Some(128), ..Options::default() }).unwrap();
        s.feed(0, tokens, Want::All).unwrap().into_logits()
    };
    let tiles = by(Isa::Amx);
    common::nmse(&by(Isa::Avx512Bf16), &tiles)
}

/// The greedy text that follows `prompt`, and the experts that its tokens take in each layer, in turn.
fn own_text(s: &mut Session, prompt: &[u32], n: usize) -> (Vec<u32>, HashMap<String, Vec<Vec<u32>>>) {
    let (mut text, mut chosen) = (Vec::new(), HashMap::<String, Vec<Vec<u32>>>::new());
    let mut next = prompt.to_vec();
    for _ in 0..n {
        let mut see = |label: &str, x: &mut [f32], width: usize| {
            if label.ends_with("ffn_moe_topk") && x.iter().all(|v| v.fract() == 0.0) {
                let rows = x.chunks_exact(width).map(|row| row.iter().map(|&e| e as u32).collect());
                chosen.entry(label.into()).or_default().extend(rows);
            }
        };
        let logits = s.feed_observed(0, &next, Want::Last, Some(&mut see)).unwrap().into_logits();
        text.push(tandem::sample::argmax(&logits));
        next = vec![text[text.len() - 1]];
    }
    (text, chosen)
}

/// The share of choices that were among the last `slots` different ones, in percent.
fn lru_hits(chosen: &[Vec<u32>], slots: usize) -> f64 {
    let (mut held, mut hits, mut all) = (Vec::new(), 0, 0);
    for (t, experts) in chosen.iter().enumerate() {
        for e in experts {
            let at = held.iter().position(|h| h == e);
            if t > 50 {
                (hits, all) = (hits + usize::from(at.is_some()), all + 1);
            }
            at.map(|at| held.remove(at));
            held.push(*e);
            if held.len() > slots {
                held.remove(0);
            }
        }
    }
    100.0 * hits as f64 / all as f64
}

/// A small model with 8 of 128 experts whose own text is known.
fn with_own_text(own: OwnText, dir: &Path) -> PathBuf {
    synth("Q4_K_M", Holes::None).write_with(own, "tiny-mtp", None, &dir.join("own.gguf")).unwrap()[0].0.clone()
}

#[test]
fn a_skewed_model_chooses_experts_again_as_often_as_published() {
    let dir = Folder::new("skew");
    for (skew, eighth, quarter) in [(true, 67.0, 81.0), (false, 12.5, 25.0)] {
        let path = with_own_text(OwnText { skew, mtp: Some(0.5) }, &dir.0);
        let mut s = Session::open(&path, &Options { n_ctx: Some(512), ..Options::default() }).unwrap();
        let (text, chosen) = own_text(&mut s, &[300, 301], 400);
        let layers = chosen.len() as f64;
        let hits = |slots: usize| chosen.values().map(|c| lru_hits(c, slots)).sum::<f64>() / layers;
        println!("skew {skew}: an LRU of 16 of 128 hits {:.1}%, of 32 {:.1}%", hits(16), hits(32));
        // Published are single figures of one model and text; other models' differ by as much as this.
        assert!((hits(16) - eighth).abs() < 4.0, "skew {skew}: an LRU of an eighth hits {:.1}%", hits(16));
        assert!((hits(32) - quarter).abs() < 4.0, "skew {skew}: an LRU of a quarter hits {:.1}%", hits(32));
        let different: HashSet<&u32> = text.iter().collect();
        assert_eq!(different.len(), text.len(), "a text that repeats itself reuses experts for that reason");
    }
}

#[test]
fn a_block_for_multi_token_prediction_is_right_as_often_as_asked_for() {
    let dir = Folder::new("mtp");
    for p in [0.0, 0.5, 0.9] {
        let path = with_own_text(OwnText { skew: true, mtp: Some(p) }, &dir.0);
        let o = Options { n_ctx: Some(1024), heads: true, drafts: 2, ..Options::default() };
        let mut s = Session::open(&path, &o).unwrap();
        let limits = Limits { most: 2, least: 2, p_min: 0.0, deterministic: false };
        let mut speculation = Speculation::new(vec![Drafter::Heads(Session::draft)], limits);
        let mut output = s.feed(0, &[300, 301], Want::Last).unwrap();
        for i in 0..600 {
            let token = tandem::sample::argmax(&output.into_logits());
            output = speculation.read(&mut s, Next { seq: 0, token, want: Want::Last, room: 600 - i }).unwrap();
        }
        let (_, stats) = speculation.sources().next().unwrap();
        println!("{p}: right by position {}%, of {} drafts", stats.shares(), stats.drafted);
        for (judged, right) in stats.by_position.iter().filter(|n| n.0 > 0) {
            let (n, rate) = (*judged as f64, *right as f64 / *judged as f64);
            // Twice the deviation of as many throws.
            let most = 2.0 * (f64::from(p * (1.0 - p)) / n).sqrt() + 1e-9;
            assert!((rate - f64::from(p)).abs() <= most, "{right} of {judged} drafts were right, {p} expected");
        }
    }
}

#[test]
fn drafts_among_likely_tokens_are_those_among_all_where_the_part_holds_them() {
    let dir = Folder::new("likely");
    let large = Synth { vocab: Some(40_000), ..synth("Q4_K_M", Holes::None) };
    let own = OwnText { skew: true, mtp: Some(1.0) };
    let path = large.write_with(own, "tiny-mtp", None, &dir.0.join("own.gguf")).unwrap()[0].0.clone();
    let mut s = Session::open(&path, &Options { n_ctx: Some(512), heads: true, ..Options::default() }).unwrap();
    let mut output = s.feed(0, &[300, 301], Want::Last).unwrap();
    assert_eq!(s.draft_work(s.tokens(0)), None, "the text has only begun");
    let (mut same, mut drafted) = (0, 0);
    for i in 0..150 {
        let token = tandem::sample::argmax(&output.into_logits());
        if i >= 100 {
            let before = s.draft_logits();
            let mut look = |_: usize, logits: &[f32]| assert!(logits.iter().all(|l| l.is_finite()));
            let all = s.draft_observed(0, token, 2, 0.0, &mut look).unwrap();
            assert_eq!(s.draft_logits(), before, "a draft among all tokens leaves none out");
            let few = s.draft(0, token, 2, 0.0).unwrap();
            let held = all.iter().take_while(|t| **t < 5000).count(); // an eighth; one block more may hold others
            assert_eq!(few[..held], all[..held], "after token {i}");
            (same, drafted) = (same + held, drafted + all.len());
        }
        output = s.feed(0, &[token], Want::Last).unwrap();
    }
    assert!(same * 10 > drafted * 7, "{same} of {drafted} drafts are in the part");
    let share = s.draft_logits().share().unwrap();
    assert!((0.12..0.6).contains(&share), "drafts look at {share:.2} of the vocabulary");
    // The vocabulary is most of what this small head reads.
    let work = s.draft_work(s.tokens(0)).unwrap();
    assert!((0.12..0.8).contains(&work), "a draft takes {work:.2} of one among the whole vocabulary");
}
