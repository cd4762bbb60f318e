// Attention over cached rows, for prompts and for single tokens alike; see src/ops/attend.rs for what is computed.
//
// A block of four warps takes 16 MT query rows (tokens of one sequence times the heads that share a
// key head) and a run of keys, 32 at a time. With MT = 4 each warp has 16 of the rows, all keys and
// all columns of the values:
//   scores    tensor cores, f16 times f16 to f32; the queries stay in registers
//   softmax   in registers: a lane has two rows of the scores, whose other columns three neighbours have
//   values    the scores' registers are those that the product of shares and values takes
// With fewer rows or wide values all warps have all rows, each 8 of the keys in the scores and a
// quarter of the columns in the values; scores pass through shared memory, and every warp works out
// the whole softmax for itself. With two `stages` the next keys are copied while these are
// multiplied. Long contexts are cut into runs that blocks share (`splits`); `attend_join` brings
// the parts together, and the sinks in.
//
// By registers (at most 255, of 128 threads) and shared memory two blocks or more share a
// multiprocessor of sm_86, with values of 512 columns one.
#include "cache.cuh"

enum { KEYS = 32, SCORES = KEYS + 8 };

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

/// `dim` values of a row from column `at` on, as f16 with zeros up to `wide`; nullptr gives zeros.
/// Four threads have a row, of which this is number `lane`. They are there once the thread's copies
/// have been waited for, and all threads met.
__device__ __forceinline__ void bring(u16 *to, const u8 *row, int lane, int dim, int wide, int at, CacheType type) {
    bool eights = dim % 8 == 0 && at % 8 == 0;
#pragma unroll 1
    for (int c = 8 * lane; c < wide; c += 32) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (row && c < dim) {
            if (type == CACHE_F16 && eights) { // many at once: each alone would wait for memory
                cp_async16(to + c, row + 2 * (at + c));
                continue;
            }
            float f[8];
            if (is_float(type)) {
                for (int j = 0; j < 8; j++) f[j] = c + j < dim ? cached_float(row, type, at + c + j) : 0.f;
            } else cached_eight(row, type, at + c, f);
            v = make_uint4(two_halves(f[0], f[1]), two_halves(f[2], f[3]), two_halves(f[4], f[5]),
                           two_halves(f[6], f[7]));
        }
        *(uint4 *)(to + c) = v;
    }
}

/// Bits `from` to `to` of a word.
__device__ __forceinline__ u32 bits_between(int from, int to) {
    u32 below = to >= 32 ? 0xffffffffu : to <= 0 ? 0 : (1u << to) - 1;
    return from <= 0 ? below : from >= 32 ? 0 : below & 0xffffffffu << from;
}

