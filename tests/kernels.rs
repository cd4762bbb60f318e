//! The GPU's kernels on the emulated driver: every weight format, in the shapes that products come in, against sums of
//! the decoded weights in f64; and kernels that go over values one by one, against their formulas in f64.

#[path = "kernels/attention.rs"]
mod attention;
mod common;
#[path = "kernels/fused.rs"]
mod fused;
#[path = "kernels/interpreted.rs"]
mod interpreted;
#[path = "kernels/rare.rs"]
mod rare;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::emu;
use tandem::cuda::launch::GluKind;
use tandem::cuda::{Buffer, Gpu, Grid, Ptr, int, launch, module_of, modules};
use tandem::quant::{self, QuantType, Rng};
use tandem::sample::argmax;
use tandem::tape::{Batch, GpuIo, GpuState, GpuValue, GpuWeight, MatrixRows, Row, Scratch};

/// Device memory with these contents.
fn put<T: bytemuck::NoUninit>(gpu: &Gpu, values: &[T]) -> Buffer {
    let buffer = gpu.alloc(size_of_val(values), "a test").unwrap();
    gpu.upload(&gpu.work, buffer.ptr(), values).unwrap();
    buffer
}

fn get(gpu: &Gpu, from: Ptr, n: usize) -> Vec<f32> {
    let mut out = vec![0f32; n];
    gpu.download(&gpu.work, &mut out, from).unwrap();
    gpu.work.wait().unwrap();
    out
}

/// Activations as the kernels see them: 8 bits and a scale for every 32, or as they are.
fn rounded(x: &[f32], floats: bool) -> Vec<f64> {
    if floats {
        return x.iter().map(|&v| v as f64).collect();
    }
    let group = |g: &[f32]| {
        let d = g.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        g.iter().map(|v| if d > 0.0 { (v / d).round_ties_even() as f64 * d as f64 } else { 0.0 }).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(group).collect()
}

struct Matrices {
    ty: &'static QuantType,
    /// (matrices, rows, columns)
    shape: [usize; 3],
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Matrices {
    fn random(ty: &'static QuantType, shape: [usize; 3], rng: &mut Rng) -> Matrices {
        let n = shape.iter().product::<usize>();
        let mut bytes = vec![0; ty.row_bytes(n)];
        bytes.chunks_exact_mut(ty.bytes).for_each(|b| (ty.random)(rng, b));
        let mut values = vec![0f32; n];
        (ty.dequant)(&bytes, &mut values);
        Matrices { ty, shape, bytes, values }
    }

    fn row(&self, matrix: usize, row: usize) -> &[f32] {
        &self.values[(matrix * self.shape[1] + row) * self.shape[2]..][..self.shape[2]]
    }
}

/// All formats, or those that the emulated device was built with.
fn formats() -> impl Iterator<Item = &'static QuantType> {
    let only = std::env::var("TANDEM_EMU_FORMATS").ok();
    let one = |t: &QuantType, list: &str| list.split(',').any(|f| f.eq_ignore_ascii_case(t.name));
    let asked = move |t: &&'static QuantType| only.as_ref().is_none_or(|list| one(t, list));
    quant::TYPES.iter().copied().filter(|t| module_of(t.name).is_some()).filter(asked)
}

#[test]
fn every_format_that_models_come_in_has_kernels() {
    let without: Vec<&str> = quant::TYPES.iter().filter(|t| module_of(t.name).is_none()).map(|t| t.name).collect();
    assert!(without.is_empty(), "no kernels for {without:?}");
}

/// The hash of these sources and of all headers; None where there is no bash with sha256sum.
fn hash(sources: &[PathBuf]) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Command::new("bash").arg(root.join("kernels/hash.sh")).args(sources).output().ok()?;
    let hash = String::from_utf8(out.stdout).unwrap().trim().to_owned();
    (hash.len() == 64).then_some(hash)
}

#[test]
fn the_ptx_in_this_binary_was_made_from_the_sources_beside_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if hash(&["kernels/basic.cu".into()]).is_none() {
        say!("no bash with sha256sum here: whether the PTX is current is not checked");
        return;
    }
    for (name, tiers) in modules() {
        let own = format!("kernels/{name}.cu");
        let source = if root.join(&own).exists() { own } else { format!("kernels/quant/{name}.cu") };
        let want = format!("// of {}", hash(&[source.into()]).unwrap());
        for ptx in tiers {
            assert_eq!(ptx.lines().next(), Some(&want[..]), "{name} is stale: run kernels/ptx.sh");
            assert_eq!(ptx.lines().find(|l| l.starts_with(".version")), Some(".version 7.0"), "{name}");
        }
    }
}

