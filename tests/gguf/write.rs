//! The writer: what it refuses, and what it leaves on disk.

use crate::{data, folder, must_say, sample};
use std::fs;
use std::io;
use tandem::gguf::{Gguf, HOLES, TensorType, Writer};

#[test]
fn a_file_on_disk_and_one_in_memory_are_the_same_bytes() {
    let path = folder("same").join("m.gguf");
    sample::writer().write(&path).unwrap();
    assert!(fs::read(&path).unwrap() == sample::writer().to_bytes().unwrap());
}

#[test]
fn a_tensor_must_get_exactly_its_bytes() {
    let path = folder("exact").join("m.gguf");
    fs::write(&path, b"what was there before").unwrap();
    for n in [0usize, 7, 9, 5000] {
        let mut w = Writer::new();
        w.add_tensor("w", &[8], TensorType::I8, |out| out.write_all(&vec![0; n])).unwrap();
        must_say(w.to_bytes(), &["\"w\"", &format!("{n} bytes were given"), "expected 8"]);
        must_say(w.write(&path), &["m.gguf", "\"w\"", &format!("{n} bytes were given"), "expected 8"]);
    }
    let mut w = Writer::new();
    w.add_tensor("w", &[8], TensorType::I8, |_| Err(io::Error::other("no more"))).unwrap();
    must_say(w.write(&path), &["m.gguf", "no more"]);
    assert_eq!(fs::read(&path).unwrap(), b"what was there before", "a failed write leaves the old file");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "and nothing half-written");
}

#[test]
fn tensors_that_no_reader_would_take_are_refused() {
    let mut w = Writer::new();
    w.add_hole("w", &[8], TensorType::I8).unwrap();
    must_say(w.add_hole("w", &[8], TensorType::I8).map(|_| ()), &["\"w\"", "twice"]);
    must_say(w.add_hole("", &[8], TensorType::I8).map(|_| ()), &["name"]);
    must_say(w.add_hole("v", &[], TensorType::I8).map(|_| ()), &["\"v\"", "0 dimensions"]);
    must_say(w.add_hole("v", &[1; 5], TensorType::I8).map(|_| ()), &["\"v\"", "5 dimensions"]);
    must_say(w.add_hole("v", &[0, 8], TensorType::I8).map(|_| ()), &["\"v\"", "is 0"]);
    must_say(w.add_hole("v", &[8, 33], TensorType::by_id(8).unwrap()).map(|_| ()), &["\"v\"", "blocks of 32"]);
    must_say(w.set("general.alignment", 24u32).to_bytes(), &["general.alignment", "u32 24"]);
    must_say(w.set("general.alignment", 64u64).to_bytes(), &["general.alignment", "expected a u32"]);
}

#[test]
fn a_hole_takes_no_space_and_reads_as_zeros() {
    let path = folder("hole").join("m.gguf");
    let mut w = Writer::new();
    w.add_tensor("before", &[3], TensorType::I8, |out| out.write_all(b"abc")).unwrap();
    w.add_hole("hole", &[3 << 10, 1 << 20], TensorType::I8).unwrap();
    w.add_tensor("after", &[3], TensorType::I8, |out| out.write_all(b"xyz")).unwrap();
    w.write(&path).unwrap();
    let m = Gguf::open(&path).unwrap();
    let bytes = |name: &str| m.data(m.tensor(name).unwrap());
    assert_eq!((bytes("before"), bytes("after")), (&b"abc"[..], &b"xyz"[..]));
    let hole = bytes("hole");
    assert!(hole.len() == 3 << 30 && hole[..4096].iter().chain(&hole[hole.len() - 4096..]).all(|&b| b == 0));
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::fs::MetadataExt;
        assert!(fs::metadata(&path).unwrap().st_blocks() < 2048, "it takes real disk space");
    }
    fs::remove_file(path).unwrap();
}

#[test]
fn a_split_has_as_many_files_as_asked_for_and_none_without_tensors() {
    let path = folder("cuts").join("m.gguf");
    // One giant among dwarfs, first, in the middle, last: the shares cannot be equal, yet every file gets a tensor.
    for giant in [0, 4, 8] {
        for count in 1..=9 {
            let mut w = Writer::new();
            for i in 0..9 {
                let n = if i == giant { 10_000 } else { 10 };
                w.add_hole(&format!("t{i}"), &[n], TensorType::I8).unwrap();
            }
            let paths = w.write_split(&path, count).unwrap();
            assert_eq!(paths.len(), count);
            let m = Gguf::open(&paths[0]).unwrap();
            let names: Vec<_> = m.tensors.iter().map(|t| t.name.as_str()).collect();
            assert_eq!(names, ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8"], "{giant} {count}");
            assert!((0..count).all(|s| m.tensors.iter().any(|t| t.shard == s)), "{giant} {count}");
        }
    }
    let mut w = Writer::new();
    w.add_hole("only", &[8], TensorType::I8).unwrap();
    must_say(w.write_split(&path, 2), &["m.gguf", "1 tensors over 2 files"]);
    must_say(w.write_split(&path, 0), &["over 0 files"]);
}

#[test]
fn a_set_key_replaces_its_value_in_place() {
    let mut w = Writer::new();
    w.set("a", 1u32).set("b", 2u32).set("a", "new");
    let m = Gguf::from_bytes(w.to_bytes().unwrap(), "x".as_ref()).unwrap();
    assert_eq!(
        m.meta.iter().map(|(k, v)| (k, v.describe())).collect::<Vec<_>>(),
        [("a", "the string \"new\"".to_string()), ("b", "the u32 2".to_string())]
    );
}

/// A writer of all that a model holds.
fn copy(m: &Gguf) -> Writer<'_> {
    let mut w = Writer::new();
    for (key, value) in m.meta.iter() {
        w.set(key, value.clone());
    }
    for t in &m.tensors {
        w.add_tensor(&t.name, &t.shape, t.ty, |out| out.write_all(m.data(t))).unwrap();
    }
    w
}

#[test]
fn a_file_of_another_writer_is_copied_byte_for_byte() {
    let path = data("models/qwen3moe.gguf");
    let m = Gguf::open(&path).unwrap();
    assert!(copy(&m).to_bytes().unwrap() == fs::read(&path).unwrap());
}

#[test]
#[cfg(target_os = "linux")] // elsewhere file systems may write holes as zeros
fn holes_that_a_file_says_are_meant_are_no_unfinished_download_and_others_are() {
    let path = folder("meant").join("m.gguf");
    let check = |meant: &[&str]| {
        let mut w = Writer::new();
        w.set(HOLES, meant.iter().map(|name| name.to_string()).collect::<Vec<_>>());
        w.add_tensor("a", &[64, 4096], TensorType::I8, |out| out.write_all(&[7; 64 << 12])).unwrap();
        w.add_hole("table", &[64, 4096], TensorType::I8).unwrap();
        w.add_hole("torn", &[64, 4096], TensorType::I8).unwrap();
        w.write(&path).unwrap();
        Gguf::open(&path).unwrap().check_written()
    };
    assert!(check(&["table", "torn"]).unwrap().is_empty());
    let said = check(&["table"]).unwrap_err().to_string();
    assert!(said.contains("\"torn\"") && !said.contains("\"table\""), "{said}");
    let said = check(&[]).unwrap_err().to_string();
    assert!(said.contains("\"torn\"") && said.contains("\"table\""), "{said}");
}
