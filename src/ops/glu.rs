//! glu: one half of a feed-forward layer gates the other, element by element; also the plain sigmoid gates.
//!
//! ```text
//! Silu           silu(g) * u
//! SiluClamp(L)   silu(min(g, L)) * clamp(u, -L, L)                                     (DeepSeek-V4)
//! Oai            h = min(g, 7); h * sigmoid(1.702 h) * (clamp(u, -7, 7) + 1)           (gpt-oss)
//! Sigmoid        sigmoid(g) * u; a narrower g gates equal runs of u
//! ```

use crate::cpu::dense;
use crate::tape::{Builder, CpuIo, Op, Slot};

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

impl Glu {
    /// `out = glu(g, u)`, element by element.
    pub(super) fn apply(self, g: &[f32], u: &[f32], out: &mut [f32]) {
        let limit = match self {
            Glu::Silu | Glu::Sigmoid => f32::INFINITY,
            Glu::SiluClamp(limit) => limit,
            Glu::Oai => 7.0,
        };
        let steep = if self == Glu::Oai { 1.702 } else { 1.0 };
        out.iter_mut().zip(g).for_each(|(o, &g)| *o = g.min(limit));
        dense::sigmoids(out, steep);
        for ((o, &g), &u) in out.iter_mut().zip(g).zip(u) {
            *o *= match self {
                Glu::Silu => g * u,
                Glu::SiluClamp(_) => g.min(limit) * u.clamp(-limit, limit),
                Glu::Oai => g.min(limit) * (u.clamp(-limit, limit) + 1.0),
                Glu::Sigmoid => u,
            };
        }
    }
}

#[derive(Debug)]
struct GluOp(Glu);

impl Op for GluOp {
    fn name(&self) -> &'static str {
        "glu"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let (g, u) = (io.ins[0], io.ins[1]);
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
}

impl Builder<'_> {
    /// `glu(g, u)`; the width of `u`, which must be a multiple of the width of `g`.
    pub fn glu(&self, label: String, kind: Glu, g: Slot, u: Slot) -> Slot {
        debug_assert!(self.width(u).is_multiple_of(self.width(g)));
        self.push(label, GluOp(kind), &[g, u], &[self.width(u)], &[], &[])[0]
    }
}
