//! Models whose own greedy text is known: every token is followed by one certain other, and the texts that this gives
//! drift from one set of experts to another as real ones do.
//!
//! ```text
//! a row of the embedding, in eighths   | slow 0 | .. | slow 4 | own | own | own |
//! slow j                               the same for a run of PERIODS[j] tokens of the chain
//! a row of the head                    the embedding of the token before it, smaller
//! ```
//! What layers add is so much smaller than the embedding that the head sees the latter, by which the next token stands out
//! of all others; it is computed at full cost all the same. Routers look at the slow parts and at what is the token's own.
//!
//! A block for multi-token prediction takes only the embedding of its two inputs, out of a table of its own, in which some
//! tokens have the row of the token after them: what it drafts there is one token too far on.
//!
//! With choices of 8 of 128 experts an LRU of 12.5% of a layer's experts hits 67%, one of 25% hits 81% (`tests/synth.rs`),
//! and the most used 6.25% are 10% of the choices. Published (ggml-org/llama.cpp#27861): 67%, 81%, and 10% for a list made
//! on another text. Rejected: experts that are popular in all texts. Where an LRU of 12.5% then hits 67%, one of 25% hits
//! 92%, and a fixed list of the most used 6.25% more than half.

use std::rc::Rc;

use anyhow::{Result, bail, ensure};
use tandem::quant::{QuantType, Rng};

use super::fill::{Scale, WriteBytes, random_block, unit_length};
use crate::model::{Kind, Mix, Model, Part, TokenRows};

/// Parts of a row, and how many tokens each of the slow ones lasts.
const PARTS: usize = 8;
const PERIODS: [usize; 5] = [8, 16, 32, 64, 128];

/// The RMS of what each slow part adds to a router's outputs, as multiple of what the token's own does.
const SLOW: f32 = 1.0;

/// Tokens of which a certain number is drafted right.
const RUN: usize = 64;

/// How often what a layer adds is halved.
const QUIET: u32 = 4;

/// Tokens at the vocabulary's start that are single bytes, and at its end that are no text.
const BYTES: usize = 256;
const CONTROL: usize = 3;

/// Ids rise with rarity, as in real vocabularies: of English and code in Qwen3.5's, 82 tokens of 100 are of the first
/// sixteenth of it, 7 of the second, 6 of the second eighth, 5 of what follows. So a text has all tokens of the first
/// sixteenth, or the first so many, and these shares of the tokens of the second, the second eighth, and the rest.
const COMMON: usize = 1024;
const RARE: [f32; 3] = [0.087, 0.037, 0.0055];

/// The order in which tokens follow each other, round and round.
pub(crate) struct Chain {
    seed: u64,
    order: Vec<u32>,
    /// Where each token is in `order`; those that are not there behave like the token at this place.
    place: Vec<usize>,
}

/// The format of embedding and head, which share their numbers: the head's, if a row has enough blocks.
pub(crate) fn format(mix: &Mix, n: usize) -> &'static QuantType {
    let ty = mix.format(Part::Output, n);
    if n / ty.block >= PARTS { ty } else { mix.format(Part::Output, 32) }
}

/// The part of a row of `n` numbers, in whole blocks, that number `i` belongs to.
fn part_of(i: usize, n: usize, block: usize) -> usize {
    let blocks = n / block;
    (0..PARTS).rev().find(|p| i / block >= p * blocks / PARTS).expect("the first part begins with the row")
}

/// The bytes of a matrix (n, 2 n) in Q8_0 that takes the first half of its inputs as it is.
pub(crate) fn first_half(n: usize) -> WriteBytes {
    const BLOCK: usize = 32;
    Box::new(move |out| {
        for row in 0..n {
            for block in 0..2 * n / BLOCK {
                let mut bytes = [0u8; 2 + BLOCK];
                bytes[..2].copy_from_slice(&half::f16::from_f32(1.0 / 64.0).to_le_bytes());
                if row / BLOCK == block {
                    bytes[2 + row % BLOCK] = 64;
                }
                out.write_all(&bytes)?;
            }
        }
        Ok(())
    })
}

impl Chain {
    pub(crate) fn new(seed: u64, n_vocab: usize) -> Chain {
        let mut rng = Rng(seed ^ 0x5eed);
        let all = BYTES..(n_vocab - CONTROL).max(BYTES + 1);
        let common = (all.len() / 16).max(COMMON);
        let mut order: Vec<u32> = all.map(|t| t as u32).collect();
        order.retain(|t| match *t as usize - BYTES {
            at if at < common => true,
            at if at < 2 * common => rng.unit() < RARE[0],
            at if at < 4 * common => rng.unit() < RARE[1],
            _ => rng.unit() < RARE[2],
        });
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
        let mut place: Vec<usize> = (0..n_vocab).map(|_| rng.below(order.len())).collect();
        order.iter().enumerate().for_each(|(i, t)| place[*t as usize] = i);
        Chain { seed, order, place }
    }

