//! What a GPU body may touch, and the product of matrices that most of them are made of.
//!
//! Bodies run twice: once without a device, to learn how much scratch memory they need for a number of rows, and then for
//! real. They start kernels and never wait; everything that differs from token to token is in device memory (`Lists`,
//! `Table`), so that what a body starts for one row can be recorded once and started again as a graph.

use std::cell::Cell;

use anyhow::Result;

use super::{Batch, StateKind};
use crate::cuda::launch::{CacheType, TILE_PAIRS, TILE_ROWS};
use crate::cuda::{Arena, CacheArg, Gpu, Grid, Ptr, int, launch};
use crate::quant::{Floats, QuantType};

/// Rows from which a matrix that all of them share is multiplied by tensor cores. Below, every group of 32 weights is
/// unpacked once for up to four rows.
const MANY: usize = 16;

/// A value in device memory: (rows, width) of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuValue {
    /// The first row.
    pub ptr: Ptr,
    /// Rows of the current batch.
    pub rows: usize,
    /// Columns.
    pub width: usize,
}

impl GpuValue {
    /// The value without its first `n` rows.
    pub fn after(self, n: usize) -> GpuValue {
        GpuValue { ptr: self.ptr.at(n * self.width * 4), rows: self.rows - n, ..self }
    }
}

/// Where the codes of a value of `n` numbers begin that are kept at `at`, and where their scales do.
fn codes_at(at: Ptr, n: usize) -> [Ptr; 2] {
    [at, at.at(n)]
}

/// Bytes of the codes and scales of `n` numbers.
pub fn code_bytes(n: usize) -> usize {
    n + n / 2
}

