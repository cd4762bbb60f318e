//! Bad files: one test per kind, each holding the error to the words that help.

use crate::{folder, must_say, sample};
use std::fs;
use std::path::Path;
use tandem::gguf::{Gguf, Header, parse, parse_beginning};

/// A file built byte by byte, so that it can be wrong.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }
    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }
    fn u32(self, v: u32) -> Raw {
        self.bytes(&v.to_le_bytes())
    }
    fn u64(self, v: u64) -> Raw {
        self.bytes(&v.to_le_bytes())
    }
    fn str(self, s: impl AsRef<[u8]>) -> Raw {
        self.u64(s.as_ref().len() as u64).bytes(s.as_ref())
    }
    /// A tensor, its dimensions as the file has them: row length first.
    fn tensor(self, name: impl AsRef<[u8]>, dims: &[u64], ty: u32, offset: u64) -> Raw {
        let start = self.str(name).u32(dims.len() as u32);
        dims.iter().fold(start, |raw, &d| raw.u64(d)).u32(ty).u64(offset)
    }
    /// Pads to 32 and adds data.
    fn data(mut self, n: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self
    }
    fn parse(&self) -> anyhow::Result<Header> {
        parse(&self.0, self.0.len() as u64, Path::new("bad.gguf"))
    }
    #[track_caller]
    fn must_say(&self, parts: &[&str]) {
        must_say(self.parse(), &[&["bad.gguf"], parts].concat());
    }
}

/// A file with one key, whose value follows.
fn key(kind: u32) -> Raw {
    Raw::new(3, 0, 1).str("some.key").u32(kind)
}

/// A file with one tensor.
fn tensor(dims: &[u64], ty: u32, offset: u64) -> Raw {
    Raw::new(3, 1, 0).tensor("some.weight", dims, ty, offset).data(4096)
}

const F32: u32 = 0;
const Q8_0: u32 = 8;
const I8: u32 = 24;

#[test]
fn a_path_that_is_no_file_is_refused_by_name() {
    let dir = folder("no_file");
    must_say(Gguf::open(&dir.join("absent.gguf")), &["absent.gguf", "cannot open", "No such file"]);
    must_say(Gguf::open(&dir), &["no_file", "not a file", ".gguf"]);
    fs::write(dir.join("empty.gguf"), b"").unwrap();
    must_say(Gguf::open(&dir.join("empty.gguf")), &["empty.gguf", "is empty", "fetch"]);
    #[cfg(unix)]
    must_say(Gguf::open(Path::new("/dev/zero")), &["/dev/zero", "not a file"]);
}

#[test]
fn a_file_shorter_than_a_header_is_refused() {
    Raw(b"GG".to_vec()).must_say(&["2 bytes", "at least 24", "fetch it again"]);
    Raw(b"GGUF\x03\0\0\0\x01\0".to_vec()).must_say(&["counts", "8 bytes are expected at byte 8", "the file has 10"]);
}

