//! Mistral 4: DeepSeek V2's layers with a softmax router, and queries that grow with the logarithm of their position.

use anyhow::Result;

use super::deepseek2::trunk;
use super::latent::Latent;
use crate::ops::Gate;
use crate::tape::{Builder, Slot};

pub(super) fn build(b: &Builder) -> Result<Slot> {
    trunk(b, &Latent::scaled(b, false)?, Gate::Softmax, |_, _, _| Ok(None))
}
