//! attend: softmax attention of every head over the rows its sequence has cached.
//!
//! ```text
//! s[p] = cap(scale * q . k[p])     for the visible positions p: all up to the token's own, or the last `window`
//! out  = sum_p e^s[p] v[p] / (sum_p e^s[p] + e^sink)
//! ```
//! Grouped heads share keys and values (`heads / kv_heads` each). `v_dim` columns of the key serve as the value where
//! the two are one (latent attention, DeepSeek-V4). `extra` adds the rows of a second, compressed cache: all complete
//! ones, or those that an index step selected. `selected` leaves of the first cache only the blocks of adjacent rows that
//! an index step selected, for all key heads alike or for each its own. The batch's own rows are in the cache already
//! (`ops/cache.rs`).

use std::cell::RefCell;

use anyhow::Result;

use super::cache::Kv;
use crate::cpu;
use crate::cpu::attention::{self, ProductBuffers, Products};
use crate::cpu::dense::{self, BLOCK, COLS, Soft};
use crate::cuda::{CacheArg, Grid, Ptr, int, launch};
use crate::quant::{Floats, PanelForm};
use crate::simd::exp;
use crate::tape::{Batch, Builder, CpuIo, GpuIo, Op, Role, Slot, State, StateId, StateUse, Table, WeightId};

/// How a layer attends to a cache.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    heads: usize,
    scale: Option<f32>,
    soft_cap: Option<f32>,
    sinks: Option<WeightId>,
    extra: Option<Extra>,
    selected: Option<Selected>,
    chunks: bool,
    before: bool,
}

impl Attend {
    /// Attention of `heads` query heads to every position that the cache's window leaves in sight.
    pub fn causal(heads: usize) -> Attend {
        let (scale, soft_cap, sinks) = (None, None, None);
        Attend { heads, scale, soft_cap, sinks, extra: None, selected: None, chunks: false, before: false }
    }

    /// Multiplies q . k by `scale` instead of 1 / sqrt(columns of a key head).
    pub fn scale(self, scale: f32) -> Attend {
        Attend { scale: Some(scale), ..self }
    }

    /// Squashes scores to (-cap, cap) by tanh.
    pub fn soft_cap(self, cap: f32) -> Attend {
        Attend { soft_cap: Some(cap), ..self }
    }

    /// Adds a score for each head that no value belongs to: a vector (heads).
    pub fn sinks(self, sinks: WeightId) -> Attend {
        Attend { sinks: Some(sinks), ..self }
    }

    /// Attends to the rows of a second cache too.
    pub fn extra(self, extra: Option<Extra>) -> Attend {
        Attend { extra, ..self }
    }

    /// Takes the cache's window as a cut of all positions into chunks of that size: a token sees those of its own.
    pub fn in_chunks(self) -> Attend {
        Attend { chunks: true, ..self }
    }

    /// Attends to the positions before the token's own alone, of which the window counts one less. There is one at least.
    pub fn before(self) -> Attend {
        Attend { before: true, ..self }
    }

    /// Attends to selected rows of the cache only; None is all. The cache has no window.
    pub fn selected(self, selected: Option<Selected>) -> Attend {
        Attend { selected, ..self }
    }
}

/// The rows of a cache that each token attends to, as an index step selects them.
#[derive(Clone, Copy, Debug)]
pub struct Selected {
    /// Numbers of blocks, rising, -1 after the last: (T, lists * blocks that there may be).
    pub blocks: Slot,
    /// Adjacent rows of a block; those after the token's own are not seen.
    pub size: usize,
    /// A list for all key heads, or one for each.
    pub lists: usize,
}

/// The shape of an attention step.
#[derive(Clone, Copy, Debug)]
struct Heads {
    /// Query heads.
    heads: usize,
    /// Key (and value) heads.
    kv_heads: usize,
    /// Columns of a key head.
    k_dim: usize,
    /// Columns of a value head.
    v_dim: usize,
    /// Multiplies q . k.
    scale: f32,
    /// Positions that a token sees, itself included.
    window: Option<usize>,
    /// Whether positions are cut into chunks of `window` instead, of which a token sees its own.
    chunks: bool,
    /// Squashes scores to (-cap, cap) by tanh.
    soft_cap: Option<f32>,
    /// Whether a token does not see its own position, which `window` then does not count.
    before: bool,
}

