//! The stages against their definitions, written again in f64 with full sorts; llama.cpp's own numbers; and draws by how
//! often they come.

use super::*;

/// Every stage off.
fn off() -> Params {
    Params { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Params::default() }
}

/// What is left for the choice, by number, with its probability.
fn left(s: &mut Sampler, logits: &[f32], allowed: Option<&[u32]>) -> Vec<(u32, f64)> {
    s.narrow(logits, allowed);
    s.candidates.softmax();
    let mut list: Vec<_> = s.candidates.list().iter().map(|c| (c.id, f64::from(c.p))).collect();
    list.sort_by_key(|c| c.0);
    list
}

fn logs(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

fn random(rng: &mut Rng, n: usize, spread: f32) -> Vec<f32> {
    (0..n).map(|_| rng.normal() * spread).collect()
}

/// A list by the definitions: (number, logit), likeliest first.
type List = Vec<(u32, f64)>;

fn probabilities(list: &List) -> Vec<f64> {
    let max = list.iter().map(|c| c.1).fold(f64::NEG_INFINITY, f64::max);
    let all: f64 = list.iter().map(|c| (c.1 - max).exp()).sum();
    list.iter().map(|c| (c.1 - max).exp() / all).collect()
}

fn entropy(p: &[f64]) -> f64 {
    p.iter().map(|p| if *p > 0.0 { -p * p.ln() } else { 0.0 }).sum()
}

fn sorted(mut list: List) -> List {
    list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    list
}

/// How many of a list in order are needed until their sum passes.
fn until(p: impl Iterator<Item = f64>, min_keep: usize, passes: impl Fn(f64) -> bool) -> usize {
    let (mut sum, mut n) = (0.0, 0);
    for p in p {
        (sum, n) = (sum + p, n + 1);
        if passes(sum) && n >= min_keep {
            break;
        }
    }
    n
}

/// A stage by its definition; XTC as when it cuts.
fn defined(stage: Stage, list: List, q: &Params) -> List {
    let list = sorted(list);
    let p = probabilities(&list);
    let min_keep = q.min_keep as usize;
    let keep = |n: usize| list[..n].to_vec();
    let scaled = |t: f64| match t > 0.0 {
        true => list.iter().map(|c| (c.0, c.1 / t)).collect(),
        false => keep(1),
    };
    match stage {
        Stage::TopK if q.top_k > 0 => keep((q.top_k as usize).min(list.len())),
        Stage::TopP if q.top_p < 1.0 => keep(until(p.into_iter(), min_keep, |sum| sum >= f64::from(q.top_p))),
        Stage::MinP => {
            let n = p.iter().filter(|one| **one >= f64::from(q.min_p) * p[0]).count();
            keep(n.max(min_keep).min(list.len()))
        }
        Stage::TypicalP if q.typical_p < 1.0 => {
            let entropy = entropy(&p);
            let mut by: Vec<usize> = (0..list.len()).collect();
            by.sort_by(|a, b| (-p[*a].ln() - entropy).abs().total_cmp(&(-p[*b].ln() - entropy).abs()));
            let n = until(by.iter().map(|i| p[*i]), min_keep, |sum| sum > f64::from(q.typical_p));
            by[..n].iter().map(|i| list[*i]).collect()
        }
        Stage::TopNSigma if q.top_n_sigma > 0.0 => {
            let mean = list.iter().map(|c| c.1).sum::<f64>() / list.len() as f64;
            let sigma = (list.iter().map(|c| (c.1 - mean).powi(2)).sum::<f64>() / list.len() as f64).sqrt();
            list.iter().copied().filter(|c| c.1 >= list[0].1 - f64::from(q.top_n_sigma) * sigma).collect()
        }
        Stage::Xtc if q.xtc_probability > 0.0 => {
            let likely = p.iter().filter(|p| **p >= f64::from(q.xtc_threshold)).count();
            let cut = likely.saturating_sub(1);
            list[if list.len() - cut >= min_keep { cut } else { 0 }..].to_vec()
        }
        Stage::Temperature if q.dynatemp_range > 0.0 && list.len() > 1 => {
            let (t, range) = (f64::from(q.temperature), f64::from(q.dynatemp_range));
            let share = (entropy(&p) / (list.len() as f64).ln()).powf(f64::from(q.dynatemp_exponent));
            let low = (t - range).max(0.0);
            scaled(low + (t + range - low) * share)
        }
        Stage::Temperature if q.dynatemp_range <= 0.0 => scaled(f64::from(q.temperature)),
        _ => list,
    }
}

#[test]
fn every_order_of_stages_leaves_the_candidates_and_probabilities_of_their_definitions() {
    let mut rng = Rng(11);
    for round in 0..400 {
        let n = [5, 300, 4000][round % 3];
        let logits = random(&mut rng, n, [0.3, 2.0, 5.0][round / 3 % 3]);
        let mut order = vec![
            Stage::TopNSigma,
            Stage::TopK,
            Stage::TypicalP,
            Stage::TopP,
            Stage::MinP,
            Stage::Xtc,
            Stage::Temperature,
        ];
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
        let mut q = Params { order, min_keep: [0, 1, 7][rng.below(3)], xtc_threshold: 0.2 * rng.unit(), ..off() };
        // Two or three stages on, the others off.
        for _ in 0..3 {
            match rng.below(8) {
                0 => q.top_n_sigma = 3.0 * rng.unit(),
                1 => q.top_k = 1 + rng.below(n + n / 2) as i32,
                2 => q.typical_p = rng.unit(),
                3 => q.top_p = rng.unit(),
                4 => q.min_p = 0.5 * rng.unit(),
                5 => q.xtc_probability = 1.0,
                6 => q.temperature = 2.0 * rng.unit(),
                _ => (q.dynatemp_range, q.dynatemp_exponent) = (rng.unit(), 0.5 + rng.unit()),
            }
        }
        let mut want: List = logits.iter().enumerate().map(|(id, l)| (id as u32, f64::from(*l))).collect();
        for stage in &q.order {
            want = defined(*stage, want, &q);
        }
        want.sort_by_key(|c| c.0);
        let p = probabilities(&want);
        let got = left(&mut Sampler::new(q.clone(), 1, Vec::new()), &logits, None);
        let ids = |list: &[(u32, f64)]| list.iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(ids(&got), ids(&want), "round {round}: {q:?}");
        for ((id, got), want) in got.iter().zip(p) {
            // Logits of up to 100 after division, in f32: off by 100 x 2^-24, and so is the logarithm of a probability.
            assert!((got - want).abs() <= 2e-5 * want + 1e-9, "round {round}, token {id}: {got} for {want}");
        }
    }
}

#[test]
fn llama_cpp_s_own_cases_come_out_as_there() {
    // tests/test-sampling.cpp; 0 where a candidate is gone. Probabilities sum to 1 again here where they do not there.
    const P: &[f32] = &[0.1, 0.2, 0.3, 0.4];
    const Q: &[f32] = &[0.4, 0.3, 0.2, 0.1];
    let cases: Vec<(Params, &[f32], &[f32])> = vec![
        (Params { temperature: 1.0, ..off() }, P, P),
        (Params { temperature: 0.0, ..off() }, P, &[0.0, 0.0, 0.0, 1.0]),
        (Params { top_k: 1, ..off() }, P, &[0.0, 0.0, 0.0, 1.0]),
        (Params { top_k: 3, ..off() }, P, &[0.0, 0.22222, 0.33333, 0.44444]),
        (Params { top_k: 4, ..off() }, P, P),
        (Params { top_k: 0, ..off() }, P, P),
        (Params { top_p: 0.0, ..off() }, P, &[0.0, 0.0, 0.0, 1.0]),
        (Params { top_p: 0.7, ..off() }, P, &[0.0, 0.0, 0.428571, 0.571429]),
        (Params { top_p: 0.8, ..off() }, P, &[0.0, 0.22222, 0.33333, 0.44444]),
        (Params { top_p: 1.0, ..off() }, P, P),
        (Params { min_p: 0.0, ..off() }, P, P),
        (Params { min_p: 0.24, ..off() }, P, P),
        (Params { min_p: 0.26, ..off() }, P, &[0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]),
        (Params { min_p: 0.49, ..off() }, P, &[0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]),
        (Params { min_p: 0.51, ..off() }, P, &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]),
        (Params { min_p: 0.74, ..off() }, P, &[0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]),
        (Params { min_p: 0.76, ..off() }, P, &[0.0, 0.0, 0.0, 1.0]),
        (Params { min_p: 1.0, ..off() }, P, &[0.0, 0.0, 0.0, 1.0]),
        (Params { min_p: 1.05, ..off() }, P, &[0.0, 0.0, 0.0, 1.0]),
        (Params { xtc_probability: 1.0, xtc_threshold: 0.09, ..off() }, Q, &[0.0, 0.0, 0.0, 1.0]),
        (Params { xtc_probability: 1.0, xtc_threshold: 0.19, ..off() }, Q, &[0.0, 0.0, 2.0 / 3.0, 1.0 / 3.0]),
        (Params { xtc_probability: 1.0, xtc_threshold: 0.29, ..off() }, Q, &[0.0, 0.5, 1.0 / 3.0, 1.0 / 6.0]),
        (Params { xtc_probability: 1.0, xtc_threshold: 0.39, ..off() }, Q, Q),
        (Params { typical_p: 0.5, ..off() }, &[0.97, 0.01, 0.01, 0.01], &[1.0, 0.0, 0.0, 0.0]),
        (Params { typical_p: 0.5, ..off() }, &[0.4, 0.2, 0.2, 0.2], &[0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]),
        (Params { top_n_sigma: 1.0, ..off() }, P, &[0.0, 0.0, 0.428571, 0.571429]),
        (Params { top_n_sigma: 0.0, ..off() }, P, P),
        (Params { top_n_sigma: 3.0, ..off() }, P, P),
    ];
    for (params, given, want) in cases {
        let text = format!("{params:?}");
        same(&mut Sampler::new(params, 0, Vec::new()), given, want, &text);
    }
}

