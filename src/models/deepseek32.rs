//! DeepSeek V3.2: DeepSeek V3 with an indexer in front of every layer's attention, whose rotation pairs the halves of the
//! first columns, unlike that of the attention.

use anyhow::Result;

use super::deepseek2::trunk;
use super::latent::{Indexer, Latent};
use crate::ops::{Gate, Pairs};
use crate::tape::{Builder, Slot};

/// Of the LayerNorm over the indexer's keys, whatever the file says.
const EPS: f32 = 1e-6;

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let latent = Latent::scaled(b, false)?;
    let mut rope = latent.rope.clone().expect("heads are rotated in part");
    rope.pairs = Pairs::Halves;
    let indexer = Indexer::new(b, rope, EPS)?;
    b.count("expert_gating_func")?;
    trunk(b, &latent, Gate::Sigmoid, |b, h, low| indexer.build(b, h, low).map(Some))
}
