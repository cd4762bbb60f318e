//! pack: gathers pieces of every head into new heads: splits interleaved projections, joins rotated and plain parts,
//! repeats a row for several streams.
//!
//! Head `h` of the output is the concatenation over the pieces `x[h * stride + offset ..][..len]`; a stride of 0
//! gives every head the same piece.

use anyhow::{Result, bail};

use crate::cuda::{Grid, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Slot};

/// Where one piece of every head comes from.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The value it is taken from.
    pub x: Slot,
    /// Columns from one head's piece to the next; 0 shares one piece.
    pub stride: usize,
    /// Column of head 0's piece.
    pub offset: usize,
    /// Columns taken.
    pub len: usize,
}

#[derive(Debug)]
struct Pack {
    heads: usize,
    parts: Vec<(usize, usize, usize)>, // (stride, offset, len) of each input
}

impl Op for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let head: usize = self.parts.iter().map(|p| p.2).sum();
        for t in 0..io.rows {
            let out = &mut io.outs[0][t * head * self.heads..(t + 1) * head * self.heads];
            let mut at = 0;
            for (x, &(stride, offset, len)) in io.ins.iter().zip(&self.parts) {
                let width = x.len() / io.rows;
                let row = &x[t * width..(t + 1) * width];
                for h in 0..self.heads {
                    out[h * head + at..][..len].copy_from_slice(&row[h * stride + offset..][..len]);
                }
                at += len;
            }
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let head: usize = self.parts.iter().map(|p| p.2).sum();
        let mut at = 0;
        for (x, &(stride, offset, len)) in io.ins.iter().zip(&self.parts) {
            let total = io.rows * self.heads * len;
            launch::pack(
                io.gpu,
                Grid::each(total),
                x.ptr,
                io.outs[0].ptr,
                int(x.width),
                int(self.heads),
                int(head),
                int(at),
                int(stride),
                int(offset),
                int(len),
                total as u64,
            )?;
            at += len;
        }
        Ok(())
    }
}

impl Builder<'_> {
    /// New heads from pieces of others: (T, heads * sum of the pieces' lengths).
    ///
    /// # Errors
    /// If a piece reaches beyond its value.
    pub fn pack(&self, heads: usize, parts: &[Piece]) -> Result<Slot> {
        for p in parts {
            let (end, width) = ((heads - 1) * p.stride + p.offset + p.len, self.width(p.x));
            if end > width || p.len == 0 {
                bail!("{}: a step takes {} columns that end at {end} of {width}", self.file(), p.len);
            }
        }
        let ins: Vec<Slot> = parts.iter().map(|p| p.x).collect();
        let width = heads * parts.iter().map(|p| p.len).sum::<usize>();
        let op = Pack { heads, parts: parts.iter().map(|p| (p.stride, p.offset, p.len)).collect() };
        Ok(self.push(op, &ins, &[width], &[])[0])
    }

    /// Columns `offset..offset + len` of every row.
    ///
    /// # Errors
    /// If there are no such columns.
    pub fn columns(&self, x: Slot, offset: usize, len: usize) -> Result<Slot> {
        self.pack(1, &[Piece { x, stride: 0, offset, len }])
    }
}
