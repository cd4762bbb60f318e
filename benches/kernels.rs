//! How fast one thread computes each format: `cargo bench --bench kernels [FORMAT..]`.
//!
//! The row kernel (decode): weights per nanosecond and GB/s from its own cache, then GB/s from memory and what share that
//! is of a plain read of the same bytes, pass by pass in turn. Then products per nanosecond for 1 to 4, 32 and 128 tokens
//! at once (prompts), from cache. A second line has what a pass of the row kernel over the weights
//! takes with 1 to 4 tokens (drafts that are verified), from cache and from memory, the latter by all
//! cores. On a CPU with matrix tiles a third line has how many times faster
//! they are than AVX-512 for some numbers of tokens: tiles pay from the first with 1.00 or more on,
//! which is what `PanelForm::TILES_FROM` should be. A machine that does other things
//! disturbs the figures; compare within one run.

use std::hint::black_box;
use std::time::Instant;

use tandem::cpu::{Group, Pool, dot_rows_by_many, grouped};
use tandem::quant::panels::{PanelScratch, WeightRows};
use tandem::quant::{self, ActRow, Acts, MOST_TOKENS, PanelForm, QuantType, Rng};
use tandem::simd::{self, Isa};

/// PanelColumns and rows: a megabyte at most, in 32 rows' steps.
const N: usize = 2048;
const ROWS: usize = 32;

/// The shortest of many short runs, in nanoseconds.
fn best(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::MAX;
    while start.elapsed().as_millis() < 60 {
        let one = Instant::now();
        f();
        best = best.min(one.elapsed().as_nanos() as f64);
    }
    best
}

/// Bytes that no cache holds.
const MUCH: usize = 128 << 20;

/// GB/s of the row kernel from memory, and the share of a plain read's: the medians of passes in turn.
fn from_memory(ty: &'static QuantType, piece: &[u8], stride: usize, x: ActRow<'_>) -> (f64, f64) {
    let mut memory = vec![0u64; MUCH / 8];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
    bytes.chunks_exact_mut(piece.len()).for_each(|to| to.copy_from_slice(piece));
    let (mut rates, mut shares) = (Vec::new(), Vec::new());
    let mut out = vec![0f32; MUCH / stride / ROWS * ROWS];
    for _ in 0..7 {
        let start = Instant::now();
        for (out, w) in out.chunks_mut(ROWS).zip(bytemuck::cast_slice::<u64, u8>(&memory).chunks(ROWS * stride)) {
            tandem::cpu::dot_rows(ty, w, stride, x, black_box(out));
        }
        let rate = (out.len() * stride) as f64 / start.elapsed().as_nanos() as f64;
        let start = Instant::now();
        black_box(tandem::cpu::dense::sum(&memory));
        rates.push(rate);
        shares.push(rate / (MUCH as f64 / start.elapsed().as_nanos() as f64));
    }
    rates.sort_by(f64::total_cmp);
    shares.sort_by(f64::total_cmp);
    (rates[3], shares[3])
}

fn line(ty: &'static QuantType) {
    let mut rng = Rng(1);
    let stride = ty.row_bytes(N);
    let mut w = vec![0; ROWS * stride];
    w.chunks_exact_mut(ty.bytes).for_each(|b| (ty.random)(&mut rng, b));
    let x: Vec<f32> = (0..128 * N).map(|_| rng.normal()).collect();
    let mut acts = Acts::default();
    acts.set(ty.act, N, &x);
    let mut out = [0f32; ROWS];
    let products = (ROWS * N) as f64;
    let ns = best(|| tandem::cpu::dot_rows(ty, &w, stride, acts.row(0, &x), black_box(&mut out)));
    let (rate, share) = from_memory(ty, &w, stride, acts.row(0, &x));
    let of_read = 100.0 * share;
    let mut text = format!("{:8} {:6.1} {:6.1} {rate:6.1} {of_read:4.0}%", ty.name, products / ns, w.len() as f64 / ns);
    if ty.multiplies_many() {
        let mut work = PanelScratch::default();
        for count in [1, 2, 3, 4, 32, 128] {
            let form = ty.act.form(simd::isa(), count as usize);
            acts.set_panels(ty.act, form, N, &x);
            let tokens: Vec<(u32, u32)> = (0..count).map(|t| (t, t)).collect();
            let source = WeightRows { w: &w, stride, rows: ROWS };
            let ns = best(|| {
                work.multiply(ty, source, acts.panels(form), &tokens, simd::isa(), |_, sums| {
                    black_box(sums);
                })
            });
            text += &format!(" {:8.1}", products * count as f64 / ns);
        }
    }
    println!("{text}");
}

