//! The kernels that do the work of several, against f64: `chain` in all its parts, products of two matrices and of a normed
//! row, and what `glu`, `hyper_pre`, `hyper_post`, `compress`, `conv` and `bring` do on top of their own work.

use crate::common::emu;
use tandem::cuda::launch::{self, CacheType, GluKind, RopePairs};
use tandem::cuda::{Buffer, Gpu, Grid, Ptr, int, module_of};
use tandem::quant::{self, Rng};

const NONE: Ptr = Ptr(0);

fn put(gpu: &Gpu, values: &[f32]) -> Buffer {
    let buffer = gpu.alloc(size_of_val(values), "a test").unwrap();
    gpu.upload(&gpu.work, buffer.ptr(), values).unwrap();
    buffer
}

/// Values about 1 in size, and where they are.
fn drawn(gpu: &Gpu, rng: &mut Rng, n: usize) -> (Vec<f64>, Buffer) {
    let x: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
    (x.iter().map(|&v| v as f64).collect(), put(gpu, &x))
}

fn get(gpu: &Gpu, from: &Buffer, n: usize) -> Vec<f32> {
    let mut out = vec![0f32; n];
    gpu.download(&gpu.work, &mut out, from.ptr()).unwrap();
    gpu.work.wait().unwrap();
    out
}

/// The largest error, where values are about 1 or larger in proportion to them.
fn off(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(&g, &w)| (g as f64 - w).abs() / w.abs().max(1.0)).fold(0.0, f64::max)
}

/// Holds codes, scale and sums of each 32 against the floats that they are made of.
fn check_codes(gpu: &Gpu, codes: &Buffer, scales: &Buffer, of: &[f32], what: &str) {
    let (n, mut bytes) = (of.len(), vec![0u8; of.len()]);
    gpu.download(&gpu.work, &mut bytes, codes.ptr()).unwrap();
    let scales = get(gpu, scales, n / 8); // scale, sums of the first and the last 16, nothing
    for (i, group) in of.chunks(32).enumerate() {
        let d = group.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        let want: Vec<f32> = group.iter().map(|v| if d > 0.0 { (v / d).round_ties_even() } else { 0.0 }).collect();
        let got: Vec<f32> = bytes[32 * i..][..32].iter().map(|&c| c as i8 as f32).collect();
        assert_eq!(got, want, "{what}: codes {i}");
        let sum = |part: &[f32]| part.iter().sum::<f32>() * d;
        assert_eq!(scales[4 * i..][..3], [d, sum(&want[..16]), sum(&want[16..])], "{what}: scales {i}");
    }
}

/// A norm of runs of `n` values with weights for `groups` runs.
fn normed(x: &[f64], n: usize, weight: Option<(&[f64], usize)>, [eps, least, scale]: [f64; 3]) -> Vec<f64> {
    let of = |(r, run): (usize, &[f64])| {
        let mean = run.iter().map(|v| v * v).sum::<f64>() / n as f64 + eps;
        let by = scale / mean.max(least).sqrt();
        let weight = |i: usize| weight.map_or(1.0, |(w, groups)| w[r % groups * n + i]);
        run.iter().enumerate().map(|(i, v)| v * by * weight(i)).collect::<Vec<f64>>()
    };
    x.chunks(n).enumerate().flat_map(of).collect()
}

/// Heads of `n` values in rows of `width`, rotated by the row's angles from column `offset` on.
fn rotated(x: &[f64], n: usize, width: usize, angles: &[f64], n_rot: usize, offset: usize, adjacent: bool) -> Vec<f64> {
    let mut out = x.to_vec();
    for (h, head) in out.chunks_mut(n).enumerate() {
        let angles = &angles[h * n / width * n_rot..];
        for pair in 0..n_rot / 2 {
            let (a, b) = if adjacent { (2 * pair, 2 * pair + 1) } else { (pair, pair + n_rot / 2) };
            let (cos, sin, x, y) = (angles[2 * pair], angles[2 * pair + 1], head[offset + a], head[offset + b]);
            (head[offset + a], head[offset + b]) = (x * cos - y * sin, x * sin + y * cos);
        }
    }
    out
}

