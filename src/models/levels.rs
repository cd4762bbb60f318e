//! Indexers of which some layer's chooses candidates too, blocks of rows, that those of later layers choose among (two-level
//! sparse attention of DeepSeek-V4.1).

use anyhow::Result;

use super::compressed::RATIOS;
use crate::ops::{Candidates, Index, Rope};
use crate::tape::{Builder, Layer, Slot, StateId};

const SOURCE: &str = "attention.candidate_source_layer_id";
const BLOCK: &str = "attention.candidate_block_size";
const BLOCKS: &str = "attention.candidate_topk_blocks";

/// A model's indexers, as its layers are recorded.
#[derive(Debug)]
pub(super) struct Levels {
    /// The layer that gives candidates; None for a model without any.
    candidates: Option<(usize, Candidates)>,
    /// What it gave, and the tokens of a row there.
    given: Option<(Slot, usize)>,
}

impl Levels {
    /// What the metadata says; what the released model's files leave out is known.
    pub(super) fn from_keys(b: &Builder, layers: &[Layer]) -> Result<Levels> {
        let missing = [SOURCE, BLOCK, BLOCKS].into_iter().filter(|key| !b.has_key(key)).collect::<Vec<_>>();
        let k = b.count("attention.indexer.top_k")?;
        let (source, c) = match missing[..] {
            [] => (b.count_or_zero(SOURCE)?, Candidates { size: b.count(BLOCK)?, n: b.count(BLOCKS)? }),
            // The released model, whose converters leave them out.
            [_, _, _] if layers.len() == 40 && b.tokens("context_length")? >= 1 << 20 && k == 512 => {
                b.note(
                    "the file has no candidate keys: 2048 blocks of 8 rows from layer 20 on, as in the released model",
                );
                (20, Candidates { size: 8, n: 2048 })
            }
            [_, _, _] => {
                b.note("the file has no candidate keys: each indexer chooses among all rows");
                return Ok(Levels { candidates: None, given: None });
            }
            [key, ..] => return Err(b.bad_key(key, "missing", format!("all of {SOURCE}, {BLOCK}, {BLOCKS}, or none"))),
        };
        let has_indexer = |l: &&Layer| l.scope(b).has("indexer.attn_q_b.weight");
        if layers.get(source).filter(has_indexer).is_none() {
            return Err(b.bad_key(SOURCE, source, "a layer with an indexer (indexer.attn_q_b)"));
        }
        if c.n * c.size < k {
            return Err(b.bad_key(BLOCKS, c.n, format!("blocks of {} for the {k} rows that are chosen", c.size)));
        }
        Ok(Levels { candidates: Some((source, c)), given: None })
    }

    /// The rows that each token attends to, (T, top_k), of the `keys` for `every` tokens each, by a layer's normed rows and its
    /// low-rank queries.
    pub(super) fn choose(
        &mut self,
        b: &Builder,
        (h, q_low): (Slot, Slot),
        rope: &Rope,
        (keys, every): (StateId, usize),
    ) -> Result<Slot> {
        let (heads, dim) = (b.count("attention.indexer.head_count")?, b.count("attention.indexer.key_length")?);
        let q = b.linear(q_low, "indexer.attn_q_b", heads * dim)?; // (T, heads * dim)
        let q = b.rope(q, dim, rope)?;
        let weights = b.linear(h, "indexer.proj", heads)?; // (T, heads)
        let x = Index { heads, dim, k: b.count("attention.indexer.top_k")?, every, open: false };
        match (self.candidates, self.given) {
            (Some((source, c)), _) if source == b.layer() => {
                let (top, given) = b.index_first((x, c), q, weights, keys)?; // (T, top_k), (T, blocks)
                self.given = Some((given, every));
                Ok(top)
            }
            (Some((source, _)), Some((_, of))) if of != every => {
                let want = format!("{of} in layer {}, as in layer {source}, whose candidates it has", b.layer());
                Err(b.bad_key(RATIOS, every, want))
            }
            (Some((_, c)), Some((given, _))) => b.index_second((x, c), [q, weights, given], keys),
            _ => b.index(x, q, Some(weights), keys),
        }
    }
}
