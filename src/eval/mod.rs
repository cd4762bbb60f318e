//! Perplexity and KL divergence over a text, by llama-perplexity's method: pure arithmetic and one file format.
//!
//! ```text
//! chunk    n_ctx tokens in a row; chunks do not overlap, and what is left at the end of the text is not used
//! input    a chunk, its first token replaced by BOS where the vocabulary puts one before a text
//! row      the logits after position p; it is judged by the token of the chunk at p + 1
//! counted  rows n_ctx/2 .. n_ctx-1 of a chunk, so that every counted token has half a chunk of context
//! ```

pub mod base;
mod stats;

pub use stats::{Divergence, Figure, Likelihood, Pair};

use std::ops::Range;

use anyhow::{Result, bail};
use rayon::prelude::*;

use base::BaseRow;

use crate::cpu::in_parallel;

/// How a text is cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Tokens in a chunk.
    pub n_ctx: usize,
    /// Chunks.
    pub n: usize,
}

impl Chunks {
    /// Cuts `n_tokens` into chunks of `n_ctx`, at most `limit` of them.
    ///
    /// # Errors
    /// If `n_ctx` is too small, or there are too few tokens for a chunk.
    pub fn cut(n_tokens: usize, n_ctx: usize, limit: usize) -> Result<Chunks> {
        if n_ctx < 3 {
            bail!("a context of {n_ctx} tokens leaves nothing to judge: chunks need at least 3 (-c)");
        }
        let n = (n_tokens / n_ctx).min(limit);
        if n == 0 {
            bail!(
                "the text has {n_tokens} tokens, a chunk needs {n_ctx}: give a longer text, or a smaller context with -c"
            );
        }
        Ok(Chunks { n_ctx, n })
    }

    /// The counted rows of a chunk.
    pub fn counted(&self) -> Range<usize> {
        self.n_ctx / 2..self.n_ctx - 1
    }

    /// The tokens of chunk `i`.
    pub fn tokens<'a>(&self, i: usize, tokens: &'a [u32]) -> &'a [u32] {
        &tokens[i * self.n_ctx..(i + 1) * self.n_ctx]
    }

    /// Tokens in all chunks.
    pub fn n_tokens(&self) -> usize {
        self.n * self.n_ctx
    }

    /// Rows counted in all chunks.
    pub fn n_rows(&self) -> usize {
        self.n * self.counted().len()
    }
}

/// One row of logits with what makes log-probabilities of them: ln p(i) = logits\[i\] - max - ln sum exp(logits - max).
#[derive(Clone, Copy, Debug)]
pub struct LogProbs<'a> {
    logits: &'a [f32],
    max: f32,
    min: f32,
    top: usize, // the first of the likeliest tokens
    log_sum: f64,
}

/// The rows of `logits` (rows, n_vocab), computed side by side.
///
/// # Errors
/// If the logits of a row have no softmax; the message names one that is not finite. If the system starts no threads.
pub fn log_probs(logits: &[f32], n_vocab: usize) -> Result<Vec<LogProbs<'_>>> {
    in_parallel(|| logits.par_chunks_exact(n_vocab).map(LogProbs::new).collect())?
}

/// The model's rows against the base's, each judged by its token.
///
/// # Errors
/// If the system starts no threads.
pub fn pairs(rows: &[LogProbs<'_>], base: &[BaseRow<'_>], tokens: &[u32]) -> Result<Vec<Pair>> {
    let rows = rows.par_iter().zip_eq(base).zip_eq(tokens);
    in_parallel(|| rows.map(|((row, base), &token)| row.against(base, token)).collect())
}

