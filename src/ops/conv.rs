//! conv: a short causal convolution along the sequence, a few taps per channel, then SiLU.
//!
//! `out[t][c] = silu(sum_j w[c][j] * x[t - taps + 1 + j][c])`; before the sequence's start x is 0.

use anyhow::Result;

use super::glu::silu;
use crate::tape::{Builder, CpuIo, Op, Slot};

#[derive(Debug)]
struct Conv {
    taps: usize,
}

impl Op for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let x = io.ins[0];
        let n = x.len() / io.rows;
        for (t, row) in io.batch.rows.iter().enumerate() {
            io.states[0].write(row.seq, row.pos as usize, &x[t * n..(t + 1) * n]);
        }
        let (past, w) = (&io.states[0], io.weights[0].values);
        io.pool.pieces(&mut io.outs[0], n, x.len() * self.taps * 8, |t, out| {
            let row = io.batch.rows[t];
            out.fill(0.0);
            for j in 0..self.taps {
                let Some(p) = (row.pos as usize + 1 + j).checked_sub(self.taps) else { continue };
                for (c, (o, v)) in out.iter_mut().zip(past.row(row.seq, p).as_chunks::<4>().0).enumerate() {
                    *o += w[c * self.taps + j] * f32::from_le_bytes(*v);
                }
            }
            out.iter_mut().for_each(|o| *o = silu(*o));
        });
    }
}

impl Builder<'_> {
    /// Convolution of every column of `x` with `NAME.weight` (columns, taps), then SiLU.
    pub fn conv(&self, x: Slot, name: &str, taps: usize) -> Result<Slot> {
        let n = self.width(x);
        let w = self.vector(&format!("{name}.weight"), &[n, taps])?;
        let state = self.rows_state(format!("{name}.past"), n, crate::quant::TYPES[0], 1, Some(taps))?;
        Ok(self.push(name, Conv { taps }, &[x], &[n], &[w], &[state])[0])
    }
}
