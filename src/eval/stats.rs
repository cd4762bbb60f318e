//! What the counted rows add up to, and the lines it is told in: llama-perplexity's, to the digit.
//!
//! A mean's error is the usual one, sqrt(variance / (n - 1)). Figures made of means get theirs by propagation: for
//! exp(x), exp(x) times x's; for a difference x - y, sqrt(ex^2 + ey^2 - 2 cov).

use std::fmt::Write;

/// A value with its error bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The value.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

impl Figure {
    /// exp of the figure.
    fn exp(self) -> Figure {
        let value = self.value.exp();
        Figure { value, error: value * self.error }
    }
}

/// A running mean.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    n: usize,
    sum: f64,
    sum2: f64,
}

impl Mean {
    fn add(&mut self, v: f64) {
        self.n += 1;
        self.sum += v;
        self.sum2 += v * v;
    }

    fn figure(&self) -> Figure {
        let n = self.n.max(1) as f64;
        let value = self.sum / n;
        let variance = self.sum2 / n - value * value; // rounding may take it below 0
        Figure { value, error: if variance > 0.0 && self.n > 1 { (variance / (n - 1.0)).sqrt() } else { 0.0 } }
    }
}

/// How likely a text is to a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct Likelihood {
    nll: Mean,
}

impl Likelihood {
    /// Counts a row.
    pub fn add(&mut self, nll: f64) {
        self.nll.add(nll);
    }

    /// exp(mean -ln p).
    pub fn ppl(&self) -> Figure {
        self.nll.figure().exp()
    }

    /// The final line.
    pub fn report(&self) -> String {
        let Figure { value, error } = self.ppl();
        format!("Final estimate: PPL = {value:.4} +/- {error:.5}\n")
    }
}

/// A counted row of a model, paired with the base model's.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// -ln p of the token that came.
    pub nll: f64,
    /// -ln p of that token by the base model.
    pub nll_base: f64,
    /// KL divergence from the base.
    pub kld: f64,
    /// Probability of the token that came, less the base's.
    pub dp: f64,
    /// Whether both have the same argmax.
    pub same_top: bool,
}

/// How far a model is from its base over a text.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    nll: Mean,
    nll_base: Mean,
    sum_product: f64, // of nll and nll_base
    kld: Mean,
    dp: Mean,
    dp2: Mean,
    n_same_top: usize,
    klds: Vec<f64>,
    dps: Vec<f64>,
}

impl Divergence {
    /// Rows below which the final figures would mean nothing.
    pub const LEAST_ROWS: usize = 100;

    /// What [`Divergence::running`] shows.
    pub const COLUMNS: &str = "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              \
                               Δp RMS            Same top p";

    /// Counts a row.
    pub fn add(&mut self, p: &Pair) {
        self.nll.add(p.nll);
        self.nll_base.add(p.nll_base);
        self.sum_product += p.nll * p.nll_base;
        self.kld.add(p.kld);
        self.dp.add(p.dp);
        self.dp2.add(p.dp * p.dp);
        self.n_same_top += p.same_top as usize;
        self.klds.push(p.kld);
        self.dps.push(p.dp);
    }

    /// Mean divergence.
    pub fn kld(&self) -> Figure {
        self.kld.figure()
    }

    /// Covariance of the two means of -ln p.
    fn covariance(&self) -> f64 {
        let n = self.nll.n as f64;
        (self.sum_product / n - self.nll.figure().value * self.nll_base.figure().value) / (n - 1.0).max(1.0)
    }

    /// ln(PPL / PPL(base)).
    fn log_ratio(&self) -> Figure {
        let (a, b) = (self.nll.figure(), self.nll_base.figure());
        let variance = a.error * a.error + b.error * b.error - 2.0 * self.covariance();
        Figure { value: a.value - b.value, error: variance.max(0.0).sqrt() }
    }

    fn dp_rms(&self) -> Figure {
        let Figure { value, error } = self.dp2.figure();
        let rms = value.sqrt();
        Figure { value: rms, error: if rms > 0.0 { 0.5 / rms * error } else { 0.0 } }
    }

    fn same_top(&self) -> Figure {
        let n = self.nll.n as f64;
        let p = self.n_same_top as f64 / n;
        Figure { value: p, error: (p * (1.0 - p) / (n - 1.0).max(1.0)).sqrt() }
    }

