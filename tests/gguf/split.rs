//! Split models: opened from any file, and refused with the file's name when the parts do not fit together.

use crate::{folder, must_say, sample};
use std::fs;
use std::path::{Path, PathBuf};
use tandem::gguf::{Gguf, Load, TensorType, Value, Writer, shard_name, shard_of};

/// The sample as three files.
fn three(test: &str) -> Vec<PathBuf> {
    sample::writer().write_split(&folder(test).join("m.gguf"), 3).unwrap()
}

/// Writes one file by hand, with these split keys.
fn part(path: &Path, tensors: &[&str], keys: &[(&str, usize)]) {
    let mut w = Writer::new();
    for (key, value) in keys {
        w.set(key, *value as u64);
    }
    for name in tensors {
        w.add_hole(name, &[8], TensorType::I8).unwrap();
    }
    w.write(path).unwrap();
}

#[test]
fn a_split_model_opens_from_any_of_its_files_and_equals_the_whole() {
    let whole = Gguf::from_bytes(sample::writer().to_bytes().unwrap(), Path::new("whole")).unwrap();
    let paths = three("any");
    assert_eq!(paths[1].file_name().unwrap(), "m-00002-of-00003.gguf");
    for given in &paths {
        for mmap in [true, false] {
            let m = Gguf::open_with(given, &Load { mmap, mlock: false }).unwrap();
            assert_eq!(&m.path, given);
            assert!(m.shards().eq(paths.iter().map(|p| p.as_path())));
            assert_eq!(m.meta.str("general.architecture").unwrap(), "sample", "the first file's metadata");
            assert_eq!(m.meta.get("split.count"), Some(&Value::U16(3)));
            assert_eq!((m.tensors.len(), m.bytes()), (whole.tensors.len(), whole.bytes()));
            for (a, b) in whole.tensors.iter().zip(&m.tensors) {
                assert_eq!((&a.name, &a.shape, a.ty, whole.data(a)), (&b.name, &b.shape, b.ty, m.data(b)));
            }
            assert_eq!(m.tensors.last().unwrap().shard, 2);
        }
    }
}

#[test]
fn missing_files_are_named() {
    let paths = three("missing");
    fs::remove_file(&paths[1]).unwrap();
    must_say(Gguf::open(&paths[2]), &["one of 3 files", "m-00002-of-00003.gguf is missing", "one folder"]);
    fs::remove_file(&paths[0]).unwrap();
    must_say(Gguf::open(&paths[2]), &["m-00001-of-00003.gguf and 1 more is missing"]);
}

#[test]
fn a_renamed_file_is_told_its_name() {
    let paths = three("renamed");
    let other = paths[1].with_file_name("model.gguf");
    fs::rename(&paths[1], &other).unwrap();
    must_say(Gguf::open(&other), &["model.gguf", "file 2 of 3", "NAME-00002-of-00003.gguf"]);
    // Under another file's name it is found out from either side.
    fs::rename(&other, &paths[1]).unwrap();
    fs::copy(&paths[1], &paths[2]).unwrap();
    must_say(Gguf::open(&paths[2]), &["m-00003-of-00003.gguf", "file 2 of 3"]);
    must_say(Gguf::open(&paths[0]), &["m-00003-of-00003.gguf", "\"split.no\" is 1, expected 2"]);
}

#[test]
fn files_that_cat_joined_are_told_from_a_renamed_one() {
    let paths = three("joined");
    let all: Vec<u8> = paths.iter().flat_map(|p| fs::read(p).unwrap()).collect();
    for name in ["whole.gguf", "m-00001-of-00003.gguf"] {
        let joined = paths[0].with_file_name(name);
        fs::write(&joined, &all).unwrap();
        must_say(Gguf::open(&joined), &[name, "joined into one", "keep the 3 files", "llama-gguf-split --merge"]);
    }
}

#[test]
fn files_that_disagree_are_not_one_model() {
    let dir = folder("disagree");
    let (a, b) = (dir.join("m-00001-of-00002.gguf"), dir.join("m-00002-of-00002.gguf"));
    let split = |no, count, tensors| [("split.no", no), ("split.count", count), ("split.tensors.count", tensors)];

    part(&a, &["x"], &split(0, 2, 2));
    part(&b, &["y"], &split(1, 2, 2));
    assert_eq!(Gguf::open(&a).unwrap().tensors.len(), 2);

    part(&b, &["y"], &split(1, 5, 2));
    must_say(Gguf::open(&a), &["m-00002-of-00002.gguf", "\"split.count\" is 5, expected 2", "not of one model"]);
    part(&b, &["y", "z"], &split(1, 2, 3));
    must_say(Gguf::open(&b), &["m-00001-of-00002.gguf", "\"split.tensors.count\" is 2, expected 3"]);
    part(&b, &["x"], &split(1, 2, 2));
    must_say(Gguf::open(&a), &["m-00002-of-00002.gguf", "tensor \"x\" is also in", "m-00001-of-00002.gguf"]);
    part(&b, &["y"], &[]);
    must_say(Gguf::open(&a), &["m-00002-of-00002.gguf", "\"split.no\" is missing"]);
    fs::write(&b, b"GGUF\x03\0\0\0").unwrap();
    must_say(Gguf::open(&a), &["m-00002-of-00002.gguf", "fetch it again"]);
}

#[test]
fn absurd_split_keys_are_refused() {
    let dir = folder("absurd");
    let path = dir.join("m-00001-of-00002.gguf");
    part(&path, &["x"], &[("split.no", 0), ("split.count", usize::MAX)]);
    must_say(Gguf::open(&path), &["\"split.count\" is 18446744073709551615", "at most 65535"]);
    part(&path, &["x"], &[("split.no", 7), ("split.count", 2)]);
    must_say(Gguf::open(&path), &["file 8 of 2"]);
    part(&path, &["x"], &[("split.count", 2)]);
    must_say(Gguf::open(&path), &["\"split.no\" is missing"]);
    part(&path, &["x"], &[("split.no", 0), ("split.count", 1)]);
    assert!(Gguf::open(&path).is_ok(), "one file of one is a whole model");
}

#[test]
fn file_names_of_split_models_are_read_as_they_are_written() {
    assert_eq!(shard_of("a-b-00002-of-00012.gguf"), Some(("a-b", 1, 12)));
    assert_eq!(shard_name("a-b", 1, 12), "a-b-00002-of-00012.gguf");
    assert_eq!(shard_of(&shard_name("x", 122_999, 123_456)), Some(("x", 122_999, 123_456)));
    for bad in
        ["m.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m-2-of-3.gguf", "m-00001-of-00002", "-of-.gguf"]
    {
        assert_eq!(shard_of(bad), None, "{bad}");
    }
}
