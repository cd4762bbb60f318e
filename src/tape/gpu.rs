//! What a GPU body may touch, and the product of matrices that most of them are made of.
//!
//! Bodies run twice: once without a device, to learn how much scratch memory they need for a number of rows, and then for
//! real. They start kernels and never wait; everything that differs from token to token lies in device memory (`Lists`,
//! `Table`), so that what a body starts for one row can be recorded once and started again as a graph.

use std::cell::Cell;

use anyhow::Result;

use super::{Batch, StateKind};
use crate::cuda::{Arena, Arg, CacheArg, Gpu, Ptr};
use crate::quant::QuantType;

/// Threads of a block in kernels that go over values one by one.
const BLOCK: usize = 256;
/// Rows from which a matrix that all of them share is multiplied by tensor cores. Below, every group of 32 weights is
/// unpacked once for up to four rows.
const MANY: usize = 16;
/// As `TILE_ROWS`, `TILE_PAIRS` of kernels/matrix.cuh.
const TILE: usize = 64;

/// A value in device memory: (rows, width) of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuValue {
    /// The first row.
    pub ptr: Ptr,
    /// Rows of the batch at hand.
    pub rows: usize,
    /// Columns.
    pub width: usize,
}

/// A weight in device memory.
#[derive(Clone, Copy, Debug)]
pub struct GpuWeight {
    /// Blocks of a matrix, f32 values of a vector, or int32.
    pub ptr: Ptr,
    /// (matrices, rows, columns).
    pub shape: [usize; 3],
    /// The format of a matrix.
    pub ty: Option<&'static QuantType>,
    /// Where each matrix of the stack lies in a cache, -1 for none (int32); null where the stack is whole.
    pub slots: Ptr,
}

impl GpuWeight {
    /// The format of a matrix.
    pub fn format(&self) -> &'static QuantType {
        self.ty.expect("a matrix has a format")
    }

    /// What the kernels of its format are called.
    pub fn kernels(&self) -> &'static str {
        let ty = self.format();
        crate::cuda::module_of(ty.name).expect("a format that is on a GPU has kernels")
    }

    /// Bytes of a row of a matrix.
    pub fn row_bytes(&self) -> u64 {
        self.format().row_bytes(self.shape[2]) as u64
    }
}

/// A state in device memory.
#[derive(Clone, Copy, Debug)]
pub struct GpuState {
    /// Rows by position, as attention sees them; the fixed block's sequences lie `seq_bytes` apart.
    pub cache: CacheArg,
    /// Values in a row or block.
    pub width: usize,
    /// Rows, or a fixed block.
    pub fixed: bool,
}

impl GpuState {
    /// Whether a state of this kind and format can be on a GPU.
    pub fn takes(kind: &StateKind, ty: &QuantType) -> bool {
        matches!(kind, StateKind::Fixed) || GpuState::code(ty).is_some()
    }

    /// The format as kernels number it.
    pub fn code(ty: &QuantType) -> Option<i32> {
        match (ty.block, ty.bytes) {
            (1, 4) => Some(0),
            (1, 2) if ty.kv.as_ref().is_some_and(|kv| kv.is_f16) => Some(1),
            (32, 34) => Some(2),
            _ => None,
        }
    }
}

/// The batch in device memory, int32 each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lists {
    /// Tokens.
    pub tokens: Ptr,
    /// Sequences.
    pub seqs: Ptr,
    /// Positions.
    pub positions: Ptr,
    /// Rows whose logits are wanted.
    pub wanted: Ptr,
}

/// Which matrix meets which rows.
#[derive(Clone, Copy, Debug)]
pub enum Pairs {
    /// The one matrix and every row.
    All,
    /// Matrix h and part h of every row.
    Heads(usize),
    /// The matrices that `ids` (T, k) name, and row t, or row t * k + j if every pair has an activation row of its own.
    Chosen {
        /// Numbers of matrices, as f32.
        ids: Ptr,
        /// Of a token.
        k: usize,
        /// Whether pairs have rows of their own.
        own: bool,
    },
}

/// Everything that a GPU body may touch.
#[derive(Debug)]
pub struct GpuIo<'a> {
    /// The device; None while scratch memory is counted.
    pub gpu: Option<&'a Gpu>,
    /// The batch.
    pub batch: &'a Batch,
    /// The same in device memory.
    pub lists: Lists,
    /// Tables that the op asked for, in its order.
    pub tables: &'a [Ptr],
    /// Rows of the inputs.
    pub rows: usize,
    /// The inputs.
    pub ins: &'a [GpuValue],
    /// The outputs.
    pub outs: &'a [GpuValue],
    /// The weights, in the step's order.
    pub weights: &'a [GpuWeight],
    /// The states, in the step's order.
    pub states: &'a [GpuState],
    /// Whether the output is added to what is there: a step that runs over one part of its matrices after another.
    pub add: bool,
    /// Scratch memory.
    pub scratch: Scratch,
}

