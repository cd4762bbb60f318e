//! scale: a value times a number, or times a vector column by column or head by head; or squashed
//! into a range by tanh.
//!
//! ```text
//! By(c)        out[t][i] = c * x[t][i]
//! Columns      out[t][i] = w[i / run] * x[t][i]               run: columns that share a factor
//! Affine       out[t][i] = w[i] * (x[t][i] + b[i])            the bias first
//! SoftCap(c)   out[t][i] = c * tanh(x[t][i] / c)
//! ```
//!
//! And each row times a factor that grows with its token's position p, which sharpens attention far beyond the trained
//! context (Llama 4, Mistral 3; as in llama.cpp's `llm_graph_input_attn_temp`):
//!
//! ```text
//! Temperature  out[t][i] = (1 + scale * ln(floor((p + offset) / every) + 1)) * x[t][i]
//! ```

use anyhow::Result;

use crate::cuda::{Grid, int, launch};
use crate::tape::{Batch, Builder, CpuIo, GpuIo, Op, Slot, Table};

#[derive(Clone, Copy, Debug)]
enum Scale {
    By(f32),
    Columns { run: usize },
    Affine,
    SoftCap(f32),
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        if matches!(self, Scale::SoftCap(_)) { "soft_cap" } else { "scale" }
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        const PIECE: usize = 1 << 14;
        let x = io.ins[0];
        let w = io.weights.first().map_or(&[][..], |w| w.values);
        match *self {
            Scale::Columns { run: 1 } => {
                for (out, x) in io.outs[0].chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
                    out.iter_mut().zip(x).zip(w).for_each(|((o, x), w)| *o = x * w);
                }
                return;
            }
            Scale::Columns { run } => {
                let heads = io.outs[0].chunks_exact_mut(run).zip(x.chunks_exact(run));
                for ((out, x), w) in heads.zip(w.iter().cycle()) {
                    out.iter_mut().zip(x).for_each(|(o, x)| *o = x * w);
                }
                return;
            }
            Scale::Affine => {
                let bias = io.weights[1].values;
                for (out, x) in io.outs[0].chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
                    out.iter_mut().zip(x).zip(w).zip(bias).for_each(|(((o, x), w), b)| *o = (x + b) * w);
                }
                return;
            }
            Scale::By(_) | Scale::SoftCap(_) => {}
        }
        io.pool.pieces(io.outs[0], PIECE, x.len() * 8, |i, out| {
            let x = &x[i * PIECE..][..out.len()];
            match *self {
                Scale::SoftCap(c) => out.iter_mut().zip(x).for_each(|(o, x)| *o = c * (x / c).tanh()),
                Scale::By(c) => out.iter_mut().zip(x).for_each(|(o, x)| *o = c * x),
                Scale::Columns { .. } | Scale::Affine => {}
            }
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, out) = (io.ins[0], io.outs[0].ptr);
        let total = x.rows * x.width;
        let (grid, n) = (Grid::each(total), total as u64);
        match *self {
            Scale::By(c) => launch::scale(io.gpu, grid, x.ptr, out, c, n),
            Scale::Columns { run } => {
                launch::scale_by(io.gpu, grid, x.ptr, io.weights[0].ptr, out, int(x.width), int(run), n)
            }
            Scale::Affine => {
                let [w, bias] = [0, 1].map(|i| io.weights[i].ptr);
                launch::affine(io.gpu, grid, x.ptr, w, bias, out, int(x.width), n)
            }
            Scale::SoftCap(c) => launch::soft_cap(io.gpu, grid, x.ptr, out, c, n),
        }
    }
}

/// The factor of a row by the position of its token.
#[derive(Clone, Copy, Debug)]
pub struct Temperature {
    /// How fast it grows.
    pub scale: f32,
    /// Tokens after which it grows again.
    pub every: usize,
    /// What is added to the position, in tokens.
    pub offset: usize,
}