fn same(s: &mut Sampler, given: &[f32], want: &[f32], text: &str) {
    let mut got = vec![0f64; want.len()];
    left(s, &logs(given), None).iter().for_each(|(id, p)| got[*id as usize] = *p);
    // llama.cpp's tolerance; its numbers have five digits.
    assert!(got.iter().zip(want).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-5), "{got:?} for {want:?}: {text}");
}

#[test]
fn llama_cpp_s_own_cases_of_penalties_and_dry_come_out_as_there() {
    // tests/test-sampling.cpp. Repeat, frequency and presence penalty; then multiplier, base, allowed length, breakers.
    let five = &[0.2f32; 5][..];
    let penalties: [([f32; 3], &[u32], &[f32]); 6] = [
        ([50.0, 0.0, 0.0], &[0], &[0.0, 0.25, 0.25, 0.25, 0.25]),
        ([50.0, 0.0, 0.0], &[0, 1, 2], &[0.0, 0.0, 0.0, 0.5, 0.5]),
        ([50.0, 0.0, 0.0], &[0, 1, 2, 0, 0], &[0.0, 0.0, 0.0, 0.5, 0.5]),
        ([1.0, 5.0, 5.0], &[0], &[0.000011, 0.249997, 0.249997, 0.249997, 0.249997]),
        ([1.0, 5.0, 5.0], &[0, 1, 2], &[0.000023, 0.000023, 0.000023, 0.499966, 0.499966]),
        ([1.0, 5.0, 5.0], &[0, 1, 2, 0, 0], &[0.0, 0.000023, 0.000023, 0.499977, 0.499977]),
    ];
    for ([repeat_penalty, frequency_penalty, presence_penalty], seen, want) in penalties {
        let repeat_last_n = seen.len() as i32;
        let q = Params { repeat_penalty, frequency_penalty, presence_penalty, repeat_last_n, ..off() };
        let mut s = Sampler::new(q, 0, Vec::new());
        seen.iter().for_each(|t| s.accept(*t));
        same(&mut s, five, want, "penalties");
    }
    type Case = (f32, f32, i32, &'static [u32], &'static [u32], &'static [f32]);
    let dry: [Case; 5] = [
        (1.0, 1.1, 2, &[], &[0, 1], &[0.25, 0.25, 0.25, 0.25]),
        (1.0, 1.1, 2, &[], &[0, 1, 2, 0, 1], &[0.296923, 0.296923, 0.109232, 0.296923]),
        (1.0, 1.1, 2, &[3], &[0, 1, 3, 4, 0, 1], &[0.2, 0.2, 0.2, 0.2, 0.2]),
        (2.0, 1.1, 2, &[], &[0, 1, 2, 0, 1], &[0.241818, 0.241818, 0.032727, 0.241818, 0.241818]),
        (1.0, 1.1, 4, &[], &[0, 1, 2, 3, 4, 0, 1], &[0.2, 0.2, 0.2, 0.2, 0.2]),
    ];
    for (dry_multiplier, dry_base, dry_allowed_length, breaker, seen, want) in dry {
        let q = Params { dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n: seen.len() as i32, ..off() };
        let mut s = Sampler::new(q, 0, vec![breaker.to_vec()]);
        seen.iter().for_each(|t| s.accept(*t));
        same(&mut s, &vec![1.0 / want.len() as f32; want.len()], want, "dry");
    }
}

#[test]
fn penalties_follow_the_window_as_it_moves_before_and_behind_a_cut() {
    let mut rng = Rng(5);
    for last_n in [1, 3, 10, -1] {
        for order in [[Stage::Penalties, Stage::TopK], [Stage::TopK, Stage::Penalties]] {
            let (repeat_penalty, frequency_penalty, presence_penalty) = (1.3, 0.2, 0.4);
            let q = Params { repeat_last_n: last_n, repeat_penalty, frequency_penalty, presence_penalty, ..off() };
            let mut s = Sampler::new(Params { order: order.to_vec(), top_k: 20, ..q }, 0, Vec::new());
            let mut text: Vec<u32> = Vec::new();
            for _ in 0..40 {
                let logits = random(&mut rng, 20, 1.0);
                let window = &text[text.len() - text.len().min(window(last_n))..];
                let penalized = |id: usize| {
                    let n = window.iter().filter(|t| **t as usize == id).count() as f64;
                    let l = f64::from(logits[id]);
                    let l_repeat = if l > 0.0 { l / 1.3f32 as f64 } else { l * 1.3f32 as f64 };
                    if n > 0.0 { l_repeat - n * 0.2 - 0.4 } else { l }
                };
                let want = probabilities(&(0..20).map(|id| (id as u32, penalized(id))).collect());
                let got = left(&mut s, &logits, None);
                // f32 arithmetic on logits of a few: seven digits.
                assert!(got.iter().zip(&want).all(|(a, b)| (a.1 - b).abs() < 1e-6), "{last_n}: {got:?} for {want:?}");
                text.push(rng.below(20) as u32);
                s.accept(*text.last().unwrap());
            }
        }
    }
}

#[test]
fn dry_finds_the_longest_repetition_that_each_token_would_go_on_with() {
    let mut rng = Rng(17);
    let mut penalized = 0;
    for round in 0..600 {
        let letters = 2 + rng.below(3);
        let text: Vec<u32> = (0..rng.below(60)).map(|_| rng.below(letters) as u32).collect();
        // Breakers of one to three tokens, or none.
        let breaker =
            |rng: &mut Rng| (0..1 + rng.below(3)).map(|_| rng.below(letters + 1) as u32).collect::<Vec<u32>>();
        let breakers: Vec<Vec<u32>> = (0..rng.below(3)).map(|_| breaker(&mut rng)).collect();
        let (allowed, last_n) = (rng.below(4), [10, 40, -1][rng.below(3)]);
        let q = Params { dry_multiplier: 0.7, dry_base: 1.5, dry_allowed_length: allowed as i32, ..off() };
        let mut s = Sampler::new(Params { dry_penalty_last_n: last_n, ..q }, 0, breakers.clone());
        text.iter().for_each(|t| s.accept(*t));

        let w = &text[text.len() - text.len().min(window(last_n))..];
        // Where the last breaker ends that begins last; of several that begin there, the longest.
        let since = (0..w.len()).rev().find_map(|at| {
            let here = breakers.iter().filter(|b| w[at..].starts_with(b));
            here.map(|b| w.len() - at - b.len()).min()
        });
        let since = since.unwrap_or(w.len());
        let cost = |token: u32| {
            // All ends of earlier stretches that equal the text's end, and that this token followed.
            let before = (1..w.len()).filter(|end| w[*end] == token);
            let long = |end: usize| (0..=end.min(since)).rev().find(|n| w[end - n..end] == w[w.len() - n..]);
            let n = before.filter_map(long).max()?;
            let wanted = w.len() > allowed && n >= allowed && !breakers.contains(&vec![token]);
            wanted.then(|| 0.7 * 1.5f64.powi((n - allowed) as i32))
        };
        let costs: Vec<f64> = (0..letters as u32).map(|t| cost(t).unwrap_or(0.0)).collect();
        penalized += costs.iter().filter(|c| **c > 0.0).count();
        let want = probabilities(&(0..letters).map(|t| (t as u32, -costs[t])).collect());
        let got = left(&mut s, &vec![0.0; letters], None);
        // Costs can be large, where a probability is small.
        let near = got.iter().zip(&want).all(|(a, b)| (a.1 - b).abs() < 1e-5);
        assert!(near, "round {round}: {got:?} for {want:?}: {w:?}, {breakers:?}, {allowed} allowed");
    }
    assert!(penalized > 300, "the cases are about repetitions: {penalized}");
}

/// Draws, and holds each token's share to its probability.
fn shares(s: &mut Sampler, logits: &[f32], allowed: Option<&[u32]>, want: &[f64]) {
    let n = 20_000;
    let mut count = vec![0f64; logits.len()];
    (0..n).for_each(|_| count[s.pick(logits, allowed).unwrap() as usize] += 1.0);
    for (id, (count, p)) in count.iter().zip(want).enumerate() {
        // Four standard errors: of 60,000 shares one is further off.
        let error = (p * (1.0 - p) / n as f64).sqrt();
        assert!((count / n as f64 - p).abs() <= 4.0 * error, "token {id}: {} for {p}", count / n as f64);
    }
}

const EIGHTS: [f32; 4] = [0.5, 0.25, 0.125, 0.125];

#[test]
fn tokens_are_drawn_as_often_as_their_probability_says() {
    let ln = logs(&EIGHTS);
    let draw = |q: Params, want: &[f64]| shares(&mut Sampler::new(q, 1, Vec::new()), &ln, None, want);
    draw(off(), &EIGHTS.map(f64::from));
    draw(Params { temperature: 0.5, ..off() }, &[16.0, 4.0, 1.0, 1.0].map(|v| v / 22.0));
    draw(Params { top_k: 2, ..off() }, &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
    draw(Params { logit_bias: vec![(0, f32::NEG_INFINITY), (3, 2f32.ln())], ..off() }, &[0.0, 0.4, 0.2, 0.4]);
    draw(Params { order: Vec::new(), ..Params::default() }, &EIGHTS.map(f64::from));
    // Now and then: in two of five draws only the 1/4 and what is below are there.
    let mixed = [0.6 * 0.5, 0.6 * 0.25 + 0.4 * 0.5, 0.6 * 0.125 + 0.4 * 0.25, 0.6 * 0.125 + 0.4 * 0.25];
    draw(Params { xtc_probability: 0.4, xtc_threshold: 0.2, ..off() }, &mixed);
    // Adaptive-p that aims nowhere draws as if it were not there.
    draw(Params { order: vec![Stage::AdaptiveP], ..off() }, &EIGHTS.map(f64::from));
}

#[test]
fn the_order_of_stages_matters() {
    let ln = logs(&EIGHTS);
    let left = |order: &str| {
        let q = Params { order: Stage::from_names(order).unwrap(), temperature: 2.0, min_p: 0.4, ..off() };
        left(&mut Sampler::new(q, 1, Vec::new()), &ln, None).len()
    };
    assert_eq!(left("min_p;temperature"), 2);
    assert_eq!(left("temperature;min_p"), 4, "at twice the temperature an eighth is half as likely as a half");
}

#[test]
fn a_mask_is_respected_and_none_is_given_only_if_nothing_is_left() {
    let mut rng = Rng(3);
    for q in [off(), Params::default(), Params { temperature: 0.0, ..off() }, Params { mirostat: 2, ..off() }] {
        let mut s = Sampler::new(q, 9, Vec::new());
        let logits = random(&mut rng, 100, 3.0);
        for _ in 0..200 {
            let mask: Vec<u32> = (0..4).map(|_| (rng.bits() & rng.bits() & rng.bits()) as u32).collect();
            let in_mask = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
            match s.pick(&logits, Some(&mask)) {
                Some(id) => assert!(in_mask(id)),
                None => assert!((0..100).all(|id| !in_mask(id))),
            }
            // Whole words, and words that are not there.
            assert!(s.pick(&logits, Some(&[0, u32::MAX])).is_some_and(|id| id / 32 == 1));
        }
        assert_eq!(s.pick(&logits, Some(&[0; 4])), None);
        assert_eq!(s.pick(&logits, Some(&[])), None);
        assert_eq!(s.pick(&[], None), None);
        assert_eq!(s.pick(&[f32::NEG_INFINITY, f32::NAN], None), None);
        assert_eq!(s.pick(&[f32::NEG_INFINITY, f32::NAN, -900.0], None), Some(2));
    }
    let want = [0.0, 2.0 / 3.0, 1.0 / 3.0, 0.0];
    shares(&mut Sampler::new(off(), 4, Vec::new()), &logs(&EIGHTS), Some(&[0b0110]), &want);
}

#[test]
fn temperature_zero_takes_the_likeliest_that_the_stages_before_it_left() {
    let mut rng = Rng(8);
    let greedy = Params { temperature: 0.0, ..Params::default() };
    let tied = [0.0, 2.0, 2.0, 1.0];
    assert_eq!(Sampler::new(greedy.clone(), 6, Vec::new()).pick(&tied, None), Some(1), "the lower number on a tie");
    let xtc = Params { xtc_probability: 1.0, xtc_threshold: 0.05, ..greedy.clone() };
    assert_eq!(Sampler::new(xtc, 6, Vec::new()).pick(&logs(&EIGHTS), None), Some(3), "XTC took the others");
    // A cut may come before penalties: then it decides who is penalized.
    for order in ["penalties;top_k;top_p;temperature", "top_k;penalties;top_p;temperature", "temperature;top_k"] {
        let q = Params { repeat_penalty: 3.0, presence_penalty: 1.0, top_k: 5, ..greedy.clone() };
        let q = Params { order: Stage::from_names(order).unwrap(), ..q };
        let mut s = Sampler::new(q.clone(), 6, Vec::new());
        // With a range of almost nothing it is no longer greedy by its parameters, and no cut is left out.
        let mut slow = Sampler::new(Params { dynatemp_range: 1e-30, ..q }, 6, Vec::new());
        for _ in 0..200 {
            let logits = random(&mut rng, 50, 2.0);
            let token = s.pick(&logits, None).unwrap();
            assert_eq!(slow.pick(&logits, None), Some(token), "{order}");
            s.accept(token);
            slow.accept(token);
        }
    }
}

#[test]
fn mirostat_draws_among_what_its_limit_allows_and_keeps_surprise_at_its_target() {
    let mut rng = Rng(21);
    for mirostat in [1, 2] {
        for tau in [2.0, 4.0] {
            let q = Params { mirostat, mirostat_tau: tau, mirostat_eta: 0.1, ..Params::default() };
            let mut s = Sampler::new(q, 5, Vec::new());
            let (mut mu, mut sum, rounds) = (2.0 * f64::from(tau), 0.0, 3000);
            for _ in 0..rounds {
                // Zipf's law with some noise: about nine bits of entropy.
                let logits: Vec<f32> = (1..=2000).map(|r| -(r as f32).ln() + 0.3 * rng.normal()).collect();
                // At the default temperature, which comes first; no other stage does.
                let list = sorted(logits.iter().zip(0..).map(|(l, id)| (id, f64::from(*l / 0.8))).collect());
                let allowed: List = if mirostat == 1 {
                    let t: Vec<f64> = (1..100).map(|i| ((i + 1) as f64 / i as f64).ln()).collect();
                    let b: Vec<f64> = (1..100).map(|i| list[i - 1].1 - list[i].1).collect();
                    let s: f64 =
                        t.iter().zip(&b).map(|(t, b)| t * b).sum::<f64>() / t.iter().map(|t| t * t).sum::<f64>();
                    let k = ((s - 1.0) * mu.exp2() / (1.0 - 2000f64.powf(1.0 - s))).powf(1.0 / s);
                    list[..(k as usize).clamp(1, 2000)].to_vec()
                } else {
                    let p = probabilities(&list);
                    let n = p.iter().filter(|p| -p.log2() <= mu).count();
                    list[..n.max(1)].to_vec()
                };
                let token = s.pick(&logits, None).unwrap();
                let at = allowed.iter().position(|c| c.0 == token).expect("a token that the limit allows");
                let surprise = -probabilities(&allowed)[at].log2();
                mu -= f64::from(0.1f32) * (surprise - f64::from(tau));
                sum += surprise;
                let Choice::Mirostat(m) = &s.choice else { panic!("mirostat") };
                // A step's error is that of an f32 logit, and steps pull back; they do not add up.
                assert!((m.mu - mu).abs() < 1e-3, "{} for {mu}", m.mu);
            }
            // The limit moved by eta times the sum of all errors, and it stays within some bits.
            let mean: f64 = sum / f64::from(rounds);
            assert!((mean - f64::from(tau)).abs() < 0.05, "mirostat {mirostat}: {mean} bits for {tau}");
        }
    }
}

#[test]
fn adaptive_p_bends_towards_a_target_that_moves_against_what_was_chosen() {
    // Tokens of all probabilities from 0.26 down.
    let logits: Vec<f32> = (0..60).map(|i| -0.3 * i as f32).collect();
    for goal in [0.05, 0.15] {
        let order = vec![Stage::MinP, Stage::AdaptiveP];
        let q = Params { order, adaptive_target: goal as f32, adaptive_decay: 0.8, min_p: 0.02, ..off() };
        let mut s = Sampler::new(q.clone(), 12, Vec::new());
        let cut = defined(Stage::MinP, logits.iter().zip(0..).map(|(l, id)| (id, f64::from(*l))).collect(), &q);
        let p = probabilities(&cut);
        let bent = |target: f64| {
            let far = |p: f64| (p - target).abs() / 0.3;
            probabilities(&p.iter().map(|p| (0, 5.0 - 10.0 * far(*p).powi(2) / (1.0 + far(*p)))).collect())
        };
        let mean = |w: &[f64], power: i32| w.iter().zip(&p).map(|(w, p)| w * p.powi(power)).sum::<f64>();
        // A token that is drawn and not taken teaches nothing: the target stays, and the bend can be seen.
        let mut wanted = bent(goal);
        wanted.resize(logits.len(), 0.0);
        shares(&mut s, &logits, None, &wanted);
        let (mut sum, mut weight) = (goal / 0.2, 1.0 / 0.2);
        let (mut total, mut expected, mut variance, n) = (0.0, 0.0, 0.0, 20_000);
        for _ in 0..n {
            let w = bent((2.0 * goal - sum / weight).clamp(0.0, 1.0));
            expected += mean(&w, 1);
            variance += mean(&w, 2) - mean(&w, 1).powi(2);
            let token = s.pick(&logits, None).unwrap();
            s.accept(token);
            total += p[token as usize];
            (sum, weight) = (p[token as usize] + 0.8 * sum, 1.0 + 0.8 * weight);
        }
        // Four standard errors of what the definition expects step by step.
        assert!((total - expected).abs() <= 4.0 * f64::sqrt(variance), "{total} for {expected}");
        let still = mean(&bent(goal), 1);
        let moved = total / f64::from(n);
        assert!((moved - goal).abs() < (still - goal).abs(), "{moved}, or {still} if it stood still, for {goal}");
    }
}

#[test]
fn the_same_seed_gives_the_same_draws_and_another_one_others() {
    let mut rng = Rng(2);
    let rows: Vec<Vec<f32>> = (0..50).map(|_| random(&mut rng, 500, 2.0)).collect();
    let xtc = Params { xtc_probability: 0.5, ..Params::default() };
    let adaptive = Params { order: vec![Stage::AdaptiveP], adaptive_target: 0.1, ..off() };
    for q in [Params::default(), off(), xtc, adaptive, Params { mirostat: 1, ..off() }] {
        let draw = |seed| {
            let mut s = Sampler::new(q.clone(), seed, Vec::new());
            rows.iter().map(|row| s.pick(row, None).inspect(|t| s.accept(*t))).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}

#[test]
fn the_k_likeliest_are_those_of_a_full_sort_whatever_the_ties() {
    let mut rng = Rng(4);
    for n in [0, 1, 15, 16, 17, 100, 3000] {
        for values in [3, 1_000_000] {
            let row: Vec<f32> = (0..n).map(|_| rng.below(values) as f32 - 1.0).collect();
            let want = sorted(row.iter().enumerate().map(|(i, l)| (i as u32, f64::from(*l))).collect());
            for k in [0, 1, 2, 40, 5000] {
                let mut list = Vec::new();
                candidates::top(&row, k, &mut list);
                let got: Vec<u32> = list.iter().map(|c| c.id).collect();
                let want: Vec<u32> = want.iter().take(k).map(|c| c.0).collect();
                assert_eq!(got, want, "{k} of {n}");
            }
            let first = (0..n).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            assert_eq!(argmax(&row) as usize, first);
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_raw_logits_likeliest_first() {
    let logits = random(&mut Rng(6), 1000, 4.0);
    let want: Vec<f64> = probabilities(&logits.iter().map(|l| (0, f64::from(*l))).collect());
    let list = logprobs(&logits, 10);
    assert_eq!(list.len(), 10);
    assert_eq!(list[0].0, argmax(&logits));
    assert!(list.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    for (id, p) in list {
        assert_eq!(p, logprob_of(&logits, id));
        // f32 logits of up to 20: off by 20 x 2^-24.
        assert!((f64::from(p) - want[id as usize].ln()).abs() < 2e-6);
    }
    assert_eq!(logprob_of(&logits, 1000), f32::NEG_INFINITY);
    assert!(logprobs(&logits, 0).is_empty() && logprobs(&[], 3).is_empty());
}

#[test]
fn memory_is_taken_once_and_then_used_again() {
    let mut rng = Rng(9);
    let everything = Params { dry_multiplier: 1.0, repeat_penalty: 1.1, typical_p: 0.9, xtc_probability: 0.5, ..off() };
    for q in [Params::default(), off(), everything, Params { mirostat: 2, ..off() }] {
        let mut s = Sampler::new(q, 1, Vec::new());
        s.pick(&random(&mut rng, 3000, 2.0), None);
        let first = s.candidates.memory();
        for _ in 0..100 {
            s.pick(&random(&mut rng, 3000, 2.0), None).inspect(|t| s.accept(*t));
        }
        assert_eq!(s.candidates.memory(), first);
    }
}
