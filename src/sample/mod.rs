//! From logits to a token: pure and seeded, so the same seed gives the same text.
//!
//! The chain, in llama.cpp's order: keep the `top_k` likeliest, then those that together reach `top_p`, then those at
//! least `min_p` times as likely as the likeliest; then temperature, then a draw. Each cut looks at probabilities
//! before temperature. A temperature of 0 takes the likeliest token (the lower number on a tie).

use crate::quant::Rng;

/// How tokens are chosen.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// 0 for greedy.
    pub temp: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    rng: Rng,
}

/// The likeliest token; the lower number on a tie.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, v) in logits.iter().enumerate() {
        if *v > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Whether a mask (bit `t % 32` of word `t / 32`) has this token.
fn allows(mask: &[u32], token: usize) -> bool {
    mask.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

impl Sampler {
    /// A sampler whose draws follow from `seed`.
    pub fn new(temp: f32, top_k: usize, top_p: f32, min_p: f32, seed: u64) -> Sampler {
        Sampler { temp, top_k, top_p, min_p, rng: Rng(seed) }
    }

    /// Draws a token, of the allowed ones if a mask is given (bit `t % 32` of word `t / 32`); None if there is none.
    pub fn pick(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Option<u32> {
        let masked: Vec<f32>;
        let logits = match allowed {
            None => logits,
            Some(mask) => {
                let keep = |(i, &l): (usize, &f32)| if allows(mask, i) { l } else { f32::NEG_INFINITY };
                masked = logits.iter().enumerate().map(keep).collect();
                &masked
            }
        };
        let best = argmax(logits);
        if logits[best as usize] == f32::NEG_INFINITY {
            return None;
        }
        if self.temp <= 0.0 {
            return Some(best);
        }
        let by = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let mut list: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, &l)| (i as u32, l)).collect();
        let k = if self.top_k == 0 { list.len() } else { self.top_k.min(list.len()) };
        if k < list.len() {
            list.select_nth_unstable_by(k, by);
            list.truncate(k);
        }
        list.sort_unstable_by(by);
        let max = list[0].1;
        let weights: Vec<f64> = list.iter().map(|&(_, l)| ((l - max) as f64).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut keep = list.len();
        if self.top_p < 1.0 {
            let mut sum = 0.0;
            let reach = weights.iter().position(|w| {
                sum += w / total;
                sum >= self.top_p as f64
            });
            keep = reach.map_or(keep, |i| i + 1);
        }
        if self.min_p > 0.0 {
            keep = weights[..keep].iter().take_while(|&&w| w >= self.min_p as f64).count().max(1);
        }
        let heat = |l: f32| (((l - max) / self.temp) as f64).exp();
        let total: f64 = list[..keep].iter().map(|&(_, l)| heat(l)).sum();
        let mut at = (self.rng.bits() >> 11) as f64 / (1u64 << 53) as f64 * total;
        for &(id, l) in &list[..keep] {
            at -= heat(l);
            if at < 0.0 {
                return Some(id);
            }
        }
        list[..keep].iter().rfind(|(_, l)| *l > f32::NEG_INFINITY).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use std::f32::consts::LN_2;

    use super::*;

    /// How often each token comes in `n` draws.
    fn shares(mut s: Sampler, logits: &[f32], n: usize) -> Vec<f64> {
        let mut count = vec![0f64; logits.len()];
        (0..n).for_each(|_| count[s.pick(logits, None).unwrap() as usize] += 1.0 / n as f64);
        count
    }

    fn near(got: &[f64], want: &[f64]) {
        // 20,000 draws: four standard errors of a share are below 0.015.
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 0.015), "{got:?} for {want:?}");
    }

    const LN: [f32; 4] = [-LN_2, -2.0 * LN_2, -3.0 * LN_2, -3.0 * LN_2]; // ln of 1/2, 1/4, 1/8, 1/8

    #[test]
    fn with_everything_off_tokens_come_as_often_as_their_probability_says() {
        near(&shares(Sampler::new(1.0, 0, 1.0, 0.0, 1), &LN, 20_000), &[0.5, 0.25, 0.125, 0.125]);
    }

    #[test]
    fn temperature_squares_the_odds_at_one_half() {
        let w = [0.25, 0.0625, 0.015625, 0.015625].map(|v| v / 0.34375);
        near(&shares(Sampler::new(0.5, 0, 1.0, 0.0, 2), &LN, 20_000), &w);
    }

    #[test]
    fn top_k_keeps_the_k_likeliest() {
        near(&shares(Sampler::new(1.0, 2, 1.0, 0.0, 3), &LN, 20_000), &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
    }

    #[test]
    fn top_p_keeps_the_token_that_reaches_p() {
        near(&shares(Sampler::new(1.0, 0, 0.6, 0.0, 4), &LN, 20_000), &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
    }

    #[test]
    fn min_p_is_measured_against_the_likeliest_token() {
        near(&shares(Sampler::new(1.0, 0, 1.0, 0.3, 5), &LN, 20_000), &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_the_lower_number_on_a_tie() {
        assert_eq!(Sampler::new(0.0, 40, 0.95, 0.05, 6).pick(&[0.0, 2.0, 2.0, 1.0], None), Some(1));
    }

    #[test]
    fn a_mask_leaves_only_its_tokens_and_nothing_where_it_has_none() {
        let masked = |mask: &[u32], temp| {
            let mut s = Sampler::new(temp, 2, 0.6, 0.3, 8);
            (0..50).map(|_| s.pick(&LN, Some(mask))).collect::<Vec<_>>()
        };
        for temp in [0.0, 1.0] {
            assert_eq!(masked(&[0b1000], temp), vec![Some(3); 50]);
            assert_eq!(masked(&[0], temp), vec![None; 50]);
            assert_eq!(masked(&[], temp), vec![None; 50]);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_draws() {
        let draw = |seed| {
            let mut s = Sampler::new(1.0, 0, 1.0, 0.0, seed);
            (0..50).map(|_| s.pick(&LN, None)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
