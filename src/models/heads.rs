//! What draft heads (blocks for multi-token prediction) of all families have in common: a layer of the family between a
//! frame of its own.
//!
//! ```text
//! e = norm(embedding of the token at p, enorm)       g = norm(row that was handed on for p - 1, hnorm)
//! x = layer(eh_proj [e ; g]) at p, with a cache of its own
//! logits = head(norm(x, head norm))                  of the token at p + 1
//! handed on: the normed row in most families, x in some
//! ```
//! The model hands on the same kind of row for each of its tokens, the input of its own head, or its last residual. A head
//! that drafts hands on its row in its turn, for the next step or the next head (`ops/hand.rs`).

use anyhow::Result;

use crate::ops::Piece;
use crate::tape::{Builder, Slot};

/// A norm of the family, by the name of its weight.
pub(super) type Norm<'a> = &'a dyn Fn(&Builder, Slot, &str) -> Result<Slot>;

/// How the heads of a family differ from others.
pub(super) struct Frame<'a> {
    /// The norm of embedding and handed row.
    pub norm: Norm<'a>,
    /// The norm before the logits.
    pub head_norm: Norm<'a>,
    /// Whether the normed row is handed on, else the one before that norm.
    pub normed: bool,
    /// Residual streams, which a row has next to each other.
    pub streams: usize,
    /// What becomes of the streams before the norm of the head.
    pub join: &'a dyn Fn(&Builder, Slot) -> Result<Slot>,
    /// What becomes of the logits.
    pub logits: &'a dyn Fn(&Builder, Slot) -> Result<Slot>,
}

/// RMS norm with the model's epsilon.
fn rms(b: &Builder, x: Slot, name: &str) -> Result<Slot> {
    b.norm(x, name, b.eps()?)
}

fn same(_: &Builder, x: Slot) -> Result<Slot> {
    Ok(x)
}

/// Whether a head's block sees a window only: what `sliding_window_pattern` lists for it, else as in all files that are known.
pub(super) fn is_windowed(b: &Builder) -> Result<bool> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    if b.is_list(PATTERN) { b.flag_or(PATTERN, true) } else { Ok(true) }
}

impl Frame<'_> {
    /// RMS norms, one stream; the row after the norm of the head is handed on.
    pub(super) fn normed() -> Frame<'static> {
        Frame { norm: &rms, head_norm: &rms, normed: true, streams: 1, join: &same, logits: &same }
    }

    /// As [`Frame::normed`], with the row before that norm.
    pub(super) fn residual() -> Frame<'static> {
        Frame { normed: false, ..Frame::normed() }
    }

    /// Ends the model, which gives `logits` and hands on `hidden`, and records its draft heads, where they are wanted and
    /// the file has any. `layer` is a block's own, from its residual to the next. Returns `logits`.
    pub(super) fn record(
        &self,
        b: &Builder,
        (logits, hidden): (Slot, Slot),
        mut layer: impl FnMut(&Builder, Slot) -> Result<Slot>,
    ) -> Result<Slot> {
        let width = b.width(hidden);
        for block in b.draft_heads(logits, hidden)? {
            let b = &b.head_scope(block);
            let x = layer(b, self.enter(b, width)?)?; // (T, streams * n_embd)
            let joined = (self.join)(b, x)?;
            let names = ["nextn.shared_head_norm", "layer_output_norm"];
            let own = names.into_iter().find(|name| b.has(&format!("{name}.weight")));
            let h = match own {
                Some(name) => (self.head_norm)(b, joined, name)?,
                None => (self.head_norm)(&b.root(), joined, "output_norm")?,
            }; // (output rows, n_embd)
            b.hand_on(if self.normed { h } else { x })?;
            let logits = b.head_again(h, "nextn.shared_head_head")?;
            b.end_part((self.logits)(b, logits)?);
        }
        Ok(logits)
    }

    /// The residual that the block begins with, of the tokens and the rows that were handed on: (T, streams * n_embd).
    fn enter(&self, b: &Builder, width: usize) -> Result<Slot> {
        let n = self.streams;
        let e = (self.norm)(b, b.embed_again("nextn.embed_tokens")?, "nextn.enorm")?; // (T, n_embd)
        let n_embd = b.width(e);
        let g = b.handed(width, 1)?; // (T, streams * n_embd)
        let g = match n {
            1 => (self.norm)(b, g, "nextn.hnorm")?,
            _ => b.head_norm(g, "nextn.hnorm", n_embd, b.eps()?)?, // one vector for all streams
        };
        let part = |x, stride| Piece { x, stride, offset: 0, len: n_embd };
        let both = b.pack(n, &[part(e, 0), part(g, n_embd)])?; // (T, streams * (e | g))
        match n {
            1 => b.linear(both, "nextn.eh_proj", n_embd),
            _ => b.linear_of_parts(both, "nextn.eh_proj", n, n_embd),
        }
    }
}