    /// The figures so far, after `chunk` chunks: one line under [`Divergence::COLUMNS`].
    pub fn running(&self, chunk: usize) -> String {
        let (ppl, ratio, kld) = (self.nll.figure().exp(), self.log_ratio(), self.kld());
        let (dp, top) = (percent(self.dp_rms()), percent(self.same_top()));
        format!(
            "{chunk:4}    {:9.4} ± {:9.4}    {:10.5} ± {:10.5}    {:10.5} ± {:10.5}    {:6.3} ± {:6.3} %    \
             {:6.3} ± {:6.3} %",
            ppl.value,
            ppl.error,
            ratio.value,
            ratio.error,
            kld.value,
            kld.error,
            dp.value,
            dp.error,
            top.value,
            top.error
        )
    }

    /// The final figures.
    pub fn report(&self) -> String {
        let mut s = String::new();
        self.report_to(&mut s).expect("a string takes any text");
        s
    }

    fn report_to(&self, s: &mut String) -> std::fmt::Result {
        let (nll, nll_base, cov, ratio) =
            (self.nll.figure(), self.nll_base.figure(), self.covariance(), self.log_ratio());
        let (ppl, base) = (nll.exp(), nll_base.exp());
        let variance = ppl.error * ppl.error + base.error * base.error - 2.0 * ppl.value * base.value * cov;
        let difference = Figure { value: ppl.value - base.value, error: variance.max(0.0).sqrt() };
        let long = |f: Figure| format!("{:10.6} ± {:10.6}", f.value, f.error);
        writeln!(s, "====== Perplexity statistics ======")?;
        writeln!(s, "Mean PPL(Q)                   : {}", long(ppl))?;
        writeln!(s, "Mean PPL(base)                : {}", long(base))?;
        writeln!(s, "Cor(ln(PPL(Q)), ln(PPL(base))): {:6.2}%", 100.0 * cov / (nll.error * nll_base.error))?;
        writeln!(s, "Mean ln(PPL(Q)/PPL(base))     : {}", long(ratio))?;
        writeln!(s, "Mean PPL(Q)/PPL(base)         : {}", long(ratio.exp()))?;
        writeln!(s, "Mean PPL(Q)-PPL(base)         : {}", long(difference))?;

        let sorted = |values: &[f64]| {
            let mut values = values.to_vec();
            values.sort_by(f64::total_cmp);
            values
        };
        let (klds, dps) = (sorted(&self.klds), sorted(&self.dps));
        writeln!(s, "\n====== KL divergence statistics ======")?;
        writeln!(s, "Mean    KLD: {}", long(self.kld()))?;
        for p in [100.0, 99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1, 0.0] {
            writeln!(s, "{} KLD: {:10.6}", rank(p), percentile(&klds, p))?;
        }

        let short = |f: Figure| format!("{:6.3} ± {:5.3} %", percent(f).value, percent(f).error);
        writeln!(s, "\n====== Token probability statistics ======")?;
        writeln!(s, "Mean    Δp: {}", short(self.dp.figure()))?;
        for p in [100.0, 99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1, 0.0] {
            writeln!(s, "{} Δp: {:6.3}%", rank(p), 100.0 * percentile(&dps, p))?;
        }
        writeln!(s, "RMS Δp    : {}", short(self.dp_rms()))?;
        writeln!(s, "Same top p: {}", short(self.same_top()))
    }
}

fn percent(f: Figure) -> Figure {
    Figure { value: 100.0 * f.value, error: 100.0 * f.error }
}

/// What a line of a percentile starts with.
fn rank(p: f64) -> String {
    match p {
        0.0 => "Minimum".into(),
        50.0 => "Median ".into(),
        100.0 => "Maximum".into(),
        _ => format!("{p:4.1}%  "),
    }
}