impl Temperature {
    /// The factor at a position.
    fn at(self, pos: u32) -> f32 {
        let steps = (pos as usize + self.offset) / self.every;
        (1.0 + self.scale as f64 * (steps as f64 + 1.0).ln()) as f32
    }
}

#[derive(Debug)]
struct TemperatureOp(Temperature);

impl Op for TemperatureOp {
    fn name(&self) -> &'static str {
        "temperature"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (x, rows) = (io.ins[0], &io.batch.rows);
        let width = x.len() / io.rows;
        io.pool.pieces(io.outs[0], width, x.len() * 8, |t, out| {
            let factor = self.0.at(rows[t].pos);
            out.iter_mut().zip(&x[t * width..]).for_each(|(o, x)| *o = factor * x);
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, total) = (io.ins[0], io.ins[0].rows * io.ins[0].width);
        let (grid, factors) = (Grid::each(total), io.tables[0]);
        launch::scale_rows(io.gpu, grid, x.ptr, factors, io.outs[0].ptr, int(x.width), total as u64)
    }

    fn by_row(&self) -> bool {
        false
    }

    fn tables(&self) -> Vec<Table> {
        let t = self.0;
        let fill = move |batch: &Batch, to: &mut [u8]| {
            for (row, to) in batch.rows.iter().zip(to.as_chunks_mut::<4>().0) {
                *to = t.at(row.pos).to_ne_bytes();
            }
        };
        vec![Table { key: format!("{t:?}"), row_bytes: 4, fill: Box::new(fill) }]
    }
}

impl Builder<'_> {
    /// Each row of `x` times the factor of its token's position.
    pub fn temperature(&self, x: Slot, t: Temperature) -> Slot {
        debug_assert!(t.every > 0, "the number of tokens was read as a count");
        self.push(TemperatureOp(t), &[x], &[self.width(x)], &[])[0]
    }

    /// `c * x`; `x` itself where `c` is 1.
    pub fn scale(&self, x: Slot, c: f32) -> Slot {
        if c == 1.0 { x } else { self.push(Scale::By(c), &[x], &[self.width(x)], &[])[0] }
    }

    /// `x` times a vector of its width, column by column.
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn scale_by(&self, x: Slot, name: &str) -> Result<Slot> {
        self.scale_heads(x, name, self.width(x))
    }

    /// Each of the `heads` heads of `x` times its number of a vector.
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn scale_heads(&self, x: Slot, name: &str, heads: usize) -> Result<Slot> {
        debug_assert!(self.width(x).is_multiple_of(heads));
        let w = self.vector(name, &[heads])?;
        let op = Scale::Columns { run: self.width(x) / heads };
        Ok(self.push(op, &[x], &[self.width(x)], &[w])[0])
    }

    /// `(x + NAME.bias) * NAME.weight`, column by column: the bias is added before the product.
    ///
    /// # Errors
    /// If the file does not have both in this shape.
    pub fn affine(&self, x: Slot, name: &str) -> Result<Slot> {
        let n = [self.width(x)];
        let weights = [self.vector(&format!("{name}.weight"), &n)?, self.vector(&format!("{name}.bias"), &n)?];
        Ok(self.push_named(name, Scale::Affine, &[x], &n, &weights, &[])[0])
    }

    /// `cap * tanh(x / cap)`; `x` itself where `cap` is 0.
    pub fn soft_cap(&self, x: Slot, cap: f32) -> Slot {
        if cap == 0.0 { x } else { self.push(Scale::SoftCap(cap), &[x], &[self.width(x)], &[])[0] }
    }
}

#[cfg(test)]
mod tests {
    use super::Temperature;

    #[test]
    fn the_factor_is_one_up_to_the_first_step_and_grows_with_its_logarithm() {
        let t = Temperature { scale: 0.5, every: 8192, offset: 1 };
        assert_eq!([0, 8190].map(|pos| t.at(pos)), [1.0; 2]);
        assert_eq!(t.at(8191), 1.0 + 0.5 * 2f32.ln());
        assert_eq!(t.at(7 * 8192 - 1), 1.0 + 0.5 * 8f32.ln());
    }
}
