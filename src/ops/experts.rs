//! experts: every token through the experts that the router chose for it, weighted and summed.
//!
//! ```text
//! out[t] = sum_j weight[t][j] * (down_e (glu(gate_e x[t] + bg_e, up_e x[t] + bu_e)) + bd_e),   e = id[t][j]
//! ```
//! Llama 4 weighs what an expert reads: there gate and up are multiplied, and the sum is plain. Some models have no gate:
//! there `glu` is an activation of the upper half alone. An id of -1 is no expert: it adds nothing.
//!
//! Tokens are grouped by expert, so that a weight is read once for all tokens that share it. The sum over `j` runs in
//! the router's order whatever the grouping, so the result does not depend on the batch, nor on how many passes the
//! experts come in where they are not all in memory: it is made when all have come.

use anyhow::{Result, bail};

use super::Glu;
use super::linear::scale_bias;
use crate::cpu::{Group, dense, grouped};
use crate::cuda::{Grid, Ptr, int, launch};
use crate::quant::Acts;
use crate::tape::{
    Builder, CpuIo, GpuIo, GpuValue, MatrixOf, MatrixRows, Op, Role, Slot, Weight, WeightId, WeightView,
};

/// The shape of an expert layer.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// Experts in the layer.
    pub n: usize,
    /// Width inside an expert.
    pub n_ff: usize,
    /// What joins gate and up.
    pub glu: Glu,
    /// Whether the router's weight multiplies what an expert reads instead of what it gives.
    pub weight_first: bool,
}

/// The matrices before the activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inner {
    /// One for the gate and one for what it gates.
    Apart,
    /// Both in one, the gate's rows first.
    Fused,
    /// No gate.
    Ungated,
}

#[derive(Debug)]
struct ExpertsOp {
    e: Experts,
    k: usize,
    /// How the inner halves come from matrices.
    inner: Inner,
    /// Which of the matrices have a scale per expert, and which a bias; those follow the matrices.
    extras: Vec<(bool, bool)>,
}

/// What the router chose of the CPU's experts: products, by their numbers in the order of their places.
struct Products {
    /// Product -> place in (T * k), rising.
    places: Vec<u32>,
    /// Product -> expert.
    ids: Vec<u32>,
    /// Products by expert, in rising order of both.
    order: Vec<u32>,
    /// (expert, from, to) in `order`.
    runs: Vec<(u32, usize, usize)>,
}

impl Products {
    /// From the router's `ids`, (T * k); experts that are in GPU memory, by `slots`, are left out.
    fn new(ids: &[f32], slots: &[i32]) -> Products {
        let chosen: Vec<u32> = ids.iter().map(|&e| if e < 0.0 { u32::MAX } else { e as u32 }).collect();
        let here = |&p: &u32| {
            let e = chosen[p as usize];
            e != u32::MAX && slots.get(e as usize).is_none_or(|&s| s < 0)
        };
        let places: Vec<u32> = (0..chosen.len() as u32).filter(here).collect();
        let ids: Vec<u32> = places.iter().map(|&p| chosen[p as usize]).collect();
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|&p| ids[p as usize]);
        let mut runs: Vec<(u32, usize, usize)> = Vec::new();
        for (i, &p) in order.iter().enumerate() {
            let e = ids[p as usize];
            match runs.last_mut() {
                Some(run) if run.0 == e => run.2 = i + 1,
                _ => runs.push((e, i, i + 1)),
            }
        }
        Products { places, ids, order, runs }
    }

    /// The products of some experts, and where each expert's begin and end among them.
    fn of(&self, experts: &[u32]) -> (Vec<u32>, Vec<(u32, usize, usize)>) {
        let (mut list, mut runs) = (Vec::new(), Vec::with_capacity(experts.len()));
        for &e in experts {
            let at = self.runs.binary_search_by_key(&e, |run| run.0).expect("an expert that was chosen");
            let (_, a, b) = self.runs[at];
            runs.push((e, list.len(), list.len() + b - a));
            list.extend_from_slice(&self.order[a..b]);
        }
        (list, runs)
    }
}

