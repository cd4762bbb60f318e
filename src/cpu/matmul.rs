//! Weights times activations: one driver for every format, over the format's row kernels.
//!
//! All matrix work is a *grouped* product: matrices (experts, heads, or just one), and for each the list of activation
//! rows it multiplies and the output rows it fills. The work is cut by bytes of weights, not by matrix, so that two
//! threads share one expert as readily as two.
//!
//! Where weights are divided over NUMA nodes, the first rows of every matrix are in the memory of node 0, and so on.
//! The pieces of a product are then in the order of the nodes, so that each node's threads begin with their own:
//! ```text
//! one node      expert 3: all its pieces,  expert 9: all its pieces
//! two nodes     expert 3: first pieces, expert 9: first pieces  |  expert 3: last pieces, expert 9: last pieces
//! ```

#![allow(unsafe_code)] // the kernel call, and output rows written from several threads

use std::array::from_fn;
use std::cell::RefCell;
use std::ops::Range;
use std::slice::from_ref;

use super::Pool;
use super::numa::{LoopPart, NodeSplit};
use super::pool::SharedOut;
use crate::quant::activations::{Acts, PanelForm, PanelPart, RowPart};
use crate::quant::panels::{PanelScratch, ROWS, WeightRows};
use crate::quant::{ActRow, MOST_TOKENS, QuantType};
use crate::simd;

/// Bytes of weights in one piece of work: small enough to stay in a core's own cache while several tokens use it.
const PIECE: usize = 48 * 1024;
/// Where a piece is read once, it has up to so many times as much, if each thread still gets this many pieces: what is
/// prefetched at a piece's end is another thread's, and a piece's beginning was not prefetched.
const LONG: usize = 4;
const PIECES: usize = 8;

/// One matrix of a grouped product.
#[derive(Debug)]
pub struct Group<'a> {
    /// The blocks of the matrix, row after row.
    pub w: &'a [u8],
    /// `(activation row, output row)` for each product. An output row occurs once in all groups together.
    pub pairs: &'a [(u32, u32)],
}

/// `out[r] = row r of w . x`, rows `stride` bytes apart.
pub fn dot_rows(ty: &'static QuantType, w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    dot_rows_by_many(ty, w, stride, &[x], &mut [out]);
}

/// `out[t][r] = row r of w . x[t]`, rows `stride` bytes apart, for 1 to [`MOST_TOKENS`] rows of
/// activations of equal length: one pass over the weights. The bits are those of [`dot_rows`].
pub fn dot_rows_by_many(ty: &'static QuantType, w: &[u8], stride: usize, x: &[ActRow<'_>], out: &mut [&mut [f32]]) {
    let (n, rows) = (x[0].n, out[0].len());
    assert!(x.iter().all(|x| x.n == n) && out.iter().all(|out| out.len() == rows));
    assert!(rows == 0 || w.len() >= (rows - 1) * stride + ty.row_bytes(n));
    // SAFETY: `kernel()` picks a kernel whose instruction set the CPU has.
    unsafe { ty.kernel().dot(w, stride, x, out) }
}

/// Writes the blocks of a cached row.
pub fn encode(ty: &'static QuantType, values: &[f32], blocks: &mut [u8]) {
    let kv = ty.kv.as_ref().expect("a cache type");
    let (_, f) = kv.encode.iter().find(|(isa, _)| *isa <= simd::isa()).expect("a scalar form is last");
    // SAFETY: the instruction set was just checked.
    unsafe { f(values, blocks) }
}

/// The values of cached blocks.
pub fn decode(ty: &'static QuantType, blocks: &[u8], out: &mut [f32]) {
    let kv = ty.kv.as_ref().expect("a cache type");
    let (_, f) = kv.decode.iter().find(|(isa, _)| *isa <= simd::isa()).expect("a scalar form is last");
    // SAFETY: the instruction set was just checked.
    unsafe { f(blocks, out) }
}

