//! What the header of a file tells without a family: sums over the tensor directory and the
//! metadata.

use std::collections::{BTreeMap, HashSet};

use super::formats;
use crate::gguf::{Array, Gguf, Meta, Scalar, Tensor, Value};
use crate::tape::trunk_blocks;

/// The tensors of one format.
pub(super) struct FormatFacts {
    pub(super) name: &'static str,
    pub(super) tensors: usize,
    pub(super) weights: usize,
    pub(super) bytes: usize,
}

/// The expert layers.
#[derive(Clone, Copy)]
pub(super) struct ExpertFacts {
    pub(super) layers: usize,
    /// In a layer.
    pub(super) count: usize,
    /// Chosen for a token, in a layer; None where the file does not say.
    pub(super) used: Option<usize>,
}

/// The blocks at the end that predict further tokens.
pub(super) struct MtpFacts {
    pub(super) blocks: usize,
    pub(super) params: usize,
    pub(super) bytes: usize,
}

/// A lookup table that is no token embedding.
pub(super) struct TableFacts {
    pub(super) name: String,
    pub(super) params: usize,
    pub(super) bytes: usize,
}

/// Everything that is known of a file whether or not a family can run it.
pub(super) struct FileFacts {
    pub(super) name: String,
    /// None where the file names none.
    pub(super) arch: Option<String>,
    pub(super) files: Vec<(String, u64)>,
    /// Without the blocks that predict further tokens.
    pub(super) layers: usize,
    pub(super) n_vocab: Option<usize>,
    pub(super) n_ctx_trained: Option<usize>,
    pub(super) params: usize,
    /// Parameters that one token is multiplied with; None where the file does not say how many
    /// experts are used.
    pub(super) active: Option<usize>,
    pub(super) experts: Option<ExpertFacts>,
    pub(super) mtp: Option<MtpFacts>,
    pub(super) tables: Vec<TableFacts>,
    pub(super) formats: Vec<FormatFacts>,
    /// What the file's format is called: that of most weights, or a mix by its name.
    pub(super) format: &'static str,
    pub(super) bytes: usize,
    /// Bytes of weights that one token is multiplied with; None as for `active`.
    pub(super) active_bytes: Option<usize>,
    /// Values that all layers cache for a token, if each has the attention that the metadata's
    /// sizes tell of; None where it has no such sizes.
    pub(super) cached_values: Option<usize>,
}

impl FileFacts {
    /// Reads the facts. `is_unused` says which tensors the family leaves alone; blocks that predict
    /// further tokens are never active.
    pub(super) fn new(gguf: &Gguf, is_unused: impl Fn(&Tensor) -> bool) -> FileFacts {
        let keys = Keys::new(&gguf.meta);
        let trunk = keys.trunk(gguf);
        let is_mtp = |t: &Tensor| block(t).is_some_and(|i| i >= trunk);
        let used_tensors = || gguf.tensors.iter().filter(|t| !is_mtp(t) && !is_unused(t));
        let mtp: Vec<&Tensor> = gguf.tensors.iter().filter(|t| is_mtp(t)).collect();
        let experts = experts(used_tensors(), &keys);
        let tied = gguf.tensor("output.weight").is_none();
        let active = used_tensors().map(|t| keys.active(t, tied)).sum::<Option<f64>>();
        let active_bytes = used_tensors()
            .map(|t| Some(keys.active(t, tied)? * t.bytes as f64 / t.elements().max(1) as f64))
            .sum::<Option<f64>>();
        let layers = used_tensors().filter_map(block).map(|i| i.saturating_add(1)).max().unwrap_or(0);
        let file_type = gguf.meta.get("general.file_type").and_then(usize::of);
        let tables = used_tensors().filter(|t| t.is_lookup_table());
        let embedding = gguf.tensor("token_embd.weight");
        let tokens = gguf.meta.opt_strs("tokenizer.ggml.tokens").ok().flatten();
        let formats = formats(gguf);
        FileFacts {
            name: gguf.meta.opt_str("general.name").ok().flatten().unwrap_or("unnamed model").to_owned(),
            arch: keys.arch.map(String::from),
            files: gguf.shards().map(|p| (p.display().to_string(), file_bytes(gguf, p))).collect(),
            layers,
            n_vocab: embedding.map(|t| t.shape[0]).or(tokens.map(<[String]>::len)),
            n_ctx_trained: keys.number("context_length", None),
            params: gguf.tensors.iter().map(params).sum(),
            active: active.map(|n| n.round() as usize),
            experts,
            mtp: (!mtp.is_empty()).then(|| MtpFacts {
                blocks: mtp.iter().filter_map(|t| block(t)).collect::<HashSet<_>>().len(),
                params: mtp.iter().map(|t| params(t)).sum(),
                bytes: mtp.iter().map(|t| t.bytes).sum(),
            }),
            tables: tables.map(|t| TableFacts { name: t.name.clone(), params: params(t), bytes: t.bytes }).collect(),
            format: formats::name(file_type, formats.first().map(|f| f.name)),
            formats,
            bytes: gguf.tensors.iter().map(|t| t.bytes).sum(),
            active_bytes: active_bytes.map(|n| n.round() as usize),
            cached_values: keys.cached_values(layers),
        }
    }

    /// Bits per weight over all weights of the file.
    pub(super) fn bits(&self) -> f64 {
        let bytes: usize = self.formats.iter().map(|f| f.bytes).sum();
        let weights: usize = self.formats.iter().map(|f| f.weights).sum();
        bytes as f64 * 8.0 / weights.max(1) as f64
    }
}