impl Heads {
    /// The position after the last that a token sees.
    fn end(&self, pos: u32) -> usize {
        pos as usize + usize::from(!self.before)
    }

    /// The first position that a token sees whose last is before `end`.
    fn first(&self, end: usize) -> usize {
        match self.window {
            None => 0,
            Some(window) if self.chunks => (end - 1) / window * window,
            Some(window) => end.saturating_sub(window),
        }
    }
}

/// A second cache to attend to.
#[derive(Clone, Copy, Debug)]
pub struct Extra {
    /// Rows of keys that are also the values, one per `every` tokens.
    pub state: StateId,
    /// Tokens per row; a row is visible to the token that completes it.
    pub every: usize,
    /// Rows selected for each token, -1 for none; None takes every visible row.
    pub select: Option<Slot>,
}

#[derive(Clone, Copy, Debug)]
struct AttendOp {
    a: Heads,
    /// Values are the first columns of the keys.
    shared: bool,
    sinks: bool,
    /// `(every, selected)`.
    extra: Option<(usize, bool)>,
    /// `(rows of a block, lists)`, where rows of the first cache are selected.
    blocks: Option<(usize, usize)>,
    /// Entries of a token's list of selected rows or blocks.
    selected: usize,
}

/// Keys whose softmax is worked out apart from the others', always the same ones, and then joined with them in order: so
/// one token's keys can be shared among threads, and the result is the same bits whether they were or not.
const CHUNK: usize = 512;
/// Query rows (heads of a group, times tokens) that share a block's decoded keys, about.
const TILE: usize = 64;
/// The same where matrix tiles multiply them, which takes longer to prepare keys. 256 rows would take another seventh off,
/// and leave half as many pieces of work for many threads.
const TILE_ROWS: usize = 128;
/// Query rows of a tile, and rows of the batch, from which matrix tiles are used (`cpu/attention_tiles.rs` has the times):
/// the second as for products with weights, so that steps of few tokens have the same bits on every CPU with AVX-512. Caches
/// of f32, which hold more than tiles multiply, never go that way.
const TILE_FROM: (usize, usize) = (16, PanelForm::TILES_FROM);

/// Tokens of one sequence, neighbours in the batch.
#[derive(Clone, Copy)]
struct Tile {
    /// Rows of the batch.
    from: usize,
    n: usize,
    /// The chunks of keys that one of them sees, and how many chunks of the second cache.
    own: (usize, usize),
    extra: usize,
    /// The first of its parts.
    part: usize,
}

impl Tile {
    fn chunks(&self) -> usize {
        self.own.1 - self.own.0 + self.extra
    }
}

/// Chunks of keys for one key head: a piece of work.
struct KeyChunks {
    tile: Tile,
    kv_head: usize,
    /// Chunks, counted over the tile's own and then the extra ones.
    chunks: std::ops::Range<usize>,
}

/// What a step's threads share.
struct AttendCall<'a> {
    a: &'a Heads,
    rows: &'a [crate::tape::Row],
    q: &'a [f32],
    keys: &'a State,
    values: &'a State,
    extra: Option<(&'a State, usize)>,
    /// Rows of the second cache for each token, -1 for none.
    select: Option<&'a [f32]>,
    /// Blocks of the first cache for each token.
    blocks: Option<BlockLists<'a>>,
    /// Whether rows are multiplied by matrix tiles, where there are enough of them.
    tiled: bool,
}

/// See [`Selected`].
#[derive(Clone, Copy)]
struct BlockLists<'a> {
    list: &'a [f32],
    size: usize,
    lists: usize,
}

/// A thread's memory.
#[derive(Default)]
struct ThreadBuffers {
    products: ProductBuffers,
    decoded: Vec<f32>,
    chunk: Vec<f32>,
    limits: Vec<[usize; 2]>,
}

thread_local! {
    static SCRATCH: RefCell<ThreadBuffers> = RefCell::default();
}