#[test]
fn the_functions_that_start_kernels_were_made_from_their_prototypes() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut sources: Vec<PathBuf> = std::fs::read_dir(&kernels).unwrap().map(|e| e.unwrap().path()).collect();
    sources.retain(|p| p.extension().is_some_and(|e| e == "cu"));
    sources.sort();
    let here = include_str!("../src/cuda/launch/mod.rs");
    match hash(&sources) {
        Some(hash) => assert!(here.contains(&hash), "src/cuda/launch is stale: run kernels/ptx.sh"),
        None => say!("no bash with sha256sum here: whether src/cuda/launch is current is not checked"),
    }
    // The hash shows sources that were changed; only making it again shows a file that was.
    let (made, src) = (Path::new(env!("CARGO_TARGET_TMPDIR")), kernels.join("../src/cuda"));
    match Command::new("python3").arg(kernels.join("launch.py")).arg(made).status() {
        Ok(status) => {
            assert!(status.success());
            let files = |folder: &Path| {
                let stubs = std::fs::read_dir(folder.join("launch")).unwrap().map(|e| e.unwrap().path());
                let read = |p: PathBuf| (p.file_name().unwrap().to_owned(), std::fs::read_to_string(p).unwrap());
                stubs.chain([folder.join("codes.rs")]).map(read).collect::<std::collections::BTreeMap<_, _>>()
            };
            assert!(files(made) == files(&src), "src/cuda/launch and codes.rs are not what launch.py writes");
        }
        Err(_) => say!("no python3 here: src/cuda/launch and codes.rs are not made again"),
    }
}

/// Runs one of these tests in a process of its own; it must fail, and say so.
fn must_fail(test: &str, env: &[(&str, &Path)], says: &str) {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args([test, "--exact", "--nocapture"]).env("TANDEM_EMU_FORMATS", "q8_0").envs(env.iter().copied());
    let out = c.output().unwrap();
    let text = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert!(!out.status.success() && text.contains(says), "{test} must fail and say {says:?}:\n{text}");
}

const PRODUCTS: &str = "products_of_every_format_are_the_sums_of_their_terms";

/// A copy of the kernels with one change.
fn changed(name: &str, file: &str, from: &str, to: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    for sub in ["", "quant", "emu"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
        for e in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(sub)).unwrap() {
            let path = e.unwrap().path();
            let own = path.file_name().unwrap().to_str().unwrap();
            if path.is_file() {
                std::fs::copy(&path, dir.join(sub).join(own)).unwrap();
            }
        }
    }
    let text = std::fs::read_to_string(dir.join(file)).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{file} has the place that is changed");
    std::fs::write(dir.join(file), text.replace(from, to)).unwrap();
    dir
}

#[test]
fn a_barrier_that_is_missing_is_found() {
    if !emu::load() || !emu::compiled() {
        return;
    }
    let barrier = "        __syncthreads(); // this stage is full, and all are done with the other\n";
    let without = "";
    let dir = changed("no-barrier", "matrix.cuh", barrier, without);
    must_fail(PRODUCTS, &[("TANDEM_EMU_KERNELS", &dir)], "expected");
    // The kernels as they are pass in the same way.
    let dir = changed("all-barriers", "matrix.cuh", barrier, barrier);
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args([PRODUCTS, "--exact"]).env("TANDEM_EMU_FORMATS", "q8_0").env("TANDEM_EMU_KERNELS", &dir);
    assert!(c.output().unwrap().status.success());
}

#[test]
fn ptx_whose_parameters_are_not_the_sources_is_found() {
    if !emu::load() || !emu::compiled() {
        return;
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stale-ptx");
    std::fs::create_dir_all(&dir).unwrap();
    for (name, [_, ptx]) in modules() {
        std::fs::write(dir.join(format!("{name}.sm_80.ptx")), ptx.replace(".param .u32", ".param .u64")).unwrap();
    }
    must_fail(PRODUCTS, &[("TANDEM_PTX_DIR", &dir)], "stale");
}

#[test]
fn rows_of_every_format_are_decoded_as_the_cpu_decodes_them() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(1);
    for ty in formats() {
        let n = ty.block.max(32) * 3;
        let m = Matrices::random(ty, [1, 9, n], &mut rng);
        let ids: Vec<i32> = (0..20).map(|_| rng.below(9) as i32).collect();
        let (w, at, out) = (put(&gpu, &m.bytes), put(&gpu, &ids), gpu.alloc(ids.len() * n * 4, "a test").unwrap());
        let name = module_of(ty.name).unwrap();
        let (grid, row_bytes) = (Grid::new([ids.len(), 1, 1], 64), ty.row_bytes(n) as u64);
        launch::rows(Some(&gpu), name, grid, w.ptr(), at.ptr(), out.ptr(), int(n), row_bytes).unwrap();
        let got = get(&gpu, out.ptr(), ids.len() * n);
        for (i, &id) in ids.iter().enumerate() {
            for (got, want) in got[i * n..(i + 1) * n].iter().zip(m.row(0, id as usize)) {
                // One rounding of scale times code may differ where the minimum is taken off.
                assert!((got - want).abs() <= 2e-6 * want.abs().max(1.0), "{}: {got} for {want}", ty.name);
            }
        }
    }
}