/// The parts of attention. MT: query rows of a block in 16s. NV: columns of values in 32s. Shared
/// memory: see `shared_bytes` in src/ops/attend.rs. Grid: (spans times row_tiles, key heads,
/// splits); 128 threads.
template <int MT, int NV>
__device__ __forceinline__ void attend_body(const float *q, Cache keys, Cache values, Cache extra, const float *select,
                                            const Span *spans, const int *pos, float *parts, int heads, int kv_heads,
                                            int k_dim, int v_dim, float scale, int window, float cap, int every, int n_select,
                                            int block_size, int lists, int shared_kv, int row_tiles, int splits,
                                            int stages) {
    // BY_ROWS: a warp has rows of its own. M: its rows in 16s. N: its columns of values in 8s.
    const bool BY_ROWS = MT == 4;
    const int ROWS = 16 * MT, M = BY_ROWS ? 1 : MT, N = BY_ROWS ? 4 * NV : NV, WIDE = 32 * NV;
    const float lowest = -1e30f, log2e = 1.44269504f;
    int wide_k = BY_ROWS ? WIDE : max((k_dim + 31) / 32 * 32, shared_kv ? WIDE : 0);
    int stride_k = wide_k + 8, stride_v = shared_kv ? stride_k : WIDE + 8;
    int stage_size = KEYS * (shared_kv ? stride_k : stride_k + stride_v);
    DYN_SHARED(u8, memory);
    u8 *brought = memory;             // (stages, 4): a bit for every key that is there
    u16 *rows16 = (u16 *)(memory + 16); // (stages, keys and then values)
    u16 *sq = rows16 + stages * stage_size;     // (ROWS, stride_k)
    float *ss = (float *)(sq + ROWS * stride_k); // (ROWS, SCORES)
    int id = threadIdx.x, lane = id & 31, warp = id >> 5, quad = lane & 3;
    int head = blockIdx.y, span_id = blockIdx.x / row_tiles, row0 = blockIdx.x % row_tiles * ROWS, split = blockIdx.z;
    Span span = spans[span_id];
    int per_kv = heads / kv_heads, rows = span.n * per_kv - row0;
    if (rows <= 0) return;
    if (rows > ROWS) rows = ROWS;
    int own_row0 = BY_ROWS ? 16 * warp : 0; // of the warp

    // Queries, times the scale: in registers as tensor cores take them, or in shared memory.
    auto query = [&](int r, int c) {
        r = row0 + min(r, rows - 1); // what comes of rows that are not there is not written
        const float *from = q + ((u64)(span.first + r / per_kv) * heads + head * per_kv + r % per_kv) * k_dim;
        float a = from[min(c, k_dim - 1)] * scale, b = from[min(c + 1, k_dim - 1)] * scale;
        return two_halves(c < k_dim ? a : 0.f, c + 1 < k_dim ? b : 0.f);
    };
    u32 queries[BY_ROWS ? WIDE / 16 : 1][4];
    if constexpr (BY_ROWS) {
#pragma unroll
        for (int k = 0; k < WIDE / 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                queries[k][i] = query(own_row0 + (lane >> 2) + (i & 1) * 8, 16 * k + 2 * quad + (i >> 1) * 8);
    } else {
        for (int i = id; i < ROWS * (wide_k / 2); i += 128) {
            int r = i / (wide_k / 2), c = i % (wide_k / 2) * 2;
            *(u32 *)(sq + r * stride_k + c) = query(r, c);
        }
    }

    // Of rows lane / 4 and 8 further, of every 16: where their keys end, the largest score, the sum.
    int end[M][2];
    float most[M][2], sum[M][2], out[M][N][4];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = own_row0 + 16 * m + (lane >> 2) + 8 * i;
            end[m][i] = r < rows ? pos[span.first + (row0 + r) / per_kv] + 1 : 0;
            most[m][i] = lowest, sum[m][i] = 0.f;
        }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int v = 0; v < N; v++)
#pragma unroll
            for (int i = 0; i < 4; i++) out[m][v][i] = 0.f;

    float squash = cap > 0.f ? 2.f * log2e / cap : 0.f;
    // Rows that are selected: of the second cache, or blocks of `block_size` of the first, for all key heads or for each. A
    // span is then one token.
    bool own_select = block_size > 0;
    const float *list = select + ((u64)span.first * lists + (lists > 1 ? head : 0)) * n_select;

    // Blocks of keys: first the sequence's own positions, then rows of the second cache. A split
    // has so many that their values are more than what it writes.
    int own_from = span.from / KEYS, own_blocks = (span.to + KEYS - 1) / KEYS - own_from;
    int blocks = own_blocks + (span.extra + KEYS - 1) / KEYS, each = max((blocks + splits - 1) / splits, rows / 8);
    int b_from = min(split * each, blocks), b_to = min(b_from + each, blocks);
    // What is brought is one or more passes ahead of what is multiplied; there is one place that
    // brings.