impl AttendCall<'_> {
    fn per_kv(&self) -> usize {
        self.a.heads / self.a.kv_heads
    }

    /// The positions that a token's heads of a key head see; of selected rows their places in the list.
    fn visible(&self, token: usize, kv_head: usize) -> (usize, usize) {
        let end = self.a.end(self.rows[token].pos);
        match self.blocks {
            Some(b) => {
                let chosen = self.chosen(b, token, kv_head);
                // Only the last block can reach beyond the token.
                let beyond = chosen.last().map_or(0, |&last| ((last as usize + 1) * b.size).saturating_sub(end));
                (0, chosen.len() * b.size - beyond)
            }
            None => (self.a.first(end), end),
        }
    }

    /// The positions that some of a token's heads see.
    fn visible_to_any(&self, token: usize) -> (usize, usize) {
        let heads = if self.blocks.is_some_and(|b| b.lists > 1) { self.a.kv_heads } else { 1 };
        let all = (0..heads).map(|h| self.visible(token, h));
        all.reduce(|x, y| (x.0.min(y.0), x.1.max(y.1))).expect("there is a head")
    }

    /// The blocks that are selected for a token's heads of a key head.
    fn chosen<'b>(&self, b: BlockLists<'b>, token: usize, kv_head: usize) -> &'b [f32] {
        let most = b.list.len() / (self.rows.len() * b.lists);
        let list = if b.lists == 1 { token } else { token * b.lists + kv_head };
        let list = &b.list[list * most..(list + 1) * most];
        &list[..list.partition_point(|&block| block >= 0.0)]
    }

    /// Rows of the second cache that a token sees: complete ones, or how many were selected for it.
    fn visible_extra(&self, token: usize) -> usize {
        match (self.select, self.extra) {
            (Some(select), _) => {
                let k = select.len() / self.rows.len();
                select[token * k..(token + 1) * k].iter().take_while(|&&r| r >= 0.0).count()
            }
            (None, Some((_, every))) => (self.rows[token].pos as usize + 1) / every,
            (None, None) => 0,
        }
    }

    /// The batch as tiles.
    fn tiles(&self) -> Vec<Tile> {
        let alone = self.select.is_some() || self.blocks.is_some();
        let rows = if self.tiled { TILE_ROWS } else { TILE };
        let most = if alone { 1 } else { (rows / self.per_kv()).max(1) };
        let mut tiles: Vec<Tile> = Vec::new();
        for (t, row) in self.rows.iter().enumerate() {
            let (start, end) = self.visible_to_any(t);
            let own = (start / CHUNK, end.div_ceil(CHUNK));
            let extra = self.visible_extra(t).div_ceil(CHUNK);
            match tiles.last_mut() {
                Some(tile) if tile.n < most && self.rows[tile.from].seq == row.seq => {
                    tile.n += 1;
                    tile.own = (tile.own.0.min(own.0), tile.own.1.max(own.1));
                    tile.extra = tile.extra.max(extra);
                }
                _ => tiles.push(Tile { from: t, n: 1, own, extra, part: 0 }),
            }
        }
        tiles
    }

    /// The softmax of a part's keys, chunk by chunk.
    fn run(&self, part: &KeyChunks, s: &mut ThreadBuffers, soft: &mut Soft<'_>) {
        let (a, tile, per_kv) = (self.a, part.tile, self.per_kv());
        let rows = (0..tile.n * per_kv).map(|i| {
            let head = (tile.from + i / per_kv) * a.heads + part.kv_head * per_kv + i % per_kv;
            &self.q[head * a.k_dim..][..a.k_dim]
        });
        let ThreadBuffers { products, decoded, chunk: buffer, limits } = s;
        let tiled = self.tiled && rows.len() >= TILE_FROM.0;
        let mut products = Products::new(products, tiled, (a.k_dim, a.scale), rows);
        soft.clear();
        buffer.resize(products.rows() * (soft.width + 2), 0.0);
        for c in part.chunks.clone() {
            let mut chunk = Soft::new(products.rows(), soft.width, buffer);
            chunk.clear();
            let n_own = tile.own.1 - tile.own.0;
            let (first, own) = if c < n_own { (tile.own.0 + c, true) } else { (c - n_own, false) };
            let most = match own {
                true => (tile.from..tile.from + tile.n)
                    .map(|t| self.visible(t, part.kv_head))
                    .fold((usize::MAX, 0), |m, v| (m.0.min(v.0), m.1.max(v.1))),
                false => (0, (tile.from..tile.from + tile.n).map(|t| self.visible_extra(t)).max().unwrap_or(0)),
            };
            let mut at = first * CHUNK;
            while at < most.1.min((first + 1) * CHUNK) {
                if at + BLOCK > most.0 {
                    let keys = (at, (at + BLOCK).min(most.1));
                    self.block(part, own, keys, (&mut products, decoded, limits), &mut chunk);
                }
                at += BLOCK;
            }
            soft.join(&chunk);
        }
    }

    /// Adds the keys `from..to`, a block or its beginning, to a chunk's softmax.
    fn block(
        &self,
        part: &KeyChunks,
        own: bool,
        (from, to): (usize, usize),
        (products, decoded, limits): (&mut Products<'_>, &mut Vec<f32>, &mut Vec<[usize; 2]>),
        chunk: &mut Soft<'_>,
    ) {
        let (a, tile) = (self.a, part.tile);
        let (keys, values) = match (own, self.extra) {
            (false, Some((rows, _))) => (rows, rows),
            _ => (self.keys, self.values),
        };
        let n = to - from;
        let cached = |cache, from, dim| self.cached(cache, part, own, from, dim);
        let (k, v) = (cached(keys, from, a.k_dim), cached(values, from, a.v_dim));
        let (mut decoded_k, mut decoded_v) = ([&[][..]; BLOCK], [&[][..]; BLOCK]);
        // While keys are multiplied their values are asked for, and during those the next keys.
        products.scores(floats(keys, &k[..n], a.k_dim, decoded, &mut decoded_k, &v[..n]));
        limits.clear();
        for token in tile.from..tile.from + tile.n {
            let (start, end) = match own {
                true => self.visible(token, part.kv_head),
                false => (0, self.visible_extra(token)),
            };
            let seen = [start, end].map(|at| at.clamp(from, to) - from);
            limits.extend(std::iter::repeat_n(seen, self.per_kv()));
        }
        products.softmax(n, limits, a.soft_cap, chunk);
        let after = if own { cached(keys, from + BLOCK, a.k_dim) } else { [&[][..]; BLOCK] };
        products.mix(floats(values, &v[..n], a.v_dim, decoded, &mut decoded_v, &after), chunk);
    }

    /// The first `dim` columns of the part's head of the rows from `from` on; nothing for those that are not there.
    fn cached<'c>(&self, cache: &'c State, part: &KeyChunks, own: bool, from: usize, dim: usize) -> [&'c [u8]; BLOCK] {
        let at = part.kv_head * cache.ty().row_bytes(cache.width() / self.a.kv_heads);
        let bytes = at..at + cache.ty().row_bytes(dim);
        let seq = self.rows[part.tile.from].seq;
        let mut rows: [&[u8]; BLOCK] = [&[]; BLOCK];
        if let (true, Some(b)) = (own, self.blocks) {
            let (chosen, end) =
                (self.chosen(b, part.tile.from, part.kv_head), self.visible(part.tile.from, part.kv_head).1);
            for (to, at) in rows.iter_mut().zip(from..end) {
                let row = chosen[at / b.size] as usize * b.size + at % b.size;
                *to = &cache.row(seq, row)[bytes.clone()];
            }
            return rows;
        }
        match self.select.filter(|_| !own) {
            Some(select) => {
                let k = select.len() / self.rows.len();
                let chosen = select[part.tile.from * k..][..k].iter().skip(from).take_while(|&&r| r >= 0.0);
                for (to, &row) in rows.iter_mut().zip(chosen) {
                    *to = &cache.row(seq, row as usize)[bytes.clone()];
                }
            }
            None => {
                for (to, row) in rows.iter_mut().zip(cache.rows(seq, from)) {
                    *to = &row[bytes.clone()];
                }
            }
        }
        rows
    }
}

