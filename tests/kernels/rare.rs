//! Kernels that few models reach, or none with caches of their usual formats, against their formulas in f64.

use tandem::cuda::{Buffer, Gpu, Grid, int, launch};
use tandem::quant::Rng;

use super::{RUNS, TOKENS, drawn, emu, get, off, put};

#[test]
fn a_rotation_is_the_walsh_hadamard_transform_of_each_run() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(31);
    for n in [32, 64, 128, 256, 512] {
        let runs = 3;
        let (x, xs) = drawn(&gpu, &mut rng, runs * n);
        let by = 1.0 / (n as f32).sqrt();
        launch::rotate(Some(&gpu), Grid::new([runs, 1, 1], n), x.ptr(), x.ptr(), by).unwrap();
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let one = |run: &[f64], i: usize| (0..n).map(|j| sign(i, j) * run[j]).sum::<f64>() * by as f64;
        let want: Vec<f64> = xs.chunks(n).flat_map(|run| (0..n).map(move |i| one(run, i))).collect();
        let error = off(&get(&gpu, x.ptr(), runs * n), &want);
        assert!(error < 1e-5, "runs of {n}: {error:.1e}");
    }
}

/// Channels that no block is as long as, and that no block's threads divide.
#[test]
fn a_scan_with_a_step_for_each_channel_is_its_recurrence() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(32);
    let channels = 150;
    for n in launch::CHANNEL_SCAN {
        let mut draw = |n| drawn(&gpu, &mut rng, n);
        let ((x, xs), (b, bs), (c, cs)) = (draw(TOKENS * channels), draw(TOKENS * n), draw(TOKENS * n));
        let ((dt, dts), (d, ds), (state, mut states)) =
            (draw(TOKENS * channels), draw(channels), draw(2 * channels * n));
        let rates: Vec<f32> = (0..channels * n).map(|i| -0.1 * (1 + i % 7) as f32).collect();
        let a = put(&gpu, &rates);
        let (lists, out) = (RUNS.map(|l| put(&gpu, &l)), gpu.alloc(TOKENS * channels * 4, "a test").unwrap());
        let [first, count, seq] = lists.each_ref().map(Buffer::ptr);
        let grid = Grid::new([channels.div_ceil(128), 2, 1], 128);
        let [x, b, c, dt, a, d, state, out] = [&x, &b, &c, &dt, &a, &d, &state, &out].map(Buffer::ptr);
        let on = Some(&gpu);
        launch::channel_scan(on, n, grid, x, b, c, dt, a, d, state, out, first, count, seq, int(channels), 1, 0)
            .unwrap();
        let mut want = vec![0f64; TOKENS * channels];
        for (t, s) in [(0, 1), (1, 1), (2, 0), (3, 0), (4, 0)] {
            for p in 0..channels {
                let (step, value) = ((1.0 + dts[t * channels + p].exp()).ln(), xs[t * channels + p]);
                let own = &mut states[(s * channels + p) * n..][..n];
                let rates = &rates[p * n..][..n];
                for (i, (s, rate)) in own.iter_mut().zip(rates).enumerate() {
                    *s = *s * (step * *rate as f64).exp() + step * value * bs[t * n + i];
                }
                let seen: f64 = own.iter().zip(&cs[t * n..]).map(|(s, c)| s * c).sum();
                want[t * channels + p] = seen + ds[p] * value;
            }
        }
        let errors = [off(&get(&gpu, out, want.len()), &want), off(&get(&gpu, state, states.len()), &states)];
        assert!(errors.iter().all(|&e| e < 1e-4), "{n} values of a channel: {errors:?}");
    }
}

/// A row alone, and as many sources as the kernel takes.
#[test]
fn sources_are_mixed_by_the_softmax_of_their_scores() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(33);
    for (rows, parts, n) in [(3, 0, 64), (4, 5, 300), (2, 63, 1000)] {
        let ((stack, all), (last, own)) =
            (drawn(&gpu, &mut rng, rows * parts.max(1) * n), drawn(&gpu, &mut rng, rows * n));
        let (weight, weights) = drawn(&gpu, &mut rng, n);
        let out = gpu.alloc(rows * n * 4, "a test").unwrap();
        let [stack, last, weight] = [&stack, &last, &weight].map(Buffer::ptr);
        let grid = Grid::new([rows, 1, 1], 256);
        launch::mix_sources(Some(&gpu), grid, stack, last, weight, out.ptr(), int(parts), int(n), 1e-6).unwrap();
        let mut want = Vec::new();
        for t in 0..rows {
            let row = |j: usize| if j < parts { &all[(t * parts + j) * n..][..n] } else { &own[t * n..][..n] };
            let score = |x: &[f64]| {
                let mean = x.iter().map(|v| v * v).sum::<f64>() / n as f64;
                x.iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>() / (mean + 1e-6).sqrt()
            };
            let scores: Vec<f64> = (0..=parts).map(|j| score(row(j))).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let shares: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = shares.iter().sum();
            want.extend((0..n).map(|i| (0..=parts).map(|j| shares[j] / total * row(j)[i]).sum::<f64>()));
        }
        // A score is a sum of `n` terms in f32, of which the exponential takes the error.
        let error = off(&get(&gpu, out.ptr(), rows * n), &want);
        assert!(error < 1e-3, "{parts} sources of {n} values: {error:.1e}");
    }
}