/// Scratch memory, handed out from its start; a step begins with all of it. What products of a step can share is made
/// once and found here: activations in 8 bits, and pairs in the order of their experts.
#[derive(Debug)]
pub struct Scratch {
    at: Ptr,
    bytes: usize,
    used: Cell<usize>,
    /// Rows of floats, and their codes and scales.
    acts: Cell<Option<(GpuValue, [Ptr; 2])>>,
    /// Pairs in the order of their experts.
    tiles: Cell<Option<(PairsOf, Tiles)>>,
}

/// Ids, places of matrices, and the number of pairs.
type PairsOf = (Ptr, Ptr, usize);
/// The order of pairs, the tiles, and their number.
type Tiles = (Ptr, Ptr, usize);

impl Scratch {
    /// So many bytes of memory that begins at `at`.
    pub fn new(at: Ptr, bytes: usize) -> Scratch {
        Scratch { at, bytes, used: Cell::new(0), acts: Cell::new(None), tiles: Cell::new(None) }
    }

    /// Scratch memory that is only counted.
    pub fn counted() -> Scratch {
        Scratch::new(Ptr::default(), usize::MAX)
    }

    /// So many bytes of it.
    ///
    /// # Panics
    /// If a step takes more than it said it would: it would write over something else.
    pub fn take(&self, bytes: usize) -> Ptr {
        let at = self.used.get();
        assert!(at + bytes <= self.bytes, "a step takes {} bytes of scratch memory, it has {}", at + bytes, self.bytes);
        self.used.set((at + bytes).next_multiple_of(Arena::ALIGN));
        self.at.at(at)
    }

    /// Bytes taken so far.
    pub fn used(&self) -> usize {
        self.used.get()
    }
}

impl<'a> GpuIo<'a> {
    /// What products need that are no step's: rows and scratch memory.
    pub fn bare(gpu: Option<&'a Gpu>, batch: &'a Batch, rows: usize, scratch: Scratch) -> GpuIo<'a> {
        let lists = Lists::default();
        GpuIo {
            gpu,
            batch,
            lists,
            tables: &[],
            rows,
            ins: &[],
            outs: &[],
            weights: &[],
            states: &[],
            add: false,
            scratch,
        }
    }
}