/// Prints the time of a pass over the weights by their 1 to 4 tokens: from a core's own cache, and
/// from memory by all cores. A token that costs little is one that the weights are waited for anyway.
fn tokens_line(ty: &'static QuantType, pool: &Pool) {
    let mut rng = Rng(3);
    let stride = ty.row_bytes(N);
    let mut memory = vec![0; MUCH / (ROWS * stride) * ROWS * stride];
    let (piece, rest) = memory.split_at_mut(ROWS * stride);
    piece.chunks_exact_mut(ty.bytes).for_each(|b| (ty.random)(&mut rng, b));
    rest.chunks_exact_mut(piece.len()).for_each(|to| to.copy_from_slice(piece));
    let rows = memory.len() / stride;
    let x: Vec<f32> = (0..MOST_TOKENS * N).map(|_| rng.normal()).collect();
    let mut acts = Acts::default();
    acts.rows_only = true;
    acts.set(ty.act, N, &x);
    let mut out = vec![0f32; MOST_TOKENS * rows];
    let (mut cached, mut read) = (Vec::new(), Vec::new());
    for count in 1..=MOST_TOKENS {
        let row: Vec<ActRow<'_>> = (0..count).map(|t| acts.row(t, &x)).collect();
        let mut to: Vec<&mut [f32]> = out.chunks_mut(ROWS).take(count).collect();
        cached.push(best(|| dot_rows_by_many(ty, &memory, stride, &row, black_box(&mut to))) / (ROWS * N) as f64);
    }
    for count in 1..=MOST_TOKENS {
        let pairs: Vec<(u32, u32)> = (0..count as u32).map(|t| (t, t)).collect();
        let mut times: Vec<f64> = (0..7)
            .map(|_| {
                let group = Group { w: &memory, pairs: &pairs };
                let (x, out) = (&x[..count * N], &mut out[..count * rows]);
                let start = Instant::now();
                grouped(pool, ty, (rows, N), &[group], &mut acts, x, black_box(out));
                start.elapsed().as_nanos() as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        read.push(times[3] / (rows * N) as f64);
    }
    let text = |times: &[f64]| times.iter().map(|ns| format!(" {:6.2}", 128.0 * ns)).collect::<String>();
    println!("{:8} ns for 128 weights with 1 to 4 tokens: cache{}, memory{}", ty.name, text(&cached), text(&read));
}

/// Prints how many times faster than AVX-512 matrix tiles are, by tokens, each by the shortest of many runs in turn. Eight
/// panels are multiplied one after the other, so that tokens are put in the order of tiles once for all of them; a
/// thread has more where experts are wide.
fn tiles_line(ty: &'static QuantType) {
    const PANELS: usize = 8;
    let mut rng = Rng(2);
    let stride = ty.row_bytes(N);
    let mut w = vec![0; PANELS * ROWS * stride];
    w.chunks_exact_mut(ty.bytes).for_each(|b| (ty.random)(&mut rng, b));
    let x: Vec<f32> = (0..512 * N).map(|_| rng.normal()).collect();
    let mut acts = Acts::default();
    let mut text = format!("{:8} tiles:", ty.name);
    for count in [4, 8, 16, 24, 32, 40, 48, 64, 128, 512] {
        let tokens: Vec<(u32, u32)> = (0..count).map(|t| (t, t)).collect();
        let mut times = [f64::MAX; 2];
        for _ in 0..3 {
            for (isa, time) in [Isa::Avx512Bf16, Isa::Amx].into_iter().zip(&mut times) {
                let form = ty.act.form(isa, PanelForm::TILES_FROM);
                acts.set_panels(ty.act, form, N, &x[..count as usize * N]);
                let mut work = PanelScratch::default();
                *time = time.min(best(|| {
                    for w in w.chunks(ROWS * stride) {
                        let source = WeightRows { w, stride, rows: ROWS };
                        work.multiply(ty, source, acts.panels(form), &tokens, isa, |_, sums| {
                            black_box(sums);
                        });
                    }
                }));
            }
        }
        text += &format!(" {count}: {:.2}", times[0] / times[1]);
    }
    println!("{text}");
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    println!(
        "{}: one row: weights/ns, GB/s, GB/s from memory and of a plain read; products/ns with 1, 2, 3, 4, 32, 128 tokens",
        simd::isa().name()
    );
    let pool = Pool::new(0).expect("threads");
    for ty in quant::TYPES {
        if asked.is_empty() || asked.iter().any(|a| a.eq_ignore_ascii_case(ty.name)) {
            line(ty);
            tokens_line(ty, &pool);
            if simd::isa() >= Isa::Amx && ty.multiplies_many() {
                tiles_line(ty);
            }
        }
    }
}