/// The values have what roundings could treat differently: see `quant::formats::check::encode`.
#[test]
fn a_row_is_cached_as_the_cpu_caches_it_and_read_as_the_values_that_it_keeps() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let x = common::floats(&common::local().join("quant/rows.f32"));
    let (width, heads) = (96, 2);
    let (rows, capacity) = (x.len() / width, 40);
    let mut rng = Rng(3);
    let q: Vec<f32> = (0..heads * width).map(|_| rng.normal()).collect();
    // All rows are the second sequence's; a row that is left out is not the last one's neighbour.
    let positions: Vec<i32> = (0..rows as i32).chain([-1]).collect();
    let (from, queries) = (put(&gpu, &[&x[..rows * width], &[7.0; 96]].concat()), put(&gpu, &q));
    let (seqs, at, last) = (put(&gpu, &vec![1i32; rows + 1]), put(&gpu, &positions), put(&gpu, &[rows as i32 - 1]));
    for ty in quant::TYPES.iter().copied().filter(|t| t.kv.is_some()) {
        let code = GpuState::code(ty).unwrap_or_else(|| panic!("no kernels for a cache of {}", ty.name));
        let row = ty.row_bytes(width);
        let cache = put(&gpu, &vec![0xa5u8; 2 * capacity * row]);
        let (row_bytes, seq_bytes, most) = (row as u64, (capacity * row) as u64, int(capacity));
        let (on, keys, grid) = (Some(&gpu), cache.ptr(), Grid::new([rows + 1, 1, 1], 128));
        let (seq, pos, wide) = (seqs.ptr(), at.ptr(), int(width));
        launch::store_rows(on, grid, from.ptr(), keys, seq, pos, wide, code, most, row_bytes, seq_bytes).unwrap();
        let mut got = vec![0u8; 2 * capacity * row];
        gpu.download(&gpu.work, &mut got, keys).unwrap();
        gpu.work.wait().unwrap();
        let mut want = vec![0xa5u8; got.len()];
        let mut values = vec![0f32; rows * width];
        for i in 0..rows {
            let to = &mut want[(capacity + i) * row..][..row];
            tandem::cpu::encode(ty, &x[i * width..][..width], to);
            (ty.dequant)(to, &mut values[i * width..][..width]);
        }
        for (i, (got, want)) in got.chunks(row).zip(want.chunks(row)).enumerate() {
            assert!(got == want, "{}: row {i}: {got:x?}, {want:x?} expected", ty.name);
        }
        // What the kernels of selection read of it: blocks of one row, and the sum over heads of what is above 0.
        let dot = |h: usize, r: usize| {
            let terms = q[h * width..][..width].iter().zip(&values[r * width..][..width]);
            terms.fold((0.0, 0.0), |(s, m), (&q, &k)| (s + q as f64 * k as f64, m + (q as f64 * k as f64).abs()))
        };
        let out = gpu.alloc(heads * capacity * 4, "a test").unwrap();
        let (q, scores, seq, last, h) = (queries.ptr(), out.ptr(), seqs.ptr(), last.ptr(), int(heads));
        let grid = Grid::new([rows.div_ceil(4), 1, heads], 128);
        launch::block_scores(on, grid, q, keys, seq, last, scores, wide, 1, 0, code, most, most, row_bytes, seq_bytes)
            .unwrap();
        let all = get(&gpu, scores, heads * capacity);
        let each: Vec<f32> = all.chunks(capacity).flat_map(|s| s[..rows].to_vec()).collect();
        let want: Vec<(f64, f64)> =
            (0..heads).flat_map(|h| (0..rows).map(move |r| (h, r))).map(|(h, r)| dot(h, r)).collect();
        worst_of(&each, &want, ty.name);
        let (none, grid) = (Ptr::default(), Grid::new([rows.div_ceil(64), 1, 1], 128));
        launch::index_scores(
            on, grid, q, none, keys, seq, last, scores, h, wide, 1, code, most, most, row_bytes, seq_bytes, none, 0, 1,
        )
        .unwrap();
        let sum = |r: usize| {
            let both = (0..heads).map(|h| dot(h, r)).map(|(s, m)| (s.max(0.0), m));
            both.fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
        };
        worst_of(&get(&gpu, scores, rows), &(0..rows).map(sum).collect::<Vec<_>>(), ty.name);
    }
}

/// The largest error of what a kernel wrote, as a share of the value, or of 1 where that is larger.
fn off(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let one = |(&got, want): (&f32, &f64)| {
        let off = (got as f64 - want).abs() / want.abs().max(1.0);
        if off.is_nan() { f64::INFINITY } else { off }
    };
    got.iter().zip(want).map(one).fold(0.0, f64::max)
}

