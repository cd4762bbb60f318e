//! Products by matrix tiles, in every format: on the CPU's tiles where it has them, else on
//! emulated ones. Which of the two is printed.

use super::TYPES;
use super::check::{extreme, filled_by_scalar, random_acts, random_rows};
use crate::quant::activations::{Acts, CHUNK, PanelForm};
use crate::quant::panels::{Panel, PanelScratch, ROWS, WeightRows, shares_min};
use crate::quant::rng::Rng;
use crate::quant::types::QuantType;
use crate::simd::{Isa, emulated, tiles};

/// Whether tiles can be tested here; says on which.
fn there(what: &str) -> bool {
    let which = tiles::for_tests();
    match which {
        Ok(which) => say!("matrix tiles, {what}: {which}"),
        Err(why) => say!("skipped, matrix tiles, {what}: {why}"),
    }
    which.is_ok()
}

/// The bits of a product's results: for each token its number, then its rows.
fn product(
    ty: &'static QuantType,
    work: &mut PanelScratch,
    w: WeightRows<'_>,
    acts: &Acts,
    tokens: &[(u32, u32)],
) -> Vec<u32> {
    let mut out = Vec::new();
    work.multiply(ty, w, acts.panels(PanelForm::Bf16), tokens, Isa::Amx, |o, sums| {
        out.push(o);
        out.extend(sums.iter().map(|v| v.to_bits()));
    });
    out
}

/// The numbers of tokens: all up to 40, spread over the formats so that a format has a few of each
/// kind.
fn counts(ty: &QuantType) -> impl Iterator<Item = usize> {
    let first = ty.id as usize;
    [1, 8, 9, 12, 13, 16, 17, 24, 32, 33, 65].into_iter().chain((0..4).map(move |i| 1 + (first * 7 + i * 11) % 40))
}

/// What tiles multiply instead of a row of codes: code times scale less minimum, rounded once to f32 and once to BF16,
/// by the scalar decoder.
fn rounded(ty: &QuantType, row: &[u8], n: usize) -> Vec<f64> {
    let spec = ty.panel.as_ref().expect("a format that fills panels");
    let mut panel = Panel::default();
    let mut values = Vec::new();
    for at in (0..n).step_by(CHUNK) {
        let len = CHUNK.min(n - at);
        let bytes = ty.row_bytes(at)..ty.row_bytes(at + len);
        filled_by_scalar(spec, row, bytes, &mut panel);
        values.extend((0..len).map(|k| {
            let code = panel.codes[k / 4][k % 4] as i8 as f32;
            let min = if spec.mins { panel.min[k / shares_min(spec.group)][0] } else { 0.0 };
            half::bf16::from_f32(code.mul_add(panel.scale[k / spec.group][0], -min)).to_f64()
        }));
    }
    values
}

#[test]
fn codes_times_tokens_equal_the_products_of_their_rounded_values() {
    if !there("formats of codes") {
        return;
    }
    for ty in TYPES.iter().filter(|t| t.panel.is_some()) {
        let mut rng = Rng(0x7113 + ty.id as u64);
        let (mut work, mut worst) = (PanelScratch::default(), 0f64);
        let unit = ty.block.max(ty.act.block());
        let before = emulated::seen().0;
        for (round, count) in counts(ty).enumerate() {
            let n = unit * [1, 2, 3, 9, 5][round % 5].min(768 / unit).max(1);
            let rows = [ROWS, 1, 15, 16, 17, 31][round % 6];
            let stride = ty.row_bytes(n) + ty.bytes * (round % 2);
            let mut w = random_rows(ty, &mut rng, rows, n, stride);
            if round % 3 == 2 {
                w.chunks_exact_mut(stride).for_each(|row| extreme(ty, &mut rng, &mut row[..ty.row_bytes(n)]));
            }
            let x: Vec<f32> = (0..count + 3).flat_map(|_| random_acts(&mut rng, n)).collect();
            let mut acts = Acts::default();
            acts.set_panels(ty.act, PanelForm::Bf16, n, &x);
            // Not in order, and not all of them.
            let tokens: Vec<(u32, u32)> = (0..count as u32).map(|i| ((i * 5 + 2) % (count as u32 + 3), i)).collect();
            let source = WeightRows { w: &w, stride, rows };
            let values: Vec<Vec<f64>> =
                (0..rows).map(|r| rounded(ty, &w[r * stride..][..ty.row_bytes(n)], n)).collect();
            let mut seen = 0;
            work.multiply(ty, source, acts.panels(PanelForm::Bf16), &tokens, Isa::Amx, |i, sums| {
                seen += 1;
                let x = &x[tokens[i as usize].0 as usize * n..][..n];
                for (r, (got, values)) in sums.iter().zip(&values).enumerate() {
                    let terms = values.iter().zip(x).map(|(&w, &x)| w * half::bf16::from_f32(x).to_f64());
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                    // Products of BF16 are exact in f32; the sum rounds, as everywhere. Subnormal values count as zero.
                    let error = (*got as f64 - sum).abs() / size.max(1e-30);
                    assert!(error < 2e-6, "{}: row {r} of {rows}, {count} tokens, n {n}: {got} for {sum}", ty.name);
                    worst = worst.max(error);
                }
            });
            assert_eq!(seen, count);
            assert!(!emulated::seen().1, "the thread keeps its tiles after a product");
        }
        assert!(tiles::usable().is_ok() || emulated::seen().0 > before, "{}: no tile instruction ran", ty.name);
        say!("{:8} matrix tiles: worst error {worst:.1e} of the magnitudes (limit 2e-6)", ty.name);
    }
}

