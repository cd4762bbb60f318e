//! Numbers for the weights, cheap enough to write at the disk's speed.
//!
//! A format's `random` makes blocks of unit RMS, but a matrix wants rows of about unit length, or the activations grow
//! in every layer: a block is made smaller by a power of two through its scale. Where the scale is, is found out by
//! trying: the fields are those whose halving halves every weight. So a new format needs nothing here; one whose scale
//! is not found stays at unit RMS, which the norms before every product still keep finite. Half of the scales are made
//! negative where they can be: formats whose numbers reach from -8 to 7 have a mean, and a matrix with a mean turns all
//! tokens into one within a few layers.
//!
//! A few MB of blocks are made per format and length, and written again and again, each tensor from another start. The
//! number of blocks is a prime, so that rows of a matrix start at different places.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Write};
use std::rc::Rc;

use tandem::gguf::TensorType;
use tandem::quant::{QuantType, Rng};

use super::chain::{self, Chain};
use crate::model::{Kind, Part, Spec};

/// About how many bytes of blocks are made.
const POOL: usize = 4 << 20;

/// Halves a number stored somewhere in a block; false, with nothing changed, where it would no longer be exact.
type Halve = fn(&mut [u8]) -> bool;

fn halve_f16(b: &mut [u8]) -> bool {
    let x = half::f16::from_le_bytes([b[0], b[1]]);
    b[..2].copy_from_slice(&half::f16::from_f32(x.to_f32() / 2.0).to_le_bytes());
    x.to_f32().abs() > 1e-6 // of subnormal numbers the last ones are coarse
}

fn halve_bf16(b: &mut [u8]) -> bool {
    let x = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
    b[..2].copy_from_slice(&half::bf16::from_f32(x / 2.0).to_le_bytes());
    true
}

/// An f16 in quarters: the top four bits of four words, its lowest first.
fn halve_quarters(b: &mut [u8]) -> bool {
    let bits = (0..4).map(|i| (b[2 * i + 1] as u16 >> 4) << (4 * i)).sum::<u16>();
    let mut whole = bits.to_le_bytes();
    let exact = halve_f16(&mut whole);
    for i in 0..4 {
        b[2 * i + 1] = b[2 * i + 1] & 15 | (u16::from_le_bytes(whole) >> (4 * i) << 4) as u8;
    }
    exact
}

fn halve_f32(b: &mut [u8]) -> bool {
    let x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    b[..4].copy_from_slice(&(x / 2.0).to_le_bytes());
    true
}

/// A byte that is an exponent.
fn halve_e8m0(b: &mut [u8]) -> bool {
    let ok = b[0] > 2;
    b[0] -= ok as u8;
    ok
}

/// A byte with three bits of mantissa below the exponent.
fn halve_e4m3(b: &mut [u8]) -> bool {
    let ok = b[0] >= 16;
    b[0] -= if ok { 8 } else { 0 };
    ok
}

/// The scale of a format: how it is stored and where.
pub(super) struct Scale {
    halve: Halve,
    at: Vec<usize>,
    /// The byte of the field, counted from its start, whose highest bit is the sign.
    sign: Option<usize>,
}

impl Scale {
    /// Which weights of the blocks are exactly halved by halving these fields; None if some change in another way.
    fn effect(ty: &QuantType, blocks: &[Vec<u8>], halve: Halve, at: &[usize]) -> Option<Vec<bool>> {
        let (mut before, mut after) = (vec![0f32; ty.block], vec![0f32; ty.block]);
        let mut halved = Vec::new();
        for block in blocks {
            let mut smaller = block.clone();
            if !at.iter().all(|&at| halve(&mut smaller[at..])) {
                return None;
            }
            (ty.dequant)(block, &mut before);
            (ty.dequant)(&smaller, &mut after);
            for (b, a) in before.iter().zip(&after) {
                if *a != *b && *a != b / 2.0 {
                    return None;
                }
                halved.push(*a == b / 2.0);
            }
        }
        Some(halved)
    }

    pub(super) fn find(ty: &QuantType, rng: &mut Rng) -> Option<Scale> {
        let mut blocks = vec![vec![0; ty.bytes]; 8];
        blocks.iter_mut().for_each(|b| (ty.random)(rng, b));
        let halves_all = |halve: Halve, at: &[usize]| {
            Scale::effect(ty, &blocks, halve, at).is_some_and(|halved| halved.iter().all(|&h| h))
        };
        for (halve, size) in [(halve_f32 as Halve, 4), (halve_bf16, 2), (halve_f16, 2), (halve_quarters, 8)] {
            let mut places = (0..=ty.bytes.saturating_sub(size)).step_by(2).filter(|_| ty.bytes >= size);
            if let Some(at) = places.find(|&at| halves_all(halve, &[at])) {
                return Some(Scale { halve, at: vec![at], sign: Some(size - 1) });
            }
        }
        // A scale and a minimum.
        for a in (0..ty.bytes - 1).step_by(2) {
            for b in (a + 2..ty.bytes - 1).step_by(2) {
                if halves_all(halve_f16, &[a, b]) {
                    return Some(Scale { halve: halve_f16, at: vec![a, b], sign: Some(1) });
                }
            }
        }
        // One byte for all, or a byte for each part of the block.
        for halve in [halve_e8m0 as Halve, halve_e4m3] {
            let some = |at: &usize| {
                let effect = Scale::effect(ty, &blocks, halve, &[*at]);
                effect.is_some_and(|halved| halved.iter().filter(|&&h| h).count() > blocks.len() * 8)
            };
            let at: Vec<usize> = (0..ty.bytes).filter(some).collect();
            if halves_all(halve, &at) {
                return Some(Scale { halve, at, sign: None });
            }
        }
        None
    }
}

