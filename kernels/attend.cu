// Attention over cached rows, for prompts and for single tokens alike; see src/ops/attend.rs for what is computed.
//
// A block of four warps takes 16 MT query rows (tokens of one sequence times the heads that share a key head) and a run
// of keys, 32 at a time:
//   scores    each warp 8 of the keys, all rows          tensor cores, f16 times f16 to f32
//   softmax   each warp a quarter of the rows, a lane per key; the running maximum and sum of every row
//   values    each warp a quarter of the columns, all rows and keys
// Long contexts are cut into runs that blocks share (`splits`); `attend_join` brings the parts together, and the sinks in.
#include "cache.cuh"

enum { KEYS = 32 };

/// Tokens of one sequence that are neighbours in the batch.
struct Span {
    int first, n, seq;
    int from, to; // positions that one of them sees
    int extra;    // rows of the second cache that one of them sees
    int unused[2];
};

/// A cache: rows by position, `capacity` of them for every sequence.
struct Cache {
    const u8 *rows;
    u64 row_bytes, seq_bytes;
    int capacity;
    CacheType type;
};

/// `n` rows of `dim` values from column `at` on, as f16 with zeros up to `wide`; rows beyond become zeros. `which` gives a
/// row's address. They are there once the thread's copies have been waited for, and all threads met.
template <class W>
__device__ __forceinline__ void bring(u16 *to, int stride, int n, int dim, int wide, int at, CacheType type, W which) {
#pragma unroll 1
    for (int i = threadIdx.x; i < KEYS * (wide / 8); i += blockDim.x) {
        int r = i / (wide / 8), c = i % (wide / 8) * 8;
        const u8 *row = r < n ? which(r) : nullptr;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (row && c < dim) {
            bool eights = dim % 8 == 0 && at % 8 == 0;
            if (type == CACHE_F16 && eights) { // many at once: each alone would wait for memory
                cp_async16(to + r * stride + c, row + 2 * (at + c));
                continue;
            }
            float f[8];
            if (is_float(type)) {
                for (int j = 0; j < 8; j++) f[j] = c + j < dim ? cached_float(row, type, at + c + j) : 0.f;
            } else cached_eight(row, type, at + c, f);
            v = make_uint4(two_halves(f[0], f[1]), two_halves(f[2], f[3]), two_halves(f[4], f[5]),
                           two_halves(f[6], f[7]));
        }
        *(uint4 *)(to + r * stride + c) = v;
    }
}

