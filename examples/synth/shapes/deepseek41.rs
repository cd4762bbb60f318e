//! DeepSeek-V4.1: streams with a mix that lags, compressed rows and choices that several layers share, and two tables of n-grams.

use super::{BIAS, Extent, NORM, matrix};
use crate::model::{Kind, Model, Part};

pub(super) struct V41 {
    n_embd: usize,
    heads: usize,
    /// Columns of a head, and of a row.
    dim: usize,
    q_rank: usize,
    o_rank: usize,
    n_expert: usize,
    n_ff: usize,
    /// Rows of each part of a table, about: primes from here on in the released model.
    part: usize,
}

pub(super) const FLASH: V41 =
    V41 { n_embd: 5120, heads: 64, dim: 512, q_rank: 1280, o_rank: 1024, n_expert: 384, n_ff: 2304, part: 16_000_000 };
/// All layers with few and small experts, for what depends on the layers.
pub(super) const NARROW: V41 =
    V41 { n_embd: 512, heads: 8, dim: 128, q_rank: 256, o_rank: 128, n_expert: 16, n_ff: 256, part: 1000 };
/// That with tables of 4.5 GB each, and with tables of 20 GB, which are holes: for what happens to tables alone.
pub(super) const TABLES: V41 = V41 { part: 690_000, ..NARROW };
pub(super) const HOLES: V41 = V41 { part: 3_100_000, ..NARROW };

impl V41 {
    pub(super) const LAYERS: usize = 40;
    const STREAMS: usize = 4;
    const GROUPS: usize = 8;
    const INDEX: (usize, usize) = (32, 128);
    const ENGRAM: [usize; 2] = [1, 14];
    /// Heads of an n-gram's length, the longest n-gram, columns of a row.
    const GRAMS: (usize, usize, usize) = (8, 4, 256);
    /// Mapped tokens that differ in the released model.
    const MAPPED: usize = 99_092;
    /// Factors of the hash in layers 1 and 14.
    #[rustfmt::skip]
    const MULTIPLIERS: [u64; 8] = [
        76_632_096_046_245, 4_839_876_093_313, 35_959_672_319_349, 73_987_337_458_391,
        67_716_810_739_261, 51_510_806_800_915, 30_921_347_202_721, 82_619_226_485_591,
    ];

    fn ratio(i: usize) -> i32 {
        [0, 2, 1, 0][usize::from(i >= 2) + usize::from(i >= 20) + usize::from(i >= Self::LAYERS)]
    }

    pub(super) fn model(&self, layers: Extent, n_vocab: usize) -> Model {
        let (layers, n) = (layers.of(Self::LAYERS), self.n_embd);
        let mut m = Model::new("deepseek41");
        let tables = self.keys(&mut m, layers, n_vocab);
        m.ends(n_vocab, n);
        for i in 0..layers {
            let b = &format!("blk.{i}");
            self.attention(&mut m, b, i);
            m.norm(format!("{b}.ffn_norm"), n);
            m.biased_experts(b, self.n_expert, self.n_ff, self.n_ff, n);
            m.tensor(format!("{b}.exp_probs_b_vl.bias"), &[self.n_expert], BIAS);
            for part in ["attn", "ffn"] {
                self.hyper(&mut m, format!("{b}.hc_{part}"));
            }
            if let Some(site) = Self::ENGRAM.iter().position(|l| *l == i) {
                self.engram(&mut m, b, tables[site]);
            }
        }
        m
    }

    /// The metadata; returns the rows of each table.
    fn keys(&self, m: &mut Model, layers: usize, n_vocab: usize) -> Vec<usize> {
        let (index_heads, index_dim) = Self::INDEX;
        m.common(layers, 1_048_576, self.n_embd, (self.heads, 1), 10_000.0, 1e-20);
        m.yarn(16.0, 65536, (32.0, 1.0));
        m.counts(&[("expert_count", self.n_expert), ("expert_used_count", 6), ("expert_gating_func", 4)]);
        m.counts(&[("attention.key_length", self.dim), ("attention.value_length", self.dim)]);
        m.counts(&[("rope.dimension_count", 64), ("attention.q_lora_rank", self.q_rank)]);
        m.counts(&[("attention.sliding_window", 128), ("expert_feed_forward_length", self.n_ff)]);
        m.counts(&[("expert_shared_count", 1), ("hash_layer_count", 0), ("vocab_size", n_vocab)]);
        m.set("expert_weights_scale", 1.5f32);
        m.set("expert_weights_norm", true);
        m.set("swiglu_clamp_exp", vec![10f32; layers]);
        m.set("swiglu_clamp_shexp", vec![10f32; layers]);
        m.counts(&[("attention.indexer.head_count", index_heads), ("attention.indexer.key_length", index_dim)]);
        m.counts(&[("attention.indexer.top_k", 512), ("attention.output_group_count", Self::GROUPS)]);
        m.count("attention.output_lora_rank", self.o_rank);
        // The blocks that predict further tokens are not converted, their ratios are.
        m.set("attention.compress_ratios", (0..layers + 3).map(Self::ratio).collect::<Vec<i32>>());
        m.set("attention.compress_rope_freq_base", 160_000f32);
        m.counts(&[("hyper_connection.count", Self::STREAMS), ("hyper_connection.sinkhorn_iterations", 20)]);
        m.set("hyper_connection.epsilon", 1e-6f32);

        let (per, longest, dim) = Self::GRAMS;
        let ids: Vec<i32> = Self::ENGRAM.into_iter().filter(|l| *l < layers).map(|l| l as i32).collect();
        let columns = (longest - 1) * per;
        let primes: Vec<u64> = primes(self.part).take(ids.len() * columns).collect();
        let offset =
            |of: &[u64]| of.iter().scan(0, |sum, n| Some(std::mem::replace(sum, *sum + n))).collect::<Vec<u64>>();
        m.counts(&[("engram.head_count", per), ("engram.max_ngram_size", longest), ("engram.key_length", dim)]);
        m.count("engram.pad_id", 2);
        m.set("engram.multipliers", Self::MULTIPLIERS[..ids.len() * longest].to_vec());
        m.set("engram.offsets", primes.chunks(columns).flat_map(offset).collect::<Vec<u64>>());
        m.set("engram.token_map", (0..n_vocab).map(|t| (t % Self::MAPPED) as i32).collect::<Vec<i32>>());
        m.set("engram.layer_ids", ids);
        let tables = primes.chunks(columns).map(|of| of.iter().sum::<u64>() as usize).collect();
        m.set("engram.primes", primes);
        tables
    }