/// The first `dim` values of cached rows, as they are or decoded, with zeros up to a multiple of [`COLS`]; `next` is
/// what is wanted afterwards.
fn floats<'a>(
    cache: &State,
    cached: &'a [&'a [u8]],
    dim: usize,
    decoded: &'a mut Vec<f32>,
    rows: &'a mut [&'a [u8]; BLOCK],
    next: &'a [&'a [u8]],
) -> dense::Rows<'a> {
    if let (Some(floats), true) = (cache.ty().kv.as_ref().and_then(|kv| kv.floats), dim.is_multiple_of(COLS)) {
        return dense::Rows { rows: cached, floats, next };
    }
    let width = dim.next_multiple_of(COLS);
    decoded.clear();
    decoded.resize(cached.len() * width, 0.0);
    for (row, to) in cached.iter().zip(decoded.chunks_exact_mut(width)) {
        cpu::decode(cache.ty(), row, &mut to[..dim]);
    }
    for (to, row) in rows.iter_mut().zip(decoded.chunks_exact(width)) {
        *to = bytemuck::cast_slice(row);
    }
    dense::Rows { rows: &rows[..cached.len()], floats: Floats::Single, next }
}

/// Whether a cache holds f32.
fn is_single(cache: &State) -> bool {
    cache.ty().kv.as_ref().is_some_and(|kv| kv.floats == Some(Floats::Single))
}