/// The error function by its series, to 1e-12 for |x| < 4.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn scales_and_soft_caps_reach_every_value_and_no_other() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(7);
    for (rows, width, n) in [(1, 1, 1), (3, 85, 17), (2, 512, 512), (5, 60, 1)] {
        let x: Vec<f32> = (0..rows * width).map(|_| 20.0 * rng.normal()).collect();
        let v: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
        let (from, by, total) = (put(&gpu, &x), put(&gpu, &v), x.len());
        // One value more than is written, to see that it stays.
        let out = put(&gpu, &vec![7f32; total + 1]);
        let check = |name: &str, want: &dyn Fn(usize) -> f64| {
            let got = get(&gpu, out.ptr(), total + 1);
            let want: Vec<f64> = (0..total).map(want).chain([7.0]).collect();
            // One rounding, or those of tanh and two more.
            assert!(off(&got, &want) < 5e-7, "{name} of {rows} x {width}: {:.1e}", off(&got, &want));
        };
        let (gpu, grid, long) = (Some(&gpu), Grid::each(total), total as u64);
        launch::scale(gpu, grid, from.ptr(), out.ptr(), 0.3, long).unwrap();
        check("scale", &|i| x[i] as f64 * 0.3f32 as f64);
        launch::scale_by(gpu, grid, from.ptr(), by.ptr(), out.ptr(), int(n), 1, long).unwrap();
        check("scale_by", &|i| x[i] as f64 * v[i % width % n] as f64);
        launch::scale_by(gpu, grid, from.ptr(), by.ptr(), out.ptr(), int(width), int(width / n), long).unwrap();
        check("scale_by, in runs", &|i| x[i] as f64 * v[i % width / (width / n)] as f64);
        launch::affine(gpu, grid, from.ptr(), by.ptr(), by.ptr(), out.ptr(), int(n), long).unwrap();
        check("affine", &|i| (x[i] as f64 + v[i % n] as f64) * v[i % n] as f64);
        launch::soft_cap(gpu, grid, from.ptr(), out.ptr(), 30.0, long).unwrap();
        check("soft_cap", &|i| 30.0 * (x[i] as f64 / 30.0).tanh());
    }
}

#[test]
fn layer_norm_is_exact_where_the_mean_is_large_and_weight_and_bias_may_be_absent() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(8);
    for (runs, n, mean) in [(1, 8, 0.0), (5, 33, 1000.0), (3, 1500, -50.0)] {
        let x: Vec<f32> = (0..runs * n).map(|_| mean + rng.normal()).collect();
        let [weight, bias] = [1.0, 0.0].map(|at| (0..n).map(|_| at + rng.normal()).collect::<Vec<f32>>());
        let (from, w, b) = (put(&gpu, &x), put(&gpu, &weight), put(&gpu, &bias));
        let out = gpu.alloc(x.len() * 4, "a test").unwrap();
        for (with_weight, with_bias) in [(false, false), (true, false), (false, true), (true, true)] {
            let pointer = |with: bool, at: &Buffer| if with { at.ptr() } else { Ptr::default() };
            let (w, b) = (pointer(with_weight, &w), pointer(with_bias, &b));
            let grid = Grid::new([runs, 1, 1], n.next_multiple_of(32).min(1024));
            launch::layer_norm(Some(&gpu), grid, from.ptr(), w, b, out.ptr(), int(n), 1e-5).unwrap();
            let want = x.chunks(n).flat_map(|x| {
                let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n as f64;
                let variance = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n as f64;
                let by = 1.0 / (variance + 1e-5).sqrt();
                let weight = |i: usize| if with_weight { weight[i] as f64 } else { 1.0 };
                let bias = |i: usize| if with_bias { bias[i] as f64 } else { 0.0 };
                x.iter().enumerate().map(|(i, &v)| (v as f64 - mean) * by * weight(i) + bias(i)).collect::<Vec<_>>()
            });
            let (got, want) = (get(&gpu, out.ptr(), x.len()), want.collect::<Vec<f64>>());
            // A few roundings; a mean of 1000 that is rounded to f32 alone would be off by 100 times as much.
            assert!(off(&got, &want) < 2e-6, "{runs} runs of {n} around {mean}: {:.1e}", off(&got, &want));
        }
    }
}

