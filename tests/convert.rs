//! `tandem convert`: what it writes, what it refuses, and how it says so. That the converted model
//! computes what the published one does is tested with the families (`common::references`).

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;

use common::{argmax, exact, floats, json, local, nmse, program};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};
use tandem::convert::Conversion;
use tandem::gguf::{Gguf, TensorType};
use tandem::quant;
use tandem::session::{Session, Want};
use tandem::text::Tokenizer;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Crate};

/// Tensors of a checkpoint: name, type, shape, bytes.
type Tensors = Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of the small checkpoint, for one test to change.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("convert").join(test);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        for file in std::fs::read_dir(local().join("zaya")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        }
        Folder(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn set(&self, key: &str, value: Value) -> &Folder {
        let mut config = json(&self.path("config.json"));
        let place = key.split('.').fold(&mut config, |v, k| &mut v[k]);
        *place = value;
        std::fs::write(self.path("config.json"), config.to_string()).unwrap();
        self
    }

    /// The tensors of both files.
    fn tensors(&self) -> Tensors {
        let mut all = Vec::new();
        for file in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
            let bytes = std::fs::read(self.path(file)).unwrap();
            for (name, t) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                all.push((name, t.dtype(), t.shape().to_vec(), t.data().to_vec()));
            }
        }
        all
    }

    /// Replaces the two files and their index by one file of these tensors.
    fn put(&self, tensors: &Tensors) {
        let _ = std::fs::remove_file(self.path("model.safetensors.index.json"));
        let view = |(name, ty, shape, data): &'_ (String, _, Vec<usize>, Vec<u8>)| {
            (name.clone(), TensorView::new(*ty, shape.clone(), data.leak_copy()).unwrap())
        };
        serialize_to_file(tensors.iter().map(view), None, &self.path("model.safetensors")).unwrap();
    }

    /// Converts in this process.
    fn convert(&self, ty: &str) -> anyhow::Result<Gguf> {
        let to = self.path(&format!("{ty}.gguf"));
        Conversion::new(&self.0, quant::by_name(ty))?.write(&to, &mut |_| ())?;
        Gguf::open(&to)
    }
}

/// Bytes for the rest of the program: tests are short.
trait LeakCopy {
    fn leak_copy(&self) -> &'static [u8];
}

