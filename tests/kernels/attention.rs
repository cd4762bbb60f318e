//! Attention's kernels in every shape, against the softmax of the scores in f64.

use half::f16;
use tandem::cuda::{Buffer, CacheArg, Gpu, Grid, Ptr, int, launch};
use tandem::quant::Rng;

use super::{emu, get, off, put};

/// A launch of one span of tokens, whose query heads share a key head.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Query rows of a block in 16s, and columns of values in 32s.
    kernel: (usize, usize),
    stages: usize,
    k_dim: usize,
    v_dim: usize,
    tokens: usize,
    n_keys: usize,
    /// A window, or a chunk where it is negative.
    window: i32,
    /// A soft cap, or 0.
    cap: f32,
}
const HEADS: usize = 2;
const SPLITS: usize = 2;
const SCALE: f32 = 0.11;

impl Case {
    /// Shared memory of a block, as kernels/attend.cu lays it out.
    fn shared_bytes(&self) -> usize {
        let (rows, block, values) = (16 * self.kernel.0, 32, 32 * self.kernel.1 + 8);
        let keys = self.k_dim.next_multiple_of(32) + 8;
        let of_queries = if self.kernel.0 == 4 { 0 } else { 2 * rows * keys + 4 * rows * (block + 8) };
        16 + 2 * self.stages * block * (keys + values) + of_queries
    }

    /// The first position that a token sees whose own is just before `end`.
    fn start(&self, end: usize) -> usize {
        match self.window {
            0 => 0,
            w if w > 0 => end.saturating_sub(w as usize),
            w => (end - 1) / -w as usize * -w as usize,
        }
    }

    /// What attention gives for these queries, keys and values.
    fn want(&self, q: &[f32], k: &[f16], v: &[f16]) -> Vec<f64> {
        let (first, cap) = (self.n_keys - self.tokens, self.cap as f64);
        let mut want = Vec::new();
        for r in 0..self.tokens * HEADS {
            let end = first + r / HEADS + 1;
            let seen = self.start(end)..end;
            let dot = |at: usize| -> f64 {
                let q = q[r * self.k_dim..][..self.k_dim].iter().map(|&q| f16::from_f32(q * SCALE).to_f64());
                q.zip(&k[at * self.k_dim..][..self.k_dim]).map(|(q, k)| q * k.to_f64()).sum()
            };
            let capped = |s: f64| if cap > 0.0 { cap * (s / cap).tanh() } else { s };
            let shares: Vec<f64> = seen.clone().map(|at| capped(dot(at)).exp()).collect();
            let sum: f64 = shares.iter().sum();
            let terms = |c: usize| seen.clone().zip(&shares).map(move |(at, s)| (at * self.v_dim + c, s));
            want.extend((0..self.v_dim).map(|c| terms(c).map(|(at, s)| s * v[at].to_f64()).sum::<f64>() / sum));
        }
        want
    }

