//! What the builder promises to whoever writes a family, on tapes of the reference models and on a family made up here.

mod common;

use std::collections::HashSet;

use common::{exact, reference, references};
use tandem::gguf::Gguf;
use tandem::models;
use tandem::ops::{Attend, Kv, Pairs};
use tandem::plan::{self, Ask, Place, Plan};
use tandem::session::{self, Session, Want};
use tandem::tape::{Builder, Role, Settings, Slot, Tape};

#[test]
fn labels_are_unique_and_steps_know_their_layer_and_part() {
    for r in references() {
        let tape = session::tape(&Gguf::open(&r.gguf).unwrap(), &exact()).unwrap();
        let labels: HashSet<&str> = tape.steps.iter().map(|s| s.label.as_str()).collect();
        assert_eq!(labels.len(), tape.steps.len(), "{}", r.name);
        for s in &tape.steps {
            let outside = matches!(s.role, Role::Embedding | Role::Head);
            let for_all = s.role == Role::Mixing && s.layer.is_none(); // what every layer reads
            let fits = s.layer.is_none() == outside || for_all;
            assert!(fits, "{} {}: {:?} in layer {:?}", r.name, s.label, s.role, s.layer);
            if s.label.ends_with(".output_rows") {
                continue; // named after what made the value, and part of the layer that reads it
            }
            let layer =
                s.label.strip_prefix("blk.").and_then(|rest| rest.split('.').next()).map(|n| n.parse().unwrap());
            // The argmax and the head's cuts come after the layers.
            assert!(layer == s.layer || s.role == Role::Head, "{} {}: layer {:?}", r.name, s.label, s.layer);
        }
        for role in [Role::Embedding, Role::Attention, Role::Mixing, Role::Head] {
            assert!(tape.steps.iter().any(|s| s.role == role), "{}: no step for {role:?}", r.name);
        }
    }
}

/// A family of attention alone, over qwen3moe's tensors: every layer after the first attends to the first one's keys and
/// values, read from the first one's cache or, with `again`, from a cache of its own into which the same are stored.
fn shared_cache(b: &Builder, again: bool) -> anyhow::Result<Slot> {
    let eps = b.eps()?;
    let mut first: Option<(Slot, Slot, Kv)> = None;
    b.ignore("blk.", "no part of this family");
    let mut x = b.embed()?;
    for l in b.layers()? {
        let b = &l.scope(b);
        let ((heads, kv_heads), n_embd) = (b.heads()?, b.width(x));
        let dim = b.head_dim(heads, n_embd)?;
        let rope = b.rope_from_keys(dim, Pairs::Halves)?;
        let h = b.norm(x, "attn_norm", eps)?;
        let q = b.rope(b.linear(h, "attn_q", heads * dim)?, dim, &rope)?;
        let kv = match first {
            None => {
                let k = b.rope(b.linear(h, "attn_k", kv_heads * dim)?, dim, &rope)?;
                let v = b.linear(h, "attn_v", kv_heads * dim)?;
                let kv = b.cache(k, v, kv_heads, None)?;
                first = Some((k, v, kv));
                kv
            }
            Some((k, v, _)) if again => b.cache(k, v, kv_heads, None)?,
            Some((.., kv)) => kv,
        };
        x = b.add(x, b.linear(b.attend(q, &kv, Attend::causal(heads))?, "attn_output", n_embd)?);
    }
    b.head(b.norm(x, "output_norm", eps)?)
}

#[test]
fn a_layer_reads_another_layers_cache_wherever_its_steps_are_put() {
    let r = reference("qwen3moe").unwrap();
    let o = exact();
    let settings = Settings { n_ctx: 512, type_k: o.type_k, type_v: o.type_v, heads: false };
    let tape = |again: bool| -> Tape {
        let gguf = Gguf::open(&r.gguf).unwrap();
        models::record(&gguf, "qwen3moe", settings.clone(), |b| shared_cache(b, again)).unwrap()
    };
    let logits = |tape: Tape, place: &dyn Fn(Option<usize>) -> Place| -> Vec<u32> {
        let plan = Plan::new(&tape, &|_, step| place(step.layer));
        let gguf = Gguf::open(&r.gguf).unwrap();
        let mut s = Session::planned(gguf, tape, plan, &o, &[]).unwrap();
        // A prompt in two pieces and single tokens: what is read was stored by earlier walks, too.
        let (a, b) = r.prompt.split_at(r.prompt.len() / 2);
        let mut all = Vec::new();
        for part in [a, &b[..b.len() - 2], &b[b.len() - 2..b.len() - 1], &b[b.len() - 1..]] {
            all.extend(s.feed(0, part, Want::All).unwrap().into_logits().iter().map(|v| v.to_bits()));
        }
        all
    };
    let (one, own) = (tape(false), tape(true));
    assert!(one.states.len() < own.states.len(), "the first layer's cache is the only one");
    let want = logits(own, &|_| Place::Cpu);
    assert_eq!(logits(one.clone(), &|_| Place::Cpu), want);
    let later = |layer: Option<usize>| if layer >= Some(1) { Place::Twin } else { Place::Cpu };
    assert_eq!(logits(one.clone(), &later), want);
    let first = |layer: Option<usize>| if layer == Some(0) { Place::Twin } else { Place::Cpu };
    assert_eq!(logits(one, &first), want);
}

#[test]
fn a_rule_for_a_weight_of_attention_moves_its_cache_with_it() {
    let r = reference("gpt-oss").unwrap();
    let gguf = Gguf::open(&r.gguf).unwrap();
    let mut ask = Ask::default();
    ask.rules.add("blk.1.attn_sinks=TWIN").unwrap();
    let (tape, shape) = (session::tape(&gguf, &exact()).unwrap(), session::shape(&gguf, &exact()).unwrap());
    let fit = plan::fit(tape, &ask, &[], shape).unwrap();
    let moved = fit.tape.steps.iter().zip(&fit.plan.places).filter(|(_, place)| **place == Place::Twin);
    assert_eq!(moved.map(|(s, _)| s.label.as_str()).collect::<Vec<_>>(), ["blk.1.attn_cache", "blk.1.attn"]);
}