impl Op for AttendOp {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu(&self, io: &mut CpuIo<'_>) {
        let a = &self.a;
        let keys = &io.states[0];
        let work = AttendCall {
            a,
            rows: &io.batch.rows,
            q: io.ins[0],
            keys,
            values: if self.shared { keys } else { &io.states[1] },
            extra: self.extra.map(|(every, _)| (&io.states[if self.shared { 1 } else { 2 }], every)),
            select: match self.extra {
                Some((_, true)) => Some(io.ins[1]),
                _ => None,
            },
            blocks: self.blocks.map(|(size, lists)| BlockLists { list: io.ins[1], size, lists }),
            tiled: attention::has_tiles()
                && io.states.iter().all(|s| !is_single(s))
                && !io.batch.deterministic_rows
                && io.batch.rows.len() >= TILE_FROM.1,
        };
        let mut tiles = work.tiles();
        // Chunks by themselves only where there is too little else to share out: each needs room for its results.
        let apart = tiles.len() * a.kv_heads < 4 * io.pool.threads();
        let mut parts: Vec<KeyChunks> = Vec::new();
        for tile in &mut tiles {
            tile.part = parts.len();
            let (n, each) = (tile.chunks(), if apart { 1 } else { tile.chunks() });
            // All heads of the same keys in turn: they are adjacent in memory, often on the same cache lines.
            for c in (0..n).step_by(each) {
                parts.extend((0..a.kv_heads).map(|kv_head| KeyChunks { tile: *tile, kv_head, chunks: c..c + each }));
            }
        }
        let per_kv = work.per_kv();
        let width = a.v_dim.next_multiple_of(COLS);
        let rows = tiles.iter().map(|t| t.n).max().unwrap_or(0) * per_kv;
        let size = rows * (width + 2);
        let mut buffer = std::mem::take(&mut io.work.buffers[0]);
        buffer.resize(parts.len() * size, 0.0);
        let seen = |t: usize| work.visible_to_any(t).1 - work.visible_to_any(t).0 + work.visible_extra(t);
        let keys_seen: usize = (0..io.rows).map(seen).sum();
        io.pool.pieces(&mut buffer, size, keys_seen * a.heads * (a.k_dim + a.v_dim), |i, buffer| {
            let part = &parts[i];
            let mut soft = Soft::new(part.tile.n * per_kv, width, buffer);
            SCRATCH.with_borrow_mut(|s| work.run(part, s, &mut soft));
        });
        let sinks = self.sinks.then(|| io.weights[0].values);
        let tile_of: Vec<usize> = tiles.iter().enumerate().flat_map(|(i, t)| std::iter::repeat_n(i, t.n)).collect();
        if apart {
            // Later parts of a head are joined with its first, in order.
            for tile in &tiles {
                let own = &mut buffer[tile.part * size..(tile.part + tile.chunks() * a.kv_heads) * size];
                let (done, rest) = own.split_at_mut(a.kv_heads * size);
                for (i, later) in rest.chunks_exact_mut(size).enumerate() {
                    let done = &mut done[i % a.kv_heads * size..][..size];
                    let (n, later) = (tile.n * per_kv, Soft::new(tile.n * per_kv, width, later));
                    Soft::new(n, width, done).join(&later);
                }
            }
        }
        let done = &buffer;
        io.pool.pieces(io.outs[0], a.heads * a.v_dim, io.rows * a.heads * a.v_dim * 8, |t, out| {
            let tile = &tiles[tile_of[t]];
            for (h, out) in out.chunks_exact_mut(a.v_dim).enumerate() {
                let part = &done[(tile.part + h / per_kv) * size..][..size];
                let (n, r) = (tile.n * per_kv, (t - tile.from) * per_kv + h % per_kv);
                let (mut most, mut sum) = (part[r], part[n + r]);
                let mut factor = 1.0;
                if let Some(sinks) = sinks {
                    let before = most;
                    most = most.max(sinks[h]);
                    factor = exp(before - most);
                    sum = sum * factor + exp(sinks[h] - most);
                }
                let factor = factor / sum;
                let from = &part[2 * n + r * width..];
                out.iter_mut().zip(from).for_each(|(o, v)| *o = v * factor);
            }
        });
        io.work.buffers[0] = buffer;
    }