    /// What the kernels give for random queries, keys and values, and what they should.
    fn run(&self, gpu: &Gpu, rng: &mut Rng) -> (Vec<f32>, Vec<f64>) {
        let Case { k_dim, v_dim, tokens, n_keys, .. } = *self;
        let mut halves = |n: usize| -> Vec<f16> { (0..n).map(|_| f16::from_f32(rng.normal())).collect() };
        let (k, v, q) = (halves(n_keys * k_dim), halves(n_keys * v_dim), halves(tokens * HEADS * k_dim));
        let q: Vec<f32> = q.iter().map(|q| q.to_f32()).collect();
        let bits = |v: &[f16]| v.iter().map(|v| v.to_bits()).collect::<Vec<u16>>();
        let (keys, values, queries) = (put(gpu, &bits(&k)), put(gpu, &bits(&v)), put(gpu, &q));
        let first = n_keys - tokens;
        let span = [0, tokens as i32, 0, self.start(first + 1) as i32, n_keys as i32, 0, 0, 0];
        let (spans, pos) = (put(gpu, &span), put(gpu, &(first as i32..n_keys as i32).collect::<Vec<i32>>()));
        let parts = put(gpu, &vec![f32::NAN; tokens * HEADS * SPLITS * (v_dim + 2)]);
        let out = gpu.alloc(tokens * HEADS * v_dim * 4, "a test").unwrap();
        let cache = |rows: &Buffer, dim: usize| CacheArg {
            rows: rows.ptr().0,
            row_bytes: 2 * dim as u64,
            seq_bytes: 0,
            capacity: int(n_keys),
            ty: launch::CacheType::F16,
        };
        let (keys, values, other, none) =
            (cache(&keys, k_dim), cache(&values, v_dim), CacheArg::default(), Ptr::default());
        let (on, [queries, spans, pos, to]) = (Some(gpu), [&queries, &spans, &pos, &parts].map(Buffer::ptr));
        let (heads, dims, splits) = (int(HEADS), (int(k_dim), int(v_dim)), int(SPLITS));
        let grid = Grid::new([1, 1, SPLITS], 128).with_shared(self.shared_bytes());
        let ((mt, nv), window, cap, stages) = (self.kernel, self.window, self.cap, int(self.stages));
        // One key head; no second cache, no rows that an indexer chose, one tile of rows.
        launch::attend(
            on, mt, nv, grid, queries, keys, values, other, none, spans, pos, to, heads, 1, dims.0, dims.1, SCALE,
            window, cap, 1, 0, 0, 1, 0, 1, splits, stages,
        )
        .unwrap();
        let grid = Grid::new([HEADS, tokens, 1], 128);
        launch::attend_join(on, grid, to, none, out.ptr(), dims.1, splits).unwrap();
        (get(gpu, out.ptr(), tokens * HEADS * v_dim), self.want(&q, &k, &v))
    }
}

/// Keys that are three blocks of the kernel's and a part, shared by two splits; windows, chunks and soft caps. Where the
/// device has too little shared memory for keys as wide as the values, they are of 120 columns, and where that is too much,
/// there is one stage alone, as for `Attend`.
#[test]
fn attention_in_every_shape_is_the_softmax_of_its_scores() {
    if !emu::load() {
        return;
    }
    let gpu = Gpu::open().unwrap();
    let mut rng = Rng(11);
    for (i, kernel) in launch::ATTEND.into_iter().enumerate() {
        let (window, cap) = [(0, 0.0), (40, 0.0), (-50, 0.0), (0, 3.0)][i % 4];
        for stages in [1, 2] {
            let (mt, nv) = kernel;
            let of = |k_dim| Case {
                kernel,
                stages,
                k_dim,
                v_dim: 32 * nv - 12,
                tokens: 8 * mt - 3,
                n_keys: 107,
                window,
                cap,
            };
            let Some(case) = [32 * nv - 8, 120].map(of).into_iter().find(|c| c.shared_bytes() <= gpu.shared) else {
                assert!(stages == 2, "every shape is tested");
                continue;
            };
            let (got, want) = case.run(&gpu, &mut rng);
            // Shares are rounded to f16.
            let error = off(&got, &want);
            assert!(error < 1e-3, "{case:?}: {error:.1e}");
        }
    }
}

/// Launches without anything special, for `interpreted::kernels_issue_no_more_than_their_budgets_allow`: a row tile that is
/// full, and many keys.
pub(super) fn long_launches(gpu: &Gpu, kernels: &[(usize, usize)]) {
    for &(mt, nv) in kernels {
        let (k_dim, v_dim) = (32 * nv.min(8), 32 * nv);
        let case =
            Case { kernel: (mt, nv), stages: 1, k_dim, v_dim, tokens: 8 * mt, n_keys: 1024, window: 0, cap: 0.0 };
        case.run(gpu, &mut Rng(12));
    }
}
