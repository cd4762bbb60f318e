//! Engram: rows of a table that n-grams of mapped tokens choose by hash, added to the residual streams before a layer. All layers
//! that have one share the list of mapped tokens; factors and sizes of the hash are each layer's own.

use anyhow::Result;

use crate::ops::Ngram;
use crate::tape::{Builder, Slot};

const LAYERS: &str = "engram.layer_ids";
const LONGEST: &str = "engram.max_ngram_size";
const PRIMES: &str = "engram.primes";
const PAD: &str = "engram.pad_id";
const MAP: &str = "engram.token_map";

/// The list of whole numbers of a key that has to be there.
fn list(b: &Builder, key: &str) -> Result<Vec<usize>> {
    b.whole_numbers(key)?.ok_or_else(|| b.bad_key(key, "missing", "a list of whole numbers"))
}

/// The layers, of a model with `n`, that rows are added before.
pub(super) fn layers(b: &Builder, n: usize) -> Result<Vec<usize>> {
    let layers = list(b, LAYERS)?;
    let (rising, within) = (layers.is_sorted_by(|a, b| a < b), layers.iter().all(|l| *l < n));
    match rising && within {
        true => Ok(layers),
        false => Err(b.bad_key(LAYERS, format!("{layers:?}"), format!("rising numbers of the {n} layers"))),
    }
}

/// The streams (T, n * n_embd) with the rows of the layer's table `engram_embd` in them, gated by each stream.
pub(super) fn add(b: &Builder, s: Slot) -> Result<Slot> {
    let (n_embd, dim, eps) = (b.count("embedding_length")?, b.count("engram.key_length")?, b.eps()?);
    let grams = b.ngram("engram_embd.weight", hash(b)?, dim)?; // (T, heads * dim)
    let both = b.linear(grams, "engram_wkv", b.width(s) + n_embd)?; // (T, (n + 1) * n_embd)
    let (key, value) = (b.columns(both, 0, b.width(s))?, b.columns(both, b.width(s), n_embd)?);
    b.add_gated([key, value, s], ["engram_k", "engram_q"], eps)
}

/// How the layer's rows are chosen.
fn hash(b: &Builder) -> Result<Ngram> {
    let layers = list(b, LAYERS)?;
    let site = layers.iter().position(|l| *l == b.layer()).expect("a layer that the list has");
    let (longest, per) = (b.count_up_to(LONGEST, 64)?, b.count_up_to("engram.head_count", 1024)?);
    if longest < 2 {
        return Err(b.bad_key(LONGEST, longest, "2 or more"));
    }
    let own = |key: &str, n: usize| {
        let all = list(b, key)?;
        match all.len() == n * layers.len() {
            true => Ok(all[site * n..(site + 1) * n].to_vec()),
            false => Err(b.bad_key(key, format!("{} numbers", all.len()), n * layers.len())),
        }
    };
    let n = (longest - 1) * per;
    let (factors, primes, offsets) = (own("engram.multipliers", longest)?, own(PRIMES, n)?, own("engram.offsets", n)?);
    if primes.contains(&0) {
        return Err(b.bad_key(PRIMES, 0, "numbers above 0"));
    }
    let (map, pad) = (list(b, MAP)?, b.count_or_zero(PAD)?);
    if map.len() < b.n_tokens()? {
        return Err(b.bad_key(MAP, format!("{} numbers", map.len()), "a number for each token"));
    }
    let numbers = map.iter().map(|id| (MAP, id)).chain([(PAD, &pad)]);
    if let Some((key, id)) = numbers.into_iter().find(|(_, id)| **id >= Ngram::NUMBERS) {
        return Err(b.bad_key(key, id, format!("numbers below {}", Ngram::NUMBERS)));
    }
    Ok(Ngram {
        factors: factors.into_iter().map(|f| f as u64).collect(),
        heads: offsets.into_iter().zip(primes).collect(),
        map: map.into_iter().map(|id| id as u32).collect(),
        pad: pad as u32,
        ends: false,
    })
}