/// Makes the codes of a value: 8 bits each, and a scale for 32 of them.
///
/// Matrices of codes are multiplied by codes, not by floats. The rule: **who writes a value that some
/// step on the GPU reads as codes ([`Op::code_inputs`](super::Op::code_inputs)) makes its codes too**,
/// once, right after it. They are in memory that belongs to the value's buffer, and good for as long as
/// the value is. So nothing need be remembered about them from step to step, no graph depends on what
/// another one did, and a buffer that is used again has the codes of its new value, or of none that is
/// read as such. A writer is a step, a copy up, or an observer that changes a value. Values inside a
/// step have their codes in its scratch memory.
///
/// # Errors
/// If the driver reports an error.
pub fn quantize(gpu: Option<&Gpu>, x: GpuValue, at: Ptr) -> Result<()> {
    let groups = x.rows * x.width / 32;
    let [codes, scales] = codes_at(at, x.rows * x.width);
    launch::quantize(gpu, Grid::each(32 * groups), x.ptr, codes, scales, groups as u64)
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
    /// Where each matrix of the stack is in a cache, -1 for none (int32); null where the stack is whole.
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
    /// Rows by position, as attention sees them; the fixed blocks of sequences are `seq_bytes` apart.
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

    /// The format as kernels know it, if they do.
    pub fn code(ty: &QuantType) -> Option<CacheType> {
        CacheType::ALL.into_iter().find(|code| *code as u32 == ty.id)
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
    /// The output rows: indices of the rows whose logits are computed.
    pub output_rows: Ptr,
}

/// Which matrix meets which rows.
#[derive(Clone, Copy, Debug)]
pub enum MatrixRows {
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
    /// The batch in device memory.
    pub lists: Lists,
    /// Tables that the op asked for, in its order.
    pub tables: &'a [Ptr],
    /// Rows of the inputs.
    pub rows: usize,
    /// The inputs.
    pub ins: &'a [GpuValue],
    /// The codes of those inputs that have some; null of the others.
    pub codes: &'a [Ptr],
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
/// once and found here: values inside the step in 8 bits, and pairs in the order of their experts.
#[derive(Debug)]
pub struct Scratch {
    at: Ptr,
    bytes: usize,
    used: Cell<usize>,
    /// Rows of floats, and their codes and scales.
    acts: Cell<Option<(GpuValue, [Ptr; 2])>>,
    /// Rows of floats, for the kernels of a format, and their halves and factors.
    halves: Cell<Option<(RowsFor, [Ptr; 2])>>,
    /// Pairs in the order of their experts.
    tiles: Cell<Option<(PairsOf, Tiles)>>,
}

/// A format's kernels, the columns of a matrix, and the rows.
type RowsFor = (&'static str, usize, GpuValue);
/// Ids, places of matrices, and the number of pairs.
type PairsOf = (Ptr, Ptr, usize);
/// The order of pairs, the tiles, and their number.
type Tiles = (Ptr, Ptr, usize);

impl Scratch {
    /// So many bytes of memory that begins at `at`.
    pub fn new(at: Ptr, bytes: usize) -> Scratch {
        Scratch {
            at,
            bytes,
            used: Cell::new(0),
            acts: Cell::new(None),
            halves: Cell::new(None),
            tiles: Cell::new(None),
        }
    }

    /// Scratch memory that is only counted; it is not null.
    pub fn counted() -> Scratch {
        Scratch::new(Ptr(1 << 60), usize::MAX)
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

/// Threads that share a row of floats, or two rows of codes (one where four rows of activations meet
/// it), in a mat-vec of `rows` rows in all and `n_in` columns.
///
/// A multiprocessor reads as fast as it can while the bytes on their way to it are its share of the
/// bandwidth times the latency of about 600 ns (Little's law): 5 to 8 KB of a GeForce card, 15 KB
/// of an H100. A lane of a mat-vec of codes has 32 weights of two rows on their way, a warp 0.5 KB
/// (IQ2_XXS), 1.1 KB (Q4_K) or 2.2 KB (Q8_0): so 16 warps for each multiprocessor are enough. Where
/// two rows to a warp make fewer, up to four warps share two rows. A matrix of many rows whose last
/// turn would leave half of the lanes without work has two rows to 16 lanes. Rows of floats that
/// are fewer than four for each multiprocessor get up to 512 threads, each with two loads on their
/// way: of F32 16 KB. Rejected: 1024 threads (registers of the kernels for four rows spill).
///
/// The number depends on the matrix and the device alone, so that a row's bits do not depend on how
/// many rows there are.
fn threads_of_a_row(floats: bool, rows: usize, n_in: usize, processors: usize) -> usize {
    if floats {
        // A thread has at least eight weights.
        let most = if rows < 4 * processors { 512 } else { 128 };
        return (n_in / 8).next_multiple_of(32).clamp(32, most);
    }
    let (groups, warps, enough) = (n_in / 32, rows.div_ceil(2), 16 * processors);
    if groups.next_multiple_of(16) < groups.next_multiple_of(32) && warps >= 2 * enough {
        return 16;
    }
    let mut lanes = 32;
    while lanes < 128 && groups >= 2 * lanes && warps * lanes / 32 < enough {
        lanes *= 2;
    }
    lanes
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
            codes: &[],
            outs: &[],
            weights: &[],
            states: &[],
            add: false,
            scratch,
        }
    }
}

impl GpuIo<'_> {
    /// Shared memory that a block may take on every device since sm_75, in bytes.
    pub const LEAST_SHARED: usize = 64 << 10;

    /// Shared memory that a block may take, in bytes; all devices since sm_80 give 99 KB.
    pub fn shared_bytes(&self) -> usize {
        match self.gpu {
            Some(gpu) if gpu.capability < (8, 0) => GpuIo::LEAST_SHARED,
            _ => 99 << 10,
        }
    }

    /// Multiprocessors of the device; while scratch memory is counted, as many as any has.
    pub fn processors(&self) -> usize {
        self.gpu.map_or(192, |g| g.processors)
    }

    /// Stores rows of `x` in a cache, at the places that `at` (int32) gives for them.
    ///
    /// # Errors
    /// If the driver reports an error.
    pub fn store(&self, to: &GpuState, x: GpuValue, at: Ptr) -> Result<()> {
        let c = to.cache;
        launch::store_rows(
            self.gpu,
            Grid::new([x.rows, 1, 1], 128),
            x.ptr,
            Ptr(c.rows),
            self.lists.seqs,
            at,
            int(x.width),
            c.ty,
            c.capacity,
            c.row_bytes,
            c.seq_bytes,
        )
    }

    /// Products of a stack of matrices with rows of `x`: output rows of the matrices' rows, pair after pair.
    ///
    /// # Errors
    /// If the driver reports an error, or has no kernel for the format.
    pub fn product(&self, w: &GpuWeight, x: GpuValue, pairs: MatrixRows, out: Ptr) -> Result<()> {
        let [n_matrices, n_out, n_in] = w.shape;
        let (ty, name) = (w.format(), w.kernels());
        let (count, share, heads, ids) = match pairs {
            MatrixRows::All => (x.rows, 1, 1, Ptr::default()),
            MatrixRows::Heads(h) => (x.rows * h, 1, h, Ptr::default()),
            MatrixRows::Chosen { ids, k, own: false } => (x.rows * k, k, 1, ids),
            MatrixRows::Chosen { ids, own: true, .. } => (x.rows, 1, 1, ids),
        };
        let floats = ty.act.block() == 1;
        let each = count / n_matrices.max(1);
        let many = match pairs {
            MatrixRows::Chosen { .. } => each >= 4,
            // A router or a mix: a tile of its rows is all there is, and few blocks would do all the work.
            MatrixRows::All if floats && n_out <= TILE_ROWS / 2 => false,
            _ => x.rows >= MANY,
        };
        let acts = if floats { None } else { Some(self.quantized(x)?) };
        let (gpu, row_bytes) = (self.gpu, w.row_bytes());
        if many {
            let (order, tiles, n_tiles) = self.tiles(w, pairs, count)?;
            let grid = Grid::new([n_out.div_ceil(TILE_ROWS), n_tiles, 1], 256);
            if self.by_tensor_cores(ty) {
                let [halves, by] = self.split(name, x, n_in)?;
                let (n_in, n_out, share) = (int(n_in), int(n_out), int(share));
                return launch::matmul16(
                    gpu, name, grid, w.ptr, halves, by, tiles, order, out, n_in, n_out, share, row_bytes,
                );
            }
            let (n_in, n_out, share) = (int(n_in), int(n_out), int(share));
            return match acts {
                None => launch::matmul_floats(
                    gpu, name, grid, w.ptr, x.ptr, tiles, order, out, n_in, n_out, share, row_bytes,
                ),
                Some([codes, scales]) => launch::matmul(
                    gpu, name, grid, w.ptr, codes, scales, tiles, order, out, n_in, n_out, share, row_bytes,
                ),
            };
        }
        // Rows that share a matrix go by fours.
        let four = matches!(pairs, MatrixRows::All) && count > 1;
        let fours = if four { count.div_ceil(4) } else { count };
        let of_a_row = match pairs {
            MatrixRows::All => 1,
            MatrixRows::Heads(h) => h,
            MatrixRows::Chosen { k, .. } => k,
        };
        let (slots, share_row) = (w.slots, threads_of_a_row(floats, n_out * of_a_row, n_in, self.processors()));
        let grid = match floats {
            true => Grid::new([n_out, fours, 1], share_row),
            false => Grid::new([(n_out.div_ceil(if four { 1 } else { 2 }) * share_row).div_ceil(128), fours, 1], 128),
        };
        let (n_in, n_out, n, share, heads, at) = (int(n_in), int(n_out), int(count), int(share), int(heads), w.ptr);
        let (none, b, lanes) = (Ptr::default(), row_bytes, int(share_row)); // a second matrix comes in by joined launches
        match acts {
            None if four => {
                launch::matvec4_floats(gpu, name, grid, at, x.ptr, ids, slots, out, n_in, n_out, n, share, heads, b)
            }
            None => launch::matvec1_floats(
                gpu, name, grid, at, none, x.ptr, ids, slots, out, none, n_in, n_out, 0, n, share, heads, b,
            ),
            Some([codes, scales]) if four => launch::matvec4(
                gpu, name, grid, at, codes, scales, ids, slots, out, n_in, n_out, n, share, heads, lanes, b,
            ),
            Some([codes, scales]) => launch::matvec1(
                gpu, name, grid, at, none, codes, scales, ids, slots, out, none, n_in, n_out, 0, n, share, heads,
                lanes, b,
            ),
        }
    }

    /// Rows as codes of 8 bits with a scale for 32: those beside an input, or made here.
    fn quantized(&self, x: GpuValue) -> Result<[Ptr; 2]> {
        let n = x.rows * x.width;
        if let Some((_, &at)) = self.ins.iter().zip(self.codes).find(|(of, at)| **of == x && **at != Ptr::default()) {
            return Ok(codes_at(at, n));
        }
        if let Some((_, made)) = self.scratch.acts.get().filter(|(of, _)| *of == x) {
            return Ok(made);
        }
        let at = self.scratch.take(code_bytes(n));
        quantize(self.gpu, x, at)?;
        self.scratch.acts.set(Some((x, codes_at(at, n))));
        Ok(codes_at(at, n))
    }

    /// Whether a format of floats has products by tensor cores on this device: those of 16 bits, but for the one that sm_75
    /// has none for.
    fn by_tensor_cores(&self, ty: &QuantType) -> bool {
        match ty.kv.as_ref().and_then(|kv| kv.floats) {
            Some(Floats::Half) => true,
            Some(Floats::Brain) => self.gpu.is_none_or(|g| g.capability >= (8, 0)),
            _ => false,
        }
    }

    /// Rows of `n_in` values as two of 16 bits for each, and what products with each row are multiplied with.
    fn split(&self, format: &'static str, x: GpuValue, n_in: usize) -> Result<[Ptr; 2]> {
        if let Some((_, made)) = self.scratch.halves.get().filter(|(of, _)| *of == (format, n_in, x)) {
            return Ok(made);
        }
        let (rows, wide) = (x.rows * x.width / n_in, n_in.next_multiple_of(32));
        let made = [self.scratch.take(rows * wide * 4), self.scratch.take(rows * 4)];
        let grid = Grid::new([rows, 1, 1], 128);
        launch::split(self.gpu, format, grid, x.ptr, made[0], made[1], int(n_in), int(wide))?;
        self.scratch.halves.set(Some(((format, n_in, x), made)));
        Ok(made)
    }

    /// Pairs in the order of their matrices, cut into tiles.
    fn tiles(&self, w: &GpuWeight, pairs: MatrixRows, count: usize) -> Result<Tiles> {
        let n = w.shape[0];
        match pairs {
            MatrixRows::Chosen { ids, .. } => {
                let of = (ids, w.slots, count);
                if let Some((_, made)) = self.scratch.tiles.get().filter(|(known, _)| *known == of) {
                    return Ok(made);
                }
                let n_tiles = (count / TILE_PAIRS + n).min(count);
                let (order, tiles) = (self.scratch.take(count * 4), self.scratch.take(n_tiles * 16));
                let first = self.scratch.take(n * 4);
                let (grid, pairs) = (Grid::new([1, 1, 1], 1024), int(count));
                launch::count_pairs(self.gpu, grid, ids, w.slots, first, tiles, pairs, int(n), int(n_tiles))?;
                launch::sort_pairs(self.gpu, Grid::new([n, 1, 1], 256), ids, first, order, pairs)?;
                self.scratch.tiles.set(Some((of, (order, tiles, n_tiles))));
                Ok((order, tiles, n_tiles))
            }
            MatrixRows::All | MatrixRows::Heads(_) => {
                let heads = if let MatrixRows::Heads(h) = pairs { h } else { 1 };
                let n_tiles = heads * (count / heads).div_ceil(TILE_PAIRS);
                let (order, tiles) = (self.scratch.take(count * 4), self.scratch.take(n_tiles * 16));
                let grid = Grid::new([n_tiles, 1, 1], TILE_PAIRS);
                launch::even_pairs(self.gpu, grid, order, tiles, int(count), int(heads), int(n_tiles))?;
                Ok((order, tiles, n_tiles))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::threads_of_a_row;

    #[test]
    fn few_rows_are_shared_by_more_threads_and_no_lane_is_without_work_that_another_number_gives_it() {
        // (rows, columns, multiprocessors): a 3060 has 28, a 3090 82, a 5090 170.
        let codes = |rows, n_in, n| threads_of_a_row(false, rows, n_in, n);
        assert_eq!(codes(4096, 4096, 28), 32);
        assert_eq!(codes(512, 8192, 82), 128);
        assert_eq!(codes(8 * 2048, 768, 82), 32, "24 groups: half a warp would need two turns");
        assert_eq!(codes(8 * 2048, 1536, 82), 16, "48 groups: three turns of half a warp, not two");
        assert_eq!(codes(64, 32, 170), 32);
        assert_eq!(threads_of_a_row(true, 24, 16384, 82), 512);
        assert_eq!(threads_of_a_row(true, 24, 512, 82), 64);
        assert_eq!(threads_of_a_row(true, 4096, 4096, 28), 128);
        for rows in [1, 24, 100, 5000, 200_000] {
            for groups in 1..400 {
                let lanes = codes(rows, 32 * groups, 82);
                assert!(lanes.is_power_of_two() && (16..=128).contains(&lanes), "{rows} x {groups}: {lanes}");
                assert!(lanes <= 32 || lanes <= groups, "{rows} x {groups}: {lanes}");
            }
        }
    }
}
