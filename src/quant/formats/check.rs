//! Checks that the tests of all formats share: kernels against decoded weights, decoders against
//! the reference.

/// Prints a figure to stderr even if the test passes; the harness hides what a passing test prints
/// with `println!`.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

use crate::quant::activations::{Act, ActRow, Acts, CHUNK, PanelForm, odd_values};
use crate::quant::panels::{Panel, PanelScratch, PanelSpec, ROWS, WeightRows};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::put_f16;
use crate::quant::types::{Kernel, MOST_TOKENS, QuantType};
use crate::simd::{self, Isa};

/// Makes rows of random blocks, with bytes that no kernel may read between the rows.
pub(super) fn random_rows(ty: &QuantType, rng: &mut Rng, rows: usize, n: usize, stride: usize) -> Vec<u8> {
    let mut w = vec![0xa5; rows * stride];
    for row in w.chunks_exact_mut(stride) {
        for block in row[..ty.row_bytes(n)].chunks_exact_mut(ty.bytes) {
            (ty.random)(rng, block);
        }
    }
    w
}

/// Makes a row of activations: tiny, usual or large ones, with zeros or one spike.
pub(super) fn random_acts(rng: &mut Rng, n: usize) -> Vec<f32> {
    let scale = [1e-6, 1.0, 1.0, 3e4][rng.below(4)];
    let mut x: Vec<f32> = (0..n).map(|_| rng.normal() * scale).collect();
    match rng.below(4) {
        0 => x[..n / 2].fill(0.0),
        1 => x[rng.below(n)] = 100.0 * scale,
        _ => {}
    }
    x
}

/// Multiplies the f16 scales of some blocks with an extreme factor. It finds a scale by trial: if
/// multiplying the f16 at some even offset multiplies all decoded weights by the same factor, the
/// f16 is a scale.
pub(super) fn extreme(ty: &QuantType, rng: &mut Rng, w: &mut [u8]) {
    if ty.block == 1 {
        return;
    }
    let mut before = vec![0f32; ty.block];
    let mut after = vec![0f32; ty.block];
    for block in w.chunks_exact_mut(ty.bytes) {
        if rng.below(3) != 0 {
            continue;
        }
        (ty.dequant)(block, &mut before);
        for at in (0..ty.bytes - 1).step_by(2) {
            let keep = [block[at], block[at + 1]];
            let x = half::f16::from_le_bytes(keep);
            if !x.is_normal() {
                continue;
            }
            let factor = [0.0, 1.0 / 4096.0, 64.0, -1.0][rng.below(4)];
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(x.to_f32() * factor).to_le_bytes());
            (ty.dequant)(block, &mut after);
            let scaled = before.iter().zip(&after).all(|(b, a)| (b * factor - a).abs() <= 2e-3 * (b * factor).abs());
            if !scaled {
                block[at..at + 2].copy_from_slice(&keep);
            }
        }
    }
}

