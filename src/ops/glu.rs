//! glu: one half of a feed-forward layer gates the other, element by element; also the plain sigmoid gates, and the
//! activation of layers without a gate.
//!
//! ```text
//! Silu           silu(g) * u
//! SiluClamp(L)   silu(min(g, L)) * clamp(u, -L, L)                                     (DeepSeek-V4)
//! Oai            h = min(g, 7); h * sigmoid(1.702 h) * (clamp(u, -7, 7) + 1)           (gpt-oss)
//! Sigmoid        sigmoid(g) * u; a narrower g gates equal runs of u
//! Gelu           g * sigmoid(2 sqrt(2 / pi) (g + 0.044715 g^3)) * u, GELU by its tanh approximation         (Gemma)
//! Multiply       g * u                                                             (short convolutions of LFM2)
//! SiluCap(L)     min(silu(g), L) * clamp(u, -L, L)                                                     (Ling 3)
//! Situ(a, b)     a tanh(g / a) sigmoid(g) * b tanh(u / b); b = 0 leaves u alone                       (Kimi K3)
//! ReluSquared    max(u, 0)^2, which has no gate                                                         (Nemotron)
//! ```

use anyhow::Result;

use crate::cpu::dense;
use crate::cuda::launch::GluKind;
use crate::cuda::{Grid, Ptr, int, launch};
use crate::tape::{Builder, CpuIo, GpuIo, Op, Slot};

/// 2 sqrt(2 / pi).
const GELU: f32 = 1.595_769;

/// The gating function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Glu {
    /// SwiGLU.
    Silu,
    /// SwiGLU with both halves clamped.
    SiluClamp(f32),
    /// gpt-oss's clamped SwiGLU.
    Oai,
    /// A sigmoid gate.
    Sigmoid,
    /// GEGLU, with the tanh approximation of GELU.
    Gelu,
    /// The gate itself.
    Multiply,
    /// SwiGLU with the gate's SiLU at most this, and the other half within it.
    SiluCap(f32),
    /// A sigmoid gate times the gate, both halves squashed by tanh to within these; the second may
    /// be 0 for not at all.
    Situ(f32, f32),
    /// The square of the positive part, without a gate.
    ReluSquared,
}

/// 1 / (1 + e^-x).
#[inline]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// x * sigmoid(x).
#[inline]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `cap * tanh(x / cap)`, or `x` where the cap is 0.
fn soft_cap(x: f32, cap: f32) -> f32 {
    if cap == 0.0 { x } else { cap * (x / cap).tanh() }
}

impl Glu {
    /// Whether one value gates another; without, there is only the other.
    pub fn has_gate(self) -> bool {
        self != Glu::ReluSquared
    }

    /// `out = glu(g, u)`, element by element; without a gate `g` is not looked at.
    pub(super) fn apply(self, g: &[f32], u: &[f32], out: &mut [f32]) {
        let limit = match self {
            Glu::SiluClamp(limit) => limit,
            Glu::Oai => 7.0,
            _ => f32::INFINITY,
        };
        match self {
            Glu::ReluSquared => return out.iter_mut().zip(u).for_each(|(o, u)| *o = u.max(0.0) * u.max(0.0)),
            Glu::Multiply => return out.iter_mut().zip(g).zip(u).for_each(|((o, g), u)| *o = g * u),
            Glu::Gelu => out.iter_mut().zip(g).for_each(|(o, &g)| *o = GELU * (g + 0.044_715 * g * g * g)),
            _ => out.iter_mut().zip(g).for_each(|(o, &g)| *o = g.min(limit)),
        }
        dense::sigmoids(out, if self == Glu::Oai { 1.702 } else { 1.0 });
        for ((o, &g), &u) in out.iter_mut().zip(g).zip(u) {
            *o *= match self {
                Glu::Silu | Glu::Gelu => g * u,
                Glu::SiluClamp(_) => g.min(limit) * u.clamp(-limit, limit),
                Glu::Oai => g.min(limit) * (u.clamp(-limit, limit) + 1.0),
                Glu::SiluCap(limit) => {
                    *o = (*o * g).min(limit);
                    u.clamp(-limit, limit)
                }
                Glu::Situ(a, b) => soft_cap(g, a) * soft_cap(u, b),
                Glu::Sigmoid | Glu::Multiply | Glu::ReluSquared => u,
            };
        }
    }
}

impl Glu {
    /// `out = glu(g, u)` in device memory, a row of `n` values after the other. `u` may have `run` values to a gate.
    pub(super) fn start(
        self,
        io: &GpuIo<'_>,
        (g, g_stride): (Ptr, usize),
        (u, u_stride): (Ptr, usize),
        out: Ptr,
        (rows, n, run): (usize, usize, usize),
    ) -> Result<()> {
        let (kind, limit, limit_u) = match self {
            Glu::Silu => (GluKind::Silu, 0.0, 0.0),
            Glu::SiluClamp(limit) => (GluKind::SiluClamp, limit, limit),
            Glu::SiluCap(limit) => (GluKind::SiluCap, limit, limit),
            Glu::Oai => (GluKind::Oai, 7.0, 7.0),
            Glu::Sigmoid => (GluKind::Sigmoid, 0.0, 0.0),
            Glu::Gelu => (GluKind::Gelu, 0.0, 0.0),
            Glu::Multiply => (GluKind::Multiply, 0.0, 0.0),
            Glu::Situ(a, b) => (GluKind::Situ, a, b),
            Glu::ReluSquared => (GluKind::ReluSq, 0.0, 0.0),
        };
        let total = rows * n;
        launch::glu(
            io.gpu,
            Grid::each(total),
            g,
            u,
            out,
            kind,
            limit,
            limit_u,
            int(n),
            int(run),
            g_stride as u64,
            u_stride as u64,
            total as u64,
        )
    }
}

#[derive(Debug)]
struct GluOp(Glu);

impl Op for GluOp {
    fn name(&self) -> &'static str {
        "glu"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (g, u) = (io.ins[0], io.ins[io.ins.len() - 1]);
        let run = u.len() / g.len(); // values of u that share a gate
        let piece = run * (4096 / run).max(1);
        io.pool.pieces(&mut io.outs[0], piece, u.len() * 32, |i, out| {
            let at = i * piece;
            if run == 1 {
                return self.0.apply(&g[at..at + out.len()], &u[at..at + out.len()], out);
            }
            for (j, out) in out.chunks_mut(run).enumerate() {
                let gates = vec![g[at / run + j]; out.len()];
                self.0.apply(&gates, &u[at + j * run..][..out.len()], out);
            }
        });
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (g, u) = (io.ins[0], io.ins[io.ins.len() - 1]);
        let shape = (u.rows, u.width, u.width / g.width);
        self.0.start(io, (g.ptr, g.width), (u.ptr, u.width), io.outs[0].ptr, shape)
    }
}

impl Builder<'_> {
    /// `glu(g, u)`; the width of `u`, which must be a multiple of the width of `g`.
    pub fn glu(&self, kind: Glu, g: Slot, u: Slot) -> Slot {
        debug_assert!(self.width(u).is_multiple_of(self.width(g)));
        self.push(GluOp(kind), &[g, u], &[self.width(u)], &[])[0]
    }

    /// The activation of `u` in a layer without a gate.
    pub fn activate(&self, kind: Glu, u: Slot) -> Slot {
        debug_assert!(!kind.has_gate(), "{kind:?} has a gate");
        self.push(GluOp(kind), &[u], &[self.width(u)], &[])[0]
    }
}
