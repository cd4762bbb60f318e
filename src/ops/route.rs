//! route: which experts each token takes, and with what weights.
//!
//! ```text
//! scores = gate(logits)
//! choice = the k best of (scores + selection bias), if there are groups only within the best groups
//!          (a group's score is the sum of its two best); or a table's row for the token, in hash-routed layers
//! weight = scores of the chosen (never the biased ones), softmax over them if the gate says so,
//!          divided by their sum if `norm`, times `scale`
//! ```
//! The sum is kept above 6.1e-5, as the reference does. Ties go to the lower number. A router may
//! have classes beyond the experts: a token that takes one of them goes through no expert, its id
//! is -1.

use anyhow::Result;

use super::glu::{sigmoid, softplus};
use crate::cuda::launch::{MOST_CHOSEN, MOST_EXPERTS, MOST_GROUPS};
use crate::cuda::{Grid, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Role, Slot, Weight, WeightId, WeightKind};

/// From logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Softmax over all experts, then choose.
    Softmax,
    /// A sigmoid each.
    Sigmoid,
    /// Choose by logits, then softmax over the chosen.
    SoftmaxOfChosen,
    /// sqrt(log(1 + e^x)).
    SqrtSoftplus,
}

/// A router's settings.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Experts per token.
    pub k: usize,
    /// From logits to scores.
    pub gate: Gate,
    /// Divide the weights by their sum.
    pub norm: bool,
    /// Multiplies the weights.
    pub scale: f32,
    /// `(groups, groups used)`; (1, 1) for none.
    pub groups: (usize, usize),
}

#[derive(Debug)]
struct RouteOp {
    r: Route,
    /// Experts, and classes without one.
    n: usize,
    /// Classes at the end that have no expert.
    no_expert: usize,
    bias: bool,
    table: bool,
}

/// Indices of the `k` largest values, largest first.
pub(super) fn top_k(values: &[f32], k: usize, out: &mut Vec<u32>) {
    out.clear();
    out.extend(0..values.len() as u32);
    let by = |a: &u32, b: &u32| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b));
    let k = k.min(values.len());
    if k < out.len() {
        out.select_nth_unstable_by(k, by);
        out.truncate(k);
    }
    out.sort_unstable_by(by);
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let mut sum = 0f64;
    for v in x.iter_mut() {
        *v = (*v - max).exp();
        sum += *v as f64;
    }
    let inv = (1.0 / sum) as f32;
    x.iter_mut().for_each(|v| *v *= inv);
}