/// For every group and pair: `out[pair.1] = w * x[pair.0]`, where `x` are rows of `n_in` and `out` rows of `n_out`.
///
/// `x` is quantized into `acts` first, in the form that the format wants: for row kernels, for panels, or for both.
pub fn grouped(
    pool: &Pool,
    ty: &'static QuantType,
    (n_out, n_in): (usize, usize),
    groups: &[Group<'_>],
    acts: &mut Acts,
    x: &[f32],
    out: &mut [f32],
) {
    let stride = ty.row_bytes(n_in);
    let rows_out = out.len() / n_out;
    let mut seen = vec![false; rows_out];
    for g in groups {
        assert!(g.w.len() >= n_out * stride);
        for &(a, o) in g.pairs {
            assert!((a as usize + 1) * n_in <= x.len());
            // This is what makes the unsafe writes below disjoint.
            assert!(!std::mem::replace(&mut seen[o as usize], true), "an output row is written twice");
        }
    }
    let rows_only = acts.rows_only || !ty.multiplies_many();
    // The layout for a group's tokens; None for row kernels.
    let form = |g: &Group<'_>| {
        let form = ty.act.form(simd::isa(), g.pairs.len());
        (!rows_only && g.pairs.len() >= form.worth()).then_some(form)
    };
    if groups.iter().any(|g| !g.pairs.is_empty() && form(g).is_none()) {
        pool.each_of(acts.row_parts(ty.act, n_in, x), size_of_val(x), RowPart::fill);
    }
    for layout in PanelForm::ALL.into_iter().filter(|layout| groups.iter().any(|g| form(g) == Some(*layout))) {
        pool.each_of(acts.panel_parts(ty.act, layout, n_in, x), size_of_val(x), PanelPart::fill);
    }
    let acts = &*acts;
    let most = if rows_only { usize::MAX } else { PanelScratch::most_tokens(ty, n_in, simd::isa()) };
    let cut = cut(groups, most);
    let groups = cut.as_deref().unwrap_or(groups);
    let once = groups.iter().all(|g| g.pairs.len() <= MOST_TOKENS);
    let share = n_out * stride * groups.len() / (PIECES * pool.threads());
    let piece = if once { share.clamp(PIECE, LONG * PIECE) } else { PIECE };
    // Whole panels, so that a piece can be used either way.
    let piece_rows = (piece / stride / ROWS * ROWS).max(ROWS);
    let pieces = n_out.div_ceil(piece_rows);
    let one_share = RowShare { rows: 0..n_out, pieces, first: 0 };
    let one_part = LoopPart { threads: 0..pool.threads(), items: 0..groups.len() * pieces };
    let by_node = pool.split().map(|split| by_node(split, n_out, piece_rows, groups.len()));
    let (shares, parts) = match &by_node {
        None => (from_ref(&one_share), from_ref(&one_part)),
        Some((shares, parts)) => (&shares[..], &parts[..]),
    };
    let shared = SharedOut(out.as_mut_ptr());
    let bytes = groups.iter().map(|g| n_out * stride * g.pairs.len().clamp(1, 4)).sum();
    let shared = &shared;
    pool.each_part(parts, bytes, move |i| {
        let share = shares.iter().rfind(|share| share.first <= i).expect("the first begins at 0");
        let (group, piece) = (&groups[(i - share.first) / share.pieces], (i - share.first) % share.pieces);
        let r0 = share.rows.start + piece * piece_rows;
        let n = piece_rows.min(share.rows.end - r0);
        let w = &group.w[r0 * stride..];
        // SAFETY: row `o` belongs to its pair alone (checked above), columns r0..r0+n to this piece alone.
        let part = |o: u32, r: usize, n: usize| unsafe { shared.part(o as usize * n_out + r0 + r, n) };
        if let Some(form) = form(group) {
            SCRATCH.with_borrow_mut(|work| {
                for r in (0..n).step_by(ROWS) {
                    let rows = ROWS.min(n - r);
                    let source = WeightRows { w: &w[r * stride..], stride, rows };
                    work.multiply(ty, source, acts.panels(form), group.pairs, simd::isa(), |o, sums| {
                        part(o, r, rows).copy_from_slice(sums)
                    });
                }
            });
            return;
        }
        // One pass over the piece for some pairs together: 5 as 3 and 2, 8 as 4 and 4.
        for pairs in group.pairs.chunks(equal(group.pairs.len(), MOST_TOKENS)) {
            let row = |t: usize| acts.row(pairs[t.min(pairs.len() - 1)].0 as usize, x);
            let to = |t: usize| pairs.get(t).map(|&(_, o)| part(o, 0, n)).unwrap_or_default();
            let (rows, mut out): ([_; MOST_TOKENS], [_; MOST_TOKENS]) = (from_fn(row), from_fn(to));
            dot_rows_by_many(ty, w, stride, &rows[..pairs.len()], &mut out[..pairs.len()]);
        }
    });
}