#[test]
fn another_format_is_refused_with_a_guess_at_what_it_is() {
    for (start, guess) in [
        (&b"tjgg\x01\0\0\0"[..], "before GGUF"),
        (b"lmgg\x01\0\0\0", "before GGUF"),
        (b"PK\x03\x04\0\0\0\0", "PyTorch"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x60\x04\0\0\0\0\0\0{\"a\":1}", "safetensors"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\0\0\0\0\0\0\0\0\0", "unfinished download"),
        (b"\x7fELF\x02\x01\x01\0", "no GGUF file"),
    ] {
        Raw(start.to_vec()).must_say(&["starts with", "expected \"GGUF\"", guess]);
    }
    Raw(b"PK\x03\x04\0\0\0\0".to_vec()).must_say(&["\"PK\\x03\\x04\""]);
}

#[test]
fn a_big_endian_file_is_called_that() {
    Raw(b"GGUF\0\0\0\x03".to_vec()).must_say(&["big-endian", "little-endian", "convert"]);
    Raw(b"FUGG\0\0\0\x03".to_vec()).must_say(&["big-endian"]);
}

#[test]
fn versions_other_than_2_and_3_are_refused_by_number() {
    Raw::new(1, 0, 0).must_say(&["version 1", "expected 2 or 3", "convert"]);
    Raw::new(4, 0, 0).must_say(&["version 4", "expected 2 or 3", "newer than this program"]);
    Raw::new(0, 0, 0).must_say(&["version 0"]);
    assert!(Raw::new(2, 0, 0).parse().is_ok());
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused_before_anything_is_reserved() {
    Raw::new(3, 0, u64::MAX).must_say(&[
        "counts 18446744073709551615 metadata keys",
        "24 bytes hold 0",
        "fetch it again",
    ]);
    Raw::new(3, 1 << 40, 0).data(1000).must_say(&["counts 1099511627776 tensors", "1032 bytes hold 40"]);
}

#[test]
fn lengths_that_the_file_cannot_hold_are_refused_and_named() {
    Raw::new(3, 0, 1).u64(1 << 60).data(64).must_say(&["name of metadata key 0 of 1", "1152921504606846976 bytes"]);
    key(8).u64(u64::MAX).data(64).must_say(&["\"some.key\"", "18446744073709551615 bytes are expected at byte 52"]);
    key(9).u32(4).u64(u64::MAX).data(64).must_say(&[
        "\"some.key\"",
        "array of 18446744073709551615 u32",
        "does not fit",
    ]);
    key(9).u32(8).u64(1 << 50).data(64).must_say(&["\"some.key\"", "array of 1125899906842624 str", "does not fit"]);
    key(9).u32(9).u64(1 << 50).data(64).must_say(&["\"some.key\"", "array of 1125899906842624 array"]);
    key(9).u32(8).u64(2).str("ok").u64(999).data(8).must_say(&["\"some.key\"", "element 1 of 2", "999 bytes"]);
    Raw::new(3, 1, 0).u64(1 << 60).data(64).must_say(&["name of tensor 0 of 1", "1152921504606846976 bytes"]);
    Raw::new(3, 0, 1).str("n".repeat(70_000)).u32(0).data(9).must_say(&["key 0 of 1", "70000 bytes", "at most 65535"]);
}

#[test]
fn every_cut_of_a_good_file_is_an_error() {
    let bytes = sample::writer().to_bytes().unwrap();
    let good = parse(&bytes, bytes.len() as u64, Path::new("x")).unwrap();
    let needed = good.tensors.iter().map(|t| t.range().end).max().unwrap();
    for n in 0..needed {
        let e = parse(&bytes[..n], n as u64, Path::new("bad.gguf")).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains("bad.gguf") && e.contains("fetch it again"), "cut to {n}: {e}");
    }
}

#[test]
fn a_beginning_is_enough_from_the_headers_last_byte_on_and_a_bad_one_is_refused_at_once() {
    let bytes = sample::writer().to_bytes().unwrap();
    let good = parse(&bytes, bytes.len() as u64, Path::new("x")).unwrap();
    let beginning = |bytes: &[u8], n: usize| parse_beginning(&bytes[..n], bytes.len() as u64, Path::new("bad.gguf"));
    let enough = (0..bytes.len()).find(|&n| beginning(&bytes, n).unwrap().is_some()).unwrap();
    assert!((good.data as usize - 31..=good.data as usize).contains(&enough), "{enough}, data at {}", good.data);
    assert!(beginning(&bytes, enough + 9).unwrap().unwrap().tensors.len() == good.tensors.len());
    let mut bad = bytes.clone();
    bad[0] = b'<';
    must_say(beginning(&bad, 24), &["bad.gguf", "expected \"GGUF\""]);
    bad = bytes.clone();
    bad[24..32].copy_from_slice(&u64::MAX.to_le_bytes()); // the length of the first key's name
    assert!(beginning(&bad, 64).is_err(), "no more bytes can mend this");
}

#[test]
fn a_tensor_whose_data_the_download_lacks_is_named() {
    let mut bytes = sample::writer().to_bytes().unwrap();
    bytes.truncate(bytes.len() - 100);
    must_say(
        Gguf::from_bytes(bytes, Path::new("bad.gguf")),
        &["bad.gguf", "tensor \"t.", "end after the file's", "fetch"],
    );
}

#[test]
fn unknown_kinds_of_value_are_refused() {
    key(13).data(64).must_say(&["\"some.key\"", "kind of value is 13", "0 to 12"]);
    key(9).u32(77).u64(0).data(64).must_say(&["\"some.key\"", "kind of value is 77"]);
}

#[test]
fn arrays_nest_eight_deep_and_no_deeper() {
    let nest = |depth| (1..depth).fold(key(9), |raw, _| raw.u32(9).u64(1)).u32(0).u64(1).bytes(&[7]);
    assert!(nest(8).parse().is_ok());
    nest(9).must_say(&["\"some.key\"", "nested more than 8 deep"]);
    nest(100_000).must_say(&["nested more than 8 deep"]);
}

#[test]
fn a_bool_is_0_or_1() {
    key(7).bytes(&[2]).must_say(&["\"some.key\"", "bool is the byte 2", "expected 0 or 1"]);
    key(9).u32(7).u64(2).bytes(&[1, 255]).must_say(&["\"some.key\"", "bool is the byte 255"]);
}

#[test]
fn names_are_unique_not_empty_and_utf_8() {
    let twice = Raw::new(3, 0, 2).str("some.key").u32(0).bytes(&[1]).str("some.key").u32(0).bytes(&[1]);
    twice.must_say(&["metadata key \"some.key\"", "there twice"]);
    Raw::new(3, 0, 1).str("").u32(0).bytes(&[0; 9]).must_say(&["name of metadata key 0 of 1", "empty"]);
    Raw::new(3, 0, 1).str(b"a\xffb").u32(0).bytes(&[0]).must_say(&["metadata key 0", "not UTF-8", "a\\xffb"]);

    let twice = Raw::new(3, 2, 0).tensor("some.weight", &[8], F32, 0).tensor("some.weight", &[8], F32, 32).data(64);
    twice.must_say(&["tensor \"some.weight\"", "there twice"]);
    Raw::new(3, 1, 0).tensor("", &[8], F32, 0).data(64).must_say(&["name of tensor 0 of 1", "empty"]);
    Raw::new(3, 1, 0).tensor(b"\xc3", &[8], F32, 0).data(64).must_say(&["name of tensor 0", "not UTF-8", "\\xc3"]);
}

#[test]
fn a_name_cannot_flood_or_fool_the_terminal() {
    Raw::new(3, 0, 1).str("\x1b[2Jkey").u32(99).data(9).must_say(&["\\u{1b}[2Jkey"]);
    Raw::new(3, 0, 1).str("n".repeat(60_000)).u32(99).data(9).must_say(&["nnnn\"..", "kind of value is 99"]);
}

#[test]
fn text_that_is_not_utf_8_is_repaired_and_noted() {
    let raw = key(8).str(b"caf\xe9");
    let meta = raw.parse().unwrap().meta;
    assert_eq!(meta.str("some.key").unwrap(), "caf\u{fffd}");
    assert_eq!(meta.repaired(), ["some.key"]);
    let meta = key(9).u32(8).u64(2).str("fine").str(b"\xff").parse().unwrap().meta;
    assert_eq!(meta.strs("some.key").unwrap(), ["fine", "\u{fffd}"]);
    assert_eq!(meta.repaired(), ["some.key"]);
}

#[test]
fn an_alignment_is_a_power_of_two_from_8_up() {
    let alignment = |v| Raw::new(3, 0, 1).str("general.alignment").u32(4).u32(v);
    for bad in [0, 4, 24, 33] {
        alignment(bad).must_say(&["\"general.alignment\"", &format!("is {bad},"), "power of two of at least 8"]);
    }
    assert_eq!(alignment(1 << 31).parse().unwrap().alignment, 1 << 31);
    Raw::new(3, 0, 1).str("general.alignment").u32(8).str("32").must_say(&["the string \"32\"", "whole number"]);
    let far = Raw::new(3, 1, 1).str("general.alignment").u32(4).u32(1 << 31).tensor("w", &[8], F32, 0).data(4096);
    far.must_say(&["tensor \"w\"", "from byte 2147483648 on", "end after the file's"]);
}

#[test]
fn a_tensor_has_up_to_four_dimensions_and_none_of_them_is_0() {
    assert_eq!(tensor(&[], F32, 0).parse().unwrap().tensors[0].shape, [1]);
    assert!(tensor(&[2, 2, 2, 2], F32, 0).parse().is_ok());
    tensor(&[1, 1, 1, 1, 1], F32, 0).must_say(&["\"some.weight\"", "5 dimensions", "1 to 4"]);
    Raw::new(3, 1, 0).str("some.weight").u32(u32::MAX).data(64).must_say(&["4294967295 dimensions"]);
    tensor(&[8, 0], F32, 0).must_say(&["\"some.weight\"", "dimension 0 of its shape [0, 8] is 0"]);
    tensor(&[0], Q8_0, 0).must_say(&["\"some.weight\"", "is 0"]);
}

#[test]
fn dimensions_that_overflow_are_refused() {
    for dims in [&[1 << 32, 1 << 32][..], &[u64::MAX], &[1 << 62, 2], &[1 << 16, 1 << 16, 1 << 16, 1 << 16], &[1 << 61]]
    {
        tensor(dims, F32, 0).must_say(&["\"some.weight\"", "its shape", "more bytes than any file"]);
    }
    // A product that wraps to something small must not pass either.
    tensor(&[1 << 63, 2, 8], I8, 0).must_say(&["more bytes than any file"]);
}

#[test]
fn a_row_is_a_whole_number_of_blocks() {
    assert!(tensor(&[64, 2], Q8_0, 0).parse().is_ok());
    tensor(&[48, 2], Q8_0, 0).must_say(&["\"some.weight\"", "rows have 48 weights", "Q8_0", "blocks of 32"]);
}

#[test]
fn unknown_and_removed_types_are_told_apart() {
    tensor(&[32], 99, 0).must_say(&["\"some.weight\"", "type 99 is unknown", "newer than this program"]);
    tensor(&[32], u32::MAX, 0).must_say(&["type 4294967295 is unknown"]);
    tensor(&[32], 4, 0).must_say(&["\"some.weight\"", "Q4_2 (4)", "removed", "quantize"]);
    tensor(&[32], 31, 0).must_say(&["Q4_0_4_4 (31)", "removed", "plain type"]);
    tensor(&[32], 9, 0).must_say(&["Q8_1 (9)", "activations"]);
}

#[test]
fn data_outside_the_file_or_off_the_alignment_is_refused() {
    assert!(tensor(&[1024], F32, 0).parse().is_ok());
    tensor(&[1025], F32, 0).must_say(&["\"some.weight\"", "4100 bytes", "end after the file's", "fetch it again"]);
    tensor(&[8], F32, 4096).must_say(&["\"some.weight\"", "32 bytes", "end after the file's"]);
    tensor(&[8], F32, u64::MAX - 31).must_say(&["\"some.weight\"", "end after the file's"]);
    tensor(&[8], F32, 1 << 63).must_say(&["\"some.weight\"", "end after the file's"]);
    tensor(&[8], F32, 4).must_say(&["\"some.weight\"", "offset 4", "alignment 32"]);
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let two = |at| Raw::new(3, 2, 0).tensor("late", &[16], F32, at).tensor("early", &[16], F32, 0).data(4096);
    assert!(two(64).parse().is_ok());
    assert!(two(128).parse().is_ok(), "gaps are legal");
    two(32).must_say(&["\"early\" (bytes 128..192)", "\"late\" (bytes 160..224)", "overlap"]);
    two(0).must_say(&["\"early\"", "\"late\"", "overlap"]);
}

#[test]
fn a_header_that_never_ends_is_given_up() {
    // A file of a terabyte could hold this string; the header stops being read long before.
    let raw = key(8).u64(1 << 39).data(64);
    must_say(
        parse(&raw.0, 1 << 40, Path::new("bad.gguf")),
        &["bad.gguf", "\"some.key\"", "lead past the 128 that a header"],
    );
}