    fn gpu(&self, io: &GpuIo<'_>) -> Result<()> {
        let (a, q, out) = (&self.a, io.ins[0], io.outs[0]);
        let keys = &io.states[0];
        let at_extra = if self.shared { 1 } else { 2 };
        let values = if self.shared { keys } else { &io.states[1] };
        let extra = self.extra.map_or(CacheArg::default(), |_| io.states[at_extra].cache);
        let (every, selected) = self.extra.unwrap_or((1, false));
        let select = (selected || self.blocks.is_some()).then(|| io.ins[1]);

        let spans = self.spans(io.batch);
        let per_kv = a.heads / a.kv_heads;
        let rows = spans.iter().map(|s| s[1] as usize).max().unwrap_or(1) * per_kv;
        let (mt, nv, stages) = self.shape(rows, io.shared_bytes());
        let row_tiles = rows.div_ceil(16 * mt);
        // Enough blocks for every multiprocessor to have two, as far as there is room for their parts. Blocks that get no
        // keys, while there are few, end at once. Rows that are to be as if alone are cut as one row is.
        let (together, rows) = if io.batch.alone { (1, q.rows.max(ALONE)) } else { (spans.len(), q.rows) };
        let blocks = a.kv_heads * together * row_tiles;
        let splits = (2 * io.processors()).div_ceil(blocks).clamp(1, io.processors()).min((PARTS / rows).max(1));
        let parts = io.scratch.take(PARTS.max(q.rows) * a.heads * (a.v_dim + 2) * 4);
        let grid = Grid::new([spans.len() * row_tiles, a.kv_heads, splits], 128);
        let (v_dim, splits) = (int(a.v_dim), int(splits));
        launch::attend(
            io.gpu,
            mt,
            nv,
            grid.with_shared(self.shared_bytes(mt, nv, stages)),
            q.ptr,
            keys.cache,
            values.cache,
            extra,
            select.map_or(Ptr::default(), |s| s.ptr),
            io.tables[0],
            if a.before { io.tables[1] } else { io.lists.positions },
            parts,
            int(a.heads),
            int(a.kv_heads),
            int(a.k_dim),
            v_dim,
            a.scale,
            if a.chunks { -int(a.window.unwrap_or(0)) } else { int(a.window.unwrap_or(0)) },
            a.soft_cap.unwrap_or(0.0),
            int(every),
            int(self.selected),
            int(self.blocks.map_or(0, |(size, _)| size)),
            int(self.blocks.map_or(1, |(_, lists)| lists)),
            i32::from(self.shared),
            int(row_tiles),
            splits,
            int(stages),
        )?;
        let sinks = if self.sinks { io.weights[0].ptr } else { Ptr::default() };
        let grid = Grid::new([a.heads, q.rows, 1], 128);
        launch::attend_join(io.gpu, grid, parts, sinks, out.ptr, v_dim, splits)
    }