impl<'a> LogProbs<'a> {
    /// Fails where the logits have no softmax.
    ///
    /// # Errors
    /// If the logits have no softmax; the message names one that is not finite.
    pub fn new(logits: &'a [f32]) -> Result<LogProbs<'a>> {
        let (mut max, mut min, mut top) = (f32::NEG_INFINITY, f32::INFINITY, 0);
        for (i, &v) in logits.iter().enumerate() {
            if v > max {
                (max, top) = (v, i);
            }
            min = min.min(v);
        }
        let sum: f64 = logits.iter().map(|&v| (v - max).exp() as f64).sum();
        if !sum.is_finite() {
            let bad = logits.iter().find(|v| v.is_nan() || **v == f32::INFINITY).copied().unwrap_or(max);
            bail!("the model computed a logit of {bad}: its file is damaged, or it does not fit the program");
        }
        Ok(LogProbs { logits, max, min, top, log_sum: sum.ln() })
    }

    /// ln p(token).
    fn of(&self, token: usize) -> f64 {
        self.logits[token] as f64 - self.max as f64 - self.log_sum
    }

    /// -ln p(token): how surprised the model is.
    pub fn nll(&self, token: u32) -> f64 {
        -self.of(token as usize)
    }

    /// This row against the base model's for the same place, judged by `token`.
    ///
    /// The divergence leaves out what the base gives less than e^-16: the file holds no less than that.
    pub fn against(&self, base: &BaseRow<'_>, token: u32) -> Pair {
        let (mut kld, mut top, mut top_base) = (0.0f64, 0, f32::NEG_INFINITY);
        for (i, ln_base) in base.log_probs().enumerate() {
            if ln_base > top_base {
                (top_base, top) = (ln_base, i);
            }
            if ln_base > -16.0 {
                kld += ln_base.exp() as f64 * (ln_base as f64 - self.of(i));
            }
        }
        let (nll, nll_base) = (self.nll(token), -(base.log_prob(token as usize) as f64));
        Pair { nll, nll_base, kld, dp: (-nll).exp() - (-nll_base).exp(), same_top: top == self.top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ln(p: [f64; 3]) -> [f32; 3] {
        p.map(|p| p.ln() as f32)
    }

    #[test]
    fn three_tokens_with_known_probabilities_have_the_surprise_computed_by_hand() {
        let logits = ln([1.0, 2.0, 5.0]).map(|v| v + 30.0); // 1/8, 2/8, 5/8, whatever is added to all
        let row = LogProbs::new(&logits).unwrap();
        for (token, p) in [0.125f64, 0.25, 0.625].into_iter().enumerate() {
            assert!((row.nll(token as u32) + p.ln()).abs() < 1e-5, "{token}: {}", row.nll(token as u32));
        }
    }

    #[test]
    fn three_tokens_against_a_base_have_the_divergence_computed_by_hand() {
        let (model, base) = (ln([1.0, 2.0, 5.0]), ln([1.0, 1.0, 2.0]));
        let mut bytes = vec![0; base::row_bytes(3)];
        LogProbs::new(&base).unwrap().encode(&mut bytes);
        let pair = LogProbs::new(&model).unwrap().against(&BaseRow::new(&bytes, 3), 2);
        let kld = 0.25 * (0.25f64 / 0.125).ln() + 0.25 * (0.25f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.625).ln();
        assert!((pair.kld - kld).abs() < 1e-5, "{} is not {kld}", pair.kld);
        assert!((pair.dp - (0.625 - 0.5)).abs() < 1e-5 && pair.same_top, "{pair:?}");
        assert!((pair.nll - 1.6f64.ln()).abs() < 1e-5 && (pair.nll_base - 2.0f64.ln()).abs() < 1e-5, "{pair:?}");
    }

    #[test]
    fn a_model_whose_favourite_differs_from_the_base_s_is_not_counted_as_the_same_top() {
        let mut bytes = vec![0; base::row_bytes(3)];
        LogProbs::new(&ln([1.0, 3.0, 2.0])).unwrap().encode(&mut bytes);
        let base = BaseRow::new(&bytes, 3);
        assert!(!LogProbs::new(&ln([1.0, 2.0, 3.0])).unwrap().against(&base, 0).same_top);
        assert!(LogProbs::new(&ln([1.0, 9.0, 3.0])).unwrap().against(&base, 0).same_top);
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error_and_not_a_perplexity() {
        for bad in [[0.0, f32::NAN, 1.0], [0.0, f32::INFINITY, 1.0], [f32::NEG_INFINITY; 3]] {
            assert!(LogProbs::new(&bad).unwrap_err().to_string().contains("logit of"), "{bad:?}");
        }
        let masked = LogProbs::new(&[0.0, f32::NEG_INFINITY, 0.0]).unwrap(); // a token that cannot come is no fault
        assert!((masked.nll(0) - 2f64.ln()).abs() < 1e-6);
        assert_eq!(masked.nll(1), f64::INFINITY);
    }

    #[test]
    fn every_chunk_counts_the_rows_of_its_second_half_that_have_a_next_token() {
        let c = Chunks::cut(1000, 128, usize::MAX).unwrap();
        assert_eq!((c.n, c.counted(), c.n_rows(), c.n_tokens()), (7, 64..127, 441, 896));
        assert_eq!(Chunks::cut(1000, 128, 3).unwrap().n, 3);
        let odd = Chunks::cut(5, 5, 9).unwrap();
        assert_eq!((odd.counted(), odd.tokens(0, &[1, 2, 3, 4, 5])), (2..4, &[1, 2, 3, 4, 5][..]));
    }

    #[test]
    fn a_text_too_short_for_a_chunk_is_told_how_many_tokens_it_needs() {
        let e = Chunks::cut(127, 128, 9).unwrap_err().to_string();
        assert!(e.contains("127 tokens") && e.contains("needs 128"), "{e}");
        assert!(Chunks::cut(100, 2, 9).unwrap_err().to_string().contains("at least 3"));
    }
}