/// Compares every kernel of `ty` that this CPU has with decoded weights in f64: row counts from 1
/// to 9 and some larger, row lengths that leave every tail, rows further apart than they are long.
///
/// The tolerance is that of an f32 sum: 2e-6 of the sum of the magnitudes. Integer parts are exact.
/// A row has the same bits alone and among others, so that a split of the rows changes nothing. A
/// token has the same bits alone and with one, two and three others.
pub(crate) fn kernels(ty: &'static QuantType) {
    let mut rng = Rng(0x7a6d_0000 + ty.id as u64);
    let unit = ty.block.max(ty.act.block());
    let mut worst = vec![0f64; ty.kernels.len()];
    for round in 0..60 {
        let n = unit * (1 + if unit == 1 { round * 3 } else { round % 11 }) + 512 * (round % 4 / 2);
        let rows = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33][round % 11];
        let stride = ty.row_bytes(n) + ty.bytes * (round % 2);
        let mut w = random_rows(ty, &mut rng, rows, n, stride);
        if round % 3 == 2 {
            for row in w.chunks_exact_mut(stride) {
                extreme(ty, &mut rng, &mut row[..ty.row_bytes(n)]);
            }
        }
        let x: Vec<f32> = (0..MOST_TOKENS).flat_map(|_| random_acts(&mut rng, n)).collect();
        let mut acts = Acts::default();
        acts.set(ty.act, n, &x);
        let row = acts.row(0, &x);
        let xq: Vec<f64> = match ty.act.block() {
            1 => row.f.iter().map(|&x| x as f64).collect(),
            b => row.q.iter().enumerate().map(|(i, &q)| q as f64 * row.d[i / b] as f64).collect(),
        };
        let mut decoded = vec![0f32; n];
        let (truth, size): (Vec<f64>, Vec<f64>) = (0..rows)
            .map(|r| {
                (ty.dequant)(&w[r * stride..][..ty.row_bytes(n)], &mut decoded);
                let terms = decoded.iter().zip(&xq).map(|(&w, &x)| w as f64 * x);
                terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()))
            })
            .unzip();
        for (k, kernel) in ty.kernels.iter().enumerate().filter(|(_, k)| k.isa <= simd::detected()) {
            let tokens: Vec<ActRow<'_>> = (0..MOST_TOKENS).map(|t| acts.row(t, &x)).collect();
            let singly: Vec<Vec<f32>> = tokens.iter().map(|x| dot(kernel, &w, stride, &[*x], rows).remove(0)).collect();
            for count in 2..=MOST_TOKENS {
                for (t, out) in dot(kernel, &w, stride, &tokens[..count], rows).iter().enumerate() {
                    let same = out.iter().zip(&singly[t]).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{} {}: token {t} of {count}, n {n}, {rows} rows", ty.name, kernel.isa.name());
                }
            }
            let out = &singly[0];
            for r in 0..rows {
                let alone = dot(kernel, &w[r * stride..], stride, &[row], 1).remove(0);
                // AVX-512 adds minimums of rows below 512 weights in an order that depends on the
                // row's place among four.
                let same = alone[0].to_bits() == out[r].to_bits() || kernel.isa >= Isa::Avx512;
                assert!(same, "{} {}: row {r} of {rows} has other bits alone", ty.name, kernel.isa.name());
                let error = (out[r] as f64 - truth[r]).abs() / size[r].max(1e-30);
                assert!(
                    error <= 2e-6,
                    "{} {}: row {r} of {rows}, n {n}: {} but the truth is {} (error {error:.1e} of the magnitudes)",
                    ty.name,
                    kernel.isa.name(),
                    out[r],
                    truth[r],
                );
                worst[k] = worst[k].max(error);
            }
        }
    }
    for (kernel, worst) in ty.kernels.iter().zip(worst) {
        let name = kernel.isa.name();
        if kernel.isa > simd::detected() {
            say!("{:8} {name:7} NOT RUN: this CPU has only {}", ty.name, simd::detected().name());
            continue;
        }
        let form = if kernel.isa == Isa::AvxVnni { vnni_form() } else { "" };
        say!("{:8} {name:7} worst error {worst:.1e} of the sum of magnitudes (limit 2e-6){form}", ty.name);
    }
}

/// Multiplies `rows` rows of weights with each of `x` by a kernel whose instruction set this CPU has.
fn dot(kernel: &Kernel, w: &[u8], stride: usize, x: &[ActRow<'_>], rows: usize) -> Vec<Vec<f32>> {
    let mut out = vec![vec![f32::NAN; rows]; x.len()];
    let mut to: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
    assert!(kernel.isa <= simd::detected());
    #[allow(unsafe_code)]
    // SAFETY: the CPU has the instruction set, as was just checked.
    unsafe {
        kernel.dot(w, stride, x, &mut to)
    };
    out
}

/// Which encoding of the dot product of bytes [`Isa::AvxVnni`] ran in.
fn vnni_form() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if !simd::vnni_is_vex() {
        return "; ran as AVX512_VNNI on 256 bits, since this CPU has no AVX-VNNI";
    }
    "; ran as AVX-VNNI"
}