impl GpuIo<'_> {
    /// Starts a kernel.
    pub fn launch(
        &self,
        kernel: (&'static str, &str),
        grid: [usize; 3],
        block: usize,
        shared: usize,
        args: &[Arg],
    ) -> Result<()> {
        match self.gpu {
            Some(gpu) => gpu.launch(kernel, grid, block, shared, args),
            None => Ok(()),
        }
    }

    /// Multiprocessors of the device; while scratch memory is counted, as many as any has.
    pub fn processors(&self) -> usize {
        self.gpu.map_or(192, |g| g.processors)
    }

    /// Starts a kernel that goes over `total` values, whose last argument is their number.
    pub fn each(&self, kernel: (&'static str, &str), total: usize, args: &[Arg]) -> Result<()> {
        let args: Vec<Arg> = args.iter().copied().chain([Arg::Long(total as u64)]).collect();
        self.launch(kernel, [total.div_ceil(BLOCK), 1, 1], BLOCK, 0, &args)
    }

    /// Stores rows of `x` in a cache, at the places that `at` (int32) gives for them.
    pub fn store(&self, to: &GpuState, x: GpuValue, at: Ptr) -> Result<()> {
        let c = to.cache;
        let args = [
            x.ptr.into(),
            Ptr(c.rows).into(),
            self.lists.seqs.into(),
            at.into(),
            x.width.into(),
            Arg::Int(c.ty),
            Arg::Int(c.capacity),
            Arg::Long(c.row_bytes),
            Arg::Long(c.seq_bytes),
        ];
        self.launch(("attend", "store_rows"), [x.rows, 1, 1], 128, 0, &args)
    }

    /// Products of a stack of matrices with rows of `x`: output rows of the matrices' rows, pair after pair.
    pub fn product(&self, w: &GpuWeight, x: GpuValue, pairs: Pairs, out: Ptr) -> Result<()> {
        let [n_matrices, n_out, n_in] = w.shape;
        let (ty, name) = (w.format(), w.kernels());
        let (count, share, heads, ids) = match pairs {
            Pairs::All => (x.rows, 1, 1, Ptr::default()),
            Pairs::Heads(h) => (x.rows * h, 1, h, Ptr::default()),
            Pairs::Chosen { ids, k, own: false } => (x.rows * k, k, 1, ids),
            Pairs::Chosen { ids, own: true, .. } => (x.rows, 1, 1, ids),
        };
        let floats = ty.act.block() == 1;
        let acts = match floats {
            true => vec![Arg::Ptr(x.ptr)],
            false => self.quantized(x)?.map(Arg::Ptr).to_vec(),
        };
        let each = count / n_matrices.max(1);
        let many = match pairs {
            Pairs::Chosen { .. } => each >= 4,
            // A router or a mix: a tile of its rows is all there is, and few blocks would do all the work.
            Pairs::All if floats && n_out <= TILE => false,
            _ => x.rows >= MANY,
        };
        let shape = |rest: &[Arg]| -> Vec<Arg> {
            let mut args = vec![Arg::Ptr(w.ptr)];
            args.extend(&acts);
            args.extend(rest);
            args.push(Arg::Long(w.row_bytes()));
            args
        };
        if !many {
            // Rows that share a matrix go by fours.
            let four = matches!(pairs, Pairs::All) && count > 1;
            let kernel = format!("matvec{}_{name}", if four { 4 } else { 1 });
            let grid =
                [if floats { n_out } else { n_out.div_ceil(4) }, if four { count.div_ceil(4) } else { count }, 1];
            let args = shape(&[
                ids.into(),
                w.slots.into(),
                out.into(),
                n_in.into(),
                n_out.into(),
                count.into(),
                share.into(),
                heads.into(),
            ]);
            // Of floats a block has a row, and a thread at least eight of its weights.
            let block = if floats { (n_in / 8).next_multiple_of(32).clamp(32, 128) } else { 128 };
            return self.launch((name, &kernel), grid, block, 0, &args);
        }
        let (order, tiles, n_tiles) = self.tiles(w, pairs, count)?;
        let args = shape(&[tiles.into(), order.into(), out.into(), n_in.into(), n_out.into(), share.into()]);
        self.launch((name, &format!("matmul_{name}")), [n_out.div_ceil(TILE), n_tiles, 1], 128, 0, &args)
    }

    /// Rows as codes of 8 bits with a scale for 32.
    fn quantized(&self, x: GpuValue) -> Result<[Ptr; 2]> {
        if let Some((_, made)) = self.scratch.acts.get().filter(|(of, _)| *of == x) {
            return Ok(made);
        }
        let groups = x.rows * x.width / 32;
        let made = [self.scratch.take(groups * 32), self.scratch.take(groups * 16)];
        let args = [x.ptr.into(), made[0].into(), made[1].into(), Arg::Long(groups as u64)];
        self.launch(("basic", "quantize"), [groups.div_ceil(8), 1, 1], 256, 0, &args)?;
        self.scratch.acts.set(Some((x, made)));
        Ok(made)
    }

    /// Pairs in the order of their matrices, cut into tiles.
    fn tiles(&self, w: &GpuWeight, pairs: Pairs, count: usize) -> Result<Tiles> {
        let n = w.shape[0];
        match pairs {
            Pairs::Chosen { ids, .. } => {
                let of = (ids, w.slots, count);
                if let Some((_, made)) = self.scratch.tiles.get().filter(|(known, _)| *known == of) {
                    return Ok(made);
                }
                let n_tiles = (count / TILE + n).min(count);
                let (order, tiles) = (self.scratch.take(count * 4), self.scratch.take(n_tiles * 16));
                let first = self.scratch.take(n * 4);
                let args =
                    [ids.into(), w.slots.into(), first.into(), tiles.into(), count.into(), n.into(), n_tiles.into()];
                self.launch(("route", "count_pairs"), [1, 1, 1], 1024, 0, &args)?;
                let args = [ids.into(), first.into(), order.into(), count.into()];
                self.launch(("route", "sort_pairs"), [n, 1, 1], 256, 0, &args)?;
                self.scratch.tiles.set(Some((of, (order, tiles, n_tiles))));
                Ok((order, tiles, n_tiles))
            }
            Pairs::All | Pairs::Heads(_) => {
                let heads = if let Pairs::Heads(h) = pairs { h } else { 1 };
                let n_tiles = heads * (count / heads).div_ceil(TILE);
                let (order, tiles) = (self.scratch.take(count * 4), self.scratch.take(n_tiles * 16));
                let args = [order.into(), tiles.into(), count.into(), heads.into(), n_tiles.into()];
                self.launch(("route", "even_pairs"), [n_tiles, 1, 1], TILE, 0, &args)?;
                Ok((order, tiles, n_tiles))
            }
        }
    }
}