impl LeakCopy for Vec<u8> {
    fn leak_copy(&self) -> &'static [u8] {
        self.clone().leak()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

#[track_caller]
fn must_say(f: &Folder, parts: &[&str]) {
    let _ = std::fs::remove_file(f.path("f32.gguf")); // of an earlier conversion
    let said = format!("{:#}", f.convert("f32").expect_err("it is refused"));
    for part in parts {
        assert!(said.contains(part), "the error does not say {part:?}: {said}");
    }
    assert!(!f.path("f32.gguf").exists() && !f.path("f32.gguf.partial").exists(), "nothing is left behind");
}

#[test]
fn written_rows_are_bit_equal_to_those_of_the_python_package_gguf() {
    let dir = local().join("written");
    let rows = floats(&dir.join("rows.f32"));
    for name in ["f32", "f16", "bf16", "q8_0"] {
        let ty = quant::by_name(name).unwrap();
        let mut bytes = vec![0; rows.len() / ty.block * ty.bytes];
        quant::encoder(ty).unwrap()(&rows, &mut bytes);
        let want = std::fs::read(dir.join(format!("rows.{name}"))).unwrap();
        let first = bytes.iter().zip(&want).position(|(a, b)| a != b);
        assert!(bytes == want, "{name}: byte {first:?} differs");
    }
}

#[test]
fn every_tensor_has_the_type_that_was_asked_for_or_stays_f32() {
    let f = Folder::new("types");
    let exact = f.convert("f32").unwrap();
    let decoded = |t: &tandem::gguf::Tensor| {
        exact.data(t).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>()
    };
    let small = ["router", "norm", "bias", "scale", "ffn_gate_inp", "cca_conv0", "temp", "exp_probs"];
    for name in ["f16", "bf16", "q8_0"] {
        let ty = quant::by_name(name).unwrap();
        let gguf = f.convert(name).unwrap();
        assert_eq!(gguf.tensors.len(), exact.tensors.len());
        for (t, of) in gguf.tensors.iter().zip(&exact.tensors) {
            assert_eq!((&t.name, &t.shape), (&of.name, &of.shape));
            let full = small.iter().any(|s| t.name.contains(s));
            // Rows of 16 are no multiple of 32.
            let want = match (full, t.name.contains("cca_conv1") && name == "q8_0") {
                (true, _) => "f32",
                (_, true) => "f16",
                _ => name,
            };
            assert_eq!(t.ty, TensorType::Quant(quant::by_name(want).unwrap()), "{} of a file of {name}", t.name);
            let of_type = t.ty.quant().unwrap();
            let mut bytes = vec![0; t.bytes];
            quant::encoder(of_type).unwrap()(&decoded(of), &mut bytes);
            assert!(gguf.data(t) == bytes, "{}: other bytes than its rows in {}", t.name, ty.name);
        }
    }
    let kept = f.convert("f32").map(|_| Conversion::new(&f.0, None).unwrap().ty.name).unwrap();
    assert_eq!(kept, "BF16", "without --type it is the type of most weights");
}

#[test]
fn a_model_in_one_file_and_in_several_becomes_the_same_file() {
    let f = Folder::new("one");
    let several = f.convert("q8_0").unwrap();
    let several: Vec<u8> = std::fs::read(several.path).unwrap();
    f.put(&f.tensors());
    let one = std::fs::read(f.convert("q8_0").unwrap().path).unwrap();
    assert!(one == several);
}

#[test]
fn a_tied_head_is_the_embedding_and_one_with_a_bias_is_written_apart() {
    let f = Folder::new("tied");
    f.set("tie_word_embeddings", true.into()).set("lm_head_bias", true.into());
    let gguf = f.convert("f32").unwrap();
    let data = |name: &str| gguf.data(gguf.tensor(name).unwrap());
    assert!(data("output.weight") == data("token_embd.weight"));
    let mut tensors = f.tensors();
    tensors.retain(|t| t.0 != "lm_head.bias");
    f.put(&tensors);
    f.set("lm_head_bias", false.into());
    let gguf = f.convert("f32").unwrap();
    assert!(gguf.tensor("output.weight").is_none() && gguf.tensor("output.bias").is_none());
}

#[test]
fn what_cannot_be_carried_over_is_refused_by_name() {
    let f = Folder::new("config");
    let refused = |key: &str, value: Value, parts: &[&str]| {
        let before = json(&f.path("config.json"));
        f.set(key, value);
        must_say(&f, &[&["config.json", key], parts].concat());
        std::fs::write(f.path("config.json"), before.to_string()).unwrap();
    };
    refused("model_type", "llama".into(), &["\"llama\"", "can convert (zaya)"]);
    refused("model_type", Value::Null, &["missing"]);
    refused("num_experts_per_tok", 2.into(), &["is 2", "expected 1"]);
    refused("hidden_act", "gelu".into(), &["\"gelu\"", "silu"]);
    refused("head_dim", json!(16.5), &["is 16.5", "whole number"]);
    refused("num_key_value_heads", 3.into(), &["is 3", "divisor of the 4 heads"]);
    refused("layer_types", json!(["hybrid"]), &["a list of 1", "3 layers"]);
    refused("layer_types", json!(["hybrid", "x", "hybrid"]), &["\"x\"", "hybrid_sliding"]);
    refused("sliding_window", Value::Null, &["missing"]);
    refused("rope_parameters.hybrid_sliding.partial_rotary_factor", json!(0.25), &["0.25", "0.5"]);
    refused("rope_parameters.hybrid.rope_type", "yarn".into(), &["yarn", "default"]);
    std::fs::write(f.path("config.json"), "[]").unwrap();
    must_say(&f, &["config.json", "expected a JSON object"]);
    std::fs::remove_file(f.path("config.json")).unwrap();
    must_say(&f, &["config.json is missing"]);
}

#[test]
fn tensors_that_are_missing_left_over_misshapen_or_broken_are_refused_by_name() {
    let f = Folder::new("tensors");
    let good = f.tensors();
    let refused = |change: &dyn Fn(&mut Tensors), parts: &[&str]| {
        let mut tensors = good.clone();
        change(&mut tensors);
        f.put(&tensors);
        must_say(&f, parts);
    };
    refused(
        &|t| t.retain(|t| !t.0.ends_with("1.mlp.gate.balancing_biases")),
        &["1.mlp.gate.balancing_biases is missing"],
    );
    refused(
        &|t| t.push(("extra.weight".into(), safetensors::Dtype::F32, vec![1], vec![0; 4])),
        &["extra.weight", "zaya"],
    );
    let o_proj = "model.layers.0.self_attn.o_proj.weight";
    let turned = |t: &mut Tensors| t.iter_mut().find(|t| t.0 == o_proj).unwrap().2.reverse();
    refused(&turned, &[o_proj, "[64, 32]", "expected [32, 64]"]);
    let ints = |t: &mut Tensors| {
        let t = t.iter_mut().find(|t| t.0 == o_proj).unwrap();
        t.1 = safetensors::Dtype::I16;
    };
    refused(&ints, &["model.safetensors", o_proj, "I16", "BF16"]);
    f.put(&good);
    let whole = std::fs::read(f.path("model.safetensors")).unwrap();
    for n in [0, 7, 100, whole.len() - 1] {
        std::fs::write(f.path("model.safetensors"), &whole[..n]).unwrap();
        must_say(&f, &["model.safetensors", &format!("{n} bytes"), "fetch it again"]);
    }
    std::fs::remove_file(f.path("model.safetensors")).unwrap();
    must_say(&f, &["neither model.safetensors nor model.safetensors.index.json"]);
    let index = |file: &str| json!({"weight_map": {"a": file}}).to_string();
    std::fs::write(f.path("model.safetensors.index.json"), index("../a.safetensors")).unwrap();
    must_say(&f, &["index.json", "../a.safetensors", "in the index's folder"]);
    std::fs::write(f.path("model.safetensors.index.json"), index("model-00001-of-00002.safetensors")).unwrap();
    must_say(&f, &["tensor a is missing", "index.json"]);
}

#[test]
fn the_command_writes_one_file_says_so_and_never_overwrites_unasked() {
    let f = Folder::new("command");
    let out = f.path("m.gguf");
    let command = |more: &[&str]| program(&[&["convert", text(&f.0), "-o", text(&out)], more].concat(), b"");
    let o = command(&["--type", "f32", "--dry-run"]);
    assert!(o.status.success() && !out.exists(), "{}", err(&o));
    let line = String::from_utf8(o.stdout).unwrap();
    assert!(line.starts_with("tandem convert") && line.contains("--type f32") && line.contains(text(&f.0)), "{line}");
    assert!(!line.contains("dry-run"), "{line}");

    let o = command(&["--type", "f32"]);
    assert!(o.status.success() && o.stdout.is_empty(), "{}", err(&o));
    assert!(err(&o).contains("m.gguf: zaya, F32") && err(&o).contains("tokenizer.json is missing"), "{}", err(&o));
    assert!(std::fs::read(&out).unwrap() == std::fs::read(f.convert("f32").unwrap().path).unwrap());

    std::fs::write(&out, "mine").unwrap();
    let o = command(&[]);
    assert!(o.status.code() == Some(2) && err(&o).contains("the file exists"), "{}", err(&o));
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    let o = command(&["--overwrite"]);
    assert!(o.status.success() && err(&o).contains("in place of the file that was there"), "{}", err(&o));
    assert!(Gguf::open(&out).is_ok());

    let o = command(&["--overwrite", "--type", "q4_k"]);
    assert!(o.status.code() == Some(2) && err(&o).contains("expected f32, f16, q8_0, bf16"), "{}", err(&o));
    let o = program(&["convert", text(&f.0), "-o", text(&f.path("no/m.gguf"))], b"");
    assert!(o.status.code() == Some(2) && err(&o).contains("does not exist"), "{}", err(&o));
    f.set("model_type", "llama".into());
    let o = command(&["--overwrite"]);
    assert!(o.status.code() == Some(3) && err(&o).contains("\"llama\""), "{}", err(&o));
}

#[test]
fn without_tokenizer_json_logits_work_and_run_says_what_is_missing() {
    let f = Folder::new("no-tokenizer");
    let gguf = f.convert("f32").unwrap().path;
    let (tokens, out) = (f.path("tokens.json"), f.path("logits"));
    let positions: Vec<String> = json(&tokens)["positions"].as_array().unwrap().iter().map(Value::to_string).collect();
    let args = ["logits", "-m", text(&gguf), "-ctk", "f32", "-ctv", "f32", "--tokens", text(&tokens)];
    let o = program(&[&args[..], &["--positions", &positions.join(","), "--out", text(&out)]].concat(), b"");
    assert!(o.status.success(), "{}", err(&o));
    let error = nmse(&floats(&f.path("logits.f32")), &floats(&out));
    assert!(error < 1e-11, "{error:e}"); // the noise of F32
    let o = program(&["run", "-m", text(&gguf), "-p", "x", "-n", "1"], b"");
    assert_eq!(o.status.code(), Some(3), "{}", err(&o));
    assert!(err(&o).contains("no vocabulary") && err(&o).contains("tokenizer.json"), "{}", err(&o));
}

/// Text to train a vocabulary on, and to try it on.
const TEXT: &str = "The quick brown fox jumps over the lazy dog. It's 12:30, isn't it? 1234567 naïve été 你好 😀\n\n\n\
                    \tif (a != b) { return the_fox; }  \n The lazy dog, the quick fox; the brown dog jumps.\n";

fn trained(model: BPE, initial: Vec<AddedToken>, size: usize, normal: impl Fn(&mut Crate)) -> Crate {
    let mut t = Crate::new(ModelWrapper::BPE(model));
    normal(&mut t);
    let alphabet = if t.get_pre_tokenizer().is_some() { ByteLevel::alphabet() } else { Default::default() };
    let trainer = BpeTrainer::builder()
        .vocab_size(size)
        .min_frequency(0)
        .show_progress(false)
        .special_tokens(initial)
        .initial_alphabet(alphabet.into_iter().collect())
        .build();
    t.train(&mut TrainerWrapper::BpeTrainer(trainer), TEXT.lines()).unwrap_or_else(|e| panic!("{e}"));
    t
}

/// The small checkpoint with an embedding of `n` rows, so that there are as many tokens.
fn widened(test: &str, n: usize) -> Folder {
    let f = Folder::new(test);
    let mut tensors = f.tensors();
    for (name, _, shape, data) in &mut tensors {
        if matches!(&name[..], "model.embed_tokens.weight" | "lm_head.weight" | "lm_head.bias") {
            let row = data.len() / shape[0];
            *data = (0..n).flat_map(|i| data[i * 7 % shape[0] * row..][..row].to_vec()).collect();
            shape[0] = n;
        }
    }
    f.put(&tensors);
    f.set("vocab_size", n.into());
    f
}

/// Text in, text out, with the numbers that the crate gives.
fn speaks(f: &Folder, t: &Crate) {
    t.save(f.path("tokenizer.json"), false).unwrap();
    let path = f.convert("f32").unwrap().path;
    let ours = Tokenizer::new(&Gguf::open(&path).unwrap()).unwrap();
    for text in TEXT.split_inclusive(' ').chain([TEXT, "", "\n\n", "<turn>user\nhi<end>\n", "a<end>b <turn>"]) {
        let want = t.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(ours.encode(text, true, true).unwrap(), want, "{text:?}");
    }
    // What `run` writes are the likeliest tokens, as the crate writes them.
    let prompt = "The lazy dog";
    let mut s = Session::open(&path, &exact()).unwrap();
    let mut next = t.encode(prompt, true).unwrap().get_ids().to_vec();
    let mut ids = Vec::new();
    for _ in 0..12 {
        next = vec![argmax(&s.feed(0, &next, Want::Last).unwrap().into_logits())];
        ids.extend(&next);
    }
    let end = ids.iter().position(|id| ours.is_eog(*id)).unwrap_or(ids.len());
    let want = t.decode(&ids[..end], true).unwrap();
    let flags = ["-n", "12", "--temp", "0", "-ctk", "f32", "-ctv", "f32", "--raw", "-q"];
    let o = program(&[&["run", "-m", text(&path), "-p", prompt], &flags[..]].concat(), b"");
    assert!(o.status.success(), "{}", err(&o));
    assert!(!want.is_empty());
    assert_eq!(String::from_utf8(o.stdout).unwrap().trim_end_matches('\n'), want.trim_end_matches('\n'));
}

fn added(text: &str, special: bool) -> AddedToken {
    AddedToken::from(text, special).normalized(false)
}

#[test]
fn a_byte_level_vocabulary_of_the_crate_gives_its_token_numbers_and_text() {
    use tokenizers::decoders::byte_level::ByteLevel as Decoder;
    let special = ["<pad>", "<bos>", "<end>"].map(|s| added(s, true)).to_vec();
    let mut t = trained(BPE::default(), special, 300, |t| {
        t.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        t.with_decoder(Some(Decoder::new(false, true, true)));
    });
    t.add_special_tokens([added("<turn>", true)]).unwrap();
    t.add_tokens([added("the_fox", false)]).unwrap();
    let f = widened("byte-level", t.get_vocab_size(true) + 5);
    std::fs::write(f.path("tokenizer_config.json"), r#"{"bos_token": "<bos>", "eos_token": {"content": "<end>"}}"#)
        .unwrap();
    speaks(&f, &t);
    let gguf = Gguf::open(&f.path("f32.gguf")).unwrap();
    assert_eq!(gguf.meta.str("tokenizer.ggml.pre").unwrap(), "gpt-2");
    let n = t.get_vocab_size(true);
    let texts = gguf.meta.strs("tokenizer.ggml.tokens").unwrap();
    assert_eq!((texts.len(), texts[n].as_str()), (n + 5, format!("[PAD{n}]").as_str()));
    assert_eq!(gguf.meta.u32("tokenizer.ggml.eos_token_id").unwrap(), 2);
}

#[test]
fn a_vocabulary_of_characters_with_bytes_for_the_rest_gives_its_token_numbers_and_text() {
    use tokenizers::decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence};
    use tokenizers::normalizers::replace::Replace;
    use tokenizers::processors::template::TemplateProcessing;
    let bytes = (0..256).map(|b| added(&format!("<0x{b:02X}>"), false));
    let mut special: Vec<AddedToken> = ["<pad>", "<end>", "<bos>", "<unk>"].map(|s| added(s, true)).to_vec();
    special.extend(bytes);
    let model = BPE::builder().byte_fallback(true).fuse_unk(true).unk_token("<unk>".into()).build().unwrap();
    let t = trained(model, special, 420, |t| {
        t.with_normalizer(Some(Replace::new(" ", "▁").unwrap())).unwrap();
    });
    // The bytes are part of the vocabulary, not found in text.
    let mut json: Value = serde_json::from_str(&t.to_string(false).unwrap()).unwrap();
    json["added_tokens"].as_array_mut().unwrap().retain(|a| !a["content"].as_str().unwrap().starts_with("<0x"));
    let mut t: Crate = json.to_string().parse().unwrap();
    let parts = [Replace::new("▁", " ").unwrap().into(), ByteFallback::new().into(), Fuse::new().into()];
    t.with_decoder(Some(Sequence::new(parts.to_vec())));
    t.add_special_tokens([added("<turn>", true)]).unwrap();
    t.add_tokens(["\n", "\n\n", "\n\n\n"].map(|s| added(s, false))).unwrap();
    let bos = t.token_to_id("<bos>").unwrap();
    let mut around = TemplateProcessing::builder();
    let around = around.try_single("<bos> $A").unwrap().special_tokens(vec![("<bos>", bos)]).build().unwrap();
    t.with_post_processor(Some(around));
    let f = widened("characters", t.get_vocab_size(true));
    std::fs::write(f.path("tokenizer_config.json"), r#"{"bos_token": "<bos>", "eos_token": "<end>"}"#).unwrap();
    speaks(&f, &t);
    let gguf = Gguf::open(&f.path("f32.gguf")).unwrap();
    assert!(gguf.meta.bool("tokenizer.ggml.add_bos_token").unwrap());
}

#[test]
fn a_tokenizer_that_a_gguf_file_cannot_express_is_refused() {
    use tokenizers::pre_tokenizers::{sequence::Sequence, whitespace::Whitespace};
    let t = trained(BPE::default(), vec![added("<end>", true)], 300, |t| {
        t.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    });
    let f = widened("tokenizer-refused", 400);
    let refused = |t: &Crate, parts: &[&str]| {
        t.save(f.path("tokenizer.json"), false).unwrap();
        must_say(&f, &[&["tokenizer.json"], parts].concat());
    };
    let mut prefixed = t.clone();
    prefixed.with_pre_tokenizer(Some(ByteLevel::new(true, true, true)));
    refused(&prefixed, &["token IDs"]);
    let mut stripped = t.clone();
    stripped.add_special_tokens([added("<mask>", true).lstrip(true)]).unwrap();
    refused(&stripped, &["\"<mask>\"", "lstrip"]);
    let mut words = t.clone();
    let both = [Whitespace.into(), ByteLevel::new(false, true, false).into()];
    words.with_pre_tokenizer(Some(Sequence::new(both.to_vec())));
    refused(&words, &["pre-tokenizer", "Whitespace", "gpt-2"]);
    std::fs::write(f.path("tokenizer.json"), "{}").unwrap();
    must_say(&f, &["tokenizer.json", "this version can read"]);
}

#[test]
fn chat_templates_come_from_the_config_or_from_a_file_of_their_own() {
    let f = Folder::new("templates");
    let key = |name: &str| f.convert("f32").unwrap().meta.opt_str(name).unwrap().map(str::to_owned);
    let config = |v: Value| std::fs::write(f.path("tokenizer_config.json"), v.to_string()).unwrap();
    config(json!({"chat_template": "one"}));
    assert_eq!(key("tokenizer.chat_template").as_deref(), Some("one"));
    config(json!({"chat_template": [{"name": "default", "template": "two"}, {"name": "rag", "template": "three"}]}));
    assert_eq!(key("tokenizer.chat_template").as_deref(), Some("two"));
    assert_eq!(key("tokenizer.chat_template.rag").as_deref(), Some("three"));
    std::fs::write(f.path("chat_template.jinja"), "four").unwrap();
    assert_eq!(key("tokenizer.chat_template").as_deref(), Some("four"));
    assert_eq!(key("tokenizer.chat_template.rag"), None);
    std::fs::remove_file(f.path("chat_template.jinja")).unwrap();
    config(json!({"chat_template": [{"name": "default"}]}));
    must_say(&f, &["tokenizer_config.json", "chat_template"]);
}
