//! How the token is chosen from the candidates that the stages left: by their probabilities, by mirostat, or near a
//! wanted probability. Mirostat and adaptive-p learn from what they chose.

use super::candidates::Candidates;
use super::params::Params;

/// How a token is chosen.
#[derive(Clone, Debug)]
pub(super) enum Choice {
    /// By the probabilities.
    Draw,
    Mirostat(Mirostat),
    Adaptive(Adaptive),
}

impl Choice {
    pub(super) fn new(params: &Params, adaptive: bool) -> Choice {
        match params.mirostat {
            1 | 2 => Choice::Mirostat(Mirostat {
                second: params.mirostat == 2,
                tau: params.mirostat_tau.into(),
                eta: params.mirostat_eta.into(),
                mu: 2.0 * f64::from(params.mirostat_tau),
            }),
            _ if adaptive => Choice::Adaptive(Adaptive::new(params.adaptive_target, params.adaptive_decay)),
            _ => Choice::Draw,
        }
    }

    /// The place of the chosen candidate; `unit` is uniform in [0, 1).
    pub(super) fn choose(&mut self, c: &mut Candidates, n_vocab: usize, unit: f64) -> usize {
        match self {
            Choice::Draw => {
                c.softmax();
                c.draw(unit)
            }
            Choice::Mirostat(m) => m.choose(c, n_vocab, unit),
            Choice::Adaptive(a) => a.choose(c, unit),
        }
    }

    /// Learns which token the text goes on with.
    pub(super) fn accept(&mut self, token: u32) {
        if let Choice::Adaptive(a) = self {
            a.accept(token);
        }
    }
}

/// Mirostat (https://arxiv.org/abs/2007.14966): keeps the text's surprise, -log2 p, near tau by moving a limit mu. The first
/// version makes a number of candidates of the limit, by the exponent of the likeliest ones' distribution, taken as
/// Zipf's; the second leaves out the tokens that surprise more. Surprise is measured among those that are left.
#[derive(Clone, Debug)]
pub(super) struct Mirostat {
    second: bool,
    tau: f64,
    eta: f64,
    pub(super) mu: f64,
}

impl Mirostat {
    /// How many of the likeliest the exponent is estimated from: the paper's m.
    const ESTIMATE: usize = 100;

    fn choose(&mut self, c: &mut Candidates, n_vocab: usize, unit: f64) -> usize {
        if self.second {
            let floor = c.softmax() - self.mu * std::f64::consts::LN_2;
            let max = c.max();
            c.keep(max.min(floor as f32));
        } else {
            let k = self.zipf(c, n_vocab);
            c.top(k);
        }
        c.softmax();
        let at = c.draw(unit);
        self.mu -= self.eta * (-f64::from(c.list()[at].p).log2() - self.tau);
        at
    }

    /// How many candidates the limit allows.
    fn zipf(&self, c: &mut Candidates, n_vocab: usize) -> usize {
        let list = c.ordered(Mirostat::ESTIMATE);
        let (mut tb, mut tt) = (0f64, 0f64);
        for (i, pair) in list[..list.len().min(Mirostat::ESTIMATE)].windows(2).enumerate() {
            let t = ((i + 2) as f64 / (i + 1) as f64).ln();
            tb += t * f64::from(pair[0].logit - pair[1].logit);
            tt += t * t;
        }
        let s = tb / tt;
        let e = s - 1.0;
        let k = (e * self.mu.exp2() / (1.0 - (n_vocab as f64).powf(-e))).powf(1.0 / s);
        (k as usize).max(1) // what is no number becomes 0, and what is too large the largest
    }
}

/// Adaptive-p (https://github.com/ggml-org/llama.cpp/pull/17927): logits fall off with the distance of a token's
/// probability from a target, squared near it and straight further away; the target is moved by what the last tokens'
/// probabilities were on average, so that they meet the wanted one over time.
#[derive(Clone, Debug)]
pub(super) struct Adaptive {
    target: f32,
    decay: f32,
    /// sum of p decay^age of the tokens so far, and sum of decay^age.
    sum: f32,
    weight: f32,
    /// The token chosen last, and how likely it was.
    chosen: Option<(u32, f32)>,
    /// The probabilities before they were bent.
    before: Vec<f32>,
}

impl Adaptive {
    /// llama.cpp's constants: where the fall goes from square to straight, the largest logit, and the steepness.
    const WIDTH: f32 = 0.3;
    const PEAK: f32 = 5.0;
    const SHARPNESS: f32 = 10.0;

    fn new(target: f32, decay: f32) -> Adaptive {
        // As if the target had been met for ever.
        let weight = 1.0 / (1.0 - decay);
        Adaptive { target, decay, sum: target * weight, weight, chosen: None, before: Vec::new() }
    }

    fn choose(&mut self, c: &mut Candidates, unit: f64) -> usize {
        c.softmax();
        let target = (2.0 * self.target - self.sum / self.weight).clamp(0.0, 1.0);
        self.before.clear();
        self.before.extend(c.list().iter().map(|c| c.p));
        for one in c.list() {
            let far = ((one.p - target) / Adaptive::WIDTH).abs();
            one.logit = Adaptive::PEAK - Adaptive::SHARPNESS * far * far / (1.0 + far);
        }
        c.softmax();
        let at = c.draw(unit);
        self.chosen = Some((c.list()[at].id, self.before[at]));
        at
    }

    fn accept(&mut self, token: u32) {
        if let Some((_, p)) = self.chosen.take().filter(|(id, _)| *id == token) {
            self.sum = p + self.decay * self.sum;
            self.weight = 1.0 + self.decay * self.weight;
        }
    }
}
