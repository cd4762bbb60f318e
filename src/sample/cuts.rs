//! The stages that leave fewer candidates, besides top-k, which is [`Candidates::top`].
//!
//! Sources: top-p <https://arxiv.org/abs/1904.09751>, typical <https://arxiv.org/abs/2202.00666>, top-n-sigma
//! <https://arxiv.org/abs/2411.07641>, min-p <https://github.com/ggml-org/llama.cpp/pull/3841>, XTC
//! <https://github.com/oobabooga/text-generation-webui/pull/6335>; what is kept at the edge is llama.cpp's.

use super::candidates::{Candidate, Candidates};

/// Keeps the likeliest, up to the one with which they reach `p`. The sum is rounded to what `p` is rounded to, so that
/// 0.4 and 0.3 reach 0.7.
pub(super) fn top_p(c: &mut Candidates, p: f32, min_keep: usize) {
    c.softmax();
    c.cut_likeliest(|sum, n| sum as f32 >= p && n >= min_keep);
}

/// Keeps what is at least `p` times as likely as the likeliest.
pub(super) fn min_p(c: &mut Candidates, p: f32, min_keep: usize) {
    let max = c.max();
    let floor = max.min(max + p.ln());
    let mut n = 0;
    c.each(|logit| n += usize::from(logit >= floor));
    if n < min_keep { c.top(min_keep) } else { c.keep(floor) }
}

/// The entropy of probabilities just set, in nats; `lse` is what [`Candidates::softmax`] gave.
pub(super) fn entropy(list: &[Candidate], lse: f64) -> f64 {
    list.iter().map(|c| f64::from(c.p) * (lse - f64::from(c.logit))).sum()
}

/// Keeps the tokens whose surprise, -ln p, is nearest to the entropy, up to the one with which they are more than `p`.
pub(super) fn typical(c: &mut Candidates, p: f32, min_keep: usize) {
    let lse = c.softmax();
    let entropy = entropy(c.list(), lse);
    let off = |c: &Candidate| (lse - f64::from(c.logit) - entropy).abs();
    let nearer = |a: &Candidate, b: &Candidate| off(a).total_cmp(&off(b)).then(a.id.cmp(&b.id));
    c.cut(nearer, |sum, n| sum as f32 > p && n >= min_keep);
}

/// Keeps logits within `n` standard deviations of the largest.
pub(super) fn top_n_sigma(c: &mut Candidates, n: f32) {
    let (mut count, mut sum) = (0f64, 0f64);
    c.each(|l| (count, sum) = (count + 1.0, sum + f64::from(l)));
    let mean = sum / count;
    let mut squares = 0f64;
    c.each(|l| squares += (f64::from(l) - mean).powi(2));
    c.keep((f64::from(c.max()) - f64::from(n) * (squares / count).sqrt()) as f32);
}

/// Of the tokens with a probability of at least `threshold`, keeps the least likely alone; the others stay.
pub(super) fn xtc(c: &mut Candidates, threshold: f32, min_keep: usize) {
    if c.list().len() < 2 {
        return;
    }
    c.softmax();
    let list = c.list();
    let likely = |c: &Candidate| c.p >= threshold;
    let n = list.iter().filter(|c| likely(c)).count();
    // The least likely; of equals the last, which a sort by likelihood would put last too.
    let least = list.iter().filter(|c| likely(c)).min_by(|a, b| a.logit.total_cmp(&b.logit).then(b.id.cmp(&a.id)));
    let Some(least) = least.map(|c| c.id) else { return };
    if list.len() + 1 - n >= min_keep {
        list.retain(|c| !likely(c) || c.id == least);
    }
}
