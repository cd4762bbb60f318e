//! embed: each token's row of a table: its embedding.

use anyhow::Result;

use crate::cuda::{Grid, int, launch};
use crate::tape::{Batch, Builder, CpuIo, GpuIo, Op, Role, Slot, State, Weight};

#[derive(Debug)]
struct Embed {
    /// Whether the table stays in the file.
    mapped: bool,
}

impl Op for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let w = &io.weights[0];
        let (ty, bytes) = (w.format(), w.row_bytes());
        for (row, out) in io.batch.rows.iter().zip(io.outs[0].chunks_exact_mut(w.shape[2])) {
            let at = row.token as usize * bytes;
            (ty.dequant)(&w.data[at..at + bytes], out);
        }
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (w, out) = (&io.weights[0], io.outs[0]);
        let grid = Grid::new([out.rows, 1, 1], 128);
        launch::rows(io.gpu, w.kernels(), grid, w.ptr, io.lists.tokens, out.ptr, int(out.width), w.row_bytes())
    }

    fn gpu_refuses(&self) -> Option<String> {
        self.mapped.then(|| "a table that stays in the file".into())
    }

    fn rows_ahead(&self, batch: &Batch, _: &[&State]) -> Vec<usize> {
        batch.rows.iter().map(|row| row.token as usize).collect()
    }

    fn by_row(&self) -> bool {
        false
    }

    fn bytes_per_token(&self, weights: &[&Weight]) -> usize {
        weights[0].bytes / weights[0].shape[1]
    }
}

impl Builder<'_> {
    /// The token embeddings: (T, n_embd), from `token_embd.weight` (n_vocab, n_embd).
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn embed(&self) -> Result<Slot> {
        let n_embd = self.count("embedding_length")?;
        let w = self.matrix("token_embd.weight", &[self.n_vocab()?, n_embd])?;
        Ok(self.push_named("token_embd", Embed { mapped: false }, &[], &[n_embd], &[w], &[])[0])
    }

    /// The token embeddings again, in a draft head's builder: its own, `NAME.weight`, where the block has them, else the
    /// model's: (T, n_embd).
    ///
    /// # Errors
    /// If the file does not have them in this shape.
    pub fn embed_again(&self, name: &str) -> Result<Slot> {
        let (own, n_embd) = (format!("{name}.weight"), self.count("embedding_length")?);
        let shape = [self.n_vocab()?, n_embd];
        let w = if self.has(&own) {
            self.matrix(&own, &shape)?
        } else {
            self.root().matrix("token_embd.weight", &shape)?
        };
        let b = self.role(Role::Embedding);
        Ok(b.push_named(name, Embed { mapped: false }, &[], &[n_embd], &[w], &[])[0])
    }

    /// Each token's row of a further table `NAME.weight` (n_vocab, width), which stays in the file: (T, width).
    ///
    /// # Errors
    /// If the file does not have it in this shape.
    pub fn look_up(&self, name: &str, width: usize) -> Result<Slot> {
        let b = self.role(Role::Embedding);
        let w = b.mapped(&format!("{name}.weight"), &[b.n_vocab()?, width])?;
        Ok(b.push_named(name, Embed { mapped: true }, &[], &[width], &[w], &[])[0])
    }
}
