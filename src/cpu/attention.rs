//! Attention of some query rows to a block of keys after another: by vectors (`dense.rs`) or by matrix tiles
//! (`attention_tiles.rs`).

#[cfg(target_arch = "x86_64")]
use super::attention_tiles::{self, TileAttention, TileBuffers};
use super::dense::{self, BLOCK, Queries, Rows, Soft};
use crate::simd::exp;

/// Memory that a thread keeps for products.
#[derive(Debug, Default)]
pub struct ProductBuffers {
    q: Queries,
    scores: Vec<[f32; BLOCK]>,
    #[cfg(target_arch = "x86_64")]
    tiles: TileBuffers,
}

/// Some query rows, and how they are multiplied.
#[derive(Debug)]
pub enum Products<'a> {
    /// By vectors: queries and scores.
    Vectors(&'a Queries, &'a mut [[f32; BLOCK]]),
    /// By matrix tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles(TileAttention<'a>),
}

/// Whether the instruction set in use has matrix tiles.
pub fn has_tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    return attention_tiles::usable();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl<'a> Products<'a> {
    /// Takes rows of `dim` values, times `scale`; by tiles where `tiled`, which [`has_tiles`] allows.
    ///
    /// # Panics
    /// If tiles are asked for where there are none.
    pub fn new<'q>(
        b: &'a mut ProductBuffers,
        tiled: bool,
        (dim, scale): (usize, f32),
        rows: impl ExactSizeIterator<Item = &'q [f32]>,
    ) -> Products<'a> {
        assert!(!tiled || has_tiles(), "an instruction set with tiles");
        #[cfg(target_arch = "x86_64")]
        if tiled {
            return Products::Tiles(TileAttention::new(&mut b.tiles, dim, scale, rows));
        }
        b.scores.resize(rows.len(), [0.0; BLOCK]);
        b.q.set(dim, scale, rows);
        Products::Vectors(&b.q, &mut b.scores)
    }

    /// The rows that a [`Soft`] must have for these products: as many as there are, or some more.
    pub fn rows(&self) -> usize {
        match self {
            Products::Vectors(_, scores) => scores.len(),
            #[cfg(target_arch = "x86_64")]
            Products::Tiles(tiles) => tiles.rows(),
        }
    }

    /// The scores of a block of keys.
    pub fn scores(&mut self, k: Rows<'_>) {
        match self {
            Products::Vectors(q, scores) => dense::scores(q, k, scores),
            #[cfg(target_arch = "x86_64")]
            Products::Tiles(tiles) => tiles.scores(k),
        }
    }

    /// Adds the block's `n` keys to the softmax of each row, of which row `r` sees those from `limits[r][0]` up to
    /// `limits[r][1]`; `cap` squashes scores. Values are still to be added ([`Products::mix`]).
    pub fn softmax(&mut self, n: usize, limits: &[[usize; 2]], cap: Option<f32>, soft: &mut Soft<'_>) {
        match self {
            Products::Vectors(_, scores) => {
                for (r, (scores, &[low, high])) in scores.iter_mut().zip(limits).enumerate() {
                    scores[..low].fill(0.0);
                    scores[high..].fill(0.0);
                    let seen = &mut scores[low..high];
                    let most = dense::largest(seen, cap).max(soft.most[r]);
                    let sum = dense::exponentials(seen, most);
                    let less = exp(soft.most[r] - most);
                    if less != 1.0 {
                        soft.out[r * soft.width..][..soft.width].iter_mut().for_each(|o| *o *= less);
                    }
                    soft.sum[r] = soft.sum[r] * less + sum;
                    soft.most[r] = most;
                }
            }
            #[cfg(target_arch = "x86_64")]
            Products::Tiles(tiles) => tiles.softmax(n, limits, cap, soft),
        }
    }

    /// Adds the block's values.
    pub fn mix(&mut self, v: Rows<'_>, soft: &mut Soft<'_>) {
        match self {
            Products::Vectors(_, scores) => dense::mix(scores, v, soft.out),
            #[cfg(target_arch = "x86_64")]
            Products::Tiles(tiles) => tiles.mix(v, soft.out),
        }
    }
}