/// Compares decoded rows with `tests/data/quant/NAME.f32`, bit by bit; the blocks are in
/// `NAME.blocks`.
pub(crate) fn dequant(ty: &'static QuantType) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/quant/");
    let read = |ext: &str| {
        let path = format!("{dir}{}.{ext}", ty.name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let (blocks, want) = (read("blocks"), read("f32"));
    let mut got = vec![0f32; blocks.len() / ty.bytes * ty.block];
    assert_eq!(got.len() * 4, want.len(), "{}: blocks and decoded rows differ in length", ty.name);
    (ty.dequant)(&blocks, &mut got);
    for (i, (got, want)) in got.iter().zip(want.as_chunks::<4>().0).enumerate() {
        let want = f32::from_le_bytes(*want);
        assert_eq!(got.to_bits(), want.to_bits(), "{}: weight {i} decodes to {got}, the reference has {want}", ty.name);
    }
    say!("{:8} {} weights decoded bit-equal to the reference", ty.name, got.len());
}

/// Encodes and decodes KV rows: values survive within `tolerance` of the row's largest, every
/// `decode` gives the bits of `dequant`, and every `encode` those of the scalar one, for NaN and
/// infinities too.
pub(crate) fn kv(ty: &'static QuantType, tolerance: f32) {
    let kv = ty.kv.as_ref().expect("a KV cache type");
    let mut rng = Rng(77);
    for round in 1..60 {
        let n = ty.block.max(3) * round;
        let x: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
        let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let row = encoded(ty, Isa::Scalar, &x);
        let mut back = vec![0f32; n];
        (ty.dequant)(&row, &mut back);
        for (a, b) in x.iter().zip(&back) {
            assert!((a - b).abs() <= tolerance * max, "{}: {a} came back as {b}", ty.name);
        }
        for &(isa, decode) in kv.decode.iter().filter(|(isa, _)| *isa <= simd::detected()) {
            let mut out = vec![f32::NAN; n];
            #[allow(unsafe_code)]
            // SAFETY: the filter keeps the decoders whose instruction set this CPU has.
            unsafe {
                decode(&row, &mut out)
            };
            assert_eq!(out, back, "{} {}", ty.name, isa.name());
        }
        let odd = odd_values(&mut rng, n);
        for (x, isa) in [&x, &odd].into_iter().flat_map(|x| kv.encode.iter().map(move |e| (x, e.0))) {
            if isa <= simd::detected() {
                assert!(encoded(ty, isa, x) == encoded(ty, Isa::Scalar, x), "{} {}: {x:?}", ty.name, isa.name());
            }
        }
    }
}

/// A row by the encoder for one instruction set, which this CPU must have.
fn encoded(ty: &'static QuantType, isa: Isa, x: &[f32]) -> Vec<u8> {
    let kv = ty.kv.as_ref().expect("a KV cache type");
    let mut row = vec![0u8; ty.row_bytes(x.len())];
    let (_, encode) = kv.encode.iter().find(|(i, _)| *i == isa).expect("an encoder for this instruction set");
    assert!(isa <= simd::detected());
    #[allow(unsafe_code)]
    // SAFETY: the CPU has the instruction set, as was just checked.
    unsafe {
        encode(x, &mut row)
    };
    row
}

/// Compares encoded rows, block by block, with what ggml's `quantize_row_*_ref` (llama.cpp b11434,
/// compiled for x86-64 without fused multiply-adds) makes of `tests/data/quant/rows.f32`: random
/// values of many sizes, ties, outliers, values of one sign, zeros of both signs, blocks of equals.
pub(crate) fn encode(ty: &'static QuantType) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/quant/");
    let read = |name: &str| std::fs::read(format!("{dir}{name}")).unwrap_or_else(|e| panic!("{dir}{name}: {e}"));
    let x: Vec<f32> = read("rows.f32").as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let want = read(&format!("{}.rows", ty.name));
    assert_eq!(want.len(), ty.row_bytes(x.len()));
    let got = encoded(ty, Isa::Scalar, &x);
    for (i, (got, want)) in got.chunks(ty.bytes).zip(want.chunks(ty.bytes)).enumerate() {
        let decoded = |block: &[u8]| {
            let mut out = vec![0f32; ty.block];
            (ty.dequant)(block, &mut out);
            out
        };
        // Of a block without a scale ggml leaves the codes of IQ4_NL as they happen to be.
        let zeros = ty.name == "IQ4_NL" && want[..2] == [0, 0] && decoded(got) == decoded(want);
        let values = &x[i * ty.block..][..ty.block];
        assert!(got == want || zeros, "{}: block {i}, of {values:?}: {got:x?}, expected {want:x?}", ty.name);
    }
}

/// Multiplies blocks of extreme bits with activations of 127 that have each weight's sign. Products
/// are then as large as possible and all of one sign, so an integer that is too narrow in some
/// kernel overflows here. `scales` are the byte offsets of a block's f16 scales, which take zero,
/// subnormal, negative and large values in turn.
pub(crate) fn extremes(ty: &'static QuantType, scales: &[usize]) {
    extremes_by(ty, |block, scale| scales.iter().for_each(|&at| put_f16(block, at, scale)));
}

/// [`extremes`] for a format whose scale `put` writes into a block.
pub(crate) fn extremes_by(ty: &'static QuantType, put: impl Fn(&mut [u8], f32)) {
    let mut rng = Rng(ty.id as u64);
    let n = 2 * ty.block.max(ty.act.block());
    let mut w = vec![0u8; ty.row_bytes(n)];
    let (mut decoded, mut acts) = (vec![0f32; n], Acts::default());
    for fill in [Some(0x00), Some(0xff), Some(0x7f), Some(0x80), Some(0x0f), Some(0xf0), Some(0x55), Some(0xaa), None] {
        for scale in [1.0, -1.0, 0.0, 6e-8, 3e-5, 60.0, 6e4] {
            for block in w.chunks_exact_mut(ty.bytes) {
                (ty.random)(&mut rng, block);
                if let Some(byte) = fill {
                    block.fill(byte);
                }
                put(block, scale);
            }
            (ty.dequant)(&w, &mut decoded);
            let x: Vec<f32> = decoded.iter().map(|w| if *w == 0.0 { 127.0 } else { w.signum() * 127.0 }).collect();
            let truth = decoded.iter().map(|w| w.abs() as f64 * 127.0).sum::<f64>();
            acts.set(ty.act, n, &x);
            for kernel in ty.kernels.iter().filter(|k| k.isa <= simd::detected()) {
                let out = dot(kernel, &w, w.len(), &[acts.row(0, &x)], 1).remove(0);
                assert!(
                    (out[0] as f64 - truth).abs() <= 2e-6 * truth,
                    "{} {}: bytes {fill:02x?}, scale {scale}: {} but the truth is {truth}",
                    ty.name,
                    kernel.isa.name(),
                    out[0],
                );
            }
        }
    }
}

/// Compares products with many tokens with decoded weights in f64, on every instruction set that
/// this CPU has: row counts below and above half a panel, every count of tokens up to 13, row
/// lengths that are not whole chunks. The tolerance is that of [`kernels`], over the terms of codes
/// and minimums.
pub(crate) fn panels(ty: &'static QuantType) {
    let mut rng = Rng(0x711e + ty.id as u64);
    // Rows of floats may have any length.
    let floats = ty.act.block() == 1;
    let unit = if floats { 61 } else { ty.block.max(ty.act.block()) };
    let mut work = PanelScratch::default();
    for isa in Isa::ALL.into_iter().filter(|i| *i <= simd::detected()) {
        let mut worst = 0f64;
        for round in 0..26 {
            let n = unit * [1, 2, 3, 5, 9][round % 5].max(if unit < CHUNK { 1 + round } else { 1 });
            let (rows, count) = (1 + rng.below(ROWS), 1 + round % 13);
            let stride = ty.row_bytes(n) + ty.bytes * (round % 2);
            let mut w = random_rows(ty, &mut rng, rows, n, stride);
            if round % 3 == 2 {
                for row in w.chunks_exact_mut(stride) {
                    extreme(ty, &mut rng, &mut row[..ty.row_bytes(n)]);
                }
            }
            let x: Vec<f32> = (0..count).flat_map(|_| random_acts(&mut rng, n)).collect();
            let mut acts = Acts::default();
            acts.set(ty.act, n, &x);
            let form = ty.act.form(isa, count);
            acts.set_panels(ty.act, form, n, &x);
            // What BF16 is meant to be multiplied with; the rounding itself has a test in
            // activations/forms.rs. Products of BF16 are exact in f32, so that only the sum rounds,
            // as everywhere; no value here is subnormal, which the instruction would take for zero.
            let rounded = |x: &f32| match form {
                PanelForm::Bf16 => half::bf16::from_f32(*x).to_f64(),
                _ => *x as f64,
            };
            let tokens: Vec<(u32, u32)> = (0..count as u32).rev().map(|t| (t, t + 100)).collect();
            let mut decoded = vec![0f32; n];
            let mut seen = 0;
            work.multiply(ty, WeightRows { w: &w, stride, rows }, acts.panels(form), &tokens, isa, |o, sums| {
                seen += 1;
                assert_eq!(sums.len(), rows);
                let x = acts.row(o as usize - 100, &x);
                let xs: Vec<f64> = match floats {
                    true => x.f.iter().map(rounded).collect(),
                    false => x.q.iter().enumerate().map(|(i, &q)| q as f64 * x.d[i / ty.act.block()] as f64).collect(),
                };
                for r in 0..rows {
                    (ty.dequant)(&w[r * stride..][..ty.row_bytes(n)], &mut decoded);
                    let terms = decoded.iter().map(|&w| w as f64).zip(xs.iter().copied());
                    // A minimum is taken off after the sum, so the size is that of code and minimum
                    // apart.
                    let (sum, size, most) =
                        terms.fold((0.0, 0.0, 0.0f64), |(s, m, w), (a, x)| (s + a * x, m + x.abs(), w.max(a.abs())));
                    let error = (sums[r] as f64 - sum).abs() / (2.0 * size * most).max(1e-30);
                    let isa = isa.name();
                    assert!(error < 2e-6, "{} {isa}: row {r} of {rows}, n {n}: {} for {sum}", ty.name, sums[r]);
                    worst = worst.max(error);
                }
            });
            assert_eq!(seen, count);
        }
        say!("{:8} {:7} panels: worst error {worst:.1e} of the magnitudes (limit 2e-6)", ty.name, isa.name());
    }
}

/// Decodes these bytes of a row into the first row of a panel, by the scalar decoder.
pub(crate) fn filled_by_scalar(spec: &PanelSpec, row: &[u8], bytes: std::ops::Range<usize>, panel: &mut Panel) {
    let (isa, fill) = spec.fill.last().expect("a scalar decoder");
    assert_eq!(*isa, Isa::Scalar);
    #[allow(unsafe_code)]
    // SAFETY: every CPU has the scalar instruction set.
    unsafe {
        fill(&WeightRows { w: row, stride: row.len(), rows: 1 }, bytes, panel)
    }
}

/// A token's products of floats have the same bits alone and among a hundred tokens, on every
/// instruction set whose kernels take any number of them: matrix tiles do not take a single one of
/// BF16, and sum in another order.
pub(crate) fn alone(ty: &'static QuantType) {
    let mut rng = Rng(8);
    let (n, rows, count) = (3001, 7, 100);
    let x: Vec<f32> = (0..n * count).map(|_| rng.normal()).collect();
    let stride = ty.row_bytes(n);
    let mut w = vec![0; stride * rows];
    w.chunks_exact_mut(ty.bytes).for_each(|b| (ty.random)(&mut rng, b));
    let (mut acts, mut work) = (Acts::default(), PanelScratch::default());
    let most = if ty.act == Act::Bf16 { Isa::Avx512Bf16 } else { Isa::Amx };
    for isa in Isa::ALL.into_iter().filter(|i| *i <= simd::detected().min(most)) {
        let form = ty.act.form(isa, 1);
        acts.set_panels(ty.act, form, n, &x);
        let mut run = |tokens: &[(u32, u32)]| {
            let mut out = Vec::new();
            let add = |_: u32, sums: &[f32]| out.extend(sums.iter().map(|v| v.to_bits()));
            work.multiply(ty, WeightRows { w: &w, stride, rows }, acts.panels(form), tokens, isa, add);
            out
        };
        let tokens: Vec<(u32, u32)> = (0..count as u32).map(|t| (t, t)).collect();
        let one_by_one: Vec<u32> = tokens.iter().flat_map(|t| run(&[*t])).collect();
        assert!(run(&tokens) == one_by_one, "{} {}", ty.name, isa.name());
    }
}

/// The scalar kernel and the fastest agree on rows of super-blocks around the 32 that the AVX-512
/// kernel of the codebook formats lays activations out for at a time.
pub(crate) fn strips(ty: &'static QuantType) {
    for blocks in [31, 32, 33, 63, 64, 65] {
        let mut rng = Rng(blocks as u64);
        let (n, stride) = (blocks * ty.block, blocks * ty.bytes);
        let mut w = vec![0; 3 * stride];
        w.chunks_exact_mut(ty.bytes).for_each(|b| (ty.random)(&mut rng, b));
        let x: Vec<f32> = (0..2 * n).map(|_| rng.normal()).collect();
        let mut acts = Acts::default();
        acts.set(ty.act, n, &x);
        let kernels = ty.kernels.iter().filter(|k| k.isa <= simd::detected());
        let x = [acts.row(0, &x), acts.row(1, &x)];
        let all: Vec<Vec<Vec<f32>>> = kernels.map(|kernel| dot(kernel, &w, stride, &x, 3)).collect();
        let size = (n as f32).sqrt();
        for (one, truth) in all[0].iter().flatten().zip(all[all.len() - 1].iter().flatten()) {
            assert!((one - truth).abs() <= 1e-5 * size, "{} of {blocks} blocks: {one} for {truth}", ty.name);
        }
    }
}