    fn gpu_refuses(&self) -> Option<String> {
        let v = self.a.v_dim;
        if v > 512 {
            return Some(format!("values of {v} columns; the kernel takes 512"));
        }
        let (mt, nv, stages) = self.shape(1, GpuIo::LEAST_SHARED);
        let (bytes, sure) = (self.shared_bytes(mt, nv, stages), GpuIo::LEAST_SHARED);
        (bytes > sure).then(|| format!("heads that take {bytes} bytes of shared memory; {sure} are sure"))
    }

    fn state_use(&self, i: usize) -> Option<StateUse> {
        let own = if self.shared { 1 } else { 2 };
        let window = self.a.window.filter(|_| i < own && self.blocks.is_none());
        Some(StateUse::Reads(window.map(|n| n + usize::from(self.a.before))))
    }

    fn rows_seen(&self, seen: usize) -> usize {
        let own = self.blocks.map_or(self.a.window.unwrap_or(usize::MAX), |(size, _)| size * self.selected);
        let extra =
            self.extra.map_or(0, |(every, select)| (seen / every).min(if select { self.selected } else { seen }));
        seen.min(own) + extra
    }

    fn tables(&self) -> Vec<Table> {
        let op = AttendOp { ..*self };
        let select = (self.blocks, self.selected);
        let (a, span) = (&self.a, self.span());
        let key = format!("spans {:?} {} {} {:?} {select:?} {span}", a.window, a.chunks, a.before, self.extra);
        let fill = move |batch: &Batch, to: &mut [u8]| {
            for (span, to) in op.spans(batch).iter().zip(to.chunks_exact_mut(size_of::<Span>())) {
                to.copy_from_slice(bytemuck::bytes_of(span));
            }
        };
        let spans = Table { key, row_bytes: size_of::<Span>(), fill: Box::new(fill) };
        // A token that does not see itself sees what the one before it would.
        let fill = |batch: &Batch, to: &mut [u8]| {
            for (row, to) in batch.rows.iter().zip(to.as_chunks_mut::<4>().0) {
                *to = (row.pos as i32 - 1).to_ne_bytes();
            }
        };
        let before = Table { key: "positions before".into(), row_bytes: 4, fill: Box::new(fill) };
        [Some(spans), a.before.then_some(before)].into_iter().flatten().collect()
    }
}

/// Parts that rows' heads may be cut into, all rows of a batch together: whatever the batch, no more memory is taken.
const PARTS: usize = 512;

/// Rows that come out as if each were alone, at most ([`Batch::alone`]).
const ALONE: usize = 8;

/// As kernels/attend.cu has it: first row, rows, sequence, positions seen from and to, rows of the second cache.
type Span = [i32; 8];

impl AttendOp {
    /// Tokens that a block may take together.
    fn span(&self) -> usize {
        match (self.extra, self.blocks) {
            (Some((_, true)), _) | (_, Some(_)) => 1,
            _ => (64 / (self.a.heads / self.a.kv_heads)).max(1),
        }
    }

    /// The batch cut into neighbours of one sequence.
    fn spans(&self, batch: &Batch) -> Vec<Span> {
        let most = if batch.alone { 1 } else { self.span() };
        let mut spans: Vec<Span> = Vec::new();
        for (i, row) in batch.rows.iter().enumerate() {
            let end = self.a.end(row.pos);
            let from = self.a.first(end) as i32;
            // Of selected rows as many as there can be.
            let to = self.blocks.map_or(end, |(size, _)| end.min(self.selected * size));
            let extra = match self.extra {
                Some((every, false)) => end / every,
                // All that can be selected for a token of this position are there.
                Some((every, true)) => (end / every).min(self.selected),
                None => 0,
            } as i32;
            match spans.last_mut() {
                Some(s) if s[2] == row.seq as i32 && (s[1] as usize) < most => {
                    s[1] += 1;
                    (s[3], s[4], s[5]) = (s[3].min(from), s[4].max(to as i32), s[5].max(extra));
                }
                _ => spans.push([i as i32, 1, row.seq as i32, from, to as i32, extra, 0, 0]),
            }
        }
        spans
    }