/// A node's share of every matrix of a product.
#[derive(Debug)]
struct RowShare {
    rows: Range<usize>,
    /// Pieces of these rows of one matrix.
    pieces: usize,
    /// The index of the first of them.
    first: usize,
}

/// The nodes' shares of `groups` matrices, and the loop that they make.
fn by_node(split: &NodeSplit, n_out: usize, piece_rows: usize, groups: usize) -> (Vec<RowShare>, Vec<LoopPart>) {
    let mut first = 0;
    let share = |node| {
        let rows = split.rows_of(node, n_out);
        let pieces = rows.len().div_ceil(piece_rows);
        let items = first..first + groups * pieces;
        first = items.end;
        (RowShare { rows, pieces, first: items.start }, LoopPart { threads: split.numbers_of(node), items })
    };
    (0..split.nodes()).map(share).unzip()
}

/// The length of the parts, at most `most`, that `len` items are cut into: as few as can be, and of
/// nearly equal length.
fn equal(len: usize, most: usize) -> usize {
    len.div_ceil(len.div_ceil(most).max(1)).max(1)
}

/// Cuts groups of more than `most` pairs into some of nearly equal size. None if there are no such
/// groups.
fn cut<'a>(groups: &[Group<'a>], most: usize) -> Option<Vec<Group<'a>>> {
    if groups.iter().all(|g| g.pairs.len() <= most) {
        return None;
    }
    let parts =
        groups.iter().flat_map(|g| g.pairs.chunks(equal(g.pairs.len(), most)).map(|pairs| Group { w: g.w, pairs }));
    Some(parts.collect())
}