impl ExpertsOp {
    /// The number of the first scale or bias of matrix `m` among the weights.
    fn extra(&self, m: usize) -> usize {
        self.extras.len() + self.extras[..m].iter().map(|e| usize::from(e.0) + usize::from(e.1)).sum::<usize>()
    }

    /// `out[r] = out[r] * scale[e] + bias[e]` of matrix `m` for each product's expert.
    fn finish(&self, weights: &[WeightView<'_>], m: usize, ids: &[u32], out: &mut [f32]) {
        let (scale, bias) = self.extras[m];
        let width = (out.len() / ids.len().max(1)).max(1); // another place may do all
        let mut at = self.extra(m);
        if scale {
            let s = weights[at].values;
            at += 1;
            for (row, &e) in out.chunks_exact_mut(width).zip(ids) {
                row.iter_mut().for_each(|o| *o *= s[e as usize]);
            }
        }
        if bias {
            let b = weights[at].values;
            for (row, &e) in out.chunks_exact_mut(width).zip(ids) {
                row.iter_mut().zip(&b[e as usize * width..]).for_each(|(o, b)| *o += b);
            }
        }
    }

    /// The products of some experts, into the rows of `down` that are theirs: (products, n_embd), without scale or bias.
    fn pass(
        &self,
        io: &CpuIo<'_>,
        products: &Products,
        (experts, matrix): (&[u32], &MatrixOf<'_>),
        ([gate, up, hidden, down], acts): (&mut [Vec<f32>; 4], &mut Acts),
    ) {
        let (x, weights, n_ff) = (io.ins[0], io.ins[2], self.e.n_ff);
        let n_embd = x.len() / io.rows.max(1);
        let (list, runs) = products.of(experts);
        let place = |i: usize| products.places[list[i] as usize] as usize;
        let ids: Vec<u32> = list.iter().map(|&p| products.ids[p as usize]).collect();
        let (n_gate, n_up) = match self.inner {
            Inner::Apart => (n_ff, n_ff),
            Inner::Fused => (2 * n_ff, 0),
            Inner::Ungated => (n_ff, 0),
        };
        gate.resize(list.len() * n_gate, 0.0);
        up.resize(list.len() * n_up, 0.0);
        hidden.resize(list.len() * n_ff, 0.0);
        // One of several passes quantizes only the rows that it multiplies by.
        let part = experts.len() < products.runs.len() && list.len() < io.rows;
        let row = |t: usize| &x[t * n_embd..(t + 1) * n_embd];
        let gathered = if part { (0..list.len()).map(|i| row(place(i) / self.k)).collect() } else { Vec::new() };
        let (gathered, all) = (gathered.concat(), 0..list.len() as u32);
        let x = if part { &gathered[..] } else { x };
        let source = |i: u32| if part { i } else { (place(i as usize) / self.k) as u32 };
        let by_token: Vec<(u32, u32)> = all.clone().map(|i| (source(i), i)).collect();
        let by_product: Vec<(u32, u32)> = all.map(|i| (i, list[i as usize])).collect();
        let mut product = |m: usize, pairs: &[(u32, u32)], x: &[f32], out: &mut [f32]| {
            let w = io.weights[m];
            let groups: Vec<Group> =
                runs.iter().map(|&(e, a, b)| Group { w: matrix(m, e), pairs: &pairs[a..b] }).collect();
            grouped(io.pool, w.format(), (w.shape[1], w.shape[2]), &groups, acts, x, out);
        };
        product(0, &by_token, x, gate);
        self.finish(io.weights, 0, &ids, gate);
        if self.inner == Inner::Apart {
            product(1, &by_token, x, up);
            self.finish(io.weights, 1, &ids, up);
        }
        if self.e.weight_first {
            // The same as weighing what the products read, up to rounding.
            for (half, width) in [(&mut *gate, n_gate), (&mut *up, n_up)] {
                for (i, row) in half.chunks_exact_mut(width.max(1)).enumerate() {
                    row.iter_mut().for_each(|v| *v *= weights[place(i)]);
                }
            }
        }
        io.pool.pieces(hidden, n_ff, list.len() * n_ff * 32, |p, row| {
            let g = &gate[p * n_gate..];
            let u = match self.inner {
                Inner::Apart => &up[p * n_ff..],
                Inner::Fused => &g[n_ff..],
                Inner::Ungated => g,
            };
            self.e.glu.apply(&g[..n_ff], &u[..n_ff], row);
        });
        product(self.extras.len() - 1, &by_product, hidden, down);
    }
}

impl Op for ExpertsOp {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        // What the GPU has is its part; a product's number is its place among the others.
        let products = Products::new(io.ins[1], io.weights[0].slots);
        let n_embd = io.ins[0].len() / io.rows.max(1);
        let mut buffers = std::mem::take(&mut io.work.buffers);
        let mut acts = std::mem::take(&mut io.work.acts);
        buffers[3].resize(products.ids.len() * n_embd, 0.0);
        let passes = io.passes.take();
        let mut pass = |experts: &[u32], matrix: &MatrixOf<'_>| {
            self.pass(io, &products, (experts, matrix), (&mut buffers, &mut acts));
        };
        match passes {
            Some(passes) => (passes.0)(&mut pass),
            None => {
                let all: Vec<u32> = products.runs.iter().map(|run| run.0).collect();
                pass(&all, &|m, e| io.weights[m].matrix(e as usize));
            }
        }
        let Products { places, ids, .. } = &products;
        self.finish(io.weights, self.extras.len() - 1, ids, &mut buffers[3]);
        let (down, weights, weight_first) = (&buffers[3], io.ins[2], self.e.weight_first);
        let first = |t: usize| places.partition_point(|&p| (p as usize) < t * self.k);
        io.pool.pieces(io.outs[0], n_embd, ids.len() * n_embd * 4, |t, out| {
            out.fill(0.0);
            for p in first(t)..first(t + 1) {
                let weight = if weight_first { 1.0 } else { weights[places[p] as usize] };
                dense::add_times(out, weight, &down[p * n_embd..(p + 1) * n_embd]);
            }
        });
        io.work.buffers = buffers;
        io.work.acts = acts;
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (x, ids, weights) = (io.ins[0], io.ins[1], io.ins[2]);
        let (n_ff, pairs) = (self.e.n_ff, ids.rows * self.k);
        let last = self.extras.len() - 1;
        let mut at = self.extras.len();
        let mut finish = |m: usize, out: GpuValue| {
            let (scale, bias) = self.extras[m];
            let mut next = |has: bool| {
                at += has as usize;
                has.then(|| io.weights[at - 1].ptr)
            };
            let (scale, bias) = (next(scale), next(bias));
            scale_bias(io, out, scale, bias, Some(ids.ptr))
        };
        let value = |width: usize| GpuValue { ptr: io.scratch.take(pairs * width * 4), rows: pairs, width };
        let chosen = |own: bool| MatrixRows::Chosen { ids: ids.ptr, k: self.k, own };
        let gate = value(if self.inner == Inner::Fused { 2 * n_ff } else { n_ff });
        io.product(&io.weights[0], x, chosen(false), gate.ptr)?;
        finish(0, gate)?;
        let (up, up_stride) = match self.inner {
            Inner::Fused => (gate.ptr.at(n_ff * 4), 2 * n_ff),
            Inner::Ungated => (gate.ptr, n_ff),
            Inner::Apart => {
                let up = value(n_ff);
                io.product(&io.weights[1], x, chosen(false), up.ptr)?;
                finish(1, up)?;
                (up.ptr, n_ff)
            }
        };
        if self.e.weight_first {
            let inner = [Some(gate), (self.inner == Inner::Apart).then_some(GpuValue { ptr: up, ..gate })];
            for x in inner.into_iter().flatten() {
                let total = x.rows * x.width;
                launch::scale_rows(io.gpu, Grid::each(total), x.ptr, weights.ptr, x.ptr, int(x.width), total as u64)?;
            }
        }
        let hidden = value(n_ff);
        self.e.glu.start(io, (gate.ptr, gate.width), (up, up_stride), hidden.ptr, (pairs, n_ff, 1))?;
        let down = value(x.width);
        io.product(&io.weights[last], hidden, chosen(true), down.ptr)?;
        finish(last, down)?;
        let total = x.rows * x.width;
        launch::mix_pairs(
            io.gpu,
            Grid::each(total),
            down.ptr,
            ids.ptr,
            if self.e.weight_first { Ptr::default() } else { weights.ptr },
            io.weights[0].slots,
            io.outs[0].ptr,
            int(x.width),
            int(self.k),
            i32::from(io.add),
            total as u64,
        )
    }