#pragma unroll 1
    for (int b = b_from - (stages - 1); b < b_to; b++) {
        cp_async_wait<0>();
        __syncthreads(); // the stage is full if there are two, and all are done with the other
        int next = b + stages - 1;
        if (next < b_to) {
            bool own = next < own_blocks;
            int r = id >> 2, key0 = own ? (own_from + next) * KEYS : (next - own_blocks) * KEYS, at = -1;
            if (key0 + r < (own ? span.to : span.extra)) {
                at = key0 + r;
                if (own && own_select) {
                    int block = (int)list[at / block_size];
                    at = block < 0 ? -1 : block * block_size + at % block_size;
                    if (at >= pos[span.first] + 1) at = -1;
                } else if (!own && select) at = (int)list[at];
            }
            // Whether keys are there: of eight, by a warp, into a byte.
            u32 there = __ballot_sync(0xffffffffu, at >= 0) & 0x11111111;
            there = (there | there >> 3) & 0x03030303;
            there = (there | there >> 6) & 0x000f000f;
            int stage = next & (stages - 1);
            if (lane == 0) brought[4 * stage + warp] = (u8)(there | there >> 12);
            u16 *to = rows16 + stage * stage_size + r * stride_k;
#pragma unroll 1
            for (int part = 0; part < (shared_kv ? 1 : 2); part++) {
                Cache c = !own ? extra : part ? values : keys;
                int dim = part ? v_dim : k_dim;
                const u8 *seq = c.rows + span.seq * c.seq_bytes;
                const u8 *row = at < 0 ? nullptr : seq + (u64)(at % c.capacity) * c.row_bytes;
                bring(to, row, id & 3, dim, part ? WIDE : wide_k, head * (part && own ? v_dim : k_dim), c.type);
                to += (KEYS - r) * stride_k + r * stride_v;
            }
            cp_async_commit();
        }
        if (stages == 1) {
            cp_async_wait<0>();
            __syncthreads();
        }
        if (b < b_from) continue;
        const u16 *sk = rows16 + (b & (stages - 1)) * stage_size, *sv = shared_kv ? sk : sk + KEYS * stride_k;

        // Scores: A the queries, B the keys.
        float s[M][KEYS / 8][4];
        if constexpr (BY_ROWS) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[0][j][i] = 0.f;
            const u16 *from = sk + ((lane & 7) + (lane >> 4) * 8) * stride_k + (lane >> 3 & 1) * 8;
#pragma unroll
            for (int k = 0; k < WIDE / 16; k++)
#pragma unroll
                for (int j = 0; j < KEYS / 8; j += 2) {
                    u32 kb[4];
                    ldmatrix_x4(kb, from + 8 * j * (WIDE + 8) + 16 * k);
                    u32 b0[2] = {kb[0], kb[1]}, b1[2] = {kb[2], kb[3]};
                    mma_f16(s[0][j], queries[k], b0);
                    mma_f16(s[0][j + 1], queries[k], b1);
                }
        } else {
            float mine[M][4];
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) mine[m][i] = 0.f;
            const u16 *key = sk + (8 * warp + (lane & 7)) * stride_k + (lane >> 3) * 8;
            const u16 *asked = sq + (lane & 15) * stride_k + (lane >> 4) * 8;
#pragma unroll 2
            for (int c = 0; c < wide_k; c += 32) {
                u32 kb[4];
                ldmatrix_x4(kb, key + c);
                u32 b0[2] = {kb[0], kb[1]}, b1[2] = {kb[2], kb[3]};
#pragma unroll
                for (int m = 0; m < M; m++) {
                    u32 a[4];
                    ldmatrix_x4(a, asked + 16 * m * stride_k + c);
                    mma_f16(mine[m], a, b0);
                    ldmatrix_x4(a, asked + 16 * m * stride_k + c + 16);
                    mma_f16(mine[m], a, b1);
                }
            }
            float *at = ss + (lane >> 2) * SCORES + 2 * quad;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    *(float2 *)(at + (16 * m + 8 * i) * SCORES + 8 * warp) =
                        make_float2(mine[m][2 * i], mine[m][2 * i + 1]);
            __syncthreads(); // all scores are there
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float2 two = *(const float2 *)(at + (16 * m + 8 * i) * SCORES + 8 * j);
                        s[m][j][2 * i] = two.x, s[m][j][2 * i + 1] = two.y;
                    }
        }

        // Softmax: what a row's lanes have of it, then among the four.
        bool own = b < own_blocks;
        int key0 = own ? (own_from + b) * KEYS : (b - own_blocks) * KEYS;
        u32 there = *(const u32 *)(brought + 4 * (b & (stages - 1)));
        u32 shares[M][KEYS / 8][2];
        float less[M][2];
        bool changed = false;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int last = end[m][i], first = 0;
                if (own) first = window > 0 ? last - window : window < 0 ? (last - 1) / -window * -window : 0;
                else last /= every;
                u32 seen = there;
                if (!(own ? own_select : select != nullptr)) seen &= bits_between(first - key0, last - key0);
                seen >>= 2 * quad;
                float top = most[m][i];
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float &v = s[m][j][2 * i + c];
                        // cap tanh(v / cap)
                        if (cap > 0.f) v = cap - __fdividef(2.f * cap, 1.f + fast_exp2(squash * v));
                        if (!(seen >> (8 * j + c) & 1)) v = lowest;
                        top = fmaxf(top, v);
                    }
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
                // Where nothing has been seen yet no share is one.
                float base = top == lowest ? 0.f : -log2e * top, total = 0.f;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) {
                    float a = fast_exp2(fmaf(s[m][j][2 * i], log2e, base));
                    float b = fast_exp2(fmaf(s[m][j][2 * i + 1], log2e, base));
                    total += a + b;
                    shares[m][j][i] = two_halves(a, b);
                }
                less[m][i] = fast_exp2(log2e * (most[m][i] - top));
                changed = changed || most[m][i] != top;
                sum[m][i] = sum[m][i] * less[m][i] + total; // of the lane's columns
                most[m][i] = top;
            }
        if (__any_sync(0xffffffffu, changed)) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int v = 0; v < N; v++)
