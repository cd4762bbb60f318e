//! Opening GGUF files: good ones, and every kind of bad one.

use std::path::{Path, PathBuf};
use tandem::gguf::Gguf;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[test]
fn a_real_model_opens_with_its_metadata_and_every_tensor() {
    let m = Gguf::open(&data("models/qwen3moe.gguf")).unwrap();
    assert_eq!((m.version, m.meta.len(), m.tensors.len()), (3, 29, 39));
    assert_eq!(m.meta.str("general.architecture").unwrap(), "qwen3moe");
    assert_eq!(m.meta.usize("qwen3moe.expert_count").unwrap(), 8);
    let t = m.tensor("blk.1.ffn_gate_exps.weight").unwrap();
    assert_eq!((&t.shape[..], t.ty.name()), (&[8, 32, 64][..], "F32"));
    assert_eq!(m.data(t).len(), 8 * 32 * 64 * 4);
    assert!(m.tensors.iter().all(|t| m.data(t).len() == t.bytes && m.data(t).as_ptr().addr() % 32 == 0));
}
