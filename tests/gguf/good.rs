//! Good files: what was written is what is read, and the getters convert what can be converted.

use crate::{data, folder, must_say, sample};
use std::path::Path;
use tandem::gguf::{Array, Gguf, Load, TensorType, Value, Writer, parse};

fn open(w: &mut Writer<'_>) -> Gguf {
    Gguf::from_bytes(w.to_bytes().unwrap(), Path::new("good.gguf")).unwrap()
}

#[test]
fn a_real_model_opens_with_its_metadata_and_every_tensor() {
    let m = Gguf::open(&data("models/qwen3moe.gguf")).unwrap();
    assert_eq!((m.version, m.meta.len(), m.tensors.len()), (3, 29, 39));
    assert_eq!(m.meta.str("general.architecture").unwrap(), "qwen3moe");
    assert_eq!(m.meta.usize("qwen3moe.expert_count").unwrap(), 8);
    assert_eq!(m.meta.strs("tokenizer.ggml.tokens").unwrap().len(), 384);
    let t = m.tensor("blk.1.ffn_gate_exps.weight").unwrap();
    assert_eq!((&t.shape[..], t.ty.name(), t.elements()), (&[8, 32, 64][..], "F32", 8 * 32 * 64));
    assert!(m.tensors.iter().all(|t| m.data(t).len() == t.bytes && m.data(t).as_ptr().addr().is_multiple_of(32)));
    assert_eq!(m.bytes(), 272512 * 4);
    assert!(m.tensor("blk.1").is_none());
}

#[test]
fn every_kind_of_metadata_and_tensor_comes_back_as_written_in_both_versions() {
    for version in [2, 3] {
        let m = open(sample::writer().version(version));
        assert_eq!(m.version, version);
        let read: Vec<_> = m.meta.iter().map(|(k, v)| (k, v.clone())).collect();
        assert_eq!(read, sample::values());
        assert!(m.meta.repaired().is_empty());
        assert_eq!(m.tensors.len(), sample::types().len());
        for (t, ty) in m.tensors.iter().zip(sample::types()) {
            assert_eq!((t.ty, &t.shape[..]), (ty, &[3, 2 * ty.block().0][..]));
            assert_eq!(m.data(t), sample::tensor_bytes(ty, t.bytes));
            assert_eq!(t.bytes, 3 * ty.row_bytes(t.shape[1]));
        }
    }
}

#[test]
fn shapes_are_turned_round_once_and_one_to_four_dimensions_hold() {
    let mut w = Writer::new();
    for shape in [&[5][..], &[4, 5], &[3, 4, 5], &[2, 3, 4, 5]] {
        w.add_hole(&format!("d{}", shape.len()), shape, TensorType::I8).unwrap();
    }
    let bytes = w.to_bytes().unwrap();
    let row = bytes.windows(2).position(|w| w == b"d2").unwrap() + 2 + 4;
    assert_eq!(
        bytes[row..][..16],
        [5, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0],
        "the row length is first in a file"
    );
    let m = open(&mut w);
    assert_eq!(m.tensor("d4").unwrap().shape, [2, 3, 4, 5]);
    assert_eq!(m.tensor("d1").unwrap().shape, [5]);
}

#[test]
fn data_starts_on_the_alignment_that_the_file_asks_for() {
    for alignment in [8u32, 32, 64, 4096] {
        let mut w = Writer::new();
        w.set("general.alignment", alignment);
        w.add_tensor("a", &[3], TensorType::I8, |out| out.write_all(b"abc")).unwrap();
        w.add_tensor("b", &[3], TensorType::I8, |out| out.write_all(b"def")).unwrap();
        let bytes = w.to_bytes().unwrap();
        let header = parse(&bytes, bytes.len() as u64, Path::new("x")).unwrap();
        assert_eq!(header.alignment, u64::from(alignment));
        assert!(header.tensors.iter().all(|t| t.offset % u64::from(alignment) == 0));
        assert_eq!(header.tensors[1].offset - header.tensors[0].offset, u64::from(alignment));
        assert_eq!(&bytes[header.tensors[1].range()], b"def");
    }
}

#[test]
fn a_vocabulary_file_without_tensors_opens() {
    let m = open(Writer::new().set("general.architecture", "llama"));
    assert_eq!((m.tensors.len(), m.bytes(), m.meta.len()), (0, 0, 1));
    assert_eq!(open(&mut Writer::new()).meta.len(), 0);
}

#[test]
fn a_header_is_read_from_the_start_of_a_file_alone() {
    let bytes = sample::writer().to_bytes().unwrap();
    let all = parse(&bytes, bytes.len() as u64, Path::new("x")).unwrap();
    let start = parse(&bytes[..all.data as usize], bytes.len() as u64, Path::new("x")).unwrap();
    assert_eq!(start.tensors.len(), all.tensors.len());
}

#[test]
fn mapped_read_and_locked_bytes_are_the_same() {
    let path = data("models/qwen3moe.gguf");
    let mapped = Gguf::open(&path).unwrap();
    for load in
        [Load { mmap: false, mlock: false }, Load { mmap: false, mlock: true }, Load { mmap: true, mlock: true }]
    {
        let m = Gguf::open_with(&path, &load).unwrap();
        for t in &m.tensors {
            assert!(m.data(t) == mapped.data(mapped.tensor(&t.name).unwrap()), "{load:?}: {}", t.name);
            assert!(m.data(t).as_ptr().addr().is_multiple_of(32));
        }
        // Whether locking is allowed is the machine's affair; a refusal must name the file and the way out.
        for why in &m.unlocked {
            assert!(load.mlock && why.contains("qwen3moe.gguf") && why.contains("ulimit -l"), "{why}");
        }
    }
}