#[test]
fn every_glu_is_its_formula_and_one_without_a_gate_reads_none() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(9);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let tanh_of = |g: f64| ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh();
    let clamped = |g: f64, u: f64| (g.min(2.0), u.clamp(-2.0, 2.0));
    let formula = |kind: GluKind, g: f64, u: f64| match kind {
        GluKind::Silu => g * sigmoid(g) * u,
        GluKind::SiluClamp => clamped(g, u).0 * sigmoid(clamped(g, u).0) * clamped(g, u).1,
        GluKind::Oai => clamped(g, u).0 * sigmoid(1.702 * clamped(g, u).0) * (clamped(g, u).1 + 1.0),
        GluKind::Sigmoid => sigmoid(g) * u,
        GluKind::Gelu => 0.5 * g * (1.0 + tanh_of(g)) * u,
        GluKind::GeluErf => 0.5 * g * (1.0 + erf(g / 2f64.sqrt())) * u,
        GluKind::ReluSq => u.max(0.0).powi(2),
        GluKind::Relu => g.max(0.0) * u,
        GluKind::SiluCap => (g * sigmoid(g)).min(2.0) * clamped(g, u).1,
        GluKind::Softplus => g.exp().ln_1p() * u,
        GluKind::Multiply => g * u,
        GluKind::Situ => 2.0 * (g / 2.0).tanh() * sigmoid(g) * 3.0 * (u / 3.0).tanh(),
    };
    let kinds = [
        GluKind::Silu,
        GluKind::SiluClamp,
        GluKind::Oai,
        GluKind::Sigmoid,
        GluKind::Gelu,
        GluKind::GeluErf,
        GluKind::ReluSq,
        GluKind::Relu,
        GluKind::SiluCap,
        GluKind::Softplus,
        GluKind::Multiply,
        GluKind::Situ,
    ];
    // Rows, values of u, and how many of those share a gate; gates and the rest side by side, as fused products give them.
    for (rows, n, run) in [(1, 1, 1), (3, 100, 1), (2, 96, 8)] {
        let stride = n / run + n;
        let x: Vec<f32> = (0..rows * stride).map(|_| (1.5 * rng.normal()).clamp(-5.0, 5.0)).collect();
        let (from, out) = (put(&gpu, &x), gpu.alloc(rows * n * 4, "a test").unwrap());
        for kind in kinds {
            let g = if kind == GluKind::ReluSq { Ptr::default() } else { from.ptr() };
            let (u, total, wide) = (from.ptr().at(n / run * 4), rows * n, stride as u64);
            let (gpu, grid, out, none, all) = (Some(&gpu), Grid::each(total), out.ptr(), Ptr::default(), total as u64);
            launch::glu(gpu, grid, g, u, out, none, none, kind, 2.0, 3.0, int(n), int(run), wide, wide, all).unwrap();
            let want: Vec<f64> = (0..total)
                .map(|i| {
                    let row = &x[i / n * stride..][..stride];
                    formula(kind, row[i % n / run] as f64, row[n / run + i % n] as f64)
                })
                .collect();
            let got = get(gpu.unwrap(), out, total);
            // Roundings of f32, where 1 + tanh and 1 + erf lose what is below 6e-8, times g and u of up to 5.
            assert!(off(&got, &want) < 3e-6, "{kind:?} of {rows} x {n}: {:.1e}", off(&got, &want));
        }
    }
}

/// Two sequences: the second has more tokens. First rows, rows, sequences.
const RUNS: [[i32; 2]; 3] = [[0, 2], [2, 3], [1, 0]];
const TOKENS: usize = 5;

/// Random inputs of a recurrent kernel: in device memory, and as they are.
fn drawn(gpu: &Gpu, rng: &mut Rng, n: usize) -> (Buffer, Vec<f64>) {
    let x: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
    (put(gpu, &x), x.iter().map(|&v| v as f64).collect())
}