    fn attention(&self, m: &mut Model, b: &str, i: usize) {
        let (n, heads, dim) = (self.n_embd, self.heads, self.dim);
        m.norm(format!("{b}.attn_norm"), n);
        m.tensor(format!("{b}.attn_sinks.weight"), &[heads], Kind::F32 { mean: 0.0, spread: 1.0 });
        m.weight(format!("{b}.attn_q_a"), &[self.q_rank, n], Part::Attn);
        m.norm(format!("{b}.attn_q_a_norm"), self.q_rank);
        // Queries have no norm of their own.
        m.weight(format!("{b}.attn_q_b"), &[heads * dim, self.q_rank], Part::Attn);
        m.weight(format!("{b}.attn_kv"), &[dim, n], Part::Attn);
        m.norm(format!("{b}.attn_kv_a_norm"), dim);
        m.weight(format!("{b}.attn_output_a"), &[Self::GROUPS * self.o_rank, heads * dim / Self::GROUPS], Part::Attn);
        m.weight(format!("{b}.attn_output_b"), &[n, Self::GROUPS * self.o_rank], Part::Attn);
        let (index_heads, index_dim) = Self::INDEX;
        if [2, 8, 14, 20].contains(&i) {
            m.weight(format!("{b}.attn_compressor_kv"), &[dim, n], Part::Attn);
            if Self::ratio(i) > 1 {
                m.weight(format!("{b}.attn_compressor_gate"), &[dim, n], Part::Attn);
            }
            m.norm(format!("{b}.attn_compressor_norm"), dim);
            m.weight(format!("{b}.indexer.attn_k"), &[index_dim, dim], Part::Attn);
            m.norm(format!("{b}.indexer.k_norm"), index_dim);
        }
        if [2, 8, 14, 20, 24, 28, 32, 36].contains(&i) {
            m.weight(format!("{b}.indexer.attn_q_b"), &[index_heads * index_dim, self.q_rank], Part::Attn);
            m.tensor(format!("{b}.indexer.proj.weight"), &[index_heads, n], matrix(n, 1.0));
        }
    }

    fn engram(&self, m: &mut Model, b: &str, rows: usize) {
        let ((per, longest, dim), n) = (Self::GRAMS, self.n_embd);
        let table = if rows > 1 << 24 { Kind::Hole } else { Kind::Weight(Part::Embed) };
        m.tensor(format!("{b}.engram_embd.weight"), &[rows, dim], table);
        m.weight(format!("{b}.engram_wkv"), &[(Self::STREAMS + 1) * n, (longest - 1) * per * dim], Part::Attn);
        for name in ["q", "k"] {
            m.tensor(format!("{b}.engram_{name}.weight"), &[Self::STREAMS, n], NORM);
        }
    }

    /// The mixing weights of residual streams.
    fn hyper(&self, m: &mut Model, name: String) {
        let (wide, mixes) = (self.n_embd * Self::STREAMS, (2 + Self::STREAMS) * Self::STREAMS);
        m.tensor(format!("{name}_fn.weight"), &[mixes, wide], matrix(wide, 1.0));
        m.tensor(format!("{name}_base.weight"), &[mixes], Kind::F32 { mean: 0.0, spread: 0.5 });
        m.tensor(format!("{name}_scale.weight"), &[3], Kind::F32 { mean: 0.5, spread: 0.1 });
    }
}

/// Primes above a number.
fn primes(above: usize) -> impl Iterator<Item = u64> {
    let is_prime = |n: &u64| (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (above as u64 + 1..).filter(is_prime)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published constants: the first and last prime, the rows of both tables, and 1046 tensors.
    #[test]
    fn tables_have_the_rows_of_the_released_model() {
        let all: Vec<u64> = primes(16_000_000).take(48).collect();
        assert_eq!((all[0], all[47]), (16_000_057, 16_000_889));
        let m = FLASH.model(Extent { layers: None, heads: false }, 129_280);
        let rows = |name: &str| m.tensors.iter().find(|t| t.name == name).unwrap().shape[0];
        assert_eq!(rows("blk.1.engram_embd.weight"), 384_006_168);
        assert_eq!(rows("blk.14.engram_embd.weight"), 384_016_682);
        assert_eq!(m.tensors.len(), 1046);
        // Products of mapped tokens stay below 2^63.
        let most = V41::MULTIPLIERS.iter().max().unwrap();
        assert!(most.checked_mul(V41::MAPPED as u64).is_some_and(|p| p < 1 << 63));
    }
}