#[test]
fn integers_of_any_width_and_sign_convert_and_others_say_what_they_are() {
    let m = open(&mut sample::writer());
    let meta = &m.meta;
    assert_eq!(meta.usize("a.u8").unwrap(), 200);
    assert_eq!(meta.u32("a.u16").unwrap(), 60000);
    assert_eq!(meta.usize("a.u64").unwrap(), usize::MAX);
    assert_eq!(meta.u32("a.true").unwrap(), 1);
    assert!(meta.bool("a.true").unwrap() && !meta.bool("a.false").unwrap());
    assert_eq!(meta.f32("a.f32").unwrap(), 0.1);
    assert_eq!(meta.f32("a.f64").unwrap(), 0.1);
    assert_eq!(meta.f32("a.u8").unwrap(), 200.0);
    assert_eq!(meta.str("a.str").unwrap(), "größer ☃");
    assert_eq!(meta.usizes("r.u32").unwrap(), [7, 8, 9]);
    assert_eq!(meta.i32s("r.i64").err().map(|e| e.to_string().contains("element 0")), Some(true));
    assert_eq!(meta.i32s("r.i32").unwrap(), [-7, 8]);
    assert_eq!(meta.f32s("r.f32").unwrap(), [1.5, 0.0]);
    assert_eq!(meta.bools("r.bool").unwrap(), [true, false, true]);
    assert_eq!(meta.usizes("r.bool").unwrap(), [1, 0, 1]);
    assert_eq!(meta.strs("r.str").unwrap()[2], "Ġthe");
    assert!(meta.strs("r.empty").unwrap().is_empty());

    assert_eq!(meta.opt_usize("a.absent").unwrap(), None);
    assert_eq!(meta.opt_strs("a.absent").unwrap(), None);
    must_say(meta.usize("a.absent"), &["good.gguf", "\"a.absent\"", "missing"]);
    must_say(meta.usize("a.i8"), &["good.gguf", "\"a.i8\"", "the i8 -100", "whole number from 0"]);
    must_say(meta.u32("a.u64"), &["\"a.u64\"", "u64 18446744073709551615", "0 to 4294967295"]);
    must_say(meta.opt_usize("a.str"), &["\"a.str\"", "the string \"größer ☃\"", "whole number"]);
    must_say(meta.bool("a.u8"), &["\"a.u8\"", "u8 200", "a bool"]);
    must_say(meta.f32("a.true"), &["\"a.true\"", "bool true", "a number"]);
    must_say(meta.opt_bool("r.bool"), &["array of 3 bool", "a bool"]);
    must_say(meta.str("a.u8"), &["u8 200", "a string"]);
    must_say(meta.strs("a.str"), &["the string", "an array of str"]);
    must_say(meta.strs("r.u8"), &["an array of 2 u8", "an array of str"]);
    must_say(meta.usizes("r.i32"), &["array of 2 i32 with element 0 the i32 -7", "whole number from 0"]);
    must_say(meta.usizes("a.u8"), &["u8 200", "an array"]);
    must_say(meta.f32s("r.nested"), &["array of 3 array"]);
}

#[test]
fn a_value_for_all_layers_may_be_one_number_or_one_per_layer() {
    let mut w = Writer::new();
    w.set("one", 4u32).set("many", vec![4u32, 0, 2]).set("text", "x");
    let m = open(&mut w);
    assert_eq!(m.meta.each::<usize>("one", 3).unwrap().unwrap(), [4, 4, 4]);
    assert_eq!(m.meta.each::<usize>("many", 3).unwrap().unwrap(), [4, 0, 2]);
    assert_eq!(m.meta.each::<usize>("none", 3).unwrap(), None);
    must_say(m.meta.each::<usize>("many", 4), &["good.gguf", "\"many\"", "array of 3", "one value or 4"]);
    must_say(m.meta.each::<usize>("text", 4), &["\"text\"", "the string \"x\""]);
}

#[test]
#[cfg(unix)] // elsewhere a file of this size is not sparse by itself
fn a_200_gb_model_opens_as_fast_as_a_small_one_with_the_same_header() {
    let words = |n: usize| (0..n).map(|i| format!("Ġword{i}")).collect::<Vec<_>>();
    let dir = folder("large");
    let open = |name: &str, n: usize| {
        let mut w = Writer::new();
        w.set("tokenizer.ggml.tokens", words(150_000));
        w.set("tokenizer.ggml.scores", vec![0.0f32; 150_000]);
        w.set("tokenizer.ggml.token_type", vec![1i32; 150_000]);
        w.set("tokenizer.ggml.merges", words(150_000));
        for l in 0..125 {
            for part in ["gate", "up", "down"] {
                w.add_hole(&format!("blk.{l}.ffn_{part}_exps.weight"), &[n, 2048, 2048], TensorType::I8).unwrap();
            }
        }
        let path = dir.join(name);
        w.write(&path).unwrap();
        let times = (0..5).map(|_| {
            let start = std::time::Instant::now();
            assert_eq!(Gguf::open(&path).unwrap().tensors.len(), 375);
            start.elapsed()
        });
        (w.bytes(), times.min().unwrap())
    };
    let (small, quick) = open("small.gguf", 1);
    let (large, time) = open("large.gguf", 128);
    assert!(large > 200_000_000_000 && small < 2_000_000_000);
    std::fs::remove_dir_all(&dir).unwrap();
    // Any work per byte of data would be a factor of 128; 3 leaves room for a busy machine.
    assert!(time < quick * 3, "{time:?} against {quick:?}");
}

#[test]
fn values_describe_themselves_shortly() {
    assert_eq!(Value::from("x".repeat(50).as_str()).describe(), format!("the string {:?}..", "x".repeat(40)));
    assert_eq!(Value::from(vec![Array::U8(vec![])]).describe(), "an array of 1 array");
}
