//! cache: stores a layer's keys and values by position; attention reads them from there, in this layer or a later one.
//!
//! Storing and reading are two steps because some models read one cache in several layers.

use anyhow::{Result, bail};

use super::rotate::{LONGEST, LONGEST_OF_VALUES, run_of};
use crate::quant::QuantType;
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot, StateId, StateUse, WrongCacheType};

/// The cached rows of a layer, as attention reads them.
#[derive(Clone, Copy, Debug)]
pub struct Kv {
    /// The keys.
    pub(super) k: StateId,
    /// The values; None where the first `v_dim` columns of the keys are the values.
    pub(super) v: Option<StateId>,
    /// Heads of keys and of values.
    pub heads: usize,
    /// Columns of a key head.
    pub k_dim: usize,
    /// Columns of a value head.
    pub v_dim: usize,
    /// Positions that a token sees, itself included; None is all.
    pub window: Option<usize>,
    /// Columns of the runs that keys are rotated in, and values, where the formats ask for it.
    pub(super) runs: (Option<usize>, Option<usize>),
}

/// Stores every input in the state of the same number.
#[derive(Debug)]
struct Store;

impl Op for Store {
    fn name(&self) -> &'static str {
        "cache"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        for (x, state) in io.ins.iter().zip(io.states.iter_mut()) {
            state.write_rows(&io.batch.rows, x, io.pool);
        }
    }

    fn state_use(&self, _: usize) -> Option<StateUse> {
        Some(StateUse::Stores)
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        io.ins.iter().zip(io.states).try_for_each(|(x, state)| io.store(state, *x, io.lists.positions))
    }
}

impl Builder<'_> {
    /// Caches `k` (T, heads * k_dim) and `v` (T, heads * v_dim), of which a token sees the newest `window` rows.
    ///
    /// # Errors
    /// If the cache's format cannot hold such rows.
    pub fn cache(&self, k: Slot, v: Slot, heads: usize, window: Option<usize>) -> Result<Kv> {
        let (k_dim, v_dim) = (self.width(k) / heads, self.width(v) / heads);
        let (type_k, type_v) = (self.settings().type_k, self.settings().type_v);
        let states = [
            self.head_rows("attn.k", type_k, heads, (k_dim, k_dim), window)?,
            self.head_rows("attn.v", type_v, heads, (v_dim, v_dim), window)?,
        ];
        let runs = (run_of(type_k, &[k_dim], LONGEST), run_of(type_v, &[v_dim], LONGEST_OF_VALUES));
        let kept = [self.rotated(k, runs.0), self.rotated(v, runs.1)];
        self.role(Role::Attention).push_named("attn_cache", Store, &kept, &[], &[], &states);
        Ok(Kv { k: states[0], v: Some(states[1]), heads, k_dim, v_dim, window, runs })
    }

    /// Caches one key head `k` (T, k_dim) whose first `v_dim` columns are the values too.
    ///
    /// # Errors
    /// If the cache's format cannot hold such rows.
    pub fn cache_shared(&self, k: Slot, v_dim: usize, window: Option<usize>) -> Result<Kv> {
        let k_dim = self.width(k);
        debug_assert!(v_dim <= k_dim, "values are columns of the keys");
        let ty = self.settings().type_k;
        let state = self.head_rows("attn.k", ty, 1, (k_dim, v_dim), window)?;
        let run = run_of(ty, &[k_dim, v_dim], LONGEST);
        self.role(Role::Attention).push_named("attn_cache", Store, &[self.rotated(k, run)], &[], &[], &[state]);
        Ok(Kv { k: state, v: None, heads: 1, k_dim, v_dim, window, runs: (run, run) })
    }

    /// Caches `x` (T, width) in the keys' format, a row for each token, as keys of an indexer.
    ///
    /// # Errors
    /// If the cache's format cannot hold such rows.
    pub fn cache_rows(&self, name: &str, x: Slot) -> Result<StateId> {
        let (width, ty) = (self.width(x), self.settings().type_k);
        let state = self.rows_state(name, width, ty, 1, None)?;
        let x = self.rotated(x, run_of(ty, &[width], LONGEST));
        self.role(Role::Attention).push_named(&format!("{name}_cache"), Store, &[x], &[], &[], &[state]);
        Ok(state)
    }

    /// A state of rows of `heads` heads of `dim` columns, of which attention reads the first `part` by themselves too.
    fn head_rows(
        &self,
        name: &str,
        ty: &'static QuantType,
        heads: usize,
        (dim, part): (usize, usize),
        window: Option<usize>,
    ) -> Result<StateId> {
        let wrong = [dim, part].into_iter().find(|n| !n.is_multiple_of(ty.block));
        if let Some(columns) = wrong {
            let flag = if name == "attn.v" { "-ctv" } else { "-ctk" };
            let layer = self.layer();
            bail!(WrongCacheType::new(flag, ty, format!("the head size {columns} of layer {layer}")));
        }
        self.rows_state(name, heads * dim, ty, 1, window)
    }
}
