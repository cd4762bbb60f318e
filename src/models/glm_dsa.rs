//! GLM-5 to 5.2: DeepSeek V3's layers with an indexer in front of the attention; from 5.2 on most layers attend to the rows
//! that the last indexer before them chose.

use anyhow::Result;

use super::deepseek2::trunk;
use super::latent::{Indexer, Latent};
use crate::ops::Gate;
use crate::tape::{Builder, Slot};

/// Files of GLM-5.2 from before `attention.indexer.types` existed are known by their training context.
const LONG: usize = 1 << 20;

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let latent = Latent::scaled(b, false)?;
    let indexer = Indexer::new(b, latent.rope.clone().expect("heads are rotated in part"), 0.0)?;
    let long = b.tokens("context_length")? >= LONG;
    let mut last = None;
    trunk(b, &latent, Gate::Sigmoid, |b, h, low| {
        let full = !long || b.layer() < 2 || b.layer() % 4 == 2;
        indexer.build_or_last(b, (h, low), full, &mut last)
    })
}