/// The architecture's metadata keys. A value that makes no sense counts as absent: the family says
/// what is wrong with it.
struct Keys<'a> {
    meta: &'a Meta,
    arch: Option<&'a str>,
}

impl<'a> Keys<'a> {
    fn new(meta: &'a Meta) -> Keys<'a> {
        Keys { meta, arch: meta.opt_str("general.architecture").ok().flatten() }
    }

    /// A count, or block `i`'s entry where the key lists one for each.
    fn number(&self, name: &str, i: Option<usize>) -> Option<usize> {
        match (self.meta.get(&format!("{}.{name}", self.arch?))?, i) {
            (Value::Arr(list), Some(i)) => usize::of(&list.get(i)?),
            (Value::Arr(Array::Arr(_)), None) => None,
            (Value::Arr(list), None) => (0..list.len()).filter_map(|i| usize::of(&list.get(i)?)).max(),
            (value, _) => usize::of(value),
        }
    }

    /// Values that attention caches for a token, in all layers: latent ones where there is a rank,
    /// else keys and values of each head.
    fn cached_values(&self, layers: usize) -> Option<usize> {
        let of = |name: &str| self.number(name, None);
        let layers_of = |one: &dyn Fn(usize) -> Option<usize>| {
            (0..layers).try_fold(0usize, |sum, i| sum.checked_add(one(i)?)).filter(|n| *n > 0)
        };
        if let Some(rank) = of("attention.kv_lora_rank") {
            let row = rank.checked_add(of("rope.dimension_count")?)?;
            return layers_of(&|_| Some(row));
        }
        let usual = of("embedding_length").zip(of("attention.head_count")).map(|(n, heads)| n / heads.max(1));
        let (key, value) = (of("attention.key_length").or(usual)?, of("attention.value_length").or(usual)?);
        let heads = |i| self.number("attention.head_count_kv", Some(i)).or(of("attention.head_count"));
        layers_of(&|i| heads(i)?.checked_mul(key.checked_add(value)?))
    }

    /// The number of the first block that predicts further tokens: all are layers where there is
    /// none.
    fn trunk(&self, gguf: &Gguf) -> usize {
        let all = self.number("block_count", None);
        match (all, self.number("nextn_predict_layers", None)) {
            // A file has a tensor for every block.
            (Some(all), Some(extra)) if (1..all).contains(&extra) && all <= gguf.tensors.len() => {
                trunk_blocks(gguf, all, extra)
            }
            _ => usize::MAX,
        }
    }

    /// How many of a tensor's parameters one token is multiplied with.
    fn active(&self, t: &Tensor, tied: bool) -> Option<f64> {
        let all = params(t) as f64;
        let row = *t.shape.last().unwrap_or(&1) as f64;
        if is_of_experts(t) {
            let (used, count) = (self.number("expert_used_count", block(t))?, self.number("expert_count", block(t))?);
            return Some(all * used.min(count) as f64 / count.max(1) as f64);
        }
        if t.is_lookup_table() {
            // By n-grams: a row for each head and each length of 2 or more.
            let by_hash = self.number("ple.heads_per_ngram", None).zip(self.number("ple.ngram_size", None));
            let engram = self.number("engram.head_count", None).zip(self.number("engram.max_ngram_size", None));
            let rows = by_hash.or(engram).map_or(1, |(heads, n)| heads.saturating_mul(n.saturating_sub(1)));
            return Some(all.min(rows as f64 * row));
        }
        Some(match t.name.as_str() {
            "token_embd.weight" => row + if tied { all } else { 0.0 },
            _ => all,
        })
    }
}

/// The number of a tensor's block.
fn block(t: &Tensor) -> Option<usize> {
    t.name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Whether it belongs to experts that tokens are sent to: a stack of matrices, or one expert's own.
fn is_of_experts(t: &Tensor) -> bool {
    let parts: Vec<&str> = t.name.split('.').skip(2).collect();
    match parts[..] {
        [name, _] => name.ends_with("_exps") || name.ends_with("_chexps"),
        [name, expert, _] => name.starts_with("ffn_") && expert.parse::<usize>().is_ok(),
        _ => false,
    }
}

/// Weights, not the numbers of tables of integers.
fn params(t: &Tensor) -> usize {
    if t.ty.quant().is_some() { t.elements() } else { 0 }
}

fn experts<'a>(tensors: impl Iterator<Item = &'a Tensor>, keys: &Keys<'_>) -> Option<ExpertFacts> {
    let layers: HashSet<usize> = tensors.filter(|t| is_of_experts(t)).filter_map(block).collect();
    let count = keys.number("expert_count", None).filter(|_| !layers.is_empty())?;
    Some(ExpertFacts { layers: layers.len(), count, used: keys.number("expert_used_count", None) })
}

/// The file's tensors by format, the largest share first.
fn formats(gguf: &Gguf) -> Vec<FormatFacts> {
    let mut formats: BTreeMap<&str, FormatFacts> = BTreeMap::new();
    for t in &gguf.tensors {
        let name = t.ty.name();
        let f = formats.entry(name).or_insert(FormatFacts { name, tensors: 0, weights: 0, bytes: 0 });
        f.tensors += 1;
        f.weights += t.elements();
        f.bytes += t.bytes;
    }
    let mut formats: Vec<FormatFacts> = formats.into_values().collect();
    formats.sort_by_key(|f| std::cmp::Reverse(f.bytes));
    formats
}

/// Bytes of a file on disk; of a model that is no file, those of its tensors.
fn file_bytes(gguf: &Gguf, path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or_else(|_| gguf.bytes(), |m| m.len())
}
