//! Drafted tokens are verified: several tokens of one sequence in one walk, as if they were read one after the other.
//!
//! A walk of `n` rows reads the weights that all of them need once, which is why a draft can pay. Its products go through
//! row kernels, so that on the CPU the bits of each row are those of a step with this token alone. The states keep what
//! going back takes, so that [`Session::rewind`] to any row of it computes nothing again.

use anyhow::{Result, bail};

use super::forward::{FEW, Looking, Output, Want};
use super::{Session, Shape};

/// Tokens that a sequence is to read, and what is wanted after each of them: [`Want::Last`] or [`Want::Argmax`].
pub type Draft<'a> = (usize, &'a [u32], Want);

impl Session {
    /// Reads tokens into each of several sequences in one walk, and returns what is wanted after every token. On the CPU,
    /// and on a GPU under [`Options::deterministic`](super::Options::deterministic), each comes out bit for bit as if the
    /// tokens were read one by one. Then [`Session::rewind`] goes back to any of them for free.
    ///
    /// # Errors
    /// With every sequence as it was: as [`Session::forward`]; if there are more tokens together than
    /// [`Session::verify_rows`], or of one sequence than one and [`Options::drafts`](super::Options::drafts).
    pub fn verify(&mut self, parts: &[Draft<'_>]) -> Result<Vec<Vec<Output>>> {
        self.recovering(|s| s.verify_once(parts))
    }

    /// Tokens that [`Session::verify`] takes together, at most.
    pub fn verify_rows(&self) -> usize {
        let Shape { n_batch, n_output_rows, .. } = self.shape;
        FEW.min(n_batch).min(n_output_rows)
    }

    /// Drafted tokens that a sequence verifies at once, at most.
    pub fn most_drafts(&self) -> usize {
        self.options.drafts.min(self.verify_rows() - 1)
    }

    fn verify_once(&mut self, parts: &[Draft<'_>]) -> Result<Vec<Vec<Output>>> {
        self.check_parts(parts)?;
        let (n, most) = (parts.iter().map(|p| p.1.len()).sum::<usize>(), self.verify_rows());
        if n > most {
            bail!("{n} tokens to verify together, at most {most} expected");
        }
        if let Some(part) = parts.iter().find(|p| !(1..=1 + self.options.drafts).contains(&p.1.len())) {
            let (n, seq, drafts) = (part.1.len(), part.0, self.options.drafts);
            bail!("{n} tokens of sequence {seq} to verify, expected one and at most {drafts} drafted ones");
        }
        let rows: Vec<(usize, u32, Want)> =
            parts.iter().flat_map(|&(seq, tokens, want)| tokens.iter().map(move |&t| (seq, t, want))).collect();
        let mut outputs = self.decode(&rows, true, Looking::default().observer)?.into_iter();
        Ok(parts.iter().map(|p| outputs.by_ref().take(p.1.len()).collect()).collect())
    }
}