/// A head's rows that no block is as long as, and that no block's threads divide: those of the last
/// block have no row.
#[test]
fn a_scan_that_is_shared_out_among_blocks_is_its_recurrence() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(21);
    let (heads, dim, groups) = (4, 40, 2);
    for (n, lightning) in launch::SCAN.into_iter().flat_map(|n| [(n, false), (n, true)]) {
        let mut draw = |n| drawn(&gpu, &mut rng, n);
        let ((x, xs), (b, bs), (c, cs)) =
            (draw(TOKENS * heads * dim), draw(TOKENS * groups * n), draw(TOKENS * groups * n));
        let ((dt, dts), (bias, biases), (d, ds)) = (draw(TOKENS * heads), draw(heads), draw(heads));
        let ((state, mut states), rates) = (draw(2 * heads * dim * n), [-0.1f64, -0.5, -1.0, -2.0]);
        let a = put(&gpu, &rates.map(|a| a as f32));
        let (lists, out) = (RUNS.map(|l| put(&gpu, &l)), gpu.alloc(TOKENS * heads * dim * 4, "a test").unwrap());
        let own = |p: &Buffer| if lightning { Ptr::default() } else { p.ptr() };
        let [first, count, seq] = lists.each_ref().map(Buffer::ptr);
        let (grid, state) = (Grid::new([heads, 2, 2], 128), state.ptr());
        let (h, m, g) = (int(heads), int(dim), int(groups));
        let inputs = [x.ptr(), b.ptr(), c.ptr(), own(&dt), own(&bias), own(&a), own(&d)];
        let [x, b, c, dt, bias, a, d] = inputs;
        let (to, on) = (out.ptr(), Some(&gpu));
        launch::scan(on, n, grid, x, b, c, dt, bias, a, d, state, to, first, count, seq, h, m, g, 0.5, 0.9, 1, 0)
            .unwrap();
        let mut want = vec![0f64; TOKENS * heads * dim];
        for (t, s) in [(0, 1), (1, 1), (2, 0), (3, 0), (4, 0)] {
            for r in 0..heads * dim {
                let h = r / dim;
                let step = (1.0 + (dts[t * heads + h] + biases[h]).exp()).ln();
                let (step, decay, skip) = match lightning {
                    true => (1.0, (-0.9 * 0.5f64.powi(h as i32 + 1)).exp(), 0.0),
                    false => (step, (step * rates[h]).exp(), ds[h]),
                };
                let value = xs[t * heads * dim + r];
                let at = (t * groups + h / (heads / groups)) * n;
                let row = &mut states[(s * heads * dim + r) * n..][..n];
                row.iter_mut().zip(&bs[at..]).for_each(|(s, b)| *s = *s * decay + step * value * b);
                let seen: f64 = row.iter().zip(&cs[at..]).map(|(s, c)| s * c).sum();
                want[t * heads * dim + r] = seen + skip * value;
            }
        }
        // Sums of `n` terms in f32, of a state that grows to tens.
        let errors = [off(&get(&gpu, to, want.len()), &want), off(&get(&gpu, state, states.len()), &states)];
        assert!(errors.iter().all(|&e| e < 1e-3), "{n} columns, lightning: {lightning}: {errors:?}");
    }
}

/// Every size of both kernels, both forms of the gate, and value heads that share key heads in either
/// way.
#[test]
fn the_delta_rule_with_a_decay_for_each_head_or_each_channel_is_its_recurrence() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(22);
    let (k_heads, v_heads) = (2usize, 4usize);
    let of_heads = launch::DELTA.into_iter().flat_map(|n| [(false, n, 1, 0f32), (false, n, 2, -5.0)]);
    let of_channels = launch::DELTA_CHANNELS.into_iter().flat_map(|n| [(true, n, 1, 0f32), (true, n, 2, -5.0)]);
    for (channels, n, run, bound) in of_heads.chain(of_channels) {
        let decays = if channels { n } else { 1 }; // of a head
        let mut draw = |n| drawn(&gpu, &mut rng, n);
        let ((k, mut ks), (q, qs)) = (draw(TOKENS * k_heads * n), draw(TOKENS * k_heads * n));
        // Keys come normalised: others would make the state grow beyond what f32 holds.
        ks.chunks_mut(n).for_each(|k| {
            let by = k.iter().map(|v| v * v).sum::<f64>().sqrt();
            k.iter_mut().for_each(|v| *v = (*v / by) as f32 as f64);
        });
        gpu.upload(&gpu.work, k.ptr(), &ks.iter().map(|&v| v as f32).collect::<Vec<f32>>()).unwrap();
        let ((v, vs), (beta, betas)) = (draw(TOKENS * v_heads * n), draw(TOKENS * v_heads));
        let ((alpha, alphas), (dt, dts)) = (draw(TOKENS * v_heads * decays), draw(v_heads * decays));
        let ((state, mut states), rates) = (draw(2 * v_heads * n * n), [-0.1f64, -0.5, -1.0, -2.0]);
        let a = put(&gpu, &rates.map(|a| a as f32));
        let (lists, out) = (RUNS.map(|l| put(&gpu, &l)), gpu.alloc(TOKENS * v_heads * n * 4, "a test").unwrap());
        let [first, count, seq] = lists.each_ref().map(Buffer::ptr);
        let threads = (4 * n).min(128);
        let (grid, on) = (Grid::new([v_heads, 2, 4 * n / threads], threads), Some(&gpu));
        let [q, k, v, beta, alpha, dt, a, state, out] =
            [&q, &k, &v, &beta, &alpha, &dt, &a, &state, &out].map(|b| b.ptr());
        let (kh, vh, of) = (int(k_heads), int(v_heads), int(run));
        let launch = if channels { launch::delta_channels } else { launch::delta };
        launch(on, n, grid, q, k, v, beta, alpha, dt, a, state, out, first, count, seq, kh, vh, of, bound, -1.0, 1, 0)
            .unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut want = vec![0f64; TOKENS * v_heads * n];
        for (t, s) in [(0, 1), (1, 1), (2, 0), (3, 0), (4, 0)] {
            for h in 0..v_heads {
                let (key, head) = ((t * k_heads + h / run % k_heads) * n, t * v_heads + h);
                let decay = |i: usize| {
                    let x = alphas[head * decays + i % decays] + dts[h * decays + i % decays];
                    let bounded = bound as f64 * sigmoid(-rates[h] * x);
                    if bound < 0.0 { bounded.exp() } else { (rates[h] * (1.0 + x.exp()).ln()).exp() }
                };
                let decays: Vec<f64> = (0..n).map(decay).collect();
                for j in 0..n {
                    let row = &mut states[((s * v_heads + h) * n + j) * n..][..n];
                    row.iter_mut().zip(&decays).for_each(|(s, d)| *s *= d);
                    let seen: f64 = row.iter().zip(&ks[key..]).map(|(s, k)| s * k).sum();
                    let change = sigmoid(betas[head]) * (vs[head * n + j] - seen);
                    row.iter_mut().zip(&ks[key..]).for_each(|(s, k)| *s += change * k);
                    let got: f64 = row.iter().zip(&qs[key..]).map(|(s, q)| s * q).sum();
                    want[head * n + j] = got / (n as f64).sqrt();
                }
            }
        }
        // Sums of `n` products in f32, each of values of a few.
        let errors = [off(&get(&gpu, out, want.len()), &want), off(&get(&gpu, state, states.len()), &states)];
        assert!(errors.iter().all(|&e| e < 1e-4), "{n} columns, channels: {channels}, bound {bound}: {errors:?}");
    }
}

