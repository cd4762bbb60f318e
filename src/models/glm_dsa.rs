//! GLM-5 to 5.2: DeepSeek V3's layers with an indexer in front of the attention; from 5.2 on most layers attend to the rows
//! that the last indexer before them chose.

use anyhow::Result;

use super::deepseek2::trunk;
use super::latent::{Indexer, Latent};
use crate::ops::{Gate, Selected};
use crate::tape::{Builder, Slot};

/// Files of GLM-5.2 from before `attention.indexer.types` existed are known by their training context.
const LONG: usize = 1 << 20;

pub(super) fn build(b: &Builder) -> Result<Slot> {
    let latent = Latent::rotated(b, false)?;
    let indexer = Indexer::new(b, latent.rope.clone().expect("heads are rotated in part"), 0.0)?;
    let long = b.tokens("context_length")? >= LONG;
    let mut last: Option<Selected> = None;
    trunk(b, &latent, Gate::Sigmoid, |b, h, low| {
        let unstated = !long || b.layer() < 2 || b.layer() % 4 == 2;
        if b.flag_or("attention.indexer.types", unstated)? {
            last = Some(indexer.build(b, h, low)?);
        } else if last.is_none() {
            return Err(b.bad_key("attention.indexer.types", false, "true for the first layer"));
        }
        Ok(last)
    })
}