    /// Makes a model one whose text this is. `skew`: routers choose by what is slow too; `mtp`: how often drafts are right.
    pub(crate) fn apply(&self, model: &mut Model, mix: &Mix, (skew, mtp): (bool, Option<f32>)) -> Result<()> {
        let width = |name: &str, model: &Model| model.tensors.iter().find(|t| t.name == name).map(|t| t.shape.clone());
        let (Some(embd), Some(_)) = (width("token_embd.weight", model), width("output.weight", model)) else {
            bail!("a model without a head of its own has no text that could be chosen");
        };
        let n = embd[1];
        let block = format(mix, n).block;
        ensure!(n / block >= PARTS, "rows of {n} are too short for {PARTS} parts");
        let slow = if skew { SLOW } else { 0.0 };
        let mut drafts = Vec::new();
        for t in &mut model.tensors {
            let name = t.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(&t.name[..], |r| r.1);
            match name {
                "token_embd.weight" => t.kind = Kind::Tokens(TokenRows::Embedding),
                "output.weight" => t.kind = Kind::Tokens(TokenRows::Head),
                "nextn.shared_head_head.weight" if mtp.is_some() => t.kind = Kind::Tokens(TokenRows::Head),
                "ffn_gate_inp.weight" if t.shape[1] == n => t.kind = Kind::Router { slow, block },
                // With what the scores of a sigmoid differ by it would choose the same experts always.
                "exp_probs_b.bias" => t.kind = Kind::F32 { mean: 0.0, spread: 0.005 },
                _ if ["attn_output", "ssm_out", "ffn_down"].iter().any(|n| name.starts_with(n)) => t.halved = QUIET,
                _ => {}
            }
            if let ("nextn.eh_proj.weight", Some(p)) = (name, mtp) {
                t.kind = Kind::FirstHalf;
                drafts.push((t.name.replace("eh_proj", "embed_tokens"), p));
            }
        }
        if mtp.is_some() && drafts.is_empty() {
            bail!("this shape is written without blocks for multi-token prediction");
        }
        for (name, p) in drafts {
            model.tensor(name, &embd, Kind::Tokens(TokenRows::Drafts(p)));
        }
        Ok(())
    }

    /// A random state of a part of the weights.
    fn rng(&self, part: usize, of: usize) -> Rng {
        let mixed = Rng(self.seed ^ (part as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03)).bits();
        Rng(Rng(mixed ^ of as u64).bits())
    }

    /// The place of the token whose row of the embedding is written for `token`; None for one that follows no other.
    fn source(&self, rows: TokenRows, token: usize) -> Option<usize> {
        let (n, at) = (self.order.len(), self.place[token]);
        match rows {
            TokenRows::Embedding => Some(at),
            TokenRows::Drafts(p) if self.is_right(at, p) => Some(at),
            TokenRows::Drafts(_) => Some((at + 1) % n),
            TokenRows::Head => (self.order[at] == token as u32).then_some((at + n - 1) % n),
        }
    }

    /// Whether drafts are right after the token at a place: by lot, and of every run of tokens for as many as `p` says.
    fn is_right(&self, at: usize, p: f32) -> bool {
        let lot = |at: usize| self.rng(PARTS, at).bits();
        let (from, own) = (at / RUN * RUN, lot(at));
        let run = from..(from + RUN).min(self.order.len());
        let most = (run.len() as f32 * p).round() as usize;
        run.filter(|other| lot(*other) < own).count() < most
    }

    /// What writes a row for each token, of shape (n_vocab, n).
    pub(crate) fn rows(chain: Rc<Chain>, rows: TokenRows, shape: &[usize], ty: &'static QuantType) -> WriteBytes {
        let (n_vocab, n) = (shape[0], shape[1]);
        let scale = Scale::find(ty, &mut Rng(chain.seed));
        let times = if rows == TokenRows::Head { unit_length(n) } else { 0 };
        Box::new(move |out| {
            let mut row = vec![0; n / ty.block * ty.bytes];
            for token in 0..n_vocab {
                let source = chain.source(rows, token);
                let mut rng = (usize::MAX, Rng(0));
                for (i, block) in row.chunks_exact_mut(ty.bytes).enumerate() {
                    let part = part_of(i * ty.block, n, ty.block);
                    if rng.0 != part {
                        rng = (part, chain.part_rng(source, part, token));
                    }
                    random_block(ty, scale.as_ref(), times, &mut rng.1, block);
                }
                out.write_all(&row)?;
            }
            Ok(())
        })
    }

    /// The random state of a part of the row of the token at `source`.
    fn part_rng(&self, source: Option<usize>, part: usize, token: usize) -> Rng {
        match (source, PERIODS.get(part)) {
            // Not all parts change at once.
            (Some(at), Some(period)) => self.rng(part, (at + part * period / PERIODS.len()) / period),
            (Some(at), None) => self.rng(part, at),
            (None, _) => self.rng(2 * PARTS + part, token),
        }
    }

    /// The numbers of a router over rows of `n`, in blocks of `block`.
    pub(crate) fn router(slow: f32, (n, block): (usize, usize), mut rng: Rng) -> impl FnMut() -> f32 {
        let spread = move |i: usize| {
            let part = (n / PARTS) as f32;
            if part_of(i, n, block) < PERIODS.len() { slow / part.sqrt() } else { 1.0 / (part * 3.0).sqrt() }
        };
        let mut at = 0;
        move || {
            let i = at % n;
            at += 1;
            spread(i) * 12f32.sqrt() * (rng.unit() - 0.5)
        }
    }
}