    /// The kernel for this many query rows, on a device that gives a block `limit` bytes of shared memory: 16s of rows, 32s
    /// of columns, and stages of keys.
    fn shape(&self, rows: usize, limit: usize) -> (usize, usize, usize) {
        let nv = self.a.v_dim.div_ceil(32).next_power_of_two().max(2);
        // The kernel that keeps its queries has as many columns of them as of values.
        let nv = if rows > 16 && self.a.k_dim > 32 * nv { nv.max(8) } else { nv };
        let fits = |mt: usize, stages: usize| self.shared_bytes(mt, nv, stages) <= limit;
        let mt = match (rows > 16, nv) {
            (true, 2 | 4) => 4,
            (true, 8 | 16) if fits(2, 1) => 2,
            _ => 1,
        };
        // A second stage hides copies, as a second block on the multiprocessor does.
        let alone = |stages: usize| 2 * self.shared_bytes(mt, nv, stages) > limit;
        let stages = if fits(mt, 2) && (alone(1) || !alone(2)) { 2 } else { 1 };
        (mt, nv, stages)
    }

    /// Shared memory of a block, as kernels/attend.cu lays it out.
    fn shared_bytes(&self, mt: usize, nv: usize, stages: usize) -> usize {
        let (rows, keys, wide) = (16 * mt, 32, 32 * nv);
        if mt == 4 {
            return 16 + 2 * stages * keys * (wide + 8) * if self.shared { 1 } else { 2 };
        }
        let k = self.a.k_dim.next_multiple_of(32).max(if self.shared { wide } else { 0 }) + 8;
        let v = if self.shared { 0 } else { wide + 8 };
        16 + 2 * (rows * k + stages * keys * (k + v)) + 4 * rows * (keys + 8)
    }
}

impl Builder<'_> {
    /// Attention of `q` (T, heads * k_dim) to cached rows: (T, heads * v_dim).
    ///
    /// # Errors
    /// If `q` does not have that width.
    pub fn attend(&self, q: Slot, kv: &Kv, a: Attend) -> Result<Slot> {
        self.expect_width("attn", q, a.heads * kv.k_dim)?;
        debug_assert!(
            a.heads.is_multiple_of(kv.heads) && kv.window != Some(0) && !(a.before && kv.window == Some(1)),
            "the keys were read by heads and tokens"
        );
        // Rows of a second cache are rotated by the columns of a key alone (`ops/compress.rs`).
        debug_assert!(
            a.extra.is_none() || kv.k_dim == kv.v_dim,
            "keys and values of a second cache are the same columns"
        );
        let q = self.rotated(q, kv.runs.0);
        let mut states: Vec<StateId> = [Some(kv.k), kv.v].into_iter().flatten().collect();
        let mut ins = vec![q];
        if let Some(e) = a.extra {
            states.push(e.state);
            ins.extend(e.select);
        }
        let list = a.selected.map(|s| s.blocks).or(a.extra.and_then(|e| e.select));
        if let Some(s) = a.selected {
            debug_assert!(kv.window.is_none() && ins.len() == 1, "one selection, of a whole cache");
            debug_assert!(s.lists == 1 || s.lists == kv.heads, "a list for all key heads or for each");
            ins.push(s.blocks);
        }
        let op = AttendOp {
            a: Heads {
                heads: a.heads,
                kv_heads: kv.heads,
                k_dim: kv.k_dim,
                v_dim: kv.v_dim,
                scale: a.scale.unwrap_or(1.0 / (kv.k_dim as f32).sqrt()),
                window: kv.window.map(|n| if a.before { n - 1 } else { n }),
                chunks: a.chunks,
                soft_cap: a.soft_cap,
                before: a.before,
            },
            shared: kv.v.is_none(),
            sinks: a.sinks.is_some(),
            extra: a.extra.map(|e| (e.every, e.select.is_some())),
            blocks: a.selected.map(|s| (s.size, s.lists)),
            selected: list.map_or(0, |x| self.width(x) / a.selected.map_or(1, |s| s.lists)),
        };
        let weights: Vec<WeightId> = a.sinks.into_iter().collect();
        let out = self.role(Role::Attention).push_named("attn", op, &ins, &[a.heads * kv.v_dim], &weights, &states)[0];
        Ok(self.rotated(out, kv.runs.1))
    }
}