    fn code_inputs(&self, weights: &[&Weight]) -> &'static [usize] {
        if weights[0].is_coded() { &[0] } else { &[] }
    }

    fn splits_by_expert(&self) -> bool {
        true
    }

    fn cpu_scratch_bytes(&self, rows: usize, width: usize) -> usize {
        let gates = if self.inner == Inner::Ungated { 1 } else { 2 };
        rows * self.k * ((gates + 1) * self.e.n_ff + width) * 4
    }

    fn bytes_per_token(&self, weights: &[&Weight]) -> usize {
        weights.iter().map(|w| w.bytes).sum::<usize>() / self.e.n * self.k
    }
}

impl Builder<'_> {
    /// `x` through the routed experts `PREFIX_gate_exps`, `PREFIX_up_exps`, `PREFIX_down_exps`: the width of `x`. Gate
    /// and up may be one matrix, `PREFIX_gate_up_exps`; an activation without a gate has no `PREFIX_gate_exps`.
    ///
    /// # Errors
    /// If the file does not have them in these shapes.
    pub fn experts(&self, prefix: &str, x: Slot, (ids, weights): (Slot, Slot), e: Experts) -> Result<Slot> {
        let n_embd = self.width(x);
        let inner = match e.glu.has_gate() {
            false => Inner::Ungated,
            true if self.has(&format!("{prefix}_gate_up_exps.weight")) => Inner::Fused,
            true => Inner::Apart,
        };
        let mut matrices = match inner {
            Inner::Fused => vec![("gate_up", e.n_ff * 2, n_embd)],
            Inner::Apart => vec![("gate", e.n_ff, n_embd), ("up", e.n_ff, n_embd)],
            Inner::Ungated => vec![("up", e.n_ff, n_embd)],
        };
        matrices.push(("down", n_embd, e.n_ff));
        let mut list: Vec<WeightId> = Vec::new();
        for (part, rows, cols) in &matrices {
            list.push(self.matrix(&format!("{prefix}_{part}_exps.weight"), &[e.n, *rows, *cols])?);
        }
        let mut extras = Vec::new();
        for (part, rows, _) in &matrices {
            let scale = self.opt_vector(&format!("{prefix}_{part}_exps.scale"), &[e.n])?;
            let bias = self.opt_vector(&format!("{prefix}_{part}_exps.bias"), &[e.n, *rows])?;
            extras.push((scale.is_some(), bias.is_some()));
            list.extend(scale.into_iter().chain(bias));
        }
        let k = self.width(ids);
        if k != self.width(weights) {
            bail!("{}: {prefix} experts get {k} ids and {} weights", self.file(), self.width(weights));
        }
        let op = ExpertsOp { e, k, inner, extras };
        let name = format!("{prefix}_exps");
        Ok(self.role(Role::Experts).push_named(&name, op, &[x, ids, weights], &[n_embd], &list, &[])[0])
    }
}