/// Every subset of the parts, in two shapes; a block of several warps, and one whose last is not full.
#[test]
#[rustfmt::skip] // a line for each argument would hide the rest
fn a_chain_is_its_parts_one_after_the_other_whichever_are_there() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(31);
    // Rows, heads of the packed part, its columns, runs to a head, whether all values of a run are rotated.
    for (rows, heads, head, runs, adjacent) in [(1, 1, 96, 1, true), (3, 2, 128, 2, false)] {
        let (n, width) = (head / runs, heads * head);
        let (total, wide) = (rows * width, width + 3 * heads + 5);
        for parts in 0..1 << 6 {
            let has = |i: usize| parts >> i & 1 == 1;
            let (pack, adds, norm, rope, code) = (has(0), [0, 1, 3, 2][parts >> 1 & 3], has(3), has(4), has(5));
            let mut draw = |n| drawn(&gpu, &mut rng, n);
            let ((xs, x), more) = (draw(rows * wide.max(width)), [draw(total), draw(total), draw(total)]);
            let ((ws, w), (turns, angles)) = (draw(2 * n), draw(rows * n));
            let out: Vec<Buffer> = (0..6).map(|_| gpu.alloc(total * 4, "a test").unwrap()).collect();
            let (codes, scales) = (gpu.alloc(total, "a test").unwrap(), gpu.alloc(total / 2, "a test").unwrap());
            let given = |yes: bool, at: &Buffer| if yes { at.ptr() } else { NONE };
            let (stride, from, n_rot, offset) = (head + 3, 5, n / 2, n / 4);
            let sum = |i: usize| (given(i < adds, &more[i].1), given(i < adds, &out[1 + i]));
            let ((y, s), (y2, s2), (y3, s3)) = (sum(0), sum(1), sum(2));
            let (p, wx, h, st) = (given(pack, &out[0]), int(wide), int(head), int(stride));
            let (nd, tu) = (given(norm, &out[4]), given(rope, &out[5]));
            let pairs = if adjacent { RopePairs::Adjacent } else { RopePairs::Halves };
            let (c, sc) = (given(code, &codes), given(code, &scales));
            let grid = Grid::new([total / n, 1, 1], n.next_multiple_of(32).min(64));
            let (on, wt, an, nr, of) = (Some(&gpu), w.ptr(), angles.ptr(), int(n_rot), int(offset));
            launch::chain(
                on, grid, x.ptr(), p, wx, h, st, from, y, s, y2, s2, y3, s3, wt, nd, 2, 1e-6, 0.3, 1.5, an, tu, nr,
                of, pairs, 0, c, sc, int(n), int(width),
            )
            .unwrap();
            // The same in f64, part by part.
            let mut v: Vec<f64> = match pack {
                true => (0..total)
                    .map(|i| (i / width, i % width))
                    .map(|(t, c)| xs[t * wide + c / head * stride + from as usize + c % head])
                    .collect(),
                false => xs[..total].to_vec(),
            };
            let what = format!("{rows} rows, parts {parts:06b}");
            let check = |at: usize, v: &[f64], name: &str| {
                let error = off(&get(&gpu, &out[at], total), v);
                assert!(error < 2e-6, "{what}: {name} {error:.1e}"); // a few roundings of values of up to 10
            };
            if pack {
                check(0, &v, "pack");
            }
            for i in 0..adds {
                v.iter_mut().zip(&more[i].0).for_each(|(v, y)| *v += y);
                check(1 + i, &v, "sum");
            }
            if norm {
                v = normed(&v, n, Some((&ws, 2)), [1e-6f32 as f64, 0.3f32 as f64, 1.5]);
                check(4, &v, "norm");
            }
            if rope {
                v = rotated(&v, n, width, &turns, n_rot, offset, adjacent);
                check(5, &v, "rope");
            }
            let last = if rope {
                Some(5)
            } else if norm {
                Some(4)
            } else if adds > 0 {
                Some(adds)
            } else {
                None
            };
            let last = last.or(pack.then_some(0));
            if code {
                let floats = last.map_or_else(|| get(&gpu, &x, total), |i| get(&gpu, &out[i], total));
                check_codes(&gpu, &codes, &scales, &floats, &what);
            }
        }
    }
}

#[test]
fn a_gate_in_eight_bits_is_that_of_its_floats() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(32);
    let total = 3 * 96;
    let ((gs, g), (us, u)) = (drawn(&gpu, &mut rng, total), drawn(&gpu, &mut rng, total));
    let [out, codes, scales] = [4 * total, total, total / 2].map(|n| gpu.alloc(n, "a test").unwrap());
    let (grid, kind, n) = (Grid::each(total), GluKind::Silu, int(96));
    let (to, c, s) = (out.ptr(), codes.ptr(), scales.ptr());
    launch::glu(Some(&gpu), grid, g.ptr(), u.ptr(), to, c, s, kind, 0.0, 0.0, n, 1, 96, 96, total as u64).unwrap();
    let want: Vec<f64> = gs.iter().zip(&us).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    let got = get(&gpu, &out, total);
    assert!(off(&got, &want) < 2e-6, "{:.1e}", off(&got, &want)); // the exponential's own error
    check_codes(&gpu, &codes, &scales, &got, "glu");
}

