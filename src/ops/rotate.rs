//! rotate: a Walsh-Hadamard transform of runs of columns, for rows that a cache keeps in few bits.
//!
//! ```text
//! out[i] = sum_j (-1)^(number of bits that i and j have in common) x[j] / sqrt(n)     over the n columns of i's run
//! ```
//! A few columns of keys are much larger than the others, and a block of 4 or 5 bits has one scale: next to a large value the
//! others become 0. The transform spreads each value over its run. It is orthonormal and its own inverse, so scores of rotated
//! queries and rotated keys are those of the plain ones, and a mix of rotated values is rotated back. llama.cpp rotates its
//! caches in the same way (b11434, llama-kv-cache.cpp `attn_rot_k` and `attn_rot_v`): keys in the longest runs that divide a
//! head, values in runs of 64. It does so for 8 bits too, which gain little; here those stay as they are.

use anyhow::Result;

use crate::cpu::dense;
use crate::cuda::{Grid, Ptr, launch};
use crate::quant::QuantType;
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot};

/// Columns of the longest run: as many threads as a block of the kernel has.
pub(super) const LONGEST: usize = 512;
/// Columns of the longest run of values.
pub(super) const LONGEST_OF_VALUES: usize = 64;

/// The columns of the runs in which rows of a cache of this format are rotated: the largest power of two up to `most` that
/// divides all of `columns`. None for floats and for codes of 8 bits, which stay as they are.
pub(super) fn run_of(ty: &QuantType, columns: &[usize], most: usize) -> Option<usize> {
    let run = columns.iter().fold(most, |run, columns| run.min(1 << columns.trailing_zeros()));
    (ty.bits() < 8.0).then_some(run)
}

#[derive(Debug)]
struct Rotate {
    /// Columns of a run.
    run: usize,
}

impl Op for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let x = io.ins[0];
        let width = x.len() / io.rows;
        io.pool.pieces(io.outs[0], width, size_of_val(x) * self.run.ilog2() as usize, |t, out| {
            out.copy_from_slice(&x[t * width..][..width]);
            dense::hadamard(out, self.run);
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let x = io.ins[0];
        rotate(io, x.ptr, x.rows * x.width, self.run, io.outs[0].ptr)
    }
}

/// Rotates runs of `n` values on a GPU; `out` may be `x`.
pub(super) fn rotate(io: &GpuIo<'_>, x: Ptr, n: usize, run: usize, out: Ptr) -> Result<()> {
    launch::rotate(io.gpu, Grid::new([n / run, 1, 1], run), x, out, 1.0 / (run as f32).sqrt())
}

impl Builder<'_> {
    /// The columns of `x` rotated in runs of this length; `x` itself where there is none.
    pub(super) fn rotated(&self, x: Slot, run: Option<usize>) -> Slot {
        let Some(run) = run else { return x };
        self.role(Role::Attention).push_after(x, Rotate { run }, &[x], &[self.width(x)], &[], &[])[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Rng, by_name};

    #[test]
    fn runs_divide_heads_and_values_and_only_few_bits_are_rotated() {
        let q4_0 = by_name("q4_0").unwrap();
        for (columns, run) in
            [(&[128][..], 128), (&[576, 512], 64), (&[96], 32), (&[192], 64), (&[512, 512], 512), (&[1024], 512)]
        {
            assert_eq!(run_of(q4_0, columns, LONGEST), Some(run), "{columns:?}");
        }
        assert_eq!(run_of(q4_0, &[128], LONGEST_OF_VALUES), Some(64));
        for ty in ["f32", "f16", "bf16", "q8_0"] {
            assert_eq!(run_of(by_name(ty).unwrap(), &[128], LONGEST), None, "{ty}");
        }
    }

    /// Keys as real models have them: one column of a head is thirty times as large as the others.
    #[test]
    fn beside_a_large_column_the_others_survive_a_cache_of_few_bits() {
        let mut rng = Rng(41);
        for name in ["q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"] {
            let ty = by_name(name).unwrap();
            let error = |run: Option<usize>, x: &[f32]| {
                let mut kept = x.to_vec();
                run.iter().for_each(|n| dense::hadamard(&mut kept, *n));
                let mut blocks = vec![0; ty.row_bytes(x.len())];
                crate::cpu::encode(ty, &kept, &mut blocks);
                (ty.dequant)(&blocks, &mut kept);
                run.iter().for_each(|n| dense::hadamard(&mut kept, *n));
                let others = x.iter().zip(&kept).filter(|(x, _)| x.abs() < 10.0);
                others.map(|(x, k)| (x - k).powi(2)).sum::<f32>()
            };
            let (mut plain, mut rotated) = (0.0, 0.0);
            for _ in 0..50 {
                let mut x: Vec<f32> = (0..128).map(|_| rng.normal()).collect();
                x[17] = 30.0 + rng.normal();
                (plain, rotated) = (plain + error(None, &x), rotated + error(run_of(ty, &[128], LONGEST), &x));
            }
            // As they are, the 31 in its block lose most of what they were.
            assert!(rotated < 0.5 * plain, "{name}: {rotated} rotated, {plain} as they are");
        }
    }
}