#pragma unroll
                    for (int i = 0; i < 4; i++) out[m][v][i] *= less[m][i >> 1];
        }

        // Values of the warp's columns: A the shares, B the values.
        const u16 *value = sv + lane * stride_v + (BY_ROWS ? 0 : warp * N * 8);
#pragma unroll
        for (int v = 0; v < N; v++) {
            // Matrix i of four: keys 8 i to 8 i + 8 of these 8 columns.
            u32 bv[4];
            ldmatrix_x4_trans(bv, value + 8 * v);
            u32 b0[2] = {bv[0], bv[1]}, b1[2] = {bv[2], bv[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                u32 a0[4] = {shares[m][0][0], shares[m][0][1], shares[m][1][0], shares[m][1][1]};
                u32 a1[4] = {shares[m][2][0], shares[m][2][1], shares[m][3][0], shares[m][3][1]};
                mma_f16(out[m][v], a0, b0);
                mma_f16(out[m][v], a1, b1);
            }
        }
    }

    // The part: largest score, sum, values; by token, head and split. Of a split without keys the
    // sum says so.
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float total = sum[m][i];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            int r = own_row0 + 16 * m + (lane >> 2) + 8 * i;
            if (r >= rows) continue;
            int token = span.first + (row0 + r) / per_kv, h = head * per_kv + (row0 + r) % per_kv;
            float *part = parts + (((u64)token * heads + h) * splits + split) * (v_dim + 2);
            if ((BY_ROWS || warp == 0) && quad == 0) part[0] = most[m][i], part[1] = total;
            if (b_from >= b_to) continue;
            int c = (BY_ROWS ? 0 : warp * N * 8) + 2 * quad;
#pragma unroll
            for (int v = 0; v < N; v++) {
                if (c + 8 * v < v_dim) part[2 + c + 8 * v] = out[m][v][2 * i];
                if (c + 8 * v + 1 < v_dim) part[3 + c + 8 * v] = out[m][v][2 * i + 1];
            }
        }
}

#define ATTEND(MT, NV)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128, 1) attend_##MT##_##NV(                                              \
        const float *q, Cache keys, Cache values, Cache extra, const float *select, const Span *spans, const int *pos, \
        float *parts, int heads, int kv_heads, int k_dim, int v_dim, float scale, int window, float cap, int every,    \
        int n_select, int block_size, int lists, int shared_kv, int row_tiles, int splits, int stages) {               \
        attend_body<MT, NV>(q, keys, values, extra, select, spans, pos, parts, heads, kv_heads, k_dim, v_dim, scale,   \
                            window, cap, every, n_select, block_size, lists, shared_kv, row_tiles, splits, stages);    \
    }
ATTEND(1, 2)
ATTEND(1, 4)
ATTEND(1, 8)
ATTEND(1, 16)
ATTEND(2, 8)
ATTEND(2, 16)
ATTEND(4, 2)
ATTEND(4, 4)

/// Joins the parts of every token and head, and its sink; a part without keys has the sum 0 and no
/// values. Grid: (heads, tokens).
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
            if (p[1] > 0.f) v += __expf(p[0] - most) * p[2 + c];
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