/// Matrices of any format, of rows that blocks do not divide: the longer first, and last.
#[test]
fn two_matrices_in_one_launch_give_what_each_gives_alone() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(33);
    for ty in quant::TYPES.iter().copied().filter(|t| ["F32", "BF16", "Q8_0", "Q4_K", "IQ2_XXS"].contains(&t.name)) {
        let Some(name) = module_of(ty.name).filter(|name| {
            std::env::var("TANDEM_EMU_FORMATS").map_or(true, |f| f.split(',').any(|f| f.eq_ignore_ascii_case(name)))
        }) else {
            continue;
        };
        let (floats, n_in, experts, k) = (ty.act.block() == 1, 256, 3usize, 2usize);
        for rows in [[37usize, 30], [30, 37], [1, 1]] {
            let random = |n: usize, rng: &mut Rng| {
                let mut bytes = vec![0u8; ty.row_bytes(n_in) * n * experts];
                bytes.chunks_exact_mut(ty.bytes).for_each(|b| (ty.random)(rng, b));
                let buffer = gpu.alloc(bytes.len(), "a test").unwrap();
                gpu.upload(&gpu.work, buffer.ptr(), &bytes).unwrap();
                gpu.work.wait().unwrap();
                let mut values = vec![0f32; n * experts * n_in];
                (ty.dequant)(&bytes, &mut values);
                (buffer, values)
            };
            let matrices = rows.map(|n| random(n, &mut rng));
            let x: Vec<f32> = (0..n_in).map(|_| rng.normal()).collect();
            let (from, ids) = (put(&gpu, &x), put(&gpu, &[2.0, 0.0]));
            let [codes, scales] = [n_in, n_in / 2].map(|n| gpu.alloc(n, "a test").unwrap());
            let groups = (n_in / 32) as u64;
            launch::quantize(Some(&gpu), Grid::each(n_in), from.ptr(), codes.ptr(), scales.ptr(), groups).unwrap();
            let out = rows.map(|n| gpu.alloc(n * k * 4, "a test").unwrap());
            let blocks = |n: usize| if floats { n } else { (n.div_ceil(2) * 32).div_ceil(128) }; // 32 lanes for two rows
            let most = blocks(rows[0]).max(blocks(rows[1]));
            let grid = Grid::new([most, k, 2], if floats { 32 } else { 128 });
            let ([w, w2], [o, o2]) = (matrices.each_ref().map(|m| m.0.ptr()), out.each_ref().map(Buffer::ptr));
            let ([n, n2], b, i) = (rows.map(int), ty.row_bytes(n_in) as u64, ids.ptr());
            let (wide, pairs, c, s) = (int(n_in), int(k), codes.ptr(), scales.ptr());
            let on = Some(&gpu);
            match floats {
                true => {
                    let x = from.ptr();
                    launch::matvec1_floats(on, name, grid, w, w2, x, i, NONE, o, o2, wide, n, n2, pairs, pairs, 1, b)
                }
                false => {
                    launch::matvec1(on, name, grid, w, w2, c, s, i, NONE, o, o2, wide, n, n2, pairs, pairs, 1, 32, b)
                }
            }
            .unwrap();
            let seen: Vec<f64> = match floats {
                true => x.iter().map(|&v| v as f64).collect(),
                false => x
                    .chunks(32)
                    .flat_map(|g| {
                        let d = g.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
                        g.iter().map(move |v| (v / d).round_ties_even() as f64 * d as f64).collect::<Vec<_>>()
                    })
                    .collect(),
            };
            for ((n, (_, values)), out) in rows.into_iter().zip(&matrices).zip(&out) {
                let got = get(&gpu, out, n * k);
                for (p, expert) in [2usize, 0].into_iter().enumerate() {
                    for r in 0..n {
                        let row = &values[(expert * n + r) * n_in..][..n_in];
                        let terms = || row.iter().zip(&seen).map(|(&w, x)| w as f64 * x);
                        let (want, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>().max(1e-30));
                        let error = (got[p * n + r] as f64 - want).abs() / size;
                        assert!(error < 2e-6, "{} {rows:?}: row {r} of expert {expert}: {error:.1e}", ty.name);
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_a_normed_row_need_no_normed_row() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(34);
    // One that begins where four can be loaded, and one that does not; a row alone, and rows by fours.
    for (name, n_in) in ["F32", "F16", "BF16"].into_iter().flat_map(|name| [(name, 4096), (name, 1001)]) {
        let (n_out, rows) = (5usize, 6usize);
        let (xs, x) = drawn(&gpu, &mut rng, rows * n_in);
        let ty = quant::by_name(name).unwrap();
        let (mut data, mut floats) = (vec![0u8; n_out * ty.row_bytes(n_in)], vec![0f32; n_out * n_in]);
        let drawn: Vec<f32> = (0..n_out * n_in).map(|_| rng.normal()).collect();
        tandem::cpu::encode(ty, &drawn, &mut data);
        (ty.dequant)(&data, &mut floats);
        let ws: Vec<f64> = floats.iter().map(|v| *v as f64).collect();
        let w = gpu.alloc(data.len(), "a test").unwrap();
        gpu.upload(&gpu.work, w.ptr(), &data).unwrap();
        let (alone, out) = (put(&gpu, &vec![7f32; n_out]), put(&gpu, &vec![7f32; rows * n_out]));
        let grid = |fours| Grid::new([n_out, fours, 1], 1024);
        let (on, bytes, last, n, m) =
            (Some(&gpu), ty.row_bytes(n_in) as u64, x.ptr().at(5 * n_in * 4), int(n_in), int(n_out));
        launch::normed1_floats(on, module_of(name).unwrap(), grid(1), w.ptr(), last, alone.ptr(), n, m, 1, 1e-6, bytes)
            .unwrap();
        launch::normed4_floats(
            on,
            module_of(name).unwrap(),
            grid(2),
            w.ptr(),
            x.ptr(),
            out.ptr(),
            n,
            m,
            6,
            1e-6,
            bytes,
        )
        .unwrap();
        let normed = normed(&xs, n_in, None, [1e-6f32 as f64, 0.0, 1.0]);
        let product = |row: &[f64]| ws.chunks(n_in).map(|w| w.iter().zip(row).map(|(w, x)| w * x).sum()).collect();
        let want: Vec<f64> = normed.chunks(n_in).flat_map(|row| -> Vec<f64> { product(row) }).collect();
        let got = get(&gpu, &out, rows * n_out);
        let error = off(&got, &want);
        assert!(error < 3e-5, "{name}, {n_in} columns: {error:.1e}"); // sums of thousands of terms of about 1, which cancel
        assert_eq!(
            got[5 * n_out..],
            get(&gpu, &alone, n_out),
            "{name}, {n_in} columns: a row's bits depend on no other row"
        );
    }
}

#[test]
fn a_row_that_is_read_from_streams_is_normed_by_the_same_block() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(35);
    let (rows, n, width) = (2usize, 4usize, 160usize);
    let total = rows * width;
    let mut draw = |n| drawn(&gpu, &mut rng, n);
    let ((streams, st), (mixes, mx), (base, bs), (weight, w)) =
        (draw(rows * n * width), draw(rows * n), draw(n), draw(width));
    let scale = put(&gpu, &[0.5]);
    let [out, norm, codes, scales] = [4 * total, 4 * total, total, total / 2].map(|n| gpu.alloc(n, "a test").unwrap());
    let (grid, on) = (Grid::new([rows, 1, 1], 160), Some(&gpu));
    let (o, nm, c, s) = (out.ptr(), norm.ptr(), codes.ptr(), scales.ptr());
    let (a, m, sc, b, w) = (st.ptr(), mx.ptr(), scale.ptr(), bs.ptr(), w.ptr());
    let (k, wd) = (int(n), int(width));
    launch::hyper_pre(
        on, grid, a, m, sc, b, o, NONE, w, nm, c, s, NONE, NONE, k, wd, 0, 0, 2.0, 0.01, 0.0, 1e-6, 0.0, 1.0,
    )
    .unwrap();
    let pre = |t: usize, i: usize| 1.0 / (1.0 + (-(mixes[t * n + i] * 0.5 + base[i])).exp()) + 0.01f32 as f64;
    let at = |t: usize, c: usize| (0..n).map(|i| pre(t, i) * streams[(t * n + i) * width + c]).sum::<f64>();
    let want: Vec<f64> = (0..total).map(|i| at(i / width, i % width)).collect();
    assert!(off(&get(&gpu, &out, total), &want) < 2e-6);
    let want = normed(&want, width, Some((&weight, 1)), [1e-6f32 as f64, 0.0, 1.0]);
    let got = get(&gpu, &norm, total);
    assert!(off(&got, &want) < 4e-6, "{:.1e}", off(&got, &want));
    check_codes(&gpu, &codes, &scales, &got, "hyper_pre");
}

#[test]
fn sums_that_go_back_to_streams_are_stored_too() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(36);
    let (rows, n, width) = (2usize, 3usize, 40usize);
    let total = rows * width;
    for mixed in [false, true] {
        let n_back = n + if mixed { n * n } else { 0 };
        let mut draw = |n| drawn(&gpu, &mut rng, n);
        let ([(x, xb), (y, yb), (z, zb)], (s, sb), (back, bb)) =
            ([draw(total), draw(total), draw(total)], draw(n * total), draw(rows * n_back));
        let [first, second, out] = [total, total, n * total].map(|n| gpu.alloc(4 * n, "a test").unwrap());
        let (grid, on, all) = (Grid::each(n * total), Some(&gpu), (n * total) as u64);
        let [xb, yb, zb, sb, bb, f, g, o] = [&xb, &yb, &zb, &sb, &bb, &first, &second, &out].map(|b| b.ptr());
        let (k, w, m) = (int(n), int(width), i32::from(mixed));
        launch::hyper_post(on, grid, xb, yb, f, zb, g, sb, bb, o, k, w, m, all).unwrap();
        let one: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        let two: Vec<f64> = one.iter().zip(&z).map(|(x, y)| x + y).collect();
        let at = |i: usize| {
            let (t, to, c) = (i / (n * width), i / width % n, i % width);
            let back = &back[t * n_back..];
            let streams = |from: usize| s[(t * n + from) * width + c];
            let kept = match mixed {
                true => (0..n).map(|from| back[n + from * n + to] * streams(from)).sum(),
                false => streams(to),
            };
            two[t * width + c] * back[to] + kept
        };
        let want: Vec<f64> = (0..n * total).map(at).collect();
        for (got, want) in [(&first, &one), (&second, &two), (&out, &want)] {
            assert!(off(&get(&gpu, got, want.len()), want) < 2e-6, "mixed: {mixed}");
        }
    }
}

/// Runs of different lengths, down and up.
#[test]
fn three_runs_of_words_are_copied_by_one_launch() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(37);
    let runs = [1usize, 700, 256].map(|n| drawn(&gpu, &mut rng, n));
    let to = [1usize, 700, 256].map(|n| put(&gpu, &vec![7f32; n + 1]));
    let [(a, b, c), (d, e, f)] =
        [runs.each_ref().map(|r| r.1.ptr()), to.each_ref().map(Buffer::ptr)].map(|[a, b, c]| (a, b, c));
    launch::bring(Some(&gpu), Grid::new([3, 3, 1], 256), a, d, 1, b, e, 700, c, f, 256).unwrap();
    for ((want, _), got) in runs.iter().zip(&to) {
        let got = get(&gpu, got, want.len() + 1);
        assert!(got.iter().zip(want.iter().chain([&7.0])).all(|(g, w)| *g as f64 == *w), "{} words", want.len());
    }
}

/// Token after token: the kernel that stores a row itself leaves what the kernels for many rows leave.
#[test]
#[rustfmt::skip] // a line for each argument would hide the rest
fn a_compressed_row_is_the_same_whether_one_kernel_makes_it_or_five() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(38);
    let (dim, ratio, tokens) = (64usize, 4usize, 12usize);
    let (wide, capacity) = (2 * dim, 2 * ratio);
    let bytes = (capacity * wide * 4) as u64;
    let mut draw = |n| drawn(&gpu, &mut rng, n);
    let ((_, ape), (_, weight), (_, angles)) = (draw(ratio * wide), draw(dim), draw(32));
    let inputs: Vec<[Buffer; 2]> = (0..tokens).map(|_| [draw(wide).1, draw(wide).1]).collect();
    let seq = put(&gpu, &[0.0]);
    for ty in [CacheType::F32, CacheType::F16, CacheType::Q80] {
        let code = quant::TYPES.iter().find(|t| t.id == ty as u32).unwrap();
        let row = code.row_bytes(dim) as u64;
        let state = || {
            [wide * 4 * capacity, wide * 4 * capacity, 3 * row as usize].map(|n| put(&gpu, &vec![7f32; n.div_ceil(4)]))
        };
        let (alone, many) = (state(), state());
        let [placed, made] = [wide, dim].map(|n| put(&gpu, &vec![7f32; n]));
        let on = Some(&gpu);
        let (cap, rb, sq, an, w, ap) =
            (int(capacity), wide as u64 * 4, seq.ptr(), angles.ptr(), weight.ptr(), ape.ptr());
        for (t, [kv, score]) in inputs.iter().enumerate() {
            let list = |v: i32| {
                let b = gpu.alloc(4, "a test").unwrap();
                gpu.upload(&gpu.work, b.ptr(), &[v]).unwrap();
                b
            };
            let pos = list(t as i32);
            let done = list(if (t + 1) % ratio == 0 { (t / ratio) as i32 } else { -1 });
            let (d, r, n, p) = (int(dim), int(ratio), int(wide), pos.ptr());
            let grid = |threads| Grid::new([1, 1, 1], threads).with_shared(dim * 4);
            let [k, s, c] = alone.each_ref().map(Buffer::ptr);
            let halves = RopePairs::Adjacent;
            launch::compress(
                on, grid(512), k, s, kv.ptr(), score.ptr(), ap, w, an, sq, p, made.ptr(), d, r, 1, 1e-6, 32, 32,
                halves, 0, cap, rb, bytes, c, ty, 3, row, 0,
            )
            .unwrap();
            let [k, s, c] = many.each_ref().map(Buffer::ptr);
            let f32 = CacheType::F32;
            launch::store_rows(on, Grid::new([1, 1, 1], 128), kv.ptr(), k, sq, p, n, f32, cap, rb, bytes).unwrap();
            launch::add_place(on, Grid::each(wide), score.ptr(), ap, p, placed.ptr(), n, r, wide as u64).unwrap();
            launch::store_rows(on, Grid::new([1, 1, 1], 128), placed.ptr(), s, sq, p, n, f32, cap, rb, bytes).unwrap();
            launch::compress(
                on, grid(512), k, s, NONE, NONE, NONE, w, an, sq, p, made.ptr(), d, r, 1, 1e-6, 32, 32, halves, 0,
                cap, rb, bytes, NONE, ty, 1, 0, 0,
            )
            .unwrap();
            launch::store_rows(on, Grid::new([1, 1, 1], 128), made.ptr(), c, sq, done.ptr(), d, ty, 3, row, 0).unwrap();
        }
        for (i, (a, b)) in alone.iter().zip(&many).enumerate() {
            let bits = |b: &Buffer| get(&gpu, b, b.bytes / 4).into_iter().map(f32::to_bits).collect::<Vec<u32>>();
            assert!(bits(a) == bits(b), "{ty:?}, state {i}");
        }
    }
}