#[test]
fn the_likeliest_is_the_first_of_the_largest_and_a_nan_before_all() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(5);
    for width in [1, 31, 256, 8191, 20_000] {
        let mut x: Vec<f32> = (0..6 * width).map(|_| rng.unit() - 2.0).collect();
        let mut row = |r: usize, at: &[usize], v: f32| at.iter().for_each(|i| x[r * width + i % width] = v);
        row(1, &[width - 1], 3.0);
        row(2, &[width / 2, width / 2 + 1, width - 1], 3.0); // several are the largest
        row(3, &[width / 3], f32::NAN);
        row(4, &(0..width).collect::<Vec<_>>(), f32::NEG_INFINITY);
        row(5, &[width / 2], f32::INFINITY);
        let want: Vec<f32> = x
            .chunks(width)
            .map(|r| r.iter().position(|v| v.is_nan()).map_or_else(|| argmax(r), |i| i as u32) as f32)
            .collect();
        let (from, parts, out) =
            (put(&gpu, &x), gpu.alloc(6 * 32 * 8, "a test").unwrap(), gpu.alloc(6 * 8, "a test").unwrap());
        let n = launch::ARGMAX_PARTS;
        launch::argmax_of_part(Some(&gpu), Grid::new([n, 6, 1], 256), from.ptr(), parts.ptr(), int(width)).unwrap();
        launch::argmax(Some(&gpu), Grid::new([6, 1, 1], n), parts.ptr(), out.ptr()).unwrap();
        let got = get(&gpu, out.ptr(), 12);
        for r in 0..6 {
            let value = x[r * width + want[r] as usize];
            assert_eq!(got[2 * r], want[r], "row {r} of {width}");
            assert_eq!(got[2 * r + 1].to_bits(), value.to_bits(), "row {r} of {width}");
        }
    }
}

/// Which matrix and which activation row an output row comes from.
fn pairs_of(pairs: &[(usize, usize)], m: &Matrices, x: &[f64]) -> Vec<(f64, f64)> {
    let n = m.shape[2];
    let mut out = Vec::new();
    for &(matrix, row) in pairs {
        let x = &x[row * n..(row + 1) * n];
        for r in 0..m.shape[1] {
            let terms = m.row(matrix, r).iter().zip(x).map(|(&w, x)| w as f64 * x);
            out.push(terms.fold((0.0, 0.0), |(sum, size), t: f64| (sum + t, size + t.abs())));
        }
    }
    out
}