/// The parts of attention. MT: query rows of a block in 16s. NV: columns of values in 8s for each warp. Shared memory: see
/// `shared_bytes` in src/ops/attend.rs. Grid: (spans times row_tiles, key heads, splits); 128 threads.
template <int MT, int NV>
__device__ __forceinline__ void attend_body(const float *q, Cache keys, Cache values, Cache extra, const float *select,
                                            const Span *spans, const int *pos, float *parts, int heads, int kv_heads,
                                            int k_dim, int v_dim, float scale, int window, float cap, int every, int n_select,
                                            int block_size, int lists, int shared_kv, int row_tiles, int splits) {
    const int ROWS = 16 * MT;
    const float lowest = -1e30f;
    int wide_k = (k_dim + 15) / 16 * 16, wide_v = 32 * NV, stride_k = wide_k + 8, stride_v = wide_v + 8;
    DYN_SHARED(u8, memory);
    u16 *sq = (u16 *)memory, *sk = sq + ROWS * stride_k, *sv = sk + KEYS * stride_k;
    u16 *sp = sv + KEYS * stride_v; // (ROWS, KEYS + 8)
    if (shared_kv) { // values are the first columns of the keys
        sp = sv;
        sv = sk;
        stride_v = stride_k;
    }
    float *ss = (float *)(sp + ROWS * (KEYS + 8)); // (ROWS, KEYS + 1)
    float *most = ss + ROWS * (KEYS + 1), *sum = most + ROWS, *less = sum + ROWS;
    int id = threadIdx.x, lane = id & 31, warp = id >> 5;
    int head = blockIdx.y, span_id = blockIdx.x / row_tiles, row0 = blockIdx.x % row_tiles * ROWS, split = blockIdx.z;
    Span span = spans[span_id];
    int per_kv = heads / kv_heads, rows = span.n * per_kv - row0;
    if (rows <= 0) return;
    if (rows > ROWS) rows = ROWS;

    // Queries, times the scale.
    for (int i = id; i < ROWS * (wide_k / 2); i += blockDim.x) {
        int r = i / (wide_k / 2), c = i % (wide_k / 2) * 2;
        float a = 0.f, b = 0.f;
        if (r < rows) {
            int token = span.first + (row0 + r) / per_kv, h = head * per_kv + (row0 + r) % per_kv;
            const float *from = q + ((u64)token * heads + h) * k_dim;
            if (c < k_dim) a = from[c] * scale;
            if (c + 1 < k_dim) b = from[c + 1] * scale;
        }
        *(u32 *)(sq + r * stride_k + c) = two_halves(a, b);
    }
    for (int r = id; r < ROWS; r += blockDim.x) most[r] = lowest, sum[r] = 0.f;

    float out[MT][NV][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int v = 0; v < NV; v++)
#pragma unroll
            for (int i = 0; i < 4; i++) out[m][v][i] = 0.f;

    // Rows that are selected: of the second cache, or blocks of `block_size` of the first, for all key heads or for each. A
    // span is then one token.
    bool own_select = block_size > 0;
    const float *list = select + ((u64)span.first * lists + (lists > 1 ? head : 0)) * n_select;
    int own_end = pos[span.first] + 1;
    auto own_row = [&](int at) {
        if (!own_select) return at;
        int block = (int)list[at / block_size], row = block * block_size + at % block_size;
        return block < 0 || row >= own_end ? -1 : row;
    };

    // Blocks of keys: first the sequence's own positions, then rows of the second cache.
    int own_from = span.from / KEYS, own_blocks = (span.to + KEYS - 1) / KEYS - own_from;
    int blocks = own_blocks + (span.extra + KEYS - 1) / KEYS, each = (blocks + splits - 1) / splits;
    int b_to = min((split + 1) * each, blocks);
    for (int b = split * each; b < b_to; b++) {
        bool own = b < own_blocks;
        int key0 = own ? (own_from + b) * KEYS : (b - own_blocks) * KEYS;
        int n = min((int)KEYS, (own ? span.to : span.extra) - key0);
        Cache k = own ? keys : extra, v = own ? values : extra;
        auto row_of = [&](const Cache &c, int r) {
            int at = own ? own_row(key0 + r) : select ? (int)list[key0 + r] : key0 + r;
            if (at < 0) return (const u8 *)nullptr;
            return c.rows + span.seq * c.seq_bytes + (u64)(at % c.capacity) * c.row_bytes;
        };
        __syncthreads();
        bring(sk, stride_k, n, k_dim, wide_k, head * k_dim, k.type, [&](int r) { return row_of(k, r); });
        if (!shared_kv)
            bring(sv, stride_v, n, v_dim, wide_v, own ? head * v_dim : head * k_dim, v.type,
                  [&](int r) { return row_of(v, r); });
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();

        // Scores of the warp's 8 keys: A the queries, B the keys.
#pragma unroll
        for (int m = 0; m < MT; m++) {
            float s[4] = {0.f, 0.f, 0.f, 0.f};
            for (int c = 0; c < wide_k; c += 16) {
                u32 a[4], bb[2];
                ldmatrix_x4(a, sq + (16 * m + (lane & 15)) * stride_k + c + (lane >> 4) * 8);
                const u32 *kb = (const u32 *)(sk + (8 * warp + (lane >> 2)) * stride_k + c) + (lane & 3);
                bb[0] = kb[0];
                bb[1] = kb[4];
                mma_f16(s, a, bb);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = 16 * m + (lane >> 2) + (i >> 1) * 8, c = 8 * warp + 2 * (lane & 3) + (i & 1);
                ss[r * (KEYS + 1) + c] = s[i];
            }
        }
        __syncthreads();

        // Softmax: a lane per key.
        for (int r = warp; r < ROWS; r += 4) {
            int token = span.first + (row0 + min(r, rows - 1)) / per_kv, at = key0 + lane, end = pos[token] + 1;
            bool seen = lane < n && r < rows;
            if (own && own_select) seen = seen && own_row(at) >= 0;
            else if (own) {
                int first = window > 0 ? end - window : window < 0 ? (end - 1) / -window * -window : 0;
                seen = seen && at < end && at >= first;
            }
            else if (!select) seen = seen && at < end / every;
            float s = ss[r * (KEYS + 1) + lane];
            if (cap > 0.f) s = cap * tanhf(s / cap);
            float top = fmaxf(most[r], warp_max(seen ? s : lowest));
            float p = seen ? __expf(s - top) : 0.f, total = warp_sum(p), by = __expf(most[r] - top);
            __syncwarp();
            if (lane == 0) {
                less[r] = by;
                sum[r] = sum[r] * by + total;
                most[r] = top;
            }
            sp[r * (KEYS + 8) + lane] = f2h(p);
        }
        __syncthreads();

        // Values of the warp's columns: A the shares, B the values.
#pragma unroll
        for (int m = 0; m < MT; m++) {
            float by0 = less[16 * m + (lane >> 2)], by1 = less[16 * m + (lane >> 2) + 8];
            u32 a[2][4];
#pragma unroll
            for (int h = 0; h < 2; h++)
                ldmatrix_x4(a[h], sp + (16 * m + (lane & 15)) * (KEYS + 8) + 16 * h + (lane >> 4) * 8);
#pragma unroll
            for (int v = 0; v < NV; v++) {
                // Matrix i of four: keys 8 i to 8 i + 8 of these 8 columns.
                u32 bv[4];
                ldmatrix_x4_trans(bv, sv + lane * stride_v + (warp * NV + v) * 8);
                float(&o)[4] = out[m][v];
                o[0] *= by0;
                o[1] *= by0;
                o[2] *= by1;
                o[3] *= by1;
                u32 b0[2] = {bv[0], bv[1]}, b1[2] = {bv[2], bv[3]};
                mma_f16(o, a[0], b0);
                mma_f16(o, a[1], b1);
            }
        }
    }
    __syncthreads();

    // The part: largest score, sum, values; by token, head and split.
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = 16 * m + (lane >> 2) + (i >> 1) * 8;
            if (r >= rows) continue;
            int token = span.first + (row0 + r) / per_kv, h = head * per_kv + (row0 + r) % per_kv;
            float *part = parts + (((u64)token * heads + h) * splits + split) * (v_dim + 2);
            if (warp == 0 && (lane & 3) == 0 && (i & 1) == 0) part[0] = most[r], part[1] = sum[r];
#pragma unroll
            for (int v = 0; v < NV; v++) {
                int c = (warp * NV + v) * 8 + 2 * (lane & 3) + (i & 1);
                if (c < v_dim) part[2 + c] = out[m][v][i];
            }
        }
}

