//! sources: a residual stream that attends to what it was at earlier layers (attention residuals of
//! Kimi K3).
//!
//! ```text
//! score_i = weight . (x_i / sqrt(mean(x_i^2) + eps))          x_i: the kept values of the row, then the current one
//! out     = sum_i softmax(score)_i * x_i
//! ```

use anyhow::{Result, bail};

use crate::cpu::dense;
use crate::cuda::launch::MOST_SOURCES;
use crate::cuda::{Grid, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Slot};

#[derive(Debug)]
struct MixSources {
    /// Kept values of a row.
    parts: usize,
    eps: f32,
}

/// How much a source counts, before the softmax.
fn score(x: &[f32], weight: &[f32], eps: f32) -> f32 {
    let squares: f64 = x.iter().map(|&v| v as f64 * v as f64).sum();
    let dot: f64 = x.iter().zip(weight).map(|(&v, &w)| v as f64 * w as f64).sum();
    dot as f32 / ((squares / x.len() as f64) as f32 + eps).sqrt()
}

impl Op for MixSources {
    fn name(&self) -> &'static str {
        "sources"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (stack, last, weight) = (io.ins[0], io.ins[1], io.weights[0].values);
        let (n, parts) = (weight.len(), self.parts);
        io.pool.pieces(io.outs[0], n, (stack.len() + last.len()) * 8, |t, out| {
            let kept = stack[t * parts * n..(t + 1) * parts * n].chunks_exact(n);
            let sources: Vec<&[f32]> = kept.chain([&last[t * n..(t + 1) * n]]).collect();
            let mut shares: Vec<f32> = sources.iter().map(|x| score(x, weight, self.eps)).collect();
            let most = dense::largest(&mut shares, None);
            let total = dense::exponentials(&mut shares, most);
            out.fill(0.0);
            sources.iter().zip(&shares).for_each(|(x, share)| dense::add_times(out, share / total, x));
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (stack, last) = (io.ins[0], io.ins[1]);
        launch::mix_sources(
            io.gpu,
            Grid::new([last.rows, 1, 1], 256),
            stack.ptr,
            last.ptr,
            io.weights[0].ptr,
            io.outs[0].ptr,
            int(self.parts),
            int(last.width),
            self.eps,
        )
    }
}

impl Builder<'_> {
    /// `x` (T, n) mixed with the values that `stack` (T, parts * n) keeps of it, by attention with
    /// the vector `NAME.weight` (n): (T, n).
    ///
    /// # Errors
    /// If the file does not have the vector, or the stack has too many parts.
    pub fn mix_sources(&self, stack: Slot, x: Slot, name: &str, eps: f32) -> Result<Slot> {
        let n = self.width(x);
        let parts = self.width(stack) / n;
        if parts >= MOST_SOURCES {
            bail!(
                "{}: {parts} values are kept of the residual stream, fewer than {MOST_SOURCES} expected",
                self.file()
            );
        }
        let w = self.vector(&format!("{name}.weight"), &[n])?;
        Ok(self.push_named(name, MixSources { parts, eps }, &[stack, x], &[n], &[w], &[])[0])
    }
}