#[test]
fn floats_times_tokens_equal_the_products_of_their_values() {
    if !there("BF16") {
        return;
    }
    let ty = &super::bf16::TYPE;
    assert_eq!(ty.act.form(Isa::Amx, 1), PanelForm::Bf16);
    let (mut rng, mut work, mut worst) = (Rng(9), PanelScratch::default(), 0f64);
    for (round, count) in counts(ty).chain(1..=40).enumerate() {
        let n = [1, 31, 32, 33, 64, 255, 256, 300, 511][round % 9];
        let (rows, stride) = ([ROWS, 1, 15, 16, 17, 31][round % 6], 2 * n + 2 * (round % 2));
        let w = random_rows(ty, &mut rng, rows, n, stride);
        let x: Vec<f32> = (0..count).flat_map(|_| random_acts(&mut rng, n)).collect();
        let mut acts = Acts::default();
        acts.set_panels(ty.act, PanelForm::Bf16, n, &x);
        let tokens: Vec<(u32, u32)> = (0..count as u32).rev().map(|t| (t, t)).collect();
        let mut decoded = vec![0f32; n];
        work.multiply(
            ty,
            WeightRows { w: &w, stride, rows },
            acts.panels(PanelForm::Bf16),
            &tokens,
            Isa::Amx,
            |t, sums| {
                let x = &x[t as usize * n..][..n];
                for (r, got) in sums.iter().enumerate() {
                    (ty.dequant)(&w[r * stride..][..2 * n], &mut decoded);
                    let terms = decoded.iter().zip(x).map(|(&w, &x)| w as f64 * half::bf16::from_f32(x).to_f64());
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                    // Products of BF16 are exact in f32; the sum rounds, as everywhere.
                    let error = (*got as f64 - sum).abs() / size.max(1e-30);
                    assert!(error < 2e-6, "{rows} rows, {count} tokens, {n} columns: row {r}: {got} for {sum}");
                    worst = worst.max(error);
                }
            },
        );
        assert!(!emulated::seen().1, "the thread keeps its tiles after a product");
    }
    say!("matrix tiles, BF16: worst error {worst:.1e} of the magnitudes (limit 2e-6)");
}

#[test]
fn activations_that_a_thread_keeps_are_never_those_of_another_product() {
    if !there("activations kept between products") {
        return;
    }
    let n = 256;
    let mut rng = Rng(31);
    let mut work = PanelScratch::default();
    let formats: [&QuantType; 6] = [
        &super::q4_k::TYPE,
        &super::iq4_xs::TYPE,
        &super::q2_k::TYPE,
        &super::q6_k::TYPE,
        &super::q8_0::TYPE,
        &super::bf16::TYPE,
    ];
    let w = formats.map(|ty| random_rows(ty, &mut rng, ROWS, n, ty.row_bytes(n)));
    let (mut acts, mut laid_out) = ([Acts::default(), Acts::default()], [None; 2]);
    for round in 0..60 {
        let ty = formats[rng.below(6)];
        let w = &w[formats.iter().position(|t| *t == ty).unwrap()];
        let which = rng.below(2);
        let acts = &mut acts[which];
        // Often the same activations again, by another format that wants them in the same layout.
        if laid_out[which] != Some(ty.act) || rng.below(3) == 0 {
            let x: Vec<f32> = (0..20 * n).map(|_| rng.normal()).collect();
            acts.set_panels(ty.act, PanelForm::Bf16, n, &x);
            laid_out[which] = Some(ty.act);
        }
        let w = WeightRows { w, stride: ty.row_bytes(n), rows: ROWS };
        for _ in 0..2 {
            let count = [12, 20][rng.below(2)];
            let tokens: Vec<(u32, u32)> = (0..count).map(|i| (rng.below(20) as u32, i)).collect();
            let want = product(ty, &mut PanelScratch::default(), w, acts, &tokens);
            assert!(product(ty, &mut work, w, acts, &tokens) == want, "{} in round {round}", ty.name);
        }
    }
}
