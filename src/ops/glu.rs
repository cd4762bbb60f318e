//! glu: one half of a feed-forward layer gates the other, element by element; also the plain sigmoid gates, and the
//! activation of layers without a gate.
//!
//! ```text
//! Silu           silu(g) * u
//! SiluClamp(L)   silu(min(g, L)) * clamp(u, -L, L)                                     (DeepSeek-V4)
//! Oai            h = min(g, 7); h * sigmoid(1.702 h) * (clamp(u, -7, 7) + 1)           (gpt-oss)
//! Sigmoid        sigmoid(g) * u; a narrower g gates equal runs of u
//! Gelu           g * sigmoid(2 sqrt(2 / pi) (g + 0.044715 g^3)) * u, GELU by its tanh approximation         (Gemma)
//! SiluCap(L)     min(silu(g), L) * clamp(u, -L, L)                                              (Step 3.5, Ling 3)
//! Relu           max(g, 0) * u                                                                      (SmallThinker)
//! Softplus       log(1 + e^g) * u; a narrower g gates equal runs of u                                     (Laguna)
//! Multiply       g * u                                                              (short convolutions of LFM2)
//! Situ(a, b)     a tanh(g / a) sigmoid(g) * b tanh(u / b); b = 0 leaves u alone                         (Kimi K3)
//! GeluErf        u * (1 + erf(u / sqrt(2))) / 2, which has no gate                   (ZAYA1's router)
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
    /// SwiGLU with the gate's SiLU at most this, and the other half within it.
    SiluCap(f32),
    /// The positive part as a gate.
    Relu,
    /// A softplus gate.
    Softplus,
    /// The gate itself.
    Multiply,
    /// A sigmoid gate times the gate, both halves squashed by tanh to within these; the second may be 0 for not at all.
    Situ(f32, f32),
    /// GELU by the error function, without a gate.
    GeluErf,
    /// The square of the positive part, without a gate.
    ReluSquared,
}

/// 1 / (1 + e^-x).
#[inline]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// x * (1 + erf(x / sqrt(2))) / 2. The complement of erf is a Chebyshev fit with a relative error
/// below 1.2e-7 everywhere (Numerical Recipes, 2nd edition, section 6.2, `erfcc`), so that nothing
/// cancels where it is small.
fn gelu_erf(x: f32) -> f32 {
    const FIT: [f64; 10] = [
        -1.26551223,
        1.00002368,
        0.37409196,
        0.09678418,
        -0.18628806,
        0.27886807,
        -1.13520398,
        1.48851587,
        -0.82215223,
        0.17087277,
    ];
    let z = (x as f64 / std::f64::consts::SQRT_2).abs();
    let t = 1.0 / (1.0 + 0.5 * z);
    let erfc = t * (FIT.iter().rev().fold(0.0, |sum, c| sum * t + c) - z * z).exp(); // of |x / sqrt(2)|
    let phi = if x < 0.0 { 0.5 * erfc } else { 1.0 - 0.5 * erfc };
    (x as f64 * phi) as f32
}

/// ln(1 + e^x) without overflow.
pub(super) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
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
        !matches!(self, Glu::GeluErf | Glu::ReluSquared)
    }

    /// `out = glu(g, u)`, element by element; without a gate `g` is not looked at.
    pub(super) fn apply(self, g: &[f32], u: &[f32], out: &mut [f32]) {
        let all = || g.iter().zip(u);
        match self {
            Glu::ReluSquared => out.iter_mut().zip(u).for_each(|(o, u)| *o = u.max(0.0) * u.max(0.0)),
            Glu::Relu => out.iter_mut().zip(all()).for_each(|(o, (g, u))| *o = g.max(0.0) * u),
            Glu::GeluErf => out.iter_mut().zip(u).for_each(|(o, &u)| *o = gelu_erf(u)),
            Glu::Multiply => out.iter_mut().zip(all()).for_each(|(o, (g, u))| *o = g * u),
            Glu::Softplus => out.iter_mut().zip(all()).for_each(|(o, (&g, u))| *o = softplus(g) * u),
            _ => self.apply_sigmoid(g, u, out),
        }
    }

    /// The kinds that go through a sigmoid, which is worked out for all values at once.
    fn apply_sigmoid(self, g: &[f32], u: &[f32], out: &mut [f32]) {
        let limit = match self {
            Glu::SiluClamp(limit) | Glu::SiluCap(limit) => limit,
            Glu::Oai => 7.0,
            _ => f32::INFINITY,
        };
        match self {
            Glu::Gelu => out.iter_mut().zip(g).for_each(|(o, &g)| *o = GELU * (g + 0.044_715 * g * g * g)),
            Glu::SiluCap(_) => out.copy_from_slice(g),
            _ => out.iter_mut().zip(g).for_each(|(o, &g)| *o = g.min(limit)),
        }
        dense::sigmoids(out, if self == Glu::Oai { 1.702 } else { 1.0 });
        for ((o, &g), &u) in out.iter_mut().zip(g).zip(u) {
            match self {
                Glu::Silu | Glu::Gelu => *o *= g * u,
                Glu::SiluClamp(_) => *o *= g.min(limit) * u.clamp(-limit, limit),
                Glu::SiluCap(_) => *o = (*o * g).min(limit) * u.clamp(-limit, limit),
                Glu::Oai => *o *= g.min(limit) * (u.clamp(-limit, limit) + 1.0),
                Glu::Situ(a, b) => *o *= soft_cap(g, a) * soft_cap(u, b),
                _ => *o *= u,
            }
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
            Glu::GeluErf => (GluKind::GeluErf, 0.0, 0.0),
            Glu::Relu => (GluKind::Relu, 0.0, 0.0),
            Glu::Softplus => (GluKind::Softplus, 0.0, 0.0),
            Glu::Multiply => (GluKind::Multiply, 0.0, 0.0),
            Glu::Situ(a, b) => (GluKind::Situ, a, b),
            Glu::ReluSquared => (GluKind::ReluSq, 0.0, 0.0),
        };
        let total = rows * n;
        launch::glu(
            io.gpu,
            Grid::each(total),
            g,
            if self == Glu::GeluErf { Ptr::default() } else { u }, // nothing is gated
            out,
            Ptr::default(),
            Ptr::default(),
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
        io.pool.pieces(io.outs[0], piece, u.len() * 32, |i, out| {
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