#define ATTEND(MT, NV)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128, 1) attend_##MT##_##NV(                                              \
        const float *q, Cache keys, Cache values, Cache extra, const float *select, const Span *spans, const int *pos, \
        float *parts, int heads, int kv_heads, int k_dim, int v_dim, float scale, int window, float cap, int every,    \
        int n_select, int block_size, int lists, int shared_kv, int row_tiles, int splits) {                            \
        attend_body<MT, NV>(q, keys, values, extra, select, spans, pos, parts, heads, kv_heads, k_dim, v_dim, scale,   \
                            window, cap, every, n_select, block_size, lists, shared_kv, row_tiles, splits);            \
    }
ATTEND(1, 2)
ATTEND(1, 4)
ATTEND(1, 8)
ATTEND(1, 16)
ATTEND(2, 8)
ATTEND(4, 2)
ATTEND(4, 4)

/// Joins the parts of every token and head, and its sink. Grid: (heads, tokens).
extern "C" __global__ void attend_join(const float *parts, const float *sinks, float *out, int v_dim, int splits) {
    int heads = gridDim.x, h = blockIdx.x, t = blockIdx.y;
    const float *part = parts + ((u64)t * heads + h) * splits * (v_dim + 2);
    float most = sinks ? sinks[h] : -1e30f, sum = 0.f;
    for (int s = 0; s < splits; s++) most = fmaxf(most, part[(u64)s * (v_dim + 2)]);
    for (int s = 0; s < splits; s++) {
        const float *p = part + (u64)s * (v_dim + 2);
        sum += __expf(p[0] - most) * p[1];
    }
    if (sinks) sum += __expf(sinks[h] - most);
    for (int c = threadIdx.x; c < v_dim; c += blockDim.x) {
        float v = 0.f;
        for (int s = 0; s < splits; s++) {
            const float *p = part + (u64)s * (v_dim + 2);
            v += __expf(p[0] - most) * p[2 + c];
        }
        out[((u64)t * heads + h) * v_dim + c] = v / sum;
    }
}

/// Stores rows of f32 in a cache, at their positions; a negative one leaves its row out. Grid: rows. Blocks of codes become
/// what the CPU makes of them.
extern "C" __global__ void store_rows(const float *x, u8 *rows, const int *seq, const int *pos, int width,
                                      CacheType cache_type, int capacity, u64 row_bytes, u64 seq_bytes) {
    int t = blockIdx.x;
    if (pos[t] < 0) return;
    u8 *row = rows + seq[t] * seq_bytes + (u64)(pos[t] % capacity) * row_bytes;
    x += (u64)t * width;
    if (is_float(cache_type)) {
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            if (cache_type == CACHE_F32) ((float *)row)[i] = x[i];
            else ((u16 *)row)[i] = cache_type == CACHE_F16 ? f2h(x[i]) : f2b(x[i]);
        }
        return;
    }
    int lane = threadIdx.x & 31;
    for (int b = threadIdx.x >> 5; b < width / 32; b += blockDim.x >> 5)
        store_block(row, cache_type, b, x[32 * b + lane], lane);
}