impl Op for RouteOp {
    fn name(&self) -> &'static str {
        "route"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let r = &self.r;
        let n = io.ins[0].len() / io.rows;
        let bias = self.bias.then(|| io.weights[0].values);
        let table = self.table.then(|| io.weights[self.bias as usize].ints);
        let (mut scores, mut biased, mut chosen) = (vec![0f32; n], vec![0f32; n], Vec::new());
        let (mut groups, mut best) = (vec![0f32; r.groups.0], Vec::new());
        for t in 0..io.rows {
            scores.copy_from_slice(&io.ins[0][t * n..(t + 1) * n]);
            match r.gate {
                Gate::Softmax => softmax(&mut scores),
                Gate::Sigmoid => scores.iter_mut().for_each(|v| *v = sigmoid(*v)),
                Gate::SqrtSoftplus => scores.iter_mut().for_each(|v| *v = softplus(*v).sqrt()),
                Gate::SoftmaxOfChosen => {}
            }
            if let Some(table) = table {
                let row = &table[io.batch.row(io.rows, t).token as usize * r.k..][..r.k];
                chosen.clear();
                chosen.extend(row.iter().map(|&e| e as u32));
            } else {
                biased.copy_from_slice(&scores);
                if let Some(bias) = bias {
                    biased.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
                }
                if r.groups.0 > 1 {
                    let size = n / r.groups.0;
                    for (g, group) in groups.iter_mut().zip(biased.chunks_exact(size)) {
                        top_k(group, 2, &mut best);
                        *g = best.iter().map(|&i| group[i as usize]).sum();
                    }
                    top_k(&groups, r.groups.1, &mut best);
                    for (g, group) in biased.chunks_exact_mut(size).enumerate() {
                        if !best.contains(&(g as u32)) {
                            group.fill(f32::NEG_INFINITY);
                        }
                    }
                }
                top_k(&biased, r.k, &mut chosen);
            }
            let [ids, weights] = &mut *io.outs else { unreachable!("the builder gives two outputs") };
            let weights = &mut weights[t * r.k..(t + 1) * r.k];
            for ((w, id), &e) in weights.iter_mut().zip(&mut ids[t * r.k..]).zip(&chosen) {
                *id = if (e as usize) < n - self.no_expert { e as f32 } else { -1.0 };
                *w = scores[e as usize];
            }
            if r.gate == Gate::SoftmaxOfChosen {
                softmax(weights);
            }
            if r.norm {
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum.max(6.103_515_6e-5));
            }
            weights.iter_mut().for_each(|w| *w *= r.scale);
        }
    }

    fn gpu_refuses(&self) -> Option<String> {
        let (k, n, groups) = (self.r.k, self.n, self.r.groups.0);
        let fits = k <= MOST_CHOSEN && groups <= MOST_GROUPS && n <= MOST_EXPERTS;
        let most = format!("the kernel takes {MOST_CHOSEN} of {MOST_EXPERTS} in {MOST_GROUPS}");
        (!fits).then(|| format!("{k} of {n} experts in {groups} groups; {most}"))
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (r, logits) = (&self.r, io.ins[0]);
        let bias = self.bias.then(|| io.weights[0].ptr);
        let table = self.table.then(|| io.weights[self.bias as usize].ptr);
        // In the last layer only output rows are left: their tokens are found through the list of them.
        let which = (logits.rows != io.batch.rows.len()).then_some(io.lists.output_rows);
        let gate = match r.gate {
            Gate::Softmax => launch::RouterGate::Softmax,
            Gate::Sigmoid => launch::RouterGate::Sigmoid,
            Gate::SoftmaxOfChosen => launch::RouterGate::SoftmaxOfChosen,
            Gate::SqrtSoftplus => launch::RouterGate::SqrtSoftplus,
        };
        launch::route(
            io.gpu,
            Grid::new([logits.rows, 1, 1], 32),
            logits.ptr,
            bias.unwrap_or_default(),
            table.unwrap_or_default(),
            io.lists.tokens,
            which.unwrap_or_default(),
            io.outs[0].ptr,
            io.outs[1].ptr,
            int(logits.width),
            int(r.k),
            gate,
            i32::from(r.norm),
            r.scale,
            int(r.groups.0),
            int(r.groups.1),
            int(self.no_expert),
        )
    }

    fn bytes_per_token(&self, weights: &[&Weight]) -> usize {
        let read = |w: &&Weight| if matches!(w.kind, WeightKind::Ints { .. }) { w.bytes / w.shape[1] } else { w.bytes };
        weights.iter().map(read).sum()
    }
}

impl Builder<'_> {
    /// From router logits (T, n_expert) to `(ids, weights)`, both (T, k). `bias` names a vector added for the choice
    /// alone; `table` an integer table (n_vocab, k) that makes the choice instead.
    ///
    /// # Errors
    /// If more experts are chosen than there are, or their groups do not fit; the message names the key.
    pub fn route(
        &self,
        logits: Slot,
        r: Route,
        bias: Option<WeightId>,
        table: Option<WeightId>,
    ) -> Result<(Slot, Slot)> {
        self.route_classes(logits, r, 0, bias, table)
    }

    /// [`Builder::route`] where the last of the classes (T, n_expert + 1) has no expert.
    ///
    /// # Errors
    /// If more experts are chosen than there are, or their groups do not fit; the message names the
    /// key.
    pub fn route_or_none(&self, logits: Slot, r: Route, bias: Option<WeightId>) -> Result<(Slot, Slot)> {
        self.route_classes(logits, r, 1, bias, None)
    }

    fn route_classes(
        &self,
        logits: Slot,
        r: Route,
        no_expert: usize,
        bias: Option<WeightId>,
        table: Option<WeightId>,
    ) -> Result<(Slot, Slot)> {
        let n = self.width(logits);
        let (groups, used) = r.groups;
        if r.k > n {
            return Err(self.bad_key("expert_used_count", r.k, format!("no more than the {n} experts")));
        }
        if !n.is_multiple_of(groups) {
            return Err(self.bad_key("expert_group_count", groups, format!("a divisor of the {n} experts")));
        }
        if used * (n / groups) < r.k {
            let want = format!("enough groups of {} experts for the {} to choose", n / groups, r.k);
            return Err(self.bad_key("expert_group_used_count", used, want));
        }
        let op = RouteOp { r, n, no_expert, bias: bias.is_some(), table: table.is_some() };
        let weights: Vec<WeightId> = bias.into_iter().chain(table).collect();
        let outs = self.role(Role::Router).push_named("ffn_moe_topk", op, &[logits], &[r.k, r.k], &weights, &[]);
        Ok((outs[0], outs[1]))
    }
}