/// The value below which `p` percent of the sorted values are, between two of them where it must.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let at = p / 100.0 * (sorted.len() - 1) as f64;
    let (below, share) = (at as usize, at.fract());
    let above = (below + 1).min(sorted.len() - 1);
    if share == 0.0 { sorted[below] } else { (1.0 - share) * sorted[below] + share * sorted[above] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_and_its_error_are_those_computed_by_hand() {
        let mut l = Likelihood::default();
        for p in [0.125f64, 0.25, 0.625] {
            l.add(-p.ln());
        }
        let ppl = 51.2f64.powf(1.0 / 3.0); // 8 * 4 * 1.6
        // mean square of (ln 8, ln 4, ln 1.6) less the square of their mean, over 2, its root times the perplexity
        let squares = (8f64.ln().powi(2) + 4f64.ln().powi(2) + 1.6f64.ln().powi(2)) / 3.0;
        let error = ppl * ((squares - ppl.ln().powi(2)) / 2.0).sqrt();
        let got = l.ppl();
        assert!((got.value - ppl).abs() < 1e-12 && (got.error - error).abs() < 1e-12, "{got:?}");
        assert_eq!(l.report(), "Final estimate: PPL = 3.7133 +/- 1.73072\n");
    }

    #[test]
    fn a_single_row_has_a_perplexity_and_no_error_bar() {
        let mut l = Likelihood::default();
        l.add(2f64.ln());
        assert_eq!(l.report(), "Final estimate: PPL = 2.0000 +/- 0.00000\n");
    }

    #[test]
    fn percentiles_lie_between_the_neighbours_they_fall_between() {
        let v = [0.0, 1.0, 2.0, 3.0];
        let got = [0.0, 50.0, 90.0, 100.0].map(|p| percentile(&v, p));
        assert!(got.iter().zip([0.0, 1.5, 2.7, 3.0]).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?}");
        assert_eq!(percentile(&[5.0], 99.9), 5.0);
        assert_eq!(percentile(&[1.0, f64::INFINITY], 0.0), 1.0, "a neighbour that has no share has no say");
    }

    #[test]
    fn a_model_equal_to_its_base_has_no_difference_and_no_nan_in_any_line() {
        let mut d = Divergence::default();
        for i in 0..100 {
            let nll = 1.0 + (i % 7) as f64 * 0.3;
            d.add(&Pair { nll, nll_base: nll, kld: 0.0, dp: 0.0, same_top: true });
        }
        let report = d.report();
        assert!(!report.contains("NaN") && !d.running(1).contains("NaN"), "{report}");
        for line in [
            "Cor(ln(PPL(Q)), ln(PPL(base))): 100.00%",
            "Mean PPL(Q)/PPL(base)         :   1.000000 ±   0.000000",
            "Mean PPL(Q)-PPL(base)         :   0.000000 ±   0.000000",
            "Median  KLD:   0.000000",
            " 0.1%   KLD:   0.000000",
            "99.9%   Δp:  0.000%",
            "RMS Δp    :  0.000 ± 0.000 %",
            "Same top p: 100.000 ± 0.000 %",
        ] {
            assert!(report.lines().any(|l| l == line), "no line {line:?} in\n{report}");
        }
    }

    #[test]
    fn differences_between_a_model_and_its_base_are_those_computed_by_hand() {
        let mut d = Divergence::default();
        // Every other token is half as likely as to the base, the others a quarter less likely.
        for i in 0..100 {
            let (base, share) = if i % 2 == 0 { (0.5f64, 0.5) } else { (0.8, 0.75) };
            let p = base * share;
            let kld = i as f64 / 99.0;
            d.add(&Pair { nll: -p.ln(), nll_base: -base.ln(), kld, dp: p - base, same_top: i % 4 != 0 });
        }
        let ratio = -(0.5f64.ln() + 0.75f64.ln()) / 2.0;
        let error = ((0.5f64.ln().powi(2) + 0.75f64.ln().powi(2)) / 2.0 - ratio * ratio).sqrt() / 99f64.sqrt();
        let got = d.log_ratio();
        assert!((got.value - ratio).abs() < 1e-12 && (got.error - error).abs() < 1e-9, "{got:?} {ratio} {error}");
        let rms = ((0.25f64.powi(2) + 0.2f64.powi(2)) / 2.0).sqrt();
        assert!((d.dp_rms().value - rms).abs() < 1e-12);
        assert_eq!(d.same_top(), Figure { value: 0.75, error: (0.75f64 * 0.25 / 99.0).sqrt() });
        assert!((d.kld().value - 0.5).abs() < 1e-12);
        let report = d.report();
        for line in
            ["Median  KLD:   0.500000", "90.0%   KLD:   0.900000", "Minimum Δp: -25.000%", "Maximum Δp: -20.000%"]
        {
            assert!(report.lines().any(|l| l == line), "no line {line:?} in\n{report}");
        }
    }
}