#[test]
fn a_convolution_of_one_row_keeps_it_in_the_place_of_the_oldest() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(39);
    let (n, taps, tokens) = (130usize, 3usize, 7usize);
    let ((ws, w), (bias, b)) = (drawn(&gpu, &mut rng, n * taps), drawn(&gpu, &mut rng, n));
    let inputs: Vec<(Vec<f64>, Buffer)> = (0..tokens).map(|_| drawn(&gpu, &mut rng, n)).collect();
    let (past, out, seq) = (put(&gpu, &vec![f32::NAN; taps * n]), put(&gpu, &vec![0f32; n]), put(&gpu, &[0.0]));
    for t in 0..tokens {
        let pos = gpu.alloc(4, "a test").unwrap();
        gpu.upload(&gpu.work, pos.ptr(), &[t as i32]).unwrap();
        let (grid, row) = (Grid::new([n.div_ceil(128), 1, 1], 128), 4 * n as u64);
        let (x, k, sq, p, to) = (inputs[t].1.ptr(), int(taps), seq.ptr(), pos.ptr(), out.ptr());
        launch::conv(Some(&gpu), grid, x, past.ptr(), w.ptr(), b.ptr(), sq, p, to, 0, 1, int(n), k, 1, k, row, 0)
            .unwrap();
        let at = |c: usize| {
            let term = |j: usize| {
                let from = (t + j + 1).checked_sub(taps)?;
                Some(ws[c * taps + j] * inputs[from].0[c])
            };
            (0..taps).filter_map(term).sum::<f64>() + bias[c]
        };
        let want: Vec<f64> = (0..n).map(at).collect();
        assert!(off(&get(&gpu, &out, n), &want) < 2e-6, "token {t}");
    }
}