/// Makes a block of random weights, halved so many times.
pub(super) fn random_block(ty: &QuantType, scale: Option<&Scale>, times: u32, rng: &mut Rng, block: &mut [u8]) {
    (ty.random)(rng, block);
    let Some(scale) = scale else { return };
    let negative = scale.sign.is_some() && rng.bits() & 1 == 1;
    for &at in &scale.at {
        for _ in 0..times {
            (scale.halve)(&mut block[at..]);
        }
        if let (true, Some(top)) = (negative, scale.sign) {
            block[at + top] ^= 0x80;
        }
    }
}

/// Writes the bytes of a tensor.
pub(super) type WriteBytes = Box<dyn FnMut(&mut dyn Write) -> io::Result<()>>;

/// Blocks made beforehand.
type Blocks = Rc<Vec<u8>>;

/// Makes the bytes of tensors.
pub(crate) struct Fill {
    seed: u64,
    chain: Option<Rc<Chain>>,
    made: RefCell<HashMap<(u32, u32), Blocks>>,
}

/// How often rows of `n` numbers of unit RMS are halved to have about unit length.
pub(super) fn unit_length(n: usize) -> u32 {
    (n as f32).sqrt().log2().round() as u32
}

fn is_prime(n: usize) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3)) // FNV-1a
}

impl Fill {
    pub(crate) fn new(seed: u64, chain: Option<Chain>) -> Fill {
        Fill { seed, chain: chain.map(Rc::new), made: RefCell::default() }
    }

    /// Blocks of this format, halved so many times.
    fn blocks(&self, ty: &'static QuantType, times: u32) -> Blocks {
        let make = || {
            // By length too: where the head holds rows of the embedding, a token's logit is that of itself.
            let mut rng = Rng(self.seed ^ hash(ty.name) ^ times as u64);
            let scale = Scale::find(ty, &mut rng);
            let count = (1..=POOL / ty.bytes).rev().find(|&n| is_prime(n)).expect("2 is a prime");
            let mut bytes = vec![0; count * ty.bytes];
            for block in bytes.chunks_exact_mut(ty.bytes) {
                random_block(ty, scale.as_ref(), times, &mut rng, block);
            }
            Rc::new(bytes)
        };
        self.made.borrow_mut().entry((ty.id, times)).or_insert_with(make).clone()
    }

    /// What writes a tensor's bytes.
    pub(crate) fn tensor(&self, t: &Spec, ty: TensorType) -> WriteBytes {
        let mut rng = Rng(self.seed.wrapping_mul(0x9e37_79b9) ^ hash(&t.name));
        let count: usize = t.shape.iter().product();
        let floats = move |mut each: Box<dyn FnMut() -> f32>| {
            let write = move |out: &mut dyn Write| {
                let values: Vec<u8> = (0..count).flat_map(|_| each().to_le_bytes()).collect();
                out.write_all(&values)
            };
            Box::new(write) as WriteBytes
        };
        let chain = || self.chain.clone().expect("a model with such tensors has a chain");
        match (t.kind, ty) {
            (Kind::Weight(part), TensorType::Quant(q)) => {
                let times = if part == Part::Embed { 0 } else { unit_length(t.shape[t.shape.len() - 1]) };
                let times = times + t.halved;
                let blocks = self.blocks(q, times);
                let bytes = count / q.block * q.bytes;
                let mut at = rng.below(blocks.len() / q.bytes) * q.bytes;
                Box::new(move |out| {
                    let mut left = bytes;
                    while left > 0 {
                        let n = left.min(blocks.len() - at);
                        out.write_all(&blocks[at..at + n])?;
                        left -= n;
                        at = (at + n) % blocks.len();
                    }
                    Ok(())
                })
            }
            (Kind::Tokens(rows), TensorType::Quant(q)) => Chain::rows(chain(), rows, &t.shape, q),
            (Kind::Router { slow, block }, _) => floats(Box::new(Chain::router(slow, (t.shape[1], block), rng))),
            (Kind::FirstHalf, _) => chain::first_half(t.shape[0]),
            (Kind::F32 { mean, spread }, _) => {
                let spread = spread / 2f32.powi(t.halved as i32);
                floats(Box::new(move || mean + spread * 12f32.sqrt() * (rng.unit() - 0.5)))
            }
            (Kind::Decay, _) => floats(Box::new(move || -(1.0 + 15.0 * rng.unit()))),
            (Kind::TimeStep, _) => floats(Box::new(move || {
                let dt = 10f32.powf(-3.0 + 2.0 * rng.unit());
                (dt.exp() - 1.0).ln()
            })),
            (Kind::Turning(n), _) => {
                let mut divisors = (0..count).map(move |i| if i < n { 1.0 } else { 1e30 });
                floats(Box::new(move || divisors.next().expect("as many as there are elements")))
            }
            (Kind::Experts(n), _) => {
                let k = t.shape[t.shape.len() - 1];
                Box::new(move |out| {
                    for _ in 0..count / k {
                        let mut row: Vec<i32> = Vec::with_capacity(k);
                        while row.len() < k {
                            let e = rng.below(n) as i32;
                            if !row.contains(&e) {
                                row.push(e);
                            }
                        }
                        row.iter().try_for_each(|e| out.write_all(&e.to_le_bytes()))?;
                    }
                    Ok(())
                })
            }
            (Kind::Weight(_) | Kind::Tokens(_) | Kind::Hole, _) => unreachable!("a mix names weight formats"),
        }
    }
}