#[test]
fn products_of_every_format_are_the_sums_of_their_terms() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(2);
    for ty in formats() {
        let floats = ty.act.block() == 1;
        let mut worst = 0f64;
        // (matrices, rows, columns in blocks, rows of activations, heads)
        let shapes = [
            (1, 37, 1, 1, 1),
            (1, 130, 3, 3, 1),
            (1, 64, 5, 20, 1),
            (1, 65, 2, 70, 1),
            (1, 150, 1, 143, 1), // more rows and more pairs than a tile has
            (3, 33, 1, 5, 3),
            (3, 40, 2, 19, 3),
        ];
        for (matrices, n_out, blocks, rows, heads) in shapes {
            let n_in = if floats { 45 * blocks } else { ty.block.max(32) * blocks };
            let m = Matrices::random(ty, [matrices, n_out, n_in], &mut rng);
            let x: Vec<f32> = (0..rows * heads * n_in).map(|_| rng.normal()).collect();
            let pairs: Vec<(usize, usize)> = (0..rows * heads).map(|p| (p % heads, p)).collect();
            let kind = if heads == 1 { MatrixRows::All } else { MatrixRows::Heads(heads) };
            let want = pairs_of(&pairs, &m, &rounded(&x, floats));
            let got = product(&gpu, &m, &x, (rows, heads * n_in), kind, pairs.len());
            worst = worst.max(worst_of(&got, &want, ty.name));
        }
        // Experts: few pairs each, many pairs, and pairs with rows of their own.
        for (rows, k, own) in [(1, 4, false), (3, 2, true), (40, 3, false), (40, 3, true)] {
            let (n_experts, n_out, n_in) = (7, 34, if floats { 50 } else { ty.block.max(64) });
            let m = Matrices::random(ty, [n_experts, n_out, n_in], &mut rng);
            let count = if own { rows * k } else { rows };
            let x: Vec<f32> = (0..count * n_in).map(|_| rng.normal()).collect();
            let mut ids = Vec::new();
            for _ in 0..rows {
                let mut all: Vec<usize> = (0..n_experts).collect();
                for _ in 0..k {
                    ids.push(all.swap_remove(rng.below(all.len())));
                }
            }
            let pairs: Vec<(usize, usize)> =
                ids.iter().enumerate().map(|(p, &e)| (e, if own { p } else { p / k })).collect();
            let list = put(&gpu, &ids.iter().map(|&e| e as f32).collect::<Vec<f32>>());
            let kind = MatrixRows::Chosen { ids: list.ptr(), k, own };
            let want = pairs_of(&pairs, &m, &rounded(&x, floats));
            let got = product(&gpu, &m, &x, (count, n_in), kind, pairs.len());
            worst = worst.max(worst_of(&got, &want, ty.name));
        }
        say!("{:8} worst {worst:.1e} of the terms' size", ty.name);
    }
}

/// On the emulated device of 4 multiprocessors half a warp has two of 300 rows, two warps have two of 70 and four warps two
/// of 5 (of floats 512 threads a row).
#[test]
fn rows_shared_by_less_or_more_than_a_warp_are_right_and_the_same_for_one_row_of_activations_as_for_five() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(4);
    for ty in formats() {
        for (n_out, n_in) in [(300, 512), (70, 2304), (5, 4608)] {
            let m = Matrices::random(ty, [1, n_out, n_in], &mut rng);
            let x: Vec<f32> = (0..5 * n_in).map(|_| rng.normal()).collect();
            let pairs: Vec<(usize, usize)> = (0..5).map(|p| (0, p)).collect();
            let want = pairs_of(&pairs, &m, &rounded(&x, ty.act.block() == 1));
            let five = product(&gpu, &m, &x, (5, n_in), MatrixRows::All, 5);
            worst_of(&five, &want, ty.name);
            let one = product(&gpu, &m, &x[..n_in], (1, n_in), MatrixRows::All, 1);
            assert!(one == five[..n_out], "{}, {n_out} x {n_in}: a row's bits depend on how many there are", ty.name);
        }
    }
}

fn worst_of(got: &[f32], want: &[(f64, f64)], name: &str) -> f64 {
    assert_eq!(got.len(), want.len());
    // Sums in f32 in another order: a few roundings of terms as large as all of them. With BF16
    // an activation is the sum of two values of 8 bits, which keep it to 2^-18.
    let most = if name == "BF16" { 6e-6 } else { 2e-6 };
    let mut worst = 0f64;
    for (i, (got, (want, size))) in got.iter().zip(want).enumerate() {
        let off = (*got as f64 - want).abs() / size.max(1e-30);
        assert!(off < most, "{name}: value {i} is {got}, {want} expected ({off:.1e} of its terms)");
        worst = worst.max(off);
    }
    worst
}

fn product(
    gpu: &Gpu,
    m: &Matrices,
    x: &[f32],
    (rows, width): (usize, usize),
    pairs: MatrixRows,
    count: usize,
) -> Vec<f32> {
    let batch = Batch { rows: vec![Row { token: 0, seq: 0, pos: 0 }; rows], ..Batch::default() };
    let io = |gpu, scratch| GpuIo::bare(gpu, &batch, rows, scratch);
    let (w, x) = (put(gpu, &m.bytes), put(gpu, x));
    let weight = GpuWeight { ptr: w.ptr(), shape: m.shape, ty: Some(m.ty), slots: Ptr::default() };
    let value = GpuValue { ptr: x.ptr(), rows, width };
    let n = count * m.shape[1];
    let out = gpu.alloc(n * 4, "a test").unwrap();
    let counted = io(None, Scratch::counted());
    counted.product(&weight, value, pairs, out.ptr()).unwrap();
    let scratch = gpu.alloc(counted.scratch.used(), "a test").unwrap();
    io(Some(gpu), Scratch::new(scratch.ptr(), scratch.bytes)).product(&weight, value, pairs, out.ptr()).unwrap();
    get(gpu, out.ptr(), n)
}