thread_local! {
    /// Each thread's decoded rows.
    static SCRATCH: RefCell<PanelScratch> = RefCell::default();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cpu::{NumaNodes, WeightNode};
    use crate::quant;

    #[test]
    fn a_token_has_the_bits_of_its_own_product_whatever_tokens_share_the_weights() {
        let pool = Pool::new(1).unwrap();
        for ty in quant::TYPES {
            let unit = ty.block.max(ty.act.block());
            let (n, n_out) = ((700 / unit + 1) * unit, 37);
            let mut rng = quant::Rng(ty.id as u64);
            let stride = ty.row_bytes(n);
            let mut w = vec![0; n_out * stride];
            w.chunks_exact_mut(ty.bytes).for_each(|block| (ty.random)(&mut rng, block));
            let x: Vec<f32> = (0..9 * n).map(|_| rng.normal()).collect();
            let mut acts = Acts::default();
            acts.rows_only = true;
            acts.set(ty.act, n, &x);
            let mut alone = vec![f32::NAN; 9 * n_out];
            for (t, out) in alone.chunks_mut(n_out).enumerate() {
                dot_rows(ty, &w, stride, acts.row(t, &x), out);
            }
            for count in 1..=9 {
                let pairs: Vec<(u32, u32)> = (0..count as u32).map(|t| (t, count as u32 - 1 - t)).collect();
                let mut out = vec![f32::NAN; count * n_out];
                let group = Group { w: &w, pairs: &pairs };
                grouped(&pool, ty, (n_out, n), &[group], &mut acts, &x[..count * n], &mut out);
                for (t, out) in out.chunks(n_out).rev().enumerate() {
                    let same = out.iter().zip(&alone[t * n_out..]).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{}: token {t} of {count}", ty.name);
                }
            }
        }
    }

    /// A split of `threads` threads over nodes of so many cores.
    fn split(cores: &[usize], threads: usize) -> NodeSplit {
        let node = |(id, n): (usize, &usize)| WeightNode { id, cpus: vec![0; *n], cores: *n };
        NodeSplit::new(&NumaNodes { list: cores.iter().enumerate().map(node).collect() }, threads)
    }

    #[test]
    fn a_loop_over_nodes_has_every_piece_of_every_matrix_once_and_rows_on_their_own_node() {
        for (cores, threads) in [(&[4, 4][..], 8), (&[4, 4], 5), (&[2, 6], 3), (&[1, 1, 1, 1], 4), (&[4, 4, 4], 2)] {
            let split = split(cores, threads);
            for (n_out, piece_rows, groups) in [(768, 32, 8), (2048, 96, 3), (4, 32, 2), (100, 32, 1), (151_936, 64, 1)]
            {
                let (shares, parts) = by_node(&split, n_out, piece_rows, groups);
                let mut seen = vec![0; groups * n_out];
                for (node, (share, part)) in shares.iter().zip(&parts).enumerate() {
                    assert_eq!((part.items.start, part.items.len()), (share.first, groups * share.pieces));
                    assert!(part.items.is_empty() || !part.threads.is_empty(), "a part that no thread begins");
                    assert_eq!(share.rows, split.rows_of(node, n_out));
                    for i in part.items.clone().map(|i| i - share.first) {
                        let r0 = share.rows.start + i % share.pieces * piece_rows;
                        let to = share.rows.end.min(r0 + piece_rows);
                        seen[i / share.pieces * n_out..][r0..to].iter_mut().for_each(|n| *n += 1);
                    }
                }
                assert!(seen.iter().all(|n| *n == 1), "{cores:?}, {threads} threads, {n_out} rows");
            }
        }
    }

    #[test]
    fn products_have_the_same_bits_however_they_are_divided_over_nodes() {
        let node = |(id, n): (usize, &usize)| WeightNode { id: 0, cpus: vec![id % 2; *n], cores: *n };
        let nodes = |cores: &[usize]| Arc::new(NumaNodes { list: cores.iter().enumerate().map(node).collect() });
        for name in ["q4_k", "q8_0", "f16", "f32"] {
            let ty = quant::by_name(name).unwrap();
            let (n, n_out, tokens) = (1024, 200, 40);
            let mut rng = quant::Rng(5);
            let stride = ty.row_bytes(n);
            let mut w = vec![0; 3 * n_out * stride];
            w.chunks_exact_mut(ty.bytes).for_each(|block| (ty.random)(&mut rng, block));
            let x: Vec<f32> = (0..tokens * n).map(|_| rng.normal()).collect();
            // Two experts with a token each, by row kernels, and one with many, by panels.
            let pairs: Vec<(u32, u32)> = (0..tokens as u32).map(|t| (t, t)).collect();
            let lists = [&pairs[..1], &pairs[1..2], &pairs[2..]];
            let product = |pool: &Pool| {
                let matrices = w.chunks(n_out * stride).zip(lists);
                let groups: Vec<Group<'_>> = matrices.map(|(w, pairs)| Group { w, pairs }).collect();
                let mut out = vec![f32::NAN; tokens * n_out];
                grouped(pool, ty, (n_out, n), &groups, &mut Acts::default(), &x, &mut out);
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let want = product(&Pool::new(1).unwrap());
            for (cores, threads) in [(&[1, 1][..], 2), (&[2, 1], 3), (&[1, 1, 1, 1], 4), (&[4, 4], 3)] {
                let pool = Pool::over_nodes(threads, &nodes(cores)).unwrap();
                assert!(product(&pool) == want, "{name}: {threads} threads over {cores:?}");
            }
        }
    }

    #[test]
    fn groups_that_are_cut_keep_every_pair_and_have_equal_parts() {
        let pairs: Vec<(u32, u32)> = (0..1000).map(|i| (i, 1000 - i)).collect();
        let groups: Vec<Group<'_>> =
            [0..0, 0..1, 1..65, 65..130, 130..1000].map(|r| Group { w: &[], pairs: &pairs[r] }).into();
        assert!(cut(&groups, 1000).is_none());
        let parts = cut(&groups, 64).expect("three groups are larger");
        let joined: Vec<(u32, u32)> = parts.iter().flat_map(|g| g.pairs).copied().collect();
        assert_eq!(joined, pairs);
        let sizes: Vec<usize> = parts.iter().map(|g| g.pairs.len()).collect();
        assert_eq!(sizes[..4], [1, 64, 33, 32], "65 in two parts, not 64 and 1");
        assert!(sizes[4..].iter().all(|n| (48..=64).contains(n)), "{sizes:?}");
    }
}
